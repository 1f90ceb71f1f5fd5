"""A learned γ(u) in the bound: what its shape and its ends are taught, that it works, and that the bound has no opinion of the shape."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from battery import F64, bent, generator, plain_alpha, plain_sigma, randn
from diffusional import (
    Continuous,
    Denoiser,
    DiffusionModel,
    Discrete,
    GaussianDiffusion,
    exact,
    likelihood,
    schedule,
)
from diffusional.timesteps import Adaptive, Stratified

# What each parameter of a learned schedule is taught, MATH (10).


class _Network(nn.Module):
    """(B, 2, 2) → (B, `outputs` · 2, 2), float64, which hears z and log-SNR."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(randn(2 * outputs, 2, seed=1))
        self.hear = nn.Parameter(0.1 * randn(2 * outputs, seed=2))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("oc,bcx->box", self.mix, z) + (log_snr[:, None] * self.hear)[:, :, None])


SPACE = Discrete((2, 2), 4)
D = 4
# Two levels heads, whose decoder needs the network, and one that doesn't.
every_kind = pytest.mark.parametrize("kind", ["categorical", "logistic", "v"])


def _model(kind: str, steps: int | None = None, made: schedule.Schedule | None = None) -> DiffusionModel:
    if made is None:
        made = bent(schedule.learned(-3.0, 4.0, steps, features=6, ends="learned"))
    if kind != "v":
        denoiser = Denoiser(_Network(4 if kind == "categorical" else 2), "levels", SPACE, kind)  # type: ignore[arg-type]
        p = likelihood.NetworkLevels(SPACE)
    else:
        denoiser, p = Denoiser(_Network(1), "v"), likelihood.LevelPosterior(SPACE)
    return DiffusionModel(GaussianDiffusion(made), denoiser, p)  # type: ignore[arg-type]


def _batch(n: int = 96) -> Tensor:
    return SPACE.encode(torch.randint(4, (n, 2, 2), generator=generator(0)), F64)


def _plain_said(model: DiffusionModel, x: Tensor, gamma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """‖ε − ε̂‖² (B,) and ln p of the levels (B, K, 2, 2), with plain α and σ."""
    a, s = plain_alpha(gamma)[:, None, None], plain_sigma(gamma)[:, None, None]
    z = a * x + s * noise
    output = model.denoiser.module(z, -gamma)  # type: ignore[operator]
    values = torch.linspace(-1, 1, 4, dtype=F64)[:, None, None]
    if model.denoiser.predicts == "v":
        x_hat = a * z - s * output
        log_p = torch.zeros(len(x), 4, 2, 2)
    else:
        if model.denoiser.head == "categorical":
            logits = output.reshape(len(x), 2, 4, 2).permute(0, 2, 1, 3)
        else:  # mass of a logistic between the bins' edges
            mu, scale = output[:, None, :2], torch.exp(output[:, None, 2:])
            edges = torch.tensor([-1e3, -2 / 3, 0, 2 / 3, 1e3], dtype=F64)[:, None, None]
            logits = torch.log(torch.sigmoid((edges - mu) / scale).diff(dim=1))
        log_p = torch.log_softmax(logits - (z[:, None] - a[:, None] * values) ** 2 / (2 * s[:, None] ** 2), 1)
        x_hat = (log_p.exp() * values).sum(1)
    return ((noise - (z - a * x_hat) / s) ** 2).sum((1, 2)), log_p


def _plain(model: DiffusionModel, x: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean bound, and mean_i (w_i kl_i)²/(D ln 2) of the items that visit a level, all in the open."""
    made = model.process.schedule
    low, high = made.gamma(torch.tensor([0.0], dtype=F64)), made.gamma(torch.tensor([1.0], dtype=F64))
    u, w, noise = draws["level"], draws["weight"], draws["noise"]
    kl = 0.5 * made.dgamma(u) * _plain_said(model, x, made.gamma(u), noise)[0]
    mean2 = x.flatten(1).square().sum(1) * torch.sigmoid(-high)
    prior = 0.5 * (mean2 + D * (torch.sigmoid(high) - 1 - torch.log(torch.sigmoid(high))))
    index = torch.round((x + 1) * 1.5).long()
    if "first" in draws:
        first = draws["first"]
        seen = first.double() * 32
        _, log_p = _plain_said(model, x, low.expand(len(x)), noise)
        reconstruction = -log_p.gather(1, index[:, None]).flatten(1).sum(1)
        visits = (~first).double() * 32 / 31
    else:
        values = torch.linspace(-1, 1, 4, dtype=F64)[:, None, None]
        z = plain_alpha(low) * x + plain_sigma(low) * draws["first_noise"]
        log_p = torch.log_softmax(-((z[:, None] - plain_alpha(low) * values) ** 2) / (2 * plain_sigma(low) ** 2), 1)
        reconstruction = -log_p.gather(1, index[:, None]).flatten(1).sum(1)
        seen = visits = torch.ones(len(x), dtype=F64)
    bound = (seen * reconstruction + visits * w * kl + prior).mean()
    return bound, (visits * (w * kl) ** 2).mean() / (D * math.log(2))


def _adaptive() -> Adaptive:
    sampler = Adaptive(cells=4, warmup=1, floor=0.1)
    sampler.update(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([1.0, 5.0, 2.0, 0.5]))
    return sampler


@pytest.mark.parametrize("sampler", [Stratified, _adaptive], ids=["stratified", "adaptive"])
@every_kind
def test_the_shape_learns_by_the_draws_square_and_all_else_by_the_bound(kind: str, sampler: Callable) -> None:
    """Kingma et al. 2021, App. I.2, with each draw's own weight; a levels head looks at z_1 in 1/32 of the items."""
    model, x = _model(kind), _batch()
    made = model.process.schedule
    draws = model.draw(x, sampler(), generator(5))
    assert ("first" in draws) == (kind != "v")
    if kind != "v":
        assert 0 < int(draws["first"].sum()) < 8
    loss = model.costs(x, draws).total().mean()
    loss.backward()
    bound, square = _plain(model, x, draws)
    assert float(loss.detach()) == pytest.approx(float(bound.detach()), rel=1e-10)
    wrong = []
    for name, parameter in model.named_parameters():
        shape = name.startswith("process.") and "gamma_m" not in name
        (want,) = torch.autograd.grad(square if shape else bound, parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, want, rtol=1e-8, atol=1e-10)
        if shape:
            (plain,) = torch.autograd.grad(bound, parameter, retain_graph=True)
            wrong.append(float((plain - want).abs().max() / want.abs().max()))
    assert len(wrong) == 4
    assert min(wrong) > 0.05  # the bound's own gradient of the shape is another
    assert isinstance(made, schedule.Learned)


@every_kind
def test_the_shapes_gradient_is_the_squares_difference(kind: str) -> None:
    """By central differences of mean (w kl)²/(D ln 2), the library's own draws of kl: through z, log-SNR and γ'."""
    model, x = _model(kind), _batch()
    made = model.process.schedule
    assert isinstance(made, schedule.Learned)
    draws = model.draw(x, _adaptive(), generator(5))
    model.costs(x, draws).total().mean().backward()
    visits = (~draws["first"]).double() * 32 / 31 if kind != "v" else torch.ones(len(x), dtype=F64)

    def square() -> float:
        kl = model.kl_at(x, draws["level"], draws["noise"])
        return float((visits * (draws["weight"] * kl) ** 2).mean().detach()) / (D * math.log(2))

    for parameter, at in ((made.slope, ()), (made.heights, (2,)), (made.widths, (4,)), (made.biases, (1,))):
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[at] += h
                ends.append(square())
                parameter[at] -= h
        assert float(parameter.grad[at]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)  # type: ignore[index]


@every_kind
def test_nothing_is_pulled_in_discrete_time(kind: str) -> None:
    """There the shape is part of the model: every parameter has the bound's gradient."""
    model, x = _model(kind, steps=7), _batch()
    draws = model.draw(x, Stratified(), generator(5))
    model.costs(x, draws).total().mean().backward()
    grid = model.process.schedule.gamma(torch.arange(7, dtype=F64) / 6)
    s, t = grid[draws["level"] - 1], grid[draws["level"]]
    kl = 0.5 * (torch.exp(t - s) - 1) * _plain_said(model, x, t, draws["noise"])[0]
    first = draws.get("first", torch.zeros(len(x), dtype=torch.bool))
    share = 32 / 31 if kind != "v" else 1.0
    continuous = {"level": torch.zeros(len(x), dtype=F64), "weight": torch.zeros(len(x), dtype=F64)}
    rest, _ = _plain(model, x, draws | continuous)  # the reconstruction and the prior
    bound = rest + ((~first).double() * share * draws["weight"] * kl).mean()
    for _, parameter in model.named_parameters():
        (want,) = torch.autograd.grad(bound, parameter, retain_graph=True)
        torch.testing.assert_close(parameter.grad, want, rtol=1e-8, atol=1e-10)


@every_kind
def test_a_straight_learned_schedule_is_the_plain_one(kind: str) -> None:
    """The same loss and the same gradient of the network, whether γ(u) has parameters or not."""
    straight = schedule.learned(-3.0, 4.0, features=3)
    with torch.no_grad():
        straight.heights.zero_()
    found = []
    for made in (straight, schedule.log_snr_linear(-3.0, 4.0)):
        model = _model(kind, made=made)
        loss = model.loss(_batch(), generator(3))
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.denoiser.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


# That it works: a world whose optimal denoiser is known, so that only γ(u) learns.

VARIANCES = torch.linspace(0.3, 2.0, 12, dtype=F64)
WORLD = exact.Gaussian(torch.zeros(12, dtype=F64), torch.diag(VARIANCES))
LOW, HIGH = -5.0, 11.0


def _world_model(made: schedule.Schedule) -> DiffusionModel:
    p = likelihood.GaussianLikelihood(Continuous((12,)), assisted=False)
    return DiffusionModel(GaussianDiffusion(made), WORLD.denoiser("noise"), p)


def _moments(gamma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E h and E h² of h = ½ ‖ε − ε̂‖² at γ: ε − ε̂ is N(0, e_d), e_d = α² λ_d/(α² λ_d + σ²)."""
    signal = plain_alpha(gamma)[..., None] ** 2 * VARIANCES.numpy()
    e = signal / (signal + plain_sigma(gamma)[..., None] ** 2)
    return 0.5 * e.sum(-1), 0.25 * (e.sum(-1) ** 2 + 2 * (e**2).sum(-1))


def _spread(made: schedule.Schedule) -> tuple[float, float]:
    """Mean and variance of L = γ'(u) h, u uniform: ∫ γ' E h du, and ∫ γ'² E h² du less the mean's square."""
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    with torch.no_grad():
        at, slope = made.gamma(u).numpy(), made.dgamma(u).numpy()
    first, second = _moments(at)
    mean = float((slope * first).mean())
    return mean, float((slope**2 * second).mean()) - mean**2


def _best() -> float:
    """Least variance of any shape: the density 1/γ' ∝ √E h² over γ leaves (∫ √E h² dγ)² − (∫ E h dγ)²."""
    gamma = np.linspace(LOW, HIGH, 20_001)
    first, second = _moments(gamma)
    return float(np.trapezoid(np.sqrt(second), gamma) ** 2 - np.trapezoid(first, gamma) ** 2)


def _taught(steps: int) -> schedule.Learned:
    """The shape after so many Adam steps on `loss`, which nothing else learns from."""
    made = schedule.learned(LOW, HIGH, features=32)
    model = _world_model(made)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    rng = generator(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        x = WORLD.sample(256, rng)
        optimizer.zero_grad()
        model.loss(x, rng).backward()
        optimizer.step()
    return made


def test_a_taught_shape_comes_near_the_best_and_leaves_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The straight line's variance is eleven times the best there is; 200 steps take away 9/10 of what is too much."""
    start_mean, start = _spread(schedule.log_snr_linear(LOW, HIGH))
    best = _best()
    mean, after = _spread(_taught(200))
    assert start > 5 * best
    assert best < after < best + 0.1 * (start - best)
    # The bound is what it was: I(x; z_1) − I(x; z_T) here (MATH (15)).
    information = [WORLD.information(gamma).value for gamma in (LOW, HIGH)]
    for value in (start_mean, mean):
        assert value == pytest.approx(information[0] - information[1], rel=1e-5)
    # The bound's own gradient teaches a shape nothing: without its pull it wanders.
    monkeypatch.setattr(schedule.Learned, "visit", schedule.Schedule.visit)
    _, lost = _spread(_taught(200))
    assert lost > best + 0.5 * (start - best)


# The bound does not depend on the shape, MATH (10).


class _Bowed(schedule.LogSNRLinear):
    """γ_min + span · (u + u³)/2: another shape between the same ends."""

    def gamma(self, u: Tensor) -> Tensor:
        return super().gamma(0.5 * (u.double() + u.double() ** 3))

    def dgamma(self, u: Tensor) -> Tensor:
        return super().dgamma(u) * 0.5 * (1 + 3 * u.double() ** 2)


SHAPES: dict[str, Callable[[float, float], schedule.Schedule]] = {
    "linear": schedule.log_snr_linear,
    "learned": lambda low, high: bent(schedule.learned(low, high, features=24)),
    "learned, with its ends": lambda low, high: bent(schedule.learned(low, high, features=24, ends="learned"), seed=1),
    "bowed": _Bowed,
}
MIXTURE = exact.Mixture(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-0.6], [0.8]], dtype=F64),
    torch.tensor([[[0.16]], [[0.3]]], dtype=F64),
)
DECODER = 1e-3


def _mixture_nodes() -> tuple[Tensor, Tensor, Tensor]:
    """x, ε and weights of E over both, by the trapezoid rule in each component's units."""
    axis = torch.arange(-23, 24, dtype=F64) * 0.32
    w = torch.exp(-0.5 * axis**2) * 0.32 / math.sqrt(2 * math.pi)
    pairs, both = torch.cartesian_prod(axis, axis), torch.cartesian_prod(w, w).prod(1)
    x = torch.cat([-0.6 + 0.4 * pairs[:, :1], 0.8 + math.sqrt(0.3) * pairs[:, :1]])
    return x, pairs[:, 1:].repeat(2, 1), torch.cat([0.6 * both, 0.4 * both])


def _continuous_nelbo(made: schedule.Schedule) -> float:
    """E of all costs through the model's primitives: (x, ε) by the trapezoid rule, u by Gauss–Legendre in 32 panels."""
    p = likelihood.GaussianLikelihood(Continuous((1,)), variance=DECODER)
    model = DiffusionModel(GaussianDiffusion(made), MIXTURE.denoiser("v"), p)
    x, noise, w = _mixture_nodes()
    nodes, weights = np.polynomial.legendre.leggauss(8)
    integral = 0.0
    with torch.no_grad():
        for panel in range(32):
            u = torch.from_numpy((panel + 0.5 * (nodes + 1)) / 32)
            density = model.kl_at(x.repeat(8, 1), u.repeat_interleave(len(x)), noise.repeat(8, 1)).view(8, -1) @ w
            integral += float(density @ torch.from_numpy(0.5 * weights / 32))
        return integral + float((model.reconstruction(x, noise) * w).sum() + (model.prior(x) * w).sum())


def _known_nelbo(low: float, high: float) -> float:
    """I(x; z_1) − I(x; z_T), by I–MMSE (15), with decoder and prior in closed form."""
    between = MIXTURE.information(low).value - MIXTURE.information(high).value
    decoder = 0.5 * math.log(2 * math.pi * DECODER) + float(MIXTURE.mmse(torch.tensor([low]))) / (2 * DECODER)
    sigma2 = plain_sigma(high) ** 2
    prior = 0.5 * (MIXTURE.second_moment() * plain_alpha(high) ** 2 + sigma2 - 1 - math.log(sigma2))
    return between + decoder + prior


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_does_not_depend_on_the_shape(shape: str) -> None:
    assert _continuous_nelbo(SHAPES[shape](-6.0, 4.0)) == pytest.approx(_known_nelbo(-6.0, 4.0), abs=1e-8)


def test_the_bound_depends_on_the_ends() -> None:
    found = _continuous_nelbo(SHAPES["learned"](-5.0, 6.0))
    assert found == pytest.approx(_known_nelbo(-5.0, 6.0), abs=1e-8)
    assert abs(found - _known_nelbo(-6.0, 4.0)) > 0.1


def test_at_a_finite_number_of_latents_the_shape_matters() -> None:
    """T = 9: Σ ½ (SNR_s − SNR_t) mmse(γ_t) of each grid, by the world alone; the shapes differ by more than 0.05 nats."""
    x, noise, w = _mixture_nodes()
    totals = {}
    for shape, make in SHAPES.items():
        made = make(-6.0, 4.0).regrid(9)
        p = likelihood.GaussianLikelihood(Continuous((1,)), variance=DECODER)
        model = DiffusionModel(GaussianDiffusion(made), MIXTURE.denoiser("v"), p)
        grid = made.gamma(torch.arange(9, dtype=F64) / 8).detach()
        want = float((0.5 * (torch.exp(-grid[:-1]) - torch.exp(-grid[1:])) * MIXTURE.mmse(grid[1:])).sum())
        level = torch.arange(1, 9).repeat_interleave(len(x))
        with torch.no_grad():
            kl = model.kl_at(x.repeat(8, 1), level, noise.repeat(8, 1)).view(8, -1) @ w
        assert float(kl.sum()) == pytest.approx(want, rel=1e-8)
        totals[shape] = want
    values = sorted(totals.values())
    assert min(b - a for a, b in pairwise(values)) > 0.02
    # Always more than in continuous time, where all shapes cost the same.
    assert values[0] > MIXTURE.information(-6.0).value - MIXTURE.information(4.0).value
