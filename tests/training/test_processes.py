"""Several processes take the steps of one: the same batches, levels stratified over all, one checkpoint format, no hanging on
the dead. Each test starts processes of its own, as `accelerate launch` and torchrun do.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from battery import HANGS, environment
from diffusional.files import load_json, load_tensors
from diffusional.training import loop, metrics_logger
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, SystemConfig
from diffusional.training.run import load

QUIET = Console(quiet=True)
STEPS = 24

# Two processes that find each other at a port that is free.
LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
LAUNCHER += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
# The launcher looks for ended processes this seldom, seconds, so that the others have the time to notice it themselves on a busy machine.
PATIENT = ["--monitor-interval", "20"]

# The same for all; what a test adds comes before it.
SCRIPT = """
import os, signal, sys
from rich.console import Console
from diffusional.training import loop
from diffusional.training.config import Config
from pathlib import Path

config, run, resume = Config.load(Path(sys.argv[1])), sys.argv[2], "--resume" in sys.argv
rank = int(os.environ["RANK"])
{before}
loop.train(config, run, resume=resume, console=Console(quiet=True), watch={watch})
"""

# As Accelerate shards, which it does on GPUs alone: torch's own fully_shard, with the optimiser on the shards.
SHARDED = """
import accelerate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def prepare(self, objective, optimizer):
    names = {id(p): name for name, p in objective.named_parameters()}
    wanted = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    mesh = init_device_mesh("cpu", (2,))
    for block in objective.modules():
        if type(block).__name__ == "_ResBlock":
            fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    shards = dict(objective.named_parameters())
    for group, own in zip(optimizer.param_groups, wanted):
        group["params"] = [shards[name] for name in own]
    return objective, optimizer

accelerate.Accelerator.prepare = prepare
"""
# No validation is the best but the first, so that nothing but the average's own doing brings back the weights after it; and
# the average is of zeros, so that a step which took it for the weights would show.
WORSE = """
from diffusional.training.average import WeightAverage

bound, worse, update = loop.validate, iter(range(1000, 100000, 1000)), WeightAverage.update
loop.validate = lambda *args: bound(*args) + next(worse)

def nothing(self):
    update(self)
    for tensor in self.tensors.values():
        tensor.zero_()

WeightAverage.update = nothing
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, np.random.default_rng(0).integers(0, 5, (200, 1, 8, 8)).astype(np.uint8))
    return Config(
        data=DataConfig(name=str(path), levels=5),
        model=ModelConfig(widths=(8, 8), blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=STEPS,
        batch=16,
        validate_every=4,
        checkpoint_every=6,
    )


@pytest.fixture(scope="module")
def alone(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, its batches whole."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    loop.train(config, folder, console=QUIET)
    return folder


def together(
    config: Config, run: Path, *options: str, before: str = "", watch: str = "None", patient: bool = False
) -> subprocess.CompletedProcess[str]:
    """Train on two processes of this machine."""
    saved = run.with_name("together.json")
    saved.write_text(json.dumps(config.to_dict()))
    script = run.with_name("script.py")
    script.write_text(SCRIPT.format(before=before, watch=watch))
    launcher = [*LAUNCHER, *(PATIENT if patient else ())]
    command = [sys.executable, *launcher, str(script), str(saved), str(run), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment() | {"OMP_NUM_THREADS": "1"}, timeout=HANGS
    )


def same_curve(a: Path, b: Path, key: str = "step") -> None:
    """To float tolerance, which grows along a run; of the lines that have a key."""
    ours, theirs = ([line for line in metrics_logger.read(run) if key in line] for run in (a, b))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[-1]["step"] == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3), mine["step"]
    first, other = (next(line["loss"] for line in lines if "loss" in line) for lines in (ours, theirs))
    assert first == pytest.approx(other, rel=1e-5)


def test_parts_of_a_batch_are_the_batch(alone: Path, config: Config, tmp_path: Path) -> None:
    parts = dataclasses.replace(config, system=SystemConfig(accumulate=4))
    loop.train(parts, tmp_path / "run", console=QUIET)
    same_curve(alone, tmp_path / "run")


def test_two_processes_are_one_and_go_on_as_one(alone: Path, config: Config, tmp_path: Path) -> None:
    # Killed after the checkpoint of step 12, when the bound of step 16 had been told.
    ending = "lambda step, model: os.kill(os.getpid(), signal.SIGKILL) if step == 16 and rank == 1 else None"
    done = together(config, tmp_path / "run", watch=ending, patient=True)
    assert done.returncode != 0
    assert "another process of this run has ended" in done.stderr
    assert "continue with --resume, on any number of processes that divides the batch" in done.stderr
    newest = max((tmp_path / "run/checkpoints").iterdir())
    assert newest.name == "step-00000012"
    assert load_json(newest / "manifest.json")["made"]["processes"] == 2
    with pytest.warns(UserWarning, match="the run is continued in another environment .*processes 2 → 1"):
        loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same_curve(alone, tmp_path / "run")
    ours, theirs = load(tmp_path / "run").state_dict(), load(alone).state_dict()
    # Before norms of one channel, as these are, a bias has no gradient but rounding's, which Adam follows all the same.
    moved = [name for name in theirs if not name.endswith(("conv1.bias", "conv2.bias", "skip.bias"))]
    assert len(moved) > 0.8 * len(theirs)
    assert all((ours[name] - theirs[name]).norm() < 0.02 * theirs[name].norm() + 0.02 for name in moved)


def test_two_processes_begin_a_conditional_run_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process gets the labels of its own items, and drops those that one would. Later losses differ more, as without labels, since Adam
    divides small gradients, which differ by rounding, by their own size.
    """
    config = Config(
        data=DataConfig(condition="label"),
        model=ModelConfig(network="mlp", hidden=16, blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup=5),
        condition_dropout=0.3,
        steps=5,
        batch=16,
        validate_every=5,
    )
    monkeypatch.setattr(metrics_logger, "_LOG_EVERY", 1)
    loop.train(config, tmp_path / "one", console=QUIET)
    every = "from diffusional.training import metrics_logger; metrics_logger._LOG_EVERY = 1"
    done = together(config, tmp_path / "two", before=every)
    assert done.returncode == 0, done.stderr
    one, two = (
        [line["loss"] for line in metrics_logger.read(tmp_path / name) if "loss" in line] for name in ("one", "two")
    )
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-5)
    newest = max((tmp_path / "two/checkpoints").iterdir())
    assert load_json(newest / "manifest.json")["made"]["processes"] == 2


@pytest.mark.slow
def test_sharded_weights_take_the_same_steps_and_leave_the_same_checkpoint(
    alone: Path, config: Config, tmp_path: Path
) -> None:
    half = dataclasses.replace(config, max_seconds=None, system=SystemConfig(accumulate=2))
    ending = "lambda step, model: os.kill(os.getpid(), signal.SIGTERM) if step == 8 else None"
    done = together(half, tmp_path / "run", before=SHARDED + WORSE, watch=ending)
    assert "stopped after step 8 of 24, with a checkpoint" in done.stderr, done.stderr
    ours = load_tensors(max((tmp_path / "run/checkpoints").iterdir()) / "state.safetensors")
    theirs = load_tensors(max((alone / "checkpoints").iterdir()) / "state.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.items()
    }
    # From one shard to the other, and from both to none.
    done = together(half, tmp_path / "run", "--resume", before=SHARDED + WORSE, watch=ending.replace("8", "20"))
    assert "stopped after step 20 of 24, with a checkpoint" in done.stderr, done.stderr
    with pytest.warns(UserWarning, match="processes 2 → 1"):
        loop.train(config, tmp_path / "run", resume=True, console=QUIET)
    same_curve(alone, tmp_path / "run", "loss")


def test_a_batch_that_cannot_be_cut_is_refused(config: Config, tmp_path: Path) -> None:
    uneven = dataclasses.replace(config, batch=9, system=SystemConfig(accumulate=2))
    with pytest.raises(
        loop.DiffusionalError, match=r"batch to be a multiple of 2, .* 1 processes and system.accumulate=2, got 9"
    ):
        loop.train(uneven, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_two_processes_evaluate_every_item_once(alone: Path, tmp_path: Path) -> None:
    args = ["evaluate", str(alone), "--split", "all", "--visits", "6", "--no-audit", "--json"]
    for name in ("one", "two"):
        command = [sys.executable, *(LAUNCHER if name == "two" else []), "-m", "diffusional", *args]
        command.append(str(tmp_path / f"{name}.json"))
        env = environment() | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANGS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("NELBO") == 1
        for plan in alone.glob("plan*.json"):
            plan.unlink()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["items"] == 200
    assert two["network_evaluations"] == one["network_evaluations"] == 1200
    numbers = ("value", "error")
    assert [two["nelbo"][k] for k in numbers] == pytest.approx([one["nelbo"][k] for k in numbers], rel=1e-6)
    # The root of a difference of variances.
    assert two["nelbo"]["item_error"] == pytest.approx(one["nelbo"]["item_error"], rel=1e-4)
