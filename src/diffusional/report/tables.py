"""Ledgers and yardsticks as rich tables."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from diffusional.ledger import with_error

_MEANING = {
    "reconstruction": "−ln p(x|z₁)",
    "kl": "Σ KL_t, t < T",
    "prior": "KL_T",
    "jacobian": "Σ ln scale",
}


def ledger_table(result: Mapping[str, Any], title: str) -> Table:
    """An evaluation's record (what `Evaluation.to_json` gives) as a ledger: each cost in nats and bits/dim, both errors.

    >>> part = {"value": 70.0, "error": 0.2, "item_error": 1.5, "unit": "nats"}
    >>> record = {"nelbo": part, "nelbo_nats": part, "terms": {"kl": part}, "items": 9, "dimensions": 64, "levels": 17}
    >>> ledger_table(record, "test").row_count
    2
    """
    nats_per_bit = result["nelbo_nats"]["value"] / result["nelbo"]["value"]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("cost")
    table.add_column("")
    for column in ("nats", "± Monte Carlo", "± items", "bits/dim"):
        table.add_column(column, justify="right")
    for name, term in result["terms"].items():
        table.add_row(name, _MEANING.get(name, ""), *_numbers(term, nats_per_bit), end_section=False)
    table.add_section()
    table.add_row("NELBO", "their sum ≥ −ln p(x)", *_numbers(result["nelbo_nats"], nats_per_bit), style="bold")
    return table


def _numbers(term: Mapping[str, Any], nats_per_bit: float) -> tuple[str, str, str, str]:
    value, error = with_error(term["value"], term["error"])
    item_error = with_error(term["item_error"], term["item_error"])[1]
    bits = with_error(term["value"] / nats_per_bit, term["error"] / nats_per_bit)[0]
    return value, error, item_error, bits


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
        value, error = with_error(row["value"], row["error"])
        table.add_row(name, value, error, with_error(row["item_error"], row["item_error"])[1])
    return table
