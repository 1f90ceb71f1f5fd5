"""The tables of the page on text."""

from result_tables.common import markdown, record

_ESTIMATORS = (
    ("mdlm", "MDLM: one t a sequence, low discrepancy over the data set, weight 1/t"),
    ("llada", "LLaDA: systematic numbers of masks over an item's draws, weight L/n"),
    ("plan, no control", "a plan over numbers of masks, constants only"),
    ("plan", "a plan with the control `neighbours`"),
)


def masked_text_bounds() -> str:
    """Bits per character of the test text: the bound, the chain rule, Markov models and compressors."""
    data = record("masked-text.json")
    bound, order = data["bound"], data["left to right"]
    rows = [
        ["masked diffusion, bound", f"{bound['bits']:.3f} ± {bound['error']:.3f}", f"± {bound['over items']:.3f}"],
        ["the same network from left to right, another model", f"{order['bits']:.3f}", f"± {order['over items']:.3f}"],
    ]
    rows += [[f"Markov model of order {n}", f"{bits:.3f}", ""] for n, bits in data["markov"].items()]
    for name in ("bz2", "xz"):
        rows.append([f"{name}, after the training text", f"{data['compressors'][name]:.3f}", ""])
    return markdown(["model", "bits per character", "over items"], rows)


def masked_text_estimators() -> str:
    """Evaluations of each item for ± 0.01 bits per character, and the variance of an item's score, of the estimators."""
    data, rows = record("masked-text.json"), []
    plan = data["estimators"]["plan"]
    for key, name in _ESTIMATORS:
        one = data["estimators"][key]
        ratio = one["variance of an item"] / plan["variance of an item"]
        k = one["K for ± 0.01 bits"]
        bits = f"{one['mean, bits']:.4f} ± {one['error, bits']:.4f}"
        rows.append([name, f"{k:.1f}", f"{k / plan['K for ± 0.01 bits']:.1f}", f"{ratio:.1f}", bits])
    return markdown(
        ["estimator", "K for ± 0.01", "relative to the plan", f"an item at {data['draws']} draws, relative", "mean"],
        rows,
    )
