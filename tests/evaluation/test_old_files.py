"""Plans and draws saved by an earlier version (commit 5a41c5e, in fixtures/) load, give the same scores to rounding, and continue.

Wiener's filter was computed in z's type; now it is in float64.

They are of the model below: a plan of 4 cells from a pilot of 300 evaluations, and draws of a `visits=3` evaluation under it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Plan, evaluate

OLD = Path(__file__).parents[1] / "fixtures" / "commit-5a41c5e"
SCORES = json.loads((OLD / "scores.json").read_text())
X = torch.tensor(SCORES["items"])


def model(count: list[int]) -> df.DiffusionModel:
    """Return the model, which adds the number of rows of each call to `count`."""
    denoiser = exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser()
    of_world = denoiser.module.forward

    def forward(z: Tensor, log_snr: Tensor) -> Tensor:
        count.append(len(z))
        return of_world(z, log_snr)

    denoiser.module.forward = forward
    process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=40))
    return df.DiffusionModel(process, denoiser, likelihood.GaussianLikelihood(df.Continuous((2,))))


def test_an_old_plan_gives_the_same_scores() -> None:
    of = model([])
    plan = Plan.load(OLD / "plan.json", of)
    assert plan.learned
    for visits, scores in SCORES["visits"].items():
        found = evaluate(of, X, visits=int(visits), plan=plan, audit=False)
        assert found.per_item["nelbo"].tolist() == pytest.approx(scores, rel=1e-5)
    # Another processor rounds otherwise.
    assert evaluate(of, X, draws=2).per_item["nelbo"].tolist() == pytest.approx(SCORES["sweep"], rel=1e-12)
    # It has no record of its pilot; a target is reached without.
    found = evaluate(of, X, target_error=0.3, unit="nats", plan=plan, audit=False)
    sweep = sum(SCORES["sweep"]) / len(X)
    assert found.nelbo.error <= 0.3
    assert abs(found.nelbo.value - sweep) < 5 * 0.3


def test_old_draws_are_continued(tmp_path: Path) -> None:
    shutil.copy(OLD / "draws.safetensors", tmp_path)
    count: list[int] = []
    of = model(count)
    plan = Plan.load(OLD / "plan.json", of)
    found = evaluate(of, X, visits=5, plan=plan, audit=False, records=tmp_path / "draws.safetensors")
    assert found.per_item["nelbo"].tolist() == pytest.approx(SCORES["visits"]["5"], rel=1e-5)
    # Of five visits to each item, three were in the file.
    assert sum(count) == 2 * len(X)
    # Draws of other items are refused.
    with pytest.raises(DiffusionalError, match="draws of another evaluation"):
        evaluate(of, X + 1, visits=5, plan=plan, audit=False, records=OLD / "draws.safetensors")


def test_an_old_plan_is_compared_with_a_new_one() -> None:
    """Pilots whose visits are not known are not paired."""
    of = model([])
    old, new = Plan.load(OLD / "plan.json", of), Plan.fit(of, X.repeat(30, 1), evaluations=300, cells=4)
    assert len(old._apart(new)) == 0
    both = df.compare(of, of, X, 0.2, "nats", plans=(old, new), audit=False)
    assert abs(both.difference.value) < 5 * max(both.difference.error, 0.05)
