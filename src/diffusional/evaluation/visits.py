"""Visits of levels: where the network is evaluated, the costs found there, and the controls' values at the same places.

KL_t = offset_t + slope_t ‖ε − ε̂‖², MATH (10): of the offset no noise changes anything, so that a visit's cost is the rest, and the offsets
are part of what is known without the network (`quadrature`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.conditions import Condition, rows_of
from diffusional.evaluation.control import Control, Look
from diffusional.evaluation.interpolated import TABLE_STEP
from diffusional.ledger import total_of
from diffusional.models.chain import Chain, batch_rows
from diffusional.models.protocols import AffineCosts

# Gauss–Legendre nodes for each piece of a cell in continuous time.
_NODES = 4
# Rows of one network call.
_ROWS = 2048
# What takes the place of a level's slope at the reconstruction: −ln N(x; x̂, (σ/α)² I) has ½ ‖ε − ε̂‖².
FIRST_SLOPE = 0.5


@dataclass(frozen=True)
class LevelVisits:
    """The levels at which the network is evaluated. The public `evaluation.Visits` is the estimator that chooses them.

    Attributes:
        cell: (V,), the cell of every visit; 0 is the reconstruction.
        level: (V,), the time t, or u in continuous time; 1 or 0 for the reconstruction.
        weight: (V,), 1/q, the inverse of the probability (density) of the choice.
    """

    cell: Tensor
    level: Tensor
    weight: Tensor

    @classmethod
    def of_decoder(cls, n: int) -> "LevelVisits":
        """Return n visits of the decoder, each of weight 1."""
        zero = torch.zeros(n, dtype=torch.long)
        return cls(zero, zero + 1, torch.ones(n, dtype=torch.float64))

    def __getitem__(self, rows: Tensor) -> "LevelVisits":
        """Return the visits with the given indices, or those that a mask selects."""
        return LevelVisits(self.cell[rows], self.level[rows], self.weight[rows])


def network_rows(model: Chain) -> int:
    """Return the number of visits that the network sees in one call."""
    return min(_ROWS, batch_rows(model.space))


def slopes(model: AffineCosts, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL_t = offset + slope ‖ε − ε̂‖², MATH (10), at levels (V,)."""
    zero = model.kl_from(torch.zeros(len(level), dtype=torch.float64), level)
    return zero, model.kl_from(torch.ones(len(level), dtype=torch.float64), level) - zero


def quadrature(model: AffineCosts, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return γ (L,), weight (C, L) and offset (C,) with Σ_{t in c} E KL_t = offset_c + Σ_l weight_cl E ‖ε − ε̂‖²(γ_l).

    In continuous time over γ, ½ γ'(u) du being ½ dγ: a learned γ(u) may have steps, or corners, between any nodes in u.
    """
    cells = len(edges) - 1
    if model.timesteps is not None:
        level = torch.arange(1, model.timesteps + 1)
        cell = torch.searchsorted(edges, level, right=True) - 1
        offset, slope = (value.detach().cpu() for value in slopes(model, level))
        gamma = model.noisy_gamma(level).detach().cpu()
    else:
        nodes, weights = _gauss_legendre()
        at = model.edge_gammas(edges).detach().cpu()
        gamma, cell, slope = [], [], []
        for c in range(cells):
            low, high = float(at[c]), float(at[c + 1])
            # Tables of the histogram control change half way between their γ: the pieces end there.
            inner = (
                TABLE_STEP
                * (torch.arange(math.floor(low / TABLE_STEP), math.ceil(high / TABLE_STEP) + 1) + 0.5).double()
            )
            inner = inner[(inner > low) & (inner < high)]
            cuts = torch.cat([at[c : c + 1], inner, at[c + 1 : c + 2]]).double()
            width = cuts[1:] - cuts[:-1]
            gamma.append((cuts[:-1, None] + width[:, None] * nodes).flatten())
            slope.append((0.5 * width[:, None] * weights).flatten())
            cell.append(torch.full((len(width) * len(nodes),), c))
        gamma, cell, slope = torch.cat(gamma), torch.cat(cell), torch.cat(slope)
        offset = torch.zeros_like(slope)
    weight = torch.zeros(cells, len(gamma), dtype=torch.float64)
    weight[cell, torch.arange(len(gamma))] = slope
    return gamma, weight, torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, offset)


def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Return nodes in [0, 1] and weights that add up to one."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)


def knows_constants(model: Chain) -> bool:
    """Return whether the constant parts of the costs (`Chain.level_constants`) are known exactly: by `quadrature`, or level by level."""
    return model.affine is not None or model.timesteps is not None


def constants(model: Chain, edges: Tensor) -> Tensor:
    """Return Σ_{t in c} of the constant parts of KL_t (C,), float64, of a chain without affine costs in discrete time; otherwise 0."""
    total = torch.zeros(len(edges) - 1, dtype=torch.float64)
    if model.affine is not None or model.timesteps is None:
        return total
    level = torch.arange(1, model.timesteps + 1)
    cell = torch.searchsorted(edges, level, right=True) - 1
    return total.index_add_(0, cell, model.level_constants(level).detach().cpu().double())


def latents_of_cells(timesteps: int, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers t + 1 of the latents at which the levels t are paid (L,), float64, and which of them each cell has (C, L).

    >>> latents_of_cells(3, torch.tensor([1, 3, 4]))[1].tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    level = torch.arange(1, timesteps + 1)
    cell = torch.searchsorted(edges, level, right=True) - 1
    weight = torch.zeros(len(edges) - 1, timesteps, dtype=torch.float64)
    weight[cell, torch.arange(timesteps)] = 1.0
    return (level + 1).double(), weight


def visit_costs(model: Chain, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Condition | None) -> Tensor:
    """Return the cost of every visit (V,), float64 on the CPU: the sum of its `visit_parts`."""
    return total_of(visit_parts(model, x, visits, noise, condition))


def visit_parts(
    model: Chain, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Condition | None
) -> dict[str, Tensor]:
    """Return the parts of the cost of every visit by name, each (V,), float64 on the CPU: "kl", which is KL_t less its constant part, and
    the costs of the decoder (`Chain.decoder_parts`). Each part is 0 for the other visits. A visit takes one network evaluation.
    """
    out = {name: torch.zeros(len(x), dtype=torch.float64) for name in ("kl", *model.decoder_parts)}
    for first in (False, True):
        chosen = ((visits.cell == 0) == first).nonzero().squeeze(1)
        for rows in chosen.split(network_rows(model)) if len(chosen) else ():
            at = rows.to(x.device)
            c = rows_of(condition, at)
            if first:
                for name, cost in model.decoder_costs(x[at], noise[at], c).items():
                    out[name][rows] = cost.cpu().double()
            else:
                level = visits.level[rows].to(x.device)
                kl = model.kl_at(x[at], level, noise[at], c)
                if knows_constants(model):
                    kl = kl - model.level_constants(level).to(x.device)
                out["kl"][rows] = kl.cpu().double()
    return out


def look_costs(model: Chain, x: Tensor, noise: Tensor, condition: Condition | None) -> dict[str, Tensor]:
    """Return a draw of the costs that an evaluation draws once for every item (`Chain.looked`) by name, each (N,), float64 on the CPU."""
    out = {name: torch.zeros(len(x), dtype=torch.float64) for name in model.looked}
    for rows in torch.arange(len(x), device=x.device).split(network_rows(model)):
        for name, cost in model.look(x[rows], noise[rows], rows_of(condition, rows)).items():
            out[name][rows.cpu()] = cost.cpu().double()
    return out


def contexts(model: Chain, x: Tensor, condition: Condition | None) -> Tensor:
    """Return the priors of items x (B, *dims), (B, K, *dims) in float32 on x's device: one network evaluation each."""
    step = network_rows(model)
    rows = torch.arange(len(x), device=x.device).split(step)
    return torch.cat([model.level_priors(x[some], rows_of(condition, some)).float() for some in rows])


def visit_features(
    model: Chain,
    controls: tuple[Control, ...],
    x: Tensor,
    visits: LevelVisits,
    noise: Tensor,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the controls' functions of item and level (V, ΣE), and their mean-zero functions of the noise (V, ΣF), in nats; float64
    on the CPU. `context` (V, K, *dims) is that of the items.
    """
    none = torch.zeros(len(x), 0, dtype=torch.float64)
    if not controls:
        return none, none
    first, costs = visits.cell == 0, model.affine
    latent = torch.where(first, 1, visits.level + 1) if model.timesteps is not None else visits.level
    gamma, slope = None, torch.ones(len(x), dtype=torch.float64)
    if costs is not None:
        start = costs.end_gammas()[0].detach().cpu()
        gamma = torch.where(first, start, costs.noisy_gamma(visits.level).detach().cpu()).double().to(x.device)
        slope = torch.where(first, FIRST_SLOPE, slopes(costs, visits.level)[1].detach().cpu())
    look = Look(x, noise, gamma, latent.to(x.device), first.to(x.device), context)
    expected, drawn = [], []
    for rows in torch.arange(len(x), device=x.device).split(network_rows(model)):
        parts = [control.at(look[rows]) for control in controls]
        expected.append(torch.cat([one for one, _ in parts], 1).cpu())
        drawn.append(torch.cat([other for _, other in parts], 1).cpu())
    return slope[:, None] * torch.cat(expected), slope[:, None] * torch.cat(drawn)
