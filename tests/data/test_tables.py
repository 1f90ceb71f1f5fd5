"""Tables: values where they were, densities in their own units, and every gap, word and ragged row named."""

import gzip
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from battery import PEAK, environment
from diffusional.data import Dataset, checks, delimited, load
from diffusional.data.rows import Rows
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

RNG = np.random.default_rng(0)
NAMES = ("height", "weight", "age")
VALUES = RNG.normal(0.0, 1.0, (50, 3)) * np.array([10.0, 0.1, 1000.0]) + np.array([170.0, 2.0, -5.0])


def text(values: np.ndarray = VALUES, names=NAMES, delimiter: str = ",", point: str = ".") -> str:
    rows = [delimiter.join(repr(float(v)).replace(".", point) for v in row) for row in values]
    return "\n".join([delimiter.join(names), *rows]) + "\n"


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, values: np.ndarray = VALUES, names=NAMES, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(zip(names, values.T, strict=True))), path, **options)
    return path


def in_order(data: Dataset, seed: int = 0) -> np.ndarray:
    together = torch.cat([data.tensor(split) for split in ("train", "validation", "test")]).numpy()
    out = np.empty_like(together)
    out[np.random.default_rng(seed).permutation(len(out))] = together
    return out


# ------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "semicolon.csv", "decimal.csv", "a.parquet", "bom.csv"])
def test_every_format_gives_the_same_values(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 300)  # many blocks, so that one out of order shows
    if name == "a.parquet":
        path = parquet(tmp_path / name, row_group_size=7)
    else:
        delimiter = "\t" if name == "a.tsv" else ";" if name in ("semicolon.csv", "decimal.csv") else ","
        content = text(delimiter=delimiter, point="," if name == "decimal.csv" else ".").encode()
        content = gzip.compress(content) if name.endswith(".gz") else content
        path = write(tmp_path, b"\xef\xbb\xbf" + content if name == "bom.csv" else content, name)
    data = load(path, seed=2)
    np.testing.assert_array_equal(in_order(data, seed=2), VALUES)
    assert data.labels == NAMES
    assert data.name == name
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 5, 5)


def test_columns_are_chosen_by_name_and_in_that_order(tmp_path: Path) -> None:
    words = text().replace("\n", ",x\n").replace("age,x", "age,word")
    data = load(write(tmp_path, words), columns=("age", "height"))
    np.testing.assert_array_equal(in_order(data), VALUES[:, [2, 0]])
    assert data.labels == ("age", "height")
    again = load(parquet(tmp_path / "b.parquet"), columns=("age", "height"))
    assert again.fingerprint("train") == data.fingerprint("train")


def test_one_column(tmp_path: Path) -> None:
    data = load(write(tmp_path, text(VALUES[:, :1], ("x",))))
    np.testing.assert_array_equal(in_order(data), VALUES[:, :1])


def test_integers_are_reals_unless_levels_are_declared(tmp_path: Path) -> None:
    counts = RNG.integers(0, 5, (50, 2))
    table = pa.table({"a": counts[:, 0], "b": counts[:, 1].astype(np.uint8)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert isinstance(load(tmp_path / "a.parquet").space, Continuous)
    data = load(tmp_path / "a.parquet", levels=5)
    assert data.space == Discrete((2,), levels=5)
    np.testing.assert_array_equal(in_order(data), counts)
    with pytest.raises(DiffusionalError, match=r"has a fraction, but levels=5"):
        load(parquet(tmp_path / "b.parquet"), levels=5)


def test_integers_that_turn_into_fractions_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 64)
    values = np.arange(100.0)[:, None]
    values[90] = 0.25
    content = "n\n" + "".join(f"{v:g}\n" for v in values.ravel())
    np.testing.assert_array_equal(in_order(load(write(tmp_path, content))), values)


@pytest.mark.parametrize("expected", [0, 1, 60, 10_000])
def test_the_guessed_number_of_rows_does_not_matter(
    tmp_path: Path, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 300)
    monkeypatch.setattr(delimited.TextTable, "expected", expected)
    np.testing.assert_array_equal(in_order(load(write(tmp_path, text()))), VALUES)


def test_float32_stays_so_and_decimals_are_numbers(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "a.parquet", VALUES.astype(np.float32)))
    assert data.train.dtype == torch.float32
    cents = pa.array([f"{i}.25" for i in range(20)]).cast(pa.decimal128(9, 2))
    pq.write_table(pa.table({"price": cents}), tmp_path / "b.parquet")
    np.testing.assert_array_equal(in_order(load(tmp_path / "b.parquet")).ravel(), np.arange(20) + 0.25)


def test_densities_are_in_the_table_s_units(tmp_path: Path) -> None:
    """−ln p(raw) of independent normals, by scipy, is that of the standardised values plus the log-Jacobian."""
    data = load(write(tmp_path, text()))
    raw = data.tensor("test").numpy()
    train = in_order(data)[np.random.default_rng(0).permutation(50)[:40]]
    mean, deviation = train.mean(0), train.std(0)
    truth = -stats.norm(mean, deviation).logpdf(raw).sum(1)
    x = data.encode("test").double().numpy()
    ours = -stats.norm.logpdf(x).sum(1) + data.space.log_jacobian()
    np.testing.assert_allclose(ours, truth, rtol=1e-5)
    assert data.space.log_jacobian() == pytest.approx(sum(map(math.log, deviation)), rel=1e-12)


# ------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "names", [("part-0", "part-1", "part-2"), ("train-0", "train-1", "train-2"), ("b/0", "b/1", "c/0")]
)
def test_parts_are_one_table(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, part in zip(names, np.split(VALUES, [20, 35]), strict=True):
        parquet(tmp_path / f"{name}.parquet", part)
    np.testing.assert_array_equal(in_order(load(tmp_path)), VALUES)


@pytest.mark.parametrize(
    "names", [("train-0", "train-1", "val-0", "test-0"), ("train/0", "train/1", "validation/0", "test/0")]
)
def test_parts_may_be_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, part in zip(names, np.split(VALUES, [20, 30, 45]), strict=True):
        write(tmp_path, text(part), f"{name}.csv")
    data = load(tmp_path)
    for split, part in zip(("train", "validation", "test"), np.split(VALUES, [30, 45]), strict=True):
        np.testing.assert_array_equal(data.tensor(split).numpy(), part)


def test_parts_that_are_unclear(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet")
    parquet(tmp_path / "test.parquet")
    parquet(tmp_path / "more.parquet")
    with pytest.raises(DiffusionalError, match=r"holds train parts and more.parquet; name all parts by their split"):
        load(tmp_path)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DiffusionalError, match=r"holds test.parquet and no train part"):
        load(tmp_path)


def test_parts_of_other_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet")
    parquet(tmp_path / "1.parquet", names=("height", "weight", "years"))
    with pytest.raises(
        DiffusionalError, match=r"or choose common ones: columns=\('height', 'weight'\) \(--columns height weight; for"
    ):
        load(tmp_path)
    with pytest.raises(DiffusionalError, match=r"1.parquet has no column of numbers 'age', as 0.parquet has"):
        load(tmp_path, columns=("age",))
    assert load(tmp_path, columns=("weight",)).tensor("train").shape == (80, 1)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a.csv is empty; give a table with a header"),
        (" \n", r"a.csv is empty"),
        ("\u0085", r"a.csv is empty"),
        (b"\xef\xbb\xbf", r"a.csv is empty; give a table with a header"),
        (b"\xc2", r"a.csv: it is not UTF-8 text \(UTF-8: .*unexpected end of data\); save it as UTF-8"),
        ("a,b\n", r"a.csv has a header and no rows"),
        ("1.5,2\n3,4\n", r"begins with numbers \('1.5', '2'\) and has no header"),
        ("1,5;2,5\n3,5;4,5\n", r"begins with numbers .* has no header"),
        ("a,b\n1,2\n3\n", r"its rows differ in length \(.*\); correct the row"),
        ("a,b\n1,2\n3,4,5\n", r"its rows differ in length"),
        ("a,a\n1,2\n", r"more than one column 'a'"),
        (",a\n0,1\n", r"column 1 has no name; .*index=False"),
        (
            "a,b\n1,x\n2,y\n",
            r"column 'b' is not numeric; choose columns=\('a',\) \(--columns a; for train --data.columns a\)",
        ),
        ("a,b\nu,x\n", r"columns 'a', 'b' are not numeric; no column is"),
        ("a,b\n1,2\n3,\n", r"the value of column 'b' in row 2 \(after the header\) is missing"),
        ("a,b\n1,2\n3,NA\n", r"column 'b' in row 2 .* is missing"),
        ("a,b\n1,\n2,\n", r"column 'b' in row 1 .* is missing"),
        ("a,b\n1,2\n3,4\n-inf,1\n", r"column 'a' in row 3 .* is -inf; correct or drop"),
        ("a,b\n1,2020-01-01\n2,2020-01-02\n", r"column 'b' is not numeric"),
        ("größe,b\n1,2\n".encode("latin-1"), r"is not UTF-8 text \(.*\); save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), r"looks like UTF-16 or a binary file"),
        ("a,b\n" + "1,1\n2,1\n" * 20, r"1 of 2 positions are constant over the 32 train items: b\. A constant"),
    ],
)
def test_text_that_is_no_table(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        load(write(tmp_path, content))


def test_a_quoted_row_is_one_short_line(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError) as caught:
        load(write(tmp_path, 'a,b\n1,2\n"3,4\n' + "1,2\n" * 100))
    assert str(caught.value).startswith(
        f"{tmp_path}/a.csv: its rows differ in length (row 2 (after the header): expected 2 values, got 1: "
    )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_word_far_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 64)
    content = "a,b\n" + "1,2\n" * 100 + "1,oops\n"
    with pytest.raises(DiffusionalError, match=r"column 'b' in row 101 .* is 'oops', which is not a number"):
        load(write(tmp_path, content))


def test_a_gap_far_down_is_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 64)
    content = "a,b\n" + "1,2\n" * 100 + "1,\n" + "1,2\n" * 9
    with pytest.raises(DiffusionalError, match=r"column 'b' in row 101 "):
        load(write(tmp_path, content))
    table = pa.table({"a": pa.array([1.0] * 100 + [None])})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    with pytest.raises(DiffusionalError, match=r"column 'a' in row 101 .* is missing"):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": "a,b\n1,2\n3,\n"},
            "a.csv: the value of column 'b' in row 2 (after the header) is missing (empty, NA or NaN); correct or drop the row, "
            "or choose the columns without gaps: columns=('a',) (--columns a; for train --data.columns a)",
        ),
        (
            {"a.csv": "a,b c,d\n1,2,3\n3,-inf,\n5,6,7\n"},
            "a.csv: the value of column 'b c' in row 2 (after the header) is -inf; correct or drop the row, "
            "or choose the columns without gaps: columns=('a',) (--columns a; for train --data.columns a)",
        ),
        (  # the gap of `a` is in a part that was not read when that of `d` was met
            {"0.csv": "a,b c,d\n1,2,\n", "1.csv": "a,b c,d\n,6,7\n"},
            "0.csv: the value of column 'd' in row 1 (after the header) is missing (empty, NA or NaN); correct or drop the row, "
            "or choose the columns without gaps: columns=('b c',) (--columns 'b c'; for train --data.columns 'b c')",
        ),
        (
            {"a.csv": "a,b\n1,2\n3,\n,4\n"},
            "a.csv: the value of column 'b' in row 2 (after the header) is missing (empty, NA or NaN); correct or drop the row",
        ),
    ],
)
def test_a_gap_names_the_columns_without(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        write(tmp_path, content, name)
    with pytest.raises(DiffusionalError) as caught:
        load(tmp_path if len(files) > 1 else tmp_path / "a.csv")
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_a_gap_before_another_fault_names_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_BLOCK", 64)
    path = write(tmp_path, "a,b\n1,\n" + "1,2\n" * 100 + "oops,3\n")
    with pytest.raises(DiffusionalError, match=r"column 'b' in row 1 .*; correct or drop the row$"):
        load(path)


def test_old_line_ends(tmp_path: Path) -> None:
    np.testing.assert_array_equal(in_order(load(write(tmp_path, text().replace("\n", "\r")))), VALUES)


def test_unknown_columns(tmp_path: Path) -> None:
    path = write(tmp_path, text())
    with pytest.raises(DiffusionalError, match=r"has no column 'heigth'; did you mean 'height'\?"):
        load(path, columns=("heigth",))
    with pytest.raises(DiffusionalError, match=r"has no column 'zzz'; it has 'height', 'weight', 'age'"):
        load(path, columns=("zzz",))
    with pytest.raises(DiffusionalError, match=r"columns 'age', 'age' .*name each once"):
        load(path, columns=("age", "age"))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DiffusionalError, match=rf"{name}.* could not be read"):
        load(write(tmp_path, b"\x1f\x8bnonsense", name))


def test_damage_within_a_gzip_file_and_a_name(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(text().encode()))
    packed[12:30] = bytes(18)
    with pytest.raises(DiffusionalError, match=r"a.csv.gz could not be read \(Error -3 .*\); get it again"):
        load(write(tmp_path, bytes(packed), "a.csv.gz"))
    content = parquet(tmp_path / "a.parquet", VALUES, ("größe", "b", "c")).read_bytes()
    with pytest.raises(DiffusionalError, match=r"a.parquet could not be read as Parquet \(.*\); write it again"):
        load(write(tmp_path, content.replace("größe".encode(), b"gr\xff\xff\xff\xffe"[:7]), "a.parquet"))


def test_options_of_others_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, text())
    for options, name in (
        ({"size": 8}, "size=8"),
        ({"grey": True}, "grey=True"),
        ({"streaming": True}, "streaming=True"),
    ):
        with pytest.raises(DiffusionalError, match=rf"{name} was given for a table, but it is for"):
            load(path, **options)
    with pytest.raises(DiffusionalError, match=r"columns=\('a',\) was given for digits, but it is for a table"):
        load("digits", columns=("a",))


# --------------------------------------------------------------------------------------------------- large ones


def test_a_large_table_is_one_array_and_three_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "IN_MEMORY", 0)
    data = load(parquet(tmp_path / "a.parquet"))
    views = [data.train, data.validation, data.test]
    assert all(isinstance(view, Rows) and view.array is data.train.array for view in views)
    np.testing.assert_array_equal(in_order(data), VALUES)


MEASURE = f"""
import sys
{PEAK}
from diffusional.data import load
import diffusional.data.tables
before = peak()
data = load(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_half_a_million_rows(tmp_path: Path, name: str) -> None:
    values = RNG.normal(size=(500_000, 20))
    names = tuple(f"x{j}" for j in range(20))
    if name == "a.csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(pa.table(dict(zip(names, values.T, strict=True))), tmp_path / name)
    else:
        parquet(tmp_path / name, values, names)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, text=True, env=environment()
    )
    assert int(ran.stdout) * 1024 < 1.7 * values.nbytes + 2**26, ran.stderr  # 64 MiB for pyarrow's own libraries
