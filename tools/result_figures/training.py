"""Figures of the pages about training."""

from matplotlib.axes import Axes
from result_tables.common import record

from diffusional.report import style
from result_figures.common import dots, figure, rows, stacked


@figure(1.7)
def overhead(axes: Axes) -> str:
    """The time of a training pass of the network, of the head, and of the bound."""
    found = record("overhead.json")["training"]
    head = [row["milliseconds_without_module"]["head"] for row in found.values()]
    bound = [row["milliseconds_without_module"]["loss"] - one for row, one in zip(found.values(), head, strict=True)]
    module = [row["milliseconds"]["module"] for row in found.values()]
    shares = [100 * row["loss_share_of_module_beyond_head"] for row in found.values()]
    stacked(
        axes,
        [f"{name} head" for name in found],
        {"network": (style.BLUE, module), "levels head": (style.ORANGE, head), "the bound": (style.VERMILION, bound)},
        [
            f"head {one:.1f} ms, bound {two:.1f} ms: {share:.1f} %"
            for one, two, share in zip(head, bound, shares, strict=True)
        ],
    )
    axes.set_xlim(0, 200)
    axes.set_xlabel("milliseconds of a training pass (interleaved medians)")
    return (
        f"Of a training pass the network takes {module[0]:.0f} to {module[1]:.0f} ms, the levels head {head[0]:.1f} to {head[1]:.1f} ms and the "
        f"bound {bound[0]:.1f} to {bound[1]:.1f} ms, which is {shares[0]:.1f} to {shares[1]:.1f} % of the network's time."
    )


@figure(2.3, columns=2, width_ratios=(1.35, 1))
def training_speed(left: Axes, right: Axes) -> str:
    """Time and memory of training, relative to plain PyTorch and to other libraries."""
    data = record("training_speed.json")
    step, same = (
        data["overhead_one_thread"]["unet"]["ours_over"],
        data["throughput_one_thread"]["same_network"]["ours_over"],
    )
    ratios = {
        "bare network": step["network"],
        "+ clipping, average": step["network_clip_ema"],
        # The record has our images per second over theirs.
        "plain PyTorch": _inverse(same["plain"]),
        "diffusers' example": _inverse(same["diffusers"]),
        "denoising-diffusion-pytorch": _inverse(same["denoising-diffusion-pytorch"]),
    }
    y = rows(left, list(ratios))
    dots(left, [one["ratio"] for one in ratios.values()], y, [2 * one["error"] for one in ratios.values()])
    left.axvline(1, color=style.MUTED, lw=1)
    left.axhline(1.5, color=style.GRID, lw=1)
    left.set_xlim(0.91, 1.09)
    left.set_title("time of our step over theirs")
    left.set_xlabel("ratio (bars: ± 2 standard errors)")
    memory = data["memory"]
    kinds = {"noise prediction": "noise", "levels head": "levels"}
    y = rows(right, list(kinds))
    for key, colour, marker, text in (
        ("ours_over_plain", style.BLUE, "o", "training"),
        ("with_validation_over_plain", style.VERMILION, "s", "with validation"),
    ):
        values = [memory[kind][key] for kind in kinds.values()]
        dots(right, values, y, colour=colour, fmt=marker)
        for place, value in zip(y, values, strict=True):
            label = f"{value:.2f}" + (f"\n{text}" if place == 0 else "")
            right.annotate(
                label,
                (value, place),
                xytext=(0, -8),
                textcoords="offset points",
                ha="center",
                va="top",
                color=colour,
                size=8,
            )
    right.axvline(1, color=style.MUTED, lw=1)
    right.set_xlim(0.95, 1.3)
    right.set_title("memory over plain PyTorch's")
    right.set_xlabel("ratio")
    bare = step["network"]
    return (
        f"A training step takes {bare['ratio']:.3f} ± {bare['error']:.3f} times the bare network's, and as long as that of plain PyTorch with "
        f"clipping and average and of two other libraries. Training needs {memory['levels']['ours_over_plain']:.2f} to "
        f"{memory['noise']['ours_over_plain']:.2f} times plain PyTorch's memory."
    )


def _inverse(speed: dict[str, float]) -> dict[str, float]:
    return {"ratio": 1 / speed["ratio"], "error": speed["error"] / speed["ratio"] ** 2}
