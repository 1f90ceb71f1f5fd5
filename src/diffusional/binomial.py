"""The binomial diffusion of binary data (Sohl-Dickstein et al. 2015, §2.4.1 and Appendix B): noise that turns bits into fair coins.

A bit is kept with probability 1 − β_t, else it becomes a fair coin: on {0, 1}, q(z_t|z_{t−1}) = B(z_t; z_{t−1}(1 − β_t) + ½β_t). Here
bits are −1 and 1, where E[z_t|z_{t−1}] = (1 − β_t) z_{t−1}; means multiply, ᾱ_t = Π_{s≤t}(1 − β_s), ᾱ_{t|s} = ᾱ_t/ᾱ_s, and

    q(z_t | z_s)    = sigmoid(z_t z_s λ_{t|s}),                λ_{t|s} = ln (1 + ᾱ_{t|s})/(1 − ᾱ_{t|s}),     z_0 ≡ x
    q(z_s | z_t, x) = sigmoid(z_s (x λ_s + z_t λ_{t|s})),      λ_s = λ_{s|0}                                  by Bayes' rule

for 1 ≤ s < t ≤ T: an observation of a bit with correlation ᾱ adds ± λ to its log-odds. ᾱ_t is a product of 1 − β like MATH (3)'s α_t²,
but it is the correlation of z_t with x, as α_t is for x of variance one. The log-SNR that corresponds to it is therefore

    ln SNR_t = ln ᾱ_t²/(1 − ᾱ_t²) = −γ_t,  clamped to ±20, since ᾱ_T may be zero.

Networks receive it as their time input, as in a Gaussian diffusion. No cost depends on it. All coefficients are float64, computed
from Σ_s ln(1 − β_s).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusional.bernoulli import Bits
from diffusional.errors import DiffusionalError
from diffusional.forward import ForwardProcess, Time, latents
from diffusional.schedule import Float64
from diffusional.shapes import Batch, align

# Largest |ln SNR| given to a network: at ᾱ = 4.5e-5 a bit is a fair coin.
_MOST = 20.0


def log_odds(log_signal: Tensor) -> Tensor:
    """Return λ = ln (1 + ᾱ)/(1 − ᾱ) from ln ᾱ < 0, float64; accurate near ᾱ = 1, since 1 − ᾱ = −expm1(ln ᾱ), and near 0.

    >>> log_odds(torch.tensor([-torch.inf, -1e-12], dtype=torch.float64))              # 0, and ln 2 − ln 1e-12
    tensor([ 0.0000, 28.3242], dtype=torch.float64)
    """
    return torch.log1p(2 * log_signal.exp() / -torch.expm1(log_signal))


def seen_through(z: Batch, log_odds: Tensor) -> Tensor:
    """Return z λ (B, *dims), float64: the log-odds of a bit given an observation z of it with λ (B,) or ().

    >>> seen_through(torch.tensor([[-1.0, 1.0]]), torch.tensor(2.0))
    tensor([[-2.,  2.]], dtype=torch.float64)
    """
    z = z.double()
    return align(log_odds, z) * z


class BinomialDiffusion(Float64, ForwardProcess):
    """The forward diffusion of bits, kept with probabilities 1 − β_1 … 1 − β_T, 0 < β_t < 1 (with β_T = 1, z_T is pure noise).

    x is (B, *dims) with values −1 and 1, as in `space.binary`. Times are ints or int64 tensors (B,), one for each item.
    Raises DiffusionalError for betas out of range, fewer than two betas, and times out of range.

    >>> BinomialDiffusion([0.1, 0.2]).marginal(torch.ones(1, 1), t=2).mean                      # 0.9 · 0.8
    tensor([[0.7200]], dtype=torch.float64)
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or len(betas) < 2:
            raise DiffusionalError(f"expected betas of shape (T,) with T ≥ 2, got shape {tuple(betas.shape)}")
        outside = ~((betas > 0) & (betas < 1))
        outside[-1] = not 0 < betas[-1] <= 1
        if bool(outside.any()):
            t = int(outside.nonzero()[0]) + 1
            raise DiffusionalError(
                f"expected every beta strictly between 0 and 1 (the last may be 1), got β_{t} = {float(betas[t - 1]):g}"
            )
        self.betas: Tensor
        self.log_signal: Tensor
        self.register_buffer("betas", betas.clone())
        self.register_buffer("log_signal", torch.log1p(-betas).cumsum(0))

    @classmethod
    def constant(cls, steps: int) -> "BinomialDiffusion":
        """Return the paper's process, β_t = 1/(T − t + 1): each step erases 1/T of the signal, ᾱ_t = 1 − t/T, and z_T is pure noise.

        >>> BinomialDiffusion.constant(4).log_signal.exp()
        tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
        """
        if isinstance(steps, bool) or steps < 2:
            raise DiffusionalError(f"expected steps to be at least 2, got {steps!r}")
        return cls(1 / torch.arange(steps, 0, -1, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """T, the number of latents."""
        return len(self.betas)

    def _log_signal(self, t: Time, first: int = 1) -> Tensor:
        """Return ln ᾱ_t (B,) or (), for t in `first` … T."""
        t = latents(t, first, self.steps, self.betas.device)
        return torch.cat([self.log_signal.new_zeros(1), self.log_signal])[t]

    def log_odds(self, t: Time, s: Time = 0) -> Tensor:
        """Return λ_{t|s} (B,) or (), the log-odds that z_t contributes to z_s, for 0 ≤ s < t ≤ T; z_0 ≡ x."""
        later, earlier = self._log_signal(t), self._log_signal(s, first=0)
        if not bool((later < earlier).all()):
            raise DiffusionalError("expected s < t, got s ≥ t: s is the earlier latent")
        return log_odds(later - earlier)

    def gamma(self, t: Time) -> Tensor:
        """Return γ_t = −ln ᾱ_t²/(1 − ᾱ_t²) (B,) or (), clamped to ±20.

        >>> BinomialDiffusion.constant(2).gamma(torch.tensor([1, 2]))                                    # ln 3
        tensor([ 1.0986, 20.0000], dtype=torch.float64)
        """
        twice = 2 * self._log_signal(t)
        return (torch.log(-torch.expm1(twice)) - twice).clamp(-_MOST, _MOST)

    def marginal(self, x: Batch, t: Time) -> Bits:
        """Return q(z_t | x), t in 1 … T."""
        return Bits(seen_through(x, self.log_odds(t)))

    def transition(self, z: Batch, t: Time, s: Time | None = None) -> Bits:
        """Return q(z_t | z_s = z), t in 1 … T; s defaults to t − 1, and z_0 ≡ x."""
        return Bits(seen_through(z, self.log_odds(t, t - 1 if s is None else s)))

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Bits:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T−1."""
        latents(t, 1, self.steps - 1, x.device)
        return self.between(z_next, x, t, t + 1)

    def between(self, z_t: Batch, x: Batch, s: Time, t: Time) -> Bits:
        """Return q(z_s | z_t, x) for any 1 ≤ s < t ≤ T.

        >>> process = BinomialDiffusion([0.5, 0.5])                                        # λ_1 = λ_{2|1} = ln 3
        >>> process.between(torch.ones(1, 2), torch.tensor([[-1.0, 1.0]]), 1, 2).logit      # they disagree, they agree
        tensor([[0.0000, 2.1972]], dtype=torch.float64)
        """
        return Bits(seen_through(x, self.log_odds(s)) + seen_through(z_t, self.log_odds(t, s)))
