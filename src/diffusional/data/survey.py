"""The statistics for an inspection, from one pass over the items of a split, in blocks."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from diffusional.data.checks import units
from diffusional.data.dataset import Dataset, Stream, block_rows
from diffusional.space import Continuous, Discrete

ALL = 2**31  # all items of a split are examined up to this number of bytes
_SAMPLE = 2**28  # bytes of evenly spaced items that are examined of a larger split
_OF_STREAM = 1000  # number of items, from the first on, that are examined of a stream
_COLUMNS = 2**22  # number of values whose distinct values are counted, column by column
MOST = 2**24  # the largest number of distinct levels that are counted
_COUNTED = 2**16  # the largest number of levels with a counter for each


@dataclass(frozen=True, eq=False)
class Survey:
    """Statistics of the items of a split: their rows in the split, digests, and moments at each of D positions."""

    whole: bool
    rows: np.ndarray  # (n,)
    digests: tuple[bytes, ...]  # (n,), one for each item
    levels: np.ndarray  # (≤ MOST,) the levels that occur, sorted, for discrete data, else (0,)
    infinite: int
    least: float
    most: float
    mean: np.ndarray  # (D,)
    deviation: np.ndarray  # (D,)
    low: np.ndarray  # (D,)
    high: np.ndarray  # (D,)
    brightness: tuple[
        float, float
    ]  # mean and deviation over items of the mean over positions, in units of max(`units`)
    columns: np.ndarray  # some of the values (m, D), for continuous data, else (0, D)


def survey(dataset: Dataset, split: str) -> Survey:
    """Examine a split: all of its items, or some of them if it is larger than 2 GiB or a stream.

    >>> from diffusional.data import load
    >>> seen = survey(load("digits"), "train")
    >>> seen.most, len(seen.rows), seen.levels.tolist() == list(range(17))
    (16.0, 1000, True)
    """
    raw = getattr(dataset, split)
    space = dataset.space
    if isinstance(raw, Stream):
        items = raw.head(_OF_STREAM)
        rows, whole = np.arange(len(items)), False
    else:
        items = raw
        size = max(1, space.dimensions * raw.dtype.itemsize)
        whole = len(raw) * size <= ALL
        step = 1 if whole else max(1, len(raw) * size // _SAMPLE)
        rows = np.arange(0, len(raw), step)
    discrete = isinstance(space, Discrete)
    d, n = space.dimensions, len(rows)
    occurring = _Occurring(space.levels if isinstance(space, Discrete) else 0)
    total, squares = np.zeros(d), np.zeros(d)
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    # These units keep the squares of very large and very small values from overflowing or vanishing.
    sizes = np.maximum(np.abs(space.shift), space.scale) if isinstance(space, Continuous) else np.ones(1)
    unit = units(np.broadcast_to(sizes, d))
    centre = None
    digests: list[bytes] = []
    means, kept, infinite = [], [], 0
    every = max(1, -(-n * d // _COLUMNS))
    for first in range(0, n, block_rows(space.shape)):
        chosen = rows[first : first + block_rows(space.shape)]
        x = items[torch.from_numpy(chosen)].cpu().numpy().reshape(len(chosen), d)
        # The bytes of the widest type, so that equal values are equal items whatever their type; + 0 converts −0 to 0.
        wide = np.ascontiguousarray(x.astype("<i8" if discrete else "<f8") + 0)
        digests += [hashlib.blake2b(item.tobytes(), digest_size=16).digest() for item in wide]
        if discrete:
            occurring.add(wide)
        finite = np.isfinite(wide)
        infinite += int((~finite).sum())
        real = np.where(finite, wide, 0.0)
        scaled = real / unit
        # Sums of differences from the first item are accurate even if values are large and differ little.
        centre = scaled[0].copy() if centre is None else centre
        total, squares = total + (scaled - centre).sum(0), squares + ((scaled - centre) ** 2).sum(0)
        low, high = np.minimum(low, real.min(0)), np.maximum(high, real.max(0))
        means.append((real / unit.max()).mean(1))
        if not discrete:
            kept.append(x[-first % every :: every])
    assert centre is not None  # a dataset has no empty split
    mean = total / n
    brightness = np.concatenate(means)
    return Survey(
        whole,
        rows,
        tuple(digests),
        occurring.levels(),
        infinite,
        float(low.min()),
        float(high.max()),
        unit * (centre + mean),
        unit * np.sqrt(np.maximum(0.0, squares / n - mean**2)),
        low,
        high,
        (float(brightness.mean()), float(brightness.std())),
        np.concatenate(kept) if kept else np.zeros((0, d)),
    )


class _Occurring:
    """Record which of K levels occur, in memory that grows with the number of levels that occur, not with K."""

    def __init__(self, declared: int) -> None:
        self.declared = declared
        self.counts = np.zeros(declared if declared <= _COUNTED else 0, np.int64)
        self.known = np.zeros(0, np.int64)
        self.new: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Add int64 values; those outside 0 … K − 1 are ignored."""
        inside = values[(values >= 0) & (values < self.declared)]
        if len(self.counts):
            self.counts += np.bincount(inside, minlength=len(self.counts))
        elif len(self.known) < MOST:
            self.new.append(np.unique(inside))
            # Merged only when there are as many new ones as known ones, so that the work grows with their number.
            if sum(map(len, self.new)) > max(len(self.known), _COUNTED):
                self._merge()

    def levels(self) -> np.ndarray:
        """Return the levels that occur, sorted; if there are more than 2^24, the smallest of those seen first."""
        if len(self.counts):
            return np.flatnonzero(self.counts)
        self._merge()
        return self.known

    def _merge(self) -> None:
        self.known = np.unique(np.concatenate([self.known, *self.new]))[:MOST]
        self.new = []
