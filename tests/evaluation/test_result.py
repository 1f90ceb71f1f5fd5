"""The record of an evaluation."""

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from bits import Network
from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule

F64 = torch.float64
WORLD = exact.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
X = WORLD.sample(12, torch.Generator().manual_seed(0))


def gaussian(steps: int | None = 9) -> DiffusionModel:
    process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=steps))
    return DiffusionModel(process, WORLD.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))


class Halves(nn.Module):
    """An affine map whose weights are no parameters of interest."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map = nn.Linear(inputs, outputs, dtype=F64)
        nn.init.constant_(self.map.weight, 0.1)
        nn.init.constant_(self.map.bias, -0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def vae(prior: DiffusionModel | None = None) -> df.VAE:
    decoder = likelihood.GaussianLikelihood(Continuous((2,)), 0.5)
    return df.VAE(Halves(2, 2), Halves(1, 2), decoder, latents=1, prior=prior)


def line() -> DiffusionModel:
    """A diffusion over one latent."""
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    process = GaussianDiffusion(schedule.log_snr_linear(-4.0, 4.0, steps=5))
    return DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))


# γ at the edges of levels.


@pytest.mark.parametrize("steps", [9, None])
@pytest.mark.parametrize("how", [{"draws": 2}, {"visits": 4}])
def test_gamma_is_that_of_the_schedule_at_the_edges(steps: int | None, how: dict[str, int]) -> None:
    cells = {"cells": 5} if steps is None and "draws" in how else {}
    result = df.evaluate(gaussian(steps), X, **how, **cells)
    u = result.level_edges.double() if steps is None else (result.level_edges.double() - 1) / 8
    assert result.gamma_edges is not None
    assert result.gamma_edges.dtype is F64
    torch.testing.assert_close(result.gamma_edges, -5.0 + 10.0 * u)
    assert (float(result.gamma_edges[0]), float(result.gamma_edges[-1])) == (-5.0, 5.0)
    assert result.blocks == {"kl": len(result.levels_kl)}


def test_gamma_of_a_prior_and_of_bits() -> None:
    result = df.evaluate(vae(line()), X, visits=3)
    assert result.gamma_edges is not None
    assert result.gamma_edges.tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0]
    process = df.BinomialDiffusion.constant(6)
    bits = df.BinomialDiffusionModel(process, Network(3), df.space.binary((3,)))
    found = df.evaluate(bits, torch.ones(8, 3, dtype=F64), draws=1)
    assert found.gamma_edges is not None
    assert found.gamma_edges.equal(process.gamma(torch.arange(1, 7)))


def test_a_vae_has_no_gamma() -> None:
    result = df.evaluate(vae(), X, visits=3)
    assert result.gamma_edges is None
    assert result.blocks == {"kl": 0}
