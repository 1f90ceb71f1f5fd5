"""Where decoded values live: in memory if they take at most half of what is free, else in a file of the cache.

The cache is $XDG_CACHE_HOME/diffusional (~/.cache/diffusional). A file appears there under its name only when it
is whole; its name is a hash of what it was made from, so that a changed source is never mistaken for it. Of several processes
that need it one makes it, and the others wait; where that one dies, another takes over.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffusional import launch
from diffusional.errors import DiffusionalError

_GLANCE = 0.1  # seconds between looks at what another process is making
_PATIENCE = 6 * 3600.0  # seconds for it; only one that hangs takes so long, since one that dies is noticed


def store(
    shape: tuple[int, ...], dtype: str, made_from: Callable[[], Any], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array of a shape that `fill` has filled: in memory, or mapped from the cache, where it may lie already.

    `made_from` gives, JSON-ready, all that decides the values. The processes that a launcher started on this machine share its
    memory. Raises DiffusionalError for a disk that is too full or can't be written, and for another process that hangs.

    >>> store((2, 3), "uint8", lambda: "sevens", lambda out: out.fill(7)).tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= available_memory() / 2 / max(1, launch.number("LOCAL_WORLD_SIZE", 1)):
        out = np.empty(shape, dtype)
        fill(out)
        return out
    # Hashed together with its layout: a new version of this code may lay out the same source otherwise.
    text = json.dumps([1, shape, dtype, made_from()])
    path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        _once(path, lambda: _write(path, shape, dtype, size, fill))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def available_memory() -> int:
    """Return bytes of memory that are free, or where the system does not tell, half of all.

    >>> available_memory() > 2**20
    True
    """
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return page * os.sysconf("SC_PHYS_PAGES") // 2


def cache_folder() -> Path:
    """Return the folder of the cache, which exists or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusional"


def _once(path: Path, make: Callable[[], None]) -> None:
    """Have `path` made by one process at a time: the system frees a lock when its holder ends, however it does. So nobody waits
    for a process that isn't there, or for one that has decided for memory.
    """
    lock, until = path.with_name(f".{path.stem}.lock"), time.monotonic() + _PATIENCE
    while not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = lock.open("a")
        except OSError as error:
            raise DiffusionalError(
                f"{path.parent} can't be written ({error}); the values are more than half of the free memory and need a file: "
                "set XDG_CACHE_HOME to a folder where that is allowed"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _drop_drafts(path)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise DiffusionalError(
                        f"another process has been making {path} for {_PATIENCE / 3600:.2g} hours; see whether it hangs and end "
                        "it, or set XDG_CACHE_HOME to another folder"
                    ) from error
                time.sleep(_GLANCE)
                continue
            except OSError:  # a file system without locks: several may be at work, each on a draft of its own
                pass
            if not _is(lock, handle):  # its holder has finished, and removed it, since it was opened here
                continue
            try:
                if not path.exists():
                    make()
            finally:
                lock.unlink(missing_ok=True)


def _is(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _drop_drafts(path: Path) -> None:
    """Those of processes of this machine that died at work, as whoever has the lock knows."""
    for draft in path.parent.glob(f".{path.stem}.{platform.node()}.*.npy"):
        draft.unlink(missing_ok=True)


def _write(path: Path, shape: tuple[int, ...], dtype: str, size: int, fill: Callable[[np.ndarray], None]) -> None:
    folder = path.parent
    free = shutil.disk_usage(folder).free
    if free < 1.02 * size:
        raise DiffusionalError(
            f"the values take {size / 2**30:.1f} GiB, more than half of the free memory and more than the "
            f"{free / 2**30:.1f} GiB that are free in {folder}; free some, set XDG_CACHE_HOME to a larger disk, or "
            "give images a smaller size (--data.size)"
        )
    # A name of this process's own, on a disk that machines may share.
    draft = folder / f".{path.stem}.{platform.node()}.{os.getpid()}.npy"
    try:
        out = np.lib.format.open_memmap(draft, mode="w+", dtype=np.dtype(dtype), shape=shape)
        fill(out)
        out.flush()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
