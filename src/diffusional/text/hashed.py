"""The embedded encoder of texts: hashed words and parts of words, projected by fixed random signs. It has no weights and needs no download.

The features of a word are the word (twice), its character trigrams with marked ends, and the pair of the word before it and itself. Each
feature is a vector of 128 signs, the bits of its BLAKE2b hash, so that different features are nearly orthogonal, and words with parts
in common are similar. A token is the sum of its features' signs over the root of their number; a text's pooled vector is the sum of its
tokens over the root of theirs. Sums of signs are integers, and every other operation is a single rounding in float64: the embeddings
are the same on every machine.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from diffusional.errors import DiffusionalError
from diffusional.text.base import Embeddings, TextEncoder, padded, too_long

NAME = "hashed"
WIDTH = 128
# The version of the features: another one has another hash.
_VERSION = 1
_LIMIT = 256
_WORD = re.compile(r"\w+")


class HashedEncoder(TextEncoder):
    """The embedded encoder; words are compared without regard to case.

    >>> found = HashedEncoder().encode(["a thick seven", "A thick, slanted seven!"])
    >>> found.tokens.shape, found.mask.sum(1).tolist(), found.pooled.shape
    (torch.Size([2, 4, 128]), [3, 4], torch.Size([2, 128]))
    """

    name = NAME
    stored = False

    @property
    def sha256(self) -> str:
        """The SHA-256 of the version of the features and their width."""
        return hashlib.sha256(f"diffusional hashed words {_VERSION} {WIDTH}".encode()).hexdigest()

    @property
    def limit(self) -> int:
        """256 words."""
        return _LIMIT

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts. Raises DiffusionalError for a text without words, or with more than 256."""
        tokens, pooled = [], []
        for text in texts:
            words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
            if not words:
                raise DiffusionalError(f"expected a text with at least one word, got {text[:60]!r}")
            if len(words) > _LIMIT:
                raise too_long(text, len(words), _LIMIT, NAME)
            vectors = [_token(before, word) for before, word in zip(["", *words], words, strict=False)]
            total = np.zeros(WIDTH)
            for vector in vectors:  # in this order, so that every machine rounds alike
                total = total + vector
            tokens.append(torch.from_numpy(np.stack(vectors).astype(np.float32)))
            pooled.append(torch.from_numpy((total / np.sqrt(float(len(words)))).astype(np.float32)))
        return padded(tokens, pooled)


@lru_cache(maxsize=2**16)
def _token(before: str, word: str) -> np.ndarray:
    """Return the vector (128,) float64 of a word after another one."""
    marked = f"^{word}$"
    features = [f"word {word}"] * 2
    features += [f"part {marked[i : i + 3]}" for i in range(len(marked) - 2)]
    features.append(f"pair {before} {word}")
    total = np.zeros(WIDTH, np.int64)
    for feature in features:
        total += _signs(feature)
    return total / np.sqrt(float(len(features)))


@lru_cache(maxsize=2**16)
def _signs(feature: str) -> np.ndarray:
    """Return the signs (128,) of a feature: the bits of its hash."""
    digest = hashlib.blake2b(feature.encode(), digest_size=WIDTH // 8).digest()
    return 2 * np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.int64) - 1
