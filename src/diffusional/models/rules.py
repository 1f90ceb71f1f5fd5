"""What a sampler does to x̂ before p is formed: it defines another chain, with a bound of its own (MATH (24))."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """x̂ clipped to [low, high], as samplers do with clip_sample=True: it defines another p, with a bound of its own (MATH (24)).

    >>> Clip(-1.0, 1.0)(torch.tensor([[-3.0, 0.5]]))
    tensor([[-1.0000,  0.5000]])
    """

    low: float
    high: float

    @property
    def range(self) -> tuple[float, float]:
        """The range of what it returns."""
        return self.low, self.high

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def __str__(self) -> str:
        return f"x̂ is clipped to [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of x̂ (Saharia et al. 2022): with s the quantile `ratio` of |x̂| in an item, at least 1 and at most `most`, x̂ is
    clipped to [−s, s] and divided by s.

    >>> Threshold(1.0, 4.0)(torch.tensor([[-2.0, 1.0]]))
    tensor([[-1.0000,  0.5000]])
    """

    ratio: float
    most: float

    @property
    def range(self) -> tuple[float, float]:
        """The range of what it returns."""
        return -1.0, 1.0

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        s = torch.quantile(flat.abs(), self.ratio, dim=1, keepdim=True).clamp(min=1.0, max=max(1.0, self.most))
        return (flat.clamp(-s, s) / s).view_as(x)

    def __str__(self) -> str:
        return f"x̂ is thresholded at its quantile {self.ratio:g} (at most {self.most:g})"


Rule = Clip | Threshold
