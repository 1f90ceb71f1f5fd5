"""Figures of the pages about the probability flow and about probes of features."""

import math

import numpy as np
from matplotlib.axes import Axes
from result_tables.common import record, sets_of

from diffusional.report import style
from result_figures.common import figure

_WAYS = {
    "score_sde": ("score_sde, one probe", style.VERMILION, "s", style.DASHES[1]),
    "flow_matching, midpoint": ("flow_matching, midpoint, one probe", style.GREEN, "D", style.DASHES[2]),
    "flow_matching, dopri5": ("flow_matching, dopri5, one probe", style.PURPLE, "^", style.DASHES[3]),
}


@figure(3.9, columns=3, sharey=True)
def ode(*axes: Axes) -> str:
    """The error against the cost of every way, for every world."""
    found = record("ode.json")["errors"]
    for one, (world, rows) in zip(axes, found.items(), strict=True):
        style.log_axes(one, "xy")
        for name, (label, colour, marker, dash) in _WAYS.items():
            own = [row for row in rows if row["way"] == name and row["repeats"] == 1]
            cost, error = ([row[key] for row in own] for key in ("cost", "error"))
            one.plot(cost, error, marker, color=colour, ls=dash, lw=1, ms=4, label=label)
        for probes, shade in ((2, style.SKY), (8, style.BLUE), (32, style.INK), ("exact", style.ORANGE)):
            own = sorted((row for row in rows if row.get("probes") == probes), key=lambda row: row["cost"])
            cost, error = ([row[key] for row in own] for key in ("cost", "error"))
            label = "ours, exact trace" if probes == "exact" else f"ours, {probes} probes"
            one.plot(cost, error, "o-", color=shade, lw=1, ms=4, label=label)
        one.set_title(world, loc="left")
        one.set_xlabel("evaluations per item")
    axes[0].set_ylabel("root mean square error, bits/dim")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)
    rows = next(rows for world, rows in found.items() if world.startswith("digits"))
    published = next(
        row for row in rows if row["way"] == "score_sde" and row["setting"] == 1e-5 and row["repeats"] == 1
    )
    best = min((row for row in rows if row.get("probes") == 32), key=lambda row: row["error"])
    return (
        f"On the digits the error of one probe stays at {published['error']:.2g} bits/dim however small the solver's tolerance is, at "
        f"{published['cost']:,.0f} evaluations, and 32 probes reach {best['error']:.2g} bits/dim with {best['cost']:,.0f}."
    )


@figure(3.9, columns=2, sharey=True)
def probes(*axes: Axes) -> str:
    """The accuracy of probes against log SNR, below what is possible."""
    lines = (
        ("features", "features of the network", style.BLUE, "o", style.DASHES[0]),
        ("z", "z_t", style.VERMILION, "s", style.DASHES[1]),
        ("untrained", "features of an untrained network", style.PURPLE, "^", style.DASHES[3]),
    )
    said = []
    for one, (title, its) in zip(axes, sets_of("probes.json"), strict=True):
        rows = its["levels"]
        x = np.array([row["log_snr"] for row in rows])
        one.plot(
            x, [row["bayes"]["value"] for row in rows], color=style.MUTED, lw=1.2, label="the most that z_t allows"
        )
        for key, label, colour, marker, dash in lines:
            value = np.array([row[key]["value"] for row in rows])
            error = 2 * np.array([math.hypot(row[key]["items"], row[key]["noise"]) for row in rows])
            one.errorbar(x, value, error, fmt=marker, color=colour, ls=dash, lw=1, ms=4, capsize=2, label=label)
        vae = its["vae"]["mean"]
        one.axhline(vae["value"], color=style.GREEN, lw=1.2, ls=style.DASHES[2], label="latents of a VAE")
        one.axhspan(
            vae["value"] - 2 * vae["items"], vae["value"] + 2 * vae["items"], color=style.GREEN, alpha=0.15, lw=0
        )
        one.axhline(0.1, color=style.MUTED, lw=0.8, ls=style.DASHES[2])
        one.set_title(title, loc="left")
        one.set_xlabel("log SNR (noise falls to the right)")
        best = max(rows, key=lambda row: row["features_less_z"]["value"])
        said.append(
            f"On {title.split(',')[0]} a probe of features is right on {best['features']['value']:.2f} of the images at log SNR "
            f"{best['log_snr']:g}, one of z_t on {best['z']['value']:.2f}, where at most {best['bayes']['value']:.2f} are possible."
        )
    axes[0].set_ylabel("accuracy (± 2 standard errors)")
    axes[0].set_ylim(0, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)
    return " ".join(said)
