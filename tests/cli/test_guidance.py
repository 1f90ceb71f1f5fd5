"""Guidance from the command line: condition dropout in training, guided samples, and the bounds of guided chains."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusional as df
from battery import command
from diffusional import cli
from diffusional.conditions import missing_rows

SMALL = [
    *("--model.network", "mlp", "--model.hidden", "32", "--model.blocks", "1", "--model.dropout", "0"),
    *("--batch", "16", "--schedule.steps", "10", "--optimizer.lr", "0.01", "--optimizer.warmup", "5"),
    *("--validate-every", "100", "--steps", "120"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, whose images are brighter for each of three classes, and two runs: `guided` has condition dropout, `with` has none."""
    place, rng = tmp_path_factory.mktemp("guidance"), np.random.default_rng(0)
    labels = rng.permutation(np.arange(90) % 3)
    x = (4 * labels[:, None, None] + rng.integers(0, 3, (90, 4, 4))).astype(np.uint8)
    np.savez(place / "data.npz", x=x, y=np.array(["ant", "bee", "cow"])[labels])
    data = ["--data", str(place / "data.npz"), "--data.levels", "11", "--condition", "label"]
    cli.main(["train", str(place / "guided"), *data, *SMALL, "--condition-dropout", "0.3"])
    cli.main(["train", str(place / "with"), *data, *SMALL[:-2], "--steps", "2"])
    return place


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json -; its exit status, its record and its messages."""
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


def test_condition_dropout_trains_a_network_with_and_without_labels(folder: Path) -> None:
    model = df.load(folder / "guided")
    data = df.data.load(folder / "data.npz", levels=11, condition="label")
    x, c = data.encode("train"), data.condition_of("train")

    def bound(condition: Any) -> float:
        return float(model.elbo(x, torch.Generator().manual_seed(0), condition).nelbo.mean().detach())

    given, without = bound(c), bound(None)
    assert given < without < bound((c + 1) % 3)
    assert without < given + 5 * np.log(3)


def test_the_dropped_rows_are_a_function_of_the_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusional.training import loop

    shares: list[list[bool]] = []
    original = loop._Trainer._dropped

    def spy(self: Any, condition: Any, step: int) -> Any:
        out = original(self, condition, step)
        shares.append(missing_rows(out).tolist())
        return out

    monkeypatch.setattr(loop._Trainer, "_dropped", spy)
    config = df.Config.load(folder / "guided" / "config.json")
    for run in ("a", "b"):
        args = ["train", str(tmp_path / run), "--config", str(folder / "guided" / "config.json"), "--steps"]
        cli.main([*args, "12"])
    assert shares[:12] == shares[12:]
    assert len({tuple(row) for row in shares[:12]}) > 6
    part = np.mean(shares[:12])
    assert abs(part - config.condition_dropout) < 4 * (0.3 * 0.7 / (12 * 16)) ** 0.5


def test_guided_samples_are_further_into_their_class(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    levels = {}
    for weight in (None, 1.0, 3.0, 0.0):
        out = tmp_path / f"{weight}.npz"
        options = [] if weight is None else ["--guidance", weight]
        status, record, err = told(
            capsys, "sample", folder / "guided", "--condition", "cow", "--n", 40, "--out", out, *options
        )
        assert status == 0, err
        assert record["labels"] == ["cow"] * 40
        assert record.get("guidance") == (None if weight is None else {"weight": weight})
        levels[weight] = np.load(out)["samples"]
    assert np.array_equal(levels[None], levels[1.0])
    assert levels[3.0].mean() > levels[1.0].mean() > levels[0.0].mean()
    out = tmp_path / "none.npz"
    assert told(capsys, "sample", folder / "guided", "--guidance", "0", "--n", 40, "--out", out)[0] == 0
    assert np.array_equal(np.load(out)["samples"], levels[0.0])
    out = tmp_path / "threshold.npz"
    extra = ["--guidance", "3", "--guidance-threshold", "0.9", "--guidance-rescale", "0.5"]
    status, record, _ = told(capsys, "sample", folder / "guided", "--label", "cow", "--n", 40, "--out", out, *extra)
    assert record["guidance"] == {"weight": 3.0, "threshold": 0.9, "rescale": 0.5}
    assert not np.array_equal(np.load(out)["samples"], levels[3.0])


def test_the_bound_of_a_guided_chain_and_of_several(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "guided"
    before = (run / "plan.json").read_text() if (run / "plan.json").exists() else None
    status, one, _ = told(capsys, "evaluate", run, "--guidance", "3", "--visits", 6)
    assert status == 0
    assert one["guidance"] == {"weight": 3.0}
    assert (run / "plan-guided.json").exists()
    status, plain, _ = told(capsys, "evaluate", run, "--visits", 6)
    status, table, err = told(capsys, "evaluate", run, "--guidance", "0", "1", "3", "--visits", 6)
    assert status == 0, err
    found = table["guidance"]
    assert found["weights"] == [0.0, 1.0, 3.0]
    # The table has the draws of the run's plan, as the plain evaluation has.
    assert found["nelbo"][1]["value"] == pytest.approx(plain["nelbo"]["value"], abs=1e-5)
    assert found["nelbo"][2]["value"] == pytest.approx(
        one["nelbo"]["value"], abs=5 * one["nelbo"]["error"] + 5 * found["nelbo"][2]["error"]
    )
    assert found["best"] == 1.0
    assert found["direct_nats"]["value"] > 0
    if before is not None:
        assert (run / "plan.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("sample", "with", "--condition", "ant", "--guidance", "2"), "condition dropout"),
        (("sample", "guided", "--guidance", "2"), "--condition"),
        (("sample", "guided", "--condition", "ant", "--guidance-rescale", "0.5"), "--guidance"),
        (("evaluate", "with", "--guidance", "2"), "condition dropout"),
        (("evaluate", "with", "--guidance", "0", "2"), "condition dropout"),
        (("evaluate", "guided", "--guidance-threshold", "0.9"), "--guidance"),
        (("evaluate", "guided", "guided", "--guidance", "2"), "two runs"),
        (("evaluate", "guided", "--guidance", "1", "2", "--error", "0.1"), "--error.*several weights"),
        (("evaluate", "guided", "--guidance", "nan"), "finite|nan"),
    ],
)
def test_guidance_that_does_not_fit_is_refused(
    arguments: tuple[str, ...], match: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [folder / one if one in ("with", "guided") else one for one in arguments]
    status, _, err = command(capsys, *args)
    assert status == 2
    import re

    assert re.search(match, err), err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--condition-dropout", "0.1"], "condition_dropout.*without a condition"),
        (["--condition-dropout", "1"], "condition_dropout"),
        (["--condition-dropout", "0.1", "--condition", "label", "--preset", "digits-vae"], "condition_dropout.*vae"),
    ],
)
def test_condition_dropout_that_does_not_fit_is_refused(
    options: list[str], match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import re

    status, _, err = command(capsys, "train", tmp_path / "run", *options)
    assert status == 2
    assert re.search(match, err), err
    assert not (tmp_path / "run").exists()


def test_classes_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import csv

    run, table = folder / "guided", tmp_path / "answers.csv"
    status, record, err = told(
        capsys, "classify", run, "--per-item", table, "--evidence-visits", 4, "--max-visits", 16, "--seed", 1
    )
    assert status == 0, err
    assert record["accuracy"]["value"] > 0.8
    assert (record["classes"], sum(record["counts"]), record["items"]) == (["ant", "bee", "cow"], 9, 9)
    assert record["evidence_nats"]["value"] < 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 9
    assert sum(row["label"] == row["answer"] for row in rows) == round(9 * record["accuracy"]["value"])
    assert {"confidence", "nelbo_bee", "evidence", "split"} <= set(rows[0])
    # Other items, without labels: the answers of the same items are the same.
    data = df.data.load(folder / "data.npz", levels=11, condition="label")
    np.save(tmp_path / "new.npy", data.tensor("test").numpy())
    other = ["--data", tmp_path / "new.npy", "--unlabelled", "--most", 5, "--max-visits", 16]
    status, record, err = told(capsys, "classify", run, *other, "--prior", "train")
    assert status == 0, err
    assert (record["items"], "accuracy" in record) == (5, False)
    status, record, err = told(capsys, "classify", run, "--weighting", "unweighted", "--max-visits", 4)
    assert status == 0, err
    assert record["weighting"] == "unweighted"
    # The probabilities of a classifier as r.
    np.save(tmp_path / "r.npy", np.full((9, 3), 1 / 3))
    few = ["--max-visits", 4, "--evidence-visits", 4, "--weighting", "unweighted"]
    status, record, err = told(capsys, "classify", run, *few, "--probabilities", tmp_path / "r.npy")
    assert status == 0, err
    assert record["evidence_nats"]["value"] < 0


def test_two_conditions_of_one_run_are_compared(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = folder / "guided"
    status, record, err = told(capsys, "evaluate", run, run, "--other-condition", "shuffled", "--error", 0.1)
    assert status in (0, 3), err
    assert record["other_condition"] == ["shuffled"]
    assert record["difference_nats"]["value"] < -2 * record["difference_nats"]["error"]
    status, _, err = told(capsys, "evaluate", run, run, "--other-condition", "bee", "--error", 0.1)
    assert status in (0, 3), err
    # A condition that all items have anyway.
    with np.load(folder / "data.npz") as data:
        bees = data["y"] == "bee"
        np.savez(tmp_path / "bees.npz", x=data["x"][bees], y=data["y"][bees])
    options = [
        "--data",
        tmp_path / "bees.npz",
        "--other-condition",
        "bee",
        "--error",
        0.1,
        "--json",
        tmp_path / "0.json",
    ]
    status, _, err = command(capsys, "evaluate", run, run, *options)
    assert status in (0, 3), err
    record = json.loads((tmp_path / "0.json").read_text())
    assert (record["difference"]["value"], record["difference"]["error"]) == (0, 0)
    assert record["a"]["nelbo"]["value"] > 0
    # The two are told apart in reports.
    status, _, err = command(
        capsys, "report", tmp_path / "0.json", "-o", tmp_path / "0.html", "--json", tmp_path / "r.json"
    )
    assert status == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["comparisons"] == [[str(run), f"{run} given bee"]]
    page = (tmp_path / "0.html").read_text(encoding="utf-8")
    assert f"{run} given bee" in page
    for options, match in (
        ([run, "--other-condition", "bee"], "--other-condition"),
        ([run, run, "--other-condition", "wasp"], "wasp"),
    ):
        status, _, err = command(capsys, "evaluate", *options)
        assert (status, match in err) == (2, True), err


def test_pointwise_information_from_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, file = folder / "guided", tmp_path / "items.npz"
    options = ["--pointwise", "--visits", 8, "--map", "--per-item", file]
    status, record, err = told(capsys, "information", run, *options)
    assert status == 0, err
    assert record["information_nats"]["value"] > 0 > record["shuffled_nats"]["value"]
    assert record["bounded_least_nats"]["value"] <= record["entropy_of_labels_nats"]
    with np.load(file) as held:
        assert held["map"].shape == (9, 1, 4, 4)
        assert held["information"].mean() == pytest.approx(record["information_nats"]["value"])
        assert held["label"].tolist() != []


@pytest.mark.parametrize(
    ("run", "options", "match"),
    [
        ("with", ["--pointwise"], "condition dropout"),
        ("guided", ["--per-item", "a.csv"], "--pointwise"),
        ("guided", ["--pointwise", "--map"], "--per-item"),
        ("guided", ["--pointwise", "--figure", "a.png"], "--figure"),
        ("data.npz", ["--pointwise", "--levels", "11"], "not a run folder"),
    ],
)
def test_pointwise_information_that_does_not_fit_is_refused(
    run: str, options: list[str], match: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(capsys, "information", folder / run, *options)
    assert (status, match in err) == (2, True), err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--unlabelled"], "--unlabelled"),
        (["--confidence", "1"], "confidence"),
        (["--max-visits", "1"], "max_visits"),
        (["--weighting", "unweighted", "--prior", "train"], "--prior"),
        (["--weighting", "unweighted", "--evidence-visits", "4"], "--evidence-visits"),
        (["--probabilities", "r.npy"], "--evidence-visits"),
        (["--probabilities", "none.npy", "--evidence-visits", "4"], "none.npy"),
        (["--most", "0"], "--most"),
        (["--per-item", "answers.txt"], "csv"),
    ],
)
def test_a_classification_that_does_not_fit_is_refused(
    options: list[str], match: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(capsys, "classify", folder / "guided", *options)
    assert (status, match in err) == (2, True), err
