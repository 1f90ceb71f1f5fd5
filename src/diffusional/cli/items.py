"""Which items a command looks at: a run's own splits, or other data of the same space."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from diffusional.errors import DiffusionalError
from diffusional.training.config import DataConfig

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.training.run import RunRecord

# Items that a plan is learned on where they are not in memory: the first of a stream, a random sample of a file.
_HEAD, _SAMPLE = 4096, 65_536


def items(
    record: "RunRecord", data: str | None = None, levels: int | None = None, split: str | None = None
) -> "tuple[str, str, Tensor]":
    """Name, split and items to evaluate, encoded by the run's own space."""
    import torch

    from diffusional.space import Discrete
    from diffusional.training.build import build_dataset

    own: DataConfig = record.config.data
    name, split = data or own.name, split or ("test" if data is None else "all")
    splits = ("train", "validation", "test") if split == "all" else (split,)
    dataset = build_dataset(
        own if data is None and levels is None else _other(own, name, record.space.levels if levels is None else levels)
    )
    if data is None and (
        changed := [part for part in splits if dataset.fingerprint(part) != record.fingerprints.get(part)]
    ):
        raise DiffusionalError(
            f"{', '.join(changed)} of {name} is not what {record.path} was trained with: the file has changed, or the run "
            "was given its data in Python. Name the data to evaluate with --data"
        )
    if dataset.space.shape != record.space.shape:
        raise DiffusionalError(
            f"{name} has items of shape {dataset.space.shape}; the run was trained on {record.space.shape}"
        )
    if isinstance(record.space, Discrete) != isinstance(dataset.space, Discrete) or (
        isinstance(record.space, Discrete) and dataset.space != record.space
    ):
        raise DiffusionalError(
            f"{name} is {dataset.space}; the run was trained on {record.space}: their bounds do not compare"
        )
    # A run standardises new data as it did its own.
    return name, split, record.space.encode(torch.cat([dataset.tensor(part) for part in splits]))


def _other(own: DataConfig, name: str, levels: int | None) -> DataConfig:
    """Other data, read as the run's own where they are of the same kind."""
    from diffusional.data.kinds import kind_of

    def kind(name: str) -> str:
        return name if name == "digits" else "hub" if name.startswith("hf:") else kind_of(Path(name).expanduser())

    if kind(name) == kind(own.name):
        return dataclasses.replace(own, name=name, levels=levels, warps=0)
    return DataConfig(name, levels, own.split_seed)


def reference_items(record: "RunRecord") -> "Tensor | None":
    """The run's training items, encoded, of a stream its first; None where they can't be had again, or are not the same."""
    import torch

    from diffusional.data.dataset import Stream
    from diffusional.training.build import build_dataset

    try:
        dataset = build_dataset(record.config.data)
    except (DiffusionalError, OSError):
        return None
    if dataset.fingerprint("train") != record.fingerprints.get("train"):
        return None
    if isinstance(dataset.train, Stream):
        return record.space.encode(dataset.train.head(_HEAD))
    n = len(dataset.items("train"))
    if isinstance(dataset.train, torch.Tensor) or n <= _SAMPLE:
        return dataset.encode("train")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    return dataset.encode("train", rows.sort().values)
