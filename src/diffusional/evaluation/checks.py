"""What the numbers of a record must satisfy, whether it was computed or read."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.ledger import Estimate

if TYPE_CHECKING:
    from diffusional.evaluation.result import Evaluation

# bound: an upper bound on −ln p(x), in expectation over the draws. exact: −ln p(x) itself. estimate: neither.
Kind = Literal["bound", "exact", "estimate"]
# Columns of `per_item` that are not terms.
COLUMNS = ("item", "nelbo", "error", "draws")


def check(result: "Evaluation") -> None:
    """Raise DiffusionalError unless the numbers are finite and the lengths match."""
    if result.kind not in get_args(Kind):
        raise DiffusionalError(f"kind must be one of {', '.join(get_args(Kind))}, got {result.kind!r}")
    if result.dimensions < 1:
        raise DiffusionalError(f"dimensions must be at least 1, got {result.dimensions}")
    check_estimate("nelbo", result.nelbo)
    for name, term in result.terms.items():
        if name in COLUMNS:
            raise DiffusionalError(f"a term must not be named {name!r}, which is a column of the scores: rename it")
        check_estimate(name, term)
    check_freedom(result.freedom)
    levels, blocks = len(result.levels_kl), result.blocks
    if len(result.levels_error) != levels or sum(blocks.values()) != levels:
        raise DiffusionalError(
            f"levels_kl, levels_error and blocks must be of the same levels, got {levels}, {len(result.levels_error)} and {dict(blocks)}"
        )
    edges = len(result.level_edges)
    if edges != levels + len(blocks) and (edges or levels):
        raise DiffusionalError(
            f"level_edges must have {levels + len(blocks)} entries (C + 1 for each block), got {edges}"
        )
    if result.gamma_edges is not None and len(result.gamma_edges) != edges:
        raise DiffusionalError(f"gamma_edges must be as long as level_edges, {edges}, got {len(result.gamma_edges)}")
    for name in ("levels_kl", "level_edges", "gamma_edges"):
        values = getattr(result, name)
        if values is not None and not bool(torch.isfinite(values).all()):
            raise DiffusionalError(f"{name} must be finite, got {values.tolist()!r:.80}")
    missing = [name for name in ("item", "nelbo") if result.per_item and name not in result.per_item]
    if missing:
        raise DiffusionalError(f"per_item must have the columns item and nelbo, got {', '.join(result.per_item)}")
    lengths = {name: tuple(column.shape) for name, column in result.per_item.items()}
    if any(shape != (result.visited,) for shape in lengths.values()) or not 0 < result.items_visited <= result.nelbo.n:
        raise DiffusionalError(
            f"per_item must have columns of one number for each of 1 to {result.nelbo.n} visited items ({result.visited}), got {lengths}"
        )


def check_estimate(name: str, estimate: Estimate) -> None:
    """Raise DiffusionalError for an estimate in another unit than nats, a value that is not finite, and errors below 0."""
    if estimate.unit != "nats":
        raise DiffusionalError(f"{name} must be in nats, got {estimate.unit}: use Estimate.to")
    if not math.isfinite(estimate.value) or estimate.error < 0 or estimate.item_error < 0:
        raise DiffusionalError(
            f"{name} must be finite with errors of at least 0, got {estimate.value} ± {estimate.error} (items ± {estimate.item_error})"
        )


def check_freedom(freedom: float) -> None:
    """Raise DiffusionalError for degrees of freedom below 0, or NaN."""
    if not freedom >= 0:
        raise DiffusionalError(f"freedom must be at least 0 (math.inf for an exact error), got {freedom}")


def check_scores(scores: Mapping[str, Tensor], n: int, where: str) -> None:
    """Raise DiffusionalError unless the scores of a record of n items are finite, and "item" has different numbers of items."""
    item = scores["item"]
    if item.is_floating_point() or bool(((item < 0) | (item >= n)).any()) or len(item.unique()) < len(item):
        raise DiffusionalError(f"{where}: item must have different integers from 0 to {n - 1}. Save the record again")
    for name, column in scores.items():
        if name not in ("error", "draws") and not bool(torch.isfinite(column.double()).all()):
            raise DiffusionalError(f"{where}: the scores {name!r} must be finite. Save the record again")
