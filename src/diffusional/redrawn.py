"""The uniform categorical diffusion: noise that redraws positions uniformly over all K categories, MATH (35).

    q(z_t | x)            = a_t 1[z_t = x] + (1 − a_t)/K
    q(z_t | z_{t−1})      = the same with a_t/a_{t−1}, a_0 = 1
    q(z_t | z_{t+1}, x)   ∝ q(z_{t+1} | z_t) q(z_t | x)                                                by Bayes' rule

position by position, for 1 > a_1 > … > a_T ≥ 0. Probabilities are formed as logarithms in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusional.absorbing import Signal, signal_table
from diffusional.categorical import Categorical
from diffusional.errors import DiffusionalError
from diffusional.forward import ForwardProcess, Time, latents
from diffusional.schedule import Float64
from diffusional.shapes import Batch, align

# Largest |ln a/(1 − a)| that a network receives.
_MOST = 20.0


class UniformNoise(Float64, ForwardProcess):
    """The uniform categorical diffusion of T steps, MATH (35): at z_t each position has been redrawn over the K categories with probability
    1 − a_t, so that q(z_t = k | x) = a_t 1[x = k] + (1 − a_t)/K (Austin et al. 2021).

    Args:
        categories: K, the number of categories.
        steps: T, at least 2.
        signal: a(u) by name or as a function, with a_t = a(t/T), or the numbers a_1 … a_T; see `Absorbing`.

    Times are ints or int64 tensors (B,). Raises DiffusionalError for signals that do not fall, a_1 = 1, and continuous time.

    >>> UniformNoise(4, steps=2).marginal(torch.zeros(1, 1), t=1).log_probs.exp()                                     # a_1 = ½
    tensor([[[0.6250, 0.1250, 0.1250, 0.1250]]], dtype=torch.float64)
    """

    def __init__(
        self, categories: int, steps: int | None = None, signal: str | Signal | Sequence[float] | Tensor = "linear"
    ) -> None:
        super().__init__()
        table, self._function = signal_table(signal, steps)
        if self._function is not None and steps is None:
            raise DiffusionalError(
                "expected a number of steps T for uniform noise, got None: continuous time has no closed form here"
            )
        if table[0] >= 1:
            raise DiffusionalError(f"expected a_1 < 1, got {float(table[0]):g}: z_1 would be x")
        self.categories = categories
        self.signal: Tensor
        self.register_buffer("signal", table)

    @property
    def steps(self) -> int:
        """T, the number of latents."""
        return len(self.signal)

    def regrid(self, steps: int | None) -> "UniformNoise":
        """Return the process with the same a(u) and another number of latents. Raises DiffusionalError for signals that were given as numbers,
        and for continuous time.
        """
        if self._function is None:
            raise DiffusionalError(
                f"steps={steps} was given, but the signals are numbers a_1 … a_T; give them as a function a(u)"
            )
        return UniformNoise(self.categories, steps, self._function)

    def keeps(self, t: Time, first: int = 1) -> Tensor:
        """Return a_t (B,) or (), float64, t in `first` … T, with a_0 = 1."""
        t = latents(t, first, self.steps, self.signal.device)
        return torch.cat([self.signal.new_ones(1), self.signal])[t]

    def log_snr(self, t: Time) -> Tensor:
        """Return ln a_t/(1 − a_t) (B,) or (), clamped to ±20: the time that networks receive."""
        return torch.logit(self.keeps(t)).clamp(-_MOST, _MOST)

    def _redrawn(self, z: Batch, keep: Tensor) -> Tensor:
        """Return ln of the probabilities (B, L, K) of positions that keep z with probability `keep`, and are redrawn otherwise."""
        keep = align(keep.to(z.device), z.double())[..., None]
        fresh = (1 - keep) / self.categories
        p = fresh.expand(*z.shape, self.categories).clone()
        return p.scatter_(-1, z.long()[..., None], (keep + fresh).expand(*z.shape, 1)).log()

    def _states(self, logits: Tensor) -> Categorical:
        return Categorical(logits, torch.arange(self.categories, dtype=torch.float64))

    def marginal(self, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | x), t in 1 … T."""
        return self._states(self._redrawn(x, self.keeps(t)))

    def transition(self, z: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t−1} = z), t in 1 … T; z_0 ≡ x."""
        return self._states(self._redrawn(z, self.keeps(t) / self.keeps(t - 1, first=0)))

    def seen(self, z: Batch, t: Time) -> Tensor:
        """Return ln q(z_t = z | x = k) (B, L, K) for every category k."""
        return self._redrawn(z, self.keeps(t))

    def _back(self, z_next: Batch, t: Time) -> Tensor:
        """Return ln q(z_{t+1} = z_next | z_t = j) (B, L, K) for every category j."""
        return self._redrawn(z_next, self.keeps(t + 1) / self.keeps(t))

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Categorical:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T − 1."""
        latents(t, 1, self.steps - 1, x.device)
        return self._states(self._back(z_next, t) + self._redrawn(x, self.keeps(t)))

    def reverse(self, z_next: Batch, log_probs: Tensor, t: Time) -> Categorical:
        """Return Σ_k p_k q(z_t | z_{t+1} = z_next, x = k), t in 1 … T − 1, from ln p (B, L, K).

        With r_k = p_k/q(z_{t+1}|x = k) it is q(z_{t+1}|z_t = j) [a_t r_j + (1 − a_t)/K Σ_k r_k], in O(K).
        """
        latents(t, 1, self.steps - 1, z_next.device)
        keep = align(self.keeps(t).to(z_next.device), z_next.double())[..., None]
        r = log_probs.double() - self.seen(z_next, t + 1)
        fresh = torch.log((1 - keep) / self.categories) + r.logsumexp(-1, keepdim=True)
        return self._states(self._back(z_next, t) + torch.logaddexp(keep.log() + r, fresh))
