"""Masks: forward processes in which every position of a sequence shows its value or is masked, MATH (34).

`Absorbing` masks every position independently. At z_t each position still shows x with probability a_t, 1 ≥ a_1 > … > a_T = 0:

    q(z_t | z_{t−1}): a shown position stays shown with probability a_t/a_{t−1}, a_0 = 1; a masked one stays masked
    q(z_t | z_{t+1}, x): a masked position shows x with probability ρ_t = (a_t − a_{t+1})/(1 − a_{t+1})

A schedule a(u) falls from a(0) = 1 to a(1) = 0: with T steps a_t = a(t/T), and with `steps=None` time is continuous. There, masks appear one
at a time, at random positions, and when they appear does not matter to any bound. What is left without the times is the chain `OneAtATime`, with
T = L latents of which z_t has exactly t masks:

    q(z_t | z_{t−1}): one of the L − t + 1 shown positions, all equally likely, becomes a mask
    q(z_t | z_{t+1}, x): one of the t + 1 masks, all equally likely, shows x

It has the bound of every continuous-time absorbing diffusion of the same network, whatever the shape of a.

A sequence (B, L) has the values 0 … K − 1, and K is the mask. All coefficients are float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtr

from diffusional.categorical import Categorical
from diffusional.errors import DiffusionalError
from diffusional.forward import ForwardProcess, Time, latents
from diffusional.schedule import Float64
from diffusional.shapes import Batch, PerItem, align

Signal = Callable[[Tensor], Tensor]

# a(u) by name.
SIGNALS: dict[str, Signal] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: 1 - torch.sin(0.5 * math.pi * u),
    "square": lambda u: (1 - u).square(),
}
# Points at which a continuous schedule is checked and by which it is identified.
_POINTS = 65


def _signal(signal: str | Signal) -> Signal:
    if callable(signal):
        return signal
    if signal not in SIGNALS:
        raise DiffusionalError(f"expected signal to be one of {', '.join(SIGNALS)} or a function a(u), got {signal!r}")
    return SIGNALS[signal]


def signal_table(signal: str | Signal | Sequence[float] | Tensor, steps: int | None) -> tuple[Tensor, Signal | None]:
    """Return a_1 … a_T (T,), float64, or a at 65 points in continuous time, and the function a(u) if there is one.

    Raises DiffusionalError unless 1 ≥ a_1 > a_2 > … > a_T ≥ 0, and for steps that do not match the numbers that were given.

    >>> signal_table("linear", 4)[0]
    tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    function = None
    if isinstance(signal, str) or callable(signal):
        function = _signal(signal)
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 2):
            raise DiffusionalError(f"expected steps to be at least 2, or None for continuous time, got {steps!r}")
        points = steps or _POINTS - 1
        u = torch.arange(1, points + 1, dtype=torch.float64) / points
        table = torch.as_tensor(function(u), dtype=torch.float64).detach()
    else:
        table = torch.as_tensor(signal, dtype=torch.float64).detach().cpu()
        if steps not in (None, table.numel()):
            raise DiffusionalError(
                f"expected steps={table.numel()}, the number of signals that were given, got steps={steps}"
            )
    if table.ndim != 1 or len(table) < 2:
        raise DiffusionalError(f"expected signals a_1 … a_T of shape (T,) with T ≥ 2, got shape {tuple(table.shape)}")
    if not bool(torch.isfinite(table).all()) or table[0] > 1 or table[-1] < 0 or not bool((table.diff() < 0).all()):
        raise DiffusionalError(
            f"expected signals 1 ≥ a_1 > a_2 > … > a_T ≥ 0, got {', '.join(f'{a:g}' for a in table[:3].tolist())}, …, {float(table[-1]):g}"
        )
    return table.clone(), function


class Absorbing(Float64, ForwardProcess):
    """The absorbing diffusion of sequences, MATH (34): independent masks, with a_t the probability that a position is still shown.

        q(z_t | x): z_{t,i} = x_i with probability a_t, otherwise the mask, independently for every position i

    (Austin et al. 2021.)

    Args:
        categories: K, the number of categories; K is the mask.
        steps: T, or None for continuous time.
        signal: "linear" (1 − u), "cosine" (1 − sin ½πu), "square" ((1 − u)²), a function a(u) of a float64 tensor, or the numbers
            a_1 … a_T.

    Times are ints or int64 tensors (B,), or u in [0, 1] in continuous time. Raises DiffusionalError for signals that do not fall, and
    unless a_T = 0: p(z_T) is all masks, and KL_T would be infinite.

    >>> Absorbing(27, steps=4).marginal(torch.zeros(1, 2), t=1).log_prob(torch.tensor([[0.0, 27.0]])).exp()       # ¾ · ¼
    tensor([0.1875], dtype=torch.float64)
    """

    def __init__(
        self, categories: int, steps: int | None = None, signal: str | Signal | Sequence[float] | Tensor = "linear"
    ) -> None:
        super().__init__()
        table, self._function = signal_table(signal, steps)
        if abs(float(table[-1])) > 1e-12:
            raise DiffusionalError(
                f"expected a signal that ends at 0, so that z_T is all masks, got a_T = {float(table[-1]):g}: KL_T would be infinite"
            )
        table[-1] = 0.0
        self.categories = categories
        self._steps = len(table) if steps is not None or self._function is None else None
        self.signal: Tensor
        self.register_buffer("signal", table)

    def extra_repr(self) -> str:
        """Return what is printed in brackets: the categories, T, and of the signals the first and the last ones.

        >>> Absorbing(27, steps=4), Absorbing(27)
        (Absorbing(categories=27, steps=4, signal=0.75 … 0), Absorbing(categories=27, steps=None))
        """
        ends = "" if self.steps is None else f", signal={float(self.signal[0]):.3g} … {float(self.signal[-1]):.3g}"
        return f"categories={self.categories}, steps={self.steps}{ends}"

    @property
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time."""
        return self._steps

    @property
    def mask(self) -> int:
        """The value of a mask, K."""
        return self.categories

    def regrid(self, steps: int | None) -> "Absorbing":
        """Return the process with the same a(u) and another number of latents, or in continuous time. Raises DiffusionalError for signals
        that were given as numbers.
        """
        if self._function is None:
            raise DiffusionalError(
                f"steps={steps} was given, but the signals are numbers a_1 … a_T; give them as a function a(u)"
            )
        return Absorbing(self.categories, steps, self._function)

    def keeps(self, t: Time, first: int = 1) -> Tensor:
        """Return a_t (B,) or (), float64, t in `first` … T with a_0 = 1; in continuous time a(u)."""
        if self.steps is None:
            assert self._function is not None
            u = torch.as_tensor(t, dtype=torch.float64, device=self.signal.device)
            if not bool(((u >= 0) & (u <= 1)).all()):
                raise DiffusionalError(f"expected u in [0, 1], got {float(u.min()):g} to {float(u.max()):g}")
            return self._function(u).clamp(0, 1)
        t = latents(t, first, self.steps, self.signal.device)
        return torch.cat([self.signal.new_ones(1), self.signal])[t]

    def masked(self, t: Time, noise: Batch) -> Tensor:
        """Return which positions of z_t are masked for standard normal noise (B, L): those with Φ(ε) ≥ a_t."""
        return ndtr(noise.double()) >= align(self.keeps(t), noise.double())

    def rate(self, level: Time) -> Tensor:
        """Return ρ_t (B,) or (), the probability that a mask of z_{t+1} is gone in z_t; in continuous time −a'(u)/(1 − a(u)), per unit of u."""
        if self.steps is not None:
            now, after = self.keeps(level), self.keeps(level + 1)
            return (now - after) / (1 - after)
        assert self._function is not None
        # Evaluations run in inference mode, whose tensors have no derivatives.
        with torch.inference_mode(False), torch.enable_grad():
            u = torch.as_tensor(level, dtype=torch.float64).detach().clone().requires_grad_(True)
            a = self._function(u)
            (slope,) = torch.autograd.grad(a.sum(), u)
        a = a.detach()
        return torch.where(a < 1, -slope / (1 - a).clamp(min=1e-300), 0.0)

    def chance(self, t: Time, masked: int, shown: int) -> Tensor:
        """Return the probability (B,) or () that `masked` given positions of z_t are masked and `shown` others are not."""
        keep = self.keeps(t)
        return (1 - keep) ** masked * keep**shown

    def _hidden(self, z: Batch, keep: Tensor) -> Categorical:
        """Return independent positions that show z with probability `keep`, and are masked otherwise."""
        keep = align(keep.to(z.device), z.double())[..., None]
        p = torch.zeros(*z.shape, self.categories + 1, dtype=torch.float64, device=z.device)
        p.scatter_(-1, z.long()[..., None], keep.expand(*z.shape, 1))
        p[..., self.mask] += (1 - keep[..., 0]).expand(z.shape)
        return self._states(p.log())

    def _states(self, logits: Tensor) -> Categorical:
        return Categorical(logits, torch.arange(self.categories + 1, dtype=torch.float64))

    def marginal(self, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | x), t in 1 … T."""
        return self._hidden(x, self.keeps(t))

    def transition(self, z: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t−1} = z), t in 1 … T; z_0 ≡ x."""
        return self._hidden(z, self.keeps(t) / self.keeps(t - 1, first=0))

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T − 1."""
        certain = torch.full((*x.shape, self.categories), -torch.inf, dtype=torch.float64, device=x.device)
        return self.shown(z_next, certain.scatter_(-1, x.long()[..., None], 0.0), t)

    def shown(self, z_next: Batch, log_probs: Tensor, t: Time) -> Categorical:
        """Return the distribution of z_t in which a mask of z_{t+1} = z_next is gone with probability ρ_t, where it shows category k with
        probability p_k. `log_probs` ln p (B, L, K) is normalised.
        """
        rate = align(self.rate(t).to(z_next.device), z_next.double())[..., None]
        masks = (z_next == self.mask)[..., None]
        kept = torch.full((*z_next.shape, self.categories + 1), -torch.inf, dtype=torch.float64, device=z_next.device)
        kept.scatter_(-1, z_next.long()[..., None], 0.0)
        opened = torch.cat([rate.log() + log_probs.double(), torch.log1p(-rate).expand(*z_next.shape, 1)], -1)
        return self._states(torch.where(masks, opened, kept))


class OneAtATime(ForwardProcess):
    """The absorbing diffusion that masks one position at each step, MATH (34): z_t has t masks, T = L.

    It is every continuous-time absorbing diffusion without the times at which its masks appear.

    Args:
        categories: K, the number of categories; K is the mask.
        length: L, at least 2.

    >>> OneAtATime(27, 4)
    OneAtATime(categories=27, length=4)
    >>> OneAtATime(27, 4).sample_path(torch.zeros(1, 4), torch.Generator().manual_seed(0)).eq(27).sum(2).T
    tensor([[1, 2, 3, 4]])
    """

    def __init__(self, categories: int, length: int) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            raise DiffusionalError(f"expected sequences of at least 2 positions (length), got {length!r}")
        self.categories, self.length = categories, length

    def __repr__(self) -> str:
        return f"OneAtATime(categories={self.categories}, length={self.length})"

    @property
    def steps(self) -> int:
        """T = L, the number of latents."""
        return self.length

    @property
    def mask(self) -> int:
        """The value of a mask, K."""
        return self.categories

    def masked(self, t: Time, noise: Batch) -> Tensor:
        """Return which positions of z_t are masked for noise (B, L): those of the t smallest numbers."""
        place = noise.argsort(dim=1, stable=True).argsort(1)
        return place < latents(t, 1, self.steps, noise.device).reshape(-1, 1)

    def rate(self, level: Time) -> Tensor:
        """Return 1/(t + 1) (B,) or (), the probability that a mask of z_{t+1} is the one that is gone in z_t."""
        return 1 / (latents(level, 1, self.steps - 1, torch.as_tensor(level).device) + 1).double()

    def chance(self, t: Time, masked: int, shown: int) -> Tensor:
        """Return the probability (B,) or () that `masked` given positions of z_t are masked and `shown` others are not.

        >>> OneAtATime(27, 4).chance(torch.tensor([1, 2]), 1, 1)                                        # ¼, and ½ · ⅔
        tensor([0.2500, 0.3333], dtype=torch.float64)
        """
        out = torch.ones_like(latents(t, 1, self.length, torch.as_tensor(t).device), dtype=torch.float64)
        left, hidden = float(self.length), torch.as_tensor(t).double()
        for k in range(masked + shown):
            # The positions one after the other: hidden of the left ones are masked.
            out = out * ((hidden - k if k < masked else left - hidden - (k - masked)) / (left - k)).clamp(min=0)
        return out

    def marginal(self, x: Batch, t: Time) -> "Hiding":
        """Return q(z_t | x), t in 1 … T."""
        return Hiding(x, latents(t, 1, self.steps, x.device).expand(len(x)), self.mask)

    def transition(self, z: Batch, t: Time) -> "Hiding":
        """Return q(z_t | z_{t−1} = z), t in 1 … T; z_0 ≡ x."""
        latents(t, 1, self.steps, z.device)
        return Hiding(z, torch.ones(len(z), dtype=torch.long, device=z.device), self.mask)

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> "Showing":
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T − 1."""
        certain = torch.full((*x.shape, self.categories), -torch.inf, dtype=torch.float64, device=x.device)
        return self.shown(z_next, certain.scatter_(-1, x.long()[..., None], 0.0), t)

    def shown(self, z_next: Batch, log_probs: Tensor, t: Time) -> "Showing":
        """Return the distribution of z_t in which one mask of z_{t+1} = z_next is gone, and shows category k with probability p_k.
        `log_probs` ln p (B, L, K) is normalised.
        """
        latents(t, 1, self.steps - 1, z_next.device)
        return Showing(z_next, log_probs.double(), self.mask)


@dataclass(frozen=True)
class Hiding:
    """z with `more` (B,) further masks, at shown positions that are all equally likely."""

    z: Tensor
    more: Tensor
    mask: int

    @property
    def _shown(self) -> Tensor:
        return self.z != self.mask

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw (B, L): the shown positions with the smallest noise become masks."""
        if noise is None:
            noise = torch.empty_like(self.z).normal_(generator=generator)
        place = torch.where(self._shown, noise, torch.inf).argsort(dim=1, stable=True).argsort(1)
        hidden = self._shown & (place < self.more[:, None])
        return torch.where(hidden, float(self.mask), self.z).to(noise.dtype)

    def log_prob(self, z: Batch) -> PerItem:
        """Return −ln of the number of ways to choose the further masks (B,), −∞ for a z that is none of them."""
        now = z == self.mask
        same = ((z == self.z) | now).all(1) & (now | self._shown).all(1)
        possible = same & ((now & self._shown).sum(1) == self.more)
        return torch.where(possible, -self._ways(), -torch.inf)

    def _ways(self) -> Tensor:
        """Return ln C(number shown, more) (B,)."""
        shown, more = self._shown.sum(1).double(), self.more.double()
        return torch.lgamma(shown + 1) - torch.lgamma(more + 1) - torch.lgamma(shown - more + 1)

    def kl(self, other: "Hiding") -> PerItem:
        """Return 0 (B,) for the same distribution, +∞ for another."""
        everything = (self.more == self._shown.sum(1)) & (other.more == other._shown.sum(1))
        same = (self.more == other.more) & ((self.z == other.z).all(1) | everything)
        return torch.where(same, 0.0, torch.inf).double()

    def kl_map(self, other: "Hiding") -> Batch:
        """Return the KL divergence at every position (B, L): zeros, or +∞ for another distribution."""
        return self.kl(other)[:, None].expand(self.z.shape) + torch.zeros_like(self.z, dtype=torch.float64)


@dataclass(frozen=True)
class Showing:
    """z with one mask fewer: one of its masks, all equally likely, shows category k with probability p_k. `log_probs` is ln p (B, L, K)."""

    z: Tensor
    log_probs: Tensor
    mask: int

    @property
    def _masks(self) -> Tensor:
        return self.z == self.mask

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw (B, L). The mask with the smallest noise ε is the one; of m masks, 1 − (1 − Φ(ε))^m is uniform, and chooses the category."""
        if noise is None:
            noise = torch.empty_like(self.z).normal_(generator=generator)
        least, at = torch.where(self._masks, noise.double(), torch.inf).min(1)
        u = -torch.expm1(self._masks.sum(1) * torch.special.log_ndtr(-least))
        p = self.log_probs[torch.arange(len(at), device=at.device), at].exp().cumsum(-1)
        if not bool(p[:, -1].isfinite().all()):
            raise DiffusionalError("expected finite probabilities to draw from, got NaN; examine the network's weights")
        value = (p / p[:, -1:] <= u.clamp(max=1 - 2.0**-53)[:, None]).sum(1)
        return self.z.to(noise.dtype).scatter(1, at[:, None], value[:, None].to(noise.dtype))

    def log_prob(self, z: Batch) -> PerItem:
        """Return −ln m + ln p_k (B,) of a z in which one of m masks shows k; −∞ for others."""
        opened = self._masks & (z != self.mask)
        possible = ((z == self.z) | opened).all(1) & (opened.sum(1) == 1)
        known = self.log_probs.gather(-1, z.long().clamp(0, self.mask - 1)[..., None])[..., 0]
        value = torch.where(opened, known, 0.0).sum(1) - self._masks.sum(1).double().log()
        return torch.where(possible, value, -torch.inf)

    def kl(self, other: "Showing") -> PerItem:
        """Return KL[self ‖ other] (B,) of distributions of the same z: the mean of the categories' KL divergences over its masks."""
        return self.kl_map(other).sum(1)

    def kl_map(self, other: "Showing") -> Batch:
        """Return the part of each position in `kl` (B, L)."""
        values = torch.arange(self.log_probs.shape[-1], dtype=torch.float64)
        each = Categorical(self.log_probs, values).kl_map(Categorical(other.log_probs, values))
        masks = self._masks
        return torch.where(masks, each, 0.0) / masks.sum(1, keepdim=True).clamp(min=1)
