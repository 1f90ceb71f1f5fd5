"""Where a step's time goes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Stopwatch:
    """Seconds by the name of a phase, while `on`; a GPU is waited for at both ends of each.

    >>> watch = Stopwatch(on=True)
    >>> with watch("data"):
    ...     _ = sum(range(10))
    >>> list(watch.seconds)
    ['data']
    """

    def __init__(self, on: bool, device: torch.device | None = None) -> None:
        self.on, self.seconds = on, dict[str, float]()
        self._cuda = device is not None and device.type == "cuda"

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Time what is done within."""
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
        return time.perf_counter()
