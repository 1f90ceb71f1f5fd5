"""I(x; z) and KL[q(z) ‖ p(z)] of the learned posterior of a VAE over its whole training set, MATH (21).

    E KL[q(z|x) ‖ p(z)] = I(x; z) + KL[q(z) ‖ p(z)],      q(z) = Σ_i w_i q(z|x_i), the aggregated posterior

(Hoffman & Johnson 2016). For N given items q(z) is a mixture of N densities, all of which are computed: a minibatch of B items would
bias I(x; z) by up to ln(N/B). Both parts are means over draws (x, z) of their own log-ratios,

    I(x; z) = E ln q(z|x)/q(z),      KL[q(z) ‖ p(z)] = E ln q(z)/p(z),

and the left-hand side is that of the ledger, from closed-form KL divergences. With L layers, z means z_{1:L}.

With a condition c, all of them are conditional: q(z|c) is the mixture over the items with this condition (all items of a class, for
labels), and E KL[q(z|x, c) ‖ p(z|c)] = I(x; z | c) + E KL[q(z|c) ‖ p(z|c)]. If every item has a different condition, I(x; z | c) is zero.

With a diffusion prior, ln p(z) is bounded by the chain's NELBO, and the result is an upper bound on KL[q(z) ‖ p(z)]. The information
of the chain's fixed posterior, I(z; z_1), is also exact for N items up to Monte Carlo error.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, row_digests, rows_of
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.vae import Autoencoder, log_probs

# A latent unit is active where its posterior mean, in standard deviations of its prior, varies by more than this over the
# items (Burda et al. 2016, whose prior is N(0, I)).
ACTIVE = 0.01
# A layer that costs less than this number of nats has collapsed.
COLLAPSED = 0.05
# Number of pairs of a draw and an item in memory at a time.
_PAIRS = 100_000


@dataclass(frozen=True)
class LatentInformation:
    """The two parts of a VAE's KL divergence over given items. Estimates in nats, all of them conditional on c if `conditional`.

    Attributes:
        information: I(x; z) ≤ H(x).
        marginal_kl: KL[q(z) ‖ p(z)], or an upper bound on it if `bounded`.
        kl: E KL[q(z|x) ‖ p(z)], which is their sum; from closed forms, or if `bounded` from the chain's NELBO and H[q(z|x)].
        entropy: H(x), which is ln N if no item occurs twice.
        layers: E KL of each layer, beginning with the one next to x.
        active, units: for each layer, the number of active units and of all units. A unit is active if its mean under q, relative to
            that of the prior and in standard deviations of the prior, has a variance above 0.01 over the items.
        chain: for a diffusion prior, I(z; z_1) and I(x; z_1) of its fixed posterior.
        conditional: whether there is a condition.
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
    conditional: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about collapsed layers."""
        return tuple(
            f"layer {i + 1} of {len(self.layers)} has collapsed: it costs {layer.value:.3f} nats, {active} of {units} units are active"
            for i, (layer, active, units) in enumerate(zip(self.layers, self.active, self.units, strict=True))
            if layer.value < COLLAPSED or active == 0 or (len(self.layers) == 1 and self.information.value < COLLAPSED)
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record."""
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
        if self.conditional:
            out["conditional"] = True
        return out


@torch.inference_mode()
def aggregated(
    model: LatentVariableModel,
    x: Tensor,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> LatentInformation:
    """Estimate I(x; z) and KL[q(z) ‖ p(z)] over the items x (N, *space.shape), MATH (21); nats.

    `samples` pairs (x, z) are drawn, with all items equally often (up to one); each of them is evaluated under all N posteriors. With a
    `condition`, a tensor (N, …) or a dict of such tensors, all results are conditional: I(x; z | c) and E KL[q(z|c) ‖ p(z|c)], with
    q(z|c) over the items that have the same condition.

    Raises DiffusionalError for a model without a learned posterior, items that the space refuses, and a condition without a row for
    every item.

    >>> from diffusional import VAE
    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.space import binary
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Unflatten(1, (8,)))
    >>> vae = VAE(torch.nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2)
    >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).sign()
    >>> found = aggregated(vae, x, samples=200, generator=torch.Generator().manual_seed(1))
    >>> 0 < found.information.value < found.entropy
    True
    """
    learned = model.learned_posterior()
    if learned is None:
        raise DiffusionalError(
            f"expected a model with a learned posterior, got a {type(model).__name__}: use information.curve for the I(x; z_t) of a fixed one"
        )
    if (not learned.prior.normal) if learned.chain is None else len(learned.latents) > 1:
        raise DiffusionalError(
            f"expected a model with the prior N(0, I), or one latent with a chain as its prior, got {len(learned.latents)} latents with a "
            f"{type(learned.prior).__name__}; KL[q(z) ‖ p(z)] is not computed for it"
        )
    if samples < 2:
        raise DiffusionalError(
            f"expected samples to be at least 2, from whose spread the error is estimated, got {samples}"
        )
    model.space.check(x)
    check_condition(condition, len(x))
    device = device_of(model, x)
    # Noise is drawn on the device of the model, from a stream of the generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    with evaluation_mode(model):
        return _aggregated(
            learned, x.to(device), samples, torch.Generator(device).manual_seed(seed), seed, moved(condition, device)
        )


def _aggregated(
    model: Autoencoder,
    x: Tensor,
    samples: int,
    generator: torch.Generator,
    seed: int,
    condition: Condition | None,
) -> LatentInformation:
    n, on_cpu = len(x), torch.Generator().manual_seed(seed)
    group = _groups(condition, n).to(x.device)
    pairs = torch.cat([x.flatten(1), group[:, None].to(x.dtype)], 1) if condition is not None else x.flatten(1)
    _, where, counts = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    # Each distinct item (with its condition) once, in the order of `counts`.
    first = torch.full((len(counts),), n, device=x.device).scatter_reduce(
        0, where, torch.arange(n, device=x.device), "amin"
    )
    items, group, c = x[first], group[first], rows_of(condition, first)
    weights = counts.double() / n
    # The weight of an item among those with its condition.
    of_group = counts.new_zeros(int(group.max()) + 1).index_add(0, group, counts)
    within = counts.double() / of_group[group]
    # Stratified: complete rounds over the items, and a random remainder.
    order = torch.cat([torch.randperm(n, generator=on_cpu) for _ in range(-(-samples // n))])[:samples].to(x.device)
    own = where[order]
    noise = torch.empty(samples, sum(model.latents), dtype=x.dtype, device=x.device).normal_(generator=generator)
    encoded = model.encoded(items, c)
    bounds = model.chain is not None
    parts: dict[str, list[Tensor]] = {}
    for rows in torch.arange(samples, device=x.device).split(max(1, _PAIRS // len(items))):
        mine = rows_of(c, own[rows])
        drawn = model.infer(items[own[rows]], noise[rows], mine)
        every = model.log_posteriors(encoded, drawn.z)
        log_weights = within.log().where(group[own[rows], None] == group, -math.inf)
        # q(z|x) is exactly the entry of the mixture, so that I(x; z) ≤ H(x) in every draw.
        log_q = every.gather(1, own[rows, None]).squeeze(1)
        log_aggregate = torch.logsumexp(every + log_weights, 1)
        layers = torch.stack([q.kl(p).double() for q, p in zip(drawn.q, drawn.p, strict=True)], 1)
        found = {"information": log_q - log_aggregate, "kl": layers.sum(1), "layers": layers}
        if bounds:
            cost = _chain_cost(model, drawn.z[0], generator, mine)
            found |= {"marginal": log_aggregate + cost, "kl": cost - drawn.q[0].entropy().double()}
            found["layers"] = found["kl"][:, None]
            found |= _chain_information(model, encoded, own[rows], drawn.z[0], log_weights, generator)
        else:
            found["marginal"] = log_aggregate - drawn.log_p()
        for name, values in found.items():
            parts.setdefault(name, []).append(values.cpu())
    columns = {name: torch.cat(values) for name, values in parts.items()}
    met = order.cpu()

    def mean(values: Tensor) -> Estimate:
        return _estimate(values, met, n)

    shifts = _shifts(model, items, c)
    return LatentInformation(
        information=mean(columns["information"]),
        marginal_kl=mean(columns["marginal"]),
        kl=mean(columns["kl"]),
        entropy=-float((weights * within.log()).sum()),
        layers=tuple(mean(column) for column in columns["layers"].unbind(1)),
        active=tuple(int((_variance(m, weights) > ACTIVE).sum()) for m in shifts),
        units=model.latents,
        bounded=bounds,
        chain=(mean(columns["z"]), mean(columns["x"])) if bounds else None,
        conditional=condition is not None,
    )


def _groups(condition: Condition | None, n: int) -> Tensor:
    """Return numbers (n,) that are equal where the conditions are; zeros if there is no condition."""
    if condition is None:
        return torch.zeros(n, dtype=torch.long)
    found: dict[bytes, int] = {}
    return torch.tensor([found.setdefault(digest, len(found)) for digest in row_digests(condition)])


def _estimate(values: Tensor, item: Tensor, n: int) -> Estimate:
    """Return the mean over draws of (x, z) of the n items, one after the other. The set of items is fixed, and only draws vary.

    With at least two draws of each item, the error is that within items, plus that of the choice of items in the last round.
    """
    draws = len(values)
    count = torch.bincount(item, minlength=n).double()
    if draws < 2 * n:
        error = float(values.std()) / math.sqrt(draws)
    else:
        means = torch.zeros(n, dtype=values.dtype).index_add(0, item, values) / count
        within = float((values - means[item]).square().sum()) / (draws - n)
        between = max(float(means.var()) - within * float((1 / count).mean()), 0.0) if n > 1 else 0.0
        last = draws % n
        error = math.sqrt(within / draws + last * (1 - last / n) * between / draws**2)
    return Estimate(float(values.mean()), error, 0.0, draws, 0)


def _shifts(model: Autoencoder, items: Tensor, condition: Condition | None) -> list[Tensor]:
    """Return (μ_q − μ_p)/σ_p of each layer (N, n_l), with lower layers at the means of the ones above: the shift of q relative to the prior."""
    drawn = model.infer(items, items.new_zeros(len(items), sum(model.latents)), condition)
    return [(q.mean - p.mean) / p.std for q, p in zip(drawn.q, drawn.p, strict=True)]


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    w = weights[:, None].to(values.device)
    mean = (w * values).sum(0)
    return (w * (values - mean).square()).sum(0)


def _chain_cost(model: Autoencoder, z: Tensor, generator: torch.Generator, condition: Condition | None) -> Tensor:
    assert model.chain is not None
    return model.chain.elbo(z, generator, condition).nelbo


def _chain_information(
    model: Autoencoder, q: Gaussian, own: Tensor, z: Tensor, log_weights: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the log-ratios of the chain's first latent w = α z + σ ε: ln q(w|z)/q(w), and ln q(w|x)/q(w). All are Gaussian mixtures."""
    assert model.chain is not None
    costs = model.chain.affine
    if costs is None:
        raise DiffusionalError(f"expected a Gaussian diffusion as the prior, got a {type(model.chain).__name__}")
    gamma = costs.end_gammas()[0].detach()
    alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
    noise = torch.empty_like(z).normal_(generator=generator)
    w = alpha2.sqrt() * z.double() + sigma2.sqrt() * noise.double()
    through = Gaussian(alpha2.sqrt() * q.mean.double(), torch.log(alpha2 * q.variance.double() + sigma2))
    every = log_probs(through, w)
    log_aggregate = torch.logsumexp(every + log_weights, 1)
    given_z = Gaussian(alpha2.sqrt() * z.double(), sigma2.log().expand(z.shape)).log_prob(w)
    return {"z": given_z - log_aggregate, "x": every.gather(1, own[:, None]).squeeze(1) - log_aggregate}
