"""`diffusional export`: a run as a pipeline with its bound on the card."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

import diffusional as df
from diffusional import cli

_OPTIONS = "--data.levels 5 --model.network ddpm --model.widths 8 --model.blocks 1 --model.attention --schedule.steps 4"
_MORE = "--model.predicts v --model.likelihood level-posterior --schedule.kind cosine --steps 1 --batch 4"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with an evaluation."""
    folder = tmp_path_factory.mktemp("export")
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 5, (20, 1, 4, 4), dtype=np.uint8))
    options = [*_OPTIONS.split(), *_MORE.split()]
    cli.main(["train", str(folder / "run"), "--data.name", str(folder / "images.npy"), *options])
    cli.main(["evaluate", str(folder / "run"), "--error", "1"])
    return folder / "run"


def test_a_run_leaves_with_its_bound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "pipeline"
    cli.main(["export", str(run), "--to", "diffusers", str(folder), "--json", "-"])
    record = json.loads(capsys.readouterr().out)
    assert record["folder"] == str(folder)
    assert {"README.md", "diffusional.json", "model_index.json"} <= set(record["files"])
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    card = ModelCard.load(folder / "README.md")
    (entry,) = card.data.eval_results or []
    assert entry.metric_value == pytest.approx(evaluation["nelbo"]["value"])
    assert (entry.dataset_name, entry.dataset_split) == ("images.npy", "test")
    assert json.loads((run / "data.json").read_text())["sha256"]["train"] in card.text
    # And back: the same bound.
    x = df.load_run(run).encode("test")
    first, second = (df.evaluate(one, x, draws=1) for one in (df.load(run), df.load_checkpoint(folder)))
    assert second.nelbo.value == pytest.approx(first.nelbo.value, rel=1e-6)


def test_a_stale_evaluation_is_left_out(run: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    record = json.loads((run / "evaluation-test.json").read_text())
    record["provenance"]["weights_sha256"] = "0" * 64
    kept = (run / "evaluation-test.json").read_text()
    (run / "evaluation-test.json").write_text(json.dumps(record))
    try:
        with pytest.warns(UserWarning, match="weights"):
            df.export(run, tmp_path / "pipeline")
    finally:
        (run / "evaluation-test.json").write_text(kept)
    assert ModelCard.load(tmp_path / "pipeline" / "README.md").data.eval_results is None


def test_refusals_are_one_line_with_status_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for folder, source, words in (
        (tmp_path / "mine", run, "exists"),
        (tmp_path / "new", tmp_path / "nothing", "not a folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", str(source), str(folder)])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
