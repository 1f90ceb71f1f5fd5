"""The non-Markov family against the joint Gaussian of its own recursion, and against the Markov chain at η = 1."""

import numpy as np
import pytest
import torch

from battery import BETAS, close, float64, generator, plain_alpha, plain_posterior, plain_sigma, randn
from diffusional import DiffusionalError, schedule
from diffusional.forward import GaussianDiffusion, NonMarkovDiffusion, Posterior, ddim_at

T = len(BETAS)
SCHEDULE = schedule.from_betas(BETAS)
GAMMA = SCHEDULE.grid().numpy()
MEAN = plain_alpha(GAMMA)
ETAS = (0.2, 0.5, 0.9, 1.0)
X, Z = randn(4, 3, seed=1), randn(4, 3, seed=2)


def joint(eta: float) -> np.ndarray:
    """Cov(z_1 … z_T | x): z_T drawn, then z_{t−1} = α x + √(σ² − η² v) (z_t − α_t x)/σ_t + η √v ε, as one linear system."""
    sigma = plain_sigma(GAMMA)
    root = np.zeros((T, T))
    root[-1, -1] = sigma[-1]
    for s in range(T - 2, -1, -1):
        v = eta**2 * plain_posterior(0.0, 0.0, GAMMA[s], GAMMA[s + 1])[1]
        root[s] = np.sqrt(sigma[s] ** 2 - v) / sigma[s + 1] * root[s + 1]
        root[s, s] = np.sqrt(v)
    return root @ root.T


def given(covariance: np.ndarray, target: int, seen: int) -> tuple[np.ndarray, float]:
    """Mean and variance of z_target given x = X and z_seen = Z."""
    i, j = target - 1, seen - 1
    gain = covariance[i, j] / covariance[j, j]
    mean = MEAN[i] * X.numpy() + gain * (Z.numpy() - MEAN[j] * X.numpy())
    return mean, covariance[i, i] - gain * covariance[j, i]


@pytest.mark.parametrize("eta", ETAS)
def test_every_conditional_is_the_joint_gaussians(eta: float) -> None:
    process, covariance = NonMarkovDiffusion(SCHEDULE, eta), joint(eta)
    close(float64(np.diag(covariance).copy()), plain_sigma(GAMMA) ** 2, rtol=1e-12)  # the marginals are the diffusion's
    for t in range(1, T + 1):
        close(process.marginal(X, t).mean, MEAN[t - 1] * X.numpy(), rtol=1e-12)
        for s in range(1, t):
            q = process.between(Z, X, s, t)
            mean, variance = given(covariance, s, t)
            close(q.mean, mean, rtol=1e-9)
            close(q.variance, variance, rtol=1e-9)
        if t > 1:
            q = process.transition(Z, t, X)
            mean, variance = given(covariance, t, t - 1)
            close(q.mean, mean, rtol=1e-9)
            close(q.variance, variance, rtol=1e-9)
            back = ddim_at(Z, X, process.gamma(t - 1), process.gamma(t), eta)
            close(process.posterior(Z, X, t - 1).mean, back.mean, rtol=1e-12)
            close(process.posterior(Z, X, t - 1).variance, back.variance, rtol=1e-11)


def test_at_one_it_is_the_markov_chain() -> None:
    process, chain = NonMarkovDiffusion(SCHEDULE, 1.0), GaussianDiffusion(SCHEDULE)
    for t in range(2, T + 1):
        for x in (X, -3 * X):  # the step forward does not look at x
            close(process.transition(Z, t, x).mean, chain.transition(Z, t).mean, rtol=1e-10)
        close(process.transition(Z, t, X).variance, chain.transition(Z, t).variance, rtol=1e-10)
        for s in range(1, t):
            close(process.between(Z, X, s, t).mean, chain.between(Z, X, s, t).mean, rtol=1e-10)
            close(process.between(Z, X, s, t).variance, chain.between(Z, X, s, t).variance, rtol=1e-10)
    below = NonMarkovDiffusion(SCHEDULE, 0.5)
    assert not torch.allclose(below.transition(Z, 3, X).mean, below.transition(Z, 3, -X).mean, rtol=0.05)


def test_the_first_step_is_from_x_and_times_may_differ() -> None:
    process = NonMarkovDiffusion(SCHEDULE, 0.5)
    first = process.transition(X, 1, X)
    close(first.mean, MEAN[0] * X.numpy(), rtol=1e-12)
    close(first.variance, BETAS[0], rtol=1e-12)
    t = torch.tensor([1, 3, 6, 2])
    mixed = process.transition(Z, t, X)
    for i in range(4):
        one = process.transition(Z[i : i + 1], int(t[i]), X[i : i + 1])
        close(mixed.mean[i], one.mean[0], rtol=1e-13)
        close(mixed.variance[i].expand(3), one.variance.squeeze().expand(3), rtol=1e-13)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_paths_have_the_joint_covariance(eta: float) -> None:
    n = 20_000
    x = torch.full((n, 1), 1.5, dtype=torch.float64)
    path = NonMarkovDiffusion(SCHEDULE, eta).sample_path(x, generator(0)).squeeze(2).numpy()
    covariance = joint(eta)
    variance = np.diag(covariance)
    assert path.shape == (T, n)
    assert np.all(np.abs(path.mean(1) - 1.5 * MEAN) < 4 * np.sqrt(variance / n))
    scale = np.sqrt(np.outer(variance, variance) + covariance**2)
    assert np.all(np.abs(np.cov(path) - covariance) < 4 * scale / np.sqrt(n))


def test_regrid_and_protocol() -> None:
    process = NonMarkovDiffusion(SCHEDULE, 0.4).regrid(11)
    assert isinstance(process, Posterior)
    assert (process.steps, process.eta) == (11, 0.4)


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.1])
def test_eta_is_above_zero_and_at_most_one(eta: float) -> None:
    with pytest.raises(DiffusionalError, match="infinite"):
        NonMarkovDiffusion(SCHEDULE, eta)


def test_refused() -> None:
    process = NonMarkovDiffusion(SCHEDULE, 0.5)
    with pytest.raises(DiffusionalError, match=r"not Markov.*transition\(z, t, x\)"):
        process.transition(Z, 3)
    for call in (lambda: process.between(Z, X, 3, 3), lambda: process.between(Z, X, 4, 3)):
        with pytest.raises(DiffusionalError, match="s ≥ t"):
            call()
    for t in (0, T + 1):
        with pytest.raises(DiffusionalError, match=f"got {t} to {t}"):
            process.transition(Z, t, X)
