"""variance="learned": ln v_p between the posterior's and the transition's at every position (MATH (5), (10); Nichol & Dhariwal 2021)."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from battery import BETAS, F64, close, every_prediction, generator, plain_alpha, plain_posterior, plain_sigma, randn
from diffusional import (
    Continuous,
    Denoiser,
    DiffusionModel,
    Discrete,
    GaussianDiffusion,
    evaluate,
    exact,
    likelihood,
    schedule,
)
from diffusional.errors import DiffusionalError
from diffusional.information import budget
from diffusional.models import reverse
from diffusional.models.denoiser import output_channels
from diffusional.models.parameterization import Prediction

X, NOISE = randn(5, 2, 3, seed=1), randn(5, 2, 3, seed=2)


class _Says(nn.Module):
    """Its mean is tanh of an affine map of z (of `outputs` · C channels), and o one of z and log-SNR, from −4 to 4, or a given number."""

    def __init__(self, outputs: int = 1, o: float | None = None) -> None:
        super().__init__()
        self.outputs, self.o = outputs, o

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        level = log_snr.reshape(-1, *(1,) * (z.ndim - 1))
        mean = torch.cat([torch.tanh((0.4 + 0.3 * k) * z + 0.1 * k) for k in range(self.outputs)], 1)
        o = 4 * torch.sin(3 * z + level) if self.o is None else torch.full_like(z, self.o)
        return torch.cat([mean, o], 1)


def _fraction(z: Tensor, gamma: Tensor) -> Tensor:
    return 0.5 * (4 * torch.sin(3 * z - gamma) + 1)


def _model(predicts: str = "noise", o: float | None = None, variance: str = "learned") -> DiffusionModel:
    learns = variance == "learned"
    module = _Says(o=o)
    denoiser = Denoiser(module if learns else lambda z, s: module(z, s)[:, :2], predicts, learns_variance=learns)  # type: ignore[arg-type]
    process = GaussianDiffusion(schedule.from_betas(BETAS))
    return DiffusionModel(process, denoiser, likelihood.GaussianLikelihood(Continuous((2, 3))), variance)  # type: ignore[arg-type]


def _plain_p(z: Tensor, x_hat: Tensor, f: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of p(z_s|z_t) by the textbook: ln v_p = (1 − f) ln v_q + f ln σ²_{t|s}."""
    mean, v_q = plain_posterior(z, x_hat, gamma_s, gamma_t)
    transition = (
        plain_sigma(gamma_t) ** 2 - (plain_alpha(gamma_t) / plain_alpha(gamma_s)) ** 2 * plain_sigma(gamma_s) ** 2
    )
    return mean, torch.exp((1 - f) * torch.log(v_q) + f * torch.log(transition))


def _plain_x_hat(predicts: str, z: Tensor, said: Tensor, gamma: Tensor) -> Tensor:
    a, s = plain_alpha(gamma), plain_sigma(gamma)
    return {"data": said, "noise": (z - s * said) / a, "v": a * z - s * said, "score": (z + s**2 * said) / a}[predicts]


@every_prediction
def test_kl_is_that_of_two_gaussians(kind: str) -> None:
    """At every level, f between −1.5 and 2.5."""
    model = _model(kind)
    grid = model.process.schedule.grid()
    for t in range(1, 6):
        gamma_s, gamma_t = grid[t - 1], grid[t]
        z = plain_alpha(gamma_t) * X + plain_sigma(gamma_t) * NOISE
        f = _fraction(z, gamma_t)
        assert float(f.min()) < -0.5
        assert float(f.max()) > 1.5
        q = Normal(*(part for part in _sqrt(plain_posterior(z, X, gamma_s, gamma_t))))
        p = Normal(*_sqrt(_plain_p(z, _plain_x_hat(kind, z, torch.tanh(0.4 * z), gamma_t), f, gamma_s, gamma_t)))
        got = model.kl_at(X, torch.full((5,), t), NOISE)
        close(got, kl_divergence(q, p).sum((1, 2)), rtol=1e-9)


def _sqrt(moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return moments[0], moments[1].sqrt().expand(moments[0].shape)


@every_prediction
@pytest.mark.parametrize(("o", "variance"), [(-1.0, "posterior"), (1.0, "transition")])
def test_at_its_ends_it_is_the_fixed_one(o: float, variance: str, kind: str) -> None:
    learned, fixed = _model(kind, o), _model(kind, o, variance)
    level = torch.arange(1, 6)
    close(learned.kl_at(X, level, NOISE), fixed.kl_at(X, level, NOISE), rtol=1e-12)
    noise = randn(6, 5, 2, 3)
    close(learned.terms(X, noise).nelbo, fixed.terms(X, noise).nelbo, rtol=1e-12)
    close(learned.path_elbo(X, generator(1)).nelbo, fixed.path_elbo(X, generator(1)).nelbo, rtol=1e-12)
    # f = ½ is neither.
    half = _model(kind, 0.0).kl_at(X, level, NOISE)
    assert float((half - fixed.kl_at(X, level, NOISE)).abs().min()) > 1e-4


@every_prediction
def test_the_step_as_written_out(kind: str) -> None:
    model, z = _model(kind), randn(5, 2, 3, seed=4)
    grid = model.process.schedule.grid()
    p = reverse.step(model.denoiser(z, grid[3].expand(5)), grid[2], grid[3], "learned")
    mean, variance = _plain_p(
        z, _plain_x_hat(kind, z, torch.tanh(0.4 * z), grid[3]), _fraction(z, grid[3]), grid[2], grid[3]
    )
    close(p.mean, mean, rtol=1e-9)
    close(p.variance, variance, rtol=1e-9)


def test_levels_and_a_learned_variance_share_the_channels() -> None:
    """C·K channels of logits and C of o: the KL is that of x̂ and f, each from its own."""
    space = Discrete((2, 3), 4)
    assert output_channels("levels", "categorical", 2, 4, learns_variance=True) == 10
    assert output_channels("levels", "logistic", 2, 4, learns_variance=True) == 6
    assert output_channels("v", "logistic", 2, None, learns_variance=True) == 4
    denoiser = Denoiser(_Says(outputs=4), "levels", space, learns_variance=True)
    process = GaussianDiffusion(schedule.from_betas(BETAS))
    model = DiffusionModel(process, denoiser, likelihood.NetworkLevels(space), "learned")
    x = space.encode(torch.randint(4, (5, 2, 3), generator=generator(0)), F64)
    grid = process.schedule.grid()
    gamma_s, gamma_t = grid[1], grid[2]
    a, s = plain_alpha(gamma_t), plain_sigma(gamma_t)
    z = a * x + s * NOISE
    values = torch.linspace(-1, 1, 4, dtype=F64)[:, None, None]
    logits = model.denoiser.module(z, -gamma_t.expand(5))[:, :8].reshape(5, 2, 4, 3).permute(0, 2, 1, 3)  # type: ignore[operator]
    log_p = torch.log_softmax(logits - (z[:, None] - a * values) ** 2 / (2 * s**2), 1)
    x_hat = (log_p.exp() * values).sum(1)
    q = Normal(*_sqrt(plain_posterior(z, x, gamma_s, gamma_t)))
    p = Normal(*_sqrt(_plain_p(z, x_hat, _fraction(z, gamma_t), gamma_s, gamma_t)))
    close(model.kl_at(x, torch.full((5,), 2), NOISE), kl_divergence(q, p).sum((1, 2)), rtol=1e-9)


# A chain in one dimension that is linear, so that p(x, z_1 … z_T) is one Gaussian.

SLOPE, SHIFT, DECODER = 0.8, 0.1, 0.05


class _Line(nn.Module):
    """x̂ = 0.8 z + 0.1 and, whatever z is, o = 2 sin(log-SNR)."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.cat([SLOPE * z + SHIFT, 2 * torch.sin(log_snr)[:, None].expand_as(z)], 1)


def _line(variance: str = "learned") -> DiffusionModel:
    p = likelihood.GaussianLikelihood(Continuous((1,)), variance=DECODER)
    process = GaussianDiffusion(schedule.from_betas(BETAS))
    return DiffusionModel(process, Denoiser(_Line(), "data", learns_variance=True), p, variance)  # type: ignore[arg-type]


def _steps() -> list[tuple[float, float, float, float]]:
    """(slope, shift, v_p, v_q) of p(z_t|z_{t+1}), t = 1 … T − 1, with β and ᾱ."""
    beta = np.array(BETAS)
    bar = np.cumprod(1 - beta)
    out = []
    for t in range(1, len(beta)):
        tilde = beta[t] * (1 - bar[t - 1]) / (1 - bar[t])
        on_z = math.sqrt(1 - beta[t]) * (1 - bar[t - 1]) / (1 - bar[t])
        on_x = math.sqrt(bar[t - 1]) * beta[t] / (1 - bar[t])
        f = 0.5 * (2 * math.sin(math.log(bar[t] / (1 - bar[t]))) + 1)
        out.append((on_z + on_x * SLOPE, on_x * SHIFT, tilde ** (1 - f) * beta[t] ** f, tilde))
    return out


def _joint() -> MultivariateNormal:
    """p(x, z_1 … z_T)."""
    steps = [(SLOPE, SHIFT, DECODER, 0.0), *_steps()]
    n = len(steps)
    mean, covariance = torch.zeros(n + 1, dtype=F64), torch.zeros(n + 1, n + 1, dtype=F64)
    covariance[n, n] = 1.0
    for t in range(n - 1, -1, -1):
        a, b, v, _ = steps[t]
        mean[t] = a * mean[t + 1] + b
        covariance[t, t + 1 :] = a * covariance[t + 1, t + 1 :]
        covariance[t + 1 :, t] = covariance[t, t + 1 :]
        covariance[t, t] = a * a * covariance[t + 1, t + 1] + v
    return MultivariateNormal(mean, covariance)


def _walk(x: float) -> MultivariateNormal:
    """q(z_1 … z_T | x)."""
    n = len(BETAS)
    walk, mean = torch.zeros(n, n, dtype=F64), torch.zeros(n, dtype=F64)
    for t, beta in enumerate(BETAS):
        mean[t] = math.sqrt(1 - beta) * (mean[t - 1] if t else x)
        if t:
            walk[t] = math.sqrt(1 - beta) * walk[t - 1]
        walk[t, t] = math.sqrt(beta)
    return MultivariateNormal(mean, walk @ walk.T)


def _nelbo(x: float) -> float:
    """−E_q ln p(x, z)/q(z|x), both Gaussian: E_q ln p by its quadratic form, and q's entropy."""
    p, q = _joint(), _walk(x)
    precision = torch.linalg.inv(p.covariance_matrix)
    off = torch.cat([torch.tensor([x], dtype=F64), q.mean]) - p.mean
    spread = torch.zeros_like(p.covariance_matrix)
    spread[1:, 1:] = q.covariance_matrix
    quadratic = off @ precision @ off + (precision * spread).sum()
    n = len(off)
    return float(0.5 * (quadratic + torch.logdet(p.covariance_matrix) + n * math.log(2 * math.pi)) - q.entropy())


def test_both_forms_of_the_bound_have_the_expectation_of_the_joint_gaussian() -> None:
    """MATH (7) = (8), on 10⁵ draws of each, and both are −E ln p(x, z)/q(z|x)."""
    model, x = _line(), torch.full((100_000, 1), 0.7, dtype=F64)
    want = _nelbo(0.7)
    for draws in (model.path_elbo(x, generator(3)).nelbo, model.elbo(x, generator(4)).nelbo):
        error = float(draws.std()) / len(draws) ** 0.5
        assert error < 0.005 * want
        assert abs(float(draws.mean()) - want) < 4 * error
    # A fixed variance is another model.
    for variance in ("posterior", "transition"):
        other = _line(variance).elbo(x, generator(4)).nelbo
        assert abs(float(other.mean()) - want) > 20 * float(other.std()) / len(other) ** 0.5


def test_a_path_is_the_ratio_of_the_joint_densities() -> None:
    model, x = _line(), torch.full((1, 1), 0.7, dtype=F64)
    z = model.process.sample_path(x, generator(5))[:, 0, 0]
    want = _walk(0.7).log_prob(z) - _joint().log_prob(torch.cat([x[0], z]))
    assert float(model.path_elbo(x, generator(5)).nelbo) == pytest.approx(float(want), rel=1e-9)


def test_the_gap_to_ln_p_is_the_posteriors_kl() -> None:
    """C9: ln p(x) − ELBO(x) = KL[q(z|x) ‖ p(z|x)] ≥ 0."""
    p = _joint()
    gain = p.covariance_matrix[1:, :1] / p.covariance_matrix[0, 0]
    noise, w = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(4))
    w, noise, model = w / w.sum(), noise[:, None], _line()
    for x in (-1.3, 0.4, 2.0):
        rows = torch.full((4, 1), x, dtype=F64)
        kl = sum(float(model.kl_at(rows, torch.full((4,), t), noise) @ w) for t in range(1, 6))
        nelbo = kl + float(model.reconstruction(rows, noise) @ w) + float(model.prior(rows)[0])
        assert nelbo == pytest.approx(_nelbo(x), rel=1e-9)
        posterior = MultivariateNormal(
            p.mean[1:] + (gain * (x - p.mean[0])).squeeze(1),
            p.covariance_matrix[1:, 1:] - gain @ p.covariance_matrix[:1, 1:],
        )
        log_p = float(Normal(p.mean[0], p.covariance_matrix[0, 0].sqrt()).log_prob(torch.tensor(x, dtype=F64)))
        assert log_p + nelbo == pytest.approx(float(kl_divergence(_walk(x), posterior)), rel=1e-9)


def test_samples_come_from_the_chain_with_its_variance() -> None:
    """x ~ N(m, s²) of the joint Gaussian: Kolmogorov–Smirnov; and z_1, at the end of the learned steps."""
    model, p, n = _line(), _joint(), 20_000
    draws = list(model.walk_back(n, generator(0)))
    for at, index in ((draws[-1], 0), (draws[-2], 1), (draws[2], 4)):
        mean, std = float(p.mean[index]), float(p.covariance_matrix[index, index].sqrt())
        assert stats.kstest(at[:, 0].double().numpy(), stats.norm(mean, std).cdf).pvalue > 1e-3
    x = model.sample(n, generator(1))[:, 0].double().numpy()
    distribution = stats.norm(float(p.mean[0]), float(p.covariance_matrix[0, 0].sqrt())).cdf
    assert stats.kstest(x, distribution).pvalue > 1e-3
    fixed = _line("posterior").sample(n, generator(1))[:, 0].double().numpy()
    assert stats.kstest(fixed, distribution).pvalue < 1e-6


# The decoder's variance, learned with the chain's.


@pytest.mark.parametrize("levels", [2, 17])
def test_the_decoders_variance_is_learned_likewise(levels: int) -> None:
    """ln s² = (1 − f) ln least + f ln σ_1²: bins of scipy's normal, position by position, that sum to one."""
    space, least, gamma = Discrete((3,), levels), 0.002, torch.tensor([-3.0, -1.0], dtype=F64)
    p = likelihood.DiscretizedGaussian(space, least=least)
    x_hat, f = 0.5 * randn(2, 3, seed=7), torch.tensor([[0.0, 1.0, 0.5], [-0.7, 1.6, 0.2]], dtype=F64)
    said = Prediction(x_hat, gamma, x_hat, "data", fraction=f)
    mass = p.level_log_probs(said).exp()
    close(mass.sum(1), torch.ones(2, 3), rtol=1e-12)
    std = np.sqrt(least ** (1 - f.numpy()) * (plain_sigma(gamma.numpy()) ** 2)[:, None] ** f.numpy())
    values = np.linspace(-1, 1, levels)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    want = np.diff(stats.norm(x_hat.numpy()[..., None], std[..., None]).cdf(edges)).transpose(0, 2, 1)
    close(mass, want, rtol=1e-8, atol=1e-12)
    x = space.values[torch.tensor([[0, 1, 1], [1, 0, 1]])]
    index = space.index(x)[:, None]
    close(p.log_prob(x, said), p.level_log_probs(said).gather(1, index).sum((1, 2)), rtol=1e-12)
    # With a variance given, that is what f = 1 means; without a fraction, all is as it was.
    given = likelihood.DiscretizedGaussian(space, variance=0.3, least=least)
    ones = Prediction(x_hat, gamma, x_hat, "data", fraction=torch.ones_like(f))
    plain = Prediction(x_hat, gamma, x_hat, "data")
    close(given.log_prob(x, ones), likelihood.DiscretizedGaussian(space, variance=0.3).log_prob(x, plain), rtol=1e-12)
    close(p.log_prob(x, plain), likelihood.DiscretizedGaussian(space).log_prob(x, plain), rtol=1e-12)
    # Without `least` a fraction says nothing.
    fixed = likelihood.DiscretizedGaussian(space)
    close(fixed.log_prob(x, said), fixed.log_prob(x, plain), rtol=1e-12)


def test_the_decoder_of_a_model_hears_the_network() -> None:
    """−ln p(x|z_1) with the f that the network says of z_1, and its gradient reaches o."""
    space = Discrete((2, 3), 5)
    module = nn.Conv1d(2, 4, 1, dtype=F64)
    p = likelihood.DiscretizedGaussian(space, least=0.01)
    process = GaussianDiffusion(schedule.from_betas(BETAS))
    denoiser = Denoiser(lambda z, log_snr: module(z), "data", learns_variance=True)
    model = DiffusionModel(process, denoiser, p, "learned")
    x = space.encode(torch.randint(5, (5, 2, 3), generator=generator(0)), F64)
    gamma = process.schedule.grid()[0]
    z = plain_alpha(gamma) * x + plain_sigma(gamma) * NOISE
    said = module(z)
    f = 0.5 * (said[:, 2:] + 1)
    std = torch.exp(0.5 * ((1 - f) * math.log(0.01) + f * torch.log(plain_sigma(gamma) ** 2)))
    bins = Normal(said[:, :2], std)
    upper = torch.where(x > 0.99, 1.0, bins.cdf(x + 0.25))
    lower = torch.where(x < -0.99, 0.0, bins.cdf(x - 0.25))
    cost = model.reconstruction(x, NOISE)
    close(cost.detach(), -torch.log(upper - lower).sum((1, 2)).detach(), rtol=1e-6)
    (gradient,) = torch.autograd.grad(cost.sum(), module.weight)
    assert bool((gradient.abs() > 1e-6).all())


# Evaluation, in a Gaussian world where f is a function of the level alone.

LAMBDA = torch.tensor([0.5, 1.7], dtype=F64)
GAUSSIAN = exact.Gaussian(torch.zeros(2, dtype=F64), torch.diag(LAMBDA))


class _Optimal(nn.Module):
    """The world's optimal x̂, and o = 1.5 cos(log-SNR)."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        x_hat, _ = GAUSSIAN.optimum(z.double(), -log_snr.double())
        return torch.cat([x_hat.to(z), 1.5 * torch.cos(log_snr)[:, None].expand_as(z)], 1)


def _world_model(steps: int) -> DiffusionModel:
    process = GaussianDiffusion(schedule.log_snr_linear(-6.0, 5.0, steps))
    p = likelihood.GaussianLikelihood(Continuous((2,)), variance=0.01)
    return DiffusionModel(process, Denoiser(_Optimal(), "data", learns_variance=True), p, "learned")


def _world_costs(x: Tensor, steps: int) -> Tensor:
    """−ELBO (N,) of items, and of the world in the last place with E x² in place of x²: everything in closed form."""
    gamma = torch.linspace(-6, 5, steps, dtype=F64)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    gain = a * LAMBDA / (a**2 * LAMBDA + s**2)
    x2 = torch.cat([x**2, LAMBDA[None]])
    error = (x2[:, None] * (1 - a * gain) ** 2 + (gain * s) ** 2).sum(2)  # E ‖x − x̂‖² (N + 1, T)
    total = torch.log(torch.tensor(2 * math.pi * 0.01, dtype=F64)) + error[:, 0] / 0.02  # D = 2
    sigma2 = s[:, 0] ** 2
    for t in range(1, steps):
        f = 0.5 * (1.5 * torch.cos(gamma[t]) + 1)
        ln_r = f * torch.log(sigma2[t - 1] / sigma2[t])
        noise_error = torch.exp(-gamma[t]) * error[:, t]
        total = total + (torch.exp(ln_r) - 1 - ln_r)  # ½ D φ
        total = total + 0.5 * torch.exp(ln_r) * (torch.exp(gamma[t] - gamma[t - 1]) - 1) * noise_error
    return total + 0.5 * (x2.sum(1) * a[-1] ** 2 + 2 * (sigma2[-1] - 1 - torch.log(sigma2[-1])))


def test_evaluations_agree_with_the_closed_form() -> None:
    """The full sweep and the plan, on 40 items: each within 3.5 of its own errors of the truth."""
    x, model = GAUSSIAN.sample(40, generator(0)), _world_model(24)
    want = float(_world_costs(x, 24)[:-1].mean())
    swept = evaluate(model, x, draws=8)
    planned = evaluate(model, x, target_error=0.02, unit="nats")
    assert planned.provenance["method"] == "plan"
    for result in (swept, planned):
        assert result.nelbo.error < 0.1
        assert abs(result.nelbo.value - want) < 3.5 * result.nelbo.error
    # What it would be with a fixed variance is far off.
    other = DiffusionModel(model.process, model.denoiser, model.likelihood, "posterior")
    assert abs(evaluate(other, x, draws=8).nelbo.value - want) > 0.2


def test_a_budget_with_a_learned_variance() -> None:
    """MATH (17)–(20): costs as in closed form, gaps computed apart, information known; and relative to a reference."""
    model = _world_model(9)
    want = float(_world_costs(torch.zeros(0, 2, dtype=F64), 9)[-1])
    found = budget(model, GAUSSIAN, samples=4000, generator=generator(0))
    assert found.samples == 4000
    assert abs(found.total.cost.value - want) < 3.5 * found.total.cost.error
    assert abs(found.total.gap.value - (want - GAUSSIAN.entropy())) < 3.5 * found.total.gap.error
    assert found.total.gap.error < 0.1
    for row in (*found.rows, found.total):
        assert abs(row.residual.value) < 4 * row.residual.error + 1e-9
    other = budget(model, GAUSSIAN, reference=GAUSSIAN, samples=2000, generator=generator(1))
    known = GAUSSIAN.costs(model.process, "posterior", 0.01)
    assert abs(other.total.gap.value - (want - float(known.nelbo))) < 3.5 * other.total.gap.error + 1e-9
    assert abs(other.total.gap.value) > 1


# What is refused.

PROCESS = GaussianDiffusion(schedule.from_betas(BETAS))
DENSITY = likelihood.GaussianLikelihood(Continuous((2, 3)))
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a denoiser that learns none": (
        lambda: DiffusionModel(PROCESS, Denoiser(lambda z, s: z), DENSITY, "learned"),
        DiffusionalError,
        'learns_variance=True for variance="learned", got learns_variance=False',
    ),
    "continuous time": (
        lambda: DiffusionModel(
            GaussianDiffusion(schedule.log_snr_linear()), Denoiser(_Says(), learns_variance=True), DENSITY, "learned"
        ),
        DiffusionalError,
        'variance="posterior" in continuous time, where all variances agree, got "learned"',
    ),
    "too few channels": (
        lambda: Denoiser(lambda z, s: z, learns_variance=True)(X, torch.zeros(5)),
        ValueError,
        "the network's output has shape (5, 2, 3) for z of shape (5, 2, 3); with a learned variance it must have 2 channels more than "
        "without",
    ),
    "another size": (
        lambda: Denoiser(lambda z, s: torch.cat([z, z], 1)[..., :2], learns_variance=True)(X, torch.zeros(5)),
        ValueError,
        "the network's output has shape (5, 4, 2) for z of shape (5, 2, 3); with a learned variance it must have 2 channels more than "
        "without",
    ),
    "too many channels": (
        lambda: Denoiser(lambda z, s: torch.cat([z, z, z], 1), learns_variance=True)(X, torch.zeros(5)),
        ValueError,
        "the network's output has shape (5, 4, 3) for z of shape (5, 2, 3); a network that predicts noise must return z's shape"
        '. A network with twice the channels may predict a variance as well: learns_variance=True and variance="learned"',
    ),
    "a least variance of nothing": (
        lambda: likelihood.DiscretizedGaussian(Discrete((2,), 5), least=0.0),
        DiffusionalError,
        "expected variance to be a positive number, got 0.0",
    ),
    "an optimal variance": (
        lambda: GAUSSIAN.costs(PROCESS, "learned", 0.01),
        DiffusionalError,
        'expected variance to be "posterior" or "transition", got "learned": the optimal denoiser has no variance output',
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name: str) -> None:
    make, kind, message = ERRORS[name]
    with pytest.raises(kind) as raised:
        make()
    assert message in str(raised.value)


def test_regrid_keeps_the_learned_variance_and_continuous_time_has_none() -> None:
    model = _model()
    assert model.regrid(4).variance == "learned"
    free = model.regrid(None)
    assert free.variance == "posterior"
    fixed = _model(variance="posterior").regrid(None)
    u = torch.linspace(0.1, 0.9, 5, dtype=F64)
    close(free.kl_at(X, u, NOISE), fixed.kl_at(X, u, NOISE), rtol=1e-12)


def test_what_a_kl_would_be_with_the_posteriors_variance() -> None:
    """`kl_from`, which the plan's controls use: the same as a posterior model's."""
    error, level = randn(5, seed=3).square(), torch.arange(1, 6)
    close(_model().kl_from(error, level), _model(variance="posterior").kl_from(error, level), rtol=1e-14)
