"""What every latent variable model here offers: one set of primitives, from which bounds, losses and evaluations follow."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition
from diffusional.ledger import Costs, Ledger
from diffusional.levels import LevelSampler, Stratified
from diffusional.space import Continuous, Space


def device_of(model: nn.Module, data: Tensor) -> torch.device:
    """The device of a model's first parameter or buffer; that of `data` where it has none.

    >>> device_of(nn.Linear(1, 1), torch.zeros(1)).type
    'cpu'
    """
    return next((t.device for t in (*model.parameters(), *model.buffers())), data.device)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for the block, and afterwards every module of theirs back into its own mode.

    Modules that were in evaluation mode inside a model in training mode, such as frozen encoders, stay so.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout())
    >>> _ = model[1].eval()
    >>> with evaluation_mode(model):
    ...     [module.training for module in model.modules()]
    [False, False, False]
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


class LatentVariableModel(nn.Module, ABC):
    """A model of x with latents, trained on its ELBO: diffusion, VAE, hierarchical VAE.

    x is always (B, *space.shape), encoded by the space; costs are nats.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes whose labels are the condition of a model that was built from a config; else empty."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """What x is."""

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Of one item's noise in `terms`."""

    @property
    def evaluations(self) -> int:
        """Network evaluations that one draw of `terms` takes."""
        return 1

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        """Further named costs (B,): for continuous data the log-Jacobian of their standardisation."""
        if not isinstance(self.space, Continuous):
            return {}
        return {"jacobian": torch.full((x.shape[0],), self.space.log_jacobian(), dtype=torch.float64, device=x.device)}

    @abstractmethod
    def terms(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """One draw of every cost, from the noise given."""

    @abstractmethod
    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """One draw of every cost, the noise drawn from `generator`."""

    @abstractmethod
    def draw(
        self,
        x: Tensor,
        sampler: LevelSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Everything random in the loss of n items like those of x (len(x) unless given), by name, each (n, …).

        Rows of it go with rows of a batch: a batch in parts, or on several processes, has the loss of the whole. Of x only the
        shape and type are looked at; `loss` checks the items, and `space.encode` has.
        """

    @abstractmethod
    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """The costs of x (N, …) at what `draw` gave: unbiased draws of each item's NELBO, to differentiate."""

    def loss(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        sampler: LevelSampler | None = None,
    ) -> Tensor:
        """An unbiased draw of the batch's mean NELBO in nats, a scalar to differentiate.

        Levels that are visited at random, MATH (22), come from `sampler` (stratified over the batch unless given), which
        learns from their costs. `generator` must be on x's device. Raises DiffusionalError for items that the space refuses.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        sampler = sampler or Stratified()
        costs = self.costs(x, self.draw(x, sampler, generator), condition)
        sampler.update(costs.position, costs.density)
        return costs.total().mean()

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """n items x (n, *space.shape) from the generative model."""
