"""The forward diffusion against the joint Gaussian of the whole chain, against diffusers, and against itself both ways."""

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from battery import (
    BETAS,
    F64,
    SCHEDULES,
    close,
    every_schedule,
    float64,
    generator,
    plain_alpha,
    plain_posterior,
    plain_sigma,
    randn,
)
from diffusional import forward as forward_module
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion, Posterior, ddim_at, diffuse, marginal_at, posterior_at, transition_at
from diffusional.shapes import align, sum_dims

T = len(BETAS)
CHAIN = GaussianDiffusion(schedule.from_betas(BETAS))
PAIRS = [(s, t) for t in range(2, T + 1) for s in range(1, t)]

# z_t = √(1−β_t) z_{t−1} + √β_t ε_t, as one linear system: z = MEAN x + ROOT ε, by solving it.
_SYSTEM = np.eye(T) - np.diag(np.sqrt(1 - np.array(BETAS[1:])), -1)
MEAN = np.linalg.solve(_SYSTEM, np.eye(T)[0] * np.sqrt(1 - BETAS[0]))
ROOT = np.linalg.solve(_SYSTEM, np.diag(np.sqrt(BETAS)))
COVARIANCE = ROOT @ ROOT.T


def _given(target: int, seen: list[int], values: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and variance of z_target given x and z_seen = values, by conditioning the joint Gaussian."""
    i, j = target - 1, np.array(seen) - 1
    gain = np.linalg.solve(COVARIANCE[np.ix_(j, j)], COVARIANCE[j, i])
    residual = np.stack([v - MEAN[k] * x for v, k in zip(values, j, strict=True)])
    return MEAN[i] * x + np.tensordot(gain, residual, 1), COVARIANCE[i, i] - gain @ COVARIANCE[j, i]


X, Z = randn(4, 3, seed=1), randn(4, 3, seed=2)


@pytest.mark.parametrize("t", range(1, T + 1))
def test_marginal_and_transition(t: int) -> None:
    q = CHAIN.marginal(X, t)
    close(q.mean, MEAN[t - 1] * X.numpy(), rtol=1e-12)
    close(q.variance, COVARIANCE[t - 1, t - 1], rtol=1e-12)
    step = CHAIN.transition(Z, t)  # for t = 1, from x
    mean, variance = (
        (np.sqrt(1 - BETAS[0]) * Z.numpy(), BETAS[0]) if t == 1 else _given(t, [t - 1], [Z.numpy()], X.numpy())
    )
    close(step.mean, mean, rtol=1e-12)
    close(step.variance, variance, rtol=1e-11)
    close(step.mean, np.sqrt(1 - BETAS[t - 1]) * Z.numpy(), rtol=1e-12)
    close(step.variance, BETAS[t - 1], rtol=1e-11)


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_between_and_transition_over_any_gap(s: int, t: int) -> None:
    mean, variance = _given(s, [t], [Z.numpy()], X.numpy())
    q = CHAIN.between(Z, X, s, t)
    close(q.mean, mean, rtol=1e-11)
    close(q.variance, variance, rtol=1e-11)
    if t == s + 1:
        p = CHAIN.posterior(Z, X, s)
        assert p.mean.equal(q.mean)
        assert p.log_variance.equal(q.log_variance)
    mean, variance = _given(t, [s], [Z.numpy()], X.numpy())
    q = CHAIN.transition(Z, t, s)
    close(q.mean, mean, rtol=1e-11)
    close(q.variance, variance, rtol=1e-11)


def test_times_as_a_tensor_mix_with_the_step_from_x() -> None:
    t = torch.tensor([1, 3, 6, 2])
    next_t = torch.tensor([1, 3, 5, 2])
    for q, one in (
        (CHAIN.marginal(X, t), lambda i: CHAIN.marginal(X[i : i + 1], int(t[i]))),
        (CHAIN.transition(Z, t), lambda i: CHAIN.transition(Z[i : i + 1], int(t[i]))),
        (CHAIN.posterior(Z, X, next_t), lambda i: CHAIN.posterior(Z[i : i + 1], X[i : i + 1], int(next_t[i]))),
    ):
        for i in range(4):
            close(q.mean[i], one(i).mean[0], rtol=1e-14)
            close(q.variance[i].expand(3), one(i).variance.expand(3), rtol=1e-14)
    close(CHAIN.transition(Z, t.to(torch.uint8)).mean, CHAIN.transition(Z, t).mean)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_every_step_against_diffusers(kind: str) -> None:
    """Their t = 0 … T−1 is our z_{t+1}; so their step at t walks from z_{t+1} to z_t."""
    betas = schedule.linear(steps=1000)
    ours = GaussianDiffusion(betas)
    theirs = diffusers.DDPMScheduler(1000, prediction_type="sample", clip_sample=False, variance_type=kind)
    theirs.alphas = 1 - betas.betas  # its own are float32
    theirs.betas, theirs.alphas_cumprod = betas.betas, theirs.alphas.cumprod(0)
    for t in range(1, 1000):
        stepped = theirs.step(X, t, Z, generator=generator(t)).prev_sample
        noise = torch.empty_like(X).normal_(generator=generator(t))
        q = ours.posterior(Z, X, t)
        if kind == "fixed_large":  # the variance of q(z_{t+1} | z_t)
            stepped, expected = stepped - q.mean, ours.transition(Z, t + 1).std * noise
        else:
            expected = q.sample(noise=noise)
        close(stepped, expected, rtol=1e-8, atol=1e-10)
    noisy = theirs.add_noise(X, Z, torch.tensor([0, 1, 500, 999]))
    close(noisy, ours.marginal(X, torch.tensor([1, 2, 501, 1000])).sample(noise=Z), rtol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_against_diffusers(eta: float) -> None:
    betas = schedule.cosine(steps=50)
    theirs = diffusers.DDIMScheduler(50, prediction_type="sample", clip_sample=False)
    theirs.alphas_cumprod = (1 - betas.betas).cumprod(0)
    theirs.set_timesteps(50)
    grid = betas.grid()
    for t in range(1, 50):
        stepped = theirs.step(X, t, Z, eta=eta, generator=generator(t)).prev_sample
        noise = torch.empty_like(X).normal_(generator=generator(t))
        close(ddim_at(Z, X, grid[t - 1], grid[t], eta).sample(noise=noise), stepped, rtol=1e-8, atol=1e-10)


def test_walk_and_jump_agree_exactly() -> None:
    """Push mean and variance through the walk z_{t−1} → z_t and compare with the jump q(z_t|x)."""
    one = torch.ones(1, 1, dtype=F64)
    for name in SCHEDULES:
        process = GaussianDiffusion(SCHEDULES[name]().regrid(40))
        mean, variance = one, torch.zeros(1, 1, dtype=F64)
        for t in range(1, 41):
            gain = process.transition(one, t).mean
            mean, variance = process.transition(mean, t).mean, gain**2 * variance + process.transition(one, t).variance
            jump = process.marginal(one, t)
            close(mean, jump.mean, rtol=1e-11)
            close(variance.squeeze(), jump.variance.squeeze(), rtol=1e-11)


def test_sample_path_is_the_recursion() -> None:
    """z_t = √(1−β_t) z_{t−1} + √β_t ε_t with the very draws of the generator, in order."""
    path, noise, z = CHAIN.sample_path(X, generator(5)), generator(5), X
    assert path.shape == (T, 4, 3)
    for t, beta in enumerate(BETAS):
        z = (1 - beta) ** 0.5 * z + beta**0.5 * torch.empty_like(z).normal_(generator=noise)
        close(path[t], z, rtol=1e-12)


def test_walk_and_jump_agree_in_distribution() -> None:
    n = 20_000
    x = torch.full((n, 1), 1.5, dtype=F64)
    walked = CHAIN.sample_path(x, generator(0)).squeeze(2).numpy()
    jumped = np.stack([CHAIN.marginal(x, t).sample(generator(t)).squeeze(1).numpy() for t in range(1, T + 1)])
    for draws in (walked, jumped):
        variance = np.diag(COVARIANCE)
        assert np.all(np.abs(draws.mean(1) - 1.5 * MEAN) < 4 * np.sqrt(variance / n))
        assert np.all(np.abs(draws.var(1) - variance) < 4 * variance * np.sqrt(2 / n))
    scale = np.sqrt(np.outer(variance, variance))
    assert np.all(np.abs(np.cov(walked) - COVARIANCE) < 4 * scale * np.sqrt(2 / n))


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("gamma_s", "gamma_t"), [(-9.0, -8.9), (-2.0, 3.0), (0.5, 0.7)])
def test_ddim_keeps_the_marginals(eta: float, gamma_s: float, gamma_t: float) -> None:
    """z_t ~ q(z_t|x) through q_η(z_s|z_t, x) is q(z_s|x): mean and variance, by linearity."""
    s, t, x = float64(gamma_s), float64(gamma_t), float64([[1.7]])
    zero = ddim_at(0 * x, x, s, t, eta)
    gain = ddim_at(0 * x + 1, x, s, t, eta).mean - zero.mean
    close(zero.mean + gain * plain_alpha(gamma_t) * x, plain_alpha(gamma_s) * x, rtol=1e-11)
    close((gain**2 * plain_sigma(gamma_t) ** 2 + zero.variance).squeeze(), plain_sigma(gamma_s) ** 2, rtol=1e-11)
    _, variance = plain_posterior(0.0, 1.7, gamma_s, gamma_t)
    close(zero.variance.squeeze(), eta**2 * variance, rtol=1e-9)


def test_ddim_ends() -> None:
    gamma = CHAIN.gamma(torch.arange(1, T + 1))
    for s, t in PAIRS:
        markov, q = ddim_at(Z, X, gamma[s - 1], gamma[t - 1], 1.0), CHAIN.between(Z, X, s, t)
        close(markov.mean, q.mean, rtol=1e-11)
        close(markov.variance, q.variance, rtol=1e-11)
        still = ddim_at(Z, X, gamma[s - 1], gamma[t - 1], 0.0)
        assert still.sample(generator(0)).equal(still.mean)
    for eta in (-0.1, 1.1):
        with pytest.raises(DiffusionalError, match="eta"):
            ddim_at(Z, X, gamma[0], gamma[1], eta)


@every_schedule
def test_low_noise_coefficients_do_not_cancel(name: str) -> None:
    """At neighbouring levels, where 1 − α² and differences of SNRs would cancel: against plain_posterior's own accuracy."""
    grid = SCHEDULES[name]().grid()
    for i in {0, len(grid) // 2, len(grid) - 2}:
        q = posterior_at(Z, X, grid[i], grid[i + 1])
        mean, variance = plain_posterior(Z.numpy(), X.numpy(), float(grid[i]), float(grid[i + 1]))
        close(q.mean, mean, rtol=1e-8, atol=1e-9)
        close(q.variance, variance, rtol=1e-8)
        forward = transition_at(Z, grid[i], grid[i + 1])
        if isinstance(SCHEDULES[name](), schedule.FromBetas):
            close(forward.variance, SCHEDULES[name]().betas[i + 1], rtol=1e-9)


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape_dtype_and_schedule(data: st.DataObject) -> None:
    """Shapes and dtypes are kept, and averaging q(z_s|z_t, x) over q(z_t|x) gives q(z_s|x)."""
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, F64]))
    betas = data.draw(st.lists(st.floats(1e-4, 0.9), min_size=2, max_size=9))
    process = GaussianDiffusion(schedule.from_betas(betas))
    t = data.draw(st.integers(2, len(betas)))
    s = data.draw(st.integers(1, t - 1))
    if data.draw(st.booleans()):
        t, s = torch.full((3,), t), torch.full((3,), s)
    x = randn(3, *dims, dtype=dtype)
    jump, end = process.marginal(x, s), process.marginal(x, t)
    back = process.between(end.mean, x, s, t)
    gain = process.between(torch.ones_like(x), 0 * x, s, t).mean
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(back.mean, jump.mean, **tolerance)
    spread = gain**2 * end.variance + back.variance
    torch.testing.assert_close(spread, jump.variance.expand(x.shape), **tolerance)
    there = process.transition(jump.mean, t, s)
    torch.testing.assert_close(there.mean, end.mean, **tolerance)
    for q in (jump, end, back, there):
        assert q.mean.shape == x.shape
        assert q.mean.dtype == q.log_variance.dtype == dtype
        assert q.sample(generator()).shape == x.shape


@pytest.mark.parametrize("dims", [(3,), (1, 4, 4), (2, 5), ()])
def test_diffuse_is_the_marginal_with_its_noise_given(dims: tuple[int, ...]) -> None:
    gamma, x, noise = float64([-12.0, 0.0, 9.0]), randn(3, *dims, seed=1), randn(3, *dims, seed=2)
    z = diffuse(x, gamma, noise)
    for i in range(3):
        g = float(gamma[i])
        close(z[i], plain_alpha(g) * x[i] + plain_sigma(g) * noise[i], rtol=1e-12)
    close(z, marginal_at(x, gamma).sample(noise=noise), rtol=1e-12)
    close(forward_module.alpha(gamma), plain_alpha(gamma.numpy()), rtol=1e-12)
    close(forward_module.sigma(gamma), plain_sigma(gamma.numpy()), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CHAIN.marginal(X, 0), "expected t from 1 to 6, got 0 to 0"),
        (lambda: CHAIN.marginal(X, 7), "expected t from 1 to 6, got 7 to 7"),
        (lambda: CHAIN.marginal(X, torch.tensor([1, 2, -3, 4])), "got -3 to 4"),
        (lambda: CHAIN.marginal(X, torch.tensor([1.0, 2, 3, 4])), "integers.*float32"),
        (lambda: CHAIN.marginal(X, torch.ones(4, dtype=torch.bool)), "bool"),
        (lambda: CHAIN.transition(X, 0), "got 0 to 0"),
        (lambda: CHAIN.transition(X, 7), "expected t from 1 to 6"),
        (lambda: CHAIN.transition(X, 3, -1), "expected t from 0 to 6"),
        (lambda: CHAIN.transition(X, 3, 3), "s ≥ t"),
        (lambda: CHAIN.transition(X, 3, 4), "s ≥ t"),
        (lambda: CHAIN.posterior(Z, X, 6), "expected t from 1 to 5, got 6 to 6"),
        (lambda: CHAIN.posterior(Z, X, 0), "got 0 to 0"),
        (lambda: CHAIN.between(Z, X, 0, 2), "got 0 to 0"),
        (lambda: CHAIN.between(Z, X, 2, 2), "s ≥ t"),
        (lambda: CHAIN.between(Z, X, torch.tensor([1, 2, 5, 1]), torch.tensor([2, 3, 4, 5])), "s ≥ t"),
        (lambda: GaussianDiffusion(schedule.log_snr_linear()).marginal(X, 1), "continuous"),
        (lambda: CHAIN.marginal(X, torch.tensor([1, 2, 3])), r"4 items, got values of shape \(3,\)"),
        (lambda: align(torch.zeros(4, 1), X), "expected one number, or one for each of 4 items"),
        (lambda: align(torch.zeros(2), X), "4 items"),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_align_and_sum() -> None:
    like = torch.zeros(4, 3, 2, dtype=torch.float32)
    assert align(torch.arange(4), like).shape == (4, 1, 1)
    assert align(float64(2.0), like).shape == ()
    assert align(float64([2.0]), like).shape == (1, 1, 1)
    assert align(torch.arange(4.0), torch.zeros(4)).shape == (4,)
    assert align(float64(2.0), like).dtype == torch.float32
    values = randn(4, 3, 2)
    close(sum_dims(values), values.numpy().sum((1, 2)))
    assert sum_dims(values[:, 0, 0]).equal(values[:, 0, 0])


def test_the_process_is_a_posterior_and_regrids() -> None:
    assert isinstance(CHAIN, Posterior)
    assert CHAIN.steps == T
    other = CHAIN.regrid(11)
    assert (other.steps, CHAIN.steps) == (11, T)
    close(other.gamma(torch.tensor([1, 3, 11])), CHAIN.gamma(torch.tensor([1, 2, 6])), rtol=1e-12)
    assert CHAIN.regrid(None).steps is None
