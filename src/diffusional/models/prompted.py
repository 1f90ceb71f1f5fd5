"""A masked diffusion given a prompt: p(x_B | x_A) of the free positions B of each sequence, whose other positions A are known and never masked.

The condition is the prompt: int64 tokens (N, L), −1 at free positions. Each item has its own. Of an item with F free positions the bound is

    −ln p(x_B | x_A) ≤ Σ_{n=1..F} (1/n) E_{|M| = n, M ⊂ B} Σ_{i ∈ M} −ln p_i(x_i | x_{∖M}),

which has L levels here, whatever F is, so that items of different prompts share a plan. Level s = 1 … L is the part from (s − 1)/L to s/L of the
free positions:

    cost of level s = (1/L) E_u (F/n) Σ_{i ∈ M} −ln p_i,      n = |M| = ⌈u F⌉,      u uniform in ((s − 1)/L, s/L],

so that it is proportional to F, whatever the number of levels that a number of masks extends over. Without a prompt n = s, and these are the levels
of `OneAtATime`. The noise at the first given position, which no mask needs, chooses u.

Items of different lengths, such as a question and its answer, are filled up to the longest one (`of_lengths`). The network receives each without
its filling.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffusional.absorbing import Absorbing
from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.ledger import Ledger
from diffusional.models.chain import Chain, same_shape
from diffusional.models.coding import Given, Move, the_condition
from diffusional.models.masked import MaskedDiffusion
from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical

# The names of the prompt, and of the lengths of items without their filling, in a condition of several parts.
PROMPT, LENGTH = "prompt", "length"


def prompts(x: Tensor, given: Tensor | int) -> Tensor:
    """Return the prompts (N, L), int64, of tokens x (N, L): the tokens that are given, and −1 at the others.

    Args:
        x: tokens (N, L).
        given: the number of tokens at the beginning of each item that are given, one number or (N,); or a mask (N, L), true where given.

    Raises DiffusionalError for another shape and for numbers outside 0 … L.

    >>> prompts(torch.tensor([[5, 6, 7], [8, 9, 4]]), torch.tensor([2, 0])).tolist()
    [[5, 6, -1], [-1, -1, -1]]
    """
    tokens = x.round().long()
    mask = torch.as_tensor(given, device=x.device)
    if mask.dtype != torch.bool:
        if mask.ndim > 1 or (mask.ndim == 1 and len(mask) != len(x)) or mask.dtype.is_floating_point:
            raise DiffusionalError(
                f"expected given to be an integer, integers ({len(x)},) or a mask {tuple(x.shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if bool(((mask < 0) | (mask > x.shape[1])).any()):
            raise DiffusionalError(
                f"expected from 0 to {x.shape[1]} given tokens, got {int(mask.min())} to {int(mask.max())}"
            )
        mask = torch.arange(x.shape[1], device=x.device) < mask.reshape(-1, 1)
    if mask.ndim != 2 or mask.shape[1] != x.shape[1] or len(mask) not in (1, len(x)):
        raise DiffusionalError(f"expected a mask of shape {tuple(x.shape)}, that of x, got {tuple(mask.shape)}")
    return torch.where(mask, tokens, -1)


def prompts_of_lengths(x: Tensor, given: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Return the condition of items x (N, L) of different lengths for a model of `of_lengths`: their prompts, to which their filling belongs, and
    their lengths.

    Args:
        x: tokens (N, L), each item filled up with any tokens of the space.
        given: (N,), the number of given tokens at the beginning of each item.
        lengths: (N,), the number of tokens of each item without its filling.

    Raises DiffusionalError unless 0 ≤ given < lengths ≤ L.

    >>> prompts_of_lengths(torch.tensor([[5, 6, 7], [8, 9, 9]]), torch.tensor([2, 0]), torch.tensor([3, 2]))["prompt"].tolist()
    [[5, 6, -1], [-1, -1, 9]]
    """
    wrong = (given < 0) | (given >= lengths) | (lengths > x.shape[1])
    if bool(wrong.any()):
        item = int(wrong.nonzero()[0])
        raise DiffusionalError(
            f"expected fewer given tokens than the item has, and a length of at most {x.shape[1]}, got {int(given[item])} given tokens and length "
            f"{int(lengths[item])} in item {item}"
        )
    place = torch.arange(x.shape[1], device=x.device)
    shown = (place < given[:, None]) | (place >= lengths[:, None])
    return {PROMPT: prompts(x, shown), LENGTH: lengths}


class _OfLengths(nn.Module):
    """A network whose items have different lengths: each is computed without its filling, together with those of the same length. Logits of the
    filling are 0.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        lengths = condition[LENGTH].to(tokens.device)
        out: Tensor | None = None
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            logits = self.network(tokens[rows, :length])
            if out is None:
                out = logits.new_zeros(*tokens.shape, logits.shape[-1])
            out[rows, :length] = logits
        if out is None:
            raise DiffusionalError("expected at least one item, got none")
        return out


def of_lengths(model: MaskedDiffusion, length: int) -> "PromptedDiffusion":
    """Return p(x_B | x_A) of a masked diffusion for items of different lengths, at most `length` tokens, with the condition `prompts_of_lengths`.

    The bound of an item is that of a model of the item's own length. Its costs do not depend on the filling, nor on the other items.

    Raises DiffusionalError for a masked diffusion of T independent steps.

    >>> network = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 3))
    >>> model = of_lengths(MaskedDiffusion(network, Categorical(9, 3)), 4)
    >>> x = torch.zeros(2, 4)
    >>> condition = prompts_of_lengths(x, torch.tensor([1, 0]), torch.tensor([2, 4]))
    >>> model.elbo(x, torch.Generator().manual_seed(0), condition).nelbo.shape
    torch.Size([2])
    """
    _check_continuous(model)
    space = model.space
    of = MaskedDiffusion(
        _OfLengths(model.network), Categorical(length, space.levels, space.alphabet, excluded=space.excluded)
    )
    found = PromptedDiffusion(of)
    found.origin = model.origin
    return found.train(model.training)


def _check_continuous(model: MaskedDiffusion) -> None:
    if isinstance(model.process, Absorbing) and model.steps is not None:
        raise DiffusionalError(
            f"expected a masked diffusion in continuous time for prompts, got one of {model.steps} steps; use its regrid(None)"
        )


class PromptedDiffusion(Chain):
    """p(x_B | x_A) of a masked diffusion, with the prompt x_A as the condition: `prompts(x, given)`, or a dict with it as "prompt" and further
    entries for the network. Evaluations, scores, losses and samples take it as any condition.

    Costs are nats of the free positions; given positions cost nothing. "bits/dim" would divide them by all L positions: use unit="nats".

    Args:
        model: a masked diffusion in continuous time (`OneAtATime`, the default).

    Raises DiffusionalError for a masked diffusion of T independent steps.

    >>> space = Categorical(4, 3)
    >>> model = PromptedDiffusion(MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), space))
    >>> x = torch.zeros(2, 4)
    >>> ledger = model.elbo(x, torch.Generator().manual_seed(0), prompts(x, torch.tensor([1, 3])))
    >>> ledger.nelbo                                                                                 # 3 ln 3, and ln 3
    tensor([3.2958, 1.0986], dtype=torch.float64)
    """

    def __init__(self, model: MaskedDiffusion) -> None:
        super().__init__()
        _check_continuous(model)
        self.model = model

    @property
    def space(self) -> Categorical:
        return self.model.space

    @property
    def steps(self) -> int:
        """T = L, the number of levels."""
        return self.space.shape[0]

    @property
    def reconstruction_share(self) -> float:
        """1/T, as of a masked diffusion."""
        return 1 / self.steps

    def check_without_condition(self) -> None:
        """Raise DiffusionalError: a prompt is needed, if only an empty one."""
        raise self._missing()

    def _missing(self) -> DiffusionalError:
        return DiffusionalError(
            "expected a prompt as the condition, int64 tokens (N, L) with −1 at free positions, got none; see prompts(x, given)"
        )

    def _parts(self, condition: Condition | None, n: int) -> tuple[Tensor, Condition | None]:
        """Return the prompt (n, L), and the rest of a condition for the network. Raises DiffusionalError for anything but a prompt."""
        check_condition(condition, n)
        prompt, rest = condition, None
        if condition is not None and not isinstance(condition, Tensor):
            prompt, rest = condition.get(PROMPT), {name: v for name, v in condition.items() if name != PROMPT} or None
        if not isinstance(prompt, Tensor):
            raise self._missing()
        if prompt.dtype.is_floating_point or prompt.dtype == torch.bool or prompt.shape[1:] != self.space.shape:
            raise DiffusionalError(
                f"expected a prompt of integers (N, {self.steps}), with −1 at free positions, got {prompt.dtype} of shape {tuple(prompt.shape)}"
            )
        wrong = (prompt < -1) | (prompt >= self.space.levels) | (prompt == self._excluded)
        if bool(wrong.any()):
            item, place = wrong.nonzero()[0].tolist()
            raise DiffusionalError(
                f"expected tokens of the space in the prompt, or −1, got {int(prompt[item, place])} in item {item} at position {place}"
            )
        full = ~(prompt < 0).any(1)
        if bool(full.any()):
            raise DiffusionalError(
                f"expected at least one free position in every item, got none in item {int(full.nonzero()[0])}"
            )
        return prompt, rest

    @property
    def _excluded(self) -> int:
        return -2 if self.space.excluded is None else self.space.excluded

    def _given(self, x: Batch, condition: Condition | None) -> tuple[Tensor, Condition | None]:
        """Return which positions of x are free (B, L), and the condition of the network. Raises DiffusionalError for another prompt than x's."""
        prompt, rest = self._parts(condition, len(x))
        free = prompt < 0
        apart = ~free & (prompt != x.round().long())
        if bool(apart.any()):
            item, place = apart.nonzero()[0].tolist()
            raise DiffusionalError(
                f"expected the prompt's token {int(prompt[item, place])} at position {place} of item {item}, got {int(x[item, place])}"
            )
        return free, rest

    def masks_at(self, latent: PerItem, noise: Batch, free: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of masks n (B,) of level s = `latent` (B,) in 1 … L for items with the free positions `free` (B, L), and the factor
        F/(n L) (B,) of the sum over them. The noise (B, L) at the first given position chooses n where the level has several.
        """
        length, number = self.steps, free.sum(1)
        first = noise.gather(1, (~free).long().argmax(1, keepdim=True))[:, 0]
        # Without a given position n = s for every u.
        u = (latent - torch.special.ndtr(first.double())) / length
        # u F is at most F by rounding, and n has to be at least 1 and one of the numbers that the level has.
        n = (u * number).ceil().long().clamp(min=(latent - 1) * number // length + 1)
        n = n.minimum((latent * number + length - 1) // length)
        return n, number / (n * length).double()

    def _costs(self, x: Batch, latent: PerItem, noise: Batch, condition: Condition | None) -> Batch:
        """Return the cost of level s = `latent` at every position (B, L): one network evaluation."""
        same_shape(x, noise)
        free, rest = self._given(x, condition)
        n, rate = self.masks_at(latent, noise, free)
        z = self._masked(x, n, noise, free)
        return rate[:, None] * self.model.hidden_map(x, z, rest)

    def free(self, condition: Condition | None) -> Tensor:
        """Return the number of free positions F (N,) of every item."""
        prompt = condition if isinstance(condition, Tensor) or condition is None else condition.get(PROMPT)
        return (self._parts(condition, 0 if prompt is None else len(prompt))[0] < 0).sum(1)

    def masks_cost(self, x: Batch, number: PerItem, noise: Batch, condition: Condition | None) -> PerItem:
        """Return (F/n) Σ_{i ∈ M} −ln p_i(x_i | x_{∖M}) (B,), nats, with the n = `number` (B,) free positions of the smallest noise (B, L) as M:
        one network evaluation. Its mean over n = 1 … F and the noise is the bound.
        """
        same_shape(x, noise)
        free, rest = self._given(x, condition)
        z = self._masked(x, number, noise, free)
        return free.sum(1) / number.double() * self.model.hidden_map(x, z, rest).sum(1)

    @torch.no_grad()
    def all_masks_cost(self, x: Batch, condition: Condition | None, rows: int = 1024) -> PerItem:
        """Return the bound (B,), nats, of items x (B, L) with the same number F of free positions, without any Monte Carlo error:

            Σ_{M ⊂ B, M ≠ ∅} 1/(n C(F, n)) Σ_{i ∈ M} −ln p_i(x_i | x_{∖M}),      n = |M|,

        by 2^F − 1 network evaluations of each item. `rows` is the most of them at once.

        Raises DiffusionalError for items with different numbers of free positions.
        """
        free, rest = self._given(x, condition)
        number = int(free[0].sum())
        if bool((free.sum(1) != number).any()):
            raise DiffusionalError(
                f"expected items with the same number of free positions, got {free.sum(1).unique().tolist()}"
            )
        places = free.long().argsort(dim=1, descending=True, stable=True)[:, :number]
        bits = 2 ** torch.arange(number, device=x.device)
        out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for some in torch.arange(1, 2**number, device=x.device).split(max(1, rows // len(x))):
            chosen = (some[:, None] & bits) > 0  # (M, F)
            masks = torch.zeros(len(some), *x.shape, dtype=torch.bool, device=x.device)
            masks.scatter_(2, places.expand(len(some), -1, -1), chosen[:, None].expand(-1, len(x), -1))
            sums = self.model.sums_of_masks(x, masks, rest)
            weight = [1 / (n * math.comb(number, n)) for n in chosen.sum(1).tolist()]
            out += (torch.tensor(weight, dtype=torch.float64, device=x.device)[:, None] * sums).sum(0)
        return out

    def _masked(self, x: Batch, number: PerItem, noise: Batch, free: Tensor) -> Batch:
        """Return x with masks at the `number` (B,) free positions of the smallest noise (B, L)."""
        place = torch.where(free, noise, torch.inf).argsort(dim=1, stable=True).argsort(1)
        return torch.where(place < number[:, None], float(self.model.process.mask), x)

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Raise DiffusionalError: sequences cannot be coded given a prompt."""
        raise DiffusionalError(
            "a PromptedDiffusion cannot be coded, only the masked diffusion of whole sequences: use the model without the prompt"
        )

    def level_kl(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return the cost of level s = `level` + 1 (B,): one network evaluation."""
        return self._costs(x, level + 1, noise, condition).sum(1)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return the cost of level s = `level` + 1 at every position (B, L)."""
        return self._costs(x, level + 1, noise, condition)

    def reconstruction(self, x: Batch, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return the cost of level s = 1 (B,), which has one mask, since F ≤ L."""
        return self.reconstruction_map(x, noise, condition).sum(1)

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return the cost of level s = 1 at every position (B, L)."""
        return self._costs(x, torch.ones(len(x), dtype=torch.long, device=x.device), noise, condition)

    def prior(self, x: Batch) -> PerItem:
        """Return 0 (B,): all free positions are masked at the end."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def prior_map(self, x: Batch) -> Batch:
        """Return 0 at every position (B, L)."""
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device)

    @torch.no_grad()
    def exact_ledger(self, x: Batch, condition: Condition | None = None) -> Ledger:
        """Return the ledger of items x (B, L) without any Monte Carlo error, from all masks of their free positions, L ≤ 16.

        Raises DiffusionalError for longer sequences.
        """
        self.space.check(x)
        free, rest = self._given(x, condition)
        masks, sums = self.model.sums_over_masks(x, rest)
        valid = ~(masks[None] & ~free[:, None]).any(2)  # (B, M)
        number, level = free.sum(1).double()[:, None], torch.arange(1, self.steps + 1, device=x.device)
        each = torch.zeros(len(x), self.steps, dtype=torch.float64, device=x.device)
        for n in range(1, self.steps + 1):
            # The mean of Σ over the masks of n positions, and the part of each level that has n masks.
            chance = (valid & (masks.sum(1) == n)).double()
            mean = (chance * sums).sum(1) / chance.sum(1).clamp(min=1)
            ends = torch.minimum(n / number, level / self.steps)
            part = (ends - torch.maximum((n - 1) / number, (level - 1) / self.steps)).clamp(min=0)
            each += part * number / n * mean[:, None]
        return Ledger(each[:, 0], each[:, 1:], self.prior(x), self.space.dimensions)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Return n samples x (n, L) of which the prompts are a part.

        With `steps` smaller than the number of free positions, positions that are filled in the same step are drawn independently of each
        other, from another model than the one whose bound is reported. Raises DiffusionalError without a prompt.
        """
        return self._filled(n, condition, steps, generator, greedy=False)

    @torch.no_grad()
    def most_confident(self, condition: Condition, steps: int | None = None) -> Tensor:
        """Return sequences (N, L) in which the free positions are filled with the most probable token, the most certain position first: the
        equivalent of greedy decoding, in as many network evaluations as there are free positions, or in `steps`.
        """
        prompt = condition if isinstance(condition, Tensor) else condition[PROMPT]
        return self._filled(len(prompt), condition, steps, None, greedy=True)

    def _filled(
        self, n: int, condition: Condition | None, steps: int | None, generator: torch.Generator | None, greedy: bool
    ) -> Tensor:
        prompt, rest = self._parts(condition, n)
        if len(prompt) != n:
            raise DiffusionalError(f"expected {n} prompts, one for each sample, got {len(prompt)}")
        if steps is not None and steps < 1:
            raise DiffusionalError(f"expected at least 1 step, got steps={steps}")
        like = next(self.model.parameters(), torch.empty(0))
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        mask, free = self.model.process.mask, prompt < 0
        z = torch.where(free, mask, prompt).to(like.device, dtype)
        number = free.sum(1).to(like.device)
        total = int(number.max()) if steps is None else min(steps, int(number.max()))
        for step in range(total):
            masked = z == mask
            more = masked.sum(1) - number * (total - step - 1) // total
            rows = (more > 0).nonzero().squeeze(1)
            log_probs = self.model.log_probs(z[rows], rows_of(rest, rows.cpu()) if rest else None)
            best, token = log_probs.max(-1)
            noise = -best if greedy else torch.empty(best.shape, device=best.device).uniform_(generator=generator)
            order = torch.where(masked[rows], noise, torch.inf).argsort(dim=1, stable=True).argsort(1)
            at, place = (order < more[rows, None]).nonzero().T
            if greedy:
                drawn = token[at, place]
            else:
                drawn = torch.multinomial(log_probs[at, place].exp(), 1, generator=generator)[:, 0]
            z[rows[at], place] = drawn.to(dtype)
        return z
