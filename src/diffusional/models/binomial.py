"""The binomial diffusion model of binary data (Sohl-Dickstein et al. 2015): x → z_1 → … → z_T, all of them bits, one network.

At every position, the network predicts the log-odds f of x = 1 from the context of z_t. The bit z_t itself is further evidence, as in the
levels head of MATH (5), so that with λ_t = ln (1 + ᾱ_t)/(1 − ᾱ_t) (binomial.py)

    ℓ = f(z_t, log-SNR_t) + z_t λ_t,     ln q(z_t|x = 1)/q(z_t|x = −1) = z_t λ_t,     w = sigmoid(ℓ),

and every distribution of the generative chain follows, position by position:

    p(x | z_1)      = sigmoid(x ℓ)
    p(z_t | z_{t+1}) = w q(z_t|z_{t+1}, x = 1) + (1 − w) q(z_t|z_{t+1}, x = −1),    q(z_t|z_{t+1}, x) = sigmoid(z_t (x λ_t + z_{t+1} λ_{t+1|t}))
    p(z_T)          = a fair coin

The paper's network returns r = p(z_t = 1|z_{t+1}). Ours has another parameterisation of the same family: given z_{t+1} and t,
r = w q₊ + (1 − w) q₋, with q± = q(z_t = 1|z_{t+1}, x = ±1) and q₋ < q₊, is an increasing function of w, whose inverse is
w = (r − q₋)/(q₊ − q₋). Only values of r between q₋ and q₊ can be represented, which excludes no optimum: KL_t is the mean of KL[q₊ ‖ r] and
KL[q₋ ‖ r], weighted by the probabilities of x given z_{t+1}, and both decrease as r moves from outside to the nearer end. The ends, w = 0
and 1, are limits that a network with bounded outputs approaches but does not reach, as with every sigmoid.

Bits are −1 and 1: `space.binary`. Costs are nats, float64; every logit is formed in float64, whatever the network's type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusional.bernoulli import Bits
from diffusional.binomial import BinomialDiffusion, seen_through
from diffusional.conditions import Condition
from diffusional.deprecation import RenamedAttribute
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs
from diffusional.models.calls import call
from diffusional.models.chain import Chain
from diffusional.models.likelihood import check_drawn
from diffusional.models.protocols import Decoding
from diffusional.shapes import Batch, PerItem
from diffusional.space import Discrete, Space, binary


class BinomialDiffusionModel(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T) under the posterior q(z_{1:T}|x) of `process`, all bits.

    Args:
        process: the binomial diffusion, with its T.
        network: module(z, log_snr) or module(z, log_snr, condition), z (B, *dims) of −1 and 1, log_snr (B,), to logits of z's shape.
        space: `space.binary(shape)`.

    `terms`, `kl_at` and `draw` use standard normal noise, as for any chain: Φ makes it uniform, and a threshold makes a bit of it.

    Raises DiffusionalError for another space, invalid items, levels outside 1 … T−1, and a network output that is not a single
    floating-point tensor of z's shape.

    >>> model = BinomialDiffusionModel(BinomialDiffusion.constant(20), lambda z, log_snr: 0 * z, binary((4,)))
    >>> ledger = model.elbo(torch.ones(2, 4), torch.Generator().manual_seed(0))
    >>> ledger.kl.shape, ledger.prior
    (torch.Size([2, 19]), tensor([0., 0.], dtype=torch.float64))
    """

    process: BinomialDiffusion

    def __init__(self, process: BinomialDiffusion, network: Callable[..., Tensor], space: Space) -> None:
        super().__init__()
        if not isinstance(space, Discrete) or space != binary(space.shape):
            raise DiffusionalError(
                f"expected space.binary({space.shape}) for a binomial diffusion, whose values are −1 and 1, got {space}"
            )
        self.process, self.network, self._space = process, network, space

    @property
    def space(self) -> Space:
        return self._space

    def data(self, z: Batch, t: Tensor, condition: Condition | None = None) -> Bits:
        """Return the distribution of x given z_t = `z`, t (B,), from the network and the bits themselves: log-odds ℓ = f + z λ_t, float64.

        >>> model = BinomialDiffusionModel(BinomialDiffusion([0.5, 0.5]), lambda z, log_snr: 0 * z, binary((1,)))
        >>> model.data(torch.ones(1, 1), torch.tensor([1])).logit                                            # λ_1 = ln 3
        tensor([[1.0986]], dtype=torch.float64)
        """
        log_snr = (-self.process.gamma(t)).to(z)
        output = call(self.network, z, log_snr, condition=condition)
        if output.shape != z.shape:
            raise DiffusionalError(
                f"the network's output has shape {tuple(output.shape)} for z of shape {tuple(z.shape)}; it must return one "
                "logit for each position, in z's shape"
            )
        return Bits(output.double() + seen_through(z, self.process.log_odds(t)))

    def reverse(self, z_next: Batch, data: Bits, t: Tensor) -> Bits:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1, where `data` is the distribution of x given z_{t+1}."""
        w, rest = torch.sigmoid(data.logit), torch.sigmoid(-data.logit)
        ones = torch.ones_like(z_next)
        plus, minus = (self.process.posterior(z_next, x, t).logit for x in (ones, -ones))
        one = w * torch.sigmoid(plus) + rest * torch.sigmoid(minus)
        other = w * torch.sigmoid(-plus) + rest * torch.sigmoid(-minus)
        return Bits(torch.log(one / other))

    backward = RenamedAttribute("reverse")

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Bits:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        return self.reverse(z_next, self.data(z_next, t + 1, condition), t)

    def last(self, n: int) -> Bits:
        """Return p(z_T) of n items: fair coins."""
        like = next(self.parameters(), torch.empty(0, device=self.process.betas.device))
        return Bits(like.new_zeros(n, *self.space.shape, dtype=torch.float64))

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Bits:
        """Return p(x | z_1)."""
        return self.data(z_1, torch.ones(len(z_1), dtype=torch.long, device=z_1.device), condition)

    def noise_levels(self) -> Tensor:
        """Return γ_1, …, γ_T (T,) of the binomial process."""
        return self.process.gamma(torch.arange(1, self._discrete() + 1))

    moment_names = ("flips", "flips of ones")

    def noise_moments(self, x: Batch, t: PerItem, noise: Tensor) -> Tensor:
        """Return the number of flipped bits of z_t minus its expectation D (1 − ᾱ_t)/2, and the same for the bits that are 1 in x (B, 2)."""
        z = self.noisy(x, t, noise).double()
        # E[z_t|x] = ᾱ_t x, and a bit that is flipped differs by 2.
        surplus = 0.5 * (self.process.marginal(x, t).mean - z) * x
        return torch.stack([part.flatten(1).sum(1) for part in (surplus, surplus * (x > 0))], 1)

    def _kl(self, x: Tensor, level: Tensor, z_next: Tensor, data: Bits) -> Tensor:
        """Return KL[q(z_t|z_{t+1},x) ‖ p(z_t|z_{t+1})] (B,)."""
        return self.process.posterior(z_next, x, level).kl(self.reverse(z_next, data, level))

    # Training, MATH (22).

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of MATH (22), with one network evaluation per item. KL_T is exact."""
        level, first = draws["level"], draws["first"]
        t = torch.where(first, 1, level + 1)
        z = self.noisy(x, t, draws["noise"])
        data = self.data(z, t, condition)
        visits, firsts = (~first).nonzero().squeeze(1), first.nonzero().squeeze(1)
        kl = self._kl(x[visits], level[visits], z[visits], Bits(data.logit[visits]))
        log_prob = Bits(data.logit[firsts]).log_prob(x[firsts])
        return self._mixed({"prior": self.prior(x)}, draws, visits, kl, firsts, log_prob)

    def drawn(self, p: Decoding, generator: torch.Generator | None) -> Tensor:
        """Draw bits from normal noise of the network's type."""
        assert isinstance(p, Bits)
        check_drawn(p.mean)
        example = next(self.parameters(), torch.empty(0, device=p.logit.device))
        noise = torch.empty(p.logit.shape, dtype=example.dtype, device=p.logit.device)
        return p.sample(noise=noise.normal_(generator=generator))
