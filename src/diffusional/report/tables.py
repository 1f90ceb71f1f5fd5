"""Ledgers and yardsticks as rich tables."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from diffusional.ledger import per_unit, with_error


def ledger_table(result: Mapping[str, Any], title: str) -> Table:
    """An evaluation's record (what `Evaluation.to_json` gives) as a ledger: each cost in nats and bits/dim, both errors.

    >>> part = {"value": 70.0, "error": 0.2, "item_error": 1.5, "unit": "nats"}
    >>> record = {"nelbo": part, "nelbo_nats": part, "terms": {"kl": part}, "items": 9, "dimensions": 64, "levels": 17}
    >>> ledger_table(record, "test").row_count
    2
    """
    bit = per_unit("bits/dim", result["dimensions"])
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("cost")
    for column in ("nats", "± MC", "± items", "bits/dim", "± MC", "± items"):
        table.add_column(column, justify="right")
    for name, term in result["terms"].items():
        table.add_row(name, *_numbers(term, 1.0), *_numbers(term, bit))
    table.add_section()
    total = result["nelbo_nats"]
    table.add_row("NELBO", *_numbers(total, 1.0), *_numbers(total, bit), style="bold")
    table.caption = "± MC: noise of this evaluation; ± items: another sample of as many items"
    return table


def _numbers(term: Mapping[str, Any], divisor: float) -> tuple[str, str, str]:
    numbers = (math.nan if term[key] is None else term[key] / divisor for key in ("value", "error", "item_error"))
    value, error, item_error = numbers
    return *with_error(value, error), with_error(item_error, item_error)[1]


def yardstick_table(rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Models and yardsticks on the same data, best first: {name: {"value", "error", "item_error"} in bits/dim}.

    >>> yardstick_table({"a": {"value": 2.4, "error": 0.0, "item_error": 0.02}}, "test").row_count
    1
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model")
    for column in ("bits/dim", "± Monte Carlo", "± items"):
        table.add_column(column, justify="right")
    for name, row in sorted(rows.items(), key=lambda pair: pair[1]["value"]):
        table.add_row(name, *_numbers(row, 1.0))
    return table


def comparison_table(result: Mapping[str, Any], title: str) -> Table:
    """Two runs and their difference, what `Comparison.to_json` gives with "runs": both bounds, and A − B, paired.

    >>> part = {"value": 1.75, "error": 0.01, "item_error": 0.02, "unit": "bits/dim"}
    >>> record = {"runs": ["a", "b"], "a": {"nelbo": part}, "b": {"nelbo": part}, "difference": part}
    >>> comparison_table(record, "test").row_count
    3
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("NELBO")
    for column in ("bits/dim", "± MC", "± items"):
        table.add_column(column, justify="right")
    for run, key in zip(result["runs"], ("a", "b"), strict=True):
        table.add_row(run, *_numbers(result[key]["nelbo"], 1.0))
    table.add_section()
    table.add_row("A − B, paired", *_numbers(result["difference"], 1.0), style="bold")
    table.caption = (
        "negative: A gives the data more probability. ± items: the paired difference on another sample of items"
    )
    return table
