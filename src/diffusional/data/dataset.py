"""A data set: one space and three splits of raw values, as they are stored in the file.

Raw values are converted to the model's values by `space.encode` only. A split is identified by its fingerprint, a hash of its
values (but not of the type or file in which they are stored), so that results are compared only if they are about the same data.

A split is a Tensor, or `Items`, which are read as they are needed. A train split may also be a `Stream`, which can be read only
from its beginning.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffusional.condition_form import ConditionForm
from diffusional.conditions import Condition, by_name, check_condition, check_labels, rows_of
from diffusional.data.origin import Origin
from diffusional.encoded import EncodedItems
from diffusional.errors import DiffusionalError
from diffusional.space import Discrete, Space
from diffusional.text.record import TextRecord

SPLITS = ("train", "validation", "test")
_BLOCK = 2**19  # values read at a time: 4 MiB as float64, so that a pass over a split needs little memory
_GATHER = 2**26  # bytes of items read at a time, which are then divided into blocks: nearby rows are read together
_HEAD = 256  # items of a stream that its fingerprint hashes


@runtime_checkable
class Items(Protocol):
    """Raw values of shape (N, *dims), read as they are needed. Tensors and `data.rows.Rows` are such items."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *dims)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of the items returned by `[…]`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """Return the items of rows int64 (n,), or of a slice: (n, *dims)."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A train split that is read from its beginning, epoch by epoch, and whose length is unknown."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of the items."""
        ...

    @property
    def identity(self) -> str:
        """The identity of the stream (name, config, revision, …), which is part of the fingerprint."""
        ...

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        """Return raw items of an epoch, from item `skip` on, in an order that is a function of (seed, epoch)."""
        ...

    def head(self, n: int) -> Tensor:
        """Return the first n items as they are stored, or all if there are fewer."""
        ...


@runtime_checkable
class LabelledStream(Stream, Protocol):
    """A stream whose items have a condition, such as the number of their class, which is read with them."""

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """Return the items of an epoch as `items` does, each with its condition: of a class label a tensor () of int64."""
        ...

    def head_condition(self, n: int) -> Any:
        """Return the conditions of the first n items as they are stored, (n, …), or of all if there are fewer."""
        ...


@runtime_checkable
class BatchedStream(LabelledStream, Protocol):
    """A stream whose conditions are made for several items together, such as embeddings of texts, or tokens that are padded to the longest.
    `pairs` then yields what they are made of.
    """

    def conditions(self, values: Sequence[Any]) -> Condition:
        """Return the condition of several items, one row for each, from what `pairs` returned with them. The row of an item must not depend
        on the other items, except for padding that a mask marks.
        """
        ...


@runtime_checkable
class TextStream(Stream, Protocol):
    """A stream whose items have texts, which are read with them and embedded batch by batch (`data.texts.with_texts`)."""

    def texts(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        """Return the items of an epoch as `items` does, each with its text."""
        ...

    def head_texts(self, n: int) -> tuple[str, ...]:
        """Return the texts of the first n items as they are stored, or of all if there are fewer."""
        ...


@runtime_checkable
class ComputedCondition(Protocol):
    """A stream with a condition that is computed from its items (`data.derived_stream`)."""

    @property
    def label_classes(self) -> int:
        """The number of classes if the other of two conditions is labels, otherwise 0."""
        ...


def labelled(stream: Stream) -> LabelledStream:
    """Return a stream whose data set has a condition, for which `Dataset` requires a LabelledStream."""
    assert isinstance(stream, LabelledStream)
    return stream


def pairs_read(stream: Stream, epoch: int, skip: int, conditional: bool) -> Iterator[tuple[Tensor, Any]]:
    """Return the items of an epoch from item `skip` on, each with what its condition is made of, or with None."""
    if conditional:
        return labelled(stream).pairs(epoch, skip)
    return ((item, None) for item in stream.items(epoch, skip))


def conditions_read(stream: Stream, values: Sequence[Any]) -> Any:
    """Return the condition of several items, from what `pairs_read` returned with them."""
    return stream.conditions(values) if isinstance(stream, BatchedStream) else torch.stack(list(values))


def block_rows(shape: tuple[int, ...]) -> int:
    """Return the number of items of a shape in one block of a pass over a split.

    >>> block_rows((3, 32, 32)), block_rows((3, 1024, 1024))
    (170, 1)
    """
    return max(1, _BLOCK // max(1, math.prod(shape)))


@dataclass(frozen=True, eq=False)
class Source:
    """The origin of the splits of a Dataset.

    Attributes:
        splits: for each split the object that was loaded, and the Origin of its items. A Dataset whose split is another object,
            such as one made by `dataclasses.replace`, has no known origin for it.
        arguments: the arguments of `load` that reproduce the Dataset ("warps" belongs to `training.build.build_dataset`); None if it
            was made in another way.
        condition: the condition that was loaded with the splits: a Dataset with this condition and other splits is refused, since its
            rows may be those of other items.
    """

    splits: Mapping[str, tuple[Any, Origin | None]]
    arguments: Mapping[str, Any] | None = None
    condition: Mapping[str, Condition] | None = None

    def __repr__(self) -> str:
        return f"Source(arguments={self.arguments})"


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of the items of a Dataset, and the condition that was computed from them.

    Attributes:
        captions: a text for each item, by split; those of a stream are read with its items (`TextStream`).
        record: the encoder of the texts, and the form of the condition; None if there is no condition yet.
        condition: the embeddings. A Dataset with another condition has no record of an encoder.
    """

    captions: Mapping[str, tuple[str, ...]]
    record: TextRecord | None = None
    condition: Mapping[str, Condition] | None = None

    def __repr__(self) -> str:
        captions = ", ".join(f"{len(some):,} {split}" for split, some in self.captions.items())
        return f"<Texts: {captions} captions{'' if self.record is None else ', encoded'}>"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw values of three splits in one space.

    Attributes:
        train, validation, test: raw values (N, *space.shape): integers for a discrete space, float32 or float64 for a continuous one.
        labels: the names of an item's positions, if the file has any, such as the column names of a table in their order.
        notes: the loader's decisions about the file (delimiter, decimal mark, columns left out), one sentence each;
            `diffusional data` prints them.
        source: the origin of the items, which `origin` and `arguments` return.
        condition: the condition of each item, by split: a tensor, or a dict of tensors, with one row per item; None if there is
            none. Class labels are the numbers of the classes, int64. `condition_of` returns the condition of some rows, and
            `subset` selects rows with their condition. A train split that is a stream is not in it: a `LabelledStream` reads the
            conditions with the items.
        classes: the names of the classes, if the condition is class labels.
        texts: the texts of which the condition is the embeddings.

    Raises DiffusionalError for a split that is empty or whose shape or type is not that of the space, and for a condition that does
    not have one row per item, is not finite, or is not the number of a class. The values of the items are checked when they are
    encoded.

    >>> raw = torch.arange(6).reshape(3, 2)
    >>> data = Dataset("six", Discrete((2,), levels=6), raw[:1], raw[1:2], raw[2:])
    >>> data
    <Dataset six: 1 train, 1 validation, 1 test items of Discrete(shape=(2,), levels=6, low=-1.0, high=1.0)>
    >>> data.encode("test")
    tensor([[0.6000, 1.0000]])
    """

    name: str
    space: Space
    train: Tensor | Items | Stream
    validation: Tensor | Items
    test: Tensor | Items
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Source | None = None
    condition: Mapping[str, Condition] | None = None
    classes: tuple[str, ...] = ()
    texts: Texts | None = None

    def __post_init__(self) -> None:
        discrete = isinstance(self.space, Discrete)
        for split in SPLITS:
            raw: Items | Stream = getattr(self, split)
            shape = ("…", *raw.item_shape) if isinstance(raw, Stream) else tuple(raw.shape)
            if shape[1:] != self.space.shape:
                raise DiffusionalError(
                    f"{self.name}: the {split} split has shape {shape}; expected (N, "
                    f"{', '.join(map(str, self.space.shape))}), the space's items"
                )
            if shape[0] == 0:
                raise DiffusionalError(f"{self.name}: the {split} split is empty; give it at least one item")
            integer = not (raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool)
            if not (integer if discrete else raw.dtype in (torch.float32, torch.float64)):
                expected = "an integer type" if discrete else "torch.float32 or torch.float64"
                raise DiffusionalError(
                    f"{self.name}: the {split} split is of type {raw.dtype}; its "
                    f"{'discrete' if discrete else 'continuous'} space takes {expected}: convert it first"
                )

        for split, captions in {} if self.texts is None else self.texts.captions.items():
            if len(captions) != len(self.items(split)):
                raise DiffusionalError(
                    f"{self.name}: the {split} split has {len(captions)} captions for {len(self.items(split))} items; expected one per item"
                )
        self._check_condition()

    def __repr__(self) -> str:
        sizes = [
            f"{split}: a stream" if isinstance(raw := getattr(self, split), Stream) else f"{raw.shape[0]:,} {split}"
            for split in SPLITS
        ]
        given = ", with a condition" if self.condition is not None else ""
        return f"<Dataset {self.name}: {', '.join(sizes)} items of {self.space}{given}>"

    def _repr_html_(self) -> str:
        """Return the splits with their numbers of items and shapes as an HTML table, for notebooks.

        >>> raw = torch.arange(6).reshape(3, 2)
        >>> "<td" in Dataset("six", Discrete((2,), levels=6), raw[:1], raw[1:2], raw[2:])._repr_html_()
        True
        """
        from diffusional.report.fragments import html

        item = " × ".join(map(str, self.space.shape)) or "one value"
        counts = [None if isinstance(raw := getattr(self, split), Stream) else raw.shape[0] for split in SPLITS]
        rows = [
            [split, "a stream" if n is None else f"{n:,}", item, str(getattr(self, split).dtype).removeprefix("torch.")]
            for split, n in zip(SPLITS, counts, strict=True)
        ]
        known = [n for n in counts if n is not None]
        rows.append(["all", f"{sum(known):,}" if len(known) == len(SPLITS) else "", item, ""])
        facts = [f"{self.space.levels} levels" if self.space.levels else "real values"]
        if self.classes:
            facts.append(f"classes: {', '.join(self.classes[:12])}{', …' if len(self.classes) > 12 else ''}")
        elif self.condition is not None:
            facts.append("with a condition for each item")
        return html(self.name, ["split", "items", "shape", "type"], rows, [*facts, *self.notes], [])

    def _check_condition(self) -> None:
        if self.condition is None:
            if self.classes:
                raise DiffusionalError(
                    f"{self.name}: classes were given without a condition; give the labels as condition"
                )
            return
        streamed = isinstance(self.train, Stream)
        if streamed and not isinstance(self.train, LabelledStream):
            raise DiffusionalError(
                f"{self.name}: a condition was given, but the train split is a stream, whose rows it cannot be matched with. Load the "
                "data without streaming, give the stream the methods of data.dataset.LabelledStream, or leave the condition out"
            )
        splits = SPLITS[1:] if streamed else SPLITS
        if not isinstance(self.condition, Mapping) or set(self.condition) != set(splits):
            given = (
                ", ".join(map(str, self.condition))
                if isinstance(self.condition, Mapping)
                else type(self.condition).__name__
            )
            raise DiffusionalError(
                f"{self.name}: condition must be a dict with {', '.join(splits)}, each with one row per item, got {given}"
                f"{'; the conditions of the stream are read with its items' if streamed else ''}"
            )
        if len(set(self.classes)) < len(self.classes):
            raise DiffusionalError(f"{self.name}: classes must have names that differ, got {', '.join(self.classes)}")
        loaded = self.source if self.source is not None and self.source.condition is not None else None
        for split in splits:
            raw, condition = self.items(split), self.condition[split]
            try:
                check_condition(condition, len(raw))
                if self.classes:
                    check_labels(condition, len(self.classes))
            except DiffusionalError as error:
                raise DiffusionalError(f"{self.name}, split {split}: {error}") from error
            if loaded is None or loaded.condition is None or split not in loaded.splits:
                continue
            if loaded.splits[split][0] is not raw and loaded.condition.get(split) is condition:
                raise DiffusionalError(
                    f"{self.name}: the {split} split was replaced, but its condition is still that of the items before; use "
                    "dataset.subset(split, rows), which takes both, or replace the condition as well"
                )

    def condition_of(self, split: str, rows: Tensor | slice | None = None) -> Any:
        """Return the condition of a split, or of some of its rows; None if the data have none.

        Raises DiffusionalError for an unknown split, and for the labels of a stream, which are read with its items.

        >>> from diffusional import data
        >>> digits = data.load("digits", condition="label")
        >>> digits.condition_of("test", slice(0, 3)), len(digits.classes)
        (tensor([3, 4, 6]), 10)
        """
        raw = self._raw(split)
        if self.condition is None:
            return None
        if isinstance(raw, Stream):
            raise DiffusionalError(
                f"{self.name}: {split} is a stream, whose conditions can only be read with its items, in their order; use "
                "dataset.train.pairs(epoch) or dataset.head_condition(n), or load the data without streaming"
            )
        condition = self.condition[split]
        return condition if rows is None else rows_of(condition, rows)

    def head_condition(self, n: int) -> Any:
        """Return the condition of the first n train items, or of all if there are fewer; None if the data have none. Those of a stream are
        read with `train.head(n)`.

        >>> from diffusional import data
        >>> data.load("digits", condition="label").head_condition(3)
        tensor([0, 1, 2])
        """
        if self.condition is not None and isinstance(self.train, LabelledStream):
            return self.train.head_condition(n)
        return self.condition_of("train", slice(0, n))

    @property
    def text(self) -> TextRecord | None:
        """The text encoder whose embeddings are the condition; None for other conditions."""
        return None if self.texts is None or self.texts.condition is not self.condition else self.texts.record

    def captions_of(self, split: str) -> tuple[str, ...]:
        """Return the texts of the items of a split, of which the condition is the embeddings; () if there are none.

        Raises DiffusionalError for an unknown split and a stream.

        >>> from diffusional import data
        >>> data.load("digits", condition="caption").captions_of("test")[0]
        'a thin large three'
        """
        raw = self._raw(split)
        if self.texts is None or self.text is None:
            return ()
        if isinstance(raw, Stream):
            raise DiffusionalError(
                f"{self.name}: {split} is a stream, whose texts can only be read with its items, in their order; use "
                "dataset.train.texts(epoch) or dataset.train.head_texts(n), or load the data without streaming"
            )
        return self.texts.captions[split]

    def condition_hash(self, split: str) -> str:
        """Return the SHA-256 of a split's condition in the order of its items, "" if there is none. Of a stream the conditions of the
        first 256 items are hashed, as in its fingerprint.

        Integers are hashed as int64, with the names of the classes, so that labels of other names have another hash. Of embeddings of
        texts, the texts and the encoder are hashed, since machines differ in the last bits of embeddings.
        """
        raw = self._raw(split)
        if self.text is not None:
            texts = raw.head_texts(_HEAD) if isinstance(raw, TextStream) else self.captions_of(split)
            return hashlib.sha256(json.dumps([self.text.to_dict(), texts]).encode()).hexdigest()
        streamed = isinstance(raw, Stream)
        condition = self.head_condition(_HEAD) if streamed else self.condition_of(split)
        if condition is None:
            return ""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, value in by_name(condition).items():
            exact = value.detach().cpu()
            exact = exact if exact.is_floating_point() or exact.is_complex() else exact.long()
            digest.update(f"{name}:{exact.dtype}:{tuple(exact.shape)};".encode())
            digest.update(exact.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def condition_form(self) -> ConditionForm | None:
        """The form of the condition, by the train split; None if the data have none.

        Raises DiffusionalError for a condition that the networks of a config do not take.

        >>> from diffusional import data
        >>> str(data.load("digits", condition="label").condition_form)
        'labels of 10 classes'
        """
        if self.condition is None:
            return None
        if self.classes:
            return ConditionForm("labels", classes=len(self.classes))
        if isinstance(self.train, Stream):
            # The first items of a stream need not have all classes.
            classes = self.train.label_classes if isinstance(self.train, ComputedCondition) else 0
            return ConditionForm.of(self.head_condition(_HEAD), classes)
        return ConditionForm.of(self.condition["train"])

    def without_condition(self) -> "Dataset":
        """Return the same items without their condition, for training an unconditional model.

        >>> from diffusional import data
        >>> data.load("digits", condition="label").without_condition().condition is None
        True
        """
        source = self.source
        if source is not None and source.condition is not None:
            arguments = None if source.arguments is None else dict(source.arguments) | {"condition": None}
            source = Source(source.splits, arguments)
        return replace(self, condition=None, classes=(), source=source, texts=None)

    def subset(self, split: str, rows: Tensor | slice) -> "Dataset":
        """Return the Dataset with only some items of a split, in the order of `rows`, with their conditions and origins.

        Args:
            split: "train", "validation" or "test"; the other splits stay as they are.
            rows: int64 (n,), a boolean mask (N,), or a slice.

        Raises DiffusionalError for an unknown split, a stream, and no rows.

        >>> from diffusional import data
        >>> digits = data.load("digits", condition="label")
        >>> threes = digits.subset("train", digits.condition_of("train") == 3)
        >>> len(threes.train), threes.condition_of("train").unique()
        (104, tensor([3]))
        """
        raw, origin = self.items(split), self.origin(split)
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        chosen = raw[rows]
        kept = dict(self.source.splits) if self.source is not None else {}
        if origin is not None:
            where = np.arange(origin.length)[origin.where]
            where = where[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
            kept[split] = (chosen, replace(origin, where=where))
        condition, texts = self.condition, self.texts if self.text is not None else None
        if condition is not None:
            condition = dict(condition) | {split: rows_of(condition[split], rows)}
        if texts is not None:
            own = texts.captions[split]
            picked = tuple(own[row] for row in torch.arange(len(own))[rows].tolist())
            texts = Texts(dict(texts.captions) | {split: picked}, texts.record, condition)
        source = Source(kept, None, condition) if kept else None
        return replace(self, **{split: chosen}, condition=condition, source=source, texts=texts)

    def origin(self, split: str) -> Origin | None:
        """Return the file and row of each item of a split; None if they are not known (data made in Python, a stream).

        Raises DiffusionalError for an unknown split.

        >>> from diffusional import data
        >>> data.load("digits").origin("test").rows()[:2].tolist()
        [1350, 1351]
        """
        raw = self._raw(split)
        kept, origin = (None, None) if self.source is None else self.source.splits.get(split, (None, None))
        return origin if kept is raw else None

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """The arguments of `load` that reproduce this Dataset; None if there are none, or a split was replaced.

        >>> from diffusional import data
        >>> data.load("digits").arguments
        {'name_or_path': 'digits'}
        """
        if self.source is None or any(self.source.splits[split][0] is not self._raw(split) for split in SPLITS):
            return None
        if self.condition is not None and self.condition is not self.source.condition:
            return None
        return self.source.arguments

    def items(self, split: str) -> Tensor | Items:
        """Return the raw items of a split, to be read by rows. Raises DiffusionalError for an unknown split and a stream."""
        raw = self._raw(split)
        if isinstance(raw, Stream):
            raise DiffusionalError(
                f"{self.name}: {split} is a stream, whose items can only be read in their order; use "
                "dataset.train.items(epoch), or load the data without streaming"
            )
        return raw

    def tensor(self, split: str) -> Tensor:
        """Return all raw values of a split in memory. Raises as `items` does.

        >>> raw = torch.arange(6).reshape(3, 2)
        >>> Dataset("six", Discrete((2,), levels=6), raw, raw, raw).tensor("train") is raw
        True
        """
        raw = self.items(split)
        return raw if isinstance(raw, Tensor) else raw[:]

    def encode(self, split: str, rows: Tensor | slice | None = None) -> Tensor:
        """Return the model's values of a split, (N, *space.shape) float32, or only those of its `rows`.

        Raises DiffusionalError for an unknown split, a stream, and values that the space's `encode` refuses.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1], [0]])] * 3)
        >>> data.encode("test", torch.tensor([1]))
        tensor([[-1.]])
        >>> data.encode("training")
        Traceback (most recent call last):
            ...
        diffusional.errors.DiffusionalError: expected split to be one of train, validation, test, got 'training'
        """
        if rows is not None:
            return self._encoded(split, self.items(split)[rows])
        size, n = block_rows(self.space.shape), len(self.items(split))
        if n <= size:
            return self._encoded(split, self.tensor(split))
        # Filled block by block: encoding is done in float64, which would take three times the memory for all items at once.
        out = torch.empty((n, *self.space.shape))
        for first, block in zip(range(0, n, size), self.blocks(split, size), strict=True):
            out[first : first + size] = block
        return out

    def lazy(self, split: str) -> EncodedItems:
        """Return the model's values of a split as items that are read and encoded as they are needed. `df.evaluate` takes them for
        evaluations by visits, with the results of `encode`, so that the data may be larger than memory. Raises as `encode` does.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1], [0]])] * 3)
        >>> data.lazy("test")[torch.tensor([1])].equal(data.encode("test")[1:])
        True
        """
        return EncodedItems(self.items(split), self.space)

    def blocks(self, split: str, size: int) -> Iterator[Tensor]:
        """Return the model's values of a split, `size` items at a time, in order. Raises as `encode` does.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1], [0], [1]])] * 3)
        >>> [len(block) for block in data.blocks("train", 2)]
        [2, 1]
        """
        for first, block in self._raw_blocks(split, size):
            yield self._encoded(split, block, first)

    def fingerprint(self, split: str, seen: Callable[[Tensor], None] | None = None) -> str:
        """Return the SHA-256 (64 hexadecimal digits) of a split's shape, space, and values in order.

        Values are hashed as little-endian int64 (discrete) or float64 (continuous), so that the same values
        stored in another type, or on disk, have the same fingerprint. For a stream, its identity is hashed instead of
        its length, and its first 256 items instead of all. `seen` is called with each block of raw items that is read.
        Raises DiffusionalError for an unknown split.

        >>> space, raw = Discrete((2,), levels=6), torch.arange(6).reshape(3, 2)
        >>> wide, narrow = Dataset("a", space, raw, raw, raw), Dataset("b", space, *[raw.to(torch.uint8)] * 3)
        >>> wide.fingerprint("train") == narrow.fingerprint("train")
        True
        """
        raw = self._raw(split)
        dtype = "<i8" if isinstance(self.space, Discrete) else "<f8"
        if isinstance(raw, Stream):
            what = {"stream": raw.identity, "space": self.space.to_dict()}
            blocks = iter([raw.head(_HEAD)])
        else:
            what = {"shape": list(raw.shape), "space": self.space.to_dict()}
            blocks = (block for _, block in self._raw_blocks(split, block_rows(self.space.shape)))
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        for block in blocks:
            digest.update(block.cpu().numpy().astype(dtype).tobytes())
            if seen is not None:
                seen(block)
        return digest.hexdigest()

    def _raw(self, split: str) -> Tensor | Items | Stream:
        if split not in SPLITS:
            raise DiffusionalError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
        return getattr(self, split)

    def _raw_blocks(self, split: str, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of `size` raw items, each with the row of its first item."""
        if size < 1:
            raise DiffusionalError(f"expected blocks of at least 1 item, got size={size}")
        raw = self.items(split)
        bytes_of_block = size * max(1, math.prod(raw.shape[1:]) * raw.dtype.itemsize)
        gathered = size * max(1, _GATHER // bytes_of_block)
        for start in range(0, len(raw), gathered):
            items = raw[start : start + gathered]
            for first in range(0, len(items), size):
                yield start + first, items[first : first + size]

    def _encoded(self, split: str, raw: Tensor, first: int = 0) -> Tensor:
        try:
            return self.space.encode(raw)
        except DiffusionalError as error:
            # The space counts from the first item that it was given.
            after = f", counted from item {first}" if first else ""
            raise DiffusionalError(f"{self.name}, split {split}{after}: {error}") from error
