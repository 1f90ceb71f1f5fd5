"""Tables of real numbers, from .csv, .tsv and .parquet: items are rows, positions are columns, with their names.

Columns are chosen by name; by default all are, and all must be numbers. Nothing is filled in: a missing value is
refused with its place. Integers are numbers like any other, unless `levels` declares them to be levels.
"""

import codecs
import csv
import difflib
import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from diffusional.data.checks import to_dataset
from diffusional.data.dataset import SPLITS, Dataset
from diffusional.data.folders import Alias, walk
from diffusional.data.kinds import TABLES
from diffusional.data.naming import by_split
from diffusional.data.origin import Files
from diffusional.data.quoting import shortened
from diffusional.data.splits import Fractions, Part, random_rows
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

_SAMPLE = 2**16  # bytes of a file from which its delimiter is told
_BLOCK = 2**20  # bytes parsed at a time
_BUFFER = 2**16  # bytes of each column of a Parquet file read at a time


def load_table(
    path: Path, levels: int | None, fractions: Fractions, seed: int, columns: tuple[str, ...] | None
) -> Dataset:
    """The Dataset of a table, or of a folder of its parts, in the order of their names.

    Parts in folders train, validation, test, or named so (train-00000.parquet), are those splits; other tables
    are split at random. Raises DiffusionalError for what is no table of numbers, naming file, column and row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("x,y\\n" + "".join(f"{i},{i * i}\\n" for i in range(10)))
    ...     data = load_table(path, None, (0.8, 0.1, 0.1), 0, columns=("y",))
    >>> data.labels, data.train.shape
    (('y',), torch.Size([8, 1]))
    """
    return to_dataset(path.name, read_table(path, fractions, seed, columns), levels)


def read_table(path: Path, fractions: Fractions | None, seed: int, columns: tuple[str, ...] | None) -> dict[str, Part]:
    """The rows of a table, or of a folder of its parts, by split; with `fractions=None` only the splits that the folder itself has.

    Raises DiffusionalError as `load_table` does.
    """
    files = _parts(path) if path.is_dir() else {"train": [path]}
    ordered = [file for split in SPLITS for file in files.get(split, [])]
    for file in ordered:
        check_regular(file)
    chosen = _choose(ordered, columns)
    values, counts = _filled(ordered, chosen)
    if not len(values):
        raise DiffusionalError(f"{path} has a header and no rows; give data")
    ends = np.cumsum(
        [sum(n for file, n in zip(ordered, counts, strict=True) if file in files.get(split, [])) for split in SPLITS]
    )
    starts = [0, *ends[:-1]]
    given = {
        split: np.arange(start, end) for split, start, end in zip(SPLITS, starts, ends, strict=True) if split in files
    }
    rows = random_rows(given, str(path), fractions, seed)
    held = Files.of([str(file.relative_to(path)) for file in ordered], counts) if path.is_dir() else None
    return {split: Part(values, rows[split], str(path), chosen, held) for split in SPLITS if split in rows}


def column_names(path: Path) -> tuple[str, ...]:
    """The names of the columns of a table, or of the first of a folder of tables."""
    files = _parts(path) if path.is_dir() else {"train": [path]}
    return tuple(_columns(next(file for split in SPLITS for file in files.get(split, []))))


def _parts(folder: Path) -> dict[str, list[Path]]:
    """The tables of a folder, sorted, by split; all under "train" if none is named."""
    aliases: list[Alias] = []
    names = sorted((name for name in walk(folder, aliases) if name.lower().endswith(TABLES)), key=Path)
    aliases = [(link, first) for link, first in aliases if link.endswith("/") or link.lower().endswith(TABLES)]
    if not names:
        raise DiffusionalError(f"{folder} holds no tables; expected files {', '.join(TABLES)} in it or below")
    parts = by_split(names, str(folder), "tables", aliases, files=True)
    return {split: [folder / name for name in listed] for split, listed in parts.items()}


def _choose(files: list[Path], columns: tuple[str, ...] | None) -> tuple[str, ...]:
    """The columns to read, of the first file and all others."""
    kinds = _columns(files[0])
    chosen = columns or tuple(kinds)
    for name in chosen:
        if name not in kinds:
            close = difflib.get_close_matches(name, list(kinds), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {_listed(list(kinds))}"
            raise DiffusionalError(f"{files[0]} has no column {name!r}; {hint}")
    if len(set(chosen)) < len(chosen):
        raise DiffusionalError(f"columns {_listed(list(chosen))} came; name each once")
    words = [name for name in chosen if not kinds[name]]
    if words:
        numbers = [name for name in kinds if kinds[name]]
        are = "columns {} are" if len(words) > 1 else "column {} is"
        rest = f"choose {_option(numbers)}" if numbers else "no column is"
        raise DiffusionalError(f"{files[0]}: {are.format(_listed(words))} not numeric; {rest}")
    for file in files[1:]:
        other = _columns(file)
        if columns is None and set(other) != set(kinds):
            common = [name for name in kinds if kinds[name] and other.get(name)]
            raise DiffusionalError(
                f"{file} has columns {_listed(list(other))}, {files[0].name} has {_listed(list(kinds))}; parts must "
                f"have the same{f', or choose common ones: {_option(common)}' if common else ''}"
            )
        missing = [name for name in chosen if not other.get(name)]
        if missing:
            raise DiffusionalError(f"{file} has no column of numbers {missing[0]!r}, as {files[0].name} has")
    return chosen


def _columns(file: Path) -> dict[str, bool]:
    """The columns of a file, and which of them are numbers."""
    if _is_parquet(file):
        schema = _parquet(file).schema_arrow
    else:
        with _text(file, None) as reader:
            schema = reader.schema
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DiffusionalError(f"{file} has more than one column {_listed(twice)}; give each its own name")
    return {column.name: _numeric(column.type) for column in schema}


def _numeric(kind: pa.DataType) -> bool:
    # A column whose first rows are all empty is of type null: its gaps are named when it is read.
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    )


def _filled(files: list[Path], columns: tuple[str, ...]) -> tuple[np.ndarray, list[int]]:
    """The rows of all files in one array (N, D), float32 if all columns are so in all files; how many each file has."""
    narrow = all(_is_parquet(file) and _narrow(file, columns) for file in files)
    # Memory that is never written to takes none, so a guess that is too large costs nothing; one that is too small a copy.
    out = np.empty((sum(map(_expected, files)), len(columns)), np.float32 if narrow else np.float64)
    n, counts = 0, []
    for file in files:
        first = n
        for block in _read(file, columns):
            gaps = ~np.isfinite(block)
            if gaps.any():
                raise DiffusionalError(_gap(files, file, columns, n - first, block, gaps))
            if n + len(block) > len(out):
                out = np.concatenate([out[:n], np.empty((max(len(block), n // 2), len(columns)), out.dtype)])
            out[n : n + len(block)] = block
            n += len(block)
        counts.append(n - first)
    return out[:n], counts


def _gap(files: list[Path], file: Path, columns: tuple[str, ...], n: int, block: np.ndarray, gaps: np.ndarray) -> str:
    """What is to be said of the first gap of a block, before which there were n rows; the columns without are looked for."""
    i, j = (int(place) for place in np.argwhere(gaps)[0])
    value = "is missing (empty, NA or NaN)" if np.isnan(block[i, j]) else f"is {block[i, j]}"
    filled = np.ones(len(columns), bool)
    try:
        for other in files:
            for rows in _read(other, columns):
                filled &= np.isfinite(rows).all(0)
    except DiffusionalError:  # another fault further on: what is without gaps is not known
        filled[:] = False
    whole = [name for name, all_there in zip(columns, filled, strict=True) if all_there]
    rest = f", or choose the columns without gaps: {_option(whole)}" if whole else ""
    return (
        f"{file}: the value of column {columns[j]!r} in row {n + i + 1} (after the header) {value}; "
        f"mend or drop the row{rest}"
    )


def _expected(file: Path) -> int:
    """How many rows a file has, or may have, told by its beginning."""
    if _is_parquet(file):
        return _parquet(file).metadata.num_rows
    sample = _sample(file)
    lines = max(1, sample.count(b"\n"))
    size = file.stat().st_size * (5 if file.name.lower().endswith(".gz") else 1)
    return int(1.1 * size / (len(sample) / lines)) + 1


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(".parquet")


def _narrow(file: Path, columns: tuple[str, ...]) -> bool:
    schema = _parquet(file).schema_arrow
    return all(pa.types.is_float32(schema.field(name).type) for name in columns)


def _read(file: Path, columns: tuple[str, ...]) -> Iterator[np.ndarray]:
    """The rows of a file (n, D) float64, block by block; what is missing is NaN."""
    if _is_parquet(file):
        rows = max(1, _BLOCK // (8 * len(columns)))
        try:
            yield from _arrays(_parquet(file).iter_batches(rows, columns=list(columns)), columns)
        except (pa.ArrowException, OSError) as error:
            raise DiffusionalError(f"{file} could not be read ({shortened(str(error))}); write it again") from error
    else:
        with _text(file, columns) as reader:
            try:
                yield from _arrays(reader, columns)
            except pa.ArrowException as error:
                raise DiffusionalError(f"{file}: {_advice(str(error))}") from error


def _arrays(batches: Any, columns: tuple[str, ...]) -> Iterator[np.ndarray]:
    for batch in batches:
        out = np.empty((batch.num_rows, len(columns)))
        for j, name in enumerate(columns):
            column = batch.column(name)
            values = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
            out[:, j] = values.to_numpy(zero_copy_only=False)
        yield out


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        # Read through a buffer: otherwise a whole row group, which may be the whole file, is held beside the array.
        opened = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        _ = opened.schema_arrow.names  # decoded only when asked for
        return opened
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DiffusionalError(
            f"{file} could not be read as Parquet ({shortened(str(error))}); write it again"
        ) from error


def _text(file: Path, columns: tuple[str, ...] | None) -> pa_csv.CSVStreamingReader:
    """A reader of a text table: of `columns` as reals, or to see what its columns are."""
    delimiter, comma = _dialect(file)
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns or ()),
        column_types=dict.fromkeys(columns or (), pa.float64()),
        decimal_point="," if comma else ".",
    )
    try:
        return pa_csv.open_csv(
            file,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=convert,
        )
    except (pa.ArrowException, OSError) as error:
        raise DiffusionalError(f"{file}: {_advice(str(error))}") from error


def _dialect(file: Path) -> tuple[str, bool]:
    """The delimiter, and whether the decimal point is a comma, from the beginning of the file; checks the header."""
    sample = _sample(file)
    if not sample.strip():
        raise DiffusionalError(f"{file} is empty; give a table with a header")
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in sample:
        raise DiffusionalError(f"{file} is not UTF-8 text (it looks like UTF-16 or a binary file); save it as UTF-8")
    try:
        # The sample may end within a character, the file may not.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(sample, final=len(sample) < _SAMPLE)
    except UnicodeDecodeError as error:
        raise DiffusionalError(f"{file}: {_advice(f'UTF-8: {error}')}") from error
    if not text.strip():
        raise DiffusionalError(f"{file} is empty; give a table with a header")
    line = text.splitlines()[0]
    delimiter = "\t" if ".tsv" in file.name.lower() else next(d for d in ";\t," if d in line or d == ",")
    names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    comma = delimiter != "," and re.search(rf"(^|{delimiter})\"?-?\d+,\d+\"?({delimiter}|$)", text, re.MULTILINE)
    numbers = [_is_number(name, bool(comma)) for name in names]
    if all(numbers):
        raise DiffusionalError(
            f"{file} begins with numbers ({_listed(names)}) and has no header; write the columns' names as its first line"
        )
    if "" in (name.strip() for name in names):
        place = [name.strip() for name in names].index("") + 1
        raise DiffusionalError(
            f"{file}: column {place} has no name; name it, or drop it if it numbers the rows (pandas: index=False)"
        )
    return delimiter, bool(comma)


def _sample(file: Path) -> bytes:
    """The beginning of a text table, unpacked."""
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as opened:
            return opened.read(_SAMPLE)
    except (OSError, EOFError, zlib.error) as error:
        raise DiffusionalError(f"{file} could not be read ({error}); get it again") from error


def _is_number(text: str, comma: bool) -> bool:
    try:
        float(text.replace(",", ".") if comma else text)
    except ValueError:
        return False
    return True


def _advice(error: str) -> str:
    error = shortened(error)
    if "UTF8" in error or "UTF-8" in error:
        return f"it is not UTF-8 text ({error}); save it as UTF-8"
    if "Expected" in error and "columns" in error:
        return f"its rows differ in length ({error}); mend the row, or quote values that hold the delimiter"
    if "conversion error" in error:
        return f"a value is not a number ({error}); mend it, or leave its column out (--data.columns)"
    return f"it could not be read as a table ({error}); mend it"


def _option(names: list[str]) -> str:
    """A choice of columns as Python's option and the command line's."""
    typed = shlex.join(names)
    return f"columns={tuple(names)} (--columns {typed}; for train --data.columns {typed})"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
