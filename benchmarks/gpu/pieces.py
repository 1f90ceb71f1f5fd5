"""Training in pieces, for a machine that is lent for minutes at a time: what mnist.py and cifar10.py share.

A piece begins a run or goes on with it, stops by itself in time, and leaves a checkpoint. Between two pieces the run may be
copied to another machine.
"""

import dataclasses
import json
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import diffusional
from diffusional.data import Dataset
from diffusional.errors import Interrupted
from diffusional.evaluation import evaluate
from diffusional.models.base import LatentVariableModel
from diffusional.training import metrics_logger
from diffusional.training.config import Config
from diffusional.training.loop import train
from diffusional.training.run import CONFIG

MEASURED = 100  # steps
QUIET = Console(quiet=True)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """What a number was measured on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": None if cuda else torch.get_num_threads(),
        "versions": {
            "diffusional": diffusional.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "command": " ".join(["python", *sys.argv]),
    }


def some(data: Dataset, train: int, others: int) -> Dataset:
    """The first items of each split."""
    cut = {
        split: data.tensor(split)[: train if split == "train" else others] for split in ("train", "validation", "test")
    }
    return dataclasses.replace(data, **cut)


def steps_per_second(config: Config, data: Dataset, steps: int = MEASURED) -> float:
    """Steps of `train` in a second, from the tenth on: what is compiled and tuned is so by then."""
    short = dataclasses.replace(config, steps=steps, validate_every=steps, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        train(short, f"{folder}/run", some(data, len(data.train), 8), console=QUIET)
        lines = [
            (line["step"], line["seconds"]) for line in metrics_logger.read(Path(folder) / "run", metrics_logger.TIMING)
        ]
    # The last step is told of twice: the second time after its validation.
    first, last = lines[0], next(line for line in lines if line[0] == steps)
    return (last[0] - first[0]) / (last[1] - first[1])


def begun(run: Path) -> Config | None:
    """The config of a run that was begun."""
    return Config.load(run / CONFIG) if (run / CONFIG).exists() else None


class Deadline:
    """What `train` watches with: at a validation after which the next would come too late, it asks for the end."""

    def __init__(self, run: Path, until: float) -> None:
        self.run, self.until = run, until
        self.since, self.visited = time.monotonic(), 0

    def __call__(self, step: int, model: LatentVariableModel) -> None:
        now = time.monotonic()
        interval, self.since = now - self.since, now
        self.visited += 1
        # Before the first step nobody listens to signals yet.
        if step == 0:
            return
        bound = metrics_logger.read(self.run)[-1]["validation"]
        print(f"step {step}: validation {bound:.4f} bits/dim, {interval:.0f} s since the last", flush=True)
        if now + interval > self.until:
            signal.raise_signal(signal.SIGTERM)


def train_until(config: Config, run: Path, data: Dataset, until: float) -> tuple[LatentVariableModel | None, bool]:
    """The model of the run, or None where `until` (of time.monotonic) came before its end; and whether any step was taken."""
    deadline = Deadline(run, until)
    try:
        return train(
            config, run, data, resume=begun(run) is not None, console=QUIET, watch=deadline
        ), deadline.visited > 0
    except Interrupted as stopped:
        print(f"{stopped}: give the same command again", flush=True)
        return None, True


def evaluated(model: LatentVariableModel, data: Dataset, run: Path, config: Config, **how: Any) -> dict[str, Any]:
    """The bound of the test items, by `evaluate` as told, with all that a reader needs to know of the run."""
    result = evaluate(model.to(device()), data.encode("test"), **how)
    print(f"test: {result.nelbo.to('bits/dim', result.dimensions)}", flush=True)
    metrics, timing = metrics_logger.read(run), metrics_logger.read(run, metrics_logger.TIMING)
    training = {
        "steps": timing[-1]["step"],
        "seconds": timing[-1]["seconds"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": [[line["step"], round(line["validation"], 5)] for line in metrics if "validation" in line],
    }
    said = {name: value for name, value in result.to_json().items() if name not in ("level_edges", "gamma_edges")}
    return said | {"training": training, "config": config.to_dict(), "machine": machine()}


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}", flush=True)
