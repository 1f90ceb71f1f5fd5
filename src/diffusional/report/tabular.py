"""Columns of tables in a report: the marginal distributions of samples beside those of data, and PIT values of the data.

The probability integral transform (PIT) of a value x_d is the share of the model's samples below it, ties counted half. If the model's
marginal distribution is that of the data, PIT values are uniform; a hill in the middle means that samples are spread too widely, a valley that
they are too narrow, and a slope that they are shifted.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusional.report.charts import Axes, Series, curves

# Columns that are shown, bins of histograms.
_COLUMNS, _BINS, _PIT_BINS = 12, 24, 10


def pit(data: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the PIT values (N,) of data (N,) among samples (n,), in [0, 1]: the share of samples below each, ties counted half.

    >>> pit(np.array([0.0, 2.5, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])).tolist()
    [0.0, 0.5, 0.375]
    """
    ordered = np.sort(drawn)
    below, upto = (np.searchsorted(ordered, data, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(ordered))


def pit_shares(values: np.ndarray, drawn: int, bins: int = _PIT_BINS) -> tuple[np.ndarray, float]:
    """Return the share (bins,) of PIT values in equal bins, with ties at an edge divided evenly, and the standard error of a bin of a uniform
    distribution, from N data and `drawn` samples.

    >>> shares, error = pit_shares(np.array([0.05, 0.5, 0.95, 0.55]), 1000, 2)
    >>> shares.tolist(), round(error, 3)
    ([0.375, 0.625], 0.25)
    """
    counts = np.zeros(bins)
    place = values * bins
    edge = (place == np.floor(place)) & (place > 0) & (place < bins)
    inside = np.minimum(place[~edge].astype(int), bins - 1)
    np.add.at(counts, inside, 1.0)
    at = place[edge].astype(int)
    np.add.at(counts, at, 0.5)
    np.add.at(counts, at - 1, 0.5)
    share = 1 / bins
    return counts / max(1, len(values)), math.sqrt(share * (1 - share) * (1 / max(1, len(values)) + 1 / drawn))


def marginals(columns: Sequence[str], drawn: np.ndarray, data: np.ndarray) -> list[dict[str, Any]]:
    """Return two charts for each of the first columns: the marginals of samples (n, D) and data (N, D), and the PIT values of the data.

    >>> found = marginals(["x"], np.arange(50.0)[:, None], np.arange(40.0)[:, None])
    >>> found[0]["name"], [chart.title for chart in found[0]["charts"]]
    ('x', ['Marginal of x', 'PIT values of x'])
    """
    return [
        {
            "name": str(name),
            "charts": [_marginal(str(name), drawn[:, d], data[:, d]), _pit(str(name), drawn[:, d], data[:, d])],
        }
        for d, name in list(enumerate(columns))[:_COLUMNS]
    ]


def _marginal(name: str, drawn: np.ndarray, data: np.ndarray) -> Any:
    whole = np.concatenate([drawn, data])
    low, high = (float(np.quantile(whole, q)) for q in (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    parts = []
    for label, values in (("data", data), ("samples", drawn)):
        share = np.histogram(values, edges)[0] / max(1, len(values))
        error = np.sqrt(share * (1 - share) / max(1, len(values)))
        parts.append(Series(label, edges, share, error, steps=True))
    return curves(
        f"Marginal of {name}",
        parts,
        Axes(name, "share of items", low=0.0),
        f"Histograms of {name} in the data and in samples of the model, as shares; bands are two standard errors.",
        height=200,
    )


def _pit(name: str, drawn: np.ndarray, data: np.ndarray) -> Any:
    share, error = pit_shares(pit(data, drawn), len(drawn))
    edges = np.linspace(0, 1, len(share) + 1)
    uniform = 1 / len(share)
    return curves(
        f"PIT values of {name}",
        [Series("data", edges, share, steps=True)],
        Axes(
            "share of samples below the value",
            "share of items",
            low=0.0,
            high=max(float(share.max()), uniform + 2 * error),
            marks=[(uniform, ""), (uniform - 2 * error, ""), (uniform + 2 * error, "uniform ± 2 standard errors")],
        ),
        f"Shares of the data by the share of samples with a smaller {name}. They are uniform if the marginal of the model is that of the data.",
        height=200,
    )
