"""The historic presets against their papers' own formulas and numbers, and a few steps of each, small."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from rich.console import Console

import diffusional as df
from diffusional import DiffusionalError, Discrete, likelihood
from diffusional.models.binomial import BinomialDiffusionModel
from diffusional.networks.vdm import VDMUNet, fourier_features
from diffusional.training import process_group, recipes
from diffusional.training.build import build_model, build_sampler, build_schedule
from diffusional.training.config import Config, DataConfig, ModelConfig, ScheduleConfig

CIFAR10 = Discrete((3, 32, 32), 256)
PRESETS = {
    "ddpm": recipes.ddpm,
    "iddpm": recipes.iddpm,
    "vdm": recipes.vdm,
    "sohl-dickstein-2015": recipes.sohl_dickstein_2015,
    "sohl-dickstein-2015-binary": recipes.sohl_dickstein_2015_binary,
    "images": recipes.images,
    "laptop": recipes.laptop,
}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Schedules and posterior variances, by each paper's formula in plain float64 numpy, to 1e-6.


def ddpm_betas() -> np.ndarray:
    """Ho et al. 2020, §4: constants increasing linearly from 1e-4 to 0.02, T = 1000."""
    return 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999


def cosine_betas() -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) π/2), s = 0.008, β_t at most 0.999; T = 4000."""
    f = np.cos((np.arange(4001) / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def baseline_betas() -> np.ndarray:
    """Where Sohl-Dickstein et al.'s β begin: 1/linspace(T, 2, T), T = 1000, β_1 held at 5e-4, their 0.002 on data of variance 0.25."""
    betas = 1 / np.linspace(1000, 2, 1000)
    betas[0] = 5e-4
    return betas


def test_sohl_dicksteins_released_betas() -> None:
    """Their code: a floor of 1e-6, and of 0.001 more at t = 1, under the baseline; ours have none but β_1, and differ by so much."""
    floor = np.full(1000, 1e-6)
    floor[0] += 0.001
    released = floor + (1 / np.linspace(1000, 2, 1000)) * (1 - floor - 1e-5)
    np.testing.assert_allclose(baseline_betas()[1:], released[1:], rtol=1.1e-3)
    # The first is for data of variance 1, ours for a quarter of it.
    assert baseline_betas()[0] == pytest.approx(released[0] / 4, rel=1.1e-3)
    np.testing.assert_allclose(baseline_betas()[500:], released[500:], rtol=6e-4)


@pytest.mark.parametrize(
    ("preset", "betas"),
    [("ddpm", ddpm_betas), ("iddpm", cosine_betas), ("sohl-dickstein-2015", baseline_betas)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_schedule_and_posterior_variance(preset: str, betas: Callable[[], np.ndarray]) -> None:
    """Ho et al. 2020, eq. 4 and 7: ᾱ_t = Π (1 − β_s), β̃_t = β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t), and the weights of x_0 and x_t."""
    beta = betas()
    forward = df.GaussianDiffusion(build_schedule(PRESETS[preset]().schedule))
    alpha2 = np.cumprod(1 - beta)
    gamma = forward.schedule.grid().detach().numpy()
    assert forward.steps == len(beta)
    np.testing.assert_allclose(np.exp(-gamma), alpha2 / (1 - alpha2), rtol=1e-6)
    s, t = np.arange(len(beta) - 1), np.arange(1, len(beta))
    variance = beta[t] * (1 - alpha2[s]) / (1 - alpha2[t])
    of_x = np.sqrt(alpha2[s]) * beta[t] / (1 - alpha2[t])
    of_z = np.sqrt(1 - beta[t]) * (1 - alpha2[s]) / (1 - alpha2[t])
    level = torch.arange(1, len(beta))
    one, zero = (torch.full((len(level), 1), v, dtype=torch.float64) for v in (1.0, 0.0))
    with torch.no_grad():
        np.testing.assert_allclose(forward.posterior(zero, zero, level).variance.flatten(), variance, rtol=1e-6)
        np.testing.assert_allclose(forward.posterior(zero, one, level).mean.flatten(), of_x, rtol=1e-6)
        np.testing.assert_allclose(forward.posterior(one, zero, level).mean.flatten(), of_z, rtol=1e-6)
        # eq. 7's other variance, β_t.
        shifted = torch.cat([zero[:1], zero])
        np.testing.assert_allclose(
            forward.transition(shifted, torch.arange(1, len(beta) + 1)).variance.flatten(), beta, rtol=1e-6
        )


def test_the_schedules_differ() -> None:
    """The control of the test above: one formula does not pass for another's."""
    ours = build_schedule(recipes.ddpm().schedule).grid().numpy()
    alpha2 = np.cumprod(1 - cosine_betas())[3::4]
    assert np.abs(ours + np.log(alpha2 / (1 - alpha2))).max() > 1


def test_vdm_starts_straight_between_its_ends() -> None:
    """Kingma et al. 2021, App. H: γ from −13.3 to 5, both learned."""
    made = build_schedule(recipes.vdm().schedule)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert made.ends().tolist() == [-13.3, 5.0]
    assert float((made.gamma(u) - (-13.3 + 18.3 * u)).detach().abs().max()) < 0.2
    names = dict(made.named_parameters())
    assert {"gamma_min", "gamma_max"} <= set(names)


def test_the_binary_preset_erases_a_constant_part_of_the_signal() -> None:
    """Sohl-Dickstein et al. 2015, §2.4.1: β_t = 1/(T − t + 1), so that Π (1 − β_s) = 1 − t/T, and nothing is left."""
    model = build_model(recipes.sohl_dickstein_2015_binary(), df.space.binary((1, 8, 8)))
    assert isinstance(model, BinomialDiffusionModel)
    one = torch.ones(100, 1, 8, 8)
    kept = model.process.marginal(one, torch.arange(1, 101)).mean.flatten(1)[:, 0]
    expected = 1 - torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-12)


# Networks: their papers' numbers.


def test_ddpm_has_its_papers_parameters() -> None:
    """Ho et al. 2020, App. B: 35.7 million for CIFAR-10."""
    model = build_model(recipes.ddpm(), CIFAR10)
    assert parameters(model) == pytest.approx(35.7e6, abs=0.05e6)
    assert isinstance(model, df.DiffusionModel)
    assert model.variance == "transition"
    assert isinstance(model.likelihood, likelihood.DiscretizedGaussian)


def test_what_the_others_are_made_of() -> None:
    iddpm = build_model(recipes.iddpm(), CIFAR10)
    assert isinstance(iddpm, df.DiffusionModel)
    assert (iddpm.steps, iddpm.variance, iddpm.denoiser.learns_variance) == (4000, "learned", True)
    assert isinstance(iddpm.likelihood, likelihood.DiscretizedGaussian)
    beta = cosine_betas()[:2]
    least = beta[1] * beta[0] / (1 - (1 - beta[0]) * (1 - beta[1]))
    assert iddpm.likelihood.least == pytest.approx(least, rel=1e-6)
    small = replace(recipes.vdm(), model=replace(recipes.vdm().model, widths=(8,), blocks=2))
    vdm = build_model(small, CIFAR10)
    assert isinstance(vdm, df.DiffusionModel)
    assert vdm.steps is None
    assert isinstance(vdm.likelihood, likelihood.LevelPosterior)
    assert build_sampler(recipes.vdm()) == df.timesteps.Stratified()
    full = recipes.vdm().model
    assert (full.network, full.widths, full.blocks, full.predicts) == ("vdm", (128,), 32, "noise")


# A few steps of each, as `train --preset NAME --data …` with options beside it does.


def tiny(config: Config, path: Path) -> Config:
    """The preset on small images, with a small network and few steps; what makes it itself stays."""
    model = config.model
    widths = (8,) if model.network == "vdm" else (8, 8)
    return replace(
        config,
        data=DataConfig(name=str(path), levels=2 if model.kind == "binomial-diffusion" else 5),
        schedule=replace(config.schedule, steps=config.schedule.steps and 12),
        model=replace(
            model, widths=widths, blocks=1, attention=(4,) if model.attention else (), heads=2 if model.heads > 1 else 1
        ),
        steps=3,
        batch=4,
        validate_every=3,
        checkpoint_every=3,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_few_steps_and_an_evaluation(preset: str, tmp_path: Path) -> None:
    config = PRESETS[preset]()
    levels = 2 if config.model.kind == "binomial-diffusion" else 5
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, levels, (60, 1, 8, 8), dtype=np.uint8))
    model = df.train(tiny(config, tmp_path / "x.npy"), tmp_path / "run", console=Console(quiet=True))
    x = df.data.load(str(tmp_path / "x.npy"), levels=levels).encode("test")
    again = df.load(tmp_path / "run")
    swept = df.evaluate(again, x, draws=2, cells=12)
    visited = df.evaluate(again, x, visits=200, audit=False)
    off = abs(swept.nelbo.value - visited.nelbo.value)
    assert off < 4.5 * math.hypot(swept.nelbo.error, visited.nelbo.error)
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    samples = again.sample(2, torch.Generator().manual_seed(0))
    again.space.check(samples)


def test_a_learned_schedule_is_saved_once_and_averaged(tmp_path: Path) -> None:
    """DDPM's U-Net asks the schedule for its index: what is loaded has the average's γ in both places."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 5, (60, 1, 8, 8), dtype=np.uint8))
    base = tiny(recipes.ddpm(), tmp_path / "x.npy")
    wanted = replace(
        base,
        objective="elbo",
        schedule=ScheduleConfig(kind="learned_betas", steps=12),
        optimizer=replace(base.optimizer, lr=0.1, warmup=0, ema=0.9),
    )
    seen = {}

    def watch(step: int, model: df.LatentVariableModel) -> None:
        seen[step] = {name: value.clone() for name, value in model.state_dict().items()}

    df.train(wanted, tmp_path / "run", console=Console(quiet=True), watch=watch)
    loaded = df.load(tmp_path / "run")
    assert [name for name in loaded.state_dict() if "logits" in name] == ["process.schedule.logits"]
    assert loaded.state_dict()["process.schedule.logits"].equal(seen[3]["process.schedule.logits"])
    assert not seen[3]["process.schedule.logits"].equal(seen[0]["process.schedule.logits"])
    assert isinstance(loaded, df.DiffusionModel)
    assert loaded.denoiser.time(-loaded.process.schedule.grid()).tolist() == list(range(12))


def test_fsdp_is_refused_for_learned_schedules() -> None:
    accelerator = create_autospec(Accelerator, instance=True)
    accelerator.distributed_type = DistributedType.FSDP
    fixed = build_model(Config(), Discrete((1, 8, 8), 5))
    process_group.refuse_sharding(accelerator, fixed)
    for kind, steps in (("learned", None), ("learned_betas", 12)):
        model = build_model(Config(schedule=ScheduleConfig(kind=kind, steps=steps)), Discrete((1, 8, 8), 5))
        with pytest.raises(DiffusionalError, match="FSDP, which cannot shard float64"):
            process_group.refuse_sharding(accelerator, model)
        accelerator.distributed_type = DistributedType.MULTI_CPU
        process_group.refuse_sharding(accelerator, model)
        accelerator.distributed_type = DistributedType.FSDP


# What does not go together.


def refused(config: Callable[[], object], words: str) -> None:
    with pytest.raises(DiffusionalError, match=words):
        config()


def test_refusals() -> None:
    bits, grey = df.space.binary((1, 8, 8)), Discrete((1, 8, 8), 5)
    base = recipes.sohl_dickstein_2015_binary()
    refused(
        lambda: build_model(base, grey), 'expected data of 2 levels for model.kind="binomial-diffusion", got 5 levels'
    )
    refused(lambda: replace(base, schedule=ScheduleConfig()), "expected only schedule.steps")
    refused(lambda: replace(base, schedule=ScheduleConfig(kind="linear", steps=10)), "expected only schedule.steps")
    for name, value in (("predicts", "noise"), ("likelihood", "bernoulli"), ("variance", "transition")):
        wrong = replace(base, model=replace(base.model, **{name: value}))
        refused(lambda wrong=wrong: build_model(wrong, bits), "whose network returns the log-odds of every bit")
    for network in ("ddpm", "vdm"):
        wrong = replace(base, model=replace(base.model, network=network))
        refused(lambda wrong=wrong: build_model(wrong, bits), "is for Gaussian diffusion models")
    wide = replace(recipes.vdm(), model=replace(recipes.vdm().model, widths=(8, 16)))
    refused(lambda: build_model(wide, CIFAR10), "has one resolution")
    refused(
        lambda: replace(recipes.iddpm(), objective="simple"),
        'model.variance="learned" was given: use "hybrid" or "elbo"',
    )
    vae = ModelConfig(kind="vae", network="ddpm")
    refused(lambda: build_model(Config(model=vae), grey), "expected model.likelihood to be one of")
    refused(
        lambda: Config(model=ModelConfig(kind="vae", variance="transition")), "model.variance is for diffusion models"
    )
    refused(lambda: Config(model=ModelConfig(attention=(4,))), 'are for network="ddpm"')
    table = replace(recipes.vdm(), model=replace(recipes.vdm().model, widths=(8,)))
    refused(lambda: build_model(table, Discrete((5,), 5)), r"expects items of shape \(C, H, W\)")


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_vdm_s_features_follow_the_levels(levels: int) -> None:
    """A turn from level to level, which all of them share, and half a turn, of which neighbours have the ends; of 256 levels, theirs."""
    space = Discrete((1, 8, 8), levels)
    config = replace(recipes.vdm(), model=replace(recipes.vdm().model, widths=(8,), blocks=1))
    (network,) = (module for module in build_model(config, space).modules() if isinstance(module, VDMUNet))

    def features(z: torch.Tensor, exponents: tuple[int | float, ...]) -> torch.Tensor:
        return fourier_features(z[:, None, None], exponents)[:, :, 0]

    sin_half, sin_turn, cos_half, cos_turn = (found := features(space.values[:, None], network.fourier)[..., 0]).T
    for turn in (sin_turn, cos_turn):
        torch.testing.assert_close(turn, turn[:1].expand_as(turn), rtol=0, atol=1e-9)
    for half in (sin_half, cos_half):
        torch.testing.assert_close(half[1:], -half[:-1], rtol=0, atol=1e-9)
    if levels == 256:
        theirs = (2 * torch.arange(256, dtype=torch.float64)[:, None] + 1) / 256 - 1
        torch.testing.assert_close(found, features(theirs, (6, 7))[..., 0], rtol=0, atol=1e-9)
        assert float((features(space.values[:, None], (6, 7))[..., 0] - found).abs().max()) > 1
