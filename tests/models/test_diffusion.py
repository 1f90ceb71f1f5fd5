"""The bound against ground truth: exact worlds, enumerable worlds, and its own other form (MATH §2, §5)."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from battery import BETAS, F64, PREDICTIONS, SCHEDULES, generator, plain_alpha, plain_sigma, randn
from diffusional import (
    Continuous,
    Denoiser,
    DiffusionalError,
    DiffusionModel,
    Discrete,
    GaussianDiffusion,
    exact,
    likelihood,
    schedule,
)
from diffusional.forward import NonMarkovDiffusion
from diffusional.models.chain import Chain
from diffusional.schedule import Schedule
from diffusional.timesteps import Adaptive, Stratified, TimestepSampler, Uniform

VARIANCES = ("posterior", "transition")
DECODER = 1e-3


def normal_nodes(dimensions: int, kind: str) -> tuple[Tensor, Tensor]:
    """Nodes (M, dimensions) and weights of E f(ε), ε ~ N(0, I): Gauss–Hermite for polynomials, else the trapezoid rule."""
    if kind == "hermite":
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        weights = weights / weights.sum()
    else:
        nodes = np.arange(-26, 27) * 0.25
        weights = np.exp(-0.5 * nodes**2) * 0.25 / math.sqrt(2 * math.pi)
    axis, w = torch.from_numpy(nodes), torch.from_numpy(weights)
    grid = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    return grid, torch.cartesian_prod(*[w] * dimensions).reshape(-1, dimensions).prod(1)


def joint_nodes(world: exact.Gaussian | exact.Mixture, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """x and ε with the weights of E_{x, ε}, components of a mixture one after another."""
    d = world.dimensions
    nodes, weights = normal_nodes(2 * d, kind)
    x, noise, joint = [], [], []
    for w, m, lam, v in zip(world.weights, world.means, world.eigenvalues, world.eigenvectors, strict=True):
        x.append(m + (nodes[:, :d] * lam.sqrt()) @ v.T)
        noise.append(nodes[:, d:])
        joint.append(w * weights)
    return torch.cat(x), torch.cat(noise), torch.cat(joint)


def gaussian(d: int) -> exact.Gaussian:
    factor = torch.tensor([[0.9, 0.0], [0.5, 0.4]], dtype=F64)[:d, :d]
    return exact.Gaussian(torch.tensor([0.7, -0.3], dtype=F64)[:d], factor @ factor.T)


def mixture() -> exact.Mixture:
    return exact.Mixture(
        torch.tensor([0.6, 0.4], dtype=F64),
        torch.tensor([[-0.6], [0.8]], dtype=F64),
        torch.tensor([[[0.16]], [[0.3]]], dtype=F64),
    )


def world_model(
    world: exact.World, noise: Schedule, predicts: str, variance: str, decoder: float = DECODER
) -> DiffusionModel:
    p = likelihood.GaussianLikelihood(Continuous((world.dimensions,)), variance=decoder)
    return DiffusionModel(GaussianDiffusion(noise), world.denoiser(predicts), p, variance)  # type: ignore[arg-type]


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Nats: 1e-6 relative in float64; max(1e-6 nats, 1e-4 relative) in float32.

    Below 1e-22 nats (γ ≈ 50) the last bit of the network's own ε̂ is more than 1e-6 of ε − ε̂.
    """
    relative, floor = (1e-6, 1e-22) if dtype == F64 else (1e-4, 1e-6)
    allowed = torch.maximum(relative * want.abs(), torch.tensor(floor, dtype=F64))
    worst = ((got.double() - want).abs() - allowed).argmax()
    assert bool(((got.double() - want).abs() <= allowed).all()), (int(worst), float(got[worst]), float(want[worst]))


def expected_costs(
    model: DiffusionModel, levels: Tensor, x: Tensor, noise: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """E KL_t at `levels`, E −ln p(x|z_1) and E KL_T through the model's primitives, (x, ε) integrated by nodes."""
    m = len(x)
    rows = max(1, 400_000 // m)
    kl = []
    for some in levels.split(rows):
        values = model.kl_at(x.repeat(len(some), 1), some.repeat_interleave(m), noise.repeat(len(some), 1))
        kl.append(values.double().view(len(some), m) @ w)
    return torch.cat(kl), (model.reconstruction(x, noise).double() * w).sum(), (model.prior(x).double() * w).sum()


def against_the_world(world, name: str, predicts: str, dtype: torch.dtype, kind: str, stride: int) -> None:
    x, noise, w = joint_nodes(world, kind)
    x, noise = x.to(dtype), noise.to(dtype)
    made = SCHEDULES[name]()
    for variance in VARIANCES:
        truth = world.costs(GaussianDiffusion(made), variance, DECODER)
        model = world_model(world, made, predicts, variance)
        levels = torch.arange(1, model.timesteps + 1)  # type: ignore[operator]
        levels = torch.cat([levels[:20], levels[20:-3:stride], levels[-3:]]).unique()
        kl, reconstruction, prior = expected_costs(model, levels, x, noise, w)
        close(kl, truth.kl[0, levels - 1], dtype)
        close(reconstruction[None], truth.reconstruction, dtype)
        close(prior[None], truth.prior, dtype)
        if stride == 1:
            close((kl.sum() + reconstruction + prior)[None], truth.nelbo, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_cost_in_a_gaussian_world(name: str, predicts: str, dtype: torch.dtype) -> None:
    """Every KL_t, prior, reconstruction and total against closed forms; Gauss–Hermite is exact here."""
    against_the_world(gaussian(1), name, predicts, dtype, "hermite", stride=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_cost_in_two_dimensions(predicts: str, dtype: torch.dtype) -> None:
    against_the_world(gaussian(2), "linear", predicts, dtype, "hermite", stride=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "predicts"),
    [
        *[(name, "noise") for name in SCHEDULES],
        *[("cosine", predicts) for predicts in PREDICTIONS if predicts != "noise"],
    ],
)
def test_costs_in_a_mixture_world(name: str, predicts: str, dtype: torch.dtype) -> None:
    """Non-linear denoiser; the first twenty levels, the last three, and every 97th between."""
    against_the_world(mixture(), name, predicts, dtype, "trapezoid", stride=97)


@pytest.mark.slow
def test_every_cost_in_a_mixture_world() -> None:
    against_the_world(mixture(), "linear", "v", F64, "trapezoid", stride=1)


# What the model itself says of x, by linear algebra: ELBO ≤ ln p(x), C9.


def affine_model(
    steps_betas: tuple[float, ...], slope: float, shift: float, variance: str
) -> tuple[DiffusionModel, Tensor]:
    """A model in one dimension with x̂ = slope · z + shift at every level, not optimal for anything."""
    denoiser = Denoiser(_Affine(slope, shift), "data")
    p = likelihood.GaussianLikelihood(Continuous((1,)), variance=0.05)
    process = GaussianDiffusion(schedule.from_betas(steps_betas))
    return DiffusionModel(process, denoiser, p, variance), process.schedule.grid()  # type: ignore[arg-type]


class _Affine(nn.Module):
    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.slope * z + self.shift


def generative_joint(slope: float, shift: float, variance: str, betas: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(x, z_1 … z_T) of `affine_model` from the textbook formulas with β and ᾱ."""
    beta = torch.tensor(betas, dtype=F64)
    bar = torch.cumprod(1 - beta, 0)
    t_last = len(betas)
    mean, covariance = torch.zeros(t_last + 1, dtype=F64), torch.zeros(t_last + 1, t_last + 1, dtype=F64)
    covariance[t_last, t_last] = 1.0
    for t in range(t_last - 1, -1, -1):  # row t is z_t, row 0 is x
        if t == 0:
            a, b, v = slope, shift, 0.05
        else:
            tilde = beta[t] * (1 - bar[t - 1]) / (1 - bar[t])
            on_z = (1 - beta[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t])
            on_x = bar[t - 1].sqrt() * beta[t] / (1 - bar[t])
            a, b = on_z + on_x * slope, on_x * shift
            v = tilde if variance == "posterior" else beta[t]
        mean[t] = a * mean[t + 1] + b
        covariance[t, t + 1 :] = a * covariance[t + 1, t + 1 :]
        covariance[t + 1 :, t] = covariance[t, t + 1 :]
        covariance[t, t] = a * a * covariance[t + 1, t + 1] + v
    return mean, covariance


def diffusion_joint(betas: tuple[float, ...], x: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of q(z_1 … z_T | x), walked by √(1 − β) and β."""
    n = len(betas)
    walk = torch.zeros(n, n, dtype=F64)  # z = walk · ε + mean
    mean = torch.zeros(n, dtype=F64)
    for t, beta in enumerate(betas):
        mean[t] = math.sqrt(1 - beta) * (mean[t - 1] if t else x)
        if t:
            walk[t] = math.sqrt(1 - beta) * walk[t - 1]
        walk[t, t] = math.sqrt(beta)
    return mean, walk @ walk.T


def exact_elbo(model: DiffusionModel, x: float) -> float:
    """The ELBO of one x with every draw integrated by Gauss–Hermite (polynomials of degree two here)."""
    noise, w = normal_nodes(1, "hermite")
    rows = torch.full_like(noise, x)
    levels = torch.arange(1, model.timesteps + 1)  # type: ignore[operator]
    kl, reconstruction, prior = expected_costs(model, levels, rows, noise, w)
    return -float(kl.sum() + reconstruction + prior)


@pytest.mark.parametrize("variance", VARIANCES)
def test_gap_to_ln_p_is_the_posteriors_kl(variance: str) -> None:
    """C9: ln p(x) − ELBO(x) = KL[q(z_{1:T}|x) ‖ p(z_{1:T}|x)] ≥ 0, both sides by different roads."""
    slope, shift = 0.8, 0.1
    model, _ = affine_model(BETAS, slope, shift, variance)
    mean, covariance = generative_joint(slope, shift, variance, BETAS)
    for x in (-1.3, 0.0, 0.4, 2.0):
        log_p = float(MultivariateNormal(mean[:1], covariance[:1, :1]).log_prob(torch.tensor([x], dtype=F64)))
        gain = covariance[1:, :1] / covariance[0, 0]
        posterior = MultivariateNormal(
            mean[1:] + (gain * (x - mean[0])).squeeze(1), covariance[1:, 1:] - gain @ covariance[:1, 1:]
        )
        q = MultivariateNormal(*diffusion_joint(BETAS, x))
        gap = float(kl_divergence(q, posterior))
        assert gap > 0
        assert log_p - exact_elbo(model, x) == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_path_form_equals_rao_blackwellised_form(variance: str) -> None:
    """MATH (7) = (8) on 10⁵ draws, for a model that is far from optimal; and (7)'s draw against plain densities."""
    model, _ = affine_model(BETAS, 0.8, 0.1, variance)
    x = torch.full((100_000, 1), 0.7, dtype=F64)
    path = model.path_elbo(x, generator(3)).nelbo
    jumps = model.elbo(x, generator(4)).nelbo
    want = -exact_elbo(model, 0.7)
    for draws in (path, jumps):
        error = float(draws.std()) / len(draws) ** 0.5
        assert error < 0.01 * want
        assert abs(float(draws.mean()) - want) < 4 * error

    one = model.path_elbo(x[:1], generator(5))
    z = model.process.sample_path(x[:1], generator(5))[:, 0, 0]
    mean, covariance = generative_joint(0.8, 0.1, variance, BETAS)
    joint = MultivariateNormal(mean, covariance).log_prob(torch.cat([x[0], z]))
    log_q = MultivariateNormal(*diffusion_joint(BETAS, 0.7)).log_prob(z)
    assert float(one.nelbo) == pytest.approx(float(log_q - joint), rel=1e-9)


def test_path_form_has_no_variance_for_a_perfect_model() -> None:
    """MATH (8): where p(z|x) = q(z|x), ln p(x) = (7) for every path."""
    world = exact.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    steps = 1000
    made = schedule.log_snr_linear(-8.0, 8.0, steps)
    decoder = float(world.mmse(made.ends()[:1]))
    model = world_model(world, made, "noise", "transition", decoder)
    nelbo = model.path_elbo(torch.full((16, 1), 0.3, dtype=F64), generator(0)).nelbo
    assert float(nelbo.std()) < 0.05
    assert float(nelbo.mean()) == pytest.approx(-float(world.log_prob(torch.tensor([[0.3]]))), abs=0.05)


def test_discrete_time_approaches_continuous_time_at_first_order() -> None:
    """Σ KL_t → ½ ∫ γ' ‖ε − ε̂‖² du (MATH (10)); the difference falls as 1/T, to the left of it."""
    world = mixture()
    x, noise, w = joint_nodes(world, "trapezoid")
    continuous = world_model(world, schedule.log_snr_linear(-8.0, 6.0), "noise", "posterior")
    nodes, weights = np.polynomial.legendre.leggauss(60)
    integral = 0.0
    for u, weight in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):
        density = continuous.kl_at(x, torch.full((len(x),), u, dtype=F64), noise)
        integral += weight * float(density @ w)
    excess = []
    for steps in (51, 201, 801):
        truth = world.costs(GaussianDiffusion(continuous.process.schedule.regrid(steps)), "posterior", DECODER)  # type: ignore[arg-type]
        excess.append(float(truth.kl.sum()) - integral)
    assert all(e > 0 for e in excess)
    assert excess[0] / excess[1] == pytest.approx(4, rel=0.15)
    assert excess[1] / excess[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_both_ends_of_continuous_time_belong_to_it(u: float) -> None:
    """dKL/du = ½ γ'(u) ‖ε − ε̂‖², here of a network that predicts no noise at all."""
    model = DiffusionModel(
        GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0)),
        Denoiser(lambda z, log_snr: 0 * z, "noise"),
        likelihood.LevelPosterior(Discrete((2, 2), 4)),
    )
    noise = randn(3, 2, 2)
    try:
        got = model.kl_at(batch(3), torch.tensor([0.5, u, u], dtype=F64), noise)
    except DiffusionalError as error:
        pytest.fail(f"u = {u} is refused: {error}")
    torch.testing.assert_close(got, 0.5 * 7 * noise.double().square().sum((1, 2)))
    beyond = math.nextafter(u, 3 * u - 1)
    with pytest.raises(DiffusionalError, match=r"u in \[0, 1\]"):
        model.kl_at(batch(3), torch.tensor([0.5, u, beyond], dtype=F64), noise)


def test_elbo_in_continuous_time_is_the_integral() -> None:
    world = gaussian(2)
    model = world_model(world, schedule.log_snr_linear(-8.0, 6.0), "v", "posterior")
    x = world.sample(4000, generator(0))
    ledger = model.elbo(x, generator(1), cells=32)
    assert ledger.kl.shape == (4000, 32)
    fine = model.regrid(4001).process
    truth = world.costs(fine, "posterior", DECODER)
    error = float(ledger.nelbo.std()) / len(x) ** 0.5
    assert error < 0.1
    assert abs(float(ledger.nelbo.mean()) - float(truth.nelbo)) < 4 * error
    # Cell by cell, too: the fine grid has 125 levels in each.
    per_cell = truth.kl.view(32, 125).sum(1)
    off = (ledger.kl.mean(0) - per_cell) / (ledger.kl.std(0) / len(x) ** 0.5)
    assert float(off.abs().max()) < 4.5


# Enumerable worlds: p(x) by quadrature over the latents sums to one, and ELBO ≤ ln p(x) for every x.


class _Wiggle(nn.Module):
    """A small fixed non-linear network with `outputs` channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.a, self.b = randn(outputs, seed=11), randn(outputs, seed=12)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(self.a * z + self.b + 0.2 * log_snr[:, None])


def tiny_models() -> dict[str, DiffusionModel]:
    space, bits = Discrete((1,), 3), Discrete((1,), 2)
    process = GaussianDiffusion(schedule.from_betas((0.1, 0.3, 0.5, 0.6)))
    levels = {"categorical": 3, "logistic": 2}
    out = {}
    for variance in VARIANCES:
        for head, outputs in levels.items():
            denoiser = Denoiser(_Wiggle(outputs), "levels", space, head)  # type: ignore[arg-type]
            out[f"{head}, {variance}"] = DiffusionModel(process, denoiser, likelihood.NetworkLevels(space), variance)  # type: ignore[arg-type]
        for name, p in {
            "discretized": likelihood.DiscretizedGaussian(space),
            "bayes": likelihood.LevelPosterior(space),
            "bernoulli": likelihood.Bernoulli(bits),
        }.items():
            for predicts in ("data", "v"):
                denoiser = Denoiser(_Wiggle(1), predicts)
                out[f"{name}, {predicts}, {variance}"] = DiffusionModel(process, denoiser, p, variance)  # type: ignore[arg-type]
    return out


TINY = tiny_models()


@pytest.mark.parametrize("name", TINY)
def test_enumerable_world(name: str) -> None:
    model = TINY[name]
    space, made = model.space, model.process.schedule
    assert isinstance(space, Discrete)
    grid = made.grid()
    # p(z_t) on a fine grid, from N(0, 1) down through the learned chain, by the trapezoid rule.
    z = torch.linspace(-9, 9, 1801, dtype=F64)
    width = float(z[1] - z[0])
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    beta = 1 - torch.sigmoid(-grid[1:]) / torch.sigmoid(-grid[:-1])
    for t in range(len(grid) - 1, 0, -1):
        said = model.denoiser(z[:, None], grid[t].expand(len(z))).data[:, 0]
        bar, bar_s, b = torch.sigmoid(-grid[t]), torch.sigmoid(-grid[t - 1]), beta[t - 1]
        mean = ((1 - b).sqrt() * (1 - bar_s) * z + bar_s.sqrt() * b * said) / (1 - bar)
        v = b * (1 - bar_s) / (1 - bar) if model.variance == "posterior" else b
        step = torch.exp(-0.5 * (z[:, None] - mean) ** 2 / v) / (2 * math.pi * v).sqrt()
        density = step @ density * width
    items = space.values[:, None]
    seen = model.denoiser(z[:, None], grid[0].expand(len(z)))
    p = torch.stack(
        [torch.exp(model.likelihood.log_prob(x.expand(len(z), 1), seen).double()) @ density * width for x in items]
    )
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    # The ELBO of every x, the noise integrated by the trapezoid rule.
    noise, w = normal_nodes(1, "trapezoid")
    for x, p_x in zip(items, p, strict=True):
        rows = x.expand(len(noise), 1)
        levels = torch.arange(1, len(grid))
        kl, reconstruction, prior = expected_costs(model, levels, rows, noise, w)
        elbo = -float(kl.sum() + reconstruction + prior)
        assert elbo < float(p_x.log())


def test_training_nelbo_of_finite_data_is_ln_n_from_above() -> None:
    """The oracle of N points can't beat ln N (below is a bug), and reaches it as T grows (MATH (16), (20))."""
    points = Discrete((2,), 5).encode(torch.tensor([[0, 0], [1, 3], [2, 4], [4, 1], [3, 3], [4, 4]]), F64)
    world = exact.Finite(points)
    p = likelihood.LevelPosterior(Discrete((2,), 5))
    excess = []
    for steps in (50, 200, 800):
        model = DiffusionModel(GaussianDiffusion(schedule.log_snr_linear(-7.0, 9.0, steps)), world.denoiser(), p)
        ledger = model.elbo(points.repeat(40, 1), generator(0))
        error = float(ledger.nelbo.std()) / len(ledger.nelbo) ** 0.5
        excess.append(float(ledger.nelbo.mean()) - math.log(6))
        assert excess[-1] > -4 * error
        # The same oracle's costs with the noise integrated, against the exact mmse: MATH (10), (15).
        grid = model.process.schedule.grid()
        some = torch.linspace(1, steps - 1, 6).long()
        nodes, w = normal_nodes(2, "trapezoid")
        x = points.repeat_interleave(len(nodes), 0)
        kl, _, _ = expected_costs(model, some, x, nodes.repeat(6, 1), w.repeat(6) / 6)
        want = 0.5 * (torch.exp(-grid[some - 1]) - torch.exp(-grid[some])) * world.mmse(grid[some])
        # Nodes 0.25 apart leave about exp(−d²/8 − 2π²/(0.25 d)) for points d standard deviations apart: 1e-8 at the worst.
        torch.testing.assert_close(kl, want, rtol=1e-6, atol=3e-8)
    assert excess[0] > 2 * excess[1] > 4 * excess[2]
    assert excess[2] < 0.02


# Sampling t is unbiased, MATH (22).


def small_model(uses_network: bool = True, steps: int | None = 8, predicts: str = "levels") -> DiffusionModel:
    space = Discrete((2, 2), 4)
    denoiser = Denoiser(_Convolution(), predicts, space, "logistic")  # type: ignore[arg-type]
    p = likelihood.NetworkLevels(space) if uses_network else likelihood.LevelPosterior(space)
    return DiffusionModel(GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, steps)), denoiser, p)


class _Convolution(nn.Module):
    """(B, 2, 2) → (B, 4, 2), with one weight to differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=F64))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.cat([self.weight * z, 0.3 * torch.sin(self.weight * z) + 0.01 * log_snr[:, None, None]], dim=1)


def batch(n: int = 64) -> Tensor:
    return Discrete((2, 2), 4).encode(torch.randint(4, (n, 2, 2), generator=generator(0)), F64)


SAMPLERS: dict[str, Callable[[], TimestepSampler]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "adaptive": lambda: Adaptive(cells=5, warmup=64, floor=0.1),
}


@functools.cache
def bound_and_slope(uses_network: bool, steps: int | None) -> tuple[list[float], list[float]]:
    """The bound of a batch and its derivative, by repeated sums over all levels."""
    model, x = small_model(uses_network, steps), batch(256)
    weight = model.denoiser.module.weight  # type: ignore[union-attr]
    truth, slope = [], []
    for seed in range(20):
        nelbo = model.elbo(x, generator(seed), cells=64).nelbo.mean()
        truth.append(float(nelbo))
        slope.append(float(torch.autograd.grad(nelbo, weight)[0]))
    return truth, slope


@pytest.mark.parametrize("steps", [8, None])
@pytest.mark.parametrize("uses_network", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_loss_is_unbiased_with_its_gradient(sampler: str, uses_network: bool, steps: int | None) -> None:
    model, x = small_model(uses_network, steps), batch(256)
    weight = model.denoiser.module.weight  # type: ignore[union-attr]
    truth, slope = bound_and_slope(uses_network, steps)
    made, draws, slopes = SAMPLERS[sampler](), [], []
    noise = generator(1)
    for _ in range(150):
        loss = model.loss(x, noise, sampler=made)
        draws.append(float(loss))
        slopes.append(float(torch.autograd.grad(loss, weight)[0]))
    for exactly, got in ((truth, draws), (slope, slopes)):
        a, b = torch.tensor(exactly), torch.tensor(got)
        error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
        assert error < 0.1 * abs(float(a.mean()))
        assert abs(float(a.mean() - b.mean())) < 4 * error


class _Off(nn.Module):
    """Told x, it returns every ε plus `by`."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor, log_snr: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = (f(-log_snr)[:, None] for f in (plain_alpha, plain_sigma))
        return (z - alpha * x) / sigma + self.by


@pytest.mark.parametrize("steps", [9, None])
@pytest.mark.parametrize("uses_network", [True, False])
def test_loss_of_even_costs_is_the_bound_without_any_luck(uses_network: bool, steps: int | None) -> None:
    """Off by the same in every ε, the network costs the same at every level and at z_1; and of 64 stratified items two
    look at z_1. So nothing is left to chance, and no cost, weight or share may be wrong by more than rounding.
    """
    first, last, by, d = -20.0, 3.0, 0.3, 2
    if uses_network:
        x, p = randn(64, d), likelihood.GaussianLikelihood(Continuous((d,)))
        reconstruction = 0.5 * d * (math.log(2 * math.pi) + first + by**2)  # s² = e^{γ_1}; x − x̂ = (σ/α) · by
    else:
        space = Discrete((d,), 4)
        x, p = space.encode(torch.arange(64 * d).reshape(64, d) % 4, F64), likelihood.LevelPosterior(space)
        reconstruction = 0.0  # z_1 tells the levels for sure
    process = GaussianDiffusion(schedule.log_snr_linear(first, last, steps))
    model = DiffusionModel(process, Denoiser(_Off(by)), p)
    kl = last - first if steps is None else (steps - 1) * math.expm1((last - first) / (steps - 1))
    q = Normal(plain_alpha(last) * x, torch.tensor(plain_sigma(last), dtype=F64))
    prior = kl_divergence(q, Normal(torch.zeros_like(x), torch.ones_like(x))).sum(1).mean()
    want = reconstruction + 0.5 * kl * d * by**2 + float(prior)
    for seed in range(3):
        assert float(model.loss(x, generator(seed), condition=x)) == pytest.approx(want, rel=1e-9)


def test_adaptive_sampling_lowers_the_variance() -> None:
    model, x = small_model(uses_network=False, steps=400), batch(256)
    spread = {}
    for name, made in (("uniform", Stratified()), ("adaptive", Adaptive(cells=16, warmup=2000))):
        noise = generator(0)
        draws = [float(model.loss(x, noise, sampler=made).detach()) for _ in range(300)]
        spread[name] = float(torch.tensor(draws[60:]).std())
    assert spread["adaptive"] < 0.8 * spread["uniform"]


def test_loss_counts_each_item_once_for_every_batch_size() -> None:
    """A batch of one is unbiased, too: no part of the bound is dropped where the share of z_1 rounds to nothing."""
    model, x = small_model(), batch(1)
    want = model.elbo(x.expand(300, -1, -1), generator(3)).nelbo.detach()
    noise = generator(7)
    got = torch.stack([model.loss(x, noise).detach() for _ in range(2000)])
    error = float((want.var() / len(want) + got.var() / len(got)).sqrt())
    assert abs(float(want.mean() - got.mean())) < 4 * error
    assert error < 0.2 * float(want.mean())


def test_terms_is_the_sum_of_the_primitives() -> None:
    """noise[t − 1] belongs to z_t: reconstruction sees noise[0], KL_t sees noise[t]."""
    model, x = small_model(), batch(5)
    noise = randn(8, *x.shape)
    ledger = model.terms(x, noise)
    torch.testing.assert_close(ledger.reconstruction, model.reconstruction(x, noise[0]))
    torch.testing.assert_close(ledger.prior, model.prior(x))
    for t in range(1, 8):
        torch.testing.assert_close(ledger.kl[:, t - 1], model.kl_at(x, torch.full((5,), t), noise[t]))
    torch.testing.assert_close(ledger.nelbo, ledger.reconstruction + ledger.kl.sum(1) + ledger.prior)


def test_a_cost_is_the_kl_of_two_gaussians() -> None:
    """kl_at against torch.distributions on q(z_t|z_{t+1}, x) and p(z_t|z_{t+1}) written out with β and ᾱ."""
    model, grid = affine_model(BETAS, 0.8, 0.1, "transition")
    beta, bar = torch.tensor(BETAS, dtype=F64), torch.cumprod(1 - torch.tensor(BETAS, dtype=F64), 0)
    x, noise = randn(4, 1, seed=1), randn(4, 1, seed=2)
    for t in range(1, len(grid)):
        z = bar[t].sqrt() * x + (1 - bar[t]).sqrt() * noise  # z_{t+1}: bar counts from 0
        on_z = (1 - beta[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t])
        on_x = bar[t - 1].sqrt() * beta[t] / (1 - bar[t])
        v = beta[t] * (1 - bar[t - 1]) / (1 - bar[t])
        q = torch.distributions.Normal(on_z * z + on_x * x, v.sqrt())
        p = torch.distributions.Normal(on_z * z + on_x * (0.8 * z + 0.1), beta[t].sqrt())
        want = torch.distributions.kl_divergence(q, p).squeeze(1)
        torch.testing.assert_close(model.kl_at(x, torch.full((4,), t), noise), want, rtol=1e-9, atol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_model(), batch(5)
    noise = randn(8, *x.shape)
    whole = model.terms(x, noise)
    monkeypatch.setattr("diffusional.models.chain.ROWS", 11)
    torch.testing.assert_close(model.terms(x, noise).kl, whole.kl)


def test_condition_reaches_the_network_in_step_with_its_item() -> None:
    class Conditional(nn.Module):
        def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
            return condition[:, None].expand_as(z)

    world = gaussian(1)
    p = likelihood.GaussianLikelihood(Continuous((1,)))
    process = GaussianDiffusion(schedule.log_snr_linear(-3.0, 3.0, 5))
    model = DiffusionModel(process, Denoiser(Conditional(), "data"), p)
    x = world.sample(3, generator(0))
    ledger = model.elbo(x, generator(1), condition=x[:, 0])  # the condition tells x: no cost but the prior's
    assert float(ledger.kl.abs().max()) < 1e-20
    wrong = model.elbo(x, generator(1), condition=x[:, 0].flip(0))
    assert float(wrong.kl.sum(1)[0]) > 0.01
    assert torch.isfinite(model.loss(x, generator(1), condition=x[:, 0]))
    assert torch.isfinite(model.path_elbo(x, generator(1), condition=x[:, 0]).nelbo).all()
    assert model.sample(3, generator(1), condition=x[:, 0]).shape == (3, 1)


def test_simple_loss_is_the_mean_squared_noise_error() -> None:
    world = gaussian(2)
    made = schedule.from_betas(BETAS)
    model = world_model(world, made, "noise", "posterior")
    x = world.sample(100_000, generator(0))
    grid = made.grid()
    want = (torch.exp(-grid) * world.mmse(grid)).mean() / 2  # ‖ε − ε̂‖² = SNR ‖x − x̂‖²
    assert float(model.simple_loss(x, generator(1))) == pytest.approx(float(want), rel=0.01)


def test_looser_bound_is_looser_by_the_information() -> None:
    """MATH (9), in a Gaussian world: KL convexity's slack is I(x; z_{1:T}) = I(x; z_1), from (11) and (12) by the joint."""
    world = gaussian(1)
    made = schedule.from_betas(BETAS)
    information = world.information(made.ends()[0]).value
    # I(x; z_1 … z_T) from the covariance of the whole chain.
    _, conditional = diffusion_joint(BETAS, 0.0)
    slope, _ = diffusion_joint(BETAS, 1.0)
    marginal = conditional + float(world.eigenvalues) * torch.outer(slope, slope)
    chain = 0.5 * float(torch.logdet(marginal) - torch.logdet(conditional))
    assert information == pytest.approx(chain, rel=1e-9)
    ledger = world.costs(GaussianDiffusion(made), "posterior", DECODER)
    assert float(ledger.looser(information) - ledger.nelbo) == pytest.approx(information)


def test_standardised_data_are_charged_for_their_jacobian() -> None:
    """−ln p in the original units: the bound of x = raw/3 costs D ln 3 more."""
    world = gaussian(2)
    made = schedule.from_betas(BETAS)
    plain = world_model(world, made, "noise", "posterior")
    scaled = DiffusionModel(
        plain.process, plain.denoiser, likelihood.GaussianLikelihood(Continuous((2,), scale=(3.0,)), variance=DECODER)
    )
    x = world.sample(4, generator(0))
    difference = scaled.elbo(x, generator(1)).nelbo - plain.elbo(x, generator(1)).nelbo
    torch.testing.assert_close(difference, torch.full((4,), 2 * math.log(3.0), dtype=F64))
    loss = scaled.loss(x, generator(1)) - plain.loss(x, generator(1))
    assert float(loss) == pytest.approx(2 * math.log(3.0))


def test_regrid_shares_the_network_and_the_curve() -> None:
    model = small_model(steps=None)
    again = model.regrid(5)
    assert again.steps == 5
    assert again.timesteps == 4
    assert again.denoiser is model.denoiser
    assert again.process.schedule.grid().tolist() == [-3.0, -1.25, 0.5, 2.25, 4.0]


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "level 0": (
        lambda: small_model().kl_at(batch(2), torch.tensor([0, 1]), batch(2)),
        "levels to be integers from 1 to 7",
    ),
    "level T": (
        lambda: small_model().kl_at(batch(2), torch.tensor([1, 8]), batch(2)),
        "levels to be integers from 1 to 7",
    ),
    "off the levels": (lambda: small_model().elbo(batch(2) + 0.1), "the 4 levels"),
    "NaN": (lambda: small_model().elbo(batch(2) * math.nan), "not finite in item 0"),
    "shape": (lambda: small_model().elbo(batch(2)[:, :1]), r"shape .* got \(1, 2\)"),
    "integers": (lambda: small_model().loss(torch.zeros(2, 2, 2, dtype=torch.long)), r"space.encode\(raw\)"),
    "noise": (lambda: small_model().terms(batch(2), randn(7, 2, 2, 2)), r"expected noise of shape \(8, 2, 2, 2\)"),
    "terms without T": (lambda: small_model(steps=None).terms(batch(2), batch(2)), "regrid"),
    "path without T": (lambda: small_model(steps=None).path_elbo(batch(2)), "regrid"),
    "transition without T": (
        lambda: DiffusionModel(
            GaussianDiffusion(schedule.log_snr_linear()), small_model().denoiser, small_model().likelihood, "transition"
        ),
        'variance="posterior" in continuous time',
    ),
    "levels without a levels head": (
        lambda: DiffusionModel(
            GaussianDiffusion(schedule.log_snr_linear(steps=4)),
            Denoiser(_Affine(1.0, 0.0), "data"),
            likelihood.NetworkLevels(Discrete((2, 2), 4)),
        ).elbo(batch(2)),
        'predicts="levels"',
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(DiffusionalError, match=message):
        call()


def non_markov(eta: float = 0.5, **options: object) -> DiffusionModel:
    """A denoiser that is off by different amounts in two dimensions, under η < 1."""
    process = NonMarkovDiffusion(schedule.from_betas([0.1, 0.2, 0.3, 0.25]), eta)
    decoder = likelihood.GaussianLikelihood(Continuous((2,)), variance=0.1)
    weights = torch.tensor([0.7, 0.2], dtype=F64)
    return DiffusionModel(process, Denoiser(lambda z, log_snr: weights * z + 0.1, "data"), decoder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_kl_under_a_posterior_that_is_not_markov(eta: float) -> None:
    """The closed form, affine in ‖ε − ε̂‖², is the KL of q_η(z_t|z_{t+1}, x) from q_η(z_t|z_{t+1}, x̂)."""
    model, x, noise = non_markov(eta), randn(5, 2), randn(5, 2)
    t = torch.tensor([1, 2, 3, 1, 2])
    close(model.kl_at(x, t, noise), Chain.level_kl(model, x, t, noise), F64)
    if eta == 1.0:
        markov = DiffusionModel(GaussianDiffusion(model.process.schedule), model.denoiser, model.likelihood)
        close(model.kl_at(x, t, noise), markov.kl_at(x, t, noise), F64)


def test_what_a_posterior_that_is_not_markov_excludes() -> None:
    with pytest.raises(DiffusionalError, match="variance='transition'"):
        non_markov(variance="transition")
    with pytest.raises(DiffusionalError, match="discrete time"):
        DiffusionModel(
            NonMarkovDiffusion(schedule.log_snr_linear(-5.0, 5.0), 0.5),
            Denoiser(lambda z, log_snr: 0 * z),
            likelihood.GaussianLikelihood(Continuous((2,))),
        )
    with pytest.raises(DiffusionalError, match="ddim"):
        next(non_markov().walk_back(1, generator(0), steps=3))
