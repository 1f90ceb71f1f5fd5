"""Ledgers, comparisons and other results as rich tables."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.provenance import check_same_data
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.summary import cells
from diffusional.extras import needed_for
from diffusional.ledger import Estimate, with_error

with needed_for("report"):
    from rich.table import Table
    from rich.text import Text


def ledger_table(result: Evaluation, title: str) -> Table:
    """Return an evaluation as a ledger: each cost in nats and bits/dim, with both errors.

    The terms of each stage of a composite model ("base.kl", …) are in a separate section.

    >>> import torch
    >>> ledger_table(Evaluation.from_scores(torch.tensor([70.0, 71.0]), dimensions=64), "test").row_count
    1
    """
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("cost")
    for column in ("nats", "± MC", "± items", "bits/dim", "± MC", "± items"):
        table.add_column(column, justify="right")
    for name in _in_sections(table, result.terms):
        table.add_row(_plain(name), *_both_units(result.terms[name], result.dimensions))
    table.add_section()
    table.add_row(result.total_name, *_both_units(result.nelbo, result.dimensions), style="bold")
    table.caption = (
        f"± MC: Monte Carlo error of this evaluation; ± items: standard error over the {result.nelbo.n} items"
    )
    return table


def _plain(text: str, style: str = "") -> Text:
    """Return a user's text to be printed literally, since brackets and colons in names are not markup."""
    return Text(text, style)


def _in_sections(table: Table, names: Iterable[str]) -> Iterator[str]:
    """Yield names, with a line in the table between those of different stages: these differ before the last dot."""
    before = None
    for name in names:
        stage = name.rpartition(".")[0]
        if before is not None and stage != before:
            table.add_section()
        before = stage
        yield name


def _both_units(term: Estimate, dimensions: int) -> tuple[str, ...]:
    return *cells(term, dimensions, "nats"), *cells(term, dimensions, "bits/dim")


# What to do about results of different data.
_ADVICE = "Evaluate both on the same data, or pass across_data=True"


def baseline_table(results: Mapping[str, Evaluation], title: str, across_data: bool = False) -> Table:
    """Return models and baselines on the same data, best first, in bits/dim, with the kind of each number. Raises DiffusionalError for
    results about different data, unless `across_data`.

    >>> import torch
    >>> baseline_table({"a": Evaluation.from_scores(torch.tensor([70.0, 71.0]), dimensions=64)}, "test").row_count
    1
    """
    if not across_data:
        check_same_data({name: result.provenance for name, result in results.items()}, _ADVICE)
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("model")
    for column in ("bits/dim", "± Monte Carlo", "± items"):
        table.add_column(column, justify="right")
    for name, result in sorted(results.items(), key=lambda pair: pair[1].nelbo.value / pair[1].dimensions):
        kind = {"bound": " (upper bound)", "estimate": " (estimate)"}.get(result.kind, "")
        table.add_row(_plain(name + kind), *cells(result.nelbo, result.dimensions, "bits/dim"))
    return table


def ledgers_table(results: Mapping[str, Evaluation], title: str, across_data: bool = False) -> Table:
    """Return the ledgers of several models on the same data side by side, bits/dim ± Monte Carlo error, by the models' names. Raises
    DiffusionalError for results about different data, unless `across_data`.

    >>> import torch
    >>> result = Evaluation.from_scores(torch.tensor([70.0, 71.0]), dimensions=64, kind="bound")
    >>> ledgers_table({"a": result, "b": result}, "test").row_count
    2
    """
    if not across_data:
        check_same_data({name: result.provenance for name, result in results.items()}, _ADVICE)
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("cost")
    for name in results:
        table.add_column(_plain(name), justify="right")
    names = dict.fromkeys(name for result in results.values() for name in result.terms)
    for name in _in_sections(table, names):
        table.add_row(_plain(name), *(_cell(result.terms.get(name), result.dimensions) for result in results.values()))
    table.add_section()
    totals = dict.fromkeys(result.total_name for result in results.values())
    table.add_row(
        " / ".join(totals), *(_cell(result.nelbo, result.dimensions) for result in results.values()), style="bold"
    )
    table.add_row("± items", *(cells(r.nelbo, r.dimensions, "bits/dim")[2] for r in results.values()))
    table.caption = "±: Monte Carlo error of this evaluation; ± items: standard error over items"
    return table


def _cell(term: Estimate | None, dimensions: int) -> str:
    if term is None:
        return ""
    value, error, _ = cells(term, dimensions, "bits/dim")
    return value if error == "0" else f"{value} ± {error}"


def comparison_table(result: Comparison, title: str) -> Table:
    """Return two models and their difference: both bounds, and A − B, paired. The models are called by their runs, or A and B.

    >>> import math, torch
    >>> a = Evaluation.from_scores(torch.tensor([70.0, 71.0]), dimensions=64)
    >>> difference = Estimate(0.0, 0.0, 0.0, n=2, network_evaluations=0)
    >>> comparison_table(Comparison(difference, a, a, math.inf, True, ()), "test").row_count
    3
    """
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("NELBO")
    for column in ("bits/dim", "± MC", "± items"):
        table.add_column(column, justify="right")
    for name, one in zip(result.names, (result.a, result.b), strict=True):
        table.add_row(_plain(name), *cells(one.nelbo, one.dimensions, "bits/dim"))
    table.add_section()
    table.add_row("A − B, paired", *cells(result.difference, result.a.dimensions, "bits/dim"), style="bold")
    table.caption = (
        "negative: A gives the data a higher probability; ± MC: Monte Carlo error; ± items: standard error over items"
    )
    return table


def information_table(record: Mapping[str, Any], title: str) -> Table:
    """Return a table of an information curve, from `Curve.to_json`: I(x; z_t) by level, and the loss up to the next row.

    >>> curve = {"level": [1, 2], "gamma": [-9.0, 9.0], "information": [0.7, 0.1], "information_error": [0.0, 0.01]}
    >>> information_table(curve | {"increment": [0.6], "increment_error": [0.01]}, "test").row_count
    2
    """
    table = Table(title=_plain(title, "bold"), title_justify="left")
    continuous = record["level"][-1] == 1
    for column in ("u" if continuous else "t", "log SNR", "I(x; z), nats", "±", "lost up to next", "±"):
        table.add_column(column, justify="right")
    lost = [*zip(record["increment"], record["increment_error"], strict=True), None]
    for level, gamma, value, error, step in zip(
        record["level"], record["gamma"], record["information"], record["information_error"], lost, strict=True
    ):
        step = ("", "") if step is None else _brief(*step)
        table.add_row(f"{level:.3f}" if continuous else str(level), f"{-gamma:.2f}", *_brief(value, error), *step)
    return table


def budget_table(record: Mapping[str, Any], title: str) -> Table:
    """Return a table of a nat budget, from `NatBudget.to_json`: each cost with information and gap, or relative to its reference.

    >>> nats = {"value": 1.0, "error": 0.1}
    >>> row = {"name": "prior", "cost": nats, "information": nats, "gap": nats}
    >>> budget_table({"rows": [row], "total": row, "relative_to": ""}, "test").row_count
    2
    """
    reference = record["relative_to"]
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("nats")
    for column in ("cost", "±", "reference's" if reference else "information", "±", "gap", "±"):
        table.add_column(column, justify="right")
    second = "reference" if reference else "information"
    for row in record["rows"]:
        table.add_row(_plain(row["name"]), *_columns(row, second))
    table.add_section()
    table.add_row(_plain(record["total"]["name"]), *_columns(record["total"], second), style="bold")
    table.caption = _plain(
        f"gaps are relative to {reference}; the information is unknown"
        if reference
        else "cost = information + gap; training can reduce only the gap",
        "table.caption",
    )
    return table


def _columns(row: Mapping[str, Any], second: str) -> list[str]:
    return [text for key in ("cost", second, "gap") for text in _brief(row[key]["value"], row[key]["error"])]


def _brief(value: float, error: float) -> tuple[str, str]:
    """Format like `with_error`, but an error below 1e-7 as a power of ten, with four decimals of a value that is not as small."""
    if not 0 < error < 1e-7:
        return with_error(value, error)
    return f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.0e}", f"{error:.0e}"


def profile_table(record: Mapping[str, Any]) -> Table:
    """Return a table of the time spent in each part of a step (a run's profile.json), the longest first.

    The time of validations and checkpoints is divided among the steps.

    >>> profile_table({"steps": 10, "seconds": {"forward": 0.3, "backward": 0.6}}).row_count
    3
    """
    steps, seconds = record["steps"], record["seconds"]
    total = sum(seconds.values())
    table = Table(title=f"Time spent in each part of a step, {steps} steps", title_justify="left", title_style="bold")
    table.add_column("phase")
    for column in ("ms/step", "share"):
        table.add_column(column, justify="right")
    for name, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{1000 * spent / steps:.2f}", f"{spent / total:.1%}")
    table.add_section()
    table.add_row("step", f"{1000 * total / steps:.2f}", "", style="bold")
    return table


def claims_table(result: Mapping[str, Any], title: str) -> Table:
    """Return a table of claims and controls, from the record of `diffusional claims --json`, with the decisive check of each.

    >>> check = {"what": "an identity", "measured": 1e-12, "error": 0.0, "expected": 0.0, "tolerance": 1e-9}
    >>> claim = check | {"id": "C1", "claim": "x = x", "holds": True, "control_fails": True}
    >>> control = check | {"what": "x = 2 x", "check": "an identity", "measured": 0.3}
    >>> claims_table({"claims": [claim | {"control": control}]}, "test").row_count
    2
    """
    table = Table(title=_plain(title, "bold"), title_justify="left")
    table.add_column("")
    table.add_column("claim and check; control")
    table.add_column("measured", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("", no_wrap=True)
    for claim in result["claims"]:
        control = claim["control"]
        limits = (
            f"≥ {claim['expected']:g}" if claim.get("at_least") else f"{claim['expected']:g} ± {claim['tolerance']:.0e}"
        )
        table.add_row(
            claim["id"],
            Text.assemble(claim["claim"], "\n", (claim["what"], "dim")),
            _measured(claim),
            limits,
            Text("holds", "green") if claim["holds"] else Text("DOES NOT HOLD", "bold red"),
        )
        table.add_row(
            "",
            Text.assemble("control: ", control["what"], "\n", (control["check"], "dim")),
            _measured(control),
            "",
            Text("fails", "green") if claim["control_fails"] else Text("PASSES", "bold red"),
            end_section=True,
        )
    table.caption = "relative to the size of the measured quantity: 0.01 is 1 %. All checks are in the record of --json"
    return table


def _measured(check: Mapping[str, Any]) -> str:
    """Format value ± error, with two digits of an exact value; a value close to 1 is shown as 1 and the difference."""
    value, error = (math.nan if check[key] is None else check[key] for key in ("measured", "error"))
    if error and abs(value) >= 1e-3:
        return " ± ".join(with_error(value, error))
    if error:
        return f"{value:.2g} ± {error:.2g}"
    return f"1 {'−' if value < 1 else '+'} {abs(value - 1):.1e}" if abs(value - 1) < 1e-3 else f"{value:.2g}"
