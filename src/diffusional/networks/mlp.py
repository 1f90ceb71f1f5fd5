"""A residual MLP for data of any shape, flattened."""

import math

from torch import Tensor, nn

from diffusional.conditions import Condition
from diffusional.networks.embedding import LogSNREmbedding
from diffusional.networks.norms import check_hidden
from diffusional.networks.recompute import through


class MLP(nn.Module):
    """A network z (B, C, *rest), log_snr (B,) → (B, outputs · C, *rest) of residual layers modulated by the noise level.

    Args:
        shape: shape of one item.
        outputs: output channels per data channel (1; K or 2 for a levels head).
        hidden: width of the layers, at least 2.
        condition_dim: number of columns of a condition (B, condition_dim) of numbers.
        classes: number of classes, for a condition of labels (B,).
        null: whether the condition may be missing, in all rows (None) or in some (`conditions.dropped`), as for guidance.

    Raises DiffusionalError for a smaller `hidden`, and for a condition that is missing, unexpected or of another kind.

    >>> import torch
    >>> MLP((20,), hidden=32)(torch.zeros(3, 20), torch.zeros(3)).shape
    torch.Size([3, 20])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        hidden: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
        condition_dim: int = 0,
        classes: int = 0,
        null: bool = False,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        self.out_shape = (outputs * shape[0], *shape[1:])
        self.recompute = False  # activation checkpointing of the residual blocks
        self.embedding = LogSNREmbedding(128, condition_dim, classes=classes, null=null)
        self.requires_condition = bool(condition_dim or classes) and not null
        self.first = nn.Linear(math.prod(shape), hidden)
        self.blocks = nn.ModuleList(_Block(hidden, dropout) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, outputs * math.prod(shape)))

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        embedding = self.embedding(log_snr, condition)
        h = self.first(z.flatten(1))
        for block in self.blocks:
            h = through(block, h, embedding, recompute=self.recompute)
        return self.last(h).unflatten(1, self.out_shape)


class _Block(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.film = nn.Linear(128, 2 * hidden)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout))
        self.out = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding).chunk(2, dim=1)
        return h + self.out(self.body(self.norm(h) * (1 + scale) + shift))
