"""What all composite models share: the joint ledger of their stages, losses, and sampling stage by stage."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel, Noise, served
from diffusional.models.chain import Chain
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.models.renoised import Renoised, identity_of, terms_of
from diffusional.models.stage_chain import StageChain
from diffusional.models.tail import ChainTail
from diffusional.shapes import Batch, PerItem
from diffusional.space import Space
from diffusional.timesteps import TimestepSampler


class Composite(LatentVariableModel):
    """Several stages with a joint bound, MATH (28)–(30). Use one of its subclasses, or define `variable` or `beside`, and `given` and `generate`.

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

    key: str = "low"
    """The entry of a stage's condition with the variable of the stage before it."""

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

    def block(self, name: str) -> int | None:
        """Return the side of the block of pixels of x that a position of a stage's variable stands for: by default 1 for the last stage, and
        None for others, such as latents, whose positions are not pixels.
        """
        return 1 if self.stages[name] is self.last else None

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
            form = getattr(model, "condition_form", None)
            return {key: value} if form is None or form.kind == "joint" else value
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

    # Importance weights, MATH (32): those of the stages, along one path.

    def log_weight(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """Return ln p(x, latents)/q(latents|x) (B,), nats, of all stages along one path, for noise (B, *noise_shape). The expectation of its
        exponential is p(x), or at most p(x) for a cascade (`Cascade`).
        """
        if noise.shape != (len(x), *self.noise_shape):
            raise DiffusionalError(f"expected noise of shape {(len(x), *self.noise_shape)}, got {tuple(noise.shape)}")
        return self.walked_log_weight(x, served(noise), condition)

    def walked_log_weight(self, x: Batch, noise: Noise, condition: Condition | None = None) -> PerItem:
        """Return `log_weight` (B,) for noise that is drawn as the stages are walked, one after the other."""
        self.check_log_weight()
        self._checked(x, condition)
        shared, kept = noise((self.drawn,)), self.encoded(x)
        total = self._log_weight_of_variables(shared, kept, x)
        handed: Tensor | None = None
        for name, model in self.models():
            item, c = self.given(name, x, shared, condition, kept)
            if handed is not None:
                # The next stage is given the z_s of this path, not another draw of it.
                assert isinstance(model, Renoised)
                c, model = model.given(handed, self._with(name, self.key, handed, condition)), model.model
            handed = None
            if isinstance(model, ChainTail):
                ratios, handed = model.walk(item, noise, c)
                total = total - ratios.sum(1)
            else:
                total = total + model.walked_log_weight(item, noise, c).double()
        return total

    def _log_weight_of_variables(self, noise: Tensor, kept: tuple[Tensor, ...], x: Batch) -> PerItem:
        """Return −ln q (B,) of variables that are drawn from `noise` (B, `drawn`); 0 without any."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def check_log_weight(self) -> None:
        """Raise DiffusionalError for a stage without importance weights, such as a chain in continuous time."""
        if self.drawn and type(self)._log_weight_of_variables is Composite._log_weight_of_variables:
            raise self._no_weights()
        for _, model in self.models():
            inner = model.model if isinstance(model, Renoised) else model
            (inner.over if isinstance(inner, ChainTail) else inner).check_log_weight()

    # Coding by bits back, MATH (33).

    def popped(self, name: str, x: str) -> Move | None:
        """Return the move that pops the variable of a stage, under its name, if it is a latent of x such as y ~ q(y|x); None for a function of
        x.
        """
        return None

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves of the stages, each by its own: what they are given is popped first, and the last stage is pushed first."""
        pops, stages = list[Move](), list[list[Move]]()
        before, handed = "", ""
        for name, model in self.models():
            given = self._given_in_coding(name, model, before, handed, condition)
            inner = model.model if handed and isinstance(model, Renoised) else model
            handed, before, own = "", x if model is self.last else name, f"{prefix}{name}."
            if isinstance(inner, ChainTail):
                pops.append(inner.over.first_move(inner.level, own, self._variable_of(name, x)))
                handed = pops[-1].name
                stages.append(inner.over.moves_after(inner.level, own, given))
                continue
            pop = self.popped(name, x)
            pops += [] if pop is None else [pop]
            stages.append(inner.moves(before, own, given))
        return [*pops, *(move for stage in stages[::-1] for move in stage)]

    def _variable_of(self, name: str, x: str) -> Callable[[Known], Tensor]:
        return lambda known: self.variable(name, known[x], self.encoded(known[x]))

    def _given_in_coding(
        self, name: str, model: LatentVariableModel, before: str, handed: str, condition: Given
    ) -> Given:
        """Return the condition of a stage for the variable `before` of the stage before it, or the latent `handed` by it."""
        if handed:
            assert isinstance(model, Renoised)

            def noised(known: Known) -> Condition:
                z = known[handed]
                return model.given(z, self._with(name, self.key, z, condition(known)))

            return noised
        if before:
            return lambda known: self._with(name, self.key, known[before], condition(known))
        return lambda known: self._own(name, condition(known))

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

    def _like(self, stages: Mapping[str, LatentVariableModel]) -> "Composite":
        """Return the same system with other stages of the same names and variables. Each subclass defines it."""
        raise DiffusionalError(
            f"expected {type(self).__name__} to define _like, which returns it with other stages; it does not"
        )

    def guided(
        self,
        weight: float,
        threshold: Any = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
        stages: Collection[str] | None = None,
    ) -> "Composite":
        """Return the system with classifier-free guidance of some stages, MATH (26): another system, with a bound of its own. All tensors are
        shared.

        A stage that takes c besides the variable of the stage before it is guided by c, and is given the variable in both predictions. A stage
        that takes only the variable is guided by the variable. For stages with different weights, call `guided` once for each.

        Args:
            weight, threshold, rescale, null, kept: those of `df.Guided`, for every one of these stages.
            stages: names of the stages; by default those that take c (`conditional`).

        Raises DiffusionalError for unknown stages, for a system none of whose stages takes a condition, and as `df.Guided` does.
        """
        wanted = self.conditional if stages is None else (stages,) if isinstance(stages, str) else tuple(stages)
        unknown = [name for name in wanted if name not in self.stages]
        if unknown or not wanted:
            raise DiffusionalError(
                f"expected stages to guide among {', '.join(self.stages)}, got {', '.join(unknown) or 'none: no stage takes a condition'}"
            )
        first, made = next(iter(self.stages)), dict(self.models())
        for name in wanted:
            link = self._link if name != first and name in self.conditional and null is None else ()
            made[name] = made[name].guided(weight, threshold, rescale, null, (*link, *kept))
        return self._like(made)

    @property
    def _link(self) -> tuple[str, ...]:
        """Names of the entries of a stage's condition with the variable of the stage before it and its noise level."""
        key = getattr(self, "key", None)
        return () if key is None else (key, f"{key}_log_snr")

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

    @property
    def hands_over(self) -> bool:
        """Whether later stages are given a latent of the stage before, instead of its variable."""
        return False

    def sampled_by(
        self, name: str, before: Tensor, generator: torch.Generator | None, condition: Condition | None
    ) -> tuple[LatentVariableModel, Condition | None]:
        """Return the model that samples the variable of a stage after the first, and the condition that it is given.

        Args:
            before: samples (n, …) of the stage before, as `sample_stages` returns them. They are noised here, if the stage takes a noisy variable.
            condition: c of the system.
        """
        model, c = self.stages[name], self._with(name, self.key, before, condition)
        assert isinstance(model, LatentVariableModel)
        if not isinstance(model, Renoised):
            return model, c
        given = model.given(before, c) if self.hands_over else model.drawn_given(len(before), generator, c)
        return model.model, given

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
