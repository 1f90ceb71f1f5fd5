"""Tables of the pages about conditional models."""

from typing import Any

from result_tables.common import markdown, record, with_error

SETS = (("digits", "digits, 8 × 8"), ("mnist", "MNIST, 14 × 14"))


def sets_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and the parts of the record of the data sets that were measured."""
    found = record(name)["sets"]
    return [(title, found[key]) for key, title in SETS if key in found]


def guidance() -> str:
    """For every weight and set, the bound, its rise above w = 1, and the accuracy and diversity of the samples."""
    rows = []
    for title, its in sets_of("guidance.json"):
        for row in its["weights"]:
            rise = row["rise_nats"]
            rows.append(
                [
                    title,
                    f"{row['weight']:g}",
                    f"{row['nelbo']['value']:.3f}",
                    "" if row["weight"] == 1 else with_error(rise["value"], rise["error"]),
                    f"{row['accuracy']['value']:.3f} ± {row['accuracy']['error']:.3f}",
                    f"{row['diversity']:.2f}",
                ]
            )
    header = ["data", "w", "NELBO, bits/dim", "NELBO(w) − NELBO(1), nats", "samples of their class", "diversity"]
    return markdown(header, rows)


def guided_information() -> str:
    """The estimates of I(x; c) of every set."""
    rows = []
    for title, its in sets_of("guidance.json"):
        curve, direct, form = its["curvature_nats"], its["direct_nats"], its["bounded_nats"]
        least, most = form["least"], form["most"]
        rows.append(
            [
                title,
                with_error(curve["value"], curve["error"]),
                with_error(direct["value"], direct["error"]),
                f"{least['value']:.2f} to {most['value']:.2f}",
                f"{form['limit']:.3f}",
            ]
        )
    header = ["data", "curvature, nats", "NELBO(0) − NELBO(1)", "bounded form between", "H(c) = ln 10"]
    return markdown(header, rows)


def _way(part: str, row: dict[str, Any]) -> str:
    if part == "ours":
        return f"`df.classify`, at most {row['max_visits']} draws of a class"
    if part == "bound":
        return f"the bound, all classes, {row['max_visits']} draws"
    draws, keep = row["draws"], row["keep"]
    if len(draws) == 1:
        return f"published, all classes, {draws[0]} draws"
    return f"published, best {keep[0]} of 10 after {draws[0]} of {draws[1]} draws"


def classification() -> str:
    """For every set and way to classify, the network evaluations per item and the accuracy."""
    rows = []
    for title, its in sets_of("classification.json"):
        for row in its.get("classifiers", ()):
            rows.append([title, row["name"], "0", f"{row['value']:.3f} ± {row['error']:.3f}"])
        for part in ("ours", "bound", "published", "default"):
            for row in its.get(part, ()):
                items = f", {row['items']} items" if part == "default" else ""
                cells = [title, _way(part, row) + items, f"{row['evaluations']:,.0f}"]
                rows.append([*cells, f"{row['value']:.3f} ± {row['error']:.3f}"])
    return markdown(["data", "way", "evaluations per item", "accuracy"], rows)
