"""Intervals hold the truth as often as they say: benchmarks/calibration.py, smaller. The truth is exact, by plain formulas."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import diffusional as df
from diffusional.evaluation.averages import Averages, Pilot
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen
from diffusional.evaluation.tail_pilot import Variance

EVALUATIONS = 400


@pytest.fixture(scope="module")
def calibration() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # where what benchmarks share is
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # rows are few: more threads take longer
    yield module
    torch.set_num_threads(threads)
    sys.path.remove(str(path.parent))
    del sys.modules["calibration"]


def test_the_truth_of_the_worlds_is_what_many_draws_come_to(calibration: ModuleType) -> None:
    many = {"visits": 1000}
    for case in (
        calibration.gaussian(1000, 3, many),
        calibration.gaussian(None, 3, many),
        calibration.mixture(1000, 1, 3, many),
        calibration.mixture(None, 2, 3, many),
        calibration.finite(None, 3, many),
        calibration.rare(1.0, 3, many),
    ):
        # The rare level is visited too seldom for its error to be known: here its plan is uniform.
        chosen = case if case.condition is None else replace(case, plans=[calibration.Plan.uniform(case.model)])
        nelbo = chosen.evaluate(7).nelbo
        assert nelbo.error < 0.08 * abs(case.truth) or case.condition is not None
        assert abs(nelbo.value - case.truth) < 4 * nelbo.error


def test_linear_denoisers_by_quadrature_and_in_closed_form(calibration: ModuleType) -> None:
    world = calibration.exact.Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 1.0]]))
    x, gamma = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.linspace(-8, 8, 9, dtype=torch.float64)
    closed, nodes = calibration.linear_noise_errors(world, x, gamma), calibration.noise_errors(world, x, gamma)
    torch.testing.assert_close(closed, nodes, rtol=1e-9, atol=1e-12)


def test_the_truth_of_the_trials_is_what_many_draws_come_to(calibration: ModuleType) -> None:
    many = {"visits": 100}
    for case in (
        replace(calibration.outlying(True, 100, 1.0), options=many),
        replace(calibration.outlying(False, 100, 1.0), options=many),
        replace(calibration.spikes(20, 9, 0.3, 20, 100), options=many),
        calibration.conditional(20, many),
        calibration.few_references(5, many),
        calibration.ddpm(6, many),
        calibration.vae(4, visits=300),
    ):
        # Uniform plans, so that no plan that has missed a rare cost decides where to look.
        plans = [calibration.Plan.uniform(case.model)] if case.plans else []
        nelbo = replace(case, plans=plans).evaluate(7).nelbo
        assert abs(nelbo.value - case.truth) < 4 * nelbo.error


def test_the_rare_difference_by_quadrature_is_what_many_draws_come_to(calibration: ModuleType) -> None:
    pair, repeats = calibration.rare_difference(60, 1.0), 2000
    x = pair.data.repeat(repeats, 1)
    generator = torch.Generator().manual_seed(0)
    apart = torch.zeros(len(x), dtype=torch.float64)
    with torch.inference_mode():
        for t in range(1, 20):
            level, noise = torch.full((len(x),), t), torch.randn(x.shape, generator=generator, dtype=torch.float64)
            apart += pair.model.kl_at(x, level, noise) - pair.other.kl_at(x, level, noise)
    means = apart.view(repeats, -1).mean(1)
    error = float(means.std()) / math.sqrt(repeats)
    assert error < 0.3 * abs(pair.truth)
    assert abs(float(means.mean()) - pair.truth) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed visits", "part of the items", "stopping rule"])
def test_intervals_cover_and_errors_match_the_spread(calibration: ModuleType, kind: str) -> None:
    look = {"target_error": 1e9}
    if kind == "fixed visits":
        case = calibration.mixture(1000, 1, 30, {"visits": 6})
    elif kind == "part of the items":
        case = calibration.gaussian(1000, 400, look).aiming(0.85)
    else:
        case = calibration.gaussian(None, 20, look).aiming(0.62)
    outcomes = calibration.repeat(case, EVALUATIONS)
    row = calibration.summary(case, outcomes)
    spread = math.sqrt(0.95 * 0.05 / EVALUATIONS)
    # 94 to 96 %, and 0.9 to 1.1, each with three standard errors of what so few evaluations can tell.
    assert 0.94 - 3 * spread < row["coverage"] < 0.96 + 3 * spread
    assert 0.9 - 3 * row["error_over_sd_error"] < row["error_over_sd"] < 1.1 + 3 * row["error_over_sd_error"]
    # Fixed visits are unbiased; the stopping rule's bias is a small part of the error.
    allowed = 0.0 if kind == "fixed visits" else 0.15
    assert abs(row["bias_over_sd"]) < allowed + 4 * row["bias_over_sd_error"]
    assert (row["rounds"] > 1.5) == (kind != "fixed visits")
    # The control: errors that are a quarter too small are found out.
    wrong = calibration.summary(case, replace(outcomes, error=0.7 * outcomes.error, half=0.7 * outcomes.half))
    assert wrong["coverage"] < 0.94 - 3 * spread
    assert wrong["error_over_sd"] < 0.9 - 3 * row["error_over_sd_error"]


@pytest.mark.slow
def test_a_rare_level_that_the_pilot_has_not_seen_is_not_vouched_for(calibration: ModuleType) -> None:
    budget = {"audit": True, "target_error": 1e9, "max_evaluations": 3000}
    always = calibration.rare(1.0, 60, budget).aiming(1.5)
    row = calibration.rare_summary(always, calibration.repeat(always, 40))
    assert row["covered_or_flagged"] >= 0.9
    # The control: the condition that the pilot has flown in has no such level, and nothing speaks against it.
    usual = replace(always, condition=torch.zeros(60))
    outcomes = calibration.repeat(usual, 40)
    assert float(outcomes.flagged.mean()) < 0.1


# Autoencoders.


def kinked(calibration: ModuleType, items: int, draws: float) -> Any:
    """The heavy-tailed VAE, to a target that takes about so many draws."""
    case = calibration.vae(items)
    target = case.options["target_error"] * math.sqrt(300 * math.sqrt(items) / draws)
    return replace(case, options={"target_error": target})


def held(calibration: ModuleType, case: Any, evaluations: int) -> tuple[float, list[bool], list[bool]]:
    """How often intervals hold the truth; which evaluations are reached without a caveat, and which of these hold it."""
    results = [case.evaluate(seed) for seed in range(evaluations)]
    holds = [low <= case.truth <= high for low, high in (result.interval() for result in results)]
    vouched = [result.reached and not result.caveats for result in results]
    return sum(holds) / evaluations, vouched, [h for h, v in zip(holds, vouched, strict=True) if v]


def test_an_autoencoder_does_not_stop_early_where_it_met_no_rare_cost(calibration: ModuleType) -> None:
    share, vouched, holds = held(calibration, kinked(calibration, 4, 120), 50)
    assert share > 0.92
    assert sum(vouched) > 25
    assert sum(holds) > 0.92 * len(holds)


def test_fixed_visits_of_heavy_tails_hold_the_truth_or_have_a_caveat(calibration: ModuleType) -> None:
    share, vouched, holds = held(calibration, calibration.vae(30, visits=8), 60)
    assert share > 0.92
    # With so few draws the error often rests on few large costs; then there is a caveat.
    assert 0 < sum(vouched) < 50
    assert sum(holds) > 0.92 * len(holds)
    texts = [text for seed in range(8) for text in calibration.vae(30, visits=16).evaluate(seed).caveats]
    assert any("few large costs" in text for text in texts)


def test_healthy_autoencoders_have_no_caveat_and_spend_little_more(calibration: ModuleType) -> None:
    case = calibration.vae(30)
    healthy = df.VAE(calibration.Halving(), torch.nn.Identity(), case.model.likelihood, 1)
    results = [df.evaluate(healthy, case.data, 0.08, "nats", seed=seed) for seed in range(20)]
    assert sum(bool(result.caveats) for result in results) == 0
    assert all(result.reached for result in results)
    spread = float(torch.tensor([result.nelbo.value for result in results]).std())
    assert 0.6 * spread < sum(result.nelbo.error for result in results) / 20 < 1.5 * spread
    # The draws that this error takes, a fifth more at most, and the pilot.
    one = float(df.evaluate(healthy, case.data, visits=400).per_item["error"].square().mean()) * 400
    used = sum(result.nelbo.network_evaluations for result in results) / 20
    assert used < 1.2 * one / 0.08**2 + 512


def test_a_budget_that_the_pilot_doubts_is_not_reached_by_luck(calibration: ModuleType) -> None:
    case = kinked(calibration, 12, 500)
    case = replace(case, options=case.options | {"max_evaluations": 500})
    result = case.evaluate(1)
    # Its draws stay below the target, which the pilot expects to take more of them.
    assert result.nelbo.error <= case.options["target_error"]
    assert any("max_evaluations" in text for text in result.caveats)
    assert not result.reached
    assert result.nelbo.network_evaluations <= 500


def test_the_freedom_of_draws_is_that_of_their_squares(calibration: ModuleType) -> None:
    case = calibration.vae(30)
    sums = Averages(case.model, case.data, 5)
    sums.extend(torch.arange(30), 4)
    sums.extend(torch.arange(30), 7)
    keys, x = item_keys(as_seen(case.model.space, case.data), 5), case.data
    with torch.inference_mode():
        noise = [normal([stream(key, draw, b"terms") for key in keys], (1,)).to(x) for draw in range(7)]
        costs = torch.stack([case.model.terms(x, one).nelbo for one in noise], 1)
    squares = (costs - costs.mean(1, keepdim=True)).square()
    found = sums.one_draw()
    assert found.value == pytest.approx(float(costs.var(1).mean()), rel=1e-9)
    assert found.freedom == pytest.approx(3 * float(squares.sum() ** 2 / squares.square().sum()) * 6 / 7, rel=1e-9)
    assert found.worth == 210


def test_what_a_pilot_doubts() -> None:
    pilot = Pilot({"nelbo": Variance(100.0, 200.0, 500.0)}, 500, finite=True)
    seen = Variance(100.0, 300.0, 900.0)
    # 100 nats² by 1,000 draws: ± 0.32 nats; the pilot's own error of 10 % makes it 0.33.
    assert pilot.doubts(seen, 0.34, 900, 1000) == []
    assert len(pilot.doubts(seen, 0.32, 900, 1000)) == 1
    # Twice the variance, far beyond both errors: by draws that leave little of the budget.
    more = Variance(200.0, 300.0, 900.0)
    assert len(pilot.doubts(more, 0.5, 900, 1000)) == 1
    assert pilot.doubts(more, 0.5, 400, 1000) == []


def test_a_budget_without_room_for_a_pilot_has_a_caveat(calibration: ModuleType) -> None:
    case = calibration.vae(30)
    short = df.evaluate(case.model, case.data, 1e3, "nats", max_evaluations=70)
    assert not short.reached
    assert any("pilot" in text for text in short.caveats)
    assert short.provenance["evaluations"] == {"pilot": 0, "draws": 60}
    with pytest.raises(df.DiffusionalError, match="max_evaluations"):
        df.evaluate(case.model, case.data, 1e3, "nats", max_evaluations=59)


def test_the_pilot_leaves_scores_as_they_are_and_does_not_depend_on_the_order(calibration: ModuleType) -> None:
    case = calibration.vae(30)
    model, x = case.model, case.data
    result = df.evaluate(model, x, visits=6, seed=3)
    assert result.provenance["evaluations"] == {"pilot": 90, "draws": 180}
    assert result.nelbo.network_evaluations == 270
    # A score is the mean of the item's own draws, to the last bit.
    keys = item_keys(as_seen(model.space, x), 3)
    sums = torch.zeros(30, dtype=torch.float64)
    with torch.inference_mode():
        for draw in range(6):
            noise = normal([stream(key, draw, b"terms") for key in keys], (1,)).to(x)
            sums += model.terms(x, noise).nelbo
    assert torch.equal(result.per_item["nelbo"], sums / 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    turned = df.evaluate(model, x[order], visits=6, seed=3)
    assert turned.nelbo.error == pytest.approx(result.nelbo.error, rel=1e-12)
    assert turned.caveats == result.caveats


def test_a_cost_of_wider_noise_that_is_not_finite_is_a_caveat(calibration: ModuleType) -> None:
    class Bursting(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.where(z > 2.6, torch.inf, z)

    case = calibration.vae(30)
    model = df.VAE(calibration.Halving(), Bursting(), case.model.likelihood, 1)
    result = df.evaluate(model, case.data, visits=4, seed=3)
    assert math.isfinite(result.nelbo.error)
    assert any("not finite" in text for text in result.caveats)
    assert not result.reached
