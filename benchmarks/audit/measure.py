"""How large are the faults of public likelihood code? Each one beside the right number, on digits and MNIST.

    python benchmarks/audit/measure.py --data MNIST [--networks runs/audit] [--only PART …] [--sets digits MNIST] [--quick]

    chain      faults of chains like DDPM's: bins, decoder, prior, subsets of levels, one noise, L_simple, clipping, units
    densities  faults of dequantised densities: half bins, offsets, a missing entropy
    essay      the essay author's own chain: transitions scored at their own level, networks paired with the wrong level
    masked     t on [ε, 1] averaged as [0, 1]
    flow       steps shared by a batch, one trace probe
    latents    bins of grey levels for the latents of an autoencoder

Every fault is written again here, in a few lines: no code is copied. Sizes are the faulty number less the right one, in
bits/dim, with a standard error, and each is derived a second time by another route, such as a closed form or the
library's own evaluation with other noise. `agree` means within three standard errors of the difference, or within the
accuracy of the second route where that is an approximation.

The networks of two data sets are trained first if `--networks` does not have them (3 minutes on one core); the
measurements take about 6. Parts are merged into the JSON, so that they can be measured one by one.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import chain
import densities
import essay
import flow
import latents
import masked
import torch
import trained
from provenance import machine, save

PARTS = ("chain", "densities", "essay", "masked", "flow", "latents")
RESULTS = Path(__file__).parents[1] / "results" / "audit.json"


def measured(part: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cases of a part on a data set."""
    mnist, quick = options.data, options.quick
    if part in ("densities", "latents"):
        return (densities if part == "densities" else latents).run(name, mnist)
    if part == "essay":
        return essay.run(name, mnist, 2 if quick else 100)
    if part == "masked":
        return masked.run(name, mnist, *((4, 400) if quick else (20, 12_000)))
    model = trained.model(name, mnist, options.networks)
    return (chain if part == "chain" else flow).run(name, mnist, model, quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist", help="the folder of MNIST's files")
    parser.add_argument("--networks", type=Path, default=Path("runs/audit"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sets", nargs="+", choices=list(trained.RECIPES), default=list(trained.RECIPES))
    parser.add_argument("--quick", action="store_true", help="a few items, to try the script; give --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"cases": [], "parts": {}}
    for part in options.only:
        for name in options.sets:
            start = time.process_time()
            new = [found | {"part": part} for found in measured(part, name, options)]
            kept = [old for old in record["cases"] if (old["part"], old["data"]) != (part, name)]
            order = {(p, n): i for i, (p, n) in enumerate((p, n) for p in PARTS for n in trained.RECIPES)}
            record["cases"] = sorted(kept + new, key=lambda one: order[one["part"], one["data"]])
            record["parts"][f"{part}, {name}"] = machine(1) | {"cpu_seconds": round(time.process_time() - start)}
            save(options.out, record)
            for one in new:
                size, second = (f"{one[key]['value']:+.5f} ± {one[key]['error']:.5f}" for key in ("size", "second"))
                print(f"{name} {one['fault']} ({one['case']}): {size}; {second}; agree: {one['agree']}", flush=True)


if __name__ == "__main__":
    main()
