"""From arrays of a user's file to a Dataset: read NumPy's files, split, lay out, check, declare the space.

Everything is refused that would have to be guessed: integers without declared levels, keys that could mean
several things, values that are not finite. An error names the file, the split, and the item by its row in the
file.
"""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusional.data.dataset import SPLITS, Dataset
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete

Fractions = tuple[float, float, float]

_KEYS = {
    "train": {"train", "x_train", "train_images"},
    "validation": {"validation", "val", "x_validation", "x_val", "val_images"},
    "test": {"test", "x_test", "test_images"},
}
_LABEL_WORDS = {"y", "label", "labels", "target", "targets"}


@dataclass(frozen=True, eq=False)
class Part:
    """One split on its way in: values (N, …), and for errors their rows (N,) in the file and its name."""

    values: np.ndarray
    rows: np.ndarray
    source: str


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by key, or of an .npy file under the key "".

    Raises DiffusionalError for a damaged file and for one that would need pickle.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "a.npy", np.eye(2))
    ...     read_numpy(Path(folder) / "a.npy")[""].shape
    (2, 2)
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DiffusionalError(
                f"{path} holds Python objects, or is no NumPy file at all; a pickle is never loaded. "
                "Save plain arrays of numbers with np.save or np.savez"
            ) from error
        raise DiffusionalError(f"{path} could not be read ({error}); save it again") from error


def choose_splits(arrays: dict[str, np.ndarray], source: str, fractions: Fractions, seed: int) -> dict[str, Part]:
    """Parts "train", "validation" and "test" of a file's arrays: one array, or one for each split.

    Labels, known by their key and shape, are left aside. Raises DiffusionalError, listing keys and shapes,
    when it is unclear which array is which.

    >>> parts = choose_splits({"x": np.zeros((10, 3)), "y": np.zeros(10)}, "a.npz", (0.8, 0.1, 0.1), seed=0)
    >>> {split: len(part.values) for split, part in parts.items()}
    {'train': 8, 'validation': 1, 'test': 1}
    """
    data = {key: values for key, values in arrays.items() if not _is_labels(key, values)}
    if len(data) == 1:
        [(key, values)] = data.items()
        return split_at_random(values, _name(source, key), fractions, seed)
    found = {split: [key for key in data if key.lower() in names] for split, names in _KEYS.items()}
    named = sum(len(keys) for keys in found.values())
    if not found["train"] or not found["test"] or any(len(keys) > 1 for keys in found.values()) or named < len(data):
        held = ", ".join(f"{key} {values.shape}" for key, values in arrays.items()) or "no arrays"
        raise DiffusionalError(
            f"{source} holds {held}; which of them are the data is unclear. Give one array, or train, test "
            "and perhaps validation (also x_train, …, or train_images, …); 1-D labels may stand beside them"
        )
    parts = {split: _whole(data[keys[0]], _name(source, keys[0])) for split, keys in found.items() if keys}
    return parts if "validation" in parts else split_off_validation(parts, fractions)


def split_at_random(values: np.ndarray, source: str, fractions: Fractions, seed: int) -> dict[str, Part]:
    """Three disjoint parts of values (N, …), by a permutation drawn from `seed`.

    Validation and test have N · fraction items, rounded; train has the rest. Raises DiffusionalError for
    fractions that are not positive or do not add up to 1, and when a part would be empty.

    >>> parts = split_at_random(np.zeros((10, 3)), "file.npy", (0.5, 0.3, 0.2), seed=0)
    >>> [len(parts[split].rows) for split in SPLITS]
    [5, 3, 2]
    """
    check_fractions(fractions)
    if seed < 0:
        raise DiffusionalError(f"seed {seed} came; seeds are 0 or larger")
    _check_axes(values, source)
    n = len(values)
    sizes = [0, round(n * fractions[1]), round(n * fractions[2])]
    sizes[0] = n - sum(sizes)
    if min(sizes) < 1:
        raise DiffusionalError(
            f"{source}: {n} items, split by {fractions}, leave {sizes[0]} train, {sizes[1]} validation and "
            f"{sizes[2]} test items; each needs at least one. Give more items or other fractions"
        )
    rows = np.split(np.random.default_rng(seed).permutation(n), np.cumsum(sizes)[:2])
    return {split: Part(values[r], r, source) for split, r in zip(SPLITS, rows, strict=True)}


def split_off_validation(parts: dict[str, Part], fractions: Fractions, count: int | None = None) -> dict[str, Part]:
    """Parts with a validation part taken off the end of train.

    It has `count` items, or the fraction `fractions[1]` of train if no count came. Raises DiffusionalError
    for wrong fractions, and when train or validation would be empty.

    >>> parts = {split: Part(np.arange(10)[:, None], np.arange(10), "a.npz") for split in ("train", "test")}
    >>> split_off_validation(parts, (0.7, 0.2, 0.1))["validation"].rows
    array([8, 9])
    """
    check_fractions(fractions)
    train = parts["train"]
    n = len(train.rows)
    count = round(n * fractions[1]) if count is None else count
    if not 0 < count < n:
        raise DiffusionalError(
            f"{train.source}: {n} items, of which {count} are to be split off for validation, leave "
            f"{'train' if count else 'validation'} empty; give more items or another fraction "
            f"than {fractions[1]}"
        )
    head, tail = (
        Part(train.values[piece], train.rows[piece], train.source) for piece in (slice(-count), slice(-count, None))
    )
    return {"train": head, "validation": tail, "test": parts["test"]}


def mnist_splits(arrays: dict[str, np.ndarray], source: str, fractions: Fractions) -> dict[str, Part]:
    """Parts of MNIST's two arrays: validation is train's last 5,000, or its `fractions[1]` if below 50,000.

    >>> arrays = {"train": np.zeros((20, 2, 2)), "test": np.zeros((5, 2, 2))}
    >>> mnist_splits(arrays, "folder", (0.8, 0.1, 0.1))["validation"].values.shape
    (2, 2, 2)
    """
    parts = {split: _whole(values, f"{source}, {split}") for split, values in arrays.items()}
    return split_off_validation(parts, fractions, 5000 if len(parts["train"].rows) >= 50_000 else None)


def to_dataset(name: str, parts: dict[str, Part], levels: int | None) -> Dataset:
    """A Dataset of three parts: images get their channel axis, values are checked, the space is declared.

    Booleans and integers (or whole floats, with `levels`) become Discrete; other floats become Continuous,
    standardised by the train part's mean and standard deviation (of the population) at each position.

    Raises DiffusionalError for empty, 1-D, non-numeric or non-finite values, parts that do not match,
    integers without `levels` or outside them, fractions with `levels`, and constant columns.

    >>> parts = split_at_random(np.arange(20.0).reshape(10, 2), "file.npy", (0.8, 0.1, 0.1), seed=0)
    >>> to_dataset("file", parts, levels=None).space.shape
    (2,)
    """
    parts = {split: Part(channels_first(p.values, p.source), p.rows, p.source) for split, p in parts.items()}
    kinds = {_kind(part) for part in parts.values()}
    if len(kinds) > 1:
        raise DiffusionalError(
            f"{name}: the splits are of different kinds ({', '.join(sorted(kinds))}); store all in one type"
        )
    shape = parts["train"].values.shape[1:]
    for split, part in parts.items():
        if part.values.shape[1:] != shape:
            raise DiffusionalError(
                f"{part.source}: the items of split {split} have shape {part.values.shape[1:]}, those of "
                f"train {shape}; all splits must have items of one shape"
            )
        if part.values.size == 0:
            raise DiffusionalError(f"{part.source}: split {split} is empty, of shape {part.values.shape}; give data")
        _refuse(part, split, ~np.isfinite(part.values), "a value that is not finite; mend or drop the item")
    if kinds == {"boolean"}:
        if levels not in (None, 2):
            raise DiffusionalError(f"{name}: booleans came with levels={levels}; they have 2 (leave levels out)")
        return _discrete(name, parts, 2)
    if levels is not None:
        return _discrete(name, parts, levels)
    if kinds == {"integer"}:
        raise DiffusionalError(_levels_needed(name, parts))
    return _continuous(name, parts)


def channels_first(values: np.ndarray, source: str) -> np.ndarray:
    """Images N×H×W as N×1×H×W, and N×H×W×C as N×C×H×W if C is 1, 3 or 4 and H and W exceed 4.

    Anything else stays as it is. Raises DiffusionalError for fewer than two axes.

    >>> channels_first(np.zeros((10, 28, 28)), "a").shape, channels_first(np.zeros((10, 8, 8, 3)), "b").shape
    ((10, 1, 28, 28), (10, 3, 8, 8))
    """
    _check_axes(values, source)
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and min(values.shape[1:3]) > 4:
        return np.moveaxis(values, 3, 1)
    return values


def check_fractions(fractions: Fractions) -> None:
    """Raise DiffusionalError unless the three fractions are positive and add up to 1.

    >>> check_fractions((0.8, 0.2, 0.0))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: split (0.8, 0.2, 0.0) came; give positive fractions of train, ...
    """
    if not (all(f > 0 for f in fractions) and abs(sum(fractions) - 1) < 1e-6):
        raise DiffusionalError(
            f"split {fractions} came; give positive fractions of train, validation and test that add up to "
            "1, such as (0.8, 0.1, 0.1)"
        )


def _name(source: str, key: str) -> str:
    return f"{source}, key {key!r}" if key else source


def _whole(values: np.ndarray, source: str) -> Part:
    _check_axes(values, source)
    return Part(values, np.arange(len(values)), source)


def _is_labels(key: str, values: np.ndarray) -> bool:
    # A column (N, 1) under the name of a label is one too; MedMNIST stores them so.
    flat = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    return flat and bool(_LABEL_WORDS & set(key.lower().split("_")))


def _check_axes(values: np.ndarray, source: str) -> None:
    if values.ndim < 2:
        raise DiffusionalError(
            f"{source} has shape {values.shape}; expected items along the first axis and their positions "
            "along the others: (N, D), (N, H, W), … Of N single numbers, make (N, 1)"
        )


def _kind(part: Part) -> str:
    kind = {"b": "boolean", "u": "integer", "i": "integer", "f": "real"}.get(part.values.dtype.kind)
    if kind is None:
        raise DiffusionalError(
            f"{part.source} is of type {part.values.dtype}; expected booleans, integers or real floats"
        )
    return kind


def _refuse(part: Part, split: str, bad: np.ndarray, what: str) -> None:
    items = bad.reshape(len(bad), -1).any(1)
    if items.any():
        raise DiffusionalError(f"{part.source}: item {part.rows[items.argmax()]} (split {split}) has {what}")


def _range(parts: dict[str, Part]) -> tuple[int, int]:
    """The least and the largest of whole values."""
    values = [part.values for part in parts.values()]
    return min(int(v.min()) for v in values), max(int(v.max()) for v in values)


def _levels_needed(name: str, parts: dict[str, Part]) -> str:
    least, most = _range(parts)
    if least < 0:
        advice = f"Levels count from 0: add {-least} to all, then declare at least levels={most - least + 1}"
    else:
        advice = (
            f"The largest value is {most}, so at least levels={max(most + 1, 2)} fit; "
            "for 8-bit images: levels=256 (--levels 256)"
        )
    return f"{name}: integers came without their number of levels, which is never assumed. {advice}"


def _discrete(name: str, parts: dict[str, Part], levels: int) -> Dataset:
    space = Discrete(parts["train"].values.shape[1:], levels)
    for split, part in parts.items():
        if part.values.dtype.kind == "f":
            what = (
                f"a fraction, but levels={levels} declares whole numbers. For real-valued data leave "
                f"levels out (levels=None); images stored as fractions of 1 are rescaled by np.rint({levels - 1} * x)"
            )
            _refuse(part, split, part.values != np.floor(part.values), what)
    least, most = _range(parts)
    advice = "levels count from 0: shift the data" if least < 0 else f"declare at least levels={most + 1}"
    for split, part in parts.items():
        outside = (part.values < 0) | (part.values >= levels)
        what = f"a value outside the declared levels 0 … {levels - 1} (values: {least} to {most}); {advice}"
        _refuse(part, split, outside, what)
    return _dataset(name, space, parts, _integers)


def _continuous(name: str, parts: dict[str, Part]) -> Dataset:
    train = parts["train"].values.astype(np.float64)
    constant = np.argwhere(train.min(0) == train.max(0))
    if len(constant):
        places = ", ".join(str(tuple(p) if len(p) > 1 else p[0]) for p in constant[:5].tolist())
        more = f" and {len(constant) - 5} more" if len(constant) > 5 else ""
        raise DiffusionalError(
            f"{parts['train'].source}: {len(constant)} of {train[0].size} positions are constant over the "
            f"{len(train)} train items: {places}{more}. A constant has no density: drop these columns; "
            "if the values are pixels, store integers and declare their levels"
        )
    shift, scale = train.mean(0).ravel().tolist(), train.std(0).ravel().tolist()
    space = Continuous(train.shape[1:], shift=tuple(shift), scale=tuple(scale))
    return _dataset(name, space, parts, _reals)


def _dataset(
    name: str,
    space: Discrete | Continuous,
    parts: dict[str, Part],
    convert: Callable[[np.ndarray], np.ndarray],
) -> Dataset:
    def tensor(split: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(convert(parts[split].values)))

    return Dataset(name, space, tensor("train"), tensor("validation"), tensor("test"))


def _integers(values: np.ndarray) -> np.ndarray:
    """Bytes as they are, all else as int64: torch's wider unsigned integers lack most operations."""
    return values.astype(np.uint8 if values.dtype.kind == "b" or values.dtype == np.uint8 else np.int64)


def _reals(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
