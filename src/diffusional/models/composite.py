"""Systems of several models with one bound on ln p(x): cascades and frozen encoders, MATH (28)–(30).

A composite has *stages*, each a model of its own variable, a function of x or drawn from a frozen posterior, given the variable of the stage
before it and the condition c. Its ledger joins those of the stages, in nats of x:

    Cascade          y_1 = d_1(x), y_2 = d_2(x), …, x, all but the last quantised:
                     −ln p(x|c) ≤ NELBO(y_1|c) + NELBO(y_2|y_1, c) + … + NELBO(x|y_K, c)                              MATH (29)
    FrozenEncoder    a deterministic encoder f: the latents z_1 … z_T of a diffusion of f(x), and x given z_1:
                     −ln p(x|c) ≤ Σ_{t<T} KL_t + KL_T + E NELBO(x|z_1, c)                                             MATH (28)
    FrozenPosterior  a stochastic encoder q(y|x), as of a VAE:
                     −ln p(x|c) ≤ E [NELBO(x|y, c) + NELBO(y|c)] − E H[q(y|x)]                                        MATH (28)

Each is the bound of one generative model, which `sample` samples. A deterministic y = f(x) that is real-valued has no mass and its density is
not that of x, so that −ln p(f(x)) cannot be a cost: a cascade needs quantised variables, and a frozen encoder hands z_1 over, not f(x).
An evaluation to a target visits the levels of all stages, at one network evaluation a visit (stage_chain.py).
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.forward import diffuse
from diffusional.gaussian import Gaussian
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel
from diffusional.models.calls import call
from diffusional.models.chain import Chain
from diffusional.models.denoiser import network_dtype
from diffusional.models.renoised import Renoised, identity_of, terms_of
from diffusional.models.stage_chain import StageChain
from diffusional.models.tail import ChainTail
from diffusional.models.vae import bounded
from diffusional.shapes import Batch
from diffusional.space import Continuous, Discrete, Space
from diffusional.timesteps import TimestepSampler

# γ of a handed latent and of the network that takes it may differ by rounding.
_GAMMA = 1e-6


class Downscale(nn.Module):
    """The mean of every block of factor × factor pixels, rounded to the nearest of the levels of a smaller image: exact integer arithmetic.

    Args:
        space: of x, Discrete((C, H, W), levels).
        factor: H and W must be multiples of it.
        levels: of the result; by default those of x.

    x (B, C, H, W) → y (B, C, H/factor, W/factor), encoded by `low`.

    >>> down = Downscale(Discrete((1, 2, 2), levels=17), factor=2)
    >>> down.low.decode(down(Discrete((1, 2, 2), 17).encode(torch.tensor([[[[16, 16], [0, 1]]]])))).flatten()
    tensor([8])
    """

    def __init__(self, space: Space, factor: int, levels: int | None = None) -> None:
        super().__init__()
        if not isinstance(space, Discrete) or len(space.shape) != 3:
            raise DiffusionalError(f"expected a discrete space of images (C, H, W) to downscale, got {space}")
        channels, height, width = space.shape
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or height % factor or width % factor:
            raise DiffusionalError(
                f"expected factor to be a positive integer that divides the sides {height} and {width} of the images, got {factor}"
            )
        self.space, self.factor = space, factor
        self.low = Discrete(
            (channels, height // factor, width // factor), levels or space.levels, space.low, space.high
        )

    def forward(self, x: Tensor) -> Tensor:
        f, most, least = self.factor, self.space.levels - 1, self.low.levels - 1
        blocks = self.space.index(x).unflatten(-1, (-1, f)).unflatten(-3, (-1, f)).sum((-3, -1))
        # The nearest level to sum/f² · (K' − 1)/(K − 1), halves up.
        index = (2 * blocks * least + f * f * most) // (2 * f * f * most)
        return self.low.encode(index, x.dtype)


class Composite(LatentVariableModel):
    """Several stages with a joint bound. Use one of its subclasses, or define `variable` or `beside`, and `given` and `generate`.

    Attributes:
        stages: the models by name, in the order in which they are sampled; the last is a model of x.

    Shapes: x (B, *space.shape), encoded. The ledger is that of `Ledger.join`: its terms are "stage.term".
    """

    drawn: int = 0
    """Number of standard normal numbers per item from which the stages' variables are drawn; 0 if they are functions of x."""

    encodes: bool = False
    """Whether there is an encoder, whose output an evaluation keeps for every item."""

    further: tuple[str, ...] = ()
    """Names of the costs that `beside` returns."""

    def __init__(self, stages: Mapping[str, LatentVariableModel], conditional: Collection[str] | None = None) -> None:
        super().__init__()
        if len(stages) < 2:
            raise DiffusionalError(f"expected at least two stages, got {', '.join(stages) or 'none'}")
        for name, stage in stages.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise DiffusionalError(
                    f"expected the name of a stage to be a word such as 'base', got {name!r}; rename it"
                )
            if isinstance(stage, Composite) or not isinstance(stage, LatentVariableModel):
                raise DiffusionalError(
                    f"expected stage {name!r} to be a model such as a DiffusionModel or a VAE, got a {type(stage).__name__}"
                    f"{'; list its stages' if isinstance(stage, Composite) else ''}"
                )
        unknown = [name for name in conditional or () if name not in stages]
        if unknown:
            raise DiffusionalError(
                f"expected conditional to name stages among {', '.join(stages)}, got {', '.join(map(str, unknown))}"
            )
        self.stages = nn.ModuleDict(stages)
        self.conditional = tuple(stages) if conditional is None else tuple(conditional)
        self.classes = next((model.classes for model in stages.values() if model.classes), ())

    @property
    def last(self) -> LatentVariableModel:
        """The stage that is a model of x."""
        *_, model = self.stages.values()
        assert isinstance(model, LatentVariableModel)
        return model

    @property
    def space(self) -> Space:
        return self.last.space

    # What a subclass defines.

    def fixed(self, name: str) -> bool:
        """Return whether a stage's variable is a function of x, so that its KL_T is known exactly; by default it is."""
        return True

    def encoded(self, x: Batch) -> tuple[Tensor, ...]:
        """Return the encoder's output for items x, tensors (B, …), from which `variable` and `given` follow; by default none."""
        return ()

    def variable(self, name: str, x: Batch, kept: tuple[Tensor, ...] = ()) -> Tensor:
        """Return the variable of a stage whose variable is a function of x, for `kept` = `encoded(x)`: by default x itself."""
        return x

    @abstractmethod
    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        """Return a stage's items and its condition, for `noise` (B, `drawn`) and `kept` = `encoded(x)`."""

    def beside(self, x: Batch, noise: Tensor, kept: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return further costs (B,) by the names in `further`, such as "prior.encoder_entropy"; by default {}."""
        return {}

    @abstractmethod
    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, samples of the stage's variable) for every stage, in order; the last are samples x."""

    # Conditions of stages.

    def _with(self, name: str, key: str, value: Tensor, condition: Condition | None) -> Condition:
        """Return the condition of a stage: `value` under `key`, and c, if the stage takes it."""
        own, model = self._own(name, condition), self.stages[name]
        if own is None:
            # The network of a config takes one tensor.
            return {key: value} if getattr(model, "condition_form", None) is None else value
        named = {"condition": own} if isinstance(own, Tensor) else dict(own)
        if key in named:
            raise DiffusionalError(
                f"expected a condition without the entry {key!r}, under which stage {name!r} gets the variable of the stage before it; rename "
                "the entry"
            )
        return {key: value, **named}

    def _own(self, name: str, condition: Condition | None) -> Condition | None:
        return condition if name in self.conditional else None

    def _checked(self, x: Tensor, condition: Condition | None) -> None:
        self.space.check(x)
        check_condition(condition, len(x))
        if condition is not None and not self.conditional:
            raise DiffusionalError(
                f"a condition was given, but no stage of this {type(self).__name__} takes one; leave the condition out"
            )

    # The bound.

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(n,): the noise of the stages' variables, then that of every stage in order."""
        return (self.drawn + sum(self._numbers(model) for model in self.stages.values()),)

    @staticmethod
    def _numbers(model: nn.Module) -> int:
        assert isinstance(model, LatentVariableModel)
        return int(torch.Size(model.noise_shape).numel())

    @property
    def evaluations(self) -> int:
        """Number of network evaluations of one draw of `terms`, without the encoder's."""
        return sum(model.evaluations for model in self.stages.values())  # type: ignore[misc]

    def visited(self) -> Chain:
        """Return the levels of all stages, one after the other: every visit evaluates one network of one stage once."""
        return StageChain(self)

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        """Return {}: further costs are those of the stages."""
        return {}

    def _joined(self, ledgers: Mapping[str, Ledger], beside: Mapping[str, Tensor]) -> Ledger:
        """Join the ledgers of the stages in the units of x, MATH (30)."""
        whole = {}
        for name, ledger in ledgers.items():
            own = {full.partition(".")[2]: cost for full, cost in beside.items() if full.partition(".")[0] == name}
            extra = {**ledger.extra, **own}
            whole[name] = Ledger(ledger.reconstruction, ledger.kl, ledger.prior, ledger.dimensions, extra)
        return Ledger.join(whole, self.space.dimensions)

    def terms(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return the joint ledger with one draw of every cost, from `noise` (B, *noise_shape). All stages in discrete time only."""
        self._checked(x, condition)
        if noise.shape != (len(x), *self.noise_shape):
            raise DiffusionalError(f"expected noise of shape {(len(x), *self.noise_shape)}, got {tuple(noise.shape)}")
        shared, kept, begin = noise[:, : self.drawn], self.encoded(x), self.drawn
        ledgers = {}
        for name, model in self.models():
            numbers = self._numbers(model)
            item, c = self.given(name, x, shared, condition, kept)
            ledgers[name] = terms_of(model, item, noise[:, begin : begin + numbers], c)
            begin += numbers
        return self._joined(ledgers, self.beside(x, shared, kept))

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """Return the joint ledger with one draw of every cost."""
        self._checked(x, condition)
        shared, kept = x.new_empty(len(x), self.drawn).normal_(generator=generator), self.encoded(x)
        ledgers = {}
        for name, model in self.models():
            item, c = self.given(name, x, shared, condition, kept)
            ledgers[name] = model.elbo(item, generator, c)
        return self._joined(ledgers, self.beside(x, shared, kept))

    def models(self) -> Iterator[tuple[str, LatentVariableModel]]:
        """Yield the name and the model of every stage, in order."""
        for name, model in self.stages.items():
            assert isinstance(model, LatentVariableModel)
            yield name, model

    # Training: the stages at once. Each can also be trained by itself, which is what a run does.

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the noise of the stages' variables, "noise", and what each stage draws as "stage.…", with stratified levels."""
        n = len(x) if n is None else n
        out = {"noise": x.new_empty(n, self.drawn).normal_(generator=generator)}
        for name, model in self.models():
            like = x.new_empty(1, *model.space.shape)
            out |= {f"{name}.{key}": value for key, value in model.draw(like, None, generator, n).items()}
        return out

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of all stages by "stage.term", at one network evaluation of each."""
        kept, terms = self.encoded(x), dict[str, Tensor]()
        for name, model in self.models():
            item, c = self.given(name, x, draws["noise"], condition, kept)
            mark = f"{name}."
            own = {key.removeprefix(mark): value for key, value in draws.items() if key.startswith(mark)}
            terms |= {f"{name}.{term}": cost for term, cost in model.costs(item, own, c).terms.items()}
        none = torch.zeros(0)
        return Costs(terms | self.beside(x, draws["noise"], kept), none, none)

    def identity(self) -> list[Any]:
        """Return what the costs depend on besides the tensors of the stages, as JSON values."""
        return [
            type(self).__name__,
            list(self.conditional),
            *([name, *identity_of(model)] for name, model in self.models()),
        ]

    def described(self) -> dict[str, Any]:
        """Return "stages" of the provenance: T, dimensions and levels of every stage by name."""
        about = {
            name: {"model": type(model).__name__, "latents": model.steps, "space": model.space.to_dict()}
            for name, model in self.models()
        }
        return {"stages": about}

    # Sampling.

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x (n, *space.shape) of the joint model."""
        *_, (_, x) = self.generate(n, generator, condition)
        return x

    def sample_stages(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> dict[str, Tensor]:
        """Return n samples of every stage's variable by name, row by row from the same draw; the last are samples x.

        Of a stage that hands over a latent, these are its z_s.
        """
        with torch.no_grad():
            return dict(self.generate(n, generator, condition))

    def _check_sampled(self, n: int, condition: Condition | None) -> None:
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)

    def _meets(self, name: str, value: Tensor, space: Space, what: str) -> None:
        """Raise DiffusionalError unless a variable of some items, `value`, is one of the stage's items."""
        try:
            space.check(value)
        except DiffusionalError as error:
            raise DiffusionalError(
                f"stages do not meet: {what} must be items of stage {name!r}, a model over {space}, but {error}. Give stages and functions "
                "whose shapes and levels agree"
            ) from error


def _some_items(space: Space) -> Tensor:
    """Return two items of a space, float32: its lowest and highest levels, or zeros and ones."""
    if isinstance(space, Discrete):
        most = torch.full((1, *space.shape), space.levels - 1)
        return space.encode(torch.cat([0 * most, most]))
    return torch.cat([torch.zeros(1, *space.shape), torch.ones(1, *space.shape)])


def linked(
    model: LatentVariableModel,
    gamma: float,
    shape: tuple[int, ...],
    key: str,
    name: str,
    rescaled: bool,
    gives_level: bool,
) -> Renoised:
    """Return a stage whose condition is noised to γ: the model itself if it is a `Renoised` of this noise level, otherwise one around it.

    Raises DiffusionalError for a `Renoised` of another noise level, shape or key.
    """
    if not isinstance(model, Renoised):
        return Renoised(model, gamma, shape, key, rescaled, gives_level)
    if abs(model.gamma - gamma) > _GAMMA or model.shape != shape or model.key != key:
        raise DiffusionalError(
            f"stages do not meet: stage {name!r} takes a condition {model.key!r} of shape {model.shape} noised to γ = {model.gamma:g}, and is "
            f"given {key!r} of shape {shape} at γ = {gamma:g}; give both the same noise level"
        )
    return model


class Cascade(Composite):
    """p(x|c) ≥ p(d_1(x)|c) p(d_2(x)|d_1(x), c) … p(x|d_K(x), c), MATH (29).

    Args:
        stages: the models by name, from the lowest resolution to x. A stage after the first gets the variable of the stage before it as the
            entry `key` of its condition, besides c.
        downscale: for every stage but the last, the module d from x to its variable. By default `Downscale` between spaces of images.
        renoise: γ of noise-conditioning augmentation, MATH (29a): a finished y is noised to N(α y, σ² I) before the next stage gets it.
            Stages after the first are then `Renoised`, and other models are made so.
        handover: the latent z_s at which every diffusion but the last stops, an int s or one for each, MATH (29b): the next stage is given z_s
            instead of y. Stages but the last are chains, and no density or mass of y is among the costs.
        conditional: names of the stages that take c; by default all.
        key: the entry of a stage's condition with the variable of the stage before it.
        rescaled, gives_level: as for `Renoised`.

    Raises DiffusionalError if stages do not meet: a variable that is not an item of the stage, a real-valued low resolution without
    `handover`, or a stage that takes another noise level than it is given.

    >>> from diffusional import Bits, BinomialDiffusion
    >>> class Coins(Chain):
    ...     def __init__(self, side):
    ...         super().__init__()
    ...         self.space, self.process, self.n = Discrete((1, side, side), 2), BinomialDiffusion.constant(3), side
    ...     def step(self, z_next, t, condition=None): return Bits(0 * z_next.double())
    ...     def last(self, n): return Bits(torch.zeros(n, 1, self.n, self.n).double())
    ...     def decode(self, z_1, condition=None): return Bits(0 * z_1.double())
    >>> cascade = Cascade({"base": Coins(1), "upsampler": Coins(2)})
    >>> ledger = cascade.elbo(torch.ones(3, 1, 2, 2), torch.Generator().manual_seed(0))
    >>> {name: tuple(kl.shape) for name, kl in ledger.blocks.items()}
    {'base.kl': (3, 2), 'upsampler.kl': (3, 2)}
    """

    def __init__(
        self,
        stages: Mapping[str, LatentVariableModel],
        downscale: Sequence[nn.Module] | None = None,
        *,
        renoise: float | None = None,
        handover: int | Sequence[int] | None = None,
        conditional: Collection[str] | None = None,
        key: str = "low",
        rescaled: bool = False,
        gives_level: bool = False,
    ) -> None:
        names = list(stages)
        if renoise is not None and handover is not None:
            raise DiffusionalError(
                f"renoise={renoise} and handover={handover} were given; expected one of them, or neither: they are different samplers"
            )
        levels = [handover] * (len(names) - 1) if isinstance(handover, int) else handover
        if levels is not None and len(levels) != len(names) - 1:
            raise DiffusionalError(
                f"expected handover to be one level, or {len(names) - 1} for all stages but the last, got {list(levels)}"
            )
        own, tail = dict(stages), None
        for i, name in enumerate(names):
            model, before = own[name], own[names[i - 1]] if i else None
            complete = model
            if levels is not None and i < len(levels):
                model = tail_of(model, levels[i])
            if before is not None and (renoise is not None or levels is not None):
                gamma = renoise if tail is None else tail.gamma
                assert gamma is not None
                if isinstance(complete, Renoised) and model is not complete:
                    linked(complete, gamma, before.space.shape, key, name, rescaled, gives_level)
                model = linked(model, gamma, before.space.shape, key, name, rescaled, gives_level)
            own[name] = model
            inner = model.model if isinstance(model, Renoised) else model
            tail = inner if isinstance(inner, ChainTail) else None
        super().__init__(own, conditional)
        self.renoise, self.handover, self.key = renoise, None if levels is None else tuple(levels), key
        if downscale is None:
            downscale = [_downscale(self.space, stages[name].space, name) for name in names[:-1]]
        if len(downscale) != len(names) - 1:
            raise DiffusionalError(
                f"expected {len(names) - 1} modules in downscale, one for every stage but the last, got {len(downscale)}"
            )
        self.downscale = nn.ModuleList(downscale)
        some = _some_items(self.space)
        for name, down in zip(names[:-1], downscale, strict=True):
            low = stages[name].space
            with torch.no_grad():
                found = down(some.to(network_dtype(down) or some.dtype))
            self._meets(name, found, low, "the low-resolution items")
            if levels is None and not isinstance(low, Discrete):
                raise DiffusionalError(
                    f"expected stage {name!r} to be over quantised, discrete items, got {low}: a real-valued function of x has a density where "
                    "the bound needs a mass. Quantise it, or give handover=…, the latent that the next stage gets"
                )

    def regrid(self, steps: int | None) -> "Cascade":
        """Return the same networks with another T of every stage, or in continuous time; all tensors are shared."""
        if self.handover is not None:
            raise DiffusionalError(
                f"steps={steps} was given, but a cascade that hands latents over has the noise levels of its T; leave steps out"
            )
        stages = {name: model.regrid(steps) for name, model in self.models()}
        return Cascade(stages, list(self.downscale), renoise=self.renoise, conditional=self.conditional, key=self.key)

    def variable(self, name: str, x: Batch, kept: tuple[Tensor, ...] = ()) -> Tensor:
        place = list(self.stages).index(name)
        return x if place == len(self.downscale) else self.downscale[place](x)

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        place, item = list(self.stages).index(name), self.variable(name, x)
        if not place:
            return item, self._own(name, condition)
        return item, self._with(name, self.key, self.downscale[place - 1](x), condition)

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        before: Tensor | None = None
        for name, model in self.models():
            if before is None:
                before = model.sample(n, generator, self._own(name, condition))
            else:
                before = self._next(name, model, before, n, generator, condition)
            yield name, before

    def _next(
        self,
        name: str,
        model: LatentVariableModel,
        before: Tensor,
        n: int,
        generator: torch.Generator | None,
        condition: Condition | None,
    ) -> Tensor:
        c = self._with(name, self.key, before, condition)
        if self.handover is None or not isinstance(model, Renoised):
            return model.sample(n, generator, c)
        return model.model.sample(n, generator, model.given(before, c))

    @torch.no_grad()
    def upsample(
        self,
        low: Tensor,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        stage: str | None = None,
    ) -> Tensor:
        """Return samples x (n, *space.shape) given items of the first stage, or of `stage`: super-resolution.

        Args:
            low: n encoded items (n, *shape) of that stage's space. They are noised as in sampling.

        Raises DiffusionalError for the last stage, and for items that are not of the stage's space.
        """
        names = list(self.stages)
        stage = names[0] if stage is None else stage
        if stage not in names[:-1]:
            raise DiffusionalError(f"expected stage to be one of {', '.join(names[:-1])}, got {stage!r}")
        self._check_sampled(len(low), condition)
        model = self.stages[stage]
        assert isinstance(model, LatentVariableModel)
        model.space.check(low)
        before, clean = low, True
        for name in names[names.index(stage) + 1 :]:
            later = self.stages[name]
            assert isinstance(later, LatentVariableModel)
            if clean:
                before = later.sample(len(low), generator, self._with(name, self.key, before, condition))
            else:
                before = self._next(name, later, before, len(low), generator, condition)
            clean = self.handover is None
        return before


def tail_of(model: LatentVariableModel, level: int) -> LatentVariableModel:
    """Return a stage that hands z_s over: the latents from z_s on of a chain, or of the chain of a `Renoised`; one that does so already is
    returned as it is.
    """
    if isinstance(model, Renoised):
        return Renoised(
            tail_of(model.model, level), model.gamma, model.shape, model.key, model.rescaled, model.gives_level
        )
    if isinstance(model, ChainTail):
        if model.level != level:
            raise DiffusionalError(
                f"expected a stage that hands z_{level} over, got one that hands z_{model.level} over"
            )
        return model
    return ChainTail(model, level)  # type: ignore[arg-type]


def _downscale(space: Space, low: Space, name: str) -> Downscale:
    """Return the default function from x to a variable over `low`."""
    if not isinstance(space, Discrete) or not isinstance(low, Discrete) or len(space.shape) != 3 or len(low.shape) != 3:
        raise DiffusionalError(
            f"expected downscale=…, the functions from x to the variables of the stages, since {space} and {low} of stage {name!r} are not both "
            "discrete images"
        )
    factor, rest = divmod(space.shape[1], low.shape[1])
    if rest or factor * low.shape[2] != space.shape[2] or low.shape[0] != space.shape[0]:
        raise DiffusionalError(
            f"stages do not meet: images {space.shape} are not a multiple of those of stage {name!r}, {low.shape}. Give sides that divide those "
            "of x, or downscale=…"
        )
    return Downscale(space, factor, low.levels)


class _Encoded(Composite):
    """A composite of a frozen encoder, a prior of its output, and a decoder. The encoder has no gradient, and stays in evaluation mode."""

    encodes = True

    def __init__(
        self,
        encoder: nn.Module,
        stages: Mapping[str, LatentVariableModel],
        conditional: Collection[str] | None,
        key: str,
    ) -> None:
        super().__init__(stages, conditional)
        if not isinstance(encoder, nn.Module):
            raise DiffusionalError(
                f"expected the encoder to be a torch.nn.Module, so that its weights are saved and hashed, got a {type(encoder).__name__}"
            )
        self.encoder, self.key = encoder.requires_grad_(False).eval(), key

    def train(self, mode: bool = True) -> "_Encoded":
        """Set the training mode of the stages; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _encode(self, x: Tensor, channels: int) -> Tensor:
        """Return the encoder's output, which must have `channels` times the channels of the prior's items."""
        with torch.no_grad():
            out = call(self.encoder, x, role="encoder")
        shape = self._latent_shape
        wanted = (len(x), channels * shape[0], *shape[1:])
        if tuple(out.shape) != wanted:
            raise DiffusionalError(
                f"stages do not meet: expected the encoder's output to have shape {wanted}, {channels} times the items of the prior, "
                f"{shape}, got {tuple(out.shape)}"
            )
        return out.to(x.dtype)

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        first = next(iter(self.stages.values()))
        assert isinstance(first, LatentVariableModel)
        return first.space.shape


class FrozenEncoder(_Encoded):
    """A frozen, deterministic encoder f, a diffusion of f(x), and a model of x given its z_s, MATH (28): the shape of unCLIP, and of latent
    diffusion whose autoencoder is taken as deterministic.

    The posterior is the diffusion of f(x), q(z_t|x) = N(α_t f(x), σ_t² I), and the generative model p(z_{s:T}|c) p(x|z_s, c):

        −ln p(x|c) ≤ E NELBO(x|z_s, c) + Σ_{s≤t<T} E KL_t + KL_T,

    with f(x) for the data in every KL. Neither an entropy of the encoder nor a density of f(x) appears: z_s is the latent. I(x; z_{s:T}) = I(f(x); z_s)
    is a constant of the training. A decoder that was trained with f(x) itself is charged for the noise of z_s.

    Args:
        encoder: module from x (B, *space.shape) to f(x) (B, *shape), which is frozen: a condition is not given to it.
        prior: a chain over `Continuous(shape)`, such as a DiffusionModel of f(x).
        decoder: a model of x that takes a condition with the entry `key`: a diffusion, a `DirectModel`, or a `Renoised` of γ_s.
        level: s; 1 by default. A prior that was trained for a range of γ can hand over any of its latents.
        conditional: names of the stages, "prior" and "decoder", that take c; by default both.
        rescaled: give the decoder z_s/α_s, as for a network that was trained with f(x).
        gives_level: give the decoder −γ_s as `key`_log_snr.

    Raises DiffusionalError if stages do not meet: an encoder whose output is not of the prior's shape, or a decoder of another noise level.

    >>> from diffusional import DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> from diffusional.exact import Gaussian as World
    >>> from diffusional.models.direct import DirectModel
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    >>> world = World(torch.zeros(1), torch.eye(1))
    >>> prior = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> decoder = DirectModel(nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
    >>> model = FrozenEncoder(nn.Linear(2, 1), prior, decoder)
    >>> ledger = model.elbo(torch.randn(3, 2), torch.Generator().manual_seed(0))
    >>> list(ledger.totals())
    ['prior.reconstruction', 'prior.kl', 'prior.prior', 'decoder.reconstruction', 'decoder.kl', 'decoder.prior', 'decoder.jacobian']
    """

    def __init__(
        self,
        encoder: nn.Module,
        prior: Chain,
        decoder: LatentVariableModel,
        *,
        level: int = 1,
        conditional: Collection[str] | None = None,
        key: str = "latent",
        rescaled: bool = False,
        gives_level: bool = False,
    ) -> None:
        tail = tail_of(prior, level)
        assert isinstance(tail, ChainTail)
        own = linked(decoder, tail.gamma, prior.space.shape, key, "decoder", rescaled, gives_level)
        super().__init__(encoder, {"prior": tail, "decoder": own}, conditional, key)
        if not isinstance(prior.space, Continuous):
            raise DiffusionalError(
                f"expected a prior over Continuous(…), the space of the encoder's output, got {prior.space}"
            )

    @property
    def _tail(self) -> ChainTail:
        tail = self.stages["prior"]
        assert isinstance(tail, ChainTail)
        return tail

    def regrid(self, steps: int | None) -> "FrozenEncoder":
        """Return the same networks with another T of the prior, and of the decoder if it has one; all tensors are shared.

        Raises DiffusionalError unless z_1 is handed over.
        """
        tail, decoder = self._tail.regrid(steps), self.last
        assert isinstance(decoder, Renoised)
        other = decoder.regrid(steps) if decoder.visited() is not None else decoder
        return FrozenEncoder(self.encoder, tail, other, conditional=self.conditional, key=self.key)

    def encoded(self, x: Batch) -> tuple[Tensor, ...]:
        return (self._encode(x, 1),)

    def variable(self, name: str, x: Batch, kept: tuple[Tensor, ...] = ()) -> Tensor:
        return kept[0] if name == "prior" else x

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        if name == "prior":
            return kept[0], self._own(name, condition)
        return x, self._with(name, self.key, kept[0], condition)

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        z = self._tail.sample(n, generator, self._own("prior", condition))
        yield "prior", z
        yield "decoder", self.decode(z, generator, condition)

    @torch.no_grad()
    def decode(self, z: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return samples x ~ p(x|z_s, c) for latents z_s (n, *shape), such as interpolations between those of two images."""
        decoder = self.last
        assert isinstance(decoder, Renoised)
        c = self._with("decoder", self.key, z, condition)
        return decoder.model.sample(len(z), generator, decoder.given(z, c))

    @torch.no_grad()
    def latents(self, x: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return z_s ~ q(z_s|x) (B, *shape) of items x: α_s f(x) + σ_s ε."""
        self.space.check(x)
        f = self._encode(x, 1)
        decoder = self.last
        assert isinstance(decoder, Renoised)
        return diffuse(
            f,
            torch.full((len(x),), decoder.gamma, dtype=torch.float64),
            torch.empty_like(f).normal_(generator=generator),
        )


class FrozenPosterior(_Encoded):
    """A frozen, stochastic encoder q(y|x), a diffusion of y, and a model of x given y, MATH (28): latent diffusion whose autoencoder is a VAE.

        −ln p(x|c) ≤ E_{y ~ q(y|x)} [NELBO(x|y, c) + NELBO(y|c)] − H[q(y|x)].

    It is the bound of a VAE with a diffusion prior, whose encoder and decoder need not have been trained with it. −H[q(y|x)] is the cost
    "prior.encoder_entropy", and −ln p(y|z_1) is "prior.reconstruction".

    Args:
        encoder: module from x to (B, 2C, *rest), the mean and ln σ of q(y|x) for y of shape (C, *rest); ln σ is clamped to [−15, 10]. It is frozen.
        prior: a chain over `Continuous(shape)`.
        decoder: a model of x that takes a condition with the entry `key`, such as a `DirectModel`.
        conditional, key: as for `FrozenEncoder`.

    Raises DiffusionalError if stages do not meet.

    >>> from diffusional import DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> from diffusional.exact import Gaussian as World
    >>> from diffusional.models.direct import DirectModel
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    >>> world = World(torch.zeros(1), torch.eye(1))
    >>> prior = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> decoder = DirectModel(nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
    >>> model = FrozenPosterior(nn.Linear(2, 2), prior, decoder)
    >>> "prior.encoder_entropy" in model.elbo(torch.randn(3, 2), torch.Generator().manual_seed(0)).totals()
    True
    """

    further = ("prior.encoder_entropy",)

    def __init__(
        self,
        encoder: nn.Module,
        prior: Chain,
        decoder: LatentVariableModel,
        *,
        conditional: Collection[str] | None = None,
        key: str = "latent",
    ) -> None:
        super().__init__(encoder, {"prior": prior, "decoder": decoder}, conditional, key)
        if prior.space != Continuous(prior.space.shape):
            raise DiffusionalError(
                f"expected a prior over Continuous({prior.space.shape}), the space of the latent without a scale, got one over {prior.space}"
            )

    @property
    def drawn(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of dimensions of y."""
        return int(torch.Size(self._latent_shape).numel())

    def regrid(self, steps: int | None) -> "FrozenPosterior":
        """Return the same networks with another T of the prior, and of the decoder if it has one; all tensors are shared."""
        prior, decoder = self.stages["prior"], self.last
        assert isinstance(prior, Chain)
        other = prior.regrid(steps)
        assert isinstance(other, Chain)
        decoder = decoder.regrid(steps) if decoder.visited() is not None else decoder
        return FrozenPosterior(self.encoder, other, decoder, conditional=self.conditional, key=self.key)

    def fixed(self, name: str) -> bool:
        return name != "prior"

    def encoded(self, x: Batch) -> tuple[Tensor, ...]:
        mean, log_std = self._encode(x, 2).chunk(2, 1)
        q = bounded(mean, log_std)
        return q.mean, q.log_variance

    def posterior(self, x: Batch) -> Gaussian:
        """Return q(y|x)."""
        self.space.check(x)
        return Gaussian(*self.encoded(x))

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        y = Gaussian(*kept).sample(noise=noise.reshape(len(x), *self._latent_shape).to(x.dtype))
        if name == "prior":
            return y, self._own(name, condition)
        return x, self._with(name, self.key, y, condition)

    def beside(self, x: Batch, noise: Tensor, kept: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"prior.encoder_entropy": -Gaussian(*kept).entropy().double()}

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        prior = self.stages["prior"]
        assert isinstance(prior, LatentVariableModel)
        y = prior.sample(n, generator, self._own("prior", condition))
        yield "prior", y
        yield "decoder", self.last.sample(n, generator, self._with("decoder", self.key, y, condition))
