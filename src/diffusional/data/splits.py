"""The items of train, validation and test: those of the files' own splits, or of a permutation drawn from a seed.

A part is a view of an array: some of its rows, in order. Splitting copies nothing.
"""

from dataclasses import dataclass, replace

import numpy as np

from diffusional.data.classes import Labels
from diffusional.data.given import Given
from diffusional.data.origin import Files
from diffusional.data.rows import Where
from diffusional.errors import DiffusionalError
from diffusional.seeds import check_seed

Fractions = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Part:
    """One split while it is loaded.

    It has rows of an array (N, …), its name in errors, the names of its columns, the files that the rows of the array were read from
    (None for one file), notes on how the file was read, and the labels or other conditions of all N rows of the array, if these are
    needed.
    """

    array: np.ndarray
    rows: Where
    source: str
    labels: tuple[str, ...] = ()
    files: Files | None = None
    notes: tuple[str, ...] = ()
    targets: Labels | Given | None = None

    def __len__(self) -> int:
        return len(range(*self.rows.indices(len(self.array)))) if isinstance(self.rows, slice) else len(self.rows)

    def row(self, item: int) -> int:
        """Return the row in the array of an item of this part."""
        return range(len(self.array))[self.rows][item] if isinstance(self.rows, slice) else int(self.rows[item])


def split_at_random(values: np.ndarray, source: str, fractions: Fractions | None, seed: int) -> dict[str, Part]:
    """Return three disjoint parts of values (N, …), by a permutation drawn from `seed`.

    Validation and test have N · fraction items, rounded; train has the rest. With `fractions=None` nothing is split: the only part
    is "train", with all items in order. Raises DiffusionalError for fractions that are not positive or do not add up to 1, and if a
    part would be empty.

    >>> parts = split_at_random(np.zeros((10, 3)), "file.npy", (0.5, 0.3, 0.2), seed=0)
    >>> [len(part) for part in parts.values()]
    [5, 3, 2]
    """
    check_axes(values, source)
    return {
        split: Part(values, rows, source)
        for split, rows in random_rows({"train": np.arange(len(values))}, source, fractions, seed).items()
    }


def random_rows(
    given: dict[str, np.ndarray], source: str, fractions: Fractions | None, seed: int
) -> dict[str, np.ndarray]:
    """Return rows of "train", "validation" and "test"; splits that `given` lacks are drawn from its train at random.

    Each of them gets its fraction of train's items, rounded. With `fractions=None` the result is `given`. Raises DiffusionalError for
    wrong fractions, a negative seed, and if a part would be empty.

    >>> rows = random_rows({"train": np.arange(10), "test": np.arange(10, 14)}, "folder", (0.7, 0.2, 0.1), seed=0)
    >>> [len(rows[split]) for split in ("train", "validation", "test")]
    [8, 2, 4]
    """
    if fractions is None:
        return given
    check_fractions(fractions)
    check_seed(seed)
    if set(given) == {"train", "validation", "test"}:
        return given
    train = given["train"]
    n = len(train)
    sizes = [
        0,
        *(
            0 if split in given else round(n * f)
            for split, f in zip(("validation", "test"), fractions[1:], strict=True)
        ),
    ]
    sizes[0] = n - sum(sizes)
    if sizes[0] < 1 or any(
        size < 1 for split, size in zip(("validation", "test"), sizes[1:], strict=True) if split not in given
    ):
        raise DiffusionalError(
            f"{source}: {n} items, split by {fractions}, leave {sizes[0]} train, {sizes[1]} validation and "
            f"{sizes[2]} test items; each needs at least one. Give more items or other fractions"
        )
    pieces = np.split(train[np.random.default_rng(seed).permutation(n)], np.cumsum(sizes)[:2])
    return {
        split: given[split] if split in given and split != "train" else piece
        for split, piece in zip(("train", "validation", "test"), pieces, strict=True)
    }


def split_off_validation(
    parts: dict[str, Part], fractions: Fractions | None, count: int | None = None
) -> dict[str, Part]:
    """Return parts with a validation part taken off the end of train, a whole array.

    It has `count` items, or the fraction `fractions[1]` of train if `count` is None. With `fractions=None` the result is `parts`.
    Raises DiffusionalError for wrong fractions, and if train or validation would be empty.

    >>> parts = {split: whole(np.arange(10)[:, None], "a.npz") for split in ("train", "test")}
    >>> split_off_validation(parts, (0.7, 0.2, 0.1))["validation"].rows
    slice(8, 10, None)
    """
    if fractions is None:
        return parts
    check_fractions(fractions)
    train = parts["train"]
    n = len(train)
    count = round(n * fractions[1]) if count is None else count
    if not 0 < count < n:
        raise DiffusionalError(
            f"{train.source}: {n} items, of which {count} are to be split off for validation, leave "
            f"{'train' if count else 'validation'} empty; give more items or another fraction "
            f"than {fractions[1]}"
        )
    head, tail = (replace(train, rows=piece) for piece in (slice(0, n - count), slice(n - count, n)))
    return {"train": head, "validation": tail, "test": parts["test"]}


def whole(values: np.ndarray, source: str) -> Part:
    """Return a part of all rows. Raises DiffusionalError for fewer than two axes."""
    check_axes(values, source)
    return Part(values, slice(0, len(values)), source)


def check_axes(values: np.ndarray, source: str) -> None:
    """Raise DiffusionalError for fewer than two axes."""
    if values.ndim < 2:
        raise DiffusionalError(
            f"{source} has shape {values.shape}; expected items along the first axis and their positions "
            "along the others: (N, D), (N, H, W), …. Reshape N single numbers to (N, 1)"
        )


def check_fractions(fractions: Fractions) -> None:
    """Raise DiffusionalError unless the three fractions are positive and add up to 1.

    >>> check_fractions((0.8, 0.2, 0.0))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected split to be positive fractions of train, validation and test ...
    """
    if not (all(f > 0 for f in fractions) and abs(sum(fractions) - 1) < 1e-6):
        raise DiffusionalError(
            "expected split to be positive fractions of train, validation and test that add up to 1, such as (0.8, 0.1, 0.1), got "
            f"{fractions}"
        )
