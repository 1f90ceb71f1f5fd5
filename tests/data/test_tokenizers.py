"""Texts through tokenizers: nothing is dropped, every character and byte is counted once, and bits per character do not depend on the tokenizer."""

import math
from pathlib import Path

import numpy as np
import pytest

import diffusional as df
from diffusional.data.alphabets import alphabet_of
from diffusional.data.tokens import TextUnits, load_text
from diffusional.space import Categorical
from language import TEXT, byte_pairs, word_piece

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Alphabets by kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    word_piece(folder / "words")
    byte_pairs(folder / "pairs")
    return {"words": f"tokenizer:{folder / 'words'}", "pairs": f"tokenizer:{folder / 'pairs'}", "bytes": "bytes"}


KINDS = ("words", "pairs", "bytes")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_and_byte_is_counted_once(kind: str, names: dict[str, str]) -> None:
    known = alphabet_of(names[kind])
    for words in (TEXT, "é", "  two  spaces  ", "日本", "a" * 50):
        found = known.write(words)
        assert int(found.characters.sum()) == len(words)
        assert int(found.bytes.sum()) == len(words.encode())
        assert int(min(found.characters.min(), found.bytes.min())) >= 0
        for length in (1, 3, 8):
            columns = found.columns(length)
            assert int(columns["tokens"].sum()) == len(found.tokens)
            assert int(columns["characters"].sum()) == len(words)
            assert int(columns["bytes"].sum()) == len(words.encode())
            assert {len(values) for values in columns.values()} == {-(-len(found.tokens) // length)}


def test_no_special_tokens_are_added_and_what_is_lost_is_known(names: dict[str, str]) -> None:
    words, pairs = (alphabet_of(names[kind]) for kind in ("words", "pairs"))
    found = pairs.write(TEXT)
    assert found.exact
    assert found.unknown == 0
    assert pairs.decode(found.tokens) == TEXT
    assert found.notes(Path("a.txt")) == ()
    found = words.write("The masked models 東京")
    assert not found.exact
    assert found.unknown >= 1
    assert words.decode(found.tokens).startswith("the masked models")
    assert len(found.notes(Path("a.txt"))) == 2
    assert words.encode("the mask").tolist() == [words.encode("the")[0], words.encode("mask")[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_character_do_not_depend_on_the_tokenizer(kind: str, names: dict[str, str], text: Path) -> None:
    """The same nats of the whole text have the same bits per character and byte in every alphabet and length."""
    words = text.read_text(encoding="utf-8")
    for length in (5, 16):
        space = Categorical(length, alphabet_of(names[kind]).size, names[kind])
        found = df.data.read(text, space)
        columns, raw = found.columns(), space.decode(found.encode()).numpy()
        per_item = df.Estimate(1000 * math.log(2) / len(raw), 0.0, 0.0, len(raw), 0)
        units = TextUnits.of(per_item, raw, names[kind], length, columns)
        assert (units.characters, units.bytes) == (len(words), len(words.encode()))
        assert units.tokens == len(alphabet_of(names[kind]).encode(words))
        assert units.bits_per_character[0] == pytest.approx(1000 / len(words))
        assert units.bits_per_byte[0] == pytest.approx(1000 / len(words.encode()))
        # All tokens, and padding only at the end.
        tokens = raw.reshape(-1)
        assert np.array_equal(tokens[: units.tokens], alphabet_of(names[kind]).encode(words))
        assert len(tokens) - units.tokens < length
    assert bool(found.notes) == (kind == "words")


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_of_a_text_have_all_of_its_characters(kind: str, names: dict[str, str], text: Path) -> None:
    data = load_text(text, names[kind], length=6)
    total = dict.fromkeys(("tokens", "characters", "bytes"), 0)
    for split in ("train", "validation", "test"):
        origin = data.origin(split)
        assert origin is not None
        for name in total:
            column = origin.column(name)
            assert len(column) == len(data.tensor(split))
            total[name] += int(column.sum())
    words = text.read_text(encoding="utf-8")
    assert (total["characters"], total["bytes"]) == (len(words), len(words.encode()))
    assert total["tokens"] == len(alphabet_of(names[kind]).encode(words))


def test_the_embedded_text_counts_its_characters() -> None:
    data = load_text("text", length=64)
    origin = data.origin("test")
    assert origin is not None
    # The last block may be padded, or have been left out.
    assert 0 <= data.tensor("test").numel() - int(origin.column("characters").sum()) < 64


def test_a_tokenizer_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="tokenizer"):
        alphabet_of(f"tokenizer:{tmp_path / 'nothing'}")
