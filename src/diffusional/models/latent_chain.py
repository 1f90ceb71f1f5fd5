"""The levels of a chain over the latent z of a VAE, as costs of x, so that an evaluation can visit them one by one.

    NELBO(x) = E_{z ~ q(z|x)} [−ln p(x|z) − ln p(z|z_1) + KL_T(z) + Σ_{t<T} KL_t(z)] − H[q(z|x)]

A visit draws a z of its own and looks at one level of the chain at z, with one evaluation of the chain's network. KL_T, −ln p(z|z_1) and
the entropy take no network evaluation: every visit has a draw of them. The reconstruction −ln p(x|z) is the decoder's. It is evaluated once
for every item before its visits, and this draw R⁰ is the item's reconstruction, plus what is left of it in the visits that go to the decoder:
the mean of R − R⁰ over visits. Given R⁰ these are unbiased for E R − R⁰, so that the sum is unbiased and the spread of an item's visits
is its error.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, row_digests, rows_of
from diffusional.gaussian import Gaussian
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.shapes import Items, PerItem
from diffusional.space import Space

if TYPE_CHECKING:
    from diffusional.models.vae import VAE, Inference


class LatentChain(Chain):
    """The chain of a VAE's prior as a chain of costs of x (B, *space.shape). Its noise (B, n + n) is the ε of z, then that of the level.

    `VAE.visited` makes it; the decoder of the prior's chain must not take the network.
    """

    def __init__(self, model: "VAE") -> None:
        super().__init__()
        assert model.chain is not None
        # Not registered: the tensors are the model's own.
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "over", model.chain)
        self._encoded = {}
        self._own = sum(model.latents)

    looks = True
    further = ("prior", "latent_reconstruction", "encoder_entropy")
    model: "VAE"
    over: Chain
    _encoded: dict[bytes, tuple[Tensor, Tensor]]

    def whole(self) -> LatentVariableModel:
        return self.model

    @property
    def space(self) -> Space:
        return self.model.space

    @property
    def steps(self) -> int | None:
        return self.over.steps

    @property
    def visit_shape(self) -> tuple[int, ...]:
        return (2 * self._own,)

    def noise_levels(self) -> Tensor:
        return self.over.noise_levels()

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        return self.over.gamma_at(edges)

    def identity(self) -> list[Any]:
        return [type(self.model).__name__, self.model.predicts, self.model.head, *self.over.identity()]

    def level_constants(self, level: PerItem) -> PerItem:
        return self.over.level_constants(level)

    def prior(self, x: Items) -> PerItem:
        """Zero (B,): KL_T depends on z, and is among the costs of `beside`."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        return self.model.extra(x)

    def _inferred(self, x: Tensor, noise: Tensor, condition: Condition | None) -> "Inference":
        """One draw of z for every row. Each item is encoded once, however often it is visited."""
        keys = row_digests(x)
        if condition is not None:
            keys = [one + other for one, other in zip(keys, row_digests(condition), strict=True)]
        where = {key: i for i, key in enumerate(keys) if key not in self._encoded}
        if where:
            rows = torch.tensor(list(where.values()), device=x.device)
            q = self.model.posterior(x[rows], rows_of(condition, rows))
            pairs = zip(q.mean, q.log_variance.expand_as(q.mean), strict=True)
            self._encoded.update(zip(where, pairs, strict=True))
        means, log_variances = zip(*(self._encoded[key] for key in keys), strict=True)
        q = Gaussian(torch.stack(means), torch.stack(log_variances))
        return self.model.infer_from(q, x, noise[:, : self._own], condition)

    def _level_noise(self, noise: Tensor) -> Tensor:
        return noise[:, self._own :].reshape(-1, *self.model.prior.shape)

    def level_kl(self, x: Items, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        drawn = self._inferred(x, noise, condition)
        return self.over.level_kl(drawn.z[-1], level, self._level_noise(noise), condition)

    def reconstruction(self, x: Items, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        """−ln p(x|z) (B,)."""
        return self.model.reconstruction(x, self._inferred(x, noise, condition))

    def beside(self, x: Items, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """KL_T(z) as "prior", −ln p(z|z_1) as "latent_reconstruction" and −H[q(z|x)] as "encoder_entropy", each (B,)."""
        drawn = self._inferred(x, noise, condition)
        z = drawn.z[-1]
        return {
            "prior": self.over.prior(z),
            "latent_reconstruction": self.over.reconstruction(z, self._level_noise(noise), condition),
            "encoder_entropy": -drawn.q[-1].entropy().double(),
        }
