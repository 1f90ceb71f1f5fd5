"""Spaces: the shape of an item x, with its range and levels (discrete) or the reals (continuous).

All data are declared by a space; nothing is assumed to be 8-bit. A discrete space of K levels maps level k = 0 … K−1 to the
model's value

    x_k = low + (high − low) k / (K − 1),                 bin width  Δ = (high − low) / (K − 1),

so that neighbouring levels are Δ apart and the outer bins are open. A continuous space is standardised per dimension,
x = (raw − shift) / scale, and densities in the original units follow from the log-Jacobian,
−ln p(raw) = −ln p(x) + Σ_d ln scale_d.

Models receive x; files contain raw values; `encode` and `decode` convert between them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.grid import sample, scaled_levels

# Distances from the mean in standard deviations of the training data. The median item of encoded data does not exceed the first; if it
# exceeds the second, the data are far from the training data.
_APART, _FAR = 10.0, 100.0
# Raw values of the same kind as the training data, once standardised, have a median distance from the mean below the first number and a
# spread within a factor of the second.
_ORDINARY, _SPREAD = 3.0, 5.0
# The least number of items for judging a spread or moderate distances; the largest number of items that are examined.
_ENOUGH, _LOOKED_AT = 16, 1000
# Items that are checked at once.
_BLOCK = 4096
# The integers that float32 represents exactly.
_MOST_CATEGORIES = 2**24


def _check_shape(shape: tuple[int, ...]) -> None:
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise DiffusionalError(f"expected shape to be the shape of one item, such as (1, 8, 8) or (20,), got {shape}")


@dataclass(frozen=True)
class Discrete:
    """K ordered levels at every position, mapped to K equally spaced values in [low, high]: x_k = low + (high − low) k/(K − 1).

    Args:
        shape: of an item, without the dimension of items.
        levels: K.
        low, high: the values of the lowest and the highest level.

    Raises DiffusionalError for fewer than 2 levels, and unless low < high.

    >>> space = Discrete(shape=(1, 8, 8), levels=17)
    >>> space.values[:3]
    tensor([-1.0000, -0.8750, -0.7500], dtype=torch.float64)
    >>> space.decode(space.encode(torch.full((1, 1, 8, 8), 16)))[0, 0, 0, 0]
    tensor(16)
    """

    shape: tuple[int, ...]
    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        if self.levels < 2:
            raise DiffusionalError(f"expected levels to be at least 2 for discrete data, got {self.levels}")
        if not self.low < self.high:
            raise DiffusionalError(f"expected low < high, got low={self.low} and high={self.high}")

    @property
    def ordered(self) -> bool:
        """Whether neighbouring levels are alike, so that noise may move a value to a neighbour."""
        return True

    @property
    def dimensions(self) -> int:
        """D, the number of positions of one item."""
        return math.prod(self.shape)

    @property
    def width(self) -> float:
        """Δ, the distance between neighbouring levels."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def values(self) -> Tensor:
        """x_0 … x_{K−1} (K,), float64."""
        return torch.linspace(self.low, self.high, self.levels, dtype=torch.float64)

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Convert level indices (B, *shape), of an integer dtype, to model values; checks shape and range."""
        _check_items(raw, self.shape)
        if raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool:
            raise DiffusionalError(
                f"expected integers 0 … {self.levels - 1}, the indices of {self.levels} levels, got values of type {raw.dtype}"
            )
        least, most = int(raw.min()), int(raw.max())
        if least < 0 or most >= self.levels:
            raise DiffusionalError(
                f"expected values 0 … {self.levels - 1}, the {self.levels} levels that are declared, got {least} to {most}. "
                f"Declare at least levels={max(most, 1) + 1}, or correct the data"
            )
        return (self.low + self.width * raw.to(torch.float64)).to(dtype)

    def index(self, x: Tensor) -> Tensor:
        """Return level indices (int64) of model values: the nearest level, without a check. The inverse of `encode`."""
        return self._place(x).round().clamp(0, self.levels - 1).long()

    def _place(self, x: Tensor) -> Tensor:
        # float32 easily separates 4096 levels; 16-bit types do not.
        return ((x.float() if self.levels <= 4096 else x.double()) - self.low) / self.width

    def decode(self, x: Tensor) -> Tensor:
        """Convert model values (B, *shape) to raw level indices (int64), by the nearest level."""
        return self.index(x)

    def check(self, x: Tensor) -> None:
        """Raise unless x (B, *shape) is on the levels, to within 1 % of a bin width or the rounding error of its type, if that is larger."""
        _check_items(x, self.shape)
        if not x.dtype.is_floating_point:
            raise DiffusionalError(
                f"expected encoded values, of a floating-point type, got type {x.dtype}: use space.encode(raw)"
            )
        # The rounding error of its type, in bins.
        rounded = 0.5 * torch.finfo(x.dtype).eps * max(abs(self.low), abs(self.high)) / self.width
        if rounded >= 0.5:
            raise DiffusionalError(
                f"expected items in float32, got {x.dtype}, which cannot represent {self.levels} distinct levels from {self.low:g} to "
                f"{self.high:g}"
            )
        # In blocks of items, so that a large set needs no memory for copies of its own size.
        for start in range(0, len(x), _BLOCK):
            place = self._place(x[start : start + _BLOCK])
            nearest = torch.round(place).clamp_(0, self.levels - 1)
            bad = ~((place - nearest).abs_() <= max(0.01, rounded)).flatten(1)
            if bad.any():
                row = int(bad.any(1).nonzero()[0])
                item = start + row
                raise DiffusionalError(
                    f"expected values on the {self.levels} levels from {self.low:g} to {self.high:g}, got "
                    f"{float(x[item].flatten()[bad[row]][0]):g} in item {item}; encode raw data with space.encode(raw)"
                )

    def doubts(self, x: Tensor) -> list[str]:
        """Return an empty list: all items that `check` accepts are on the levels."""
        return []

    def scaled_levels(self, x: Tensor, encoded: bool = True) -> None:
        """Return None: the items are on the declared levels."""
        return

    def log_jacobian(self) -> float:
        """Return Σ_d ln scale_d, zero for a mass function."""
        return 0.0

    def log_jacobian_map(self) -> Tensor:
        """Return ln scale_d at every position (*shape), float64: zeros for a mass function."""
        return torch.zeros(self.shape, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        return {
            "kind": "discrete",
            "shape": list(self.shape),
            "levels": self.levels,
            "low": self.low,
            "high": self.high,
        }


def binary(shape: tuple[int, ...]) -> Discrete:
    """Return the space of two levels, −1 and 1.

    >>> binary((4,)).levels
    2
    """
    return Discrete(shape, levels=2)


@dataclass(frozen=True, init=False)
class Categorical(Discrete):
    """Sequences of `length` positions, each with one of K unordered categories 0 … K − 1, such as the tokens of a text.

    The model's value of a category is its number, so that x (B, length) has the values 0.0 … K − 1. A mask is not a category: latents of a
    masked diffusion have the value K at masked positions, which data never have.

    Args:
        length: L, the number of positions of one item.
        categories: K, at least 2.
        alphabet: what the categories are, such as "text8" or the hash of a tokenizer. Spaces of different alphabets are not equal, so that
            data in one alphabet are refused by a model of another.
        excluded: a number among them that is not a category, such as the mask of a vocabulary from elsewhere: data that have it are refused.

    Raises DiffusionalError for a length below 1, fewer than two categories, and more than 2²⁴, which float32 cannot number.

    >>> space = Categorical(length=4, categories=27)
    >>> space.encode(torch.tensor([[0, 26, 3, 3]]))
    tensor([[ 0., 26.,  3.,  3.]])
    """

    alphabet: str | None = None
    excluded: int | None = None

    def __init__(self, length: int, categories: int, alphabet: str | None = None, excluded: int | None = None) -> None:
        for name, value in (("length", length), ("categories", categories)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise DiffusionalError(f"expected {name} to be an integer, got {value!r}")
        if categories > _MOST_CATEGORIES:
            raise DiffusionalError(f"expected categories to be at most {_MOST_CATEGORIES}, got {categories}")
        fields = {"shape": (length,), "levels": categories, "low": 0.0, "high": categories - 1.0}
        fields |= {"alphabet": alphabet, "excluded": excluded}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @property
    def ordered(self) -> bool:
        """False: no two categories are closer to each other than any others."""
        return False

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Convert tokens (B, length), of an integer dtype, to model values. Raises DiffusionalError for other shapes, types and tokens."""
        _check_items(raw, self.shape)
        if raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool:
            raise DiffusionalError(
                f"expected integers 0 … {self.levels - 1}, the numbers of {self.levels} categories, got values of type {raw.dtype}"
            )
        wrong = ((raw < 0) | (raw >= self.levels)).any(1)
        if bool(wrong.any()):
            item = int(wrong.nonzero()[0])
            token = int(raw[item][(raw[item] < 0) | (raw[item] >= self.levels)][0])
            mask = (
                ", which is the mask of a masked diffusion and never part of the data" if token == self.levels else ""
            )
            raise DiffusionalError(
                f"expected tokens 0 … {self.levels - 1}, the {self.levels} categories of the space, got {token} in item {item}{mask}; use the "
                "alphabet or tokenizer that the model was trained with"
            )
        self._check_excluded(raw)
        return raw.to(dtype)

    def check(self, x: Tensor) -> None:
        """Raise unless x (B, length) has categories at all positions."""
        super().check(x)
        self._check_excluded(x)

    def _check_excluded(self, tokens: Tensor) -> None:
        if self.excluded is not None and bool((tokens == self.excluded).any()):
            item = int((tokens == self.excluded).any(1).nonzero()[0])
            raise DiffusionalError(
                f"expected data without the token {self.excluded}, which is the mask of this vocabulary, got it in item {item}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        named = {} if self.alphabet is None else {"alphabet": self.alphabet}
        named |= {} if self.excluded is None else {"excluded": self.excluded}
        return {"kind": "categorical", "length": self.shape[0], "categories": self.levels, **named}


@dataclass(frozen=True)
class Continuous:
    """Real values, standardised as x = (raw − shift) / scale with one shift and one scale per item position (or one for all).

    Densities are those of raw values: −ln p(raw) = −ln p(x) + Σ_d ln scale_d.

    Raises DiffusionalError for another number of shifts or scales, values that are not finite, and scales that are not positive.

    >>> space = Continuous(shape=(2,), shift=(0.0, 1.0), scale=(2.0, 2.0))
    >>> round(space.log_jacobian(), 4)                     # 2 ln 2 nats are added to −ln p(x)
    1.3863
    """

    shape: tuple[int, ...]
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _check_shape(self.shape)
        for name in ("shift", "scale"):
            values = getattr(self, name)
            if len(values) not in (1, self.dimensions):
                raise DiffusionalError(f"expected {name} to have 1 or {self.dimensions} numbers, got {len(values)}")
            if not all(math.isfinite(v) for v in values):
                raise DiffusionalError(
                    f"expected {name} to be finite, got a value that is not: correct the data from which it was computed"
                )
        if min(self.scale) <= 0:
            raise DiffusionalError(f"expected scale to be positive, got {min(self.scale):g} (drop constant columns)")

    @property
    def dimensions(self) -> int:
        """D, the number of positions of one item."""
        return math.prod(self.shape)

    @property
    def levels(self) -> None:
        """None: there are no levels."""
        return

    def _along(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        out = torch.tensor(values, dtype=torch.float64, device=like.device)
        return out.reshape(self.shape) if len(values) == self.dimensions and len(values) > 1 else out

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Convert raw reals (B, *shape) to standardised x. Raises DiffusionalError for values that are not finite before or after."""
        _check_items(raw, self.shape)
        x = ((raw.double() - self._along(self.shift, raw)) / self._along(self.scale, raw)).to(dtype)
        finite = torch.isfinite(x).flatten(1)
        if not finite.all():
            item = int((~finite).any(1).nonzero()[0])
            value = float(raw[item].flatten()[~finite[item]][0])
            raise DiffusionalError(
                f"item {item} has the value {value:g}, which is too far from the mean to be standardised in {dtype}; check that it is in "
                "the unit of the training data"
            )
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Convert standardised x (B, *shape) to raw reals, in the type of x, or in float64 if that type is too small.

        It is too small if a scale is below 1e-30 or above 1e30, or less than 2⁻¹⁴ of its shift (a float32 has 24 bits).

        >>> Continuous((1,), shift=(1.7e9,), scale=(2.0,)).decode(torch.tensor([[0.5]]))
        tensor([[1.7000e+09]], dtype=torch.float64)
        """
        shift, scale = self._along(self.shift, x), self._along(self.scale, x)
        raw = x.double() * scale + shift
        held = (scale >= 1e-30) & (scale <= 1e30) & (shift.abs() <= 2**14 * scale)
        return raw.to(x.dtype) if held.all() else raw

    def check(self, x: Tensor) -> None:
        """Raise unless x (B, *shape) is finite, of a floating type, and encoded.

        Values are considered raw if most items are far from the training data or have hardly any spread, and would be ordinary at
        every position once encoded. A minority of outliers has no effect, however far away they are.

        >>> space = Continuous((2,), shift=(30000.0, 1.7), scale=(8000.0, 0.1))
        >>> space.check(torch.tensor([[-0.5, 1e6], [0.2, 0.1], [1.0, -1.0]]))
        >>> space.check(torch.tensor([[26000.0, 1.8], [31600.0, 1.71]]))
        Traceback (most recent call last):
            ...
        diffusional.errors.DiffusionalError: the items seem to be raw values: expected encoded ones, ...
        """
        _check_items(x, self.shape)
        if not x.dtype.is_floating_point:
            raise DiffusionalError(
                f"expected encoded values, of a floating-point type, got type {x.dtype}: use space.encode(raw)"
            )
        place = self._raw_place(x)
        if place is not None and len(x) > 1:
            raise DiffusionalError(self._seem_raw(x, place))

    def doubts(self, x: Tensor) -> list[str]:
        """Return reasons to doubt a bound of encoded items (B, *shape), one sentence each.

        They are that most items are far from the training data, and that a single item seems to be raw. The list is empty for ordinary
        items, even with a minority of outliers.

        >>> Continuous((1,), (5.0,), (2.0,)).doubts(torch.tensor([[1000.0], [1001.0], [0.3]]))[0][:47]
        'half of the items or more lie at least 100 stan'
        """
        if not self._standardises():
            return []
        if len(x) == 1:
            place = self._raw_place(x)
            return [] if place is None else [self._seem_raw(x, place)]
        if float(x.abs().max()) <= _FAR:
            return []
        middle = _some(x).abs().median(0).values
        if float(middle.max()) <= _FAR:
            return []
        return [
            f"half of the items or more lie at least {_FAR:g} standard deviations of the training data from their mean (position "
            f"{_position(int(middle.argmax()), self.shape)}: {float(middle.max()):.3g}), where the model was not trained: check that they "
            "are in the units of the training data, and were encoded once by space.encode(raw)"
        ]

    def scaled_levels(self, x: Tensor, encoded: bool = True) -> str | None:
        """Return a sentence on items (B, *shape), encoded or raw, that are levels stored as real numbers; None if they are not.

        A density of such values has no upper bound, so that a NELBO is meaningless. A sample of the items is examined.

        >>> space = Continuous((1,), (4.0,), (2.0,))
        >>> space.scaled_levels(space.encode(torch.arange(100.0)[:, None] % 9))[:42]
        'the values at all positions are whole numb'
        >>> space.scaled_levels(torch.randn(100, 1)) is None
        True
        """
        rows, positions = sample(len(x), self.dimensions)
        raw, error = x[rows].detach().flatten(1)[:, positions].cpu().double(), 0.0
        if encoded and self._standardises():
            shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
            shift, scale = (v if len(v) == 1 else v[positions] for v in (shift, scale))
            moved = raw * scale
            raw = moved + shift
            # The rounding of a subtraction, a division and the type of x. Networks take float32.
            eps = max(torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps)
            error = (2 * eps * (moved.abs().amax(0) + shift.abs())).numpy()
        return scaled_levels(raw.numpy(), self.shape, error, positions)

    def _standardises(self) -> bool:
        return any(shift != 0 for shift in self.shift) or any(scale != 1 for scale in self.scale)

    def _raw_place(self, x: Tensor) -> int | None:
        """Return the most unusual position of items x, if x is unusual and would be ordinary at all positions once encoded; else None."""
        small = len(x) >= _ENOUGH and min(self.scale) < 1 / _APART
        if not self._standardises() or not (small or float(x.abs().max()) > _APART):
            return None
        given = _some(x)
        raw = (given - self._along(self.shift, given).reshape(-1)) / self._along(self.scale, given).reshape(-1)
        distance, as_raw = given.abs().median(0).values, raw.abs().median(0).values
        if not bool((as_raw <= _ORDINARY).all()):
            return None
        if bool((distance > _FAR).any()):
            return int(distance.argmax())
        if len(x) < _ENOUGH:
            return None
        # A single position may fit by chance: moderately unusual items must fit at two positions that the encoding changes.
        changes = torch.tensor([abs(b) > _ORDINARY or not 1 / _ORDINARY < s < _ORDINARY for b, s in self._pairs()])
        if int(changes.sum()) > 1 and bool((distance > _APART).any()):
            return int(distance.argmax())
        spread, raw_spread = (1.4826 * (v - v.median(0).values).abs().median(0).values for v in (given, raw))
        if bool((spread < 1 / _FAR).any()) and bool(((raw_spread > 1 / _SPREAD) & (raw_spread < _SPREAD)).all()):
            return int(spread.argmin())
        return None

    def _pairs(self) -> list[tuple[float, float]]:
        """Return shift and scale of every position."""
        n = self.dimensions
        shift, scale = (values * n if len(values) == 1 else values for values in (self.shift, self.scale))
        return list(zip(shift, scale, strict=True))

    def _seem_raw(self, x: Tensor, place: int) -> str:
        shift, scale = self._pairs()[place]
        value = float(_some(x)[:, place].median())
        return (
            f"the items seem to be raw values: expected encoded ones, with mean 0 and standard deviation 1 over the training data, got a "
            f"median of {value:.6g} at position {_position(place, self.shape)}, where the raw training data have mean {shift:.6g} and standard "
            f"deviation {scale:.6g}. Encode them: model.space.encode(raw)"
        )

    def log_jacobian(self) -> float:
        """Return Σ_d ln scale_d, which the standardisation adds to −ln p(x), in nats."""
        total = math.fsum(math.log(s) for s in self.scale)
        return total * self.dimensions if len(self.scale) == 1 else total

    def log_jacobian_map(self) -> Tensor:
        """Return ln scale_d at every position (*shape), float64, whose sum is `log_jacobian`."""
        scale = torch.tensor([scale for _, scale in self._pairs()], dtype=torch.float64)
        return scale.log().reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        return {
            "kind": "continuous",
            "shape": list(self.shape),
            "shift": list(self.shift),
            "scale": list(self.scale),
        }


Space = Discrete | Continuous


def from_dict(record: dict[str, Any]) -> Space:
    """Return the space that `to_dict` described.

    >>> from_dict(Discrete((4,), 17).to_dict()) == Discrete((4,), 17)
    True
    """
    record = dict(record)
    kind = record.pop("kind", None)
    known = {"discrete": Discrete, "continuous": Continuous, "categorical": Categorical}
    if kind not in known:
        raise DiffusionalError(f"expected the kind of a space to be one of {', '.join(known)}, got {kind!r}")
    try:
        return known[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})
    except TypeError as error:
        raise DiffusionalError(f"expected the keys of a {kind} space, got {sorted(record)}: {error}") from error


def _some(x: Tensor) -> Tensor:
    """Return at most _LOOKED_AT items, evenly spread, flattened (n, D) float64."""
    return x[:: -(-len(x) // _LOOKED_AT)].detach().flatten(1).double()


def _position(place: int, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return str(place)
    where = []
    for n in reversed(shape):
        place, rest = divmod(place, n)
        where.append(rest)
    return str(tuple(reversed(where)))


def _check_items(values: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(values, Tensor):
        raise DiffusionalError(
            f"expected items in a torch.Tensor (N, {', '.join(map(str, shape))}), got a {type(values).__name__}; use torch.as_tensor"
        )
    if tuple(values.shape[1:]) != tuple(shape):
        raise DiffusionalError(
            f"expected items of shape {tuple(shape)}, the shape of the space, got {tuple(values.shape[1:])}"
        )
    if values.shape[0] == 0:
        raise DiffusionalError("expected at least one item, got none")
    if values.dtype.is_floating_point and not torch.isfinite(values).all():
        item = int((~torch.isfinite(values.flatten(1))).any(1).nonzero()[0])
        raise DiffusionalError(f"expected finite values, got one that is not finite in item {item}; correct or drop it")
