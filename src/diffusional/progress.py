"""Progress reports for logs: plain lines, where a terminal would show a bar. Imports no torch."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Seconds between two lines.
EVERY = 30.0
# Number of updates that advance before the expected duration is printed.
_FORECAST = 10


class ProgressLines:
    """Report the progress of a long task in lines of text: its expected duration after ten advances, then a line every 30 seconds.

    The rate is measured from the first update on, so that neither start-up nor work done before a resumption counts.

    Args:
        write: prints one line.
        task: the name of the task, which begins each line.
        unit: what is counted, in the plural.
        every: seconds between two lines.
        clock: the current time in seconds, increasing.

    >>> now = iter([4.0 * i for i in range(20)])
    >>> lines = ProgressLines(print, "training", "steps", clock=lambda: next(now))
    >>> for step in range(1, 12):
    ...     lines.update(step, 500, "2.5 bits/dim")
    training: 8 of 500 steps, 0.25 steps/s, 32 min 48 s remaining, 2.5 bits/dim
    training: 10 of 500 steps, 0.25 steps/s, expected duration 33 min 16 s
    """

    def __init__(
        self,
        write: Callable[[str], None],
        task: str,
        unit: str,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._task, self._unit, self._every, self._clock = write, task, unit, every, clock
        self._advances, self._last = 0, -1
        self._first: tuple[float, int] | None = None
        self._printed = clock()

    def update(self, done: int, total: int | None, state: str = "", left: float | None = None) -> None:
        """Report that `done` of `total` units are done, and print a line if one is due.

        Args:
            done: units done so far, those before a resumption included.
            total: units expected in all; None where unknown.
            state: the current result, printed at the end of the line.
            left: seconds after which the task ends at the latest.
        """
        now = self._clock()
        advanced, self._last = done > self._last, max(done, self._last)
        self._advances += advanced
        if self._first is None:
            self._first = (now, done)
        since, before = self._first
        rate = (done - before) / (now - since) if now > since else 0.0
        remaining = (total - done) / rate if total is not None and rate > 0 else None
        if left is not None:
            remaining = left if remaining is None else min(left, remaining)
        parts = [
            f"{self._task}: {done:,} {self._unit}"
            if total is None
            else f"{self._task}: {done:,} of {total:,} {self._unit}"
        ]
        if rate > 0:
            parts.append(f"{_number(rate)} {self._unit}/s")
        if advanced and self._advances == _FORECAST and remaining is not None and rate > 0:
            parts.append(f"expected duration {duration(now - since + max(0.0, remaining))}")
        elif now - self._printed >= self._every:
            self._printed = now
            if remaining is not None:
                parts.append(f"{duration(max(0.0, remaining))} remaining")
            if state:
                parts.append(state)
        else:
            return
        self._write(", ".join(parts))


def line_printer(console: "Console") -> Callable[[str], None]:
    """Return a function that prints a line on a console literally: without wrapping, highlighting or markup."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Format seconds in at most two units.

    >>> [duration(s) for s in (0.2, 42.0, 600.0, 605.0, 7260.0, 200_000.0)]
    ['0 s', '42 s', '10 min', '10 min 5 s', '2 h 1 min', '2 d 7 h']
    """
    whole = round(seconds)
    sizes = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for i, (name, size) in enumerate(sizes):
        if whole >= size or size == 1:
            count, rest = divmod(whole, size)
            smaller, unit = sizes[i + 1] if size > 1 else ("", 1)
            fraction = rest // unit if size > 1 else 0
            return f"{count} {name}" + (f" {fraction} {smaller}" if fraction else "")
    raise AssertionError


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
