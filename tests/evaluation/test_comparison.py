"""The difference of two models: common noise, a paired error that is the spread of repeated differences, and refusals."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Plan, compare, comparison, evaluate
from diffusional.evaluation.audit import Audit
from diffusional.evaluation.evaluation import Task
from diffusional.evaluation.visit_records import VisitRecords

SPACE = df.Continuous((3,))
WORLD = exact.Gaussian(torch.zeros(3), torch.diag(torch.tensor([0.2, 1.0, 2.0])))


def model(shift: float = 0.0, low: float = -9.0) -> df.DiffusionModel:
    """The world's denoiser, of a world whose mean is off by `shift`."""
    world = exact.Gaussian(torch.full((3,), shift), torch.diag(torch.tensor([0.2, 1.0, 2.0])))
    process = df.GaussianDiffusion(schedule.log_snr_linear(low, 9.0, steps=200))
    return df.DiffusionModel(process, world.denoiser("noise"), likelihood.GaussianLikelihood(SPACE))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return WORLD.sample(60, torch.Generator().manual_seed(0)).float()


def test_the_difference_is_that_of_long_sweeps_with_its_sign(x: Tensor) -> None:
    a, b = model(), model(0.4)
    both = compare(a, b, x, 0.01, "nats")
    swept = [evaluate(m, x, draws=8).nelbo for m in (a, b)]
    truth, error = swept[0].value - swept[1].value, math.hypot(swept[0].error, swept[1].error)
    assert both.reached
    assert both.difference.error <= 0.01
    assert abs(both.difference.value - truth) < 4 * math.hypot(error, both.difference.error)
    assert both.difference.value < -10 * both.difference.error  # A is right about the data: fewer nats
    back = compare(b, a, x, 0.01, "nats").difference
    assert abs(back.value + both.difference.value) < 4 * math.hypot(back.error, both.difference.error)


def test_common_noise_makes_the_error_small_and_true(x: Tensor) -> None:
    a, b = model(), model(0.05)
    plans = (plan := Plan.fit(a, x), Plan.fit(b, x, like=plan))
    # A target that the first look reaches: the same number of draws for every seed.
    runs = [compare(a, b, x, 1e3, "nats", seed=s, plans=plans, audit=False) for s in range(120)]
    values = torch.tensor([r.difference.value for r in runs])
    reported = torch.tensor([r.difference.error for r in runs]).mean()
    assert 0.8 < float(reported / values.std()) < 1.2
    truth = float(values.mean())
    held = [low <= truth <= high for low, high in (r.interval() for r in runs)]
    assert 0.88 < sum(held) / len(held) <= 1
    alone = math.hypot(runs[0].a.nelbo.error, runs[0].b.nelbo.error)
    assert float(reported) < 0.3 * alone


def test_both_evaluations_are_those_of_the_models_alone(x: Tensor) -> None:
    a, b = model(), model(0.4)
    both = compare(a, b, x, 0.02, "nats")
    assert both.difference.value == pytest.approx(both.a.nelbo.value - both.b.nelbo.value, abs=1e-9)
    record = both.to_json()
    assert record["difference_nats"]["value"] == both.difference.value
    assert record["network_evaluations"] == both.a.nelbo.network_evaluations + both.b.nelbo.network_evaluations
    bit = 3 * math.log(2)
    assert record["difference"]["value"] == pytest.approx(both.difference.value / bit)
    assert record["interval"]["nats"] == list(both.interval())
    assert record["interval"]["bits/dim"] == pytest.approx([end / bit for end in both.interval()])


def test_items_that_are_extreme_for_either_model_are_extreme_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A's plan expects outliers where the data have little variance; B's, which has no controls, expects nothing unusual of them.

    Items chosen by the strata of one model do not represent those of the other's, so that both have the same.
    """
    a = model()
    x = WORLD.sample(900, torch.Generator().manual_seed(3)).float()
    plans = (Plan.fit(a, x, 300, cells=8), Plan.uniform(a, cells=8))
    x[5:13] = torch.tensor([2.5, 0.0, 0.0])
    outliers = set(range(5, 13))
    apart = [set((VisitRecords(a, plan, x).strata.of > 0).nonzero().squeeze(1).tolist()) for plan in plans]
    assert outliers <= apart[0]
    assert not outliers & apart[1]
    tasks: list[Task] = []

    class Recorded(Task):
        def __post_init__(self) -> None:
            super().__post_init__()
            tasks.append(self)

    monkeypatch.setattr(comparison, "Task", Recorded)
    for some in (plans, plans[::-1]):
        tasks.clear()
        both = compare(a, a, x, 1e3, "nats", plans=some, audit=False)
        for task, found in zip(tasks, (both.a, both.b), strict=True):
            items = found.per_item["item"]
            assert len(items) < 900
            assert outliers <= set(items.tolist())
            # Each outlier stands for itself only.
            assert task.draws.strata.weights(items)[torch.isin(items, torch.arange(5, 13))].tolist() == [1.0] * 8


@pytest.mark.parametrize("budget", [1, 6001])
def test_a_budget_that_the_pilots_exceed_is_refused_before_they_start(
    budget: int, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "fit", lambda *_, **__: pytest.fail("a pilot has started"))
    with pytest.raises(DiffusionalError, match=f"max_evaluations.*{budget}"):
        compare(model(), model(0.4), x, 0.01, "nats", max_evaluations=budget)


def test_the_two_see_the_same_noise(x: Tensor) -> None:
    # Under one plan the same model twice is the same number twice, whatever the draws.
    a, plan = model(), Plan.uniform(model())
    draws = [VisitRecords(a, plan, x, seed=3) for _ in range(2)]
    for one in draws:
        one.extend(torch.arange(60), torch.full((60,), 3))
    ours, theirs = (one.parts(torch.arange(60))[0].costs["kl"] for one in draws)
    assert torch.equal(ours, theirs)
    other = VisitRecords(a, plan, x, seed=4)
    other.extend(torch.arange(60), torch.full((60,), 3))
    assert not torch.equal(ours, other.parts(torch.arange(60))[0].costs["kl"])


def test_what_does_not_compare_is_refused(x: Tensor) -> None:
    standardised = df.DiffusionModel(
        model().process,
        WORLD.denoiser("noise"),
        likelihood.GaussianLikelihood(df.Continuous((3,), scale=(2.0, 2.0, 2.0))),
    )
    with pytest.raises(DiffusionalError, match="different spaces do not compare"):
        compare(model(), standardised, x)
    with pytest.raises(DiffusionalError, match="positive target_error"):
        compare(model(), model(), x, -1.0)
    with pytest.raises(DiffusionalError, match="items of shape"):
        compare(model(), model(), x[:, :2])


def test_a_budget_that_is_too_small_is_said(x: Tensor) -> None:
    short = compare(model(), model(0.4), x, 1e-4, "nats", max_evaluations=12_000)
    assert not short.reached
    assert short.difference.network_evaluations <= 12_000
    assert short.difference.error > 1e-4


class OneMore(df.DiffusionModel):
    """Another nat at one level of its chain: what two models that share all else may differ by."""

    level: int

    def level_kl(self, x: Tensor, level: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().level_kl(x, level, noise, condition) + (level == self.level)


@pytest.fixture(scope="module")
def pair(x: Tensor) -> tuple[df.DiffusionModel, OneMore]:
    """The world's model at T = 1000, and one that differs where the first one's plan looks least."""
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=1000))
    parts = process, WORLD.denoiser("noise"), likelihood.GaussianLikelihood(SPACE)
    a, b = df.DiffusionModel(*parts), OneMore(*parts)
    plan = Plan.fit(a, x)
    b.level = int(plan.edges[((plan.edges[1:] - plan.edges[:-1]) / plan.mass[1:]).argmax()])
    return a, b


def test_a_difference_that_no_draw_has_met_is_not_stopped_at(
    x: Tensor, pair: tuple[df.DiffusionModel, OneMore]
) -> None:
    """Without an audit, 0 ± 0; with one, draws until its single nat of 1/π must have been met, and its name."""
    blind = compare(*pair, x, 0.7, "nats", audit=False, seed=1)
    assert (blind.difference.value, blind.difference.error) == pytest.approx((0, 0), abs=1e-9)
    for seed in (1, 5):
        found = compare(*pair, x, 0.7, "nats", seed=seed)
        assert abs(found.difference.value + 1) < 3.5 * found.difference.error
        assert found.a.nelbo.network_evaluations > 20_000


def test_what_audits_say_of_a_difference(x: Tensor, pair: tuple[df.DiffusionModel, OneMore]) -> None:
    """One nat at one level of probability π adds 1/π to the variance of a visit of both."""
    a, b = pair
    plan = Plan.fit(a, x)
    ours, theirs = (Audit.planned(VisitRecords(m, plan, x, 0)).run() for m in pair)
    cell = int(torch.searchsorted(plan.edges, b.level, right=True))
    inverse = float((plan.edges[cell] - plan.edges[cell - 1]) / plan.mass[cell])
    assert ours.paired_variance(theirs) == pytest.approx(inverse, rel=1e-5)
    assert ours.paired_variance(Audit.planned(VisitRecords(b, Plan.fit(a, x, seed=1), x, 0)).run()) == 0


def test_a_difference_that_rests_on_few_draws_is_said(x: Tensor, pair: tuple[df.DiffusionModel, OneMore]) -> None:
    found = compare(*pair, x, 2.0, "nats", audit=False, seed=7)
    assert found.difference.error > 0
    assert [caveat for caveat in found.caveats if caveat.startswith("the error rests on few draws")]
    assert not found.reached


class Told(torch.nn.Module):
    """ε̂ of the world, times the condition."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        return condition[:, None] * WORLD.denoiser("noise").module(z, log_snr)


def test_both_models_are_given_the_condition(x: Tensor) -> None:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=100))
    decoder = likelihood.GaussianLikelihood(SPACE, assisted=False)
    conditional, plain = (
        df.DiffusionModel(process, df.Denoiser(net), decoder) for net in (Told(), WORLD.denoiser("noise").module)
    )
    ignoring = df.DiffusionModel(process, df.Denoiser(lambda z, s, c: WORLD.denoiser("noise").module(z, s)), decoder)
    same = compare(conditional, ignoring, x, 0.05, "nats", condition=torch.ones(60), audit=False)
    assert abs(same.difference.value) < 1e-6
    half = compare(conditional, ignoring, x, 0.5, "nats", condition=torch.full((60,), 0.5), audit=False)
    assert half.difference.value > 6 * half.difference.error
    hashes = {each.a.provenance["condition_sha256"] for each in (same, half)} | {half.b.provenance["condition_sha256"]}
    assert len(hashes) == 2
    with pytest.raises(DiffusionalError, match="59 rows for 60 items"):
        compare(conditional, ignoring, x, condition=torch.ones(59))
    with pytest.raises(DiffusionalError, match="reference"):
        compare(conditional, ignoring, x, condition=torch.ones(60), reference=x)
    with pytest.raises(DiffusionalError):
        compare(conditional, plain, x, condition=torch.ones(60))


def test_the_parts_of_a_difference_add_up_and_have_paired_errors(x: Tensor, tmp_path: Path) -> None:
    """Costs and levels are those of A less those of B, and their errors are those of common noise."""
    a, b = model(), model(0.05)
    plans = (plan := Plan.fit(a, x), Plan.fit(b, x, like=plan))
    runs = [compare(a, b, x, 1e3, "nats", seed=s, plans=plans, audit=False) for s in range(60)]
    both = runs[0]
    assert sum(term.value for term in both.terms.values()) == pytest.approx(both.difference.value, abs=1e-9)
    assert {name: term.value for name, term in both.terms.items()} == pytest.approx(
        {name: both.a.terms[name].value - both.b.terms[name].value for name in both.a.terms}, abs=1e-9
    )
    assert torch.allclose(both.levels_kl, both.a.levels_kl - both.b.levels_kl, rtol=0, atol=1e-9)
    # The largest of the levels' errors is what the difference varies by, and far from the error of two separate evaluations.
    values = torch.stack([one.levels_kl for one in runs]).std(0)
    reported = torch.stack([one.levels_error for one in runs]).mean(0)
    at = int(values.argmax())
    assert 0.7 < float(reported[at] / values[at]) < 1.4
    assert float(reported.norm()) < 0.3 * float(torch.hypot(both.a.levels_error, both.b.levels_error).norm())
    both.save(tmp_path / "both.json")
    loaded = comparison.Comparison.load(tmp_path / "both.json")
    assert loaded.terms.keys() == both.terms.keys()
    assert torch.equal(loaded.levels_kl, both.levels_kl)
    assert torch.equal(loaded.levels_error, both.levels_error)


@pytest.mark.parametrize("cells", [None, 8])
def test_models_of_other_levels_have_no_difference_by_level(x: Tensor, cells: int | None) -> None:
    """Nor if their levels have the same numbers in the same cells, but another noise."""
    a, b = model(), model(low=-8.0)
    plans = None if cells is None else (Plan.uniform(a, cells), Plan.uniform(b, cells))
    both = compare(a, b, x, 0.2, "nats", plans=plans)
    assert cells is None or torch.equal(both.a.level_edges, both.b.level_edges)
    assert set(both.terms) == set(both.a.terms)
    assert sum(term.value for term in both.terms.values()) == pytest.approx(both.difference.value, abs=1e-9)
    assert len(both.levels_kl) == len(both.levels_error) == 0
