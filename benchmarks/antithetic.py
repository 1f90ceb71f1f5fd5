"""Do antithetic pairs (ε, −ε) pay? The variance of a pair's mean over that of the mean of two independent draws, under the plan.

    python benchmarks/antithetic.py [--run runs/digits-benchmark] [--pairs 8] [--out benchmarks/results/antithetic-digits.json]

An item's draw is w r, r = cost − g at a level and a noise of the plan's (evaluation/plan.py (a)), w = 1/q. Of a pair, which has one level,

    m = w (r(ε) + r(−ε))/2,      ratio = 2 Var m / Var w r,

within items, of the test set; above one a pair is worse than two draws of their own, each with a level of its own. Also the correlation of
r(ε) with r(−ε) within a cell. With the plan's controls and without them; over four plans, each from a pilot of its own.
"""

import argparse
import statistics
from pathlib import Path

import torch
from cost_to_error import PLANS, opened, plan_for
from provenance import machine, save
from seeds import pm, spread
from torch import Tensor

from diffusional.evaluation import Plan
from diffusional.models.diffusion import DiffusionModel


@torch.inference_mode()
def pairs(model: DiffusionModel, plan: Plan, x: Tensor, each: int, seed: int) -> tuple[float, float]:
    """The ratio, and the mean over cells of the correlation, weighted by what the cells carry of the variance."""
    generator = torch.Generator().manual_seed(seed)
    n = len(x) * each
    visits = plan.at(torch.rand(n, generator=generator, dtype=torch.float64))
    noise = torch.randn(n, *x.shape[1:], generator=generator)
    items = x.repeat_interleave(each, 0)
    sides = [visits.weight * plan.residuals(model, items, visits, sign * noise) for sign in (1, -1)]
    plus, minus = sides
    of_pair = (0.5 * (plus + minus)).view(-1, each).var(1).mean()
    of_one = 0.5 * sum(side.view(-1, each).var(1).mean() for side in sides)
    carried, correlated = 0.0, 0.0
    for cell in visits.cell.unique().tolist():
        both = torch.stack(sides)[:, visits.cell == cell]
        if both.shape[1] > 20:
            share = float(both.var(1).mean()) * both.shape[1]
            carried += share
            correlated += share * float(torch.corrcoef(both)[0, 1])
    return float(2 * of_pair / of_one), correlated / carried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-benchmark"))
    parser.add_argument("--pairs", type=int, default=8, help="of every item")
    parser.add_argument("--plans", type=int, default=4)
    parser.add_argument("--pilot", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "antithetic-digits.json")
    options = parser.parse_args()
    model, reference, x, _ = opened(options.run)
    rows = {}
    for name in ("importance + constants", "plan: importance + constants + both"):
        found = []
        for seed in range(options.plans):
            plan = plan_for(model, reference, options.pilot, seed, PLANS[name])
            found.append(pairs(model, plan, x, options.pairs, seed))
        ratio, error = spread(r for r, _ in found)
        rows[name] = {"ratio": ratio, "error_by_plans": error, "correlation": statistics.fmean(c for _, c in found)}
        print(f"{name}: {pm(ratio, error, 3)}, correlation {rows[name]['correlation']:+.2f}", flush=True)
    save(options.out, {"machine": machine(), "rows": rows, "pairs_of_an_item": options.pairs, "items": len(x)})


if __name__ == "__main__":
    main()
