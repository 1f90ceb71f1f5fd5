"""Cost maps: they add up to the scores of the same visits, and each position is right."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import F64, randn
from diffusional import exact, likelihood, schedule, space
from diffusional.evaluation.maps import cost_map

VARIANCES = torch.tensor([1.0, 0.5, 0.1], dtype=F64)
WORLD = exact.Gaussian(torch.zeros(3, dtype=F64), torch.diag(VARIANCES))


class Convolution(nn.Module):
    """A random network for items of 0 to 3 axes after the channels, in float64."""

    def __init__(self, axes: int, channels: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        args = (channels, outputs) if axes == 0 else (channels, outputs, 3, 1, 1)
        self.layer = kinds[axes](*args).double()

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(self.layer(z) + 0.1 * log_snr.reshape(-1, *(1,) * (z.ndim - 1)))


def image_model(
    shape: tuple[int, ...], predicts: str = "noise", variance: str = "posterior", steps: int | None = 30
) -> df.DiffusionModel:
    levels = df.Discrete(shape, levels=5)
    outputs = shape[0] * (5 if predicts == "levels" else 2 if variance == "learned" else 1)
    network = Convolution(len(shape) - 1, shape[0], outputs)
    denoiser = df.Denoiser(
        network,
        predicts,  # type: ignore[arg-type]
        levels if predicts == "levels" else None,
        "categorical" if predicts == "levels" else "logistic",
        learns_variance=variance == "learned",
    )
    decoders = {"levels": likelihood.NetworkLevels, "v": likelihood.DiscretizedGaussian}
    decoder = decoders.get(predicts, likelihood.LevelPosterior)(levels)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 6.0, steps=steps))
    return df.DiffusionModel(process, denoiser, decoder, variance)


def items(model: df.DiffusionModel, n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return model.space.encode(torch.randint(0, 5, (n, *model.space.shape), generator=generator), F64)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("shape", "predicts", "variance", "steps"),
    [
        ((7,), "noise", "posterior", 30),
        ((2, 6), "v", "transition", 30),
        ((1, 4, 5), "v", "learned", 30),
        ((1, 4, 4), "levels", "posterior", None),
        ((1, 3, 4, 2), "data", "posterior", 30),
    ],
)
@pytest.mark.parametrize("fitted", [True, False])
def test_a_map_adds_up_to_the_score(
    shape: tuple[int, ...], predicts: str, variance: str, steps: int | None, fitted: bool
) -> None:
    """Of the same visits, to rounding: with a plan whose controls cost nothing at any position, and without them."""
    model = image_model(shape, predicts, variance, steps)
    x = items(model)
    plan = df.Plan.fit(model, x, 300) if fitted else df.Plan.uniform(model)
    scores = df.score(model, x, plan=plan, visits=12, seed=3)
    maps = cost_map(model, x, plan=plan, visits=12, seed=3)
    assert maps.total.shape == x.shape
    torch.testing.assert_close(maps.nelbo, scores.nelbo, rtol=1e-10, atol=1e-10)
    # Term by term, too.
    per_item = scores.evaluation.per_item
    order = per_item["item"].argsort()
    for name in ("reconstruction", "kl", "prior"):
        found = getattr(maps, name).flatten(1).sum(1)
        torch.testing.assert_close(found, per_item[name][order], rtol=1e-10, atol=1e-10)


def test_every_position_has_its_own_cost() -> None:
    """In a world with independent positions, the map is the one-dimensional bound of each: compared in closed form."""
    process = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=25))
    model = df.DiffusionModel(process, WORLD.denoiser(), likelihood.GaussianLikelihood(df.Continuous((3,))))
    x = torch.tensor([[0.5, -2.0, 0.1], [0.0, 0.3, 1.5]], dtype=F64)
    maps = cost_map(model, x, visits=3000, plan=df.Plan.fit(model, x, 500))
    gamma = process.schedule.grid()
    alpha2, sigma2 = torch.sigmoid(-gamma)[:, None, None], torch.sigmoid(gamma)[:, None, None]
    marginal = alpha2 * VARIANCES + sigma2
    # E (ε − ε̂)² of the optimal denoiser.
    squared = (alpha2 * VARIANCES / marginal).square() + alpha2 * sigma2 * x.square() / marginal.square()
    kl = (0.5 * torch.expm1(gamma.diff())[:, None, None] * squared[1:]).sum(0)
    reconstruction = 0.5 * (squared[0] + gamma[0] + math.log(2 * math.pi))
    prior = 0.5 * (alpha2[-1] * x.square() + sigma2[-1] - 1 - sigma2[-1].log())
    assert bool((maps.error < 0.2).all())
    assert bool(((maps.total - (kl + reconstruction + prior)).abs() < 4.5 * maps.error).all())
    torch.testing.assert_close(maps.prior, prior, rtol=1e-10, atol=1e-12)
    # The unusual value costs most.
    assert maps.total.argmax(1).tolist() == [1, 2]


def test_the_error_is_the_spread_over_seeds() -> None:
    model = image_model((1, 3, 3))
    x = items(model, 2)
    plan = df.Plan.uniform(model)
    every = [cost_map(model, x, plan=plan, visits=8, seed=seed) for seed in range(120)]
    spread = torch.stack([maps.total for maps in every]).var(0).mean().sqrt()
    stated = torch.stack([maps.error for maps in every]).square().mean().sqrt()
    assert float(stated) == pytest.approx(float(spread), rel=0.15)


def test_standardised_data_are_in_their_own_units() -> None:
    reals = df.Continuous((2,), shift=(1.0, 2.0), scale=(3.0, 0.2))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=10))
    world = exact.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    model = df.DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(reals))
    x = randn(3, 2)
    plan = df.Plan.uniform(model)
    maps, scores = cost_map(model, x, plan=plan, visits=4), df.score(model, x, plan=plan, visits=4)
    torch.testing.assert_close(maps.nelbo, scores.nelbo, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(maps.jacobian[0], torch.tensor([math.log(3.0), math.log(0.2)], dtype=F64))


def test_files(tmp_path: Path) -> None:
    model = image_model((1, 3, 3))
    maps = cost_map(model, items(model), plan=df.Plan.uniform(model), visits=4)
    maps.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as found:
        assert found["total"].shape == (6, 1, 3, 3)
        np.testing.assert_allclose(found["total"].sum((1, 2, 3)), found["nelbo"])
    with pytest.raises(df.DiffusionalError, match=r"maps\.csv"):
        maps.save(tmp_path / "maps.csv")


def test_refusals() -> None:
    bits = space.binary((4,))
    vae = df.VAE(nn.Linear(4, 4), nn.Linear(2, 8), likelihood.NetworkLevels(bits), latents=2)
    x = bits.encode(torch.randint(2, (3, 4)))
    with pytest.raises(df.DiffusionalError, match="VAE"):
        cost_map(vae, x)
    model = image_model((1, 3, 3))
    with pytest.raises(df.DiffusionalError, match=r"visits .* at least 2, got 1"):
        cost_map(model, items(model), visits=1)

    class Blind(nn.Module):
        """A likelihood that has only the sum over positions."""

        uses_network = False

        def __init__(self) -> None:
            super().__init__()
            self.whole = likelihood.LevelPosterior(model.space)
            self.space = self.whole.space

        def log_prob(self, x: Tensor, prediction: object) -> Tensor:
            return self.whole.log_prob(x, prediction)  # type: ignore[arg-type]

        def sample(self, prediction: object, generator: torch.Generator | None = None) -> Tensor:
            return self.whole.sample(prediction, generator)  # type: ignore[arg-type]

    other = df.DiffusionModel(model.process, model.denoiser, Blind())
    with pytest.raises(df.DiffusionalError, match=r"Blind to define log_prob_map"):
        cost_map(other, items(model), plan=df.Plan.uniform(other))
