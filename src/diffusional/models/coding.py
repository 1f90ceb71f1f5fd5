"""How the items of a model are coded by bits back, MATH (33): as a sequence of moves, each of which pops or pushes one variable.

Coding does the moves in order: a latent is popped from a stack of bits under q, or a variable is pushed to it under p. Decoding undoes them
from the last to the first: it pops what was pushed and pushes what was popped. A value that has been pushed is no longer known to later
moves. So the distribution of a move depends only on values that the decoder has at that point, too.

    x → z_1 → … → z_T, Markov    pop z_1 by q(z_1|x), push x by p(x|z_1); pop z_2 by q(z_2|z_1), push z_1 by p(z_1|z_2); …; push z_T by p(z_T)
    L layers of a VAE            pop z_L … z_1 by q(z_l|z_{>l}, x), push x by p(x|z), push z_1 … z_{L−1} by p(z_l|z_{>l}), push z_L by p(z_L)
    masks                        nothing is popped: both ends draw the same masks, and x is pushed as they cover it

The expected length is the path form of the bound. A model has `moves` (models/base.py), which names the distributions; the codec has the stack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusional.conditions import Condition


class Known(dict[str, Any]):
    """The values that both ends have at a move, by name: tensors (rows, …). `condition` is that of the items.

    Attributes:
        rows: the number of items, that of the rows of every tensor.
        shared: returns standard normal numbers (rows, *shape) that both ends draw, for a shape.
    """

    def __init__(self, values: dict[str, Any], rows: int, shared: Callable[[tuple[int, ...]], Tensor]) -> None:
        super().__init__(values)
        self.rows, self.shared = rows, shared

    @property
    def condition(self) -> Condition | None:
        """The condition of the items, or None."""
        return self.get("condition")


# The condition of a model's networks, as a function of what is known.
Given = Callable[[Known], Condition | None]


def the_condition(known: Known) -> Condition | None:
    """Return the condition of the items: what `moves` uses unless a model is a part of another."""
    return known.condition


@dataclass(frozen=True)
class Move:
    """One variable that is popped or pushed.

    Attributes:
        name: the variable. Items are "x".
        law: returns the distribution of the variable (rows, *dims) for what is known: `Gaussian`, `Bits`, `Categorical`, or one with a
            method `distribution` that returns one of these.
        pops: whether coding pops the variable, under q; otherwise it pushes it, under p.
        finest: of a Gaussian variable that is popped, the smallest standard deviation of its distributions; 0 if it depends on the items.
            None for other variables.
        where: returns the positions (rows, *dims) of the variable that are pushed, if not all are. The others keep their values, and those
            that were pushed are `blank`.
        blank: the value of positions that are not known.
    """

    name: str
    law: Callable[[Known], Any]
    pops: bool = False
    finest: float | None = None
    where: Callable[[Known], Tensor] | None = None
    blank: float = 0.0
