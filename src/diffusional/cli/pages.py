"""Files of reports: their paths, the subjects of run folders, and the file of `evaluate --html`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusional.cli.commands import Evaluate
from diffusional.cli.console import plainly, working
from diffusional.cli.outputs import check_target, save
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.cli.prompted import Scored
    from diffusional.evaluation import Comparison, Evaluation
    from diffusional.report.subject import Subject
    from diffusional.training.run import RunRecord

# Characters of a prompt and of a continuation that are shown.
_CHARACTERS = 500


def check_page(option: str, path: Path, inputs: Sequence[Path] = ()) -> None:
    """Check a path for a report like `check_target`; its suffix is .html. An existing file is replaced only if it is an HTML file."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise DiffusionalError(f"expected an .html file for {option}, got {path}")
    check_target(option, path, inputs)


def page_of(
    out: Path, subjects: "Sequence[Subject]", comparisons: "Sequence[Comparison]", title: str | None
) -> Callable[[], None]:
    """Return a function that writes the report. The page is made before, so that a fault in it is reported before anything is written."""
    from diffusional.report.page import page

    text = page(subjects, comparisons, title or "").encode()
    return lambda: save(out, lambda file: file.write(text))


def subject_of(path: Path, split: str | None, evaluation: "Evaluation | None" = None) -> "Subject":
    """Return a run folder as a subject: its saved evaluation (or the given one), metrics, config and data."""
    from diffusional.cli.items import SPLITS
    from diffusional.evaluation import Evaluation
    from diffusional.files import load_json
    from diffusional.report.subject import Subject
    from diffusional.training.metrics_logger import METRICS, read
    from diffusional.training.run import COMPOSITE, CONFIG, DATA, STAGES, composite_of, read_run

    record = read_run(path)
    splits = (split,) if split else ("test", *(one for one in (*SPLITS, "all") if one != "test"))
    saved = [path / f"evaluation-{one}.json" for one in splits if (path / f"evaluation-{one}.json").exists()]
    if evaluation is None and saved:
        evaluation = Evaluation.load(saved[0])
    metrics = read(record.path) if (record.path / METRICS).exists() else []
    source = path / COMPOSITE if (path / COMPOSITE).exists() else path / CONFIG
    config = load_json(source) if source.exists() else None
    stages = {}
    if source.name == COMPOSITE:
        folders = {name: path / STAGES / name for name in composite_of(path)[0].stages}
        stages = {name: read(folder) for name, folder in folders.items() if (folder / METRICS).exists()}
    return Subject(str(path), evaluation, metrics, config, load_json(path / DATA), stages=stages)


def html_of(
    command: Evaluate, results: "Sequence[tuple[RunRecord, Path, Evaluation, bool]]", comparison: "Comparison | None"
) -> list[Callable[[], None]]:
    """Return what writes the file of `evaluate --html`; [] without one.

    Args:
        command: the command.
        results: for each run its record, its path as given, its evaluation, and whether it is a run folder.
        comparison: of the two, if there are two.
    """
    from diffusional.report.subject import ItemScores, Subject

    if command.html is None:
        return []
    names = [str(path) for _, path, *_ in results] if comparison is None else comparison.names
    subjects = []
    for name, (record, path, result, folder) in zip(names, results, strict=True):
        subject = subject_of(path, None, result) if folder else Subject(str(path), result)
        split = str(result.about.get("split") or "test")
        own = folder and result.about.get("data") in (record.config.data.name, record.source)
        scores = None
        if result.per_item and result.items_visited == result.nelbo.n:
            order = result.per_item["item"].argsort()
            nelbo, error = (result.per_item[key][order].cpu().numpy() for key in ("nelbo", "error"))
            scores = ItemScores(
                nelbo,
                error,
                result.nelbo.n,
                how="The scores are those of this evaluation, whose noise widens the histogram.",
            )
        with plainly():
            baselines = baselines_of(record, split) if own else {}
        subjects.append(dataclasses.replace(subject, name=name, baselines=baselines, items=scores))
    return [page_of(command.html, subjects, [] if comparison is None else [comparison], None)]


def html_of_prompts(command: Evaluate, scored: "Scored") -> list[Callable[[], None]]:
    """Return what writes the file of `evaluate --html` for texts given prompts."""
    from diffusional.evaluation import Comparison
    from diffusional.report.subject import sides_of

    assert command.html is not None
    result = scored.result
    if not isinstance(result, Comparison):
        return [page_of(command.html, [subject_of_prompts(command.run, scored)], [], None)]
    subjects = [
        subject_of_prompts(Path(name), dataclasses.replace(scored, result=one))
        for name, one in zip(result.names, sides_of(result), strict=True)
    ]
    return [page_of(command.html, subjects, [result], None)]


def subject_of_prompts(path: Path, scored: "Scored", shown: int = 5, notes: Sequence[str] = ()) -> "Subject":
    """Return a model with its scores of continuations given prompts: those of all rows, and `shown` rows at each end of the bits per token."""
    from diffusional.cli.checkpoints import is_foreign
    from diffusional.evaluation import Evaluation
    from diffusional.report.subject import ItemScores, ListedItem, Subject

    result, rows, free = scored.result, scored.rows, scored.rows.free
    assert isinstance(result, Evaluation)
    order = result.per_item["item"].argsort()
    nelbo, error = (result.per_item[key][order].cpu().numpy() / free for key in ("nelbo", "error"))

    def listed(i: int) -> ListedItem:
        prompt, continuation = rows.texts[i]
        prompt = prompt if len(prompt) <= _CHARACTERS else f"…{prompt[-_CHARACTERS:]}"
        continuation = continuation if len(continuation) <= _CHARACTERS else f"{continuation[:_CHARACTERS]}…"
        values = {"scored tokens": float(free[i]), "nats": float(nelbo[i] * free[i])}
        name = f"{scored.chosen.name}, row {i}"
        return ListedItem(name, float(nelbo[i]), float(error[i]), values=values, text=continuation, prompt=prompt)

    ranked = nelbo.argsort(kind="stable")
    ends = min(shown, len(ranked) // 2)
    exact = "" if error.any() else " All masks of every row were visited, so that its cost has no Monte Carlo error."
    items = ItemScores(
        nelbo,
        error,
        len(free),
        [listed(int(i)) for i in ranked[:ends]],
        [listed(int(i)) for i in ranked[::-1][:ends]],
        "The cost of a row is divided by its scored tokens. The scores are those of this evaluation, and the listed rows are chosen by them; "
        f"numbers of rows begin at 0, and continuations are marked.{exact}",
        tokens=free,
    )
    if not is_foreign(path):
        return dataclasses.replace(subject_of(path, None, result), items=items, notes=notes)
    return Subject(str(path), result, items=items, notes=notes)


def baselines_of(record: "RunRecord", split: str) -> "dict[str, Evaluation]":
    """Return the simplest baseline of a run's own data, fitted to its training items; {} for data that cannot be loaded, and for streams."""
    from diffusional.data.dataset import Stream
    from diffusional.evaluation.baselines import simple_baseline
    from diffusional.training.own import own_data

    parts: Sequence[str] = ("train", "validation", "test") if split == "all" else (split,)
    try:
        import torch

        dataset = own_data(record, ("train", "validation", "test"))
        if any(isinstance(getattr(dataset, part), Stream) for part in ("train", *parts)):
            return {}
        raw = torch.cat([dataset.tensor(part) for part in parts])
        validation = None if isinstance(dataset.validation, Stream) else dataset.tensor("validation")
        with working("fitting a baseline"):
            return simple_baseline(dataset.tensor("train"), validation, raw, record.space)
    except (DiffusionalError, OSError):
        return {}
