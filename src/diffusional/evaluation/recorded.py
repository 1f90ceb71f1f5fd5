"""A plan from visits that training has made: the costs of masked sequences at known masks, for which no further network evaluation is needed.

A training step of a masked diffusion visits a level of every item of its batch. Its last visits have what a pilot has: items, levels, masks
and costs. The weights of these steps are not exactly those that are evaluated, which are an average, and dropout may have been active, so that the coefficients and probabilities are
slightly worse than those of a pilot of as many visits. The estimate is unbiased for any of them (plan.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.controls import NAMES, fit_controls
from diffusional.evaluation.pilot import Seen, even_plan, parted, selected
from diffusional.evaluation.plan import CELLS, Met, Plan, about
from diffusional.evaluation.provenance import fingerprint, tensor_hash
from diffusional.evaluation.visits import LevelVisits, visit_features
from diffusional.models.base import evaluation_mode
from diffusional.models.chain import Chain

# The fewest visits of which a plan is learned.
FEWEST = 500
# Standard normal noise by which a position is masked, or shown, whatever the probability of a mask.
_CERTAIN = 30.0


@dataclass(frozen=True, eq=False)
class Recorded:
    """Visits of training items: `row` (V,) of each item, `level` (V,), 0 for the reconstruction, `cost` (V,) in nats, and which positions were
    masked, `mask` (V, L), bool.
    """

    row: Tensor
    level: Tensor
    cost: Tensor
    mask: Tensor


def plan_from_visits(model: Chain, data: Tensor, visits: Recorded, cells: int = CELLS) -> Plan:
    """Return a plan learned from recorded visits of items of `data` (N, L), encoded.

    Raises DiffusionalError for a chain that is not of masked sequences in discrete time, fewer than 500 visits, rows that the data do not have,
    masks that do not have the levels' numbers of positions, and costs that are not finite.

    >>> import diffusional as df
    >>> space = df.space.Categorical(6, 3)
    >>> model = df.MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), space)
    >>> x = torch.randint(3, (40, 6), generator=torch.Generator().manual_seed(0)).float()
    >>> level = torch.arange(600) % 6
    >>> mask = torch.arange(6) < level[:, None] + 1                                # level 0, the reconstruction, has one mask
    >>> visits = Recorded(torch.arange(600) % 40, level, torch.full((600,), 3.0).log(), mask)
    >>> plan_from_visits(model, x, visits).draw_variance < 1e-12                   # a uniform prediction costs the same everywhere
    True
    """
    chain = model.masks
    if chain is None:
        raise DiffusionalError(
            f"expected a model of masked sequences in discrete time, whose training visits are recorded, got a {type(model).__name__}; use Plan.fit"
        )
    if len(visits.row) < FEWEST:
        raise DiffusionalError(f"expected at least {FEWEST} visits, got {len(visits.row)}; use Plan.fit")
    if int(visits.row.min()) < 0 or int(visits.row.max()) >= len(data):
        raise DiffusionalError(
            f"expected rows in 0 … {len(data) - 1}, those of the data, got {int(visits.row.min())} … {int(visits.row.max())}"
        )
    if not bool(torch.isfinite(visits.cost).all()):
        raise DiffusionalError("expected finite costs of the visits, got some that are not; use Plan.fit")
    worlds, visited = parted(len(data), model.space.dimensions, 0)
    # Of few items, one half is for the controls, and only visits of the others are used.
    own = torch.isin(visits.row.long(), visited).nonzero().squeeze(1)
    with evaluation_mode(model), torch.inference_mode():
        controls = fit_controls(NAMES, model, data[worlds])
        plan = even_plan(model, controls, data, cells)
        level, row = visits.level[own].long(), visits.row[own].long()
        cell = torch.where(level == 0, 0, torch.searchsorted(plan.edges, level, right=True))
        at = LevelVisits(cell, level.clamp(min=1), torch.ones(len(own), dtype=torch.float64))
        latent, mask = torch.where(level == 0, 1, level + 1), visits.mask[own]
        # Small numbers are masked in one process, large ones in another.
        noise = torch.where(mask, -_CERTAIN, _CERTAIN)
        noise = noise if torch.equal(chain.masked(latent, noise), mask) else -noise
        if not torch.equal(chain.masked(latent, noise), mask):
            raise DiffusionalError(
                "expected masks with as many positions as the levels of their visits have, got others; use Plan.fit"
            )
        costs = visits.cost[own].double() - torch.where(level == 0, 0.0, model.level_constants(at.level).cpu())
        seen = Seen(cell, costs, *visit_features(model, controls, data[row], at, noise))
        none = torch.zeros(seen.drawn.shape[1], plan.cells + 1, dtype=torch.float64)
        plan, seen = selected(plan, model, seen, none, row % 2)
        residual = seen.costs - plan.subtract(seen.cell, seen.expected, seen.drawn)
    learned = {
        "method": "training",
        "seed": None,
        "data_sha256": fingerprint(model.space, data),
        "evaluations": 0,
        "visits": len(own),
        "cells": cells,
        "controls": [control.name for control in plan.controls],
        "dropped_controls": [control.name for control in controls if control not in plan.controls],
        "weights_sha256": tensor_hash(model.whole().state_dict()),
    }
    numbers = {
        name: getattr(plan, name).clone() for name in ("edges", "mass", "constant", "expected", "drawn", "scale")
    }
    met = Met(cell.clone(), at.level.clone(), residual.clone())
    return replace(plan, **numbers, provenance=about(model) | learned, met=met)
