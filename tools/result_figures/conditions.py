"""Figures of the pages about conditional models."""

import numpy as np
from matplotlib.axes import Axes
from result_tables.common import sets_of

from diffusional.report import style
from result_figures.common import figure

_COLOURS = ((style.BLUE, "o"), (style.VERMILION, "s"))


@figure(3.4, columns=2, width_ratios=(1, 1))
def guidance(bound: Axes, samples: Axes) -> str:
    """The rise of the bound against w, with the quadratic of its curvature; and the accuracy of samples against w."""
    found = sets_of("guidance.json")
    for (title, its), (colour, marker) in zip(found, _COLOURS, strict=False):
        w = np.array([row["weight"] for row in its["weights"]])
        rise = np.array([row["rise_nats"]["value"] for row in its["weights"]])
        error = 2 * np.array([row["rise_nats"]["error"] for row in its["weights"]])
        bound.errorbar(w, rise, error, fmt=marker, color=colour, ms=4.5, label=title, zorder=3)
        fine = np.linspace(0, w.max(), 60)
        bound.plot(fine, its["curvature_nats"]["value"] * (fine - 1) ** 2, color=colour, lw=1, ls=(0, (4, 3)))
        share = np.array([row["accuracy"]["value"] for row in its["weights"]])
        half = 2 * np.array([row["accuracy"]["error"] for row in its["weights"]])
        samples.errorbar(w, share, half, fmt=marker + "-", color=colour, ms=4.5, lw=1)
        spread = [row["diversity"] for row in its["weights"]]
        samples.plot(w, spread, marker, color=colour, mfc="white", ms=4.5, ls=(0, (1, 2)), lw=1)
    bound.set_yscale("symlog", linthresh=1)
    bound.set_ylim(-0.5, 200)
    bound.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    bound.set_yticks([], minor=True)
    bound.set_xlabel("guidance weight w")
    bound.set_title("NELBO(w) − NELBO(1), nats ± 2", loc="left")
    bound.legend(loc="upper left", handlelength=1)
    samples.set_xlabel("guidance weight w")
    samples.set_ylim(0, 1.7)
    samples.set_title("samples: of their class (filled), diversity", loc="left")
    title, its = found[0]
    best = min(its["weights"], key=lambda row: row["nelbo"]["value"])
    last = its["weights"][-1]
    return (
        f"On the {title.partition(',')[0]} the bound is best at w = {best['weight']:g} and rises nearly as a quadratic, by "
        f"{last['rise_nats']['value']:.0f} nats at w = {last['weight']:g}, while the share of samples of their class rises to "
        f"{last['accuracy']['value']:.2f} and their diversity falls to {last['diversity']:.2f} of that of the data."
    )


@figure(3.4, columns=2, width_ratios=(1, 1), sharey=True)
def classification(*axes: Axes) -> str:
    """Accuracy against network evaluations per item, of every way to classify."""
    ways = (
        ("ours", "df.classify", style.BLUE, "o-"),
        ("unweighted", "df.classify, unweighted", style.SKY, "s-"),
        ("plain", "bound, independent draws", style.GREEN, "^-"),
        ("published", "published (Li et al. 2023)", style.VERMILION, "D"),
        ("default", None, style.VERMILION, "D"),
    )
    found, said = sets_of("classification.json"), []
    for one, (title, its) in zip(axes, found, strict=False):
        style.log_axes(one, "x")
        for part, label, colour, fmt in ways:
            rows = its.get(part, ())
            x, y = [row["evaluations"] for row in rows], [row["value"] for row in rows]
            one.errorbar(x, y, [2 * row["error"] for row in rows], fmt=fmt, color=colour, ms=4.5, lw=1, label=label)
        for row, line in zip(its["classifiers"], ((0, (4, 3)), (0, (1, 2))), strict=True):
            one.axhline(row["value"], color=style.MUTED, lw=1, ls=line, label=row["name"])
        one.set_xlim(20, 4000)
        one.set_xlabel("network evaluations per item")
        one.set_title(title, loc="left")
        best = max(its["ours"], key=lambda row: row["value"])
        said.append(
            f"on {title.partition(',')[0]} {best['value']:.3f} with {best['evaluations']:.0f} evaluations per item, against "
            f"{max(row['value'] for row in its['published']):.3f} at most with {max(row['evaluations'] for row in its['published']):.0f} by the "
            f"published way"
        )
    for one in axes[len(found) :]:
        one.set_visible(False)
    axes[0].set_ylabel("accuracy ± 2 standard errors")
    axes[0].legend(loc="lower right", fontsize=7.5, handlelength=1.6)
    return f"Classification by the bound is right {'; '.join(said)}."
