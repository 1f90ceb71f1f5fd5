"""A system whose frozen encoder is a CLIP of transformers: named in its config, hashed in its run, refused once it has changed."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.networks import CLIPEncoder
from diffusional.training.composites import train_composite
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig
from diffusional.training.stage_data import dataset_of
from tiny_clip import tiny_clip

QUIET = Console(quiet=True)
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=6),
    steps=4,
    batch=16,
    validate_every=4,
    checkpoint_every=4,
)
PRIOR = replace(SMALL, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
STAGES = {"prior": PRIOR, "decoder": SMALL}


def config(clip: Path | str) -> df.CompositeConfig:
    data = DataConfig(condition="label")
    return df.CompositeConfig("unclip", STAGES, data, encoder=f"clip:{clip}", conditional=("decoder",))


@pytest.fixture(scope="module", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP and the run of a system that uses it, named relative to the folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_composite(config("./clip"), folder / "run", console=QUIET)
    return folder


def test_prior_and_decoder_are_those_of_the_features(trained: Path) -> None:
    model, run = df.load(trained / "run"), df.load_run(trained / "run")
    assert isinstance(model, df.FrozenEncoder)
    x = run.encode("test")[:20]
    own = CLIPEncoder.load(str(trained / "clip"), run.space)
    features = own(x)
    assert features.shape == (20, 6)
    assert model.encoded(x)[0].equal(features)
    assert torch.allclose(df.load_run(trained / "run/stages/prior").encode("test")[:20], features, atol=1e-6)
    condition = df.load_run(trained / "run/stages/decoder").condition("test")
    assert isinstance(condition, dict)
    assert torch.allclose(condition["latent"][:20], features, atol=1e-6)
    result = run.evaluate(visits=2, plan=df.Plan.uniform(model), audit=False)
    assert {term.partition(".")[0] for term in result.terms} == {"prior", "decoder"}
    record = json.loads((trained / "run/composite.json").read_text())
    assert record["encoder_sha256"] == own.sha256
    assert record["encoder"] == f"clip:{(trained / 'clip').resolve()}"
    prior = json.loads((trained / "run/stages/prior/config.json").read_text())
    assert prior["data"]["encoder_sha256"] == own.sha256


def test_a_clip_that_changed_is_refused(tmp_path: Path) -> None:
    clip, run = tmp_path / "clip", tmp_path / "run"
    tiny_clip(clip)
    train_composite(config(clip), run, console=QUIET)
    tiny_clip(clip, seed=1)
    changed = r"encoder clip:.*has changed since the stages"
    with pytest.raises(df.DiffusionalError, match=changed):
        df.load(run)
    with pytest.raises(df.DiffusionalError, match=changed):
        df.load_run(run / "stages" / "prior").encode("test")
    with pytest.raises(df.DiffusionalError, match=r"condition of test"):
        df.load_run(run / "stages" / "decoder").encode("test")
    before = (run / "stages/decoder/model.safetensors").read_bytes()
    with pytest.raises(df.DiffusionalError, match=changed):
        train_composite(config(clip), run, resume=True, console=QUIET)
    assert (run / "stages/decoder/model.safetensors").read_bytes() == before
    tiny_clip(clip)
    train_composite(config(clip), run, resume=True, console=QUIET)


def test_features_are_computed_once(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls: list[int] = []
    forward = CLIPEncoder.forward

    def counted(self: CLIPEncoder, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(CLIPEncoder, "forward", counted)
    clip = f"clip:{trained / 'clip'}"
    latents = DataConfig(encoder=clip)
    first = dataset_of(latents)
    images = sum(len(first.items(split)) for split in ("train", "validation", "test"))
    assert sum(calls) == images == 1797
    # As items, and as the condition of a decoder; the network is not called again.
    again, decoder = dataset_of(latents), dataset_of(DataConfig(condition=f"encoder:{clip}"))
    for split in ("train", "validation", "test"):
        assert again.tensor(split).equal(first.tensor(split))
        assert decoder.condition_of(split).equal(first.tensor(split))
    assert sum(calls) == images
    # Other images, a damaged file and another CLIP are encoded.
    assert len(dataset_of(replace(latents, warps=1)).tensor("train")) == 2000
    assert sum(calls) == images + 2000
    stored = sorted((tmp_path / "cache" / "diffusional" / "features").iterdir())
    assert len(stored) == 4
    for path in stored:
        path.write_bytes(path.read_bytes()[:-20])
    assert dataset_of(latents).tensor("test").equal(first.tensor("test"))
    assert sum(calls) == 2 * images + 2000
    tiny_clip(tmp_path / "other", seed=1)
    assert not dataset_of(DataConfig(encoder=f"clip:{tmp_path / 'other'}")).tensor("test").equal(first.tensor("test"))
    assert sum(calls) == 3 * images + 2000


def test_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "system.json", tmp_path / "run"
    file.write_text(json.dumps(config(trained / "clip").to_dict()))
    status, _, err = command(capsys, "train", run, "--composite", file)
    assert status == 0, err
    words = ("--condition", "3", "--interpolate", "test:3", "test:8", "--n", "2", "--out", tmp_path / "a.npz")
    status, _, err = command(capsys, "sample", run, *words)
    assert status == 0, err
    shutil.rmtree(run)
    for name, said in ((tmp_path, "could not be loaded"), ("./none", "does not exist")):
        file.write_text(json.dumps(config(name).to_dict()))
        status, _, err = command(capsys, "train", run, "--composite", file)
        assert status == 2
        assert said in err
        assert not run.exists()


def test_configs_that_are_refused() -> None:
    with pytest.raises(df.DiffusionalError, match=r"prior, decoder .*clip:a.* got encoder, prior, decoder"):
        df.CompositeConfig("unclip", {"encoder": SMALL, **STAGES}, encoder="clip:a")
    with pytest.raises(df.DiffusionalError, match=r"such as \"clip:openai/.* got 'vit'"):
        df.CompositeConfig("unclip", STAGES, encoder="vit")
    with pytest.raises(df.DiffusionalError, match=r"kind='cascade'"):
        df.CompositeConfig("cascade", {"a": SMALL, "b": SMALL}, factors=(2,), encoder="clip:a")
    with pytest.raises(df.DiffusionalError, match=r"name a CLIP"):
        df.CompositeConfig("unclip", STAGES, encoder="clip:")
    with pytest.raises(df.DiffusionalError, match=r"encoder to be a text"):
        df.CompositeConfig.from_dict(config("a").to_dict() | {"encoder": 3})
    assert df.CompositeConfig.from_dict(config("a").to_dict()) == config("a")
