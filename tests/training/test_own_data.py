"""What a run records of its data, and how it has them again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from diffusional import cli
from diffusional.errors import DiffusionalError
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, DataConfig, ModelConfig
from diffusional.training.own import own_data, recorded, trained_on
from diffusional.training.run import read_run

QUIET = Console(quiet=True)
CONFIG = Config(steps=1, batch=4, model=ModelConfig(hidden=8, blocks=1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 3, (40, 4)))
    return tmp_path / "mine.npy"


def test_a_dataset_from_a_file_is_recorded_with_its_options(file: Path, tmp_path: Path) -> None:
    data = df.data.load(file, levels=3, split=(0.5, 0.25, 0.25), seed=7)
    df.train(CONFIG, tmp_path / "run", data, console=QUIET)
    record = read_run(tmp_path / "run")
    assert record.config.data == DataConfig(str(file), 3, split_seed=7, split=(0.5, 0.25, 0.25))
    assert record.source == str(file)
    assert own_data(record, ("train", "validation", "test")).fingerprint("test") == data.fingerprint("test")
    # The command line finds the data by it, to evaluate and to go on.
    cli.main(["evaluate", str(tmp_path / "run"), "--visits", "8", "--no-audit", "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["items"] == 10
    cli.main(["train", str(tmp_path / "run"), "--resume"])


def test_a_dataset_made_in_python_is_recorded_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = torch.randint(0, 3, (20, 4), generator=torch.Generator().manual_seed(0))
    data = df.data.Dataset("mine", df.Discrete((4,), 3), items[:12], items[12:16], items[16:])
    df.train(CONFIG, tmp_path / "run", data, console=QUIET)
    assert read_run(tmp_path / "run").config.data.name == "python:mine"
    for command in (["evaluate", str(tmp_path / "run")], ["train", str(tmp_path / "run"), "--resume"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert "'mine'" in said
        assert "Python" in said
        assert "--data" in said
    # In Python it goes on with the same Dataset, whatever the config says of data.
    df.train(CONFIG, tmp_path / "run", data, resume=True, console=QUIET)
    # Its training items are known by their hashes.
    np.save(tmp_path / "mixed.npy", torch.cat([items[:3], (items[:3] + 1) % 3]).numpy())
    evaluate = [
        "evaluate",
        str(tmp_path / "run"),
        "--data",
        str(tmp_path / "mixed.npy"),
        "--visits",
        "64",
        "--no-audit",
    ]
    cli.main([*evaluate, "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["trained_on"] >= 3


def test_a_run_of_an_earlier_version_goes_on_in_python(tmp_path: Path) -> None:
    items = torch.randint(0, 3, (20, 4), generator=torch.Generator().manual_seed(0))
    data = df.data.Dataset("mine", df.Discrete((4,), 3), items[:12], items[12:16], items[16:])
    df.train(CONFIG, tmp_path / "run", data, console=QUIET)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": dataclasses.asdict(DataConfig())}))
    df.train(CONFIG, tmp_path / "run", data, resume=True, console=QUIET)
    assert read_run(tmp_path / "run").config.data.name == "python:mine"
    other = dataclasses.replace(data, test=items[12:])
    with pytest.raises(DiffusionalError, match="test differ"):
        df.train(CONFIG, tmp_path / "run", other, resume=True, console=QUIET)


def test_the_digits_with_warps_are_recorded_by_name() -> None:
    config = dataclasses.replace(CONFIG, data=DataConfig(warps=1, split_seed=3))
    assert recorded(config, build_dataset(config.data)) == config
    assert recorded(config, None) is config
    assert recorded(CONFIG, df.data.load("digits")) == CONFIG


def test_training_items_are_found_where_no_hashes_were_recorded(file: Path, tmp_path: Path) -> None:
    data = df.data.load(file, levels=3)
    df.train(CONFIG, tmp_path / "run", data, console=QUIET)
    record = read_run(tmp_path / "run")
    kept = trained_on(record)
    (tmp_path / "run" / "trained-on.safetensors").unlink()
    found = trained_on(record)
    assert kept is not None
    assert found is not None
    assert torch.equal(kept.hashes, found.hashes)
    assert bool(found.among(data.encode("train")).all())
    file.unlink()
    assert trained_on(record) is None


@pytest.mark.parametrize(
    ("key", "value"), [("columns", [1]), ("columns", "xy"), ("source", 5), ("items", [3]), ("items", {"train": "3"})]
)
def test_an_edited_record_of_the_data_is_refused(key: str, value: object, file: Path, tmp_path: Path) -> None:
    df.train(CONFIG, tmp_path / "run", df.data.load(file, levels=3), console=QUIET)
    path = tmp_path / "run" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DiffusionalError, match=r"data\.json"):
        read_run(tmp_path / "run")
