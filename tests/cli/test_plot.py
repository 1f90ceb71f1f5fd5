"""`diffusional plot` draws the numbers of a run, of a saved evaluation, and of an information curve."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusional import cli
from diffusional.evaluation import Comparison, Evaluation
from diffusional.ledger import Estimate
from diffusional.report.figures import shared_levels
from diffusional.report.plots import several_levels
from diffusional.report.style import figure

RESULT = Evaluation(
    Estimate(76.125, 0.21, 1.5, n=9, network_evaluations=1000),
    {
        "reconstruction": Estimate(3.25, 0.05, 0.1, n=9, network_evaluations=1000),
        "kl": Estimate(72.875, 0.2, 1.4, n=9, network_evaluations=1000),
    },
    {},
    torch.tensor([30.0, 42.875], dtype=torch.float64),
    torch.tensor([0.1, 0.15], dtype=torch.float64),
    torch.tensor([1, 2, 3]),
    64,
    {},
    gamma_edges=torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64),
)
NATS = ["3.250 ± 0.050", "72.88 ± 0.20", "76.12 ± 0.21"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 40 items 1×4×4 of 5 levels."""
    folder = tmp_path_factory.mktemp("plot")
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (40, 1, 4, 4)))
    model = ["--model.widths", "8", "8", "--model.blocks", "1", "--batch", "8"]
    cli.main(
        ["train", str(folder / "run"), "--data", str(folder / "tiny.npy"), "--data.levels", "5", *model, "--steps", "2"]
    )
    return folder / "run"


def texts(path: Path) -> list[str]:
    """The texts of an SVG file."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def plot(*args: object) -> None:
    cli.main(["plot", *map(str, args)])


def test_a_saved_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RESULT.save(tmp_path / "bound.json")
    plot(tmp_path / "bound.json", "-o", tmp_path / "bound.svg", "--unit", "nats", "--json", tmp_path / "plot.json")
    assert capsys.readouterr().out == f"{tmp_path / 'bound.svg'}: terms, levels of kl\n"
    assert set(NATS) <= set(texts(tmp_path / "bound.svg"))
    record = json.loads((tmp_path / "plot.json").read_text(encoding="utf-8"))
    assert record == {"figure": str(tmp_path / "bound.svg"), "panels": ["terms", "levels of kl"]}
    plot(tmp_path / "bound.json")
    assert (tmp_path / "bound.png").read_bytes().startswith(b"\x89PNG")
    plot(tmp_path / "bound.json", "--out", tmp_path / "bound.pdf")
    assert (tmp_path / "bound.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_with_and_without_an_evaluation(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny, run)
    plot(run, "-o", tmp_path / "a.svg")
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{tmp_path / 'a.svg'}: training"
    assert f"diffusional evaluate {run}" in out
    RESULT.save(run / "evaluation-validation.json")
    plot(run, "-o", tmp_path / "b.svg", "--unit", "nats")
    assert capsys.readouterr().out == f"{tmp_path / 'b.svg'}: terms, levels of kl, training\n"
    assert {*NATS, "step"} <= set(texts(tmp_path / "b.svg"))
    plot(run, "--split", "test", "-o", tmp_path / "c.svg")
    assert "diffusional evaluate" in capsys.readouterr().out


def test_an_information_curve(tmp_path: Path) -> None:
    curve, figure = tmp_path / "curve.json", tmp_path / "curve.svg"
    options = ["--timesteps", "3", "--samples", "50", "--figure", str(figure)]
    cli.main(["information", "digits", *options, "--json", str(curve)])
    plot(curve, "-o", tmp_path / "again.svg")
    first, again = (texts(path) for path in (figure, tmp_path / "again.svg"))
    assert again[:-1] == first[:-1]  # all except the title
    assert "H(x)" in again
    first, again = (
        re.findall(r"<use [^>]*>", path.read_text(encoding="utf-8")) for path in (figure, tmp_path / "again.svg")
    )
    assert len(first) == len(again) > 10


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        plot(*args)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_what_cannot_be_drawn(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text('{"difference": 1}', encoding="utf-8")
    assert "other.json" in fails(capsys, tmp_path / "other.json")
    assert "missing.json" in fails(capsys, tmp_path / "missing.json")
    RESULT.save(tmp_path / "bound.json")
    assert ".png, .svg or .pdf" in fails(capsys, tmp_path / "bound.json", "-o", tmp_path / "a.jpg")
    bare = tmp_path / "run"
    shutil.copytree(tiny, bare)
    (bare / "metrics.jsonl").unlink()
    assert f"diffusional evaluate {bare}" in fails(capsys, bare, "--split", "test")
    assert not list(tmp_path.glob("*.png")) + list(bare.glob("*.png"))


def test_a_figure_does_not_replace_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RESULT.save(tmp_path / "bound.json")
    before = (tmp_path / "bound.json").read_bytes()
    fails(capsys, tmp_path / "bound.json", "-o", tmp_path / "bound.json")
    assert (tmp_path / "bound.json").read_bytes() == before
    assert math.isclose(Evaluation.load(tmp_path / "bound.json").nelbo.value, 76.125)


def test_a_comparison_of_two_runs(tmp_path: Path) -> None:
    difference = Estimate(-2.0, 0.05, 0.1, n=9, network_evaluations=2000)
    both = Comparison(difference, RESULT, RESULT, math.inf, True, (), about={"runs": ["runs/a", "runs/b"]})
    both.save(tmp_path / "ab.json")
    plot(tmp_path / "ab.json", "-o", tmp_path / "ab.svg", "--unit", "nats")
    found = texts(tmp_path / "ab.svg")
    assert {
        "runs/a",
        "runs/b",
        "A − B, paired",
        "−2.000 ± 0.050",
        "76.12 ± 0.21",
        "KL, nats per unit of log-SNR",
    } <= set(found)
    plot(tmp_path / "ab.json", "-o", tmp_path / "ab.png")
    assert (tmp_path / "ab.png").read_bytes().startswith(b"\x89PNG")


def halved(name: str, tmp_path: Path) -> Path:
    """An evaluation of another model of the same items, whose levels cost half as much and lie elsewhere."""
    kl = 0.5 * RESULT.levels_kl
    other = dataclasses.replace(
        RESULT,
        nelbo=Estimate(39.6875, 0.21, 1.5, n=9, network_evaluations=1000),
        levels_kl=kl,
        gamma_edges=torch.tensor([-6.0, 1.0, 5.0], dtype=torch.float64),
    )
    other.save(tmp_path / name)
    return tmp_path / name


def test_several_evaluations_share_their_axes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny, run)
    RESULT.save(run / "evaluation-test.json")
    other = halved("half.json", tmp_path)
    plot(run, other, "-o", tmp_path / "ab.svg", "--unit", "nats", "--json", tmp_path / "plot.json")
    assert capsys.readouterr().out == f"{tmp_path / 'ab.svg'}: bounds, levels of kl\n"
    found = texts(tmp_path / "ab.svg")
    # In the panel of the bounds, and in the legend of the levels.
    assert found.count(str(run)) == found.count(str(other)) == 2
    assert {"76.12 ± 0.21", "39.69 ± 0.21", "KL, nats per unit of log-SNR"} <= set(found)
    record = json.loads((tmp_path / "plot.json").read_text(encoding="utf-8"))
    assert record["panels"] == ["bounds", "levels of kl"]


def test_levels_are_drawn_for_all_evaluations_with_their_bands(tmp_path: Path) -> None:
    second = Evaluation.load(halved("half.json", tmp_path))
    ((block, found),) = shared_levels({"a": RESULT, "b": second, "without": Evaluation.from_scores(torch.ones(3), 64)})
    assert block == "kl"
    assert list(found) == ["a", "b"]
    axes = several_levels(
        {name: (one.kl, one.error, one.edges, one.gamma) for name, one in found.items()}, figure(4.0, 2.0).subplots()
    )
    lines, bands = axes.patches[::2], axes.patches[1::2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert [line.get_data().values.tolist() for line in lines] == [[30 / 4, 42.875 / 5], [15 / 7, 42.875 / 2 / 4]]
    upper = [
        line.get_data().values + 2 * np.array([0.1, 0.15]) / np.array(width)
        for line, width in zip(lines, ([4, 5], [7, 4]), strict=True)
    ]
    assert [band.get_data().values.tolist() for band in bands] == [one.tolist() for one in upper]


def test_evaluations_of_different_items_are_drawn_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RESULT.save(tmp_path / "a.json")
    dataclasses.replace(RESULT, dimensions=32).save(tmp_path / "b.json")
    plot(tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "ab.svg")
    assert "cannot be compared" in capsys.readouterr().out.splitlines()[1]
    assert "cannot be compared" in " ".join(texts(tmp_path / "ab.svg"))


def test_what_cannot_be_drawn_together(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RESULT.save(tmp_path / "a.json")
    assert "different" in fails(capsys, tmp_path / "a.json", tmp_path / "a.json")
    assert f"diffusional evaluate {tiny}" in fails(capsys, tmp_path / "a.json", tiny)
    many = [halved(f"{i}.json", tmp_path) for i in range(7)]
    assert "2 to 6" in fails(capsys, *many)
    assert "RUN or FILE" in fails(capsys)
