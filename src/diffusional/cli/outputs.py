"""The files of the options --json and --per-item: they are checked before the work, and written before anything is printed.

A regular file is replaced completely or not at all, and a symbolic link stays a link. A named pipe, a terminal or /dev/fd/N
(`--json >(jq .)`) is opened before the work and written through; it is never replaced. `--json -` is standard output.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from diffusional.errors import DiffusionalError

# Special files by their path. They stay open from the check to the end: the reader of a pipe would otherwise see its end.
_OPENED: dict[Path, BinaryIO] = {}
# The files of a run folder, which no result may replace.
_OF_A_RUN = {
    "config.json",
    "data.json",
    "profile.json",
    "plan.json",
    "metrics.jsonl",
    "timing.jsonl",
    "model.safetensors",
}
# Errors of a rename in a folder that cannot be changed, where the file itself may still be writable.
_NO_RENAME = {errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS}


def check_target(option: str, path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check, before the work, that a result can be written to `path`, and open it if it is a special file.

    Args:
        option: the option that names the path, for messages.
        path: where the result goes.
        inputs: files that the command reads, which the result must not replace.

    Raises DiffusionalError for folders, missing or read-only folders, pipes without a reader, sockets and block devices, files
    that the command reads, files of a run, and, for --json, existing files that are not JSON.

    >>> check_target("--json", Path("/"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: --json /: this is a folder; give a file
    """
    if is_standard_output(path):
        return
    said = f"{option} {path}"
    descriptor = _descriptor(path)
    if descriptor is not None:
        _OPENED[path] = _duplicate(said, descriptor)
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise DiffusionalError(f"{said}: this cannot be written ({getattr(error, 'strerror', error)})") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise DiffusionalError(f"{said}: this is a folder; give a file")
    if mode is not None and not stat.S_ISREG(mode):
        _OPENED[path] = _special(said, path, mode)
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise DiffusionalError(f"{said}: the folder {target.parent} does not exist")
    if not _renames(target) and not (target.exists() and os.access(target, os.W_OK)):
        raise DiffusionalError(f"{said}: no permission to write in {target.parent}; name a file in another folder")
    if target.exists():
        _check_existing(option, path, target, inputs)


def _check_existing(option: str, path: Path, target: Path, inputs: Iterable[Path]) -> None:
    """Raise DiffusionalError for an existing file that a result must not replace, such as one named by mistake."""
    if any(one.is_file() and one.samefile(target) for one in inputs):
        raise DiffusionalError(f"{option} {path}: the command reads this file; name another file for the result")
    if target.name in _OF_A_RUN and (target.parent / "config.json").is_file():
        raise DiffusionalError(f"{option} {path}: this file belongs to the run {target.parent}; name another file")
    if option == "--json":
        with target.open("rb") as file:
            head = file.read(64).lstrip()
        if head and not head.startswith((b"{", b"[")):
            raise DiffusionalError(
                f"{option} {path}: this file exists and is not JSON; name another file, or remove it"
            )


def is_standard_output(path: Path) -> bool:
    """Return whether a result goes to standard output: `-`, /dev/stdout, or the file that standard output is redirected to.

    >>> is_standard_output(Path("-")), is_standard_output(Path("r.json"))
    (True, False)
    """
    if str(path) == "-" or _descriptor(path) == 1:
        return True
    try:
        return stat.S_ISREG(os.fstat(1).st_mode) and os.path.samestat(path.stat(), os.fstat(1))
    except (OSError, ValueError):
        return False


def save(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a result to a path that `check_target` has checked. Raises DiffusionalError if that fails.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> save(path, lambda file: file.write(b"item"))
    >>> path.read_bytes()
    b'item'
    """
    from diffusional.files import writing

    if path in _OPENED:
        _written(path, _OPENED.pop(path), write)
        return
    target = Path(os.path.realpath(path))
    if not _renames(target):
        _written(path, target.open("wb"), write)
        return
    try:
        with writing(path) as (part,), part.open("wb") as file:
            write(file)
    except DiffusionalError as error:
        # A single file mounted into a container can be written but not replaced.
        cause = error.__cause__
        if not (isinstance(cause, OSError) and cause.errno in _NO_RENAME and target.is_file()):
            raise
        _written(path, target.open("wb"), write)


def close() -> None:
    """Close the special files that were opened and not written."""
    while _OPENED:
        _OPENED.popitem()[1].close()


def _written(path: Path, file: BinaryIO, write: Callable[[BinaryIO], Any]) -> None:
    try:
        with file:
            write(file)
    except OSError as error:
        raise DiffusionalError(f"{path} could not be written ({error.strerror or error})") from error


def _renames(target: Path) -> bool:
    return os.access(target.parent, os.W_OK | os.X_OK)


def _descriptor(path: Path) -> int | None:
    """Return N if the path is /dev/fd/N of this process or a link to it, such as /dev/stdout; else None."""
    name = os.path.abspath(path)
    for _ in range(40):
        folder = os.path.realpath(os.path.dirname(name))
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd|/dev/fd", folder) and os.path.basename(name).isdigit():
            return int(os.path.basename(name))
        try:
            name = os.path.join(folder, os.readlink(name))
        except (OSError, ValueError):
            return None
    return None


def _duplicate(said: str, descriptor: int) -> BinaryIO:
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise DiffusionalError(f"{said}: this is open for reading only")
        return os.fdopen(os.dup(descriptor), "wb")
    except OSError as error:
        raise DiffusionalError(f"{said}: this is not open") from error


def _special(said: str, path: Path, mode: int) -> BinaryIO:
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise DiffusionalError(f"{said}: this is a socket or a block device; give a file")
    try:
        # Without O_NONBLOCK this would block until a reader opens the pipe.
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
            raise DiffusionalError(f"{said}: this named pipe has no reader; start the reader first") from error
        raise DiffusionalError(f"{said}: this cannot be written ({error.strerror})") from error
    os.set_blocking(handle, True)
    return os.fdopen(handle, "wb")
