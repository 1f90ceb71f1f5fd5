"""What the commands print off a terminal while they work: lines, by a clock or an event that the tests control."""

import re
from pathlib import Path

import numpy as np
import pytest

from diffusional import cli
from diffusional.cli import console
from diffusional.cli.commands import Train
from diffusional.cli.train import _early
from diffusional.evaluation.evaluation import Progress
from diffusional.files import load_json
from diffusional.ledger import Estimate
from diffusional.training.checkpoint import Progress as RunProgress
from diffusional.training.config import Config


def test_an_evaluation_prints_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with console.watching("nats", 16, clock=lambda: now[0]) as watch:
        for i in range(1, 13):
            now[0] = 10.0 * i
            watch(Progress(None if i < 4 else Estimate(3.25, 0.5, 0.0, 7, i), 100 * i, 2000))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "evaluating: 300 of 2,000 evaluations, 10 evaluations/s, 2 min 50 s remaining"
    assert re.fullmatch(r"evaluating: 600 of 2,000 .*2 min 20 s remaining, 3\.\d+ ± 0\.\d+ nats", lines[1])
    assert lines[3] == "evaluating: 1,000 of 2,000 evaluations, 10 evaluations/s, expected duration 3 min 10 s"
    assert len(lines) == 5


def test_lines_name_the_stage_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with console.watching("nats", 16, clock=lambda: now[0]) as watch:
        for i, stage in enumerate(("pilot", "audit", "audit", "draws")):
            now[0] = 31.0 * (i + 1)
            watch(Progress(None, 100 * i, 1000, stage))
    ends = [line.split(", ")[-1] for line in capsys.readouterr().err.splitlines()]
    assert ends == ["learning a plan", "auditing the levels", "auditing the levels", "3 min 37 s remaining"]


class Rounds:
    """An event that is set after so many waits."""

    def __init__(self, left: int) -> None:
        self.left, self.waited = left, list[float]()

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        self.left -= 1
        return self.left < 0

    def set(self) -> None:
        """It needs no telling."""


def test_a_task_of_unknown_length_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Rounds(3)
    with console.working("fitting a [plan]", ended):  # type: ignore[arg-type]
        pass
    assert ended.waited == [30.0] * 4
    said = [f"fitting a [plan]: {text} so far" for text in ("30 s", "1 min", "1 min 30 s")]
    assert capsys.readouterr().err.splitlines() == said


def test_a_short_task_prints_nothing_and_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(KeyError), console.working("looking"):
        raise KeyError
    assert threading.active_count() == before
    assert capsys.readouterr() == ("", "")


def test_a_run_that_ends_early_names_its_steps_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tmp_path / "a.npy", tmp_path / "run [1]"
    np.save(path, np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    args = ["train", run, "--data", path, "--steps", 5000, "--batch", 8, "--model.hidden", 8]
    cli.main([str(a) for a in (*args, "--max-seconds", 0, "--json", tmp_path / "a.json")])
    said = capsys.readouterr().out
    assert "run [1]: best validation bound" in said
    assert "at step 1 of 5000; stopped after step 1 by max_seconds=0" in said
    record = load_json(tmp_path / "a.json")
    assert (record["steps"], record["steps_planned"], record["ended_by"]) == (1, 5000, "max_seconds")


@pytest.mark.parametrize(
    ("limits", "progress", "said"),
    [
        ({}, {"step": 9, "validated": 9}, ""),
        ({"max_seconds": 60.0}, {"step": 9, "validated": 9, "seconds": 99.0}, ""),
        ({"max_seconds": 60.0}, {"step": 4, "validated": 4, "seconds": 61.0}, "step 4 by max_seconds=60"),
        ({"max_seconds": 60.0}, {"step": 4, "validated": 3, "seconds": 61.0}, "no time was left to validate step 4"),
        ({"patience": 2}, {"step": 4, "validated": 4, "stale": 2}, "step 4 by patience=2"),
    ],
)
def test_why_a_run_ended(limits: dict[str, float], progress: dict[str, float], said: str) -> None:
    found = _early(Train(Path("run"), config=Config(steps=9, **limits)), RunProgress(**progress))  # type: ignore[arg-type]
    assert said in found
    assert (found == "") == (said == "")
