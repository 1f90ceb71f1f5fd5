"""The typed config: what it writes it reads back, and what it does not know it refuses, saying what it expected."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from battery import environment
from diffusional.errors import DiffusionalError
from diffusional.training.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    differences,
)

# A config that differs from the defaults in every kind of value: text, numbers, tuples, literals, and None.
OTHER = Config(
    data=DataConfig(name="a.npy", levels=5, split_seed=3),
    schedule=ScheduleConfig(kind="linear", steps=100, beta_end=0.03),
    model=ModelConfig(
        network="mlp", predicts="v", head="categorical", likelihood="level-posterior", widths=(8, 16, 24)
    ),
    optimizer=OptimizerConfig(lr=1e-4, warmup=7),
    objective="simple",
    sampler="uniform",
    steps=11,
    max_seconds=1.5,
    batch=3,
    precision="bf16",
    patience=2,
)


@pytest.mark.parametrize("config", [Config(), OTHER], ids=["default", "other"])
def test_round_trip_through_json(config: Config, tmp_path: Path) -> None:
    assert Config.from_dict(config.to_dict()) == config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    read = Config.load(path)
    assert read == config
    assert isinstance(read.model.widths, tuple)
    assert differences(config, read) == []


def test_the_record_holds_every_field() -> None:
    record = OTHER.to_dict()
    assert set(record) == {f.name for f in dataclasses.fields(Config)}
    assert set(record["optimizer"]) == {f.name for f in dataclasses.fields(OptimizerConfig)}
    assert record["model"]["widths"] == [8, 16, 24]


def test_what_is_left_out_is_the_default() -> None:
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"optimizer": {"lr": 0.5}}) == Config(optimizer=OptimizerConfig(lr=0.5))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"stepz": 1}, "unknown config key 'stepz'; did you mean 'steps'?"),
        ({"optimizer": {"learning": 1}}, "unknown config key 'optimizer.learning'; known are lr, beta1"),
        ({"optimizer": {"weight_deacy": 1}}, "unknown config key 'optimizer.weight_deacy'; did you mean 'optimizer."),
        ({"model": {"width": [8]}}, "unknown config key 'model.width'; did you mean 'model.widths'?"),
        ({"model": 3}, "config key 'model' is 3; expected an object"),
        ({"steps": True}, "config key 'steps' is True; expected int"),
        ({"steps": 2.5}, "config key 'steps' is 2.5; expected int"),
        ({"steps": None}, "config key 'steps' is None; expected int"),
        ({"optimizer": {"lr": "0.1"}}, "config key 'optimizer.lr' is '0.1'; expected float"),
        ({"optimizer": {"lr": True}}, "config key 'optimizer.lr' is True; expected float"),
        ({"model": {"widths": 8}}, "config key 'model.widths' is 8; expected a list"),
        ({"model": {"widths": "88"}}, "config key 'model.widths' is '88'; expected a list"),
        ({"model": {"widths": [8, "8"]}}, "config key 'model.widths' is '8'; expected int"),
        ({"data": {"name": 5}}, "config key 'data.name' is 5; expected str"),
        ({"data": {"levels": "5"}}, "config key 'data.levels' is '5'; expected int"),
        (
            {"schedule": {"kind": "sigmoid"}},
            "config key 'schedule.kind' is 'sigmoid'; expected one of 'log_snr_linear', 'linear', 'cosine'",
        ),
        ({"model": {"network": "vit"}}, "config key 'model.network' is 'vit'; expected one of 'unet', 'mlp'"),
        ({"sampler": 1}, "config key 'sampler' is 1; expected one of"),
    ],
)
def test_what_does_not_fit_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffusionalError, match=re.escape(message)):
        Config.from_dict(record)


def test_what_json_cannot_tell_apart_is_taken() -> None:
    config = Config.from_dict(
        {"optimizer": {"lr": 1}, "model": {"widths": [16, 8], "network": None}, "max_seconds": None}
    )
    assert (config.optimizer.lr, type(config.optimizer.lr)) == (1.0, float)
    assert config.model.widths == (16, 8)
    assert config.model.network is None
    assert config.max_seconds is None
    assert Config.from_dict({"max_seconds": 3}).max_seconds == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(steps=0), "expected steps to be at least 1, got 0"),
        (lambda: Config(batch=-1), "expected batch to be at least 1, got -1"),
        (lambda: Config(validate_every=0), "expected validate_every to be at least 1, got 0"),
        (lambda: Config(checkpoint_every=0), "expected checkpoint_every to be at least 1, got 0"),
        (lambda: Config(model=ModelConfig(dropout=1.0)), "expected model.dropout to be 0 to below 1, got 1.0"),
        (lambda: Config(model=ModelConfig(dropout=-0.1)), "expected model.dropout to be 0 to below 1, got -0.1"),
        (lambda: ModelConfig(widths=()), "expected model.widths to be multiples of 8, got ()"),
        (lambda: ModelConfig(widths=(8, 12)), "expected model.widths to be multiples of 8, got (8, 12)"),
        (lambda: ModelConfig(widths=(8, 0)), "expected model.widths to be multiples of 8, got (8, 0)"),
        (lambda: ModelConfig(blocks=0), "expected model.blocks to be at least 1, got 0"),
        (lambda: ModelConfig(hidden=0), "expected model.hidden to be at least 1, got 0"),
        (lambda: OptimizerConfig(lr=0.0), "expected optimizer.lr to be a positive number, got 0.0"),
        (lambda: OptimizerConfig(lr=math.inf), "expected optimizer.lr to be a positive number, got inf"),
        (lambda: OptimizerConfig(lr=math.nan), "expected optimizer.lr to be a positive number, got nan"),
        (lambda: OptimizerConfig(beta1=1.0), "expected optimizer.beta1 to be 0 to below 1, got 1.0"),
        (lambda: OptimizerConfig(beta2=-0.1), "expected optimizer.beta2 to be 0 to below 1, got -0.1"),
        (lambda: OptimizerConfig(ema=1.5), "expected optimizer.ema to be 0 to below 1, got 1.5"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "expected optimizer.weight_decay to be 0 or more, got -1.0"),
        (lambda: OptimizerConfig(warmup=-1), "expected optimizer.warmup to be 0 or more, got -1"),
        (lambda: OptimizerConfig(flat=1.1), "expected optimizer.flat to be 0 to 1, got 1.1"),
        (lambda: OptimizerConfig(clip=0.0), "expected optimizer.clip to be a positive number, got 0.0"),
        (lambda: Config(patience=-1), "expected patience to be 0 or more, got -1"),
        (lambda: Config(seed=-1), "expected seed to be an integer from 0 to 2^32 - 1, got -1"),
        (lambda: Config(seed=2**32), "expected seed to be an integer from 0 to 2^32 - 1, got 4294967296"),
        (
            lambda: DataConfig(split_seed=2**64),
            f"expected data.split_seed to be an integer from 0 to 2^64 - 1, got {2**64}",
        ),
        (lambda: Config(max_seconds=-0.5), "expected max_seconds to be 0 or more, got -0.5"),
        (
            lambda: Config(schedule=ScheduleConfig(kind="cosine")),
            "expected schedule.steps, such as 1000, for schedule.kind='cosine', which has betas, got none",
        ),
        (
            lambda: Config(schedule=ScheduleConfig(kind="learned_betas")),
            "expected schedule.steps, such as 1000, for schedule.kind='learned_betas', which has betas, got none",
        ),
        (
            lambda: Config(model=ModelConfig(variance="learned")),
            'expected schedule.steps, such as 1000, for model.variance="learned" and sampler="adaptive", got continuous time, which has '
            "neither steps with a variance nor levels with costs",
        ),
        (
            lambda: Config(schedule=ScheduleConfig(kind="learned"), sampler="second-moment"),
            'expected schedule.steps, such as 1000, for model.variance="posterior" and sampler="second-moment", got continuous time, which has '
            "neither steps with a variance nor levels with costs",
        ),
        (
            lambda: Config(schedule=ScheduleConfig(ends="learned")),
            'expected schedule.kind="learned" for schedule.ends="learned", got "log_snr_linear"',
        ),
        (
            lambda: Config(schedule=ScheduleConfig(kind="learned_betas", steps=9, ends="learned")),
            'expected schedule.kind="learned" for schedule.ends="learned", got "learned_betas"',
        ),
        (
            lambda: Config(objective="hybrid"),
            'expected model.variance="learned" for objective="hybrid", got "posterior"',
        ),
        (
            lambda: Config(
                schedule=ScheduleConfig(steps=9), model=ModelConfig(variance="transition"), objective="hybrid"
            ),
            'expected model.variance="learned" for objective="hybrid", got "transition"',
        ),
        (
            lambda: Config(schedule=ScheduleConfig(kind="learned"), objective="simple"),
            'expected objective="elbo" for schedule.kind="learned", got "simple": a schedule must be trained by the bound, since other '
            "objectives favour the levels at which the noise is easiest to predict",
        ),
        (
            lambda: Config(
                schedule=ScheduleConfig(kind="learned_betas", steps=9),
                model=ModelConfig(variance="learned"),
                objective="hybrid",
            ),
            'expected objective="elbo" for schedule.kind="learned_betas", got "hybrid": a schedule must be trained by the bound, since other '
            "objectives favour the levels at which the noise is easiest to predict",
        ),
        (
            lambda: Config(model=ModelConfig(kind="vae"), objective="simple"),
            'expected objective="elbo" for model.kind="vae", got "simple", which is for Gaussian diffusion models',
        ),
        (lambda: ModelConfig(heads=0), "expected model.heads to be at least 1, got 0"),
        (lambda: ModelConfig(attention=(8, 0)), "expected model.attention to be sides of images in pixels, got (8, 0)"),
    ],
)
def test_what_can_be_no_run_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DiffusionalError) as raised:
        make()
    assert str(raised.value) == message


def test_a_record_is_checked_like_a_config() -> None:
    with pytest.raises(DiffusionalError, match="steps to be at least 1, got 0"):
        Config.from_dict({"steps": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"steps": 10', "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a list; expected a JSON object"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DiffusionalError, match=message) as raised:
        Config.load(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"config\.json does not exist; expected a config"):
        Config.load(tmp_path / "config.json")


def test_differences_name_every_value_that_differs_and_no_other() -> None:
    a = Config(steps=5, optimizer=OptimizerConfig(lr=0.1))
    b = dataclasses.replace(
        a, steps=6, optimizer=OptimizerConfig(lr=0.2), model=ModelConfig(widths=(8,)), max_seconds=1.0
    )
    here = list(a.model.widths)
    assert sorted(differences(a, b)) == [
        "max_seconds: None → 1.0",
        f"model.widths: {here} → [8]",
        "optimizer.lr: 0.1 → 0.2",
        "steps: 5 → 6",
    ]
    assert differences(b, a)[0].split(": ")[1].split(" → ") == differences(a, b)[0].split(": ")[1].split(" → ")[::-1]


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 5  # type: ignore[misc]


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, diffusional.training.config, diffusional.training.recipes; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert "'torch'" not in loaded.stdout
    assert "'diffusional.training.config'" in loaded.stdout
