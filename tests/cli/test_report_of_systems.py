"""What a report shows of systems of several stages: samples by stage, and cost maps at the pixels of x."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.cli import drawing
from diffusional.cli.commands import Report
from diffusional.report.page import page
from diffusional.report.subject import ItemScores, Samples, Subject
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig
from diffusional.training.loop import train
from diffusional.training.run import read_run
from report.pages import composite

SCHEDULE = ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=6)
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=SCHEDULE,
    steps=2,
    batch=16,
    validate_every=2,
)
VAE = replace(
    SMALL, model=ModelConfig(kind="vae", hidden=8, blocks=1), schedule=ScheduleConfig(), latent=LatentConfig(sizes=(3,))
)
PRIOR = replace(SMALL, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
CONFIGS = {
    "three": CompositeConfig("cascade", {"a": SMALL, "b": SMALL, "c": SMALL}, DataConfig(), (2, 2)),
    "handed over": CompositeConfig("cascade", {"base": SMALL, "upsampler": SMALL}, DataConfig(), (2,), handover=3),
    "latent": CompositeConfig("latent", {"autoencoder": VAE, "prior": PRIOR}, DataConfig()),
    "unclip": CompositeConfig("unclip", {"encoder": VAE, "prior": PRIOR, "decoder": SMALL}, DataConfig()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a system of every kind, of the digits, two steps a stage."""
    folder = tmp_path_factory.mktemp("systems")
    for name, config in CONFIGS.items():
        train_composite(config, folder / name, console=Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, tuple[Samples, ItemScores]]:
    """Four samples, and scores of four test items, of each system."""
    found = {}
    for name in CONFIGS:
        model, record = df.load(folder / name), read_run(folder / name)
        command = Report((folder / name,), visits=2, shown=1)
        samples = drawing.samples_of(model, record, 4, 0, "test")
        found[name] = samples, drawing.scores_of(model, record, command, 4, "test")
    return found


def shown(samples: Samples, items: ItemScores) -> str:
    return page([Subject("runs/c", composite(), samples=samples, items=items)])


def test_a_cascade_shows_its_samples_by_stage(drawn: dict[str, tuple[Samples, ItemScores]]) -> None:
    samples, items = drawn["three"]
    assert samples.stages is not None
    assert samples.images is not None
    assert samples.stages.shape == (3, 4, 1, 8, 8)
    assert list(samples.stage_labels) == ["a, 2 × 2", "b, 4 × 4", "c, 8 × 8"]
    # The last row is the sheet of samples; a pixel of the others is a block of 4 × 4 or 2 × 2 of one value.
    np.testing.assert_allclose(samples.stages[-1], samples.images, atol=1e-6)
    for row, block in ((0, 4), (1, 2)):
        blocks = samples.stages[row].reshape(4, 8 // block, block, 8 // block, block)
        assert np.ptp(blocks, axis=(2, 4)).max() == 0
        assert np.ptp(samples.stages[row]) > 0
    text = shown(samples, items)
    assert "4 samples by stage, a sample in each column, from above: a, 2 × 2; b, 4 × 4; c, 8 × 8" in text
    assert "latent" not in samples.how


def test_the_map_of_a_cascade_is_that_of_all_stages(drawn: dict[str, tuple[Samples, ItemScores]]) -> None:
    """Its sum is near the item's score: both are draws of the same bound."""
    samples, items = drawn["three"]
    text = shown(samples, items)
    assert "A map is the sum of those of stages a, b and c. A pixel of stage a is a block of 4 × 4 pixels" in text
    for item in (*items.easiest, *items.hardest):
        assert item.cost_map is not None
        assert item.cost_map.shape == (8, 8)
        assert abs(item.cost_map.sum() - item.nelbo) < 0.25 * item.nelbo


def test_a_latent_that_is_handed_over_is_labelled(drawn: dict[str, tuple[Samples, ItemScores]]) -> None:
    samples, items = drawn["handed over"]
    assert list(samples.stage_labels) == ["base, 4 × 4, its noisy z_3", "upsampler, 8 × 8"]
    assert "the sum of those of stages base and upsampler" in items.maps


@pytest.mark.parametrize("name", ["latent", "unclip"])
def test_a_frozen_encoder_has_the_map_of_its_decoder(name: str, drawn: dict[str, tuple[Samples, ItemScores]]) -> None:
    samples, items = drawn[name]
    assert samples.stages is None
    assert "The variable of stage prior is a latent of shape 3, which has no picture." in samples.how
    text = shown(samples, items)
    assert "A map is that of stage decoder. Stage prior has no map: " in text
    assert "Its costs are not in the pictures." in text
    assert items.hardest[0].cost_map is not None
    assert bool(torch.isfinite(torch.as_tensor(items.hardest[0].cost_map)).all())


@pytest.mark.parametrize(("name", "last"), [("three", "c"), ("handed over", "upsampler"), ("unclip", "decoder")])
def test_paths_are_those_of_the_last_stage(
    name: str, last: str, folder: Path, drawn: dict[str, tuple[Samples, ItemScores]]
) -> None:
    """From noise to the samples of the system, of which the stages before are the same as without paths."""
    samples, items = drawn[name]
    assert samples.paths is not None
    assert samples.images is not None
    assert samples.paths.shape == (3, 7, 1, 8, 8)
    assert list(samples.path_labels) == ["−6.0", "−3.6", "−1.2", "1.2", "3.6", "6.0", "x"]
    np.testing.assert_allclose(samples.paths[:, -1], samples.images[:3].clip(0, 1))
    assert (
        f"The paths are those of stage {last}, at 6 noise levels, for the samples of the stage before." in samples.how
    )
    assert "paths from noise (left) to a sample (right)" in shown(samples, items)
    model = df.load(folder / name)
    assert isinstance(model, df.Composite)
    own = model.sample_stages(4, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(samples.images, (own[last].numpy() + 1) / 2, atol=1e-6)
    # With weights that make the stages depend on each other.
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, std=0.3)
    own = model.sample_stages(4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        again, states, *_ = drawing._states_of_system(model, 4, torch.Generator().manual_seed(1), None)
    assert list(again) == list(own)
    assert all(again[stage].equal(own[stage]) for stage in own)
    assert states[-1].equal(own[last])


def test_paths_of_a_stage_in_continuous_time_have_a_hundred_levels(tmp_path: Path) -> None:
    stage = replace(SMALL, schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0))
    config = CompositeConfig("cascade", {"a": SMALL, "b": stage}, DataConfig(), (4,))
    train_composite(config, tmp_path / "run", console=Console(quiet=True))
    samples = drawing.samples_of(df.load(tmp_path / "run"), read_run(tmp_path / "run"), 2, 0, "test")
    assert "The paths are those of stage b, at 100 noise levels, for" in samples.how
    assert samples.paths is not None
    assert samples.paths.shape == (2, 8, 1, 8, 8)
    assert list(samples.path_labels)[::7] == ["−6.0", "x"]


def test_a_decoder_without_latents_has_no_paths(drawn: dict[str, tuple[Samples, ItemScores]]) -> None:
    samples, _ = drawn["latent"]
    assert samples.paths is None
    assert "path" not in samples.how


@pytest.mark.parametrize("name", CONFIGS)
def test_score_writes_the_maps_of_a_system(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"three": ["a", "b", "c"], "handed over": ["base", "upsampler"]}.get(name, ["decoder"])
    target, options = tmp_path / "maps.npz", ("--visits", 2, "--shown", 2, "--split", "test")
    status, _, err = command(capsys, "score", folder / name, *options, "--maps", target, "--json", tmp_path / "s.json")
    assert status == 0, err
    with np.load(target) as found:
        maps = dict(found)
    assert set(maps) == {"item", "total", *stages, *(f"{stage}.error" for stage in stages)}
    np.testing.assert_allclose(maps["total"], sum(maps[stage] for stage in stages))
    assert len(set(maps["item"])) == len(maps["total"]) == 4
    record = json.loads((tmp_path / "s.json").read_text())
    (note,) = [one for one in record["notes"] if "A map is" in one]
    assert ("Stage prior has no map" in note) == (stages == ["decoder"])
    model, x = df.load(folder / name), df.load_run(folder / name).encode("test")
    assert isinstance(model, df.Composite)
    own = df.stage_maps(model, x[maps["item"]])
    np.testing.assert_allclose(maps["total"], own.total.numpy(), rtol=1e-6)


def test_score_draws_the_maps_of_a_system(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "maps.png"
    status, _, err = command(capsys, "score", folder / "three", "--visits", 2, "--maps", target)
    assert status == 0, err
    assert target.stat().st_size > 1000

    def without(*_: object) -> torch.Tensor:
        raise df.DiffusionalError("it has no costs by position")

    monkeypatch.setattr("diffusional.evaluation.stage_maps.cost_map", without)
    monkeypatch.setattr("diffusional.evaluation.stage_maps._direct_map", without)
    target.unlink()
    status, _, err = command(capsys, "score", folder / "latent", "--visits", 2, "--maps", target)
    assert status == 2
    assert "decoder: it has no costs by position" in " ".join(err.split())
    assert not target.exists()


def test_a_vae_says_why_it_has_no_maps(tmp_path: Path) -> None:

    train(VAE, tmp_path / "vae", console=Console(quiet=True))
    model, record = df.load(tmp_path / "vae"), read_run(tmp_path / "vae")
    items = drawing.scores_of(model, record, Report((tmp_path / "vae",), visits=2, shown=1), 4, "test")
    assert items.hardest[0].cost_map is None
    assert items.maps == "There are no cost maps: the costs of a VAE belong to latents that are not pixels."
