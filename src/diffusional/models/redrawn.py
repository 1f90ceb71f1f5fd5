"""The uniform categorical diffusion model of sequences: x → z_1 → … → z_T, in which positions are redrawn uniformly, MATH (35).

The network predicts logits f of x from the context of z_t. The position of z_t is itself evidence about x, as in the binomial family, so that

    p(x_i | z_t)     ∝ exp(f_i) q(z_{t,i} | x_i)
    p(z_t | z_{t+1}) = Σ_k p(x = k | z_{t+1}) q(z_t | z_{t+1}, x = k)
    p(z_T)           = uniform

A network that was trained to predict p(x_i | z_t) itself has `evidence=False`.

Continuous time is the limit of T steps. Let π = softmax(f) be what the context predicts for one position (with `evidence=False`, the network's
p(x|z) without the factor q(z|x), normalised), and let R = 1 + aK/(1 − a) be q(z|x = z)/q(z|x ≠ z). Between a and a + da the reverse chain
turns z into y ≠ z with probability (da/a)/K times

    r(y) = q(y|x)/q(z|x)                                    given x
    λ(y) = Σ_k p(x = k|z) q(y|k)/q(z|k)
         = [1 + (R − 1) π_y]/[1 + (R − 1) π_z]              in the model

since p(k|z) ∝ π_k q(z|k). The divergence of two chains that jump at rates r and λ gives

    NELBO = E ∫ (da/a)/K Σ_{y≠z} [λ(y) − r(y) + r(y) ln r(y)/λ(y)],      summed over positions, a from a_T = 0 to a_1 = 1.

With a_1 = 1, z_1 is x, and with a_T = 0, KL_T is 0. If the contexts' predictions are exact, the model's jumps are those of the data's own
reverse chain, and the bound is −ln p(x) of every item: two positions never jump at the same time.

This is the bound of UDLM (Schiff et al. 2024) and Duo (Sahoo et al. 2025). They write λ with q(·|x̂) for their network's x̂ instead of x. That
is the formula above with π = x̂, so that their networks are those with `evidence=True`. The mixture Σ_k x̂_k q(z_t|z_{t+1}, k) of D3PM is
`evidence=False`, and has another bound.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffusional.categorical import Categorical
from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.gaussian import phi
from diffusional.models.chain import Chain, same_shape
from diffusional.models.masked import checked_space, predicted
from diffusional.redrawn import UniformNoise
from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical as Sequences
from diffusional.space import Space

# Steps of a sample in continuous time.
_STEPS = 250


class UniformDiffusion(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T) of sequences under uniform noise, MATH (35). Costs are nats, float64.

    p(z_t|z_{t+1}) = Σ_k p(x = k|z_{t+1}) q(z_t|z_{t+1}, x = k), position by position. In continuous time its limit has the bound

        E ∫ (da/a)/K Σ_i Σ_{y≠z_i} [λ_i(y) − r_i(y) + r_i(y) ln r_i(y)/λ_i(y)],     r_i(y) = q(y|x_i)/q(z_i|x_i),  λ_i(y) = q(y|π_i)/q(z_i|π_i),

    with π_i the network's prediction from the context (Schiff et al. 2024; Sahoo et al. 2025). It does not depend on the shape of a.

    Args:
        network: module(tokens, log_snr) or module(tokens, log_snr, condition), int64 tokens (B, L) and ln a_t/(1 − a_t) (B,), to logits
            (B, L, K).
        space: `space.Categorical(L, K)`.
        process: `UniformNoise`, with its T or in continuous time.
        evidence: whether ln q(z_t|x) is added to the logits. In continuous time from a(0) = 1 it is required: a prediction of p(x|z) would
            have to approach z as a → 1, as fast as 1 − a falls, for the bound to be finite.

    In continuous time, `sample` draws from the chain of T = 250 steps, `regrid(250)`, or of `steps`.

    Raises DiffusionalError for another space, for a network whose output has another shape, and for `evidence=False` in continuous time from
    a(0) = 1.

    >>> from diffusional.space import Categorical
    >>> network = lambda tokens, log_snr: torch.zeros(*tokens.shape, 4)
    >>> model = UniformDiffusion(network, Categorical(3, 4), UniformNoise(4, steps=10))
    >>> model.elbo(torch.zeros(2, 3), torch.Generator().manual_seed(0)).kl.shape
    torch.Size([2, 9])
    >>> continuous = model.regrid(None)
    >>> nelbo = continuous.elbo(torch.zeros(1000, 3), torch.Generator().manual_seed(0)).nelbo.mean()                   # 3 ln 4
    >>> abs(float(nelbo) / (3 * math.log(4)) - 1) < 0.02
    True
    """

    process: UniformNoise

    def __init__(
        self, network: Callable[..., Tensor], space: Space, process: UniformNoise, evidence: bool = True
    ) -> None:
        super().__init__()
        self._space = checked_space(space, process.categories, "uniform diffusion")
        self.network, self.process, self.evidence = network, process, evidence
        if process.starts_at_data and not evidence:
            raise DiffusionalError(
                "expected evidence=True in continuous time from a(0) = 1, got evidence=False: unless the predictions approach z_t as a → 1, the "
                "bound is infinite. Use evidence=True for a network that predicts x from its context, or give a signal with a(0) < 1, such as "
                "lambda u: 0.999 * (1 - u), whose bound has p(x|z_1)"
            )

    @property
    def space(self) -> Sequences:
        return self._space

    def regrid(self, steps: int | None) -> "UniformDiffusion":
        """Return the model with another T of the same a(u), or in continuous time for None."""
        return UniformDiffusion(self.network, self.space, self.process.regrid(steps), self.evidence)

    def noise_levels(self) -> Tensor:
        """Return the signals a_1 … a_T, or a at 65 levels u of continuous time."""
        return self.process.signal

    @property
    def decoder_uses_network(self) -> bool:
        """False in continuous time from a(0) = 1, where z at u = 0 is x."""
        return not self.process.starts_at_data

    def _logits(self, z: Batch, t: PerItem, condition: Condition | None) -> Tensor:
        log_snr = self.process.log_snr(t).to(next(self.parameters(), torch.empty(0, device=z.device)))
        return predicted(self.network, self.space, z.round().long(), log_snr, condition=condition).double()

    def log_probs(self, z: Batch, t: PerItem, condition: Condition | None = None) -> Tensor:
        """Return ln p(x_i = k | z_t = z) (B, L, K), normalised, float64, t (B,) in 1 … T, or u in continuous time."""
        logits = self._logits(z, t, condition)
        return (logits + self.process.seen(z, t) if self.evidence else logits).log_softmax(-1)

    def context(self, z: Batch, t: PerItem, condition: Condition | None = None) -> Tensor:
        """Return ln π_i(k) (B, L, K), normalised, float64, with p(x_i = k | z_t = z) ∝ π_i(k) q(z_i | x_i = k)."""
        logits = self._logits(z, t, condition)
        return (logits if self.evidence else logits - self.process.seen(z, t)).log_softmax(-1)

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Categorical:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        return self.process.reverse(z_next, self.log_probs(z_next, t + 1, condition), t)

    def last(self, n: int) -> Categorical:
        """Return p(z_T) of n items: uniform."""
        like = next(self.parameters(), torch.empty(0))
        return Categorical(like.new_zeros(n, *self.space.shape, self.process.categories), self.space.values)

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Categorical:
        """Return p(x | z_1); in continuous time z_1 is z at u = 0."""
        return Categorical(self.log_probs(z_1, self._first(z_1), condition), self.space.values)

    def _first(self, x: Batch) -> PerItem:
        """Return 1 (B,), the number of the first latent, or u = 0 in continuous time."""
        dtype = torch.float64 if self.steps is None else torch.long
        return torch.full((len(x),), 0 if self.steps is None else 1, dtype=dtype, device=x.device)

    # The costs in continuous time, MATH (35).

    def density_map(self, x: Batch, z: Batch, u: PerItem, condition: Condition | None = None) -> Batch:
        """Return dKL/du at every position (B, L), float64, nats, of items x whose latents at levels u (B,) in [0, 1] are z: one network
        evaluation.

        >>> from diffusional.space import Categorical
        >>> model = UniformDiffusion(lambda z, log_snr: torch.zeros(*z.shape, 2), Categorical(2, 2), UniformNoise(2))
        >>> model.density_map(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))        # a = ½: π/2 (⅓ ln ⅓ + ⅔), …
        tensor([[0.4720, 2.0355]], dtype=torch.float64)
        """
        return self.density_of(x, z, u, self.context(z, u, condition))

    def density_of(self, x: Batch, z: Batch, u: PerItem, context: Tensor) -> Batch:
        """Return `density_map` (B, L) from ln π (B, L, K), what `context` returns for z and u."""
        # ln(R − 1) = ln aK/(1 − a).
        odds = self.process.log_odds(u).to(x.device)[:, None, None] + math.log(self.process.categories)
        at, own = z.round().long()[..., None], x.round().long()[..., None]
        # ln q(y|π) and ln q(y|x), both relative to (1 − a)/K.
        model = torch.logaddexp(odds + context, torch.zeros_like(odds))
        truth = torch.zeros_like(model).scatter(
            -1, own, torch.logaddexp(odds, torch.zeros_like(odds)).expand(own.shape)
        )
        log_rate = model - model.gather(-1, at)
        log_true = truth - truth.gather(-1, at)
        # λ − r + r ln(r/λ) = r φ(ln λ/r), which is exact for a small ln λ/r, but may be 0 · ∞ for a large one.
        apart = log_rate - log_true
        near = log_true.exp() * phi(apart.clamp(-1, 1))
        far = log_rate.exp() - log_true.exp() * (1 + apart)
        each = torch.where(apart.abs() < 1, near, far).scatter(-1, at, 0.0)
        return self.process.rate(u).to(x.device)[:, None] * each.sum(-1)

    def noisy(self, x: Batch, t: PerItem, noise: Batch) -> Batch:
        return super().noisy(x, t, noise) if self.steps is not None else self.process.draw(x, t, noise)

    def level_kl(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return KL_t (B,), or in continuous time dKL/du at the z of `UniformNoise.draw_tilted`, times its weight: one network evaluation."""
        if self.steps is not None:
            return super().level_kl(x, level, noise, condition)
        return self.kl_map(x, level, noise, condition).sum(1)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        if self.steps is not None:
            return super().kl_map(x, level, noise, condition)
        z, weight = self.process.draw_tilted(x, level, noise)
        return weight[:, None] * self.density_map(x, z, level, condition)

    def reconstruction(self, x: Batch, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return −ln p(x|z_1) (B,); 0 in continuous time from a(0) = 1, where z_1 is x."""
        return self.reconstruction_map(x, noise, condition).sum(1)

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        same_shape(x, noise)
        if self.process.starts_at_data:
            return torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        return -self.decode(self.noisy(x, self._first(x), noise), condition).log_prob_map(x)

    def prior(self, x: Batch) -> PerItem:
        return self.prior_map(x).sum(1)

    def prior_map(self, x: Batch) -> Batch:
        last = torch.ones((), dtype=torch.float64) if self.steps is None else self.steps
        # The same for every x.
        return self.process.marginal(x[:1], last).kl_map(self.last(1)).expand(x.shape)

    @property
    def moment_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """ "redrawn" in continuous time; none in discrete time."""
        return ("redrawn",) if self.steps is None else ()

    def noise_moments(self, x: Batch, t: PerItem, noise: Tensor) -> Tensor:
        """Return the number of positions that differ from x in the z of a visit to level u, times the weight of z, minus its expectation
        L (1 − a)(1 − 1/K), all times what each of them costs as a → 1, (−a'/a)/K R ln R (B, 1). Much of the variance of dKL/du is that of
        the number.
        """
        if self.steps is not None:
            return super().noise_moments(x, t, noise)
        k, (_, lost) = self.process.categories, self.process.shares(t)
        z, weight = self.process.draw_tilted(x, t, noise)
        changed = weight * (z != x).sum(1)
        expected = (x.shape[1] * (1 - 1 / k) * lost).to(x.device)
        odds = self.process.log_odds(t) + math.log(k)
        log_ratio = torch.logaddexp(odds, torch.zeros_like(odds)).to(x.device)
        each = self.process.rate(t).to(x.device) * log_ratio.exp() * log_ratio
        return ((changed - expected) * each)[:, None]

    # Sampling.

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Return n samples x (n, L) of the chain, or in continuous time of that of `steps`, 250 by default: see `walk_back`.

        >>> from diffusional.space import Categorical
        >>> model = UniformDiffusion(lambda z, log_snr: torch.zeros(*z.shape, 2), Categorical(3, 2), UniformNoise(2))
        >>> model.sample(4, torch.Generator().manual_seed(0), steps=5).shape
        torch.Size([4, 3])
        """
        *_, x = self.walk_back(n, generator, condition, steps)
        return x

    @torch.no_grad()
    def walk_back(
        self,
        n: int,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        steps: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield z_T, z_{T−1}, …, z_1 and x, each (n, L), with T = `steps` if it is given, otherwise 250 in continuous time. Positions that jump
        in the same step are independent: the bound of what is drawn is that of `regrid(T)`.
        """
        if steps is None and self.steps is None:
            steps = _STEPS
        if steps is not None and steps != self.steps:
            yield from self.regrid(steps).walk_back(n, generator, condition)
            return
        yield from super().walk_back(n, generator, condition)
