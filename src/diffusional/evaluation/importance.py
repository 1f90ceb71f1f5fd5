"""The importance-weighted bound −ln (1/K) Σ_k p(x, z_k)/q(z_k|x), which falls with K toward −ln p(x) (Burda, Grosse & Salakhutdinov 2016).

The k-th draw of an item depends only on the item, the seed and k.
"""

import math
import warnings

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
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.seeds import check_seed

# Effective draws 1/Σ share² of an item below which a few weights dominate, and the variance of the delta method is too small.
_EFFECTIVE = 10
# The part of the squared error that such items may contribute without a warning; the number of splits of an item's draws into halves.
_DOMINATED, _SPLITS = 0.1, 8


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
    `check_log_weight` of a model), such as those with a diffusion prior, and for weights that are not finite. Warns if
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
    model.check_log_weight()
    with torch.inference_mode():
        logs = _log_weights(model, data, draws, seed, condition)
    values = math.log(draws) - torch.logsumexp(logs, 0)
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise DiffusionalError(
            f"item {int(bad.nonzero()[0])} has weights whose sum is not finite and positive; nothing was left out of the mean"
        )
    share = torch.softmax(logs, 0)
    mc = draws / (draws - 1) * (share - 1 / draws).square().sum(0)
    effective = 1 / share.square().sum(0)
    few = effective < _EFFECTIVE
    mc = torch.where(few, torch.maximum(mc, _variance_between_halves(logs)), mc)
    carried = float(mc[few].sum() / mc.sum().clamp(min=1e-300))
    caveats = []
    if carried > _DOMINATED:
        worst = int(effective.argmin())
        caveats.append(
            f"{int(few.sum())} of {len(values)} items have weights that amount to fewer than {_EFFECTIVE} of {draws} draws (item {worst}: "
            f"{float(effective[worst]):.1f}), and contribute {carried:.0%} of the squared error: their bound is still far from "
            "−ln p(x). Give more draws"
        )
    bound = mean_of_items(values, mc, len(values) * draws * model.evaluations)
    items, nothing = torch.arange(len(data)), torch.zeros(0, dtype=torch.float64)
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
        provenance=provenance(model, data, seed, condition)
        | {"method": "importance weights", "visits": [draws, draws], "evaluations": {"draws": len(data) * draws}},
        # As many as the weights amount to.
        freedom=float((mc.sum().square() / (mc.square() / (effective - 1).clamp(min=1)).sum()).clamp(min=1))
        if bound.error > 0
        else math.inf,
        reached=not caveats,
        caveats=tuple(caveats),
        of=f"importance-weighted bound, K = {draws}",
    )


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
    for some in torch.arange(len(data)).split(rows_per_call(model)):
        x = data[some].to(device)
        c = moved(rows_of(condition, some), device)
        noises = (
            normal([stream(keys[i], k, b"weights") for i in some.tolist()], model.noise_shape) for k in range(draws)
        )
        parts.append(torch.stack([model.log_weight(x, noise.to(x), c) for noise in noises]).cpu())
    return torch.cat(parts, 1)
