"""`diffusional evaluate hf:FOLDER --data text.txt`, and the other commands that take masked language models."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from battery import command
from language import TEXT, bert, byte_pairs, llada, llama, word_piece

pytest.importorskip("transformers")
SHORT = TEXT[:60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bert and other have the same tokenizer; llada another one. The text is in text.txt."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("bert", "other")):
        bert(folder / name, len(word_piece(folder / name)), seed)
    llada(folder / "llada", len(byte_pairs(folder / "llada")))
    (folder / "text.txt").write_text(SHORT, encoding="utf-8")
    return folder


def test_evaluate_has_bits_per_token_character_and_byte(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, items = tmp_path / "out.json", tmp_path / "items.csv"
    options = ("--mask-token", "<|mdm_mask|>", "--length", 8, "--error", 0.2, "--no-audit")
    status, printed, _ = command(
        capsys, "evaluate", f"hf:{folder / 'llada'}", "--data", folder / "text.txt", *options, "--json", out,
        "--per-item", items,
    )  # fmt: skip
    assert status == 0
    assert "bits per character" in printed
    record = json.loads(out.read_text())
    text, nelbo = record["text"], record["nelbo"]
    assert text["characters"] == len(SHORT)
    assert text["bytes"] == len(SHORT.encode())
    bits = nelbo["value"] * 8 * record["items"]
    assert text["bits_per_character"][0] == pytest.approx(bits / len(SHORT))
    assert text["bits_per_token"][0] == pytest.approx(bits / text["tokens"])
    assert text["bits_per_character"][1] == pytest.approx(nelbo["error"] * 8 * record["items"] / len(SHORT))
    assert text["perplexity"] == pytest.approx(2 ** (bits / text["tokens"]))
    # A random network of 290 tokens.
    assert text["bits_per_token"][0] > 0.5 * math.log2(290)
    rows = list(csv.DictReader(items.open(encoding="utf-8")))
    assert sum(int(row["characters"]) for row in rows) == len(SHORT)
    assert "nats_per_masked_token" in record["check"]


def test_compare_score_and_import(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = folder / "text.txt"
    base = ("--data", text, "--length", 8)
    status, printed, error = command(
        capsys, "evaluate", f"hf:{folder / 'bert'}", f"hf:{folder / 'other'}", *base, "--error", 2, "--no-audit",
    )  # fmt: skip
    assert status == 0, error
    assert "A − B" in printed
    status, _, error = command(
        capsys, "evaluate", f"hf:{folder / 'bert'}", f"hf:{folder / 'llada'}", *base, "--mask-token", 2
    )
    assert status == 2
    assert "tokens" in error
    assert command(capsys, "score", f"hf:{folder / 'bert'}", *base, "--visits", 2)[0] == 0
    # A run by reference has the same number.
    run = tmp_path / "run"
    status, _, error = command(capsys, "import", f"hf:{folder / 'bert'}", run, "--length", 8)
    assert status == 0, error
    values = []
    for source, more in ((f"hf:{folder / 'bert'}", ("--length", 8)), (run, ())):
        out = tmp_path / f"{len(values)}.json"
        status, _, error = command(
            capsys, "evaluate", source, "--data", text, *more, "--error", 1, "--no-audit", "--no-check", "--json", out
        )
        assert status == 0, error
        values.append(json.loads(out.read_text())["nelbo"]["value"])
    assert values[0] == values[1]
    status, _, error = command(capsys, "evaluate", run, "--data", text, "--shift")
    assert status == 2
    assert "--shift" in error


def test_bad_input_is_refused_by_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"hf:{folder / 'bert'}"
    masked, empty, tokens = tmp_path / "masked.txt", tmp_path / "empty.txt", tmp_path / "tokens.npy"
    masked.write_text("the [MASK] is a mask")
    empty.write_text("\n")
    np.save(tokens, np.full((3, 8), 500))
    llama(tmp_path / "llama", 20)
    text = folder / "text.txt"
    for said, arguments in (
        ("mask", (model, "--data", masked, "--length", 8)),
        ("empty", (model, "--data", empty, "--length", 8)),
        ("got 500", (model, "--data", tokens, "--length", 8)),
        ("8", (model, "--data", tokens, "--length", 9)),
        ("LlamaForCausalLM", (f"hf:{tmp_path / 'llama'}", "--data", text)),
        ("nothing", (f"hf:{tmp_path / 'nothing'}", "--data", text)),
        ("--data", (model,)),
        ("--decoder", (model, "--data", text, "--decoder", "gaussian")),
        ("--levels", (model, "--data", text, "--levels", 3)),
        ("at most 64", (model, "--data", text, "--length", 100)),
        ("mask_token", (f"hf:{folder / 'llada'}", "--data", text)),
    ):
        status, _, error = command(capsys, "evaluate", *arguments)
        assert (status, said in error) == (2, True), (arguments, error)
    assert command(capsys, "import", model, tmp_path / "run", "--data", text)[0] == 2
    assert not (tmp_path / "run").exists()
    assert command(capsys, "classify", model, "--data", text)[0] == 2


def test_report_has_units_of_the_text_masked_positions_and_blocks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "marked.txt", tmp_path / "report.html"
    text.write_text(f"{SHORT} <b>bold</b> & {SHORT}", encoding="utf-8")
    options = ("--mask-token", "<|mdm_mask|>", "--length", 8, "--samples", 2, "--shown", 2, "--visits", 2)
    status, _, error = command(capsys, "report", f"hf:{folder / 'llada'}", "--data", text, *options, "-o", out)
    assert status == 0, error
    page = out.read_text(encoding="utf-8")
    for said in ("bits per token", "bits per character", "bits per byte", "perplexity per token", " masked</th>"):
        assert said in page, said
    assert f"{len(text.read_text()):,} characters" in page
    assert page.count('<span class="text">') == 2 + 4
    assert "<b>" not in page
    assert "are missing" not in page
    assert "Checkpoint, tokenizer" in page
    assert out.stat().st_size < 500_000


def test_reports_of_two_language_models_are_paired(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    names = [f"hf:{folder / name}" for name in ("bert", "other")]
    options = ("--data", folder / "text.txt", "--length", 8, "--samples", 0, "--items", 0)
    status, _, error = command(capsys, "report", *names, *options, "-o", out, "--json", tmp_path / "r.json")
    assert status == 0, error
    assert sorted(json.loads((tmp_path / "r.json").read_text())["comparisons"][0]) == sorted(names)
    assert "separate evaluations" not in out.read_text(encoding="utf-8")


def test_reports_refuse_options_of_language_models_for_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = f"hf:{folder / 'bert'}", folder / "text.txt"
    for said, arguments in (
        ("--data", (model,)),
        ("--saved", (model, "--data", text, "--saved")),
        ("--length", (tmp_path, "--length", 8)),
        ("--revision", (tmp_path, "--revision", "main")),
        ("at most 64", (model, "--data", text, "--length", 100)),
    ):
        status, _, error = command(capsys, "report", *arguments, "-o", tmp_path / "r.html")
        assert (status, said in error) == (2, True), (arguments, error)
    assert not (tmp_path / "r.html").exists()
