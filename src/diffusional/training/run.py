"""A run is a folder: config.json, data.json, model.safetensors, metrics.jsonl, checkpoints/, and what evaluations add."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusional import space as spaces
from diffusional.data.dataset import SPLITS, Dataset, Stream
from diffusional.errors import DiffusionalError
from diffusional.files import load_json, load_tensors, save_json
from diffusional.models.base import LatentVariableModel
from diffusional.space import Space
from diffusional.training.build import build_model
from diffusional.training.config import Config, differences, matter

CONFIG, DATA, WEIGHTS, CHECKPOINTS, PROFILE = (
    "config.json",
    "data.json",
    "model.safetensors",
    "checkpoints",
    "profile.json",
)


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself: its config, the space of its data, and the fingerprints of their splits."""

    path: Path
    config: Config
    space: Space
    fingerprints: dict[str, str]


def describe(dataset: Dataset) -> dict[str, Any]:
    """The data.json of a dataset; a stream has no number of items."""
    splits = {split: getattr(dataset, split) for split in SPLITS}
    return {
        "name": dataset.name,
        "space": dataset.space.to_dict(),
        "items": {split: None if isinstance(raw, Stream) else len(raw) for split, raw in splits.items()},
        "sha256": {split: dataset.fingerprint(split) for split in SPLITS},
    }


def read_run(path: str | Path) -> RunRecord:
    """Read what a run folder says of itself. Raises DiffusionalError where there is none, or it is broken."""
    path = Path(path)
    if not path.is_dir():
        raise DiffusionalError(f"{path} is no folder; give the run folder that `diffusional train` wrote")
    data = load_json(path / DATA)
    try:
        return RunRecord(path, Config.load(path / CONFIG), spaces.from_dict(data["space"]), data["sha256"])
    except KeyError as error:
        raise DiffusionalError(f"{path / DATA} has no {error}; was it edited by hand?") from error


@contextmanager
def begin(path: Path, config: Config, dataset: Dataset, resume: bool, main: bool = True) -> Iterator[None]:
    """Claim a run folder for a config, or check that it may be resumed, and hold it while entered; by the `main` process alone.

    Nothing that exists is ever overwritten. Raises DiffusionalError for a used folder without `resume`, a resume with another
    config or other data, a folder that another process holds, and one that can't be written.
    """
    if not main:
        yield
        return
    if path.exists() and not path.is_dir():
        raise DiffusionalError(f"{path} is a file; give a folder for the run")
    if resume and not path.exists():
        raise DiffusionalError(f"{path} holds no run to resume; leave out --resume to begin one there")
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DiffusionalError(f"{path} can't be made ({error}); name a folder where that is allowed") from error
    try:
        _hold(handle, path)
        _claim(path, config, dataset, resume)
        yield
    finally:
        os.close(handle)


def _hold(handle: int, path: Path) -> None:
    """Of the processes that open a folder one has it at a time; the system frees it when that one ends, however it does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DiffusionalError(
            f"another process is training in {path}; wait for it, stop it, or name another folder"
        ) from error
    except OSError:  # a file system without locks
        return


def _claim(path: Path, config: Config, dataset: Dataset, resume: bool) -> None:
    used = (path / CONFIG).exists()
    if used and not resume:
        raise DiffusionalError(f"{path} already holds a run; continue it with --resume, or name another folder")
    # A run that was killed while it began may have left these.
    own = {DATA, f"{DATA}.partial", f"{CONFIG}.partial"}
    if not used and any(p.name not in own for p in path.iterdir()):
        raise DiffusionalError(f"{path} is not empty and holds no run; name a new folder")
    if used:
        record = read_run(path)
        if changed := matter(differences(record.config, config)):
            raise DiffusionalError(
                f"{path} was begun with another config; resume with the same, or name another folder. Differences "
                "(there → here): " + "; ".join(changed)
            )
        now = describe(dataset)["sha256"]
        if changed := [split for split in now if record.fingerprints.get(split) != now[split]]:
            raise DiffusionalError(f"the data have changed since {path} was begun: {', '.join(changed)} differ")
        return
    if resume:
        raise DiffusionalError(f"{path} holds no run to resume; leave out --resume to begin one there")
    save_json(path / DATA, describe(dataset))
    save_json(path / CONFIG, config.to_dict())


def load(run: str | Path) -> LatentVariableModel:
    """The trained model of a run folder (averaged weights, the best validation), in evaluation mode.

    Raises DiffusionalError for a missing run and for a missing, corrupt or foreign model.safetensors.
    """
    record = read_run(run)
    model = build_model(record.config, record.space)
    load_weights(model, record.path / WEIGHTS)
    return model.eval()


def load_weights(model: LatentVariableModel, path: Path) -> None:
    """Fill a model from safetensors; names and shapes must be exactly its own."""
    tensors = load_tensors(path)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise DiffusionalError(f"{path} does not fit the model of this config: {shown}")
    model.load_state_dict(tensors)
