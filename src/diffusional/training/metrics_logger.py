"""Reports of a run: metrics.jsonl, timing.jsonl, and its rate, remaining time and bound, as a bar on a terminal or as lines.

metrics.jsonl depends only on the config and data of the run, so that it is the same after interruptions. The times of its lines are in
timing.jsonl.
"""

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from diffusional.deprecation import renamed_names
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import check_regular, not_written, writing
from diffusional.progress import ProgressLines, line_printer
from diffusional.training import checkpoint
from diffusional.training.config import Config
from diffusional.training.tensorboard import EventWriter

__getattr__ = renamed_names(__name__, {"Journal": "MetricsLogger"})

with needed_for("training"):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
_LOG_EVERY = 10
# Line numbers listed in a warning.
_SHOWN = 5


class MetricsLogger:
    """The metrics of a run at `progress`, written to its folder, and its progress, shown on a console.

    Only the process with `reports` set writes or shows anything. `clock` returns the current time in seconds. With
    `tensorboard`, the metrics are also written for TensorBoard.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        progress: checkpoint.Progress,
        console: Console,
        reports: bool,
        clock: Callable[[], float] = time.monotonic,
        tensorboard: bool = False,
    ) -> None:
        self.tensorboard = tensorboard
        self.events: EventWriter | None = None
        self.run, self.config, self.progress, self.reports = run, config, progress, reports
        named = {
            "simple": ("simple_loss", "L_simple"),
            "hybrid": ("hybrid_loss", "L_hybrid"),
            "elbo": ("loss", "bits/dim"),
        }
        self.key, self.label = named[config.objective]
        # The unit of validations: bounds, or the loss of a contrastive encoder.
        self.unit = "nats, contrastive" if config.model.kind == "contrastive" else "bits/dim"
        if config.model.kind == "contrastive":
            self.key, self.label = "contrastive_loss", self.unit
        self.validated = False
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[bound]}"),
        )
        # A bar is redrawn, which only a terminal can do; a log gets lines.
        self.lines: ProgressLines | None = None
        if reports and not console.is_terminal:
            self.lines = ProgressLines(
                line_printer(console),
                "training",
                "steps",
                clock=clock,
            )
        self.bound = ""
        self.bar = Progress(*columns, console=console, disable=not (reports and console.is_terminal))
        self.task = self.bar.add_task("", total=config.steps, completed=progress.step, rate="", bound="")
        self.files: dict[str, TextIO] = {}

    def __enter__(self) -> "MetricsLogger":
        for name in (METRICS, TIMING) if self.reports else ():
            _truncate(self.run / name, self.progress)
            try:
                # Line by line, so that a killed run leaves complete lines.
                self.files[name] = (self.run / name).open("a", buffering=1, encoding="utf-8")
            except OSError as error:
                raise not_written(self.run / name, error) from error
        if self.reports and self.tensorboard:
            self.events = EventWriter(self.run, read(self.run))
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        if self.events is not None:
            with suppress(OSError):
                self.events.close()
        for file in self.files.values():
            # The failure has been reported; closing would try to write, and raise, once more.
            with suppress(OSError):
                file.close()

    def step(self, loss: float | None, rate: float, norm: float, last: bool) -> None:
        """Record the loss of a step, in bits/dim if it is a bound (None if skipped). Every tenth step, write the mean since the last line."""
        losses = self.progress.losses
        if loss is not None:
            losses.append(loss)
        self._report()
        if not last and self.progress.step % _LOG_EVERY:
            return
        speed = f"{self.progress.step / max(1e-9, self.progress.seconds):.1f} steps/s"
        self.bar.update(self.task, completed=self.progress.step, rate=speed)
        if not losses:
            return
        recent = sum(losses) / len(losses)
        losses.clear()
        skipped = {"skipped": self.progress.skipped} if self.progress.skipped else {}
        self._write({self.key: recent, "lr": rate, "norm": norm} | skipped)
        if not self.validated:
            self._show(f"{recent:.3f} {self.label}")

    def validating(self, done: int, total: int) -> None:
        """Show that a validation is under way, with `done` of its `total` batches done."""
        self._report(f"validating: {done:,} of {total:,} batches done")

    def validation(self, bound: float, best: float) -> None:
        """Record a validation bound in bits/dim, or the loss of a contrastive encoder in nats."""
        self.validated = True
        self._write({"validation": bound})
        self._show(f"{bound:.3f} {self.unit} (validation; best {best:.3f})")

    def _show(self, bound: str) -> None:
        self.bound = bound
        self.bar.update(self.task, bound=bound)

    def _report(self, doing: str = "") -> None:
        if self.lines is not None:
            limit, state = self.config.max_seconds, ", ".join(part for part in (self.bound, doing) if part)
            left = None if limit is None else max(0.0, limit - self.progress.seconds)
            self.lines.update(self.progress.step, self.config.steps, state, left)

    def flush(self) -> None:
        """Sync the lines to disk before a checkpoint that depends on them."""
        for name, file in self.files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise not_written(self.run / name, error) from error

    def _write(self, values: dict[str, Any]) -> None:
        if self.events is not None:
            self.events.write({"step": self.progress.step} | values)
        timing: dict[str, Any] = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
        if "validation" in values:
            timing["validation"] = True
        for name, record in ((METRICS, {"step": self.progress.step} | values), (TIMING, timing)):
            if name in self.files:
                try:
                    self.files[name].write(json.dumps(record) + "\n")
                except OSError as error:
                    raise not_written(self.run / name, error) from error


def read(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Read the records of a run's metrics.jsonl or timing.jsonl, as dicts.

    A last line that is still being written is left out. Damaged lines are left out too, with a warning that lists their numbers. Raises
    DiffusionalError if the file is missing or cannot be read.
    """
    records, damaged, _ = _sorted(_lines(run / name))
    if damaged:
        warnings.warn(f"{run / name}: {_numbered(damaged)} left out", stacklevel=2)
    return [record for _, record in records]


def _truncate(path: Path, progress: checkpoint.Progress) -> None:
    """Remove the lines of steps and validations after the checkpoint, which will be written again.

    A last line without an end, which a killed run leaves, is removed too. Other lines without a record are moved to a file beside
    it, with a warning.
    """
    if not path.exists() and not path.is_symlink():
        return
    records, damaged, cut = _sorted(_lines(path))
    done = {True: progress.validated, False: progress.step}
    kept = [line for line, record in records if record["step"] <= done["validation" in record]]
    if len(kept) == len(records) and not damaged and not cut:
        return
    aside = path.with_name(f"{path.name}.damaged")
    if damaged:
        before = _lines(aside) if aside.exists() else []
        with writing(aside) as (part,):
            part.write_bytes(b"".join(line + b"\n" for line in [*before, *damaged.values()] if line.strip()))
    with writing(path) as (part,):
        part.write_bytes(b"".join(line + b"\n" for line in kept))
    if damaged:
        warnings.warn(f"{path}: {_numbered(damaged)} moved to {aside.name}; all other lines are kept", stacklevel=2)


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file; the last one is empty unless the file ends within a line."""
    check_regular(path)
    try:
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise DiffusionalError(f"{path} could not be read ({error.strerror}). Check its permissions") from error


def _sorted(lines: list[bytes]) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[int, bytes], bool]:
    """Return lines with their records; lines without one, by their number from 1; and whether the last line was cut off."""
    records, damaged = [], {}
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None:
            records.append((line, record))
        elif number < len(lines) and line.strip():
            damaged[number] = line
    return records, damaged, bool(lines[-1]) and _record(lines[-1]) is None


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None unless it is a JSON object with a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    right = isinstance(record, dict) and type(record.get("step")) is int
    return record if right else None


def _numbered(damaged: dict[int, bytes]) -> str:
    shown = ", ".join(map(str, list(damaged)[:_SHOWN])) + (
        f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    )
    return f"line {shown} has no record and was" if len(damaged) == 1 else f"lines {shown} have no record and were"
