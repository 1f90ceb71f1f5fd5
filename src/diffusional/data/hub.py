"""Data sets of the Hugging Face Hub, read with the library `datasets`: downloaded and decoded once, or streamed.

    "hf:owner/name"  "hf:owner/name:config"  "hf:/folder"         a folder as load_dataset takes it

One column contains the items, which are images or arrays of one shape. The splits train, validation and test are used as they
are; missing ones are drawn from train. Splits of other names are not read; the notes of the Dataset list them.

A stream is shuffled in a buffer that is filled in the order of the files, so that its order is random only within the length of
the buffer; it is a function of (seed, epoch). The validation and test items are the first of their splits, or else the first of
train, which then begins after them: data sorted by class need their own splits for these. Real-valued streams are standardised by
their first 10,000 items.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.data.checks import channels_first, declared, to_dataset
from diffusional.data.classes import LABEL, Labels
from diffusional.data.dataset import SPLITS, Dataset, Texts, block_rows
from diffusional.data.excerpt import listed
from diffusional.data.folders import walk
from diffusional.data.given import Given, Wanted
from diffusional.data.images import check_levels, decode_all
from diffusional.data.origin import Files
from diffusional.data.pictures import Options, Picture, check_alike, decode
from diffusional.data.rows import integers, reals
from diffusional.data.splits import Fractions, Part, random_rows
from diffusional.data.storage import store
from diffusional.data.streamed import (
    ConditionReader,
    RowReader,
    StreamedLabels,
    StreamedNumbers,
    StreamedTexts,
    StreamedTokens,
)
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular
from diffusional.space import Discrete

_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_BUFFER = 4096  # items among which a stream is shuffled
_HEAD = 10_000  # items of a stream that standardise it


def load_hub(
    name: str,
    levels: int | None,
    fractions: Fractions,
    seed: int,
    options: Options,
    column: str | None,
    streaming: bool,
    holdout: int,
    condition: str | None = None,
) -> Dataset:
    """Load the Dataset of "hf:…".

    `column` names the column of the items, if it is not unique. `holdout` is the number of items of a stream for validation, and for
    test. `condition` is the name of a column of class labels, or "label" for the only one, or names columns of texts, numbers or tokens
    (`data.given`). Labels of a stream must be a ClassLabel, which declares its classes. The train split of a stream is then a
    LabelledHubStream, or a TextHubStream.

    Raises DiffusionalError if `datasets` is not installed, for names that it cannot find, if the column is not unique or there is
    none, for images and arrays that cannot be read, and for labels that are missing, or undeclared in a stream.
    """
    path, _, config = name.removeprefix("hf:").partition(":")
    found, revision, notes = _open(path, config or None, streaming)
    targets = None if condition is None or streaming else _labels(name, found, condition)
    column = _choose(name, _of_items(found["train"].features, condition), column)
    reader = None if condition is None or not streaming else _reader(name, found["train"].features, condition)
    if reader is not None and column in reader.columns:
        raise DiffusionalError(f"{name}: expected different columns of items and conditions, got {column!r} for both")
    picture = _is_image(found["train"].features[column])
    dtype = None if picture else _dtype(found["train"].features[column])
    kept = () if reader is None else reader.columns
    found = {split: _only(rows, column, dtype, streaming, kept) for split, rows in found.items()}
    source = f"{name}, column {column!r}"
    if not streaming:
        parts, stored = (_pictures if picture else _arrays)(source, found, column, levels, fractions, seed, options)
        parts = _completed(parts, notes, targets)
        if stored is not None:
            return declared(name, Discrete(parts["train"].array.shape[1:], stored), parts)
        return to_dataset(name, parts, levels)
    identity = json.dumps([name, column, revision, asdict(options), holdout, seed])
    streamed = _streamed(name, source, found, column, dtype, levels, seed, options, holdout, identity, reader)
    return replace(streamed, notes=notes)


def read_hub(
    name: str, options: Options, column: str | None, condition: str | None = None
) -> tuple[dict[str, Part], int | None]:
    """Download the items of "hf:…" by its own splits, with their labels. Also return the number of levels of images (None for arrays).

    The notes of the parts list splits that were not read.

    Raises DiffusionalError as `load_hub` does.
    """
    path, _, config = name.removeprefix("hf:").partition(":")
    found, _, notes = _open(path, config or None, streaming=False)
    targets = None if condition is None else _labels(name, found, condition)
    column = _choose(name, _of_items(found["train"].features, condition), column)
    picture = _is_image(found["train"].features[column])
    dtype = None if picture else _dtype(found["train"].features[column])
    found = {split: _only(rows, column, dtype, streaming=False) for split, rows in found.items()}
    source = f"{name}, column {column!r}"
    parts, stored = (_pictures if picture else _arrays)(source, found, column, None, None, 0, options)
    return _completed(parts, notes, targets), stored


def _completed(parts: dict[str, Part], notes: tuple[str, ...], targets: Labels | Given | None) -> dict[str, Part]:
    return {split: replace(part, notes=notes, targets=targets) for split, part in parts.items()}


def _labels(name: str, found: dict[str, Any], condition: str) -> Labels | Given:
    """Return the labels, texts, numbers or tokens of all splits, one after the other, from the column that `condition` names."""
    wanted = Wanted.of(condition)
    if wanted.kind != "labels":
        columns = wanted.among(list(found["train"].features), name)
        where = f"{name}, column{'s' * (len(columns) > 1)} {', '.join(map(repr, columns))}"
        values = [[value for rows in found.values() for value in rows[column]] for column in columns]
        if wanted.kind == "texts":
            return Given.texts(values[0], where)
        if wanted.kind == "tokens":
            return Given.lists(values[0], where)
        return Given.numbers(values[0] if len(columns) == 1 else list(zip(*values, strict=True)), where)
    column, names = _label_column(name, found["train"].features, condition)
    values = [value for rows in found.values() for value in rows[column]]
    return Labels.of(values, f"{name}, column {column!r}", names)


def _label_column(name: str, features: Any, condition: str) -> tuple[str, list[str]]:
    """Return the column of labels that `condition` names, and the names of its classes if the data declare them."""
    declared_classes = [key for key, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    column = condition
    if condition not in features and condition == LABEL and len(declared_classes) == 1:
        (column,) = declared_classes
    elif condition not in features:
        described = ", ".join(f"{key} ({_described(feature)})" for key, feature in features.items())
        raise DiffusionalError(f"{name} has no column {condition!r} for the condition; it has {described}")
    return column, [str(one) for one in features[column].names] if column in declared_classes else []


def _reader(name: str, features: Any, condition: str) -> ConditionReader | StreamedTexts:
    """Return what reads the condition of the rows of a stream. Raises DiffusionalError for a column of labels whose classes are not declared:
    only a pass over all rows would find them.
    """
    wanted = Wanted.of(condition)
    if wanted.kind != "labels":
        columns = wanted.among(list(features), name)
        where = f"{name}, column{'s' * (len(columns) > 1)} {', '.join(map(repr, columns))}"
        if wanted.kind == "numbers":
            return StreamedNumbers(columns, where)
        return StreamedTexts((columns[0],), where) if wanted.kind == "texts" else StreamedTokens((columns[0],), where)
    column, names = _label_column(name, features, condition)
    if not names:
        raise DiffusionalError(
            f"condition={condition!r} was given with streaming=True, but the column {column!r} of {name} is {_described(features[column])}: "
            "expected a ClassLabel, which declares its classes, since a stream is not read to its end to find them. Load the data without "
            "streaming, save a copy with dataset.class_encode_column(…), or leave the condition out"
        )
    return StreamedLabels((column,), tuple(names), f"{name}, column {column!r}")


@dataclass(frozen=True, eq=False)
class HubStream:
    """A train split read from its beginning: rows of an IterableDataset, each turned into an item by `convert`."""

    rows: Any
    convert: Callable[[int, dict[str, Any]], np.ndarray]
    item_shape: tuple[int, ...]
    dtype: torch.dtype
    identity: str
    seed: int

    def items(self, epoch: int, skip: int = 0) -> Iterator[Tensor]:
        """Return raw items of an epoch, from item `skip` on; those before it are not decoded."""
        return self._converted(self._shuffled(epoch, skip), skip)

    def head(self, n: int) -> Tensor:
        """Return the first n items as they are stored, or all if there are fewer."""
        return torch.stack(list(self._converted(self.rows.take(n), 0)))

    def _shuffled(self, epoch: int, skip: int) -> Any:
        """Return the rows of an epoch from row `skip` on."""
        rows = self.rows.shuffle(seed=self.seed, buffer_size=_BUFFER).skip(skip)
        rows.set_epoch(epoch)  # must be the last call, since `skip` resets it
        return rows

    def _converted(self, rows: Any, first: int) -> Iterator[Tensor]:
        for i, row in enumerate(_unbroken(rows, self.identity), first):
            yield torch.from_numpy(self.convert(i, row))


@dataclass(frozen=True, eq=False)
class LabelledHubStream(HubStream):
    """A HubStream whose rows have class labels, numbers or tokens: a `data.dataset.BatchedStream`."""

    reader: ConditionReader

    def pairs(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """Return raw items of an epoch, from item `skip` on, each with what the condition of its row is made of."""
        return _read(self, self.reader, epoch, skip)

    def conditions(self, values: Sequence[Any]) -> Condition:
        """Return the condition of items from what `pairs` returned with them."""
        return self.reader.batch(values)

    def head_condition(self, n: int) -> Condition:
        """Return the condition of the first n items as they are stored, or of all if there are fewer."""
        return self.reader.batch(_head_of(self, self.reader, n))


@dataclass(frozen=True, eq=False)
class TextHubStream(HubStream):
    """A HubStream whose rows have texts: a `data.dataset.TextStream`."""

    reader: StreamedTexts

    def texts(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, str]]:
        """Return raw items of an epoch, from item `skip` on, each with its text."""
        return _read(self, self.reader, epoch, skip)

    def head_texts(self, n: int) -> tuple[str, ...]:
        """Return the texts of the first n items as they are stored, or of all if there are fewer."""
        return tuple(_head_of(self, self.reader, n))


def _read(stream: HubStream, reader: RowReader, epoch: int, skip: int) -> Iterator[tuple[Tensor, Any]]:
    """Yield raw items of an epoch, from item `skip` on, each with what `reader` reads of its row."""
    for i, row in enumerate(_unbroken(stream._shuffled(epoch, skip), stream.identity), skip):
        yield torch.from_numpy(stream.convert(i, row)), reader.of(row, f"item {i} of epoch {epoch}")


def _head_of(stream: HubStream, reader: RowReader, n: int) -> list[Any]:
    """Return what `reader` reads of the first n rows as they are stored."""
    rows = stream.rows.take(n).select_columns(list(reader.columns))
    return _values(reader, list(_unbroken(rows, stream.identity)), "train")


def _open(path: str, config: str | None, streaming: bool) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Return the splits by our names, the hash of this version of the data, and a note on splits that are not read, if there are any."""
    try:
        import datasets
    except ImportError as error:
        raise DiffusionalError(
            f'hf:{path} needs the library datasets, which is not installed; pip install "diffusional[hub]"'
        ) from error
    local = str(Path(path).expanduser()) if path.startswith(("/", ".", "~")) else path
    if path.startswith(("/", ".", "~")) and not Path(local).exists():
        raise DiffusionalError(f"hf:{path} does not exist; give a folder, or owner/name for a data set of the Hub")
    if os.path.isdir(local):
        for name in walk(Path(local)):  # opening a named pipe would block
            check_regular(Path(local) / name)
    try:
        builder = datasets.load_dataset_builder(local, config)
        if streaming:
            found: Any = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            found = builder.as_dataset()
    except Exception as error:  # the library raises exceptions of many types, its own and those of its HTTP client
        raise DiffusionalError(
            f"hf:{path}{f':{config}' if config else ''} could not be loaded ({type(error).__name__}: {error}); check "
            "the name, the config after a colon, and the connection; a private data set needs `hf auth login`"
        ) from error
    splits: dict[str, Any] = {}
    left = []
    for name, rows in found.items():
        known = _NAMES.get(str(name).lower())
        if known is None or known in splits:
            left.append(str(name))
        else:
            splits[known] = rows
    if "train" not in splits:
        raise DiffusionalError(
            f"hf:{path} has no train split (it has {', '.join(map(str, found))}); choose another config"
        )
    notes = ()
    if left:
        which = f"{'splits' if len(left) > 1 else 'split'} {listed(left)}"
        notes = (
            f"left out {which}: only one split each of train, validation and test is read; save a copy of the data with other names "
            "to use others",
        )
    return splits, str(builder.hash), notes


def _of_items(features: Any, condition: str | None) -> Any:
    """Return the features without the columns of a condition of numbers or tokens, which could be items as well."""
    wanted = None if condition is None else Wanted.of(condition)
    if features is None or wanted is None or wanted.kind == "labels":
        return features
    return {key: feature for key, feature in features.items() if key not in wanted.names}


def _choose(name: str, features: Any, column: str | None) -> str:
    if features is None:
        raise DiffusionalError(f"{name} does not declare its columns; load it without streaming")
    fitting = [key for key, feature in features.items() if _is_image(feature) or _shape(feature)]
    described = ", ".join(f"{key} ({_described(feature)})" for key, feature in features.items())
    if column is None and len(fitting) == 1:
        return fitting[0]
    if column is None:
        which = "several columns could contain" if fitting else "no column can contain"
        raise DiffusionalError(
            f"{name}: {which} the items; it has {described}. Choose one of images or of arrays of one shape with "
            "column=… (--data.column NAME); columns of single numbers are a table: save them as .parquet"
        )
    if column not in fitting:
        raise DiffusionalError(
            f"{name}: expected column to be a column of images or of arrays of one shape, got {column!r}, which is "
            f"{'of another type' if column in features else 'none of its columns'}; it has {described}"
        )
    return column


def _described(feature: Any) -> str:
    shape = _shape(feature)
    kind = type(feature).__name__
    return f"{kind} {shape}" if shape else f"{kind} {getattr(feature, 'dtype', '') or ''}".strip()


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _shape(feature: Any) -> tuple[int, ...]:
    """Return the shape of a feature that holds numbers of one shape, or ()."""
    if type(feature).__name__.startswith("Array"):
        return tuple(feature.shape) if None not in feature.shape else ()
    length, inner = getattr(feature, "length", -1), getattr(feature, "feature", None)
    if inner is None or length < 1:
        return ()
    if type(inner).__name__ == "Value":
        return (length,) if np.dtype(_plain(inner.dtype)).kind in "buif" else ()
    deeper = _shape(inner)
    return (length, *deeper) if deeper else ()


def _plain(dtype: str) -> str:
    return dtype if dtype.startswith(("int", "uint", "float", "bool")) else "O"


def _dtype(feature: Any) -> str:
    """Return the type of a feature's numbers."""
    inner = getattr(feature, "feature", None)
    return str(feature.dtype) if inner is None else _dtype(inner)


def _only(rows: Any, column: str, dtype: str | None, streaming: bool, kept: tuple[str, ...] = ()) -> Any:
    """Return rows of one column, and of those to be kept: arrays of a type, or (for None) pictures as undecoded bytes, which this package
    decodes.
    """
    import datasets

    rows = rows.select_columns([column, *kept])
    if dtype is None:
        return rows.cast_column(column, datasets.Image(decode=False))
    # The default of the format is float32, whatever is stored. A stream has no type to set: see _ArrayRow.
    return rows if streaming else rows.with_format("numpy", dtype=np.dtype(dtype))


def _content(stored: dict[str, Any]) -> Path | bytes:
    if stored["bytes"] is not None:
        return stored["bytes"]
    if Path(stored["path"]).exists():
        return Path(stored["path"])
    import fsspec  # a dependency of datasets; reads its streams: hf://, https://, zip://

    with fsspec.open(stored["path"], "rb") as opened:
        return opened.read()  # pyright: ignore[reportAttributeAccessIssue]


def _pictures(
    source: str,
    found: dict[str, Any],
    column: str,
    levels: int | None,
    fractions: Fractions | None,
    seed: int,
    options: Options,
) -> tuple[dict[str, Part], int | None]:
    given, whole = _ranges(found)
    rows = random_rows(given, source, fractions, seed)

    def read(i: int) -> tuple[Path | bytes, str]:
        split, item = whole(i)
        return _content(found[split][item][column]), f"{source}, {split} item {item}"

    n = sum(map(len, found.values()))
    values, stored = decode_all(n, read, options, lambda: _identity(found))
    check_levels(levels, stored, source)
    return {split: Part(values, rows[split], source, files=_files(found)) for split in SPLITS if split in rows}, stored


def _arrays(
    source: str,
    found: dict[str, Any],
    column: str,
    levels: int | None,
    fractions: Fractions | None,
    seed: int,
    options: Options,
) -> tuple[dict[str, Part], int | None]:
    _refuse_picture_options(options, source)
    given, _ = _ranges(found)
    rows = random_rows(given, source, fractions, seed)
    first = np.asarray(found["train"][:1][column])
    size = block_rows(first.shape[1:])

    def fill(out: np.ndarray) -> None:
        start = 0
        for split in found.values():
            for i in range(0, len(split), size):
                block = np.asarray(split[i : i + size][column])
                out[start : start + len(block)] = block
                start += len(block)

    shape = (sum(map(len, found.values())), *first.shape[1:])
    values = store(shape, first.dtype.str, lambda: _identity(found), fill)
    return {split: Part(values, rows[split], source, files=_files(found)) for split in SPLITS if split in rows}, None


def _files(found: dict[str, Any]) -> Files:
    """Return the splits of a Hub data set as the files of its items: an item is identified by its number in its split."""
    return Files.of(list(found), [len(rows) for rows in found.values()])


def _identity(found: dict[str, Any]) -> list[list[str]]:
    """Return the identity of these splits, which is part of the key of their cache."""
    return [[split, part._fingerprint] for split, part in found.items()]


def _ranges(found: dict[str, Any]) -> tuple[dict[str, np.ndarray], Callable[[int], tuple[str, int]]]:
    """Return all splits one after the other: the rows of each split, and a function from a row to its split and its item there."""
    splits = list(found)
    ends = np.cumsum([len(found[split]) for split in splits])
    starts = ends - [len(found[split]) for split in splits]

    def whole(i: int) -> tuple[str, int]:
        k = int(np.searchsorted(ends, i, side="right"))
        return splits[k], int(i - starts[k])

    return {split: np.arange(start, end) for split, start, end in zip(splits, starts, ends, strict=True)}, whole


def _streamed(
    name: str,
    source: str,
    found: dict[str, Any],
    column: str,
    dtype: str | None,
    levels: int | None,
    seed: int,
    options: Options,
    holdout: int,
    identity: str,
    reader: ConditionReader | StreamedTexts | None,
) -> Dataset:
    rows, taken = dict(found), 0
    for split in ("validation", "test"):
        if split in found:
            rows[split] = found[split].take(holdout)
        else:
            rows[split] = found["train"].skip(taken).take(holdout)
            taken += holdout
    rows["train"] = found["train"].skip(taken)
    head = {
        split: list(_unbroken(part.take(1 if dtype is None else _HEAD), source))
        for split, part in rows.items()
        if split == "train"
    }
    head |= {split: list(_unbroken(rows[split], source)) for split in ("validation", "test")}
    for split, held in head.items():
        if not held:
            raise DiffusionalError(
                f"{source}: the stream leaves no {split} items ({taken} of train are held out); give a smaller "
                "holdout (--data.holdout), or load without streaming"
            )
    if dtype is None:
        first = decode(_content(head["train"][0][column]), f"{source}, train item 0", options)
        check_levels(levels, first.levels, source)
        convert: Any = _DecodeRow(column, source, options, first)
        known = declared(name, Discrete(first.values.shape, first.levels), _held(head, convert, source))
    else:
        _refuse_picture_options(options, source)
        convert = _ArrayRow(column, source, dtype)
        known = to_dataset(name, _held(head, convert, source), levels)
    about = (rows["train"], convert, known.space.shape, known.items("train").dtype, identity, seed)
    if reader is None:
        return replace(known, train=HubStream(*about))
    if isinstance(reader, StreamedTexts):
        captions = {split: tuple(_values(reader, head[split], split)) for split in ("validation", "test")}
        return replace(known, train=TextHubStream(*about, reader), texts=Texts(captions))
    if isinstance(reader, StreamedTokens):
        reader = replace(reader, width=reader.of(head["train"][0], "train item 0").shape[1])
    condition = {split: reader.batch(_values(reader, head[split], split)) for split in ("validation", "test")}
    classes = reader.names if isinstance(reader, StreamedLabels) else ()
    return replace(known, train=LabelledHubStream(*about, reader), condition=condition, classes=classes)


def _values(reader: RowReader, rows: list[Any], split: str) -> list[Any]:
    return [reader.of(row, f"{split} item {i}") for i, row in enumerate(rows)]


def _held(head: dict[str, list[Any]], convert: Any, source: str) -> dict[str, Part]:
    parts = {split: np.stack([convert(i, row) for i, row in enumerate(held)]) for split, held in head.items()}
    return {split: Part(array, slice(0, len(array)), f"{source}, {split}") for split, array in parts.items()}


def _refuse_picture_options(options: Options, source: str) -> None:
    if options != Options():
        raise DiffusionalError(
            f"{options} was given for {source}, which contains arrays; size, fit and grey are for images"
        )


@dataclass(frozen=True, eq=False)
class _DecodeRow:
    column: str
    source: str
    options: Options
    first: Picture

    def __call__(self, i: int, row: dict[str, Any]) -> np.ndarray:
        picture = decode(_content(row[self.column]), f"{self.source}, item {i}", self.options)
        check_alike(self.first, picture)
        return np.array(picture.values)  # a copy, since that of the decoder is read-only


@dataclass(frozen=True, eq=False)
class _ArrayRow:
    column: str
    source: str
    dtype: str

    def __call__(self, i: int, row: dict[str, Any]) -> np.ndarray:
        values = channels_first(np.asarray(row[self.column], self.dtype)[None], self.source)
        return np.ascontiguousarray((reals if values.dtype.kind == "f" else integers)(values)[0])


def _unbroken(rows: Any, source: str) -> Iterator[Any]:
    try:
        yield from rows
    except OSError as error:
        raise DiffusionalError(
            f"{source}: the stream was interrupted ({error}); check the connection and resume, or load without streaming"
        ) from error
