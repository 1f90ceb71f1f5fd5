"""Figures of the pages about models."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from result_tables.common import record, with_error

from diffusional.report import plots, style
from result_figures.common import dots, figure, rows, stacked

# The colours of the costs that all models have.
_RECONSTRUCTION, _LEVELS, _LAST, _PRIOR = style.BLUE, style.ORANGE, style.VERMILION, style.GREEN


def _mean(seeds: dict[str, Any], term: str) -> float:
    return statistics.mean(seed["terms"].get(term, {"value": 0.0})["value"] for seed in seeds.values())


# Rows of the figures of the digits: key of the record, label.
_DIGITS = (
    ("diffusion", "diffusion (continuous time)"),
    ("hierarchical_vae", "hierarchical VAE"),
    ("vae_diffusion_prior", "VAE with a diffusion prior"),
    ("vae", "VAE"),
)


@figure(2.6)
def digits(axes: Axes) -> str:
    """Test bounds of the models of the digits after equal time, and of the baselines."""
    data = record("side_by_side.json")
    y = rows(axes, [*(label for _, label in _DIGITS), *data["yardsticks"]])
    means = {}
    for place, (key, _) in zip(y, _DIGITS, strict=False):
        seeds = [seed[key] for seed in data["seeds"].values()]
        bounds = [seed["nelbo"]["value"] for seed in seeds]
        means[key] = statistics.mean(bounds)
        items = 2 * statistics.mean(seed["nelbo"]["item_error"] for seed in seeds)
        dots(axes, means[key], place, items, fmt="none", elinewidth=6, alpha=0.25)
        dots(axes, bounds, [place] * len(bounds), [2 * seed["nelbo"]["error"] for seed in seeds], ms=4)
        axes.annotate(
            f"{means[key]:.3f}", (means[key], place), xytext=(0, 6), textcoords="offset points", ha="center", size=8.5
        )
        if "importance_weighted_64" in seeds[0]:
            tight = [seed["importance_weighted_64"] for seed in seeds]
            values = [one["value"] for one in tight]
            errors = [2 * one["error"] for one in tight]
            dots(axes, values, [place] * len(values), errors, colour=style.VERMILION, fmt="s", ms=4, hollow=True)
    axes.text(1.96, 1, "□ importance-weighted, K = 64", color=style.VERMILION, va="center")
    for place, found in zip(y[len(_DIGITS) :], data["yardsticks"].values(), strict=True):
        dots(
            axes, found["value"], place, 2 * found["item_error"], fmt="none", elinewidth=6, alpha=0.25, colour=style.INK
        )
        dots(axes, found["value"], place, colour=style.INK, fmt="D", ms=4)
        axes.annotate(
            f"{found['value']:.3f} (exact)",
            (found["value"], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            size=8.5,
        )
    axes.set_xlim(1.68, 2.46)
    axes.set_xlabel("bits per dimension of the test split, three seeds (bars: ± 2 standard errors; pale: over items)")
    best = min(value for key, value in means.items() if key != "diffusion")
    return (
        f"The diffusion has the lowest bound of the digits, {means['diffusion']:.3f} bits per dimension, "
        f"{best - means['diffusion']:.2f} below the best VAE. Its three seeds differ by less than their distance from any other model."
    )


@figure(2.1)
def digits_costs(axes: Axes) -> str:
    """The costs that the bounds of the digits' models consist of, seed 0: the image given the latents, and the latents."""
    seed = record("side_by_side.json")["seeds"]["0"]
    terms = {key: seed[key]["terms"] for key, _ in _DIGITS}
    reconstruction = [terms[key]["reconstruction"] for key in terms]
    levels = [terms["diffusion"]["kl"], *[0.0] * (len(terms) - 1)]
    latents = [
        sum(costs.values()) - costs["reconstruction"] - level
        for costs, level in zip(terms.values(), levels, strict=True)
    ]
    stacked(
        axes,
        [label for _, label in _DIGITS],
        {
            "image given latents": (_RECONSTRUCTION, reconstruction),
            "noise levels": (_LEVELS, levels),
            "latents": (_PRIOR, latents),
        },
        [f"{sum(costs.values()):.3f}" for costs in terms.values()],
        [2 * seed[key]["nelbo"]["error"] for key in terms],
    )
    axes.set_xlabel("bits per dimension, seed 0 (bars at the ends: ± 2 standard errors, Monte Carlo)")
    chain, flat = latents[2], latents[3]
    return (
        f"The VAE with a diffusion prior pays {chain:.3f} bits per dimension for its latents, {chain - flat:.3f} more than the plain VAE, "
        f"and saves {reconstruction[3] - reconstruction[2]:.3f} of the reconstruction."
    )


@figure(3.0)
def digits_information(axes: Axes) -> str:
    """I(x; z) of the digits' models during training, seed 0."""
    seed = record("side_by_side.json")["seeds"]["0"]
    labels = dict(_DIGITS)
    traces = {labels[key].partition(" (")[0]: seed[key]["information"] for key in labels}
    plots.traces(traces, seed["vae"]["latents"]["entropy"], axes)
    first, last = ({key: seed[key]["information"][place]["value"] for key in labels} for place in (0, -1))
    return (
        f"The information of the VAE's latents about the training images rises during training from {first['vae']:.2f} to "
        f"{last['vae']:.2f} of ln 1000 = {seed['vae']['latents']['entropy']:.2f} nats. The diffusion's is all of it from the start."
    )


@figure(3.1, columns=2, width_ratios=(1.15, 1))
def essay_chain(left: Axes, right: Axes) -> str:
    """Validation bounds of the essay's chain during training, and the costs of its test bound."""
    data = record("essay_chain.json")
    looks = {"essay": (style.VERMILION, "s"), "essay-tuned": (style.BLUE, "o")}
    left.set(xlim=(0, 2100), ylim=(1.7, 2.55), xlabel="training steps", ylabel="bits per dimension")
    for name, (colour, marker) in looks.items():
        system = data["systems"][name]
        steps, bounds = zip(*system["curve"], strict=True)
        left.plot(steps, bounds, color=colour, marker=marker, ms=3)
        left.annotate(
            f"{name}, validation", (steps[3], bounds[3]), xytext=(0, 6), textcoords="offset points", color=colour
        )
        nelbo = system["nelbo"]
        left.errorbar(
            system["steps"],
            nelbo["value"],
            2 * nelbo["item_error"],
            fmt="*",
            ms=9,
            color=colour,
            clip_on=False,
            zorder=5,
        )
        left.annotate(
            f"test: {nelbo['value']:.3f}",
            (system["steps"], nelbo["value"]),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=colour,
        )
    for key, label, side in (
        ("vae", "VAE", 2),
        ("hierarchical_vae", "hierarchical VAE", -2),
        ("diffusion", "diffusion", 2),
    ):
        found = data["beside"][key]
        left.axhspan(
            found["value"] - 2 * found["error"], found["value"] + 2 * found["error"], color=style.MUTED, alpha=0.5, lw=0
        )
        left.annotate(
            f"{label}, test",
            (40, found["value"]),
            xytext=(0, side),
            textcoords="offset points",
            va="bottom" if side > 0 else "top",
            size=8,
            color=style.MUTED,
        )
    names = ["−ln p(x|z₁)", "KL₁", "KL₂", "KL₃", "KL₄", "prior"]
    y = rows(right, names)
    for shift, (name, (colour, _)) in zip((-0.2, 0.2), looks.items(), strict=True):
        terms, kl = data["systems"][name]["terms"], data["systems"][name]["kl"]
        values = [terms["reconstruction"]["value"], *kl["value"], terms["prior"]["value"]]
        errors = [terms["reconstruction"]["error"], *kl["error"], terms["prior"]["error"]]
        right.barh(y + shift, values, 0.36, xerr=2 * np.array(errors), color=colour, error_kw={"ecolor": style.INK})
        for place, value in zip(y + shift, values, strict=True):
            text = f"{value:.3f}" if value >= 0.0005 else "< 0.001"
            right.annotate(
                text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", size=8, color=colour
            )
    right.set_xlim(0, 2.9)
    right.set_xlabel("of the test bound, bits per dimension")
    essay, tuned, best = (
        data["systems"]["essay"]["nelbo"]["value"],
        data["systems"]["essay-tuned"]["nelbo"]["value"],
        data["beside"]["diffusion"]["value"],
    )
    return (
        f"The essay's chain ends at {essay:.3f} bits per dimension, nearly all of which its decoder pays. The tuned chain ends at "
        f"{tuned:.3f}, which is {tuned - best:.2f} above the diffusion."
    )


@figure(3.4)
def systems(axes: Axes) -> str:
    """Test bounds of the systems after equally many steps, as they are and with x̂ clipped."""
    found = record("order.json")["systems"]
    y = rows(axes, list(found))
    style.log_axes(axes, "x")
    for place, system in zip(y, found.values(), strict=True):
        bounds = [seed["nelbo"]["value"] for seed in system["seeds"].values()]
        axes.plot(bounds, [place - 0.15] * len(bounds), "|", color=style.BLUE, ms=8, mew=1.2)
        dots(axes, system["bits_per_dim"], place - 0.15, system["error_by_seeds"])
        if system["clipped"]:
            value, error = system["clipped"]
            dots(axes, value, place + 0.2, error, colour=style.VERMILION, fmt="s", ms=4.5, hollow=True)
    axes.text(2.6, 6.6, "● as trained (ticks: seeds)", color=style.BLUE)
    axes.text(2.6, 7.5, "□ x̂ clipped to the data's range", color=style.VERMILION)
    axes.set_xlim(1.1, 7)
    axes.set_xticks([1.2, 1.5, 2, 3, 4, 5, 6], ["1.2", "1.5", "2", "3", "4", "5", "6"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("test bound, bits per dimension (bars: ± 1 standard error of three seeds)")
    best = min(found, key=lambda name: found[name]["bits_per_dim"])
    return (
        f"After equally many steps the levels head has the lowest test bound, {found[best]['bits_per_dim']:.3f} bits per dimension. "
        f"L_vlb reaches {found['linear, L_vlb']['bits_per_dim']:.3f} and L_simple {found['DDPM: linear, L_simple']['bits_per_dim']:.3f} on "
        "the linear schedule. The cosine schedule's bounds scatter widely from seed to seed."
    )


@figure(3.4)
def systems_costs(axes: Axes) -> str:
    """The costs that the systems' bounds consist of, with the noisiest level by itself."""
    found = record("order.json")["systems"]
    last = [
        statistics.mean(seed.get("last_level", {"value": 0.0})["value"] for seed in system["seeds"].values())
        for system in found.values()
    ]
    kl = [_mean(system["seeds"], "kl") for system in found.values()]
    stacked(
        axes,
        list(found),
        {
            "reconstruction": (
                _RECONSTRUCTION,
                [_mean(system["seeds"], "reconstruction") for system in found.values()],
            ),
            "other levels": (_LEVELS, [whole - one for whole, one in zip(kl, last, strict=True)]),
            "noisiest level": (_LAST, last),
            "prior": (_PRIOR, [_mean(system["seeds"], "prior") for system in found.values()]),
        },
        [f"{system['bits_per_dim']:.3f}" for system in found.values()],
        [system["error_by_seeds"] for system in found.values()],
    )
    axes.set_xlabel("bits per dimension, means of three seeds (bars at the ends: ± 1 standard error)")
    cosine = list(found).index("cosine, L_simple")
    return (
        f"The noisiest level costs {last[cosine]:.1f} of the {found['cosine, L_simple']['bits_per_dim']:.1f} bits per dimension of the cosine "
        "schedule under L_simple, and nothing under the linear schedule. Without it, the two schedules differ by less than 0.1."
    )


# Rows of binary MNIST's figure: key of the record, label.
_BITS = (
    ("binomial diffusion, T = 100", "binomial diffusion, T = 100"),
    ("Gaussian diffusion, levels head, T = ∞", "Gaussian diffusion, T = ∞"),
    ("hierarchical VAE, two layers", "hierarchical VAE"),
    ("VAE", "VAE"),
    ("Gaussian diffusion, levels head, T = 100", "Gaussian diffusion, T = 100"),
)


@figure(2.4)
def binary_mnist(axes: Axes) -> str:
    """Test bounds of binary MNIST and the costs that they consist of."""
    found = record("binary_mnist.json")["systems"]
    parts = (
        ("reconstruction", "reconstruction", _RECONSTRUCTION),
        ("kl", "noise levels, or z_1 given z_2", _LEVELS),
        ("prior", "prior", _PRIOR),
    )
    stacked(
        axes,
        [label for _, label in _BITS],
        {name: (colour, [_mean(found[key]["seeds"], term) for key, _ in _BITS]) for term, name, colour in parts},
        [with_error(found[key]["nats"], found[key]["error_by_seeds"]) for key, _ in _BITS],
        [2 * found[key]["error_by_seeds"] for key, _ in _BITS],
    )
    axes.set_xlabel("NELBO, nats per image, means of two seeds (bars at the ends: ± 2 standard errors)")
    nats = {key: found[key]["nats"] for key, _ in _BITS}
    best, second = sorted(nats.values())[:2]
    return (
        f"Binomial diffusion has the lowest bound of binary MNIST, {best:.1f} nats per image, {second - best:.1f} below Gaussian diffusion "
        f"in continuous time. The VAEs pay most for the reconstruction, the diffusions for the noise levels."
    )


# Bits/dim of MNIST from other work, which the laptop's bound is compared with.
_ELSEWHERE = (("PNG", 2.80), ("residual flow", 0.97), ("autoregressive transformer", 0.62))


def _beside(axes: Axes, evaluation: dict[str, Any], name: str, others: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Draw the costs that a bound consists of, beside other numbers, bits/dim; returns the costs by name."""
    unit, nelbo = evaluation["dimensions"] * math.log(2), evaluation["nelbo"]
    terms = {key: term["value"] / unit for key, term in evaluation["terms"].items()}
    none = [0.0] * len(others)
    stacked(
        axes,
        [name, *(other for other, _ in others)],
        {
            "reconstruction": (_RECONSTRUCTION, [terms["reconstruction"], *none]),
            "noise levels": (_LEVELS, [terms["kl"], *none]),
            "prior (too small to see)": (_PRIOR, [terms["prior"], *none]),
            "elsewhere": (style.MUTED, [0.0, *(value for _, value in others)]),
        },
        [f"{nelbo['value']:.3f} ± {nelbo['error']:.3f}", *[""] * len(others)],
        [2 * nelbo["error"], *none],
    )
    return terms


@figure(1.9)
def laptop(axes: Axes) -> str:
    """The costs that the laptop preset's test bound consists of, beside published numbers."""
    evaluation = record("laptop.json")["evaluation"]
    nelbo, terms = evaluation["nelbo"], _beside(axes, evaluation, "ten minutes on two cores", _ELSEWHERE)
    axes.set_xlabel("bits per dimension of MNIST's test images (bar at the end: ± 2 standard errors)")
    return (
        f"The model that two cores train in ten minutes has a bound of {nelbo['value']:.3f} bits per dimension: {terms['reconstruction']:.2f} for "
        f"the reconstruction and {terms['kl']:.2f} for the noise levels. PNG needs {_ELSEWHERE[0][1]:.2f}, a residual flow {_ELSEWHERE[1][1]}."
    )


@figure(2.2)
def cifar10_subset(axes: Axes) -> str:
    """The costs that the bound of 1,000 test images consists of, beside baselines on the same images and a published number."""
    found = record("cifar10_subset.json")
    (independent,) = found["baselines"].values()
    others = (("independent positions", independent), ("PNG", found["png"]), ("VDM, all of CIFAR-10", 2.65))
    nelbo = found["evaluation"]["nelbo"]
    _beside(axes, found["evaluation"], "half an hour on one core", others)
    axes.set_xlabel("bits per dimension of 1,000 test images (bar at the end: ± 2 standard errors)")
    return (
        f"A model of 4,500 images of CIFAR-10 has a bound of {nelbo['value']:.2f} bits per dimension after half an hour on one core. Independent "
        f"positions need {independent:.2f}, PNG {found['png']:.2f}; VDM, trained on all images, has 2.65."
    )


@figure(2.0)
def schedules(axes: Axes) -> str:
    """What other shapes and ends of γ change of the bound of the same network."""
    gap = record("schedules.json")["gap"]
    names = {
        "log-SNR-linear": "log-SNR-linear, the same ends",
        "β-linear": "β-linear, the same ends",
        "γ_1 two higher": "log-SNR-linear, γ_1 two higher",
        "γ_T three lower": "log-SNR-linear, γ_T three lower",
    }
    y = rows(axes, [names[key] for key in gap])
    dots(axes, [one["value"] for one in gap.values()], y, [2 * one["error_by_runs"] for one in gap.values()])
    for place, one in zip(y, gap.values(), strict=True):
        text = f"{one['value']:+.4f} ± {one['error_by_runs']:.4f}"
        axes.annotate(
            text,
            (one["value"] + 2 * one["error_by_runs"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
        )
    axes.axvline(0, color=style.MUTED, lw=1)
    axes.set_xlim(-0.02, 0.6)
    axes.set_xlabel("change of the bound, bits per dimension, three seeds (bars: ± 2 standard errors)")
    largest = max(abs(gap[name]["value"]) for name in ("log-SNR-linear", "β-linear"))
    return (
        f"Another shape of γ changes the bound by at most {largest:.4f} bits per dimension. A γ_1 that is two higher adds "
        f"{gap['γ_1 two higher']['value']:.3f}, a γ_T that is three lower {gap['γ_T three lower']['value']:.3f}."
    )


@figure(2.5)
def schedule_steps(axes: Axes) -> str:
    """What T levels cost more than continuous time."""
    data = record("schedules.json")["T_over_continuous_time"]
    costs = {int(key): one for key, one in data.items()}
    levels = np.array(sorted(costs))
    values, errors = (np.array([costs[key][name] for key in levels]) for name in ("value", "error_by_runs"))
    style.log_axes(axes, "xy")
    axes.set(xlim=(7, 1500), ylim=(0.005, 4))
    line = np.array([7, 1500])
    axes.plot(line, values[-1] * levels[-1] / line, color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.annotate(f"{values[-1] * levels[-1]:.1f}/T", (30, 0.22), color=style.MUTED, ha="right", va="top")
    axes.errorbar(levels, values, 2 * errors, fmt="o", color=style.BLUE, capsize=3)
    for level, value in zip(levels, values, strict=True):
        text, last = f"T = {level}: {value:.4f}", level == levels[-1]
        place, side = (-8, -4) if last else (8, 4), "right" if last else "left"
        axes.annotate(
            text, (level, value), xytext=place, textcoords="offset points", ha=side, va="center", color=style.BLUE
        )
    axes.set_xlabel("number of levels T")
    axes.set_ylabel("L_T − L_∞, bits per dimension")
    return (
        f"T levels cost {values[0]:.2f} bits per dimension more than continuous time at T = {levels[0]}, and about "
        f"{values[-1] * levels[-1]:.0f}/T from T = {levels[1]} on: {values[-1]:.4f} at T = {levels[-1]}."
    )


# VDM's ratios of variances on CIFAR-10 (Kingma et al. 2021), as in the table.
_VDM = {"log-SNR-linear": 12, "β-linear": 60, "α-cosine": 59}


@figure(1.9)
def schedule_variance(axes: Axes) -> str:
    """Variance of one draw of the loss under each shape, relative to that under the learned shape."""
    ratios = record("schedules.json")["variance"]
    y = rows(axes, ["the best of all shapes" if name == "best of all shapes" else name for name in ratios])
    style.log_axes(axes, "x")
    dots(axes, [one["value"] for one in ratios.values()], y, [2 * one["error_by_runs"] for one in ratios.values()])
    dots(axes, list(_VDM.values()), y[: len(_VDM)], colour=style.VERMILION, fmt="s", hollow=True)
    axes.text(22, 0, "VDM's, on CIFAR-10", color=style.VERMILION, va="center")
    axes.text(0.9, 0, "here, on MNIST", color=style.BLUE, va="center", ha="right")
    axes.axvline(1, color=style.MUTED, lw=1)
    axes.annotate("learned γ", (1, -0.5), xytext=(3, 3), textcoords="offset points", color=style.MUTED, size=8)
    axes.set_xlim(0.2, 1000)
    axes.set_xlabel("variance of one draw of the loss, over the learned γ's (bars: ± 2 standard errors)")
    found = {name: one["value"] for name, one in ratios.items()}
    return (
        f"The learned shape of γ has a variance of the loss {found['log-SNR-linear']:.0f} times smaller than log-SNR-linear, and about "
        f"{found['α-cosine']:.0f} to {found['β-linear']:.0f} times smaller than α-cosine and β-linear; the best of all shapes would have "
        f"{found['best of all shapes']:.2f} times its variance."
    )


@figure(2.4)
def gpu(axes: Axes) -> str:
    """The time that the paper's run takes, against the rate that a machine sustains."""
    data = record("gpu-cifar10-dry-run.json")
    exaflop, measured = data["paper"]["exaflop"], data["measured"]["teraflops"]
    style.log_axes(axes, "xy")
    axes.set(xlim=(0.02, 1000), ylim=(1, 2e5))
    rates = np.array([0.02, 1000])
    axes.plot(rates, exaflop * 1e6 / rates / 86_400, color=style.BLUE)
    for rate, text, colour in (
        (measured, "measured: two cores", style.VERMILION),
        (1.0, "arithmetic: 1 TFLOP/s", style.BLUE),
        (30.0, "arithmetic: 30 TFLOP/s", style.BLUE),
    ):
        days = exaflop * 1e6 / rate / 86_400
        axes.plot(rate, days, "o", color=colour, mfc=colour if rate == measured else "white")
        axes.annotate(
            f"{text}, {days:,.0f} days", (rate, days), xytext=(8, 6), textcoords="offset points", color=colour
        )
    axes.set_xlabel("sustained TFLOP/s")
    axes.set_ylabel("days of training")
    days = exaflop * 1e6 / measured / 86_400
    return (
        f"VDM's CIFAR-10 run of {exaflop:.0f} exaFLOP would take {days:,.0f} days at the {measured:.2f} TFLOP/s that two cores sustain. "
        "Times on GPUs are arithmetic, not measurements."
    )


@figure(2.6)
def composite_stages(axes: Axes) -> str:
    """The nats of the last stage of every system, p(x|…), and of the stages before it."""
    names = {
        "unconditional": "one diffusion",
        "label": "the same, given the label",
        "caption": "the same, given a caption",
        "cascade": "cascade",
        "latent": "latent diffusion",
        "unclip": "unCLIP, given the label",
    }
    systems = {key: list(one["seeds"].values()) for key, one in record("systems_mnist.json")["systems"].items()}
    keys = [key for key in names if systems.get(key)]

    def nats(key: str, last: bool) -> list[float]:
        """Return the sum of every seed."""
        stages = ("upsampler", "decoder")
        return [
            sum(
                cost["value"]
                for term, cost in one["terms"].items()
                if ("." not in term or term.partition(".")[0] in stages) == last
            )
            for one in systems[key]
        ]

    before, after = ([float(np.mean(nats(key, last))) for key in keys] for last in (False, True))
    totals = [a + b for a, b in zip(before, after, strict=True)]
    stacked(
        axes,
        [names[key] for key in keys],
        {"stages before": (style.ORANGE, before), "the model of x": (style.BLUE, after)},
        [f"{total:.1f}" for total in totals],
    )
    axes.set_xlabel("nats of x")
    best = min(keys, key=lambda key: totals[keys.index(key)])
    worst = max(keys, key=lambda key: totals[keys.index(key)])
    first = names[best].replace("the same", "one diffusion")
    return (
        f"At equal training time {first} has the lowest bound, {min(totals):.1f} nats, and {names[worst]} the highest, "
        f"{max(totals):.1f} nats, of which its stages before the model of x cost {before[keys.index(worst)]:.1f}."
    )


@figure(3.6, rows=2, height_ratios=(3, 1))
def codec(curve: Axes, pictures: Axes) -> str:
    """Rate and distortion of progressive decoding of the digits, and x̂ of one of them after some of the bits."""
    found = record("codec.json")["rate_distortion"]
    bits, rmse = found["bits_per_dim"], found["rmse_levels"]
    curve.plot(bits, rmse, marker="o", ms=3, color=style.BLUE)
    curve.set(xlabel="bits per dimension for z_T … z_t", ylabel="RMSE of x̂, levels", xlim=(0, None), ylim=(0, None))
    side = math.isqrt(len(found["item"]))
    shares = [0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0]
    chosen = [min(range(len(bits)), key=lambda i: abs(bits[i] - share * bits[-1])) for share in shares]
    shown = [np.array(found["shown"][i]) for i in chosen] + [np.array(found["item"])]
    blank = np.zeros((side, 1))
    tiles = [part for one in shown for part in (one.reshape(side, side), blank)][:-1]
    pictures.imshow(np.concatenate(tiles, 1), cmap="gray_r", vmin=0, vmax=16, aspect="equal")
    pictures.set_xticks([])
    pictures.set_yticks([])
    for spine in pictures.spines.values():
        spine.set_visible(False)
    pictures.set_xlabel("x̂ after 0, 10, 25, … 100 % of these bits; right: x")
    half = next(i for i, value in enumerate(rmse) if value < rmse[0] / 2)
    return (
        f"The error of x̂ falls from {rmse[0]:.1f} levels to {rmse[-1]:.2f}; half of it is gone after {bits[half]:.2f} of "
        f"{bits[-1]:.2f} bits per dimension."
    )
