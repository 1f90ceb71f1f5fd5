"""`diffusional data`: inspection of data before training."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from diffusional.cli.commands import Data
from diffusional.cli.console import Result, check_figure, plainly, working
from diffusional.training.config import DataConfig

if TYPE_CHECKING:
    from rich.table import Table

    from diffusional.data import Dataset
    from diffusional.data.inspection import Inspection

# The most items of a histogram.
_ROWS = 10_000
# The most classes that are listed.
_CLASSES = 20


def run(command: Data) -> Result:
    """Load data as train does, print the findings, and draw items if a figure is requested."""
    if command.figure is not None:
        check_figure("--figure", command.figure)
    names = [field.name for field in dataclasses.fields(DataConfig)]
    config = DataConfig(**{name: getattr(command.config, name) for name in names})

    from diffusional.data.inspection import inspect
    from diffusional.known_data import recognise_files
    from diffusional.training.build import build_dataset

    with plainly():
        dataset = build_dataset(config)
        with working(f"inspecting {dataset.name}"):
            found = inspect(dataset)
        files = {} if config.name.startswith("hf:") else recognise_files(Path(config.name).expanduser())
    size = f"{found.bytes / 2**20:,.1f} MiB" if found.bytes >= 2**20 else f"{found.bytes:,} bytes"
    shown = [
        f"{found.name}: {_kind(found)}",
        _table(found),
        f"raw values of type {found.raw_type}, {size}; train is {found.held}",
        *(
            f"{split} is {known.name}, recognised by {known.evidence}: {known.about}"
            for split, known in found.versions.items()
        ),
        *(f"{name} is {known}" for name, known in files.items()),
        *_classes(found),
        *(f"note: {note}" for note in found.notes),
        *(f"warning: {finding}" for finding in found.findings),
    ]
    record = found.to_json() | {"config": dataclasses.asdict(config)}
    record["files"] = {name: dataclasses.asdict(known) for name, known in files.items()}
    if command.figure is None:
        return Result(record, shown)
    figure = command.figure
    return Result(record, [*shown, f"drawn in {figure}"], [lambda: _draw(figure, dataset, found)])


def _table(found: "Inspection") -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("split")
    for column in ("items", "least", "most"):
        table.add_column(column, justify="right")
    table.add_column("fingerprint")
    for split, n in found.items.items():
        looked = found.looked_at[split]
        items = f"{n:,}" if n is not None else "a stream"
        items += "" if n == looked else f" ({looked:,} examined)"
        least, most = (f"{value:.6g}" for value in found.ranges[split])
        table.add_row(split, items, least, most, found.fingerprints[split][:12])
    return table


def _classes(found: "Inspection") -> list[str]:
    """Return a line on the class labels, if there are any: the train items of each class."""
    if found.classes is None:
        return []
    shown = [f"{name} ({counts['train']:,})" for name, counts in found.classes.items()]
    more = f" and {len(shown) - _CLASSES} more" if len(shown) > _CLASSES else ""
    return [f"condition: {len(shown)} classes, with train items: {', '.join(shown[:_CLASSES])}{more}"]


def _kind(found: "Inspection") -> str:
    """Return a description of an item: its shape, and its possible values."""
    from diffusional.data.survey import MOST
    from diffusional.space import Discrete

    shape = " × ".join(map(str, found.space.shape))
    what = {1: f"{shape} numbers", 3: f"images of {shape} (channels × height × width)"}
    item = what.get(len(found.space.shape), f"arrays of {shape}")
    if isinstance(found.space, Discrete):
        least = "at least " if found.distinct == MOST else ""
        return f"{item}, {found.space.levels} levels, of which {least}{found.distinct} occur"
    return f"{item}, real-valued"


def _draw(path: Path, dataset: "Dataset", found: "Inspection") -> None:
    """Draw the first images, or for other data a histogram for each position of an item."""
    from diffusional.data.dataset import Stream
    from diffusional.report.figures import grid, histograms
    from diffusional.space import Discrete

    if len(found.space.shape) == 3:
        images = found.picture.numpy()
        low, high = float(images.min()), float(images.max())
        if isinstance(found.space, Discrete):
            low, high = 0.0, found.space.levels - 1.0
        grid(path, images, f"{found.name}: the first {len(images)} train items", low=low, high=max(high, low + 1e-12))
        return
    rows = dataset.train.head(_ROWS) if isinstance(dataset.train, Stream) else dataset.items("train")[:_ROWS]
    columns = rows.flatten(1).numpy()
    labels = dataset.labels or tuple(map(str, range(columns.shape[1])))
    histograms(path, columns, labels, f"{found.name}: {len(columns)} train items")
