"""The betas of diffusers' schedulers, float64 (their own tables are float32, whose 1 − ᾱ_1 is off by 6e-4 of itself)."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.schedule import FromBetas, cosine


def betas(kind: str, steps: int, start: float, end: float) -> Tensor:
    """Return diffusers' β_1 … β_T (T,) of a beta_schedule, float64.

    >>> betas("linear", 3, 0.1, 0.3)
    tensor([0.1000, 0.2000, 0.3000], dtype=torch.float64)
    """
    if steps < 2:
        raise DiffusionalError(f"expected num_train_timesteps of at least 2, got {steps}")
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start
    if kind == "squaredcos_cap_v2":
        return cosine(steps).betas
    functions = {"exp": lambda t: math.exp(-12.0 * t), "laplace": _laplace}
    if kind not in functions:
        raise DiffusionalError(
            "expected beta_schedule to be linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace or exp, got "
            f"{kind!r}; give the betas as trained_betas"
        )
    kept = [functions[kind](t / steps) for t in range(steps + 1)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(kept)], dtype=torch.float64)


def _laplace(t: float) -> float:
    level = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(level) / (1 + math.exp(level)))


def zero_terminal(betas: Tensor) -> Tensor:
    """Return betas rescaled to SNR_T = 0 (Lin et al. 2024, algorithm 1): √ᾱ is shifted to end at 0, and scaled to keep its beginning.

    >>> zero_terminal(torch.tensor([0.1, 0.2], dtype=torch.float64))
    tensor([0.1000, 1.0000], dtype=torch.float64)
    """
    roots = (0.5 * torch.log1p(-betas).cumsum(0)).exp()
    shifted = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    rest = 1 - (shifted[1:] / shifted[:-1]) ** 2
    return torch.cat([betas[:1], rest])


def shifted(betas: Tensor, scale: float) -> Tensor:
    """Return betas whose SNR is that of `betas` divided by `scale`."""
    gamma = FromBetas(betas).grid() + math.log(scale)
    kept = logsigmoid(-gamma)
    return -torch.expm1(torch.cat([kept[:1], kept[1:] - kept[:-1]]))
