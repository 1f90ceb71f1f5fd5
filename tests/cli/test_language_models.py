"""`diffusional evaluate hf:FOLDER --data text.txt`, and the other commands that take masked language models."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from battery import command
from diffusional.interop.masked_lm import load_masked_lm
from diffusional.ledger import with_error
from diffusional.models.masked import MaskedDiffusion
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.space import Categorical
from diffusional.training.config import Config, DataConfig, ModelConfig
from diffusional.training.loop import train
from language import TEXT, bert, byte_pairs, llada, llama, word_piece

AutoTokenizer = pytest.importorskip("transformers").AutoTokenizer
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


def test_a_model_of_transformers_without_its_prefix_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluate", "check", "score"):
        status, _, error = command(capsys, name, folder / "bert", "--data", folder / "text.txt")
        assert status == 2
        assert f"give hf:{folder / 'bert'}" in error


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


QUESTIONS = [
    ("The masked model", " fills what is hidden"),
    ("one word after the ", "other"),
    ("the", " model"),
    ("", "a mask"),
]


@pytest.fixture(scope="module")
def questions(folder: Path) -> Path:
    path = folder / "qa.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p, "continuation": c}) for p, c in QUESTIONS))
    return path


def test_prompts_are_never_masked_and_only_continuations_count(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, items = tmp_path / "out.json", tmp_path / "items.csv"
    status, printed, error = command(
        capsys, "evaluate", f"hf:{folder / 'bert'}", "--data", questions, "--visits", 16, "--json", out, "--per-item", items,
    )  # fmt: skip
    assert status == 0, error
    assert "the prompt is empty" in error
    record, rows = json.loads(out.read_text()), list(csv.DictReader(items.open(encoding="utf-8")))
    model = load_masked_lm(folder / "bert", 24)
    tokens = [
        AutoTokenizer.from_pretrained(folder / "bert")(one, add_special_tokens=False)["input_ids"]
        for one, _ in QUESTIONS
    ]
    lines = [line for line in printed.splitlines() if "ln p " in line and " | " in line]
    for row, (prompt, continuation), before, line in zip(rows, QUESTIONS, tokens, lines, strict=True):
        free = int(row["tokens"])
        # The number of one token is ln p; that of more is a bound even where all masks were visited.
        assert ("ln p =" in line) == line.endswith(" nats, exact") == (free == 1)
        assert line.endswith("from all masks") == (1 < free <= 4)
        # By the sum over all masks, of the row alone.
        whole = AutoTokenizer.from_pretrained(folder / "bert")(prompt + continuation, add_special_tokens=False)[
            "input_ids"
        ]
        assert (len(before), len(before) + free) == (int(row["prompt_tokens"]), len(whole))
        x = torch.tensor([whole]).float()
        alone = PromptedDiffusion(
            MaskedDiffusion(model.network, Categorical(len(whole), model.space.levels, excluded=model.space.excluded))
        )
        if len(whole) <= 16:
            exact = float(alone.exact_ledger(x, prompts(x, len(before))).nelbo)
            assert abs(float(row["nelbo"]) - exact) <= 5 * float(row["error"]) + 1e-5
        assert float(row["log_likelihood"]) == -float(row["nelbo"])
        assert (float(row["error"]) == 0) == (2**free - 1 <= 16)
        spaces = len(prompt) - len(prompt.rstrip())
        assert int(row["characters"]) == len(continuation) + spaces
    text = record["text"]
    assert (text["tokens"], text["characters"]) == tuple(
        sum(int(row[k]) for row in rows) for k in ("tokens", "characters")
    )
    nats = sum(float(row["nelbo"]) for row in rows)
    assert record["nelbo_nats"]["value"] * len(rows) == pytest.approx(nats)
    assert text["bits_per_token"][0] == pytest.approx(nats / math.log(2) / text["tokens"])
    assert text["perplexity"] == pytest.approx(math.exp(nats / text["tokens"]))
    assert record["nelbo_nats"]["error"] * len(rows) == pytest.approx(
        math.sqrt(sum(float(row["error"]) ** 2 for row in rows))
    )


def test_two_models_are_compared_on_prompts(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, items, table = tmp_path / "out.json", tmp_path / "items.csv", tmp_path / "qa.csv"
    table.write_text("question,answer\n" + "\n".join(f"{p},{c}" for p, c in QUESTIONS))
    base = ("--data", table, "--prompt-column", "question", "--continuation-column", "answer", "--error", 0.05)
    status, printed, error = command(
        capsys, "evaluate", f"hf:{folder / 'bert'}", f"hf:{folder / 'other'}", *base, "--json", out, "--per-item", items
    )
    assert status == 0, error
    assert "A − B, paired" in printed
    record, rows = json.loads(out.read_text()), list(csv.DictReader(items.open(encoding="utf-8")))
    differences = [float(row["nelbo_a"]) - float(row["nelbo_b"]) for row in rows]
    assert [float(row["difference"]) for row in rows] == pytest.approx(differences)
    assert record["difference_nats"]["error"] <= 0.05 * math.log(2) * record["text"]["a"]["tokens"] / len(rows) + 1e-12
    # Another tokenizer, and the same model twice.
    for other, said in ((f"hf:{folder / 'llada'}", "tokens"), (f"hf:{folder / 'bert'}", "twice")):
        more = ("--mask-token", 2) if "llada" in other else ()
        status, _, error = command(capsys, "evaluate", f"hf:{folder / 'bert'}", other, *base, *more)
        assert (status, said in error) == (2, True), error


def test_prompts_of_an_imported_model_and_of_a_run(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, values = tmp_path / "run", []
    assert command(capsys, "import", f"hf:{folder / 'bert'}", run, "--length", 30)[0] == 0
    for source in (f"hf:{folder / 'bert'}", run):
        out = tmp_path / f"{len(values)}.json"
        status, printed, error = command(capsys, "evaluate", source, "--data", questions, "--error", 0.1, "--json", out)
        assert status == 0, error
        assert "its continuation given its prompt" in printed
        values.append(json.loads(out.read_text())["nelbo_nats"])
    assert values[0] == values[1]
    # A run of our own network.
    config = Config(
        data=DataConfig("text", length=16),
        model=ModelConfig("masked", hidden=8, blocks=1, heads=2),
        steps=2,
    )
    train(config, tmp_path / "own", console=Console(quiet=True))
    table = tmp_path / "qa.csv"
    table.write_text("prompt,continuation\nto be,or not\n")
    out = tmp_path / "own.json"
    status, _, error = command(capsys, "evaluate", tmp_path / "own", "--data", table, "--visits", 64, "--json", out)
    assert status == 0, error
    text = json.loads(out.read_text())["text"]
    assert text["tokens"] == text["characters"] == len("or not")
    assert abs(text["bits_per_token"][0] - math.log2(27)) < 1


def test_bad_prompts_are_refused(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, empty = f"hf:{folder / 'bert'}", tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "a", "continuation": ""}')
    for said, arguments in (
        ("line 1 of empty.jsonl", (model, "--data", empty)),
        ("--prompt-column", (model, "--data", questions, "--prompt-column", "question")),
        ("--data FILE.jsonl", (model, "--data", folder / "text.txt", "--prompt-column", "question")),
        ("--data FILE.jsonl", (model, "--continuation-column", "answer")),
        ("at most 8 tokens", (model, "--data", questions, "--length", 8)),
        ("--item-error", (model, "--data", questions, "--item-error", 0.1)),
        ("--sweep", (model, "--data", questions, "--sweep", "--html", tmp_path / "a.html")),
        ("an .html file for --html", (model, "--data", questions, "--html", tmp_path / "a.txt")),
        ("both", (model, "--data", questions, "--visits", 8, "--error", 0.1)),
        ("at least 4", (model, "--data", questions, "--visits", 2)),
        ("leave one out", (model, "--data", questions, "--visits", 8, "--max-evaluations", 100)),
        ("--error to be a positive number, got -1", (model, "--data", questions, "--error", -1)),
        ("max_evaluations to be at least", (model, "--data", questions, "--max-evaluations", 1)),
        ("it is for Hub ids", (model, "--data", questions, "--revision", "main")),
        ("--visits", (model, f"hf:{folder / 'other'}", "--data", questions, "--visits", 8)),
        ("nothing", (f"hf:{tmp_path / 'nothing'}", "--data", questions)),
    ):
        status, _, error = command(capsys, "evaluate", *arguments)
        assert (status, said in error) == (2, True), (arguments, error)
    # Too few evaluations for the target: exit status 3.
    status, _, error = command(
        capsys, "evaluate", model, "--data", questions, "--error", 1e-4, "--max-evaluations", 100
    )
    assert status == 3, error
    assert "bits per token after" in error
    for said, arguments in (
        ("--samples", (model, "--data", questions, "--samples", 3)),
        ("got nothing.json", (model, "nothing.json", "--data", questions)),
    ):
        status, _, error = command(capsys, "report", *arguments, "-o", tmp_path / "a.html")
        assert (status, said in error) == (2, True), (arguments, error)


def test_a_report_of_prompts_counts_scored_tokens(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages, model = [tmp_path / f"{name}.html" for name in ("evaluated", "report", "saved")], f"hf:{folder / 'bert'}"
    out, items = tmp_path / "out.json", tmp_path / "items.csv"
    asked = ("evaluate", model, "--data", questions, "--visits", 16)
    assert command(capsys, *asked, "--html", pages[0], "--json", out, "--per-item", items)[0] == 0
    status, _, error = command(capsys, "report", model, "--data", questions, "--error", 0.02, "-o", pages[1])
    assert status == 0, error
    assert command(capsys, "report", out, "-o", pages[2])[0] == 0
    evaluated, reported, saved = (path.read_text(encoding="utf-8") for path in pages)
    rows = list(csv.DictReader(items.open(encoding="utf-8")))
    free, nats = (np.array([float(row[key]) for row in rows]) for key in ("tokens", "nelbo"))
    record = json.loads(out.read_text())
    bits, error = record["text"]["bits_per_token"]
    assert bits == pytest.approx(nats.sum() / math.log(2) / free.sum())
    # The error over rows is that of a ratio.
    rest = nats - nats.sum() / free.sum() * free
    ratio = rest.std(ddof=1) / math.sqrt(4) / free.mean() / math.log(2)
    assert record["prompts"]["item_error"] == pytest.approx(ratio, rel=0.01)
    for text in (evaluated, saved):
        assert f"<strong>{bits:.4f}</strong> ± {error:.4f} bits/token" in text
        assert "bits/dim</th>" not in text
        assert f"{free.sum():.0f} scored tokens of 4 rows" in text
    assert "The ledger of" not in saved  # a record has no rows
    for text in (evaluated, reported):
        for number in range(4):
            assert f"qa.jsonl, row {number}<" in text
        assert text.index("Hardest</h3>") < text.index("Easiest</h3>")
        assert "The masked model<mark> fills what is hidden</mark>" in text
    first = evaluated[evaluated.index("Hardest</h3>") :]
    assert first.index(f"qa.jsonl, row {int((nats / free).argmax())}<") < first.index("row", first.index("row") + 9)


def test_reports_of_two_models_on_prompts(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference is per scored token, and a copy of a model is said to be one."""
    page, out, saved = tmp_path / "two.html", tmp_path / "two.json", tmp_path / "saved.html"
    shutil.copytree(folder / "bert", tmp_path / "copy")
    for other, same in ((folder / "other", False), (tmp_path / "copy", True)):
        asked = ("evaluate", f"hf:{folder / 'bert'}", f"hf:{other}", "--data", questions, "--error", 0.05)
        status, printed, error = command(capsys, *asked, "--html", page, "--json", out)
        assert status == 0, error
        assert ("identical weights" in printed) == same
        assert command(capsys, "report", out, "-o", saved)[0] == 0
        bits, off = json.loads(out.read_text())["text"]["difference"]["bits_per_token"]
        for path in (page, saved):
            text = path.read_text(encoding="utf-8")
            assert ("identical weights" in text) == same
            if not same:
                value, error = with_error(abs(bits), off)
                assert f"by {value} ± {error} bits/token on these 4 items" in text
            assert "the prompt is empty" in text
            assert "<h3>All models</h3>" in text
