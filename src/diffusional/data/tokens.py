"""Text as sequences of tokens: blocks of a fixed length over an alphabet, and the units in which text is measured.

Alphabets:

    "text8"                the 26 letters and the space: digits are spelled out, other characters become spaces (Mahoney's text8)
    "bytes"                the 256 values of the bytes of UTF-8
    "tokenizer:NAME"       a tokenizer of transformers, a local folder or a name of the Hub (extra `text`)
    "tokens"               numbers that are tokens already, from a .npy of integers, one-dimensional or (N, length)

A text is divided into blocks of `length` tokens, and none is dropped: the last block is filled up with padding tokens (the space of text8, the
byte 0, the tokenizer's padding or end token). Their cost counts, so that a bound per character remains a bound; they do not count as characters.

`"text"` is an embedded data set: the prose of Python's own help (`pydoc_data.topics`) without repeated paragraphs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.alphabets import LETTERS as LETTERS
from diffusional.data.alphabets import alphabet_of, blocks, of_letters, to_text8
from diffusional.data.checks import declared
from diffusional.data.collection import UNSPLIT, Collection
from diffusional.data.dataset import Dataset
from diffusional.data.formats import TEXTS
from diffusional.data.origin import Origin
from diffusional.data.rows import Rows, integers
from diffusional.data.splits import Part, split_at_random
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular, text_of
from diffusional.ledger import Estimate
from diffusional.space import Categorical

# The name of the embedded text, its alphabet and length, and those of files.
EMBEDDED, LENGTH = "text", 128


@dataclass(frozen=True)
class TextUnits:
    """The cost of a text in the units that are in use. Make it with `of`, from an estimate of the NELBO.

    Attributes:
        nats: the cost of the whole text, with its padding, and `error` its Monte Carlo error.
        tokens, characters, bytes: the size of the text without its padding.

    >>> units = TextUnits(nats=math.log(2) * 240, error=math.log(2), tokens=100, characters=100, bytes=120)
    >>> units.bits_per_character, units.bits_per_byte, round(units.perplexity, 3)
    ((2.4, 0.01), (2.0, 0.008333333333333333), 5.278)
    """

    nats: float
    error: float
    tokens: int
    characters: int
    bytes: int

    @staticmethod
    def of(
        estimate: Estimate,
        raw: np.ndarray,
        alphabet: str,
        dimensions: int,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> "TextUnits":
        """Return the units of the mean NELBO of all blocks `raw` (N, L) of a text; with "tokens" a character and a byte are a token.

        `columns` are the numbers of "tokens", "characters" and "bytes" of every block, (N,) each, as they were counted when the text was read.
        Without them they are counted in what the tokens are decoded to, which is not the text itself if the tokenizer changes it.
        """
        per_item = estimate.to("nats", dimensions)
        flat = np.asarray(raw).reshape(-1)
        if columns is not None and {"tokens", "characters", "bytes"} <= columns.keys():
            tokens, characters, size = (int(columns[name].sum()) for name in ("tokens", "characters", "bytes"))
        elif alphabet == "tokens":
            tokens = characters = size = len(flat)
        else:
            known = alphabet_of(alphabet)
            last = len(flat)
            while last and flat[last - 1] == known.pad and len(flat) - last < raw.shape[1]:
                last -= 1
            text = known.decode(flat[:last])
            tokens, characters, size = last, len(text), len(text.encode())
            size = last if alphabet == "bytes" else size
        return TextUnits(per_item.value * len(raw), per_item.error * len(raw), tokens, characters, size)

    def to_json(self) -> dict[str, Any]:
        """Return all units and sizes as JSON values; each of the bits is [value, error]."""
        bits = {name: list(getattr(self, name)) for name in ("bits_per_token", "bits_per_character", "bits_per_byte")}
        sizes = {"tokens": self.tokens, "characters": self.characters, "bytes": self.bytes}
        return sizes | bits | {"perplexity": self.perplexity}

    def __str__(self) -> str:
        """Return one line with all units."""
        names = {"token": self.bits_per_token, "character": self.bits_per_character, "byte": self.bits_per_byte}
        bits = ", ".join(f"{value:.4f} ± {error:.4f} bits per {name}" for name, (value, error) in names.items())
        return f"text of {self.characters:,} characters: {bits}; perplexity {self.perplexity:.3f} per token"

    def _bits(self, number: int) -> tuple[float, float]:
        return self.nats / math.log(2) / number, self.error / math.log(2) / number

    @property
    def bits_per_token(self) -> tuple[float, float]:
        """Bits per token, and the error."""
        return self._bits(self.tokens)

    @property
    def bits_per_character(self) -> tuple[float, float]:
        """Bits per character, and the error."""
        return self._bits(self.characters)

    @property
    def bits_per_byte(self) -> tuple[float, float]:
        """Bits per byte of UTF-8, and the error."""
        return self._bits(self.bytes)

    @property
    def perplexity(self) -> float:
        """The perplexity per token, e^(nats/token): an upper bound if the cost is one."""
        return math.exp(self.nats / self.tokens)


def read_words(path: Path) -> str:
    """Return the text of a file. Raises DiffusionalError for an empty file and one that is not UTF-8."""
    text = text_of(path)
    if not text.strip():
        raise DiffusionalError(f"expected a text in {path}, got an empty file")
    return text


def tokens_of(path: Path, alphabet: str, length: int) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[str, ...]]:
    """Return the blocks (N, length) of a text file, or of a .npy of tokens; the numbers of tokens, characters and bytes of each block of a text,
    (N,) by name; and notes, one sentence each.

    Raises DiffusionalError for anything else and nothing in it.
    """
    if path.suffix == ".npy":
        return _stored(path, alphabet, length), {}, ()
    if alphabet == "tokens":
        raise DiffusionalError(
            f'expected a .npy of integers for the alphabet "tokens", got {path}; give a .npy, or another alphabet'
        )
    if not path.name.lower().endswith(TEXTS):
        raise DiffusionalError(
            f"expected a text ({', '.join(TEXTS)}) or a .npy of tokens, got {path}; rename it if it is one"
        )
    known = alphabet_of(alphabet)
    written = known.write(read_words(path))
    if not len(written.tokens):
        raise DiffusionalError(f"expected a text in the alphabet {alphabet!r}, got none of its characters in {path}")
    return blocks(written.tokens, length, known.pad), written.columns(length), written.notes(path)


def _stored(path: Path, alphabet: str, length: int) -> np.ndarray:
    check_regular(path)
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DiffusionalError(f"{path} could not be read as an array: {error}") from error
    if values.ndim not in (1, 2) or values.dtype.kind not in "iu" or not values.size:
        raise DiffusionalError(
            f"expected integers (n,) or (N, {length}), tokens, in {path}, got shape {values.shape} of type {values.dtype}"
        )
    values = values.astype(np.int64)
    if values.ndim == 1:
        return blocks(values, length, 0 if alphabet == "tokens" else alphabet_of(alphabet).pad)
    if values.shape[1] != length:
        raise DiffusionalError(f"expected sequences of {length} tokens in {path}, got {values.shape[1]}")
    return values


def paragraphs() -> list[str]:
    """Return the paragraphs of the embedded text, each once: two are the same if they have the same letters."""
    from pydoc_data.topics import topics

    seen, out = set[str](), []
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            letters = to_text8(paragraph)
            if letters and letters not in seen:
                seen.add(letters)
                out.append(" ".join(paragraph.split()))
    return out


def _embedded(alphabet: str, length: int) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Return the blocks of the embedded text by split, with the numbers of tokens, characters and bytes of each: 80, 10 and 10 % of the
    paragraphs, at random. No paragraph of a held-out split stands in the training text, and no two are the same.
    """
    every = paragraphs()
    order = np.random.default_rng(0).permutation(len(every))
    ends = {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    known, out, train = alphabet_of(alphabet), {}, ""
    for split, (start, end) in ends.items():
        some = [every[i] for i in order[round(start * len(every)) : round(end * len(every))]]
        if split == "train":
            train = to_text8("\n".join(some))
        else:
            some = [one for one in some if to_text8(one) not in train]
        written = known.write("\n".join(some))
        found, columns = blocks(written.tokens, length, known.pad), written.columns(length)
        if split != "train" and alphabet == "text8":
            kept = [of_letters(row) not in train for row in found]
            found, columns = found[kept], {name: values[kept] for name, values in columns.items()}
        out[split] = found, columns
    return out


def load_text(
    name_or_path: str | Path,
    alphabet: str | None = None,
    length: int | None = None,
    levels: int | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Dataset:
    """Load the embedded "text", a text file or a .npy of tokens as blocks of `length` tokens (128).

    Args:
        name_or_path: "text", or a file.
        alphabet: as above; defaults to "text8" for the embedded text, "bytes" for a file and "tokens" for a .npy.
        length: the number of tokens of a block.
        levels: K for the alphabet "tokens".
        split: the fractions of the blocks of a file for train, validation and test. Texts are divided in their order, since neighbouring
            blocks are alike; rows of a .npy (N, length) at random, by `seed`.

    Raises DiffusionalError for data that cannot be read, an alphabet that does not have the tokens, and too few blocks.

    >>> data = load_text("text")
    >>> data.space, "".join(LETTERS[token] for token in data.test[0, :11].tolist())[:1].isalpha()
    (Categorical(shape=(128,), levels=27, low=0.0, high=26.0, alphabet='text8', excluded=None), True)
    """
    length = LENGTH if length is None else length
    if length < 2:
        raise DiffusionalError(f"expected blocks of at least 2 tokens (length), got {length}")
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    embedded = name_or_path == EMBEDDED
    stored = path.suffix == ".npy" and not embedded
    alphabet = alphabet or ("text8" if embedded else "tokens" if stored else "bytes")
    if (alphabet == "tokens") != (levels is not None):
        raise DiffusionalError(
            f'expected levels, the number of tokens, for the alphabet "tokens" and for no other, got alphabet={alphabet!r} and levels={levels}'
        )
    size = alphabet_of(alphabet).size if levels is None else levels
    space = Categorical(length, size, alphabet)
    if embedded:
        found = _embedded(alphabet, length)
        parts = {part: Part(values, slice(None), name) for part, (values, _) in found.items()}
        columns, notes = {str(part): own for part, (_, own) in found.items()}, ()
    else:
        values, every, notes = tokens_of(path, alphabet, length)
        parts = split_at_random(values, str(path), split, seed)
        columns = dict.fromkeys(map(str, parts), every)
        if not stored or alphabet != "tokens":
            starts = np.cumsum([0, *(len(parts[part]) for part in ("train", "validation", "test"))])
            parts = {
                part: replace(parts[part], rows=slice(int(starts[i]), int(starts[i + 1])))
                for i, part in enumerate(("train", "validation", "test"))
            }
        name = path.resolve().name
    dataset = declared(name, space, parts)
    assert dataset.source is not None
    arguments: dict[str, Any] = {"name_or_path": name if embedded else str(path.absolute())}
    arguments |= {"levels": levels, "split": tuple(split), "seed": seed, "alphabet": alphabet, "length": length}
    splits = {
        part: (items, replace(origin, further=columns[part]) if origin is not None else None)
        for part, (items, origin) in dataset.source.splits.items()
    }
    source = replace(dataset.source, splits=splits, arguments=arguments)
    return replace(dataset, notes=(*dataset.notes, *notes), source=source)


def read_text(name_or_path: str | Path, space: Categorical, split: str | None = None) -> Collection:
    """Read all blocks of a text, or of a .npy of tokens, in the alphabet of a model. `split` is one of the embedded text's.

    Raises DiffusionalError for data that cannot be read, an alphabet of the model that is not known, and a split that a file does not have.
    """
    length, alphabet = space.shape[0], space.alphabet or "tokens"
    if name_or_path == EMBEDDED:
        if alphabet == "tokens":
            raise DiffusionalError(
                f"expected a model of an alphabet of text for the data {EMBEDDED!r}, got one of tokens without an alphabet; give a .npy"
            )
        found = _embedded(alphabet, length)
        if split is not None and split not in found:
            raise DiffusionalError(f"expected split to be one of {', '.join(found)}, got {split!r}")
        values = {part: found[part] for part in ([split] if split else found)}
        name, notes = EMBEDDED, ()
    else:
        if split is not None:
            raise DiffusionalError(
                f"split={split!r} was given for {name_or_path}, which has no splits; leave it out to score all blocks"
            )
        path = Path(name_or_path).expanduser()
        array, columns, notes = tokens_of(path, alphabet, length)
        values, name = {UNSPLIT: (array, columns)}, path.resolve().name
    return Collection(
        name,
        space,
        {part: Rows(array, slice(None), integers) for part, (array, _) in values.items()},
        {part: Origin(name, slice(None), len(array), further=own) for part, (array, own) in values.items()},
        notes=notes,
    )
