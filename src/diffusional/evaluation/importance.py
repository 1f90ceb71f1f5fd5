"""The importance-weighted bound −ln (1/K) Σ_k p(x, z_k)/q(z_k|x), which falls with K toward −ln p(x) (Burda, Grosse & Salakhutdinov 2016).

The k-th draw of an item depends only on the item, the seed and k. A draw of a chain is a path z_1, …, z_T, MATH (32), which is walked latent by
latent: its noise is drawn as it is needed.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.averages import rows_per_call
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen, provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.sweep import mean_of_items
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel, Noise, device_of, evaluation_mode
from diffusional.models.chain import batch_rows
from diffusional.seeds import check_seed

# Effective draws 1/Σ share² of an item below which a few weights dominate, and the variance of the delta method is too small.
_EFFECTIVE = 10
# The part of the squared error that such items may contribute without a warning; the number of splits of an item's draws into halves.
_DOMINATED, _SPLITS = 0.1, 8
# Items of one batch at least, if they fit.
_ROWS = 32


def importance_weighted(
    model: LatentVariableModel, data: Tensor, draws: int = 64, seed: int = 0, condition: Condition | None = None
) -> Estimate:
    """Return the mean of −ln (1/K) Σ_k w_k over `data`, nats, w = p(x, z)/q(z|x), K = `draws`: a tighter bound on −ln p(x).

    In expectation it is the NELBO at K = 1 and never rises with K. The Monte Carlo error of an item is that of the delta method,
    √Var w/(√K E w). If the weights amount to fewer than 10 effective draws, 1/Σ share² with share = w/Σ w, that error would be
    too small. It is then the spread between halves of the item's draws, which errs upward. The error of the mean is the root
    of the summed squares, so that it is dominated by the worst items. It does not include how far the bound still is from
    −ln p(x).

    Raises DiffusionalError for draws < 2, before any network is called for models without importance weights (see
    `check_log_weight` of a model), such as chains in continuous time, and for weights that are not finite. Warns if
    items with fewer than 10 effective draws contribute more than a tenth of the squared error.

    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.models.vae import VAE
    >>> from diffusional.space import binary
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Unflatten(1, (8,)))
    >>> vae = VAE(torch.nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2)
    >>> importance_weighted(vae, torch.ones(5, 4), draws=8).n
    5
    """
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    with evaluation_mode(model):
        found = weighted(model, data, draws, seed, condition)
    for caveat in found.caveats:
        warnings.warn(caveat, stacklevel=2)
    return found.nelbo


def weighted(
    model: LatentVariableModel, data: Tensor, draws: int, seed: int = 0, condition: Condition | None = None
) -> Evaluation:
    """Return the importance-weighted bound as a record; `evaluate` and `importance_weighted` call this with the model in evaluation mode."""
    if draws < 2:
        raise DiffusionalError(
            f"draws must be at least 2, got {draws}: the error is estimated from the spread of the weights"
        )
    return weighted_by(model, data, (draws,), seed, condition)[draws]


def weighted_by(
    model: LatentVariableModel, data: Tensor, counts: Sequence[int], seed: int = 0, condition: Condition | None = None
) -> dict[int, Evaluation]:
    """Return the importance-weighted bounds at several K, `counts`, from the same draws, as many as the largest K, in evaluation mode.

    For a smaller K the draws are divided into groups of K, whose mean is an item's value: at K = 1 the path form of the NELBO, MATH (7). Its
    error is then that of the mean of the groups. All values have the same draws, and their differences have smaller errors than they have.

    Raises DiffusionalError as `importance_weighted` does, and for counts below 1, or of which the largest is below 2.
    """
    if not counts or min(counts) < 1 or max(counts) < 2:
        raise DiffusionalError(
            f"expected numbers of draws of at least 1, and one of at least 2, got {', '.join(map(str, counts)) or 'none'}"
        )
    model.check_log_weight()
    with torch.inference_mode():
        logs = _log_weights(model, data, max(counts), seed, condition)
    about = provenance(model, data, seed, condition)
    return {k: _record(model, *grouped(logs, k), k, max(counts), about) for k in counts}


def grouped(logs: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return −ln (1/K) Σ_k w_k (N,) of N items from ln w (M, N), its variance (N,), and the number of draws (N,) that determines it.

    If M is larger than K, the value is the mean over ⌊M/K⌋ groups, and the variance that of this mean.

    >>> values, variance, _ = grouped(torch.tensor([[0.0], [2.0]]), 1)
    >>> values, variance
    (tensor([-1.]), tensor([1.]))
    """
    groups = len(logs) // k
    if groups == 1:
        variance, effective = spread_of_weights(logs[:k])
        return math.log(k) - torch.logsumexp(logs[:k], 0), variance, effective
    each = math.log(k) - torch.logsumexp(logs[: groups * k].unflatten(0, (groups, k)), 1)
    return each.mean(0), each.var(0) / groups, torch.full_like(each[0], groups)


def _record(
    model: LatentVariableModel,
    values: Tensor,
    mc: Tensor,
    effective: Tensor,
    k: int,
    draws: int,
    about: dict[str, Any],
) -> Evaluation:
    """Return the record of values (N,) at K = `k`, from `draws` draws of each item."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise DiffusionalError(
            f"item {int(bad.nonzero()[0])} has weights whose sum is not finite and positive; nothing was left out of the mean"
        )
    caveats = few_weights(mc, effective, draws) if k == draws else []
    n = len(values)
    bound = mean_of_items(values, mc, n * draws * model.evaluations)
    items, nothing = torch.arange(n), torch.zeros(0, dtype=torch.float64)
    return Evaluation(
        nelbo=bound,
        terms={"importance_weighted": bound},
        per_item={
            "item": items,
            "nelbo": values,
            "importance_weighted": values,
            "error": mc.sqrt(),
            "draws": torch.full_like(items, draws),
        },
        levels_kl=nothing,
        levels_error=nothing,
        level_edges=torch.ones(1, dtype=torch.long),
        dimensions=model.space.dimensions,
        provenance=about
        | {"method": "importance weights", "visits": [draws, draws], "evaluations": {"draws": n * draws}},
        # As many as the weights amount to.
        freedom=float((mc.sum().square() / (mc.square() / (effective - 1).clamp(min=1)).sum()).clamp(min=1))
        if bound.error > 0
        else math.inf,
        reached=not caveats,
        caveats=tuple(caveats),
        of=f"importance-weighted bound, K = {k}",
    )


def spread_of_weights(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance (N,) of ln (1/K) Σ_k w_k of N items from their ln w (K, N), and the effective number of draws (N,), 1/Σ share².

    The variance is that of the delta method or, for fewer than 10 effective draws, that between halves if it is larger.

    >>> variance, effective = spread_of_weights(torch.zeros(16, 2))
    >>> variance, effective
    (tensor([0., 0.], dtype=torch.float64), tensor([16., 16.]))
    """
    draws = len(logs)
    share = torch.softmax(logs, 0)
    mc = draws / (draws - 1) * (share - 1 / draws).square().sum(0)
    effective = 1 / share.square().sum(0)
    few = effective < _EFFECTIVE
    return torch.where(few, torch.maximum(mc, _variance_between_halves(logs)), mc), effective


def few_weights(variance: Tensor, effective: Tensor, draws: int) -> list[str]:
    """Return the caveat of N items if those with fewer than 10 effective draws (N,) contribute more than a tenth of the summed variance (N,).

    >>> few_weights(torch.tensor([0.0, 1.0]), torch.tensor([64.0, 2.0]), draws=64)[0][:66]
    '1 of 2 items have weights that amount to fewer than 10 of 64 draws'
    """
    few = effective < _EFFECTIVE
    carried = float(variance[few].sum() / variance.sum().clamp(min=1e-300))
    if carried <= _DOMINATED:
        return []
    worst = int(effective.argmin())
    return [
        f"{int(few.sum())} of {len(effective)} items have weights that amount to fewer than {_EFFECTIVE} of {draws} draws (item {worst}: "
        f"{float(effective[worst]):.1f}), and contribute {carried:.0%} of the squared error: their bound is still far from "
        "−ln p(x). Give more draws"
    ]


def _variance_between_halves(logs: Tensor) -> Tensor:
    """Estimate the variance (N,) of ln of the mean of half the weights, from ln w (K, N); it exceeds that of all K if few dominate.

    The estimate is half the squared difference of two halves, averaged over random splits, the same for all items and on every call.
    """
    half, generator = len(logs) // 2, torch.Generator().manual_seed(0)
    squares = torch.zeros(logs.shape[1], dtype=torch.float64)
    for _ in range(_SPLITS):
        order = torch.randperm(len(logs), generator=generator)
        one, other = (torch.logsumexp(logs[some], 0) for some in (order[:half], order[half : 2 * half]))
        squares += 0.5 * (one - other).double().square() / _SPLITS
    return squares


def _log_weights(
    model: LatentVariableModel, data: Tensor, draws: int, seed: int, condition: Condition | None
) -> Tensor:
    """Return ln w (K, N)."""
    keys = item_keys(as_seen(model.space, data), seed, condition)
    device = device_of(model, data)
    parts = []
    # A path keeps two of its latents, so that the noise of a whole one need not fit into a batch.
    rows = max(rows_per_call(model), min(_ROWS, batch_rows(model.space)))
    for some in torch.arange(len(data)).split(rows):
        x = data[some].to(device)
        c = moved(rows_of(condition, some), device)

        def noise(draw: int, x: Tensor = x, some: Tensor = some) -> Noise:
            streams = [stream(keys[i], draw, b"weights") for i in some.tolist()]
            return lambda shape: normal(streams, shape).to(x)

        parts.append(torch.stack([model.walked_log_weight(x, noise(k), c) for k in range(draws)]).cpu())
    return torch.cat(parts, 1)
