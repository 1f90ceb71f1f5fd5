"""Upper bounds on the information of real data from a trained denoiser, by I–MMSE (MATH (15)).

    I(x; z_s) − I(x; z_t) ≤ ½ (SNR_s − SNR_t) E ‖x − x̂(z_t)‖² = KL_s        one step, posterior variance
    I(x; z_s) ≤ Σ_{t ≥ s, t < T} KL_t + KL_T                                 the chain (13), summed

for any denoiser. With a condition c these are bounds on I(x; z_t | c), which for a c that is a function of x is I(x; z_t) − I(c; z_t).
The difference from the information is the gap of (17), (18), which training reduces. With the transition variance KL_s is larger, and by
(17) still a bound. In continuous time, the cost of a cell bounds the information lost across it. The bounds hold for the empirical
distribution of the items, and in expectation for the distribution that they were drawn from.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.result import Evaluation
from diffusional.information.costs import cell_edges, check_diffusion, cost_draws, edge_gammas
from diffusional.information.estimates import Estimates
from diffusional.information.finite import check_samples
from diffusional.models.diffusion import DiffusionModel


@dataclass(frozen=True, eq=False)
class InformationBound:
    """Upper bounds on mutual information, in nats.

    They are bounds of I(x; z_t), or of I(x; z_t | c) if `conditional`.

    Attributes:
        level: t (C + 1,) at the edges of cells of levels, from 1 to T; in continuous time u.
        gamma: γ (C + 1,) at these levels.
        increment_bound, increment_bound_error: (C,) an upper bound on I(x; z_s) − I(x; z_t) across each cell, with its error.
        information_bound, information_bound_error: (C + 1,) an upper bound on I(x; z_t) at each edge, with its error.
    """

    level: Tensor
    gamma: Tensor
    increment_bound: Tensor
    increment_bound_error: Tensor
    information_bound: Tensor
    information_bound_error: Tensor
    conditional: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record; "conditional" is part of it only if True."""
        out = {name: values.tolist() for name, values in vars(self).items() if isinstance(values, Tensor)}
        return out | ({"conditional": True} if self.conditional else {}) | {"unit": "nats"}


def bound(
    model: DiffusionModel,
    data: Evaluation | Tensor,
    cells: int = 20,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> InformationBound:
    """Return upper bounds on I(x; z_t) from a model's costs on its data; with a condition c, on I(x; z_t | c).

    Args:
        data: an `Evaluation` of this model at its own T, whose costs are used; or encoded items (N, *shape), of which `samples` draws
            are made, each of them at one level in each of `cells` cells.
        condition: for encoded items and a conditional model, a tensor (N, …) or a dict of such tensors. An `Evaluation` has its own.

    Raises DiffusionalError for a model that is not a `DiffusionModel`, if the evaluation is of another T, for a condition with an evaluation, and for one without a row for every
    item.

    >>> from diffusional import Continuous, exact, likelihood, schedule
    >>> from diffusional.forward import GaussianDiffusion
    >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=100))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> found = bound(model, world.sample(500, torch.Generator().manual_seed(0)), generator=torch.Generator().manual_seed(0))
    >>> 0.9 < float(found.information_bound[0]) / world.information(-9.0).value < 1.2
    True
    """
    check_diffusion(model)
    if isinstance(data, Evaluation):
        if condition is not None:
            raise DiffusionalError(
                "condition was given with an Evaluation, whose costs are already those of its own condition: leave it out, or give "
                "the items"
            )
        return _evaluated(model, data)
    check_samples(samples)
    model.space.check(data)
    check_condition(condition, len(data))
    edges = cell_edges(model, cells)
    some = torch.randint(len(data), (samples,), generator=generator)
    (drawn,) = cost_draws([model], data[some], edges, generator, rows_of(condition, some))
    costs = Estimates(drawn[:, 1 : len(edges)])
    # From the noisiest level: KL_T, then every cell before it.
    prior = drawn[:, len(edges) : len(edges) + 1]
    total = Estimates(torch.cat([prior, costs.values.flip(1)], 1).cumsum(1).flip(1))
    return InformationBound(
        edges, edge_gammas(model, edges), costs.value, costs.error, total.value, total.error, condition is not None
    )


def _evaluated(model: DiffusionModel, evaluation: Evaluation) -> InformationBound:
    edges = evaluation.level_edges
    last = 1 if model.timesteps is None else model.timesteps + 1
    if edges.is_floating_point() != (model.timesteps is None) or not math.isclose(float(edges[-1]), last):
        raise DiffusionalError(
            f"expected an evaluation with levels up to T = {model.steps or '∞'} of the model, got one up to {edges[-1].item():g}: "
            "evaluate it at its own T, or regrid the model"
        )
    prior, whole = evaluation.terms["prior"], evaluation.terms["kl"]
    kl, error = evaluation.levels_kl.double(), evaluation.levels_error.double()
    variance = error.square().flip(0).cumsum(0).flip(0)
    if float(variance[0]) > 0:  # cells share items: scaled so that the sum has the error of the evaluation
        variance = variance * (whole.error**2 / variance[0])
    zero = torch.zeros(1, dtype=torch.float64)
    total = torch.cat([kl.flip(0).cumsum(0).flip(0), zero]) + prior.value
    errors = torch.cat([variance, zero]).add(prior.error**2).sqrt()
    conditional = "condition_sha256" in evaluation.provenance
    return InformationBound(edges, edge_gammas(model, edges), kl, error, total, errors, conditional)
