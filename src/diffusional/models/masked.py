"""The masked diffusion model of sequences: x → z_1 → … → z_T, in which positions are masked, and one network that predicts what a mask hides.

The network predicts p_i(x_i | z) at every position i from the shown ones. With ρ_t the probability that a mask of z_{t+1} is gone in z_t,

    KL_t = ρ_t E Σ_{i masked in z_{t+1}} −ln p_i(x_i | z_{t+1}),      −ln p(x|z_1) = Σ_{i masked in z_1} −ln p_i(x_i | z_1),      KL_T = 0

(MATH (34); Austin et al. 2021, Sahoo et al. 2024, Shi et al. 2024). Shown positions cost nothing, and neither the network nor a cost needs the
time. In continuous time the bound is

    Σ_{n=1..L} (1/n) E_{|M| = n} Σ_{i ∈ M} −ln p_i(x_i | x_{∖M}),

for every schedule: the mean over all orders of the chain rule. `OneAtATime` has these terms as its levels, and is the default process.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffusional.absorbing import Absorbing, Hiding, OneAtATime
from diffusional.categorical import Categorical
from diffusional.conditions import Condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import Distribution
from diffusional.ledger import Costs, Ledger
from diffusional.models.calls import call
from diffusional.models.chain import Chain, batch_rows, same_shape
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical as Sequences
from diffusional.space import Space

# The longest sequences of which all 2^L masks are enumerated.
_MOST_ENUMERATED = 16
# Rows of one network call in an enumeration.
_ROWS = 4096


def checked_space(space: object, categories: int | None, family: str) -> Sequences:
    """Return a space of sequences. Raises DiffusionalError for another space, and for another number of categories than the process has."""
    if not isinstance(space, Sequences):
        raise DiffusionalError(f"expected a space.Categorical(length, categories) for a {family}, got {space}")
    if categories is not None and categories != space.levels:
        raise DiffusionalError(f"expected a process of {space.levels} categories, those of the space, got {categories}")
    return space


def predicted(network: Callable[..., Any], space: Space, *inputs: Tensor, condition: Condition | None) -> Tensor:
    """Return the logits (B, L, K) of a network at tokens (B, L), its first input. Raises DiffusionalError for another shape."""
    logits = call(network, *inputs, condition=condition)
    expected = (*inputs[0].shape, space.levels)
    if logits.shape != expected:
        raise DiffusionalError(
            f"expected the network to return logits of shape {expected}, one for each position and category, got {tuple(logits.shape)}; the "
            "mask is not a category"
        )
    return logits


class MaskedDiffusion(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T) of sequences under an absorbing diffusion, MATH (34). Costs are nats, float64:

        KL_t = ρ_t Σ_{i masked in z_{t+1}} −ln p_i(x_i|z_{t+1}),    −ln p(x|z_1) = Σ_{i masked in z_1} −ln p_i(x_i|z_1),    KL_T = 0

    (Austin et al. 2021; Sahoo et al. 2024; Shi et al. 2024.)

    Args:
        network: module(tokens) or module(tokens, condition), int64 tokens (B, L) of 0 … K, where K is the mask, to logits (B, L, K).
        space: `space.Categorical(L, K)`.
        process: `OneAtATime` (the default, the bound of continuous time) or `Absorbing` with T steps or in continuous time u.

    `sample` takes T network evaluations. With fewer steps, `regrid(T).sample(n)`, positions that are shown in the same step are drawn
    independently of each other. What that costs is in the bound: that of `regrid(T)`, which is larger.

    Raises DiffusionalError for another space and for a network whose output has another shape.

    >>> from diffusional.space import Categorical
    >>> model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 27), Categorical(8, 27))
    >>> model.elbo(torch.zeros(1, 8), torch.Generator().manual_seed(0)).nelbo                      # 8 ln 27
    tensor([26.3667], dtype=torch.float64)
    """

    process: Absorbing | OneAtATime

    def __init__(
        self, network: Callable[..., Tensor], space: Space, process: Absorbing | OneAtATime | None = None
    ) -> None:
        super().__init__()
        found = checked_space(space, None if process is None else process.categories, "masked diffusion")
        self._space = found
        self.network = network
        self.process = OneAtATime(found.levels, found.shape[0]) if process is None else process
        if isinstance(self.process, OneAtATime) and self.process.length != found.shape[0]:
            raise DiffusionalError(
                f"expected a process of length {found.shape[0]}, that of the space, got {self.process.length}"
            )

    @property
    def space(self) -> Sequences:
        return self._space

    def regrid(self, steps: int | None) -> "MaskedDiffusion":
        """Return the model with T = `steps` independent steps of its schedule (a linear one for `OneAtATime`), or with `OneAtATime` for None,
        which is continuous time.
        """
        process = self.process
        if steps is None:
            return MaskedDiffusion(self.network, self.space, OneAtATime(process.categories, self.space.shape[0]))
        grid = process.regrid(steps) if isinstance(process, Absorbing) else Absorbing(process.categories, steps)
        return MaskedDiffusion(self.network, self.space, grid)

    def noise_levels(self) -> Tensor:
        """Return the signals a_t of an `Absorbing` process, or the numbers of masks."""
        process = self.process
        return process.signal if isinstance(process, Absorbing) else torch.arange(1, process.length + 1).double()

    def described(self) -> dict[str, Any]:
        """Return "levels_are" of the provenance, if the levels are numbers of masked positions."""
        return {"levels_are": "masked positions"} if isinstance(self.process, OneAtATime) else {}

    @property
    def decoder_uses_network(self) -> bool:
        """False in continuous time, where z at u = 0 is x."""
        return self.process.steps is not None

    @property
    def reconstruction_share(self) -> float:
        """1/T: a training step visits z_1 as often as any other latent."""
        return 1 / (self.steps or math.inf)

    def log_probs(self, z: Batch, condition: Condition | None = None) -> Tensor:
        """Return ln p_i(k | z) (B, L, K), normalised, float64, of what masks of z hide."""
        tokens = z.round().long()
        return predicted(self.network, self.space, tokens, condition=condition).double().log_softmax(-1)

    def hidden_map(self, x: Batch, z: Batch, condition: Condition | None = None) -> Batch:
        """Return −ln p_i(x_i | z) at masked positions (B, L), float64, and 0 at the others: one network evaluation.

        >>> from diffusional.space import Categorical
        >>> model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 4), Categorical(3, 4))
        >>> model.hidden_map(torch.zeros(1, 3), torch.tensor([[0.0, 4.0, 4.0]]))                               # ln 4
        tensor([[0.0000, 1.3863, 1.3863]], dtype=torch.float64)
        """
        tokens = z.round().long()
        masks = tokens == self.process.mask
        # Float64 logits only where they are needed: a vocabulary may be large.
        logits = predicted(self.network, self.space, tokens, condition=condition)[masks].double()
        cost = logits.logsumexp(-1) - logits.gather(-1, x[masks].round().long()[:, None])[:, 0]
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device).masked_scatter(masks, cost)

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Distribution:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        return self.process.shown(z_next, self.log_probs(z_next, condition), t)

    def last(self, n: int) -> Distribution:
        """Return p(z_T) of n items: all masks."""
        like = next(self.parameters(), torch.empty(0))
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        every = torch.full((n, *self.space.shape), float(self.process.mask), device=like.device, dtype=dtype)
        if isinstance(self.process, OneAtATime):
            length = torch.full((n,), self.space.dimensions, device=like.device)
            return Hiding(torch.zeros_like(every), length, self.process.mask)
        values = torch.arange(self.process.mask + 1, dtype=torch.float64)
        logits = torch.full((*every.shape, len(values)), -torch.inf, device=like.device, dtype=dtype)
        logits[..., -1] = 0
        return Categorical(logits, values)

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Categorical:
        """Return p(x | z_1): what the masks of z_1 hide, and certainly what it shows."""
        log_probs, masks = self.log_probs(z_1, condition), (z_1 == self.process.mask)[..., None]
        shown = torch.full_like(log_probs, -torch.inf)
        shown.scatter_(-1, z_1.long().clamp(max=self.process.mask - 1)[..., None], 0.0)
        return Categorical(torch.where(masks, log_probs, shown), self.space.values)

    # Coding, MATH (33).

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves that push x as masks cover it: what z_1 masks by p(x|z_1), then what z_{t+1} masks and z_t shows by p(z_t|z_{t+1}).

        The masks do not depend on x and have the same distribution under q and p, so that both ends draw them, and nothing is popped.
        """
        shape, process = self.space.shape, self.process

        def move(t: int) -> Move:
            def where(known: Known) -> Tensor:
                noise = known.shared(shape)
                now = process.masked(torch.full((known.rows,), t), noise)
                return now & ~process.masked(torch.full((known.rows,), t - 1), noise) if t > 1 else now

            def law(known: Known) -> Categorical:
                return Categorical(self.log_probs(known[x], condition(known)), self.space.values)

            return Move(x, law, where=where, blank=float(process.mask))

        return [move(t) for t in range(1, self._discrete() + 1)]

    # What controls of an evaluation need, `MaskCosts`.

    @property
    def masks(self) -> "MaskedDiffusion | None":
        """The chain itself in discrete time."""
        return None if self.steps is None else self

    def masked(self, t: PerItem, noise: Batch) -> Tensor:
        """Return which positions of z_t are masked for standard normal noise (B, L)."""
        return self.process.masked(t, noise)

    def masks_number(self, t: PerItem) -> PerItem | None:
        """Return t, the number of masks of z_t, of `OneAtATime`. The masks of `Absorbing` are independent, so that it has none."""
        return t if isinstance(self.process, OneAtATime) else None

    def mask_rate(self, t: PerItem) -> PerItem:
        """Return the factor (B,) of the sum over the masks of z_t: 1 at z_1, which is the reconstruction, and ρ_{t−1} elsewhere."""
        return torch.where(t == 1, 1.0, self.process.rate((t - 1).clamp(min=1))).double()

    def mask_chance(self, t: PerItem, masked: int, shown: int) -> PerItem:
        """Return the probability (B,) that `masked` given positions of z_t are masked and `shown` other ones are not."""
        return self.process.chance(t, masked, shown)

    # The costs, MATH (34).

    def noisy(self, x: Batch, t: PerItem, noise: Batch) -> Batch:
        """Return z_t ~ q(z_t|x) (B, L) for standard normal `noise`, t (B,) in 1 … T, or u in continuous time."""
        return torch.where(self.process.masked(t, noise), float(self.process.mask), x)

    def _next(self, level: PerItem) -> PerItem:
        """Return the latent whose masks level t is charged for: z_{t+1}, or z at u in continuous time."""
        return level if self.steps is None else level + 1

    def level_kl(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return KL_t (B,), or dKL/du in continuous time: one network evaluation."""
        return self.kl_map(x, level, noise, condition).sum(1)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return KL_t at every position (B, L)."""
        hidden = self.hidden_map(x, self.noisy(x, self._next(level), noise), condition)
        return self.process.rate(level).to(x.device)[:, None] * hidden

    def reconstruction(self, x: Batch, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return −ln p(x|z_1) (B,); 0 in continuous time, where nothing is masked at u = 0."""
        return self.reconstruction_map(x, noise, condition).sum(1)

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return −ln p(x_i|z_1) at every position (B, L)."""
        same_shape(x, noise)
        if self.steps is None:
            return torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        first = torch.ones(len(x), dtype=torch.long, device=x.device)
        return self.hidden_map(x, self.noisy(x, first, noise), condition)

    def prior(self, x: Batch) -> PerItem:
        """Return KL_T = 0 (B,)."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def prior_map(self, x: Batch) -> Batch:
        """Return KL_T = 0 at every position (B, L)."""
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device)

    def costs(self, x: Batch, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of MATH (22), with one network call for all items."""
        first = draws.get("first")
        if first is None:
            return super().costs(x, draws, condition)
        level = draws["level"]
        hidden = self.hidden_map(x, self.noisy(x, torch.where(first, 1, level + 1), draws["noise"]), condition).sum(1)
        visits, firsts = (~first).nonzero().squeeze(1), first.nonzero().squeeze(1)
        kl = self.process.rate(level[visits]).to(x.device) * hidden[visits]
        return self._mixed({"prior": self.prior(x)}, draws, visits, kl, firsts, -hidden[firsts])

    @torch.no_grad()
    def chain_rule(self, x: Batch, order: Tensor | None = None, condition: Condition | None = None) -> PerItem:
        """Return −ln p(x) (B,), nats, of the autoregressive model that the network also is: it fills the masks one by one in `order` (L,), by
        default from left to right. This is exact, takes L network evaluations of each item, and is the likelihood of another model than the
        bound's, for which every order is equally likely: the bound is its mean over all orders.

        Raises DiffusionalError for an order that is not a permutation of 0 … L − 1.

        >>> from diffusional.space import Categorical
        >>> model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 4), Categorical(3, 4))
        >>> model.chain_rule(torch.zeros(1, 3))                                                                # 3 ln 4
        tensor([4.1589], dtype=torch.float64)
        """
        self.space.check(x)
        length = self.space.dimensions
        order = torch.arange(length) if order is None else order
        if order.dtype.is_floating_point or order.sort().values.tolist() != list(range(length)):
            raise DiffusionalError(
                f"expected order to be a permutation of 0 … {length - 1}, got {order.tolist()!s:.60}"
            )
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for rows in torch.arange(len(x), device=x.device).split(batch_rows(self.space)):
            z, c = torch.full_like(x[rows], float(self.process.mask)), rows_of(condition, rows)
            for i in order.tolist():
                total[rows] += self.hidden_map(x[rows], z, c)[:, i]
                z[:, i] = x[rows, i]
        return total

    @torch.no_grad()
    def exact_ledger(self, x: Batch, condition: Condition | None = None) -> Ledger:
        """Return the ledger of MATH (8) of items x (B, L) without any Monte Carlo error, from all 2^L masks, L ≤ 16: 2^L network evaluations
        of each item. In continuous time its levels are those of `OneAtATime`.

        Raises DiffusionalError for longer sequences.

        >>> from diffusional.space import Categorical
        >>> model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 4), Categorical(3, 4))
        >>> model.exact_ledger(torch.zeros(1, 3)).nelbo                                                        # 3 ln 4
        tensor([4.1589], dtype=torch.float64)
        """
        self.space.check(x)
        length = self.space.dimensions
        masks, sums = self.sums_over_masks(x, condition)
        number, process = masks.sum(1), self.process
        if isinstance(process, Absorbing) and process.steps is not None:
            keep = process.signal.to(x.device)[:, None]
            chance = keep ** (length - number) * (1 - keep) ** number
            rate = process.rate(torch.arange(1, process.steps)).to(x.device)
        else:
            chance = (number == torch.arange(1, length + 1, device=x.device)[:, None]).double()
            chance = chance / chance.sum(1, keepdim=True)
            rate = 1 / torch.arange(2, length + 1, device=x.device).double()
        each = sums @ chance.T
        return Ledger(each[:, 0], each[:, 1:] * rate, self.prior(x), length)

    @torch.no_grad()
    def sums_over_masks(self, x: Batch, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """Return all masks (2^L, L), bool, and Σ_{i ∈ M} −ln p_i(x_i | the rest) (B, 2^L), nats, of items x (B, L) for each of them.

        Raises DiffusionalError for sequences of more than 16 positions.
        """
        length = self.space.dimensions
        if length > _MOST_ENUMERATED:
            raise DiffusionalError(
                f"expected sequences of at most {_MOST_ENUMERATED} positions, whose 2^L masks are enumerated, got {length}; use evaluate"
            )
        masks = torch.tensor(list(product([False, True], repeat=length)), device=x.device)
        sums = x.new_zeros(len(x), len(masks), dtype=torch.float64)
        for some in torch.arange(len(masks), device=x.device).split(max(1, _ROWS // len(x))):
            sums[:, some] = self.sums_of_masks(x, masks[some, None], condition).T
        return masks, sums

    def sums_of_masks(self, x: Batch, masks: Tensor, condition: Condition | None = None) -> Tensor:
        """Return Σ_{i ∈ M} −ln p_i(x_i | the rest) (m, B), nats, of items x (B, L) for masks (m, B, L) or (m, 1, L), bool: m network evaluations
        of each item, at once.
        """
        z = torch.where(masks, float(self.process.mask), x).flatten(0, 1)
        c = rows_of(condition, torch.arange(len(x), device=x.device).repeat(len(masks)))
        return self.hidden_map(x.repeat(len(masks), 1), z, c).sum(1).view(len(masks), len(x))
