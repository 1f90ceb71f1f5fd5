"""The information of a condition about an item, by noise level and by position (MATH (27)).

    i(x; c) = ln p(x|c)/p(x) ≈ ½ ∫ [‖ε − ε̂(z)‖² − ‖ε − ε̂(z, c)‖²] dγ + the difference of ln p(x|z_1),

of one network with and without its condition, at common noise. In discrete time the integral is the sum of the differences of KL_t.
For optimal denoisers the mean over (x, c) is I(x; c), at most H(c), and over shuffled c it is not positive.

In general the estimate is i(x; c) plus the difference of two gaps, gap_∅ − gap_c, each of a bound: it is biased either way, and
shuffled conditions do not reveal it. For classes there is a bounded form,

    ELBO(x|c) − ln Σ_c' p(c') e^{ELBO(x|c')} ≤ −ln p(c),

which cannot exceed the information in the label. From draws, its logarithm of a sum is too large by Jensen's inequality if it is
computed from their means, and too small if it is cross-fitted (MATH (25)): `bounded` returns both, which enclose it in expectation.

References: Kong et al. 2024, "Interpretable diffusion via information decomposition".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, check_labels, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.classify import log_prior_of
from diffusional.evaluation.common import CommonNoise, difference_plan
from diffusional.evaluation.evaluation import as_the_network, check_model
from diffusional.evaluation.plan import Plan, visited
from diffusional.evaluation.shares import shared
from diffusional.evaluation.sweep import mean_of_items
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.seeds import check_seed

# Items of one block, times visits.
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class PointwiseInformation:
    """The information of the conditions of N items about them, nats.

    Attributes:
        items: (N,) estimates of i(x; c), and their Monte Carlo errors, `errors`.
        mean: the mean over the items, for optimal denoisers I(x; c), with both errors.
        shuffled: the same for conditions of other items, which for optimal denoisers is not positive; None without this control.
        levels: (C,) the part of the mean of every cell of levels; the decoder's, ln p(x|z_1), is `decoder`.
        levels_error: (C,) Monte Carlo errors.
        edges: (C + 1,) levels at the edges of the cells.
        gamma: (C + 1,) γ at these edges; empty for a chain without γ.
        decoder: the part of the decoder in the mean.
        map: (N, *dims) i(x; c) by position, which adds up to the part of the levels; empty if it was not asked for.
        network_evaluations: in all, the pilot included.
    """

    items: Tensor
    errors: Tensor
    mean: Estimate
    shuffled: Estimate | None
    levels: Tensor
    levels_error: Tensor
    edges: Tensor
    gamma: Tensor
    decoder: Estimate
    map: Tensor
    network_evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, without the numbers of single items."""
        return {
            "information_nats": self.mean.to_dict(),
            "shuffled_nats": None if self.shuffled is None else self.shuffled.to_dict(),
            "decoder_nats": self.decoder.to_dict(),
            "levels_nats": self.levels.tolist(),
            "levels_error": self.levels_error.tolist(),
            "edges": self.edges.tolist(),
            "gamma": self.gamma.tolist(),
            "items": len(self.items),
            "network_evaluations": self.network_evaluations,
            "kind": "estimate",
        }

    def __str__(self) -> str:
        control = "" if self.shuffled is None else f"; with the conditions of other items {self.shuffled}"
        return f"i(x; c), mean over {len(self.items):,} items: {self.mean}{control}"


def pointwise(
    model: LatentVariableModel,
    data: Tensor,
    condition: Condition,
    *,
    visits: int = 32,
    positions: bool = False,
    shuffle: bool = True,
    plan: Plan | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PointwiseInformation:
    """Estimate i(x; c) = ln p(x|c)/p(x) of items `data` (N, *space.shape), encoded, and their conditions, MATH (27); nats.

    The estimate is i(x; c) plus the difference of the two gaps of the network, without and with the condition, and can have a bias of either sign.
    (Kong et al. 2024.)

    Args:
        condition: one row per item.
        visits: draws of (t, ε) for each item, at least 2; a draw takes two network evaluations, or three with `shuffle`.
        positions: whether to divide i(x; c) among the positions of an item, for Gaussian diffusion models with a fixed variance.
        shuffle: whether to evaluate the conditions of other items as a control.
        plan: of the visits; by default one is learned for the difference.
        progress: called with (items done, N).

    Raises DiffusionalError for a network that cannot predict without its condition (train it with condition dropout), a model without levels
    to visit, and data or conditions that do not fit.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
    >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
    >>> x, c = world.sample_labelled(200, torch.Generator().manual_seed(0))
    >>> found = pointwise(model, x, c)
    >>> abs(found.mean.value - world.label_information()) < 4 * found.mean.error + 0.02
    True
    """
    check_model(model)
    chain = visited(model)
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    if condition is None or visits < 2 or len(data) < 2:
        raise DiffusionalError(
            f"expected a condition, at least 2 visits and at least 2 items, got visits={visits} and {len(data)} items"
            + ("" if condition is not None else " without a condition")
        )
    model.check_without_condition()
    data = as_the_network(model, data)
    with evaluation_mode(model):
        pilot = 0
        if plan is None:
            plan = difference_plan(chain, data, lambda rows: rows_of(condition, rows), lambda rows: None, seed)
            pilot = int(plan.provenance["evaluations"])
        with torch.inference_mode():
            return _Pointwise(chain, plan, data, condition, seed, visits, positions, shuffle, pilot).run(progress)


class _Pointwise:
    def __init__(
        self,
        chain: Any,
        plan: Plan,
        data: Tensor,
        condition: Condition,
        seed: int,
        visits: int,
        positions: bool,
        shuffle: bool,
        pilot: int,
    ) -> None:
        n = len(data)
        self.noise = CommonNoise(chain, plan, data, seed, "pointwise")
        self.chain, self.plan, self.condition, self.visits, self.pilot = chain, plan, condition, visits, pilot
        self.positions = positions
        # Each item gets the condition of the next one in a random order, so that none keeps its own.
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.partner = torch.empty_like(order).scatter_(0, order, order.roll(1)) if shuffle else None
        self.shapes: dict[str, tuple[int, ...]] = {"gains": (visits,)}
        if shuffle:
            self.shapes["control"] = (visits,)
        if positions:
            self.shapes["map"] = chain.space.shape

    def run(self, progress: Callable[[int, int], None] | None) -> PointwiseInformation:
        n, v = len(self.noise.data), self.visits
        found = shared(torch.arange(n), self.shapes, self._visit, block=max(1, _BLOCK // v), progress=progress)
        return self._result(found)

    def _visit(self, rows: Tensor) -> dict[str, Tensor]:
        v = self.visits
        item, draw = rows.repeat_interleave(v), torch.arange(v).repeat(len(rows))
        every = torch.arange(len(item))
        costs = self.noise.costs
        given = costs(item, draw, every, lambda which: rows_of(self.condition, item[which]))
        without = costs(item, draw, every, lambda which: None)
        gains = without - given
        out = {"gains": gains.view(-1, v)}
        if self.partner is not None:
            partner = self.partner
            other = costs(item, draw, every, lambda which: rows_of(self.condition, partner[item[which]]))
            out["control"] = (without - other).view(-1, v)
        if self.positions:
            by_position = self.noise.position_gains(item, draw, self.condition)
            out["map"] = by_position.view(-1, v, *by_position.shape[1:]).mean(1)
        return out

    def _result(self, found: dict[str, Tensor]) -> PointwiseInformation:
        v, noise, gains = self.visits, self.noise, found["gains"]
        n = len(gains)
        calls = noise.all_evaluations() + self.pilot
        cell = noise.visits(torch.arange(n).repeat_interleave(v), torch.arange(v).repeat(n)).cell.view(n, v)

        def mean(values: Tensor) -> Estimate:
            return mean_of_items(values.mean(1), values.var(1) / v, calls)

        by_cell = [mean(torch.where(cell == c, gains, 0.0)) for c in range(self.plan.cells + 1)]
        decoder, *cells = by_cell
        gamma = self.chain.gamma_at(self.plan.edges)
        return PointwiseInformation(
            gains.mean(1),
            (gains.var(1) / v).sqrt(),
            mean(gains),
            None if self.partner is None else mean(found["control"]),
            torch.tensor([one.value for one in cells], dtype=torch.float64),
            torch.tensor([one.error for one in cells], dtype=torch.float64),
            self.plan.edges,
            torch.zeros(0) if gamma is None else gamma.detach().double().cpu(),
            decoder,
            found.get("map", torch.zeros(0)),
            calls,
        )


@dataclass(frozen=True, eq=False)
class BoundedInformation:
    """The bounded form of the information of labels about N items, nats: in expectation it is between `least` and `most`, which are means over items.

    `items` (N,) is the middle of the two estimates for each item, and `limit` the mean of −ln p(c), which neither the form nor `least`
    exceeds. The Monte Carlo error of `least` is that of the delta method, that of `most` the jackknife's over the draws, which errs upward.
    """

    least: Estimate
    most: Estimate
    items: Tensor
    limit: float

    def __str__(self) -> str:
        return f"bounded form between {self.least} and {self.most}; at most {self.limit:.4f} nats in the labels"


def bounded(
    model: LatentVariableModel,
    data: Tensor,
    labels: Tensor,
    *,
    prior: Tensor | None = None,
    classes: int | None = None,
    visits: int = 16,
    plan: Plan | None = None,
    seed: int = 0,
) -> BoundedInformation:
    """Estimate ELBO(x|c) − ln Σ_c' p(c') e^{ELBO(x|c')} of items (N, *space.shape), encoded, and their labels (N,), MATH (27); nats.

    Args:
        prior: p(c) (K,); uniform by default.
        classes: K, for a model without names of classes.
        visits: draws of every class, at least 4; all classes have the same noise.

    Raises DiffusionalError for a model without levels or classes, and for labels that do not fit.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
    >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
    >>> x, c = world.sample_labelled(100, torch.Generator().manual_seed(0))
    >>> found = bounded(model, x, c, classes=2)
    >>> found.least.value <= found.most.value, found.least.value <= found.limit, round(found.limit, 4)
    (True, True, 0.6931)
    """
    check_model(model)
    chain, k = visited(model), len(model.classes) or classes or 0
    if k < 2 or visits < 4:
        raise DiffusionalError(f"expected at least 2 classes and 4 visits, got {k} and {visits}")
    model.space.check(data)
    check_condition(labels, len(data))
    check_labels(labels, k)
    log_prior = log_prior_of(prior, k)
    data, n = as_the_network(model, data), len(data)
    with evaluation_mode(model):
        if plan is None:
            other = (labels + 1 + torch.randint(k - 1, (n,), generator=torch.Generator().manual_seed(seed))) % k
            plan = difference_plan(chain, data, lambda rows: labels[rows], lambda rows: other[rows], seed)
        noise = CommonNoise(chain, plan, data, seed, "bounded")

        def every_class(rows: Tensor) -> dict[str, Tensor]:
            m = len(rows)
            item, draw = rows.repeat_interleave(visits), torch.arange(visits).repeat(m)
            row, label = torch.arange(m * visits).repeat_interleave(k), torch.arange(k).repeat(m * visits)
            return {"costs": noise.costs(item, draw, row, lambda which: label[which]).view(m, visits, k)}

        costs = shared(torch.arange(n), {"costs": (visits, k)}, every_class)["costs"]
    # Costs relative to the item's own label: what all classes share cancels, draw by draw.
    own = labels.cpu()[:, None, None].expand(-1, visits, 1)
    apart = costs - costs.gather(2, own)
    joint = log_prior - apart.mean(1)
    least = -torch.logsumexp(joint, 1)
    most, spread = _cross_fitted(apart, log_prior)
    # The error of ln Σ by the delta method: the spread of the draws' mean difference under the posterior.
    by_draw = (apart * joint.softmax(1)[:, None]).sum(2)
    variance = by_draw.var(1) / visits
    limit = float(-log_prior[labels.cpu()].mean())
    calls = noise.all_evaluations()
    return BoundedInformation(
        mean_of_items(least, variance, calls), mean_of_items(most, spread, calls), 0.5 * (least + most), limit
    )


def _cross_fitted(apart: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return −Σ_c r(c) [ln p(c) − d_c − ln r(c)] (N,) from differences d (N, V, K) of costs, r ∝ p(c) e^{−d} of one half of the draws and d of the
    other, the mean of both ways; and its variance (N,) by the jackknife over the draws of each half.

    >>> most, variance = _cross_fitted(torch.tensor([[[0.0, 1.0]]]).expand(1, 4, 2), torch.zeros(2).log_softmax(0))
    >>> round(float(most), 4), float(variance)                                                             # −ln (½ + ½/e)
    (0.3799, 0.0)
    """

    def crossed(one: Tensor, other: Tensor) -> Tensor:
        total = torch.zeros(one.shape[:-1], dtype=one.dtype)
        for fitted, held in ((one, other), (other, one)):
            log_r = (log_prior - fitted).log_softmax(-1)
            total = total - 0.5 * (log_r.exp() * (log_prior - held - log_r)).sum(-1)
        return total

    halves = [apart[:, start::2] for start in (0, 1)]
    means = [half.mean(1) for half in halves]
    variance = torch.zeros(len(apart), dtype=apart.dtype)
    for half, mean, other in zip(halves, means, means[::-1], strict=True):
        n = half.shape[1]
        without = crossed((n * mean[:, None] - half) / (n - 1), other[:, None].expand_as(half))
        variance = variance + (n - 1) / n * (without - without.mean(1, keepdim=True)).square().sum(1)
    return crossed(*means), variance
