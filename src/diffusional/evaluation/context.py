"""The control variate of a levels head: the network's own distribution of every position of an item, held fixed.

A levels head predicts for every position a prior p_k over the levels, which it combines with the evidence of the noisy position itself
(models/parameterization.py). One network evaluation of an item without noise, at the lowest γ, gives priors that depend on
nearly all other positions. With these priors,

    x̂(z) = Σ_k x_k p_k N(z; α x_k, σ²) / Σ_k p_k N(z; α x_k, σ²)

is a denoiser of independent positions, like the histogram control's, but with a distribution for every position of every item. Its squared
error h(ε) = (α²/σ²) (x − x̂(α x + σ ε))² is a table (interpolated.py), so that its expectation is exact. For the reconstruction h is 2 (−ln p(x|z_1)), whose slope is ½. The function of item and level is
E_ε h by fewer nodes, at integer γ with straight lines between them.

The priors depend on the item, its condition and the network, and not on the noise of the draws. So the draws of an item remain independent,
their mean remains unbiased, and their spread remains its error. The price is one network evaluation for every item, and O(D K) operations
for each of the 49 values.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffusional.evaluation.control import Look
from diffusional.evaluation.histogram import signal
from diffusional.evaluation.interpolated import by_table, nodes, places, rounded
from diffusional.space import Discrete, Space

# The most levels: beyond, the control takes longer than a network's evaluation.
MOST_LEVELS = 32
# The least probability of a level.
_LEAST = 1e-12
# Numbers in one (nodes × positions) matrix.
_NUMBERS = 2_000_000


class Context:
    """The denoiser of independent positions with the priors of `Look.context`, (V, K, *dims).

    >>> x, noise, priors = torch.ones(2, 1), torch.tensor([[0.0], [-1.0]]), torch.full((2, 2, 1), 0.5)
    >>> look = Look(x, noise, torch.zeros(2).double(), torch.ones(2), torch.zeros(2).bool(), priors)
    >>> expected, drawn = Context(Discrete((1,), levels=2)).at(look)
    >>> error = (1 - torch.tanh(1 + noise)).square()                                    # x̂ = tanh(α z/σ²) = tanh(1 + ε)
    >>> bool(((drawn[1] - drawn[0]) - (error[1] - error[0])).abs() < 1e-6)
    True
    """

    name = "context"
    models_cost = False
    expects = draws = ("squared error",)

    def __init__(self, space: Discrete) -> None:
        self.space = space
        self.nodes, self.weights = nodes()

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Context":
        assert isinstance(space, Discrete)
        return cls(space)

    def state(self) -> dict[str, Tensor]:
        return {}

    def _relative(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the priors by their distance from the item's own level, −(K − 1) … K − 1, (2K − 1, B · D)."""
        k = self.space.levels
        index = self.space.index(x).flatten(1)[:, None]
        place = torch.arange(k, device=x.device)[:, None] - index + k - 1
        priors = context.double().flatten(2) + _LEAST
        relative = torch.zeros(len(x), 2 * k - 1, priors.shape[2], dtype=torch.float64, device=x.device)
        return relative.scatter_(1, place, priors).transpose(0, 1).flatten(1)

    def _errors(self, relative: Tensor, gamma: float, first: bool, nodes: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield h (J, some) at nodes (J,) for some of the positions (2K − 1, B · D) at a time."""
        a, s = signal(gamma)
        k = self.space.levels
        apart = torch.arange(1 - k, k, dtype=torch.float64, device=relative.device) * self.space.width
        nodes = nodes.to(relative.device)[:, None]
        # ln N(z; α x_k, σ²) against that of the item's own level.
        exponent = 0.5 * nodes.square() - 0.5 * (nodes - a / s * apart).square()
        most = exponent.amax(1, keepdim=True)
        evidence = (exponent - most).exp()
        for some in map(slice, *_blocks(relative.shape[1], max(1, _NUMBERS // len(nodes)))):
            priors = relative[:, some]
            total = evidence @ priors
            if first:
                yield some, 2 * (total.log() + most - priors[k - 1].log()).clamp(min=0)
            else:
                yield some, (a / s * ((evidence * apart) @ priors) / total).square()

    def _means(self, relative: Tensor, gamma: float, first: bool) -> Tensor:
        """Return E h (B · D,) by a few nodes: a function of item and level does not have to be the exact expectation."""
        out, weights = torch.zeros_like(relative[0]), _GAUSS[1].to(relative.device)
        for some, errors in self._errors(relative, gamma, first, _GAUSS[0]):
            out[some] = weights @ errors
        return out

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        assert look.context is not None
        relative = self._relative(look.x, look.context).unflatten(1, (len(look.x), -1))
        before, share = places(look.noise.double().flatten(1))
        weights = self.weights.to(before.device)
        expected, drawn = torch.zeros(2, len(before), dtype=torch.float64, device=before.device)
        for some, gamma, first in by_table(look):
            positions = relative[:, some].flatten(1)
            at, part = before[some].flatten()[None], share[some].flatten()
            found = torch.zeros_like(part)
            for which, errors in self._errors(positions, gamma, first, self.nodes):
                low, high = (errors.gather(0, at[:, which] + side)[0] for side in (0, 1))
                found[which] = torch.lerp(low, high, part[which]) - weights @ errors
            drawn[some] = found.view(len(some), -1).sum(1)
            for knot, weight in _knots(gamma, first):
                expected[some] += weight * self._means(positions, knot, first).view(len(some), -1).sum(1)
        return expected[:, None], drawn[:, None]

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        assert context is not None
        by_knot: dict[float, Tensor] = {}
        for one, column in zip(rounded(gamma, first).tolist(), weight.double().cpu().T, strict=True):
            for knot, share in _knots(one, first):
                by_knot[knot] = by_knot.get(knot, 0.0) + share * column
        relative, out = self._relative(x, context), torch.zeros(len(x), len(weight), dtype=torch.float64)
        for knot, column in by_knot.items():
            out += self._means(relative, knot, first).view(len(x), -1).sum(1).cpu()[:, None] * column
        return out.to(x.device)[:, :, None]

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        # Positions are independent: variances add up.
        if context is None:
            return torch.zeros(len(gamma), 1, dtype=torch.float64)
        relative, out = self._relative(x, context), torch.zeros(len(gamma), 1, dtype=torch.float64)
        weights = _GAUSS[1].to(x.device)
        for row, one in zip(out, gamma.tolist(), strict=True):
            for _, errors in self._errors(relative, one, first, _GAUSS[0]):
                row += (weights @ errors.square() - (weights @ errors).square()).clamp(min=0).sum().cpu() / len(x)
        return out


def _knots(gamma: float, first: bool) -> list[tuple[float, float]]:
    """Return the values of γ from which the function of item and level is interpolated, and their weights: integers on both sides, except
    for the reconstruction.

    >>> _knots(0.25, False), _knots(0.25, True)
    ([(0.0, 0.75), (1.0, 0.25)], [(0.25, 1.0)])
    """
    if first:
        return [(gamma, 1.0)]
    low = math.floor(gamma)
    return [(float(low), 1.0 - (gamma - low)), (low + 1.0, gamma - low)]


def _blocks(total: int, step: int) -> tuple[list[int], list[int]]:
    starts = list(range(0, total, step))
    return starts, [start + step for start in starts]


def _gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of a quadrature over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


_GAUSS = _gauss_hermite(12)
