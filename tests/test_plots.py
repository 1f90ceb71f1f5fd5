"""Plots show the numbers of their records: they are read back from what is drawn."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Comparison, Evaluation
from diffusional.exact import Finite
from diffusional.extras import MissingPackageError
from diffusional.information import curve
from diffusional.ledger import Estimate, Ledger
from diffusional.report import figures, plots, style


def estimate(value: float, error: float, item_error: float = 0.1) -> Estimate:
    return Estimate(value, error, item_error, n=9, network_evaluations=1000)


def an_evaluation(kl: Any = (), error: Any = (), edges: Any = (), gamma: Any = None, **fields: Any) -> Evaluation:
    terms = {
        "reconstruction": estimate(3.25, 0.05),
        "kl": estimate(76.5, 0.2),
        "prior": estimate(0.375, 0.0),
        "encoder_entropy": estimate(-4.0, math.nan),
    }
    return Evaluation(
        estimate(76.125, 0.21),
        terms,
        {},
        torch.tensor(kl, dtype=torch.float64),
        torch.tensor(error, dtype=torch.float64),
        torch.tensor(edges),
        64,
        {},
        gamma_edges=None if gamma is None else torch.tensor(gamma, dtype=torch.float64),
        **fields,
    )


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that are saved, which are kept here and not written."""
    found: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: found.append(figure))
    return found


def bars(axes: Axes) -> list[tuple[float, float]]:
    """Where the bars of a waterfall begin and end."""
    return [(float(bar.get_x()), float(bar.get_x() + bar.get_width())) for bar in axes.patches]


def error_bars(axes: Axes) -> list[tuple[float, float, float]]:
    """The left and right ends of horizontal error bars, and their y."""
    segments = [segment for container in axes.containers for part in _segments(container) for segment in part]
    return [(float(segment[0][0]), float(segment[1][0]), float(segment[0][1])) for segment in segments]


def _segments(container: Any) -> list[Any]:
    return [part.get_segments() for part in container[2]] if hasattr(container, "has_xerr") else []


@pytest.mark.parametrize("unit", ["nats", "bits/dim"])
def test_an_evaluation_is_a_waterfall_of_its_terms(axes: Axes, unit: str) -> None:
    factor = 1.0 if unit == "nats" else 1 / (64 * math.log(2))
    assert an_evaluation().plot(axes, unit=unit) is axes
    ends = np.cumsum([3.25, 76.5, 0.375, -4.0])
    expected = [(0, ends[0]), (ends[0], ends[1]), (ends[1], ends[2]), (ends[2], ends[3]), (0, 76.125)]
    np.testing.assert_allclose(bars(axes), factor * np.array(expected), atol=1e-12)
    # Two standard errors; no error bar for an exact term, or one whose error is unknown.
    expected = [(3.25 - 0.1, 3.25 + 0.1, 0), (79.75 - 0.4, 79.75 + 0.4, 1), (76.125 - 0.42, 76.125 + 0.42, 4)]
    expected = [(factor * left, factor * right, row) for left, right, row in expected]
    np.testing.assert_allclose(error_bars(axes), expected, atol=1e-9)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["reconstruction", "kl", "prior", "encoder_entropy", "NELBO"]
    low, high = axes.get_xlim()
    assert low <= 0 < factor * 80.15 < high
    if unit == "nats":
        assert [text.get_text() for text in axes.texts] == [
            "3.250 ± 0.050",
            "76.50 ± 0.20",
            "0.375",
            "−4",
            "76.12 ± 0.21",
        ]


def test_a_comparison_is_its_paired_differences(axes: Axes) -> None:
    result = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
    parts = {"kl": (-2.0, 0.2, 0.3), "prior": (0.5, 0.0, 0.1)}
    terms = {name: Estimate(*numbers, n=2, network_evaluations=0) for name, numbers in parts.items()}
    total = Estimate(-1.5, 0.2, 0.3, n=2, network_evaluations=0)
    both = Comparison(total, result, result, math.inf, True, (), terms=terms, about={"runs": ["a", "b"]})
    assert both.plot(axes, "nats") is axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["kl", "prior", "a − b"]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [-2.0, 0.5, -1.5]
    thick = [line.get_xdata() for line in axes.lines if line.get_linewidth() > 3]
    assert thick[0] == pytest.approx([-2.4, -1.6])


def test_a_ledger_is_a_waterfall_of_means_with_errors_over_items(axes: Axes) -> None:
    one = Ledger(
        torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.5]), dimensions=4
    )
    both = Ledger.join({"base": one, "up": one}, dimensions=16)
    both.plot(axes)
    np.testing.assert_allclose(bars(axes), [(0, 2), (2, 7), (7, 7.5), (7.5, 9.5), (9.5, 14.5), (14.5, 15), (0, 15)])
    # Reconstructions 1 and 3: standard error 1. KL 3 and 7: 2. NELBO 9 and 21: 6.
    widths = [(right - left) / 2 for left, right, _ in error_bars(axes)]
    np.testing.assert_allclose(widths, [2, 4, 2, 4, 12], rtol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["base.reconstruction", "base.kl"]


def test_a_ledger_of_one_item_has_no_error_bars(axes: Axes) -> None:
    Ledger(torch.tensor([1.0]), torch.tensor([[2.0]]), torch.tensor([0.0]), dimensions=4).plot(axes, unit="bits/dim")
    assert error_bars(axes) == []
    assert bars(axes)[-1] == pytest.approx((0, 3 / (4 * math.log(2))))
    with pytest.raises(ValueError, match="unit"):
        Ledger(torch.tensor([1.0]), torch.tensor([[2.0]]), torch.tensor([0.0]), dimensions=4).plot(axes, unit="bits")


def drawn_levels(axes: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The edges and densities that are drawn, and half of the width of the band."""
    area, _, *band = axes.patches
    values, edges, _ = area.get_data()
    if not band:
        return edges, values, None
    upper, _, lower = band[0].get_data()
    return edges, values, (upper - lower) / 2


@pytest.mark.parametrize(("count", "drawn"), [(1, 1), (7, 7), (999, 80)])
def test_levels_are_drawn_per_unit_of_log_snr(axes: Axes, count: int, drawn: int) -> None:
    rng = np.random.default_rng(0)
    gamma = np.sort(rng.uniform(-9, 10, count + 1))
    kl, error = rng.uniform(0, 1, count), rng.uniform(0, 0.1, count)
    result = an_evaluation(kl, error, np.arange(count + 1) + 1, gamma)
    result.plot(axes, what="levels")
    edges, values, band = drawn_levels(axes)
    assert len(values) == drawn
    assert edges[0] == -gamma[0]
    assert edges[-1] == pytest.approx(-gamma[-1])
    assert axes.get_xlim() == pytest.approx((-gamma[0], -gamma[-1]))
    widths = -np.diff(edges)
    assert (values * widths).sum() == pytest.approx(kl.sum())
    assert band is not None
    assert ((band * widths / 2) ** 2).sum() == pytest.approx((error**2).sum())
    if count == drawn:
        np.testing.assert_allclose(values * widths, kl)
        np.testing.assert_allclose(band * widths, 2 * error)


def test_levels_without_gamma_or_errors(axes: Axes) -> None:
    an_evaluation([1.0, 3.0], [0.0, math.nan], [1, 2, 4]).plot(axes, what="levels")
    edges, values, band = drawn_levels(axes)
    assert (edges.tolist(), values.tolist(), band) == ([1, 2, 4], [1.0, 1.5], None)
    assert axes.get_xlabel().startswith("t ")


def test_levels_of_equal_gamma_are_no_division_by_zero(axes: Axes) -> None:
    with np.errstate(all="raise"):
        plots.levels([1.0, 1.0], [0.1, 0.1], [1, 2, 3], [0.0, 2.0, 2.0], axes)
    assert drawn_levels(axes)[1].tolist() == [0.5, 0.0]


def test_costs_are_cumulated_from_the_noisiest_level(axes: Axes) -> None:
    plots.cumulated([1.0, 2.0, 4.0], [0.3, 0.4, 0.0], [1, 2, 3, 4], [-2.0, 0.0, 1.0, 5.0], axes)
    assert axes.lines[0].get_xdata().tolist() == [2.0, 0.0, -1.0, -5.0]
    assert axes.lines[0].get_ydata().tolist() == [7.0, 6.0, 4.0, 0.0]
    heights = axes.collections[0].get_paths()[0].vertices
    at_z1 = heights[heights[:, 0] == 2.0][:, 1]
    assert (at_z1.min(), at_z1.max()) == pytest.approx((6.0, 8.0))


COMPOSITE = {"kl": [1.0, 2.0, 5.0], "error": [0.1] * 3, "edges": [1, 2, 3, 1, 2], "blocks": {"base.kl": 2, "up.kl": 1}}


def test_a_block_of_a_composite_model_is_named(axes: Axes) -> None:
    result = an_evaluation(**COMPOSITE)
    with pytest.raises(DiffusionalError, match=r"block .*base\.kl, up\.kl"):
        result.plot(axes, what="levels")
    result.plot(axes, what="levels", block="up.kl")
    assert drawn_levels(axes)[1].tolist() == [5.0]
    with pytest.raises(DiffusionalError, match="terms"):
        an_evaluation().plot(what="levels")
    with pytest.raises(DiffusionalError, match=r"terms.*levels.*costs"):
        an_evaluation().plot(what="costs")


def test_every_block_of_levels_has_its_panels(saved: list[Figure], tmp_path: Path) -> None:
    figures.level_costs(tmp_path / "a.png", an_evaluation(**COMPOSITE), "two")
    first, first_sum, second, second_sum = saved[0].axes
    assert [one.get_title(loc="left") for one in (first, second)] == ["base.kl", "up.kl"]
    assert drawn_levels(first)[1].tolist() == [1.0, 2.0]
    assert drawn_levels(second)[1].tolist() == [5.0]
    assert [one.lines[0].get_ydata().tolist() for one in (first_sum, second_sum)] == [[3.0, 2.0, 0.0], [5.0, 0.0]]


@pytest.mark.parametrize("timesteps", [5, 50])
def test_an_information_curve_shows_its_values_and_errors(axes: Axes, timesteps: int) -> None:
    found = curve(
        Finite(torch.tensor([[-1.0], [1.0], [4.0]])),
        schedule.log_snr_linear(-9.0, 9.0),
        timesteps,
        samples=50,
        generator=torch.Generator().manual_seed(0),
    )
    assert found.error.max() > 1e-3
    found.plot(axes)
    information, error = found.information.numpy(), found.error.numpy()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), found.level)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), information)
    if timesteps == 5:
        (container,) = axes.containers
        ends = np.array([segment[:, 1] for segment in container[2][0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([information - 2 * error, information + 2 * error], 1))
    else:
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx(
            ((information - 2 * error).min(), (information + 2 * error).max())
        )
    entropy = next(line for line in axes.lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2)
    assert entropy.get_ydata()[0] == pytest.approx(math.log(3))
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["9.0", "5.4", "1.8", "−1.8", "−5.4", "−9.0"]


def test_rate_and_distortion_have_a_band_of_two_errors_and_end_where_x_is_known(axes: Axes) -> None:
    bits, error, rmse = np.array([0.0, 0.5, 1.5]), np.array([0.01, 0.05, 0.1]), np.array([4.0, 1.0, 0.1])
    plots.rate_distortion(bits, error, rmse, 2.0, axes)
    curve, end = axes.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (bits.tolist(), rmse.tolist())
    assert (list(end.get_xdata()), list(end.get_ydata())) == ([2.0], [0.0])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(np.round(point, 6)) for point in band} >= {(0.4, 1.0), (0.6, 1.0), (1.3, 0.1), (1.7, 0.1)}
    assert axes.get_xlim()[1] >= 2.0


def test_a_progressive_decoding_is_drawn_from_left_to_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[float]()
    monkeypatch.setattr(figures, "_picture", lambda axes, image, low, high: drawn.append(float(image.mean()) / high))
    bits = np.array([0.0, 0.1, 0.2, 0.9, 2.0])
    shown = np.arange(6.0)[:, None, None, None, None] * np.ones((6, 2, 1, 4, 4))
    figures.rate_distortion(tmp_path / "rate.svg", bits, 0 * bits, 5 - bits, 2.5, "five", shown, levels=11)
    # The images nearest to equal shares of the bits, without repeats, and x; twice.
    assert drawn == pytest.approx([0.0, 0.2, 0.3, 0.4, 0.5] * 2)
    assert "0.90" in (tmp_path / "rate.svg").read_text()


TRACES = {
    "diffusion": [{"step": step, "value": 6.9, "error": 0.0} for step in (0, 50, 100)],
    "VAE": [{"step": step, "value": value, "error": 0.1} for step, value in ((0, 1.0), (10, 6.9), (20, 6.9))],
}


def test_traces_that_lie_on_each_other_can_be_read(axes: Axes) -> None:
    plots.traces(TRACES, 6.91, axes)
    places = []
    for container, trace in zip(axes.containers, TRACES.values(), strict=True):
        line, _, (ends,) = container
        assert line.get_ydata().tolist() == [point["value"] for point in trace]
        halves = [(segment[1][1] - segment[0][1]) / 2 for segment in ends.get_segments()]
        np.testing.assert_allclose(halves, [2 * point["error"] for point in trace], atol=1e-12)
        np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1], atol=0.01)
        places.append(line.get_xdata())
    assert np.abs(places[0] - places[1]).min() > 0.005
    first, second = (container[0] for container in axes.containers)
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    assert {"diffusion", "VAE", "H(x)"} == {text.get_text() for text in axes.texts}


@pytest.mark.parametrize(
    "values", [np.arange(17), np.repeat(np.arange(100), 3), np.arange(-20, 81) / 4, np.array([3, 3])]
)
def test_bins_of_integers_hold_equally_many_of_them(values: np.ndarray, saved: list[Figure], tmp_path: Path) -> None:
    """A column in which every multiple of a step is equally frequent has a flat histogram, whose last bin may hold fewer."""
    figures.histograms(tmp_path / "a.png", values.reshape(-1, 1).astype(float), ["a"], "")
    heights = [float(bar.get_height()) for bar in saved[0].axes[0].patches]
    assert sum(heights) == len(values)
    assert len({*heights[:-1]}) <= 1
    assert heights[-1] <= heights[0]
    assert len(heights) <= 40


def test_bins_of_real_values(saved: list[Figure], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 1))
    values[0] = math.inf
    figures.histograms(tmp_path / "a.png", values, ["a"], "")
    heights = [float(bar.get_height()) for bar in saved[0].axes[0].patches]
    assert (len(heights), sum(heights)) == (40, 499)


METRICS = [
    {"step": 10, "loss": 9.0, "lr": 0.1},
    {"step": 20, "loss": 3.0, "lr": 0.1},
    {"step": 20, "validation": 4.0},
    {"step": 30, "loss": 2.0, "lr": 0.1},
]


def test_a_run_is_its_terms_its_levels_and_its_training(saved: list[Figure], tmp_path: Path) -> None:
    result = an_evaluation([1.0, 3.0], [0.1, 0.1], [1, 2, 3])
    figures.overview(tmp_path / "a.svg", result, METRICS, "a run", "nats")
    terms, levels, training = saved[0].axes
    assert bars(terms)[-1] == (0.0, 76.125)
    assert drawn_levels(levels)[1].tolist() == [1.0, 3.0]
    losses, validations = training.lines
    assert np.stack([losses.get_xdata(), losses.get_ydata()], 1).tolist() == [[10, 9.0], [20, 3.0], [30, 2.0]]
    assert np.stack([validations.get_xdata(), validations.get_ydata()], 1).tolist() == [[20, 4.0]]
    with pytest.raises(DiffusionalError, match="neither"):
        figures.overview(tmp_path / "b.svg", None, [], "nothing")


def test_losses_that_are_not_bounds_have_an_axis_of_their_own(saved: list[Figure], tmp_path: Path) -> None:
    metrics = [{"simple_loss" if key == "loss" else key: value for key, value in line.items()} for line in METRICS]
    figures.overview(tmp_path / "a.svg", None, metrics, "a run")
    losses, validations = saved[0].axes
    assert losses.get_ylabel() == "L_simple"
    assert [line.get_ydata().tolist() for line in losses.lines] == [[9.0, 3.0, 2.0]]
    assert [list(line.get_ydata()) for line in validations.lines] == [[4.0]]


def test_a_loaded_record_is_drawn_like_a_new_one(tmp_path: Path) -> None:
    result = an_evaluation([1.0, 3.0], [0.1, 0.1], [1, 2, 3], [-1.0, 0.0, 1.0])
    for name, one in (("new", result), ("old", Evaluation.from_json(json.loads(json.dumps(result.to_json()))))):
        figures.overview(tmp_path / f"{name}.svg", one, [], "a record")
    assert (tmp_path / "new.svg").read_bytes() == (tmp_path / "old.svg").read_bytes()


def test_without_axes_the_figure_is_that_of_pyplot() -> None:
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    axes = an_evaluation().plot()
    try:
        assert axes is plt.gca()
        assert dict(plt.rcParams) == before
    finally:
        plt.close(axes.figure)


def test_without_matplotlib_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("matplotlib.", "diffusional.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["diffusional.report"], "plots")
    with pytest.raises(MissingPackageError, match=r"matplotlib.*diffusional\[report\]"):
        an_evaluation().plot()
