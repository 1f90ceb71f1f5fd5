"""Strata of items: extreme items are visited with certainty, and the estimate from the others is unbiased with a true error."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusional.evaluation.strata import FIRST_OF_BAND, Strata, grown, robust_distance


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def population(items: int, extreme: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bases, residuals and Monte Carlo variances (N,): those of the first `extreme` items are far larger than the others'."""
    base = torch.randn(items, generator=generator(0), dtype=torch.float64)
    residual = 0.3 * base + 0.5 * torch.randn(items, generator=generator(1), dtype=torch.float64)
    variance = torch.rand(items, generator=generator(2), dtype=torch.float64)
    base[:extreme] += 10 * torch.arange(1, extreme + 1)
    residual[:extreme] += 40.0
    variance[:extreme] *= 100
    return base, residual, variance


def test_extreme_items_are_set_apart_by_any_column() -> None:
    base, _, _ = population(200, 0)
    other = base.flip(0).clone()
    other[17], other[40] = -300.0, 40.0
    strata = Strata.by_extremeness({"base": base, "prior": other}, torch.randperm(200, generator=generator(3)))
    assert set((strata.of > 0).nonzero().squeeze(1).tolist()) == {17, 40}
    assert strata.of[17] > strata.of[40]
    assert strata.order[:2].tolist() == [17, 40]
    assert strata.order.sort().values.tolist() == list(range(200))


def test_an_outlier_among_nearly_equal_large_values_is_extreme() -> None:
    """A spread that may be rounding is a unit all the same: what lies 300 of them away is no rounding."""
    values = 1e5 + 1e-3 * torch.randn(500, generator=generator(0), dtype=torch.float64)
    values[7] += 300.0
    distance = robust_distance(values)
    assert distance[7] == pytest.approx(300, rel=1e-4)
    assert float(distance[:7].max()) < 0.01


def test_rounding_is_not_a_distance() -> None:
    assert float(robust_distance(5 + 1e-7 * torch.randn(50, generator=generator(0))).max()) < 0.1
    assert robust_distance(torch.full((50,), 5.0)).tolist() == [0.0] * 50
    # Most items alike: the mean deviation takes the place of the median one.
    values = torch.zeros(100)
    values[3] = 1.0
    assert robust_distance(values)[3] == pytest.approx(100 / 1.2533)


def test_the_first_look_takes_all_of_a_small_band_and_a_part_of_a_large_one() -> None:
    of = torch.tensor([0] * 500 + [1] * (FIRST_OF_BAND + 30) + [4] * 3)
    strata = Strata(of, torch.argsort(-of, stable=True))
    picked = strata.first(256)
    assert picked[[0, 1, 4]].tolist() == [256, FIRST_OF_BAND, 3]
    items = strata.pick(picked)
    assert torch.bincount(of[items]).tolist() == [256, FIRST_OF_BAND, 0, 0, 3]
    # The few most extreme ones are drawn more often: twice as often in every further band, or for an eighth of the ordinary ones' draws.
    each = strata.draws(picked, 2)
    assert each[[0, 1, 4]].tolist() == [2, 2, 2 * 256 // (4 * 2 * 3)]
    assert strata.draws(strata.first(2560), 2)[4] == 32


def test_grown() -> None:
    assert grown(torch.tensor([10, 1, 0]), torch.tensor([2.55, 2.55, 2.55])).tolist() == [26, 3, 1]
    assert grown(torch.tensor([10, 10, 10]), torch.tensor([1.0, 1.001, 0.2])).tolist() == [10, 11, 10]


def test_a_variance_that_only_the_plan_expects_is_allocated_to_the_items_that_carry_it() -> None:
    """Ordinary items whose draws show no spread get more of them where the plan's expectation is what keeps the error up."""
    of = torch.tensor([0] * 300 + [3] * 2)
    strata = Strata(of, torch.argsort(-of, stable=True))
    everything, none, count = torch.arange(302), torch.zeros(302, dtype=torch.float64), torch.full((302,), 2)
    variance = none.clone()
    variance[300:] = 4.0
    assert strata.growth(everything, variance, none, count, 4.0)[0] == 0
    factor = strata.growth(everything, variance, none, count, 4.0, least=800.0)
    # Written out: V_h and n_h, the plan's part shared out by Σ w²/J, here by the number of items.
    v, n = np.array([800 * 300 / 302, 8 + 800 * 2 / 302]), np.array([600.0, 4.0])
    best = 4 * np.sqrt(v / n) * np.sqrt(v * n).sum() / v.sum()
    assert factor[0] == pytest.approx(best[0])
    assert factor[3] == pytest.approx(max(best[1], 4.0))


def test_growth_is_neymans_allocation() -> None:
    """Of all factors that lower the variance by the ratio, these cost the fewest evaluations; written out for two strata."""
    of = torch.tensor([0] * 30 + [2] * 3)
    strata = Strata(of, torch.argsort(-of, stable=True))
    everything = torch.arange(33)
    variance = torch.tensor([1.0] * 30 + [200.0] * 3, dtype=torch.float64)
    count = torch.tensor([2] * 30 + [8] * 3)
    factor = strata.growth(everything, variance, torch.zeros(33, dtype=torch.float64), count, 4.0)
    v, n = np.array([30.0, 600.0]), np.array([60.0, 24.0])
    best = 4 * np.sqrt(v / n) * np.sqrt(v * n).sum() / v.sum()
    assert factor[0] == pytest.approx(best[0])
    assert factor[2] == pytest.approx(max(best[1], 4.0))
    assert (v / best).sum() == pytest.approx(v.sum() / 4)
    # A band with 512 draws has met its large costs, and is allotted what it deserves: here less than the ratio.
    seen = strata.growth(everything, variance.minimum(torch.tensor(1.0)), 0 * variance, 256 * count, 4.0)
    v, n = np.array([30.0, 3.0]), 256 * n
    assert seen[2] == pytest.approx((4 * np.sqrt(v / n) * np.sqrt(v * n).sum() / v.sum())[1])
    assert seen[2] < 4
    # One stratum, or draws without spread: all grow alike.
    one = Strata(torch.zeros(33, dtype=torch.long), everything)
    assert one.growth(everything, variance, variance, count, 4.0).tolist() == [4.0] * 13
    assert strata.growth(everything, 0 * variance, 0 * variance, count, 4.0).tolist() == [4.0] * 13


@pytest.mark.parametrize("extreme", [0, 5])
def test_the_estimate_is_unbiased_and_its_error_true(extreme: int) -> None:
    """Over 3,000 random orders and noises; Cochran (1977), §5.3 and §10.3."""
    base, residual, variance = population(60, extreme)
    truth, repeats = float((base + residual).mean()), 3000
    values, squares, item_errors = [], [], []
    for seed in range(repeats):
        g = generator(seed)
        strata = Strata.by_extremeness({"base": base}, torch.randperm(60, generator=g))
        items = strata.pick(strata.first(15)).sort().values
        mean = residual[items] + variance[items].sqrt() * torch.randn(len(items), generator=g, dtype=torch.float64)
        value, error = strata.mean_and_error(items, mean, variance[items])
        values.append(float(base.mean()) + value)
        squares.append(error**2)
        item_errors.append(strata.item_error(items, base, mean, variance[items]) ** 2)
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - truth) < 4 * spread / math.sqrt(repeats)
    assert math.sqrt(np.mean(squares)) == pytest.approx(spread, rel=0.05)
    # With certainty: the five extreme items alone would have made the spread many times as large.
    assert spread < 0.7
    assert np.mean(item_errors) == pytest.approx(float((base + residual).var()) / 60, rel=0.08)


def test_items_visited_as_a_whole_stand_for_themselves() -> None:
    base, residual, variance = population(40, 4)
    strata = Strata.by_extremeness({"base": base}, torch.arange(40))
    items = strata.pick(strata.sizes).sort().values
    value, error = strata.mean_and_error(items, residual, variance)
    assert value == pytest.approx(float(residual.mean()))
    assert error == pytest.approx(math.sqrt(float(variance.sum())) / 40)
    assert strata.weights(items).tolist() == [1.0] * 40
    part = strata.pick(strata.first(10)).sort().values
    assert float(strata.weights(part).sum()) == pytest.approx(40)


def test_enough_needs_two_of_every_stratum_or_all_of_it() -> None:
    strata = Strata(torch.tensor([0, 0, 0, 2]), torch.tensor([3, 0, 1, 2]))
    assert strata.enough(torch.tensor([0, 1, 3]))
    assert not strata.enough(torch.tensor([0, 3]))
    assert not strata.enough(torch.tensor([0, 1, 2]))


def test_few_draws_of_an_extreme_stratum_are_not_believed() -> None:
    """128 draws of every band, 512 of one that carries a tenth of the variance; ordinary items are the pilot's business."""
    of = torch.tensor([0] * 30 + [2] * 4 + [5] * 2)
    strata = Strata(of, torch.argsort(-of, stable=True))
    everything, none = torch.arange(36), torch.zeros(36, dtype=torch.float64)
    variance = torch.tensor([1.0] * 30 + [0.1] * 4 + [90.0] * 2, dtype=torch.float64)
    few = strata.unseen(everything, variance, none, torch.full((36,), 16))
    assert few[[0, 2, 5]].tolist() == [0, 2, 16]
    assert (few > 0).sum() == 2
    enough = torch.tensor([2] * 30 + [32] * 4 + [256] * 2)
    assert not bool(strata.unseen(everything, variance, none, enough).any())
    assert strata.unseen(everything, variance, none, enough - (of == 5).long())[5] > 1
