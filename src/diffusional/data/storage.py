"""Storage of decoded values: in memory if they take at most half of the free memory, otherwise in a file of the cache.

The cache is $XDG_CACHE_HOME/diffusional (~/.cache/diffusional). A file gets its name only when it is complete. The name is a hash
of the sources, so that a file is never used for changed sources. If several processes need it, one of them writes it and the others
wait; if that process dies, another one takes over.
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

_GLANCE = 0.1  # seconds between checks of the file that another process writes
_PATIENCE = (
    6 * 3600.0
)  # seconds of waiting for it; it takes so long only if it hangs, since the end of a process is noticed


def store(
    shape: tuple[int, ...], dtype: str, made_from: Callable[[], Any], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """Return an array of a shape that `fill` has filled: in memory, or mapped from the cache, where it may exist already.

    `made_from` returns, as JSON values, everything that the values depend on. The processes that a launcher started on this machine
    share its memory. Raises DiffusionalError for a disk that is too full or cannot be written, and if another process hangs.

    >>> store((2, 3), "uint8", lambda: "sevens", lambda out: out.fill(7)).tolist()
    [[7, 7, 7], [7, 7, 7]]
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= available_memory() / 2 / max(1, launch.number("LOCAL_WORLD_SIZE", 1)):
        out = np.empty(shape, dtype)
        fill(out)
        return out
    # The layout is part of the hash, since a new version of this code may store the same source in another layout.
    text = json.dumps([1, shape, dtype, made_from()])
    path = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        _once(path, lambda: _write(path, shape, dtype, size, fill))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def available_memory() -> int:
    """Return the number of bytes of free memory, or half of the memory if the system does not report it.

    >>> available_memory() > 2**20
    True
    """
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return page * os.sysconf("SC_PHYS_PAGES") // 2


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusional"


def _once(path: Path, make: Callable[[], None]) -> None:
    """Call `make` for `path` in one process at a time.

    The system releases a lock when its process ends in any way. Therefore no process waits for one that has ended, or for one that
    stores the values in memory.
    """
    lock, until = path.with_name(f".{path.stem}.lock"), time.monotonic() + _PATIENCE
    while not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = lock.open("a")
        except OSError as error:
            raise DiffusionalError(
                f"{path.parent} cannot be written ({error}); the values are more than half of the free memory and need a file: "
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _drop_drafts(path)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise DiffusionalError(
                        f"another process has been writing {path} for {_PATIENCE / 3600:.2g} hours; check whether it hangs and end "
                        "it, or set XDG_CACHE_HOME to another folder"
                    ) from error
                time.sleep(_GLANCE)
                continue
            except OSError:  # a file system without locks: several processes may write, each a draft of its own
                pass
            if not _is(lock, handle):  # its holder has finished and removed it after it was opened here
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
    """Remove drafts of processes of this machine that have died. The caller must have the lock."""
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
    # The name is unique to this process, even on a disk that machines share.
    draft = folder / f".{path.stem}.{platform.node()}.{os.getpid()}.npy"
    try:
        out = np.lib.format.open_memmap(draft, mode="w+", dtype=np.dtype(dtype), shape=shape)
        fill(out)
        out.flush()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
