"""A progress bar for work that takes longer than two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 2.0  # seconds without a bar


def watched(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the same steps. After two seconds a bar on stderr shows how many of `total` are done, if it is a terminal.

    >>> list(watched(range(3), 3, "counting"))
    [0, 1, 2]
    """
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield from steps
        return
    if not sys.stderr.isatty():
        yield from steps
        return
    began = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, visible=False)
        for step in steps:
            yield step
            bar.update(task, advance=1, visible=time.monotonic() - began > _PATIENCE)
