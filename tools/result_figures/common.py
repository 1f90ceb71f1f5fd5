"""What the figures share: the decorator that makes a figure of a function, its fingerprint, and rows of dots and bars."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import binomtest

from diffusional.report import style

# Inches; at 96 pixels an inch, 690 pixels.
WIDTH = 7.2
# Texts on a colour; the others are on white, and cover the lines that they cross.
INSIDE = 6


@dataclass(frozen=True)
class Drawn:
    """A figure, and the text for readers who do not see it, which states what the figure shows."""

    figure: Figure
    alt: str

    @property
    def fingerprint(self) -> str:
        """A hash of all that is drawn: numbers, colours and texts, but not their places on the page.

        It does not depend on the version of matplotlib. Numbers count to six significant digits.
        """
        parts = [self.alt, *(line for axes in self.figure.axes for line in _content(axes))]
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _content(axes: Axes) -> Iterable[str]:
    def numbers(values: Any) -> str:
        return " ".join(f"{value:.6g}" for value in np.ma.filled(np.asarray(values, dtype=float), np.nan).ravel())

    yield f"{axes.get_title(loc='left')} {axes.get_xlabel()} {axes.get_ylabel()} {axes.get_xscale()} {axes.get_yscale()}"
    yield numbers([axes.get_xlim(), axes.get_ylim()])
    yield " ".join(label.get_text() for label in axes.get_yticklabels() if axes.get_yscale() == "linear")
    for line in axes.lines:
        yield f"line {to_hex(line.get_color())} {line.get_marker()} {numbers(line.get_xdata())} {numbers(line.get_ydata())}"
    for patch in axes.patches:
        yield f"patch {to_hex(patch.get_facecolor())} {numbers(patch.get_path().vertices)} {numbers(patch.get_extents().bounds[:0])}"
        if hasattr(patch, "get_bbox"):
            yield numbers(patch.get_bbox().extents)
    for collection in axes.collections:
        paths = np.concatenate([np.zeros((0, 2)), *(path.vertices for path in collection.get_paths())])
        yield f"collection {numbers(paths)} {numbers(collection.get_offsets())}"
    for image in axes.images:
        yield f"image {numbers(image.get_array())}"
    for text in axes.texts:
        yield f"text {text.get_text()} {to_hex(text.get_color())}"


def figure(
    height: float, columns: int = 1, rows: int = 1, **arrangement: Any
) -> Callable[[Callable[..., str]], Callable[[], Drawn]]:
    """Make a figure of a function that draws on `rows` × `columns` axes and returns the figure's alternative text.

    Args:
        height: inches; the width is always WIDTH.
        columns, rows: the axes, which the function gets as positional arguments, row by row.
        arrangement: further arguments of `Figure.subplots`, such as width_ratios or sharey.
    """

    def decorate(draw: Callable[..., str]) -> Callable[[], Drawn]:
        @functools.cache
        @functools.wraps(draw)
        def drawn() -> Drawn:
            # A long label begins left of the axes, below the names of rows, rather than end outside the figure.
            with style.styled(), rc_context({"xaxis.labellocation": "right"}):
                new = style.figure(WIDTH, height)
                axes = new.subplots(rows, columns, squeeze=False, **arrangement)
                alt = draw(*axes.flat)
                for text in (text for one in axes.flat for text in one.texts if text.get_zorder() != INSIDE):
                    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.7})
                return Drawn(new, alt)

        return drawn

    return decorate


def rows(axes: Axes, names: Sequence[str]) -> np.ndarray:
    """Label the y axis with a row for each name, the first at the top, and return their y."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return np.arange(len(names), dtype=float)


def dots(
    axes: Axes, x: Any, y: Any, error: Any = None, *, colour: str = style.BLUE, hollow: bool = False, **more: Any
) -> None:
    """Draw dots with horizontal error bars: `error` is half their length, or a pair of lengths to the left and right."""
    options = {
        "fmt": "o",
        "ms": 5,
        "mec": colour,
        "mfc": "white" if hollow else colour,
        "elinewidth": 1.3,
        "zorder": 3,
    } | more
    axes.errorbar(x, y, xerr=error, color=colour, **options)


def share(successes: int, trials: int) -> tuple[float, float, float]:
    """Return a share of trials in percent, and how far its exact 95 % interval reaches to the left and right.

    >>> [round(value, 1) for value in share(0, 50)]
    [0.0, 0.0, 7.1]
    """
    found = binomtest(successes, trials).proportion_ci(method="exact")
    middle = successes / trials
    return 100 * middle, 100 * (middle - found.low), 100 * (found.high - middle)


def stacked(
    axes: Axes,
    names: Sequence[str],
    parts: Mapping[str, tuple[str, Sequence[float]]],
    totals: Sequence[str] = (),
    errors: Sequence[float] | None = None,
) -> None:
    """Draw a row of bars for each name, which add up to its total. A legend above the axes names the parts.

    Args:
        names: the rows, from the top.
        parts: {what it is: (colour, [its size in every row])}, from left to right.
        totals: a text right of every row.
        errors: half the lengths of the error bars of the totals.
    """
    y, left = rows(axes, names), np.zeros(len(names))
    total = np.sum([sizes for _, sizes in parts.values()], axis=0)
    error = np.zeros(len(names)) if errors is None else np.asarray(errors)
    limit = 1.2 * float((total + error).max())
    axes.set_xlim(0, limit)
    for part, (colour, sizes) in parts.items():
        sizes = np.asarray(sizes, dtype=float)
        axes.barh(y, sizes, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8, label=part)
        # A number has no room in a short bar, and is not legible below an error bar.
        free = np.minimum(left + sizes, total - error) - left
        for row in np.flatnonzero(free > 0.085 * limit):
            text = f"{sizes[row]:.{2 if sizes[row] < 10 else 1 if sizes[row] < 100 else 0}f}"
            axes.annotate(
                text,
                (left[row], row),
                xytext=(4, 0),
                textcoords="offset points",
                color=style.INK if colour in (style.ORANGE, style.SKY) else "white",
                va="center",
                size=8,
                zorder=INSIDE,
            )
        left += sizes
    if errors is not None:
        dots(axes, left, y, errors, colour=style.INK, fmt="none")
    for row, text in enumerate(totals):
        axes.annotate(
            text, (left[row] + error[row], row), xytext=(5, 0), textcoords="offset points", va="center", size=8.5
        )
    axes.grid(axis="y", visible=False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(parts), borderaxespad=0.2, handlelength=1, columnspacing=1.4
    )
