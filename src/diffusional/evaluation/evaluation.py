"""`evaluate`: the NELBO of a data set, itemised, to a stated error.

Three ways, all with the same result:

    evaluate(model, data, target_error=0.01)        draws of (t, ε) under a plan until the Monte Carlo error is reached
    evaluate(model, data, visits=16)                a fixed number of draws for every item: a score is the item's alone
    evaluate(model, data)                           the full sweep, T network evaluations per item: the reference

Models without levels, such as VAEs, go through the same call: their errors are those of independent draws (averages.py).

What the plan and the draws are is in plan.py and draws.py. With the first two goes an audit of a plan that was learned (audit.py).

The stopping rule looks at the error after each round, and a round is sized by the last one's error, so that few looks are
taken. What it does to the estimate and its interval is measured in benchmarks/calibration.py.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.evaluation import processes
from diffusional.evaluation.audit import Audit
from diffusional.evaluation.averages import EACH_ITS_OWN, average, few_draws, weighted
from diffusional.evaluation.draws import Draws
from diffusional.evaluation.plan import PILOT, Plan
from diffusional.evaluation.provenance import gamma_at, provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.strata import FIRST_OF_BAND, grown
from diffusional.evaluation.sweep import sweep
from diffusional.evaluation.target import Estimator, ImportanceWeights, Options, Sweep, Target, Visits, resolved
from diffusional.ledger import Estimate, per_unit
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.denoiser import network_dtype
from diffusional.seeds import check_seed
from diffusional.space import Discrete

# The first look: this many items, if there are as many, and draws of each.
_FIRST_ITEMS, _FIRST_DRAWS = 256, 2
# Few items are drawn more often, for as many degrees of freedom.
_FREEDOM = 60
# The plan's expectation is included in the error if it is more than this many times the variance seen.
_SURPRISE = 2.0
# An item's own error is believed from this many draws on.
_ITEM_DRAWS = 8
# The caveat of a plan that was not learned.
NO_AUDIT = (
    "the plan was not learned by a pilot (Plan.uniform), so the levels cannot be audited, and the error rests on the draws only: it does "
    "not include rare costs that no draw met. Learn a plan (Plan.fit), or pass audit=False to skip the audit"
)
# Seconds between two writes of the records.
_SAVE_EVERY = 20.0


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands: the estimate so far (None before the first look), evaluations done and expected in all."""

    estimate: Estimate | None
    evaluations: int
    expected: int


Watch = Callable[[Progress], None]


def evaluate(
    model: LatentVariableModel,
    data: Tensor,
    target_error: float | Target | None = None,
    unit: Literal["bits/dim", "nats"] = "bits/dim",
    *,
    estimator: Estimator | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    progress: Watch | None = None,
    **options: Unpack[Options],
) -> Evaluation:
    """The NELBO of `data` (N, *space.shape), encoded: MATH (8), itemised, with its errors.

    Args:
        target_error: the Monte Carlo standard error of the data set's mean to reach, in `unit`; or a `Target`, which says more.
        unit: of `target_error` and `item_error`: "bits/dim" or "nats".
        estimator: `Visits`, which needs a target, `Sweep`, or `ImportanceWeights`. By default visits if there is a target, otherwise a
            sweep. A model without levels, such as a VAE, is evaluated by independent draws.
        condition: a tensor (N, …) or a dict of such tensors, for conditional models. If a pilot on reference data is needed, pass a plan.
        seed: of the noise, which depends on each item only: scores do not change with batch-mates, order or subset.
        progress: called with a `Progress` now and then.
        options: fields of the target and the estimator by name, as a short form: `visits`, `item_error`, `every_item` and
            `max_evaluations` of `Target`; `plan`, `reference`, `audit` and `records` of `Visits`; `draws` and `cells` of `Sweep`. And
            `steps`: evaluate at another T, or in "continuous" time, the same network on the same γ(u).

    Raises DiffusionalError for data that the space refuses, for a cost that is not finite, naming the item, and for options
    that don't go together. Warns where `steps` differs from the T that a model has, and of items of a Continuous space that are
    levels stored as real numbers, such as whole numbers or multiples of 1/255 (a sample of the items is examined).

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
    model.space.check(data)
    check_condition(condition, len(data))
    named: dict[str, Any] = dict(options)
    steps = named.pop("steps", None)
    target, estimator = resolved(target_error, unit, estimator, named)
    check_seed(seed)
    if steps is not None:
        model = regridded(model, steps)
    levels = model.space.scaled_levels(data)
    if levels is not None and processes.is_main():
        warnings.warn(levels, stacklevel=2)
    data = as_the_network(model, data)
    with evaluation_mode(model):
        if isinstance(estimator, ImportanceWeights):
            return weighted(model, data, estimator.draws, seed, condition)
        chain = model.visited()
        # Without a target, a model that contains a chain is evaluated by full draws, which include its T levels.
        if chain is None or (chain is not model and not target.aimed):
            if _restricts(estimator):
                raise DiffusionalError(
                    f"a plan, reference data, records or draws came for a {type(model).__name__}, whose costs have no levels to visit: "
                    "give target_error, visits or item_error alone"
                )
            told = None if progress is None else lambda now, done, total: progress(Progress(now, done, total))
            bit = per_unit(target.unit, model.space.dimensions)
            nats = [None if error is None else error * bit for error in (target.error, target.item_error)]
            return average(model, data, nats[0], target.visits, nats[1], seed, target.max_evaluations, condition, told)
        if isinstance(estimator, Sweep):
            bar = None if progress is None else lambda done, total: progress(Progress(None, done, total))
            return sweep(chain, data, seed, estimator.draws, estimator.cells, condition, bar)
        pilot, plan, reference, budget = 0, estimator.plan, estimator.reference, target.max_evaluations
        if plan is None:
            if budget is not None and budget <= PILOT:
                raise DiffusionalError(
                    f"a budget of {budget} evaluations came; the pilot alone takes {PILOT}: give a plan, or raise it"
                )
            if condition is not None and reference is not None:
                raise DiffusionalError(
                    "conditions came with reference data, whose conditions are not known: give a plan"
                )
            plan = Plan.fit(chain, data if reference is None else reference, seed=seed, condition=condition)
            pilot = int(plan.provenance["evaluations"])
        task = Task(Draws(chain, plan, data, seed, condition), pilot, budget, estimator.records, progress)
        return task.run(target, estimator.audit)


def _restricts(estimator: Visits | Sweep) -> bool:
    """Whether an estimator says something of levels, which a model without them cannot heed."""
    if isinstance(estimator, Sweep):
        return estimator.draws is not None
    return not (estimator.plan is None and estimator.reference is None and estimator.records is None)


def as_the_network(model: LatentVariableModel, data: Tensor) -> Tensor:
    """Return items in float32 if the network's parameters are: a score does not depend on the type of its item."""
    if network_dtype(model) is not torch.float32 or data.dtype is torch.float32:
        return data
    return model.space.encode(model.space.index(data)) if isinstance(model.space, Discrete) else data.float()


def regridded(model: LatentVariableModel, steps: int | Literal["continuous"]) -> LatentVariableModel:
    """The model at another T, or in continuous time; warns where it has a T of its own.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule, space
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, s: 0 * z), likelihood.LevelPosterior(space.binary((4,))))
    >>> regridded(model, 100).levels
    99
    """
    wanted = None if steps == "continuous" else steps
    if wanted is not None and wanted < 2:
        raise DiffusionalError(f'steps={steps} came; give T ≥ 2 latents, or "continuous"')
    other = model.regrid(wanted)
    if model.steps is not None and model.steps != wanted:
        warnings.warn(
            f"the model has T = {model.steps} and is evaluated at "
            f"{'T = ∞' if wanted is None else f'T = {wanted}'}: between the noise levels that it was trained at, its network "
            "interpolates, and nothing but this number says how well",
            stacklevel=3,
        )
    return other


@dataclass
class Task:
    """One evaluation under way: draws that grow until a target or a budget is reached."""

    draws: Draws
    pilot: int
    budget: int | None
    records: str | Path | None = None
    watch: Watch | None = None
    audited: Audit | None = None

    def __post_init__(self) -> None:
        self._saved = time.monotonic()
        self._estimate: Estimate | None = None
        self._about = provenance(self.draws.model.whole(), self.draws.data, 0, self.draws.condition)
        self._tag = self.draws.tag(self._about)
        self._path = None if self.records is None else Path(self.records)
        self._temporary = self._path is not None and self._path.is_dir()
        if self._path is not None and self._temporary:
            self._path = self._path / f"draws-{hashlib.sha256(self._tag.encode()).hexdigest()[:12]}.safetensors"
        if self._path is not None and self._path.exists():
            self.draws.restore(self._path, self._tag)
            # In the order of visits, and within the budget, which may be less than that of the evaluation that was cut off.
            unfinished = self._order[(self.draws.goal > self.draws.count)[self._order]]
            allowed = self._afford(unfinished, self.draws.goal[unfinished])
            # A single draw of an item does not show its error: an item that was cut off after one gets another.
            allowed = torch.where(self.draws.count[unfinished] == 1, allowed.clamp(min=2), allowed)
            self.draws.goal[unfinished] = allowed
            self._extend(unfinished, allowed)

    @property
    def spent(self) -> int:
        """Network evaluations so far, the pilot's and the audit's included."""
        return self.draws.evaluations + self.pilot + self._audits

    @property
    def _order(self) -> Tensor:
        """All items in the order of visits: extreme items first if a budget may end before all are visited."""
        return self.draws.order if self.budget is None else self.draws.strata.order

    @property
    def _audits(self) -> int:
        return 0 if self.audited is None else len(self.audited.left)

    def run(self, target: Target, audit: bool) -> Evaluation:
        """Draw until the target is reached, and return the record."""
        draws, n = self.draws, len(self.draws.data)
        nats = per_unit(target.unit, draws.model.space.dimensions)
        doubts = self.audit(None if target.error is None else target.error * nats) if audit else []
        if target.visits is not None:
            allowed = self._afford(self._order, torch.full((n,), target.visits))
            self._extend(self._order, allowed)
            self._some_visited()
            enough = bool((draws.count >= target.visits).all())
        elif target.error is not None:
            first = n if target.every_item else _FIRST_ITEMS
            enough = self.to_error([draws], self._cautious, draws.values, target.error * nats, first)
        else:
            assert target.item_error is not None
            enough = self._to_item_error(target.item_error * nats)
        of_items = target.item_error is not None
        result = self.result([*doubts, EACH_ITS_OWN] if of_items else doubts)
        if self._path is not None:
            self._save()
            if self._temporary and enough and processes.is_main():
                self._path.unlink(missing_ok=True)
        # A target for every item is reached whatever is said of their mean.
        return replace(result, reached=enough and not (doubts if of_items else result.caveats))

    def to_error(
        self,
        every: list[Draws],
        estimate: Callable[[], Estimate],
        values: Callable[[], tuple[Tensor, Tensor]],
        target: float,
        items: int = _FIRST_ITEMS,
    ) -> bool:
        """Extend all of `every` equally, in rounds, until the estimate's error is at most `target` (nats), or the budget ends.

        `values` returns the draws (n, J) of the visited items from which the estimate is made, and a mask of those that exist.
        """
        draws, strata = every[0], every[0].strata
        picked = strata.first(items)
        each = strata.draws(picked, max(_FIRST_DRAWS, -(-_FREEDOM // int(picked.sum())) + 1))
        picked = torch.maximum(picked, strata.visited(draws.visited()))
        each = torch.zeros_like(each).scatter_reduce(0, strata.of, draws.count, "amax").maximum(each)
        while True:
            chosen = strata.pick(picked)
            wanted = each[strata.of[chosen]]
            allowed = self._afford(chosen, wanted)
            for one in every:
                self._extend(chosen, allowed, one)
            self._some_visited()
            now = estimate()
            now = replace(now, error=float(processes.agreed(torch.tensor(now.error, dtype=torch.float64))))
            self._estimate = now
            self._tell(now, target)
            visited, (mean, variance) = draws.visited(), draws.spread(*values())
            unseen = processes.agreed(strata.unseen(visited, variance, mean, draws.count[visited]))
            if now.error <= target and not bool(unseen.any()):
                return True
            if bool((allowed < wanted).any()):
                return False
            if now.error <= target:
                factor = unseen
            else:
                # The part of the error that the draws do not show, but the plan expects.
                seen = draws.survey(draws.known(), mean, variance, 0).error
                least = (now.error**2 - seen**2) * len(draws.data) ** 2
                factor = processes.agreed(
                    strata.growth(visited, variance, mean, draws.count[visited], (now.error / target) ** 2, least)
                )
            # Strata that are visited as a whole get more draws per item, the others more items.
            whole = picked == strata.sizes
            each = torch.where(whole, grown(each, 1.02 * factor), each)
            picked = torch.minimum(grown(picked, 1.05 * factor), strata.sizes)

    def _some_visited(self) -> None:
        """Raise where the budget was too small for any estimate."""
        items, strata = self.draws.visited(), self.draws.strata
        if len(items) < min(2, len(self.draws.data)) or not strata.enough(items):
            extreme = int(strata.sizes[1:].minimum(torch.tensor(FIRST_OF_BAND)).sum())
            needed = extreme + int(strata.sizes[0].clamp(max=2))
            raise DiffusionalError(
                f"max_evaluations={self.budget} is too small: {self.spent} were spent, including the pilot and the audit, but two draws of "
                f"{needed} items are needed, of which {extreme} have extreme expected costs. Raise max_evaluations, pass a plan, or "
                "leave out the audit"
            )

    def _cautious(self) -> Estimate:
        """Return the NELBO with the error for the stopping rule: the one seen or, if it is larger, its blend with the plan's."""
        draws = self.draws
        if not draws.plan.learned:
            return draws.nelbo()
        return draws.cautious(draws.nelbo(), draws.plan.draw_variance)

    def _to_item_error(self, target: float) -> bool:
        """Draw from each item until its own error is at most `target`: what an item gets depends on itself alone."""
        draws = self.draws
        left = self._order
        each = _ITEM_DRAWS
        while len(left):
            wanted = torch.full((len(left),), each)
            allowed = self._afford(left, wanted)
            self._extend(left, allowed)
            self._some_visited()
            errors = torch.full((len(draws.data),), math.inf, dtype=torch.float64)
            errors[draws.visited()] = processes.agreed(draws.item_errors())
            if bool((allowed < wanted).any()):
                return bool((errors <= target).all())
            left = left[errors[left] > target]
            each = math.ceil(1.4 * each)
            self._tell(None, None)
        return True

    def _afford(self, items: Tensor, wanted: Tensor) -> Tensor:
        """Draws (n,) for items, at most `wanted`, that the budget allows: the first items in full, the last not at all."""
        missing = (wanted - self.draws.count[items]).clamp(min=0)
        spare = int(missing.sum()) if self.budget is None else max(0, self.budget - self.spent)
        if int(missing.sum()) <= spare:
            return wanted
        granted = (spare - (missing.cumsum(0) - missing)).clamp(min=0).minimum(missing)
        allowed = self.draws.count[items] + granted
        # A single draw of an item tells nothing of its error.
        return torch.where(allowed == 1, 0, allowed)

    def _extend(self, items: Tensor, wanted: Tensor, draws: Draws | None = None) -> None:
        extended = draws or self.draws

        def after(_: int) -> None:
            if self.watch is not None:
                ahead = int((extended.goal - extended.count).clamp(min=0).sum())
                self._watched(self._estimate, self.spent + ahead)
            if self._path is not None and time.monotonic() - self._saved > _SAVE_EVERY:
                self._save()

        extended.extend(items, wanted, after)

    def _save(self) -> None:
        if self._path is not None and processes.is_main():
            try:
                self.draws.save(self._path, self._tag)
            except DiffusionalError as error:
                # Only a later evaluation that continues from these draws needs the file.
                warnings.warn(f"{error}. The evaluation continues, and its draws are not kept", stacklevel=2)
                self._path = None
        self._saved = time.monotonic()

    def _tell(self, now: Estimate | None, target: float | None) -> None:
        if self._path is not None:
            self._save()
        if self.watch is not None:
            drawn = self.draws.evaluations
            factor = 1.0 if now is None or target is None else max(1.0, (now.error / target) ** 2)
            self._watched(now, self.spent - drawn + math.ceil(drawn * factor))

    def _watched(self, now: Estimate | None, expected: int) -> None:
        assert self.watch is not None
        self.watch(Progress(now, self.spent, expected if self.budget is None else min(expected, self.budget)))

    def audit(self, target: float | None) -> list[str]:
        """Sentences on costs that a learned plan doesn't expect, and that matter for `target`, nats."""
        model = self.draws.model
        if not self.draws.plan.learned:
            return [NO_AUDIT]
        count = Audit.size(model)
        if self.budget is not None and self.spent + count > self.budget:
            return [
                f"the budget of {self.budget} evaluations left none for the audit of the levels, which takes {count}"
            ]
        self.audited = Audit.of(self.draws)
        return self.audited.unexpected(0.5 * (target or 0.01 * per_unit("bits/dim", model.space.dimensions)))

    def _vouched(self, seen: Estimate) -> Estimate:
        """Return the estimate, with the plan's expectation in its error if that is more than _SURPRISE times the variance seen."""
        draws = self.draws
        if draws.expected_variance(draws.plan.draw_variance) <= _SURPRISE * seen.error**2:
            return seen
        return draws.cautious(seen, draws.plan.draw_variance)

    def _impossible(self, nelbo: Estimate) -> list[str]:
        """Return the caveat of a negative estimate for discrete data, which is impossible."""
        if self.draws.model.space.levels is None or nelbo.value >= 0:
            return []
        return [
            f"the estimate is {nelbo.value:.4g} nats, but the NELBO of discrete data is at least 0: the draws have missed costs that offset "
            "what the plan subtracts. Learn the plan again, on data like these, or use the sweep"
        ]

    def result(self, caveats: list[str]) -> Evaluation:
        """The books of the draws as they stand."""
        draws = self.draws
        items = draws.visited()
        records, filled = draws.parts(items)
        drawn = {name: draws.spread(values, filled) for name, values in records.costs.items()}
        both = draws.spread(records.total, filled)
        zero, spent = torch.zeros(len(items), dtype=torch.float64), self.spent
        prior, extra = draws.prior, draws.extra
        base = {"reconstruction": draws.base[:, 0], "kl": draws.base[:, 1:].sum(1), "prior": prior, **extra}
        base |= {name: torch.zeros_like(prior) for name in drawn if name not in base}
        terms = {name: draws.survey(known, *drawn.get(name, (zero, zero)), spent) for name, known in base.items()}
        nelbo = draws.survey(sum(base.values(), torch.zeros_like(prior)), *both, spent)
        by_cell = [
            draws.spread(torch.where(records.cell == c, records.costs["kl"], 0.0), filled)
            for c in range(1, draws.plan.cells + 1)
        ]
        levels = [draws.survey(draws.base[:, c + 1], *part, 0) for c, part in enumerate(by_cell)]
        freedom = draws.freedom()
        caveats = [*caveats, *few_draws(freedom, nelbo.error), *self._impossible(nelbo)]
        if draws.plan.learned:
            nelbo = self._vouched(nelbo)
        scores = {name: known[items] + drawn.get(name, (zero, zero))[0] for name, known in base.items()}
        plan = draws.plan
        about: dict[str, Any] = self._about | {
            "method": "plan",
            "seed": draws.seed,
            "plan_sha256": plan.sha256(),
            "plan": plan.provenance,
            "visits": [int(draws.count.min()), int(draws.count.max())],
            "evaluations": {"pilot": self.pilot, "audit": self._audits, "draws": draws.evaluations},
        }
        return Evaluation(
            nelbo=nelbo,
            terms=terms,
            per_item={
                "item": items,
                "nelbo": sum(scores.values(), zero),
                **scores,
                "error": draws.item_errors(),
                "draws": draws.count[items],
            },
            levels_kl=torch.tensor([level.value for level in levels], dtype=torch.float64),
            levels_error=torch.tensor([level.error for level in levels], dtype=torch.float64),
            level_edges=plan.edges,
            gamma_edges=gamma_at(draws.model, plan.edges),
            dimensions=draws.model.space.dimensions,
            provenance=about,
            freedom=freedom,
            caveats=tuple(caveats),
        )
