"""Tables say the numbers they were given, and pictures show the images they were given."""

import io
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from diffusional.errors import DiffusionalError
from diffusional.evaluation import Comparison, Evaluation
from diffusional.ledger import Estimate
from diffusional.report import tables
from diffusional.report.figures import grid, histograms, level_costs, paths
from diffusional.report.tables import baseline_table, ledger_table


def text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def row(said: str, name: str) -> list[str]:
    line = next(line for line in said.splitlines() if re.search(rf"[│┃]\s*{re.escape(name)}\s", line))
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def estimate(value: float, error: float, item_error: float) -> Estimate:
    return Estimate(value, error, item_error, n=9, network_evaluations=1000)


NONE = torch.zeros(0)
RECORD = Evaluation(
    estimate(80.125, 0.21, 1.6),
    {
        "reconstruction": estimate(3.25, 0.05, 0.11),
        "kl": estimate(76.5, 0.2, 1.5),
        "prior": estimate(0.375, 0.0, 0.002),
    },
    {},
    NONE,
    NONE,
    NONE,
    64,
    {"levels": 17},
)


def bits(value: float, error: float, item_error: float, kind: Literal["bound", "exact", "estimate"]) -> Evaluation:
    """A record without terms, whose numbers are given in bits/dim."""
    nats = replace(estimate(value, error, item_error), unit="bits/dim").to("nats", 64)
    return replace(RECORD, nelbo=nats, terms={}, kind=kind)


def test_a_ledger_as_a_table() -> None:
    said = text(ledger_table(RECORD, "the test ledger"))
    assert "the test ledger" in said
    assert row(said, "kl") == ["kl", "76.50", "0.20", "1.5", "1.7245", "0.0045", "0.034"]
    assert row(said, "reconstruction")[1:4] == ["3.250", "0.050", "0.11"]
    assert row(said, "prior")[1:4] == ["0.3750", "0", "0.0020"]
    # 80.125/(64 ln 2) = 1.80619, ± 0.0047338 and 0.036067.
    assert row(said, "NELBO") == ["NELBO", "80.12", "0.21", "1.6", "1.8062", "0.0047", "0.036"]
    for column in ("nats", "bits/dim", "± MC", "± items"):
        assert column in said


def test_a_ledger_whose_bound_is_zero_or_of_one_item() -> None:
    """Real-valued data may cost nothing or less; a single item has no spread."""
    one = replace(RECORD, nelbo=estimate(0.0, 4.4, math.nan), terms={})
    said = row(text(ledger_table(one, "one item")), "NELBO")
    assert said == ["NELBO", "0.0", "4.4", "unknown", "0.000", "0.099", "unknown"]
    negative = replace(RECORD, nelbo=estimate(-80.125, 0.21, 1.6))
    assert row(text(ledger_table(negative, "negative")), "NELBO")[1:5] == ["-80.12", "0.21", "1.6", "-1.8062"]


def test_stages_stand_in_sections_of_their_own() -> None:
    terms = {f"{stage}.{name}": one for stage in ("base", "up") for name, one in RECORD.terms.items()}
    composite = replace(RECORD, terms=terms)
    for table in (ledger_table(composite, "a"), tables.ledgers_table({"a": composite}, "a")):
        said = text(table)
        assert row(said, "up.kl")[0] == "up.kl"
        ruled = [line.lstrip("│┃ ").split(" ")[0] if line.startswith("│") else "" for line in said.splitlines()]
        names = [*terms, "NELBO"]
        at = [ruled.index(name) for name in names]
        # A line lies between "base.prior" and "up.reconstruction", and between "up.prior" and the total.
        assert [b - a for a, b in pairwise(at)] == [1, 1, 2, 1, 1, 2]


def test_yardsticks_best_first() -> None:
    rows = {
        "flat": bits(2.4, 0.0, 0.01, "exact"),
        "diffusion": bits(1.7512, 0.0049, 0.02, "bound"),
        "guess": bits(2.5, 0.1, 0.02, "estimate"),
        "mixture": bits(2.28, 0.0, 0.012, "exact"),
    }
    said = text(baseline_table(rows, "yardsticks"))
    order = [said.index(name) for name in ("diffusion", "mixture", "flat", "guess")]
    assert order == sorted(order)
    assert row(said, "diffusion") == ["diffusion (upper bound)", "1.7512", "0.0049", "0.020"]
    assert row(said, "flat") == ["flat", "2.4000", "0", "0.010"]
    assert row(said, "guess")[0] == "guess (estimate)"


def test_what_is_exact_is_not_called_a_bound() -> None:
    exact = replace(RECORD, kind="exact")
    assert row(text(ledger_table(exact, "exact")), "−ln p(x)")[1] == "80.12"
    assert row(text(tables.ledgers_table({"a": RECORD, "b": exact}, "both")), "NELBO / −ln p(x)")[1:] == [
        "1.8062 ± 0.0047",
        "1.8062 ± 0.0047",
    ]


def test_a_table_of_a_comparison() -> None:
    both = Comparison(estimate(-2.0, 0.5, 1.0), RECORD, RECORD, math.inf, True, ())
    said = text(tables.comparison_table(both, "two"))
    assert row(said, "A")[1] == row(said, "B")[1] == "1.8062"
    # −2/(64 ln 2) = −0.0451.
    assert row(said, "A − B, paired")[1] == "-0.045"
    named = replace(both, about={"runs": ["one", "other"]})
    assert row(text(tables.comparison_table(named, "two")), "other")[1] == "1.8062"


# Pictures.


def read(path: Path) -> np.ndarray:
    assert path.stat().st_size > 500
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(picture: np.ndarray, colour: tuple[int, int, int], within: int = 12) -> float:
    return float((np.abs(picture - np.array(colour)).max(-1) <= within).mean())


def test_a_grid_shows_its_images(tmp_path: Path) -> None:
    dark, light = np.ones((1, 8, 8)), -np.ones((1, 8, 8))
    shares = {}
    for count in (1, 3):
        images = np.stack([dark] * count + [light] * (6 - count))
        grid(tmp_path / f"{count}.png", images, "some images", columns=3)
        picture = read(tmp_path / f"{count}.png")
        assert 200 < picture.shape[1] < 600
        assert 100 < picture.shape[0] < 600
        shares[count] = share(picture, (0, 0, 0))
    # Dark pixels are those of the dark images, a ninth or so of the picture for each.
    assert shares[3] == pytest.approx(3 * shares[1], rel=0.1)
    assert 0.05 < shares[1] < 0.17


def test_a_grid_is_read_like_a_page(tmp_path: Path) -> None:
    images = -np.ones((5, 1, 4, 4))
    images[3] = 1.0  # the first of the second row
    grid(tmp_path / "a.png", images, "five", columns=3)
    ys, xs = (read(tmp_path / "a.png") < 40).all(-1).nonzero()
    height, width = read(tmp_path / "a.png").shape[:2]
    assert np.median(ys) > 0.5 * height
    assert np.median(xs) < 0.34 * width


def test_grey_levels_go_from_low_to_high(tmp_path: Path) -> None:
    image = np.linspace(0, 4, 16).reshape(1, 1, 1, 16).repeat(8, 2)
    grid(tmp_path / "a.png", image, "", columns=1, low=0.0, high=4.0)
    picture = read(tmp_path / "a.png")
    middle = picture[int(np.median((picture < 15).all(-1).nonzero()[0]))]
    assert middle.min() < 15
    shades = {int(v) for v in middle[:, 0]}
    assert len(shades) >= 16
    # Dark is high, as ink is.
    inner = middle[middle.shape[0] // 4 : -middle.shape[0] // 4, 0]
    assert inner[0] > inner[-1] + 60


def test_three_channels_are_colours(tmp_path: Path) -> None:
    images = -np.ones((3, 3, 8, 8))
    for i in range(3):
        images[i, i] = 1.0
    grid(tmp_path / "a.png", images, "red, green, blue", columns=3)
    picture = read(tmp_path / "a.png")
    where = [(np.abs(picture - colour).max(-1) < 12).nonzero()[1] for colour in np.eye(3, dtype=int) * 255]
    assert all(len(xs) > 1000 for xs in where)
    assert np.median(where[0]) < np.median(where[1]) < np.median(where[2])


def test_paths_show_rows_and_columns(tmp_path: Path) -> None:
    rows = [-np.ones((4, 1, 8, 8)) for _ in range(2)]
    rows[1][2] = 1.0
    paths(tmp_path / "a.png", rows, ["x", "z1", "z2", "z3"], "two paths")
    picture = read(tmp_path / "a.png")
    height, width = picture.shape[:2]
    ys, xs = (picture < 12).all(-1).nonzero()
    assert len(ys) > 0.03 * height * width
    assert 0.5 < np.median(xs) / width < 0.75
    assert np.median(ys) / height > 0.55


def test_paths_need_a_label_for_each_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        paths(tmp_path / "a.png", [np.zeros((3, 1, 4, 4))], ["x", "z1"], "")


def with_levels(kl: np.ndarray, gamma: np.ndarray | None, **fields: Any) -> Evaluation:
    edges = fields.pop("level_edges", torch.arange(len(kl) + 1) + 1)
    gammas = None if gamma is None else torch.tensor(gamma)
    own = {"levels_kl": torch.tensor(kl), "levels_error": torch.zeros(len(kl)), "level_edges": edges}
    return replace(RECORD, **own, gamma_edges=gammas, **({"blocks": {}} | fields))


@pytest.mark.parametrize("levels", [1, 7, 999])
def test_costs_of_levels_lie_at_their_log_snr(levels: int, tmp_path: Path) -> None:
    gamma = np.linspace(-9, 10, levels + 1)
    filled = {}
    for name, kl in (("all", np.ones(levels)), ("clean", np.where(gamma[1:] < 0, 1.0, 0.0))):
        level_costs(tmp_path / f"{name}.png", with_levels(kl, gamma), "where the nats go")
        picture = read(tmp_path / f"{name}.png")
        assert picture.shape[1] > picture.shape[0] > 300
        blue = picture[..., 2] - picture[..., 0] > 60
        filled[name] = (float(blue.mean()), float(np.median(blue.nonzero()[1])) / picture.shape[1])
    assert filled["all"][0] > 0.25
    if levels > 1:
        # Clean levels are on the left.
        assert filled["clean"][1] < 0.45 < filled["all"][1]
        assert filled["clean"][0] < 0.65 * filled["all"][0]


def test_every_block_of_levels_has_a_panel(tmp_path: Path) -> None:
    """The costs of one stage are drawn over its own levels, clean latents on the left, whether γ is known or not."""
    level_costs(tmp_path / "one.png", with_levels(np.ones(4), np.linspace(-9, 10, 5)), "one")
    kl, edges = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([1, 2, 3, 4, 5, 1, 2, 3])
    blocks = {"base.kl": 4, "up.kl": 2}
    level_costs(tmp_path / "two.png", with_levels(kl, None, level_edges=edges, blocks=blocks), "two")
    one, two = read(tmp_path / "one.png"), read(tmp_path / "two.png")
    assert two.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    blue = two[..., 2] - two[..., 0] > 60
    upper, lower = np.split(blue, [two.shape[0] // 2])
    # The first level of the first block, and the last of the second.
    assert np.median(upper.nonzero()[1]) < 0.45 * two.shape[1]
    assert np.median(lower.nonzero()[1]) > 0.55 * two.shape[1]


def test_levels_of_equal_gamma_are_no_division_by_zero(tmp_path: Path) -> None:
    gamma = np.array([-9.0, 0.0, 20.0, 20.0])
    with np.errstate(all="raise"):
        level_costs(tmp_path / "a.png", with_levels(np.ones(3), gamma), "clamped")
    assert read(tmp_path / "a.png").std() > 10


def test_there_is_no_figure_without_levels(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="levels"):
        level_costs(tmp_path / "a.png", RECORD, "none")
    assert list(tmp_path.iterdir()) == []


def test_drawing_changes_nothing_global(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    grid(tmp_path / "a.png", np.zeros((1, 1, 4, 4)), "")
    assert dict(mpl.rcParams) == before


NAME = "[bold]run[v2][/] :smile: \\["


def test_names_in_tables_are_no_markup() -> None:
    """Whatever the console is set to, which is not ours where a table is printed from Python."""
    nats = {"value": 1.0, "error": 0.1}
    budget = {"rows": [{"name": NAME, "cost": nats, "information": nats, "gap": nats, "reference": nats}]}
    budget |= {"total": budget["rows"][0], "relative_to": NAME}
    curve = {"level": [1, 2], "gamma": [-9.0, 9.0], "information": [0.7, 0.1], "information_error": [0.0, 0.01]}
    curve |= {"increment": [0.6], "increment_error": [0.01]}
    about = {"runs": [NAME, NAME]}
    difference = Comparison(estimate(1.0, 0.1, 0.1), RECORD, RECORD, math.inf, True, (), {}, about)
    check = {"what": NAME, "measured": 1e-12, "error": 0.0, "expected": 0.0, "tolerance": 1e-9}
    claim = check | {
        "id": "C1",
        "claim": NAME,
        "holds": True,
        "control_fails": True,
        "control": check | {"check": NAME},
    }
    shown = {
        "ledger": (tables.ledger_table(replace(RECORD, terms={NAME: RECORD.nelbo}), NAME), 2),
        "yardstick": (tables.baseline_table({NAME: RECORD}, NAME), 2),
        "ledgers": (tables.ledgers_table({NAME: RECORD}, NAME), 2),
        "comparison": (tables.comparison_table(difference, NAME), 3),
        "information": (tables.information_table(curve, NAME), 1),
        "budget": (tables.budget_table(budget, NAME), 4),
        "claims": (tables.claims_table({"claims": [claim]}, NAME), 5),
    }
    for kind, (table, times) in shown.items():
        assert text(table).count(NAME) == times, kind


def test_dollars_in_names_begin_no_formula(tmp_path: Path) -> None:
    for n, label in enumerate(("a", "$\\frac$", "a$b$c")):
        histograms(tmp_path / f"{n}.png", np.arange(30.0).reshape(30, 1), [label], label)
        grid(tmp_path / f"grid-{n}.png", np.zeros((1, 1, 2, 2)), label)
    assert (tmp_path / "2.png").read_bytes() != (tmp_path / "0.png").read_bytes()


def test_a_figure_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(DiffusionalError, match="disk full"):
        grid(tmp_path / "a.png", np.zeros((1, 1, 2, 2)), "title")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.png": b"old"}
