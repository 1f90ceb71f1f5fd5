"""One Parquet file as a table of numbers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.excerpt import listed, shortened
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for

with needed_for("tables"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

_BLOCK = 2**20  # bytes of values read at a time
_ROWS = 256  # the least number of rows read at a time, since each read has a cost for every column
_BUFFER = 2**16  # bytes of each column read from the file at a time
EXACT = 2**53  # float64 holds every integer up to this magnitude
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


class ParquetTable:
    """The columns of a Parquet file, and its rows as numbers.

    Attributes:
        columns: for the name of each column, in order, whether it holds numbers.
        index: columns that pandas wrote for the unnamed index of a DataFrame; they are not read unless chosen by name.
        named_index: columns that are the named index of a DataFrame, according to its metadata.

    Raises DiffusionalError for a file that is not Parquet, and for one without columns or with two of the same name.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        schema = self._open().schema_arrow
        names: list[str] = schema.names
        check_distinct(names, file)
        self._types: dict[str, Any] = dict(zip(names, schema.types, strict=True))
        self.columns = {name: is_numeric(kind) for name, kind in self._types.items()}
        self.index = tuple(name for name in names if is_unnamed_index(name))
        stored = _stored_index(schema.metadata)
        self.named_index = tuple(name for name in names if name in stored and name not in self.index)

    @property
    def expected(self) -> int:
        """The number of rows."""
        return self._open().metadata.num_rows

    def is_float32(self, columns: tuple[str, ...]) -> bool:
        """Return whether all of these columns are float32."""
        return all(pa.types.is_float32(self._types[name]) for name in columns)

    def booleans(self, columns: tuple[str, ...]) -> list[str]:
        """Return those of these columns that hold booleans, which are read as 0 and 1."""
        return [name for name in columns if pa.types.is_boolean(self._types[name])]

    def words(self, name: str) -> str:
        """Return the type of a column that does not hold numbers, for errors."""
        return f"it is of type {self._types[name]}"

    def notes(self, columns: tuple[str, ...]) -> Iterator[str]:
        """Yield the decisions that were made about the file when these columns were read."""
        left = [name for name in self.index if name not in columns]
        if left:
            yield f"left out {listed(left)}, the index of a DataFrame; choose it by name to use it"

    def read(self, columns: tuple[str, ...]) -> Iterator[np.ndarray]:
        """Yield the rows (n, D) of these columns, block by block, as float64; missing values are NaN."""
        rows = max(_ROWS, _BLOCK // (8 * len(columns)))
        first = 0
        try:
            for batch in self._open().iter_batches(rows, columns=list(columns)):
                held = dict(zip(batch.schema.names, batch.columns, strict=True))
                out = np.empty((batch.num_rows, len(columns)))
                for j, name in enumerate(columns):
                    out[:, j] = self._numbers(name, held[name], first)
                first += batch.num_rows
                yield out
        except (pa.ArrowException, OSError) as error:
            raise DiffusionalError(
                f"{self.file} could not be read ({shortened(str(error))}); write it again"
            ) from error

    def values(self, name: str) -> list[Any]:
        """Return the values of one column as they are stored, None where one is missing."""
        held: list[Any] = []
        try:
            for batch in self._open().iter_batches(_BLOCK // 8, columns=[name]):
                held += batch.columns[0].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DiffusionalError(
                f"{self.file} could not be read ({shortened(str(error))}); write it again"
            ) from error
        return held

    def _numbers(self, name: str, column: Any, first: int) -> np.ndarray:
        if pa.types.is_decimal(column.type) or pa.types.is_boolean(column.type):
            column = column.cast(pa.float64())
        out = column.to_numpy(zero_copy_only=False)
        if pa.types.is_integer(column.type) and column.type.bit_width == 64 and len(column) > column.null_count:
            span = pc.call_function("min_max", [column]).as_py()
            if span["max"] > EXACT or span["min"] < -EXACT:
                for row, value in enumerate(column.to_pylist(), first + 1):
                    if value is not None and int(float(value)) != value:
                        raise DiffusionalError(f"{self.file}: {not_exact(name, row, value)}")
        return out

    def _open(self) -> pq.ParquetFile:
        try:
            # Read through a buffer: otherwise a whole row group, which may be the whole file, is in memory besides the array.
            opened = pq.ParquetFile(self.file, buffer_size=_BUFFER, pre_buffer=False)
            _ = opened.schema_arrow.names  # decoded only when asked for
            return opened
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DiffusionalError(
                f"{self.file} could not be read as Parquet ({shortened(str(error))}); write it again"
            ) from error


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are read as numbers; booleans are, as 0 and 1.

    A column without any value is of type null: it counts as numbers, and its gaps are reported when it is read.

    >>> is_numeric(pa.int8()), is_numeric(pa.bool_()), is_numeric(pa.string())
    (True, True, False)
    """
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    return any(test(kind) for test in tests)


def is_unnamed_index(name: str) -> bool:
    """Return whether pandas gives this name to the unnamed index of a DataFrame when it writes the index as a column.

    >>> is_unnamed_index("__index_level_0__"), is_unnamed_index("index")
    (True, False)
    """
    return _UNNAMED_INDEX.fullmatch(name) is not None


def check_distinct(names: list[str], file: Path) -> None:
    """Raise DiffusionalError for a table without columns, and for one with two columns of the same name."""
    if not names:
        raise DiffusionalError(f"{file} has no columns; expected a table with at least one column of numbers")
    seen: set[str] = set()
    twice = dict.fromkeys(name for name in names if name in seen or seen.add(name))
    if twice:
        raise DiffusionalError(f"{file} has more than one column {listed(sorted(twice))}; give each its own name")


def not_exact(name: str, row: int, value: int) -> str:
    """Return the error for an integer that float64 cannot represent.

    >>> not_exact("id", 3, 2**53 + 1)
    "the value of column 'id' in row 3 is 9007199254740993, which float64 would change to 9007199254740992; leave the ..."
    """
    return (
        f"the value of column {name!r} in row {row} is {value}, which float64 would change to {int(float(value))}; leave the "
        "column out if it is an identifier, or write it rounded, with an exponent"
    )


def _stored_index(metadata: dict[bytes, bytes] | None) -> set[str]:
    """Return the columns that pandas metadata declare as the index; empty without such metadata."""
    try:
        record = json.loads((metadata or {}).get(b"pandas", b"{}"))
        return {name for name in record.get("index_columns", []) if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError):  # metadata of another writer
        return set()
