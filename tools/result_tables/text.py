"""The tables of the page on text."""

from result_tables.common import markdown, record

_ESTIMATORS = (
    ("mdlm", "MDLM: one t a sequence, low discrepancy over the data set, weight 1/t"),
    ("llada", "LLaDA: systematic numbers of masks over an item's draws, weight L/n"),
    ("plan, no control", "a plan over numbers of masks, constants only"),
    ("plan, neighbours", "with the control `neighbours`"),
    ("plan, pilot", "with `neighbours` and `window`, from a pilot of 2,000 evaluations"),
    ("plan", "**the same from visits of the training, without a pilot**"),
    ("plan, disjoint masks", "the same, with disjoint masks of an item (a trial)"),
    ("plan, replicates", "the same, as two replicates of stratified levels and disjoint masks (`by_replicates`)"),
)


def masked_text_bounds() -> str:
    """Bits per character of the test text: the bound, the chain rule, an autoregressive model, Markov models and compressors."""
    data = record("masked-text.json")
    bound, order = data["bound"], data["left to right"]
    left = "the same network from left to right, another model"
    if "blocks" in order:
        left += f" (the first {order['blocks']} blocks, whose bound is {order['bound of these blocks']:.3f})"
    rows = [
        ["masked diffusion, bound", f"{bound['bits']:.3f} ± {bound['error']:.3f}", f"± {bound['over items']:.3f}"],
        [left, f"{order['bits']:.3f}", f"± {order['over items']:.3f}"],
    ]
    if (causal := data.get("autoregressive")) is not None:
        name = f"autoregressive transformer of the same size, {causal['cpu_seconds']} s"
        rows.append([name, f"{causal['bits']:.3f}", f"± {causal['over items']:.3f}"])
    rows.append(["uniform over 27 characters", "4.755", ""])
    rows += [[f"Markov model of order {n}", f"{bits:.3f}", ""] for n, bits in data["markov"].items()]
    for name in ("bz2", "xz"):
        rows.append([f"{name}, after the training text", f"{data['compressors'][name]:.3f}", ""])
        rows.append([f"{name}, of the test text", f"{data['compressors'][f'{name}, by itself']:.3f}", ""])
    return markdown(["model", "bits per character", "over items"], rows)


def masked_text_estimators() -> str:
    """Evaluations of each item for ± 0.01 bits per character, and the variance of an item's score, of the estimators."""
    data, rows = record("masked-text.json"), []
    found = data["estimators"]
    theirs = [found[key] for key in ("mdlm", "llada")]
    for key, name in _ESTIMATORS:
        # Measured since the estimator exists.
        if key not in found:
            continue
        one = found[key]
        k, variance = one["K for ± 0.01 bits"], one["variance of an item"]
        less = [f"{other['K for ± 0.01 bits'] / k:.1f}" for other in theirs]
        less += [f"{other['variance of an item'] / variance:.1f}" for other in theirs]
        bits = f"{one['mean, bits']:.4f} ± {one['error, bits']:.4f}"
        rows.append([name, f"{k:.1f}", *less, bits])
    draws = data["draws"]
    return markdown(
        [
            "estimator",
            "K for ± 0.01",
            "MDLM's K ÷ it",
            "LLaDA's ÷ it",
            f"an item at {draws}: MDLM's variance ÷ its",
            "LLaDA's ÷ its",
            "mean",
        ],
        rows,
    )


def masked_text_steps() -> str:
    """Bits per character of the same network in T steps, and what the independence of positions in a step costs."""
    found = record("masked-text.json")["steps"]
    least = found["one at a time"]
    rows = []
    for name, one in found.items():
        apart = (one["error"] ** 2 + least["error"] ** 2) ** 0.5
        gap = "" if one is least else f"{one['bits'] - least['bits']:.3f} ± {apart:.3f}"
        rows.append([name, f"{one['bits']:.3f} ± {one['error']:.3f}", gap])
    return markdown(["steps T", "bits per character", "above one at a time"], rows)


_PROMPTED = (
    ("continuations", "`continuations`"),
    ("evaluate", "`df.evaluate` with a plan"),
    ("log_prob", "`df.log_prob` without a plan"),
    ("log_prob, plan", "`df.log_prob` with a plan"),
)


def prompts() -> str:
    """The variance of the bound of a continuation, by estimator and numbers of free positions."""
    rows = []
    for free, found in record("prompts.json")["sets"].items():
        for key, name in _PROMPTED:
            one = found["estimators"][key]
            over = f"{one['ratio']:.2f} ± {one['error']:.2f}" if key != "continuations" else "1"
            mean = f"{one['mean']:.2f} ± {one['error of the mean']:.2f}"
            rows.append([free, name, f"{one['variance of an item']:.2f}", over, mean])
    header = ["free positions", "estimator", "variance of an item, nats²", "÷ that of `continuations`", "mean, nats"]
    return markdown(header, rows)


def masked_digits() -> str:
    """Both families of diffusions of the digits: bits per dimension, steps, time and weights."""
    names = {"masked": "masked diffusion of 17 categories", "gaussian": "Gaussian diffusion, preset `digits`"}
    rows = [
        [
            name,
            f"{one['bits']:.3f} ± {one['error']:.3f}",
            f"± {one['over items']:.3f}",
            f"{one['weights']:,}",
            f"{one['steps']:,}",
            f"{one['cpu_seconds']}",
        ]
        for key, name in names.items()
        for one in [record("masked-digits.json")["models"][key]]
    ]
    return markdown(["model", "bits/dim", "over items", "weights", "steps", "CPU-seconds"], rows)
