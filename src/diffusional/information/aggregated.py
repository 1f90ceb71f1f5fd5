"""What a learned posterior tells: I(x; z) and KL[q(z) ‖ p(z)] of a VAE over its whole training set, MATH (21).

    E KL[q(z|x) ‖ p(z)] = I(x; z) + KL[q(z) ‖ p(z)],      q(z) = Σ_i w_i q(z|x_i), the aggregated posterior

(Hoffman & Johnson 2016). For N given items q(z) is a mixture of N densities, all of them computed: no minibatch stands
for the rest, which would bias I(x; z) by up to ln(N/B). Both parts are means over draws (x, z) of their own log-ratios,

    I(x; z) = E ln q(z|x)/q(z),      KL[q(z) ‖ p(z)] = E ln q(z)/p(z),

and the left-hand side is the ledger's, by closed-form KLs. For L layers z stands for z_{1:L}.

Under a diffusion prior ln p(z) is bounded by the chain's own NELBO, so that KL[q(z) ‖ p(z)] comes as an upper bound; the
chain's fixed posterior has an information of its own, I(z; z_1), which with N items is exact to Monte Carlo error as well.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel
from diffusional.models.vae import VAE, Autoencoder, log_probs

# A latent unit is active where its posterior mean varies by more than this over the items (Burda et al. 2016).
ACTIVE = 0.01
# A layer that costs less than so many nats carries nothing.
COLLAPSED = 0.05
# Pairs of a draw and an item held at once.
_PAIRS = 100_000


@dataclass(frozen=True)
class LatentInformation:
    """The two parts of a VAE's KL over given items, and where they lie. Estimates in nats.

    Attributes:
        information: I(x; z) ≤ H(x).
        marginal_kl: KL[q(z) ‖ p(z)]; an upper bound on it where `bounded`.
        kl: E KL[q(z|x) ‖ p(z)], from closed forms: it is their sum.
        entropy: H(x), ln N where no item occurs twice.
        layers: E KL of each layer, the one next to x first.
        active, units: of each layer, units whose mean under q varies over the items by more than 0.01, of how many.
        chain: of a diffusion prior, I(z; z_1) and I(x; z_1) of its fixed posterior.
    """

    information: Estimate
    marginal_kl: Estimate
    kl: Estimate
    entropy: float
    layers: tuple[Estimate, ...]
    active: tuple[int, ...]
    units: tuple[int, ...]
    bounded: bool = False
    chain: tuple[Estimate, Estimate] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Layers that carry nothing, in words."""
        return tuple(
            f"layer {i + 1} of {len(self.layers)} has collapsed: it costs {layer.value:.3f} nats, {active} of {units} units are active"
            for i, (layer, active, units) in enumerate(zip(self.layers, self.active, self.units, strict=True))
            if layer.value < COLLAPSED or active == 0
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = {
            "information": self.information.to_dict(),
            "marginal_kl": self.marginal_kl.to_dict() | {"upper_bound": self.bounded},
            "kl": self.kl.to_dict(),
            "entropy": self.entropy,
            "layers": [
                layer.to_dict() | {"active": active, "units": units}
                for layer, active, units in zip(self.layers, self.active, self.units, strict=True)
            ],
            "warnings": list(self.warnings),
        }
        if self.chain is not None:
            out["chain"] = {"I(z; z_1)": self.chain[0].to_dict(), "I(x; z_1)": self.chain[1].to_dict()}
        return out


@torch.inference_mode()
def aggregated(
    model: LatentVariableModel, x: Tensor, samples: int = 1000, generator: torch.Generator | None = None
) -> LatentInformation:
    """I(x; z) and KL[q(z) ‖ p(z)] over the items x (N, *space.shape), MATH (21); nats.

    `samples` pairs (x, z) are drawn, each item as often as any other (to one); every one of them meets all N posteriors.
    Raises DiffusionalError for a model without a learned posterior and items that the space refuses.

    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.space import binary
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Unflatten(1, (8,)))
    >>> vae = VAE(torch.nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2)
    >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).sign()
    >>> found = aggregated(vae, x, samples=200, generator=torch.Generator().manual_seed(1))
    >>> 0 < found.information.value < found.entropy
    True
    """
    if not isinstance(model, Autoencoder):
        raise DiffusionalError(
            f"a {type(model).__name__} came, whose posterior is fixed: information.curve has its I(x; z_t)"
        )
    if samples < 2:
        raise DiffusionalError(f"samples={samples} came; give at least 2, their spread tells the error")
    model.space.check(x)
    was_training = model.training
    model.eval()
    try:
        return _aggregated(model, x, samples, generator)
    finally:
        model.train(was_training)


def _aggregated(model: Autoencoder, x: Tensor, samples: int, generator: torch.Generator | None) -> LatentInformation:
    n = len(x)
    distinct, where, counts = torch.unique(x.flatten(1), dim=0, return_inverse=True, return_counts=True)
    items = distinct.reshape(-1, *x.shape[1:])
    weights = counts.double() / n
    # Whole rounds over the items and a random rest: stratified.
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-samples // n))])[:samples].to(x.device)
    own = where[order]
    noise = torch.empty(samples, sum(model.latents), dtype=x.dtype).normal_(generator=generator).to(x.device)
    bounds = isinstance(model, VAE) and model.chain is not None
    parts: dict[str, list[Tensor]] = {}
    for rows in torch.arange(samples, device=x.device).split(max(1, _PAIRS // len(items))):
        drawn = model.infer(items[own[rows]], noise[rows])
        log_q = drawn.log_q()
        log_aggregate = torch.logsumexp(model.log_posteriors(items, drawn.z) + weights.log(), 1)
        layers = torch.stack([q.kl(p).double() for q, p in zip(drawn.q, drawn.p, strict=True)], 1)
        found = {"information": log_q - log_aggregate, "kl": layers.sum(1), "layers": layers}
        if bounds:
            assert isinstance(model, VAE)
            cost = _chain_cost(model, drawn.z[0], generator)
            found |= {"marginal": log_aggregate + cost, "kl": cost - drawn.q[0].entropy().double()}
            found["layers"] = found["kl"][:, None]
            found |= _chain_information(model, items, own[rows], drawn.z[0], weights, generator)
        else:
            found["marginal"] = log_aggregate - drawn.log_p()
        for name, values in found.items():
            parts.setdefault(name, []).append(values.cpu())
    columns = {name: torch.cat(values) for name, values in parts.items()}
    means = _means(model, items)
    return LatentInformation(
        information=_estimate(columns["information"]),
        marginal_kl=_estimate(columns["marginal"]),
        kl=_estimate(columns["kl"]),
        entropy=-float((weights * weights.log()).sum()),
        layers=tuple(_estimate(column) for column in columns["layers"].unbind(1)),
        active=tuple(int((_variance(m, weights) > ACTIVE).sum()) for m in means),
        units=model.latents,
        bounded=bounds,
        chain=(_estimate(columns["z"]), _estimate(columns["x"])) if bounds else None,
    )


def _estimate(values: Tensor) -> Estimate:
    """Mean over draws of (x, z). The items are all there are, so that the spread is Monte Carlo error."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)), 0.0, len(values), len(values))


def _means(model: Autoencoder, items: Tensor) -> list[Tensor]:
    """The mean of q of each layer (N, n_l), layers below the top at the means of those above."""
    zero = items.new_zeros(len(items), sum(model.latents))
    return [q.mean for q in model.infer(items, zero).q]


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    w = weights[:, None].to(values.device)
    mean = (w * values).sum(0)
    return (w * (values - mean).square()).sum(0)


def _chain_cost(model: VAE, z: Tensor, generator: torch.Generator | None) -> Tensor:
    assert model.chain is not None
    return model.chain.elbo(z, generator).nelbo


def _chain_information(
    model: VAE, items: Tensor, own: Tensor, z: Tensor, weights: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Log-ratios of the chain's first latent w = α z + σ ε: ln q(w|z)/q(w), and ln q(w|x)/q(w). All are Gaussian mixtures."""
    assert model.chain is not None
    gamma = model.chain.process.schedule.ends()[0].detach()
    alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
    noise = torch.empty(z.shape, dtype=z.dtype).normal_(generator=generator).to(z.device)
    w = alpha2.sqrt() * z.double() + sigma2.sqrt() * noise.double()
    q = model.posterior(items)
    through = Gaussian(alpha2.sqrt() * q.mean.double(), torch.log(alpha2 * q.variance.double() + sigma2))
    every = log_probs(through, w)
    log_aggregate = torch.logsumexp(every + weights.log(), 1)
    given_z = Gaussian(alpha2.sqrt() * z.double(), sigma2.log().expand(z.shape)).log_prob(w)
    return {"z": given_z - log_aggregate, "x": every.gather(1, own[:, None]).squeeze(1) - log_aggregate}
