"""The audit: a search for costs that a learned plan does not expect.

Every level (at most 2,048, evenly spread) is visited once, or more often if there are fewer than 256 levels, at random items. This takes
about as many evaluations as the full sweep of one image. The residual of each cost is compared with the plan's expectation at that level, so
that a large, frequent cost that the pilot has not met is found. The audit examines levels, so it visits ordinary items only: items with
extreme expected costs are visited in strata of their own (strata.py), and the plan's expectation does not apply to them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.conditions import moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.visits import LevelVisits, network_rows
from diffusional.models.chain import Chain

# The largest and smallest number of visits, and the number of s_c from which on a residual is unexpected.
_MOST, _LEAST, _OUT = 2048, 256, 12.0


@dataclass(frozen=True, eq=False)
class Audit:
    """Results of A visits, spread evenly over the levels.

    Attributes:
        plan: the plan whose expectations are checked.
        cell, level: (A,) the plan's cell and the level of each visit.
        left: (A,) cost − g, nats.
        each: the weight of a visit in the sum over all levels, or in the integral over u.
    """

    plan: Plan
    cell: Tensor
    level: Tensor
    left: Tensor
    each: float

    @staticmethod
    def size(model: Chain) -> int:
        """Return the number of network evaluations of an audit."""
        levels = model.timesteps or _MOST
        return min(levels * max(1, -(-_LEAST // levels)), _MOST)

    @classmethod
    def of(cls, draws: VisitRecords, after: Callable[[int], None] | None = None) -> "Audit":
        """Audit the plan of `draws`, for its model and data. `after` is called with the number of visits made so far. Raises
        DiffusionalError for a cost that is not finite.
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
        c = moved(rows_of(draws.condition, item), draws.device)
        with torch.inference_mode():
            visits = LevelVisits(cell, level, torch.ones(count, dtype=torch.float64))
            parts: list[Tensor] = []
            for rows in torch.arange(count).split(network_rows(model)):
                x, its = draws.data[item[rows]].to(draws.device), draws.context_of(item[rows])
                parts.append(plan.residuals(model, x, visits[rows], noise[rows], rows_of(c, rows), its).cpu())
                if after is not None:
                    after(sum(map(len, parts)))
            left = torch.cat(parts)
        if not bool(torch.isfinite(left).all()):
            at = int((~torch.isfinite(left)).nonzero()[0])
            raise DiffusionalError(
                f"item {int(item[at])} has a cost that is not finite at level {level[at].item():g}; nothing was left out"
            )
        return cls(plan, cell, level, left, (1 if model.timesteps is None else model.timesteps) / count)

    def unexpected(self, matters: float) -> list[str]:
        """Return a sentence for each of the largest costs that the plan does not expect, if they change the sum by more than `matters`, nats."""
        expected = self.plan.scale[self.cell]
        share = self.each * self.left
        found = ((self.left.abs() > _OUT * expected) & (share.abs() > matters)).nonzero().squeeze(1)
        # The worst visit of each level, and of these the worst three.
        worst: dict[float, int] = {}
        for i in found[share[found].abs().argsort(descending=True)].tolist():
            worst.setdefault(self.level[i].item(), i)
        return [
            f"level {self.level[i].item():g} cost {abs(float(self.left[i])):.3g} nats {'more' if self.left[i] > 0 else 'less'} than the "
            f"plan expects there (± {float(expected[i]):.2g}): learn the plan again, on data like these, or sweep"
            for i in list(worst.values())[:3]
        ]

    def paired_variance(self, other: "Audit") -> float:
        """Return what one visit of two models adds to the variance of their difference, nats²: ∫ d²/π over the levels, where d is the difference
        of the two audits, which visited the same levels. It is 0 if the visits of their plans differ.
        """
        plan, its = self.plan, other.plan
        if not (torch.equal(plan.edges, its.edges) and torch.equal(plan.mass, its.mass)):
            return 0.0
        # 1/π of a level: n_c/π_c, or du/π_c.
        inverse = plan.width[self.cell] / plan.mass[self.cell]
        return self.each * float((inverse * (self.left - other.left).square()).sum())
