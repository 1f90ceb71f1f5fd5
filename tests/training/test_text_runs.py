"""Runs whose condition is texts: trained, resumed, evaluated and sampled by text, with the encoder's hash on record."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.data.dataset import SPLITS
from diffusional.errors import DiffusionalError
from diffusional.text.hashed import HashedEncoder
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, DataConfig
from diffusional.training.own import own_data
from diffusional.training.run import read_run

QUIET = Console(quiet=True)
MLP = ["--model.network", "mlp", "--model.hidden", "16", "--model.blocks", "1"]
UNET = ["--model.widths", "8", "16", "--model.blocks", "1"]
SHORT = ["--batch", "16", "--schedule.steps", "10", "--steps", "3", "--condition-dropout", "0.5"]


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


def test_captions_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert told(capsys, "train", run, "--condition", "caption", *UNET, *SHORT)[0] == 0
    record = read_run(run)
    assert record.text is not None
    assert (record.text.encoder, record.text.sha256, record.text.form) == ("hashed", HashedEncoder().sha256, "pooled")
    assert record.form is not None
    assert record.form.shape == (128,)
    scores = tmp_path / "scores.csv"
    both = ["evaluate", run, run, "--other-condition", "a thick seven", "--error", 3]
    status, found, err = told(capsys, *both)
    assert status in (0, 3), err
    assert found["other_condition"] == ["a thick seven"]
    status, found, err = told(capsys, "evaluate", run, "--visits", 2, "--per-item", scores)
    assert (status, found["condition"]) == (0, "caption"), err
    captions = df.data.load("digits", condition="caption").captions_of("test")
    header, first = scores.read_text().splitlines()[:2]
    assert captions[0] == dict(zip(header.split(","), first.split(","), strict=True))["caption"]
    texts = ["a thick seven leaning right", "a zero", "test:5"]
    one = ["sample", run, "--n", 4, "--guidance", 2, "--out", tmp_path / "a.npz", "--condition", *texts]
    status, found, err = told(capsys, *one)
    assert status == 0, err
    every = [*texts[:2], captions[5], texts[0]]
    assert found["captions"] == every
    with np.load(tmp_path / "a.npz") as held:
        assert held["captions"].tolist() == every
        assert torch.from_numpy(held["condition"]).equal(HashedEncoder().encode(every).pooled)
    for given, match in (
        ([], "requires --condition"),
        (["--condition", "?"], "one word"),
        (["--condition", "test:447"], "0 to 446"),
    ):
        status, _, err = told(capsys, "sample", run, "--n", 2, *given)
        assert status == 2
        assert match in err


def test_tokens_by_cross_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--condition", "text:hashed", *UNET, *SHORT, "--model.network", "ddpm"]
    status, _, err = told(capsys, "train", run, *options)
    assert (status, run.exists()) == (2, False)
    assert "text_form" in err
    assert told(capsys, "train", run, *options, "--data.text-form", "tokens")[0] == 0
    record = read_run(run)
    assert record.form is not None
    assert (record.form.kind, record.form.masked) == ("tokens", True)
    status, _, err = told(capsys, "sample", run, "--n", 2, "--condition", "a one", "--out", tmp_path / "a.npz")
    assert status == 0, err
    status, _, err = told(capsys, "sample", run, "--n", 2, "--condition", "a " * 30)
    assert (status, "tokens" in err) == (2, True)


@pytest.mark.parametrize("condition", ["caption", "numbers:age"])
def test_other_data_are_evaluated_with_their_own_conditions(
    condition: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)

    def csv(name: str, n: int, end: str) -> Path:
        rows = [f"{generator.normal()},{generator.normal()},{i / 7},row {i} {end}" for i in range(n)]
        (tmp_path / name).write_text("\n".join(["a,b,age,title", *rows]) + "\n")
        return tmp_path / name

    text = condition == "caption"
    wanted = "caption:title" if text else condition
    options = ["--data", csv("a.csv", 40, "old"), "--condition", wanted, "--data.columns", "a", "b", *MLP, *SHORT]
    run, scores = tmp_path / "run", tmp_path / "scores.csv"
    assert told(capsys, "train", run, *options)[0] == 0
    other = csv("b.csv", 9, "new")
    status, found, err = told(capsys, "evaluate", run, "--data", other, "--visits", 2, "--per-item", scores)
    assert (status, found["items"]) in ((0, 9), (3, 9)), err
    header, *lines = scores.read_text().splitlines()
    assert ("caption" in header.split(",")) is text
    assert not text or [line for line in lines if "row 3 new" in line]
    for given, match in (("caption:name", "no 'name'"), ("numbers:b", "numbers:b: expected a column or key of texts")):
        status, _, err = told(capsys, "evaluate", run, "--data", other, "--condition", given, "--visits", 2)
        assert not text or (status == 2 and match in err)
    other.write_text(other.read_text().replace("row 3 new", "").replace(f",{3 / 7},", ",,"))
    status, _, err = told(capsys, "evaluate", run, "--data", other, "--visits", 2)
    assert (status, "3" in err) == (2, True)


SMALL = Config(data=DataConfig(condition="caption"), steps=2, batch=8, validate_every=100)
SMALL = replace(SMALL, model=replace(SMALL.model, network="mlp", hidden=16, blocks=1))


def test_a_run_is_resumed_with_the_same_texts_and_encoder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    df.train(SMALL, run, console=QUIET)
    longer = replace(SMALL, steps=3)
    data = df.data.load("digits", condition="caption")
    assert own_data(read_run(run)).captions_of("test") == data.captions_of("test")
    monkeypatch.setattr(HashedEncoder, "sha256", "f" * 64)
    with pytest.raises(DiffusionalError, match=r"hashed has changed.*fff"):
        df.train(longer, run, resume=True, console=QUIET)
    with pytest.raises(DiffusionalError, match=r"hashed has changed.*fff"):
        own_data(read_run(run))
    with pytest.raises(DiffusionalError, match=r"hashed has changed.*fff"):
        df.load_run(run).embed(["a seven"])
    monkeypatch.undo()
    assert df.load_run(run).embed(["a seven"]).shape == (1, 128)
    broken = json.loads((run / "data.json").read_text())
    broken["text"]["form"] = "words"
    (run / "data.json").write_text(json.dumps(broken))
    with pytest.raises(DiffusionalError, match=r"data\.json.*text encoder"):
        read_run(run)


def test_captions_of_warped_copies_are_measured_on_the_copies() -> None:
    plain = build_dataset(DataConfig(condition="caption"))
    data = build_dataset(DataConfig(condition="caption", warps=1))
    captions, n = data.captions_of("train"), len(plain.captions_of("train"))
    assert captions[:n] == plain.captions_of("train")
    assert sum(a != b for a, b in zip(captions[:n], captions[n:], strict=True)) > 100
    assert data.text is not None
    assert data.condition_of("train").equal(data.text.condition(captions))
    for split in SPLITS[1:]:
        assert data.condition_hash(split) == plain.condition_hash(split)
    assert data.arguments is not None
    assert (data.arguments["condition"], data.arguments["warps"]) == ("caption", 1)


def test_a_composite_s_first_stage_has_the_captions_of_the_whole_images(tmp_path: Path) -> None:
    stage = replace(SMALL, data=DataConfig(), model=replace(SMALL.model, network="unet", widths=(8, 16)))
    config = df.CompositeConfig("cascade", {"base": stage, "up": stage}, DataConfig(condition="caption"), (2,))
    stages = config.of_stages()
    assert [one.data.condition for one in stages.values()] == ["caption", "quantised:2"]
    data = build_dataset(stages["base"].data)
    assert data.captions_of("test") == df.data.load("digits", condition="caption").captions_of("test")
    assert data.space.shape == (1, 4, 4)
