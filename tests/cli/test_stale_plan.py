"""A plan belongs to weights: a run that went on learns another, also where γ itself was learned on."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusional import cli


def test_a_run_with_a_learned_schedule_that_went_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (2 * (rng.random((60, 4)) < 0.9)).astype(np.uint8))  # soon learned
    run = str(tmp_path / "run")
    args = [
        "train",
        run,
        "--data",
        str(tmp_path / "x.npy"),
        "--data.levels",
        "3",
        "--model.hidden",
        "8",
        "--batch",
        "8",
    ]
    args += ["--schedule.kind", "learned", "--schedule.ends", "learned", "--steps", "60", "--optimizer.warmup", "0"]
    evaluate = ["evaluate", run, "--error", "1"]
    cli.main([*args, "--max-seconds", "0"])
    cli.main(evaluate)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    cli.main(evaluate)
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == plan
    cli.main(["train", run, "--resume", "--max-seconds", "1000"])
    cli.main(evaluate)
    newer = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert newer["provenance"]["weights_sha256"] != plan["provenance"]["weights_sha256"]
    assert newer["provenance"]["gamma"] != plan["provenance"]["gamma"]

    # One that is damaged, as by a write that was cut off, is learned again; the run is as usable as before.
    numbers = tmp_path / "run" / "plan.safetensors"
    for damaged in (numbers, tmp_path / "run" / "plan.json"):
        whole = numbers.read_bytes()
        damaged.write_bytes(damaged.read_bytes()[:100])
        capsys.readouterr()
        cli.main(evaluate)
        assert f"warning: {damaged}" in capsys.readouterr().err
        assert len(numbers.read_bytes()) == len(whole)
        renewed = json.loads((tmp_path / "run" / "plan.json").read_text())
        assert renewed["provenance"]["weights_sha256"] == newer["provenance"]["weights_sha256"]
