"""The bound of continuations given their prompts, item by item: a `PromptedDiffusion`, whose items may differ in length.

An item with F free positions costs Σ_{n=1..F} (1/n) E_{|M| = n} Σ_{i ∈ M} −ln p_i. A replicate of its estimate visits V numbers of masks,

    n_j = ⌈F (j + U)/V⌉, j = 0 … V − 1,      Ŝ = (1/V) Σ_j (F/n_j) Σ_{i ∈ M_j} −ln p_i,      V ≤ F,

with one uniform U for all of them, so that they are spread over 1 … F: with V = F each number occurs once. Replicates are independent, and the
error of an item is the standard error of their mean. An item with no more masks than the visits that it may have, 2^F − 1 ≤ R V, is exact: few
replicates of few possible values may all be equal, which is not a reason for an error of 0. No number depends on the other items, as it would
with levels that items of different F share (`evaluate`): F and the cost vary from item to item far more than the cost of an item with the masks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.averages import few_draws
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.differentiable import stratified
from diffusional.evaluation.noise import item_keys
from diffusional.evaluation.replicates import check_error, check_limit, freedom, record, until
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.shares import shared
from diffusional.evaluation.sweep import mean_of_items
from diffusional.evaluation.task import Watch
from diffusional.evaluation.visits import network_rows
from diffusional.models.base import device_of, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.seeds import check_seed
from diffusional.shapes import Batch, PerItem

# The replicates of every item to begin with, and the visits of one of them unless a number of visits is given.
REPLICATES, _VISITS = 4, 8
_OF = "NELBO given the prompts"


class Prompted(Protocol):
    """What is asked of a model of sequences given prompts."""

    def free(self, condition: Condition | None) -> Tensor:
        """Return the number of free positions (N,) of every item."""
        ...

    def masks_cost(self, x: Batch, number: PerItem, noise: Batch, condition: Condition | None) -> PerItem:
        """Return an estimate (B,) of every item's bound, nats, from one mask of `number` free positions."""
        ...

    def all_masks_cost(self, x: Batch, condition: Condition | None, rows: int = ...) -> PerItem:
        """Return the bound (B,), nats, of items with the same number of free positions, from all their masks."""
        ...


def evaluations(free: Tensor, visits: int, replicates: int) -> Tensor:
    """Return the network evaluations (N,) of items with `free` (N,) free positions, and with that all their masks where these are few enough.

    >>> evaluations(torch.tensor([1, 2, 3, 4, 5, 6]), visits=4, replicates=4)
    tensor([ 1,  3,  7, 15, 16, 16])
    """
    return torch.where(
        enumerable(free, visits, replicates), 2 ** free.clamp(max=62) - 1, free.clamp(max=visits) * replicates
    )


def enumerable(free: Tensor, visits: int, replicates: int) -> Tensor:
    """Return which items (N,) have no more masks than visits, 2^F − 1 ≤ R V: they are exact."""
    return free < (visits * replicates + 1).bit_length()


def drawing(
    models: Sequence[Any], x: Tensor, condition: Condition, visits: int, replicates: int, seed: int
) -> Callable[[range], tuple[Tensor, int]]:
    """Return a function of a range of numbers that returns replicates (M, R, N) of the bounds of items x (N, L) under M models, nats, and the number
    of network evaluations. Items with few masks have the exact bound in every replicate; they are evaluated once, with the first.

    Args as of `replicated`; `replicates` is the number to begin with.
    """
    free = models[0].free(condition).cpu()
    few = enumerable(free, visits, replicates)
    exact, others = few.nonzero()[:, 0], (~few).nonzero()[:, 0]
    known = _enumerated(models, x, condition, free, exact)
    paid = int(evaluations(free[exact], visits, replicates).sum()) * len(models)

    def drawn(numbers: range) -> tuple[Tensor, int]:
        out = torch.zeros(len(models), len(numbers), len(x), dtype=torch.float64)
        out[:, :, exact] = known[:, None]
        out[:, :, others], calls = replicated(models, x, condition, visits, numbers, seed, others)
        return out, calls + paid * (numbers.start == 0)

    return drawn


@torch.inference_mode()
def _enumerated(models: Sequence[Any], x: Tensor, condition: Condition, free: Tensor, items: Tensor) -> Tensor:
    """Return the bounds (M, n) of `items` (n,), with `free` (N,) free positions, from all their masks."""

    def values(rows: Tensor) -> dict[str, Tensor]:
        out = torch.zeros(len(rows), len(models), dtype=torch.float64)
        for f in free[rows].unique().tolist():
            at = (free[rows] == f).nonzero()[:, 0]
            for part in at.split(network_rows(models[0])):
                for m, model in enumerate(models):
                    own, device = rows[part], device_of(model, x)
                    c = moved(rows_of(condition, own), device)
                    out[part, m] = model.all_masks_cost(x[own].to(device), c, network_rows(model)).cpu()
        return {"cost": out}

    return shared(items, {"cost": (len(models),)}, values)["cost"].T


def replicated(
    models: Sequence[Any],
    x: Tensor,
    condition: Condition,
    visits: int,
    numbers: range,
    seed: int = 0,
    items: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Return replicates (M, R, n) of the bounds of n of the items x (N, L) under M models, nats, from common draws, and the number of network
    evaluations of all models.

    Args:
        models: PromptedDiffusion, in evaluation mode.
        condition: the prompts.
        visits: the most visits of one replicate, V.
        numbers: of the replicates, R of them. Replicate r of an item is the same in every call, and independent of its other ones.
        seed: of the draws. Items that occur several times have independent draws.
        items: their numbers (n,); by default all.

    Raises DiffusionalError for a cost that is not finite, with the number of its item.
    """
    free = models[0].free(condition)
    each = free.clamp(max=visits)
    items = torch.arange(len(x)) if items is None else items
    calls = int(each.cpu()[items].sum()) * len(numbers) * len(models)
    keys = item_keys(x, seed, condition)

    def values(rows: Tensor) -> dict[str, Tensor]:
        out = torch.zeros(len(rows), len(models), len(numbers), dtype=torch.float64)
        for v in each[rows].unique().tolist():
            some = (each[rows] == v).nonzero().squeeze(1)
            for part in some.split(max(1, network_rows(models[0]) // v)):
                own = [keys[i] for i in rows[part].tolist()]
                out[part] = _of_items(models, x[rows[part]], rows_of(condition, rows[part]), v, numbers, own)
        return {"cost": out}

    found = shared(items, {"cost": (len(models), len(numbers))}, values)["cost"]
    return found.permute(1, 2, 0), calls


@torch.inference_mode()
def _of_items(
    models: Sequence[Any], x: Tensor, condition: Any, visits: int, numbers: range, keys: Sequence[bytes]
) -> Tensor:
    """Return replicates (B, M, R) of items with the same number of visits."""
    out = torch.zeros(len(x), len(models), len(numbers), dtype=torch.float64)
    free = models[0].free(condition)
    for some in torch.arange(len(numbers)).split(max(1, network_rows(models[0]) // (len(x) * visits))):
        # The replicates of a visit follow each other: rows are (replicate, item, visit).
        shape = models[0].visit_shape
        drawn = [stratified(keys, visits, shape, antithetic=True, replicate=numbers[r]) for r in some.tolist()]
        noise, v = torch.cat([one for one, _ in drawn]), torch.cat([one for _, one in drawn])
        rows = torch.arange(len(x)).repeat_interleave(visits).repeat(len(some))
        masks = (v * free.cpu()[rows]).floor().long() + 1
        for m, model in enumerate(models):
            device = device_of(model, x)
            c = moved(rows_of(condition, rows), device)
            cost = model.masks_cost(x[rows].to(device), masks.to(device), noise.to(device, x.dtype), c)
            out[:, m, some] = cost.cpu().view(len(some), len(x), visits).mean(2).T
    return out


def continuations(
    model: Chain,
    x: Tensor,
    condition: Condition,
    *,
    error: float | None = None,
    visits: int | None = None,
    max_evaluations: int | None = None,
    seed: int = 0,
    progress: Watch | None = None,
) -> Evaluation:
    """Return the bound of every item given its prompt, and of their mean, nats.

    Args:
        model: a PromptedDiffusion.
        x: encoded items (N, L).
        condition: their prompts, `prompts` or `prompts_of_lengths`.
        error: the Monte Carlo error of the mean to reach, nats, with at least 15 degrees of freedom. All items get the same number of
            replicates.
        visits: instead, network evaluations of every item, in four replicates of at most F each; or of all masks, if these are as many at most.
        max_evaluations: the most network evaluations for `error`; `reached` is False if they are too few. An error of few degrees
            of freedom has a caveat.
        seed, progress: as of `evaluate`.

    Raises DiffusionalError unless one of error and visits is given, for fewer than 4 visits, for `max_evaluations` without `error` or below those of the
    first replicates, and for costs that are not finite.

    >>> from diffusional import MaskedDiffusion, PromptedDiffusion
    >>> from diffusional.models.prompted import prompts
    >>> from diffusional.space import Categorical
    >>> model = PromptedDiffusion(MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), Categorical(4, 3)))
    >>> x = torch.zeros(2, 4)
    >>> continuations(model, x, prompts(x, torch.tensor([1, 3])), visits=8).per_item["nelbo"]                  # 3 ln 3, and ln 3
    tensor([3.2958, 1.0986], dtype=torch.float64)
    """
    values, calls, reached = _to_error((model,), x, condition, error, visits, max_evaluations, seed, progress)
    return record(model, x, condition, values[0], calls, reached, seed, {}, _OF)


def compare_continuations(
    a: Chain,
    b: Chain,
    x: Tensor,
    condition: Condition,
    *,
    error: float,
    max_evaluations: int | None = None,
    seed: int = 0,
    progress: Watch | None = None,
) -> Comparison:
    """Return the bound of A less that of B on the same items and prompts, paired: both models see the same masks. Args as of `continuations`;
    `error` is that of the mean difference, and evaluations are those of both models.

    Raises DiffusionalError for models of different spaces.
    """
    if a.space != b.space:
        raise DiffusionalError(f"expected two models of the same tokens, got {a.space} and {b.space}")
    values, calls, reached = _to_error((a, b), x, condition, error, None, max_evaluations, seed, progress)
    one, other = (
        record(m, x, condition, v, calls // 2, reached, seed, {}, _OF) for m, v in ((a, values[0]), (b, values[1]))
    )
    apart = values[0] - values[1]
    variance = apart.var(0) / len(apart)
    per_item = {"item": torch.arange(len(x)), "difference": apart.mean(0), "error": variance.sqrt()}
    difference = mean_of_items(apart.mean(0), variance, calls)
    caveats = tuple(few_draws(freedom(apart), difference.error))
    return Comparison(difference, one, other, freedom(apart), reached, caveats, per_item)


def _to_error(
    models: Sequence[Chain],
    x: Tensor,
    condition: Condition,
    error: float | None,
    visits: int | None,
    limit: int | None,
    seed: int,
    progress: Watch | None,
) -> tuple[Tensor, int, bool]:
    """Return replicates (M, R, N) until the error of the mean, or that of the difference of two models, is reached; the number of network
    evaluations, and whether it was reached.
    """
    check_seed(seed)
    if (error is None) == (visits is None):
        raise DiffusionalError(f"expected one of error and visits, got error={error} and visits={visits}")
    check_error(error)
    if visits is not None and visits < REPLICATES:
        raise DiffusionalError(f"expected at least {REPLICATES} visits, one for each replicate, got visits={visits}")
    for model in models:
        model.space.check(x)
    each = _VISITS if visits is None else visits // REPLICATES
    prompted: Any = models[0]
    least = evaluations(prompted.free(condition).cpu(), each, REPLICATES).sum()
    check_limit(limit, error, int(least) * len(models))
    with evaluation_mode(*models):
        drawn = drawing(models, x, condition, each, REPLICATES, seed)
        return until(drawn, REPLICATES, error, limit, progress)
