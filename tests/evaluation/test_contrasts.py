"""Differences between classes, predicted from few draws."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.contrasts import ClassPlan, ddpm_levels, second_moments, spread
from diffusional.evaluation.visits import LevelVisits


def model_of(steps: int | None = None, apart: float = 2.0) -> tuple[df.DiffusionModel, exact.Labelled]:
    means = apart * torch.tensor([[-1.0, 0.0], [0.3, 0.5], [1.5, -1.0]])
    here = exact.Labelled(torch.ones(3), means, 0.3 * torch.eye(2).expand(3, 2, 2))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), assisted=False)
    return df.DiffusionModel(process, here.conditional_denoiser(), decoder), here


def plan_of(signal: torch.Tensor, noise: torch.Tensor) -> ClassPlan:
    """Return a plan of 3 cells with the given moments; the reconstruction has none."""
    model, _ = model_of()
    full = torch.zeros(4, 4, dtype=torch.float64)
    full[1:, 1:] = signal
    return ClassPlan(df.Plan.uniform(model, 3), full, torch.cat([noise.new_zeros(1), noise]))


def test_the_draws_of_an_item_are_spread_evenly_for_every_number_of_them() -> None:
    start = torch.rand(50, dtype=torch.float64)
    for n in (2, 5, 13, 64):
        item, draw = torch.arange(50).repeat_interleave(n), torch.arange(n).repeat(50)
        places = spread(item, draw, start).view(50, n).sort(1).values
        gaps = torch.cat([places.diff(dim=1), places[:, :1] + 1 - places[:, -1:]], 1)
        assert float(gaps.max()) < 3 / n
        assert float(places.min()) >= 0
        assert float(places.max()) < 1


def test_the_prediction_is_the_conditional_expectation_of_gaussians() -> None:
    """Against the regression of sums on visits in a large sample, and Student's scale where all scales are equal."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    signal, noise = root @ root.mT, torch.tensor([0.3, 2.0, 0.1], dtype=torch.float64)
    plan, n = plan_of(signal, noise), 20_000
    truth = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) @ root.mT
    cells = torch.tensor([1, 3, 1])
    y = truth[:, :, cells - 1] + noise[cells - 1].sqrt() * torch.randn(n, 2, 3, generator=generator).double()
    apart = y[:, :1] - y[:, 1:]
    wanted = (truth[:, 0] - truth[:, 1]).sum(1)
    mean, scale, freedom = plan.predict(cells.expand(n, 3), apart)
    fitted = apart[:, 0] @ torch.linalg.lstsq(apart[:, 0], wanted[:, None]).solution
    assert float((mean - fitted).abs().max()) < 0.1 * float(wanted.std())
    # Of Gaussians, (ν + d'A⁻¹d/2)/(ν + n) has the mean 1.
    error = (wanted - mean[:, 0]).square().mean().sqrt()
    assert float(scale.square().mean().sqrt()) == pytest.approx(float(error), rel=0.03)
    assert freedom == 8 + 3


def test_with_many_draws_of_every_cell_the_prediction_is_the_sum_of_their_means() -> None:
    signal = torch.tensor([[2.0, 1.0, 0.5], [1.0, 1.0, 0.2], [0.5, 0.2, 1.0]], dtype=torch.float64)
    plan = plan_of(signal, torch.ones(3, dtype=torch.float64))
    cells = torch.tensor([1, 2, 3]).repeat(400)
    apart = torch.tensor([5.0, -1.0, 2.0], dtype=torch.float64).repeat(400).view(1, 1, -1)
    mean, scale, _ = plan.predict(cells[None], apart)
    assert float(mean) == pytest.approx(6.0, abs=0.1)
    assert float(scale) < 0.3


def test_the_second_moments_are_those_of_one_class_whatever_the_number_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.2, 0.1, 0.5]], dtype=torch.float64)
    noise = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    for k in (2, 5):
        common = 10 * torch.randn(3000, 3, 1, 1, generator=generator, dtype=torch.float64)
        truth = torch.einsum("cd,ndk->nck", shape, torch.randn(3000, 3, k, generator=generator).double())
        y = common + truth[:, :, None] + noise.sqrt()[:, None, None] * torch.randn(3000, 3, 2, k, generator=generator)
        signal, found = second_moments(y)
        assert float((signal - shape @ shape.mT).abs().max()) < 0.08
        assert float((found - noise).abs().max()) < 0.05


def test_the_plan_has_its_levels_where_classes_differ_with_little_noise() -> None:
    model, here = model_of()
    x, _ = here.sample_labelled(30, torch.Generator().manual_seed(0))
    found = ClassPlan.fit(model, x, 3)
    u = found.plan.edges[:-1] + 0.5 * found.plan.edges.diff()
    # γ from −2 to 4: of lower noise levels a class says nothing that x does not.
    assert 0.35 < float(u[found.plan.mass[1:].argmax()]) < 0.75
    assert float(found.plan.mass[1:].min()) > 0
    assert found.evaluations == 16 * 16 * 2 * 3
    kept = ClassPlan.fit(model, x, 3, plan=df.Plan.uniform(model, 8))
    assert kept.plan.mass.equal(df.Plan.uniform(model, 8).mass)
    assert kept.signal.shape == (9, 9)


@pytest.mark.parametrize("steps", [None, 400])
def test_unweighted_costs_are_the_mean_error_at_the_levels_of_ddpm(steps: int | None) -> None:
    """Σ over levels of density × factor × slope is the distribution of DDPM's γ, as far as the levels of the model reach."""
    model, here = model_of(steps)
    x, _ = here.sample_labelled(4, torch.Generator().manual_seed(0))
    plan = ClassPlan.fit(model, x, 3, weighting="unweighted")
    v = (torch.arange(20_000) + 0.5) / 20_000
    at = plan.plan.at(v.double())
    low = at.cell == int(at.cell.max()) // 2
    slope = model.kl_from(torch.ones(len(v)).double(), at.level) - model.kl_from(torch.zeros(len(v)).double(), at.level)
    share = at.weight * plan.factors(model, at) / plan.plan.mass[at.cell] * slope
    gammas, cdf = ddpm_levels()
    ends = model.edge_gammas(plan.plan.edges if steps is None else torch.zeros(0))
    whole = np.interp([float(ends[0]), float(ends[-1])], gammas, cdf)
    assert float(share.mean()) == pytest.approx(whole[1] - whole[0], rel=0.01)
    if steps is None:
        cell = int(at.cell[low][0])
        part = np.interp(ends[cell - 1 : cell + 1].numpy(), gammas, cdf)
        assert float((share * low).mean()) == pytest.approx(part[1] - part[0], rel=0.02)


def test_unweighted_errors_have_no_reconstruction() -> None:
    model, _ = model_of()
    plan = df.Plan.uniform(model, 3)
    # As if the decoder used the network, so that it is visited.
    visited = replace(plan, mass=torch.full((4,), 0.25, dtype=torch.float64))
    zero = torch.zeros(4, dtype=torch.float64)
    both = LevelVisits(torch.tensor([0, 2]), torch.tensor([0.5, 0.5]), torch.ones(2, dtype=torch.float64))
    for weighting, first in (("bound", 0.25), ("unweighted", 0.0)):
        factors = ClassPlan(visited, torch.diag(zero), zero, weighting).factors(model, both)
        assert float(factors[0]) == first
        assert float(factors[1]) > 0


def test_few_draws_classify_better_than_the_mean_of_their_weighted_costs() -> None:
    model, here = model_of(apart=1.5)
    x, _ = here.sample_labelled(400, torch.Generator().manual_seed(0))
    truth = torch.stack([one.log_prob(x) for one in here.given], 1).argmax(1)
    found = df.classify(model, x, classes=3, max_visits=4, confidence=1 - 1e-9)
    wrong, others = int((found.label != truth).sum()), int((found.nelbo.argmin(1) != truth).sum())
    assert wrong < 0.8 * others
    assert wrong < 30
    unweighted = df.classify(model, x, classes=3, max_visits=4, confidence=1 - 1e-9, weighting="unweighted")
    assert int((unweighted.label != truth).sum()) < 40
    assert unweighted.weighting == "unweighted"
    assert not unweighted.confidence.equal(found.confidence)


def test_what_a_plan_refuses() -> None:
    model, _ = model_of()
    plan, x = df.Plan.uniform(model, 3), torch.zeros(2, 2)
    with pytest.raises(DiffusionalError, match=r"signal.*\(4, 4\)"):
        ClassPlan(plan, torch.zeros(3, 3), torch.zeros(4))
    with pytest.raises(DiffusionalError, match="noise"):
        ClassPlan(plan, torch.zeros(4, 4), torch.full((4,), math.nan))
    with pytest.raises(DiffusionalError, match="2 classes"):
        ClassPlan.fit(model, x, 1)


def test_impossible_moments_become_positive_definite() -> None:
    """A pilot of one item, and classes that hardly differ at some levels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, 6, 2, 2, generator=generator, dtype=torch.float64)
    y[:, 3] = 0
    signal, noise = second_moments(y)
    assert float(torch.linalg.eigvalsh(signal).min()) > 0
    assert float(noise.min()) > 0
    for a, b in itertools.combinations(range(6), 2):
        assert float(signal[a, b].abs()) <= float((signal[a, a] * signal[b, b]).sqrt())
