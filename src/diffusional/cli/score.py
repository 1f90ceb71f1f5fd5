"""`diffusional score`: every item's cost, its percentile among reference items, and how untypical it is."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import items_of, opened, show_origin
from diffusional.cli.commands import Score
from diffusional.cli.console import Result, check_figure, device, first, watching
from diffusional.cli.evaluate import check_scores_file, write_scores
from diffusional.cli.items import ChosenItems, items
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation.score import Scores
    from diffusional.training.run import RunRecord


def run(command: Score) -> Result:
    """Score the items, and outliers with them, against a reference."""
    import torch

    from diffusional.conditions import rows_of
    from diffusional.evaluation.score import BY, auroc, score
    from diffusional.ledger import per_unit

    _check(command)
    run, bare = opened(command.run, command)
    record, model = run.record, run.model.to(device())
    if bare:
        show_origin(model, command.run)
    chosen = items_of(command, record, bare)
    reference = _reference(command, record)
    outliers = None
    if command.outliers is not None:
        outliers = items(record, command.outliers, split="all", condition=command.condition)
        _at_least_two(chosen, f"to compare with --outliers {command.outliers}", "--outliers")
        _at_least_two(outliers, "in --outliers", "--outliers")
    if reference is not None:
        _at_least_two(reference, "in --reference", "--reference")
    if command.bands is not None and model.visited() is not model:
        raise DiffusionalError(f"--bands is not available for {command.run}, whose model has no levels: leave it out")
    most = slice(0, command.most)
    others = None if reference is None else reference.x[most]
    with watching("bits/dim", model.space.dimensions) as watch:
        scored = functools.partial(
            score, model, visits=command.visits, bands=command.bands, seed=command.seed, progress=watch
        )
        scores = scored(
            chosen.x,
            others,
            condition=chosen.condition,
            reference_condition=None if reference is None else rows_of(reference.condition, most),
        )
        # Apart from the data, so that an item has the same noise in both.
        apart = None
        if outliers is not None:
            apart = scored(outliers.x[most], condition=rows_of(outliers.condition, most), plan=scores.plan)
            apart = dataclasses.replace(apart, reference=scores.reference, reference_profile=scores.reference_profile)
    known = len(chosen.x)
    bit = per_unit("bits/dim", model.space.dimensions)
    columns = _columns(scores)
    notes = _notes(command, chosen, scores, bit)
    lines = _lines(command, chosen, scores, columns, bit) + notes
    about: dict[str, Any] = {
        "format": 1,
        "data": chosen.name,
        "split": chosen.split,
        "items": known,
        "reference": None if reference is None else f"{reference.name}, {reference.split}",
        "reference_items": None if scores.reference is None else len(scores.reference),
        "nelbo": {"value": float(scores.nelbo.mean()) / bit, "unit": "bits/dim"},
        "visits": command.visits,
        "seed": command.seed,
        "notes": notes,
        "provenance": dict(scores.evaluation.provenance),
    }
    if outliers is not None and apart is not None:
        areas = {name: auroc(apart.by(name), scores.by(name)) for name in BY if scores.has(name)}
        about["auroc"] = {name: {"value": area.value, "error": area.error} for name, area in areas.items()}
        about["outliers"] = {"data": command.outliers, "items": len(apart.nelbo)}
        lines += [f"{outliers.name} against {chosen.name} by {name}: {area}" for name, area in areas.items()]
    saves = []
    if command.per_item is not None and first():
        target = command.per_item
        saves.append(lambda: write_scores(target, {"item": torch.arange(known), **columns}, chosen))
    if command.figure is not None and first():
        figure = command.figure
        saves.append(lambda: _draw(figure, model.space, chosen, scores.nelbo))
    return Result(about, lines, saves)


def _check(command: Score) -> None:
    if command.per_item is not None:
        check_scores_file(command.per_item, (command.data, command.reference, command.outliers), command.json)
    if command.figure is not None:
        check_figure("--figure", command.figure)
    for name, least in (("visits", 2), ("most", 2), ("shown", 1)):
        if getattr(command, name) < least:
            raise DiffusionalError(
                f"expected --{name} of at least {least}, got {getattr(command, name)}; give a larger number, or leave it out"
            )


def _reference(command: Score, record: "RunRecord") -> ChosenItems | None:
    """Return the reference items: --reference, or the validation split of the run's own data; None if there are none."""
    if command.reference is not None:
        return items(record, command.reference, split="all", condition=command.condition)
    return items(record, split="validation") if (record.items.get("validation") or 0) >= 2 else None


def _at_least_two(found: ChosenItems, use: str, option: str) -> None:
    if len(found.x) < 2:
        raise DiffusionalError(
            f"expected at least 2 items {use}, got {len(found.x)} ({found.name}); give more items, or leave {option} out"
        )


def _columns(scores: "Scores") -> "dict[str, Tensor]":
    """Return the columns of the scores, nats."""
    columns = {"nelbo": scores.nelbo, "error": scores.error}
    if scores.reference is not None:
        columns |= {"percentile": scores.percentile, "typicality": scores.typicality}
    if scores.profile is not None:
        columns |= {f"band_{band}": costs for band, costs in enumerate(scores.profile.T, 1)}
        if scores.reference_profile is not None:
            columns["profile"] = scores.distance
    return columns


def _lines(
    command: Score, chosen: ChosenItems, scores: "Scores", columns: "dict[str, Tensor]", bit: float
) -> list[str]:
    """Return a line for each of the items at either end, the least likely first."""
    nelbo = columns["nelbo"]
    order = nelbo.argsort(descending=True).tolist()
    shown = min(command.shown, len(order))
    width = max(len(_name(chosen, i)) for i in (*order[:shown], *order[-shown:]))

    def line(i: int) -> str:
        parts = [
            f"{_name(chosen, i):<{width}}",
            f"{float(nelbo[i]) / bit:8.4f} ± {float(columns['error'][i]) / bit:.4f} bits/dim",
        ]
        if "percentile" in columns:
            parts.append(f"percentile {float(columns['percentile'][i]):5.1f}")
        return "  ".join(parts)

    against = "" if scores.reference is None else f", against {len(scores.reference):,} reference items"
    return [
        f"{chosen.name}, {chosen.split}: {len(nelbo):,} items{against}",
        "least likely:",
        *(f"  {line(i)}" for i in order[:shown]),
        "most likely:",
        *(f"  {line(i)}" for i in reversed(order[-shown:])),
    ]


def _notes(command: Score, chosen: ChosenItems, scores: "Scores", bit: float) -> list[str]:
    """Return a warning of scores whose error hides their rank, and a note if only the test split of the run's data was scored."""
    notes = []
    nelbo, error = scores.nelbo, scores.error
    others = nelbo if scores.reference is None else scores.reference
    ordered = others.sort().values
    spread = float(ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4])
    unsure = (error > 3 * spread).nonzero().flatten().tolist()
    if unsure:
        unsure.sort(key=lambda i: -float(error[i]))
        names = ", ".join(_name(chosen, i) for i in unsure[: command.shown])
        more = "" if len(unsure) <= command.shown else ", …"
        whose = "the items" if scores.reference is None else "the reference items"
        notes.append(
            f"warning: the rank of {len(unsure):,} of {len(nelbo):,} items is not reliable ({names}{more}). A Monte Carlo error (up to "
            f"{float(error[unsure[0]]) / bit:.4g} bits/dim) is more than three times the interquartile range of {whose} "
            f"({spread / bit:.4g} bits/dim). Such items are often outliers, at whichever end they are listed. Use a larger "
            "--visits, or `diffusional evaluate --item-error`"
        )
    if command.split is None and chosen.split != "all":
        notes.append(f"note: only the {chosen.split} split of the run's data was scored; --split all scores every item")
    return notes


def _name(chosen: ChosenItems, i: int) -> str:
    """Return the file of an item, and its row unless every file has one item, as images do."""
    source, row = str(chosen.columns["source"][i]), int(chosen.columns["row"][i])
    name = Path(source).name or chosen.name
    single = len(chosen.x) > 1 and len(set(chosen.columns["source"])) == len(chosen.x)
    return name if row < 0 or single else f"{name}, row {row}"


def _draw(path: Path, space: Any, chosen: ChosenItems, nelbo: "Tensor", most: int = 20) -> None:
    """Draw the most and the least likely images."""
    import torch

    from diffusional.report.figures import grid

    if len(space.shape) != 3:
        raise DiffusionalError(f"--figure draws images, and the items have the shape {space.shape}; leave it out")
    order = nelbo.argsort()
    ends = torch.cat([order[:most], order[-most:].flip(0)]) if len(order) > 2 * most else order
    low, high = (space.low, space.high) if space.levels else (float(chosen.x.min()), float(chosen.x.max()))
    grid(
        path,
        chosen.x[ends].numpy(),
        f"{chosen.name}: the most likely (above) and the least likely items",
        low=low,
        high=high,
    )
