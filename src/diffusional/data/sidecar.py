"""Texts and numbers beside images: captions.jsonl or metadata.jsonl, a line of JSON for each image.

    {"file_name": "cats/1.png", "text": "a grey cat on a chair"}

File names are relative to the folder of the file, which may be the folder of all images or that of a split, as in ImageFolder of
the library datasets. If there is a captions.jsonl, no metadata.jsonl is read.
"""

import json
import posixpath
from pathlib import Path
from typing import Any

from diffusional.data.excerpt import listed, shortened
from diffusional.data.folders import walk
from diffusional.data.given import Given, Wanted
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

FILES = ("captions.jsonl", "metadata.jsonl")
_NAME = "file_name"


def given_beside(folder: Path, images: list[str], wanted: Wanted) -> Given:
    """Return the condition of images, paths relative to a folder, from the files beside them.

    Raises DiffusionalError if there is no such file, for images without a line and lines without an image, listing them, for an image with
    two lines, and with its number for a line that is not a JSON object.
    """
    rows = _rows(folder)
    missing = [name for name in images if name not in rows]
    if missing:
        raise DiffusionalError(
            f"{folder}: {len(missing)} of {len(images)} images have no line in {' or '.join(FILES)}: {listed(missing)}; expected one for each "
            "image"
        )
    unknown = sorted(rows.keys() - set(images))
    if unknown:
        raise DiffusionalError(
            f"{folder}: {len(unknown)} lines of {' or '.join(FILES)} are of files that are not images of the folder: {listed(unknown)}; correct or "
            "remove them"
        )
    held = dict.fromkeys(key for name in images for key in rows[name] if key != _NAME)
    names = wanted.among(list(held), f"{folder}, {' or '.join(FILES)}")
    where = f"{folder}, {', '.join(map(repr, names))}"
    values = [[rows[name].get(key) for key in names] for name in images]
    if wanted.kind == "numbers":
        for name, row in zip(images, values, strict=True):
            if not all(isinstance(value, int | float) for value in row):
                raise DiffusionalError(f"{where}: {name} has {shortened(repr(row))}; expected numbers")
        return Given.numbers(values, where)
    if wanted.kind == "tokens":
        return Given.lists([value for (value,) in values], where)
    texts = [value for (value,) in values]
    wrong = [name for name, text in zip(images, texts, strict=True) if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise DiffusionalError(f"{where}: {len(wrong)} of {len(images)} images have no text: {listed(wrong)}")
    return Given.texts(texts, where)


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the objects of the lines by the path of their image, relative to the folder."""
    every = [name for name in walk(folder) if name.rsplit("/", 1)[-1] in FILES]
    found = next((chosen for file in FILES if (chosen := [n for n in every if n.rsplit("/", 1)[-1] == file])), [])
    if not found:
        raise DiffusionalError(
            f'{folder}: expected {" or ".join(FILES)} with a line {{"{_NAME}": …, "text": …}} for each image; write it, or leave the condition out'
        )
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted(found):
        check_regular(folder / name)
        for number, line in enumerate((folder / name).read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip():
                continue
            where = f"{folder / name}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DiffusionalError(f"{where} is not JSON ({error}); expected one object per line") from error
            if not isinstance(row, dict) or not isinstance(row.get(_NAME), str):
                raise DiffusionalError(f'{where}: expected an object with "{_NAME}", got {shortened(line)}')
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), row[_NAME]))
            if path in rows:
                raise DiffusionalError(f"{where}: {path} has a line already; expected one for each image")
            rows[path] = row
    return rows
