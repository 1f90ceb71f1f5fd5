"""`evaluate`: the NELBO of a data set, itemised, with both errors, by a full sweep over the levels.

Every item pays for all T costs of MATH (8), `draws` times; in continuous time [0, 1] is cut into cells and each item draws
one uniform u in each. Per item i the estimate is S_i = Σ_t KL_t,i + reconstruction + prior, and the data set's mean is over
items, each counted once.

Two errors, never mixed:

- Monte Carlo: √(Σ_i Var S_i)/N, the noise of this sweep for this data set. With several draws the variance is that between
  draws. With one draw per level it comes from neighbouring levels, collapsed in pairs: E (a − b)² = Var a + Var b +
  (E a − E b)² ≥ Var (a + b), so that it errs upward, by the little that neighbours differ.
- items: the spread of S_i over items, less its Monte Carlo part, /√N: how far another sample of N items could lie.
"""

import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffusional
from diffusional.errors import DiffusionalError
from diffusional.evaluation.noise import item_keys, stream
from diffusional.ledger import Estimate, Ledger
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel

# Rows of one network call, and numbers of noise held at once.
_ROWS = 2048
_NOISE = 16_000_000
# Draws of the reconstruction, which has an error of its own.
_RECONSTRUCTIONS = 4


@dataclass(frozen=True)
class Evaluation:
    """The bound of a data set. `per_item` maps "nelbo" and every cost to (N,) float64 nats, and "mc_variance" likewise.

    `levels_kl` (L,) is the mean cost of every level, nats; `terms` and `nelbo` are Estimates in nats.
    """

    nelbo: Estimate
    terms: Mapping[str, Estimate]
    per_item: Mapping[str, Tensor]
    levels_kl: Tensor
    dimensions: int
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The record that `diffusional evaluate --json` writes."""
        return {
            "nelbo": self.nelbo.to("bits/dim", self.dimensions).to_dict(),
            "nelbo_nats": self.nelbo.to_dict(),
            "terms": {name: term.to_dict() for name, term in self.terms.items()},
            "levels_kl": self.levels_kl.tolist(),
            "items": self.nelbo.n,
            "dimensions": self.dimensions,
            "levels": self.provenance.get("levels"),
            "network_evaluations": self.nelbo.network_evaluations,
            "provenance": dict(self.provenance),
        }

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def evaluate(
    model: LatentVariableModel,
    data: Tensor,
    seed: int = 0,
    draws: int | None = None,
    cells: int = 1000,
    condition: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """The NELBO of `data` (N, *space.shape), encoded, by a full sweep: T network evaluations per item and draw.

    Args:
        seed: of the noise, which else depends on each item alone: scores don't change with batch-mates, order or subset.
        draws: sweeps over the levels; 1 for T ≥ 50, else 8, unless given.
        cells: in continuous time, how many cells [0, 1] is cut into.
        condition: (N, …) for conditional models.
        progress: called with (rows done, rows in all).

    Raises DiffusionalError for data that the space refuses and for a cost that is not finite, naming the item.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=500))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> result = evaluate(model, world.sample(100, torch.Generator().manual_seed(0)))
    >>> abs(result.nelbo.value - world.entropy()) < 0.3, result.nelbo.network_evaluations       # of N T, and 4 for z_1
    (True, 50300)
    """
    if not isinstance(model, DiffusionModel):
        raise DiffusionalError(f"a {type(model).__name__} came; evaluate sweeps the levels of a DiffusionModel")
    model.space.check(data)
    if (draws is not None and draws < 1) or cells < 1:
        raise DiffusionalError(f"draws={draws} and cells={cells} came; both must be at least 1")
    if condition is not None and len(condition) != len(data):
        raise DiffusionalError(f"{len(condition)} conditions came for {len(data)} items; give one for each")
    levels = model.levels or cells
    draws = draws or (1 if levels >= 50 else 8)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ledger, mc, levels_kl = _sweep(model, data, seed, draws, levels, condition, progress)
    finally:
        model.train(was_training)
    totals = {name: term.cpu() for name, term in ledger.totals().items()}
    nelbo = ledger.nelbo.cpu()
    if not bool(torch.isfinite(nelbo).all()):
        item = int((~torch.isfinite(nelbo)).nonzero()[0])
        parts = ", ".join(f"{name} = {float(term[item]):g}" for name, term in totals.items())
        raise DiffusionalError(f"item {item} has a cost that is not finite: {parts}; nothing was left out of the mean")
    evaluations = data.shape[0] * (levels * draws + _RECONSTRUCTIONS * model.likelihood.uses_network)
    zero = torch.zeros_like(nelbo)
    terms = {name: _estimate(term, mc.get(name, zero), evaluations) for name, term in totals.items()}
    return Evaluation(
        nelbo=_estimate(nelbo, sum(mc.values(), zero), evaluations),
        terms=terms,
        per_item={"nelbo": nelbo, **totals, "mc_variance": sum(mc.values(), zero)},
        levels_kl=levels_kl,
        dimensions=model.space.dimensions,
        provenance=_provenance(model, data, seed, draws, levels),
    )


def _estimate(values: Tensor, mc_variance: Tensor, evaluations: int) -> Estimate:
    n = len(values)
    between = float(values.var()) if n > 1 else math.nan
    items = math.sqrt(max(between - float(mc_variance.mean()), 0.0) / n) if n > 1 else math.nan
    return Estimate(float(values.mean()), float(mc_variance.sum().sqrt()) / n, items, n, evaluations)


def _sweep(
    model: DiffusionModel,
    data: Tensor,
    seed: int,
    draws: int,
    levels: int,
    condition: Tensor | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Ledger, dict[str, Tensor], Tensor]:
    keys = item_keys(data, seed)
    shape = data.shape[1:]
    device = next((t.device for t in (*model.parameters(), *model.buffers())), data.device)
    per_block = max(1, _NOISE // ((levels + _RECONSTRUCTIONS) * model.space.dimensions))
    rows_total, rows_done = data.shape[0] * levels * draws, 0
    kl_items, kl_variance, reconstruction, rec_variance = [], [], [], []
    levels_kl = torch.zeros(levels, dtype=torch.float64)
    for start in range(0, data.shape[0], per_block):
        x = data[start : start + per_block].to(device)
        c = None if condition is None else condition[start : start + per_block].to(device)
        block_keys = keys[start : start + per_block]
        sweeps = torch.zeros(draws, len(x), levels, dtype=torch.float64)
        for draw in range(draws):
            streams = [stream(key, draw + 1) for key in block_keys]
            jitter = torch.from_numpy(np.stack([g.random(levels) for g in streams]))
            noise = _normal(streams, (levels, *shape), x.dtype)
            for a, b in _pieces(len(x) * levels):
                item = torch.arange(a, b) // levels
                level = torch.arange(a, b) % levels
                u = (level + jitter.flatten()[a:b]) / levels if model.levels is None else level + 1
                rows = noise.flatten(0, 1)[a:b].to(device)
                pick = item.to(device)
                kl = model.kl_at(x[pick], u.to(device), rows, None if c is None else c[pick])
                sweeps[draw].view(-1)[a:b] = kl.double().cpu() / (levels if model.levels is None else 1)
                rows_done += b - a
                if progress is not None:
                    progress(rows_done, rows_total)
        firsts = [stream(key, 0) for key in block_keys]
        noise = _normal(firsts, (_RECONSTRUCTIONS, *shape), x.dtype).to(device)
        costs = torch.stack([model.reconstruction(x, noise[:, i], c) for i in range(_RECONSTRUCTIONS)]).double().cpu()
        reconstruction.append(costs.mean(0))
        rec_variance.append(costs.var(0) / _RECONSTRUCTIONS)
        kl_items.append(sweeps.mean(0).sum(1))
        kl_variance.append(_variance(sweeps))
        levels_kl += sweeps.mean(0).sum(0)
    x = data.to(device)
    ledger = Ledger(
        torch.cat(reconstruction),
        torch.cat(kl_items).unsqueeze(1),
        model.prior(x).cpu(),
        model.space.dimensions,
        {name: term.cpu() for name, term in model.extra(x).items()},
    )
    mc = {"reconstruction": torch.cat(rec_variance), "kl": torch.cat(kl_variance)}
    return ledger, mc, levels_kl / data.shape[0]


def _normal(streams: list[np.random.Generator], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    kind = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=kind) for g in streams])).to(dtype)


def _pieces(rows: int) -> list[tuple[int, int]]:
    return [(a, min(a + _ROWS, rows)) for a in range(0, rows, _ROWS)]


def _variance(sweeps: Tensor) -> Tensor:
    """Monte Carlo variance (N,) of the mean over draws of Σ_t KL_t, from sweeps (draws, N, L)."""
    draws, _, levels = sweeps.shape
    if draws > 1:
        return sweeps.sum(2).var(0) / draws
    one = sweeps[0]
    if levels == 1:
        return torch.full((one.shape[0],), math.nan, dtype=one.dtype)
    pairs = (one[:, : levels - levels % 2 : 2] - one[:, 1::2]).square().sum(1)
    if levels % 2:
        # The odd one out goes with its neighbour; (a − b)² counts b's variance twice, upward again.
        pairs = pairs + (one[:, -1] - one[:, -2]).square()
    return pairs


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, types and bytes.

    >>> tensor_hash({"w": torch.zeros(2)}) == tensor_hash({"w": torch.ones(2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _provenance(model: DiffusionModel, data: Tensor, seed: int, draws: int, levels: int) -> dict[str, Any]:
    return {
        "data_sha256": tensor_hash({"data": data.double()}),
        "weights_sha256": tensor_hash(model.state_dict()),
        "space": model.space.to_dict(),
        "levels": model.space.levels,
        "latents": model.steps,
        "cells": levels if model.levels is None else None,
        "draws": draws,
        "seed": seed,
        "method": "full sweep",
        "versions": {
            "diffusional": diffusional.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": " ".join(sys.argv),
    }
