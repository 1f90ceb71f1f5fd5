"""`diffusional evaluate` with --estimator or --witnesses: replicates, importance weights, the probability flow, and all of them side by side."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Evaluate
from diffusional.cli.console import Result, first, watching, working
from diffusional.cli.items import ChosenItems
from diffusional.cli.options import changed, typed
from diffusional.cli.scores_file import write_scores
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from diffusional.evaluation import Evaluation
    from diffusional.evaluation.plan import Plan
    from diffusional.evaluation.target import ODE
    from diffusional.evaluation.witnesses import Code
    from diffusional.models.base import LatentVariableModel

# Items of --witnesses, unless another number is given: each takes 64 paths.
_WITNESSED = 32
# Draws of --estimator iwae.
_DRAWS = 64
# Visits of a replicate and replicates of --estimator replicates.
_VISITS, _REPLICATES = 8, 2


# The options that only apply with these, and those of other ways that they take.
_OWN = {
    "--witnesses": ("probes", "tolerance", "interpolate", "items"),
    "--estimator replicates": ("replicates", "items"),
    "--estimator iwae": ("k", "items"),
    "--estimator ode": ("k", "probes", "tolerance", "interpolate", "items"),
}
_ALSO = {
    "--witnesses": ("error", "visits"),
    "--estimator replicates": ("error", "visits", "max_evaluations", "plan", "html", "per_item"),
    "--estimator iwae": ("html", "per_item"),
    "--estimator ode": ("html", "per_item"),
}
_OF_OTHERS = (
    *("sweep", "draws", "cells", "plan", "importance_weighted", "deterministic", "item_error", "max_evaluations", "error", "visits"),
    *("no_audit", "html", "per_item"),
)  # fmt: skip


def check_estimator(command: Evaluate) -> None:
    """Raise DiffusionalError for options that do not apply with --estimator or --witnesses, or without."""
    from diffusional.evaluation.target import check_replicates

    chosen = "--witnesses" if command.witnesses else f"--estimator {command.estimator}"
    if command.witnesses and command.estimator is not None:
        raise DiffusionalError(
            f"--witnesses includes other estimators: leave out --estimator {command.estimator}, or --witnesses"
        )
    of_any = {name for names in _OWN.values() for name in names}
    given = changed(command)
    if chosen not in _OWN:
        if own := [name for name in given if name in of_any]:
            ways = " or ".join(way for way, names in _OWN.items() if own[0] in names)
            raise DiffusionalError(f"{typed(own)} cannot be used for the NELBO by visits: give {ways} too")
        return
    allowed = {*_OWN[chosen], *_ALSO[chosen]}
    others = [name for name in given if name in (of_any | set(_OF_OTHERS)) - allowed]
    if others:
        raise DiffusionalError(f"{typed(others)} cannot be used with {chosen}: leave one out")
    if command.other is not None:
        raise DiffusionalError(f"{chosen} is about a single run, got two; evaluate one run at a time")
    if command.guidance is not None and len(command.guidance) > 1:
        raise DiffusionalError(f"{chosen} takes one weight of --guidance, got {len(command.guidance)}")
    if command.k is not None and command.k < 2:
        raise DiffusionalError(f"expected --k to be at least 2, got {command.k}")
    if command.items is not None and command.items < 1:
        raise DiffusionalError(f"expected --items to be at least 1, got {command.items}")
    if command.estimator == "replicates":
        check_replicates(*_numbers(command))
    _flow(command)


def _numbers(command: Evaluate) -> tuple[int, int]:
    """Return the numbers of visits and replicates of --estimator replicates."""
    visits, replicates = command.visits, command.replicates
    return _VISITS if visits is None else visits, _REPLICATES if replicates is None else replicates


def _flow(command: Evaluate) -> "ODE":
    from diffusional.evaluation.target import ODE

    draws = command.k if command.estimator == "ode" else None
    return ODE(draws, command.probes, tolerance=command.tolerance, interpolate=command.interpolate)


def _part(command: Evaluate, model: "LatentVariableModel", chosen: ChosenItems) -> ChosenItems:
    """Return the items of --items: a random part, if there are more."""
    from diffusional.conditions import rows_of
    from diffusional.evaluation.witnesses import some_items

    n = command.items or (_WITNESSED if command.witnesses else len(chosen.data))
    if n >= len(chosen.data):
        return chosen
    rows = some_items(model, chosen.x, n, chosen.condition)
    columns = {name: values[rows.numpy()] for name, values in chosen.columns.items()}
    return dataclasses.replace(chosen, data=chosen.x[rows], condition=rows_of(chosen.condition, rows), columns=columns)


def estimated(
    command: Evaluate,
    model: "LatentVariableModel",
    chosen: ChosenItems,
    about: dict[str, Any],
    target: float | None,
    plan: "Callable[[], Plan | None]",
    page: "Callable[[Evaluation], Iterable[Callable[[], None]]]",
    lines: "Callable[[Evaluation, ChosenItems, dict[str, Any]], list[str]]",
) -> Result:
    """Evaluate by replicates, by importance weights or by the probability flow, or compare all witnesses.

    Args:
        target: the Monte Carlo error to reach, for replicates.
        plan: returns the plan of replicates, None if the evaluation is to learn one.
        page: returns what writes the file of --html.
        lines: returns what is shown below the table of a bound, and adds it to the record's `about`.
    """
    from diffusional.evaluation.evaluation import evaluate
    from diffusional.evaluation.target import ImportanceWeights, Replicates
    from diffusional.report.tables import ledger_table

    whole, chosen = len(chosen.data), _part(command, model, chosen)
    n = len(chosen.data)
    about = about | ({} if n == whole else {"items_of": whole})
    if command.witnesses:
        return _witnessed(command, model, chosen, about)
    draws = command.k or _DRAWS
    options: dict[str, Any] = {"seed": command.seed, "condition": chosen.condition}
    if command.estimator == "replicates":
        visits, replicates = _numbers(command)
        estimator, what = Replicates(visits, replicates, plan()), ""
        options |= {"target_error": target, "unit": command.unit, "max_evaluations": command.max_evaluations}
    elif command.estimator == "iwae":
        model.check_log_weight()
        estimator, what = ImportanceWeights(draws), f"{draws} paths of each item"
    else:
        estimator, what = _flow(command), "probability flow"
    if command.estimator == "iwae":
        with working(f"drawing {what}: {n * draws * model.evaluations:,} network evaluations"):
            result = evaluate(model, chosen.x, estimator=estimator, **options)
    else:
        with watching(command.unit, model.space.dimensions) as watch:
            result = evaluate(model, chosen.x, estimator=estimator, progress=watch, **options)
    if isinstance(estimator, Replicates):
        what = f"{result.provenance['replicates']} replicates of {estimator.visits} visits of each item"
    calls = result.nelbo.network_evaluations
    part = "" if n == whole else f" of {whole}"
    title = f"{chosen.name}, {chosen.split}: {n}{part} items, {what}, {calls:,} network evaluations"
    shown: list[Any] = [ledger_table(result, title), *result.error_lines()]
    if isinstance(estimator, Replicates):
        shown += lines(result, chosen, about)
    result = dataclasses.replace(result, about=about)
    saves = list(page(result))
    if command.per_item is not None and first():
        path: Path = command.per_item
        saves.append(lambda: write_scores(path, result.per_item, chosen))
    return Result(result.to_json(), shown, saves)


def _code(model: "LatentVariableModel") -> "Code | None":
    """Return the length of the codec's files, if its package is installed and the data are discrete."""
    if importlib.util.find_spec("constriction") is None or model.space.levels is None:
        return None
    from diffusional.codec import code_length

    return code_length


def _witnessed(command: Evaluate, model: "LatentVariableModel", chosen: ChosenItems, about: dict[str, Any]) -> Result:
    from diffusional.evaluation.witnesses import witnesses

    options: dict[str, Any] = {"visits": command.visits} if command.visits is not None else {}
    if command.error is not None:
        options["target_error"], options["unit"] = command.error, command.unit
    with working(f"comparing the witnesses of {len(chosen.data)} items"):
        found = witnesses(
            model,
            chosen.x,
            flow=_flow(command),
            condition=chosen.condition,
            seed=command.seed,
            code=_code(model),
            **options,
        )
    found = dataclasses.replace(found, about=about)
    return Result(found.to_json(), [str(found)])
