"""IDX, the format of MNIST's files: a header of big-endian numbers, then the values, last axis fastest.

    bytes 0–1   zero
    byte  2     type: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    byte  3     number of axes n
    4 n bytes   the axes' lengths, uint32
    the rest    the values, exactly as many as the lengths say

Source: the description at the foot of Y. LeCun's MNIST page. A file may be gzipped; it is recognised by its
first bytes, not its name.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from diffusional.errors import DiffusionalError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MOST_AXES = 32  # what every NumPy can hold


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not, with the shape its header declares and in native byte order.

    Raises DiffusionalError when the file cannot be read or unpacked, has another magic number, declares no
    axes, or does not hold exactly the bytes its header promises.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.idx"
    ...     _ = path.write_bytes(bytes([0, 0, 0x08, 1]) + bytes([0, 0, 0, 2]) + bytes([7, 9]))
    ...     read_idx(path)
    array([7, 9], dtype=uint8)
    """
    content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\x00\x00" or content[2] not in _TYPES:
        raise DiffusionalError(
            f"{path} starts with {content[:4].hex(' ') or 'nothing'}, which is no IDX magic number; expected "
            f"00 00, a type ({', '.join(f'{code:02x}' for code in _TYPES)}) and the number of axes"
        )
    axes = content[3]
    if not 1 <= axes <= _MOST_AXES:
        raise DiffusionalError(f"{path} declares {axes} axes; expected 1 to {_MOST_AXES} in the fourth byte")
    start = 4 + 4 * axes
    if len(content) < start:
        raise DiffusionalError(
            f"{path} is truncated: {axes} axes need a header of {start} bytes, {len(content)} came; get the file again"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=axes, offset=4))
    dtype = np.dtype(_TYPES[content[2]])
    promised, came = math.prod(shape) * dtype.itemsize, len(content) - start
    if came != promised:
        fault = "is truncated" if came < promised else "is too long"
        raise DiffusionalError(
            f"{path} {fault}: its header promises {promised} bytes of values (shape {shape}, {dtype.name}), "
            f"{came} came; get the file again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    # A copy, since arrays over bytes are read-only and torch wants to own what it wraps.
    return values.astype(dtype.newbyteorder("="))


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == _GZIP else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DiffusionalError(f"{path} is a damaged gzip file ({error}); get the file again") from error
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error}); check the path and its permissions") from error


def read_mnist_folder(folder: Path) -> dict[str, np.ndarray]:
    """The images "train" and "test" of a folder with MNIST's files (or Fashion-MNIST's, KMNIST's, …).

    Raises DiffusionalError, naming what is missing and what the folder holds, unless both files are there.

    >>> read_mnist_folder(Path("/"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: / holds no train-images-idx3-ubyte[.gz] and ...
    """
    arrays, missing = {}, []
    for split, stem in (("train", "train-images-idx3-ubyte"), ("test", "t10k-images-idx3-ubyte")):
        found = [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
        if found:
            arrays[split] = read_idx(found[0])
        else:
            missing.append(f"{stem}[.gz]")
    if missing:
        names = sorted(path.name for path in folder.iterdir())
        held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DiffusionalError(
            f"{folder} holds no {' and no '.join(missing)} (it holds: {held or 'nothing'}); "
            "a folder must hold MNIST's two image files. For other data give the file itself"
        )
    return arrays
