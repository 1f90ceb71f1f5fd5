"""Real values that are levels in disguise: bytes divided by 255, mapped to [-1, 1], or standardised by channel."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_RANGES = ((0.0, 1.0), (-0.5, 0.5), (-1.0, 1.0))
_STEPS = np.array(sorted({2**bits - 1 for bits in range(1, 17)} | {2**bits for bits in range(1, 17)}))
_SLACK = 1e-3  # more than float16 rounds by
_SOME = 32  # values on which all steps are tried
_CHANCE = 1e-12  # probability that values on no grid are taken for values on one
_MOST_CHANCE = 0.6  # the same for a single value: the error is small against the step
_REPEATS = 8  # values per distinct value from which whole numbers are taken for levels
_WHOLE = 2**16  # the most levels that whole numbers are taken for


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


def find_grid(values: np.ndarray, whole: bool = True) -> Grid | None:
    """Return the grid on which all values lie, within the rounding of the type that they were stored in, or None.

    Grids of 2 to 65,537 levels over [0, 1], [-0.5, 0.5] and [-1, 1] are tried, the coarsest first, with steps of
    1/(2^b − 1) and 1/2^b of the range; and, if `whole`, whole numbers from 0 to 65,535 that repeat. Values that were
    rounded to float16 before they were stored in a wider type are judged by that rounding, all others by float32's.

    Args:
        values: finite values, of any shape.
        whole: whether to look for whole numbers.

    >>> find_grid(np.arange(256, dtype=np.uint8) / np.float32(255))
    Grid(low=0.0, step=0.00392156862745098, levels=256)
    >>> find_grid(np.random.default_rng(0).random(1000)) is None
    True
    """
    if values.size < 2:
        return None
    least, most = float(values.min()), float(values.max())
    if (values == np.floor(values)).all():
        levels = int(most) + 1
        if not whole or least < 0 or most >= _WHOLE or values.size < _REPEATS * len(np.unique(values)):
            return None
        return Grid(0.0, 1.0, levels) if levels > 1 else None
    ranges = [(low, high) for low, high in _RANGES if least > low - _SLACK and most < high + _SLACK]
    if not ranges:
        return None
    distinct = np.unique(values)
    eps = _precision(distinct)
    x = distinct.astype(np.float64)
    some = x[np.linspace(0, len(x) - 1, min(len(x), _SOME)).astype(int)]
    for low, high in ranges:
        error = eps * max(1.0, abs(low), abs(high))  # of a division and a shift, each rounded
        if least < low - error or most > high + error or most - least <= 2 * error:
            continue  # values this close to one another lie on every grid
        # All steps at once on some of the values, then those that are left on all.
        steps = (high - low) / _STEPS
        for n in _STEPS[_fits(some, low, steps[:, None], error).all(1)].tolist():
            step = (high - low) / n
            chance = min(1.0, 2 * error / step)
            unlikely = chance <= _MOST_CHANCE and len(x) * math.log(chance) <= math.log(_CHANCE)
            if unlikely and _fits(x, low, step, error).all():
                return _grid(low, step, n, np.rint((x - low) / step).astype(np.int64))
    return None


def _fits(x: np.ndarray, low: float, step: Any, error: float) -> np.ndarray:
    """Return whether values are within `error` of low + step · k for whole k."""
    return np.abs(low + step * np.rint((x - low) / step) - x) <= error


def _grid(low: float, step: float, n: int, k: np.ndarray) -> Grid:
    """Return the coarsest grid with places k of 0 … n; the centres of bins, for example, are the odd places of a grid twice as fine."""
    apart = int(np.gcd.reduce(np.diff(k)))
    first = int(k[0]) % apart
    levels = (n - first) // apart + 1
    # With 1/256 as the step, bytes reach 255/256.
    if n & (n - 1) == 0 and first == 0 and levels > 2 and k[-1] < n:
        levels -= 1
    return Grid(low + first * step, apart * step, levels)


def _precision(values: np.ndarray) -> float:
    """Return the machine epsilon of float16 if it can represent all values, else of float32."""
    with np.errstate(over="ignore"):
        narrow = np.array_equal(values.astype(np.float16).astype(values.dtype), values)
    return float(np.finfo(np.float16 if narrow else np.float32).eps)
