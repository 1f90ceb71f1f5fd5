"""The hierarchical VAE: L latents with a learned posterior, by bidirectional inference.

    p(x, z_{1:L}) = p(x|z_{1:L}) Π_{l<L} p(z_l|z_{>l}) p(z_L),     q(z_{1:L}|x) = q(z_L|x) Π_{l<L} q(z_l|z_{>l}, x)

    NELBO = −E ln p(x|z_{1:L}) + Σ_{l<L} E KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})] + E KL[q(z_L|x) ‖ p(z_L)]

The bound has the form of MATH (8), with layers instead of levels: a diffusion model is the special case of a fixed q. The top-down state
depends on all layers above, so that the distributions are conditioned on z_{>l} and not only on z_{l+1} (Sønderby et al. 2016, Ladder VAE;
Kingma et al. 2016). p(z_L) = N(0, I), or a chain over z_L.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, called, check_condition, repeated
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.models.calls import explained
from diffusional.models.chain import Chain
from diffusional.models.denoiser import Head
from diffusional.models.likelihood import Likelihood
from diffusional.models.parameterization import Prediction
from diffusional.models.prior import Prior, as_prior
from diffusional.models.vae import Autoencoder, Inference, bounded, checked_decoder
from diffusional.networks import Ladder
from diffusional.shapes import Batch

# Added to ln σ of q: a posterior that is narrow at the start of training has information from the first step on, and does not collapse.
_NARROW = -2.0


class HierarchicalVAE(Autoencoder):
    """An L-layer VAE on a `Ladder`: costs `kl` (B, L − 1), the layer next to x first, and `prior` (B,) for the top one, in nats.

        NELBO = −E ln p(x|z_{1:L}) + Σ_{l<L} E KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})] + E KL[q(z_L|x) ‖ p(z_L)]

    (Sønderby et al. 2016.)

    q is residual: q(z_l|z_{>l}, x) = N(μ_p + μ(h, d), σ(h, d)²), where ln σ is the network's output minus 2. The ln σ of p and q
    are clamped to [−15, 10], as in `VAE`.

    Args:
        ladder: the network. Its `latents` are the dimensions of z_1 … z_L, and its output is the one that the likelihood needs: C·K
            channels for levels with head "categorical", 2C with "logistic", C for a mean.
        likelihood: p(x|z) over the data's space.
        prior: the prior of z_L, as in `VAE`: None for N(0, I), a chain over `Continuous` of z_L's shape, or any other `Prior`.

    Raises DiffusionalError as VAE does.

    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.space import Discrete
    >>> digits = Discrete((1, 8, 8), levels=17)
    >>> model = HierarchicalVAE(Ladder((1, 8, 8), (2, 8, 8), latents=(8, 4), hidden=16), NetworkLevels(digits))
    >>> x = digits.encode(torch.zeros(3, 1, 8, 8, dtype=torch.long))
    >>> model.elbo(x, torch.Generator().manual_seed(0)).kl.shape
    torch.Size([3, 1])
    """

    def __init__(
        self,
        ladder: Ladder,
        likelihood: Likelihood,
        predicts: Literal["levels", "data"] | None = None,
        head: Head = "logistic",
        prior: Prior | Chain | None = None,
    ) -> None:
        super().__init__(likelihood, as_prior(prior, ladder.latents[-1:]))
        self.ladder = ladder
        self.latents = ladder.latents
        self.predicts, self.head = checked_decoder(likelihood, predicts, head)

    def _prior(self, layer: int, state: Tensor) -> Gaussian:
        if layer == len(self.latents):
            zero = state.new_zeros(len(state), self.latents[-1])
            return Gaussian(zero, zero)
        return bounded(*self._full(self.ladder.prior(layer, state)))

    def _posterior(self, layer: int, state: Tensor, feature: Tensor, prior: Gaussian) -> Gaussian:
        shift, log_std = self._full(self.ladder.posterior(layer, state, feature))
        return bounded(prior.mean + shift, log_std + _NARROW)

    def _top(self, n: int, condition: Condition | None) -> Tensor:
        """Return the initial top-down state (n, hidden)."""
        return called(self.ladder.top, n, condition=condition)

    def _full(self, outputs: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        """Return the outputs of a head in the precision of the weights, which KLs need, since that of autocast is lower."""
        dtype = next(self.ladder.parameters()).dtype
        return (part.to(dtype) for part in outputs)

    def infer_from(
        self,
        encoded: tuple[list[Tensor], Condition | None],
        x: Batch,
        noise: Tensor,
        condition: Condition | None = None,
    ) -> Inference:
        features = [f.to(x.dtype) for f in encoded[0]]
        state = self._top(len(x), condition)
        parts = noise.split(self.latents, 1)
        z, qs, ps = [], [], []
        for layer in range(len(self.latents), 0, -1):
            p = self._prior(layer, state)
            q = self._posterior(layer, state, features[layer - 1], p)
            z.append(q.sample(noise=parts[layer - 1]))
            qs.append(q)
            ps.append(p)
            state = self.ladder.down(layer, state, z[-1])
        return Inference(
            tuple(z[::-1]),
            tuple(qs[::-1]),
            tuple(ps[::-1]),
            lambda: self._decoded(self.ladder.output(state), x, self.predicts, self.head),
        )

    def encoded(self, x: Batch, condition: Condition | None = None) -> tuple[list[Tensor], Condition | None]:
        with explained(self.ladder, x, role="ladder"):
            return called(self.ladder.up, x, condition=condition), condition

    def kept(self, x: Batch, condition: Condition | None = None) -> tuple[Tensor, ...]:
        features, _ = self.encoded(x, condition)
        top, state = len(self.latents), self._top(len(x), condition)
        q = self._posterior(top, state, features[-1].to(x.dtype), self._prior(top, state))
        return *features, q.mean, q.log_variance

    def infer_kept(
        self, kept: tuple[Tensor, ...], x: Batch, noise: Tensor, condition: Condition | None = None
    ) -> Inference:
        return self.infer_from((list(kept[:-2]), condition), x, noise, condition)

    def regrid(self, steps: int | None) -> "HierarchicalVAE":
        """Return the same networks with another T of the prior's chain, or in continuous time; all tensors are shared."""
        return HierarchicalVAE(self.ladder, self.likelihood, self.predicts, self.head, self.prior.regrid(steps))

    def log_posteriors(self, encoded: tuple[list[Tensor], Condition | None], z: tuple[Tensor, ...]) -> Tensor:
        features, condition = encoded
        s, n = len(z[0]), len(features[0])
        # Without a condition the top-down state depends only on z, and only the heads of q need pairs of a draw and an item.
        paired = condition is not None
        state = self._top(s * n, repeated(condition, s)) if paired else self._top(s, None)
        total = torch.zeros(s, n, dtype=torch.float64, device=state.device)
        for layer in range(len(self.latents), 0, -1):
            drawn = z[layer - 1].repeat_interleave(n, 0)
            here = state if paired else state.repeat_interleave(n, 0)
            q = self._posterior(layer, here, features[layer - 1].repeat(s, 1), self._prior(layer, here))
            total += q.log_prob(drawn).double().view(s, n)
            state = self.ladder.down(layer, state, drawn if paired else z[layer - 1])
        return total

    def _state(self, layer: int, above: tuple[Tensor, ...], n: int, condition: Condition | None) -> Tensor:
        """Return the top-down state h_l (n, hidden) for z_{l+1} … z_L."""
        state = self._top(n, condition)
        for number, z in zip(range(len(self.latents), layer, -1), above[::-1], strict=True):
            state = self.ladder.down(number, state, z)
        return state

    def layer_prior(
        self, layer: int, above: tuple[Tensor, ...], n: int, condition: Condition | None = None
    ) -> Gaussian:
        return self._prior(layer, self._state(layer, above, n, condition))

    def layer_posterior(
        self, layer: int, above: tuple[Tensor, ...], x: Batch, condition: Condition | None = None
    ) -> Gaussian:
        features, _ = self.encoded(x, condition)
        state = self._state(layer, above, len(x), condition)
        return self._posterior(layer, state, features[layer - 1].to(x.dtype), self._prior(layer, state))

    def at_latents(self, z: tuple[Tensor, ...], condition: Condition | None = None) -> Prediction:
        output = self.ladder.output(self._state(0, z, len(z[0]), condition))
        return self._decoded(output, z[0].new_zeros(len(z[0]), *self.space.shape), self.predicts, self.head)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x (n, *space.shape): z_L ~ p(z_L), z_l ~ p(z_l|z_{>l}), x ~ p(x|z_{1:L})."""
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)
        state = self._top(n, condition)
        for layer in range(len(self.latents), 0, -1):
            last = layer == len(self.latents)
            z = (
                self.prior.sample(n, state, generator, condition)
                if last
                else self._prior(layer, state).sample(generator)
            )
            state = self.ladder.down(layer, state, z)
        like = state.new_empty(n, *self.space.shape)
        return self.likelihood.sample(
            self._decoded(self.ladder.output(state), like, self.predicts, self.head), generator
        )
