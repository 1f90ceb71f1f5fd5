"""The uniform categorical diffusion: noise that redraws positions uniformly over all K categories, MATH (35).

    q(z_t | x)            = a_t 1[z_t = x] + (1 − a_t)/K
    q(z_t | z_{t−1})      = the same with a_t/a_{t−1}, a_0 = 1
    q(z_t | z_{t+1}, x)   ∝ q(z_{t+1} | z_t) q(z_t | x)                                                by Bayes' rule

position by position, for 1 > a_1 > … > a_T ≥ 0. In continuous time a position that is z turns, backward from a to a + da, into y ≠ z with
probability (da/a)/K · q(y|x)/q(z|x). Probabilities are formed as logarithms in float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.special import ndtr

from diffusional.absorbing import Signal, signal_table
from diffusional.categorical import Categorical
from diffusional.errors import DiffusionalError
from diffusional.forward import ForwardProcess, Time, latents
from diffusional.schedule import Float64
from diffusional.shapes import Batch, align

# Largest |ln a/(1 − a)| that a network receives.
_MOST = 20.0
# The smallest 1 − a whose logarithm is taken.
_LEAST = 1e-250
# Levels u of continuous time by which a process is identified.
_POINTS = 65


class UniformNoise(Float64, ForwardProcess):
    """The uniform categorical diffusion, MATH (35): at z_t each position has been redrawn over the K categories with probability 1 − a_t, so
    that q(z_t = k | x) = a_t 1[x = k] + (1 − a_t)/K (Austin et al. 2021).

    Args:
        categories: K, the number of categories.
        steps: T, at least 2, or None for continuous time.
        signal: a(u) by name or as a function, with a_t = a(t/T), or the numbers a_1 … a_T; see `Absorbing`.

    Times are ints or int64 tensors (B,), or u in [0, 1] in continuous time. There, no bound depends on the shape of a(u), but the variance of
    its estimate does: levels u have a = cos²(½πu), scaled to the ends a(0) and a(1) of the signal, whatever its shape. A redrawn position
    has a cost of about (1/v) ln(1/v) at v = 1 − a → 0, with probability v. Levels at which v falls as u² rather than as u, and `draw_tilted`, keep
    the variance finite. With a(0) = 1, the rule, z at u = 0 is x.

    Raises DiffusionalError for signals that do not fall, and for T steps with a_1 = 1.

    >>> UniformNoise(4, steps=2).marginal(torch.zeros(1, 1), t=1).log_probs.exp()                                     # a_1 = ½
    tensor([[[0.6250, 0.1250, 0.1250, 0.1250]]], dtype=torch.float64)
    >>> UniformNoise(4).keeps(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000e+00, 5.0000e-01, 3.7494e-33], dtype=torch.float64)
    """

    def __init__(
        self, categories: int, steps: int | None = None, signal: str | Signal | Sequence[float] | Tensor = "linear"
    ) -> None:
        super().__init__()
        table, self._function = signal_table(signal, steps)
        self._continuous = self._function is not None and steps is None
        if self._function is not None and steps is None:
            first = float(self._function(torch.zeros(1, dtype=torch.float64)))
            if not table[0] < first <= 1:
                raise DiffusionalError(f"expected a signal that falls from a(0) ≤ 1, got a(0) = {first:g}")
            self._ends = (first, float(table[-1]))
            table = self._at(torch.linspace(0, 1, _POINTS, dtype=torch.float64))[0]
        elif table[0] >= 1:
            raise DiffusionalError(f"expected a_1 < 1, got {float(table[0]):g}: z_1 would be x")
        self.categories = categories
        self.signal: Tensor
        self.register_buffer("signal", table)

    @property
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time."""
        return None if self._continuous else len(self.signal)

    @property
    def starts_at_data(self) -> bool:
        """Whether the first latent is x, so that p(x|z_1) costs nothing: in continuous time from a(0) = 1."""
        return self._continuous and self._ends[0] == 1

    def regrid(self, steps: int | None) -> "UniformNoise":
        """Return the process with the same a(u) and another number of latents, or in continuous time. Raises DiffusionalError for signals
        that were given as numbers.
        """
        if self._function is None:
            raise DiffusionalError(
                f"steps={steps} was given, but the signals are numbers a_1 … a_T; give them as a function a(u)"
            )
        return UniformNoise(self.categories, steps, self._function)

    def _at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and 1 − a at levels u of continuous time, without a difference of nearly equal numbers."""
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise DiffusionalError(f"expected u in [0, 1], got {float(u.min()):g} to {float(u.max()):g}")
        (first, last), angle = self._ends, 0.5 * math.pi * u
        keep = last + (first - last) * torch.cos(angle).square()
        return keep, (1 - first) + (first - last) * torch.sin(angle).square()

    def shares(self, t: Time, first: int = 1) -> tuple[Tensor, Tensor]:
        """Return a_t and 1 − a_t (B,) or (), float64."""
        if self._continuous:
            return self._at(torch.as_tensor(t, dtype=torch.float64, device=self.signal.device))
        t = latents(t, first, len(self.signal), self.signal.device)
        keep = torch.cat([self.signal.new_ones(1), self.signal])[t]
        return keep, 1 - keep

    def _discrete(self) -> int:
        """Return T. Raises DiffusionalError in continuous time."""
        if self.steps is None:
            raise DiffusionalError(
                "expected discrete time, got continuous time, in which a latent has no neighbours: choose a number of latents, regrid(steps)"
            )
        return self.steps

    def keeps(self, t: Time, first: int = 1) -> Tensor:
        """Return a_t (B,) or (), float64, t in `first` … T, with a_0 = 1; in continuous time a at level u."""
        return self.shares(t, first)[0]

    def log_odds(self, t: Time) -> Tensor:
        """Return ln a_t/(1 − a_t) (B,) or (), at most 575: 1 − a is at least 10⁻²⁵⁰."""
        keep, lost = self.shares(t)
        return keep.log() - lost.clamp(min=_LEAST).log()

    def log_snr(self, t: Time) -> Tensor:
        """Return ln a_t/(1 − a_t) (B,) or (), clamped to ±20: the time that networks receive."""
        return self.log_odds(t).clamp(-_MOST, _MOST)

    def rate(self, u: Time) -> Tensor:
        """Return −a'(u)/(K a(u)) (B,) or () in continuous time: the probability per unit of u to be redrawn as one category.

        >>> UniformNoise(4).rate(torch.tensor([0.5]))                                                             # π/4
        tensor([0.7854], dtype=torch.float64)
        """
        if not self._continuous:
            raise DiffusionalError(f"expected continuous time for a rate, got {self.steps} steps")
        u = torch.as_tensor(u, dtype=torch.float64, device=self.signal.device)
        (first, last), angle = self._ends, 0.5 * math.pi * u
        slope = (first - last) * math.pi * torch.sin(angle) * torch.cos(angle)
        return slope / (self.categories * self._at(u)[0])

    def draw(self, x: Batch, t: Time, noise: Batch) -> Batch:
        """Return z_t ~ q(z_t|x) (B, L) for standard normal noise, in O(1) for a position: those with Φ(−ε) < (1 − a_t)(1 − 1/K) differ
        from x.
        """
        return self._changed(x, ndtr(-noise.double()), self._chance(t, x))

    def draw_tilted(self, x: Batch, t: Time, noise: Batch) -> tuple[Batch, Tensor]:
        """Return z (B, L) of which at least one position differs from x with probability at least ½, and the weight (B,) with which every
        expectation is that over q(z_t|x), float64.

        Let c = (1 − a_t)(1 − 1/K), the probability that a position differs, and p = 1 − (1 − c)^L that one does. For p < ½ the smallest of
        L uniform numbers is transformed from its law below ½ to its law below p, and z differs from x with weight 2p. Otherwise z is x with
        weight 2 (1 − p). For p ≥ ½ this is `draw`, with weight 1.
        """
        upper, chance = ndtr(-noise.double()), self._chance(t, x)
        length = x.shape[1]
        some = -torch.expm1(length * torch.log1p(-chance))
        often = some.clamp(min=0.5)
        least, at = upper.min(1, keepdim=True)
        # 1 − (1 − m)^L is uniform for the smallest number m; the others are uniform above it.
        below = -torch.expm1(length * torch.log1p(-least))
        differs = below < often
        lower = -torch.expm1(torch.log1p(-below * some / often) / length)
        moved = (lower + (upper - least) / (1 - least) * (1 - lower)).scatter(1, at, lower)
        z = torch.where(differs, self._changed(x, moved, chance), x)
        weight = torch.where(differs, some / often, torch.where(some < 0.5, 2 * (1 - some), 1.0))
        return z, weight[:, 0]

    def _chance(self, t: Time, x: Batch) -> Tensor:
        """Return the probability (B, 1) that a position of z_t differs from x."""
        lost = self.shares(t)[1].to(x.device)
        return (1 - 1 / self.categories) * align(lost.expand(len(x)), x.double())

    def _changed(self, x: Batch, uniform: Tensor, chance: Tensor) -> Batch:
        """Return x with one of the K − 1 other categories, all equally likely, where `uniform` is below `chance`."""
        other = ((self.categories - 1) * uniform / chance.clamp(min=_LEAST)).floor().clamp(max=self.categories - 2)
        return torch.where(uniform < chance, other + (other >= x), x.double()).to(x.dtype)

    def _redrawn(self, z: Batch, keep: Tensor, lost: Tensor) -> Tensor:
        """Return ln of the probabilities (B, L, K) of positions that keep z with probability `keep`, and are redrawn with probability `lost`."""
        keep, lost = (align(p.to(z.device), z.double())[..., None] for p in (keep, lost))
        fresh = lost / self.categories
        p = fresh.expand(*z.shape, self.categories).clone()
        return p.scatter_(-1, z.long()[..., None], (keep + fresh).expand(*z.shape, 1)).log()

    def _states(self, logits: Tensor) -> Categorical:
        return Categorical(logits, torch.arange(self.categories, dtype=torch.float64))

    def marginal(self, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | x), t in 1 … T, or at level u of continuous time."""
        return self._states(self._redrawn(x, *self.shares(t)))

    def transition(self, z: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t−1} = z), t in 1 … T; z_0 ≡ x."""
        latents(t, 1, self._discrete(), z.device)
        keep = self.keeps(t) / self.keeps(t - 1, first=0)
        return self._states(self._redrawn(z, keep, 1 - keep))

    def seen(self, z: Batch, t: Time) -> Tensor:
        """Return ln q(z_t = z | x = k) (B, L, K) for every category k."""
        return self._redrawn(z, *self.shares(t))

    def _back(self, z_next: Batch, t: Time) -> Tensor:
        """Return ln q(z_{t+1} = z_next | z_t = j) (B, L, K) for every category j."""
        keep = self.keeps(t + 1) / self.keeps(t)
        return self._redrawn(z_next, keep, 1 - keep)

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T − 1."""
        latents(t, 1, self._discrete() - 1, x.device)
        return self._states(self._back(z_next, t) + self._redrawn(x, *self.shares(t)))

    def reverse(self, z_next: Batch, log_probs: Tensor, t: Time) -> Categorical:
        """Return Σ_k p_k q(z_t | z_{t+1} = z_next, x = k), t in 1 … T − 1, from ln p (B, L, K).

        With r_k = p_k/q(z_{t+1}|x = k) it is q(z_{t+1}|z_t = j) [a_t r_j + (1 − a_t)/K Σ_k r_k], in O(K).
        """
        latents(t, 1, self._discrete() - 1, z_next.device)
        keep = align(self.keeps(t).to(z_next.device), z_next.double())[..., None]
        r = log_probs.double() - self.seen(z_next, t + 1)
        fresh = torch.log((1 - keep) / self.categories) + r.logsumexp(-1, keepdim=True)
        return self._states(self._back(z_next, t) + torch.logaddexp(keep.log() + r, fresh))
