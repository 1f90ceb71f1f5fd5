"""Cost maps of systems of several models: those of their stages, brought to the positions of x.

The bound of a composite is a sum over its stages (MATH (28)–(30)), and so is its map. A position of a stage's variable that is made of a block of
f × f pixels of x hands each of them 1/f² of its cost, so that the sum over the pixels remains the stage's cost. The costs of a latent, such as
the output of a frozen encoder, belong to no pixel: such a stage has no map, and the sum of the others is not the whole bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import as_the_network, check_model
from diffusional.evaluation.maps import cost_map
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen
from diffusional.files import writing
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.chain import batch_rows
from diffusional.models.composite import Composite, enlarged
from diffusional.models.direct import DirectModel
from diffusional.models.renoised import Renoised
from diffusional.seeds import check_seed

# Draws of the stages' variables of an item, if a visit does not draw them anew.
_VARIABLES = 8
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class StageMaps:
    """What `stage_maps` returns.

    Attributes:
        stages: nats at every position of x, (N, *dims), float64, by the name of the stage.
        error: the Monte Carlo standard error of each, likewise.
        missing: why a stage has no map, by its name.
        blocks: the side of the block of positions of x that a position of each stage stands for.

    >>> one = torch.ones(1, 2, dtype=torch.float64)
    >>> StageMaps({"base": one, "top": 2 * one}, {"base": one, "top": one}, {}, {"base": 2, "top": 1}).total
    tensor([[3., 3.]], dtype=torch.float64)
    """

    stages: Mapping[str, Tensor]
    error: Mapping[str, Tensor]
    missing: Mapping[str, str]
    blocks: Mapping[str, int]

    @property
    def total(self) -> Tensor:
        """The sum of the maps (N, *dims): of all stages but those that are missing."""
        return torch.stack(list(self.stages.values())).sum(0)

    def save(self, path: str | Path, item: Tensor | None = None) -> None:
        """Write a .npz file with "total", and for every stage with a map "NAME" and "NAME.error", (N, *dims) each. With `item` (N,), the numbers
        of the items in their data, also "item".

        Raises DiffusionalError for another suffix, and a file that cannot be written.
        """
        import numpy as np

        path = Path(path)
        if path.suffix != ".npz":
            raise DiffusionalError(f"expected a .npz file for cost maps, got {path}; rename it")
        arrays = {} if item is None else {"item": item}
        arrays |= {"total": self.total} | dict(self.stages)
        arrays |= {f"{name}.error": error for name, error in self.error.items()}
        with writing(path) as (part,), part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})


def stage_maps(
    model: Composite, x: Tensor, *, visits: int = 64, condition: Condition | None = None, seed: int = 0
) -> StageMaps:
    """Return which positions of items x (N, *space.shape), encoded, the costs of every stage of a system come from, in nats.

    Args:
        visits: network evaluations of each item by each stage.
        condition, seed: as in `evaluate`.

    Raises DiffusionalError if no stage has a map, for fewer than 2 visits, and as `evaluate` does.

    >>> from diffusional import Continuous, DiffusionModel, FrozenEncoder, GaussianDiffusion, exact, likelihood, schedule
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    >>> denoiser = exact.Gaussian(torch.zeros(1), torch.eye(1)).denoiser()
    >>> prior = DiffusionModel(process, denoiser, likelihood.GaussianLikelihood(Continuous((1,))))
    >>> decoder = DirectModel(torch.nn.Linear(1, 2), likelihood.GaussianLikelihood(Continuous((2,)), variance=0.5))
    >>> maps = stage_maps(FrozenEncoder(torch.nn.Linear(2, 1), prior, decoder), torch.zeros(3, 2))
    >>> {name: tuple(found.shape) for name, found in maps.stages.items()}, maps.missing
    ({'decoder': (3, 2)}, {'prior': 'the positions of its variable, of shape (1,), are not blocks of positions of x'})
    """
    check_model(model)
    model.space.check(x)
    check_condition(condition, len(x))
    check_seed(seed)
    if visits < 2:
        raise DiffusionalError(
            f"expected visits to be at least 2, got {visits}: an error is estimated from the spread of the draws"
        )
    x = as_the_network(model, x)
    keys = item_keys(x, seed, condition, lambda rows: as_seen(model.space, rows))
    stages, errors, missing, blocks = dict[str, Tensor](), dict[str, Tensor](), dict[str, str](), dict[str, int]()
    with evaluation_mode(model):
        place = device_of(model, x)
        with torch.no_grad():
            kept = model.encoded(x.to(place))
        for name, stage in model.models():
            block = model.block(name)
            if block is None:
                missing[name] = (
                    f"the positions of its variable, of shape {stage.space.shape}, are not blocks of positions of x"
                )
                continue
            inner = stage.model if isinstance(stage, Renoised) else stage
            # A variable that is drawn has several draws for each item, which share the visits.
            draws = 1 if not model.drawn else visits if isinstance(inner, DirectModel) else min(_VARIABLES, visits)
            rows = torch.arange(len(x)).repeat_interleave(draws)
            noise = normal(
                [stream(keys[i], v, b"variables") for i in range(len(x)) for v in range(draws)], (model.drawn,)
            )
            at, c = rows.to(place), moved(rows_of(condition, rows), place)
            with torch.no_grad():
                item, given = model.given(
                    name, x[rows].to(place), noise.to(place, x.dtype), c, tuple(one[at] for one in kept)
                )
            try:
                if isinstance(inner, DirectModel):
                    # Of keys of x, since f(x) may differ in the last bits with the batch.
                    own = [keys[i] + v.to_bytes(8, "little") for i in range(len(x)) for v in range(draws)]
                    found, error = _direct_map(stage, inner, item, given, visits // draws, own)
                else:
                    found, error = _chain_map(stage, item, given, max(2, visits // draws), seed)
            except DiffusionalError as reason:
                missing[name] = str(reason)
                continue
            found, error = _averaged(found, error, draws)
            stages[name], errors[name] = _spread(found, block), _spread(error, block)
            blocks[name] = block
    if not stages:
        raise DiffusionalError(
            f"expected a stage with costs by position, got none: {'; '.join(f'{name}: {why}' for name, why in missing.items())}"
        )
    return StageMaps(stages, errors, missing, blocks)


def about_maps(maps: StageMaps) -> str:
    """Return of which stages of a system the cost maps are, in sentences.

    >>> one = torch.zeros(1, 1, 4, 4)
    >>> about_maps(StageMaps({"base": one, "top": one}, {}, {}, {"base": 2, "top": 1}))
    'A map is the sum of those of stages base and top. A pixel of stage base is a block of 2 × 2 pixels of the image, which share its cost evenly.'
    >>> about_maps(StageMaps({"decoder": one}, {}, {"prior": "its latents are not positions of x"}, {"decoder": 1}))
    'A map is that of stage decoder. Stage prior has no map: its latents are not positions of x. Its costs are not in the pictures.'
    """
    *others, last = maps.stages
    whose = f"the sum of those of stages {', '.join(others)} and {last}" if others else f"that of stage {last}"
    lines = [f"A map is {whose}."]
    for name, block in maps.blocks.items():
        if block > 1:
            lines.append(
                f"A pixel of stage {name} is a block of {block} × {block} pixels of the image, which share its cost evenly."
            )
    for name, why in maps.missing.items():
        lines.append(f"Stage {name} has no map: {why}. Its costs are not in the pictures.")
    return " ".join(lines)


def _chain_map(
    stage: LatentVariableModel, x: Tensor, condition: Condition | None, visits: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the map of a stage with levels and its standard error, each (N, *dims)."""
    if stage.visited() is None:
        raise DiffusionalError(f"it is a {type(stage).__name__}, whose latents are not positions of x")
    maps = cost_map(stage, x.cpu(), visits=visits, condition=moved(condition, _CPU), seed=seed)
    return maps.total, maps.error


def _direct_map(
    stage: LatentVariableModel,
    inner: DirectModel,
    x: Tensor,
    condition: Condition | None,
    visits: int,
    keys: Sequence[bytes],
) -> tuple[Tensor, Tensor]:
    """Return −ln p(x_d|c) at every position, on average over `visits` draws of a noised condition, and its standard error."""
    draws = visits if isinstance(stage, Renoised) else 1
    total = torch.zeros(x.shape, dtype=torch.float64)
    squares = total.clone()
    with torch.inference_mode():
        jacobian = inner.space.log_jacobian_map()
        for rows in torch.arange(len(x)).split(batch_rows(inner.space)):
            at = rows.to(x.device)
            some, c = x[at], rows_of(condition, at)
            for v in range(draws):
                given = c
                if isinstance(stage, Renoised):
                    noise = normal([stream(keys[i], v, b"condition") for i in rows.tolist()], (stage.drawn,))
                    given = stage.noised(c, noise.to(x.device, x.dtype))
                costs = inner.reconstruction_map(some, given).cpu()
                total[rows] += costs
                squares[rows] += costs.square()
    mean = total / draws
    variance = (squares / draws - mean.square()).clamp(min=0) / max(1, draws - 1)
    return mean + jacobian, variance.sqrt()


def _averaged(found: Tensor, error: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return the mean of maps (N · draws, *dims) over the draws of an item, and its standard error."""
    if draws == 1:
        return found, error
    every = found.unflatten(0, (-1, draws))
    return every.mean(1), every.std(1) / draws**0.5


def _spread(costs: Tensor, block: int) -> Tensor:
    """Return costs (N, C, h, w) at the positions of x, each divided evenly over its block.

    >>> _spread(torch.tensor([[[[4.0]]]]), 2)
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    if block == 1:  # other items than images have no width
        return costs
    return enlarged(costs, block) / block**2
