"""The difference of two models: common noise, a paired error that is the spread of repeated differences, and refusals."""

import math

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Plan, compare, evaluate
from diffusional.evaluation.draws import Draws

SPACE = df.Continuous((3,))
WORLD = exact.Gaussian(torch.zeros(3), torch.diag(torch.tensor([0.2, 1.0, 2.0])))


def model(shift: float = 0.0, low: float = -9.0) -> df.DiffusionModel:
    """The world's denoiser, of a world whose mean is off by `shift`."""
    world = exact.Gaussian(torch.full((3,), shift), torch.diag(torch.tensor([0.2, 1.0, 2.0])))
    process = df.GaussianDiffusion(schedule.log_snr_linear(low, 9.0, steps=200))
    return df.DiffusionModel(process, world.denoiser("noise"), likelihood.GaussianLikelihood(SPACE))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return WORLD.sample(60, torch.Generator().manual_seed(0)).float()


def test_the_difference_is_that_of_long_sweeps_with_its_sign(x: Tensor) -> None:
    a, b = model(), model(0.4)
    both = compare(a, b, x, 0.01, "nats")
    swept = [evaluate(m, x, draws=8).nelbo for m in (a, b)]
    truth, error = swept[0].value - swept[1].value, math.hypot(swept[0].error, swept[1].error)
    assert both.reached
    assert both.difference.error <= 0.01
    assert abs(both.difference.value - truth) < 4 * math.hypot(error, both.difference.error)
    assert both.difference.value < -10 * both.difference.error  # A is right about the data: fewer nats
    back = compare(b, a, x, 0.01, "nats").difference
    assert abs(back.value + both.difference.value) < 4 * math.hypot(back.error, both.difference.error)


def test_common_noise_makes_the_error_small_and_true(x: Tensor) -> None:
    a, b = model(), model(0.05)
    plans = (plan := Plan.fit(a, x), Plan.fit(b, x, like=plan))
    # A target that the first look reaches: the same number of draws for every seed.
    runs = [compare(a, b, x, 1e3, "nats", seed=s, plans=plans, audit=False) for s in range(120)]
    values = torch.tensor([r.difference.value for r in runs])
    reported = torch.tensor([r.difference.error for r in runs]).mean()
    assert 0.8 < float(reported / values.std()) < 1.2
    alone = math.hypot(runs[0].a.nelbo.error, runs[0].b.nelbo.error)
    assert float(reported) < 0.3 * alone


def test_both_evaluations_are_those_of_the_models_alone(x: Tensor) -> None:
    a, b = model(), model(0.4)
    both = compare(a, b, x, 0.02, "nats")
    assert both.difference.value == pytest.approx(both.a.nelbo.value - both.b.nelbo.value, abs=1e-9)
    record = both.to_json()
    assert record["difference_nats"]["value"] == both.difference.value
    assert record["network_evaluations"] == both.a.nelbo.network_evaluations + both.b.nelbo.network_evaluations
    assert record["difference"]["value"] == pytest.approx(both.difference.value / (3 * math.log(2)))


def test_the_two_see_the_same_noise(x: Tensor) -> None:
    # Under one plan the same model twice is the same number twice, whatever the draws.
    a, plan = model(), Plan.uniform(model())
    draws = [Draws(a, plan, x, seed=3) for _ in range(2)]
    for one in draws:
        one.extend(torch.arange(60), torch.full((60,), 3))
    ours, theirs = (one.parts(torch.arange(60))[0].kl for one in draws)
    assert torch.equal(ours, theirs)
    other = Draws(a, plan, x, seed=4)
    other.extend(torch.arange(60), torch.full((60,), 3))
    assert not torch.equal(ours, other.parts(torch.arange(60))[0].kl)


def test_what_does_not_compare_is_refused(x: Tensor) -> None:
    standardised = df.DiffusionModel(
        model().process,
        WORLD.denoiser("noise"),
        likelihood.GaussianLikelihood(df.Continuous((3,), scale=(2.0, 2.0, 2.0))),
    )
    with pytest.raises(DiffusionalError, match="different spaces do not compare"):
        compare(model(), standardised, x)
    with pytest.raises(DiffusionalError, match="give a positive number"):
        compare(model(), model(), x, -1.0)
    with pytest.raises(DiffusionalError, match="items of shape"):
        compare(model(), model(), x[:, :2])


def test_a_budget_that_is_too_small_is_said(x: Tensor) -> None:
    short = compare(model(), model(0.4), x, 1e-4, "nats", max_evaluations=12_000)
    assert not short.reached
    assert short.difference.network_evaluations <= 12_000
    assert short.difference.error > 1e-4
