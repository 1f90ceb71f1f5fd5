"""Text that can be read in more than one way is refused by row and column, or read by what its own values show, and that is noted."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusional.data import Dataset, delimited, load, read, tables
from diffusional.data.formats import given_name
from diffusional.data.inspection import inspect
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous

N = 30


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(header: str, row: Callable[[int], str], end: str = "\n") -> str:
    return header + end + "".join(row(i) + end for i in range(N))


def column(data: Dataset, j: int = 0) -> list[float]:
    together = torch.cat([data.tensor(split) for split in ("train", "validation", "test")]).numpy()
    return sorted(together[:, j].tolist())


def refused(path: Path, match: str, **options) -> str:
    with pytest.raises(DiffusionalError, match=match) as caught:
        load(path, **options)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- decimal marks


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (lines("n;y", lambda i: f"{i * i};{i},5", "\r\n"), [i + 0.5 for i in range(N)]),
        (lines("n;y", lambda i: f"{i * i};{i % 9 + 1},25E-0{i % 3}"), None),
        (lines("n;y", lambda i: f"{i * i};+{i},25"), [i + 0.25 for i in range(N)]),
        (lines("n;y", lambda i: f"{i * i};,{i + 10}"), [(i + 10) / 100 for i in range(N)]),
        (lines("n;y", lambda i: f"{i * i};0,{i + 100}"), [(i + 100) / 1000 for i in range(N)]),
        (lines("n;y", lambda i: f"{i * i};{i + 1000},125"), [i + 1000.125 for i in range(N)]),
        (lines("n,y", lambda i: f'{i * i},"{i},5"'), [i + 0.5 for i in range(N)]),
        (lines("n\ty", lambda i: f"{i * i}\t{i},5"), [i + 0.5 for i in range(N)]),
        # one value shows what the commas of all others are, in whatever column and however late
        (lines("n;y", lambda i: f"{i * i},5;{i + 1},125"), [i + 1.125 for i in range(N)]),
        (lines("n;y", lambda i: f"{i * i};{i + 1},125") + "1;7,5\n", [*(i + 1.125 for i in range(N)), 7.5]),
        (lines("n;y", lambda i: f"{i * i};{i}") + "1;7,5\n", [*range(N), 7.5]),
    ],
)
def test_decimal_commas(
    tmp_path: Path, content: str, values: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 40)
    monkeypatch.setattr(delimited, "_LINES", 1)
    data = load(write(tmp_path, content))
    if values is None:
        values = [(i % 9 + 1.25) / 10 ** (i % 3) for i in range(N)]
    np.testing.assert_allclose(column(data, 1), sorted(values), rtol=1e-15)
    (note,) = [note for note in data.notes if "decimal mark" in note]
    assert "the decimal mark is a comma, as in row" in note


def test_a_comma_in_a_column_that_is_not_read_decides_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, lines("n;place;x", lambda i: f"{i};{i},{i + 1};{i}.25"))
    data = load(path, columns=("x",))
    assert column(data) == [i + 0.25 for i in range(N)]
    assert data.notes[0] == "the delimiter is a semicolon, the decimal mark is a point"


@pytest.mark.parametrize(
    ("content", "row", "value"),
    [
        (lines("price;area", lambda i: f"{900 + 37 * i:,};{20 + i}"), 4, "1,011"),  # 900 … 974, 1,011
        (lines("price;area", lambda i: f"{i + 1},125;{20 + i}"), 1, "1,125"),
        (lines("price,area", lambda i: f'"{900 + 37 * i:,}",{20 + i}'), 4, "1,011"),
        (lines("price;area", lambda i: f"{900 + 37 * i:,};{20 + i}".replace(",", ".")), 4, "1.011"),
        (lines("price;area", lambda i: f"-{900 + 37 * i:,};{20 + i}".replace(",", ".")), 4, "-1.011"),
        (lines("price\tarea", lambda i: f"{i % 2 + 1}.{125 + i}\t{i}" if i else "3\t0"), 2, "2.126"),
    ],
)
def test_one_separator_before_three_digits_is_refused_unless_declared(
    tmp_path: Path, content: str, row: int, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 4)
    monkeypatch.setattr(delimited, "_LINES", 1)
    path = write(tmp_path, content)
    said = refused(
        path, f"'price' in row {row} .*'{value}', which may mean .* or {value.replace(',', '').replace('.', '')}"
    )
    mark = "," if "," in value else "."
    assert f"decimal='{mark}'" in said
    data = load(path, decimal=mark)
    assert float(value.replace(",", ".")) in column(data)
    assert data.notes[0].endswith(", as declared")


@pytest.mark.parametrize(
    "prices",
    [
        ["1.125", "2.250", "3"] * 10 + ["1.5"],  # another number of decimals
        ["1.125", "2.250", "3"] * 10 + ["0.125"],  # thousands do not begin with 0
        ["1.125", "2.250", "3"] * 10 + ["1000"],  # thousands without a separator
        ["1.125", "2.250", "3.000"] * 10,  # all have the same number of decimals
    ],
)
def test_points_that_can_only_be_decimal(tmp_path: Path, prices: list[str]) -> None:
    content = "price;n\n" + "".join(f"{price};{i}\n" for i, price in enumerate(prices))
    assert column(load(write(tmp_path, content))) == sorted(map(float, prices))


@pytest.mark.parametrize(
    ("values", "row", "why"),
    [
        (["1", "1,234,567"], 2, "separators between thousands"),
        (["1", "1,234.5"], 2, "separators between thousands"),
        (["1.234,5", "2,5"], 1, "separators between thousands"),
        (["1", "1.234.567"], 2, "separators between thousands"),
        (["1", "1'234"], 2, "separators between thousands"),
        (["1", "1 234,5"], 2, "separators between thousands"),
        (["1", "1\u00a0234"], 2, "separators between thousands"),
        (["1,5", "2.5"], 2, "with a decimal point, but .* is a comma, as in row 1 of column 'x', 1,5"),
        (["2.5", "1,5"], 1, "with a decimal point, but .* is a comma, as in row 2 of column 'x', 1,5"),
        (["1,5", "1.234"], 2, "with a decimal point"),
    ],
)
def test_separators_of_thousands_and_mixed_marks(tmp_path: Path, values: list[str], row: int, why: str) -> None:
    content = "y;x\n" + "".join(f"{i};{value}\n" for i, value in enumerate(values))
    refused(write(tmp_path, content), rf"'x' in row {row} .*{why}")


def test_marks_that_differ_between_columns(tmp_path: Path) -> None:
    path = write(tmp_path, lines("x;y", lambda i: f"{i},25;{i}.5"))
    refused(path, "'y' in row 1 .*'0.5', with a decimal point, .*row 1 of column 'x', 0,25")
    assert column(load(path, columns=("y",))) == [i + 0.5 for i in range(N)]


def test_a_declared_mark_is_kept_to(tmp_path: Path) -> None:
    path = write(tmp_path, lines("x;y", lambda i: f"{i},25;{i}"))
    refused(path, r"'x' in row 1 .*'0,25', with a decimal comma, .*as declared", decimal=".")
    with pytest.raises(DiffusionalError, match=r"decimal must be .*, got ';'"):
        tables.load_table(path, None, (0.8, 0.1, 0.1), 0, None, decimal=";")
    with pytest.raises(DiffusionalError, match="decimal="):
        load("digits", decimal=",")
    space = Continuous((2,))
    assert read(path, space, decimal=",").encode()[1].tolist() == [1.25, 1.0]


# ----------------------------------------------------------------------------------------------- what is no number


@pytest.mark.parametrize("value", ["1_000", "12%", "$5", "0x10", "1e", "--1", "None", "\u0661", "1.5f", "1\x002", "-"])
@pytest.mark.parametrize("late", [False, True])
def test_words(tmp_path: Path, value: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 40)
    monkeypatch.setattr(delimited, "_LINES", 1)
    monkeypatch.setattr(delimited, "_SAMPLE", 64)  # beyond it a zero byte is not the sign of a binary file
    row = 60 if late else 2
    content = "a,b\n" + "".join(f"{i % 10},{value if i == row - 1 else i % 7}\n" for i in range(row + 1))
    if value == "1\x002" and not late:
        refused(write(tmp_path, content), "binary")
    elif late:
        refused(write(tmp_path, content), rf"'b' in row {row} \(after the header\) is .*not a number")
    else:
        refused(
            write(tmp_path, content),
            r"'b' (is not numeric; choose columns=\('a',\).* row 2 is|in row 2 .*not a number)",
        )


@pytest.mark.parametrize("value", ["", " ", "NA", "NaN", "nan", "NAN", "null", "n/a", "#N/A", '""'])
def test_every_spelling_of_a_missing_value(tmp_path: Path, value: str) -> None:
    content = "a;b\n" + "".join(f"{i},5;{value if i == 3 else i}\n" for i in range(N))
    refused(write(tmp_path, content), r"'b' in row 4 .* is missing")


def test_integers_that_float64_would_change(tmp_path: Path) -> None:
    path = write(tmp_path, lines("x,id", lambda i: f"{i * i},{2**53 + i}"))
    refused(path, rf"'id' in row 2 is {2**53 + 1}, which float64 would change to {2**53}")
    even = write(tmp_path, lines("x,id", lambda i: f"{i * i},{2**53 + 2 * i}"))
    assert column(load(even), 1) == [2.0**53 + 2 * i for i in range(N)]
    large = write(tmp_path, lines("x,id", lambda i: f"{i * i},1.{i}e300"))
    assert max(column(load(large), 1)) == 1.9e300


# ---------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("first", ["0.5,NA", "NA,0.5", ",1", "1,234", '"0,5";1', "-1e5,.5", "1.,+2"])
def test_a_first_line_of_values_is_no_header(tmp_path: Path, first: str) -> None:
    semicolon = ";" in first
    row = (lambda i: f"{i},5;{1.5 * i}") if semicolon else (lambda i: f"{i}.5,{1.5 * i}")
    refused(write(tmp_path, lines(first, row)), "begins with numbers.* and has no header")


def test_a_first_line_of_names_and_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, lines("0.5,oops,2", lambda i: f"{i},{i % 7},{i * i}"))
    refused(path, r"first line has both names and numbers \('0.5', 'oops', '2'\)")
    data = load(path, columns=("oops", "2"))  # whoever names them has seen them
    assert (data.labels, len(column(data))) == (("oops", "2"), N)
    assert any("header although it has numbers ('2')" in note for note in data.notes)
    years = write(
        tmp_path,
        lines("id,2001,2002,2003,2004,2005", lambda i: ",".join(str((i + 1) ** (j + 1) % 97) for j in range(6))),
    )
    data = load(years)
    assert data.labels == ("id", "2001", "2002", "2003", "2004", "2005")
    assert any("header although it has numbers" in note for note in data.notes)
    shuffled = write(tmp_path, years.read_text().replace("2002,2003", "2003,2002"))
    refused(shuffled, "both names and numbers")


@pytest.mark.parametrize("names", [("2020_1", "2020_2"), ("NA", "K"), ("x.1", "1e"), ("2020-01-01", "2020-01-02")])
def test_names_that_only_resemble_numbers(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert load(write(tmp_path, lines(",".join(names), lambda i: f"{i * i},{i % 7}"))).labels == names


def test_columns_of_row_numbers(tmp_path: Path) -> None:
    body = lines("", lambda i: f"{i},{i % 7},{i * i}")
    refused(write(tmp_path, "Unnamed: 0,x,y" + body), "column 'Unnamed: 0'.*choose columns by name")
    assert load(tmp_path / "a.csv", columns=("x", "y")).labels == ("x", "y")
    refused(write(tmp_path, ",x,y" + body), "column 1 has no name")
    assert load(tmp_path / "a.csv", columns=("x", "y")).labels == ("x", "y")
    data = load(write(tmp_path, "__index_level_0__,x,y" + body))
    assert data.labels == ("x", "y")
    assert any("left out '__index_level_0__'" in note for note in data.notes)
    data = load(write(tmp_path, "n,x,y" + body))
    assert data.labels == ("n", "x", "y")
    assert any(note.startswith("column 'n' counts the rows") for note in data.notes)
    assert not any("counts" in note for note in load(write(tmp_path, "n,x,y" + body + "99,1,1\n")).notes)


def test_lines_that_end_with_a_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, lines("x,y,", lambda i: f"{i % 7},{i * i},"))
    refused(path, "column 3 has no name.*lines end with a delimiter")
    assert column(load(path, columns=("x", "y")), 1) == [float(i * i) for i in range(N)]
    refused(write(tmp_path, lines("x,y", lambda i: f"{i % 7},{i * i},")), r"row 1 .*: expected 2 values, got 3")


def test_comments_are_no_header(tmp_path: Path) -> None:
    content = "# made by me\n" + lines("x,y", lambda i: f"{i % 7},{i * i}")
    assert "begins with #" in refused(write(tmp_path, content), "row 1 .*: expected 1 values, got 2")
    late = lines("x,y", lambda i: "# a comment" if i == 5 else f"{i % 7},{i * i}")
    refused(write(tmp_path, late), "row 6 .*: expected 2 values, got 1")


def test_a_header_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 2**10)
    monkeypatch.setattr(delimited, "_SAMPLE", 2**8)
    names = [f"{'n' * 500}{j}" for j in range(8)]
    path = write(tmp_path, lines(",".join(names), lambda i: ",".join(str(i * j % 11) for j in range(8))))
    assert load(path, columns=(names[1], names[7])).labels == (names[1], names[7])
    monkeypatch.setattr(delimited, "_LINE", 2**11)
    refused(path, "its first line, the header, is longer than")
    short = write(tmp_path, "a,b\n1,2\n" + "1" * 2**13)
    refused(short, "a line is longer than")


def test_a_row_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 64)
    monkeypatch.setattr(delimited, "_LINES", 1)
    path = write(tmp_path, lines("a,b", lambda i: f"{i},{i % 7}.{'0' * (500 if i > 20 else 1)}5"))
    assert column(load(path)) == [float(i) for i in range(N)]


# ------------------------------------------------------------------------------------------------------- delimiters


def test_the_delimiter_is_the_one_that_fits_the_rows(tmp_path: Path) -> None:
    data = load(write(tmp_path, lines("a;b,c", lambda i: f"{i % 7},{i * i}")))
    assert data.labels == ("a;b", "c")
    assert data.notes[0] == "the delimiter is a comma, the decimal mark is a point"
    data = load(write(tmp_path, lines("size, cm;b", lambda i: f"{i % 7}.5;{i * i}")))
    assert data.labels == ("size, cm", "b")
    refused(
        write(tmp_path, lines("a,b;c", lambda i: f"{i % 7},{i * i};{i}")),
        r"more than one delimiter \(comma, semicolon\)",
    )
    refused(write(tmp_path, lines("a b", lambda i: f"{i} {i * i}")), "separated by commas, semicolons or tabs")


def test_tabs_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, lines("x,y", lambda i: f"{i},{i * i}"), "a.tsv")
    refused(path, "named as a table with tabs, but its header has none.* comma would give 2 columns")
    assert load(write(tmp_path, lines("weight, kg", lambda i: f"{i}.5"), "b.tsv")).labels == ("weight, kg",)


@pytest.mark.parametrize("block", [7, 64, 2**20])
def test_quotes_and_line_ends_within_a_value(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", block)
    monkeypatch.setattr(delimited, "_LINES", 1)
    path = write(tmp_path, lines('"te\nxt",x', lambda i: f'"a, b\n{i}",{i}.5'))
    data = load(path, columns=("x",))
    assert column(data) == [i + 0.5 for i in range(N)]
    quoted = write(tmp_path, lines("text,x", lambda i: f'"a\n""b"", {i}",{i}.5'))
    assert column(load(quoted, columns=("x",))) == [i + 0.5 for i in range(N)]
    inches = write(tmp_path, lines("text,x", lambda i: f'5" pipe,{i}.5'))
    assert column(load(inches, columns=("x",))) == [i + 0.5 for i in range(N)]


# ------------------------------------------------------------------------------------------------------ empty lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_empty_line_of_one_column_is_a_missing_value(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, lines("x", lambda i: "" if i == 5 else f"{i}.25", end))
    refused(path, r"'x' in row 6 .* is missing")
    refused(write(tmp_path, lines("x", lambda i: f"{i}.25", end) + end), rf"'x' in row {N + 1} .* is missing")
    assert column(load(write(tmp_path, lines("x", lambda i: f"{i}.25", end)))) == [i + 0.25 for i in range(N)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [16, 2**20])
def test_empty_lines_between_rows_are_counted(
    tmp_path: Path, end: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", block)
    monkeypatch.setattr(delimited, "_LINES", 1)
    content = end + lines("x,y", lambda i: f"{i % 7},{i * i}" + (end if i in (3, 4) else ""), end) + 3 * end
    data = load(write(tmp_path, content))
    assert column(data, 1) == [float(i * i) for i in range(N)]
    assert "skipped 5 empty lines" in data.notes
    gap = write(tmp_path, content.replace(f"{end}6,169{end}", f"{end}6,{end}"))
    refused(gap, r"'y' in row 14 .* is missing")


# ------------------------------------------------------------------------------------------------ notes and the rest


def test_the_notes_are_in_the_record_and_name_parts_that_differ(tmp_path: Path) -> None:
    write(tmp_path, lines("x,y", lambda i: f"{i % 7},{i * i}"), "0.csv")
    write(tmp_path, lines("x;y", lambda i: f"{i % 7},5;{i * i}"), "1.csv")
    write(tmp_path, lines("x,y", lambda i: f"{i % 7},{i * i}"), "2.csv")
    data = load(tmp_path)
    assert data.notes == (
        "0.csv and 1 more: the delimiter is a comma, the decimal mark is a point",
        "1.csv: the delimiter is a semicolon, the decimal mark is a comma, as in row 1 of column 'x', 0,5",
    )
    assert inspect(data).to_json()["notes"] == list(data.notes)


def test_rows_are_counted_over_blocks_where_a_row_differs_in_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 40)
    monkeypatch.setattr(delimited, "_LINES", 1)
    refused(write(tmp_path, lines("x,y", lambda i: f"{i},5") + "1,2,3\n"), rf"row {N + 1} .*expected 2 values, got 3")
    refused(write(tmp_path, lines("x;y", lambda i: f"{i};5") + "1,5;2;3\n"), rf"row {N + 1} .*expected 2 values, got 3")
    refused(write(tmp_path, lines("x;y", lambda i: f"{i};5") + "1,5;oops\n"), rf"'y' in row {N + 1} .*not a number")


def test_an_error_names_a_few_of_many_columns(tmp_path: Path) -> None:
    names = ",".join(f"x{j}" for j in range(500))
    path = write(tmp_path, lines(names, lambda i: ",".join("" if i == 2 and j == 7 else str(i) for j in range(500))))
    assert len(refused(path, "'x7' in row 3 .*without gaps: 499 columns")) < 500 + len(str(path))


def test_the_given_name_of_a_link_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "5f3a9c"
    pyarrow.parquet.write_table(pa.table({"x": np.arange(40.0) ** 2, "y": np.arange(40.0) % 7}), store)
    (tmp_path / "table.parquet").symlink_to(store)
    data = load(tmp_path / "table.parquet")
    assert (data.name, data.labels) == ("table.parquet", ("x", "y"))
    items = read(tmp_path / "table.parquet", Continuous((2,)), names=("y", "x"))
    assert (items.name, items.labels) == ("table.parquet", ("y", "x"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.parquet").symlink_to(store)
    assert load(tmp_path / "folder").labels == ("x", "y")
    monkeypatch.chdir(tmp_path / "folder")
    assert [given_name(Path(name)) for name in (".", "..", "0.parquet")] == ["folder", tmp_path.name, "0.parquet"]


VALUES = (
    ["1", "2.5", "30"],
    ["1", "2,5", "30"],
    ["900", "1,011"],
    ["900", "1.011"],
    ["1", "", "NA"],
    ['"1"', "+2", "3e1"],
)
TOKENS = [*'1,;.\t\n" x', "12", "345", "e3", "\r\n", "\n\n", "1,234", "0,5", "a"]
GRIDS = st.builds(
    lambda names, values, delimiter, end, rows: end.join(
        delimiter.join(cells)
        for cells in [names, *[[values[k % len(values)] for k in row[: len(names)]] for row in rows]]
    ),
    st.lists(st.sampled_from(["a", "b c", "x1", "1", "", "NA"]), min_size=1, max_size=3),
    st.sampled_from(VALUES),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), max_size=8),
)
LOOSE = st.lists(st.sampled_from(TOKENS), max_size=30).map(lambda tokens: "a,b\n" + "".join(tokens))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=GRIDS | LOOSE, block=st.sampled_from([1, 7, 2**20]))
def test_what_is_read_is_what_the_csv_module_reads(tmp_path: Path, content: str, block: int) -> None:
    path = write(tmp_path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK", block)
        patch.setattr(delimited, "_LINES", 1)
        try:
            part = tables.read_table(path, None, 0, None)["train"]
        except DiffusionalError:
            return
    note = part.notes[0]
    delimiter = next((d for d, name in ((";", "semicolon"), ("\t", "tab")) if f"delimiter is a {name}" in note), ",")
    rows = list(csv.reader(io.StringIO(content, newline=""), delimiter="\0" if "one column" in note else delimiter))
    names, body = next((row, rows[i + 1 :]) for i, row in enumerate(rows) if row)
    body = [row for row in body if row]
    point = (lambda text: text.replace(",", ".")) if "mark is a comma" in note else str
    expected = [[float(point(row[names.index(label)])) for label in part.labels] for row in body]
    np.testing.assert_array_equal(part.array, expected)


# ------------------------------------------------------------------------------------------------------ wide tables


def calls(action: Callable[[], object]) -> int:
    """The number of calls, of Python's functions and of C's, that an action makes."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_work_grows_linearly_with_the_columns(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the number of calls nor the number of names and values that are passed round grows with the square."""
    parsed: list[int] = []
    original = delimited.TextTable._parse

    def counted(self: delimited.TextTable, chunk: bytes, *args: object) -> pa.Table:
        parsed.append(len(self.columns) if hasattr(self, "columns") else len(self._keys))
        return original(self, chunk, *args)

    monkeypatch.setattr(delimited.TextTable, "_parse", counted)
    monkeypatch.setattr(delimited, "_BLOCK", 1)  # so that the number of blocks is that of the rows
    made, passed = {}, {}
    for width in (100, 400):
        values = np.random.default_rng(0).normal(size=(200, width))
        table = pa.table({f"gene{j}": values[:, j] for j in range(width)})
        path = tmp_path / str(width) / name
        path.parent.mkdir()
        (pa.csv.write_csv if name == "a.csv" else pa.parquet.write_table)(table, path)
        load(path)  # whatever is imported or cached
        parsed.clear()
        made[width] = calls(lambda path=path: load(path))
        passed[width] = sum(parsed)
    assert made[400] < 5 * made[100]
    assert passed[400] <= 5 * passed[100]
