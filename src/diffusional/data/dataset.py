"""A data set: one space and three splits of raw values, as the file stored them.

Raw values become the model's by the space's `encode`, and nowhere else. A split is known by its fingerprint,
a hash of what the values are (not of how many bytes stored them, nor where), so that two results can be
compared only if they speak of the same data.

A split is a Tensor, or `Items` that are read when asked for; a train split may also be a `Stream`, which is
known from its beginning on only.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusional.data.origin import Origin
from diffusional.errors import DiffusionalError
from diffusional.space import Discrete, Space

SPLITS = ("train", "validation", "test")
_BLOCK = 2**19  # values read at a time: 4 MiB as float64, so that a pass over a split takes little memory
_GATHER = (
    2**26
)  # bytes of items gathered at a time, of which blocks are then made: rows near each other are read together
_HEAD = 256  # items of a stream that its fingerprint hashes


@runtime_checkable
class Items(Protocol):
    """Raw values of shape (N, *dims), read when asked for. A Tensor is such items; so are `data.rows.Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *dims)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of what `[…]` gives."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """The items of rows int64 (n,), or of a slice: (n, *dims)."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A train split that is read from its beginning, epoch by epoch, and has no length that is known."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of the items."""
        ...

    @property
    def identity(self) -> str:
        """What tells this stream from others (name, config, revision, …); part of the fingerprint."""
        ...

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        """Raw items of an epoch, from item `skip` on, in an order that is a function of (seed, epoch)."""
        ...

    def head(self, n: int) -> Tensor:
        """The first n items as they are stored, or all if there are fewer."""
        ...


def block_rows(shape: tuple[int, ...]) -> int:
    """How many items of a shape make one block of a pass over a split.

    >>> block_rows((3, 32, 32)), block_rows((3, 1024, 1024))
    (170, 1)
    """
    return max(1, _BLOCK // max(1, math.prod(shape)))


@dataclass(frozen=True, eq=False)
class Source:
    """The origin of the splits of a Dataset.

    Attributes:
        splits: for each split the object that was loaded, and the Origin of its items. A Dataset whose split is another object,
            such as one made by `dataclasses.replace`, has no known origin for it.
        arguments: the arguments of `load` that reproduce the Dataset ("warps" belongs to `training.build.build_dataset`); None if it
            was made in another way.
    """

    splits: Mapping[str, tuple[Any, Origin | None]]
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw values `train`, `validation` and `test`, each (N, *space.shape): integers for a discrete space,
    float32 or float64 for a continuous one. `labels` are the names of an item's positions, if the file has any: of a table they
    are its column names, in order. `notes` lists the loader's decisions about the file (delimiter, decimal
    mark, columns left out), one sentence each; `diffusional data` prints them. `source` records the origin of the items, which
    `origin` and `arguments` return.

    Raises DiffusionalError for a split that is empty or whose shape or type is not the space's; the values
    themselves are checked as they are encoded.

    >>> raw = torch.arange(6).reshape(3, 2)
    >>> data = Dataset("six", Discrete((2,), levels=6), raw[:1], raw[1:2], raw[2:])
    >>> data.encode("test")
    tensor([[0.6000, 1.0000]])
    """

    name: str
    space: Space
    train: Tensor | Items | Stream
    validation: Tensor | Items
    test: Tensor | Items
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        discrete = isinstance(self.space, Discrete)
        for split in SPLITS:
            raw: Items | Stream = getattr(self, split)
            shape = ("…", *raw.item_shape) if isinstance(raw, Stream) else tuple(raw.shape)
            if shape[1:] != self.space.shape:
                raise DiffusionalError(
                    f"{self.name}: the {split} split has shape {shape}; expected (N, "
                    f"{', '.join(map(str, self.space.shape))}), the space's items"
                )
            if shape[0] == 0:
                raise DiffusionalError(f"{self.name}: the {split} split is empty; give it at least one item")
            integer = not (raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool)
            if not (integer if discrete else raw.dtype in (torch.float32, torch.float64)):
                expected = "an integer type" if discrete else "torch.float32 or torch.float64"
                raise DiffusionalError(
                    f"{self.name}: the {split} split is of type {raw.dtype}; its "
                    f"{'discrete' if discrete else 'continuous'} space takes {expected}: convert it first"
                )

    def origin(self, split: str) -> Origin | None:
        """Return the file and row of each item of a split; None if they are not known (data made in Python, a stream).

        Raises DiffusionalError for an unknown split.

        >>> from diffusional import data
        >>> data.load("digits").origin("test").rows()[:2].tolist()
        [1350, 1351]
        """
        raw = self._raw(split)
        kept, origin = (None, None) if self.source is None else self.source.splits.get(split, (None, None))
        return origin if kept is raw else None

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """The arguments of `load` that reproduce this Dataset; None if there are none, or a split was replaced.

        >>> from diffusional import data
        >>> data.load("digits").arguments
        {'name_or_path': 'digits'}
        """
        if self.source is None or any(self.source.splits[split][0] is not self._raw(split) for split in SPLITS):
            return None
        return self.source.arguments

    def items(self, split: str) -> Tensor | Items:
        """The raw items of a split, to be read by rows. Raises DiffusionalError for an unknown split and a stream."""
        raw = self._raw(split)
        if isinstance(raw, Stream):
            raise DiffusionalError(
                f"{self.name}: {split} is a stream, whose items come one after another and have no rows; take them "
                "from dataset.train.items(epoch), or load the data without streaming"
            )
        return raw

    def tensor(self, split: str) -> Tensor:
        """The raw values of a split in memory, all of them. Raises as `items` does.

        >>> raw = torch.arange(6).reshape(3, 2)
        >>> Dataset("six", Discrete((2,), levels=6), raw, raw, raw).tensor("train") is raw
        True
        """
        raw = self.items(split)
        return raw if isinstance(raw, Tensor) else raw[:]

    def encode(self, split: str, rows: Tensor | slice | None = None) -> Tensor:
        """The model's values of a split, (N, *space.shape) float32, or those of its `rows` alone.

        Raises DiffusionalError for an unknown split, a stream, and what the space's `encode` refuses.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1], [0]])] * 3)
        >>> data.encode("test", torch.tensor([1]))
        tensor([[-1.]])
        >>> data.encode("training")
        Traceback (most recent call last):
            ...
        diffusional.errors.DiffusionalError: split 'training' came; expected one of train, validation, test
        """
        if rows is not None:
            return self._encoded(split, self.items(split)[rows])
        size, n = block_rows(self.space.shape), len(self.items(split))
        if n <= size:
            return self._encoded(split, self.tensor(split))
        # Filled block by block: the encoding works in float64, which for all items at once would take thrice the memory.
        out = torch.empty((n, *self.space.shape))
        for first, block in zip(range(0, n, size), self.blocks(split, size), strict=True):
            out[first : first + size] = block
        return out

    def blocks(self, split: str, size: int) -> Iterator[Tensor]:
        """The model's values of a split, `size` items at a time, in order. Raises as `encode` does.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1], [0], [1]])] * 3)
        >>> [len(block) for block in data.blocks("train", 2)]
        [2, 1]
        """
        for first, block in self._raw_blocks(split, size):
            yield self._encoded(split, block, first)

    def fingerprint(self, split: str, seen: Callable[[Tensor], None] | None = None) -> str:
        """SHA-256 (64 hexadecimal digits) of a split: its shape, its space, and its values in order.

        Values are hashed as little-endian int64 (discrete) or float64 (continuous), so that the same values
        stored in another type, or on disk, have the same fingerprint. For a stream, its identity is hashed instead of
        its length, and its first 256 items instead of all. `seen` is called with each block of raw items that is read.
        Raises DiffusionalError for an unknown split.

        >>> space, raw = Discrete((2,), levels=6), torch.arange(6).reshape(3, 2)
        >>> wide, narrow = Dataset("a", space, raw, raw, raw), Dataset("b", space, *[raw.to(torch.uint8)] * 3)
        >>> wide.fingerprint("train") == narrow.fingerprint("train")
        True
        """
        raw = self._raw(split)
        dtype = "<i8" if isinstance(self.space, Discrete) else "<f8"
        if isinstance(raw, Stream):
            what = {"stream": raw.identity, "space": self.space.to_dict()}
            blocks = iter([raw.head(_HEAD)])
        else:
            what = {"shape": list(raw.shape), "space": self.space.to_dict()}
            blocks = (block for _, block in self._raw_blocks(split, block_rows(self.space.shape)))
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        for block in blocks:
            digest.update(block.cpu().numpy().astype(dtype).tobytes())
            if seen is not None:
                seen(block)
        return digest.hexdigest()

    def _raw(self, split: str) -> Tensor | Items | Stream:
        if split not in SPLITS:
            raise DiffusionalError(f"split {split!r} came; expected one of {', '.join(SPLITS)}")
        return getattr(self, split)

    def _raw_blocks(self, split: str, size: int) -> Iterator[tuple[int, Tensor]]:
        """Blocks of `size` raw items, each with the row of its first."""
        if size < 1:
            raise DiffusionalError(f"blocks of {size} items came; give at least 1")
        raw = self.items(split)
        bytes_of_block = size * max(1, math.prod(raw.shape[1:]) * raw.dtype.itemsize)
        gathered = size * max(1, _GATHER // bytes_of_block)
        for start in range(0, len(raw), gathered):
            items = raw[start : start + gathered]
            for first in range(0, len(items), size):
                yield start + first, items[first : first + size]

    def _encoded(self, split: str, raw: Tensor, first: int = 0) -> Tensor:
        try:
            return self.space.encode(raw)
        except DiffusionalError as error:
            # The space counts from the first item that it was shown.
            after = f", counted from item {first}" if first else ""
            raise DiffusionalError(f"{self.name}, split {split}{after}: {error}") from error
