"""The folder of a run: config.json, data.json, model.safetensors, metrics.jsonl, checkpoints/, and files of evaluations."""

import fcntl
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional import space as spaces
from diffusional.condition_form import ConditionForm
from diffusional.data.dataset import SPLITS, Dataset, Stream
from diffusional.errors import DiffusionalError
from diffusional.files import is_temporary, load_json, load_tensors, save_json, sha256
from diffusional.interop.imported import is_imported, load_reference
from diffusional.models.base import LatentVariableModel
from diffusional.networks.clip import CLIP, CLIPEncoder
from diffusional.space import Space
from diffusional.text import TextRecord
from diffusional.training.assembled import assembled
from diffusional.training.build import build_model
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.config import Config, beside_data, differences, matter
from diffusional.training.trained import TRAINED, Trained

CONFIG, DATA, WEIGHTS, CHECKPOINTS, PROFILE = (
    "config.json",
    "data.json",
    "model.safetensors",
    "checkpoints",
    "profile.json",
)
# In the folder of a system of several stages: the file of its config, the folder of its stages' runs, and the entry with the hash of a frozen encoder.
COMPOSITE, STAGES, ENCODER_HASH = "composite.json", "stages", "encoder_sha256"


@dataclass(frozen=True)
class RunRecord:
    """The record of a run folder: its config, the space of its data, and the fingerprints of their splits.

    Attributes:
        columns: names of the columns of a table, in the order of the model's positions; empty for other data, and for runs of
            earlier versions.
        source: the absolute path of the data, or their name; None for data made in Python and runs of earlier versions.
        items: number of items of each split, None for a stream.
        classes: names of the classes whose labels are the condition of the model, in the order of their numbers; empty if it has none.
        conditions: hash of the condition of each split; empty if there is none.
        form: the form of a condition other than labels.
        text: the text encoder whose embeddings are the condition; None for other conditions.
    """

    path: Path
    config: Config
    space: Space
    fingerprints: dict[str, str]
    columns: tuple[str, ...] = ()
    source: str | None = None
    items: dict[str, int | None] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    conditions: dict[str, str] = field(default_factory=dict)
    form: ConditionForm | None = None
    text: TextRecord | None = None

    @property
    def conditional(self) -> bool:
        """Whether the model takes a condition: labels of classes, or another."""
        return bool(self.classes) or self.form is not None


def describe(dataset: Dataset, seen: Callable[[Tensor], None] | None = None) -> dict[str, Any]:
    """Return the data.json of a dataset; a stream has no number of items. `seen` is called with each block of raw training items."""
    splits = {split: getattr(dataset, split) for split in SPLITS}
    return {
        "name": dataset.name,
        "space": dataset.space.to_dict(),
        "source": (dataset.arguments or {}).get("name_or_path"),
        "columns": list(dataset.labels),
        "items": {split: None if isinstance(raw, Stream) else len(raw) for split, raw in splits.items()},
        "sha256": {split: dataset.fingerprint(split, seen if split == "train" else None) for split in SPLITS},
        **_condition_record(dataset),
    }


def _condition_record(dataset: Dataset) -> dict[str, Any]:
    if dataset.condition is None:
        return {}
    form = dataset.condition_form
    return {
        **({"classes": list(dataset.classes)} if dataset.classes else {}),
        **({"condition_form": form.to_dict()} if form is not None and not dataset.classes else {}),
        **({"text": dataset.text.to_dict()} if dataset.text is not None else {}),
        "condition_sha256": {split: dataset.condition_hash(split) for split in SPLITS},
    }


def read_run(path: str | Path) -> RunRecord:
    """Read the record of a run folder. Raises DiffusionalError if it is missing or broken."""
    path = Path(path)
    if not path.is_dir():
        raise DiffusionalError(f"{path} is not a folder; give the run folder that `diffusional train` wrote")
    if not (path / DATA).exists() and _of_diffusers(path):
        raise DiffusionalError(
            f"{path} is a checkpoint of diffusers and no run; load it with df.load_checkpoint, or make a run of it with "
            "`diffusional import`"
        )
    data = load_json(path / DATA)
    try:
        space = _finite(spaces.from_dict(data["space"]))
        fingerprints = data["sha256"]
    except KeyError as error:
        raise DiffusionalError(f"{path / DATA} has no {error}; was it edited by hand?") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DiffusionalError(f"{path / DATA} has an invalid space ({error}); was it edited by hand?") from error
    if not isinstance(fingerprints, dict) or not all(isinstance(one, str) for one in fingerprints.values()):
        raise DiffusionalError(f"{path / DATA} has no fingerprints of its splits; was it edited by hand?")
    config = Config.load(path / CONFIG)
    # Runs of earlier versions have neither of these.
    columns, source, items = (
        data.get("columns") or config.data.columns or (),
        data.get("source"),
        data.get("items") or {},
    )
    if not isinstance(columns, list | tuple) or not all(isinstance(one, str) for one in columns):
        raise DiffusionalError(f"{path / DATA}: expected names of columns, got {columns!r}; was it edited by hand?")
    if not isinstance(source, str | None):
        raise DiffusionalError(
            f"{path / DATA}: expected a path or null as source, got {source!r}; was it edited by hand?"
        )
    if not isinstance(items, dict) or not all(isinstance(n, int | None) for n in items.values()):
        raise DiffusionalError(f"{path / DATA}: expected numbers of items, got {items!r}; was it edited by hand?")
    classes, conditions = data.get("classes", []), data.get("condition_sha256", {})
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise DiffusionalError(f"{path / DATA}: expected names of classes, got {classes!r}; was it edited by hand?")
    if not isinstance(conditions, dict) or not all(isinstance(one, str) for one in conditions.values()):
        raise DiffusionalError(
            f"{path / DATA}: expected hashes as condition_sha256, got {conditions!r}; was it edited by hand?"
        )
    try:
        form = ConditionForm.from_dict(data["condition_form"]) if "condition_form" in data else None
        text = TextRecord.from_dict(data["text"]) if "text" in data else None
    except DiffusionalError as error:
        raise DiffusionalError(f"{path / DATA}: {error}") from error
    about = (tuple(columns), source, items, tuple(classes), conditions, form, text)
    return RunRecord(path, config, space, fingerprints, *about)


def _of_diffusers(path: Path) -> bool:
    """Return whether a folder is a pipeline or a model of diffusers."""
    if (path / "model_index.json").is_file():
        return True
    try:
        return "_class_name" in load_json(path / CONFIG)
    except DiffusionalError:
        return False


def _finite(space: Space) -> Space:
    """Return the space, which was read from a file. Raises TypeError or ValueError unless all its numbers are finite."""
    record = space.to_dict()
    for key in record.keys() - {"kind", "alphabet"}:
        for value in record[key] if isinstance(record[key], list) else [record[key]]:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"expected a number as {key}, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"expected a finite number as {key}, got {value}")
    if isinstance(record.get("levels", 2), float):
        raise TypeError(f"expected an integer as levels, got {record['levels']!r}")
    return space


@contextmanager
def begin(path: Path, config: Config, dataset: Dataset, resume: bool, main: bool = True) -> Iterator[None]:
    """Create a run folder for a config, or check that it may be resumed, and lock it within the block; only the `main` process does so.

    Existing files are never overwritten. Raises DiffusionalError for a used folder without `resume`, a resume with another config or
    other data, a folder that another process has locked, and one that cannot be written.
    """
    if not main:
        yield
        return
    if path.exists() and not path.is_dir():
        raise DiffusionalError(f"{path} is a file; give a folder for the run")
    if resume and not path.exists():
        raise DiffusionalError(f"{path} has no run to resume; leave out --resume to begin one there")
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DiffusionalError(f"{path} cannot be created ({error}); name another folder") from error
    try:
        _hold(handle, path)
        _claim(path, config, dataset, resume)
        yield
    finally:
        os.close(handle)


def _hold(handle: int, path: Path) -> None:
    """Lock a folder for this process. The system releases the lock when the process ends in any way."""
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
    # A run that was killed at its start may have left these files and temporary ones.
    if not used and any(p.name not in (DATA, TRAINED) and not is_temporary(p) for p in path.iterdir()):
        raise DiffusionalError(f"{path} is not empty and has no run; name a new folder")
    if used:
        record = read_run(path)
        # The data are compared by their values, not by the name and options with which they were loaded.
        changed = matter(differences(record.config, config))
        if beside_data(changed):
            raise DiffusionalError(
                f"{path} was begun with another config; resume with the same config, or name another folder. Differences "
                "(run → now): " + "; ".join(changed)
            )
        if record.text is not None and dataset.text is not None and dataset.text.encoder == record.text.encoder:
            record.text.check(dataset.text.sha256)
        now = describe(dataset)
        changed = [split for split in SPLITS if record.fingerprints.get(split) != now["sha256"][split]]
        labels = now.get("condition_sha256", {})
        changed += [
            f"the {_called(dataset)} of {split}"
            for split in SPLITS
            if record.conditions.get(split) != labels.get(split)
        ]
        if list(record.classes) != now.get("classes", []):
            changed.append("the names of the classes")
        if changed:
            raise DiffusionalError(f"the data have changed since {path} was begun: {', '.join(changed)} differ")
        return
    if resume:
        raise DiffusionalError(f"{path} has no run to resume; leave out --resume to begin one there")
    trained = Trained(dataset.space)
    save_json(path / DATA, describe(dataset, trained.add))
    if config.init_from is not None:
        _inherit(Path(config.init_from), trained)
    if not isinstance(dataset.train, Stream):
        trained.save(path)
    save_json(path / CONFIG, config.to_dict())


def _called(dataset: Dataset) -> str:
    return "labels" if dataset.classes else "condition"


def _inherit(origin: Path, trained: Trained) -> None:
    """Add the items that the run `origin` was trained on, whose weights the new run starts from, so that evaluations recognise them."""
    try:
        record = read_run(origin)
        if record.space != trained.space:
            raise DiffusionalError("its items are encoded differently")
        trained.inherit(Trained.load(origin, record.space))
    except DiffusionalError as error:
        warnings.warn(
            f"evaluations of the new run will not recognise the items that {origin} was trained on ({error})",
            stacklevel=2,
        )


def load(run: str | Path) -> LatentVariableModel:
    """Load the trained model of a run folder (the averaged weights of the best validation), in evaluation mode; of a run that
    `diffusional import` made, the model of the checkpoint.

    Raises DiffusionalError for a missing run, and for a model.safetensors that is missing, corrupt, foreign (other names, shapes
    or types) or not finite.

    >>> load("runs/nothing")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: runs/nothing is not a folder; give the run folder that `diffusional train` wrote
    """
    record = read_run(run)
    if is_imported(record.path):
        return load_reference(record.path, record.space)
    if (record.path / COMPOSITE).exists():
        return _load_composite(record)
    model = build_model(record.config, record.space, record.classes, record.form)
    load_weights(model, record.path / WEIGHTS)
    return model.eval()


def composite_of(run: Path) -> tuple[CompositeConfig, str | None]:
    """Return the config of a system's folder, and the hash of its frozen encoder's weights, None if it has none yet."""
    record = load_json(run / COMPOSITE)
    digest = record.pop(ENCODER_HASH, None)
    try:
        config = CompositeConfig.from_dict(record)
    except DiffusionalError as error:
        raise DiffusionalError(f"{run / COMPOSITE}: {error}") from error
    if not isinstance(digest, str | None):
        raise DiffusionalError(
            f"{run / COMPOSITE}: expected a hash as {ENCODER_HASH}, got {digest!r}; was it edited by hand?"
        )
    return config, digest


def _load_composite(record: RunRecord) -> LatentVariableModel:
    """Load the models of all stages, and assemble them. Raises DiffusionalError for an encoder that has changed, and as `load` does."""
    config, digest = composite_of(record.path)
    folders = {name: record.path / STAGES / name for name in config.stages}
    if missing := [name for name, folder in folders.items() if not (folder / WEIGHTS).exists()]:
        raise DiffusionalError(
            f"{record.path}: stage {missing[0]!r} has not been trained; continue the training with --resume, or put its run into "
            f"{folders[missing[0]]}"
        )
    clip = None
    if config.encoder is not None:
        clip = CLIPEncoder.load(config.encoder.removeprefix(CLIP), record.space)
        check_unchanged(config.encoder, clip.sha256, digest)
    elif config.kind != "cascade":
        first = next(iter(folders))
        check_unchanged(f"in {folders[first]}", sha256(folders[first] / WEIGHTS), digest)
    return assembled(config, {name: load(folder) for name, folder in folders.items()}, record.space, clip).eval()


def check_unchanged(encoder: str, got: str, expected: str | None) -> None:
    """Raise DiffusionalError if a frozen encoder has another hash than that with which stages were trained, if there is one."""
    if expected is not None and got != expected:
        raise DiffusionalError(
            f"the encoder {encoder} has changed since the stages after it were trained: expected SHA-256 {expected[:12]}…, got {got[:12]}…. "
            "Restore its weights, or train the stages that use it again"
        )


def load_weights(model: LatentVariableModel, path: Path) -> None:
    """Fill a model from safetensors. Names, shapes and types must be exactly the model's own, and all values finite.

    Raises DiffusionalError for a file that does not fit, with the names and the expected and actual shapes or types.
    """
    tensors = load_tensors(path)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in own]
    shared = [name for name in own if name in tensors]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} there, {tuple(own[name].shape)} here"
        for name in shared
        if tensors[name].shape != own[name].shape
    ]
    problems += [
        f"{name} is {_type(tensors[name])}, expected {_type(own[name])}"
        for name in shared
        if tensors[name].shape == own[name].shape and tensors[name].dtype != own[name].dtype
    ]
    if problems:
        raise DiffusionalError(f"{path} does not fit the model of this config: {shortened(problems)}")
    # Some constants of a model may be infinite, but never NaN.
    broken = [name for name in own if not _sound(tensors[name], own[name])]
    if broken:
        raise DiffusionalError(
            f"{path} has values that are not finite: {shortened(broken)}. A model with such weights has no likelihood; "
            "restore the file from a copy or a checkpoint, or train again"
        )
    model.load_state_dict(tensors)


def _sound(stored: Tensor, own: Tensor) -> bool:
    """Return whether all values are finite, except where the newly built model has an infinite one."""
    if not stored.is_floating_point():
        return True
    finite = torch.isfinite(stored)
    return bool((finite | (torch.isinf(own.to(stored.device)) & (stored == own.to(stored.device)))).all())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def shortened(lines: list[str]) -> str:
    """Return the first three lines as a sentence, and the number of the others."""
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
