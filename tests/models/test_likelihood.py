"""p(x|z_1): normalised, equal to the textbook formula, right in the tails, sampled as it says."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from battery import F64, LIKELIHOODS, LikelihoodRow, close, every_likelihood, float64, generator, plain_sigma, randn
from diffusional import exact, schedule
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.models.denoiser import unassisted
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import (
    Bernoulli,
    DiscretizedGaussian,
    GaussianLikelihood,
    LevelPosterior,
    Likelihood,
    NetworkLevels,
    gather_levels,
    log_bin_mass,
    sample_levels,
)
from diffusional.models.parameterization import LevelsPrediction, Prediction
from diffusional.space import Continuous, Discrete

# One item at one position: a network's x̂ within the range and beyond, at three noise levels.
SAID = [(-2.0, 0.3, 0.21), (0.5, -0.8, 1.3), (1.0, 1.1, -0.4), (-3.0, 0.7, 0.93)]


def _prediction(row: LikelihoodRow, gamma: float, z: float, said: float, n: int = 1) -> Prediction:
    one = torch.ones(n, 1, dtype=F64)
    prediction = Prediction(z * one, torch.full((n,), gamma, dtype=F64), said * one, "data")
    if row.make is NetworkLevels:
        output = randn(1, row.space.levels, seed=5).expand(n, -1)
        prediction = LevelsPrediction(
            prediction.z, prediction.gamma, prediction.value, "data", output, "categorical", row.space
        )
    return prediction


def _at_every_level(row: LikelihoodRow, said: tuple[float, float, float]) -> torch.Tensor:
    k = row.space.levels
    x = row.space.encode(torch.arange(k)[:, None], F64)
    return row.make(row.space).log_prob(x, _prediction(row, *said, n=k))


@every_likelihood
@pytest.mark.parametrize("said", SAID)
def test_normalised_and_as_written_out(row: LikelihoodRow, said: tuple[float, float, float]) -> None:
    p, one = row.make(row.space), _prediction(row, *said)
    if isinstance(row.space, Discrete):
        mass = _at_every_level(row, said).exp()
        close(mass.sum(), 1.0)
        close(mass, row.plain(one, row.space)(np.linspace(row.space.low, row.space.high, row.space.levels)), rtol=1e-9)
        close(p.level_log_probs(one).exp().flatten(), mass)
    else:
        total, _ = integrate.quad(lambda x: float(p.log_prob(float64([[x]]), one).exp()), -40, 40, points=[said[2]])
        assert abs(total - 1) < 1e-8
        for x in (-1.0, 0.0, 0.7):
            close(p.log_prob(float64([[x]]), one).exp(), row.plain(one, row.space)(np.array([x])), rtol=1e-10)


@every_likelihood
@pytest.mark.parametrize("dims", [(6,), (2, 3), (3, 2, 2)])
def test_positions_and_items_are_independent(row: LikelihoodRow, dims: tuple[int, ...]) -> None:
    """ln p of an item of any shape is the sum of its positions', and has nothing to do with its batch-mates."""
    space = replace(row.space, shape=dims)
    p, single = row.make(space), row.make(row.space)
    z, said, gamma = randn(4, *dims), 0.6 * randn(4, *dims, seed=1), float64([-3.0, -1.0, 0.0, 0.5])
    prediction = Prediction(z, gamma, said, "data")
    parts = [Prediction(z.reshape(-1, 1), gamma.repeat_interleave(math.prod(dims)), said.reshape(-1, 1), "data")]
    if row.make is NetworkLevels:
        logits = randn(4, space.levels, *dims)
        output = logits.movedim(1, 2).flatten(1, 2)
        prediction = LevelsPrediction(z, gamma, said, "data", output, "categorical", space)
        flat, one = logits.movedim(1, -1).reshape(-1, space.levels), parts[0]
        parts = [LevelsPrediction(one.z, one.gamma, one.value, "data", flat, "categorical", row.space)]
    if isinstance(space, Discrete):
        x = space.encode(torch.randint(space.levels, (4, *dims), generator=generator()), F64)
    else:
        x = randn(4, *dims, seed=2)
    expected = single.log_prob(x.reshape(-1, 1), parts[0]).reshape(4, -1).sum(1)
    close(p.log_prob(x, prediction), expected, rtol=1e-9)
    draws = p.sample(prediction, generator())
    assert draws.shape == x.shape
    assert draws.dtype == F64
    space.check(draws)
    assert draws.equal(p.sample(prediction, generator()))


@every_likelihood
def test_sampled_as_often_as_it_says(row: LikelihoodRow) -> None:
    n, said = 20_000, (-1.0, 0.3, 0.21)
    draws = row.make(row.space).sample(_prediction(row, *said, n=n), generator(0))
    if isinstance(row.space, Discrete):
        assert draws.unique().numel() > 1
        expected = n * _at_every_level(row, said).exp().numpy()
        observed = row.space.decode(draws).flatten().bincount(minlength=row.space.levels).numpy()
        rare = expected < 5
        assert observed[rare].sum() <= expected[rare].sum() + 4 * math.sqrt(expected[rare].sum()) + 3
        common = ~rare
        scale = observed[common].sum() / expected[common].sum()
        assert stats.chisquare(observed[common], expected[common] * scale).pvalue > 1e-4
    else:
        x = np.linspace(-40, 40, 400_001)
        density = row.plain(_prediction(row, *said), row.space)(x)
        mass = integrate.cumulative_trapezoid(density, x, initial=0.0)
        assert stats.kstest(draws.flatten().numpy(), lambda drawn: np.interp(drawn, x, mass)).pvalue > 1e-4


@every_likelihood
def test_float32_and_the_protocol(row: LikelihoodRow) -> None:
    p = row.make(row.space)
    assert isinstance(p, Likelihood)
    assert p.space == row.space
    assert p.uses_network is (not isinstance(p, LevelPosterior))
    one = _prediction(row, -2.0, 0.3, 0.21)
    x = float64([[row.space.high if isinstance(row.space, Discrete) else 0.4]])
    output = {"output": one.output.float()} if isinstance(one, LevelsPrediction) else {}
    small = replace(one, z=one.z.float(), value=one.value.float(), **output)
    close(p.log_prob(x.float(), small).double(), p.log_prob(x, one), rtol=1e-4)
    assert p.sample(small, generator()).dtype == torch.float32


# The discretised Gaussian.


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_discretized_gaussian_takes_sigma_1(levels: int, kind: str) -> None:
    """s = σ_1 by default, each item its own; x̂ converted from whatever the network predicts."""
    space, gamma = Discrete((1,), levels), float64([-4.0, -2.0, 0.0])
    z, said = randn(3, 1), 0.5 * randn(3, 1, seed=1)
    prediction = Prediction(z, gamma, said, kind)
    log_probs = DiscretizedGaussian(space).level_log_probs(prediction)
    values = np.linspace(-1, 1, levels)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    for i in range(3):
        cdf = stats.norm(float(prediction.data[i]), plain_sigma(float(gamma[i]))).cdf(edges)
        close(log_probs[i, :, 0].exp(), np.diff(cdf), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (-0.5, 0.5), (-0.1, 3.0), (0.2, 0.3), (7.9, 8.1), (39.5, 40.5), (-40.5, -39.5), (39.99, 40.01), (-3.0, 40.0),
        (-math.inf, -40.0), (40.0, math.inf), (-math.inf, 40.0), (-40.0, math.inf), (-math.inf, 0.3), (0.3, math.inf),
        (300.0, 301.0), (-1e-4, 1e-4),
    ],
)  # fmt: skip
def test_bin_mass_against_mpmath(lower: float, upper: float) -> None:
    with mpmath.workdps(50):
        a, b = (mpmath.erfc(-mpmath.mpf(v) / mpmath.sqrt(2)) / 2 for v in (lower, upper))
        if lower > 0:  # the same mass from the small side
            a, b = (mpmath.erfc(mpmath.mpf(v) / mpmath.sqrt(2)) / 2 for v in (upper, lower))
        exact = float(mpmath.log(b - a))
    ends = [float64(v).requires_grad_() for v in (lower, upper)]
    mass = log_bin_mass(*ends)
    close(mass, exact, rtol=1e-10, atol=1e-13)
    mass.backward()
    # d ln mass / d edge = ∓ pdf(edge) / mass, finite and zero at an open edge.
    for end, sign, value in zip(ends, (-1, 1), (lower, upper), strict=True):
        slope = sign * math.exp(stats.norm.logpdf(value) - exact) if math.isfinite(value) else 0.0
        close(end.grad, slope, rtol=1e-6, atol=1e-9)


def test_forty_sigma_costs_what_it_should() -> None:
    """x̂ below one end, x at the other, whose bin begins 40 s away: −804.6 nats, never clipped, with its gradient."""
    space, s = Discrete((1,), 5), 2.25 / 40
    said = float64([[-1.5]]).requires_grad_()
    prediction = Prediction(torch.zeros(1, 1, dtype=F64), float64([0.0]), said, "data")
    with mpmath.workdps(50):
        exact = float(mpmath.log(mpmath.erfc(mpmath.mpf(40) / mpmath.sqrt(2)) / 2))
    cost = DiscretizedGaussian(space, variance=s**2).log_prob(float64([[1.0]]), prediction)
    close(cost, [exact], rtol=1e-9)
    cost.sum().backward()
    close(said.grad, [[math.exp(stats.norm.logpdf(40) - exact) / s]], rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 17])
def test_gradients_are_finite_however_sure_the_network(levels: int) -> None:
    space = Discrete((levels,), levels)
    x = space.encode(torch.arange(levels)[None], F64)
    for said in (x, 2 * x, -2 * x):
        said = said.clone().requires_grad_()
        prediction = Prediction(x, float64([-12.0]), said, "data")  # s = 0.0025
        DiscretizedGaussian(space).log_prob(x, prediction).sum().backward()
        assert bool(said.grad.isfinite().all())


# The others.


def test_level_posterior_is_flat_in_the_prior_not_in_z() -> None:
    space = Discrete((2,), 17)
    z, gamma = randn(3, 2), float64([-3.0, -1.0, 2.0])
    p = LevelPosterior(space)
    x = space.encode(torch.tensor([[0, 3], [16, 8], [4, 9]]), F64)
    alpha, sigma = (1 + gamma.exp()) ** -0.5, (1 + (-gamma).exp()) ** -0.5
    evidence = [
        [stats.norm(float(alpha[i]) * np.linspace(-1, 1, 17), float(sigma[i])).pdf(float(z[i, d])) for d in range(2)]
        for i in range(3)
    ]
    expected = [
        sum(math.log(evidence[i][d][space.index(x)[i, d]] / evidence[i][d].sum()) for d in range(2)) for i in range(3)
    ]
    close(p.log_prob(x, unassisted(z, gamma)), expected, rtol=1e-9)


def test_gaussian_density_takes_the_variance_of_z_over_alpha() -> None:
    """s² = σ_1²/α_1² = e^{γ_1}, each item its own."""
    gamma, x, said = float64([-4.0, 0.0, 1.0]), randn(3, 2, 2), randn(3, 2, 2, seed=1)
    prediction = Prediction(0 * x, gamma, said, "data")
    space = Continuous((2, 2))
    std = np.exp(gamma.numpy() / 2)[:, None, None]
    expected = stats.norm(said.numpy(), std).logpdf(x.numpy()).sum((1, 2))
    close(GaussianLikelihood(space).log_prob(x, prediction), expected)
    close(GaussianLikelihood(space, 0.7).log_prob(x, prediction), stats.norm(said, 0.7**0.5).logpdf(x).sum((1, 2)))
    noise = torch.empty_like(x).normal_(generator=generator(2))
    close(GaussianLikelihood(space).sample(prediction, generator(2)), said.numpy() + std * noise.numpy())


def test_a_gaussian_density_takes_gamma_in_float64() -> None:
    """γ = −12.3456789 lies between two numbers of float32, 1e-6 apart; x of float32 does not make it one of them."""
    gamma = -12.3456789
    for dtype in (F64, torch.float32):
        x, said = randn(2, 3, dtype=dtype), randn(2, 3, seed=1, dtype=dtype)
        prediction = Prediction(torch.zeros(2, 3, dtype=dtype), float64([gamma, gamma]), said, "data")
        found = GaussianLikelihood(Continuous((3,))).log_prob(x, prediction)
        squared = (x - said).double().square() * math.exp(-gamma)
        close(found, (-0.5 * (squared + gamma + math.log(2 * math.pi))).sum(1), rtol=1e-12)


def test_bernoulli_floor() -> None:
    p = Bernoulli(Discrete((1,), 2), floor=0.01)
    said = float64([[-1.5], [1.5], [0.5]])
    prediction = Prediction(0 * said, torch.zeros(3, dtype=F64), said, "data")
    close(p.log_prob(torch.ones(3, 1, dtype=F64), prediction).exp(), [0.01, 0.99, 0.75])
    close(p.log_prob(-torch.ones(3, 1, dtype=F64), prediction).exp(), [0.99, 0.01, 0.25])


def test_gather_and_sample_levels() -> None:
    log_probs = randn(3, 4, 2, 5).log_softmax(1)
    index = torch.randint(4, (3, 2, 5), generator=generator())
    expected = [sum(float(log_probs[b, index[b, i, j], i, j]) for i in range(2) for j in range(5)) for b in range(3)]
    close(gather_levels(log_probs, index), expected)
    # A sure thing is always drawn; what is impossible never is.
    sure = torch.full((200, 4, 1), -math.inf, dtype=F64)
    sure[:100, 3], sure[100:, 0] = 0.0, 0.0
    draws = sample_levels(sure, Discrete((1,), 4), generator())
    assert draws[:100].eq(1).all()
    assert draws[100:].eq(-1).all()


@pytest.mark.parametrize("make", [DiscretizedGaussian, LevelPosterior, NetworkLevels, Bernoulli])
def test_a_mass_function_over_the_reals_is_refused(make) -> None:
    with pytest.raises(DiffusionalError, match=f"{make.__name__}.*GaussianLikelihood"):
        make(Continuous((2,)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianLikelihood(Discrete((2,), 17)), "17 levels.*DiscretizedGaussian"),
        (lambda: GaussianLikelihood(Continuous((2,)), 0.0), "variance to be .* got 0"),
        (lambda: GaussianLikelihood(Continuous((2,)), -1.0), "variance to be .* got -1"),
        (lambda: DiscretizedGaussian(Discrete((2,), 17), 0.0), "variance to be .* got 0"),
        (lambda: DiscretizedGaussian(Discrete((2,), 17), math.inf), "variance to be .* got inf"),
        (lambda: Bernoulli(Discrete((2,), 3)), "binary.*levels=3"),
        (lambda: Bernoulli(Discrete((2,), 2), 0.0), "floor.* got 0"),
        (lambda: Bernoulli(Discrete((2,), 2), 0.5), "floor.* got 0.5"),
        (
            lambda: NetworkLevels(Discrete((1,), 3)).log_prob(torch.zeros(1, 1), _prediction(ROW, 0.0, 0.0, 0.0)),
            'predicts="levels"',
        ),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        call()


ROW = LIKELIHOODS["LevelPosterior"]


def test_an_unassisted_gaussian_reads_x_off_z_alone() -> None:
    world = exact.Gaussian(torch.full((3,), 5.0), torch.eye(3))  # a network that would know better
    process = GaussianDiffusion(schedule.log_snr_linear(-2.0, 9.0, steps=10))
    alone, assisted = (
        DiffusionModel(process, world.denoiser(), GaussianLikelihood(Continuous((3,)), assisted=assisted))
        for assisted in (False, True)
    )
    x, noise = randn(4, 3), randn(4, 3, seed=1)
    # x − z_1/α = −(σ/α) ε, and s = σ/α.
    expected = 0.5 * (noise.square().sum(1) + 3 * (math.log(2 * math.pi) - 2.0))
    close(alone.reconstruction(x, noise), expected)
    assert not torch.allclose(alone.reconstruction(x, noise), assisted.reconstruction(x, noise))


@pytest.mark.parametrize("gamma", [-14.0, -9.2, -6.0, -4.0, 0.0, 3.0])
def test_the_level_posterior_counts_every_level_that_matters(gamma: float) -> None:
    """Against the sum over all levels, in the middle of the range and far outside it, values and gradients."""
    space = Discrete((3,), 256)
    p, generator = LevelPosterior(space), torch.Generator().manual_seed(0)
    index = torch.randint(0, 256, (64, 3), generator=generator)
    x = space.encode(index, torch.float64)
    grid = torch.full((64,), gamma, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    noise[:6] *= 4.0
    a, s = (-grid).sigmoid().sqrt()[:, None], grid.sigmoid().sqrt()[:, None]
    z = a * x + s * noise
    got = p.log_prob(x, Prediction(z, grid, z, "data"))
    want = p.level_log_probs(Prediction(z, grid, z, "data")).gather(1, index[:, None]).squeeze(1).sum(1)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(v.sum(), grid, retain_graph=True)[0] for v in (got, want)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-6)
