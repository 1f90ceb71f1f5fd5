"""The costs of evaluations as bars: the terms of a ledger with its levels in bands, which several models have in common, and their differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.result import Evaluation, LevelCosts
from diffusional.report.charts import Bar, signed, ticks
from diffusional.report.texts import has_masks, mask_bars

STYLES = {"reconstruction": "s0", "kl": "s1", "prior": "s2"}
# The most bands of a block of levels.
_BANDS = 6
# The least width of a band at an end, of the whole; and the width of a cell, of a band, from which on bands do not divide it.
_LEAST, _COARSE = 0.02, 0.25


@dataclass(frozen=True, eq=False)
class Bands:
    """The bands of a block of levels: `edges` (B + 1,), ascending, along "log-SNR", "t" or "u"."""

    along: str
    edges: np.ndarray


def along(block: LevelCosts) -> str:
    """Return what the places of a block's levels are: "log-SNR", or "t" or "u" for latents without γ."""
    return "log-SNR" if block.gamma is not None else "u" if block.edges.dtype.is_floating_point else "t"


def places(block: LevelCosts) -> np.ndarray:
    """Return the places (C + 1,) of the edges of a block's cells."""
    return np.asarray(block.edges if block.gamma is None else 0.0 - block.gamma, dtype=float)


def common(blocks: Sequence[LevelCosts], most: int = _BANDS) -> Bands | None:
    """Return the bands of blocks of several models, at most `most`; None if their places are not of one kind.

    Boundaries are at round numbers, or at edges of cells where these are wide.

    >>> import torch
    >>> block = LevelCosts(torch.ones(2), torch.zeros(2), torch.arange(1, 4), torch.tensor([-4.5, 0.0, 5.0]))
    >>> common([block], 3).edges.tolist()
    [-5.0, 0.0, 4.5]
    """
    kinds = {along(one) for one in blocks}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    ends = np.concatenate([places(one) for one in blocks])
    low, high = float(ends.min()), float(ends.max())
    room = _LEAST * (high - low)
    round_ = ticks(low, high, max(1, most - 1))
    coarsest = np.sort(places(min(blocks, key=lambda one: len(one.kl))))
    inner = {_edge(tick, coarsest, (high - low) / len(round_), kind == "t") for tick in round_}
    # No boundary is so near to an end that a band is a sliver.
    return Bands(kind, np.array([low, *sorted(edge for edge in inner if low + room < edge < high - room), high]))


def _edge(tick: float, edges: np.ndarray, width: float, whole: bool) -> float:
    """Return the boundary at a round number, or at the nearest edge of a cell where cells are wide, so that bands do not divide them.

    >>> _edge(5.0, np.array([-8.0, 0.0, 4.0, 8.0]), 4.0, False), _edge(5.0, np.linspace(-8, 8, 100), 4.0, False)
    (4.0, 5.0)
    """
    at = int(np.clip(np.searchsorted(edges, tick), 1, len(edges) - 1))
    if whole or edges[at] - edges[at - 1] > _COARSE * width:
        return float(edges[np.abs(edges - tick).argmin()])
    return tick


def bands(name: str, block: LevelCosts, factor: float, given: Bands | None = None) -> list[Bar]:
    """Return the costs of levels in bands, from the least noisy on; they add up to the cost of the block.

    A cell of levels that lies in several bands is divided among them by its length.

    Args:
        name: of the block, with which labels begin.
        block: its costs in nats.
        factor: by which they are multiplied.
        given: the bands. Defaults to those of the block: of equal width in log-SNR, or in t or u for latents without γ.

    >>> import torch
    >>> block = LevelCosts(torch.ones(4), torch.zeros(4), torch.arange(1, 6), torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]))
    >>> [(bar.name, bar.value) for bar in bands("kl", block, 1.0, Bands("log-SNR", np.array([-4.0, 1.0, 4.0])))]
    [('kl, log-SNR 4 to 1', 1.5), ('kl, log-SNR 1 to −4', 2.5)]
    """
    found = given if given is not None and given.along == along(block) else common([block])
    assert found is not None
    edges, ends = found.edges, places(block)
    share = _shares(np.minimum(ends[:-1], ends[1:]), np.maximum(ends[:-1], ends[1:]), edges)
    kl, error = np.asarray(block.kl, dtype=float), np.nan_to_num(np.asarray(block.error, dtype=float))
    value, off = kl @ share, np.sqrt(np.square(error[:, None] * share).sum(0))
    several = len(edges) > 2
    bars = []
    for band in reversed(range(len(edges) - 1)) if found.along == "log-SNR" else range(len(edges) - 1):
        start, end = float(edges[band]), float(edges[band + 1])
        if found.along == "log-SNR":
            start, end = end, start
        label = f"{name}, {found.along} {_place(start)} to {_place(end)}" if several else name
        bars.append(Bar(label, float(value[band]) * factor, float(off[band]) * factor, style=STYLES["kl"]))
    return bars


def _shares(low: np.ndarray, high: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how much of every cell from low to high (C,) is in every band (C, B); each row adds up to 1.

    >>> _shares(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]), np.array([0.0, 2.0, 3.0])).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    common = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    width = (high - low)[:, None]
    # A cell of no length is in the band of its place.
    of = np.clip(np.searchsorted(edges, low, side="right") - 1, 0, len(edges) - 2)
    place = np.equal.outer(of, np.arange(len(edges) - 1)).astype(float)
    return np.where(width > 0, common.clip(min=0) / np.where(width > 0, width, 1.0), place)


def _place(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return signed("0" if text == "-0" else text)


def of_blocks(results: Sequence[Evaluation]) -> dict[str, Bands]:
    """Return the bands of every block of levels, common to all results that have a block of this name."""
    blocks: dict[str, list[LevelCosts]] = {}
    for result in results:
        for name, block in result.level_blocks().items():
            if len(block.kl) and not has_masks(result):
                blocks.setdefault(name, []).append(block)
    found = {name: common(some) for name, some in blocks.items()}
    return {name: one for name, one in found.items() if one is not None}


def bars(result: Evaluation, factor: float, given: Mapping[str, Bands] | None = None) -> list[Bar]:
    """Return the terms of an evaluation, with blocks of levels in bands. They add up to its total.

    Args:
        result: an evaluation.
        factor: by which nats are multiplied.
        given: the bands of the blocks, by name; by default those of each block.
    """
    if has_masks(result):
        # The reconstruction is the cost of one masked position.
        return mask_bars(result, factor)
    blocks = {key: block for key, block in result.level_blocks().items() if len(block.kl)}
    found: list[Bar] = []
    for term, cost in result.terms.items():
        if term in blocks:
            found += bands(term, blocks[term], factor, (given or {}).get(term))
            continue
        style = STYLES.get(term.rpartition(".")[2], "s3")
        found.append(Bar(term, cost.value * factor, cost.error * factor, style=style))
    return found or [Bar(result.total_name, result.nelbo.value * factor, result.nelbo.error * factor)]


def aligned(every: Sequence[Sequence[Bar]]) -> list[list[Bar]]:
    """Return several models' bars with the same names in the same order; a cost that a model does not have is 0.

    A band of levels stands where the model with the most bars has it. The bars of a model that has the costs only as a whole ("kl" of a
    model without levels, which is 0) are left out.

    >>> one, other = [Bar("kl, t 1 to 3", 2.0, 0.1), Bar("prior", 1.0, 0.0)], [Bar("kl", 0.0, 0.0), Bar("prior", 3.0, 0.0)]
    >>> [[(bar.name, bar.value) for bar in bars] for bars in aligned([one, other])]
    [[('kl, t 1 to 3', 2.0), ('prior', 1.0)], [('kl, t 1 to 3', 0.0), ('prior', 3.0)]]
    """
    names: dict[str, Bar] = {}
    for some in sorted(every, key=len, reverse=True):
        names |= {bar.name: bar for bar in some if bar.name not in names}
    within = {name.partition(", ")[0] for name in names if ", " in name}
    kept = [
        bar
        for name, bar in names.items()
        if name not in within or any(one.name == name and one.value for some in every for one in some)
    ]
    found = []
    for some in every:
        own = {bar.name: bar for bar in some}
        found.append([own.get(bar.name, replace(bar, value=0.0, error=0.0)) for bar in kept])
    return found


def differences(a: Evaluation, b: Evaluation, factor: float, paired: Comparison | None = None) -> list[list[Bar]]:
    """Return the bars of A, of B and of their difference, with the same names in the same order, [] if they have no common form.

    The errors of the differences are paired where the comparison has paired ones, and those of separate draws, √(σ_A² + σ_B²), otherwise.

    Args:
        a, b: evaluations; those of the comparison, if there is one.
        factor: by which nats are multiplied.
        paired: the comparison.
    """
    if has_masks(a) != has_masks(b):
        return []
    given = of_blocks([a, b])
    ours, theirs = aligned([bars(a, factor, given), bars(b, factor, given)])
    errors: dict[str, float] = {}
    if paired is not None and not has_masks(a):
        blocks = paired.level_blocks()
        for term, one in paired.terms.items():
            if term in blocks:
                errors |= {bar.name: bar.error for bar in bands(term, blocks[term], factor, given.get(term))}
            else:
                errors[term] = one.error * factor
    both = [
        Bar(x.name, x.value - y.value, errors.get(x.name, math.hypot(x.error, y.error)), style=x.style)
        for x, y in zip(ours, theirs, strict=True)
    ]
    return [ours, theirs, both]
