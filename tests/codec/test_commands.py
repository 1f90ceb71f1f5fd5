"""compress and decompress from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

import diffusional as df
from diffusional import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    raw = np.random.default_rng(0).integers(0, 4, (60, 6), dtype=np.uint8)
    np.savez(folder / "data.npz", train=raw[:40], validation=raw[40:50], test=raw[50:])
    config = df.Config(steps=2)
    data = df.data.load(folder / "data.npz", levels=4)
    df.train(config, folder / "run", data)
    return folder / "run"


def main(*arguments: object) -> int:
    """Return the exit status."""
    try:
        cli.main([str(one) for one in arguments])
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_the_test_split_comes_back(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out, record = tmp_path / "a.dfz", tmp_path / "a.npy", tmp_path / "a.json"
    assert main("compress", run, "--steps", 8, "-o", file, "--json", record) == 0
    assert main("decompress", run, file, out) == 0
    wanted = np.load(run.parent / "data.npz")["test"]
    found = np.load(out)
    assert found.dtype == np.uint8
    assert found.tolist() == wanted.tolist()
    about = json.loads(record.read_text())
    assert (about["items"], about["latents"], about["bytes"]) == (10, 8, file.stat().st_size)
    assert "T = 8" in capsys.readouterr().out


def test_a_damaged_file_leaves_what_was_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "a.dfz", tmp_path / "a.npy"
    assert main("compress", run, "--steps", 4, "--most", 2, "-o", file) == 0
    file.write_bytes(file.read_bytes()[:-5])
    np.save(out, np.zeros(3))
    assert main("decompress", run, file, out) == 2
    assert "damaged" in capsys.readouterr().err
    assert np.load(out).tolist() == [0, 0, 0]
    assert main("decompress", run, tmp_path / "none.dfz", out) == 2
    assert main("compress", run, "--most", 0, "-o", file) == 2
