"""Figures: samples, forward and backward paths, and the cost of every level.

Figures are made without pyplot, so that importing or drawing changes nothing global and needs no display.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_INK = "#22223b"
_KL = "#3a6ea5"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _picture(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    """One image (C, H, W) or (H, W): a single channel in grey, three in colour."""
    image = np.asarray(image, dtype=float)
    if image.ndim == 3:
        image = np.moveaxis(image[:3], 0, -1) if image.shape[0] >= 3 else image[0]
    axes.imshow(np.clip((image - low) / (high - low), 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#c9cad9")


def grid(path: Path, images: np.ndarray, title: str, columns: int = 10, low: float = -1.0, high: float = 1.0) -> None:
    """Images (N, C, H, W) in a grid with `columns` columns.

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
    figure.savefig(path, dpi=150)


def paths(
    path: Path,
    rows: Sequence[np.ndarray],
    labels: Sequence[str],
    title: str,
    low: float = -1.0,
    high: float = 1.0,
) -> None:
    """Paths as rows of images: rows[i] is (N, C, H, W), labels one per column.

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
    figure.savefig(path, dpi=150)


def level_costs(path: Path, gamma: np.ndarray, kl: np.ndarray, title: str) -> None:
    """Where the nats go: the cost per unit of log-SNR against log-SNR, and its running sum from the noisiest level.

    Args:
        gamma: γ at both ends of every level (L + 1,), rising.
        kl: KL_t (L,) in nats.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "levels.png"
    >>> level_costs(target, np.linspace(-9, 10, 51), np.ones(50), "costs")
    >>> target.exists()
    True
    """
    kl, widths = np.asarray(kl), np.diff(gamma)
    bins = min(len(kl), 80)
    owner = np.arange(len(kl)) * bins // len(kl)
    mass, width = np.bincount(owner, kl, bins), np.bincount(owner, widths, bins)
    starts = np.concatenate([[gamma[0]], gamma[0] + np.cumsum(width)])
    figure = _figure(7.6, 3.4)
    axes = figure.subplots()
    axes.stairs(mass / width, -starts, fill=True, color=_KL, alpha=0.85)
    axes.set_xlim(-gamma[0], -gamma[-1])
    axes.set_xlabel("log-SNR  (clean on the left, z₁;  noise on the right, z_T)", color=_INK)
    axes.set_ylabel("KL, nats per unit of log-SNR", color=_KL)
    axes.set_title(title, fontsize=11, color=_INK)
    total = axes.twinx()
    total.plot(-starts, np.concatenate([np.cumsum(mass[::-1])[::-1], [0.0]]), color=_INK, lw=1.4)
    total.set_ylabel("nats spent from z_T down to here", color=_INK)
    total.set_ylim(0, None)
    axes.set_ylim(0, None)
    for a in (axes, total):
        a.spines["top"].set_visible(False)
    figure.savefig(path, dpi=150)
