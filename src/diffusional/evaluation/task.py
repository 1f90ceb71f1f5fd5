"""An evaluation under way: its rounds of draws, the rule that stops them, the draws kept on disk, and the record of the result.

The stopping rule checks the error after each round. The size of a round depends on the error of the round before, so that there are few
checks. Their effect on the estimate and its interval is measured in benchmarks/calibration.py.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.audit import Audit
from diffusional.evaluation.averages import EACH_ITS_OWN, few_draws
from diffusional.evaluation.itemised import itemised
from diffusional.evaluation.provenance import provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.strata import FIRST_OF_BAND, grown
from diffusional.evaluation.target import Target
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.ledger import Estimate, per_unit

# The first round: this many items, if there are as many, and draws of each.
_FIRST_ITEMS, _FIRST_DRAWS = 256, 2
# If there are few items, each has more draws, so that there are about this many degrees of freedom.
_FREEDOM = 60
# The plan's expectation is included in the error if it is more than this many times the variance seen.
_SURPRISE = 2.0
# The number of draws from which on an item's own error is used.
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
    """The progress of an evaluation.

    Attributes:
        estimate: the estimate so far; None before the first round ends.
        evaluations: the number of network evaluations so far.
        expected: their expected total; in the audit, the total at the end of the audit.
        stage: "pilot", "audit" or "draws".
    """

    estimate: Estimate | None
    evaluations: int
    expected: int
    stage: str = "draws"


Watch = Callable[[Progress], None]


@dataclass
class Task:
    """An evaluation under way, whose draws increase until a target or a limit is reached."""

    draws: VisitRecords
    pilot: int
    max_evaluations: int | None
    records: str | Path | None = None
    watch: Watch | None = None
    audited: Audit | None = None
    # How long the pilot, the audit and the draws took.
    seconds: dict[str, float] = field(default_factory=lambda: {"pilot": 0.0, "audit": 0.0, "draws": 0.0})

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
            # In the order of visits, and within max_evaluations, which may be less than that of the interrupted evaluation.
            unfinished = self._order[(self.draws.goal > self.draws.count)[self._order]]
            allowed = self._afford(unfinished, self.draws.goal[unfinished])
            # A single draw of an item does not show its error, so an item that was interrupted after one gets another.
            allowed = torch.where(self.draws.count[unfinished] == 1, allowed.clamp(min=2), allowed)
            self.draws.goal[unfinished] = allowed
            self._extend(unfinished, allowed)

    @property
    def spent(self) -> int:
        """Number of network evaluations so far, including the pilot and the audit."""
        return self.draws.evaluations + self.pilot + self._audits

    @property
    def _order(self) -> Tensor:
        """All items in the order of visits: extreme items first if `max_evaluations` may end before all are visited."""
        return self.draws.order if self.max_evaluations is None else self.draws.strata.order

    @property
    def _audits(self) -> int:
        return 0 if self.audited is None else len(self.audited)

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
            enough = self.to_error(
                [draws], self._cautious, draws.values, target.error * nats, first, draws.plan.freedom_of_a_draw
            )
        else:
            assert target.item_error is not None
            enough = self._to_item_error(target.item_error * nats)
        of_items = target.item_error is not None
        result = self.result([*doubts, EACH_ITS_OWN] if of_items else doubts)
        if self._path is not None:
            self._save()
            if self._temporary and enough and ranks.is_main():
                self._path.unlink(missing_ok=True)
        # Caveats about the mean do not concern a target for every item.
        return replace(result, reached=enough and not (doubts if of_items else result.caveats))

    def to_error(
        self,
        every: list[VisitRecords],
        estimate: Callable[[], Estimate],
        values: Callable[[], tuple[Tensor, Tensor]],
        target: float,
        items: int = _FIRST_ITEMS,
        of_a_draw: float = math.inf,
    ) -> bool:
        """Extend all of `every` equally, in rounds, until the estimate's error is at most `target` (nats), or
        `max_evaluations` are spent.

        `values` returns the draws (n, J) of the visited items from which the estimate is made, and a mask of those that exist. `of_a_draw` is
        the number of degrees of freedom that each is expected to add to their variance (`Plan.freedom_of_a_draw`).
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
            now = replace(now, error=float(ranks.agreed(torch.tensor(now.error, dtype=torch.float64))))
            self._estimate = now
            self._tell(now, target)
            visited, (mean, variance) = draws.visited(), draws.spread(*values())
            unseen = ranks.agreed(strata.unseen(visited, variance, mean, draws.count[visited]))
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
                factor = ranks.agreed(
                    strata.growth(visited, variance, mean, draws.count[visited], (now.error / target) ** 2, least)
                )
                trusted = draws.trusted(of_a_draw)
                if trusted < 1:
                    # No further than to where the error of the draws themselves is trusted.
                    factor = factor.clamp(max=1 / trusted)
            # Strata that are visited as a whole get more draws per item, the others more items.
            whole = picked == strata.sizes
            each = torch.where(whole, grown(each, 1.02 * factor), each)
            picked = torch.minimum(grown(picked, 1.05 * factor), strata.sizes)

    def _some_visited(self) -> None:
        """Raise DiffusionalError if `max_evaluations` was too low for any estimate."""
        items, strata = self.draws.visited(), self.draws.strata
        if len(items) < min(2, len(self.draws.data)) or not strata.enough(items):
            extreme = int(strata.sizes[1:].minimum(torch.tensor(FIRST_OF_BAND)).sum())
            needed = extreme + int(strata.sizes[0].clamp(max=2))
            raise DiffusionalError(
                f"max_evaluations={self.max_evaluations} is too small: {self.spent} were spent, including the pilot and the audit, but two draws of "
                f"{needed} items are needed, of which {extreme} have extreme expected costs. Raise max_evaluations, pass a plan, or "
                "leave out the audit"
            )

    def _cautious(self) -> Estimate:
        """Return the NELBO with the error for the stopping rule: the one seen or, if it is larger, its blend with the plan's."""
        draws = self.draws
        if not draws.plan.learned:
            return draws.nelbo()
        plan = draws.plan
        return draws.cautious(draws.nelbo(), plan.draw_variance, plan.pilot_freedom, plan.freedom_of_a_draw)

    def _to_item_error(self, target: float) -> bool:
        """Draw from each item until its own error is at most `target`. The draws of an item depend only on the item."""
        draws = self.draws
        left = self._order
        each = _ITEM_DRAWS
        while len(left):
            wanted = torch.full((len(left),), each)
            allowed = self._afford(left, wanted)
            self._extend(left, allowed)
            self._some_visited()
            errors = torch.full((len(draws.data),), math.inf, dtype=torch.float64)
            errors[draws.visited()] = ranks.agreed(draws.item_errors())
            if bool((allowed < wanted).any()):
                return bool((errors <= target).all())
            left = left[errors[left] > target]
            each = math.ceil(1.4 * each)
            self._tell(None, None)
        return True

    def _afford(self, items: Tensor, wanted: Tensor) -> Tensor:
        """Return the number of draws (n,) of items, at most `wanted`, that `max_evaluations` allows: the first items get all, the last none."""
        missing = (wanted - self.draws.count[items]).clamp(min=0)
        spare = int(missing.sum()) if self.max_evaluations is None else max(0, self.max_evaluations - self.spent)
        if int(missing.sum()) <= spare:
            return wanted
        granted = (spare - (missing.cumsum(0) - missing)).clamp(min=0).minimum(missing)
        allowed = self.draws.count[items] + granted
        # A single draw of an item does not show its error.
        return torch.where(allowed == 1, 0, allowed)

    def _extend(self, items: Tensor, wanted: Tensor, draws: VisitRecords | None = None) -> None:
        extended = draws or self.draws

        def after(_: int) -> None:
            if self.watch is not None:
                ahead = int((extended.goal - extended.count).clamp(min=0).sum())
                self._watched(self._estimate, self.spent + ahead)
            if self._path is not None and time.monotonic() - self._saved > _SAVE_EVERY:
                self._save()

        start = time.monotonic()
        extended.extend(items, wanted, after)
        self.seconds["draws"] += time.monotonic() - start

    def _save(self) -> None:
        if self._path is not None and ranks.is_main():
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
        self.watch(
            Progress(now, self.spent, expected if self.max_evaluations is None else min(expected, self.max_evaluations))
        )

    def audit(self, target: float | None, paired: bool = False) -> list[str]:
        """Return a sentence for each cost that a learned plan does not expect, and that matters for `target`, nats. If the audit is `paired`
        with another model's, no level is left out.
        """
        model, plan = self.draws.model, self.draws.plan
        if not plan.learned:
            return [NO_AUDIT]
        matters = 0.5 * (target or 0.01 * per_unit("bits/dim", model.space.dimensions))
        start, data = time.monotonic(), ("data_sha256", "condition_sha256")
        # A plan that was given may be from a pilot of this model in another state.
        same = self.pilot > 0 and all(plan.provenance.get(key) == self._about.get(key) for key in data)
        audit = Audit.planned(self.draws, None if paired else matters, same)
        count, spent = len(audit), self.spent
        if self.max_evaluations is not None and spent + count > self.max_evaluations:
            return [
                f"max_evaluations={self.max_evaluations} left none for the audit of the levels, which takes {count}"
            ]

        def after(done: int) -> None:
            if self.watch is not None:
                self.watch(Progress(None, spent + done, spent + count, "audit"))

        after(0)
        self.audited = audit.run(after)
        self.seconds["audit"] = time.monotonic() - start
        return self.audited.unexpected(matters)

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
            "the controls of the plan. Learn the plan again, on data like these, or use the sweep"
        ]

    def result(self, caveats: list[str]) -> Evaluation:
        """Return the evaluation from the draws so far."""
        draws = self.draws
        items = draws.visited()
        records, filled = draws.parts(items)
        both = draws.spread(records.total, filled)
        zero, spent = torch.zeros(len(items), dtype=torch.float64), self.spent
        parts = itemised(draws, records, filled)
        base, costs = parts.base, parts.costs
        drawn = {name: draws.spread(values, filled) for name, values in costs.items()}
        base |= {name: torch.zeros_like(draws.prior) for name in drawn if name not in base}
        terms = {name: draws.survey(known, *drawn.get(name, (zero, zero)), spent) for name, known in base.items()}
        nelbo = draws.survey(sum(base.values(), torch.zeros_like(draws.prior)), *both, spent)
        levels = [draws.survey(known, *draws.spread(values, filled), 0) for known, values in parts.levels]
        freedom = draws.freedom()
        caveats = [*caveats, *few_draws(freedom, nelbo.error), *self._impossible(nelbo)]
        if draws.plan.learned:
            nelbo = self._vouched(nelbo)
        scores = {name: known[items] + drawn.get(name, (zero, zero))[0] for name, known in base.items()}
        plan = draws.plan
        about: dict[str, Any] = self._about | {
            "method": "plan",
            "seed": draws.seed,
            **({"deterministic": True} if draws.deterministic else {}),
            "plan_sha256": plan.sha256(),
            "plan": plan.provenance,
            "visits": [int(draws.count.min()), int(draws.count.max())],
            "evaluations": {"pilot": self.pilot, "audit": self._audits, "draws": draws.evaluations},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        if self.audited is not None:
            about["audit"] = self.audited.to_json()
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
            level_edges=parts.edges,
            gamma_edges=parts.gamma,
            blocks=parts.blocks,
            dimensions=draws.model.space.dimensions,
            provenance=about,
            freedom=freedom,
            caveats=tuple(caveats),
        )
