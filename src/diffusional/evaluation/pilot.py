"""The pilot of a plan: coefficients and probabilities from a few thousand evaluations on training data.

Coefficients come from ridge regression in each cell towards those around it. π_c ∝ n_c s_c, s_c the root mean square of what is left,
which is Neyman's allocation and minimises the variance of plan.py (a), with a floor. The first 30 % of the pilot visit all cells alike,
the rest as these suggest. A pilot of n visits leaves about 1 + κ/n times the variance of a long one, so that n + V (1 + κ/n)/error²
evaluations, pilot and draws together, are least at n = √(κ draws): a pilot for a target starts small and goes on to there. At low noise
costs are rare and large, and a pilot may meet none: the controls' own variance, which is known, bounds s_c from below.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.encoded import DataItems
from diffusional.errors import DiffusionalError
from diffusional.evaluation.control import ENOUGH, Control, columns, width_of
from diffusional.evaluation.controls import fit_controls
from diffusional.evaluation.plan import (
    REPEATED,
    Met,
    Plan,
    about,
    contraster,
    equal_mass_edges,
    learner,
    resolution,
    same_pilot,
)
from diffusional.evaluation.provenance import condition_record, fingerprint, tensor_hash
from diffusional.evaluation.visits import (
    FIRST_SLOPE,
    LevelVisits,
    contexts,
    look_costs,
    slopes,
    visit_costs,
    visit_features,
)
from diffusional.evaluation.wiener import Wiener
from diffusional.ledger import total_of
from diffusional.models.base import device_of
from diffusional.models.chain import Chain
from diffusional.models.protocols import AffineCosts

# The part of the pilot that is divided equally among all cells.
_EVEN = 0.3
# The part of all visits of an evaluation that is divided equally among all cells.
_FLOOR = 0.1
# The number of draws of a cell that have the same weight as the other cells.
_SHRINK = 10.0
# Functions of the noise that vary by less than this part of the costs' variance are left out: their coefficients would be rounding.
_LEAST = 1e-8
# The number of neighbours of a cell on either side. A cell's share is at least this part of the largest of theirs.
_AROUND = 2
_LEAST_OF_AROUND = 0.6
# The most items that controls are fitted to: more would need memory for copies of all of them, and change little.
_FITTED = 65_536
# About the number of items over which the known variances of controls are averaged.
_KNOWN = 256
# Visits of every item of a pilot that evaluates contexts.
_EACH_CONTEXT = 4
# Controls are dropped if a smaller set of them leaves less than this part of the variance.
_HARM = 0.9
# κ, from K of pilots of 1,000 to 3,000 on the digits (docs/results/cost-to-error.md), rounded up; the longest pilot for a target.
_KAPPA, _LONGEST = 500.0, 20_000


@learner
def fit(
    model: Chain,
    data: DataItems,
    evaluations: int,
    seed: int,
    names: tuple[str, ...],
    cells: int,
    condition: Condition | None,
    like: Plan | None,
    draws: Callable[[float], float] | None,
    across: bool,
) -> Plan:
    """Do the work of `Plan.fit`, for a model in evaluation mode."""
    device = device_of(model.whole(), data)
    said = about(model)
    worlds, visited = parted(len(data), model.space.dimensions, seed)
    worlds = worlds[:: max(1, -(-len(worlds) // _FITTED))]
    fitted = data if isinstance(data, Tensor) and len(worlds) == len(data) else data[worlds]
    controls = fit_controls(names, model, fitted) if len(worlds) else ()
    plan = even_plan(model, controls, data, cells)
    context = None
    if plan.takes_context:
        # Few items, visited several times each: every one of them takes an evaluation for its context.
        visited = visited[:: math.ceil(len(visited) * _EACH_CONTEXT / evaluations)].contiguous()
        context = contexts(model, data[visited].to(device), moved(rows_of(condition, visited), device))
    generator = torch.Generator().manual_seed(seed)
    some = slice(None, None, max(1, len(visited) // _KNOWN))
    sample = data[visited[some]] if context is None else data[visited[some]].to(device)
    known = _known_variance(model, controls, plan.edges, sample, None if context is None else context[some])
    origin = {"seed": seed, "data_sha256": fingerprint(model.space, data), **condition_record(condition)}
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    levels: list[Tensor] = []
    items: list[Tensor] = []
    if across and like is not None and "condition_sha256" in like.provenance:
        origin[REPEATED] = like.provenance["condition_sha256"]
    # Replay the visits of another pilot on the same levels, data and conditions, so that the differences of their costs are known.
    replayed = Met.nothing()
    if like is not None and plan.edges.equal(like.edges) and same_pilot(origin, like.provenance):
        evaluations, draws = len(like.met.left) or evaluations, None
        replayed = like.met

    def visit(n: int) -> Seen:
        """Make n further evaluations under the present plan, and return the results of all evaluations."""
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
        if model.looked:
            first = (visits.cell == 0).nonzero().squeeze(1)
            other = torch.randn(len(first), *model.visit_shape, generator=generator).to(device, data.dtype)
            costs[first] -= total_of(look_costs(model, x[first], other, rows_of(c, first)))
        if not bool(torch.isfinite(costs).all()):
            bad = int((~torch.isfinite(costs)).nonzero()[0])
            raise DiffusionalError(
                f"the pilot met a cost that is not finite: {float(costs[bad])} for item {int(item[bad])} at level "
                f"{visits.level[bad].item():g}; nothing was left out"
            )
        levels.append(visits.level)
        items.append(item)
        of_item = None if context is None else context[torch.searchsorted(visited, item).to(device)]
        rows.append((visits.cell, costs, *visit_features(model, controls, x, visits, noise, of_item)))
        if not model.decoder_uses_network:
            items.append(item)
            zero = LevelVisits(
                torch.zeros_like(visits.cell), torch.ones_like(visits.level), torch.ones_like(visits.weight)
            )
            other = torch.randn(n, *model.visit_shape, generator=generator).to(device, data.dtype)
            of_noise = visit_features(model, controls, x, zero, other, of_item)
            rows.append((zero.cell, visit_costs(model, x, zero, other, None), *of_noise))
        return Seen(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    even = int(_EVEN * evaluations)
    seen = visit(even)
    plan, ahead = _regressed(plan, model, seen, known), evaluations - even
    while ahead:
        seen = visit(ahead)
        plan = _regressed(plan, model, seen, known)
        ahead = 0 if draws is None else _further(sum(map(len, levels)), draws(plan.draw_variance))
    plan, seen = selected(plan, model, seen, known, torch.searchsorted(visited, torch.cat(items)) % 2)
    if like is not None and all(like.provenance.get(key) == said[key] for key in said) and plan.edges.equal(like.edges):
        plan = replace(plan, mass=like.mass)
    learned = {
        "method": "pilot",
        **origin,
        "evaluations": sum(map(len, levels)) + (0 if context is None else len(visited)),
        "cells": cells,
        "controls": [control.name for control in plan.controls],
        "dropped_controls": [control.name for control in controls if control not in plan.controls],
        "weights_sha256": tensor_hash(model.whole().state_dict()),
    }
    # Every other part belongs to a decoder without network.
    step = 1 if model.decoder_uses_network else 2
    own = torch.cat([torch.full((len(part[0]),), i % step == 0) for i, part in enumerate(rows)])
    residual = seen.costs - plan.subtract(seen.cell, seen.expected, seen.drawn)
    return replace(plan, provenance=said | learned, met=Met(seen.cell[own], torch.cat(levels), residual[own]))


@contraster
def contrast(plan: Plan, left: Tensor) -> Tensor:
    """Return the probabilities (C + 1,) that minimise the variance of a mean of residuals, from those of a pilot's visits `left` (P,)."""
    cell, cells = plan.met.cell, plan.cells + 1
    count = torch.bincount(cell, minlength=cells).double()
    squares = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, left.double().square())
    return _allocated(plan.width, (squares / count.clamp(min=1)).sqrt(), count, bool(plan.mass[0] > 0))


def _further(done: int, draws: float) -> int:
    """Return how many more evaluations a pilot of `done` should make for an evaluation that will take `draws`: up to √(κ draws) in all, and
    three times as many as it has at once, since the variance from a short pilot is inaccurate.

    >>> _further(500, 500.0), _further(500, 2000.0), _further(500, 1e6)
    (0, 500, 1000)
    """
    best = min(math.sqrt(_KAPPA * draws), float(_LONGEST))
    return min(math.ceil(best), 3 * done) - done if best > 1.2 * done else 0


@dataclass(frozen=True)
class Seen:
    """The results of a pilot: `cell` (V,), `costs` (V,), and the controls' functions of item and level (V, E) and of the noise (V, F)."""

    cell: Tensor
    costs: Tensor
    expected: Tensor
    drawn: Tensor

    @property
    def features(self) -> Tensor:
        """(V, E + F)."""
        return torch.cat([self.expected, self.drawn], 1)

    def __getitem__(self, rows: Tensor) -> "Seen":
        return Seen(self.cell[rows], self.costs[rows], self.expected[rows], self.drawn[rows])


def parted(items: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
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


def selected(plan: Plan, model: Chain, seen: Seen, known: Tensor, fold: Tensor) -> tuple[Plan, Seen]:
    """Return the plan with coefficients and probabilities from what was seen, and only those controls that help, and what was seen with these.

    Args:
        known: (F, C + 1) known variances of the functions of the noise, zero where they are not known.
        fold: (V,) 0 or 1, by item: coefficients of one half are tried on the other.
    """
    plan = _regressed(plan, model, seen, known)
    helpful = _helpful(plan, model, seen, known, fold)
    if len(helpful) < len(plan.controls):
        plan, seen, known = _with_controls(plan, helpful, seen, known)
        plan = _regressed(plan, model, seen, known)
    return plan, seen


def _with_controls(plan: Plan, kept: list[int], seen: Seen, known: Tensor) -> tuple[Plan, Seen, Tensor]:
    """Return the plan, what the pilot saw and the known variances (F, C + 1) with the controls of `kept` only."""
    if len(kept) == len(plan.controls):
        return plan, seen, known
    expects, draws = columns(plan.controls, kept)
    fewer = replace(
        plan,
        expected=plan.expected[expects],
        drawn=plan.drawn[draws],
        controls=tuple(plan.controls[k] for k in kept),
    )
    return fewer, replace(seen, expected=seen.expected[:, expects], drawn=seen.drawn[:, draws]), known[draws]


def _helpful(plan: Plan, model: Chain, seen: Seen, known: Tensor, fold: Tensor) -> list[int]:
    """Return the controls to keep: all, unless a part of them leaves less variance. The coefficients are fitted to one half of the items
    (`fold` (V,) is 0 or 1) and the variance is measured on the other.
    """
    every = list(range(len(plan.controls)))
    width = plan.width

    def left(kept: list[int]) -> float:
        """Return the least variance of a visit, (Σ_c n_c s_c)², with s_c from items to which the coefficients were not fitted."""
        some, theirs, variances = _with_controls(plan, kept, seen, known)
        squares, count = torch.zeros_like(width), torch.zeros_like(width)
        for half in (0, 1):
            fitted, tried = theirs[fold != half], theirs[fold == half]
            trial = _regressed(some, model, fitted, variances)
            residual = tried.costs - trial.subtract(tried.cell, tried.expected, tried.drawn)
            squares.index_add_(0, tried.cell, residual.square())
            count.index_add_(0, tried.cell, torch.ones_like(residual))
        return float((width * (squares / count.clamp(min=1)).sqrt()).sum()) ** 2

    if not every or not bool((fold == 0).any() and (fold == 1).any()):
        return every
    chosen, least = every, _HARM * left(every)
    for size in range(len(every)):
        for kept in map(list, combinations(every, size)):
            found = left(kept)
            if found < least:
                chosen, least = kept, found
    return chosen


def even_plan(model: Chain, controls: tuple[Control, ...], data: DataItems, cells: int) -> Plan:
    """Return a plan with equally likely cells. They have equal shares of the cost under Wiener's control, if there is one, and of γ, or
    equal numbers of levels for a chain without controls.
    """
    n = resolution(model)
    edges = torch.arange(n + 1) + 1 if model.timesteps is not None else torch.arange(n + 1).double() / n
    density = torch.ones(n, dtype=torch.float64)
    if model.affine is not None:
        density = _wanted(model.affine, controls, edges, data)
    edges = equal_mass_edges(model, cells, density)
    count = len(edges)  # C cells of levels, and the reconstruction
    mass = torch.full((count,), 1 / count, dtype=torch.float64)
    if not model.decoder_uses_network:
        mass[0] = 0
        mass = mass / mass.sum()
    zero = torch.zeros(count, dtype=torch.float64)
    expects, draws = (zero.new_zeros(n, count) for n in width_of(controls))
    return Plan(edges, mass, zero, expects, draws, zero, controls)


def _wanted(model: AffineCosts, controls: tuple[Control, ...], edges: Tensor, data: DataItems) -> Tensor:
    """Return the density of cells over the levels, or parts of [0, 1], between `edges`."""
    ends = model.edge_gammas(edges)
    density = (ends[1:] - ends[:-1]).detach().cpu()
    density = density / density.sum()
    for control in controls:
        if isinstance(control, Wiener):
            level = edges[:-1] if model.timesteps is not None else 0.5 * (edges[1:] + edges[:-1])
            some = data[:: max(1, len(data) // _KNOWN)]
            cost = slopes(model, level)[1].detach().cpu() * control.density(
                some, model.noisy_gamma(level).detach().cpu()
            )
            density = 0.5 * density + 0.5 * cost / cost.sum()
    return density


def _known_variance(
    model: Chain, controls: tuple[Control, ...], edges: Tensor, sample: Tensor, context: Tensor | None
) -> Tensor:
    """Return the variances of the controls' functions of the noise in each cell (F, C + 1), nats², over three of its levels: zero where they
    are not known. `sample` (n, *dims) are some of the items, and `context` is theirs.
    """
    out = torch.zeros(width_of(controls)[1], len(edges), dtype=torch.float64)
    costs = model.affine
    if costs is None or not len(out):
        return out
    third = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    level = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * third
    level = (level.long() if not edges.dtype.is_floating_point else level).flatten()
    gamma, slope = costs.noisy_gamma(level).detach().cpu().double(), slopes(costs, level)[1].detach().cpu()
    variance = torch.cat([control.variance(sample, gamma, context=context) for control in controls], 1)  # (3 C, F)
    out[:, 1:] = (slope.square()[:, None] * variance).view(-1, 3, len(out)).mean(1).T
    start = costs.end_gammas()[:1].detach().cpu().double()
    at_first = torch.cat([control.variance(sample, start, True, context) for control in controls], 1)
    out[:, 0] = FIRST_SLOPE**2 * at_first[0]
    return out


def _regressed(plan: Plan, model: Chain, seen: Seen, known: Tensor) -> Plan:
    """Return the plan with coefficients from ridge regression in each cell, towards those of its neighbours and of all cells, and with π from
    the residuals.
    """
    cells, cell, features = plan.cells + 1, seen.cell, seen.features
    expects = seen.expected.shape[1]
    # The known variances of the functions of the noise, and whether their controls are models of the cost.
    # The functions of items that a context gives vary as much over the items as those of the noise do.
    of_items = [
        known[columns(plan.controls, [k])[1]]
        if control.name == "context"
        else known.new_zeros(len(control.expects), cells)
        for k, control in enumerate(plan.controls)
    ]
    known = torch.cat([*of_items, known])
    models = [control.models_cost for control in plan.controls for _ in control.draws]
    models = torch.tensor([False] * expects + models, dtype=torch.bool)
    members = [(cell == c).nonzero().squeeze(1) for c in range(cells)]
    count = torch.tensor([float(len(rows)) for rows in members], dtype=torch.float64)
    costs, centred = torch.zeros_like(seen.costs), torch.zeros_like(features)
    varied, unit = torch.zeros_like(known), torch.ones(cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if len(rows):
            costs[rows] = seen.costs[rows] - seen.costs[rows].mean()
            centred[rows] = features[rows] - features[rows].mean(0)
            varied[:, c] = centred[rows].square().mean(0)
            most = torch.cat([costs[rows].square().mean()[None], known[models, c]]).max()
            unit[c] = most.sqrt().clamp(min=1e-12)
    # The variance of a feature in a cell: the observed or the known one, whichever is larger.
    varies = torch.maximum(varied, known)
    scaled, scaled_costs, scaled_varies = centred / unit[cell, None], costs / unit[cell], varies / unit.square()

    def pooled(first: int, last: int, towards: Tensor) -> Tensor:
        rows = ((cell >= first) & (cell <= last)).nonzero().squeeze(1)
        share = count[first : last + 1] / count[first : last + 1].sum().clamp(min=1)
        return _ridge(scaled[rows], scaled_costs[rows], towards, scaled_varies[:, first : last + 1] @ share, _LEAST)

    none = torch.zeros(len(varies), dtype=torch.float64)
    overall = pooled(1, cells - 1, none)
    constant, scale = torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    coefficients = torch.zeros(len(varies), cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if not len(rows):
            continue
        towards = pooled(max(1, c - _AROUND), min(c + _AROUND, cells - 1), overall) if c else none
        b = _ridge(centred[rows], costs[rows], towards, varies[:, c], _LEAST * float(unit[c]) ** 2)
        coefficients[:, c] = b
        constant[c] = (seen.costs[rows] - features[rows] @ b).mean()
        left = (costs[rows] - centred[rows] @ b).square().sum()
        freedom = len(rows) - 1 - len(b) * len(rows) / (len(rows) + _SHRINK)
        scale[c] = (left / max(freedom, 1.0)).sqrt()
    if bool(models.any()):
        scale[1:] = _informed(scale[1:], count[1:], varied[models, 1:].sum(0), known[models, 1:].sum(0))
    mass = _allocated(plan.width, scale, count, model.decoder_uses_network)
    expected, drawn = coefficients[:expects], coefficients[expects:]
    return Plan(plan.edges, mass, constant, expected, drawn, scale, plan.controls, plan.provenance)


def _ridge(features: Tensor, target: Tensor, towards: Tensor, varies: Tensor, least: float) -> Tensor:
    """Return least-squares coefficients (F,) of a target (V,) on features (V, F) that vary by `varies` (F,), with a pull of _SHRINK draws towards given
    coefficients. Features that vary by less than `least`, such as by rounding, keep these.
    """
    unit = varies.sqrt()
    scaled = torch.where(varies > least, features / unit.clamp(min=1e-300), 0.0)
    gram = scaled.T @ scaled + _SHRINK * torch.eye(len(unit), dtype=torch.float64)
    found = torch.linalg.solve(gram, scaled.T @ (target - features @ towards))
    return towards + torch.where(varies > least, found / unit.clamp(min=1e-300), 0.0)


def _informed(scale: Tensor, count: Tensor, seen: Tensor, known: Tensor) -> Tensor:
    """Return s_c, corrected if the pilot saw less than the known variance of the controls: by the s² of neighbours per variance, times it."""
    around = [slice(max(0, c - _AROUND), c + _AROUND + 1) for c in range(len(scale))]
    squares = scale.square()
    # The median of the ratios of neighbours, since a ratio of sums would be dominated by the largest.
    ratio = squares / torch.maximum(seen, known).clamp(min=1e-300)
    lent = torch.stack([ratio[some].median() for some in around]) * known
    informative = count * (seen / known.clamp(min=1e-300)).clamp(max=1)
    return ((informative * squares + _SHRINK * lent) / (informative + _SHRINK)).sqrt()


def _allocated(width: Tensor, scale: Tensor, count: Tensor, decoder: bool) -> Tensor:
    """Return the probabilities (C + 1,) of visits, π_c ∝ n_c s_c (Neyman) smoothed over cells, with a part _FLOOR for all cells alike; the first
    cell, the reconstruction, is visited if `decoder`.
    """
    share = _smoothed(width * scale, count)
    even = torch.ones_like(share)
    if not decoder:
        share[0] = even[0] = 0
    total = share.sum()
    return even / even.sum() if not total > 0 else (1 - _FLOOR) * share / total + _FLOOR * even / even.sum()


def _smoothed(share: Tensor, count: Tensor) -> Tensor:
    """Return each cell's share, combined with that of its neighbours (except for the reconstruction) as if these were _SHRINK draws. It is at
    least a part of the largest of four around it, since a pilot that met no rare cost in a cell may have met similar ones in these.
    """
    squares = share[1:].square()
    around = torch.nn.functional.pad(squares[None, None], (1, 1), mode="replicate")[0, 0]
    lent = 0.5 * (around[:-2] + around[2:])
    mixed = ((count[1:] * squares + _SHRINK * lent) / (count[1:] + _SHRINK)).sqrt()
    wide = torch.nn.functional.pad(mixed[None, None], (2, 2), mode="replicate")[0, 0]
    most = torch.stack([wide[:-4], wide[1:-3], wide[3:-1], wide[4:]]).max(0).values
    return torch.cat([share[:1], torch.maximum(mixed, _LEAST_OF_AROUND * most)])
