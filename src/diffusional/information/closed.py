"""The nat budget of Gaussian data under a denoiser that is affine in z, in closed form (MATH (17)–(20)).

For x̂ = J z + c, q(z_s|z_t) = N(m + G (z_t − α_t μ), Q) with a full covariance, and p(z_s|z_t) = N(A z_t + B x̂, v I),

    E KL[q ‖ p] = ½ [ tr Q/v − D − ln det Q/v + (tr K S_t Kᵀ + ‖d‖²)/v ],     K = G − A − B J,   d the difference of the averages of the means

and S_t = α_t² C + σ_t² I. The decoder N(x̂, s² I) and the prior N(0, I) are treated in the same way. The costs depend only on
E‖x − x̂‖². Covariances are matrices here, independently of the eigenvalue formulas of `exact`.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional import exact
from diffusional.forward import alpha, posterior_at, sigma
from diffusional.information.costs import at_rest, like_model
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import GaussianLikelihood
from diffusional.models.reverse import log_ratio


@dataclass(frozen=True, eq=False)
class Closed:
    """Costs and gaps of reconstruction, cells and prior (1 + C + 1,), nats, float64."""

    cost: Tensor
    gap: Tensor


@dataclass(frozen=True, eq=False)
class _Affine:
    """x̂ = J z + c at one level, with the moments of z at that level: α, σ², mean α μ, covariance S."""

    matrix: Tensor
    offset: Tensor
    gamma: Tensor
    mean: Tensor
    covariance: Tensor


def closed_form(model: DiffusionModel, world: exact.Gaussian, edges: Tensor) -> Closed | None:
    """Return costs and gaps; None if time is continuous, the variance learned, the decoder not Gaussian, or the denoiser not affine."""
    if model.steps is None or model.variance == "learned" or not isinstance(model.likelihood, GaussianLikelihood):
        return None
    mu, vectors = world.means[0], world.eigenvectors[0]
    covariance = vectors @ torch.diag(world.eigenvalues[0]) @ vectors.T
    grid = model.process.schedule.grid().detach().cpu()
    levels = []
    with at_rest([model]):
        for gamma in grid:
            affine = _probe(model, gamma, mu, covariance)
            if affine is None:
                return None
            levels.append(affine)
    error = torch.stack([torch.exp(-a.gamma) * _squared_error(a, mu, covariance) for a in levels])
    steps = torch.arange(1, len(grid))
    kl = model.kl_from(error[1:], steps)
    kl_gap = torch.stack([_step_gap(model, a, b, mu) for a, b in itertools.pairwise(levels)])
    cell = torch.bucketize(steps, edges, right=True) - 1
    sums = [torch.zeros(len(edges) - 1, dtype=torch.float64).index_add_(0, cell, part) for part in (kl, kl_gap)]
    (decoder, decoder_gap), (prior, prior_gap) = (
        _decoder(model, levels[0], mu, covariance),
        _prior(levels[-1], mu, covariance),
    )
    ends = [(decoder, prior), (decoder_gap, prior_gap)]
    return Closed(*(torch.cat([a.reshape(1), part, b.reshape(1)]) for (a, b), part in zip(ends, sums, strict=True)))


def _probe(model: DiffusionModel, gamma: Tensor, mu: Tensor, covariance: Tensor) -> _Affine | None:
    """Return J and c from z = 0 and the unit vectors; None if the output at another z disagrees."""
    d = len(mu)
    z = torch.cat([torch.zeros(1, d), torch.eye(d), torch.linspace(-1.9, 2.3, d).reshape(1, -1)]).double()
    seen = z.reshape(-1, *model.space.shape).to(like_model(model))
    said = model.denoiser(seen, gamma.expand(len(z)).to(seen.device)).data.double().cpu().flatten(1)
    offset = said[0]
    matrix = (said[1:-1] - offset).T
    if not torch.allclose(matrix @ z[-1] + offset, said[-1], rtol=1e-9, atol=1e-9):
        return None
    a, s = alpha(gamma), sigma(gamma)
    return _Affine(matrix, offset, gamma, a * mu, a**2 * covariance + s**2 * torch.eye(d, dtype=torch.float64))


def _squared_error(at: _Affine, mu: Tensor, covariance: Tensor) -> Tensor:
    """Return E ‖x − x̂‖² = tr (I − αJ) C (I − αJ)ᵀ + σ² tr JJᵀ + ‖(I − αJ) μ − c‖²."""
    left = torch.eye(len(mu), dtype=torch.float64) - alpha(at.gamma) * at.matrix
    off = left @ mu - at.offset
    return (left @ covariance @ left.T).trace() + sigma(at.gamma) ** 2 * at.matrix.square().sum() + off @ off


def _mean_kl(q: Tensor, variance: Tensor, gain: Tensor, covariance: Tensor, off: Tensor) -> Tensor:
    """Return ½ [tr Q/v − D − ln det Q/v + (tr K S Kᵀ + ‖d‖²)/v], Q = `q`, K = `gain`, S = `covariance`, d = `off`."""
    ratio = torch.linalg.eigvalsh(0.5 * (q + q.T) / variance)
    moved = (gain @ covariance @ gain.T).trace() + off @ off
    return 0.5 * ((ratio - 1 - ratio.log()).sum() + moved / variance)


def _step_gap(model: DiffusionModel, s: _Affine, t: _Affine, mu: Tensor) -> Tensor:
    zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
    a = alpha(t.gamma) / alpha(s.gamma)
    gain = a * torch.linalg.solve(t.covariance, s.covariance).T
    left = s.covariance - a * gain @ s.covariance
    of_z, of_x = (posterior_at(*pair, s.gamma, t.gamma).mean.squeeze() for pair in ((one, zero), (zero, one)))
    variance = torch.exp(
        posterior_at(zero, zero, s.gamma, t.gamma).log_variance.squeeze() - log_ratio(s.gamma, t.gamma, model.variance)
    )
    identity = torch.eye(len(mu), dtype=torch.float64)
    off = s.mean - of_z * t.mean - of_x * (t.matrix @ t.mean + t.offset)
    return _mean_kl(left, variance, gain - of_z * identity - of_x * t.matrix, t.covariance, off)


def _decoder(model: DiffusionModel, at: _Affine, mu: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(model.likelihood, GaussianLikelihood)
    given = model.likelihood.variance
    variance = torch.exp(at.gamma) if given is None else torch.tensor(given, dtype=torch.float64)
    cost = 0.5 * (len(mu) * torch.log(2 * math.pi * variance) + _squared_error(at, mu, covariance) / variance)
    gain = alpha(at.gamma) * torch.linalg.solve(at.covariance, covariance).T
    left = covariance - alpha(at.gamma) * gain @ covariance
    off = mu - at.matrix @ at.mean - at.offset
    return cost, _mean_kl(left, variance, gain - at.matrix, at.covariance, off)


def _prior(at: _Affine, mu: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL_T averaged over x, and KL[q(z_T) ‖ N(0, I)]."""
    s2 = sigma(at.gamma) ** 2
    second = covariance.trace() + mu @ mu
    cost = 0.5 * (alpha(at.gamma) ** 2 * second + len(mu) * (s2 - 1 - torch.log(s2)))
    none = torch.zeros_like(covariance)
    return cost, _mean_kl(at.covariance, torch.ones((), dtype=torch.float64), none, none, at.mean)
