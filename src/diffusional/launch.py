"""What a launcher (torchrun, accelerate launch) says in the environment; imports no torch.

A launcher sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Clusters and shells often leave one or the other behind: these mean
nothing, and the command runs as one process.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from diffusional.errors import DiffusionalError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What torch and Accelerate would take for a launch.
_READ = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# Seconds without the other processes after which a line says what is waited for.
_PATIENCE = 10.0


def size() -> int:
    """The number of processes that a launcher started; 1 without one.

    Raises DiffusionalError for a WORLD_SIZE or RANK that is no integer, or out of range.

    >>> size()
    1
    """
    processes, mine = number("WORLD_SIZE", 1), number("RANK", 0)
    if not _complete() or processes == 1:
        return 1
    if not 0 <= mine < processes:
        raise DiffusionalError(
            f"RANK={mine} and WORLD_SIZE={processes} in the environment: expected a RANK from 0 to WORLD_SIZE − 1. Unset both, or "
            "start with torchrun or accelerate launch"
        )
    return processes


def rank() -> int:
    """The index of this process among those of a launcher; 0 without one.

    >>> rank()
    0
    """
    return number("RANK", 0) if size() > 1 else 0


def number(name: str, default: int) -> int:
    """An integer of the environment, `default` if it is not set. Raises DiffusionalError for anything else.

    >>> number("NO_SUCH_VARIABLE", 1)
    1
    """
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError as error:
        raise DiffusionalError(
            f"{name}={text!r} in the environment, expected an integer. Unset it, or start with torchrun or accelerate launch"
        ) from error


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Hide variables of a launcher that are not complete, which torch and Accelerate would take for one.

    >>> os.environ["LOCAL_RANK"] = "3"
    >>> with without_leftovers():
    ...     "LOCAL_RANK" in os.environ
    False
    >>> os.environ.pop("LOCAL_RANK")
    '3'
    """
    size()
    hidden = {} if _complete() else {name: os.environ.pop(name) for name in _READ if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def waiting() -> Iterator[None]:
    """While entered, say on standard error if the other processes of a launch do not come."""
    if size() == 1:
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def say() -> None:
        print(
            f"diffusional: process {rank()} is waiting for all {size()} processes to meet at {where} (WORLD_SIZE={size()}). If there are "
            "no others, stop this one and unset WORLD_SIZE",
            file=sys.stderr,
        )

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _complete() -> bool:
    return all(os.environ.get(name, "").strip() for name in _NEEDED)
