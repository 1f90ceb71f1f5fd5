"""The pilot of models without levels: the variance of a draw, also where plain draws do not meet what it is made of."""

import math

import pytest
import torch
from torch import Tensor

from diffusional.evaluation import tail_pilot
from diffusional.evaluation.tail_pilot import Variance


def keys(count: int, seed: int = 0) -> list[bytes]:
    return [f"{seed}:{i}".encode() for i in range(count)]


def tail(noise: Tensor) -> Tensor:
    """A cost that rises beyond three standard deviations of the first number of the noise."""
    return noise[..., 0] + 60 * (noise[..., 0] - 3).clamp(min=0).square()


def exact_variance() -> float:
    e = 0.001 * torch.arange(-12_000, 12_001, dtype=torch.float64)
    density = torch.exp(-0.5 * e.square())
    density, cost = density / density.sum(), tail(e[:, None])
    mean = (density * cost).sum()
    return float((density * (cost - mean).square()).sum())


@pytest.mark.parametrize("dimensions", [1, 9])
@pytest.mark.parametrize(("items", "each"), [(1, 400), (200, 2)])
def test_the_variance_is_unbiased_and_that_of_the_plain_noise(dimensions: int, items: int, each: int) -> None:
    found = []
    for seed in range(150):
        noise, weights = tail_pilot.noise(keys(items, seed), each, (dimensions,))
        found.append(tail_pilot.variance(tail(noise.double()), weights))
    values = torch.tensor([one.value for one in found])
    error = float(values.std()) / math.sqrt(len(values))
    assert error < 0.15 * exact_variance()
    assert abs(float(values.mean()) - exact_variance()) < 4 * error
    # An event in 740 plain draws: the wider noise is worth many more draws than it takes.
    assert float(torch.tensor([one.worth for one in found]).median()) > (3 if dimensions == 1 else 1.5) * items * each


def test_weights_are_the_ratio_of_the_densities() -> None:
    noise, weights = tail_pilot.noise(keys(3000), 2, (2, 2))
    s2 = tail_pilot.wider(4) ** 2
    squares = noise.double().flatten(2).square().sum(2)
    plain = torch.exp(-0.5 * squares)
    wide = torch.exp(-0.5 * squares / s2) / s2**2
    torch.testing.assert_close(weights, plain / (0.5 * plain + 0.5 * wide), rtol=1e-6, atol=0)
    # The noise's own second moment is the mixture's, and with weights that of N(0, I).
    second = noise.double().square().mean((2, 3))
    assert abs(float(second.mean()) - 0.5 * (1 + s2)) < 0.03
    assert abs(float((weights * second).mean()) - 1) < 0.03
    assert abs(float(weights.mean()) - 1) < 0.01


def test_equal_costs_have_no_variance_whatever_rounding_leaves() -> None:
    costs = 1e3 + 1e-13 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert tail_pilot.variance(costs, torch.ones(4, 8)).value == 0


def test_plain_draws_are_worth_their_number_and_share_their_freedom() -> None:
    costs = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tail_pilot.variance(costs, torch.ones(50, 40, dtype=torch.float64))
    assert found.value == pytest.approx(float(costs.var(1).mean()))
    assert found.worth == pytest.approx(2000, rel=0.1)
    assert found.freedom == pytest.approx(2000, rel=0.15)
    pairs = tail_pilot.variance(costs.reshape(1000, 2), torch.ones(1000, 2, dtype=torch.float64))
    assert 700 < pairs.worth < 1100
    # Three large costs carry the variance: about nine degrees of freedom.
    costs[:3, 0] += 1e4
    assert tail_pilot.variance(costs, torch.ones(50, 40, dtype=torch.float64)).freedom == pytest.approx(9, rel=0.1)


def test_two_estimates_are_pooled_by_their_worth() -> None:
    both = Variance(4.0, 30.0, 300.0).pooled(Variance(1.0, 60.0, 100.0))
    assert both.value == pytest.approx(0.75 * 4 + 0.25)
    assert both.freedom == pytest.approx(both.value**2 / (3.0**2 / 30 + 0.25**2 / 60))
    # A pilot that found nothing has no say.
    assert Variance(0.0, math.inf, 0.0).pooled(Variance(2.0, 7.0, 8.0)).value == 2.0


def test_the_items_of_a_pilot_do_not_depend_on_their_order() -> None:
    names = keys(1000)
    some, each = tail_pilot.chosen(names, 512)
    turned, _ = tail_pilot.chosen(names[::-1], 512)
    assert each == 2
    assert len(some) == 256
    assert {names[i] for i in some.tolist()} == {names[::-1][i] for i in turned.tolist()}
    assert tail_pilot.chosen(keys(1), 512)[1] == 512
