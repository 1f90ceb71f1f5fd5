"""NumPy's files: reading them without pickle, and finding the arrays of the splits.

An .npy is mapped, not read: its values are read from the file as they are needed, and may be larger than memory. An .npz is an
archive and is read whole. The size declared by a header is compared with that of the file before memory is allocated.
"""

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.classes import LABEL, Labels, check_length
from diffusional.data.excerpt import shortened
from diffusional.data.given import TEXT_NAMES, Given, Wanted
from diffusional.data.splits import Fractions, Part, split_at_random, split_off_validation, whole
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular

_KEYS = {
    "train": {"train", "x_train", "train_images"},
    "validation": {"validation", "valid", "val", "x_validation", "x_valid", "x_val", "val_images"},
    "test": {"test", "x_test", "test_images"},
}
# The keys of items beside arrays of conditions; `diffusional sample` writes the second.
_ITEMS = ("x", "samples")
_MASK = "mask"
_LABEL_WORDS = {"y", "label", "labels", "target", "targets"}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second is an archive without members
# Version 3 differs from 2 only in the encoding of the names of fields, and arrays with fields are refused.
_READERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by key, or of an .npy file, mapped, under the key "".

    Raises DiffusionalError, with the file and the member, for damaged files, for arrays that need pickle, and for paths
    that are not regular files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "a.npy", np.eye(2))
    ...     read_numpy(Path(folder) / "a.npy")[""].shape
    (2, 2)
    """
    check_regular(path)
    with _refused(str(path)):
        with path.open("rb") as file:
            magic = file.read(6)
            if magic[:4] in _ZIP:
                return _members(path)
            if magic and magic != np.lib.format.MAGIC_PREFIX:
                raise DiffusionalError(_objects(str(path)))
            file.seek(0)
            _check_header(file, str(path), path.stat().st_size)
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}


def _members(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive by key: the names of its members without .npy."""
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, key = f"{member.filename!r} in {path}", member.filename.removesuffix(".npy")
            with _refused(name):
                if member.flag_bits & 1:
                    raise DiffusionalError(f"{name} is encrypted; save it without a password")
                with archive.open(member) as file:
                    magic = file.read(6)
                if magic != np.lib.format.MAGIC_PREFIX:
                    raise DiffusionalError(f"{name} is not an array; save only arrays, with np.savez")
                if key in arrays:
                    raise DiffusionalError(f"{name} occurs twice; give each array its own key")
                with archive.open(member) as file:
                    _check_header(file, name, member.file_size)
                with archive.open(member) as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _check_header(file: Any, name: str, size: int) -> None:
    """Raise DiffusionalError unless an .npy of `size` bytes, open at its beginning, holds exactly what its header declares."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise DiffusionalError(
            f"{name} has version {'.'.join(map(str, version))} of its format, expected 1.0 to 3.0: save it again"
        )
    shape, _, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise DiffusionalError(_objects(name))
    stored = size - file.tell()
    # A type of zero bytes, such as empty strings, fits any shape.
    if min(shape, default=0) < 0 or math.prod(shape) * max(1, dtype.itemsize) > stored:
        declared = shortened(f"its header declares shape {shape} of {dtype}")
        raise DiffusionalError(f"{name} could not be read ({declared}, got {stored} bytes of values); save it again")
    if dtype.names is not None:
        raise DiffusionalError(
            f"{name} has named fields ({shortened(', '.join(dtype.names))}), expected plain numbers of one type. Save "
            "numpy.lib.recfunctions.structured_to_unstructured(array)"
        )
    more = stored - math.prod(shape) * dtype.itemsize
    if more:
        declared = shortened(f"the array of its header, of shape {shape} and type {dtype}")
        raise DiffusionalError(
            f"{name} holds {more} bytes after {declared}, which would not be read. Save each array in a file of its own "
            "(np.save with an open file appends)"
        )


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Convert exceptions of NumPy and zipfile to DiffusionalError: damaged bytes may raise any exception."""
    try:
        yield
    except DiffusionalError:
        raise
    except MemoryError as error:
        raise DiffusionalError(
            f"{name} does not fit into memory; save each array as an .npy file, which is read as needed"
        ) from error
    except Exception as error:
        why = shortened(str(error)) or type(error).__name__
        raise DiffusionalError(f"{name} could not be read ({why}); save it again") from error


def _objects(name: str) -> str:
    return (
        f"{name} contains Python objects, or is not a NumPy file; pickles are never loaded. "
        "Save plain arrays of numbers with np.save or np.savez"
    )


def choose_splits(
    arrays: dict[str, np.ndarray], source: str, fractions: Fractions | None, seed: int, condition: str | None = None
) -> dict[str, Part]:
    """Return parts "train", "validation" and "test" of a file's arrays: one array, or one for each split.

    With `fractions=None` only the file's own splits are returned, and a single array is all "train". Labels, recognised by key and shape,
    are left out, or are the targets of the parts if `condition` is "label" or a word of their keys, such as "fine" for y_fine_train; so are
    texts, and the numbers or tokens that `condition` names (`data.given`);
    strings under the key "columns" are the names of the columns of (N, D) arrays. Of several arrays, "x" or "samples" holds the items,
    and the others, such as numbers that are not a condition, are not read. Raises DiffusionalError, listing keys and shapes,
    when it is unclear which array is which, and for labels that are missing or do not fit the items.

    >>> parts = choose_splits({"x": np.zeros((10, 3)), "y": np.zeros(10)}, "a.npz", (0.8, 0.1, 0.1), seed=0)
    >>> {split: len(part) for split, part in parts.items()}
    {'train': 8, 'validation': 1, 'test': 1}
    """
    targets = {} if condition is None else _targets(arrays, source, condition)
    data = {key: values for key, values in arrays.items() if not _is_labels(key, values) and key not in targets}
    columns = _columns(data, source)
    items = [key for key in data if key in _ITEMS]
    if len(items) == 1 and not any(key.lower() in names for key in data for names in _KEYS.values()):
        data = {items[0]: data[items[0]]}
    if len(data) == 1:
        [(key, values)] = data.items()
        parts = split_at_random(values, _name(source, key), fractions, seed)
        labels = _target_of(targets, "", len(values), source, condition) if condition is not None else None
        return {split: replace(part, labels=columns, targets=labels) for split, part in parts.items()}
    found = {split: [key for key in data if key.lower() in names] for split, names in _KEYS.items()}
    named = sum(len(keys) for keys in found.values())
    if not found["train"] or not found["test"] or any(len(keys) > 1 for keys in found.values()) or named < len(data):
        held = ", ".join(f"{key} {values.shape}" for key, values in arrays.items()) or "no arrays"
        raise DiffusionalError(
            f"{source} contains {held}, and it is unclear which of them are the data. Give one array, or x and others, or train, test and "
            "optionally validation (also x_train, …, or train_images, …); 1-D arrays of labels are allowed"
        )
    parts = {split: whole(data[keys[0]], _name(source, keys[0])) for split, keys in found.items() if keys}
    for split, part in parts.items():
        labels = None if condition is None else _target_of(targets, split, len(part.array), source, condition)
        parts[split] = replace(part, labels=columns, targets=labels)
    return parts if "validation" in parts else split_off_validation(parts, fractions)


def _targets(arrays: dict[str, np.ndarray], source: str, condition: str) -> dict[str, np.ndarray]:
    """Return the arrays of labels that a condition names, by key."""
    if set(arrays) == {""}:
        raise DiffusionalError(
            f"expected labels in {source} for the condition {condition!r}, got a single array; save items and labels in an .npz: "
            "np.savez(path, x=…, y=…)"
        )
    labels = {key: values for key, values in arrays.items() if _is_labels(key, values)}
    wanted = Wanted.of(condition)
    words = {key: set(key.lower().split("_")) | {key, key.lower()} for key in arrays}
    if wanted.kind != "labels":
        held = {name for found in words.values() for name in found}
        names = set(wanted.among([name for name in dict.fromkeys((*arrays, *TEXT_NAMES)) if name in held], source))
        chosen = {key for key in arrays if words[key] & names}
        if wanted.kind == "tokens":
            chosen |= {key for key in arrays if _MASK in words[key]}
        return {key: arrays[key] for key in arrays if key in chosen}
    if condition != LABEL:
        labels = {key: arrays[key] for key, found in words.items() if condition in found or condition.lower() in found}
    elif named := {key for key in labels if words[key] & _LABEL_WORDS}:  # texts under another name are not the labels
        labels = {key: labels[key] for key in labels if key in named}
    if not labels:
        held = ", ".join(f"{key} {values.shape}" for key, values in arrays.items())
        raise DiffusionalError(
            f"condition={condition!r} was given, but {source} has no such labels: it holds {held}; expected (N,) under a key such as "
            "y or labels (y_train, y_test, …), or name the key"
        )
    return labels


def _target_of(targets: dict[str, np.ndarray], split: str, items: int, source: str, condition: str) -> Labels | Given:
    """Return the labels, texts, numbers or tokens of a split ("" for the only array) among `targets`."""
    wanted = Wanted.of(condition)
    if wanted.kind == "labels":
        key, where = _key_of(targets, split, source)
        return check_length(Labels.of(targets[key], where), items, where)
    if wanted.kind == "numbers" and len(wanted.names) > 1:
        raise DiffusionalError(
            f"condition={condition!r} was given for {source}; expected the key of one array of numbers, (N,) or (N, n)"
        )
    masks = {key: values for key, values in targets.items() if _MASK in key.lower().split("_")}
    key, where = _key_of({key: values for key, values in targets.items() if key not in masks}, split, source)
    values = targets[key]
    if wanted.kind == "texts":
        if values.dtype.kind not in "US" or values.ndim != 1:
            raise DiffusionalError(f"{where}: expected texts (N,), got {values.dtype} of shape {values.shape}")
        found = Given.texts(values.tolist(), where)
    elif wanted.kind == "numbers":
        found = Given.numbers(values, where)
    else:
        mask = masks[_key_of(masks, split, source)[0]] if masks else None
        found = Given.tokens(values, mask, where)
    return found.check_length(items, where)


def _key_of(targets: dict[str, np.ndarray], split: str, source: str) -> tuple[str, str]:
    """Return the key of the array among `targets` that belongs to a split ("" for the only array), and its name in errors."""
    words = {
        word: name
        for name, keys in _KEYS.items()
        for word in {key.split("_")[0] for key in keys} | {name}
        if word != "x"
    }
    splits = {key: {words[word] for word in key.lower().split("_") if word in words} for key in targets}
    fitting = [key for key, named in splits.items() if named == ({split} if split else set())]
    if not split and not fitting:
        fitting = list(targets)
    if len(fitting) != 1:
        which = f"the {split} items" if split else "the items"
        raise DiffusionalError(
            f"{source}: expected one array of labels or conditions for {which}, got {', '.join(map(repr, fitting)) or 'none'} among "
            f"{', '.join(map(repr, targets))}; name the key as the condition, or one for each split (y_train, y_test, …)"
        )
    (key,) = fitting
    return key, f"{source}, key {key!r}"


def _columns(data: dict[str, np.ndarray], source: str) -> tuple[str, ...]:
    """Remove the names of the columns, which `diffusional sample` writes with its samples, from the arrays of a file, and return them."""
    names = data.get("columns")
    if names is None or names.dtype.kind != "U" or names.ndim != 1 or len(data) == 1:
        return ()
    del data["columns"]
    wrong = next((f"{key} {values.shape}" for key, values in data.items() if values.shape[1:] != names.shape), None)
    if wrong is not None:
        raise DiffusionalError(f"{source} has {len(names)} column names for {wrong}; give one name for each column")
    return tuple(names.tolist())


def mnist_splits(
    arrays: dict[str, np.ndarray],
    source: str,
    fractions: Fractions | None,
    labels: dict[str, np.ndarray] | None = None,
) -> dict[str, Part]:
    """Return parts of MNIST's two arrays: validation is train's last 5,000, or its `fractions[1]` if below 50,000.

    With `fractions=None` there is no validation part. `labels` (N,) of both arrays are the targets of the parts.

    >>> arrays = {"train": np.zeros((20, 2, 2)), "test": np.zeros((5, 2, 2))}
    >>> len(mnist_splits(arrays, "folder", (0.8, 0.1, 0.1))["validation"])
    2
    """
    parts = {split: whole(values, f"{source}, {split}") for split, values in arrays.items()}
    for split, part in parts.items():
        if labels is None:
            break
        where = f"{source}, labels of {split}"
        targets = check_length(Labels.of(labels[split], where), len(part.array), where)
        parts[split] = replace(part, targets=targets)
    return split_off_validation(parts, fractions, 5000 if len(parts["train"]) >= 50_000 else None)


def _name(source: str, key: str) -> str:
    return f"{source}, key {key!r}" if key else source


def _is_labels(key: str, values: np.ndarray) -> bool:
    # A column (N, 1) under the name of a label is one too; MedMNIST stores them so.
    flat = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    texts = values.ndim == 1 and values.dtype.kind in "US" and bool(set(TEXT_NAMES) & set(key.lower().split("_")))
    return texts or (flat and bool(_LABEL_WORDS & set(key.lower().split("_"))))
