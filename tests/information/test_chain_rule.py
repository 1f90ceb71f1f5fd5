"""The chain rules, forward and backward: MATH (11)–(14) in closed form, and on points against quadrature."""

import math

import numpy as np
import pytest
import torch

from battery import BETAS, F64, close, float64, generator, plain_alpha, plain_posterior, plain_sigma
from diffusional import DiffusionalError, exact, schedule
from diffusional.forward import GaussianDiffusion, NonMarkovDiffusion
from diffusional.information import ChainRule, Estimates, chain_rule

SCHEDULE = schedule.from_betas(BETAS)
GAMMA = SCHEDULE.grid().numpy()
T = len(BETAS)
MARKOV = GaussianDiffusion(SCHEDULE)
FACTOR = float64([[0.9, 0.0], [0.5, 0.4]])
WORLD = exact.Gaussian(float64([0.7, -0.3]), FACTOR @ FACTOR.T)
POINTS = float64([[-1.0, 0.2], [0.4, 1.0], [0.9, -0.8], [0.9, -0.8]])


def covariance(eta: float, variance: float) -> np.ndarray:
    """Cov(x, z_1 … z_T) in one direction, by the family's own recursion back from z_T."""
    a, sigma = plain_alpha(GAMMA), plain_sigma(GAMMA)
    rows = np.zeros((T + 1, T + 1))  # coefficients on (x, ε_1 … ε_T)
    rows[0, 0] = np.sqrt(variance)
    rows[T] = a[-1] * rows[0]
    rows[T, T] = sigma[-1]
    for s in range(T - 1, 0, -1):
        v = eta**2 * plain_posterior(0.0, 0.0, GAMMA[s - 1], GAMMA[s])[1]
        noise = (rows[s + 1] - a[s] * rows[0]) / sigma[s]
        rows[s] = a[s - 1] * rows[0] + np.sqrt(sigma[s - 1] ** 2 - v) * noise
        rows[s, s] = np.sqrt(v)
    return rows @ rows.T


def partial(cov: np.ndarray, t: int, seen: list[int]) -> float:
    """I(x; z_t | z_seen) = −½ ln(1 − ρ²), ρ the partial correlation of x and z_t."""
    i = [0, t]
    rest = cov[np.ix_(i, i)]
    if seen:
        rest = rest - cov[np.ix_(i, seen)] @ np.linalg.solve(cov[np.ix_(seen, seen)], cov[np.ix_(seen, i)])
    return -0.5 * math.log1p(-(rest[0, 1] ** 2) / (rest[0, 0] * rest[1, 1]))


@pytest.mark.parametrize("eta", [0.2, 0.5, 0.9, 1.0])
def test_gaussian_chains_against_partial_correlations(eta: float) -> None:
    found = chain_rule(WORLD, NonMarkovDiffusion(SCHEDULE, eta))
    covs = [covariance(eta, float(v)) for v in WORLD.eigenvalues[0]]

    def both(t: int, seen: list[int]) -> float:
        return sum(partial(cov, t, seen) for cov in covs)

    steps = range(2, T + 1)
    close(found.marginal.value, [both(t, []) for t in range(1, T + 1)], rtol=1e-9)
    close(found.backward.value, [both(t, [t + 1]) for t in range(1, T)], rtol=1e-9)
    close(found.forward.value, [both(t, [t - 1]) for t in steps], rtol=1e-8, atol=1e-12)
    close(found.history.value, [both(t, list(range(1, t))) for t in steps], rtol=1e-7, atol=1e-11)
    close(found.path.value, [sum(both(t, list(range(1, t))) for t in range(1, T + 1))], rtol=1e-9)
    for part in (found.marginal, found.backward, found.forward, found.history, found.path):
        assert float(part.error.max()) == 0


def test_the_markov_chain_in_closed_form() -> None:
    """(12): forward informations vanish; (11), (13): so both chains lead to I(x; z_1)."""
    found = chain_rule(WORLD, MARKOV)
    first = WORLD.information(float(GAMMA[0])).value
    assert float(found.forward.value.abs().max()) < 1e-12
    assert float(found.history.value.abs().max()) < 1e-12
    assert float(found.path.value) == pytest.approx(first, abs=1e-9)
    assert float(found.marginal.value[-1] + found.backward.value.sum()) == pytest.approx(first, abs=1e-9)
    close(found.marginal.value, [WORLD.information(g).value for g in GAMMA], rtol=1e-12)
    close(found.backward.value, found.marginal.steps().value, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_the_non_markov_chain_breaks_the_backward_rule_by_its_forward_informations(eta: float) -> None:
    found = chain_rule(WORLD, NonMarkovDiffusion(SCHEDULE, eta))
    first = float(found.marginal.value[0])
    assert float(found.path.value) == pytest.approx(first + float(found.history.value.sum()), abs=1e-9)  # (11) survives
    missing = float(found.marginal.value[-1] + found.backward.value.sum()) - first
    assert missing == pytest.approx(float(found.forward.value.sum()), abs=1e-9)
    assert missing > 1.4
    assert float(found.history.value.sum()) > 0.5


def test_forward_informations_grow_as_the_square_of_one_minus_eta() -> None:
    sums = [float(chain_rule(WORLD, NonMarkovDiffusion(SCHEDULE, eta)).forward.value.sum()) for eta in (0.998, 0.999)]
    assert sums[0] / sums[1] == pytest.approx(4, rel=0.02)


# Points.


def whole(draws: Estimates) -> tuple[float, float]:
    return draws.sum().only(0)


@pytest.fixture(scope="module")
def markov() -> ChainRule:
    return chain_rule(POINTS, MARKOV, samples=20_000, generator=generator(0))


@pytest.fixture(scope="module")
def ddim() -> ChainRule:
    return chain_rule(POINTS, NonMarkovDiffusion(SCHEDULE, 0.5), samples=20_000, generator=generator(1))


def test_points_under_the_markov_chain(markov: ChainRule) -> None:
    world = exact.Finite(POINTS)._as_mixture()
    first = world.information(float(GAMMA[0])).value
    for part in (markov.forward, markov.history):  # (12), draw by draw
        assert float(part.values.abs().max()) < 1e-10
    exact_marginal = float64([world.information(float(g)).value for g in GAMMA])
    assert bool(((markov.marginal.value - exact_marginal).abs() < 4 * markov.marginal.error).all())
    for value, error in (
        markov.path.only(0),
        whole(Estimates(torch.cat([markov.marginal.values[:, -1:], markov.backward.values], 1))),
    ):
        assert abs(value - first) < 4 * error
        assert error < 0.0025 * first


def test_points_under_the_non_markov_chain(ddim: ChainRule) -> None:
    world = exact.Finite(POINTS)._as_mixture()
    first = world.information(float(GAMMA[0])).value
    missing, error = whole(Estimates(torch.cat([ddim.marginal.values[:, -1:], ddim.backward.values], 1)))
    value, own = whole(ddim.forward)
    assert abs(missing - first - value) < 4 * math.hypot(error, own)
    assert value > 20 * own
    value, error = whole(ddim.history)
    path, own = ddim.path.only(0)
    assert abs(path - first - value) < 4 * math.hypot(error, own)


def test_a_pair_of_latents_against_quadrature() -> None:
    """T = 2, three points on a line: I(x; z_1, z_2) from the mixture's own density on a grid."""
    betas, eta, points = (0.3, 0.5), 0.4, np.array([-1.0, 0.3, 1.2])
    process = NonMarkovDiffusion(schedule.from_betas(betas), eta)
    g1, g2 = process.schedule.grid().numpy()
    a, s = plain_alpha(np.array([g1, g2])), plain_sigma(np.array([g1, g2]))
    rho = math.sqrt(1 - eta**2 * plain_posterior(0.0, 0.0, g1, g2)[1] / s[0] ** 2)
    axis, step = np.linspace(-7, 7, 1401, retstep=True)
    z1, z2 = np.meshgrid(axis, axis, indexing="ij")
    densities = []
    for x in points:
        n1, n2 = (z1 - a[0] * x) / s[0], (z2 - a[1] * x) / s[1]
        exponent = -0.5 * (n1**2 - 2 * rho * n1 * n2 + n2**2) / (1 - rho**2)
        densities.append(np.exp(exponent) / (2 * math.pi * s[0] * s[1] * math.sqrt(1 - rho**2)))
    mean = sum(densities) / 3
    want = sum((q * np.log(np.maximum(q, 1e-300) / np.maximum(mean, 1e-300))).sum() * step**2 / 3 for q in densities)
    found = chain_rule(torch.from_numpy(points[:, None]), process, samples=140_000, generator=generator(2))
    for value, error in (
        found.path.only(0),
        whole(Estimates(torch.cat([found.marginal.values[:, :1], found.forward.values], 1))),
    ):
        assert abs(value - want) < 4 * error
        assert error < 0.0025 * want


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from diffusional.information import chain as function

    module = sys.modules["diffusional.information.chain_rule"]
    whole_ = function(POINTS[:, :1], MARKOV, samples=64, generator=generator(3))
    monkeypatch.setattr(module, "_CHUNK", 96)
    parts = function(POINTS[:, :1], MARKOV, samples=64, generator=generator(3))
    assert parts.path.values.shape == whole_.path.values.shape == (64, 1)
    assert bool(torch.isfinite(parts.path.values).all())
    images = chain_rule(POINTS.reshape(4, 1, 2, 1), MARKOV, samples=8, generator=generator(4))
    flat = chain_rule(POINTS, MARKOV, samples=8, generator=generator(4))
    close(images.marginal.values, flat.marginal.values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chain_rule(POINTS, GaussianDiffusion(schedule.log_snr_linear())), "regrid"),
        (lambda: chain_rule(POINTS, MARKOV, samples=1), "at least 2"),
        (lambda: chain_rule(POINTS * torch.nan, MARKOV), "not finite"),
        (lambda: chain_rule(POINTS.index_fill(0, torch.tensor([2]), math.inf), MARKOV), "not finite"),
        (lambda: chain_rule(POINTS[:0], MARKOV), "N ≥ 1"),
        (
            lambda: chain_rule(exact.Mixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1)), MARKOV),
            "got Mixture",
        ),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        call()


def test_draws() -> None:
    one = Estimates(torch.tensor([[2.0, 1.0]], dtype=F64))
    assert one.error.tolist() == [0.0, 0.0]
    assert one.steps().only(0) == (1.0, 0.0)
