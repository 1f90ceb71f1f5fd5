"""Plots of numbers on matplotlib axes: ledgers, costs of levels, information curves and training curves.

These functions need arrays only, not records or models. `Evaluation.plot`, `Ledger.plot`, `Curve.plot` and the figures of the command line call
them. Every function draws on the given axes, or on those of a new figure of pyplot, and returns them. Bars and bands are ± 2 standard errors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusional.extras import needed_for
from diffusional.report import style

with needed_for("report"):
    from matplotlib.axes import Axes

# Bars of a plot of levels; more levels than these are added up in groups of neighbours.
_BARS = 80
# Points of a curve are marked if there are not more than these.
_MARKED = 30
# The colours of costs by the last part of their names; others have SKY.
_COST = {"reconstruction": style.BLUE, "kl": style.ORANGE, "prior": style.GREEN}


@contextmanager
def _on(ax: Axes | None, height: float) -> Iterator[Axes]:
    """Yield the given axes, which keep their own style, or those of a new figure of pyplot in the style of this package."""
    if ax is not None:
        yield ax
        return
    import matplotlib.pyplot as plt

    with style.styled():
        yield plt.subplots(figsize=(7.2, height), layout="constrained")[1]


def ledger(
    terms: Mapping[str, tuple[float, float]],
    total: tuple[float, float],
    unit: str,
    ax: Axes | None = None,
    name: str = "NELBO",
    errors: str = "",
) -> Axes:
    """Draw named costs as a waterfall: every bar begins where the last one ended, and the last bar is their sum.

    Args:
        terms: {name: (value, error)}, drawn from the top; negative values go to the left.
        total: (value, error) of the sum.
        unit: "nats" or "bits/dim", for the label of the axis.
        ax: matplotlib axes; by default those of a new figure.
        name: the name of the sum.
        errors: which errors these are, such as "Monte Carlo", for the label of the axis. Errors that are not finite are not drawn.

    >>> ax = ledger({"reconstruction": (1.0, 0.1), "kl": (2.0, 0.2)}, (3.0, 0.2), "nats", style.figure(4.0, 2.0).subplots())
    >>> [(float(bar.get_x()), float(bar.get_width())) for bar in ax.patches]
    [(0.0, 1.0), (1.0, 2.0), (0.0, 3.0)]
    """
    rows = [*terms.items(), (name, total)]
    with _on(ax, 0.9 + 0.34 * len(rows)) as axes:
        start, ends = 0.0, [0.0]
        for row, (term, (value, error)) in enumerate(rows):
            last = row == len(rows) - 1
            start = 0.0 if last else start
            colour = style.MUTED if last else _COST.get(term.rpartition(".")[2], style.SKY)
            axes.barh(row, value, left=start, height=0.62, color=colour, edgecolor="white", linewidth=0.6)
            end = start + value
            shown = 2 * error if math.isfinite(error) else 0.0
            if shown > 0:
                axes.errorbar(end, row, xerr=shown, fmt="none", ecolor=style.INK, elinewidth=1.2, capsize=2, zorder=3)
            if not last:
                axes.plot([end, end], [row, row + 1], color=style.MUTED, lw=0.7, zorder=1)
            axes.annotate(
                _number(value, error),
                (max(start, end + shown), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                size="small",
            )
            ends += [end - shown, end + shown]
            start = end
        axes.set_yticks(range(len(rows)), [term for term, _ in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=style.MUTED, lw=0.7)
        low, high = min(ends), max(ends)
        # Room for the numbers on the right.
        axes.set_xlim(low - 0.02 * (high - low) if low < 0 else 0.0, high + 0.25 * ((high - low) or 1.0))
        which = f", {errors}" if errors else ""
        axes.set_xlabel(
            f"{'bits per dimension' if unit == 'bits/dim' else 'nats per item'} (bars: ± 2 standard errors{which})"
        )
    return axes


def _number(value: float, error: float) -> str:
    """Return a value with its error: two digits of the error, or four significant digits without one.

    >>> _number(1.23456, 0.0123), _number(-0.93, 0.0), _number(71.2, math.nan)
    ('1.235 ± 0.012', '−0.93', '71.2')
    """
    if error > 0 and math.isfinite(error):
        digits = max(0, 1 - math.floor(math.log10(error)))
        text = f"{value:.{digits}f} ± {error:.{digits}f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def levels(kl: Any, error: Any, edges: Any, gamma: Any = None, ax: Axes | None = None, bars: int = _BARS) -> Axes:
    """Draw costs of levels as a density: nats per unit of log-SNR against log-SNR, the least noisy level on the left, with an error band.

    The area is the sum of the costs. More levels than `bars` are added up in groups of neighbours, and their errors in quadrature, as
    draws of different levels are independent.

    Args:
        kl: costs of levels (C,), nats.
        error: their standard errors (C,). Where one is not finite there is no band.
        edges: edges of the levels (C + 1,) in t or u.
        gamma: γ = −log SNR at the edges (C + 1,); None if the latents have none. The costs are then drawn per unit of t or u.
        ax: matplotlib axes; by default those of a new figure.
        bars: largest number of bars.

    >>> ax = levels([1.0, 3.0], [0.1, 0.1], [1, 2, 3], [-2.0, 0.0, 2.0], style.figure(4.0, 2.0).subplots())
    >>> ax.patches[0].get_data().values.tolist()                    # per unit of log-SNR; each level is two wide
    [0.5, 1.5]
    """
    groups = grouped(kl, error, edges if gamma is None else gamma, bars)
    sign = 1 if gamma is None else -1  # the log-SNR is −γ
    with _on(ax, 2.8) as axes:
        places = sign * groups.edges
        axes.stairs(groups.density, places, fill=True, color=style.BLUE, alpha=0.45, lw=0)
        axes.stairs(groups.density, places, color=style.BLUE, lw=1.3)
        spread = 2 * groups.density_error
        if np.isfinite(spread).any() and np.nanmax(spread) > 0:
            upper, lower = groups.density + spread, groups.density - spread
            axes.stairs(upper, places, baseline=lower, fill=True, color=style.INK, alpha=0.35, lw=0)
        axes.set_xlim(places[0], places[-1])
        # Estimates of small costs may be negative; only larger ones change the lower limit of the axis.
        if not (groups.density < -0.02 * groups.density.max()).any():
            axes.set_ylim(0, None)
        along = _along(edges, gamma)
        axes.set_xlabel(f"{along} (z₁, with little noise, on the left; z_T on the right)", parse_math=False)
        axes.set_ylabel(f"KL, nats per unit of {along}")
    return axes


def cumulated(kl: Any, error: Any, edges: Any, gamma: Any = None, ax: Axes | None = None, bars: int = _BARS) -> Axes:
    """Draw the sum of the costs of all levels from the noisiest one to each edge, with an error band. Arguments as for `levels`.

    >>> ax = cumulated([1.0, 3.0], [0.1, 0.1], [1, 2, 3], [-2.0, 0.0, 2.0], style.figure(4.0, 2.0).subplots())
    >>> ax.lines[0].get_ydata().tolist()
    [4.0, 3.0, 0.0]
    """
    groups = grouped(kl, error, edges if gamma is None else gamma, bars)
    sign = 1 if gamma is None else -1
    with _on(ax, 2.4) as axes:
        total = np.append(np.cumsum(groups.mass[::-1])[::-1], 0.0)
        spread = 2 * np.append(np.sqrt(np.cumsum(groups.error[::-1] ** 2))[::-1], 0.0)
        places = sign * groups.edges
        axes.fill_between(places, total - spread, total + spread, color=style.VERMILION, alpha=0.3, lw=0)
        axes.plot(places, total, color=style.VERMILION)
        axes.set_xlim(places[0], places[-1])
        axes.set_xlabel(_along(edges, gamma))
        axes.set_ylabel("KL from z_T on, nats", parse_math=False)
    return axes


class grouped:
    """Levels in at most `bars` groups of neighbours: edges, mass, density and their errors.

    >>> grouped([1.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1, 2, 3, 4, 5], 2).density.tolist()
    [2.0, 2.0]
    """

    def __init__(self, kl: Any, error: Any, edges: Any, bars: int) -> None:
        kl, error, edges = (np.asarray(values, dtype=float) for values in (kl, error, edges))
        count = min(len(kl), bars)
        owner = np.arange(len(kl)) * count // len(kl)
        self.mass = np.bincount(owner, kl, count)
        self.error = np.sqrt(np.bincount(owner, error**2, count))
        width = np.bincount(owner, np.diff(edges), count)
        self.edges = np.concatenate([edges[:1], edges[0] + np.cumsum(width)])
        # Neighbouring levels may have equal γ, as a binomial chain's do where it is clamped.
        self.density, self.density_error = (
            np.divide(values, width, out=np.zeros_like(values), where=width > 0) for values in (self.mass, self.error)
        )


def _along(edges: Any, gamma: Any) -> str:
    return "log-SNR" if gamma is not None else "u" if np.asarray(edges).dtype.kind == "f" else "t"


def information(
    level: Any,
    gamma: Any,
    value: Any,
    error: Any,
    entropy: float,
    wasted: tuple[float, float] = (0.0, 0.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw I(x; z_t) against the level, with H(x), an error band, and a second axis of log-SNR.

    Up to 30 computed values are marked, with error bars, and the dotted line between them is only a guide. More are drawn as a line with
    a band.

    Args:
        level, gamma, value, error: (L,), as in an information curve, L ≥ 2.
        entropy: H(x), nats.
        wasted: the fractions of levels at the low-noise and at the high-noise end over which it changes by less than 1 %; they are grey.
        ax: matplotlib axes; by default those of a new figure.

    >>> ax = information([1, 5, 9], [-2.0, 0.0, 2.0], [2.0, 1.0, 0.1], [0.0, 0.1, 0.01], 2.1, ax=style.figure(4.0, 2.0).subplots())
    >>> ax.lines[0].get_ydata().tolist()
    [2.0, 1.0, 0.1]
    """
    level, gamma, value, error = (np.asarray(values, dtype=float) for values in (level, gamma, value, error))
    first, last = level[0], level[-1]
    with _on(ax, 3.0) as axes:
        few = len(level) <= _MARKED
        axes.plot(level, value, color=style.BLUE, **({"lw": 0.9, "ls": (0, (1, 1.5))} if few else {}))
        if few:
            axes.errorbar(level, value, 2 * error, fmt="o", color=style.BLUE, ms=4, capsize=2, zorder=3, clip_on=False)
        else:
            axes.fill_between(level, value - 2 * error, value + 2 * error, color=style.BLUE, alpha=0.3, lw=0)
        for start, stop in ((first, first + wasted[0] * (last - first)), (last - wasted[1] * (last - first), last)):
            axes.axvspan(start, stop, color=style.GRID, lw=0, zorder=0)
            if stop - start > 0.07 * (last - first):
                axes.text(0.5 * (start + stop), 0.5 * entropy, "< 1 %", ha="center", va="center", size="small")
        axes.axhline(entropy, color=style.MUTED, lw=0.9, ls=(0, (4, 3)))
        place = {"xytext": (-4, 3), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate("H(x)", (last, entropy), color=style.MUTED, **place)
        axes.set_xlim(first, last)
        axes.set_ylim(min(0.0, 1.08 * entropy), max(1.12 * float((value + 2 * error).max()), 1.12 * entropy))
        axes.set_xlabel("u" if last == 1 else "t")
        axes.set_ylabel("I(x; z), nats")
        top = axes.secondary_xaxis("top")
        ticks = np.linspace(first, last, 6)
        log_snr = -np.interp(ticks, level, gamma)
        top.set_xticks(ticks, [f"{one:.1f}".replace("-", "−") for one in log_snr])
        top.set_xlabel("log-SNR")
    return axes


def rate_distortion(
    bits: Any, error: Any, rmse: Any, total: float, ax: Axes | None = None, reached: str = "lossless"
) -> Axes:
    """Draw the distortion of x̂(z_t) against the bits of z_T … z_t, with a band of two errors of the bits, and the bits of x itself.

    Args:
        bits, error, rmse: (K,) from the noisiest latent; bits and their errors in bits/dim, rmse in levels. Errors that are not finite are not
            drawn.
        total: bits/dim after which x is known.
        ax: matplotlib axes; by default those of a new figure.
        reached: what is written there.

    >>> ax = rate_distortion([0.0, 0.5, 1.5], [0.0, 0.1, 0.1], [4.0, 1.0, 0.1], 2.0, style.figure(4.0, 2.0).subplots())
    >>> ax.lines[0].get_xdata().tolist(), ax.lines[0].get_ydata().tolist()
    ([0.0, 0.5, 1.5], [4.0, 1.0, 0.1])
    """
    bits, error, rmse = (np.asarray(values, dtype=float) for values in (bits, error, rmse))
    with _on(ax, 3.0) as axes:
        axes.plot(bits, rmse, color=style.BLUE, **({"marker": "o", "ms": 3} if len(bits) <= 2 * _MARKED else {}))
        wide = np.where(np.isfinite(error), 2 * error, 0.0)
        axes.fill_betweenx(rmse, bits - wide, bits + wide, color=style.BLUE, alpha=0.3, lw=0)
        axes.plot([total], [0.0], marker="D", ms=5, color=style.ORANGE, clip_on=False, zorder=3, ls="none")
        place = {"xytext": (-4, 6), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(f"{reached}: {total:.2f}", (total, 0.0), color=style.MUTED, **place)
        axes.set(xlabel="bits per dimension for z_T … z_t", ylabel="RMSE of x̂, levels", ylim=(0, None))
        axes.set_xlim(0, 1.02 * max(total, float((bits + wide).max())))
    return axes


def traces(
    found: Mapping[str, Sequence[Mapping[str, Any]]], entropy: float, ax: Axes | None = None, of: str = "I(x; z), nats"
) -> Axes:
    """Draw a quantity of several models during training, against the fraction of training, with H(x).

    Values were computed at the marks only, and the pale lines between them are guides. Models differ by colour, marker and dash, and
    their marks are moved apart sideways, so that curves which lie on each other can be read.

    Args:
        found: {name: [{"step", "value", "error"}, …]}, at most six models.
        entropy: H(x), nats.
        ax: matplotlib axes; by default those of a new figure.
        of: the label of the y axis.

    >>> points = [{"step": 0, "value": 0.1, "error": 0.01}, {"step": 9, "value": 5.0, "error": 0.1}]
    >>> ax = traces({"VAE": points}, 6.9, style.figure(4.0, 2.0).subplots())
    >>> ax.containers[0].lines[0].get_ydata().tolist()
    [0.1, 5.0]
    """
    with _on(ax, 3.0) as axes:
        axes.set(xlim=(-0.02, 1.02), ylim=(min(0.0, 1.18 * entropy), max(0.0, 1.18 * entropy)))
        axes.axhline(entropy, color=style.MUTED, lw=0.9, ls=(0, (4, 3)))
        place = {"xytext": (4, 4), "textcoords": "offset points", "va": "bottom"}
        axes.annotate("H(x)", (0.0, entropy), color=style.MUTED, **place)
        looks = zip(style.COLOURS, style.MARKERS, style.DASHES, strict=True)
        ends = []
        for number, ((name, trace), (colour, marker, dash)) in enumerate(zip(found.items(), looks, strict=False)):
            value, error = (np.array([point[key] for point in trace], dtype=float) for key in ("value", "error"))
            part = np.array([point["step"] for point in trace]) / max(1, trace[-1]["step"])
            part = part + 0.007 * (number - (len(found) - 1) / 2)
            axes.plot(part, value, color=colour, ls=dash, lw=0.9, alpha=0.55)
            axes.errorbar(part, value, 2 * error, fmt=marker, color=colour, ms=4.5, mfc="white", mew=1.1, capsize=2)
            ends.append((float(value[-1]), name, colour))
        style.end_labels(axes, ends)
        axes.set_xlabel("fraction of training")
        axes.set_ylabel(f"{of} (± 2 standard errors)")
    return axes


# Keys of losses in metrics.jsonl, by objective, and what they are.
_CONTRASTIVE = "contrastive_loss"
_LOSSES = {
    "loss": "bits per dimension",
    "simple_loss": "L_simple",
    "hybrid_loss": "L_hybrid",
    _CONTRASTIVE: "nats per pair",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """The training losses (N,) at `steps` and the validation bounds (M,) at `validated` of a run; `label` is the unit of the losses, and
    `is_bound` is whether they are bounds, as those are. The validations of a contrastive encoder are its loss, `validates_bound=False`.
    """

    steps: np.ndarray
    losses: np.ndarray
    validated: np.ndarray
    bounds: np.ndarray
    label: str
    is_bound: bool
    validates_bound: bool = True


def traces_of(metrics: Sequence[Mapping[str, Any]]) -> Trace:
    """Return the losses and validation bounds of the lines of metrics.jsonl.

    >>> trace = traces_of([{"step": 1, "loss": 4.0}, {"step": 2, "validation": 3.0}])
    >>> trace.losses.tolist(), trace.bounds.tolist(), trace.label
    ([4.0], [3.0], 'bits per dimension')
    """

    def column(key: str) -> tuple[np.ndarray, np.ndarray]:
        found = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        pairs = np.array(found, dtype=float).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    key = next((name for name in _LOSSES if any(name in line for line in metrics)), "loss")
    return Trace(*column(key), *column("validation"), _LOSSES[key], key == "loss", key != _CONTRASTIVE)


def training(
    steps: Any, loss: Any, validation: tuple[Any, Any] | None = None, ax: Axes | None = None, unit: str = "nats"
) -> Axes:
    """Draw training losses against steps, with their running median, and validation bounds.

    Args:
        steps, loss: (N,), nats.
        validation: steps (M,) and bounds (M,), or None.
        ax: matplotlib axes; by default those of a new figure.
        unit: the label of the y axis.

    >>> ax = training([1, 2, 3], [9.0, 7.0, 6.0], ([3], [6.5]), style.figure(4.0, 2.0).subplots())
    >>> [line.get_ydata().tolist() for line in ax.lines]
    [[9.0, 7.0, 6.0], [6.5]]
    """
    steps, loss = np.asarray(steps, dtype=float), np.asarray(loss, dtype=float)
    with _on(ax, 2.6) as axes:
        axes.plot(steps, loss, color=style.BLUE, lw=0.8, alpha=0.6, label="training")
        if validation is not None and len(validation[0]):
            axes.plot(*validation, "o-", color=style.VERMILION, ms=4, label="validation")
        shown = np.concatenate(
            [loss[len(loss) // 20 :], [] if validation is None else np.asarray(validation[1], dtype=float)]
        )
        shown = shown[np.isfinite(shown)]
        if len(shown):
            # The first losses are often many times larger than all others.
            low, high = shown.min(), np.quantile(shown, 0.98)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * ((high - low) or 1.0))
        axes.legend(loc="upper right")
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
    return axes


def bounds(rows: Mapping[str, tuple[float, float, float]], unit: str, ax: Axes | None = None, zero: str = "") -> Axes:
    """Draw estimates as dots, from the top, with thick bars of ± 2 Monte Carlo errors and thin ones of ± 2 errors over items.

    Args:
        rows: {name: (value, Monte Carlo error, error over items)}; errors that are not finite are not drawn.
        unit: for the label of the axis.
        ax: matplotlib axes; by default those of a new figure.
        zero: what a value of zero means, for differences; a line marks it.

    >>> ax = bounds({"a": (1.0, 0.1, 0.2), "b": (2.0, 0.1, math.nan)}, "nats", style.figure(4.0, 2.0).subplots())
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['a', 'b']
    """
    with _on(ax, 0.9 + 0.34 * len(rows)) as axes:
        for row, (value, error, items) in enumerate(rows.values()):
            for off, width in ((items, 1.0), (error, 3.2)):
                if off > 0 and math.isfinite(off):
                    axes.plot([value - 2 * off, value + 2 * off], [row, row], color=style.BLUE, lw=width)
            axes.plot([value], [row], "o", color=style.BLUE, ms=5)
            axes.annotate(
                _number(value, error),
                (value, row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                size="small",
            )
        axes.set_yticks(range(len(rows)), list(rows), parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)
        if zero:
            axes.axvline(0, color=style.MUTED, lw=0.9, ls=(0, (4, 3)))
        axes.set_xlabel(
            f"{unit}{f'; 0: {zero}' if zero else ''} (thick: ± 2 errors, Monte Carlo; thin: ± 2 errors over items)"
        )
    return axes


def several_levels(found: Mapping[str, tuple[Any, Any, Any, Any]], ax: Axes | None = None, bars: int = _BARS) -> Axes:
    """Draw the costs of the levels of several models, {name: (kl, error, edges, gamma)} as in `levels`, as lines with bands.

    >>> ax = several_levels({"a": ([1.0, 3.0], [0.1, 0.1], [1, 2, 3], [-2.0, 0.0, 2.0])}, style.figure(4.0, 2.0).subplots())
    >>> ax.get_ylabel()
    'KL, nats per unit of log-SNR'
    """
    with _on(ax, 2.8) as axes:
        along, left, right = "", math.inf, -math.inf
        looks = zip(style.COLOURS, style.DASHES, strict=True)
        for (name, (kl, error, edges, gamma)), (colour, dash) in zip(found.items(), looks, strict=False):
            groups = grouped(kl, error, edges if gamma is None else gamma, bars)
            places = groups.edges if gamma is None else -groups.edges
            axes.stairs(groups.density, places, color=colour, lw=1.3, ls=dash, label=name, baseline=None)
            spread = 2 * np.nan_to_num(groups.density_error)
            axes.stairs(
                groups.density + spread,
                places,
                baseline=groups.density - spread,
                fill=True,
                color=colour,
                alpha=0.3,
                lw=0,
            )
            along, left, right = _along(edges, gamma), min(left, places.min()), max(right, places.max())
        if axes.get_ylim()[0] > 0:
            axes.set_ylim(0, None)
        axes.set_xlim((left, right) if along != "log-SNR" else (right, left))
        axes.set_xlabel(f"{along} (little noise on the left)", parse_math=False)
        axes.set_ylabel(f"KL, nats per unit of {along}")
        axes.legend(loc="upper right")
    return axes
