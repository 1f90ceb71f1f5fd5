"""Costs under several conditions at common noise: the same levels and the same ε for every condition of an item.

Differences between conditions have far less noise than the costs themselves. The noise of an item depends on the item, the seed and the
draw, not on its condition, so that conditions can be added or dropped without changing the draws of the others.

    mass_c ∝ n_c √(E d²),

with d the difference of two conditions' costs at a level of cell c and n_c its number of levels, is the plan of least variance for
differences. `difference_plan` estimates it in a pilot, and mixes in a part of the uniform plan.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.evaluation import ranks
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.provenance import as_seen
from diffusional.evaluation.shares import shared
from diffusional.evaluation.visits import LevelVisits, slopes, visit_parts
from diffusional.forward import diffuse
from diffusional.ledger import sharing, total_of
from diffusional.models.base import device_of
from diffusional.models.chain import Chain
from diffusional.shapes import align

Place = Callable[[Tensor, Tensor, Tensor], Tensor]

# Cells of a plan for differences, visits of its pilot, and the part of the uniform plan that is mixed in.
_CELLS, _PILOT, _UNIFORM = 16, 512, 0.2
# Visits of one block.
_BLOCK = 2048


class CommonNoise:
    """Visits of levels whose noise depends on the item and the draw only.

    Args:
        chain, plan: whose levels are visited, and with which probabilities.
        data: items (N, *space.shape), encoded.
        seed: of the noise.
        purpose: noises of different purposes are independent.
        place: returns the numbers v (V,) in [0, 1) that choose the levels of visits (`Plan.at`), given their items, draws and independent
            uniform numbers, each (V,). By default v are the uniform numbers.
    """

    def __init__(
        self, chain: Chain, plan: Plan, data: Tensor, seed: int, purpose: str, place: Place | None = None
    ) -> None:
        plan.check(chain)
        self.chain, self.plan, self.data, self.purpose, self.place = chain, plan, data, purpose.encode(), place
        self.keys = item_keys(as_seen(chain.space, data), seed)
        self.device = device_of(chain.whole(), data)
        self.evaluations = 0

    @torch.inference_mode()
    def known(self) -> Tensor:
        """Return the part of each item's cost that no visit estimates (N,): the plan's base, KL_T and further exact terms."""
        x = self.data.to(self.device)
        base = self.plan.base(self.chain, x).sum(1) + self.chain.prior(x).cpu()
        return sum((term.cpu() for term in self.chain.extra(x).values()), base)

    @torch.inference_mode()
    def costs(self, item: Tensor, draw: Tensor, row: Tensor, condition: Callable[[Tensor], Condition | None]) -> Tensor:
        """Return weighted residuals (R,): the mean of an item's over draws, plus what is `known`, estimates its cost.

        Args:
            item, draw: (P,) the visits, each of an item and a draw.
            row: (R,) the visit of each cost, in ascending order: several costs at one visit have different conditions.
            condition: returns the conditions of some of the R costs (an index), or None.

        Each cost takes one network evaluation, of this process: callers share the items (`shares.shared`).
        """
        out = torch.zeros(len(row), dtype=torch.float64)
        for start in range(0, len(item), _BLOCK):
            some = slice(start, start + _BLOCK)
            low, high = torch.searchsorted(row, torch.tensor([start, start + _BLOCK])).tolist()
            if high > low:
                which = torch.arange(low, high)
                out[low:high] = self._block(item[some], draw[some], row[low:high] - start, condition(which))
        self.evaluations += len(row)
        return out

    def all_evaluations(self) -> int:
        """Return the number of network evaluations of all processes so far. All of them must call it."""
        return int(ranks.collect(torch.tensor([self.evaluations])))

    def visits(self, item: Tensor, draw: Tensor) -> LevelVisits:
        """Return the levels of the visits (P,)."""
        return self._drawn(item, draw)[0]

    def _drawn(self, item: Tensor, draw: Tensor) -> tuple[LevelVisits, list[np.random.Generator]]:
        if self.place is None:
            return self.plan.draw(self.keys, item, draw, self.purpose)
        streams = [stream(self.keys[i], j, self.purpose) for i, j in zip(item.tolist(), draw.tolist(), strict=True)]
        random = torch.tensor([g.random() for g in streams], dtype=torch.float64)
        return self.plan.at(self.place(item, draw, random)), streams

    @torch.inference_mode()
    def position_gains(self, item: Tensor, draw: Tensor, condition: Condition) -> Tensor:
        """Return the weighted costs without the condition less those with it, by position (P, *dims); 0 at z_1.

        Each visit takes two network evaluations. Raises DiffusionalError for models whose costs are not divided among positions.
        """
        chain: Any = self.chain
        both = chain.two_predictions().both
        out = torch.zeros(len(item), *chain.space.shape, dtype=torch.float64)
        for some in torch.arange(len(item)).split(_BLOCK):
            visits, streams = self._drawn(item[some], draw[some])
            noise = normal(streams, chain.visit_shape).to(self.device, self.data.dtype)
            x = self.data[item[some]].to(self.device)
            gamma = chain.noisy_gamma(visits.level.to(self.device))
            c = moved(rows_of(condition, item[some]), self.device)
            given, without = both(diffuse(x, gamma, noise), gamma, c)
            gain = without.squared_errors(x, noise) - given.squared_errors(x, noise)
            slope = slopes(chain, visits.level)[1].detach().cpu() * visits.weight
            slope = torch.where(visits.cell == 0, 0.0, slope)
            out[some] = align(slope, gain.cpu()) * gain.cpu()
        self.evaluations += 2 * len(item)
        return out

    def _block(self, item: Tensor, draw: Tensor, row: Tensor, condition: Condition | None) -> Tensor:
        chain, plan = self.chain, self.plan
        visits, streams = self._drawn(item, draw)
        noise = normal(streams, chain.visit_shape).to(self.device, self.data.dtype)
        x = self.data[item].to(self.device)
        less = plan.subtracted(chain, x, visits, noise).cpu()
        at = row.to(self.device)
        parts = visit_parts(chain, x[at], visits[row], noise[at], moved(condition, self.device))
        left = visits.weight[row] * (total_of(parts) - less[row])
        if not chain.decoder_uses_network:
            other = normal(streams, chain.visit_shape).to(self.device, self.data.dtype)
            left = left + plan.decoder_residuals(chain, x, other).cpu()[row]
        return left


@torch.inference_mode()
def difference_plan(
    chain: Chain,
    data: Tensor,
    one: Callable[[Tensor], Condition | None],
    other: Callable[[Tensor], Condition | None],
    seed: int = 0,
    evaluations: int = _PILOT,
) -> Plan:
    """Learn the plan for differences of costs under two conditions from a pilot of `evaluations` visits, at two network evaluations each.

    Args:
        data: items (N, *space.shape), encoded, on which the pilot is run.
        one, other: return the two conditions of items (n,), or None.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
    >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
    >>> x, c = world.sample_labelled(50, torch.Generator().manual_seed(0))
    >>> plan = difference_plan(model, x, lambda rows: c[rows], lambda rows: None)
    >>> u = plan.edges[:-1] + 0.5 * plan.edges.diff()
    >>> bool(0.2 < u[plan.mass[1:].argmax()] < 0.8)                                     # labels matter at medium noise
    True
    """
    plan = Plan.uniform(chain, _CELLS)
    noise = CommonNoise(chain, plan, data, seed, "difference pilot")
    generator = np.random.default_rng(seed)
    item = torch.from_numpy(generator.integers(len(data), size=evaluations))
    draw = torch.arange(evaluations)

    def both(draws: Tensor) -> dict[str, Tensor]:
        rows, every = item[draws], torch.arange(len(draws))
        costs = [noise.costs(rows, draws, every, lambda which, c=c: c(rows[which])) for c in (one, other)]
        return {"first": costs[0], "second": costs[1]}

    found = shared(draw, {"first": (), "second": ()}, both)
    visits = noise.visits(item, draw)
    apart = ((found["first"] - found["second"]) / visits.weight).square()
    return _for_differences(plan, visits, apart, 2 * evaluations)


def _for_differences(plan: Plan, visits: LevelVisits, squares: Tensor, evaluations: int) -> Plan:
    """Return a plan with the masses of least variance for differences whose squares (V,) were met at visits."""
    cells = plan.cells + 1
    count = torch.bincount(visits.cell, minlength=cells)
    total = torch.zeros(cells, dtype=torch.float64).index_add_(0, visits.cell, squares)
    # A cell's mean square is pulled towards the mean of all by one visit.
    spread = ((total + squares.mean()) / (count + 1)).sqrt()
    wanted = torch.where(plan.mass > 0, plan.width * spread, 0.0)
    if float(wanted.sum()) > 0:
        mass = (1 - _UNIFORM) * wanted / wanted.sum() + _UNIFORM * plan.mass
        plan = replace(plan, mass=mass / mass.sum())
    about: dict[str, Any] = {"method": "differences", "evaluations": evaluations, "sharing": sharing(squares)}
    return replace(plan, provenance=plan.provenance | about)
