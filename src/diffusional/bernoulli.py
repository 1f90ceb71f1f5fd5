"""Independent bits, each −1 or 1: the distribution of the latents of a binomial diffusion, as gaussian.py's is of a Gaussian one.

These are Bernoulli variables (Sohl-Dickstein et al. 2015: binomial variables of one trial). The record is called `Bits`, since
`likelihood.Bernoulli` is a decoder. Values z are −1 and 1, the levels of `space.binary` (spins, in physics):

    P(z) = sigmoid(z ℓ),     ℓ = ln P(1)/P(−1),     E z = tanh(ℓ/2),

and Bayes' rule adds logits. The KL divergence between logits a and b is, with p = sigmoid(a) and δ = b − a,

    KL = ln(1 + p (e^δ − 1)) − p δ = p φ(δ) − φ(ln(1 + p (e^δ − 1))),      φ(δ) = e^δ − 1 − δ,

and does not change if both signs are flipped, which makes p ≤ ½. Then neither form suffers from cancellation: the left one is used
for |δ| ≥ 1, with ln(1 + e^b) instead of terms that would overflow, and the right one for |δ| < 1. All results are float64 and in
nats. Shapes are (B, *dims); sums run over all axes but B.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr

from diffusional.gaussian import phi
from diffusional.shapes import Batch, PerItem, sum_dims


@dataclass(frozen=True)
class Bits:
    """Independent values −1 and 1 with the log-odds `logit` (B, *dims) of 1.

    >>> q = Bits(torch.zeros(2, 3))
    >>> q.entropy()                                       # D ln 2, D = 3
    tensor([2.0794, 2.0794], dtype=torch.float64)
    """

    logit: Tensor

    @property
    def mean(self) -> Tensor:
        """E z = tanh(ℓ/2)."""
        return torch.tanh(0.5 * self.logit)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Return 1 where Φ(−ε) < P(1), else −1, with ε standard normal, given as `noise` or drawn from `generator`; of ε's type.

        Φ(ε) is uniform and z increases with it, so that this inverts the distribution function. Both sides are compared as
        logarithms, which also resolves very small probabilities. All models of this package take normal noise.

        >>> Bits(torch.zeros(1, 2)).sample(noise=torch.tensor([[-0.1, 0.1]]))
        tensor([[-1.,  1.]])
        """
        if noise is None:
            noise = torch.empty_like(self.logit).normal_(generator=generator)
        one = log_ndtr(-noise.double()) < logsigmoid(self.logit.double())
        return torch.where(one, 1.0, -1.0).to(noise.dtype)

    def log_prob(self, z: Batch) -> PerItem:
        """Return ln P(z) = Σ_d ln sigmoid(z_d ℓ_d) (B,), nats, float64.

        >>> Bits(torch.zeros(1, 2)).log_prob(torch.ones(1, 2))
        tensor([-1.3863], dtype=torch.float64)
        """
        return sum_dims(self.log_prob_map(z))

    def log_prob_map(self, z: Batch) -> Batch:
        """Return ln P(z_d) at every position (B, *dims), nats, float64, whose sum is `log_prob`."""
        return logsigmoid(z.double() * self.logit.double())

    def kl(self, other: "Bits") -> PerItem:
        """Return KL[self ‖ other] (B,), nats, float64; accurate however close to 0 or 1, or to each other, the probabilities are.

        >>> Bits(torch.zeros(1, 1)).kl(Bits(torch.full((1, 1), 1e-8, dtype=torch.float64)))          # δ²/8
        tensor([1.2500e-17], dtype=torch.float64)
        """
        return sum_dims(self.kl_map(other))

    def kl_map(self, other: "Bits") -> Batch:
        """Return KL[self ‖ other] at every position (B, *dims), nats, float64, whose sum is `kl`."""
        sign = torch.where(self.logit > 0, -1.0, 1.0).double()
        a, b = sign * self.logit.double(), sign * other.logit.double()
        p, delta = torch.sigmoid(a), b - a
        far = logsigmoid(-a) - logsigmoid(-b) - p * delta  # ln(1 + e^b) = −ln sigmoid(−b)
        near = delta.clamp(-1, 1)
        near = p * phi(near) - phi(torch.log1p(p * torch.expm1(near)))
        return torch.where(delta.abs() < 1, near, far)

    def entropy(self) -> PerItem:
        """Return Σ_d H(z_d) (B,), nats, float64: ln(1 + e^{−|ℓ|}) + |ℓ| sigmoid(−|ℓ|), without cancellation."""
        size = self.logit.double().abs()
        return sum_dims(size * torch.sigmoid(-size) - logsigmoid(size))
