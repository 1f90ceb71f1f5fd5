"""Plans: visits are what their weights say, and no coefficient changes a mean, against closed forms and quadrature."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import diffusional as df
from battery import close, float64, generator, plain_alpha, plain_sigma, randn
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.control import Control, Look, width_of
from diffusional.evaluation.controls import NAMES, fit_controls
from diffusional.evaluation.plan import Met, Plan
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.wiener import Wiener
from diffusional.files import load_json, load_tensors, save_json, save_tensors

LOW, HIGH = -5.0, 5.0
LAMBDA, MEAN, DECODER = np.array([0.5, 2.0]), np.array([0.3, -0.4]), 0.01
SPACE = df.Discrete((3,), 5)
LAST = 1 - 2**-53


class Fixed(nn.Module):
    """x̂ = 0.9 tanh(1.5 z + 0.1 γ), position by position; it counts the rows it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        self.rows += len(z)
        return 0.9 * torch.tanh(1.5 * z - 0.1 * log_snr[:, None])


def gaussian(steps: int | None, variance: Any = "posterior") -> df.DiffusionModel:
    """Reals whose every cost is known in closed form: `gaussian_costs`."""
    world = exact.Gaussian(torch.tensor(MEAN), torch.diag(torch.tensor(LAMBDA)))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), variance=DECODER)
    return df.DiffusionModel(forward, world.denoiser(), decoder, variance)


def discrete(steps: int | None, variance: Any = "posterior", decoder: Any = None) -> df.DiffusionModel:
    """Levels, and a network whose expected costs are one-dimensional integrals: `discrete_costs`."""
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    kind = decoder or likelihood.DiscretizedGaussian
    return df.DiffusionModel(forward, df.Denoiser(Fixed(), "data"), kind(SPACE), variance)


def reals(n: int = 6) -> Tensor:
    return torch.tensor(MEAN) + torch.tensor(LAMBDA).sqrt() * randn(n, 2, seed=1)


def levels(n: int = 6, seed: int = 2) -> Tensor:
    """Items whose histograms are nothing like flat."""
    return SPACE.encode(torch.randint(0, 25, (n, 3), generator=generator(seed)).double().sqrt().long())


def kl_of(error: np.ndarray, steps: int | None, variance: str, d: int) -> np.ndarray:
    """Σ_t KL_t (N,) from E ‖x − x̂‖² (N, L) at every γ of a grid, MATH (10) with SNRs and variances written out."""
    gamma = np.linspace(LOW, HIGH, error.shape[1])
    snr, sigma2 = np.exp(-gamma), plain_sigma(gamma) ** 2
    if steps is None:
        density = 0.5 * snr * error  # per unit of γ
        return (0.5 * (density[:, 1:] + density[:, :-1]) * np.diff(gamma)).sum(1)
    kl = 0.5 * (snr[:-1] - snr[1:]) * error[:, 1:]
    if variance == "transition":
        r = sigma2[:-1] / sigma2[1:]
        kl = r * kl + 0.5 * d * (r - 1 - np.log(r))
    return kl.sum(1)


def gaussian_costs(x: np.ndarray, steps: int | None, variance: str = "posterior") -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction and Σ KL (N,), nats: x̂ = m + k (z − α m) is linear, so its squared error is known."""
    gamma = np.linspace(LOW, HIGH, steps or 20_001)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    error = (((x - MEAN)[:, None] * (1 - k * a)) ** 2 + (k * s) ** 2).sum(2)
    return 0.5 * (2 * math.log(2 * math.pi * DECODER) + error[:, 0] / DECODER), kl_of(error, steps, variance, 2)


def discrete_costs(
    x: np.ndarray,
    steps: int | None,
    variance: str = "posterior",
    decoder: str = "DiscretizedGaussian",
    network: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda z, gamma: 0.9 * np.tanh(1.5 * z + 0.1 * gamma),
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction and Σ KL (N,), nats, by a grid in ε for each of the five levels."""
    gamma = np.linspace(LOW, HIGH, steps or 501)
    values, eps = np.linspace(-1, 1, 5), np.arange(-8, 8, 0.01)
    density = stats.norm.pdf(eps) * 0.01
    z = plain_alpha(gamma)[:, None, None] * values[:, None] + plain_sigma(gamma)[:, None, None] * eps  # (L, K, E)
    guess = network(z, gamma[:, None, None])
    error = ((values[:, None] - guess) ** 2) @ density  # (L, K)
    a, s = plain_alpha(LOW), plain_sigma(LOW)
    if decoder == "LevelPosterior":
        odds = stats.norm.pdf(z[0][:, :, None], a * values, s)  # (K, E, K)
        cost = -np.log(np.take_along_axis(odds, np.arange(5)[:, None, None], 2)[:, :, 0] / odds.sum(2))
    else:
        mean = guess[0] if decoder == "DiscretizedGaussian" else z[0] / a
        upper, lower = (np.array([*values[:-1] + 0.25, np.inf]), np.array([-np.inf, *values[1:] - 0.25]))
        mass = stats.norm.cdf((upper[:, None] - mean) / s) - stats.norm.cdf((lower[:, None] - mean) / s)
        cost = -np.log(np.maximum(mass, 1e-300))
    index = np.abs(x[:, :, None] - values).argmin(2)
    return (cost @ density)[index].sum(1), kl_of(error.T[index].sum(1), steps, variance, 3)


def plan_of(
    model: df.DiffusionModel, controls: tuple[Control, ...], seed: int = 0, size: float = 1.0, cells: int = 4
) -> Plan:
    """Cells of unequal width, unequal π, and any coefficients."""
    g = generator(seed)

    def some(*shape: int) -> Tensor:
        return size * torch.randn(shape, generator=g, dtype=torch.float64)

    if model.timesteps is None:
        edges = torch.cat([torch.zeros(1), torch.rand(cells - 1, generator=g).sort().values, torch.ones(1)]).double()
    else:
        inner = torch.randperm(model.timesteps - 1, generator=g)[: cells - 1] + 2
        edges = torch.cat([torch.tensor([1]), inner.sort().values, torch.tensor([model.timesteps + 1])])
    mass = 0.2 + torch.rand(cells + 1, generator=g, dtype=torch.float64)
    if not model.likelihood.uses_network:
        mass[0] = 0
    (e, f), scale = width_of(controls), torch.ones(cells + 1, dtype=torch.float64)
    coefficients = (some(cells + 1), some(e, cells + 1), some(f, cells + 1))
    return Plan(edges, mass / mass.sum(), *coefficients, scale, controls)


def controls_of(model: df.DiffusionModel) -> tuple[Control, ...]:
    data = levels(200, seed=9) if isinstance(model.space, df.Discrete) else reals(200) + 0.1
    return fit_controls(NAMES, model, data)


def expected(control: Control, x: Tensor, gamma: Tensor, first: bool = False) -> Tensor:
    """The control's functions of item and level (B, E) at one γ."""
    g = gamma.double().expand(len(x))
    return control.at(Look(x, torch.zeros_like(x), g, torch.ones(len(x)), torch.full((len(x),), first)))[0]


# Where it looks.


def grid(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
def test_levels_come_as_often_as_their_weights_say(decoder: Any, seed: int) -> None:
    plan, n = plan_of(discrete(38, decoder=decoder), (), seed, cells=5), 200_000
    visits = plan.at(grid(n))
    for cell in range(6):
        there = visits.cell == cell
        assert float(there.double().mean()) == pytest.approx(float(plan.mass[cell]), abs=2 / n)
        chosen = range(1, 2) if cell == 0 else range(int(plan.edges[cell - 1]), int(plan.edges[cell]))
        assert set(visits.level[there].tolist()) == (set(chosen) if plan.mass[cell] > 0 else set())
        for level in chosen if plan.mass[cell] > 0 else ():
            q = float(plan.mass[cell]) / len(chosen)
            at = there & (visits.level == level)
            assert float(at.double().mean()) == pytest.approx(q, abs=2 / n)
            close(visits.weight[at].unique(), float64([1 / q]))
    # So that the mean of weight · f is the sum of f, the reconstruction's among them.
    f = randn(39, seed=seed)
    f[0] *= float(plan.mass[0] > 0)
    mean = float((visits.weight * f[torch.where(visits.cell == 0, 0, visits.level)]).mean())
    assert mean == pytest.approx(float(f[:38].sum()), abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
def test_continuous_levels_come_as_often_as_their_weights_say(decoder: Any, seed: int) -> None:
    plan, n = plan_of(discrete(None, decoder=decoder), (), seed, cells=5), 200_000
    visits = plan.at(grid(n))
    assert bool((visits.level[visits.cell == 0] == 1).all())
    assert float(visits.weight[visits.cell == 0].sum()) / n == pytest.approx(float(plan.mass[0] > 0), abs=1e-4)
    for cell in range(1, 6):
        there, (low, high) = visits.cell == cell, plan.edges[cell - 1 : cell + 1].tolist()
        assert low <= float(visits.level[there].min())
        assert float(visits.level[there].max()) < high
        for power in range(3):
            integral = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
            mean = float((visits.weight * visits.level**power)[there].sum()) / n
            assert mean == pytest.approx(integral, rel=1e-4)


@pytest.mark.parametrize("steps", [2, 38, None])
def test_the_ends_of_the_unit_interval_are_fine(steps: int | None) -> None:
    v = float64([0.0, 2**-60, LAST])
    for kind in (likelihood.DiscretizedGaussian, likelihood.LevelPosterior):
        model = discrete(steps, decoder=kind)
        plan = plan_of(model, (), cells=min(3, model.timesteps or 3))
        visits = plan.at(v)
        first = 0 if model.likelihood.uses_network else 1
        assert visits.cell.tolist() == [first, first, plan.cells]
        # The first level, or u = 0; the reconstruction has no level, and names 1.
        assert visits.level[0] == (0 if steps is None and first else 1)
        assert float(visits.level[-1]) == pytest.approx(model.timesteps or 1, abs=1e-12)
        assert bool(torch.isfinite(visits.weight).all())


@pytest.mark.parametrize(
    "mass",
    [
        [0.0, 0.3, 0.0, 0.7, 0.0, 0.0],  # cells that are never visited
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [0.3, 0.3, -0.2, 0.2, 0.2, 0.2],
        [-0.1, 0.3, 0.2, 0.2, 0.2, 0.2],
        [0.0, 0.2, 0.2, math.nan, 0.2, 0.2],
        [0.5, 0.5],
    ],
)
def test_probabilities_that_are_none_are_refused(mass: list[float]) -> None:
    plan = plan_of(discrete(38), (), cells=5)
    with pytest.raises(DiffusionalError, match="mass"):
        replace(plan, mass=float64(mass))
    # The reconstruction may be left out: its decoder may need no network.
    assert replace(plan, mass=float64([0.0, 0.2, 0.2, 0.2, 0.2, 0.2])).cells == 5


def test_other_numbers_that_no_plan_has_are_refused() -> None:
    plan = plan_of(discrete(38), (), cells=5)
    with pytest.raises(DiffusionalError, match="edges"):
        replace(plan, edges=plan.edges.flip(0))
    with pytest.raises(DiffusionalError, match="constant of shape"):
        replace(plan, constant=plan.constant[:-1])
    with pytest.raises(DiffusionalError, match="not finite"):
        replace(plan, constant=plan.constant * math.inf)
    with pytest.raises(DiffusionalError, match="drawn of shape"):
        replace(plan, drawn=float64([[0.0] * 6]))
    with pytest.raises(DiffusionalError, match="scale of at least 0"):
        replace(plan, scale=-1 - plan.scale)


def test_the_uniform_plan_sees_every_level_alike() -> None:
    for cells in (1, 4, 32, 100):
        plan = Plan.uniform(discrete(38), cells)
        assert plan.cells == min(cells, 37)
        visits = plan.at(grid(4000))
        close(visits.weight[visits.cell > 0], (37 / (1 - plan.mass[0])).expand(int((visits.cell > 0).sum())))


# What is known without the network.


@pytest.mark.parametrize("variance", ["posterior", "transition"])
@pytest.mark.parametrize("world", [gaussian, discrete])
def test_the_base_is_the_sum_over_the_levels(world: Any, variance: str) -> None:
    model = world(12, variance)
    x = levels() if world is discrete else reals()
    controls = controls_of(model)
    plan = plan_of(model, controls)
    gamma = torch.linspace(LOW, HIGH, 12, dtype=torch.float64)
    wanted = torch.zeros(6, 5, dtype=torch.float64)
    wanted[:, 0] = plan.constant[0]
    wanted[:, 0] += (
        0.5 * torch.cat([expected(control, x, gamma[0], True) for control in controls], 1) @ plan.expected[:, 0]
    )
    for cell in range(1, 5):
        for t in range(int(plan.edges[cell - 1]), int(plan.edges[cell])):
            snr_s, snr_t = torch.exp(-gamma[t - 1]), torch.exp(-gamma[t])
            r = plain_sigma(gamma[t - 1]) ** 2 / plain_sigma(gamma[t]) ** 2 if variance == "transition" else float64(1)
            wanted[:, cell] += plan.constant[cell] + 0.5 * model.space.dimensions * (r - 1 - r.log())
            error = torch.cat([expected(control, x, gamma[t]) for control in controls], 1) @ plan.expected[:, cell]
            wanted[:, cell] += 0.5 * r * (snr_s / snr_t - 1) * error
    close(plan.base(model, x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world", [gaussian, discrete])
def test_the_base_is_the_integral_over_continuous_time(world: Any) -> None:
    model = world(None)
    x = levels(2) if world is discrete else reals(2)
    controls = controls_of(model)
    plan = plan_of(model, controls)
    base = plan.base(model, x)
    for cell in range(1, 5):
        low, high = plan.edges[cell - 1 : cell + 1]
        # The tables of the histogram control change at steps: points between them, as many in every piece.
        ends = LOW + (HIGH - LOW) * torch.stack([low, high])
        steps = 0.25 * (torch.arange(-80, 80) + 0.5).double()
        cuts = torch.cat([ends[:1], steps[(steps > ends[0]) & (steps < ends[1])], ends[1:]])
        total = plan.constant[cell] * (high - low) + torch.zeros(2, dtype=torch.float64)
        for start, end in pairwise(cuts.tolist()):
            nodes = start + (end - start) * (torch.arange(20, dtype=torch.float64) + 0.5) / 20
            for gamma in nodes:
                error = torch.cat([expected(control, x, gamma) for control in controls], 1) @ plan.expected[:, cell]
                total += 0.5 * (end - start) / 20 * error
        close(base[:, cell], total, rtol=5e-5, atol=5e-5)


def test_a_pilot_for_a_target_goes_on_while_it_pays() -> None:
    model, x = own()
    for draws, most in ((100.0, 500), (4e6, 20_000)):
        asked: list[float] = []

        def wanted(variance: float, draws: float = draws, asked: list[float] = asked) -> float:
            asked.append(variance)
            return draws

        plan = Plan.fit(model, x, 500, cells=8, draws=wanted)
        assert plan.provenance["evaluations"] == len(plan.met.left) == most
    assert len(asked) == 5  # 500, 1,500, 4,500, 13,500, 20,000
    # Another model's pilot repeats it, however long it was.
    again = Plan.fit(model, x, 500, cells=8, like=plan)
    assert torch.equal(again.met.level, plan.met.level)


def test_controls_of_events_that_no_draw_meets_get_no_coefficients() -> None:
    """Bits at low noise: half a bin is up to 20 σ, and what rounding leaves of an exceedance there must not be regressed on."""
    space = df.space.binary((5,))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, 40))
    model = df.DiffusionModel(
        forward, df.Denoiser(lambda z, s: torch.tanh(z), "data"), likelihood.LevelPosterior(space)
    )
    x = space.encode(torch.randint(2, (400, 5), generator=generator(0)))
    plan = Plan.fit(model, x, 3000, seed=4)
    # Without a least variance, coefficients of 1e11, whose products with rounding enter the base.
    assert float(torch.cat([plan.drawn, plan.expected]).abs().max()) < 1e4
    # Where the base is wrong, so is the estimate, whatever the draws say.
    draws, items = VisitRecords(model, plan, x[:40]), torch.arange(40)
    draws.extend(items, torch.full_like(items, 40))
    swept = df.evaluate(model, x[:40], draws=40).nelbo
    found = draws.nelbo()
    assert abs(found.value - swept.value) < 4 * math.hypot(found.error, swept.error)


# Unbiased, whatever is subtracted.


def check_mean(draws: VisitRecords, truth: tuple[np.ndarray, np.ndarray], each: int) -> float:
    """Hold every item's terms and their sum to the truth, to 4.5 standard errors; give the error of the mean back."""
    items = torch.arange(len(draws.data))
    draws.extend(items, torch.full_like(items, each))
    records, filled = draws.parts(items)
    drawn = {
        "reconstruction": (draws.base[:, 0], records.costs["reconstruction"], truth[0]),
        "kl": (draws.base[:, 1:].sum(1), records.costs["kl"], truth[1]),
        "both": (draws.base.sum(1), records.costs["kl"] + records.costs["reconstruction"], sum(truth)),
    }
    for base, values, wanted in drawn.values():
        mean, variance = draws.spread(values, filled)
        off = (base + mean).numpy() - wanted
        assert (np.abs(off) < 4.5 * variance.sqrt().numpy() + 1e-5).all()
        assert abs(off.mean()) < 4 * float(variance.sum().sqrt()) / len(items) + 1e-5
    assert draws.nelbo().value == pytest.approx(float(draws.known().mean() + mean.mean()), rel=1e-12)
    return draws.nelbo().error


@pytest.mark.parametrize(
    ("world", "steps", "variance"),
    [
        (gaussian, 12, "posterior"),
        (gaussian, 200, "transition"),
        (gaussian, None, "posterior"),
        (discrete, 12, "transition"),
        (discrete, 200, "posterior"),
        (discrete, None, "posterior"),
    ],
)
def test_no_coefficient_changes_the_mean(world: Any, steps: int | None, variance: str) -> None:
    model = world(steps, variance)
    x = levels() if world is discrete else reals()
    truth = (discrete_costs if world is discrete else gaussian_costs)(x.numpy(), steps, variance)
    fitted = Plan.fit(model, levels(300, seed=3) if world is discrete else reals(300), 1000, cells=8)
    names = ("constant", "expected", "drawn")
    tenfold = replace(fitted, **{name: 10 * getattr(fitted, name) for name in names})
    any_plan = plan_of(model, fitted.controls)
    errors = [
        check_mean(VisitRecords(model, plan, x, seed=4), truth, 800)
        for plan in (Plan.uniform(model, 8), any_plan, fitted, tenfold)
    ]
    assert errors[2] < 0.7 * errors[0]
    assert errors[3] > 3 * errors[2]


def test_a_decoder_that_needs_no_network_is_drawn_beside() -> None:
    model = discrete(30, decoder=likelihood.LevelPosterior)
    x = levels()
    truth = discrete_costs(x.numpy(), 30, decoder="LevelPosterior")
    fitted = Plan.fit(model, levels(300, seed=3), 1000, cells=8)
    assert fitted.mass[0] == 0
    assert fitted.scale[0] > 0  # it varies, and the pilot saw that for nothing
    for plan in (Plan.uniform(model, 8), plan_of(model, fitted.controls), fitted):
        draws = VisitRecords(model, plan, x)
        before = model.denoiser.module.rows
        check_mean(draws, truth, 800)
        assert model.denoiser.module.rows - before == draws.evaluations == 4800


@pytest.mark.parametrize("part", ["totals", "_spectrum"])
def test_an_expectation_wrong_by_one_percent_is_found(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the control is the model itself, what is drawn says nothing, and what is expected is the result."""
    model, every = own()
    x = every[:6].double()
    mean, c = every.mean(0).double().numpy(), np.cov(every.double().numpy().T, bias=True)
    costs, gamma = np.zeros(6), np.linspace(LOW, HIGH, 300)
    for t, g in enumerate(gamma):
        a, s2 = plain_alpha(g), plain_sigma(g) ** 2
        gain = a * c @ np.linalg.inv(a**2 * c + s2 * np.eye(2))
        bias = (x.numpy() - mean) @ (np.eye(2) - a * gain).T
        error = (bias**2).sum(1) + s2 * np.trace(gain.T @ gain)
        if t == 0:
            first = 0.5 * error / DECODER + math.log(2 * math.pi * DECODER)
        else:
            costs += 0.5 * (math.exp(-gamma[t - 1]) - math.exp(-g)) * error
    world = Wiener(float64(mean), *torch.linalg.eigh(float64(c)))
    one = torch.ones(1, 5, dtype=torch.float64)
    # The decoder's variance is its own.
    one[:, 0] = math.exp(LOW) / DECODER
    zero = torch.zeros(5, dtype=torch.float64)
    zero[0] = math.log(2 * math.pi * DECODER)
    plan = replace(plan_of(model, ()), constant=zero, expected=one, drawn=one, controls=(world,))
    assert check_mean(VisitRecords(model, plan, x), (first, costs), 20) < 1e-5
    right = getattr(Wiener, part)

    def off(*arguments: Any, **named: Any) -> Any:
        found = right(*arguments, **named)
        return 1.01 * found if isinstance(found, Tensor) else tuple(1.01 * value for value in found)

    monkeypatch.setattr(Wiener, part, off)
    with pytest.raises(AssertionError):
        check_mean(VisitRecords(model, plan, x), (first, costs), 20)


@pytest.mark.parametrize("decoder", ["LevelPosterior", "bare"])
@pytest.mark.parametrize(("steps", "variance"), [(20, "posterior"), (20, "transition"), (None, "posterior")])
def test_a_network_that_says_nothing_gets_its_closed_form(steps: int | None, variance: Any, decoder: str) -> None:
    """ε̂ = 0: KL_t = c_t E ‖ε‖² = c_t D for every item, and x̂ = z/α decodes."""
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    kind = likelihood.LevelPosterior if decoder == "LevelPosterior" else likelihood.DiscretizedGaussian
    model = df.DiffusionModel(forward, df.Denoiser(lambda z, log_snr: 0 * z), kind(SPACE), variance)
    x = levels()
    gamma = np.linspace(LOW, HIGH, steps or 2)
    sigma2 = plain_sigma(gamma) ** 2
    step = np.expm1(np.diff(gamma)) if steps else np.diff(gamma)
    r = sigma2[:-1] / sigma2[1:] if variance == "transition" else np.ones(len(step))
    kl = np.full(6, 0.5 * 3 * float((r * step + r - 1 - np.log(r)).sum()))
    truth = (discrete_costs(x.numpy(), 3, decoder=decoder)[0], kl)
    for plan in (Plan.uniform(model, 6), Plan.fit(model, levels(100, seed=3), 500, cells=6)):
        check_mean(VisitRecords(model, plan, x), truth, 600)


# What it learns.


def own(n: int = 400) -> tuple[df.DiffusionModel, Tensor]:
    """The optimal model of exactly these items' mean and covariance: Wiener's world is the model."""
    x = reals(n)
    centred = x - x.mean(0)
    world = exact.Gaussian(x.mean(0), centred.T @ centred / n)
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 300))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), variance=DECODER)
    return df.DiffusionModel(forward, world.denoiser(), decoder), x


def test_a_control_that_is_the_model_leaves_nothing() -> None:
    model, x = own()
    plan, every = Plan.fit(model, x, 1000, controls=("wiener",)), Plan.fit(model, x, 1000)
    assert [c.name for c in every.controls] == ["wiener", "moments"]
    # Its decoder has a variance of its own; with few draws a coefficient is held back.
    np.testing.assert_allclose(plan.drawn[0], [math.exp(LOW) / DECODER] + 32 * [1], atol=0.02)
    assert float(plan.scale.max()) < 0.02
    draws, richer, plain = (VisitRecords(model, p, x[:50]) for p in (plan, every, Plan.uniform(model)))
    for one in (draws, richer, plain):
        one.extend(torch.arange(50), torch.full((50,), 10))
    assert draws.nelbo().error < 0.005 * plain.nelbo().error
    # Controls that resemble the model's own hold its coefficient back a little more.
    assert richer.nelbo().error < 0.02 * plain.nelbo().error


def observed(model: df.DiffusionModel, plan: Plan, x: Tensor, each: int) -> float:
    """The mean variance of one draw of an item, nats²."""
    draws, items = VisitRecords(model, plan, x, seed=6), torch.arange(len(x))
    draws.extend(items, torch.full_like(items, each))
    records, filled = draws.parts(items)
    return float(draws.spread(records.costs["kl"] + records.costs["reconstruction"], filled)[1].mean()) * each


@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
@pytest.mark.parametrize("steps", [200, None])
def test_the_variance_of_a_draw_is_foretold(steps: int | None, decoder: Any) -> None:
    model = discrete(steps, decoder=decoder)
    plan = Plan.fit(model, levels(400, seed=3), 3000)
    assert observed(model, plan, levels(100, seed=8), 60) == pytest.approx(plan.draw_variance, rel=0.25)


def test_levels_are_chosen_by_what_is_left_there() -> None:
    model, x = discrete(200), levels(100, seed=8)
    plan = Plan.fit(model, levels(400, seed=3), 3000)
    width = torch.cat([float64([1.0]), (plan.edges[1:] - plan.edges[:-1]).double()])
    share = width * plan.scale
    # Neyman's allocation, but for the floor and what neighbours lend.
    assert float(torch.corrcoef(torch.stack([share, plan.mass]))[0, 1]) > 0.9
    assert float(plan.mass.min()) >= 0.1 / len(plan.mass) - 1e-12
    assert float(plan.mass.sum()) == pytest.approx(1, abs=1e-12)
    even = torch.cat([plan.mass[:1], (1 - plan.mass[:1]) * width[1:] / width[1:].sum()])
    assert observed(model, plan, x, 40) < 0.8 * observed(model, replace(plan, mass=even), x, 40)


def test_the_pilot_is_counted_and_named() -> None:
    model = discrete(30)
    plan = Plan.fit(model, levels(40), 250, seed=7, cells=5)
    assert model.denoiser.module.rows == 250
    assert (plan.cells, plan.provenance["evaluations"], plan.provenance["seed"]) == (5, 250, 7)
    again = Plan.fit(model, levels(40), 250, seed=7, cells=5)
    # Linear algebra is the same to the last bit only where memory is laid out alike.
    for name in ("mass", "constant", "expected", "drawn", "scale"):
        close(getattr(again, name), getattr(plan, name), rtol=1e-9, atol=1e-11)
    assert plan.sha256() != Plan.fit(model, levels(40), 250, seed=8, cells=5).sha256()


def test_a_second_model_sees_what_the_first_one_saw() -> None:
    one, other = discrete(30), discrete(30)
    other.denoiser = df.Denoiser(nn.Sequential(), "data")
    other.denoiser.module.forward = lambda z, log_snr: 0.5 * z
    first, alone = Plan.fit(one, levels(40), 250, cells=5), Plan.fit(other, levels(40), 250, cells=5)
    second = Plan.fit(other, levels(40), 250, cells=5, like=first)
    assert torch.equal(second.mass, first.mass)
    assert not torch.equal(second.mass, alone.mass)
    assert torch.equal(second.edges, first.edges)
    # The second pilot visits what the first one visited, with the same noise.
    assert torch.equal(second.met.level, first.met.level)
    assert torch.equal(second.met.cell, first.met.cell)
    # What the two plans expect of a difference is what their pilots met of it, cell by cell.
    width = torch.cat([float64([1.0]), (first.edges[1:] - first.edges[:-1]).double()])
    expected = 0.0
    for c in range(first.cells + 1):
        apart = (first.met.left - second.met.left)[first.met.cell == c]
        expected += float(width[c] ** 2 / first.mass[c] * apart.square().mean())
    assert first.paired_variance(second) == pytest.approx(expected)
    # The share of each visit in it, and how many carry it.
    weight = (width.square() / first.mass)[first.met.cell] / torch.bincount(first.met.cell)[first.met.cell]
    q = weight * (first.met.left - second.met.left).square()
    assert float(q.sum()) == pytest.approx(expected)
    assert first.paired_freedom(second) == pytest.approx(3 * float(q.sum()) ** 2 / float(q.square().sum()))
    assert math.isinf(first.paired_freedom(first))
    # The same model twice differs by nothing; pilots that saw other visits leave the difference of the scales.
    assert first.paired_variance(first) == 0
    blind = replace(second, met=Met.nothing())
    least = (width * (first.scale - second.scale)).square() / first.mass
    assert first.paired_variance(blind) == pytest.approx(float(least.sum()))
    # Other levels have nothing to share.
    assert Plan.fit(discrete(31), levels(40), 250, cells=5, like=first).edges[-1] == 31


class Told(nn.Module):
    """NaN where the condition is not the item's own first value, given α x + σ ε with next to no noise."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        x = z / torch.sigmoid(log_snr).sqrt()[:, None]
        return torch.where(((x[:, :1] - condition).abs() > 0.2), math.nan, x)


def test_conditions_go_with_their_items() -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, -8.0, 20))
    model = df.DiffusionModel(forward, df.Denoiser(Told(), "data"), likelihood.DiscretizedGaussian(SPACE))
    x = levels(40)
    plan = Plan.fit(model, x, 300, condition=x[:, :1])
    VisitRecords(model, plan, x, condition=x[:, :1]).extend(torch.arange(40), torch.full((40,), 3))
    with pytest.raises(DiffusionalError, match="the pilot met a cost that is not finite: nan for item"):
        Plan.fit(model, x, 300, condition=x[:, :1].flip(0))
    with pytest.raises(DiffusionalError, match=r"item \d+ has a cost that is not finite"):
        VisitRecords(model, plan, x, condition=x[:, :1].flip(0)).extend(torch.arange(40), torch.full((40,), 3))


def test_pilots_under_other_conditions_are_not_paired() -> None:
    """The same items and noise under another condition: the difference of two costs is not one between the models."""

    class Shifted(nn.Module):
        def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
            return 0.5 * z + condition

    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 12))
    model = df.DiffusionModel(forward, df.Denoiser(Shifted(), "data"), likelihood.DiscretizedGaussian(SPACE))
    x = levels(40)
    first = Plan.fit(model, x, 250, cells=5, condition=x[:, :1])
    same, shifted = (Plan.fit(model, x, 250, cells=5, condition=c, like=first) for c in (x[:, :1], x[:, :1] + 1))
    none = Plan.fit(discrete(12), x, 250, cells=5, like=first)
    assert len(first._apart(same)) == 250
    for other in (shifted, none):
        assert torch.equal(other.edges, first.edges)
        # A pilot of its own, not the first one's visits.
        assert not torch.equal(other.met.level, first.met.level)
        # Not even where the visits happen to be the same.
        paired = replace(other, met=first.met)
        assert len(first._apart(paired)) == len(paired._apart(first)) == 0


def test_a_plan_has_at_most_as_many_cells_as_its_records_can_tell() -> None:
    edges = torch.arange(2**15 + 1)

    def plan(cells: int) -> Plan:
        zero = torch.zeros(cells + 1, dtype=torch.float64)
        mass = torch.full_like(zero, 1 / (cells + 1))
        return Plan(edges[: cells + 1], mass, zero, zero.new_zeros(0, cells + 1), zero.new_zeros(0, cells + 1), zero)

    most = plan(2**15 - 1)
    assert int(most.at(torch.tensor([1 - 1e-9])).cell.to(torch.int16)) == most.cells
    with pytest.raises(DiffusionalError, match="32767 cells of levels, got 32768"):
        plan(2**15)
    for cells in (0, -3):
        with pytest.raises(DiffusionalError, match=f"cells.*, got {cells}"):
            Plan.uniform(discrete(12), cells)
    with pytest.raises(DiffusionalError, match="32767 cells of levels, got 40000"):
        Plan.uniform(discrete(50_001), 40_000)


def test_a_pilot_that_meets_infinity_says_where() -> None:
    module = Fixed()
    module.forward = lambda z, log_snr: torch.where(log_snr[:, None] < -4.9, math.inf, z)
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 12))
    model = df.DiffusionModel(forward, df.Denoiser(module, "data"), likelihood.DiscretizedGaussian(SPACE))
    model.train()
    with pytest.raises(DiffusionalError, match=r"not finite: inf for item \d+ at level 11; nothing was left out"):
        Plan.fit(model, levels(20), 300)
    assert model.training


def test_a_pilot_of_a_few_is_refused() -> None:
    with pytest.raises(DiffusionalError, match="at least 100 evaluations, got 99"):
        Plan.fit(discrete(12), levels(), 99)
    # Cells that a pilot has not visited are visited all the same.
    plan = Plan.fit(discrete(200), levels(100), 100, seed=1)
    assert bool((plan.mass >= 0.1 / 33 - 1e-12).all())
    draws = VisitRecords(discrete(200), plan, levels())
    draws.extend(torch.arange(6), torch.full((6,), 600))
    truth = sum(discrete_costs(levels().numpy(), 200)).mean() + float(draws.prior.mean())
    assert abs(draws.nelbo().value - truth) < 4 * draws.nelbo().error


@pytest.mark.parametrize("data", [torch.zeros(2, 4), torch.full((2, 3), 0.3), torch.zeros(2, 3, dtype=torch.long)])
def test_a_pilot_flies_on_items_of_the_space(data: Tensor) -> None:
    with pytest.raises(DiffusionalError, match=r"expected .* got"):
        Plan.fit(discrete(12), data)


# On disk.


@pytest.mark.parametrize("world", [gaussian, discrete])
@pytest.mark.parametrize("steps", [30, None])
def test_a_plan_comes_back_to_the_last_bit(world: Any, steps: int | None, tmp_path: Path) -> None:
    model = world(steps)
    x = levels(20) if world is discrete else reals(20)
    plan = Plan.fit(model, x, 300, cells=5)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json", model)
    assert again.sha256() == plan.sha256()
    assert again.provenance == plan.provenance
    scores = []
    for one in (plan, again):
        draws = VisitRecords(model, one, x)
        draws.extend(torch.arange(20), torch.full((20,), 3))
        scores.append((draws.base, draws._costs["kl"], draws._costs["reconstruction"], draws._cell))
    for a, b in zip(*scores, strict=True):
        assert torch.equal(a, b)


def test_a_plan_can_be_read(tmp_path: Path) -> None:
    plan = Plan.fit(discrete(30), levels(20), 300, cells=5)
    plan.save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["edges"] == plan.edges.tolist()
    assert record["mass"] == plan.mass.tolist()
    names = [f"{control.name}: {name}" for control in plan.controls for name in control.draws]
    assert record["drawn"] == dict(zip(names, plan.drawn.tolist(), strict=True))
    assert names[:2] == ["wiener: squared error", "histogram: squared error"]
    assert (record["cells"], record["time"], record["controls"]) == (5, "discrete", ["wiener", "histogram", "moments"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: discrete(31), "a plan for the model's (number of latents|noise levels γ)"),
        (lambda: discrete(None), "a plan for the model's (number of latents|noise levels γ)"),
        (
            lambda: df.DiffusionModel(
                df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH + 1e-3, 30)),
                df.Denoiser(Fixed(), "data"),
                likelihood.DiscretizedGaussian(SPACE),
            ),
            "a plan for the model's noise levels γ",
        ),
        (
            lambda: df.DiffusionModel(
                df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 30)),
                df.Denoiser(Fixed(), "data"),
                likelihood.DiscretizedGaussian(df.Discrete((3,), 6)),
            ),
            "a plan for the model's space",
        ),
    ],
)
def test_a_plan_for_another_model_is_refused(other: Any, message: str, tmp_path: Path) -> None:
    model = discrete(30)
    for plan in (Plan.fit(model, levels(20), 300, cells=5), Plan.uniform(model)):
        plan.check(model)
        with pytest.raises(DiffusionalError, match=message):
            plan.check(other())
        with pytest.raises(DiffusionalError, match=message):
            VisitRecords(other(), plan, SPACE.encode(torch.zeros(2, 3, dtype=torch.long)))
    plan.save(tmp_path / "plan.json")
    with pytest.raises(DiffusionalError, match=message):
        Plan.load(tmp_path / "plan.json", other())


def saved(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    Plan.fit(discrete(30), levels(20), 300, seed=seed, cells=5).save(folder / "plan.json")
    return folder / "plan.json"


@pytest.mark.parametrize("name", ["mass", "constant", "edges"])
def test_a_plan_whose_tensors_were_changed_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = load_tensors(path.with_suffix(".safetensors"))
    tensors[name] = tensors[name] * 2
    save_tensors(path.with_suffix(".safetensors"), tensors)
    with pytest.raises(DiffusionalError, match=r"to be of the same plan|mass"):
        Plan.load(path, discrete(30))


@pytest.mark.parametrize("name", ["mass", "constant", "sha256"])
def test_a_plan_whose_record_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    record = load_json(path)
    record[name] = "0" * 64 if name == "sha256" else [2 * v for v in record[name]]
    save_json(path, record)
    with pytest.raises(DiffusionalError, match=r"to be of the same plan.*learn the plan again"):
        Plan.load(path, discrete(30))


def test_the_tensors_of_another_plan_are_refused(tmp_path: Path) -> None:
    path, other = saved(tmp_path / "one"), saved(tmp_path / "other", seed=1)
    Plan.load(other, discrete(30))
    path.with_suffix(".safetensors").replace(other.with_suffix(".safetensors"))
    with pytest.raises(DiffusionalError, match="to be of the same plan"):
        Plan.load(other, discrete(30))


def test_what_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match="does not exist"):
        Plan.load(tmp_path / "plan.json", discrete(30))
    path = saved(tmp_path)
    record = load_json(path)
    for broken in ({k: v for k, v in record.items() if k != "controls"}, record | {"controls": ["kalman"]}):
        save_json(path, broken)
        with pytest.raises(DiffusionalError, match="learn the plan again"):
            Plan.load(path, discrete(30))


def test_a_plan_s_tensors_take_part_in_gradients() -> None:
    """γ of a learned schedule in continuous time, at the plan's edges: what records and bounds ask for."""
    learned = schedule.learned()
    forward = df.GaussianDiffusion(learned)
    model = df.DiffusionModel(forward, df.Denoiser(Fixed(), "data"), likelihood.DiscretizedGaussian(SPACE))
    plan = Plan.fit(model, levels(20), 200, cells=4)
    assert learned.gamma(plan.edges).requires_grad
    found = df.evaluate(model, levels(20), visits=2, plan=plan, audit=False)
    assert bool(torch.isfinite(df.information.bound(model, found).gamma).all())
