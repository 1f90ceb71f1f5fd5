"""Warped copies of scikit-learn's digits for training, in addition to the originals.

Purpose: 1,000 training images are few, and a network soon memorises them. Other writers would have written the same digits slightly
rotated, slanted, stretched, bolder or less smooth; a copy warped in this way is almost a new digit. Only training images are
warped: validation and test images are not, so that bounds on them are those of the real data.

Method: a level is not a brightness but the number of black pixels, 0 … 16, in one 4 × 4 block of a 32 × 32 bitmap. Interpolated
levels would not be the counts of any bitmap. The warp is therefore applied to a bitmap:

    1. `bitmap` constructs a bitmap with exactly the digit's counts, its ink where a smooth interpolation is darkest;
    2. the bitmap is slightly blurred, so that its edges have a gradient, and is sampled at displaced points
       (`resampled`): a random linear map and a smooth random field, as in Simard, Steinkraus, Platt,
       Best Practices for Convolutional Neural Networks, ICDAR 2003;
    3. pixels darker than a threshold are ink, and a lower threshold makes bolder strokes;
    4. `counts` counts the ink of each block.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusional.errors import DiffusionalError
from diffusional.seeds import check_seed

_SIDE = 8  # blocks along a side of a digit
_BLOCK = 4  # bitmap pixels along a side of a block
_WIDE = _SIDE * _BLOCK  # bitmap pixels along a side of a digit
_INK = _BLOCK * _BLOCK  # the largest count

_EDGE_BLUR = 0.7  # standard deviation in bitmap pixels: wide enough for a gradient, too narrow to close a loop
_CLAMP = 2.5  # standard deviations at which normal numbers are clamped, so that no copy is unreadable
_CHUNK = 250  # digits warped at a time: few enough to fit into the cache (the copies depend on this number)


@dataclass(frozen=True)
class Warp:
    """The amounts by which copies differ: standard deviations of normal numbers, except for the last two.

    With all amounts 0, hardly any pixel changes.

    >>> Warp(rotation=-1.0)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected rotation to be finite and at least 0, got -1.0
    """

    rotation: float = 0.06  # radians
    shear: float = 0.1  # the sideways shift of one row against the next, in pixels
    log_width: float = 0.05
    log_height: float = 0.02
    boldness: float = 0.08  # variation of the threshold, which is 1/2 on average
    elastic: float = 1.2  # bitmap pixels: the smooth field's typical displacement is uniform on [0, elastic]
    smoothness: float = 5.0  # bitmap pixels: the standard deviation of the blur that makes the field smooth

    def __post_init__(self) -> None:
        for field in fields(self):
            amount = getattr(self, field.name)
            if not (math.isfinite(amount) and amount >= 0):
                raise DiffusionalError(f"expected {field.name} to be finite and at least 0, got {amount}")


STANDARD = Warp()


def warped(raw: Tensor, copies: int, seed: int, warp: Warp = STANDARD) -> Tensor:
    """Return warped copies of digits `raw`, (N, 1, 8, 8) integer levels 0 … 16, as (N·copies, 1, 8, 8) uint8 on the CPU.

    Copy c of digit i is item c·N + i, so that the labels of the copies are `labels.repeat(copies)`. The copies depend only on
    `raw`, `seed` and `warp`, and the first copies do not depend on the number of further ones.

    Raises DiffusionalError for another shape, a type that is not an integer type, values outside 0 … 16, and
    copies < 1.

    >>> one = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    >>> one[0, 0, 1:7, 3:5] = 16
    >>> many = warped(one, copies=3, seed=0)
    >>> many.shape, many.dtype
    (torch.Size([3, 1, 8, 8]), torch.uint8)
    >>> torch.equal(many[:2], warped(one, copies=2, seed=0))
    True
    """
    _check(raw, copies)
    check_seed(seed)
    soft = _blurred(bitmap(raw), _EDGE_BLUR)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([_warped_once(chunk, warp, generator) for _ in range(copies) for chunk in soft.split(_CHUNK)])


def bitmap(raw: Tensor) -> Tensor:
    """Return a bitmap (N, 1, 32, 32) of 0.0 and 1.0 whose `counts` are exactly the levels (N, 1, 8, 8).

    Within a block the ink lies where the bicubic interpolation of the levels is largest, so that strokes are smooth.

    >>> levels = torch.arange(64).reshape(1, 1, 8, 8) % 17
    >>> torch.equal(counts(bitmap(levels)), levels.to(torch.uint8))
    True
    """
    padded = F.pad(
        raw.to("cpu", torch.float32), (2, 2, 2, 2)
    )  # empty paper around the digit instead of a repeated edge
    smooth = F.interpolate(padded, scale_factor=_BLOCK, mode="bicubic", align_corners=False)
    margin = 2 * _BLOCK
    blocks = _to_blocks(smooth[:, :, margin:-margin, margin:-margin]) + _TIES
    rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return _from_blocks((rank < raw.to("cpu", torch.long).unsqueeze(-1)).float())


def counts(bitmap: Tensor) -> Tensor:
    """Return the ink in each block of a bitmap (N, 1, 32, 32) of 0 and 1: levels (N, 1, 8, 8) uint8, 0 … 16.

    >>> counts(torch.ones(1, 1, 32, 32)).unique()
    tensor([16], dtype=torch.uint8)
    """
    return _to_blocks(bitmap).sum(-1).to(torch.uint8)


def resampled(soft: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Return images (N, 1, H, H) such that the value at point p is that of `soft` at matrix·p + shift(p), 0 outside.

    Points are (x, y) from the centre, x to the right and y downwards, with the image's edges at ±1: `matrix` is (N, 2, 2) and
    `shift` (N, H, H, 2). Values between pixels are interpolated bilinearly.

    >>> image = torch.zeros(1, 1, 2, 2)
    >>> image[0, 0, 0, 1] = 1.0
    >>> resampled(image, -torch.eye(2)[None], torch.zeros(1, 2, 2, 2))  # half a turn
    tensor([[[[0., 0.],
              [1., 0.]]]])
    """
    centred = F.pad(matrix, (0, 1))  # no translation
    points = F.affine_grid(centred, list(soft.shape), align_corners=False) + shift
    return F.grid_sample(soft, points, mode="bilinear", padding_mode="zeros", align_corners=False)


def linear_map(rotation: Tensor, shear: Tensor, log_width: Tensor, log_height: Tensor) -> Tensor:
    """Return the matrices (N, 2, 2) for `resampled` that rotate images counter-clockwise, then slant and stretch them.

    >>> zero = torch.zeros(1)
    >>> linear_map(zero, zero, zero + math.log(2), zero)  # twice as wide: source points are half as far from the centre
    tensor([[[0.5000, 0.0000],
             [0.0000, 1.0000]]])
    """
    cos, sin = rotation.cos(), rotation.sin()
    turn = torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    stretch = torch.stack([(-log_width).exp(), shear, torch.zeros_like(shear), (-log_height).exp()], -1)
    return turn @ stretch.reshape(-1, 2, 2)


def _check(raw: Tensor, copies: int) -> None:
    if raw.ndim != 4 or raw.shape[0] == 0 or raw.shape[1:] != (1, _SIDE, _SIDE):
        raise DiffusionalError(
            f"expected digits of shape (N, 1, {_SIDE}, {_SIDE}) with at least one digit, got shape {tuple(raw.shape)}"
        )
    if raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool:
        raise DiffusionalError(f"expected integer levels, got type {raw.dtype}: give the raw values of the digits")
    low, high = int(raw.min()), int(raw.max())
    if low < 0 or high > _INK:
        raise DiffusionalError(f"expected levels from 0 to {_INK}, the counts of ink of a digit, got {low} to {high}")
    if copies < 1:
        raise DiffusionalError(f"expected copies to be at least 1, got {copies}")


def _warped_once(soft: Tensor, warp: Warp, generator: torch.Generator) -> Tensor:
    """Return levels of one warped copy of each blurred bitmap."""
    n = soft.shape[0]

    def normal(deviation: float) -> Tensor:
        return deviation * torch.randn(n, generator=generator).clamp(-_CLAMP, _CLAMP)

    matrix = linear_map(normal(warp.rotation), normal(warp.shear), normal(warp.log_width), normal(warp.log_height))
    threshold = 0.5 - normal(warp.boldness)
    amplitude = warp.elastic * torch.rand(n, generator=generator)
    shift = _smooth_field(n, warp.smoothness, generator) * (amplitude * 2 / _WIDE).reshape(n, 1, 1, 1)
    dark = resampled(soft, matrix, shift.movedim(1, -1))
    return counts((dark > threshold.clamp(0.1, 0.9).reshape(n, 1, 1, 1)).float())


def _smooth_field(n: int, smoothness: float, generator: torch.Generator) -> Tensor:
    """Return smooth displacements (n, 2, 32, 32) of standard deviation 1 within each item."""
    field = _blurred(torch.randn(n, 2, _WIDE, _WIDE, generator=generator), smoothness)
    return field / field.flatten(1).std(1).reshape(n, 1, 1, 1)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """Return images (…, H, H) blurred by a Gaussian along rows and columns, with 0 around them.

    It is computed as a product with the Gaussian's band matrix, which is much faster than a convolution for such small images.
    """
    if deviation == 0:
        return images
    radius = int(3 * deviation) + 1
    place = torch.arange(images.shape[-1])
    distance = (place[:, None] - place).abs()
    weight = torch.exp(-0.5 * (distance / deviation) ** 2).where(distance <= radius, 0.0)
    reach = torch.arange(-radius, radius + 1)
    band = weight / torch.exp(-0.5 * (reach / deviation) ** 2).sum()
    return band @ images @ band


def _to_blocks(pixels: Tensor) -> Tensor:
    """Reshape (N, 1, 32, 32) to (N, 1, 8, 8, 16): the pixels of each block."""
    return pixels.reshape(-1, 1, _SIDE, _BLOCK, _SIDE, _BLOCK).transpose(3, 4).flatten(4)


def _from_blocks(blocks: Tensor) -> Tensor:
    return blocks.unflatten(-1, (_BLOCK, _BLOCK)).transpose(3, 4).reshape(-1, 1, _WIDE, _WIDE)


# Added to the pixels of a block, much less than a count: where the interpolation is flat, ink is then spread evenly (in the
# order of a Bayer matrix), not by rounding errors.
_TIES = 1e-4 * torch.tensor([0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5], dtype=torch.float32)
