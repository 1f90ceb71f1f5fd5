"""The style of figures: colours that differ for colour-blind readers, fonts, axes, and files whose bytes are reproducible.

Figures are made without pyplot, so that importing and drawing have no global effects and need no display.
"""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import writing

with needed_for("report"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

INK = "#22223b"
MUTED = "#6c6c80"
GRID = "#e4e4ec"
# The colours of Okabe and Ito (2008), which differ for readers with any of the common kinds of colour blindness.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
# Series also differ by marker and dash, for prints without colour and where lines lie on each other.
MARKERS = ("o", "s", "D", "^", "v", "P")
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (3, 3)))
# Formats of files, by suffix.
FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}

_RC: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    # Verdana has nearly the widths of DejaVu, where an SVG file is shown without it.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "text.color": INK,
    # A dollar sign in the name of a file or a column does not begin a formula.
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    # Texts of SVG files are texts, which can be searched, and make the files five times smaller than letters as paths.
    "svg.fonttype": "none",
    "svg.hashsalt": "diffusional",
}


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures are made, drawn and saved in this style.

    >>> with styled():
    ...     axes = figure(4.0, 3.0).subplots()
    >>> axes.spines["top"].get_visible()
    False
    """
    return rc_context(_RC)


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` × `height` inches, whose parts are arranged without overlap.

    >>> figure(4.0, 3.0).get_size_inches().tolist()
    [4.0, 3.0]
    """
    new = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(new)
    return new


def save(figure: Figure, path: Path, title: str = "", description: str = "", identifier: str = "") -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of `path`, completely or not at all. The same figure gives the same bytes.

    Args:
        figure: the figure.
        path: the file to write; its suffix is .png, .svg or .pdf.
        title, description, identifier: metadata of an SVG file.

    Raises DiffusionalError for another suffix.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "empty.svg"
    >>> save(figure(2.0, 1.0), target)
    >>> target.read_text().startswith("<?xml")
    True
    """
    kind = suffix(path)
    metadata: dict[str, str | None] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": "diffusional"},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }[kind]
    if kind == "svg":
        metadata |= {
            key: text
            for key, text in (("Title", title), ("Description", description), ("Identifier", identifier))
            if text
        }
    with styled(), writing(path) as (part,):
        figure.savefig(part, dpi=150, format=kind, metadata=metadata)


def suffix(path: Path) -> str:
    """Return the format of a figure's file: "png", "svg" or "pdf".

    Raises DiffusionalError for a file that has another suffix.

    >>> suffix(Path("costs.SVG"))
    'svg'
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise DiffusionalError(
            f"expected a figure's file to end in .png, .svg or .pdf, got {path.name}: rename it"
        ) from None


def log_axes(axes: Axes, which: str) -> None:
    """Make the axes named by `which`, "x", "y" or "xy", logarithmic, with plain numbers at the powers of ten.

    >>> axes = figure(4.0, 3.0).subplots()
    >>> log_axes(axes, "y")
    >>> axes.get_xscale(), axes.get_yscale(), axes.yaxis.get_major_formatter()(0.01)
    ('linear', 'log', '0.01')
    """
    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def end_labels(
    axes: Axes, ends: Sequence[tuple[float, str, str]], x: float | None = None, gap: float = 0.075, size: float = 8.5
) -> None:
    """Write labels (y, text, colour) at the right end of curves, moved apart vertically where they would overlap.

    The limits and scales of the axes must be set before.

    Args:
        axes: the axes.
        ends: for each curve, the y of its right end in data units, its label and its colour.
        x: where the labels begin, as a fraction of the width of the axes; by default just right of it.
        gap: smallest distance of two labels, as a fraction of the height of the axes.
        size: size of the font, points.

    >>> axes = figure(4.0, 3.0).subplots()
    >>> end_labels(axes, [(0.5, "a", BLUE), (0.51, "b", VERMILION)], gap=0.1)
    >>> [round(text.get_position()[1], 3) for text in axes.texts]
    [0.455, 0.555]
    """
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    left = axes.get_xlim()[1]
    places = sorted((float(to_axes((left, y))[1]), text, colour) for y, text, colour in ends)
    # Labels that are too near form groups, each of which is centred on its curves.
    groups: list[list[int]] = [[index] for index in range(len(places))]

    def low(group: list[int]) -> float:
        return sum(places[index][0] for index in group) / len(group) - gap * (len(group) - 1) / 2

    merged = True
    while merged:
        merged = False
        for first, second in itertools.pairwise(groups):
            if low(second) - (low(first) + gap * (len(first) - 1)) < gap - 1e-9:
                first += second
                groups.remove(second)
                merged = True
                break
    for group in groups:
        for step, index in enumerate(group):
            _, text, colour = places[index]
            y = low(group) + gap * step
            axes.text(
                1.015 if x is None else x, y, text, color=colour, va="center", size=size, transform=axes.transAxes
            )
