"""The figures of docs/results show the numbers of benchmarks/results, are legible, and have a text for readers who do not see them."""

import importlib
import re
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import TOOLS, tool

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
_IMAGE = re.compile(r'!\[([^\]]*)\]\(|<img[^>]*?alt="([^"]*)"|<img(?![^>]*alt=)[^>]*>()')


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return tool("results")


def test_figures_are_those_of_the_data(results: ModuleType) -> None:
    """What a figure shows, drawn from the JSON of today, has the hash that its file has; every figure is on one page, and no file is left over."""
    drawn: dict[str, Any] = {}
    for page in FOLDER.glob("*.md"):
        results.written(page.read_text(encoding="utf-8"), drawn)
    assert set(drawn) == set(results.FIGURES)
    kept = {path.stem: results.fingerprint(path) for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert kept == {name: figure.fingerprint for name, figure in drawn.items()}, "run `make results`"


def _changed(value: Any) -> Any:
    """The JSON with all its real numbers 1 % larger."""
    if isinstance(value, dict):
        return {key: _changed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_changed(one) for one in value]
    return 1.01 * value if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("module", "name"),
    [("models", "systems"), ("evaluation", "cost_to_error_mnist"), ("information", "information_in_training")],
)
def test_other_data_give_another_hash(
    results: ModuleType, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    home = importlib.import_module(f"result_figures.{module}")
    draw, record = results.FIGURES[name].__wrapped__, home.record
    assert draw().fingerprint == draw().fingerprint
    monkeypatch.setattr(home, "record", lambda file: _changed(record(file)))
    assert draw().fingerprint != results.FIGURES[name]().fingerprint


def test_a_figure_of_other_data_is_found(results: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gpu.svg"
    kept = (ROOT / "docs" / "figures" / "gpu.svg").read_text(encoding="utf-8")
    path.write_text(kept, encoding="utf-8")
    assert results.fingerprint(path) == results.FIGURES["gpu"]().fingerprint
    path.write_text(re.sub("<dc:identifier>.*", "", kept), encoding="utf-8")
    assert results.fingerprint(path) == results.fingerprint(tmp_path / "missing.svg") == ""


def test_every_page_has_a_figure_or_gives_the_reason_for_none() -> None:
    for page in FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if page.name != "index.md":
            has, reason = "<!-- figure: " in text, re.search(r"<!-- no figure: (.{10,}) -->", text)
            assert has != bool(reason), f"{page.name}: add `<!-- figure: NAME -->`, or `<!-- no figure: REASON -->`"


def _texts(axes: Any) -> list[Any]:
    texts = [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_major_ticks(), strict=True)
        texts += [tick.label1 for place, tick in ticks if low <= place <= high]
    if axes.get_legend():
        texts += axes.get_legend().get_texts()
    return texts + [text for child in axes.child_axes for text in _texts(child)]


def _illegible(figure: Any) -> list[str]:
    """The texts of a figure that are cut off at its edge, or lie on another text."""
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in _texts(axes) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    edge = figure.bbox
    found = [
        f"{text!r} is cut off"
        for text, box in boxes
        if min(box.x0, box.y0) < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1
    ]
    found += [
        f"{text.get_text()!r} is white on white"
        for text in texts
        if text.get_color() == "white" and text.get_bbox_patch() is not None
    ]
    pairs = combinations([(text, box.padded(-1)) for text, box in boxes], 2)
    return found + [f"{one!r} and {other!r} overlap" for (one, a), (other, b) in pairs if a.overlaps(b)]


def test_texts_of_the_figures_are_legible(results: ModuleType) -> None:
    assert {name: found for name, draw in results.FIGURES.items() if (found := _illegible(draw().figure))} == {}


def test_texts_that_are_not_legible_are_found(results: ModuleType) -> None:
    figure = results.FIGURES["gpu"].__wrapped__().figure
    figure.axes[0].text(0.5, 0.5, "one", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.51, 0.5, "two", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.5, 0.1, "three", color="white", bbox={"facecolor": "white"})
    figure.axes[0].set_ylabel("a label that is longer than the figure is high" * 3)
    found = _illegible(figure)
    assert {"'one' and 'two' overlap", "'three' is white on white"} <= set(found)
    assert any("cut off" in text for text in found)


def test_every_axis_has_a_label(results: ModuleType) -> None:
    for name, draw in results.FIGURES.items():
        for axes in draw().figure.axes:
            assert axes.get_xlabel(), f"{name}: an x axis without a label"


def _alternatives(text: str) -> list[str]:
    return ["".join(found) for found in _IMAGE.findall(text)]


def test_images_without_a_text_are_found() -> None:
    assert _alternatives('![a](b.png) <img src="c.png" alt="d"> <img src="e.png">') == ["a", "d", ""]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_images_have_a_text_that_states_the_finding(page: Path) -> None:
    """The alternative text of an image is a sentence, not a title."""
    for text in _alternatives(page.read_text(encoding="utf-8")):
        assert len(text) >= 40, f"expected a sentence that states the finding, got {text!r}"
        assert text.endswith("."), f"expected a sentence that states the finding, got {text!r}"
