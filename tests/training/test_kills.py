"""A run that is killed at any moment and resumed leaves what it would have left: a sample of what tools/kills.py does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from battery import HANGS, environment

TOOL = Path(__file__).parents[2] / "tools/kills.py"


@pytest.mark.slow
def test_killed_at_random_moments_and_at_write_boundaries(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, str(TOOL), "--random", "4", "--boundaries", "9", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment() | {"OMP_NUM_THREADS": "1"}, timeout=HANGS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert (record["lost"], record["different"]) == ([], [])
    assert record["at_write_boundaries"] == 9
    # One each, and a second one in the fourth trial.
    assert record["at_random_moments"] == 5
    assert record["write_boundaries_of_a_run"] > 50
    assert record["calls_of_a_run"] > 10_000
