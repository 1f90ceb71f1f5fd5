"""The prior p(z) of a learned latent z, and the cost of q(z|x) under it.

    StandardNormal    KL[q(z|x) ‖ N(0, I)], in closed form                                                  MATH (21)
    ChainPrior        −H[q(z|x)] + NELBO(z) of a chain z → z_1 → … → z_T: every cost of MATH (8) at z ~ q(z|x)

Another prior needs `log_prob` and `sample`: its cost is then a draw, ln q(z|x) − ln p(z). A prior with weights is an nn.Module too.
Latents have any shape (B, *shape).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import Noise
from diffusional.models.chain import Chain
from diffusional.models.coding import Given, Move, the_condition
from diffusional.shapes import PerItem
from diffusional.timesteps import TimestepSampler

# The names of the costs of a chain over z among those of x.
_NAMES = {"reconstruction": "latent_reconstruction", "jacobian": "latent_jacobian"}
# Costs that do not belong to z; positions and densities of a loss that visits no levels.
_OUTER, _NO_VISITS = ("reconstruction", "jacobian"), (torch.zeros(0), torch.zeros(0))


@dataclass(frozen=True)
class PriorCosts:
    """The costs of z: `kl` (B, L) of the levels below the last (L = 0 without levels), `prior` (B,), and further costs (B,) by name."""

    kl: Tensor
    prior: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)


class Prior(ABC):
    """p(z) for z (B, *shape), the prior of a VAE: define `shape`, `log_prob` (nats) and `sample`.

    >>> class Uniform(Prior):                                                     # on [-1, 1]^D
    ...     shape = (2,)
    ...     def log_prob(self, z, condition=None): return torch.where(z.abs() <= 1, -0.6931, -torch.inf).sum(1)
    ...     def sample(self, n, like, generator=None, condition=None):
    ...         return like.new_empty(n, 2).uniform_(-1, 1, generator=generator)
    >>> q = Gaussian(torch.zeros(1, 2), torch.full((1, 2), -9.0))
    >>> Uniform().terms(q, q.mean, torch.zeros(1, 0)).prior > 0
    tensor([True])
    """

    shape: tuple[int, ...]

    @abstractmethod
    def log_prob(self, z: Tensor, condition: Condition | None = None) -> PerItem:
        """Return ln p(z) (B,), nats."""

    def check_log_prob(self) -> None:
        """Raise DiffusionalError if `log_prob` is not available, as for a chain; by default it is."""
        return

    @abstractmethod
    def sample(
        self, n: int, like: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Tensor:
        """Return samples z ~ p(z) (n, *shape), of the type and device of `like`."""

    def log_weight(self, z: Tensor, noise: Noise, condition: Condition | None = None) -> PerItem:
        """Return ln p(z) (B,) or, for a prior with latents of its own, an unbiased weight of it: ln p(z, z')/q(z'|z) along one path."""
        return self.log_prob(z, condition)

    def check_log_weight(self) -> None:
        """Raise DiffusionalError if `log_weight` is not available, as for a chain in continuous time."""
        self.check_log_prob()

    def moves(self, name: str, prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves that code z, the variable `name` (models/coding.py). Raises DiffusionalError unless p(z) is N(0, I) or a chain."""
        raise DiffusionalError(
            f"expected a prior N(0, I) or a chain for coding, got a {type(self).__name__}, which does not define `moves`"
        )

    @property
    def chain(self) -> Chain | None:
        """The chain over z if p(z) is one, otherwise None."""
        return None

    @property
    def normal(self) -> bool:
        """Whether p(z) = N(0, I)."""
        return False

    @property
    def noise(self) -> int:
        """Number of standard normal numbers that `terms` needs for an item, besides those of z."""
        return 0

    @property
    def evaluations(self) -> int:
        """Number of network evaluations of `terms`."""
        return 0

    def regrid(self, steps: int | None) -> "Prior":
        """Return the prior with another T. Raises DiffusionalError for a prior without levels."""
        raise DiffusionalError(
            f"steps={steps} was given, but a {type(self).__name__} prior has no levels and no T to change; leave steps out"
        )

    def terms(self, q: Gaussian, z: Tensor, noise: Tensor, condition: Condition | None = None) -> PriorCosts:
        """Return the costs of z (B, *shape) ~ q for `noise` (B, `noise`): by default ln q(z|x) − ln p(z), a draw of KL[q(z|x) ‖ p(z)]."""
        return PriorCosts(
            z.new_zeros(len(z), 0, dtype=torch.float64), (q.log_prob(z) - self.log_prob(z, condition)).double()
        )

    def elbo(
        self, q: Gaussian, z: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> PriorCosts:
        """Do the same as `terms`, with noise from `generator`."""
        return self.terms(q, z, z.new_empty(len(z), self.noise).normal_(generator=generator), condition)

    def draw(
        self, z: Tensor, sampler: TimestepSampler | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return everything random in `costs` for latents like z (n, *shape), by name."""
        return {}

    def costs(self, q: Gaussian, z: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return differentiable costs of z for what `draw` returned."""
        return Costs({"prior": self.terms(q, z, z.new_zeros(len(z), 0), condition).prior}, *_NO_VISITS)

    def layer(self, costs: Costs) -> tuple[str, ...]:
        """Return the names of those costs of a model that add up to the KL of z."""
        return ("prior",)

    @property
    def one_level(self) -> bool:
        """Whether `costs` visits a single level, so that the KL of one batch is a draw with a large variance."""
        return False


@dataclass(frozen=True)
class StandardNormal(Prior):
    """N(0, I) over z (B, *shape).

    >>> q = Gaussian(torch.ones(1, 2), torch.zeros(1, 2))
    >>> StandardNormal((2,)).terms(q, q.mean, torch.zeros(1, 0)).prior                    # ½ ‖μ‖²
    tensor([1.], dtype=torch.float64)
    """

    shape: tuple[int, ...]

    def log_prob(self, z: Tensor, condition: Condition | None = None) -> PerItem:
        return self.distribution(z).log_prob(z)

    def moves(self, name: str, prefix: str = "", condition: Given = the_condition) -> list[Move]:
        return [Move(name, lambda known: self.distribution(torch.zeros(known.rows, *self.shape)))]

    @property
    def normal(self) -> bool:
        return True

    def distribution(self, like: Tensor) -> Gaussian:
        """Return p(z) for latents of the shape, type and device of `like`."""
        return Gaussian(torch.zeros_like(like), torch.zeros_like(like))

    def sample(
        self, n: int, like: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Tensor:
        return torch.empty(n, *self.shape, dtype=like.dtype, device=like.device).normal_(generator=generator)

    def terms(self, q: Gaussian, z: Tensor, noise: Tensor, condition: Condition | None = None) -> PriorCosts:
        kl = q.kl(self.distribution(z)).double()
        return PriorCosts(kl.new_zeros(len(z), 0), kl)


@dataclass(frozen=True, eq=False)
class ChainPrior(Prior):
    """A chain over z, in a continuous space of z's shape. Its p(z) has no closed form: ln p(z) is bounded by −NELBO(z)."""

    over: Chain

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.over.space.shape

    @property
    def chain(self) -> Chain:
        return self.over

    @property
    def noise(self) -> int:
        return self.over.noise_shape[0] * self.over.space.dimensions

    @property
    def evaluations(self) -> int:
        return self.over.evaluations

    @property
    def one_level(self) -> bool:
        return True

    def regrid(self, steps: int | None) -> "ChainPrior":
        other = self.over.regrid(steps)
        assert isinstance(other, Chain)
        return replace(self, over=other)

    def log_prob(self, z: Tensor, condition: Condition | None = None) -> PerItem:
        raise self._bounded_only()

    def check_log_prob(self) -> None:
        raise self._bounded_only()

    def log_weight(self, z: Tensor, noise: Noise, condition: Condition | None = None) -> PerItem:
        return self.over.walked_log_weight(z, noise, condition)

    def check_log_weight(self) -> None:
        self.over.check_log_weight()

    def moves(self, name: str, prefix: str = "", condition: Given = the_condition) -> list[Move]:
        return self.over.moves(name, f"{prefix}prior.", condition)

    def _bounded_only(self) -> DiffusionalError:
        return DiffusionalError(
            f"expected a prior with a known ln p(z), got a diffusion prior (a {type(self.over).__name__} over z), which has only a bound on it: "
            "use log_weight, whose exponential has p(z) as its expectation"
        )

    def sample(
        self, n: int, like: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Tensor:
        return self.over.sample(n, generator, condition)

    def terms(self, q: Gaussian, z: Tensor, noise: Tensor, condition: Condition | None = None) -> PriorCosts:
        walk = noise.reshape(len(z), -1, *self.shape).transpose(0, 1).contiguous()
        return self._joined(q, self.over.terms(z, walk, condition))

    def elbo(
        self, q: Gaussian, z: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> PriorCosts:
        return self._joined(q, self.over.elbo(z, generator, condition))

    def _joined(self, q: Gaussian, ledger: Ledger) -> PriorCosts:
        extra = {"latent_reconstruction": ledger.reconstruction, "encoder_entropy": -q.entropy().double()}
        return PriorCosts(ledger.kl, ledger.prior, extra)

    def draw(
        self, z: Tensor, sampler: TimestepSampler | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        return self.over.draw(z, sampler, generator)

    def costs(self, q: Gaussian, z: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        found = self.over.costs(z, draws, condition)
        terms = {_NAMES.get(name, name): value for name, value in found.terms.items()}
        return Costs(terms | {"encoder_entropy": -q.entropy().double()}, found.position, found.density)

    def layer(self, costs: Costs) -> tuple[str, ...]:
        # −H[q] + NELBO of z bounds KL[q(z|x) ‖ p(z)]. A draw of it may be negative.
        return tuple(name for name in costs.terms if name not in _OUTER and not name.startswith("kl_"))


def as_prior(prior: Prior | Chain | None, shape: tuple[int, ...]) -> Prior:
    """Return a Prior over latents of a shape: N(0, I) for None, a ChainPrior for a chain.

    Raises DiffusionalError for a prior over another shape, and for a chain over a space that is not continuous and unscaled.
    """
    from diffusional.space import Continuous

    if prior is None:
        return StandardNormal(shape)
    if isinstance(prior, Chain):
        if prior.space != Continuous(shape):
            raise DiffusionalError(
                f"expected a prior over Continuous({shape}), the space of the latent, got one over {prior.space}"
            )
        return ChainPrior(prior)
    if not isinstance(prior, Prior):
        raise DiffusionalError(
            f"expected a Prior, a chain such as a DiffusionModel, or None, got a {type(prior).__name__}"
        )
    if tuple(prior.shape) != shape:
        raise DiffusionalError(f"expected a prior over latents of shape {shape}, got one over {tuple(prior.shape)}")
    return prior
