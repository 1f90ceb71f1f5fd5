"""Alphabets: how texts are written as tokens, and which part of a text each token stands for.

"text8"                the 26 letters and the space: digits are spelled out, other characters become spaces (Mahoney's text8)
"bytes"                the 256 values of the bytes of UTF-8
"tokenizer:NAME"       a tokenizer of transformers, a local folder or a name of the Hub (extra `text`)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for

LETTERS = " abcdefghijklmnopqrstuvwxyz"
_DIGITS = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
_TOKENIZER = "tokenizer:"


@dataclass(frozen=True, eq=False)
class Written:
    """A text as tokens, and the part of the text that each token stands for: every character and byte is counted once.

    Attributes:
        tokens: (n,), int64.
        characters, bytes: (n,), int64. A character of several tokens, such as one of several bytes, is counted with one of them; what a
            tokenizer leaves out between two tokens, such as a space, is counted with the one before.
        unknown: the number of tokens that stand for text that the alphabet cannot write.
        exact: whether the tokens determine the text.
    """

    tokens: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray
    unknown: int = 0
    exact: bool = True

    def columns(self, length: int) -> dict[str, np.ndarray]:
        """Return the numbers of tokens, characters and bytes of every block of `length` tokens, (N,) each, without padding."""
        every = {"tokens": np.ones_like(self.tokens), "characters": self.characters, "bytes": self.bytes}
        return {name: blocks(values, length, 0).sum(1) for name, values in every.items()}

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return what bits per character and byte do not cover, one sentence each."""
        found = []
        if self.unknown:
            found.append(
                f"{self.unknown:,} of the {len(self.tokens):,} tokens of {path.name} stand for text that is not in the tokenizer's vocabulary: bits per "
                "character count its characters, but no bits pay for which they are"
            )
        if not self.exact:
            found.append(
                f"the tokens of {path.name} do not determine its text exactly, since the tokenizer changes case, white space or characters: "
                "bits per character and byte are those of the tokens, divided by the characters and bytes of the text itself"
            )
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Alphabet:
    """A set of tokens, and how texts are written in it.

    Attributes:
        name: as in `space.Categorical`.
        size: K, the number of tokens.
        pad: the token that fills up the last block.
        write: converts a text to tokens, with what each stands for.
        decode: converts tokens (n,) to a text.
        unknown: the token that stands for text that the alphabet cannot write, if there is one.
    """

    name: str
    size: int
    pad: int
    write: Callable[[str], Written]
    decode: Callable[[np.ndarray], str]
    unknown: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """Convert a text to tokens (n,), int64."""
        return self.write(text).tokens


def to_text8(text: str) -> str:
    """Return a text in the 27 characters of text8: lower case, digits spelled out, everything else single spaces.

    >>> to_text8("On 7 May, e.g.")
    'on seven may e g'
    """
    spelled = re.sub(r"[0-9]", lambda found: f" {_DIGITS[found[0]]} ", text.lower())
    return re.sub(r"[^a-z]+", " ", spelled).strip()


def _letters(text: str) -> Written:
    """Return a text in text8. Its characters and bytes are those of text8, as everywhere."""
    codes = np.frombuffer(to_text8(text).encode("ascii"), dtype=np.uint8).astype(np.int64)
    each = np.ones_like(codes)
    return Written(np.where(codes == ord(" "), 0, codes - ord("a") + 1), each, each)


def _bytes(text: str) -> Written:
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    # All bytes of a character but the first are 10xxxxxx.
    return Written(tokens, (tokens & 0xC0 != 0x80).astype(np.int64), np.ones_like(tokens))


def of_letters(tokens: np.ndarray) -> str:
    """Return tokens (n,) of text8 as a text."""
    return "".join(LETTERS[token] for token in tokens)


def _of_bytes(tokens: np.ndarray) -> str:
    return bytes(tokens.astype(np.uint8)).decode("utf-8", errors="replace")


@cache
def alphabet_of(name: str) -> Alphabet:
    """Return an alphabet by name. Raises DiffusionalError for an unknown name, and for "tokens", which has no text.

    >>> alphabet_of("text8").encode("To be").tolist()
    [20, 15, 0, 2, 5]
    """
    if name == "text8":
        return Alphabet(name, len(LETTERS), 0, _letters, of_letters)
    if name == "bytes":
        return Alphabet(name, 256, 0, _bytes, _of_bytes)
    if name.startswith(_TOKENIZER):
        return _of_tokenizer(name)
    raise DiffusionalError(f'expected an alphabet of text, "text8", "bytes" or "tokenizer:NAME", got {name!r}')


def _of_tokenizer(name: str) -> Alphabet:
    tokenizer = load_tokenizer(name.removeprefix(_TOKENIZER))
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(token for token in ends if token is not None)

    def write(text: str) -> Written:
        # Texts are longer than what a model takes at once: they are cut into blocks later.
        given: Any = {"add_special_tokens": False, "verbose": False}
        if tokenizer.is_fast:
            found = tokenizer(text, return_offsets_mapping=True, **given)
            starts = np.asarray([start for start, _ in found["offset_mapping"]], dtype=np.int64)
        else:  # without the places of its tokens, their characters are spread evenly
            found = tokenizer(text, **given)
            starts = np.arange(len(found["input_ids"])) * len(text) // max(1, len(found["input_ids"]))
        tokens = np.asarray(found["input_ids"], dtype=np.int64)
        edges = np.append(np.maximum.accumulate(starts), len(text))[: len(tokens) + 1]
        edges[:1] = 0
        sizes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ends = np.append(0, np.cumsum(1 + (sizes > 0x7F) + (sizes > 0x7FF) + (sizes > 0xFFFF)))
        unknown = 0 if tokenizer.unk_token_id is None else int((tokens == tokenizer.unk_token_id).sum())
        return Written(tokens, np.diff(edges), np.diff(ends[edges]), unknown, decode(tokens) == text)

    def decode(tokens: np.ndarray) -> str:
        return tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)

    return Alphabet(name, len(tokenizer), pad, write, decode, tokenizer.unk_token_id)


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer of transformers, by a local folder or a name of the Hub. Code of the repository is not run.

    Raises DiffusionalError for one that cannot be loaded.
    """
    with needed_for("text"):
        from transformers import AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DiffusionalError(f"the tokenizer {name!r} could not be loaded: {error}") from error


def blocks(tokens: np.ndarray, length: int, pad: int) -> np.ndarray:
    """Return tokens (n,) as blocks (⌈n/length⌉, length), the last one filled up with `pad`.

    >>> blocks(np.arange(1, 6), 3, 0).tolist()
    [[1, 2, 3], [4, 5, 0]]
    """
    missing = -len(tokens) % length
    return np.concatenate([tokens, np.full(missing, pad, dtype=tokens.dtype)]).reshape(-1, length)
