"""IDX, the format of MNIST's files: a header of big-endian numbers, then the values, the last axis varying fastest.

    bytes 0–1   zero
    byte  2     type: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    byte  3     number of axes n
    4 n bytes   the axes' lengths, uint32
    the rest    the values, exactly as many as the lengths declare

Source: the description at the foot of Y. LeCun's MNIST page. A file may be gzipped; it is recognised by its
first bytes, not its name.
"""

import gzip
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MOST_AXES = 32  # supported by every version of NumPy
_BLOCK = 2**24  # bytes read at a time
_RATIO = 1032  # the largest compression ratio of deflate (zlib's technical details)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file, gzipped or not, with the shape declared by its header and in native byte order.

    No more memory is allocated than the header declares and the file can fill.

    Raises DiffusionalError if the file is not a regular file, cannot be read or unpacked, has another magic number,
    declares no axes, or does not hold exactly the bytes that its header declares.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.idx"
    ...     _ = path.write_bytes(bytes([0, 0, 0x08, 1]) + bytes([0, 0, 0, 2]) + bytes([7, 9]))
    ...     read_idx(path)
    array([7, 9], dtype=uint8)
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(2) == _GZIP:
                file.seek(0)
                with gzip.open(file) as unpacked:
                    return _array(unpacked, str(path), size, packed=True)
            file.seek(0)
            return _array(file, str(path), size, packed=False)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DiffusionalError(f"{path} is a damaged gzip file ({error}); get the file again") from error
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error}); check the path and its permissions") from error
    except MemoryError as error:
        raise DiffusionalError(
            f"{path} does not fit into memory. Convert it to an .npy file, which is read as needed"
        ) from error


def _array(file: Any, path: str, size: int, packed: bool) -> np.ndarray:
    """Read the array of an open IDX file; `size` is its number of bytes on disk, and `packed` is whether it is compressed by gzip."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\x00\x00" or head[2] not in _TYPES:
        raise DiffusionalError(
            f"{path} is not an IDX file: expected it to start with 00 00, a type ({', '.join(f'{code:02x}' for code in _TYPES)}) and "
            f"the number of axes, got {head.hex(' ') or 'an empty file'}"
        )
    axes = head[3]
    if not 1 <= axes <= _MOST_AXES:
        raise DiffusionalError(f"{path} declares {axes} axes; expected 1 to {_MOST_AXES} in the fourth byte")
    start = 4 + 4 * axes
    lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DiffusionalError(
            f"{path} is truncated: {axes} axes need a header of {start} bytes, got {4 + len(lengths)}; get the file again"
        )
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    dtype = np.dtype(_TYPES[head[2]])
    promised = math.prod(shape) * dtype.itemsize
    declared = f"its header declares {promised} bytes of values (shape {shape}, {dtype.name})"
    most = _RATIO * size if packed else size - start
    if promised > most:
        held = f"a gzip file of {size} bytes holds at most {most}" if packed else f"got {most}"
        raise DiffusionalError(f"{path} is truncated: {declared}, {held}; get the file again")
    content = np.empty(promised, np.uint8)
    done = 0
    while done < promised and (block := file.read(min(_BLOCK, promised - done))):
        content[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    if done < promised:
        raise DiffusionalError(f"{path} is truncated: {declared}, got {done}; get the file again")
    if file.read(1):  # at the end of a gzip file, this also verifies its checksum
        more = f"at least {promised + 1}" if packed else size - start
        raise DiffusionalError(f"{path} is too long: {declared}, got {more}; get the file again")
    try:
        values = content.view(dtype).reshape(shape)
    except ValueError as error:  # an axis of length 0 beside others whose product is too large
        raise DiffusionalError(f"{path} declares shape {shape}, which is too large; get the file again") from error
    return values if dtype.isnative else values.byteswap(inplace=True).view(dtype.newbyteorder("="))


def labels_beside(path: Path) -> np.ndarray:
    """Read the labels of an IDX file of images: the file with "labels" and "idx1" in its name instead of "images" and "idx3".

    Raises DiffusionalError if there is no such file, gzipped or not.

    >>> labels_beside(Path("/data/train-images-idx3-ubyte.gz"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: no labels beside /data/train-images-idx3-ubyte.gz: expected train-labels-idx1-ubyte[.gz]; ...
    """
    stem = path.name.removesuffix(".gz").replace("images", "labels")
    stem = re.sub(r"idx\d", "idx1", stem)
    expected = (
        f"{stem}[.gz]" if "images" in path.name else 'a name with "images", and a file with "labels" in its place'
    )
    found = [one for one in (path.with_name(stem), path.with_name(f"{stem}.gz")) if os.path.lexists(one)]
    if "images" not in path.name or not found:
        raise DiffusionalError(
            f"no labels beside {path}: expected {expected}; put it there, or leave the condition out"
        )
    return read_idx(found[0])


def read_mnist_labels(folder: Path) -> dict[str, np.ndarray]:
    """Read the labels "train" and "test" that belong to `read_mnist_folder`. Raises DiffusionalError unless both files are there."""
    stems = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
    return {split: labels_beside(folder / stem) for split, stem in stems.items()}


def read_mnist_folder(folder: Path) -> dict[str, np.ndarray]:
    """Return the images "train" and "test" of a folder with MNIST's files (or Fashion-MNIST's, KMNIST's, …).

    Raises DiffusionalError, naming what is missing and what the folder holds, unless both files are there.

    >>> read_mnist_folder(Path("/"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: / holds no train-images-idx3-ubyte[.gz] and ...
    """
    arrays, missing = {}, []
    for split, stem in (("train", "train-images-idx3-ubyte"), ("test", "t10k-images-idx3-ubyte")):
        found = [path for path in (folder / stem, folder / f"{stem}.gz") if os.path.lexists(path)]
        if found:
            arrays[split] = read_idx(found[0])
        else:
            missing.append(f"{stem}[.gz]")
    if missing:
        names = sorted(path.name for path in folder.iterdir())
        held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DiffusionalError(
            f"{folder} holds no {' and no '.join(missing)} (it holds: {held or 'nothing'}); "
            "expected a folder with MNIST's two image files. For other data give the file itself"
        )
    return arrays
