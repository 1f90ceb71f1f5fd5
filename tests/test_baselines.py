"""The yardsticks: normalised, equal to brute force and to scipy, fitted as their formulas say, chosen without the test set."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.covariance import LedoitWolf

from diffusional import baselines
from diffusional.baselines import SMOOTHINGS, CategoricalMixture, FactorizedCategorical, FullGaussian
from diffusional.data import Dataset, load
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

TINY = Discrete((1, 2, 2), levels=3)


def clustered(n: int, seed: int) -> torch.Tensor:
    """Items of TINY in two clusters, so that positions depend on each other; level 2 is never at the last position."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.5, 0.0]])
    high = torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.3, 0.6], [0.1, 0.6, 0.3], [0.2, 0.8, 0.0]])
    table = torch.where((torch.rand(n, generator=generator) < 0.4)[:, None, None], low, high)
    return torch.multinomial(table.flatten(0, 1), 1, generator=generator).reshape(n, 1, 2, 2)


TRAIN, VALIDATION = clustered(60, 0), clustered(40, 1)


def fitted(kind: str) -> FactorizedCategorical | CategoricalMixture:
    if kind == "factorised":
        return FactorizedCategorical.fit(TRAIN, TINY, VALIDATION)
    return CategoricalMixture.fit(TRAIN, TINY, VALIDATION, components=3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


# ------------------------------------------------------------------------------------------------ mass functions


@pytest.mark.parametrize("kind", ["factorised", "mixture"])
def test_masses_sum_to_one(kind: str) -> None:
    everything = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(81, 1, 2, 2)
    log_p = fitted(kind).log_prob(everything)
    assert log_p.dtype == torch.float64
    assert log_p.shape == (81,)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_factorised_is_the_smoothed_histogram() -> None:
    a = 0.7
    model = FactorizedCategorical.fit(TRAIN, TINY, smoothing=a)
    for item, log_p in zip(VALIDATION, model.log_prob(VALIDATION).tolist(), strict=True):
        expected = 0.0
        for row, column in itertools.product(range(2), repeat=2):
            count = sum(int(other[0, row, column] == item[0, row, column]) for other in TRAIN)
            expected += math.log((count + a) / (60 + 3 * a))
        assert log_p == pytest.approx(expected, rel=1e-12)


def test_mixture_is_the_sum_over_its_components() -> None:
    model = fitted("mixture")
    assert isinstance(model, CategoricalMixture)
    pi, p = model.log_weights.exp().tolist(), model.log_probs.exp().tolist()
    assert math.fsum(pi) == pytest.approx(1.0, abs=1e-12)
    for item, log_p in zip(VALIDATION, model.log_prob(VALIDATION).tolist(), strict=True):
        levels = item.flatten().tolist()
        total = sum(pi[c] * math.prod(p[c][d][k] for d, k in enumerate(levels)) for c in range(3))
        assert log_p == pytest.approx(math.log(total), rel=1e-12)


def test_a_mixture_of_one_is_factorised() -> None:
    mixture = CategoricalMixture.fit(TRAIN, TINY, components=1, smoothing=0.3, restarts=1)
    factorised = FactorizedCategorical.fit(TRAIN, TINY, smoothing=0.3)
    torch.testing.assert_close(mixture.log_prob(VALIDATION), factorised.log_prob(VALIDATION), rtol=0, atol=1e-12)


def test_an_em_step_is_its_formula() -> None:
    """Against loops over items, components, positions and levels, from a mixture far from converged."""
    a, (n, c, d, k) = 0.4, (60, 3, 4, 3)
    rng = np.random.default_rng(0)
    pi, p = rng.dirichlet(np.ones(c)), rng.dirichlet(np.ones(k), (c, d))
    x = TRAIN.reshape(n, d).tolist()
    joint = np.array([[pi[i] * np.prod([p[i, j, item[j]] for j in range(d)]) for i in range(c)] for item in x])
    r = joint / joint.sum(1, keepdims=True)
    soft = np.zeros((c, d, k))
    for item, i, j in itertools.product(range(n), range(c), range(d)):
        soft[i, j, x[item][j]] += r[item, i]
    start = CategoricalMixture(TINY, torch.from_numpy(np.log(pi)), torch.from_numpy(np.log(p)), a)
    step = start.em_step(TRAIN)
    np.testing.assert_allclose(step.log_weights.exp().numpy(), (r.sum(0) + a) / (n + a * c), rtol=1e-12)
    expected = (soft + a) / (r.sum(0)[:, None, None] + a * k)
    np.testing.assert_allclose(step.log_probs.exp().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("a", [1e-9, 0.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_em_never_lowers_its_objective(a: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pi, p = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3), (4, 4))
    model = CategoricalMixture(TINY, torch.from_numpy(np.log(pi)), torch.from_numpy(np.log(p)), a)
    objectives, likelihoods = [], []
    for _ in range(40):
        objectives.append(model.objective(TRAIN))
        likelihoods.append(float(model.log_prob(TRAIN).sum()))
        model = model.em_step(TRAIN)
    assert min(np.diff(objectives)) > -1e-9
    assert objectives[-1] > objectives[0] + 1  # it moved at all
    if a == 1e-9:  # no smoothing to speak of: the train likelihood itself
        assert min(np.diff(likelihoods)) > -1e-6


def test_objective_adds_the_smoothing_to_the_likelihood() -> None:
    model = CategoricalMixture.fit(TRAIN, TINY, components=2, smoothing=0.25)
    prior = 0.25 * (float(model.log_weights.sum()) + float(model.log_probs.sum()))
    assert model.objective(TRAIN) == pytest.approx(float(model.log_prob(TRAIN).sum()) + prior, rel=1e-12)


def test_fit_ends_where_em_stands_still() -> None:
    model = CategoricalMixture.fit(TRAIN, TINY, components=3, smoothing=0.5, restarts=1)
    assert 0 <= model.em_step(TRAIN).objective(TRAIN) - model.objective(TRAIN) < 1e-4 * len(TRAIN)


def test_a_mixture_finds_the_clusters() -> None:
    raw = clustered(2000, 3)
    mixture = CategoricalMixture.fit(raw, TINY, components=2)
    assert mixture.log_weights.exp().sort().values.tolist() == pytest.approx([0.4, 0.6], abs=0.05)
    fresh = clustered(2000, 4)
    gain = mixture.log_prob(fresh).mean() - FactorizedCategorical.fit(raw, TINY).log_prob(fresh).mean()
    assert gain > 0.2


# ------------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize("n", [6, 60])
def test_factorised_smoothing_is_the_best_on_validation(n: int) -> None:
    chosen = FactorizedCategorical.fit(TRAIN[:n], TINY, VALIDATION)
    scores = {
        a: float(FactorizedCategorical.fit(TRAIN[:n], TINY, smoothing=a).log_prob(VALIDATION).sum()) for a in SMOOTHINGS
    }
    assert chosen.smoothing == max(scores, key=lambda a: scores[a])
    assert float(chosen.log_prob(VALIDATION).sum()) == pytest.approx(max(scores.values()))


def test_fewer_items_want_more_smoothing() -> None:
    few, many = (FactorizedCategorical.fit(clustered(n, 5), TINY, VALIDATION).smoothing for n in (3, 2000))
    assert few > many


def test_mixture_s_smoothing_is_the_best_on_validation() -> None:
    chosen = CategoricalMixture.fit(TRAIN, TINY, VALIDATION, components=3, restarts=1)
    scores = {
        a: float(CategoricalMixture.fit(TRAIN, TINY, components=3, restarts=1, smoothing=a).log_prob(VALIDATION).sum())
        for a in SMOOTHINGS
    }
    assert chosen.smoothing == max(scores, key=lambda a: scores[a])


@pytest.mark.parametrize("judge", [None, VALIDATION])
def test_more_restarts_are_never_worse_to_their_judge(judge: torch.Tensor | None) -> None:
    by = TRAIN if judge is None else judge
    scores = [
        float(CategoricalMixture.fit(TRAIN, TINY, judge, 6, 0.1, restarts=r).log_prob(by).sum()) for r in (1, 2, 4, 8)
    ]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_without_validation_smoothing_is_jeffreys() -> None:
    assert FactorizedCategorical.fit(TRAIN, TINY).smoothing == 0.5
    assert CategoricalMixture.fit(TRAIN, TINY, components=2).smoothing == 0.5


def test_the_seed_decides() -> None:
    one, again, other = (CategoricalMixture.fit(TRAIN, TINY, components=5, seed=s) for s in (1, 1, 2))
    torch.testing.assert_close(one.log_probs, again.log_probs, rtol=0, atol=0)
    assert not torch.equal(one.log_probs, other.log_probs)


def test_an_item_s_score_does_not_know_its_batch() -> None:
    for kind in ("factorised", "mixture"):
        model = fitted(kind)
        alone = torch.cat([model.log_prob(item[None]) for item in VALIDATION])
        torch.testing.assert_close(alone, model.log_prob(VALIDATION), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_storage_does_not_matter(dtype: torch.dtype) -> None:
    """In particular, bytes must not overflow as they are offset to their position's columns."""
    space = Discrete((8,), levels=200)
    raw = torch.randint(0, 200, (30, 8), generator=torch.Generator().manual_seed(0))
    for model in (FactorizedCategorical.fit(raw.to(dtype), space), CategoricalMixture.fit(raw.to(dtype), space)):
        torch.testing.assert_close(model.log_prob(raw.to(dtype)), model.log_prob(raw))
    wide, narrow = FactorizedCategorical.fit(raw, space), FactorizedCategorical.fit(raw.to(dtype), space)
    torch.testing.assert_close(wide.log_probs, narrow.log_probs)


# ---------------------------------------------------------------------------------------------------- the digits


def bits_per_dim(log_p: torch.Tensor) -> float:
    return -float(log_p.mean()) / (64 * math.log(2))


def test_factorised_on_digits(digits: Dataset) -> None:
    """2.40 bits/dim came from another implementation (FINDINGS); the counting below is a third."""
    assert isinstance(digits.space, Discrete)
    model = FactorizedCategorical.fit(digits.train, digits.space, digits.validation)
    assert bits_per_dim(model.log_prob(digits.test)) == pytest.approx(2.40, abs=0.03)
    train, test = digits.train.reshape(-1, 64).numpy(), digits.test.reshape(-1, 64).numpy()
    a = model.smoothing
    counts = np.stack([np.bincount(column, minlength=17) for column in train.T])
    p = (counts + a) / (1000 + 17 * a)
    assert bits_per_dim(model.log_prob(digits.test)) == pytest.approx(
        -np.log2(p[np.arange(64), test]).mean(), rel=1e-12
    )


def test_mixture_on_digits(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another implementation had 2.28 bits/dim (FINDINGS); its EM watched the likelihood alone and stopped earlier."""
    assert isinstance(digits.space, Discrete)
    steps, maximise = [0], baselines._maximise

    def counted(*args: Any) -> CategoricalMixture:
        steps[0] += 1
        return maximise(*args)

    monkeypatch.setattr(baselines, "_maximise", counted)
    model = CategoricalMixture.fit(digits.train, digits.space, digits.validation)
    assert steps[0] < 2000
    assert 2.20 < bits_per_dim(model.log_prob(digits.test)) < 2.33


# ---------------------------------------------------------------------------------------------------- Gaussian

SHIFT, SCALE = np.array([1.0, -2.0, 30.0]), np.array([0.5, 2.0, 10.0])
REAL_SPACE = Continuous((3, 1), shift=tuple(SHIFT.tolist()), scale=tuple(SCALE.tolist()))


def correlated(n: int, seed: int) -> torch.Tensor:
    mix = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.5, 0.7]])
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3)) @ mix.T * SCALE + SHIFT)[..., None]


@pytest.mark.parametrize("n", [5, 200])
def test_gaussian_is_scipy_s_in_the_original_units(n: int) -> None:
    raw, fresh = correlated(n, 0), correlated(50, 1)
    model = FullGaussian.fit(raw, REAL_SPACE)
    # scikit-learn fits the standardised values; the change of units is done on its mean and covariance here.
    reference = LedoitWolf().fit((raw[..., 0].numpy() - SHIFT) / SCALE)
    mean = SHIFT + SCALE * reference.location_
    covariance = SCALE[:, None] * reference.covariance_ * SCALE
    expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(fresh[..., 0].numpy())
    log_p = model.log_prob(fresh)
    assert log_p.dtype == torch.float64
    np.testing.assert_allclose(log_p.numpy(), expected, rtol=1e-10)
    assert model.shrinkage == pytest.approx(reference.shrinkage_)


def test_gaussian_integrates_to_one() -> None:
    space = Continuous((2,), shift=(1.0, 5.0), scale=(0.1, 3.0))
    z = np.random.default_rng(0).normal(size=(100, 2)) @ np.array([[1.0, 0.7], [0.0, 0.5]])
    model = FullGaussian.fit(torch.from_numpy(z * [0.1, 3.0] + [1.0, 5.0]), space)
    u, v = np.linspace(0.0, 2.0, 401), np.linspace(-25.0, 35.0, 401)
    grid = torch.from_numpy(np.stack(np.meshgrid(u, v, indexing="ij"), -1)).reshape(-1, 2)
    total = float(model.log_prob(grid).exp().sum()) * (u[1] - u[0]) * (v[1] - v[0])
    assert total == pytest.approx(1.0, abs=1e-6)


def test_gaussian_s_density_follows_its_units() -> None:
    raw = correlated(100, 2)
    metres = FullGaussian.fit(raw, REAL_SPACE).log_prob(raw)
    space = Continuous((3, 1), shift=tuple((1e3 * SHIFT).tolist()), scale=tuple((1e3 * SCALE).tolist()))
    millimetres = FullGaussian.fit(1e3 * raw, space).log_prob(1e3 * raw)
    torch.testing.assert_close(metres - millimetres, torch.full((100,), 3 * math.log(1e3), dtype=torch.float64))


@pytest.mark.parametrize("n", [2, 10])
def test_gaussian_of_fewer_items_than_dimensions(n: int) -> None:
    raw = torch.randn(n, 40, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(FullGaussian.fit(raw, Continuous((40,))).log_prob(raw)).all()


def test_gaussian_of_two_points_and_collinear_columns() -> None:
    """Ledoit and Wolf's shrinkage is zero here and S singular."""
    raw = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).repeat(50, 1)
    model = FullGaussian.fit(raw, Continuous((2,)))
    assert torch.isfinite(model.log_prob(raw)).all()
    assert model.shrinkage == 1e-6


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("fit", [FactorizedCategorical.fit, CategoricalMixture.fit])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (TRAIN + 1, "3 levels that are declared, got 1 to 3"),
        (TRAIN - 1, "got -1 to"),
        (TRAIN.float(), "got values of type torch.float32"),
        (TRAIN[:, 0], r"shape .* got \(2, 2\)"),
        (TRAIN[:0], "at least one item"),
    ],
)
def test_data_outside_the_space(fit, raw: torch.Tensor, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        fit(raw, TINY)
    model = fit(TRAIN, TINY)
    with pytest.raises(DiffusionalError, match=message):
        model.log_prob(raw)


@pytest.mark.parametrize("fit", [FactorizedCategorical.fit, CategoricalMixture.fit])
@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.inf, math.nan])
def test_smoothing_must_be_positive(fit, smoothing: float) -> None:
    with pytest.raises(DiffusionalError, match=f"smoothing to be positive, got {smoothing}"):
        fit(TRAIN, TINY, smoothing=smoothing)


def test_components_and_restarts() -> None:
    for components in (0, 61):
        with pytest.raises(DiffusionalError, match=f"components from 1 to 60, .* got {components}"):
            CategoricalMixture.fit(TRAIN, TINY, components=components)
    with pytest.raises(DiffusionalError, match="restarts of at least 1, got 0"):
        CategoricalMixture.fit(TRAIN, TINY, restarts=0)


@pytest.mark.parametrize("raw", [torch.ones(1, 2), torch.ones(5, 2)])
def test_gaussian_without_variation(raw: torch.Tensor) -> None:
    with pytest.raises(DiffusionalError, match=f"at least two items that differ, .* got {len(raw)}"):
        FullGaussian.fit(raw, Continuous((2,)))


def test_gaussian_of_values_that_are_not_finite() -> None:
    raw = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    with pytest.raises(DiffusionalError, match="not finite in item 1"):
        FullGaussian.fit(raw, Continuous((2,)))
    with pytest.raises(DiffusionalError, match="not finite in item 1"):
        FullGaussian.fit(torch.randn(9, 2), Continuous((2,))).log_prob(raw)
