"""The low resolution of a cascade: a quantised function of x, in exact integer arithmetic."""

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.space import Discrete, Space


class Downscale(nn.Module):
    """The mean of every block of factor × factor pixels, rounded to the nearest of the levels of a smaller image: exact integer arithmetic.

    Args:
        space: of x, Discrete((C, H, W), levels).
        factor: H and W must be multiples of it.
        levels: of the result; by default those of x.

    x (B, C, H, W) → y (B, C, H/factor, W/factor), encoded by `low`.

    >>> down = Downscale(Discrete((1, 2, 2), levels=17), factor=2)
    >>> down.low.decode(down(Discrete((1, 2, 2), 17).encode(torch.tensor([[[[16, 16], [0, 1]]]])))).flatten()
    tensor([8])
    """

    def __init__(self, space: Space, factor: int, levels: int | None = None) -> None:
        super().__init__()
        if not isinstance(space, Discrete) or len(space.shape) != 3:
            raise DiffusionalError(f"expected a discrete space of images (C, H, W) to downscale, got {space}")
        channels, height, width = space.shape
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or height % factor or width % factor:
            raise DiffusionalError(
                f"expected factor to be a positive integer that divides the sides {height} and {width} of the images, got {factor}"
            )
        self.space, self.factor = space, factor
        self.low = Discrete(
            (channels, height // factor, width // factor), levels or space.levels, space.low, space.high
        )

    def forward(self, x: Tensor) -> Tensor:
        f, most, least = self.factor, self.space.levels - 1, self.low.levels - 1
        blocks = self.space.index(x).unflatten(-1, (-1, f)).unflatten(-3, (-1, f)).sum((-3, -1))
        # The nearest level to sum/f² · (K' − 1)/(K − 1), halves up.
        index = (2 * blocks * least + f * f * most) // (2 * f * f * most)
        return self.low.encode(index, x.dtype)


def block_of(function: nn.Module) -> int | None:
    """Return the side of the block of pixels that a pixel of the result stands for: of a `Downscale`, or of several in an `nn.Sequential`; None
    for another function.

    >>> halves = Downscale(Discrete((1, 4, 4), levels=17), 2)
    >>> block_of(nn.Sequential(halves, Downscale(halves.low, 2))), block_of(nn.Identity())
    (4, None)
    """
    if isinstance(function, Downscale):
        return function.factor
    if not isinstance(function, nn.Sequential) or not len(function):
        return None
    product = 1
    for one in function:
        factor = block_of(one)
        if factor is None:
            return None
        product *= factor
    return product


def enlarged(y: Tensor, block: int) -> Tensor:
    """Return y (…, h, w) with every position repeated for the block × block pixels that it stands for: (…, h · block, w · block).

    >>> enlarged(torch.tensor([[1, 2]]), 2)
    tensor([[1, 1, 2, 2],
            [1, 1, 2, 2]])
    """
    return y.repeat_interleave(block, -1).repeat_interleave(block, -2)


def default_downscale(space: Space, low: Space, name: str) -> Downscale:
    """Return the default function from x to a variable over `low`."""
    if not isinstance(space, Discrete) or not isinstance(low, Discrete) or len(space.shape) != 3 or len(low.shape) != 3:
        raise DiffusionalError(
            f"expected downscale=…, the functions from x to the variables of the stages, since {space} and {low} of stage {name!r} are not both "
            "discrete images"
        )
    factor, rest = divmod(space.shape[1], low.shape[1])
    if rest or factor * low.shape[2] != space.shape[2] or low.shape[0] != space.shape[0]:
        raise DiffusionalError(
            f"stages do not meet: images {space.shape} are not a multiple of those of stage {name!r}, {low.shape}. Give sides that divide those "
            "of x, or downscale=…"
        )
    return Downscale(space, factor, low.levels)


def some_items(space: Space) -> Tensor:
    """Return two items of a space, float32: its lowest and highest levels, or zeros and ones."""
    if isinstance(space, Discrete):
        most = torch.full((1, *space.shape), space.levels - 1)
        return space.encode(torch.cat([0 * most, most]))
    return torch.cat([torch.zeros(1, *space.shape), torch.ones(1, *space.shape)])
