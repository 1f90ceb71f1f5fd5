"""Tables of the pages about information."""

import math

from diffusional.report.charts import signed
from result_tables.common import markdown, record, sets_of, with_error

# Rows of the table: file, key of its record, data, schedule.
_POINTS = (
    ("memorisation-digits.json", "digits, linear, T = 1000", "digits", "linear β, T = 1000"),
    ("memorisation-digits.json", "digits, linear rescaled, T = 4000", "digits", "linear β rescaled, T = 4000"),
    ("memorisation-digits.json", "digits, log-SNR-linear, T = 1000", "digits", "log-SNR-linear, T = 1000"),
    ("memorisation-mnist.json", "mnist, linear, T = 1000", "MNIST", "linear β, T = 1000"),
)


def memorisation() -> str:
    """Bounds of the exact empirical denoiser on its own points, and their distance from ln N."""
    rows, last = [], ""
    for file, key, data, schedule in _POINTS:
        row = record(file)["rows"][key]
        error = row["nelbo"]["error"]
        name = f"{data}, {row['points']:,} (ln N = {math.log(row['points']):.3f})"
        above = with_error(row["above_entropy"], error).partition(" ")[0]
        rows.append(["" if name == last else name, schedule, with_error(row["nelbo"]["value"], error), above])
        last = name
    return markdown(["N points", "schedule", "NELBO, nats", "above ln N"], rows)


def information() -> str:
    """The curve of I(x; z_t) of MNIST's training images, and the time that it takes."""
    data = record("information.json")
    curve = data["curve"]
    entropy, first, (last, error) = curve["entropy"], curve["information_at_z1"], curve["information_at_zT"]
    rows = [
        [f"H(x) = ln {data['points']:,}", f"{entropy:.4f} nats"],
        [
            "I(x; z_1) under DDPM's linear β",
            "all of it" if f"{first:.4f}" == f"{entropy:.4f}" else f"{first:.4f} nats",
        ],
        ["half of it is lost by", f"t = {curve['half_lost_by_t']:.0f}"],
        ["I(x; z_1000)", f"{last:.5f} ± {error:.5f} nats"],
    ]
    for kind in ("float32", "float64"):
        level = data["one_level"][kind]
        times = f"{level['ratio']:.2f} times the bare matrix product"
        rows.append([f"time of one level, {kind}", f"{level['level_seconds']:.1f} s, {times}"])
    name = "time of the whole curve, 50 levels on shared rays"
    rows.append([name, f"{curve['seconds']:.1f} s, within {data['peak_gigabytes']:.1f} GB"])
    return markdown([f"quantity, MNIST's {data['points']:,} training images", ""], rows)


# Rows of the table: key of the record, name.
_DECODERS = (
    ("VAE, decoder variance 0.05", "variance 0.05"),
    ("VAE, decoder learns its width", "learns its width"),
    ("VAE, decoder variance 2", "variance 2"),
    ("VAE, decoder variance 10", "variance 10"),
)


def information_in_training() -> str:
    """I(x; z) and KL[q(z) ‖ p(z)] at the start, after a tenth and at the end of each training run."""
    traces, rows = record("information_in_training.json")["traces"], []
    for key, name in _DECODERS:
        end = traces[key][-1]
        at = [point for point in traces[key] if point["step"] in (0, end["step"] // 10, end["step"])]
        marginal = [point["marginal_kl"] for point in at]
        rows.append(
            [
                name,
                " → ".join(f"{point['value']:.2f}" for point in at),
                " → ".join(f"{kl:.{1 if kl >= 1 else 2}f}" for kl in marginal),
                f"{end['nelbo_nats']:.1f}",
            ]
        )
    trace = traces["diffusion, γ₁ = 2"]
    found = {with_error(point["value"], point["error"]) for point in trace}
    constant = " / ".join(sorted(found)) + " throughout, on the same draws" * (len(found) == 1)
    nelbos = f"{trace[0]['nelbo_nats']:.1f} → {trace[-1]['nelbo_nats']:.1f}"
    rows.append(["diffusion, γ_1 = 2", constant, "", nelbos])
    header = ["decoder", "I(x; z): start → a tenth of the run → end", "KL[q(z) ‖ p(z)] at these"]
    return markdown([*header, "validation NELBO, nats"], rows)


def masked_budget() -> str:
    """Information, gap and cost of every term of a masked chain, nats."""
    data = record("masked-information.json")["budget"]
    rows = []
    for t, (exact, flat) in enumerate(zip(data["exact"], data["flattened"], strict=True)):
        name = "−ln p(x given z_1)" if t == 0 else f"KL_{t}"
        values = (exact["information"], exact["gap"], exact["cost"], flat["gap"], flat["cost"])
        rows.append([name, *(f"{value:.4f}" for value in values)])
    sums = [
        sum(row[key] for row in data[name])
        for name, key in (
            ("exact", "information"),
            ("exact", "gap"),
            ("exact", "cost"),
            ("flattened", "gap"),
            ("flattened", "cost"),
        )
    ]
    rows.append(["sum", *(f"{value:.4f}" for value in sums)])
    return markdown(["term", "information", "gap, exact", "cost, exact", "gap, flattened", "cost, flattened"], rows)


def masked_markov() -> str:
    """I(x; z_t | z_{t−1}) of the chain and of masks that are drawn anew, nats."""
    rows = [
        [str(row["t"]), "0" if abs(row["chain"]) < 1e-9 else f"{row['chain']:.4f}", f"{row['anew']:.4f}"]
        for row in record("masked-information.json")["markov"]
    ]
    return markdown(["t", "I(x; z_t given z_{t−1}), the chain", "masks drawn anew at every level"], rows)


def masked_steps() -> str:
    """What sampling in few steps costs with exact conditionals: the excess of the bound, and the divergence of the samples, nats."""
    rows = [
        [name, f"{abs(row['excess']):.4f}", f"{abs(row['divergence']):.4f}"]
        for name, row in record("masked-information.json")["steps"].items()
    ]
    return markdown(["steps", "bound − H(x)", "KL of the samples from the data"], rows)


def probes() -> str:
    """Accuracies of linear probes by log-SNR, beside what is possible, and of a VAE's latents."""
    rows, last = [], ""
    for title, its in sets_of("probes.json"):
        for row in sorted(its["levels"], key=lambda row: -row["log_snr"]):
            cells = [_accuracy(row[key]) for key in ("z", "features", "untrained", "features_less_z")]
            possible = [f"{row['bayes']['value']:.3f}", f"{row['fano']:.3f}", f"{row['information']['value']:.2f}"]
            name = "" if title == last else title
            rows.append([name, signed(str(row["log_snr"])), *cells, *possible])
            last = title
        vae = its["vae"]
        rows.append(["", f"VAE, {vae['latents']} latents: means", _accuracy(vae["mean"]), "", "", "", "", "", ""])
        rows.append(["", "VAE: draws", _accuracy(vae["draw"]), "", "", "", "", "", f"{vae['kl_nats']:.2f} (KL)"])
    header = ["data", "log-SNR", "z_t", "features", "untrained", "features − z_t", "Bayes", "Fano", "I(x; z_t), nats"]
    return markdown(header, rows)


def _accuracy(one: dict[str, float]) -> str:
    """Return an accuracy with both errors together, over items and over repeats."""
    error = math.hypot(one["items"], one["noise"])
    text = with_error(one["value"], error) if error > 0 else f"{one['value']:.3f}"
    return text.replace("-", "−")
