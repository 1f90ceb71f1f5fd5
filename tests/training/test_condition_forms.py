"""Runs whose condition is numbers, images or tokens: trained, loaded, evaluated, sampled and resumed as others are."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import diffusional as df
from battery import command
from diffusional.condition_form import ConditionForm
from diffusional.data import Dataset
from diffusional.errors import DiffusionalError
from diffusional.training.config import Config, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.run import read_run

QUIET = Console(quiet=True)
SMALL = Config(
    schedule=ScheduleConfig(steps=10),
    model=ModelConfig(network="mlp", hidden=32, blocks=1, dropout=0.0),
    optimizer=OptimizerConfig(lr=0.01, warmup=5),
    batch=16,
    steps=4,
    validate_every=100,
)


def items(n: int) -> tuple[Tensor, Tensor]:
    """Flat items of 11 levels, and the two numbers that determine them."""
    generator = torch.Generator().manual_seed(n)
    level = torch.randint(3, (n,), generator=generator)
    raw = 4 * level[:, None] + torch.randint(3, (n, 4), generator=generator)
    return raw, torch.stack([1000.0 + 100 * level, torch.full((n,), 7.0)], 1)


def dataset(form: str = "numbers") -> Dataset:
    made = {split: items(n) for split, n in (("train", 80), ("validation", 20), ("test", 20))}
    condition: dict[str, Any] = {split: c for split, (_, c) in made.items()}
    if form == "tokens":
        mask = torch.tensor([True, True, False])
        condition = {
            split: {
                "tokens": (c[:, None, :].expand(-1, 3, -1) - torch.tensor([1100.0, 7.0])) / 100,
                "mask": mask.expand(len(c), -1),
            }
            for split, c in condition.items()
        }
    return Dataset("mine", df.Discrete((4,), 11), **{k: v[0] for k, v in made.items()}, condition=condition)


@pytest.mark.parametrize("form", ["numbers", "tokens"])
def test_a_dataset_with_a_condition_trains_a_model_of_it(form: str, tmp_path: Path) -> None:
    data, run = dataset(form), tmp_path / "run"
    df.train(replace(SMALL, steps=150, condition_dropout=0.2), run, data, console=QUIET)
    record, model = read_run(run), df.load(run)
    assert record.config.data.condition == form
    assert record.form == data.condition_form == model.condition_form
    assert (record.classes, record.conditional) == ((), True)
    x, c = data.encode("test"), data.condition_of("test")
    order = torch.arange(20).roll(7)
    wrong = {k: v[order] for k, v in c.items()} if isinstance(c, dict) else c[order]

    def bound(condition: Any) -> float:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return sum(float(model.elbo(x, generator, condition).nelbo.mean()) for _ in range(8)) / 8

    given, without = bound(c), bound(None)
    assert given < without < bound(wrong)
    held = df.load_run(run, data).condition("all")
    assert len(held["tokens"] if isinstance(held, dict) else held) == 120
    some = {k: v[:3] for k, v in c.items()} if isinstance(c, dict) else c[:3]
    assert model.guided(2.0).sample(3, torch.Generator().manual_seed(0), some).shape == (3, 4)
    with pytest.raises(DiffusionalError, match="expected a condition"):
        model.sample(3, condition=torch.zeros(3, 9))


@pytest.mark.parametrize(
    ("kind", "form"), [("vae", "numbers"), ("hierarchical-vae", "tokens"), ("vae-diffusion-prior", "numbers")]
)
def test_autoencoders_take_numbers_and_tokens(kind: Any, form: str, tmp_path: Path) -> None:
    data, run = dataset(form), tmp_path / "run"
    schedule = ScheduleConfig(steps=10) if kind == "vae-diffusion-prior" else ScheduleConfig()
    config = replace(
        SMALL,
        model=replace(SMALL.model, kind=kind, network=None),
        latent=LatentConfig(sizes=(2, 2) if kind == "hierarchical-vae" else (2,)),
        schedule=schedule,
        steps=80,
    )
    df.train(config, run, data, console=QUIET)
    model = df.load(run)
    assert read_run(run).form == data.condition_form == model.condition_form
    x, c = data.encode("test"), data.condition_of("test")
    order = torch.arange(20).roll(7)
    wrong = {k: v[order] for k, v in c.items()} if isinstance(c, dict) else c[order]

    def bound(condition: Any) -> float:
        with torch.no_grad():
            return sum(float(model.elbo(x, torch.Generator().manual_seed(k), condition).nelbo.mean()) for k in range(8))

    assert bound(c) < bound(wrong)
    some = {k: v[:3] for k, v in c.items()} if isinstance(c, dict) else c[:3]
    assert model.sample(3, torch.Generator().manual_seed(0), some).shape == (3, 4)
    assert df.evaluate(model, x, visits=2, condition=c).nelbo.n == 20
    with pytest.raises(DiffusionalError, match="condition"):
        model.sample(3)
    with pytest.raises(DiffusionalError, match="expected a condition"):
        model.sample(3, condition=torch.zeros(3, 9))


@pytest.mark.parametrize("kind", ["vae", "hierarchical-vae"])
def test_autoencoders_take_images(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--model.kind", kind, "--model.hidden", "16", "--batch", "16", "--steps", "3"]
    options += ["--latent.sizes", "4", "4"] if kind == "hierarchical-vae" else []
    status, _, err = told(capsys, "train", run, "--condition", "low-resolution:2", *options)
    assert status == 0, err
    assert read_run(run).form == ConditionForm("image", (1, 4, 4))
    status, _, err = command(capsys, "sample", run, "--n", 2, "--out", tmp_path / "a.npz", "--condition", "test:5")
    assert status == 0, err
    status, record, err = told(capsys, "evaluate", run, "--error", 3)
    assert status in (0, 3), err
    assert record["condition"] == "low-resolution:2"


def test_an_interrupted_run_is_resumed_with_the_same_condition_only(tmp_path: Path) -> None:
    plain = OptimizerConfig(lr=0.01, warmup=5, flat=1.0)
    config, data = replace(SMALL, condition_dropout=0.3, checkpoint_every=2, optimizer=plain), dataset()
    whole = df.train(config, tmp_path / "whole", data, console=QUIET)
    df.train(replace(config, steps=2), tmp_path / "part", data, console=QUIET)
    again = df.train(config, tmp_path / "part", data, resume=True, console=QUIET)
    assert all(a.equal(b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    shifted = {split: c + 1 for split, c in (data.condition or {}).items()}
    with pytest.raises(DiffusionalError, match="condition of train"):
        df.train(config, tmp_path / "part", replace(data, condition=shifted), resume=True, console=QUIET)


def test_conditions_that_a_config_s_networks_do_not_take(tmp_path: Path) -> None:
    data = dataset()
    assert data.condition is not None
    for change, match in (
        (replace(SMALL, model=replace(SMALL.model, kind="gaussian-chain")), r"gaussian-chain.*class labels.*numbers"),
        (replace(SMALL, model=replace(SMALL.model, network="unet")), r"unet"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            df.train(change, tmp_path / "run", data, console=QUIET)
    named = {split: {"text": c} for split, c in data.condition.items()}
    with pytest.raises(DiffusionalError, match=r"model\.loss"):
        df.train(SMALL, tmp_path / "run", replace(data, condition=named), console=QUIET)
    assert not (tmp_path / "run").exists()


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any], str]:
    status, out, err = command(capsys, *arguments, "--json", "-")
    return status, json.loads(out) if status in (0, 3) else {}, err


UNET = ["--model.widths", "8", "16", "--model.blocks", "1", "--batch", "16", "--schedule.steps", "10", "--steps", "3"]


@pytest.mark.parametrize(("condition", "shape"), [("low-resolution:2", (1, 4, 4)), ("inpaint", (2, 8, 8))])
def test_super_resolution_and_inpainting_from_the_command_line(
    condition: str, shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [*UNET, "--condition-dropout", "0.5"]
    assert told(capsys, "train", run, "--condition", condition, *options)[0] == 0
    assert read_run(run).form == ConditionForm("image", shape)
    status, record, err = told(capsys, "evaluate", run, "--visits", 2)
    assert status == 0, err
    assert record["condition"] == condition
    status, table, err = told(capsys, "evaluate", run, "--guidance", 0, 2, "--visits", 2)
    assert (status, table["guidance"]["weights"]) == (0, [0.0, 2.0])
    data = df.data.load("digits", condition=condition)
    one = ["sample", run, "--n", 3, "--out", tmp_path / "a.npz", "--condition", "test:5", "--guidance", 2]
    assert told(capsys, *one)[0] == 0
    with np.load(tmp_path / "a.npz") as held:
        assert torch.from_numpy(held["condition"]).equal(data.condition_of("test", torch.tensor([5, 5, 5])))
    np.save(tmp_path / "c.npy", data.condition_of("test", slice(2, 4)).numpy())
    rows = ["sample", run, "--n", 4, "--out", tmp_path / "b.npz", "--condition", tmp_path / "c.npy"]
    assert told(capsys, *rows)[0] == 0
    with np.load(tmp_path / "b.npz") as held:
        assert torch.from_numpy(held["condition"]).equal(data.condition_of("test", torch.tensor([2, 3, 2, 3])))
    # The same condition of other images is computed from them.
    np.savez(tmp_path / "other.npz", x=data.tensor("test")[:7].numpy())
    status, record, err = told(capsys, "evaluate", run, "--data", tmp_path / "other.npz", "--visits", 2)
    # Two draws of seven items do not show their error well, which is reported.
    assert (status, record["items"]) == (3, 7), err
    for word, match in (
        ("test:1000", "0 to 446"),
        ("tset", "split|numbers"),
        ("1,2", "expected a condition of images"),
        (str(tmp_path / "none.npy"), "cannot be read"),
    ):
        status, _, err = command(capsys, "sample", run, "--out", tmp_path / "no.npz", "--condition", word)
        assert status == 2
        assert re.search(match, err), err
    status, _, err = command(capsys, "sample", run, "--out", tmp_path / "no.npz")
    assert (status, "--condition" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--condition", "low-resolution:3"], "low-resolution:3.*8×8"),
        (["--condition", "low-resolution"], "low-resolution.*factor"),
        (["--condition", "inpaint", "--model.network", "mlp"], "image as condition"),
        (
            ["--condition", "inpaint", "--model.kind", "vae-diffusion-prior", "--schedule.steps", "9"],
            "diffusion-prior.*image",
        ),
        (["--condition", "low-resolution:2 + label", "--model.kind", "vae"], "vae.*image.*and"),
    ],
)
def test_derived_conditions_that_do_not_fit_are_refused(
    options: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(capsys, "train", tmp_path / "run", *options)
    assert status == 2
    assert re.search(match, err), err
    assert not (tmp_path / "run").exists()


def test_a_low_resolution_is_the_mean_of_blocks() -> None:
    data = df.data.load("digits", condition="low-resolution:4")
    x, c = data.encode("train"), data.condition_of("train")
    expected = x.view(-1, 1, 2, 4, 2, 4).mean((3, 5))
    assert c == pytest.approx(expected, abs=1e-6)
    assert data.arguments == {"name_or_path": "digits", "condition": "low-resolution:4"}
    with pytest.raises(DiffusionalError, match="low-resolution:16"):
        df.data.load("digits", condition="low-resolution:16")
