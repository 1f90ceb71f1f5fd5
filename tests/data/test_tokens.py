"""Text as sequences of tokens: nothing is dropped, every character counts once, and no held-out block stands in the training text."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional.data.tokens import TextUnits, alphabet_of, blocks, load_text, read_text, to_text8
from diffusional.space import Categorical


def test_text8_has_27_characters() -> None:
    assert to_text8("  Il a 21 ans —\n\tété. ") == "il a two one ans t"
    known = alphabet_of("text8")
    assert known.decode(known.encode("To be, or not")) == "to be or not"
    assert alphabet_of("bytes").decode(alphabet_of("bytes").encode("été\n")) == "été\n"


def test_every_token_is_in_one_block() -> None:
    for n in (1, 5, 6, 7):
        tokens = np.arange(1, n + 1)
        found = blocks(tokens, 3, 0)
        assert found.shape == (-(-n // 3), 3)
        assert found.reshape(-1)[:n].tolist() == tokens.tolist()
        assert not found.reshape(-1)[n:].any()


def test_the_embedded_text_has_no_held_out_block_in_its_training_text() -> None:
    data = load_text("text")
    known = alphabet_of("text8")
    train = known.decode(data.tensor("train").numpy().reshape(-1))
    assert len(train) > 100_000
    assert len(data.test) > 50
    for split in ("validation", "test"):
        held = [known.decode(row) for row in data.tensor(split).numpy()]
        assert not any(row in train for row in held)
        assert len(set(held)) == len(held)
    assert data.space == Categorical(128, 27, "text8")
    assert df.data.load("text", length=64).space.shape == (64,)


def test_a_file_is_split_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(1003)), encoding="utf-8")
    data = df.data.load(path, length=10)
    assert data.space == Categorical(10, 256, "bytes")
    every = torch.cat([data.tensor(split) for split in ("train", "validation", "test")])
    assert bytes(every.flatten()[:1003].tolist()).decode() == path.read_text()
    assert every.flatten()[1003:].tolist() == [0] * 7
    assert data.arguments is not None
    again = df.data.load(**data.arguments)
    assert again.fingerprint("test") == data.fingerprint("test")
    read = df.data.read(path, data.space)
    assert torch.equal(read.encode().long(), every)


def test_arrays_of_tokens(tmp_path: Path) -> None:
    stream, rows = tmp_path / "stream.npy", tmp_path / "rows.npy"
    np.save(stream, np.arange(95, dtype=np.uint16) % 7)
    np.save(rows, (np.arange(80) % 7).reshape(20, 4))
    one = df.data.load(stream, levels=7, alphabet="tokens", length=4)
    other = df.data.load(rows, levels=7, alphabet="tokens", length=4)
    assert one.space == other.space == Categorical(4, 7, "tokens")
    assert sum(len(one.tensor(split)) for split in ("train", "validation", "test")) == 24
    with pytest.raises(df.DiffusionalError, match="got 4"):
        df.data.load(rows, levels=7, alphabet="tokens", length=5)
    with pytest.raises(df.DiffusionalError, match="got 6 in item"):
        df.data.load(rows, levels=6, alphabet="tokens", length=4).encode("train")
    with pytest.raises(df.DiffusionalError, match="mask"):
        df.data.read(rows, Categorical(4, 6, "tokens")).encode()


def test_units_convert_in_one_place() -> None:
    raw = blocks(alphabet_of("bytes").encode("été"), 4, 0)
    assert raw.shape == (2, 4)
    estimate = df.Estimate(3 * math.log(2), 0.3 * math.log(2), 0.0, 2, 0)
    units = TextUnits.of(estimate, raw, "bytes", 4)
    assert (units.tokens, units.characters, units.bytes) == (5, 3, 5)
    assert units.bits_per_character == pytest.approx((2.0, 0.2))
    assert units.bits_per_byte == units.bits_per_token == pytest.approx((1.2, 0.12))
    assert units.perplexity == pytest.approx(2**1.2)


def test_refusals(tmp_path: Path) -> None:
    empty, binary, text = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "text.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    text.write_text("12 34")
    with pytest.raises(df.DiffusionalError, match="empty"):
        df.data.load(empty)
    with pytest.raises(df.DiffusionalError, match="UTF-8"):
        df.data.load(binary)
    with pytest.raises(df.DiffusionalError, match="'runes'"):
        df.data.load(text, alphabet="runes")
    with pytest.raises(df.DiffusionalError, match="length"):
        df.data.load(text, length=1)
    with pytest.raises(df.DiffusionalError, match="levels"):
        df.data.load(text, levels=256)
    with pytest.raises(df.DiffusionalError, match="condition"):
        df.data.load(text, condition="label")
    with pytest.raises(df.DiffusionalError, match="size=8"):
        df.data.load("text", size=8)
    with pytest.raises(df.DiffusionalError, match="text"):
        df.data.read(text, df.Discrete((4,), 3))
    with pytest.raises(df.DiffusionalError, match="split"):
        read_text(text, Categorical(4, 256, "bytes"), "test")
    with pytest.raises(df.DiffusionalError, match=r"\.npy"):
        read_text(text, Categorical(4, 256, "tokens"))
    assert "three" in alphabet_of("text8").decode(
        read_text(text, Categorical(32, 27, "text8")).items["all"][:].numpy()[0]
    )
