"""Rate and distortion of progressive decoding: what the first bits of a file show, MATH (33).

A receiver who has the latents z_T … z_t of an item, at the cost KL_T + Σ_{s ≥ t} KL_s of MATH (8), can compute x̂(z_t). At t = 1 the decoder's
−ln p(x|z_1) remains, after which nothing is lost (Ho, Jain & Abbeel 2020, §4.3).
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.flow import ProbabilityFlow
from diffusional.space import Discrete

# Items of one call of a network.
_BATCH = 256


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """What `rate_distortion` returns, from the noisiest latent to z_1.

    Attributes:
        latents: t (K,).
        bits_per_dim: bits for z_T … z_t (K,), means of the items; `total` also has the decoder's −log₂ p(x|z_1).
        error: standard errors of `bits_per_dim` (K,), over items with one draw each; NaN for one item. That of `total` is `total_error`.
        rmse: the root mean square of x̂(z_t) − x (K,), in levels; after `total` bits it is 0.
        shown: x̂(z_t) (K, M, *dims) of the first M items, in levels.
    """

    latents: Tensor
    bits_per_dim: Tensor
    error: Tensor
    rmse: Tensor
    total: float
    total_error: float
    shown: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return a record without the pictures."""
        return {
            "latents": self.latents.tolist(),
            "bits_per_dim": self.bits_per_dim.tolist(),
            "bits_per_dim_error": [None if math.isnan(one) else one for one in self.error.tolist()],
            "rmse_levels": self.rmse.tolist(),
            "total_bits_per_dim": self.total,
            "total_bits_per_dim_error": None if math.isnan(self.total_error) else self.total_error,
        }


@torch.no_grad()
def rate_distortion(
    model: LatentVariableModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    points: int = 40,
    show: int = 4,
    seed: int = 0,
) -> RateDistortion:
    """Return the bits of z_T … z_t and the distortion of x̂(z_t) at about `points` latents, as means of items x (N, *space.shape).

    Args:
        model: a Gaussian diffusion in discrete time over ordered levels.
        show: the number of items whose x̂ are returned, at most 256.
        seed: of one noise for each item and latent.

    This takes T + `points` network evaluations of each item. Raises DiffusionalError for other models.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> space = Discrete((2,), levels=4)
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=8))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z, "data"), likelihood.LevelPosterior(space))
    >>> found = rate_distortion(model, space.encode(torch.tensor([[0, 3], [1, 1]])), points=3)
    >>> found.latents.tolist(), found.bits_per_dim.shape
    ([8, 4, 1], torch.Size([3]))
    """
    flow, chain = flow_of(model), cast(Any, model.visited())
    if not isinstance(model.space, Discrete) or chain.steps is None:
        raise DiffusionalError(
            f"expected a diffusion of discrete data with a number of latents, got one of {model.space} with steps={chain.steps}; use "
            "model.regrid(steps)"
        )
    if points < 2 or not 0 <= show <= _BATCH:
        raise DiffusionalError(f"expected points ≥ 2 and 0 ≤ show ≤ {_BATCH}, got points={points} and show={show}")
    model.space.check(x)
    check_condition(condition, len(x))
    steps, generator = chain.steps, torch.Generator().manual_seed(seed)
    t = torch.linspace(steps, 1, min(points, steps), dtype=torch.float64).round().long().unique().flip(0)
    gamma, width = chain.noise_levels(), model.space.width
    spent, wholes, shown = list[Tensor](), list[Tensor](), list[Tensor]()
    squares = torch.zeros(len(t), dtype=torch.float64)
    with evaluation_mode(model):
        for start in range(0, len(x), _BATCH):
            rows = slice(start, start + _BATCH)
            part, given = x[rows], rows_of(condition, rows)
            ledger = chain.elbo(part, generator, given)
            each = torch.cat([ledger.prior[:, None], ledger.kl.flip(1)], 1).cumsum(1).flip(1)
            spent.append(each[:, t - 1])
            wholes.append(ledger.nelbo)
            for i, level in enumerate(t.tolist()):
                noise = torch.empty_like(part).normal_(generator=generator)
                z = chain.noisy(part, torch.full((len(part),), level), noise)
                means = flow.denoiser(z, gamma[level - 1].expand(len(part)), given).data
                squares[i] += ((means - part) / width).double().square().mean() * (len(part) / len(x))
                if not start:
                    shown.append((means[:show] - model.space.low) / width)
    bits = 1 / (math.log(2) * model.space.dimensions)
    rate, whole = bits * torch.cat(spent).double(), bits * torch.cat(wholes).double()
    return RateDistortion(
        t, rate.mean(0), _error(rate), squares.sqrt(), float(whole.mean()), float(_error(whole)), torch.stack(shown)
    )


def flow_of(model: LatentVariableModel) -> ProbabilityFlow:
    """Return the probability flow of a model, whose network has x̂. Raises DiffusionalError for models without one."""
    try:
        return model.flow()
    except DiffusionalError as error:
        raise DiffusionalError(
            f"expected a Gaussian diffusion of x, whose latents show x̂ one after the other, got a {type(model).__name__}"
        ) from error


def _error(values: Tensor) -> Tensor:
    """Return the standard error of the mean over items; NaN for one item."""
    return values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.full(values.shape[1:], math.nan)
