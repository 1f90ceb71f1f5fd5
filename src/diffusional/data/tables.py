"""Tables of real numbers, from .csv, .tsv and .parquet: items are rows, positions are columns, with their names.

Columns are chosen by name; by default all are, and all must be numbers. Nothing is filled in, dropped or guessed: a missing or ambiguous
value is refused with its column and row. Integers are numbers like any other, unless `levels` declares them to be levels. Booleans are
0 and 1: a table of booleans only has two levels, as arrays of booleans have. Decisions about a file are listed in the notes of the Dataset.
"""

import difflib
import shlex
from pathlib import Path

import numpy as np

from diffusional.data.checks import to_dataset
from diffusional.data.classes import Labels, check_length
from diffusional.data.dataset import SPLITS, Dataset
from diffusional.data.delimited import TextTable
from diffusional.data.excerpt import listed
from diffusional.data.folders import Alias, walk
from diffusional.data.formats import TABLES, given_name
from diffusional.data.given import Given, Wanted
from diffusional.data.naming import by_split, decisions
from diffusional.data.origin import Files
from diffusional.data.parquet import ParquetTable
from diffusional.data.splits import Fractions, Part, random_rows
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

Table = ParquetTable | TextTable

_TYPED = 20  # the most columns that an error lists to choose from; of more it states the number


def load_table(
    path: Path,
    levels: int | None,
    fractions: Fractions,
    seed: int,
    columns: tuple[str, ...] | None,
    decimal: str | None = None,
    condition: str | None = None,
) -> Dataset:
    """Load a table, or a folder of its parts in the order of their names.

    Parts in folders train, validation, test, or named so (train-00000.parquet), are those splits; other tables
    are split at random. The unnamed index that pandas writes beside the columns (`__index_level_0__`) is left out unless it is
    chosen. `decimal` is "." or ",", for text whose values do not show which of the two is the decimal mark. `condition` is the name of a
    column that holds the class of each row, as text or whole numbers, or names columns of texts, numbers or tokens (`data.given`); they are
    no columns of the items.

    Raises DiffusionalError for anything but a table of numbers, naming file, column and row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("x,y\\n" + "".join(f"{i},{i * i}\\n" for i in range(10)))
    ...     data = load_table(path, None, (0.8, 0.1, 0.1), 0, columns=("y",))
    >>> data.labels, data.train.shape, data.notes
    (('y',), torch.Size([8, 1]), ('the delimiter is a comma, the decimal mark is a point',))
    """
    return to_dataset(given_name(path), read_table(path, fractions, seed, columns, decimal, condition), levels)


def read_table(
    path: Path,
    fractions: Fractions | None,
    seed: int,
    columns: tuple[str, ...] | None,
    decimal: str | None = None,
    condition: str | None = None,
) -> dict[str, Part]:
    """Read the rows of a table, or of a folder of its parts, by split; with `fractions=None` only the folder's own splits.

    Raises DiffusionalError as `load_table` does.
    """
    if decimal not in (None, ".", ","):
        raise DiffusionalError(f"decimal must be '.' or ',', got {decimal!r}")
    files = _parts(path) if path.is_dir() else {"train": [path]}
    tables = [_opened(file, decimal) for split in SPLITS for file in files.get(split, [])]
    if decimal is not None and not any(isinstance(table, TextTable) for table in tables):
        raise DiffusionalError(f"decimal={decimal!r} is for text, but {path} is Parquet; leave decimal out")
    beside = _condition_columns(tables[0], condition)
    chosen = _choose(tables, columns, beside)
    values, counts = _filled(tables, chosen)
    targets = None if condition is None else _targets(tables, condition, beside, str(path), len(values))
    if not len(values):
        raise DiffusionalError(f"{path} has a header and no rows; give data")
    ends = np.cumsum(
        [
            sum(n for table, n in zip(tables, counts, strict=True) if table.file in files.get(split, []))
            for split in SPLITS
        ]
    )
    starts = [0, *ends[:-1]]
    given = {
        split: np.arange(start, end) for split, start, end in zip(SPLITS, starts, ends, strict=True) if split in files
    }
    rows = random_rows(given, str(path), fractions, seed)
    origin = Files.of([str(table.file.relative_to(path)) for table in tables], counts) if path.is_dir() else None
    notes = (*_grouped(tables, chosen), *_counters(values, chosen), *_mixed(tables, values, chosen))
    if path.is_dir():
        named = {split: [str(file.relative_to(path)) for file in listed] for split, listed in files.items()}
        notes = (*decisions(named, []), *notes)
    return {
        split: Part(values, rows[split], str(path), chosen, origin, notes, targets) for split in SPLITS if split in rows
    }


def _condition_columns(table: Table, condition: str | None) -> tuple[str, ...]:
    """Return the columns that hold a condition; () without one."""
    if condition is None:
        return ()
    wanted = Wanted.of(condition)
    return wanted.names if wanted.kind == "labels" else wanted.among(list(table.columns), str(table.file))


def _targets(tables: list[Table], condition: str, names: tuple[str, ...], path: str, items: int) -> Labels | Given:
    """Return the labels, texts, numbers or tokens of the rows of all tables."""
    kind = Wanted.of(condition).kind
    where = f"{path}, column{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
    if kind == "numbers":
        words = next((name for name in names for table in tables if not table.columns[name]), None)
        if words is not None:
            raise DiffusionalError(
                f"{path}: column {words!r} is not numeric; expected numbers for the condition {condition!r}"
            )
        values = np.concatenate([block for table in tables for block in table.read(names)])
        return Given.numbers(values, where).check_length(items, where)
    if kind == "tokens" and any(isinstance(table, TextTable) for table in tables):
        raise DiffusionalError(
            f"{path}: expected Parquet for the condition {condition!r}, lists of vectors, got text; save the table as .parquet"
        )
    held = [one for table in tables for one in table.values(names[0])]
    if kind == "labels":
        return check_length(Labels.of(held, where), items, where)
    found = Given.texts(held, where) if kind == "texts" else Given.lists(held, where)
    return found.check_length(items, where)


def column_names(path: Path, condition: str | None = None) -> tuple[str, ...]:
    """Return the columns that are read by default from a table, or from the first table of a folder."""
    files = _parts(path) if path.is_dir() else {"train": [path]}
    table = _opened(next(file for split in SPLITS for file in files.get(split, [])))
    return tuple(_defaults(table, _condition_columns(table, condition)))


def _opened(file: Path, decimal: str | None = None) -> Table:
    check_regular(file)
    return ParquetTable(file) if file.name.lower().endswith(".parquet") else TextTable(file, decimal)


def _defaults(table: Table, condition: tuple[str, ...] = ()) -> dict[str, bool]:
    """Return the columns that are read unless some are chosen, and whether each holds numbers; not those of the condition."""
    left = (*table.index, *condition)
    return {name: numeric for name, numeric in table.columns.items() if name not in left}


def _grouped(tables: list[Table], chosen: tuple[str, ...]) -> list[str]:
    """Return the notes of all parts; a note that does not apply to all of them begins with the name of the first that it applies to."""
    places: dict[str, list[str]] = {}
    for table in tables:
        for note in table.notes(chosen):
            places.setdefault(note, []).append(table.file.name)
    return [
        note
        if len(names) == len(tables)
        else f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}"
        for note, names in places.items()
    ]


def _counters(values: np.ndarray, chosen: tuple[str, ...]) -> list[str]:
    """Return a note on columns that count the rows, if there are any."""
    n = len(values)
    if n < 3:
        return []
    counters = [
        name
        for j, name in enumerate(chosen)
        if values.dtype != bool
        and values[2, j] - values[1, j] == values[1, j] - values[0, j] == 1
        and float(values[0, j]).is_integer()
        and (values[:, j] == values[0, j] + np.arange(n)).all()
    ]
    are = "column {} counts" if len(counters) == 1 else "columns {} count"
    return [f"{are.format(listed(counters))} the rows; leave out an index that is not a variable"] if counters else []


def _mixed(tables: list[Table], values: np.ndarray, chosen: tuple[str, ...]) -> list[str]:
    """Return a note on columns of booleans among numbers, if there are any."""
    held = {name for table in tables for name in table.booleans(chosen)}
    names = [name for name in chosen if name in held]
    if not names or values.dtype == bool:
        return []
    return [f"{'columns' if len(names) > 1 else 'column'} {listed(names)} of booleans read as 0 and 1"]


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Return the tables of a folder, sorted, by split; all under "train" if none is named."""
    aliases: list[Alias] = []
    names = sorted((name for name in walk(folder, aliases) if name.lower().endswith(TABLES)), key=Path)
    aliases = [(link, first) for link, first in aliases if link.endswith("/") or link.lower().endswith(TABLES)]
    if not names:
        raise DiffusionalError(f"{folder} holds no tables; expected files {', '.join(TABLES)} in it or below")
    parts = by_split(names, str(folder), "tables", aliases, files=True)
    return {split: [folder / name for name in held] for split, held in parts.items()}


def _choose(tables: list[Table], columns: tuple[str, ...] | None, condition: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the columns to read from all tables. Raises DiffusionalError unless every table has them."""
    first, kinds = tables[0], tables[0].columns
    if columns is not None and not columns:
        raise DiffusionalError("columns must have at least one name, got none; leave columns out to read all")
    for name in condition:
        if name in (columns or ()):
            raise DiffusionalError(f"condition={name!r} is also among the columns; leave it out of the columns")
        for table in tables:
            if name not in table.columns:
                close = difflib.get_close_matches(name, list(table.columns), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {listed(list(table.columns))}"
                raise DiffusionalError(f"{table.file} has no column {name!r} for the condition; {hint}")
    chosen = columns or tuple(_defaults(first, condition))
    for table in tables:
        if isinstance(table, TextTable):
            table.check_choice(chosen=columns is not None)
    for name in chosen:
        if name not in kinds:
            close = difflib.get_close_matches(name, list(kinds), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {listed(list(kinds))}"
            raise DiffusionalError(f"{first.file} has no column {name!r}; {hint}")
    if len(set(chosen)) < len(chosen):
        raise DiffusionalError(f"columns {listed(list(chosen))} were given; name each once")
    words = [name for name in chosen if not kinds[name]]
    if words:
        numbers = [
            name for name, numeric in _defaults(first, condition).items() if numeric and name not in first.named_index
        ]
        are = "columns {} are" if len(words) > 1 else "column {} is"
        rest = f"choose {_option(numbers)}" if numbers else "no column is"
        seen = first.words(words[0])
        raise DiffusionalError(
            f"{first.file}: {are.format(listed(words))} not numeric; {rest}{f' (in {words[0]!r} {seen})' if seen else ''}"
        )
    index = [name for name in chosen if columns is None and name in first.named_index]
    if index:
        others = [name for name in chosen if name not in index]
        raise DiffusionalError(
            f"{first.file}: {listed(index)} is the index of the DataFrame that was saved, not one of its columns; choose columns by name"
            f"{f', such as {_option(others)}' if others else ''}"
        )
    if not chosen:
        raise DiffusionalError(
            f"{first.file} has no columns besides the index of a DataFrame; choose {_option(list(kinds))}"
        )
    for table in tables[1:]:
        other = _defaults(table, condition)
        if columns is None and other.keys() != _defaults(first, condition).keys():
            common = [name for name in kinds if kinds[name] and other.get(name)]
            raise DiffusionalError(
                f"{table.file} has columns {listed(list(other))}, {first.file.name} has {listed(list(chosen))}; parts must "
                f"have the same{f', or choose common ones: {_option(common)}' if common else ''}"
            )
        missing = [name for name in chosen if not table.columns.get(name)]
        if missing:
            raise DiffusionalError(f"{table.file} has no column of numbers {missing[0]!r}, as {first.file.name} has")
    return chosen


def _filled(tables: list[Table], columns: tuple[str, ...]) -> tuple[np.ndarray, list[int]]:
    """Read the rows of all tables into one array (N, D), of booleans or float32 if all their columns are, else float64; also returns the
    number of rows of each.
    """
    narrow = all(table.is_float32(columns) for table in tables)
    # Memory that is never written costs nothing, so that an estimate may be too large; one that is too small costs a copy.
    out = np.empty((sum(table.expected for table in tables), len(columns)), np.float32 if narrow else np.float64)
    n, counts = 0, []
    for table in tables:
        first = n
        for block in table.read(columns):
            gaps = ~np.isfinite(block)
            if gaps.any():
                raise DiffusionalError(_gap(tables, table, columns, n - first, block, gaps))
            if n + len(block) > len(out):
                out = np.concatenate([out[:n], np.empty((max(len(block), n // 2), len(columns)), out.dtype)])
            out[n : n + len(block)] = block
            n += len(block)
        counts.append(n - first)
    boolean = all(len(table.booleans(columns)) == len(columns) for table in tables)
    return out[:n].astype(bool) if boolean else out[:n], counts


def _gap(
    tables: list[Table], table: Table, columns: tuple[str, ...], n: int, block: np.ndarray, gaps: np.ndarray
) -> str:
    """Return the error for the first gap of a block after n rows; it lists the columns without gaps."""
    i, j = (int(place) for place in np.argwhere(gaps)[0])
    value = "is missing (empty, NA or NaN)" if np.isnan(block[i, j]) else f"is {block[i, j]}"
    filled = np.ones(len(columns), bool)
    try:
        for other in tables:
            for rows in other.read(columns):
                filled &= np.isfinite(rows).all(0)
    except DiffusionalError:  # there is another fault further on, and the columns with gaps are not known
        filled[:] = False
    whole = [name for name, all_there in zip(columns, filled, strict=True) if all_there]
    rest = f", or choose the columns without gaps: {_option(whole)}" if whole else ""
    return (
        f"{table.file}: the value of column {columns[j]!r} in row {n + i + 1} (after the header) {value}; "
        f"correct or drop the row{rest}"
    )


def _option(names: list[str]) -> str:
    """Return a choice of columns as the option of Python and of the command line; for many columns, their number."""
    if len(names) > _TYPED:
        return f"{len(names)} columns, {listed(names)}: columns=… (--columns …; for train --data.columns …)"
    typed = shlex.join(names)
    return f"columns={tuple(names)} (--columns {typed}; for train --data.columns {typed})"
