"""A model without latents, p(x|c): a likelihood at the output of a decoder. It is the last stage of a latent diffusion, with c the latent."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel
from diffusional.models.calls import call
from diffusional.models.chain import by_position
from diffusional.models.coding import Given, Known, Move, the_condition
from diffusional.models.denoiser import Head, decoded
from diffusional.models.likelihood import Decoded, Likelihood
from diffusional.models.parameterization import Prediction
from diffusional.models.vae import checked_decoder
from diffusional.shapes import Batch
from diffusional.space import Space
from diffusional.timesteps import TimestepSampler


class DirectModel(LatentVariableModel):
    """p(x|c) = likelihood of x at decoder(c): the only cost is `reconstruction` = −ln p(x|c).

    Args:
        decoder: network from the condition to the output that `predicts` declares, as the decoder of a `VAE`.
        likelihood: p(x|·) over the data's space, with a variance of its own.
        predicts, head: as for a `VAE`; by default as the likelihood needs it.
        key: the entry of the condition that is the decoder's input, if the condition is a dict. Other entries are the decoder's condition.

    Raises DiffusionalError without a condition, for a dict without `key`, and as `VAE` does for a likelihood that needs a noisy x.

    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.space import Discrete
    >>> bits = Discrete((3,), 2)
    >>> model = DirectModel(torch.nn.Linear(2, 6), NetworkLevels(bits))
    >>> model.elbo(torch.ones(4, 3), condition={"latent": torch.zeros(4, 2)}).reconstruction.shape
    torch.Size([4])
    """

    only_reconstructs = True

    def __init__(
        self,
        decoder: Callable[..., Tensor],
        likelihood: Likelihood,
        predicts: Literal["levels", "data"] | None = None,
        head: Head = "logistic",
        key: str = "latent",
    ) -> None:
        super().__init__()
        checked = checked_decoder(likelihood, predicts, head)
        self.predicts: Literal["levels", "data"] = checked[0]
        self.head: Head = checked[1]
        if not getattr(likelihood, "uses_network", True) or getattr(likelihood, "variance", 1.0) is None:
            raise DiffusionalError(
                f"expected a likelihood of the decoder's output, such as NetworkLevels or GaussianLikelihood with a variance, got "
                f"{type(likelihood).__name__}, which depends on the noise of a z_1; give variance=…, or another likelihood"
            )
        self.decoder, self.likelihood, self.key = decoder, likelihood, key

    @property
    def space(self) -> Space:
        return self.likelihood.space

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(0,): nothing is drawn."""
        return (0,)

    def decode(self, condition: Condition | None, like: Tensor) -> Prediction:
        """Return the decoder's prediction for a condition. Only the shape and type of `like` (B, *space.shape) are used."""
        rest: Condition | None = None
        if isinstance(condition, Mapping):
            if self.key not in condition:
                raise DiffusionalError(
                    f"expected a condition with the entry {self.key!r}, the decoder's input, got {', '.join(condition)}; name it so, or give "
                    "key=…"
                )
            rest = {name: value for name, value in condition.items() if name != self.key} or None
            condition = condition[self.key]
        if condition is None:
            raise DiffusionalError(
                f"expected a condition, the input of the decoder of a {type(self).__name__}, got none"
            )
        output = call(self.decoder, condition, condition=rest, role="decoder")
        return decoded(output, like, self.predicts, self.head, self.space)

    def _reconstruction(self, x: Tensor, condition: Condition | None) -> Tensor:
        self.space.check(x)
        check_condition(condition, len(x))
        return -self.likelihood.log_prob(x, self.decode(condition, x)).double()

    def reconstruction_map(self, x: Batch, condition: Condition | None = None) -> Batch:
        """Return −ln p(x_d|c) at every position (B, *dims), float64, nats, whose sum is `reconstruction`. Raises DiffusionalError if the
        likelihood has no `log_prob_map`.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        return -by_position(Decoded(self.likelihood, self.decode(condition, x)), "log_prob_map", x)

    def terms(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Ledger:
        """Return the ledger, whose `kl` (B, 0) is empty and whose `prior` is 0. `noise` (B, 0) has no numbers."""
        cost = self._reconstruction(x, condition)
        return Ledger(cost, cost.new_zeros(len(x), 0), torch.zeros_like(cost), self.space.dimensions, self.extra(x))

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        """Return the ledger; nothing is drawn."""
        return self.terms(x, x.new_zeros(len(x), 0), condition)

    def log_weight(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return ln p(x|c) (B,), nats."""
        return -self.terms(x, noise, condition).nelbo

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return {}: nothing is drawn."""
        return {}

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return −ln p(x|c) as "reconstruction"."""
        none = torch.zeros(0)
        return Costs({"reconstruction": self._reconstruction(x, condition), **self.extra(x)}, none, none)

    def moves(self, x: str = "x", prefix: str = "", condition: Given = the_condition) -> list[Move]:
        """Return the only move: push x by p(x|c)."""

        def law(known: Known) -> Decoded:
            like = torch.zeros(known.rows, *self.space.shape)
            return Decoded(self.likelihood, self.decode(condition(known), like))

        return [Move(x, law)]

    def identity(self) -> list[Any]:
        """Return what the costs depend on besides the tensors of the model, as JSON values."""
        from diffusional.models.likelihood import options_of

        return [
            type(self).__name__,
            self.predicts,
            self.head,
            type(self.likelihood).__name__,
            options_of(self.likelihood),
        ]

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        """Return n samples x ~ p(x|c) (n, *space.shape)."""
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)
        example = next(self.parameters(), torch.empty(0))
        like = torch.empty(n, *self.space.shape, dtype=example.dtype, device=example.device)
        return self.likelihood.sample(self.decode(condition, like), generator)
