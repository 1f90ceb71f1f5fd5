"""Figures of the pages about information."""

import numpy as np
from matplotlib.axes import Axes
from result_tables.common import record, sets_of

from diffusional.report import style
from diffusional.report.charts import signed
from result_figures.common import dots, figure, rows


@figure(2.9)
def information(axes: Axes) -> str:
    """I(x; z_t) of MNIST's training images under DDPM's schedule."""
    data = record("information.json")
    curve = data["curve"]
    t, value, error = (np.array(curve[key]) for key in ("t", "information", "error"))
    axes.axhline(curve["entropy"], color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.fill_between(t, value - 2 * error, value + 2 * error, color=style.SKY, alpha=0.5, lw=0)
    axes.plot(t, value, color=style.BLUE)
    half = curve["half_lost_by_t"]
    axes.plot([half, half, 0], [0, curve["entropy"] / 2, curve["entropy"] / 2], color=style.MUTED, lw=1, ls=(0, (1, 1)))
    axes.annotate(
        f"half is lost by t = {half:.0f}", (half, curve["entropy"] / 2), xytext=(8, 4), textcoords="offset points"
    )
    name = f"H(x) = ln {data['points']:,} = {curve['entropy']:.2f} nats"
    axes.annotate(
        name, (1000, curve["entropy"]), xytext=(0, 4), textcoords="offset points", ha="right", color=style.MUTED
    )
    axes.set(
        xlim=(0, 1000), ylim=(0, 1.12 * curve["entropy"]), xlabel="t (linear β, T = 1000)", ylabel="I(x; z_t), nats"
    )
    top = axes.secondary_xaxis("top")
    marks = np.array([1, 200, 400, 600, 800, 1000])
    top.set_xticks(marks, [f"{mark:.1f}".replace("-", "−") for mark in np.interp(marks, t, curve["log_snr"])])
    top.set_xlabel("log-SNR")
    last, spread = curve["information_at_zT"]
    return (
        f"The information that z_t has about {data['points']:,} images stays at ln {data['points']:,} = {curve['entropy']:.2f} nats "
        f"for the first levels, has fallen to half by t = {half:.0f}, and is {last:.5f} ± {spread:.5f} nats at t = 1000."
    )


# Curves of the figure: key of the record, label.
_DECODERS = (
    ("VAE, decoder variance 0.05", "VAE, decoder variance 0.05"),
    ("VAE, decoder learns its width", "VAE, learns its width"),
    ("VAE, decoder variance 2", "VAE, variance 2"),
    ("VAE, decoder variance 10", "VAE, variance 10"),
    ("diffusion, γ₁ = 2", "diffusion, γ₁ = 2"),
)


@figure(3.3)
def information_in_training(axes: Axes) -> str:
    """I(x; z) during training, of VAEs and of a diffusion."""
    data, ends = record("information_in_training.json"), []
    axes.set(
        xlim=(0, 1),
        ylim=(-0.2, 7.6),
        xlabel="fraction of training",
        ylabel="I(x; z), nats (bands: ± 2 standard errors)",
    )
    axes.axhline(data["entropy"], color=style.MUTED, lw=1, ls=(0, (4, 3)))
    name = f"H(x) = ln 1000 = {data['entropy']:.2f} nats"
    axes.annotate(name, (0, data["entropy"]), xytext=(4, 4), textcoords="offset points", color=style.MUTED)
    looks = zip(_DECODERS, style.COLOURS, style.MARKERS, style.DASHES, strict=False)
    for (key, label), colour, marker, dash in looks:
        trace = data["traces"][key]
        part, value, error = (np.array([point[name] for point in trace]) for name in ("step", "value", "error"))
        part = part / part[-1]
        axes.fill_between(part, value - 2 * error, value + 2 * error, color=colour, alpha=0.25, lw=0)
        axes.plot(part, value, color=colour, marker=marker, ls=dash, ms=4)
        ends.append((float(value[-1]), label, colour))
    style.end_labels(axes, ends)
    kept = [data["traces"][key][-1]["value"] for key, _ in _DECODERS]
    fixed = data["traces"]["diffusion, γ₁ = 2"][0]
    return (
        f"I(x; z) of three VAEs rises during training, to {kept[0]:.2f}, {kept[1]:.2f} and {kept[2]:.2f} of {data['entropy']:.2f} nats. "
        f"With decoder variance 10 it falls to 0 and then rises to {kept[3]:.2f}. The diffusion's stays at "
        f"{fixed['value']:.2f} ± {fixed['error']:.2f}."
    )


# Rows of the figure: file, key of its record, label.
_POINTS = (
    ("memorisation-digits.json", "digits, linear, T = 1000", "1,000 digits, linear β, T = 1000"),
    ("memorisation-digits.json", "digits, linear rescaled, T = 4000", "1,000 digits, linear β rescaled, T = 4000"),
    ("memorisation-digits.json", "digits, log-SNR-linear, T = 1000", "1,000 digits, log-SNR-linear, T = 1000"),
    ("memorisation-mnist.json", "mnist, linear, T = 1000", "10,000 of MNIST, linear β, T = 1000"),
)


@figure(1.9)
def memorisation(axes: Axes) -> str:
    """How far the bounds of exact empirical denoisers on their own points are above ln N."""
    y = rows(axes, [label for _, _, label in _POINTS])
    found = [record(file)["rows"][key] for file, key, _ in _POINTS]
    above = [row["above_entropy"] for row in found]
    dots(axes, above, y, [2 * row["nelbo"]["error"] for row in found])
    for place, row in zip(y, found, strict=True):
        text = f"{row['nelbo']['value']:.2f} nats"
        axes.text(0.62, place, text, ha="right", va="center", size=8.5)
    axes.text(0.62, -0.62, "NELBO", ha="right", va="bottom", size=8, color=style.MUTED)
    axes.axvline(0, color=style.MUTED, lw=1)
    axes.annotate(
        "no bound can be lower",
        (0, -0.5),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        color=style.MUTED,
        size=8,
    )
    axes.set_xlim(-0.25, 0.63)
    axes.set_xlabel("NELBO − ln N, nats per item (bars: ± 2 standard errors)")
    return (
        f"The bounds of exact empirical denoisers on their own points are {min(above):.2f} to {max(above):.2f} nats above ln N, "
        f"at most {max(row['above_entropy'] / row['nelbo']['error'] for row in found):.1f} standard errors."
    )


@figure(3.0)
def masked_information(axes: Axes) -> str:
    """The nat budget of a masked chain of eight steps, with exact and with flattened conditionals, by level."""
    data = record("masked-information.json")
    budget = data["budget"]
    terms = ["−RE", *(f"KL {t}" for t in range(1, len(budget["exact"])))]
    place = np.arange(len(terms))
    for k, (name, label) in enumerate((("exact", "exact conditionals"), ("flattened", "flattened conditionals"))):
        at = place + 0.4 * (k - 0.5)
        information, gap = (np.array([row[key] for row in budget[name]]) for key in ("information", "gap"))
        axes.bar(at, information, 0.36, color=style.BLUE, alpha=1.0 - 0.45 * k, label=f"information, {label}")
        axes.bar(at, gap, 0.36, bottom=information, color=style.ORANGE, alpha=1.0 - 0.45 * k, label=f"gap, {label}")
    axes.set_xticks(place, terms)
    axes.set(
        xlabel="term of the bound", ylabel="nats", ylim=(0, 1.45 * max(row["cost"] for row in budget["flattened"]))
    )
    axes.legend(ncols=2, frameon=False, loc="upper left", fontsize="small")
    total = {name: sum(row["gap"] for row in rows) for name, rows in budget.items()}
    return (
        f"Each cost of a masked chain of {len(terms)} steps is information, equal for both networks and {data['entropy']:.2f} nats in sum, and a gap: "
        f"{total['exact']:.3f} nats in sum with exact conditionals, {total['flattened']:.3f} with flattened ones."
    )


@figure(2.9)
def masked_curve(axes: Axes) -> str:
    """I(x; z) along the signal, and I(x; z_t | z_{t−1}) of the chain and of masks that are drawn anew."""
    data = record("masked-information.json")
    curve, rows = data["curve"], data["markov"]
    steps = len(data["budget"]["exact"])
    axes.axhline(data["entropy"], color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.annotate(
        f"H(x) = {data['entropy']:.2f} nats",
        (1, data["entropy"]),
        xytext=(2, 4),
        textcoords="offset points",
        color=style.MUTED,
    )
    axes.plot(curve["a"], curve["masked"], color=style.BLUE, label="I(x; z), masked")
    axes.plot(curve["a, uniform"], curve["uniform"], color=style.GREEN, ls=(0, (4, 2)), label="I(x; z), uniform")
    signal = [1 - row["t"] / steps for row in rows]
    axes.plot(
        signal,
        [row["chain"] for row in rows],
        color=style.BLUE,
        marker="o",
        ms=4,
        lw=0,
        label="I(x; z_t | z_{t−1}), the chain",
    )
    axes.plot(
        signal,
        [row["anew"] for row in rows],
        color=style.ORANGE,
        marker="s",
        ms=4,
        label="I(x; z_t | z_{t−1}), masks drawn anew",
    )
    axes.set(
        xlim=(1, 0),
        ylim=(-0.15, 1.15 * data["entropy"]),
        xlabel="a, the fraction of positions that is shown",
        ylabel="nats",
    )
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9), fontsize="small")
    most = max(row["anew"] for row in rows)
    return (
        f"I(x; z) falls from H(x) = {data['entropy']:.2f} nats to 0 along the signal, for the masked process above the uniform one. "
        f"I(x; z_t | z_(t−1)) is 0 for the chain, and up to {most:.2f} nats for masks that are drawn anew at every level."
    )


@figure(3.6, columns=2, width_ratios=(1, 1), sharey=True)
def probes(*axes: Axes) -> str:
    """Accuracy of linear probes against log-SNR: of z_t, of features, and what is possible."""
    lines = (
        ("features", "features of the network", style.BLUE, "o-", True),
        ("untrained", "features before training", style.SKY, "s--", True),
        ("z", "z_t", style.VERMILION, "^-", True),
        ("bayes", "Bayes classifier of z_t", style.INK, "-", False),
    )
    found, said = sets_of("probes.json"), []
    for one, (title, its) in zip(axes, found, strict=False):
        levels = sorted(its["levels"], key=lambda row: row["log_snr"])
        x = [row["log_snr"] for row in levels]
        for key, label, colour, fmt, over_items in lines:
            y = [row[key]["value"] for row in levels]
            off = [2 * row[key]["items" if over_items else "error"] for row in levels]
            one.errorbar(x, y, off, fmt=fmt, color=colour, ms=4, lw=1.2, label=label)
        one.plot(x, [row["fano"] for row in levels], color=style.MUTED, lw=1, ls=(0, (1, 1)), label="Fano's bound")
        vae = its["vae"]
        for key, label, dash in (
            ("mean", "VAE, means of q(z|x)", (0, (4, 3))),
            ("draw", "VAE, draws", (0, (6, 2, 1, 2))),
        ):
            one.axhline(vae[key]["value"], color=style.GREEN, lw=1, ls=dash, label=label)
        one.axhline(0.1, color=style.MUTED, lw=0.7)
        one.set(xlim=(max(x) + 0.5, min(x) - 0.5), ylim=(0, 1.03), xlabel="log-SNR (little noise on the left)")
        one.set_title(title, loc="left")
        best = max(levels, key=lambda row: row["features"]["value"])
        gap = max(levels, key=lambda row: row["features_less_z"]["value"])
        said.append(
            f"on {title.partition(',')[0]} probes of the features reach {best['features']['value']:.3f} at log-SNR "
            f"{signed(str(best['log_snr']))} and exceed those of z_t by at most {gap['features_less_z']['value']:.3f}, at {signed(str(gap['log_snr']))}"
        )
    axes[0].set_ylabel("accuracy on test items, ± 2")
    axes[0].legend(loc="lower left", handlelength=2, fontsize=7)
    return _sentence(said)


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
