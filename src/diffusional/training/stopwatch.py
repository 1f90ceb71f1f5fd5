"""Measurement of the time spent in each part of a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Stopwatch:
    """Measure the seconds spent in each named phase, while `on`; both ends of a phase wait for the GPU.

    `clock` returns the current time in seconds.

    >>> watch = Stopwatch(on=True)
    >>> with watch("data"):
    ...     _ = sum(range(10))
    >>> list(watch.seconds)
    ['data']
    """

    def __init__(
        self, on: bool, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.on, self.seconds, self._clock = on, dict[str, float](), clock
        self._cuda = device is not None and device.type == "cuda"

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Measure the time spent within the block."""
        return self._timed(phase) if self.on else nullcontext()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()
