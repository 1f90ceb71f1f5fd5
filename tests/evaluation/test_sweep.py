"""The full sweep against closed forms, its errors against the spread over seeds, and a score that is the item's alone."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn

import diffusional as df
from battery import generator, plain_alpha, plain_sigma
from diffusional import exact, likelihood, networks, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Evaluation, Progress, evaluate, sweep
from diffusional.evaluation.noise import item_keys, stream
from diffusional.evaluation.sweep import collapsed_variance
from diffusional.ledger import Estimate

LAMBDA = np.array([0.5, 2.0])
MEAN = np.array([0.3, -0.4])
DECODER = 0.01
LOW, HIGH = -5.0, 5.0


def world() -> exact.Gaussian:
    return exact.Gaussian(torch.tensor(MEAN), torch.diag(torch.tensor(LAMBDA)))


def gaussian_model(
    steps: int | None, variance: Any = "posterior", scale: tuple[float, ...] = (1.0,)
) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    space = df.Continuous((2,), scale=scale)
    decoder = likelihood.GaussianLikelihood(space, variance=DECODER)
    return df.DiffusionModel(forward, world().denoiser(), decoder, variance)


def squared_errors(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """E ‖x − x̂‖² (N, L) of items x (N, 2) over the noise at every γ (L,), the optimal x̂ = m + k (z − α m) written out."""
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    return (((x - MEAN)[:, None] * (1 - k * a)) ** 2 + (k * s) ** 2).sum(2)


def true_costs(x: np.ndarray, steps: int | None) -> dict[str, np.ndarray]:
    """The expected costs of every item (N,) in nats; kl is (N, L)."""
    gamma = np.linspace(LOW, HIGH, steps or 20_001)
    error, snr = squared_errors(x, gamma), np.exp(-gamma)
    if steps is not None:
        kl = 0.5 * (snr[:-1] - snr[1:]) * error[:, 1:]
    else:
        density = 0.5 * snr * error  # per unit of γ
        kl = 0.5 * (density[:, 1:] + density[:, :-1]) * np.diff(gamma)
    alpha2, sigma2 = plain_alpha(HIGH) ** 2, plain_sigma(HIGH) ** 2
    prior = 0.5 * (alpha2 * (x**2).sum(1) + 2 * (sigma2 - 1 - math.log(sigma2)))
    reconstruction = 0.5 * (2 * math.log(2 * math.pi * DECODER) + error[:, 0] / DECODER)
    return {"kl": kl, "prior": prior, "reconstruction": reconstruction}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return world().sample(12, generator(1))


# Against the truth.


@pytest.mark.parametrize(("steps", "draws"), [(7, 40), (61, 4), (201, 1), (None, 2)])
def test_every_cost_is_that_of_the_gaussian_world(steps: int | None, draws: int, x: Tensor) -> None:
    result = evaluate(gaussian_model(steps), x, seed=3, draws=draws, cells=100)
    truth = true_costs(x.numpy(), steps)
    for name in ("reconstruction", "kl"):
        wanted = truth[name].reshape(12, -1).sum(1)
        term = result.terms[name]
        assert abs(term.value - wanted.mean()) < 4 * term.error
        assert 0 < term.error < 0.3
        np.testing.assert_allclose(result.per_item[name].numpy(), wanted, atol=12 * 5 * term.error)
    np.testing.assert_allclose(result.per_item["prior"].numpy(), truth["prior"], rtol=1e-12)
    assert result.terms["prior"].error == 0
    total = sum(t.reshape(12, -1).sum(1) for t in truth.values()).mean()
    assert abs(result.nelbo.value - total) < 4 * result.nelbo.error
    # An upper bound on what the data cost.
    assert result.nelbo.value > -float(world().log_prob(x).mean()) - 4 * result.nelbo.error


def test_every_level_is_that_of_the_gaussian_world(x: Tensor) -> None:
    result = evaluate(gaussian_model(7), x.repeat(10, 1), draws=40)
    wanted = true_costs(x.numpy(), 7)["kl"].mean(0)
    # Squared errors of 2 dimensions vary by about their own size: 1/√(12 · 400) = 1.4 %.
    np.testing.assert_allclose(result.levels_kl.numpy(), wanted, rtol=0.07)


def test_cells_of_continuous_time_are_weighed_by_their_width(x: Tensor) -> None:
    coarse = evaluate(gaussian_model(None), x.repeat(10, 1), draws=20, cells=5)
    fine = true_costs(x.numpy(), None)["kl"].mean(0).reshape(5, -1).sum(1)
    np.testing.assert_allclose(coarse.levels_kl.numpy(), fine, rtol=0.12)


def test_the_discrete_bound_approaches_the_continuous_one(x: Tensor) -> None:
    continuous = gaussian_model(None)
    limit = evaluate(continuous, x, cells=1000)
    gaps = []
    for steps in (51, 501):
        discrete = evaluate(continuous.regrid(steps), x, draws=4)
        error = math.hypot(discrete.nelbo.error, limit.nelbo.error)
        gap = true_costs(x.numpy(), steps)["kl"].sum(1).mean() - true_costs(x.numpy(), None)["kl"].sum(1).mean()
        assert abs(discrete.nelbo.value - limit.nelbo.value - gap) < 4 * error
        gaps.append(gap)
    assert gaps[0] > 0.05 > gaps[1] > 0


def test_densities_are_in_the_original_units(x: Tensor) -> None:
    plain, scaled = (evaluate(gaussian_model(20, scale=s), x, draws=1) for s in ((1.0,), (10.0, 1000.0)))
    assert scaled.terms["jacobian"].value == pytest.approx(math.log(10) + math.log(1000))
    assert plain.terms["jacobian"].value == 0
    assert scaled.nelbo.value - plain.nelbo.value == pytest.approx(math.log(10_000), abs=1e-9)
    assert scaled.nelbo.error == plain.nelbo.error


def true_variances(x: np.ndarray, steps: int) -> np.ndarray:
    """Var KL (N, L) of one draw: a sum over dimensions of (d (1 − k α) − k σ ε)², d = x − m, times (½ ΔSNR)²."""
    gamma = np.linspace(LOW, HIGH, steps)
    a, s = plain_alpha(gamma[1:])[:, None], plain_sigma(gamma[1:])[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    variance = 2 * (k * s) ** 4 + 4 * (k * s * (x - MEAN)[:, None] * (1 - k * a)) ** 2
    return (0.5 * (np.exp(-gamma[:-1]) - np.exp(-gamma[1:]))) ** 2 * variance.sum(2)


def test_every_level_s_error_in_closed_form(x: Tensor) -> None:
    items = x.repeat(20, 1)
    variance = true_variances(items.numpy(), 7)
    # Levels differ by much more than the tolerance: an average over them would not do.
    assert np.ptp(np.log(variance.sum(0))) > 2
    result = evaluate(gaussian_model(7), items, draws=8)
    np.testing.assert_allclose(result.levels_error.numpy(), np.sqrt(variance.sum(0) / 8) / 240, rtol=0.1)


def test_a_single_draw_s_errors_are_those_of_pairs_of_neighbours(x: Tensor) -> None:
    """n/2 times the variance over items of the pair's difference: their noise, and what items differ by in their slopes."""
    items = x.repeat(30, 1)
    variance, mean = true_variances(items.numpy(), 7), true_costs(items.numpy(), 7)["kl"]
    pair = variance[:, ::2].sum(0) + variance[:, 1::2].sum(0) + 360 * np.var(mean[:, ::2] - mean[:, 1::2], 0)
    wanted = np.sqrt(np.repeat(pair / 2, 2)) / 360
    squares = np.stack(
        [evaluate(gaussian_model(7), items, seed=seed, draws=1).levels_error.numpy() ** 2 for seed in range(8)]
    )
    np.testing.assert_allclose(np.sqrt(squares.mean(0)), wanted, rtol=0.1)
    np.testing.assert_array_equal(squares[:, ::2], squares[:, 1::2])


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_pairs_of_neighbours_tell_the_variance(n: int) -> None:
    """Of unit noise it is one, whatever levels differ by for all items alike, for few items too."""
    noise = torch.randn(n, 20_001, dtype=torch.float64, generator=generator(n))
    level = 100 * torch.arange(20_001) if n > 1 else 0
    variance = collapsed_variance(noise + level)
    assert variance.shape == noise.shape
    assert float(variance[:, :-1].mean()) == pytest.approx(1, abs=0.07)
    torch.testing.assert_close(variance[:, 0:-1:2], variance[:, 1::2])
    # Of an odd number of levels the last goes with the one before it, which counts twice.
    last_two = collapsed_variance((noise + level)[:, -2:])
    torch.testing.assert_close(variance[:, -1], last_two.sum(1))


def test_level_edges(x: Tensor) -> None:
    discrete = evaluate(gaussian_model(7), x, draws=2)
    assert discrete.level_edges.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert not discrete.level_edges.dtype.is_floating_point
    continuous = evaluate(gaussian_model(None), x, draws=2, cells=4)
    assert continuous.level_edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for result in (discrete, continuous):
        assert len(result.level_edges) == len(result.levels_kl) + 1 == len(result.levels_error) + 1


@pytest.mark.parametrize(
    ("freedom", "confidence", "quantile"),
    [
        # Quantiles as printed in any table: Student's t, and the normal's.
        (math.inf, 0.95, 1.959964),
        (math.inf, 0.99, 2.575829),
        (1.0, 0.95, 12.706205),
        (4.0, 0.95, 2.776445),
        (10.0, 0.99, 3.169273),
        (30.0, 0.9, 1.697261),
        (0.2, 0.95, 12.706205),  # below one degree of freedom there are no wider ones
    ],
)
def test_the_interval(freedom: float, confidence: float, quantile: float) -> None:
    none = torch.zeros(0)
    nelbo = Estimate(30.0, 0.5, 7.0, n=9, network_evaluations=100)
    result = Evaluation(nelbo, {}, {}, none, none, none, 8, {}, freedom)
    assert result.interval(confidence) == pytest.approx((30 - 0.5 * quantile, 30 + 0.5 * quantile), rel=1e-7)
    bits = 8 * math.log(2)
    wanted = ((30 - 0.5 * quantile) / bits, (30 + 0.5 * quantile) / bits)
    assert result.interval(confidence, "bits/dim") == pytest.approx(wanted, rel=1e-7)
    if confidence == 0.95:
        assert result.interval() == result.interval(confidence)


# Against itself.


def test_errors_of_levels_add_up_to_that_of_the_kl(x: Tensor) -> None:
    """Of a single draw to the last digit; of many, as far as levels' draws, which are independent, look uncorrelated."""
    for steps in (60, 61):
        one = evaluate(gaussian_model(steps), x, draws=1)
        assert float(one.levels_error.square().sum()) == pytest.approx(one.terms["kl"].error ** 2, rel=1e-12)
    many = evaluate(gaussian_model(7), x.repeat(20, 1), draws=8)
    assert float(many.levels_error.square().sum()) == pytest.approx(many.terms["kl"].error ** 2, rel=0.1)


def test_the_books_balance(x: Tensor) -> None:
    result = evaluate(gaussian_model(30, scale=(2.0,)), x, draws=2)
    parts = {name: t for name, t in result.per_item.items() if name not in ("item", "nelbo", "error")}
    assert set(parts) == {"reconstruction", "kl", "prior", "jacobian"} == set(result.terms)
    torch.testing.assert_close(sum(parts.values()), result.per_item["nelbo"], rtol=0, atol=1e-11)
    assert sum(t.value for t in result.terms.values()) == pytest.approx(result.nelbo.value, abs=1e-11)
    assert float(result.levels_kl.sum()) == pytest.approx(result.terms["kl"].value, rel=1e-12)
    assert result.nelbo.value == pytest.approx(float(result.per_item["nelbo"].mean()), rel=1e-14)
    assert result.nelbo.error == pytest.approx(float(result.per_item["error"].square().sum()) ** 0.5 / 12, rel=1e-12)
    squares = result.terms["kl"].error ** 2 + result.terms["reconstruction"].error ** 2
    assert result.nelbo.error**2 == pytest.approx(squares, rel=1e-12)
    assert result.per_item["item"].tolist() == list(range(12))
    assert {t.dtype for name, t in result.per_item.items() if name != "item"} == {torch.float64}
    assert {t.shape for t in result.per_item.values()} == {(12,)}
    assert result.levels_kl.shape == result.levels_error.shape == (29,)
    assert (result.reached, result.caveats) == (True, ())
    # Between all of an item's degrees of freedom in one of its costs, and all of all items'.
    assert 1 < result.freedom < 12 * (1 + 7)


def test_the_interval_of_one_item_knows_how_few_draws_there_were(x: Tensor) -> None:
    """Of two sweeps of one item a normal quantile would hold the truth two times out of three."""
    model = gaussian_model(50)
    results = [evaluate(model, x[:1], seed=seed, draws=2) for seed in range(100)]
    truth = float(np.mean([r.nelbo.value for r in results]))
    held = [low <= truth <= high for low, high in (r.interval() for r in results)]
    # Satterthwaite's formula is itself of few draws: 0.87 here.
    assert np.mean(held) > 0.8
    assert max(r.freedom for r in results) < 1 + 7


def test_the_freedom_of_many_items() -> None:
    many = evaluate(gaussian_model(5), torch.randn(50, 2, generator=generator(0)), draws=8)
    # 50 items of 7 and 31: far from few.
    assert 100 < many.freedom < 50 * (7 + 31)


@pytest.mark.parametrize(("steps", "draws"), [(6, 2), (60, 1), (61, 1), (None, 1)])
def test_the_error_is_the_spread_over_seeds(steps: int | None, draws: int, x: Tensor) -> None:
    model = gaussian_model(steps)
    results = [evaluate(model, x[:8], seed=seed, draws=draws, cells=60) for seed in range(200 if draws > 1 else 100)]
    for pick in (lambda r: r.nelbo, lambda r: r.terms["kl"], lambda r: r.terms["reconstruction"]):
        spread = np.std([pick(r).value for r in results], ddof=1)
        reported = np.sqrt(np.mean([pick(r).error ** 2 for r in results]))
        if draws > 1:
            assert reported == pytest.approx(spread, rel=0.15)
        else:
            # Pairs of neighbouring levels err upward; not by much.
            assert 0.9 * spread < reported < 1.35 * spread


def test_the_item_error_is_the_spread_over_items() -> None:
    data = world().sample(600, generator(2))
    truth = sum(t.reshape(600, -1).sum(1) for t in true_costs(data.numpy(), 12).values())
    for draws in (2, 20):
        result = evaluate(gaussian_model(12), data, draws=draws)
        # Much of the spread of two noisy sweeps is noise, which is not the items'.
        assert result.nelbo.item_error == pytest.approx(truth.std(ddof=1) / 600**0.5, rel=0.15)
    assert result.nelbo.n == 600


class Levels(nn.Module):
    """A small network with a levels head over 1×4×4 items of 5 levels, not at its zero initialisation."""

    def __init__(self, condition_dim: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = networks.UNet(1, outputs=5, widths=(8, 8), blocks=1, dropout=0.5, condition_dim=condition_dim)
        for p in self.net.parameters():
            nn.init.normal_(p, std=0.3)
        self.rows: list[int] = []

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows.append(len(z))
        return self.net(z, log_snr, condition)


SPACE = df.Discrete((1, 4, 4), 5)


def levels_model(
    steps: int | None = 6, kind: Any = likelihood.NetworkLevels, condition_dim: int = 0
) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    return df.DiffusionModel(forward, df.Denoiser(Levels(condition_dim), "levels", SPACE), kind(SPACE))


@pytest.fixture(scope="module")
def images() -> Tensor:
    raw = torch.randint(0, 5, (9, 1, 4, 4), generator=generator(5))
    raw[6] = raw[2]
    return SPACE.encode(raw)


def scores(result: Evaluation, draws: int) -> dict[str, Tensor]:
    """What is the item's alone: not where it stands; and of a single draw, the error is learned from all items' levels."""
    return {n: t for n, t in result.per_item.items() if n != "item" and (draws > 1 or n != "error")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_score_depends_on_its_item_alone(draws: int, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = levels_model()
    whole = scores(evaluate(model, images, seed=7, draws=draws), draws)
    # Alone, in a subset, in another order.
    for chosen in ([3], [8, 4, 0], [1, 2, 3, 4, 5]):
        same(
            scores(evaluate(model, images[chosen], seed=7, draws=draws), draws),
            {k: t[chosen] for k, t in whole.items()},
        )
    # Copies are told apart by which comes first, whatever stands around them.
    order = torch.tensor([8, 2, 7, 1, 0, 6, 3, 5, 4])
    same(scores(evaluate(model, images[order], seed=7, draws=draws), draws), {k: t[order] for k, t in whole.items()})
    # In other blocks and other network calls.
    monkeypatch.setattr(sweep, "_ROWS", 7)
    monkeypatch.setattr(sweep, "_NOISE", 2 * (5 + 4) * 16)
    small = evaluate(model, images, seed=7, draws=draws)
    assert max(model.denoiser.module.rows[-10:]) <= 7
    same(scores(small, draws), whole)


def test_the_blocks_make_one_result(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = levels_model(None)
    whole = evaluate(model, images, cells=12, draws=3)
    monkeypatch.setattr(sweep, "_NOISE", 1)
    blocks = evaluate(model, images, cells=12, draws=3)
    torch.testing.assert_close(blocks.levels_kl, whole.levels_kl, rtol=1e-5, atol=1e-6)
    assert blocks.nelbo.value == pytest.approx(whole.nelbo.value, rel=1e-6)
    assert blocks.nelbo.error == pytest.approx(whole.nelbo.error, rel=1e-4)


def test_copies_get_noise_of_their_own(images: Tensor) -> None:
    result = evaluate(levels_model(), images)
    assert result.per_item["nelbo"][2] != result.per_item["nelbo"][6]
    both = evaluate(levels_model(), images[[6, 2]])
    torch.testing.assert_close(both.per_item["nelbo"], result.per_item["nelbo"][[2, 6]], rtol=1e-5, atol=1e-5)


def test_seeds(images: Tensor) -> None:
    model = levels_model()
    first = evaluate(model, images, seed=1)
    torch.rand(3)
    again, other = evaluate(model, images, seed=1), evaluate(model, images, seed=2)
    assert first.to_json() == again.to_json()
    assert bool((first.per_item["kl"] != other.per_item["kl"]).all())
    assert bool((first.per_item["reconstruction"] != other.per_item["reconstruction"]).all())
    assert torch.equal(first.per_item["prior"], other.per_item["prior"])


def test_the_random_state_is_left_alone(images: Tensor) -> None:
    model = levels_model()
    before = torch.get_rng_state()
    evaluate(model, images)
    assert torch.equal(before, torch.get_rng_state())


def test_keys_and_streams() -> None:
    items = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    keys = item_keys(items, 0)
    assert len(set(keys)) == 3
    assert item_keys(items.double(), 0) == keys  # the value counts, not how it is stored
    assert item_keys(items.reshape(3, 1, 2), 0) == keys
    assert not set(item_keys(items, 1)) & set(keys)
    draws = [stream(key, draw).standard_normal(4) for key in keys for draw in (0, 1, 2)]
    assert len({tuple(d) for d in draws}) == 9
    long = np.concatenate([stream(keys[0], draw).standard_normal(20_000) for draw in range(5)])
    assert abs(long.mean()) < 4 / 100_000**0.5
    assert long.var() == pytest.approx(1, abs=4 * (2 / 100_000) ** 0.5)


# Counting, conditions, modes, records.


@pytest.mark.parametrize(
    ("kind", "steps", "draws", "expected"),
    [
        (likelihood.NetworkLevels, 6, 2, 9 * (5 + 4) * 2),
        (likelihood.NetworkLevels, 6, None, 9 * (5 + 4) * 8),  # below 50 levels, 8 draws
        (likelihood.NetworkLevels, 60, None, 9 * (59 + 4)),
        (likelihood.LevelPosterior, 6, 2, 9 * 5 * 2),  # needs no network at z_1
        (likelihood.NetworkLevels, None, 1, 9 * (12 + 4)),
    ],
)
def test_evaluations_of_the_network_are_counted(
    kind: Any, steps: int | None, draws: int | None, expected: int, images: Tensor
) -> None:
    model = levels_model(steps, kind)
    told: list[Progress] = []
    result = evaluate(model, images, draws=draws, cells=12, progress=told.append)
    assert sum(model.denoiser.module.rows) == expected
    assert result.nelbo.network_evaluations == result.to_json()["network_evaluations"] == expected
    assert told[-1] == Progress(None, expected, expected)
    done = [now.evaluations for now in told]
    assert done == sorted(set(done))
    assert {now.expected for now in told} == {expected}


def test_conditions_go_with_their_items(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = levels_model(condition_dim=1)
    condition = torch.arange(9.0)[:, None] - 4
    both = evaluate(model, images, condition=condition)
    other = evaluate(model, images, condition=condition + torch.eye(9)[:, 3:4])
    changed = both.per_item["nelbo"] != other.per_item["nelbo"]
    assert changed.nonzero().flatten().tolist() == [3]
    assert both.per_item["reconstruction"][3] != other.per_item["reconstruction"][3]
    order = torch.randperm(9, generator=generator(0))
    order = torch.cat([order[order != 6], order[order == 6]])  # the second copy stays second
    monkeypatch.setattr(sweep, "_NOISE", 3 * (5 + 4) * 16)
    moved = evaluate(model, images[order], condition=condition[order])
    torch.testing.assert_close(moved.per_item["nelbo"], both.per_item["nelbo"][order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool, images: Tensor) -> None:
    model = levels_model()
    model.train(training)
    first = evaluate(model, images)
    assert model.training is training
    assert model.denoiser.module.net.training is training
    model.train(not training)
    assert evaluate(model, images).to_json()["nelbo"] == first.to_json()["nelbo"]


class Poisoned(nn.Module):
    """NaN for items whose condition is 1."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, 1, 1, 1) == 1, math.nan, z)


def test_a_cost_that_is_not_finite_raises_and_names_the_item(images: Tensor) -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 6))
    model = df.DiffusionModel(forward, df.Denoiser(Poisoned(), "data"), likelihood.LevelPosterior(SPACE))
    model.train()
    condition = torch.zeros(9)
    evaluate(model, images, condition=condition)
    condition[[4, 7]] = 1
    with pytest.raises(DiffusionalError, match=r"item 4 has a cost that is not finite: .*kl = nan"):
        evaluate(model, images, condition=condition)
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "at least 1, got draws=0 and cells=1000"),
        ({"cells": -1}, "at least 1, got .* cells=-1"),
        ({"model": levels_model(2), "draws": 1}, "draws to be at least 2 for a single level"),
        ({"model": levels_model(None), "draws": 1, "cells": 1}, "draws to be at least 2 for a single level"),
        ({"condition": torch.zeros(8, 1)}, "8 rows for 9 items"),
        ({"data": torch.zeros(0, 1, 4, 4)}, "at least one item"),
        (
            {"data": torch.zeros(2, 1, 5, 5)},
            r"\(1, 4, 4\).* got \(1, 5, 5\)",
        ),
        ({"data": torch.full((2, 1, 4, 4), 0.3)}, "5 levels.* got 0.3 in item 0"),
        ({"data": torch.full((2, 1, 4, 4), math.nan)}, "not finite in item 0"),
        ({"data": torch.zeros(2, 1, 4, 4, dtype=torch.long)}, "encoded.*int64"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str, images: Tensor) -> None:
    with pytest.raises(DiffusionalError, match=message):
        evaluate(**({"model": levels_model(), "data": images} | arguments))


def test_the_record(images: Tensor) -> None:
    result = evaluate(levels_model(), images, seed=4, draws=3)
    record = result.to_json()
    assert {
        "nelbo",
        "nelbo_nats",
        "terms",
        "levels_kl",
        "levels_kl_error",
        "level_edges",
        "interval",
        "items",
        "items_visited",
        "dimensions",
        "levels",
        "network_evaluations",
        "reached",
        "caveats",
        "provenance",
    } <= set(record)
    for entry in (record["nelbo"], record["nelbo_nats"], *record["terms"].values()):
        assert set(entry) == {"value", "error", "item_error", "unit"}
    assert (record["nelbo"]["unit"], record["nelbo_nats"]["unit"]) == ("bits/dim", "nats")
    assert {entry["unit"] for entry in record["terms"].values()} == {"nats"}
    assert {"reconstruction", "kl", "prior"} <= set(record["terms"])
    for key in ("value", "error", "item_error"):
        assert record["nelbo"][key] == pytest.approx(record["nelbo_nats"][key] / (16 * math.log(2)), rel=1e-12)
    assert (record["items"], record["dimensions"], record["levels"], len(record["levels_kl"])) == (9, 16, 5, 5)
    assert (record["items_visited"], record["reached"], record["caveats"]) == (9, True, [])
    assert record["level_edges"] == [1, 2, 3, 4, 5, 6]
    assert record["levels_kl_error"] == result.levels_error.tolist()
    assert record["interval"]["confidence"] == 0.95
    for unit, entry in (("nats", record["nelbo_nats"]), ("bits/dim", record["nelbo"])):
        low, high = record["interval"][unit]
        assert 0.5 * (low + high) == pytest.approx(entry["value"], rel=1e-12)
        assert high - low == pytest.approx(2 * float(student.ppf(0.975, result.freedom)) * entry["error"], rel=1e-6)
    provenance = record["provenance"]
    assert {"data_sha256", "weights_sha256", "seed", "versions", "command", "draws", "latents"} <= set(provenance)
    assert (provenance["seed"], provenance["draws"], provenance["latents"]) == (4, 3, 6)
    assert (provenance["method"], provenance["cells"]) == ("full sweep", None)
    assert provenance["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_one_item_has_no_spread(images: Tensor) -> None:
    record = evaluate(levels_model(60), images[:1]).to_json()
    assert record["nelbo"]["item_error"] is None
    assert record["nelbo"]["error"] > 0
    # Below 8 items, levels are drawn 8 times: a single draw's error is learned from the items together.
    assert record["provenance"]["draws"] == 8
    json.dumps(record, allow_nan=False)


def test_provenance_tells_data_and_weights_apart(images: Tensor) -> None:
    model = levels_model()

    def hashes(data: Tensor) -> tuple[str, str]:
        provenance = evaluate(model, data, draws=1).provenance
        return provenance["data_sha256"], provenance["weights_sha256"]

    first = hashes(images)
    assert hashes(images) == first
    assert hashes(images.flip(0))[0] != first[0]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert hashes(images)[0] == first[0]
    assert hashes(images)[1] != first[1]
