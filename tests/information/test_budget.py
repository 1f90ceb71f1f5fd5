"""The nat budget: three columns computed apart, which must add up (MATH (17)–(20)), and gaps relative to a reference."""

import json
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from battery import F64, close, float64, generator
from diffusional import Continuous, Denoiser, DiffusionalError, DiffusionModel, Discrete, exact, likelihood, schedule
from diffusional.forward import GaussianDiffusion
from diffusional.information import NatBudget, budget, curve
from diffusional.models.reverse import Variance

module = sys.modules["diffusional.information.budget"]

FACTOR = float64([[0.9, 0.0], [0.5, 0.4]])
GAUSSIAN = exact.Gaussian(float64([0.7, -0.3]), FACTOR @ FACTOR.T)
OTHER = exact.Gaussian(float64([0.4, 0.0]), torch.diag(float64([1.5, 0.8])))
MIXTURE = exact.Mixture(
    float64([0.5, 0.3, 0.2]), float64([[-1.0], [0.9], [0.1]]), float64([0.09, 0.2, 0.05]).reshape(3, 1, 1)
)
LINE = exact.Gaussian(float64([0.1]), float64([[0.7]]))
SPACE = Discrete((2,), 5)
POINTS = SPACE.encode(torch.tensor([[0, 0], [1, 3], [4, 4], [4, 4], [2, 3]]), F64)
FINITE = exact.Finite(POINTS)
STEPS = schedule.log_snr_linear(-4.0, 3.0, steps=9)


def model(
    world: exact.World, decoder: likelihood.Likelihood, of: schedule.Schedule = STEPS, variance: Variance = "posterior"
) -> DiffusionModel:
    return DiffusionModel(GaussianDiffusion(of), world.denoiser("v"), decoder, variance)


def plane(scale: float = 1.0) -> likelihood.GaussianLikelihood:
    return likelihood.GaussianLikelihood(Continuous((2,), (0.0,), (scale,)))


LEVELS = likelihood.LevelPosterior(SPACE)
AXIS = likelihood.GaussianLikelihood(Continuous((1,)))


def adds_up(found: NatBudget, tolerance: float = 4.0) -> None:
    """Every row and the total within 4 standard errors, and rows that sum to the totals."""
    for row in (*found.rows, found.total):
        assert abs(row.residual.value) < tolerance * row.residual.error + 1e-9, row
    assert sum(row.cost.value for row in found.rows) == pytest.approx(found.total.cost.value, abs=1e-9)
    assert sum(row.gap.value for row in found.rows) == pytest.approx(found.total.gap.value, abs=1e-9)
    assert sum(row.base.value for row in found.rows) == pytest.approx(found.total.base.value, abs=1e-9)


# Closed forms.


@pytest.mark.parametrize("variance", ["posterior", "transition"])
@pytest.mark.parametrize("other", [GAUSSIAN, OTHER])
def test_gaussian_data_in_closed_form(variance: Variance, other: exact.Gaussian) -> None:
    found = budget(model(other, plane(2.0), variance=variance), GAUSSIAN, cells=4)
    adds_up(found)
    for row in (*found.rows, found.total):
        assert row.residual.error == 0
        assert abs(row.residual.value) < 1e-9
        assert row.gap.value >= 0
    assert [row.name for row in found.rows] == [
        "reconstruction", "KL 1–2", "KL 3–4", "KL 5–6", "KL 7–8", "prior", "jacobian",
    ]  # fmt: skip
    assert found.rows[-1].cost.value == found.rows[-1].base.value == pytest.approx(2 * math.log(2))
    assert found.total.base.value == pytest.approx(GAUSSIAN.entropy() + 2 * math.log(2), abs=1e-9)
    assert found.total.gap.value > (0.5 if other is OTHER else 0.01)


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_the_optimal_denoisers_costs_are_the_worlds(variance: Variance) -> None:
    decoder = likelihood.GaussianLikelihood(Continuous((2,)), variance=0.02)
    found = budget(model(GAUSSIAN, decoder, variance=variance), GAUSSIAN, cells=8)
    want = GAUSSIAN.costs(GaussianDiffusion(STEPS), variance, 0.02)
    costs = [row.cost.value for row in found.rows[:-1]]
    close(float64(costs), torch.cat([want.reconstruction, want.kl[0], want.prior]), rtol=1e-9)


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_closed_forms_against_draws(variance: Variance, monkeypatch: pytest.MonkeyPatch) -> None:
    exactly = budget(model(OTHER, plane(), variance=variance), GAUSSIAN, cells=3)
    monkeypatch.setattr(module, "closed_form", lambda *_: None)
    drawn = budget(model(OTHER, plane(), variance=variance), GAUSSIAN, cells=3, samples=40_000, generator=generator(0))
    adds_up(drawn)
    for a, b in zip((*exactly.rows, exactly.total), (*drawn.rows, drawn.total), strict=True):
        for name in ("cost", "base", "gap"):
            one, two = getattr(a, name), getattr(b, name)
            assert abs(one.value - two.value) < 4 * two.error + 1e-9, (a.name, name)
    assert drawn.total.residual.error < 0.0025 * drawn.total.cost.value * 4


# Worlds where gaps are drawn.

CASES = {
    "a mixture, another's denoiser": (MIXTURE, model(LINE, AXIS)),
    "a mixture, its own denoiser": (MIXTURE, model(MIXTURE, AXIS)),
    "a mixture, transition variance": (MIXTURE, model(LINE, AXIS, variance="transition")),
    "a mixture, continuous time": (MIXTURE, model(LINE, AXIS, STEPS.regrid(None))),
    "points, another's denoiser": (FINITE, model(OTHER, LEVELS)),
    "points, their own denoiser": (FINITE, model(FINITE, LEVELS)),
    "points, continuous time": (FINITE, model(OTHER, LEVELS, STEPS.regrid(None))),
}


@pytest.mark.parametrize("name", CASES)
def test_costs_are_information_and_gap(name: str) -> None:
    world, of = CASES[name]
    found = budget(of, world, cells=4, samples=30_000, generator=generator(1))
    adds_up(found)
    assert found.total.base.value == pytest.approx(world.entropy(), abs=1e-9)
    assert found.relative_to == ""
    assert found.total.residual.error < 0.015 * found.total.cost.value
    for row in found.rows:
        assert row.gap.value > -4 * row.gap.error - 1e-12
    # The control: without its prior, the bound lacks what z_T knows.
    prior = next(row for row in found.rows if row.name == "prior")
    short = found.total.residual.value - prior.cost.value
    assert short < 0
    assert prior.residual.error < 0.25 * prior.cost.value


@pytest.mark.parametrize(("name", "steps"), [("points", 3), ("a mixture", 3), ("points", None)])
def test_a_percent_would_show(name: str, steps: int | None) -> None:
    """Small worlds, many draws: an error of 1 % in any column of the total is four standard errors."""
    decoder = likelihood.LevelPosterior(Discrete((1,), 5)) if name == "points" else AXIS
    world = exact.Finite(float64([[-1.0], [0.0], [0.0], [1.0]])) if name == "points" else MIXTURE
    of = model(LINE, decoder, schedule.log_snr_linear(-1.5, 3.0, steps))
    found = budget(of, world, cells=2, samples=180_000, generator=generator(11))
    adds_up(found)
    assert 4 * found.total.residual.error < 0.012 * found.total.cost.value


def test_costs_are_the_models_own_bound() -> None:
    """The cost column against `elbo`, all levels for every item, with other noise."""
    world, of = CASES["points, another's denoiser"]
    found = budget(of, world, cells=3, samples=20_000, generator=generator(2))
    ledger = of.elbo(world.sample(20_000, generator(3)), generator(4))
    want = [
        ledger.reconstruction,
        ledger.kl[:, :3].sum(1),
        ledger.kl[:, 3:5].sum(1),
        ledger.kl[:, 5:].sum(1),
        ledger.prior,
    ]
    assert [row.name for row in found.rows] == ["reconstruction", "KL 1–3", "KL 4–5", "KL 6–8", "prior"]
    for row, draws in zip(found.rows, want, strict=True):
        error = math.hypot(row.cost.error, float(draws.std()) / 20_000**0.5)
        assert abs(row.cost.value - float(draws.mean())) < 4 * error
    total = math.hypot(found.total.cost.error, float(ledger.nelbo.std()) / 20_000**0.5)
    assert abs(found.total.cost.value - float(ledger.nelbo.mean())) < 4 * total


def test_memorisation_costs_ln_n() -> None:
    """The optimal denoiser of N points pays ln N, and what the steps are too coarse for; less with more of them."""
    gaps = []
    wide = schedule.log_snr_linear(-6.0, 7.0)
    for steps in (6, 40, None):
        of = model(FINITE, LEVELS, wide.regrid(steps))
        found = budget(of, FINITE, cells=10, samples=10_000, generator=generator(5))
        adds_up(found)
        gaps.append(found.total.cost.value - FINITE.entropy())
    assert gaps[0] > 4 * gaps[1] > 0
    assert abs(gaps[2]) < 4 * found.total.cost.error + 0.003
    assert found.total.cost.error < 0.02 * FINITE.entropy()


def test_networks_are_drawn_in_their_own_type() -> None:
    """A denoiser that is not affine in z, in float32, in training mode: it closes, and is left in training."""
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.9), nn.Linear(16, 2))

        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            assert z.dtype == torch.float32
            assert not torch.is_grad_enabled()
            return self.layers(z)

    of = DiffusionModel(GaussianDiffusion(STEPS), Denoiser(Network(), "data"), plane())
    found = budget(of, GAUSSIAN, cells=2, samples=20_000, generator=generator(6))
    adds_up(found)
    assert found.samples == 20_000
    assert of.training


def test_errors_are_the_spread_over_seeds() -> None:
    world, of = CASES["points, another's denoiser"]
    runs = [budget(of, world, cells=2, samples=40, generator=generator(seed)) for seed in range(100)]
    for column in ("cost", "gap"):
        for pick in (lambda b: b.rows[1], lambda b: b.total):
            numbers = [getattr(pick(run), column) for run in runs]
            spread = float(torch.tensor([n.value for n in numbers]).std())
            reported = math.sqrt(sum(n.error**2 for n in numbers) / len(numbers))
            assert 0.8 < reported / spread < 1.2


# Relative to a reference.


def test_gaps_relative_to_a_reference() -> None:
    of = model(OTHER, LEVELS)
    found = budget(of, POINTS, FINITE, cells=4, samples=2000, generator=generator(7))
    assert found.relative_to == "the optimal denoiser of 4 points"
    for row in (*found.rows, found.total):
        assert row.cost.value - row.base.value == pytest.approx(row.gap.value, abs=1e-9)
    # What the reference saves is what an exact budget's gaps differ by.
    mine, best = (
        budget(m, FINITE, cells=4, samples=20_000, generator=generator(8)).total.gap
        for m in (of, model(FINITE, LEVELS))
    )
    difference = found.total.gap
    assert abs(difference.value - (mine.value - best.value)) < 4 * math.hypot(
        difference.error, math.hypot(mine.error, best.error)
    )
    # Paired: close denoisers are told apart where their costs' errors would not allow it.
    near = exact.Gaussian(float64([0.4, 0.0]), torch.diag(float64([1.51, 0.81])))
    pair = budget(of, POINTS, near.denoiser(), cells=4, samples=2000, generator=generator(9)).total
    assert pair.gap.error < 0.05 * pair.cost.error
    same = budget(of, POINTS, of, cells=4, samples=10, generator=generator(9))
    assert same.relative_to == "the reference model"
    assert {row.gap.value for row in same.rows} == {0.0}
    assert budget(of, FINITE, of, cells=1, samples=10).rows[1].name == "KL 1–8"


def test_a_levels_head_relative_to_points() -> None:
    def flat(z: Tensor, log_snr: Tensor) -> Tensor:
        return z.new_zeros(len(z), 2 * 5)

    of = DiffusionModel(GaussianDiffusion(STEPS), Denoiser(flat, "levels", SPACE), likelihood.NetworkLevels(SPACE))
    found = budget(of, POINTS, FINITE, cells=2, samples=500, generator=generator(10))
    assert found.relative_to == "the optimal denoiser of 4 points, with the level posterior as its decoder"
    assert found.total.gap.value > 10 * found.total.gap.error


def test_json() -> None:
    exactly = json.loads(json.dumps(budget(model(OTHER, plane()), GAUSSIAN, cells=2).to_json(), allow_nan=False))
    assert set(exactly["rows"][0]) == {"name", "cost", "information", "gap"}
    assert (exactly["relative_to"], exactly["unit"], exactly["dimensions"]) == ("", "nats", 2)
    assert (exactly["samples"], exactly["total"]["name"]) == (0, "NELBO")
    of = model(OTHER, LEVELS)
    relative = budget(of, POINTS, FINITE, cells=2, samples=10, generator=generator(0)).to_json()
    assert set(relative["rows"][0]) == {"name", "cost", "reference", "gap"}
    assert relative["relative_to"].startswith("the optimal denoiser")
    timeless = budget(model(OTHER, LEVELS, STEPS.regrid(None)), POINTS, FINITE, cells=2, samples=10).rows
    assert [row.name for row in timeless] == ["reconstruction", "KL u 0–0.5", "KL u 0.5–1", "prior"]


def test_information_is_that_of_the_curve() -> None:
    found = budget(model(OTHER, plane()), GAUSSIAN, cells=8)
    want = curve(GAUSSIAN, STEPS, timesteps=None)
    close(float64([row.base.value for row in found.rows[1:9]]), want.increment, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: budget(model(OTHER, LEVELS), POINTS), "expected a reference"),
        (lambda: budget(model(OTHER, plane()), FINITE), "no finite gap"),
        (lambda: budget(model(OTHER, LEVELS), GAUSSIAN), "decoder of levels"),
        (lambda: budget(model(OTHER, plane()), MIXTURE), "2 dimensions of the model, got D = 1"),
        (lambda: budget(model(OTHER, LEVELS), POINTS * 0.97, FINITE), "values on the"),
        (lambda: budget(model(OTHER, LEVELS), exact.Finite(POINTS * 0.97)), "values on the"),
        (lambda: budget(model(OTHER, LEVELS), FINITE, samples=1), "at least 2 draws"),
        (lambda: budget(model(OTHER, LEVELS), FINITE, cells=0), "at least 1"),
        (lambda: budget(model(OTHER, LEVELS), POINTS, model(OTHER, LEVELS, STEPS.regrid(7))), "same grid of γ"),
        (
            lambda: budget(model(OTHER, LEVELS), POINTS, model(OTHER, LEVELS, schedule.log_snr_linear(-4.0, 4.0, 9))),
            "same grid of γ",
        ),
        (lambda: budget(model(OTHER, LEVELS), POINTS, model(OTHER, plane())), "reference over"),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        call()
