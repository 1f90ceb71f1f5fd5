"""Runs that go on beyond their end, and runs that start from another's weights."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import tensor_hash
from diffusional.files import load_tensors
from diffusional.training.config import (
    Config,
    DataConfig,
    LatentConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from diffusional.training.loop import same_so_far, train
from diffusional.training.run import read_run

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, (2 * (np.random.default_rng(0).random((60, 4)) < 0.8)).astype(np.uint8))
    return Config(
        data=DataConfig(str(path), levels=3),
        model=ModelConfig(network="mlp", hidden=8, blocks=1, dropout=0.1),
        optimizer=OptimizerConfig(lr=1e-2, warmup=3, flat=1.0),
        steps=20,
        batch=8,
        validate_every=10,
        checkpoint_every=10,
    )


@pytest.fixture(scope="module")
def finished(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps, which tests copy."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(base, folder, console=QUIET)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(max((folder / "checkpoints").glob("step-*")) / "state.safetensors")


def same(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


# Beyond the end.


def test_a_constant_rate_gives_the_run_that_was_not_interrupted(base: Config, run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(replace(base, steps=40), run, resume=True, console=QUIET)
    train(replace(base, steps=40), tmp_path / "whole", console=QUIET)
    same(run, tmp_path / "whole")


def test_a_rate_that_falls_is_that_of_the_longer_run(
    base: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falling, run = replace(base, optimizer=replace(base.optimizer, flat=0.5)), tmp_path / "run"
    train(falling, run, console=QUIET)
    status, out, err = command(capsys, "train", run, "--resume", "--steps", 40)
    assert status == 0
    (said,) = [line for line in err.splitlines() if "warning" in line]
    assert "at step 20 of 40 the rate is 0.01," in said
    assert "flat=1" in said
    assert "of 40" in out
    rates = {line["step"]: line["lr"] for line in df.load_run(run).metrics() if "lr" in line}
    assert rates[20] < 1e-3
    assert rates[30] == pytest.approx(0.5 * 1e-2 * (1 + np.cos(np.pi * 9 / 20)))
    assert read_run(run).config.steps == 40
    before = contents(run)
    assert command(capsys, "train", run, "--resume")[0] == 0
    assert {k: v for k, v in contents(run).items() if k != "timing.jsonl"} == {
        k: v for k, v in before.items() if k != "timing.jsonl"
    }


def test_fewer_steps_than_were_taken_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    status, _, err = command(capsys, "train", run, "--resume", "--steps", 19)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "at least 20" in err
    assert "got 19" in err
    assert contents(run) == before


def test_a_run_can_be_made_shorter_before_it_ends(base: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(replace(base, max_seconds=0.0), run, console=QUIET)
    assert df.load_run(run).metrics()[-1]["step"] == 1
    train(replace(base, steps=10), run, resume=True, console=QUIET)
    train(replace(base, steps=10), tmp_path / "whole", console=QUIET)
    # The run of one step validated there.
    assert [name for name, value in state(run).items() if not torch.equal(value, state(tmp_path / "whole")[name])] == []


@pytest.mark.parametrize(
    ("flat", "warmup", "then", "now", "step", "expected"),
    [
        (1.0, 0.0, 20, 40, 20, True),
        (0.5, 0.0, 20, 40, 10, True),
        (0.5, 0.0, 20, 40, 11, False),
        (0.5, 0.0, 40, 20, 11, False),
        (0.0, 0.0, 20, 40, 20, False),
        (1.0, 0.3, 20, 40, 1, False),
        (1.0, 0.3, 20, 20, 9, True),
        (0.0, 0.3, 20, 40, 0, True),
    ],
)
def test_same_so_far(flat: float, warmup: float, then: int, now: int, step: int, expected: bool) -> None:
    optimizer, vae = OptimizerConfig(flat=flat, warmup=0), ModelConfig(kind="vae")
    one, other = (
        Config(optimizer=optimizer, model=vae, latent=LatentConfig(warmup=warmup), steps=n) for n in (then, now)
    )
    assert same_so_far(one, other, step) is expected


# From another's weights.


def begun(base: Config, origin: Path, **changes: Any) -> Config:
    return replace(base, init_from=str(origin), **changes)


def first_weights(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run starts from, as its watch sees them."""
    seen: list[dict[str, torch.Tensor]] = []
    train(
        config,
        folder,
        console=QUIET,
        watch=lambda step, model: None if step else seen.append({k: v.clone() for k, v in model.state_dict().items()}),
    )
    return seen[0]


def test_a_run_starts_from_the_averaged_weights_of_another(base: Config, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    first = first_weights(begun(base, finished, seed=1, steps=3), tmp_path / "new")
    theirs = load_tensors(finished / "model.safetensors")
    assert first.keys() == theirs.keys()
    assert all(torch.equal(first[name], theirs[name]) for name in theirs)
    config = read_run(tmp_path / "new").config
    assert config.init_from == str(finished)
    assert config.init_sha256 == tensor_hash(df.load(finished).state_dict())
    assert contents(finished) == before
    # The averages, moments and the step are the new run's own.
    assert int(state(tmp_path / "new")["average_updates"]) == 3


def test_a_fixed_schedule_stays_the_config_s(base: Config, finished: Path, tmp_path: Path) -> None:
    other = replace(base, schedule=ScheduleConfig(gamma_min=-7.0), steps=1)
    with pytest.warns(UserWarning, match=r"schedule\.gamma_min: -9\.21 → -7\.0"):
        train(begun(other, finished), tmp_path / "new", console=QUIET)
    model = df.load(tmp_path / "new")
    assert float(model.process.schedule.ends()[0]) == -7.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": ModelConfig(network="mlp", hidden=16, blocks=1)}, r"shape \(8,.* there, \(16,"),
        ({"model": ModelConfig(network="mlp", hidden=8, blocks=2)}, r"denoiser\.module\..* is missing there"),
        ({"schedule": ScheduleConfig(kind="learned")}, r"process\.schedule\..* is missing there"),
        ({"init_sha256": "0" * 64}, "SHA-256 0000"),
    ],
    ids=["shape", "missing", "schedule", "hash"],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Any], named: str, base: Config, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(DiffusionalError, match=named):
        train(begun(base, finished, **change), tmp_path / "new", console=QUIET)
    assert not (tmp_path / "new").exists()


def test_folders_without_weights_are_refused(base: Config, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for origin in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(DiffusionalError, match=origin.name):
            train(begun(base, origin), tmp_path / "new", console=QUIET)
        assert not (tmp_path / "new").exists()
    with pytest.raises(DiffusionalError, match="itself"):
        train(begun(base, tmp_path / "empty"), tmp_path / "empty", console=QUIET)
    with pytest.raises(DiffusionalError, match="without init_from"):
        Config(init_sha256="0" * 64)


def test_a_resumed_run_no_longer_needs_the_other(base: Config, run: Path, tmp_path: Path) -> None:
    config = begun(base, run, seed=1)
    train(replace(config, max_seconds=0.0), tmp_path / "new", console=QUIET)
    train(config, tmp_path / "whole", console=QUIET)
    shutil.rmtree(run)
    train(config, tmp_path / "new", resume=True, console=QUIET)
    assert read_run(tmp_path / "new").config == read_run(tmp_path / "whole").config
    assert [
        name
        for name, value in state(tmp_path / "new").items()
        if not torch.equal(value, state(tmp_path / "whole")[name])
    ] == []
    with pytest.raises(DiffusionalError, match="init_from"):
        train(base, tmp_path / "new", resume=True, console=QUIET)


def test_a_run_without_a_checkpoint_starts_from_the_same_weights_only(base: Config, run: Path, tmp_path: Path) -> None:
    config = begun(base, run, steps=2)
    train(config, tmp_path / "new", console=QUIET)
    shutil.rmtree(tmp_path / "new/checkpoints")
    train(replace(base, steps=40), run, resume=True, console=QUIET)
    with pytest.raises(DiffusionalError, match="trained further since"):
        train(config, tmp_path / "new", resume=True, console=QUIET)


def test_items_that_the_weights_have_seen_are_recognised(
    base: Config, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training items of the first run, split differently by the second, are not new to it."""
    path = tmp_path / "many.npy"
    np.save(path, np.stack([np.arange(81) // 3**k % 3 for k in range(4)], 1).astype(np.uint8))  # 81 different items
    first, second = (replace(base, data=DataConfig(str(path), levels=3, split_seed=s), steps=2) for s in (0, 1))
    train(first, tmp_path / "first", console=QUIET)
    train(second, tmp_path / "plain", console=QUIET)
    train(begun(second, tmp_path / "first"), tmp_path / "second", console=QUIET)
    for name, known in (("plain", 0), ("second", None)):
        status, _, err = command(capsys, "evaluate", tmp_path / name, "--draws", 1, "--json", tmp_path / "out.json")
        record = json.loads((tmp_path / "out.json").read_text())
        assert status == 0
        if known == 0:
            assert (record["trained_on"], "identical" in err) == (0, False)
        else:
            before = {tuple(row) for row in df.load_run(tmp_path / "first").data().tensor("train").tolist()}
            tested = df.load_run(tmp_path / "second").data().tensor("test").tolist()
            assert record["trained_on"] == sum(tuple(row) in before for row in tested) > 0
            assert "identical to items" in err


def test_the_command_line_takes_the_other_run_s_config(
    base: Config, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    status, _, err = command(capsys, "train", new, "--from", finished, "--steps", 2, "--seed", 5)
    assert (status, [line for line in err.splitlines() if "warning" in line or "error" in line]) == (0, [])
    found = read_run(new).config
    assert found == replace(base, steps=2, seed=5, init_from=str(finished), init_sha256=found.init_sha256)
    assert found.init_sha256 is not None
    # A run that started from a run can be started from, too; its own origin is not the new one's.
    assert command(capsys, "train", tmp_path / "third", "--from", new)[0] == 0
    assert read_run(tmp_path / "third").config.init_sha256 not in (None, found.init_sha256)
    status, _, err = command(capsys, "train", tmp_path / "fourth", "--from", tmp_path / "nothing")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "--from" in err
    status, _, err = command(capsys, "train", tmp_path / "fourth", "--from", finished, "--model.hidden", 16)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "shape (8," in err
    assert not (tmp_path / "fourth").exists()
