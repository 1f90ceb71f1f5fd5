"""Texts as the condition of a data set: where they are from, and their embeddings by a frozen encoder.

    caption              the captions that belong to the data; of digits and MNIST they are written (data/captions.py)
    caption:NAME         those of a column or key
    text, text:ENCODER   as caption, with this encoder of texts (diffusional/text)

Each different text is embedded once. Embeddings that take long are stored in the cache, under a hash of the encoder and the texts. Texts
of a stream are embedded as it is read (data/embedded_stream.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffusional.conditions import rows_of
from diffusional.data.captions import write
from diffusional.data.dataset import SPLITS, Dataset, Items, Source, Stream, Texts, TextStream
from diffusional.data.embedded_stream import EmbeddedStream
from diffusional.data.kept import kept
from diffusional.data.progress import watched
from diffusional.errors import DiffusionalError
from diffusional.space import Discrete, Space
from diffusional.text import Embeddings, Form, TextEncoder, TextRecord, load_encoder
from diffusional.text.base import padded

CAPTION = "caption"
_TEXT = "text"
# Images whose captions are written at a time.
_ROWS = 4096
# Texts that are encoded between two reports of progress.
_CHUNK = 32


def text_source(condition: str | None, encoder: str | None = None) -> tuple[str | None, str | None] | None:
    """Return the column or key of texts (None for the default) and the encoder of a condition; None for a condition that is not texts.

    Raises DiffusionalError for a condition that names another encoder than `encoder`, and for an encoder without texts.

    >>> text_source("caption:title"), text_source("text:minilm"), text_source("label")
    (('title', None), (None, 'minilm'), None)
    """
    kind, colon, rest = (condition or "").partition(":")
    if kind not in (CAPTION, _TEXT) or (colon and not rest):
        if encoder is not None:
            raise DiffusionalError(
                f"text_encoder={encoder!r} was given for condition={condition!r}, which is not texts; give condition='caption', or leave the "
                "encoder out"
            )
        return None
    if kind == CAPTION:
        return rest or None, encoder
    if rest and encoder not in (None, rest):
        raise DiffusionalError(
            f"condition={condition!r} and text_encoder={encoder!r} name different encoders; give one of them"
        )
    return None, rest or encoder


def written(dataset: Dataset) -> Dataset:
    """Return a data set of images of digits with their labels, with captions instead of the labels.

    Raises DiffusionalError for a stream, and for items that are not grey images of integers.
    """
    if isinstance(dataset.train, Stream):
        raise DiffusionalError(f"{dataset.name}: captions are written for items in memory, got a stream")
    found = {}
    for split in SPLITS:
        raw, numbers = dataset.items(split), dataset.condition_of(split)
        names = [dataset.classes[number] for number in numbers.tolist()]
        found[split] = captions_written(raw, names, dataset.space, dataset.name)
    return replace(dataset.without_condition(), texts=Texts(found))


def captions_written(raw: torch.Tensor | Items, names: Sequence[str], space: Space, name: str) -> tuple[str, ...]:
    """Return the captions that are written for raw images (N, 1, H, W) of classes with these names."""
    if not isinstance(space, Discrete) or len(space.shape) != 3 or space.shape[0] != 1:
        raise DiffusionalError(
            f"{name}: captions are written for grey images of integers, (1, H, W), got items of {space}; give captions with the data, or "
            "leave the condition out"
        )
    captions: list[str] = []
    for start in range(0, len(raw), _ROWS):
        images = raw[start : start + _ROWS][:, 0].cpu().numpy()
        captions += write(images, space.levels, names[start : start + _ROWS])
    return tuple(captions)


def with_texts(
    dataset: Dataset,
    encoder: str | None = None,
    form: Form = "pooled",
    arguments: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return a data set with captions whose condition is their embeddings. A train split that is a `TextStream` becomes an `EmbeddedStream`.

    Args:
        encoder: the name of the encoder, for `text.load_encoder`.
        form: "pooled" for a vector for each text, or "tokens" for a vector for each token, with a mask.
        arguments: those of `load` that give this data set, if there are any.

    Raises DiffusionalError for an encoder that cannot be loaded, and for texts that are empty or too long.
    """
    texts = dataset.texts
    assert texts is not None
    chosen = load_encoder(encoder)
    unique = sorted({one for captions in texts.captions.values() for one in captions})
    try:
        embeddings = embedded(chosen, unique)
    except DiffusionalError as error:
        raise DiffusionalError(f"{dataset.name}: {_place(texts, str(error))}{error}") from error
    streamed = isinstance(dataset.train, TextStream)
    length = 0 if form == "pooled" else chosen.limit if streamed else embeddings.mask.shape[1]
    record = TextRecord(chosen.name, chosen.sha256, form, length, padded=not streamed)
    every = record.of(embeddings, unique)
    condition: dict[str, Any] = {
        split: rows_of(every, _places(captions, unique)) for split, captions in texts.captions.items()
    }
    source = dataset.source
    if source is not None:
        source = Source(source.splits, arguments, condition)
    train = EmbeddedStream(dataset.train, record, chosen) if isinstance(dataset.train, TextStream) else dataset.train
    return replace(
        dataset, train=train, condition=condition, texts=Texts(texts.captions, record, condition), source=source
    )


def condition_of(record: TextRecord, captions: Sequence[str]) -> Any:
    """Return texts as a condition by the encoder of a run, each different text embedded once.

    Raises DiffusionalError as `TextRecord.condition` does.
    """
    unique = sorted(set(captions))
    return rows_of(record.of(embedded(record.load(), unique), unique), _places(captions, unique))


def _places(captions: Sequence[str], unique: Sequence[str]) -> torch.Tensor:
    """Return the position (N,) of each caption among the different ones."""
    place = {text: row for row, text in enumerate(unique)}
    return torch.tensor([place[one] for one in captions])


def _place(texts: Texts, message: str) -> str:
    """Return the split and item of the first empty caption, for errors; "" if there is none."""
    for split, captions in texts.captions.items():
        for item, one in enumerate(captions):
            if not one.strip():
                return f"{split} item {item} has an empty caption; "
    return ""


def embedded(encoder: TextEncoder, texts: Sequence[str]) -> Embeddings:
    """Return the embeddings of texts, from the cache if they are there."""
    if not encoder.stored:
        return encoder.encode(texts)
    made_from = [1, encoder.sha256, list(texts)]
    what = f"the embeddings of {len(texts)} texts"
    found = kept("texts", made_from, len(texts), ("tokens", "mask", "pooled"), lambda: _encoded(encoder, texts), what)
    return Embeddings(found["tokens"], found["mask"], found["pooled"])


def _encoded(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the embeddings of texts as tensors by name."""
    starts = range(0, len(texts), _CHUNK)
    parts = [encoder.encode(texts[i : i + _CHUNK]) for i in watched(starts, len(starts), "encoding texts")]
    found = padded(
        [tokens[mask] for part in parts for tokens, mask in zip(part.tokens, part.mask, strict=True)],
        [pooled for part in parts for pooled in part.pooled],
    )
    return {"tokens": found.tokens, "mask": found.mask, "pooled": found.pooled}
