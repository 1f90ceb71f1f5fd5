"""Systems of several stages that are trained with captions from files, and what the command line does with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.cli import main
from diffusional.cli.parse import parse
from diffusional.training import composites
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig
from diffusional.training.metrics_logger import read

STAGE = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=5),
    condition_dropout=0.5,
    steps=3,
    batch=8,
    validate_every=2,
    checkpoint_every=3,
)
ENCODER = replace(
    STAGE,
    model=ModelConfig(kind="contrastive", hidden=8, blocks=1),
    schedule=ScheduleConfig(),
    latent=LatentConfig(sizes=(3,)),
    condition_dropout=0.0,
)
PRIOR = replace(STAGE, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
QUIET = Console(quiet=True)
TEXTS = ["a grey cat", "a white dog", "an owl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz with captions, the same images as a folder with captions.jsonl, and the runs `unclip` (of the folder) and `cascade`."""
    place, rng = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    x = rng.integers(0, 17, (30, 8, 8)).astype(np.uint8)
    np.savez(place / "data.npz", x=x, captions=np.array([TEXTS[i % 3] for i in range(30)]))
    (place / "images").mkdir()
    lines = []
    for i, image in enumerate(x):
        Image.fromarray(15 * image).save(place / "images" / f"{i:02}.png")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": TEXTS[i % 3]}))
    (place / "images" / "captions.jsonl").write_text("\n".join(lines))
    data = DataConfig(name=str(place / "data.npz"), levels=17, condition="caption")
    stages = {"encoder": ENCODER, "prior": PRIOR, "decoder": STAGE}
    pictures = DataConfig(name=str(place / "images"), condition="caption")
    unclip = CompositeConfig("unclip", stages, pictures, handover=2, conditional=("decoder",))
    cascade = CompositeConfig("cascade", {"base": STAGE, "upsampler": STAGE}, data, (2,), conditional=("upsampler",))
    for name, config in (("unclip", unclip), ("cascade", cascade)):
        (place / f"{name}.json").write_text(json.dumps(config.to_dict()))
    main(
        ["train", str(place / "unclip"), "--composite", str(place / "unclip.json"), "--json", str(place / "unclip.out")]
    )
    main(["train", str(place / "cascade"), "--composite", str(place / "cascade.json"), "--tensorboard"])
    return place


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    """Run a command with --json -; its exit status, its record and its messages."""
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


@pytest.mark.parametrize(("name", "first"), [("unclip", "encoder"), ("cascade", "base")])
def test_captions_of_files_go_to_every_stage_that_takes_them(folder: Path, name: str, first: str) -> None:
    run = df.load_run(folder / name)
    assert run.record.text is not None
    for stage in (first, *run.model.conditional):
        texts = df.load_run(folder / name / "stages" / stage).record.text
        assert texts is not None, stage
        assert texts.sha256 == run.record.text.sha256
    if name == "unclip":
        # The network of two conditions is given the latent by its name, also where the caption is left out.
        assert set(run.model.last.given(torch.zeros(2, 3), None)) == {"latent"}
    condition, generator = run.embed(TEXTS[:2]), torch.Generator().manual_seed(0)
    assert run.model.sample(2, generator, condition).shape == (2, *run.space.shape)
    assert run.model.elbo(run.encode("test"), generator, run.condition("test")).nelbo.isfinite().all()
    # With condition dropout in all stages there is a bound of p(x) as well.
    assert run.model.elbo(run.encode("test"), generator).nelbo.isfinite().all()


def test_a_caption_file_with_a_missing_row_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    lines = (folder / "images" / "captions.jsonl").read_text().splitlines()
    (images / "captions.jsonl").write_text("\n".join(lines[:7] + lines[8:]))
    for path in (folder / "images").glob("*.png"):
        (images / path.name).symlink_to(path)
    options = ("--composite", folder / "unclip.json", "--data", images)
    status, _, err = told(capsys, "train", tmp_path / "run", *options)
    assert status == 2
    assert "07.png" in err
    assert not (tmp_path / "run").exists()


def test_a_crash_in_a_later_stage_is_resumed_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior ends by an error at its validation, before its first checkpoint, in a system with captions that are dropped at random."""
    train = composites.train

    def crashed(own: Config, run: Path, **options: Any) -> df.LatentVariableModel:
        def watch(step: int, model: df.LatentVariableModel) -> None:
            if run.name == "prior" and step:
                raise RuntimeError("crashed")

        return train(own, run, watch=watch, **options)

    config, run = CompositeConfig.load(folder / "unclip.json"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(composites, "train", crashed)
        with pytest.raises(RuntimeError, match="crashed"):
            train_composite(config, run, console=QUIET)
    assert not (run / "stages" / "decoder").exists()
    train_composite(config, run, resume=True, console=QUIET)
    for stage in config.stages:
        ours, theirs = (one / "stages" / stage / "model.safetensors" for one in (run, folder / "unclip"))
        assert ours.read_bytes() == theirs.read_bytes(), stage


def test_a_contrastive_encoder_has_a_loss_and_no_bound(folder: Path) -> None:
    stages = json.loads((folder / "unclip.out").read_text())["stages"]
    assert set(stages["encoder"]) == {"contrastive_loss_nats", "steps"}
    assert "bits/dim of x" in stages["prior"]


def test_tensorboard_has_the_metrics_of_every_stage(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stage in ("base", "upsampler"):
        run = folder / "cascade" / "stages" / stage
        events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
        found = [(one.step, pytest.approx(one.value, rel=1e-6)) for one in events.Scalars("validation")]
        assert found == [(line["step"], line["validation"]) for line in read(run) if "validation" in line]


def test_a_report_of_a_system_has_the_metrics_of_its_stages(folder: Path, tmp_path: Path) -> None:
    main(["report", str(folder / "unclip"), "--saved", "-o", str(tmp_path / "a.html")])
    page = (tmp_path / "a.html").read_text()
    for title in ("Training loss, nats per pair", "Validation loss", "Validation bound", "Training loss, bits per dim"):
        assert title in page
    bounds = page[page.index("Validation bound") :]
    bounds = bounds[: bounds.index("</figure>")]
    assert "prior" in bounds
    assert "decoder" in bounds
    assert "encoder<" not in bounds
    assert "--composite composite.json" in page


def test_samples_for_given_items_take_captions_and_guidance(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last stage of either system takes the caption; without one it predicts as it was trained to with dropped captions."""
    for name, given in (("cascade", ("--upsample", "test:1")), ("unclip", ("--interpolate", "test:0", "test:1"))):
        options = {
            "a": (),
            "b": ("--condition", TEXTS[0]),
            "c": ("--condition", TEXTS[0], "--guidance", "1e6"),
            "d": ("--condition", TEXTS[0], "--guidance", "0"),
        }
        drawn = {}
        for key, more in options.items():
            out = tmp_path / f"{name}-{key}.npz"
            status, record, err = told(capsys, "sample", folder / name, *given, *more, "--n", "2", "--out", out)
            assert status == 0, err
            drawn[key] = np.load(out)["samples"]
            assert record.get("captions", [TEXTS[0]] * 2) == [TEXTS[0]] * 2
        assert (drawn["c"] != drawn["b"]).any()
        assert (drawn["d"] == drawn["a"]).all()


def test_bounds_of_several_weights_of_a_system(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ("--guidance", "0", "1", "2.5", "--visits", "3", "--no-check")
    status, record, err = told(capsys, "evaluate", folder / "cascade", *weights)
    assert status == 0, err
    assert set(record["guidance"]["stages"]) == {"base", "upsampler"}
    run = df.load_run(folder / "cascade")
    x, c = run.encode("test"), run.condition("test")
    result = df.evaluate(run.model.guided(2.5), x, condition=c, visits=3, plan=run.plan(), audit=False)
    assert record["guidance"]["nelbo_nats"][2]["value"] == pytest.approx(result.nelbo.value, rel=1e-4)
    status, record, err = told(capsys, "evaluate", folder / "cascade", *weights, "--guidance-stages", "upsampler")
    assert status == 0, err
    assert set(record["guidance"]["stages"]) == {"upsampler"}
    status, _, err = told(capsys, "evaluate", folder / "cascade", *weights, "--guidance-stages", "middle")
    assert status == 2
    assert "middle" in err


@pytest.mark.parametrize("words", [["--preset", "imagen-small"], ["--preset=imagen-small"]])
def test_a_preset_of_a_system_is_a_composite(words: list[str]) -> None:
    found: Any = parse(["train", "runs/a", *words, "--data", "mnist"])
    assert found.composite == "imagen-small"
    assert found.preset is None
    assert found.config.data.name == "mnist"
