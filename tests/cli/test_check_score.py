"""`check` and `score` from the command line."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from battery import command
from diffusional import cli
from diffusional.cli.items import ChosenItems
from diffusional.cli.score import name_of
from diffusional.evaluation.score import Scores, score
from interop.pipelines import saved, unet

TINY = (
    "--model.network",
    "mlp",
    "--model.hidden",
    "16",
    "--model.blocks",
    "1",
    "--batch",
    "16",
    "--optimizer.lr",
    "0.01",
    "--optimizer.warmup",
    "5",
    "--steps",
    "120",
)


def pictures(n: int, seed: int, bright: bool = False) -> np.ndarray:
    """Items (n, 1, 4, 4) of 8 levels: dark with few bright pixels, or the reverse."""
    images = np.random.default_rng(seed).choice(8, (n, 1, 4, 4), p=[0.65, 0.15, 0.1, 0.04, 0.03, 0.01, 0.01, 0.01])
    return (7 - images if bright else images).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npy, outliers.npy and run/, trained on the first."""
    place = tmp_path_factory.mktemp("score")
    np.save(place / "data.npy", pictures(200, 0))
    np.save(place / "outliers.npy", pictures(20, 1, bright=True))
    np.save(place / "one.npy", pictures(1, 2))
    data = ("--data", str(place / "data.npy"), "--data.levels", "8", "--schedule.steps", "20")
    cli.main(["train", str(place / "run"), *data, *TINY])
    return place


def recorded(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> tuple[dict[str, Any], str]:
    """The record of a command with an expected exit status, and what it printed."""
    found, out, err = command(capsys, *args, "--json", "-")
    assert found == status, err
    return json.loads(out), err


def test_check_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, printed = recorded(capsys, "check", folder / "run", "--items", 8)
    assert record["works"] is True
    assert record["findings"] == []
    assert record["items"] == 8
    assert "nothing found" in printed
    few, _ = recorded(capsys, "check", folder / "run", "--items", 8, "--slopes-only")
    assert few["network_evaluations"] < record["network_evaluations"] / 5
    assert few["slope"] == pytest.approx(record["slope"])


def test_check_of_a_checkpoint_that_is_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A network that was never trained fits no reading: status 1, and the reason is printed.
    network = unet(dtype=torch.float32, sample_size=8)
    checkpoint = saved(tmp_path / "model", DDPMScheduler(num_train_timesteps=50), network)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    record, printed = recorded(
        capsys, "check", checkpoint, "--data", tmp_path / "images.npy", "--levels", 256, "--slopes-only", status=1
    )
    assert record["works"] is False
    assert "untrained" in record["findings"][0]
    assert record["findings"][0] in printed
    assert "from the config" in printed


def test_labels_of_outliers_are_read_from_the_named_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = unet(dtype=torch.float32, sample_size=8, num_class_embeds=2)
    checkpoint = saved(tmp_path / "model", DDPMScheduler(num_train_timesteps=6), network)
    images = np.random.default_rng(0).integers(0, 17, (4, 1, 8, 8))
    data = tmp_path / "images.npz"
    np.savez(data, images=images, y=np.arange(4) % 2)
    other = tmp_path / "other.npz"
    np.savez(other, images=images, label=np.arange(4) % 2)
    for option in ("--outliers", "--reference"):
        files = ("--data", data, option, other, "--levels", 17, "--condition", "y")
        status, _, err = command(capsys, "score", checkpoint, *files)
        assert status == 2
        assert "other.npz" in err.splitlines()[-1]
    np.save(tmp_path / "images.npy", images)
    status, _, err = command(capsys, "score", checkpoint, "--data", tmp_path / "images.npy", "--levels", 17)
    assert status == 2
    assert all(word in err for word in ("labels", "images.npy", "np.savez"))


def test_scores_of_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, figure, maps = tmp_path / "scores.csv", tmp_path / "ends.png", tmp_path / "maps.npz"
    options = ("--visits", 4, "--bands", 3, "--per-item", target, "--figure", figure, "--shown", 2, "--maps", maps)
    record, printed = recorded(capsys, "score", folder / "run", *options)
    with target.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == record["items"]
    assert {"nelbo", "error", "percentile", "typicality", "band_1", "band_3", "profile", "row"} <= set(rows[0])
    mean = sum(float(row["nelbo"]) for row in rows) / len(rows)
    assert record["nelbo"]["value"] == pytest.approx(mean / (16 * np.log(2)))
    assert figure.stat().st_size > 1000
    # The items at the ends are listed by draws of their own, which the file has in columns of their own.
    again = [row for row in rows if row["nelbo_again"] != "nan"]
    worst, best = ((max, min)[k](again, key=lambda row: float(row["nelbo_again"])) for k in (0, 1))
    listed = printed[printed.index("least likely:") :].splitlines()
    assert f"row {worst['row']} " in listed[1]
    assert len([line for line in listed if "percentile" in line]) == 4
    assert len(again) == 4
    assert all(row["nelbo_again"] != row["nelbo"] for row in again)
    for row, entry in ((worst, record["least_likely"][0]), (best, record["most_likely"][0])):
        assert entry["nelbo"]["value"] * 16 * np.log(2) == pytest.approx(float(row["nelbo_again"]))
        assert entry["visits"] == float(row["visits_again"])
        assert entry["item"] == int(row["item"])
    spent = record["evaluations_of_the_ends"]
    assert spent >= sum(float(row["visits_again"]) for row in again)
    assert f"{spent:,} network evaluations" in printed
    with np.load(maps) as found:
        assert found["total"].shape == (4, 1, 4, 4)
        assert sorted(found["item"].tolist()) == sorted(int(row["item"]) for row in again)
    assert record["reference"].endswith("validation")


def test_scores_whose_error_hides_their_rank(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(*args: Any, **kwargs: Any) -> Scores:
        found = score(*args, **kwargs)
        error = found.error.clone()
        error += 1e4 * error.max()
        return replace(found, error=error)

    options = ("score", folder / "run", "--visits", 4)
    _, ordinary = recorded(capsys, *options)
    assert "warning" not in ordinary
    assert "--split all" in ordinary  # only the test split was scored
    monkeypatch.setattr("diffusional.evaluation.score.score", noisy)
    _, printed = recorded(capsys, *options, "--split", "all")
    warning = printed[printed.index("warning: ") :]
    # Those at the ends have been drawn again.
    assert "190 of 200 items" in warning
    assert all(word in warning for word in ("row ", "--visits", "--item-error"))
    assert "--split all" not in printed


def test_images_are_listed_without_a_row() -> None:
    x = torch.zeros(2, 1)
    one_each = {"source": np.array(["a/1.png", "a/2.png"]), "row": np.array([0, 0])}
    table = {"source": np.array(["t.csv", "t.csv"]), "row": np.array([0, 1])}
    assert name_of(ChosenItems("a", "all", x, one_each, False), 1) == "2.png"
    assert name_of(ChosenItems("t.csv", "all", x, table, False), 1) == "t.csv, row 1"


def test_outliers_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--visits", 4, "--outliers", folder / "outliers.npy", "--bands", 4)
    record, printed = recorded(capsys, "score", folder / "run", *options)
    assert set(record["auroc"]) == {"nelbo", "typicality", "profile"}
    assert record["auroc"]["nelbo"]["value"] > 0.9
    assert 0 <= record["auroc"]["nelbo"]["error"] < 0.1
    assert record["outliers"]["items"] == 20
    assert "AUROC" in printed
    # Equal items have equal scores on both sides.
    same, _ = recorded(capsys, "score", folder / "run", "--visits", 4, "--data", folder / "outliers.npy", *options[2:])
    assert same["auroc"]["nelbo"]["value"] == pytest.approx(0.5, abs=1e-12)
    # Items keep their scores when outliers are scored beside them.
    alone, _ = recorded(capsys, "score", folder / "run", "--visits", 4, "--bands", 4)
    assert alone["nelbo"]["value"] == pytest.approx(record["nelbo"]["value"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--visits", 1), ("visits", "2", "1")),
        (("--per-item", "scores.txt"), ("--per-item", "scores.txt")),
        (("--figure", "ends.gif"), ("--figure", "ends.gif")),
        (("--outliers", "nothing.npy"), ("nothing.npy",)),
        (("--bands", 0), ("bands",)),
        (("--maps", "maps.csv"), ("--maps", "maps.csv", ".npz")),
        (("--maps", "one.npy"), ("--maps", "one.npy")),
        (("--unclipped",), ("--unclipped", "run")),
        (("--most", 1), ("--most", "2", "1")),
        (("--outliers", "one.npy"), ("--outliers", "2", "1")),
        (("--reference", "one.npy"), ("--reference", "2", "1")),
        (("--data", "one.npy", "--outliers", "outliers.npy"), ("one.npy", "2", "1")),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    given = [folder / word if str(word) in ("one.npy", "outliers.npy") else word for word in options]
    status, _, err = command(capsys, "score", folder / "run", *given)
    assert status == 2
    assert all(word in err for word in words)


def test_the_scores_replace_neither_an_input_nor_the_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    for option in ("--data", "--reference", "--outliers"):
        status, _, err = command(capsys, "score", folder / "run", option, table, "--per-item", table)
        assert status == 2
        assert "--per-item" in err
    status, _, err = command(capsys, "score", folder / "run", "--per-item", table, "--json", table)
    assert status == 2
    assert table.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_check_refuses_what_has_no_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "data.npy", pictures(60, 0))
    data = ("--data", str(tmp_path / "data.npy"), "--data.levels", "8", "--model.kind", "vae")
    cli.main(["train", str(tmp_path / "vae"), *data, *TINY[4:-2], "--steps", "1"])
    status, _, err = command(capsys, "check", tmp_path / "vae")
    assert status == 2
    assert "VAE" in err
