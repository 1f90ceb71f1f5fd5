"""`evaluate`: the NELBO of a data set, with its terms and errors, to a given error.

These ways have the same type of result:

    evaluate(model, data, target_error=0.01)        draws of (t, ε) under a plan until the Monte Carlo error is reached
    evaluate(model, data, visits=16)                a fixed number of draws for every item, so that a score depends only on its item
    evaluate(model, data)                           the full sweep, T network evaluations per item
    evaluate(model, data, estimator=Replicates())   independent replicates of visits that depend on each other

Models without levels, such as VAEs, are evaluated by the same function, from independent draws (averages.py).

plan.py describes plans, visit_records.py the draws, and task.py the stopping rule. The first two ways include an audit of a learned plan
(audit.py).
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.encoded import DataItems, check_encoded, in_memory, some_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.averages import average
from diffusional.evaluation.controls import FURTHER, NAMES, has_context
from diffusional.evaluation.importance import weighted
from diffusional.evaluation.ode import ode
from diffusional.evaluation.plan import SHORTEST, Plan
from diffusional.evaluation.replicates import by_replicates
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.sweep import sweep
from diffusional.evaluation.target import (
    ODE,
    Estimator,
    ImportanceWeights,
    Options,
    Replicates,
    Sweep,
    Target,
    Visits,
    resolved,
)
from diffusional.evaluation.task import NO_AUDIT as NO_AUDIT
from diffusional.evaluation.task import Progress, Task, Watch
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.ledger import per_unit
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.calls import from_diffusers
from diffusional.models.chain import Chain
from diffusional.models.denoiser import network_dtype
from diffusional.seeds import check_seed
from diffusional.space import Discrete

# Evaluations of a pilot that tries the control `context`, at most a fifth of them for its items. Plans from shorter ones expect too little:
# on the digits those of 625 expected up to three times too few draws, and one in three raised a false alarm in the audit.
_CONTEXT_PILOT = 1250
# Numbers of the priors of all items: 1 GiB.
_MOST_OF_CONTEXT = 2**28


def evaluate(
    model: LatentVariableModel,
    data: DataItems,
    target_error: float | Target | None = None,
    unit: Literal["bits/dim", "nats"] = "bits/dim",
    *,
    estimator: Estimator | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    progress: Watch | None = None,
    **options: Unpack[Options],
) -> Evaluation:
    """Estimate the NELBO of `data` (N, *space.shape), encoded: MATH (8), with its terms and errors.

    Args:
        target_error: the Monte Carlo standard error of the data set's mean to reach, in `unit`, or a `Target`, which has more options.
        unit: of `target_error` and `item_error`: "bits/dim" or "nats".
        estimator: `Visits`, which needs a target, `Replicates`, `Sweep`, `ImportanceWeights`, or `ODE`. By default visits if there is a target, otherwise
            a sweep. A model without levels, such as a VAE, is evaluated by independent draws.
        condition: a tensor (N, …) or a dict of such tensors, for conditional models. `reference` items have none: give a plan that
            was learned with their conditions (`Plan.fit(…, condition=…)`) instead.
        seed: of the noise, which depends on each item only: scores do not change with batch-mates, order or subset.
        progress: called with a `Progress` at intervals.
        options: fields of the target and the estimator by name, as a short form: `visits`, `item_error`, `every_item` and
            `max_evaluations` of `Target`; `plan`, `reference`, `audit` and `records` of `Visits`; `draws` and `cells` of `Sweep`;
            `deterministic` of both. Also `steps`, to evaluate the same network on the same γ(u) at another T, or in "continuous" time.

    Raises DiffusionalError for data that do not fit the space, for a cost that is not finite (with the number of the item), and for options
    that contradict each other. Warns if `steps` differs from the model's T, and if items of a Continuous space are levels stored as real
    numbers, such as whole numbers or multiples of 1/255 (a sample of the items is examined).

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=500))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((4,))))
    >>> x = world.sample(500, torch.Generator().manual_seed(0))
    >>> result = evaluate(model, x, target_error=0.01, unit="nats")
    >>> result.reached, result.nelbo.error < 0.01, abs(result.nelbo.value - world.entropy()) < 0.3
    (True, True, True)
    >>> swept = evaluate(model, x[:10])                                     # the full sweep, 499 levels and 4 draws of z_1
    >>> swept.nelbo.network_evaluations
    5030
    """
    check_model(model)
    check_encoded(model.space, data)
    check_condition(condition, len(data))
    named: dict[str, Any] = dict(options)
    steps = named.pop("steps", None)
    target, estimator = resolved(target_error, unit, estimator, named)
    check_seed(seed)
    if steps is not None:
        model = regridded(model, steps)
    levels = model.space.scaled_levels(some_of(data))
    if levels is not None and ranks.is_main():
        warnings.warn(levels, stacklevel=2)
    data = as_the_network(model, data)
    with evaluation_mode(model):
        if isinstance(estimator, ImportanceWeights):
            return weighted(model, in_memory(data), estimator.draws, seed, condition)
        if isinstance(estimator, ODE):
            watched = None if progress is None else lambda done, total: progress(Progress(None, done, total))
            return ode(model, in_memory(data), estimator, seed, condition, watched)
        chain = model.visited()
        if isinstance(estimator, Replicates):
            if chain is None:
                raise DiffusionalError(
                    f"expected a model with levels to visit for Replicates, got a {type(model).__name__}; leave the estimator out, and its costs "
                    "are drawn all together"
                )
            return _replicated(chain, in_memory(data), estimator, target, seed, condition, progress)
        if estimator.deterministic and chain is not model:
            raise DiffusionalError(
                f"deterministic=True was given for a {type(model).__name__}: the batches of its encoder have no fixed shape. Leave it out; "
                "the scores then agree up to rounding"
            )
        # Without a target, a model that contains a chain is evaluated by full draws, which include its T levels.
        if chain is None or (chain is not model and not target.aimed):
            _check_full_draws(model, estimator)
            watch = None if progress is None else lambda now, done, total: progress(Progress(now, done, total))
            bit = per_unit(target.unit, model.space.dimensions)
            nats = [None if error is None else error * bit for error in (target.error, target.item_error)]
            return average(
                model, in_memory(data), nats[0], target.visits, nats[1], seed, target.max_evaluations, condition, watch
            )
        if isinstance(estimator, Sweep):
            bar = None if progress is None else lambda done, total: progress(Progress(None, done, total))
            return sweep(
                chain, in_memory(data), seed, estimator.draws, estimator.cells, condition, bar, estimator.deterministic
            )
        pilot, plan, start = 0, estimator.plan, time.monotonic()
        if plan is None:
            if progress is not None:
                progress(Progress(None, 0, SHORTEST, "pilot"))
            plan, pilot = plan_for(chain, data, target, seed, estimator.reference, condition)
        visits = VisitRecords(chain, plan, data, seed, condition, estimator.deterministic)
        task = Task(visits, pilot, target.max_evaluations, estimator.records, progress)
        task.seconds["pilot"] = time.monotonic() - start
        return task.run(target, estimator.audit)


def _replicated(
    chain: Chain,
    x: Tensor,
    estimator: Replicates,
    target: Target,
    seed: int,
    condition: Condition | None,
    progress: Watch | None,
) -> Evaluation:
    """Evaluate by replicates, under the plan of a pilot if none is given, whose evaluations are counted."""
    plan, pilot, limit = estimator.plan, 0, target.max_evaluations
    if plan is None:
        _check_reference(estimator.reference, condition)
        least = SHORTEST + len(x) * estimator.visits * estimator.replicates
        if limit is not None and limit < least:
            raise DiffusionalError(
                f"expected max_evaluations to be at least {least:,}, got {limit:,}: the pilot takes {SHORTEST}, and the first replicates of all "
                f"items {least - SHORTEST:,}; raise it, or give a plan or fewer visits"
            )
        items = x if estimator.reference is None else estimator.reference
        plan = Plan.fit(chain, items, SHORTEST, seed, condition=condition)
        pilot = int(plan.provenance["evaluations"])
    found = by_replicates(
        chain,
        x,
        plan,
        visits=estimator.visits,
        replicates=estimator.replicates,
        error=None if target.error is None else target.error * per_unit(target.unit, chain.space.dimensions),
        max_evaluations=None if limit is None else limit - pilot,
        condition=condition,
        seed=seed,
        progress=progress,
    )
    draws = found.nelbo.network_evaluations
    return replace(
        found,
        nelbo=replace(found.nelbo, network_evaluations=pilot + draws),
        provenance={**found.provenance, "evaluations": {"pilot": pilot, "draws": draws}},
    )


def _check_reference(reference: Tensor | None, condition: Condition | None) -> None:
    """Raise DiffusionalError for reference data of a pilot whose conditions are not known."""
    if condition is not None and reference is not None:
        raise DiffusionalError(
            "expected a plan, since the conditions of the reference data are not known, got conditions and reference data; learn one with "
            "Plan.fit"
        )


def plan_for(
    chain: Chain, data: DataItems, target: Target, seed: int, reference: Tensor | None, condition: Condition | None
) -> tuple[Plan, int]:
    """Return a plan for an evaluation of `data` to a target, and the number of evaluations of its pilots.

    The pilot starts with SHORTEST evaluations. If the control `context` exists, and the target then seems to take more draws than one
    evaluation of every item and a further pilot, that pilot tries it. The chosen plan is the one that expects to take fewer evaluations.
    Only numbers of evaluations decide, so that the same seed leads to the same plan on any machine.
    """
    limit, n = target.max_evaluations, len(data)
    if limit is not None and limit <= SHORTEST:
        raise DiffusionalError(
            f"expected max_evaluations above {SHORTEST}, which the pilot takes, got {limit}: raise it, or give a plan"
        )
    _check_reference(reference, condition)
    draws, items = within(target.draws(n, chain.space.dimensions), limit), data if reference is None else reference
    # A fixed number of visits is the cost that the user chose, and a limit may leave no evaluations for a second pilot.
    possible = target.visits is None and limit is None and has_context(chain) and _fits(chain, n)
    promising = False

    def further(variance: float) -> float:
        """Return the draws for which the pilot goes on: none if the context is to be tried."""
        nonlocal promising
        promising = possible and draws(variance) > n + _CONTEXT_PILOT
        return 0.0 if promising else draws(variance)

    plan = Plan.fit(chain, items, SHORTEST, seed, condition=condition, draws=further)
    pilot = int(plan.provenance["evaluations"])
    if not promising:
        return plan, pilot
    other = Plan.fit(chain, items, _CONTEXT_PILOT * 4 // 5, seed, (*NAMES, *FURTHER), condition=condition, draws=draws)
    ahead = [draws(one.draw_variance) + n * one.takes_context for one in (plan, other)]
    return other if ahead[1] < ahead[0] else plan, pilot + int(other.provenance["evaluations"])


def _fits(chain: Chain, items: int) -> bool:
    """Return whether the priors of all items, which the control `context` keeps in memory, are small enough."""
    return items * chain.space.dimensions * (chain.space.levels or 1) <= _MOST_OF_CONTEXT


def check_model(model: object) -> None:
    """Raise DiffusionalError for a network, a pipeline or anything else that is not a model of this library.

    >>> check_model(torch.nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected a model with latents, such as a df.DiffusionModel, got a Linear. A network has ...
    """
    if isinstance(model, LatentVariableModel):
        return
    advice = "A network has no p(x) by itself: df.wrap and df.DiffusionModel declare the meaning of its output and its noise levels"
    if from_diffusers(model):
        advice = "Save it with save_pretrained and load the folder with df.load_checkpoint, or use df.wrap and df.DiffusionModel"
    raise DiffusionalError(
        f"expected a model with latents, such as a df.DiffusionModel, got a {type(model).__name__}. {advice}"
    )


def within(draws: Callable[[float], float], max_evaluations: int | None) -> Callable[[float], float]:
    """Return a function of the variance of one draw to the number of draws (`Target.draws`) that `max_evaluations` allows.

    >>> within(lambda variance: 100 * variance, 700)(5.0)
    200.0
    """
    return (
        draws if max_evaluations is None else lambda variance: min(draws(variance), float(max_evaluations - SHORTEST))
    )


def _check_full_draws(model: LatentVariableModel, estimator: Visits | Sweep) -> None:
    """Raise DiffusionalError for options about levels, which draws of all costs of a model do not have, and for a model with a chain in
    continuous time, whose costs cannot all be drawn.
    """
    names = ("draws",) if isinstance(estimator, Sweep) else ("plan", "reference", "records")
    given = [name for name in names if getattr(estimator, name) is not None]
    contained, kind = model.visited(), type(model).__name__
    if given and contained is None:
        raise DiffusionalError(
            f"expected no {' and no '.join(given)} for a {kind}, which has no levels to visit; give only target_error, visits or item_error"
        )
    if isinstance(estimator, Sweep) and given:
        raise DiffusionalError(
            f"expected no draws, which are sweeps over the levels, for a {kind}, which only contains a chain, got draws={estimator.draws}; "
            "leave draws out, or give target_error, visits or item_error"
        )
    if contained is not None and contained.steps is None:
        raise DiffusionalError(
            f"expected target_error, visits or item_error for a {kind} whose chain is in continuous time, got none of them: it has no finite "
            "number of costs to draw. Give one of them, or steps=T"
        )


@overload
def as_the_network(model: LatentVariableModel, data: Tensor) -> Tensor: ...
@overload
def as_the_network(model: LatentVariableModel, data: DataItems) -> DataItems: ...
def as_the_network(model: LatentVariableModel, data: DataItems) -> DataItems:
    """Return items in float32 if the network's parameters are float32, so that a score does not depend on the type of its item."""
    if not isinstance(data, Tensor) or network_dtype(model) is not torch.float32 or data.dtype is torch.float32:
        return data
    return model.space.encode(model.space.index(data)) if isinstance(model.space, Discrete) else data.float()


def regridded(model: LatentVariableModel, steps: int | Literal["continuous"]) -> LatentVariableModel:
    """Return the model at another T, or in continuous time. Warns if the model has a T of its own.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule, space
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, s: 0 * z), likelihood.LevelPosterior(space.binary((4,))))
    >>> regridded(model, 100).timesteps
    99
    """
    wanted = None if steps == "continuous" else steps
    if wanted is not None and wanted < 2:
        raise DiffusionalError(f'expected steps to be an integer T ≥ 2, or "continuous", got {steps}')
    other = model.regrid(wanted)
    if model.steps is not None and model.steps != wanted:
        warnings.warn(
            f"the model has T = {model.steps} and is evaluated at "
            f"{'T = ∞' if wanted is None else f'T = {wanted}'}: between the noise levels that it was trained at, its network "
            "interpolates, with an accuracy that is known only from this evaluation",
            stacklevel=3,
        )
    return other
