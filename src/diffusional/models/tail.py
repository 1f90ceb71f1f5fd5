"""The upper part of a chain, p(z_{s:T}) without what lies below z_s, as a model of its own: the prior of a frozen encoder, MATH (28).

For y with posterior q(z_t|y), the costs are Σ_{s≤t<T} KL_t + KL_T = −E ln p(z_{s:T})/q(z_{s:T}|y). They do not bound −ln p(y), since the next
stage is given z_s and not y. Together with a bound on −ln p(x|z_s) they bound −ln p(x).
"""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.models.base import Noise
from diffusional.models.chain import Chain
from diffusional.shapes import Batch, PerItem
from diffusional.space import Space


class ChainTail(Chain):
    """The latents z_s … z_T of a chain over y, without p(y|z_1) and the levels below s. Its own T is T − s + 1.

    `reconstruction` is 0, and so is the log-Jacobian of a standardised y: no density of y is among the costs. `sample` returns z_s.

    Args:
        chain: a chain over y, such as a DiffusionModel.
        level: s, the latent that the next stage is given, in 1 … T − 1; 1 in continuous time.

    Raises DiffusionalError for another level.

    >>> from diffusional import Continuous, Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=10))
    >>> prior = DiffusionModel(process, Denoiser(lambda z, s: 0 * z), likelihood.GaussianLikelihood(Continuous((2,))))
    >>> tail = ChainTail(prior, level=4)
    >>> tail.elbo(torch.zeros(3, 2), torch.Generator().manual_seed(0)).kl.shape, tail.steps
    (torch.Size([3, 6]), 7)
    """

    decodes = False

    def __init__(self, chain: Chain, level: int = 1) -> None:
        super().__init__()
        if not isinstance(chain, Chain):
            raise DiffusionalError(
                f"expected a chain with levels, such as a DiffusionModel, whose latents are handed over, got a {type(chain).__name__}"
            )
        most = 1 if chain.steps is None else chain.steps - 1
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= most:
            raise DiffusionalError(
                f"expected level, the latent that is handed over, to be an integer from 1 to {most}"
                f"{', as in all chains in continuous time' if chain.steps is None else ', below T'}, got {level!r}"
            )
        self.over, self.level = chain, level

    @property
    def steps(self) -> int | None:
        return None if self.over.steps is None else self.over.steps - self.level + 1

    @property
    def space(self) -> Space:
        return self.over.space

    @property
    def decoder_uses_network(self) -> bool:
        """False: there is no p(y|z_1)."""
        return False

    @property
    def gamma(self) -> float:
        """γ_s of the latent that is handed over. Raises DiffusionalError for a chain without γ."""
        edges = torch.zeros(1, dtype=torch.float64) if self.over.steps is None else torch.tensor([self.level])
        found = self.over.gamma_at(edges)
        if found is None:
            raise DiffusionalError(
                f"expected a chain whose latents have a γ = −log SNR, got a {type(self.over).__name__}"
            )
        return float(found.detach()[0])

    def _there(self, level: Tensor) -> Tensor:
        """Return the same levels (or edges of levels) in the whole chain's numbering."""
        return level if self.steps is None else level + (self.level - 1)

    def regrid(self, steps: int | None) -> "ChainTail":
        """Return the same latents with another T of the whole chain. Raises DiffusionalError unless all its latents are handed over."""
        if self.level != 1:
            raise DiffusionalError(
                f"steps={steps} was given, but z_{self.level} of {self.over.steps} latents is handed over, which another T does not have; "
                "leave steps out"
            )
        other = self.over.regrid(steps)
        assert isinstance(other, Chain)
        return ChainTail(other)

    def guided(
        self,
        weight: float,
        threshold: Any = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
    ) -> "ChainTail":
        """Return the same latents of the guided chain, MATH (26)."""
        guided = self.over.guided(weight, threshold, rescale, null, kept)
        assert isinstance(guided, Chain)
        return ChainTail(guided, self.level)

    def inner(self) -> tuple[Chain, int, int]:
        return self.over, 0 if self.steps is None else self.level - 1, 0

    def noise_levels(self) -> Tensor:
        return self.over.noise_levels()[self.level - 1 :]

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        return self.over.gamma_at(self._there(edges))

    def identity(self) -> list[Any]:
        return [type(self).__name__, self.level, *self.over.identity()]

    def level_constants(self, level: PerItem) -> PerItem:
        return self.over.level_constants(self._there(level))

    def level_kl(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.over.level_kl(x, self._there(level), noise, condition)

    def prior(self, x: Batch) -> PerItem:
        return self.over.prior(x)

    def reconstruction(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return 0 (B,): z_s itself is handed over."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return 0 (B, *dims): z_s itself is handed over."""
        return torch.zeros_like(x, dtype=torch.float64)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        return self.over.kl_map(x, self._there(level), noise, condition)

    def prior_map(self, x: Batch) -> Batch:
        return self.over.prior_map(x)

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        """Return {}."""
        return {}

    def check_log_weight(self) -> None:
        raise self._no_weights()

    def walk(self, x: Batch, noise: Noise, condition: Condition | None = None, first: int = 1) -> tuple[Tensor, Batch]:
        """Return the log-ratios of q and p (B, T) of the latents along one path of y, and the first of them, z_s."""
        self.over.check_log_weight()
        return self.over.walk(x, noise, condition, self.level + first - 1)

    @torch.no_grad()
    def walk_back(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[Tensor]:
        """Yield z_T, …, z_s, each (n, *space.shape)."""
        # The chain's walk goes on to z_1 and y: it is read until z_s has been drawn.
        steps = None if self.over.steps is None else self.over.steps - self.level + 1
        if steps is not None:
            yield from islice(self.over.walk_back(n, generator, condition), steps)
            return
        before = None
        for z in self.over.walk_back(n, generator, condition):
            if before is not None:
                yield before
            before = z

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples of z_s (n, *space.shape)."""
        *_, z = self.walk_back(n, generator, condition)
        return z
