"""A stack of bits from which values are popped under one distribution and to which they are pushed under another.

The entropy coder is the ANS coder of `constriction` (extra `codec`). Pushing a value of probability p makes the stack −log₂ p bits longer,
and popping one of probability p makes it as much shorter. A pop is the exact inverse of a push under the same distribution.

A pop right after a push returns nearly the same quantile as the value that was pushed, since the coder's state holds it. Bits that were pushed
are therefore hidden by a keystream before they are popped as another variable (`hide`): without it the pops of 16 items of 9 dimensions had
2.9 times the variance of their distribution, and files were 0.7 bits/dim too long.

Real values are numbers of a grid of spacing δ. N(m, s²) is coded on the grid points within six standard deviations of m; a value beyond is
coded as the outermost point, followed by its distance from there in twice as many bits as it has. Values whose windows are of about the
same size are coded together, since every point of a window has a probability of at least 2^-24.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusional.extras import needed_for

with needed_for("codec"):
    import constriction

# Its submodules are attributes that type checkers do not find.
_STREAM: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]

_coder = _STREAM.stack.AnsCoder
_COIN = _STREAM.model.Uniform(2)
_CATEGORICAL = _STREAM.model.Categorical(perfect=False)
# The half-width of the window in standard deviations.
REACH = 6.0
# The least probability of a level, in units of the coder's resolution.
_LEAST = 2.0**-24
# Words of the coder's state, below which a stack is empty.
_STATE = 2
# The most bits by which the stack shrinks with one value: the coder's resolution.
_RESOLUTION = 24
# The most bits of a distance.
_LONGEST = 40
# The highest bits of the coder's state, which `hide` leaves as they are.
_LEADING = 10
# Standard deviations within this factor share a window.
_ALIKE = 4.0
# The largest half-width of a window: its points have a part of 2^-4 of the coder's probability.
_WIDEST = 2**19

Whole = NDArray[np.int64]
Real = NDArray[np.float64]


class StackEmpty(Exception):
    """More bits were popped than there are."""


class Stack:
    """Words of 32 bits, the last of which is on top and not zero.

    Attributes:
        lowest: the number of words from the bottom that have never changed; 0 once the stack has been empty.

    >>> stack = Stack(np.arange(1, 9, dtype=np.uint32))
    >>> drawn = stack.pop_gaussian(np.zeros(3), np.full(3, 16.0))
    >>> stack.push_gaussian(drawn, np.zeros(3), np.full(3, 16.0))
    >>> stack.words().tolist()
    [1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        # The words on top are those of the coder. The others are copied only when they are pushed below and when they are needed again.
        self._ans, self._below, self._deep = _coder(words), list[NDArray[np.uint32]](), 0
        self.lowest = max(0, len(words) - _STATE)

    def __len__(self) -> int:
        return self._deep + self._ans.num_words()

    def words(self) -> NDArray[np.uint32]:
        """Return a copy of all words."""
        return np.concatenate([*self._below, self._ans.get_compressed()])

    def hide(self, number: int, key: int) -> None:
        """Exclusive-or the `number` words on top, from which values are going to be popped, with a keystream of `key`. Doing it twice changes
        nothing.

        The leading bits of the coder's state stay: they are not uniform, and the stack would be 0.06 bits longer if they were made so. It
        takes time in proportion to `number` and to what was pushed since the last call, whatever the length of the stack.
        """
        self._need(number - _STATE)
        words = self._ans.get_compressed()
        start = max(0, len(words) - number)
        stream = keystream(key, len(words) - start)
        free = int(words[-1]).bit_length() - _LEADING
        for place in (1, 2):
            if place <= len(stream):
                stream[-place] &= (1 << max(0, min(32, free))) - 1
            free += 32
        words[start:] ^= stream
        self.lowest = min(self.lowest, self._deep + start)
        if (spare := len(words) - max(number, _STATE)) > 0:
            self._below.append(words[:spare].copy())
            self._deep += spare
            words = words[spare:]
        self._ans = _coder(words)

    def _need(self, number: int) -> None:
        """Give the coder at least `number` words besides its state, if there are so many."""
        missing = number + _STATE - self._ans.num_words()
        if missing <= 0 or not self._deep:
            return
        words = [self._ans.get_compressed()]
        while missing > 0 and self._below:
            part = self._below.pop()
            if len(part) > missing:
                self._below.append(part[:-missing])
                part = part[-missing:]
            words.append(part)
            missing -= len(part)
            self._deep -= len(part)
        self._ans = _coder(np.concatenate(words[::-1]))

    def push_levels(self, levels: Whole, probabilities: Real) -> None:
        """Push levels (n,) under probabilities (n, K)."""
        self._ans.encode_reverse(levels.astype(np.int32), _CATEGORICAL, _rows(probabilities))

    def pop_levels(self, probabilities: Real) -> Whole:
        """Pop levels (n,) under probabilities (n, K)."""
        self._need(_most_words(len(probabilities)))
        found = self._ans.decode(_CATEGORICAL, _rows(probabilities)).astype(np.int64)
        self._popped()
        return found

    def push_gaussian(self, values: Whole, mean: Real, std: Real) -> None:
        """Push numbers of the grid (n,) under N(mean, std²), with mean and std (n,) in units of the grid."""
        centre = np.rint(mean).astype(np.int64)
        apart = values - centre
        for edge, some in _windows(std)[::-1]:
            near = np.clip(apart[some], -edge, edge)
            for i in np.flatnonzero(np.abs(near) == edge)[::-1]:
                self._push_distance(abs(int(apart[some][i])) - edge)
            self._ans.encode_reverse(near.astype(np.int32), _gaussian(edge), (mean - centre)[some], std[some])

    def pop_gaussian(self, mean: Real, std: Real) -> Whole:
        """Pop numbers of the grid (n,) under N(mean, std²), with mean and std (n,) in units of the grid."""
        centre = np.rint(mean).astype(np.int64)
        apart = np.zeros_like(centre)
        for edge, some in _windows(std):
            own = std[some]
            self._need(_most_words(len(own)))
            near = self._ans.decode(_gaussian(edge), (mean - centre)[some], own).astype(np.int64)
            for i in np.flatnonzero(np.abs(near) == edge):
                near[i] += np.sign(near[i]) * self._pop_distance()
            apart[some] = near
        self._popped()
        return centre + apart

    def _popped(self) -> None:
        """Note how few words are left. Raises StackEmpty if there were not enough: then what was popped is not random."""
        if len(self) < _STATE:
            raise StackEmpty
        self.lowest = min(self.lowest, max(0, len(self) - _STATE))

    def _push_distance(self, distance: int) -> None:
        """Push a distance ≥ 0: its bits below the highest one, and the number of its bits in unary (Elias). A pop of random bits is then short."""
        n = distance.bit_length()
        bits = [0] * n + [1] if n < _LONGEST else [0] * n
        bits += [distance >> i & 1 for i in reversed(range(n - 1))]
        for bit in reversed(bits):
            self._ans.encode_reverse(np.array([bit], dtype=np.int32), _COIN)

    def _pop_distance(self) -> int:
        self._need(_most_words(2 * _LONGEST))
        n = 0
        while n < _LONGEST and not int(self._ans.decode(_COIN)):
            n += 1
        distance = min(n, 1)
        for _ in range(n - 1):
            distance = 2 * distance + int(self._ans.decode(_COIN))
        return distance


def _most_words(values: int) -> int:
    """Return the most words that leave the stack when so many values are popped."""
    return math.ceil(_RESOLUTION * values / 32) + 1


def _rows(probabilities: Real) -> Real:
    """Return probabilities (n, K) with a least value, in C order: the coder takes an array of another order for one of this order."""
    return np.ascontiguousarray(np.maximum(probabilities, _LEAST))


def keystream(key: int, words: int) -> NDArray[np.uint32]:
    """Return pseudorandom words (Philox).

    >>> keystream(1, 2).tolist() == keystream(1, 5)[:2].tolist()
    True
    """
    return np.random.Philox(key=key).random_raw(words).astype(np.uint32)


def _windows(std: Real) -> list[tuple[int, NDArray[np.bool_] | slice]]:
    """Return the half-widths of windows, and which values they are for: six of the largest standard deviation in each factor of four."""
    if float(std.max()) <= _ALIKE * float(std.min()):
        return [(_edge(std), slice(None))]
    octave = np.floor(np.log2(std) / math.log2(_ALIKE))
    return [(_edge(std[octave == one]), octave == one) for one in np.unique(octave)]


def _edge(std: Real) -> int:
    return min(_WIDEST, math.ceil(REACH * float(std.max())) + 2)


def _gaussian(edge: int) -> Any:
    return _STREAM.model.QuantizedGaussian(-edge, edge)
