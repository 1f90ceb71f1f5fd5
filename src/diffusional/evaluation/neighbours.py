"""Control variates of masked sequences: what a Markov chain would pay for the masked positions, and moments of the mask.

A masked diffusion pays Σ_{i ∈ M} −ln p_i(x_i | shown) for the mask M of a latent. A Markov chain of order one pays −ln p(x_i | l, r), where l is the
nearest shown position to the left of i, and r to the right, at distances g and h. It has the transition matrix P of a training text and the
frequencies π:

    p(x_i | l, r) = P^g[x_l, x_i] P^h[x_i, x_r] / P^{g+h}[x_l, x_r],     with P^g[x_l, x_i] without r, and π[x_i] P^h[x_i, x_r]/π[x_r] without l.

A neighbour that is more than G positions away, or beyond the end, does not count. The event (g, h) means that g + h − 1 positions are masked and
two are shown, so that its probability is known for every process of masks (`Chain.masks`), and with it the expectation of the sum, for every
item and every latent, without a draw. The same holds for Σ_{i ∈ M} w_i(x), with w_i what the chain pays for i beside two shown neighbours, or by π.
"""

import torch
from torch import Tensor

from diffusional.evaluation.control import Look
from diffusional.models.protocols import MaskCosts
from diffusional.shapes import align

# G, the distance up to which neighbours count; the most categories of which powers of P are kept.
_REACH, MOST_CATEGORIES = 8, 1024
# Added to the count of every pair of categories.
_PRIOR = 0.1


class Neighbours:
    """The control of a chain of masks, with P and π of reference items.

    >>> from diffusional import MaskedDiffusion
    >>> from diffusional.space import Categorical
    >>> chain = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 2), Categorical(6, 2))
    >>> control = Neighbours.fit(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]), chain)
    >>> control.expects, control.draws
    (('chain', 'between', 'frequency'), ('chain', 'between', 'frequency'))
    """

    name = "neighbours"
    models_cost = False
    expects = draws = ("chain", "between", "frequency")

    def __init__(self, chain: MaskCosts, transition: Tensor, frequency: Tensor) -> None:
        self.chain, self.transition, self.frequency = chain, transition, frequency
        powers = [transition]
        while len(powers) < 2 * _REACH:
            powers.append(powers[-1] @ transition)
        # ln P^0 is not used.
        self._powers = torch.stack([torch.ones_like(transition), *powers]).log()
        self._log_frequency = frequency.log()
        self._classes = _edges_of(chain.space.shape[0])
        self._table: Tensor | None = None

    @classmethod
    def fit(cls, x: Tensor, chain: MaskCosts) -> "Neighbours":
        """Return the control with the pairs of neighbours and the frequencies of items x (N, L)."""
        k, tokens = chain.space.levels, x.detach().cpu().round().long()
        pairs = torch.bincount((tokens[:, :-1] * k + tokens[:, 1:]).flatten(), minlength=k * k).view(k, k).double()
        counts = torch.bincount(tokens.flatten(), minlength=k).double() + _PRIOR
        frequency = counts / counts.sum()
        transition = pairs + _PRIOR * k * frequency
        return cls(chain, transition / transition.sum(1, keepdim=True), frequency)

    @classmethod
    def from_state(cls, chain: MaskCosts, state: dict[str, Tensor]) -> "Neighbours":
        return cls(chain, state["transition"], state["frequency"])

    def state(self) -> dict[str, Tensor]:
        return {"transition": self.transition, "frequency": self.frequency}

    def _paid(self, x: Tensor) -> Tensor:
        """Return −ln p(x_i | g, h) (B, L, G + 1, G + 1) for tokens x (B, L), with 0 for a neighbour that does not count."""
        powers, log_frequency = self._powers.to(x.device), self._log_frequency.to(x.device)
        length, reach = x.shape[1], _REACH
        padded = torch.nn.functional.pad(x, (reach, reach))
        left = torch.stack([padded[:, reach - g : reach - g + length] for g in range(1, reach + 1)], 2)
        right = torch.stack([padded[:, reach + h : reach + h + length] for h in range(1, reach + 1)], 2)
        g, here = torch.arange(1, reach + 1, device=x.device), x[:, :, None]
        from_left = powers[g, left, here]  # (B, L, G)
        to_right = powers[g, here, right]
        joined = powers[g[:, None] + g, left[..., :, None], right[..., None, :]]
        own = log_frequency[x]
        out = torch.empty(*x.shape, reach + 1, reach + 1, dtype=torch.float64, device=x.device)
        out[..., 0, 0] = own
        out[..., 1:, 0] = from_left
        out[..., 0, 1:] = own[..., None] + to_right - log_frequency[right]
        out[..., 1:, 1:] = from_left[..., :, None] + to_right[..., None, :] - joined
        return -out

    def _chances(self) -> Tensor:
        """Return the probability (T, C, G + 1, G + 1) of the event (g, h) together with a mask at the position itself, for every latent and
        every number of positions to the left and to the right (the classes of `_edges_of`).
        """
        if self._table is None:
            steps = self.chain.steps
            assert steps is not None
            t, reach = torch.arange(1, steps + 1), _REACH
            classes = self._classes.unique(dim=0)
            table = torch.zeros(steps, len(classes), reach + 1, reach + 1, dtype=torch.float64)
            for c, (before, after) in enumerate(classes.tolist()):
                for g in range(before + 1):
                    for h in range(after + 1):
                        masked = 1 + (g - 1 if g else before) + (h - 1 if h else after)
                        table[:, c, g, h] = self.chain.mask_chance(t, masked, (g > 0) + (h > 0))
            self._table = table
        return self._table

    def _totals(self, x: Tensor) -> Tensor:
        """Return the expectation (B, T, 3) of the three sums over the mask of every latent, of tokens x (B, L)."""
        paid, table = self._paid(x), self._chances().to(x.device)
        _, of = self._classes.unique(dim=0, return_inverse=True)
        sums = torch.zeros(len(x), table.shape[1], *paid.shape[2:], dtype=torch.float64, device=x.device)
        sums.index_add_(1, of.to(x.device), paid)
        # A class has no event beyond the ends, whose probability is 0 and whose cost is of padding.
        chain = sums.flatten(1) @ table.flatten(1).T
        t = torch.arange(1, len(table) + 1)
        any_one = self.chain.mask_chance(t, 1, 0).to(x.device)
        moments = torch.stack([paid[..., 1, 1].sum(1), paid[..., 0, 0].sum(1)], 1)
        return torch.cat([chain[..., None], any_one[:, None] * moments[:, None, :]], 2)

    def _drawn(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return the three sums (B, 3) over the masked positions of tokens x (B, L)."""
        length, place = x.shape[1], torch.arange(x.shape[1], device=x.device)
        g = place - torch.where(masks, -1, place).cummax(1).values
        h = place - torch.where(masks.flip(1), -1, place).cummax(1).values
        h = h.flip(1)
        # Neighbours beyond the ends are as far away as the end and one more.
        g = torch.where((g <= _REACH) & (g <= place), g, 0)
        h = torch.where((h <= _REACH) & (h <= length - 1 - place), h, 0)
        paid, rows = self._paid(x), torch.arange(len(x), device=x.device)[:, None]
        each = torch.stack([paid[rows, place, g, h], paid[..., 1, 1], paid[..., 0, 0]], 2)
        return (each * masks[..., None]).sum(1)

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        x = look.x.round().long()
        masks = self.chain.masked(look.latent, look.noise)
        rows = torch.arange(len(x), device=x.device)
        expected = self._totals(x)[rows, look.latent - 1]
        rate = align(self.chain.mask_rate(look.latent).to(x.device), expected)
        return rate * expected, rate * (self._drawn(x, masks) - expected)

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        """Return Σ_l weight_ml of the functions of item and level (B, M, 3); `gamma` are the numbers of latents, since there is no γ."""
        latent = gamma.long()
        rate = self.chain.mask_rate(latent).to(x.device)
        each = self._totals(x.round().long())[:, latent - 1] * rate[:, None]
        return torch.einsum("ml,ble->bme", weight.to(x.device), each)

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        return torch.zeros(len(gamma), len(self.draws), dtype=torch.float64)


def _edges_of(length: int) -> Tensor:
    """Return the number of positions to the left and to the right of each position (L, 2), at most G."""
    place = torch.arange(length)
    return torch.stack([place.clamp(max=_REACH), (length - 1 - place).clamp(max=_REACH)], 1)
