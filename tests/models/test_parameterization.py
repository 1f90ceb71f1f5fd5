"""Predictions: one truth in five languages, and the levels head against brute-force Bayes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from battery import F64, PREDICTIONS, close, every_prediction, float64, plain_alpha, plain_sigma, randn
from diffusional.models.parameterization import (
    LevelsPrediction,
    Prediction,
    categorical_logits,
    decoded_levels,
    level_log_probs,
    level_mean,
    logistic_logits,
    logistic_scales,
)
from diffusional.space import Discrete

GAMMA = float64([-9.0, -2.0, 0.0, 1.5, 8.0])
SHAPE = (5, 2, 3)
# The truth, and what a network says of it: z = α x + σ ε = α x̂ + σ ε̂.
A, S = (f(GAMMA)[:, None, None] for f in (plain_alpha, plain_sigma))
X, NOISE = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
Z = A * X + S * NOISE
SAID_NOISE = NOISE + 0.3 * randn(*SHAPE, seed=3)
SAID_X = (Z - S * SAID_NOISE) / A
SAID = {
    "data": SAID_X,
    "noise": SAID_NOISE,
    "v": A * SAID_NOISE - S * SAID_X,
    "score": -SAID_NOISE / S,
}


def _prediction(kind: str) -> Prediction:
    return Prediction(Z, GAMMA, SAID[kind], kind)


@every_prediction
@pytest.mark.parametrize("asked", PREDICTIONS)
def test_every_prediction_in_every_language(kind: str, asked: str) -> None:
    # A round trip at γ = ±9 divides by σ or α ≈ 0.01.
    close(getattr(_prediction(kind), asked), SAID[asked], rtol=1e-10, atol=1e-11)
    if kind == asked:
        assert getattr(_prediction(kind), asked).equal(SAID[kind])


@every_prediction
def test_squared_error_is_that_of_the_noise(kind: str) -> None:
    expected = ((NOISE - SAID_NOISE) ** 2).numpy().sum((1, 2))
    close(_prediction(kind).squared_error(X, NOISE), expected, rtol=1e-10)
    one = Prediction(Z[:1], GAMMA[0], SAID[kind][:1], kind)  # γ may be one number
    close(one.squared_error(X[:1], NOISE[:1]), expected[:1], rtol=1e-10)


@every_prediction
def test_the_perfect_prediction_costs_nothing_and_scores_truly(kind: str) -> None:
    value = {"data": X, "noise": NOISE, "v": A * NOISE - S * X, "score": -NOISE / S}[kind]
    prediction = Prediction(Z, GAMMA, value, kind)
    close(prediction.squared_error(X, NOISE), np.zeros(5), atol=1e-20)
    # ∇ ln q(z|x), by autograd.
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Normal(A * X, S).log_prob(z).sum(), z)
    close(prediction.score, gradient, rtol=1e-9, atol=1e-10)


@every_prediction
@pytest.mark.parametrize("gamma", [-13.0, 9.0])
def test_float32_squared_error_is_formed_where_nothing_cancels(kind: str, gamma: float) -> None:
    """A network wrong by 1e-2 in its own words, at the ends of the schedule: right to 1e-4 in float32 all the same."""
    a, s = plain_alpha(gamma), plain_sigma(gamma)
    wrong = 1e-2 * randn(*SHAPE, seed=7)
    x, noise = X.float().double(), NOISE.float().double()
    truth = {"data": x, "noise": noise, "v": a * noise - s * x, "score": -noise / s}[kind]
    factor = {"data": a / s, "noise": 1.0, "v": a, "score": s}[kind]
    if kind == "score":
        wrong = wrong / s
    z = (a * x + s * noise).float()
    prediction = Prediction(z, torch.full((5,), gamma, dtype=F64), (truth + wrong).float(), kind)
    error = prediction.squared_error(x.float(), noise.float())
    close(error, factor**2 * wrong.square().sum((1, 2)), rtol=1e-3)


@every_prediction
def test_some_items(kind: str) -> None:
    prediction = _prediction(kind)
    for items in (torch.tensor([3, 0]), torch.tensor([True, False, False, True, False])):
        part = prediction[items]
        close(part.data, SAID_X[items], rtol=1e-10, atol=1e-11)
        close(part.gamma, GAMMA[items])
        assert part.kind == kind
    levels = LevelsPrediction(Z, GAMMA, SAID_X, "data", randn(5, 8, 3), "categorical", Discrete((2, 3), 4))
    part = levels[torch.tensor([3, 0])]
    assert isinstance(part, LevelsPrediction)
    assert part.log_probs.equal(levels.log_probs[[3, 0]])


@pytest.mark.parametrize("head", ["categorical", "logistic"])
def test_a_frozen_prediction_of_levels_moves_nothing(head: str) -> None:
    space = Discrete((2, 3), 4)
    z, gamma, output = (t.clone().requires_grad_() for t in (Z, GAMMA, randn(5, 8 if head == "categorical" else 4, 3)))
    fraction = torch.ones_like(Z, requires_grad=True)
    levels = LevelsPrediction(
        z, gamma, level_mean(output, z, gamma, head, space), "data", output, head, space, fraction=fraction
    )
    close(levels.frozen().log_probs, levels.log_probs.detach())
    close(levels.frozen().value, levels.value.detach())
    assert levels.log_probs.requires_grad
    assert levels.value.requires_grad
    assert not levels.frozen().log_probs.requires_grad
    assert not levels.frozen().squared_error(X, NOISE).requires_grad
    assert levels.frozen().fraction is fraction


# The levels head.


@pytest.mark.parametrize("space", [Discrete((3, 4, 5), 6), Discrete((7,), 3), Discrete((1, 2), 2)], ids=str)
def test_categorical_layout(space: Discrete) -> None:
    k, c = space.levels, space.shape[0]
    output = randn(2, c * k, *space.shape[1:])
    logits = categorical_logits(output, space)
    assert logits.shape == (2, k, *space.shape)
    for channel in range(c):
        for level in range(k):
            assert logits[:, level, channel].equal(output[:, channel * k + level])


@pytest.mark.parametrize(
    "space", [Discrete((2, 3), 17), Discrete((4,), 2), Discrete((2, 2, 2), 5, 0.0, 1.0), Discrete((1,), 256)], ids=str
)
def test_logistic_against_scipy(space: Discrete) -> None:
    c = space.shape[0]
    output = randn(3, 2 * c, *space.shape[1:])
    logits = logistic_logits(output, space)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    mu, s = middle + half * output[:, :c].numpy(), half * np.exp(output[:, c:].numpy())
    values = np.linspace(space.low, space.high, space.levels)
    edges = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
    mass = np.diff(np.stack([stats.logistic(mu, s).cdf(e) for e in edges], 1), axis=1)
    close(logits.exp(), mass, rtol=1e-8, atol=1e-14)
    close(logits.exp().sum(1), np.ones((3, *space.shape)), rtol=1e-12)


@pytest.mark.parametrize("levels", [2, 3, 256])
@pytest.mark.parametrize("mu", [-1e4, -1.0, 0.1, 1e4])
@pytest.mark.parametrize("log_s", [-1e3, -20.0, 0.0, 30.0, 1e3])
def test_logistic_at_extremes(levels: int, mu: float, log_s: float) -> None:
    output = torch.tensor([[mu, log_s]], requires_grad=True)
    logits = logistic_logits(output, Discrete((1,), levels))
    assert bool(logits.isfinite().all())
    close(logits.double().logsumexp(1), [[0.0]], atol=1e-3)
    logits.sum().backward()
    assert bool(output.grad.isfinite().all())


@pytest.mark.parametrize("space", [Discrete((1,), 2), Discrete((1,), 256), Discrete((1,), 17, 0.0, 4.0)], ids=str)
def test_scales_of_a_logistic_are_in_half_ranges_between_their_limits(space: Discrete) -> None:
    """s in [Δ/1000, e²⁰ half ranges], Δ the bin width, and untouched in between, close to both limits."""
    half, least = (space.high - space.low) / 2, (space.high - space.low) / (space.levels - 1) / 1000
    log_s = [-50.0, np.log(least / half) - 0.1, np.log(least / half) + 0.1, -0.7, 19.9, 20.1, 50.0]
    want = [least, least, np.exp(0.1) * least, half * np.exp(-0.7), half * np.exp(19.9), *[half * np.exp(20)] * 2]
    mu, s = logistic_scales(float64([[0.3, value] for value in log_s]), space)
    close(s[:, 0], want)
    close(mu, (space.high + space.low) / 2 + half * 0.3 * np.ones((len(log_s), 1)))


@pytest.mark.parametrize("space", [Discrete((2, 3), 4), Discrete((2, 3), 17, 0.0, 1.0)], ids=str)
def test_level_log_probs_against_bayes(space: Discrete) -> None:
    logits = randn(5, space.levels, 2, 3)
    values = np.linspace(space.low, space.high, space.levels)[None, :, None, None]
    alpha, sigma = A[:, None].numpy(), S[:, None].numpy()
    moderate = [1, 2, 3, 4]  # at γ = −9 the evidence underflows in scipy
    joint = (np.exp(logits.numpy()) * stats.norm(alpha * values, sigma).pdf(Z[:, None].numpy()))[moderate]
    log_posterior = np.log(joint / joint.sum(1, keepdims=True))
    close(level_log_probs(logits, Z, GAMMA, space)[moderate], log_posterior, rtol=1e-9, atol=1e-11)
    close(level_log_probs(logits, Z, GAMMA, space).exp().sum(1), np.ones(SHAPE))


@pytest.mark.parametrize("wrong", [(2, 5), (2, 6, 1), (2, 17)])
def test_wrong_channels_are_refused(wrong: tuple[int, ...]) -> None:
    space = Discrete((2,), 17)
    for convert in (categorical_logits, logistic_logits):
        with pytest.raises(ValueError, match="levels head over 17 levels"):
            convert(torch.zeros(wrong), space)


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_a_decoded_level_costs_what_the_table_has(levels: int) -> None:
    space, index = Discrete((2, 3), levels, low=-1.0, high=3.0), torch.arange(6).reshape(1, 2, 3) * (levels - 1) // 5
    index = torch.cat([index, levels - 1 - index])
    outputs = [2 * randn(2, 4, 3, seed=4).requires_grad_() for _ in range(2)]
    gamma = torch.full((2,), torch.inf, dtype=torch.float64)
    prediction = decoded_levels(outputs[0], float64(np.zeros((2, 2, 3))), gamma, space)
    table = logistic_logits(outputs[1], space).log_softmax(1)
    expected = table.gather(1, index.unsqueeze(1)).squeeze(1)
    found = prediction.of_level(index)
    close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(value.sum(), output)[0] for value, output in zip((found, expected), outputs, strict=True)
    ]
    close(*grads, rtol=1e-9, atol=1e-10)
    close(prediction.log_probs, table, rtol=1e-12, atol=1e-12)
    values = space.values.double().reshape(-1, 1, 1)
    close(prediction.data, (table.exp() * values).sum(1), rtol=1e-9)


def test_an_unlikely_decoded_level_has_a_finite_cost_and_gradient() -> None:
    space, gamma = Discrete((1,), 256), torch.full((3,), torch.inf, dtype=torch.float64)
    # A scale far below a level, one far beyond the range, and a mean far from the level.
    output = float64([[0.9, -50.0], [0.0, 50.0], [100.0, 0.0]]).requires_grad_()
    found = decoded_levels(output, float64([[0.0]] * 3), gamma, space).of_level(torch.tensor([[3], [3], [3]]))
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), output)[0].isfinite().all()
