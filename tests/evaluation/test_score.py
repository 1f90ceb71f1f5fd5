"""Scores of items: percentiles, typicality, profiles and the AUROC with its error."""

import math

import pytest
import torch
from torch import nn

from diffusional import (
    VAE,
    Continuous,
    DiffusionalError,
    DiffusionModel,
    GaussianDiffusion,
    exact,
    likelihood,
    schedule,
    score,
    space,
)
from diffusional.evaluation.score import auroc, band_edges, profiles

WORLD = exact.Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 0.5, 0.2])))


def model(steps: int | None = 40) -> DiffusionModel:
    forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=steps))
    return DiffusionModel(forward, WORLD.denoiser(), likelihood.GaussianLikelihood(Continuous((3,))))


X = WORLD.sample(160, torch.Generator().manual_seed(0))


def test_auroc_is_the_mann_whitney_statistic_with_delong_error() -> None:
    from scipy.stats import mannwhitneyu

    generator = torch.Generator().manual_seed(1)
    p, q = (
        torch.randn(40, generator=generator).round(decimals=1) + 0.5,
        torch.randn(60, generator=generator).round(decimals=1),
    )
    found = auroc(p, q)
    assert found.value == pytest.approx(mannwhitneyu(p.numpy(), q.numpy()).statistic / (40 * 60), abs=1e-12)
    # The structural components of DeLong et al., pair by pair.
    psi = (p[:, None] > q).double() + 0.5 * (p[:, None] == q).double()
    variance = psi.mean(1).var() / 40 + psi.mean(0).var() / 60
    assert found.error == pytest.approx(math.sqrt(float(variance)), rel=1e-12)


def test_the_error_of_the_auroc_is_its_spread_over_samples() -> None:
    generator = torch.Generator().manual_seed(2)
    found = [auroc(torch.randn(30, generator=generator) + 1, torch.randn(50, generator=generator)) for _ in range(400)]
    spread = torch.tensor([one.value for one in found]).std()
    assert float(spread) == pytest.approx(sum(one.error for one in found) / 400, rel=0.12)


def test_percentiles_and_typicality() -> None:
    scores = score(model(), X[:20], X[20:80], visits=4)
    reference = scores.reference
    assert reference is not None
    item = 3
    below = float((reference < scores.nelbo[item]).double().mean())
    assert float(scores.percentile[item]) == pytest.approx(100 * below)
    assert float(scores.typicality[item]) == pytest.approx(abs(float(scores.nelbo[item]) - float(reference.mean())))
    # In the order of the data, and the same as those of an evaluation.
    assert torch.equal(scores.nelbo, scores.evaluation.per_item["nelbo"][scores.evaluation.per_item["item"].argsort()])


def test_a_score_depends_on_its_item_only() -> None:
    from diffusional import Plan

    plan = Plan.fit(model(), X, 500)
    whole, part = (score(model(), x, plan=plan, visits=4, bands=3) for x in (X[:20], X[10:15]))
    assert torch.equal(whole.nelbo[10:15], part.nelbo)
    assert whole.profile is not None
    assert part.profile is not None
    torch.testing.assert_close(whole.profile[10:15], part.profile, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [40, None])
def test_the_profile_adds_up_to_the_cost_of_the_levels(steps: int | None) -> None:
    chain, x = model(steps), X[:3]
    edges = band_edges(chain, 4)
    many = torch.stack([profiles(chain, x, edges, seed).sum(1) for seed in range(100)])
    generator = torch.Generator().manual_seed(0)
    swept = torch.stack([chain.elbo(x, generator).totals()["kl"] for _ in range(100)])
    error = ((many.var(0) + swept.var(0)) / 100).sqrt()
    assert bool(((many.mean(0) - swept.mean(0)).abs() < 4.5 * error).all())
    assert bool((error < 0.1 * swept.mean(0)).all())


def test_every_level_is_in_one_band() -> None:
    edges = band_edges(model(), 5)
    assert (int(edges[0]), int(edges[-1])) == (1, 40)
    assert bool((edges.diff() > 0).all())
    widths = schedule.log_snr_linear(-6.0, 6.0, steps=40).grid()[edges - 1].diff()
    assert bool(((widths - 12 / 5).abs() < 12 / 39 + 1e-9).all())
    assert torch.equal(band_edges(model(), 1000), torch.arange(1, 41))


def test_outliers_on_either_side_are_found_by_typicality_and_profile() -> None:
    # At the mean an item costs less than any typical one, so that the NELBO ranks it as ordinary.
    inner, outer = torch.zeros(15, 3), 4 * X[:15]
    inner = inner + 0.01 * X[15:30]
    scores = score(model(), torch.cat([X[30:80], inner, outer]), X[80:], visits=8, bands=6)
    outlier = torch.arange(80) >= 50
    low = outlier & (torch.arange(80) < 65)
    assert float(scores.percentile[low].mean()) < 15
    assert scores.auroc(outlier, "typicality").value > scores.auroc(outlier).value
    assert scores.auroc(outlier & ~low, "profile").value > 0.8
    assert scores.auroc(outlier).negatives == 50


def test_models_without_levels_have_scores_but_no_profile() -> None:
    bits = space.binary((4,))
    decoder = nn.Linear(2, 8)
    vae = VAE(nn.Linear(4, 4), decoder, likelihood.NetworkLevels(bits), latents=2)
    x = bits.encode(torch.randint(2, (12, 4), generator=torch.Generator().manual_seed(0)))
    scores = score(vae, x[:4], x[4:], visits=4)
    assert scores.profile is None
    assert scores.percentile.shape == (4,)
    with pytest.raises(DiffusionalError, match="VAE"):
        score(vae, x, bands=4)


def test_bad_input() -> None:
    with pytest.raises(DiffusionalError, match="at least 2 positive scores"):
        auroc(torch.tensor([1.0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(DiffusionalError, match="finite negative scores"):
        auroc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]))
    with pytest.raises(DiffusionalError, match="bands"):
        score(model(), X, bands=0)
    scores = score(model(), X[:4], visits=2)
    with pytest.raises(DiffusionalError, match="reference"):
        _ = scores.percentile
    with pytest.raises(DiffusionalError, match="bands"):
        _ = scores.distance
    with pytest.raises(DiffusionalError, match=r"\(4,\)"):
        scores.auroc(torch.ones(3))
    with pytest.raises(DiffusionalError, match="1 true and 3 false"):
        scores.auroc(torch.arange(4) == 0)
    labels = torch.zeros(4).long()
    for options, match in (
        ({"reference": X[:1]}, "at least 2 reference items, got 1"),
        ({"reference_condition": labels}, "reference_condition"),
        ({"reference": X[4:8], "condition": labels}, "give reference_condition"),
        ({"reference": X[4:8], "reference_condition": labels}, "give condition"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            score(model(), X[:4], **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DiffusionalError, match="nelbo, typicality, profile"):
        scores.by("loss")
