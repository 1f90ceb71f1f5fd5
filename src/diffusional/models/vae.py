"""Autoencoders: latent variable models whose posterior q(z|x) is learned, with the same ledger as a diffusion model.

    NELBO = −E ln p(x|z) + E KL[q(z|x) ‖ p(z)],      E KL[q(z|x) ‖ p(z)] = I(x; z) + KL[q(z) ‖ p(z)]          MATH (21)

The VAE's latent comes from one encoder (Kingma & Welling 2014; Rezende et al. 2014). Its prior is N(0, I), or a whole
diffusion model over z: then z is a trainable first latent, before the chain that is fixed, and the bound is

    NELBO = −E ln p(x|z) − E H[q(z|x)] + E NELBO_diffusion(z)

with every cost of MATH (8) in the last term (Vahdat, Kreis & Kautz 2021). An L-layer VAE is in hvae.py.

The decoder's output is read as a denoiser's at SNR 0, so that the likelihoods of models/likelihood.py serve both.
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
from diffusional.levels import LevelSampler
from diffusional.models.base import LatentVariableModel
from diffusional.models.calls import call
from diffusional.models.denoiser import Head, read
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import (
    DiscretizedGaussian,
    GaussianLikelihood,
    LevelPosterior,
    Likelihood,
    NetworkLevels,
)
from diffusional.models.parameterization import HEADS, Prediction
from diffusional.shapes import Items, PerItem
from diffusional.space import Continuous, Discrete, Space
from diffusional.words import check_word

# Limits of a learned Gaussian's ln σ, as in the autoencoders of latent diffusion: σ from 3e-7 to 2e4. With them e^δ,
# δ = ln v_q − ln v_p ≤ 50, is at least sixteen orders of magnitude below float32's largest number, so that sums over dimensions are finite.
LOG_STD_LIMITS = (-15.0, 10.0)
# Of a loss that visits no levels.
_NO_VISITS = (torch.zeros(0), torch.zeros(0))
# A diffusion prior's costs among those of its VAE.
_NAMES = {"reconstruction": "latent_reconstruction", "jacobian": "latent_jacobian"}


def bounded(mean: Tensor, log_std: Tensor) -> Gaussian:
    """Return N(mean, σ²) from a network's mean and ln σ, where ln σ is clamped to [−15, 10].

    The limits keep KLs finite in float32. A clamped ln σ receives no gradient.

    >>> bounded(torch.zeros(1, 3), torch.tensor([[-8.0, 0.0, 12.0]])).log_variance / 2
    tensor([[-8.,  0., 10.]])
    """
    return Gaussian(mean, 2 * log_std.clamp(*LOG_STD_LIMITS))


@dataclass(frozen=True)
class Inference:
    """One draw of the latents of x (B, …): z_1 … z_L, each (B, n_l), what q and p say of each, and the decoder, called on demand.

    q[l − 1] = q(z_l|z_{>l}, x) and p[l − 1] = p(z_l|z_{>l}), at the z_{>l} drawn.
    """

    z: tuple[Tensor, ...]
    q: tuple[Gaussian, ...]
    p: tuple[Gaussian, ...]
    decoded: Callable[[], Prediction]

    def log_q(self) -> PerItem:
        """ln q(z_{1:L}|x) (B,)."""
        return _total(q.log_prob(z) for q, z in zip(self.q, self.z, strict=True))

    def log_p(self) -> PerItem:
        """ln p(z_{1:L}) (B,)."""
        return _total(p.log_prob(z) for p, z in zip(self.p, self.z, strict=True))


def _total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([v.double() for v in values]).sum(0)


class Autoencoder(LatentVariableModel):
    """A model with a learned posterior over L latent vectors; `latents` are their dimensions, the one next to x first.

    Costs per item (MATH (8) with q in place of the diffusion): `reconstruction` = −ln p(x|z_1), kl[:, l − 1] =
    KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})] for l < L, and `prior` = KL[q(z_L|x) ‖ p(z_L)].
    """

    latents: tuple[int, ...]

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        if isinstance(likelihood, LevelPosterior):
            raise DiffusionalError(
                "LevelPosterior came; it reads x off the noisy x itself, which an autoencoder has not: use NetworkLevels "
                "or DiscretizedGaussian"
            )
        if isinstance(likelihood, GaussianLikelihood | DiscretizedGaussian) and likelihood.variance is None:
            raise DiffusionalError(
                f"{type(likelihood).__name__} came without a variance; the variance of a diffusion's z_1 means nothing "
                "here: give variance=…"
            )
        self.likelihood = likelihood

    @property
    def space(self) -> Space:
        return self.likelihood.space

    @abstractmethod
    def infer(self, x: Items, noise: Tensor, condition: Condition | None = None) -> Inference:
        """Draw z_L … z_1 ~ q(z_{1:L}|x), ε = `noise` (B, Σ latents), z_1's first."""

    @abstractmethod
    def encoded(self, x: Items, condition: Condition | None = None) -> Any:
        """Return all that q takes from items x (N, …) and their conditions: the argument of `log_posteriors`, for any number of draws."""

    @abstractmethod
    def log_posteriors(self, encoded: Any, z: tuple[Tensor, ...]) -> Tensor:
        """ln q(z_{1:L}|x_i) (S, N) of S draws z of the latents under each of N items: what an aggregated posterior is made of."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of one item's noise in `terms`."""
        return (sum(self.latents),)

    def _decoded(self, output: Tensor, x: Items, predicts: Literal["levels", "data"], head: Head) -> Prediction:
        """The decoder's output as a prediction at SNR 0, where the noisy x says nothing."""
        nothing = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        space = self.space if isinstance(self.space, Discrete) else None
        return read(output, torch.zeros_like(x), nothing, predicts, head, space)

    def _checked_noise(self, x: Tensor, noise: Tensor, condition: Condition | None) -> None:
        self.space.check(x)
        check_condition(condition, len(x))
        if noise.shape != (x.shape[0], *self.noise_shape):
            raise DiffusionalError(
                f"noise of shape {tuple(noise.shape)} came; expected {(x.shape[0], *self.noise_shape)}"
            )

    def terms(self, x: Items, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """MATH (8) with one draw of the latents: `noise` (B, *noise_shape)."""
        self._checked_noise(x, noise, condition)
        drawn = self.infer(x, noise, condition)
        kl = [q.kl(p).double() for q, p in zip(drawn.q, drawn.p, strict=True)]
        below = torch.stack(kl[:-1], 1) if len(kl) > 1 else kl[0].new_zeros(len(x), 0)
        return Ledger(self._reconstruction(x, drawn), below, kl[-1], self.space.dimensions, self.extra(x))

    def _reconstruction(self, x: Tensor, drawn: Inference) -> Tensor:
        return -self.likelihood.log_prob(x, drawn.decoded()).double()

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (x.shape[0], *self.noise_shape)
        return torch.empty(shape, dtype=x.dtype, device=x.device).normal_(generator=generator)

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """MATH (8), one draw of the latents from `generator`; one network evaluation per item."""
        return self.terms(x, self._noise(x, generator), condition)

    def draw(
        self,
        x: Tensor,
        sampler: LevelSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """ε of the latents; no levels."""
        shape = (len(x) if n is None else n, sum(self.latents))
        return {"noise": x.new_empty(shape).normal_(generator=generator)}

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """MATH (8) at one draw of the latents (the reparameterised gradient): "kl_1" … "kl_L−1", and "prior" for KL_L."""
        ledger = self.terms(x, draws["noise"], condition)
        below = {f"kl_{i + 1}": kl for i, kl in enumerate(ledger.kl.unbind(1))}
        terms = {"reconstruction": ledger.reconstruction, **below, "prior": ledger.prior, **ledger.extra}
        return Costs(terms, *_NO_VISITS)

    def layers(self, costs: Costs) -> list[tuple[str, ...]]:
        """Which named costs make up the KL of each layer, z_1 first."""
        return [*((f"kl_{i}",) for i in range(1, len(self.latents))), ("prior",)]

    def objective(self, costs: Costs, weight: float = 1.0, free_bits: float = 0.0) -> Tensor:
        """A training objective that keeps latents alive; a bound only at weight = 1 without free bits.

            mean[reconstruction + extras] + Σ_l max(weight · mean KL_l, free_bits)

        `weight` is KL warm-up (Bowman et al. 2016; Sønderby et al. 2016), `free_bits` λ nats for each layer (Kingma et al. 2016).
        """
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
        """`objective` at a draw from `generator`."""
        self.space.check(x)
        check_condition(condition, len(x))
        return self.objective(self.costs(x, self.draw(x, None, generator), condition), weight, free_bits)

    def log_weight(self, x: Items, noise: Tensor, condition: Condition | None = None) -> PerItem:
        """ln p(x, z)/q(z|x) (B,), nats, at one draw of z: the path form, MATH (7). Its expectation is the ELBO, and that of its
        exponential is p(x).
        """
        self._checked_noise(x, noise, condition)
        drawn = self.infer(x, noise, condition)
        return -self._reconstruction(x, drawn) + drawn.log_p() - drawn.log_q() - self.space.log_jacobian()


def log_probs(q: Gaussian, z: Tensor) -> Tensor:
    """ln N(z_s; μ_i, v_i) (S, N), float64, of z (S, n) under every row of q (N, n), by two matrix products.

    >>> log_probs(Gaussian(torch.zeros(2, 1), torch.zeros(2, 1)), torch.zeros(3, 1)).shape
    torch.Size([3, 2])
    """
    mean, log_variance, z = q.mean.double(), q.log_variance.double().expand_as(q.mean), z.double()
    precision = torch.exp(-log_variance)
    constant = (mean.square() * precision + log_variance + math.log(2 * math.pi)).sum(1)
    return -0.5 * (z.square() @ precision.T - 2 * z @ (mean * precision).T + constant)


class VAE(Autoencoder):
    """p(x, z) = p(x|z) p(z), q(z|x) = N(μ(x), diag σ(x)²): NELBO = −E ln p(x|z) + KL[q(z|x) ‖ p(z)], MATH (21).

    Args:
        encoder: module from x (B, *shape) to (B, 2n): μ and ln σ. ln σ is clamped to [−15, 10], σ from 3e-7 to 2e4; the
            bound is that of the clamped q(z|x).
        decoder: module from z (B, n) to what `predicts` says: for "levels" C·K channels (`head="categorical"`) or 2C
            ("logistic"), for "data" the mean of x.
        likelihood: p(x|z) over the data's space.
        latents: n.
        prior: None for N(0, I); or a DiffusionModel over Continuous((n,)), whose latents follow z. Its costs then are the
            ledger's `kl` and `prior`, its −ln p(z|z_1) is "latent_reconstruction", and −H[q(z|x)] "encoder_entropy".

    A condition is passed to the encoder, the decoder and the network of a diffusion prior, q(z|x, c), p(x|z, c) and p(z|c). For
    a prior p(z) that does not depend on it, wrap the prior's network in a module that takes the condition and ignores it.

    Shapes: x (B, *space.shape), encoded. Costs are nats, float64. Raises DiffusionalError for a likelihood that needs a
    noisy x, a prior over another space, and items that the space refuses.

    >>> from diffusional.networks import ResidualMLP
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
        latents: int,
        predicts: Literal["levels", "data"] | None = None,
        head: Head = "logistic",
        prior: DiffusionModel | None = None,
    ) -> None:
        super().__init__(likelihood)
        if latents < 1:
            raise DiffusionalError(f"latents={latents} came; give at least 1")
        self.encoder, self.decoder, self.chain = encoder, decoder, prior
        self.latents = (latents,)
        self.predicts: Literal["levels", "data"]
        self.head: Head
        self.predicts, self.head = checked_decoder(likelihood, predicts, head)
        if prior is not None and prior.space != Continuous((latents,)):
            raise DiffusionalError(f"a prior over {prior.space} came; the latent is Continuous(({latents},))")

    @property
    def noise_shape(self) -> tuple[int, ...]:
        # z's ε first; then, of a diffusion prior, one for each of its latents.
        return (self.latents[0] * (1 if self.chain is None else 1 + self.chain.noise_shape[0]),)

    @property
    def evaluations(self) -> int:
        return 1 if self.chain is None else 1 + self.chain.evaluations

    def regrid(self, steps: int | None) -> "VAE":
        """The same networks with another T of the diffusion prior, or in continuous time; shares all tensors."""
        if self.chain is None:
            raise DiffusionalError(f"steps={steps} came; a VAE with the prior N(0, I) has no levels to re-grid")
        return VAE(
            self.encoder,
            self.decoder,
            self.likelihood,
            self.latents[0],
            self.predicts,
            self.head,
            self.chain.regrid(steps),
        )

    def posterior(self, x: Items, condition: Condition | None = None) -> Gaussian:
        """q(z|x) = N(μ(x), σ(x)²), (B, n), with ln σ clamped to [−15, 10].

        Raises DiffusionalError unless the encoder's output has shape (B, 2n).
        """
        out = call(self.encoder, x, condition=condition, role="encoder")
        if out.shape != (len(x), 2 * self.latents[0]):
            raise DiffusionalError(
                f"the encoder's output has shape {tuple(out.shape)}; {self.latents[0]} latents need {(len(x), 2 * self.latents[0])}"
            )
        mean, log_std = out.to(x.dtype).chunk(2, 1)
        return bounded(mean, log_std)

    def encoded(self, x: Items, condition: Condition | None = None) -> Gaussian:
        return self.posterior(x, condition)

    def log_posteriors(self, encoded: Gaussian, z: tuple[Tensor, ...]) -> Tensor:
        return log_probs(encoded, z[0])

    def decode(self, z: Tensor, x: Items, condition: Condition | None = None) -> Prediction:
        """What the decoder says of z (B, n); x tells shape and type only."""
        output = call(self.decoder, z, condition=condition, role="decoder")
        return self._decoded(output, x, self.predicts, self.head)

    def infer(self, x: Items, noise: Tensor, condition: Condition | None = None) -> Inference:
        q = self.posterior(x, condition)
        z = q.sample(noise=noise[:, : self.latents[0]])
        standard = Gaussian(torch.zeros_like(z), torch.zeros_like(z))
        return Inference((z,), (q,), (standard,), lambda: self.decode(z, x, condition))

    def terms(self, x: Items, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """One draw of every cost: `noise` (B, n), or with a diffusion prior of T latents (B, n·(1 + T)): z's ε first."""
        if self.chain is None:
            return super().terms(x, noise, condition)
        self._checked_noise(x, noise, condition)
        drawn = self.infer(x, noise, condition)
        n = self.latents[0]
        walk = noise[:, n:].reshape(len(x), -1, n).transpose(0, 1).contiguous()
        return self._joined(x, drawn, self.chain.terms(drawn.z[0], walk, condition))

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """One draw of every cost; a diffusion prior pays for its T levels, or 256 cells of continuous time."""
        if self.chain is None:
            return super().elbo(x, generator, condition)
        self.space.check(x)
        check_condition(condition, len(x))
        drawn = self._inferred(x, generator, condition)
        return self._joined(x, drawn, self.chain.elbo(drawn.z[0], generator, condition))

    def draw(
        self,
        x: Tensor,
        sampler: LevelSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """ε of z; and, as "prior_…", what a diffusion prior draws."""
        out = super().draw(x, None, generator, n)
        if self.chain is not None:
            inner = self.chain.draw(out["noise"], sampler, generator)
            out |= {f"prior_{name}": value for name, value in inner.items()}
        return out

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """As an autoencoder's; of a diffusion prior the costs of MATH (22), one level per item, and −H[q(z|x)]."""
        if self.chain is None:
            return super().costs(x, draws, condition)
        drawn = self.infer(x, draws["noise"], condition)
        inner = {name.removeprefix("prior_"): value for name, value in draws.items() if name.startswith("prior_")}
        chain = self.chain.costs(drawn.z[0], inner, condition)
        terms = {"reconstruction": self._reconstruction(x, drawn), **self.extra(x)}
        terms |= {_NAMES.get(name, name): value for name, value in chain.terms.items()}
        terms["encoder_entropy"] = -drawn.q[0].entropy().double()
        return Costs(terms, chain.position, chain.density)

    def layers(self, costs: Costs) -> list[tuple[str, ...]]:
        # −H[q] + NELBO of z bounds KL[q(z|x) ‖ p(z)]. A draw of it may be negative.
        outer = ("reconstruction", "jacobian")
        return super().layers(costs) if self.chain is None else [tuple(n for n in costs.terms if n not in outer)]

    def objective(self, costs: Costs, weight: float = 1.0, free_bits: float = 0.0) -> Tensor:
        if self.chain is not None and free_bits:
            raise DiffusionalError(
                f"free_bits={free_bits} came with a diffusion prior, whose KL is known to one level's draw only; use warm-up"
            )
        return super().objective(costs, weight, free_bits)

    def _inferred(self, x: Tensor, generator: torch.Generator | None, condition: Condition | None) -> Inference:
        noise = torch.empty(len(x), self.latents[0], dtype=x.dtype, device=x.device).normal_(generator=generator)
        return self.infer(x, noise, condition)

    def _joined(self, x: Tensor, drawn: Inference, chain: Ledger) -> Ledger:
        extra = {
            "latent_reconstruction": chain.reconstruction,
            "encoder_entropy": -drawn.q[0].entropy().double(),
        }
        return Ledger(
            self._reconstruction(x, drawn), chain.kl, chain.prior, self.space.dimensions, self.extra(x) | extra
        )

    def log_weight(self, x: Items, noise: Tensor, condition: Condition | None = None) -> PerItem:
        if self.chain is not None:
            raise DiffusionalError(
                "importance weights came for a diffusion prior; its path's weights vary by far too much to be averaged"
            )
        return super().log_weight(x, noise, condition)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """n items x ~ p(x|z), z ~ p(z), (n, *space.shape).

        >>> from diffusional.space import binary
        >>> decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (8,)))
        >>> VAE(nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2).sample(3).shape
        torch.Size([3, 4])
        """
        if n < 1:
            raise DiffusionalError(f"n={n} came; ask for at least one sample")
        check_condition(condition, n)
        example = next(self.parameters(), torch.empty(0))
        if self.chain is None:
            z = torch.empty(n, *self.latents, dtype=example.dtype, device=example.device).normal_(generator=generator)
        else:
            z = self.chain.sample(n, generator, condition)
        like = torch.empty(n, *self.space.shape, dtype=example.dtype, device=example.device)
        return self.likelihood.sample(self.decode(z, like, condition), generator)


def spoken(likelihood: Likelihood) -> Literal["levels", "data"]:
    """What a decoder must say for a likelihood: "levels" for NetworkLevels, "data" (the mean) for the others.

    >>> spoken(NetworkLevels(Discrete((1,), 2)))
    'levels'
    """
    return "levels" if isinstance(likelihood, NetworkLevels) else "data"


def checked_decoder(
    likelihood: Likelihood, predicts: Literal["levels", "data"] | None, head: Head
) -> tuple[Literal["levels", "data"], Head]:
    """What a decoder says and how, or DiffusionalError where a likelihood can't read it."""
    said = predicts or spoken(likelihood)
    if said not in ("levels", "data") or (said == "levels") != (spoken(likelihood) == "levels"):
        raise DiffusionalError(
            f"predicts={predicts!r} came with {type(likelihood).__name__}, which reads {spoken(likelihood)!r}"
        )
    check_word("head", head, HEADS)
    return said, head
