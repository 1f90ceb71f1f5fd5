"""The items that a command evaluates: a split of the run's own data, or all items of another file, in the run's space."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from diffusional.conditions import Condition
    from diffusional.data import Collection, Dataset
    from diffusional.data.dataset import Items
    from diffusional.encoded import DataItems, EncodedItems
    from diffusional.space import Space
    from diffusional.training.run import RunRecord

SPLITS = ("train", "validation", "test")
# Bytes of encoded items from which on they are read from their file as they are needed.
LARGE = 2**30
# Items whose hashes are computed together.
_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class ChosenItems:
    """The items that a command evaluates.

    Attributes:
        name, split: name of the data, and the split that is evaluated ("all" for all items).
        data: the items (N, *space.shape), encoded by the run's own space; those of large files are read as they are needed.
        columns: "source", "row" and "split" of each item, (N,) each; row is −1 where it is not known.
        own: whether these are the data that the run was trained with.
        notes: assumptions that were made, one sentence each.
        condition: of the items, for a run with a condition. If it is labels (N,), `columns` has their names as "label"; if it is texts, `columns` has
            these as "caption".
    """

    name: str
    split: str
    data: "DataItems"
    columns: "dict[str, np.ndarray]"
    own: bool
    notes: tuple[str, ...] = ()
    condition: "Condition | None" = None

    @cached_property
    def x(self) -> "Tensor":
        """All items in memory."""
        from diffusional.encoded import in_memory

        return in_memory(self.data)


def items(
    record: "RunRecord",
    data: str | None = None,
    levels: int | None = None,
    split: str | None = None,
    columns: tuple[str, ...] | None = None,
    decimal: Literal[".", ","] | None = None,
    condition: str | None = None,
) -> ChosenItems:
    """Return the items to evaluate, encoded by the run's own space.

    Without `data`, or if `data` holds the run's own data under any name, these are a split of them, by default "test". Other data are
    evaluated as a whole, in their order, or the split of that name if the file has it. For a run with classes the items have their
    labels, from where the run's own data have them, or from the column or key `condition` of `data`.

    Raises DiffusionalError for data that do not fit the run's space, and for own data that have changed since the run was trained.
    """
    import numpy as np

    from diffusional.data.dataset import Stream
    from diffusional.data.derived import is_derived, of_items
    from diffusional.data.derived_stream import named
    from diffusional.data.given import Wanted
    from diffusional.data.joint import split_condition
    from diffusional.data.texts import condition_of
    from diffusional.encoded import in_memory
    from diffusional.training.own import own_data

    space = record.space
    if levels not in (None, space.levels):
        has = f"{space.levels} levels" if space.levels else "real values, which have no levels"
        raise DiffusionalError(f"--levels {levels}: the run was trained on data of {has}; leave it out")
    # Of two conditions the first is computed from the items, and the second is read beside them.
    first, own = split_condition(record.config.data.condition)
    if condition is not None and own is not None and Wanted.of(condition).kind != (kind := Wanted.of(own).kind):
        raise DiffusionalError(
            f"--condition {condition}: expected a column or key of {kind}, since {record.path} was trained with the condition {own}"
        )
    if data is None and (columns is not None or decimal is not None):
        raise DiffusionalError(
            "--columns and --decimal are for the table given by --data; give --data with them, or leave them out"
        )
    beside = bool(record.classes) or record.text is not None or _is_read(record)
    if condition is not None and (data is None or not beside):
        reason = f"{record.path} was trained without labels" if not beside else "--data was not given"
        raise DiffusionalError(f"--condition {condition} was given, but {reason}; leave it out")
    if data is None:
        parts = SPLITS if split == "all" else (split or "test",)
        dataset = own_data(record, parts)
        if "train" in parts and isinstance(dataset.train, Stream):
            raise DiffusionalError(
                f"--split {split}: train is a stream, which is not read to its end; expected validation or test, or --data with a file"
            )
        return _of_own(record, dataset, None, split)
    if columns is None and _named(record, data) and (dataset := _same(record, data, condition)) is not None:
        return _of_own(record, dataset, data, split)
    found = _read(record, data, columns, decimal, condition=condition)
    total = [record.items.get(part) or -1 for part in SPLITS]
    if columns is None and len(found) == sum(total) and (dataset := _same(record, data, condition)) is not None:
        return _of_own(record, dataset, data, split)
    if split not in (None, "all"):
        found = _read(record, data, columns, decimal, split, condition)
    x, given = _large(list(found.items.values()), space) or found.encode(), found.condition
    about = found.columns() | _names(record, given)
    if record.text is not None:
        given = condition_of(record.text, found.captions)
        about["caption"] = np.array(found.captions)
    elif _is_read(record):
        assert record.form is not None
        form = record.form if first is None else dict(record.form.parts)["condition"]
        form.check(given, len(x))
    elif record.form is not None:
        if first is not None:
            raise DiffusionalError(
                f"{record.path} was trained with two conditions, {record.config.data.condition}, and does not record the names of its classes, so that "
                f"labels in --data {data} cannot be matched; evaluate it on its own data, or from Python with df.evaluate(…, condition=…)"
            )
        if not is_derived(own):
            raise DiffusionalError(
                f"{record.path} was trained with a condition of {record.form} for each item, and --data {data} has none; evaluate it on its "
                "own data, or from Python with df.evaluate(…, condition=…)"
            )
        assert own is not None
        given = of_items(own, in_memory(x), space)
    if first is not None:
        if not is_derived(first):
            raise DiffusionalError(
                f"{record.path} was trained with the latents of an encoder as a condition, which are not computed for --data {data}; evaluate it on "
                "its own data, or its system on these"
            )
        given = {"low": of_items(first, in_memory(x), space), **named(given)}
    return ChosenItems(data, split or "all", x, about, False, found.notes, given)


def _is_read(record: "RunRecord") -> bool:
    """Return whether the condition of a run is numbers or tokens that are read beside the items."""
    from diffusional.data.given import Wanted
    from diffusional.data.joint import split_condition

    _, own = split_condition(record.config.data.condition)
    return record.form is not None and own is not None and Wanted.of(own).kind in ("numbers", "tokens")


def _names(record: "RunRecord", condition: "Condition | None") -> "dict[str, np.ndarray]":
    """Return the names of labels as the column "label"; {} without labels."""
    import numpy as np

    return {} if condition is None or not record.classes else {"label": np.array(record.classes)[np.asarray(condition)]}


def _read(
    record: "RunRecord",
    data: str,
    columns: tuple[str, ...] | None,
    decimal: Literal[".", ","] | None,
    split: str | None = None,
    condition: str | None = None,
) -> "Collection":
    """Read other data, with those options of the run's own data that apply to data of this kind."""
    from diffusional.data import read
    from diffusional.data.formats import format_of
    from diffusional.data.joint import split_condition

    own = record.config.data
    _, second = split_condition(own.condition)
    kind = "digits" if data == "digits" else "hub" if data.startswith("hf:") else format_of(Path(data).expanduser())
    options: dict[str, Any] = {}
    if kind in ("images", "hub"):
        options = {"size": own.size, "fit": own.fit, "grey": {"auto": None, "yes": True, "no": False}[own.grey]}
    if kind == "hub":
        options["column"] = own.column
    if kind == "table":
        options["decimal"] = decimal or (None if data.lower().endswith(".parquet") else own.decimal)
    if record.classes:
        options |= {"condition": condition or second, "classes": record.classes}
    elif record.text is not None or _is_read(record):
        options |= {"condition": condition or second}
    # A run that was trained on chosen columns reads only these from any file.
    chosen = columns if columns is not None or kind != "table" else own.columns
    return read(data, record.space, columns=chosen, names=record.columns, split=split, **options)


def _named(record: "RunRecord", data: str) -> bool:
    """Return whether `data` is the name or the path of the run's data."""
    if data in (record.config.data.name, record.source):
        return True
    path = Path(data).expanduser()
    return record.source is not None and path.exists() and path.resolve() == Path(record.source).resolve()


def _same(record: "RunRecord", data: str, condition: str | None) -> "Dataset | None":
    """Return the data set named `data` if each split has the same items as the run's, with the same conditions in the column or key
    `condition`, else None.
    """
    from diffusional.data.joint import joined_conditions, split_condition
    from diffusional.training.own import own_data

    try:
        if condition is not None:
            own = record.config.data
            first, _ = split_condition(own.condition)
            own = replace(own, condition=joined_conditions(first, condition))
            record = replace(record, config=replace(record.config, data=own))
        return own_data(record, SPLITS, data)
    except (DiffusionalError, OSError):
        return None


def _of_own(record: "RunRecord", dataset: "Dataset", data: str | None, split: str | None) -> ChosenItems:
    """Return items of the run's own data; if these were given by name, with a note on the split that was chosen."""
    import numpy as np
    import torch

    from diffusional.conditions import concatenated
    from diffusional.data.origin import Origin, joined

    notes: tuple[str, ...] = ()
    if data is not None and split is None:
        notes = (
            f"{data} holds the data that the run was trained with: its test split is evaluated (use --split all for all items)",
        )
    split = split or "test"
    parts = SPLITS if split == "all" else (split,)
    # In the order of the split, since the hash of the data depends on it. Encoding standardises as in training.
    x = _large([dataset.items(part) for part in parts], record.space)
    if x is None:
        x = record.space.encode(torch.cat([dataset.tensor(part) for part in parts]))
    columns = dict(joined([(part, dataset.origin(part) or Origin.unknown(len(dataset.items(part)))) for part in parts]))
    condition = None
    if record.conditional:
        condition = concatenated([dataset.condition_of(part) for part in parts])
    columns |= _names(record, condition)
    if dataset.text is not None:
        columns["caption"] = np.array([one for part in parts for one in dataset.captions_of(part)])
    return ChosenItems(data or record.config.data.name, split, x, columns, True, notes, condition)


def _large(parts: "list[Tensor | Items]", space: "Space") -> "EncodedItems | None":
    """Return the items of a single part that is not in memory and takes more than LARGE bytes encoded; None for others."""
    from torch import Tensor

    from diffusional.encoded import EncodedItems

    if len(parts) > 1 or isinstance(parts[0], Tensor) or 4 * len(parts[0]) * space.dimensions <= LARGE:
        return None
    return EncodedItems(parts[0], space)


def already_trained_on(record: "RunRecord", chosen: ChosenItems) -> int | None:
    """Return how many of the items the run was trained on, by their hashes; None if this is not known."""
    from diffusional.training.own import trained_on

    if chosen.own and chosen.split == "train":
        return len(chosen.data)
    trained = trained_on(record)
    return None if trained is None else sum(int(trained.among(rows).sum()) for rows in chosen.data.split(_BLOCK))
