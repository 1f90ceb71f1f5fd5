"""Evaluation mode is borrowed: afterwards every module is in its own mode again, frozen ones included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import data as datasets
from diffusional import exact, information, likelihood, schedule
from diffusional.data.dataset import Dataset
from diffusional.evaluation import importance_weighted
from diffusional.models.base import evaluation_mode
from diffusional.training.objective import validate

BITS = df.space.binary((4,))
X = torch.ones(4, 4)


class Watched(nn.Module):
    """z of its dropout layer, and whether it was ever called in training mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.trained = inner, False

    def forward(self, *inputs: Tensor) -> Tensor:
        self.trained |= self.training
        return self.inner(inputs[0])


def vae() -> df.VAE:
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (8,)))
    return df.VAE(Watched(nn.Linear(4, 4)), Watched(decoder), likelihood.NetworkLevels(BITS), latents=2)


def diffusion() -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=8))
    denoiser = df.Denoiser(Watched(nn.Linear(4, 4)), "data")
    return df.DiffusionModel(forward, denoiser, likelihood.LevelPosterior(BITS))


def dataset() -> Dataset:
    raw = torch.ones(4, 4, dtype=torch.long)
    return datasets.Dataset("ones", BITS, raw, raw, raw)


USES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "sweep": (diffusion, lambda model: df.evaluate(model, X)),
    "draws": (diffusion, lambda model: df.evaluate(model, X, visits=2, plan=df.Plan.uniform(model))),
    "draws of a VAE": (vae, lambda model: df.evaluate(model, X, visits=2)),
    "compare": (diffusion, lambda model: df.compare(model, model, X, 1.0, plans=(df.Plan.uniform(model),) * 2)),
    "pilot": (diffusion, lambda model: df.Plan.fit(model, X, evaluations=100)),
    "importance": (vae, lambda model: importance_weighted(model, X, draws=2)),
    "aggregated": (vae, lambda model: information.aggregated(model, X, samples=2)),
    "budget": (diffusion, lambda model: information.budget(model, X, model, cells=2, samples=4)),
    "validation": (diffusion, lambda model: validate(model, dataset(), seed=0)),
}


@pytest.mark.parametrize("use", USES)
def test_every_module_gets_its_own_mode_back(use: str) -> None:
    make, of = USES[use]
    model = make()
    watched = [module for module in model.modules() if isinstance(module, Watched)]
    watched[0].eval()
    modes = [module.training for module in model.modules()]
    assert {True, False} == set(modes)
    of(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module.trained for module in watched)


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fails() -> None:
        with evaluation_mode(model):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in model] == [True, False]


def test_exact_worlds_have_no_modes() -> None:
    world = exact.Gaussian(torch.zeros(1), torch.eye(1)).denoiser()
    with evaluation_mode(world):
        assert not world.training
    assert world.training
