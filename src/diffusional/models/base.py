"""The interface of all latent variable models: a set of primitives, from which bounds, losses and evaluations follow."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusional.condition_form import ConditionForm
from diffusional.conditions import Condition, check_condition
from diffusional.encoded import DataItems
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs, Ledger
from diffusional.models.coding import Given, Move, the_condition
from diffusional.space import Continuous, Discrete, Space
from diffusional.timesteps import Stratified, TimestepSampler

if TYPE_CHECKING:
    from diffusional.models.chain import Chain
    from diffusional.models.flow import ProbabilityFlow
    from diffusional.models.vae import Autoencoder


# Noise that is drawn as a path is walked: called with a shape, it returns the next standard normal numbers (B, *shape) of every item.
Noise = Callable[[tuple[int, ...]], Tensor]


def served(noise: Tensor) -> Noise:
    """Return the numbers of `noise` (B, …) in their order, as many at each call as its shape has.

    >>> draw = served(torch.arange(6.0).reshape(1, 6))
    >>> draw((2,)), draw((2, 2))
    (tensor([[0., 1.]]), tensor([[[2., 3.],
             [4., 5.]]]))
    """
    flat, place = noise.flatten(1), 0

    def draw(shape: tuple[int, ...]) -> Tensor:
        nonlocal place
        begin, place = place, place + math.prod(shape)
        return flat[:, begin:place].reshape(len(flat), *shape)

    return draw


def device_of(model: nn.Module, data: DataItems) -> torch.device:
    """Return the device of a model's first parameter or buffer, or that of `data` if the model has neither.

    >>> device_of(nn.Linear(1, 1), torch.zeros(1)).type
    'cpu'
    """
    return next((t.device for t in (*model.parameters(), *model.buffers())), data.device)


def plain_options(owner: Any) -> dict[str, Any]:
    """Return the attributes of an object that are numbers, strings, None, or lists of these, by name, as JSON values. Names with an
    underscore are left out. Tensors are hashed, except those of a `torch.nn.Module`: its `state_dict` is hashed anyway.

    >>> class Noise:
    ...     def __init__(self): self.steps, self.keep, self.table = 3, 0.8, torch.zeros(2)
    >>> plain_options(Noise())["keep"], list(plain_options(Noise()))
    (0.8, ['steps', 'keep', 'table'])
    """
    found = {}
    for name, value in vars(owner).items():
        plain = value if isinstance(value, list | tuple) else [value]
        if name.startswith("_") or (isinstance(owner, nn.Module) and name == "training"):
            continue
        if all(isinstance(one, int | float | str | None) for one in plain):
            found[name] = value
        elif isinstance(value, Tensor):
            numbers = value.detach().cpu().contiguous()
            content = (
                f"{numbers.dtype}{tuple(numbers.shape)}".encode()
                + numbers.flatten().view(torch.uint8).numpy().tobytes()
            )
            found[name] = hashlib.sha256(content).hexdigest()
    return found


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for the block, and restore the mode of each of their modules afterwards.

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


class _Space:
    """The space of x. It is not a property, so that a subclass can set `self.space`."""

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        raise DiffusionalError(
            f"expected {owner.__name__} to set `space`, such as df.Discrete(shape, levels), in the class or in __init__; it does not"
        )


class LatentVariableModel(nn.Module, ABC):
    """A model of x with latents, trained on its ELBO, MATH (8): diffusion, VAE, hierarchical VAE, composite.

    x is always (B, *space.shape), encoded by the space; costs are nats. A subclass sets `space`, in the class or in `__init__`, or
    defines it as a property, and defines the abstract methods below. Of a family with a fixed posterior, derive from `Chain` instead.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes whose labels are the condition of a model that was built from a config; else empty."""

    condition_form: ConditionForm | None = None
    """The form of a condition other than labels, of a model that was built from a config with one."""

    origin: Mapping[str, Any] = {}
    """For an imported model: the values from its config, the assumptions and the given arguments, as JSON values. Evaluations record it."""

    sampling: tuple[str, ...] = ("ancestral",)
    """Names of the methods that `sample` takes as `method`. A model with one of them takes no such argument."""

    only_reconstructs: bool = False
    """Whether the reconstruction is the only cost that takes a network: a decoder p(x|c) without latents."""

    if TYPE_CHECKING:

        @property
        def space(self) -> Space:
            """The space of x."""
            ...
    else:
        space = _Space()

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one item's noise in `terms`."""

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that one draw of `terms` takes."""
        return 1

    # What an evaluation and a training ask of a model.

    @property
    def steps(self) -> int | None:
        """T of the diffusion that the model contains; None in continuous time, and for models without one."""
        return None

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        """Return γ = −log SNR (C + 1,) at edges of levels, t from 1 to T, or u in continuous time; by default None: there is no γ."""
        return None

    def visited(self) -> "Chain | None":
        """Return the chain whose levels an evaluation can visit one by one; by default None, for models without levels."""
        return None

    def described(self) -> dict[str, Any]:
        """Return further entries of the provenance of an evaluation, JSON values: by default none."""
        return {}

    def learned_posterior(self) -> "Autoencoder | None":
        """Return the model itself if its posterior q(z|x) is learned; by default None: the posterior is fixed."""
        return None

    def deterministic_encoder(self) -> nn.Module | None:
        """Return a module from x (B, *space.shape) to f(x) (B, n) that can be frozen, for `FrozenEncoder`; by default None: there is none."""
        return None

    def guided(
        self,
        weight: float,
        threshold: Any = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
    ) -> "LatentVariableModel":
        """Return the model with classifier-free guidance, MATH (26): see `models.guidance.Guided` for the arguments.

        Raises DiffusionalError for models without a denoiser to guide.
        """
        raise DiffusionalError(
            f"guidance with weight {weight:g} was given, but a {type(self).__name__} has no denoiser to guide; it is for diffusion models"
        )

    def check_without_condition(self) -> None:
        """Raise DiffusionalError if the networks are known to require a condition; by default nothing is known before they are called."""

    def two_predictions(self, null: Any = None) -> Any:
        """Return the denoiser of a table over guidance weights, whose `both` gives the predictions with and without a condition.

        Raises DiffusionalError for models whose costs are not quadratic in the weight.
        """
        raise DiffusionalError(
            f"expected a Gaussian diffusion model for a table over guidance weights, got a {type(self).__name__}"
        )

    def flow(self) -> "ProbabilityFlow":
        """Return the probability flow of the model's network, MATH (31).

        Raises DiffusionalError for models that are not a Gaussian diffusion of x: there is no such equation for them.
        """
        raise DiffusionalError(
            f"expected a DiffusionModel for the probability flow, got a {type(self).__name__}, which has no velocity of z; use evaluate, whose "
            "bound is the NELBO, or importance weights"
        )

    def regrid(self, steps: int | None) -> "LatentVariableModel":
        """Return the model with another T, or in continuous time. Raises DiffusionalError for models that have no T to change."""
        raise DiffusionalError(
            f"steps={steps} was given, but a {type(self).__name__} has no T to change; leave steps out"
        )

    def log_weight(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return ln p(x, z)/q(z|x) (B,), nats, at the latents of x for `noise` (B, *noise_shape)."""
        raise self._no_weights()

    def walked_log_weight(self, x: Tensor, noise: Noise, condition: Condition | None = None) -> Tensor:
        """Return `log_weight` (B,) for noise that is drawn as it is needed: noise(shape) returns the next numbers (B, *shape) of every item.

        A chain draws z_1, z_2, … one after the other and keeps two of them, so that the memory of a path does not grow with T, except for
        one number per latent. By default all noise is drawn at once.
        """
        return self.log_weight(x, noise(self.noise_shape), condition)

    def check_log_weight(self) -> None:
        """Raise DiffusionalError if the model has no importance weights, without calling a network. By default it has them if its class
        defines `log_weight`.
        """
        if type(self).log_weight is LatentVariableModel.log_weight:
            raise self._no_weights()

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return how items are coded by bits back, as the moves of their latents (models/coding.py).

        Args:
            x: the name of the variable that the model is a model of.
            prefix: of the names of latents.
            condition: returns the condition of the networks for what is known.

        Raises DiffusionalError for models that cannot be coded.
        """
        raise DiffusionalError(
            f"a {type(self).__name__} cannot be coded: it does not define `moves`, how its latents are popped and pushed; use a chain, a VAE or "
            "a composite of them"
        )

    def derived(self) -> Mapping[str, tuple[Discrete, Callable[[Tensor], Tensor]]]:
        """Return the variables among `moves` that are functions of x, by name, with their space: by default none."""
        return {}

    def _no_weights(self) -> DiffusionalError:
        return DiffusionalError(
            f"importance weights are not defined for a {type(self).__name__}; use evaluate, whose bound is the NELBO"
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the training objectives that the model has: "elbo" for all of them."""
        return ("elbo",)

    def objective_draw(
        self,
        objective: str,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return everything random in the objective of n items, as `draw` does for "elbo".

        Raises DiffusionalError for an objective that the model does not have.
        """
        self._check_objective(objective)
        return self.draw(x, sampler, generator, n)

    def objective_costs(
        self, objective: str, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None
    ) -> Costs:
        """Return the costs of an objective for what `objective_draw` returned, as `costs` does for "elbo".

        Raises DiffusionalError for an objective that the model does not have.
        """
        self._check_objective(objective)
        return self.costs(x, draws, condition)

    def _check_objective(self, objective: str) -> None:
        if objective not in self.objectives:
            raise DiffusionalError(
                f"expected an objective of a {type(self).__name__} ({', '.join(self.objectives)}), got {objective!r}"
            )

    def objective(self, costs: Costs, weight: float = 1.0, free_bits: float = 0.0) -> Tensor:
        """Return the scalar to minimise: the mean of the costs. Models with a learned posterior can weight its KL (KL warm-up) and
        leave `free_bits` nats of each layer unpenalised; others raise DiffusionalError for these options.
        """
        if weight != 1 or free_bits:
            raise DiffusionalError(
                f"weight={weight} and free_bits={free_bits} need a learned posterior, which a {type(self).__name__} does not have"
            )
        return costs.total().mean()

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        """Return further costs (B,) by name: for continuous data, the log-Jacobian of their standardisation."""
        if not isinstance(self.space, Continuous):
            return {}
        return {"jacobian": torch.full((x.shape[0],), self.space.log_jacobian(), dtype=torch.float64, device=x.device)}

    @abstractmethod
    def terms(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return one draw of every cost, for the given noise."""

    @abstractmethod
    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """Return one draw of every cost, with noise from `generator`."""

    @abstractmethod
    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return all random numbers of the loss of n items like those of x, by name, each (n, …). n defaults to len(x).

        Rows of it go with rows of a batch: a batch in parts, or on several processes, has the loss of the whole. Of x only the
        shape and type are looked at; `loss` checks the items, and `space.encode` has.
        """

    @abstractmethod
    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of x (N, …) for what `draw` returned: unbiased, differentiable estimates of each item's NELBO."""

    def loss(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        sampler: TimestepSampler | None = None,
    ) -> Tensor:
        """Return an unbiased, differentiable estimate of the batch's mean NELBO, a scalar in nats.

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
        """Return n samples x (n, *space.shape) of the generative model."""
