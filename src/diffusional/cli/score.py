"""`diffusional score`: every item's cost, its percentile among reference items, and how untypical it is."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import items_of, opened, show_origin
from diffusional.cli.commands import Score
from diffusional.cli.console import Result, check_figure, check_target, device, first, watching
from diffusional.cli.evaluate import check_scores_file, write_scores
from diffusional.cli.items import ChosenItems, items
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation.extremes import Extremes
    from diffusional.evaluation.maps import CostMaps
    from diffusional.evaluation.score import Scores
    from diffusional.evaluation.stage_maps import StageMaps
    from diffusional.models.base import LatentVariableModel
    from diffusional.training.run import RunRecord

# The fewest network evaluations of an item for its cost map.
MAP_VISITS = 64


def run(command: Score) -> Result:
    """Score the items, and outliers with them, against a reference."""
    import torch

    from diffusional.conditions import rows_of
    from diffusional.evaluation.extremes import extremes
    from diffusional.evaluation.maps import cost_map
    from diffusional.evaluation.score import BY, auroc, score
    from diffusional.evaluation.stage_maps import StageMaps, about_maps, stage_maps
    from diffusional.ledger import per_unit
    from diffusional.models.composite import Composite

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
    if command.maps is not None:
        _check_maps(command, model)
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
        ends = extremes(
            model, chosen.x, scores, command.shown, condition=chosen.condition, seed=command.seed, progress=watch
        )
    maps = None
    if command.maps is not None:
        visits, some = max(MAP_VISITS, command.visits), rows_of(chosen.condition, ends.item)
        if isinstance(model, Composite):
            maps = stage_maps(model, chosen.x[ends.item], visits=visits, condition=some, seed=command.seed)
        else:
            maps = cost_map(
                model, chosen.x[ends.item], visits=visits, plan=scores.plan, condition=some, seed=command.seed
            )
    known = len(chosen.data)
    bit = per_unit("bits/dim", model.space.dimensions)
    columns = _columns(scores)
    notes = _notes(command, chosen, scores, ends, bit)
    if isinstance(maps, StageMaps):
        notes.append(f"note: {about_maps(maps)}")
    lines = _lines(chosen, scores, ends, bit) + notes
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
        **{name: _listed(chosen, ends, items, bit) for name, items in _ends(ends).items()},
        "evaluations_of_the_ends": ends.evaluations,
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
        columns |= {name: _spread_out(ends.item, values, known) for name, values in _redrawn(ends).items()}
        saves.append(lambda: write_scores(target, {"item": torch.arange(known), **columns}, chosen))
    if maps is not None and command.maps is not None and first():
        place, drawn = command.maps, maps
        saves.append(lambda: _save_maps(place, drawn, ends, chosen, model.space))
    if command.figure is not None and first():
        figure = command.figure
        saves.append(lambda: _draw(figure, model.space, chosen, scores.nelbo))
    return Result(about, lines, saves)


def _check_maps(command: Score, model: "LatentVariableModel") -> None:
    from diffusional.models.composite import Composite
    from diffusional.report.style import FORMATS

    assert command.maps is not None
    if command.maps.suffix.lower() in FORMATS:
        check_figure("--maps", command.maps)
        if len(model.space.shape) != 3:
            raise DiffusionalError(
                f"--maps draws images, and the items have the shape {model.space.shape}; name a .npz file for the numbers"
            )
    elif command.maps.suffix == ".npz":
        inputs = [Path(one).expanduser() for one in (command.data, command.reference, command.outliers) if one]
        check_target("--maps", command.maps, inputs)
    else:
        raise DiffusionalError(f"expected a .npz file, or a .png, .svg or .pdf file, for --maps, got {command.maps}")
    if not isinstance(model, Composite) and model.visited() is not model:
        raise DiffusionalError(
            f"--maps is not available for {command.run}: the latents of a {type(model).__name__} are not positions of an item; leave it out"
        )


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
    if len(found.data) < 2:
        raise DiffusionalError(
            f"expected at least 2 items {use}, got {len(found.data)} ({found.name}); give more items, or leave {option} out"
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


def _ends(ends: "Extremes") -> "dict[str, Tensor]":
    return {"least_likely": ends.least_likely, "most_likely": ends.most_likely}


def _listed(chosen: ChosenItems, ends: "Extremes", items: "Tensor", bit: float) -> list[dict[str, Any]]:
    """Return the entries of listed items in the record."""
    entries = []
    for i in items.tolist():
        at = ends.place(i)
        entries.append(
            {
                "item": i,
                "name": name_of(chosen, i),
                "nelbo": {
                    "value": float(ends.nelbo[at]) / bit,
                    "error": float(ends.error[at]) / bit,
                    "unit": "bits/dim",
                },
                "visits": int(ends.visits[at]),
            }
            | ({} if ends.percentile is None else {"percentile": float(ends.percentile[at])})
        )
    return entries


def _redrawn(ends: "Extremes") -> "dict[str, Tensor]":
    """Return the columns of the draws that report the listed items, nats."""
    return {"nelbo_again": ends.nelbo, "error_again": ends.error, "visits_again": ends.visits.double()}


def _spread_out(items: "Tensor", values: "Tensor", n: int) -> "Tensor":
    """Return values (m,) of some items in the rows of all n items; NaN for the others."""
    out = values.new_full((n,), math.nan)
    out[items] = values
    return out


def _lines(chosen: ChosenItems, scores: "Scores", ends: "Extremes", bit: float) -> list[str]:
    """Return a line for each of the items at either end, the least likely first."""
    width = max(len(name_of(chosen, i)) for i in ends.item.tolist())

    def line(i: int) -> str:
        at = ends.place(i)
        parts = [
            f"{name_of(chosen, i):<{width}}",
            f"{float(ends.nelbo[at]) / bit:8.4f} ± {float(ends.error[at]) / bit:.4f} bits/dim",
        ]
        if ends.percentile is not None:
            parts.append(f"percentile {float(ends.percentile[at]):5.1f}")
        return "  ".join(parts)

    against = "" if scores.reference is None else f", against {len(scores.reference):,} reference items"
    least, most = int(ends.visits.min()), int(ends.visits.max())
    visits = f"{least}" if least == most else f"{least} to {most}"
    return [
        f"{chosen.name}, {chosen.split}: {len(scores.nelbo):,} items{against}",
        "least likely:",
        *(f"  {line(i)}" for i in ends.least_likely.tolist()),
        "most likely:",
        *(f"  {line(i)}" for i in ends.most_likely.tolist()),
        f"listed by {visits} new draws of each of these items, which did not choose them: {ends.evaluations:,} network evaluations with the "
        "choice",
    ]


def _notes(command: Score, chosen: ChosenItems, scores: "Scores", ends: "Extremes", bit: float) -> list[str]:
    """Return a warning of scores whose error hides their rank, and a note if only the test split of the run's data was scored."""
    notes = []
    error, spread = scores.error.clone(), scores.spread
    error[ends.item] = ends.error
    unsure = (error > 3 * spread).nonzero().flatten().tolist()
    if unsure:
        unsure.sort(key=lambda i: -float(error[i]))
        names = ", ".join(name_of(chosen, i) for i in unsure[: command.shown])
        more = "" if len(unsure) <= command.shown else ", …"
        whose = "the items" if scores.reference is None else "the reference items"
        notes.append(
            f"warning: the rank of {len(unsure):,} of {len(error):,} items is not reliable ({names}{more}). A Monte Carlo error (up to "
            f"{float(error[unsure[0]]) / bit:.4g} bits/dim) is more than three times the interquartile range of {whose} "
            f"({spread / bit:.4g} bits/dim). Such items are often outliers, at whichever end they are listed. Use a larger "
            "--visits, or `diffusional evaluate --item-error`"
        )
    if command.split is None and chosen.split != "all":
        notes.append(f"note: only the {chosen.split} split of the run's data was scored; --split all scores every item")
    return notes


def name_of(chosen: ChosenItems, i: int) -> str:
    """Return the file of an item, and its row unless every file has one item, as images do."""
    source, row = str(chosen.columns["source"][i]), int(chosen.columns["row"][i])
    name = Path(source).name or chosen.name
    single = len(chosen.data) > 1 and len(set(chosen.columns["source"])) == len(chosen.data)
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


def _save_maps(path: Path, maps: "CostMaps | StageMaps", ends: "Extremes", chosen: ChosenItems, space: Any) -> None:
    """Write the maps of the listed items, or draw them under the items, the least likely first."""
    from diffusional.report.figures import cost_maps

    if path.suffix == ".npz":
        maps.save(path, ends.item)
        return
    order = [ends.place(i) for i in [*ends.least_likely.tolist(), *ends.most_likely.flip(0).tolist()]]
    order = list(dict.fromkeys(order))
    x = chosen.x[ends.item[order]].cpu()
    low, high = (space.low, space.high) if space.levels else (float(x.min()), float(x.max()))
    title = f"{chosen.name}: nats per pixel, from the least likely item to the most likely"
    cost_maps(path, x.numpy(), maps.total[order].sum(1).numpy(), title, low=low, high=high)
