"""The distribution of one variable of a move as the stack codes it: real values on a grid, or one of finitely many values.

Gaussian             numbers of a grid of spacing δ, under N(mean, std²) in units of δ
Bits, Categorical    the number of a value, under its probability. Positions where a value is certain are not coded.
"""

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.bernoulli import Bits
from diffusional.categorical import Categorical
from diffusional.codec.stack import Real, Stack, Whole
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian

# Numbers of a grid up to which float32 has every one of them.
_MOST = 2**23
# Bits that the entropy of a pop may be exceeded by, for each value: bits hidden before it.
_MARGIN = 1.0


@runtime_checkable
class Law(Protocol):
    """The distribution of a variable (n, *dims) of n items."""

    def push(self, stack: Stack, value: Tensor) -> None:
        """Push a value (n, *dims)."""
        ...

    def pop(self, stack: Stack) -> Tensor:
        """Pop a value (n, *dims), float32."""
        ...

    def nats(self, value: Tensor) -> NDArray[np.float64]:
        """Return −ln of the density, or of the probability, of a value (n,), in units of the grid."""
        ...

    def words(self) -> int:
        """Return the number of words of the stack that a pop may change."""
        ...


def law_of(distribution: Any, spacing: Tensor | float | None = None, place: Tensor | None = None) -> Law:
    """Return the law of a distribution (n, *dims), at the positions `place` (n, *dims) if not at all.

    Raises DiffusionalError for a distribution that is not one of those above.

    >>> law = law_of(Bits(torch.zeros(2, 3)))
    >>> stack = Stack(np.arange(1, 9, dtype=np.uint32))
    >>> law.push(stack, torch.ones(2, 3))
    >>> law.pop(stack).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if hasattr(distribution, "distribution"):
        distribution = distribution.distribution()
    if isinstance(distribution, Gaussian):
        if spacing is None:
            raise DiffusionalError("expected a spacing for a Gaussian variable that is coded, got none")
        return OnGrid(distribution, spacing)
    if isinstance(distribution, Bits):
        logit = distribution.logit.double()
        distribution = Categorical(
            torch.stack([logsigmoid(-logit), logsigmoid(logit)], -1), torch.tensor([-1.0, 1.0], dtype=torch.float64)
        )
    if isinstance(distribution, Categorical):
        return Finite(distribution, place)
    raise DiffusionalError(
        f"the codec expected Gaussian, Bits or Categorical distributions of latents and levels, got {type(distribution).__name__}"
    )


class OnGrid:
    """N(mean, std²) on the grid of numbers k · spacing, where `spacing` is one number or has the shape of an item."""

    def __init__(self, distribution: Gaussian, spacing: Tensor | float) -> None:
        mean = distribution.mean.double()
        std = distribution.std.double().expand_as(mean)
        self.shape, self.spacing = mean.shape, spacing
        self._mean: Real = (mean / spacing).flatten().numpy()
        self._std: Real = (std / spacing).flatten().numpy()
        if not np.isfinite(self._mean).all() or np.abs(self._mean).max(initial=0) > 2**40:
            raise DiffusionalError("the network's output is NaN or too large to be coded; examine its weights")

    def numbers(self, value: Tensor) -> Whole:
        """Return the numbers k of values on the grid."""
        k = torch.round(value.double() / self.spacing).long().flatten().numpy()
        if np.abs(k).max(initial=0) >= _MOST:
            raise DiffusionalError(
                f"a latent is {np.abs(k).max():,} spacings of its grid from 0, where float32 has not all numbers of the grid: its posterior "
                "is too narrow to be coded"
            )
        return k

    def push(self, stack: Stack, value: Tensor) -> None:
        stack.push_gaussian(self.numbers(value), self._mean, self._std)

    def pop(self, stack: Stack) -> Tensor:
        k = torch.from_numpy(stack.pop_gaussian(self._mean, self._std)).view(self.shape)
        value = (k.double() * self.spacing).float()
        self.numbers(value)
        return value

    def nats(self, value: Tensor) -> NDArray[np.float64]:
        apart = (self.numbers(value) - self._mean) / self._std
        each = 0.5 * (apart**2 + math.log(2 * math.pi)) + np.log(self._std)
        return each.reshape(self.shape[0], -1).sum(1)

    def words(self) -> int:
        bits = np.log2(np.maximum(self._std, 0.25) * math.sqrt(2 * math.pi * math.e)) + _MARGIN
        return 2 + math.ceil(float(bits.sum()) / 32)


class Finite:
    """One of finitely many values at every position; `place` (n, *dims) selects positions. Values of probability 0 are never popped."""

    def __init__(self, distribution: Categorical, place: Tensor | None = None) -> None:
        log_probs = distribution.log_probs
        self.shape, self._distribution, self._log_probs = log_probs.shape[:-1], distribution, log_probs
        self._where = torch.ones(self.shape, dtype=torch.bool) if place is None else place
        possible = log_probs > -torch.inf
        number = torch.where(self._where, possible.sum(-1), 1)
        if bool((number == 0).any()):
            raise DiffusionalError("the network's output is NaN and cannot be coded; examine its weights")
        self._only = log_probs.argmax(-1)
        # Positions with the same number of possible values are coded together.
        self._parts = [self._part(number == k, possible, int(k)) for k in number.unique().tolist() if k > 1]

    def _part(self, rows: Tensor, possible: Tensor, k: int) -> tuple[Tensor, NDArray[np.int64] | None, Real]:
        """Return the positions with k possible values, the numbers (m, k) of these (None for all), and their probabilities (m, k)."""
        log_probs = self._log_probs[rows]
        if k == log_probs.shape[-1]:
            return rows, None, log_probs.exp().numpy()
        columns = torch.sort(possible[rows], dim=-1, descending=True, stable=True).indices[:, :k]
        return rows, columns.numpy(), log_probs.gather(-1, columns).exp().numpy()

    def _index(self, value: Tensor) -> Tensor:
        """Return the numbers of the values at all positions. Raises DiffusionalError for one that has no probability."""
        out = self._only.clone()
        out[self._where] = self._distribution.index(value[self._where])
        chosen = self._log_probs.gather(-1, out[..., None])[..., 0]
        if bool((chosen[self._where] == -torch.inf).any()):
            raise DiffusionalError("a value to be coded has the probability 0 under the model")
        return out

    def push(self, stack: Stack, value: Tensor) -> None:
        index = self._index(value)
        for rows, columns, table in self._parts[::-1]:
            own = index[rows].numpy()
            stack.push_levels(own if columns is None else (columns == own[:, None]).argmax(1), table)

    def pop(self, stack: Stack) -> Tensor:
        index = self._only.clone()
        for rows, columns, table in self._parts:
            found = stack.pop_levels(table)
            index[rows] = torch.from_numpy(found if columns is None else columns[np.arange(len(found)), found])
        return self._distribution.values.float()[index]

    def nats(self, value: Tensor) -> NDArray[np.float64]:
        chosen = self._log_probs.gather(-1, self._index(value)[..., None])[..., 0]
        return -torch.where(self._where, chosen, 0.0).reshape(self.shape[0], -1).sum(1).numpy()

    def words(self) -> int:
        bits = 0.0
        for _, _, p in self._parts:
            bits += float(-(p * np.log2(np.maximum(p, 1e-300))).sum()) + _MARGIN * len(p)
        return 2 + math.ceil(bits / 32) if self._parts else 0
