"""Figures in files: samples, forward and reverse paths, and the cost of every level.

Files are PNG, SVG or PDF, by their suffix. Figures are made without pyplot, so that importing and drawing have no global effects and need no
display. To draw on axes of your own, use plots.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from diffusional.errors import DiffusionalError
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.result import Evaluation, LevelCosts
from diffusional.extras import needed_for
from diffusional.ledger import Estimate
from diffusional.report import plots, style

with needed_for("report"):
    from matplotlib.axes import Axes

P = ParamSpec("P")
R = TypeVar("R")
# The height of a panel in inches, and what draws it.
_Panel = tuple[float, Callable[[Axes], Any]]

# The largest number of bins of a histogram, and of images of one item in a progressive decoding.
_BINS, _SHARES = 40, 9


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style of this package, with names literally: a dollar sign does not begin a formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with style.styled():
            return draw(*args, **kwargs)

    return drawn


def _picture(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    """Draw one image (C, H, W) or (H, W), in grey if it has a single channel, otherwise in colour."""
    image = np.asarray(image, dtype=float)
    if image.ndim == 3:
        image = np.moveaxis(image[:3], 0, -1) if image.shape[0] >= 3 else image[0]
    axes.imshow(np.clip((image - low) / (high - low), 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#c9cad9", visible=True)


@_styled
def grid(path: Path, images: np.ndarray, title: str, columns: int = 10, low: float = -1.0, high: float = 1.0) -> None:
    """Draw images (N, C, H, W) in a grid with `columns` columns.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "grid.png"
    >>> grid(target, np.zeros((4, 1, 8, 8)), "four", columns=2)
    >>> target.stat().st_size > 1000
    True
    """
    rows = -(-len(images) // columns)
    figure = style.figure(0.72 * columns, 0.72 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, place in enumerate(axes.flat):
        if index < len(images):
            _picture(place, images[index], low, high)
        else:
            place.axis("off")
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def cost_maps(
    path: Path,
    images: np.ndarray,
    maps: np.ndarray,
    title: str,
    columns: int = 10,
    low: float = -1.0,
    high: float = 1.0,
) -> None:
    """Draw images (N, C, H, W), each above its map (N, H, W) of nats, in rows of `columns`; one colour scale for all maps.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "maps.png"
    >>> cost_maps(target, np.zeros((3, 1, 8, 8)), np.ones((3, 8, 8)), "three")
    >>> target.stat().st_size > 1000
    True
    """
    across = min(columns, max(len(images), 4))
    rows = -(-len(images) // across)
    figure = style.figure(0.8 * across + 0.6, 1.7 * rows + 0.4)
    axes = figure.subplots(2 * rows, across, squeeze=False)
    # A few values beyond do not dim the others.
    least, most = (float(np.quantile(maps, q)) for q in (0.005, 0.995))
    drawn = None
    for index in range(rows * across):
        above, below = (axes[2 * (index // across) + k, index % across] for k in (0, 1))
        if index >= len(images):
            above.axis("off")
            below.axis("off")
            continue
        _picture(above, images[index], low, high)
        drawn = below.imshow(maps[index], cmap="magma", vmin=least, vmax=max(most, least + 1e-12))
        below.set_xticks([])
        below.set_yticks([])
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, fraction=0.03)
        bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def histograms(path: Path, columns: np.ndarray, labels: Sequence[str], title: str, most: int = 20) -> None:
    """Draw a histogram of each of the first `most` columns of (N, D). Bins have equal numbers of the values that a column of integers can have.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "columns.png"
    >>> histograms(target, np.arange(30.0).reshape(10, 3), ["a", "b", "c"], "three")
    >>> target.stat().st_size > 1000
    True
    """
    shown = min(columns.shape[1], most)
    across = min(shown, 5)
    down = -(-shown // across)
    figure = style.figure(2.0 * max(across, 2), 1.5 * down + 0.5)
    axes = figure.subplots(down, across, squeeze=False)
    for index, place in enumerate(axes.flat):
        if index >= shown:
            place.axis("off")
            continue
        values = np.asarray(columns[:, index], dtype=float)
        edges = _edges(values)
        centres = (edges[:-1] + edges[1:]) / 2
        few = len(centres) <= 12 and bool(np.isin(values[np.isfinite(values)], centres).all())
        place.hist(values, bins=list(edges), color=style.BLUE, rwidth=0.85 if few else 1.0)
        place.grid(visible=False)
        place.set_title(labels[index], fontsize=8)
        place.set_yticks([])
        if few:
            place.set_xticks(centres, [f"{centre:g}" for centre in centres])
        place.tick_params(labelsize=6)
        place.spines["left"].set_visible(False)
    left_out = f", {shown} of {columns.shape[1]} columns" if shown < columns.shape[1] else ""
    figure.suptitle(title + left_out, fontsize=11)
    style.save(figure, path)


def _edges(values: np.ndarray) -> np.ndarray:
    """Return the edges of bins for a histogram. If values are multiples of a step, such as integers, each bin has equally many multiples.

    Otherwise neighbouring bins would hold, for example, three and four integers, and the histogram would have gaps and teeth that the data have not.

    >>> _edges(np.array([0.0, 1.0, 1.0, 3.0])).tolist()
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    >>> np.unique(np.diff(_edges(np.arange(100.0)))).tolist()                           # three integers in each
    [3.0]
    >>> len(_edges(np.random.default_rng(0).random(1000)))
    41
    """
    values = values[np.isfinite(values)]
    different = np.unique(values)
    if len(different) < 2:
        middle = different[0] if len(different) else 0.0
        return np.array([middle - 0.5, middle + 0.5])
    step = float(np.diff(different).min())
    places = (different - different[0]) / step
    count = round(float(places[-1])) + 1
    if np.abs(places - places.round()).max() > 1e-4:
        return np.histogram_bin_edges(values, _BINS)
    together = math.ceil(count / _BINS)
    return different[0] - step / 2 + step * together * np.arange(math.ceil(count / together) + 1)


@_styled
def paths(
    path: Path,
    rows: Sequence[np.ndarray],
    labels: Sequence[str],
    title: str,
    low: float = -1.0,
    high: float = 1.0,
) -> None:
    """Draw paths as rows of images: rows[i] is (N, C, H, W), with one label per column.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "paths.png"
    >>> paths(target, [np.zeros((3, 1, 8, 8))] * 2, ["x", "z1", "z2"], "two paths")
    >>> target.exists()
    True
    """
    figure = style.figure(0.82 * len(labels), 0.82 * len(rows) + 0.65)
    axes = figure.subplots(len(rows), len(labels), squeeze=False)
    for row, images in zip(axes, rows, strict=True):
        for place, image in zip(row, images, strict=True):
            _picture(place, image, low, high)
    for place, label in zip(axes[0], labels, strict=True):
        place.set_title(label, fontsize=8, loc="center")
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def level_costs(path: Path, result: Evaluation, title: str) -> None:
    """Draw the costs of levels: the cost per unit of log-SNR against log-SNR, and below it its sum from the noisiest level, with errors.

    A composite model has these panels for each block of levels. A block whose latents have no γ is drawn by level instead.

    Args:
        path: the file to write.
        result: an evaluation, new or loaded.
        title: the title above the panels.

    Raises DiffusionalError if the evaluation has no levels.

    >>> import tempfile, torch
    >>> from diffusional.ledger import Estimate
    >>> target, kl = Path(tempfile.mkdtemp()) / "levels.png", torch.ones(50)
    >>> total, gamma = Estimate(50.0, 0.1, 0.1, n=9, network_evaluations=0), torch.linspace(-9, 10, 51)
    >>> result = Evaluation(total, {}, {}, kl, 0 * kl, torch.arange(1, 52), 64, {}, gamma_edges=gamma)
    >>> level_costs(target, result, "costs")
    >>> target.exists()
    True
    """
    blocks = {name: block for name, block in result.level_blocks().items() if len(block.kl)}
    if not blocks:
        raise DiffusionalError(
            "expected an evaluation with levels, got one without: there are no costs of levels to draw"
        )
    figure = style.figure(7.2, 4.2 * len(blocks))
    panels = figure.subplots(2 * len(blocks), squeeze=False, height_ratios=(2, 1) * len(blocks))[:, 0]
    for (name, block), above, below in zip(blocks.items(), panels[::2], panels[1::2], strict=True):
        plots.levels(block.kl, block.error, block.edges, block.gamma, above)
        plots.cumulated(block.kl, block.error, block.edges, block.gamma, below)
        if len(blocks) > 1:
            above.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def information_curve(
    path: Path,
    level: np.ndarray,
    gamma: np.ndarray,
    information: np.ndarray,
    error: np.ndarray,
    entropy: float,
    wasted: tuple[float, float],
    title: str,
) -> None:
    """Draw I(x; z_t) over the levels, with H(x) and a second axis of log-SNR. The ends that hardly change it are grey.

    Args:
        level, gamma, information, error: (L,) as in a `Curve`; the band is two standard errors.
        wasted: the fractions of levels at the low-noise and at the high-noise end over which it changes by less than 1 %.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "information.png"
    >>> t = np.arange(1, 6)
    >>> information_curve(target, t, 2.0 * t - 6, 2.0 - 0.4 * t, 0 * t, 1.7, (0.1, 0.2), "a curve")
    >>> target.exists()
    True
    """
    figure = style.figure(7.2, 3.6)
    plots.information(level, gamma, information, error, entropy, wasted, figure.subplots())
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def rate_distortion(
    path: Path,
    bits: np.ndarray,
    error: np.ndarray,
    rmse: np.ndarray,
    total: float,
    title: str,
    shown: np.ndarray | None = None,
    levels: int = 256,
) -> None:
    """Draw a progressive decoding: the distortion of x̂(z_t) against the bits of z_T … z_t, above x̂ of some images after some of the bits.

    Args:
        bits, error, rmse: (K,) as in a `RateDistortion`, in bits/dim and levels; the band is two standard errors.
        total: bits/dim after which x is known.
        shown: images of x̂ (K, M, C, H, W) and in the end x (K + 1, M, C, H, W), in levels. Images whose bits are evenly spaced are drawn.
        levels: the number of grey levels.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "rate.png"
    >>> bits, rmse = np.array([0.0, 0.5, 1.5]), np.array([4.0, 1.0, 0.1])
    >>> rate_distortion(target, bits, 0.1 * bits, rmse, 2.0, "three latents", np.zeros((4, 2, 1, 8, 8)), 16)
    >>> target.exists()
    True
    """
    if shown is None:
        figure = style.figure(7.2, 3.4)
        curve = figure.subplots()
    else:
        figure = style.figure(7.2, 3.2 + 0.72 * shown.shape[1])
        parts = figure.add_gridspec(2, 1, height_ratios=(3.2, 0.72 * shown.shape[1]))
        above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
        curve = above.subplots()
        nearest = [int(np.abs(bits - bits[-1] * share).argmin()) for share in np.linspace(0, 1, _SHARES)]
        chosen = [*dict.fromkeys(nearest)]
        grid = below.subplots(shown.shape[1], len(chosen) + 1, squeeze=False)
        for row, item in zip(grid, range(shown.shape[1]), strict=True):
            for place, k in zip(row, [*chosen, -1], strict=True):
                _picture(place, shown[k, item], 0.0, float(levels - 1))
        for place, label in zip(grid[-1], [*(f"{bits[k]:.2f}" for k in chosen), "x"], strict=True):
            place.set_xlabel(label, fontsize=8)
    plots.rate_distortion(bits, error, rmse, total, curve)
    figure.suptitle(title, fontsize=11)
    style.save(figure, path)


@_styled
def information_traces(
    path: Path, traces: Mapping[str, Sequence[Mapping[str, Any]]], entropy: float, title: str
) -> None:
    """Draw I(x; z) of several models during training, {name: [{"step", "value", "error"}, …]}, against the fraction of training.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "traces.png"
    >>> points = [{"step": 0, "value": 0.1, "error": 0.01}, {"step": 9, "value": 5.0, "error": 0.1}]
    >>> information_traces(target, {"VAE": points}, 6.9, "I(x; z)")
    >>> target.exists()
    True
    """
    figure = style.figure(7.2, 3.3)
    axes = figure.subplots()
    plots.traces(traces, entropy, axes)
    axes.set_title(title, fontsize=11)
    style.save(figure, path)


@_styled
def overview(
    path: Path, result: Evaluation | None, metrics: Sequence[Mapping[str, Any]], title: str, unit: str = "bits/dim"
) -> None:
    """Draw an evaluation and a training below each other: the terms, the costs of each block of levels, losses and validation bounds.

    Args:
        path: the file to write.
        result: an evaluation, new or loaded, or None.
        metrics: the lines of a run's metrics.jsonl, or nothing.
        title: the title above the panels.
        unit: "bits/dim" or "nats", for the terms.

    Raises DiffusionalError if there is nothing to draw.

    >>> import tempfile, torch
    >>> target = Path(tempfile.mkdtemp()) / "run.svg"
    >>> overview(target, Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2), [{"step": 1, "loss": 4.0}], "a run")
    >>> target.read_text().count("nats per item")
    0
    """
    panels: list[_Panel] = []
    if result is not None:
        panels.append((0.9 + 0.34 * (len(result.terms) + 1), lambda axes: result.plot(axes, unit=unit)))
        blocks = {name: block for name, block in result.level_blocks().items() if len(block.kl)}
        for name, block in blocks.items():
            heading = name if len(blocks) > 1 else ""
            panels.append(
                (2.5, lambda axes, block=block, heading=heading: block.plot(axes).set_title(heading, fontsize=9))
            )
    if metrics:
        panels.append((2.4, lambda axes: _training(axes, metrics)))
    if not panels:
        raise DiffusionalError("expected an evaluation or metrics to draw, got neither")
    _stacked(path, panels, title)


def _training(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the losses and validation bounds of metrics.jsonl; losses that are not bounds have an axis of their own."""
    trace = plots.traces_of(metrics)
    if trace.is_bound:
        plots.training(trace.steps, trace.losses, (trace.validated, trace.bounds), axes, trace.label)
        return
    plots.training(trace.steps, trace.losses, None, axes, trace.label)
    other = axes.twinx()
    other.plot(trace.validated, trace.bounds, "o-", color=style.VERMILION, ms=4)
    other.set_ylabel("validation, bits per dimension", color=style.VERMILION)
    other.spines["right"].set_visible(True)


@_styled
def comparison(path: Path, result: Comparison, title: str, unit: str = "bits/dim") -> None:
    """Draw a comparison: both bounds, their paired difference, and the costs of the levels of both, where they have any of the same name.

    Args:
        path: the file to write.
        result: a comparison, new or loaded.
        title: the title above the panels.
        unit: "bits/dim" or "nats", for bounds and difference.

    >>> import math, tempfile, torch
    >>> a, b = (Evaluation.from_scores(torch.tensor(scores), dimensions=2) for scores in ([3.0, 5.0], [4.0, 6.0]))
    >>> both = Comparison(Estimate(-1.0, 0.1, 0.0, n=2, network_evaluations=0), a, b, math.inf, True, ())
    >>> target = Path(tempfile.mkdtemp()) / "both.svg"
    >>> comparison(target, both, "A and B")
    >>> "equally good" in target.read_text()
    True
    """
    results = dict(zip(result.names, (result.a, result.b), strict=True))
    difference = {"A − B, paired": _row(result.difference, unit, result.a.dimensions)}
    panels: list[_Panel] = [
        _bounds(results, unit),
        (1.2, lambda axes: plots.bounds(difference, unit, axes, "equally good")),
        *_levels(results),
    ]
    _stacked(path, panels, title)


@_styled
def several(path: Path, results: Mapping[str, Evaluation], title: str, unit: str = "bits/dim") -> None:
    """Draw several evaluations: their bounds, and the costs of the levels of all of them in one panel for each block of levels.

    Args:
        path: the file to write.
        results: evaluations by name, from two to six.
        title: the title above the panels.
        unit: "bits/dim" or "nats", for the bounds.

    Raises DiffusionalError for fewer evaluations, or more than there are colours.

    >>> import tempfile, torch
    >>> runs = {name: Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2) for name in ("first", "second")}
    >>> target = Path(tempfile.mkdtemp()) / "runs.svg"
    >>> several(target, runs, "two runs")
    >>> "second" in target.read_text()
    True
    """
    if not 2 <= len(results) <= len(style.COLOURS):
        raise DiffusionalError(
            f"expected 2 to {len(style.COLOURS)} evaluations to draw in one figure, got {len(results)}"
        )
    _stacked(path, [_bounds(results, unit), *_levels(results)], title)


def _row(one: Estimate, unit: str, dimensions: int) -> tuple[float, float, float]:
    one = one.to(unit, dimensions)
    return one.value, one.error, one.item_error


def _bounds(results: Mapping[str, Evaluation], unit: str) -> _Panel:
    """Return the panel of the bounds of evaluations."""
    rows = {name: _row(one.nelbo, unit, one.dimensions) for name, one in results.items()}
    return 0.8 + 0.4 * len(rows), lambda axes: plots.bounds(rows, unit, axes)


def shared_levels(results: Mapping[str, Evaluation]) -> list[tuple[str, dict[str, LevelCosts]]]:
    """Return the costs of the levels that at least two evaluations have in the same coordinate, by the names of blocks and evaluations.

    >>> shared_levels({})
    []
    """
    blocks = {name: one.level_blocks() for name, one in results.items()}
    found: list[tuple[str, dict[str, LevelCosts]]] = []
    for block in dict.fromkeys(block for own in blocks.values() for block in own):
        own = {name: one[block] for name, one in blocks.items() if block in one and len(one[block].kl)}
        for has_gamma in (True, False):
            same = {name: one for name, one in own.items() if (one.gamma is not None) == has_gamma}
            if len(same) > 1:
                found.append((block, same))
    return found


def _levels(results: Mapping[str, Evaluation]) -> list[_Panel]:
    """Return a panel for each block of levels that evaluations share."""
    panels: list[_Panel] = []
    for _, same in shared_levels(results):
        drawn = {name: (one.kl, one.error, one.edges, one.gamma) for name, one in same.items()}
        panels.append((2.5, lambda axes, drawn=drawn: plots.several_levels(drawn, axes)))
    return panels


def _stacked(path: Path, panels: Sequence[_Panel], title: str) -> None:
    """Draw panels below each other."""
    heights = [height for height, _ in panels]
    figure = style.figure(7.2, sum(heights) + 0.3)
    for axes, (_, draw) in zip(
        figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0], panels, strict=True
    ):
        draw(axes)
    figure.suptitle(title, fontsize=10, wrap=True)
    style.save(figure, path)
