"""A control variate of masked sequences: what a small model that sees two positions on either side would pay for the masked positions.

A masked diffusion pays Σ_{i ∈ M} −ln p_i(x_i | shown) for the mask M of a latent. The control pays −ln w(x_i | window), where the window are the
W positions to the left of i and the W to the right, each of which shows its token, is masked, or lies beyond the end. w is a network with one hidden layer,
fitted to a training text under random masks. Its cost depends on 2^{2W} patterns of the window only, and the probability of a pattern with s
shown positions is known for every process of masks (`Chain.masks`), so that for every item and every latent

    E Σ_{i ∈ M} −ln w = Σ_i Σ_S P(i and its window without S masked, S shown) −ln w(x_i | x_S)

is a finite sum. The exactness of this sum, and not that of w, is what the estimate needs.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from diffusional.evaluation.control import Look
from diffusional.models.protocols import MaskCosts
from diffusional.shapes import align

# W, the hidden width of w, and the most categories of a space for which it is fitted.
_REACH, _HIDDEN, MOST_CATEGORIES = 2, 64, 1024
# Steps and positions of a step of its training, at most; the learning rate falls linearly to zero.
_STEPS, _POSITIONS, _RATE = 600, 2048, 1e-2
# The fewest steps, and the number of positions of the text for each further one.
_LEAST_STEPS, _PER_STEP = 40, 64
# Rows of one product.
_ROWS = 16_384


class Window:
    """The control of a chain of masks, with the weights of w.

    >>> from diffusional import MaskedDiffusion
    >>> from diffusional.space import Categorical
    >>> chain = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 2), Categorical(6, 2))
    >>> control = Window.fit(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]), chain)
    >>> control.expects, control.draws
    (('window',), ('window',))
    """

    name = "window"
    models_cost = False
    expects = draws = ("window",)

    def __init__(self, chain: MaskCosts, embedding: Tensor, bias: Tensor, output: Tensor, frequency: Tensor) -> None:
        self.chain = chain
        # (2W, K + 2, H), where K is a mask and K + 1 a position beyond the end; (H,); (H, K); (K,).
        self.embedding, self.bias, self.output, self.frequency = embedding, bias, output, frequency
        self._chance: Tensor | None = None

    @classmethod
    def fit(cls, x: Tensor, chain: MaskCosts) -> "Window":
        """Return the control with w fitted to items x (N, L), in a few seconds at most."""
        with torch.inference_mode(False), torch.enable_grad():
            return cls(chain, *_fitted(x.detach().cpu().round().long().clone(), chain.space.levels))

    @classmethod
    def from_state(cls, chain: MaskCosts, state: dict[str, Tensor]) -> "Window":
        return cls(chain, state["embedding"], state["bias"], state["output"], state["frequency"])

    def state(self) -> dict[str, Tensor]:
        names = ("embedding", "bias", "output", "frequency")
        return {name: getattr(self, name) for name in names}

    def _costs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return −ln w (R,) of tokens (R,) for sums of embeddings (R, H), float64."""
        device = hidden.device
        out = functional.gelu(hidden + self.bias.to(device)) @ self.output.to(device) + self.frequency.to(device)
        return functional.cross_entropy(out, tokens, reduction="none").double()

    def _patterns(self, windows: Tensor, tokens: Tensor) -> Tensor:
        """Return the sum of −ln w over the patterns with s shown positions (R, 2W + 1), of windows (R, 2W) around tokens (R,)."""
        embedding, k = self.embedding.to(windows.device), self.chain.space.levels
        out = torch.zeros(len(windows), 2 * _REACH + 1, dtype=torch.float64, device=windows.device)
        inside = windows <= k
        for pattern in itertools.product((False, True), repeat=2 * _REACH):
            shown = torch.tensor(pattern, device=windows.device)
            # A position beyond the end is neither shown nor masked.
            rows = (inside | ~shown).all(1).nonzero().squeeze(1)
            seen = torch.where(shown | ~inside[rows], windows[rows], k)
            hidden = functional.embedding(seen[:, 0], embedding[0])
            for j in range(1, 2 * _REACH):
                hidden = hidden + functional.embedding(seen[:, j], embedding[j])
            out[rows, sum(pattern)] += self._costs(hidden, tokens[rows])
        return out

    def _by_shown(self, x: Tensor) -> Tensor:
        """Return the sums of `_patterns` at every position (B, L, 2W + 1) of tokens x (B, L). Equal windows are computed once."""
        base = self.chain.space.levels + 2
        around = torch.cat([_windows(x, base - 1), x[..., None]], 2)
        place = base ** torch.arange(2 * _REACH + 1, device=x.device)
        keys, of = torch.unique((around * place).sum(2), return_inverse=True)
        parts = []
        for some in keys.split(_ROWS):
            found = some[:, None] // place % base
            parts.append(self._patterns(found[:, :-1], found[:, -1]))
        return torch.cat(parts)[of]

    def _chances(self) -> Tensor:
        """Return the probability (T, W + 1, 2W + 1) that a position of z_t is masked together with all but s of the W + m positions of its
        window, which are shown.
        """
        if self._chance is None:
            steps = self.chain.steps
            assert steps is not None
            t = torch.arange(1, steps + 1)
            table = torch.zeros(steps, 2 * _REACH + 1, 2 * _REACH + 1, dtype=torch.float64)
            # No position of a short sequence has more than the others in its window.
            for size in range(min(2 * _REACH, self.chain.space.shape[0] - 1) + 1):
                for shown in range(size + 1):
                    table[:, size, shown] = self.chain.mask_chance(t, 1 + size - shown, shown)
            self._chance = table
        return self._chance

    def _totals(self, x: Tensor) -> Tensor:
        """Return the expectation of the sum over the mask of every latent (B, T), of tokens x (B, L)."""
        length, place = x.shape[1], torch.arange(x.shape[1], device=x.device)
        size = place.clamp(max=_REACH) + (length - 1 - place).clamp(max=_REACH)
        sums = torch.zeros(len(x), 2 * _REACH + 1, 2 * _REACH + 1, dtype=torch.float64, device=x.device)
        sums.index_add_(1, size, self._by_shown(x))
        return sums.flatten(1) @ self._chances().to(x.device).flatten(1).T

    def _drawn(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return the sum over the masked positions (B,) of tokens x (B, L)."""
        k, embedding = self.chain.space.levels, self.embedding.to(x.device)
        around, out = (
            _windows(torch.where(masks, k, x), k + 1),
            torch.zeros(len(x), dtype=torch.float64, device=x.device),
        )
        item, place = masks.nonzero(as_tuple=True)
        for some in torch.arange(len(item), device=x.device).split(_ROWS):
            i, at = item[some], place[some]
            hidden = functional.embedding(around[i, at, 0], embedding[0])
            for j in range(1, 2 * _REACH):
                hidden = hidden + functional.embedding(around[i, at, j], embedding[j])
            out.index_add_(0, i, self._costs(hidden, x[i, at]))
        return out

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        x = look.x.round().long()
        masks = self.chain.masked(look.latent, look.noise)
        expected = self._totals(x)[torch.arange(len(x), device=x.device), look.latent - 1]
        rate = align(self.chain.mask_rate(look.latent).to(x.device), expected)
        return (rate * expected)[:, None], (rate * (self._drawn(x, masks) - expected))[:, None]

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        """Return Σ_l weight_ml of the function of item and level (B, M, 1); `gamma` are the numbers of latents, since there is no γ."""
        latent = gamma.long()
        each = self._totals(x.round().long())[:, latent - 1] * self.chain.mask_rate(latent).to(x.device)
        return (each @ weight.to(x.device).T)[..., None]

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        return torch.zeros(len(gamma), len(self.draws), dtype=torch.float64)


def _windows(tokens: Tensor, outside: int) -> Tensor:
    """Return the W tokens to the left and the W to the right of each position (B, L, 2W) of tokens (B, L), or `outside` beyond the ends.

    >>> _windows(torch.tensor([[5, 6, 7]]), 9)[0].tolist()
    [[9, 9, 6, 7], [9, 5, 7, 9], [5, 6, 9, 9]]
    """
    length, padded = tokens.shape[1], functional.pad(tokens, (_REACH, _REACH), value=outside)
    offsets = [*range(_REACH), *range(_REACH + 1, 2 * _REACH + 1)]
    return torch.stack([padded[:, j : j + length] for j in offsets], 2)


def _fitted(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of w, fitted by Adam to tokens x (N, L) with every fraction of the window masked."""
    generator = torch.Generator().manual_seed(0)
    embedding = (0.15 * torch.randn(2 * _REACH, k + 2, _HIDDEN, generator=generator)).requires_grad_()
    output = (0.05 * torch.randn(_HIDDEN, k, generator=generator)).requires_grad_()
    bias = torch.zeros(_HIDDEN, requires_grad=True)
    counts = torch.bincount(x.flatten(), minlength=k).double() + 0.1
    frequency = (counts / counts.sum()).log().float().requires_grad_()
    weights = (embedding, bias, output, frequency)
    steps = min(_STEPS, _LEAST_STEPS + x.numel() // _PER_STEP)
    rows = min(_POSITIONS, x.numel())
    windows, tokens, optimizer = _windows(x, k + 1).flatten(0, 1), x.flatten(), torch.optim.Adam(weights, _RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        some = torch.randint(len(tokens), (rows,), generator=generator)
        around = windows[some]
        shown = torch.rand(around.shape, generator=generator) < torch.rand(rows, 1, generator=generator)
        seen = torch.where(shown | (around > k), around, k)
        hidden = sum(
            (functional.embedding(seen[:, j], embedding[j]) for j in range(1, 2 * _REACH)),
            functional.embedding(seen[:, 0], embedding[0]),
        )
        loss = functional.cross_entropy(functional.gelu(hidden + bias) @ output + frequency, tokens[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuple(w.detach() for w in weights)  # pyright: ignore[reportReturnType]
