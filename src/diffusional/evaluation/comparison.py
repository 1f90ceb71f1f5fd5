"""The difference of the NELBO of two models, with a paired error.

Both models are evaluated on the same items with the same noise and, if they have the same levels, at the same levels, so that common variation
cancels. With a_ij and b_ij their weighted residuals at an item's j-th visit, the difference of item i is

    D_i = (base_i^A − base_i^B) + (1/J) Σ_j (a_ij − b_ij),

and its errors are those of `visit_records.py` for the differences, so that no covariances are needed. Differences may be rare, so the
Monte Carlo error is at least the error expected from the two audits, which visited the same levels, √(∫ d²/π) over all visits. The
expectation of the pilots, which visited the same levels with the same noise, is included as in `evaluate` (VisitRecords.cautious).

If one of them has no levels, both are evaluated on all items to target/√2 each, and only the items are paired.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.evaluation.averages import LEAST_FREEDOM, few_draws
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.evaluation import Task, Watch, as_the_network, check_model, evaluate
from diffusional.evaluation.itemised import differences
from diffusional.evaluation.plan import PILOT, Plan
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.strata import Strata
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.ledger import Estimate, error_over_items, per_unit, satterthwaite
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.denoiser import network_dtype
from diffusional.seeds import SEEDS, check_seed


def compare(
    a: LatentVariableModel,
    b: LatentVariableModel,
    data: Tensor,
    target_error: float = 0.01,
    unit: Literal["bits/dim", "nats"] = "bits/dim",
    *,
    seed: int = 0,
    plans: tuple[Plan | None, Plan | None] | None = None,
    reference: Tensor | None = None,
    every_item: bool = False,
    max_evaluations: int | None = None,
    audit: bool = True,
    condition: Condition | None = None,
    other_condition: Condition | None = None,
    progress: Watch | None = None,
) -> Comparison:
    """Estimate NELBO(A) − NELBO(B) of `data` (N, *space.shape), to a Monte Carlo error of `target_error` in `unit`.

    It is a difference of two bounds, MATH (8), and no bound itself: the difference of −ln p(x) is another one if the bounds are not equally
    loose.

    The arguments are those of `evaluate`. `plans` are those of A and B (None for a model without levels to visit). Both models get the same
    `condition`, unless B gets `other_condition`: then the noise of an item does not depend on its condition, so that two conditions of one
    model are compared with a paired error, at the levels where the bounds differ (`Plan.contrasted`). The evaluations of both networks are counted.

    Raises DiffusionalError if the spaces of the models (shape, levels, range, standardisation) differ, since their bounds could then not be
    compared, and for a condition that does not have one row per item.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=500))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((4,))))
    >>> both = compare(model, model, world.sample(300, torch.Generator().manual_seed(0)))
    >>> abs(both.difference.value) < 1e-12, both.difference.error < 1e-12
    (True, True)
    """
    for model in (a, b):
        check_model(model)
    if a.space != b.space:
        raise DiffusionalError(
            f"A's items are {a.space}, B's are {b.space}: bounds over different spaces do not compare"
        )
    a.space.check(data)
    if network_dtype(a) is network_dtype(b):
        data = as_the_network(a, data)
    check_condition(condition, len(data))
    check_condition(other_condition, len(data))
    if other_condition is not None and condition is None:
        raise DiffusionalError(
            "other_condition, of B, was given without a condition of A; give both. For p(x) of a model that also predicts without a condition, "
            "use conditions.ignoring_condition"
        )
    theirs_of, keyed = (condition, True) if other_condition is None else (other_condition, False)
    check_seed(seed)
    if condition is not None and reference is not None and plans is None:
        raise DiffusionalError(
            "reference was given with a condition, but the reference items have none: pass plans instead"
        )
    if not target_error > 0:
        raise DiffusionalError(f"expected a positive target_error, got {target_error}")
    chains = a.visited(), b.visited()
    if chains[0] is None or chains[1] is None:
        half = None if max_evaluations is None else max_evaluations // 2
        each = target_error / math.sqrt(2)
        results = [
            evaluate(
                model,
                data,
                each,
                unit,
                seed=own,
                plan=plan,
                reference=None if model.visited() is None or plan is not None else reference,
                every_item=True,
                max_evaluations=half,
                audit=audit,
                condition=given,
                progress=progress,
            )
            # With different seeds, since two autoencoders would otherwise share a part of their noise, which the errors do not include.
            for model, plan, own, given in zip(
                (a, b), plans or (None, None), (seed, (seed + 1) % SEEDS), (condition, theirs_of), strict=True
            )
        ]
        return _items_paired(*results)
    if plans is None and max_evaluations is not None and max_evaluations // 2 <= PILOT:
        raise DiffusionalError(
            f"expected max_evaluations above {2 * PILOT + 1}, got {max_evaluations}: the two pilots take {PILOT} each, and each model gets "
            "half of the evaluations. Raise it, or pass plans"
        )
    with evaluation_mode(a, b):
        pilot = 0
        if plans is None:
            pilots = data if reference is None else reference
            # Pilots are long, since short ones miss differences of two models at few levels, which an audit does not find either.
            first = Plan.fit(chains[0], pilots, seed=seed, condition=condition)
            across = other_condition is not None
            plans = first, Plan.fit(chains[1], pilots, seed=seed, condition=theirs_of, like=first, across=across)
            if across:
                plans = first.contrasted(plans[1])
            pilot = PILOT
        mine, theirs = plans
        if mine is None or theirs is None:
            raise DiffusionalError(
                "expected plans of both models, since both have levels to visit, got None; learn one with Plan.fit, or leave plans out"
            )
        half = None if max_evaluations is None else max_evaluations // 2
        tasks = [
            Task(VisitRecords(chains[0], mine, data, seed, condition, keyed=keyed), pilot, half, watch=progress),
            Task(VisitRecords(chains[1], theirs, data, seed, theirs_of, keyed=keyed), pilot, half),
        ]
        return _compared(tasks, target_error * per_unit(unit, a.space.dimensions), audit, every_item)


def _compared(tasks: list[Task], target: float, audit: bool, every_item: bool) -> Comparison:
    one, other = (task.draws for task in tasks)
    # Both models visit the same items, so the strata are common to both: an item is extreme if either plan expects it to be.
    known = {f"{name}: {column}": v for name, d in (("A", one), ("B", other)) for column, v in d.columns().items()}
    one.strata = other.strata = Strata.by_extremeness(known, one.order)
    caveats = [
        f"{name}: {text}"
        for name, task in zip("AB", tasks, strict=True)
        if audit
        for text in task.audit(target, paired=True)
    ]
    # Costs that two models share cancel, and the rest may be rare: the error is at least the one expected from the audits, which visited
    # every level, and the pilots.
    audits = [task.audited for task in tasks if task.audited is not None]
    by_audits = audits[0].paired_variance(audits[1]) if len(audits) == 2 else 0.0
    by_pilots = one.plan.paired_variance(other.plan)
    of_pilots = one.plan.paired_freedom(other.plan)
    of_a_draw = one.plan.paired_freedom_of_a_draw(other.plan)

    def cautious() -> Estimate:
        seen = _difference(one, other, sum(task.spent for task in tasks))
        least = math.sqrt(one.expected_variance(by_audits))
        return one.cautious(replace(seen, error=max(seen.error, least)), by_pilots, of_pilots, of_a_draw)

    options = {"items": len(one.data)} if every_item else {}
    enough = tasks[0].to_error(
        [one, other], cautious, lambda: _paired(one, other), target, of_a_draw=of_a_draw, **options
    )
    results = [task.result([]) for task in tasks]
    difference = cautious()
    caveats += [f"{name}: {text}" for name, result in zip("AB", results, strict=True) for text in result.caveats]
    freedom = one.freedom_of(*_paired(one, other))
    caveats += few_draws(freedom, difference.error)
    if by_pilots > 0 and of_pilots < LEAST_FREEDOM:
        caveats.append(
            f"the difference that the pilots met rests on few of their visits ({of_pilots:.0f} degrees of freedom): the models differ by "
            "rare, large costs, and others may have been missed. Learn the plans from more evaluations (Plan.fit), or use the sweep"
        )
    a, b = (replace(result, reached=enough and not result.caveats) for result in results)
    per_item = {
        "item": a.per_item["item"],
        "difference": a.per_item["nelbo"] - b.per_item["nelbo"],
        "error": one.errors_of(*_paired(one, other), by_pilots),
    }
    terms, levels = differences(one, other)
    return Comparison(
        difference,
        a,
        b,
        freedom,
        enough and not caveats,
        tuple(caveats),
        per_item,
        terms=terms,
        levels_kl=torch.tensor([level.value for level in levels], dtype=torch.float64),
        levels_error=torch.tensor([level.error for level in levels], dtype=torch.float64),
    )


def _paired(a: VisitRecords, b: VisitRecords) -> tuple[Tensor, Tensor]:
    """Return the differences (n, J) of draws with the same noise, and a mask of those that exist."""
    (ours, filled), (theirs, _) = a.parts(a.visited()), b.parts(b.visited())
    difference = ours.total
    for cost in theirs.costs.values():
        difference = difference - cost
    return difference, filled


def _difference(a: VisitRecords, b: VisitRecords, evaluations: int) -> Estimate:
    return a.survey(a.known() - b.known(), *a.spread(*_paired(a, b)), evaluations)


def _items_paired(a: Evaluation, b: Evaluation) -> Comparison:
    """Return the difference of two evaluations of the same items with independent noise."""
    visited = [sorted(range(len(e.per_item["item"])), key=lambda i, e=e: int(e.per_item["item"][i])) for e in (a, b)]
    if any(len(order) < a.nelbo.n for order in visited):
        raise DiffusionalError("max_evaluations left items unvisited, whose differences are not known; raise it")
    ours, theirs = (e.per_item["nelbo"][order] for e, order in zip((a, b), visited, strict=True))
    errors = [e.per_item["error"][order] for e, order in zip((a, b), visited, strict=True)]
    mc = math.hypot(a.nelbo.error, b.nelbo.error)
    n = len(ours)
    gaps = ours - theirs
    difference = Estimate(
        float(gaps.mean()),
        mc,
        error_over_items(gaps, torch.full_like(gaps, n * mc**2), n),
        n,
        a.nelbo.network_evaluations + b.nelbo.network_evaluations,
    )
    caveats = tuple(f"{name}: {text}" for name, e in zip("AB", (a, b), strict=True) for text in e.caveats)
    freedom = satterthwaite(*((torch.tensor(e.nelbo.error, dtype=torch.float64).square(), e.freedom) for e in (a, b)))
    per_item = {"item": torch.arange(n), "difference": gaps, "error": torch.hypot(*errors)}
    return Comparison(difference, a, b, freedom, a.reached and b.reached, caveats, per_item)
