"""The nat budget: each cost of the bound is the sum of information, which training cannot change, and a gap (MATH (17)–(20)).

    KL_t = I(x; z_t | z_{t+1}) + E KL[q(z_t|z_{t+1}) ‖ p(z_t|z_{t+1})]
    KL_T = I(x; z_T)           + KL[q(z_T) ‖ p(z_T)]
    −RE  = H(x | z_1)          + E KL[q(x|z_1) ‖ p(x|z_1)]
    −ELBO = H(x) + Σ gaps

For an exact world the three columns are computed independently: costs from the model's KL divergences, informations from the marginals
q(z_t), and gaps from the conditional densities, by Bayes' rule on q(z_t) q(z_{t+1}|z_t) and draws of (z_t, z_{t+1}). In continuous time
gaps are ½ ∫ γ' E‖ε̂* − ε̂‖² du, with ε̂* the optimal prediction. For Gaussian data and a denoiser that is affine in z, all three are in
closed form. Their sum is therefore a test of the identity.

The information in real data is unknown. For these, the gap is *relative to a reference* denoiser, with the same items, levels and noise,
so that the error of the difference is much smaller than that of the costs.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusional import exact
from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import diffuse, marginal_at, posterior_at
from diffusional.gaussian import Gaussian
from diffusional.information.closed import closed_form
from diffusional.information.costs import (
    at_rest,
    cell_edges,
    check_diffusion,
    cost_draws,
    edge_gammas,
    like_model,
    visit,
)
from diffusional.information.curve import informations, steadied
from diffusional.information.estimates import Estimates, exactly
from diffusional.information.finite import check_samples
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import LevelPosterior, NetworkLevels
from diffusional.models.reverse import log_ratios
from diffusional.shapes import sum_dims
from diffusional.space import Discrete

# Number of values of latents in memory at a time.
_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Nats:
    """A number of nats and its standard error, which is zero for exact values."""

    value: float
    error: float

    def to_dict(self) -> dict[str, float]:
        """Return {"value", "error"}."""
        return {"value": self.value, "error": self.error}


@dataclass(frozen=True)
class BudgetRow:
    """One cost: `base` is its information, or the cost of the reference; `gap` is the part that training can reduce."""

    name: str
    cost: Nats
    base: Nats
    gap: Nats

    @property
    def residual(self) -> Nats:
        """cost − base − gap, which is zero within its error, MATH (17)–(20), if the three are computed independently."""
        error = math.sqrt(self.cost.error**2 + self.base.error**2 + self.gap.error**2)
        return Nats(self.cost.value - self.base.value - self.gap.value, error)

    def to_dict(self, base: str) -> dict[str, Any]:
        """Return a JSON-ready record, the second column under the name `base`."""
        return {
            "name": self.name,
            "cost": self.cost.to_dict(),
            base: self.base.to_dict(),
            "gap": self.gap.to_dict(),
        }


@dataclass(frozen=True)
class NatBudget:
    """Reconstruction, the KL divergences from the least noisy level on, prior, and further terms; `total` is the NELBO, H(x) and Σ gaps.

    `relative_to` is the name of the reference of the gaps, or empty if the informations are known. All values are in nats.
    """

    rows: tuple[BudgetRow, ...]
    total: BudgetRow
    relative_to: str
    dimensions: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record; the second column is "information", or "reference" with "relative_to"."""
        base = "reference" if self.relative_to else "information"
        return {
            "rows": [row.to_dict(base) for row in self.rows],
            "total": self.total.to_dict(base),
            "relative_to": self.relative_to,
            "dimensions": self.dimensions,
            "samples": self.samples,
            "unit": "nats",
        }


def budget(
    model: DiffusionModel,
    data: Tensor | exact.World,
    reference: DiffusionModel | Denoiser | exact.World | None = None,
    cells: int = 20,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> NatBudget:
    """Divide each cost of a model's bound into information and gap.

    Args:
        data: an exact world, whose informations are known; or encoded items (N, *shape), which need a reference.
        reference: the gaps are relative to this: another model on the same γ grid, a denoiser, or the optimal denoiser of a world, such
            as `exact.Finite(train)`, which has the smallest possible costs on its own points.
        cells: the number of cells of levels in which KL divergences are summed; with fewer levels, each level is a cell.
        samples: the number of draws for each column; each takes `cells` + 1 network evaluations.
        condition: for encoded items, a tensor (N, …) or a dict of such tensors, which is given to both the model and the reference.

    Raises DiffusionalError for a model that is not a `DiffusionModel`, for data without a reference, for a condition with an exact world
    (whose items have none) or without a row for every item, for a reference on another grid or space, and for a decoder that is not a
    distribution over the world's data (a density for points, a mass function for densities).

    >>> from diffusional import Continuous, likelihood, schedule
    >>> from diffusional.forward import GaussianDiffusion
    >>> world, other = (exact.Gaussian(torch.zeros(1), v * torch.eye(1)) for v in (1.0, 2.0))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=50))
    >>> model = DiffusionModel(process, other.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> found = budget(model, world, cells=5)
    >>> [row.name for row in found.rows][:2], abs(found.total.residual.value) < 1e-9               # MATH (20)
    (['reconstruction', 'KL 1–10'], True)
    """
    check_samples(samples)
    check_diffusion(model)
    edges = cell_edges(model, cells)
    if condition is not None and isinstance(data, exact.World):
        raise DiffusionalError(
            f"condition was given with an exact world ({type(data).__name__}), whose items have none: give encoded items (N, *shape)"
        )
    if reference is not None:
        other, name = _reference(model, reference)
        return _relative(model, other, name, data, edges, samples, generator, condition)
    if isinstance(data, Tensor):
        raise DiffusionalError(
            "expected a reference for data, whose information is unknown, got none. Give reference=another model or denoiser, or "
            "exact.Finite(data) instead of data, for the empirical distribution of these points"
        )
    return _exact(model, data, edges, samples, generator)


def _names(model: DiffusionModel, edges: Tensor, extra: list[str]) -> list[str]:
    if edges.is_floating_point():
        cells = [f"KL u {a:.3g}–{b:.3g}" for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    else:
        pairs = zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), strict=True)
        cells = [f"KL {a}" if a == b else f"KL {a}–{b}" for a, b in pairs]
    return ["reconstruction", *cells, "prior", *extra]


def _assembled(
    names: list[str],
    columns: tuple[Estimates, Estimates, Estimates],
    totals: tuple[Estimates, Estimates, Estimates],
    *about: Any,
) -> NatBudget:
    rows = tuple(BudgetRow(name, *(Nats(*column.only(k)) for column in columns)) for k, name in enumerate(names))
    return NatBudget(rows, BudgetRow("NELBO", *(Nats(*total.only(0)) for total in totals)), *about)


# Relative to a reference.


def _reference(model: DiffusionModel, reference: DiffusionModel | Denoiser | exact.World) -> tuple[DiffusionModel, str]:
    if not isinstance(reference, exact.World | Denoiser):
        if reference.space != model.space:
            raise DiffusionalError(
                f"expected a reference over {model.space}, the space of the model, got {reference.space}"
            )
        if reference.steps != model.steps or not torch.allclose(
            *(edge_gammas(m, cell_edges(m, 1000)) for m in (model, reference)), rtol=1e-9
        ):
            raise DiffusionalError(
                "expected a reference with the same grid of γ, got another one: costs can only be compared at the same levels"
            )
        return reference, "the reference model"
    name = "the reference denoiser"
    if isinstance(reference, exact.World):
        of = f"{len(reference.points)} points" if isinstance(reference, exact.Finite) else type(reference).__name__
        reference, name = reference.denoiser(), f"the optimal denoiser of {of}"
    likelihood = model.likelihood
    if isinstance(likelihood, NetworkLevels) and reference.predicts != "levels":
        likelihood, name = LevelPosterior(model.space), f"{name}, with the level posterior as its decoder"
    variance = "posterior" if model.variance == "learned" and not reference.learns_variance else model.variance
    return DiffusionModel(model.process, reference, likelihood, variance), name


def _relative(
    model: DiffusionModel,
    other: DiffusionModel,
    name: str,
    data: Tensor | exact.World,
    edges: Tensor,
    samples: int,
    generator: torch.Generator | None,
    condition: Condition | None,
) -> NatBudget:
    if isinstance(data, exact.World):
        x, c = data.sample(samples, generator), None
    else:
        model.space.check(data)
        check_condition(condition, len(data))
        some = torch.randint(len(data), (samples,), generator=generator)
        x, c = data[some], rows_of(condition, some)
    cost, base = (Estimates(drawn) for drawn in cost_draws([model, other], x, edges, generator, c))
    gap = Estimates(cost.values - base.values)
    names = _names(model, edges, list(model.extra(x[:1])))
    columns = (cost, base, gap)
    totals = (cost.sum(), base.sum(), gap.sum())
    return _assembled(names, columns, totals, name, model.space.dimensions, samples)


# For an exact world.


def _exact(
    model: DiffusionModel, world: exact.World, edges: Tensor, samples: int, generator: torch.Generator | None
) -> NatBudget:
    finite = isinstance(world, exact.Finite)
    if finite != isinstance(model.space, Discrete):
        raise DiffusionalError(
            "expected a decoder of levels for points, which have no finite gap under a density, got a density: use a discrete space"
            if finite
            else "expected a density as the decoder for a world with a density, got a decoder of levels: use a continuous space, or exact.Finite"
        )
    if model.space.dimensions != world.dimensions:
        raise DiffusionalError(
            f"expected a world over the {model.space.dimensions} dimensions of the model, got D = {world.dimensions}"
        )
    information, entropy = informations(world, edge_gammas(model, edges), samples, generator)
    left = entropy.values - information.values[:, :1]
    base = Estimates(torch.cat([left, information.steps().values, information.values[:, -1:]], 1))
    closed = closed_form(model, world, edges) if isinstance(world, exact.Gaussian) else None
    if closed is None:
        x, _ = _items(world, samples, generator)
        model.space.check(x)
        cost = Estimates(cost_draws([model], x, edges, generator)[0])
        gap = Estimates(_gaps(model, world, edges, samples, generator))
    else:
        cost, gap = exactly(closed.cost), exactly(closed.gap)
    extra = model.extra(torch.zeros(1, *model.space.shape, dtype=torch.float64))
    if extra:  # a Jacobian is part of the entropy in the original units, and has no gap
        known = torch.stack([value.cpu() for value in extra.values()], 1)
        base = Estimates(torch.cat([base.values, known.expand(len(base.values), -1)], 1))
        gap = Estimates(torch.cat([gap.values, torch.zeros(len(gap.values), known.shape[1], dtype=torch.float64)], 1))
        entropy = Estimates(entropy.values + known.sum())
        if closed is not None:
            cost = Estimates(torch.cat([cost.values, known], 1))
    drawn = 0 if closed is not None else samples
    columns = (cost, base, gap)
    totals = (cost.sum(), entropy, gap.sum())
    return _assembled(_names(model, edges, list(extra)), columns, totals, "", model.space.dimensions, drawn)


def _items(world: exact.World, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return items x (n, *shape) and ln p(x) (n,), a mass for points."""
    if isinstance(world, exact.Finite):
        index = torch.multinomial(world.weights, n, replacement=True, generator=generator)
        return world.points[index].reshape(n, *world.shape), world.weights[index].log()
    x = world.sample(n, generator)
    return x, world.log_prob(x)


def _gaps(
    model: DiffusionModel, world: exact.World, edges: Tensor, samples: int, generator: torch.Generator | None
) -> Tensor:
    """Return draws (n, 1 + C + 1) of every gap: of decoder, cells, and prior."""
    x, log_p = _items(world, samples, generator)
    rows = max(1, _NUMBERS // (world.dimensions * len(edges)))
    with at_rest([model]):
        parts = [
            _gap_block(model, world, edges, some, mass, generator)
            for some, mass in zip(x.split(rows), log_p.split(rows), strict=True)
        ]
    prior = _prior_gap(world, x, model.process.schedule.ends()[1].detach().cpu(), generator)
    return torch.cat([torch.cat(parts), prior], 1)


def _prior_gap(world: exact.World, x: Tensor, gamma: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return draws of ln q(z_T) − ln p(z_T) (n, 1), minus terms that are linear in ε and in squares, whose means are known."""
    noise = torch.empty_like(x).normal_(generator=generator)
    z = diffuse(x, gamma, noise)
    log_p = Gaussian(torch.zeros_like(z), torch.zeros((), dtype=z.dtype)).log_prob(z)
    middle, _ = world.optimum(torch.zeros_like(z[:1]), gamma)
    controls = [
        sum_dims(noise * x),
        sum_dims(noise * middle),
        sum_dims(x.square()) - world.second_moment(),
        sum_dims(noise.square() - 1),
    ]
    return steadied((world.log_marginal(z, gamma) - log_p).unsqueeze(1), torch.stack(controls, 1))


def _gap_block(
    model: DiffusionModel,
    world: exact.World,
    edges: Tensor,
    x: Tensor,
    log_p: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    process = model.process
    first = process.schedule.ends()[0].detach().cpu()
    level, width = visit(edges, len(x), generator)
    step = _density_gap if model.steps is None else _step_gap
    kl = [weight * step(model, world, x, t, generator) for t, weight in zip(level.unbind(1), width, strict=True)]
    # ln q(x|z_1) = ln p(x) + ln q(z_1|x) − ln q(z_1)
    q = marginal_at(x, first)
    z = q.sample(generator)
    log_q = q.log_prob(z) - world.log_marginal(z, first)
    said = z.to(like_model(model))
    log_decoded = model.decode(said).log_prob(x.to(said))
    reconstruction = log_p + log_q - log_decoded.double().cpu()
    return torch.stack([reconstruction, *kl], 1)


def _step_gap(
    model: DiffusionModel, world: exact.World, x: Tensor, t: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return ln q(z_t|z_{t+1}) − ln p(z_t|z_{t+1}) (n,) at levels t (n,), z_{t+1} ~ q(z_{t+1}|x), z_t ~ q(z_t|z_{t+1},x)."""
    process = model.process
    gamma_s, gamma_t = (process.gamma(k).detach().cpu() for k in (t, t + 1))
    z_t = marginal_at(x, gamma_t).sample(generator)
    z_s = posterior_at(z_t, x, gamma_s, gamma_t).sample(generator)
    log_q = (
        world.log_marginal(z_s, gamma_s)
        + process.transition(z_s, t + 1).log_prob(z_t)
        - world.log_marginal(z_t, gamma_t)
    )
    seen = z_t.to(like_model(model))
    said = model.denoiser(seen, gamma_t.to(seen.device))
    q = posterior_at(z_t, said.data.double().cpu(), gamma_s, gamma_t)
    log_r = log_ratios(said, gamma_s.to(seen.device), gamma_t.to(seen.device), model.variance).cpu()
    p = Gaussian(q.mean, q.log_variance - log_r)
    return log_q - p.log_prob(z_s)


def _density_gap(
    model: DiffusionModel, world: exact.World, x: Tensor, u: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return ½ γ'(u) ‖ε̂* − ε̂‖² (n,) at z ~ q(z_u|x)."""
    schedule = model.process.schedule
    gamma, slope = schedule.gamma(u).detach().cpu(), schedule.dgamma(u).detach().cpu()
    z = marginal_at(x, gamma).sample(generator)
    seen = z.to(like_model(model))
    noise = model.denoiser(seen, gamma.to(seen.device)).noise.double().cpu()
    return 0.5 * slope * sum_dims((world.optimum(z, gamma)[1] - noise).square())
