"""Detection of discrete levels stored as real values, such as bytes divided by 255, mapped to [-1, 1], or standardised by channel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RANGES = ((0.0, 1.0), (-0.5, 0.5), (-1.0, 1.0))
_STEPS = np.array(sorted({2**bits - 1 for bits in range(1, 17)} | {2**bits for bits in range(1, 17)}))
_SLACK = 1e-3  # more than the rounding error of float16
_SOME = 32  # values on which all steps are tried
_CHANCE = 1e-12  # probability that values on no grid are mistaken for values on one
_MOST_CHANCE = 0.6  # the same for a single value, if its error is small compared to the step
_REPEATS = 8  # whole numbers with at least this many values per distinct value are considered levels
_WHOLE = 2**16  # the largest number of levels that whole numbers are considered to be
_ROWS, _VALUES, _COLUMNS = 1000, 2**18, 256  # the most items, values, and single positions that are examined
_FEWEST = 20  # the fewest items that are examined
_TWICE, _BYTES = (
    2,
    256,
)  # the same for the whole numbers at one position; below 256 one repeat is enough


@dataclass(frozen=True)
class Grid:
    """Values low + step · k for whole numbers k = 0 … levels − 1.

    >>> str(Grid(0.0, 1 / 255, 256)), Grid(-1.0, 2 / 255, 256).index()
    ('multiples of 1/255', 'np.rint((x + 1) * 127.5)')
    """

    low: float
    step: float
    levels: int

    def __str__(self) -> str:
        step = f"{self.step:g}" if self.step >= 1 else f"1/{1 / self.step:.10g}"
        if self.step == 1 and self.low == 0:
            return "whole numbers"
        return f"multiples of {step}" if self.low == 0 else f"multiples of {step}, counted from {self.low:.10g}"

    def index(self) -> str:
        """Return the Python expression that converts values x to levels."""
        x = "x" if self.low == 0 else f"(x {'-' if self.low > 0 else '+'} {abs(self.low):.10g})"
        return f"np.rint({x})" if self.step == 1 else f"np.rint({x} * {1 / self.step:.10g})"


def sample(items: int, dimensions: int) -> tuple[slice, slice]:
    """Return which items, and which of their positions, `scaled_levels` examines, evenly spaced.

    >>> sample(50_000, 3072), sample(100, 2)
    ((slice(None, None, 588), slice(None, None, 1)), (slice(None, None, 1), slice(None, None, 1)))
    """
    rows = max(_FEWEST, min(_ROWS, _VALUES // dimensions))
    return slice(None, None, max(1, items // rows)), slice(None, None, -(-dimensions // (_VALUES // _FEWEST)))


def scaled_levels(
    values: np.ndarray, shape: Sequence[int], error: "np.ndarray | float" = 0.0, positions: slice = slice(None)
) -> str | None:
    """Return a sentence about real values that are levels, with advice, or None.

    The values are levels if those of all positions lie on one grid, or those of an image's channel, or those of a single position.

    Args:
        values: (n, d) finite values of n items at d of their positions, in the units in which they were stored.
        shape: shape of an item.
        error: the largest rounding error of a value: one number, or one for each of the positions (d,).
        positions: which positions of a flat item the values are of.

    >>> scaled_levels(np.arange(200.0).reshape(100, 2) % 7, (2,))[:42]
    'the values at all positions are whole numb'
    >>> scaled_levels(np.random.default_rng(0).normal(size=(100, 2)), (2,)) is None
    True
    """
    n, d = values.shape
    if n < _FEWEST:
        return None
    errors = np.broadcast_to(np.asarray(error, dtype=np.float64), (d,))
    grid = find_grid(values, error=float(errors.max()))
    if grid is not None:
        return _sentence("the values at all positions are", grid)
    place = np.arange(math.prod(shape))[positions]
    if len(shape) == 3:
        channel = place // math.prod(shape[1:])
        for c in range(shape[0]):
            grid = find_grid(values[:, channel == c], error=float(errors[channel == c].max(initial=0.0)))
            if grid is not None:
                return _sentence(f"the values of channel {c} are", grid)
        return None
    # Levels repeat at a position; sorting shows where they do.
    in_order = np.sort(values, axis=0)
    repeats = ((in_order[1:] == in_order[:-1]).any(0) & (in_order[0] != in_order[-1])).nonzero()[0]
    for j in repeats[:: max(1, -(-len(repeats) // _COLUMNS))].tolist():
        repeated = 1 if in_order[-1, j] < _BYTES else _TWICE
        grid = find_grid(values[:, j], error=float(errors[j]), repeats=repeated)
        if grid is not None:
            where = ", ".join(map(str, np.unravel_index(place[j], tuple(shape))))
            return _sentence(f"the values at position {where} are", grid)
    return None


def _sentence(values: str, grid: Grid) -> str:
    return (
        f"{values} {grid}: these are data of {grid.levels} levels, stored as real numbers. A density of discrete values has no upper "
        "bound, so that the NELBO of a Continuous space is meaningless. Convert the values to levels, "
        f"{grid.index()}, and use Discrete(shape, levels={grid.levels})"
    )


def find_grid(values: np.ndarray, whole: bool = True, error: float = 0.0, repeats: int = _REPEATS) -> Grid | None:
    """Return the grid on which all values lie, within the rounding of the type that they were stored in, or None.

    Grids of 2 to 65,537 levels over [0, 1], [-0.5, 0.5] and [-1, 1] are tried, the coarsest first, with steps of
    1/(2^b − 1) and 1/2^b of the range; and, if `whole`, whole numbers from 0 to 65,535 that repeat. Values that were
    rounded to float16 before they were stored in a wider type are judged by that rounding, all others by float32's.

    Args:
        values: finite values, of any shape.
        whole: whether to look for whole numbers.
        error: the largest rounding error of a value, if it is larger than that of the type.
        repeats: the least number of values per distinct value for whole numbers to be considered levels.

    >>> find_grid(np.arange(256, dtype=np.uint8) / np.float32(255))
    Grid(low=0.0, step=0.00392156862745098, levels=256)
    >>> find_grid(np.random.default_rng(0).random(1000)) is None
    True
    """
    if values.size < 2:
        return None
    nearest = np.rint(values)
    if (np.abs(values - nearest) <= error).all() and _unlikely(nearest, 2 * error):
        least, levels = float(nearest.min()), int(nearest.max()) + 1
        if not whole or least < 0 or levels > _WHOLE or values.size < repeats * len(np.unique(nearest)):
            return None
        return Grid(0.0, 1.0, levels) if levels > 1 else None
    least, most = float(values.min()), float(values.max())
    ranges = [(low, high) for low, high in _RANGES if least > low - _SLACK and most < high + _SLACK]
    if not ranges:
        return None
    distinct = np.unique(values)
    eps = _precision(distinct)
    x = distinct.astype(np.float64)
    some = x[np.linspace(0, len(x) - 1, min(len(x), _SOME)).astype(int)]
    for low, high in ranges:
        slack = max(error, eps * max(1.0, abs(low), abs(high)))  # the rounding of a division and a shift
        if least < low - slack or most > high + slack or most - least <= 2 * slack:
            continue  # values this close to one another lie on every grid
        # All steps are tried on some of the values, then the remaining ones on all values.
        steps = (high - low) / _STEPS
        for n in _STEPS[_fits(some, low, steps[:, None], slack).all(1)].tolist():
            step = (high - low) / n
            if _fits(x, low, step, slack).all():
                place = np.rint((x - low) / step).astype(np.int64)
                # With an `error`, values at one place may differ by it.
                if _unlikely(place if error > 0 else x, 2 * slack / step):
                    return _grid(low, step, n, np.unique(place))
    return None


def _unlikely(places: np.ndarray, chance: float) -> bool:
    """Return whether values at so many distinct places are unlikely to be on the grid by chance, with probability `chance` each."""
    if chance == 0:
        return True
    return chance <= _MOST_CHANCE and len(np.unique(places)) * math.log(chance) <= math.log(_CHANCE)


def _fits(x: np.ndarray, low: float, step: Any, error: float) -> np.ndarray:
    """Return whether values are within `error` of low + step · k for whole k."""
    return np.abs(low + step * np.rint((x - low) / step) - x) <= error


def _grid(low: float, step: float, n: int, k: np.ndarray) -> Grid:
    """Return the coarsest grid with places k of 0 … n; the centres of bins, for example, are the odd places of a grid twice as fine."""
    apart = int(np.gcd.reduce(np.diff(k)))
    first = int(k[0]) % apart
    levels = (n - first) // apart + 1
    # With a step of 1/256, the largest byte is 255/256.
    if n & (n - 1) == 0 and first == 0 and levels > 2 and k[-1] < n:
        levels -= 1
    return Grid(low + first * step, apart * step, levels)


def _precision(values: np.ndarray) -> float:
    """Return the machine epsilon of float16 if it can represent all values, else of float32."""
    with np.errstate(over="ignore"):
        narrow = np.array_equal(values.astype(np.float16).astype(values.dtype), values)
    return float(np.finfo(np.float16 if narrow else np.float32).eps)
