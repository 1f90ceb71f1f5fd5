"""What a chain may offer besides its costs, as protocols: a distribution of the data, and structure that control variates of an evaluation use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical, Space


@runtime_checkable
class Decoding(Protocol):
    """p(x|z_1): the part of a distribution that a bound and samples need."""

    def log_prob(self, x: Batch, /) -> PerItem:
        """Return ln p(x|z_1) (B,), nats."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x|z_1) (B, *dims)."""
        ...


@runtime_checkable
class AffineCosts(Protocol):
    """A chain with Gaussian marginals q(z_t|x) = N(α x, σ² I) whose KL_t are affine in the squared error of the noise, MATH (10).

    An evaluation then has control variates: simpler distributions, whose denoisers have a known squared error (evaluation/controls.py).
    """

    @property
    def space(self) -> Space:
        """The space of x."""
        ...

    @property
    def timesteps(self) -> int | None:
        """L, or None in continuous time."""
        ...

    def kl_from(self, squared_error: PerItem, level: PerItem) -> PerItem:
        """Return KL_t (B,), or dKL/du, from ‖ε − ε̂‖² (B,)."""
        ...

    def noisy_gamma(self, level: PerItem) -> PerItem:
        """Return γ (B,) of the network's input at a level."""
        ...

    def end_gammas(self) -> Tensor:
        """Return γ of z_1 and z_T (2,)."""
        ...

    def edge_gammas(self, edges: Tensor) -> Tensor:
        """Return γ at edges of cells: u (C + 1,) in continuous time, otherwise γ of all T latents."""
        ...


@runtime_checkable
class MaskCosts(Protocol):
    """A chain of masked sequences, which pays rate_t Σ_{i masked in z_t} −ln p_i(x_i | z_t) at z_t, MATH (34). An evaluation then has control
    variates whose expectations over the masks are known (evaluation/neighbours.py).
    """

    @property
    def space(self) -> Categorical:
        """The space of the sequences."""
        ...

    @property
    def steps(self) -> int | None:
        """T."""
        ...

    def masked(self, t: PerItem, noise: Batch) -> Tensor:
        """Return which positions of z_t are masked for standard normal noise (B, L)."""
        ...

    def masks_number(self, t: PerItem) -> PerItem | None:
        """Return the number of masks (B,) of z_t, if it is a fixed one, and the positions of the smallest noise are masked; otherwise None."""
        ...

    def mask_rate(self, t: PerItem) -> PerItem:
        """Return the factor (B,) of the sum at z_t: 1 at z_1, which is the reconstruction."""
        ...

    def mask_chance(self, t: PerItem, masked: int, shown: int) -> PerItem:
        """Return the probability (B,) that `masked` given positions of z_t are masked and `shown` other ones are not."""
        ...


@dataclass(frozen=True)
class Section:
    """Consecutive levels of a chain that are one term of its ledger.

    Attributes:
        term: the name of the term, such as "base.kl".
        first, last: the section is first ≤ level < last, in t, or in u in continuous time.
        listed: whether its levels have costs of their own, as a `kl` has; False for a single cost such as a reconstruction.
        own: maps edges (C + 1,) of levels of the section to those of the stage that they belong to.
        gamma: maps the stage's own edges to γ, or to None if it has none.
    """

    term: str
    first: float
    last: float
    listed: bool
    own: Callable[[Tensor], Tensor]
    gamma: Callable[[Tensor], Tensor | None]


@runtime_checkable
class AffineLevels(Protocol):
    """Levels of one stage of a composite model whose KL_t are affine in the squared error of the noise, as those of `affine`."""

    @property
    def affine(self) -> AffineCosts:
        """The stage's chain, in whose numbering levels are returned."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether the stage's variable is a function of x, and each of its levels is one level of the composite model."""
        ...

    def items(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the stage's variable for items x (V, *dims) at the noise of their visits (V, *visit_shape)."""
        ...

    def noise(self, noise: Tensor) -> Tensor:
        """Return ε of the level (V, *shape of the variable) in the noise of visits."""
        ...

    def found(self, latent: Tensor, first: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return which visits (V,) go to these levels, (n,), their levels (n,), and the factor between the stage's costs and those of x.

        `latent` is t of z_t, one above the level, or u in continuous time; `first` marks visits to a decoder.
        """
        ...

    def cells(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells (n,) between `edges` (C + 1,) of the composite model that have these levels, and their edges (n + 1,)."""
        ...
