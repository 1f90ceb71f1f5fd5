"""A small residual U-Net for images, enough for digits and MNIST on two cores."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.networks.embedding import LogSNREmbedding
from diffusional.networks.norms import GroupNorm
from diffusional.networks.recompute import through


class UNet(nn.Module):
    """A U-Net z (B, C, H, W), log_snr (B,) → (B, outputs · C, H, W).

    Two channels of coordinates are added to the input. Each resolution has one residual block on the way down, the lowest has
    `blocks`, and each has two on the way up, after the skip connection. Second convolutions and the output are initialised with zeros.

    Args:
        channels: C of the data.
        outputs: output channels per data channel (1; K or 2 for a levels head).
        widths: channels at each resolution, each a multiple of 8; the image is halved between them. At a width of 8 the groups of
            a norm are single channels, whose norm is constant if the image is a single pixel: use at least 16 there.
        blocks: residual blocks at the lowest resolution.
        condition_dim: number of columns of a condition (B, condition_dim) of numbers.
        classes: number of classes, for a condition of labels (B,).
        null: whether the condition may be missing, in all rows (None) or in some (`conditions.dropped`), as for guidance.
        extra: number of input channels after those of the data, such as an image as condition (`ConditionAdapter`).

    Raises DiffusionalError for other widths, and for a condition that is missing, unexpected or of another kind.

    >>> UNet(1, outputs=2, widths=(8, 16))(torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape
    torch.Size([3, 2, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 1,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 2,
        dropout: float = 0.0,
        condition_dim: int = 0,
        classes: int = 0,
        null: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        if not widths or any(w % 8 for w in widths):
            raise DiffusionalError(f"expected widths that are multiples of 8 (for group normalisation), got {widths}")
        self.recompute = False  # activation checkpointing of the residual blocks
        self.embedding = LogSNREmbedding(128, condition_dim, classes=classes, null=null)
        self.requires_condition = bool(condition_dim or classes) and not null
        self.first = nn.Conv2d(channels + extra + 2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.down.append(_ResBlock(fine, fine, dropout))
            self.shrink.append(nn.Conv2d(fine, coarse, 3, stride=2, padding=1))
            self.grow.append(nn.Conv2d(coarse, fine, 3, padding=1))
            self.up.append(nn.ModuleList([_ResBlock(2 * fine, fine, dropout), _ResBlock(fine, fine, dropout)]))
        self.middle = nn.ModuleList(_ResBlock(widths[-1], widths[-1], dropout) for _ in range(blocks))
        self.last = nn.Sequential(GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], outputs * channels, 1))
        _zero(self.last[-1])

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        embedding = self.embedding(log_snr, condition)
        h = self.first(torch.cat([z, _coordinates(z)], dim=1))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = through(block, h, embedding, recompute=self.recompute)
            skips.append(h)
            h = shrink(h)
        for block in self.middle:
            h = through(block, h, embedding, recompute=self.recompute)
        for grow, blocks in zip(reversed(self.grow), reversed(self.up), strict=True):
            skip = skips.pop()
            h = interpolate(grow(h), size=skip.shape[-2:], mode="nearest")
            h = torch.cat([h, skip], dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                h = through(block, h, embedding, recompute=self.recompute)
        return self.last(h)


class _ResBlock(nn.Module):
    """h + conv(SiLU(FiLM(norm(conv(SiLU(norm(h)))))))."""

    def __init__(self, channels: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, outputs, 3, padding=1)
        self.film = nn.Linear(128, 2 * outputs)
        self.norm2 = GroupNorm(8, outputs)
        # Dropping whole channels regularises better on little data than dropping single activations, and draws fewer random numbers.
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(channels, outputs, 1) if channels != outputs else nn.Identity()
        self.act = nn.SiLU()
        _zero(self.conv2)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm2(self.conv1(self.act(self.norm1(h)))) * (1 + scale) + shift
        return self.skip(h) + self.conv2(self.dropout(self.act(inner)))


def _coordinates(z: Tensor) -> Tensor:
    y = torch.linspace(-1, 1, z.shape[-2], device=z.device, dtype=z.dtype)
    x = torch.linspace(-1, 1, z.shape[-1], device=z.device, dtype=z.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(z.shape[0], -1, -1, -1)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
