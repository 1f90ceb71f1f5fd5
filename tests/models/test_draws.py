"""What is random in a loss, apart from the loss: rows of one go with rows of the other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional.models.base import LatentVariableModel
from diffusional.networks import MLP, Ladder, ResidualMLP
from diffusional.timesteps import Adaptive

SPACE = df.Discrete((6,), 5)
N = 24


def diffusion(steps: int | None, likelihood: Callable, predicts: str = "levels") -> df.DiffusionModel:
    module = MLP((6,), 5 if predicts == "levels" else 1, hidden=16)
    # Off its zero initialisation, so that what it sees matters.
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    denoiser = df.Denoiser(module, predicts, SPACE if predicts == "levels" else None, "categorical")
    return df.DiffusionModel(df.GaussianDiffusion(df.schedule.log_snr_linear(-5.0, 5.0, steps)), denoiser, likelihood)


def vae(prior: df.DiffusionModel | None = None) -> df.VAE:
    decoder = nn.Sequential(ResidualMLP((2,), 30, hidden=16), nn.Unflatten(1, (30,)))
    encoder = ResidualMLP((6,), 4, hidden=16)
    return df.VAE(encoder, decoder, df.likelihood.NetworkLevels(SPACE), 2, head="categorical", prior=prior)


def latent_chain() -> df.DiffusionModel:
    over = df.Continuous((2,))
    forward = df.GaussianDiffusion(df.schedule.log_snr_linear(-5.0, 5.0, 9))
    return df.DiffusionModel(
        forward, df.Denoiser(MLP((2,), 1, hidden=16), "v"), df.likelihood.GaussianLikelihood(over, assisted=False)
    )


MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "network levels": lambda: diffusion(None, df.likelihood.NetworkLevels(SPACE)),
    "network levels, T = 9": lambda: diffusion(9, df.likelihood.NetworkLevels(SPACE)),
    "decoder without network": lambda: diffusion(9, df.likelihood.DiscretizedGaussian(SPACE), "v"),
    "VAE": vae,
    "hierarchical VAE": lambda: df.HierarchicalVAE(
        Ladder((6,), (30,), (3, 2), 16), df.likelihood.NetworkLevels(SPACE), head="categorical"
    ),
    "diffusion prior": lambda: vae(latent_chain()),
}


@pytest.fixture
def x() -> Tensor:
    return SPACE.encode(torch.randint(0, 5, (N, 6), generator=torch.Generator().manual_seed(1)))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_a_batch_in_parts_is_that_of_the_whole(kind: str, x: Tensor) -> None:
    model = MODELS[kind]().double()
    x = x.double()
    draws = model.draw(x, Adaptive(cells=4), seeded())
    whole = model.costs(x, draws)
    total, position = [], []
    for rows in (slice(0, 7), slice(7, 8), slice(8, N)):
        part = model.costs(x[rows], {name: value[rows] for name, value in draws.items()})
        total.append(part.total())
        position.append(part.position)
    torch.testing.assert_close(torch.cat(total), whole.total())
    torch.testing.assert_close(torch.cat(position), whole.position)
    # Rows that don't belong together are another loss; so this can't hold for a model that ignores its draws.
    moved = model.costs(x, {name: value.roll(1, 0) for name, value in draws.items()})
    assert not torch.allclose(moved.total(), whole.total())


@pytest.mark.parametrize("kind", MODELS)
def test_loss_is_the_mean_of_the_costs_at_its_draws(kind: str, x: Tensor) -> None:
    model = MODELS[kind]()
    costs = model.costs(x, model.draw(x, None, seeded()))
    torch.testing.assert_close(model.loss(x, seeded()), costs.total().mean())
    assert all(term.shape == (N,) for term in costs.terms.values())
    torch.testing.assert_close(costs.total(), torch.stack(list(costs.terms.values())).sum(0))


@pytest.mark.parametrize("kind", MODELS)
def test_draws_for_more_items_than_came(kind: str, x: Tensor) -> None:
    """A process draws for the whole batch, and has its own rows of x only."""
    model = MODELS[kind]()
    whole, part = model.draw(x, None, seeded()), model.draw(x[:3], None, seeded(), n=N)
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)


@pytest.mark.parametrize(
    "kind", ["network levels", "network levels, T = 9", "decoder without network", "diffusion prior"]
)
def test_costs_name_the_levels_they_visited(kind: str, x: Tensor) -> None:
    model = MODELS[kind]()
    draws = model.draw(x, None, seeded())
    costs = model.costs(x, draws)
    prefix = "prior_" if kind == "diffusion prior" else ""
    first = draws.get(f"{prefix}first", torch.zeros(N, dtype=torch.bool))
    assert len(costs.position) == int((~first).sum())
    # The estimate of every visit is its density, for the uniform proposal of a stratified sampler.
    share = 31 / 32 if bool(first.any()) or "network levels" in kind else 1.0
    torch.testing.assert_close(costs.terms["kl"][~first] * share, costs.density)
