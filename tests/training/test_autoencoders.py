"""Autoencoders through the same door as diffusion models: train, resume, load, evaluate, sample, in Python and on the command line."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from diffusional import cli, demo
from diffusional.errors import DiffusionalError
from diffusional.files import load_tensors
from diffusional.models.base import LatentVariableModel
from diffusional.models.vae import Autoencoder
from diffusional.training import batches, recipes
from diffusional.training.build import build_model
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.loop import validate

QUIET = Console(quiet=True)
KINDS = ("vae", "hierarchical-vae", "vae-diffusion-prior")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 items 1×4×4 of 5 levels: one of three patterns each, with a little noise."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, 5, (3, 1, 4, 4))[rng.integers(0, 3, 60)] + (rng.random((60, 1, 4, 4)) < 0.1)
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, items.clip(0, 4).astype(np.uint8))
    return path


def config(stored: Path, kind: str) -> Config:
    return Config(
        data=DataConfig(name=str(stored), levels=5),
        schedule=ScheduleConfig(steps=20, gamma_min=-6.0, gamma_max=6.0),
        model=ModelConfig(kind=kind, hidden=24, blocks=1, dropout=0.0),  # type: ignore[arg-type]
        latent=LatentConfig(sizes=(3, 2) if kind == "hierarchical-vae" else (3,), warmup=0.2),
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=60,
        batch=16,
        validate_every=20,
        checkpoint_every=25,
    )


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    df.train(config(stored, request.param), folder, console=QUIET)
    return folder


def main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status: object = 0
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    return int(str(status)), said.out, said.err


def test_a_run_learns_and_is_loaded_again(run: Path, stored: Path) -> None:
    model = df.load(run)
    assert isinstance(model, Autoencoder)
    assert not model.training
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line["validation"] for line in lines if "validation" in line]
    assert len(validation) == 3
    assert validation[-1] < validation[0]
    # The bound that the run reports is the evaluation's, but for its noise.
    data = df.data.load(str(stored), levels=5)
    found = df.evaluate(model, data.encode("validation"), visits=60).nelbo.to("bits/dim", 16)
    drawn = torch.tensor([validate(model, data, seed) for seed in range(40)], dtype=torch.float64) / (16 * math.log(2))
    assert abs(found.value - float(drawn.mean())) < 4 * math.hypot(found.error, float(drawn.std()) / 40**0.5)
    assert validate(model, data, 0) / (16 * math.log(2)) == pytest.approx(min(validation), rel=1e-9)


def test_an_interrupted_run_ends_as_if_it_had_not_been(run: Path, stored: Path, tmp_path: Path) -> None:
    kind = run.name
    chosen = config(stored, kind)
    stopped = tmp_path / "run"

    def interrupt(step: int, _: LatentVariableModel) -> None:
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        df.train(chosen, stopped, console=QUIET, watch=interrupt)
    df.train(chosen, stopped, console=QUIET, resume=True)
    ours, theirs = load_tensors(stopped / "model.safetensors"), load_tensors(run / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_command_line_evaluates_and_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, record = tmp_path / "scores.csv", tmp_path / "e.json"
    status, said, _ = main(capsys, "evaluate", run, "--error", 0.01, "--per-item", scores, "--json", record)
    assert status == 0
    written = json.loads(record.read_text())
    assert {"reconstruction", "kl", "prior"} <= set(written["terms"])
    assert written["nelbo"]["error"] <= 0.01
    total = sum(term["value"] for term in written["terms"].values())
    assert total == pytest.approx(written["nelbo_nats"]["value"])
    assert len(scores.read_text().splitlines()) == written["items"] + 1
    assert "latents 3" in " ".join(said.split())
    layers = {"vae": 0, "hierarchical-vae": 1, "vae-diffusion-prior": 19}[run.name]
    # Cells of the plan, for the levels of a prior.
    assert 0 < len(written["levels_kl"]) <= 19 if layers == 19 else len(written["levels_kl"]) == layers
    # The levels of a prior are visited under a plan, which the run keeps.
    assert bool(list(run.glob("plan*"))) == (run.name == "vae-diffusion-prior")
    status, _, _ = main(capsys, "sample", run, "--n", 4, "--out", tmp_path / "s.npz")
    assert status == 0
    drawn = np.load(tmp_path / "s.npz")["samples"]
    assert drawn.shape == (4, 1, 4, 4)
    assert 0 <= drawn.min() <= drawn.max() <= 4


def test_the_importance_weighted_bound_is_no_worse(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "e.json"
    arguments = ("evaluate", run, "--visits", 512, "--importance-weighted", 32, "--json", record)
    if run.name == "vae-diffusion-prior":
        # Refused before anything is evaluated.
        before = sorted(run.rglob("*"))
        with monkeypatch.context() as patched:
            patched.setattr(df.VAE, "infer_from", None)
            status, _, err = main(capsys, *arguments, "--continuous")
        assert (status, "continuous time" in err) == (2, True)
        assert sorted(run.rglob("*")) == before
    status, said, err = main(capsys, *arguments)
    written = json.loads(record.read_text())
    tighter, nelbo = written["importance_weighted"], written["nelbo"]
    assert status == 0, written["caveats"]
    assert "K = 32" in said
    assert tighter["value"] < nelbo["value"] + 3 * (tighter["error"] + nelbo["error"])
    # An item whose weights amount to few draws is named where it carries much of the error: tests/models/test_vae.py has when.
    assert all("of the squared error" in caveat for caveat in tighter["caveats"])
    # Eight draws never amount to the ten that an error by the delta method asks for.
    status, _, err = main(capsys, "evaluate", run, "--visits", 512, "--importance-weighted", 8, "--json", record)
    (caveat,) = json.loads(record.read_text())["importance_weighted"]["caveats"]
    assert status == 0
    assert "more draws" in caveat
    assert f"diffusional: warning: {caveat}" in err


@pytest.mark.parametrize(
    "arguments", [["--sweep"], ["--steps", 10], ["--continuous"], ["--plan", "p.json"], ["--importance-weighted", 1]]
)
def test_what_a_vae_cannot_do_is_refused(
    arguments: list[object], stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    df.train(dataclasses.replace(config(stored, "vae"), steps=1), tmp_path / "run", console=QUIET)
    before = sorted(tmp_path.rglob("*"))
    status, _, said = main(capsys, "evaluate", tmp_path / "run", *arguments)
    assert status == 2
    assert any(text in said for text in ("no levels", "at least 2 draws", "no T to change"))
    assert sorted(tmp_path.rglob("*")) == before


def test_sampling_options_of_a_diffusion_are_refused(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    df.train(dataclasses.replace(config(stored, "vae"), steps=1), tmp_path / "run", console=QUIET)
    status, _, said = main(capsys, "sample", tmp_path / "run", "--method", "ddim")
    assert (status, "not a Gaussian diffusion model" in said) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": LatentConfig(sizes=(3, 2))}, "several layers"),
        ({"objective": "simple"}, r"is for Gaussian diffusion models"),
        ({"model": ModelConfig(kind="vae-diffusion-prior"), "schedule": ScheduleConfig()}, "expected schedule.steps"),
        ({"model": ModelConfig()}, "which has no learned latent"),
        ({"model": ModelConfig(kind="vae", likelihood="level-posterior")}, "expected model.likelihood to be one of"),
        ({"model": ModelConfig(kind="vae", network="unet")}, "expected model.likelihood to be one of"),
        ({"latent": {"sizes": ()}}, "one or more positive integers"),
        ({"latent": {"warmup": 2.0}}, "0 to 1"),
        ({"latent": {"free_bits": -1.0}}, "0 or more"),
        ({"latent": {"decoder_variance": 0.0}}, "a positive number"),
    ],
)
def test_configs_that_make_no_model(stored: Path, change: dict, message: str) -> None:
    def build() -> None:
        made = {k: LatentConfig(**v) if isinstance(v, dict) else v for k, v in change.items()}
        build_model(dataclasses.replace(config(stored, "vae"), **made), df.Discrete((1, 4, 4), 5))

    with pytest.raises(DiffusionalError, match=message):
        build()


def test_a_decoder_of_real_values_has_the_variance_of_the_config() -> None:
    chosen = Config(model=ModelConfig(kind="vae", hidden=16), latent=LatentConfig(sizes=(2,), decoder_variance=0.3))
    model = build_model(chosen, df.Continuous((5,)))
    assert isinstance(model, df.VAE)
    assert getattr(model.likelihood, "variance", None) == 0.3


@pytest.mark.parametrize(
    "recipe", [recipes.digits_vae, recipes.digits_hierarchical_vae, recipes.digits_diffusion_prior]
)
def test_recipes_make_models(recipe: object) -> None:
    assert callable(recipe)
    model = build_model(recipe(), df.Discrete((1, 8, 8), 17))
    assert isinstance(model, Autoencoder)
    assert sum(p.numel() for p in model.parameters()) < 1_200_000


def test_the_watch_sees_the_first_state_and_every_validation(stored: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    df.train(config(stored, "vae"), tmp_path / "run", console=QUIET, watch=lambda step, model: seen.append(step))
    assert seen == [0, 20, 40, 60]


@pytest.mark.parametrize(("seconds", "steps", "every"), [(30.0, 15, 2), (1000.0, 500, 50), (0.5, 1, 1)])
def test_equal_time_is_what_the_steps_come_to(
    seconds: float, steps: int, every: int, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that the steps turn by two seconds each, and by a hundred in the first."""
    now, call = [0.0], batches.BatchLoader.__call__

    def stepped(self: batches.BatchLoader, at: int) -> Any:
        now[0] += 2.0 if at else 100.0
        return call(self, at)

    monkeypatch.setattr(batches.BatchLoader, "__call__", stepped)
    dataset = df.data.load(str(stored), levels=5)
    like = config(stored, "vae")
    chosen = demo._for_as_long(like, like, dataset, seconds, clock=lambda: now[0])
    assert (chosen.steps, chosen.validate_every) == (steps, every)
