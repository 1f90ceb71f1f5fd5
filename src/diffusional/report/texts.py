"""Texts in a report: the bound in the units of a text, and the costs of a masked diffusion by the number of masked positions.

If the levels are numbers of masked positions, level t is the step from t + 1 masks to t, and the reconstruction that from one mask to none. The
NELBO is then the sum over n = 1 … L of the mean cost of a token among n masked positions (MATH (34)).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusional.evaluation.result import Evaluation
from diffusional.ledger import with_error
from diffusional.report import plots
from diffusional.report.charts import Axes, Bar, Chart, Series, brief, curves, signed, ticks
from diffusional.report.prompts import is_prompted

_BANDS, _STEPS = 6, 60


def has_masks(result: Evaluation) -> bool:
    """Return whether the levels of a result are numbers of masked positions.

    >>> import torch
    >>> has_masks(Evaluation.from_scores(torch.ones(2), dimensions=2))
    False
    """
    return result.provenance.get("levels_are") == "masked positions" and len(result.levels_kl) > 0


def costs_by_masks(result: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return costs and Monte Carlo errors (C + 1,) in nats, and edges (C + 2,): cost c is that of the numbers n of masked positions with
    edges[c] < n ≤ edges[c + 1]. The first is the reconstruction, n = 1.
    """
    first = result.terms["reconstruction"]
    kl, error, edges = (
        np.asarray(values, dtype=float) for values in (result.levels_kl, result.levels_error, result.level_edges)
    )
    return np.append(first.value, kl), np.append(first.error, error), np.append(0.0, edges)


def mask_bars(result: Evaluation, factor: float, most: int = _BANDS) -> list[Bar]:
    """Return the costs in at most `most` + 1 bands of numbers of masked positions, fewest first; they add up to the NELBO."""
    cost, error, edges = costs_by_masks(result)
    inner = [tick for tick in ticks(0.0, float(edges[-1]), most) if 1 < tick < edges[-1]]
    # A cell belongs to the band of its largest number of masks.
    owner = np.searchsorted(np.array(inner), edges[1:])
    found = []
    for band in np.unique(owner):
        own = np.flatnonzero(owner == band)
        low, high = edges[own[0]] + 1, edges[own[-1] + 1]
        label = f"{low:,.0f} to {high:,.0f} masked" if high > low else f"{high:,.0f} masked"
        off = float(np.sqrt(np.nansum(error[own] ** 2)))
        found.append(Bar(label, float(cost[own].sum()) * factor, off * factor, style="s1"))
    return found


def masks_chart(named: Mapping[str, Evaluation]) -> Chart:
    """Return the chart of the mean cost of a token in bits against the number of masked positions, with bands of two errors."""
    series = []
    for name, result in named.items():
        cost, error, edges = costs_by_masks(result)
        groups = plots.grouped(cost, error, edges, _STEPS)
        scale = 1 / math.log(2)
        series.append(Series(name, groups.edges, groups.density * scale, groups.density_error * scale, steps=True))
    return curves(
        "Cost of a token by the number of masked positions",
        series,
        Axes("masked positions (few on the left)", "bits per token", named=len(named) > 1),
        "Mean cost in bits of a token that is masked, against the number of masked positions of its block. A step from a to b is for more than a "
        "and at most b masked positions. The mean height of a curve is the bound in bits/dim; bands are two Monte Carlo standard errors on "
        "either side.",
    )


def units_of_text(name: str, result: Evaluation) -> dict[str, Any] | None:
    """Return the table of a text's units, from the entry "text" of the record; None for other data.

    >>> import torch
    >>> one = Evaluation.from_scores(torch.ones(2), dimensions=2)
    >>> units_of_text("a", one) is None
    True
    """
    text = result.about.get("text")
    if not isinstance(text, Mapping):
        return None
    rows: list[Sequence[str]] = []
    for unit in ("token", "character", "byte"):
        rows.append((f"bits per {unit}", *_cells(*text[f"bits_per_{unit}"]), f"{text[f'{unit}s']:,} {unit}s"))
    perplexity, (_, error) = text["perplexity"], text["bits_per_token"]
    # d(2^b) = 2^b ln 2 db.
    off = perplexity * math.log(2) * error
    rows.append(("perplexity per token", *_cells(perplexity, off), ""))
    if is_prompted(result):
        given = result.about["prompts"]["tokens"]
        note = f"Only the continuations are scored: their tokens, characters and bytes are counted. The {given:,} tokens of the prompts are given, and cost nothing."
        return {"name": name, "columns": ["unit", "value", "± MC", "of"], "rows": rows, "note": note}
    padding = result.nelbo.n * result.dimensions - text["tokens"]
    note = f" {padding:,} positions of padding count as cost, and not as tokens." if padding > 0 else ""
    return {
        "name": name,
        "columns": ["unit", "value", "± MC", "of"],
        "rows": rows,
        "note": f"A dimension is a position of a block of {result.dimensions:,} tokens.{note}",
    }


def _cells(value: float, error: float) -> tuple[str, str]:
    text, off = with_error(value, error)
    return signed(text), brief(off)
