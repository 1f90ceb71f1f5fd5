"""Coding of items by the moves of a model (models/coding.py), group by group.

Items are coded in groups, for which a network is called once a move. A group has a fixed share of the items before it, so that the bits of
these pay for the latents that are popped first, and few are borrowed. The groups are the same in coding and decoding, so that a network's
numbers are those of the same call.

Real-valued latents lie on grids, whose spacing is 1/16 of the smallest standard deviation of the distributions that they are popped under:
rounding then adds 1/(12 · 16²) to the variance of a step. Where that depends on the items, as for a VAE, it is measured, one power of two for
every dimension, and is a part of the file.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.special import ndtri

from diffusional.categorical import Categorical
from diffusional.codec.laws import Law, law_of
from diffusional.codec.stack import Stack, StackEmpty, keystream
from diffusional.conditions import Condition, rows_of
from diffusional.gaussian import Gaussian
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.coding import Known, Move
from diffusional.space import Discrete

# Grid points for one standard deviation, and the exponents of measured spacings: a float32 of ordinary size has all numbers of the grid.
FINENESS, EXPONENTS = 16, (-18, 4)
# Items that grids are measured on.
_MEASURED = 1024

Grids = Mapping[str, list[int]]


class Coder:
    """The coder of a model's items.

    Args:
        model: a model with `moves`, in evaluation mode.
        rows: the largest number of items of a group.
        grids: log₂ of the measured spacings, by variable; see `measured`.
        paid: the number of items whose bits pay for the latents of one more.
        labels: the logarithms of the frequencies of classes, if labels are coded with the items.

    Raises DiffusionalError for models that cannot be coded.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        rows: int,
        grids: Grids | None = None,
        paid: int = 8,
        labels: Tensor | None = None,
    ) -> None:
        self.model, self.rows, self.paid = model, rows, paid
        assert isinstance(model.space, Discrete)
        self.space = model.space
        self.moves = model.moves()
        if labels is not None:
            self.moves.append(Move("condition", lambda known: _classes(labels, known.rows)))
        self._derived = model.derived()
        self._spaces = {"x": self.space, **{name: space for name, (space, _) in self._derived.items()}}
        self._spacing: dict[str, Tensor | float] = {
            move.name: move.finest / FINENESS for move in self.moves if move.finest
        }
        self._spacing |= {name: torch.tensor(found).double().exp2() for name, found in (grids or {}).items()}

    @property
    def measures(self) -> list[str]:
        """Names of the latents whose grids are measured."""
        return [move.name for move in self.moves if move.finest == 0]

    def measured(self, x: Tensor, condition: Condition | None, seed: int) -> dict[str, list[int]]:
        """Return the exponents of the spacings of the latents whose grids depend on items x (N, *shape), for one draw of the latents."""
        if not self.measures:
            return {}
        generator = torch.Generator().manual_seed(seed)
        finest = dict[str, Tensor]()
        for some in torch.arange(min(len(x), _MEASURED)).split(self.rows):
            known = self._known({"x": x[some], "condition": rows_of(condition, some)}, len(some), 0)
            for move in self.moves:
                if move.name in self.measures and move.pops:
                    q = move.law(known)
                    assert isinstance(q, Gaussian)
                    least = q.std.double().expand_as(q.mean).amin(0)
                    finest[move.name] = torch.minimum(finest.get(move.name, least), least)
                    known[move.name] = q.sample(generator).float()
        return {
            name: torch.floor(torch.log2(std / FINENESS)).clamp(*EXPONENTS).int().tolist()
            for name, std in finest.items()
        }

    def groups(self, items: int) -> Iterator[slice]:
        """Yield the items of each group: one for every `paid` items before it, at least one and at most `rows`."""
        start = 0
        while start < items:
            stop = min(items, start + max(1, min(self.rows, start // self.paid)))
            yield slice(start, stop)
            start = stop

    def encode(self, stack: Stack, x: Tensor, group: int, condition: Condition | None = None) -> NDArray[np.float64]:
        """Push the items x (n, *shape) of group number `group`. Returns −ln p(x, z)/q(z|x) (n,), nats, at the latents that were coded."""
        n, nats = len(x), np.zeros(len(x))
        known: dict[str, Any] = {"x": x}
        known |= {} if condition is None else {"condition": condition}
        known |= {name: space.encode(space.index(of(x))) for name, (space, of) in self._derived.items()}
        for i, move in enumerate(self.moves):
            if move.pops:
                law = self._law(move, known, n, group)
                stack.hide(law.words(), self._key(group, i))
                known[move.name] = law.pop(stack)
                nats -= law.nats(known[move.name])
                continue
            value, place = known.pop(move.name), None
            if move.where is not None:
                place = move.where(self._known(known | {move.name: value}, n, group))
                known[move.name] = torch.where(place, move.blank, value)
                if not bool(place.any()):
                    continue
            law = self._law(move, known, n, group, place)
            law.push(stack, value)
            nats += law.nats(value)
        return nats

    def decode(
        self, stack: Stack, n: int, group: int, condition: Condition | None = None
    ) -> tuple[Tensor, Condition | None, NDArray[np.float64]]:
        """Pop the n items of group number `group`. Returns x (n, *shape), their condition, and what `encode` returned."""
        nats = np.zeros(n)
        known: dict[str, Any] = {} if condition is None else {"condition": condition}
        for i, move in reversed([*enumerate(self.moves)]):
            if move.pops:
                value = known.pop(move.name)
                law = self._law(move, known, n, group)
                law.push(stack, value)
                stack.hide(law.words(), self._key(group, i))
                nats -= law.nats(value)
                continue
            place = None
            if move.where is not None:
                known.setdefault(move.name, torch.full((n, *self.space.shape), move.blank))
                place = move.where(self._known(known, n, group))
                if not bool(place.any()):
                    continue
            law = self._law(move, known, n, group, place)
            value = law.pop(stack)
            nats += law.nats(value)
            if place is not None:
                value = torch.where(place, value, known[move.name])
            known[move.name] = self._levels(move, value)
        return known["x"], known.get("condition"), nats

    def _levels(self, move: Move, value: Tensor) -> Tensor:
        """Return a variable as its space encodes it, to the last bit."""
        if move.name == "condition":
            return value.long()
        space = self._spaces.get(move.name)
        return value if space is None or move.where is not None else space.encode(space.index(value))

    def _law(self, move: Move, known: dict[str, Any], n: int, group: int, place: Tensor | None = None) -> Law:
        return law_of(move.law(self._known(known, n, group)), self._spacing.get(move.name), place)

    def _known(self, known: dict[str, Any], n: int, group: int) -> Known:
        """Return the values of n items as moves take them."""

        def shared(shape: tuple[int, ...]) -> Tensor:
            words = keystream((1 << 64) + group, n * math.prod(shape))
            return ndtri((torch.from_numpy(words.astype(np.float64)) + 0.5) / 2**32).view(n, *shape)

        return Known(known, n, shared)

    def _key(self, group: int, move: int) -> int:
        """Return a number of its own for each move of each group."""
        return 1 + group * len(self.moves) + move


def _classes(log_probs: Tensor, rows: int) -> Categorical:
    return Categorical(log_probs.expand(rows, -1), torch.arange(len(log_probs), dtype=torch.float64))


def initial_words(words: int, seed: int) -> NDArray[np.uint32]:
    """Return random words, the last of which is not zero."""
    drawn = keystream(seed, words)
    drawn[-1] |= 1
    return drawn


def encoded(
    coder: Coder, x: Tensor, condition: Condition | None, initial: NDArray[np.uint32]
) -> tuple[Stack, NDArray[np.float64]] | None:
    """Return the stack of all items and the costs of their paths (N,), or None if the stack has been empty."""
    stack, nats = Stack(initial), list[NDArray[np.float64]]()
    try:
        for number, some in enumerate(coder.groups(len(x))):
            nats.append(coder.encode(stack, x[some], number, rows_of(condition, some)))
    except StackEmpty:
        return None
    return stack, np.concatenate(nats)


@contextmanager
def one_thread(model: LatentVariableModel) -> Iterator[None]:
    """Evaluate the model with one thread, since sums of several depend on how they are divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluation_mode(model), torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
