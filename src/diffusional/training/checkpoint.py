"""Checkpoints: the complete state of a run as safetensors and JSON, in a folder that is complete or does not exist.

    checkpoints/step-N/
      state.safetensors    weights, their average, the optimiser's moments by the weight's name, the level sampler's proposal
      best.safetensors     a copy of the run's model.safetensors at that time (a hard link to that of the checkpoint before)
      progress.json        step, best validation, the losses that are not yet in the metrics
      manifest.json        bytes and SHA-256 of each file and of itself, the config, and the environment

There are no random states, since every random number of a run is a function of its seed and the step (seeds.py). A checkpoint is
written under another name, synced to disk, and renamed; the `keep` newest are kept. The files do not depend on the number of
processes, so that a run of several processes can be continued by one.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

import diffusional
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular, load_json, load_tensors, save_json, save_tensors, settle, sha256, writing
from diffusional.timesteps import LEARNING, TimestepSampler
from diffusional.training.average import WeightAverage
from diffusional.training.config import Config, SystemConfig, beside_data, differences, matter

_STATE, _BEST, _PROGRESS, _MANIFEST = "state.safetensors", "best.safetensors", "progress.json", "manifest.json"
_FORMAT = 2


@dataclass
class Progress:
    """The state of a run: steps done, the best validation NELBO (nats), its step and the SHA-256 of its model.safetensors, the number of
    validations since then, the step of the last validation and its duration in seconds, seconds of training and validation, steps skipped,
    the position in a stream (epoch and items of it), and the losses not yet written to the metrics.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_sha256: str = ""
    stale: int = 0
    validated: int = 0
    validation_seconds: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    epoch: int = 0
    of_epoch: int = 0
    losses: list[float] = field(default_factory=list)

    def record(self, bound: float) -> None:
        """Count a validation: `stale` is set to 0 if it is the best so far."""
        self.stale, self.validated = self.stale + 1, self.step
        if bound < self.best:
            self.best, self.best_step, self.stale = bound, self.step, 0


@dataclass(frozen=True)
class State:
    """The changing parts of a run. Weights may be sharded over processes, which must then all call the same methods."""

    model: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    sampler: TimestepSampler

    def tensors(self, keep: bool = True) -> dict[str, Tensor]:
        """Return all tensors by name, gathered and on the CPU; {} for a process that does not `keep` them but must also call this."""
        parts = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        parts |= {f"average.{k}": v for k, v in self.average.tensors.items()}
        parts["average_updates"] = torch.tensor(self.average.updates)
        moments = self.optimizer.state_dict()["state"]
        for index, name in self._names():
            for key, value in moments.get(index, {}).items():
                parts[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        if isinstance(self.sampler, LEARNING):
            parts |= {f"sampler.{k}": v for k, v in self.sampler.state().items()}
        return _collected(parts, keep)

    def averaged(self, keep: bool = True) -> dict[str, Tensor]:
        """Return the state of the model with averaged weights, like `tensors`: it is evaluated, and saved as model.safetensors."""
        return _collected(self.model.state_dict() | self.average.tensors, keep)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that `tensors` returned."""

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
        if isinstance(self.sampler, LEARNING):
            self.sampler.load_state(under("sampler."))

    def _names(self) -> Iterator[tuple[int, str]]:
        """Yield the optimiser's index of every weight, and the weight's name."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        return ((i, names[id(p)]) for i, p in enumerate(ordered))


def _collected(parts: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather sharded tensors one after the other, so that no device has all of them at once."""
    out = {}
    for name, part in parts.items():
        together = whole(part)
        if keep:
            out[name] = together.cpu()
    return out


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded over processes; all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Shard the moment of a weight like the weight; a step count is returned unchanged."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def _fill(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if own.keys() != saved.keys():
        strange = sorted(own.keys() ^ saved.keys())
        raise KeyError(f"{strange[0]} and {len(strange) - 1} others are in only one of the two")
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"{name} has shape {tuple(saved[name].shape)} there, {tuple(tensor.shape)} here")
        if tensor.dtype != saved[name].dtype:
            raise ValueError(f"{name} is {saved[name].dtype}, expected {tensor.dtype}")
        tensor.copy_(_like(tensor, saved[name]))


def environment(system: SystemConfig, processes: int = 1) -> dict[str, Any]:
    """Return the environment on which bit-for-bit equality depends, besides the run itself."""
    return {
        **{name: getattr(system, name) for name in ("accumulate", "compile", "channels_last")},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def save(folder: Path, tensors: dict[str, Tensor], progress: Progress, config: Config, processes: int = 1) -> None:
    """Write checkpoints/step-N completely, then remove those before the `config.keep_checkpoints` newest.

    Raises DiffusionalError if it cannot be written; earlier checkpoints are then unchanged.
    """
    final, partial = folder / f"step-{progress.step:08d}", folder / f".partial-{progress.step:08d}"
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_tensors(partial / _STATE, tensors)
        save_json(partial / _PROGRESS, asdict(progress) | {"best": _finite(progress.best)})
        if progress.best_step:
            _keep_best(folder, partial / _BEST, progress.best_sha256)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(partial.iterdir())}
        made = {"format": _FORMAT, "diffusional": diffusional.__version__, **environment(config.system, processes)}
        manifest = {"made": made, "config": config.to_dict(), "files": files}
        save_json(partial / _MANIFEST, manifest | {"sha256": _seal(manifest)})
        if final.exists():
            _drop(final)
        settle(partial, final)
        tidy(final, config.keep_checkpoints)
    except (OSError, DiffusionalError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = max((p.name for p in folder.glob("step-*")), default=None) if folder.is_dir() else None
        there = f"{folder / newest} is intact" if newest else "there is none before it"
        raise DiffusionalError(
            f"the checkpoint of step {progress.step} could not be written to {folder} ({error}); {there}. Make room, or check "
            "the permissions of the folder, and continue with --resume"
        ) from error


def restore(found: Path, state: State, config: Config, processes: int = 1) -> Progress:
    """Restore `state` from a checkpoint returned by `newest`.

    Warns of a machine whose results may differ in the last bits. Raises DiffusionalError for a checkpoint of another config or another
    kind of model.
    """
    manifest = load_json(found / _MANIFEST)
    # The data were compared by their fingerprints when the run was resumed.
    if changed := beside_data(matter(differences(config_of(found), config))):
        raise DiffusionalError(
            f"config.json was edited since {found} was written; restore it, or use it for a new run. Differences (checkpoint "
            "→ now): " + "; ".join(changed)
        )
    _compare(manifest["made"], environment(config.system, processes))
    try:
        state.restore(load_tensors(found / _STATE))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DiffusionalError(f"the checkpoint {found} does not fit this run: {error}") from error
    return progress_of(found)


def config_of(found: Path) -> Config:
    """Return the config of the run at the time of a checkpoint returned by `newest`."""
    return Config.from_dict(load_json(found / _MANIFEST)["config"])


def put_back_best(found: Path) -> None:
    """Restore model.safetensors as it was at a checkpoint, since a run that was killed may have replaced it later."""
    best, told = found.parents[1] / "model.safetensors", load_json(found / _MANIFEST)["files"].get(_BEST)
    if best.exists():
        check_regular(best)
    if told is None:
        best.unlink(missing_ok=True)
    elif not best.exists() or sha256(best) != told["sha256"]:
        with writing(best) as (part,):
            shutil.copyfile(found / _BEST, part)


def restore_progress(folder: Path) -> Progress:
    """Return the progress of the newest checkpoint, or a new Progress if there is none."""
    found = newest(folder)
    return Progress() if found is None else progress_of(found)


def progress_of(checkpoint: Path) -> Progress:
    """Return the progress recorded in a checkpoint. Raises DiffusionalError if the record is invalid."""
    path = checkpoint / _PROGRESS
    record = load_json(path)
    if record.get("best") is None:
        record["best"] = math.inf
    try:
        progress = Progress(**record)
    except TypeError as error:
        raise DiffusionalError(f"{path} does not fit: {error}") from error
    for known in fields(Progress):
        value = getattr(progress, known.name)
        if not _of_type(known.type, value):
            raise DiffusionalError(f"{path} does not fit: {known.name} is {value!r}, expected {known.type}")
    return progress


def _of_type(kind: Any, value: Any) -> bool:
    """Return whether a value read from JSON has the type of a field of Progress."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, "int"):
        return number and isinstance(value, int) and value >= 0
    if kind in (float, "float"):
        return number and not math.isnan(value)
    return (
        isinstance(value, str)
        if kind in (str, "str")
        else isinstance(value, list) and all(_of_type(float, v) for v in value)
    )


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files match its manifest; None if there is no checkpoint.

    Warns of newer ones that are damaged. Raises DiffusionalError if all are damaged.
    """
    damaged = []
    for checkpoint in sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []:
        fault = _fault(checkpoint)
        if fault is None:
            if damaged:
                warnings.warn(f"{'; '.join(damaged)}: continuing from {checkpoint}, which is complete", stacklevel=2)
            return checkpoint
        damaged.append(fault)
    if damaged:
        raise DiffusionalError(
            f"{'; '.join(damaged)}: no checkpoint in {folder} is complete. Restore it from a copy, or begin a new run"
        )
    return None


def recover(folder: Path) -> None:
    """Complete the replacement of a checkpoint by another of the same step that a crash interrupted; for the main process only."""
    for partial in folder.glob(".partial-*") if folder.is_dir() else []:
        final = folder / partial.name.replace(".partial-", "step-")
        if not final.exists() and (partial / _MANIFEST).exists() and _fault(partial) is None:
            settle(partial, final)


def tidy(newest: Path, keep: int) -> None:
    """Remove checkpoints older than the `keep` newest, up to `newest`, and those that a crash left half-written or half-removed."""
    folder = newest.parent
    for left in [*folder.glob(".partial-*"), *folder.glob(".dropped-*")]:
        shutil.rmtree(left)
    for old in sorted(c for c in folder.glob("step-*") if c.name <= newest.name)[:-keep]:
        _drop(old)


def set_aside(found: Path) -> None:
    """Rename the checkpoints newer than `found`, which are damaged, so that they are not counted among the newest again."""
    for damaged in found.parent.glob("step-*"):
        if damaged.name > found.name:
            aside = damaged.with_name(f"damaged-{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(damaged, aside)


def _fault(checkpoint: Path) -> str | None:
    """Return the fault of a checkpoint's files, None if there is none. Raises DiffusionalError for a checkpoint of another version."""
    try:
        manifest = load_json(checkpoint / _MANIFEST)
        seal = manifest.pop("sha256", None)
        kind = manifest["made"]["format"]
        if seal != _seal(manifest):
            return f"{checkpoint / _MANIFEST} is damaged (its own SHA-256 differs)"
    except (DiffusionalError, OSError, KeyError, TypeError) as error:
        return f"{checkpoint} is damaged ({error})"
    if kind != _FORMAT:
        raise DiffusionalError(
            f"{checkpoint} has format {kind}, and this version reads {_FORMAT}: continue with the version that wrote it"
        )
    for name, told in manifest["files"].items():
        path = checkpoint / name
        try:
            if path.stat().st_size != told["bytes"] or sha256(path) != told["sha256"]:
                # The copy in the run folder may still be the same model.
                public = checkpoint.parents[1] / "model.safetensors"
                if name == _BEST and public.is_file() and sha256(public) == told["sha256"]:
                    continue
                return f"{path} is damaged (its SHA-256 differs from the manifest)"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error})"
    return None


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _compare(then: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{what} {then.get(what)} → {value}" for what, value in now.items() if then.get(what) != value]
    if changed:
        warnings.warn(
            f"the run is continued in another environment ({', '.join(changed)}): its results are equivalent, but may differ in the last "
            "bits from those without an interruption",
            stacklevel=3,
        )


def _keep_best(folder: Path, target: Path, told: str) -> None:
    """Keep the best model, identified by its SHA-256, as a file of the checkpoint, which does not change with that of the run."""
    before, public = max(folder.glob("step-*"), default=folder) / _BEST, folder.parent / "model.safetensors"
    if before.is_file() and sha256(before) == told:
        try:
            os.link(before, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(before, target)
        return
    shutil.copyfile(public, target)
    if sha256(target) != told:
        raise OSError(f"{public} was changed after it was written")


def _drop(checkpoint: Path) -> None:
    """Remove a checkpoint. A crash during the removal does not leave a folder that looks like a checkpoint."""
    dropped = checkpoint.with_name(f".dropped-{checkpoint.name}")
    shutil.rmtree(dropped, ignore_errors=True)
    os.replace(checkpoint, dropped)
    shutil.rmtree(dropped)


def _finite(value: float) -> float | None:
    """Return None for infinity ("no validation yet"), which JSON does not have."""
    return value if math.isfinite(value) else None
