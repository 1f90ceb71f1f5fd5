"""How networks of other processes read z and its noise level: scalings, clocks, and EDM's preconditioning (MATH (23)).

Each is a function of γ = −log SNR, or of log SNR for clocks, float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import Output


def flow_scale(gamma: Tensor) -> Tensor:
    """Return c of a flow: (1 − t) x + t ε = c z, with t/(1 − t) = σ/α.

    >>> float(flow_scale(torch.zeros(())))                # t = ½: c = √½
    0.7071...
    """
    return 1 / (alpha(gamma) + sigma(gamma))


def ve_scale(gamma: Tensor) -> Tensor:
    """Return c of a variance-exploding process: x + σ ε = c z.

    >>> float(ve_scale(torch.zeros(())))                  # σ = 1: c = √2
    1.4142...
    """
    return torch.exp(-0.5 * logsigmoid(-gamma.double()))


@dataclass(frozen=True)
class FlowTime:
    """From log-SNR to a flow's time times `factor`: t, the share of noise, or 1 − t with `of_data`.

    >>> FlowTime(1000.0)(torch.zeros(1))
    tensor([500.], dtype=torch.float64)
    """

    factor: float = 1.0
    of_data: bool = False

    def __call__(self, log_snr: Tensor) -> Tensor:
        half = 0.5 * log_snr.double()
        return self.factor * torch.sigmoid(half if self.of_data else -half)


@dataclass(frozen=True)
class SigmaTime:
    """From log-SNR to a function of σ/α: "sigma" itself, "log", its ¼ ln, or "arctan", its (2/π) arctan.

    >>> SigmaTime("log")(torch.full((1,), -8.0))
    tensor([1.], dtype=torch.float64)
    """

    kind: Literal["sigma", "log", "arctan"] = "log"

    def __call__(self, log_snr: Tensor) -> Tensor:
        half = -0.5 * log_snr.double()
        if self.kind == "log":
            return 0.25 * half
        return half.exp() if self.kind == "sigma" else half.exp().atan() * (2 / math.pi)


def edm_output(sigma_data: float, sign: float = 1.0) -> Output:
    """Return what EDM's F is of x and ε (Karras et al. 2022): F = (σ x/σ_d − σ_d ε)/√(σ² + σ_d²), times `sign`.

    >>> float(edm_output(1.0).of_noise(torch.zeros(())))  # −v for σ_d = 1
    -0.7071...
    """

    def norm(gamma: Tensor) -> Tensor:
        return (gamma.double().exp() + sigma_data**2).sqrt()

    return Output(
        lambda gamma: sign * (0.5 * gamma.double()).exp() / (sigma_data * norm(gamma)),
        lambda gamma: -sign * sigma_data / norm(gamma),
    )


def edm_scale(sigma_data: float) -> Callable[[Tensor], Tensor]:
    """Return c of an EDM network: it reads c_in (x + σ ε), c_in = 1/√(σ² + σ_d²).

    >>> round(float(edm_scale(1.0)(torch.zeros(()))), 12)
    1.0
    """
    return lambda gamma: ve_scale(gamma) / (gamma.double().exp() + sigma_data**2).sqrt()
