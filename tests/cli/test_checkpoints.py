"""`evaluate` of a checkpoint, and `import`."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import diffusional as df
from battery import command
from diffusional import cli
from diffusional.errors import DiffusionalError
from diffusional.files import load_json
from interop.pipelines import saved, unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline for 1×8×8 images."""
    network = unet(dtype=torch.float32, sample_size=8)
    return saved(tmp_path_factory.mktemp("pipeline") / "model", DDPMScheduler(num_train_timesteps=6), network)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twelve 8-bit images."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return str(tmp_path / "images.npy")


def run(*args: object) -> dict[str, Any]:
    cli.main([*map(str, args), "--json", "-"])
    return {}


def record_of(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[dict[str, Any], str]:
    """The record of a command, and what it printed beside it."""
    run(*args)
    out, err = capsys.readouterr()
    return json.loads(out), err


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The message of a command that is refused with status 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, args)))
    assert stop.value.code == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "warning" not in one]
    return line


def _plain_run(tmp_path: Path) -> Path:
    """A run that was trained here for two steps."""
    config = df.Config(
        steps=2,
        model=df.training.config.ModelConfig(widths=(8, 8), blocks=1),
        schedule=df.training.config.ScheduleConfig(steps=6),
    )
    df.train(config, tmp_path / "trained")
    return tmp_path / "trained"


def test_one_command_from_a_folder_to_a_number(folder: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    clipped, printed = record_of(capsys, "evaluate", folder, "--data", data, "--draws", 2)
    # What the number rests on is printed before it.
    place = [printed.index(text) for text in ("from the config: T = 6", "assumed: x is 1×8×8 with 256", "NELBO")]
    assert place == sorted(place)
    assert "clip_sample=True" in clipped["provenance"]["origin"]["config"]["clipping"]
    x = df.Discrete((1, 8, 8), 256).encode(torch.from_numpy(np.load(data)).long())
    wanted = df.evaluate(df.load_checkpoint(folder), x, draws=2)
    assert clipped["nelbo_nats"]["value"] == pytest.approx(wanted.nelbo.value, rel=1e-9)
    unclipped, _ = record_of(capsys, "evaluate", folder, "--data", data, "--draws", 2, "--unclipped")
    assert unclipped["nelbo_nats"]["value"] > wanted.nelbo.value + 20
    assert unclipped["provenance"]["origin"]["given"].keys() == {"clipping"}
    other, _ = record_of(
        capsys, "evaluate", folder, "--data", data, "--draws", 2, "--decoder", "openai", "--variance", "fixed_large"
    )
    assert other["provenance"]["origin"]["given"].keys() == {"decoder", "variance"}
    assert sorted(folder.rglob("*")) == before


def test_levels_are_those_of_the_data(
    folder: Path, data: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "bits.npy", np.load(data) // 128)
    found, _ = record_of(capsys, "evaluate", folder, "--data", tmp_path / "bits.npy", "--levels", 2, "--draws", 1)
    assert found["levels"] == 2
    assert "2 levels" in found["provenance"]["origin"]["given"]["space"]


def test_two_checkpoints_and_a_run_are_compared(
    folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["import", str(folder), str(tmp_path / "run")])
    capsys.readouterr()
    for a, b in ((folder, folder), (folder, tmp_path / "run"), (tmp_path / "run", folder)):
        found, _ = record_of(capsys, "evaluate", a, b, "--data", data, "--error", 1)
        assert found["difference"]["value"] == pytest.approx(0, abs=1e-9)


def test_import_makes_a_run_on_which_commands_work(
    folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, run_ = tmp_path / "model", tmp_path / "run"
    shutil.copytree(folder, checkpoint)
    record, printed = record_of(capsys, "import", checkpoint, run_, "--data", "digits", "--decoder", "level-posterior")
    assert (
        {path.name for path in run_.iterdir()}
        == {"config.json", "data.json", "checkpoint.json"}
        == set(record["files"])
    )
    assert "assumed" not in record["origin"]
    assert "LevelPosterior" in printed or "without the network" in printed
    model = df.load(run_)
    assert model.space == df.Discrete((1, 8, 8), 17)
    assert type(model.likelihood).__name__ == "LevelPosterior"
    found, printed = record_of(capsys, "evaluate", run_, "--error", 0.5, "--split", "validation")
    assert "from the config: T = 6" in printed
    assert found["split"] == "validation"
    assert (run_ / "plan.json").is_file()
    cli.main(["sample", str(run_), "--n", "2", "--out", str(tmp_path / "samples.npz")])
    assert np.load(tmp_path / "samples.npz")["samples"].shape == (2, 1, 8, 8)
    capsys.readouterr()
    unclipped, _ = record_of(capsys, "evaluate", run_, "--unclipped", "--split", "validation", "--draws", 1)
    assert "clipping" in unclipped["provenance"]["origin"]["given"]
    # The checkpoint is part of the run: without it, or with other weights, there is no number.
    changed = unet(dtype=torch.float32, sample_size=8)
    with torch.no_grad():
        changed.conv_in.bias += 1
    changed.save_pretrained(checkpoint / "unet")
    with pytest.raises(DiffusionalError, match=r"diffusion_pytorch_model\.safetensors.*changed"):
        df.load(run_)
    shutil.rmtree(checkpoint)
    assert "does not exist" in refused(capsys, "evaluate", run_)


def test_import_without_data(folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ = tmp_path / "run"
    cli.main(["import", str(folder), str(run_), "--unclipped"])
    assert "--data" in capsys.readouterr().out
    assert load_json(run_ / "checkpoint.json")["options"] == {"clipped": False}
    assert df.load(run_).denoiser.rule is None
    found, _ = record_of(capsys, "evaluate", run_, "--data", data, "--error", 5)
    assert found["nelbo"]["value"] > 0
    assert "--data" in refused(capsys, "evaluate", run_)


def test_classes_come_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = unet(dtype=torch.float32, sample_size=8, num_class_embeds=10)
    checkpoint = saved(tmp_path / "model", DDPMScheduler(num_train_timesteps=6), network)
    images = np.random.default_rng(0).integers(0, 17, (20, 1, 8, 8))
    np.savez(tmp_path / "images.npz", images=images, label=np.arange(20) % 10)
    found, _ = record_of(
        capsys, "evaluate", checkpoint, "--data", tmp_path / "images.npz", "--levels", 17, "--draws", 1
    )
    model = df.load_checkpoint(checkpoint, levels=17)
    wanted = df.evaluate(model, model.space.encode(torch.from_numpy(images)), draws=1, condition=torch.arange(20) % 10)
    assert found["nelbo_nats"]["value"] == pytest.approx(wanted.nelbo.value, rel=1e-9)
    cli.main(["import", str(checkpoint), str(tmp_path / "run"), "--data", "digits"])
    cli.main(["sample", str(tmp_path / "run"), "--n", "2", "--label", "3"])


def test_labels_may_be_the_names_of_id2label_or_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = unet(dtype=torch.float32, sample_size=8, num_class_embeds=3)
    checkpoint = saved(tmp_path / "model", DDPMScheduler(num_train_timesteps=4), network)
    index = load_json(checkpoint / "model_index.json")
    names = ["eel", "cat", "dog"]
    (checkpoint / "model_index.json").write_text(json.dumps(index | {"id2label": dict(enumerate(names))}))
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8))
    numbers = np.array([0, 1, 2, 2, 1, 0])
    values = []
    for label in (np.array(names)[numbers], numbers):
        np.savez(tmp_path / "images.npz", images=images, label=label)
        args = ("evaluate", checkpoint, "--data", tmp_path / "images.npz", "--draws", 1, "--no-check")
        values.append(record_of(capsys, *args)[0]["nelbo_nats"]["value"])
    model = df.load_checkpoint(checkpoint)
    x = model.space.encode(torch.from_numpy(images))
    wanted = df.evaluate(model, x, draws=1, condition=torch.from_numpy(numbers)).nelbo.value
    assert values == [pytest.approx(wanted, rel=1e-9)] * 2
    np.savez(tmp_path / "images.npz", images=images, label=np.array(["eel", "cat", "bird"] * 2))
    assert "'bird'" in refused(capsys, *args)
    assert "another" not in refused(capsys, "import", checkpoint, tmp_path / "run", "--data", tmp_path / "images.npz")


def test_what_is_refused(folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one line, and nothing written."""
    assert "--data" in refused(capsys, "evaluate", folder)
    assert "runs/nothing is not a folder" in refused(capsys, "evaluate", "runs/nothing", "--data", data)
    assert "--unclipped" in refused(capsys, "evaluate", _plain_run(tmp_path), "--unclipped")
    assert "df.load_checkpoint" in refused(capsys, "sample", folder)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "exists" in refused(capsys, "import", folder, taken)
    assert "is not a checkpoint" in refused(capsys, "import", taken, tmp_path / "run")
    np.save(tmp_path / "small.npy", np.zeros((12, 1, 4, 4), dtype=np.uint8))
    assert "4, 4" in refused(capsys, "import", folder, tmp_path / "run", "--data", tmp_path / "small.npy")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in refused(capsys, "evaluate", broken, "--data", data)
    assert "damaged" in refused(capsys, "import", broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_check_inside_evaluate_changes_no_number(
    folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its network has random weights, which fit no reading.
    checkpoint = saved(
        tmp_path / "model", DDPMScheduler(num_train_timesteps=50), unet(dtype=torch.float32, sample_size=8)
    )
    args = ("evaluate", checkpoint, "--data", data, "--draws", 1)
    found, printed = record_of(capsys, *args)
    without, silent = record_of(capsys, *args, "--no-check")
    (line,) = [one for one in printed.splitlines() if one.startswith("check of")]
    # The line has what was found, what to do, and what it cost.
    assert found["check"]["findings"][0] in line
    assert found["check"]["remedies"][0] in line
    assert f"{found['check']['network_evaluations']:,} network evaluations" in line
    assert "diffusional check" in line
    assert printed.index("check of") < printed.index("NELBO")
    assert "check of" not in silent
    for name in ("nelbo", "network_evaluations", "per_item", "terms"):
        assert found.get(name) == without.get(name)
    assert "check" not in without
    # Also where two models are compared, for each of them; not for runs that were trained here.
    plain = _plain_run(tmp_path)
    both, printed = record_of(capsys, "evaluate", plain, folder, "--data", "digits", "--levels", 17, "--error", 5)
    assert [one is None for one in both["check"]] == [True, False]
    assert f"check of {folder}" in printed
    assert f"check of {plain}" not in printed


def test_a_bound_worse_than_equally_likely_levels_is_noted(
    folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, printed = record_of(capsys, "evaluate", folder, "--data", data, "--draws", 1, "--no-check")
    (line,) = [one for one in printed.splitlines() if one.startswith("note: the bound is worse")]
    assert f"{found['nelbo']['value']:.4f} bits/dim" in line
    assert "256 levels have 8.0000" in line
    # A model of binary images that costs less than 1 bit/dim: the line is about the bound, not about checkpoints.
    from diffusional.cli.evaluate import _worse_than_uniform

    model = df.load_checkpoint(folder)
    result = df.evaluate(model, model.space.encode(torch.from_numpy(np.load(data)).long()), visits=2)
    assert len(_worse_than_uniform(result, model)) == 1
    good = dataclasses.replace(result, nelbo=dataclasses.replace(result.nelbo, value=64 * math.log(256) - 1e-6))
    assert _worse_than_uniform(good, model) == []


def test_levels_that_are_not_those_of_the_data(
    folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("evaluate", "check", "score"):
        line = refused(capsys, verb, folder, "--data", data, "--levels", 17)
        assert "17 levels are what --levels gives" in line
    np.save(tmp_path / "few.npy", np.load(data) // 16)
    _, printed = record_of(capsys, "evaluate", folder, "--data", tmp_path / "few.npy", "--draws", 1, "--no-check")
    assert "--levels 16" in printed
    _, printed = record_of(
        capsys, "evaluate", folder, "--data", tmp_path / "few.npy", "--levels", 16, "--draws", 1, "--no-check"
    )
    assert "--levels 16:" not in printed


def test_weights_of_other_code_are_refused_with_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "openai").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "openai" / "model000200.pt")
    for path in (tmp_path / "openai", tmp_path / "openai" / "model000200.pt"):
        status, _, err = command(capsys, "evaluate", path, "--data", "digits")
        assert status == 2
        assert "model000200.pt has weights without the network" in err
        assert "df.load_weights" in err
        with pytest.raises(DiffusionalError, match=r"df\.load_weights"):
            df.load_checkpoint(path)


def test_a_report_of_a_checkpoint_has_samples_and_items(folder: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    options = ("--samples", 2, "--items", 4, "--visits", 2, "--shown", 1)
    run("report", folder, "--data", data, "-o", out, *options)
    text = out.read_text(encoding="utf-8")
    assert "images.npy" in text
    assert "was trained elsewhere" in text
    assert "are missing" not in text
    # Two samples, and an item at each end.
    assert text.count("<img") >= 4


def test_a_report_of_a_checkpoint_needs_data(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert "--data" in refused(capsys, "report", folder, "-o", out)
    assert "--saved" in refused(capsys, "report", folder, "-o", out, "--saved", "--data", "digits")
    assert "leave it out" in refused(capsys, "report", tmp_path / "bound.json", "-o", out, "--data", "digits")
    assert not out.exists()
