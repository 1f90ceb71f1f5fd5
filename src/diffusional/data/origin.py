"""The origin of items: the file, and the row in it, of every item of a split."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Files:
    """The files that the rows of an array were read from, in order.

    Attributes:
        names: F names, relative to the folder.
        starts: (F,) int64, ascending: the first row of each file in the array.
    """

    names: tuple[str, ...]
    starts: np.ndarray

    @staticmethod
    def of(names: list[str], counts: list[int]) -> "Files":
        """Make the record of files with `counts` rows each, one after the other.

        >>> Files.of(["a.csv", "b.csv"], [3, 2]).starts.tolist()
        [0, 3]
        """
        return Files(tuple(names), np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Origin:
    """The file, and the row in that file, of each item of a split.

    Attributes:
        name: the file that all items are from; used where `files` is None.
        where: for each item its row in the array (N, …) that was read; or a slice of the array.
        length: N, the number of rows of that array.
        files: the files that the array was read from, if there are several.
        further: columns by name, each (N,), of the rows of the array: of a text, the numbers of tokens, characters and bytes.

    >>> origin = Origin("folder", np.array([4, 0]), 5, Files.of(["a.csv", "b.csv"], [3, 2]))
    >>> origin.rows().tolist(), origin.names().tolist()
    ([1, 0], ['b.csv', 'a.csv'])
    """

    name: str
    where: np.ndarray | slice
    length: int
    files: Files | None = None
    further: Mapping[str, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def unknown(n: int) -> "Origin":
        """Return the origin of n items without a file, such as warped copies: an empty name, and row −1.

        >>> Origin.unknown(2).rows().tolist()
        [-1, -1]
        """
        return Origin("", np.full(n, -1), 0)

    def __len__(self) -> int:
        return len(self._range()) if isinstance(self.where, slice) else len(self.where)

    def rows(self) -> np.ndarray:
        """Return the row of each item in its file, int64 (n,), from 0; a table's header is not counted, and an image is row 0."""
        rows = self._array_rows()
        return rows if self.files is None else rows - self.files.starts[self._files(self.files, rows)]

    def names(self) -> np.ndarray:
        """Return the name of each item's file, (n,) strings."""
        if self.files is None:
            return np.full(len(self), self.name)
        return np.array(self.files.names)[self._files(self.files, self._array_rows())]

    def column(self, name: str) -> np.ndarray:
        """Return one of the further columns, (n,)."""
        return self.further[name][self._array_rows()]

    def place(self, item: int) -> str:
        """Return the place of one item, for messages.

        >>> Origin("a.npy", slice(2, 5), 9).place(1)
        'a.npy, row 3'
        """
        row = self._range()[item] if isinstance(self.where, slice) else int(self.where[item])
        if self.files is None:
            return f"{self.name}, row {row}"
        k = int(self._files(self.files, np.array([row]))[0])
        single = len(self.files.names) == self.length
        return self.files.names[k] if single else f"{self.files.names[k]}, row {row - int(self.files.starts[k])}"

    def _range(self) -> range:
        assert isinstance(self.where, slice)
        return range(*self.where.indices(self.length))

    def _array_rows(self) -> np.ndarray:
        if isinstance(self.where, slice):
            span = self._range()
            return np.arange(span.start, span.stop, span.step)
        return self.where.astype(np.int64)

    @staticmethod
    def _files(files: Files, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(files.starts, rows, side="right") - 1


def joined(origins: list[tuple[str, Origin]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns "source", "row" and "split" of the items of (split, origin) pairs, one pair after the other, and the further columns
    that all of them have.

    >>> dict(joined([("test", Origin("a.npy", slice(0, 2), 2))]))["row"].tolist()
    [0, 1]
    """
    yield "source", np.concatenate([origin.names() for _, origin in origins])
    yield "row", np.concatenate([origin.rows() for _, origin in origins])
    yield "split", np.concatenate([np.full(len(origin), split) for split, origin in origins])
    for name in origins[0][1].further if origins else ():
        if all(name in origin.further for _, origin in origins):
            yield name, np.concatenate([origin.column(name) for _, origin in origins])
