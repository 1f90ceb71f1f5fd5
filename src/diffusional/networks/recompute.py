"""Activation checkpointing, which trades computation for memory (Chen et al. 2016)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def through(block: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Return block(*inputs). With `recompute`, its activations are not stored but computed again in the backward pass.

    >>> through(nn.SiLU(), torch.zeros(1), recompute=True)
    tensor([0.])
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
