"""The entries of an evaluation's record, and how they are read: in this format or an earlier one."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from diffusional.evaluation import records
from diffusional.evaluation.checks import Kind
from diffusional.evaluation.records import Entries
from diffusional.ledger import Estimate

# The entries of an evaluation's record.
EVALUATION = frozenset(
    [
        "format",
        "kind",
        "of",
        "nelbo",
        "nelbo_nats",
        "interval",
        "freedom",
        "terms",
        "levels_kl",
        "levels_kl_error",
        "level_edges",
        "gamma_edges",
        "blocks",
        "items",
        "items_visited",
        "dimensions",
        "levels",
        "data_levels",
        "network_evaluations",
        "reached",
        "caveats",
        "provenance",
    ]
)


def fields_of(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read the arguments of an Evaluation, except for `per_item`, from its record. In format 0 the costs of levels may be missing."""
    entries = Entries(record, where)
    old: dict[str, Any] = {"default": []} if entries.format == 0 else {}
    n, calls, dimensions = (
        entries.integer("items"),
        entries.integer("network_evaluations", 0),
        entries.integer("dimensions"),
    )
    nelbo, bits = entries.estimate("nelbo_nats", n, calls), entries.estimate("nelbo", n, calls, "bits/dim")
    agree(entries, "nelbo", nelbo.to("bits/dim", dimensions), bits)
    terms = Entries(entries.object("terms"), f"{where}, terms")
    edges = entries.get("gamma_edges", None)
    kind = entries.text("kind", *(["bound"] if old else []))
    if kind not in get_args(Kind):
        raise entries.wrong("kind", f"one of {', '.join(get_args(Kind))}", kind)
    visited = entries.integer("items_visited", *([1, n] if old else []))
    if visited > n:
        raise entries.wrong("items_visited", f"at most {n}, the number of items", visited)
    return {
        "nelbo": nelbo,
        "terms": {name: terms.estimate(name, n, calls) for name in terms.record},
        "levels_kl": entries.tensor("levels_kl", **old).double(),
        "levels_error": entries.tensor("levels_kl_error", null=True, **old).double(),
        "level_edges": entries.tensor("level_edges", **old),
        "gamma_edges": None if edges is None else entries.tensor("gamma_edges").double(),
        "blocks": {name: _count(entries, name) for name in entries.object("blocks", {})},
        "dimensions": dimensions,
        "provenance": entries.object("provenance", *([{}] if old else [])),
        "freedom": entries.freedom(nelbo),
        "reached": entries.flag("reached", *([True] if old else [])),
        "caveats": entries.texts("caveats", **old),
        "kind": kind,
        "of": entries.text("of", *(["NELBO, MATH (8)"] if old else [])),  # vocabulary: allow
        "visited": visited,
        "about": records.others(record, EVALUATION),
    }


def _count(entries: Entries, name: str) -> int:
    return Entries(entries.object("blocks"), f"{entries.where}, blocks").integer(name, 0)


def agree(entries: Entries, name: str, expected: Estimate, got: Estimate) -> None:
    """Raise DiffusionalError unless the two units of a record are of the same number."""
    if not math.isclose(expected.value, got.value, rel_tol=1e-9, abs_tol=1e-300):
        raise entries.wrong(name, f"{expected.value!r} {expected.unit}, which {name}_nats is", got.value)
