"""The memorisation bound: the exact empirical denoiser pays ln N for its own N points, and the discretisation (MATH (16)).

    python benchmarks/memorisation.py [--data digits ../shared/data/mnist] [--points N] [--items 300] [--error 0.02 | --draws N]

The optimal denoiser of N training images (the posterior mean of their mixture) under DDPM's linear β at T = 1000 and 4000, and under
log-SNR-linear time at T = 1000, with a narrow discretised Gaussian around x̂ for a decoder, evaluated on training images. The bound must approach
H(x) = ln N from above; what is left is the discretisation, which falls with T. For large data the tables of the plan's controls take
longer than the draws: --draws makes a nat budget instead, whose gaps are computed apart, MATH (20).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation import evaluate
from diffusional.information import budget

SCHEDULES = {
    "linear, T = 1000": lambda: schedule.linear(steps=1000),
    "linear rescaled, T = 4000": lambda: schedule.linear(steps=4000, rescale=True),
    "log-SNR-linear, T = 1000": lambda: schedule.log_snr_linear(-9.2, 9.2, steps=1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "../shared/data/mnist"])
    parser.add_argument("--items", type=int, default=300, help="training images that are scored")
    parser.add_argument(
        "--points", type=int, default=None, help="N, the first of the training images; all unless given"
    )
    parser.add_argument("--error", type=float, default=0.02, help="Monte Carlo error, nats")
    parser.add_argument("--draws", type=int, default=None, help="by a nat budget of so many draws, for large data")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memorisation.json")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    for name in options.data:
        dataset = df.data.load(name, levels=17 if name == "digits" else 256)
        x = dataset.encode("train")[: options.points]
        world = exact.Finite(x)
        some = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: options.items]]
        for kind in options.schedules:
            started = time.monotonic()
            # Around x̂, which knows the point: z_1 alone would not tell one of 256 levels from its neighbours.
            decoder = likelihood.DiscretizedGaussian(dataset.space, variance=1e-6)
            model = df.DiffusionModel(df.GaussianDiffusion(SCHEDULES[kind]()), world.denoiser("data"), decoder)
            key = f"{Path(name).name}, {kind}"
            rows[key] = {"points": len(x), "entropy": world.entropy()}
            if options.draws is None:
                found = evaluate(model, some, options.error, "nats", audit=False)
                value, error, evaluations = found.nelbo.value, found.nelbo.error, found.nelbo.network_evaluations
            else:
                books = budget(
                    model, world, cells=20, samples=options.draws, generator=torch.Generator().manual_seed(0)
                )
                value, error, evaluations = books.total.cost.value, books.total.cost.error, 21 * options.draws
                rows[key] |= {"gaps": books.total.gap.to_dict(), "residual": books.total.residual.to_dict()}
            rows[key] |= {
                "nelbo": {"value": value, "error": error, "unit": "nats"},
                "above_entropy": value - world.entropy(),
                "network_evaluations": evaluations,
                "seconds": round(time.monotonic() - started, 1),
            }
            print(name, kind, json.dumps(rows[key]), flush=True)
    record = {
        "rows": rows,
        "machine": machine(),
    }
    save(options.out, record)


if __name__ == "__main__":
    main()
