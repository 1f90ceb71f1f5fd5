"""What the tables share: the records of benchmarks/results, Markdown, and the format of numbers."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def record(name: str) -> dict[str, Any]:
    """Read a JSON file of benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


# Data sets of the records of conditional models: key, name.
_SETS = (("digits", "digits, 8 × 8"), ("mnist", "MNIST, 14 × 14"))


def sets_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the parts of the record of the data sets that were measured."""
    found = record(name)["sets"]
    return [(title, found[key]) for key, title in _SETS if key in found]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(markdown(["a", "b"], [["1", ""]]), end="")
    | a | b |
    |---|---|
    | 1 |  |
    """
    lines = [header, *rows]
    text = [f"| {' | '.join(cells)} |\n" for cells in lines]
    return text[0] + "|" + "---|" * len(header) + "\n" + "".join(text[1:])


def numbers(values: Iterable[float], decimals: int) -> str:
    """Return numbers with commas between them, and with the typographic minus.

    >>> numbers([-1.3, 0.2], 1)
    '−1.3, 0.2'
    """
    return ", ".join(f"{value:.{decimals}f}".replace("-", "−") for value in values)


def two_digits(value: float) -> str:
    """Return a number with two significant digits and no exponent.

    >>> two_digits(0.598), two_digits(1.62), two_digits(16.45)
    ('0.60', '1.6', '16')
    """
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def with_error(value: float, error: float) -> str:
    """Return a number with its error, which has two significant digits.

    >>> with_error(9.3479, 0.1597)
    '9.35 ± 0.16'
    """
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def over_seeds(estimates: Iterable[dict[str, float]]) -> tuple[float, float]:
    """Return the mean of estimates of several seeds, {"value", "error"}, and its standard error: by their spread or, where that is larger, by their
    Monte Carlo errors.

    >>> [round(number, 4) for number in over_seeds([{"value": 1.0, "error": 0.3}, {"value": 1.1, "error": 0.4}])]
    [1.05, 0.25]
    """
    found = list(estimates)
    values, n = [one["value"] for one in found], len(found)
    drawn = math.hypot(*(one["error"] for one in found)) / n
    return statistics.mean(values), max(statistics.stdev(values) / math.sqrt(n), drawn)


def evaluations(number: float) -> str:
    """Return a number of evaluations per item: one decimal below 50, two significant digits below 1.

    >>> evaluations(1072.46), evaluations(17.76), evaluations(0.01738)
    ('1,072', '17.8', '0.017')
    """
    return f"{number:,.0f}" if number >= 50 else f"{number:.1f}" if number >= 1 else two_digits(number)
