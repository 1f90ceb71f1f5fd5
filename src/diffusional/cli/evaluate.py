"""`diffusional evaluate`, for one run or two."""

import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import checked, is_foreign, items_of, opened, show_origin
from diffusional.cli.commands import Evaluate
from diffusional.cli.console import Result, device, first, plainly, say, watching, working
from diffusional.cli.estimators import check_estimator, estimated
from diffusional.cli.guidance import guidance_options, guided
from diffusional.cli.items import ChosenItems, already_trained_on
from diffusional.cli.prompted import evaluate_prompts, wants_prompts
from diffusional.cli.scores_file import both_scores
from diffusional.cli.scores_file import check_scores_file as check_scores_file
from diffusional.cli.scores_file import write_scores as write_scores
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.evaluation import Evaluation, Plan
    from diffusional.models.base import LatentVariableModel
    from diffusional.training.folder import Run
    from diffusional.training.run import RunRecord


# The maximum number of network evaluations for the importance weights of an item.
_MOST_WEIGHTS = 100_000
# The default target for the Monte Carlo error of a mean, in bits/dim.
_ERROR = 0.01


def run(command: Evaluate) -> Result:
    """Evaluate on all processes that a launcher started; each item is evaluated by one of them."""
    from diffusional.evaluation.ranks import launched

    with launched():
        return _evaluate(command)


def _evaluate(command: Evaluate) -> Result:
    from diffusional.evaluation import Plan, evaluate, importance_weighted
    from diffusional.evaluation.evaluation import regridded
    from diffusional.evaluation.target import Target
    from diffusional.files import save_json
    from diffusional.report.tables import ledger_table

    if wants_prompts(command):
        return evaluate_prompts(command)
    _check_evaluate(command)
    check_estimator(command)
    sweep = command.sweep or command.draws is not None or command.cells is not None
    if not sweep and command.estimator is None:
        # Checked before anything is fitted or written. Whether it is a valid target does not depend on the dimensions.
        Target(
            _target(command, 1),
            visits=command.visits,
            item_error=command.item_error,
            max_evaluations=command.max_evaluations,
        )
    run, theirs, bare = _opened(command)
    record, model = run.record, run.model.to(device())
    _check_levels(command, model, sweep)
    if command.steps is not None or command.continuous:
        with plainly():
            model = regridded(model, "continuous" if command.steps is None else command.steps)
    weights, unguided = list(command.guidance or ()), model
    if len(weights) == 1:
        model = guided(model, weights[0], command)
    if command.importance_weighted is not None:
        _check_weights(command, model)
    # Labels are those of the run that has classes, if the other has none.
    labelled = theirs.record if theirs is not None and theirs.record.conditional and not record.conditional else record
    chosen = items_of(command, labelled, bare, columns=command.columns, decimal=command.decimal)
    name, split, data = chosen.name, chosen.split, chosen.data
    if command.other_condition is not None and theirs is None:
        raise DiffusionalError(
            f"--other-condition compares two conditions, but one run was given; give the run twice: {command.run} {command.run}"
        )
    if theirs is not None:
        return _compare(command, run, theirs, model, chosen, bare)
    about = _about(chosen, record)
    if record.conditional:
        about["condition"] = record.config.data.condition
    if not command.no_check and (found := checked(command.run, unguided, chosen)) is not None:
        about["check"] = found
    if weights:
        if chosen.condition is None:
            raise DiffusionalError(
                f"--guidance needs a condition, but {command.run} was trained without one; leave it out"
            )
        if len(weights) > 1:
            return _guidance_table(command, run, model, chosen, about, bare)
        about["guidance"] = {"weight": weights[0]} | guidance_options(command)

    def planned() -> "Plan | None":
        if command.plan is not None:
            return Plan.load(command.plan, model)
        return None if bare else run.plan(model, seed=command.seed, learning=_learning)

    def page(result: "Evaluation") -> list[Callable[[], None]]:
        if command.html is None or not first():
            return []
        from diffusional.cli.pages import html_of

        return html_of(command, [(record, command.run, result, not bare)], None)

    def lines(result: "Evaluation", chosen: ChosenItems, about: dict[str, Any]) -> list[str]:
        return [*_text_units(result, model, chosen, about), *_worse_than_uniform(result, model)]

    if command.estimator is not None or command.witnesses:
        target = _target(command, model.space.dimensions) if command.replicates is None else command.error
        return estimated(command, model, chosen, about, target, planned, page, lines)
    plan = None if sweep else planned()
    visited = model.visited() is not None
    with watching(command.unit, model.space.dimensions) as watch:
        result = evaluate(
            model,
            data,
            None if sweep else _target(command, model.space.dimensions),
            command.unit,
            seed=command.seed,
            plan=plan,
            visits=command.visits,
            item_error=command.item_error,
            every_item=command.per_item is not None,
            max_evaluations=command.max_evaluations,
            audit=not command.no_audit,
            draws=command.draws,
            cells=1000 if command.cells is None else command.cells,
            deterministic=command.deterministic,
            condition=chosen.condition,
            # Draws are not kept in a run folder that is read-only, such as a shared one.
            records=command.run if visited and not sweep and not bare and os.access(command.run, os.W_OK) else None,
            progress=watch,
        )
    learned = model.learned_posterior()
    parts = [] if learned is None else [f"latents {', '.join(map(str, learned.latents))}"]
    if visited or model.steps is not None:
        parts.append("T = ∞" if model.steps is None else f"T = {model.steps}")
    latents = ", ".join(parts)
    n, calls = result.nelbo.n, result.nelbo.network_evaluations
    grey = result.provenance.get("levels") or "∞"
    title = f"{name}, {split}: {n} items, {latents}, levels {grey}, {calls:,} network evaluations ({calls / n:.1f} per item)"
    if weights:
        title += f", guidance {weights[0]:g}"
        title += " (each with and without the condition)" if weights[0] not in (0, 1) else ""
    shown: list[Any] = [
        ledger_table(result, title),
        *lines(result, chosen, about),
    ]
    if command.importance_weighted is not None:
        cost = command.importance_weighted * model.evaluations * len(data)
        with (
            plainly() as caveats,
            working(f"drawing {command.importance_weighted} paths of every item: {cost:,} network evaluations"),
        ):
            tighter = importance_weighted(model, chosen.x, command.importance_weighted, command.seed, chosen.condition)
        said = tighter.to("bits/dim", model.space.dimensions)
        shown.append(f"importance-weighted bound, K = {command.importance_weighted}: {said}")
        about["importance_weighted"] = said.to_dict() | {
            "draws": command.importance_weighted,
            "network_evaluations": tighter.network_evaluations,
            "caveats": caveats,
        }
    result = dataclasses.replace(result, about=about)
    out = result.to_json()
    saves = page(result)
    if command.per_item is not None and first():
        per_item = command.per_item
        saves.append(lambda: write_scores(per_item, result.per_item, chosen))
    # The run folder keeps evaluations of its own splits with default options, for any target error; others are only written to --json.
    plain = Evaluate(command.run, split=command.split, error=command.error, unit=command.unit)
    if first() and dataclasses.replace(command, per_item=None, html=None, json=None) == plain:
        saves.append(lambda: _kept(lambda: save_json(command.run / f"evaluation-{split}.json", out)))
    return Result(out, shown, saves)


def _text_units(
    result: "Evaluation", model: "LatentVariableModel", chosen: ChosenItems, about: dict[str, Any]
) -> list[str]:
    """Return a line with the bound per token, character and byte of a text, and add them to the record; otherwise none."""
    from diffusional.data.tokens import TextUnits
    from diffusional.space import Categorical

    space = model.space
    if not isinstance(space, Categorical) or space.alphabet is None:
        return []
    raw = space.decode(chosen.x).cpu().numpy()
    units = TextUnits.of(result.nelbo, raw, space.alphabet, space.dimensions, chosen.columns)
    about["text"] = units.to_json()
    return [str(units)]


def _worse_than_uniform(result: "Evaluation", model: "LatentVariableModel") -> list[str]:
    """Return a line if the bound is worse than ln K nats per dimension, which K equally likely levels have; otherwise none."""
    levels = model.space.levels
    if not levels:
        return []
    bound, uniform = result.nelbo.to("bits/dim", model.space.dimensions).value, math.log2(levels)
    if bound <= uniform:
        return []
    what = (
        "compare its files with those of its training, or run `diffusional check`"
        if model.origin
        else "train it for longer"
    )
    return [
        f"note: the bound is worse than that of equally likely levels: {bound:.4f} bits/dim, where {levels} levels have {uniform:.4f}; {what}"
    ]


def _guidance_table(
    command: Evaluate, run: "Run", model: "LatentVariableModel", chosen: ChosenItems, about: dict[str, Any], bare: bool
) -> Result:
    """Estimate the bounds of several guidance weights from the same draws."""
    from diffusional.evaluation.guidance import guidance_table

    assert command.guidance is not None
    assert chosen.condition is not None
    plan = None if bare else run.plan(model, seed=command.seed, learning=_learning)
    with working(f"evaluating {len(chosen.data)} items with and without their condition"):
        options: dict[str, Any] = {} if command.visits is None else {"visits": command.visits}
        options["stages"] = command.guidance_stages
        table = guidance_table(
            model, chosen.x, command.guidance, condition=chosen.condition, plan=plan, seed=command.seed, **options
        )
    calls = table.direct.network_evaluations
    title = f"{chosen.name}, {chosen.split}: {len(chosen.data)} items, {calls:,} network evaluations"
    return Result(about | {"run": str(command.run), "guidance": table.to_dict()}, [title, str(table)])


def _kept(save: "Callable[[], None]") -> None:
    """Write a file that the run keeps for later use. The result does not depend on it, so that a read-only folder is only a warning."""
    try:
        save()
    except DiffusionalError as error:
        warnings.warn(str(error), stacklevel=2)


@contextmanager
def _learning(path: Path) -> Iterator[None]:
    """Show that a plan is being fitted, and afterwards its path."""
    from diffusional.evaluation.plan import PILOT

    with working("fitting a plan on the run's training data"):
        yield
    say(f"fitted {path} with {PILOT:,} evaluations on the run's training data")


def _check_evaluate(command: Evaluate) -> None:
    sweep = command.sweep or command.draws is not None or command.cells is not None
    fast = ("error", "item_error", "visits", "max_evaluations", "plan")
    given = [f"--{name.replace('_', '-')}" for name in fast if getattr(command, name) is not None]
    if sweep and given:
        raise DiffusionalError(
            f"{', '.join(given)} cannot be combined with a full sweep (--sweep, --draws, --cells): leave one out"
        )
    if command.steps is not None and command.continuous:
        raise DiffusionalError(
            f"expected either --steps or --continuous, got --steps {command.steps} and --continuous: leave one out"
        )
    _check_guidance(command)
    if command.per_item is not None:
        check_scores_file(command.per_item, (command.data, command.plan), command.json)
    if command.html is not None:
        from diffusional.cli.pages import check_page

        check_page(
            "--html", command.html, [Path(one).expanduser() for one in (command.data, command.plan) if one is not None]
        )
    alone = ("draws", "cells", "item_error", "visits", "plan")
    single = ["--sweep"] * command.sweep + ["--deterministic"] * command.deterministic
    single += [f"--{name.replace('_', '-')}" for name in alone if getattr(command, name) is not None]
    if command.other is not None and single:
        raise DiffusionalError(
            f"{', '.join(single)} cannot be used with two runs: expected --error or --max-evaluations. Leave "
            f"{'it' if len(single) == 1 else 'them'} out, or evaluate one run at a time"
        )


def _check_guidance(command: Evaluate) -> None:
    """Raise DiffusionalError for options that do not apply with guidance, or without."""
    options = guidance_options(command)
    if command.guidance is None and options:
        names = " and ".join(f"--guidance-{name}" for name in options)
        raise DiffusionalError(
            f"{names} was given without --guidance; give its weight, such as 2, or leave {names} out"
        )
    if command.guidance is not None and not command.guidance:
        raise DiffusionalError("--guidance was given without a weight; give one or more, such as 2")
    if command.guidance is not None and command.other is not None:
        raise DiffusionalError("--guidance cannot be used with two runs; evaluate one run at a time")
    if command.guidance is not None and len(command.guidance) > 1:
        names = (
            "error",
            "item_error",
            "max_evaluations",
            "plan",
            "importance_weighted",
            "per_item",
            "html",
            "draws",
            "cells",
        )
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(command, name) is not None]
        given += ["--sweep"] * command.sweep + ["--deterministic"] * command.deterministic
        given += [f"--guidance-{name}" for name in options if name != "stages"]
        if given:
            raise DiffusionalError(
                f"{', '.join(given)} cannot be used with several weights of --guidance, whose bounds are estimated from the same draws "
                "(--visits of each item); leave it out, or give one weight"
            )


def _target(command: Evaluate, dimensions: int) -> float | None:
    """Return the target for the Monte Carlo error of the mean, in the command's unit; None if another target is given."""
    from diffusional.ledger import per_unit

    fixed = command.visits is not None and command.estimator is None
    if command.error is not None or fixed or command.item_error is not None:
        return command.error
    return _ERROR * per_unit("bits/dim", dimensions) / per_unit(command.unit, dimensions)


def _check_levels(command: Evaluate, model: "LatentVariableModel", sweep: bool) -> None:
    """Raise DiffusionalError for options that do not apply to the model."""
    chain = model.visited()
    if chain is not model and sweep:
        raise DiffusionalError(
            f"--sweep, --draws and --cells are not available for {command.run}, whose model has no levels to sweep: use --error, --visits or "
            "--item-error"
        )
    if chain is None and (command.continuous or command.plan is not None):
        raise DiffusionalError(
            f"--continuous and --plan are not available for {command.run}, whose model has no levels to visit: use --error, --visits or --item-error"
        )


def _check_weights(command: Evaluate, model: "LatentVariableModel") -> None:
    """Raise DiffusionalError for importance weights that cannot be drawn, or that would cost too much."""
    draws = command.importance_weighted
    assert draws is not None
    if draws < 2 or command.other is not None:
        raise DiffusionalError(
            f"--importance-weighted needs at least 2 draws and a single run, got {draws} draws"
            + (" and two runs" if command.other is not None else "")
        )
    if model.visited() is model and model.steps is None:
        raise DiffusionalError(
            "--importance-weighted needs paths of finitely many latents, but the model is evaluated in continuous time; give --steps, "
            "such as 10"
        )
    model.check_log_weight()
    if draws * model.evaluations > _MOST_WEIGHTS:
        raise DiffusionalError(
            f"--importance-weighted {draws} would take {draws * model.evaluations:,} network evaluations for each item, expected at most "
            f"{_MOST_WEIGHTS:,}; give fewer draws or, for a diffusion model, a smaller --steps"
        )


def _opened(command: Evaluate) -> "tuple[Run, Run | None, bool]":
    """Return the run, the other one if there is one, and whether one of them is a checkpoint without a folder of ours. A checkpoint that is
    compared with a run gets the run's space.
    """
    if command.other is None:
        run, bare = opened(command.run, command)
        show_origin(run.model, command.run)
        return run, None, bare
    first, second = command.run, command.other
    swapped = is_foreign(first) and not is_foreign(second)
    one, bare = opened(second if swapped else first, command)
    other, also = opened(first if swapped else second, command, one.space)
    run, theirs = (other, one) if swapped else (one, other)
    show_origin(run.model, first)
    show_origin(theirs.model, second)
    return run, theirs, bare or also


def _compare(
    command: Evaluate, run: "Run", other_run: "Run", model: "LatentVariableModel", chosen: ChosenItems, bare: bool
) -> Result:
    from diffusional.cli.other_condition import condition_elsewhere, other_condition_of
    from diffusional.conditions import equal_conditions, ignoring_condition
    from diffusional.data.excerpt import listed
    from diffusional.evaluation import compare
    from diffusional.evaluation.evaluation import regridded
    from diffusional.report.tables import comparison_table
    from diffusional.report.verdicts import identical_weights

    assert command.other is not None
    record, theirs = run.record, other_run.record
    name, split, x = chosen.name, chosen.split, chosen.x
    if record.columns and theirs.columns and record.columns != theirs.columns:
        raise DiffusionalError(
            f"{command.other} was trained on the columns {', '.join(theirs.columns)}, {command.run} on {', '.join(record.columns)}: their "
            "bounds are about different items and cannot be compared"
        )
    if command.data is None and theirs.fingerprints.get(split) != record.fingerprints.get(split):
        raise DiffusionalError(
            f"the {split} split of {command.other}{_known(theirs, split)} is not that of {command.run}{_known(record, split)}; name the data "
            "to compare on with --data"
        )
    if record.conditional and theirs.conditional and record.form != theirs.form:
        raise DiffusionalError(
            f"{command.run} was trained with the condition {record.config.data.condition}, {command.other} with "
            f"{theirs.config.data.condition}: they cannot be compared item by item with one condition"
        )
    if record.conditional and theirs.conditional:
        if record.classes != theirs.classes:
            raise DiffusionalError(
                f"{command.other} was trained on the classes {listed(list(theirs.classes))}, {command.run} on {listed(list(record.classes))}: "
                "their labels do not mean the same and the bounds cannot be compared"
            )
        if command.data is None and theirs.conditions.get(split) != record.conditions.get(split):
            raise DiffusionalError(f"the labels of the {split} split of {command.other} are not those of {command.run}")
    other = other_run.model.to(device())
    if command.steps is not None or command.continuous:
        with plainly():
            other = regridded(other, "continuous" if command.steps is None else command.steps)
    about = _about(chosen, record, theirs)
    if not command.no_check:
        found = [checked(*one, chosen) for one in ((command.run, run.model), (command.other, other_run.model))]
        if any(found):
            about["check"] = found
    notes = []
    if record.conditional or theirs.conditional:
        about["condition"] = [one.config.data.condition for one in (record, theirs)]
    if record.conditional != theirs.conditional:
        unlabelled, with_labels = (command.other, command.run) if record.conditional else (command.run, command.other)
        notes.append(
            f"{with_labels} bounds ln p(x | label), and {unlabelled}, which was trained without labels, ln p(x): the difference measures the "
            "information in the labels"
        )
        model, other = (
            one if has else ignoring_condition(one)
            for one, has in ((model, record.conditional), (other, theirs.conditional))
        )
    other_condition = other_condition_of(command, theirs, chosen.condition, len(x))
    if command.other_condition is not None:
        about["other_condition"] = list(command.other_condition)
        notes.append(f"the second bound is given the condition: {' '.join(command.other_condition)}")
    if equal_conditions(other_condition, chosen.condition):
        other_condition = None
    target = _target(command, model.space.dimensions)
    assert target is not None  # `_check_evaluate` refuses the others for two runs
    options: dict[str, Any] = {"seed": command.seed, "learning": _learning}
    if other_condition is not None:
        options["other_condition"] = partial(condition_elsewhere, command, theirs)
        say("learning where the two conditions differ, on the run's training data")
    plans = None if bare else run.paired_plans(other_run, model, other, **options)
    if plans is None and model.visited() is not None:
        say(f"learning a plan of each model on the {split} items; this comparison keeps no plan for later")
    with watching(command.unit, model.space.dimensions) as watch:
        result = compare(
            model,
            other,
            x,
            target,
            command.unit,
            seed=command.seed,
            plans=plans,
            every_item=command.per_item is not None,
            max_evaluations=command.max_evaluations,
            audit=not command.no_audit,
            condition=chosen.condition,
            other_condition=other_condition,
            progress=watch,
        )
    result = dataclasses.replace(result, about={"runs": [str(command.run), str(command.other)]} | about)
    notes += [f"note: {text}" for text in identical_weights(dict(zip(result.names, (result.a, result.b), strict=True)))]
    calls = result.difference.network_evaluations
    title = f"{name}, {split}: {result.difference.n} items, {calls:,} network evaluations of both"
    saves: list[Callable[[], None]] = []
    if command.per_item is not None and first():
        per_item = command.per_item
        saves.append(lambda: write_scores(per_item, both_scores(result), chosen))
    if command.html is not None and first():
        from diffusional.cli.pages import html_of

        both = [
            (one, path, dataclasses.replace(each, about=about), not is_foreign(path))
            for one, path, each in ((record, command.run, result.a), (theirs, command.other, result.b))
        ]
        saves += html_of(command, both, result)
    return Result(result.to_json(), [comparison_table(result, title), *notes], saves)


def _known(record: "RunRecord", split: str) -> str:
    """Return the version of a split of a run's own data in brackets, "" if it is not known."""
    from diffusional.known_data import recognise

    fingerprint = record.fingerprints.get(split) or ""
    known = recognise(fingerprint, record.space.shape, record.items.get(split), record.space.levels)
    return "" if known is None else f" ({known.name}, recognised by {known.evidence}: {known.about})"


def _about(chosen: ChosenItems, *records: "RunRecord") -> dict[str, Any]:
    """Return the entries of the record about the data. Prints warnings about assumptions, about items that a run was trained on, and about real
    values that are levels.
    """
    from diffusional.encoded import some_of
    from diffusional.space import Continuous

    trained = [already_trained_on(record, chosen) for record in records]
    warned = list(chosen.notes)
    for record, n in zip(records, trained, strict=True):
        # "train" of the run's own data needs no warning, and its other splits have no training items, unless the run started from weights
        # that were trained on them.
        expected = chosen.own and (
            chosen.split == "train" or (chosen.split != "all" and record.config.init_from is None)
        )
        if n and not expected:
            which = "all" if n == len(chosen.data) else f"{n:,} of the {len(chosen.data):,}"
            warned.append(
                f"{which} items of {chosen.name} are identical to items that {record.path} was trained on: their bound is lower than "
                "that of new data"
            )
    space = records[0].space
    if isinstance(space, Continuous) and (levels := space.scaled_levels(some_of(chosen.data))) is not None:
        warned.append(levels)
    if first():
        for text in warned:
            print(f"diffusional: warning: {text}", file=sys.stderr)
    known = trained[0] if len(records) == 1 else trained
    return {"data": chosen.name, "split": chosen.split, "trained_on": known, "warnings": warned}
