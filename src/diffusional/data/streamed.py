"""Conditions of the rows of a stream, which are read with its items: labels, numbers, tokens and texts.

A reader returns the value of a row (`of`), and the condition of several values (`batch`), unless they are texts, which are not embedded
here. Errors name the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError


@runtime_checkable
class RowReader(Protocol):
    """Reads what the condition of a row is made of."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        ...

    def of(self, row: dict[str, Any], where: str) -> Any:
        """Return the value of a row. Raises DiffusionalError, which names the row `where`, for a missing or wrong one."""
        ...


@runtime_checkable
class ConditionReader(RowReader, Protocol):
    """A `RowReader` whose values are complete."""

    def batch(self, values: Sequence[Any]) -> Condition:
        """Return the condition of several rows, from their values."""
        ...


@dataclass(frozen=True, eq=False)
class StreamedLabels:
    """The label of a row: the number of its class, whose names the data declare."""

    columns: tuple[str]
    names: tuple[str, ...]
    source: str

    def of(self, row: dict[str, Any], where: str) -> Tensor:
        """Return the label of a row, int64 (). Raises DiffusionalError for a missing one, and for a number outside the classes."""
        label = row[self.columns[0]]
        if not isinstance(label, int) or not 0 <= label < len(self.names):
            what = "no label" if label in (None, -1) else f"the label {label!r}"
            raise DiffusionalError(
                f"{self.source}: {where} has {what}, expected 0 … {len(self.names) - 1}, the number of one of {len(self.names)} classes, in "
                "every row"
            )
        return torch.tensor(label)

    def batch(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values))


@dataclass(frozen=True, eq=False)
class StreamedNumbers:
    """The numbers of a row: those of a column of lists, or of several columns of single numbers.

    >>> reader = StreamedNumbers(("age", "weight"), "people")
    >>> reader.batch([reader.of({"age": 20, "weight": 70.5}, "item 0")])
    tensor([[20.0000, 70.5000]])
    """

    columns: tuple[str, ...]
    source: str

    def of(self, row: dict[str, Any], where: str) -> Tensor:
        """Return the numbers of a row, float32 (n,). Raises DiffusionalError for missing values, values that are not finite, and others."""
        stored = [row[name] for name in self.columns]
        try:
            found = np.asarray(stored[0] if len(stored) == 1 else stored, np.float64)
        except (TypeError, ValueError):
            found = np.zeros((0, 0))
        if found.ndim > 1 or not found.size or not np.isfinite(found).all():
            raise DiffusionalError(
                f"{self.source}: {where} has {stored!r:.80}, expected finite numbers in every row; correct or drop the row"
            )
        return torch.from_numpy(np.atleast_1d(found).astype(np.float32))

    def batch(self, values: Sequence[Tensor]) -> Tensor:
        """Return numbers (N, n). Raises DiffusionalError if rows have different numbers of them."""
        if len(lengths := {len(value) for value in values}) > 1:
            raise DiffusionalError(f"{self.source}: expected as many numbers in every row, got {sorted(lengths)}")
        return torch.stack(list(values))


@dataclass(frozen=True, eq=False)
class StreamedTokens:
    """The tokens of a row: a list of vectors of `width` numbers, padded to the longest list of a batch."""

    columns: tuple[str]
    source: str
    width: int | None = None

    def of(self, row: dict[str, Any], where: str) -> Tensor:
        """Return the tokens of a row, float32 (l, width). Raises DiffusionalError for anything else."""
        try:
            found = np.asarray(row[self.columns[0]], np.float64)
        except (TypeError, ValueError):
            found = np.zeros(0)
        wide = self.width is None or found.shape[-1] == self.width
        if found.ndim != 2 or not found.size or not wide or not np.isfinite(found).all():
            expected = "one length" if self.width is None else f"{self.width} numbers"
            raise DiffusionalError(
                f"{self.source}: {where} is not a list of vectors of {expected}; expected finite tokens in every row, such as [[0.1, 0.2], [0.3, "
                "0.4]]"
            )
        return torch.from_numpy(found.astype(np.float32))

    def batch(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return tokens (N, L, W), padded with zeros, and their mask (N, L)."""
        tokens = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
        lengths = torch.tensor([len(value) for value in values])
        return {"tokens": tokens, "mask": torch.arange(tokens.shape[1]) < lengths[:, None]}


@dataclass(frozen=True, eq=False)
class StreamedTexts:
    """The text of a row, which is embedded later (data/embedded_stream.py)."""

    columns: tuple[str]
    source: str

    def of(self, row: dict[str, Any], where: str) -> str:
        """Return the text of a row. Raises DiffusionalError for a missing one."""
        text = row[self.columns[0]]
        if not isinstance(text, str) or not text.strip():
            raise DiffusionalError(f"{self.source}: {where} has no text; expected a text in every row")
        return text.strip()
