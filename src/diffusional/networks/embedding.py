"""How a network hears of the noise level."""

import math

import torch
from torch import Tensor, nn


class LogSNREmbedding(nn.Module):
    """sin and cos of log_snr · f for log-spaced frequencies f, through a small MLP: (B,) → (B, width).

    A condition (B, condition_dim), if there is one, is added linearly.

    >>> LogSNREmbedding(16)(torch.zeros(3)).shape
    torch.Size([3, 16])
    """

    def __init__(self, width: int, condition_dim: int = 0, frequencies: int = 32, low: float = 0.1, high: float = 10.0):
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(math.log10(low), math.log10(high), frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.condition = nn.Linear(condition_dim, width) if condition_dim else None

    def forward(self, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        out = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        check_condition(condition, 0 if self.condition is None else self.condition.in_features)
        return out if condition is None or self.condition is None else out + self.condition(condition)


def check_condition(condition: Tensor | None, condition_dim: int) -> None:
    """Raise ValueError unless a condition came if, and only if, the network was built for one."""
    if (condition is not None) != (condition_dim > 0):
        raise ValueError(
            "a condition came for an unconditional network"
            if condition is not None
            else "no condition came for a network built with condition_dim"
        )
