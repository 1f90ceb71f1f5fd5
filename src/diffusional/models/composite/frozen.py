"""Systems with a frozen encoder: its output is the data of a diffusion, and another model gives x back, MATH (28)."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import diffuse
from diffusional.gaussian import Gaussian
from diffusional.models.base import LatentVariableModel
from diffusional.models.calls import call
from diffusional.models.chain import Chain
from diffusional.models.coding import Move
from diffusional.models.composite.base import Composite
from diffusional.models.composite.links import linked, tail_of
from diffusional.models.renoised import Renoised
from diffusional.models.tail import ChainTail
from diffusional.models.vae import bounded
from diffusional.shapes import Batch, PerItem
from diffusional.space import Continuous


class _Encoded(Composite):
    """A composite of a frozen encoder, a prior of its output, and a decoder. The encoder has no gradient, and stays in evaluation mode."""

    encodes = True

    def __init__(
        self,
        encoder: nn.Module,
        stages: Mapping[str, LatentVariableModel],
        conditional: Collection[str] | None,
        key: str,
    ) -> None:
        super().__init__(stages, conditional)
        if not isinstance(encoder, nn.Module):
            raise DiffusionalError(
                f"expected the encoder to be a torch.nn.Module, so that its weights are saved and hashed, got a {type(encoder).__name__}"
            )
        self.encoder, self.key = encoder.requires_grad_(False).eval(), key

    def train(self, mode: bool = True) -> "_Encoded":
        """Set the training mode of the stages; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _encode(self, x: Tensor, channels: int) -> Tensor:
        """Return the encoder's output, which must have `channels` times the channels of the prior's items."""
        with torch.no_grad():
            out = call(self.encoder, x, role="encoder")
        shape = self._latent_shape
        wanted = (len(x), channels * shape[0], *shape[1:])
        if tuple(out.shape) != wanted:
            raise DiffusionalError(
                f"stages do not meet: expected the encoder's output to have shape {wanted}, {channels} times the items of the prior, "
                f"{shape}, got {tuple(out.shape)}"
            )
        return out.to(x.dtype)

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        first = next(iter(self.stages.values()))
        assert isinstance(first, LatentVariableModel)
        return first.space.shape


class FrozenEncoder(_Encoded):
    """A frozen, deterministic encoder f, a diffusion of f(x), and a model of x given its z_s, MATH (28): the shape of unCLIP, and of latent
    diffusion whose autoencoder is taken as deterministic.

    The posterior is the diffusion of f(x), q(z_t|x) = N(α_t f(x), σ_t² I), and the generative model p(z_{s:T}|c) p(x|z_s, c):

        −ln p(x|c) ≤ E NELBO(x|z_s, c) + Σ_{s≤t<T} E KL_t + KL_T,

    with f(x) for the data in every KL. Neither an entropy of the encoder nor a density of f(x) appears: z_s is the latent. I(x; z_{s:T}) = I(f(x); z_s)
    is a constant of the training. A decoder that was trained with f(x) itself is charged for the noise of z_s.

    Args:
        encoder: module from x (B, *space.shape) to f(x) (B, *shape), which is frozen: a condition is not given to it.
        prior: a chain over `Continuous(shape)`, such as a DiffusionModel of f(x).
        decoder: a model of x that takes a condition with the entry `key`: a diffusion, a `DirectModel`, or a `Renoised` of γ_s.
        level: s; 1 by default. A prior that was trained for a range of γ can hand over any of its latents.
        conditional: names of the stages, "prior" and "decoder", that take c; by default both.
        rescaled: give the decoder z_s/α_s, as for a network that was trained with f(x).
        gives_level: give the decoder −γ_s as `key`_log_snr.

    Raises DiffusionalError if stages do not meet: an encoder whose output is not of the prior's shape, or a decoder of another noise level.

    >>> from diffusional import DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> from diffusional.exact import Gaussian as World
    >>> from diffusional.models.direct import DirectModel
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    >>> world = World(torch.zeros(1), torch.eye(1))
    >>> prior = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> decoder = DirectModel(nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
    >>> model = FrozenEncoder(nn.Linear(2, 1), prior, decoder)
    >>> ledger = model.elbo(torch.randn(3, 2), torch.Generator().manual_seed(0))
    >>> list(ledger.totals())
    ['prior.reconstruction', 'prior.kl', 'prior.prior', 'decoder.reconstruction', 'decoder.kl', 'decoder.prior', 'decoder.jacobian']
    """

    def __init__(
        self,
        encoder: nn.Module,
        prior: Chain,
        decoder: LatentVariableModel,
        *,
        level: int = 1,
        conditional: Collection[str] | None = None,
        key: str = "latent",
        rescaled: bool = False,
        gives_level: bool = False,
    ) -> None:
        tail = tail_of(prior, level)
        assert isinstance(tail, ChainTail)
        own = linked(decoder, tail.gamma, prior.space.shape, key, "decoder", rescaled, gives_level)
        super().__init__(encoder, {"prior": tail, "decoder": own}, conditional, key)
        if not isinstance(prior.space, Continuous):
            raise DiffusionalError(
                f"expected a prior over Continuous(…), the space of the encoder's output, got {prior.space}"
            )

    @property
    def _tail(self) -> ChainTail:
        tail = self.stages["prior"]
        assert isinstance(tail, ChainTail)
        return tail

    def regrid(self, steps: int | None) -> "FrozenEncoder":
        """Return the same networks with another T of the prior, and of the decoder if it has one; all tensors are shared.

        Raises DiffusionalError unless z_1 is handed over.
        """
        tail, decoder = self._tail.regrid(steps), self.last
        assert isinstance(decoder, Renoised)
        other = decoder.regrid(steps) if decoder.visited() is not None else decoder
        return self._like({"prior": tail, "decoder": other})

    def _like(self, stages: Mapping[str, LatentVariableModel]) -> "FrozenEncoder":
        tail = stages["prior"]
        assert isinstance(tail, ChainTail)
        return FrozenEncoder(
            self.encoder, tail, stages["decoder"], level=tail.level, conditional=self.conditional, key=self.key
        )

    def encoded(self, x: Batch) -> tuple[Tensor, ...]:
        return (self._encode(x, 1),)

    def variable(self, name: str, x: Batch, kept: tuple[Tensor, ...] = ()) -> Tensor:
        return kept[0] if name == "prior" else x

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        if name == "prior":
            return kept[0], self._own(name, condition)
        return x, self._with(name, self.key, kept[0], condition)

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        z = self._tail.sample(n, generator, self._own("prior", condition))
        yield "prior", z
        yield "decoder", self.decode(z, generator, condition)

    @torch.no_grad()
    def decode(self, z: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return samples x ~ p(x|z_s, c) for latents z_s (n, *shape), such as interpolations between those of two images."""
        decoder, given = self.sampled_by("decoder", z, generator, condition)
        return decoder.sample(len(z), generator, given)

    @property
    def hands_over(self) -> bool:
        return True

    @torch.no_grad()
    def interpolate(
        self, one: Tensor, other: Tensor, n: int = 8, seed: int = 0, condition: Condition | None = None
    ) -> Tensor:
        """Return n samples x (n, *space.shape) for embeddings on the arc from f(one) to f(other), as unCLIP's (Ramesh et al. 2022, §3.2).

        All samples have the same noise, that of z_s and that of the decoder, so that only the embedding changes. The first and the last are
        samples for the two items themselves, not the items.

        Args:
            one, other: items (*space.shape), encoded.
            n: number of samples, at least 2.
            condition: c of the decoder, (n, …), if it takes one.

        Raises DiffusionalError for items that are not of the space, and for n below 2.

        >>> from diffusional import DiffusionModel, GaussianDiffusion, likelihood, schedule
        >>> from diffusional.exact import Gaussian as World
        >>> from diffusional.models.direct import DirectModel
        >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
        >>> world = World(torch.zeros(1), torch.eye(1))
        >>> prior = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
        >>> decoder = DirectModel(nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
        >>> FrozenEncoder(nn.Linear(2, 1), prior, decoder).interpolate(torch.zeros(2), torch.ones(2), n=5).shape
        torch.Size([5, 2])
        """
        if n < 2:
            raise DiffusionalError(
                f"expected n to be at least 2, the samples for both ends of an interpolation, got {n}"
            )
        ends = torch.stack([one, other])
        self.space.check(ends)
        first, last = self._encode(ends, 1)
        embedding = arc(first, last, n)
        decoder = self.last
        assert isinstance(decoder, Renoised)
        generator = torch.Generator(ends.device).manual_seed(seed)
        noise = torch.empty_like(embedding[:1]).normal_(generator=generator).expand_as(embedding)
        z = diffuse(embedding, torch.full((n,), decoder.gamma, dtype=torch.float64), noise)
        every = []
        for i in range(n):
            generator.manual_seed(seed + 1)
            c = rows_of(condition, slice(i, i + 1))
            every.append(self.decode(z[i : i + 1], generator, c))
        return torch.cat(every)

    @torch.no_grad()
    def latents(self, x: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return z_s ~ q(z_s|x) (B, *shape) of items x: α_s f(x) + σ_s ε."""
        self.space.check(x)
        f = self._encode(x, 1)
        decoder = self.last
        assert isinstance(decoder, Renoised)
        return diffuse(
            f,
            torch.full((len(x),), decoder.gamma, dtype=torch.float64),
            torch.empty_like(f).normal_(generator=generator),
        )


def arc(one: Tensor, other: Tensor, n: int) -> Tensor:
    """Return n points (n, *shape) on the arc from one tensor (*shape) to another: directions at even angles, with norms between theirs.

    Where the directions are the same or opposite, or a norm is 0, the points are on the line between the two.

    >>> arc(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 3)[1]
    tensor([2.1213, 2.1213])
    """
    share = torch.linspace(0, 1, n, dtype=torch.float64).to(one).reshape(-1, *(1,) * one.ndim)
    norms = one.norm(), other.norm()
    cosine = (one * other).sum() / (norms[0] * norms[1]).clamp(min=torch.finfo(one.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    if not torch.sin(angle) > 1e-6 or not min(norms) > 0:
        return one + share * (other - one)
    ends = (torch.sin((1 - share) * angle) / norms[0], torch.sin(share * angle) / norms[1])
    return (ends[0] * one + ends[1] * other) / torch.sin(angle) * (norms[0] + share * (norms[1] - norms[0]))


class FrozenPosterior(_Encoded):
    """A frozen, stochastic encoder q(y|x), a diffusion of y, and a model of x given y, MATH (28): latent diffusion whose autoencoder is a VAE.

        −ln p(x|c) ≤ E_{y ~ q(y|x)} [NELBO(x|y, c) + NELBO(y|c)] − H[q(y|x)].

    It is the bound of a VAE with a diffusion prior, whose encoder and decoder need not have been trained with it. −H[q(y|x)] is the cost
    "prior.encoder_entropy", and −ln p(y|z_1) is "prior.reconstruction".

    Args:
        encoder: module from x to (B, 2C, *rest), the mean and ln σ of q(y|x) for y of shape (C, *rest); ln σ is clamped to [−15, 10]. It is frozen.
        prior: a chain over `Continuous(shape)`.
        decoder: a model of x that takes a condition with the entry `key`, such as a `DirectModel`.
        conditional, key: as for `FrozenEncoder`.

    Raises DiffusionalError if stages do not meet.

    >>> from diffusional import DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> from diffusional.exact import Gaussian as World
    >>> from diffusional.models.direct import DirectModel
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    >>> world = World(torch.zeros(1), torch.eye(1))
    >>> prior = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> decoder = DirectModel(nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
    >>> model = FrozenPosterior(nn.Linear(2, 2), prior, decoder)
    >>> "prior.encoder_entropy" in model.elbo(torch.randn(3, 2), torch.Generator().manual_seed(0)).totals()
    True
    """

    further = ("prior.encoder_entropy",)

    def __init__(
        self,
        encoder: nn.Module,
        prior: Chain,
        decoder: LatentVariableModel,
        *,
        conditional: Collection[str] | None = None,
        key: str = "latent",
    ) -> None:
        super().__init__(encoder, {"prior": prior, "decoder": decoder}, conditional, key)
        if prior.space != Continuous(prior.space.shape):
            raise DiffusionalError(
                f"expected a prior over Continuous({prior.space.shape}), the space of the latent without a scale, got one over {prior.space}"
            )

    @property
    def drawn(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of dimensions of y."""
        return int(torch.Size(self._latent_shape).numel())

    def regrid(self, steps: int | None) -> "FrozenPosterior":
        """Return the same networks with another T of the prior, and of the decoder if it has one; all tensors are shared."""
        prior, decoder = self.stages["prior"], self.last
        assert isinstance(prior, Chain)
        decoder = decoder.regrid(steps) if decoder.visited() is not None else decoder
        return self._like({"prior": prior.regrid(steps), "decoder": decoder})

    def _like(self, stages: Mapping[str, LatentVariableModel]) -> "FrozenPosterior":
        prior = stages["prior"]
        assert isinstance(prior, Chain)
        return FrozenPosterior(self.encoder, prior, stages["decoder"], conditional=self.conditional, key=self.key)

    def fixed(self, name: str) -> bool:
        return name != "prior"

    def encoded(self, x: Batch) -> tuple[Tensor, ...]:
        mean, log_std = self._encode(x, 2).chunk(2, 1)
        q = bounded(mean, log_std)
        return q.mean, q.log_variance

    def posterior(self, x: Batch) -> Gaussian:
        """Return q(y|x)."""
        self.space.check(x)
        return Gaussian(*self.encoded(x))

    def given(
        self, name: str, x: Batch, noise: Tensor, condition: Condition | None, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Condition | None]:
        y = Gaussian(*kept).sample(noise=noise.reshape(len(x), *self._latent_shape).to(x.dtype))
        if name == "prior":
            return y, self._own(name, condition)
        return x, self._with(name, self.key, y, condition)

    def popped(self, name: str, x: str) -> Move | None:
        if name != "prior":
            return None
        return Move(name, lambda known: Gaussian(*self.encoded(known[x])), pops=True, finest=0.0)

    def _log_weight_of_variables(self, noise: Tensor, kept: tuple[Tensor, ...], x: Batch) -> PerItem:
        q = Gaussian(*kept)
        return -q.log_prob(q.sample(noise=noise.reshape(len(x), *self._latent_shape).to(x.dtype))).double()

    def beside(self, x: Batch, noise: Tensor, kept: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"prior.encoder_entropy": -Gaussian(*kept).entropy().double()}

    def generate(
        self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        self._check_sampled(n, condition)
        prior = self.stages["prior"]
        assert isinstance(prior, LatentVariableModel)
        y = prior.sample(n, generator, self._own("prior", condition))
        yield "prior", y
        decoder, given = self.sampled_by("decoder", y, generator, condition)
        yield "decoder", decoder.sample(n, generator, given)
