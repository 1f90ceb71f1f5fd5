"""The worlds are the ground truth of everything else, so they are checked against scipy, mpmath-free quadrature and identities."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from diffusional import DiffusionalError, GaussianDiffusion, exact, schedule

F64 = torch.float64


def gaussian(d: int = 2) -> exact.Gaussian:
    factor = torch.tensor([[0.9, 0.0], [0.5, 0.4]], dtype=F64)[:d, :d]
    return exact.Gaussian(torch.tensor([0.7, -0.3], dtype=F64)[:d], factor @ factor.T)


def mixture(d: int = 1) -> exact.Mixture:
    means = torch.tensor([[-1.0, 0.2], [0.9, -0.5], [0.1, 1.0]], dtype=F64)[:, :d]
    covariances = torch.stack([torch.eye(d, dtype=F64) * v for v in (0.09, 0.2, 0.05)])
    return exact.Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, covariances)


def finite() -> exact.Finite:
    return exact.Finite(torch.tensor([[-1.0], [-0.25], [0.5], [0.5]], dtype=F64))


WORLDS = {
    "gaussian1": gaussian(1),
    "gaussian2": gaussian(),
    "mixture1": mixture(),
    "mixture2": mixture(2),
    "finite": finite(),
}
GAMMAS = torch.tensor([-6.0, -2.0, 0.0, 1.5, 6.0], dtype=F64)


def numerical_mixture(x: np.ndarray) -> np.ndarray:
    """The one-dimensional mixture's density by scipy."""
    return sum(
        w * stats.norm.pdf(x, m, math.sqrt(v))
        for w, m, v in zip((0.5, 0.3, 0.2), (-1.0, 0.9, 0.1), (0.09, 0.2, 0.05), strict=True)
    )


def test_log_prob_is_scipys() -> None:
    x = torch.linspace(-3, 3, 31, dtype=F64)
    np.testing.assert_allclose(mixture().log_prob(x[:, None]).exp(), numerical_mixture(x.numpy()), rtol=1e-12)
    world = gaussian()
    points = world.sample(20, torch.Generator().manual_seed(0))
    covariance = world.eigenvectors[0] @ torch.diag(world.eigenvalues[0]) @ world.eigenvectors[0].T
    expected = stats.multivariate_normal(world.means[0].numpy(), covariance.numpy()).logpdf(points.numpy())
    np.testing.assert_allclose(world.log_prob(points), expected, rtol=1e-10)


def test_log_prob_of_points_counts_repeats() -> None:
    got = finite().log_prob(torch.tensor([[-1.0], [0.5], [0.3]]))
    torch.testing.assert_close(got, torch.tensor([math.log(0.25), math.log(0.5), -math.inf], dtype=F64))


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 2.0])
def test_one_dimensional_mixture_against_its_definitions(gamma: float) -> None:
    """q(z), E[x|z], the mmse and I(x; z) by the trapezoid rule over x and z, straight from p(x) q(z|x)."""
    a, s = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
    world, g = mixture(), torch.tensor(gamma, dtype=F64)
    x, z = np.linspace(-9, 9, 4501), np.linspace(-9, 9, 901)
    joint = numerical_mixture(x) * stats.norm.pdf(z[:, None], a * x, s) * (x[1] - x[0])
    q, first, second = (joint @ x**k for k in range(3))
    mean = first / q
    live = q > 1e-12
    places = torch.from_numpy(z[live])
    np.testing.assert_allclose(world.log_marginal(places[:, None], g), np.log(q[live]), rtol=1e-8, atol=1e-8)
    data, noise = world.optimum(places[:, None], g)
    np.testing.assert_allclose(data[:, 0], mean[live], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(noise[:, 0], (z - a * mean)[live] / s, rtol=1e-6, atol=1e-7)
    step = z[1] - z[0]
    assert float(world.mmse(g[None])) == pytest.approx(float(np.sum(second - first * mean) * step), rel=1e-7)
    entropy = -float(np.sum(q * np.log(np.maximum(q, 1e-300)))) * step
    expected = entropy - 0.5 * math.log(2 * math.pi * math.e * s * s)
    assert world.information(gamma).value == pytest.approx(expected, rel=1e-7)


def test_entropy_against_quad() -> None:
    expected = integrate.quad(lambda x: -numerical_mixture(x) * np.log(numerical_mixture(x)), -6, 6, limit=400)[0]
    assert mixture().entropy() == pytest.approx(expected, rel=1e-9)
    assert gaussian(1).entropy() == pytest.approx(float(stats.norm(0.7, 0.9).entropy()), rel=1e-12)
    assert finite().entropy() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4), rel=1e-12)


def test_closed_forms_agree_with_quadrature() -> None:
    """The Gaussian's closed forms against the mixture code's quadrature on the same world."""
    world = gaussian()
    covariance = world.eigenvectors @ torch.diag_embed(world.eigenvalues) @ world.eigenvectors.mT
    same = exact.Mixture(torch.ones(1, dtype=F64), world.means, covariance)
    torch.testing.assert_close(world.mmse(GAMMAS), same.mmse(GAMMAS), rtol=1e-9, atol=1e-12)
    assert world.entropy() == pytest.approx(same.entropy(), rel=1e-9)
    for gamma in GAMMAS:
        assert world.information(gamma).value == pytest.approx(same.information(gamma).value, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["gaussian2", "mixture1", "finite"])
def test_i_mmse(name: str) -> None:
    """MATH (15): dI/dSNR = ½ mmse, so dI/dγ = −½ SNR mmse."""
    world = WORLDS[name]._as_mixture() if name == "finite" else WORLDS[name]  # type: ignore[attr-defined]
    h = 1e-4
    for gamma in (-1.0, 0.5, 2.0):
        slope = (world.information(gamma + h).value - world.information(gamma - h).value) / (2 * h)
        expected = -0.5 * math.exp(-gamma) * float(world.mmse(torch.tensor([gamma], dtype=F64)))
        assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", WORLDS)
def test_optimum_beats_its_neighbours_and_is_self_consistent(name: str) -> None:
    """z = α x̂ + σ ε̂, Tweedie's formula for the score, and the mmse as the empirical error."""
    world = WORLDS[name]
    generator = torch.Generator().manual_seed(1)
    x = world.sample(20_000, generator)
    for gamma in (-2.0, 1.0):
        g = torch.tensor(gamma, dtype=F64)
        a, s = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        z = (a * x + s * torch.empty_like(x).normal_(generator=generator)).requires_grad_()
        data, noise = world.optimum(z, g)
        torch.testing.assert_close(a * data + s * noise, z, rtol=1e-9, atol=1e-9)
        (score,) = torch.autograd.grad(world.log_marginal(z, g).sum(), z)
        torch.testing.assert_close(-noise / s, score, rtol=1e-7, atol=1e-7)
        errors = (x - data.detach()).square().sum(1)
        off = float(errors.mean() - world.mmse(g[None])[0]) / float(errors.detach().std() / len(x) ** 0.5)
        assert abs(off) < 4


@pytest.mark.parametrize("name", WORLDS)
def test_samples_have_the_moments(name: str) -> None:
    world = WORLDS[name]
    squares = world.sample(50_000, torch.Generator().manual_seed(2)).square().sum(1)
    assert abs(float(squares.mean()) - world.second_moment()) < 4 * float(squares.std()) / 50_000**0.5


@pytest.mark.parametrize("predicts", ["noise", "data", "v", "score"])
@pytest.mark.parametrize("name", ["gaussian2", "mixture2", "finite"])
def test_denoisers_say_the_same_in_every_parameterisation(name: str, predicts: str) -> None:
    world = WORLDS[name]
    z, gamma = torch.randn(5, world.dimensions, dtype=F64), torch.linspace(-4, 4, 5, dtype=F64)
    data, noise = world.optimum(z, gamma)
    said = world.denoiser(predicts)(z, gamma)  # type: ignore[arg-type]
    torch.testing.assert_close(said.data, data, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(said.noise, noise, rtol=1e-9, atol=1e-9)


def test_finite_information_reaches_ln_n_and_vanishes() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    world = exact.Finite(points)
    assert world.information(-14.0).value == pytest.approx(math.log(50), abs=1e-9)
    assert abs(world.information(14.0).value) < 1e-3
    assert finite().information(-14.0).value == pytest.approx(finite().entropy(), abs=1e-9)


def test_finite_information_agrees_with_quadrature() -> None:
    world = finite()
    for gamma in (-2.0, 0.0, 1.0):
        got = world.information(gamma, draws=1000, generator=torch.Generator().manual_seed(0))
        want = world._as_mixture().information(gamma).value
        assert abs(got.value - want) < 4 * got.error
        assert got.error < 0.03
        # Points need no network.
        assert (got.n, got.network_evaluations) == (len(world.points), 0)


def test_finite_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = exact.Finite(torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)))
    z, gamma = torch.randn(7, 2, 3, dtype=F64), torch.linspace(-3, 3, 7, dtype=F64)
    whole = world.optimum(z, gamma), world.log_marginal(z, gamma)
    monkeypatch.setattr(exact, "_CHUNK", 80)
    parts = world.optimum(z, gamma), world.log_marginal(z, gamma)
    torch.testing.assert_close(whole, parts)
    brute = -0.5 * (z.flatten(1)[:, None] - torch.sigmoid(-gamma).sqrt()[:, None, None] * world.points).square().sum(2)
    brute = brute / torch.sigmoid(gamma)[:, None] - 0.5 * 6 * (2 * math.pi * torch.sigmoid(gamma)).log()[:, None]
    torch.testing.assert_close(world.log_marginal(z, gamma), torch.logsumexp(brute, 1) - math.log(40))


def test_costs_add_up_to_the_truth_as_t_grows() -> None:
    """−ELBO of the optimal denoiser → H(x) from above: gaps vanish as T → ∞ and the ends widen (MATH (20))."""
    world = mixture()
    gaps = []
    for steps in (160, 640):
        process = GaussianDiffusion(schedule.log_snr_linear(-12.0, 12.0, steps))
        decoder = float(world.mmse(process.schedule.ends()[:1]))
        gaps.append(float(world.costs(process, "posterior", decoder).nelbo) - world.entropy())
    assert all(gap > 0 for gap in gaps)
    # First order in 1/T: each fourfold T leaves a quarter of the gap.
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.06)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: exact.Gaussian(torch.zeros(2), -torch.eye(2)), "positive definite"),
        (lambda: exact.Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: exact.Mixture(torch.tensor([1.0, 0.0]), torch.zeros(2, 1), torch.ones(2, 1, 1)), "positive"),
        (lambda: exact.Finite(torch.zeros(0, 2)), "N ≥ 1"),
        (lambda: exact.Finite(torch.rand(3, 5)).mmse(torch.zeros(1)), "at most 2 dimensions.* got 5"),
    ],
)
def test_errors(build, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        build()
