"""`diffusional information`, its table and its figure, and the table of a budget."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from battery import generator
from diffusional import cli, data, schedule
from diffusional.information import curve
from diffusional.report import style
from diffusional.report.figures import information_curve
from diffusional.report.tables import budget_table, information_table
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig
from diffusional.training.loop import train


def main(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        cli.main(["information", *[str(a) for a in args]])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), captured.err


def text(table: Table) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if re.search("[│┃]", line)]


def test_the_digits_under_a_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    args = ["digits", "--timesteps", 5, "--samples", 300, "--seed", 3, "--json", record, "--figure", picture]
    status, said, err = main(capsys, *args)
    assert (status, err) == (0, "")
    found = json.loads(record.read_text())
    images = data.load("digits").encode("train")
    want = curve(images, schedule.linear(steps=1000), timesteps=5, samples=300, generator=generator(3))
    assert found["information"] == want.information.tolist()
    assert found["level"] == [1, 251, 500, 750, 1000]
    assert (found["items"], found["distinct_items"], found["samples"]) == (1000, 1000, 300)
    assert found["schedule"]["kind"] == "linear"
    gamma = float(schedule.linear(steps=1000).grid()[-1])
    a2, s2 = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
    squares = float(images.double().flatten(1).square().sum(1).mean())
    assert found["prior"]["value"] == pytest.approx(0.5 * (a2 * squares + 64 * (s2 - 1 - math.log(s2))), rel=1e-6)
    assert 0 < found["prior"]["information"] < found["prior"]["value"]
    assert found["lost"] == {str(share): want.lost(share) for share in (0.1, 0.5, 0.9)}
    assert (found["wasted"]["clean"], found["wasted"]["noisy"]) == want.wasted()
    assert "H(x) = 6.9078 nats; I(x; z₁) = 6.9078 ± 0, remaining H(x | z₁) = " in said
    assert f"50% by t = {want.lost(0.5):.4g}" in said
    assert picture.stat().st_size > 5000


def test_other_schedules_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No binary file is without repeats: 40 items of 4 bits.
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (40, 4)))
    record = tmp_path / "out.json"
    common = [tmp_path / "bits.npy", "--levels", 2, "--timesteps", 4, "--samples", 100, "--json", record]
    for options, gammas in (
        (["--schedule", "log_snr_linear", "--gamma-min", -6, "--gamma-max", 5.5], (-6.0, 5.5)),
        (["--schedule", "cosine", "--steps", 50], schedule.cosine(50).ends().tolist()),
        (["--schedule", "linear", "--beta-start", 0.01, "--beta-end", 0.3, "--steps", 9], schedule.linear(9, 0.01, 0.3).ends().tolist()),
    ):  # fmt: skip
        status, said, err = main(capsys, *common, *options, "--split", "all")
        assert (status, err) == (0, "")
        found = json.loads(record.read_text())
        assert (found["gamma"][0], found["gamma"][-1]) == pytest.approx(tuple(gammas))
        assert found["items"] == 40
        assert found["distinct_items"] <= 16
        assert f"({found['distinct_items']} distinct items)" in said
        assert found["entropy"]["value"] < math.log(found["distinct_items"]) + 1e-12
    assert main(capsys, *common, "--split", "test")[0] == 0
    assert json.loads(record.read_text())["items"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timesteps", 1], "timesteps to be at least 2"),
        (["--samples", 1], "at least 2 draws"),
        (["--schedule", "cosine", "--beta-end", 0.1], "--beta-end cannot be combined with --schedule cosine"),
        (["--gamma-min", -3, "--gamma-max", 3], "--gamma-min, --gamma-max cannot be combined with --schedule linear"),
        (["--schedule", "log_snr_linear", "--gamma-min", 3, "--gamma-max", 2], "gamma_min < gamma_max"),
        (["--beta-end", 1.5], "strictly between 0 and 1"),
        (["--steps", 1], "expected steps to be an integer of at least 2"),
        (["--figure", "a.jpg"], r"a .png, .svg or .pdf file for --figure"),
        (["--figure", "nowhere/a.png"], "does not exist"),
        (["--levels", 3], "levels must be 17 for digits, got 3"),
        (["--schedule", "quadratic"], "quadratic"),
        (["--split", "half"], "half"),
    ],
)
def test_bad_input(options: list[object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = main(capsys, "digits", *options)
    assert status == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_no_such_data(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = main(capsys, "nothing.npy")
    assert (status, "does not exist" in err) == (2, True)


RECORD: dict[str, Any] = {
    "level": [1, 5, 9],
    "gamma": [-9.0, 0.25, 8.0],
    "information": [0.693, 0.31234, 0.01],
    "information_error": [0.0, 0.0123, 0.001],
    "increment": [0.38066, 0.30234],
    "increment_error": [0.0034, 0.0],
}


def test_an_information_table() -> None:
    head, *rows = text(information_table(RECORD, "a curve"))
    assert head[0] == "t"
    assert rows[0] == ["1", "9.00", "0.6930", "0", "0.3807", "0.0034"]
    assert rows[1] == ["5", "-0.25", "0.312", "0.012", "0.3023", "0"]
    assert rows[2] == ["9", "-8.00", "0.0100", "0.0010", "", ""]
    head, *rows = text(information_table(RECORD | {"level": [0.0, 0.5, 1.0]}, ""))
    assert (head[0], rows[1][0]) == ("u", "0.500")


def test_a_budget_table() -> None:
    def row(name: str, second: str) -> dict[str, Any]:
        numbers = {"cost": (3.25, 0.11), second: (1.0, 0.0), "gap": (2.25, 0.034)}
        return {"name": name} | {key: {"value": v, "error": e} for key, (v, e) in numbers.items()}

    known = {"rows": [row("prior", "information")], "total": row("NELBO", "information"), "relative_to": ""}
    head, prior, total = text(budget_table(known, "a budget"))
    assert head[3] == "information"
    assert prior == ["prior", "3.25", "0.11", "1.0000", "0", "2.250", "0.034"]
    assert total[0] == "NELBO"
    relative = {"rows": [], "total": row("NELBO", "reference"), "relative_to": "another model"}
    table = budget_table(relative, "")
    assert text(table)[0][3] == "reference's"
    assert "relative to another model" in str(table.caption)


def test_the_figure_shades_what_is_wasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends that hardly change the information are grey: these fractions of the levels, and nothing else."""
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, path: drawn.append(figure.axes[0]))
    t = np.arange(1, 102)
    for wasted in ((0.0, 0.0), (0.4, 0.0), (0.4, 0.3)):
        information_curve(tmp_path / "a.png", t, np.linspace(-9, 9, 101), 3.0 - 0.02 * t, 0 * t, 3.0, wasted, "a line")
        spans = [patch.get_bbox() for patch in drawn[-1].patches]
        assert [(box.x0, box.x1) for box in spans] == [(1, 1 + 100 * wasted[0]), (101 - 100 * wasted[1], 101)]
        assert {text.get_text() for text in drawn[-1].texts} == {"H(x)", *(["< 1 %"] if any(wasted) else [])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two diffusion runs that differ by their seed, and a VAE."""
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "tiny.npy", np.random.default_rng(0).integers(0, 5, (40, 1, 4, 4)).astype(np.uint8))
    quiet = Console(quiet=True)
    for name, seed, kind in (("a", 0, "diffusion"), ("b", 1, "diffusion"), ("vae", 0, "vae")):
        config = Config(
            data=DataConfig(name=str(folder / "tiny.npy"), levels=5),
            schedule=ScheduleConfig(steps=30),
            model=ModelConfig(kind=kind, widths=(8, 8), hidden=16, blocks=1),  # type: ignore[arg-type]
            steps=2,
            batch=8,
            seed=seed,
        )
        train(config, folder / name, console=quiet)
    return folder / "a", folder / "b", folder / "vae"


def test_a_run_beside_another(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = runs
    record = tmp_path / "budget.json"
    status, said, err = main(capsys, a, "--reference", b, "--samples", 60, "--timesteps", 5, "--json", record)
    assert (status, err) == (0, "")
    found = json.loads(record.read_text())
    assert found["relative_to"] == "the reference model"
    assert [row["name"] for row in found["rows"]][:2] == ["reconstruction", "KL 1–6"]
    total = found["total"]
    assert total["gap"]["value"] == pytest.approx(total["cost"]["value"] - total["reference"]["value"])
    assert total["gap"]["value"] != 0
    assert sum(row["gap"]["value"] for row in found["rows"]) == pytest.approx(total["gap"]["value"])
    # Common items and noise: the gap is known better than either cost.
    assert total["gap"]["error"] < 0.5 * total["cost"]["error"]
    assert "gaps are relative to the reference model" in said


def test_what_a_vae_s_latents_know(
    runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "latents.json"
    status, said, err = main(capsys, runs[2], "--samples", 64, "--json", record)
    assert (status, err) == (0, "")
    found = json.loads(record.read_text())
    assert (found["split"], found["items"]) == ("train", 32)
    assert 0 < found["information"]["value"] <= found["entropy"] + 1e-9
    assert "I(x; z)" in said
    assert "units active" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a",), "Give --reference RUN"),
        (("a", "--reference", "vae"), "has no Gaussian diffusion model"),
        (("vae", "--reference", "a"), "leave it out"),
        (("a", "--reference", "b", "--schedule", "cosine"), "which has its own: leave them out"),
        (("a", "--reference", "nowhere"), "is not a folder"),
        (("digits", "--reference", "a"), "is not a run folder"),
    ],
)
def test_runs_that_make_no_budget(
    runs: tuple[Path, Path, Path],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {run.name: str(run) for run in runs}
    status, _, err = main(capsys, *(names.get(a, a) for a in arguments))
    assert (status, message in " ".join(err.split())) == (2, True), err
