"""Estimates by replicates: the draws within a replicate depend on each other, which lowers their variance, and replicates are independent.

    Ŝ_r(x) = KL_T + Σ_t E_ε g_t + (1/V) Σ_j [cost_{t_j}(x, ε_j) − g_{t_j}(ε_j)] / q_{t_j},        Ŝ(x) = (1/R) Σ_r Ŝ_r(x)

is the estimate of plan.py with R replicates of V visits. Within a replicate the levels are stratified: t_j inverts the plan's probabilities at
(j + U)/V. The masks of a masked diffusion are disjoint: parts of one random order of the positions, until that is used up and a fresh one begins.
Each visit by itself is distributed as an independent one, so that Ŝ_r is unbiased. The spread of the V visits is not their error, since they
depend on each other; that of the replicates is:

    Var Ŝ(x) = s²/R,     s² the sample variance of Ŝ_1 … Ŝ_R,      √(Σ_i s_i²/R)/N for the mean of N items.

Sources: Owen, Monte Carlo theory, methods and examples, ch. 8 (stratification) and 17 (replicated quasi-Monte Carlo).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.averages import LEAST_FREEDOM, few_draws
from diffusional.evaluation.differentiable import known, residuals
from diffusional.evaluation.noise import item_keys
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.provenance import provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.shares import shared
from diffusional.evaluation.sweep import mean_of_items
from diffusional.evaluation.target import check_replicates
from diffusional.evaluation.task import Progress, Watch
from diffusional.evaluation.visits import network_rows
from diffusional.ledger import Estimate
from diffusional.models.base import device_of, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.seeds import check_seed

# The most by which the number of replicates grows at once, and what is added to the number that the error seems to need.
_GROWTH, _MARGIN = 16, 1.05


def by_replicates(
    model: Chain,
    x: Tensor,
    plan: Plan,
    *,
    visits: int = 4,
    replicates: int = 2,
    error: float | None = None,
    max_evaluations: int | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    progress: Watch | None = None,
) -> Evaluation:
    """Return the bound of every item and of their mean, nats, from independent replicates of dependent visits.

    Args:
        model: a chain, such as a `MaskedDiffusion`.
        x: encoded items (N, *space.shape).
        plan: chooses the levels, and has constants and controls.
        visits: of one replicate of an item, V. More of them depend on each other, and fewer replicates have a less certain error.
        replicates: of every item, at least 2. The error of an item has one degree of freedom fewer, that of the mean N times as many.
        error: the Monte Carlo error of the mean to reach, nats, with at least 15 degrees of freedom, by more replicates of all items.
        max_evaluations: the most network evaluations for `error`. `reached` is False if they are too few. An error of few degrees of freedom
            has a caveat.
        condition: of a conditional model, with a row for each item.
        seed, progress: as of `evaluate`.

    Raises DiffusionalError for fewer than 2 replicates or 1 visit, a plan of other levels or with the control `context`, `max_evaluations`
    without `error` or below those of the first replicates, and costs that are not finite.

    >>> from diffusional import MaskedDiffusion
    >>> from diffusional.space import Categorical
    >>> model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), Categorical(4, 3))
    >>> by_replicates(model, torch.zeros(2, 4), Plan.uniform(model)).per_item["nelbo"]                             # 4 ln 3
    tensor([4.3944, 4.3944], dtype=torch.float64)
    """
    check_replicates(visits, replicates)
    check_seed(seed)
    check_error(error)
    model.space.check(x)
    check_condition(condition, len(x))
    plan.check(model)
    if plan.takes_context:
        raise DiffusionalError(
            "expected a plan without the control context, which takes a network evaluation of its own"
        )
    check_limit(max_evaluations, error, len(x) * visits * replicates)
    keys, each = item_keys(x, seed, condition), max(1, network_rows(model) // visits)

    @torch.inference_mode()
    def drawn(numbers: range) -> tuple[Tensor, int]:
        def values(rows: Tensor) -> dict[str, Tensor]:
            found = []
            for some in rows.split(each):
                items = x[some].to(device_of(model, x))
                c, own = moved(rows_of(condition, some), items.device), [keys[i] for i in some.tolist()]
                parts = [residuals(model, items, own, visits, plan, c, replicate=r) for r in numbers]
                found.append(known(model, items, plan)[:, None] + torch.stack(parts, 1))
            return {"cost": torch.cat(found)}

        found = shared(torch.arange(len(x)), {"cost": (len(numbers),)}, values)["cost"]
        return found.T[None], len(x) * visits * len(numbers)

    with evaluation_mode(model):
        (values,), calls, reached = until(drawn, replicates, error, max_evaluations, progress)
    about = {"plan_sha256": plan.sha256(), "visits_of_a_replicate": visits}
    return record(model, x, condition, values, calls, reached, seed, about)


def check_error(error: float | None) -> None:
    """Raise DiffusionalError unless a target error is positive and finite, or None."""
    if error is not None and not (error > 0 and math.isfinite(error)):
        raise DiffusionalError(f"expected a finite, positive error, got {error}")


def check_limit(limit: int | None, error: float | None, least: int) -> None:
    """Raise DiffusionalError for a limit of the network evaluations without a target error, and for one below those of the first replicates."""
    if limit is None:
        return
    if error is None:
        raise DiffusionalError(
            f"expected error with max_evaluations={limit}, got none: the number of evaluations is known; leave one out"
        )
    if limit < least:
        raise DiffusionalError(
            f"expected max_evaluations to be at least {least:,}, got {limit:,}: the first replicates of all items take as many"
        )


def until(
    drawn: Callable[[range], tuple[Tensor, int]],
    first: int,
    error: float | None,
    limit: int | None,
    progress: Watch | None,
) -> tuple[Tensor, int, bool]:
    """Return replicates (M, R, N) of N items under M models until the error of the mean, or that of the difference of two models, is reached; the
    number of network evaluations, and whether it was reached. An error of fewer than LEAST_FREEDOM degrees of freedom has not reached a target:
    it may be small by chance.

    `drawn(numbers)` returns the replicates of these numbers, and their network evaluations.
    """
    found, calls = drawn(range(first))
    while error is not None:
        now = _estimate(found, calls)
        known = not now.error > 0 or freedom(_of(found)) >= LEAST_FREEDOM
        growth = _MARGIN * (now.error / error) ** 2
        wanted = math.ceil(min(_GROWTH, growth if known else max(growth, 2.0)) * found.shape[1])
        if progress is not None:
            progress(Progress(now, calls, max(calls, calls * wanted // found.shape[1])))
        if now.error <= error and known:
            break
        if limit is not None:
            wanted = min(wanted, found.shape[1] + (limit - calls) * found.shape[1] // calls)
        if wanted <= found.shape[1]:
            return found, calls, False
        more, further = drawn(range(found.shape[1], wanted))
        found, calls = torch.cat([found, more], 1), calls + further
    return found, calls, True


def _estimate(found: Tensor, calls: int) -> Estimate:
    """Return the mean of replicates, with its error."""
    values = _of(found)
    return mean_of_items(values.mean(0), values.var(0) / len(values), calls)


def _of(found: Tensor) -> Tensor:
    """Return one model's replicates (R, N) from (1, R, N), or the differences of two."""
    return found[0] if len(found) == 1 else found[0] - found[1]


def freedom(values: Tensor) -> float:
    """Return the degrees of freedom of the error of the mean (Satterthwaite), from replicates (R, N)."""
    variance = values.var(0)
    fourth = float(variance.square().sum())
    return math.inf if fourth == 0 else float(variance.sum()) ** 2 / fourth * (len(values) - 1)


def record(
    model: Chain,
    x: Tensor,
    condition: Condition | None,
    values: Tensor,
    calls: int,
    reached: bool,
    seed: int,
    about: dict[str, Any],
    of: str = "NELBO",
) -> Evaluation:
    """Return the record of replicates (R, N), with a caveat if its error has few degrees of freedom."""
    mean, variance = values.mean(0), values.var(0) / len(values)
    total = mean_of_items(mean, variance, calls)
    caveats = few_draws(freedom(values), total.error)
    nothing = torch.zeros(0, dtype=torch.float64)
    known = provenance(model, x, seed, condition) | {"method": "replicates", "replicates": len(values)}
    return Evaluation(
        nelbo=total,
        terms={},
        per_item={"item": torch.arange(len(x)), "nelbo": mean, "error": variance.sqrt()},
        levels_kl=nothing,
        levels_error=nothing,
        level_edges=torch.ones(1, dtype=torch.long),
        dimensions=model.space.dimensions,
        provenance=known | about,
        freedom=freedom(values),
        reached=reached,
        caveats=tuple(caveats),
        of=of,
    )
