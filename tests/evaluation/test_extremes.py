"""The items at either end are reported by draws that did not choose them."""

import math

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation.extremes import extremes
from diffusional.evaluation.score import CONTROLS

D = 3
VARIANCES = torch.tensor([1.0, 0.5, 0.2])
WORLD = exact.Gaussian(torch.zeros(D), torch.diag(VARIANCES))
PROCESS = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=40))
MODEL = df.DiffusionModel(PROCESS, WORLD.denoiser(), likelihood.GaussianLikelihood(df.Continuous((D,))))
X = WORLD.sample(60, torch.Generator().manual_seed(0))
# Whose control is the model itself: with less noise.
QUIET = df.Plan.fit(MODEL, X)


def truth(x: Tensor) -> Tensor:
    """E NELBO (N,) in closed form: the error of the optimal denoiser's noise is linear in ε and x."""
    gamma = PROCESS.schedule.grid()
    alpha2, sigma2 = torch.sigmoid(-gamma)[:, None, None], torch.sigmoid(gamma)[:, None, None]
    marginal = alpha2 * VARIANCES + sigma2
    squared = (alpha2 * VARIANCES / marginal).square() + alpha2 * sigma2 * x.square() / marginal.square()
    kl = (0.5 * torch.expm1(gamma.diff())[:, None, None] * squared[1:]).sum(0)
    reconstruction = 0.5 * (squared[0] + gamma[0] + math.log(2 * math.pi))
    prior = 0.5 * (alpha2[-1] * x.square() + sigma2[-1] - 1 - sigma2[-1].log())
    return (kl + reconstruction + prior).sum(1)


def test_reported_scores_are_not_biased_by_the_choice() -> None:
    """Those that chose the items are, by several standard errors."""
    plan, exact_values = df.Plan.uniform(MODEL), truth(X)
    chosen, reported = {"low": [], "high": []}, {"low": [], "high": []}
    for seed in range(40):
        scores = df.score(MODEL, X, plan=plan, visits=2, seed=seed)
        ends = extremes(MODEL, X, scores, 3, most=2, seed=seed)
        for end, items in (("low", ends.most_likely), ("high", ends.least_likely)):
            order = scores.nelbo.argsort(descending=end == "high")[:3]
            chosen[end].append(float((scores.nelbo[order] - exact_values[order]).mean()))
            at = torch.tensor([ends.place(int(i)) for i in items])
            reported[end].append(float((ends.nelbo[at] - exact_values[items]).mean()))

    def z(values: list[float]) -> float:
        many = torch.tensor(values, dtype=torch.float64)
        return float(many.mean() / (many.std() / len(many) ** 0.5))

    assert z(chosen["low"]) < -8
    assert z(chosen["high"]) > 8
    for end in ("low", "high"):
        assert abs(z(reported[end])) < 4


def test_stated_errors_are_the_spread_of_reported_scores() -> None:
    plan, exact_values, off = df.Plan.fit(MODEL, X, 1000, controls=CONTROLS), truth(X), []
    for seed in range(20):
        ends = extremes(MODEL, X, df.score(MODEL, X, plan=plan, visits=8, seed=seed), 3, most=4, seed=seed)
        off += ((ends.nelbo - exact_values[ends.item]) / ends.error).tolist()
    assert float(torch.tensor(off).std()) == pytest.approx(1.0, abs=0.25)


def test_errors_decide_who_is_drawn_how_often() -> None:
    """Large errors at the ends are drawn until they are small beside the items' own differences, within the limit."""
    scores = df.score(MODEL, X, plan=df.Plan.uniform(MODEL), visits=4)
    ends = extremes(MODEL, X, scores, 4)
    assert set(ends.visits.tolist()) <= {4, 16, 64}
    assert int(ends.visits.max()) > 4
    before = scores.error[ends.item]
    assert float(ends.error.mean()) < 0.5 * float(before.mean())
    assert ends.evaluations <= 8 * 4 * 16 * 4
    assert ends.evaluations >= int(ends.visits.sum())
    limited = extremes(MODEL, X, scores, 4, most=1)
    assert set(limited.visits.tolist()) == {4}
    # Nothing is drawn for a choice that is sure.
    sure = df.score(MODEL, X, plan=QUIET, visits=32)
    assert bool((sure.error < 0.25 * sure.spread).all())
    assert extremes(MODEL, X, sure, 4).evaluations == 8 * 32


def test_what_is_found_is_at_the_end() -> None:
    x = X.clone()
    x[[5, 9]] = 8.0
    x[[20, 30]] = 0.0
    scores = df.score(MODEL, x, X[:40], visits=8, plan=QUIET)
    ends = extremes(MODEL, x, scores, 2)
    assert set(ends.least_likely.tolist()) == {5, 9}
    assert ends.percentile is not None
    assert float(ends.percentile[ends.place(5)]) == 100.0
    assert bool((truth(x)[ends.most_likely] < truth(x).quantile(0.2)).all())
    assert float(ends.percentile[ends.place(int(ends.most_likely[0]))]) < 30
    # The same again.
    assert torch.equal(extremes(MODEL, x, scores, 2).nelbo, ends.nelbo)
    # Fewer items than asked for.
    few = extremes(MODEL, x[:3], df.score(MODEL, x[:3], visits=4), 5)
    assert few.item.tolist() == [0, 1, 2]


def test_bad_input() -> None:
    scores = df.score(MODEL, X[:6], visits=2)
    with pytest.raises(df.DiffusionalError, match="of the 60 items of data, got scores of 6"):
        extremes(MODEL, X, scores)
    with pytest.raises(df.DiffusionalError, match="count to be at least 1, got 0"):
        extremes(MODEL, X[:6], scores, 0)
    with pytest.raises(df.DiffusionalError, match="most to be at least 1, got 0"):
        extremes(MODEL, X[:6], scores, most=0)
    with pytest.raises(df.DiffusionalError, match="got 7"):
        extremes(MODEL, X[:6], scores, 3).place(7)


def test_scores_of_outliers_are_not_made_of_what_controls_expect() -> None:
    """A control that assumes the training data's distribution expects costs of unlike items that a few draws do not take back."""
    levels = df.Discrete((16,), levels=17)
    ordinary = levels.encode(torch.randint(1, 4, (80, 16), generator=torch.Generator().manual_seed(1)))
    unlike = levels.encode(torch.randint(12, 17, (20, 16), generator=torch.Generator().manual_seed(2)))
    denoiser = df.Denoiser(lambda z, log_snr: 0.5 * z.clamp(-1, 1), "data")
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=40))
    model = df.DiffusionModel(process, denoiser, likelihood.LevelPosterior(levels))
    scores = df.score(model, unlike, ordinary, visits=8)
    assert scores.plan is not None
    assert {control.name for control in scores.plan.controls} <= set(CONTROLS)
    every = df.score(model, unlike, plan=df.Plan.fit(model, ordinary), visits=8)
    assert float(scores.error.mean()) < 0.7 * float(every.error.mean())
