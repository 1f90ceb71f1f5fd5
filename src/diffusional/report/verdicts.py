"""What the numbers of a report mean, in sentences: what is bounded, which model is better, and what to doubt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.provenance import check_same_data, data_of
from diffusional.evaluation.result import Evaluation
from diffusional.ledger import Estimate, with_error
from diffusional.report.charts import brief, number, with_plus_minus
from diffusional.report.prompts import NATS, UNIT, is_prompted, what
from diffusional.report.subject import Subject

# Standard errors by which a difference must exceed zero before one model is taken to have the lower number.
SURE = 2.0


def unit_of(result: Evaluation) -> str:
    """Return the unit in which a result is reported first: nats for a density, whose bits/dim depend on the unit of measurement, and bits per
    token for continuations given prompts.

    >>> import torch
    >>> unit_of(Evaluation.from_scores(torch.ones(2), dimensions=2))
    'nats'
    """
    if is_prompted(result):
        return UNIT
    return "nats" if result.provenance.get("levels") is None else "bits/dim"


def in_unit(estimate: Estimate, result: Evaluation, unit: str) -> Estimate:
    """Return an estimate of a result in a unit."""
    return estimate.to(unit, result.dimensions)


def meaning(result: Evaluation) -> str:
    """Return what the number of a result is, in one sentence.

    >>> import torch
    >>> meaning(Evaluation.from_scores(torch.ones(2), dimensions=2))
    'The exact value of −ln p(x), the negative log density of an item, in nats. Lower is better.'
    """
    if is_prompted(result):
        return (
            "An upper bound on the bits that the model needs for each scored token, one of a continuation given its prompt: "
            "−log₂ p(continuation | prompt), of all rows, divided by their scored tokens. Lower is better."
        )
    discrete = result.provenance.get("levels") is not None
    of = "token of a block" if isinstance(result.about.get("text"), Mapping) else "dimension of an item"
    needed = f"bits that the model needs for each {of}" if discrete else ""
    sentence = {
        "bound": f"An upper bound on the {needed}"
        if discrete
        else "An upper bound on −ln p(x), the negative log density of an item, in nats",
        "exact": f"The exact number of {needed}"
        if discrete
        else "The exact value of −ln p(x), the negative log density of an item, in nats",
        "estimate": f"An estimate, which is not a bound, of the {needed}"
        if discrete
        else "An estimate, which is not a bound, of −ln p(x), the negative log density of an item, in nats",
    }[result.kind]
    log = ": −log₂ p(x)/D" if discrete else ""
    return f"{sentence}{log}. Lower is better."


def kind_of(result: Evaluation) -> str:
    """Return the kind of a number in words; a bound with a Monte Carlo error is itself estimated.

    >>> import torch
    >>> kind_of(Evaluation.from_scores(torch.ones(2), dimensions=2))
    'exact'
    """
    if result.kind == "bound":
        return "upper bound" if result.nelbo.error == 0 else "estimated upper bound"
    return {"exact": "exact", "estimate": "estimate, not a bound"}[result.kind]


def of_what(result: Evaluation) -> str:
    """Return the data, the number of items and their form, in a few words.

    >>> import torch
    >>> of_what(Evaluation.from_scores(torch.ones(2), dimensions=3))
    '2 items of 3 real dimensions'
    """
    about = result.about
    data = ", ".join(str(about[key]) for key in ("data", "split") if about.get(key))
    if is_prompted(result):
        return f"{data}; {what(result)}" if data else what(result)
    levels = result.provenance.get("levels")
    if isinstance(result.about.get("text"), Mapping):
        blocks = f"{result.nelbo.n:,} blocks of {result.dimensions:,} tokens, of {levels:,} kinds"
        return f"{data}; {blocks}" if data else blocks
    form = (
        f"{result.dimensions:,} dimensions of {levels} levels" if levels else f"{result.dimensions:,} real dimensions"
    )
    items = f"{result.nelbo.n:,} items of {form}"
    return f"{data}; {items}" if data else items


def alike_of(result: Evaluation) -> str:
    """Return what is equally likely in the simplest model of discrete data.

    >>> import torch
    >>> alike_of(Evaluation.from_scores(torch.ones(2), dimensions=2))
    'levels'
    """
    return "tokens" if isinstance(result.about.get("text"), Mapping) else "levels"


def uniform(result: Evaluation) -> float | None:
    """Return the bits/dim of equally likely levels, log₂ K; None for a density."""
    levels = result.provenance.get("levels")
    return math.log2(levels) if levels else None


def caveats(subject: Subject) -> list[str]:
    """Return what to doubt about a subject, one sentence each."""
    result = subject.evaluation
    if result is None:
        return [
            f"This run has no saved evaluation, so that its bound is not known: run `diffusional evaluate {subject.name}`.",
            *subject.notes,
        ]
    found = [_sentence(text) for text in result.caveats]
    if not result.reached and not found:
        found.append("The target error was not reached: the error is larger than requested.")
    if result.kind == "estimate":
        found.append("The number is an estimate, and not a bound: the exact value may be higher or lower.")
    if result.about.get("split") == "train":
        found.append("The items are those that the model was trained on: its bound on new items is higher.")
    found += [_sentence(text) for text in result.about.get("warnings") or ()]
    found += _check(result.about.get("check"))
    log = uniform(result)
    bound = result.nelbo.to("bits/dim", result.dimensions).value
    if log is not None and bound > log:
        alike = alike_of(result)
        found.append(
            f"The bound is worse than that of equally likely {alike} ({number(bound)} instead of {number(log)} {unit_of(result)}): the model has "
            "learned nothing that helps with these items."
        )
    else:
        found += _baseline(subject)
    return [*found, *subject.notes]


def _baseline(subject: Subject) -> list[str]:
    """Return a caveat if a simple baseline of the same items is not above the bound."""
    result = subject.evaluation
    if result is None or not subject.baselines:
        return []
    name, best = min(subject.baselines.items(), key=lambda item: _bits(item[1]))
    if _bits(best) > _bits(result):
        return []
    unit = unit_of(result)
    own, other = (number(one.nelbo.to(unit, one.dimensions).value) for one in (result, best))
    return [f"The bound is not better than a simple baseline, {name} ({own} and {other} {unit})."]


def _check(found: Any) -> list[str]:
    """Return the findings of the check of an imported network."""
    if not isinstance(found, Mapping) or not found.get("findings"):
        return []
    remedies = found.get("remedies")
    text = "; ".join(map(str, found["findings"]))
    return [
        _sentence(
            f"the check of the network found: {text}" + (f". Remedy: {remedies}" if isinstance(remedies, str) else "")
        )
    ]


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def different_data(subjects: Sequence[Subject]) -> str:
    """Return why the numbers of several subjects cannot be compared; "" if they can."""
    results = {one.name: one.evaluation for one in subjects if one.evaluation is not None}
    try:
        check_same_data({name: result.provenance for name, result in results.items()}, "")
    except DiffusionalError:
        named = "; ".join(f"{name}: {data_of(result.provenance)}" for name, result in results.items())
        return f"The evaluations are of different items ({named}): their numbers cannot be compared with one another."
    forms = {(result.dimensions, result.provenance.get("levels")) for result in results.values()}
    if len(forms) > 1:
        return "The evaluations are of items of different dimensions or levels: their numbers cannot be compared with one another."
    conditions = {result.provenance.get("condition_sha256") for result in results.values()}
    if len(conditions) > 1:
        return (
            "Not all models are given the same condition (such as a label) of each item: a difference also contains the information in the "
            "conditions."
        )
    return ""


def identical_weights(results: Mapping[str, Evaluation]) -> list[str]:
    """Return which of several models, given the same condition, have the same weights by their hashes, one sentence for each group.

    >>> import torch
    >>> one = Evaluation.from_scores(torch.ones(2), dimensions=2, provenance={"weights_sha256": "0123456789abcdef"})
    >>> identical_weights({"a": one, "b": one})
    ['a and b have identical weights (SHA-256 0123456789ab…): a difference comes from their settings or their draws, and not from training.']
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        weights = result.provenance.get("weights_sha256")
        if weights is not None:
            groups.setdefault((str(weights), str(result.provenance.get("condition_sha256"))), []).append(name)
    return [
        f"{', '.join(names[:-1])} and {names[-1]} have identical weights (SHA-256 {weights[:12]}…): a difference comes from their settings or "
        "their draws, and not from training."
        for (weights, _), names in groups.items()
        if len(names) > 1
    ]


def ranked(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the evaluated subjects, the best first."""
    found = [one for one in subjects if one.evaluation is not None]
    return sorted(found, key=lambda one: _bits(one.evaluation))


def _bits(result: Evaluation | None) -> float:
    assert result is not None
    return result.nelbo.value / result.dimensions


def paired(comparisons: Sequence[Comparison], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return the rows of the differences: those of the comparisons, and unpaired ones of the best subject and each other without one."""
    rows = []
    seen = set()
    for one in comparisons:
        unit = unit_of(one.a)
        difference = one.difference.to(unit, one.a.dimensions)
        low, high = one.interval(unit=unit)
        seen.add(frozenset(one.names))
        rows.append(
            _row(one.names, difference, (one.a, one.b), True)
            | {"interval": f"{number(low, difference.error)} to {number(high, difference.error)}", "comparison": one}
        )
    order = ranked(subjects)
    for other in order[1:]:
        best = order[0]
        if frozenset((best.name, other.name)) in seen or different_data([best, other]):
            continue
        assert best.evaluation is not None
        assert other.evaluation is not None
        unit = unit_of(best.evaluation)
        a, b = (one.nelbo.to(unit, one.dimensions) for one in (best.evaluation, other.evaluation))
        error = math.hypot(a.error, b.error)
        items = math.hypot(a.item_error, b.item_error)
        difference = Estimate(a.value - b.value, error, items, a.n, a.network_evaluations + b.network_evaluations, unit)
        low, high = difference.interval()
        rows.append(
            _row((best.name, other.name), difference, (best.evaluation, other.evaluation), False)
            | {"interval": f"{number(low, error)} to {number(high, error)}"}
        )
    return rows


def _row(
    names: tuple[str, str], difference: Estimate, results: tuple[Evaluation, Evaluation], is_paired: bool
) -> dict[str, Any]:
    unit, kinds = difference.unit, (results[0].kind, results[1].kind)
    second = NATS if unit == UNIT else "nats"
    nats = difference.to(second, results[0].dimensions)
    return {
        "a": names[0],
        "b": names[1],
        "unit": unit,
        "difference": difference,
        "value": number(difference.value, difference.error),
        "error": brief(with_error(difference.error, difference.error)[0]),
        "items": brief(with_error(difference.item_error, difference.item_error)[0]) or "unknown",
        "nats": "" if unit == "nats" else with_plus_minus(nats.value, nats.error),
        "paired": is_paired,
        "comparison": None,
        "kinds": kinds,
        "verdict": verdict(names, difference, is_paired, kinds),
        "sure": sure(difference),
    }


def sure(difference: Estimate) -> str:
    """Return how far a difference is from zero, with both errors if both are known, as a sentence; "" without an error.

    >>> sure(Estimate(-1.0, 0.3, 0.4, n=9, network_evaluations=0))
    'The difference is 3.3 standard errors from 0 on these items, and 2.0 with the error over items.'
    """
    if not difference.error > 0:
        return ""
    said = f"The difference is {abs(difference.value) / difference.error:.1f} standard errors from 0 on these items"
    if not math.isfinite(difference.item_error):
        return f"{said}."
    both = abs(difference.value) / math.hypot(difference.error, difference.item_error)
    return f"{said}, and {both:.1f} with the error over items."


def lower(kinds: Sequence[str]) -> str:
    """Return what the model with the lower number has, by the kinds of the numbers.

    >>> lower(("bound", "bound")), lower(("exact", "exact")), lower(("bound", "exact"))
    ('the lower bound', 'the lower cost', 'the lower number')
    """
    same = {"bound": "the lower bound", "exact": "the lower cost", "estimate": "the lower estimate"}
    return same[kinds[0]] if len(set(kinds)) == 1 else "the lower number"


def meaning_of_difference(kinds: Sequence[str]) -> str:
    """Return what a negative difference means, by the kinds of all numbers: of bounds nothing follows about probabilities.

    >>> meaning_of_difference(("exact", "exact"))
    'A negative difference means that the first model has the lower cost: it gives the items a higher probability.'
    """
    said = f"A negative difference means that the first model has {lower(kinds)}"
    if "bound" in kinds:
        return (
            f"{said}. An upper bound is the most that the items cost: a lower one is the better guarantee, from which no higher probability of "
            "the items follows."
        )
    return f"{said}: it gives the items a higher probability{', as far as the estimates are right' if 'estimate' in kinds else ''}."


def verdict(
    names: tuple[str, str], difference: Estimate, is_paired: bool, kinds: tuple[str, str] = ("bound", "bound")
) -> str:
    """Return which of two models has the lower number, by how much and how sure, as a sentence.

    >>> verdict(("a", "b"), Estimate(-1.0, 0.1, 0.2, n=9, network_evaluations=0), True)
    'a has the lower bound, by 1.00 ± 0.10 nats on these 9 items, and by 1.00 ± 0.22 nats on other items like them.'
    >>> verdict(("a", "b"), Estimate(-0.1, 0.1, 0.2, n=9, network_evaluations=0), True)
    'Neither has the lower bound as far as this evaluation shows: the difference of a and b, −0.10 ± 0.10 nats, is within two standard errors.'
    """
    best = names[0] if difference.value <= 0 else names[1]
    size, unit = abs(difference.value), difference.unit
    on_items = math.hypot(difference.error, difference.item_error if math.isfinite(difference.item_error) else 0.0)
    if size <= SURE * difference.error:
        return (
            f"Neither has {lower(kinds)} as far as this evaluation shows: the difference of {names[0]} and {names[1]}, "
            f"{with_plus_minus(difference.value, difference.error)} {unit}, is within two standard errors."
        )
    said = f"{best} has {lower(kinds)}, by {with_plus_minus(size, difference.error)} {unit} on these {difference.n:,} items"
    if not math.isfinite(difference.item_error):
        return f"{said}; how much that depends on the items is not known."
    if not is_paired:
        return f"{said}. The errors are those of separate evaluations; a paired comparison has a smaller one."
    if size <= SURE * on_items:
        return f"{said}, but other items could reverse that: {with_plus_minus(size, on_items)} {unit} with the error over items."
    return f"{said}, and by {with_plus_minus(size, on_items)} {unit} on other items like them."
