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


TABLES: dict[str, Callable[[], str]] = {function.__name__: function for function in (audit_alarms, systems, gains)}


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
