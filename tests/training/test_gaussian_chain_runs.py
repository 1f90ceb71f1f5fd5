"""A chain with free Gaussians from a config: built, trained, resumed, evaluated and sampled, in Python and on the command line."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.errors import DiffusionalError
from diffusional.files import load_tensors
from diffusional.models.base import LatentVariableModel
from diffusional.models.denoiser import Denoiser
from diffusional.training import recipes
from diffusional.training.build import build_model, prepare_networks
from diffusional.training.config import (
    Config,
    DataConfig,
    LatentConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SystemConfig,
)

QUIET = Console(quiet=True)
SPACE = df.Discrete((1, 4, 4), 5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 items 1×4×4 of 5 levels: one of three patterns each, with a little noise."""
    rng = np.random.default_rng(0)
    items = rng.integers(0, 5, (3, 1, 4, 4))[rng.integers(0, 3, 60)] + (rng.random((60, 1, 4, 4)) < 0.1)
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, items.clip(0, 4).astype(np.uint8))
    return path


def config(stored: Path, **model: object) -> Config:
    return Config(
        data=DataConfig(name=str(stored), levels=5),
        schedule=ScheduleConfig(kind="linear", steps=4, beta_start=0.6, beta_end=0.9),
        model=ModelConfig(kind="gaussian-chain", hidden=16, blocks=1, dropout=0.0, **model),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-2, warmup=5),
        steps=30,
        batch=16,
        validate_every=15,
        checkpoint_every=10,
    )


@pytest.fixture(scope="module")
def run(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "chain"
    df.train(config(stored), folder, console=QUIET)
    return folder


def test_a_model_is_what_its_config_says() -> None:
    base = config(Path("x.npy"))
    chain = build_model(base, SPACE)
    assert isinstance(chain, df.GaussianChain)
    assert (len(chain.networks), chain.steps) == (3, 4)
    assert isinstance(chain.likelihood, df.likelihood.NetworkLevels)
    shared = build_model(config(Path("x.npy"), shared=True), SPACE)
    assert len(shared.networks) == 1
    noise = torch.randn(4, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for network in (None, "mlp", "unet"):
        for likelihood in (None, "network-levels", "discretized-gaussian"):
            made = build_model(config(Path("x.npy"), network=network, likelihood=likelihood, widths=(16, 16)), SPACE)
            assert bool(torch.isfinite(made.terms(torch.zeros(2, 1, 4, 4), noise).nelbo).all())


def test_every_network_takes_the_labels() -> None:
    base = config(Path("x.npy"))
    labelled = dataclasses.replace(base, data=dataclasses.replace(base.data, condition="label"))
    model = build_model(labelled, SPACE, ("a", "b", "c"))
    x, noise = torch.zeros(2, 1, 4, 4), torch.randn(4, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (model.terms(x, noise, torch.tensor(labels)) for labels in ([0, 1], [0, 2]))
    for name in ("reconstruction", "kl"):
        same = getattr(one, name) == getattr(other, name)
        assert bool(same[0].all())
        assert not bool(same[1].any())
    with pytest.raises(DiffusionalError, match="condition"):
        model.terms(x, noise)


def test_real_values_have_a_decoder_of_the_variance_given() -> None:
    chosen = dataclasses.replace(config(Path("x.npy")), latent=LatentConfig(decoder_variance=0.3))
    model = build_model(chosen, df.Continuous((5,)))
    assert isinstance(model, df.GaussianChain)
    assert getattr(model.likelihood, "variance", None) == 0.3
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(model.elbo(x).nelbo).all())


@pytest.mark.parametrize("recipe", [recipes.essay, recipes.essay_tuned])
def test_the_presets_are_the_essay_s_chain(recipe: object) -> None:
    assert callable(recipe)
    model = build_model(recipe(), df.Discrete((1, 8, 8), 17))
    assert isinstance(model, df.GaussianChain)
    assert (model.steps, len(model.networks)) == (5, 4)
    if recipe is recipes.essay:
        kept = torch.sigmoid(-model.noise_levels())
        torch.testing.assert_close(kept, torch.tensor(0.1, dtype=torch.float64) ** torch.arange(1, 6))


def test_networks_can_be_recomputed() -> None:
    model = build_model(config(Path("x.npy")), SPACE)
    prepare_networks(model, SystemConfig(recompute=True), torch.device("cpu"))
    assert isinstance(model, df.GaussianChain)
    assert isinstance(model.decoder, Denoiser)
    assert [network.recompute for network in (*model.networks, model.decoder.module)] == [True] * 4


def test_an_interrupted_run_ends_as_if_it_had_not_been(run: Path, stored: Path, tmp_path: Path) -> None:
    def interrupt(step: int, _: LatentVariableModel) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        df.train(config(stored), tmp_path / "run", console=QUIET, watch=interrupt)
    df.train(config(stored), tmp_path / "run", console=QUIET, resume=True)
    ours, theirs = load_tensors(tmp_path / "run/model.safetensors"), load_tensors(run / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line["validation"] for line in lines if "validation" in line]
    assert len(validation) == 2
    assert validation[-1] < validation[0]


def test_the_command_line_evaluates(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "e.json", {}
    ways = {"error": ("--error", 0.05), "visits": ("--visits", 8), "sweep": ("--sweep", "--draws", 64)}
    for name, arguments in (ways | {"weights": ("--visits", 64, "--importance-weighted", 16)}).items():
        status, said, _ = command(capsys, "evaluate", run, *arguments, "--json", out)
        assert status == 0
        assert "T = 4" in " ".join(said.split())
        found[name] = json.loads(out.read_text())
    truth = found["sweep"]["nelbo"]
    for name in ("error", "visits"):
        apart = found[name]["nelbo"]["value"] - truth["value"]
        assert abs(apart) < 4 * (found[name]["nelbo"]["error"] + truth["error"])
    assert len(found["sweep"]["levels_kl"]) == 3
    tighter = found["weights"]["importance_weighted"]
    assert (tighter["draws"], tighter["network_evaluations"]) == (16, 16 * 4 * found["weights"]["items"])
    assert tighter["value"] < truth["value"] + 3 * (tighter["error"] + truth["error"])
    status, _, _ = command(capsys, "evaluate", run, run, "--error", 0.05, "--json", out)
    assert (status, json.loads(out.read_text())["difference"]["value"]) == (0, 0)
    status, _, _ = command(capsys, "sample", run, "--n", 3, "--out", tmp_path / "s.npz")
    assert (status, np.load(tmp_path / "s.npz")["samples"].shape) == (0, (3, 1, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "RUN", "--steps", 9), "no T to change"),
        (("evaluate", "RUN", "--continuous"), "no T to change"),
        (("evaluate", "RUN", "--importance-weighted", 1), "at least 2 draws"),
        (("evaluate", "RUN", "--importance-weighted", 50_000), "200,000 network evaluations"),
        (("evaluate", "RUN", "RUN", "--importance-weighted", 4), "two runs"),
        (("sample", "RUN", "--method", "ddim"), "GaussianChain"),
        (("information", "RUN", "--reference", "RUN"), "no Gaussian diffusion model"),
    ],
)
def test_what_a_chain_cannot_do_is_refused(
    arguments: tuple[object, ...], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    status, _, said = command(capsys, *(run if one == "RUN" else one for one in arguments))
    assert status == 2
    assert message in said
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": ScheduleConfig()}, r"schedule\.steps=None"),
        ({"schedule": ScheduleConfig(steps=1)}, r"schedule\.steps=1"),
        ({"model": {"predicts": "noise"}}, "predicts=noise"),
        ({"model": {"network": "ddpm"}}, "network=ddpm"),
        ({"model": {"variance": "learned"}}, r"model\.variance"),
        ({"model": {"likelihood": "level-posterior"}}, "level-posterior"),
        ({"model": {"kind": "diffusion", "shared": True}}, r"model\.shared"),
        ({"latent": LatentConfig(warmup=0.1)}, "decoder_variance"),
        ({"latent": LatentConfig(decoder_variance=0.2)}, "decoder_variance"),
        ({"objective": "simple"}, "objective"),
    ],
)
def test_configs_that_make_no_chain(change: dict, message: str) -> None:
    def build() -> None:
        base = config(Path("x.npy"))
        made = {k: dataclasses.replace(base.model, **v) if isinstance(v, dict) else v for k, v in change.items()}
        build_model(dataclasses.replace(base, **made), SPACE)

    with pytest.raises(DiffusionalError, match=message):
        build()
