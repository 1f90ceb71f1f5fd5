"""Checkpoints: everything that the future of a run depends on, as safetensors and JSON in a folder renamed as one."""

import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.files import load_json, load_tensors, save_json, save_tensors
from diffusional.levels import Adaptive, LevelSampler


@dataclass
class Progress:
    """Where a run is: steps done, the best validation NELBO (nats) and its step, validations since, seconds trained, and
    the losses that no line of the metrics has told yet.
    """

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def record(self, bound: float) -> None:
        """Count a validation: `stale` is 0 after one that is the best so far."""
        self.stale += 1
        if bound < self.best:
            self.best, self.best_step, self.stale = bound, self.step, 0


@dataclass(frozen=True)
class State:
    """The moving parts of a run."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: LevelSampler
    generator: torch.Generator

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        if isinstance(self.sampler, Adaptive):
            out |= {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        out["random.generator"] = self.generator.get_state()
        out["random.torch"] = torch.get_rng_state()
        if self.generator.device.type == "cuda":
            out["random.cuda"] = torch.cuda.get_rng_state(self.generator.device)
        return out

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.average.load_state_dict(under("average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimizer.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        record = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": moments, "param_groups": record["param_groups"]})
        if isinstance(self.sampler, Adaptive):
            self.sampler.load_state(under("sampler."))
        self.generator.set_state(tensors["random.generator"])
        torch.set_rng_state(tensors["random.torch"])
        if self.generator.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.generator.device)


def save(folder: Path, state: State, progress: Progress) -> None:
    """Write checkpoints/step-N whole, then drop the one before."""
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".partial-{progress.step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tensors(partial / "state.safetensors", state.tensors())
    save_json(partial / "progress.json", asdict(progress) | {"best": _finite(progress.best)})
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old)


def restore(folder: Path, state: State) -> Progress:
    """The newest checkpoint, put back into `state`; a fresh Progress where there is none yet.

    Raises DiffusionalError for a corrupt or foreign checkpoint.
    """
    newest = _newest(folder)
    if newest is None:
        return Progress()
    tensors = load_tensors(newest / "state.safetensors")
    try:
        state.restore(tensors)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DiffusionalError(f"the checkpoint {newest} does not fit this run: {error}") from error
    return restore_progress(folder)


def restore_progress(folder: Path) -> Progress:
    """How far the newest checkpoint had come; a fresh Progress where there is none."""
    newest = _newest(folder)
    if newest is None:
        return Progress()
    try:
        record = load_json(newest / "progress.json")
        if record.get("best") is None:
            record["best"] = math.inf
        return Progress(**record)
    except TypeError as error:
        raise DiffusionalError(f"{newest / 'progress.json'} does not fit: {error}") from error


def _finite(value: float) -> float | None:
    """JSON knows no infinity: null stands for "no validation yet"."""
    return value if math.isfinite(value) else None


def _newest(folder: Path) -> Path | None:
    found = sorted(folder.glob("step-*")) if folder.exists() else []
    return found[-1] if found else None
