"""The variance of one network evaluation under several estimators of a model's bound, all from the same draws.

Draws of (t, ε) are made under a plan, whose probabilities q of the levels are known. With w = 1/q of a draw and c its cost KL_t(x, ε), the
second moment of one evaluation under other probabilities q' is an average over these draws,

    E_q' (c/q')² = E_q [w c²/q'],

so that the variance within an item, which is this minus the square of the item's bound, is known from a few draws of each item for every
estimator, also for those that would need millions of evaluations to show it:

    uniform t                    q' = 1/L
    low-discrepancy t            VDM's: uniform t, one in each of n equal strata of the levels, assigned to the items at random. The mean of
                                 the costs over the items at each level, c̄_t, has no part in its variance: E_q [w L (c − c̄_t)²] less
                                 the variance of the bounds over the items (a Latin hypercube's, Stein 1987). c̄_t is interpolated
                                 between the cells of the plan; an inaccurate c̄_t makes the prediction too large, never too small
    importance, from γ           q' ∝ |γ_{t+1} − γ_t|: no pilot, no network
    importance, from a pilot     q' ∝ the root mean square of the costs in each cell, from a pilot, without controls and constants
    the plan                     the spread of an item's draws

The full sweep visits every level of an item once: its variance Σ_t Var c_t is E_q [½ w (c − c')²], c' the cost at the same level with
other noise. The bounds of two items differ, so that a sweep of n of the N items has an error from the choice of items too.

Of a model whose decoder needs the network, the estimators with a plan visit the reconstruction too; the others leave it out.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.evaluation import Plan
from diffusional.evaluation.noise import normal
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.visits import LevelVisits, network_rows, visit_features, visit_parts
from diffusional.ledger import per_unit
from diffusional.models.chain import Chain

PLAN, PILOT, GAMMA, DISCREPANCY, UNIFORM, SWEEP = (
    "the plan",
    "importance, from a pilot",
    "importance, from γ",
    "low-discrepancy t",
    "uniform t",
    "full sweep",
)


@dataclass(frozen=True)
class Visited:
    """Draws of n items, J each, under a plan.

    Attributes:
        level, cell, weight: (n, J) t, the cell of the plan, and 1/q.
        cost, again: (n, J) the cost in nats, and that with other noise at the same level (NaN where it was not made).
        weighted: (n, J) what the plan's estimate averages: the weighted residuals, with those of the decoder.
        known: (n,) what the plan's estimate adds to their mean.
    """

    level: Tensor
    cell: Tensor
    weight: Tensor
    cost: Tensor
    again: Tensor
    weighted: Tensor
    known: Tensor


@torch.inference_mode()
def visited(model: Chain, plan: Plan, x: Tensor, each: int, pairs: int, seed: int) -> Visited:
    """Visit every item of x (n, *dims) `each` times under the plan, the first `pairs` times with two noises."""
    base = VisitRecords(model, plan, x, seed)
    assert base.seen is None  # of VAEs only
    columns = []
    for j in range(each):
        visits, streams = plan.draw(base.keys, torch.arange(len(x)), torch.full((len(x),), j))
        noise = normal(streams, model.visit_shape).to(x.dtype)
        cost, subtracted = _costs(model, plan, x, visits, noise)
        weighted = visits.weight * (cost - subtracted)
        if not model.decoder_uses_network:
            weighted = weighted + plan.decoder_residuals(model, x, normal(streams, model.visit_shape).to(x.dtype))
        again = torch.full_like(cost, math.nan)
        if j < pairs:
            again = _costs(model, plan, x, visits, normal(streams, model.visit_shape).to(x.dtype))[0]
        # KL_t's part without noise, which a visit's cost leaves out.
        constant = torch.where(visits.cell == 0, 0.0, model.level_constants(visits.level).double())
        columns.append((visits.level, visits.cell, visits.weight, cost + constant, again + constant, weighted))
    return Visited(*(torch.stack(values, 1) for values in zip(*columns, strict=True)), base.known())


def _costs(model: Chain, plan: Plan, x: Tensor, visits: LevelVisits, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the costs (n,) and what the plan subtracts from them (n,)."""
    found = []
    for rows in torch.arange(len(x)).split(network_rows(model)):
        parts = visit_parts(model, x[rows], visits[rows], noise[rows], None)
        features = visit_features(model, plan.controls, x[rows], visits[rows], noise[rows])
        found.append((sum(parts.values()), plan._subtracted(visits.cell[rows], *features)))
    return tuple(torch.cat(values) for values in zip(*found, strict=True))


def variances(model: Chain, plan: Plan, bare: Plan, draws: Visited) -> dict[str, Any]:
    """Return the variance of one evaluation of an item by estimator, nats²: the mean over the items and its standard error.

    For the sweep it is that of one sweep of an item. `bare` has the probabilities of `importance, from a pilot`. "items" is the variance of
    the items' bounds.
    """
    levels, kl = model.timesteps, draws.cell > 0
    assert levels is not None
    each, w, c = draws.cost.shape[1], draws.weight, draws.cost
    cost = torch.where(kl, c, 0.0)
    mean, spread = draws.weighted.mean(1), draws.weighted.var(1)
    # The square of an item's bound, without the variance of its estimate; with and without the reconstruction.
    of_kl = (w * cost).mean(1)
    square_of_kl = of_kl.square() - (w * cost).var(1) / each
    total = draws.known + mean
    values = {PLAN: spread}
    other = _probability(bare, draws)
    whole = (w * c).mean(1).square() - (w * c).var(1) / each
    values[PILOT] = (w * c.square() / other).mean(1) - whole
    at = torch.arange(1, levels + 1)
    gamma = model.noisy_gamma(at).detach().double().cpu()
    start = model.end_gammas()[:1].detach().double().cpu()
    step = torch.cat([start, gamma]).diff()
    by_gamma = (step / step.sum())[draws.level - 1]
    values[GAMMA] = (w * cost.square() / by_gamma).mean(1) - square_of_kl
    values[UNIFORM] = (w * cost.square() * levels).mean(1) - square_of_kl
    level_mean = _level_means(plan, draws, levels)[draws.level - 1]
    apart = torch.where(kl, cost - level_mean, 0.0)
    items = total.var() - spread.mean() / each
    values[DISCREPANCY] = (w * levels * apart.square()).mean(1) - items
    both = torch.isfinite(draws.again).all(0)
    difference = torch.where(kl, draws.cost - draws.again, 0.0)[:, both]
    values[SWEEP] = (0.5 * w[:, both] * difference.square()).mean(1)
    found = {
        name: {"variance": float(one.mean()), "error": float(one.std()) / math.sqrt(len(one))}
        for name, one in values.items()
    }
    return found | {"items": float(items), "draws": draws.cost.numel()}


def _probability(plan: Plan, draws: Visited) -> Tensor:
    """Return q (n, J) of the draws under another plan."""
    cell = torch.searchsorted(plan.edges, draws.level, right=True).clamp(1, plan.cells)
    cell = torch.where(draws.cell == 0, 0, cell)
    return (plan.mass / plan.width)[cell]


def _level_means(plan: Plan, draws: Visited, levels: int) -> Tensor:
    """Return the mean cost (L,) of every level: that of each cell, interpolated between the middles of the cells in ln t and ln cost."""
    total, count = (torch.zeros(plan.cells + 1, dtype=torch.float64) for _ in range(2))
    cell = draws.cell.flatten()
    total.index_add_(0, cell, draws.cost.flatten())
    count.index_add_(0, cell, torch.ones(cell.shape, dtype=torch.float64))
    seen = count[1:] > 0
    mean = (total / count.clamp(min=1))[1:][seen].clamp(min=1e-12).log()
    middle = (0.5 * (plan.edges[:-1] + plan.edges[1:] - 1).double())[seen].log()
    at = torch.arange(1, levels + 1).double().log()
    right = torch.searchsorted(middle, at).clamp(1, len(middle) - 1)
    part = ((at - middle[right - 1]) / (middle[right] - middle[right - 1])).clamp(0, 1)
    return (mean[right - 1] + part * (mean[right] - mean[right - 1])).exp()


def evaluations(model: Chain, found: dict[str, Any], items: int, target: float) -> dict[str, dict[str, float]]:
    """Return K, the evaluations per item of a set of `items` for an error of `target` bits/dim, its standard error, and the "evaluations" of
    the whole set, by estimator.

    If each item is evaluated less than once (or swept less than once), n of them are chosen at random, whose choice has an error as well:
    (Var items (1 − n/N) + Var evaluation)/n = target². The plan's residuals differ less, and its own evaluations choose the items otherwise.
    """
    aim = (target * per_unit("bits/dim", model.space.dimensions)) ** 2
    out = {}
    for name, one in found.items():
        if isinstance(one, dict):
            sweeps = (model.timesteps or 0) if name == SWEEP else 1
            scale = sweeps / items / aim
            k = scale * one["variance"]
            some = (found["items"] + one["variance"]) / (aim + found["items"] / items)
            whole = k * items if k >= sweeps else sweeps * min(items, max(1, math.ceil(some)))
            out[name] = {"K": k, "error": scale * one["error"], "evaluations": whole}
    return out
