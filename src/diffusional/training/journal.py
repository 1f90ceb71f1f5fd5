"""What a run says while it goes: metrics.jsonl, timing.jsonl, and a progress bar with rate, remaining time and bound.

metrics.jsonl is a function of the run alone, so that one that was interrupted and resumed leaves the same file; when each line
was written stands in timing.jsonl.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusional.files import not_written, settle
from diffusional.training import checkpoint
from diffusional.training.config import Config

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
_LOG_EVERY = 10


class Journal:
    """Of a run folder, at `progress`. Only the process that `speaks` writes and shows anything."""

    def __init__(
        self, run: Path, config: Config, progress: checkpoint.Progress, console: Console, speaks: bool
    ) -> None:
        self.run, self.progress, self.speaks = run, progress, speaks
        named = {
            "simple": ("simple_loss", "L_simple"),
            "hybrid": ("hybrid_loss", "L_hybrid"),
            "elbo": ("loss", "bits/dim"),
        }
        self.key, self.label = named[config.objective]
        self.validated = False
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[bound]}"),
        )
        # On a terminal alone: redrawn lines are noise in a log, which has the metrics.
        self.bar = Progress(*columns, console=console, disable=not (speaks and console.is_terminal))
        self.task = self.bar.add_task("", total=config.steps, completed=progress.step, rate="", bound="")
        self.files: dict[str, TextIO] = {}

    def __enter__(self) -> "Journal":
        for name in (METRICS, TIMING) if self.speaks else ():
            _truncate(self.run / name, self.progress.step)
            # By lines, so that a killed run leaves whole ones.
            self.files[name] = (self.run / name).open("a", buffering=1)
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        for file in self.files.values():
            # What could not be written has been told; closing would try, and raise, once more.
            with suppress(OSError):
                file.close()

    def step(self, loss: float | None, rate: float, norm: float, last: bool) -> None:
        """A step's loss, in bits/dim if it is a bound (None: skipped); every tenth step the mean since the last line is written."""
        losses = self.progress.losses
        if loss is not None:
            losses.append(loss)
        if not last and self.progress.step % _LOG_EVERY:
            return
        speed = f"{self.progress.step / self.progress.seconds:.1f} steps/s"
        self.bar.update(self.task, completed=self.progress.step, rate=speed)
        if not losses:
            return
        recent = sum(losses) / len(losses)
        losses.clear()
        skipped = {"skipped": self.progress.skipped} if self.progress.skipped else {}
        self._write({self.key: recent, "lr": rate, "norm": norm} | skipped)
        if not self.validated:
            self.bar.update(self.task, bound=f"{recent:.3f} {self.label}")

    def validation(self, bound: float, best: float) -> None:
        """A validation bound in bits/dim."""
        self.validated = True
        self._write({"validation": bound})
        self.bar.update(self.task, bound=f"{bound:.3f} bits/dim (validation; best {best:.3f})")

    def flush(self) -> None:
        """Bring the lines to disk before a checkpoint that counts on them."""
        for name, file in self.files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise not_written(self.run / name, error) from error

    def _write(self, values: dict[str, Any]) -> None:
        timing = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
        for name, record in ((METRICS, {"step": self.progress.step} | values), (TIMING, timing)):
            if name in self.files:
                try:
                    self.files[name].write(json.dumps(record) + "\n")
                except OSError as error:
                    raise not_written(self.run / name, error) from error


def read(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl or timing.jsonl."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def _truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint: they will be taken again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # cut short when the run was killed; what it said will be said again
            break
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text("".join(line + "\n" for line in kept))
        settle(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error
