"""The levels of a chain over the top latent z_L of an autoencoder, as costs of x, so that an evaluation can visit them one by one.

    NELBO(x) = E_{z ~ q(z|x)} [−ln p(x|z) + Σ_{l<L} KL_l(z) − ln p(z_L|z'_1) + KL_T(z_L) + Σ_{t<T} KL_t(z_L)] − H[q(z_L|x)]

with the latents z'_1, …, z'_T of the chain, and KL_l = KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})] for the layers of a hierarchical VAE (a VAE
has L = 1, and none of these). A visit draws a z_L of its own and evaluates the chain's network once, at one level of the chain. KL_T, the
entropy, and −ln p(z_L|z'_1) if it takes no network, need no network evaluation: every visit has a draw of them.

The reconstruction −ln p(x|z) and the KLs of the layers take the decoder, which is the whole top-down pass of a hierarchical VAE. They are
evaluated once for every item before its visits. These draws R⁰ are the item's costs, plus what is left of them in the visits that go to the
decoder: the mean of R − R⁰ over visits. Given R⁰ these are unbiased for E R − R⁰, so that the sum is unbiased and the spread of an item's
visits is its error. If −ln p(z_L|z'_1) takes the chain's network, it is evaluated in the visits to the decoder, which then take one
evaluation of both networks and are counted as one. Every item is encoded once.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.gaussian import Gaussian
from diffusional.models.chain import Chain
from diffusional.models.visited_chain import VisitedChain
from diffusional.shapes import Batch, PerItem

if TYPE_CHECKING:
    from diffusional.models.vae import Autoencoder


class LatentChain(VisitedChain):
    """The chain of an autoencoder's prior as a chain of costs of x (B, *space.shape). Its noise (B, n + n_L) is the ε of z_1 … z_L, and then
    that of the level. `Autoencoder.visited` makes it.
    """

    def __init__(self, model: "Autoencoder") -> None:
        assert model.chain is not None
        super().__init__(model, model.chain)
        self._own = sum(model.latents)
        self.layer_parts = tuple(f"kl_{layer}" for layer in range(1, len(model.latents)))
        self.looked = ("reconstruction", *self.layer_parts)
        first = ("latent_reconstruction",)
        self.decoder_parts = self.looked + first if model.chain.decoder_uses_network else self.looked
        self.further = tuple(name for name in ("prior", *first, "encoder_entropy") if name not in self.decoder_parts)

    model: "Autoencoder"  # pyright: ignore[reportIncompatibleVariableOverride]
    over: Chain  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def visit_shape(self) -> tuple[int, ...]:
        return (self._own + math.prod(self.model.prior.shape),)

    def identity(self) -> list[Any]:
        return [type(self.model).__name__, self.model.predicts, self.model.head, *self.over.identity()]

    def prior(self, x: Batch) -> PerItem:
        """Return 0 (B,), since KL_T depends on z_L, and is among the costs of `beside`."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _kept(self, x: Tensor, condition: Condition | None) -> tuple[Tensor, ...]:
        """Return the encoder's output for every row (`Autoencoder.kept`)."""
        return self._once(x, condition, self.model.kept)

    def _top(self, x: Tensor, noise: Tensor, condition: Condition | None) -> tuple[Gaussian, Tensor]:
        """Return q(z_L|x) and a draw of z_L (B, *shape). This evaluates no network besides the encoder."""
        q = Gaussian(*self._kept(x, condition)[-2:])
        first = self._own - self.model.latents[-1]
        return q, q.sample(noise=noise[:, first : self._own].reshape(-1, *self.model.prior.shape))

    def _level_noise(self, noise: Tensor) -> Tensor:
        return noise[:, self._own :].reshape(-1, *self.model.prior.shape)

    def level_kl(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, z = self._top(x, noise, condition)
        return self.over.level_kl(z, level, self._level_noise(noise), condition)

    def reconstruction(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return −ln p(x|z) (B,)."""
        return self.look(x, noise, condition)["reconstruction"]

    def look(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return −ln p(x|z) as "reconstruction", and the KLs of the layers as "kl_1", …, each (B,), by one pass of the decoder."""
        drawn = self.model.infer_kept(self._kept(x, condition), x, noise[:, : self._own], condition)
        below = [q.kl(p).double() for q, p in zip(drawn.q[:-1], drawn.p[:-1], strict=True)]
        return {
            "reconstruction": self.model.reconstruction(x, drawn),
            **dict(zip(self.layer_parts, below, strict=True)),
        }

    def decoder_costs(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        found = self.look(x, noise, condition)
        return found | {name: self._first(x, noise, condition) for name in self.decoder_parts if name not in found}

    def _first(self, x: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        """Return −ln p(z_L|z'_1) (B,)."""
        _, z = self._top(x, noise, condition)
        return self.over.reconstruction(z, self._level_noise(noise), condition)

    def beside(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return KL_T(z_L) as "prior", −H[q(z_L|x)] as "encoder_entropy", and −ln p(z_L|z'_1) as "latent_reconstruction" if it takes no network,
        each (B,).
        """
        q, z = self._top(x, noise, condition)
        every = {
            "prior": lambda: self.over.prior(z),
            "latent_reconstruction": lambda: self.over.reconstruction(z, self._level_noise(noise), condition),
            "encoder_entropy": lambda: -q.entropy().double(),
        }
        return {name: every[name]() for name in self.further}
