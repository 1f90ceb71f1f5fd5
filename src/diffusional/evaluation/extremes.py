"""The most and the least likely items of a data set, chosen by some draws and reported by others.

The item with the lowest of many noisy scores is likely to be one whose noise was low: the draws that choose an item cannot report it without
bias. So there are up to three rounds, each with its own noise:

    1. `score` draws every item.
    2. Those that its errors leave in doubt, near either end, are drawn again, more often the larger their errors. All draws so far choose
       the items at the ends.
    3. The chosen items are drawn once more, and these draws are their reported scores.

How often an item is drawn depends on earlier rounds only, so that a reported score is an unbiased estimate of the NELBO of its item, whatever
led to the choice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import evaluate
from diffusional.evaluation.score import Scores, percentiles
from diffusional.models.base import LatentVariableModel
from diffusional.seeds import SEEDS, check_seed

# An error is small beside this part of the interquartile range of the scores.
_PRECISION = 0.25
# Items in doubt at each end, for each item that is reported there.
_DOUBTED = 3
# Standard errors by which an item's score may be off for it to be in doubt.
_SIGMAS = 2.0


@dataclass(frozen=True, eq=False)
class Extremes:
    """What `extremes` returns: the items at either end, by their numbers in the data, with scores of draws that did not choose them.

    Attributes:
        most_likely, least_likely: (k,) numbers of items, the most extreme first.
        item: (m,) the numbers of all of these, ascending.
        nelbo, error: (m,) nats, their scores from new draws, and the Monte Carlo errors.
        visits: (m,) network evaluations of each of these scores.
        percentile: (m,) the percentage of reference items that cost less; None without a reference.
        evaluations: network evaluations of all items together beyond those of `score`.
    """

    most_likely: Tensor
    least_likely: Tensor
    item: Tensor
    nelbo: Tensor
    error: Tensor
    visits: Tensor
    percentile: Tensor | None
    evaluations: int

    def place(self, item: int) -> int:
        """Return the place of an item in `item`, `nelbo`, `error`, `visits` and `percentile`. Raises DiffusionalError for other items."""
        found = (self.item == item).nonzero().flatten()
        if not len(found):
            raise DiffusionalError(f"expected one of the items {self.item.tolist()}, got {item}")
        return int(found[0])


def extremes(
    model: LatentVariableModel,
    data: Tensor,
    scores: Scores,
    count: int = 5,
    *,
    most: int = 16,
    condition: Condition | None = None,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> Extremes:
    """Return the `count` most and least likely items of `data`, with scores that are not biased by the choice.

    Args:
        model, data, condition, seed: those of `score`.
        scores: what `score` returned for them.
        count: of items at each end.
        most: the limit on the draws of an item in each round, in multiples of its draws in `scores`. Items whose errors are small take as many
            as in `scores`. At most (8 count) · most · visits evaluations are made, and mostly far fewer.
        progress: as in `evaluate`.

    Raises DiffusionalError for scores of other data, and for `count` and `most` below 1.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule, score
    >>> world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=100))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((4,))))
    >>> x = world.sample(200, torch.Generator().manual_seed(0))
    >>> x[7] = 6.0
    >>> ends = extremes(model, x, score(model, x), count=2)
    >>> int(ends.least_likely[0]), ends.item.shape
    (7, torch.Size([4]))
    """
    n = len(data)
    if len(scores.nelbo) != n:
        raise DiffusionalError(f"expected scores of the {n} items of data, got scores of {len(scores.nelbo)}")
    for name, value in (("count", count), ("most", most)):
        if value < 1:
            raise DiffusionalError(f"expected {name} to be at least 1, got {value}")
    check_condition(condition, n)
    check_seed(seed)
    count = min(count, n)
    target = _PRECISION * scores.spread
    first = scores.evaluation.per_item
    drawn = first["draws"][first["item"].argsort()].double()
    plain = int(drawn.max())
    spent = 0

    def visits_of(error: Tensor, draws: Tensor) -> Tensor:
        """Return how many draws an error needs to reach the target: `plain` times a power of four, so that items are drawn in few groups."""
        ratio = draws * (error / target).square() / plain if target > 0 else torch.full_like(error, float(most))
        power = 4 ** (0.5 * torch.log2(ratio.clamp(min=1))).ceil()
        return (plain * power.clamp(max=most)).long()

    def again(items: Tensor, visits: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        nonlocal spent
        value, error = torch.zeros(len(items), dtype=torch.float64), torch.zeros(len(items), dtype=torch.float64)
        for number in visits.unique().tolist():
            rows = (visits == number).nonzero().flatten()
            of = items[rows].to(data.device)
            found = evaluate(
                model,
                data[of],
                visits=int(number),
                plan=scores.plan,
                seed=(seed + offset) % SEEDS,
                condition=rows_of(condition, of),
                audit=False,
                every_item=True,
                progress=progress,
            )
            order = found.per_item["item"].argsort()
            value[rows], error[rows] = found.per_item["nelbo"][order], found.per_item["error"][order]
            spent += found.nelbo.network_evaluations
        return value, error

    value, error = scores.nelbo.double().clone(), scores.error.double().clone()
    doubted = min(n, _DOUBTED * count)
    optimistic = (value - _SIGMAS * error).argsort()[:doubted]
    pessimistic = (value + _SIGMAS * error).argsort(descending=True)[:doubted]
    order = value.argsort()
    near = torch.cat([optimistic, pessimistic, order[:count], order[-count:]]).unique()
    unsure = near[error[near] > target]
    if len(unsure):
        visits = visits_of(error[unsure], drawn[unsure])
        new, off = again(unsure, visits, 1)
        total = drawn[unsure] + visits
        value[unsure] = (drawn[unsure] * value[unsure] + visits * new) / total
        error[unsure] = torch.hypot(drawn[unsure] * error[unsure], visits * off) / total
        drawn[unsure] = total
    order = value.argsort()
    item = torch.cat([order[:count], order[-count:]]).unique()
    visits = visits_of(error[item], drawn[item])
    reported, off = again(item, visits, 2)
    place = {int(i): k for k, i in enumerate(item)}

    def ordered(items: Tensor, descending: bool) -> Tensor:
        at = torch.tensor([place[int(i)] for i in items])
        return items[reported[at].argsort(descending=descending)]

    return Extremes(
        ordered(order[:count], False),
        ordered(order[-count:], True),
        item,
        reported,
        off,
        visits,
        None if scores.reference is None else percentiles(reported, scores.reference),
        spent,
    )
