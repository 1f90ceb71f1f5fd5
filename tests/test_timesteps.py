"""Samplers of t: unbiased whatever the proposal, MATH (22)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from battery import F64, close, float64, generator
from diffusional.errors import DiffusionalError
from diffusional.timesteps import (
    LEARNING,
    Adaptive,
    SecondMoment,
    Stratified,
    TimestepSampler,
    Uniform,
    _cumulative,
    position,
)

COSTS = float64([0.5, 4.0, 1.0, 0.25, 2.0])  # per cell of an adaptive sampler


def _adaptive(stratified: bool = True, floor: float = 0.05) -> Adaptive:
    sampler = Adaptive(cells=5, floor=floor, warmup=1, stratified=stratified)
    sampler.update((torch.arange(5) + 0.5) / 5, COSTS)
    return sampler


def _masses(floor: float = 0.05) -> np.ndarray:
    return (1 - floor) * COSTS.numpy() / COSTS.numpy().sum() + floor / 5


SAMPLERS: dict[str, tuple[Callable[[], TimestepSampler], np.ndarray]] = {
    "uniform": (Uniform, np.ones(1)),
    "stratified": (Stratified, np.ones(1)),
    "adaptive, cold": (lambda: Adaptive(cells=5), np.ones(1)),
    "adaptive": (_adaptive, _masses()),
    "adaptive, independent": (lambda: _adaptive(stratified=False), _masses()),
    "adaptive, no floor": (lambda: _adaptive(floor=0.0), _masses(0.0)),
}
every_sampler = pytest.mark.parametrize(("make", "masses"), SAMPLERS.values(), ids=SAMPLERS)


def _probabilities(masses: np.ndarray, levels: int) -> np.ndarray:
    """π_t: the piecewise-constant density of `masses`, integrated over [(t−1)/L, t/L) by the overlap with each cell."""
    cells = np.arange(len(masses)) / len(masses)
    start = np.arange(levels)[:, None] / levels
    overlap = np.minimum(start + 1 / levels, cells + 1 / len(masses)) - np.maximum(start, cells)
    return np.clip(overlap, 0, None) @ (masses * len(masses))


@every_sampler
@pytest.mark.parametrize("levels", [1, 2, 5, 7, 13])
def test_each_level_comes_as_often_as_its_weight_says(make, masses: np.ndarray, levels: int) -> None:
    n, sampler, rng = 64, make(), generator(levels)
    draws = [sampler.sample(n, levels, rng) for _ in range(400)]
    level, weight = torch.cat([d.level for d in draws]), torch.cat([d.weight for d in draws])
    if isinstance(sampler, Adaptive) and levels < 5:
        masses = np.ones(1)  # it had learned five cells, and has begun anew with one for each level
    assert level.dtype == torch.int64
    assert 1 <= int(level.min()) <= int(level.max()) <= levels
    probability = _probabilities(masses, levels)
    assert abs(probability.sum() - 1) < 1e-12
    close(weight, 1 / probability[level.numpy() - 1], rtol=1e-11)
    # E Σ weight · [level = t] = 1 for every t. (Stratification only lowers the error.)
    for t in range(1, levels + 1):
        mean = float(weight[level == t].sum()) / len(level)
        assert abs(mean - 1) <= 4 * np.sqrt((1 / probability[t - 1] - 1) / len(level)) + 1e-9


@every_sampler
def test_many_levels_have_exact_weights(make, masses: np.ndarray) -> None:
    """At L = 9999 a level is 1e-4 wide: positions in float32 would show."""
    drawn = make().sample(2000, 9999, generator(0))
    close(drawn.weight, 1 / _probabilities(masses, 9999)[drawn.level.numpy() - 1], rtol=1e-9)


@every_sampler
def test_continuous_time(make, masses: np.ndarray) -> None:
    sampler, rng = make(), generator(3)
    draws = [sampler.sample(64, None, rng) for _ in range(400)]
    u, weight = torch.cat([d.level for d in draws]).numpy(), torch.cat([d.weight for d in draws]).numpy()
    assert u.dtype == np.float64
    assert (u >= 0).all()
    assert (u < 1).all()
    cells = len(masses)
    np.testing.assert_allclose(weight, 1 / (masses * cells)[(u * cells).astype(int)], rtol=1e-12)
    # ∫ e^{2u} du = (e² − 1)/2.
    value = weight * np.exp(2 * u)
    assert abs(value.mean() - (np.e**2 - 1) / 2) < 4 * value.std() / np.sqrt(len(u))
    # u follows the proposal inside cells too: uniform after F. (A stratified sample is more even than a random one.)
    edges = np.concatenate([[0], masses.cumsum()])
    assert stats.kstest(np.interp(u, np.arange(cells + 1) / cells, edges), "uniform").pvalue > 1e-4


@every_sampler
def test_continuous_levels_have_all_digits_of_float64(make, masses: np.ndarray) -> None:
    """Uniform numbers of float32 are multiples of 2⁻²⁴: at most 2²⁴ places, and 0 among them once in 2²⁴ draws."""
    u = make().sample(64, None, generator(0)).level
    assert not bool((u == u.float().double()).any())


def test_the_cumulative_proposal() -> None:
    edges = float64(np.concatenate([[0], _masses().cumsum()]))
    u = np.linspace(0, 1, 101)
    close(_cumulative(edges, float64(u)), np.interp(u, np.arange(6) / 5, edges.numpy()))


def test_stratification_visits_every_level_once() -> None:
    for _ in range(20):
        level = Stratified().sample(12, 6, generator(1)).level
        assert level.bincount().tolist() == [0, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("sampler", [Stratified(), _adaptive()])
def test_an_item_sees_all_levels_under_stratification(sampler: TimestepSampler) -> None:
    """Each batch is stratified, yet any one item's level follows π: chi-square over many calls, for items 0 and 4."""
    rng, levels = generator(2), 5
    seen = torch.stack([sampler.sample(8, levels, rng).level[[0, 4]] for _ in range(1500)])
    probability = _probabilities(_masses() if isinstance(sampler, Adaptive) else np.ones(1), levels)
    for item in seen.T:
        observed = item.bincount(minlength=levels + 1)[1:].numpy()
        assert stats.chisquare(observed, 1500 * probability).pvalue > 1e-4


def test_stratification_and_importance_lower_the_variance() -> None:
    def variance(sampler: TimestepSampler) -> float:
        rng = generator(4)
        means = []
        for _ in range(400):
            drawn = sampler.sample(16, 5, rng)
            means.append(float((drawn.weight * COSTS[drawn.level - 1]).mean()))
        assert abs(np.mean(means) - float(COSTS.sum())) < 4 * np.std(means) / 20 + 1e-9
        return float(np.var(means))

    uniform, stratified = variance(Uniform()), variance(Stratified())
    assert stratified < 0.2 * uniform
    assert variance(_adaptive(stratified=False)) < 0.2 * uniform
    assert variance(_adaptive()) < 0.2 * stratified
    assert variance(_adaptive(stratified=False, floor=0.0)) < 1e-20  # π ∝ cost: no variance at all


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.5, 1.0])
def test_adaptive_learns_the_root_of_the_second_moment(floor: float) -> None:
    sampler, rng, spread = (
        Adaptive(cells=4, floor=floor, warmup=1000, decay=0.9),
        generator(0),
        float64([1.0, 3, 0.5, 2]),
    )
    while sampler.seen < 1000:
        close(sampler.mass(), [0.25] * 4)  # cold
        u = (torch.arange(200) % 4 + torch.rand(200, dtype=F64, generator=rng)) / 4
        # ±: the mean is 0 and the second moment is spread² (1² + 2²)/2.
        sign = torch.tensor([1.0, 1, 1, 1, -2, -2, -2, -2]).repeat(25)
        sampler.update(u, spread.repeat(50) * sign)
    close(sampler.mass(), (1 - floor) * spread / spread.sum() + floor / 4)


@pytest.mark.parametrize("levels", [1, 2, 3, 19, 63])
def test_fewer_levels_than_cells_are_a_cell_each(levels: int) -> None:
    """π_t ∝ the root of L_t's second moment, and not what cells between levels, which none visits, would make of it."""
    sampler, rng, cost = Adaptive(warmup=1, floor=0.05), generator(0), torch.linspace(100, 1, levels, dtype=F64)
    for _ in range(300):
        level = sampler.sample(128, levels, rng).level
        sampler.update(position(level, levels), levels * cost[level - 1])
    drawn = sampler.sample(20_000, levels, rng)
    assert set(drawn.level.tolist()) == set(range(1, levels + 1))
    probability = 0.95 * cost / cost.sum() + 0.05 / levels
    close(1 / drawn.weight, probability[drawn.level - 1], rtol=1e-9)
    other = Adaptive(warmup=1, floor=0.05)
    other.load_state(sampler.state())
    close(other.sample(64, levels, generator(1)).weight, sampler.sample(64, levels, generator(1)).weight)


def test_adaptive_is_a_running_mean() -> None:
    sampler = Adaptive(cells=2, floor=0.0, warmup=1, decay=0.75)
    second, norm = np.zeros(2), np.zeros(2)
    for place, cost in (([0.0, 0.49], [1.0, 3.0]), ([0.5, 0.99], [2.0, 2.0]), ([0.1], [5.0]), ([0.7, 0.2], [1.0, 0.3])):
        sampler.update(float64(place), float64(cost))
        for cell in (0, 1):
            hits = [c**2 for p, c in zip(place, cost, strict=True) if int(2 * p) == cell]
            if hits:
                second[cell] = 0.75 * second[cell] + 0.25 * np.mean(hits)
                norm[cell] = 0.75 * norm[cell] + 0.25
        if norm.all():
            root = np.sqrt(second / norm)
            close(sampler.mass(), root / root.sum())
        else:
            close(sampler.mass(), [0.5, 0.5])
    assert sampler.seen == 7


def test_costs_of_zero_leave_it_uniform() -> None:
    sampler = Adaptive(cells=2, warmup=1)
    sampler.update(float64([0.2, 0.8]), float64([0.0, 0.0]))
    close(sampler.mass(), [0.5, 0.5])


def test_state_round_trip() -> None:
    sampler, other = _adaptive(), Adaptive(cells=5, floor=0.05, warmup=1)
    other.load_state(sampler.state())
    assert other.seen == sampler.seen == 5
    for one in (sampler, other):
        one.update(float64([0.1, 0.9]), float64([2.0, 3.0]))
    assert other.mass().equal(sampler.mass())
    assert other.sample(9, 7, generator(1)).level.equal(sampler.sample(9, 7, generator(1)).level)
    # The state given was a copy: learning on leaves it alone.
    state = sampler.state()
    other.load_state(state)
    other.update(float64([0.5]), float64([9.0]))
    assert not other.second_moment.equal(state["second_moment"])
    assert sampler.second_moment.equal(state["second_moment"])


@every_sampler
def test_the_generator_decides(make, masses: np.ndarray) -> None:
    one, two, other = (make().sample(50, 100, generator(seed)).level for seed in (1, 1, 2))
    assert one.equal(two)
    assert not one.equal(other)


@pytest.mark.parametrize("levels", [1, 4, 999])
def test_position_is_the_middle_of_the_cell(levels: int) -> None:
    t = torch.arange(1, levels + 1)
    close(position(t, levels), (np.arange(levels) + 0.5) / levels)
    close(position(float64([0.3, 0.9]), None), [0.3, 0.9])


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"floor": -0.1}, {"floor": 1.1}, {"decay": 1.0}, {"decay": -0.1}])
def test_refused(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"got .*{name}={value}"):
        Adaptive(**wrong)
    assert isinstance(Adaptive(), TimestepSampler)
    assert isinstance(Uniform(), TimestepSampler)


# Improved DDPM's resampler.


def _fed(levels: int, rounds: int, seed: int = 0, **options: float) -> tuple[SecondMoment, list[list[float]]]:
    """A sampler fed in batches of five, and every level's costs in the order in which they came, in plain lists."""
    sampler, rng, lists = SecondMoment(**options), np.random.default_rng(seed), [[] for _ in range(levels)]  # type: ignore[arg-type]
    sampler.sample(1, levels)
    for _ in range(rounds):
        level = rng.integers(1, levels + 1, 5)
        cost = rng.exponential(level.astype(float))
        sampler.update(position(torch.from_numpy(level), levels), torch.from_numpy(cost))
        for t, c in zip(level, cost, strict=True):
            lists[t - 1].append(float(c))
    return sampler, lists


def _last(lists: list[list[float]], history: int, floor: float) -> np.ndarray:
    """(1 − floor) √mean L² of each list's last / Σ, and floor over the levels."""
    root = np.array([np.sqrt(np.mean(np.square(costs[-history:]))) for costs in lists])
    return (1 - floor) * root / root.sum() + floor / len(lists)


@pytest.mark.parametrize(("history", "floor"), [(10, 0.001), (3, 0.2), (1, 0.0)])
def test_second_moment_is_of_the_last_costs(history: int, floor: float) -> None:
    """The library's defaults are improved DDPM's: the last 10, and a thousandth uniform."""
    for rounds in (60, 61, 90):
        sampler, lists = _fed(7, rounds, history=history, floor=floor)
        assert min(map(len, lists)) > history
        close(sampler.mass(7), _last(lists, history, floor), rtol=1e-12)
        assert sampler.seen.tolist() == [len(costs) for costs in lists]
    default = SecondMoment()
    assert (default.history, default.floor) == (10, 0.001)


def test_second_moment_is_uniform_until_every_level_is_warm() -> None:
    sampler = SecondMoment(history=3)
    sampler.sample(1, 4)
    for t in (1, 2, 3, 4) * 2 + (1, 2, 3):
        close(sampler.mass(4), [0.25] * 4)
        sampler.update(position(torch.tensor([t]), 4), torch.tensor([float(t)]))
    close(sampler.mass(4), [0.25] * 4)
    sampler.update(position(torch.tensor([4]), 4), torch.tensor([4.0]))
    close(sampler.mass(4), 0.999 * np.arange(1, 5) / 10 + 0.001 / 4)


def test_second_moment_draws_as_its_weights_say() -> None:
    sampler, lists = _fed(7, 60, history=4, floor=0.05)
    want = _last(lists, 4, 0.05)
    rng, n = generator(3), 40_000
    drawn = sampler.sample(n, 7, rng)
    close(drawn.weight, 1 / want[drawn.level.numpy() - 1], rtol=1e-11)
    observed = drawn.level.bincount(minlength=8)[1:].numpy()
    assert stats.chisquare(observed, n * want).pvalue > 1e-4
    assert int(drawn.level.min()) == 1
    # Unbiased: Σ_t 1 for every t.
    for t in range(1, 8):
        mean = float(drawn.weight[drawn.level == t].sum()) / n
        assert abs(mean - 1) < 4 * np.sqrt((1 / want[t - 1] - 1) / n)
    # Independent, not stratified: counts of a small batch vary as a multinomial's do.
    counts = np.array([int((sampler.sample(10, 7, rng).level == 7).sum()) for _ in range(2000)])
    assert np.var(counts) == pytest.approx(10 * want[6] * (1 - want[6]), rel=0.15)


def test_second_moment_forgets_when_the_levels_change() -> None:
    sampler, _ = _fed(7, 60, history=3)
    close(sampler.mass(5), [0.2] * 5)
    sampler.sample(1, 5)
    assert sampler.seen.tolist() == [0] * 5
    cold = SecondMoment(history=1)
    cold.update(float64([0.5]), float64([2.0]))  # before it knows how many levels there are
    close(cold.mass(2), [0.5, 0.5])


def test_second_moment_of_costs_that_are_nothing_is_uniform() -> None:
    sampler = SecondMoment(history=1)
    sampler.sample(1, 3)
    sampler.update(position(torch.tensor([1, 2, 3]), 3), torch.zeros(3))
    close(sampler.mass(3), [1 / 3] * 3)


def test_second_moment_state_round_trip() -> None:
    sampler, _ = _fed(7, 60, history=3)
    other = SecondMoment(history=3)
    state = sampler.state()
    other.load_state(state)
    for one in (sampler, other):
        one.update(position(torch.tensor([2, 2, 5]), 7), torch.tensor([9.0, 1.0, 30.0]))
    assert other.mass(7).equal(sampler.mass(7))
    assert other.sample(50, 7, generator(1)).level.equal(sampler.sample(50, 7, generator(1)).level)
    # Where the next cost goes is part of it, and the state given was a copy.
    assert not state["costs"].equal(sampler.costs)
    assert not state["seen"].equal(sampler.seen)
    assert isinstance(sampler, LEARNING)
    assert isinstance(sampler, TimestepSampler)


def test_second_moment_takes_costs_with_a_graph() -> None:
    sampler = SecondMoment(history=1)
    sampler.sample(1, 2)
    sampler.update(position(torch.tensor([1, 2]), 2), torch.tensor([3.0, 1.0], requires_grad=True))
    assert not sampler.costs.requires_grad
    close(sampler.mass(2), 0.999 * np.array([0.75, 0.25]) + 0.0005)


def test_second_moment_refuses() -> None:
    with pytest.raises(DiffusionalError) as raised:
        SecondMoment().sample(3, None)
    assert "continuous time" in str(raised.value)
    assert "Adaptive" in str(raised.value)
    for wrong in ({"history": 0}, {"floor": -0.1}, {"floor": 1.1}):
        with pytest.raises(ValueError, match="history ≥ 1 and floor in"):
            SecondMoment(**wrong)  # type: ignore[arg-type]
