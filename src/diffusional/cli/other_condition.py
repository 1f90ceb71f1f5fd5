"""`evaluate RUN RUN --other-condition`: another condition for the second run, so that conditions of one model are compared."""

from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Evaluate, Sample
from diffusional.cli.sample import condition_of
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.training.run import RunRecord

# The word for the conditions of other items.
SHUFFLED = "shuffled"


def other_condition_of(command: Evaluate, theirs: "RunRecord", condition: Any, n: int) -> Any:
    """Return the condition (N, …) of the second run for N = n items, given that of the first, or None if it is the same.

    It is that of another item for the word `shuffled`, otherwise what `sample --condition` takes: names of classes, texts, items such as
    test:5, numbers, or an .npy file. Raises DiffusionalError for a run without a condition, and for words that name none.
    """
    import torch

    from diffusional.conditions import rows_of

    words = command.other_condition
    if words is None:
        return None
    if command.other is None or condition is None or not theirs.conditional:
        raise DiffusionalError(
            "--other-condition compares two conditions and needs two runs that were trained with one; give RUN twice for the conditions of one "
            "model, or leave it out"
        )
    if words == (SHUFFLED,) and SHUFFLED not in theirs.classes:
        # One random cycle, in which no item keeps its condition.
        order = torch.randperm(n, generator=torch.Generator().manual_seed(command.seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        return rows_of(condition, other)
    found = condition_of(Sample(command.other, condition=words, n=n), theirs)
    # Of captions, the texts are returned beside their embeddings.
    return found[0] if isinstance(found, tuple) else found


def condition_elsewhere(command: Evaluate, theirs: "RunRecord", condition: Any, n: int) -> Any:
    """Return the condition of the second run for n other items, from which plans are learned; None if the words of the command name one for
    each of the evaluated items, such as an .npy file.
    """
    try:
        return other_condition_of(command, theirs, condition, n)
    except DiffusionalError:
        return None
