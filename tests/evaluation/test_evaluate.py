"""`evaluate` to a target: it is reached or said not to be, the books balance, and a score is the item's alone."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import HANGS, close, environment, generator, plain_alpha, plain_sigma, randn
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Evaluation, Plan, Progress, evaluate, task, visit_records
from diffusional.evaluation.evaluation import Task
from diffusional.evaluation.plan import Met
from diffusional.evaluation.visit_records import VisitRecords

LOW, HIGH = -5.0, 5.0
LAMBDA, MEAN, DECODER = np.array([0.5, 2.0]), np.array([0.3, -0.4]), 0.01
SPACE = df.Discrete((4,), 5)


# Of 59 levels: as often each as makes 256 visits at least.
AUDIT = 5 * 59


class Small(nn.Module):
    """x̂ from all four positions; it counts the rows it sees, and stops after so many."""

    def __init__(self, scale: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) + scale * randn(4, 4, dtype=torch.float32))
        self.rows, self.stop = 0, math.inf

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        self.rows += len(z)
        if self.rows > self.stop:
            raise KeyboardInterrupt
        x = torch.tanh(1.5 * z @ self.weight)
        return x if condition is None else x * condition


def discrete(
    steps: int | None = 60, decoder: Any = likelihood.DiscretizedGaussian, network: nn.Module | None = None
) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    return df.DiffusionModel(forward, df.Denoiser(network or Small(), "data"), decoder(SPACE))


def gaussian(steps: int | None = 60, scale: tuple[float, ...] = (1.0,)) -> df.DiffusionModel:
    world = exact.Gaussian(torch.tensor(MEAN), torch.diag(torch.tensor(LAMBDA)))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((2,), scale=scale), variance=DECODER)
    return df.DiffusionModel(forward, world.denoiser(), decoder)


def levels(n: int = 30, seed: int = 2) -> Tensor:
    return SPACE.encode(torch.randint(0, 25, (n, 4), generator=generator(seed)).double().sqrt().long())


def reals(n: int) -> Tensor:
    return torch.tensor(MEAN) + torch.tensor(LAMBDA).sqrt() * randn(n, 2, seed=1)


def plan_for(model: df.DiffusionModel, x: Tensor | None = None, evaluations: int = 600) -> Plan:
    return Plan.fit(model, levels(200, seed=9) if x is None else x, evaluations, cells=8)


def rows(model: df.DiffusionModel) -> int:
    """What the network has seen since the last call."""
    module = model.denoiser.module
    seen, module.rows = module.rows, 0
    return seen


def plain(result: Evaluation) -> dict[str, Any]:
    return json.loads(json.dumps(result.to_json(), allow_nan=False))


# A target.


@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
@pytest.mark.parametrize("steps", [60, None])
def test_the_target_is_reached_and_every_evaluation_counted(steps: int | None, decoder: Any) -> None:
    model = discrete(steps, decoder)
    told: list[Progress] = []
    result = evaluate(model, levels(), target_error=0.02, reference=levels(200, 9), progress=told.append)
    assert result.reached
    assert result.caveats == ()
    assert 0.01 < result.nelbo.to("bits/dim", 4).error <= 0.02
    spent = result.provenance["evaluations"]
    assert spent["audit"] == (AUDIT if steps else 2048)
    # As long as pays: √(κ draws), within the twice that a short pilot's idea of the draws may be off.
    assert 0.5 < spent["pilot"] / math.sqrt(500 * spent["draws"]) < 2
    assert set(result.provenance["seconds"]) == {"pilot", "audit", "draws"}
    assert all(seconds > 0 for seconds in result.provenance["seconds"].values())
    assert spent["draws"] == int(result.per_item["draws"].sum())
    assert sum(spent.values()) == result.nelbo.network_evaluations == plain(result)["network_evaluations"]
    assert rows(model) == sum(spent.values())
    assert told[-1].estimate.value == pytest.approx(result.nelbo.value, rel=1e-12)
    assert told[-1].evaluations == sum(spent.values()) == told[-1].expected
    assert [p.evaluations for p in told] == sorted(p.evaluations for p in told)
    assert all(p.evaluations <= p.expected for p in told)
    # Stage by stage: the audit from its first visit to its last, then the draws.
    stages = list(dict.fromkeys(p.stage for p in told))
    assert stages == ["pilot", "audit", "draws"]
    audit = [p for p in told if p.stage == "audit"]
    assert [p.evaluations for p in (audit[0], audit[-1])] == [spent["pilot"], spent["pilot"] + spent["audit"]]
    assert {p.expected for p in audit} == {spent["pilot"] + spent["audit"]}


@pytest.mark.parametrize(("n", "part", "every"), [(40, False, False), (3000, True, False), (3000, False, True)])
def test_the_value_is_the_truth(n: int, part: bool, every: bool) -> None:
    """Of all items or, where that does, of a random part."""
    x = reals(n)
    plan = Plan.fit(gaussian(), reals(300) + 0.5, 1000, cells=8)
    result = evaluate(gaussian(), x, target_error=0.05, unit="nats", plan=plan, every_item=every)
    truth = sum(costs(x.numpy())).mean()
    assert result.reached
    assert abs(result.nelbo.value - truth) < 4 * result.nelbo.error
    assert result.nelbo.error <= 0.05
    assert (len(result.per_item["item"]) < n) == part
    assert result.nelbo.n == n
    record = plain(result)
    assert (record["items"], record["items_visited"]) == (n, len(result.per_item["item"]))
    low, high = result.interval()
    assert low < result.nelbo.value - 1.9 * result.nelbo.error < result.nelbo.value + 1.9 * result.nelbo.error < high


def costs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reconstruction, Σ KL and prior of the sixty latents of `gaussian` (N,), written out."""
    gamma = np.linspace(LOW, HIGH, 60)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    error = (((x - MEAN)[:, None] * (1 - k * a)) ** 2 + (k * s) ** 2).sum(2)
    snr = np.exp(-gamma)
    prior = 0.5 * (a[-1] ** 2 * (x**2).sum(1) + 2 * (s[-1] ** 2 - 1 - np.log(s[-1] ** 2)))
    reconstruction = 0.5 * (2 * math.log(2 * math.pi * DECODER) + error[:, 0] / DECODER)
    return reconstruction, 0.5 * ((snr[:-1] - snr[1:]) * error[:, 1:]).sum(1), prior


@pytest.mark.parametrize("arguments", [{"target_error": 0.05}, {"visits": 4}, {"item_error": 0.4}])
@pytest.mark.parametrize("n", [30, 600])
def test_the_books_balance(n: int, arguments: dict[str, Any]) -> None:
    model = gaussian(scale=(2.0,))
    x = reals(n)
    result = evaluate(model, x, unit="nats", plan=Plan.fit(model, reals(300) + 0.2, 1000, cells=8), **arguments)
    assert set(result.terms) == {"reconstruction", "kl", "prior", "jacobian"}
    assert sum(t.value for t in result.terms.values()) == pytest.approx(result.nelbo.value, abs=1e-9)
    assert float(result.levels_kl.sum()) == pytest.approx(result.terms["kl"].value, abs=1e-9)
    assert len(result.levels_kl) == len(result.levels_error) == len(result.level_edges) - 1 == 8
    assert result.level_edges[[0, -1]].tolist() == [1, 60]
    close(sum(result.per_item[name] for name in result.terms), result.per_item["nelbo"], rtol=0, atol=1e-9)
    if len(result.per_item["item"]) == n:
        assert float(result.per_item["nelbo"].mean()) == pytest.approx(result.nelbo.value, abs=1e-9)
    for name, truth in zip(("reconstruction", "kl", "prior"), costs(x.numpy()), strict=True):
        assert abs(result.terms[name].value - truth.mean()) <= 4 * result.terms[name].error + 1e-9
    assert result.terms["prior"].error == result.terms["jacobian"].error == 0
    assert result.terms["jacobian"].value == pytest.approx(2 * math.log(2))
    # The rows of each level, held to the truth's own sum over its levels.
    assert bool((result.levels_error > 0).all())


def test_the_levels_of_the_truth() -> None:
    x = reals(50)
    result = evaluate(gaussian(), x, visits=200, plan=Plan.uniform(gaussian(), 6))
    gamma = np.linspace(LOW, HIGH, 60)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    k = a * LAMBDA / (a**2 * LAMBDA + s**2)
    error = (((x.numpy() - MEAN)[:, None] * (1 - k * a)) ** 2 + (k * s) ** 2).sum(2)
    kl = 0.5 * ((np.exp(-gamma[:-1]) - np.exp(-gamma[1:])) * error[:, 1:]).mean(0)
    for cell, (first, last) in enumerate(zip(result.level_edges[:-1], result.level_edges[1:], strict=True)):
        wanted = kl[first - 1 : last - 1].sum()
        assert abs(float(result.levels_kl[cell]) - wanted) < 4 * float(result.levels_error[cell])


def test_the_record() -> None:
    model = discrete()
    record = plain(evaluate(model, levels(), visits=3, plan=plan_for(model), seed=4))
    assert record["nelbo"]["unit"] == "bits/dim"
    for key in ("value", "error", "item_error"):
        assert record["nelbo"][key] == pytest.approx(record["nelbo_nats"][key] / (4 * math.log(2)), rel=1e-12)
    assert {entry["unit"] for entry in record["terms"].values()} == {"nats"}
    about = record["provenance"]
    assert {"data_sha256", "weights_sha256", "plan_sha256", "plan", "versions", "command", "latents"} <= set(about)
    assert (about["method"], about["seed"], about["visits"]) == ("plan", 4, [3, 3])
    assert (record["items"], record["items_visited"], record["dimensions"], record["levels"]) == (30, 30, 4, 5)
    one = plain(evaluate(model, levels(1), visits=3, plan=plan_for(model)))
    assert one["nelbo"]["item_error"] is None
    assert one["nelbo"]["error"] > 0


def test_the_random_state_and_the_mode_are_left_alone() -> None:
    model = discrete()
    model.train()
    before = torch.get_rng_state()
    evaluate(model, levels(), target_error=0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_conditions_go_with_their_items() -> None:
    model, x = discrete(), levels()
    condition = 0.5 + 0.5 * torch.rand(30, 1, generator=generator(1))
    other = condition.clone()
    other[7] = 0
    plan = Plan.fit(model, x, 600, condition=condition, cells=8)
    one, two = (evaluate(model, x, visits=4, plan=plan, condition=c) for c in (condition, other))
    changed = one.per_item["nelbo"] != two.per_item["nelbo"]
    assert changed.nonzero().flatten().tolist() == [7]
    # The pilot's too.
    assert evaluate(model, x, visits=2, condition=condition).provenance["plan"]["evaluations"] == 500


# A budget.


def test_a_budget_that_does_not_suffice_is_kept_and_said() -> None:
    model, x = discrete(), levels()
    plan = plan_for(model)
    rows(model)
    for budget in (500, 800, 1301):
        result = evaluate(model, x, target_error=1e-4, plan=plan, max_evaluations=budget)
        assert not result.reached
        assert not plain(result)["reached"]
        assert result.caveats == ()
        assert rows(model) == result.nelbo.network_evaluations
        assert budget - 60 < result.nelbo.network_evaluations <= budget
        long = evaluate(model, x, visits=400, plan=plan, seed=1)
        assert abs(result.nelbo.value - long.nelbo.value) < 4 * math.hypot(result.nelbo.error, long.nelbo.error)
        assert result.nelbo.error > 1e-3
        rows(model)
    assert evaluate(model, x, target_error=0.1, plan=plan, max_evaluations=10_000).reached


def refused_or_kept(budget: int, arguments: dict[str, Any]) -> None:
    model, x = discrete(), levels(12)
    plan = plan_for(model)
    rows(model)
    try:
        result = evaluate(model, x, plan=plan, max_evaluations=budget, **arguments)
    except DiffusionalError as error:
        assert f"max_evaluations={budget} is too small" in str(error)  # noqa: PT017
        assert rows(model) <= budget
    else:
        assert not result.reached
        assert math.isfinite(result.nelbo.error)
        assert len(result.per_item["item"]) >= 2
        assert int(result.per_item["draws"].min()) >= 2
        assert rows(model) == plain(result)["network_evaluations"] <= budget


@pytest.mark.parametrize("audit", [True, False])
@pytest.mark.parametrize("budget", [1, 2, 4, 8, 59, 62, AUDIT, AUDIT + 1, AUDIT + 3, AUDIT + 41])
def test_an_absurd_budget_is_refused_or_kept(budget: int, audit: bool) -> None:
    refused_or_kept(budget, {"target_error": 1e-4, "audit": audit})


@pytest.mark.parametrize("arguments", [{"visits": 6}, {"item_error": 1e-3}], ids=lambda a: "-".join(a))
@pytest.mark.parametrize("budget", [1, 3, 60, AUDIT, AUDIT + 1, AUDIT + 2, AUDIT + 12])
def test_an_absurd_budget_for_every_item_is_refused_or_kept(budget: int, arguments: dict[str, Any]) -> None:
    refused_or_kept(budget, arguments)


@pytest.mark.parametrize(
    "arguments", [{"visits": 50, "max_evaluations": 1000}, {"item_error": 0.05, "max_evaluations": 160}]
)
def test_what_a_budget_allows_is_a_random_part(arguments: dict[str, Any]) -> None:
    """Of sorted data, the first items say nothing of the last, which are five times as far out."""
    x = reals(60)
    x[30:] *= 5
    plan = Plan.uniform(gaussian(), 8)
    result = evaluate(gaussian(), x, plan=plan, unit="nats", **arguments)
    assert 15 < len(result.per_item["item"]) < 30
    assert abs(result.nelbo.value - sum(costs(x.numpy())).mean()) < 4 * result.nelbo.error


def test_a_pilot_is_not_flown_on_a_budget_that_it_would_exceed() -> None:
    model = discrete()
    with pytest.raises(DiffusionalError, match=r"max_evaluations above 500.*got 500"):
        evaluate(model, levels(), target_error=0.1, max_evaluations=500)
    assert rows(model) == 0


# Scores.


@pytest.mark.parametrize("steps", [60, None])
@pytest.mark.parametrize("arguments", [{"visits": 3}, {"item_error": 0.5}], ids=lambda a: "-".join(a))
def test_a_score_is_the_items_own(
    steps: int | None, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = discrete(steps), levels(20)
    x[11] = x[5]
    plan = plan_for(model)
    whole = evaluate(model, x, plan=plan, **arguments)
    assert whole.per_item["item"].tolist() == list(range(20))
    monkeypatch.setattr(visit_records, "_NOISE", 8 * 50)
    order = torch.randperm(20, generator=generator(0)).tolist()
    # Of two copies the one that comes first is the first one.
    first, second = sorted([order.index(5), order.index(11)])
    order[first], order[second] = 5, 11
    for chosen in ([5, 3, 17], [2, 5, 11], order):
        part = evaluate(model, x[chosen], plan=plan, audit=False, **arguments)
        assert torch.equal(part.per_item["draws"], whole.per_item["draws"][chosen])
        for name in ("nelbo", "kl", "reconstruction", "prior", "error"):
            torch.testing.assert_close(part.per_item[name], whole.per_item[name][chosen], rtol=1e-5, atol=1e-4)
    assert whole.per_item["nelbo"][5] != whole.per_item["nelbo"][11]


def test_every_items_error_is_reached() -> None:
    model, x = discrete(), levels(20)
    plan = plan_for(model)
    result = evaluate(model, x, item_error=1.0, unit="nats", plan=plan)
    assert result.reached
    assert bool((result.per_item["error"] <= 1.0).all())
    taken = result.per_item["draws"]
    assert int(taken.min()) >= 8
    assert taken.unique().numel() > 1  # as many as each needs
    tight = evaluate(model, x, item_error=0.5, unit="nats", plan=plan)
    assert bool((tight.per_item["draws"] >= taken).all())
    # To within 40 % of what it takes: no more than the last step.
    assert 1.5 < float(tight.per_item["draws"].double().mean() / taken.double().mean()) < 6
    bits = evaluate(model, x, item_error=1.0 / (4 * math.log(2)), plan=plan)
    assert torch.equal(bits.per_item["draws"], taken)
    assert not evaluate(model, x, item_error=0.5, unit="nats", plan=plan, max_evaluations=500).reached


# Cut off, and taken up again.


class Patience:
    """A `progress` that interrupts after so many reports of the draws."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, now: Progress) -> None:
        self.left -= now.stage == "draws"
        if self.left == 0:
            raise KeyboardInterrupt


MODES = [{"target_error": 0.2}, {"visits": 7}, {"item_error": 1.0}, {"target_error": 0.01, "max_evaluations": 601}]


def exactly(a: Evaluation, b: Evaluation) -> None:
    """All but how long it took."""
    one, other = plain(a), plain(b)
    for record in (one, other):
        record["provenance"].pop("seconds", None)
    assert one == other
    assert a.per_item.keys() == b.per_item.keys()
    for name in a.per_item:
        assert torch.equal(a.per_item[name], b.per_item[name])


@pytest.mark.parametrize("arguments", MODES, ids=lambda a: "-".join(a))
def test_what_was_cut_off_goes_on(arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit_records, "_NOISE", 8 * 37)  # blocks of 37 visits
    monkeypatch.setattr(task, "_SAVE_EVERY", -1.0)
    model, x, calls = discrete(), levels(), []
    plan = plan_for(model)
    whole = evaluate(model, x, plan=plan, progress=calls.append, **arguments)
    calls = [now for now in calls if now.stage == "draws"]
    assert len(calls) > 4
    rows(model)
    for i, calls_made in enumerate((1, 2, len(calls) // 2, len(calls) - 1)):
        path = tmp_path / f"{i}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, x, plan=plan, records=path, progress=Patience(calls_made), **arguments)
        before = rows(model)
        assert path.exists() == (calls_made > 1)
        again = evaluate(model, x, plan=plan, records=path, **arguments)
        exactly(again, whole)
        # No more was done again than the block whose end was not told, and the audit.
        assert before + rows(model) <= whole.nelbo.network_evaluations + AUDIT + 37
        # What is done is done.
        exactly(evaluate(model, x, plan=plan, records=path, **arguments), whole)
        assert rows(model) == AUDIT


@pytest.mark.parametrize("budget", [0, 100, 101, 150])
def test_what_was_cut_off_goes_on_within_a_smaller_budget(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visit_records, "_NOISE", 8 * 37)  # blocks of 37 visits, which end within an item's three
    monkeypatch.setattr(task, "_SAVE_EVERY", -1.0)
    model, x, path = discrete(), levels(100), tmp_path / "records.safetensors"
    plan = plan_for(model)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, x, plan=plan, visits=3, audit=False, records=path, progress=Patience(3))
    kept = 2 * 37
    rows(model)
    found = evaluate(model, x, plan=plan, visits=3, audit=False, records=path, max_evaluations=max(budget, 1))
    # An item with a single draw gets another: beyond that, no more is spent than the budget.
    assert rows(model) <= max(budget - kept, 1)
    assert not found.reached
    assert int(found.per_item["draws"].min()) >= 2
    assert math.isfinite(found.nelbo.value)
    assert math.isfinite(found.nelbo.error)


def test_a_network_that_breaks_off_leaves_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit_records, "_NOISE", 8 * 37)
    monkeypatch.setattr(task, "_SAVE_EVERY", -1.0)
    model, x, path = discrete(), levels(), tmp_path / "records.safetensors"
    plan = plan_for(model)
    whole = evaluate(model, x, target_error=0.2, plan=plan)
    rows(model)
    model.denoiser.module.stop = whole.nelbo.network_evaluations - 50
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, x, target_error=0.2, plan=plan, records=path)
    model.denoiser.module.stop = math.inf
    rows(model)
    exactly(evaluate(model, x, target_error=0.2, plan=plan, records=path), whole)
    assert rows(model) < AUDIT + 50 + 37


def test_a_folder_keeps_records_until_the_target_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit_records, "_NOISE", 8 * 37)
    monkeypatch.setattr(task, "_SAVE_EVERY", -1.0)
    model, x = discrete(), levels()
    plan = plan_for(model)
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, x, target_error=0.2, plan=plan, records=tmp_path, seed=seed, progress=Patience(4))
    assert len(list(tmp_path.iterdir())) == 2
    exactly(
        evaluate(model, x, target_error=0.2, plan=plan, records=tmp_path, seed=1),
        evaluate(model, x, target_error=0.2, plan=plan, seed=1),
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pilot_flown_again_finds_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear algebra is the same to the last bit only where memory is laid out alike: one refit in five differs by 1e-16."""
    path, fit, calls = tmp_path / "records.safetensors", Plan.fit, count()

    def refit(*arguments: Any, **options: Any) -> Plan:
        plan = fit(*arguments, **options)
        object.__setattr__(plan, "constant", plan.constant * (1 + 2**-52 * next(calls)))
        return plan

    monkeypatch.setattr(Plan, "fit", refit)
    model, x = discrete(), levels()
    first = evaluate(model, x, visits=3, records=path)
    again = evaluate(model, x, visits=3, records=path)
    assert again.nelbo.value == pytest.approx(first.nelbo.value, rel=1e-9)


def foreign() -> dict[str, Any]:
    """What an evaluation may differ in from that of `discrete()` on `levels()` under seed 0."""
    condition = torch.ones(30, 1)
    transition = df.DiffusionModel(
        discrete().process, df.Denoiser(Small(), "data"), likelihood.DiscretizedGaussian(SPACE), "transition"
    )
    wide = df.DiffusionModel(
        discrete().process, df.Denoiser(Small(), "data"), likelihood.DiscretizedGaussian(SPACE, variance=0.1)
    )
    return {
        "data": (discrete(), {"data": levels(seed=3)}),
        "order": (discrete(), {"data": levels().flip(0)}),
        "seed": (discrete(), {"seed": 1}),
        "weights": (discrete(network=Small(0.051)), {}),
        "plan": (discrete(), {"plan": Plan.uniform(discrete())}),
        "condition": (discrete(), {"condition": 0.5 * condition}),
        "variance": (transition, {}),
        "decoder": (wide, {}),
    }


@pytest.mark.parametrize(
    "what",
    ["data", "order", "seed", "weights", "plan", "condition", "variance", "decoder"],
)
def test_records_of_another_evaluation_are_refused(what: str, tmp_path: Path) -> None:
    path, plan = tmp_path / "records.safetensors", plan_for(discrete())
    model, other = foreign()[what]
    same = {"data": levels(), "plan": plan, "visits": 3}
    evaluate(discrete(), **same, records=path, condition=torch.ones(30, 1) if what == "condition" else None)
    evaluate(discrete(), **same, records=path, condition=torch.ones(30, 1) if what == "condition" else None)
    alone = evaluate(model, **same | other)
    with pytest.raises(DiffusionalError, match="holds the draws of another evaluation"):
        assert evaluate(model, **same | other, records=path).nelbo.value != alone.nelbo.value


# What the pilot has not seen.


class Spiked(nn.Module):
    """Next to nothing but at one level, where items whose first two positions are both high cost about 30 nats more."""

    def __init__(self, level: int | None, steps: int) -> None:
        super().__init__()
        self.gamma = None if level is None else LOW + (HIGH - LOW) * level / (steps - 1)
        self.by = math.sqrt(2 * 30 / math.expm1((HIGH - LOW) / (steps - 1)))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        if self.gamma is None:
            return 0.1 * z
        there = ((log_snr + self.gamma).abs() < 1e-3)[:, None] & (z[:, :2] > 0).all(1, keepdim=True)
        return torch.where(there, self.by / 2, 0.1 * z)  # ‖ε̂‖² = by² over four positions


SPIKE = 20


def spiked(level: int | None) -> tuple[df.DiffusionModel, Tensor, Tensor]:
    """The model, items that it has not been fitted to, and those it has."""
    forward = df.GaussianDiffusion(schedule.log_snr_linear(LOW, HIGH, 201))
    model = df.DiffusionModel(forward, df.Denoiser(Spiked(level, 201)), likelihood.LevelPosterior(SPACE))
    x, reference = levels(100), levels(200, seed=9)
    x[:, :2] = 1
    # Each of the two is high at times, never both.
    reference[:, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]).repeat(50, 1)
    return model, x, reference


@pytest.mark.parametrize("arguments", [{"target_error": 2.0}, {"visits": 2}])
def test_a_level_that_the_pilot_has_not_seen_is_named(arguments: dict[str, Any]) -> None:
    model, x, reference = spiked(SPIKE)
    result = evaluate(model, x, reference=reference, **arguments)
    assert not result.reached
    named = [text for text in result.caveats if text.startswith(f"level {SPIKE} cost ")]
    assert len(named) == 1
    assert re.search(r"level 20 cost \+?(2\d|3\d)(\.\d)? nats more than the plan expects there", named[0])
    assert plain(result)["caveats"] == list(result.caveats)
    assert result.provenance["evaluations"]["audit"] == 400
    # Without the audit nobody looks there.
    blind = evaluate(model, x, reference=reference, audit=False, **arguments)
    assert not any("than the plan expects" in text for text in blind.caveats)
    assert blind.provenance["evaluations"]["audit"] == 0


@pytest.mark.parametrize("arguments", [{"target_error": 2.0}, {"visits": 2}])
def test_where_nothing_is_hidden_the_audit_is_silent(arguments: dict[str, Any]) -> None:
    model, x, reference = spiked(None)
    for seed in range(4):
        result = evaluate(model, x, reference=reference, seed=seed, **arguments)
        assert result.caveats == ()
        assert result.reached
    # Nor where the pilot has seen it.
    model, x, _ = spiked(SPIKE)
    seen = evaluate(model, x, reference=x, target_error=2.0)
    assert not any(text.startswith("level") for text in seen.caveats)


def test_an_audit_that_the_budget_leaves_out_is_missed() -> None:
    model = discrete()
    result = evaluate(model, levels(), target_error=0.1, plan=plan_for(model), max_evaluations=58)
    assert not result.reached
    assert "left none for the audit of the levels, which takes 295" in result.caveats[0]


def test_an_audit_that_meets_infinity_names_the_item() -> None:
    class Bad(Small):
        def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
            out = super().forward(z, log_snr)
            return torch.where((log_snr < -4.9)[:, None] & self.bad, math.nan, out)

    network = Bad()
    network.bad = torch.tensor(False)
    model = discrete(network=network)
    plan = plan_for(model)
    network.bad = torch.tensor(True)
    with pytest.raises(DiffusionalError, match=r"item \d+ has a cost that is not finite at level 59"):
        evaluate(model, levels(), visits=2, plan=plan)


def test_few_draws_that_carry_the_error_are_said() -> None:
    """A thousandth of the visits cost a thousand times more: the error of few draws can't be vouched for."""

    class Rare(nn.Module):
        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            return torch.where(z[:, :1] > 2.8, 300.0, 0.1 * z)

    model = discrete()
    model.denoiser = df.Denoiser(Rare())
    result = evaluate(model, levels(500), target_error=1e5, plan=Plan.uniform(model), audit=False)
    assert result.freedom < 15
    assert not result.reached
    assert "the error rests on few draws" in result.caveats[0]
    assert result.interval()[1] - result.nelbo.value > 2 * result.nelbo.error


def test_what_a_plan_expects_of_a_part_of_the_items() -> None:
    """n of N items, J draws each, of variance v: v/(nJ), however many items there are."""
    draws = VisitRecords(discrete(), Plan.uniform(discrete()), levels(100))
    draws.count[:20] = 2
    assert draws.expected_variance(8.0) == pytest.approx(8 / (20 * 2))


def without_spread(plan: Plan, model: df.DiffusionModel, items: int, each: int) -> Task:
    """An evaluation whose draws, `each` of some of 400 items, all cost what the plan subtracts: they have met nothing rare."""
    task = Task(VisitRecords(model, plan, levels(400)), 0, None)
    task.draws.extend(task.draws.order[:items], torch.full((items,), each))
    for costs in task.draws._costs.values():
        costs.zero_()
    return task


def test_the_rule_that_stops_heeds_the_plan() -> None:
    """Costs without spread have the plan's variance as 256 degrees of freedom; an error above it stays."""
    model = discrete()
    plan = plan_for(model)
    task = without_spread(plan, model, 300, 3)
    assert 900 * plan.freedom_of_a_draw > 30
    seen = task.draws.nelbo().error
    expected = plan.draw_variance / (300 * 3)
    blend = (256 * expected + 600 * seen**2) / (256 + 600)
    assert blend > seen**2
    assert task._cautious().error == pytest.approx(math.sqrt(blend))


def with_rare_costs(plan: Plan) -> Plan:
    """The plan from a pilot in which one visit in a hundred, in every cell, costs 500 nats when weighted, and the others nothing."""
    cells = (plan.mass > 0).nonzero().squeeze(1)
    cell, rare = cells.repeat(1000), torch.arange(1000).repeat_interleave(len(cells)) < 10
    size = 500 * plan.mass / plan.width
    return replace(plan, met=Met(cell, cell, torch.where(rare, size[cell], 0.0)), scale=0.1 * size)


@pytest.mark.parametrize("decoder", [likelihood.DiscretizedGaussian, likelihood.LevelPosterior])
def test_draws_that_could_not_have_met_rare_costs_do_not_end_an_evaluation(decoder: Any) -> None:
    """600 draws meet six rare costs, which is too few to know their variance by: whatever was drawn, the plan's expectation counts, and
    its own error is added. From 1,000 draws on the draws count too.
    """
    model = discrete(decoder=decoder)
    plan = with_rare_costs(plan_for(model))
    assert plan.draw_variance == pytest.approx(0.01 * 500**2)
    assert plan.freedom_of_a_draw == pytest.approx(3 * 0.01)
    # As many as there are rare costs, if they were equally frequent in the evaluation: 3 (Σ π)²/Σ (π²/10).
    assert plan.pilot_freedom == pytest.approx(30 / float(plan.mass.square().sum()))
    few, many = without_spread(plan, model, 300, 2), without_spread(plan, model, 350, 3)
    assert few._cautious().error == pytest.approx(math.sqrt(2500 / 600 * (1 + math.sqrt(2 / plan.pilot_freedom))))
    assert many._cautious().error == pytest.approx(math.sqrt(256 * 2500 / 1050 / (256 + 700)), rel=0.01)


def test_an_evaluation_goes_on_until_its_draws_could_have_met_rare_costs() -> None:
    """The network has no rare costs, so that the draws' own error is below the target after the first look, with any seed."""
    model, x = discrete(), levels(1000)
    plan = with_rare_costs(plan_for(model))
    for target, least, most in ((1.9, 700, 950), (1.2, 1000, 1200)):
        for seed in range(2):
            result = evaluate(model, x, target_error=target, unit="nats", plan=plan, audit=False, seed=seed)
            assert result.reached
            # 2500 (1 + u)/target² draws by the plan's expectation, or 1,000, from which on their own error counts.
            assert least < result.nelbo.network_evaluations < most


def test_items_that_stop_by_their_own_errors_are_said_to_bias_the_mean() -> None:
    model, x = discrete(), levels()
    result = evaluate(model, x, item_error=1.0, unit="nats", plan=plan_for(model))
    assert result.reached
    assert "the mean's bias is not in its error" in result.caveats[-1]
    # One item has few draws, which says nothing against its own error.
    assert evaluate(model, x[:1], item_error=5.0, unit="nats", plan=plan_for(model)).reached


# Another T.


def test_another_grid_is_the_model_regridded() -> None:
    model, x = discrete(60), levels()
    for steps in (31, "continuous"):
        other = model.regrid(None if steps == "continuous" else steps)
        plan = plan_for(other)
        with pytest.warns(
            UserWarning, match="the model has T = 60 and is evaluated at T = (31|∞): between the noise levels"
        ):
            found = evaluate(model, x, visits=3, plan=plan, steps=steps)
        exactly(found, evaluate(other, x, visits=3, plan=plan))
        assert found.provenance["latents"] == other.steps
        with pytest.warns(UserWarning, match="is evaluated at"):
            swept = evaluate(model, x, draws=2, cells=20, steps=steps)
        assert len(swept.levels_kl) == (30 if steps == 31 else 20)


@pytest.mark.filterwarnings("error")
def test_models_of_continuous_time_take_any_grid_quietly() -> None:
    model, x = discrete(None), levels()
    plan = plan_for(model.regrid(80))
    exactly(evaluate(model, x, visits=3, plan=plan, steps=80), evaluate(model.regrid(80), x, visits=3, plan=plan))
    evaluate(model, x, visits=2, plan=plan_for(model), steps="continuous", audit=False)
    evaluate(discrete(60), x, visits=2, plan=plan_for(discrete(60)), steps=60, audit=False)
    # A finer grid is a tighter bound, and continuous time the tightest.
    wide = [evaluate(gaussian(None), reals(40), visits=100, steps=s, audit=False).nelbo for s in (5, 60, "continuous")]
    assert wide[0].value - wide[1].value > 4 * math.hypot(wide[0].error, wide[1].error)
    assert wide[1].value - wide[2].value > -4 * math.hypot(wide[1].error, wide[2].error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_error": 0.1, "visits": 3}, "got target_error and visits"),
        ({"item_error": 0.1, "visits": 3}, "got visits and item_error"),
        ({"target_error": 0.0}, "target_error to be a positive number, got 0.0"),
        ({"target_error": math.nan}, "target_error to be a positive number, got nan"),
        ({"item_error": -0.1}, "item_error to be a positive number, got -0.1"),
        ({"visits": 1}, "visits to be at least 2, got 1"),
        ({"target_error": 0.1, "max_evaluations": 0}, "max_evaluations to be at least 1, got 0"),
        ({"target_error": 0.1, "draws": 2}, "draws=2.* and target_error were both given"),
        ({"visits": 4, "draws": 2}, "draws=2.* and visits were both given"),
        ({"max_evaluations": 100}, "target_error.* with max_evaluations=100"),
        ({"plan": None, "records": "x"}, "target_error.* with a plan, reference data or records"),
        ({"steps": 1, "visits": 2}, "T ≥ 2.* got 1"),
        ({"visits": 2, "condition": torch.ones(3, 1)}, "condition has 3 rows for 30 items"),
        (
            {"visits": 2, "condition": torch.ones(30, 1), "reference": levels()},
            "expected a plan.*conditions and reference data",
        ),
        ({"visits": 2, "data": torch.full((2, 4), 0.3)}, "5 levels.* got 0.3 in item 0"),
        ({"visits": 2, "plan": Plan.uniform(discrete(61))}, "a plan for the model's"),
        ({"plan": Plan.uniform(discrete(60))}, "target_error.* with a plan, reference data or records"),
        ({"visits": 2, "steps": 61, "plan": Plan.uniform(discrete(60))}, "a plan for the model's"),
    ],
)
@pytest.mark.filterwarnings("ignore:the model has T")
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    model = discrete()
    with pytest.raises(DiffusionalError, match=message):
        evaluate(model, **{"data": levels()} | arguments)
    assert rows(model) == 0


# Two processes.

PROCESSES = """
import json, sys
import torch, torch.distributed as dist
import diffusional as df
from diffusional import likelihood, schedule
from diffusional.evaluation import Plan, evaluate

rank, folder = int(sys.argv[1]), sys.argv[2]
if rank >= 0:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
space = df.Discrete((4,), 5)
forward = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, 20))
seen = []
def network(z, log_snr):
    seen.append(len(z))
    return torch.tanh(1.5 * z)
model = df.DiffusionModel(forward, df.Denoiser(network, "data"), likelihood.DiscretizedGaussian(space))
x = space.encode(torch.randint(0, 5, (11, 4), generator=torch.Generator().manual_seed(0)))
plan = Plan.fit(model, x, 200, cells=4)
out = {}
# A network whose products differ in the last bits with the number of rows.
torch.manual_seed(0)
weights = [torch.randn(4, 300), torch.randn(300, 4) / 20]
def exact_network(z, log_snr):
    seen.append(len(z))
    return torch.tanh(torch.nn.functional.silu(z @ weights[0]) @ weights[1])
wide = df.DiffusionModel(forward, df.Denoiser(exact_network, "data"), likelihood.DiscretizedGaussian(space))
exactly = {"deterministic": True}
wanted = {"visits": {"visits": 5}, "target": {"target_error": 0.2}, "sweep": {}, "visits, deterministic": {"visits": 5} | exactly,
          "target, deterministic": {"target_error": 5} | exactly, "sweep, deterministic": exactly}
plans = {model: plan, wide: Plan.fit(wide, x, 200, cells=4)}
for name, options in wanted.items():
    evaluated = wide if "deterministic" in name else model
    if not name.startswith("sweep"):
        options = {"plan": plans[evaluated], "audit": False, "records": f"{folder}/{name}{rank < 0}"} | options
    seen.clear()
    result = evaluate(evaluated, x, **options)
    scores = {k: v.tolist() for k, v in result.per_item.items()}
    out[name] = {"scores": scores, "nelbo": result.nelbo.to_dict(), "levels": result.levels_kl.tolist(),
                 "counted": result.nelbo.network_evaluations, "seen": sum(seen)}
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(out, file)
if rank >= 0:
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, str(rank), str(tmp_path)],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (-1, 0, 1)
    ]
    for one in running:
        _, said = one.communicate(timeout=HANGS)
        assert one.returncode == 0, said
    alone, first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (-1, 0, 1))
    for name, wanted in alone.items():
        for found in (first[name], second[name]):
            if name.endswith("deterministic"):
                assert found["scores"] == wanted["scores"]  # to the last bit
                assert (found["levels"], found["nelbo"]) == (wanted["levels"], wanted["nelbo"])
                continue
            for key, values in wanted["scores"].items():
                np.testing.assert_allclose(found["scores"][key], values, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found["levels"], wanted["levels"], rtol=1e-5, atol=1e-5)
            for key in ("value", "error", "item_error"):
                assert found["nelbo"][key] == pytest.approx(wanted["nelbo"][key], rel=1e-4)
            assert found["counted"] == wanted["counted"]
        if name.endswith("deterministic"):
            continue  # batches are filled up
        # Each does about half, and together they do what is counted.
        assert (
            first[name]["seen"] + second[name]["seen"]
            == wanted["seen"]
            == wanted["counted"] - (200 if name != "sweep" and wanted["counted"] > wanted["seen"] else 0)
        )
        assert min(first[name]["seen"], second[name]["seen"]) > 0.4 * wanted["seen"]
    assert (tmp_path / "visitsFalse").exists()


# Items that are levels stored as real numbers.


def test_evaluate_warns_of_levels_in_a_continuous_space(recwarn: pytest.WarningsRecorder) -> None:
    """A density on a grid has no upper bound, which no error bar shows."""
    ages = torch.randint(18, 90, (300, 2), generator=torch.Generator().manual_seed(0)).double()
    space = df.Continuous((2,), tuple(ages.mean(0).tolist()), tuple(ages.std(0).tolist()))
    world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=50))
    model = df.DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(space))
    evaluate(model, world.sample(300, torch.Generator().manual_seed(0)), visits=2, plan=Plan.uniform(model))
    assert len(recwarn) == 0
    for options in ({"visits": 2, "plan": Plan.uniform(model)}, {"draws": 1}):
        with pytest.warns(UserWarning, match=r"whole numbers: these are data of 90 levels.*levels=90") as caught:
            result = evaluate(model, space.encode(ages), **options)
        assert len(caught) == 1
        # It is not about the error.
        assert not any("whole numbers" in caveat for caveat in result.caveats)
