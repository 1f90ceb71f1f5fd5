"""Intervals hold the truth as often as they say: benchmarks/calibration.py, smaller. The truth is exact, by plain formulas."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
