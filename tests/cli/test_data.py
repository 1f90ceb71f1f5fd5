"""`diffusional data`: of arrays, images and tables what is understood, with the options of train, and its pictures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusional import cli, data
from diffusional.cli.commands import Data, NamedData
from diffusional.cli.options import options
from diffusional.cli.parse import parse
from diffusional.report.figures import histograms
from diffusional.training.config import DataConfig


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, *args: object) -> tuple[dict[str, Any], str]:
    """The record, and what was printed."""
    record = tmp_path / "record.json"
    cli.main(["data", *map(str, args), "--json", str(record)])
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(record.read_text()), said.out


def test_its_options_are_those_of_the_config() -> None:
    own = {option.name for option in options(Data)} - {"--figure", "--json"}
    assert own == {
        "NAME" if f.name == "name" else f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(DataConfig)
    }
    assert NamedData() == NamedData(**dataclasses.asdict(DataConfig()))
    command = parse(["data", "x.npy", "--levels", "5", "--split-seed", "3"])
    assert isinstance(command, Data)
    assert (command.config.name, command.config.levels, command.config.split_seed) == ("x.npy", 5, 3)


def test_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "digits.png"
    record, said = run(capsys, tmp_path, "digits", "--figure", picture)
    dataset = data.load("digits")
    assert record["items"] == {"train": 1000, "validation": 350, "test": 447}
    assert record["fingerprints"] == {split: dataset.fingerprint(split) for split in record["items"]}
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(DataConfig())))
    assert "images of 1 × 8 × 8 (channels × height × width), 17 levels, of which 17 occur" in said
    row = next(line for line in said.splitlines() if "validation" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "validation",
        "350",
        "0",
        "16",
        record["fingerprints"]["validation"][:12],
    ]
    for finding in record["findings"]:
        assert f"warning: {finding}\n" in said
    assert np.asarray(Image.open(picture).convert("L")).std() > 10
    # Warped copies are train items as any other.
    assert run(capsys, tmp_path, "--warps", 1)[0]["items"]["train"] == 2000


def test_what_was_decided_about_a_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n;price\n" + "".join(f"{i};{i + 1},125\n\n" for i in range(40)))
    record, said = run(capsys, tmp_path, path, "--decimal", ",")
    assert record["config"]["decimal"] == ","
    assert record["ranges"]["train"][1] > 30
    assert len(record["notes"]) == 3
    for note in record["notes"]:
        assert f"note: {note}\n" in said
    assert "the delimiter is a semicolon, the decimal mark is a comma, as declared" in said
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", str(path)])
    assert caught.value.code == 2
    assert "'price' in row 1 " in capsys.readouterr().err


def test_nothing_is_drawn_unless_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, tmp_path, "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_table_has_a_histogram_for_each_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal([0.0, 50.0], size=(2000, 2))
    path, picture = tmp_path / "a.csv", tmp_path / "a.png"
    np.savetxt(path, values, delimiter=",", header="cold,warm", comments="")
    drawn = []
    monkeypatch.setattr("diffusional.report.figures.histograms", lambda *args: drawn.append(args) or histograms(*args))
    record, said = run(capsys, tmp_path, path, "--figure", picture)
    assert "2 numbers, real-valued" in said
    assert record["ranges"]["train"][1] > 50
    ((_, columns, labels, _),) = drawn
    assert labels == ("cold", "warm")
    assert columns.mean(0) == pytest.approx([0, 50], abs=0.1)
    assert picture.stat().st_size > 5000
    assert run(capsys, tmp_path, path, "--columns", "warm")[0]["space"]["shape"] == [1]


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3)).astype(np.uint8)).save(
            folder / f"{i:02}.png"
        )
    record, said = run(capsys, tmp_path, folder, "--size", 4, "--grey", "yes", "--figure", tmp_path / "a.png")
    assert record["space"]["shape"] == [1, 4, 4]
    assert "images of 1 × 4 × 4" in said
    assert (tmp_path / "a.png").exists()
