"""One delimited text file (.csv, .tsv, perhaps .gz) as a table of numbers.

A text file does not specify how to read it. The following is decided here, and only if there is one possible reading:

- the delimiter, which must give the header and the rows the same number of values;
- the header, which must not look like a row of numbers;
- the decimal mark. "1,011" may mean 1.011 or 1011; it is read only if another value of the columns, such as "0,5", shows that commas are
  decimal marks, or if `decimal` declares it. Separators of thousands are refused.

Every value that cannot be read as a number is refused with its column and row.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.excerpt import listed, shortened
from diffusional.data.parquet import EXACT, check_distinct, is_numeric, is_unnamed_index, not_exact
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for

with needed_for("tables"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv

_BLOCK = 2**20  # bytes parsed at a time
_LINES = 64  # but at least about this many lines: each block has a cost for every column
_HEADER_LINES = 64  # the most lines of a header, whose names may hold line ends if they are quoted
_SAMPLE = 2**16  # bytes after the header by which the delimiter is decided
_LINE = 2**28  # bytes of the longest line that is accepted
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_MISSING = frozenset(pa_csv.ConvertOptions().null_values) | {""}

_WORDS = {"false": 0.0, "true": 1.0}  # of columns that begin with such words

_EXPONENT = r"([eE][+-]?\d+)?"
# A number, however it is written: with a decimal point or comma, or separators of thousands.
_NUMBER = re.compile(
    rf"[+-]?(\d+[.,]?\d*|[.,]\d+|\d{{1,3}}([.,' \u00a0\u202f]\d{{3}})+([.,]\d*)?){_EXPONENT}", re.ASCII
)
_GROUPS = re.compile(
    r"[+-]?\d{1,3}((,\d{3}){2,}|(\.\d{3}){2,}|(,\d{3})+\.\d*|(\.\d{3})+,\d*|([' \u00a0\u202f]\d{3})+([.,]\d*)?)"
)
_COMMA = re.compile(rf"[+-]?(\d+,\d*|,\d+){_EXPONENT}", re.ASCII)
_COMMA_OR_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_POINT_OR_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)
_SHORT_INTEGER = re.compile(r"[+-]?\d{1,3}", re.ASCII)
_PLACEHOLDER = re.compile(r"Unnamed: \d+(_level_\d+)?")
_EMPTY_LINE = re.compile(rb"\n(?=\r?\n)|\r(?=\r)|\A\r?\n|\A\r(?!\n)")
_QUOTED_COMMA = re.compile(rb'"[^"\r\n]*,', re.ASCII)


class TextTable:
    """The columns of a delimited text file, and its rows as numbers.

    Args:
        file: the file; names ending in .tsv or .tsv.gz mean tabs, and files ending in .gz are unpacked.
        decimal: the decimal mark, "." or ",", if the values are ambiguous. None decides by the values.

    Attributes:
        columns: for the name of each column, in order, whether it holds numbers.
        index: columns with the name that pandas gives to the unnamed index of a DataFrame; not read unless chosen by name.
        named_index: always empty, since text does not mark the index.

    Raises DiffusionalError for a file that is empty, not UTF-8, without a header, or ambiguous.
    """

    named_index: tuple[str, ...] = ()

    def __init__(self, file: Path, decimal: str | None = None) -> None:
        self.file = file
        self._decimal = decimal
        names, self._start, rows = self._header()
        self.delimiter = _delimiter(file, names, rows)
        self._names = _split(names, self.delimiter)[0]
        if not self._names:
            raise DiffusionalError(
                f"{file}: its header has a name that is too long; expected names below 2**17 characters"
            )
        _check_header(file, self._names)
        # Names may be empty, or numbers, as long as they are not read (see `check_choice`); pyarrow needs them to differ.
        check_distinct([name for name in self._names if name.strip()] or ["x"], file)
        self._keys = [name if name.strip() else f"\0{place}" for place, name in enumerate(self._names)]
        longest = max(len(names), *(len(row) for row in rows[:8]), 1)
        self._block = min(max(_BLOCK, _LINES * longest), _LINE)
        self._words: dict[str, str] = {}
        self._booleans: set[str] = set()
        self.columns = self._inferred()
        self.index = tuple(name for name in self.columns if is_unnamed_index(name))
        self._sample = (sum(len(row) + 1 for row in rows), len(rows))
        self._marks: dict[tuple[str, ...], tuple[str, str]] = {}
        self._empty_lines = 0

    @property
    def expected(self) -> int:
        """About how many rows the file has, estimated from its beginning."""
        size = self.file.stat().st_size * (5 if self.file.name.lower().endswith(".gz") else 1)
        sampled, rows = self._sample
        return int(1.1 * size * rows / sampled) + 1 if rows else 1

    def is_float32(self, columns: tuple[str, ...]) -> bool:
        """Return False: text is read as float64."""
        return False

    def booleans(self, columns: tuple[str, ...]) -> list[str]:
        """Return those of these columns whose values are the words true and false, which are read as 1 and 0."""
        return [name for name in columns if name in self._booleans]

    def words(self, name: str) -> str:
        """Return a description of the first value of a column that is not a number, for errors."""
        return self._words.get(name, "") + self._hint()

    def _hint(self) -> str:
        """Return the likely reason of an error if the header suggests one, else ""."""
        if self._names[0].lstrip().startswith("#"):
            return "; the first line, taken as the header, begins with #: remove comments from the file"
        if len(self._names) == 1 and re.search(r"[ |:]", self._names[0].strip()):
            return "; columns must be separated by commas, semicolons or tabs"
        return ""

    def check_choice(self, chosen: bool) -> None:
        """Raise DiffusionalError for a doubtful header, unless the columns were chosen by name."""
        if chosen:
            return
        if len(self.columns) < len(self._names):
            place = next(i for i, name in enumerate(self._names, 1) if not name.strip())
            raise DiffusionalError(
                f"{self.file}: column {place} has no name; name it, or drop it if it numbers the rows (pandas: index=False) or if "
                "the lines end with a delimiter; or choose the others by name"
            )
        placeholder = next((name for name in self.columns if _PLACEHOLDER.fullmatch(name)), None)
        if placeholder is not None:
            raise DiffusionalError(
                f"{self.file}: column {placeholder!r} has a name that pandas gives to a column without one, usually the row numbers; "
                "drop it, name it, or choose columns by name"
            )
        numbers = [name for name in self._names if _NUMBER.fullmatch(name.strip())]
        if numbers and not _is_scale(numbers):
            raise DiffusionalError(
                f"{self.file}: the first line has both names and numbers ({listed(self._names)}), so it may be a row of values; write "
                "the columns' names as the first line, or, if these are the names, choose columns by name"
            )

    def notes(self, columns: tuple[str, ...]) -> Iterator[str]:
        """Yield the decisions that were made about the file when these columns were read."""
        mark, reason = self._marks.get(columns, (".", ""))
        delimiter = (
            f"the delimiter is a {_DELIMITERS[self.delimiter]}" if len(self._names) > 1 else "there is one column"
        )
        yield f"{delimiter}, the decimal mark is a {'comma' if mark == ',' else 'point'}{reason}"
        left = [name for name in self.index if name not in columns]
        if left:
            yield f"left out {listed(left)}, the index of a DataFrame; choose it by name to use it"
        numbers = [name for name in columns if _NUMBER.fullmatch(name.strip())]
        if numbers:
            yield f"the first line was read as the header although it has numbers ({listed(numbers)})"
        if self._empty_lines:
            yield f"skipped {self._empty_lines} empty line{'s' * (self._empty_lines > 1)}"

    def read(self, columns: tuple[str, ...]) -> Iterator[np.ndarray]:
        """Yield the rows (n, D) of these columns, block by block, as float64; missing values are NaN."""
        if columns not in self._marks:
            self._marks[columns] = self._find_mark(columns)
        mark = self._marks[columns][0]
        unclear = _Grouped(self, columns) if mark == "." and self._decimal is None and self.delimiter != "," else None
        types = {name: pa.bool_() if name in self._booleans else pa.float64() for name in columns}
        first = self._empty_lines = 0
        for chunk in self._chunks():
            try:
                table = self._parse(chunk, first, types, mark)
                block = np.empty((table.num_rows, len(columns)))
                for j, column in enumerate(table.columns):
                    block[:, j] = column.cast(pa.float64()).to_numpy()
            except pa.ArrowException:
                block = self._slowly(chunk, first, columns, mark)
            large = np.flatnonzero((np.abs(block) >= EXACT).any(0))
            if len(large):
                self._check_exact(chunk, first, [columns[j] for j in large])
            if unclear is not None:
                unclear.add(chunk, first, block)
            if len(self._names) > 1 and max(chunk.count(b"\n"), chunk.count(b"\r")) > len(block):
                self._empty_lines += len(_EMPTY_LINE.findall(chunk))
            first += len(block)
            yield block
        if unclear is not None:
            unclear.check()

    def values(self, name: str) -> list[str | None]:
        """Return the values of one column as they are written, None where one is missing."""
        held: list[str | None] = []
        for chunk in self._chunks():
            column = self.texts(chunk, len(held), [name]).columns[0]
            texts = [written(value) for value in column.to_pylist()]
            held += [None if text in _MISSING else text for text in texts]
        return held

    # ------------------------------------------------------------------------------------------------ the header

    def _header(self) -> tuple[str, int, list[str]]:
        """Return the header as text, the number of bytes before the first row, and the first rows as text."""
        data = b""
        with self._open() as opened:
            while piece := self._get(opened, max(_SAMPLE, len(data))):
                data += piece
                ended = re.search(rb"[\r\n]", data[len(data) - len(data.lstrip()) :])
                length = len(data) if ended is None else ended.end()
                if ended is not None and len(data) >= _SAMPLE + 4 * length:
                    break
                if length > _LINE:
                    raise DiffusionalError(
                        f"{self.file}: its first line, the header, is longer than {_LINE // 2**20} MiB; expected a table with one row "
                        "on each line"
                    )
            whole = not self._get(opened, 1)
        if not data.strip():
            raise DiffusionalError(f"{self.file} is empty; give a table with a header")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data:
            raise DiffusionalError(
                f"{self.file} is not UTF-8 text (it looks like UTF-16 or a binary file); save it as UTF-8"
            )
        try:
            # The sample may end within a character, the file may not.
            text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
        except UnicodeDecodeError as error:
            raise DiffusionalError(
                f"{self.file}: it is not UTF-8 text ({shortened(f'UTF-8: {error}')}); save it as UTF-8"
            ) from error
        if not text.strip():
            raise DiffusionalError(f"{self.file} is empty; give a table with a header")
        # Lines end with \n, \r or \r\n. A name in quotes may hold line ends.
        lines = io.StringIO(text, newline="").readlines()
        blank = next(i for i, line in enumerate(lines) if line.strip())
        ends = range(blank + 1, min(blank + _HEADER_LINES, len(lines)) + 1)
        end = next((end for end in ends if "".join(lines[blank:end]).count('"') % 2 == 0), blank + 1)
        header = "".join(lines[blank:end])
        marked = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        start = marked + len("".join(lines[:end]).encode())
        rows = lines[end:] if whole else lines[end:-1]
        return header, start, [row.rstrip("\r\n") for row in rows if row.strip("\r\n")]

    def _inferred(self) -> dict[str, bool]:
        """Return, for each column with a name, whether its values in the first block look like numbers."""
        chunk = next(self._chunks(), b"")
        if not chunk.strip():
            return {name: True for name in self._keys if not name.startswith("\0")}
        try:
            table = self._parse(chunk, 0, {}, ".")
        except pa.ArrowException as error:
            raise DiffusionalError(f"{self.file}: {_advice(str(error))}") from error
        named = [(name, column) for name, column in zip(self._keys, table.columns, strict=True)]
        self._booleans = {name for name, column in named if pa.types.is_boolean(column.type)}
        return {
            name: is_numeric(column.type) or self._looks_numeric(name, column)
            for name, column in named
            if not name.startswith("\0")
        }

    def _looks_numeric(self, name: str, column: Any) -> bool:
        """Return whether a column that pyarrow does not read as numbers holds numbers in another notation."""
        if not pa.types.is_string(column.type):
            row = next((i for i, value in enumerate(column.is_valid().to_pylist(), 1) if value), 1)
            self._words[name] = f"the value in row {row} is of type {column.type}"
            return False
        for row, value in enumerate(column.to_pylist(), 1):
            word = "" if value is None else value.strip()
            if word not in _MISSING and not _NUMBER.fullmatch(word):
                self._words[name] = f"the value in row {row} is {shortened(repr(value))}"
                return False
        return True

    # -------------------------------------------------------------------------------------------- the decimal mark

    def _find_mark(self, columns: tuple[str, ...]) -> tuple[str, str]:
        """Return the decimal mark of the columns, and how it was decided."""
        if self._decimal is not None:
            return self._decimal, ", as declared"
        doubtful = None
        for number, chunk in enumerate(self._chunks()):
            if b"," not in chunk or (self.delimiter == "," and not (b'"' in chunk and _QUOTED_COMMA.search(chunk))):
                continue
            try:
                table = self.texts(chunk, 0, columns)
            except DiffusionalError:
                table = self.texts(chunk, self._rows_before(number), columns)  # raises with the true row
            for name, column in zip(columns, table.columns, strict=True):
                for place in np.flatnonzero(_with_commas(column)):
                    value = written(column[int(place)].as_py())
                    if doubtful is not None and _COMMA_OR_GROUP.fullmatch(value):
                        continue
                    row = self._rows_before(number) + int(place) + 1
                    if _COMMA_OR_GROUP.fullmatch(value):
                        doubtful = name, row, value
                    elif _COMMA.fullmatch(value):
                        return ",", f", as in row {row} of column {name!r}, {value}"
                    else:
                        self._refuse(name, row, value, ".")
        if doubtful is not None:
            name, row, value = doubtful
            point, whole = value.replace(",", "."), value.replace(",", "")
            raise DiffusionalError(
                f"{self.file}: the value of column {name!r} in row {row} (after the header) is {value!r}, which may mean {point} or {whole}, "
                f"and no other value decides it; write it as {point} or {whole}, or, if commas are decimal marks, give "
                "decimal=',' (--decimal ,; for train --data.decimal ,)"
            )
        return ".", ""

    def _rows_before(self, number: int) -> int:
        """Count the rows in the chunks before chunk `number`."""
        rows = 0
        for chunk in islice(self._chunks(), number):
            rows += self.texts(chunk, rows, self._keys[:1]).num_rows
        return rows

    # ---------------------------------------------------------------------------------------------------- values

    def _parse(self, chunk: bytes, first: int, types: dict[str, pa.DataType], mark: str) -> pa.Table:
        """Parse a chunk, before which there are `first` rows, to a table of the columns of `types`, or of all columns if `types` is empty."""
        wrong: list[Any] = []

        def refuse(row: Any) -> str:
            wrong.append(row)
            return "error"

        try:
            return pa_csv.read_csv(
                io.BytesIO(chunk),
                read_options=pa_csv.ReadOptions(
                    column_names=self._keys, use_threads=False, block_size=max(len(chunk) + 1, 2**10)
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.delimiter,
                    # An empty line of a single column is a missing value; in a wider table it holds no row.
                    ignore_empty_lines=len(self._keys) > 1,
                    invalid_row_handler=refuse,
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(types), column_types=types, decimal_point=mark
                ),
            )
        except pa.ArrowException as error:
            if not wrong:
                raise
            row = wrong[0]
            place = "a row" if row.number is None else f"row {first + row.number} (after the header)"
            raise DiffusionalError(
                f"{self.file}: its rows differ in length ({place}: expected {row.expected_columns} values, got {row.actual_columns}: "
                f"{shortened(row.text)[:80]}); correct the row, or quote values that contain the delimiter{self._hint()}"
            ) from error

    def texts(self, chunk: bytes, first: int, columns: Iterable[str]) -> pa.Table:
        """Return the values of a chunk as written in the file."""
        try:
            return self._parse(chunk, first, dict.fromkeys(columns, pa.binary()), ".")
        except pa.ArrowException as error:
            raise DiffusionalError(f"{self.file}: {_advice(str(error))}") from error

    def _slowly(self, chunk: bytes, first: int, columns: tuple[str, ...], mark: str) -> np.ndarray:
        """Convert a chunk that pyarrow does not convert. Raises DiffusionalError for the first value that is not a number."""
        table = self.texts(chunk, first, columns)
        texts = [[written(value) for value in column.to_pylist()] for column in table.columns]
        out = np.full((table.num_rows, len(columns)), np.nan)
        for row in range(table.num_rows):
            for j, name in enumerate(columns):
                value = texts[j][row]
                if value in _MISSING:
                    continue
                if name in self._booleans and value.lower() in _WORDS:
                    out[row, j] = _WORDS[value.lower()]
                    continue
                try:
                    if "_" in value or not value.isascii() or (mark == "," and "." in value):
                        raise ValueError(value)  # numbers to Python, but not here
                    out[row, j] = float(value.replace(",", ".") if mark == "," else value)
                except ValueError:
                    self._refuse(name, first + row + 1, value, mark, columns)
        return out

    def _refuse(self, name: str, row: int, value: str, mark: str, columns: tuple[str, ...] = ()) -> None:
        """Raise DiffusionalError for a value that is not a number, with the reason."""
        place = f"{self.file}: the value of column {name!r} in row {row} (after the header) is {shortened(repr(value))}"
        if _GROUPS.fullmatch(value):
            raise DiffusionalError(f"{place}, with separators between thousands; write numbers without them")
        if _NUMBER.fullmatch(value):
            reason = self._marks.get(columns, ("", ""))[1]
            now, other = ("comma", "point") if mark == "," else ("point", "comma")
            raise DiffusionalError(
                f"{place}, with a decimal {other}, but the decimal mark of the file is a {now}{reason}; write all numbers with points, or "
                "choose columns that agree (--data.columns)"
            )
        raise DiffusionalError(
            f"{place}, which is not a number; correct it, or leave its column out (--columns; for train --data.columns)"
        )

    def _check_exact(self, chunk: bytes, first: int, columns: list[str]) -> None:
        """Raise DiffusionalError for an integer that float64 cannot represent."""
        table = self.texts(chunk, first, columns)
        for name, column in zip(columns, table.columns, strict=True):
            for row, text in enumerate(column.to_pylist(), first + 1):
                value = written(text)
                if re.fullmatch(r"[+-]?\d{16,300}", value) and int(float(value)) != int(value):
                    raise DiffusionalError(f"{self.file}: {not_exact(name, row, int(value))}")

    # ----------------------------------------------------------------------------------------------------- bytes

    def _open(self) -> Any:
        try:
            return gzip.open(self.file) if self.file.name.lower().endswith(".gz") else self.file.open("rb")
        except OSError as error:
            raise DiffusionalError(f"{self.file} could not be read ({error}); get it again") from error

    def _get(self, opened: Any, size: int) -> bytes:
        try:
            return opened.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise DiffusionalError(f"{self.file} could not be read ({error}); get it again") from error

    def _chunks(self) -> Iterator[bytes]:
        """Yield the rows after the header, in pieces of about `_block` bytes that end with a row."""
        with self._open() as opened:
            self._get(opened, self._start)
            rest = b""
            while piece := self._get(opened, self._block):
                rest += piece
                end = _end_of_row(rest, len(rest) < 4 * self._block)
                if end:
                    yield rest[:end]
                    rest = rest[end:]
                elif len(rest) > _LINE:
                    raise DiffusionalError(
                        f"{self.file}: a line is longer than {_LINE // 2**20} MiB; expected a table with one row on each line"
                    )
            if rest:
                yield rest


class _Grouped:
    """Columns whose points may be separators of thousands, such as one with 900 and 1.011.

    A point is a decimal mark as soon as a value has a number of digits other than three after its point, four digits before it, or four
    digits and no point. Columns without points are not affected.
    """

    def __init__(self, table: TextTable, columns: tuple[str, ...]) -> None:
        self.table, self.columns = table, columns
        self.open = np.ones(len(columns), bool)
        self.whole = np.zeros(len(columns), bool)  # has an integer without a point
        self.first: dict[int, tuple[int, str]] = {}

    def add(self, chunk: bytes, first: int, block: np.ndarray) -> None:
        """Add a block of values, and its text."""
        places = np.flatnonzero(self.open)
        size = np.abs(block[:, places])
        with np.errstate(invalid="ignore"):
            self.open[places] = ((size < 1000) & (np.abs(1000 * size - np.rint(1000 * size)) < 1e-6)).all(0)
        names = [self.columns[j] for j in np.flatnonzero(self.open)]
        if not names:
            return
        table = self.table.texts(chunk, first, names)
        for j, column in zip(np.flatnonzero(self.open), table.columns, strict=True):
            for row, text in enumerate(column.to_pylist(), first + 1):
                value = written(text)
                if _POINT_OR_GROUP.fullmatch(value):
                    self.first.setdefault(int(j), (row, value))
                elif _SHORT_INTEGER.fullmatch(value):
                    self.whole[j] = True
                else:
                    self.open[j] = False
                    break

    def check(self) -> None:
        """Raise DiffusionalError for the first column that remains ambiguous."""
        for j in np.flatnonzero(self.open & self.whole):
            if int(j) in self.first:
                row, value = self.first[int(j)]
                raise DiffusionalError(
                    f"{self.table.file}: the value of column {self.columns[j]!r} in row {row} (after the header) is {value!r}, which may "
                    f"mean {value}0 or {value.replace('.', '')}, and no other value of the column decides it; write it without a "
                    "point or with another number of decimals, or, if points are decimal marks, give decimal='.' (--decimal .; for train "
                    "--data.decimal .)"
                )


def _end_of_row(data: bytes, patient: bool) -> int:
    """Return the end of the last row in `data`, 0 if there is none. If `patient`, line ends within quotes do not end a row."""
    end = data.rfind(b"\n") + 1
    if not end:
        # Old files end lines with \r; the last may be the first half of \r\n.
        end = data.rfind(b"\r", 0, len(data) - 1) + 1
    if not patient:
        return end
    if end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, data.rfind(b'"', 0, end)) + 1
        # An unbalanced quote may also be an inch mark: read on, and later skip this check.
        return end if data.count(b'"', 0, end) % 2 == 0 else 0
    return end


def _with_commas(column: Any) -> np.ndarray:
    """Return whether each value of a column (n,) has a comma."""
    return pc.call_function("match_substring", [column], pc.MatchSubstringOptions(",")).to_numpy()


def written(value: bytes) -> str:
    """Return a value as text, without spaces around it.

    >>> written(b" 1.5 ")
    '1.5'
    """
    return value.decode(errors="replace").strip()


def _split(text: str, delimiter: str) -> list[list[str]]:
    """Return the values of each line that is not empty; [[]] if a value is too long."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row] or [[]]
    except csv.Error:
        return [[]]


def _delimiter(file: Path, header: str, rows: list[str]) -> str:
    """Return the delimiter that gives the header and the first rows the same number of values."""
    text = "\n".join([header, *rows])
    widths = {d: [len(row) for row in _split(text, d)] for d in _DELIMITERS if d in header}
    # The last row of the sample may end within quotes.
    widths = {d: counts[:-1] if len(counts) > 3 else counts for d, counts in widths.items() if counts[0] > 1}
    fits = [d for d, counts in widths.items() if len(set(counts)) == 1]
    if ".tsv" in file.name.lower():
        if "\t" not in widths and fits:
            raise DiffusionalError(
                f"{file} is named as a table with tabs, but its header has none, and a {_DELIMITERS[fits[0]]} would give "
                f"{widths[fits[0]][0]} columns; rename it to .csv if that is its delimiter"
            )
        return "\t"
    if len(fits) > 1:
        for d in fits:
            _check_header(file, _split(header, d)[0])
        raise DiffusionalError(
            f"{file} can be read with more than one delimiter ({', '.join(_DELIMITERS[d] for d in fits)}), each of which gives all rows "
            "the same number of values; change the names or values that hold the others"
        )
    # Where none fits, there is one column, or rows differ in length, which is reported with the first of them.
    agree = {d: counts.count(counts[0]) for d, counts in widths.items()}
    return fits[0] if fits else max(agree, key=lambda d: agree[d], default=",")


def _check_header(file: Path, names: list[str]) -> None:
    """Raise DiffusionalError for a first line that has only numbers and missing values."""
    numbers = [bool(_NUMBER.fullmatch(name.strip())) for name in names]
    missing = [name.strip() in _MISSING for name in names]
    if any(numbers) and all(a or b for a, b in zip(numbers, missing, strict=True)):
        and_gaps = "" if all(numbers) else " and missing values"
        raise DiffusionalError(
            f"{file} begins with numbers{and_gaps} ({listed(names)}) and has no header; write the columns' names as its first line"
        )


def _is_scale(names: list[str]) -> bool:
    """Return whether names that are numbers form a scale, such as wavelengths or years: at least five, all increasing or all decreasing."""
    try:
        steps = np.diff([float(name.strip().replace(",", ".")) for name in names])
    except ValueError:
        return False
    return len(names) >= 5 and bool((steps > 0).all() or (steps < 0).all())


def _advice(error: str) -> str:
    error = shortened(error)
    if "UTF8" in error or "UTF-8" in error:
        return f"it is not UTF-8 text ({error}); save it as UTF-8"
    return f"it could not be read as a table ({error}); correct it"
