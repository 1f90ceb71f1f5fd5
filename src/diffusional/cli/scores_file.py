"""The file of --per-item: the score of every item, with its file, row and split."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from diffusional.cli.items import SPLITS, ChosenItems
from diffusional.cli.outputs import check_target, save
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation import Comparison


def check_scores_file(path: Path, inputs: Iterable[str | Path | None], json: Path | None) -> None:
    """Raise DiffusionalError for a --per-item that is neither .csv nor .npz, cannot be written, or is an input or the file of --json."""
    if path.suffix not in (".csv", ".npz"):
        raise DiffusionalError(f"expected a .csv or .npz file for --per-item, got {path}")
    check_target("--per-item", path, [Path(one).expanduser() for one in inputs if one is not None])
    if json is not None and os.path.realpath(json) == os.path.realpath(path):
        raise DiffusionalError(f"--json and --per-item both name {json}; name two files")


def write_scores(path: Path, per_item: "Mapping[str, Tensor]", chosen: ChosenItems) -> None:
    """Write the columns of every item (scores and costs in nats, errors, numbers of draws) with its file, row and split, as .csv or .npz.

    Lines are in the order of the file.
    """
    import csv
    import io

    import numpy as np

    columns = {name: values.numpy() for name, values in per_item.items()}
    item = columns.pop("item")
    known = {name: values[item] for name, values in chosen.columns.items()}
    order = np.arange(len(item))
    if chosen.own:  # splits may be in a random order, and come from one array or several
        places = set(zip(known["source"].tolist(), known["row"].tolist(), strict=True))
        one = len(places) == len(item)
        rank = np.array([0 if one else SPLITS.index(split) for split in known["split"].tolist()])
        order = np.lexsort((known["row"], known["source"], rank))
    columns = {name: values[order] for name, values in ({"item": item} | known | columns).items()}

    def write(file: "BinaryIO") -> None:
        if path.suffix == ".npz":
            np.savez_compressed(file, allow_pickle=False, **columns)
            return
        # File names that are not UTF-8 are written as their original bytes.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        text.flush()
        text.detach()

    save(path, write)


def both_scores(result: "Comparison") -> "dict[str, Tensor]":
    """Return the difference of every item, and the scores of both runs under names that end in _a and _b."""
    items = result.per_item["item"]
    columns = {"item": items, "difference": result.per_item["difference"], "error": result.per_item["error"]}
    for name, one in (("a", result.a), ("b", result.b)):
        order = one.per_item["item"].argsort()
        columns |= {f"{key}_{name}": values[order] for key, values in one.per_item.items() if key != "item"}
    return columns
