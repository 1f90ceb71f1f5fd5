"""The Gaussian record against torch.distributions, and φ against mpmath."""

import mpmath
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from battery import F64, close, float64, generator, randn
from diffusional.gaussian import Gaussian, phi

# The variance's shape, against a mean of (5, 3, 2, 2).
VARIANCES = [(), (5, 1, 1, 1), (5, 3, 1, 1), (5, 3, 2, 2)]


def _pair(shape: tuple[int, ...], seed: int) -> tuple[Gaussian, Independent]:
    mean, log_variance = randn(5, 3, 2, 2, seed=seed), randn(*shape, seed=seed + 1)
    normal = Normal(mean, log_variance.exp().sqrt().expand(mean.shape))
    return Gaussian(mean, log_variance), Independent(normal, 3)


@pytest.mark.parametrize("shape", VARIANCES)
@pytest.mark.parametrize("other", VARIANCES)
def test_against_torch_distributions(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    (ours, theirs), (ours_2, theirs_2) = _pair(shape, 0), _pair(other, 2)
    z = 2 * randn(5, 3, 2, 2, seed=4)
    close(ours.log_prob(z), theirs.log_prob(z))
    close(ours.entropy(), theirs.entropy())
    close(ours.kl(ours_2), kl_divergence(theirs, theirs_2))
    close(ours.variance.expand(z.shape), theirs.variance)
    close(ours.std.expand(z.shape), theirs.base_dist.stddev)


def test_a_sample_is_mean_plus_std_times_noise() -> None:
    q, _ = _pair((5, 1, 1, 1), 0)
    noise = torch.empty_like(q.mean).normal_(generator=generator(7))
    expected = q.mean + q.log_variance.exp().sqrt() * noise
    close(q.sample(noise=noise), expected)
    close(q.sample(generator(7)), expected)
    assert not q.sample(generator(8)).equal(expected)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [1e-12, 1e-8, 1e-5, 1e-3, 9.99e-3, 1e-2, 1.001e-2, 0.3, 5.0, 40.0])
def test_phi_against_mpmath(size: float, sign: int) -> None:
    delta = sign * size
    with mpmath.workdps(50):
        exact = float(mpmath.expm1(mpmath.mpf(delta)) - mpmath.mpf(delta))
    close(phi(float64([delta])), [exact], rtol=1e-12, atol=0)


def test_kl_of_nearly_equal_gaussians_does_not_cancel() -> None:
    p, q = Gaussian(randn(2, 3), float64(1e-9)), Gaussian(randn(2, 3), float64(0.0))
    close(p.kl(q), [3 * 0.25e-18] * 2, rtol=1e-8, atol=0)
    assert p.kl(p).equal(torch.zeros(2, dtype=F64))
