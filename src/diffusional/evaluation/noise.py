"""Evaluation noise that depends on the item and nothing else.

An item's score must not change with its batch-mates, the batch size, the order, or the subset that it is scored in. So its
noise comes from a counter-based generator (Philox; Salmon et al. 2011) keyed by a hash of the seed, the item's bytes, the
bytes of its condition if there is one, the number of equal items before it, and the draw.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, row_digests
from diffusional.encoded import DataItems

# Items whose bytes are in memory at once, beside the data.
_BLOCK = 4096
# Bytes of the digests that order the items.
_ORDER = 16


class Keys(Sequence[bytes]):
    """The keys of N items, 32 bytes each, in one array.

    >>> keys = Keys(np.zeros((2, 32), dtype=np.uint8))
    >>> len(keys), keys[1] == bytes(32)
    (2, True)
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> "Keys": ...
    def __getitem__(self, index: int | slice) -> "bytes | Keys":
        return Keys(self.array[index]) if isinstance(index, slice) else self.array[index].tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def order(self) -> Tensor:
        """Return a random order (N,) of the items, which depends on their keys only."""
        tags = _digests((key + b"order" for key in self), len(self), 64)[:, :_ORDER]
        return torch.from_numpy(np.argsort(_sortable(tags), kind="stable"))


def item_keys(
    x: DataItems, seed: int, condition: Condition | None = None, seen: Callable[[Tensor], Tensor] | None = None
) -> Keys:
    """Return a 32-byte key for every item of x (N, *dims), from the seed, the item's float64 bytes and its occurrence in x.

    With a `condition` (N, …) the key depends on its row as well, and items count as the same only if their conditions are
    the same too. If `seen` is given, the bytes are those of `seen(rows)` for the rows (n, *dims) of a block of items. Raises
    DiffusionalError unless the condition has a row for every item.

    >>> import torch
    >>> keys = item_keys(torch.tensor([[0.0], [1.0], [0.0]]), seed=0)
    >>> keys[0] == keys[2], keys[1] == item_keys(torch.tensor([[1.0]]), seed=0)[0]
    (False, True)
    """
    check_condition(condition, len(x))
    given = None if condition is None else row_digests(condition)

    def contents() -> Iterator[bytes]:
        for rows in x.split(_BLOCK) if len(x) else ():
            values = (rows if seen is None else seen(rows)).detach().cpu().double().flatten(1).numpy()
            yield from (row.tobytes() for row in np.ascontiguousarray(values.astype("<f8", copy=False)))

    content = _digests(contents(), len(x), 32)
    if given is not None:
        content = _digests((row.tobytes() + one for row, one in zip(content, given, strict=True)), len(x), 32)
    occurrence = _occurrences(content).tolist()
    tagged = (row.tobytes() + f"{seed}:{k}".encode() for row, k in zip(content, occurrence, strict=True))
    return Keys(_digests(tagged, len(x), 32))


def _digests(texts: Iterable[bytes], count: int, size: int) -> np.ndarray:
    """Return the BLAKE2b digests (count, size) of texts, uint8."""
    out, each = np.empty((count, size), dtype=np.uint8), iter(texts)
    for start in range(0, count, _BLOCK):
        some = b"".join(hashlib.blake2b(text, digest_size=size).digest() for text in islice(each, _BLOCK))
        out[start : start + _BLOCK] = np.frombuffer(some, dtype=np.uint8).reshape(-1, size)
    return out


def _sortable(digests: np.ndarray) -> np.ndarray:
    """Return digests (N, size) as N strings, which numpy sorts by their bytes."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}")[:, 0]


def _occurrences(digests: np.ndarray) -> np.ndarray:
    """Return the number of equal digests before each (N,).

    >>> _occurrences(np.array([[1], [2], [1], [1]], dtype=np.uint8))
    array([0, 0, 1, 2])
    """
    texts = _sortable(digests)
    order = np.argsort(texts, kind="stable")
    texts = texts[order]
    starts = np.concatenate([[True], texts[1:] != texts[:-1]])[: len(texts)]
    position = np.arange(len(texts))
    out = np.empty_like(position)
    out[order] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return out


def stream(key: bytes, draw: int, purpose: bytes = b"") -> np.random.Generator:
    """Return the generator of one item's `draw`; the streams of different purposes are independent.

    >>> float(stream(b"item", 0).standard_normal()) == float(stream(b"item", 0).standard_normal())
    True
    """
    digest = hashlib.blake2b(key + draw.to_bytes(8, "little") + purpose, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(streams: list[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise (len(streams), *shape); in float32 for every type of model, so that an item always gets the same noise.

    >>> normal([stream(b"item", 0)], (2, 3)).shape
    torch.Size([1, 2, 3])
    """
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in streams]))
