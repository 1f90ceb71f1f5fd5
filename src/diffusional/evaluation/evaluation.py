"""`evaluate`: the NELBO of a data set, itemised, with both errors, by a full sweep over the levels.

Every item pays for all T costs of MATH (8), `draws` times; in continuous time [0, 1] is cut into cells and each item draws
one uniform u in each. Per item i the estimate is S_i = Σ_t KL_t,i + reconstruction + prior, and the data set's mean is over
items, each counted once.

Two errors, never mixed:

- Monte Carlo: √(Σ_i Var S_i)/N, the noise of this sweep for this data set. With several draws the variance is that between
  draws. With one draw per level it comes from neighbouring levels, collapsed in pairs after each level's mean over items is
  taken off: E (a − b)² = Var a + Var b + (E a − E b)² ≥ Var (a + b). It errs upward by what items differ in their slopes
  between neighbours: 1 to 10 % from T = 50 on.
- items: the spread of S_i over items, less its Monte Carlo part, /√N: how far another sample of N items could lie.
"""

import hashlib
import math
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffusional
from diffusional.errors import DiffusionalError
from diffusional.evaluation.noise import item_keys, stream
from diffusional.ledger import Estimate, Ledger
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel, batch_rows
from diffusional.space import Discrete, Space

# Rows of one network call, and numbers of noise held at once.
_ROWS = 2048
_NOISE = 16_000_000
# Draws of the reconstruction for each sweep; it has an error of its own.
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
        draws: sweeps over the levels; 1 where 50 or more levels of 8 or more items tell the error, else 8, unless given.
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
    if draws == 1 and (model.levels or cells) == 1:
        raise DiffusionalError("draws=1 came with a single level, which tells nothing of the error; give draws ≥ 2")
    if condition is not None and len(condition) != len(data):
        raise DiffusionalError(f"{len(condition)} conditions came for {len(data)} items; give one for each")
    levels = model.levels or cells
    draws = draws or (1 if levels >= 50 and len(data) >= 8 else 8)
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
    evaluations = data.shape[0] * (levels + _RECONSTRUCTIONS * model.likelihood.uses_network) * draws
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


@dataclass(frozen=True)
class _Part:
    """A cost's mean over draws (N,) or (N, L), and the Monte Carlo variance (N,) of that mean, summed over levels."""

    mean: Tensor
    variance: Tensor


def _kl_sweep(
    model: DiffusionModel,
    x: Tensor,
    keys: list[bytes],
    draws: int,
    levels: int,
    condition: Tensor | None,
    advance: Callable[[int], None],
) -> Tensor:
    """Every KL of a block of items, (draws, B, L) on the CPU; in continuous time each cell's share of the integral."""
    sweeps = torch.zeros(draws, len(x), levels, dtype=torch.float64)
    for draw in range(draws):
        streams = [stream(key, draw + 1) for key in keys]
        jitter = torch.from_numpy(np.stack([g.random(levels) for g in streams])).flatten()
        noise = _normal(streams, (levels, *x.shape[1:])).flatten(0, 1)
        for rows in torch.arange(len(x) * levels).split(min(_ROWS, batch_rows(model.space))):
            item, level = (rows // levels).to(x.device), rows % levels
            u = (level + jitter[rows]) / levels if model.levels is None else level + 1
            c = None if condition is None else condition[item]
            kl = model.kl_at(x[item], u.to(x.device), noise[rows].to(x), c)
            sweeps[draw].view(-1)[rows] = kl.cpu() / (levels if model.levels is None else 1)
            advance(len(rows))
    return sweeps


def _reconstructions(
    model: DiffusionModel, x: Tensor, keys: list[bytes], draws: int, condition: Tensor | None
) -> _Part:
    noise = _normal([stream(key, 0) for key in keys], (_RECONSTRUCTIONS * draws, *x.shape[1:])).to(x)
    rows = min(_ROWS, batch_rows(model.space))
    costs = torch.stack(
        [
            torch.cat(
                [
                    model.reconstruction(some, eps, None if condition is None else condition[i * rows : (i + 1) * rows])
                    for i, (some, eps) in enumerate(zip(x.split(rows), noise[:, k].split(rows), strict=True))
                ]
            )
            for k in range(noise.shape[1])
        ]
    ).cpu()
    return _Part(costs.mean(0), costs.var(0) / len(costs))


def _sweep(
    model: DiffusionModel,
    data: Tensor,
    seed: int,
    draws: int,
    levels: int,
    condition: Tensor | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Ledger, dict[str, Tensor], Tensor]:
    # Levels are exact integers; reals count as what float32 makes of them: a score must not depend on the tensor's type.
    keys = item_keys(model.space.index(data) if isinstance(model.space, Discrete) else data.float(), seed)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), data.device)
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, data.shape[0] * levels * draws)

    kl, reconstruction = [], []
    block = max(1, _NOISE // ((levels + _RECONSTRUCTIONS * draws) * model.space.dimensions))
    for start in range(0, data.shape[0], block):
        x = data[start : start + block].to(device)
        c = None if condition is None else condition[start : start + block].to(device)
        some = keys[start : start + block]
        sweeps = _kl_sweep(model, x, some, draws, levels, c, advance)
        between = sweeps.sum(2).var(0) / draws if draws > 1 else torch.zeros(len(x), dtype=torch.float64)
        kl.append(_Part(sweeps.mean(0), between))
        reconstruction.append(_reconstructions(model, x, some, draws, c))
    by_level = torch.cat([part.mean for part in kl])
    mc = {
        "reconstruction": torch.cat([part.variance for part in reconstruction]),
        "kl": torch.cat([part.variance for part in kl]) if draws > 1 else collapsed_variance(by_level),
    }
    x = data.to(device)
    ledger = Ledger(
        torch.cat([part.mean for part in reconstruction]),
        by_level.sum(1, keepdim=True),
        model.prior(x).cpu(),
        model.space.dimensions,
        {name: term.cpu() for name, term in model.extra(x).items()},
    )
    return ledger, mc, by_level.mean(0)


def _normal(streams: list[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    # float32 whatever the model's type, so that the same item sees the same noise.
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in streams]))


def collapsed_variance(one: Tensor) -> Tensor:
    """Monte Carlo variance (N,) of Σ_t KL_t from one draw per level, (N, L), by pairs of neighbouring levels; L ≥ 2.

    >>> collapsed_variance(torch.tensor([[1.0, 2.0]]))
    tensor([1.])
    """
    n, levels = one.shape
    if n > 1:
        # What neighbours differ by for all items alike is no noise; the mean takes up 1/n of the noise itself.
        one = (one - one.mean(0)) * math.sqrt(n / (n - 1))
    pairs = (one[:, : levels - levels % 2 : 2] - one[:, 1::2]).square().sum(1)
    if levels % 2:
        # The odd one out goes with its neighbour, whose variance then counts twice: upward again.
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


def fingerprint(space: Space, data: Tensor) -> str:
    """sha256 of items as a model sees them: level indices, or float32 reals, whatever type they came in."""
    items = space.index(data) if isinstance(space, Discrete) else data.float()
    return tensor_hash({"data": items})


def _provenance(model: DiffusionModel, data: Tensor, seed: int, draws: int, levels: int) -> dict[str, Any]:
    return {
        "data_sha256": fingerprint(model.space, data),
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
