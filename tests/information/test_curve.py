"""Information curves: matrix products against brute force, curves against quadrature and closed forms, errors against their spread."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from battery import F64, close, float64, generator, randn
from diffusional import DiffusionalError, data, exact, schedule
from diffusional.information import curve, points_of

finite = sys.modules["diffusional.information.finite"]

LINE = float64([[-1.0], [-0.25], [0.5], [0.5]])
GAMMAS = torch.linspace(-12, 6, 10, dtype=F64)


def brute(points: Tensor, index: int, noise: Tensor, gamma: Tensor, weights: Tensor) -> Tensor:
    """ln p(x_i|z) by the densities themselves, float64."""
    out = []
    for g in gamma.tolist():
        a, s = math.sqrt(1 / (1 + math.exp(g))), math.sqrt(1 / (1 + math.exp(-g)))
        z = a * points[index] + s * noise
        log_joint = weights.log() - 0.5 * ((z - a * points) / s).square().sum(1)
        out.append(torch.log_softmax(log_joint, 0)[index])
    return torch.stack(out)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("chunk", [4_000_000, 200])
def test_log_posterior_against_brute_force(single: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_CHUNK", chunk)
    x = torch.cat([randn(39, 5, seed=1), randn(39, 5, seed=1)[:7]]) + 3
    points = points_of(x)
    assert len(points.weights) == 39
    index = points.draw(30, generator(0))
    noise = randn(30, 5, seed=2)
    want = torch.stack(
        [brute(points.centred, int(i), e, GAMMAS, points.weights) for i, e in zip(index, noise, strict=True)]
    )
    assert float(want.max()) > -1e-9
    assert float(want.min()) < -3
    if single:
        got = torch.cat([points.log_posterior(index, noise, g) for g in GAMMAS.split(1)], 1)
    else:
        got = points.log_posterior(index, noise, GAMMAS)
    close(got, want, rtol=3e-5, atol=2e-6)
    assert float(got.max()) <= 0


def test_float64_where_float32_products_would_not_do() -> None:
    """Pairs of near neighbours, far from each other: ‖x‖² SNR = 1e8, while neighbours differ by half a nat."""
    x = float64([[-200.0, 0.0], [-200.0, 0.02], [200.0, 0.0], [200.0, 0.02]])
    points = points_of(x)
    gamma = float64([-8.0])
    index, noise = torch.arange(4), randn(4, 2, seed=3)
    want = torch.stack([brute(points.centred, i, noise[i], gamma, points.weights) for i in range(4)])
    assert bool((want < -0.05).all())
    for levels in (gamma, float64([-8.0, 2.0])):
        close(points.log_posterior(index, noise, levels)[:, :1], want, rtol=1e-4)


def test_float32_is_good_enough_up_to_its_threshold() -> None:
    images = data.load("digits").encode("train")
    points = points_of(images)
    largest = float(points.centred.double().square().sum(1).max())
    gamma = float64([-math.log(0.999 * finite._FLOAT32_UP_TO / largest)])
    index, noise = points.draw(40, generator(0)), randn(40, 64, seed=4)
    for g in (gamma, gamma + 1, gamma + 2):
        got = points.log_posterior(index, noise, g)
        want = torch.stack(
            [brute(points.centred.double(), int(i), e, g, points.weights) for i, e in zip(index, noise, strict=True)]
        )
        assert float((got - want).abs().max()) < 1e-3


def test_the_first_latent_of_the_digits_tells_which_digit_it_is() -> None:
    """I(x; z_1) = ln N, MATH (16), for all 1,797 images; repeated ones know less."""
    dataset = data.load("digits")
    images = torch.cat([dataset.encode(split) for split in ("train", "validation", "test")])
    found = curve(images, schedule.linear(steps=1000), timesteps=6, samples=100, generator=generator(0))
    assert len(images) == 1797
    assert float(found.information[0]) == pytest.approx(math.log(1797), abs=1e-9)
    assert found.entropy.value == pytest.approx(math.log(1797), abs=1e-12)
    assert float(found.information.max()) <= math.log(1797) + 1e-12
    assert found.remaining.value == pytest.approx(0.0, abs=1e-9)
    assert bool((found.increment > -3 * found.increment_error - 1e-9).all())
    twice = torch.cat([images, images[:900]])
    repeated = curve(twice, schedule.linear(steps=1000), timesteps=2, samples=100, generator=generator(0))
    shares = torch.cat([torch.full((900,), 2.0), torch.ones(897)]).double() / 2697
    want = -float((shares * shares.log()).sum())
    assert repeated.entropy.value == pytest.approx(want, rel=1e-12)
    assert want < math.log(1797) - 0.05
    assert float(repeated.information[0]) == pytest.approx(want, abs=1e-9)


@pytest.fixture(scope="module")
def fine() -> schedule.Schedule:
    return schedule.log_snr_linear(-4.0, 4.0, steps=201)


def test_points_against_quadrature(fine: schedule.Schedule) -> None:
    world = exact.Finite(LINE)
    mixture = world._as_mixture()
    for source in (LINE, world, LINE.float()):
        found = curve(source, fine, timesteps=9, samples=80_000, generator=generator(1))
        want = float64([mixture.information(g).value for g in found.gamma])
        assert bool(((found.information - want).abs() < 4 * found.error + 1e-6).all())
        assert float(found.error.max()) < 0.0025 * world.entropy()
        assert bool(((found.increment - (want[:-1] - want[1:])).abs() < 4 * found.increment_error + 1e-6).all())
    assert found.level.tolist() == [1, 26, 51, 76, 101, 126, 151, 176, 201]
    close(found.gamma, fine.grid()[found.level - 1])


def test_increments_close_the_chain_and_have_small_errors(fine: schedule.Schedule) -> None:
    """MATH (13): on shared rays the increments add up exactly, and a fine one is known far better than its ends."""
    found = curve(LINE, fine, timesteps=None, samples=2000, generator=generator(2))
    assert len(found.increment) == 200
    assert float(found.increment.sum()) == pytest.approx(float(found.information[0] - found.information[-1]), abs=1e-12)
    assert float((found.increment_error / found.error[:-1]).median()) < 0.1
    assert float((found.increment_error / found.increment).median()) < 0.1
    assert found.remaining.value == pytest.approx(found.entropy.value - float(found.information[0]), abs=1e-12)
    assert found.remaining.error == pytest.approx(float(found.error[0]), rel=1e-9)


def test_gaussians_and_small_mixtures_are_exact(fine: schedule.Schedule) -> None:
    variances = float64([0.5, 2.0, 1.0])
    found = curve(exact.Gaussian(torch.zeros(3), torch.diag(variances)), fine, timesteps=5)
    snr = torch.exp(-found.gamma)
    close(found.information, 0.5 * torch.log1p(snr[:, None] * variances).sum(1), rtol=1e-12)
    entropy = 0.5 * float((2 * math.pi * math.e * variances).log().sum())
    assert found.entropy.value == pytest.approx(entropy, rel=1e-12)
    assert found.remaining.value == pytest.approx(entropy - float(found.information[0]), rel=1e-12)
    assert (found.samples, float(found.error.max()), float(found.increment_error.max())) == (0, 0.0, 0.0)
    two = exact.Mixture(torch.ones(2), float64([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1))
    exactly = curve(two, fine, timesteps=3)
    close(exactly.information, [two.information(g).value for g in exactly.gamma], rtol=1e-12)
    assert exactly.samples == 0


def test_mixtures_in_more_dimensions_are_drawn(fine: schedule.Schedule) -> None:
    """A mixture on the first axis times a Gaussian on the others: informations and entropies add up."""
    line = exact.Mixture(torch.ones(2), float64([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.1))
    rest = exact.Gaussian(torch.zeros(2), torch.diag(float64([0.5, 2.0])))
    means = float64([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    both = exact.Mixture(torch.ones(2), means, torch.diag(float64([0.1, 0.5, 2.0])).expand(2, 3, 3))
    found = curve(both, fine, timesteps=5, samples=20_000, generator=generator(3))
    want = float64([line.information(g).value + rest.information(g).value for g in found.gamma])
    assert bool(((found.information - want).abs() < 4 * found.error).all())
    assert bool(((found.increment + want[1:] - want[:-1]).abs() < 4 * found.increment_error).all())
    entropy = line.entropy() + rest.entropy()
    assert abs(found.entropy.value - entropy) < 4 * found.entropy.error
    assert abs(found.remaining.value - (entropy - float(want[0]))) < 4 * found.remaining.error
    assert found.entropy.error < 0.01 * entropy
    assert found.samples == 20_000


def test_errors_are_the_spread_over_seeds() -> None:
    process = schedule.log_snr_linear(-2.0, 3.0, steps=11)
    runs = [curve(LINE, process, timesteps=3, samples=50, generator=generator(seed)) for seed in range(250)]
    for name in ("information", "increment"):
        spread = torch.stack([getattr(run, name) for run in runs]).std(0)
        error = torch.stack([getattr(run, "error" if name == "information" else "increment_error") for run in runs])
        ratio = error.square().mean(0).sqrt() / spread
        assert bool(((ratio > 0.8) & (ratio < 1.2)).all()), (name, ratio)


def test_where_the_information_goes() -> None:
    process = schedule.log_snr_linear(-6.0, 6.0, steps=601)
    found = curve(exact.Gaussian(torch.zeros(1), torch.eye(1)), process, timesteps=None)

    def information(gamma: float) -> float:
        return 0.5 * math.log1p(math.exp(-gamma))

    for share in (0.1, 0.5, 0.9):
        gamma = brentq(lambda g, share=share: information(g) - (1 - share) * information(-6.0), -6, 6)
        assert found.lost(share) == pytest.approx(1 + 600 * (gamma + 6) / 12, abs=0.01)
    clean, noisy = found.wasted(0.01)
    gamma = brentq(lambda g: information(g) - 0.99 * information(-6.0), -6, 6)
    assert clean == pytest.approx((gamma + 6) / 12, abs=1e-4)
    gamma = brentq(lambda g: information(g) - 0.01 * information(-6.0), -6, 6)
    assert noisy == pytest.approx((6 - gamma) / 12, abs=1e-4)
    short = curve(exact.Gaussian(torch.zeros(1), torch.eye(1)), schedule.log_snr_linear(-6.0, 0.0), timesteps=50)
    assert short.lost(0.99) == 1.0  # z_T still knows more than a hundredth
    assert short.wasted()[1] == 0.0


def test_continuous_time_and_json() -> None:
    found = curve(LINE, schedule.log_snr_linear(-4.0, 4.0), timesteps=3, samples=100, generator=generator(0))
    assert found.level.tolist() == [0.0, 0.5, 1.0]
    assert found.gamma.tolist() == [-4.0, 0.0, 4.0]
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(record) == {
        "level", "gamma", "information", "information_error", "increment", "increment_error", "entropy", "remaining", "samples", "unit",
    }  # fmt: skip
    np.testing.assert_allclose(record["increment"], found.increment)
    assert record["entropy"]["value"] == found.entropy.value
    few = curve(LINE, schedule.linear(steps=3), timesteps=50, samples=10)
    assert few.level.tolist() == [1, 2, 3]


def test_little_information_in_much_noise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """At SNR = e⁻⁷ I(x; z_T) = ½ SNR E‖x − E x‖² to a percent, with an error a tenth of what plain draws have."""
    x = randn(40, 6, seed=5)
    process = schedule.log_snr_linear(5.0, 7.0)
    found = curve(x, process, timesteps=2, samples=4000, generator=generator(0))
    small = 0.5 * math.exp(-7) * float((x - x.mean(0)).square().sum(1).mean())
    assert abs(float(found.information[1]) - small) < 4 * float(found.error[1]) + 0.01 * small
    assert float(found.error[1]) < 0.02 * small
    monkeypatch.setattr(sys.modules["diffusional.information.curve"], "_STEADY_FROM", 10**9)
    plain = curve(x, process, timesteps=2, samples=4000, generator=generator(0))
    assert bool((found.error < 0.2 * plain.error).all())


def test_next_to_no_information_is_told_too() -> None:
    """At SNR = e⁻¹⁹ float32 sums would drown it: 1e-8 nats beside 1."""
    x = data.load("digits").encode("train")[:300]
    found = curve(x, schedule.log_snr_linear(17.0, 19.0), timesteps=3, samples=4000, generator=generator(0))
    squares = float((x.double() - x.double().mean(0)).flatten(1).square().sum(1).mean())
    want = 0.5 * torch.exp(-found.gamma) * squares
    assert bool(((found.information - want).abs() < 4 * found.error + 1e-3 * want).all())
    assert bool((found.error < 0.02 * want).all())


@pytest.mark.parametrize("gamma", [4.0, 12.0])
def test_little_information_of_repeated_points_is_known_as_well_as_of_distinct_ones(gamma: float) -> None:
    """Four values with shares from 1 % to 60 %, against quadrature; 100 distinct points on the same stretch for comparison."""
    counts = torch.tensor([1, 60, 3, 36])
    repeated = torch.arange(4.0, dtype=F64).repeat_interleave(counts)[:, None]
    process = schedule.log_snr_linear(gamma, gamma + 1, steps=2)
    world = exact.Finite(repeated)
    distinct = curve(torch.linspace(0, 3, 100)[:, None], process, samples=2000, generator=generator(2))
    for source in (repeated, repeated.float(), world):
        found = curve(source, process, samples=2000, generator=generator(2))
        want = float64([world._as_mixture().information(g).value for g in found.gamma])
        assert bool(((found.information - want).abs() < 4 * found.error + 1e-12).all())
        assert bool((found.error / want < 2 * (distinct.error / distinct.information)).all())
        step = want[0] - want[1]
        assert abs(float(found.increment[0] - step)) < 4 * float(found.increment_error[0]) + 1e-12
        assert float(found.increment_error[0]) < 0.1 * float(step)


def test_where_there_is_no_information_none_is_left_to_lose() -> None:
    """One point, however often, has I(x; z_t) = 0 at every level: all of it is gone at z_1, and the whole schedule is past it."""
    found = curve(torch.ones(5, 2), schedule.linear(steps=10), timesteps=4, samples=40)
    assert found.information.tolist() == [0.0] * 4
    assert [found.lost(share) for share in (0.01, 0.5, 0.99)] == [1.0] * 3
    assert found.wasted() == (0.0, 1.0)


def test_data_that_require_gradients_have_the_same_curve() -> None:
    """Informations are constants of the data: none carries a graph, and none warns or fails because the data are part of one."""
    tracked, process = LINE.clone().requires_grad_(), schedule.linear(steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, plain in ((tracked, LINE), (exact.Finite(tracked), exact.Finite(LINE))):
            found, want = (
                curve(data, process, timesteps=4, samples=50, generator=generator(0)) for data in (source, plain)
            )
            assert found.information.equal(want.information)
            assert not found.information.requires_grad
        points = points_of(tracked)
        assert not points.log_posterior(torch.tensor([0]), torch.zeros(1, 1), GAMMAS).requires_grad


def test_same_seed_same_curve_and_progress() -> None:
    x, process, seen = torch.linspace(-1, 1, 5000)[:, None], schedule.linear(steps=100), []
    one, two = (
        curve(x, process, 4, 600, generator(7), progress=lambda done, total: seen.append((done, total)))
        for _ in range(2)
    )
    assert one.information.equal(two.information)
    assert seen[:3] == [(256, 600), (512, 600), (600, 600)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curve(LINE, schedule.linear(), timesteps=1), "timesteps.* at least 2"),
        (lambda: curve(LINE, schedule.log_snr_linear(), timesteps=None), "continuous time"),
        (lambda: curve(LINE, schedule.linear(), samples=1), "at least 2 draws"),
        (lambda: curve(LINE, schedule.linear(), samples=True), "at least 2 draws"),
        (lambda: curve(LINE[:0], schedule.linear()), "N ≥ 1"),
        (lambda: curve(LINE[0], schedule.linear()), "N ≥ 1"),
        (lambda: curve(torch.tensor([[1], [2]]), schedule.linear()), "int64"),
        (lambda: curve(float64([[1.0], [math.nan]]), schedule.linear()), "item 1 has a value that is not finite"),
        (lambda: curve(LINE, schedule.linear(), samples=10).lost(1.0), "between 0 and 1"),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        call()
