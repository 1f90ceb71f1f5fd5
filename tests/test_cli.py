"""The command line: the way from an array to samples and a ledger, and a clear word and status 2 for all bad input."""

import dataclasses
import errno
import io
import json
import math
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from battery import command as main
from battery import environment
from diffusional import cli, demo, files
from diffusional.cli import sample
from diffusional.files import load_tensors, save_json, save_tensors
from diffusional.ledger import with_error
from diffusional.models.diffusion import DiffusionModel
from diffusional.training import loop, objective, recipes
from diffusional.training.config import Config, ModelConfig

TINY = ["--data.levels", "5", "--model.widths", "8", "8", "--model.blocks", "1", "--batch", "8"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.npy, 40 items 1×4×4 of 5 levels, and run/, trained on it for two steps."""
    folder = tmp_path_factory.mktemp("cli")
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (40, 1, 4, 4)))
    cli.main(["train", str(folder / "run"), "--data.name", str(folder / "tiny.npy"), *TINY, "--steps", "2"])
    return folder


# Help.


def test_help_names_the_commands() -> None:
    command = [sys.executable, "-m", "diffusional", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    for name in ("demo", "train", "evaluate", "sample"):
        assert name in done.stdout


# What makes help instant, as far as a test can tell without a clock.
@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["train", "--stepz", "1"]])
def test_help_and_misspellings_import_no_torch(args: list[str]) -> None:
    code = f"""
import sys
from diffusional.cli import main
try:
    main({args!r})
except SystemExit as stop:
    status = stop.code
print("status", status, "torch" in sys.modules, "numpy" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    status = 0 if "--help" in args else 2
    assert done.stdout.splitlines()[-1] == f"status {status} False False"


# The whole way.


def test_train_evaluate_sample(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record = tmp_path / "run", tmp_path / "out.json"
    args = ["train", run, "--data.name", tiny / "tiny.npy", *TINY, "--steps", 3, "--schedule.steps", 9, "--seed", 5]
    args += ["--data.split-seed", 3]
    status, out, err = main(capsys, *args, "--json", record)
    assert (status, "Traceback" in err) == (0, False)
    trained = json.loads(record.read_text())
    best = trained["validation"]["value"]
    assert f"best validation bound {best:.4f} bits/dim at step 3 of 3" in " ".join(out.split())
    assert (trained["run"], trained["steps"], trained["validation"]["unit"]) == (str(run), 3, "bits/dim")
    config = Config.load(run / "config.json")
    assert (config.batch, config.model.widths, config.schedule.steps, config.seed) == (8, (8, 8), 9, 5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert best == pytest.approx(lines[-1]["validation"], rel=1e-12)

    status, out, err = main(capsys, "evaluate", run, "--json", record, "--draws", 2, "--seed", 4)
    assert (status, err) == (0, "")
    result = json.loads(record.read_text())
    # The run keeps evaluations as they are by default; others go where --json says.
    assert not (run / "evaluation-test.json").exists()
    assert (result["items"], result["dimensions"], result["levels"], len(result["levels_kl"])) == (4, 16, 5, 8)
    assert result["network_evaluations"] == 4 * (8 + 4) * 2
    assert with_error(result["nelbo_nats"]["value"], result["nelbo_nats"]["error"])[0] in out
    assert "T = 9" in " ".join(out.split())  # the title wraps where the path is long
    assert result["provenance"]["seed"] == 4

    to_half = ["evaluate", run, "--json", record, "--error", 0.5]
    status, out, err = main(capsys, *to_half)
    assert (status, err) == (0, "")
    assert "plan.json with 3,000 evaluations on the run's training data" in " ".join(out.split())
    kept = json.loads((run / "evaluation-test.json").read_text())
    assert kept == json.loads(record.read_text())
    assert kept["nelbo"]["error"] <= 0.5
    assert (kept["reached"], kept["caveats"], kept["items_visited"]) == (True, [], 4)
    assert not list(run.glob("draws-*"))  # the records of what has reached its target are not kept

    # The same file by name is split in the same way; the plan is there now.
    status, out, _ = main(capsys, *to_half, "--data", tiny / "tiny.npy", "--split", "test")
    assert (status, "learned" in out) == (0, False)
    assert json.loads(record.read_text())["nelbo"] == kept["nelbo"]

    status, out, _ = main(capsys, "evaluate", run, "--json", record, "--split", "all", "--steps", 4, "--draws", 1)
    whole = json.loads(record.read_text())
    assert (status, whole["items"], len(whole["levels_kl"])) == (0, 40, 3)

    for split, items in (("train", 32), ("validation", 4)):
        assert main(capsys, "evaluate", run, "--split", split, "--draws", 1, "--json", record)[0] == 0
        assert json.loads(record.read_text())["items"] == items
    assert json.loads((run / "evaluation-test.json").read_text()) == kept

    status, out, err = main(capsys, "sample", run, "--n", 6, "--json", record)
    assert (status, err) == (0, "")
    assert json.loads(record.read_text()) == {
        "samples": [str(run / "samples.npz"), str(run / "samples.png")],
        "n": 6,
        "method": "ancestral",
        "seed": 0,
        "shape": [6, 1, 4, 4],
    }
    samples = np.load(run / "samples.npz")["samples"]
    assert samples.shape == (6, 1, 4, 4)
    assert set(np.unique(samples)) <= set(range(5))
    assert Image.open(run / "samples.png").size[0] > 200

    for seed, same in ((0, True), (1, False)):
        other = tmp_path / f"{seed}.npz"
        assert main(capsys, "sample", run, "--n", 6, "--seed", seed, "--out", other)[0] == 0
        assert np.array_equal(np.load(other)["samples"], samples) is same
    assert main(capsys, "sample", run, "--method", "ddim", "--eta", 0.5, "--steps", 5)[0] == 0
    assert np.load(run / "samples-2.npz")["samples"].shape == (16, 1, 4, 4)
    assert np.array_equal(np.load(run / "samples.npz")["samples"], samples)
    # Many are drawn some at a time.
    monkeypatch.setattr("diffusional.cli.sample._BATCH", 6)
    assert main(capsys, "sample", run, "--n", 15, "--out", tmp_path / "many.npz")[0] == 0
    many = np.load(tmp_path / "many.npz")["samples"]
    assert many.shape == (15, 1, 4, 4)
    assert np.array_equal(many[:6], samples)
    assert not np.array_equal(many[6:12], samples)


def test_scores_budgets_and_two_runs(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, record = tiny / "run", tmp_path / "out.json"
    data = ["--data", tiny / "tiny.npy", "--split", "all"]
    for suffix in ("csv", "npz"):
        scores = tmp_path / f"scores.{suffix}"
        evaluating = ["evaluate", run, *data, "--visits", 4, "--no-audit", "--per-item", scores, "--json", record]
        assert main(capsys, *evaluating)[0] == 0
    result, columns = json.loads(record.read_text()), np.load(tmp_path / "scores.npz")
    assert columns["nelbo"].shape == columns["error"].shape == (40,)
    assert result["nelbo_nats"]["value"] == pytest.approx(columns["nelbo"].mean(), rel=1e-12)
    assert result["network_evaluations"] == 40 * 4
    head, *lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert head.split(",") == list(columns)
    assert columns["row"].tolist() == list(range(40))
    assert [float(line.split(",")[4]) for line in lines] == pytest.approx(columns["nelbo"].tolist(), rel=1e-9)

    # A budget that doesn't suffice: the best estimate, marked, and a status of its own.
    out_of_reach = ["evaluate", run, *data, "--error", 1e-6, "--max-evaluations", 900, "--no-audit", "--json", record]
    status, out, err = main(capsys, *out_of_reach)
    result = json.loads(record.read_text())
    assert (status, result["reached"]) == (3, False)
    assert result["network_evaluations"] <= 900
    assert result["nelbo"]["error"] > 1e-6
    assert "diffusional: not reached: the error is " in err
    assert len(list(run.glob("draws-*"))) == 1
    # What was drawn is kept, and a larger budget goes on from there.
    status, _, _ = main(capsys, *["evaluate", run, *data, "--error", 1, "--no-audit", "--json", record])
    assert status == 0
    assert json.loads(record.read_text())["provenance"]["evaluations"]["draws"] >= 900
    assert not list(run.glob("draws-*"))

    other = tmp_path / "other"
    args = ["train", other, "--data.name", tiny / "tiny.npy", *TINY, "--steps", 2, "--seed", 9]
    assert main(capsys, *args)[0] == 0
    status, out, _ = main(capsys, "evaluate", run, other, "--split", "all", "--error", 0.3, "--json", record)
    result = json.loads(record.read_text())
    assert status == (0 if result["reached"] else 3)
    assert result["difference"]["value"] == pytest.approx(result["a"]["nelbo"]["value"] - result["b"]["nelbo"]["value"])
    assert result["difference"]["error"] <= 0.3
    assert "A − B, paired" in " ".join(out.split())


def test_other_data_of_the_same_space(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "more.npy"
    np.save(path, np.random.default_rng(1).integers(0, 5, (20, 1, 4, 4)))
    record = tmp_path / "out.json"
    # All of it: its split is the file's own affair.
    args = ["evaluate", tiny / "run", "--data", path, "--cells", 3, "--draws", 1, "--json", record]
    status, out, _ = main(capsys, *args)
    assert (status, json.loads(record.read_text())["items"]) == (0, 20)
    assert "T = ∞" in out


def test_real_valued_data_keep_the_run_s_standardisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values + 100)  # standardised by itself, it would be as likely as a
    run, record = tmp_path / "run", tmp_path / "out.json"
    args = ["--model.hidden", 8, "--model.blocks", 1, "--batch", 8, "--steps", 2]
    assert main(capsys, "train", run, "--data.name", tmp_path / "a.npy", *args)[0] == 0
    values = {}
    for name in ("a", "b"):
        evaluating = ["evaluate", run, "--data", tmp_path / f"{name}.npy", "--cells", 5, "--json", record]
        assert main(capsys, *evaluating)[0] == 0
        result = json.loads(record.read_text())
        assert result["levels"] is None
        values[name] = result["nelbo_nats"]["value"]
    assert values["b"] > values["a"] + 1000


def test_resuming_takes_the_config_of_the_run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    rate = loop.learning_rate
    args = ["train", run, "--data.name", tiny / "tiny.npy", *TINY, "--steps", 4, "--checkpoint-every", 2]

    def interrupting(*args: Any) -> float:
        if args[1] == 2:
            signal.raise_signal(signal.SIGTERM)
        return rate(*args)

    monkeypatch.setattr(loop, "learning_rate", interrupting)
    status, _, err = main(capsys, *args)
    assert (status, err) == (
        143,
        "diffusional: stopped after step 3 of 4, with a checkpoint; continue with --resume\n",
    )
    monkeypatch.undo()
    status, out, _ = main(capsys, "train", run, "--resume")
    assert status == 0
    assert "step 4 of 4" in " ".join(out.split())
    # Said again in full, it is the same config.
    assert main(capsys, *args, "--resume")[0] == 0


# Bad input: of each kind the whole message, with TMP for the test's folder.


def npy(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


def npz(path: Path) -> Path:
    np.savez(path, samples=np.zeros(3))
    return path


def raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.fromarray(np.full(size, 9 * number, np.uint8)).save(folder / f"{number:02}.png")
    return folder


def cut(path: Path) -> Path:
    """The folder of a file, half of which is gone."""
    return raw(path, path.read_bytes()[:40]).parent


def train(data: Path, *more: object) -> list[object]:
    return ["train", data.parent / "new", "--data.name", data, "--steps", 2, *more]


def truncated_npy(folder: Path) -> list[object]:
    path = npy(folder / "cut.npy", np.zeros((40, 4)))
    return train(raw(path, path.read_bytes()[:-30]))


def truncated_idx(folder: Path) -> list[object]:
    header = struct.pack(">HBB", 0, 8, 3) + struct.pack(">III", 10, 4, 4)
    return train(raw(folder / "cut-idx3-ubyte", header + bytes(100)), "--data.levels", 5)


def with_nan(folder: Path) -> list[object]:
    values = np.random.default_rng(0).normal(size=(40, 4))
    values[17, 2] = np.nan
    return train(npy(folder / "nan.npy", values))


def corrupt(folder: Path) -> list[object]:
    path = folder / "run/model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    return ["evaluate", folder / "run"]


def foreign(folder: Path) -> list[object]:
    path = folder / "run/model.safetensors"
    names = list(load_tensors(path))
    save_tensors(path, {f"theirs.{n}": t for n, t in load_tensors(path).items() if n in names[:2]})
    return ["sample", folder / "run"]


def pickled(folder: Path) -> list[object]:
    raw(folder / "run/model.safetensors", pickle.dumps({"weights": [1.0]}))
    return ["evaluate", folder / "run"]


def edited(folder: Path) -> list[object]:
    path = folder / "run/config.json"
    record = json.loads(path.read_text())
    record["optimizer"]["learning_rate"] = 1.0
    record["model"]["wdths"] = [8]
    path.write_text(json.dumps(record))
    return ["evaluate", folder / "run"]


def integers(shape: tuple[int, ...], levels: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, shape)


RUN_AGAIN = lambda f, *more: ["train", f / "run", "--data.name", f / "tiny.npy", *TINY, "--steps", 2, *more]  # noqa: E731

BAD: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "a missing file": (
        lambda f: train(f / "nowhere.npy"),
        'TMP/nowhere.npy does not exist; expected "digits", an array in .npy or .npz, an IDX file (*-ubyte or '
        "*.idx, perhaps .gz), a table (.csv, .tsv, .parquet), a folder of images, of tables or with MNIST's "
        'files, or "hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or a .txt file',
    ),
    "a missing file to evaluate": (
        lambda f: ["evaluate", f / "run", "--data", f / "nowhere.npy"],
        'TMP/nowhere.npy does not exist; expected "digits", an array in .npy or .npz, an IDX file (*-ubyte or '
        "*.idx, perhaps .gz), a table (.csv, .tsv, .parquet), a folder of images, of tables or with MNIST's "
        'files, or "hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or a .txt file',
    ),
    "a truncated npy": (
        truncated_npy,
        "TMP/cut.npy could not be read (its header declares shape (40, 4) of float64, got 1250 bytes of values); save it again",
    ),
    "a truncated IDX": (
        truncated_idx,
        "TMP/cut-idx3-ubyte is truncated: its header declares 160 bytes of values (shape (10, 4, 4), uint8), got "
        "100; get the file again",
    ),
    "NaN": (
        with_nan,
        "TMP/nan.npy: item 17 (split train) has a value that is not finite; correct or drop the item",
    ),
    "no items": (
        lambda f: train(npy(f / "none.npy", np.zeros((0, 4)))),
        "TMP/none.npy: 0 items, split by (0.8, 0.1, 0.1), leave 0 train, 0 validation and 0 test items; each "
        "needs at least one. Give more items or other fractions",
    ),
    "a pickle as data": (
        lambda f: train(raw(f / "a.npy", pickle.dumps({"a": 1}))),
        "TMP/a.npy contains Python objects, or is not a NumPy file; pickles are never loaded. Save plain arrays "
        "of numbers with np.save or np.savez",
    ),
    "integers without levels": (
        lambda f: train(f / "tiny.npy"),
        "tiny.npy: expected the number of levels of these integers, which is never assumed, got none. The largest value is 4, "
        "so at least levels=5 fit; for 8-bit images: levels=256 (--levels 256; for train --data.levels 256)",
    ),
    "values outside the levels": (
        lambda f: train(f / "tiny.npy", "--data.levels", 4),
        "TMP/tiny.npy: item 0 (split train) has a value outside the declared levels 0 … 3 (values: 0 to 4); "
        "declare at least levels=5",
    ),
    "items of another shape": (
        lambda f: ["evaluate", f / "run", "--data", npy(f / "b.npy", integers((40, 1, 5, 5)))],
        "TMP/b.npy: expected items of shape (1, 4, 4), as the model was trained on, got (1, 5, 5)",
    ),
    "other levels": (
        lambda f: ["evaluate", f / "run", "--data", f / "tiny.npy", "--levels", 7],
        "--levels 7: the run was trained on data of 5 levels; leave it out",
    ),
    "no levels": (
        lambda f: ["evaluate", f / "run", "--levels", 0],
        "--levels 0: the run was trained on data of 5 levels; leave it out",
    ),
    "a used folder": (
        lambda f: RUN_AGAIN(f),
        "TMP/run already holds a run; continue it with --resume, or name another folder",
    ),
    "a resume with another config": (
        lambda f: RUN_AGAIN(f, "--resume", "--batch", 9, "--optimizer.lr", 0.5),
        "TMP/run was begun with another config; resume with the same config, or name another folder. Differences (run "
        "→ now): optimizer.lr: 0.002 → 0.5; batch: 8 → 9",
    ),
    "corrupt weights": (
        corrupt,
        "TMP/run/model.safetensors is corrupt or no safetensors file: Error while deserializing header: "
        "incomplete metadata, file not fully covered",
    ),
    "foreign weights": (
        foreign,
        "TMP/run/model.safetensors does not fit the model of this config: process.schedule.gamma_min is missing; "
        "process.schedule.gamma_max is missing; denoiser.module.embedding.frequencies is missing; and 58 more",
    ),
    "pickled weights": (
        pickled,
        "TMP/run/model.safetensors is a pickle, which can run code when it is loaded; it was not opened. Convert "
        "it where you trust it: safetensors.torch.save_file(state_dict, 'model.safetensors')",
    ),
    "an unknown key in config.json": (
        edited,
        "TMP/run/config.json: unknown config key 'model.wdths'; did you mean 'model.widths'?",
    ),
    "a missing run": (
        lambda f: ["evaluate", f / "no-run"],
        "TMP/no-run is not a folder; give the run folder that `diffusional train` wrote, or a checkpoint: a folder that diffusers "
        "wrote, or a Hub id, owner/name",
    ),
    "a missing run to sample": (
        lambda f: ["sample", f / "no-run"],
        "TMP/no-run is not a folder; give the run folder that `diffusional train` wrote",
    ),
    "a folder that is no run": (
        lambda f: ["sample", f],
        "TMP/data.json does not exist",
    ),
    "json into a missing folder": (
        lambda f: ["evaluate", f / "run", "--json", f / "nowhere/a.json"],
        "--json TMP/nowhere/a.json: the folder TMP/nowhere does not exist",
    ),
    "json onto a folder": (
        lambda f: ["evaluate", f / "run", "--json", f / "run"],
        "--json TMP/run: this is a folder; give a file",
    ),
    "eta above one": (
        lambda f: ["sample", f / "run", "--eta", 2, "--method", "ddim", "--steps", 3],
        "expected eta from 0 (deterministic) to 1 (the Markov chain), got 2.0",
    ),
    "eta of the model's own chain": (
        lambda f: ["sample", f / "run", "--eta", 0.5, "--steps", 3],
        'expected method="ddim" for eta=0.5, got method="ancestral", which has no eta',
    ),
    "a chain of one": (
        lambda f: ["sample", f / "run", "--steps", 1],
        "expected steps to be an integer of at least 2, or None for continuous time, got 1",
    ),
    "a bound of one latent": (
        lambda f: ["evaluate", f / "run", "--steps", 1],
        'expected steps to be an integer T ≥ 2, or "continuous", got 1',
    ),
    "no samples": (
        lambda f: ["sample", f / "run", "--n", 0],
        "expected n to be at least 1, got 0",
    ),
    "samples of another kind": (
        lambda f: ["sample", f / "run", "--out", f / "a.png", "--steps", 3],
        "expected an .npz file for --out, got TMP/a.png",
    ),
    "samples onto samples": (
        lambda f: ["sample", f / "run", "--out", npz(f / "a.npz"), "--steps", 3],
        "--out TMP/a.npz exists and was not replaced; name another file",
    ),
    "a folder with no run to resume": (
        lambda f: train(f / "tiny.npy", "--data.levels", 5, "--resume"),
        "TMP/new has no run to resume; leave out --resume to begin one there",
    ),
    "data that changed since": (
        lambda f: ["evaluate", npy(f / "tiny.npy", integers((40, 1, 4, 4), 4)).parent / "run"],
        "test of TMP/tiny.npy is not the data that TMP/run was trained with: the file has changed, or the run was given "
        "its data in Python. Name the data to evaluate with --data",
    ),
    "a folder that can't be made": (
        lambda f: ["train", f / "tiny.npy/run", "--data.name", f / "tiny.npy", *TINY],
        "TMP/tiny.npy/run cannot be created ([Errno 20] Not a directory: 'TMP/tiny.npy/run'); name another folder",
    ),
    "widths that norms can't divide": (
        lambda f: train(f / "tiny.npy", "--data.levels", 5, "--model.widths", 10),
        "expected model.widths to be multiples of 8, got (10,)",
    ),
    "a negative seed": (
        lambda f: train(f / "tiny.npy", "--data.levels", 5, "--seed", -1),
        "expected seed to be an integer from 0 to 2^32 - 1, got -1",
    ),
    "samples into a missing folder": (
        lambda f: ["sample", f / "run", "--out", f / "nowhere/a.npz", "--steps", 3],
        "--out TMP/nowhere/a.npz: the folder TMP/nowhere does not exist",
    ),
    "no draws": (
        lambda f: ["evaluate", f / "run", "--draws", 0],
        "expected draws and cells to be at least 1, got draws=0 and cells=1000",
    ),
    "a target and a sweep": (
        lambda f: ["evaluate", f / "run", "--sweep", "--error", 0.1],
        "--error cannot be combined with a full sweep (--sweep, --draws, --cells): leave one out",
    ),
    "two targets": (
        lambda f: ["evaluate", f / "run", "--visits", 4, "--item-error", 0.1],
        "expected one of target_error, visits and item_error, got visits and item_error",
    ),
    "a target of nothing": (
        lambda f: ["evaluate", f / "run", "--error", 0],
        "expected target_error to be a positive number, got 0.0",
    ),
    "a T and none": (
        lambda f: ["evaluate", f / "run", "--steps", 5, "--continuous"],
        "expected either --steps or --continuous, got --steps 5 and --continuous: leave one out",
    ),
    "scores of another kind": (
        lambda f: ["evaluate", f / "run", "--per-item", f / "scores.txt"],
        "expected a .csv or .npz file for --per-item, got TMP/scores.txt",
    ),
    "a missing plan": (
        lambda f: ["evaluate", f / "run", "--plan", f / "no.json"],
        "TMP/no.json does not exist",
    ),
    "two runs and a sweep": (
        lambda f: ["evaluate", f / "run", f / "run", "--sweep"],
        "--sweep cannot be used with two runs: expected --error or --max-evaluations. Leave it out, or evaluate one run at a time",
    ),
    "two runs and options of one": (
        lambda f: ["evaluate", f / "run", f / "run", "--visits", 4, "--item-error", 1],
        "--item-error, --visits cannot be used with two runs: expected --error or --max-evaluations. Leave them out, or evaluate "
        "one run at a time",
    ),
    "no cells": (
        lambda f: ["evaluate", f / "run", "--cells", 0],
        "expected draws and cells to be at least 1, got draws=None and cells=0",
    ),
    "betas without T": (
        lambda f: train(f / "tiny.npy", "--data.levels", 5, "--schedule.kind", "cosine"),
        "expected schedule.steps, such as 1000, for schedule.kind='cosine', which has betas, got none",
    ),
    "a config that makes no model": (
        lambda f: train(
            npy(f / "real.npy", np.random.default_rng(0).normal(size=(40, 3))), "--model.predicts", "levels"
        ),
        'expected predicts to be "noise", "data" or "v" for continuous data, which have no levels, got "levels"',
    ),
    "a preset of another run": (
        lambda f: ["train", f / "run", "--resume", "--preset", "digits"],
        "TMP/run was begun with another config; resume with the same config, or name another folder. Differences (run "
        "→ now): data.name: TMP/tiny.npy → digits; data.levels: 5 → None; data.warps: 0 → 15; model.widths: [8, "
        "8] → [16, 48]; model.blocks: 1 → 2; model.dropout: 0.2 → 0.05; optimizer.lr: 0.002 → 0.005; "
        "optimizer.weight_decay: 0.01 → 0.3; optimizer.warmup: 200 → 100; batch: 8 → 128; "
        "validate_every: 250 → 200",
    ),
    "an infinite number": (
        lambda f: train(f / "tiny.npy", "--data.levels", 5, "--optimizer.clip", "inf"),
        "config key 'optimizer.clip' is inf; expected a finite number",
    ),
    "warps of what are no digits": (
        lambda f: ["data", f / "tiny.npy", "--levels", 5, "--warps", 3],
        "data.warps is only for the embedded digits, got data.warps=3 for TMP/tiny.npy: leave it out",
    ),
    "levels of digits": (
        lambda f: ["data", "digits", "--levels", 3],
        "levels must be 17 for digits, got 3; leave levels out, or name other data (--data)",
    ),
    "data of no known kind": (
        lambda f: ["data", raw(f / "a.xyz", b"1")],
        'TMP/a.xyz is of an unknown kind; expected "digits", an array in .npy or .npz, an IDX file (*-ubyte or '
        "*.idx, perhaps .gz), a table (.csv, .tsv, .parquet), a folder of images, of tables or with MNIST's "
        'files, or "hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or a .txt file',
    ),
    "data that are missing": (
        lambda f: ["data", f / "nowhere"],
        'TMP/nowhere does not exist; expected "digits", an array in .npy or .npz, an IDX file (*-ubyte or *.idx, '
        "perhaps .gz), a table (.csv, .tsv, .parquet), a folder of images, of tables or with MNIST's files, or "
        '"hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or a .txt file',
    ),
    "data without levels": (
        lambda f: ["data", f / "tiny.npy"],
        "tiny.npy: expected the number of levels of these integers, which is never assumed, got none. The largest value is 4, "
        "so at least levels=5 fit; for 8-bit images: levels=256 (--levels 256; for train --data.levels 256)",
    ),
    "a side for what are no images": (
        lambda f: ["data", f / "tiny.npy", "--levels", 5, "--size", 8],
        "size=8 was given for an array (.npy, .npz, IDX), but it is for images and the Hub; leave it out",
    ),
    "columns of what is no table": (
        lambda f: ["data", f / "tiny.npy", "--levels", 5, "--columns", "a"],
        "columns=('a',) was given for an array (.npy, .npz, IDX), but it is for a table; leave it out",
    ),
    "a stream of a file": (
        lambda f: ["data", f / "tiny.npy", "--levels", 5, "--streaming"],
        "streaming=True was given for an array (.npy, .npz, IDX), but it is for the Hub; leave it out",
    ),
    "a side of no pixels": (
        lambda f: ["data", f / "tiny.npy", "--size", 0],
        "expected data.size to be at least 1 pixel, got 0",
    ),
    "a picture of another kind": (
        lambda f: ["data", f / "tiny.npy", "--levels", 5, "--figure", f / "a.gif"],
        "expected a .png, .svg or .pdf file for --figure, got TMP/a.gif",
    ),
    "a picture in a missing folder": (
        lambda f: ["data", f / "tiny.npy", "--figure", f / "nowhere/a.png"],
        "--figure TMP/nowhere/a.png: the folder TMP/nowhere does not exist",
    ),
    "an empty folder": (
        lambda f: ["data", made(f / "empty")],
        'TMP/empty holds no data of a known kind (it holds: nothing); expected "digits", an array in .npy or '
        ".npz, an IDX file (*-ubyte or *.idx, perhaps .gz), a table (.csv, .tsv, .parquet), a folder of images, "
        'of tables or with MNIST\'s files, or "hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or a .txt file',
    ),
    "images of two sizes": (
        lambda f: ["data", pictures(f / "pictures", *[(8, 8)] * 20, (8, 9))],
        "TMP/pictures/00.png has 8 × 8 pixels and TMP/pictures/20.png has 9 × 8; choose one side for all: size=64 "
        '(--data.size 64) scales the centre square, with fit="resize" (--data.fit resize) the whole image',
    ),
    "an image cut short": (
        lambda f: ["data", cut(pictures(f / "pictures", *[(8, 8)] * 20) / "07.png")],
        "TMP/pictures/07.png could not be read as an image (its content is not that of a known format); "
        "get it again, or remove it from the data",
    ),
    "a table with a word": (
        lambda f: ["data", raw(f / "a.csv", b"a,b\n" + b"1,2\n" * 30 + b"3,four\n")],
        "TMP/a.csv: column 'b' is not numeric; choose columns=('a',) (--columns a; for train --data.columns a) "
        "(in 'b' the value in row 31 is 'four')",
    ),
    "a table with a gap": (
        lambda f: ["data", raw(f / "a.csv", b"a,b\n" + b"1,2\n" * 30 + b"3,\n")],
        "TMP/a.csv: the value of column 'b' in row 31 (after the header) is missing (empty, NA or NaN); correct or drop "
        "the row, or choose the columns without gaps: columns=('a',) (--columns a; for train --data.columns a)",
    ),
    "a table without the column": (
        lambda f: ["data", raw(f / "a.csv", b"a,b\n" + b"1,2\n" * 30), "--columns", "c"],
        "TMP/a.csv has no column 'c'; it has 'a', 'b'",
    ),
    "a table without a header": (
        lambda f: ["data", raw(f / "a.csv", b"1,2\n" * 30)],
        "TMP/a.csv begins with numbers ('1', '2') and has no header; write the columns' names as its first line",
    ),
    "findings into a missing folder": (
        lambda f: ["doctor", "--json", f / "nowhere/a.json"],
        "--json TMP/nowhere/a.json: the folder TMP/nowhere does not exist",
    ),
    "importance weights in continuous time": (
        lambda f: ["evaluate", f / "run", "--importance-weighted", 5],
        "--importance-weighted needs paths of finitely many latents, but the model is evaluated in continuous time; give --steps, such as 10",
    ),
    "an unknown claim": (
        lambda f: ["claims", "--only", "C77"],
        "expected claims to be some of C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17, got C77",
    ),
    "a schedule for a run": (
        lambda f: ["information", f / "run", "--schedule", "cosine"],
        "the options of a schedule, --levels and --figure are for data, but TMP/run is a run, which has its own: leave them out",
    ),
    "no steps": (
        lambda f: ["demo", "--steps", 0, "--out", f / "demo"],
        "expected steps to be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace(str(tiny), str(tmp_path)))
    make, message = BAD[case]
    args = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, out, err = main(capsys, *args)
    # What was printed, whole; paths are those of the test.
    assert err.startswith("diffusional: error: ")
    assert " ".join(err.replace(str(tmp_path), "TMP").split()) == f"diffusional: error: {message}"
    assert status == 2
    assert "Traceback" not in out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# What the parser does not take: nothing is looked at, and no folder is made.
MISTYPED = {
    (): "expected a command, one of demo, train, evaluate, import, export, compress, decompress, push, pull, check, score, classify, sample, information, plot, report, data, claims, doctor, completion, got none. "
    "See diffusional --help",
    ("--steps", "3"): "expected a command, one of demo, train, evaluate, import, export, compress, decompress, push, pull, check, score, classify, sample, information, plot, report, data, claims, doctor, completion, "
    "got --steps. See diffusional --help",
    ("trian", "new"): "unknown command 'trian'; did you mean train? See diffusional --help",
    ("train",): "RUN is missing. See diffusional train --help",
    ("train", "new", "more"): "expected no arguments after RUN, got more. See diffusional train --help",
    ("evaluate", "a", "b", "c"): "expected no arguments after RUN RUN B, got c. See diffusional evaluate --help",
    ("claims", "C1"): "expected only options, got C1. See diffusional claims --help",
    ("train", "new", "--stepz", "3"): "unknown option --stepz; did you mean --steps? See diffusional train --help",
    ("train", "new", "--optimizer.lrr", "3"): "unknown option --optimizer.lrr; did you mean --optimizer.lr? See diffusional train --help",
    ("train", "new", "--lr", "3"): "unknown option --lr; did you mean --optimizer.lr? See diffusional train --help",
    ("train", "new", "--zzz"): "unknown option --zzz; there is no similar option. See diffusional train --help",
    ("evaluate", "run", "--drawz", "3"): "unknown option --drawz; did you mean --draws? See diffusional evaluate --help",
    ("train", "new", "--sampler", "random"): "invalid --sampler random: expected one of stratified, adaptive, uniform, "
    "second-moment. See diffusional train --help",
    ("train", "new", "--model.kind", "vea"): "invalid --model.kind vea: did you mean vae? Expected one of diffusion, "
    "binomial-diffusion, gaussian-chain, vae, hierarchical-vae, vae-diffusion-prior, contrastive, masked, uniform. See diffusional train --help",
    ("train", "new", "--preset", "digit"): "invalid --preset digit: did you mean digits? Expected one of digits, digits-vae, "
    "digits-hierarchical-vae, digits-diffusion-prior, essay, essay-tuned, laptop, images, sohl-dickstein-2015, sohl-dickstein-2015-binary, ddpm, iddpm, vdm. See diffusional train --help",
    ("train", "new", "--preset"): "--preset: expected one of digits, digits-vae, digits-hierarchical-vae, "
    "digits-diffusion-prior, essay, essay-tuned, laptop, images, sohl-dickstein-2015, sohl-dickstein-2015-binary, ddpm, iddpm, vdm, got none. See diffusional train --help",
    ("train", "new", "--steps", "many"): "invalid --steps many: expected an integer. See diffusional train --help",
    ("train", "new", "--steps=3.5"): "invalid --steps 3.5: expected an integer. See diffusional train --help",
    ("train", "new", "--steps"): "--steps: expected an integer, got none. See diffusional train --help",
    ("train", "new", "--resume=3"): "--resume: expected no value, got 3. See diffusional train --help",
    ("train", "new", "--model.widths", "8", "b"): "invalid --model.widths b: expected an integer. See diffusional train --help",
    ("train", "new", "--optimizer.lr", "nan"): "expected optimizer.lr to be a positive number, got nan",
    ("train", "new", "--steps", "0"): "expected steps to be at least 1, got 0",
    ("train", "new", "--objective", "hybrid"): 'expected model.variance="learned" for objective="hybrid", got "posterior"',
    ("train", "new", "--schedule.kind", "learned", "--objective", "simple"): 'expected objective="elbo" for schedule.kind="learned", '
    "got \"simple\": a schedule must be trained by the bound, since other objectives favour the levels at which the noise is easiest to predict",
    ("train", "new", "--schedule.kind", "learned_betas"): "expected schedule.steps, such as 1000, for schedule.kind='learned_betas', which has "
    "betas, got none",
    ("train", "new", "--sampler", "second-moment"): 'expected schedule.steps, such as 1000, for model.variance="posterior" and '
    'sampler="second-moment", got continuous time, which has neither steps with a variance nor levels with costs',
    ("sample", "run", "--method", "euler"): "invalid --method euler: expected one of ancestral, ddim. See diffusional sample --help",
    ("data", "--wraps", "3"): "unknown option --wraps; did you mean --warps? See diffusional data --help",
    ("completion",): "SHELL is missing. See diffusional completion --help",
    ("completion", "bsh"): "invalid SHELL bsh: did you mean bash? Expected one of bash, zsh, fish. See diffusional completion --help",
    ("doctor", "--jsn", "a"): "unknown option --jsn; did you mean --json? See diffusional doctor --help",
}  # fmt: skip


@pytest.mark.parametrize("args", MISTYPED)
def test_mistyped(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(capsys, *args) == (2, "", f"diffusional: error: {MISTYPED[args]}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_not_dressed_up_as_bad_input(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "run", lambda command: [][0])
    status, _, err = main(capsys, "sample", tiny / "run")
    assert status == 70
    assert "IndexError" in err
    assert "Traceback" not in err


def test_results_outlast_an_output_that_cannot_take_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    record, scores = tmp_path / "a.json", tmp_path / "scores.csv"
    args = ["evaluate", tiny / "run", "--sweep", "--draws", 2, "--json", record, "--per-item", scores]
    cli.main([*map(str, args)])
    sys.stdout.flush()
    assert json.loads(record.read_text())["items"] == len(scores.read_text().splitlines()) - 1 == 4
    assert b"+/- MC" in raw.getvalue()

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            assert record.exists()
            assert scores.exists()
            raise BrokenPipeError

    record.unlink()
    scores.unlink()
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(SystemExit, match="141"):
        cli.main([*map(str, args)])
    assert json.loads(record.read_text())["items"] == 4
    assert scores.exists()


def test_a_run_that_cannot_be_written_is_evaluated(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(tiny / "run", tmp_path / "run")
    (run / "plan.json").unlink(missing_ok=True)
    real = files._workplace

    def refused(folder: Path) -> Any:
        if folder == run:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(folder)

    monkeypatch.setattr(files, "_workplace", refused)
    record = tmp_path / "a.json"
    status, out, err = main(capsys, "evaluate", run, "--error", 1, "--json", record)
    assert status in (0, 3)
    assert "NELBO" in out
    assert json.loads(record.read_text())["items"] == 4
    assert "diffusional: warning: " in err
    assert "Read-only file system" in err


def test_names_are_printed_as_they_are(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "[bold]a[v2] :smile:"
    shutil.copytree(tiny / "run", name)
    shutil.copyfile(tiny / "tiny.npy", f"{name}.npy")
    sampling = ["sample", name, "--n", 1, "--steps", 2]
    for args in (sampling, ["evaluate", name, "--sweep", "--draws", 1, "--data", f"{name}.npy"]):
        status, out, _ = main(capsys, *args)
        assert status == 0
        assert name in " ".join(out.split())


def test_samples_replace_no_picture(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    status, _, err = main(capsys, "sample", tiny / "run", "--n", 1, "--steps", 2, "--out", tmp_path / "a.npz")
    assert (status, "a.png" in err) == (2, True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.png": b"mine"}


def test_samples_under_a_name_that_was_taken_meanwhile_get_the_next(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, out = DiffusionModel.sample, tmp_path / "a.npz"

    def slowly(*args: Any, **options: Any) -> Any:
        out.write_bytes(b"of another process")
        return draw(*args, **options)

    monkeypatch.setattr(DiffusionModel, "sample", slowly)
    assert main(capsys, "sample", tiny / "run", "--n", 1, "--steps", 2, "--out", out)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.npz", "a-2.png", "a.npz"]
    assert out.read_bytes() == b"of another process"


def test_samples_that_are_not_finite_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionModel, "sample", lambda self, n, *_, **__: torch.full((n, 1, 4, 4), torch.nan))
    status, _, err = main(capsys, "sample", tiny / "run", "--n", 2, "--out", tmp_path / "a.npz")
    assert (status, "2 of 2 samples are not finite" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


# The demonstration.


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_ERROR", 0.5)
    monkeypatch.setattr(demo, "_CHAIN", 11)
    monkeypatch.setattr(demo, "_SAMPLES", 20)
    monkeypatch.setattr(demo, "_TIMED", 20)
    monkeypatch.setattr(objective, "VALIDATION_DRAWS", 1)
    small = Config(model=ModelConfig(widths=(8, 8), blocks=1), batch=8)
    monkeypatch.setattr(recipes, "digits", lambda: small)
    for name in ("digits_vae", "digits_hierarchical_vae"):
        tiny = getattr(recipes, name)()
        tiny = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, hidden=16, blocks=1), batch=8)
        monkeypatch.setattr(recipes, name, lambda tiny=tiny: tiny)
    out = tmp_path / "demo"
    status, said, _ = main(capsys, "demo", "--steps", 2, "--seed", 3, "--out", out, "--json", tmp_path / "a.json")
    assert status == 0
    record = json.loads((out / "demo.json").read_text())
    assert json.loads((tmp_path / "a.json").read_text()) == record
    assert list(record["models"]) == ["diffusion", "vae", "hierarchical_vae"]
    entries = {**record["models"], **record["baselines"]}
    for model in record["models"].values():
        assert [set(point) for point in model["information"]] == [{"step", "value", "error"}] * len(
            model["information"]
        )
        assert len(model["information"]) >= 2
    # No training can change what is fixed: I(x; z_1) of a thousand images at the smallest noise.
    for point in record["models"]["diffusion"]["information"]:
        assert point["value"] == pytest.approx(math.log(1000), abs=1e-3)
    for entry in entries.values():
        assert {"nelbo", "nelbo_nats", "terms", "items", "dimensions", "levels", "network_evaluations"} <= set(entry)
        assert (entry["items"], entry["dimensions"], entry["levels"]) == (447, 64, 17)
        assert set(entry["nelbo"]) == {"value", "error", "item_error", "unit"}
    # What the essay found for these yardsticks.
    assert record["baselines"]["factorised categorical"]["nelbo"]["value"] == pytest.approx(2.40, abs=0.02)
    assert record["baselines"]["mixture of 10 categoricals"]["nelbo"]["value"] == pytest.approx(2.28, abs=0.06)
    for entry in entries.values():
        assert with_error(entry["nelbo"]["value"], entry["nelbo"]["error"])[0] in said
    assert "447 test images" in " ".join(said.split())
    config = Config.load(out / "config.json")
    assert (config.steps, config.seed) == (2, 3)
    for name in ("vae", "hierarchical_vae"):
        assert Config.load(out / name / "config.json").data == config.data
        assert (out / name / "model.safetensors").exists()
    names = ("samples", "forward", "reverse", "levels", "samples-vae", "samples-hierarchical_vae", "information")
    for name in names:
        picture = np.asarray(Image.open(out / f"{name}.png").convert("L"))
        assert picture.std() > 10
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    # Another demonstration takes the next name. What it writes, it writes there, as the first did.
    def other(config: Config, run: Path, console: Any) -> dict[str, Any]:
        run.mkdir()
        save_json(run / "demo.json", {})
        return {"run": str(run)}

    monkeypatch.setattr(demo, "demo", other)
    assert main(capsys, "demo", "--steps", 1, "--out", out)[0] == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert (tmp_path / "demo-2" / "demo.json").exists()
