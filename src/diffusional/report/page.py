"""The HTML report of runs: one file without requests or scripts, from saved results.

`page` puts the parts together: caveats first, then the number, its parts, the training, samples, items, and how to reproduce it. All texts
are escaped by the template.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diffusional
from diffusional.errors import DiffusionalError
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.summary import cells, interval_text
from diffusional.extras import needed_for
from diffusional.interop.card import short_command
from diffusional.ledger import per_unit
from diffusional.report import ledgers, pictures, prompts, texts, verdicts
from diffusional.report.charts import Chart, Dot, brief, dots, histogram, number, signed, with_plus_minus
from diffusional.report.subject import ItemScores, ListedItem, Samples, Subject
from diffusional.report.tabular import marginals

with needed_for("report"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"
# The largest page, in bytes.
MOST = 2_000_000
# What no error on the page covers.
_UNCOVERED = (
    "The errors do not cover how much other trainings (seeds) of the same model differ, the gap between a bound and −ln p(x), or items of "
    "another kind than the evaluated ones."
)
# The most settings that the table of differing ones shows.
_SETTINGS = 12
# What follows T in continuous time, instead of "latents".
_OF_TIME = {"T = ∞": ": continuous time"}
# Bins of a histogram of items.
_BINS = 30


def page(subjects: Sequence[Subject], comparisons: Sequence[Comparison] = (), title: str = "") -> str:
    """Return the report of some runs as the text of an HTML file.

    Args:
        subjects: the runs and saved evaluations, with different names.
        comparisons: paired differences of two of them, by their names.
        title: by default from the names.

    Raises DiffusionalError for no subjects, for two of the same name, for evaluations of continuations given prompts beside others, and if the
    page is larger than 2 MB.

    >>> import torch
    >>> result = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
    >>> page([Subject("a <run>", result)]).count("<h1>Report: a &lt;run&gt;</h1>")
    1
    """
    names = [one.name for one in subjects]
    if not names or len(set(names)) < len(names):
        raise DiffusionalError(f"expected at least one run, with different names, got {', '.join(names) or 'none'}")
    if len({prompts.is_prompted(one.evaluation) for one in subjects if one.evaluation is not None}) > 1:
        kinds = ", ".join(f"{one.name}{' (given prompts)' * prompts.is_prompted(one.evaluation)}" for one in subjects)
        raise DiffusionalError(
            f"expected evaluations of texts given prompts or others, got both: {kinds}; write a report of each kind"
        )
    subjects = [prompts.per_token_subject(one) for one in subjects]
    comparisons = [prompts.per_token_difference(one) for one in comparisons]
    text = _environment().get_template("report.html").render(_content(subjects, comparisons, title))
    size = len(text.encode())
    if size > MOST:
        raise DiffusionalError(
            f"expected a report of at most {MOST:,} bytes, got {size:,}: give fewer runs, or fewer samples and items"
        )
    return text


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["style"] = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    found.filters["coded"] = _coded
    return found


def _coded(text: str) -> Markup:
    """Return an escaped text in which `…` is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _content(subjects: Sequence[Subject], comparisons: Sequence[Comparison], title: str) -> dict[str, Any]:
    """Return the values of the template."""
    evaluated = verdicts.ranked(subjects)
    named = {one.name: one.evaluation for one in evaluated if one.evaluation is not None}
    different = verdicts.different_data(subjects)
    unit = verdicts.unit_of(evaluated[0].evaluation) if evaluated and evaluated[0].evaluation else "bits/dim"
    differences = verdicts.paired(comparisons, subjects)
    between = [text for one in comparisons for text in _comparison_caveats(one)]
    between += [different] if different else []
    between += _unpaired(differences)
    between += verdicts.identical_weights(named)
    shared, own = _shared([(one.name, verdicts.caveats(one)) for one in subjects])
    traces = [(one.name, one.metrics) for one in subjects if one.metrics]
    # A stage is named with its system only where there are several.
    traces += [
        (f"{one.name}: {stage}" if len(subjects) > 1 else stage, lines)
        for one in subjects
        for stage, lines in one.stages.items()
    ]
    return {
        "title": title or "Report: " + ", ".join(one.name for one in subjects),
        "version": diffusional.__version__,
        "several": len(subjects) > 1,
        "unit": unit,
        "between": between,
        "shared": shared,
        "caveats": own,
        "headlines": [
            _headline(
                one.name, one.evaluation, one.items if one.items is not None and one.items.tokens is not None else None
            )
            for one in evaluated
            if one.evaluation is not None
        ],
        "uncovered": _UNCOVERED,
        "settings": _settings(subjects) if len(subjects) > 1 else None,
        "missing": [one.name for one in subjects if one.evaluation is None],
        "best": _best(named, different),
        "lowest": _lowest(_best(named, different), differences),
        "differences": differences,
        "differences_mean": verdicts.meaning_of_difference([kind for row in differences for kind in row["kinds"]])
        if differences
        else "",
        "differences_chart": _differences_chart(differences),
        "standing": _standing(subjects, unit),
        "texts": [found for name, one in named.items() if (found := texts.units_of_text(name, one)) is not None],
        "prompted": any(prompts.is_prompted(one) for one in named.values()),
        "masks": bool(named) and all(texts.has_masks(one) for one in named.values()),
        "ledgers": _ledgers(evaluated, named),
        "by_cost": ledgers.differences(differences, named),
        "levels": ledgers.levels_of(named, unit) if named else [],
        "training": ledgers.training_of(traces) if traces else [],
        "samples": [_samples(one.name, one.samples) for one in subjects if one.samples is not None],
        "items": _items(subjects, unit),
        "reproduce": [_reproduce(one) for one in subjects],
    }


def _shared(caveats: Sequence[tuple[str, list[str]]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the caveats that all of several subjects have, and the others of each.

    >>> _shared([("a", ["Few draws.", "No check."]), ("b", ["No check."])])
    (['No check.'], [('a', ['Few draws.']), ('b', [])])
    """
    if len(caveats) < 2:
        return [], [*caveats]
    common = [text for text in caveats[0][1] if all(text in texts for _, texts in caveats)]
    return common, [(name, [text for text in texts if text not in common]) for name, texts in caveats]


def _comparison_caveats(one: Comparison) -> list[str]:
    found = [f"{one.names[0]} − {one.names[1]}: {text}" for text in one.caveats]
    if not one.reached and not found:
        found.append(f"{one.names[0]} − {one.names[1]}: the target error was not reached")
    return found


def _unpaired(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the caveat of differences without a comparison."""
    found = [f"`diffusional evaluate {row['a']} {row['b']}`" for row in differences if not row["paired"]]
    if not found:
        return []
    return [
        "Some differences are those of separate evaluations, with larger errors than paired ones. To pair them: "
        + ", ".join(found)
        + "."
    ]


def _headline(name: str, result: Evaluation, items: ItemScores | None = None) -> dict[str, Any]:
    """Return what is shown of a number; `items` are the rows of continuations given prompts."""
    first, second = ledgers.units(result)
    main, other = (result.nelbo.to(unit, result.dimensions) for unit in (first, second))
    item_error = with_plus_minus(main.value, main.item_error).partition(" ± ")[2]
    quantity = result.of.partition(", MATH")[0]
    facts = [f"quantity: {quantity}", f"data: {verdicts.of_what(result)}", _interval(result, first)]
    if item_error:
        facts.append(
            f"another sample of {result.nelbo.n:,} {_thing(result)}s would move the number by about ± {item_error} {first} (standard error over items)"
        )
    facts.append(f"{with_plus_minus(other.value, other.error)} {second}")
    calls = result.nelbo.network_evaluations
    if calls:
        facts.append(f"{calls:,} network evaluations, {calls / result.nelbo.n:.1f} per {_thing(result)}")
    if not prompts.is_prompted(result):
        masks = ": a latent for each number of masked positions" if texts.has_masks(result) else " latents"
        facts += [f"{time}{_OF_TIME.get(time, masks)}" if " (" not in time else time for time in result.times()]
    return {
        "name": name,
        "value": number(main.value, main.error or main.item_error),
        "error": cells(result.nelbo, result.dimensions, first)[1] if main.error > 0 else "",
        "unit": first,
        "kind": verdicts.kind_of(result),
        "meaning": verdicts.meaning(result),
        "facts": [f"{text[:1].upper()}{text[1:]}" for text in facts],
        "shares": ledgers.shares(result, first) if items is None else prompts.dearest(items, main.value),
    }


def _thing(result: Evaluation) -> str:
    """Return what one of the evaluated things is called."""
    return "row" if prompts.is_prompted(result) else "item"


def _interval(result: Evaluation, unit: str) -> str:
    """Return the 95 % Monte Carlo interval in a unit, in words; or that there is none."""
    error = result.nelbo.to(unit, result.dimensions).error
    if not error > 0 or not np.isfinite(error):
        return interval_text(result.nelbo, result.freedom, result.dimensions)
    low, high = (number(end, error) for end in result.interval(unit=unit))
    degrees = f", {result.freedom:.0f} degrees of freedom" if np.isfinite(result.freedom) else ""
    return f"95 % Monte Carlo interval {low} to {high} {unit}{degrees}"


def _settings(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """Return the table of the settings in which runs differ, with their weights and steps; None if there is nothing to show."""
    runs = [one for one in subjects if one.config is not None]
    if len(runs) < 2:
        return None
    flat = [_flat(one.config or {}) for one in runs]
    rows = []
    if any(one.weights is not None for one in runs):
        rows.append(["weights", *("" if one.weights is None else f"{one.weights:,}" for one in runs)])
    trained = [max((int(line["step"]) for line in one.metrics if "step" in line), default=None) for one in runs]
    if any(trained):
        rows.append(["trained for, steps", *("" if steps is None else f"{steps:,}" for steps in trained)])
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differ = [key for key in keys if len({one.get(key, "") for one in flat}) > 1]
    rows += [[key, *(one.get(key, "") for one in flat)] for key in differ[:_SETTINGS]]
    if not rows:
        return None
    caption = "Settings in which the runs differ" if differ else "The settings of the runs (config.json) are the same"
    if len(differ) > _SETTINGS:
        caption += f" (the first {_SETTINGS} of {len(differ)}; all are under How to reproduce)"
    return {"caption": caption, "columns": ["setting", *(one.name for one in runs)], "rows": rows}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return the settings of a config as texts, by their names with those of their sections.

    >>> _flat({"model": {"widths": [8, 16], "head": None}, "seed": 0})
    {'model.widths': '8, 16', 'model.head': 'none', 'seed': '0'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            found[f"{above}{key}"] = ", ".join(map(str, value))
        else:
            found[f"{above}{key}"] = "none" if value is None else str(value)
    return found


def _best(named: Mapping[str, Evaluation], different: str) -> str:
    """Return the name of the best of several evaluations of the same data; "" if there is none."""
    if len(named) < 2 or different:
        return ""
    return next(iter(named))


def _lowest(best: str, differences: Sequence[Mapping[str, Any]]) -> str:
    """Return `best` if its number is lower than every other by more than two standard errors; otherwise ""."""
    own = [row["difference"] for row in differences if best in (row["a"], row["b"])]
    return best if all(abs(one.value) > verdicts.SURE * one.error for one in own) else ""


def _standing(subjects: Sequence[Subject], unit: str) -> dict[str, Any] | None:
    """Return the bounds beside baselines of the same data, best first, as a table and a chart."""
    rows: list[tuple[str, Evaluation, bool]] = []
    seen: set[tuple[str, str]] = set()
    for one in subjects:
        if one.evaluation is None:
            continue
        rows.append((one.name, one.evaluation, True))
        for name, baseline in one.baselines.items():
            key = (name, str(baseline.provenance.get("data_sha256")))
            if key not in seen:
                rows.append((name, baseline, False))
            seen.add(key)
    if not rows:
        return None
    rows.sort(key=lambda row: row[1].nelbo.value / row[1].dimensions)
    shown, marks = [], []
    for name, result, is_model in rows:
        one = result.nelbo.to(unit, result.dimensions)
        texts = [brief(signed(cell)) for cell in cells(result.nelbo, result.dimensions, unit)]
        shown.append({"name": name, "cells": texts, "kind": verdicts.kind_of(result), "model": is_model})
        marks.append(Dot(name, one.value, one.error, one.item_error, "s0" if is_model else "s6"))
    log = verdicts.uniform(rows[0][1])
    if log is not None and unit != "nats":
        alike = f"equally likely {verdicts.alike_of(rows[0][1])}"
        shown.append({"name": alike, "cells": [number(log), "0", "0"], "kind": "exact", "model": False})
        marks.append(Dot(alike, log, 0.0, style="s6"))
        shown.sort(key=lambda row: float(row["cells"][0].replace("−", "-")))
        marks.sort(key=lambda mark: mark.value)
    chart = dots(
        "Models and baselines",
        marks,
        unit,
        description=f"Each model and baseline with its value in {unit}, the best first. Lower is better.",
    )
    return {"rows": shown, "chart": chart if len(marks) > 1 else None}


def _differences_chart(differences: Sequence[Mapping[str, Any]]) -> Chart | None:
    if not differences:
        return None
    marks = []
    for row in differences:
        one = row["difference"]
        marks.append(Dot(f"{row['a']} − {row['b']}", one.value, one.error, one.item_error))
    unit = differences[0]["unit"]
    return dots(
        "Differences",
        marks,
        unit,
        "0: equal",
        f"Differences of two models in {unit}. Left of zero, the first model of a row has the lower number; right of it, the second.",
    )


def _ledgers(evaluated: Sequence[Subject], named: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    if not evaluated:
        return []
    if prompts.is_prompted(evaluated[0].evaluation):
        scored = [one for one in evaluated if one.items is not None and one.items.tokens is not None]
        return [
            prompts.ledger(one.name, one.evaluation, one.items)
            for one in scored
            if one.evaluation is not None and one.items is not None
        ]
    budgets = {one.name: one.budget for one in evaluated if one.budget is not None}
    charts = ledgers.waterfalls(named, budgets)
    return [_ledger(one, charts[one.name]) for one in evaluated]


def _ledger(subject: Subject, chart: Chart) -> dict[str, Any]:
    result = subject.evaluation
    assert result is not None
    columns, sections = ledgers.table(result)
    budget = subject.budget
    return {
        "name": subject.name,
        "columns": columns,
        "sections": sections,
        "chart": chart,
        "note": ledgers.note_of(result),
        "budget": None if budget is None else _budget(budget),
        "shares": ledgers.shares(result, verdicts.unit_of(result)),
    }


def _budget(budget: Mapping[str, Any]) -> dict[str, Any]:
    relative = budget["relative_to"]
    second = "reference" if relative else "information"
    rows = []
    for row in (*budget["rows"], budget["total"]):
        rows.append(
            [row["name"], *(with_plus_minus(row[key]["value"], row[key]["error"]) for key in ("cost", second, "gap"))]
        )
    return {"columns": ["nats", "cost", second, "gap"], "rows": rows, "relative_to": relative}


def _samples(name: str, found: Samples) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": name,
        "how": found.how,
        "sheet": None,
        "paths": None,
        "stages": None,
        "marginals": [],
        "texts": list(found.texts),
    }
    if found.images is not None and len(found.images):
        across = min(len(found.images), 8)
        shown["sheet"] = _image(
            pictures.sheet(found.images, across), f"{len(found.images)} samples of {name} in a grid", found.images
        )
    if found.paths is not None and len(found.paths):
        rows = np.concatenate(list(found.paths))
        picture = pictures.sheet(rows, found.paths.shape[1])
        text = (
            f"{len(found.paths)} paths from noise (left) to a sample (right), at log-SNR {', '.join(found.path_labels)}"
        )
        shown["paths"] = _image(picture, text, rows) | {"labels": list(found.path_labels)}
    if found.stages is not None and len(found.stages):
        rows = np.concatenate(list(found.stages))
        across = found.stages.shape[1]
        text = f"{across} samples by stage, a sample in each column, from above: {'; '.join(found.stage_labels)}"
        shown["stages"] = _image(pictures.sheet(rows, across), text, rows)
    if found.drawn is not None and found.data is not None:
        shown["marginals"] = marginals(found.columns, found.drawn, found.data)
    return shown


def _image(pixels: np.ndarray, alt: str, images: np.ndarray) -> dict[str, Any]:
    """Return a picture for the template; small images are shown larger, without smoothing."""
    height, width = pixels.shape[:2]
    scale = max(1, round(48 / max(images.shape[-2:])))
    return {
        "uri": pictures.data_uri(pixels),
        "alt": alt,
        "width": width * scale,
        "height": height * scale,
        "pixelated": scale > 1,
    }


def _items(subjects: Sequence[Subject], unit: str) -> dict[str, Any] | None:
    """Return the distribution of the scores, and the items at its ends."""
    scored = [(one, one.items) for one in subjects if one.items is not None and one.evaluation is not None]
    if not scored:
        return None
    values: list[tuple[str, np.ndarray]] = []
    ends, facts = [], []
    for one, items in scored:
        assert one.evaluation is not None
        factor = 1 / per_unit(unit, one.evaluation.dimensions)
        values.append((one.name, np.asarray(items.nelbo, dtype=float) * factor))
        ends.append(_ends(one.name, items, factor, unit))
        if ends[-1]["scale"].startswith("−"):
            ends[-1]["negative"] = _negative(one.evaluation)
        facts.append(_spread(one.name, values[-1][1], np.asarray(items.error, dtype=float) * factor, unit))
    whole = np.concatenate([one for _, one in values])
    low, high = (float(np.quantile(whole, q)) for q in (0.002, 0.998))
    thing = "rows" if unit == prompts.UNIT else "items"
    beyond = int(((whole < low) | (whole > high)).sum()) if high > low else 0
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    chart = histogram(
        f"Costs of {thing}",
        values,
        edges,
        unit,
        f"A histogram of the costs of single {thing} in {unit}. To the left are {thing} that the model finds easy, to the right those that it finds hard."
        + (f" {beyond} {thing} are beyond the ends." if beyond else ""),
    )
    return {"chart": chart, "ends": ends, "facts": facts}


def _negative(result: Evaluation) -> str:
    """Return why a cost map has negative values, as a sentence."""
    if verdicts.unit_of(result) == "nats":
        return " Negative values are densities above 1, or noise of the estimate."
    return " Negative values are noise of the estimate."


def _spread(name: str, values: np.ndarray, errors: np.ndarray, unit: str) -> str:
    ends = [signed(f"{float(np.quantile(values, q)):.3g}") for q in (0.05, 0.5, 0.95)]
    known = errors[np.isfinite(errors)]
    off = float(np.median(known)) if len(known) else 0.0
    off = f" The Monte Carlo error of a score is ± {off:.2g} {unit} (median)." if off else ""
    return f"{name}: {len(values):,} {'rows' if unit == prompts.UNIT else 'items'}; 5 % cost less than {ends[0]} {unit}, half less than {ends[1]}, 95 % less than {ends[2]}.{off}"


def _ends(name: str, items: ItemScores, factor: float, unit: str) -> dict[str, Any]:
    maps = [one.cost_map for one in (*items.easiest, *items.hardest) if one.cost_map is not None]
    every = np.concatenate([one.ravel() for one in maps]) if maps else np.zeros(1)
    # A few values beyond do not dim the others.
    low, high = (float(np.quantile(every, q)) for q in (0.005, 0.995))

    rows = items.tokens is not None

    def entry(one: ListedItem) -> dict[str, Any]:
        image = cost_map = None
        if one.image is not None:
            image = _image(pictures.pixels_of(one.image), f"Item {one.name}", one.image)
        if one.cost_map is not None:
            cost_map = _image(pictures.heat(one.cost_map, low, high), f"Cost map of {one.name}", one.cost_map[None])
        return {
            "name": one.name,
            "cost": f"{with_plus_minus(one.nelbo * factor, one.error * factor) if one.error else number(one.nelbo * factor)} {unit}",
            "percentile": "" if one.percentile is None else f"{one.percentile:.1f} %",
            "image": image,
            "map": cost_map,
            "values": [(column, signed(f"{value:.6g}")) for column, value in one.values.items()],
            "text": one.text,
            "prompt": one.prompt,
        }

    return {
        "name": name,
        "things": "rows" if rows else "items",
        "how": items.how,
        "reference": items.reference,
        "negative": "",
        "maps": items.maps,
        "of": f"{len(items.nelbo):,} of {items.of:,} items"
        if len(items.nelbo) < items.of
        else f"all {'rows' if rows else 'items'}",
        "groups": [
            ("Hardest", [entry(one) for one in items.hardest]),
            ("Easiest", [entry(one) for one in items.easiest]),
        ],
        "scale": (f"{signed(f'{low:.2g}')} to {signed(f'{high:.2g}')} nats" if maps else ""),
    }


def _reproduce(subject: Subject) -> dict[str, Any]:
    """Return commands, versions, seeds and fingerprints of a subject."""
    facts: list[tuple[str, str]] = []
    commands: list[str] = []
    result = subject.evaluation
    if result is not None:
        about = result.provenance
        if about.get("command"):
            commands.append(short_command(str(about["command"])))
        for label, key in (
            ("Model", "model"),
            ("Method", "method"),
            ("Seed", "seed"),
            ("Weights, SHA-256", "weights_sha256"),
            ("Evaluated items, SHA-256", "data_sha256"),
            ("Condition, SHA-256", "condition_sha256"),
            ("Plan, SHA-256", "plan_sha256"),
        ):
            if about.get(key) is not None:
                facts.append((label, str(about[key])))
        version = about.get("data_version")
        if isinstance(version, Mapping):
            facts.append(("Data", f"{version.get('name')}, recognised {version.get('recognised')}"))
        origin = about.get("origin")
        if isinstance(origin, Mapping):
            facts += [
                (f"Checkpoint, {name}", str(text)) for name, text in dict(origin.get("config") or {}).items() if text
            ]
        versions = about.get("versions")
        if isinstance(versions, Mapping):
            facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    if subject.data is not None:
        hashes = subject.data.get("sha256", {})
        facts += [(f"Own data, {split}, SHA-256", str(digest)) for split, digest in hashes.items()]
    if subject.config is not None:
        options = "--composite composite.json" if "stages" in subject.config else "--config config.json"
        commands.insert(0, f"diffusional train {subject.name} {options}")
    return {
        "name": subject.name,
        "commands": commands,
        "facts": facts,
        "drawn": subject.drawn,
        "more": subject.more,
        "config": None if subject.config is None else json.dumps(subject.config, indent=1, ensure_ascii=False),
    }
