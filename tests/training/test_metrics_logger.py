"""The lines of metrics.jsonl and timing.jsonl: what a kill or a disk leaves of them, and what becomes of it."""

import io
import json
import os
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from diffusional.errors import DiffusionalError
from diffusional.training import checkpoint, metrics_logger
from diffusional.training.config import Config

GOOD = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (10, 20, 30)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in GOOD))
    return tmp_path


def resumed(run: Path, step: int = 30) -> list[str]:
    """The lines that a resume at a step leaves."""
    progress = checkpoint.Progress(step=step)
    with metrics_logger.MetricsLogger(run, Config(), progress, Console(file=io.StringIO()), True):
        pass
    return (run / "metrics.jsonl").read_text(errors="replace").splitlines()


@pytest.mark.parametrize(
    "broken",
    [
        b"garbage",
        b"\xff\xfe",
        b"\0\0\0\0",
        b"[]",
        b"{}",
        b'{"step": "10"}',
        b'{"step": 20, "lo{"step": 20}',
        b"[" * 99_999,
    ],
    ids=lambda broken: repr(broken[:16]),
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_damaged_line_is_reported_and_all_others_stay(broken: bytes, place: int, run: Path) -> None:
    lines = [line.encode() for line in GOOD]
    lines.insert(place, broken)
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match=rf"metrics\.jsonl: line {place + 1} .*metrics\.jsonl\.damaged"):
        assert resumed(run) == GOOD
    assert (run / "metrics.jsonl.damaged").read_bytes() == broken + b"\n"
    # It is said once, and what was put aside before is kept.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed(run) == GOOD
    (run / "metrics.jsonl").write_bytes(b"more\n")
    with pytest.warns(UserWarning, match="line 1"):
        assert resumed(run) == []
    assert (run / "metrics.jsonl.damaged").read_bytes() == broken + b"\nmore\n"


def test_many_damaged_lines_are_numbered_and_cut(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(f"x\n{line}\n" for line in GOOD) + "x\n" * 4)
    with pytest.warns(UserWarning, match=r"lines 1, 3, 5, 7, 8 and 2 more"):
        assert resumed(run) == GOOD


def test_a_last_line_that_was_cut_off_is_taken_again(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics_logger.read(run) == [json.loads(line) for line in GOOD]
        assert resumed(run) == GOOD
    assert not (run / "metrics.jsonl.damaged").exists()


def test_lines_after_the_checkpoint_are_taken_again(run: Path) -> None:
    assert resumed(run, step=20) == GOOD[:2]


def test_reading_leaves_damaged_lines_out_and_says_so(run: Path) -> None:
    (run / "metrics.jsonl").write_text(GOOD[0] + "\ngarbage\n" + GOOD[1] + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2"):
        assert [line["step"] for line in metrics_logger.read(run)] == [10, 20]


def test_no_file_or_a_named_pipe_is_refused(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(DiffusionalError, match=r"metrics\.jsonl does not exist"):
        metrics_logger.read(run)
    os.mkfifo(run / "metrics.jsonl")
    for call in (metrics_logger.read, resumed):
        with pytest.raises(DiffusionalError, match="named pipe"):
            call(run)
