"""The data of a run: the record of them in its config, and how to load them again."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.data import PYTHON, Dataset
from diffusional.data.dataset import Stream
from diffusional.errors import DiffusionalError
from diffusional.training.config import Config, DataConfig
from diffusional.training.stage_data import dataset_of
from diffusional.training.trained import TRAINED, Trained

if TYPE_CHECKING:
    from diffusional.training.run import RunRecord

# Number of items for fitting a plan if they are not in memory: the first of a stream, a random sample of a file.
_HEAD, _SAMPLE = 4096, 65_536


def recorded(config: Config, data: Dataset | None) -> Config:
    """Return the config with the data that a run is trained on: those of a Dataset given in Python, if there is one.

    >>> from diffusional import data
    >>> mine = dataclasses.replace(data.load("digits"), name="mine")
    >>> recorded(Config(), mine).data.name
    'digits'
    >>> recorded(Config(), dataclasses.replace(mine, train=mine.tensor("train")[:500])).data.name
    'python:mine'
    """
    if data is None:
        return config
    if config.data.condition is not None and data.condition is None:
        raise DiffusionalError(
            f"data.condition={config.data.condition!r} was given, but the Dataset {data.name!r} has no condition; load it with "
            "condition=…, or leave data.condition out"
        )
    try:
        form = data.condition_form
    except DiffusionalError as error:
        raise DiffusionalError(
            f"the Dataset {data.name!r}: {error}, as in docs/conditions.md; for labels, give the Dataset classes=…; for a model of the items "
            "only, use data.without_condition()"
        ) from error
    if data.arguments is None:
        kind = "label" if form is None or form.kind == "labels" else form.kind
        condition = None if form is None else config.data.condition or kind
        return dataclasses.replace(config, data=DataConfig(f"{PYTHON}{data.name}", condition=condition))
    arguments: dict[str, Any] = dict(data.arguments)
    grey = arguments.pop("grey", None)
    renamed = {"name_or_path": "name", "seed": "split_seed"}
    found = {renamed.get(name, name): value for name, value in arguments.items()}
    found["grey"] = {None: "auto", True: "yes", False: "no"}[grey]
    return dataclasses.replace(config, data=DataConfig(**found))


def own_data(
    record: "RunRecord",
    splits: tuple[str, ...] = ("train",),
    name: str | None = None,
    dataset: Dataset | None = None,
) -> Dataset:
    """Load the data set that a run was trained on, from its recorded path, or from `name`; or check that it is `dataset`.

    Raises DiffusionalError if it cannot be loaded, or if one of `splits` has changed since the run was trained.
    """
    own = record.config.data
    if dataset is not None:
        if changed := [part for part in splits if dataset.fingerprint(part) != record.fingerprints.get(part)]:
            raise DiffusionalError(
                f"expected the data that {record.path} was trained with, but {', '.join(changed)} of {dataset.name} differ"
            )
        return dataset
    names = [name] if name is not None else [own.name]
    # A relative path is relative to the folder in which the run was started.
    if name is None and record.source is not None and not Path(own.name).expanduser().is_absolute():
        names = [record.source, own.name] if _exists(record.source) else [own.name]
    faults = []
    for one in names:
        try:
            dataset = dataset_of(dataclasses.replace(own, name=one), record.path)
        except (DiffusionalError, OSError) as error:
            faults.append(str(error))
            continue
        if record.text is not None and dataset.text is not None and dataset.text.encoder == record.text.encoder:
            record.text.check(dataset.text.sha256)
        changed = [part for part in splits if dataset.fingerprint(part) != record.fingerprints.get(part)]
        if dataset.classes != record.classes:
            changed = changed or ["the set of classes"]
        elif dataset.condition is not None:
            conditions = [part for part in splits if dataset.condition_hash(part) != record.conditions.get(part)]
            changed += [f"the {'labels' if dataset.classes else 'condition'} of {part}" for part in conditions]
        if not changed and record.columns and dataset.labels and dataset.labels != record.columns:
            faults.append(
                f"expected {one} to have the columns {', '.join(record.columns)}, as {record.path} was trained on, got "
                f"{', '.join(dataset.labels)}: the file has changed. Name the data with --data"
            )
        elif not changed:
            return dataset
        else:
            faults.append(
                f"{', '.join(changed)} of {one} is not the data that {record.path} was trained with: the file has changed, or the run was "
                "given its data in Python. Name the data to evaluate with --data"
            )
    raise DiffusionalError(faults[0])


def _exists(source: str) -> bool:
    return source.startswith("hf:") or Path(source).exists()


def reference_items(record: "RunRecord", dataset: Dataset | None = None) -> tuple[Tensor, Condition | None]:
    """Return the run's training items, encoded, from which its plan is learned, and their condition, if there is one. Of a stream these are
    the first items, of a large file a random sample.

    Raises DiffusionalError or OSError if they are not available or have changed.
    """
    dataset = own_data(record, dataset=dataset)
    if isinstance(dataset.train, Stream):
        return record.space.encode(dataset.train.head(_HEAD)), dataset.head_condition(_HEAD)
    n = len(dataset.items("train"))
    if isinstance(dataset.train, Tensor) or n <= _SAMPLE:
        return dataset.encode("train"), dataset.condition_of("train")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    rows = rows.sort().values
    return dataset.encode("train", rows), dataset.condition_of("train", rows)


def trained_on(record: "RunRecord") -> Trained | None:
    """Return the training items of a run, by their hashes; None if they are not known (a stream, or data that cannot be loaded)."""
    try:
        if (record.path / TRAINED).exists():
            return Trained.load(record.path, record.space)
        dataset = own_data(record)
        if isinstance(dataset.train, Stream):
            return None
        found = Trained(record.space)
        dataset.fingerprint("train", found.add)
    except (DiffusionalError, OSError):
        return None
    return found
