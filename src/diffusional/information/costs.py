"""Draws of every cost of MATH (8), for each cell of levels, for one or several models with the same noise.

The levels are divided into cells, and each draw visits one random level in every cell, weighted by the size of the cell (MATH (22)). A
draw takes as many network evaluations as there are cells, whatever T is, and its sum is an unbiased draw of the NELBO.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, repeated, rows_of
from diffusional.errors import DiffusionalError
from diffusional.information.finite import check_samples
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import batch_rows
from diffusional.models.diffusion import DiffusionModel


def check_diffusion(model: LatentVariableModel) -> None:
    """Raise DiffusionalError unless a model has what is asked of it here: a schedule of γ, and a denoiser.

    >>> from diffusional import BinomialDiffusion, BinomialDiffusionModel, space
    >>> check_diffusion(BinomialDiffusionModel(BinomialDiffusion.constant(5), lambda z, log_snr: 0 * z, space.binary((4,))))
    Traceback (most recent call last):
    diffusional.errors.DiffusionalError: expected a DiffusionModel, a Gaussian diffusion with a denoiser, got a BinomialDiffusionModel; ...
    """
    if getattr(getattr(model, "process", None), "schedule", None) is None or getattr(model, "denoiser", None) is None:
        raise DiffusionalError(
            f"expected a DiffusionModel, a Gaussian diffusion with a denoiser, got a {type(model).__name__}; its bound is itemised by "
            "evaluate"
        )


def cell_edges(model: DiffusionModel, cells: int) -> Tensor:
    """Return the first level of each cell, and T, (C + 1,) int64, with at most one cell per level; in continuous time, edges in u.

    >>> from diffusional import Continuous, exact, likelihood, schedule
    >>> from diffusional.forward import GaussianDiffusion
    >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    >>> process = GaussianDiffusion(schedule.linear(steps=10))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
    >>> cell_edges(model, cells=3).tolist(), cell_edges(model, cells=100).tolist()
    ([1, 4, 7, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    """
    if isinstance(cells, bool) or not isinstance(cells, int) or cells < 1:
        raise DiffusionalError(f"expected cells to be at least 1, got {cells!r}")
    if model.timesteps is None:
        return torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    return torch.linspace(1, model.timesteps + 1, min(cells, model.timesteps) + 1, dtype=torch.float64).round().long()


def edge_gammas(model: DiffusionModel, edges: Tensor) -> Tensor:
    """Return γ (C + 1,) at the edges of cells, float64, on the CPU."""
    schedule = model.process.schedule
    gamma = schedule.gamma(edges) if model.steps is None else schedule.grid()[edges - 1]
    return gamma.detach().cpu()


def visit(edges: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return a uniformly drawn level (n, C) in each cell, and the weight of each cell (C,)."""
    width = (edges[1:] - edges[:-1]).double()
    at = torch.rand(n, len(width), generator=generator, dtype=torch.float64) * width
    return edges[:-1] + (at if edges.is_floating_point() else at.long()), width


def like_model(model: DiffusionModel) -> Tensor:
    """Return an empty tensor of the network's type and on its device; float64 without parameters."""
    return next((p.detach()[:0] for p in model.denoiser.parameters()), torch.empty(0, dtype=torch.float64))


@contextmanager
def at_rest(models: Sequence[DiffusionModel]) -> Iterator[None]:
    """Disable dropout and gradients within the block."""
    with evaluation_mode(*models), torch.no_grad():
        yield


def cost_draws(
    models: Sequence[DiffusionModel],
    x: Tensor,
    edges: Tensor,
    generator: torch.Generator | None,
    condition: Condition | None = None,
) -> list[Tensor]:
    """Return reconstruction, one KL per cell, prior and further terms of every item, (n, 1 + C + 1 + …) nats, float64.

    The models are evaluated with the same items, conditions (n, …), levels and noise.
    """
    check_samples(len(x))
    device = like_model(models[0]).device
    rows = max(1, min(batch_rows(model.space) for model in models) // (len(edges) - 1))
    parts: list[list[Tensor]] = [[] for _ in models]
    with at_rest(models):
        for some in torch.arange(len(x)).split(rows):
            level, width = visit(edges, len(some), generator)
            noise = torch.empty(1 + level.shape[1], len(some), *x.shape[1:], dtype=torch.float32)
            noise.normal_(generator=generator)
            c = moved(rows_of(condition, some), device)
            for model, found in zip(models, parts, strict=True):
                found.append(_costs(model, x[some].to(like_model(model)), level.to(device), width, noise, c))
    return [torch.cat(found) for found in parts]


def _costs(
    model: DiffusionModel, x: Tensor, level: Tensor, width: Tensor, noise: Tensor, condition: Condition | None
) -> Tensor:
    noise, cells = noise.to(x), level.shape[1]
    items, c = x.repeat(cells, *(1,) * (x.ndim - 1)), repeated(condition, cells)
    kl = model.kl_at(items, level.T.flatten(), noise[1:].flatten(0, 1), c).view(cells, -1).T
    columns = [model.reconstruction(x, noise[0], condition), *(kl.cpu() * width).unbind(1), model.prior(x)]
    return torch.stack([column.cpu() for column in (*columns, *model.extra(x).values())], 1)
