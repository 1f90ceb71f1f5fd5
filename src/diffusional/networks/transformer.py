"""A small transformer over sequences of tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusional.errors import DiffusionalError

# Positions that the convolution of the stem sees around each.
_KERNEL = 9


class _Block(nn.Module):
    """Pre-norm self-attention and a GELU layer of four times the width."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        back = nn.Linear(4 * width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), back, nn.Dropout(dropout)
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(back.weight)

    def forward(self, h: Tensor) -> Tensor:
        b, n, width = h.shape
        q, k, v = self.qkv(self.norm(h)).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mixed = self.out(seen.transpose(1, 2).reshape(b, n, width))
        h = h + functional.dropout(mixed, self.dropout, self.training)
        return h + self.feed(h)


class SequenceTransformer(nn.Module):
    """A transformer from tokens (B, L) of 0 … K to logits (B, L, K), K being the mask.

    A residual convolution over 9 positions comes first: without it, a small network hardly learns to use its neighbours.

    Args:
        categories: K.
        length: L, the longest sequence.
        width, layers, heads: of the transformer; the width is a multiple of the heads.
        dropout: the fraction of activations that are set to 0 in training.
        timed: whether it takes a time, (B,), as its second argument (for `UniformDiffusion`).
        causal: whether a position only sees those before it, and itself: an autoregressive model predicts the next token from it.

    >>> network = SequenceTransformer(categories=27, length=16, width=32, layers=1, heads=2)
    >>> network(torch.full((2, 16), 27)).shape
    torch.Size([2, 16, 27])
    """

    def __init__(
        self,
        categories: int,
        length: int,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        timed: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise DiffusionalError(f"expected a width that is a multiple of heads={heads}, got {width}")
        self.causal = causal
        self.tokens = nn.Embedding(categories + 1, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.stem = nn.Conv1d(width, width, _KERNEL)
        self.time = nn.Linear(1, width) if timed else None
        self.blocks = nn.ModuleList(_Block(width, heads, dropout, causal) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, categories)

    def forward(self, tokens: Tensor, time: Tensor | None = None) -> Tensor:
        """Return logits (B, L, K) of tokens (B, L), with the time (B,) if the network is `timed`."""
        h = self.tokens(tokens)
        around = (_KERNEL - 1, 0) if self.causal else (_KERNEL // 2, _KERNEL // 2)
        h = h + functional.gelu(self.stem(functional.pad(h.mT, around))).mT + self.positions[: tokens.shape[1]]
        if self.time is not None:
            assert time is not None
            h = h + self.time(0.1 * time[:, None].to(h.dtype))[:, None]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))
