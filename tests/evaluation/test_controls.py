"""Controls against Bayes' rule, linear algebra and quadrature written plainly, and against draws of what they expect."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from battery import close, float64, generator, plain_alpha, plain_sigma, randn
from diffusional import Continuous, Discrete
from diffusional.errors import DiffusionalError
from diffusional.evaluation import controls
from diffusional.evaluation.controls import Control, Factorized, Wiener, fit_controls

# σ a thousandth of a bin's width, and up to pure noise.
GAMMAS = (-13.3, -9.0, -5.0, -1.0, 2.0, 6.0)
EPS = np.arange(-9, 9, 2e-3)
WEIGHTS = np.exp(-0.5 * EPS**2) * 2e-3 / math.sqrt(2 * math.pi)

every_gamma = pytest.mark.parametrize("gamma", GAMMAS)
every_space = pytest.mark.parametrize("levels", [2, 17, 256])


def factorized(levels: int, low: float = -1.0) -> Factorized:
    """Two positions: one with a random histogram, one with most levels all but missing."""
    probs = torch.rand(2, levels, generator=generator(levels), dtype=torch.float64) + 0.01
    probs[1, levels // 2 :] *= 1e-4
    return Factorized(Discrete((2,), levels, low), probs / probs.sum(1, keepdim=True))


def items(space: Discrete) -> Tensor:
    """The lowest and the highest level, and between."""
    k = space.levels - 1
    return space.encode(torch.tensor([[0, k], [k, 0], [k // 2, k // 2], [k // 3, (2 * k) // 3]]), torch.float64)


def bayes(world: Factorized, d: int, z: np.ndarray, gamma: float) -> np.ndarray:
    """ln p_d(k|z) (Z, K)."""
    values, probs = world.space.values.numpy(), world.probs[d].numpy()
    log = np.log(probs) - 0.5 * ((z[:, None] - plain_alpha(gamma) * values) / plain_sigma(gamma)) ** 2
    log -= log.max(1, keepdims=True)
    return log - np.log(np.exp(log).sum(1, keepdims=True))


def by_quadrature(world: Factorized, x: Tensor, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """E ‖x − x̂‖² and E −ln p(x|z) of every item, on a grid in ε 0.002 apart."""
    squares, decoding = np.zeros(len(x)), np.zeros(len(x))
    values = world.space.values.numpy()
    for i, d in np.ndindex(*x.shape):
        k = int(world.space.index(x)[i, d])
        log_probs = bayes(world, d, plain_alpha(gamma) * values[k] + plain_sigma(gamma) * EPS, gamma)
        squares[i] += WEIGHTS @ (values[k] - np.exp(log_probs) @ values) ** 2
        decoding[i] -= WEIGHTS @ log_probs[:, k]
    return squares, decoding


def unbiased(world: Control, x: Tensor, gamma: float, draws: int = 40_000) -> bool:
    """Whether draws of one item's squared error, and of its decoding, have the mean that is expected, to 4 standard errors."""
    g = torch.full((draws,), gamma, dtype=torch.float64)
    many = x[:1].expand(draws, -1)
    z = plain_alpha(gamma) * many + plain_sigma(gamma) * randn(*many.shape, seed=3)
    checks = [
        (world.squared_error(many, z, g), world.expected(x[:1], g[:1])),
        (world.decoding(many, z, g), world.expected_decoding(x[:1], g[0])),
    ]
    return all(
        abs(float(drawn.mean() - mean)) < 4 * float(drawn.std()) / draws**0.5 + 1e-12 * float(mean)
        for drawn, mean in checks
    )


# Every position on its own.


@every_gamma
@every_space
def test_the_factorized_denoiser_is_bayes_rule(levels: int, gamma: float) -> None:
    world = factorized(levels, low=0.0)
    x = items(world.space)
    z = plain_alpha(gamma) * x + plain_sigma(gamma) * randn(4, 2)
    log_probs = np.stack([bayes(world, d, z[:, d].numpy(), gamma) for d in range(2)], 1)  # (4, 2, K)
    wanted = ((x.numpy() - np.exp(log_probs) @ world.space.values.numpy()) ** 2).sum(1)
    g = torch.full((4,), gamma)
    close(world.squared_error(x, z, g.double()), wanted, rtol=1e-6, atol=1e-12)
    index = world.space.index(x).numpy()[:, :, None]
    chosen = np.take_along_axis(log_probs, index, 2).sum((1, 2))
    close(world.decoding(x, z, g.double()), -chosen, rtol=1e-6, atol=1e-9)


@every_gamma
@every_space
def test_what_the_factorized_world_expects_is_the_integral(levels: int, gamma: float) -> None:
    world = factorized(levels)
    x = items(world.space)
    squares, decoding = by_quadrature(world, x, gamma)
    # In nats: a cost is a share of SNR ‖x − x̂‖².
    snr = math.exp(-gamma)
    g = torch.full((4,), gamma, dtype=torch.float64)
    close(snr * world.expected(x, g), snr * squares, rtol=1e-6, atol=1e-5)
    close(world.expected_decoding(x, g[0]), decoding, rtol=1e-6, atol=1e-6)


# Not where nearly all draws are right: at low noise the mean is made by a few.
@pytest.mark.parametrize(
    ("levels", "gamma"), [(2, 0.0), (2, 2.0), (17, -5.0), (17, -1.0), (17, 4.0), (256, -10.0), (256, -3.0)]
)
def test_draws_of_the_factorized_world_have_the_expected_mean(levels: int, gamma: float) -> None:
    world = factorized(levels)
    assert unbiased(world, items(world.space)[2:], gamma, draws=20_000)


@pytest.mark.parametrize("table", ["_table", "expected_decoding"])
def test_an_expectation_wrong_by_one_percent_shows(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = factorized(17)
    x = items(world.space)[2:]
    assert unbiased(world, x, 1.0, draws=200_000)
    right = getattr(world, table)
    monkeypatch.setattr(world, "_tables", {})
    monkeypatch.setattr(world, table, lambda *arguments: 1.01 * right(*arguments))
    assert not unbiased(world, x, 1.0, draws=200_000)


def test_each_item_has_its_own_gamma() -> None:
    world = factorized(17)
    x = items(world.space)
    g = float64([2.0, -5.0, 2.0, 0.3])
    close(world.expected(x, g), torch.cat([world.expected(x[i : i + 1], g[i : i + 1]) for i in range(4)]))


@pytest.mark.parametrize(
    ("levels", "low", "forced"),
    [
        (2, -3.0, ("_KEPT", 30)),
        (17, -9.0, ("_KEPT", 30)),
        (17, -6.0, ("_LARGE", 0)),
        (17, 0.0, ("_KEPT", 30)),
        (256, -9.0, ("_KEPT", 30)),
    ],
)
def test_interpolated_tables_agree_with_exact_ones(
    levels: int, low: float, forced: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = factorized(levels)
    g = low + torch.rand(60, generator=generator(1), dtype=torch.float64)
    x, snr = items(world.space), torch.exp(-g)
    weight = torch.rand(3, 60, generator=generator(2), dtype=torch.float64) * snr / 60
    weight[1, 10:50] = 0
    exact, totals = torch.stack([world.expected(one.expand(60, -1), g) for one in x]), world.totals(x, g, weight)
    close(totals, exact @ weight.T)
    monkeypatch.setattr(controls, *forced)
    world._tables.clear()
    assert (
        20 <= len(controls._knots(g, large=forced[0] == "_LARGE")) <= 24
    )  # a twentieth apart: far fewer than 60 tables
    mixed = torch.stack([world.expected(one.expand(60, -1), g) for one in x])
    assert not torch.equal(mixed, exact)
    # Where a rare level comes within reach of the noise, a cost changes fastest: there 1e-4 of a nat.
    close(snr * mixed, snr * exact, rtol=1e-5, atol=2e-4)
    close(world.totals(x, g, weight), totals, rtol=1e-5, atol=1e-5)
    # What is interpolated for each is what is interpolated for all.
    close(world.totals(x, g, weight), mixed @ weight.T, rtol=1e-9, atol=1e-12)


def test_a_total_takes_what_has_a_weight() -> None:
    world, g = factorized(17), float64([-3.0, 0.0, 3.0])
    x = items(world.space)
    weight = float64([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    close(world.totals(x, g, weight)[:, 0], 2 * world.expected(x, g[1:2].expand(4)))
    close(world.totals(x, g, weight)[:, 1], torch.zeros(4))


@pytest.mark.parametrize(("levels", "gamma"), [(2, 0.0), (17, -7.0), (17, -3.0), (17, 4.0), (256, -9.0)])
def test_the_factorized_variance_is_the_integral(levels: int, gamma: float) -> None:
    world = factorized(levels)
    x, values = items(world.space), world.space.values.numpy()
    total, snr = 0.0, math.exp(-gamma)
    for i, d in np.ndindex(*x.shape):
        k = int(world.space.index(x)[i, d])
        log_probs = bayes(world, d, plain_alpha(gamma) * values[k] + plain_sigma(gamma) * EPS, gamma)
        squares = (values[k] - np.exp(log_probs) @ values) ** 2
        total += (WEIGHTS @ squares**2 - (WEIGHTS @ squares) ** 2) / len(x)
    close(snr**2 * world.variance(x, float64([gamma])), [snr**2 * total], rtol=1e-5, atol=1e-5)


def test_the_wiener_variance_is_that_of_its_draws() -> None:
    world, x = wiener(), randn(3, 4, seed=5)
    g = float64([-4.0, 0.0, 3.0])
    for gamma, found in zip(g.tolist(), world.variance(x, g).tolist(), strict=True):
        many = x.repeat(40_000, 1)
        z = plain_alpha(gamma) * many + plain_sigma(gamma) * randn(*many.shape, seed=6)
        drawn = world.squared_error(many, z, torch.full((len(many),), gamma, dtype=torch.float64)).view(-1, 3)
        # Squares of normals have a kurtosis of 15 at the most: √(14/40,000) = 1.9 %, less for a mean of three.
        assert found == pytest.approx(float(drawn.var(0).mean()), rel=0.06)


def test_images_are_seen_position_by_position() -> None:
    flat = Discrete((6,), 5)
    probs = torch.rand(6, 5, generator=generator(0)).double().add(0.1)
    probs = probs / probs.sum(1, keepdim=True)
    raw = torch.randint(0, 5, (3, 6), generator=generator(1))
    x, noise, g = flat.encode(raw, torch.float64), randn(3, 6), float64([-2.0, 0.0, 1.0])
    z = plain_alpha(g)[:, None] * x + plain_sigma(g)[:, None] * noise
    image = Discrete((1, 2, 3), 5)
    x3, z3 = x.reshape(3, 1, 2, 3), z.reshape(3, 1, 2, 3)
    one, other = Factorized(flat, probs), Factorized(image, probs)
    close(other.squared_error(x3, z3, g), one.squared_error(x, z, g))
    close(other.decoding(x3, z3, g), one.decoding(x, z, g))
    close(other.expected(x3, g), one.expected(x, g))
    close(other.expected_decoding(x3, g[0]), one.expected_decoding(x, g[0]))


def test_histograms_are_the_counts_smoothed() -> None:
    space = Discrete((2,), 3)
    raw = torch.tensor([[0, 2], [0, 1], [1, 2], [0, 2]])
    counts = np.array([[3, 1, 0], [0, 1, 3]])
    close(Factorized.fit(space.encode(raw), space).probs, (counts + 0.1) / (4 + 0.3), rtol=1e-12)


@pytest.mark.parametrize("probs", [torch.ones(2, 3) / 3, torch.tensor([[0.5, 0.5, 0.0]]), torch.ones(1, 3)])
def test_histograms_that_make_no_sense_are_refused(probs: Tensor) -> None:
    with pytest.raises(DiffusionalError, match=r"histograms of shape .* came; give positive ones of shape \(1, 3\)"):
        Factorized(Discrete((1,), 3), probs)


# The linear one.


def covariance() -> tuple[np.ndarray, np.ndarray]:
    root = np.random.default_rng(0).normal(size=(4, 4)) * np.array([1.0, 0.3, 2.0, 0.05])
    return np.array([0.5, -1.0, 0.0, 2.0]), root @ root.T


def wiener() -> Wiener:
    mean, c = covariance()
    return Wiener(torch.tensor(mean), *torch.linalg.eigh(torch.tensor(c)))


@every_gamma
def test_the_wiener_filter_is_linear_algebra(gamma: float) -> None:
    mean, c = covariance()
    a, s2 = plain_alpha(gamma), plain_sigma(gamma) ** 2
    gain = a * c @ np.linalg.inv(a**2 * c + s2 * np.eye(4))
    x, noise = randn(5, 4, seed=1).numpy(), randn(5, 4, seed=2).numpy()
    z = a * x + s2**0.5 * noise
    wanted = ((x - mean - (z - a * mean) @ gain.T) ** 2).sum(1)
    g = torch.full((5,), gamma, dtype=torch.float64)
    world = wiener()
    close(world.squared_error(float64(x), float64(z), g), wanted, rtol=1e-7)
    close(world.decoding(float64(x), float64(z), g), wanted / (2 * math.exp(gamma)), rtol=1e-7)
    expected = (((x - mean) @ (np.eye(4) - a * gain).T) ** 2).sum(1) + s2 * np.trace(gain.T @ gain)
    close(world.expected(float64(x), g), expected, rtol=1e-7)
    close(world.expected_decoding(float64(x), g[0]), expected / (2 * math.exp(gamma)), rtol=1e-7)


@every_gamma
def test_draws_of_the_wiener_world_have_the_expected_mean(gamma: float) -> None:
    assert unbiased(wiener(), randn(1, 4, seed=5), gamma)


def test_an_eigenvalue_wrong_by_one_percent_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    world, right = wiener(), Wiener._spectrum
    monkeypatch.setattr(Wiener, "_spectrum", lambda self, g: tuple(1.01 * part for part in right(self, g)))
    assert not unbiased(world, randn(1, 4, seed=5), 1.0, draws=200_000)


def test_the_wiener_totals_are_the_weighted_sums() -> None:
    g, weight = float64([-4.0, 0.0, 1.0]), torch.rand(2, 3, dtype=torch.float64, generator=generator(0))
    x = randn(5, 4)
    by_hand = sum(weight[:, i] * wiener().expected(x, g[i : i + 1].expand(5))[:, None] for i in range(3))
    close(wiener().totals(x, g, weight), by_hand)


def test_the_wiener_fit_is_the_mean_and_the_covariance() -> None:
    x = randn(50, 2, 2) @ float64([[1.0, 0.4], [0.0, 0.2]]) + 3
    world, flat = Wiener.fit(x), x.flatten(1).numpy()
    v = world.eigenvectors.numpy()
    close(world.mean, flat.mean(0))
    close(float64(v * world.eigenvalues.numpy() @ v.T), np.cov(flat.T, bias=True), rtol=1e-9)


def test_what_never_varies_is_known_all_but_exactly() -> None:
    world = Wiener.fit(torch.cat([randn(50, 1), torch.ones(50, 1)], 1))
    assert bool((world.eigenvalues > 0).all())
    x = float64([[0.0, 1.0]])
    # What is left of the second position is 1e-6 of the first one's variance, at the most.
    error = world.expected(x, torch.zeros(1)) - Wiener.fit(randn(50, 1)).expected(x[:, :1], torch.zeros(1))
    assert 0 <= float(error) < 2e-6
    # Items that are all the same have a covariance of nothing.
    assert bool(torch.isfinite(Wiener.fit(torch.ones(3, 2)).expected(torch.ones(1, 2), torch.full((1,), -13.3))).all())


# Both.


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DiffusionalError, match="control 'kalman' came; expected one of factorized, wiener"):
        fit_controls(("wiener", "kalman"), torch.ones(2, 2), Discrete((2,), 2))


def test_reals_have_no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("factorized", "wiener")
    assert [c.name for c in fit_controls(names, randn(5, 2), Continuous((2,)))] == ["wiener"]
    assert [c.name for c in fit_controls(names[::-1], torch.ones(5, 2), Discrete((2,), 2))] == ["wiener", "factorized"]
    # Nor is the covariance of 200,000 pixels decomposed.
    monkeypatch.setattr(controls, "WIENER_DIMENSIONS", 1)
    assert fit_controls(names, randn(5, 2), Continuous((2,))) == []


@pytest.mark.parametrize("name", ["factorized", "wiener"])
def test_the_state_comes_back_to_the_last_bit(name: str) -> None:
    space = Discrete((40,), 17)
    x = space.encode(torch.randint(0, 17, (33, 40), generator=generator(0)))
    (world,) = fit_controls((name,), x, space)
    again = controls.KINDS[name].from_state(space, world.state())
    assert again.state().keys() == world.state().keys()
    for key, value in world.state().items():
        assert torch.equal(again.state()[key], value)
    assert torch.equal(again.expected(x, torch.zeros(33)), world.expected(x, torch.zeros(33)))
