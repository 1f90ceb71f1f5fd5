"""Tables of the pages about conditional models."""

from typing import Any

from result_tables.common import markdown, sets_of, with_error


def _share(row: dict[str, float], items: int) -> str:
    """Return a share with its standard error; all of n as such, since that error would be 0."""
    return f"{items} of {items}" if row["value"] == 1 else f"{row['value']:.3f} ± {row['error']:.3f}"


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
                    _share(row["accuracy"], its["samples"]),
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
    if part == "unweighted":
        return f"`df.classify`, unweighted, at most {row['max_visits']} draws of a class"
    if part == "all":
        return f"`df.classify`, all classes to the end, {row['max_visits']} draws"
    if part == "plain":
        return f"the bound as a mean of independent draws, all classes, {row['max_visits']} draws"
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
        for part in ("ours", "unweighted", "all", "plain", "published", "default"):
            for row in sorted(its.get(part, ()), key=lambda one: one["evaluations"]):
                items = f", {row['items']} items" if part == "default" else ""
                cells = [title, _way(part, row) + items, f"{row['evaluations']:,.0f}"]
                rows.append([*cells, _share(row, row.get("items", its["items"]))])
    return markdown(["data", "way", "evaluations per item", "accuracy"], rows)
