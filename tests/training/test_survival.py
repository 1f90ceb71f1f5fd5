"""What a run meets in its life: signals, damage, a full disk, edits by hand, a second process, numbers that are not finite."""

import dataclasses
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import diffusional as df
from battery import HANGS, environment
from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError, Interrupted
from diffusional.files import load_json, load_tensors, save_json, sha256
from diffusional.models.diffusion import DiffusionModel
from diffusional.training import batches, checkpoint, loop, metrics_logger, objective, run
from diffusional.training.average import WeightAverage
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, SystemConfig
from diffusional.training.diagnosis import diagnose_gradient, diagnose_weights
from diffusional.training.seeds import seed_of
from diffusional.training.stopping import Stopping

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, np.random.default_rng(0).integers(0, 5, (60, 1, 4, 4)).astype(np.uint8))
    return Config(
        data=DataConfig(name=str(path), levels=5),
        model=ModelConfig(widths=(8, 8), blocks=1, dropout=0.1),
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=20,
        batch=8,
        validate_every=5,
        checkpoint_every=4,
    )


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config, folder, console=QUIET)
    return folder


@pytest.fixture
def half(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after step 14: checkpoints of steps 8 and 12, a best model of step 10 or 5."""
    at_step(14, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "run", console=QUIET)
    monkeypatch.undo()
    return tmp_path / "run"


def at_step(step: int, happens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an exception, or a signal, before a step."""
    call = batches.BatchLoader.__call__

    def patched(self: batches.BatchLoader, at: int) -> Any:
        if at == step:
            if isinstance(happens, int):
                signal.raise_signal(happens)
            else:
                raise happens
        return call(self, at)

    monkeypatch.setattr(batches.BatchLoader, "__call__", patched)


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def same(a: Path, b: Path) -> None:
    """The same to the bit, whatever happened on the way."""
    names = ("model.safetensors", "metrics.jsonl", "config.json", "data.json")
    files = [(a / name, b / name) for name in names]
    files += [(newest(a) / name, newest(b) / name) for name in ("state.safetensors", "best.safetensors")]
    # By name: of megabytes that differ pytest would show where, for minutes.
    assert [one.name for one, other in files if one.read_bytes() != other.read_bytes()] == []
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def everything(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(
    number: int, whole: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        at_step(6, number, patched)
        with pytest.raises(
            Interrupted, match="stopped after step 7 of 20, with a checkpoint; continue with --resume"
        ) as stop:
            loop.train(config, tmp_path / "run", console=QUIET)
    assert stop.value.signal == number
    assert signal.getsignal(number) is before
    assert newest(tmp_path / "run").name == "step-00000007"
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same(whole, tmp_path / "run")


def test_a_second_signal_ends_at_once() -> None:
    code = "import signal\nfrom diffusional.training.stopping import Stopping\n"
    code += "with Stopping() as s:\n    signal.raise_signal({0})\n    print('heard', s.asked)\n    signal.raise_signal({0})\n    print('late')"
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-u", "-c", code.format(int(number))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=HANGS)
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, f"heard {int(number)}\n", "")


def test_the_command_line_says_how_to_go_on(config: Config, tmp_path: Path) -> None:
    code = "import os, signal, sys\nfrom diffusional.training import batches\ncall = batches.BatchLoader.__call__\n"
    code += "def f(self, at):\n    at == 3 and os.kill(os.getpid(), signal.SIGTERM)\n    return call(self, at)\nbatches.BatchLoader.__call__ = f\n"
    code += "from diffusional.cli import main\nmain(sys.argv[1:])"
    args = ["train", str(tmp_path / "run"), "--data.name", config.data.name, "--data.levels", "5", "--steps", "9"]
    args += ["--model.widths", "8", "8", "--batch", "8"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment(), timeout=HANGS
    )
    assert done.returncode == 143
    assert done.stderr == "diffusional: stopped after step 4 of 9, with a checkpoint; continue with --resume\n"


# Signals and the time limit during a validation. A validation here has six batches, one for each item.


class Clock:
    """The seconds of a run that its steps and validation batches take, whatever the machine does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float = 1.0, batch: float = 2.0) -> None:
        self.now, self.step, self.batch, self.batches = 0.0, step, batch, 0
        self.signal_at: int | None = None
        call, encode = batches.BatchLoader.__call__, Dataset.encode

        def stepped(batches: batches.BatchLoader, at: int) -> Any:
            self.now += self.step
            return call(batches, at)

        def encoded(dataset: Dataset, split: str, rows: Any = slice(None)) -> Tensor:
            if split == "validation":
                self.now += self.batch
                self.batches += 1
                if self.batches == self.signal_at:
                    signal.raise_signal(signal.SIGTERM)
            return encode(dataset, split, rows)

        monkeypatch.setattr(batches.BatchLoader, "__call__", stepped)
        monkeypatch.setattr(Dataset, "encode", encoded)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "batch_rows", lambda space: 16)


@pytest.fixture
def clock(in_batches: None, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(scope="module")
def whole_in_batches(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(objective, "batch_rows", lambda space: 16)
        loop.train(config, folder, console=QUIET)
    return folder


def validated(folder: Path) -> list[int]:
    return [line["step"] for line in metrics_logger.read(folder) if "validation" in line]


# Six batches a validation, at steps 5, 10, 15 and 20.
@pytest.mark.parametrize(("batch", "step"), [(9, 10), (12, 10), (22, 20)])
def test_a_signal_during_a_validation_ends_it_before_the_next_batch(
    batch: int, step: int, whole_in_batches: Path, config: Config, tmp_path: Path, clock: Clock
) -> None:
    clock.signal_at, last = batch, batch % 6 == 0
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 20, with a checkpoint"):
        loop.train(config, tmp_path / "run", console=QUIET)
    assert clock.batches == batch
    assert newest(tmp_path / "run").name == f"step-{step:08d}"
    assert validated(tmp_path / "run") == [s for s in (5, 10, 15, 20) if s < step or (last and s == step)]
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same(whole_in_batches, tmp_path / "run")


def test_a_crash_after_a_validation_that_was_owed_does_not_report_it_twice(
    whole_in_batches: Path, config: Config, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.signal_at = 9
    with pytest.raises(Interrupted):
        loop.train(config, tmp_path / "run", console=QUIET)
    with monkeypatch.context() as patched:
        at_step(11, KeyboardInterrupt, patched)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert validated(tmp_path / "run") == [5, 10]
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same(whole_in_batches, tmp_path / "run")
    told = [line["step"] for line in metrics_logger.read(tmp_path / "run", metrics_logger.TIMING)]
    assert told == [line["step"] for line in metrics_logger.read(tmp_path / "run")]


def test_a_crash_while_the_last_checkpoint_is_replaced_loses_nothing(
    config: Config, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only checkpoint there is: the one of the last step, written again once its validation is done."""
    chosen = dataclasses.replace(config, keep_checkpoints=1)
    loop.train(chosen, tmp_path / "whole", console=QUIET)
    clock.batches, clock.signal_at = 0, 22
    with pytest.raises(Interrupted):
        loop.train(chosen, tmp_path / "run", console=QUIET)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(chosen, tmp_path / "run", resume=True, console=QUIET)
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
    loop.train(chosen, tmp_path / "run", resume=True, console=QUIET)
    same(tmp_path / "whole", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000020"]


@pytest.mark.parametrize(("limit", "last"), [(29.0, 5), (40.0, 10), (46.5, 11)])
def test_a_time_limit_counts_validations_and_leaves_time_for_the_last(
    limit: float, last: int, config: Config, tmp_path: Path, clock: Clock
) -> None:
    """A step takes 1 s and a validation 12 s: 5 steps end at 17 s, 10 at 34 s, 15 at 51 s and 20 at 68 s."""
    chosen = dataclasses.replace(config, max_seconds=limit)
    loop.train(chosen, tmp_path / "run", console=QUIET, clock=clock)
    assert newest(tmp_path / "run").name == f"step-{last:08d}"
    assert validated(tmp_path / "run")[-1] == last
    seconds = last + 12.0 * len(validated(tmp_path / "run"))
    assert metrics_logger.read(tmp_path / "run", metrics_logger.TIMING)[-1]["seconds"] == seconds
    assert seconds < limit + clock.step
    before = everything(tmp_path / "run")
    loop.train(chosen, tmp_path / "run", resume=True, console=QUIET, clock=clock)
    assert everything(tmp_path / "run") == before


def test_a_time_limit_ends_a_validation_that_takes_longer_than_the_last(
    whole_in_batches: Path, config: Config, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(step: int, model: Any) -> None:
        clock.batch = 4.0

    chosen = dataclasses.replace(config, max_seconds=40.0)
    loop.train(chosen, tmp_path / "run", console=QUIET, clock=clock, watch=slower)
    # The validation at 5 steps took 24 s, from 5 s on. That at 10 steps is never begun: 34 s + 24 s are too many.
    assert newest(tmp_path / "run").name == "step-00000005"
    # With 70 s there is time for those of 12 s at 10 steps, to 46 s, and at 15 steps, to 63 s.
    clock.batch = 2.0
    loop.train(dataclasses.replace(config, max_seconds=70.0), tmp_path / "run", resume=True, console=QUIET, clock=clock)
    assert validated(tmp_path / "run") == [5, 10, 15]


def test_a_validation_that_the_time_limit_ends_is_owed(
    whole_in_batches: Path, config: Config, tmp_path: Path, clock: Clock
) -> None:
    def slower(step: int, model: Any) -> None:
        clock.batch = 4.0 if step == 5 else 2.0

    chosen = dataclasses.replace(config, max_seconds=40.0)
    loop.train(chosen, tmp_path / "run", console=QUIET, clock=clock, watch=slower)
    # From 22 s on, batches of the second validation end at 26, 30, 34, 38 and 42 s.
    assert (clock.now, clock.batches) == (42.0, 6 + 5)
    assert newest(tmp_path / "run").name == "step-00000010"
    assert validated(tmp_path / "run") == [5]
    before = everything(tmp_path / "run")
    loop.train(chosen, tmp_path / "run", resume=True, console=QUIET, clock=clock)
    assert everything(tmp_path / "run") == before
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    assert load_json(tmp_path / "run/config.json")["max_seconds"] is None
    same(whole_in_batches, tmp_path / "run")


def test_the_first_validation_is_completed_whatever_the_time(config: Config, tmp_path: Path, clock: Clock) -> None:
    try:
        loop.train(dataclasses.replace(config, max_seconds=3.0), tmp_path / "run", console=QUIET, clock=clock)
    except DiffusionalError as error:
        pytest.fail(f"the run left no model: {error}")
    assert (validated(tmp_path / "run"), clock.now) == ([3], 15.0)
    assert (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_line_every_thirty_seconds_off_a_terminal(
    terminal: bool, config: Config, tmp_path: Path, clock: Clock
) -> None:
    clock.step, clock.batch = 4.0, 5.0
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    chosen = dataclasses.replace(config, max_seconds=200.0, validate_every=12)
    loop.train(chosen, tmp_path / "run", console=console, clock=clock)
    said = file.getvalue()
    if terminal:
        assert "training: " not in said
        assert "steps/s" in said
        return
    lines = said.splitlines()
    assert "\x1b" not in said
    # The steps end at 4, 8 … 48 s, the validation's batches at 53 … 78 s; then there are 122 s left.
    assert lines[0] == "training: 8 of 20 steps, 0.25 steps/s, 48 s remaining"
    assert lines[1] == "training: 10 of 20 steps, 0.25 steps/s, expected duration 1 min 16 s"
    assert re.fullmatch(
        r"training: 12 of 20 steps, 0\.186 steps/s, 43 s remaining, \d\.\d{3} bits/dim, validating: 3 of 6 batches done",
        lines[2],
    )
    assert re.fullmatch(r"training: 16 of 20 .* remaining, \d\.\d{3} bits/dim \(validation; best \d\.\d{3}\)", lines[3])


# Damage.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def reseal(saved: Path, old: str, new: str) -> None:
    """Change what a checkpoint's manifest says, as if it had been written so."""
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text().replace(old, new))
    manifest.pop("sha256")
    save_json(path, manifest | {"sha256": checkpoint._seal(manifest)})


DAMAGE = {
    "a flipped byte of the state": (lambda c: flip(c / "state.safetensors"), "state.safetensors is damaged"),
    "a flipped byte of the progress": (lambda c: flip(c / "progress.json"), "progress.json is damaged"),
    "a missing file": (lambda c: (c / "state.safetensors").unlink(), "state.safetensors is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "manifest.json does not exist"),
    "half a manifest": (lambda c: (c / "manifest.json").write_text('{"made":'), "manifest.json is not JSON"),
    "an empty manifest": (lambda c: (c / "manifest.json").write_text("{}"), "is damaged"),
    "a manifest that says something else": (
        lambda c: (c / "manifest.json").write_text((c / "manifest.json").read_text().replace("0.01", "0.02")),
        "manifest.json is damaged",
    ),
    "a manifest of nothing": (lambda c: save_json(c / "manifest.json", {"made": {}, "files": {}}), "is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(kind: str, half: Path, whole: Path, config: Config) -> None:
    damage, said = DAMAGE[kind]
    damage(newest(half))
    with pytest.warns(UserWarning, match=f"{said}.*: continuing from .*step-00000008, which is complete"):
        loop.train(config, half, resume=True, console=QUIET)
    same(whole, half)


def test_where_all_are_damaged_nothing_is_lost(half: Path, config: Config) -> None:
    for one in (half / "checkpoints").iterdir():
        flip(one / "state.safetensors")
    before = everything(half)
    with pytest.raises(
        DiffusionalError, match=r"no checkpoint in .* is complete. Restore it from a copy, or begin a new run"
    ):
        loop.train(config, half, resume=True, console=QUIET)
    assert everything(half) == before


def test_another_version_s_checkpoint_is_left_alone(half: Path, config: Config) -> None:
    reseal(newest(half), '"format": 2', '"format": 9')
    before = everything(half)
    with pytest.raises(DiffusionalError, match="has format 9, and this version reads 2: continue with the version"):
        loop.train(config, half, resume=True, console=QUIET)
    assert everything(half) == before


def test_a_damaged_checkpoint_is_set_aside_and_not_counted(half: Path, config: Config) -> None:
    flip(newest(half) / "state.safetensors")
    with pytest.warns(UserWarning, match="continuing from"):
        loop.train(dataclasses.replace(config, checkpoint_every=5), half, resume=True, console=QUIET)
    names = sorted(p.name for p in (half / "checkpoints").iterdir())
    assert names == ["damaged-step-00000012", "step-00000015", "step-00000020"]


def test_a_damaged_best_model_does_not_touch_the_run(half: Path, whole: Path, config: Config) -> None:
    """Of the two copies either may be lost."""
    flip(half / "model.safetensors")
    loop.train(config, half, resume=True, console=QUIET)
    same(whole, half)


def test_the_run_s_own_copy_mends_a_checkpoint_s_best_model(half: Path, whole: Path, config: Config) -> None:
    flip(newest(half) / "best.safetensors")
    loop.train(config, half, resume=True, console=QUIET)
    same(whole, half)


def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    half: Path, whole: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, bad = checkpoint.sha256, newest(half) / "state.safetensors"

    def failing(path: Path) -> str:
        if path == bad:
            raise OSError(5, "Input/output error")
        return sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", failing)
    with pytest.warns(UserWarning, match=r"cannot be read .*: continuing from .*00000008"):
        loop.train(config, half, resume=True, console=QUIET)
    monkeypatch.undo()
    same(whole, half)


def test_a_run_that_never_validated_does_so_at_its_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = dataclasses.replace(config, validate_every=100)
    at_step(6, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loop.train(rare, tmp_path / "run", console=QUIET)
    monkeypatch.undo()
    loop.train(dataclasses.replace(rare, max_seconds=0.0), tmp_path / "run", resume=True, console=QUIET)
    assert [line["step"] for line in metrics_logger.read(tmp_path / "run") if "validation" in line] == [4]


@pytest.mark.parametrize("step", [9, 10])
def test_a_validation_that_is_owed_is_done_when_the_run_goes_on(
    step: int, whole: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the step before a validation: the checkpoint comes first."""
    with monkeypatch.context() as patched:
        at_step(step, signal.SIGTERM, patched)
        with pytest.raises(Interrupted):
            loop.train(config, tmp_path / "run", console=QUIET)
    validated = [line["step"] for line in metrics_logger.read(tmp_path / "run") if "validation" in line]
    assert validated == ([5] if step == 9 else [5, 10])
    loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same(whole, tmp_path / "run")


def test_a_bound_that_is_not_finite_ends_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = DiffusionModel.costs

    def patched(self: DiffusionModel, x: Tensor, draws: dict[str, Tensor], condition: Tensor | None = None) -> Any:
        found = costs(self, x, draws, condition)
        return found if self.training else dataclasses.replace(found, terms={"kl": found.terms["kl"] * float("nan")})

    monkeypatch.setattr(DiffusionModel, "costs", patched)
    with pytest.raises(DiffusionalError, match=r"the validation bound is nan: .*Try a lower optimizer\.lr"):
        loop.train(config, tmp_path / "run", console=QUIET)
    assert newest(tmp_path / "run").name == "step-00000004"


def test_a_best_model_that_went_missing_comes_back(half: Path, whole: Path, config: Config) -> None:
    (half / "model.safetensors").unlink()
    loop.train(config, half, resume=True, console=QUIET)
    same(whole, half)


def test_a_run_that_is_ended_early_has_the_best_model_of_its_steps(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 7, after a validation at 5 that the checkpoint of step 4 doesn't know; then ended at once."""
    at_step(7, KeyboardInterrupt, monkeypatch)
    eager = dataclasses.replace(config, validate_every=2)
    with pytest.raises(KeyboardInterrupt):
        loop.train(eager, tmp_path / "run", console=QUIET)
    monkeypatch.undo()
    at_four = sha256(newest(tmp_path / "run") / "best.safetensors")
    assert sha256(tmp_path / "run/model.safetensors") != at_four
    monkeypatch.setattr(loop._Trainer, "_finished", lambda self: True)
    loop.train(eager, tmp_path / "run", resume=True, console=QUIET)
    assert sha256(tmp_path / "run/model.safetensors") == at_four


def test_a_config_that_was_edited_by_hand_is_refused(half: Path, config: Config) -> None:
    path = half / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.01', '"lr": 0.02'))
    before = everything(half)
    with pytest.raises(
        DiffusionalError, match=r"config.json was edited since .* \(checkpoint → now\): optimizer.lr: 0.01 → 0.02"
    ):
        loop.train(Config.load(path), half, resume=True, console=QUIET)
    assert everything(half) == before


def test_data_that_changed_are_refused(half: Path, config: Config, tmp_path: Path) -> None:
    items = np.load(config.data.name)
    items[7] = 4 - items[7]
    np.save(tmp_path / "other.npy", items)
    dataset = df.data.load(tmp_path / "other.npy", levels=5)
    before = everything(half)
    with pytest.raises(DiffusionalError, match=r"the data have changed since .* was begun: \w+ differ"):
        loop.train(config, half, dataset, resume=True, console=QUIET)
    assert everything(half) == before


def test_elsewhere_it_is_said_that_the_bits_may_differ(half: Path, config: Config) -> None:
    reseal(newest(half), f'"threads": {torch.get_num_threads()}', '"threads": 31')
    with pytest.warns(UserWarning, match=r"continued in another environment \(threads 31 → \d+\)"):
        loop.train(config, half, resume=True, console=QUIET)


def test_what_ends_a_run_or_how_the_machine_does_it_may_change(half: Path, config: Config, whole: Path) -> None:
    changed = dataclasses.replace(
        config, keep_checkpoints=1, checkpoint_every=7, system=SystemConfig(recompute=True), skip_nonfinite=3
    )
    loop.train(changed, half, resume=True, console=QUIET)
    assert [p.name for p in (half / "checkpoints").iterdir()] == ["step-00000020"]
    assert metrics_logger.read(half)[-1] == pytest.approx(metrics_logger.read(whole)[-1], rel=1e-3)


# The folder.


def test_two_runs_in_one_folder(config: Config, half: Path) -> None:
    dataset = df.data.load(config.data.name, levels=5)
    before = everything(half)
    with run.begin(half, config, dataset, resume=True):
        with pytest.raises(
            DiffusionalError, match=r"another process is training in .*run; wait for it, stop it, or name"
        ):
            loop.train(config, half, resume=True, console=QUIET)
        assert everything(half) == before
    loop.train(config, half, resume=True, console=QUIET)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 40 kB; a state takes ten times that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("validate_every", "said"),
    [
        (
            100,
            r"the checkpoint of step 16 could not be written to .*File too large.*step-00000012 is intact. Make room",
        ),
        (5, r"model\.safetensors could not be written .*File too large.*; an existing file is unchanged. Make room"),
    ],
)
def test_a_full_disk(
    validate_every: int, said: str, half: Path, whole: Path, config: Config, request: pytest.FixtureRequest
) -> None:
    reseal(newest(half), '"validate_every": 5', f'"validate_every": {validate_every}')
    path = half / "config.json"
    path.write_text(path.read_text().replace('"validate_every": 5', f'"validate_every": {validate_every}'))
    before = everything(half / "checkpoints")
    request.getfixturevalue("small_disk")
    with pytest.raises(DiffusionalError, match=said):
        loop.train(dataclasses.replace(config, validate_every=validate_every), half, resume=True, console=QUIET)
    assert everything(half / "checkpoints") == before
    assert not list(half.rglob("*.partial"))


def test_a_folder_that_cannot_be_made(config: Config) -> None:
    with pytest.raises(DiffusionalError, match=r"/proc/nowhere/run cannot be created \(.*\); name another folder"):
        loop.train(config, "/proc/nowhere/run", console=QUIET)


# Numbers that are not finite.


def poison(steps: set[int], monkeypatch: pytest.MonkeyPatch, term: str = "kl") -> list[int]:
    """Make a cost of the batch's third item NaN at some steps, counted from 1; returns these items' rows in the end."""
    costs, seen, rows = DiffusionModel.costs, [0], []
    call = batches.BatchLoader.__call__

    def told(self: batches.BatchLoader, at: int) -> Any:
        x, where = call(self, at)
        seen[0] = at + 1
        if at + 1 in steps:
            rows.append(int(where[2]))
        return x, where

    def patched(self: DiffusionModel, x: Tensor, draws: dict[str, Tensor], condition: Tensor | None = None) -> Any:
        found = costs(self, x, draws, condition)
        if seen[0] in steps and len(x) == 8:
            spoilt = found.terms[term].clone()
            spoilt[2] = float("nan")
            found = dataclasses.replace(found, terms={**found.terms, term: spoilt})
        return found

    monkeypatch.setattr(batches.BatchLoader, "__call__", told)
    monkeypatch.setattr(DiffusionModel, "costs", patched)
    return rows


def test_the_cost_the_item_and_the_level_are_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = poison({7}, monkeypatch)
    with pytest.raises(DiffusionalError) as raised:
        loop.train(config, tmp_path / "run", console=QUIET)
    said = str(raised.value)
    assert said.startswith("step 7: the loss is nan and the gradient's norm ")
    assert ": the cost kl of 1 of 8 items is not finite: " in said
    assert f"train item {rows[0]} at " in said
    dataset = df.data.load(config.data.name, levels=5)
    _, where = batches.BatchLoader(dataset, config.seed, config.batch, slice(0, 8))(6)
    assert int(where[2]) == rows[0]
    assert newest(tmp_path / "run").name == "step-00000004"
    assert "skip such steps with skip_nonfinite" in said


def test_steps_that_are_not_finite_can_be_left_out_and_are_counted(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison({7, 12}, monkeypatch)
    model = loop.train(dataclasses.replace(config, skip_nonfinite=2), tmp_path / "run", console=QUIET)
    lines = [line for line in metrics_logger.read(tmp_path / "run") if "loss" in line]
    assert [(line["step"], line["skipped"]) for line in lines] == [(10, 1), (20, 2)]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    state = load_tensors(newest(tmp_path / "run") / "state.safetensors")
    assert int(state["average_updates"]) == 18
    assert all(int(v) == 18 for name, v in state.items() if name.endswith(".step"))
    assert load_json(newest(tmp_path / "run") / "progress.json")["skipped"] == 2


def test_one_more_than_may_be_left_out(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison({3, 5}, monkeypatch, "prior")
    with pytest.raises(
        DiffusionalError, match=r"step 5: .* \(1 such steps were skipped before it\): the cost prior of 1"
    ):
        loop.train(dataclasses.replace(config, skip_nonfinite=1), tmp_path / "run", console=QUIET)


def test_weights_that_went_wrong_before_are_named(half: Path, config: Config) -> None:
    model = loop.build_model(config, run.read_run(half).space)
    with torch.no_grad():
        model.denoiser.module.last[-1].bias[0] = float("nan")  # type: ignore[union-attr]
    first, *_ = diagnose_weights(model)
    assert first == "the weights denoiser.module.last.2.bias were not finite before the step"


def test_a_gradient_too_large_to_be_counted_is_told(config: Config, half: Path) -> None:
    model = loop.build_model(config, run.read_run(half).space)
    x = df.data.load(config.data.name, levels=5).encode("train")[:4]
    costs = model.costs(x, model.draw(x, None, torch.Generator().manual_seed(0)))
    largest = int(costs.total().argmax())
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e30)
    (said,) = diagnose_gradient(model, costs, torch.arange(10, 14))
    assert said.startswith(
        "every cost is finite, the norm of the gradient overflows; the item with the largest cost is train"
    )
    assert f"train item {10 + largest} (" in said
    first, parameter = next(iter(model.named_parameters()))
    parameter.grad = torch.full_like(parameter, float("inf"))
    (said,) = diagnose_gradient(model, costs, torch.arange(4))
    assert said.startswith(f"every cost is finite, the gradient of {first} is not; ")


def test_what_is_watched_is_in_evaluation_mode_and_training_goes_on(
    whole: Path, config: Config, tmp_path: Path
) -> None:
    seen = []
    loop.train(config, tmp_path / "run", console=QUIET, watch=lambda step, model: seen.append((step, model.training)))
    assert seen == [(step, False) for step in (0, 5, 10, 15, 20)]
    same(whole, tmp_path / "run")


def test_free_bits_are_of_a_whole_batch(config: Config, tmp_path: Path) -> None:
    wrong = dataclasses.replace(
        config,
        model=ModelConfig(kind="vae", hidden=8, blocks=1),
        latent=LatentConfig(sizes=(2,), free_bits=0.5),
        system=SystemConfig(accumulate=2),
    )
    with pytest.raises(DiffusionalError, match=r"latent.free_bits=0.5, 1 processes and system.accumulate=2"):
        loop.train(wrong, tmp_path / "run", console=QUIET)


def test_an_echo_of_a_launcher_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Stopping() as stopping:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stopping.asked == signal.SIGTERM


# Parts.


def test_the_average_in_place_and_back() -> None:
    layer = torch.nn.Linear(3, 2)
    average = WeightAverage(layer, 0.5)
    for value in (1.0, 2.0, 4.0):
        torch.nn.init.constant_(layer.weight, value)
        average.update()
    # 1, then 1 · 2/11 + 2 · 9/11, then d = 3/12.
    second = 2 / 11 + 2 * 9 / 11
    wanted = 0.25 * second + 0.75 * 4
    with average.in_place():
        torch.testing.assert_close(layer.weight, torch.full((2, 3), wanted))
    assert torch.equal(layer.weight, torch.full((2, 3), 4.0))


def test_seeds_of_purposes_never_meet() -> None:
    purposes = ("order", "draws", "dropout", "validation")
    seeds = [seed_of(seed, p, n) for seed in range(4) for p in purposes for n in range(500)]
    assert len({s % 2**32 for s in seeds}) >= len(seeds) - 1  # a birthday among 8,000 of 2³² comes once in 130 times
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_draws_of_every_step_are_its_own(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs, noise = DiffusionModel.costs, []

    def told(self: DiffusionModel, x: Tensor, draws: dict[str, Tensor], condition: Tensor | None = None) -> Any:
        if len(x) == 8:
            noise.append(draws["noise"][0].flatten().tolist())
        return costs(self, x, draws, condition)

    monkeypatch.setattr(DiffusionModel, "costs", told)
    loop.train(config, tmp_path / "run", console=QUIET)
    assert len(noise) == 20
    assert len({tuple(values) for values in noise}) == 20
    # As good as independent: 320 numbers of variance 1, no two steps alike.
    values = torch.tensor(noise)
    assert abs(float(values.var()) - 1) < 0.35
    products = values @ values.T / 16
    assert float((products - products.diag().diag()).abs().max()) < 1.3


class Mapped:
    """Items that are not a tensor, as those of a file."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape, self.dtype = values, tuple(values.shape), values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return self.values[rows]


class Counting:
    """A stream of 23 items in another order every epoch."""

    item_shape, dtype, identity = (1,), torch.int64, "counting"

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        self.begun.append((epoch, skip))
        order = torch.randperm(23, generator=torch.Generator().manual_seed(epoch))
        return iter(order[skip:, None])

    def head(self, n: int) -> Tensor:
        return torch.arange(min(n, 23))[:, None]


def numbers(train: Any) -> Dataset:
    rest = torch.arange(4)[:, None]
    return Dataset("numbers", df.Discrete((1,), 32), train, rest, rest)


def test_items_fetched_ahead_are_those_of_a_tensor() -> None:
    values = torch.arange(32)[:, None]
    plain = batches.BatchLoader(numbers(values), 3, 10, slice(2, 7))
    ahead = batches.BatchLoader(numbers(Mapped(values)), 3, 10, slice(2, 7), last=9)
    for step in range(9):
        for a, b in zip(plain(step), ahead(step), strict=True):
            assert torch.equal(a, b)
    ahead.close()


def test_a_stream_goes_on_where_it_was() -> None:
    space = df.Discrete((1,), 32)
    whole = batches.BatchLoader(numbers(Counting()), 0, 10, slice(0, 10), last=12)
    steps = [space.decode(whole(step)[0]).flatten().tolist() for step in range(12)]
    drawn = [x for step in steps for x in step]
    for epoch in range(5):
        assert sorted(drawn[23 * epoch : 23 * epoch + 23]) == list(range(23))
    whole.close()
    # Two processes read it side by side, each from where step 7 began: item 70 = 3 · 23 + 1.
    place = None
    first = batches.BatchLoader(numbers(Counting()), 0, 10, slice(0, 10), last=12)
    for step in range(7):
        first(step)
        place = first.place(step + 1)
    first.close()
    assert place == (3, 1)
    shares = []
    for share in (slice(0, 5), slice(5, 10)):
        stream = Counting()
        later = batches.BatchLoader(numbers(stream), 0, 10, share, last=12)
        later.seek(7, place)
        shares.append([space.decode(later(step)[0]).flatten().tolist() for step in range(7, 12)])
        later.close()
        assert stream.begun[0] == (3, 1)
    assert [a + b for a, b in zip(*shares, strict=True)] == steps[7:]


def test_a_run_on_a_stream_is_resumed_to_the_same_bits(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = dataclasses.replace(config, model=ModelConfig(network="mlp", hidden=8, blocks=1))
    loop.train(chosen, tmp_path / "whole", numbers(Counting()), console=QUIET)
    with monkeypatch.context() as patched:
        at_step(14, KeyboardInterrupt, patched)
        with pytest.raises(KeyboardInterrupt):
            loop.train(chosen, tmp_path / "run", numbers(Counting()), console=QUIET)
    stream = Counting()
    loop.train(chosen, tmp_path / "run", numbers(stream), resume=True, console=QUIET)
    assert stream.begun[0] == (4, 4)  # step 12 begins with item 96
    same(tmp_path / "whole", tmp_path / "run")
    assert load_json(tmp_path / "run/data.json")["items"]["train"] is None


# How the machine does it.


def test_recomputed_blocks_are_the_same_to_the_bit(whole: Path, config: Config, tmp_path: Path) -> None:
    loop.train(dataclasses.replace(config, system=SystemConfig(recompute=True)), tmp_path / "run", console=QUIET)
    ours, theirs = load_tensors(tmp_path / "run/model.safetensors"), load_tensors(whole / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_channels_last_changes_rounding_alone(whole: Path, config: Config, tmp_path: Path) -> None:
    loop.train(dataclasses.replace(config, system=SystemConfig(channels_last=True)), tmp_path / "run", console=QUIET)
    assert metrics_logger.read(tmp_path / "run")[0] == pytest.approx(metrics_logger.read(whole)[0], rel=1e-3)
    kept = load_tensors(tmp_path / "run/model.safetensors")
    assert all(t.is_contiguous() for t in kept.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_takes_the_same_steps(config: Config, tmp_path: Path) -> None:
    short = dataclasses.replace(config, steps=3, model=dataclasses.replace(config.model, dropout=0.0))
    loop.train(short, tmp_path / "plain", console=QUIET)
    loop.train(dataclasses.replace(short, system=SystemConfig(compile=True)), tmp_path / "run", console=QUIET)
    assert metrics_logger.read(tmp_path / "run")[0] == pytest.approx(
        metrics_logger.read(tmp_path / "plain")[0], rel=1e-3
    )
    names = load_tensors(tmp_path / "run/model.safetensors").keys()
    assert names == load_tensors(tmp_path / "plain/model.safetensors").keys()


def test_a_profile_tells_where_the_time_goes(config: Config, tmp_path: Path) -> None:
    """By a clock that advances a second whenever it is looked at: a phase that nothing else looks at it in takes a second."""
    clock = itertools.count(0.0, 1.0).__next__
    loop.train(config, tmp_path / "run", console=QUIET, profile=True, clock=clock)
    record = load_json(tmp_path / "run/profile.json")
    assert record["steps"] == 20
    phases = ("data", "draws", "forward", "backward", "clip", "processes", "optimiser", "average", "level sampler")
    seconds = record["seconds"]
    assert {*phases, "validation", "checkpoint"} == set(seconds)
    assert [seconds[phase] for phase in phases] == [20.0] * len(phases)
    # Checkpoints at steps 4, 8 … 20; validations at 5, 10, 15 and 20, in which the time is looked at as well.
    assert seconds["checkpoint"] == 5
    assert 4 < seconds["validation"] < 40


def test_environment_of_checkpoints(whole: Path) -> None:
    made = load_json(newest(whole) / "manifest.json")["made"]
    assert made["format"] == 2
    assert (made["torch"], made["processes"]) == (torch.__version__, 1)
    assert made["threads"] == checkpoint.environment(SystemConfig())["threads"] == torch.get_num_threads()
    own = newest(whole) / "best.safetensors"
    assert sha256(own) == sha256(whole / "model.safetensors")
    assert not os.path.samefile(own, whole / "model.safetensors")
