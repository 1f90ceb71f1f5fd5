"""What a trained denoiser says about the information of real data: upper bounds, by I–MMSE (MATH (15)).

    I(x; z_s) − I(x; z_t) ≤ ½ (SNR_s − SNR_t) E ‖x − x̂(z_t)‖² = KL_s        one step, posterior variance
    I(x; z_s) ≤ Σ_{t ≥ s, t < T} KL_t + KL_T                                 the chain (13), cumulated

for any denoiser: what is not the information is the gap of (17), (18), which training makes smaller. With the transition
variance KL_s is larger, and by (17) still a bound. In continuous time a cell's cost bounds the information lost across it.
The items' own empirical distribution obeys these bounds, and so does what they were drawn from, in expectation.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.result import Evaluation
from diffusional.information.costs import cell_edges, cost_draws, edge_gammas
from diffusional.information.draws import Draws
from diffusional.information.finite import check_samples
from diffusional.models.diffusion import DiffusionModel


@dataclass(frozen=True, eq=False)
class InformationBound:
    """Upper bounds in nats; none of these numbers is an information.

    Attributes:
        level: t (C + 1,) at the edges of cells of levels, from 1 to T; in continuous time u.
        gamma: γ (C + 1,) there.
        increment_bound, increment_bound_error: (C,) at least I(x; z_s) − I(x; z_t) across each cell, with its error.
        information_bound, information_bound_error: (C + 1,) at least I(x; z_t) at each edge, with its error.
    """

    level: Tensor
    gamma: Tensor
    increment_bound: Tensor
    increment_bound_error: Tensor
    information_bound: Tensor
    information_bound_error: Tensor

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: values.tolist() for name, values in vars(self).items()} | {"unit": "nats"}


def bound(
    model: DiffusionModel,
    data: Evaluation | Tensor,
    cells: int = 20,
    samples: int = 1000,
    generator: torch.Generator | None = None,
) -> InformationBound:
    """Upper bounds on I(x; z_t) from a model's costs on its data.

    Args:
        data: an `Evaluation` of this model at its own T, whose costs are taken as they are; or encoded items (N, *shape), of
            which `samples` draws are made, each visiting every one of `cells` cells of levels.

    Raises DiffusionalError where the evaluation is of another T.

    >>> from diffusional import Continuous, exact, likelihood, schedule
    >>> from diffusional.forward import GaussianDiffusion
    >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=100))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> found = bound(model, world.sample(500, torch.Generator().manual_seed(0)), generator=torch.Generator().manual_seed(0))
    >>> 0.9 < float(found.information_bound[0]) / world.information(-9.0).value < 1.2
    True
    """
    if isinstance(data, Evaluation):
        return _evaluated(model, data)
    check_samples(samples)
    model.space.check(data)
    edges = cell_edges(model, cells)
    x = data[torch.randint(len(data), (samples,), generator=generator)]
    (drawn,) = cost_draws([model], x, edges, generator)
    costs = Draws(drawn[:, 1 : len(edges)])
    # From the noisy end: KL_T, then every cell before it.
    prior = drawn[:, len(edges) : len(edges) + 1]
    total = Draws(torch.cat([prior, costs.values.flip(1)], 1).cumsum(1).flip(1))
    return InformationBound(edges, edge_gammas(model, edges), costs.value, costs.error, total.value, total.error)


def _evaluated(model: DiffusionModel, evaluation: Evaluation) -> InformationBound:
    edges = evaluation.level_edges
    last = 1 if model.levels is None else model.levels + 1
    if edges.is_floating_point() != (model.levels is None) or not math.isclose(float(edges[-1]), last):
        raise DiffusionalError(
            f"an evaluation whose levels end at {edges[-1].item():g} came for a model with T = {model.steps or '∞'}; "
            "evaluate it at its own T, or regrid the model"
        )
    prior, whole = evaluation.terms["prior"], evaluation.terms["kl"]
    kl, error = evaluation.levels_kl.double(), evaluation.levels_error.double()
    variance = error.square().flip(0).cumsum(0).flip(0)
    if float(variance[0]) > 0:  # cells share items: as wide in sum as the evaluation says
        variance = variance * (whole.error**2 / variance[0])
    zero = torch.zeros(1, dtype=torch.float64)
    total = torch.cat([kl.flip(0).cumsum(0).flip(0), zero]) + prior.value
    return InformationBound(
        edges, edge_gammas(model, edges), kl, error, total, torch.cat([variance, zero]).add(prior.error**2).sqrt()
    )
