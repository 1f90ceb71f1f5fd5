"""Tensors and records on disk: safetensors and JSON, never a pickle; files are written completely or not at all.

Every writer works in a temporary folder of its own, beside the file that it replaces, and renames the finished file. Any number of
processes may therefore save the same record: readers always find a complete one, and a write that fails or is killed leaves the old
file unchanged.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:  # importing torch takes seconds, and reading JSON does not need it
    import torch

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


# Names of temporary folders. Folders that a killed process left behind are recognised by them and removed.
_WORKPLACE = re.compile(r"\.diffusional-[0-9a-f]{16}\.partial")
# No file of this package is larger, and JSON is read into memory as a whole.
_MOST_JSON = 2**28


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write tensors as safetensors. Raises DiffusionalError if the file cannot be written; an existing file is then unchanged.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_tensors(path, {"weight": torch.ones(2)})
    >>> load_tensors(path)["weight"]
    tensor([1., 1.])
    """
    with writing(path) as (part,):
        write_tensors(part, tensors)


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write tensors as safetensors to a path from `writing`. Raises OSError if that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own, seen = {}, set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage()
        # The format does not allow tensors that share memory. Only these are copied, since a model may fill half of it.
        if storage.data_ptr() in seen or storage.nbytes() != stored.nbytes:
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        own[name] = stored
    try:
        save_file(own, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def save_json(path: Path, record: Any) -> None:
    """Write JSON. Raises DiffusionalError if the file cannot be written; an existing file is then unchanged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "record.json"
    >>> save_json(path, {"steps": 3})
    >>> load_json(path)
    {'steps': 3}
    """
    text = json_text(record)
    with writing(path) as (part,):
        part.write_text(text, encoding="utf-8")


def json_text(record: Any) -> str:
    """Return a record as `save_json` writes it: indented, ASCII only, without NaN or infinity."""
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


@contextmanager
def writing(*paths: Path, overwrite: bool = True) -> Iterator[tuple[Path, ...]]:
    """Replace files completely or not at all; several files that belong together change together.

    Yields a temporary path for each of `paths`. At the end of the block all of them are synced to disk and then renamed, one directly
    after the other. If the block raises, nothing changes. New files get the permissions that the umask allows, replaced files
    keep theirs, and a symbolic link stays a link: the file that it points to is replaced.

    Args:
        paths: the files to write; their folders must exist.
        overwrite: if False, raise FileExistsError rather than replace an existing file.

    Raises DiffusionalError for paths that are not regular files and for an OSError in the block or while renaming.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> with writing(path) as (part,):
    ...     _ = part.write_text("item,nelbo")
    >>> path.read_text()
    'item,nelbo'
    """
    targets = [_target(path) for path in paths]
    with ExitStack() as stack:
        try:
            parts = [stack.enter_context(_workplace(target.parent)) / target.name for target in targets]
            # Record the mode that the umask allows: a library may replace the file by one of another mode.
            modes = [_created(part) for part in parts]
            yield tuple(parts)
            for part, target, mode in zip(parts, targets, modes, strict=True):
                with suppress(OSError):  # a file system without permissions
                    part.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else mode)
                _sync(part)
            for part, target in zip(parts, targets, strict=True):
                os.replace(part, target) if overwrite else _name_anew(part, target)
            for folder in {target.parent for target in targets}:
                _sync(folder)
        except FileExistsError as error:
            if not overwrite:
                raise
            raise not_written(paths[0], error) from error
        except OSError as error:
            raise not_written(paths[0], error) from error


def _target(path: Path) -> Path:
    """Return the file that is written under this name: the target of a symbolic link, or the path itself."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.exists() or target.is_symlink():
        check_regular(target)
    return target


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a temporary folder for this writer. Its lock shows that the writer is alive; other writers remove unlocked folders."""
    _tidy(folder)
    place, handle = _own_folder(folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(handle)


def _own_folder(folder: Path) -> tuple[Path, int]:
    while True:
        place = folder / f".diffusional-{secrets.token_hex(8)}.partial"
        place.mkdir()
        try:
            handle = os.open(place, os.O_RDONLY)
        except FileNotFoundError:  # removed by another process before it was locked
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        except OSError:  # a file system without locks, where no process removes folders either
            return place, handle
        if place.exists():
            return place, handle
        os.close(handle)


def _tidy(folder: Path) -> None:
    """Remove the temporary folders of killed writers, which are not locked."""
    with suppress(OSError), os.scandir(folder) as entries:
        for left in [Path(entry.path) for entry in entries if _WORKPLACE.fullmatch(entry.name)]:
            with suppress(OSError):
                handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(handle)


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary folder of `writing`, which a killed process may have left behind.

    >>> is_temporary(Path("runs/a/.diffusional-0123456789abcdef.partial")), is_temporary(Path("runs/a/data.json"))
    (True, False)
    """
    return _WORKPLACE.fullmatch(path.name) is not None


def _created(path: Path) -> int:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _name_anew(part: Path, target: Path) -> None:
    """Give a finished file a new name. Raises FileExistsError if the name exists, even if it has only just been created."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(part, target)


def not_written(path: Path, error: Exception) -> DiffusionalError:
    """Return the error for a file that could not be written. An existing file of that name is unchanged.

    >>> not_written(Path("runs/a/model.safetensors"), OSError("disk full")).args[0][:70]
    'runs/a/model.safetensors could not be written (disk full); an existing'
    """
    why = (isinstance(error, OSError) and error.strerror) or error
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return DiffusionalError(
            f"{path} could not be written: the folder {path.parent} does not exist. Create it first"
        )
    return DiffusionalError(
        f"{path} could not be written ({why}); an existing file is unchanged. Make room, or check the permissions of "
        "the folder, and try again (for a run: with --resume)"
    )


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Write a new folder completely or not at all. Yields a temporary folder, which gets the name `path` at the end of the block.

    Raises DiffusionalError if `path` exists, which is then unchanged, and if it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model"
    >>> with writing_folder(path) as part:
    ...     _ = (part / "README.md").write_text("A model.")
    >>> [one.name for one in path.iterdir()]
    ['README.md']
    """
    if os.path.lexists(path):
        raise DiffusionalError(f"{path} exists and was not changed; name a new folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(path.parent) as place:
            part = place / path.name
            part.mkdir()
            yield part
            settle(part, path)
    except OSError as error:
        raise DiffusionalError(
            f"{path} could not be written ({error.strerror or error}); make room, or name another folder"
        ) from error


def settle(temporary: Path, path: Path) -> None:
    """Sync a finished file or folder to disk, then give it its name."""
    for written in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
        _sync(written)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_SPECIAL = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}


def check_regular(path: Path) -> None:
    """Raise DiffusionalError unless `path` is a regular file, or a link to one.

    Call this before opening any file that a user names. Opening a named pipe blocks until a writer opens it, and
    a device such as /dev/zero has no end. Missing files, dangling links and loops of links are refused too.

    >>> check_regular(Path("/dev/zero"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: /dev/zero is a character device, expected a regular file. Write its content ...
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DiffusionalError(
                f"{path} is a link to {os.readlink(path)}, which does not exist. Restore the target or remove the link"
            ) from error
        raise DiffusionalError(f"{path} does not exist, expected a regular file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DiffusionalError(f"{path!s} could not be read ({error}). Check the path and its permissions") from error
    if not stat.S_ISREG(mode):
        what = _SPECIAL.get(stat.S_IFMT(mode), "not a regular file")
        advice = "Give a file in it" if stat.S_ISDIR(mode) else "Write its content to a file and give that"
        raise DiffusionalError(f"{path} is {what}, expected a regular file. {advice}")


def text_of(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file that a user names. Raises DiffusionalError for one that is not regular, cannot be read or is not UTF-8.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "latin.txt"
    >>> _ = path.write_bytes("é".encode("latin-1"))
    >>> text_of(path)                                                                        # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected ...latin.txt to be a text in UTF-8, got unexpected end of data at byte 0
    """
    check_regular(path)
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise DiffusionalError(
            f"expected {path} to be a text in UTF-8, got {error.reason} at byte {error.start}"
        ) from error
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error.strerror})") from error


def sha256(path: Path) -> str:
    """Return SHA-256 of a file's bytes, 64 hexadecimal digits. Raises OSError if it is not a regular file or cannot be read."""
    if path.exists() and not path.is_file():  # opening a named pipe would block
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """Read safetensors. Raises DiffusionalError for a missing, corrupt or foreign file; a pickle is never loaded."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists() and not path.is_symlink():
        raise DiffusionalError(f"{path} does not exist; expected a safetensors file")
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error.strerror}). Check its permissions") from error
    # A zip archive is torch.save's format; \x80 opens a pickle of protocol 2 and later. A safetensors file may begin with
    # the same bytes, the length of its header, but then the header's brace follows.
    pickled = head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
    if (pickled and head[8:9] != b"{") or path.suffix in _PICKLES:
        raise DiffusionalError(
            f"{path} is a pickle, which can run code when it is loaded; it was not opened. "
            "Convert it where you trust it: safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DiffusionalError(f"{path} is corrupt or no safetensors file: {error}") from error


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DiffusionalError if the file is missing, broken or not a regular file."""
    record = _parsed(path, "JSON", json.loads)
    if not isinstance(record, dict):
        raise DiffusionalError(f"{path} holds a {type(record).__name__}; expected a JSON object")
    return record


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises DiffusionalError if it is missing, broken or not a regular file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.toml"
    >>> _ = path.write_text("steps = 3")
    >>> load_toml(path)
    {'steps': 3}
    """
    return _parsed(path, "TOML", tomllib.loads)


def _parsed(path: Path, kind: str, parse: Callable[[str], Any]) -> Any:
    """Read a text file of at most _MOST_JSON bytes and parse it."""
    if not path.exists() and not path.is_symlink():
        raise DiffusionalError(f"{path} does not exist")
    check_regular(path)
    try:
        if (size := path.stat().st_size) > _MOST_JSON:
            raise DiffusionalError(
                f"expected a {kind} record of at most {_MOST_JSON:,} bytes, got {path} of {size:,} bytes"
            )
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error.strerror}). Check its permissions") from error
    except DiffusionalError:
        raise
    except (ValueError, RecursionError) as error:  # syntax, encoding, a number of thousands of digits, deep nesting
        raise DiffusionalError(f"{path} is not {kind}: {error}") from error
