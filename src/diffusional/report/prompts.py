"""Texts given prompts in a report: numbers per scored token, since rows differ in length and prompts cost nothing, and the costs by length.

A mean over N rows of costs in nats, with F̄ scored tokens in a row on average, is divided by F̄: the cost of all continuations, divided by their
tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffusional.errors import DiffusionalError
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.result import Evaluation
from diffusional.ledger import Estimate, per_unit
from diffusional.report.charts import Bar, brief, number, waterfall, with_plus_minus
from diffusional.report.subject import ItemScores, Subject, sides_of

UNIT, NATS = "bits/token", "nats/token"


def is_prompted(result: Evaluation | None) -> bool:
    """Return whether a result is of continuations given prompts.

    >>> import torch
    >>> is_prompted(Evaluation.from_scores(torch.ones(2), dimensions=2))
    False
    """
    return result is not None and isinstance(result.about.get("prompts"), dict)


def per_token(result: Evaluation) -> Evaluation:
    """Return a result of continuations per scored token, of which each is a dimension. Raises DiffusionalError for a record without their number.

    >>> import torch
    >>> about = {"text": {"tokens": 10}, "prompts": {"tokens": 4, "item_error": 0.1}}
    >>> found = per_token(replace(Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=64), about=about))
    >>> found.nelbo.value, round(found.nelbo.to("bits/token", found.dimensions).item_error, 3)
    (0.8, 0.1)
    """
    mean = _mean_tokens(result, result.about.get("text"))
    return replace(
        result,
        nelbo=_divided(result.nelbo, mean, result.about["prompts"].get("item_error")),
        dimensions=1,
        per_item={},
        terms={},
        visited=result.items_visited,
    )


def per_token_difference(one: Comparison) -> Comparison:
    """Return a comparison on continuations per scored token; another one as it is. Errors as in `per_token`."""
    prompts, text = one.about.get("prompts"), one.about.get("text")
    if not isinstance(prompts, dict):
        return one
    errors, (a, b) = prompts.get("item_error") or {}, map(per_token, sides_of(one))
    mean = _mean_tokens(one.a, (text or {}).get("a"))
    return replace(one, difference=_divided(one.difference, mean, errors.get("difference")), a=a, b=b, per_item={})


def per_token_subject(one: Subject) -> Subject:
    """Return a subject whose evaluation, if it is of continuations, is per scored token."""
    if not is_prompted(one.evaluation):
        return one
    assert one.evaluation is not None
    return replace(one, evaluation=per_token(one.evaluation))


def _mean_tokens(result: Evaluation, text: Any) -> float:
    tokens = text.get("tokens") if isinstance(text, dict) else None
    if not isinstance(tokens, int) or tokens < 1:
        raise DiffusionalError(
            f"expected a record of continuations with the number of their tokens, text.tokens, got {tokens!r}; evaluate them again"
        )
    return tokens / result.nelbo.n


def _divided(one: Estimate, tokens: float, item_error: float | None) -> Estimate:
    """Return nats per row as nats per token. `item_error`, in bits per token, is that of the ratio if it is known."""
    items = one.item_error / tokens if item_error is None else item_error * per_unit("bits/dim", 1)
    return Estimate(one.value / tokens, one.error / tokens, items, one.n, one.network_evaluations, "nats")


def what(result: Evaluation) -> str:
    """Return what was scored, in words."""
    text, prompts = result.about["text"], result.about["prompts"]
    given = f"given prompts of {prompts['tokens']:,} tokens together" if prompts["tokens"] else "given nothing"
    return f"{counted(text['tokens'], 'scored token')} of {result.nelbo.n:,} rows, {given}; {result.provenance.get('levels'):,} kinds of tokens"


def counted(n: int, word: str) -> str:
    """Return a number with a noun.

    >>> counted(1, "token"), counted(1000, "row")
    ('1 token', '1,000 rows')
    """
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def groups(tokens: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the rows of continuations by their number of tokens (N,), in groups that double: labels and indices.

    >>> [(label, rows.tolist()) for label, rows in groups(np.array([1, 7, 2, 3, 1]))]
    [('1 token', [0, 4]), ('2 tokens', [2]), ('3 to 4 tokens', [3]), ('5 to 8 tokens', [1])]
    """
    found = []
    low, high = 0, 1
    while low < int(tokens.max()):
        own = np.flatnonzero((tokens > low) & (tokens <= high))
        if len(own):
            found.append((counted(high, "token") if high - low < 2 else f"{low + 1:,} to {high:,} tokens", own))
        low, high = high, 2 * high
    return found


def ledger(name: str, result: Evaluation, items: ItemScores) -> dict[str, Any]:
    """Return the costs of continuations by their length, as rows of a table and a waterfall.

    Args:
        name: of the model.
        result: per token.
        items: the scores of all rows, with their tokens; `nelbo` and `error` per token.
    """
    assert items.tokens is not None
    tokens = np.asarray(items.tokens)
    nats, error = items.nelbo * tokens, items.error * tokens
    bits, whole = per_unit("bits/dim", 1), int(tokens.sum())

    def row(label: str, own: np.ndarray) -> list[str]:
        n, value, off = int(tokens[own].sum()), float(nats[own].sum()), float(np.sqrt(np.square(error[own]).sum()))
        cost, its = with_plus_minus(value, off).partition(" ± ")[::2]
        each, apart = with_plus_minus(value / bits / n, off / bits / n).partition(" ± ")[::2]
        share = f"{value / nats.sum():.1%}".replace("%", " %") if nats.sum() > 0 else ""
        return [label, f"{len(own):,}", f"{n:,}", cost, brief(its) or "0", each, brief(apart) or "0", share]

    every = groups(tokens)
    bars = [
        Bar(
            f"continuations of {label}",
            float(nats[own].sum()) / bits / whole,
            float(np.sqrt(np.square(error[own]).sum())) / bits / whole,
            style="s1",
        )
        for label, own in every
    ]
    total = result.nelbo.to(UNIT, 1)
    chart = waterfall(
        f"Where the bits of {name} go", bars, Bar(result.total_name, total.value, total.error, style="total"), UNIT
    )
    return {
        "name": name,
        "columns": ["continuations of", "rows", "tokens", "nats", "± MC", UNIT, "± MC", "share"],
        "sections": [
            ("", [row(label, own) for label, own in every]),
            ("total", [row("all", np.arange(len(tokens)))]),
        ],
        "chart": chart,
        "note": "A bar is the share of these rows in the bits per token of all. Their own bits per token are in the table.",
        "budget": None,
        "shares": [],
    }


def dearest(items: ItemScores, total: float) -> Sequence[str]:
    """Return the group of lengths that costs the most, in words; [] if there is only one."""
    assert items.tokens is not None
    every = groups(np.asarray(items.tokens))
    nats = items.nelbo * items.tokens
    if len(every) < 2 or not total > 0:
        return []
    label, own = max(every, key=lambda one: float(nats[one[1]].sum()))
    mean = float(nats[own].sum()) / per_unit("bits/dim", 1) / int(items.tokens[own].sum())
    share = f"{float(nats[own].sum() / nats.sum()):.0%}".replace("%", " %")
    return [f"continuations of {label}: {number(mean)} {UNIT}, {share} of all bits"]
