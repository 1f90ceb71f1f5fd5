"""Tables of the pages about evaluations."""

import math
from itertools import pairwise
from typing import Any

from result_tables.common import evaluations, markdown, record, two_digits, with_error


def audit_alarms() -> str:
    """How often the audit refused each healthy model."""
    rows = [
        [
            name,
            f"{model['bits_per_dim']:.2f}",
            f"{model['by_audit']} of {model['seeds']}",
            f"{model['by_draws']} of {model['seeds']}",
            f"{model['error_over_sd']:.2f}",
        ]
        for name, model in record("audit_alarms.json")["models"].items()
    ]
    header = ["model", "bits/dim", "refused by the audit", "error rests on few draws", "error / spread"]
    return markdown(header, rows)


def calibration() -> str:
    """How often the intervals of each world contained the truth."""
    rows = []
    for name, case in record("calibration.json")["cases"].items():
        if "coverage_reached" in case and not _of_trials(case):
            row = [name, *_covered(case), f"{case['error_over_sd']:.2f}", f"{case['bias_over_sd']:+.2f}"]
            rows.append([*row, case.get("commit", "")])
    return markdown(
        ["case", "repeats", "network evaluations", "covered", "error / spread", "bias / spread", "commit"], rows
    )


def trials() -> str:
    """The same of the worlds in which evaluations had failed, with those that reached their target without a caveat."""
    rows = []
    for name, case in record("calibration.json")["cases"].items():
        if _of_trials(case):
            reached = f"{100 * case['coverage_reached']:.1f} %" if case["share_reached"] else ""
            rows.append(
                [name, *_covered(case), f"{100 * case['share_reached']:.0f} %", reached, case.get("commit", "")]
            )
    header = ["case", "repeats", "network evaluations", "covered", "reached", "covered, of those reached", "commit"]
    return markdown(header, rows)


def _covered(case: dict[str, Any]) -> list[str]:
    covered = f"{100 * case['coverage']:.1f} ± {100 * case['coverage_error']:.1f} %"
    return [f"{case['evaluations']:,}", f"{case['network_evaluations']:,.0f}", covered]


def _of_trials(case: dict[str, Any]) -> bool:
    return bool(case.get("trial"))


def fault_finder() -> str:
    """For every network and planted fault, the trials in which it was named exactly and in which something was found."""
    rows = record("fault_finder.json")["rows"]
    networks = list(dict.fromkeys((row["network"], row["kind"], row["training"], row["trials"]) for row in rows))
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    faults = ["none", *sorted(set(faults) - {"none"}, key=faults.index)]
    cells = {(row["fault"], row["network"], row["kind"], row["training"]): row for row in rows}

    def cell(fault: str, network: tuple[str, str, str, int]) -> str:
        row = cells.get((fault, *network[:3]))
        if row is None:
            return ""
        found = f"{row['detected']}"
        return found if row["named"] is None or fault == "none" else f"{row['named']}, {found}"

    return markdown(
        ["network", "trials", *faults],
        [
            [
                f"{name} of {kind}, {training}",
                f"{trials}",
                *(cell(fault, (name, kind, training, trials)) for fault in faults),
            ]
            for name, kind, training, trials in networks
        ],
    )


# Data sets, models and scores of the table of outliers: key of the record, name.
_OUTLIER_SETS = (("digits", "digits"), ("mnist", "MNIST"), ("cifar10", "CIFAR-10"))
_OUTLIER_COLUMNS = (
    ("diffusion", "nelbo", "diffusion: NELBO"),
    ("diffusion", "typicality", "typicality"),
    ("diffusion", "profile", "profile"),
    ("gaussian", "nelbo", "Gaussian: −ln p"),
    ("gaussian", "typicality", "typicality"),
    ("mixture", "nelbo", "mixture: −ln p"),
    ("mixture", "typicality", "typicality"),
)


def outliers() -> str:
    """For every kind of outliers, the AUROC of each score of each model, with its standard error in the last two digits."""
    sets = record("outliers.json")["sets"]
    rows = []
    for key, name in _OUTLIER_SETS:
        models = sets.get(key, {}).get("models", {})
        for kind in next(iter(models.values()), {}).get("outliers", {}):
            cells = [f"{name}, {kind}"]
            for model, score, _ in _OUTLIER_COLUMNS:
                area = models[model]["outliers"][kind]["auroc"][score] if model in models else None
                cells.append("" if area is None else f"{area['value']:.3f} ± {area['error']:.3f}")
            rows.append(cells)
    return markdown(["outliers", *(name for _, _, name in _OUTLIER_COLUMNS)], rows)


def outlier_costs() -> str:
    """For every kind of outliers, the mean costs of the ordinary items and of the outliers, bits/dim, and the error of a single item."""
    sets = record("outliers.json")["sets"]
    rows = []
    for key, name in _OUTLIER_SETS:
        models = sets.get(key, {}).get("models", {})
        kinds = list(next(iter(models.values()), {}).get("outliers", {}))
        for kind in (None, *kinds):
            cells = [f"{name}, {kind or 'ordinary items'}"]
            for model in ("diffusion", "gaussian", "mixture"):
                own = models.get(model)
                bits = None if own is None else (own if kind is None else own["outliers"][kind])["bits"]
                cells.append("" if bits is None else f"{bits:.3f}")
            of = models.get("diffusion")
            of = of if of is None or kind is None else of["outliers"][kind]
            rows.append([*cells, "" if of is None else f"{of['item_error_bits']:.3f}"])
    return markdown(["items", "diffusion", "Gaussian", "mixture", "± of one item"], rows)


def foreign_terms() -> str:
    """Of every data set, prediction and variance type, the largest relative difference of a term from the scheduler's own step."""
    rows = record("foreign_terms.json")["rows"]
    data = list(dict.fromkeys(row["data"] for row in rows))
    cells = {(row["data"], row["prediction"], row["variance"]): row for row in rows}

    def cell(*key: str) -> str:
        row = cells.get(key)  # type: ignore[call-overload]
        if row is None:
            return ""
        found = [row[name] for name in ("kl", "prior", "reconstruction")]
        return f"{max(one for one in found if one is not None):.0e}" + ("*" if None in found else "")

    return markdown(
        ["prediction_type", "variance_type", *data],
        [
            [prediction, variance, *(cell(name, prediction, variance) for name in data)]
            for prediction, variance in dict.fromkeys((row["prediction"], row["variance"]) for row in rows)
        ],
    )


# Rows of the digits' table of costs: key of the record, name.
_ESTIMATORS = (
    ("(b) uniform t", "uniform t"),
    ("(c) VDM's low-discrepancy t", "low-discrepancy t (VDM)"),
    ("importance", "levels by importance, from a pilot"),
    ("importance + constants", "+ a constant for each cell"),
    ("importance + constants + Wiener", "+ control: Wiener's filter"),
    ("importance + constants + histogram", "+ control: histogram"),
    ("importance + constants + moments", "+ control: moments of the noise"),
    ("importance + constants + Wiener and moments", "+ controls: Wiener's filter and moments"),
    ("plan: importance + constants + all controls", "**+ all three: the plan**"),
    ("constants + all controls, uniform t", "all three, with t uniform"),
)


def cost_to_error_digits() -> str:
    """Network evaluations per item for an error of ± 0.01 bits/dim on the digits, and the error of one item's score."""
    data = record("cost_to_error-digits.json")
    summary, rows = data["summary"], []
    for key, name in _ESTIMATORS:
        row, bold = data["rows"][key], "**" if name.startswith("**") else ""
        pooled = f"**{summary['K for ±0.01, pooled within items']:.1f}**" if bold else ""
        cost, error = evaluations(row["K for ±0.01"]), row["per_item_error_at_64"]
        rows.append([name, bold + cost + bold, pooled, f"{bold}{error:.3f}{bold}"])
    with_pilot = {int(pilot): cost for pilot, cost in summary["K for ±0.01 with pilot"].items()}
    pilots = " / ".join(f"{pilot:,}" for pilot in sorted(with_pilot))
    costs = " / ".join(f"{with_pilot[pilot]:.1f}" for pilot in sorted(with_pilot))
    rows.append([f"the plan, with its pilot of {pilots} counted", "", costs, ""])
    name = "full sweep, T = 1000 (improved-diffusion's way)"
    rows.append([name, "", *_sweep(data["rows"]["(a) full sweep"])])
    return markdown(["estimator", "K for ± 0.01", "K, pooled", "one item's error at 64"], rows)


def cost_to_error_mnist() -> str:
    """The same on MNIST."""
    data = record("cost_to_error-mnist.json")
    summary, rows = data["summary"], []
    for key, name in _ESTIMATORS[:2]:
        row = data["rows"][key]
        rows.append([name, evaluations(row["K for ±0.01"]), f"{row['per_item_error_at_64']:.3f}"])
    rows.append(["full sweep", *_sweep(data["rows"]["(a) full sweep"])])
    plan = data["rows"]["plan: importance + constants + all controls"]
    pilots = summary["K for ±0.01 with pilot"]
    with_pilots = ", ".join(
        f"{two_digits(pilots[key])} with its pilot of {int(key):,}" for key in sorted(pilots, key=int)
    )
    cost = f"**{evaluations(plan['K for ±0.01'])}** ({with_pilots})"
    rows.append(["**the plan**", cost, f"**{plan['per_item_error_at_64']:.3f}**"])
    return markdown(["estimator", "K for ± 0.01 per item", "one item's error at 64"], rows)


def cost_to_error_whole() -> str:
    """Whole evaluations of MNIST's test images to ± 0.01 bits/dim, pilot and audit included."""
    data, rows = record("cost_to_error-mnist.json"), []
    names = {
        "one evaluation to ±0.01": "training images",
        "one evaluation to ±0.01, pilot on its items": "the test images",
    }
    for key, name in names.items():
        one = data[key]
        spent, nelbo = one["evaluations"], one["nelbo"]
        error = f"{nelbo['value']:.4f} ± {nelbo['error']:.4f} (items ± {nelbo['item_error']:.4f})"
        counts = [f"{spent[part]:,}" for part in ("pilot", "audit", "draws")]
        rows.append([name, *counts, f"**{sum(spent.values()):,}**", error])
    return markdown(["pilot on", "pilot", "audit", "draws", "in all", "bits/dim"], rows)


def _sweep(row: dict[str, Any]) -> list[str]:
    pays = row["evaluations_per_item"]
    cost = f"{evaluations(row['K for ±0.01'])} (pays {pays} for ± {row['error']:.4f})"
    return [cost, f"{row['sweep_item_error']:.3f} at {pays}"]


# Estimators of benchmarks/estimators.py: key of the record, name.
_OTHERS = (
    ("the plan", "**the plan**"),
    ("importance, from a pilot", "levels by importance, from a pilot, without controls"),
    ("importance, from γ", "levels by importance, from the schedule"),
    ("low-discrepancy t", "low-discrepancy t (VDM)"),
    ("uniform t", "uniform t"),
    ("full sweep", "full sweep"),
)
_BANDS = "share of the plan's variance by log SNR"
_FOREIGN = {
    "eps-linear": "ε, linear β",
    "eps-cosine": "ε, cosine β",
    "eps-learned": "ε and variance, linear β",
    "v-linear": "v, linear β",
}


def foreign() -> str:
    """Network evaluations per item for ± 0.01 bits/dim, of four U-Nets trained by diffusers."""
    rows = record("foreign.json")["rows"]
    header = ["estimator", *(f"{name}, {rows[kind]['bits/dim']:.2f} bits/dim" for kind, name in _FOREIGN.items())]
    lines = []
    for key, name in _OTHERS:
        found = [rows[kind]["K"][key] for kind in _FOREIGN]
        bold = "**" if key == "the plan" else ""
        lines.append([name, *(f"{bold}{_with_few_digits(one['K'], one['error'])}{bold}" for one in found)])
    return markdown(header, lines)


def _with_few_digits(value: float, error: float) -> str:
    """Return a number of evaluations with its error, with one decimal below 50.

    >>> _with_few_digits(7374.13, 177.4), _with_few_digits(4.489, 0.09)
    ('7,374 ± 177', '4.5 ± 0.1')
    """
    return f"{value:.1f} ± {error:.1f}" if value < 50 else f"{value:,.0f} ± {error:,.0f}"


def foreign_variance() -> str:
    """Where the plan's variance lies on these networks."""
    rows = record("foreign.json")["rows"]
    bands = list(rows["eps-linear"][_BANDS])
    lines = [[name, *(f"{100 * rows[kind][_BANDS][band]:.0f} %" for band in bands)] for kind, name in _FOREIGN.items()]
    return markdown(["log SNR", *(band.replace("-", "−") for band in bands)], lines)


def context() -> str:
    """Network evaluations per item for ± 0.01, and of an item's score for ± 0.1, without and with the context control."""
    found, rows = record("context-digits.json")["rows"], []
    # The evaluations of a pilot with context, which are not in the record.
    for pilot, with_context in ((1000, 1250), (3000, 3500)):
        without, within = found[f"pilot of {pilot}, without context"], found[f"pilot of {pilot}, with context"]
        rows.append(
            [
                f"{pilot:,} ({with_context:,} with context)",
                f"{without['K']:.1f}",
                f"**{within['K']:.1f}**",
                f"{without['item']:.1f}",
                f"**{within['item']:.1f}**",
            ]
        )
    header = ["pilot", "K for ± 0.01, pooled", "with context", "an item's score to ± 0.1", "with context"]
    return markdown(header, rows)


# Rows of the table of seconds: key of the record, what the numbers of a shape are.
_SHAPES = (
    ("cifar", "256 levels (CIFAR-10 images)"),
    ("latents", "real numbers"),
    ("images", "256 levels"),
)


def seconds() -> str:
    """Time outside the network of a pilot and of a visit."""
    rows = []
    for key, kind in _SHAPES:
        row = record("seconds.json")["rows"][key]
        pilot, network = row["pilot"], row["DDPM's U-Net"]
        rows.append(
            [
                f"{' × '.join(map(str, row['shape']))}, {kind}",
                f"{two_digits(pilot['seconds outside the network'])} for {pilot['evaluations']:,} evaluations",
                two_digits(row["draws"]["milliseconds outside the network, each"]),
                f"{1000 * network['seconds a visit']:,.0f}",
                f"{100 * network['seconds outside the network over its own, pilot included']:.1f} %",
            ]
        )
    header = [
        "shape",
        "pilot, seconds outside the network",
        "a visit, ms outside the network",
        "DDPM's U-Net, ms a visit",
        "outside over network, pilot included",
    ]
    return markdown(header, rows)


# Networks of benchmarks/seconds.py: key of the record, name.
_NETWORKS = {
    "levels head": "levels head",
    "eps-linear": "U-Net, ε",
    "v-linear": "U-Net, v",
    "eps-learned": "U-Net, ε and variance",
}
_SETS = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10 subset"}


def estimators() -> str:
    """Evaluations and seconds of whole evaluations to ± 0.01 bits/dim by several estimators."""
    rows = [
        [name, *(_evaluations_and_seconds(row["estimators"][key]) for key, _ in _OTHERS)]
        for name, row in _of_networks()
    ]
    return markdown(["", *(name for _, name in _OTHERS)], rows)


def seconds_each() -> str:
    """Milliseconds of one evaluation: the network alone, a KL at a random t, and a visit under a plan."""
    rows = [
        [name, f"{row['bits/dim']:.2f}", *(two_digits(1000 * row["seconds an evaluation"][key]) for key in _EACH)]
        for name, row in _of_networks()
    ]
    return markdown(["", "bits/dim", *(f"{name}, ms" for name in _EACH.values())], rows)


_EACH = {"network": "the network alone", "random t": "a KL at a random t", "plan": "a visit of the plan"}


def _of_networks() -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of all sets and networks of the record by name."""
    sets, rows = record("seconds.json")["estimators"], []
    for data, called in _SETS.items():
        own = sets[data]["networks"] if data in sets else {}
        rows += [(f"{called}, {name}", own[key]) for key, name in _NETWORKS.items() if key in own]
    return rows


def _evaluations_and_seconds(row: dict[str, Any]) -> str:
    """Return the evaluations of an estimator, to three digits, and its seconds.

    >>> _evaluations_and_seconds({"evaluations": 1734521.5, "seconds": 3331.7})
    '1,730,000, 3,300 s'
    """
    number, taken = float(f"{row['evaluations']:.3g}"), float(f"{row['seconds']:.2g}")
    return f"{number:,.0f}, {taken:,.0f} s" if taken >= 10 else f"{number:,.0f}, {two_digits(taken)} s"


def rare_levels() -> str:
    """How often an evaluation has a caveat if one level costs more than its pilot has seen."""
    cases = record("calibration.json")["cases"]
    rows = []
    for key, name in (
        ("rare level, always", "always"),
        ("rare level, in a tenth of the visits", "in a tenth of the visits"),
    ):
        case = cases[key]
        flagged, audited = f"{100 * case['flagged']:.0f} %", f"{100 * case['flagged_by_audit']:.0f} %"
        caveat = f"**{flagged}** (all by the audit)" if flagged == audited else f"{flagged} ({audited} by the audit)"
        rows.append([name, f"{100 * case['coverage']:.0f} %", caveat])
    header = ["the rare level shows", "interval contains the truth", "the evaluation has a caveat"]
    return markdown(header, rows)


def shards() -> str:
    """Shards that were killed, and the scores of all against those of one process."""
    data = record("shards.json")
    rows = [
        [
            f"shard {number}: killed after",
            f"{shard['killed_after_seconds']:.1f} s, with {shard['bytes_kept']:,} bytes of records",
        ]
        for number, shard in enumerate(data["shards"], 1)
    ]
    means = [data[name] for name in ("mean_of_shards", "mean_of_one_process")]
    rows += [
        ["mean of the shards' scores, nats", with_error(means[0]["value"], means[0]["error"])],
        ["mean of one process, nats", with_error(means[1]["value"], means[1]["error"])],
        ["largest difference of a score, nats", f"{data['largest_difference_of_a_score_nats']:g}"],
    ]
    return markdown([f"{data['items']} items, {data['visits']:,} visits each", ""], rows)


# Budgets of the tables of ways to integrate a flow: network evaluations per item, those for products with the Jacobian included.
_BUDGETS = (100, 300, 1000, 3000)
_WAYS = ("ours", "score_sde", "flow_matching, dopri5", "flow_matching, midpoint", "flow_matching, Euler")


def _within(rows: list[dict[str, Any]], way: str, budget: float) -> dict[str, Any] | None:
    """The setting of a way with the smallest error among those that cost at most `budget`."""
    fits = [row for row in rows if row["way"] == way and row["cost"] <= budget]
    return min(fits, key=lambda row: row["error"], default=None)


def _small(value: float) -> str:
    """Return a number with two significant digits, with an exponent below 0.001."""
    return two_digits(value) if value >= 1e-3 else f"{value:.1e}"


def ode_errors() -> str:
    """The error of an item's log-density by each way, for several budgets, in each world."""
    table = list[list[str]]()
    for world, rows in record("ode.json")["errors"].items():
        for way in _WAYS:
            best = [_within(rows, way, budget) for budget in _BUDGETS]
            table.append([world, way, *("" if row is None else _small(row["error"]) for row in best)])
    return markdown(["world", "way", *(f"≤ {budget:,}" for budget in _BUDGETS)], table)


def ode_stated() -> str:
    """The error that our estimates state beside the one that they have, by tolerance and number of probes."""
    table = [
        [
            world,
            f"{row['setting']:g}",
            str(row["probes"]),
            evaluations(row["cost"]),
            _small(row["error"]),
            _small(row["stated"]),
            _small(row["stated_solver"]),
        ]
        for world, rows in record("ode.json")["errors"].items()
        for row in rows
        if row["way"] == "ours" and (row["setting"] == 1e-3 or row["probes"] == "exact")
    ]
    header = ["world", "tolerance, nats", "probes", "evaluations per item", "error", "stated", "stated, solver"]
    return markdown(header, table)


def ode_coverage() -> str:
    """How often intervals with the stated error contain the exact ln p(x)."""
    found = record("ode.json")["coverage"]
    names = {"items": "ln p(x) of an item", "means": f"the mean of {found['group']} items"}
    table = [
        [
            name,
            f"{found[key]['repeats']:,}",
            f"{100 * found[key]['value']:.1f} ± {100 * found[key]['error']:.1f} %",
        ]
        for key, name in names.items()
    ]
    return markdown(["95 % interval of", "repeats", "covered"], table)


def ode_batch() -> str:
    """How far the score of an item depends on the other items of its batch."""
    table = [
        [
            world,
            row["way"],
            f"{row['setting']:g}",
            *(_small_or_zero(row[key]["largest"]) for key in ("others", "one far out")),
        ]
        for world, rows in record("ode.json")["batch"].items()
        for row in rows
    ]
    header = ["world", "way", "tolerance or steps", "in a batch of 16", "beside an item far out"]
    return markdown(header, table)


def _small_or_zero(value: float) -> str:
    return _small(value) if value > 0 else "0"


def ode_orders() -> str:
    """The error of the solver by the number of steps, and the order between the last two that rounding does not limit."""
    table = list[list[str]]()
    for world, rows in record("ode.json")["orders"].items():
        for row in rows:
            errors = row["error"]
            whole = [math.log2(a / b) for a, b in pairwise(errors) if b > 1e-11]
            table.append(
                [world, row["way"], str(row["order"]), *(_small(one) for one in errors), two_digits(whole[-1])]
            )
    steps = next(iter(record("ode.json")["orders"].values()))[0]["steps"]
    return markdown(["world", "way", "order", *(f"{n} steps" for n in steps), "measured order"], table)


def ode_mass() -> str:
    """The integral of the densities of small networks over a grid."""
    table = [
        [row["way"], str(row["dimensions"]), f"{row['points']:,}", f"{row['mass']:.6f}"]
        for row in record("ode.json")["mass"]
    ]
    return markdown(["way", "dimensions", "points", "integral"], table)
