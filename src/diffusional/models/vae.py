"""Autoencoders: latent variable models whose posterior q(z|x) is learned, with the same ledger as a diffusion model.

    NELBO = −E ln p(x|z) + E KL[q(z|x) ‖ p(z)],      E KL[q(z|x) ‖ p(z)] = I(x; z) + KL[q(z) ‖ p(z)]          MATH (21)

The VAE's latent comes from one encoder (Kingma & Welling 2014; Rezende et al. 2014). Its prior (models/prior.py) is N(0, I), or a diffusion
model over z. Then z is a trainable first latent, followed by the fixed chain, and the bound is

    NELBO = −E ln p(x|z) − E H[q(z|x)] + E NELBO_diffusion(z)

with every cost of MATH (8) in the last term (Vahdat, Kreis & Kautz 2021). An L-layer VAE is in hvae.py.

The decoder's output is interpreted as that of a denoiser at SNR 0, so that the likelihoods of models/likelihood.py can be used.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel, Noise, served
from diffusional.models.calls import call
from diffusional.models.chain import Chain
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.models.denoiser import Head, decoded
from diffusional.models.latent_chain import LatentChain
from diffusional.models.likelihood import (
    Decoded,
    DiscretizedGaussian,
    GaussianLikelihood,
    LevelPosterior,
    Likelihood,
    NetworkLevels,
)
from diffusional.models.parameterization import HEADS, Prediction
from diffusional.models.prior import Prior, PriorCosts, as_prior
from diffusional.shapes import Batch, PerItem
from diffusional.space import Space
from diffusional.timesteps import TimestepSampler
from diffusional.words import check_word

# Limits of a learned Gaussian's ln σ, as in the autoencoders of latent diffusion: σ from 3e-7 to 2e4. With them e^δ,
# δ = ln v_q − ln v_p ≤ 50, is at least sixteen orders of magnitude below float32's largest number, so that sums over dimensions are finite.
LOG_STD_LIMITS = (-15.0, 10.0)


def bounded(mean: Tensor, log_std: Tensor) -> Gaussian:
    """Return N(mean, σ²) from a network's mean and ln σ, where ln σ is clamped to [−15, 10].

    The limits keep KLs finite in float32. A clamped ln σ receives no gradient.

    >>> bounded(torch.zeros(1, 3), torch.tensor([[-8.0, 0.0, 12.0]])).log_variance / 2
    tensor([[-8.,  0., 10.]])
    """
    return Gaussian(mean, 2 * log_std.clamp(*LOG_STD_LIMITS))


@dataclass(frozen=True)
class Inference:
    """One draw of the latents of x (B, …): z_1 … z_L, each (B, n_l), their q and p, and a function that calls the decoder.

    q[l − 1] = q(z_l|z_{>l}, x) and p[l − 1] = p(z_l|z_{>l}), at the drawn z_{>l}. The last of `p` is N(0, I) for every prior.
    """

    z: tuple[Tensor, ...]
    q: tuple[Gaussian, ...]
    p: tuple[Gaussian, ...]
    decoded: Callable[[], Prediction]

    def log_q(self) -> PerItem:
        """Return ln q(z_{1:L}|x) (B,)."""
        return _total(q.log_prob(z) for q, z in zip(self.q, self.z, strict=True))

    def log_p(self) -> PerItem:
        """Return ln p(z_{1:L}) (B,)."""
        return _total(p.log_prob(z) for p, z in zip(self.p, self.z, strict=True))


def _total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([v.double() for v in values]).sum(0)


class EncoderMean(nn.Module):
    """The mean of q(y|x), from an encoder's output (B, 2C, *rest): a deterministic encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).chunk(2, 1)[0]


class Autoencoder(LatentVariableModel):
    """A model with a learned posterior over L latent vectors; `latents` are their dimensions, the one next to x first.

    Costs per item (MATH (8) with q instead of the diffusion): `reconstruction` = −ln p(x|z_1), kl[:, l − 1] =
    KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})] for l < L, and `prior` = KL[q(z_L|x) ‖ p(z_L)]. With a chain as the prior of z_L, the last is
    replaced by the chain's costs at z_L: its levels are further columns of `kl`, its KL_T is `prior`, its −ln p(z_L|z_1) is
    "latent_reconstruction", and "encoder_entropy" is −H[q(z_L|x)].
    """

    latents: tuple[int, ...]
    prior: Prior
    predicts: Literal["levels", "data"]
    head: Head

    def __init__(self, likelihood: Likelihood, prior: Prior) -> None:
        super().__init__()
        # A prior that is a chain keeps its weights under "chain".
        self.prior, self.chain = prior, prior.chain
        if isinstance(likelihood, LevelPosterior):
            raise DiffusionalError(
                "expected NetworkLevels, DiscretizedGaussian or another likelihood of the decoder's output, got LevelPosterior, which depends "
                "only on a noisy x, and an autoencoder has none"
            )
        if isinstance(likelihood, GaussianLikelihood | DiscretizedGaussian) and likelihood.variance is None:
            raise DiffusionalError(
                f"expected a variance for {type(likelihood).__name__}, got None: the default, the variance of a diffusion's z_1, does not "
                "exist for an autoencoder. Give variance=…"
            )
        self.likelihood = likelihood

    @property
    def space(self) -> Space:
        return self.likelihood.space

    def infer(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Inference:
        """Draw z_L … z_1 ~ q(z_{1:L}|x) for ε = `noise` (B, Σ latents), that of z_1 first."""
        return self.infer_from(self.encoded(x, condition), x, noise, condition)

    @abstractmethod
    def infer_from(self, encoded: Any, x: Batch, noise: Tensor, condition: Condition | None = None) -> Inference:
        """Do the same as `infer`, from what `encoded` returned for x. Only the shape and type of x are used."""

    @abstractmethod
    def encoded(self, x: Batch, condition: Condition | None = None) -> Any:
        """Return everything that q needs of items x (N, …) and their conditions, for any number of draws: the argument of `infer_from` and
        `log_posteriors`.
        """

    @abstractmethod
    def kept(self, x: Batch, condition: Condition | None = None) -> tuple[Tensor, ...]:
        """Return `encoded` as tensors (N, …), whose rows an evaluation keeps for each item. The last two are the mean and ln σ² of q(z_L|x)."""

    @abstractmethod
    def infer_kept(
        self, kept: tuple[Tensor, ...], x: Batch, noise: Tensor, condition: Condition | None = None
    ) -> Inference:
        """Do the same as `infer_from`, from the rows that `kept` returned for x."""

    def visited(self) -> Chain | None:
        """Return the levels of the prior's chain as costs of x; None without a chain."""
        return None if self.chain is None else LatentChain(self)

    @abstractmethod
    def log_posteriors(self, encoded: Any, z: tuple[Tensor, ...]) -> Tensor:
        """Return ln q(z_{1:L}|x_i) (S, N) for S draws z of the latents and each of N items, from which an aggregated posterior is computed."""

    # Coding by bits back, MATH (33).

    @abstractmethod
    def layer_prior(
        self, layer: int, above: tuple[Tensor, ...], n: int, condition: Condition | None = None
    ) -> Gaussian:
        """Return p(z_l|z_{>l}) of n items for l = `layer` < L and z_{l+1} … z_L."""

    @abstractmethod
    def layer_posterior(
        self, layer: int, above: tuple[Tensor, ...], x: Batch, condition: Condition | None = None
    ) -> Gaussian:
        """Return q(z_l|z_{>l}, x) for l = `layer` and z_{l+1} … z_L."""

    @abstractmethod
    def at_latents(self, z: tuple[Tensor, ...], condition: Condition | None = None) -> Prediction:
        """Return the decoder's prediction at latents z_1 … z_L (B, n_l)."""

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the moves of bits back over all layers: pop z_L … z_1 by q(z_l|z_{>l}, x), push x by p(x|z), push z_1 … z_{L−1} by p(z_l|z_{>l})
        and z_L by its prior.
        """
        layers = len(self.latents)
        names = [f"{prefix}z_{layer}" for layer in range(1, layers + 1)]

        def above(known: Known, layer: int) -> tuple[Tensor, ...]:
            return tuple(known[name] for name in names[layer:])

        def pop(layer: int) -> Move:
            return Move(
                names[layer - 1],
                lambda known: self.layer_posterior(layer, above(known, layer), known[x], condition(known)),
                pops=True,
                finest=0.0,
            )

        def push(layer: int) -> Move:
            return Move(
                names[layer - 1],
                lambda known: self.layer_prior(layer, above(known, layer), known.rows, condition(known)),
            )

        decode = Move(x, lambda known: Decoded(self.likelihood, self.at_latents(above(known, 0), condition(known))))
        pops = [pop(layer) for layer in range(layers, 0, -1)]
        pushes = [push(layer) for layer in range(1, layers)]
        return [*pops, decode, *pushes, *self.prior.moves(names[-1], prefix, condition)]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(K,), the shape of one item's noise in `terms`: that of the latents first, then that of the prior."""
        return (sum(self.latents) + self.prior.noise,)

    @property
    def evaluations(self) -> int:
        return 1 + self.prior.evaluations

    @property
    def steps(self) -> int | None:
        """T of a chain that is the prior; None without a chain, or in continuous time."""
        return None if self.chain is None else self.chain.steps

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        """Return γ at edges of the levels of the prior's chain; None without a chain, and if `kl` has other layers before its levels."""
        return None if self.chain is None or len(self.latents) > 1 else self.chain.gamma_at(edges)

    def learned_posterior(self) -> "Autoencoder":
        """Return this model, whose q(z|x) is learned."""
        return self

    def _decoded(self, output: Tensor, x: Batch, predicts: Literal["levels", "data"], head: Head) -> Prediction:
        """Return the decoder's output as a prediction at SNR 0, where the noisy x has no information."""
        return decoded(output, x, predicts, head, self.space)

    def _checked_noise(self, x: Tensor, noise: Tensor, condition: Condition | None) -> None:
        self.space.check(x)
        check_condition(condition, len(x))
        if noise.shape != (x.shape[0], *self.noise_shape):
            raise DiffusionalError(
                f"expected noise of shape {(x.shape[0], *self.noise_shape)}, got {tuple(noise.shape)}"
            )

    def terms(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return the ledger of MATH (8) for one draw of the latents, from `noise` (B, *noise_shape)."""
        self._checked_noise(x, noise, condition)
        own = sum(self.latents)
        drawn = self.infer(x, noise[:, :own], condition)
        return self._ledger(x, drawn, self.prior.terms(drawn.q[-1], drawn.z[-1], noise[:, own:], condition))

    def _ledger(self, x: Tensor, drawn: Inference, top: PriorCosts) -> Ledger:
        below = [q.kl(p).double() for q, p in zip(drawn.q[:-1], drawn.p[:-1], strict=True)]
        kl = torch.cat([torch.stack(below, 1), top.kl], 1) if below else top.kl
        extra = self.extra(x) | top.extra
        return Ledger(self.reconstruction(x, drawn), kl, top.prior, self.space.dimensions, extra)

    def reconstruction(self, x: Tensor, drawn: Inference) -> Tensor:
        return -self.likelihood.log_prob(x, drawn.decoded()).double()

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return ε of the latents (B, Σ latents)."""
        shape = (x.shape[0], sum(self.latents))
        return torch.empty(shape, dtype=x.dtype, device=x.device).normal_(generator=generator)

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """Return the ledger of MATH (8) with one draw of every cost. This takes one network evaluation per item, and for a chain as the prior one
        for each of its T levels, or of 256 cells in continuous time.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        drawn = self.infer(x, self._noise(x, generator), condition)
        return self._ledger(x, drawn, self.prior.elbo(drawn.q[-1], drawn.z[-1], generator, condition))

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return ε of the latents as "noise", and the random numbers of the prior as "prior_…"."""
        shape = (len(x) if n is None else n, sum(self.latents))
        out = {"noise": x.new_empty(shape).normal_(generator=generator)}
        like = out["noise"][:, -self.latents[-1] :].reshape(-1, *self.prior.shape)
        return out | {f"prior_{name}": value for name, value in self.prior.draw(like, sampler, generator).items()}

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of MATH (8) for one draw of the latents, with reparameterised gradients: "reconstruction", "kl_1" … "kl_L−1", and
        those of the prior: "prior" for KL_L or, for a chain, the costs of MATH (22) at one level per item and "encoder_entropy".
        """
        drawn = self.infer(x, draws["noise"], condition)
        inner = {name.removeprefix("prior_"): value for name, value in draws.items() if name.startswith("prior_")}
        top = self.prior.costs(drawn.q[-1], drawn.z[-1], inner, condition)
        below = {
            f"kl_{i + 1}": q.kl(p).double() for i, (q, p) in enumerate(zip(drawn.q[:-1], drawn.p[:-1], strict=True))
        }
        terms = {"reconstruction": self.reconstruction(x, drawn), **below, **top.terms, **self.extra(x)}
        return Costs(terms, top.position, top.density)

    def layers(self, costs: Costs) -> list[tuple[str, ...]]:
        """Return the names of the costs that add up to the KL of each layer, z_1 first."""
        return [*((f"kl_{i}",) for i in range(1, len(self.latents))), self.prior.layer(costs)]

    def objective(self, costs: Costs, weight: float = 1.0, free_bits: float = 0.0) -> Tensor:
        """Return a training objective that avoids unused latents. It is a bound only for weight = 1 without free bits.

            mean[reconstruction + extras] + Σ_l max(weight · mean KL_l, free_bits)

        `weight` is for KL warm-up (Bowman et al. 2016; Sønderby et al. 2016), and `free_bits` is λ nats for each layer (Kingma et al. 2016).
        """
        if self.prior.one_level and free_bits:
            raise DiffusionalError(
                f"expected free_bits=0 for a diffusion prior, whose KL is estimated from a single level, got {free_bits}: use warm-up"
            )
        layers = self.layers(costs)
        means = {name: term.mean() for name, term in costs.terms.items()}
        kl = weight * torch.stack([torch.stack([means.pop(name) for name in names]).sum() for names in layers])
        rest = torch.stack(list(means.values())).sum()
        return rest + (kl.clamp(min=free_bits) if free_bits else kl).sum()

    def warmed_loss(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        weight: float = 1.0,
        free_bits: float = 0.0,
    ) -> Tensor:
        """Return `objective` for one draw from `generator`."""
        self.space.check(x)
        check_condition(condition, len(x))
        return self.objective(self.costs(x, self.draw(x, None, generator), condition), weight, free_bits)

    def log_weight(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """Return ln p(x, z)/q(z|x) (B,), nats, for one draw of z: the path form, MATH (7). Its expectation is the ELBO, and the expectation
        of its exponential is p(x).
        """
        self.check_log_weight()
        self._checked_noise(x, noise, condition)
        return self.walked_log_weight(x, served(noise), condition)

    def walked_log_weight(self, x: Batch, noise: Noise, condition: Condition | None = None) -> PerItem:
        """Return `log_weight` (B,) for noise that is drawn as it is needed: that of the latents, then that of a chain over the last of them,
        latent by latent.
        """
        self.check_log_weight()
        self.space.check(x)
        check_condition(condition, len(x))
        drawn = self.infer(x, noise((sum(self.latents),)), condition)
        top = self.prior.log_weight(drawn.z[-1], noise, condition)
        log_p = _total([*(p.log_prob(z) for p, z in zip(drawn.p[:-1], drawn.z[:-1], strict=True)), top])
        return -self.reconstruction(x, drawn) + log_p - drawn.log_q() - self.space.log_jacobian()

    def check_log_weight(self) -> None:
        """Raise DiffusionalError for a prior without weights, such as a chain in continuous time."""
        self.prior.check_log_weight()


def log_probs(q: Gaussian, z: Tensor) -> Tensor:
    """Return ln N(z_s; μ_i, v_i) (S, N), float64, for z (S, n) and every row of q (N, n), by two matrix products.

    >>> log_probs(Gaussian(torch.zeros(2, 1), torch.zeros(2, 1)), torch.zeros(3, 1)).shape
    torch.Size([3, 2])
    """
    mean, log_variance = q.mean.double().flatten(1), q.log_variance.double().expand_as(q.mean).flatten(1)
    z = z.double().flatten(1)
    precision = torch.exp(-log_variance)
    constant = (mean.square() * precision + log_variance + math.log(2 * math.pi)).sum(1)
    return -0.5 * (z.square() @ precision.T - 2 * z @ (mean * precision).T + constant)


class VAE(Autoencoder):
    """p(x, z) = p(x|z) p(z), q(z|x) = N(μ(x), diag σ(x)²): NELBO = −E ln p(x|z) + KL[q(z|x) ‖ p(z)], MATH (21).

    Args:
        encoder: module from x (B, *shape) to (B, 2n), or (B, 2C, *rest) for latents of shape (C, *rest): μ and ln σ. ln σ is clamped to
            [−15, 10], σ from 3e-7 to 2e4; the bound is that of the clamped q(z|x).
        decoder: module from z (B, *latents) to the output that `predicts` declares: for "levels" C·K channels (`head="categorical"`) or 2C
            ("logistic"), for "data" the mean of x.
        likelihood: p(x|z) over the data's space.
        latents: n, or the shape of z such as (C, H, W).
        prior: None for N(0, I); a chain such as a DiffusionModel over `Continuous` of z's shape, whose latents follow z; or any other
            `Prior`. The costs of a chain are the ledger's `kl` and `prior`, its −ln p(z|z_1) is "latent_reconstruction", and −H[q(z|x)]
            "encoder_entropy".

    A condition is passed to the encoder, the decoder and the network of a diffusion prior, q(z|x, c), p(x|z, c) and p(z|c). For
    a prior p(z) that does not depend on it, wrap the prior's network in a module that takes the condition and ignores it.

    Shapes: x (B, *space.shape), encoded. Costs are nats, float64. Raises DiffusionalError for a likelihood that requires a noisy x, a prior over
    another space, and items that do not fit the space.

    >>> from diffusional.networks import ResidualMLP
    >>> from diffusional.space import Discrete
    >>> digits = Discrete((1, 8, 8), levels=17)
    >>> encoder = ResidualMLP((1, 8, 8), 2 * 4, hidden=16)
    >>> decoder = nn.Sequential(ResidualMLP((4,), 2 * 64, hidden=16), nn.Unflatten(1, (2, 8, 8)))
    >>> vae = VAE(encoder, decoder, NetworkLevels(digits), latents=4)
    >>> x = digits.encode(torch.zeros(3, 1, 8, 8, dtype=torch.long))
    >>> ledger = vae.elbo(x, torch.Generator().manual_seed(0))
    >>> ledger.kl.shape, ledger.prior.shape
    (torch.Size([3, 0]), torch.Size([3]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latents: int | tuple[int, ...],
        predicts: Literal["levels", "data"] | None = None,
        head: Head = "logistic",
        prior: Prior | Chain | None = None,
    ) -> None:
        shape = (latents,) if isinstance(latents, int) else tuple(latents)
        if not shape or min(shape) < 1:
            raise DiffusionalError(f"expected latents to be at least 1, got {latents}")
        super().__init__(likelihood, as_prior(prior, shape))
        self.encoder, self.decoder = encoder, decoder
        self.latents = (math.prod(shape),)
        self.predicts, self.head = checked_decoder(likelihood, predicts, head)

    def regrid(self, steps: int | None) -> "VAE":
        """Return the same networks with another T of the prior's chain, or in continuous time; all tensors are shared."""
        return VAE(
            self.encoder,
            self.decoder,
            self.likelihood,
            self.prior.shape,
            self.predicts,
            self.head,
            self.prior.regrid(steps),
        )

    def deterministic_encoder(self) -> nn.Module:
        """Return the mean of q(z|x), for a VAE without a condition."""
        return EncoderMean(self.encoder)

    def posterior(self, x: Batch, condition: Condition | None = None) -> Gaussian:
        """Return q(z|x) = N(μ(x), σ(x)²), (B, *latents), with ln σ clamped to [−15, 10].

        Raises DiffusionalError unless the encoder's output has twice as many channels as z, (B, 2n) for n latents.
        """
        out = call(self.encoder, x, condition=condition, role="encoder")
        wanted = (len(x), 2 * self.prior.shape[0], *self.prior.shape[1:])
        if out.shape != wanted:
            raise DiffusionalError(
                f"expected the encoder's output to have shape {wanted} for {self.latents[0]} latents, got {tuple(out.shape)}"
            )
        mean, log_std = out.to(x.dtype).chunk(2, 1)
        return bounded(mean, log_std)

    def encoded(self, x: Batch, condition: Condition | None = None) -> Gaussian:
        return self.posterior(x, condition)

    def kept(self, x: Batch, condition: Condition | None = None) -> tuple[Tensor, ...]:
        q = self.posterior(x, condition)
        return q.mean, q.log_variance.expand_as(q.mean)

    def infer_kept(
        self, kept: tuple[Tensor, ...], x: Batch, noise: Tensor, condition: Condition | None = None
    ) -> Inference:
        return self.infer_from(Gaussian(*kept), x, noise, condition)

    def log_posteriors(self, encoded: Gaussian, z: tuple[Tensor, ...]) -> Tensor:
        return log_probs(encoded, z[0])

    def layer_prior(
        self, layer: int, above: tuple[Tensor, ...], n: int, condition: Condition | None = None
    ) -> Gaussian:
        raise DiffusionalError(f"expected a layer below the last, got {layer}: a VAE has one layer")

    def layer_posterior(
        self, layer: int, above: tuple[Tensor, ...], x: Batch, condition: Condition | None = None
    ) -> Gaussian:
        return self.posterior(x, condition)

    def at_latents(self, z: tuple[Tensor, ...], condition: Condition | None = None) -> Prediction:
        return self.decode(z[0], z[0].new_zeros(len(z[0]), *self.space.shape), condition)

    def decode(self, z: Tensor, x: Batch, condition: Condition | None = None) -> Prediction:
        """Return the decoder's prediction at z (B, *latents). Only the shape and type of x are used."""
        output = call(self.decoder, z, condition=condition, role="decoder")
        return self._decoded(output, x, self.predicts, self.head)

    def infer_from(self, encoded: Gaussian, x: Batch, noise: Tensor, condition: Condition | None = None) -> Inference:
        z = encoded.sample(noise=noise.view(-1, *self.prior.shape))
        standard = Gaussian(torch.zeros_like(z), torch.zeros_like(z))
        return Inference((z,), (encoded,), (standard,), lambda: self.decode(z, x, condition))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x ~ p(x|z), z ~ p(z), (n, *space.shape).

        >>> from diffusional.space import binary
        >>> decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (8,)))
        >>> VAE(nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2).sample(3).shape
        torch.Size([3, 4])
        """
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)
        example = next(self.parameters(), torch.empty(0))
        z = self.prior.sample(n, example, generator, condition)
        like = torch.empty(n, *self.space.shape, dtype=example.dtype, device=example.device)
        return self.likelihood.sample(self.decode(z, like, condition), generator)


def decoder_output(likelihood: Likelihood) -> Literal["levels", "data"]:
    """Return the output that a likelihood needs of a decoder: "levels" for NetworkLevels, "data" (the mean) for the others.

    >>> from diffusional.space import Discrete
    >>> decoder_output(NetworkLevels(Discrete((1,), 2)))
    'levels'
    """
    return "levels" if isinstance(likelihood, NetworkLevels) else "data"


def checked_decoder(
    likelihood: Likelihood, predicts: Literal["levels", "data"] | None, head: Head
) -> tuple[Literal["levels", "data"], Head]:
    """Return the output of a decoder and its head, by default as the likelihood needs it. Raises DiffusionalError if it needs another one."""
    needed = decoder_output(likelihood)
    output = predicts or needed
    if output != needed:
        raise DiffusionalError(
            f"expected predicts={needed!r} for a decoder with {type(likelihood).__name__}, got {predicts!r}"
        )
    check_word("head", head, HEADS)
    return output, head
