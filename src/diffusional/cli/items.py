"""Which items a command evaluates: a split of the run's own data, or all of another file, in the run's space."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from diffusional.data import Collection, Dataset
    from diffusional.training.run import RunRecord

SPLITS = ("train", "validation", "test")
# Items that a plan is learned on where they are not in memory: the first of a stream, a random sample of a file.
_HEAD, _SAMPLE = 4096, 65_536


@dataclass(frozen=True, eq=False)
class Items:
    """The items that a command evaluates.

    Attributes:
        name, split: the data, and which split of them ("all" for all items).
        x: the items (N, *space.shape), encoded by the run's own space.
        columns: "source", "row" and "split" of each item, (N,) each; row is −1 where it is not known.
        own: whether they are the data that the run was trained with.
        notes: what was assumed, in sentences.
    """

    name: str
    split: str
    x: "Tensor"
    columns: "dict[str, np.ndarray]"
    own: bool
    notes: tuple[str, ...] = ()


def items(
    record: "RunRecord",
    data: str | None = None,
    levels: int | None = None,
    split: str | None = None,
    columns: tuple[str, ...] | None = None,
    decimal: Literal[".", ","] | None = None,
) -> Items:
    """The items to evaluate, encoded by the run's own space.

    Without `data`, or where `data` holds the run's own data under whatever name: a split of them, "test" unless given. Other data are
    taken whole, in their order, or the split that they themselves name.

    Raises DiffusionalError for data that are not of the run's space, or not what the run was trained with.
    """
    from diffusional.training.own import own_data

    space = record.space
    if levels not in (None, space.levels):
        has = f"{space.levels} levels" if space.levels else "real values, which have no levels"
        raise DiffusionalError(f"--levels {levels}: the run was trained on data of {has}; leave it out")
    if data is None and (columns is not None or decimal is not None):
        raise DiffusionalError(
            "--columns and --decimal are for the table given by --data; give --data with them, or leave them out"
        )
    if data is None:
        parts = SPLITS if split == "all" else (split or "test",)
        return _of_own(record, own_data(record, parts), None, split)
    if columns is None and _named(record, data) and (dataset := _same(record, data)) is not None:
        return _of_own(record, dataset, data, split)
    found = _read(record, data, columns, decimal)
    total = [record.items.get(part) or -1 for part in SPLITS]
    if columns is None and len(found) == sum(total) and (dataset := _same(record, data)) is not None:
        return _of_own(record, dataset, data, split)
    if split not in (None, "all"):
        found = _read(record, data, columns, decimal, split)
    return Items(data, split or "all", found.encode(), found.columns(), False, found.notes)


def _read(
    record: "RunRecord",
    data: str,
    columns: tuple[str, ...] | None,
    decimal: Literal[".", ","] | None,
    split: str | None = None,
) -> "Collection":
    """Other data, read with the options of the run's own where these are for data of that kind."""
    from diffusional.data import read
    from diffusional.data.kinds import kind_of

    own = record.config.data
    kind = "digits" if data == "digits" else "hub" if data.startswith("hf:") else kind_of(Path(data).expanduser())
    options: dict[str, Any] = {}
    if kind in ("images", "hub"):
        options = {"size": own.size, "fit": own.fit, "grey": {"auto": None, "yes": True, "no": False}[own.grey]}
    if kind == "hub":
        options["column"] = own.column
    if kind == "table":
        options["decimal"] = decimal or (None if data.lower().endswith(".parquet") else own.decimal)
    # A run that was trained on chosen columns leaves out the others of any file, as it did those of its own.
    chosen = columns if columns is not None or kind != "table" else own.columns
    return read(data, record.space, columns=chosen, names=record.columns, split=split, **options)


def _named(record: "RunRecord", data: str) -> bool:
    """Whether `data` is the name or the path that the run's data had."""
    if data in (record.config.data.name, record.source):
        return True
    path = Path(data).expanduser()
    return record.source is not None and path.exists() and path.resolve() == Path(record.source).resolve()


def _same(record: "RunRecord", data: str) -> "Dataset | None":
    """The data set of a name, if it is the run's own, item by item and split by split."""
    from diffusional.training.own import own_data

    try:
        return own_data(record, SPLITS, data)
    except (DiffusionalError, OSError):
        return None


def _of_own(record: "RunRecord", dataset: "Dataset", data: str | None, split: str | None) -> Items:
    """Items of the run's own data; where these were given by name, a note says which split was taken."""
    import torch

    from diffusional.data.origin import Origin, joined

    notes: tuple[str, ...] = ()
    if data is not None and split is None:
        notes = (
            f"{data} holds the data that the run was trained with: its test split is evaluated (--split all takes all of it)",
        )
    split = split or "test"
    parts = SPLITS if split == "all" else (split,)
    # In the order of the split, which the hash of the data depends on. A run standardises all data as it did its own.
    x = record.space.encode(torch.cat([dataset.tensor(part) for part in parts]))
    columns = dict(joined([(part, dataset.origin(part) or Origin.unknown(len(dataset.items(part)))) for part in parts]))
    return Items(data or record.config.data.name, split, x, columns, True, notes)


def already_trained_on(record: "RunRecord", chosen: Items) -> int | None:
    """How many of the items the run was trained on, by their hashes; None if it is not known."""
    from diffusional.training.own import trained_on

    if chosen.own and chosen.split == "train":
        return len(chosen.x)
    trained = trained_on(record)
    return None if trained is None else int(trained.among(chosen.x).sum())


def reference_items(record: "RunRecord") -> "Tensor | None":
    """The run's training items, encoded (the first ones of a stream); None if they are not available, or are not the same."""
    import torch

    from diffusional.data.dataset import Stream
    from diffusional.training.own import own_data

    try:
        dataset = own_data(record)
    except (DiffusionalError, OSError):
        return None
    if isinstance(dataset.train, Stream):
        return record.space.encode(dataset.train.head(_HEAD))
    n = len(dataset.items("train"))
    if isinstance(dataset.train, torch.Tensor) or n <= _SAMPLE:
        return dataset.encode("train")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    return dataset.encode("train", rows.sort().values)
