"""A chain of latents x → z_1 → … → z_T with a fixed posterior q, whatever its noise, and the model's own distributions p:

    p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T)                                                    MATH (2)
    NELBO = −E ln p(x|z_1) + Σ_{t<T} E KL[q(z_t|z_{t+1},x) ‖ p(z_t|z_{t+1})] + KL[q(z_T|x) ‖ p(z_T)]          MATH (8)

A family defines its forward process and three distributions: `step`, p(z_t|z_{t+1}); `last`, p(z_T); and `decode`, p(x|z_1). The costs,
ledgers, losses, samples and evaluations follow. Where a cost has a closed form that is cheaper, a family overrides `level_kl`, `prior`,
`reconstruction` or `costs`. The Gaussian diffusion (diffusion.py), the binomial one (binomial.py) and the chain with free Gaussians
(gaussian_chain.py) are such families.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import (
    Condition,
    called,
    check_condition,
    ignores_condition,
    repeated,
    rows_of,
    takes_condition,
)
from diffusional.deprecation import RenamedAttribute, keep_overrides
from diffusional.errors import DiffusionalError
from diffusional.forward import Distribution, transition_of
from diffusional.ledger import Costs, Ledger, LevelDraws
from diffusional.models.base import LatentVariableModel, Noise, plain_options, served
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.models.protocols import AffineCosts, AffineLevels, Decoding, MaskCosts, Section
from diffusional.shapes import Batch, PerItem
from diffusional.space import Space
from diffusional.timesteps import Stratified, TimestepSampler, position

# Rows of one network call where a method visits many levels of a batch.
ROWS = 4096
# Items × dimensions × levels of one such call: 160 MB of float32 for each tensor of that shape.
_NUMBERS = 40_000_000
_MISSING = object()
# The default `Chain.reconstruction_share`.
RECONSTRUCTION_SHARE = 1 / 32


def batch_rows(space: Space) -> int:
    """Return the number of items of one network call: at most ROWS, or fewer if the output of a levels head would need too much memory.

    >>> from diffusional import Discrete
    >>> batch_rows(Discrete((1, 8, 8), 17)), batch_rows(Discrete((1, 28, 28), 256))
    (4096, 199)
    """
    return max(1, min(ROWS, _NUMBERS // (space.dimensions * (space.levels or 1))))


class Chain(LatentVariableModel):
    """A chain of latents with a fixed posterior. x is (B, *space.shape), and so are its latents; costs are nats, float64.

    A family sets `process` (a `ForwardProcess`) and `space`, in the class or in `__init__`, and defines `step`, `last` and `decode`.
    `decoder_uses_network` is False for a decoder that takes no network evaluation.

    The signatures of `step` and `decode` declare whether the model is conditional: `step(z_next, t)` takes no condition and refuses one,
    `step(z_next, t, condition)` requires one, and `step(z_next, t, condition=None)` works with and without. One of the two may do without
    the condition that the other takes.

    >>> from diffusional import Bits, BinomialDiffusion
    >>> from diffusional.space import binary
    >>> class Coins(Chain):                                              # an untrained model: D ln 2, D = 4
    ...     space, process = binary((4,)), BinomialDiffusion.constant(5)
    ...     def step(self, z_next, t): return Bits(0 * z_next.double())
    ...     def last(self, n): return Bits(torch.zeros(n, 4).double())
    ...     def decode(self, z_1): return Bits(0 * z_1.double())
    >>> x = torch.ones(2, 4)
    >>> Coins().elbo(x, torch.Generator().manual_seed(0)).reconstruction
    tensor([2.7726, 2.7726], dtype=torch.float64)
    """

    # A ForwardProcess, which a family sets.
    process: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_overrides(cls)

    @property
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time.

        Raises DiffusionalError if the process is missing, or its `steps` is neither None nor an integer ≥ 2.
        """
        steps = getattr(getattr(self, "process", None), "steps", _MISSING)
        if steps is None or (isinstance(steps, int) and steps >= 2):
            return steps
        if steps is not _MISSING:
            raise DiffusionalError(
                f"expected `steps` of the process of {type(self).__name__} to be an integer T ≥ 2, the number of latents, or None in "
                f"continuous time, got {steps!r}"
            )
        raise DiffusionalError(
            f"expected {type(self).__name__} to set `process`, a ForwardProcess with `steps`, in the class or in __init__; it does not"
        )

    @property
    def decoder_uses_network(self) -> bool:
        """Whether p(x|z_1) takes a network evaluation."""
        return True

    @property
    def reconstruction_share(self) -> float:
        """The part of a training batch that draws −ln p(x|z_1) where the decoder needs the network, in (0, 1)."""
        return RECONSTRUCTION_SHARE

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Distribution:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        raise self._undefined("step, p(z_t|z_{t+1})")

    def last(self, n: int) -> Distribution:
        """Return p(z_T) of n items, on the model's device. Samples of the model have the type and device of its samples."""
        raise self._undefined("last, p(z_T)")

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Decoding:
        """Return p(x | z_1)."""
        raise self._undefined("decode, p(x|z_1)")

    # How costs, paths and samples call these: with the condition if the signature has a parameter for it.

    def _step(self, z_next: Batch, t: PerItem, condition: Condition | None) -> Distribution:
        if condition is not None and not takes_condition(self.step, z_next, t, condition=condition):
            condition = self._for_the_other(takes_condition(self.decode, z_next, condition=condition))
        return called(self.step, z_next, t, condition=condition)

    def _decode(self, z_1: Batch, condition: Condition | None) -> Decoding:
        if condition is not None and not takes_condition(self.decode, z_1, condition=condition):
            condition = self._for_the_other(takes_condition(self.step, z_1, 1, condition=condition))
        return called(self.decode, z_1, condition=condition)

    def _for_the_other(self, taken: bool) -> None:
        """Return None, the condition of `step` or `decode` if only the other takes one. Raises DiffusionalError if neither does."""
        if not taken and not ignores_condition(self):
            raise DiffusionalError(
                f"a condition was given, but neither step nor decode of {type(self).__name__} has a parameter for it; leave the condition "
                "out, or see diffusional.conditions.ignoring_condition"
            )

    def _undefined(self, what: str) -> DiffusionalError:
        return DiffusionalError(
            f"expected {type(self).__name__} to define {what}, which this method needs; it does not"
        )

    # The three kinds of costs, MATH (8).

    def reconstruction(self, x: Batch, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return −ln p(x|z_1) (B,) at the z_1 of x for standard normal `noise` (B, *dims)."""
        same_shape(x, noise)
        z_1 = self.noisy(x, torch.ones(len(x), dtype=torch.long, device=x.device), noise)
        return -one_per_item(self._decode(z_1, condition).log_prob(x), len(x), "log_prob of p(x|z_1)").double()

    def prior(self, x: Batch) -> PerItem:
        """Return KL_T = KL[q(z_T|x) ‖ p(z_T)] (B,), in closed form."""
        kl = self.process.marginal(x, self._discrete()).kl(self.last(len(x)))
        return one_per_item(kl, len(x), "kl of q(z_T|x) and p(z_T)").double()

    def level_kl(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return KL_t (B,) for `kl_at`, which checks the arguments first. A family with a closed form overrides it."""
        q, p = self._both(x, level, noise, condition)
        kl = q.kl(p)
        return one_per_item(kl, len(x), "kl of q(z_t|z_{t+1}, x) and p(z_t|z_{t+1})").double()

    def _both(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None) -> tuple[Any, Distribution]:
        """Return q(z_t|z_{t+1}, x) and p(z_t|z_{t+1}) at the z_{t+1} of x and `noise`."""
        self._discrete()
        z_next = self.noisy(x, level + 1, noise)
        return self.process.posterior(z_next, x, level), self._step(z_next, level, condition)

    _kl_at = RenamedAttribute("level_kl")

    # The same costs at every position of x (evaluation/maps.py), for families whose distributions are independent over positions.

    @property
    def positioned(self) -> bool:
        """Whether the latents have the positions of x, so that costs have maps: those of a chain do, those inside another model need not."""
        return True

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return −ln p(x_d|z_1) at every position (B, *dims), float64, whose sum is `reconstruction`."""
        same_shape(x, noise)
        z_1 = self.noisy(x, torch.ones(len(x), dtype=torch.long, device=x.device), noise)
        return -by_position(self._decode(z_1, condition), "log_prob_map", x)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return KL_t at every position (B, *dims), float64, whose sum is `level_kl`; in continuous time dKL/du."""
        q, p = self._both(x, level, noise, condition)
        return by_position(q, "kl_map", p)

    def prior_map(self, x: Batch) -> Batch:
        """Return KL_T at every position (B, *dims), float64, whose sum is `prior`."""
        return by_position(self.process.marginal(x, self._discrete()), "kl_map", self.last(len(x)))

    def noisy(self, x: Batch, t: PerItem, noise: Batch) -> Batch:
        """Return z_t ~ q(z_t|x) (B, *dims) for standard normal `noise`, t (B,) in 1 … T, in x's type."""
        return self.process.marginal(x, t).sample(noise=noise).to(x.dtype)

    @property
    def timesteps(self) -> int | None:
        """L = T − 1, the number of noise levels t < T, each with a KL_t; None in continuous time."""
        return None if self.steps is None else self.steps - 1

    levels = RenamedAttribute("timesteps")

    def noise_levels(self) -> Tensor:
        """Return (T,) numbers, or 65 in continuous time, that identify the chain's levels. A plan compares them, to check that it fits a
        model. They are γ if the family has one, otherwise 1, …, T.
        """
        return torch.arange(1, (self.steps or 65) + 1, dtype=torch.float64)

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        """Return γ at edges of levels, from the schedule or the `gamma` of the process. The result is None for a process without either, and
        for numbers of cells in continuous time, from which u is not known.
        """
        process = getattr(self, "process", None)
        schedule, gamma = getattr(process, "schedule", None), getattr(process, "gamma", None)
        if schedule is not None:
            if bool((edges > (schedule.steps or 1)).any()):
                return None
            return schedule.gamma(edges.double()) if schedule.steps is None else schedule.grid()[edges - 1]
        return None if gamma is None else gamma(edges)

    def identity(self) -> list[Any]:
        """Return what the costs depend on besides the tensors of the model, as JSON values.

        By default the type of the model, the plain attributes (numbers, strings, and lists of them) of the model and of its process, and
        hashes of the tensors of a process that is not a `torch.nn.Module`. Names with an underscore are left out.
        """
        own, process = plain_options(self), getattr(self, "process", None)
        theirs = {} if process is None else plain_options(process)
        return [type(self).__name__, *([own] if own else []), *([theirs] if theirs else [])]

    def level_constants(self, level: PerItem) -> PerItem:
        """Return the part of KL_t (V,) that no noise changes, at levels (V,): by default 0. It needs no network evaluation."""
        return torch.zeros(len(level), dtype=torch.float64)

    def cost_bound(self, level: PerItem) -> PerItem | None:
        """Return the most (V,) that KL_t − `level_constants` can be at levels (V,), for any item of the space, any noise and any weights of the
        network, if it is at least 0 everywhere; or None if no such bound is known, which is the default. An evaluation does not look for
        unexpected costs at levels where they cannot matter.
        """
        return None

    @property
    def affine(self) -> AffineCosts | None:
        """The chain itself if its costs are affine in the squared error of the noise, so that controls exist; by default None."""
        return None

    @property
    def masks(self) -> MaskCosts | None:
        """The chain itself if its costs are those of masked positions, so that their controls exist; by default None."""
        return None

    def inner(self) -> "tuple[Chain, int, int] | None":
        """Return the chain inside whose costs those of this one are, how far its levels are shifted, and how many numbers of the noise of a
        visit come before those of its level; by default None.
        """
        return None

    def affine_levels(self) -> "Sequence[AffineLevels]":
        """Return the levels of stages whose costs are affine in the squared error of the noise, for composite models; by default ()."""
        return ()

    def visited(self) -> "Chain | None":
        """Return the chain whose levels an evaluation visits: this one."""
        return self

    def whole(self) -> LatentVariableModel:
        """Return the model whose costs these are: the chain itself, or a model that contains it."""
        return self

    @property
    def visit_shape(self) -> tuple[int, ...]:
        """The shape of the noise of one visit: that of an item."""
        return self.space.shape

    # False for a chain of latents without a p(x|z_1), whose `reconstruction` is 0.
    decodes: bool = True

    def sections(self) -> "tuple[Section, ...]":
        """Return the sections of the levels, in order, if they belong to several terms of the ledger, as in a composite model: an evaluation
        reports them separately. By default (), where all levels are one term, "kl".
        """
        return ()

    def ordered(self, names: Sequence[str]) -> list[str]:
        """Return names of terms in the order of the ledger's table: by default as they are."""
        return list(names)

    # Names of the costs of a visit to the decoder, which `decoder_costs` returns, and of those of them that are KLs of layers of latents
    # between x and the chain.
    decoder_parts: tuple[str, ...] = ("reconstruction",)
    layer_parts: tuple[str, ...] = ()
    # Names of those parts that an evaluation draws once for every item before its visits, by `look`: a control variate of the visits to the
    # decoder.
    looked: tuple[str, ...] = ()
    # Names of further costs of every visit, which take no network evaluation: see `beside`.
    further: tuple[str, ...] = ()

    # Names of the functions of the noise in `noise_moments`.
    moment_names: tuple[str, ...] = ()

    def noise_moments(self, x: Batch, t: PerItem, noise: Tensor) -> Tensor:
        """Return functions of the noise (B, number of `moment_names`) that have mean zero for every item and are correlated with the cost at
        z_t, t (B,) in 1 … T: control variates of an evaluation, which needs no network evaluation for them. By default there are none.
        """
        return torch.zeros(len(x), 0, dtype=torch.float64, device=x.device)

    def decoder_costs(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return the costs (B,) of a visit to the decoder at noise (B, *visit_shape), by the names in `decoder_parts`: by default only the
        reconstruction.
        """
        cost = self.reconstruction(x, noise, condition)
        return {"reconstruction": cost_of(self, "reconstruction", cost, len(x))}

    def look(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return a draw of those costs (B,) of the decoder whose names are in `looked`: by default those of `decoder_costs`."""
        if not self.looked:
            return {}
        costs = self.decoder_costs(x, noise, condition)
        return {name: costs[name] for name in self.looked}

    @property
    def predicts_levels(self) -> bool:
        """Whether the network predicts distributions over the levels of discrete data, so that `level_priors` exist; by default not."""
        return False

    def level_priors(self, x: Batch, condition: Condition | None = None) -> Tensor:
        """Return the probabilities (B, K, *dims) of the K levels at every position given the others, as the network predicts them for items
        x (B, *dims) without noise: one network evaluation each. Raises DiffusionalError if the network predicts no levels.
        """
        raise DiffusionalError(
            f"expected a network that predicts levels, got a {type(self).__name__}, whose network does not; leave out the control `context`"
        )

    def beside(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return further costs (B,) of a visit at noise (B, *visit_shape), by the names in `further`: by default {}."""
        return {}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(T, *dims): an ε for each latent. `terms` takes T first, (T, B, *dims)."""
        return (self._discrete(), *self.space.shape)

    @property
    def evaluations(self) -> int:
        return self._discrete() - 1 + self.decoder_uses_network

    def _discrete(self) -> int:
        if self.steps is None:
            raise DiffusionalError(
                "expected discrete time, got continuous time, which has no T latents: use regrid(T) for a finite T, or elbo for a bound"
            )
        return self.steps

    def kl_at(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """Return KL_t (B,) at `level` t (B,) in 1 … T−1, for the z_{t+1} of x and `noise` (B, *visit_shape): MATH (10) for a Gaussian
        diffusion.

        In continuous time `level` is u (B,) in [0, 1] and the value is dKL/du, whose integral over [0, 1] is the cost.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        same_shape(x, noise, self.visit_shape)
        if self.timesteps is not None and (
            level.dtype.is_floating_point or bool(((level < 1) | (level > self.timesteps)).any())
        ):
            raise DiffusionalError(f"expected levels to be integers from 1 to {self.timesteps}, got {_extremes(level)}")
        if self.timesteps is None and not bool(((level >= 0) & (level <= 1)).all()):
            raise DiffusionalError(f"expected u in [0, 1], got {_extremes(level)}")
        return cost_of(self, "level_kl", self.level_kl(x, level, noise, condition), len(x))

    # Ledgers.

    def terms(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return the ledger of MATH (8) with one draw of every cost. noise[t − 1] of `noise` (T, B, *dims) is the ε of z_t. Discrete time
        only.
        """
        steps = self._discrete()
        if noise.shape != (steps, *x.shape):
            raise DiffusionalError(f"expected noise of shape {(steps, *x.shape)}, got {tuple(noise.shape)}")
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
        """Return the ledger of MATH (8) with one draw of every cost; in continuous time with one uniform u in each of `cells` equal cells of
        [0, 1].

        This takes T network evaluations per item (or `cells` + 1). The ledger's `kl` has a column for each level, or for each cell.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        if cells < 1:
            raise DiffusionalError(f"expected cells to be at least 1, got {cells}")
        n = self.timesteps or cells
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

    def _ledger(self, x: Tensor, reconstruction: Any, kl: Tensor) -> Ledger:
        reconstruction = cost_of(self, "reconstruction", reconstruction, len(x))
        prior = cost_of(self, "prior", self.prior(x), len(x))
        return Ledger(reconstruction, kl, prior, self.space.dimensions, self.extra(x))

    def _kl_block(self, x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        """Return KL (B, L) at levels (L, B) with noise (L, B, *dims), with one network call."""
        n = level.shape[0]
        rows = x.repeat(n, *(1,) * (x.ndim - 1))
        kl = self.level_kl(rows, level.flatten(), noise.flatten(0, 1), repeated(condition, n))
        return cost_of(self, "level_kl", kl, len(rows)).view(n, -1).T

    # One path, MATH (7).

    def path_elbo(
        self, x: Batch, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Ledger:
        """Return the ledger of MATH (7): the same bound from one sampled path z_1 … z_T, with log-ratios instead of KL divergences. Discrete
        time only.

        kl[:, t−1] = ln q(z_t|z_{t−1}) − ln p(z_t|z_{t+1}) and prior = ln q(z_T|z_{T−1}) − ln p(z_T). These may be negative. The expectation
        of their sum is the NELBO of (8), but single terms have other expectations.
        """
        self._discrete()
        self.space.check(x)
        check_condition(condition, len(x))
        return self._along(x, self.process.sample_path(x, generator), condition)

    def log_weight(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """Return ln p(x, z_{1:T})/q(z_{1:T}|x) (B,), nats, along the path of x for `noise` (B, T, *dims): the path form, MATH (7). Its
        expectation is the ELBO, and the expectation of its exponential is p(x).
        """
        self.check_log_weight()
        if noise.shape != (len(x), *self.noise_shape):
            raise DiffusionalError(f"expected noise of shape {(len(x), *self.noise_shape)}, got {tuple(noise.shape)}")
        # A chain that is not Markov is walked from z_T to z_1.
        return self.walked_log_weight(x, served(noise if self._markov else noise.flip(1)), condition)

    def walked_log_weight(self, x: Batch, noise: Noise, condition: Condition | None = None) -> PerItem:
        """Return `log_weight` (B,) for noise that is drawn as the path is walked, latent by latent: two of them are in memory at a time.

        A Markov chain is walked from z_1 to z_T, and another one from z_T to z_1.
        """
        self.check_log_weight()
        self.space.check(x)
        check_condition(condition, len(x))
        ratios, z_1 = self.walk(x, noise, condition)
        log_p = one_per_item(self._decode(z_1, condition).log_prob(x), len(x), "log_prob of p(x|z_1)")
        return -Ledger(-log_p.double(), ratios[:, :-1], ratios[:, -1], self.space.dimensions, self.extra(x)).nelbo

    # Coding by bits back, MATH (33).

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves of Bit-Swap (Kingma, Abbeel & Ho 2019): pop z_1 by q(z_1|x), push x by p(x|z_1), then `moves_after` z_1."""
        first = self.first_move(1, prefix, lambda known: known[x])
        push = Move(x, lambda known: self._decode(known[first.name], condition(known)))
        return [first, push, *self.moves_after(1, prefix, condition)]

    def first_move(self, t: int, prefix: str, x: Callable[[Known], Tensor]) -> Move:
        """Return the move that pops z_t by q(z_t|x)."""
        steps = self._discrete()
        if not self._markov:
            raise DiffusionalError(
                f"expected a Markov forward process for coding, got a {type(self.process).__name__}, whose q(z_t|z_{{t−1}}) depends on x"
            )
        law = self.process.transition if t == 1 else self.process.marginal
        return Move(f"{prefix}z_{t}", lambda known: law(x(known), t), pops=True, finest=self._finest(t, steps))

    def moves_after(self, t: int, prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves that code z_t once it is known: pop z_{t+1} by q(z_{t+1}|z_t), push z_t by p(z_t|z_{t+1}), and so on until z_T."""
        steps, moves = self._discrete(), list[Move]()

        def pair(t: int) -> list[Move]:
            now, after = f"{prefix}z_{t}", f"{prefix}z_{t + 1}"
            pop = Move(
                after, lambda known: self.process.transition(known[now], t + 1), True, self._finest(t + 1, steps)
            )
            push = Move(now, lambda known: self._step(known[after], torch.full((known.rows,), t), condition(known)))
            return [pop, push]

        for level in range(t, steps):
            moves += pair(level)
        return [*moves, Move(f"{prefix}z_{steps}", lambda known: self.last(known.rows))]

    def _finest(self, t: int, steps: int) -> float | None:
        """Return the smaller of the standard deviations of q(z_t|z_{t−1}) and q(z_t|z_{t+1}, x); None if z_t is not Gaussian."""
        nothing = torch.zeros(1, *self.space.shape)
        around = [self.process.transition(nothing, t)]
        if t < steps:
            around.append(self.process.posterior(nothing, nothing, t))
        stds = [getattr(one, "std", None) for one in around]
        return min((float(std.double().max()) for std in stds if std is not None), default=None)

    @property
    def _markov(self) -> bool:
        return getattr(self.process, "markov", True)

    def walk(self, x: Batch, noise: Noise, condition: Condition | None = None, first: int = 1) -> tuple[Tensor, Batch]:
        """Return the log-ratios of q and p (B, T − s + 1) of z_s … z_T along one path of x, and z_s itself, s = `first`, float64.

        Their sum is ln q(z_{s:T}|x)/p(z_{s:T}). Discrete time only.
        """
        steps, dims = self._discrete(), tuple(x.shape[1:])

        def drawn(q: Any) -> tuple[Tensor, Tensor]:
            z = q.sample(noise=noise(dims)).to(x.dtype)
            return z, one_per_item(q.log_prob(z), len(x), "log_prob of q(z_t|z_{t−1})")

        def ratio(log_q: Tensor, p: Any, z: Tensor) -> Tensor:
            return (log_q - one_per_item(p.log_prob(z), len(x), "log_prob of p(z_t|z_{t+1})")).double()

        def step(z_next: Tensor, t: int) -> Distribution:
            return self._step(z_next, torch.full((len(x),), t, device=x.device), condition)

        ratios = list[Tensor]()
        if not self._markov:
            z, log_q = drawn(self.process.marginal(x, steps))
            ratios.append(ratio(log_q, self.last(len(x)), z))
            for t in range(steps - 1, first - 1, -1):
                z_next = z
                z, log_q = drawn(self.process.posterior(z_next, x, t))
                ratios.insert(0, ratio(log_q, step(z_next, t), z))
            return torch.stack(ratios, 1), z
        z, log_q = drawn(self.process.transition(x, 1) if first == 1 else self.process.marginal(x, first))
        begin = z
        for t in range(first, steps):
            z_next, log_q_next = drawn(self.process.transition(z, t + 1))
            ratios.append(ratio(log_q, step(z_next, t), z))
            z, log_q = z_next, log_q_next
        ratios.append(ratio(log_q, self.last(len(x)), z))
        return torch.stack(ratios, 1), begin

    def check_log_weight(self) -> None:
        """Raise DiffusionalError in continuous time, where a path has infinitely many latents, and for a family that does not define all of
        `step`, `last` and `decode`.
        """
        for name, what in (("step", "step, p(z_t|z_{t+1})"), ("last", "last, p(z_T)"), ("decode", "decode, p(x|z_1)")):
            if getattr(type(self), name) is getattr(Chain, name):
                raise self._undefined(what)
        if self.steps is None:
            raise DiffusionalError(
                f"importance weights need paths of finitely many latents, got a {type(self).__name__} in continuous time; choose a number of "
                "latents, such as steps=10"
            )

    def _along(self, x: Tensor, path: Tensor, condition: Condition | None) -> Ledger:
        """Return the log-ratios of MATH (7) along a path (T, B, *dims)."""
        ratios, before, steps = [], x, len(path)
        for t in range(1, steps + 1):
            z = path[t - 1]
            log_q = one_per_item(
                transition_of(self.process, before, t, x).log_prob(z), len(x), "log_prob of q(z_t|z_{t−1})"
            )
            if t < steps:
                p = self._step(path[t], torch.full((len(x),), t, device=x.device), condition)
            else:
                p = self.last(len(x))
            log_p = one_per_item(p.log_prob(z), len(x), "log_prob of p(z_t|z_{t+1})")
            ratios.append((log_q - log_p).double())
            before = z
        log_p = one_per_item(self._decode(path[0], condition).log_prob(x), len(x), "log_prob of p(x|z_1)")
        kl = torch.stack(ratios[:-1], 1)
        return Ledger(-log_p.double(), kl, ratios[-1], self.space.dimensions, self.extra(x))

    # Training, MATH (22).

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return a level of `sampler` for each item, "level", with its weight 1/π_t, "weight", and ε, "noise".

        If the decoder needs the network, a random part `reconstruction_share` of the items, "first", is for −ln p(x|z_1) instead of a
        level. Otherwise every item has both, and "first_noise" is the ε of its z_1.
        """
        n = len(x) if n is None else n
        drawn = (sampler or Stratified()).sample(n, self.timesteps, generator)
        out = {
            "level": drawn.level.to(x.device),
            "weight": drawn.weight.to(x.device),
            "noise": standard_normal(x, n, generator),
        }
        if self.decoder_uses_network:
            # Stratified, so that their number hardly varies.
            out["first"] = Stratified().sample(n, None, generator).level.to(x.device) < self.reconstruction_share
        else:
            out["first_noise"] = standard_normal(x, n, generator)
        return out

    def costs(self, x: Batch, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of MATH (22) for what `draw` returned, with one network evaluation per item. KL_T is exact."""
        level, first, noise = draws["level"], draws.get("first"), draws["noise"]
        terms = {"prior": cost_of(self, "prior", self.prior(x), len(x))} | self.extra(x)
        if first is None:
            kl = cost_of(self, "level_kl", self.level_kl(x, level, noise, condition), len(x))
            reconstruction = self.reconstruction(x, draws["first_noise"], condition)
            terms["reconstruction"] = cost_of(self, "reconstruction", reconstruction, len(x))
            terms["kl"] = LevelDraws(kl, level, draws["weight"]).estimate()
            return Costs(terms, position(level, self.timesteps), self._per_unit(kl))
        visits, firsts = (~first).nonzero().squeeze(1), first.nonzero().squeeze(1)
        kl = self.level_kl(x[visits], level[visits], noise[visits], rows_of(condition, visits))
        kl = cost_of(self, "level_kl", kl, len(visits))
        if len(firsts):
            reconstruction = self.reconstruction(x[firsts], noise[firsts], rows_of(condition, firsts))
            log_prob = -cost_of(self, "reconstruction", reconstruction, len(firsts))
        else:
            log_prob = kl.new_zeros(0)
        return self._mixed(terms, draws, visits, kl, firsts, log_prob)

    def _mixed(
        self,
        terms: dict[str, Tensor],
        draws: dict[str, Tensor],
        visits: Tensor,
        kl: Tensor,
        firsts: Tensor,
        log_prob: Tensor,
    ) -> Costs:
        """Return `terms` and the costs of a batch in which the items `visits` (V,) are at a level, with KL_t `kl` (V,), and the others,
        `firsts` (F,), at z_1, with ln p(x|z_1) `log_prob` (F,). Each group is weighted so that it represents the whole batch.
        """
        level, weight = draws["level"][visits], draws["weight"]
        visited = LevelDraws(kl, level, weight[visits] / (1 - self.reconstruction_share))
        nothing = kl.new_zeros(len(weight))
        terms = terms | {"kl": nothing.index_copy(0, visits, visited.estimate())}
        if len(firsts):
            log_prob = log_prob.to(kl.dtype)
            terms["reconstruction"] = nothing.index_copy(0, firsts, -log_prob / self.reconstruction_share)
        return Costs(terms, position(level, self.timesteps), self._per_unit(kl))

    def _per_unit(self, kl: Tensor) -> Tensor:
        """Return costs per unit of u, which are the costs times the weight of a uniform sampler."""
        return kl if self.timesteps is None else kl * self.timesteps

    # Sampling.

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x (n, *space.shape): exact samples of the model whose bound is reported."""
        *_, x = self.walk_back(n, generator, condition)
        return x

    @torch.no_grad()
    def walk_back(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[Tensor]:
        """Yield z_T, z_{T−1}, …, z_1 and x, each (n, *space.shape): the path that `sample` takes, in the type and on the device of z_T."""
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)
        z = self.drawn(self.last(n), generator)
        yield z
        for t in range(self._discrete() - 1, 0, -1):
            p = self._step(z, torch.full((n,), t, device=z.device), condition)
            z = self.drawn(p, generator).to(z.dtype)
            yield z
        # A step or a decoder may compute in float64.
        yield self.drawn(self._decode(z, condition), generator).to(z.dtype)

    def drawn(self, p: Decoding, generator: torch.Generator | None) -> Tensor:
        """Sample one of the chain's distributions."""
        return p.sample(generator)


def _extremes(level: Tensor) -> str:
    return f"{float(level.min()):g} to {float(level.max()):g} of type {level.dtype}"


def by_position(distribution: Any, method: str, argument: Any) -> Tensor:
    """Return the costs at every position (B, *dims), float64, that `method` of a distribution returns. Raises DiffusionalError if the
    distribution has no such method.
    """
    if not hasattr(distribution, method):
        raise DiffusionalError(
            f"expected {type(distribution).__name__} to define {method}, the cost at every position (B, *dims), which cost maps need; it "
            "does not"
        )
    return getattr(distribution, method)(argument).double()


def one_per_item(cost: Any, items: int, what: str) -> Tensor:
    """Return a cost (B,) unchanged. Raises DiffusionalError unless it has one number for each of B = `items` items.

    >>> one_per_item(torch.zeros(2, 3), 2, "kl")
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: expected kl to have shape (2,), one number per item, got (2, 3); sum over all dimensions but the first
    """
    if not isinstance(cost, Tensor):
        raise DiffusionalError(
            f"expected {what} to be a tensor of shape ({items},), one number per item, got a {type(cost).__name__}; return a tensor"
        )
    if cost.shape != (items,):
        raise DiffusionalError(
            f"expected {what} to have shape ({items},), one number per item, got {tuple(cost.shape)}; sum over all dimensions but the first"
        )
    return cost


def cost_of(model: LatentVariableModel, method: str, cost: Any, items: int) -> Tensor:
    """Return a cost (B,) that a method of a model returned, unchanged. Raises DiffusionalError unless it has one number for each item."""
    return one_per_item(cost, items, f"the result of {type(model).__name__}.{method}")


def same_shape(x: Tensor, noise: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raise DiffusionalError unless `noise` has an ε for every item of x, of the item's shape or of `shape`."""
    expected = x.shape if shape is None else (len(x), *shape)
    if noise.shape != expected:
        raise DiffusionalError(
            f"expected noise of shape {tuple(expected)} for items of shape {tuple(x.shape)}, got {tuple(noise.shape)}"
        )


def standard_normal(x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Return ε (n, …), n draws of the shape, type and device of x's items.

    >>> standard_normal(torch.zeros(2, 3), 5, None).shape
    torch.Size([5, 3])
    """
    return torch.empty(n, *x.shape[1:], dtype=x.dtype, device=x.device).normal_(generator=generator)
