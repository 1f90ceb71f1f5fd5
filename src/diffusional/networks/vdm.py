"""The U-Net of variational diffusion models, without downsampling (Kingma et al. 2021, App. B).

The likelihood depends mostly on the finest details. Therefore nothing is downsampled, and Fourier features are added to the input, in
which neighbouring levels of 8-bit data are far apart. The time input is t = (γ − γ_min)/(γ_max − γ_min), γ = −log SNR.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, scaled_dot_product_attention

from diffusional.conditions import Condition, missing_rows
from diffusional.errors import DiffusionalError
from diffusional.networks.embedding import check_condition, check_kinds
from diffusional.networks.norms import GroupNorm
from diffusional.networks.recompute import through


class VDMUNet(nn.Module):
    """A network z (B, C, H, W), log_snr (B,) → (B, outputs · C, H, W), for any H and W.

    Its layers are conv_in; `blocks` residual blocks; block, self-attention, block; `blocks` + 1 residual blocks; norm, SiLU, conv_out.
    The input of each of the `blocks` + 1 blocks is the output before it, concatenated with the last output of the first half (its
    blocks and conv_in) that is not yet used. Second convolutions, the projections of the noise level, the outputs of attention and
    conv_out are initialised with zeros.

    Args:
        channels: C of the data.
        outputs: output channels per data channel (1; 2 with a learned variance; K or 2 for a levels head).
        width: channels inside, a multiple of 8: 128 in the paper's smaller network, 256 in its larger.
        blocks: number of blocks; 32 in both networks of the paper.
        attention: whether self-attention follows every block, as in the paper for augmented data, and not only in the middle.
        dropout: dropout inside residual blocks, in training.
        condition_dim: number of columns of a condition (B, condition_dim), which is concatenated with the embedding of the noise level.
        classes: number of classes, for a condition of labels (B,), which is concatenated with it as one-hot vectors.
        null: whether the condition may be missing, in all rows (None) or in some (`conditions.dropped`), as for guidance: its columns
            are then 0, and that of one more column is 1.
        extra: number of input channels after those of the data, such as an image as condition (`ConditionAdapter`).
        gamma_min: γ at t = 0, of the least noisy latent.
        gamma_max: γ at t = 1, of the noisiest latent.
        fourier: n of the Fourier features sin(2^n · 2πz), cos(2^n · 2πz), counted as in the released code; the paper writes
            2^n · πz with n = 7, 8. Neighbouring levels, 2/256 apart, differ by half a turn and a full turn. For levels Δ apart,
            −log₂ Δ − 1 and −log₂ Δ have the same effect. () means no features.
        adds_input: whether z is added to the first C output channels, ε̂ = z + h (their "base measure"). Use True for networks that
            predict noise, which z approximates if it is very noisy, and False for networks that predict other quantities and for levels
            heads. Further channels, such as those of a variance, are not changed.

    Raises DiffusionalError for a width that is not a multiple of 8, for γ_min ≥ γ_max, and for a condition that is missing, unexpected
    or of another kind.

    >>> VDMUNet(3, width=8, blocks=2)(torch.zeros(2, 3, 5, 7), torch.zeros(2)).shape
    torch.Size([2, 3, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 1,
        width: int = 128,
        blocks: int = 32,
        attention: bool = False,
        dropout: float = 0.0,
        condition_dim: int = 0,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        fourier: tuple[int | float, ...] = (6, 7),
        adds_input: bool = True,
        classes: int = 0,
        null: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise DiffusionalError(f"expected width to be a multiple of 8 (for group normalisation), got {width}")
        if not gamma_min < gamma_max:
            raise DiffusionalError(f"expected gamma_min < gamma_max, got {gamma_min} and {gamma_max}")
        self.recompute = False  # activation checkpointing of the residual blocks
        check_kinds(condition_dim, classes, null)
        self.classes, self.null, self.channels = classes, null, channels
        self.requires_condition = bool(condition_dim or classes) and not null
        self.width, self.condition_dim, self.fourier, self.adds_input = width, condition_dim, fourier, adds_input
        self.gamma_min, self.gamma_max = gamma_min, gamma_max
        self.dense0 = nn.Linear(width + condition_dim + classes + null, 4 * width)
        self.dense1 = nn.Linear(4 * width, 4 * width)
        self.conv_in = nn.Conv2d(channels * (1 + 2 * len(fourier)) + extra, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width, dropout, attention) for _ in range(blocks))
        self.middle = nn.ModuleList([_Block(width, width, dropout, True), _Block(width, width, dropout, False)])
        self.up = nn.ModuleList(_Block(2 * width, width, dropout, attention) for _ in range(blocks + 1))
        self.norm = _norm(width)
        self.conv_out = nn.Conv2d(width, outputs * channels, 3, padding=1)
        self.act = nn.SiLU()
        self.apply(_initialise)
        _zero(self.conv_out)
        for block in self.modules():
            if isinstance(block, _Block):
                _zero(block.conv2)
                _zero(block.level)
            elif isinstance(block, _Attention):
                _zero(block.out)

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        condition = check_condition(condition, self.condition_dim, self.classes, self.null)
        if self.null:
            condition = self._columns(condition, len(z))
        elif condition is not None and self.classes:
            condition = one_hot(condition.long(), self.classes)
        t = (-log_snr - self.gamma_min) / (self.gamma_max - self.gamma_min)
        embedding = sinusoids(1000 * t, self.width)
        if condition is not None:
            embedding = torch.cat([embedding, condition.to(embedding)], dim=1)
        embedding = self.act(self.dense1(self.act(self.dense0(embedding))))
        h = self.conv_in(
            torch.cat([z, fourier_features(z[:, : self.channels], self.fourier)], dim=1) if self.fourier else z
        )
        skips = [h]
        for block in self.down:
            h = through(block, h, embedding, recompute=self.recompute)
            skips.append(h)
        for block in self.middle:
            h = through(block, h, embedding, recompute=self.recompute)
        for block in self.up:
            h = through(block, torch.cat([h, skips.pop()], dim=1), embedding, recompute=self.recompute)
        h = self.conv_out(self.act(self.norm(h)))
        if not self.adds_input:
            return h
        channels, z = self.channels, z[:, : self.channels]
        return torch.cat([z + h[:, :channels], h[:, channels:]], dim=1) if h.shape[1] > channels else z + h

    def _columns(self, condition: Tensor | None, items: int) -> Tensor:
        """Return the columns of a condition that may be missing, and after them a column that is 1 where it is."""
        columns = self.condition_dim + self.classes
        if condition is None:
            missing = torch.ones(items, dtype=torch.bool, device=self.dense0.weight.device)
            values = missing.new_zeros(items, columns).float()
        else:
            missing = missing_rows(condition)
            present = condition.masked_fill(missing if self.classes else missing[:, None], 0)
            values = one_hot(present.long(), self.classes) if self.classes else present
            values = values.masked_fill(missing[:, None], 0)
        return torch.cat([values, missing[:, None].to(values.dtype)], dim=1)


def fourier_features(z: Tensor, exponents: tuple[int | float, ...]) -> Tensor:
    """Return sin, then cos, of 2^n · 2πz (B, C, …) → (B, 2CN, …): in each half, the N exponents of a channel are adjacent.

    >>> fourier_features(torch.full((1, 1, 1), 1 / 8), (0, 1)).flatten()          # π/4 and π/2
    tensor([ 7.0711e-01,  1.0000e+00,  7.0711e-01, -4.3711e-08])
    """
    angles = torch.stack([2**n * 2 * math.pi * z for n in exponents], dim=2).flatten(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return sin, then cos, of t · 10⁻⁴ⁱᐟ⁽ʰ⁻¹⁾, i = 0 … h − 1, h = width/2: the transformer's position embedding, (B,) → (B, width).

    >>> sinusoids(torch.tensor([0.0, 1.0]), 4)
    tensor([[0.0000e+00, 0.0000e+00, 1.0000e+00, 1.0000e+00],
            [8.4147e-01, 1.0000e-04, 5.4030e-01, 1.0000e+00]])
    """
    frequencies = torch.logspace(0, -4, width // 2, dtype=t.dtype, device=t.device)
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Block(nn.Module):
    """skip(h) + conv2(SiLU(norm2(conv1(SiLU(norm1(h))) + level(embedding)))), and self-attention after it."""

    def __init__(self, channels: int, width: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels), _norm(width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.level = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        self.attention = _Attention(width) if attention else nn.Identity()
        self.act = nn.SiLU()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.conv1(self.act(self.norm1(h))) + self.level(embedding)[:, :, None, None]
        inner = self.conv2(self.dropout(self.act(self.norm2(inner))))
        return self.attention(self.skip(h) + inner)


class _Attention(nn.Module):
    """h + out(softmax(q kᵀ/√C) v), q, k and v linear in norm(h), over all positions, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).mT.unsqueeze(1)  # (B, 1 head, H·W, C)
        said = scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return h + self.out(said).squeeze(1).mT.unflatten(2, h.shape[2:])


def _norm(channels: int) -> GroupNorm:
    """Return a norm as in the released code: 32 groups, ε = 1e-6. Narrow networks have fewer groups.

    The norm of a group of one channel would remove the noise level.
    """
    return GroupNorm(min(math.gcd(32, channels), channels // 2), channels, eps=1e-6)


def _initialise(layer: nn.Module) -> None:
    """Initialise a layer as in the released code: LeCun's normal, truncated at two standard deviations, and biases of zero."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        std = 1 / (0.87962566 * math.sqrt(layer.weight[0].numel()))
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
