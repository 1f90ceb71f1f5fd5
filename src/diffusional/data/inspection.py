"""Inspection of data before training: how they were read, and likely faults.

Faults such as wrong levels, copies of train items in the test split or a column of whole numbers cause no errors; they improve
the likelihood. Each finding states what was found and what to do about it.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffusional.data.dataset import SPLITS, Dataset, Stream
from diffusional.data.rows import Rows
from diffusional.data.survey import MOST, Survey, survey
from diffusional.grid import Grid, find_grid
from diffusional.known_data import KnownData, recognise, version_record
from diffusional.space import Continuous, Discrete, Space

_PICTURE = 64  # number of items that are shown
_FEW = 100  # with fewer items in a split, its error bars are wide
_FAR = 20.0  # standard deviations
_RESOLVED = 2**24  # levels over [-1, 1] that float32 distinguishes
_REPEATS = 8  # levels that do not occur are reported if there are at least this many values per level that occurs
_STANDARDISED = 2**10  # the largest number of distinct values of a channel that are considered levels
_OFTEN = 20  # the least number of values per distinct value of a channel for these to be considered levels
_UNBOUNDED = "a density of discrete values has no upper bound, so that their likelihood is meaningless"


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of `inspect`. `items`, `looked_at` and `ranges` are by split; the number of items of a stream is None.

    Attributes:
        looked_at: the number of items of each split that were examined: all of them, unless the split is large or a stream.
        ranges: the smallest and the largest of the raw values that were examined.
        distinct: the number of declared levels that occur, counted up to 2^24 (`survey.MOST`); None for real-valued data.
        held: where the train split is stored: "in memory", "memory-mapped", "streamed", or "read item by item".
        bytes: the size of all raw values together, without those of a stream.
        picture: raw values (≤ 64, *shape) of the first train items.
        notes: the loader's decisions about the file, as in `Dataset.notes`.
        classes: for each class, by name, the number of items of each split; None for data without class labels.
    """

    name: str
    space: Space
    items: dict[str, int | None]
    looked_at: dict[str, int]
    raw_type: str
    ranges: dict[str, tuple[float, float]]
    distinct: int | None
    held: str
    bytes: int
    fingerprints: dict[str, str]
    findings: tuple[str, ...]
    picture: Tensor
    notes: tuple[str, ...] = ()
    classes: dict[str, dict[str, int]] | None = None

    @property
    def versions(self) -> dict[str, KnownData]:
        """The known versions of public data sets that the splits are, by split."""
        levels, found = self.space.levels, {}
        for split, fingerprint in self.fingerprints.items():
            found[split] = recognise(fingerprint, self.space.shape, self.items[split], levels)
        return {split: known for split, known in found.items() if known is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the record without its picture, JSON-ready."""
        return {
            "name": self.name,
            "space": self.space.to_dict(),
            "items": self.items,
            "looked_at": self.looked_at,
            "raw_type": self.raw_type,
            "ranges": {split: list(pair) for split, pair in self.ranges.items()},
            "distinct": self.distinct,
            "held": self.held,
            "bytes": self.bytes,
            "fingerprints": self.fingerprints,
            "versions": {split: version_record(known)["data_version"] for split, known in self.versions.items()},
            "findings": list(self.findings),
            "notes": list(self.notes),
            "classes": self.classes,
        }


def inspect(dataset: Dataset) -> Inspection:
    """Inspect a Dataset: every item once, or a sample of splits above 2 GiB and of streams, which is then reported as a finding.

    >>> from diffusional.data import load
    >>> found = inspect(load("digits"))
    >>> found.items, found.distinct, found.held
    ({'train': 1000, 'validation': 350, 'test': 447}, 17, 'in memory')
    >>> found.findings
    ('3 of 64 positions never change over the train items; they cost next to nothing and lower the bits per dimension',)
    """
    seen = {split: survey(dataset, split) for split in SPLITS}
    train, space = dataset.train, dataset.space
    lengths = {split: None if isinstance(raw := getattr(dataset, split), Stream) else len(raw) for split in SPLITS}
    return Inspection(
        dataset.name,
        space,
        lengths,
        {split: len(s.rows) for split, s in seen.items()},
        str(train.dtype).removeprefix("torch."),
        {split: (s.least, s.most) for split, s in seen.items()},
        min(len(_occurring(seen)), MOST) if isinstance(space, Discrete) else None,
        _held(train),
        sum((n or 0) * space.dimensions * getattr(dataset, split).dtype.itemsize for split, n in lengths.items()),
        {split: dataset.fingerprint(split) for split in SPLITS},
        tuple(_findings(dataset, seen)),
        train.head(_PICTURE) if isinstance(train, Stream) else train[:_PICTURE],
        dataset.notes,
        _classes(dataset, len(seen["train"].rows)),
    )


def _classes(dataset: Dataset, examined: int) -> dict[str, dict[str, int]] | None:
    if not dataset.classes:
        return None
    # The labels of a stream are those of the items that were examined.
    labels = {split: dataset.condition_of(split) for split in SPLITS if not isinstance(getattr(dataset, split), Stream)}
    labels |= {"train": dataset.head_condition(examined)} if "train" not in labels else {}
    counts = {split: own.bincount(minlength=len(dataset.classes)).tolist() for split, own in labels.items()}
    return {name: {split: counts[split][i] for split in SPLITS} for i, name in enumerate(dataset.classes)}


def _held(train: Any) -> str:
    if isinstance(train, Stream):
        return "streamed"
    if isinstance(train, Rows):
        return "memory-mapped" if train.mapped else "in memory"
    return "in memory" if isinstance(train, Tensor) else "read item by item"


def _findings(dataset: Dataset, seen: dict[str, Survey]) -> Iterator[str]:
    some = [f"{len(s.rows)} of {split}" for split, s in seen.items() if not s.whole]
    if some:
        yield f"only some items were examined ({', '.join(some)}), so that there may be more faults than these"
    yield from _broken(dataset, seen)
    if isinstance(dataset.space, Discrete):
        yield from _levels(dataset.space, seen)
        yield from _constant(seen["train"])
    else:
        grids = list(_grids(dataset, seen["train"]))
        yield from grids
        yield from () if grids else _columns(dataset, seen["train"])
        yield from _outliers(dataset, dataset.space, seen)
    yield from _duplicates(seen)
    yield from _small(seen)
    yield from _apart(dataset, seen)


def _broken(dataset: Dataset, seen: dict[str, Survey]) -> Iterator[str]:
    for split, s in seen.items():
        if s.infinite:
            yield f"{split} has {s.infinite} values that are not finite; correct or drop their items"
        if isinstance(dataset.space, Discrete) and (s.least < 0 or s.most >= dataset.space.levels):
            yield (
                f"{split} has values from {s.least:g} to {s.most:g}, outside the declared levels 0 … "
                f"{dataset.space.levels - 1}; correct the data or declare their levels"
            )


def _levels(space: Discrete, seen: dict[str, Survey]) -> Iterator[str]:
    """Yield findings on declared levels that do not occur, because the scale is too fine or too long."""
    if space.levels > _RESOLVED:
        yield (
            f"{space.levels} levels are declared, and float32, in which models get their values, distinguishes at most {_RESOLVED}"
            "; divide the values to have fewer levels, or store them as floats to have them modelled as real numbers"
        )
    values = _occurring(seen)
    looked = sum(len(s.rows) for s in seen.values()) * space.dimensions
    # If values hardly repeat, levels do not occur because there are few values.
    if len(values) < 2 or len(values) >= MOST or looked < _REPEATS * len(values):
        return
    step, most = int(np.gcd.reduce(values)), int(values[-1])
    told = f"{len(values)} of {space.levels} declared levels occur"
    if step > 1:
        yield (
            f"{told}, all multiples of {step}: these are data of {most // step + 1} levels, scaled; divide them by "
            f"{step} and declare levels={most // step + 1}; otherwise the model learns the gaps and the bound is too good"
        )
    elif 2 * len(values) <= space.levels and most + 1 == len(values):
        yield f"{told}, 0 to {most}; declare levels={most + 1}; otherwise levels that never occur take some of the probability"
    elif 2 * len(values) <= space.levels:
        yield (
            f"{told}; if the data were scaled from fewer levels, map them back to 0 … {len(values) - 1} and declare "
            f"levels={len(values)}; otherwise the model learns the gaps and the bound is too good"
        )


def _occurring(seen: dict[str, Survey]) -> np.ndarray:
    """Return the levels that occur in any split, sorted."""
    return np.unique(np.concatenate([s.levels for s in seen.values()]))


def _grids(dataset: Dataset, train: Survey) -> Iterator[str]:
    """Yield findings on real values that are scaled levels: all values, those of a channel of images, or those of a column."""
    x, shape = train.columns, dataset.space.shape
    if len(x) < 20:
        return
    grid = find_grid(_finite(x))
    if grid is not None:
        yield f"all values are {_scaled(grid)}"
    elif len(shape) == 3:
        for channel, values in enumerate(np.moveaxis(x.reshape(len(x), *shape), 1, 0)):
            values = _finite(values)
            grid, distinct = find_grid(values), np.unique(values)
            if grid is not None:
                yield f"the values of channel {channel} are {_scaled(grid)}"
            elif 1 < len(distinct) <= _STANDARDISED and len(values) >= _OFTEN * len(distinct):
                yield (
                    f"channel {channel} has only {len(distinct)} distinct values among {len(values)}, so they are levels, "
                    f"perhaps of bytes standardised by channel; {_UNBOUNDED}: undo the scaling, store the levels as "
                    "integers and declare their number"
                )
    else:
        found = {j: grid for j in range(x.shape[1]) if (grid := find_grid(_finite(x[:, j]), whole=False)) is not None}
        for grid in sorted(set(found.values()), key=str):
            places = [_place(dataset, j) for j in found if found[j] == grid]
            yield f"the values of {'column' if len(places) == 1 else 'columns'} {_first(places)} are {_scaled(grid)}"


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _scaled(grid: Grid) -> str:
    """Describe a grid, and what to do about it."""
    return (
        f"{grid}: these are data of {grid.levels} levels, stored as reals; {_UNBOUNDED}: store {grid.index()} as integers "
        f"and declare levels={grid.levels}"
    )


def _constant(train: Survey) -> Iterator[str]:
    constant = int((train.low == train.high).sum())
    if constant:
        yield (
            f"{constant} of {len(train.low)} positions never change over the train items; they cost next to nothing "
            "and lower the bits per dimension"
        )


def _columns(dataset: Dataset, train: Survey) -> Iterator[str]:
    """Yield findings on columns of real-valued data in which a value occurs often: a density of them has no bound."""
    x = train.columns
    if len(x) < 20:
        return
    few, often = [], []
    for j in range(x.shape[1]):
        values, counts = np.unique(x[:, j], return_counts=True)
        if len(values) <= len(x) / 10:
            few.append(f"{_place(dataset, j)} ({len(values)} distinct)")
        elif counts.max() > len(x) / 10:
            often.append(f"{_place(dataset, j)} ({values[counts.argmax()]:g} in {counts.max() / len(x):.0%})")
    advice = f"{_UNBOUNDED}: drop them"
    if few:
        yield f"columns of few values among {len(x)} train items: {_first(few)}; {advice}, or declare levels"
    if often:
        yield f"columns in which one value occurs often: {_first(often)}; {advice}, or model that value separately"


def _outliers(dataset: Dataset, space: Continuous, seen: dict[str, Survey]) -> Iterator[str]:
    shift, scale = (np.broadcast_to(np.array(v), space.dimensions) for v in (space.shift, space.scale))
    for split, s in seen.items():
        far = np.maximum(np.abs(s.low - shift), np.abs(s.high - shift)) / scale
        places = np.flatnonzero(far > _FAR)
        if len(places):
            worst = int(far.argmax())
            yield (
                f"{split} has values more than {_FAR:g} standard deviations from the train mean in {len(places)} of "
                f"{len(far)} positions, the farthest {far[worst]:.0f} at {_place(dataset, worst)}; check them, or take "
                "logarithms: otherwise a few items determine the likelihood"
            )


def _duplicates(seen: dict[str, Survey]) -> Iterator[str]:
    """Yield findings on items that are equal in all values, within train and between the splits."""
    train = Counter(seen["train"].digests)
    twice = sum(n - 1 for n in train.values())
    if twice:
        digest = next(d for d, n in train.items() if n > 1)
        a, b = [int(row) for row, d in zip(seen["train"].rows, seen["train"].digests, strict=True) if d == digest][:2]
        yield f"{twice} train items repeat another, such as items {a} and {b}; drop the copies unless they are independent repetitions"
    for former, latter in (("train", "validation"), ("train", "test"), ("validation", "test")):
        where = {d: int(row) for row, d in zip(seen[former].rows, seen[former].digests, strict=True)}
        again = [
            (int(row), where[d]) for row, d in zip(seen[latter].rows, seen[latter].digests, strict=True) if d in where
        ]
        if again:
            yield (
                f"{len(again)} {latter} items are also in {former}, such as {latter} item {again[0][0]} and {former} item "
                f"{again[0][1]}; drop them from one of the two; otherwise the bound rewards memorisation"
            )


def _small(seen: dict[str, Survey]) -> Iterator[str]:
    for split in ("validation", "test"):
        n = len(seen[split].rows)
        if n < _FEW:
            yield f"{split} has {n} item{'s' * (n != 1)}; with fewer than {_FEW}, the errors over items are large"


def _apart(dataset: Dataset, seen: dict[str, Survey]) -> Iterator[str]:
    """Yield findings on splits whose means differ by more than one standard deviation of train and six standard errors."""
    train = seen["train"]
    for split in ("validation", "test"):
        s = seen[split]
        error = math.sqrt(1 / len(s.rows) + 1 / len(train.rows))
        bound = max(1.0, 6 * error)
        if len(dataset.space.shape) == 3:  # single pixels vary too much to show a change in brightness
            away = np.array([abs(s.brightness[0] - train.brightness[0]) / max(train.brightness[1], 1e-300)])
        else:
            deviation = np.where(train.deviation > 0, train.deviation, np.inf)
            away = np.abs(s.mean - train.mean) / deviation
        if away.max() > bound:
            where = (
                "of an item"
                if len(away) == 1 < dataset.space.dimensions
                else f"at {_place(dataset, int(away.argmax()))}"
            )
            yield (
                f"the mean {where} differs by {away.max():.1f} standard deviations between train and {split}; if they "
                "should be alike, split the data at random, from one file for all"
            )


def _place(dataset: Dataset, j: int) -> str:
    if dataset.labels:
        return repr(dataset.labels[j])
    place = np.unravel_index(j, dataset.space.shape)
    return str(tuple(map(int, place)) if len(place) > 1 else j)


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
