"""The files below a folder, each of them once, even with symbolic links."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from diffusional.errors import DiffusionalError

Alias = tuple[str, str]


def walk(folder: Path, aliases: list[Alias] | None = None) -> Iterator[str]:
    """Yield the paths, relative to `folder`, of the files below it.

    Links to folders and files are followed, but every folder and file is visited once: under its own name if that lies
    below `folder`, otherwise under its first link. Links back to `folder` or a folder above it are therefore skipped. Hidden files
    and folders, and folders such as `__MACOSX`, are left out. Real files are first, in the order of their folders, and links last.

    Args:
        folder: where to start.
        aliases: a list to which the skipped links are appended, each as (link, path that was visited),
            folders with a slash at the end.

    Raises:
        DiffusionalError: for a folder that cannot be listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     (folder / "a").mkdir()
    ...     (folder / "a" / "x.png").touch()
    ...     (folder / "a" / "again").symlink_to(folder)
    ...     list(walk(folder))
    ['a/x.png']
    """
    aliases = [] if aliases is None else aliases
    above = [_identity(parent) for parent in folder.resolve().parents]
    visited: dict[tuple[int, int], str] = {}
    real, linked = deque([""]), deque[str]()
    files: list[str] = []
    links: list[str] = []
    while real or linked:
        prefix = real.popleft() if real else linked.popleft()
        identity = _identity(folder / prefix)
        if identity in visited:
            aliases.append((prefix, visited[identity]))
            continue
        if identity in above:
            continue
        visited[identity] = prefix
        for entry in _entries(folder / prefix):
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if not entry.name.startswith("__"):
                    (linked if entry.is_symlink() else real).append(f"{name}/")
            elif entry.is_symlink():
                links.append(name)
            else:
                files.append(name)
                yield name
    if not links:
        return
    first: dict[tuple[int, int], str] = {}
    for name in files:
        first.setdefault(_identity(folder / name), name)
    for name in links:
        try:
            identity = _identity(folder / name)
        except DiffusionalError:  # a dangling link: reported when the file is opened
            yield name
            continue
        if identity in first:
            aliases.append((name, first[identity]))
        else:
            first[identity] = name
            yield name


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode: equal for all names of one file or folder."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unreadable(path: Path, error: OSError) -> DiffusionalError:
    return DiffusionalError(
        f"{path} could not be read ({error.strerror or error}). Check its permissions, or remove it from the data"
    )
