"""Class labels from the command line: train, resume, evaluate, compare, score, sample and inspect."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusional as df
from battery import command
from diffusional import cli
from diffusional.conditions import ignoring_condition
from diffusional.errors import DiffusionalError
from diffusional.training.run import read_run

SMALL = [
    *("--model.network", "mlp", "--model.hidden", "32", "--model.blocks", "1", "--model.dropout", "0"),
    *("--batch", "16", "--schedule.steps", "10", "--optimizer.lr", "0.01", "--optimizer.warmup", "5"),
    *("--validate-every", "100"),
]


def items(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Flat images whose level is the number of their class, but for a little noise: labels are worth nearly ln 3."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % 3)
    return (4 * labels[:, None, None] + (rng.random((n, 4, 4)) < 0.05)).astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.npz, labels "ant", "bee" and "cow", and two runs on it: `with`, conditioned on them, and `without`."""
    place = tmp_path_factory.mktemp("labels")
    x, y = items()
    np.savez(place / "data.npz", x=x, y=np.array(["ant", "bee", "cow"])[y])
    data = ["--data.name", str(place / "data.npz"), "--data.levels", "10"]
    cli.main(["train", str(place / "with"), *data, *SMALL, "--steps", "200", "--data.condition", "label"])
    cli.main(["train", str(place / "without"), *data, *SMALL, "--steps", "200"])
    return place


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json -; its exit status, its record and its messages."""
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


def test_a_run_keeps_its_classes_and_needs_them(folder: Path) -> None:
    record = read_run(folder / "with")
    assert record.classes == ("ant", "bee", "cow")
    assert record.config.data.condition == "label"
    model = df.load(folder / "with")
    assert model.classes == record.classes
    assert df.load(folder / "without").classes == ()
    assert "classes" not in json.loads((folder / "without" / "data.json").read_text())
    data = df.data.load(folder / "data.npz", levels=10, condition="label")
    x, c = data.encode("test"), data.condition_of("test")
    right, wrong = (
        float(model.elbo(x, torch.Generator().manual_seed(0), one).nelbo.mean().detach()) for one in (c, (c + 1) % 3)
    )
    assert right + 5 < wrong
    with pytest.raises(DiffusionalError, match=r"3 classes.*none was given"):
        model.elbo(x)
    with pytest.raises(DiffusionalError, match="unconditional"):
        df.load(folder / "without").elbo(x, condition=c)


def test_evaluate_takes_the_labels_of_the_data(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scores = tmp_path / "scores.csv"
    status, found, _ = told(capsys, "evaluate", folder / "with", "--visits", 8, "--no-audit", "--per-item", scores)
    assert status in (0, 3)
    data = df.data.load(folder / "data.npz", levels=10, condition="label")
    plan = df.Plan.load(folder / "with" / "plan.json", df.load(folder / "with"))
    x, c = data.encode("test"), data.condition_of("test")
    expected = df.evaluate(df.load(folder / "with"), x, visits=8, plan=plan, audit=False, condition=c)
    assert found["nelbo_nats"]["value"] == pytest.approx(expected.nelbo.value, rel=1e-6)
    assert found["provenance"]["condition_sha256"] == expected.provenance["condition_sha256"]
    assert found["condition"] == "label"
    with scores.open() as file:
        lines = list(csv.DictReader(file))
    stored = np.load(folder / "data.npz")["y"]
    assert [line["label"] for line in lines] == [stored[int(line["row"])] for line in lines]


def test_other_data_bring_their_own_labels(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x, _ = items()
    some = x[[5, 3, 8]]
    kinds = np.array(["ant", "bee", "cow"])[some[:, 0, 0] // 4]
    path = tmp_path / "new.npz"
    np.savez(path, x=some, kind_labels=kinds, other_labels=kinds[::-1])
    arguments = ("evaluate", folder / "with", "--data", path, "--visits", 4, "--no-audit")
    assert told(capsys, *arguments)[0] == 2  # which of the two are the labels?
    scores = tmp_path / "scores.npz"
    status, _, _ = told(capsys, *arguments, "--condition", "kind", "--per-item", scores)
    assert status in (0, 3)
    assert np.load(scores)["label"].tolist() == kinds.tolist()
    np.savez(path, x=some, y=np.array(["ant", "bee", "dog"]))
    status, _, err = told(capsys, *arguments)
    assert status == 2
    assert "'dog'" in err
    np.savez(path, x=some)
    status, _, err = told(capsys, *arguments)
    assert status == 2
    assert "no such labels" in err
    for wrong in (
        ("evaluate", folder / "without", "--data", path, "--condition", "kind"),
        ("evaluate", folder / "with", "--condition", "kind"),
    ):
        status, _, err = told(capsys, *wrong)
        assert status == 2
        assert "--condition kind" in err


def test_compare_says_what_labels_are_worth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--error", 0.05, "--no-audit")
    status, found, _ = told(capsys, "evaluate", folder / "with", folder / "without", *base)
    assert status in (0, 3)
    a, b = found["a"]["provenance"], found["b"]["provenance"]
    assert a["condition_sha256"] == b["condition_sha256"]
    assert "condition_ignored" not in a
    assert b["condition_ignored"] is True
    assert found["condition"] == ["label", None]
    assert found["difference_nats"]["value"] < 0
    status, other, _ = told(capsys, "evaluate", folder / "without", folder / "with", *base)
    assert other["condition"] == [None, "label"]
    assert other["a"]["provenance"]["condition_ignored"] is True
    assert other["difference_nats"]["value"] > 0
    _, out, _ = command(capsys, "evaluate", folder / "with", folder / "without", *base)
    assert "ln p(x | label)" in " ".join(out.split())
    # The pilots run without progress.
    assert "learning a plan of each model" in " ".join(out.split())


def test_an_unconditional_model_scores_as_ever_beside_a_conditional_one(folder: Path) -> None:
    data = df.data.load(folder / "data.npz", levels=10, condition="label")
    x, c = data.encode("test"), data.condition_of("test")
    plain = df.load(folder / "without")
    ignoring = ignoring_condition(plain)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert ignoring.elbo(x, generators[0], c).nelbo.equal(plain.elbo(x, generators[1]).nelbo)
    with pytest.raises(DiffusionalError, match="unconditional"):
        plain.elbo(x, condition=c)
    assert next(ignoring.parameters()) is next(plain.parameters())


def test_runs_with_other_classes_are_not_compared(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    x, y = items()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    data = ["--data.name", tmp_path / "data.npz", "--data.levels", "10", "--data.condition", "label"]
    assert command(capsys, "train", tmp_path / "run", *data, *SMALL, "--steps", "1")[0] == 0
    status, _, err = told(capsys, "evaluate", folder / "with", tmp_path / "run")
    assert status == 2
    assert "'ant', 'bee', 'cow'" in err


def test_samples_of_a_class(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def drawn(*arguments: Any) -> dict[str, Any]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        status, found, _ = told(capsys, "sample", folder / "with", "--out", out, *arguments)
        assert status == 0
        held = np.load(out)
        assert held["labels"].tolist() == found["labels"]
        shown = np.array(["ant", "bee", "cow"])[(held["samples"].mean((1, 2, 3)) / 4).round().astype(int).clip(0, 2)]
        return {"labels": found["labels"], "right": float((shown == held["labels"]).mean())}

    many = drawn("--label", "bee", "--n", 20)
    assert many["labels"] == ["bee"] * 20
    assert many["right"] > 0.8
    assert drawn("--label", "2", "--n", 2)["labels"] == ["cow", "cow"]
    assert drawn("--label", "ant,cow", "--n", 3)["labels"] == ["ant", "cow", "ant"]
    assert drawn("--label", "cow", "ant", "--n", 3)["labels"] == ["cow", "ant", "cow"]
    every = drawn("--label", "all", "--n", 30)
    assert every["labels"] == ["ant", "bee", "cow"] * 10
    assert every["right"] > 0.8


@pytest.mark.parametrize(
    ("run", "arguments", "match"),
    [
        ("with", (), "--condition.*'ant', 'bee', 'cow'"),
        ("with", ("--label", "bees"), "'bees'.*'bee'"),
        ("with", ("--label", "3"), "'3'"),
        ("with", ("--label", "-1"), "'-1'"),
        ("with", ("--label", "all", "--n", "2"), "3 labels .* 2 items"),
        ("without", ("--label", "bee"), "without labels"),
    ],
)
def test_labels_that_do_not_fit_the_run_are_refused(
    run: str, arguments: tuple[str, ...], match: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, _, err = command(capsys, "sample", folder / run, "--out", tmp_path / "a.npz", *arguments)
    assert status == 2
    assert re.search(match, " ".join(err.split()))
    assert not list(tmp_path.iterdir())


def test_data_and_information_know_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found, _ = told(capsys, "data", folder / "data.npz", "--levels", 10, "--condition", "label")
    assert status == 0
    assert {name: sum(counts.values()) for name, counts in found["classes"].items()} == {
        "ant": 30,
        "bee": 30,
        "cow": 30,
    }
    status, out, _ = command(capsys, "data", folder / "data.npz", "--levels", "10", "--condition", "label")
    assert status == 0
    assert "3 classes" in out
    budget = ("information", folder / "with", "--samples", 20, "--timesteps", 3, "--reference")
    assert told(capsys, *budget, folder / "with")[0] == 0
    status, _, err = told(capsys, *budget, folder / "without")
    assert status == 2
    assert "3 classes" in err


def test_a_run_is_resumed_with_its_own_labels_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = items()
    names = np.array(["ant", "bee", "cow"])
    np.savez(tmp_path / "data.npz", x=x, y=names[y])
    data = ["--data.name", tmp_path / "data.npz", "--data.levels", "10", "--data.condition", "label"]
    assert command(capsys, "train", tmp_path / "run", *data, *SMALL, "--steps", "4")[0] == 0
    assert command(capsys, "train", tmp_path / "run", "--resume")[0] == 0
    for labels in (names[(y + 1) % 3], np.array(["ant", "bee", "dog"])[y]):
        np.savez(tmp_path / "data.npz", x=x, y=labels)
        status, _, err = command(capsys, "train", tmp_path / "run", "--resume")
        assert status == 2
        assert "changed" in err
        assert command(capsys, "evaluate", tmp_path / "run", "--visits", "2")[0] == 2
