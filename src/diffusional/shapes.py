"""Functions that broadcast one number per item to the shape of the data, and sum data to one number per item."""

from jaxtyping import Shaped
from torch import Tensor

# A batch of items, one number per item, and one value per level and position; checked under pytest (jaxtyping, beartype).
Batch = Shaped[Tensor, "b *dims"]
PerItem = Shaped[Tensor, " b"]
PerLevel = Shaped[Tensor, "b k *dims"]


def align(values: Tensor, like: Tensor) -> Tensor:
    """Return (B,) or () values with as many trailing axes as `like` (B, ...) has, in its dtype and on its device.

    The cast to `like`'s dtype is the last operation: coefficients are computed in float64 (MATH (4)).

    >>> import torch
    >>> align(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    if values.ndim > 1 or (values.ndim == 1 and values.shape[0] not in (1, like.shape[0])):
        raise ValueError(
            f"expected one number, or one for each of {like.shape[0]} items, got values of shape {tuple(values.shape)}"
        )
    values = values.to(device=like.device, dtype=like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - 1)) if values.ndim else values


def sum_dims(values: Batch) -> PerItem:
    """Sum over all axes but the batch: nats per dimension become nats per item.

    >>> import torch
    >>> sum_dims(torch.ones(2, 3, 4))
    tensor([12., 12.])
    """
    return values.flatten(1).sum(1) if values.ndim > 1 else values
