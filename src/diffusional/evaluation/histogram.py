"""The control variate of independent positions: the best denoiser of levels drawn from a histogram, by look-up tables.

    x̂(z) = Σ_k x_k p(k) N(z; α x_k, σ²) / Σ_k p(k) N(z; α x_k, σ²)

Its squared error at a position is a function of the level k there and of ε, h(k, ε) = (α²/σ²) (x_k − x̂(α x_k + σ ε))². The control is a table of h
(interpolated.py), not the denoiser, so that its expectation is exact. Positions share four histograms, by
their mean level; more of them do not help together with moments of the noise. For the reconstruction the tables hold 2 (−ln p(k|z)) at γ_1 instead,
whose slope is ½.
"""

import math

import torch
from torch import Tensor

from diffusional.baselines import FactorizedCategorical
from diffusional.evaluation.control import Look
from diffusional.evaluation.interpolated import NODES, by_table, nodes, places, rounded
from diffusional.forward import alpha, sigma
from diffusional.space import Discrete, Space

# Shared histograms and their smoothing.
_GROUPS, _SMOOTHING = 4, 0.1
# Distance of nodes in z, in σ, from which a table is interpolated.
_FINE = 0.125
# Levels from which on tables would be large.
MOST_LEVELS = 1024
# A number of standard deviations of z that noise practically never exceeds: if half a bin is larger, the error is zero.
_CERTAIN = 28.0


class Histogram:
    """Positions (D,) that belong to groups with histograms `probs` (M, K) of the levels; `group` (D,) has the group of each position.

    >>> world = Histogram(Discrete((1,), levels=2), torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    >>> look = Look(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1).double(), torch.ones(1), torch.tensor([False]))
    >>> expected, drawn = world.at(look)
    >>> at_zero = (1 - torch.tanh(torch.tensor(1.0))) ** 2                                    # x̂ = tanh(α z/σ²), z = α
    >>> bool(((expected + drawn)[0, 0] - at_zero).abs() < 1e-3)
    True
    """

    name = "histogram"
    models_cost = True
    expects = draws = ("squared error",)

    def __init__(self, space: Discrete, probs: Tensor, group: Tensor) -> None:
        self.space, self.probs, self.group = space, probs.double(), group
        self.nodes, self.weights = nodes()
        self._tables: dict[tuple[float, bool], tuple[Tensor, Tensor]] = {}

    @classmethod
    def fit(cls, x: Tensor, space: Discrete) -> "Histogram":
        """Fit the histograms to encoded items x (N, *dims)."""
        probs = FactorizedCategorical.fit(space.index(x).cpu(), space, smoothing=_SMOOTHING).log_probs.exp().double()
        order = (probs @ space.values.double()).argsort(stable=True)
        group = torch.empty_like(order)
        parts = order.chunk(_GROUPS)
        for m, positions in enumerate(parts):
            group[positions] = m
        return cls(space, torch.stack([probs[positions].mean(0) for positions in parts]), group)

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Histogram":
        assert isinstance(space, Discrete)
        return cls(space, state["probs"], state["group"])

    def state(self) -> dict[str, Tensor]:
        return {"probs": self.probs, "group": self.group}

    def _tables_at(self, gamma: float, first: bool) -> tuple[Tensor, Tensor]:
        """Return h (M · K, nodes) and its expectations over ε (M · K,), of the table at γ."""
        if (gamma, first) not in self._tables:
            table = self._log_loss(gamma) if first else self._squared_error(gamma)
            table = table.view(-1, len(self.nodes))
            self._tables[gamma, first] = table, table @ self.weights
        return self._tables[gamma, first]

    def _squared_error(self, gamma: float) -> Tensor:
        """Return (α²/σ²) (x_k − x̂(α x_k + σ ε))² (M, K, nodes)."""
        values = self.space.values.double()
        at = self._places(gamma)
        if at is None:
            return torch.zeros(len(self.probs), len(values), len(self.nodes), dtype=torch.float64)
        _, evidence, before, share = at
        guess = (evidence @ (self.probs * values).T) / (evidence @ self.probs.T)  # (Z, M)
        guess = torch.lerp(guess.T[:, before], guess.T[:, before + 1], share[None])  # (M, K, nodes)
        return math.exp(-gamma) * (values[:, None] - guess).square()

    def _log_loss(self, gamma: float) -> Tensor:
        """Return 2 (−ln p(k | α x_k + σ ε)) (M, K, nodes)."""
        at = self._places(gamma)
        if at is None:
            return torch.zeros(len(self.probs), self.space.levels, len(self.nodes), dtype=torch.float64)
        z, evidence, before, share = at
        total = (evidence @ self.probs.T).log().T  # (M, Z), and ln p(k|z) = ln p(k) + ln N_k(z) − ln of it
        scaled = self._exponent(z, gamma).amax(1)
        total = torch.lerp((total + scaled)[:, before], (total + scaled)[:, before + 1], share[None])
        return 2 * (total - self.probs.log()[:, :, None] + 0.5 * self.nodes.square()).clamp(min=0)

    def _exponent(self, z: Tensor, gamma: float) -> Tensor:
        """Return ln N(z; α x_k, σ²) (Z, K) up to a constant."""
        a, s = signal(gamma)
        return -0.5 * ((z[:, None] - a * self.space.values.double()) / s).square()

    def _places(self, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return a grid z (Z,), the likelihoods of the levels there (Z, K) relative to the largest, and the places of α x_k + σ ε on the grid
        (K, nodes): the number of the point before, and the distance from it. The result is None if the noise practically never exceeds half
        a bin.
        """
        a, s = signal(gamma)
        if a / s * self.space.width > 2 * _CERTAIN:
            return None
        z = torch.arange(a * self.space.low - 7 * s, a * self.space.high + 7 * s, _FINE * s, dtype=torch.float64)
        exponent = self._exponent(z, gamma)
        at = (a * self.space.values.double()[:, None] + s * self.nodes - z[0]) / (_FINE * s)
        before = at.floor().long().clamp(0, len(z) - 2)
        return z, (exponent - exponent.amax(1, keepdim=True)).exp(), before, at - before

    def _rows(self, x: Tensor) -> Tensor:
        """Return the row of a table (B, D) that each position of x looks up."""
        return self.space.index(x).flatten(1) + self.group.to(x.device) * self.space.levels

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        rows = self._rows(look.x)
        before, share = places(look.noise.double().flatten(1))
        at = rows * NODES + before
        drawn, expected = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
        for some, gamma, first in by_table(look):
            table, mean = (value.to(rows.device) for value in self._tables_at(gamma, first))
            flat, known = table.flatten(), mean[rows[some]].sum(1)
            found = torch.lerp(flat[at[some]], flat[at[some] + 1], share[some]).sum(1)
            expected[some], drawn[some] = known, found - known
        return expected[:, None], drawn[:, None]

    def _counts(self, x: Tensor) -> Tensor:
        """Return the number of positions of each item that look up each row, (B, M · K)."""
        rows = self._rows(x)
        counts = torch.zeros(len(x), self.probs.numel(), dtype=torch.float64, device=x.device)
        return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        distinct, inverse = rounded(gamma.cpu(), first).unique(return_inverse=True)
        by_table = torch.zeros(len(weight), len(distinct), dtype=torch.float64)
        by_table.index_add_(1, inverse, weight.double().cpu())
        means = torch.stack([self._tables_at(g, first)[1] for g in distinct.tolist()])
        return (self._counts(x) @ (by_table @ means).T.to(x.device))[:, :, None]

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        # Positions are independent, so that variances add up. The weights overestimate the square of an interpolated function slightly.
        counts, out = self._counts(x).mean(0).cpu(), []
        for g in rounded(gamma, first).tolist():
            table, mean = self._tables_at(g, first)
            out.append(counts @ (table.square() @ self.weights - mean.square()))
        return torch.stack(out)[:, None].clamp(min=0)


def signal(gamma: float) -> tuple[float, float]:
    """Return α and σ at γ."""
    g = torch.tensor(gamma, dtype=torch.float64)
    return float(alpha(g)), float(sigma(g))
