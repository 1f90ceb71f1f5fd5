"""The likelihood of the probability flow (MATH (31)): against exact worlds, a peer's solver, and its own stated errors."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import t as student
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ODE, ode_log_likelihood
from diffusional.evaluation.ode import jackknife, solver_error
from diffusional.interop.processes import LevelTimes
from diffusional.models.flow import ProbabilityFlow, integrated
from diffusional.models.time import TrainedIndex
from diffusional.networks import MLP


def mixture(d: int, components: int = 3) -> exact.Mixture:
    """A mixture with mean zero, so that p(z_T) = N(0, I) is its law at γ_T up to SNR_T."""
    generator = torch.Generator().manual_seed(d)
    roots = torch.randn(components, d, d, generator=generator, dtype=torch.float64)
    weights = torch.arange(1.0, components + 1).double()
    means = torch.randn(components, d, generator=generator, dtype=torch.float64)
    covariances = 0.3 / d * roots @ roots.mT + 0.3 * torch.eye(d, dtype=torch.float64)
    return exact.Mixture(weights, means - weights / weights.sum() @ means, covariances)


def optimal(world: exact.World, predicts: Any = "data", ends: tuple[float, float] = (-16.0, 20.0)) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(*ends))
    decoder = likelihood.GaussianLikelihood(df.Continuous((world.dimensions,)))
    return df.DiffusionModel(process, world.denoiser(predicts), decoder)


def items(world: exact.World, n: int) -> Tensor:
    return world.sample(n, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("d", "predicts"), [(1, "noise"), (2, "v"), (3, "score"), (8, "data")])
def test_an_optimal_denoiser_gives_the_density_of_the_data(d: int, predicts: str) -> None:
    world = mixture(d)
    x = items(world, 2)
    found = ode_log_likelihood(optimal(world, predicts), x, tolerance=1.2e-5 / d)
    off = (found.per_item["nelbo"] + world.log_prob(x)).abs()
    assert found.reached
    assert float(off.max()) < 1e-5
    assert bool((off < found.per_item["solver_error"] + 3e-6).all())
    assert found.kind == "estimate"
    assert found.provenance["trace"]["exact"]


def test_the_trace_is_exact_up_to_a_number_of_dimensions() -> None:
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    world = exact.Gaussian(torch.zeros(5), 0.3 / 5 * root @ root.T + 0.5 * torch.eye(5))
    model, x = optimal(world, ends=(-14.0, 14.0)), items(world, 2)
    found = ode_log_likelihood(model, x, exact_up_to=5, tolerance=1e-4)
    assert found.per_item["nelbo"] == pytest.approx(-world.log_prob(x), abs=1e-3)
    assert bool((found.per_item["probe_error"] == 0).all())
    assert not ode_log_likelihood(model, x, exact_up_to=4, max_steps=16, probes=2).provenance["trace"]["exact"]


class _Tanh(nn.Module):
    """A small, smooth network that is nobody's optimum."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(d + 1, 4).double(), nn.Linear(4, d).double()

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([z, 0.3 * log_snr[:, None]], 1))))


def test_halving_the_step_divides_the_error_by_sixteen() -> None:
    torch.manual_seed(0)
    flow, unit = ProbabilityFlow(df.Denoiser(_Tanh(2), "v"), -6.0, 6.0), torch.eye(2).double()[:, None]
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    every = [integrated(flow, z, steps, unit) for steps in (16, 32, 64, 256)]
    for of in (lambda found: found[0], lambda found: found[1].sum(0)):
        errors = [float((of(found) - of(every[-1])).abs().max()) for found in every[:-1]]
        assert 10 < errors[0] / errors[1] < 25
        assert 12 < errors[1] / errors[2] < 20


@pytest.mark.parametrize(("d", "n"), [(1, 64), (2, 24)])
def test_densities_integrate_to_one(d: int, n: int) -> None:
    network = _Tanh(d)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0))
    space = df.Continuous((d,), (2.0,), (3.0,))
    model = df.DiffusionModel(process, df.Denoiser(network, "v"), likelihood.GaussianLikelihood(space))
    axis = torch.linspace(-6, 6, n, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    found = ode_log_likelihood(model, grid, tolerance=1e-3)
    # In original units: a cell of the grid is 3 times as wide.
    mass = float((-found.per_item["nelbo"]).exp().sum()) * (3 * float(axis[1] - axis[0])) ** d
    assert mass == pytest.approx(1, abs=1e-3)
    assert found.terms["jacobian"].value == pytest.approx(d * math.log(3))


def by_scipy(model: df.DiffusionModel, x: Tensor) -> list[float]:
    """−ln p(x) by scipy, item by item, with the trace from differences."""
    flow, d = model.flow(), model.space.dimensions

    def slope(gamma: float, state: np.ndarray) -> np.ndarray:
        z = torch.tensor(state[:-1])
        rows = torch.cat([z[None], z + 1e-5 * torch.eye(d).double(), z - 1e-5 * torch.eye(d).double()])
        with torch.no_grad():
            f = flow.velocity(rows, torch.tensor(gamma)).numpy()
        up, down = f[1 : d + 1], f[d + 1 :]
        return np.append(f[0], np.trace(up - down) / 2e-5)

    out = []
    log_alpha = -0.5 * math.log1p(math.exp(flow.first))
    for one in x.double():
        start = np.append((math.exp(log_alpha) * one).numpy(), 0.0)
        end = solve_ivp(slope, (flow.first, flow.last), start, rtol=1e-9, atol=1e-10).y[:, -1]
        last = -0.5 * float((end[:-1] ** 2).sum()) - 0.5 * d * math.log(2 * math.pi)
        out.append(-(last + end[-1] + d * log_alpha))
    return out


def small(d: int, dtype: torch.dtype = torch.float64, ends: tuple[float, float] = (-6.0, 6.0)) -> df.DiffusionModel:
    torch.manual_seed(5)
    network = MLP((d,), hidden=8).to(dtype)
    process = df.GaussianDiffusion(schedule.learned(*ends, features=8))
    return df.DiffusionModel(process, df.Denoiser(network), likelihood.GaussianLikelihood(df.Continuous((d,))))


def test_the_peer_finds_the_same() -> None:
    model = small(2)
    model = df.DiffusionModel(model.process, df.Denoiser(_Tanh(2)), model.likelihood)
    x = torch.randn(3, 2, dtype=torch.float64)
    found = ode_log_likelihood(model, x, tolerance=1e-7)
    assert found.per_item["nelbo"].tolist() == pytest.approx(by_scipy(model, x), abs=1e-5)


class _Stored(nn.Module):
    """The network of tests/fixtures/torchode.json, v(z, γ)."""

    def __init__(self, inner: list[Any], outer: list[Any]) -> None:
        super().__init__()
        (self.w_1, self.b_1), (self.w_2, self.b_2) = (
            [torch.tensor(one).double() for one in of] for of in (inner, outer)
        )

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(torch.cat([z, 0.3 * log_snr[:, None]], 1) @ self.w_1.T + self.b_1) @ self.w_2.T + self.b_2


def test_torchode_finds_the_same() -> None:
    peer = json.loads((Path(__file__).parents[1] / "fixtures" / "torchode.json").read_text(encoding="utf-8"))
    x = torch.tensor(peer["x"], dtype=torch.float64)
    model = df.DiffusionModel(
        df.GaussianDiffusion(schedule.log_snr_linear(*peer["ends"])),
        df.Denoiser(_Stored(peer["inner"], peer["outer"]), "v"),
        likelihood.GaussianLikelihood(df.Continuous(x.shape[1:])),
    )
    found = ode_log_likelihood(model, x, tolerance=1e-7)
    assert found.per_item["nelbo"].tolist() == pytest.approx(peer["nelbo"], abs=1e-5)


# Independence of the batch.


def levels_model(d: int = 20) -> df.DiffusionModel:
    torch.manual_seed(2)
    space = df.Discrete((1, 4, d // 4), 5)
    network = MLP(space.shape, 2, hidden=16)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 5.0, steps=30))
    return df.DiffusionModel(
        process, df.Denoiser(network, "levels", space, "logistic"), likelihood.NetworkLevels(space)
    )


def levels(n: int, d: int = 20) -> Tensor:
    raw = torch.randint(5, (n, 1, 4, d // 4), generator=torch.Generator().manual_seed(1))
    return df.Discrete((1, 4, d // 4), 5).encode(raw)


class _Rowwise(nn.Module):
    """A network whose last bits depend on the place in the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        place = torch.arange(len(z), dtype=z.dtype)[:, None]
        return self.inner(z, log_snr) * (1 + 1e-6 * place)


def placed() -> df.DiffusionModel:
    model = small(3)
    return df.DiffusionModel(model.process, df.Denoiser(_Rowwise(model.denoiser.module)), model.likelihood)


CASES: dict[str, tuple[Callable[[], df.DiffusionModel], Tensor, dict[str, Any]]] = {
    "real values": (
        lambda: small(3, torch.float32),
        torch.randn(70, 3, generator=torch.Generator().manual_seed(0)),
        {},
    ),
    "probes": (lambda: small(20), torch.randn(4, 20, generator=torch.Generator().manual_seed(0)), {"probes": 2}),
    "levels, draws and probes": (levels_model, levels(5), {"draws": 2, "probes": 2, "max_steps": 16}),
    "a place that matters": (placed, torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), {"max_steps": 16}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_score_is_the_same_alone_and_in_any_batch(name: str) -> None:
    make, x, options = CASES[name]
    model = make()
    options = {"tolerance": 0.1} | options
    together = ode_log_likelihood(model, x, **options)
    assert together.provenance["rows"] == (1 if name == "a place that matters" else 64)
    columns = ("nelbo", "solver_error", "probe_error", "draw_error")
    backwards = ode_log_likelihood(model, x.flip(0), **options)
    last = ode_log_likelihood(model, x[-1:], **options)
    for column in columns:
        assert torch.equal(together.per_item[column], backwards.per_item[column].flip(0))
        assert torch.equal(together.per_item[column][-1:], last.per_item[column])


def test_every_item_has_steps_of_its_own() -> None:
    """An item far out needs more steps, and does not change those of the others."""
    model = small(2)
    x = torch.tensor([[0.1, -0.2], [30.0, 30.0]]).double()
    near = ode_log_likelihood(model, x[:1], tolerance=1e-3).provenance["steps"]
    both = ode_log_likelihood(model, x, tolerance=1e-3).provenance["steps"]
    assert both[0] == near[0] == near[1] < both[1]


# The trace by probes.


def test_probes_are_within_their_own_error() -> None:
    root = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    world = exact.Gaussian(torch.zeros(64), 1.5 / 64 * root @ root.T + 0.1 * torch.eye(64))
    model, x = optimal(world, ends=(-12.0, 12.0)), items(world, 64)
    found = ode_log_likelihood(model, x, tolerance=5e-4, probes=6)
    z = (found.per_item["nelbo"] + world.log_prob(x)) / found.per_item["probe_error"]
    assert not found.provenance["trace"]["exact"]
    # 64 items: 95 % ± 4 standard errors.
    inside = float((z.abs() < float(student.ppf(0.975, 5))).double().mean())
    assert inside > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 64)
    # The errors are neither too large: the mean of a squared t with 5 degrees of freedom is 5/3.
    assert 0.6 < float(z.square().mean()) < 4
    low, high = found.interval()
    assert low < -float(world.log_prob(x).mean()) < high
    assert found.nelbo.error == pytest.approx(
        math.hypot(
            float(found.per_item["probe_error"].square().sum().sqrt()) / 64,
            found.provenance["errors"]["solver"]["nats"],
        )
    )


def test_more_probes_have_a_smaller_error() -> None:
    model, x = small(20), torch.randn(6, 20).double()
    few, many = (ode_log_likelihood(model, x, probes=p, max_steps=16).nelbo for p in (4, 24))
    truth = ode_log_likelihood(model, x, exact_up_to=20, max_steps=16).nelbo
    assert many.error < 0.5 * few.error
    assert abs(many.value - truth.value) < 5 * many.error


def test_a_jackknife_counts_noise_that_differs_between_draws() -> None:
    noise = torch.randn(400, 4, dtype=torch.float64)
    shared, own = noise[:, :1].expand(-1, 4), 3 * noise
    value, error = jackknife(shared)
    assert value == pytest.approx(float(shared.mean()), abs=1e-12)
    assert error == pytest.approx(float(shared[:, 0].std()) / 20, rel=1e-6)
    assert jackknife(own)[1] == pytest.approx(3 / math.sqrt(4 * 400), rel=0.3)
    assert jackknife(own[:1])[1] == 0


def test_an_error_is_granted_only_to_a_method_in_order() -> None:
    change, before = torch.tensor([1.0, 1.0, 1e-9]), torch.tensor([16.0, 4.0, 16.0])
    assert solver_error(change, before).tolist() == pytest.approx([1 / 15, 1, 1 / 15])
    assert float(solver_error(torch.ones(1), torch.full((1,), math.inf))) == 1


# Discrete data.


def finite() -> tuple[exact.Finite, df.DiffusionModel]:
    space = df.Discrete((2,), 3)
    points = space.values[torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [2, 2]])]
    world = exact.Finite(points)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 14.0))
    return world, df.DiffusionModel(process, world.denoiser(), likelihood.LevelPosterior(space))


def test_discrete_data_have_a_bound_that_draws_tighten() -> None:
    world, model = finite()
    x = world.points
    few, many = (ode_log_likelihood(model, x, draws=k, tolerance=1e-2).per_item for k in (2, 32))
    truth = -world.log_prob(x)
    for found in (few, many):
        error = found["draw_error"] + found["solver_error"]
        assert bool((found["nelbo"] > truth - 4 * error - 1e-3).all())
    assert float((many["nelbo"] - truth).abs().max()) < 0.05
    assert float(many["draw_error"].mean()) < float(few["draw_error"].mean())


def test_draws_for_real_values_bound_the_density_of_the_flow() -> None:
    world = mixture(2)
    model, x = optimal(world, ends=(-4.0, 16.0)), items(world, 3)
    found = ode_log_likelihood(model, x, draws=64, tolerance=2e-3)
    truth = -world.log_prob(x)
    assert bool((found.per_item["nelbo"] > truth - 4 * found.per_item["error"]).all())
    assert found.per_item["nelbo"] == pytest.approx(truth, abs=0.2)


# Units, conditions, guidance, time.


def test_the_density_is_in_original_units() -> None:
    network = small(2).denoiser.module
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0))
    spaces = df.Continuous((2,)), df.Continuous((2,), (5.0,), (10.0,))
    models = [df.DiffusionModel(process, df.Denoiser(network), likelihood.GaussianLikelihood(one)) for one in spaces]
    x = torch.randn(3, 2).double()
    plain, scaled = (ode_log_likelihood(model, x, tolerance=1e-2) for model in models)
    assert scaled.per_item["nelbo"] == pytest.approx(plain.per_item["nelbo"] + 2 * math.log(10))
    assert scaled.terms["jacobian"].value == pytest.approx(2 * math.log(10))


def labelled() -> tuple[exact.Labelled, df.DiffusionModel]:
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    world = exact.Labelled(torch.tensor([0.5, 0.5]), means, 0.3 * torch.eye(2).expand(2, 2, 2))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-12.0, 18.0))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)))
    return world, df.DiffusionModel(process, world.conditional_denoiser(), decoder)


def test_every_item_has_its_condition() -> None:
    world, model = labelled()
    x, c = world.sample_labelled(5, torch.Generator().manual_seed(0))
    found = ode_log_likelihood(model, x, condition=c, tolerance=1e-4)
    assert found.per_item["nelbo"] == pytest.approx(-world.log_prob_given(x, c), abs=1e-3)
    assert "condition_sha256" in found.provenance


def test_guidance_gives_another_density() -> None:
    world, model = labelled()
    x, c = world.sample_labelled(4, torch.Generator().manual_seed(0))
    none, plain, strong = (
        ode_log_likelihood(model.guided(w), x, condition=c, tolerance=2e-3).per_item["nelbo"] for w in (0.0, 1.0, 3.0)
    )
    assert none == pytest.approx(-world.log_prob(x), abs=5e-3)
    assert plain == pytest.approx(-world.log_prob_given(x, c), abs=5e-3)
    assert float((strong - plain).abs().max()) > 0.1


def indexed(time: Callable[[Any], Any]) -> df.DiffusionModel:
    levels = schedule.linear(steps=100)
    network = nn.Linear(3, 2).double()

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return self.network(torch.cat([z, 0.01 * t[:, None].to(z)], 1))

    torch.manual_seed(0)
    process = df.GaussianDiffusion(levels)
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)))
    return df.DiffusionModel(process, df.Denoiser(Read(), time=time(levels)), decoder)


@pytest.mark.parametrize(
    "time", [TrainedIndex, lambda levels: LevelTimes(levels, [float(i) for i in range(100)])], ids=["index", "times"]
)
def test_numbers_of_levels_are_refused_or_interpolated(time: Callable[[Any], Any]) -> None:
    model, x = indexed(time), torch.randn(3, 2).double()
    with pytest.raises(DiffusionalError, match="interpolate=True"):
        ode_log_likelihood(model, x)
    found = ode_log_likelihood(model, x, interpolate=True, tolerance=1e-2)
    assert found.provenance["time"].startswith("interpolated")
    # The index is linear in u = index/99, which the network could have read as a function of γ.
    index = TrainedIndex(model.process.schedule)
    other = df.DiffusionModel(model.process, df.Denoiser(model.denoiser.module, time=index.position), model.likelihood)
    assert found.per_item["nelbo"] == pytest.approx(
        ode_log_likelihood(other, x, tolerance=1e-2).per_item["nelbo"], abs=1e-4
    )
    # Afterwards, the model refuses levels in between as before.
    with pytest.raises(DiffusionalError, match="levels that the network was trained at"):
        model.denoiser(x, torch.tensor(0.0123), None)


def test_a_network_that_needs_integers_is_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(100, 2)

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return z + self.rows(t)

    levels = schedule.linear(steps=100)
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)))
    model = df.DiffusionModel(df.GaussianDiffusion(levels), df.Denoiser(Table(), time=TrainedIndex(levels)), decoder)
    with pytest.raises(DiffusionalError, match="times between"):
        ode_log_likelihood(model, torch.zeros(2, 2), interpolate=True)


def test_the_number_of_latents_does_not_matter() -> None:
    model, x = small(2), torch.randn(2, 2).double()
    few = df.evaluate(model.regrid(7), x, estimator=ODE(tolerance=1e-2))
    assert torch.equal(few.per_item["nelbo"], df.evaluate(model, x, estimator=ODE(tolerance=1e-2)).per_item["nelbo"])
    assert few.provenance["latents"] == 7


# The record, and what is refused.


def test_a_record_says_what_it_is_and_is_kept(tmp_path: Any) -> None:
    found = ode_log_likelihood(levels_model(), levels(3), draws=2, probes=2, max_steps=16)
    assert found.kind == "estimate"
    assert "another model" in found.of
    assert "estimate" in str(found)
    errors = found.provenance["errors"]
    assert list(errors) == ["solver", "probes", "draws"]
    assert all(one["nats"] > 0 for one in errors.values())
    assert found.nelbo.error == pytest.approx(math.sqrt(sum(one["nats"] ** 2 for one in errors.values())))
    assert found.nelbo.network_evaluations == found.provenance["evaluations"]["network"]
    found.save(tmp_path / "ode.json")
    again = df.Evaluation.load(tmp_path / "ode.json")
    assert torch.equal(again.per_item["probe_error"], found.per_item["probe_error"])
    assert again.provenance["errors"] == dict(errors)


def test_a_tolerance_that_is_not_reached_is_reported() -> None:
    found = ode_log_likelihood(small(2), torch.randn(2, 2).double(), tolerance=1e-12, max_steps=16)
    assert not found.reached
    assert "max_steps" in found.caveats[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.provenance["steps"] == [16, 16]


def vae() -> df.VAE:
    return df.VAE(nn.Linear(2, 2), nn.Linear(1, 2), likelihood.GaussianLikelihood(df.Continuous((2,)), 0.5), latents=1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: ode_log_likelihood(vae(), x), "VAE"),
        (lambda x: ode_log_likelihood(small(2), x, draws=1), "draws"),
        (lambda x: ode_log_likelihood(small(2), x, probes=1), "probes"),
        (lambda x: ode_log_likelihood(small(2), x, tolerance=0.0), "tolerance"),
        (lambda x: ode_log_likelihood(small(2), x, max_steps=8), "max_steps"),
        (lambda x: ode_log_likelihood(small(2), x, exact_up_to=-1), "exact_up_to"),
        (lambda x: ode_log_likelihood(small(2), x, seed=-1), "seed"),
        (lambda x: ode_log_likelihood(small(2), x * torch.nan), "finite"),
        (lambda x: ode_log_likelihood(small(2), x, condition=torch.zeros(7)), "7"),
    ],
)
def test_what_is_refused(call: Callable[[Tensor], Any], named: str) -> None:
    with pytest.raises(DiffusionalError, match=named):
        call(torch.randn(2, 2).double())


def test_a_value_that_is_not_finite_names_its_item() -> None:
    model = small(2)
    network = df.Denoiser(lambda z, s: z + torch.where(z[:, :1] > 5, torch.nan, 0.0), "v")
    broken = df.DiffusionModel(model.process, network, model.likelihood)
    with pytest.raises(DiffusionalError, match="item 1"):
        ode_log_likelihood(broken, torch.tensor([[0.0, 0.0], [9.0, 0.0]]).double(), max_steps=16)
