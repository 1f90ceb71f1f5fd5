"""The environment variables of a launcher (torchrun, accelerate launch). Imports no torch.

A launcher sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Clusters and shells often leave some of them set: without the others they
are ignored, and the command runs as one process.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from diffusional.errors import DiffusionalError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Variables from which torch and Accelerate infer a launch.
_READ = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# Seconds of waiting for the other processes before a line reports it.
_PATIENCE = 10.0


def size() -> int:
    """Return the number of processes that a launcher started; 1 without a launcher.

    Raises DiffusionalError for a WORLD_SIZE or RANK that is not an integer or out of range.

    >>> size()
    1
    """
    processes, mine = number("WORLD_SIZE", 1), number("RANK", 0)
    if not _complete() or processes == 1:
        return 1
    if not 0 <= mine < processes:
        raise DiffusionalError(
            f"expected RANK from 0 to WORLD_SIZE − 1, got RANK={mine} and WORLD_SIZE={processes} in the environment. Unset both, or "
            "start with torchrun or accelerate launch"
        )
    return processes


def rank() -> int:
    """Return the index of this process among those of a launcher; 0 without a launcher.

    >>> rank()
    0
    """
    return number("RANK", 0) if size() > 1 else 0


def number(name: str, default: int) -> int:
    """Return an integer environment variable, or `default` if it is not set. Raises DiffusionalError for other values.

    >>> number("NO_SUCH_VARIABLE", 1)
    1
    """
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError as error:
        raise DiffusionalError(
            f"expected an integer {name}, got {text!r} in the environment. Unset it, or start with torchrun or accelerate launch"
        ) from error


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Hide an incomplete set of launcher variables, from which torch and Accelerate would infer a launch.

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
    """Report on standard error if the other processes of a launch have not connected after ten seconds."""
    if size() == 1:
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def say() -> None:
        print(
            f"diffusional: process {rank()} is waiting for all {size()} processes to connect at {where} (WORLD_SIZE={size()}). If there are "
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
