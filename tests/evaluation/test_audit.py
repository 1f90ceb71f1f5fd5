"""The audit of long chains and of continuous time: which levels it visits, and what each of them stands for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import close, randn
from diffusional import likelihood, schedule
from diffusional.evaluation.audit import Audit
from diffusional.evaluation.visit_records import VisitRecords

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
    return Audit.of(VisitRecords(model, df.Plan.uniform(model), randn(n, 3), 0))


@pytest.mark.parametrize("steps", [MOST + 1, MOST + 2, 3000, 2 * MOST + 1, 20_000])
def test_beyond_2049_latents_the_visits_are_spread_evenly_over_all_levels(steps: int) -> None:
    model = model_of(steps)
    found, levels = audited(model), steps - 1
    assert len(found.level) == Audit.size(model) == MOST
    level = found.level.sort().values
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
    edges = found.plan.edges
    assert bool(((edges[found.cell - 1] <= found.level) & (found.level < edges[found.cell])).all())
    assert found.each * MOST == levels


def test_in_continuous_time_the_visits_are_spread_evenly_over_u() -> None:
    found = audited(model_of(None))
    u = found.level.sort().values
    k = torch.arange(MOST, dtype=torch.float64)
    assert bool(((u >= k / MOST) & (u <= (k + 1) / MOST)).all())
    assert found.each * MOST == 1


@pytest.mark.parametrize("per_visit", [1, 3])
def test_a_cost_counts_for_all_the_levels_that_its_visit_stands_for(per_visit: int) -> None:
    """A band of levels costs more than the plan expects; of long chains a visit stands for several of them."""
    model, plain = (model_of(per_visit * MOST + 1, height) for height in (5.0, 0.0))
    plan = df.Plan.uniform(model)
    x = randn(50, 3)
    left, without = (Audit.of(VisitRecords(m, plan, x, 0)).left for m in (model, plain))
    more = left - without
    assert int((more > 0.3 * more.max()).sum()) == pytest.approx(MOST / 10, rel=0.05)
    found = Audit(plan, torch.ones(MOST, dtype=torch.long), torch.arange(MOST), left, audited(model).each)
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
    ours, theirs = (Audit.of(VisitRecords(m, plan, x, 0)) for m in (one, other))
    by_hand = 0.0
    for cell, gap in zip(ours.cell.tolist(), (ours.left - theirs.left).tolist(), strict=True):
        width = int(plan.edges[cell] - plan.edges[cell - 1])
        by_hand += (steps - 1) / MOST * width / float(mass[cell]) * gap**2
    assert by_hand > 0
    assert ours.paired_variance(theirs) == pytest.approx(by_hand, rel=1e-9)
