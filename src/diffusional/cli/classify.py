"""`diffusional classify`: the class of every item whose bound is best."""

import dataclasses
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import items_of, opened, show_origin
from diffusional.cli.commands import Classify
from diffusional.cli.console import Result, device, first, working
from diffusional.cli.evaluate import check_scores_file, write_scores
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.evaluation.classify import Classification


def run(command: Classify) -> Result:
    """Classify the items on all processes that a launcher started; each item is classified by one of them."""
    from diffusional.evaluation.ranks import launched

    with launched():
        return _classify(command)


def _classify(command: Classify) -> Result:
    """Classify the items, and report the accuracy if they have labels."""
    import torch

    from diffusional.conditions import rows_of
    from diffusional.evaluation.classify import classify, summary

    if command.per_item is not None:
        check_scores_file(command.per_item, (command.data,), command.json)
    if command.most is not None and command.most < 1:
        raise DiffusionalError(
            f"expected --most of at least 1, got {command.most}; give a larger number, or leave it out"
        )
    if command.unlabelled and (command.data is None or command.condition is not None):
        raise DiffusionalError(
            "--unlabelled is for --data without labels; leave it out, or give --data without --condition"
        )
    opening, bare = opened(command.run, command)
    record, model = opening.record, opening.model.to(device())
    if bare:
        show_origin(model, command.run)
    if not record.classes:
        what = f"a condition of {record.form}" if record.form is not None else "no condition"
        if record.text is not None and record.form is not None and record.form.kind != "joint":
            what = "captions"
        raise DiffusionalError(
            f"{command.run} was trained with {what}, and classify needs classes; train a run with --condition label"
        )
    chosen = items_of(command, dataclasses.replace(record, classes=()) if command.unlabelled else record, bare)
    if command.most is not None and command.most < len(chosen.data):
        some = slice(0, command.most)
        condition = rows_of(chosen.condition, some)
        columns = {name: values[some] for name, values in chosen.columns.items()}
        chosen = dataclasses.replace(chosen, data=chosen.data[some], condition=condition, columns=columns)
    if command.probabilities is not None and not command.evidence_visits:
        raise DiffusionalError(
            "--probabilities was given without --evidence-visits, the network evaluations of the lower bound of ln p(x); give both, or neither"
        )
    evidence = command.evidence_visits and command.probabilities is None
    if command.weighting == "unweighted" and (command.prior != "uniform" or evidence):
        what = "--prior train" if command.prior != "uniform" else "--evidence-visits without --probabilities"
        raise DiffusionalError(
            f"--weighting unweighted was given with {what}: unweighted errors are not log-probabilities. Leave one of them out"
        )
    r = _probabilities(command, len(chosen.data))
    prior = None
    if command.prior == "train":
        from diffusional.training.own import own_data

        labels = own_data(record).condition_of("train")
        prior = labels.bincount(minlength=len(record.classes)).double() / len(labels)
    with working(f"classifying {len(chosen.data):,} items into {len(record.classes)} classes"):
        result = classify(
            model,
            chosen.x,
            prior=prior,
            confidence=command.confidence,
            max_visits=command.max_visits,
            weighting=command.weighting,
            evidence_visits=command.evidence_visits,
            r=r,
            seed=command.seed,
        )
    labels = chosen.condition
    assert labels is None or isinstance(labels, torch.Tensor)
    out = {
        "run": str(command.run),
        "data": chosen.name,
        "split": chosen.split,
        "confidence": command.confidence,
        "max_visits": command.max_visits,
        "prior": command.prior,
        "seed": command.seed,
        **summary(result, labels),
    }
    saves = []
    if command.per_item is not None and first():
        per_item = command.per_item
        saves.append(lambda: write_scores(per_item, _columns(result), _answered(chosen, result)))
    return Result(out, _lines(result, out), saves)


def _probabilities(command: Classify, items: int) -> "Tensor | None":
    """Return the probabilities (items, classes) in the file of --probabilities; those of the first items with --most."""
    import numpy as np
    import torch

    if command.probabilities is None:
        return None
    try:
        values = np.load(command.probabilities, allow_pickle=False)
        r = torch.from_numpy(values[:items] if command.most is not None else values)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise DiffusionalError(
            f"--probabilities expected an .npy file of numbers (items, classes), but {command.probabilities} cannot be read ({error})"
        ) from error
    return r


def _columns(result: "Classification") -> "dict[str, Tensor]":
    import torch

    columns = {
        "item": torch.arange(len(result.label)),
        "confidence": result.confidence,
        "evaluations": result.evaluations,
    }
    columns |= {f"nelbo_{name}": values for name, values in zip(result.classes, result.nelbo.T, strict=True)}
    if len(result.evidence):
        columns |= {"evidence": result.evidence, "evidence_error": result.evidence_error}
    return columns


def _answered(chosen: Any, result: "Classification") -> Any:
    """Return the items with the names of the answers as a further column."""
    import numpy as np

    return dataclasses.replace(chosen, columns=chosen.columns | {"answer": np.array(result.names)})


def _lines(result: "Classification", out: dict[str, Any]) -> list[str]:
    lines = [f"{out['data']}, {out['split']}: {result}"]
    if result.weighting == "unweighted":
        lines.append("classes compared by unweighted errors, which are not likelihoods")
    counts = ", ".join(f"{name} {n:,}" for name, n in zip(result.classes, out["counts"], strict=True) if n)
    lines.append(f"answers: {counts}")
    if "accuracy" in out:
        accuracy = out["accuracy"]
        lines.append(f"accuracy {accuracy['value']:.4f} ± {accuracy['error']:.4f} (standard error over items)")
    if len(result.evidence):
        lines.append(f"lower bound of ln p(x) over the classes: {result.evidence_estimate()}")
    return lines
