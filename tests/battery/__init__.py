"""What every schedule, space, prediction and likelihood goes through: adding one means adding a row here.

`plain_*` are the textbook formulas in plain float64 numpy, apart from the library's own: α² = 1/(1 + e^γ), nothing more.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffusional import cli, schedule
from diffusional.models import likelihood
from diffusional.models.likelihood import Likelihood
from diffusional.models.parameterization import LevelsPrediction, Prediction
from diffusional.schedule import Schedule
from diffusional.space import Continuous, Discrete, Space

F64 = torch.float64


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a `diffusional` command."""
    capsys.readouterr()
    try:
        cli.main([str(a) for a in args])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def bent(made: Schedule, seed: int = 0, by: float = 1.0) -> Schedule:
    """A learned schedule away from where it begins: s(u) is far from a straight line, and no two units or betas are alike."""
    rng = generator(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.startswith("gamma_"):
                # The heights begin small beside the slope.
                scale = 300 * by if name == "heights" else by
                parameter.add_(scale * torch.randn(parameter.shape, generator=rng, dtype=F64))
    return made


# Six arbitrary betas, none like another: an off-by-one in t shows.
BETAS = (0.02, 0.1, 0.3, 0.05, 0.4, 0.25)

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": lambda: schedule.linear(steps=1000),
    "linear, T = 10000": lambda: schedule.linear(steps=10_000),
    "linear, rescaled": lambda: schedule.linear(steps=100, rescale=True),
    "cosine": lambda: schedule.cosine(steps=1000),
    "cosine, T = 10000": lambda: schedule.cosine(steps=10_000),
    "betas": lambda: schedule.from_betas(BETAS),
    "log_snr_linear": lambda: schedule.log_snr_linear(-13.3, 5.0, steps=50),
    "learned": lambda: bent(schedule.learned(-13.3, 5.0, steps=50, features=24)),
    "learned, with its ends": lambda: bent(schedule.learned(-9.0, 7.0, steps=50, features=24, ends="learned")),
    "learned_betas": lambda: bent(schedule.learned_betas(steps=7, beta_first=0.01)),
}

PREDICTIONS = ("noise", "data", "v", "score")


@dataclass(frozen=True)
class LikelihoodRow:
    """A likelihood over `space`, and `plain`: P(level k) (K,) or the density at x, written out for one position."""

    make: Callable[[Space], Likelihood]
    space: Space
    plain: Callable[[Prediction, Space], Callable[[np.ndarray], np.ndarray]]


def _normal_bins(std: Callable[[float], float]) -> Callable:
    def plain(p: Prediction, space: Space) -> Callable:
        def mass(x: np.ndarray) -> np.ndarray:
            values = np.linspace(space.low, space.high, space.levels)
            edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
            cdf = stats.norm(float(p.data), std(float(p.gamma))).cdf(edges)
            return np.diff(cdf)[np.abs(x[:, None] - values).argmin(1)]

        return mass

    return plain


def _bayes(p: Prediction, space: Space) -> Callable:
    alpha, sigma = plain_alpha(float(p.gamma)), plain_sigma(float(p.gamma))
    values = np.linspace(space.low, space.high, space.levels)
    total = stats.norm(alpha * values, sigma).pdf(float(p.z)).sum()
    return lambda x: stats.norm(alpha * x, sigma).pdf(float(p.z)) / total


def _network(p: LevelsPrediction, space: Space) -> Callable:
    values = np.linspace(space.low, space.high, space.levels)
    mass = p.log_probs.exp().flatten().double().numpy()
    return lambda x: mass[np.abs(x[:, None] - values).argmin(1)]


def _bernoulli(p: Prediction, space: Space) -> Callable:
    high = np.clip((float(p.data) - space.low) / (space.high - space.low), 1e-4, 1 - 1e-4)
    return lambda x: np.where(x == space.high, high, 1 - high)


def _density(variance: Callable[[float], float]) -> Callable:
    return lambda p, space: lambda x: stats.norm(float(p.data), variance(float(p.gamma)) ** 0.5).pdf(x)


LIKELIHOODS: dict[str, LikelihoodRow] = {
    **{
        f"DiscretizedGaussian, K = {k}": LikelihoodRow(
            likelihood.DiscretizedGaussian, Discrete((1,), k), _normal_bins(lambda g: plain_sigma(g))
        )
        for k in (2, 17, 256)
    },
    "DiscretizedGaussian, [0, 1]": LikelihoodRow(
        lambda s: likelihood.DiscretizedGaussian(s, variance=0.04),
        Discrete((1,), 5, 0.0, 1.0),
        _normal_bins(lambda g: 0.2),
    ),
    "LevelPosterior": LikelihoodRow(likelihood.LevelPosterior, Discrete((1,), 17), _bayes),
    "LevelPosterior, [0, 1]": LikelihoodRow(likelihood.LevelPosterior, Discrete((1,), 5, 0.0, 1.0), _bayes),
    "NetworkLevels": LikelihoodRow(likelihood.NetworkLevels, Discrete((1,), 17), _network),
    "Bernoulli": LikelihoodRow(likelihood.Bernoulli, Discrete((1,), 2), _bernoulli),
    "Bernoulli, [0, 1]": LikelihoodRow(likelihood.Bernoulli, Discrete((1,), 2, 0.0, 1.0), _bernoulli),
    "GaussianLikelihood": LikelihoodRow(likelihood.GaussianLikelihood, Continuous((1,)), _density(np.exp)),
    "GaussianLikelihood, variance given": LikelihoodRow(
        lambda s: likelihood.GaussianLikelihood(s, variance=0.3), Continuous((1,)), _density(lambda g: 0.3)
    ),
}

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_prediction = pytest.mark.parametrize("kind", PREDICTIONS)
every_likelihood = pytest.mark.parametrize("row", LIKELIHOODS.values(), ids=LIKELIHOODS)


Number = TypeVar("Number", float, np.ndarray, Tensor)


def plain_alpha(gamma: Number) -> Number:
    """α of α²/σ² = e^{−γ}, α² + σ² = 1."""
    return (1 + math.e**gamma) ** -0.5


def plain_sigma(gamma: Number) -> Number:
    """σ of α²/σ² = e^{−γ}, α² + σ² = 1."""
    return (1 + math.e ** (-gamma)) ** -0.5


def plain_posterior(z_t: Number, x: Number, gamma_s: Number, gamma_t: Number) -> tuple[Number, Number]:
    """Mean and variance of q(z_s | z_t, x), by multiplying the two Gaussians N(z_s; α_s x, σ_s²) N(z_t; a z_s, v)."""
    a = plain_alpha(gamma_t) / plain_alpha(gamma_s)
    v = plain_sigma(gamma_t) ** 2 - a**2 * plain_sigma(gamma_s) ** 2
    precision = plain_sigma(gamma_s) ** -2 + a**2 / v
    return (plain_alpha(gamma_s) * x / plain_sigma(gamma_s) ** 2 + a * z_t / v) / precision, 1 / precision


def environment() -> dict[str, str]:
    """For a fresh Python process that imports the same `diffusional` as this one."""
    return {**os.environ, "PYTHONPATH": str(Path(schedule.__file__).parents[1])}


# For a script in a fresh process: the peak of its own memory in KiB. ru_maxrss would begin with that of the process that started it.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""

# Seconds after which a process of a test is taken to hang. No test measures speed: on a busy machine a process may need minutes.
HANGS = 3600.0
# The browser of the tests of pages: Debian's name, and those of other systems. None where there is none.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def generator(seed: int = 0) -> torch.Generator:
    """A generator at `seed`."""
    return torch.Generator().manual_seed(seed)


def float64(values: Sequence[float] | np.ndarray | float) -> Tensor:
    """A float64 tensor of `values`."""
    return torch.as_tensor(values, dtype=F64)


def close(actual: Tensor, expected: Tensor | np.ndarray | float, rtol: float = 1e-10, atol: float = 1e-13) -> None:
    """Assert closeness in values and shape; `expected` is cast to float64, and `actual` must have it."""
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)
