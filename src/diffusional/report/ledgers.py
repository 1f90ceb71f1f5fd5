"""The terms of an evaluation for a report: rows of a table, bars of a waterfall with the levels in bands, and curves of the levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffusional.evaluation.result import Evaluation, LevelCosts
from diffusional.evaluation.summary import cells
from diffusional.ledger import Estimate, per_unit, with_error
from diffusional.report import bands, plots
from diffusional.report.bands import STYLES
from diffusional.report.charts import (
    WIDTH,
    Axes,
    Bar,
    Chart,
    Series,
    brief,
    curves,
    number,
    reach,
    signed,
    waterfall,
    with_plus_minus,
)
from diffusional.report.prompts import NATS, UNIT, is_prompted
from diffusional.report.texts import has_masks, masks_chart
from diffusional.report.verdicts import unit_of

# Steps of a curve of levels.
_STEPS = 60


def units(result: Evaluation) -> tuple[str, str]:
    """Return both units, that of the result first."""
    first = unit_of(result)
    return first, {"bits/dim": "nats", UNIT: NATS}.get(first, "bits/dim")


def table(result: Evaluation) -> tuple[list[str], list[tuple[str, list[list[str]]]]]:
    """Return the columns of the ledger and its rows by stage, with a share of the total: every term, in both units, with both errors.

    The rows of a model without stages are under "". The total is the only row of the last section.
    """
    first, second = units(result)
    columns = ["cost", first, "± MC", "± items", "share", second, "± MC", "± items"]

    def row(name: str, term: Estimate) -> list[str]:
        share = f"{term.value / result.nelbo.value:.1%}".replace("%", " %") if result.nelbo.value > 0 else ""
        here, there = (
            [brief(signed(cell)) for cell in cells(term, result.dimensions, unit)] for unit in (first, second)
        )
        return [name, *here, signed(share), *there]

    sections: list[tuple[str, list[list[str]]]] = []
    for name, term in result.terms.items():
        stage = name.rpartition(".")[0]
        if not sections or sections[-1][0] != stage:
            sections.append((stage, []))
        sections[-1][1].append(row(name, term))
    sections.append(("total", [row(result.total_name, result.nelbo)]))
    return columns, sections


def note_of(result: Evaluation) -> str:
    """Return why the reconstruction of discrete data is shown as 0, as a sentence; "" if it is not, or if there is none."""
    unit = unit_of(result)
    small = [
        name
        for name, term in result.terms.items()
        if name.rpartition(".")[2] == "reconstruction" and abs(term.to(unit, result.dimensions).value) < 1e-4
    ]
    if not small or unit == "nats" or has_masks(result):
        return ""
    return f"{', '.join(small)}: below 1e−4 {unit}, as the decoder finds the levels of the data in z_1 almost surely."


def waterfalls(
    results: Mapping[str, Evaluation], budgets: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Chart]:
    """Return the waterfall of every evaluation by name: reconstruction, bands of levels, prior, stage by stage, and their sum.

    All have the same scale, and rows and bands in common where the costs have common names. With a budget, each row of it is a bar, divided
    into information (or the cost of its reference) and gap.
    """
    unit = unit_of(next(iter(results.values())))
    factors = {name: 1 / per_unit(unit, one.dimensions) for name, one in results.items()}
    given = bands.of_blocks(list(results.values()))
    plain = [name for name in results if name not in (budgets or {})]
    rows = bands.aligned([bands.bars(results[name], factors[name], given) for name in plain])
    every = {name: (some, _total(results[name], factors[name])) for name, some in zip(plain, rows, strict=True)}
    notes: dict[str, str] = {}
    for name, budget in (budgets or {}).items():
        *some, total, notes[name] = _of_budget(budget, unit, factors[name])
        every[name] = some, total
    limits = reach([*every.values()])
    what = "nats" if unit == "nats" else "bits"
    return {
        name: waterfall(f"Where the {what} of {name} go", *every[name], unit, notes.get(name, ""), limits)
        for name in results
    }


def _total(result: Evaluation, factor: float) -> Bar:
    return Bar(result.total_name, result.nelbo.value * factor, result.nelbo.error * factor, style="total")


def differences(rows: Sequence[Mapping[str, Any]], named: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Return a table of the costs of both models of each difference, and of their differences, for the rows of `verdicts.paired`."""
    found = []
    for row in rows:
        paired = row["comparison"]
        a, b = (named[row["a"]], named[row["b"]]) if paired is None else (paired.a, paired.b)
        if is_prompted(a):
            continue
        unit = row["unit"]
        parts = bands.differences(a, b, 1 / per_unit(unit, a.dimensions), paired)
        if not parts:
            continue
        total = row["difference"]
        sums = [Bar("", one.nelbo.to(unit, one.dimensions).value, 0.0) for one in (a, b)]
        sums.append(Bar(a.total_name if a.total_name == b.total_name else "total", total.value, total.error))
        nats = per_unit(unit, a.dimensions)
        table = [
            [
                both.name,
                *_split_error(both.value, both.error),
                *(number(one.value, both.error) if one.value else "0" for one in (ours, theirs)),
                *([] if unit == "nats" else [with_plus_minus(both.value * nats, both.error * nats)]),
            ]
            for ours, theirs, both in zip(*([*part, end] for part, end in zip(parts, sums, strict=True)), strict=True)
        ]
        columns = ["cost", "difference", "± MC", row["a"], row["b"]] + ["difference, nats"] * (unit != "nats")
        what = (
            "paired errors of common noise" if paired is not None and paired.terms else "the errors of separate draws"
        )
        caption = f"{row['a']} − {row['b']} by cost, {unit}, with {what}"
        found.append({"caption": caption, "columns": columns, "rows": table})
    return found


def _split_error(value: float, error: float) -> list[str]:
    if value == error == 0:
        return ["0", "0"]
    text, off = with_error(value, error)
    return [signed(text), brief(off)]


def _of_budget(budget: Mapping[str, Any], unit: str, factor: float) -> list[Any]:
    """Return the bars of a budget, that of its total, and what they mean."""
    second = "reference" if budget["relative_to"] else "information"

    def bar(row: Mapping[str, Any], style: str) -> Bar:
        value, base = (row[key]["value"] * factor for key in ("cost", second))
        return Bar(row["name"], value, row["cost"]["error"] * factor, base, style)

    rows = [bar(row, STYLES.get(str(row["name"]).partition(" ")[0].lower(), "s1")) for row in budget["rows"]]
    meaning = (
        f"the solid part is the cost of the reference {budget['relative_to']}, the pale part is the gap to it"
        if budget["relative_to"]
        else "the solid part is information in the data, which no training can save; the pale part is the gap of the model"
    )
    return [*rows, bar(budget["total"], "total"), f"A waterfall of costs in {unit}: {meaning}."]


def levels_of(named: Mapping[str, Evaluation], unit: str) -> list[Chart]:
    """Return a chart of the costs of levels for each block: of all evaluations that have one of that name, with bands of two errors."""
    blocks: dict[tuple[str, bool, str], list[tuple[str, LevelCosts, float]]] = {}
    masked = {name: result for name, result in named.items() if has_masks(result)}
    for name, result in named.items():
        if name in masked:
            continue
        for key, block in result.level_blocks().items():
            if not len(block.kl):
                continue
            along = "u" if block.edges.dtype.is_floating_point else "t"
            place = (key, block.gamma is not None, "" if block.gamma is not None else along)
            blocks.setdefault(place, []).append((name, block, 1 / per_unit(unit, result.dimensions)))
    charts = [masks_chart(masked)] if masked else []
    for (key, has_gamma, along), found in blocks.items():
        series = []
        for name, block, factor in found:
            groups = plots.grouped(block.kl, block.error, block.edges if block.gamma is None else block.gamma, _STEPS)
            x = -groups.edges if has_gamma else groups.edges
            series.append(Series(name, x, groups.density * factor, groups.density_error * factor, steps=True))
        label = "log-SNR" if has_gamma else along
        title = "Cost of the noise levels" + (f", {key}" if len(blocks) > 1 or key != "kl" else "")
        axes = Axes(
            f"{label} (little noise on the left)",
            f"{unit} per unit of {label}",
            reverse=has_gamma,
            named=len(named) > 1,
        )
        what = (
            f"KL divergence in {unit} per unit of {label}, against {label}. The area under a curve is its cost; bands are two Monte Carlo "
            "standard errors on either side."
        )
        wide = curves(title, series, axes, what, width=2 * WIDTH)
        charts.append(replace(curves(title, series, axes, what), wide=wide))
    return charts


def training_of(metrics: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Chart]:
    """Return charts of the losses and validation bounds of runs, by name: a chart for each kind of loss, and one of the validations."""
    losses: dict[str, list[Series]] = {}
    bounds: list[Series] = []
    others: list[Series] = []
    for name, lines in metrics:
        trace = plots.traces_of(lines)
        if len(trace.steps):
            losses.setdefault(trace.label, []).append(
                Series(name, trace.steps, trace.losses, marked=len(trace.steps) == 1)
            )
        if len(trace.validated):
            validated = Series(name, trace.validated, trace.bounds, marked=len(trace.validated) <= 40)
            (bounds if trace.validates_bound else others).append(validated)
    charts = [
        curves(
            f"Training loss, {label}",
            series,
            Axes("step", label, named=len(metrics) > 1, low=_least(series), high=_robust(series)),
            f"Training loss in {label} against the optimiser step, each point the mean since the one before.",
        )
        for label, series in losses.items()
    ]
    for title, series, label, what in (
        ("Validation bound", bounds, "bits per dimension", "Bound of the validation items in bits per dimension"),
        ("Validation loss", others, "nats per pair", "Contrastive loss of the validation items in nats per pair"),
    ):
        # A single validation has no course.
        if any(len(one.x) > 1 for one in series):
            axes = Axes("step", label, named=len(metrics) > 1, low=_least(series), high=_robust(series))
            charts.append(curves(title, series, axes, f"{what} against the optimiser step."))
    return charts


def _least(series: Sequence[Series]) -> float:
    values = _finite(series)
    low, high = float(values.min()), _robust(series)
    return low - 0.05 * (high - low)


def _robust(series: Sequence[Series]) -> float:
    """Return an upper limit for losses: the first ones are often many times larger than all others."""
    late = np.concatenate([one.y[len(one.y) // 20 :] for one in series])
    late = late[np.isfinite(late)]
    return float(np.quantile(late, 0.98)) if len(late) else 1.0


def _finite(series: Sequence[Series]) -> np.ndarray:
    values = np.concatenate([one.y for one in series])
    values = values[np.isfinite(values)]
    return values if len(values) else np.zeros(1)


def shares(result: Evaluation, unit: str) -> list[str]:
    """Return the largest costs in words, the largest first: what to read off the waterfall."""
    factor = 1 / per_unit(unit, result.dimensions)
    every = bands.bars(result, factor)
    total = result.nelbo.value * factor
    if not result.terms or not total > 0 or not math.isfinite(total):
        return []
    top = sorted(every, key=lambda bar: -bar.value)[:2]
    return [
        f"{bar.name}: {number(bar.value, bar.error)} {unit}, {bar.value / total:.0%}".replace("%", " %") for bar in top
    ]
