"""What does the context control bring? Evaluations for ± 0.01 bits/dim with and without it, its own evaluations counted.

    python benchmarks/context.py --run RUN [--pilots 1000 3000] [--plans 3] [--each 8] [--repeats 60] [--out benchmarks/results/context-digits.json]

For plans from several pilots, every item of the test set gets `each` draws. K is the number of network evaluations per item for ± 0.01
bits/dim of the data set's mean, from the spread within items; with the context control it includes the one evaluation of every item for its
context. "item" is the same for one item's score to ± 0.1 bits/dim. Means and their errors show that both estimate the same; the spread of repeated evaluations is compared with the reported errors.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from cost_to_error import opened
from provenance import machine, save

from diffusional.evaluation import Plan
from diffusional.evaluation.controls import FURTHER, NAMES
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.ledger import per_unit


def measured(
    model: Any, reference: torch.Tensor, x: torch.Tensor, options: Any, pilot: int, names: Any
) -> dict[str, Any]:
    """The two numbers of evaluations, by plan, and the seconds of what is done for every item and for every visit."""
    n, bit = len(x), per_unit("bits/dim", model.space.dimensions)
    rows: dict[str, list[float]] = {"K": [], "item": [], "mean": [], "error": [], "ms an item": [], "ms a visit": []}
    for seed in range(options.plans):
        plan = Plan.fit(model, reference, pilot, seed, controls=names)
        start = time.process_time()
        records = VisitRecords(model, plan, x, seed)
        prepared = time.process_time()
        records.extend(torch.arange(n), torch.full((n,), options.each))
        done = time.process_time()
        values, filled = records.values()
        _, variance = records.spread(values, filled)
        one, context = float(variance.mean()) * options.each / bit**2, int(plan.takes_context)
        found = records.nelbo().to("bits/dim", model.space.dimensions)
        rows["K"].append(one / n / 0.01**2 + context)
        rows["item"].append(one / 0.1**2 + context)
        rows["mean"].append(found.value)
        rows["error"].append(found.error)
        rows["ms an item"].append(1000 * (prepared - start) / n)
        rows["ms a visit"].append(1000 * (done - prepared) / n / options.each)
    mean = {name: round(statistics.fmean(values), 4) for name, values in rows.items()}
    return mean | {
        "K of each plan": [round(k, 3) for k in rows["K"]],
        "error": math.hypot(*rows["error"]) / options.plans,
    }


def honest(model: Any, reference: torch.Tensor, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Repeat an evaluation under one plan with other seeds: the spread of the means over the reported error, and the items' scores alike."""
    plan, n = Plan.fit(model, reference, 1000, 0, controls=(*NAMES, *FURTHER)), len(x)
    means, errors, scores, variances = [], [], [], []
    for seed in range(repeats):
        records = VisitRecords(model, plan, x, 1000 + seed)
        records.extend(torch.arange(n), torch.full((n,), 4))
        mean, variance = records.spread(*records.values())
        found = records.nelbo()
        means.append(found.value)
        errors.append(found.error)
        scores.append(records.known() + mean)
        variances.append(variance)
    of_items = torch.stack(scores).var(0).mean() / torch.stack(variances).mean()
    error = math.sqrt(statistics.fmean(e * e for e in errors))
    return {
        "repeats": repeats,
        "spread of the mean over its error": statistics.stdev(means) / error,
        "spread of an item's score over its error": math.sqrt(float(of_items)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pilots", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--plans", type=int, default=3)
    parser.add_argument("--each", type=int, default=8, help="draws of every item")
    parser.add_argument(
        "--repeats", type=int, default=60, help="evaluations under one plan, for the spread of their means"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "context-digits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, reference, x, _ = opened(options.run)
    record: dict[str, Any] = {"machine": machine(1), "items": len(x), "plans": options.plans, "rows": {}}
    for pilot in options.pilots:
        for name, names in (("without", NAMES), ("with", (*NAMES, *FURTHER))):
            row = record["rows"][f"pilot of {pilot}, {name} context"] = measured(
                model, reference, x, options, pilot, names
            )
            print(pilot, name, row, flush=True)
            save(options.out, record)
    record["errors"] = honest(model, reference, x, options.repeats)
    print(record["errors"], flush=True)
    save(options.out, record)


if __name__ == "__main__":
    main()
