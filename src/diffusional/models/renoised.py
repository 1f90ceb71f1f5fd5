"""Noise-conditioning augmentation: a model of x given a noised condition, ỹ ~ N(α y, σ² I), as a model of x given y.

    −ln p(x|y) ≤ E_{ỹ ~ q(ỹ|y)} [NELBO(x|ỹ)],      since p(x|y) = E_{ỹ ~ q(ỹ|y)} p(x|ỹ).

ỹ is drawn anew for every loss and at every visit of an evaluation. It is the condition of an upsampler that follows a finished y, MATH (29a), and
of the decoder of a frozen encoder or of a cascade whose base diffusion stops at z_s, MATH (28), (29b): there ỹ is z_s.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.gaussian import Gaussian
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel, Noise, served
from diffusional.models.chain import Chain
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.models.visited_chain import VisitedChain
from diffusional.shapes import Batch, PerItem
from diffusional.space import Space
from diffusional.timesteps import TimestepSampler


class Renoised(LatentVariableModel):
    """p(x|y) = E p(x|ỹ), ỹ = α y + σ ε at one noise level γ, for a model of x given ỹ.

    Args:
        model: the model of x; its condition is ỹ, or a dict in which `key` is ỹ.
        gamma: γ = −log SNR of ỹ: α² = sigmoid(−γ), σ² = sigmoid(γ).
        shape: the shape of one y.
        key: the entry of a dict condition that is noised.
        rescaled: give the model ỹ/α instead of ỹ, for networks that were trained with y itself.
        gives_level: give the model −γ of every item as the entry `key`_log_snr, for networks that take several noise levels.

    Shapes: x (B, *space.shape), y (B, *shape). Costs are those of `model`, nats.
    Raises DiffusionalError for γ that is not finite, and for a condition without `key` or of another shape.

    >>> from diffusional import Discrete, likelihood
    >>> from diffusional.models.direct import DirectModel
    >>> inner = DirectModel(torch.nn.Linear(2, 6), likelihood.NetworkLevels(Discrete((3,), 2)))
    >>> model = Renoised(inner, gamma=-2.0, shape=(2,), key="latent")
    >>> model.elbo(torch.ones(4, 3), torch.Generator().manual_seed(0), {"latent": torch.zeros(4, 2)}).nelbo.shape
    torch.Size([4])
    """

    def __init__(
        self,
        model: LatentVariableModel,
        gamma: float,
        shape: tuple[int, ...],
        key: str = "low",
        rescaled: bool = False,
        gives_level: bool = False,
    ) -> None:
        super().__init__()
        if not math.isfinite(gamma):
            raise DiffusionalError(
                f"expected gamma, the noise level −log SNR of the condition, to be finite, got {gamma}"
            )
        self.model, self.gamma, self.shape, self.key = model, float(gamma), tuple(shape), key
        self.rescaled, self.gives_level = rescaled, gives_level
        self.classes, self.condition_form = model.classes, model.condition_form

    @property
    def space(self) -> Space:
        return self.model.space

    @property
    def only_reconstructs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.only_reconstructs

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(n,): ε of ỹ, then the noise of the model."""
        return (self.drawn + math.prod(self.model.noise_shape),)

    @property
    def drawn(self) -> int:
        """Number of standard normal numbers in one ỹ."""
        return math.prod(self.shape)

    @property
    def evaluations(self) -> int:
        return self.model.evaluations

    @property
    def steps(self) -> int | None:
        return self.model.steps

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        return self.model.gamma_at(edges)

    def regrid(self, steps: int | None) -> "Renoised":
        """Return the model with another T of `model`."""
        return self._around(self.model.regrid(steps))

    def guided(
        self,
        weight: float,
        threshold: Any = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
    ) -> "Renoised":
        """Return the same model with guidance of `model`, MATH (26): both of its predictions are given the same ỹ if `kept` has its name."""
        return self._around(self.model.guided(weight, threshold, rescale, null, kept))

    def _around(self, model: LatentVariableModel) -> "Renoised":
        return Renoised(model, self.gamma, self.shape, self.key, self.rescaled, self.gives_level)

    def visited(self) -> "Chain | None":
        """Return the levels of `model`, visited with a ỹ drawn at every visit; None for a model without levels."""
        over = self.model.visited()
        return None if over is None else RenoisedChain(self, over)

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        return self.model.extra(x)

    def identity(self) -> list[Any]:
        """Return what the costs depend on besides the tensors of the model, as JSON values."""
        own = [type(self).__name__, self.gamma, self.key, self.rescaled, self.gives_level]
        return [*own, *identity_of(self.model)]

    def noised(self, condition: Condition | None, noise: Tensor) -> Condition:
        """Return the condition with ỹ = α y + σ ε instead of y, for ε = `noise` (B, `drawn`)."""
        y = condition.get(self.key) if isinstance(condition, Mapping) else condition
        if y is None or tuple(y.shape[1:]) != self.shape:
            given = "no condition" if condition is None else "none" if y is None else str(tuple(y.shape))
            raise DiffusionalError(
                f"expected a condition {self.key!r} of shape (B, {', '.join(map(str, self.shape))}) to be noised, got {given}; pass "
                f"condition={{{self.key!r}: …}}"
            )
        level = torch.tensor(self.gamma, dtype=torch.float64)
        drawn = noise.reshape(len(y), *self.shape)
        return self.given(alpha(level).to(y) * y + sigma(level).to(y) * drawn.to(y), condition)

    def given(self, noised: Tensor, condition: Condition | None) -> Condition:
        """Return the condition of `model` for a ỹ (B, *shape) that is already noised, such as the z_s of another diffusion."""
        if self.rescaled:
            noised = noised / alpha(torch.tensor(self.gamma, dtype=torch.float64)).to(noised)
        form = self.condition_form
        joint = form is not None and form.kind == "joint"
        alone = not isinstance(condition, Mapping) or (form is not None and len(condition) == 1)
        if alone and not joint and not self.gives_level:
            return noised  # the network of a config takes one tensor, unless it takes c as well
        out = dict(condition) if isinstance(condition, Mapping) else {}
        out[self.key] = noised
        if self.gives_level:
            out[f"{self.key}_log_snr"] = noised.new_full((len(noised),), -self.gamma)
        return out

    def terms(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return the ledger of `model` for one ỹ, from `noise` (B, *noise_shape)."""
        if noise.shape != (len(x), *self.noise_shape):
            raise DiffusionalError(f"expected noise of shape {(len(x), *self.noise_shape)}, got {tuple(noise.shape)}")
        check_condition(condition, len(x))
        c = self.noised(condition, noise[:, : self.drawn])
        return terms_of(self.model, x, noise[:, self.drawn :], c)

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        check_condition(condition, len(x))
        drawn = x.new_empty(len(x), self.drawn).normal_(generator=generator)
        return self.model.elbo(x, generator, self.noised(condition, drawn))

    def log_weight(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """Return ln p(x, latents|ỹ)/q (B,) for one ỹ ~ q(ỹ|y), nats: the expectation of its exponential is p(x|y)."""
        if noise.shape != (len(x), *self.noise_shape):
            raise DiffusionalError(f"expected noise of shape {(len(x), *self.noise_shape)}, got {tuple(noise.shape)}")
        return self.walked_log_weight(x, served(noise), condition)

    def walked_log_weight(self, x: Batch, noise: Noise, condition: Condition | None = None) -> PerItem:
        check_condition(condition, len(x))
        return self.model.walked_log_weight(x, noise, self.noised(condition, noise((self.drawn,))))

    def check_log_weight(self) -> None:
        self.model.check_log_weight()

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves of `model` for a ỹ that is popped first, and pushed by the same q(ỹ|y) in the end: it costs nothing."""
        name = f"{prefix}noised"

        def noise(known: Known) -> Gaussian:
            given = condition(known)
            y = given[self.key] if isinstance(given, Mapping) else given
            if y is None:
                raise DiffusionalError(f"expected a condition {self.key!r} to be noised, got none")
            level = torch.tensor(self.gamma, dtype=torch.float64)
            return Gaussian(alpha(level).to(y) * y, nn.functional.logsigmoid(level).to(y).expand_as(y))

        inner = self.model.moves(x, prefix, lambda known: self.given(known[name], condition(known)))
        std = float(sigma(torch.tensor(self.gamma, dtype=torch.float64)))
        return [Move(name, noise, pops=True, finest=std), *inner, Move(name, noise)]

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return ε of ỹ as "condition_noise", and what `model.draw` returns."""
        return self.objective_draw("elbo", x, sampler, generator, n)

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of `model` for one ỹ per item."""
        return self.objective_costs("elbo", x, draws, condition)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Those of `model`."""
        return self.model.objectives

    def objective_draw(
        self,
        objective: str,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return ε of ỹ as "condition_noise", and what `model.objective_draw` returns."""
        drawn = x.new_empty(len(x) if n is None else n, self.drawn).normal_(generator=generator)
        return {"condition_noise": drawn} | self.model.objective_draw(objective, x, sampler, generator, n)

    def objective_costs(
        self, objective: str, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None
    ) -> Costs:
        """Return the costs of an objective of `model` for one ỹ per item."""
        inner = {name: value for name, value in draws.items() if name != "condition_noise"}
        return self.model.objective_costs(objective, x, inner, self.noised(condition, draws["condition_noise"]))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x ~ p(x|ỹ), ỹ ~ q(ỹ|y), for the y of the condition (n, *shape)."""
        return self.model.sample(n, generator, self.drawn_given(n, generator, condition))

    def drawn_given(self, n: int, generator: torch.Generator | None, condition: Condition | None) -> Condition:
        """Return the condition of `model` for n samples, with ỹ ~ q(ỹ|y) instead of y."""
        check_condition(condition, n)
        y = condition.get(self.key) if isinstance(condition, Mapping) else condition
        like = torch.empty(0) if y is None else y
        drawn = torch.empty(n, self.drawn, dtype=like.dtype, device=like.device).normal_(generator=generator)
        return self.noised(condition, drawn)


class RenoisedChain(VisitedChain):
    """The levels of the model of a `Renoised`, as costs of x given y: the noise of a visit is ε of ỹ, then that of the level."""

    def __init__(self, model: Renoised, over: Chain) -> None:
        super().__init__(model, over)
        self.decoder_parts, self.layer_parts = over.decoder_parts, over.layer_parts
        self.looked, self.further = over.looked, over.further

    model: Renoised  # pyright: ignore[reportIncompatibleVariableOverride]
    over: Chain  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def decodes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.over.decodes

    @property
    def decoder_uses_network(self) -> bool:
        return self.over.decoder_uses_network

    @property
    def visit_shape(self) -> tuple[int, ...]:
        return (self.model.drawn + math.prod(self.over.visit_shape),)

    def identity(self) -> list[Any]:
        model = self.model
        return [type(model).__name__, model.gamma, model.key, model.rescaled, model.gives_level, *self.over.identity()]

    def inner(self) -> tuple[Chain, int, int]:
        return self.over, 0, self.model.drawn

    def prior(self, x: Batch) -> PerItem:
        return self.over.prior(x)

    def _parted(self, noise: Tensor, condition: Condition | None) -> tuple[Tensor, Condition | None]:
        """Return the noise of the level and the condition with ỹ. A decoder without network is drawn without a condition."""
        own = noise[:, self.model.drawn :].reshape(-1, *self.over.visit_shape)
        if condition is None and not self.decoder_uses_network:
            return own, None
        return own, self.model.noised(condition, noise[:, : self.model.drawn])

    def level_kl(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        own = noise[:, self.model.drawn :].reshape(-1, *self.over.visit_shape)
        return self.over.level_kl(x, level, own, self.model.noised(condition, noise[:, : self.model.drawn]))

    def reconstruction(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        own, c = self._parted(noise, condition)
        return self.over.reconstruction(x, own, c)

    @property
    def positioned(self) -> bool:
        """Whether the latents of the model inside have the positions of x."""
        return self.over.positioned

    def reconstruction_map(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        own, c = self._parted(noise, condition)
        return self.over.reconstruction_map(x, own, c)

    def kl_map(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        own = noise[:, self.model.drawn :].reshape(-1, *self.over.visit_shape)
        return self.over.kl_map(x, level, own, self.model.noised(condition, noise[:, : self.model.drawn]))

    def prior_map(self, x: Batch) -> Batch:
        return self.over.prior_map(x)

    def decoder_costs(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        own, c = self._parted(noise, condition)
        return self.over.decoder_costs(x, own, c)

    def look(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        own, c = self._parted(noise, condition)
        return self.over.look(x, own, c)

    def beside(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        own, c = self._parted(noise, condition)
        return self.over.beside(x, own, c)


def terms_of(model: LatentVariableModel, x: Tensor, noise: Tensor, condition: Condition | None) -> Ledger:
    """Return `model.terms` for noise (B, n) whose numbers are those of `noise_shape` in order: that of a chain begins with T.

    >>> from diffusional.exact import Gaussian
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=3))
    >>> world = Gaussian(torch.zeros(2), torch.eye(2))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))
    >>> terms_of(model, torch.zeros(4, 2), torch.zeros(4, 6), None).kl.shape
    torch.Size([4, 2])
    """
    shaped = noise.reshape(len(x), *model.noise_shape)
    if model.visited() is model:
        shaped = shaped.transpose(0, 1).contiguous()
    return model.terms(x, shaped, condition)


def identity_of(model: LatentVariableModel) -> list[Any]:
    """Return what the costs of a model depend on besides its tensors, as JSON values: its type, and its `identity` if it has one.

    >>> from diffusional.exact import Gaussian
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=3))
    >>> world = Gaussian(torch.zeros(2), torch.eye(2))
    >>> identity_of(DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,)))))[0]
    'posterior'
    """
    chain = model.visited()
    named = chain if chain is not None else model
    own = getattr(named, "identity", None)
    return [type(model).__name__] if own is None else own()
