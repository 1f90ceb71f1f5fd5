"""Samplers of the noise level t for Monte Carlo estimates of the bound, MATH (22).

For any π with π_t > 0 wherever KL_t ≠ 0, KL_t/π_t at one sampled t is an unbiased draw of Σ_t KL_t. The choice of π changes
only the variance.

All samplers draw v ∈ [0, 1) (independently, or stratified over the batch) and map it to a level by the inverse of a
cumulative proposal F. In discrete time, level t has the cell [(t−1)/L, t/L) of [0, 1), L = T − 1, and π_t is F's mass in
it; in continuous time, the level is u = F⁻¹(v) and the weight is 1/F'(u).

References: Kingma et al. 2021, I.1 (low-discrepancy t); Nichol & Dhariwal 2021, §3.3 (importance by the second moment).
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusional.deprecation import renamed_arguments, renamed_names
from diffusional.errors import DiffusionalError

__getattr__ = renamed_names(__name__, {"LevelSampler": "TimestepSampler", "SampledLevels": "SampledTimesteps"})


@dataclass(frozen=True)
class SampledTimesteps:
    """`level` (N,), int64 t in 1 … L or float64 u in [0, 1), and `weight` (N,) = 1/π, float64."""

    level: Tensor
    weight: Tensor


@runtime_checkable
class TimestepSampler(Protocol):
    """A sampler draws levels with their weights, and may adapt to the costs observed at them."""

    def sample(self, n: int, timesteps: int | None, generator: torch.Generator | None = None) -> SampledTimesteps:
        """Return n levels of `timesteps` = L = T − 1 (None: continuous time), with weights 1/π."""
        ...

    def update(self, position: Tensor, cost: Tensor) -> None:
        """Learn from costs (N,), in nats and already divided by the uniform density, at positions in [0, 1)."""
        ...


def _variates(n: int, stratified: bool, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    v = torch.rand(n, dtype=torch.float64, device=device, generator=generator)
    if not stratified:
        return v
    # One draw in each of n equal cells, assigned to the items in random order: marginally uniform for every item.
    cell = torch.randperm(n, generator=generator, device=device)
    return ((cell + v) / n).clamp(max=1 - 2**-53)


@renamed_arguments(levels="timesteps")
def position(level: Tensor, timesteps: int | None) -> Tensor:
    """Return the position of a level in [0, 1): u, or the middle of level t's cell.

    >>> position(torch.tensor([1, 4]), 4)
    tensor([0.1250, 0.8750], dtype=torch.float64)
    """
    return level.double() if timesteps is None else (level.double() - 0.5) / timesteps


@dataclass(frozen=True)
class Uniform:
    """Independent t, uniform over the levels.

    >>> Uniform().sample(3, 10, torch.Generator().manual_seed(0)).weight
    tensor([10., 10., 10.], dtype=torch.float64)
    """

    stratified: bool = False

    @renamed_arguments(levels="timesteps")
    def sample(self, n: int, timesteps: int | None, generator: torch.Generator | None = None) -> SampledTimesteps:
        v = _variates(n, self.stratified, generator)
        if timesteps is None:
            return SampledTimesteps(v, torch.ones_like(v))
        return SampledTimesteps((v * timesteps).long() + 1, torch.full_like(v, timesteps))

    def update(self, position: Tensor, cost: Tensor) -> None:
        """Do nothing: this sampler does not adapt."""


def Stratified() -> Uniform:
    """Return a sampler of uniform t, one in each of n equal cells of the levels, assigned to the items at random.

    >>> Stratified().sample(4, 4, torch.Generator().manual_seed(0)).level.sort().values
    tensor([1, 2, 3, 4])
    """
    return Uniform(stratified=True)


class Adaptive:
    """Importance-weighted levels: F' is piecewise constant, ∝ √E[L²] per cell, with a floor of uniform mass.

    √E[L²] minimises the variance of L/π among all π (Nichol & Dhariwal 2021). The second moments are running means of the
    observed costs; the proposal is uniform for the first `warmup` costs. With fewer levels than `cells`, each level is a cell.

    >>> sampler = Adaptive(cells=2, warmup=1, floor=0.0)
    >>> sampler.update(torch.tensor([0.25, 0.75]), torch.tensor([3.0, 1.0]))
    >>> sampler.mass()
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    def __init__(
        self,
        cells: int = 64,
        floor: float = 0.05,
        decay: float = 0.99,
        warmup: int = 4096,
        stratified: bool = True,
    ) -> None:
        if cells < 1 or not 0 <= floor <= 1 or not 0 <= decay < 1:
            raise ValueError(
                f"expected cells ≥ 1, floor in [0, 1] and decay in [0, 1), got cells={cells}, floor={floor}, decay={decay}"
            )
        self.cells, self.floor, self.decay, self.warmup, self.stratified = cells, floor, decay, warmup, stratified
        self._forget(cells)

    def _forget(self, cells: int) -> None:
        self.second_moment = torch.zeros(cells, dtype=torch.float64)
        self.norm = torch.zeros(cells, dtype=torch.float64)
        self.seen = 0

    def mass(self) -> Tensor:
        """Return π of each cell (cells,), adding up to one."""
        uniform = torch.full_like(self.second_moment, 1 / len(self.second_moment))
        visited = self.norm > 0
        if self.seen < self.warmup or not bool(visited.any()):
            return uniform
        root = (self.second_moment / self.norm).sqrt()
        # Cells that were never drawn get the average.
        root = torch.where(visited, root, root[visited].mean())
        total = root.sum()
        if not total > 0:
            return uniform
        return (1 - self.floor) * root / total + self.floor * uniform

    @renamed_arguments(levels="timesteps")
    def sample(self, n: int, timesteps: int | None, generator: torch.Generator | None = None) -> SampledTimesteps:
        cells = self.cells if timesteps is None else min(self.cells, timesteps)
        if len(self.second_moment) != cells:
            self._forget(cells)
        v = _variates(n, self.stratified, generator)
        mass = self.mass().to(v.device)
        edges = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        edges = edges / edges[-1]
        cell = (torch.searchsorted(edges, v, right=True) - 1).clamp(0, cells - 1)
        u = ((cell + (v - edges[cell]) / mass[cell]) / cells).clamp(0, 1 - 2**-53)
        if timesteps is None:
            return SampledTimesteps(u, 1 / (mass[cell] * cells))
        level = (u * timesteps).long() + 1
        # In float64: an int64 tensor divided by an int is float32, which would bias π_t by 1e-3 at L = 10 000.
        end, start = level.double() / timesteps, (level.double() - 1) / timesteps
        return SampledTimesteps(level, 1 / (_cumulative(edges, end) - _cumulative(edges, start)))

    def update(self, position: Tensor, cost: Tensor) -> None:
        """Fold costs (N,), nats per unit of u (KL_t · L in discrete time), at positions (N,) in [0, 1)."""
        cells = len(self.second_moment)
        cell = (position.detach().cpu() * cells).long().clamp(0, cells - 1)
        squared = cost.detach().cpu().double() ** 2
        count = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, torch.ones_like(squared))
        total = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, squared)
        hit = count > 0
        self.second_moment = torch.where(
            hit,
            self.decay * self.second_moment + (1 - self.decay) * total / count.clamp(min=1),
            self.second_moment,
        )
        self.norm = torch.where(hit, self.decay * self.norm + (1 - self.decay), self.norm)
        self.seen += len(cell)

    def state(self) -> dict[str, Any]:
        """Return the sampler's state for checkpoints: {"second_moment", "norm"} tensors and the count "seen"."""
        return {"second_moment": self.second_moment, "norm": self.norm, "seen": torch.tensor(self.seen)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state`."""
        self.second_moment, self.norm = state["second_moment"].clone(), state["norm"].clone()
        self.seen = int(state["seen"])


class SecondMoment:
    """Improved DDPM's resampler: π_t ∝ √E[L_t²] over each level's last costs, uniform until every level has had `history` of them.

    (Nichol & Dhariwal 2021, eq. 18.) `floor` is the part of π that stays uniform. As in their code, draws are independent. It is
    for discrete time only.

    >>> sampler = SecondMoment(history=1, floor=0.0)
    >>> sampler.update(torch.tensor([0.25, 0.75]), torch.tensor([3.0, 1.0]))
    >>> sampler.mass(2)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> _ = sampler.sample(1, 2)                                  # the number of levels is known from here on
    >>> sampler.update(torch.tensor([0.25, 0.75]), torch.tensor([3.0, 1.0]))
    >>> sampler.mass(2)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    def __init__(self, history: int = 10, floor: float = 0.001) -> None:
        if history < 1 or not 0 <= floor <= 1:
            raise ValueError(f"expected history ≥ 1 and floor in [0, 1], got history={history}, floor={floor}")
        self.floor, self.history = floor, history
        self.costs = torch.zeros(0, history, dtype=torch.float64)
        self.seen = torch.zeros(0, dtype=torch.long)

    @renamed_arguments(levels="timesteps")
    def mass(self, timesteps: int) -> Tensor:
        """Return π (timesteps,), adding up to one."""
        uniform = torch.full((timesteps,), 1 / timesteps, dtype=torch.float64)
        if len(self.seen) != timesteps or bool((self.seen < self.history).any()):
            return uniform
        root = self.costs.square().mean(1).sqrt()
        total = root.sum()
        return (1 - self.floor) * root / total + self.floor * uniform if total > 0 else uniform

    @renamed_arguments(levels="timesteps")
    def sample(self, n: int, timesteps: int | None, generator: torch.Generator | None = None) -> SampledTimesteps:
        if timesteps is None:
            raise DiffusionalError(
                "SecondMoment expects discrete time, got continuous time (timesteps=None), which has no levels to store costs for: use Adaptive"
            )
        if len(self.seen) != timesteps:
            self.costs = torch.zeros(timesteps, self.history, dtype=torch.float64)
            self.seen = torch.zeros(timesteps, dtype=torch.long)
        v = _variates(n, False, generator)
        mass = self.mass(timesteps).to(v.device)
        edges = mass.cumsum(0)
        level = torch.searchsorted(edges, v * edges[-1], right=True).clamp(max=timesteps - 1)
        return SampledTimesteps(level + 1, 1 / mass[level])

    def update(self, position: Tensor, cost: Tensor) -> None:
        """Store costs (N,), in any one unit, at positions (N,) in [0, 1); a level's `history` drops its oldest costs."""
        if not len(self.seen):
            return
        level = (position.detach().cpu() * len(self.seen)).long()
        for t, value in zip(level.tolist(), cost.tolist(), strict=True):
            self.costs[t, self.seen[t] % self.history] = value
            self.seen[t] += 1

    def state(self) -> dict[str, Any]:
        """Return the sampler's state for checkpoints: {"costs", "seen"} tensors."""
        return {"costs": self.costs.clone(), "seen": self.seen.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state`."""
        self.costs, self.seen = state["costs"].clone(), state["seen"].clone()


# The samplers whose draws depend on earlier costs.
LEARNING = (Adaptive, SecondMoment)


def _cumulative(edges: Tensor, u: Tensor) -> Tensor:
    """Return F(u) of the piecewise-constant proposal whose cells have the cumulative masses `edges`."""
    cells = len(edges) - 1
    scaled = u.double() * cells
    cell = scaled.long().clamp(0, cells - 1)
    return edges[cell] + (edges[cell + 1] - edges[cell]) * (scaled - cell)
