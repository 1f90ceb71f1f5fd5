"""Tensors and records on disk: safetensors and JSON, never a pickle; written whole or not at all."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:  # torch takes seconds: whoever reads JSON alone does not wait for it
    import torch

_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write tensors as safetensors, to a temporary name first. Raises DiffusionalError where the disk takes no more."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".partial")
    own, seen = {}, set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage()
        # The format refuses tensors that share memory; a copy of those alone, since a model may fill half of it.
        if storage.data_ptr() in seen or storage.nbytes() != stored.nbytes:
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        own[name] = stored
    try:
        save_file(own, temporary)
        settle(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> DiffusionalError:
    """What to say of a file that could not be written; whatever had its name is as it was.

    >>> not_written(Path("runs/a/model.safetensors"), OSError("disk full")).args[0][:60]
    'runs/a/model.safetensors could not be written (disk full); w'
    """
    return DiffusionalError(
        f"{path} could not be written ({error}); what was there is as it was. Make room, or see to the folder's permissions, "
        "and do it again (a run: with --resume)"
    )


def settle(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name, on disk before anything that counts on it is."""
    for written in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
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

    Call this before opening any file that a user names. Opening a named pipe waits for a writer, perhaps for ever, and
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


def sha256(path: Path) -> str:
    """Of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """Read safetensors. Raises DiffusionalError for a missing, corrupt or foreign file; a pickle is never loaded."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise DiffusionalError(f"{path} does not exist; expected a safetensors file")
    with path.open("rb") as file:
        head = file.read(9)
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


def save_json(path: Path, record: Any) -> None:
    """Write JSON, to a temporary name first. Raises DiffusionalError where the disk takes no more."""
    temporary = path.with_name(path.name + ".partial")
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        temporary.write_text(text)
        settle(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DiffusionalError where it is missing or broken."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DiffusionalError(f"{path} does not exist") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, no text, a number of thousands of digits, or nested too deeply
        raise DiffusionalError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DiffusionalError(f"{path} holds a {type(record).__name__}; expected a JSON object")
    return record
