"""Several numbers that are estimated from the same draws, so that the errors of their sums and differences can be computed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.deprecation import renamed_names

__getattr__ = renamed_names(__name__, {"Draws": "Estimates"})


@dataclass(frozen=True, eq=False)
class Estimates:
    """`values` (n, k): n independent draws of k numbers in nats, float64. A single row is exact, without error.

    >>> two = Estimates(torch.tensor([[1.0, 1.0], [3.0, 2.9]], dtype=torch.float64))
    >>> two.value.tolist(), [round(e, 3) for e in two.error.tolist()]
    ([2.0, 1.95], [1.0, 0.95])
    >>> round(float(two.steps().error), 3)                # the difference has a smaller error than its parts
    0.05
    """

    values: Tensor

    @property
    def value(self) -> Tensor:
        """The means (k,)."""
        return self.values.mean(0)

    @property
    def error(self) -> Tensor:
        """Their standard errors (k,); zero for exact values."""
        n = len(self.values)
        return torch.zeros_like(self.values[0]) if n == 1 else self.values.std(0) / math.sqrt(n)

    def sum(self) -> "Estimates":
        """Return the sum of all k numbers (n, 1)."""
        return Estimates(self.values.sum(1, keepdim=True))

    def steps(self) -> "Estimates":
        """Return each number minus the next (n, k − 1): for I(x; z_t), in the order of t, the backward increments of MATH (13)."""
        return Estimates(self.values[:, :-1] - self.values[:, 1:])

    def only(self, index: int) -> tuple[float, float]:
        """Return value and error of one number."""
        return float(self.value[index]), float(self.error[index])


def exactly(values: Tensor) -> Estimates:
    """Return known numbers (k,) as draws without error.

    >>> exactly(torch.tensor([0.5])).error
    tensor([0.], dtype=torch.float64)
    """
    return Estimates(values.double().reshape(1, -1))
