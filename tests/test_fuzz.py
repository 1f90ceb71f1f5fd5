"""Whatever bytes a config or a data file holds, only a DiffusionalError comes out, or something valid: never another exception."""

import io
import json
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffusional import DiffusionalError, cli, data
from diffusional.training.config import Config

# Files are written to one folder over and over: that it is the same one for all examples does no harm.
fuzz = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

numbers = st.one_of(
    st.integers(), st.integers(10**300, 10**310), st.floats(), st.sampled_from([0, -1, 2**63, 1e308, True, False])
)
scalars = st.one_of(st.none(), numbers, st.text(max_size=8), st.sampled_from(["digits", "vae", "\ud800", "\0"]))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
known = st.sampled_from(
    [*Config.__dataclass_fields__, "stepz", "", "ключ"]  # some that are there, some that are nearly there
)
sections = st.sampled_from(
    ["name", "levels", "kind", "steps", "widths", "dropout", "lr", "sizes", "warps", "columns", "gamma_min"]
)
records = st.dictionaries(known, values | st.dictionaries(sections, values, max_size=3), max_size=4)


def only_ours(work: Callable[[], Any]) -> Any:
    """What `work` gives; None where it refuses. Any other exception is a failure."""
    try:
        return work()
    except DiffusionalError:
        return None


@fuzz
@given(record=records | values)
@example(record={"optimizer": {"lr": 10**400}})
@example(record={"steps": float("nan")})
@example(record={"model": {"widths": [[[]]]}})
@example(record={"data": {"levels": True}})
def test_any_json_as_a_config(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    config = only_ours(lambda: Config.load(path))
    if config is not None:
        assert Config.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


@fuzz
@given(content=st.binary(max_size=200))
@example(content=b"[" * 100_000)
@example(content=b'{"steps": ' + b"9" * 5000 + b"}")
@example(content=b'{"a":' * 900 + b"1" + b"}" * 900)
@example(content=b'{"data": {"name": ' + b"[" * 900 + b"]" * 900 + b"}}")
@example(content=b"\xff\xfe{}")
@example(content=b"")
def test_any_bytes_as_a_config(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    only_ours(lambda: Config.load(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 40 items 1×4×4."""
    folder = tmp_path_factory.mktemp("fuzz")
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (40, 1, 4, 4)))
    options = ["--data.levels", "5", "--model.widths", "8", "8", "--model.blocks", "1", "--batch", "8", "--steps", "2"]
    cli.main(["train", str(folder / "run"), "--data.name", str(folder / "tiny.npy"), *options])
    return folder / "run"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_config_is_no_run_to_resume(
    run: Path, tmp_path: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, with other bytes in it, or with another value at one of its keys: refused in a line, and left as it is."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    config = copy / "config.json"
    content = config.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "overwritten", "another value"]))
    place = data.draw(st.integers(0, len(content) - 2))
    if kind == "cut":
        config.write_bytes(content[:place])
    elif kind == "overwritten":
        config.write_bytes(content[:place] + data.draw(st.binary(min_size=1, max_size=4)) + content[place + 4 :])
    else:
        record = json.loads(content)
        record[data.draw(st.sampled_from(sorted(record)))] = data.draw(values.filter(lambda v: not _harmless(v)))
        config.write_text(json.dumps(record))
    # A resumed run's config is written anew before its checkpoint is looked at; weights and metrics stay whatever comes.
    kept = [path for path in copy.rglob("*") if path.is_file() and (path != config or kind != "another value")]
    before = {path: path.read_bytes() for path in kept}
    try:
        cli.main(["train", str(copy), "--resume"])
        status = 0
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status in (0, 2)  # a space for another is no damage
    if status == 2:
        assert err.startswith("diffusional: error: ")
        assert err.count("\n") == 1
        assert {path: path.read_bytes() for path in kept} == before


def _harmless(value: Any) -> bool:
    """Values that would make another config which trains, perhaps for long: what is fuzzed is the refusal."""
    return isinstance(value, int) and not isinstance(value, bool)


# Arrays.


def load_is_ours(path: Path, **options: Any) -> Any:
    """Load, and read what was loaded: a view may find only then that the file is not what it says."""

    def work() -> Any:
        loaded = data.load(path, **options)
        return [loaded.encode(split) for split in ("train", "validation", "test")]

    return only_ours(work)


def npy(header: bytes, body: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A .npy file of any header, whose declared length may be another than its own."""
    size = len(header) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", size) + header + body


shapes = st.one_of(
    st.lists(st.integers(-2, 5), max_size=5).map(tuple),
    st.sampled_from([(10**12,), (2**40, 2**40), (10**6, 10**6), (2**63,), (1,) * 40, (0, 2**62), ("a",), (1.5,), ()]),
)
types = st.sampled_from(
    ["<f8", "|u1", "<i8", "|O", "<U4", "V3", "<c16", "M8[s]", "|b1", ">f2", "nonsense", "<f8,<i4", "|S0", ""]
)


@fuzz
@example(shape=(2**63,), kind="<f8", fortran=False, body=b"", version=(1, 0), levels=None)
@example(shape=(-2, 4), kind="<f8", fortran=False, body=b"", version=(1, 0), levels=None)
@example(shape=(2**40, 2**40), kind="|S0", fortran=True, body=b"", version=(1, 0), levels=None)
@given(
    shape=shapes,
    kind=types,
    fortran=st.sampled_from([True, False, 3]),
    body=st.binary(max_size=320),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    levels=st.sampled_from([None, 2, 256]),
)
def test_any_npy_header(
    shape: Any, kind: str, fortran: Any, body: bytes, version: tuple[int, int], levels: int | None, tmp_path: Path
) -> None:
    header = f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}\n".encode()
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header, body, version))
    load_is_ours(path, levels=levels)


@fuzz
@given(header=st.binary(max_size=120), length=st.none() | st.integers(0, 65535), body=st.binary(max_size=60))
@example(header=b"{", length=None, body=b"")
@example(header=b"{" * 60_000, length=None, body=b"")
@example(header=b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}\n", length=None, body=b"")
@example(header=b"__import__('os').abort()\n", length=None, body=b"")
def test_any_bytes_as_an_npy_header(header: bytes, length: int | None, body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header, body, length=length))
    load_is_ours(path)


@fuzz
@given(
    content=st.binary(max_size=300),
    suffix=st.sampled_from(["npy", "npz", "idx", "idx.gz", "csv", "tsv", "csv.gz", "parquet"]),
)
@example(content=b"PK\x03\x04", suffix="npz")
@example(content=b"PK\x05\x06" + bytes(18), suffix="npz")
@example(content=b"\x1f\x8b\x08", suffix="idx.gz")
@example(content=b"\x80\x04.", suffix="npy")
@example(content=b"a,b\n1,2,3\n", suffix="csv")
@example(content=b"\xc2", suffix="csv")
@example(content=b"\xef\xbb\xbf", suffix="tsv")
@example(content=b"a,b\r1,2\r", suffix="csv")
@example(content=b"PAR1" + bytes(8) + b"PAR1", suffix="parquet")
def test_any_bytes_as_a_data_file(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    load_is_ours(path)


@fuzz
@given(cut=st.integers(0, 700), flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3))
def test_a_damaged_npz(cut: int, flips: list[tuple[int, int]], tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, train=np.arange(30.0).reshape(10, 3), test=np.arange(9.0).reshape(3, 3))
    content = bytearray(file.getvalue())
    for place, value in flips:
        content[place % len(content)] = value
    path = tmp_path / "a.npz"
    path.write_bytes(bytes(content[: len(content) - cut]) if cut < 350 else bytes(content))
    load_is_ours(path)


def test_an_npz_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for name, content in (("a.npy", b""), ("a.txt", b"hello"), ("../a.npy", b"\x93NUMPY"), ("a.npy", npy(b"{}", b""))):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, content)
        assert load_is_ours(path) is None


@fuzz
@given(
    head=st.tuples(
        st.integers(0, 255), st.integers(0, 255), st.sampled_from([8, 9, 11, 12, 13, 14, 0, 255]), st.integers(0, 255)
    ),
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 2**16, 2**31, 2**32 - 1]), max_size=4),
    body=st.binary(max_size=200),
    levels=st.sampled_from([None, 256]),
)
@example(head=(0, 0, 8, 3), lengths=[2**32 - 1] * 3, body=b"", levels=256)
def test_any_idx_header(
    head: tuple[int, ...], lengths: list[int], body: bytes, levels: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(bytes(head) + struct.pack(f">{len(lengths)}I", *lengths) + body)
    load_is_ours(path, levels=levels)


@pytest.mark.parametrize("suffix", ["npy", "npz", "idx"])
def test_a_huge_declared_shape_takes_no_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    header = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000)}\n", bytes(100))
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy", header)
    else:
        path.write_bytes(
            header if suffix == "npy" else bytes([0, 0, 14, 2]) + struct.pack(">II", 10**6, 1000) + bytes(9)
        )
    tracemalloc.start()
    try:
        assert load_is_ours(path) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**26
