"""Folders of images: the split of each file, and decoding them into one array.

    folder/train/…, folder/validation/… (or val), folder/test/…     these are the splits
    folder/…                                                        images are split at random

Folders whose names contain the word of a split, such as train2017 or testing, are splits too, or are refused if the
split is not clear. Files are taken in the order of their relative paths.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.checks import declared
from diffusional.data.classes import LABEL, Labels
from diffusional.data.dataset import SPLITS, Dataset
from diffusional.data.folders import Alias, walk
from diffusional.data.formats import IMAGES
from diffusional.data.given import Given, Wanted
from diffusional.data.naming import by_split, decisions
from diffusional.data.origin import Files
from diffusional.data.pictures import Options, Picture, check_alike, decode
from diffusional.data.progress import watched
from diffusional.data.sidecar import given_beside
from diffusional.data.splits import Fractions, Part, random_rows
from diffusional.data.storage import store
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular
from diffusional.space import Discrete

# Files commonly found beside images.
_BESIDE = {
    ".txt",
    ".json",
    ".jsonl",
    ".md",
    ".rst",
    ".csv",
    ".tsv",
    ".xml",
    ".yaml",
    ".yml",
    ".html",
    ".db",
    ".ini",
    "",
}
_DECODER = 2  # version of `decode`: a cache of another version is not used
_CHUNK = 64  # images that a thread takes at a time

Read = Callable[[int], tuple[Path | bytes, str]]


def load_images(
    folder: Path, levels: int | None, fractions: Fractions, seed: int, options: Options, condition: str | None = None
) -> Dataset:
    """Load the Dataset of a folder's images, Discrete with the levels of their format, 256 for 8 bits.

    Raises DiffusionalError for images that differ in size or kind, cannot be read, or would lose information.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(10):
    ...         Image.new("L", (6, 4), i).save(f"{folder}/{i}.png")
    ...     load_images(Path(folder), None, (0.8, 0.1, 0.1), 0, Options()).space
    Discrete(shape=(1, 4, 6), levels=256, low=-1.0, high=1.0)
    """
    parts, stored = read_images(folder, levels, fractions, seed, options, condition)
    return declared(folder.name, Discrete(parts["train"].array.shape[1:], stored), parts)


def read_images(
    folder: Path,
    levels: int | None,
    fractions: Fractions | None,
    seed: int,
    options: Options,
    condition: str | None = None,
) -> tuple[dict[str, Part], int]:
    """Read the images of a folder by split, and their levels; with `fractions=None` only the folder's own splits.

    With the condition "label" the targets of the parts are the names of the folders, one for each class (`class_folders`); with texts, numbers
    or tokens they are those of the files beside the images (`data.sidecar`).

    Raises DiffusionalError as `load_images` does.
    """
    notes: list[str] = []
    files = list_images(folder, notes)
    names = [name for split in SPLITS for name in files.get(split, [])]
    targets = None if condition is None else _targets(folder, files, condition)

    def read(i: int) -> tuple[Path, str]:
        return folder / names[i], str(folder / names[i])

    def made_from() -> Any:
        for name in names:
            check_regular(folder / name)
        stats = [(folder / name).stat() for name in names]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]

    ends = np.cumsum([len(files.get(split, [])) for split in SPLITS])
    given = {
        split: np.arange(end - len(files[split]), end)
        for split, end in zip(SPLITS, ends, strict=True)
        if split in files
    }
    rows = random_rows(given, str(folder), fractions, seed)
    values, stored = decode_all(len(names), read, options, made_from)
    check_levels(levels, stored, str(folder))
    held = Files.of(names, [1] * len(names))
    parts = {
        split: Part(values, rows[split], str(folder), files=held, notes=tuple(notes), targets=targets)
        for split in SPLITS
        if split in rows
    }
    return parts, stored


def _targets(folder: Path, files: dict[str, list[str]], condition: str) -> Labels | Given:
    wanted = Wanted.of(condition)
    if wanted.kind != "labels":
        return given_beside(folder, [name for split in SPLITS for name in files.get(split, [])], wanted)
    if condition != LABEL:
        raise DiffusionalError(
            f"condition={condition!r} was given for {folder}, a folder of images by class, expected {LABEL!r}, caption, numbers:NAME or tokens:NAME"
        )
    return Labels.of(class_folders(files, str(folder)), str(folder))


def class_folders(files: dict[str, list[str]], source: str) -> list[str]:
    """Return the class of each image of a folder in the order of its splits: the name of the folder that differs between classes.

    Folders that all images share, and those that name the splits, are not classes. Raises DiffusionalError unless exactly one folder
    of each path is left.

    >>> class_folders({"train": ["train/cat/1.png", "train/dog/2.png"], "test": ["test/dog/3.png"]}, "pets")
    ['cat', 'dog', 'dog']
    >>> class_folders({"train": ["1.png", "2.png"]}, "pets")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: pets: the classes of its images are unclear: expected one folder for each class, ...
    """
    paths = [name.split("/")[:-1] for split in SPLITS for name in files.get(split, [])]
    owner = [split for split in SPLITS for _ in files.get(split, [])]
    if len({len(path) for path in paths}) == 1:
        left = []
        for place in range(len(paths[0])):
            held: dict[str, set[str]] = {}
            for path, split in zip(paths, owner, strict=True):
                held.setdefault(split, set()).add(path[place])
            every = set().union(*held.values())
            of_splits = len(held) > 1 and all(len(one) == 1 for one in held.values()) and len(every) == len(held)
            if len(every) > 1 and not of_splits:
                left.append(place)
        if len(left) == 1:
            return [path[left[0]] for path in paths]
    shown = ", ".join(sorted({"/".join(path) or "." for path in paths})[:3])
    raise DiffusionalError(
        f"{source}: the classes of its images are unclear: expected one folder for each class, such as cat/1.png and dog/2.png, or "
        f"train/cat/1.png, got images in {shown}; move the images, or leave the condition out"
    )


def list_images(folder: Path, notes: list[str] | None = None) -> dict[str, list[str]]:
    """Return paths of images relative to a folder, sorted, by split; all under "train" if the folder names no splits.

    Every image is listed once, even if there are links to it or to its folder (`data.folders.walk`). Decisions are appended to
    `notes`: folders of other names that were read as splits, and links that were skipped.

    Raises DiffusionalError for a file that is neither an image nor commonly found beside images, for a folder without images, and if
    it is unclear which images are in which split (`data.naming.by_split`).
    """
    aliases: list[Alias] = []
    found = sorted(name for name in walk(folder, aliases) if _is_image(folder, name))
    if not found:
        raise DiffusionalError(f"{folder} holds no images; expected files {', '.join(IMAGES)} in it or below")
    aliases = [(link, first) for link, first in aliases if link.endswith("/") or _is_image(folder, link)]
    files = by_split(found, str(folder), "images", aliases)
    if notes is not None:
        notes += decisions(files, aliases)
    return files


def decode_all(n: int, read: Read, options: Options, made_from: Callable[[], Any]) -> tuple[np.ndarray, int]:
    """Return n pictures (n, C, H, W) uint8 and their levels, decoded in threads, in memory or mapped.

    `read` returns the file or content of a picture, and its name; `made_from` returns the identity of the pictures for the cache.
    Raises DiffusionalError for the first picture that cannot be read or differs from the others in size or kind.
    """
    first = decode(*read(0), options)

    def fill(out: np.ndarray) -> None:
        def work(start: int) -> None:
            for i in range(start, min(start + _CHUNK, n)):
                picture: Picture = decode(*read(i), options)
                check_alike(first, picture)
                out[i] = picture.values

        starts = range(0, n, _CHUNK)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in watched(pool.map(work, starts), len(starts), "decoding images"):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    values = store((n, *first.values.shape), "uint8", lambda: [_DECODER, asdict(options), made_from()], fill)
    return values, first.levels


def check_levels(levels: int | None, stored: int, source: str) -> None:
    """Raise DiffusionalError for declared levels that are not those of the images' format."""
    if levels not in (None, stored):
        raise DiffusionalError(
            f"expected levels={stored} for {source}, from the format of its images, got levels={levels}; leave levels out, or "
            "give an array (.npy) with the intended levels"
        )


def _is_image(folder: Path, name: str) -> bool:
    """Return whether a file is an image. Raises DiffusionalError for a file that is neither an image nor commonly found beside images."""
    suffix = os.path.splitext(name)[1].lower()
    if name.rsplit("/", 1)[-1].startswith("__"):
        return False
    if suffix not in IMAGES and suffix not in _BESIDE:
        raise DiffusionalError(
            f"{folder / name} is not an image of a known kind ({', '.join(IMAGES)}); remove it from the folder"
        )
    return suffix in IMAGES
