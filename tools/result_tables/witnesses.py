"""Tables of the pages about the probability flow and about probes of features."""

import itertools
import math
from typing import Any

from result_tables.common import markdown, record, sets_of, two_digits, with_error

# Settings of the table of errors: the published defaults, and ours.
_SHOWN = {
    "score_sde": (1e-3, 1e-5),
    "flow_matching, Euler": (64,),
    "flow_matching, midpoint": (64,),
    "flow_matching, dopri5": (1e-5,),
    "ours": (1e-2, 1e-3),
}


def _small(value: float) -> str:
    """Return a number with two significant digits, as a power of ten if it is small.

    >>> _small(0.0123), _small(3.21e-6), _small(0.0)
    ('0.012', '3.2e-6', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1e-3:
        return two_digits(value)
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.1f}e{exponent}"


def _setting(row: dict[str, Any]) -> str:
    """Return the setting of a way in words: a tolerance, or a number of steps; and the probes and repeats."""
    value = row["setting"]
    words = f"{value:g} steps" if value >= 2 else f"tolerance {value:g}"
    if row["way"] == "ours":
        return f"{words}, {'exact trace' if row['probes'] == 'exact' else str(row['probes']) + ' probes'}"
    return f"{words}, {'1 probe' if row['repeats'] == 1 else str(row['repeats']) + ' repeats'}"


def ode_errors() -> str:
    """The error of every way at its defaults, and its cost."""
    rows = []
    for world, found in record("ode.json")["errors"].items():
        for row in found:
            if row["setting"] not in _SHOWN[row["way"]]:
                continue
            stated = "none" if row["stated"] is None else _small(row["stated"])
            solver = row["solver_error"] if row["stated"] is None else row["stated_solver"]
            cells = [
                world,
                row["way"],
                _setting(row),
                f"{row['cost']:,.0f}",
                with_error(row["error"], row["error_of_error"]),
            ]
            rows.append([*cells, _small(solver), stated])
    header = ["data", "way", "setting", "evaluations", "error, bits/dim", "of the solver", "stated error"]
    return markdown(header, rows)


def ode_batch() -> str:
    """How far a score depends on the items that it is computed with."""
    rows = []
    for world, found in record("ode.json")["batch"].items():
        for row in found:
            setting = f"{row['setting']:g} steps" if row["setting"] >= 2 else f"tolerance {row['setting']:g}"
            apart = [_small(row[name]["largest"]) for name in ("others", "one far out")]
            rows.append([world, row["way"], setting, *apart])
    return markdown(["data", "way", "setting", "with other items", "with one far from the data"], rows)


def ode_orders() -> str:
    """The error of the solver by the number of steps, and by how much halving the step divides it."""
    rows = []
    for world, found in record("ode.json")["orders"].items():
        for row in found:
            error = row["error"]
            ratios = [a / b if b else math.inf for a, b in itertools.pairwise(error)]
            cells = [f"{2 ** row['order']}", *(f"{ratio:.1f}" for ratio in ratios)]
            rows.append([world, row["way"], _small(error[0]), *cells])
    steps = next(iter(record("ode.json")["orders"].values()))[0]["steps"]
    header = ["data", "way", f"error at {steps[0]} steps, bits/dim", "expected", *(f"÷ at {n}" for n in steps[1:])]
    return markdown(header, rows)


def ode_mass() -> str:
    """The integrals of densities."""
    rows = [
        [str(row["dimensions"]), row["way"], f"{row['points']:,}", f"{row['mass']:.6f}"]
        for row in record("ode.json")["mass"]
    ]
    return markdown(["D", "way", "points", "integral"], rows)


def ode_coverage() -> str:
    """The coverage of 95 % intervals by probes."""
    found = record("ode.json")["coverage"]
    names = {"items": "one item", "means": f"the mean of {found['group']} items"}
    rows = []
    for key, name in names.items():
        one = found[key]
        rows.append([name, f"{one['repeats']:,}", f"{100 * one['value']:.1f} ± {100 * one['error']:.1f} %"])
    return markdown(["interval of", "repeats", "coverage"], rows)


def _accuracy(one: dict[str, float]) -> str:
    """Return an accuracy with its error over items and noise."""
    error = math.hypot(one["items"], one["noise"])
    return with_error(one["value"], error) if error > 0 else f"{one['value']:.3f}"


def probes() -> str:
    """The accuracies by noise level."""
    rows = []
    for title, its in sets_of("probes.json"):
        for row in its["levels"]:
            possible = [
                f"{row['information']['value']:.2f}",
                f"{row['bayes']['value']:.3f}",
                _accuracy(row["kernel"]),
            ]
            own = [_accuracy(row[name]) for name in ("z", "untrained", "features")]
            rows.append(
                [title, f"{row['log_snr']:g}".replace("-", "−"), *possible, *own, _accuracy(row["features_less_z"])]
            )
    header = [
        "data",
        "log SNR",
        "I(x; z_t), nats",
        "Bayes, training images",
        "the same, test images",
        "probe of z_t",
        "of an untrained network",
        "of features",
        "features − z_t",
    ]
    return markdown(header, rows)


def probes_of_vaes() -> str:
    """The accuracies of probes of the latents of VAEs."""
    rows = [
        [title, str(its["vae"]["latents"]), f"{its['vae']['bits_per_dim']:.3f}", f"{its['vae']['kl_nats']:.1f}"]
        + [_accuracy(its["vae"][name]) for name in ("mean", "draw")]
        for title, its in sets_of("probes.json")
    ]
    header = ["data", "latents", "NELBO, bits/dim", "KL, nats", "probe of the means", "probe of draws"]
    return markdown(header, rows)
