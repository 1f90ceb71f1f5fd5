"""What x is: shape, range, and levels (discrete), or the reals (continuous).

Every array that enters is declared by a space; nothing is ever assumed to be 8-bit. A discrete space of K levels maps
level k = 0 … K−1 to the model's value

    x_k = low + (high − low) k / (K − 1),                 bin width  Δ = (high − low) / (K − 1),

so that neighbouring levels are Δ apart and the outer bins are open. A continuous space is standardised per
dimension, x = (raw − shift) / scale, and densities in the original units follow by the log-Jacobian,
−ln p(raw) = −ln p(x) + Σ_d ln scale_d.

Models see x; files hold raw values; `encode` and `decode` lie between.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError


def _check_shape(shape: tuple[int, ...]) -> None:
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise DiffusionalError(f"shape {shape} came; give the shape of one item, such as (1, 8, 8) or (20,)")


@dataclass(frozen=True)
class Discrete:
    """K ordered levels at every position, mapped to K equally spaced values in [low, high].

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
            raise DiffusionalError(f"levels={self.levels} came; discrete data need at least 2 levels")
        if not self.low < self.high:
            raise DiffusionalError(f"range [{self.low}, {self.high}] came; low must be below high")

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
        """Level indices (B, *shape), of an integer dtype, to model values; checks shape and range."""
        _check_items(raw, self.shape)
        if raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool:
            raise DiffusionalError(
                f"values of type {raw.dtype} came for a space of {self.levels} levels; give integers 0 … {self.levels - 1}"
            )
        least, most = int(raw.min()), int(raw.max())
        if least < 0 or most >= self.levels:
            raise DiffusionalError(
                f"values from {least} to {most} came; {self.levels} levels are declared, 0 … {self.levels - 1}. "
                f"Declare at least levels={max(most, 1) + 1}, or mend the data"
            )
        return (self.low + self.width * raw.to(torch.float64)).to(dtype)

    def index(self, x: Tensor) -> Tensor:
        """Level indices (int64) of model values; the nearest level, without a check. Inverse of `encode`."""
        return self._place(x).round().clamp(0, self.levels - 1).long()

    def _place(self, x: Tensor) -> Tensor:
        # float32 tells 4096 levels apart by far; half of it does not.
        return ((x.float() if self.levels <= 4096 else x.double()) - self.low) / self.width

    def decode(self, x: Tensor) -> Tensor:
        """Model values (B, *shape) to raw level indices (int64), by the nearest level."""
        return self.index(x)

    def check(self, x: Tensor) -> None:
        """Raise unless x (B, *shape) lies on the levels, to 1 % of a bin width, or what its type rounds by where that is more."""
        _check_items(x, self.shape)
        if not x.dtype.is_floating_point:
            raise DiffusionalError(f"values of type {x.dtype} came; models take encoded values: space.encode(raw)")
        # What its type can be off by, in bins.
        rounded = 0.5 * torch.finfo(x.dtype).eps * max(abs(self.low), abs(self.high)) / self.width
        if rounded >= 0.5:
            raise DiffusionalError(
                f"items of type {x.dtype} came, which can't tell {self.levels} levels from {self.low:g} to {self.high:g} apart; keep them "
                "in float32"
            )
        place = self._place(x)
        nearest = torch.round(place).clamp_(0, self.levels - 1)
        bad = ~((place - nearest).abs_() <= max(0.01, rounded)).flatten(1)
        if bad.any():
            item = int(bad.any(1).nonzero()[0])
            raise DiffusionalError(
                f"item {item} has the value {float(x[item].flatten()[bad[item]][0]):g}, which is none of the "
                f"{self.levels} levels from {self.low:g} to {self.high:g}; encode raw data with space.encode(raw)"
            )

    def log_jacobian(self) -> float:
        """Σ_d ln scale_d, zero for a mass function."""
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return {
            "kind": "discrete",
            "shape": list(self.shape),
            "levels": self.levels,
            "low": self.low,
            "high": self.high,
        }


def binary(shape: tuple[int, ...]) -> Discrete:
    """Two levels, −1 and 1.

    >>> binary((4,)).levels
    2
    """
    return Discrete(shape, levels=2)


@dataclass(frozen=True)
class Continuous:
    """Real values, standardised as x = (raw − shift) / scale with one shift and one scale per item position (or one for all).

    >>> space = Continuous(shape=(2,), shift=(0.0, 1.0), scale=(2.0, 2.0))
    >>> round(space.log_jacobian(), 4)                     # 2 ln 2: densities in the original units cost this much more
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
                raise DiffusionalError(f"{name} of length {len(values)} came; give 1 or {self.dimensions} numbers")
            if not all(math.isfinite(v) for v in values):
                raise DiffusionalError(f"{name} has a value that is not finite; mend the data it came from")
        if min(self.scale) <= 0:
            raise DiffusionalError(f"scale {min(self.scale):g} came; scales must be positive (drop constant columns)")

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
        """Raw reals (B, *shape) to standardised x. Raises DiffusionalError for values that are not finite before or after."""
        _check_items(raw, self.shape)
        x = ((raw.double() - self._along(self.shift, raw)) / self._along(self.scale, raw)).to(dtype)
        finite = torch.isfinite(x).flatten(1)
        if not finite.all():
            item = int((~finite).any(1).nonzero()[0])
            value = float(raw[item].flatten()[~finite[item]][0])
            raise DiffusionalError(
                f"item {item} has the value {value:g}, which is too far from the mean to be standardised in {dtype}; check whether it is "
                "in the same unit as the training data"
            )
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Standardised x (B, *shape) to raw reals, in the type of x, or in float64 if that type cannot hold them.

        It cannot where a scale is below 1e-30 or above 1e30, or less than 2⁻¹⁴ of its shift (a float32 has 24 bits).

        >>> Continuous((1,), shift=(1.7e9,), scale=(2.0,)).decode(torch.tensor([[0.5]]))
        tensor([[1.7000e+09]], dtype=torch.float64)
        """
        shift, scale = self._along(self.shift, x), self._along(self.scale, x)
        raw = x.double() * scale + shift
        held = (scale >= 1e-30) & (scale <= 1e30) & (shift.abs() <= 2**14 * scale)
        return raw.to(x.dtype) if held.all() else raw

    def check(self, x: Tensor) -> None:
        """Raise unless x (B, *shape) is finite and of a floating type."""
        _check_items(x, self.shape)
        if not x.dtype.is_floating_point:
            raise DiffusionalError(f"values of type {x.dtype} came; models take encoded values: space.encode(raw)")

    def log_jacobian(self) -> float:
        """Σ_d ln scale_d: what the standardisation adds to −ln p(x), in nats."""
        total = math.fsum(math.log(s) for s in self.scale)
        return total * self.dimensions if len(self.scale) == 1 else total

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return {
            "kind": "continuous",
            "shape": list(self.shape),
            "shift": list(self.shift),
            "scale": list(self.scale),
        }


Space = Discrete | Continuous


def from_dict(record: dict[str, Any]) -> Space:
    """The space that `to_dict` described.

    >>> from_dict(Discrete((4,), 17).to_dict()) == Discrete((4,), 17)
    True
    """
    record = dict(record)
    kind = record.pop("kind", None)
    known = {"discrete": Discrete, "continuous": Continuous}
    if kind not in known:
        raise DiffusionalError(f"space of kind {kind!r} came; expected one of {', '.join(known)}")
    try:
        return known[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})
    except TypeError as error:
        raise DiffusionalError(f"a {kind} space with keys {sorted(record)} came: {error}") from error


def _check_items(values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape[1:]) != tuple(shape):
        raise DiffusionalError(
            f"items of shape {tuple(values.shape[1:])} came; the space's items have shape {tuple(shape)}"
        )
    if values.shape[0] == 0:
        raise DiffusionalError("no items came; give at least one")
    if values.dtype.is_floating_point and not torch.isfinite(values).all():
        item = int((~torch.isfinite(values.flatten(1))).any(1).nonzero()[0])
        raise DiffusionalError(f"item {item} has a value that is not finite; mend or drop it")
