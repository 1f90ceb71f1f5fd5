"""`diffusional report` and `evaluate --html`: what they read, what they compute, and what they refuse."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusional import cli
from diffusional.evaluation import Evaluation, evaluate
from diffusional.ledger import with_error
from diffusional.training.folder import load_run
from report.pages import comparison, images

MODEL = ["--model.widths", "8", "8", "--model.blocks", "1", "--batch", "8", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two steps on 40 items 1×4×4 of 5 levels, a and b, each with its evaluation; and one on a table of two real columns."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    np.save(folder / "tiny.npy", rng.integers(0, 5, (40, 1, 4, 4)))
    rows = "\n".join(f"{x:.3f},{y:.3f}" for x, y in rng.normal(size=(60, 2)))
    (folder / "table.csv").write_text(f"height,width\n{rows}\n", encoding="utf-8")
    data = ["--data", str(folder / "tiny.npy"), "--data.levels", "5"]
    for name, seed in (("a", "0"), ("b", "1")):
        cli.main(["train", str(folder / name), *data, *MODEL, "--seed", seed])
        run = load_run(folder / name)
        result = evaluate(run.model, run.encode("test"), cells=8, draws=1)
        about = {"data": str(folder / "tiny.npy"), "split": "test"}
        replace(result, about=about).save(folder / name / "evaluation-test.json")
    cli.main(
        [
            "train",
            str(folder / "table"),
            "--data",
            str(folder / "table.csv"),
            "--model.hidden",
            "8",
            "--batch",
            "8",
            "--steps",
            "2",
        ]
    )
    return folder


def headings(path: Path) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", path.read_text(encoding="utf-8"))


def report(*args: object) -> None:
    cli.main(["report", *map(str, args)])


def evaluated(*args: object) -> None:
    """Run `diffusional evaluate`, whose exit status is 3 if it is in doubt, as for models of two steps."""
    with contextlib.suppress(SystemExit):
        cli.main(["evaluate", *map(str, args)])


def test_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", 2, "--items", 4, "--visits", 2, "--shown", 1]
    report(folder / "a", *options, "-o", tmp_path / "a.html", "--json", tmp_path / "a.json")
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'a.html'}: {folder / 'a'}"
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "report": str(tmp_path / "a.html"),
        "runs": [str(folder / "a")],
        "comparisons": [],
    }
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert headings(tmp_path / "a.html") == [
        *("Caveats", "The number", "Where the bits go", "Cost by noise level", "Training", "Samples", "Items"),
        *("How to reproduce", "Words"),
    ]
    result = Evaluation.load(folder / "a" / "evaluation-test.json")
    assert (
        f"<strong>{with_error(result.nelbo.to('bits/dim', 16).value, result.nelbo.to('bits/dim', 16).error)[0]}</strong>"
        in text
    )
    assert "independent positions" in text
    assert re.search(r"Percentages are of the (first 4 of the )?run&#39;s \d+ validation items\.", text)
    assert "are missing" not in text
    assert "2 samples by the model&#39;s own reverse chain, with 100 latents, seed 0." in text
    end = text[text.index("How to reproduce</h2>") :]
    assert "This report drew 2 samples and scores of 4 of 4 items, at 2 network evaluations each." in end
    assert f"<pre>diffusional report {folder / 'a'} --samples 64 --visits 8</pre>" in end
    assert "`" not in text
    assert text.count("Cost map of") >= 2


def test_large_items_and_networks_get_less_by_default(tmp_path: Path) -> None:
    from diffusional.cli.commands import Report
    from diffusional.cli.drawing import Amounts, amounts

    asked = Report((tmp_path,))
    assert amounts(asked, 256, 10**7) == Amounts(16, 500, None)
    assert amounts(asked, 257, 10**7) == amounts(asked, 256, 10**7 + 1) == Amounts(8, 100, 0.02)
    given = Report((tmp_path,), samples=0, items=3, error=0.1)
    assert amounts(given, 784, 1) == amounts(given, 64, 1) == Amounts(0, 3, 0.1)


def test_a_missing_evaluation_is_made_to_the_given_error(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "a", run)
    errors = []
    for error in (0.3, 0.03):
        (run / "evaluation-test.json").unlink()
        report(run, "--error", error, "--samples", 0, "--items", 0)
        result = Evaluation.load(run / "evaluation-test.json")
        errors.append(result.nelbo.to("bits/dim", result.dimensions).error)
        assert errors[-1] <= error
    assert errors[1] < errors[0]


def test_saved_results_only(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("diffusional.training.run.load", refuse)
    report(folder / "a", folder / "b", "--saved", "--title", "Two runs", "-o", tmp_path / "ab.html")
    text = (tmp_path / "ab.html").read_text(encoding="utf-8")
    assert "<h1>Two runs</h1>" in text
    assert "Samples" not in headings(tmp_path / "ab.html")
    assert "those of separate evaluations" in text


def test_two_runs_are_compared_on_the_same_items(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ab.html"
    report(folder / "a", folder / "b", "--samples", 0, "--items", 0, "-o", out, "--json", tmp_path / "r.json")
    best, other = json.loads((tmp_path / "r.json").read_text())["comparisons"][0]
    assert f"diffusional evaluate {best} {other}" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert "separate evaluations" not in text
    assert "Differences" in headings(out)
    assert '<th scope="row">weights</th>' in text
    assert '<th scope="row">seed</th><td>0</td><td>1</td>' in text
    values = {name: Evaluation.load(Path(name) / "evaluation-test.json").nelbo.value for name in (best, other)}
    assert values[best] < values[other]


def test_a_run_without_an_evaluation_is_evaluated(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "a", run)
    (run / "evaluation-test.json").unlink()
    report(run, "--saved")
    assert "has no saved evaluation" in (run / "report.html").read_text(encoding="utf-8")
    report(run, "--samples", 0, "--items", 0)
    assert (run / "evaluation-test.json").exists()
    assert "has no saved evaluation" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_table_has_marginals_and_pit_values_in_its_units(folder: Path, tmp_path: Path) -> None:
    report(folder / "table", "--items", 4, "--visits", 2, "--shown", 1, "-o", tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "are missing" not in text
    assert "1,000 samples" in text
    for name in ("height", "width"):
        assert f"PIT values of {name}" in text
        assert f"Marginal of {name}" in text
    assert "full-covariance Gaussian" in text
    assert "Where the nats go" in headings(tmp_path / "t.html")


def test_real_values_that_are_levels_are_a_caveat(folder: Path, tmp_path: Path) -> None:
    """Not only a warning of the training: their bound is in every record and report."""
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{x:.3f},{age}" for x, age in zip(rng.normal(size=260), rng.integers(20, 60, 260), strict=True))
    (tmp_path / "ages.csv").write_text(f"height,age\n{rows}\n", encoding="utf-8")
    run = tmp_path / "ages"
    small = ["--model.hidden", "8", "--batch", "8", "--steps", "2"]
    cli.main(["train", str(run), "--data", str(tmp_path / "ages.csv"), *small])
    report(run, "--items", 0, "--samples", 0, "-o", tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "No warnings." not in text
    assert "The values at position 1 are whole numbers" in text
    # A single loss is a dot.
    chart = text[text.index('<p class="chart-title" id="training-1-heading">') :].partition("</svg>")[0]
    assert chart.count("<circle") == 1


def test_saved_files(tmp_path: Path) -> None:
    images().save(tmp_path / "one.json")
    comparison().save(tmp_path / "ab.json")
    record = {"value": 1.0, "error": 0.0}
    row = {"name": "prior", "cost": record, "reference": record, "gap": record}
    budget = {"rows": [row], "total": row | {"name": "NELBO"}, "relative_to": "runs/b", "runs": ["runs/a", "runs/b"]}
    (tmp_path / "budget.json").write_text(json.dumps(budget), encoding="utf-8")
    report(*(tmp_path / f"{name}.json" for name in ("one", "ab", "budget")), "-o", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"Report: {tmp_path / 'one.json'}, runs/a, runs/b" in text
    assert "runs/a has the lower bound, by 0.0902" in text
    assert "Information and gap of runs/a, relative to runs/b" in text


def test_evaluate_html(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bound.html"
    evaluated(folder / "a", "--visits", 4, "--html", out, "--json", tmp_path / "bound.json")
    assert headings(out) == [
        *(
            "Caveats",
            "The number",
            "Where the bits go",
            "Cost by noise level",
            "Training",
            "Items",
            "How to reproduce",
            "Words",
        )
    ]
    record = json.loads((tmp_path / "bound.json").read_text())
    assert str(record["network_evaluations"]) in out.read_text(encoding="utf-8").replace(",", "")
    evaluated(folder / "a", folder / "b", "--error", 0.05, "--html", out)
    assert "Differences" in headings(out)


def test_samples_that_cannot_be_drawn_are_a_caveat(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusional.cli import drawing
    from diffusional.errors import DiffusionalError

    def refuse(*_: object) -> None:
        raise DiffusionalError("expected finite samples")

    monkeypatch.setattr(drawing, "samples_of", refuse)
    report(folder / "a", "--items", 0, "-o", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Samples are missing: expected finite samples." in text[: text.index('id="number"')]


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, args)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert out == ""
    return err


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "a"
    before = sorted(path.name for path in run.iterdir())
    assert ".html" in fails(capsys, "report", run, "-o", tmp_path / "r.pdf")
    assert ".html" in fails(capsys, "evaluate", run, "--html", tmp_path / "r.txt")
    assert "--samples" in fails(capsys, "report", run, "--samples", -1)
    assert "--visits" in fails(capsys, "report", run, "--visits", 1)
    assert "error" in fails(capsys, "report", run, "--error", 0)
    assert "each run once" in fails(capsys, "report", run, run)
    assert "missing" in fails(capsys, "report", tmp_path / "missing")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert "other.json" in fails(capsys, "report", tmp_path / "other.json", "-o", tmp_path / "r.html")
    assert "got none" in fails(capsys, "report")
    budget = {"rows": [], "total": {}, "relative_to": "", "runs": ["elsewhere"]}
    (tmp_path / "budget.json").write_text(json.dumps(budget), encoding="utf-8")
    assert "elsewhere" in fails(capsys, "report", run, tmp_path / "budget.json", "--saved", "-o", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    assert sorted(path.name for path in run.iterdir()) == before


def test_other_data_are_not_compared(folder: Path, tmp_path: Path) -> None:
    other = replace(images(), provenance={"data_sha256": "x" * 64, "levels": 17})
    other.save(tmp_path / "other.json")
    report(folder / "a", tmp_path / "other.json", "--samples", 0, "--items", 0, "-o", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "cannot be compared with one another" in text
    assert "Differences" not in headings(tmp_path / "r.html")
