"""Figures: samples, forward and reverse paths, and the cost of every level.

Figures are made without pyplot, so that importing and drawing have no global effects and need no display.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from diffusional.errors import DiffusionalError
from diffusional.evaluation.result import Evaluation, LevelCosts
from diffusional.extras import needed_for
from diffusional.files import writing

with needed_for("report"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

P = ParamSpec("P")

_INK = "#22223b"
_KL = "#3a6ea5"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    with writing(path) as (part,):
        figure.savefig(part, dpi=150, format="png")


def _literal(draw: Callable[P, None]) -> Callable[P, None]:
    """Draw names literally: a dollar sign in the name of a file or a column does not begin a formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        with rc_context({"text.parse_math": False}):
            draw(*args, **kwargs)

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
        spine.set_color("#c9cad9")


@_literal
def grid(path: Path, images: np.ndarray, title: str, columns: int = 10, low: float = -1.0, high: float = 1.0) -> None:
    """Draw images (N, C, H, W) in a grid with `columns` columns.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "grid.png"
    >>> grid(target, np.zeros((4, 1, 8, 8)), "four", columns=2)
    >>> target.stat().st_size > 1000
    True
    """
    rows = -(-len(images) // columns)
    figure = _figure(0.72 * columns, 0.72 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, place in enumerate(axes.flat):
        if index < len(images):
            _picture(place, images[index], low, high)
        else:
            place.axis("off")
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


@_literal
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
    figure = _figure(0.8 * across + 0.6, 1.7 * rows + 0.4)
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
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


@_literal
def histograms(path: Path, columns: np.ndarray, labels: Sequence[str], title: str, most: int = 20) -> None:
    """Draw a histogram of each of the first `most` columns of (N, D).

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "columns.png"
    >>> histograms(target, np.arange(30.0).reshape(10, 3), ["a", "b", "c"], "three")
    >>> target.stat().st_size > 1000
    True
    """
    shown = min(columns.shape[1], most)
    across = min(shown, 5)
    down = -(-shown // across)
    figure = _figure(2.0 * max(across, 2), 1.5 * down + 0.5)
    axes = figure.subplots(down, across, squeeze=False)
    for index, place in enumerate(axes.flat):
        if index >= shown:
            place.axis("off")
            continue
        place.hist(np.asarray(columns[:, index], dtype=float), bins=40, color=_KL)
        place.set_title(labels[index], fontsize=8, color=_INK)
        place.set_yticks([])
        place.tick_params(labelsize=6)
        for side in ("top", "right", "left"):
            place.spines[side].set_visible(False)
    left_out = f", {shown} of {columns.shape[1]} columns" if shown < columns.shape[1] else ""
    figure.suptitle(title + left_out, fontsize=11, color=_INK)
    _save(figure, path)


@_literal
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
    figure = _figure(0.82 * len(labels), 0.82 * len(rows) + 0.65)
    axes = figure.subplots(len(rows), len(labels), squeeze=False)
    for row, images in zip(axes, rows, strict=True):
        for place, image in zip(row, images, strict=True):
            _picture(place, image, low, high)
    for place, label in zip(axes[0], labels, strict=True):
        place.set_title(label, fontsize=8, color=_INK)
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


@_literal
def level_costs(path: Path, result: Evaluation, title: str) -> None:
    """Draw the costs of levels: the cost per unit of log-SNR against log-SNR, and its cumulative sum from the noisiest level.

    A composite model has a panel for each block of levels. A block whose latents have no γ is drawn by level instead.

    Args:
        path: the PNG file to write.
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
    figure = _figure(7.6, 3.4 * len(blocks))
    for (name, block), axes in zip(blocks.items(), figure.subplots(len(blocks), squeeze=False)[:, 0], strict=True):
        _level_costs(axes, block)
        if len(blocks) > 1:
            axes.set_title(name, fontsize=9, color=_INK, loc="left")
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


def _level_costs(axes: Axes, block: LevelCosts) -> None:
    known = block.gamma is not None
    edges = np.asarray(block.edges if block.gamma is None else block.gamma, dtype=float)
    kl, widths = np.asarray(block.kl, dtype=float), np.diff(edges)
    bins = min(len(kl), 80)
    owner = np.arange(len(kl)) * bins // len(kl)
    mass, width = np.bincount(owner, kl, bins), np.bincount(owner, widths, bins)
    # Neighbouring levels may have equal γ, as a binomial chain's do where it is clamped.
    density = np.divide(mass, width, out=np.zeros_like(mass), where=width > 0)
    # The log-SNR decreases with γ, so that the least noisy latents are on the left in both cases.
    sign = -1 if known else 1
    starts = sign * np.concatenate([[edges[0]], edges[0] + np.cumsum(width)])
    axes.stairs(density, starts, fill=True, color=_KL, alpha=0.85)
    axes.set_xlim(starts[0], starts[-1])
    along = "log-SNR" if known else "u" if block.edges.is_floating_point() else "t"
    axes.set_xlabel(f"{along}  (low noise, z₁, on the left;  high noise, z_T, on the right)", color=_INK)
    axes.set_ylabel("KL, nats per unit of log-SNR" if known else f"KL, nats per unit of {along}", color=_KL)
    total = axes.twinx()
    total.plot(starts, np.concatenate([np.cumsum(mass[::-1])[::-1], [0.0]]), color=_INK, lw=1.4)
    total.set_ylabel("cumulative KL from z_T, nats", color=_INK)
    # Estimates of small costs may be negative; only larger ones change the lower limit of the axis.
    negative = bool((density < -0.02 * density.max()).any())
    for one in (axes, total):
        one.set_ylim(None if negative else 0.0, None)
        one.spines["top"].set_visible(False)


@_literal
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
    level, information, error = (np.asarray(v, dtype=float) for v in (level, information, error))
    figure = _figure(7.6, 3.8)
    axes = figure.subplots()
    first, last = level[0], level[-1]
    for start, stop in ((first, first + wasted[0] * (last - first)), (last - wasted[1] * (last - first), last)):
        axes.axvspan(start, stop, color="#e9e9f0", lw=0)
        if stop - start > 0.07 * (last - first):
            axes.text(0.5 * (start + stop), 0.5 * entropy, "< 1 %", ha="center", va="center", color=_INK, fontsize=9)
    axes.axhline(entropy, color=_INK, lw=0.9, ls=(0, (4, 3)))
    axes.annotate(
        "H(x)", (last, entropy), xytext=(-4, -4), textcoords="offset points", ha="right", va="top", color=_INK
    )
    axes.fill_between(level, information - 2 * error, information + 2 * error, color=_KL, alpha=0.25, lw=0)
    axes.plot(level, information, color=_KL, lw=1.8)
    axes.set_xlim(first, last)
    axes.set_ylim(min(0.0, entropy), max(1.08 * float(information.max()), 1.08 * entropy))
    axes.set_xlabel("u" if last == 1 else "t", color=_INK)
    axes.set_ylabel("I(x; z), nats", color=_INK)
    top = axes.secondary_xaxis("top")
    marks = np.linspace(first, last, 6)
    top.set_xticks(marks, [f"{v:.1f}" for v in np.interp(marks, level, -np.asarray(gamma, dtype=float))])
    top.set_xlabel("log-SNR", color=_INK)
    axes.spines["right"].set_visible(False)
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


@_literal
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
    figure = _figure(8.6, 3.4)
    axes = figure.subplots()
    axes.axhline(entropy, color=_INK, lw=0.9, ls=(0, (4, 3)))
    axes.annotate("H(x)", (0.0, entropy), xytext=(4, 4), textcoords="offset points", va="bottom", color=_INK)
    styles = cycle(zip((_KL, "#c8553d", "#588b6b", "#8f5fa8", "#b08928"), "osd^v", strict=True))
    for (name, trace), (colour, marker) in zip(traces.items(), styles, strict=False):
        value, error = (np.array([point[key] for point in trace]) for key in ("value", "error"))
        part = np.array([point["step"] for point in trace]) / max(1, trace[-1]["step"])
        axes.errorbar(part, value, 2 * error, color=colour, marker=marker, ms=4, lw=1.6, capsize=2, label=name)
    axes.set_ylim(0, 1.18 * entropy)
    axes.set_xlabel("fraction of training", color=_INK)
    axes.set_ylabel("I(x; z), nats (± 2 standard errors)", color=_INK)
    figure.legend(frameon=False, loc="outside right center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, fontsize=11, color=_INK)
    _save(figure, path)
