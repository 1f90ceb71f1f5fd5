"""NumPy's files: read without pickle, and which of their arrays is which split.

An .npy is mapped, not read: its values are fetched from the file as they are needed, and may be larger than
memory. An .npz is an archive, and is read whole.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffusional.data.splits import Fractions, Part, split_at_random, split_off_validation, whole
from diffusional.errors import DiffusionalError

_KEYS = {
    "train": {"train", "x_train", "train_images"},
    "validation": {"validation", "val", "x_validation", "x_val", "val_images"},
    "test": {"test", "x_test", "test_images"},
}
_LABEL_WORDS = {"y", "label", "labels", "target", "targets"}


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by key, or of an .npy file, mapped, under the key "".

    Raises DiffusionalError for a damaged file and for one that would need pickle.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder) / "a.npy", np.eye(2))
    ...     read_numpy(Path(folder) / "a.npy")[""].shape
    (2, 2)
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
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
    >>> {split: len(part) for split, part in parts.items()}
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
    parts = {split: whole(data[keys[0]], _name(source, keys[0])) for split, keys in found.items() if keys}
    return parts if "validation" in parts else split_off_validation(parts, fractions)


def mnist_splits(arrays: dict[str, np.ndarray], source: str, fractions: Fractions) -> dict[str, Part]:
    """Parts of MNIST's two arrays: validation is train's last 5,000, or its `fractions[1]` if below 50,000.

    >>> arrays = {"train": np.zeros((20, 2, 2)), "test": np.zeros((5, 2, 2))}
    >>> len(mnist_splits(arrays, "folder", (0.8, 0.1, 0.1))["validation"])
    2
    """
    parts = {split: whole(values, f"{source}, {split}") for split, values in arrays.items()}
    return split_off_validation(parts, fractions, 5000 if len(parts["train"]) >= 50_000 else None)


def _name(source: str, key: str) -> str:
    return f"{source}, key {key!r}" if key else source


def _is_labels(key: str, values: np.ndarray) -> bool:
    # A column (N, 1) under the name of a label is one too; MedMNIST stores them so.
    flat = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    return flat and bool(_LABEL_WORDS & set(key.lower().split("_")))
