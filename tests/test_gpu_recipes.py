"""benchmarks/gpu/: recipes for machines that are lent for minutes, run in small on this one."""

import importlib
import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusional.models.diffusion import DiffusionModel
from diffusional.space import Discrete
from diffusional.training.build import build_model
from diffusional.training.config import Config

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    names = ("pieces", "mnist", "cifar10")
    monkeypatch.syspath_prepend(FOLDER)
    before = {name: sys.modules.pop(name, None) for name in names}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A hundred noisy images in MNIST's four files."""
    folder, numbers = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for prefix, n in (("train", 100), ("t10k", 20)):
        images = numbers.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + bytes(n))
    return folder


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


def test_mnist_in_pieces(
    scripts: SimpleNamespace,
    mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    result = folder / "gpu-mnist.json"
    command = ("--data", mnist, "--run", folder, "--dry-run")
    run(scripts.mnist, monkeypatch, *command, "--piece", 0)
    assert "stopped after step 2 of 6" in capsys.readouterr().out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert not result.exists()
    # The next goes on, takes the four steps that are left, and evaluates.
    run(scripts.mnist, monkeypatch, *command)
    said = capsys.readouterr().out
    assert "step 2:" not in said
    assert "step 6: validation" in said
    record = json.loads(result.read_text())
    assert record["items"] == 8
    assert record["training"]["steps"] == 6
    assert [step for step, _ in record["training"]["validation"]] == [2, 4, 6]
    # A new network calls all of 256 levels as probable as another: 8 bits, and what discretising time costs.
    assert record["nelbo"]["value"] == pytest.approx(8, abs=max(0.1, 4 * record["nelbo"]["error"]))
    assert sum(term["value"] for term in record["terms"].values()) == pytest.approx(record["nelbo_nats"]["value"])
    assert record["nelbo"]["value"] * 64 * math.log(2) == pytest.approx(record["nelbo_nats"]["value"])
    assert record["config"]["model"]["network"] == "vdm"
    assert record["machine"]["command"].endswith(f"--run {folder} --dry-run")
    # A run that has ended is evaluated again, no more.
    result.unlink()
    run(scripts.mnist, monkeypatch, *command, "--piece", 0)
    assert "validation" not in capsys.readouterr().out
    again = json.loads(result.read_text())
    assert again["nelbo"] == record["nelbo"]


def test_a_piece_too_short_for_the_evaluation_leaves_it_to_the_next(
    scripts: SimpleNamespace, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the full recipe's path: training that ends in this piece, with less left of it than the evaluation may take."""
    evaluated: list[Any] = []
    monkeypatch.setattr(scripts.mnist, "planned", lambda config, data, dry: config)
    monkeypatch.setattr(scripts.pieces, "evaluated", lambda *args, **how: evaluated.append(how) or {})
    for trained, piece, times in ((True, 149, 0), (False, 149, 1), (True, 10_000, 2)):
        monkeypatch.setattr(scripts.pieces, "train_until", lambda *_, trained=trained: (nn.Identity(), trained))
        out = tmp_path / "out.json"
        run(scripts.mnist, monkeypatch, "--data", mnist, "--run", tmp_path / "run", "--piece", piece, "--out", out)
        assert len(evaluated) == times
        assert out.exists() == (times > 0)
    assert evaluated[0]["target_error"] == 0.002
    assert evaluated[0]["every_item"]


def test_a_deadline_foresees_the_next_validation(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "validation": 1.0}\n')
    now, asked = [0.0], []
    monkeypatch.setattr(scripts.pieces.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scripts.pieces.signal, "raise_signal", lambda number: asked.append((now[0], int(number))))
    deadline = scripts.pieces.Deadline(tmp_path, until=100.0)
    for step, now[0] in ((0, 99.0), (1, 40.0), (2, 70.0), (3, 90.0)):
        if step == 1:
            deadline.since = 10.0
        deadline(step, nn.Identity())
    # At 40 the last interval was 30: the next ends at 70. At 70, at 100. At 90 after 20: too late.
    assert asked == [(90.0, 15)]


def test_the_plan_is_for_the_seconds_at_the_speed_measured(
    scripts: SimpleNamespace, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.pieces, "steps_per_second", lambda config, data, steps: 40.0)
    config = scripts.mnist.planned(scripts.mnist.recipe(str(mnist)), None, False)
    assert (config.steps, config.validate_every, config.checkpoint_every) == (48_000, 1800, 1800)
    assert Config.from_dict(config.to_dict()) == config
    assert config.system.compile
    assert config.precision == "bf16"


def test_flops_and_parameters_of_the_network(scripts: SimpleNamespace) -> None:
    """Of VDM's, by hand: convolutions, dense layers and attention, 2 for each product and sum, backward twice the forward."""
    config = scripts.cifar10.narrow(scripts.cifar10.paper("x"))
    found = scripts.cifar10.network(config, Discrete((3, 32, 32), 256))
    n, blocks, positions = 32, 4, 32 * 32
    convolutions = 15 * n * 9 + (blocks + 2) * 2 * n * n * 9 + (blocks + 1) * (3 * n * n * 9 + 2 * n * n) + n * 3 * 9
    attention = 4 * n * n + 2 * positions * n
    once = n * 4 * n + 16 * n * n + (2 * blocks + 3) * 4 * n * n
    expected = 3 * 2 * ((convolutions + attention) * positions + once)
    assert found["flop_per_image"] == pytest.approx(expected, rel=0.02)
    # What `train` builds has as many.
    built = build_model(config, Discrete((3, 32, 32), 256))
    assert isinstance(built, DiffusionModel)
    assert sum(p.numel() for p in built.denoiser.module.parameters()) == found["parameters"]
    full = scripts.cifar10.network(scripts.cifar10.paper("x"), Discrete((3, 32, 32), 256))
    assert 30e6 < full["parameters"] < 31e6


def test_cifar10_dry_run_adds_up(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train=images, test=images[:10])
    monkeypatch.setattr(scripts.cifar10, "peak", lambda dtype: (1e12, "for the test"))
    monkeypatch.setattr(scripts.pieces, "steps_per_second", lambda config, data, steps: 2.0)
    out = tmp_path / "out.json"
    run(scripts.cifar10, monkeypatch, "--dry-run", "--data", tmp_path / "images.npz", "--out", out)
    assert "utilisation" in capsys.readouterr().out
    record = json.loads(out.read_text())
    measured, paper = record["measured"], record["paper"]
    assert measured["images_per_second"] == 2 * 16
    assert measured["utilisation"] == pytest.approx(32 * measured["flop_per_image"] / 1e12, abs=1e-4)
    assert (paper["steps"], paper["batch"], paper["width"], paper["blocks"]) == (10_000_000, 128, 128, 32)
    seconds = 1.28e9 * paper["flop_per_image"] / (32 * measured["flop_per_image"])
    assert paper["days_at_this_utilisation"] == pytest.approx(seconds / 86_400, rel=1e-3)


def test_speed_is_measured_after_the_first_steps(
    scripts: SimpleNamespace, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of two seconds after ten of which nothing is counted, and a validation that isn't either."""
    lines = [(10, 100.0), (20, 120.0), (20, 500.0)]
    monkeypatch.setattr(scripts.pieces, "train", lambda *_, **__: None)
    records = [{"step": step, "seconds": seconds} for step, seconds in lines]
    monkeypatch.setattr(scripts.pieces.metrics_logger, "read", lambda run, name: records)
    data = scripts.mnist.load(str(mnist), levels=256)
    assert scripts.pieces.steps_per_second(scripts.mnist.recipe(str(mnist)), data, 20) == 0.5


def test_peaks_go_by_name(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.pieces, "device", lambda: torch.device("cuda"))
    for name, teraflops in {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA A100-SXM4-40GB": 312,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "NVIDIA GeForce RTX 4090": 165,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert scripts.cifar10.peak(torch.bfloat16)[0] == teraflops * 1e12
