"""Where decoded values live: in memory if they take at most half of what is free, else in a file of the cache.

The cache is $XDG_CACHE_HOME/diffusional (~/.cache/diffusional). A file appears there under its name only when it
is whole; its name is a hash of what it was made from, so that a changed source is never mistaken for it.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.errors import DiffusionalError


def store(
    shape: tuple[int, ...], dtype: str, made_from: Callable[[], Any], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array of a shape that `fill` has filled: in memory, or mapped from the cache, where it may lie already.

    `made_from` gives, JSON-ready, all that decides the values. Raises DiffusionalError for a disk that is too full.

    >>> store((2, 3), "uint8", lambda: "sevens", lambda out: out.fill(7)).tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= available_memory() / 2:
        out = np.empty(shape, dtype)
        fill(out)
        return out
    # Hashed together with its layout: a new version of this code may lay out the same source otherwise.
    text = json.dumps([1, shape, dtype, made_from()])
    path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        _write(path, shape, dtype, size, fill)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def available_memory() -> int:
    """Bytes of memory that are free, or where the system does not tell, half of all.

    >>> available_memory() > 2**20
    True
    """
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return page * os.sysconf("SC_PHYS_PAGES") // 2


def cache_folder() -> Path:
    """The folder of the cache, which exists or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusional"


def _write(path: Path, shape: tuple[int, ...], dtype: str, size: int, fill: Callable[[np.ndarray], None]) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.02 * size:
        raise DiffusionalError(
            f"the values take {size / 2**30:.1f} GiB, more than half of the free memory and more than the "
            f"{free / 2**30:.1f} GiB that are free in {folder}; free some, set XDG_CACHE_HOME to a larger disk, or "
            "give images a smaller size (--data.size)"
        )
    # A name of this process's own: several may be at work on the same data, and the last to finish wins with equal bytes.
    draft = folder / f".{path.stem}.{os.getpid()}.npy"
    try:
        out = np.lib.format.open_memmap(draft, mode="w+", dtype=np.dtype(dtype), shape=shape)
        fill(out)
        out.flush()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
