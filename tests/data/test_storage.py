"""Several processes of a machine share its memory, and make a file of the cache once; nobody waits for the dead."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from battery import HANGS, environment
from diffusional.data import storage
from diffusional.errors import DiffusionalError

# Reports that it has arrived, and when it begins to fill. It fills once so many of them have arrived, or dies there, and prints the sum.
SCRIPT = """
import glob, os, signal, sys, time
from diffusional.data import storage

log, ending, together = sys.argv[1], sys.argv[2], int(sys.argv[3])
storage.available_memory = lambda: 0

def fill(out):
    with open(log, "a") as file:
        file.write("begun\\n")
    out[:3] = 7
    while len(glob.glob(log + ".arrived-*")) < together:
        time.sleep(0.01)
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "fails":
        raise ValueError("a bad picture")
    out[:] = 7

open(f"{log}.arrived-{os.getpid()}", "w").close()
print(int(storage.store((6,), "uint8", lambda: "sevens", fill).sum()))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path / "cache/diffusional"


def process(log: Path, ending: str = "fine", together: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(log), ending, str(together)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def sevens(out: np.ndarray) -> None:
    out.fill(7)


def stored(n: int) -> np.ndarray:
    return storage.store((n,), "uint8", lambda: ["sevens", n], sevens)


def test_processes_of_a_machine_share_its_memory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "available_memory", lambda: 80)
    assert not isinstance(stored(40), np.memmap)
    assert isinstance(stored(41), np.memmap)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert not isinstance(stored(10), np.memmap)
    assert isinstance(stored(11), np.memmap)
    assert len(list(cache.iterdir())) == 2


def test_a_file_is_made_once_for_all(cache: Path, tmp_path: Path) -> None:
    found = [process(tmp_path / "log", together=4) for _ in range(4)]
    assert [p.communicate(timeout=HANGS) for p in found] == [("42\n", "")] * 4
    assert (tmp_path / "log").read_text() == "begun\n"
    (file,) = cache.iterdir()
    assert np.load(file).tolist() == [7] * 6


def test_another_takes_over_where_one_dies(cache: Path, tmp_path: Path) -> None:
    dying = process(tmp_path / "log", "killed")
    assert dying.wait(timeout=HANGS) == -signal.SIGKILL
    assert sorted(p.suffix for p in cache.iterdir()) == [".lock", ".npy"]  # what it was at
    found = [process(tmp_path / "log", together=3) for _ in range(2)]
    assert [p.communicate(timeout=HANGS) for p in found] == [("42\n", "")] * 2
    assert (tmp_path / "log").read_text() == "begun\n" * 2
    (file,) = cache.iterdir()
    assert not file.name.startswith(".")


def test_all_are_told_what_one_met(cache: Path, tmp_path: Path) -> None:
    found = [process(tmp_path / "log", "fails", together=2) for _ in range(2)]
    assert all("a bad picture" in p.communicate(timeout=HANGS)[1] for p in found)
    assert not list(cache.iterdir())


def test_one_that_hangs_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "available_memory", lambda: 0)
    monkeypatch.setattr(storage, "_PATIENCE", 0.3)
    (kept,) = (stored(6), *cache.iterdir())[1:]
    kept.unlink()
    with (cache / f".{kept.stem}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(
            DiffusionalError,
            match=r"another process has been writing .*npy for .* hours; .*end it, or set XDG_CACHE_HOME",
        ):
            stored(6)
    assert stored(6).tolist() == [7] * 6


def test_a_file_system_without_locks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(storage.fcntl, "flock", refused)
    monkeypatch.setattr(storage, "available_memory", lambda: 0)
    assert stored(6).tolist() == [7] * 6
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.setattr(storage, "available_memory", lambda: 0)
    with pytest.raises(DiffusionalError, match=r"/dev/null/diffusional cannot be written \(.*\); .*set XDG_CACHE_HOME"):
        stored(6)
