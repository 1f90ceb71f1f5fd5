"""How many network evaluations an error costs: the plan against the ways in use, and what each of its ingredients brings.

    python benchmarks/cost_to_error.py --run runs/demo [--repeats 100] [--out benchmarks/results/cost_to_error-digits.json]
    python benchmarks/cost_to_error.py --run runs/mnist --set-size 10000 --repeat-items 500 --sweep-items 40 --sweeps 2

The model of a run is put on DDPM's linear β with T = 1000 latents, whatever it was trained on (its network is conditioned on
log-SNR), and evaluated on the run's test split. The ways:

    (a) sweep       every level once for every item (improved-diffusion's way): 999 evaluations per item
    (b) uniform     t uniform, independent
    (c) vdm         t stratified over the batch, one uniform offset (Kingma et al. 2021, I.1)
    the plan        levels from a pilot, constants per cell, control variates (evaluation/plan.py), and each part of it alone

For (b), (c) and the plan the error is the observed spread of the data set's mean over `repeats` evaluations of
`--repeat-items` items with `K` evaluations each; for (a), of which 100 repeats would cost days, it is pooled over the items from
`sweeps` sweeps each (items are independent: items × (sweeps − 1) degrees of freedom). Spreads scale to a set of `--set-size` items by
1/√items, which is exact where items are independent ((a), (b), the plan) and was checked for (c) by FINDINGS-like runs at two K.
"K for ±0.01" is K · (spread/0.01)²: evaluations per item, the pilot aside; `ratio` compares two ways at equal error.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor

from diffusional.evaluation import Plan, evaluate
from diffusional.evaluation.controls import NAMES
from diffusional.evaluation.sweep import sweep
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.forward import GaussianDiffusion
from diffusional.ledger import per_unit
from diffusional.models.chain import batch_rows
from diffusional.models.diffusion import DiffusionModel
from diffusional.schedule import linear
from diffusional.timesteps import Stratified, Uniform
from diffusional.training.build import build_dataset
from diffusional.training.loop import train
from diffusional.training.recipes import digits
from diffusional.training.run import load, read_run

TARGET = 0.01
WHOLE = "plan: importance + constants + all controls"
# The plan with parts of it left out: (controls, constants, importance).
PLANS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "importance": ((), False, True),
    "importance + constants": ((), True, True),
    "importance + constants + Wiener": (("wiener",), True, True),
    "importance + constants + histogram": (("histogram",), True, True),
    "importance + constants + moments": (("moments",), True, True),
    "importance + constants + Wiener and moments": (("wiener", "moments"), True, True),
    WHOLE: (NAMES, True, True),
    "constants + all controls, uniform t": (NAMES, True, False),
}


def opened(run: Path) -> tuple[DiffusionModel, Tensor, Tensor, str]:
    """A run's model on DDPM's linear β, training items for pilots, the test items, and the data's name; the digits' recipe, if there is
    no such run.
    """
    if not run.exists():
        train(digits(), run)
    config, trained = read_run(run).config, load(run)
    assert isinstance(trained, DiffusionModel)
    model = DiffusionModel(GaussianDiffusion(linear(1000)), trained.denoiser, trained.likelihood).eval()
    dataset = build_dataset(config.data)
    reference = dataset.space.encode(dataset.train[: len(dataset.train) // max(1, 2 * config.data.warps)])
    return model, reference, dataset.encode("test"), config.data.name


def plan_for(
    model: DiffusionModel, reference: Tensor, evaluations: int, seed: int, parts: tuple[tuple[str, ...], bool, bool]
) -> Plan:
    """A plan with some of its parts: without constants, π ∝ the root mean square cost; without importance, π ∝ levels."""
    controls, constants, importance = parts
    plan = Plan.fit(model, reference, evaluations, seed, controls)
    width = (plan.edges[1:] - plan.edges[:-1]).double()
    if not constants:
        second = (plan.scale.square() + plan.constant.square()).sqrt()
        share = torch.cat([second[:1] * (plan.mass[:1] > 0), width * second[1:]])
        mass = 0.9 * share / share.sum() + 0.1 * (plan.mass > 0) / (plan.mass > 0).sum()
        plan = replace(plan, constant=torch.zeros_like(plan.constant), mass=mass)
    if not importance:
        first = plan.mass[:1]
        plan = replace(plan, mass=torch.cat([first, (1 - first) * width / width.sum()]))
    return plan


def means(
    model: DiffusionModel, plan: Plan, x: Tensor, each: int, repeats: int, seed: int
) -> tuple[list[float], Tensor]:
    """The data set's mean NELBO of every repeat, and the variance of one draw of every item (N,).

    An item's draws are independent: `each` of them at a time are as many repeats.
    """
    draws = VisitRecords(model, plan, x, seed)
    everything = torch.arange(len(x))
    draws.extend(everything, torch.full((len(x),), each * repeats))
    records, filled = draws.parts(everything)
    values = records.total
    by_repeat = values.view(len(x), repeats, each).mean((0, 2)) + draws.known().mean()
    return by_repeat.tolist(), draws.spread(values, filled)[1] * each * repeats


@torch.inference_mode()
def at_random(
    model: DiffusionModel, x: Tensor, each: int, repeats: int, stratified: bool, generator: torch.Generator
) -> tuple[list[float], float]:
    """(b) and (c): the mean KL part of every repeat, and the mean variance of one draw of an item.

    The reconstruction and the prior are left out: on these schedules neither has noise to speak of.
    """
    sampler = Stratified() if stratified else Uniform()
    values, squares = [], []
    for _ in range(repeats):
        drawn = sampler.sample(len(x) * each, model.timesteps, generator)
        costs = []
        for rows in torch.arange(len(x) * each).split(min(2048, batch_rows(model.space))):
            noise = torch.randn(len(rows), *x.shape[1:], generator=generator)
            costs.append(model.kl_at(x[rows // each], drawn.level[rows], noise) * drawn.weight[rows])
        by_item = torch.cat(costs).view(len(x), each)
        values.append(float(by_item.mean()))
        squares.append(float(by_item.var(1).mean()))
    return values, statistics.fmean(squares)


def summarise(rows: dict[str, dict[str, Any]], pilots: list[int], levels: int, size: int) -> dict[str, Any]:
    """Ratios at equal error. The repeats' spread tells K to 14 %; the spread within items, by which (a) is known too, better."""
    ours, swept = rows[WHOLE], rows["(a) full sweep"]
    uniform, vdm = rows["(b) uniform t"], rows["(c) VDM's low-discrepancy t"]
    k, pooled = ours["K for ±0.01"], rows[f"pilot of {max(pilots)}"]["K for ±0.01"]
    return {
        "K for ±0.01": k,
        "K for ±0.01, pooled within items": pooled,
        "K for ±0.01 with pilot": {p: rows[f"pilot of {p}"]["K with pilot"] for p in pilots},
        "audit per item": levels / size,
        "fewer than (a)": swept["K for ±0.01"] / k,
        "fewer than (a), both pooled within items": swept["K for ±0.01"] / pooled,
        "fewer than (b)": uniform["K for ±0.01"] / k,
        "fewer than (c)": vdm["K for ±0.01"] / k,
        "per item: variance below (c) at 64": (vdm["per_item_error_at_64"] / ours["per_item_error_at_64"]) ** 2,
        "per item: evaluations for the sweep's error": 64
        * (ours["per_item_error_at_64"] / swept["sweep_item_error"]) ** 2,
    }


def whole_evaluation(model: DiffusionModel, x: Tensor, reference: Tensor | None) -> dict[str, Any]:
    """Evaluate all items to the target with a pilot of its own, on reference items or on the items themselves."""
    whole = evaluate(model, x, TARGET, reference=reference, seed=1)
    evaluations = whole.provenance["evaluations"]
    print(whole.nelbo.to("bits/dim", model.space.dimensions), evaluations, whole.caveats, flush=True)
    return {
        "items": len(x),
        "nelbo": whole.nelbo.to("bits/dim", model.space.dimensions).to_dict(),
        "evaluations": evaluations,
        "audit": whole.provenance["audit"],
        "per item without pilot and audit": evaluations["draws"] / len(x),
        "per item in all": whole.nelbo.network_evaluations / len(x),
        "reached": whole.reached,
        "caveats": list(whole.caveats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-benchmark"))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--each", type=int, default=4, help="evaluations per item of the plan's repeats")
    parser.add_argument("--each-random", type=int, default=16, help="evaluations per item of (b) and (c)")
    parser.add_argument("--repeat-items", type=int, default=None)
    parser.add_argument("--set-size", type=int, default=None, help="items that the errors are scaled to")
    parser.add_argument("--sweep-items", type=int, default=None)
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--pilots", type=int, nargs="+", default=[1000, 1500, 3000])
    parser.add_argument(
        "--plan-count", type=int, default=4, help="plans, each from a pilot of its own, behind every row"
    )
    parser.add_argument("--plans", nargs="+", default=[""], help="only the plans whose names begin so")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    started = time.monotonic()
    model, reference, everything, data = opened(options.run)
    generator = torch.Generator().manual_seed(0)
    some = everything[torch.randperm(len(everything), generator=generator)]
    x = some[: options.repeat_items or len(some)]
    size = options.set_size or len(x)
    bit = per_unit("bits/dim", model.space.dimensions)
    rows: dict[str, dict[str, Any]] = {}

    def note(name: str, each: int, spread: float, n: int, item_variance: float, **more: Any) -> None:
        """`spread` in nats of the mean over n items with `each` evaluations; `item_variance` of an item's one evaluation."""
        scaled = spread / bit * math.sqrt(n / size)
        rows[name] = {
            "evaluations_per_item": each,
            "error": scaled,
            "K for ±0.01": each * (scaled / TARGET) ** 2,
            "per_item_error_at_64": math.sqrt(item_variance / 64) / bit,
            **more,
        }
        print(name, {k: round(v, 5) if isinstance(v, float) else v for k, v in rows[name].items()}, flush=True)

    full: list[float] = []
    for name, parts in PLANS.items():
        if not any(name.startswith(wanted) for wanted in options.plans):
            continue
        plans = [plan_for(model, reference, max(options.pilots), seed, parts) for seed in range(options.plan_count)]
        spreads, variances = [], []
        for seed, plan in enumerate(plans):
            values, variance = means(model, plan, x, options.each, -(-options.repeats // len(plans)), seed)
            spreads.append(statistics.variance(values))
            variances.append(float(variance.mean()))
        note(name, options.each, math.sqrt(statistics.fmean(spreads)), len(x), statistics.fmean(variances))
        full = variances if name.startswith("plan") else full
    for pilot in options.pilots:
        # The largest pilot's plans have been at work above.
        plans = (
            []
            if pilot == max(options.pilots)
            else [plan_for(model, reference, pilot, 50 + seed, PLANS[WHOLE]) for seed in range(6)]
        )
        variances = [float(means(model, plan, x, 16, 1, 9)[1].mean()) for plan in plans] or full
        k = statistics.fmean(variances) / bit**2 / size / TARGET**2
        rows[f"pilot of {pilot}"] = {
            "K for ±0.01": k,
            "scatter over plans": statistics.stdev(variances) / statistics.fmean(variances),
            "pilot per item": pilot / size,
            "K with pilot": k + pilot / size,
        }
        print(f"pilot of {pilot}", rows[f"pilot of {pilot}"], flush=True)
    for name, stratified in (("(b) uniform t", False), ("(c) VDM's low-discrepancy t", True)):
        values, variance = at_random(model, x, options.each_random, options.repeats, stratified, generator)
        note(name, options.each_random, statistics.stdev(values), len(x), variance)
    swept = some[: options.sweep_items or len(some)]
    pooled = sweep(model, swept, draws=options.sweeps)
    variance = float(pooled.per_item["error"].square().mean()) * options.sweeps
    note(
        "(a) full sweep",
        model.timesteps or 0,
        math.sqrt(variance / len(swept)),
        len(swept),
        64 * variance,
        sweep_item_error=math.sqrt(variance) / bit,
    )
    summary = summarise(rows, options.pilots, model.timesteps or 0, size)
    print(json.dumps(summary, indent=1))
    whole = {
        "one evaluation to ±0.01": whole_evaluation(model, everything, reference),
        "one evaluation to ±0.01, pilot on its items": whole_evaluation(model, everything, None),
    }
    result = {
        "rows": rows,
        "summary": summary,
        **whole,
        "repeats": options.repeats,
        "items": len(x),
        "scaled to items": size,
        "sweep": {"items": len(swept), "sweeps": options.sweeps},
        "data": data,
        "seconds": time.monotonic() - started,
        "machine": machine(),
    }
    if options.out is not None:
        save(options.out, result)


if __name__ == "__main__":
    main()
