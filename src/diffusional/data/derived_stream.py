"""Streams whose conditions or items are computed from the items as they are read: a low resolution of each image, or its features.

`with_computed` adds a condition that is a function of the items, `mapped` replaces the items. A step of training has the same items and
conditions whether the run was interrupted or not: a condition is a function of its item, and mapped items are computed in blocks that begin
at multiples of 64, so that even the last bits of a network's output do not depend on where reading began.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.data.dataset import Stream, TextStream, conditions_read, labelled, pairs_read

# Items that are computed together.
_BLOCK = 64
# The epoch of the items at the head, for functions that draw.
_HEAD_EPOCH = -1

# Raw items (n, *dims), their epoch and the number of items before them → computed items (n, *dims').
Function = Callable[[Tensor, int, int], Tensor]


class StreamOf:
    """A stream with the items of another."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.stream.item_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stream.dtype

    @property
    def identity(self) -> str:
        return self.stream.identity

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        return self.stream.items(epoch, skip)

    def head(self, n: int) -> Tensor:
        return self.stream.head(n)


class ComputedStream(StreamOf):
    """A `BatchedStream` with a condition that is computed from its items.

    Args:
        stream: the items; with `key`, a `LabelledStream`, whose conditions are kept.
        function: raw items (n, *item_shape) → their condition, one row for each, which must not depend on the other items.
        key: the name of the condition beside that of the stream (`data.joint`); None if it is the only one.
        label_classes: the number of classes if the condition of the stream is labels, otherwise 0.
    """

    def __init__(
        self, stream: Stream, function: Callable[[Tensor], Tensor], key: str | None = None, label_classes: int = 0
    ) -> None:
        super().__init__(stream)
        self.function, self.key, self.label_classes = function, key, label_classes

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """Return the items of an epoch, each with the item and what the condition of the stream is made of."""
        for item, value in pairs_read(self.stream, epoch, skip, self.key is not None):
            yield item, (item, value)

    def conditions(self, values: Sequence[Any]) -> Condition:
        """Return the condition of several items, from what `pairs` returned with them."""
        items, others = zip(*values, strict=True)
        return self._both(torch.stack(items), lambda: conditions_read(self.stream, others))

    def head_condition(self, n: int) -> Condition:
        """Return the condition of the first n items as they are stored, or of all if there are fewer."""
        return self._both(self.stream.head(n), lambda: labelled(self.stream).head_condition(n))

    def _both(self, items: Tensor, own: Callable[[], Any]) -> Condition:
        found = torch.cat([self.function(block) for block in items.split(_BLOCK)])
        return found if self.key is None else {self.key: found, **named(own())}


class ComputedTextStream(ComputedStream):
    """A `ComputedStream` beside texts: also a `TextStream`."""

    stream: TextStream

    def texts(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        return self.stream.texts(epoch, skip)

    def head_texts(self, n: int) -> tuple[str, ...]:
        return self.stream.head_texts(n)


class MappedStream(StreamOf):
    """A stream whose items are computed from those of another.

    Args:
        stream: the other items.
        function: raw items, their epoch and the number of items before them → items.
        item_shape, dtype: of the items of `function`.
        what: the function, for the identity.
    """

    def __init__(
        self, stream: Stream, function: Function, item_shape: tuple[int, ...], dtype: torch.dtype, what: object
    ) -> None:
        super().__init__(stream)
        self.function, self._shape, self._dtype, self.what = function, item_shape, dtype, what

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def identity(self) -> str:
        return json.dumps([self.stream.identity, self.what])

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        """Return the items of an epoch from item `skip` on."""
        return (
            item for item, _ in self._mapped(lambda first: pairs_read(self.stream, epoch, first, False), epoch, skip)
        )

    def head(self, n: int) -> Tensor:
        """Return the first n items as they are stored, or all if there are fewer."""
        raw = self.stream.head(n)
        starts = range(0, len(raw), _BLOCK)
        return torch.cat([self.function(raw[i : i + _BLOCK], _HEAD_EPOCH, i) for i in starts])

    def _mapped(
        self, opened: Callable[[int], Iterator[tuple[Tensor, Any]]], epoch: int, skip: int
    ) -> Iterator[tuple[Tensor, Any]]:
        """Return what `opened` reads, from item `skip` on, with the items replaced."""
        first = skip - skip % _BLOCK
        read = iter(opened(first))
        while block := list(islice(read, _BLOCK)):
            found = self.function(torch.stack([item for item, _ in block]), epoch, first)
            held = zip(found, [value for _, value in block], strict=True)
            yield from islice(held, max(0, skip - first), None)
            first += len(block)


class MappedLabelledStream(MappedStream):
    """A `MappedStream` with the conditions of its stream: a `BatchedStream`."""

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """Return the items of an epoch, each with what the condition of the stream is made of."""
        return self._mapped(lambda first: labelled(self.stream).pairs(epoch, first), epoch, skip)

    def conditions(self, values: Sequence[Any]) -> Condition:
        """Return the condition of several items, from what `pairs` returned with them."""
        return conditions_read(self.stream, values)

    def head_condition(self, n: int) -> Condition:
        """Return the condition of the first n items as they are stored, or of all if there are fewer."""
        return labelled(self.stream).head_condition(n)


class MappedTextStream(MappedLabelledStream):
    """A `MappedLabelledStream` whose condition is embeddings of texts: also a `TextStream`."""

    stream: TextStream

    def texts(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        return self._mapped(lambda first: self.stream.texts(epoch, first), epoch, skip)

    def head_texts(self, n: int) -> tuple[str, ...]:
        return self.stream.head_texts(n)


def with_computed(
    stream: Stream, function: Callable[[Tensor], Tensor], key: str | None = None, label_classes: int = 0
) -> ComputedStream:
    """Return a stream with a condition that is computed from its items; the arguments are those of `ComputedStream`."""
    kind = ComputedTextStream if key is not None and isinstance(stream, TextStream) else ComputedStream
    return kind(stream, function, key, label_classes)


def mapped(
    stream: Stream,
    function: Function,
    item_shape: tuple[int, ...],
    dtype: torch.dtype,
    what: object,
    conditional: bool,
) -> MappedStream:
    """Return a stream of computed items, with the conditions of the stream if it is `conditional`; the arguments are those of `MappedStream`."""
    kind = MappedStream
    if conditional:
        kind = MappedTextStream if isinstance(stream, TextStream) else MappedLabelledStream
    return kind(stream, function, item_shape, dtype, what)


def named(condition: Any) -> dict[str, Tensor]:
    """Return a condition as tensors by name, "condition" that of a single one."""
    return {"condition": condition} if isinstance(condition, Tensor) else dict(condition)
