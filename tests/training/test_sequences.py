"""Runs of masked and uniform diffusions of text, from a config and from the command line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def config(kind: str = "masked", **changes: object) -> Config:
    model = ModelConfig(kind=kind, hidden=16, blocks=1, heads=2, dropout=0.0)  # type: ignore[arg-type]
    steps = 8 if kind == "uniform" else None
    options = {"steps": 30, "batch": 32, "validate_every": 30, "optimizer": OptimizerConfig(lr=1e-2, warmup=5)}
    return Config(
        data=DataConfig(name="text", length=16),
        model=model,
        schedule=ScheduleConfig(steps=steps),
        **(options | changes),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masked") / "run"
    df.train(config(), path)
    return path


def test_a_run_is_trained_loaded_and_evaluated(run: Path) -> None:
    model = df.load(run)
    assert isinstance(model, df.MaskedDiffusion)
    assert model.space.to_dict() == {"kind": "categorical", "length": 16, "categories": 27, "alphabet": "text8"}
    data = df.data.load("text", length=16)
    x = data.encode("test", slice(0, 64))
    found = df.evaluate(model, x, target_error=0.05)
    assert found.nelbo.to("bits/dim", 16).value < 4.6  # log2 27 is 4.75
    text = data.space.decode(model.sample(2, torch.Generator().manual_seed(0)))
    assert text.shape == (2, 16)
    assert int(text.max()) < 27


def test_the_command_line_evaluates_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusional.cli import main

    path = tmp_path / "new.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    main(["evaluate", str(run), "--data", str(path), "--visits", "4"])
    assert "bits per character" in capsys.readouterr().out
    # In few steps, which are another model's.
    drawn = []
    for name, options in (("all", []), ("few", ["--steps", "2"])):
        main(["sample", str(run), "--n", "3", "--out", str(tmp_path / f"{name}.npz"), *options])
        drawn.append(np.load(tmp_path / f"{name}.npz")["samples"])
    assert drawn[0].shape == drawn[1].shape == (3, 16)
    assert (drawn[0] != drawn[1]).any()
    other = tmp_path / "table.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(run), "--data", str(other), "--visits", "4"])
    assert stopped.value.code == 2


def test_a_uniform_diffusion_is_trained_too(tmp_path: Path) -> None:
    model = df.train(config("uniform", steps=10, validate_every=10), tmp_path / "run")
    assert isinstance(model, df.UniformDiffusion)
    assert model.steps == 8


def test_a_uniform_diffusion_in_continuous_time_is_trained_sampled_and_evaluated(tmp_path: Path) -> None:
    from diffusional.cli import main

    path = tmp_path / "run"
    trained = dataclasses.replace(config("uniform", steps=60, validate_every=60), schedule=ScheduleConfig())
    df.train(trained, path)
    model = df.load(path)
    assert isinstance(model, df.UniformDiffusion)
    assert model.steps is None
    x = df.data.load("text", length=16).encode("test", slice(0, 64))
    found = df.evaluate(model, x, target_error=0.05)
    assert found.nelbo.to("bits/dim", 16).value < 4.6  # log2 27 is 4.75
    # T steps of the same a(u) have another bound, with p(x|z_1).
    few = df.evaluate(model.regrid(8), x, target_error=0.05)
    assert few.nelbo.to("bits/dim", 16).value > found.nelbo.to("bits/dim", 16).value
    main(["sample", str(path), "--n", "3", "--steps", "20"])
    main(["evaluate", str(path), "--visits", "4", "--steps", "8"])


def test_refusals(tmp_path: Path) -> None:
    for wrong in (
        lambda: dataclasses.replace(config(), schedule=ScheduleConfig(gamma_min=-5.0)),
        lambda: dataclasses.replace(config("uniform"), schedule=ScheduleConfig(gamma_max=5.0)),
        lambda: dataclasses.replace(config(), model=ModelConfig(kind="masked", predicts="levels")),
        lambda: dataclasses.replace(config(), model=ModelConfig(kind="masked", network="mlp")),
        lambda: dataclasses.replace(config(), latent=LatentConfig((3,))),
        lambda: Config(model=ModelConfig(network="transformer")),
    ):
        with pytest.raises(df.DiffusionalError):
            wrong()
    with pytest.raises(df.DiffusionalError, match="sequences of tokens"):
        df.train(Config(model=ModelConfig(kind="masked")), tmp_path / "digits")
    with pytest.raises(df.DiffusionalError, match="unordered"):
        df.train(Config(data=DataConfig(name="text", length=16)), tmp_path / "gaussian")
