"""Classification by bounds, and the cross-fitted lower bound of ln p(x) (MATH (25))."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.classify import Classification, classify
from diffusional.evaluation.common import CommonNoise
from diffusional.evaluation.contrasts import ClassPlan
from diffusional.space import Discrete

LOW, HIGH = -9.0, 9.0


def world(apart: float = 1.0) -> exact.Labelled:
    means = apart * torch.tensor([[-1.0, 0.0], [0.3, 0.5], [1.5, -1.0]])
    return exact.Labelled(torch.tensor([0.2, 0.5, 0.3]), means, 0.3 * torch.eye(2).expand(3, 2, 2))


def model_of(here: exact.Labelled, steps: int | None = None) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps=steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,)), assisted=False)
    return df.DiffusionModel(process, here.conditional_denoiser(), decoder)


def bayes(here: exact.Labelled, x: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return ln p(c) + ln p(x|c) (N, K)."""
    log_prior = torch.full((3,), -math.log(3)).double() if prior is None else prior.log()
    return log_prior + torch.stack([one.log_prob(x) for one in here.given], 1)


@pytest.mark.parametrize("prior", [None, [0.2, 0.5, 0.3]])
def test_the_answers_are_those_of_bayes_rule_where_it_is_sure(prior: Any) -> None:
    here = world(2.0)
    x, _ = here.sample_labelled(120, torch.Generator().manual_seed(0))
    result = classify(model_of(here), x, classes=3, prior=prior, max_visits=128)
    joint = bayes(here, x, None if prior is None else torch.tensor(prior).double())
    ordered = joint.sort(1).values
    clear = ordered[:, -1] - ordered[:, -2] > 1.5
    assert int(clear.sum()) > 90
    assert (result.label == joint.argmax(1))[clear].double().mean() > 0.97
    right = (result.label == joint.argmax(1)).double()
    # The confidence is calibrated: wrong answers are those of little confidence.
    assert float(right.mean()) > float(result.confidence.mean()) - 0.05
    assert result.evaluations.sum() == result.visits.sum()
    assert result.names[0] == str(int(result.label[0]))


def test_classes_are_dropped_and_hard_items_get_more_visits() -> None:
    here = world(2.0)
    x, _ = here.sample_labelled(100, torch.Generator().manual_seed(0))
    result = classify(model_of(here), x, classes=3, max_visits=64)
    joint = bayes(here, x).sort(1).values
    margin = joint[:, -1] - joint[:, -2]
    easy, hard = margin > margin.quantile(0.75), margin < margin.quantile(0.25)
    assert result.evaluations[easy].double().mean() < 0.7 * result.evaluations[hard].double().mean()
    assert result.evaluations.double().mean() < 0.5 * 3 * 64
    assert float(result.confidence[easy].min()) > 0.9
    # The doubt about a class that was dropped early is that of the draws that it shares with the best.
    finished = result.visits.amax(1) < 64
    # Each of two classes was dropped with a doubt below 0.05 / 2, some before others.
    assert float(result.confidence[finished].min()) >= 0.95
    # A class that was dropped has fewer draws than the best.
    assert bool((result.visits.amax(1) > result.visits.amin(1)).any())


def test_a_class_gets_the_noise_of_the_others() -> None:
    here = world()
    x, _ = here.sample_labelled(3, torch.Generator().manual_seed(0))
    plan = df.Plan.uniform(model_of(here))
    item, draw = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 0, 1])
    row, label = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    noise = CommonNoise(model_of(here), plan, x, 0, "classify")
    together = noise.costs(item, draw, row, lambda which: label[which])
    assert noise.evaluations == 12
    for k in range(3):
        one = CommonNoise(model_of(here), plan, x, 0, "classify")
        alone = one.costs(item, draw, torch.arange(4), lambda which, k=k: torch.full((len(which),), k))
        assert together.view(4, 3)[:, k] == pytest.approx(alone, abs=1e-12)


def test_an_answer_does_not_depend_on_the_other_items() -> None:
    here = world()
    x, _ = here.sample_labelled(8, torch.Generator().manual_seed(0))
    plan = df.ClassPlan.fit(model_of(here), x, 3)
    whole, part = (classify(model_of(here), one, classes=3, plan=plan, max_visits=16) for one in (x, x[5:]))
    assert part.nelbo.equal(whole.nelbo[5:])
    assert part.visits.equal(whole.visits[5:])
    assert part.confidence.equal(whole.confidence[5:])


def test_the_bounds_of_the_classes_are_those_of_an_evaluation() -> None:
    here = world()
    model = model_of(here, 200)
    x, _ = here.sample_labelled(5, torch.Generator().manual_seed(0))
    result = classify(model, x.repeat(400, 1), classes=3, max_visits=4, confidence=0.999999)
    assert int(result.visits.min()) == 4
    for k in range(3):
        swept = df.evaluate(model, x, condition=torch.full((5,), k)).per_item
        mean = result.nelbo[:, k].view(400, 5)
        error = mean.std(0) / 20 + swept["error"]
        assert bool(((mean.mean(0) - swept["nelbo"]).abs() < 5 * error).all())


def test_the_cross_fitted_bound_covers_ln_p_in_a_thousand_repeats_while_the_plug_in_exceeds_it() -> None:
    """(25): E Σ r (ln p + ELBO − ln r) ≤ ln p(x), for r of other draws; ln Σ p e^estimate is too large (C11 and its control)."""
    here = world()
    model = model_of(here)
    x = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    repeats, visits = 1000, 4
    prior = here.weights.tolist()
    many, labels = here.sample_labelled(300, torch.Generator().manual_seed(1))
    plan = df.Plan.fit(model, many, 1000, condition=labels)
    result = classify(
        model, x.repeat(repeats, 1), classes=3, prior=prior, max_visits=visits, evidence_visits=visits, plan=plan
    )
    truth = float(here.log_prob(x))
    crossed = result.evidence
    assert float(crossed.mean()) < truth + 4 * float(crossed.std()) / math.sqrt(repeats)
    # The loss is that of r: E KL[r ‖ p(c|x)], which a few draws make noticeable and more draws reduce.
    assert float(crossed.mean()) > truth - 2.0
    # The reported errors are those of the spread between repeats, for fixed r.
    assert float(result.evidence_error.square().mean().sqrt()) == pytest.approx(float(crossed.std()), rel=0.35)
    # The plug-in from as many draws, with common noise and with independent noise of the classes.
    estimates = here.weights.log() - result.nelbo
    plug_in = torch.logsumexp(estimates, 1)
    assert float(plug_in.mean()) > truth + 5 * float(plug_in.std()) / math.sqrt(repeats)
    apart = torch.stack([estimates[:, k].roll(k * 7) for k in range(3)], 1)
    assert float(torch.logsumexp(apart, 1).mean()) > truth + 5 * float(plug_in.std()) / math.sqrt(repeats)


def test_with_the_posterior_as_r_the_bound_is_tight() -> None:
    here = world()
    x, _ = here.sample_labelled(60, torch.Generator().manual_seed(0))
    joint = here.weights.log() + torch.stack([one.log_prob(x) for one in here.given], 1)
    options: dict[str, Any] = {"classes": 3, "prior": here.weights, "max_visits": 4, "evidence_visits": 64}
    result = classify(model_of(here), x, r=joint.softmax(1), **options)
    gap = here.log_prob(x) - result.evidence
    assert abs(float(gap.mean())) < 4 * float(result.evidence_error.square().sum().sqrt()) / 60 + 0.01
    flat = classify(model_of(here), x, r=torch.full((60, 3), 1 / 3), **options)
    expected = (1 / 3 * (math.log(1 / 3) - joint.log_softmax(1))).sum(1)
    loss = here.log_prob(x) - flat.evidence
    assert abs(float((loss - expected).mean())) < 4 * float(flat.evidence_error.square().sum().sqrt()) / 60 + 0.01
    assert result.evidence_estimate().n == 60


def test_a_levels_model_in_discrete_time() -> None:
    space = Discrete((1, 2, 2), 5)
    levels = torch.tensor([0, 4])

    def network(z: Tensor, log_snr: Tensor, c: Tensor) -> Tensor:
        mean = (levels.to(z)[c] - 2) / 2
        mu = mean[:, None, None, None].expand(-1, 1, 2, 2)
        return torch.cat([mu, torch.full_like(mu, -2.0)], 1)

    process = df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 5.0, steps=10))
    model = df.DiffusionModel(
        process, df.Denoiser(network, "levels", space, "logistic"), likelihood.NetworkLevels(space)
    )
    model.classes = ("dark", "bright")
    x = space.encode(torch.tensor([0, 4, 4, 0])[:, None, None, None].expand(-1, 1, 2, 2))
    result = classify(model, x, evidence_visits=8)
    assert result.names == ["dark", "bright", "bright", "dark"]
    assert result.accuracy(torch.tensor([0, 1, 1, 1])) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))
    assert bool((result.evidence < 0).all())
    assert bool((result.evaluations == result.visits.sum(1) + 8).all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "2 classes"),
        ({"classes": 1}, "2 classes"),
        ({"classes": 3, "confidence": 1.0}, "confidence"),
        ({"classes": 3, "max_visits": 1}, "max_visits"),
        ({"classes": 3, "evidence_visits": 1}, "evidence_visits"),
        ({"classes": 3, "prior": [0.5, 0.5]}, "prior.*3"),
        ({"classes": 3, "prior": [0.5, 0.5, 0.5]}, "prior"),
        ({"classes": 3, "r": torch.ones(2, 3) / 3}, "evidence_visits"),
        ({"classes": 3, "r": torch.ones(2, 3), "evidence_visits": 4}, "sum to 1"),
        ({"classes": 3, "weighting": "unweighted", "prior": [0.2, 0.5, 0.3]}, "prior"),
        ({"classes": 3, "weighting": "unweighted", "evidence_visits": 4}, "evidence_visits"),
        (
            {"classes": 3, "weighting": "unweighted", "plan": ClassPlan.fit(model_of(world()), torch.zeros(2, 2), 3)},
            "ClassPlan.fit",
        ),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(DiffusionalError, match=match):
        classify(model_of(world()), torch.zeros(2, 2), **options)


def test_what_a_classification_without_evidence_lacks() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    one = torch.zeros(1, dtype=torch.long)
    result = Classification(one, one.double(), one[None].double(), one[None], one, nothing, nothing, ("a",))
    with pytest.raises(DiffusionalError, match="evidence_visits"):
        result.evidence_estimate()
    with pytest.raises(DiffusionalError, match="labels"):
        result.accuracy(torch.zeros(2))
    vae = df.VAE(
        torch.nn.Linear(1, 2), torch.nn.Linear(1, 1), likelihood.GaussianLikelihood(df.Continuous((1,)), 0.1), 1
    )
    with pytest.raises(DiffusionalError, match="VAE"):
        classify(vae, torch.zeros(1, 1), classes=2)


def test_two_conditions_of_one_model_are_compared_with_a_paired_error() -> None:
    here = world(2.0)
    model = model_of(here)
    x, c = here.sample_labelled(200, torch.Generator().manual_seed(0))
    wrong = (c + 1) % 3
    both = df.compare(model, model, x, 0.1, "nats", condition=c, other_condition=wrong)
    truth = float((here.log_prob_given(x, wrong) - here.log_prob_given(x, c)).mean())
    assert abs(both.difference.value - truth) < 5 * both.difference.error + 0.05
    # The same condition twice has the same noise: no difference and no error.
    same = df.compare(model, model, x, 0.1, "nats", condition=c, other_condition=c.clone())
    assert abs(same.difference.value) < 1e-9
    with pytest.raises(DiffusionalError, match="other_condition"):
        df.compare(model, model, x, 0.1, other_condition=c)
    with pytest.raises(DiffusionalError, match="3 rows for 200"):
        df.compare(model, model, x, 0.1, condition=c, other_condition=c[:3])


def conditions_apart() -> tuple[df.DiffusionModel, Tensor, Tensor, Tensor]:
    """A model whose two conditions differ at few levels and by little, so that plans for the bounds and for their difference differ."""
    here = world(0.5)
    x, c = here.sample_labelled(40, torch.Generator().manual_seed(0))
    return model_of(here, steps=25), x, c, (c + 1) % 3


def contrasted_plans(model: df.DiffusionModel, x: Tensor, c: Tensor, d: Tensor) -> list[tuple[df.Plan, df.Plan]]:
    """Plans for the two bounds with common visits, and for their difference."""
    first = df.Plan.fit(model, x, 1500, condition=c, controls=())
    second = df.Plan.fit(model, x, 1500, condition=d, controls=(), like=first, across=True)
    return [(first, second), first.contrasted(second)]


def test_the_plan_of_a_difference_repeats_the_visits_under_the_other_condition() -> None:
    model, x, c, d = conditions_apart()
    (first, second), (one, other) = contrasted_plans(model, x, c, d)
    assert torch.equal(first.met.level, second.met.level)
    assert not torch.equal(first.met.left, second.met.left)
    # With the same noise: the same condition again leaves no difference, and nothing to learn from.
    again = df.Plan.fit(model, x, 1500, condition=c.clone(), controls=(), like=first, across=True)
    assert torch.equal(first.met.left, again.met.left)
    assert first.contrasted(again) == (first, again)
    # π_c ∝ n_c √(E d²) has a smaller variance than the plan of the bounds, and is common to both.
    assert torch.equal(one.mass, other.mass)
    assert not torch.equal(one.mass, first.mass)
    assert float(one.mass.sum()) == pytest.approx(1.0)
    assert float(one.mass[1:].min()) >= 0.1 / len(one.mass) * (1 - 1e-9)
    assert 0 < one.paired_variance(other) < 0.9 * first.paired_variance(second)
    # Without a repeated pilot nothing is known of the difference.
    alone = df.Plan.fit(model, x, 1500, condition=d, controls=(), like=first)
    assert first.contrasted(alone) == (first, alone)


def test_the_difference_of_two_conditions_is_unbiased_and_its_intervals_cover() -> None:
    model, x, c, d = conditions_apart()
    generator, sweeps = torch.Generator(), []
    for seed in range(300):
        one, other = (model.elbo(x, generator.manual_seed(seed), condition=given).nelbo.mean() for given in (c, d))
        sweeps.append(float(one - other))
    exact_mean, exact_error = (
        float(torch.tensor(sweeps).double().mean()),
        float(torch.tensor(sweeps).double().std()) / 300**0.5,
    )
    plans, repeats = contrasted_plans(model, x, c, d)[1], 60
    options: dict[str, Any] = {
        "plans": plans,
        "max_evaluations": 1600,
        "audit": False,
        "condition": c,
        "other_condition": d,
    }
    found = [df.compare(model, model, x, 1e-6, "nats", seed=seed, **options) for seed in range(repeats)]
    values = torch.tensor([one.difference.value for one in found]).double()
    assert abs(float(values.mean()) - exact_mean) < 4 * math.hypot(float(values.std()) / repeats**0.5, exact_error)
    covered = sum(low <= exact_mean <= high for low, high in (one.interval() for one in found))
    assert covered >= 0.85 * repeats


def test_the_evidence_has_draws_of_its_own() -> None:
    """r must not depend on the draws of the evidence: other visits of an item, though of the same plan."""
    here = world()
    model = model_of(here)
    x, c = here.sample_labelled(50, torch.Generator().manual_seed(0))
    plan = df.Plan.fit(model, x, 500, 0, condition=c)
    seen: set[bytes] = set()
    original = CommonNoise._drawn

    def spy(self: Any, item: Tensor, draw: Tensor) -> Any:
        # The streams of different purposes are independent (evaluation/noise.py).
        seen.add(self.purpose)
        return original(self, item, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommonNoise, "_drawn", spy)
        classify(model, x, classes=3, plan=plan, max_visits=4, evidence_visits=4)
    assert len(seen) == 3  # the pilot, the classification and the evidence


def test_classes_that_do_not_differ_are_told_apart_by_the_prior() -> None:
    here = world()
    denoiser = df.Denoiser(lambda z, log_snr, c: 0 * z, "data")
    model = df.DiffusionModel(model_of(here).process, denoiser, model_of(here).likelihood)
    result = classify(model, torch.zeros(3, 2), classes=3, prior=[0.2, 0.5, 0.3], max_visits=8)
    assert result.label.tolist() == [1, 1, 1]
    assert result.confidence.tolist() == [1.0, 1.0, 1.0]
