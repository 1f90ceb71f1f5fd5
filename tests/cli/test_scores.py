"""Scores of items from files: which items are evaluated, under whose name each score stands, and what is said of the items."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from battery import command
from diffusional import cli
from diffusional.training.run import read_run

TINY = ("--model.hidden", "8", "--model.blocks", "1", "--batch", "8", "--steps", "2")


def main(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Exit status and standard error of a command."""
    status, _, err = command(capsys, *args)
    return status, err


def scored(
    capsys: pytest.CaptureFixture[str], folder: Path, *args: object
) -> tuple[dict[str, Any], list[dict[str, str]], str]:
    """The record, the lines of the scores, and standard error of an evaluation with two draws for each item."""
    scores, record = folder / "scores.csv", folder / "record.json"
    status, err = main(capsys, "evaluate", *args, "--visits", 2, "--no-audit", "--per-item", scores, "--json", record)
    assert status in (0, 3), err
    with scores.open() as file:
        return json.loads(record.read_text()), list(csv.DictReader(file)), err


def table(path: Path, header: str, values: np.ndarray) -> Path:
    path.write_text("\n".join([header, *(",".join(map(repr, map(float, row))) for row in values)]) + "\n")
    return path


def plane(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2)) * [1, 100] + [0, 1000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own.csv, 60 items of columns x and y, and run/, trained on it."""
    folder = tmp_path_factory.mktemp("scores")
    own = table(folder / "own.csv", "x,y", plane(60, 0))
    cli.main(["train", str(folder / "run"), "--data", str(own), *TINY])
    return folder


def test_every_score_stands_in_the_line_of_its_item(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = plane(30, 1)
    values[7, 0] = 9.0  # far from all others
    new = table(tmp_path / "new.csv", "x,y", values)
    record, lines, _ = scored(capsys, tmp_path, trained / "run", "--data", new)
    assert record["warnings"] == []
    assert [line["row"] for line in lines] == [line["item"] for line in lines] == [str(i) for i in range(30)]
    assert {(line["source"], line["split"]) for line in lines} == {("new.csv", "all")}
    assert max(lines, key=lambda line: float(line["nelbo"]))["row"] == "7"
    assert (record["items"], record["data"], record["split"], record["trained_on"]) == (30, str(new), "all", 0)

    npz = tmp_path / "scores.npz"
    assert (
        main(capsys, "evaluate", trained / "run", "--data", new, "--visits", 2, "--no-audit", "--per-item", npz)[0] == 0
    )
    columns = np.load(npz, allow_pickle=False)
    assert columns["row"].tolist() == list(range(30))
    assert columns["source"].tolist() == ["new.csv"] * 30
    assert columns["nelbo"].tolist() == [float(line["nelbo"]) for line in lines]


def test_columns_are_matched_by_name(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_run(trained / "run").columns == ("x", "y")
    values = plane(10, 2)
    bounds = {}
    for name, header, of in (("same", "x,y", values), ("swapped", "y,x", values[:, ::-1])):
        record, _, _ = scored(capsys, tmp_path, trained / "run", "--data", table(tmp_path / f"{name}.csv", header, of))
        bounds[name] = record["nelbo"]
    assert bounds["same"] == bounds["swapped"]
    other = table(tmp_path / "other.csv", "height,weight", values)
    status, err = main(capsys, "evaluate", trained / "run", "--data", other)
    assert status == 2
    assert all(name in err for name in ("'x'", "'y'", "'height'", "'weight'"))
    wide = table(tmp_path / "wide.csv", "label,y,x", np.hstack([np.arange(10.0)[:, None], values[:, ::-1]]))
    status, err = main(capsys, "evaluate", trained / "run", "--data", wide)
    assert (status, "'label'" in err, "--columns" in err) == (2, True, True)
    record, _, _ = scored(capsys, tmp_path, trained / "run", "--data", wide, "--columns", "x", "y")
    assert record["nelbo"] == bounds["same"]


def test_a_run_that_recorded_no_names_matches_by_position_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    described = json.loads((run / "data.json").read_text())
    for key in ("columns", "source"):
        del described[key]
    (run / "data.json").write_text(json.dumps(described))
    (run / "trained-on.safetensors").unlink()
    new = table(tmp_path / "new.csv", "a,b", plane(10, 2))
    record, _, err = scored(capsys, tmp_path, run, "--data", new)
    assert "'a', 'b'" in err
    assert "assumed" in record["warnings"][0]
    # Which items it was trained on is found in its data.
    assert record["trained_on"] == 0
    assert (
        scored(capsys, tmp_path, run, "--data", table(tmp_path / "b.csv", "a,b", plane(60, 0)[:20]))[0]["trained_on"]
        > 0
    )
    assert scored(capsys, tmp_path, run)[0]["items"] == 6


@pytest.mark.parametrize("n", [1, 5])
def test_few_items_and_a_constant_column_are_scored(
    n: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = plane(n, 3)
    values[:, 0] = 0.5
    record, lines, _ = scored(capsys, tmp_path, trained / "run", "--data", table(tmp_path / "few.csv", "x,y", values))
    assert record["items"] == len(lines) == n


def test_the_run_s_own_data_under_any_name_are_its_test_split(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, lines, _ = scored(capsys, tmp_path, trained / "run")
    assert (plain["items"], plain["split"], plain["warnings"]) == (6, "test", [])
    rows = [int(line["row"]) for line in lines]
    assert rows == sorted(rows)
    copy = shutil.copy(trained / "own.csv", tmp_path / "copy.csv")
    monkeypatch.chdir(trained)
    for name in (trained / "own.csv", "own.csv", copy):
        record, _, err = scored(capsys, tmp_path, trained / "run", "--data", name)
        assert (record["split"], record["nelbo"]) == ("test", plain["nelbo"])
        assert "test split" in err
    # The rows are those of the file.
    table(tmp_path / "test.csv", "x,y", plane(60, 0)[rows])
    _, same, _ = scored(capsys, tmp_path, trained / "run", "--data", tmp_path / "test.csv")
    assert [line["nelbo"] for line in same] == [line["nelbo"] for line in lines]


def test_items_that_were_trained_on_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, _, err = scored(capsys, tmp_path, trained / "run", "--split", "all")
    assert (record["items"], record["trained_on"]) == (60, 48)
    assert "48 of the 60" in err
    mixed = table(tmp_path / "mixed.csv", "y,x", np.vstack([plane(60, 0), plane(5, 4)])[:, ::-1])
    record, _, err = scored(capsys, tmp_path, trained / "run", "--data", mixed)
    assert (record["items"], record["trained_on"]) == (65, 48)
    assert "48 of the 65" in record["warnings"][0]
    # The hashes are enough, where the data are gone.
    run = shutil.copytree(trained / "run", tmp_path / "run")
    described = json.loads((run / "config.json").read_text())
    described["data"]["name"] = "gone.csv"
    (run / "config.json").write_text(json.dumps(described))
    source = json.loads((run / "data.json").read_text()) | {"source": "/gone.csv"}
    (run / "data.json").write_text(json.dumps(source))
    assert scored(capsys, tmp_path, run, "--data", mixed)[0]["trained_on"] == 48


def test_a_run_finds_its_data_from_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    table(tmp_path / "a" / "own.csv", "x,y", plane(60, 0))
    table(tmp_path / "b" / "own.csv", "x,y", plane(60, 1))  # of the same name, other data
    monkeypatch.chdir(tmp_path / "a")
    assert main(capsys, "train", "run", "--data", "own.csv", *TINY)[0] == 0
    monkeypatch.chdir(tmp_path / "b")
    record, _, _ = scored(capsys, tmp_path, "../a/run")
    assert (record["items"], record["split"], record["warnings"]) == (6, "test", [])
    record, _, _ = scored(capsys, tmp_path, "../a/run", "--data", "own.csv")
    assert (record["items"], record["split"], record["trained_on"]) == (60, "all", 0)


def test_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for folder, n in (("own", 20), ("new", 12)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / folder / f"{n - i:02}.png")
    assert main(capsys, "train", tmp_path / "run", "--data", tmp_path / "own", *TINY, "--model.network", "mlp")[0] == 0
    record, lines, _ = scored(capsys, tmp_path, tmp_path / "run", "--data", tmp_path / "new")
    assert [line["source"] for line in lines] == [f"{i:02}.png" for i in range(1, 13)]
    assert record["items"] == 12


def test_two_runs_on_a_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, record = tmp_path / "other", tmp_path / "record.json"
    assert main(capsys, "train", other, "--data", trained / "own.csv", *TINY, "--seed", 1)[0] == 0
    part = table(tmp_path / "part.csv", "y,x", plane(60, 0)[:30, ::-1])
    status, err = main(
        capsys, "evaluate", trained / "run", other, "--data", part, "--error", 5, "--no-audit", "--json", record
    )
    assert status in (0, 3)
    found = json.loads(record.read_text())
    assert found["items"] == 30
    assert found["trained_on"][0] == found["trained_on"][1] > 0
    assert err.count("items of") == 2
    renamed = table(tmp_path / "renamed.csv", "u,v", plane(60, 0))
    assert main(capsys, "train", tmp_path / "renamed", "--data", renamed, *TINY)[0] == 0
    status, err = main(capsys, "evaluate", trained / "run", tmp_path / "renamed", "--data", part)
    assert (status, "u, v" in err) == (2, True)


def test_own_columns_that_were_renamed_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copy(trained / "own.csv", tmp_path / "own.csv")
    assert main(capsys, "train", tmp_path / "run", "--data", own, *TINY)[0] == 0
    table(tmp_path / "own.csv", "y,x", plane(60, 0))
    status, err = main(capsys, "evaluate", tmp_path / "run", "--visits", 2)
    assert (status, "y, x" in err, "x, y" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--levels", 5), "--levels 5"),
        (("--columns", "x", "y"), "--columns"),
        (("--data", "NEW", "--split", "test"), "'test'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    args: tuple[object, ...], said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = table(tmp_path / "new.csv", "x,y", plane(10, 2))
    status, err = main(capsys, "evaluate", trained / "run", *(new if arg == "NEW" else arg for arg in args))
    assert status == 2
    assert said in err


def test_chosen_columns_are_chosen_in_other_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = np.hstack([plane(60, 0), np.arange(60.0)[:, None]])
    own = table(tmp_path / "own.csv", "x,y,z", wide)
    columns = ("--data.columns", "y", "x")
    assert main(capsys, "train", tmp_path / "run", "--data", own, *TINY, *columns)[0] == 0
    assert read_run(tmp_path / "run").columns == ("y", "x")
    new = table(tmp_path / "new.csv", "z,x,y", wide[:3, [2, 0, 1]])
    record, _, _ = scored(capsys, tmp_path, tmp_path / "run", "--data", new)
    assert record["items"] == 3
    assert scored(capsys, tmp_path, tmp_path / "run", "--data", own)[0]["split"] == "test"


def test_samples_carry_the_names_of_their_columns(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.npz"
    assert main(capsys, "sample", trained / "run", "--n", 12, "--out", out, "--json", tmp_path / "sample.json")[0] == 0
    assert np.load(out, allow_pickle=False)["columns"].tolist() == ["x", "y"]
    assert json.loads((tmp_path / "sample.json").read_text())["columns"] == ["x", "y"]
    record, _, _ = scored(capsys, tmp_path, trained / "run", "--data", out)
    assert (record["items"], record["warnings"]) == (12, [])


def test_two_runs_have_both_scores_and_their_difference(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference of every item, as in its own row, with an error that knows that the noise is common."""
    other = tmp_path / "other"
    assert main(capsys, "train", other, "--data", trained / "own.csv", *TINY, "--seed", 1)[0] == 0
    values = plane(30, 1)
    values[7, 0] = 9.0
    new = table(tmp_path / "new.csv", "x,y", values)
    scores, npz, record = tmp_path / "scores.csv", tmp_path / "scores.npz", tmp_path / "record.json"
    for two, path in ((trained / "run", npz), (other, scores)):
        args = ["evaluate", trained / "run", two, "--data", new, "--error", 0.2, "--no-audit", "--json", record]
        assert main(capsys, *args, "--per-item", path)[0] in (0, 3)
    found = json.loads(record.read_text())
    with scores.open() as file:
        lines = list(csv.DictReader(file))
    columns = {
        name: np.array([float(line[name]) for line in lines]) for name in lines[0] if name not in ("source", "split")
    }
    assert columns["row"].tolist() == columns["item"].tolist() == list(range(30))
    assert {line["source"] for line in lines} == {"new.csv"}
    np.testing.assert_allclose(columns["difference"], columns["nelbo_a"] - columns["nelbo_b"], rtol=0, atol=1e-9)
    assert columns["difference"].mean() == pytest.approx(found["difference_nats"]["value"])
    assert columns["nelbo_a"].mean() == pytest.approx(found["a"]["nelbo_nats"]["value"])
    assert int(columns["nelbo_a"].argmax()) == 7
    # A run and itself have their noise in common: what differs is rounding.
    arrays = np.load(npz)
    assert set(arrays) == set(lines[0])
    assert np.abs(arrays["difference"]).max() < 1e-9
    assert arrays["error"].max() < 1e-9
    assert (arrays["error_a"] > 0).all()
    assert (columns["error"] > 0).all()
