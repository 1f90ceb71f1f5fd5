"""C14, C15: two witnesses of a bound, the probability flow and importance weighting, in worlds where ln p(x) is known.

C14: mixtures and Gaussians with their optimal denoisers, for which the flow's density is that of the data, MATH (31). C15: an imperfect linear
model of Gaussian data, whose own ln p(x) follows from its steps, which are affine, by propagating mean and covariance from z_T to x, MATH (32).
"""

import math

import torch
from torch import Tensor

from diffusional import exact
from diffusional import schedule as schedules
from diffusional.claims.check import Check
from diffusional.claims.identities import LinearWorld
from diffusional.forward import GaussianDiffusion
from diffusional.models.base import served
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.flow import integrated
from diffusional.models.likelihood import GaussianLikelihood
from diffusional.space import Continuous

# γ of the ends of the flow, its steps, and the relative error of the solver.
_ENDS, _STEPS, _SOLVER = (-14.0, 16.0), 128, 1e-5
# Items, and groups of 64 draws of each.
_ITEMS, _GROUPS, _DRAWS = 16, 64, 64
# The least share of the gap between the ELBO and ln p(x) that 8 and 64 draws must close, and the tolerance.
_CLOSED, _TOLERANCE = 0.1, 1e-2
# The share of the gap by which the bound may seem to pass ln p(x), which it comes close to.
_ABOVE = 0.03


def _worlds(seed: int) -> dict[str, exact.World]:
    """Return worlds with mean zero, so that q(z_T) is N(0, I) up to SNR_T."""
    generator = torch.Generator().manual_seed(seed)

    def covariance(d: int) -> Tensor:
        root = torch.randn(d, d, generator=generator, dtype=torch.float64)
        return 0.4 / d * root @ root.T + 0.3 * torch.eye(d, dtype=torch.float64)

    weights = 0.5 + torch.rand(3, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    means = means - weights @ means / weights.sum()
    return {
        "Gaussian, D = 4": exact.Gaussian(torch.zeros(4), covariance(4)),
        "3 Gaussians, D = 2": exact.Mixture(weights, means, torch.stack([covariance(2) for _ in range(3)])),
    }


def c14(seed: int, divergence: float = 1.0) -> list[Check]:
    """ln p(z_T) + ∫ tr ∂f/∂z dγ = ln p(x) for optimal denoisers; `divergence` multiplies the integral."""
    checks = []
    for name, world in _worlds(seed).items():
        d = world.dimensions
        process = GaussianDiffusion(schedules.log_snr_linear(*_ENDS))
        model = DiffusionModel(process, world.denoiser(), GaussianLikelihood(Continuous((d,))))
        x = world.sample(_ITEMS, torch.Generator().manual_seed(seed + 1))
        log_alpha = -0.5 * math.log1p(math.exp(_ENDS[0]))
        unit = torch.eye(d, dtype=torch.float64)[:, None]
        z, trace = integrated(model.flow(), math.exp(log_alpha) * x, _STEPS, unit)
        found = model.last(len(x)).log_prob(z) + divergence * trace.sum(0) + d * log_alpha
        truth = world.log_prob(x)
        off = float((found - truth).abs().max() / truth.abs().mean())
        checks.append(Check(name, off, tolerance=_SOLVER))
    return checks


def _affine(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (D, D) and b (D,) of the mean A z + b, from its values (D + 1, D) at 0 and at the unit vectors."""
    return (mean[1:] - mean[0]).T, mean[0]


def _log_p(model: DiffusionModel, x: Tensor) -> Tensor:
    """Return ln p(x) (B,) of a model whose steps are affine."""
    d, steps = x.shape[1], model.steps
    assert steps is not None
    nodes = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()
    mean, covariance = torch.zeros(d, dtype=torch.float64), model.last_variance * torch.eye(d, dtype=torch.float64)
    for t in range(steps - 1, 0, -1):
        p = model.step(nodes, torch.full((d + 1,), t))
        a, b = _affine(p.mean)
        noise = p.variance.double().expand_as(p.mean)[0]
        mean, covariance = a @ mean + b, a @ covariance @ a.T + torch.diag(noise)
    decoded = model.decode(nodes)
    a, b = _affine(decoded.prediction.data)
    assert isinstance(model.likelihood, GaussianLikelihood)
    variance = model.likelihood.variance
    assert variance is not None
    mean, covariance = a @ mean + b, a @ covariance @ a.T + variance * torch.eye(d, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


def c15(seed: int, mean_of_logs: bool = False) -> list[Check]:
    """E ln (1/K) Σ_k w_k rises with K and stays below ln p(x); with `mean_of_logs`, it is E (1/K) Σ_k ln w_k instead."""
    world = LinearWorld.drawn(seed)
    model = world.model()
    generator = torch.Generator().manual_seed(seed + 1)
    x = world.data.sample(_ITEMS, generator)
    n = _GROUPS * _DRAWS
    noise = torch.randn(n * _ITEMS, *model.noise_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logs = model.walked_log_weight(x.repeat(n, 1), served(noise)).view(n, _ITEMS)
        truth = _log_p(model, x)
    gap = float((truth - logs.mean(0)).mean())

    def bound(k: int) -> Tensor:
        """Return the mean over items for each of the groups of 64 draws (G,), from groups of K within them."""
        parts = logs.view(_GROUPS, _DRAWS // k, k, _ITEMS)
        each = parts.mean(2) if mean_of_logs else torch.logsumexp(parts, 2) - math.log(k)
        return each.mean((1, 2))

    def check(what: str, values: Tensor, least: float) -> Check:
        share = values / gap
        error = float(share.std()) / math.sqrt(_GROUPS)
        return Check(what, float(share.mean()), error, least, _TOLERANCE, at_least=True)

    one, some, many = bound(1), bound(8), bound(_DRAWS)
    return [
        check("K = 8 over K = 1, share of the gap", some - one, _CLOSED),
        check("K = 64 over K = 8", many - some, 0.5 * _CLOSED),
        check("ln p(x) over K = 64", truth.mean() - many, -_ABOVE),
    ]
