"""The audit of long chains and of continuous time: which levels it visits, and what each of them stands for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import close, generator, randn
from diffusional import likelihood, schedule
from diffusional.evaluation.audit import Audit
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.interop.adapter import DATA, Adapter
from diffusional.models.denoiser import clipped
from diffusional.models.rules import Clip, Threshold

# Visits at most.
MOST = 2048


class Bump(nn.Module):
    """ε̂ = z/√2, and `height` more in every position for log-SNRs of the middle tenth; keeps the log-SNRs that it was asked for."""

    def __init__(self, height: float = 0.0) -> None:
        super().__init__()
        self.height = height
        self.asked: list[Tensor] = []

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        self.asked.append(log_snr)
        return z / 2**0.5 + self.height * (log_snr.abs() < 0.5)[:, None]


def model_of(steps: int | None, height: float = 0.0) -> df.DiffusionModel:
    space = df.Continuous((3,))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps))
    return df.DiffusionModel(forward, df.Denoiser(Bump(height)), likelihood.GaussianLikelihood(space, variance=0.01))


def audited(model: df.DiffusionModel, n: int = 50) -> Audit:
    return Audit.planned(VisitRecords(model, df.Plan.uniform(model), randn(n, 3), 0)).run()


@pytest.mark.parametrize("steps", [MOST + 1, MOST + 2, 3000, 2 * MOST + 1, 20_000])
def test_beyond_2049_latents_the_visits_are_spread_evenly_over_all_levels(steps: int) -> None:
    model = model_of(steps)
    found, levels = audited(model), steps - 1
    assert len(found.visits.level) == Audit.size(model) == MOST
    level = found.visits.level.sort().values
    # The k-th of A visits is in the k-th of A equal parts of the levels.
    k = torch.arange(MOST)
    first, last = k * levels // MOST + 1, ((k + 1) * levels - 1) // MOST + 1
    assert bool(((level >= first) & (level <= last)).all())
    assert level[0] >= 1
    assert level[-1] <= levels
    # The network saw the latents z_{t+1} of these levels, and no others.
    assert isinstance(model.denoiser.module, Bump)
    asked = torch.cat(model.denoiser.module.asked).sort().values
    close(asked.double(), -model.process.schedule.grid()[level].flip(0), rtol=1e-6, atol=1e-6)
    # Each visit is in its cell, and stands for as many levels as there are beside it.
    edges = found.draws.plan.edges
    assert bool(
        ((edges[found.visits.cell - 1] <= found.visits.level) & (found.visits.level < edges[found.visits.cell])).all()
    )
    assert found.each * MOST == levels


@pytest.mark.parametrize("steps", [40, None])
def test_what_the_plan_expects_of_a_level_is_subtracted_from_its_cost(steps: int | None) -> None:
    """Residuals are costs less the plan's expectation: a constant of a cell more is as much less at its levels."""
    model, x = model_of(steps), randn(50, 3)
    plan = df.Plan.uniform(model)
    more = torch.arange(1.0, len(plan.constant) + 1, dtype=torch.float64)
    other = replace(plan, constant=plan.constant + more)
    one, less = (Audit.planned(VisitRecords(model, which, x, 0)).run() for which in (plan, other))
    close(less.left, one.left - more[one.visits.cell], rtol=1e-12)


def test_in_continuous_time_the_visits_are_spread_evenly_over_u() -> None:
    found = audited(model_of(None))
    u = found.visits.level.sort().values
    k = torch.arange(MOST, dtype=torch.float64)
    assert bool(((u >= k / MOST) & (u <= (k + 1) / MOST)).all())
    assert found.each * MOST == 1


@pytest.mark.parametrize("per_visit", [1, 3])
def test_a_cost_counts_for_all_the_levels_that_its_visit_stands_for(per_visit: int) -> None:
    """A band of levels costs more than the plan expects; of long chains a visit stands for several of them."""
    model, plain = (model_of(per_visit * MOST + 1, height) for height in (5.0, 0.0))
    plan = df.Plan.uniform(model)
    x = randn(50, 3)
    left, without = (Audit.planned(VisitRecords(m, plan, x, 0)).run().left for m in (model, plain))
    more = left - without
    assert int((more > 0.3 * more.max()).sum()) == pytest.approx(MOST / 10, rel=0.05)
    found = replace(audited(model), left=left)
    worst = float(left.abs().max())
    assert found.unexpected(0.99 * per_visit * worst)
    assert not found.unexpected(1.01 * per_visit * worst)


@pytest.mark.parametrize("steps", [MOST + 1, 3 * MOST + 1])
def test_the_paired_variance_weighs_every_visit_by_its_level_s_probability(steps: int) -> None:
    """Σ n_c/π_c (difference)² by hand, over visits that stand for several levels each."""
    one, other = model_of(steps), model_of(steps, 2.0)
    mass = torch.tensor([0, 3, 1, 4, 1, 5, 9, 2, 6], dtype=torch.float64) / 31
    plan = replace(df.Plan.uniform(one, cells=8), mass=mass)
    x = randn(50, 3)
    ours, theirs = (Audit.planned(VisitRecords(m, plan, x, 0)).run() for m in (one, other))
    by_hand = 0.0
    for cell, gap in zip(ours.visits.cell.tolist(), (ours.left - theirs.left).tolist(), strict=True):
        width = int(plan.edges[cell] - plan.edges[cell - 1])
        by_hand += (steps - 1) / MOST * width / float(mass[cell]) * gap**2
    assert by_hand > 0
    assert ours.paired_variance(theirs) == pytest.approx(by_hand, rel=1e-9)


# What is left out.


class Wrong(nn.Module):
    """x̂ on the other side of the range than z."""

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return -1e3 * z.sign()


SPACE = df.Discrete((4,), 3)


def clipped_model(variance: str = "posterior", steps: int | None = 40, eta: float | None = None) -> df.DiffusionModel:
    """A network that is as wrong as it can be with an x̂ in [−1, 1]."""
    grid = schedule.log_snr_linear(-5.0, 5.0, steps)
    forward = df.GaussianDiffusion(grid) if eta is None else df.NonMarkovDiffusion(grid, eta)
    denoiser = clipped(df.Denoiser(Wrong(), "data"), SPACE)
    return df.DiffusionModel(forward, denoiser, likelihood.LevelPosterior(SPACE), variance)


@pytest.mark.parametrize(
    ("variance", "steps", "eta"),
    [("posterior", 40, None), ("transition", 40, None), ("posterior", None, None), ("posterior", 40, 0.7)],
)
def test_the_bound_of_a_level_s_cost_is_that_of_the_farthest_denoiser(
    variance: str, steps: int | None, eta: float | None
) -> None:
    """x̂ = −x at the ends of the range costs exactly the bound, and nothing costs more. SNRs are written out."""
    model = clipped_model(variance, steps, eta)
    x, level = torch.ones(39, 4), torch.arange(1, 40) if steps else torch.linspace(0, 1, 39).double()
    bound = model.cost_bound(level)
    assert bound is not None
    constants = model.level_constants(level)
    # Without noise z has the sign of x, and x̂ is −x.
    farthest = model.kl_at(x, level, torch.zeros_like(x)) - constants
    close(farthest, bound, rtol=1e-5)
    ordinary = model.kl_at(x, level, randn(39, 4).float()) - constants
    assert bool((ordinary <= bound * (1 + 1e-5)).all())
    if steps is None or eta is not None:
        return
    gamma = model.process.schedule.grid()
    snr = torch.exp(-gamma)
    if variance == "posterior":
        close(bound, 0.5 * (snr[:-1] - snr[1:]) * 4 * 2**2)
    if variance == "transition":
        ratio = torch.sigmoid(gamma[:-1]) / torch.sigmoid(gamma[1:])
        close(bound, ratio * 0.5 * (snr[:-1] - snr[1:]) * 4 * 2**2)


def test_no_bound_is_known_if_the_network_can_leave_the_range_or_choose_the_variance() -> None:
    level, forward = torch.arange(1, 5), df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, 40))
    free = df.Denoiser(lambda z, log_snr: z, "data")
    decoder = likelihood.DiscretizedGaussian(SPACE)
    assert df.DiffusionModel(forward, free, decoder).cost_bound(level) is None
    learned = df.Denoiser(lambda z, log_snr: torch.cat([z, z], 1), "data", learns_variance=True)
    assert df.DiffusionModel(forward, clipped(learned, SPACE), decoder, "learned").cost_bound(level) is None
    assert df.DiffusionModel(forward, clipped(learned, SPACE), decoder).cost_bound(level) is not None
    assert model_of(40).cost_bound(level) is None
    assert (
        df.BinomialDiffusionModel(df.BinomialDiffusion.constant(9), free.module, df.space.binary((4,))).cost_bound(
            level
        )
        is None
    )
    # A levels head stays in the range of its levels, and so does what a rule leaves of x̂.
    head = df.Denoiser(lambda z, log_snr: torch.zeros(len(z), 12), "levels", space=SPACE)
    assert df.DiffusionModel(forward, head, likelihood.NetworkLevels(SPACE)).cost_bound(level) is not None
    for rule, reach in ((Clip(-2.0, 0.5), (-2.0, 0.5)), (Threshold(0.9, 3.0), (-1.0, 1.0)), (None, None)):
        assert Adapter(lambda z, t: z, DATA, lambda log_snr: log_snr, rule=rule).data_range == reach
    # Guidance leads out of any range, also of levels.
    either = df.Denoiser(lambda z, log_snr, condition=None: torch.zeros(len(z), 12), "levels", space=SPACE)
    assert [df.Guided(either, weight).data_range for weight in (1.0, 2.0)] == [(-1.0, 1.0), None]
    assert df.Guided(either, 2.0, threshold=0.9).data_range == (-1.0, 1.0)


@pytest.mark.parametrize("steps", [40, 300, None])
def test_an_audit_leaves_out_only_visits_that_could_not_find_anything(steps: int | None) -> None:
    """The network is as wrong as it can be, so that the full audit lists every level that it could."""
    model = clipped_model(steps=steps)
    plain = df.DiffusionModel(model.process, df.Denoiser(lambda z, s: z.clamp(-1, 1), "data"), model.likelihood)
    x = SPACE.encode(torch.randint(0, 3, (50, 4), generator=generator(3)))
    plan = df.Plan.fit(plain, x, 300, cells=8)
    draws = VisitRecords(model, plan, x, 0)
    every = Audit.planned(draws).run()
    for matters in (0.03, 0.3, 3.0):
        fewer = Audit.planned(draws, matters).run()
        assert 0 < len(fewer) == len(every) - fewer.bounded < len(every)
        assert fewer.unexpected(matters) == every.unexpected(matters)
        assert fewer.unexpected(matters)
        # The others are the same visits.
        there = torch.isin(every.left, fewer.left)
        assert int(there.sum()) == len(fewer)
        bound = model.cost_bound(every.visits.level[~there])
        assert bound is not None
        assert fewer.most == pytest.approx(every.each * float(bound.sum()))


def test_the_pilot_s_visits_of_the_same_items_count_for_the_audit() -> None:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, 300))
    network = clipped(df.Denoiser(lambda z, log_snr: z, "data"), SPACE)
    model = df.DiffusionModel(forward, network, likelihood.LevelPosterior(SPACE))
    x, others = (SPACE.encode(torch.randint(0, 3, (80, 4), generator=generator(seed))) for seed in (3, 4))
    plan = df.Plan.fit(model, x, 300, cells=8)
    seen = plan.met.level[plan.met.cell > 0].unique()
    kept = Audit.planned(VisitRecords(model, plan, x), 1e-9, same_items=True)
    assert not bool(torch.isin(kept.visits.level, seen).any())
    assert len(kept) + kept.met + kept.bounded == 299
    assert 100 < kept.met <= len(seen)
    own = {
        name: df.evaluate(model, x, item_error=3.0, unit="nats", **given).provenance
        for name, given in (("none", {}), ("of others", {"reference": others}), ("given", {"plan": plan}))
    }
    for name, record in own.items():
        audit = record["audit"]
        assert audit["visits"] == record["evaluations"]["audit"]
        assert audit["visits"] + audit["met_by_pilot"] + audit["bounded"] == 299
        assert (audit["met_by_pilot"] > 0) == (name == "none")
    # Two models are compared at all levels.
    both = df.compare(model, model, x, 10.0, "nats", plans=(plan, plan))
    assert both.a.provenance["audit"] == {"visits": 299, "bounded": 0, "met_by_pilot": 0, "bounded_most_nats": 0.0}
