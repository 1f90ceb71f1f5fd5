"""A diagonal Gaussian N(mean, variance), the distribution of the steps of the forward and the reverse diffusion.

The variance is stored as its logarithm, since at low noise it is close to the smallest float. The KL divergence has the form
of MATH (10),

    KL[q ‖ p] = ½ Σ_d [ φ(δ_d) + (Δμ_d)² / v_p,d ],      δ = ln v_q − ln v_p,      φ(δ) = e^δ − 1 − δ,

and φ is computed by its series for small δ, where e^δ − 1 − δ would cancel. Shapes are (B, *dims); sums run over all axes but B;
results are in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.shapes import Batch, PerItem, sum_dims

_SERIES_BELOW = 1e-2
_SERIES = tuple(1 / math.factorial(n) for n in range(9, 1, -1))


def phi(delta: Tensor) -> Tensor:
    """Return φ(δ) = e^δ − 1 − δ ≥ 0, the variance part of twice a Gaussian KL (MATH (10)), without cancellation.

    For |δ| < 1e-2 the series δ²/2 + δ³/6 + … is accurate to float64 precision.

    >>> phi(torch.tensor([0.0, 1e-8, 1.0], dtype=torch.float64))
    tensor([0.0000e+00, 5.0000e-17, 7.1828e-01], dtype=torch.float64)
    """
    series = torch.zeros_like(delta)
    for coefficient in _SERIES:
        series = (series + coefficient) * delta
    return torch.where(delta.abs() < _SERIES_BELOW, series * delta, torch.expm1(delta) - delta)


@dataclass(frozen=True)
class Gaussian:
    """The diagonal Gaussian N(mean, e^log_variance); `log_variance` broadcasts against `mean` (B, *dims). KL divergences are those of MATH (10).

    >>> q = Gaussian(torch.zeros(2, 3), torch.zeros(2, 1))
    >>> q.entropy()                                       # ½ D ln(2πe), D = 3
    tensor([4.2568, 4.2568])
    """

    mean: Tensor
    log_variance: Tensor

    @property
    def variance(self) -> Tensor:
        """e^log_variance."""
        return self.log_variance.exp()

    @property
    def std(self) -> Tensor:
        """The standard deviation, √variance."""
        return (0.5 * self.log_variance).exp()

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Return mean + std · ε, with ε given as `noise` or drawn from `generator`.

        >>> Gaussian(torch.ones(1, 2), torch.zeros(1, 1)).sample(noise=torch.full((1, 2), 2.0))
        tensor([[3., 3.]])
        """
        if noise is None:
            noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.std * noise

    def log_prob(self, z: Batch) -> PerItem:
        """Return ln N(z; mean, variance) (B,), nats.

        >>> Gaussian(torch.zeros(1, 1), torch.zeros(1, 1)).log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
        """
        return sum_dims(self.log_prob_map(z))

    def log_prob_map(self, z: Batch) -> Batch:
        """Return ln N(z; mean, variance) at every position (B, *dims), nats, whose sum is `log_prob`."""
        squared = (z - self.mean) ** 2 * (-self.log_variance).exp()
        return -0.5 * (squared + self.log_variance + math.log(2 * math.pi))

    def kl(self, other: "Gaussian") -> PerItem:
        """Return KL[self ‖ other] (B,), nats, in the form of MATH (10).

        >>> Gaussian(torch.ones(1, 2), torch.zeros(1, 1)).kl(Gaussian(torch.zeros(1, 2), torch.zeros(1, 1)))
        tensor([1.])
        """
        return sum_dims(self.kl_map(other))

    def kl_map(self, other: "Gaussian") -> Batch:
        """Return KL[self ‖ other] at every position (B, *dims), nats, whose sum is `kl`."""
        delta = self.log_variance - other.log_variance
        squared = (self.mean - other.mean) ** 2 * (-other.log_variance).exp()
        return 0.5 * (phi(delta) + squared)

    def entropy(self) -> PerItem:
        """Return ½ Σ_d (1 + ln 2π + ln variance_d) (B,), nats."""
        per_dim = 0.5 * (1 + math.log(2 * math.pi) + self.log_variance)
        return sum_dims(per_dim.expand(self.mean.shape))
