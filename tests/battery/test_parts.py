"""Every forward process, distribution of latents and sampler of levels through the same statements: adding one means adding a row."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import BETAS, F64, generator, randn
from diffusional import schedule, timesteps
from diffusional.forward import transition_of
from outside.masked_bits import Masking, States
from outside.multinomial import Multinomial

NOISE, D = schedule.from_betas(BETAS), 3

PROCESSES: dict[str, Callable[[], Any]] = {
    "Gaussian": lambda: df.GaussianDiffusion(NOISE),
    "not Markov": lambda: df.NonMarkovDiffusion(NOISE, 0.6),
    "binomial": lambda: df.BinomialDiffusion(BETAS),
    "masking": Masking,
    "masks": lambda: df.Absorbing(2, 5),
    "masks, one at a time": lambda: df.OneAtATime(2, 5),
    "redrawn uniformly": lambda: df.UniformNoise(2, 5),
    "multinomial, not Markov": lambda: Multinomial(df.Discrete((D,), 3), 5, keep=0.6),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def _rows(n: int, *shape: int, seed: int) -> Tensor:
    """The same numbers for n items."""
    return randn(1, *shape, seed=seed).expand(n, *shape)


# Two distributions of a kind, of n items.
DISTRIBUTIONS: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "Gaussian": lambda n: (
        df.Gaussian(_rows(n, D, seed=0), 0.5 * _rows(n, D, seed=1)),
        df.Gaussian(_rows(n, D, seed=2), 1 + 0 * _rows(n, D, seed=3)),
    ),
    "Bits": lambda n: (df.Bits(_rows(n, D, seed=0)), df.Bits(2 * _rows(n, D, seed=1))),
    "Categorical": lambda n: (
        df.Categorical(_rows(n, D, 4, seed=0), torch.tensor([-1.0, 0.0, 0.5, 2.0])),
        df.Categorical(_rows(n, D, 4, seed=1), torch.tensor([-1.0, 0.0, 0.5, 2.0])),
    ),
    "States": lambda n: (States(_rows(n, D, 3, seed=0).softmax(2)), States(_rows(n, D, 3, seed=1).softmax(2))),
}

SAMPLERS: dict[str, Callable[[], timesteps.TimestepSampler]] = {
    "uniform": timesteps.Uniform,
    "stratified": timesteps.Stratified,
    "adaptive": lambda: warmed(timesteps.Adaptive(cells=4)),
    "second moment": lambda: warmed(timesteps.SecondMoment(history=2)),
}


def warmed(sampler: timesteps.TimestepSampler) -> timesteps.TimestepSampler:
    """After costs that rise with the level, of 5 levels."""
    for _ in range(4):
        at = timesteps.position(torch.arange(1, 6), 5)
        sampler.update(at, 0.1 + at)
    return sampler


# Processes of sequences, whose categories are 0 and 1, and the lengths of their items.
SEQUENCES = {"masks": D, "masks, one at a time": 5, "redrawn uniformly": D}


def items(n: int, name: str = "") -> Tensor:
    """Bits −1 and 1, or sequences of 0 and 1 for a process of sequences."""
    bits = randn(n, SEQUENCES.get(name, D), seed=4).sign()
    return (bits + 1) / 2 if name in SEQUENCES else bits


def agree(one: Tensor, other: Tensor) -> None:
    """Draws (N, …) of two variables have the same mean everywhere."""
    error = (one.double().var(0) / len(one) + other.double().var(0) / len(other)).sqrt()
    apart = (one.double().mean(0) - other.double().mean(0)).abs()
    assert bool((apart < 4.5 * error + 1e-9).all()), (apart, error)


# Processes.


@every_process
def test_bayes_rule_joins_what_a_process_says(name: str) -> None:
    """q(z_t|x) q(z_{t+1}|z_t, x) = q(z_{t+1}|x) q(z_t|z_{t+1}, x) at any latents that it may draw."""
    process, x = PROCESSES[name](), items(50, name)
    path = process.sample_path(x, generator(0))
    assert path.shape == (process.steps, *x.shape)
    assert path.dtype == x.dtype
    for t in range(1, process.steps):
        z, after = path[t - 1], path[t]
        forth = process.marginal(x, t).log_prob(z) + transition_of(process, z, t + 1, x).log_prob(after)
        back = process.marginal(x, t + 1).log_prob(after) + process.posterior(after, x, t).log_prob(z)
        assert bool(torch.isfinite(forth).all())
        torch.testing.assert_close(forth, back, rtol=1e-8, atol=1e-8)


class _Timeless(df.ForwardProcess):
    """A process from outside the package that has no T."""

    steps = None


@pytest.mark.parametrize(
    "process",
    [
        df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 4.0)),
        df.NonMarkovDiffusion(schedule.log_snr_linear(-4.0, 4.0), 0.5),
        _Timeless(),
    ],
)
def test_a_path_needs_finitely_many_latents(process: df.ForwardProcess) -> None:
    with pytest.raises(df.DiffusionalError, match="steps=None"):
        process.sample_path(items(2))


def test_processes_share_one_walk() -> None:
    assert df.BinomialDiffusion.sample_path is df.GaussianDiffusion.sample_path is df.ForwardProcess.sample_path


@every_process
def test_a_path_has_the_marginals(name: str) -> None:
    process, x = PROCESSES[name](), items(1, name).repeat(6000, 1)
    path = process.sample_path(x, generator(1))
    for t in range(1, process.steps + 1):
        z = process.marginal(x, t).sample(generator(1 + t))
        agree(path[t - 1], z.to(x.dtype))
        agree(path[t - 1].square(), z.to(x.dtype).square())


@every_process
def test_times_may_differ_from_item_to_item(name: str) -> None:
    process, x = PROCESSES[name](), items(4, name)
    t = torch.tensor([1, 3, 2, 4])
    z = process.sample_path(x, generator(2))[4]
    for at in (process.marginal, lambda x, t: process.posterior(z[: len(x)], x, t)):
        together = at(x, t).log_prob(x) if name != "masking" else at(x, t).p
        for i in range(4):
            alone = at(x, int(t[i])).log_prob(x) if name != "masking" else at(x, int(t[i])).p
            torch.testing.assert_close(together[i], alone[i], rtol=1e-10, atol=1e-12)


# Distributions.


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_what_they_draw(name: str) -> None:
    n = 40_000
    q, p = DISTRIBUTIONS[name](n)
    z = q.sample(noise=randn(n, D, seed=6))
    assert torch.equal(z, q.sample(noise=randn(n, D, seed=6)))
    log_q, log_p = q.log_prob(z).double(), p.log_prob(z).double()
    _has_mean(log_q - log_p, float(q.kl(p)[0]))
    _has_mean((log_p - log_q).exp(), 1.0)
    torch.testing.assert_close(q.kl(q).double(), torch.zeros(n, dtype=F64), rtol=0, atol=1e-12)
    if hasattr(q, "kl_map"):
        torch.testing.assert_close(q.kl_map(p).sum(1), q.kl(p), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(q.log_prob_map(z).sum(1), q.log_prob(z), rtol=1e-12, atol=1e-12)
    if hasattr(q, "entropy"):
        _has_mean(-log_q, float(q.entropy()[0]))
    # A generator draws from the same law.
    agree(z, q.sample(generator(7)))
    agree(z.square(), q.sample(generator(8)).square())


def _has_mean(values: Tensor, mean: float) -> None:
    assert abs(float(values.mean()) - mean) < 4.5 * float(values.std()) / math.sqrt(len(values))


# Samplers of levels.


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("count", [5, None])
def test_levels_come_with_weights_that_make_sums_unbiased(name: str, count: int | None) -> None:
    """E w f(t) = Σ_t f(t), or ∫ f(u) du, MATH (22)."""
    if name == "second moment" and count is None:
        with pytest.raises(df.DiffusionalError):
            SAMPLERS[name]().sample(4, None, generator(0))
        return
    sampler, n = SAMPLERS[name](), 20
    drawn = [sampler.sample(n, count, generator(i)) for i in range(500)]
    level, weight = (torch.stack([getattr(d, part) for d in drawn]).double() for part in ("level", "weight"))
    at = level if count is None else timesteps.position(level.flatten(), count).view_as(level)
    means = (weight * torch.exp(at)).mean(1)
    grid = torch.arange(1, 6) if count else torch.linspace(0, 1, 100_001, dtype=F64)
    exact = torch.exp(timesteps.position(grid, count)).sum() if count else torch.exp(grid).mean()
    _has_mean(means, float(exact))
    assert bool((weight > 0).all())
