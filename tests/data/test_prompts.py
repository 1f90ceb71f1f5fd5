"""Prompts and continuations from a file, as tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

import diffusional as df
from diffusional.data.prompts import joint_tokens, moved_spaces, read_prompts
from diffusional.space import Categorical
from language import byte_pairs, word_piece

LETTERS, BYTES = Categorical(128, 27, "text8"), Categorical(128, 256, "bytes")


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows), encoding="utf-8")
    return path


def test_rows_are_filled_up_and_counted_without_their_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "continuation": " cé"}, "", {"prompt": "a ", "continuation": "b", "more": 3}]
    found = read_prompts(written(tmp_path / "a.jsonl", rows), BYTES)
    assert found.tokens.tolist() == [[97, 98, 32, 99, 195, 169], [97, 32, 98, 98, 98, 98]]
    assert (found.given.tolist(), found.lengths.tolist(), found.free.tolist()) == ([2, 1], [6, 3], [4, 2])
    # The space at the end of a prompt belongs to its continuation.
    assert (found.characters.tolist(), found.bytes.tolist()) == ([3, 2], [4, 2])
    assert found.texts == (("ab", " cé"), ("a", " b"))
    assert found.notes == ()


def test_a_table_and_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"To be, or",not to be\n,"it\nis"\n')
    found = read_prompts(path, LETTERS, prompt="question", continuation="answer")
    # "to be or" + "not to be" is tokenized as one text.
    assert found.given.tolist() == [8, 0]
    assert found.free.tolist() == [9, 5]
    assert [one.split(" the prompt")[0] for one in found.notes] == ["in 1 of the 2 rows of a.csv"]


def test_only_ends_of_lines_separate_the_rows_of_a_table(tmp_path: Path) -> None:
    """Python's splitlines also separates at these characters of Unicode."""
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,continuation\r\na\u2028b,c\x85\x0cd\r\ne,f\r\n".encode())
    assert read_prompts(path, BYTES).texts == (("a\u2028b", "c\x85\x0cd"), ("e", "f"))


def test_a_continuation_that_merges_with_its_prompt_is_tokenized_by_itself(tmp_path: Path) -> None:
    pairs = byte_pairs(tmp_path / "pairs", "the masked the masked the masked")
    space = Categorical(64, len(pairs), f"tokenizer:{tmp_path / 'pairs'}")
    prompt, rest = "the mas", "ked the masked"
    own, both = joint_tokens(lambda text: pairs(text)["input_ids"], prompt, rest)
    assert both[: len(own)] != own
    found = read_prompts(written(tmp_path / "a.jsonl", [{"prompt": prompt, "continuation": rest}]), space)
    assert pairs.decode(found.tokens[0, : found.lengths[0]].tolist()) == prompt + rest
    assert "merges" in found.notes[0]


def test_what_a_tokenizer_loses_is_stated(tmp_path: Path) -> None:
    tokens = word_piece(tmp_path / "words")
    space = Categorical(64, len(tokens), f"tokenizer:{tmp_path / 'words'}", excluded=tokens.mask_token_id)
    found = read_prompts(written(tmp_path / "a.jsonl", [{"prompt": "The", "continuation": " MODEL 東"}]), space)
    assert [("vocabulary" in one, "exactly" in one) for one in found.notes] == [(True, False), (False, True)]
    with pytest.raises(df.DiffusionalError, match=r"mask, token 2 .* line 1"):
        read_prompts(written(tmp_path / "b.jsonl", [{"prompt": "the", "continuation": " [MASK]"}]), space)


def test_spaces_move() -> None:
    assert moved_spaces("a \n", "b") == ("a", " \nb")
    assert moved_spaces(" ", "b") == ("", " b")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "got none"),
        (["[1]"], "object .* line 1"),
        (["", "{"], "JSON in line 2"),
        ([{"prompt": "a"}], "'continuation' in line 1 .* '--continuation|'continuation' in line 1 of a.jsonl, got the fields 'prompt'"),
        ([{"continuation": "a"}], "'prompt' in line 1"),
        ([{"prompt": "a", "continuation": ""}], "empty 'continuation'"),
        ([{"prompt": "a", "continuation": None}], "as 'continuation' in line 1 .* null"),
        (["", '{"prompt": "a \\ud83d b", "continuation": "a"}'], "'prompt' in line 2 .* \\\\ud83d, which is half"),
        ([{"prompt": 3, "continuation": "a"}], "as 'prompt' in line 1 .* 3"),
        ([{"prompt": "a", "continuation": " "}], "at least one token"),
        ([{"prompt": "a", "continuation": "b" * 200}], "at most 100 tokens .* 201 in line 1"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_their_line(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(df.DiffusionalError, match=said):
        read_prompts(written(tmp_path / "a.jsonl", rows), LETTERS, most=100)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,continuation\na,b,c\n")
    with pytest.raises(df.DiffusionalError, match="2 values in line 2"):
        read_prompts(tmp_path / "a.csv", LETTERS)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(df.DiffusionalError, match="UTF-8"):
        read_prompts(tmp_path / "b.jsonl", LETTERS)
    with pytest.raises(df.DiffusionalError, match=r"\.jsonl, \.csv"):
        read_prompts(tmp_path / "c.txt", LETTERS)
    with pytest.raises(df.DiffusionalError, match="alphabet"):
        read_prompts(tmp_path / "c.jsonl", Categorical(8, 27))
