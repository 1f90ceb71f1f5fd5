"""Figures of the pages about evaluations."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from result_tables.common import evaluations, record, two_digits

from diffusional.report import style
from result_figures.common import INSIDE, dots, figure, rows, share


@figure(2.6)
def audit_alarms(axes: Axes) -> str:
    """Shares of the evaluations of healthy models that the audit refused, and that have the caveat of few draws."""
    models = record("audit_alarms.json")["models"]
    total = sum(model["seeds"] for model in models.values())
    counts = {name: (model["by_audit"], model["by_draws"], model["seeds"]) for name, model in models.items()}
    counts["all together"] = (*(sum(count[kind] for count in counts.values()) for kind in (0, 1)), total)
    y = rows(axes, list(counts))
    for kind, (colour, shift) in enumerate(((style.BLUE, -0.13), (style.VERMILION, 0.13))):
        for place, count in zip(y, counts.values(), strict=True):
            middle, left, right = share(count[kind], count[2])
            dots(axes, middle, place + shift, [[left], [right]], colour=colour, fmt="os"[kind])
    axes.axvline(2, color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.set_xlim(-0.6, 46)
    axes.annotate("limit: 2 %", (2, -0.5), xytext=(3, 3), textcoords="offset points", color=style.MUTED, size=8)
    axes.text(15, 1.0, "refused by the audit (a false alarm)", color=style.BLUE, va="center")
    axes.text(15, 1.7, "caveat: the error rests on few draws", color=style.VERMILION, va="center")
    axes.set_xlabel("evaluations, % (exact 95 % intervals)")
    low, _, high = share(counts["all together"][0], total)
    return (
        f"The audit refused {counts['all together'][0]} of {total} evaluations of six healthy models: {low:.0f} %, "
        f"at most {low + high:.1f} % with 95 % confidence, below the limit of 2 %."
    )


def _cases(of_trials: bool) -> dict[str, dict[str, Any]]:
    cases = record("calibration.json")["cases"]
    return {
        name: case
        for name, case in cases.items()
        if "coverage_reached" in case and bool(case.get("trial")) == of_trials
    }


@figure(3.5)
def calibration(axes: Axes) -> str:
    """How often the 95 % intervals of each world contained the truth."""
    cases = _cases(of_trials=False)
    y = rows(axes, list(cases))
    wanted = [100 * value for value in record("calibration.json")["wanted"]["coverage"]]
    axes.axvspan(*wanted, color=style.SKY, alpha=0.25, lw=0)
    axes.axvline(95, color=style.MUTED, lw=1)
    for place, case in zip(y, cases.values(), strict=True):
        covered = round(case["coverage"] * case["evaluations"])
        middle, left, right = share(covered, case["evaluations"])
        dots(axes, middle, place, [[left], [right]])
    axes.annotate("aim: 94 to 96 %", (94, -0.5), xytext=(2, 3), textcoords="offset points", color=style.MUTED, size=8)
    axes.set_xlim(91.8, 98.2)
    axes.set_xlabel("95 % intervals that contain the truth, % of evaluations (exact 95 % intervals)")
    low, high = (100 * extreme(case["coverage"] for case in cases.values()) for extreme in (min, max))
    return (
        f"The 95 % intervals contain the truth in {low:.1f} to {high:.1f} % of the evaluations of each of "
        f"{len(cases)} worlds, against 95 % promised."
    )


@figure(5.0)
def calibration_trials(axes: Axes) -> str:
    """How often the intervals miss the truth in worlds where evaluations had failed, of all and of those without a caveat."""
    cases = _cases(of_trials=True)
    y = rows(axes, list(cases))
    style.log_axes(axes, "x")
    axes.axvline(5, color=style.MUTED, lw=1)
    for place, case in zip(y, cases.values(), strict=True):
        total, reached = case["evaluations"], round(case["share_reached"] * case["evaluations"])
        for count, covered, shift, colour in (
            (total, case["coverage"], -0.15, style.BLUE),
            (reached, case["coverage_reached"], 0.15, style.VERMILION),
        ):
            if count:
                middle, left, right = share(count - round(covered * count), count)
                marker = {"fmt": "o"} if colour == style.BLUE else {"fmt": "s", "ms": 4}
                dots(axes, middle, place + shift, [[left], [right]], colour=colour, **marker)
    axes.annotate("promised: 5 %", (5, -0.5), xytext=(3, 3), textcoords="offset points", color=style.MUTED, size=8)
    axes.text(0.03, 3, "● all evaluations", color=style.BLUE, va="center")
    axes.text(0.03, 4, "■ those without a caveat", color=style.VERMILION, va="center")
    axes.set_xlim(0.01, 100)
    axes.set_xticks([0.01, 0.1, 1, 5, 10, 100], ["0.01", "0.1", "1", "5", "10", "100"])
    axes.set_xlabel("95 % intervals that miss the truth, % of evaluations (exact 95 % intervals)")
    worst = cases["rare spikes at one level, T = 1000"]
    return (
        f"In {len(cases)} worlds where evaluations had failed, most intervals miss the truth about as often as promised. The "
        f"exceptions are rare spikes at one of a thousand levels, missed by {100 * (1 - worst['coverage']):.0f} % of the "
        "intervals, and a rare difference of two models, which always has a caveat."
    )


# Curves of the figures of costs: key of the record, label.
_DIGITS = (
    ("(b) uniform t", "uniform t"),
    ("(c) VDM's low-discrepancy t", "low-discrepancy t (VDM)"),
    ("importance", "importance, from a pilot"),
    ("importance + constants + Wiener", "+ Wiener's filter"),
    ("plan: importance + constants + all controls", "all controls: the plan"),
)
_MNIST = (*_DIGITS[:2], ("plan: importance + constants + all controls", "the plan"))


def _cost_to_error(
    axes: Axes, file: str, curves: tuple[tuple[str, str], ...], limits: tuple[float, ...]
) -> dict[str, float]:
    """Draw the error of a data set's mean against evaluations per item, and return the evaluations for ± 0.01 of each curve.

    `limits` are those of x and y, and the x of the label of the line at ± 0.01.
    """
    data = record(file)
    left, right, low, high, mark = limits
    style.log_axes(axes, "xy")
    axes.set(xlim=(left, right), ylim=(low, high))
    spread = 1.96 / math.sqrt(2 * (data["repeats"] - 1))
    n, ends, found = np.geomspace(left, right, 50), [], {}
    for (key, name), colour, marker in zip(curves, style.COLOURS, style.MARKERS, strict=False):
        row = data["rows"][key]
        error = row["error"] * np.sqrt(row["evaluations_per_item"] / n)
        axes.fill_between(n, error * (1 - spread), error * (1 + spread), color=colour, alpha=0.2, lw=0)
        axes.plot(n, error, color=colour, lw=1.3)
        axes.plot(row["evaluations_per_item"], row["error"], marker, color=colour, ms=5)
        ends.append((float(error[-1]), f"{name}: {evaluations(row['K for ±0.01'])}", colour))
        found[name] = row["K for ±0.01"]
    sweep, pairs = data["rows"]["(a) full sweep"], data["sweep"]["items"] * (data["sweep"]["sweeps"] - 1)
    axes.errorbar(
        sweep["evaluations_per_item"],
        sweep["error"],
        1.96 * sweep["error"] / math.sqrt(2 * pairs),
        fmt="*",
        ms=9,
        color=style.INK,
        zorder=4,
    )
    ends.append((sweep["error"], f"★ full sweep: {evaluations(sweep['K for ±0.01'])}", style.INK))
    axes.axhline(0.01, color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.annotate(
        "± 0.01",
        (mark, 0.01),
        xytext=(0, 3),
        textcoords="offset points",
        color=style.MUTED,
        size=8,
    )
    axes.text(
        1.015, 1.0, "evaluations per item\nfor ± 0.01:", transform=axes.transAxes, size=8, color=style.MUTED, va="top"
    )
    style.end_labels(axes, ends)
    axes.set_xlabel("network evaluations per item")
    axes.set_ylabel("error of the mean, bits per dimension")
    return found


@figure(3.2)
def cost_to_error_digits(axes: Axes) -> str:
    """The error of the digits' mean bound against evaluations per item, for each estimator."""
    found = _cost_to_error(axes, "cost_to_error-digits.json", _DIGITS, (1, 2000, 3e-4, 0.5, 35))
    return (
        f"On the digits an error of ± 0.01 bits per dimension takes {found['all controls: the plan']:.1f} network evaluations "
        f"per item by the plan, {found['low-discrepancy t (VDM)']:.0f} with low-discrepancy t and "
        f"{found['uniform t']:,.0f} with uniform t. The error falls with the square root of the evaluations."
    )


@figure(3.0)
def cost_to_error_mnist(axes: Axes) -> str:
    """The same on MNIST."""
    found = _cost_to_error(axes, "cost_to_error-mnist.json", _MNIST, (0.01, 2000, 2e-5, 1, 200))
    return (
        f"On MNIST an error of ± 0.01 bits per dimension takes {found['the plan']:.3f} network evaluations per item by the plan, "
        f"{found['low-discrepancy t (VDM)']:.1f} with low-discrepancy t and {found['uniform t']:.0f} with uniform t."
    )


# Rows and marks of the figure of foreign networks: key of the record, label.
_ESTIMATORS = (
    ("the plan", "the plan"),
    ("importance, from a pilot", "importance, from a pilot"),
    ("importance, from γ", "importance, from the schedule"),
    ("full sweep", "full sweep"),
    ("low-discrepancy t", "low-discrepancy t (VDM)"),
    ("uniform t", "uniform t"),
)
_FOREIGN = (
    ("eps-linear", "ε, linear β"),
    ("eps-cosine", "ε, cosine β"),
    ("eps-learned", "ε and variance, linear β"),
    ("v-linear", "v, linear β"),
)


@figure(2.7)
def foreign(axes: Axes) -> str:
    """Evaluations per item for ± 0.01 on networks that diffusers trained, by estimator."""
    found = record("foreign.json")["rows"]
    y = rows(axes, [label for _, label in _ESTIMATORS])
    style.log_axes(axes, "x")
    axes.set_xlim(2, 15_000)
    for number, (key, label) in enumerate(_FOREIGN):
        colour, shift = style.COLOURS[number], 0.16 * (number - 1.5)
        cells = [found[key]["K"][estimator] for estimator, _ in _ESTIMATORS]
        marker = {"fmt": style.MARKERS[number], "ms": 4.5, "label": label}
        dots(
            axes,
            [cell["K"] for cell in cells],
            y + shift,
            [2 * cell["error"] for cell in cells],
            colour=colour,
            **marker,
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, handlelength=1, columnspacing=1.2)
    axes.set_xlabel("network evaluations per item for ± 0.01 bits per dimension (bars: ± 2 standard errors)")
    ranges = {
        key: [found[name]["K"][key]["K"] for name, _ in _FOREIGN]
        for key in ("the plan", "low-discrepancy t", "uniform t")
    }
    plan, low, uniform = (f"{evaluations(min(values))} to {evaluations(max(values))}" for values in ranges.values())
    return (
        f"On four networks that diffusers trained, an error of ± 0.01 bits per dimension takes {plan} network evaluations per item by "
        f"the plan, {low} with low-discrepancy t and {uniform} with uniform t."
    )


@figure(1.9, columns=2)
def context(left: Axes, right: Axes) -> str:
    """Network evaluations per item without and with the context control, for the mean and for an item's score."""
    found = record("context-digits.json")["rows"]
    pilots = (1000, 3000)
    panels = ((left, "K", "mean to ± 0.01 bits/dim"), (right, "item", "an item's score to ± 0.1 bits/dim"))
    for axes, key, title in panels:
        y = rows(axes, [f"pilot of {pilot:,}" for pilot in pilots])
        for kind, (way, colour) in enumerate((("without", style.VERMILION), ("with", style.BLUE))):
            cells = [found[f"pilot of {pilot}, {way} context"] for pilot in pilots]
            values = [cell[key] for cell in cells]
            dots(axes, values, y, colour=colour, fmt="so"[kind])
            for place, cell in zip(y, cells, strict=True):
                if key == "K":
                    axes.plot(cell["K of each plan"], [place] * len(cell["K of each plan"]), "|", color=colour, ms=9)
                text = f"{cell[key]:.1f} {way}" if way == "without" else f"{way} {cell[key]:.1f}"
                options = {"textcoords": "offset points", "va": "center", "color": colour, "size": 8.5}
                axes.annotate(
                    text,
                    (cell[key], place),
                    xytext=(-9, 0) if kind else (13, 0),
                    ha="right" if kind else "left",
                    **options,
                )
        axes.set_title(title)
        axes.set_xlim(0, 1.5 * max(row[key] for row in found.values()))
        axes.set_xlabel("network evaluations per item")
    before, after = found["pilot of 3000, without context"], found["pilot of 3000, with context"]
    return (
        f"With a pilot of 3,000 the context control reduces the evaluations per item for ± 0.01 from {before['K']:.1f} to "
        f"{after['K']:.1f}, and those for an item's score to ± 0.1 from {before['item']:.1f} to {after['item']:.1f}."
    )


@figure(3.4)
def fault_finder(axes: Axes) -> str:
    """The share of trials in which a planted fault was found, and in which it was named, by architecture and training."""
    rows = record("fault_finder.json")["rows"]
    groups = list(dict.fromkeys((row["network"], row["training"]) for row in rows))
    faults = sorted(dict.fromkeys(row["fault"] for row in rows), key=lambda fault: fault != "none")
    grid = np.full((len(faults), len(groups)), np.nan)
    for place in np.ndindex(*grid.shape):
        cell = [r for r in rows if r["fault"] == faults[place[0]] and (r["network"], r["training"]) == groups[place[1]]]
        trials, found = (sum(row[key] for row in cell) for key in ("trials", "detected"))
        grid[place] = 100 * found / trials
        named = faults[place[0]] != "none" and cell[0]["named"] is not None
        text = f"{grid[place]:.0f}" + (f" ({100 * sum(row['named'] for row in cell) / trials:.0f})" if named else "")
        ink = "white" if grid[place] > 50 else style.INK
        axes.text(place[1], place[0], text, ha="center", va="center", size=8, color=ink, zorder=INSIDE)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=120, aspect="auto")
    axes.set_xticks(range(len(groups)), [f"{network}\n{training} trained" for network, training in groups])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(faults)), ["none (false alarms)" if fault == "none" else fault for fault in faults])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.axhline(0.5, color=style.INK, lw=1)
    axes.set_xlabel("% of trials in which something was found (in which exactly the planted fault was named)")
    false, right = (sum(row[key] for row in rows if row["fault"] == "none") for key in ("detected", "trials"))
    well = [row for row in rows if row["training"] == "well" and row["named"] is not None and row["fault"] != "none"]
    found, named = (100 * np.mean([row[key] / row["trials"] for row in well]) for key in ("detected", "named"))
    return (
        f"The check found {found:.0f} % of the faults of well-trained networks that have a name and named {named:.0f} % "
        f"(means of the cells); it raised {false} false alarms in {right} checks."
    )


@figure(4.4, columns=2, width_ratios=(3, 2), sharey=True)
def outliers(diffusion: Axes, others: Axes) -> str:
    """The AUROC of every kind of outliers by each score of the diffusion model, and by the baselines."""
    sets = record("outliers.json")["sets"]
    names = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
    kinds = [
        (key, kind) for key in names if key in sets for kind in next(iter(sets[key]["models"].values()))["outliers"]
    ]
    y = rows(diffusion, [f"{names[key]}, {kind}" for key, kind in kinds])

    def draw(axes: Axes, model: str, score: str, colour: str, marker: str, shift: float, label: str) -> None:
        none = {"value": np.nan, "error": np.nan}
        models = [sets[key]["models"].get(model, {}).get("outliers", {}).get(kind) for key, kind in kinds]
        found = [none if one is None else one["auroc"][score] for one in models]
        values, errors = ([area[part] for area in found] for part in ("value", "error"))
        dots(axes, values, y + shift, [2 * error for error in errors], colour=colour, fmt=marker, label=label)

    draw(diffusion, "diffusion", "nelbo", style.BLUE, "o", -0.2, "NELBO")
    draw(diffusion, "diffusion", "typicality", style.VERMILION, "s", 0.0, "typicality")
    draw(diffusion, "diffusion", "profile", style.GREEN, "D", 0.2, "profile")
    draw(others, "gaussian", "nelbo", style.PURPLE, "o", -0.1, "Gaussian")
    draw(others, "mixture", "nelbo", style.ORANGE, "s", 0.1, "mixture")
    for axes, title in ((diffusion, "diffusion model"), (others, "baselines, by −ln p")):
        axes.axvline(0.5, color=style.MUTED, lw=1, ls=(0, (4, 3)))
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(title, loc="left", pad=22)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handlelength=1, columnspacing=1
        )
    others.tick_params(labelleft=False)
    diffusion.set_xlabel("AUROC ± 2 standard errors (0.5 is chance)")
    others.set_xlabel("AUROC ± 2 standard errors")
    failed = [
        f"{names[key]}, {kind}"
        for key, kind in kinds
        if "diffusion" in sets[key]["models"]
        and sets[key]["models"]["diffusion"]["outliers"][kind]["auroc"]["nelbo"]["value"] < 0.6
    ]
    kinds = [(key, kind) for key, kind in kinds if "diffusion" in sets[key]["models"]]
    return (
        f"By NELBO, the diffusion models find {len(kinds) - len(failed)} of {len(kinds)} kinds of outliers with an AUROC of at least 0.6. "
        f"The exceptions: {'; '.join(failed) or 'none'}."
    )


_FLOWS = (
    ("ours", "ours"),
    ("score_sde", "score_sde"),
    ("flow_matching, dopri5", "flow_matching, dopri5"),
    ("flow_matching, midpoint", "flow_matching, midpoint"),
    ("flow_matching, Euler", "flow_matching, Euler"),
)


@figure(3.0, columns=3)
def ode(*panels: Axes) -> str:
    """The error of an item's log-density against evaluations per item, by each way of integrating the flow."""
    found = record("ode.json")["errors"]
    for axes, (world, every) in zip(panels, found.items(), strict=True):
        style.log_axes(axes, "xy")
        for (way, label), colour, marker in zip(_FLOWS, style.COLOURS, style.MARKERS, strict=False):
            own = sorted((row["cost"], row["error"]) for row in every if row["way"] == way)
            # Settings that cost more than another one and have a larger error are left out.
            best = [(cost, error) for cost, error in own if error <= min(e for c, e in own if c <= cost)]
            axes.plot(*zip(*best, strict=True), color=colour, marker=marker, ms=4, lw=1.2, label=label)
        axes.set_title(world, fontsize=9)
        axes.set_xlabel("evaluations per item")
    panels[0].set_ylabel("error, bits per dimension")
    whole = panels[0].get_figure()
    assert whole is not None
    whole.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    last = list(found)[-1]
    lowest = {
        way: min(row["error"] for row in found[last] if row["way"] == way and row["cost"] <= 1000) for way, _ in _FLOWS
    }
    return (
        f"On the {last.split(',')[0]}, with 1,000 network evaluations per item, the error of ln p(x) is {two_digits(lowest['ours'])} bits per "
        f"dimension by ours, {two_digits(lowest['score_sde'])} by score_sde's way and {two_digits(lowest['flow_matching, midpoint'])} by "
        "flow_matching's."
    )
