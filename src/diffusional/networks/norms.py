"""Normalisation whose result for an item does not depend on the batch."""

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm that also accepts a batch of one item with one value in each group.

    torch refuses such a batch, even in evaluation, as if it were batch normalisation, but accepts a batch of two such items.
    A group of one value is normalised to 0, so that the result is the bias.

    >>> GroupNorm(4, 4)(torch.ones(1, 4, 1, 1)).flatten().detach()
    tensor([0., 0., 0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def check_hidden(hidden: int) -> None:
    """Raise DiffusionalError for a width of 1, whose layer normalisation is constant.

    >>> check_hidden(2)
    """
    if hidden < 2:
        raise DiffusionalError(
            f"hidden must be at least 2, got {hidden}: the layer normalisation of one value is constant, so the network would "
            "ignore its input"
        )
