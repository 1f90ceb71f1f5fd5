"""Parquet: an index is no variable, integers stay what they are, and names are looked up, not searched for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusional.data import load, parquet, tables
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

N = 40
X = np.arange(N) ** 2 % 31 + 0.5


def write(path: Path, columns: dict[str, Any], index: list[Any] | None = None, note: bytes | None = None) -> Path:
    table = pa.table(columns)
    if index is not None:
        note = json.dumps({"index_columns": index, "columns": [], "pandas_version": "2.0.0"}).encode()
    pq.write_table(table.replace_schema_metadata({b"pandas": note}) if note is not None else table, path)
    return path


def test_the_unnamed_index_of_a_dataframe_is_left_out(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(N)
    path = write(tmp_path / "a.parquet", {"x": X, "__index_level_0__": rows}, ["__index_level_0__"])
    data = load(path)
    assert data.labels == ("x",)
    assert any("left out '__index_level_0__'" in note for note in data.notes)
    assert load(path, columns=("__index_level_0__", "x")).labels == ("__index_level_0__", "x")
    words = write(tmp_path / "b.parquet", {"x": X, "__index_level_0__": list(map(str, rows))})
    assert load(words).labels == ("x",)
    write(tmp_path / "c.parquet", {"__index_level_0__": rows})
    with pytest.raises(DiffusionalError, match=r"c.parquet has no columns besides the index"):
        load(tmp_path / "c.parquet")


def test_parts_with_and_without_an_index_are_one_table(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"x": X, "y": X})
    write(tmp_path / "1.parquet", {"__index_level_0__": np.arange(N), "y": X, "x": X})
    data = load(tmp_path)
    assert data.labels == ("x", "y")
    assert any(note.startswith("1.parquet: left out") for note in data.notes)


def test_a_named_index_is_refused_unless_it_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"subject": np.arange(N), "x": X}, ["subject"])
    with pytest.raises(DiffusionalError, match=r"'subject' is the index of the DataFrame.*columns=\('x',\)"):
        load(path)
    assert load(path, columns=("x",)).labels == ("x",)
    assert load(path, columns=("x", "subject")).labels == ("x", "subject")


@pytest.mark.parametrize(
    "note", [b"", b"no json", b"[1]", b'{"index_columns": 3}', b'{"index_columns": [{"kind": "range"}]}']
)
def test_metadata_without_an_index(tmp_path: Path, note: bytes) -> None:
    assert load(write(tmp_path / "a.parquet", {"x": X, "y": X}, note=note)).labels == ("x", "y")


def test_no_columns(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"a.parquet has no columns; expected"):
        load(write(tmp_path / "a.parquet", {}))
    with pytest.raises(DiffusionalError, match="columns must have at least one name"):
        load(write(tmp_path / "a.parquet", {"x": X}), columns=())
    with pytest.raises(DiffusionalError, match="decimal=',' is for text"):
        load(tmp_path / "a.parquet", decimal=",")


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_integers_that_float64_would_change(tmp_path: Path, kind: str) -> None:
    column = pa.array([i if i % 3 else None for i in range(N)], pa.int64()).cast(kind)
    ids = pa.chunked_array([column.fill_null(5), pa.array([2**53 + 1], kind)])
    path = write(tmp_path / "a.parquet", {"x": [*X, 1.0], "id": ids})
    with pytest.raises(DiffusionalError, match=rf"'id' in row {N + 1} is {2**53 + 1}, which float64 would change"):
        load(path)
    held = write(tmp_path / "b.parquet", {"x": X, "id": pa.array([2**53 + 2 * i for i in range(N)], kind)})
    assert float(load(held).tensor("train")[:, 1].max()) > 2**53


def test_rows_are_counted_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 7)
    monkeypatch.setattr(parquet, "_BLOCK", 8)
    path = write(tmp_path / "a.parquet", {"x": X, "id": [*range(N - 1), -(2**60) - 1]})
    with pytest.raises(DiffusionalError, match=f"'id' in row {N} is -"):
        load(path)


class Counted:
    """A schema that adds up what its answers hold."""

    def __init__(self, schema: pa.Schema, cost: list[int]) -> None:
        self._schema, self._cost = schema, cost

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._schema, name)
        self._cost[0] += len(value) if isinstance(value, list) else 1
        return value

    def __iter__(self) -> Any:
        self._cost[0] += len(self._schema)
        return iter(self._schema)


def test_names_are_not_searched_for_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, made = [0], {}
    original = pq.ParquetFile

    class Watched(original):
        @property
        def schema_arrow(self) -> Any:
            return Counted(super().schema_arrow, cost)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    for width in (50, 200):
        path = write(tmp_path / f"{width}.parquet", {f"x{j}": X for j in range(width)})
        cost[0] = 0
        assert len(tables.column_names(path)) == width
        load(path)
        made[width] = cost[0]
    assert made[200] < 5 * made[50]


# Booleans: the same in every format.


def boolean_files(folder: Path, values: np.ndarray, others: dict[str, np.ndarray]) -> list[Path]:
    """The same table as Parquet, and as CSV in three spellings."""
    columns = {f"b{j}": column for j, column in enumerate(values.T)} | others
    paths = [write(folder / "a.parquet", columns)]
    for spelled in (("False", "True"), ("false", "true"), ("FALSE", "TRUE")):
        lines = [
            ",".join(spelled[int(v)] if isinstance(v, np.bool_) else repr(float(v)) for v in row)
            for row in zip(*columns.values(), strict=False)
        ]
        path = folder / f"{spelled[0]}.csv"
        path.write_text("\n".join([",".join(columns), *lines]) + "\n")
        paths.append(path)
    return paths


def test_booleans_have_two_levels_in_tables_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((N, 3)) < 0.4
    values[0, 0], values[1, 0] = True, False
    np.save(tmp_path / "a.npy", values)
    array = load(tmp_path / "a.npy")
    for path in boolean_files(tmp_path, values, {}):
        table = load(path)
        assert table.space == array.space == Discrete((3,), 2)
        assert table.fingerprint("train") == array.fingerprint("train")
        with pytest.raises(DiffusionalError, match="levels=2 for booleans, got levels=7"):
            load(path, levels=7)


def test_booleans_among_numbers_are_0_and_1(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((N, 1)) < 0.4
    values[0, 0], values[1, 0] = True, False
    for path in boolean_files(tmp_path, values, {"x": X}):
        data = load(path)
        assert isinstance(data.space, Continuous)
        assert sorted(set(data.train[:, 0].tolist())) == [0.0, 1.0]
        assert any("'b0' of booleans read as 0 and 1" in note for note in data.notes)
    gap = tmp_path / "gap.csv"
    gap.write_text("b,x\n" + "true,1.5\n,2.5\nfalse,0.5\n" * 4)
    with pytest.raises(DiffusionalError, match=r"'b' in row 2 .*is missing"):
        load(gap)
    gap.write_text("b,x\n" + "true,1.5\nfalse,2.5\nmaybe,0.5\n" * 4)
    with pytest.raises(DiffusionalError, match=r"'b'.*not n"):
        load(gap)
