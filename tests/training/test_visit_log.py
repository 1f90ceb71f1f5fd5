"""A run of masked sequences keeps its last visits: their costs are those of the model at these masks, and its plan needs no pilot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from diffusional.data.dataset import Dataset
from diffusional.files import load_tensors
from diffusional.training.config import Config, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.visit_log import VISITS, VisitLog, kept_visits

SPACE = df.space.Categorical(6, 3)


def dataset() -> Dataset:
    raw = torch.randint(3, (90, 6), generator=torch.Generator().manual_seed(0))
    return Dataset("tokens", SPACE, raw[:60], raw[60:75], raw[75:])


def config(steps: int = 20, schedule: int | None = None) -> Config:
    return Config(
        steps=steps,
        batch=64,
        validate_every=steps,
        checkpoint_every=10,
        # The weights do not move, so that the costs of all steps are those of the model.
        optimizer=OptimizerConfig(lr=1e-12, warmup=1, weight_decay=0.0),
        schedule=ScheduleConfig(steps=schedule),
        model=ModelConfig(kind="masked", hidden=8, blocks=1, heads=2, dropout=0.0),
    )


@pytest.mark.parametrize("steps", [None, 5])
def test_the_costs_are_those_of_the_model_at_the_masks(tmp_path: Path, steps: int | None) -> None:
    data = dataset()
    model = df.train(config(schedule=steps), tmp_path / "run", data, console=Console(quiet=True))
    assert isinstance(model, df.MaskedDiffusion)
    found = kept_visits(tmp_path / "run", model)
    assert found is not None
    assert len(found.row) == 128
    x = data.encode("train")[found.row]
    with torch.no_grad():
        hidden = model.hidden_map(x, torch.where(found.mask, 3.0, x)).sum(1)
    torch.testing.assert_close(found.cost, model.mask_rate(found.level + 1) * hidden, rtol=1e-4, atol=1e-4)
    if steps is None:
        assert torch.equal(found.mask.sum(1), found.level + 1)
    assert set(found.level.tolist()) == set(range(steps or 6))


def test_the_plan_of_a_run_needs_no_pilot(tmp_path: Path) -> None:
    data = dataset()
    _ = df.train(config(steps=100), tmp_path / "run", data, console=Console(quiet=True))
    run = df.load_run(tmp_path / "run", data)
    plan = run.plan()
    assert plan is not None
    assert plan.provenance["method"] == "training"
    assert plan.provenance["evaluations"] == 0
    kept = run.plan()
    assert kept is not None
    assert kept.sha256() == plan.sha256()
    # Another T has other levels, so that a pilot is made; a comparison needs a pilot whose visits can be repeated.
    other = run.plan(run.model.visited().regrid(6))  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert other is not None
    assert other.provenance["method"] == "pilot"
    pairs = run.paired_plans(run)
    assert pairs is not None
    assert all(one is not None and one.provenance["method"] == "pilot" for one in pairs)


def test_a_resumed_run_has_the_same_visits(tmp_path: Path) -> None:
    data, quiet = dataset(), Console(quiet=True)
    _ = df.train(config(), tmp_path / "whole", data, console=quiet)

    def stop(step: int, model: object) -> None:
        if step == 10:
            raise KeyboardInterrupt

    half = Config.from_dict(config().to_dict() | {"validate_every": 10})
    with pytest.raises(KeyboardInterrupt):
        df.train(half, tmp_path / "parts", data, console=quiet, watch=stop)
    _ = df.train(half, tmp_path / "parts", data, resume=True, console=quiet)
    one, other = (load_tensors(tmp_path / name / VISITS) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_models_keep_none(tmp_path: Path) -> None:
    images = df.data.load("digits")
    small = Config(steps=2, batch=8, model=ModelConfig(widths=(8, 8), blocks=1))
    model = df.train(small, tmp_path / "run", images, console=Console(quiet=True))
    assert VisitLog.of(model, images.train, 10) is None
    assert not (tmp_path / "run" / VISITS).exists()


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    data = dataset()
    model = df.train(config(), tmp_path / "run", data, console=Console(quiet=True))
    (tmp_path / "run" / VISITS).write_bytes(np.arange(9).tobytes())
    assert kept_visits(tmp_path / "run", model) is None  # pyright: ignore[reportArgumentType]
