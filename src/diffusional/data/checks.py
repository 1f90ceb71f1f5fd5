"""Making a Dataset of the parts of a file: their layout, checks of the values, and the space.

Ambiguous data are refused, such as integers without declared levels, and so are values that are not finite. An error names the
file, the split, and the item by its row in the file. Each array is read once, in its own order and in blocks, so that it may be
larger than memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from diffusional.data.classes import conditions
from diffusional.data.dataset import Dataset, Source, Texts, block_rows
from diffusional.data.given import captions_given, conditions_given
from diffusional.data.origin import Origin
from diffusional.data.rows import Rows, integers, reals
from diffusional.data.splits import Part, check_axes
from diffusional.errors import DiffusionalError
from diffusional.space import Continuous, Discrete, Space

# Some items of one split: their source, the split, their rows in the source, and their values.
Block = tuple[str, str, np.ndarray, np.ndarray]

_LARGEST = 2**63 - 1  # as int64
IN_MEMORY = 2**26  # 64 MiB: smaller data become tensors, larger data views of the array or file that they are read from


def to_dataset(name: str, parts: dict[str, Part], levels: int | None) -> Dataset:
    """Return a Dataset of three parts: images get their channel axis, values are checked, the space is declared.

    Booleans and integers (or whole floats, with `levels`) become Discrete; other floats become Continuous,
    standardised by the train part's mean and standard deviation (of the population) at each position.

    Raises DiffusionalError for empty, 1-D, non-numeric or non-finite values, parts that do not match,
    integers without `levels` or outside them, fractions with `levels`, and constant columns.

    >>> from diffusional.data.splits import split_at_random
    >>> parts = split_at_random(np.arange(20.0).reshape(10, 2), "file.npy", (0.8, 0.1, 0.1), seed=0)
    >>> to_dataset("file", parts, levels=None).space.shape
    (2,)
    """
    # Parts of one array must remain parts of one array, so that it is read only once.
    laid = {id(part.array): channels_first(part.array, part.source) for part in parts.values()}
    parts = {split: replace(part, array=laid[id(part.array)]) for split, part in parts.items()}
    kinds = {kind_of_values(part.array.dtype, part.source) for part in parts.values()}
    if len(kinds) > 1:
        raise DiffusionalError(
            f"{name}: the splits have different kinds of values ({', '.join(sorted(kinds))}); store all of them in one type"
        )
    shape = parts["train"].array.shape[1:]
    for split, part in parts.items():
        if part.array.shape[1:] != shape:
            raise DiffusionalError(
                f"{part.source}: the items of split {split} have shape {part.array.shape[1:]}, those of "
                f"train {shape}; all splits must have items of one shape"
            )
        if len(part) == 0 or part.array.size == 0:
            raise DiffusionalError(f"{part.source}: split {split} is empty, of shape {(len(part), *shape)}; give data")
    (kind,) = kinds
    train = parts["train"]
    space = find_space(name, kind, shape, levels, _blocks(parts), train.source, train.labels)
    return declared(name, space, parts)


def find_space(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    levels: int | None,
    blocks: Iterator[Block],
    source: str,
    labels: tuple[str, ...] = (),
) -> Space:
    """Return the space of "boolean", "integer" or "real" values, which `blocks` yield once, each with its place.

    `source` and `labels` name the train split and its positions in errors. Raises DiffusionalError as `to_dataset` does.
    """
    if kind == "boolean":
        if levels not in (None, 2):
            raise DiffusionalError(f"{name}: expected levels=2 for booleans, got levels={levels} (leave levels out)")
        return Discrete(shape, 2)
    space = None if levels is None else Discrete(shape, levels)
    found = _scan(blocks, space)
    if (space is not None or kind == "integer") and found.most > _LARGEST:
        raise DiffusionalError(
            f"{name} has a value of {found.most:g}, expected at most 2^63 - 1, since levels are stored as int64. Give "
            "values of fewer levels, or floats to have them modelled as real numbers"
        )
    if space is not None:
        _check_levels(found, space)
        return space
    if kind == "integer":
        raise DiffusionalError(_levels_needed(name, found))
    return _standardised(found, shape, source, labels)


def declared(name: str, space: Space, parts: dict[str, Part]) -> Dataset:
    """Return a Dataset of parts that are known to fit their space: tensors if they are small, otherwise views."""
    convert = integers if isinstance(space, Discrete) else reals
    rows = {split: Rows(part.array, part.rows, convert) for split, part in parts.items()}
    size = sum(len(items) * space.dimensions * items.dtype.itemsize for items in rows.values())
    splits = {split: items[:] if size <= IN_MEMORY else items for split, items in rows.items()}
    origins = {split: Origin(name, part.rows, len(part.array), part.files) for split, part in parts.items()}
    captions, given = captions_given(parts), conditions_given(parts)
    condition, classes = (given, ()) if captions is not None or given is not None else conditions(parts)
    source = Source({split: (splits[split], origins[split]) for split in splits}, condition=condition)
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    texts = None if captions is None else Texts(captions)
    about = (parts["train"].labels, parts["train"].notes, source, condition, classes, texts)
    return Dataset(name, space, train, validation, test, *about)


def channels_first(values: np.ndarray, source: str) -> np.ndarray:
    """Return images N×H×W as N×1×H×W, and N×H×W×C as N×C×H×W if C is 1, 3 or 4 and H and W exceed 4.

    Other arrays are not changed. Raises DiffusionalError for fewer than two axes.

    >>> channels_first(np.zeros((10, 28, 28)), "a").shape, channels_first(np.zeros((10, 8, 8, 3)), "b").shape
    ((10, 1, 28, 28), (10, 3, 8, 8))
    """
    check_axes(values, source)
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and min(values.shape[1:3]) > 4:
        return np.moveaxis(values, 3, 1)
    return values


def units(sizes: np.ndarray) -> np.ndarray:
    """Return powers of two by which to divide values of these magnitudes so that their squares neither overflow nor vanish.

    The power is 1 for magnitudes from 2⁻³⁰⁰ to 2³⁰⁰, so that ordinary values do not change; division by a power of two is exact.

    >>> units(np.array([0.0, 3.0, 1e-170, 1e160])) == np.array([1.0, 1.0, 2.0**-564, 2.0**532])
    array([ True,  True,  True,  True])
    """
    exponents = np.frexp(sizes)[1]
    return np.ldexp(1.0, np.where((sizes == 0) | (np.abs(exponents) <= 300), 0, np.maximum(exponents, -1000)))


@dataclass
class _Scan:
    """Results of one pass over all parts.

    Attributes:
        least, most: the range of all values.
        faults: the first fault of each kind, with its place.
        values: the distinct values, at most as many as there are levels, if the first block has a value outside the levels; else None.
        n: the number of train items.
        mean, squares: their mean and their sum of squared deviations at each position, divided by `unit` and its square.
        low, high: their smallest and largest value at each position.
        unit: a power of two for each position, see `units`.
    """

    least: float = np.inf
    most: float = -np.inf
    faults: dict[str, str] = field(default_factory=dict)
    values: np.ndarray | None = None
    n: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    unit: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, x: np.ndarray) -> None:
        """Add train items (n, …). Means and squares of blocks are merged, which loses no digits (Chan et al. 1979)."""
        x = x.astype(np.float64, copy=False)
        low, high = x.min(0), x.max(0)
        if self.n:
            low, high = np.minimum(self.low, low), np.maximum(self.high, high)
        unit = units(np.maximum(np.abs(low), np.abs(high)))
        if self.n and (unit != self.unit).any():
            change = self.unit / unit
            self.mean, self.squares = self.mean * change, self.squares * change * change
        if (unit != 1).any():
            x = x / unit
        n, mean = len(x), x.mean(0)
        squares = ((x - mean) ** 2).sum(0)
        self.low, self.high, self.unit = low, high, unit
        if self.n == 0:
            self.n, self.mean, self.squares = n, mean, squares
            return
        apart, total = mean - self.mean, self.n + n
        self.mean = self.mean + apart * (n / total)
        self.squares = self.squares + squares + apart**2 * (self.n * n / total)
        self.n = total


def _scan(blocks: Iterator[Block], space: Discrete | None) -> _Scan:
    """Collect what the checks need in one pass. Raises DiffusionalError for the first value that is not finite."""
    found = _Scan()
    for number, (source, split, rows, block) in enumerate(blocks):
        real = block.dtype.kind == "f"
        if real and block.dtype.itemsize > 8:  # stored in float64, where they may be infinite
            with np.errstate(over="ignore"):
                block = block.astype(np.float64)
        if real:
            _note(found, source, split, rows, ~np.isfinite(block), "infinite")
            if "infinite" in found.faults:
                raise DiffusionalError(
                    f"{found.faults['infinite']} a value that is not finite; correct or drop the item"
                )
        least, most = (block.min().item(), block.max().item())
        found.least, found.most = min(found.least, least), max(found.most, most)
        if space is None:
            if real and split == "train":
                found.add(block)
            continue
        if real and "fraction" not in found.faults:
            _note(found, source, split, rows, block != np.floor(block), "fraction")
        if (least < 0 or most >= space.levels) and "outside" not in found.faults:
            _note(found, source, split, rows, (block < 0) | (block >= space.levels), "outside")
            found.values = np.zeros(0, block.dtype) if number == 0 else None
        if found.values is not None:
            values = np.union1d(found.values, block)
            found.values = values if len(values) <= space.levels else None
    return found


def _blocks(parts: dict[str, Part]) -> Iterator[Block]:
    """Yield every item once, in blocks of one split. Arrays are read in their own order."""
    for array in {id(part.array): part.array for part in parts.values()}.values():
        here = [(split, part) for split, part in parts.items() if part.array is array]
        owner = np.full(len(array), len(here), np.uint8)
        for number, (_, part) in enumerate(here):
            owner[part.rows] = number
        size = block_rows(array.shape[1:])
        for first in range(0, len(array), size):
            block, whose = array[first : first + size], owner[first : first + size]
            for number, (split, part) in enumerate(here):
                mine = np.flatnonzero(whose == number)
                if len(mine):
                    yield part.source, split, first + mine, block if len(mine) == len(block) else block[mine]


def _note(found: _Scan, source: str, split: str, rows: np.ndarray, bad: np.ndarray, fault: str) -> None:
    items = bad.reshape(len(bad), -1).any(1)
    if items.any():
        found.faults[fault] = f"{source}: item {rows[items.argmax()]} (split {split}) has"


def kind_of_values(dtype: np.dtype, source: str) -> str:
    """Return "boolean", "integer" or "real". Raises DiffusionalError for other types.

    >>> kind_of_values(np.dtype("uint8"), "a.npy")
    'integer'
    """
    kind = {"b": "boolean", "u": "integer", "i": "integer", "f": "real"}.get(dtype.kind)
    if kind is None:
        raise DiffusionalError(f"{source} is of type {dtype}; expected booleans, integers or real floats")
    return kind


def _levels_needed(name: str, found: _Scan) -> str:
    least, most = int(found.least), int(found.most)
    if least < 0:
        advice = f"Levels count from 0: add {-least} to all, then declare at least levels={most - least + 1}"
    else:
        advice = (
            f"The largest value is {most}, so at least levels={max(most + 1, 2)} fit; "
            "for 8-bit images: levels=256 (--levels 256; for train --data.levels 256)"
        )
    return f"{name}: expected the number of levels of these integers, which is never assumed, got none. {advice}"


def _check_levels(found: _Scan, space: Discrete) -> None:
    if "fraction" in found.faults:
        raise DiffusionalError(
            f"{found.faults['fraction']} a fraction, but levels={space.levels} declares whole numbers. For real-valued "
            "data leave levels out (levels=None); images stored as fractions of 1 are rescaled by "
            f"np.rint({space.levels - 1} * x)"
        )
    if "outside" in found.faults:
        least, most = int(found.least), int(found.most)
        if found.values is not None and "fraction" not in found.faults:
            listed = ", ".join(f"{value:g}" if value.dtype.kind == "f" else str(value) for value in found.values[:8])
            more = f" and {len(found.values) - 8} more" if len(found.values) > 8 else ""
            advice = (
                f"only {len(found.values)} different values occur, {listed}{more}: number them from 0, as "
                "np.unique(x, return_inverse=True)[1].reshape(x.shape) does"
            )
        elif least < 0:
            advice = f"levels count from 0: add {-least} to all values, and declare at least levels={most - least + 1}"
        else:
            advice = f"declare at least levels={most + 1}"
        raise DiffusionalError(
            f"{found.faults['outside']} a value outside the declared levels 0 … {space.levels - 1} "
            f"(values: {least} to {most}); {advice}"
        )


def _standardised(found: _Scan, shape: tuple[int, ...], source: str, labels: tuple[str, ...]) -> Continuous:
    constant = np.argwhere(found.low == found.high)
    if len(constant):
        raise DiffusionalError(
            f"{source}: {len(constant)} of {found.low.size} positions are constant over the "
            f"{found.n} train items: {_places(constant, labels)}. A constant has no density: drop these columns; "
            "if the values are pixels, store integers and declare their levels"
        )
    deviation = np.sqrt(found.squares / found.n)
    scale = deviation * found.unit
    small, large = scale < np.finfo(float).tiny, np.maximum(np.abs(found.low), np.abs(found.high)) > 2.0**1022
    for bad, size, todo in ((small, "small", "multiply"), (large, "large", "divide")):
        if bad.any():
            raise DiffusionalError(
                f"{source}: the values at {int(bad.sum())} of {found.low.size} positions are too {size} for float64 to standardise them: "
                f"{_places(np.argwhere(bad), labels)}; {todo} them by a constant, that is, change their unit"
            )
    mean = found.mean * found.unit
    return Continuous(shape, shift=tuple(mean.ravel().tolist()), scale=tuple(scale.ravel().tolist()))


def _places(positions: np.ndarray, labels: tuple[str, ...]) -> str:
    """List the first five positions (n, number of axes), by name if they have names."""
    named = [labels[p[0]] if labels else str(tuple(p) if len(p) > 1 else p[0]) for p in positions[:5].tolist()]
    return ", ".join(named) + (f" and {len(positions) - 5} more" if len(positions) > 5 else "")
