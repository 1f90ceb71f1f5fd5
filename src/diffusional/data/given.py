"""Conditions of items that are read beside them and are not labels: texts, numbers and tokens.

caption, caption:NAME, text…   a text for each item (data/texts.py embeds them)
numbers:NAME[,NAME…]           real numbers: (N,) or (N, n) under a key, or columns of a table
tokens:NAME                    (N, L, W) under a key, with a mask (N, L) under a key with the word "mask"; or lists of vectors, which are padded
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffusional.data.excerpt import listed
from diffusional.data.rows import Where
from diffusional.errors import DiffusionalError

# Names of columns and keys of texts, in the order of preference.
TEXT_NAMES = ("caption", "captions", "text", "texts")
_MOST = 5  # rows that an error lists


@dataclass(frozen=True)
class Wanted:
    """The condition that a user asked for.

    Attributes:
        kind: "labels", "texts", "numbers" or "tokens".
        names: of the columns or keys; () for the default ones.
        text: as it was given.

    >>> Wanted.of("numbers:age,weight"), Wanted.of("text:minilm").names
    (Wanted(kind='numbers', names=('age', 'weight'), text='numbers:age,weight'), ())
    """

    kind: Literal["labels", "texts", "numbers", "tokens"]
    names: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, condition: str) -> "Wanted":
        """Parse a condition. Raises DiffusionalError for numbers and tokens without a name."""
        kind, colon, rest = condition.partition(":")
        if kind == "text" and (rest or not colon):
            return cls("texts", (), condition)
        if kind == "caption" and (rest or not colon):
            return cls("texts", (rest,) if rest else (), condition)
        if kind in ("numbers", "tokens") and colon:
            names = tuple(rest.split(",")) if kind == "numbers" else (rest,)
            if not all(names):
                raise DiffusionalError(
                    f"condition={condition!r}: expected the name of a column or key, as in {kind}:NAME"
                )
            return cls("numbers" if kind == "numbers" else "tokens", names, condition)
        return cls("labels", (condition,), condition)

    def among(self, held: Sequence[str], source: str) -> tuple[str, ...]:
        """Return the names among those that a file has: for texts by default the first of caption, captions, text and texts.

        Raises DiffusionalError if the file does not have them.
        """
        if self.names:
            missing = [name for name in self.names if name not in held]
            if not missing:
                return self.names
            raise DiffusionalError(
                f"{source} has no {missing[0]!r} for the condition {self.text!r}; it has {listed(list(held))}"
            )
        found = [name for name in TEXT_NAMES if name in held]
        if not found:
            raise DiffusionalError(
                f"{source}: expected texts under one of the names {', '.join(TEXT_NAMES)} for the condition {self.text!r}; it has "
                f"{listed(list(held))}. Name them as caption:NAME"
            )
        return (found[0],)


@dataclass(frozen=True, eq=False)
class Given:
    """The condition of the rows of an array: texts (N,), numbers (N, n), or tokens (N, L, W) with a mask (N, L)."""

    kind: Literal["texts", "numbers", "tokens"]
    values: np.ndarray
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def texts(values: Iterable[Any], source: str) -> "Given":
        """Return texts. Raises DiffusionalError, listing rows, for missing texts and other values.

        >>> Given.texts(["a cat", None, "a dog", ""], "pets.csv, column 'text'")
        Traceback (most recent call last):
        diffusional.errors.DiffusionalError: pets.csv, column 'text': 2 of 4 rows have no text: rows 1, 3; expected a text in every row
        """
        held = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
        missing = [row for row, value in enumerate(held) if not isinstance(value, str) or not value.strip()]
        if missing:
            shown = ", ".join(map(str, missing[:_MOST])) + (
                f" and {len(missing) - _MOST} more" * (len(missing) > _MOST)
            )
            raise DiffusionalError(
                f"{source}: {len(missing)} of {len(held)} rows have no text: row{'s' * (len(missing) > 1)} {shown}; expected a text in every row"
            )
        out = np.empty(len(held), object)
        out[:] = [value.strip() for value in held]
        return Given("texts", out)

    @staticmethod
    def numbers(values: Any, source: str) -> "Given":
        """Return real numbers (N, n), float32, of values (N,) or (N, n). Raises DiffusionalError for other shapes and types, and with the row
        for a value that is missing or not finite.
        """
        array = np.asarray(values)
        array = array[:, None] if array.ndim == 1 else array
        if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.shape[1]:
            raise DiffusionalError(
                f"{source}: expected numbers (N,) or (N, n), got {array.dtype} of shape {array.shape}"
            )
        return Given("numbers", _finite(array, source))

    @staticmethod
    def tokens(values: Any, mask: Any, source: str) -> "Given":
        """Return tokens (N, L, W), float32, and their mask (N, L), if there is one. Raises DiffusionalError for other shapes and types."""
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" or array.ndim != 3 or not array.size:
            raise DiffusionalError(f"{source}: expected tokens (N, L, W), got {array.dtype} of shape {array.shape}")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != array.shape[:2] or mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
                raise DiffusionalError(
                    f"{source}: expected a mask of 0 and 1, {array.shape[:2]}, got {mask.dtype} of shape {mask.shape}"
                )
            mask = mask.astype(bool)
            array = np.where(mask[:, :, None], array, 0)
        return Given("tokens", _finite(array, source), mask)

    @staticmethod
    def lists(rows: Sequence[Any], source: str) -> "Given":
        """Return tokens of lists of vectors, padded to the longest list. Raises DiffusionalError, with the row, for anything else."""
        arrays = []
        for row, value in enumerate(rows):
            try:
                array = np.array(value, np.float64)
            except (TypeError, ValueError):
                array = np.zeros(0)
            if array.ndim != 2 or not array.size or (arrays and array.shape[1:] != arrays[0].shape[1:]):
                raise DiffusionalError(
                    f"{source}: row {row} is not a list of vectors of one length; expected tokens, such as [[0.1, 0.2], [0.3, 0.4]]"
                )
            arrays.append(array)
        length, width = max(map(len, arrays)), arrays[0].shape[1]
        out, mask = np.zeros((len(arrays), length, width)), np.zeros((len(arrays), length), bool)
        for row, array in enumerate(arrays):
            out[row, : len(array)], mask[row, : len(array)] = array, True
        return Given.tokens(out, mask, source)

    def check_length(self, items: int, source: str) -> "Given":
        """Return itself. Raises DiffusionalError unless there is one row for each of the items."""
        if len(self) != items:
            raise DiffusionalError(
                f"{source} holds {len(self)} {self.kind} for {items} items; expected one for each item"
            )
        return self

    def condition(self, rows: Where) -> Any:
        """Return numbers or tokens of some rows as a condition."""
        values = torch.from_numpy(np.ascontiguousarray(self.values[rows]))
        if self.mask is None:
            return values
        return {"tokens": values, "mask": torch.from_numpy(np.ascontiguousarray(self.mask[rows]))}

    def captions(self, rows: Where) -> tuple[str, ...]:
        """Return the texts of some rows."""
        return tuple(self.values[rows].tolist())


def _finite(array: np.ndarray, source: str) -> np.ndarray:
    out = array.astype(np.float32)
    broken = ~np.isfinite(out).reshape(len(out), -1).all(1)
    if broken.any():
        raise DiffusionalError(
            f"{source}: row {int(broken.argmax())} has a number that is missing or not finite; correct or drop the row"
        )
    return out


def conditions_given(parts: Mapping[str, Any]) -> dict[str, Tensor | dict[str, Tensor]] | None:
    """Return the numbers or tokens of each split, from parts whose targets are `Given`; None for others. Raises DiffusionalError for splits
    of different shapes.
    """
    targets = {split: part.targets for split, part in parts.items()}
    if any(not isinstance(one, Given) or one.kind == "texts" for one in targets.values()):
        return None
    forms = {split: (one.kind, one.values.shape[1:], one.mask is None) for split, one in targets.items()}
    if len(set(forms.values())) > 1:
        shapes = ", ".join(f"{split} {shape}" for split, (_, shape, _) in forms.items())
        raise DiffusionalError(
            f"{parts['train'].source}: expected a condition of one shape in all splits, with masks in all or in none, got {shapes}"
        )
    return {split: one.condition(parts[split].rows) for split, one in targets.items()}


def captions_given(parts: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    """Return the texts of each split, from parts whose targets are texts; None for others."""
    targets = {split: part.targets for split, part in parts.items()}
    if any(not isinstance(one, Given) or one.kind != "texts" for one in targets.values()):
        return None
    return {split: one.captions(parts[split].rows) for split, one in targets.items()}
