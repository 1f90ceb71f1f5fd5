"""Cost maps: which positions of an item (pixels, columns, voxels) its NELBO comes from.

Where the model's distributions are independent over positions, every cost of MATH (8) is a sum over them: of a Gaussian diffusion

    KL_t = Σ_d ½ [φ(ln r_d) + r_d expm1(γ_{t+1} − γ_t) (ε − ε̂)²_d],     −ln p(x|z_1) = −Σ_d ln p(x_d|z_1),     KL_T = Σ_d KL_T,d.

A map is the estimate (a) of plan.py with these parts instead of their sums. What a plan subtracts from a cost, g, is a number for each
visit, not for each position. Its draws and its expectation are divided evenly over the positions, so that a map adds up to the item's score,
and every position is an unbiased estimate whatever the plan.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import as_the_network, check_model
from diffusional.evaluation.noise import normal
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.score import plan_of_scores
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.visits import LevelVisits, network_rows
from diffusional.files import writing
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.seeds import check_seed
from diffusional.shapes import align, sum_dims

# Numbers of the parts of visits that are held at once.
_NUMBERS = 8_000_000


@dataclass(frozen=True, eq=False)
class CostMaps:
    """What `cost_map` returns. Maps are nats at every position of N items, (N, *dims), float64.

    Attributes:
        reconstruction, kl, prior: the parts of the terms of the bound.
        jacobian: ln scale_d of standardised data (zeros for discrete data).
        error: the Monte Carlo standard error of the sum of these.
        visits: network evaluations of each item, at which the maps are draws.
        plan: of the visits.

    >>> zero = torch.zeros(1, 2, dtype=torch.float64)
    >>> CostMaps(zero + 1, zero + 2, zero, zero, zero, 8, None).nelbo
    tensor([6.], dtype=torch.float64)
    """

    reconstruction: Tensor
    kl: Tensor
    prior: Tensor
    jacobian: Tensor
    error: Tensor
    visits: int
    plan: Plan | None

    @property
    def total(self) -> Tensor:
        """The cost at every position (N, *dims), nats."""
        return self.reconstruction + self.kl + self.prior + self.jacobian

    @property
    def nelbo(self) -> Tensor:
        """The NELBO (N,) of every item, nats: the sum of its map."""
        return sum_dims(self.total)

    def save(self, path: str | Path, item: Tensor | None = None) -> None:
        """Write a .npz file with "total", "error", "reconstruction", "kl", "prior" and "jacobian", (N, *dims) each, and "nelbo" (N,). With
        `item` (N,), the numbers of the items in their data, also "item".

        Raises DiffusionalError for another suffix, and a file that cannot be written.
        """
        import numpy as np

        path = Path(path)
        if path.suffix != ".npz":
            raise DiffusionalError(f"expected a .npz file for cost maps, got {path}; rename it")
        names = ("total", "error", "reconstruction", "kl", "prior", "jacobian", "nelbo")
        with writing(path) as (part,), part.open("wb") as file:
            of = {} if item is None else {"item": item.numpy()}
            np.savez_compressed(file, **of, **{name: getattr(self, name).numpy() for name in names})


def cost_map(
    model: LatentVariableModel,
    x: Tensor,
    *,
    visits: int = 64,
    plan: Plan | None = None,
    condition: Condition | None = None,
    seed: int = 0,
) -> CostMaps:
    """Return which positions the NELBOs of items x (N, *space.shape), encoded, come from: the costs of MATH (8) at every position, nats.

    The draws are those of `evaluate(model, x, visits=visits, plan=plan, seed=seed)` and of `score`: a map adds up to the same item's score.

    Args:
        visits: network evaluations of each item. A position sees only a part of every cost, so that maps need more than scores.
        plan: from `Plan.fit` or `scores.plan`. By default a pilot on x learns one.
        condition, seed: as in `evaluate`.

    Raises DiffusionalError for a model whose latents are not positions of x, such as a VAE or a system (`stage_maps`); for distributions
    that have no costs by position; and as `evaluate` does.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=100))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((4,))))
    >>> maps = cost_map(model, torch.tensor([[0.0, 0.0, 0.0, 5.0]]))            # the last position is an outlier
    >>> maps.total.shape, int(maps.total[0].argmax())
    (torch.Size([1, 4]), 3)
    """
    check_model(model)
    model.space.check(x)
    check_condition(condition, len(x))
    check_seed(seed)
    chain = model.visited()
    if chain is None or not chain.positioned:
        raise DiffusionalError(
            f"expected a model whose latents have the shape of x for cost maps, such as a DiffusionModel, got a {type(model).__name__}; its "
            "costs belong to no positions of x"
        )
    if visits < 2:
        raise DiffusionalError(
            f"expected visits to be at least 2, got {visits}: an error is estimated from the spread of the draws"
        )
    x = as_the_network(model, x)
    with evaluation_mode(model):
        plan = plan or plan_of_scores(model, x, condition, seed)
        assert plan is not None
        records = VisitRecords(chain, plan, x, seed, condition)
        with torch.inference_mode():
            return _maps(records, visits)


def _maps(records: VisitRecords, visits: int) -> CostMaps:
    """Return the maps of all items of `records`, from the first `visits` visits of each."""
    model, x = records.model, records.data
    n, d, zero = len(x), model.space.dimensions, torch.zeros(x.shape, dtype=torch.float64)
    parts = {"reconstruction": zero.clone(), "kl": zero.clone()}
    squares = zero.clone()
    row = torch.arange(n).repeat_interleave(visits)
    column = torch.arange(visits).repeat(n)
    step = max(1, _NUMBERS // d)
    for rows, columns in zip(row.split(step), column.split(step), strict=True):
        found = _visit_maps(records, rows, columns)
        for name, values in found.items():
            parts[name].index_add_(0, rows, values)
        squares.index_add_(0, rows, sum(found.values(), torch.zeros(())).square())
    mean = {name: total / visits for name, total in parts.items()}
    variance = (squares / visits - (mean["reconstruction"] + mean["kl"]).square()).clamp(min=0) / (visits - 1)
    # What is known without visits: its parts by position, and the rest evenly.
    base = records.base / d
    mean["reconstruction"] += align(base[:, 0], zero)
    mean["kl"] += align(base[:, 1:].sum(1), zero)
    device = records.device
    prior = torch.cat([model.prior_map(some.to(device)).double().cpu() for some in x.split(network_rows(model))])
    jacobian = model.space.log_jacobian_map().expand(x.shape).clone()
    return CostMaps(mean["reconstruction"], mean["kl"], prior, jacobian, variance.sqrt(), visits, records.plan)


def _visit_maps(records: VisitRecords, row: Tensor, column: Tensor) -> dict[str, Tensor]:
    """Return the weighted residuals (V, *dims) of visits by position: those of `VisitRecords`, with g and the constant part of KL_t divided
    evenly over the D positions.
    """
    model, plan, d = records.model, records.plan, records.model.space.dimensions
    visits, streams = plan.draw(records.keys, row, column)
    x = records.data[row].to(records.device)
    noise = normal(streams, model.visit_shape).to(records.device, records.data.dtype)
    c, context = moved(rows_of(records.condition, row), records.device), records.context_of(row)
    costs = _by_position(model, x, visits, noise, c)
    even = plan.subtracted(model, x, visits, noise, context)
    first = visits.cell == 0
    even = even + torch.where(first, 0.0, model.level_constants(visits.level).double().cpu())
    weighted = align(visits.weight, costs) * (costs - align(even / d, costs))
    decoder = torch.where(align(first, costs).bool(), weighted, 0.0)
    if not model.decoder_uses_network:
        # Every visit has a draw of the decoder's cost.
        other = normal(streams, model.visit_shape).to(records.device, records.data.dtype)
        at_first = LevelVisits.of_decoder(len(row))
        decoder = _by_position(model, x, at_first, other, c)
        decoder = decoder - align(plan.subtracted(model, x, at_first, other, context) / d, decoder)
    return {"kl": torch.where(align(first, costs).bool(), 0.0, weighted), "reconstruction": decoder}


def _by_position(model: Chain, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Condition | None) -> Tensor:
    """Return the cost of every visit at every position (V, *dims), float64 on the CPU."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for first in (False, True):
        chosen = ((visits.cell == 0) == first).nonzero().squeeze(1)
        for rows in chosen.split(network_rows(model)) if len(chosen) else ():
            at = rows.to(x.device)
            c = rows_of(condition, at)
            if first:
                costs = model.reconstruction_map(x[at], noise[at], c)
            else:
                costs = model.kl_map(x[at], visits.level[rows].to(x.device), noise[at], c)
            if costs.shape != x[at].shape:
                raise DiffusionalError(
                    f"expected costs by position of shape {tuple(x[at].shape)}, got {tuple(costs.shape)}; a cost map has one for every value of x"
                )
            out[rows] = costs.double().cpu()
    return out
