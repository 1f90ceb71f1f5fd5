"""Pointwise information of conditions (MATH (27))."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.information import bounded, pointwise


def world(apart: float = 1.0) -> exact.Labelled:
    means = apart * torch.tensor([[-1.0, 0.0], [0.3, 0.5], [1.5, -1.0]])
    return exact.Labelled(torch.tensor([0.2, 0.5, 0.3]), means, 0.3 * torch.eye(2).expand(3, 2, 2))


def model_of(
    here: exact.Labelled, steps: int | None = None, assisted: bool = False, predicts: Any = "data"
) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), assisted=assisted)
    return df.DiffusionModel(process, here.conditional_denoiser(predicts), decoder)


@pytest.mark.parametrize(("steps", "assisted"), [(None, False), (400, True)])
def test_the_mean_is_the_mutual_information_and_each_item_its_own(steps: int | None, assisted: bool) -> None:
    here = world()
    x, c = here.sample_labelled(400, torch.Generator().manual_seed(0))
    found = pointwise(model_of(here, steps, assisted), x, c, visits=48)
    truth = here.pointwise_information(x, c)
    assert abs(found.mean.value - float(truth.mean())) < 4 * found.mean.error + 0.01
    # The error over items covers I(x; c) itself.
    assert (
        abs(found.mean.value - here.label_information())
        < 4 * math.hypot(found.mean.error, found.mean.item_error) + 0.01
    )
    off = (found.items - truth) / found.errors.clamp(min=1e-3)
    assert float(off.square().mean().sqrt()) < 1.6
    assert float(torch.corrcoef(torch.stack([found.items, truth]))[0, 1]) > 0.7
    assert found.shuffled is not None
    assert found.shuffled.value < -4 * found.shuffled.error


def test_levels_and_the_decoder_add_up_to_the_mean() -> None:
    here = world()
    x, c = here.sample_labelled(100, torch.Generator().manual_seed(0))
    found = pointwise(model_of(here, 30, True), x, c, visits=8)
    assert float(found.levels.sum()) + found.decoder.value == pytest.approx(found.mean.value)
    assert found.items.mean() == pytest.approx(found.mean.value)
    assert len(found.gamma) == len(found.edges) == len(found.levels) + 1
    assert found.network_evaluations >= 3 * 100 * 8


def test_the_part_of_a_level_is_half_the_difference_of_the_mmse() -> None:
    """½ ∫ (mmse_∅ − mmse_c) SNR dγ by cells of continuous time."""
    here = exact.Labelled(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.3))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    decoder = likelihood.GaussianLikelihood(df.Continuous((1,)), assisted=False)
    x, c = here.sample_labelled(2000, torch.Generator().manual_seed(0))
    model = df.DiffusionModel(process, here.conditional_denoiser(), decoder)
    found = pointwise(model, x, c, visits=6, shuffle=False)
    for k, (low, high) in enumerate(zip(found.gamma[:-1].tolist(), found.gamma[1:].tolist(), strict=True)):
        gamma = torch.linspace(low, high, 21, dtype=torch.float64)
        gain = 0.5 * torch.exp(-gamma) * (here.mmse(gamma) - here.mmse_given(gamma))
        expected = float(torch.trapezoid(gain, gamma))
        assert abs(float(found.levels[k]) - expected) < 5 * float(found.levels_error[k]) + 0.02


@pytest.mark.parametrize("predicts", ["noise", "v", "data"])
def test_a_map_over_positions_adds_up_to_the_levels(predicts: Any) -> None:
    here = world()
    x, c = here.sample_labelled(50, torch.Generator().manual_seed(0))
    found = pointwise(model_of(here, predicts=predicts), x, c, visits=8, positions=True)
    assert found.map.shape == (50, 2)
    assert found.map.sum(1) == pytest.approx(found.items, abs=1e-4)
    # A condition that is about one position only has its information there.
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    one = exact.Labelled(torch.ones(2), means, 0.3 * torch.eye(2).expand(2, 2, 2))
    x, c = one.sample_labelled(200, torch.Generator().manual_seed(0))
    found = pointwise(model_of(one), x, c, visits=16, positions=True)
    by_position = found.map.mean(0)
    assert abs(float(by_position[1])) < 1e-6
    assert abs(float(by_position[0]) - one.label_information()) < 4 * found.mean.error + 0.05


def test_an_estimate_does_not_depend_on_the_other_items() -> None:
    here = world()
    x, c = here.sample_labelled(8, torch.Generator().manual_seed(0))
    plan = df.Plan.uniform(model_of(here))
    whole, part = (
        pointwise(model_of(here), x[s], c[s], visits=4, plan=plan, shuffle=False) for s in (slice(8), slice(5, 8))
    )
    assert part.items.equal(whole.items[5:])
    assert part.errors.equal(whole.errors[5:])
    assert part.shuffled is None
    assert (whole.to_dict()["kind"], part.to_dict()["shuffled_nats"]) == ("estimate", None)


def test_a_plan_for_the_difference_has_less_noise_than_one_for_the_costs() -> None:
    here = world()
    x, c = here.sample_labelled(1000, torch.Generator().manual_seed(0))
    model = model_of(here)
    ours, fitted, uniform = (
        pointwise(model, x, c, visits=8, plan=plan, shuffle=False).mean.error
        for plan in (None, df.Plan.fit(model, x, 1000, condition=c), df.Plan.uniform(model))
    )
    assert ours < 0.9 * uniform
    assert ours < 1.1 * fitted


def test_the_bounded_form_is_enclosed_and_does_not_exceed_the_labels() -> None:
    here = world(3.0)
    x, c = here.sample_labelled(300, torch.Generator().manual_seed(0))
    prior = here.weights
    found = bounded(model_of(here), x, c, classes=3, prior=prior, visits=32)
    truth = float(here.pointwise_information(x, c).mean())
    slack = 4 * found.most.error + 0.01
    assert found.least.value - slack < truth < found.most.value + slack
    assert found.least.value <= found.limit == pytest.approx(float(-prior.log()[c].mean()))
    assert found.most.value - found.least.value < 0.3


def test_the_cross_fitted_form_is_above_the_plug_in() -> None:
    """With few draws, the two estimates are apart on either side of the form."""
    here = world()
    x, c = here.sample_labelled(500, torch.Generator().manual_seed(0))
    found = bounded(model_of(here), x, c, classes=3, prior=here.weights, visits=4)
    truth = float(here.pointwise_information(x, c).mean())
    assert found.least.value < truth - 0.02
    assert found.most.value > truth + 0.02


def test_each_end_of_the_bounded_form_has_an_error_of_its_own() -> None:
    """The cross-fitted end varies more than the plug-in one with few draws: r varies too."""
    here = world()
    x, c = here.sample_labelled(20, torch.Generator().manual_seed(0))
    model = model_of(here)
    plan = df.Plan.uniform(model, 8)
    for visits in (4, 8):
        found = [
            bounded(model, x, c, classes=3, prior=here.weights, visits=visits, plan=plan, seed=s) for s in range(100)
        ]
        for name in ("least", "most"):
            ends = [getattr(one, name) for one in found]
            spread = float(torch.tensor([one.value for one in ends]).std())
            reported = math.sqrt(sum(one.error**2 for one in ends) / len(ends))
            assert 0.8 < reported / spread < 1.6, (name, visits, reported / spread)


def test_a_biased_denoiser_exceeds_the_labels_and_the_bounded_form_does_not() -> None:
    """With a bad prediction for no condition, the estimate exceeds H(c): it contains the difference of the gaps."""
    here = world(2.0)
    good = here.conditional_denoiser()

    def network(z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        return 0 * z if c is None else good.module(z, log_snr, c)

    model = model_of(here)
    bad = df.DiffusionModel(model.process, df.Denoiser(network, "data"), model.likelihood)
    x, c = here.sample_labelled(200, torch.Generator().manual_seed(0))
    found = pointwise(bad, x, c, visits=16)
    assert found.mean.value > math.log(3) + 4 * found.mean.error
    form = bounded(bad, x, c, classes=3, prior=here.weights)
    assert form.least.value <= form.limit < found.mean.value


def test_what_is_refused() -> None:
    here = world()
    x, c = here.sample_labelled(4, torch.Generator().manual_seed(0))
    model = model_of(here)
    needs = df.DiffusionModel(model.process, df.Denoiser(lambda z, s, c: 0 * z, "data"), model.likelihood)
    for call, match in (
        (lambda: pointwise(needs, x, c), "condition dropout"),
        (lambda: pointwise(model, x, c, visits=1), "visits"),
        (lambda: pointwise(model, x, c[:3]), "3 rows for 4"),
        (lambda: pointwise(model, x[:1], c[:1]), "2 items"),
        (lambda: bounded(model, x, c), "2 classes"),
        (lambda: bounded(model, x, c + 3, classes=3), "label"),
        (lambda: bounded(model, x, c, classes=3, prior=torch.ones(3)), "prior"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            call()
