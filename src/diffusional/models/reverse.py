"""The reverse step p(z_s | z_t): q(z_s | z_t, x = x̂) of MATH (3) with a variance of its own, and its KL divergence (10).

    p(z_s | z_t) = N(mean of q(z_s | z_t, x̂), v_p),   v_p = v_q = σ²_{t|s} σ_s²/σ_t²   "posterior"
                                                      v_p = σ²_{t|s}                   "transition"
                                                      ln v_p between the two           "learned", at every position

If s is one level below t, the cost is affine in the denoiser's squared error (MATH (10)):

    posterior:   KL = ½ expm1(γ_t − γ_s) ‖ε − ε̂‖²
    transition:  KL = ½ D (r − 1 − ln r) + r · ½ expm1(γ_t − γ_s) ‖ε − ε̂‖²,     r = v_q/v_p = σ_s²/σ_t²

with coefficients in float64, which depend only on differences of γ. A learned variance (Nichol & Dhariwal 2021, eq. 15) has its ratio at
every position, ln r_d = f_d ln σ_s²/σ_t², f_d the network's fraction, and

    learned:     KL = ½ Σ_d [φ(ln r_d) + r_d expm1(γ_t − γ_s) (ε − ε̂)²_d].
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.forward import posterior_at
from diffusional.gaussian import Gaussian, phi
from diffusional.models.parameterization import Prediction
from diffusional.shapes import Batch, PerItem, align, sum_dims
from diffusional.words import check_word

Variance = Literal["posterior", "transition", "learned"]
VARIANCES: tuple[str, ...] = ("posterior", "transition", "learned")


def check_variance(variance: str) -> None:
    """Raise DiffusionalError unless `variance` is one of VARIANCES."""
    check_word("variance", variance, VARIANCES)


def log_ratio(gamma_s: Tensor, gamma_t: Tensor, variance: Variance) -> Tensor:
    """Return ln r = ln v_q − ln v_p (float64) for a fixed variance: 0, or ln σ_s²/σ_t² for "transition". For "learned" it is 0."""
    if variance != "transition":
        return torch.zeros_like(gamma_s.double())
    return logsigmoid(gamma_s.double()) - logsigmoid(gamma_t.double())


def kl(squared_error: PerItem, gamma_s: Tensor, gamma_t: Tensor, dimensions: int, variance: Variance) -> PerItem:
    """Return KL[q(z_s|z_t,x) ‖ p(z_s|z_t)] (B,), nats, float64, from ‖ε − ε̂‖² (B,): MATH (10).

    >>> g = torch.tensor([0.0, 0.1], dtype=torch.float64)
    >>> kl(torch.tensor([2.0]), g[:1], g[1:], dimensions=3, variance="posterior")     # expm1(0.1)
    tensor([0.1052], dtype=torch.float64)
    """
    log_r = log_ratio(gamma_s, gamma_t, variance)
    half = 0.5 * torch.expm1(gamma_t.double() - gamma_s.double())
    return 0.5 * dimensions * phi(log_r) + torch.exp(log_r) * half * squared_error.double()


def log_ratios(prediction: Prediction, gamma_s: Tensor, gamma_t: Tensor, variance: Variance) -> Tensor:
    """Return ln r (float64), which broadcasts against z (B, *dims): a number for each item, or f ln σ_s²/σ_t² for a learned variance."""
    z = prediction.z.double()
    if variance != "learned":
        return align(log_ratio(gamma_s, gamma_t, variance), z)
    return prediction.fraction.double() * align(log_ratio(gamma_s, gamma_t, "transition"), z)


def kl_learned(squared_errors: Batch, log_r: Batch, gamma_s: Tensor, gamma_t: Tensor) -> PerItem:
    """Return KL[q(z_s|z_t,x) ‖ p(z_s|z_t)] (B,), nats, float64, from (ε − ε̂)² and ln r at every position (B, *dims): MATH (10).

    >>> g, one = torch.tensor([0.0, 0.1], dtype=torch.float64), torch.ones(1, 3)
    >>> kl_learned(one, 0 * one, g[:1], g[1:])                                        # 3/2 expm1(0.1)
    tensor([0.1578], dtype=torch.float64)
    """
    return sum_dims(kl_map(squared_errors, log_r, gamma_s, gamma_t))


def kl_map(squared_errors: Batch, log_r: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Batch:
    """Return the same KL at every position (B, *dims), nats, float64, whose sum is `kl_learned` or, for a fixed variance, `kl`. ln r may
    be one number for each item (B, 1, …).

    >>> g, one = torch.tensor([0.0, 0.1], dtype=torch.float64), torch.ones(1, 2)
    >>> kl_map(one, 0 * one, g[:1], g[1:])                                            # 1/2 expm1(0.1)
    tensor([[0.0526, 0.0526]], dtype=torch.float64)
    """
    half = align(0.5 * torch.expm1(gamma_t.double() - gamma_s.double()), squared_errors.double())
    return 0.5 * phi(log_r.double()) + log_r.double().exp() * half * squared_errors.double()


def kl_density(squared_error: PerItem, dgamma: Tensor) -> PerItem:
    """Return dKL/du = ½ γ'(u) ‖ε − ε̂‖² (B,), nats per unit of u, float64: the integrand of MATH (10) in continuous time."""
    return 0.5 * dgamma.double() * squared_error.double()


def prior_kl(x: Batch, gamma_last: Tensor, variance: float = 1.0) -> PerItem:
    """Return KL_T = KL[N(α_T x, σ_T² I) ‖ N(0, v I)] (B,) = ½ [α_T² ‖x‖²/v + D φ(ln σ_T²/v)], nats, float64; exact, no draw. v = `variance`,
    MATH (23).

    >>> prior_kl(torch.ones(1, 2), torch.tensor(0.0))     # ½ [½ · 2 + 2 (½ − 1 + ln 2)] = ln 2
    tensor([0.6931], dtype=torch.float64)
    """
    gamma_last = gamma_last.double()
    flat = x.double().flatten(1)
    variance_part = flat.shape[1] * phi(logsigmoid(gamma_last) - math.log(variance))
    return 0.5 * (torch.sigmoid(-gamma_last) * flat.square().sum(1) / variance + variance_part)


def prior_map(x: Batch, gamma_last: Tensor, variance: float = 1.0) -> Batch:
    """Return KL_T at every position (B, *dims), nats, float64, whose sum is `prior_kl`.

    >>> prior_map(torch.ones(1, 2), torch.tensor(0.0))
    tensor([[0.3466, 0.3466]], dtype=torch.float64)
    """
    last = gamma_last.double()
    of_variance = phi(logsigmoid(last) - math.log(variance))
    return 0.5 * (torch.sigmoid(-last) * x.double().square() / variance + of_variance)


def step(prediction: Prediction, gamma_s: Tensor, gamma_t: Tensor, variance: Variance) -> Gaussian:
    """Return p(z_s | z_t) for the denoiser's prediction at z_t (MATH (5))."""
    q = posterior_at(prediction.z, prediction.data, gamma_s, gamma_t)
    log_r = log_ratios(prediction, gamma_s, gamma_t, variance)
    return Gaussian(q.mean, q.log_variance - log_r.to(q.mean))
