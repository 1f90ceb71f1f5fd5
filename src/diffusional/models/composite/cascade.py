"""Cascades: a model of a low resolution, then models of higher resolutions given the one before, MATH (29)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.models.base import LatentVariableModel
from diffusional.models.composite.base import Composite
from diffusional.models.composite.downscale import block_of, default_downscale, some_items
from diffusional.models.composite.links import linked, tail_of
from diffusional.models.denoiser import network_dtype
from diffusional.models.renoised import Renoised
from diffusional.models.tail import ChainTail
from diffusional.shapes import Batch
from diffusional.space import Discrete


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

    >>> from diffusional import Bits, BinomialDiffusion, Chain
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
            downscale = [default_downscale(self.space, stages[name].space, name) for name in names[:-1]]
        if len(downscale) != len(names) - 1:
            raise DiffusionalError(
                f"expected {len(names) - 1} modules in downscale, one for every stage but the last, got {len(downscale)}"
            )
        self.downscale = nn.ModuleList(downscale)
        some = some_items(self.space)
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
        return self._like({name: model.regrid(steps) for name, model in self.models()})

    def _like(self, stages: Mapping[str, LatentVariableModel]) -> "Cascade":
        return Cascade(
            stages,
            list(self.downscale),
            renoise=self.renoise,
            handover=self.handover,
            conditional=self.conditional,
            key=self.key,
        )

    def variable(self, name: str, x: Batch, kept: tuple[Tensor, ...] = ()) -> Tensor:
        place = list(self.stages).index(name)
        return x if place == len(self.downscale) else self.downscale[place](x)

    def block(self, name: str) -> int | None:
        """Return 1 for the last stage, the factor of a `Downscale` (or the product of several), and None for another function of x."""
        place = list(self.stages).index(name)
        return 1 if place == len(self.downscale) else block_of(self.downscale[place])

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        place, item = list(self.stages).index(name), self.variable(name, x)
        if not place:
            return item, self._own(name, condition)
        return item, self._with(name, self.key, self.downscale[place - 1](x), condition)

    def derived(self) -> Mapping[str, tuple[Discrete, Callable[[Tensor], Tensor]]]:
        """Return the low resolutions that are coded; a stage that hands z_s over codes none."""
        found = {}
        for (name, model), down in zip(self.models(), self.downscale, strict=False):
            if isinstance(model.space, Discrete) and self.handover is None:
                found[name] = (model.space, down)
        return found

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        before: Tensor | None = None
        for name, model in self.models():
            if before is None:
                before = model.sample(n, generator, self._own(name, condition))
            else:
                before = self._next(name, before, generator, condition)
            yield name, before

    @property
    def hands_over(self) -> bool:
        return self.handover is not None

    def _next(
        self, name: str, before: Tensor, generator: torch.Generator | None, condition: Condition | None
    ) -> Tensor:
        model, given = self.sampled_by(name, before, generator, condition)
        return model.sample(len(before), generator, given)

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
                before = self._next(name, before, generator, condition)
            clean = self.handover is None
        return before
