"""Samples of a run that was trained on a table, as CSV and Parquet: its columns and units, readable as data again."""

import csv
from pathlib import Path

import numpy as np
import pytest

from diffusional import cli
from diffusional.data import load

TINY = ["--model.hidden", "8", "--batch", "8", "--steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 60 rows of the columns `height, m` near 1000 and `n`."""
    folder = tmp_path_factory.mktemp("tables")
    rows = np.random.default_rng(0).normal(size=(60, 2)) * [100, 1] + [1000, 0]
    lines = ['"height, m",n', *(f"{a:.3f},{b:.3f}" for a, b in rows)]
    (folder / "own.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cli.main(["train", str(folder / "run"), "--data", str(folder / "own.csv"), *TINY])
    return folder / "run"


def sample(run: Path, out: Path, *options: str) -> None:
    cli.main(["sample", str(run), "--n", "40", "--steps", "20", "--out", str(out), *options])


def test_csv_and_parquet_have_the_samples_of_the_npz(run: Path, tmp_path: Path) -> None:
    for name in ("s.npz", "s.csv", "s.parquet"):
        sample(run, tmp_path / name)
    whole = np.load(tmp_path / "s.npz")["samples"]
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["height, m", "n"]
    assert np.array_equal(np.array(rows, dtype=whole.dtype), whole)
    assert abs(whole[:, 0].mean() - 1000) < 150  # in the units of the data
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == header
    assert np.array_equal(np.stack([table[name].to_numpy() for name in header], 1), whole)
    assert load(str(tmp_path / "s.csv")).labels == ("height, m", "n")


def test_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.csv").write_text("kept", encoding="utf-8")
    for name, part in (("s.csv", "exists"), ("s.txt", ".csv or .parquet")):
        with pytest.raises(SystemExit) as stop:
            sample(run, tmp_path / name)
        assert stop.value.code == 2
        assert part in capsys.readouterr().err
    assert (tmp_path / "s.csv").read_text(encoding="utf-8") == "kept"
