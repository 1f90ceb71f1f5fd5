"""`diffusional report`: runs and saved results as one HTML file."""

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import is_foreign, opened, origin_lines
from diffusional.cli.commands import CheckpointOptions, Evaluate, Report, TextModelOptions
from diffusional.cli.console import Result, say
from diffusional.cli.options import changed, typed
from diffusional.cli.pages import baselines_of, check_page, page_of, subject_of, subject_of_prompts
from diffusional.cli.prompted import score_prompts, wants_prompts
from diffusional.cli.text_models import is_text_model
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.evaluation import Comparison
    from diffusional.report.subject import ItemScores, Samples, Subject

# What may go wrong while a part of a report is drawn; the report then states that the part is missing.
_FAULTS = (DiffusionalError, OSError, MemoryError)


def run(command: Report) -> Result:
    """Gather the runs and results, compute what is missing, and write the file."""
    _check(command)
    only = command.runs[0]
    out = command.out or (only / "report.html" if len(command.runs) == 1 and only.is_dir() else Path("report.html"))
    check_page("--out", out, [path for path in command.runs if path.is_file()])
    subjects, comparisons, budgets = _gathered(command)
    if not command.saved:
        subjects = [_completed(one, command) for one in subjects]
        comparisons += _compared(subjects, comparisons, command)
    subjects = _with_budgets(subjects, budgets)
    parts = {"runs": [one.name for one in subjects], "comparisons": [list(one.names) for one in comparisons]}
    return Result(
        {"report": str(out)} | parts,
        [f"{out}: {', '.join(one.name for one in subjects)}"],
        [page_of(out, subjects, comparisons, command.title)],
    )


def _check(command: Report) -> None:
    from diffusional.evaluation.target import Target

    if command.error is not None:
        Target(command.error)
    if not command.runs:
        raise DiffusionalError("expected at least one run folder or JSON file, got none; give RUN")
    for name, least in (("samples", 0), ("items", 0), ("visits", 2), ("shown", 1)):
        if getattr(command, name) is not None and getattr(command, name) < least:
            raise DiffusionalError(
                f"expected --{name} of at least {least}, got {getattr(command, name)}; give a larger number, or leave it out"
            )
    foreign = [path for path in command.runs if is_foreign(path)]
    if foreign and (command.data is None or command.saved):
        given = "--saved" if command.saved else "no --data"
        raise DiffusionalError(
            f"expected --data, and not --saved, for {foreign[0]}, a checkpoint without data and saved results of its own, got {given}; name the "
            "data to evaluate it on, such as --data digits, or make a run of it with `diffusional import`"
        )
    prompted = any(_has_prompts(path, command) for path in command.runs)
    if prompted:
        _check_prompted(command)
    if (text := changed(command.text_options)) and not any(is_text_model(path) for path in foreign):
        raise DiffusionalError(f"{typed(text)} was given, but no masked language model, hf:NAME; leave it out")
    if command.revision is not None and not foreign:
        raise DiffusionalError("--revision was given, but no checkpoint; leave it out")
    if command.data is not None and not foreign and not prompted:
        raise DiffusionalError(
            f"--data {command.data} is for checkpoints from elsewhere, but all that was given are runs and results; leave it out"
        )
    if len({os.path.realpath(path) for path in command.runs}) < len(command.runs):
        raise DiffusionalError(f"expected different runs, got {' '.join(map(str, command.runs))}; give each run once")


def _has_prompts(path: Path, command: Report) -> bool:
    """Return whether a model is evaluated on continuations given prompts."""
    return (is_foreign(path) or path.is_dir()) and wants_prompts(Evaluate(path, data=command.data))


def _check_prompted(command: Report) -> None:
    """Raise DiffusionalError for what does not apply to continuations given prompts."""
    others = [path for path in command.runs if not _has_prompts(path, command)]
    if others:
        raise DiffusionalError(
            f"expected models for the prompts of {command.data}, got {others[0]}; write a report of saved results without --data"
        )
    given = [name for name in changed(command) if name in ("samples", "items", "visits", "split", "saved")]
    if given:
        raise DiffusionalError(
            f"{typed(given)} cannot be used with the prompts of {command.data}, of which all rows are scored to --error; leave "
            f"{'it' if len(given) == 1 else 'them'} out"
        )


def _gathered(command: Report) -> "tuple[list[Subject], list[Comparison], list[dict[str, Any]]]":
    """Return the runs and evaluations as subjects, the comparisons, and the budgets of the given paths."""
    from diffusional.evaluation import Comparison, Evaluation
    from diffusional.files import load_json
    from diffusional.report.subject import Subject, sides_of

    subjects: list[Subject] = []
    comparisons: list[Comparison] = []
    budgets: list[dict[str, Any]] = []
    for path in command.runs:
        if _has_prompts(path, command):
            subjects.append(_of_prompts(path, command))
            continue
        if is_foreign(path):
            subjects.append(_of_checkpoint(path, command))
            continue
        if path.is_dir():
            subjects.append(subject_of(path, command.split))
            continue
        record = load_json(path)
        if isinstance(record, dict) and "difference_nats" in record:
            comparisons.append(Comparison.load(path))
        elif isinstance(record, dict) and "nelbo_nats" in record:
            subjects.append(Subject(str(path), Evaluation.load(path)))
        elif isinstance(record, dict) and {"rows", "total", "relative_to"} <= record.keys():
            budgets.append(record)
        else:
            raise DiffusionalError(
                f"expected run folders, or the JSON of `diffusional evaluate` or of `diffusional information RUN --reference RUN`, got {path}"
            )
    comparisons = [_renamed(one, subjects) for one in comparisons]
    names = [one.name for one in subjects]
    for one in comparisons:
        for name, result in zip(one.names, sides_of(one), strict=True):
            if name not in names:
                subjects.append(Subject(name, result))
                names.append(name)
    if not subjects:
        raise DiffusionalError(
            f"expected at least one run or evaluation, got only budgets: {' '.join(map(str, command.runs))}; give RUN too"
        )
    return subjects, comparisons, budgets


def _renamed(one: "Comparison", subjects: "Sequence[Subject]") -> "Comparison":
    """Return a comparison whose runs have the names of the subjects that are in the same folders."""
    places = {os.path.realpath(subject.name): subject.name for subject in subjects}
    runs = one.about.get("runs") or one.names
    names = [places.get(os.path.realpath(name), name) for name in runs]
    return dataclasses.replace(one, about=dict(one.about) | {"runs": names})


def _with_budgets(subjects: "Sequence[Subject]", budgets: Sequence[dict[str, Any]]) -> "list[Subject]":
    """Return the subjects with their budgets, which name their run; a budget without runs is that of the only subject."""
    found = list(subjects)
    for budget in budgets:
        runs = budget.get("runs") or []
        own = [
            i for i, one in enumerate(found) if runs and os.path.realpath(one.name) == os.path.realpath(str(runs[0]))
        ]
        own = own or ([0] if len(found) == 1 and not runs else [])
        if not own:
            raise DiffusionalError(
                f"expected a budget of one of the given runs, got that of {runs[0] if runs else 'no run'}; give that run too"
            )
        found[own[0]] = dataclasses.replace(found[own[0]], budget=budget)
    return found


def _of_prompts(path: Path, command: Report) -> "Subject":
    """Score the continuations of --data given their prompts."""
    say(f"diffusional evaluate {path} --data {command.data}")
    scored = score_prompts(dataclasses.replace(_asked(path, None, command), error=command.error))
    lines = [line.strip() for line in origin_lines(scored.model)]
    assumed = [line for line in lines if not line.startswith("from the config:")]
    notes = [f"{path} was trained elsewhere: {'; '.join(assumed)}."] if is_foreign(path) and assumed else []
    return subject_of_prompts(path, scored, command.shown, notes)


def _completed(subject: "Subject", command: Report) -> "Subject":
    """Return a run with what needs its model or data: an evaluation if it has none, a baseline, samples, and scores of items."""
    from diffusional.cli import drawing
    from diffusional.evaluation import Evaluation
    from diffusional.report.prompts import is_prompted
    from diffusional.training.run import load, read_run

    if subject.data is None or is_prompted(subject.evaluation):
        return subject
    path = Path(subject.name)
    record = read_run(path)
    result = subject.evaluation
    model = load(path)
    size = drawing.amounts_of(command, model)
    if result is None:
        result = Evaluation.from_json(_evaluated(Evaluate(path, split=command.split, error=size.error)))
    split = str(result.about.get("split") or command.split or "test")
    own = result.about.get("data") in (None, record.config.data.name, record.source)
    notes = list(subject.notes)
    baselines = baselines_of(record, split) if own else {}
    samples = scores = None
    if size.samples:
        samples = _tried(notes, "Samples", lambda: drawing.samples_of(model, record, size.samples, command.seed, split))
    if size.items and own:
        scores = _tried(notes, "Scores of items", lambda: drawing.scores_of(model, record, command, size.items, split))
    drawn, more = _drawn(samples, scores, command)
    return dataclasses.replace(
        subject,
        evaluation=result,
        baselines=baselines,
        samples=samples,
        items=scores,
        notes=notes,
        drawn=drawn,
        more=more,
        weights=sum(p.numel() for p in model.parameters()),
    )


def _of_checkpoint(path: Path, command: Report) -> "Subject":
    """Evaluate a checkpoint from elsewhere on --data, and draw samples and scores of items where its model allows it."""
    from diffusional.cli import drawing
    from diffusional.evaluation import Evaluation
    from diffusional.report.subject import Subject

    asked = _asked(path, None, command)
    run, _ = opened(path, asked)
    size = drawing.amounts_of(command, run.model)
    asked = dataclasses.replace(asked, error=size.error)
    result = Evaluation.from_json(_evaluated(asked))
    record, model, split = run.record, run.model, str(result.about.get("split") or command.split or "test")
    lines = [line.strip() for line in origin_lines(model)]
    assumed = [line for line in lines if not line.startswith("from the config:")]
    notes = [
        f"{path} was trained elsewhere" + (f": {'; '.join(assumed)}." if assumed else "."),
        "A checkpoint has no record of its training and no training items: there are no training curves, baselines and percentiles of items.",
    ]
    samples = scores = None
    if size.samples:
        samples = _tried(notes, "Samples", lambda: drawing.samples_of(model, record, size.samples, command.seed, split))
    if size.items:
        scores = _tried(
            notes,
            "Scores of items",
            lambda: drawing.scores_of(model, record, command, size.items, command.split, command.data),
        )
    drawn, more = _drawn(samples, scores, command)
    weights = sum(p.numel() for p in run.model.parameters())
    return Subject(
        str(path), result, samples=samples, items=scores, notes=notes, drawn=drawn, more=more, weights=weights
    )


def _drawn(samples: "Samples | None", scores: "ItemScores | None", command: Report) -> tuple[str, str]:
    """Return what was computed for the report, as a sentence, and the command that draws more; "" twice if nothing was drawn."""
    parts, options = [], []
    if samples is not None:
        n = next(
            (len(one) for one in (samples.images, samples.drawn, samples.texts) if one is not None and len(one)), 0
        )
        parts.append(f"{n:,} samples")
        if samples.drawn is None:
            options.append("--samples 64")
    if scores is not None:
        parts.append(
            f"scores of {len(scores.nelbo):,} of {scores.of:,} items, at {command.visits} network evaluations each"
        )
        options += [f"--items {min(scores.of, 10 * len(scores.nelbo))}"] * (len(scores.nelbo) < scores.of)
        options.append(f"--visits {4 * command.visits}")
    if not parts:
        return "", ""
    given = [*map(str, command.runs)]
    own = {name: getattr(command, name) for name in ("data", "revision", "split")}
    for name, value in (own | dataclasses.asdict(command.text_options)).items():
        if value is not None and value is not False:
            given += [typed([name]), *([] if value is True else [str(value)])]
    return f"This report drew {' and '.join(parts)}.", f"diffusional report {shlex.join(given)} {' '.join(options)}"


def _asked(path: Path, other: Path | None, command: Report) -> Evaluate:
    """Return the command that evaluates a run or a checkpoint, or compares it with another; checkpoints are evaluated on --data."""
    foreign = [one for one in (path, other) if one is not None and is_foreign(one)]
    if not foreign:
        return Evaluate(path, other, command.data if _has_prompts(path, command) else None, split=command.split)
    text = command.text_options if is_text_model(path) else TextModelOptions()
    its = CheckpointOptions(revision=command.revision)
    return Evaluate(path, other, command.data, split=command.split, checkpoint_options=its, text_options=text)


def _tried(notes: list[str], what: str, draw: Callable[[], Any]) -> Any:
    """Return what `draw` returns; if it is not possible, add a note and return None."""
    try:
        return draw()
    except _FAULTS as error:
        notes.append(f"{what} are missing: {error}.")
        return None


def _evaluated(command: Evaluate) -> dict[str, Any]:
    """Run `diffusional evaluate`, keep what it saves in the run folder, and return its record."""
    from diffusional.cli import evaluate

    other = "" if command.other is None else f" {command.other}"
    say(f"diffusional evaluate {command.run}{other}")
    found = evaluate.run(command)
    for keep in found.saves:
        keep()
    return found.record


def _error_of(subject: "Subject", command: Report) -> float | None:
    from diffusional.cli.drawing import amounts
    from diffusional.report.prompts import is_prompted

    if is_prompted(subject.evaluation):
        return command.error
    return command.error if subject.evaluation is None else amounts(command, subject.evaluation.dimensions, 0).error


def _compared(
    subjects: "Sequence[Subject]", comparisons: "Sequence[Comparison]", command: Report
) -> "list[Comparison]":
    """Compare the best run with each other run of the same data with which it has not been compared."""
    from diffusional.evaluation import Comparison
    from diffusional.report.verdicts import different_data, ranked

    order = [one for one in ranked(subjects) if one.data is not None or is_foreign(Path(one.name))]
    if command.no_compare or len(order) < 2:
        return []
    done, found = {frozenset(one.names) for one in comparisons}, []
    best = order[0]
    for other in order[1:]:
        if frozenset((best.name, other.name)) in done or different_data([best, other]):
            continue
        try:
            asked = _asked(Path(best.name), Path(other.name), command)
            record = _evaluated(dataclasses.replace(asked, error=_error_of(best, command)))
        except DiffusionalError as error:
            say(f"{best.name} and {other.name} were not compared: {error}")
            continue
        found.append(Comparison.from_json(record))
    return found
