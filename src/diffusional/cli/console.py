"""What the commands share: where they print and compute, what they show meanwhile, and which files they may write."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from diffusional.evaluation.evaluation import Watch


def console() -> "Console":
    """Where results are printed."""
    from rich.console import Console

    return Console()


def device() -> "torch.device":
    """Where a model is evaluated: the accelerator, where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_target(option: str, path: Path) -> None:
    """Before the work, not after it: can the result be written there?"""
    if path.is_dir():
        raise DiffusionalError(f"{option} {path}: this is a folder; give a file")
    if not path.resolve().parent.is_dir():
        raise DiffusionalError(f"{option} {path}: the folder {path.resolve().parent} does not exist")


def numbered(path: Path) -> Path:
    """`path`, or the first of name-2, name-3 … that does not exist: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


@contextmanager
def plainly() -> Iterator[None]:
    """Warnings as one line each, without a place in the code."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        print(f"diffusional: warning: {one.message}", file=sys.stderr)


@contextmanager
def watching(unit: str, dimensions: int) -> "Iterator[Watch]":
    """A progress bar with the estimate so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("evaluating", total=None)

        def watch(now: Any) -> None:
            said = "evaluating" if now.estimate is None else str(now.estimate.to(unit, dimensions)).split(" (")[0]
            bar.update(task, description=said, completed=now.evaluations, total=now.expected)

        yield watch
