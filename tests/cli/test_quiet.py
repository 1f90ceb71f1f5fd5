"""What a log gets: results and a line or two, no bars and no control characters."""

from pathlib import Path

import numpy as np
import pytest

from diffusional import cli

TINY = ("--data.levels", "5", "--model.widths", "8", "8", "--model.blocks", "1", "--batch", "8", "--steps", "3")


def said(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    capsys.readouterr()
    cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    return out, err


def test_a_log_has_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tmp_path / "a.npy", tmp_path / "run"
    np.save(path, np.random.default_rng(0).integers(0, 5, (400, 1, 4, 4)))
    out, err = said(capsys, "train", run, "--data.name", path, *TINY)
    assert (out.count("best validation bound"), err) == (1, "")
    commands = (
        ("evaluate", run, "--error", 0.02, "--no-audit"),
        ("evaluate", run, "--sweep", "--draws", 1, "--cells", 4),
        ("sample", run, "--n", 2, "--steps", 3),
        ("information", path, "--levels", 5, "--samples", 50, "--timesteps", 3),
        ("information", run, "--reference", run, "--samples", 20, "--timesteps", 3),
        ("data", path, "--levels", 5),
    )
    for command in commands:
        out, err = said(capsys, *command)
        assert (err, "━━━━ " in out) == ("", False), command
        for line in out.splitlines():
            # Sentences may run on; a table is as wide as is said.
            assert len(line) <= 100 or line[0] not in "│┃┏┡└├", command


def test_one_of_many_processes_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert said(capsys, "doctor", "--json", tmp_path / "a.json") == ("", "")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    assert "all essential components work" in said(capsys, "doctor", "--json", tmp_path / "a.json")[0]
    assert (tmp_path / "a.json").exists()
