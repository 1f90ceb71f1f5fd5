"""`evaluate --estimator` and `--witnesses` on a small run."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffusional as df
from battery import command
from diffusional import cli

SMALL = [
    *("--model.network", "mlp", "--model.hidden", "16", "--model.blocks", "1", "--model.dropout", "0"),
    *("--batch", "16", "--schedule.steps", "5", "--optimizer.warmup", "5", "--validate-every", "100", "--steps", "2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, rng = tmp_path_factory.mktemp("estimators"), np.random.default_rng(0)
    np.savez(place / "data.npz", x=rng.integers(0, 4, (60, 2, 4)).astype(np.uint8))
    cli.main(["train", str(place / "run"), "--data", str(place / "data.npz"), "--data.levels", "4", *SMALL])
    return place / "run"


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[dict[str, Any], str]:
    status, out, err = command(capsys, *arguments, "--json", "-")
    assert status in (0, 3), err  # 3: few effective draws
    return json.loads(out), err


def test_importance_weights_and_the_flow_are_records(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _ = told(capsys, "evaluate", run, "--estimator", "iwae", "--k", 4, "--items", 3)
    assert (record["kind"], record["of"]) == ("bound", "importance-weighted bound, K = 4")
    assert record["items"] == 3
    table = tmp_path / "scores.csv"
    record, _ = told(
        capsys,
        *("evaluate", run, "--estimator", "ode", "--k", 2, "--items", 3, "--tolerance", 1, "--per-item", table),
        *(() if df.load(run).denoiser.time is None else ("--interpolate",)),
    )
    assert record["kind"] == "estimate"
    assert set(record["provenance"]["errors"]) == {"solver", "probes", "draws"}
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {"solver_error", "probe_error", "draw_error"} <= set(rows[0])


def test_replicates_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed number of replicates, or as many as a target takes, under the run's plan."""
    table, page = tmp_path / "scores.csv", tmp_path / "page.html"
    options = ("--estimator", "replicates", "--replicates", 4, "--visits", 3, "--split", "all", "--per-item", table)
    record, _ = told(capsys, "evaluate", run, *options, "--html", page)
    assert (record["kind"], record["of"]) == ("bound", "NELBO")
    assert (record["provenance"]["method"], record["provenance"]["replicates"]) == ("replicates", 4)
    assert record["provenance"]["evaluations"] == {"pilot": 0, "draws": 60 * 12}
    assert "replicates" in page.read_text()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    mean = sum(float(row["nelbo"]) for row in rows) / 60
    assert mean == pytest.approx(record["nelbo_nats"]["value"])
    again, _ = told(capsys, "evaluate", run, "--estimator", "replicates", "--split", "all", "--error", 0.8)
    assert again["reached"]
    assert again["nelbo"]["error"] <= 0.8
    assert again["provenance"]["replicates"] > 2
    # The target is 0.01 bits/dim unless another is given.
    limited = ("--estimator", "replicates", "--max-evaluations", 2000)
    found, _ = told(capsys, "evaluate", run, *limited)
    assert not found["reached"]
    assert found["nelbo"] == told(capsys, "evaluate", run, *limited, "--error", 0.01)[0]["nelbo"]
    few, _ = told(capsys, "evaluate", run, "--estimator", "replicates", "--items", 2, "--replicates", 2)
    assert any("degrees of freedom" in text for text in few["caveats"])


def test_a_page_of_importance_weights(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    told(capsys, "evaluate", run, "--estimator", "iwae", "--k", 4, "--items", 3, "--html", page)
    assert "Quantity: importance-weighted bound, K = 4" in page.read_text()


def test_witnesses_side_by_side(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--items", 2, "--visits", 32, "--tolerance", 1, "--interpolate", "--json", tmp_path / "out.json")
    status, out, _ = command(capsys, "evaluate", run, "--witnesses", *options)
    assert status == 0
    assert "IWAE, K = 64" in out
    assert "another model" in out
    record = json.loads((tmp_path / "out.json").read_text())
    names = ["NELBO", "IWAE, K = 1", "IWAE, K = 8", "IWAE, K = 64", "probability flow", "code"]
    assert [row["name"] for row in record["witnesses"]] == names
    assert record["agree"] is True
    assert record["items"] == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--k", 4), "--k"),
        (("--items", 4), "--items"),
        (("--estimator", "iwae", "--sweep"), "--sweep"),
        (("--estimator", "iwae", "--k", 1), "--k"),
        (("--estimator", "ode", "--visits", 4), "--visits"),
        (("--estimator", "ode", "--probes", 1), "probes"),
        (("--estimator", "ode", "--items", 0), "--items"),
        (("--witnesses", "--estimator", "ode"), "--witnesses"),
        (("--witnesses", "--k", 3), "--k"),
        (("--witnesses", "--html", "page.html"), "--html"),
        (("--estimator", "iwae", "--probes", 4), "--probes"),
        (("--estimator", "ode", "--replicates", 4), "--replicates"),
        (("--replicates", 4), "--estimator replicates"),
        (("--estimator", "replicates", "--replicates", 1), "at least 2, got 1"),
        (("--estimator", "replicates", "--visits", 0), "visits to be an integer of at least 1, got 0"),
        (("--estimator", "replicates", "--item-error", 0.1), "--item-error"),
        (("--estimator", "replicates", "--max-evaluations", 10), "at least"),
        (("--estimator", "iwae", "--continuous"), "finitely many latents"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    run: Path, arguments: Any, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(capsys, "evaluate", run, *arguments)
    assert status == 2
    assert named in err
