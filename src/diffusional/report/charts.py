"""Charts of the HTML report as inline SVG: a few functions that return texts and marks in one coordinate system, 400 units wide.

Colours and fonts are those of the page: marks have classes only (`s0` … `s5` for series, `ink`, `grid`, `band`), so that one style sheet
serves light and dark pages and prints. Every chart has a title, a description and its numbers as a table, which the page shows on request.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from diffusional.ledger import with_error

WIDTH = 400
Number = float | int
Scale = Callable[[Number], float]
# The number of classes of series in the style sheet.
SERIES = 6
# Widths of an average character of a label, in units; generous, as fonts differ.
_CHARACTER = 7.2
_ROW = 34
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 22, 40


@dataclass(frozen=True)
class Chart:
    """A chart: its SVG without the outer element, its size, what it shows in words, and its numbers.

    Attributes:
        title: a short name.
        description: what it shows and how to read it, for readers who cannot see it.
        body: SVG marks.
        height: in units.
        columns, rows: the numbers as a table of texts.
        legend: names of the series, in the order of the classes s0, s1, …; empty for a single one.
        width: in units.
        wide: the same chart for a wide screen, in units of about the same size; None for charts of one width.
    """

    title: str
    description: str
    body: str
    height: int
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[str] = ()
    width: int = WIDTH
    wide: "Chart | None" = None


@dataclass(frozen=True)
class Bar:
    """A row of `waterfall`: a cost with its error, and the part of it that is information (None if that is not known)."""

    name: str
    value: float
    error: float
    information: float | None = None
    style: str = "s0"


@dataclass(frozen=True)
class Dot:
    """A row of `dots`: an estimate with its Monte Carlo error and its error over items (NaN if it is not known)."""

    name: str
    value: float
    error: float
    item_error: float = math.nan
    style: str = "s0"


@dataclass(frozen=True)
class Series:
    """A curve of `curves`: points (N,), with errors or without; `steps` are bars between x (N + 1,) instead of a line through x (N,)."""

    name: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    steps: bool = False
    marked: bool = False


def number(value: float, error: float = 0.0) -> str:
    """Return a number with the decimals that its error allows, with a minus sign.

    >>> number(-1.23456, 0.0123), number(12.5)
    ('−1.235', '12.5000')
    """
    return signed(with_error(value, error)[0])


def signed(text: str) -> str:
    """Return a number's text with a minus sign instead of hyphens.

    >>> signed("-2.5e-08")
    '−2.5e−08'
    """
    return text.replace("-", "−")


def with_plus_minus(value: float, error: float) -> str:
    """Return "value ± error"; only the value if it has no error or an unknown one.

    >>> with_plus_minus(1.74213, 0.00312), with_plus_minus(4.0, 0.0)
    ('1.7421 ± 0.0031', '4.0000')
    """
    text, off = ("0", "0") if value == error == 0 else with_error(value, error)
    return signed(f"{text} ± {brief(off)}" if error > 0 and math.isfinite(error) else text)


def brief(error: str) -> str:
    """Return the text of a small error as a power of ten, and "" for one that is not known.

    >>> brief("0.0031"), brief("0.000000067"), brief("nan")
    ('0.0031', '6.7e−08', '')
    """
    try:
        value = float(error)
    except ValueError:
        return error
    if math.isnan(value):
        return ""
    return signed(f"{value:.1e}") if 0 < value < 1e-4 else error


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in [low, high], at most `most` of them.

    >>> ticks(0.0, 1.0, 5), ticks(-9.2, 10.1, 5)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [-5.0, 0.0, 5.0, 10.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]
    raise AssertionError("twenty times the power of ten is more than the range")


def reach(every: Sequence[tuple[Sequence[Bar], Bar]]) -> tuple[float, float]:
    """Return the ends of the common scale of waterfalls, of the bars and the total of each.

    >>> reach([([Bar("a", 2.0, 0.0), Bar("b", -3.0, 0.0)], Bar("sum", -1.0, 0.0)), ([], Bar("sum", 5.0, 0.0))])
    (-1.0, 5.0)
    """
    ends = [0.0, *(total.value for _, total in every)]
    for bars, _ in every:
        ends += [float(end) for end in np.cumsum([bar.value for bar in bars])]
    return min(ends), max(ends)


def waterfall(
    title: str,
    bars: Sequence[Bar],
    total: Bar,
    unit: str,
    description: str = "",
    limits: tuple[float, float] | None = None,
) -> Chart:
    """Return costs as rows of bars, each of which begins where the last one ended, and their sum as the last row.

    `limits` are the ends of the scale, for several charts with the same one; by default those of the bars.

    The label of a row stands above its bar, so that long names fit on a phone. Of a bar whose information is known, that part is solid and
    the gap is pale.

    >>> chart = waterfall("a", [Bar("kl", 2.0, 0.1), Bar("prior", 1.0, 0.0)], Bar("NELBO", 3.0, 0.1), "nats")
    >>> chart.rows
    [['kl', '2.00', '0.10', '66.7 %'], ['prior', '1.0000', '0', '33.3 %'], ['NELBO', '3.00', '0.10', '100.0 %']]
    """
    starts = np.concatenate([[0.0], np.cumsum([bar.value for bar in bars])])
    low, high = limits or reach([(bars, total)])
    scale = _scale(low, high, 2, WIDTH - 2)
    known = any(bar.information is not None for bar in bars)
    marks = [
        f'<path class="grid" d="M{_n(scale(end))} {row * _ROW + 28}V{(row + 1) * _ROW + 19}"/>'
        for row, end in enumerate(starts[1:])
    ]
    for row, (bar, start) in enumerate(zip((*bars, total), (*starts[:-1], 0.0), strict=True)):
        y = row * _ROW
        marks += _heading(y, bar.name, with_plus_minus(bar.value, bar.error), strong=row == len(bars))
        marks.append(_rectangle(scale(start), scale(start + bar.value), y + 19, 9, f"bar {bar.style}"))
        if bar.information is not None:
            inside = scale(start + min(max(bar.information, 0.0), max(bar.value, 0.0)))
            marks.append(_rectangle(inside, scale(start + bar.value), y + 20, 7, "gap"))
        if bar.error > 0 and math.isfinite(bar.error):
            marks += _whisker(scale, start + bar.value, 2 * bar.error, y + 23.5, "ink")
    columns = ["cost", unit, "± Monte Carlo", "share"] + (["information", "gap"] if known else [])
    rows = []
    for bar in (*bars, total):
        share = f"{bar.value / total.value:.1%}".replace("%", " %") if total.value else ""
        part = [] if not known else ["", ""] if bar.information is None else _split(bar)
        value, error = with_error(bar.value, bar.error)
        rows.append([bar.name, signed(value), brief(error), signed(share), *part])
    text = description or (
        f"A waterfall: each bar begins where the one above it ends, and the last one is their sum, {number(total.value, total.error)} {unit}."
    )
    return Chart(title, text, "".join(marks), _ROW * (len(bars) + 1), columns, rows)


def _split(bar: Bar) -> list[str]:
    assert bar.information is not None
    return [number(bar.information, bar.error), number(bar.value - bar.information, bar.error)]


def dots(
    title: str, rows: Sequence[Dot], unit: str, zero: str = "", description: str = "", mark: float | None = None
) -> Chart:
    """Return estimates as rows of dots on a common axis: thick whiskers are ± 2 Monte Carlo errors, thin ones ± 2 errors over items.

    Args:
        title, description: of the chart.
        rows: the estimates, from the top.
        unit: of the axis.
        zero: what a value of zero means; a line marks it.
        mark: another value to mark with a line.

    >>> dots("a", [Dot("x", 1.0, 0.1, 0.2)], "nats").rows
    [['x', '1.00', '0.10', '0.20']]
    """
    spans = [_reach(dot) for dot in rows]
    values = [dot.value + side * span for dot, span in zip(rows, spans, strict=True) for side in (-1, 1)]
    values += ([0.0] if zero else []) + ([] if mark is None else [mark])
    low, high = min(values), max(values)
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    scale = _scale(low - room, high + room, 4, WIDTH - 4)
    bottom = _ROW * len(rows)
    marks = []
    # Lines are interrupted at the labels of the rows.
    for place in ticks(low - room, high + room, 5):
        marks.append(f'<path class="grid" d="{_between(scale(place), len(rows))}"/>')
        label = _tick(place)
        half = 0.5 * _CHARACTER * len(label)
        # A label at an end stays within the drawing.
        marks.append(_text(min(max(scale(place), half), WIDTH - half), bottom + 14, label, "middle", "tick"))
    for place in ([0.0] if zero else []) + ([] if mark is None else [mark]):
        marks.append(f'<path class="zero" d="{_between(scale(place), len(rows))}"/>')
    for row, dot in enumerate(rows):
        y = row * _ROW
        marks += _heading(y, dot.name, with_plus_minus(dot.value, dot.error))
        if math.isfinite(dot.item_error) and dot.item_error > 0:
            marks += _whisker(scale, dot.value, 2 * dot.item_error, y + 24, f"thin {dot.style}")
        if math.isfinite(dot.error) and dot.error > 0:
            marks += _whisker(scale, dot.value, 2 * dot.error, y + 24, f"thick {dot.style}")
        marks.append(f'<circle class="dot {dot.style}" cx="{_n(scale(dot.value))}" cy="{y + 24}" r="3.6"/>')
    marks.append(_text(WIDTH / 2, bottom + 30, unit + (f"; {zero}" if zero else ""), "middle", "label"))
    table = [
        [
            dot.name,
            number(dot.value, dot.error),
            *(brief(with_error(error, error)[0]) for error in (dot.error, dot.item_error)),
        ]
        for dot in rows
    ]
    return Chart(title, description, "".join(marks), bottom + 38, ["name", unit, "± Monte Carlo", "± items"], table)


def _between(x: Number, rows: int) -> str:
    """Return a vertical line through rows, without the labels above them."""
    return "".join(f"M{_n(x)} {row * _ROW + 18}V{(row + 1) * _ROW}" for row in range(rows))


def _reach(dot: Dot) -> float:
    """Return the larger half-width of a dot's whiskers."""
    return max((2 * e for e in (dot.error, dot.item_error) if math.isfinite(e)), default=0.0)


@dataclass(frozen=True)
class Axes:
    """Limits and labels of `curves`.

    Attributes:
        x, y: labels of the axes.
        reverse: the x axis falls to the right.
        named: name a single curve in a legend, as if there were several.
        low, high: limits of y; by default those of the data.
    """

    x: str
    y: str
    reverse: bool = False
    named: bool = False
    low: float | None = None
    high: float | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)


def curves(
    title: str, series: Sequence[Series], axes: Axes, description: str, height: int = 240, width: int = WIDTH
) -> Chart:
    """Return curves with bands of ± 2 standard errors on common axes. Values outside the limits of y are cut off.

    Args:
        title, description: of the chart.
        series: at most six curves.
        axes: limits and labels; its `marks` are horizontal lines (y, label).
        height, width: in units.

    >>> one = Series("a", np.array([0.0, 1.0]), np.array([1.0, 3.0]))
    >>> curves("t", [one], Axes("step", "nats"), "").rows
    [['a', '0', '1.0000', ''], ['a', '1', '3.0000', '']]
    """
    xs = np.concatenate([one.x for one in series])
    ys = np.concatenate([_extent(one) for one in series] + [np.array([y for y, _ in axes.marks], dtype=float)])
    ys = ys[np.isfinite(ys)]
    low = float(ys.min()) if axes.low is None else axes.low
    high = float(ys.max()) if axes.high is None else axes.high
    high = high if high > low else low + 1.0
    low, high = (low if axes.low is not None else low - 0.04 * (high - low)), high + 0.05 * (high - low)
    left, right = float(xs.min()), float(xs.max())
    right = right if right > left else left + 1.0
    ends = (width - _RIGHT, _LEFT) if axes.reverse else (_LEFT, width - _RIGHT)
    across, up = _scale(left, right, *ends), _scale(low, high, height - _BOTTOM, _TOP)
    marks = [f'<path class="grid" d="M{_LEFT} {_n(up(y))}H{width - _RIGHT}"/>' for y in ticks(low, high, 5)]
    for y in ticks(low, high, 5):
        marks.append(_text(_LEFT - 5, up(y) + 4, _tick(y), "end", "tick"))
    for x in ticks(left, right, 6 if width <= WIDTH else 12):
        marks.append(_text(across(x), height - _BOTTOM + 15, _tick(x), "middle", "tick"))
    clipped: Scale = lambda y: up(min(max(y, low), high))  # noqa: E731
    for number_, one in enumerate(series):
        marks += _curve(one, across, clipped, f"s{number_ % SERIES}", len(series) == 1)
    for y, label in axes.marks:
        if not low <= y <= high:
            continue
        marks.append(f'<path class="zero" d="M{_LEFT} {_n(up(y))}H{width - _RIGHT}"/>')
        marks.append(_text(width - _RIGHT - 2, up(y) - 4, label, "end", "tick"))
    marks.append(_text(2, 11, axes.y, "start", "label"))
    marks.append(f'<path class="axis" d="M{_LEFT} {height - _BOTTOM}H{width - _RIGHT}"/>')
    marks.append(_text((_LEFT + width - _RIGHT) / 2, height - 6, axes.x, "middle", "label"))
    names = [one.name for one in series] if len(series) > 1 or axes.named else []
    return Chart(
        title, description, "".join(marks), height, ["series", axes.x, axes.y, "±"], list(_points(series)), names, width
    )


def _extent(one: Series) -> np.ndarray:
    return one.y if one.error is None else np.concatenate([one.y - 2 * one.error, one.y + 2 * one.error])


def _points(series: Sequence[Series]) -> Iterable[list[str]]:
    """Yield the rows of a table of curves: at most 60 points of each."""
    for one in series:
        keep = np.unique(np.linspace(0, len(one.y) - 1, min(len(one.y), 60)).round().astype(int))
        for i in keep:
            x = f"{one.x[i]:.4g}" + (f" to {one.x[i + 1]:.4g}" if one.steps else "")
            value, error = with_error(float(one.y[i]), 0.0 if one.error is None else float(one.error[i]))
            yield [one.name, signed(x), signed(value), "" if one.error is None else brief(error)]


def _curve(one: Series, across: Scale, up: Scale, style: str, filled: bool) -> list[str]:
    """Return the marks of one curve: its band below its line, and points of few values."""
    marks = []
    if one.error is not None and bool((np.nan_to_num(one.error) > 0).any()):
        off = 2 * np.nan_to_num(one.error)
        upper = list(_corners(one.x, one.y + off, one.steps))
        lower = list(_corners(one.x, one.y - off, one.steps))
        marks.append(f'<path class="band {style}" d="{_path([*upper, *lower[::-1]], across, up)}Z"/>')
    corners = list(_corners(one.x, one.y, one.steps))
    if one.steps and filled:
        closed = [(one.x[0], 0.0), *corners, (one.x[-1], 0.0)]
        marks.append(f'<path class="area {style}" d="{_path(closed, across, up)}Z"/>')
    marks.append(f'<path class="line {style}" d="{_path(corners, across, up)}"/>')
    if one.marked:
        for x, y in zip(one.x, one.y, strict=True):
            marks.append(f'<circle class="dot {style}" cx="{_n(across(x))}" cy="{_n(up(y))}" r="2.6"/>')
    return marks


def _corners(x: np.ndarray, y: np.ndarray, steps: bool) -> Iterable[tuple[float, float]]:
    if not steps:
        yield from zip(x.tolist(), y.tolist(), strict=True)
        return
    for left, right, value in zip(x[:-1].tolist(), x[1:].tolist(), y.tolist(), strict=True):
        yield left, value
        yield right, value


def _path(points: Iterable[tuple[float, float]], across: Scale, up: Scale) -> str:
    return "M" + "L".join(f"{_n(across(x))} {_n(up(y))}" for x, y in points)


def histogram(
    title: str, series: Sequence[tuple[str, np.ndarray]], edges: np.ndarray, label: str, description: str
) -> Chart:
    """Return histograms of samples (N,) on common bins, as shares of each sample.

    >>> chart = histogram("h", [("a", np.array([0.5, 1.5, 1.6]))], np.array([0.0, 1.0, 2.0]), "nats", "")
    >>> [row[2] for row in chart.rows]
    ['0.3333', '0.6667']
    """
    parts = []
    for name, values in series:
        counts = np.histogram(values, edges)[0].astype(float)
        parts.append(Series(name, edges, counts / max(1.0, float(len(values))), steps=True))
    return curves(title, parts, Axes(label, "share of items", low=0.0), description, height=200)


def _scale(low: Number, high: Number, start: Number, end: Number) -> Scale:
    """Return the linear map from [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def _heading(y: Number, name: str, value: str, strong: bool = False) -> list[str]:
    """Return the label of a row and its number on the right, both above the bar. Long names are cut off in the middle."""
    room = int((WIDTH - _CHARACTER * len(value) - 12) / _CHARACTER)
    style = "label strong" if strong else "label"
    return [_text(2, y + 13, shortened(name, room), "start", style), _text(WIDTH - 2, y + 13, value, "end", style)]


def shortened(name: str, most: int) -> str:
    """Return a name in at most `most` characters, without its middle.

    >>> shortened("runs/a-very-long-name/b", 12)
    'runs/a…ame/b'
    """
    if len(name) <= most:
        return name
    head = most // 2
    return f"{name[:head]}…{name[len(name) - (most - head - 1) :]}"


def _rectangle(start: Number, end: Number, y: Number, height: Number, style: str) -> str:
    left, width = min(start, end), abs(end - start)
    return f'<rect class="{style}" x="{_n(left)}" y="{_n(y)}" width="{_n(max(width, 0.8))}" height="{_n(height)}"/>'


def _whisker(scale: Scale, value: Number, off: Number, y: Number, style: str) -> list[str]:
    low, high = (min(max(scale(value + side * off), 0.0), WIDTH) for side in (-1, 1))
    return [f'<path class="whisker {style}" d="M{_n(low)} {_n(y)}H{_n(high)}"/>']


def _text(x: Number, y: Number, text: str, anchor: str, style: str) -> str:
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _tick(value: Number) -> str:
    """Return the label of a tick.

    >>> _tick(-2.5), _tick(12000.0)
    ('−2.5', '12k')
    """
    if abs(value) >= 10_000:
        return signed(f"{value / 1000:g}k")
    return signed(f"{value:g}")


def _n(value: Number) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
