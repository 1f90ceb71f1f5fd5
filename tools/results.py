"""Write the tables of docs/results from the JSON of the benchmarks: `make results`.

    python tools/results.py            # write the tables
    python tools/results.py --check    # exit status 1 if a table differs from its JSON

A table stands below a line `<!-- table: NAME -->`, where NAME is a function of this file, and ends at an empty line. Tables without such a
line are written by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "results"
_TABLE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n)\n?(?:\|.*\n)*")
# How the systems of benchmarks/order.py differ.
_DIFFERENCES = {
    ("linear, L_vlb", "DDPM: linear, L_simple"): "objective, sampler",
    ("cosine, L_vlb", "cosine, L_simple"): "objective, sampler",
    ("cosine, L_simple", "DDPM: linear, L_simple"): "schedule",
    ("cosine, L_vlb", "linear, L_vlb"): "schedule",
    (
        "iDDPM: cosine, learned variance, L_vlb",
        "cosine, L_vlb",
    ): "variance of the chain and of the decoder, sampler",
    ("iDDPM: cosine, learned variance, L_hybrid", "cosine, L_simple"): "variance of the chain and of the decoder",
    ("learned γ, T = ∞", "log-SNR-linear, T = ∞"): "shape of γ",
    ("VDM: learned γ and ends, T = ∞", "learned γ, T = ∞"): "ends of γ",
    ("VDM: learned γ and ends, T = ∞", "DDPM: linear, L_simple"): "all but the network",
    (
        "levels: levels head, T = ∞",
        "VDM: learned γ and ends, T = ∞",
    ): "head, decoder, γ and its ends, sampler",
}


def record(name: str) -> dict[str, Any]:
    """Read a JSON file of benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(markdown(["a", "b"], [["1", ""]]), end="")
    | a | b |
    |---|---|
    | 1 |  |
    """
    lines = [header, *rows]
    text = [f"| {' | '.join(cells)} |\n" for cells in lines]
    return text[0] + "|" + "---|" * len(header) + "\n" + "".join(text[1:])


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


def systems() -> str:
    """Test bounds of the systems after equally many steps. † marks means of evaluations that all have a caveat."""
    rows = []
    for name, system in record("order.json")["systems"].items():
        seeds = [system["seeds"][seed] for seed in sorted(system["seeds"])]
        last = [f"{seed['last_level']['value']:.2f}" for seed in seeds if "last_level" in seed]
        clipped = ""
        if system["clipped"]:
            clipped = "{:.3f} ± {:.3f}".format(*system["clipped"]) + _dagger(seeds)
        rows.append(
            [
                name,
                f"{system['bits_per_dim']:.3f} ± {system['error_by_seeds']:.3f}",
                ", ".join(f"{seed['nelbo']['value']:.3f}" for seed in seeds),
                ", ".join(last if len(set(last)) > 1 else last[:1]),
                clipped,
                f"{system['step_seconds']:.3f}",
            ]
        )
    return markdown(["system", "test bound, bits/dim", "seeds", "KL_(T−1)", "x̂ clipped", "s a step"], rows)


def _dagger(seeds: Sequence[dict[str, Any]]) -> str:
    return "†" if all(seed["clipped"]["caveats"] for seed in seeds) else ""


def gains() -> str:
    """Differences of the systems, as they are and with x̂ clipped."""
    data = record("order.json")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for pair in data["pairs"]:
        names = pair["of"], pair["over"]
        sign = f"{pair['gain']:+.3f} ± {pair['error_by_seeds']:.3f}"
        if pair["bound"] == "clipped":
            sign += _dagger(list(data["systems"][pair["of"]]["seeds"].values()))
        found.setdefault(names, {})[pair["bound"]] = sign
    rows = [
        [*names, _DIFFERENCES[names], bounds["nelbo"], bounds.get("clipped", "")] for names, bounds in found.items()
    ]
    return markdown(["gain of", "over", "differs in", "as it is", "x̂ clipped"], rows)


# Rows of the digits' table: key of the record, name, parameters.
_DIGITS = (
    ("diffusion", "**diffusion** (continuous time)", "177 k"),
    ("hierarchical_vae", "hierarchical VAE, 16 and 12 latents", "633 k"),
    ("vae_diffusion_prior", "VAE with a diffusion prior (T = 500), 16 latents", "1,022 k"),
    ("vae", "VAE, 16 latents", "592 k"),
)


def digits() -> str:
    """Test bounds of the models of the digits after equal time, and of the baselines."""
    data = record("side_by_side.json")
    seeds = [data["seeds"][seed] for seed in sorted(data["seeds"])]
    rows = []
    for key, name, parameters in _DIGITS:
        bounds = [seed[key]["nelbo"]["value"] for seed in seeds]
        mean = f"{sum(bounds) / len(bounds):.4f}"
        tighter = [seed[key].get("importance_weighted_64") for seed in seeds]
        rows.append(
            [
                name,
                parameters,
                *(f"{bound:.4f}" for bound in bounds),
                f"**{mean}**" if key == "diffusion" else mean,
                ", ".join(f"{found['value']:.3f}" for found in tighter if found),
            ]
        )
    for name, found in data["yardsticks"].items():
        rows.append([name, "", f"{found['value']:.4f}", "", "", "", "exact"])
    header = ["model", "parameters", "seed 0", "1", "2", "**mean**", "importance-weighted, K = 64"]
    return markdown(header, rows)


# Rows of binary MNIST's table: key of the record, name, weights, and the costs that are shown with their names.
_BITS = (
    (
        "binomial diffusion, T = 100",
        "**binomial diffusion** (Sohl-Dickstein et al. 2015, β_t = 1/(T − t + 1)), T = 100",
        "91 k",
        {"reconstruction": "−ln p(x\\|z_1)", "kl": "KL", "prior": "prior"},
    ),
    (
        "Gaussian diffusion, levels head, T = ∞",
        "Gaussian diffusion, levels head, T = ∞",
        "91 k",
        {"kl": "KL", "prior": "prior"},
    ),
    (
        "hierarchical VAE, two layers",
        "hierarchical VAE, 40 and 20 latents",
        "3.5 M",
        {"reconstruction": "−ln p(x\\|z)", "kl": "KL", "prior": "prior"},
    ),
    ("VAE", "VAE, 40 latents", "3.4 M", {"reconstruction": "−ln p(x\\|z)", "prior": "prior"}),
    (
        "Gaussian diffusion, levels head, T = 100",
        "Gaussian diffusion, levels head, T = 100",
        "91 k",
        {"kl": "KL", "prior": "prior"},
    ),
)


def binary_mnist() -> str:
    """Test bounds of binary MNIST, nats."""
    rows = []
    for key, name, weights, costs in _BITS:
        system = record("binary_mnist.json")["systems"][key]
        seeds = [system["seeds"][seed] for seed in sorted(system["seeds"])]
        error = system["error_by_seeds"]
        digits = 1 if error >= 0.15 else 2
        bound = f"{system['nats']:.{digits}f} ± {error:.{digits}f}"
        means = {cost: sum(seed["terms"][cost]["value"] for seed in seeds) / len(seeds) for cost in costs}
        rows.append(
            [
                name,
                weights,
                f"**{bound}**" if name.startswith("**") else bound,
                ", ".join(f"{seed['nelbo']['value']:.{digits}f}" for seed in seeds),
                ", ".join(f"{costs[cost]} {_cost(mean)}" for cost, mean in means.items()),
            ]
        )
    return markdown(["model", "weights", "test NELBO, nats", "seeds", "of it, means"], rows)


def _cost(nats: float) -> str:
    """Two decimals below 1, one above, and 0 for nothing.

    >>> _cost(0.131), _cost(4.34), _cost(0.0)
    ('0.13', '4.3', '0')
    """
    return "0" if nats == 0 else f"{nats:.2f}" if nats < 1 else f"{nats:.1f}"


def fault_finder() -> str:
    """Of every planted fault and kind of network, the trials in which it was named exactly and in which something was found."""
    rows = record("fault_finder.json")["rows"]
    kinds = list(dict.fromkeys((row["kind"], row["training"]) for row in rows))
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    cells = {(row["fault"], row["kind"], row["training"]): row for row in rows}

    def cell(fault: str, kind: tuple[str, str]) -> str:
        row = cells.get((fault, *kind))
        if row is None:
            return ""
        found = f"{row['detected']}"
        return found if row["named"] is None or fault == "none" else f"{row['named']}, {found}"

    return markdown(
        ["planted", *(f"{kind}, {training} trained" for kind, training in kinds)],
        [[fault, *(cell(fault, kind) for kind in kinds)] for fault in faults],
    )


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (audit_alarms, fault_finder, calibration, trials, systems, gains, digits, binary_mnist)
}


def written(text: str) -> str:
    """Return a page with its tables written anew."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match['name']]()}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of docs/results from the JSON of the benchmarks.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a table differs")
    args = parser.parse_args()
    different = []
    for page in sorted(PAGES.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = written(old)
        if new != old:
            different.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    if different:
        print(("differ from their JSON: " if args.check else "written: ") + ", ".join(different))
    sys.exit(1 if args.check and different else 0)


if __name__ == "__main__":
    main()
