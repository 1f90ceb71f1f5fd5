"""Prompts and their continuations: a row of a file each, for the likelihood of a continuation given its prompt.

    {"prompt": "The capital of France is", "continuation": " Paris"}          *.jsonl, a line of JSON for each row
    prompt,continuation                                                       *.csv, with a header

Prompt and continuation are tokenized together, as language models read them. Spaces at the end of a prompt belong to its continuation. If the
tokens of both together do not begin with those of the prompt, since the tokenizer merges the two at their border, the continuation is tokenized
by itself, and a note states in how many rows. Every character of a continuation is counted once; those of prompts are not counted.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusional.data.alphabets import alphabet_of
from diffusional.data.excerpt import listed
from diffusional.errors import DiffusionalError
from diffusional.files import text_of
from diffusional.space import Categorical

PROMPT, CONTINUATION = "prompt", "continuation"
# Ends of the names of files of prompts.
ENDINGS = (".jsonl", ".csv")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows of a file as tokens. Shorter rows are filled up with their last token, which is neither given nor predicted.

    Attributes:
        tokens: (N, L), int64: the prompt, the continuation, and the filling.
        given: (N,), the number of tokens of each prompt.
        lengths: (N,), the number of tokens of each row without the filling.
        characters, bytes: (N,), the size of each continuation.
        texts: the prompt and the continuation of each row.
        notes: what the numbers do not cover, one sentence each.
    """

    tokens: np.ndarray
    given: np.ndarray
    lengths: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray
    texts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def free(self) -> np.ndarray:
        """The number of tokens of each continuation (N,)."""
        return self.lengths - self.given


def moved_spaces(prompt: str, continuation: str) -> tuple[str, str]:
    """Return prompt and continuation, with the spaces at the end of the prompt at the beginning of the continuation.

    >>> moved_spaces("The sky is ", "blue")
    ('The sky is', ' blue')
    """
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :] + continuation


def joint_tokens(encode: Callable[[str], Sequence[int]], prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, and those of prompt and continuation together."""
    return list(encode(prompt)) if prompt else [], list(encode(prompt + continuation))


def is_prompts(name: str) -> bool:
    """Return whether a file has rows of prompts and continuations, by its name.

    >>> is_prompts("qa.jsonl"), is_prompts("book.txt")
    (True, False)
    """
    return name.lower().endswith(ENDINGS)


def read_prompts(
    path: str | Path,
    space: Categorical,
    *,
    prompt: str = PROMPT,
    continuation: str = CONTINUATION,
    most: int | None = None,
) -> Prompts:
    """Read prompts and continuations in the alphabet of a space; its length does not matter.

    Args:
        path: a .jsonl or a .csv.
        prompt, continuation: the names of the two fields. A prompt may be empty.
        most: the most tokens of prompt and continuation.

    Raises DiffusionalError, with the line, for a row without one of the fields, a field that is not a text of Unicode, a continuation without tokens, a row
    of more than `most` tokens, and a token that the space does not have or that is its mask; and for a file that cannot be read or has no rows.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "qa.jsonl"
    >>> _ = path.write_text('{"prompt": "to be or", "continuation": " not to be"}')
    >>> rows = read_prompts(path, Categorical(128, 27, "text8"))
    >>> rows.given.tolist(), rows.free.tolist(), rows.characters.tolist()
    ([8], [10], [10])
    """
    path = Path(path).expanduser()
    if space.alphabet in (None, "tokens"):
        raise DiffusionalError(
            f"expected a model of an alphabet of text for the prompts of {path}, got one of tokens without an alphabet"
        )
    alphabet = alphabet_of(space.alphabet)

    def encode(text: str) -> list[int]:
        return alphabet.encode(text).tolist()

    found: list[tuple[list[int], list[int], str, str]] = []
    apart = unknown = inexact = 0
    for line, row in _rows(path):
        where = f"line {line} of {path.name}"
        before, after = moved_spaces(_text(row, prompt, where), _text(row, continuation, where))
        if not after:
            raise DiffusionalError(f"expected a continuation in {where}, got an empty {continuation!r}")
        own, both = joint_tokens(encode, before, after)
        free = both[len(own) :]
        if both[: len(own)] != own:
            apart, free = apart + 1, encode(after)
        if not free:
            raise DiffusionalError(
                f"expected a continuation of at least one token in {where}, got {after[:40]!r}, of which the alphabet {space.alphabet!r} has nothing"
            )
        _check(own + free, space, where, most)
        if alphabet.unknown is not None:
            unknown += free.count(alphabet.unknown)
        # The characters of text8 are its tokens, so that nothing else is lost.
        inexact += space.alphabet != "text8" and alphabet.decode(np.array(own + free)) != before + after
        found.append((own, free, before, after))
    if not found:
        raise DiffusionalError(f"expected rows of a {prompt} and a {continuation} in {path}, got none")
    given, lengths = (
        np.array([len(own) for own, *_ in found]),
        np.array([len(own) + len(free) for own, free, *_ in found]),
    )
    width = max(2, int(lengths.max()))
    tokens = np.array(
        [own + free + [free[-1]] * (width - len(own) - len(free)) for own, free, *_ in found], dtype=np.int64
    )
    sizes = [
        (len(free), len(free)) if space.alphabet == "text8" else (len(after), len(after.encode()))
        for _, free, _, after in found
    ]
    characters, size = np.array(sizes).T
    texts = tuple((before, after) for *_, before, after in found)
    counts = {"apart": apart, "unknown": unknown, "inexact": inexact, "empty": int((given == 0).sum())}
    notes = _notes(path.name, counts, int((lengths - given).sum()), len(found))
    return Prompts(tokens, given, lengths, characters, size, texts, notes)


def _notes(name: str, counts: Mapping[str, int], tokens: int, rows: int) -> tuple[str, ...]:
    """Return what the numbers do not cover, one sentence each, if it occurs."""
    some = {key: f"in {count:,} of the {rows:,} rows of {name}" for key, count in counts.items()}
    sentences = {
        "apart": f"{some['apart']} the tokenizer merges prompt and continuation at their border: there the continuation was tokenized by itself",
        "unknown": f"{counts['unknown']:,} of the {tokens:,} tokens of the continuations of {name} stand for text that is not in the tokenizer's "
        "vocabulary: bits per character count its characters, but no bits pay for which they are",
        "inexact": f"{some['inexact']} the tokens do not determine the text exactly, since the tokenizer changes case, white space or characters: "
        "bits per character and byte are those of the tokens, divided by the characters and bytes of the text itself",
        "empty": f"{some['empty']} the prompt is empty: the number is that of a text without a prompt",
    }
    return tuple(sentences[key] for key, count in counts.items() if count)


def _check(tokens: list[int], space: Categorical, where: str, most: int | None) -> None:
    if most is not None and len(tokens) > most:
        raise DiffusionalError(
            f"expected at most {most} tokens of prompt and continuation, got {len(tokens)} in {where}; shorten the prompt at its beginning"
        )
    if space.excluded in tokens:
        raise DiffusionalError(
            f"expected a text without the mask, token {space.excluded} of the vocabulary, got it in {where}"
        )
    if max(tokens) >= space.levels:
        raise DiffusionalError(f"expected tokens 0 … {space.levels - 1}, got {max(tokens)} in {where}")


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field of a row. Raises DiffusionalError for one that is missing or not a text."""
    if name not in row:
        fields = listed([str(one) for one in row]) or "none"
        raise DiffusionalError(
            f"expected the field {name!r} in {where}, got the fields {fields}; name the fields with --prompt-column and --continuation-column "
            "(prompt= and continuation= in Python)"
        )
    value = row[name]
    if not isinstance(value, str):
        raise DiffusionalError(f"expected a text as {name!r} in {where}, got {json.dumps(value)[:40]}")
    half = next((one for one in value if "\ud800" <= one <= "\udfff"), None)
    if half is not None:
        raise DiffusionalError(
            f"expected characters of Unicode as {name!r} in {where}, got \\u{ord(half):04x}, which is half of one; write both halves, or leave it out"
        )
    return value


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a file with their lines. Raises DiffusionalError for a file that cannot be read."""
    if not is_prompts(path.name):
        raise DiffusionalError(f"expected a file of prompts ({', '.join(ENDINGS)}), got {path}")
    text = text_of(path, "utf-8-sig")
    if path.suffix.lower() == ".csv":
        yield from _of_table(path, text)
        return
    for line, own in enumerate(text.split("\n"), 1):
        if not own.strip():
            continue
        try:
            row = json.loads(own)
        except json.JSONDecodeError as error:
            raise DiffusionalError(
                f"expected JSON in line {line} of {path.name}, got {own[:40]!r} ({error})"
            ) from error
        if not isinstance(row, dict):
            raise DiffusionalError(
                f"expected an object with a prompt and a continuation in line {line} of {path.name}, got {own[:40]!r}"
            )
        yield line, row


def _of_table(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not splitlines, which also breaks a line at the separators of Unicode, such as U+2028.
    reader = csv.DictReader(io.StringIO(text, newline="\n"), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DiffusionalError(
                    f"expected {len(reader.fieldnames or ())} values in line {reader.line_num} of {path.name}, those of its header, got another number"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DiffusionalError(f"line {reader.line_num} of {path.name} could not be read ({error})") from error
