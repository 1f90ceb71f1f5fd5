"""Controls against linear algebra, Bayes' rule, loops and quadrature written plainly, and against draws of what they expect."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import diffusional as df
from battery import close, float64, generator, plain_alpha, plain_sigma, randn
from diffusional import Continuous, Discrete, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import wiener as wiener_module
from diffusional.evaluation.control import Control, Look, Own, columns
from diffusional.evaluation.controls import NAMES, fit_controls, restored
from diffusional.evaluation.histogram import Histogram
from diffusional.evaluation.interpolated import hat_weights
from diffusional.evaluation.moments import Moments
from diffusional.evaluation.wiener import Wiener, cosines

# σ a thousandth of a bin's width, and up to pure noise.
GAMMAS = (-13.3, -9.0, -5.0, -1.0, 2.0, 6.0)

every_gamma = pytest.mark.parametrize("gamma", GAMMAS)


def look(x: Tensor, noise: Tensor, gamma: float | Tensor, first: bool = False) -> Look:
    g = gamma if isinstance(gamma, Tensor) else torch.full((len(x),), gamma, dtype=torch.float64)
    return Look(x, noise, g, torch.ones(len(x), dtype=torch.long), torch.full((len(x),), first))


def items(space: Discrete, n: int = 6, seed: int = 0) -> Tensor:
    """Items whose outermost levels are common, in float64."""
    raw = torch.randint(-2, space.levels + 2, (n, *space.shape), generator=generator(seed)).clamp(0, space.levels - 1)
    return space.encode(raw, torch.float64)


def biases(control: Control, x: Tensor, gamma: float, draws: int = 40_000) -> Tensor:
    """The means (F,) of the functions of the noise over draws at one item, in standard errors."""
    many = x[:1].expand(draws, *x.shape[1:])
    drawn = control.at(look(many, randn(*many.shape, seed=3), gamma))[1]
    return drawn.mean(0) / (drawn.std(0) / draws**0.5).clamp(min=1e-300)


# Wiener's filter.


def covariance() -> tuple[np.ndarray, np.ndarray]:
    root = np.random.default_rng(0).normal(size=(4, 4)) * np.array([1.0, 0.3, 2.0, 0.05])
    return np.array([0.5, -1.0, 0.0, 2.0]), root @ root.T


def wiener() -> Wiener:
    mean, c = covariance()
    return Wiener(torch.tensor(mean), *torch.linalg.eigh(torch.tensor(c)))


def check_linear_algebra(world: Wiener, mean: np.ndarray, c: np.ndarray, shape: tuple[int, ...], gamma: float) -> None:
    """The squared error of the noise under the best linear denoiser of N(mean, c), and its expectation."""
    d = len(mean)
    a, s2 = plain_alpha(gamma), plain_sigma(gamma) ** 2
    gain = a * c @ np.linalg.inv(a**2 * c + s2 * np.eye(d))
    x, noise = randn(5, d, seed=1).numpy(), randn(5, d, seed=2).numpy()
    z = a * x + s2**0.5 * noise
    guess = mean + (z - a * mean) @ gain.T
    wanted = ((noise - (z - a * guess) / s2**0.5) ** 2).sum(1)
    bias = (x - mean) @ (np.eye(d) - a * gain).T
    known = a**2 / s2 * ((bias**2).sum(1) + s2 * np.trace(gain.T @ gain))
    expected, drawn = world.at(look(float64(x).view(5, *shape), float64(noise).view(5, *shape), gamma))
    close(expected[:, 0], known, rtol=1e-7)
    close((expected + drawn)[:, 0], wanted, rtol=1e-6)


@every_gamma
def test_the_wiener_filter_is_linear_algebra(gamma: float) -> None:
    check_linear_algebra(wiener(), *covariance(), (4,), gamma)


@every_gamma
def test_images_have_a_covariance_of_cosines_and_channels(gamma: float) -> None:
    shape = (2, 3, 4)
    channels = torch.linalg.eigh(torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()).eigenvectors
    power = 0.05 + torch.rand(24, generator=generator(0), dtype=torch.float64)
    world = Wiener(randn(24, seed=7).double(), power, channels, shape)
    # Scipy's transform, a column for each frequency.
    row = [
        [math.cos(math.pi / n * (j + 0.5) * k) * math.sqrt((1 + (k > 0)) / n) for j in range(n)]
        for n in (3, 4)
        for k in range(n)
    ]
    rows, cols = np.array(row[:3]), np.array(row[3:])
    basis = np.kron(channels.T.numpy(), np.kron(rows, cols))  # one eigenvector a row
    check_linear_algebra(world, world.mean.numpy(), basis.T @ np.diag(power.numpy()) @ basis, shape, gamma)


@every_gamma
def test_a_low_rank_has_one_variance_outside_its_span(gamma: float) -> None:
    vectors = torch.linalg.qr(randn(6, 2, seed=4).double()).Q
    world = Wiener(randn(6, seed=7).double(), float64([0.5, 2.0, 0.1]), vectors)
    v = vectors.numpy()
    c = v @ np.diag([0.5, 2.0]) @ v.T + 0.1 * (np.eye(6) - v @ v.T)
    check_linear_algebra(world, world.mean.numpy(), c, (6,), gamma)


@every_gamma
def test_draws_of_the_wiener_world_have_the_expected_mean(gamma: float) -> None:
    assert abs(float(biases(wiener(), randn(1, 4, seed=5).double(), gamma))) < 4


@pytest.mark.parametrize("kind", ["dense", "images", "low rank"])
def test_the_wiener_variance_is_that_of_its_draws(kind: str) -> None:
    if kind == "dense":
        world, shape = wiener(), (4,)
    elif kind == "images":
        world, shape = Wiener(torch.zeros(6), 0.1 + torch.rand(6).double(), torch.eye(1), (1, 2, 3)), (1, 2, 3)
    else:
        vectors = torch.linalg.qr(randn(6, 2, seed=4).double()).Q
        world, shape = Wiener(torch.zeros(6), float64([0.5, 2.0, 0.1]), vectors), (6,)
    x, g = randn(3, *shape, seed=5).double(), float64([-4.0, 0.0, 3.0])
    for gamma, found in zip(g.tolist(), world.variance(x, g)[:, 0].tolist(), strict=True):
        many = x.repeat(40_000, *(1 for _ in shape))
        drawn = world.at(look(many, randn(*many.shape, seed=6).double(), gamma))[1].view(-1, 3)
        # Squares of normals have a kurtosis of 15 at the most: √(14/40,000) = 1.9 %, less for a mean of three.
        assert found == pytest.approx(float(drawn.var(0).mean()), rel=0.06)


def test_the_totals_are_the_weighted_sums() -> None:
    g, weight = float64([-4.0, 0.0, 1.0]), torch.rand(2, 3, dtype=torch.float64, generator=generator(0))
    space = Discrete((1, 3, 3), 17)
    x = items(space)
    for control in (Wiener.fit(x, space), Histogram.fit(x, space), Moments(space)):
        each = torch.stack([control.at(look(x, torch.zeros_like(x), float(one)))[0] for one in g], 1)  # (B, L, E)
        close(control.totals(x, g, weight), torch.einsum("ml,ble->bme", weight, each), rtol=1e-9)


def test_the_wiener_fit_is_the_mean_and_the_covariance() -> None:
    x = randn(50, 2, 2) @ float64([[1.0, 0.4], [0.0, 0.2]]) + 3
    world, flat = Wiener.fit(x, Continuous((2, 2))), x.flatten(1).numpy()
    v = world.vectors.numpy()
    close(world.mean, flat.mean(0))
    close(float64(v * world.eigenvalues.numpy() @ v.T), np.cov(flat.T, bias=True), rtol=1e-9)


def test_the_wiener_fit_of_large_images_finds_their_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiener_module, "DENSE", 4)
    monkeypatch.setattr(wiener_module, "_LENT", 0.0)
    power = 0.1 + torch.rand(8, generator=generator(0), dtype=torch.float64)
    space = Continuous((2, 2, 2))
    source = Wiener(torch.zeros(8), power, torch.eye(2), space.shape)
    matrix = torch.kron(torch.eye(2).double(), torch.kron(cosines(2), cosines(2)))
    x = ((randn(40_000, 8, seed=1).double() * power.sqrt()) @ matrix).view(-1, *space.shape)
    world = Wiener.fit(x, space)
    assert world.shape == space.shape
    # Two spectra of the channels, in the order of their variances; 4 errors of a variance of 40,000 draws.
    order = torch.stack([power[:4].sum(), power[4:].sum()]).argsort()
    close(world.eigenvalues.view(2, 4), source.eigenvalues.view(2, 4)[order], rtol=4 * math.sqrt(2 / 40_000))
    # Few items lend to one another.
    few = Wiener.fit(x[:16], space).eigenvalues.view(2, 4)
    monkeypatch.setattr(wiener_module, "_LENT", 8.0)
    lent = Wiener.fit(x[:16], space).eigenvalues.view(2, 4)
    close(lent, (16 * few + 8 * few.mean(1, keepdim=True)) / 24)


def test_the_wiener_fit_of_long_vectors_has_the_span_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiener_module, "DENSE", 4)
    x = randn(9, 12, seed=2).double()
    world = Wiener.fit(x, Continuous((12,)))
    assert world.vectors.shape == (12, 8)
    close(world.vectors.T @ world.vectors, torch.eye(8), atol=1e-12)
    # Ledoit and Wolf's covariance: the same as of short vectors.
    monkeypatch.setattr(wiener_module, "DENSE", 1024)
    dense = Wiener.fit(x, Continuous((12,)))
    for gamma in (-3.0, 0.0, 3.0):
        a, b = (w.at(look(x, randn(9, 12, seed=3).double(), gamma)) for w in (world, dense))
        close(a[0], b[0], rtol=1e-8)
        close(a[1], b[1], rtol=1e-8, atol=1e-9)


def test_what_never_varies_is_known_all_but_exactly() -> None:
    space = Continuous((2,))
    world = Wiener.fit(torch.cat([randn(50, 1), torch.ones(50, 1)], 1), space)
    assert bool((world.eigenvalues > 0).all())
    x, nothing = float64([[0.0, 1.0]]), torch.zeros(1, 2).double()
    # What is left of the second position is 1e-6 of the first one's variance, at the most.
    first = Wiener.fit(randn(50, 1), Continuous((1,))).at(look(x[:, :1], nothing[:, :1], 0.0))[0]
    assert 0 <= float(world.at(look(x, nothing, 0.0))[0] - first) < 2e-6
    # Items that are all the same have a covariance of nothing.
    same = Wiener.fit(torch.ones(3, 2), space)
    assert bool(torch.isfinite(same.at(look(torch.ones(1, 2).double(), nothing, -13.3))[0]).all())


# Independent positions, by tables.


def histogram(levels: int, low: float = -1.0, shape: tuple[int, ...] = (2,)) -> Histogram:
    """Two groups of positions: one with a random histogram, one with most levels all but missing."""
    probs = torch.rand(2, levels, generator=generator(levels), dtype=torch.float64) + 0.01
    probs[1, levels // 2 :] *= 1e-4
    group = torch.arange(math.prod(shape)) % 2
    return Histogram(Discrete(shape, levels, low), probs / probs.sum(1, keepdim=True), group)


def bayes_error(world: Histogram, m: int, k: int, eps: np.ndarray, gamma: float) -> np.ndarray:
    """(α²/σ²) (x_k − E[x|z])² at z = α x_k + σ ε for the histogram m."""
    values, probs = world.space.values.double().numpy(), world.probs[m].numpy()
    a, s = plain_alpha(gamma), plain_sigma(gamma)
    log = np.log(probs) - 0.5 * (((a * values[k] + s * eps)[:, None] - a * values) / s) ** 2
    odds = np.exp(log - log.max(1, keepdims=True))
    return a**2 / s**2 * (values[k] - odds @ values / odds.sum(1)) ** 2


@pytest.mark.parametrize(
    ("levels", "gamma"), [(2, 0.0), (2, 2.0), (17, -5.0), (17, -1.0), (17, 4.0), (256, -9.0), (256, -3.0)]
)
def test_a_table_follows_bayes_rule(levels: int, gamma: float) -> None:
    """At its nodes, to what interpolation in z leaves."""
    world = histogram(levels, low=0.0)
    table, _ = world._tables_at(gamma, False)
    for m, k in product(range(2), (0, levels // 3, levels - 1)):
        wanted = bayes_error(world, m, k, world.nodes.numpy(), gamma)
        close(table[m * levels + k], wanted, rtol=0.03, atol=0.01 * (1e-3 + float(wanted.max())))


@pytest.mark.parametrize(("levels", "gamma"), [(2, 0.6), (17, -5.1), (17, 4.0), (256, -9.0)])
def test_the_expectation_of_a_table_is_its_integral(levels: int, gamma: float) -> None:
    world = histogram(levels)
    x = items(world.space)
    table, _ = world._tables_at(round(4 * gamma) / 4, False)
    index, nodes = world.space.index(x), world.nodes.numpy()
    noise = randn(6, 2, seed=2).double() * 3
    expected, drawn = world.at(look(x, noise, gamma))
    for i in range(6):
        lines = [table[d * levels + int(index[i, d])].numpy() for d in range(2)]
        # np.interp is constant beyond the ends, as the control is.
        value = sum(np.interp(float(noise[i, d]), nodes, lines[d]) for d in range(2))
        mean = 0.0
        for line in lines:
            pieces = [integrate.quad(lambda e, y=line: np.interp(e, nodes, y) * stats.norm.pdf(e), *ends)[0]
                      for ends in [(-9, -6), *pairwise(nodes), (6, 9)]]  # fmt: skip
            mean += math.fsum(pieces)
        assert float(expected[i, 0]) == pytest.approx(mean, rel=1e-10, abs=1e-12)
        assert float((expected + drawn)[i, 0]) == pytest.approx(value, rel=1e-10, abs=1e-12)


def test_hat_weights_integrate_what_is_linear_between_the_nodes() -> None:
    nodes = float64([-2.0, -0.5, 0.1, 3.0])
    weights = hat_weights(nodes)
    for j in range(4):
        hat = [float(k == j) for k in range(4)]
        value = integrate.quad(
            lambda e, y=hat: np.interp(e, nodes.numpy(), y) * stats.norm.pdf(e), -9, 9, points=nodes.tolist(), limit=200
        )[0]
        assert float(weights[j]) == pytest.approx(value, abs=1e-10)


def test_each_item_has_its_own_gamma() -> None:
    world = histogram(17)
    x, noise, g = items(world.space, 4), randn(4, 2).double(), float64([2.0, -5.0, 2.0, 0.3])
    for part, whole in enumerate(world.at(look(x, noise, g))):
        close(whole, torch.cat([world.at(look(x[i : i + 1], noise[i : i + 1], g[i : i + 1]))[part] for i in range(4)]))


def test_the_variance_of_a_table_is_that_of_its_draws() -> None:
    world = histogram(17)
    x, g = items(world.space), float64([-5.0, -3.0, 1.0])
    for gamma, found in zip(g.tolist(), world.variance(x, g)[:, 0].tolist(), strict=True):
        many = x.repeat(20_000, 1)
        drawn = world.at(look(many, randn(*many.shape, seed=6).double(), gamma))[1].view(-1, 6)
        assert found == pytest.approx(float(drawn.var(0).mean()), rel=0.1)


@pytest.mark.parametrize("gamma", [-5.03, -1.0])
def test_the_reconstruction_has_the_log_loss(gamma: float) -> None:
    """2 (−ln p(k|z)) at γ_1 itself, with its expectation and its variance."""
    world, levels = histogram(17), 17
    x = items(world.space)
    table, mean = world._tables_at(gamma, True)
    values, a, s = world.space.values.double().numpy(), plain_alpha(gamma), plain_sigma(gamma)
    for m, k in product(range(2), (0, 5, 16)):
        log = np.log(world.probs[m].numpy()) + stats.norm.logpdf(
            (a * values[k] + s * world.nodes.numpy())[:, None], a * values, s
        )
        wanted = -2 * (log[:, k] - np.log(np.exp(log - log.max(1, keepdims=True)).sum(1)) - log.max(1))
        close(table[m * levels + k], wanted, rtol=0.03, atol=0.03)
    noise = randn(6, 2, seed=2).double()
    expected, drawn = world.at(look(x, noise, gamma, first=True))
    rows = world.space.index(x) + world.group * levels
    close(expected[:, 0], mean[rows].sum(1))
    lines = [
        sum(np.interp(float(noise[i, d]), world.nodes.numpy(), table[rows[i, d]].numpy()) for d in range(2))
        for i in range(6)
    ]
    close((expected + drawn)[:, 0], lines, rtol=1e-9, atol=1e-9)
    close(world.totals(x, float64([gamma]), float64([[0.5]]), first=True)[:, 0, 0], 0.5 * expected[:, 0])
    many = x.repeat(20_000, 1)
    draws = world.at(look(many, randn(*many.shape, seed=6).double(), gamma, first=True))[1].view(-1, 6)
    assert float(world.variance(x, float64([gamma]), first=True)) == pytest.approx(float(draws.var(0).mean()), rel=0.1)


def test_noise_that_never_confuses_levels_has_no_cost() -> None:
    world = histogram(2)
    expected, drawn = world.at(look(items(world.space), 4 * randn(6, 2).double(), -13.3))
    assert float(expected.abs().max()) == float(drawn.abs().max()) == 0


def test_positions_share_the_histograms_of_those_with_like_means() -> None:
    space = Discrete((1, 2, 4), 3)
    raw = torch.tensor([0, 0, 2, 2, 1, 1, 2, 0]).view(1, 1, 2, 4).repeat(5, 1, 1, 1)
    world = Histogram.fit(space.encode(raw), space)
    assert torch.bincount(world.group).tolist() == [2, 2, 2, 2]
    counts = torch.nn.functional.one_hot(raw[0].flatten(), 3).double() * 5
    smoothed = (counts + 0.1) / (5 + 0.3)
    for m in range(4):
        close(world.probs[m], smoothed[world.group == m].mean(0), rtol=1e-9)
    means = (world.probs @ space.values.double()).tolist()
    assert means == sorted(means)


# Moments of the noise.


def moments_by_hand(space: Discrete, x: np.ndarray, noise: np.ndarray, gamma: float) -> tuple[list[float], list[float]]:
    """The functions of one image (C, H, W) by loops."""
    channels, rows, cols = x.shape
    h = 0.5 * space.width * plain_alpha(gamma) / plain_sigma(gamma)
    tail = stats.norm.sf(h)
    square = integrate.quad(lambda e: (e - h) ** 2 * stats.norm.pdf(e), h, h + 12)[0]
    e, f = np.zeros(2), np.zeros(9)
    for c, i, j in product(range(channels), range(rows), range(cols)):
        near = [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < rows and 0 <= b < cols]
        around = np.array([x[c, a, b] for a, b in near])
        others = sum(noise[c, a, b] for a, b in near if (a, b) != (i, j)) / 8
        eps, inner = noise[c, i, j], float(space.low < x[c, i, j] < space.high)
        deviation, difference = around.std(), x[c, i, j] - around.mean()
        e += [inner, inner * deviation]
        inwards = eps if x[c, i, j] == space.low else -eps
        f += [
            eps**2 - 1,
            inner * (eps**2 - 1),
            inner * deviation * (eps**2 - 1),
            inner * deviation * eps * others,
            difference * eps,
            (1 - inner) * ((inwards > h) - tail),
            (1 - inner) * (max(inwards - h, 0) ** 2 - square),
            inner * ((abs(eps) > h) - 2 * tail),
            inner * (max(abs(eps) - h, 0) ** 2 - 2 * square),
        ]  # fmt: skip
    return e.tolist(), f.tolist()


@pytest.mark.parametrize("gamma", [-7.0, -4.0, 1.0])
def test_the_moments_of_an_image_are_the_loops(gamma: float) -> None:
    space = Discrete((2, 3, 4), 9)
    x, noise = items(space, 5), randn(5, 2, 3, 4, seed=1).double()
    expected, drawn = Moments(space).at(look(x, noise, gamma))
    for i in range(5):
        by_item, by_noise = moments_by_hand(space, x[i].numpy(), noise[i].numpy(), gamma)
        close(expected[i], by_item, rtol=1e-9)
        close(drawn[i], by_noise, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "space",
    [
        Discrete((1, 3, 3), 17),
        Discrete((1, 3, 3), 2),
        Discrete((5,), 17),
        Discrete((2, 4), 3, 0.0),
        Continuous((1, 4, 4)),
        Continuous((3,)),
    ],
    ids=str,
)
def test_every_moment_has_mean_zero(space: Continuous | Discrete) -> None:
    x = items(space) if isinstance(space, Discrete) else randn(2, *space.shape).double()
    moments = Moments(space)
    found = [biases(moments, x, gamma) for gamma in (-2.0, 0.0)]
    assert all(len(means) == len(moments.draws) for means in found)
    assert float(torch.stack(found).abs().max()) < 4.5


def test_the_variances_of_exceedances_are_those_of_draws() -> None:
    space = Discrete((1, 3, 3), 17)
    x, moments = items(space), Moments(space)
    for gamma in (-3.0, -5.0):
        many = x.repeat(20_000, 1, 1, 1)
        drawn = moments.at(look(many, randn(*many.shape, seed=6).double(), gamma))[1].view(20_000, 6, -1).var(0).mean(0)
        known = moments.variance(x, float64([gamma]))[0]
        assert known[:5].tolist() == [0.0] * 5
        close(known[5:], drawn[5:], rtol=0.1)


def test_float32_items_have_the_moments_of_their_values() -> None:
    space = Discrete((1, 4, 4), 256)
    x, noise = items(space), randn(6, 1, 4, 4, seed=1)
    for short, long in zip(
        Moments(space).at(look(x.float(), noise.float(), -6.0)),
        Moments(space).at(look(x, noise.double(), -6.0)),
        strict=True,
    ):
        close(short, long, rtol=1e-4, atol=1e-4)


def test_flips_of_bits_have_the_mean_that_is_subtracted() -> None:
    model = df.BinomialDiffusionModel(
        df.BinomialDiffusion.constant(20), lambda z, log_snr: 0 * z, df.space.binary((5,))
    )
    x = torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0]]).expand(40_000, 5)
    own = Own(model)
    for t in (1, 7, 20):
        latent, noise = torch.full((40_000,), t), randn(40_000, 5, seed=t)
        drawn = own.at(Look(x, noise, None, latent, latent == 0))[1]
        flipped = (model.noisy(x, latent, noise) != x).double()
        rate = 0.5 * t / 20  # ᾱ_t = 1 − t/T
        close(drawn, torch.stack([flipped.sum(1) - 5 * rate, (flipped * (x > 0)).sum(1) - 3 * rate], 1), atol=1e-9)
        assert float((drawn.mean(0) / drawn.std(0) * 200).abs().max()) < 4


# All of them.


def model_of(space: Continuous | Discrete) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=20))
    decoder = likelihood.LevelPosterior(space) if isinstance(space, Discrete) else likelihood.GaussianLikelihood(space)
    return df.DiffusionModel(forward, df.Denoiser(lambda z, log_snr: 0 * z), decoder)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DiffusionalError, match=r"wiener, histogram, moments, own.*'kalman'"):
        fit_controls(("wiener", "kalman"), model_of(Discrete((2,), 2)), torch.ones(2, 2))


def test_a_chain_has_the_controls_that_fit_it() -> None:
    def names(chain: df.Chain, x: Tensor) -> list[str]:
        return [control.name for control in fit_controls(NAMES, chain, x)]

    assert names(model_of(Continuous((2,))), randn(5, 2)) == ["wiener", "moments"]
    assert names(model_of(Discrete((2,), 2)), torch.ones(5, 2)) == ["wiener", "histogram", "moments"]
    # Tables of 65,536 levels would be large.
    assert names(model_of(Discrete((2,), 65_536)), torch.ones(5, 2)) == ["wiener", "moments"]
    binomial = df.BinomialDiffusionModel(
        df.BinomialDiffusion.constant(5), lambda z, log_snr: 0 * z, df.space.binary((2,))
    )
    assert names(binomial, torch.ones(5, 2)) == ["own"]


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("shape", [(40,), (1, 5, 8)])
def test_the_state_comes_back_to_the_last_bit(name: str, shape: tuple[int, ...]) -> None:
    space = Discrete(shape, 17)
    x = items(space, 33).float()
    chain = model_of(space)
    (world,) = fit_controls((name,), chain, x)
    again = restored(name, chain, world.state())
    assert again.state().keys() == world.state().keys()
    for key, value in world.state().items():
        assert torch.equal(again.state()[key], value)
    noise = randn(33, *shape)
    for before, after in zip(world.at(look(x, noise, 0.0)), again.at(look(x, noise, 0.0)), strict=True):
        assert torch.equal(before, after)


def test_columns_of_some_controls() -> None:
    space = Discrete((1, 4, 4), 17)
    every = fit_controls(NAMES, model_of(space), items(space).float())
    assert [len(c.expects) for c in every] == [1, 1, 2]
    assert [len(c.draws) for c in every] == [1, 1, 9]
    assert columns(every, [0, 2]) == ([0, 2, 3], [0, *range(2, 11)])
