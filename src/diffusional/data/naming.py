"""The split of a folder or file, by its name.

Names are divided into words: "train2017", "Training", "train_images" and "DIV2K_train_HR" contain the word train. If the names of
a data set contain the words of several splits, these are its splits if the names differ in nothing else; otherwise the data set is
refused. Splits are never mixed.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from diffusional.data.folders import Alias
from diffusional.errors import DiffusionalError

_SPLITS = ("train", "validation", "test")
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "validate", "validating", "dev", "devel"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    # Words for data held out for validation or test: they are recognised and always refused, since they are ambiguous.
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "evaluation"),
}
# Words that name a split only if another name does: "valid" may be the counterpart of "invalid".
_WEAK = {"valid", "validate", "validating", "dev", "devel", "eval", "evaluation"}
# Words that do not distinguish the items of a folder or file.
_FILLERS = {
    *("data", "dataset", "set", "split", "part", "of", "image", "images", "img", "imgs", "photo", "photos"),
    *("picture", "pictures", "x", "csv", "tsv", "gz", "parquet"),
}
_LETTERS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
_COMPOUND = re.compile(
    rf"(mini)?({'|'.join(sorted(_WORDS, key=len, reverse=True))})(sets?|data|images|imgs|val|dev|test)?"
)


@dataclass(frozen=True)
class _Reading:
    """A name with a split's word: the split, the other words, whether the word is the first, and whether it is weak."""

    split: str
    rest: tuple[str, ...]
    first: bool
    weak: bool


def split_named(name: str) -> str | None:
    """Return the split of a folder or file whose name begins with the split's word, or None.

    >>> split_named("Train"), split_named("val2017"), split_named("test-00000-of-00001"), split_named("trainer")
    ('train', 'validation', 'test', None)
    """
    found = _read(name)
    return found.split if found is not None and found.first and found.split in _SPLITS else None


def by_split(
    names: Sequence[str], source: str, what: str, aliases: Iterable[Alias] = (), files: bool = False
) -> dict[str, list[str]]:
    """Return the paths of a data set by split, in order; all under "train" if no name contains the word of a split.

    Folders are read from the outermost inwards, and folders that all paths share are skipped. Of tables (`files`),
    the files' own names are read too, and a split may have several.

    Args:
        names: paths relative to the data's folder, with "/" between their parts.
        source: the data's folder, for errors.
        what: what the files are, such as "images", for errors.
        aliases: links that were skipped because their targets have other names too.
        files: whether a file's name may name its split.

    Raises:
        DiffusionalError: if names contain the words of several splits and it is unclear which file belongs to which,
            if files lie outside the splits, if there is no train, and if a link puts files into two splits.

    >>> by_split(["train2017/1.png", "train2017/2.png", "val2017/1.png"], "coco", "images")
    {'train': ['train2017/1.png', 'train2017/2.png'], 'validation': ['val2017/1.png']}
    >>> by_split(["cat/1.png", "dog/1.png"], "pets", "images")
    {'train': ['cat/1.png', 'dog/1.png']}
    """
    passed = {link + "*" if link.endswith("/") else link: first for link, first in aliases}
    every = [*names, *passed]
    shared = _shared(every)
    parts = {name: name[len(shared) :].split("/") for name in every}
    units = {name: tuple(split[:1] if files or len(split) > 1 else ()) for name, split in parts.items()}
    found = _splits(units, passed, source, what, files)
    if not found:
        # No split outermost: classes may come first, and splits within each.
        inner = {
            name: [unit for unit in split[: None if files else -1] if _read(unit)] for name, split in parts.items()
        }
        readings = [_read(unit) for split in inner.values() for unit in split]
        if len({reading.split for reading in readings if reading is not None and not reading.weak}) > 1:
            found = _splits({name: tuple(split[:1]) for name, split in inner.items()}, passed, source, what, files)
    if not found:
        if not files:
            _refuse_named_files([split[-1] for split in parts.values()], source, what)
        return {"train": list(names)}
    for link, first in passed.items():
        other = found.get(first) or next((found[name] for name in names if first and name.startswith(first)), None)
        if None not in (found[link], other) and found[link] != other:
            raise DiffusionalError(
                f"{source}: {link.removesuffix('*')} is a link to {first}, so the same {what} would be in {found[link]} "
                f"and {other}. Remove the link, or give each split files of its own"
            )
    out = {split: [name for name in names if found[name] == split] for split in _SPLITS}
    return {split: listed for split, listed in out.items() if listed}


def decisions(files: dict[str, list[str]], aliases: Sequence[Alias]) -> Iterator[str]:
    """Yield decisions that a user may not expect, one sentence each: splits under other names, links that were skipped.

    >>> list(decisions({"train": ["train2017/1.png"], "test": ["test/1.png"]}, []))
    ['by their names, train is train2017/ and test is test/']
    """
    folders = {split: _shared(names) or names[0] + ("" if len(names) == 1 else " …") for split, names in files.items()}
    if len(files) > 1 and any(folder != f"{split}/" for split, folder in folders.items()):
        yield f"by their names, {' and '.join(f'{split} is {folder}' for split, folder in folders.items())}"
    if aliases:
        link, first = aliases[0]
        others = f" and {len(aliases) - 1} more" if len(aliases) > 1 else ""
        yield (
            f"links to data that were read under another name were skipped: {link.rstrip('/')} (to "
            f"{first.rstrip('/') or 'the folder itself'}){others}"
        )


@lru_cache(4096)  # a folder is read once for every file in it
def _read(name: str) -> _Reading | None:
    """Return the split that a name contains, or None."""
    words = [word.lower() for word in _LETTERS.findall(name)]
    for place, word in enumerate(words):
        found = _COMPOUND.fullmatch(word)
        if found is None:
            continue
        rest = [*words[:place], *words[place + 1 :], found[1] or "", found[3] or ""]
        others = tuple(sorted(word for word in rest if word and word not in _FILLERS and word != "sets"))
        return _Reading(_WORDS[found[2]], others, place == 0 and not found[1], found[2] in _WEAK)
    return None


def _shared(names: Sequence[str]) -> str:
    """Return the folders that all paths have in common, with a slash at the end."""
    shared = names[0].rsplit("/", 1)[0].split("/") if "/" in names[0] else []
    for name in names:
        folders = name.split("/")[:-1]
        same = 0
        while same < min(len(shared), len(folders)) and shared[same] == folders[same]:
            same += 1
        shared = shared[:same]
        if not shared:
            return ""
    return "".join(f"{folder}/" for folder in shared)


def _splits(
    units: dict[str, tuple[str, ...]], links: Collection[str], source: str, what: str, files: bool
) -> dict[str, str | None]:
    """Return the split of each path by its folder (or file); {} if no name contains the word of a split."""
    readings = {unit: _read(unit) for unit in sorted({unit for pair in units.values() for unit in pair})}
    found = {unit: reading for unit, reading in readings.items() if reading is not None}
    if all(reading.weak for reading in found.values()):
        return {}
    splits = {reading.split for reading in found.values()}
    outside = [name for name, pair in units.items() if name not in links and (not pair or pair[0] not in found)]
    kind, listed = "files" if files else "folders", ", ".join(found)
    advice = (
        "Name them train, validation and test to keep them apart, or give them names without these words to have all "
        f"{what} split at random"
    )
    if len(splits) == 1:
        # Names such as train_station are not splits; a plain "train" among others may be one.
        plain = any(not reading.rest or (files and reading.first) for reading in found.values())
        if not outside or not plain:
            return {}
    elif "evaluation" in splits or not (
        len({reading.rest for reading in found.values()}) == 1
        or (files and all(reading.first for reading in found.values()))
    ):
        raise DiffusionalError(
            f"{source} has {kind} whose names suggest splits, {listed}, but it is unclear which is which. {advice}"
        )
    if "train" not in splits:
        raise DiffusionalError(f"{source} holds {listed} and no train {'part' if files else 'folder'}. {advice}")
    if outside and files:
        raise DiffusionalError(f"{source} holds train parts and {outside[0]}; name all parts by their split, or none")
    if outside:
        raise DiffusionalError(
            f"{source} has folders for splits, {listed}, and {what} outside them, such as {outside[0]}; move them in or "
            f"out. {advice}"
        )
    if not files and len(splits) < len(found):
        raise DiffusionalError(f"{source} has folders for splits, {listed}, two for one split; keep one, or join them")
    return {name: found[pair[0]].split if pair and pair[0] in found else None for name, pair in units.items()}


def _refuse_named_files(names: Iterable[str], source: str, what: str) -> None:
    """Raise DiffusionalError if every file's name begins with a split's word and these are of several splits."""
    splits = set()
    for name in names:
        found = split_named(name.rsplit(".", 1)[0])
        if found is None:
            return
        splits.add(found)
    if len(splits) > 1:
        raise DiffusionalError(
            f"{source} holds {what} whose names begin with {', '.join(sorted(splits))}. Move them into folders train, "
            "validation and test to keep them apart, or rename them to have all split at random"
        )
