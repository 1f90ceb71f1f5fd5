"""The uniform categorical diffusion model of sequences: x → z_1 → … → z_T, in which positions are redrawn uniformly, MATH (35).

The network predicts logits f of x from the context of z_t. The position of z_t is itself evidence about x, as in the binomial family, so that

    p(x_i | z_t)     ∝ exp(f_i) q(z_{t,i} | x_i)
    p(z_t | z_{t+1}) = Σ_k p(x = k | z_{t+1}) q(z_t | z_{t+1}, x = k)
    p(z_T)           = uniform

A network that was trained to predict p(x_i | z_t) itself has `evidence=False`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusional.categorical import Categorical
from diffusional.conditions import Condition
from diffusional.models.chain import Chain
from diffusional.models.masked import checked_space, predicted
from diffusional.redrawn import UniformNoise
from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical as Sequences
from diffusional.space import Space


class UniformDiffusion(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T) of sequences under uniform noise, MATH (35). Costs are nats, float64.

    p(z_t|z_{t+1}) = Σ_k p(x = k|z_{t+1}) q(z_t|z_{t+1}, x = k), position by position.

    Args:
        network: module(tokens, log_snr) or module(tokens, log_snr, condition), int64 tokens (B, L) and ln a_t/(1 − a_t) (B,), to logits
            (B, L, K).
        space: `space.Categorical(L, K)`.
        process: `UniformNoise`, with its T.
        evidence: whether ln q(z_t|x) is added to the logits.

    Raises DiffusionalError for another space and for a network whose output has another shape.

    >>> from diffusional.space import Categorical
    >>> network = lambda tokens, log_snr: torch.zeros(*tokens.shape, 4)
    >>> model = UniformDiffusion(network, Categorical(3, 4), UniformNoise(4, steps=10))
    >>> model.elbo(torch.zeros(2, 3), torch.Generator().manual_seed(0)).kl.shape
    torch.Size([2, 9])
    """

    process: UniformNoise

    def __init__(
        self, network: Callable[..., Tensor], space: Space, process: UniformNoise, evidence: bool = True
    ) -> None:
        super().__init__()
        self._space = checked_space(space, process.categories, "uniform diffusion")
        self.network, self.process, self.evidence = network, process, evidence

    @property
    def space(self) -> Sequences:
        return self._space

    def regrid(self, steps: int | None) -> "UniformDiffusion":
        """Return the model with another T of the same a(u)."""
        return UniformDiffusion(self.network, self.space, self.process.regrid(steps), self.evidence)

    def noise_levels(self) -> Tensor:
        """Return the signals a_1 … a_T."""
        return self.process.signal

    def log_probs(self, z: Batch, t: PerItem, condition: Condition | None = None) -> Tensor:
        """Return ln p(x_i = k | z_t = z) (B, L, K), normalised, float64, t (B,) in 1 … T."""
        log_snr = self.process.log_snr(t).to(next(self.parameters(), torch.empty(0, device=z.device)))
        logits = predicted(self.network, self.space, z.round().long(), log_snr, condition=condition).double()
        return (logits + self.process.seen(z, t) if self.evidence else logits).log_softmax(-1)

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Categorical:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        return self.process.reverse(z_next, self.log_probs(z_next, t + 1, condition), t)

    def last(self, n: int) -> Categorical:
        """Return p(z_T) of n items: uniform."""
        like = next(self.parameters(), torch.empty(0))
        return Categorical(like.new_zeros(n, *self.space.shape, self.process.categories), self.space.values)

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Categorical:
        """Return p(x | z_1)."""
        first = torch.ones(len(z_1), dtype=torch.long, device=z_1.device)
        return Categorical(self.log_probs(z_1, first, condition), self.space.values)
