"""A binomial chain goes through the plan, the sweep and a comparison like a Gaussian one: against costs summed over all latents."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import close, generator
from bits import Network, World, constant, index, share_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation import evaluate
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.visit_records import VisitRecords

STEPS, D, N = 40, 5, 400
# Of 39 levels: as often each as makes 256 visits at least.
AUDIT = 7 * 39
WORLD = World(constant(STEPS), D, Network(D, seed=4))
OTHER = World(constant(STEPS), D, Network(D, seed=9))
with torch.no_grad():
    OTHER.network.out.mul_(2.5)


def model_of(world: World = WORLD) -> df.BinomialDiffusionModel:
    return df.BinomialDiffusionModel(df.BinomialDiffusion(world.betas), world.network, df.space.binary((D,)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    drawn = torch.multinomial(torch.tensor(share_of(D)), N, replacement=True, generator=generator(1))
    return torch.tensor(WORLD.states)[drawn]


def truth(x: Tensor, world: World = WORLD) -> dict[str, np.ndarray]:
    """Expected costs (N,) of every item, nats."""
    at = index(x).numpy()
    return {"reconstruction": world.reconstruction()[at], "kl": world.kl().sum(1)[at], "prior": world.prior()[at]}


def mean(costs: dict[str, np.ndarray]) -> float:
    return float(sum(cost.mean() for cost in costs.values()))


def test_a_target_error_is_reached_at_the_truth(x: Tensor) -> None:
    result = evaluate(model_of(), x, target_error=0.04, unit="nats", seed=3)
    assert result.reached, result.caveats
    assert 0 < result.nelbo.error < 0.04
    costs = truth(x)
    assert abs(result.nelbo.value - mean(costs)) < 3.5 * result.nelbo.error
    for name in ("reconstruction", "kl"):
        assert abs(result.terms[name].value - costs[name].mean()) < 3.5 * result.terms[name].error
    assert abs(result.terms["prior"].value) < 1e-15
    # The control: another network's truth is not met, though it is of the same data and levels.
    assert abs(result.nelbo.value - mean(truth(x, OTHER))) > 10 * result.nelbo.error
    assert result.provenance["method"] == "plan"
    assert result.provenance["latents"] == STEPS
    assert result.provenance["plan"]["controls"] == ["own"]
    spent = result.provenance["evaluations"]
    # The pilot visited the same items, and every level as often as the audit would.
    assert (spent["audit"], result.provenance["audit"]["met_by_pilot"]) == (0, AUDIT)
    assert 500 <= spent["pilot"] <= 3000
    assert sum(spent.values()) == result.nelbo.network_evaluations
    assert result.nelbo.network_evaluations < N * STEPS


def test_the_error_is_the_spread_over_seeds(x: Tensor) -> None:
    """Twelve evaluations by the plan, their errors against how far they lie from the truth."""
    model = model_of()
    plan = Plan.fit(model, x, seed=1)
    results = [evaluate(model, x, plan=plan, visits=8, seed=seed, audit=False) for seed in range(12)]
    scores = np.array([(r.nelbo.value - mean(truth(x))) / r.nelbo.error for r in results])
    assert np.abs(scores).max() < 3.5
    assert 0.5 < math.sqrt(np.mean(scores**2)) < 1.6


@pytest.mark.parametrize("draws", [1, 6])
def test_the_full_sweep_is_the_truth(draws: int, x: Tensor) -> None:
    result = evaluate(model_of(), x, seed=2, draws=draws)
    costs = truth(x)
    assert abs(result.nelbo.value - mean(costs)) < 3.5 * result.nelbo.error
    for name in ("reconstruction", "kl"):
        assert abs(result.terms[name].value - costs[name].mean()) < 3.5 * result.terms[name].error
    levels = WORLD.kl()[index(x).numpy()].mean(0)
    z = (result.levels_kl.numpy() - levels) / result.levels_error.numpy()
    if draws > 1:
        assert np.abs(z).max() < 5
        assert np.abs(np.roll(levels, 1) - levels).max() > 10 * result.levels_error.numpy().max()
    assert abs(result.nelbo.value - mean(truth(x, OTHER))) > 10 * result.nelbo.error
    assert result.provenance["method"] == "full sweep"
    assert result.nelbo.network_evaluations == N * draws * (STEPS - 1 + 4)


def test_every_item_s_own_score(x: Tensor) -> None:
    result = evaluate(model_of(), x[:10], visits=1500, seed=5)
    wanted = sum(truth(x[:10]).values())
    z = (result.per_item["nelbo"].numpy() - wanted[result.per_item["item"].numpy()]) / result.per_item["error"].numpy()
    assert np.abs(z).max() < 3.5
    assert np.abs(z + 0.5 / result.per_item["error"].numpy()).max() > 5  # half a nat beside it
    # A score is the item's alone: of a subset it is the same.
    model, plan = model_of(), Plan.fit(model_of(), x, seed=1)
    whole, part = (evaluate(model, some, plan=plan, visits=4, audit=False).per_item for some in (x[:50], x[:10]))
    close(part["nelbo"], whole["nelbo"][:10], rtol=1e-9)


def test_a_paired_difference_is_the_truth(x: Tensor) -> None:
    """With common noise and levels; the difference's error is less than that of two unpaired."""
    near = World(WORLD.betas, D, Network(D, seed=4))
    with torch.no_grad():
        near.network.out.mul_(1.05)
    both = df.compare(model_of(), model_of(near), x, target_error=0.005, unit="nats")
    wanted = mean(truth(x)) - mean(truth(x, near))
    assert both.reached
    assert abs(both.difference.value - wanted) < 3.5 * both.difference.error
    assert both.difference.error < 0.5 * math.hypot(both.a.nelbo.error, both.b.nelbo.error)
    far = df.compare(model_of(), model_of(OTHER), x, target_error=0.4, unit="nats", seed=2)
    wanted = mean(truth(x)) - mean(truth(x, OTHER))
    assert abs(far.difference.value - wanted) < 3.5 * far.difference.error
    assert abs(far.difference.value + wanted) > 10 * far.difference.error  # the control: the sign


def test_against_a_gaussian_chain_of_the_same_bits(x: Tensor) -> None:
    """Two families, one space: levels of their own, the items in common."""
    forward = df.GaussianDiffusion(df.schedule.log_snr_linear(-6.0, 6.0, 40))
    bits = df.space.binary((D,))
    gaussian = df.DiffusionModel(
        forward, df.Denoiser(lambda z, s: torch.tanh(z), "data"), df.likelihood.LevelPosterior(bits)
    )
    both = df.compare(model_of(), gaussian, x, target_error=0.1, unit="nats", seed=4)
    swept = evaluate(gaussian, x, draws=4, seed=6).nelbo
    error = math.hypot(both.difference.error, swept.error)
    assert abs(both.difference.value - (mean(truth(x)) - swept.value)) < 3.5 * error


def test_records_and_plans_are_kept(tmp_path: Path, x: Tensor) -> None:
    model = model_of()
    plan = Plan.fit(model, x, seed=1)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json", model)
    assert loaded.sha256() == plan.sha256()
    first = evaluate(model, x, plan=loaded, visits=3, records=tmp_path / "draws.safetensors", audit=False)
    more = evaluate(model, x, plan=loaded, visits=5, records=tmp_path / "draws.safetensors", audit=False)
    plain = evaluate(model, x, plan=plan, visits=5, audit=False)
    assert more.nelbo == plain.nelbo
    assert first.nelbo.network_evaluations == 3 * N
    with pytest.raises(DiffusionalError, match="another evaluation"):
        evaluate(model_of(OTHER), x, plan=loaded, visits=3, records=tmp_path / "draws.safetensors", audit=False)
    # A plan is for its own levels: another T, or the same T with other betas, has others.
    for betas in (constant(STEPS - 1), [0.05] * STEPS):
        other = df.BinomialDiffusionModel(df.BinomialDiffusion(betas), WORLD.network, model.space)
        with pytest.raises(DiffusionalError, match="a plan for the model's"):
            VisitRecords(other, plan, x)


def test_the_levels_are_cut_evenly_before_anything_is_known() -> None:
    plan = Plan.uniform(model_of(), cells=4)
    assert plan.edges.tolist() == [1, 11, 21, 31, 40]
    assert plan.mass.tolist()[0] == pytest.approx(1 / 5)


def test_an_audit_sees_a_level_that_the_plan_did_not_expect(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    plan = Plan.fit(model, x, seed=1)
    assert evaluate(model, x, visits=2, plan=plan, seed=1).caveats == ()
    known = model.level_kl
    monkeypatch.setattr(
        model, "level_kl", lambda x, level, noise, c: torch.where(level == 25, 40.0, known(x, level, noise, c))
    )
    result = evaluate(model, x, visits=2, plan=plan, seed=1)
    assert not result.reached
    assert "level 25 cost 39.9 nats more" in result.caveats[0]


def test_another_t_is_refused(x: Tensor) -> None:
    with pytest.raises(DiffusionalError, match="no T to change"):
        evaluate(model_of(), x, steps=100)
