"""Samples of a table as a table: CSV or Parquet, with the names and in the units of the data's columns."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for

SUFFIXES = (".csv", ".parquet")


def check_table(out: Path, columns: Sequence[str], option: str = "--out") -> None:
    """Raise DiffusionalError for a file that is neither .npz nor a table, and for a table of samples that have no columns.

    >>> check_table(Path("a.csv"), ())
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected an .npz file for --out, since the run was not trained on a table, got a.csv
    """
    if out.suffix == ".npz":
        return
    if out.suffix not in SUFFIXES and not columns:
        raise DiffusionalError(f"expected an .npz file for {option}, got {out}")
    if out.suffix not in SUFFIXES:
        raise DiffusionalError(f"expected an .npz, .csv or .parquet file for {option}, got {out}")
    if not columns:
        raise DiffusionalError(
            f"expected an .npz file for {option}, since the run was not trained on a table, got {out}"
        )
    if out.suffix == ".parquet":
        with needed_for("tables"):
            import pyarrow.parquet  # noqa: F401


def write_table(path: Path, columns: Mapping[str, Any], suffix: str) -> None:
    """Write columns (N,) by name as CSV, or as Parquet with `suffix` ".parquet". Numbers are written so that they are read back exactly.

    >>> import tempfile
    >>> import numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_table(path, {"height, m": np.array([1.5, 2.0]), "count": np.array([3, 4])}, ".csv")
    >>> path.read_text(encoding="utf-8").splitlines()
    ['"height, m",count', '1.5,3', '2.0,4']
    """
    if suffix == ".parquet":
        with needed_for("tables"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        pq.write_table(pa.table(dict(columns)), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        # str of a number of NumPy has the fewest digits that are read back as the same number.
        writer.writerows(zip(*([str(value) for value in column] for column in columns.values()), strict=True))
