"""Data to be scored: all items of a file in its order, in the space of a model that was trained on other data."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, concatenated
from diffusional.data.checks import channels_first, kind_of_values
from diffusional.data.classes import Labels
from diffusional.data.dataset import SPLITS, Items, block_rows
from diffusional.data.excerpt import listed
from diffusional.data.given import Wanted, captions_given, conditions_given
from diffusional.data.origin import Origin, joined
from diffusional.data.rows import Rows, integers, reals
from diffusional.data.splits import Part
from diffusional.data.texts import captions_written
from diffusional.errors import DiffusionalError, LevelsError
from diffusional.space import Continuous, Discrete, Space

# The name of the split for a file without splits.
UNSPLIT = "all"


@dataclass(frozen=True, eq=False)
class Collection:
    """All items of a file or folder, in its order, to be scored by a model whose items are of `space`. Made by `data.read`.

    Attributes:
        name: the file's or folder's name.
        space: the model's.
        items: raw values of the file by split; a single split "all" if the file has none.
        origins: for each split, the file and row of its items.
        labels: names of the columns of a table, in the model's order; empty for other data.
        notes: assumptions for the user to check, one sentence each.
        condition: labels (N,) of all items, one split after the other, as numbers of the model's classes; or their numbers or tokens; None
            for models without these.
        captions: a text for each item, for models that are conditioned on texts.
    """

    name: str
    space: Space
    items: Mapping[str, Items]
    origins: Mapping[str, Origin]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    condition: Condition | None = None
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def encode(self) -> Tensor:
        """Encode all items, (N, *space.shape) float32, one split after the other.

        Raises DiffusionalError, with the place of the item, for an item that the space refuses.
        """
        out = torch.empty((len(self), *self.space.shape))
        size, done = block_rows(self.space.shape), 0
        for split, raw in self.items.items():
            for start in range(0, len(raw), size):
                block = raw[start : start + size]
                try:
                    out[done : done + len(block)] = self.space.encode(block)
                except DiffusionalError as error:
                    raise DiffusionalError(f"{self.origins[split].place(start)} and after: {error}") from error
                done += len(block)
        return out

    def columns(self) -> dict[str, np.ndarray]:
        """Return "source", "row" and "split" of every item, each (N,), in the order of `encode`."""
        return dict(joined(list(self.origins.items())))

    def origin_of(self, item: int) -> str:
        """Return the file and row of one item, for messages."""
        for split, raw in self.items.items():
            if item < len(raw):
                return self.origins[split].place(item)
            item -= len(raw)
        raise IndexError(f"item {item} is beyond the last")


def collected(
    name: str,
    parts: dict[str, Part],
    stored: int | None,
    space: Space,
    names: tuple[str, ...],
    split: str | None,
    classes: tuple[str, ...] = (),
    wanted: Wanted | None = None,
) -> Collection:
    """Return the Collection of the parts of a file. `stored` is the number of levels of an image format, None for other data, and
    `classes` are those that the model was trained on: the targets of the parts become numbers of these. For `wanted` texts, labels as
    targets become captions that are written from them.

    Raises DiffusionalError for items that do not fit the space, columns with other names, labels of other classes, and a split that the
    file does not have.
    """
    if split is not None:
        if split not in parts or set(parts) == {"train"}:
            held = "has no splits" if set(parts) == {"train"} else f"has {', '.join(parts)}"
            raise DiffusionalError(
                f"split={split!r} was given for {name}, which {held}; leave it out to score all items"
            )
        parts = {split: parts[split]}
    elif set(parts) == {"train"}:
        parts = {UNSPLIT: parts["train"]}
    ordered = {part: parts[part] for part in (*SPLITS, UNSPLIT) if part in parts}
    labels = next(iter(ordered.values())).labels
    notes = []
    if names and labels:
        check_names(labels, names, name)
        order = [labels.index(column) for column in names]
        if labels != names:
            ordered = {part: replace(p, array=p.array[:, order], labels=names) for part, p in ordered.items()}
    elif names:
        notes.append(f"{name} has no column names: its columns are assumed to be {listed(names)}, in this order")
    elif labels:
        notes.append(
            f"the names of the columns that the model was trained on are not known: those of {name} ({listed(labels)}) are assumed "
            "to be in the same order"
        )
    laid = {id(p.array): channels_first(p.array, p.source) for p in ordered.values()}
    ordered = {part: replace(p, array=laid[id(p.array)]) for part, p in ordered.items()}
    for part in ordered.values():
        _check(part, stored, space)
    convert = integers if isinstance(space, Discrete) else reals
    items = {part: Rows(p.array, p.rows, convert) for part, p in ordered.items()}
    given, captions = conditions_given(ordered), captions_given(ordered)
    if captions is None and wanted is not None and wanted.kind == "texts":
        captions = {part: _written(items[part], p, space, name) for part, p in ordered.items()}
    return Collection(
        name,
        space,
        items,
        {part: Origin(name, p.rows, len(p.array), p.files) for part, p in ordered.items()},
        names or labels,
        tuple(notes),
        _condition(ordered, classes) if given is None else concatenated(list(given.values())),
        () if captions is None else tuple(one for own in captions.values() for one in own),
    )


def _written(items: Rows, part: Part, space: Space, name: str) -> tuple[str, ...]:
    """Return the captions of images of digits, which are written from their labels and what is measured on them."""
    assert isinstance(part.targets, Labels)
    names = [part.targets.names[number] for number in part.targets.numbers[part.rows].tolist()]
    return captions_written(items, names, space, name)


def _condition(parts: dict[str, Part], classes: tuple[str, ...]) -> Tensor | None:
    if not classes:
        return None
    numbers = []
    for part in parts.values():
        assert isinstance(part.targets, Labels)  # the loaders return them if a condition is asked for
        of_all = part.targets.renamed(classes, part.source, "the classes that the model was trained on", part.rows)
        numbers.append(torch.from_numpy(of_all))
    return torch.cat(numbers)


def check_names(columns: tuple[str, ...], names: tuple[str, ...], source: str) -> None:
    """Raise DiffusionalError unless the columns of a file are those that a model was trained on, in any order.

    >>> check_names(("b", "a"), ("a", "b"), "new.csv")
    >>> check_names(("a", "c"), ("a", "b"), "new.csv")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: new.csv: its columns are not those that the model was trained on ('a', 'b'): ...
    """
    missing = [name for name in names if name not in columns]
    extra = [name for name in columns if name not in names]
    if not missing and not extra and len(columns) == len(names):
        return
    wrong = [f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    wrong += [f"{listed(extra)} {'is' if len(extra) == 1 else 'are'} not among them"] if extra else []
    wrong = wrong or [f"it has {len(columns)}, the model {len(names)}"]
    if missing:
        close = difflib.get_close_matches(missing[0], extra, n=1)
        todo = (
            f"rename {close[0]!r} to {missing[0]!r}" if close else "rename the columns, if they are the same quantities"
        )
    else:
        todo = "drop the others, or choose the columns: columns=(…) in Python, --columns … on the command line"
    raise DiffusionalError(
        f"{source}: its columns are not those that the model was trained on ({listed(names)}): {'; '.join(wrong)}. {todo[0].upper()}"
        f"{todo[1:]}"
    )


def _check(part: Part, stored: int | None, space: Space) -> None:
    """Raise DiffusionalError, with the place of the item, unless all items of a part fit the space."""
    shape = tuple(part.array.shape[1:])
    if shape != tuple(space.shape):
        raise DiffusionalError(
            f"{part.source}: expected items of shape {tuple(space.shape)}, as the model was trained on, got {shape}"
        )
    if not len(part):
        raise DiffusionalError(f"{part.source} has no items; give data")
    kind = kind_of_values(part.array.dtype, part.source)
    if isinstance(space, Continuous):
        if kind != "real":
            raise DiffusionalError(
                f"{part.source}: expected real values, as the model was trained on, got {part.array.dtype}; if they are the same "
                "quantities, save them as floats"
            )
        for rows, block in _blocks(part):
            _refuse(part, rows, ~np.isfinite(block), "a value that is not finite", "correct or drop the item")
        return
    levels = 2 if kind == "boolean" else stored
    if levels not in (None, space.levels):
        raise LevelsError(
            f"{part.source}: expected data of {space.levels} levels, as the model was trained on, got {levels}: the bounds could not be compared"
        )
    for rows, block in _blocks(part):
        if kind == "real":
            fault = f"a fraction; the model was trained on integers 0 … {space.levels - 1}"
            _refuse(part, rows, block != np.floor(block), fault, "convert the data as the training data were")
        outside = (block < 0) | (block >= space.levels)
        if outside.any():
            fault = f"a value outside the {space.levels} levels that the model was trained on, 0 … {space.levels - 1}"
            advice = _scaled_advice(part, space.levels) or "correct or drop the item"
            _refuse(part, rows, outside, fault, advice, LevelsError)


def _scaled_advice(part: Part, levels: int) -> str | None:
    """Return what to do about values that are levels times a number, such as 0 and 255 for 2 levels; None if they are not."""
    seen = np.zeros(0, part.array.dtype)
    for _, block in _blocks(part):
        seen = np.union1d(seen, block)
        if len(seen) > levels:
            return None
    if not (np.isfinite(seen) & (seen >= 0) & (seen == np.floor(seen))).all():
        return None
    step = int(np.gcd.reduce(seen.astype(np.int64)))
    if step < 2 or int(seen.max()) // step >= levels:
        return None
    values = ", ".join(f"{value:g}" for value in seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    return f"only {values} occur, multiples of {step}: divide all values by {step}, if that gives the levels of the training data"


def _blocks(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of a part's items, with their rows in the array."""
    size = block_rows(part.array.shape[1:])
    rows = np.arange(len(part.array))[part.rows]
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield some, part.array[some]


def _refuse(
    part: Part,
    rows: np.ndarray,
    bad: np.ndarray,
    fault: str,
    todo: str,
    kind: type[DiffusionalError] = DiffusionalError,
) -> None:
    items = bad.reshape(len(bad), -1).any(1)
    if items.any():
        place = Origin(part.source, rows, len(part.array), part.files).place(int(items.argmax()))
        raise kind(f"{place} has {fault}; {todo}")
