"""The scalars of metrics.jsonl as event files for TensorBoard, in RUN/tensorboard."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusional.extras import needed_for

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raise MissingPackageError if tensorboard is not installed."""
    with needed_for("tensorboard"):
        import tensorboard  # noqa: F401


class EventWriter:
    """Writes the numbers of records of metrics.jsonl as scalars of the same names, at their step.

    Event files are made from the beginning of metrics.jsonl each time a run starts or resumes, and those of earlier processes are removed. So
    they have the same points as metrics.jsonl: each once, whenever training was interrupted, and also those from before the option was given.

    Args:
        run: the run folder.
        records: the records that metrics.jsonl already has.

    Raises MissingPackageError if tensorboard is not installed.
    """

    def __init__(self, run: Path, records: Iterable[Mapping[str, Any]]) -> None:
        with needed_for("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        folder = run / FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # With purge_step, a TensorBoard that is running discards what it read from the removed files.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for record in records:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()
