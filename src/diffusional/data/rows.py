"""A split as a view: rows of an array, in some order. Nothing is copied until items are read.

The array may be a memory-mapped file that is larger than memory; it is then pickled by its name.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError

Where = np.ndarray | slice


def integers(values: np.ndarray) -> np.ndarray:
    """Return a copy with bytes unchanged and other types as int64, since torch's wider unsigned integers lack most operations."""
    return values.astype(np.uint8 if values.dtype.kind == "b" or values.dtype == np.uint8 else np.int64)


def reals(values: np.ndarray) -> np.ndarray:
    """Return a copy in float32, or in float64 if the values are wider."""
    return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)


@dataclass(frozen=True, eq=False)
class Rows:
    """Items array[rows[i]], passed through `convert`, which copies: `integers` or `reals`.

    >>> items = Rows(np.arange(10.0)[:, None], np.array([7, 2, 5]), reals)
    >>> items.shape, items.dtype
    ((3, 1), torch.float64)
    >>> items[torch.tensor([2, 0])].flatten().tolist(), items[1:].flatten().tolist()
    ([5.0, 7.0], [2.0, 5.0])
    """

    array: np.ndarray
    rows: Where
    convert: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *dims)."""
        return (len(self), *self.array.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The type after `convert`."""
        return torch.from_numpy(self.convert(self.array[:0])).dtype

    @property
    def mapped(self) -> bool:
        """Whether the array is a file, read as needed."""
        return _mapping(self.array) is not None

    def __len__(self) -> int:
        return len(self._range()) if isinstance(self.rows, slice) else len(self.rows)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """Return the items of rows int64 (n,), or of a slice: (n, *dims), as a copy."""
        where = self._where(rows)
        if isinstance(where, np.ndarray) and self.mapped:
            # In the order of the file, so that it is read forwards, and a page with several rows only once.
            order = np.argsort(where, kind="stable")
            values = np.empty((len(where), *self.array.shape[1:]), self.array.dtype)
            values[order] = self.array[where[order]]
            return torch.from_numpy(np.ascontiguousarray(self.convert(values)))
        return torch.from_numpy(np.ascontiguousarray(self.convert(self.array[where])))

    def _range(self) -> range:
        assert isinstance(self.rows, slice)
        return range(*self.rows.indices(len(self.array)))

    def _where(self, rows: Tensor | slice) -> Where:
        if isinstance(rows, Tensor):
            if rows.dtype != torch.int64:
                raise DiffusionalError(f"expected rows to be int64, got {rows.dtype} (use .nonzero()[:, 0] of a mask)")
            chosen = rows.cpu().numpy()
            # np.arange of the slice would need one number for every item.
            if isinstance(self.rows, slice):
                chosen = np.where(chosen < 0, chosen + len(self), chosen)
                if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
                    raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} items")
                whole = self._range()
                return whole.start + whole.step * chosen
            return self.rows[chosen]
        if isinstance(self.rows, slice):
            part = self._range()[rows]
            # A slice that runs down to row 0 ends at −1, which as a stop would mean the last row.
            return slice(part.start, part.stop if part.stop >= 0 else None, part.step) if part else slice(0, 0)
        return self.rows[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        found = _mapping(self.array)
        if found is None:
            return Rows, (self.array, self.rows, self.convert)
        # NumPy would pickle the values; the name of the file and the position of the view in it are enough.
        array = self.array
        place = array.__array_interface__["data"][0] - found.__array_interface__["data"][0] + found.offset
        layout = (array.dtype, array.shape, array.strides)
        return _reopened, (Path(str(found.filename)), place, layout, self.rows, self.convert)


def _mapping(array: np.ndarray) -> np.memmap | None:
    """Return the mapped file under an array or view, if there is one."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            return base
        base = getattr(base, "base", None)
    return None


def _reopened(path: Path, place: int, layout: tuple[Any, ...], rows: Where, convert: Any) -> Rows:
    dtype, shape, strides = layout
    if not path.exists():
        raise DiffusionalError(f"{path} does not exist any more; keep data files while they are in use")
    file = np.memmap(path, np.uint8, mode="r")
    return Rows(np.ndarray(shape, dtype, file, place, strides), rows, convert)
