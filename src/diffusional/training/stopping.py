"""Handling of SIGINT and SIGTERM: the first signal ends the run with a checkpoint, the second ends it immediately."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

_SHOW_CURSOR = "\x1b[?25h"
# Seconds within which a launcher may forward a signal once more.
_ECHO = 5.0


def _launched() -> bool:
    """Return whether a launcher may forward signals. An invalid environment has been refused before."""
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1")


class Stopping:
    """Within the block, `asked` is the number of a received signal, 0 without one. It only works in the main thread of a process.

    >>> with Stopping() as stopping:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stopping.asked == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.asked, self._heard = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A launcher forwards a signal that the whole job was sent, so that a single one is received twice.
        if self.asked == number and now - self._heard < _ECHO and _launched():
            return
        if self.asked:
            # No clean-up, which might hang, except for the cursor of a terminal, which a progress bar has hidden.
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR.encode())
            os._exit(128 + number)
        self.asked, self._heard = number, now
