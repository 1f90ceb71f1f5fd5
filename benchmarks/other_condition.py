"""The error of the difference of two conditions of one model, by plans that are fitted to one bound and to the difference.

    python benchmarks/other_condition.py --run runs/digits-500 [--train] [--repeats 6] [--out FILE]

A label-conditional model of the digits is trained for 500 steps (--train; half a minute of CPU). Its bound under the labels of the items is
compared with that under another condition, label 3 for all or the labels of other items, `--visits` network evaluations of each test item in
all, by three pairs of plans from pilots on training items:

    one bound     the pilot, the levels and the control variates of the first condition, also for the second
    own controls  the same levels; the control variates of the second condition are fitted to its own pilot
    contrasted    besides, the levels are chosen by the difference of the two costs at the visits of the first pilot (`Plan.contrasted`)

The record has for each the mean reported error of the difference, the spread of the difference over `--repeats` seeds, and the mean error of
the first bound.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from torch import Tensor

import diffusional as df
from diffusional.training import recipes

# Visits of a pilot, as the command line has.
_PILOT = 3000


def config() -> df.Config:
    """Return the config of the model."""
    plain = recipes.digits()
    data = dataclasses.replace(plain.data, condition="label", warps=1)
    return dataclasses.replace(plain, data=data, condition_dropout=0.1, steps=500, validate_every=250)


def of_others(c: Tensor) -> Tensor:
    """Return labels (N,) in which every item has that of another, by one random cycle."""
    order = torch.randperm(len(c), generator=torch.Generator().manual_seed(1))
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return c[found]


def plans(model: Any, x: Tensor, c: Tensor, other: Tensor) -> dict[str, tuple[df.Plan, df.Plan]]:
    """Return the pairs of plans, from pilots on items x (N, *dims) under both conditions."""
    first = df.Plan.fit(model, x, _PILOT, seed=0, condition=c)
    same = df.Plan.fit(model, x, _PILOT, seed=0, condition=c, like=first)
    across = df.Plan.fit(model, x, _PILOT, seed=0, condition=other, like=first, across=True)
    return {"one bound": (first, same), "own controls": (first, across), "contrasted": first.contrasted(across)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run folder of the model")
    parser.add_argument("--train", action="store_true", help="train the model first, or continue its training")
    parser.add_argument("--visits", type=int, default=16, help="network evaluations of each item, over both conditions")
    parser.add_argument("--repeats", type=int, default=6, help="seeds of the spread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "other_condition.json")
    options = parser.parse_args()
    if options.train:
        df.train(config(), options.run, resume=options.run.exists())
    run = df.load_run(options.run)
    model, began = run.model, time.perf_counter()
    data = df.data.load("digits", condition="label")
    x, c, pilot, labels = (data.encode("test"), data.condition_of("test"), *train_items(data))
    assert isinstance(c, Tensor)
    rows: list[dict[str, Any]] = []
    for name, changed in (("label 3", lambda c: torch.full_like(c, 3)), ("labels of other items", of_others)):
        for plan, pair in plans(model, pilot, labels, changed(labels)).items():
            found = [
                df.compare(
                    model,
                    model,
                    x,
                    1e-9,
                    "nats",
                    seed=seed,
                    plans=pair,
                    max_evaluations=options.visits * len(x),
                    audit=False,
                    condition=c,
                    other_condition=changed(c),
                )
                for seed in range(options.repeats)
            ]
            values = [one.difference.value for one in found]
            rows.append(
                {
                    "other": name,
                    "plan": plan,
                    "difference_nats": statistics.fmean(values),
                    "error_nats": statistics.fmean(one.difference.error for one in found),
                    "spread_nats": statistics.stdev(values),
                    "bound_error_nats": statistics.fmean(one.a.nelbo.error for one in found),
                    "network_evaluations": found[0].difference.network_evaluations,
                }
            )
            print(rows[-1], flush=True)
    record = {
        "items": len(x),
        "visits": options.visits,
        "repeats": options.repeats,
        "pilot": _PILOT,
        "comparisons": rows,
        "config": run.config.to_dict(),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }
    save(options.out, record)


def train_items(data: Any) -> tuple[Tensor, Tensor]:
    """Return the training items, encoded, and their labels."""
    labels = data.condition_of("train")
    assert isinstance(labels, Tensor)
    return data.encode("train"), labels


if __name__ == "__main__":
    main()
