"""Class labels of items: read beside the items, numbered by the names of their classes, and kept in line with their rows.

A label is a name of a class: a text, or a whole number written as text. The classes of a data set are all names that occur, in the order
of their numbers if all are numbers, else of the alphabet; or those that the file declares, in its order. The condition of an item is
the number of its class, 0 … K−1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.data.excerpt import listed, shortened
from diffusional.data.rows import Where
from diffusional.errors import DiffusionalError

# The condition that stands for the labels beside the data, whatever these are called there.
LABEL = "label"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of the rows of an array: their numbers (N,) int64, and the names of the classes.

    Attributes:
        declared: whether the names and their order are those of the file, so that some may not occur.
    """

    numbers: np.ndarray
    names: tuple[str, ...]
    declared: bool = False

    @staticmethod
    def of(values: Iterable[Any], source: str, names: Sequence[str] = ()) -> "Labels":
        """Make the labels of values: texts, or integers (booleans, or floats that are whole numbers), one for each row.

        With `names`, values are numbers into these names. Raises DiffusionalError, with the row, for a value that is missing or
        is not a label.

        >>> found = Labels.of(["dog", "cat", "dog"], "pets.csv, column 'kind'")
        >>> found.names, found.numbers.tolist()
        (('cat', 'dog'), [1, 0, 1])
        >>> Labels.of(np.array([10, 9, 10]), "labels").names
        ('9', '10')
        """
        array = values if isinstance(values, np.ndarray) else None
        if array is not None and array.ndim == 2 and array.shape[1] == 1:  # a column, as MedMNIST has
            array = array[:, 0]
        if array is not None and array.ndim != 1:
            raise DiffusionalError(f"{source} has shape {array.shape}; expected one label for each item, (N,)")
        if array is not None and array.dtype.kind in "biu":
            found, numbers = np.unique(array, return_inverse=True)
            texts = [str(int(one)) for one in found.tolist()]
        else:
            rows = [_text(one, source, row) for row, one in enumerate(values if array is None else array.tolist())]
            texts, numbers = np.unique(np.array(rows, dtype=np.str_), return_inverse=True)
            texts = texts.tolist()
        if not len(numbers):
            raise DiffusionalError(f"{source} holds no labels; expected one label for each item")
        if names:
            wrong = next((one for one in texts if not (one.isdecimal() and int(one) < len(names))), None)
            if wrong is not None:
                raise DiffusionalError(
                    f"{source} has a label {wrong}, expected 0 … {len(names) - 1}: there are {len(names)} names of classes"
                )
            return Labels(np.array([int(one) for one in texts])[numbers], tuple(names), declared=True)
        order = _ordered(texts)
        place = {name: number for number, name in enumerate(order)}
        return Labels(np.array([place[one] for one in texts], np.int64)[numbers], order)

    def __len__(self) -> int:
        return len(self.numbers)

    def renamed(self, names: tuple[str, ...], where: str, what: str, rows: Where) -> np.ndarray:
        """Return the labels of some rows as numbers (n,) into other names, `what` in errors.

        Raises DiffusionalError, with the row of `where`, for a label that is not among these names.
        """
        place = {name: number for number, name in enumerate(names)}
        table = np.array([place.get(name, -1) for name in self.names], np.int64)
        own = self.numbers[rows]
        numbers = table[own]
        if (numbers < 0).any():
            wrong = int((numbers < 0).argmax())
            row = int(np.arange(len(self.numbers))[rows][wrong])
            raise DiffusionalError(
                f"{where}: row {row} has the label {self.names[own[wrong]]!r}, which is none of {what} ({listed(list(names))})"
            )
        return numbers


def check_length(labels: Labels, items: int, source: str) -> Labels:
    """Return the labels. Raises DiffusionalError unless there is one for each of the items."""
    if len(labels) != items:
        raise DiffusionalError(
            f"{source} holds {len(labels)} labels for {items} items; expected one label for each item"
        )
    return labels


def conditions(parts: Mapping[str, Any]) -> tuple[dict[str, Tensor] | None, tuple[str, ...]]:
    """Return the condition of each split, int64 (N,), and the names of the classes, from parts with `targets`; (None, ()) without.

    Raises DiffusionalError for a class that occurs in another split and not in train, of which a model could learn nothing.
    """
    targets: dict[str, Labels] = {split: part.targets for split, part in parts.items() if part.targets is not None}
    if not targets:
        return None, ()
    first = next(iter(targets.values()))
    names = first.names
    if any(one.names != names for one in targets.values()):
        names = _ordered({name for one in targets.values() for name in one.names})
    numbers = {
        split: one.renamed(names, parts[split].source, "the classes", parts[split].rows)
        for split, one in targets.items()
    }
    # A part of the rows may lack classes that occur in the file: these are not classes of the data.
    if not any(one.declared for one in targets.values()):
        used = np.unique(np.concatenate(list(numbers.values())))
        numbers = {split: np.searchsorted(used, one) for split, one in numbers.items()}
        names = tuple(names[number] for number in used)
    known = set(np.unique(numbers["train"]).tolist())
    for split, one in numbers.items():
        strange = [number for number in np.unique(one).tolist() if number not in known]
        if strange:
            raise DiffusionalError(
                f"{parts[split].source}: the {split} split has the class{'es' * (len(strange) > 1)} "
                f"{listed([names[number] for number in strange])}, which no train item has; give train items of every class, or "
                "leave such items out"
            )
    return {split: torch.from_numpy(np.ascontiguousarray(one, np.int64)) for split, one in numbers.items()}, names


def _text(value: Any, source: str, row: int) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(int(value)) if isinstance(value, bool | int) else value.strip() if isinstance(value, str) else ""
    if not text:
        what = "no label" if value is None or value == "" or value != value else f"the label {shortened(repr(value))}"
        raise DiffusionalError(f"{source}: row {row} has {what}; expected a text or a whole number in every row")
    return text


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of classes: by number if all of them are whole numbers.

    >>> _ordered(["10", "9"]), _ordered(["10", "9", "a"])
    (('9', '10'), ('10', '9', 'a'))
    """
    held = list(names)
    try:
        return tuple(sorted(held, key=int))
    except ValueError:
        return tuple(sorted(held))
