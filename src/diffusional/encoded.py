"""Items that are read and encoded as they are needed, for data that are larger than memory."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.space import Space

# Items of which doubts about all of them are judged.
_LOOKED_AT = 4096


@runtime_checkable
class Raw(Protocol):
    """Raw values (N, *dims), such as a tensor or a memory-mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor: ...


class EncodedItems:
    """The encoded values of `raw` items of a space. Indexing by int64 rows or a slice reads and encodes these items only, (n, *space.shape)
    float32. Raises DiffusionalError, with the number of the item, for values that the space refuses.

    >>> from diffusional.space import Discrete
    >>> items = EncodedItems(torch.tensor([[0], [1], [1]]), Discrete((1,), levels=2))
    >>> len(items), items[torch.tensor([2, 0])].flatten().tolist(), [len(block) for block in items.split(2)]
    (3, [1.0, -1.0], [2, 1])
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, raw: Raw, space: Space) -> None:
        self.raw, self.space = raw, space

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *space.shape)."""
        return (len(self), *self.space.shape)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        raw = self.raw[rows]
        if not len(raw):
            return torch.empty(0, *self.space.shape)
        try:
            return self.space.encode(raw)
        except DiffusionalError as error:
            raise DiffusionalError(f"item {self._refused(rows, raw)}: {error}") from error

    def _refused(self, rows: Tensor | slice, raw: Tensor) -> int:
        """Return the number of the first of the items `raw` (n, *dims) of these rows that the space refuses."""
        place = 0
        for place in range(len(raw)):
            try:
                self.space.encode(raw[place : place + 1])
            except DiffusionalError:
                break
        return int(rows[place]) if isinstance(rows, Tensor) else range(len(self))[rows][place]

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield blocks of `size` items in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


# What an evaluation by visits reads its items from.
DataItems = Tensor | EncodedItems


def in_memory(data: DataItems) -> Tensor:
    """Return all items as a tensor (N, *dims).

    >>> in_memory(torch.zeros(2, 1)).shape
    torch.Size([2, 1])
    """
    return data if isinstance(data, Tensor) else torch.cat(list(data.split(_LOOKED_AT)))


def some_of(data: DataItems) -> Tensor:
    """Return a tensor of the items, or of at most 4,096 of them, evenly spread, if they are not in memory."""
    return data if isinstance(data, Tensor) else data[:: -(-len(data) // _LOOKED_AT)]


def check_encoded(space: Space, data: DataItems) -> None:
    """Raise DiffusionalError unless data are encoded items of a space. Items that are not in memory are checked when they are encoded.

    >>> from diffusional.space import Discrete
    >>> check_encoded(Discrete((1,), levels=2), EncodedItems(torch.tensor([[0]]), Discrete((1,), levels=3)))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected items of the model's space, Discrete(shape=(1,), levels=2, ...
    """
    if isinstance(data, EncodedItems):
        if data.space != space:
            raise DiffusionalError(f"expected items of the model's space, {space}, got items of {data.space}")
        if not len(data):
            raise DiffusionalError("expected at least one item, got none")
    else:
        space.check(data)
