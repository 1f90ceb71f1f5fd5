"""The chain of the essay: a fixed Gaussian forward diffusion of a few levels, and reverse steps that are Gaussians with a free mean and variance.

    q(z_t|z_{t−1}) = N(√(1−β_t) z_{t−1}, β_t I)                                                        MATH (1)
    p(z_t|z_{t+1}) = N(μ_t(z_{t+1}), diag σ_t²(z_{t+1})),     t = 1 … T−1,     p(z_T) = N(0, I)           MATH (2)

with a network for every level, or one for all levels. A `DiffusionModel` restricts p(z_t|z_{t+1}) to q(z_t|z_{t+1}, x̂) with one estimate x̂
of the data, which is the right family for T → ∞. The steps of a short chain are large, and their p(z_t|z_{t+1}) differ from this family, so
that a free mean and variance improve the bound. The network's outputs m and o are relative to the step of data with unit variance:

    μ_t = √(1−β_{t+1}) z_{t+1} + √β_{t+1} m,      ln σ_t = ½ ln β_{t+1} + o,

an affine change of variables that does not change the family. The KLs of MATH (8) are those of two diagonal Gaussians.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.gaussian import Gaussian
from diffusional.models.base import plain_options
from diffusional.models.calls import call
from diffusional.models.chain import RECONSTRUCTION_SHARE, Chain
from diffusional.models.denoiser import Denoiser
from diffusional.models.likelihood import Decoded, Likelihood, decoded, options_of
from diffusional.models.vae import bounded
from diffusional.shapes import Batch, PerItem, align
from diffusional.space import Space


class GaussianChain(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} N(z_t; μ_t(z_{t+1}), diag σ_t²(z_{t+1})) N(z_T; 0, I), MATH (2).

    Args:
        process: the forward diffusion with its T. It need not be Markov.
        networks: T − 1 modules, the one of p(z_1|z_2) first, or a single module that all levels share. Each is called as
            module(z, log_snr) or module(z, log_snr, condition), with z = z_{t+1} (B, C, *rest) and its log-SNR (B,), and returns
            (B, 2C, *rest): m, then o, which is limited so that ln σ_t lies in [−15, 10].
        decoder: the denoiser that p(x|z_1) reads at z_1.
        likelihood: p(x|z_1) over the data's space.

    Shapes: x (B, *space.shape), encoded. Costs are nats, float64.
    Raises DiffusionalError for continuous time, another number of networks, and outputs of another shape.

    >>> from diffusional import schedule, space
    >>> from diffusional.models.likelihood import NetworkLevels
    >>> bits, forward = space.binary((4,)), GaussianDiffusion(schedule.linear(5, 0.9, 0.9))
    >>> decoder = Denoiser(lambda z, log_snr: torch.cat([0 * z, 0 * z], 1), "levels", bits)
    >>> model = GaussianChain(forward, lambda z, log_snr: torch.cat([0 * z, 0 * z], 1), decoder, NetworkLevels(bits))
    >>> ledger = model.elbo(torch.ones(2, 4), torch.Generator().manual_seed(0))
    >>> ledger.kl.shape
    torch.Size([2, 4])
    """

    process: GaussianDiffusion

    def __init__(
        self,
        process: GaussianDiffusion,
        networks: Callable[..., Tensor] | Sequence[Callable[..., Tensor]],
        decoder: Denoiser,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        if process.steps is None or process.steps < 2:
            raise DiffusionalError(
                f"expected a process of at least 2 latents, got steps={process.steps}; give a schedule with steps"
            )
        every = list(networks) if isinstance(networks, Sequence | nn.ModuleList) else [networks]
        if len(every) not in (1, process.steps - 1):
            raise DiffusionalError(
                f"expected {process.steps - 1} networks for T = {process.steps} latents, or one that all levels share, got {len(every)}"
            )
        self.process, self.decoder, self.likelihood = process, decoder, likelihood
        modules = [network for network in every if isinstance(network, nn.Module)]
        self.networks = nn.ModuleList(modules) if len(modules) == len(every) else every

    @property
    def space(self) -> Space:
        return self.likelihood.space

    @property
    def decoder_uses_network(self) -> bool:
        return self.likelihood.uses_network

    def noise_levels(self) -> Tensor:
        """Return γ_1, …, γ_T (T,)."""
        return self.process.schedule.grid()

    def identity(self) -> list[Any]:
        """Return the type, the number of networks, the decoder with its options, and η of a process that is not Markov."""
        own = [type(self.likelihood).__name__, options_of(self.likelihood), self.decoder.predicts, self.decoder.head]
        process = plain_options(self.process)
        return [type(self).__name__, len(self.networks), *own, *([process] if process else [])]

    @property
    def reconstruction_share(self) -> float:
        """1/T, and at least 1/32: a short chain has few networks, and the decoder is one of T."""
        assert self.process.steps is not None
        return max(RECONSTRUCTION_SHARE, 1 / self.process.steps)

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Gaussian:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1."""
        gamma = self.process.gamma(t + 1)
        shared, outputs = len(self.networks) == 1, z_next.new_zeros(0)
        for level in t.unique().tolist() if not shared else (0,):
            rows = torch.arange(len(t), device=t.device) if shared else (t == level).nonzero().squeeze(1)
            network = self.networks[0 if shared else int(level) - 1]
            out = call(network, z_next[rows], (-gamma[rows]).to(z_next), condition=rows_of(condition, rows))
            wanted = (len(rows), 2 * z_next.shape[1], *z_next.shape[2:])
            if out.shape != wanted:
                raise DiffusionalError(
                    f"the network of level {int(level) or 'any'} has an output of shape {tuple(out.shape)}; a mean and a ln σ at every "
                    f"position need {wanted}"
                )
            if not len(outputs):
                outputs = out.new_zeros(len(t), *wanted[1:])
            outputs = outputs.index_copy(0, rows, out)
        m, o = outputs.to(z_next.dtype).chunk(2, 1)
        # β_{t+1} = −expm1 of what is lost of ln α², from γ_t and γ_{t+1}.
        log_kept = torch.nn.functional.logsigmoid(-gamma) - torch.nn.functional.logsigmoid(-self.process.gamma(t))
        log_beta = torch.log(-torch.expm1(log_kept))
        mean = align(torch.exp(0.5 * log_kept), z_next) * z_next + align(torch.exp(0.5 * log_beta), z_next) * m
        return bounded(mean, align(0.5 * log_beta, z_next) + o)

    def last(self, n: int) -> Gaussian:
        """Return p(z_T) = N(0, I) of n items, in the networks' type."""
        example = next(self.parameters(), self.process.schedule.ends().new_empty(0).float())
        return Gaussian(example.new_zeros(n, *self.space.shape), example.new_zeros(()))

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Decoded:
        """Return p(x | z_1)."""
        gamma = self.process.schedule.ends()[0].expand(len(z_1))
        return decoded(self.likelihood, self.decoder, z_1, gamma, condition)
