"""A stream of items with texts, whose condition is the embeddings of the texts: they are computed batch by batch as the stream is read.

The embedding of a text depends on nothing but the text and the encoder, so that a step of training has the same condition whether the run
was interrupted or not. Embeddings of texts that were read lately are kept in memory, so that repeated texts are encoded once. They are not
written to the cache of embeddings, which a long stream would fill with texts that are never read again.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from diffusional.data.dataset import TextStream
from diffusional.data.derived_stream import StreamOf
from diffusional.errors import DiffusionalError
from diffusional.text import Embeddings, TextEncoder, TextRecord
from diffusional.text.base import padded

# Bytes of embeddings that are kept in memory.
_KEPT = 2**26


class EmbeddedStream(StreamOf):
    """A `BatchedStream` of the items of a stream, whose condition is the embeddings of their texts.

    Args:
        stream: items and their texts.
        record: of the encoder, and of the form of the condition.
        encoder: the encoder of the record.
    """

    stream: TextStream

    def __init__(self, stream: TextStream, record: TextRecord, encoder: TextEncoder) -> None:
        record.check(encoder.sha256)
        super().__init__(stream)
        self.record, self.encoder = record, encoder
        # For each text a token (l, W) per row, none of them if they are not needed, and the pooled vector (P,).
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def texts(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        return self.stream.texts(epoch, skip)

    def head_texts(self, n: int) -> tuple[str, ...]:
        return self.stream.head_texts(n)

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        """Return the items of an epoch, each with its text, of which `conditions` makes the condition."""
        return self.stream.texts(epoch, skip)

    def head_condition(self, n: int) -> Any:
        """Return the condition of the first n items as they are stored, or of all if there are fewer."""
        return self.conditions(self.stream.head_texts(n))

    def conditions(self, values: Sequence[str]) -> Any:
        """Return the embeddings of texts as their condition; tokens are padded to the longest of these texts.

        Raises DiffusionalError for a text that the encoder does not take.
        """
        with self._lock:
            found = [self._embedding(text) for text in values]
        tokens, pooled = zip(*found, strict=True)
        return self.record.of(padded(tokens, pooled), values)

    def _embedding(self, text: str) -> tuple[Tensor, Tensor]:
        kept = self._kept.pop(text, None)
        if kept is None:
            try:
                kept = self._of(self.encoder.encode([text]))
            except DiffusionalError as error:
                raise DiffusionalError(f"the stream {self.identity}: {error}") from error
            self._bytes += _size(kept)
        self._kept[text] = kept
        while self._bytes > _KEPT:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return kept

    def _of(self, one: Embeddings) -> tuple[Tensor, Tensor]:
        """Return the tokens and the pooled vector of the embeddings of one text; no tokens if the condition has none."""
        n = int(one.mask[0].sum()) if self.record.form == "tokens" else 0
        return one.tokens[0, :n], one.pooled[0]


def _size(kept: tuple[Tensor, Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in kept)
