"""Figures of the pages about conditional models."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from result_tables.common import record, sets_of

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


def _images(coded: dict[str, Any]) -> np.ndarray:
    """Return images (N, H, W) in [0, 1] of a record's levels."""
    flat = np.frombuffer(base64.b64decode(coded["base64"]), dtype=np.uint8)
    return flat.reshape(coded["shape"]) / (coded["levels"] - 1)


def _mosaic(axes: Axes, images: np.ndarray, columns: int, names: Sequence[str] = (), label: str = "") -> None:
    """Draw images (N, H, W) in rows of `columns`, with a margin between them, the names of the rows, and a label below."""
    n, height, width = images.shape
    cells = np.ones((n // columns, height + 2, columns, width + 2))
    cells[:, 1:-1, :, 1:-1] = 1 - images.reshape(-1, columns, height, width).transpose(0, 2, 1, 3)
    axes.imshow(cells.reshape(-1, columns * (width + 2)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks((np.arange(len(names)) + 0.5) * (height + 2) - 0.5, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(label)


def _drawn(name: str) -> dict[str, Any]:
    return record("presets.json")["presets"][name]["samples"]


def _share(found: dict[str, Any]) -> str:
    return f"{100 * found['accuracy']['value']:.0f} %"


def _both_weights(plain: Axes, strong: Axes, name: str, stage: str) -> dict[str, Any]:
    """Draw a preset's samples, those of one of its stages, without guidance and with w = 2. Returns the record of its samples."""
    found = _drawn(name)
    for axes, weight, names in ((plain, "1", found["asked"]), (strong, "2", ())):
        _mosaic(axes, _images(found[f"w={weight}"]["images"][stage]), found["each"], names, f"w = {weight}")
    return found


@figure(4.6, columns=2, width_ratios=(1, 1))
def presets_unclip(plain: Axes, strong: Axes) -> str:
    """Samples of unclip-small for ten captions, without guidance and with w = 2."""
    found = _both_weights(plain, strong, "unclip-small", "decoder")
    return (
        f"Samples of unclip-small for ten captions such as “{found['asked'][0]}”: without guidance {_share(found['w=1'])} look like their digit, "
        f"with w = 2 {_share(found['w=2'])}."
    )


@figure(4.6, columns=2, width_ratios=(1, 1))
def presets_imagen(plain: Axes, strong: Axes) -> str:
    """Samples of imagen-small for ten captions, without guidance and with w = 2."""
    found = _both_weights(plain, strong, "imagen-small", "last")
    return (
        f"Samples of imagen-small for ten captions such as “{found['asked'][0]}”: without guidance {_share(found['w=1'])} look like their digit, "
        f"with w = 2 {_share(found['w=2'])}."
    )


@figure(1.8)
def presets_imagen_stages(axes: Axes) -> str:
    """One sample of imagen-small for each caption: its stages of 7 × 7, 14 × 14 and 28 × 28 pixels."""
    found = _drawn("imagen-small")
    drawn, each = found["w=2"]["images"], found["each"]
    base, middle, last = (_images(drawn[stage])[::each] for stage in ("base", "middle", "last"))
    rows = np.concatenate([base.repeat(4, 1).repeat(4, 2), middle.repeat(2, 1).repeat(2, 2), last])
    _mosaic(axes, rows, len(last), ("7 × 7", "14 × 14", "28 × 28"), "samples, w = 2")
    return f"{len(last)} samples of imagen-small with w = 2, each as its 7 × 7, 14 × 14 and 28 × 28 pixels."


@figure(0.9)
def presets_interpolation(axes: Axes) -> str:
    """Samples of unclip-small for embeddings between those of two test images, which are at both ends."""
    images = _images(_drawn("unclip-small")["interpolated"])
    _mosaic(axes, images, len(images), (), "test image, samples for embeddings between the two, test image")
    return "Two test images at both ends, and eight samples of unclip-small between them for embeddings on the arc between theirs."


@figure(4.6, columns=2, width_ratios=(1, 1))
def presets_latent(plain: Axes, strong: Axes) -> str:
    """Samples of latent-small for ten labels, without guidance and with w = 2."""
    found = _both_weights(plain, strong, "latent-small", "decoder")
    return (
        f"Samples of latent-small for the labels 0 to 9: without guidance {_share(found['w=1'])} look like their digit, with w = 2 "
        f"{_share(found['w=2'])}."
    )


@figure(1.5)
def presets_digits(axes: Axes) -> str:
    """Samples of digits-cascade: the low resolution above the image."""
    coded = _drawn("digits-cascade")["plain"]["images"]
    low, images = _images(coded["base"]), _images(coded["upsampler"])
    _mosaic(axes, np.concatenate([low.repeat(2, 1).repeat(2, 2), images]), len(images), ("4 × 4", "8 × 8"), "samples")
    return f"{len(images)} samples of digits-cascade of 8 × 8 pixels, and above each the 4 × 4 pixels that it was made from."
