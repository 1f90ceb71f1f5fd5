"""Checkpoints: everything that the future of a run depends on, as safetensors and JSON, in a folder that is whole or not there.

    checkpoints/step-N/
      state.safetensors    weights, their average, the optimiser's moments by the weight's name, the level sampler's proposal
      best.safetensors     the run's model.safetensors of that time (a hard link: no bytes of its own)
      progress.json        step, best validation, the losses that no line of the metrics has told yet
      manifest.json        bytes and SHA-256 of each file, the config, where it was made

There are no random states: every random number of a run is a function of its seed and the step (seeds.py). A checkpoint is
written under another name, brought to disk, and renamed; the `keep` newest stay. Whatever the number of processes that wrote
it, it is the same file, so that a run of many goes on as a run of one.
"""

import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

import diffusional
from diffusional.errors import DiffusionalError
from diffusional.files import load_json, load_tensors, save_json, save_tensors, settle, sha256
from diffusional.levels import Adaptive, LevelSampler
from diffusional.training.average import WeightAverage
from diffusional.training.config import Config, differences, matter

_STATE, _BEST, _PROGRESS, _MANIFEST = "state.safetensors", "best.safetensors", "progress.json", "manifest.json"
_FORMAT = 2


@dataclass
class Progress:
    """Where a run is: steps done, the best validation NELBO (nats) and its step, validations since, seconds trained, steps
    skipped, the place in a stream (epoch, items of it), and the losses that no line of the metrics has told yet.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    skipped: int = 0
    epoch: int = 0
    of_epoch: int = 0
    losses: list[float] = field(default_factory=list)

    def record(self, bound: float) -> None:
        """Count a validation: `stale` is 0 after one that is the best so far."""
        self.stale += 1
        if bound < self.best:
            self.best, self.best_step, self.stale = bound, self.step, 0


@dataclass(frozen=True)
class State:
    """The moving parts of a run; weights may be sharded over processes, which then all call the same methods."""

    model: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    sampler: LevelSampler

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, whole."""
        out = {f"model.{k}": whole(v) for k, v in self.model.state_dict().items()}
        out |= {f"average.{k}": whole(v) for k, v in self.average.tensors.items()}
        out["average_updates"] = torch.tensor(self.average.updates)
        moments = self.optimizer.state_dict()["state"]
        for index, name in self._names():
            for key, value in moments.get(index, {}).items():
                out[f"optimizer.{name}.{key}"] = whole(torch.as_tensor(value))
        if isinstance(self.sampler, Adaptive):
            out |= {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        return out

    def averaged(self) -> dict[str, Tensor]:
        """The model's state with averaged weights, whole: what is evaluated, and kept as model.safetensors."""
        own = self.model.state_dict()
        return {name: whole(value) for name, value in (own | self.average.tensors).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        _fill(self.model.state_dict(), under("model."))
        _fill(self.average.tensors, under("average."))
        self.average.updates = int(tensors["average_updates"])
        parameters, saved = dict(self.model.named_parameters()), dict[str, dict[str, Tensor]]()
        for key, value in under("optimizer.").items():
            name, _, moment = key.rpartition(".")
            saved.setdefault(name, {})[moment] = _like(parameters[name], value)
        moments = {index: saved[name] for index, name in self._names() if name in saved}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if isinstance(self.sampler, Adaptive):
            self.sampler.load_state(under("sampler."))

    def _names(self) -> Iterator[tuple[int, str]]:
        """The optimiser's index of every weight, and the weight's name."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        return ((i, names[id(p)]) for i, p in enumerate(ordered))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over processes, put together; all of them call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A weight's moment as the weight is sharded; a step count as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def _fill(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if own.keys() != saved.keys():
        strange = sorted(own.keys() ^ saved.keys())
        raise KeyError(f"{strange[0]} and {len(strange) - 1} others are in one of the two only")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"{name} has shape {tuple(saved[name].shape)} there, {tuple(tensor.shape)} here")
        tensor.copy_(_like(tensor, saved[name]))


def environment(processes: int = 1) -> dict[str, Any]:
    """What bit-for-bit equality depends on besides the run itself."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def save(folder: Path, tensors: dict[str, Tensor], progress: Progress, config: Config, processes: int = 1) -> None:
    """Write checkpoints/step-N whole, then drop those before the `config.keep_checkpoints` newest.

    Raises DiffusionalError where it can't be written, with the checkpoints before it as they were.
    """
    final, partial = folder / f"step-{progress.step:08d}", folder / f".partial-{progress.step:08d}"
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_tensors(partial / _STATE, tensors)
        save_json(partial / _PROGRESS, asdict(progress) | {"best": _finite(progress.best)})
        if progress.best_step:
            _link(folder.parent / "model.safetensors", partial / _BEST)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(partial.iterdir())}
        made = {"format": _FORMAT, "diffusional": diffusional.__version__, **environment(processes)}
        save_json(partial / _MANIFEST, {"made": made, "config": config.to_dict(), "files": files})
        if final.exists():
            _drop(final)
        settle(partial, final)
    except (OSError, DiffusionalError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = max((p.name for p in folder.glob("step-*")), default=None) if folder.is_dir() else None
        there = f"{folder / newest} is intact" if newest else "there is none before it"
        raise DiffusionalError(
            f"the checkpoint of step {progress.step} could not be written to {folder} ({error}); {there}. Make room, or see to "
            "the folder's permissions, and go on with --resume"
        ) from error
    tidy(final, config.keep_checkpoints)


def restore(found: Path, state: State, config: Config, processes: int = 1) -> Progress:
    """A checkpoint, as `newest` gave it, put back into `state`.

    Warns of a machine that can't give the same bits. Raises DiffusionalError for one that another config or another kind of
    model made.
    """
    manifest = load_json(found / _MANIFEST)
    if changed := matter(differences(Config.from_dict(manifest["config"]), config)):
        raise DiffusionalError(
            f"config.json was edited since {found} was written; put it back, or begin another run with it. Differences (there "
            "→ here): " + "; ".join(changed)
        )
    _compare(manifest["made"], environment(processes))
    try:
        state.restore(load_tensors(found / _STATE))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DiffusionalError(f"the checkpoint {found} does not fit this run: {error}") from error
    return progress_of(found)


def put_back_best(found: Path) -> None:
    """Make model.safetensors what it was at a checkpoint: a run that was killed may have gone beyond it."""
    best = found.parents[1] / "model.safetensors"
    if not (found / _BEST).exists() or (best.exists() and best.samefile(found / _BEST)):
        return
    partial = best.with_name(f"{best.name}.partial")
    partial.unlink(missing_ok=True)
    _link(found / _BEST, partial)
    settle(partial, best)


def restore_progress(folder: Path) -> Progress:
    """How far the newest checkpoint had come; a fresh Progress where there is none."""
    found = newest(folder)
    return Progress() if found is None else progress_of(found)


def progress_of(checkpoint: Path) -> Progress:
    """What a checkpoint says of its run. Raises DiffusionalError where that does not fit."""
    record = load_json(checkpoint / _PROGRESS)
    try:
        if record.get("best") is None:
            record["best"] = math.inf
        return Progress(**record)
    except TypeError as error:
        raise DiffusionalError(f"{checkpoint / _PROGRESS} does not fit: {error}") from error


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are those of its manifest, None where there is none at all.

    Warns of damaged ones that are newer. Raises DiffusionalError where every one is damaged.
    """
    damaged = []
    for checkpoint in sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []:
        fault = _fault(checkpoint)
        if fault is None:
            if damaged:
                warnings.warn(f"{'; '.join(damaged)}: going on from {checkpoint}, which is whole", stacklevel=2)
            return checkpoint
        damaged.append(fault)
    if damaged:
        raise DiffusionalError(
            f"{'; '.join(damaged)}: no checkpoint in {folder} is whole. Put back a copy of it, or begin another run"
        )
    return None


def tidy(newest: Path, keep: int) -> None:
    """Drop the checkpoints older than the `keep` newest, up to `newest`; and what a crash left half-written or half-dropped."""
    folder = newest.parent
    for left in [*folder.glob(".partial-*"), *folder.glob(".dropped-*")]:
        shutil.rmtree(left)
    for old in sorted(c for c in folder.glob("step-*") if c.name <= newest.name)[:-keep]:
        _drop(old)


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything."""
    try:
        manifest = load_json(checkpoint / _MANIFEST)
        kind, files = manifest["made"]["format"], manifest["files"]
        Config.from_dict(manifest["config"])
        if kind != _FORMAT:
            return f"{checkpoint} is of format {kind}, this version reads {_FORMAT}"
        for name, told in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != told["bytes"] or sha256(path) != told["sha256"]:
                return f"{path} is damaged (its SHA-256 is not the manifest's)"
    except (DiffusionalError, KeyError, TypeError, AttributeError) as error:
        return f"{checkpoint} is damaged ({error})"
    return None


def _compare(then: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{what} {then.get(what)} → {value}" for what, value in now.items() if then.get(what) != value]
    if changed:
        warnings.warn(
            f"the run goes on elsewhere than it was ({', '.join(changed)}): as good, but not the same to the bit as if "
            "it had not been interrupted",
            stacklevel=3,
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _drop(checkpoint: Path) -> None:
    """Remove a checkpoint; a crash in the middle leaves nothing that looks like one."""
    dropped = checkpoint.with_name(f".dropped-{checkpoint.name}")
    shutil.rmtree(dropped, ignore_errors=True)
    os.replace(checkpoint, dropped)
    shutil.rmtree(dropped)


def _finite(value: float) -> float | None:
    """JSON knows no infinity: null stands for "no validation yet"."""
    return value if math.isfinite(value) else None
