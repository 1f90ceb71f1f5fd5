"""The pilot of a plan: coefficients and probabilities from a few thousand evaluations on training data.

Coefficients come from ridge regression in each cell towards those around it. π_c ∝ n_c s_c, s_c the root mean square of what is left,
which is Neyman's allocation and minimises the variance of plan.py (a), with a floor. The first 30 % of the pilot visit all cells alike,
the rest as these suggest. At low noise costs are rare and large, and a pilot may meet none: the controls' own variance, which is known,
says how much there is to regress on, and how small s_c may be.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.controls import ENOUGH, Control, fit_controls
from diffusional.evaluation.plan import Met, Plan, about, cell_edges, learner, resolution, same_pilot
from diffusional.evaluation.provenance import condition_record, fingerprint, tensor_hash
from diffusional.evaluation.visits import LevelVisits, slopes, visit_costs, visit_features
from diffusional.models.base import device_of
from diffusional.models.chain import AffineCosts, Chain

# This part of the pilot goes to all cells alike.
_EVEN = 0.3
# Of all visits, this part goes to every cell alike, whatever the pilot found.
_FLOOR = 0.1
# How many draws of its own a cell needs to outweigh the others.
_SHRINK = 10.0
# Its neighbours: so many cells on either side. No cell's share is taken for less than this part of the largest of theirs.
_AROUND = 2
_LEAST_OF_AROUND = 0.6
# Controls are dropped if a smaller set of them leaves less than this part of the variance.
_HARM = 0.8


@learner
def fit(
    model: Chain,
    data: Tensor,
    evaluations: int,
    seed: int,
    names: tuple[str, ...],
    cells: int,
    condition: Condition | None,
    like: Plan | None,
) -> Plan:
    """As `Plan.fit`, of a model that is not training."""
    device = device_of(model.whole(), data)
    said = about(model)
    origin = {
        "seed": seed,
        "data_sha256": fingerprint(model.space, data),
        "evaluations": evaluations,
        **condition_record(condition),
    }
    worlds, visited = _parted(len(data), model.space.dimensions, seed)
    fitted, tried = (data if len(rows) == len(data) else data[rows] for rows in (worlds, visited))
    controls = tuple(fit_controls(names, fitted, model.space)) if model.affine is not None and len(worlds) else ()
    plan = _even(model, controls, data, cells)
    generator = torch.Generator().manual_seed(seed)
    known = _known_variance(model, controls, plan.edges, tried)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    levels: list[Tensor] = []
    items: list[Tensor] = []
    # Replay the visits of another model's pilot on the same levels, data and conditions, so that the differences of their costs are known.
    replayed = Met.nothing()
    if like is not None and plan.edges.equal(like.edges) and same_pilot(origin, like.provenance):
        replayed = like.met

    def visit(n: int) -> None:
        """n more evaluations under the plan as it is: their cells, costs and features."""
        repeats = -(-n // len(visited))
        item = visited[torch.cat([torch.randperm(len(visited), generator=generator) for _ in range(repeats)])[:n]]
        v = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        visits = plan.at(v[torch.randperm(n, generator=generator)])
        if len(replayed.left):
            some = slice(sum(map(len, levels)), sum(map(len, levels)) + n)
            visits = LevelVisits(replayed.cell[some], replayed.level[some], visits.weight)
        noise = torch.randn(n, *model.visit_shape, generator=generator).to(device, data.dtype)
        x, c = data[item].to(device), moved(rows_of(condition, item), device)
        costs = visit_costs(model, x, visits, noise, c)
        if model.looks:
            first = (visits.cell == 0).nonzero().squeeze(1)
            other = torch.randn(len(first), *model.visit_shape, generator=generator).to(device, data.dtype)
            costs[first] -= visit_costs(model, x[first], visits[first], other, rows_of(c, first))
        if not bool(torch.isfinite(costs).all()):
            bad = int((~torch.isfinite(costs)).nonzero()[0])
            raise DiffusionalError(
                f"the pilot met a cost that is not finite: {float(costs[bad])} for item {int(item[bad])} at level "
                f"{visits.level[bad].item():g}; nothing was left out"
            )
        levels.append(visits.level)
        items.append(item)
        rows.append((visits.cell, costs, visit_features(model, controls, x, visits, noise)))
        if not model.decoder_uses_network:
            items.append(item)
            zero = LevelVisits(
                torch.zeros_like(visits.cell), torch.ones_like(visits.level), torch.ones_like(visits.weight)
            )
            other = torch.randn(n, *model.visit_shape, generator=generator).to(device, data.dtype)
            rows.append(
                (zero.cell, visit_costs(model, x, zero, other, None), visit_features(model, controls, x, zero, other))
            )

    even = int(_EVEN * evaluations)
    for n in (even, evaluations - even):
        visit(n)
        cell, costs, features = (torch.cat(parts) for parts in zip(*rows, strict=True))
        plan = _regressed(plan, model, cell, costs, features, known)
    helpful = _helpful(plan, model, cell, costs, features, known, torch.searchsorted(visited, torch.cat(items)) % 2)
    plan, features, known = _with_controls(plan, helpful, features, known)
    if len(helpful) < len(controls):
        plan = _regressed(plan, model, cell, costs, features, known)
    if like is not None and all(like.provenance.get(key) == said[key] for key in said) and plan.edges.equal(like.edges):
        plan = replace(plan, mass=like.mass)
    learned = {
        "method": "pilot",
        **origin,
        "cells": cells,
        "controls": [control.name for control in plan.controls],
        "dropped_controls": [control.name for control in controls if control not in plan.controls],
        "weights_sha256": tensor_hash(model.whole().state_dict()),
    }
    # Every other part belongs to a decoder without network.
    step = 1 if model.decoder_uses_network else 2
    cell, costs, _ = (torch.cat(parts) for parts in zip(*rows[::step], strict=True))
    features = torch.cat(features.split([len(part[0]) for part in rows])[::step])
    met = Met(cell, torch.cat(levels), costs - plan._subtracted(cell, features))
    return replace(plan, provenance=said | learned, met=met)


def _parted(items: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the reference data to which the controls are fitted, and the rows that the pilot visits.

    If there are enough items, both are all of them. Few items are split into two random halves, since controls follow the items that they
    were fitted to better than others. With fewer than four items nothing is fitted.
    """
    everything = torch.arange(items)
    if items >= ENOUGH * dimensions:
        return everything, everything
    if items < 4:
        return everything[:0], everything
    shuffled = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    return shuffled[: items // 2].sort().values, shuffled[items // 2 :].sort().values


def _with_controls(plan: Plan, kept: list[int], features: Tensor, known: Tensor) -> tuple[Plan, Tensor, Tensor]:
    """Return the plan, the features (V, 2K) and the known variances (K, C + 1) with the controls of `kept` only."""
    if len(kept) == len(plan.controls):
        return plan, features, known
    columns = [*kept, *(len(plan.controls) + k for k in kept)]
    fewer = replace(
        plan,
        expected=plan.expected[kept],
        drawn=plan.drawn[kept],
        controls=tuple(plan.controls[k] for k in kept),
    )
    return fewer, features[:, columns], known[kept]


def _helpful(
    plan: Plan, model: Chain, cell: Tensor, costs: Tensor, features: Tensor, known: Tensor, fold: Tensor
) -> list[int]:
    """Return the controls to keep: all, unless a single one or none leaves less variance. The coefficients are fitted to one half of the
    items (`fold` (V,) is 0 or 1) and the variance is measured on the other.
    """
    every = list(range(len(plan.controls)))
    width = torch.cat([torch.ones(1, dtype=torch.float64), (plan.edges[1:] - plan.edges[:-1]).double()])

    def left(kept: list[int]) -> float:
        """Return the least variance of a visit, (Σ_c n_c s_c)², with s_c from items to which the coefficients were not fitted."""
        some, columns, variances = _with_controls(plan, kept, features, known)
        squares, count = torch.zeros_like(width), torch.zeros_like(width)
        for half in (0, 1):
            fitted, tried = fold != half, fold == half
            trial = _regressed(some, model, cell[fitted], costs[fitted], columns[fitted], variances)
            residual = costs[tried] - trial._subtracted(cell[tried], columns[tried])
            squares.index_add_(0, cell[tried], residual.square())
            count.index_add_(0, cell[tried], torch.ones_like(residual))
        return float((width * (squares / count.clamp(min=1)).sqrt()).sum()) ** 2

    if not every or not bool((fold == 0).any() and (fold == 1).any()):
        return every
    chosen, least = every, _HARM * left(every)
    for kept in ([], *([k] for k in every if len(every) > 1)):
        found = left(kept)
        if found < least:
            chosen, least = kept, found
    return chosen


def _even(model: Chain, controls: tuple[Control, ...], data: Tensor, cells: int) -> Plan:
    """Cells of equal shares of Wiener's cost (where there is one) and of γ, or of the levels of a chain without controls; each as likely as the next."""
    n = resolution(model)
    edges = torch.arange(n + 1) + 1 if model.levels is not None else torch.arange(n + 1).double() / n
    density = torch.ones(n, dtype=torch.float64)
    if model.affine is not None:
        density = _wanted(model.affine, controls, edges, data)
    edges = cell_edges(model, cells, density)
    count = len(edges)  # C cells of levels, and the reconstruction
    mass = torch.full((count,), 1 / count, dtype=torch.float64)
    if not model.decoder_uses_network:
        mass[0] = 0
        mass = mass / mass.sum()
    zero = torch.zeros(count, dtype=torch.float64)
    none = torch.zeros(len(controls), count, dtype=torch.float64)
    return Plan(edges, mass, zero, none, none, zero, controls)


def _wanted(model: AffineCosts, controls: tuple[Control, ...], edges: Tensor, data: Tensor) -> Tensor:
    """The density of cells over the levels, or parts of [0, 1], between `edges`."""
    ends = model.edge_gammas(edges)
    density = (ends[1:] - ends[:-1]).detach().cpu()
    density = density / density.sum()
    for control in controls:
        level = edges[:-1] if model.levels is not None else 0.5 * (edges[1:] + edges[:-1])
        gamma = model.noisy_gamma(level).detach().cpu()
        expected = control.mean_expected(data[:: max(1, len(data) // 256)].cpu(), gamma)
        if expected is not None:
            cost = slopes(model, level)[1].detach().cpu() * torch.exp(-gamma) * expected
            density = 0.5 * density + 0.5 * cost / cost.sum()
    return density


def _known_variance(model: Chain, controls: tuple[Control, ...], edges: Tensor, data: Tensor) -> Tensor:
    """Var of each control's drawn cost in each cell (K, C + 1), nats², over three of its levels; the reconstruction's is not known."""
    out = torch.zeros(len(controls), len(edges), dtype=torch.float64)
    costs = model.affine
    if costs is None:
        return out
    third = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    level = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * third
    level = (level.long() if not edges.dtype.is_floating_point else level).flatten()
    gamma = costs.noisy_gamma(level).detach().cpu()
    factor = slopes(costs, level)[1].detach().cpu() * torch.exp(-gamma)
    sample = data[:: max(1, len(data) // 1000)].cpu()
    parts = [(factor.square() * control.variance(sample, gamma)).view(-1, 3).mean(1) for control in controls]
    for k, part in enumerate(parts):
        out[k, 1:] = part
    return out


def _regressed(plan: Plan, model: Chain, cell: Tensor, costs: Tensor, features: Tensor, known: Tensor) -> Plan:
    """Coefficients by ridge regression in each cell towards those of all cells, and π from what is left."""
    cells, k = plan.cells + 1, len(plan.controls)
    members = [(cell == c).nonzero().squeeze(1) for c in range(cells)]
    count = torch.tensor([float(len(rows)) for rows in members], dtype=torch.float64)
    centred_costs, centred = torch.zeros_like(costs), torch.zeros_like(features)
    seen, unit = torch.zeros(2 * k, cells, dtype=torch.float64), torch.ones(cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if len(rows):
            centred_costs[rows] = costs[rows] - costs[rows].mean()
            centred[rows] = features[rows] - features[rows].mean(0)
            seen[:, c] = centred[rows].square().mean(0)
            unit[c] = torch.cat([centred_costs[rows].square().mean()[None], known[:, c]]).max().sqrt().clamp(min=1e-12)
    # What a feature varies by in a cell: what was seen or, of draws, what is known, whichever is more.
    varies = torch.cat([seen[:k], torch.maximum(seen[k:], known)])
    scaled, scaled_costs = centred / unit[cell, None], centred_costs / unit[cell]

    def pooled(first: int, last: int, towards: Tensor) -> Tensor:
        rows = ((cell >= first) & (cell <= last)).nonzero().squeeze(1)
        return _ridge(scaled[rows], scaled_costs[rows], towards, _SHRINK * scaled[rows].square().mean(0))

    none = torch.zeros(2 * k, dtype=torch.float64)
    overall = pooled(1, cells - 1, none)
    constant, scale = torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    coefficients = torch.zeros(2 * k, cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if not len(rows):
            continue
        towards = pooled(max(1, c - _AROUND), c + _AROUND, overall) if c else none
        b = _ridge(centred[rows], centred_costs[rows], towards, _SHRINK * varies[:, c])
        coefficients[:, c] = b
        constant[c] = (costs[rows] - features[rows] @ b).mean()
        left = (centred_costs[rows] - centred[rows] @ b).square().sum()
        freedom = len(rows) - 1 - 2 * k * len(rows) / (len(rows) + _SHRINK)
        scale[c] = (left / max(freedom, 1.0)).sqrt()
    if k:
        scale[1:] = _informed(scale[1:], count[1:], seen[k:, 1:].sum(0), known[:, 1:].sum(0))
    width = torch.cat([torch.ones(1, dtype=torch.float64), (plan.edges[1:] - plan.edges[:-1]).double()])
    share = _smoothed(width * scale, count)
    if not model.decoder_uses_network:
        share[0] = 0
    even = (share > -1).double() if model.decoder_uses_network else (torch.arange(cells) > 0).double()
    total = share.sum()
    mass = even / even.sum() if not total > 0 else (1 - _FLOOR) * share / total + _FLOOR * even / even.sum()
    return Plan(plan.edges, mass, constant, coefficients[:k], coefficients[k:], scale, plan.controls, plan.provenance)


def _ridge(features: Tensor, target: Tensor, towards: Tensor | None, pull: Tensor) -> Tensor:
    """Least squares with a pull (F,), in squares of features, towards given coefficients (or none)."""
    towards = torch.zeros(features.shape[1], dtype=torch.float64) if towards is None else towards
    gram = features.T @ features
    right = features.T @ (target - features @ towards)
    return towards + torch.linalg.lstsq(gram + torch.diag(pull + 1e-300), right[:, None]).solution[:, 0]


def _informed(scale: Tensor, count: Tensor, seen: Tensor, known: Tensor) -> Tensor:
    """s_c, where the pilot saw less of the controls' variance than there is: their neighbours' s² per variance, times it."""
    around = [slice(max(0, c - _AROUND), c + _AROUND + 1) for c in range(len(scale))]
    squares = scale.square()
    # Each cell counts for as much as it is like its surroundings: ratios, not sums, whose largest would speak for all.
    ratio = squares / torch.maximum(seen, known).clamp(min=1e-300)
    lent = torch.stack([ratio[some].median() for some in around]) * known
    informative = count * (seen / known.clamp(min=1e-300)).clamp(max=1)
    return ((informative * squares + _SHRINK * lent) / (informative + _SHRINK)).sqrt()


def _smoothed(share: Tensor, count: Tensor) -> Tensor:
    """Each cell's share, lent to by its neighbours (the reconstruction excepted) as if they were _SHRINK draws, and at least
    a part of the largest of four around it: a pilot that met no rare cost in a cell has met its like next to it.
    """
    squares = share[1:].square()
    around = torch.nn.functional.pad(squares[None, None], (1, 1), mode="replicate")[0, 0]
    lent = 0.5 * (around[:-2] + around[2:])
    mixed = ((count[1:] * squares + _SHRINK * lent) / (count[1:] + _SHRINK)).sqrt()
    wide = torch.nn.functional.pad(mixed[None, None], (2, 2), mode="replicate")[0, 0]
    most = torch.stack([wide[:-4], wide[1:-3], wide[3:-1], wide[4:]]).max(0).values
    return torch.cat([share[:1], torch.maximum(mixed, _LEAST_OF_AROUND * most)])
