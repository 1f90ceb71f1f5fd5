"""Independent categorical variables: at every position one of K values, with probabilities p_k = e^{l_k}/Σ_j e^{l_j} from logits l.

They are what a discrete diffusion of more than two levels is made of, as `Bits` is of two. The KL divergence of p from r, with
δ = ln r − ln p, is

    KL = Σ_k p_k (−δ_k) = Σ_{p_k > 0} p_k φ(δ_k) + Σ_{p_k = 0} r_k,      φ(δ) = e^δ − 1 − δ,

since both sum to one. In the second form nothing cancels if p and r are close, as they are in a chain of many levels: it is used for
|δ| < 1, and its terms r − p − p δ elsewhere. Everything is float64. Shapes are (B, *dims, K); sums run over all but B; nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtr

from diffusional.errors import DiffusionalError
from diffusional.gaussian import phi
from diffusional.shapes import Batch, PerItem, sum_dims


@dataclass(frozen=True)
class Categorical:
    """Independent positions, each one of K values with probabilities softmax(logits).

    Args:
        logits: (B, *dims, K), not necessarily normalised; −∞ for a probability of zero.
        values: (K,) different numbers in ascending order, such as `space.values`: what a latent or an item has at a position.

    Raises DiffusionalError for fewer than two values, values that do not increase, and another number of logits.

    >>> q = Categorical(torch.zeros(2, 3, 4), torch.linspace(-1, 1, 4))
    >>> q.entropy()                                       # D ln K, D = 3, K = 4
    tensor([4.1589, 4.1589], dtype=torch.float64)
    """

    logits: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 1 or len(values) < 2 or not bool((values.diff() > 0).all()):
            raise DiffusionalError(
                f"expected values (K,) of K ≥ 2 numbers in ascending order, such as space.values, got shape {tuple(values.shape)}"
            )
        if self.logits.ndim < 2 or self.logits.shape[-1] != len(values):
            raise DiffusionalError(
                f"expected logits (B, *dims, K) for K = {len(values)} values, got shape {tuple(self.logits.shape)}"
            )

    @property
    def log_probs(self) -> Tensor:
        """ln p (B, *dims, K), normalised, float64."""
        return self.logits.double().log_softmax(-1)

    @property
    def mean(self) -> Tensor:
        """E z (B, *dims), float64."""
        return self.log_probs.exp() @ self.values.to(self.logits.device).double()

    def index(self, z: Batch) -> Tensor:
        """Return the numbers 0 … K − 1 of the values at every position of z (B, *dims), int64.

        Raises DiffusionalError for a z that is none of the values, to 1 % of their smallest distance or the rounding of z's type.

        >>> Categorical(torch.zeros(1, 2, 3), torch.tensor([-1.0, 0.0, 1.0])).index(torch.tensor([[1.0, -1.0]]))
        tensor([[2, 0]])
        """
        values = self.values.to(z.device).double()
        number = torch.searchsorted((values[1:] + values[:-1]) / 2, z.double().contiguous())
        apart = (z.double() - values[number]).abs()
        rounding = torch.finfo(z.dtype).eps if z.dtype.is_floating_point else 0.0
        wrong = ~(apart <= max(0.01 * float(values.diff().min()), rounding * float(values.abs().max())))
        if bool(wrong.any()):
            raise DiffusionalError(
                f"expected one of the {len(values)} values {values[0]:g}, {values[1]:g}, …, {values[-1]:g} at every position, got "
                f"{float(z[wrong][0]):g}; latents have the values of the distribution, not their numbers"
            )
        return number

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw (B, *dims) by the inverse of the distribution function at Φ(ε), with ε standard normal (B, *dims) given as `noise`, or
        drawn from `generator` in the type of the logits; of ε's type.

        A value of probability zero is never drawn. Raises DiffusionalError for probabilities that are not finite.

        >>> Categorical(torch.zeros(1, 3, 2), torch.tensor([0.0, 5.0])).sample(noise=torch.tensor([[-0.1, 0.1, 9.0]]))
        tensor([[0., 5., 5.]])
        """
        if noise is None:
            noise = torch.empty_like(self.logits[..., 0]).normal_(generator=generator)
        upto = self.log_probs.exp().cumsum(-1)
        if not bool(upto[..., -1].isfinite().all()):
            raise DiffusionalError(
                "expected finite probabilities to draw from, got NaN; examine the logits and the network's weights"
            )
        upto = upto / upto[..., -1:]
        # Φ(ε) rounds to 1 in the far tail, which lies beyond all values.
        u = ndtr(noise.double()).clamp(max=1 - 2.0**-53)
        return self.values.to(noise)[(upto <= u[..., None]).sum(-1)]

    def log_prob(self, z: Batch) -> PerItem:
        """Return ln P(z) = Σ_d ln p_d(z_d) (B,), nats, float64. Raises DiffusionalError for a z that is none of the values.

        >>> Categorical(torch.zeros(1, 2, 4), torch.arange(4.0)).log_prob(torch.tensor([[3.0, 0.0]]))           # −2 ln 4
        tensor([-2.7726], dtype=torch.float64)
        """
        return sum_dims(self.log_prob_map(z))

    def log_prob_map(self, z: Batch) -> Batch:
        """Return ln p_d(z_d) at every position (B, *dims), nats, float64, whose sum is `log_prob`."""
        return self.log_probs.gather(-1, self.index(z)[..., None])[..., 0]

    def kl(self, other: "Categorical") -> PerItem:
        """Return KL[self ‖ other] (B,), nats, float64, of distributions over the same values; infinite if `other` excludes a value.

        >>> near = Categorical(torch.tensor([[[0.0, 1e-8]]], dtype=torch.float64), torch.tensor([-1.0, 1.0]))
        >>> Categorical(torch.zeros(1, 1, 2), torch.tensor([-1.0, 1.0])).kl(near)                          # δ²/8
        tensor([1.2500e-17], dtype=torch.float64)
        """
        return sum_dims(self.kl_map(other))

    def kl_map(self, other: "Categorical") -> Batch:
        """Return KL[self ‖ other] at every position (B, *dims), nats, float64, whose sum is `kl`."""
        p, r = self.log_probs, other.log_probs
        # Levels of probability zero have no ln p to differentiate.
        none = p == -torch.inf
        delta = torch.where(none, 0.0, r) - torch.where(none, 0.0, p)
        near = p.exp() * phi(delta.clamp(-1, 1))
        far = r.exp() - p.exp() * (1 + delta)
        return torch.where(none, r.exp(), torch.where(delta.abs() < 1, near, far)).sum(-1)

    def entropy(self) -> PerItem:
        """Return −Σ_d Σ_k p_k ln p_k (B,), nats, float64."""
        p = self.log_probs
        return -sum_dims((p.exp() * torch.where(p == -torch.inf, 0.0, p)).sum(-1))
