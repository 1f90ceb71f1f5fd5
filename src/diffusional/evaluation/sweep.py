"""Full sweeps over the levels: all T costs of MATH (8) of every item, `draws` times.

In continuous time, [0, 1] is divided into cells, and each item draws one uniform u in each. The estimate for item i is
S_i = Σ_t KL_t,i + reconstruction + prior, and that of the data set is the mean over items, each counted once.

There are two errors, which are reported separately:

- Monte Carlo: √(Σ_i Var S_i)/N, the noise of this sweep for this data set. With several draws, the variance is that between draws. With one
  draw per level it is estimated from pairs of neighbouring levels, after subtracting each level's mean over items:
  E (a − b)² = Var a + Var b + (E a − E b)² ≥ Var (a + b). This overestimates the variance, by 1 to 10 % for T ≥ 50, since the costs of
  neighbours differ by an amount that depends on the item.
- items: the standard deviation of S_i over items, without its Monte Carlo part, divided by √N: the variation from one sample of N items to
  another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen, gamma_at, provenance
from diffusional.evaluation.result import Evaluation
from diffusional.ledger import Estimate, Ledger, error_over_items, satterthwaite
from diffusional.models.base import device_of
from diffusional.models.chain import Chain, batch_rows, cost_of

# Rows of one network call, and numbers of noise held at once.
_ROWS = 2048
_NOISE = 16_000_000
# Draws of the reconstruction for each sweep; it has an error of its own.
_RECONSTRUCTIONS = 4


@torch.inference_mode()
def sweep(
    model: Chain,
    data: Tensor,
    seed: int = 0,
    draws: int | None = None,
    cells: int = 1000,
    condition: Condition | None = None,
    progress: Callable[[int, int], None] | None = None,
    deterministic: bool = False,
) -> Evaluation:
    """Evaluate by full sweeps, for `evaluate` without a target. `progress` is called with (rows done, number of rows). With `deterministic`
    every item is swept by itself, so that its batches do not depend on the number of processes.
    """
    if (draws is not None and draws < 1) or cells < 1:
        raise DiffusionalError(f"expected draws and cells to be at least 1, got draws={draws} and cells={cells}")
    if draws == 1 and (model.timesteps or cells) == 1:
        raise DiffusionalError(
            "expected draws to be at least 2 for a single level, whose error one draw does not show, got 1"
        )
    levels = model.timesteps or cells
    draws = draws or (1 if levels >= 50 and len(data) >= 8 else 8)
    ledger, mc, by_level, level_variance, freedom = _sweep(
        model, data, seed, draws, levels, condition, progress, 1 if deterministic else None
    )
    totals = {name: term.cpu() for name, term in ledger.totals().items()}
    nelbo = ledger.nelbo.cpu()
    if not bool(torch.isfinite(nelbo).all()):
        item = int((~torch.isfinite(nelbo)).nonzero()[0])
        parts = ", ".join(f"{name} = {float(term[item]):g}" for name, term in totals.items())
        raise DiffusionalError(f"item {item} has a cost that is not finite: {parts}; nothing was left out of the mean")
    evaluations = len(data) * (levels + _RECONSTRUCTIONS * model.decoder_uses_network) * draws
    zero = torch.zeros_like(nelbo)
    variance = sum(mc.values(), zero)
    edges = torch.arange(levels + 1)
    edges = edges / levels if model.timesteps is None else edges + 1
    return Evaluation(
        nelbo=mean_of_items(nelbo, variance, evaluations),
        terms={name: mean_of_items(term, mc.get(name, zero), evaluations) for name, term in totals.items()},
        per_item={"item": torch.arange(len(data)), "nelbo": nelbo, **totals, "error": variance.sqrt()},
        levels_kl=by_level.mean(0),
        levels_error=level_variance.sum(0).sqrt() / len(data),
        level_edges=edges,
        gamma_edges=gamma_at(model, edges),
        dimensions=model.space.dimensions,
        freedom=freedom,
        provenance=provenance(model, data, seed, condition)
        | {"method": "full sweep", "draws": draws, "cells": levels if model.timesteps is None else None}
        | ({"deterministic": True} if deterministic else {}),
    )


def mean_of_items(values: Tensor, mc_variance: Tensor, evaluations: int) -> Estimate:
    """Return the mean of every item's value (N,), with its Monte Carlo error and that over items, from each value's own variance (N,)."""
    n = len(values)
    items = error_over_items(values, mc_variance, n)
    return Estimate(float(values.mean()), float(mc_variance.sum().sqrt()) / n, items, n, evaluations)


@dataclass(frozen=True)
class _Part:
    """A cost's mean over draws (N,) or (N, L), and the Monte Carlo variance (N,) of that mean, summed over levels."""

    mean: Tensor
    variance: Tensor


def _kl_sweep(
    model: Chain,
    x: Tensor,
    keys: list[bytes],
    draws: int,
    levels: int,
    condition: Condition | None,
    advance: Callable[[int], None],
) -> Tensor:
    """Return all KLs of a block of items, (draws, B, L) on the CPU; in continuous time each cell's share of the integral."""
    sweeps = torch.zeros(draws, len(x), levels, dtype=torch.float64)
    for draw in range(draws):
        streams = [stream(key, draw + 1) for key in keys]
        jitter = torch.from_numpy(np.stack([g.random(levels) for g in streams])).flatten()
        noise = normal(streams, (levels, *x.shape[1:])).flatten(0, 1)
        for rows in torch.arange(len(x) * levels).split(min(_ROWS, batch_rows(model.space))):
            item, level = (rows // levels).to(x.device), rows % levels
            u = (level + jitter[rows]) / levels if model.timesteps is None else level + 1
            c = rows_of(condition, item)
            kl = model.kl_at(x[item], u.to(x.device), noise[rows].to(x), c)
            sweeps[draw].view(-1)[rows] = kl.cpu() / (levels if model.timesteps is None else 1)
            advance(len(rows))
    return sweeps


def _reconstructions(model: Chain, x: Tensor, keys: list[bytes], draws: int, condition: Condition | None) -> _Part:
    noise = normal([stream(key, 0) for key in keys], (_RECONSTRUCTIONS * draws, *x.shape[1:])).to(x)
    rows = min(_ROWS, batch_rows(model.space))
    costs = torch.stack(
        [
            torch.cat(
                [
                    cost_of(
                        model,
                        "reconstruction",
                        model.reconstruction(some, eps, rows_of(condition, slice(i * rows, (i + 1) * rows))),
                        len(some),
                    )
                    for i, (some, eps) in enumerate(zip(x.split(rows), noise[:, k].split(rows), strict=True))
                ]
            )
            for k in range(noise.shape[1])
        ]
    ).cpu()
    return _Part(costs.mean(0), costs.var(0) / len(costs))


def _sweep(
    model: Chain,
    data: Tensor,
    seed: int,
    draws: int,
    levels: int,
    condition: Condition | None,
    progress: Callable[[int, int], None] | None,
    together: int | None = None,
) -> tuple[Ledger, dict[str, Tensor], Tensor, Tensor, float]:
    keys = item_keys(as_seen(model.space, data), seed, condition)
    device = device_of(model, data)
    # Before the sweep, so that a wrong shape does not end a long one.
    prior = cost_of(model, "prior", model.prior(data.to(device)), len(data)).cpu()
    mine, done = ranks.share(len(data)), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, len(mine) * draws * (levels + _RECONSTRUCTIONS * model.decoder_uses_network))

    n = len(data)
    by_level, level_variance = (torch.zeros(n, levels, dtype=torch.float64) for _ in range(2))
    kl_variance, cost, cost_variance = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    block = max(1, _NOISE // ((levels + _RECONSTRUCTIONS * draws) * model.space.dimensions))
    for rows in mine.split(together or block):
        x = data[rows].to(device)
        c = moved(rows_of(condition, rows), device)
        some = [keys[i] for i in rows.tolist()]
        sweeps = _kl_sweep(model, x, some, draws, levels, c, advance)
        by_level[rows] = sweeps.mean(0)
        if draws > 1:
            kl_variance[rows], level_variance[rows] = sweeps.sum(2).var(0) / draws, sweeps.var(0) / draws
        part = _reconstructions(model, x, some, draws, c)
        if model.decoder_uses_network:
            advance(len(rows) * draws * _RECONSTRUCTIONS)
        cost[rows], cost_variance[rows] = part.mean.double(), part.variance.double()
    by_level, level_variance, kl_variance, cost, cost_variance = (
        ranks.collect(values) for values in (by_level, level_variance, kl_variance, cost, cost_variance)
    )
    if draws == 1:
        level_variance = collapsed_variance(by_level)
        kl_variance = level_variance.sum(1)
    # A pair of levels is one degree of freedom, half of one for each.
    of_kl = (level_variance, 0.5) if draws == 1 else (kl_variance, draws - 1)
    freedom = satterthwaite(of_kl, (cost_variance, _RECONSTRUCTIONS * draws - 1))
    mc = {"reconstruction": cost_variance, "kl": kl_variance}
    x = data.to(device)
    extra = {name: term.cpu() for name, term in model.extra(x).items()}
    ledger = Ledger(cost, by_level.sum(1, keepdim=True), prior, model.space.dimensions, extra)
    return ledger, mc, by_level, level_variance, freedom


def collapsed_variance(one: Tensor) -> Tensor:
    """Return the Monte Carlo variance (N, L) of each level's cost from one draw per level, (N, L), by pairs of neighbours; L ≥ 2.

    The variances of a pair add up to (a − b)², and those of all levels to the variance of the sum.

    >>> collapsed_variance(torch.tensor([[1.0, 2.0]]))
    tensor([[0.5000, 0.5000]])
    """
    n, levels = one.shape
    if n > 1:
        # The mean difference of neighbours over all items is not noise. Its subtraction also removes 1/n of the noise.
        one = (one - one.mean(0)) * math.sqrt(n / (n - 1))
    even = levels - levels % 2
    half = 0.5 * (one[:, :even:2] - one[:, 1::2]).square()
    out = half.repeat_interleave(2, 1)
    if levels % 2:
        # The last of an odd number of levels is paired with its neighbour, which again overestimates the variance.
        out = torch.cat([out, (one[:, -1:] - one[:, -2:-1]).square()], 1)
    return out
