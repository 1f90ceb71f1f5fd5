"""The terms of an evaluation for a report: rows of a table, bars of a waterfall with the levels in bands, and curves of the levels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusional.evaluation.result import Evaluation, LevelCosts
from diffusional.evaluation.summary import cells
from diffusional.ledger import Estimate, per_unit
from diffusional.report import plots
from diffusional.report.charts import Axes, Bar, Chart, Series, brief, curves, number, signed, ticks, waterfall
from diffusional.report.texts import has_masks, mask_bars, masks_chart
from diffusional.report.verdicts import unit_of

# Bands of levels in a waterfall, and steps of a curve of levels.
_BANDS, _STEPS = 6, 60
_STYLES = {"reconstruction": "s0", "kl": "s1", "prior": "s2"}


def units(result: Evaluation) -> tuple[str, str]:
    """Return both units, that of the result first."""
    first = unit_of(result)
    return first, ("nats" if first == "bits/dim" else "bits/dim")


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


def waterfall_of(result: Evaluation, name: str, budget: Mapping[str, Any] | None = None) -> Chart:
    """Return the waterfall of an evaluation: reconstruction, bands of levels, prior, stage by stage, and their sum.

    With a budget, each of its rows is a bar, divided into information (or the cost of its reference) and gap.
    """
    unit = unit_of(result)
    factor = 1 / per_unit(unit, result.dimensions)
    title = f"Where the {'nats' if unit == 'nats' else 'bits'} of {name} go"
    if budget is not None:
        return _of_budget(budget, title, unit, factor)
    blocks = {key: block for key, block in result.level_blocks().items() if len(block.kl)}
    bars: list[Bar] = []
    for term, cost in result.terms.items():
        last = term.rpartition(".")[2]
        if has_masks(result):
            # The reconstruction is the cost of one masked position.
            bars += mask_bars(result, factor) if last == "kl" else []
            continue
        if term in blocks:
            bars += bands(term, blocks[term], factor)
            continue
        bars.append(Bar(term, cost.value * factor, cost.error * factor, style=_STYLES.get(last, "s3")))
    if not bars:
        bars = [Bar(result.total_name, result.nelbo.value * factor, result.nelbo.error * factor)]
    total = Bar(result.total_name, result.nelbo.value * factor, result.nelbo.error * factor, style="total")
    return waterfall(title, bars, total, unit)


def _of_budget(budget: Mapping[str, Any], title: str, unit: str, factor: float) -> Chart:
    second = "reference" if budget["relative_to"] else "information"

    def bar(row: Mapping[str, Any], style: str) -> Bar:
        value, base, gap = (row[key]["value"] * factor for key in ("cost", second, "gap"))
        del gap
        return Bar(row["name"], value, row["cost"]["error"] * factor, base, style)

    rows = [bar(row, _STYLES.get(str(row["name"]).partition(" ")[0].lower(), "s1")) for row in budget["rows"]]
    meaning = (
        f"the solid part is the cost of the reference {budget['relative_to']}, the pale part is the gap to it"
        if budget["relative_to"]
        else "the solid part is information in the data, which no training can save; the pale part is the gap of the model"
    )
    return waterfall(title, rows, bar(budget["total"], "total"), unit, f"A waterfall of costs in {unit}: {meaning}.")


def bands(name: str, block: LevelCosts, factor: float, most: int = _BANDS) -> list[Bar]:
    """Return the costs of levels in at most `most` bands, from the least noisy on; they add up to the cost of the block.

    Bands are of equal width in log-SNR, at round numbers, or in t or u for latents without γ.

    >>> import torch
    >>> block = LevelCosts(torch.ones(4), torch.zeros(4), torch.arange(1, 6), torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]))
    >>> [(bar.name, bar.value) for bar in bands("kl", block, 1.0, 3)]
    [('kl, log-SNR 4 to 0', 2.0), ('kl, log-SNR 0 to −4', 2.0)]
    """
    kl, error, edges = (np.asarray(values, dtype=float) for values in (block.kl, block.error, block.edges))
    along = "log-SNR" if block.gamma is not None else "t" if block.edges.dtype.is_floating_point is False else "u"
    places = -np.asarray(block.gamma, dtype=float) if block.gamma is not None else edges
    low, high = float(places.min()), float(places.max())
    inner = [tick for tick in ticks(low, high, max(1, most - 1)) if low < tick < high] if len(kl) > 1 else []
    middle = 0.5 * (places[:-1] + places[1:])
    owner = np.searchsorted(np.array(inner), middle)
    owner = owner.max() - owner if block.gamma is not None else owner
    found = []
    for band in np.unique(owner):
        own = np.flatnonzero(owner == band)
        start, end = float(places[own[0]]), float(places[own[-1] + 1])
        label = f"{name}, {along} {_place(start)} to {_place(end)}" if len(np.unique(owner)) > 1 else name
        off = float(np.sqrt(np.nansum(error[own] ** 2)))
        found.append(Bar(label, float(kl[own].sum()) * factor, off * factor, style=_STYLES["kl"]))
    return found


def _place(value: float) -> str:
    return signed(
        f"{value:.1f}".removesuffix(".0").replace("-0", "0") if abs(value) < 0.05 else f"{value:.1f}".removesuffix(".0")
    )


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
        charts.append(
            curves(
                title,
                series,
                Axes(
                    f"{label} (little noise on the left)",
                    f"{unit} per unit of {label}",
                    reverse=has_gamma,
                    named=len(named) > 1,
                ),
                f"KL divergence in {unit} per unit of {label}, against {label}. The area under a curve is its cost; bands are two Monte Carlo "
                "standard errors on either side.",
            )
        )
    return charts


def training_of(metrics: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Chart]:
    """Return charts of the losses and validation bounds of runs, by name: a chart for each kind of loss, and one of the validations."""
    losses: dict[str, list[Series]] = {}
    bounds: list[Series] = []
    others: list[Series] = []
    for name, lines in metrics:
        trace = plots.traces_of(lines)
        if len(trace.steps):
            losses.setdefault(trace.label, []).append(Series(name, trace.steps, trace.losses))
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
    blocks = {key: block for key, block in result.level_blocks().items() if len(block.kl)}
    bars = mask_bars(result, factor) if has_masks(result) else []
    for term, cost in result.terms.items() if not bars else ():
        bars += (
            bands(term, blocks[term], factor)
            if term in blocks
            else [Bar(term, cost.value * factor, cost.error * factor)]
        )
    total = result.nelbo.value * factor
    if not bars or not total > 0 or not math.isfinite(total):
        return []
    top = sorted(bars, key=lambda bar: -bar.value)[:2]
    return [
        f"{bar.name}: {number(bar.value, bar.error)} {unit}, {bar.value / total:.0%}".replace("%", " %") for bar in top
    ]
