"""`diffusional evaluate MODEL --data FILE.jsonl`: the bound of continuations given their prompts, which are never masked."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.checkpoints import opened, show_origin
from diffusional.cli.commands import Evaluate
from diffusional.cli.console import Result, device, first, watching
from diffusional.cli.items import ChosenItems
from diffusional.cli.options import changed, typed
from diffusional.cli.scores_file import both_scores, check_scores_file, write_scores
from diffusional.cli.text_models import checked_shift, is_text_model, text_model
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.data.prompts import Prompts
    from diffusional.data.tokens import TextUnits
    from diffusional.evaluation import Comparison, Evaluation
    from diffusional.ledger import Estimate
    from diffusional.models.masked import MaskedDiffusion
    from diffusional.models.prompted import PromptedDiffusion

# The options of `evaluate` that apply to prompts.
_OPTIONS = (
    *("run", "other", "data", "prompt_column", "continuation_column", "length", "mask_token", "shift", "revision"),
    *("error", "unit", "visits", "max_evaluations", "no_audit", "no_check", "seed", "per_item", "html", "json"),
)
# The default target for the Monte Carlo error of a mean, in bits per token of the continuations.
_ERROR = 0.01
# What stands for no limit of the tokens of a row.
_ANY = 10**6
# The most rows that are shown one by one, and the characters of their texts.
_SHOWN, _CHARACTERS = 20, 28


def wants_prompts(command: Evaluate) -> bool:
    """Return whether --data is a file of prompts and continuations: a .jsonl, or a .csv for a model of text."""
    from diffusional.data.prompts import is_prompts

    if command.prompt_column is not None or command.continuation_column is not None:
        if command.data is None or not is_prompts(command.data):
            raise DiffusionalError(
                "--prompt-column and --continuation-column name the fields of a file of prompts; give it as --data FILE.jsonl or FILE.csv, or "
                "leave them out"
            )
        return True
    if command.data is None or not is_prompts(command.data):
        return False
    return command.data.lower().endswith(".jsonl") or _is_of_text(command.run)


def _is_of_text(path: Path) -> bool:
    """Return whether a model is one of text, by its name or its run folder."""
    from diffusional.training.run import DATA, read_run

    return is_text_model(path) or (
        (path / DATA).exists() and getattr(read_run(path).space, "alphabet", None) is not None
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """What `score_prompts` returns.

    Attributes:
        rows: of the file.
        chosen: the same as items, with the columns of --per-item.
        result: of one model, or the comparison of two, with what is known about them.
        model: the first one.
    """

    rows: "Prompts"
    chosen: ChosenItems
    result: "Evaluation | Comparison"
    model: "PromptedDiffusion"


def evaluate_prompts(command: Evaluate) -> Result:
    """Evaluate one model, or compare two, on the continuations of a file."""
    scored = score_prompts(command)
    shown = _evaluation_lines(scored) if command.other is None else _comparison_lines(scored)
    saves = _saved(command, scored)
    if command.html is not None and first():
        from diffusional.cli.pages import html_of_prompts

        saves += html_of_prompts(command, scored)
    return Result(scored.result.to_json(), shown, saves)


def score_prompts(command: Evaluate) -> Scored:
    """Return the scores of the continuations of a file by one model, or by two. Raises DiffusionalError for options that do not apply."""
    import torch

    from diffusional.data.prompts import CONTINUATION, PROMPT, read_prompts
    from diffusional.models.prompted import of_lengths, prompts_of_lengths

    _check(command)
    assert command.data is not None
    model = _opened(command.run, command)
    fields = {"prompt": command.prompt_column or PROMPT, "continuation": command.continuation_column or CONTINUATION}
    rows = read_prompts(command.data, model.space, most=min(model.space.shape[0], _ANY), **fields)
    width = rows.tokens.shape[1]
    prompted = of_lengths(model, width)
    x = prompted.space.encode(torch.from_numpy(rows.tokens))
    condition = prompts_of_lengths(x, torch.from_numpy(rows.given), torch.from_numpy(rows.lengths))
    models = {command.run: prompted}
    if command.other is not None:
        models[command.other] = of_lengths(_opened(command.other, command, prompted), width)
    for path, one in models.items():
        show_origin(one, path)
    name = Path(command.data).name
    chosen = ChosenItems(name, "all", x, _columns(rows, name), False, rows.notes, condition)
    about = _about(command, rows, chosen, models)
    if command.other is not None:
        result = _compared(command, [one.to(device()) for one in models.values()], rows, chosen, about)
    else:
        result = _evaluated(command, prompted.to(device()), rows, chosen, about)
    return Scored(rows, chosen, result, prompted)


def _check(command: Evaluate) -> None:
    """Raise DiffusionalError for options that do not apply to prompts, and for values out of range."""
    from diffusional.evaluation.continuations import REPLICATES

    given = [name for name in changed(command) if name not in _OPTIONS]
    if given:
        raise DiffusionalError(
            f"{typed(given)} cannot be used with the prompts of {command.data}; leave {'it' if len(given) == 1 else 'them'} out"
        )
    if command.visits is not None and command.other is not None:
        raise DiffusionalError(
            "--visits cannot be used with two models: expected --error or --max-evaluations; leave it out, or evaluate one model at a time"
        )
    if command.visits is not None and command.error is not None:
        raise DiffusionalError("expected one of --error and --visits, got both; leave one out")
    if command.visits is not None and command.max_evaluations is not None:
        raise DiffusionalError(
            "--max-evaluations limits those for --error, and --visits is their number; leave one out"
        )
    if command.visits is not None and command.visits < REPLICATES:
        raise DiffusionalError(
            f"expected --visits to be at least {REPLICATES}, one for each replicate, got {command.visits}"
        )
    if command.error is not None and not (command.error > 0 and math.isfinite(command.error)):
        raise DiffusionalError(f"expected --error to be a positive number, got {command.error:g}")
    if command.other == command.run:
        raise DiffusionalError(f"expected two different models, got {command.run} twice; give one of them")
    if command.per_item is not None:
        check_scores_file(command.per_item, (command.data,), command.json)
    if command.html is not None:
        from diffusional.cli.pages import check_page

        check_page("--html", command.html, [Path(str(command.data)).expanduser()])


def _opened(path: Path, command: Evaluate, like: "PromptedDiffusion | None" = None) -> "MaskedDiffusion":
    """Return a model of text. `like` is the one that it is compared with, which has its tokens."""
    from diffusional.models.masked import MaskedDiffusion

    space = None if like is None else like.space
    model: Any = text_model(path, command, space, _ANY) if is_text_model(path) else opened(path, command)[0].model
    if not isinstance(model, MaskedDiffusion) or model.space.alphabet in (None, "tokens"):
        raise DiffusionalError(
            f"expected a masked diffusion of text for the prompts of {command.data}, got {path}, a {type(model).__name__} of {model.space}"
        )
    found = model.regrid(None)
    if model.origin:
        # A row is an item here, whatever the length of the blocks of a text is.
        rows = {"blocks": "each row is evaluated by itself, its continuation given its prompt"}
        found.origin = {**model.origin, "assumed": {**model.origin.get("assumed", {}), **rows}}
    return found.eval()


def _columns(rows: "Prompts", name: str) -> dict[str, Any]:
    """Return the columns of --per-item about each row."""
    import numpy as np

    n = len(rows.tokens)
    known = {"source": np.array([name] * n), "row": np.arange(n), "split": np.array(["all"] * n)}
    return known | {
        "prompt_tokens": rows.given,
        "tokens": rows.free,
        "characters": rows.characters,
        "bytes": rows.bytes,
    }


def _about(
    command: Evaluate, rows: "Prompts", chosen: ChosenItems, models: "dict[Path, PromptedDiffusion]"
) -> dict[str, Any]:
    """Return the entries of the record about the data. Prints what their numbers do not cover, and whether the logits are read as trained."""
    import sys

    if first():
        for text in chosen.notes:
            print(f"diffusional: warning: {text}", file=sys.stderr)
    about: dict[str, Any] = {"data": chosen.name, "split": "all", "warnings": list(chosen.notes)}
    about["prompts"] = {"tokens": int(rows.given.sum()), "longest": int(rows.given.max())}
    checks = []
    for path, model in models.items():
        if not command.no_check and model.origin.get("kind") == "transformers" and first():
            checks.append(_checked(path, model, rows))
    if any(checks):
        about["check"] = checks[0] if len(models) == 1 else checks
    return about


def _checked(path: Path, model: "PromptedDiffusion", rows: "Prompts") -> dict[str, Any] | None:
    """Check the convention of the logits on the first tokens of the longest rows."""
    import torch

    from diffusional.models.masked import MaskedDiffusion
    from diffusional.space import Categorical

    network: Any = model.model.network
    longest = rows.lengths.argsort(kind="stable")[::-1][:16]
    width = int(rows.lengths[longest].min())
    if width < 2:
        return None
    space = model.space
    whole = MaskedDiffusion(network.network, Categorical(width, space.levels, space.alphabet, excluded=space.excluded))
    return checked_shift(path, whole, torch.from_numpy(rows.tokens[longest.copy(), :width]).float())


def _target(command: Evaluate, rows: "Prompts") -> float | None:
    """Return the target for the Monte Carlo error of the mean of the rows, nats; None if another target is given."""
    if command.visits is not None:
        return None
    error = _ERROR if command.error is None else command.error
    if command.unit == "nats" and command.error is not None:
        return error
    return error * math.log(2) * float(rows.free.mean())


def _units(estimate: "Estimate", rows: "Prompts") -> "TextUnits":
    """Return the cost of all continuations, nats, by their tokens, characters and bytes."""
    from diffusional.data.tokens import TextUnits

    sizes = (int(one.sum()) for one in (rows.free, rows.characters, rows.bytes))
    n = len(rows.tokens)
    return TextUnits(estimate.value * n, estimate.error * n, *sizes)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _title(rows: "Prompts", chosen: ChosenItems, evaluations: int) -> str:
    n = len(rows.tokens)
    least, most = int(rows.given.min()), int(rows.given.max())
    return (
        f"{chosen.name}: {_counted(n, 'row')}, {_counted(int(rows.free.sum()), 'token')} of continuations, given prompts of {least} to {most} "
        f"tokens; {_counted(evaluations, 'network evaluation')} ({evaluations / n:.1f} per row)"
    )


def _evaluated(
    command: Evaluate, model: "PromptedDiffusion", rows: "Prompts", chosen: ChosenItems, about: dict[str, Any]
) -> "Evaluation":
    from diffusional.evaluation.continuations import continuations

    assert chosen.condition is not None
    with watching("nats", model.space.dimensions) as watch:
        result = continuations(
            model,
            chosen.x,
            chosen.condition,
            error=_target(command, rows),
            visits=command.visits,
            max_evaluations=command.max_evaluations,
            seed=command.seed,
            progress=watch,
        )
    units = _units(result.nelbo, rows)
    its = about["prompts"] | {"item_error": _item_error(result.per_item["nelbo"], result.per_item["error"], rows)}
    return dataclasses.replace(result, about=about | {"prompts": its, "text": units.to_json()})


def _item_error(scores: "Tensor", errors: "Tensor", rows: "Prompts") -> float | None:
    """Return the standard error over rows of the bits per token, Σ scores/(ln 2 Σ tokens), as of a ratio: that of the mean of

        y_i − r F_i,      r = Σ y/Σ F,

    over the mean of F, since other rows have other numbers of tokens. None for one row. `scores` and `errors` (N,) are nats.
    """
    import torch

    from diffusional.ledger import error_over_items

    free = torch.from_numpy(rows.free).double()
    order = scores.double()
    found = error_over_items(order - order.sum() / free.sum() * free, errors.double().square(), len(free))
    return found / float(free.mean()) / math.log(2) if math.isfinite(found) else None


def _evaluation_lines(scored: Scored) -> list[str]:
    from diffusional.evaluation import Evaluation

    result, rows = scored.result, scored.rows
    assert isinstance(result, Evaluation)
    return [
        _title(rows, scored.chosen, result.nelbo.network_evaluations),
        f"upper bound on −ln p(continuation | prompt), mean of the rows: {result.nelbo}",
        f"continuations: {_units(result.nelbo, rows)}",
        *_lines(result, rows),
        *(f"caveat: {text}" for text in result.caveats),
    ]


def _lines(result: "Evaluation", rows: "Prompts") -> list[str]:
    """Return a line for each of at most `_SHOWN` rows. The number of a single token is ln p itself; that of several is a bound, without an error
    if all masks were visited.
    """
    if len(rows.tokens) > _SHOWN:
        return []
    from diffusional.ledger import with_error

    scores = {
        int(i): (-float(v), float(e))
        for i, v, e in zip(*(result.per_item[k] for k in ("item", "nelbo", "error")), strict=True)
    }
    found = []
    for i, (prompt, continuation) in enumerate(rows.texts):
        value, error = scores[i]
        texts = " | ".join((_end(prompt), _start(continuation)))
        free = int(rows.free[i])
        number = f"{' ± '.join(with_error(value, error)) if error else f'{value:.4f}'} nats"
        exact = "" if error else ", exact" if free == 1 else ", from all masks"
        sign = "=" if free == 1 else "≥"
        found.append(
            f"  {i:>3}  {texts:<{2 * _CHARACTERS + 3}}  {_counted(free, 'token'):>10}  ln p {sign} {number}{exact}"
        )
    return found


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _start(text: str) -> str:
    """Return the beginning of a text in one line."""
    return _line(text) if len(text) <= _CHARACTERS else _line(text[: _CHARACTERS - 1]) + "…"


def _end(text: str) -> str:
    """Return the end of a text in one line."""
    return _line(text) if len(text) <= _CHARACTERS else "…" + _line(text[1 - _CHARACTERS :])


def _compared(
    command: Evaluate, models: "list[PromptedDiffusion]", rows: "Prompts", chosen: ChosenItems, about: dict[str, Any]
) -> "Comparison":
    from diffusional.evaluation.continuations import compare_continuations

    target = _target(command, rows)
    assert target is not None  # --visits is refused for two models
    assert chosen.condition is not None
    with watching("nats", models[0].space.dimensions) as watch:
        result = compare_continuations(
            models[0],
            models[1],
            chosen.x,
            chosen.condition,
            error=target,
            max_evaluations=command.max_evaluations,
            seed=command.seed,
            progress=watch,
        )
    units = [_units(one, rows) for one in (result.a.nelbo, result.b.nelbo, result.difference)]
    text = dict(zip(("a", "b", "difference"), (one.to_json() for one in units), strict=True))
    text["difference"].pop("perplexity")
    runs = [str(command.run), str(command.other)]
    scores = {"a": result.a.per_item, "b": result.b.per_item, "difference": result.per_item}
    errors = {
        side: _item_error(one["difference" if side == "difference" else "nelbo"], one["error"], rows)
        for side, one in scores.items()
    }
    its = about["prompts"] | {"item_error": errors}
    return dataclasses.replace(result, about={"runs": runs} | about | {"prompts": its, "text": text})


def _comparison_lines(scored: Scored) -> list[str]:
    from diffusional.evaluation import Comparison
    from diffusional.report.verdicts import identical_weights

    result, rows = scored.result, scored.rows
    assert isinstance(result, Comparison)
    same = identical_weights(dict(zip(result.names, (result.a, result.b), strict=True)))
    units = [_units(one, rows) for one in (result.a.nelbo, result.b.nelbo, result.difference)]
    difference, (bits, error) = result.difference, units[2].bits_per_token
    return [
        _title(rows, scored.chosen, difference.network_evaluations),
        *(f"{run}: {one}" for run, one in zip(result.about["runs"], units, strict=False)),
        f"A − B, paired: {difference} per row; {bits:.4f} ± {error:.4f} bits per token; negative: A gives the continuations a higher probability",
        *(f"note: {text}" for text in same),
        *(f"caveat: {text}" for text in result.caveats),
    ]


def _saved(command: Evaluate, scored: Scored) -> list[Any]:
    from diffusional.evaluation import Comparison

    if command.per_item is None or not first():
        return []
    path, result = command.per_item, scored.result
    if isinstance(result, Comparison):
        return [lambda: write_scores(path, both_scores(result), scored.chosen)]
    # `nelbo` is a cost; its negative is what harnesses of language models call the log-likelihood.
    columns = {"item": result.per_item["item"], "log_likelihood": -result.per_item["nelbo"], **result.per_item}
    return [lambda: write_scores(path, columns, scored.chosen)]
