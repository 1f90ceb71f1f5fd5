"""The methods of scikit-learn's density estimators."""

import math

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation.score import CONTROLS

VARIANCES = torch.tensor([1.0, 0.25])
REALS = df.Continuous((2,), shift=(3.0, 0.0), scale=(2.0, 1.0))
WORLD = exact.Gaussian(torch.zeros(2), torch.diag(VARIANCES))
PROCESS = df.GaussianDiffusion(schedule.log_snr_linear(-8.0, 8.0))
MODEL = df.DiffusionModel(PROCESS, WORLD.denoiser(), likelihood.GaussianLikelihood(REALS))
RAW = REALS.decode(WORLD.sample(120, torch.Generator().manual_seed(0))).numpy()


def log_density(raw: np.ndarray) -> np.ndarray:
    """The true density in the units of the raw values."""
    x = (raw - [3.0, 0.0]) / [2.0, 1.0]
    variances = VARIANCES.numpy()
    return (-0.5 * (x**2 / variances + np.log(2 * np.pi * variances))).sum(1) - math.log(2.0)


def test_score_samples_is_a_log_density_in_the_units_of_x() -> None:
    found = df.DensityEstimator(MODEL, visits=128).fit(RAW).score_samples(RAW)
    expected = log_density(RAW)
    assert found.shape == (120,)
    # A lower bound, which is nearly tight for the world's own denoiser: no factor, sign or unit is missing.
    assert np.corrcoef(found, expected)[0, 1] > 0.95
    assert found.mean() == pytest.approx(expected.mean(), abs=0.15)
    assert found.mean() < expected.mean() + 0.05


def test_it_works_in_a_pipeline() -> None:
    from sklearn.base import clone
    from sklearn.mixture import GaussianMixture
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    doubled = FunctionTransformer(lambda x: x / 2)
    pipeline = make_pipeline(doubled, df.DensityEstimator(MODEL, visits=4))
    pipeline.fit(2 * RAW)
    direct = df.DensityEstimator(MODEL, visits=4).fit(RAW)
    np.testing.assert_allclose(pipeline.score_samples(2 * RAW), direct.score_samples(RAW))
    assert pipeline.score(2 * RAW) == pytest.approx(direct.score(RAW))
    assert direct.score(RAW) == pytest.approx(direct.score_samples(RAW).mean())
    # The same use as scikit-learn's own.
    own = Pipeline([("scale", StandardScaler()), ("density", GaussianMixture(1))]).fit(RAW)
    assert own.score_samples(RAW).shape == direct.score_samples(RAW).shape
    copied = clone(direct.set_params(visits=8))
    assert copied.get_params()["visits"] == 8
    assert copied.score_samples(RAW[:5]).shape == (5,)
    assert "density" in repr(own)
    assert repr(pipeline)


def test_a_fitted_score_depends_on_its_sample_only() -> None:
    estimator = df.DensityEstimator(MODEL, visits=4).fit(RAW)
    assert {control.name for control in estimator.plan_.controls} <= set(CONTROLS)
    whole, part = estimator.score_samples(RAW), estimator.score_samples(RAW[30:40])
    np.testing.assert_allclose(part, whole[30:40], rtol=1e-5)
    again = df.DensityEstimator(MODEL, visits=4, plan=estimator.plan_)
    np.testing.assert_allclose(again.score_samples(RAW), whole, rtol=1e-6)


def test_levels_may_be_real_numbers_and_flat() -> None:
    levels = df.Discrete((1, 2, 2), levels=4)
    denoiser = df.Denoiser(lambda z, log_snr: 0.5 * z.clamp(-1, 1), "data")
    model = df.DiffusionModel(PROCESS, denoiser, likelihood.LevelPosterior(levels))
    images = torch.randint(0, 4, (30, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    estimator = df.DensityEstimator(model, visits=4).fit(images)
    found = estimator.score_samples(images)
    np.testing.assert_allclose(estimator.score_samples(images.flatten(1).double().numpy()), found)
    with pytest.raises(df.DiffusionalError, match=r"whole numbers 0 … 3.*got 0\.5"):
        estimator.score_samples(images.flatten(1).numpy() + 0.5)
    with pytest.raises(df.DiffusionalError, match=r"\(N, 4\).*\(30, 3\)"):
        estimator.score_samples(np.zeros((30, 3)))
    with pytest.raises(df.DiffusionalError, match="'vists'"):
        estimator.set_params(vists=3)
