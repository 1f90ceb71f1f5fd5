"""Functions that commands share: printing, progress, the device, and checks of files to write.

On a terminal, progress bars and spinners are shown on standard error, so that standard output can be redirected to a file. If standard
error is not a terminal, a line is printed every 30 seconds. Output that is not on a terminal has no colours, and tables are 100 columns
wide.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional import launch
from diffusional.cli.outputs import check_target
from diffusional.errors import DiffusionalError
from diffusional.progress import EVERY, ProgressLines, duration, line_printer

if TYPE_CHECKING:
    from threading import Event

    import torch
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from diffusional.evaluation.evaluation import Progress as Report
    from diffusional.evaluation.evaluation import Watch

# Width of tables that are not printed on a terminal, in characters.
_WIDTH = 100


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        record: the record that --json writes; it is saved first.
        shown: lines and rich tables, printed after everything is saved.
        saves: functions that write the other files. All are called after --json is written, even if one of them fails.
    """

    record: dict[str, Any]
    shown: Sequence[Any] = ()
    saves: Sequence[Callable[[], None]] = ()


def show(result: Result) -> None:
    """Print a result."""
    for one in result.shown:
        say(one) if isinstance(one, str) else console().print(one)


def say(text: str) -> None:
    """Print a line literally: without wrapping, highlighting or markup."""
    line_printer(console())(text)


def first() -> bool:
    """Return whether this process prints and writes on behalf of all processes of a launch.

    RANK without the other variables is ignored: a launcher that starts several processes sets WORLD_SIZE as well.
    """
    return launch.rank() == 0


def console(stderr: bool = False) -> "Console":
    """Return the console for results or, with `stderr`, for progress; only the first process prints.

    Text is printed literally: brackets and colons in names of runs, files and classes are not markup.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # With NO_COLOR, rich would still write bold and dim text.
    plain: dict[str, Any] = {"color_system": None} if "NO_COLOR" in os.environ else {}
    seen = stream is not None and stream.isatty()
    return Console(
        file=stream,
        width=None if seen else _WIDTH,
        quiet=stream is None or not first(),
        markup=False,
        emoji=False,
        **plain,
    )


def device() -> "torch.device":
    """Return the device for evaluating a model: the accelerator if there is one."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def check_figure(option: str, path: Path) -> None:
    """Check a path for a figure like `check_target`; its suffix is .png, .svg or .pdf."""
    from diffusional.report.style import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise DiffusionalError(f"expected a .png, .svg or .pdf file for {option}, got {path}")
    check_target(option, path)


def numbered(path: Path, *others: str) -> Path:
    """Return `path`, or the first of name-2, name-3, … such that neither it nor the same name with a suffix of `others` exists."""

    def taken(one: Path) -> bool:
        return any(os.path.lexists(name) for name in (one, *(one.with_suffix(suffix) for suffix in others)))

    candidate, number = path, 2
    while taken(candidate):
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


@contextmanager
def plainly() -> Iterator[list[str]]:
    """Print each warning as one line, without its place in the code. The yielded list has the warnings after the block."""
    import warnings

    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for one in caught:
        said.append(str(one.message))
        print(f"diffusional: warning: {one.message}", file=sys.stderr)


def bar(*columns: "ProgressColumn", transient: bool = False) -> "Progress":
    """Return a progress bar on standard error, which is not shown if that is not a terminal."""
    from rich.progress import Progress

    shown = console(stderr=True)
    return Progress(*columns, console=shown, transient=transient, disable=not shown.is_terminal)


@contextmanager
def working(said: str, ended: "Event | None" = None) -> Iterator[None]:
    """Show that a task of unknown length is running: a spinner on a terminal, elsewhere a line every 30 seconds.

    `ended` is set at the end; the lines are timed by its `wait`.
    """
    from threading import Event, Thread

    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    shown = console(stderr=True)
    if not shown.is_terminal:
        over, write = Event() if ended is None else ended, line_printer(shown)

        def report() -> None:
            rounds = 0
            while not over.wait(EVERY):
                rounds += 1
                write(f"{said}: {duration(rounds * EVERY)} so far")

        thread = Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with bar(*columns, transient=True) as moving:
        moving.add_task(said, total=None)
        yield


@contextmanager
def watching(unit: str, dimensions: int, clock: Callable[[], float] = time.monotonic) -> "Iterator[Watch]":
    """Show the progress of an evaluation, with the estimate so far: a bar on a terminal, elsewhere a line every 30 seconds.

    `clock` returns the current time in seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    def estimate(now: "Report") -> str:
        if now.estimate is None:
            return {"pilot": "learning a plan", "audit": "auditing the levels"}.get(now.stage, "")
        return str(now.estimate.to(unit, dimensions)).split(" (")[0]

    shown = console(stderr=True)
    if not shown.is_terminal:
        lines = ProgressLines(
            line_printer(shown),
            "evaluating",
            "evaluations",
            clock=clock,
        )
        yield lambda now: lines.update(now.evaluations, now.expected, estimate(now))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeRemainingColumn(),
    )
    with bar(*columns) as moving:
        task = moving.add_task("evaluating", total=None)

        def watch(now: "Report") -> None:
            moving.update(
                task, description=estimate(now) or "evaluating", completed=now.evaluations, total=now.expected
            )

        yield watch
