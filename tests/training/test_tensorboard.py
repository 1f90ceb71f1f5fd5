"""Event files for TensorBoard have the points of metrics.jsonl, each once, also after an interruption."""

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diffusional.extras import MissingPackageError
from diffusional.training.config import Config, ModelConfig
from diffusional.training.loop import train
from diffusional.training.metrics_logger import read

pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra tensorboard)")
CONFIG = Config(steps=30, batch=8, validate_every=15, checkpoint_every=10, model=ModelConfig(widths=(8, 8), blocks=1))
QUIET = Console(quiet=True)


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def expected(run: Path) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in read(run):
        for name, value in record.items():
            if name != "step":
                found.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_the_points_are_those_of_the_metrics_after_an_interruption(tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(step: int, _: object) -> None:
        if step == 15:
            raise Stop

    with pytest.raises(Stop):
        train(CONFIG, run, console=QUIET, watch=stop, tensorboard=True)
    assert read(run)[-1]["step"] > 10  # beyond the last checkpoint
    train(CONFIG, run, console=QUIET, resume=True, tensorboard=True)
    assert {"loss", "lr", "norm", "validation"} <= points(run).keys()
    assert points(run) == expected(run)
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_run_that_began_without_it_has_all_points(tmp_path: Path) -> None:
    short = replace(CONFIG, steps=10, validate_every=10)
    train(short, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run" / "tensorboard").exists()
    train(replace(short, steps=20), tmp_path / "run", console=QUIET, resume=True, tensorboard=True)
    assert [step for step, _ in points(tmp_path / "run")["loss"]] == [10, 20]
    assert points(tmp_path / "run") == expected(tmp_path / "run")


def test_a_missing_package_is_named_before_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"diffusional\[tensorboard\]"):
        train(CONFIG, tmp_path / "run", console=QUIET, tensorboard=True)
    assert not (tmp_path / "run").exists()
