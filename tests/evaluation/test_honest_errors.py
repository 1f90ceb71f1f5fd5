"""No evaluation is confident and wrong because of something that the library knows: outliers, few reference items, types, rare differences."""

import math

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.evaluation import Plan, compare, evaluate
from diffusional.evaluation.evaluation import NO_AUDIT
from diffusional.evaluation.histogram import Histogram
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.wiener import Wiener


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """The optimal x̂ for N(0, 1), and `slip` times as much too much beyond |z| = `edge`."""

    def __init__(self, slip: float = 0.0, edge: float = 0.0) -> None:
        super().__init__()
        self.slip, self.edge = slip, edge

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr)[:, None].sqrt() * z + self.slip * (z.abs() - self.edge).clamp(min=0)


def normal_model(steps: int, slip: float, edge: float) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 6.0, steps=steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((1,)), assisted=False)
    return df.DiffusionModel(forward, df.Denoiser(Linear(slip, edge), "data"), decoder)


def truth(model: df.DiffusionModel, x: Tensor) -> float:
    """The mean NELBO (nats) of x (N, 1), with the noise of every level integrated by the trapezoid rule."""
    noise = torch.linspace(-6.5, 6.5, 131, dtype=torch.float64)
    density = torch.exp(-0.5 * noise.square())
    density = density / density.sum()
    rows, eps = x.repeat(len(noise), 1), noise.repeat_interleave(len(x))[:, None]

    def mean(cost: Tensor) -> float:
        return float((cost.view(len(noise), -1).mean(1) * density).sum())

    assert model.timesteps is not None
    kl = sum(mean(model.kl_at(rows, torch.full((len(rows),), t), eps)) for t in range(1, model.timesteps + 1))
    return kl + mean(model.reconstruction(rows, eps)) + float(model.prior(x).mean())


def test_outliers_that_are_known_are_visited() -> None:
    """Four of 2,000 items far from all others cost a tenth of the whole: a random part of the items would miss them."""
    model = normal_model(50, 0.1, 4.5)
    g = generator(11)
    plan = Plan.fit(model, torch.randn(700, 1, generator=g, dtype=torch.float64))
    x = torch.randn(2000, 1, generator=g, dtype=torch.float64)
    x[:4] = 25 * x[:4].sign()
    exact = truth(model, x)
    assert exact - truth(model, x[4:]) > 0.2
    for seed in range(4):
        result = evaluate(model, x, 0.05, "nats", seed=seed, plan=plan, audit=False)
        assert {0, 1, 2, 3} <= set(result.per_item["item"].tolist())
        assert abs(result.nelbo.value - exact) < 4 * result.nelbo.error
        # What the outliers add to the error over items is known from their bases, however few items were visited.
        assert result.nelbo.item_error == pytest.approx(float(result_scores(model, x).std()) / 2000**0.5, rel=0.3)


def test_few_draws_of_outliers_do_not_end_an_evaluation() -> None:
    """An error that is small already is not believed before the outliers have the draws that would meet rare, large costs."""
    model = normal_model(50, 0.1, 4.5)
    g = generator(11)
    plan = Plan.fit(model, torch.randn(700, 1, generator=g, dtype=torch.float64))
    x = torch.randn(400, 1, generator=g, dtype=torch.float64)
    x[:4] = 25 * x[:4].sign()
    result = evaluate(model, x, 1e9, "nats", plan=plan, audit=False)
    drawn = dict(zip(result.per_item["item"].tolist(), result.per_item["draws"].tolist(), strict=True))
    assert sum(drawn[i] for i in range(4)) >= 512
    assert len(drawn) < 400
    assert result.reached


def result_scores(model: df.DiffusionModel, x: Tensor) -> Tensor:
    """Scores of all items by a sweep of several draws."""
    return evaluate(model, x, draws=3, seed=99).per_item["nelbo"]


def test_a_rare_difference_that_the_pilots_met_is_not_stopped_at() -> None:
    """B is wrong where |z| > 3: one visit in some hundred. Few levels, so that an audit meets it seldom."""
    a, b = normal_model(20, 0.0, 3.0), normal_model(20, 6.0, 3.0)
    x = torch.randn(700, 1, generator=generator(11), dtype=torch.float64)
    plan = Plan.fit(a, x)
    other = Plan.fit(b, x, like=plan)
    exact = truth(a, x) - truth(b, x)
    assert math.sqrt(plan.paired_variance(other)) > 3
    for seed in range(6):
        found = compare(a, b, x, 0.3, "nats", seed=seed, plans=(plan, other))
        assert abs(found.difference.value - exact) < 4 * found.difference.error
        # The smallest error that the pilots' variance allows for so many visits.
        visits = found.a.provenance["evaluations"]["draws"]
        assert found.difference.error > 0.5 * math.sqrt(plan.paired_variance(other) / visits)


SPACE = df.Discrete((1, 4, 4), 256)


class Shrink(nn.Module):
    """x̂ = c z: a network that learned next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.6))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.weight * torch.sigmoid(log_snr)[:, None, None, None].sqrt() * z


def pixels(n: int, seed: int) -> Tensor:
    return SPACE.encode(torch.randint(256, (n, 1, 4, 4), generator=generator(seed)))


@pytest.mark.parametrize("items", [1, 3, 9, 20])
def test_few_reference_items_do_no_harm(items: int) -> None:
    """As few as, or fewer than, the sixteen dimensions: a covariance of them is certain of directions that they do not span."""
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=40))
    model = df.DiffusionModel(forward, df.Denoiser(Shrink(), "data"), likelihood.LevelPosterior(SPACE))
    x, reference = pixels(12, 0), pixels(items, 1)
    exact = evaluate(model, x, draws=40).nelbo
    for seed in range(3):
        found = evaluate(model, x, visits=8, reference=reference, seed=seed, audit=False).nelbo
        assert abs(found.value - exact.value) < 4 * math.hypot(found.error, exact.error)
        assert 0 < found.error < 0.05 * exact.value


def test_controls_are_not_fitted_to_the_few_items_that_they_are_tried_on() -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=40))
    model = df.DiffusionModel(forward, df.Denoiser(Shrink(), "data"), likelihood.LevelPosterior(SPACE))
    reference = pixels(10, 1)
    plan = Plan.fit(model, reference, 300)
    wiener = [control for control in plan.controls if isinstance(control, Wiener)]
    if wiener:
        half = {tuple(row.tolist()) for row in reference.flatten(1)}
        assert not torch.allclose(wiener[0].mean, reference.double().flatten(1).mean(0))
        assert len(half) == 10
    # A covariance of five items in sixteen dimensions has eleven empty directions: shrunk, none is narrower than a hundredth of the mean.
    fitted = Wiener.fit(pixels(5, 2), SPACE).eigenvalues
    assert float(fitted.min()) > 0.01 * float(fitted.mean())
    # With enough items it is what it was.
    many = pixels(64, 3)
    centred = many.double().flatten(1) - many.double().flatten(1).mean(0)
    assert torch.allclose(Wiener.fit(many, SPACE).eigenvalues, torch.linalg.eigvalsh(centred.T @ centred / 64))


def test_a_control_that_does_harm_is_dropped() -> None:
    """Reference items in two groups, each of which the other says nothing about: what is fitted to one misleads on the other."""
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=40))
    model = df.DiffusionModel(forward, df.Denoiser(Shrink(), "data"), likelihood.LevelPosterior(SPACE))
    good = Plan.fit(model, pixels(100, 1), 1000, controls=("wiener", "histogram"))
    assert good.provenance["dropped_controls"] == []
    assert [control.name for control in good.controls] == good.provenance["controls"] != []


def test_items_and_networks_of_any_type_are_evaluated() -> None:
    space = df.Discrete((6,), 4)
    x = space.encode(torch.randint(4, (40, 6), generator=generator(0)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 6)

        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            return self.line(z)

    torch.manual_seed(0)
    model = df.DiffusionModel(
        df.GaussianDiffusion(schedule.linear(steps=20)), df.Denoiser(Net()), likelihood.DiscretizedGaussian(space)
    )
    plain = evaluate(model, x, visits=2, audit=False)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        found = evaluate(model, x.to(kind), visits=2, audit=False)
        # Linear algebra is the same to the last bit only where memory is laid out alike.
        assert torch.allclose(found.per_item["nelbo"], plain.per_item["nelbo"], rtol=1e-9, atol=0)
    short = model.bfloat16()
    for items in (x, x.bfloat16(), x.double()):
        found = evaluate(short, items, visits=4).nelbo
        assert (
            abs(found.value - plain.nelbo.value)
            < 4 * math.hypot(found.error, plain.nelbo.error) + 0.05 * plain.nelbo.value
        )


@pytest.mark.parametrize("gamma", [-16.0, -30.0, -60.0])
def test_levels_that_noise_never_confuses_need_no_tables(gamma: float) -> None:
    """At γ = −16 a grid in z would have 50,000 points, and at −60 more than there is memory."""
    space = df.Discrete((1,), 8)
    x = space.encode(torch.arange(8)[:, None])
    world, at = Histogram.fit(x, space), torch.tensor([gamma], dtype=torch.float64)
    for first in (False, True):
        assert float(world.totals(x, at, torch.ones(1, 1), first).abs().max()) == 0
        assert float(world.variance(x, at, first)) == 0


def test_where_the_tables_end_nothing_jumps() -> None:
    space = df.Discrete((1,), 8)
    x = space.encode(torch.arange(8)[:, None])
    world = Histogram.fit(x, space)
    # Levels α Δ = 56 σ apart, and a little less.
    edge = 2 * math.log(space.width / 56)
    for g in (edge - 0.3, edge + 0.3):
        for first in (False, True):
            assert float(world.totals(x, torch.tensor([g]).double(), torch.ones(1, 1), first).abs().max()) < 1e-9


def test_a_plan_that_was_not_learned_has_no_audit_and_says_so() -> None:
    model = normal_model(20, 0.0, 3.0)
    x = torch.randn(60, 1, generator=generator(1), dtype=torch.float64)
    found = evaluate(model, x, 1.0, "nats", plan=Plan.uniform(model))
    assert NO_AUDIT in found.caveats
    assert not found.reached
    assert evaluate(model, x, 1.0, "nats", plan=Plan.uniform(model), audit=False).reached


def test_the_caveats_do_not_depend_on_the_order() -> None:
    model = normal_model(50, 4.0, 3.0)
    g = generator(3)
    x = torch.randn(300, 1, generator=g, dtype=torch.float64)
    plan = Plan.fit(model, x, 1000)
    x[:3] = 6.0
    found = [evaluate(model, x.roll(shift, 0), visits=3, plan=plan) for shift in (0, 50, 171)]
    assert len({(r.reached, r.caveats) for r in found}) == 1
    assert found[1].nelbo.value == pytest.approx(found[0].nelbo.value, rel=1e-12)


def test_the_audit_is_about_ordinary_items() -> None:
    """Items whose expected cost is extreme are not what a level is judged by: the plan's scale is not theirs."""
    model = normal_model(50, 0.3, 4.5)
    g = generator(5)
    plan = Plan.fit(model, torch.randn(700, 1, generator=g, dtype=torch.float64))
    x = torch.randn(100, 1, generator=g, dtype=torch.float64)
    x[:30] = 30.0
    draws = VisitRecords(model, plan, x)
    assert set(range(30)) <= set((draws.strata.of > 0).nonzero().squeeze(1).tolist())
    for seed in range(3):
        assert not [c for c in evaluate(model, x, visits=2, plan=plan, seed=seed).caveats if c.startswith("level")]


def test_a_discrete_bound_below_zero_has_a_caveat() -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=40))
    model = df.DiffusionModel(forward, df.Denoiser(Shrink(), "data"), likelihood.LevelPosterior(SPACE))
    x = pixels(6, 0)
    from diffusional.evaluation.evaluation import Task

    task = Task(VisitRecords(model, Plan.uniform(model), x), 0, None)
    task.draws.extend(torch.arange(6), torch.full((6,), 2))
    assert not [c for c in task.result([]).caveats if "at least 0" in c]
    task.draws._costs["kl"] -= 1e6
    assert [c for c in task.result([]).caveats if "at least 0" in c]


def test_the_folds_of_a_pilot_part_the_items_that_it_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pilot visits few items, both halves of them are there, whatever their rows: else no control is ever found harmful."""
    from diffusional.evaluation import pilot

    folds: list[Tensor] = []

    def seen(plan: Plan, *rest: Tensor) -> list[int]:
        folds.append(rest[-1])
        return list(range(len(plan.controls)))

    monkeypatch.setattr(pilot, "_helpful", seen)
    monkeypatch.setattr(pilot, "parted", lambda *_: (torch.tensor([1, 3, 5]), torch.tensor([0, 2, 4])))
    Plan.fit(normal_model(20, 0.0, 3.0), torch.randn(6, 1, generator=generator(0), dtype=torch.float64), 120)
    assert {0, 1} == set(folds[0].tolist())
    assert 0.25 < float(folds[0].double().mean()) < 0.75
