"""The record of bits against torch.distributions, mpmath, and the law of its samples."""

import mpmath
import pytest
import torch
from torch.distributions import Bernoulli, Independent, kl_divergence

from battery import F64, close, float64, generator, randn
from diffusional.bernoulli import Bits


def _pair(seed: int) -> tuple[Bits, Independent]:
    logit = 3 * randn(5, 3, 2, seed=seed)
    return Bits(logit), Independent(Bernoulli(logits=logit), 2)


def test_against_torch_distributions() -> None:
    (ours, theirs), (ours_2, theirs_2) = _pair(0), _pair(1)
    z = torch.where(randn(5, 3, 2, seed=2) > 0, 1.0, -1.0).double()
    close(ours.log_prob(z), theirs.log_prob((z + 1) / 2))
    close(ours.entropy(), theirs.entropy())
    close(ours.kl(ours_2), kl_divergence(theirs, theirs_2))
    close(ours.mean, 2 * theirs.mean - 1)
    assert ours.log_prob(z.float()).dtype == F64
    assert Bits(ours.logit.float()).kl(Bits(ours_2.logit.float())).dtype == F64


def _exact(a: float, b: float) -> tuple[float, float]:
    """KL and entropy with 60 digits."""
    with mpmath.workdps(60):
        p, q = (1 / (1 + mpmath.exp(-mpmath.mpf(v))) for v in (a, b))
        divergence = p * mpmath.log(p / q) + (1 - p) * mpmath.log((1 - p) / (1 - q))
        return float(divergence), float(-p * mpmath.log(p) - (1 - p) * mpmath.log(1 - p))


@pytest.mark.parametrize("a", [-45.0, -38.0, -3.0, -1e-3, 0.0, 0.7, 8.0, 36.0, 45.0])
@pytest.mark.parametrize(
    "delta", [1e-12, 1e-7, -1e-5, 1e-3, 0.0099, -0.5, 0.999, -0.999, 1.001, -1.001, 4.0, -30.0, 60.0]
)
def test_kl_and_entropy_to_the_last_digits(a: float, delta: float) -> None:
    """Near 0 and 1, near each other, and far apart."""
    b = a + delta
    one, other = Bits(float64([[a]])), Bits(float64([[b]]))
    divergence, entropy = _exact(a, b)
    # δ itself, which b keeps to 2⁻⁵³ b, decides the rest.
    close(one.kl(other), [divergence], rtol=2e-12, atol=0)
    close(one.entropy(), [entropy], rtol=1e-13, atol=0)
    assert one.kl(one).equal(torch.zeros(1, dtype=F64))


def test_kl_of_any_logits_is_finite_with_its_gradient() -> None:
    a = float64([[-800.0, 800.0, 0.0, 800.0, -800.0, 0.0, 1e-9]])
    b = float64([[800.0, -800.0, 800.0, 800.0, -800.0, 0.0, 0.0]]).requires_grad_()
    value = Bits(a).kl(Bits(b))
    value.sum().backward()
    close(value.detach(), [1600 + 400 - float(torch.log(float64(2.0)))], rtol=1e-12)
    assert b.grad is not None
    # ∂KL/∂b = sigmoid(b) − sigmoid(a)
    close(b.grad, torch.sigmoid(b.detach()) - torch.sigmoid(a), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("logit", [-6.0, -1.0, 0.0, 0.3, 4.0])
def test_the_law_of_a_sample(logit: float) -> None:
    """Of n noises, one in each of n equal cells of Φ, those that make 1 are P(1) n, to one; and they are the largest."""
    n = 100_000
    noise = torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)[None]
    z = Bits(torch.full((1, n), logit, dtype=F64)).sample(noise=noise)
    assert abs(float((z > 0).sum()) - n / (1 + float(torch.exp(float64(-logit))))) <= 1
    assert bool((z.diff() >= 0).all())
    assert z.unique().tolist() == [-1.0, 1.0]


def test_rare_bits_are_told_apart() -> None:
    """P(1) = Φ(−ε) to where float64's Φ(ε) is 1."""
    for size in (6.0, 9.0, 15.0):
        logit = float(torch.special.log_ndtr(float64(-size)))
        for sign in (1, -1):
            q = Bits(torch.full((1, 1), sign * logit, dtype=F64))
            assert float(q.sample(noise=float64([[sign * (size + 0.01)]]))) == sign
            assert float(q.sample(noise=float64([[sign * (size - 0.01)]]))) == -sign


def test_samples_come_from_the_generator_in_the_noise_s_type() -> None:
    q, _ = _pair(0)
    noise = torch.empty_like(q.logit).normal_(generator=generator(7))
    assert q.sample(generator(7)).equal(q.sample(noise=noise))
    assert not q.sample(generator(8)).equal(q.sample(noise=noise))
    assert q.sample(noise=noise.float()).dtype == torch.float32
