"""Sampling: the chain as written out, and N(m, s²) recovered with its exact denoiser."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from battery import F64, close, generator, plain_alpha, plain_posterior, plain_sigma
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.models import chain
from diffusional.models.chain import batch_rows
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import DiscretizedGaussian, GaussianLikelihood, LevelPosterior
from diffusional.models.parameterization import Prediction
from diffusional.models.time import TrainedIndex
from diffusional.schedule import Schedule
from diffusional.space import Continuous, Discrete

M, S = 0.7, 0.5  # x ~ N(M, S²) in every dimension


class Exact(nn.Module):
    """The posterior mean of x ~ N(M, S²) given z = α x + σ ε."""

    def __init__(self) -> None:
        super().__init__()
        self.example = nn.Parameter(torch.zeros((), dtype=F64))  # the model samples in its parameters' dtype
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, z: Tensor, log_snr: Tensor, *condition: Tensor) -> Tensor:
        self.calls.append((log_snr, *condition))
        return torch.from_numpy(_posterior_mean(z.numpy(), -log_snr.numpy().reshape(-1, *(1,) * (z.ndim - 1))))


def _posterior_mean(z: np.ndarray, gamma: np.ndarray | float) -> np.ndarray:
    a, s = plain_alpha(gamma), plain_sigma(gamma)
    return M + a * S**2 / (a**2 * S**2 + s**2) * (z - a * M)


def _model(made: Schedule, variance: str = "posterior", dims: tuple[int, ...] = (1,)) -> DiffusionModel:
    return DiffusionModel(
        GaussianDiffusion(made), Denoiser(Exact(), "data"), GaussianLikelihood(Continuous(dims), 1e-4), variance
    )


METHODS = [("ancestral", 0.0), ("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0)]


@pytest.mark.parametrize(("method", "eta"), METHODS)
@pytest.mark.parametrize("variance", ["posterior", "transition"])
@pytest.mark.parametrize("dims", [(2,), (1, 2, 2)])
def test_the_walk_as_written_out(method: str, eta: float, variance: str, dims: tuple[int, ...]) -> None:
    """z_T, …, z_1, x with the generator's very draws, in plain numpy."""
    made = schedule.from_betas([0.02, 0.1, 0.3, 0.05, 0.4])
    model, rng = _model(made, variance, dims), generator(3)
    walked = list(model.walk_back(3, generator(3), method=method, eta=eta))

    def draw() -> np.ndarray:
        return torch.empty(3, *dims, dtype=F64).normal_(generator=rng).numpy()

    gamma = made.grid().tolist()
    z = draw()
    path = [z]
    for s, t in zip(gamma[-2::-1], gamma[:0:-1], strict=True):
        x_hat = _posterior_mean(z, t)
        mean, v = plain_posterior(z, x_hat, s, t)
        if method == "ddim":
            noise = (z - plain_alpha(t) * x_hat) / plain_sigma(t)
            mean, v = plain_alpha(s) * x_hat + math.sqrt(plain_sigma(s) ** 2 - eta**2 * v) * noise, eta**2 * v
        elif variance == "transition":
            v *= plain_sigma(t) ** 2 / plain_sigma(s) ** 2
        z = mean + math.sqrt(v) * draw()
        path.append(z)
    path.append(_posterior_mean(z, gamma[0]) + 1e-2 * draw())
    assert len(walked) == len(path) == 6
    for ours, expected in zip(walked, path, strict=True):
        close(ours, expected, rtol=1e-9, atol=1e-10)
    close(model.sample(3, generator(3), method=method, eta=eta), path[-1], rtol=1e-9, atol=1e-10)
    assert not model.sample(3, generator(4), method=method, eta=eta).equal(walked[-1])


@pytest.mark.parametrize(("method", "eta"), METHODS)
def test_samples_of_the_exact_model_are_the_data(method: str, eta: float) -> None:
    n = 8000
    x = _model(schedule.log_snr_linear(-10.0, 9.0, steps=300)).sample(n, generator(1), method=method, eta=eta).numpy()
    # The chain's own bias with 300 steps, a per cent or so, beside four standard errors.
    assert abs(x.mean() - M) < 4 * S / math.sqrt(n) + 0.005
    assert abs(x.var() / S**2 - 1) < 4 * math.sqrt(2 / n) + 0.02


@pytest.mark.parametrize("conditional", [False, True])
def test_what_the_network_is_asked(conditional: bool) -> None:
    made = schedule.from_betas([0.02, 0.1, 0.3])
    model = _model(made)
    condition = torch.arange(2) if conditional else None
    model.sample(2, generator(), condition)
    calls = model.denoiser.module.calls
    close(torch.stack([c[0] for c in calls]), -made.grid().flip(0)[:, None].expand(3, 2), rtol=1e-12)
    assert all(len(c) == 1 + conditional for c in calls)
    assert condition is None or all(torch.equal(c[1], condition) for c in calls)


def test_another_number_of_steps() -> None:
    model = _model(schedule.log_snr_linear(-9.0, 9.0, steps=1000))
    close(model.sample(2, generator(), steps=1999), model.regrid(1999).sample(2, generator()))
    assert len(model.denoiser.module.calls) == 2 * 1999
    assert len(list(model.walk_back(1, generator(), steps=7))) == 8
    continuous = _model(schedule.log_snr_linear(-9.0, 9.0))
    continuous.sample(1, generator())
    assert len(continuous.denoiser.module.calls) == 250
    close(continuous.sample(2, generator(), steps=7), continuous.regrid(7).sample(2, generator()))
    assert not continuous.sample(1, generator(), steps=3).requires_grad


@pytest.mark.parametrize(
    "made",
    [schedule.linear(steps=1000), schedule.learned_betas(1000), schedule.log_snr_linear(-9.0, 9.0, steps=1000)],
    ids=["linear", "learned", "log-SNR-linear"],
)
def test_fewer_steps_are_trained_latents(made: Schedule) -> None:
    """A network that knows its T indices alone can be walked in fewer steps; more of them lie between the knots."""
    with torch.no_grad():
        grid = made.grid()
        walked = _model(made)
        walked.sample(1, generator(), steps=5)
        expected = -grid[[999, 749, 500, 250, 0]]
        seen = torch.stack([call[0][0] for call in walked.denoiser.module.calls])
        close(seen.double(), expected)
        indexed = TrainedIndex(made)
        assert indexed(seen).tolist() == [999, 749, 500, 250, 0]
        assert made.spaced(1999).shape == (1999,)
        close(made.spaced(1999)[::2], grid)


def test_discrete_data_land_on_their_levels() -> None:
    space = Discrete((2, 3), 5, 0.0, 1.0)
    for likelihood, calls in ((DiscretizedGaussian(space), 20), (LevelPosterior(space), 19)):
        module = Exact()
        process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=20))
        model = DiffusionModel(process, Denoiser(module, "data"), likelihood)
        x = model.sample(50, generator())
        space.check(x)
        assert x.shape == (50, 2, 3)
        assert x.unique().numel() > 2
        assert len(module.calls) == calls  # LevelPosterior needs none at z_1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n to be at least 1, got 0"),
        ({"n": 1, "eta": 0.5}, "ancestral"),
        ({"n": 1, "method": "ddim", "eta": 1.5}, r"eta.*1\.5"),
        ({"n": 1, "method": "ddim", "eta": -0.5}, r"eta.*-0\.5"),
        ({"n": 1, "steps": 1}, r"steps.*got 1"),
    ],
)
def test_refused(wrong: dict, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        _model(schedule.linear(steps=10)).sample(**wrong)


def test_samples_are_decoded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 256 levels at every position of many images is large: the same draws, of fewer items at once."""
    monkeypatch.setattr(chain, "_NUMBERS", 1_000_000)
    space = Discrete((3, 16, 16), 256)
    count = 3 * batch_rows(space) + 2
    forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=3))
    model = DiffusionModel(forward, Denoiser(lambda z, log_snr: torch.tanh(z), "data"), DiscretizedGaussian(space))
    asked: list[int] = []
    of = model.likelihood.sample

    def sample(prediction: Prediction, rng: torch.Generator | None = None) -> torch.Tensor:
        asked.append(len(prediction.z))
        return of(prediction, rng)

    monkeypatch.setattr(model.likelihood, "sample", sample)
    drawn = model.sample(count, generator())
    assert max(asked) == batch_rows(space) < count
    assert sum(asked) == len(drawn) == count
    *_, z, _ = model.walk_back(count, generator())
    space.check(drawn)
    # Each item's own: x is x̂(z_1) but for the decoder's σ_1/α_1 = 0.011 and half a bin.
    assert float((drawn - torch.tanh(z)).abs().max()) < 7 * 0.011 + 0.004
