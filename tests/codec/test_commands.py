"""compress and decompress from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

import diffusional as df
from diffusional import cli
from diffusional.codec import Choice


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


def test_rate_and_distortion_are_drawn_and_saved(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure, record = tmp_path / "rate.svg", tmp_path / "rate.json"
    assert main("compress", run, "--steps", 6, "--rate-distortion", figure, "--json", record) == 0
    assert "T = 6 latents, 10 items" in capsys.readouterr().out
    assert "bits per dimension" in figure.read_text()
    about = json.loads(record.read_text())
    assert (about["items"], about["latents"], "file" in about) == (10, 6, False)
    curve = about["rate_distortion"]
    assert curve["latents"] == [6, 5, 4, 3, 2, 1]
    assert len(curve["bits_per_dim"]) == len(curve["bits_per_dim_error"]) == len(curve["rmse_levels"]) == 6
    # It is that of Python, and can be drawn again.
    trained = df.load(run)
    x = df.data.load(run.parent / "data.npz", levels=4).encode("test")
    assert df.codec.rate_distortion(trained.regrid(6), x).to_json()["rmse_levels"] == pytest.approx(
        curve["rmse_levels"]
    )
    assert main("plot", record, "-o", tmp_path / "again.png") == 0
    assert (tmp_path / "again.png").stat().st_size > 1000


def test_rate_and_distortion_beside_a_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # T is chosen once, and is that of both.
    chosen = []
    monkeypatch.setattr(
        "diffusional.codec.choose_steps", lambda *given, **more: chosen.append(1) or Choice(5, {5: 1.0})
    )
    options = ("--most", 3, "--rate-distortion", "rate.png", "--json", "rate.json")
    assert main("compress", run, *options, "-o", "a.dfz") == 0
    about = json.loads(Path("rate.json").read_text())
    assert about["file"] == "a.dfz"
    assert about["bytes"] == Path("a.dfz").stat().st_size
    assert (about["latents"], len(about["rate_distortion"]["latents"]), len(chosen)) == (5, 5, 1)
    assert Path("rate.png").is_file()
    assert main("compress", run, *options[:-2]) == 0
    assert not Path("items.dfz").exists()
    assert main("compress", run, "--steps", 3, "--rate-distortion", "rate.txt") == 2
