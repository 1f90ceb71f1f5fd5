"""Values of many items, computed in blocks by all processes: the loop of `classify`, `guidance_table` and the information of conditions."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks

Progress = Callable[[int, int], None]


def shared(
    items: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    values: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    block: int | None = None,
    progress: Progress | None = None,
    about: Callable[[list[int]], str] | None = None,
) -> dict[str, Tensor]:
    """Return values of items by name, (n, *shape) float64, which all processes have: each computes those of its share of the items.

    Args:
        items: (n,) numbers of the items.
        shapes: the shape of one item's values by name.
        values: returns the values of some of the items (m,) by name, (m, *shape).
        block: the most items of one call; by default a process computes its share in one call.
        progress: called after every block with (items done by all processes, estimated from this one's share; n).
        about: describes the place of a value within its item, for the error message, such as " for class 3".

    Raises DiffusionalError in every process for a value that is not finite, with the number of the item.

    >>> shared(torch.tensor([5, 7]), {"square": ()}, lambda rows: {"square": rows.double() ** 2})
    {'square': tensor([25., 49.], dtype=torch.float64)}
    """
    n = len(items)
    out = {name: torch.zeros(n, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    mine, done = ranks.share(n), 0
    for at in mine.split(block or n) if len(mine) else ():
        for name, found in values(items[at]).items():
            out[name][at] = found.to(out[name])
        done += len(at)
        if progress is not None:
            progress(min(n, done * ranks.world_size()), n)
    out = {name: ranks.collect(found) for name, found in out.items()}
    for found in out.values():
        bad = ~torch.isfinite(found)
        if bool(bad.any()):
            row, *place = bad.nonzero()[0].tolist()
            where = "" if about is None else about(place)
            raise DiffusionalError(f"item {int(items[row])} has a cost that is not finite{where}; nothing was left out")
    return out
