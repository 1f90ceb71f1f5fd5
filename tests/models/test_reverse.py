"""The backward step and its KL, MATH (10), against torch.distributions and formulas written out with plain alphas."""

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from battery import (
    F64,
    SCHEDULES,
    close,
    every_prediction,
    every_schedule,
    float64,
    plain_alpha,
    plain_posterior,
    plain_sigma,
    randn,
)
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.forward import posterior_at
from diffusional.models.parameterization import Prediction
from diffusional.models.reverse import VARIANCES, check_variance, kl, kl_density, log_ratio, prior_kl, step

GAMMA_S, GAMMA_T = float64([-3.0, -1.0, 0.2, 1.0]), float64([-2.5, 0.7, 0.4, 3.0])
X, NOISE, SAID = (randn(4, 2, 3, seed=i) for i in range(3))
every_variance = pytest.mark.parametrize("variance", ["posterior", "transition"])


COLUMNS = GAMMA_S[:, None, None], GAMMA_T[:, None, None]
A, S = plain_alpha(COLUMNS[1]), plain_sigma(COLUMNS[1])
Z = A * X + S * NOISE
X_HAT = {"data": SAID, "noise": (Z - S * SAID) / A, "v": A * Z - S * SAID, "score": (Z + S**2 * SAID) / A}


def _plain_variance(variance: str) -> torch.Tensor:
    """σ²_{t|s} σ_s²/σ_t² or σ²_{t|s}, σ²_{t|s} = σ_t² − (α_t/α_s)² σ_s² (MATH (3), (5)), (4, 1, 1)."""
    gamma_s, gamma_t = COLUMNS
    sigma2_s, sigma2_t = plain_sigma(gamma_s) ** 2, plain_sigma(gamma_t) ** 2
    transition = sigma2_t - (plain_alpha(gamma_t) / plain_alpha(gamma_s)) ** 2 * sigma2_s
    return transition if variance == "transition" else transition * sigma2_s / sigma2_t


@every_variance
@every_prediction
def test_step_as_written_out(kind: str, variance: str) -> None:
    p = step(Prediction(Z, GAMMA_T, SAID, kind), GAMMA_S, GAMMA_T, variance)
    mean, _ = plain_posterior(Z, X_HAT[kind], *COLUMNS)
    close(p.mean, mean, rtol=1e-9, atol=1e-11)
    close(p.variance, _plain_variance(variance), rtol=1e-10)


@every_variance
@every_prediction
def test_kl_is_the_kl(kind: str, variance: str) -> None:
    """From ‖ε − ε̂‖² alone, yet equal to KL[q(z_s|z_t, x) ‖ p(z_s|z_t)] by torch.distributions."""
    prediction = Prediction(Z, GAMMA_T, SAID, kind)
    ours = kl(prediction.squared_error(X, NOISE), GAMMA_S, GAMMA_T, 6, variance)
    (mean_q, variance_q), (mean_p, _) = (plain_posterior(Z, x, *COLUMNS) for x in (X, X_HAT[kind]))
    q, p = Normal(mean_q, variance_q**0.5), Normal(mean_p, _plain_variance(variance) ** 0.5)
    close(ours, kl_divergence(q, p).sum((1, 2)), rtol=1e-9)
    close(ours, posterior_at(Z, X, GAMMA_S, GAMMA_T).kl(step(prediction, GAMMA_S, GAMMA_T, variance)), rtol=1e-9)


@every_variance
@pytest.mark.parametrize("gap", [1e-9, 1e-5, 1e-3, 0.3])
@pytest.mark.parametrize("gamma_s", [-13.0, 0.0, 20.0])
def test_kl_against_mpmath_at_neighbouring_levels(variance: str, gap: float, gamma_s: float) -> None:
    s, t, error = float64([gamma_s]), float64([gamma_s]) + gap, 2.5
    with mpmath.workdps(60):
        exact_s, exact_t = mpmath.mpf(float(s)), mpmath.mpf(float(t))
        r = (1 + mpmath.exp(-exact_t)) / (1 + mpmath.exp(-exact_s)) if variance == "transition" else mpmath.mpf(1)
        noise_part = r * (mpmath.exp(exact_t - exact_s) - 1) / 2 * error
        exact = float(7 * (r - 1 - mpmath.log(r)) / 2 + noise_part)
    close(kl(float64([error]), s, t, 7, variance), [exact], rtol=1e-9, atol=0)
    # ln r loses digits where both σ are nearly one; no more than rounding of γ itself does.
    close(log_ratio(s, t, variance), [float(mpmath.log(r))], rtol=1e-6, atol=1e-15)


@every_schedule
def test_kl_density_is_the_limit(name: str) -> None:
    """KL over one of T → ∞ steps, times T."""
    made, error = SCHEDULES[name](), float64([2.5, 1.0, 0.3])
    u, h = float64([0.13, 0.5004, 0.87]), 1e-7
    density = kl_density(error, made.dgamma(u))
    close(kl(error, made.gamma(u), made.gamma(u + h), 7, "posterior") / h, density, rtol=1e-3)
    close(density, 0.5 * made.dgamma(u).detach().numpy() * error.numpy())


def test_kl_density_integrates_to_the_sum_of_many_steps() -> None:
    """½ ∫ γ' σ² du = ½ ∫ sigmoid(γ) dγ = ½ [softplus], for the denoiser with ‖ε − ε̂‖² = σ²."""
    made = schedule.log_snr_linear(-4.0, 3.0, steps=20_001)
    grid = made.grid()
    exact = 0.5 * (np.logaddexp(0, 3.0) - np.logaddexp(0, -4.0))
    close(kl(plain_sigma(grid[1:]) ** 2, grid[:-1], grid[1:], 1, "posterior").sum(), exact, rtol=1e-3)
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    close(kl_density(plain_sigma(made.gamma(u)) ** 2, made.dgamma(u)).mean(), exact, rtol=1e-6)


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 3.0, 12.0])
@pytest.mark.parametrize("dims", [(3,), (2, 3)])
def test_prior_kl(gamma: float, dims: tuple[int, ...]) -> None:
    x = 2 * randn(4, *dims)
    q = Normal(plain_alpha(gamma) * x, float64(plain_sigma(gamma)))
    expected = kl_divergence(q, Normal(float64(0.0), float64(1.0))).flatten(1).sum(1)
    close(prior_kl(x, float64(gamma)), expected, rtol=1e-9)
    assert prior_kl(x.float(), float64(gamma)).dtype == F64


def test_prior_kl_vanishes_as_half_the_snr() -> None:
    """MATH C8: KL_T / (½ SNR_T ‖x‖²) → 1, far below where 1 − α² or σ² − 1 − ln σ² would cancel."""
    x = randn(4, 3)
    close(prior_kl(x, float64(40.0)), 0.5 * np.exp(-40.0) * x.square().sum(1), rtol=1e-12, atol=0)


def test_variances() -> None:
    for variance in VARIANCES:
        check_variance(variance)
    with pytest.raises(DiffusionalError, match="posterior, transition"):
        check_variance("learnt")
