"""A Markov chain of latents x → z_1 → … → z_T, whatever its noise: the costs of MATH (8), one by one, all at once, or at random.

    NELBO = −E ln p(x|z_1) + Σ_{t<T} E KL[q(z_t|z_{t+1},x) ‖ p(z_t|z_{t+1})] + KL[q(z_T|x) ‖ p(z_T)]          MATH (8)

A subclass says what the three kinds of costs are; the Gaussian diffusion (diffusion.py) and the binomial one (binomial.py) do.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, repeated
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs, Ledger, LevelDraws
from diffusional.levels import LevelSampler, Stratified, position
from diffusional.models.base import LatentVariableModel
from diffusional.shapes import Items, PerItem
from diffusional.space import Space

# Rows of one network call where a method visits many levels of a batch.
ROWS = 4096
# Items × dimensions × levels of one such call: 160 MB of float32 for each tensor of that shape.
_NUMBERS = 40_000_000
# Of a training batch, the part that draws −ln p(x|z_1) where the decoder needs the network.
RECONSTRUCTION_SHARE = 1 / 32


def batch_rows(space: Space) -> int:
    """How many items one network call may hold: at most ROWS, fewer where a levels head's output would not fit.

    >>> from diffusional import Discrete
    >>> batch_rows(Discrete((1, 8, 8), 17)), batch_rows(Discrete((1, 28, 28), 256))
    (4096, 199)
    """
    return max(1, min(ROWS, _NUMBERS // (space.dimensions * (space.levels or 1))))


class Chain(LatentVariableModel):
    """The bound of a chain of latents with one shared network. x is (B, *space.shape); costs are nats, float64."""

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time."""

    @property
    @abstractmethod
    def decoder_uses_network(self) -> bool:
        """Whether p(x|z_1) takes a network evaluation."""

    @abstractmethod
    def reconstruction(self, x: Items, noise: Items, condition: Condition | None = None) -> PerItem:
        """−ln p(x|z_1) (B,) at the z_1 that `noise` (B, *dims), standard normal, makes of x."""

    @abstractmethod
    def prior(self, x: Items) -> PerItem:
        """KL_T = KL[q(z_T|x) ‖ p(z_T)] (B,): exact, without a draw."""

    @abstractmethod
    def _kl_at(self, x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        """`kl_at` without its checks."""

    @property
    def levels(self) -> int | None:
        """L = T − 1, the number of KL_t with t < T; None in continuous time."""
        return None if self.steps is None else self.steps - 1

    def noise_levels(self) -> Tensor:
        """Return (T,) numbers that identify the chain's levels, 65 in continuous time: a plan checks by them that it fits a model. They are
        γ if the family has one, and otherwise 1, …, T.
        """
        return torch.arange(1, (self.steps or 65) + 1, dtype=torch.float64)

    def identity(self) -> list[Any]:
        """Return what the costs depend on besides the tensors of the model, as JSON values: by default its type."""
        return [type(self).__name__]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(T, *dims): an ε for each latent. `terms` takes T first, (T, B, *dims)."""
        return (self._discrete(), *self.space.shape)

    @property
    def evaluations(self) -> int:
        return self._discrete() - 1 + self.decoder_uses_network

    def _discrete(self) -> int:
        if self.steps is None:
            raise DiffusionalError("terms came for continuous time, which has no T costs: regrid(T), or use elbo")
        return self.steps

    def kl_at(self, x: Items, level: PerItem, noise: Items, condition: Condition | None = None) -> PerItem:
        """KL_t (B,) at `level` t (B,) in 1 … T−1, from the z_{t+1} that `noise` makes of x: MATH (10) for a Gaussian diffusion.

        In continuous time `level` is u (B,) in [0, 1] and the value is dKL/du, whose integral over [0, 1] is the cost.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        same_shape(x, noise)
        if self.levels is not None and (
            level.dtype.is_floating_point or bool(((level < 1) | (level > self.levels)).any())
        ):
            raise DiffusionalError(
                f"level {level.flatten()[:1].tolist()} … came; levels are integers 1 … {self.levels}"
            )
        if self.levels is None and not bool(((level >= 0) & (level <= 1)).all()):
            raise DiffusionalError(
                f"u from {float(level.min()):g} to {float(level.max()):g} came; expected u in [0, 1]"
            )
        return self._kl_at(x, level, noise, condition)

    # Ledgers.

    def terms(self, x: Items, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """MATH (8) with one draw of every cost: `noise` (T, B, *dims), noise[t − 1] the ε of z_t. Discrete time only."""
        steps = self._discrete()
        if noise.shape != (steps, *x.shape):
            raise DiffusionalError(f"noise of shape {tuple(noise.shape)} came; expected {(steps, *x.shape)}")
        self.space.check(x)
        check_condition(condition, len(x))
        t = torch.arange(1, steps, device=x.device)
        step = max(1, batch_rows(self.space) // x.shape[0])
        kl = [
            self._kl_block(x, t[i : i + step, None].expand(-1, len(x)), noise[i + 1 : i + 1 + step], condition)
            for i in range(0, len(t), step)
        ]
        reconstruction = self.reconstruction(x, noise[0], condition)
        return self._ledger(x, reconstruction, torch.cat(kl, 1))

    def elbo(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        cells: int = 256,
    ) -> Ledger:
        """MATH (8), one draw of every cost; in continuous time one uniform u in each of `cells` equal cells of [0, 1].

        T network evaluations per item (or `cells` + 1). The ledger's `kl` has a column per level, or per cell.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        if cells < 1:
            raise DiffusionalError(f"cells={cells} came; give at least 1")
        n = self.levels or cells
        step = max(1, batch_rows(self.space) // x.shape[0])
        kl = []
        for i in range(0, n, step):
            block = torch.arange(i, min(i + step, n), device=x.device)[:, None].expand(-1, len(x))
            noise = torch.empty(*block.shape, *x.shape[1:], dtype=x.dtype, device=x.device).normal_(generator=generator)
            if self.steps is None:
                jitter = torch.empty(block.shape, dtype=torch.float64, device=x.device).uniform_(generator=generator)
                kl.append(self._kl_block(x, (block + jitter) / n, noise, condition) / n)
            else:
                kl.append(self._kl_block(x, block + 1, noise, condition))
        noise = torch.empty_like(x).normal_(generator=generator)
        return self._ledger(x, self.reconstruction(x, noise, condition), torch.cat(kl, 1))

    def _ledger(self, x: Tensor, reconstruction: Tensor, kl: Tensor) -> Ledger:
        return Ledger(reconstruction, kl, self.prior(x), self.space.dimensions, self.extra(x))

    def _kl_block(self, x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        """KL (B, L) at levels (L, B) with noise (L, B, *dims), as one network call."""
        n = level.shape[0]
        rows = x.repeat(n, *(1,) * (x.ndim - 1))
        return self._kl_at(rows, level.flatten(), noise.flatten(0, 1), repeated(condition, n)).view(n, -1).T

    # Training, MATH (22).

    def draw(
        self,
        x: Tensor,
        sampler: LevelSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """A level of `sampler` for each item with its weight 1/π_t, and ε. Where the decoder needs the network a random 1/32 of
        the items, "first", looks at z_1 instead; otherwise every item does so beside, with the ε "first_noise".
        """
        n = len(x) if n is None else n
        drawn = (sampler or Stratified()).sample(n, self.levels, generator)
        out = {
            "level": drawn.level.to(x.device),
            "weight": drawn.weight.to(x.device),
            "noise": standard_normal(x, n, generator),
        }
        if self.decoder_uses_network:
            # Stratified, so that the number of them hardly varies.
            out["first"] = Stratified().sample(n, None, generator).level.to(x.device) < RECONSTRUCTION_SHARE
        else:
            out["first_noise"] = standard_normal(x, n, generator)
        return out

    def _mixed(
        self,
        terms: dict[str, Tensor],
        draws: dict[str, Tensor],
        visits: Tensor,
        kl: Tensor,
        firsts: Tensor,
        log_prob: Tensor,
    ) -> Costs:
        """`terms` and the costs of a batch of which the items `visits` (V,) look at a level, with KL_t `kl` (V,), and the others,
        `firsts` (F,), at z_1, with ln p(x|z_1) `log_prob` (F,): each weighted for those that look elsewhere.
        """
        level, weight = draws["level"][visits], draws["weight"]
        visited = LevelDraws(kl, level, weight[visits] / (1 - RECONSTRUCTION_SHARE))
        nothing = kl.new_zeros(len(weight))
        terms = terms | {"kl": nothing.index_copy(0, visits, visited.estimate())}
        if len(firsts):
            log_prob = log_prob.to(kl.dtype)
            terms["reconstruction"] = nothing.index_copy(0, firsts, -log_prob / RECONSTRUCTION_SHARE)
        return Costs(terms, position(level, self.levels), self._per_unit(kl))

    def _per_unit(self, kl: Tensor) -> Tensor:
        """Costs per unit of u: what a uniform sampler's weight would make of them."""
        return kl if self.levels is None else kl * self.levels


def same_shape(x: Tensor, noise: Tensor) -> None:
    """Raise DiffusionalError unless every item has an ε of its own."""
    if noise.shape != x.shape:
        raise DiffusionalError(
            f"noise of shape {tuple(noise.shape)} came for items of {tuple(x.shape)}; give one like them"
        )


def standard_normal(x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """ε (n, …) like the items of x.

    >>> standard_normal(torch.zeros(2, 3), 5, None).shape
    torch.Size([5, 3])
    """
    return torch.empty(n, *x.shape[1:], dtype=x.dtype, device=x.device).normal_(generator=generator)
