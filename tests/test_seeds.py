"""Seeds out of range are refused by name, before any work, wherever one is taken."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diffusional as df
from battery import command
from diffusional import baselines, exact, likelihood, schedule
from diffusional.data.splits import split_at_random
from diffusional.data.warp import warped
from diffusional.errors import DiffusionalError
from diffusional.evaluation import importance_weighted
from diffusional.seeds import check_seed

BITS = df.space.binary((4,))
X = torch.ones(3, 4)


def vae() -> df.VAE:
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (8,)))
    return df.VAE(nn.Linear(4, 4), decoder, likelihood.NetworkLevels(BITS), latents=2)


def diffusion() -> df.DiffusionModel:
    world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=8))
    return df.DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(df.Continuous((4,))))


TAKERS: dict[str, Callable[[Any], object]] = {
    "evaluate, sweep": lambda seed: df.evaluate(diffusion(), X, seed=seed),
    "evaluate, plan": lambda seed: df.evaluate(diffusion(), X, 0.1, plan=df.Plan.uniform(diffusion()), seed=seed),
    "evaluate, VAE": lambda seed: df.evaluate(vae(), X, visits=2, seed=seed),
    "compare": lambda seed: df.compare(diffusion(), diffusion(), X, seed=seed),
    "compare, VAEs": lambda seed: df.compare(vae(), vae(), X, seed=seed),
    "Plan.fit": lambda seed: df.Plan.fit(diffusion(), X, seed=seed),
    "importance_weighted": lambda seed: importance_weighted(vae(), X, seed=seed),
    "Config": lambda seed: df.Config(seed=seed),
    "claims": lambda seed: df.claims.run(seed=seed),
    "data": lambda seed: split_at_random(np.zeros((20, 2)), "a.npy", (0.8, 0.1, 0.1), seed),
    "warped": lambda seed: warped(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1, seed),
    "baselines": lambda seed: baselines.CategoricalMixture.fit(torch.ones(20, 4).long(), BITS, seed=seed),
}


@pytest.mark.parametrize("seed", [-1, 2**64])
@pytest.mark.parametrize("taker", TAKERS)
def test_seeds_out_of_range_are_refused(taker: str, seed: Any) -> None:
    with pytest.raises(DiffusionalError, match=r"seed .*integer from 0 to 2\^(64|32) - 1"):
        TAKERS[taker](seed)


@pytest.mark.parametrize("only", ["evaluate", "sample", "information", "claims", "train", "demo"])
def test_the_command_line_names_the_option(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, said = command(capsys, only, *(["run"] if only not in ("claims", "demo") else []), "--seed", 2**64)
    assert status == 2
    assert "seed" in said
    assert len(said.splitlines()) == 1


def test_the_largest_seed_is_taken() -> None:
    check_seed(2**64 - 1)
    check_seed(np.int64(3))
    # Of two models without common levels, the second one's noise has the next seed.
    both = df.compare(vae(), vae(), X, 1.0, seed=2**64 - 1)
    assert both.b.provenance["seed"] == 0


@pytest.mark.parametrize("seed", [1.0, True, "0", None])
def test_seeds_are_integers(seed: object) -> None:
    with pytest.raises(DiffusionalError, match="expected --seed to be an integer"):
        check_seed(seed, "--seed")
