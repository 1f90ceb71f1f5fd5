"""`train --config FILE`: JSON and TOML, overridden by what is typed; what is wrong is named, with the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import diffusional as df
from battery import command
from diffusional.cli.parse import parse
from diffusional.errors import DiffusionalError
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig

CONFIG = Config(
    data=DataConfig("x.npy", levels=5, split=(0.6, 0.2, 0.2), columns=("a", "b")),
    model=ModelConfig(kind="vae", widths=(8, 16)),
    latent=LatentConfig(sizes=(4,)),
    optimizer=OptimizerConfig(lr=3e-4),
    steps=7,
    max_seconds=60.0,
)
TOML = """
steps = 7
max_seconds = 60
[data]
name = "x.npy"
levels = 5
split = [0.6, 0.2, 0.2]
columns = ["a", "b"]
[model]
kind = "vae"
widths = [8, 16]
[latent]
sizes = [4]
[optimizer]
lr = 3e-4
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {kind: tmp_path / f"c.{kind}" for kind in ("json", "toml")}
    paths["json"].write_text(json.dumps(CONFIG.to_dict()))
    paths["toml"].write_text(TOML)
    return paths


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_the_file_is_the_config(kind: str, files: dict[str, Path]) -> None:
    assert df.Config.load(files[kind]) == CONFIG
    assert parse(["train", "runs/a", "--config", str(files[kind])]).config == CONFIG  # type: ignore[union-attr]
    assert parse(["train", "runs/a", f"--config={files[kind]}"]).config == CONFIG  # type: ignore[union-attr]


def test_what_is_typed_goes_over_the_file(files: dict[str, Path]) -> None:
    typed = ["--steps", "9", "--optimizer.lr", "0.1", "--data", "y.npy", "--max-seconds", "None"]
    found = parse(["train", "runs/a", "--config", str(files["toml"]), *typed]).config  # type: ignore[union-attr]
    optimizer, data = replace(CONFIG.optimizer, lr=0.1), replace(CONFIG.data, name="y.npy")
    assert found == replace(CONFIG, steps=9, optimizer=optimizer, data=data, max_seconds=None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.toml", "stepz = 3", ("stepz", "did you mean 'steps'")),
        ("c.toml", "[optimizer]\nlearning = 3", ("optimizer.learning", "known are")),
        ("c.json", '{"model": {"hiden": 3}}', ("model.hiden", "did you mean 'model.hidden'")),
        ("c.toml", "steps = 3.5", ("steps", "expected int")),
        ("c.toml", "steps = 1979-05-27", ("steps", "expected int")),
        ("c.toml", "max_seconds = inf", ("max_seconds", "finite")),
        ("c.toml", 'model = "vae"', ("model", "expected an object")),
        ("c.toml", 'objective = "vlb"', ("objective", "objective='elbo'")),
        ("c.toml", "batch = 0", ("batch", "at least 1")),
        ("c.toml", "steps = ", ("not TOML",)),
        ("c.toml", "steps = 3\nsteps = 4", ("not TOML",)),
        ("c.json", "steps = 3", ("not JSON",)),
        ("c.json", "[]", ("expected a JSON object",)),
        ("c.toml", None, ("does not exist",)),
    ],
)
def test_a_broken_file_is_one_line(
    name: str, text: str | None, said: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    status, _, err = command(capsys, "train", tmp_path / "run", "--config", tmp_path / name)
    assert (status, len(err.splitlines())) == (2, 1)
    for word in (str(tmp_path / name), *said):
        assert word in err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DiffusionalError, match=r"c\.toml is not TOML"):
        Config.load(tmp_path / "c.toml")
    with pytest.raises(DiffusionalError, match=r"is a (directory|folder)"):
        Config.load(tmp_path)


def test_a_preset_and_a_file(files: dict[str, Path]) -> None:
    with pytest.raises(DiffusionalError, match="--preset digits"):
        parse(["train", "runs/a", "--preset", "digits", "--config", str(files["toml"])])


def test_a_resumed_run_and_a_file(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(replace(CONFIG, batch=3).to_dict()))
    args = ["train", str(tmp_path), "--resume"]
    assert parse(args).config.batch == 3  # type: ignore[union-attr]
    # The file is what one asks for; whether the run has it is decided when it is resumed.
    assert parse([*args, "--config", str(files["json"])]).config == CONFIG  # type: ignore[union-attr]


def test_the_config_of_a_run_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.widths", 8, "--model.blocks", 1, "--steps", 1, "--batch", 4]
    assert command(capsys, "train", tmp_path / "a", *small)[0] == 0
    assert command(capsys, "train", tmp_path / "b", "--config", tmp_path / "a/config.json")[0] == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_classes_are_public() -> None:
    parts = ("Data", "Schedule", "Model", "Latent", "Optimizer", "System")
    for name in parts:
        assert isinstance(getattr(df.Config(), name.lower()), getattr(df.training, f"{name}Config"))
    assert df.training.Config is df.Config
    assert df.training.load is df.load
    assert df.training.train is df.train
    assert df.training.load_run is df.load_run
    assert df.training.Run is df.Run
    assert df.training.recipes.digits() == df.Config(**vars(df.training.recipes.digits()))
    with pytest.raises(AttributeError, match="nothing"):
        _ = df.training.nothing
