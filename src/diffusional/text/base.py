"""What an encoder of texts returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of N texts.

    Attributes:
        tokens: (N, L, W) float32, a vector for each token; 0 where a text has fewer than L tokens.
        mask: (N, L) bool, true for the tokens that are present.
        pooled: (N, P) float32, a vector for each text.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(ABC):
    """An encoder of texts. The embeddings of a text depend on nothing else, in particular not on the other texts of a call.

    Attributes:
        name: the name with which `load_encoder` loads it.
        stored: whether embeddings take so long that they are stored in the cache.
    """

    name: str
    stored: bool = True

    @property
    @abstractmethod
    def sha256(self) -> str:
        """The SHA-256 of everything that the embeddings depend on, such as the weights and the vocabulary."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """The largest number of tokens of a text."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts. Raises DiffusionalError for a text that is empty or too long."""


def padded(tokens: Sequence[Tensor], pooled: Sequence[Tensor]) -> Embeddings:
    """Return the embeddings of texts with different numbers of tokens (l, W), padded with zeros to the largest.

    >>> padded([torch.ones(1, 2), torch.ones(3, 2)], [torch.ones(2)] * 2).mask.tolist()
    [[True, False, False], [True, True, True]]
    """
    length = max(map(len, tokens))
    out = torch.zeros(len(tokens), length, tokens[0].shape[1])
    mask = torch.zeros(len(tokens), length, dtype=torch.bool)
    for row, own in enumerate(tokens):
        out[row, : len(own)] = own
        mask[row, : len(own)] = True
    return Embeddings(out, mask, torch.stack(list(pooled)))


def too_long(text: str, tokens: int, limit: int, name: str) -> DiffusionalError:
    """Return the error for a text of more tokens than an encoder takes."""
    return DiffusionalError(
        f"expected texts of at most {limit} tokens for the text encoder {name}, got {tokens} in {text[:60]!r}; shorten it, or use an encoder "
        "that takes more"
    )
