"""IDX files: what is written by the format's description is read back; what breaks it is refused with its numbers."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from diffusional.data.idx import read_idx, read_mnist_folder
from diffusional.errors import DiffusionalError

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    """IDX as its description has it, number by number, apart from the reader's way of doing it."""
    header = struct.pack(">HBB", 0, CODES[values.dtype.name], values.ndim)
    header += b"".join(struct.pack(">I", n) for n in values.shape)
    letter = {"uint8": "B", "int8": "b", "int16": "h", "int32": "i", "float32": "f", "float64": "d"}
    return header + b"".join(struct.pack(">" + letter[values.dtype.name], v) for v in values.ravel().tolist())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dtype", list(CODES))
def test_round_trip_of_every_type(tmp_path: Path, dtype: str, zipped: bool) -> None:
    # −3 and 300 tell signed from unsigned and one byte order from the other.
    low, high = (-3, 120) if dtype == "int8" else (0, 250) if dtype == "uint8" else (-300, 300)
    values = np.random.default_rng(0).integers(low, high, (3, 2, 5)).astype(dtype)
    content = idx_bytes(values)
    path = tmp_path / "a.idx"  # recognised by content, so the name need not say that it is zipped
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    read = read_idx(path)
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.writeable


def test_no_items_is_a_valid_file(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(idx_bytes(np.zeros((0, 4), np.uint8)))
    assert read_idx(tmp_path / "a.idx").shape == (0, 4)


def test_memory_is_what_the_header_declares(tmp_path: Path) -> None:
    (tmp_path / "bomb.idx").write_bytes(gzip.compress(idx_bytes(np.zeros(12, np.uint8)) + bytes(2**24), mtime=0))
    tracemalloc.start()
    with pytest.raises(DiffusionalError, match="too long"):
        read_idx(tmp_path / "bomb.idx")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


GOOD = idx_bytes(np.arange(12, dtype=np.int16).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-5], r"truncated: its header declares 24 bytes of values \(shape \(3, 4\), int16\), got 19"),
        (GOOD + b"\0", r"too long: its header declares 24 bytes .* got 25"),
        (GOOD[:9], "truncated: 2 axes need a header of 12 bytes, got 9"),
        (GOOD[:3], "not an IDX file: .* got 00 00 0b"),
        (b"", "not an IDX file: .* got an empty file"),
        (b"\x89PNG1234", "not an IDX file: expected it to start with 00 00, a type .* got 89 50 4e 47"),
        (b"\0\0\x0a\x01" + GOOD[4:], "not an IDX file: .* got 00 00 0a 01"),
        (b"\0\0\x08\0", "declares 0 axes; expected 1 to 32"),
        (b"\0\0\x08\x21" + bytes(200), "declares 33 axes; expected 1 to 32"),
        (b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8, r"declares shape \(0, 4294967295, 4294967295\), which is too large"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(9), r"truncated: its header declares 7\d{28} bytes .*, got 9"),
        (
            gzip.compress(b"\0\0\x08\x01\x7f\0\0\0", mtime=0),
            r"declares 2130706432 bytes .* a gzip file of \d+ bytes holds",
        ),
        (gzip.compress(GOOD[:-5], mtime=0), r"truncated: its header declares 24 bytes .*, got 19"),
        (gzip.compress(GOOD + bytes(2**20), mtime=0), r"too long: its header declares 24 bytes .* got at least 25"),
        (gzip.compress(GOOD, mtime=0) + b"more", "damaged gzip file"),
        (gzip.compress(GOOD, mtime=0)[:-12], "damaged gzip file"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 20, "damaged gzip file"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "damaged gzip file .*CRC"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken-ubyte"
    path.write_bytes(content)
    with pytest.raises(DiffusionalError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"gone.idx does not exist"):
        read_idx(tmp_path / "gone.idx")


def test_mnist_folder(tmp_path: Path) -> None:
    train, test = np.full((3, 4, 4), 1, np.uint8), np.full((2, 4, 4), 2, np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(train), mtime=0))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"never read")
    with pytest.raises(DiffusionalError, match=r"no t10k-images-idx3-ubyte\[.gz\] \(it holds: train-images") as caught:
        read_mnist_folder(tmp_path)
    assert "no train-images" not in str(caught.value)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(test))
    arrays = read_mnist_folder(tmp_path)
    np.testing.assert_array_equal(arrays["train"], train)
    np.testing.assert_array_equal(arrays["test"], test)


def test_an_unrelated_folder_names_its_files(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"no train-images.* and no t10k.* \(it holds: nothing\)"):
        read_mnist_folder(tmp_path)
    for i in range(8):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(DiffusionalError, match=r"it holds: 0.png, .*4.png and 3 more\)"):
        read_mnist_folder(tmp_path)
