"""The audit: a search for costs that a learned plan does not expect.

Every level (at most 2,048, evenly spread) is visited once, or more often if there are fewer than 256 levels, at random items. The residual of
each cost is compared with the plan's expectation at that level, so that a large, frequent cost that the pilot has not met is found. The
audit examines levels, so it visits ordinary items only: items with extreme expected costs are visited in strata of their own
(strata.py), and the plan's expectation does not apply to them.

Two kinds of visits are left out, since the network could not change their outcome:

    bounded   If the chain bounds the cost of a level, 0 ≤ cost ≤ B (`Chain.cost_bound`), the residual of a visit lies between −g and B − g,
              and g needs no network. If neither end would be listed, nor would the residual.
    met       If the evaluation began with a pilot on its own items, and this visited a level at least as often as the audit would, the
              plan's expectation includes what is found there.

All others are visited: about as many evaluations as the full sweep of one image, or fewer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffusional.conditions import moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.visits import LevelVisits, network_rows, visit_costs
from diffusional.models.chain import Chain

# The largest and smallest number of visits, and the number of s_c from which on a residual is unexpected.
_MOST, _LEAST, _OUT = 2048, 256, 12.0


@dataclass(frozen=True, eq=False)
class Audit:
    """An audit of a plan, before and after its visits.

    Attributes:
        draws: the records of the evaluation, whose plan is audited.
        visits: cells and levels (A,) of the visits to make, spread evenly over the levels.
        item: (A,) the items that are visited.
        noise: (A, *visit_shape).
        subtracted: (A,) g of each visit, nats.
        each: the weight of a visit in the sum over all levels, or in the integral over u.
        bounded, met: the numbers of visits that are left out because of a bound of their cost, and of the pilot's visits.
        most: the largest possible sum of the costs of the visits that a bound leaves out, nats.
        left: (A,) cost − g, nats; none before `run`.
    """

    draws: VisitRecords
    visits: LevelVisits
    item: Tensor
    noise: Tensor
    subtracted: Tensor
    each: float
    bounded: int = 0
    met: int = 0
    most: float = 0.0
    left: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __len__(self) -> int:
        """Return the number of network evaluations."""
        return len(self.item)

    @staticmethod
    def size(model: Chain) -> int:
        """Return the number of network evaluations of an audit of which nothing is left out."""
        levels = model.timesteps or _MOST
        return min(levels * max(1, -(-_LEAST // levels)), _MOST)

    @classmethod
    def planned(cls, draws: VisitRecords, matters: float | None = None, same_items: bool = False) -> "Audit":
        """Return the audit of the plan of `draws`, for its model and data, before its visits.

        With `matters`, a sum in nats, visits are left out that could not find a cost that changes the sum by more; with `same_items`, for a plan
        whose pilot visited this model on these items, those of levels that the pilot visited as often.
        """
        model, plan, count = draws.model, draws.plan, cls.size(draws.model)
        # Neither the visits nor the items depend on the order of the data.
        ordinary = draws.order[draws.strata.of[draws.order] == 0]
        ordinary = ordinary if len(ordinary) else draws.order
        generator = torch.Generator().manual_seed(int.from_bytes(draws.keys[int(ordinary[0])][:4], "little"))
        middle = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        level = middle if model.timesteps is None else (middle * model.timesteps).long() + 1
        if model.timesteps is not None and count % model.timesteps == 0:
            level = torch.arange(count) % model.timesteps + 1
        cell = torch.searchsorted(plan.edges, level, right=True).clamp(1, plan.cells)
        item = ordinary[torch.randint(len(ordinary), (count,), generator=generator)]
        noise = torch.randn(count, *model.visit_shape, generator=generator).to(draws.device, draws.data.dtype)
        visits = LevelVisits(cell, level, torch.ones(count, dtype=torch.float64))
        subtracted = torch.zeros(count, dtype=torch.float64)
        with torch.inference_mode():
            for rows in torch.arange(count).split(network_rows(model)):
                x, its = draws.data[item[rows]].to(draws.device), draws.context_of(item[rows])
                subtracted[rows] = plan.subtracted(model, x, visits[rows], noise[rows], its).cpu()
        every = cls(draws, visits, item, noise, subtracted, (1 if model.timesteps is None else model.timesteps) / count)
        if matters is None:
            return every
        bound = model.cost_bound(level)
        bounded = torch.zeros(count, dtype=torch.bool)
        if bound is not None:
            bound = bound.cpu().double()
            bounded = ~(every._unexpected(-subtracted, matters) | every._unexpected(bound - subtracted, matters))
        met = torch.zeros_like(bounded)
        if same_items and model.timesteps is not None:
            often = torch.bincount(plan.met.level[plan.met.cell > 0], minlength=model.timesteps + 1)
            met = ~bounded & (often[level] >= -(-count // model.timesteps))
        kept = (~bounded & ~met).nonzero().squeeze(1)
        most = 0.0 if bound is None else every.each * float(bound[bounded].sum())
        return replace(
            every,
            visits=visits[kept],
            item=item[kept],
            noise=noise[kept],
            subtracted=subtracted[kept],
            bounded=int(bounded.sum()),
            met=int(met.sum()),
            most=most,
        )

    def run(self, after: Callable[[int], None] | None = None) -> "Audit":
        """Make the visits. `after` is called with the number of visits made so far. Raises DiffusionalError for a cost that is not finite."""
        draws, item, level, parts = self.draws, self.item, self.visits.level, list[Tensor]()
        c = moved(rows_of(draws.condition, item), draws.device)
        with torch.inference_mode():
            for rows in torch.arange(len(self)).split(network_rows(draws.model)):
                x = draws.data[item[rows]].to(draws.device)
                costs = visit_costs(draws.model, x, self.visits[rows], self.noise[rows], rows_of(c, rows))
                parts.append(costs.cpu() - self.subtracted[rows])
                if after is not None:
                    after(sum(map(len, parts)))
        left = torch.cat([self.left[:0], *parts])
        if not bool(torch.isfinite(left).all()):
            at = int((~torch.isfinite(left)).nonzero()[0])
            raise DiffusionalError(
                f"item {int(item[at])} has a cost that is not finite at level {level[at].item():g}; nothing was left out"
            )
        return replace(self, left=left)

    def to_json(self) -> dict[str, int | float]:
        """Return the numbers of visits made and left out, and the largest possible sum of the costs of those with a bound, nats."""
        return {
            "visits": len(self),
            "bounded": self.bounded,
            "met_by_pilot": self.met,
            "bounded_most_nats": self.most,
        }

    def _unexpected(self, left: Tensor, matters: float) -> Tensor:
        """Return whether residuals `left` (A,) of the visits would be unexpected, and change the sum by more than `matters`, nats."""
        return (left.abs() > _OUT * self.draws.plan.scale[self.visits.cell]) & (self.each * left.abs() > matters)

    def unexpected(self, matters: float) -> list[str]:
        """Return a sentence for each of the largest costs that the plan does not expect, if they change the sum by more than `matters`, nats."""
        expected, level = self.draws.plan.scale[self.visits.cell], self.visits.level
        found = self._unexpected(self.left, matters).nonzero().squeeze(1)
        # The worst visit of each level, and of these the worst three.
        worst: dict[float, int] = {}
        for i in found[self.left[found].abs().argsort(descending=True)].tolist():
            worst.setdefault(level[i].item(), i)
        return [
            f"level {level[i].item():g} cost {abs(float(self.left[i])):.3g} nats {'more' if self.left[i] > 0 else 'less'} than the "
            f"plan expects there (± {float(expected[i]):.2g}): learn the plan again, on data like these, or sweep"
            for i in list(worst.values())[:3]
        ]

    def paired_variance(self, other: "Audit") -> float:
        """Return what one visit of two models adds to the variance of their difference, nats²: ∫ d²/π over the levels, where d is the difference
        of the two audits, which visited the same levels. It is 0 if the visits of their plans differ.
        """
        plan, its = self.draws.plan, other.draws.plan
        if not (torch.equal(plan.edges, its.edges) and torch.equal(plan.mass, its.mass)):
            return 0.0
        # 1/π of a level: n_c/π_c, or du/π_c.
        inverse = (plan.width / plan.mass)[self.visits.cell]
        return self.each * float((inverse * (self.left - other.left).square()).sum())
