"""Tables of the pages about conditional models."""

from typing import Any

from result_tables.common import evaluations, markdown, record, sets_of, with_error


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


def other_condition() -> str:
    """For every other condition and pair of plans, the difference, its reported error and its spread over seeds."""
    said = {
        "one bound": "fitted to the first bound",
        "own controls": "control variates of each condition",
        "contrasted": "levels of the difference (`Plan.contrasted`)",
    }
    rows = [
        [
            row["other"],
            said[row["plan"]],
            f"{row['difference_nats']:.2f}".replace("-", "−"),
            f"{row['error_nats']:.3f}",
            f"{row['spread_nats']:.3f}",
            f"{row['bound_error_nats']:.3f}",
        ]
        for row in record("other_condition.json")["comparisons"]
    ]
    header = ["other condition", "plans", "difference, nats", "reported error", "spread", "error of the first bound"]
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


_PRESETS = ("digits-cascade", "latent-small", "unclip-small", "imagen-small")


def _presets() -> list[tuple[str, dict[str, Any]]]:
    found = record("presets.json")["presets"]
    return [(name, found[name]) for name in _PRESETS if name in found]


def presets_bits() -> str:
    """For every preset of a system, its bound with both errors, and the CPU-seconds of training, evaluation and samples."""
    rows = []
    for name, one in _presets():
        bits = one["bits"]
        rows.append(
            [
                f"`{name}`",
                {None: "nothing"}.get(one["condition"], f"the {one['condition']}"),
                with_error(bits["value"], bits["error"]),
                f"{one['items_error_bits']:.4f}",
                evaluations(one["network_evaluations"] / one["items"]),
                f"{one['training_seconds'] / 60:.1f}",
                f"{one['evaluation_seconds']:.0f}",
                f"{one['sampling_seconds']:.0f}",
            ]
        )
    header = ["preset", "given", "bits/dim ± MC", "± items", "evaluations per item"]
    return markdown([*header, "training, CPU-minutes", "evaluation, CPU-s", "samples, CPU-s"], rows)


def presets_stages() -> str:
    """For every stage of a preset its length, the time of its training, its weights, and what it costs in the joint bound."""
    rows = []
    for name, one in _presets():
        for stage, its in one["stages"].items():
            terms = [term for key, term in one["terms"].items() if key.partition(".")[0] == stage]
            value, error = sum(term["value"] for term in terms), sum(term["error"] ** 2 for term in terms) ** 0.5
            trained = [f"{its['steps']:,} × {its['batch']}", f"{its['seconds']:.0f}"] if "steps" in its else ["", ""]
            weights = f"{its['weights'] / 1e6:.2f}" if "weights" in its else ""
            rows.append([f"`{name}`", stage, *trained, weights, with_error(value, error) if terms else ""])
        total = one["nats"]
        rows.append([f"`{name}`", "**in all**", "", "", "", f"**{with_error(total['value'], total['error'])}**"])
    return markdown(["preset", "stage", "steps × batch", "training, CPU-s", "M weights", "nats of x ± MC"], rows)


def presets_samples() -> str:
    """For the presets of MNIST and two guidance weights, how many samples are what was asked for."""
    rows = []
    for name, one in _presets():
        for weight in ("1", "2"):
            found = one["samples"].get(f"w={weight}")
            if found is None:
                continue
            words = found.get("words")
            kept = f"{words['value']:.2f} ± {words['error']:.2f}" if words else ""
            kept = "all" if words and words["error"] == 0 else kept
            items = len(one["samples"]["asked"]) * one["samples"]["each"]
            rows.append([f"`{name}`", weight, _share(found["accuracy"], items), kept])
    return markdown(["preset", "w", "samples of their digit", "words of the caption kept"], rows)
