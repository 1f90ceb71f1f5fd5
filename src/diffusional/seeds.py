"""The check of seeds. Does not import torch."""

from numbers import Integral
from typing import Any

from diffusional.errors import DiffusionalError

# One more than the largest seed of torch's generators.
SEEDS = 2**64


def check_seed(seed: Any, name: str = "seed", below: int = SEEDS) -> None:
    """Raise DiffusionalError unless `seed` is an integer from 0 to `below` − 1.

    Args:
        seed: the value to check.
        name: its name in the message.
        below: the smallest integer that is too large; by default 2^64, the range of torch's generators.

    >>> check_seed(2**64 - 1)
    >>> check_seed(-1)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected seed to be an integer from 0 to 2^64 - 1, got -1
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < below:
        power = below.bit_length() - 1
        largest = f"2^{power} - 1" if below == 2**power else str(below - 1)
        raise DiffusionalError(f"expected {name} to be an integer from 0 to {largest}, got {seed!r}")
