"""Conditions that are computed from images: a low resolution of each, for super-resolution, and its visible part, for inpainting.

low-resolution:F   the means of blocks of F × F pixels, (N, C, H/F, W/F), in the model's values
quantised:F        the same, rounded to the levels of the images: the variable of the stage below in a cascade, MATH (29)
inpaint            the image with 0 in its hidden centre, a rectangle of half the sides, and a channel that is 1 where it is visible
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from diffusional.data.dataset import SPLITS, Dataset, Source, Stream, block_rows
from diffusional.data.derived_stream import with_computed
from diffusional.errors import DiffusionalError
from diffusional.models.composite import Downscale
from diffusional.space import Space

_LOW, _QUANTISED, _INPAINT = "low-resolution", "quantised", "inpaint"


def is_derived(condition: str | None) -> bool:
    """Return whether a condition is computed from the items.

    >>> is_derived("low-resolution:2"), is_derived("label")
    (True, False)
    """
    return condition is not None and (condition.partition(":")[0] in (_LOW, _QUANTISED) or condition == _INPAINT)


def derive(condition: str, x: Tensor, space: Space) -> Tensor:
    """Return a condition of encoded items x (N, C, H, W) of a space.

    Raises DiffusionalError for items that are not images, and for a factor that does not divide their sides.

    >>> from diffusional.space import binary
    >>> derive("low-resolution:2", torch.ones(3, 1, 4, 4), binary((1, 4, 4))).shape
    torch.Size([3, 1, 2, 2])
    >>> derive("inpaint", torch.ones(1, 1, 4, 4), binary((1, 4, 4)))[0, 1]
    tensor([[1., 1., 1., 1.],
            [1., 0., 0., 1.],
            [1., 0., 0., 1.],
            [1., 1., 1., 1.]])
    """
    shape = space.shape
    if len(shape) != 3:
        raise DiffusionalError(f"condition={condition!r} is for images (C, H, W), got items of shape {shape}")
    height, width = shape[1:]
    if condition == _INPAINT:
        visible = torch.ones(1, 1, height, width, dtype=x.dtype, device=x.device)
        top, left = (height - height // 2) // 2, (width - width // 2) // 2
        visible[:, :, top : top + height // 2, left : left + width // 2] = 0
        return torch.cat([x * visible, visible.expand(len(x), -1, -1, -1)], 1)
    name, _, factor = condition.partition(":")
    if not factor.isdecimal() or int(factor) < 2 or height % int(factor) or width % int(factor):
        raise DiffusionalError(
            f"condition={condition!r}: expected {name}:F with a factor F of at least 2 that divides the sides of images of "
            f"{height}×{width}, such as {name}:2"
        )
    if name == _QUANTISED:
        return Downscale(space, int(factor))(x)
    return avg_pool2d(x, int(factor))


def with_derived(dataset: Dataset, condition: str) -> Dataset:
    """Return a data set with a condition that is computed from its items. Raises DiffusionalError as `derive` does."""
    found = derived_of(dataset, condition)
    source = dataset.source
    if source is not None:
        arguments = None if dataset.arguments is None else dict(dataset.arguments) | {"condition": condition}
        source = Source(source.splits, arguments, found)
    train = dataset.train
    if isinstance(train, Stream):
        train = with_computed(train, of_raw(dataset.space, condition))
    return replace(dataset, train=train, condition=found, source=source)


def of_raw(space: Space, condition: str) -> Callable[[Tensor], Tensor]:
    """Return the function from raw items to their condition."""
    return lambda raw: derive(condition, space.encode(raw), space)


def derived_of(dataset: Dataset, condition: str) -> dict[str, Tensor]:
    """Return the condition of each split that is computed from the items, but of the train split of a stream, which is computed as it is read.

    Raises DiffusionalError as `derive` does.
    """
    space = dataset.space
    derive(condition, torch.zeros(1, *space.shape), space)
    size = block_rows(space.shape)
    splits = SPLITS[1:] if isinstance(dataset.train, Stream) else SPLITS
    return {split: _of_blocks(condition, dataset.blocks(split, size), space) for split in splits}


def _of_blocks(condition: str, blocks: Iterable[Tensor], space: Space) -> Tensor:
    return torch.cat([derive(condition, block, space) for block in blocks])


def of_items(condition: str, x: Tensor, space: Space) -> Tensor:
    """Return the condition of encoded items x (N, *space.shape).

    >>> from diffusional.space import binary
    >>> of_items("inpaint", torch.ones(2, 1, 4, 4), binary((1, 4, 4))).shape
    torch.Size([2, 2, 4, 4])
    """
    size = block_rows(space.shape)
    return _of_blocks(condition, x.split(size), space)
