"""The variance of the bound of continuations given their prompts, by four estimators at equal numbers of network evaluations.

    python benchmarks/prompts.py --run RUN [--items 60] [--repeats 20] [--out benchmarks/results/prompts.json]

RUN is a folder of `diffusional train … --data.name text --model.kind masked`, or a state dict that `masked_text.py --quick` trained. An item is the
first `--length` characters of a block of the embedded test text. Its last F characters are the continuation, F uniform over the numbers of a set, and
what is before them is the prompt. Estimators, each with `--visits` network evaluations of an item:

    continuations     four replicates of visits/4 numbers of masks, spread over 1 … F; no more evaluations than there are masks, 2^F − 1
    evaluate          `df.evaluate` under a plan
    log_prob          `df.log_prob` without a plan
    log_prob, plan    `df.log_prob` under the same plan

The plan of a set is from a pilot on the training text with prompts of the same set; the pilot's evaluations are not counted. A ratio has the mean over
items of the variance of an item's estimate, over repetitions, a ÷ b. Its error is that of a ratio of two means over the items,

    √(Σ_i (a_i − r b_i)²/(N (N − 1)))/b̄,      r = ā/b̄,

which contains both the error of the N variances and the spread of the items.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from masked_text import loaded
from provenance import commit, machine, save
from torch import Tensor

import diffusional as df
from diffusional.data.tokens import load_text
from diffusional.evaluation import Plan
from diffusional.evaluation.continuations import continuations, evaluations
from diffusional.models.prompted import PromptedDiffusion, of_lengths, prompts_of_lengths

# The least and the largest number of free positions of the items of a set.
SETS = {"15 to 18": (15, 18), "3 to 30": (3, 30)}
REFERENCE, REPLICATES = "continuations", 4


def given_prompts(blocks: Tensor, length: int, free: tuple[int, int], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the first `length` tokens (N, length) of blocks, and their prompts, which leave from free[0] to free[1] tokens at the end."""
    x = blocks[:, :length].contiguous()
    number = torch.randint(free[0], free[1] + 1, (len(x),), generator=torch.Generator().manual_seed(seed))
    return x, prompts_of_lengths(x, length - number, torch.full((len(x),), length))


def ratio(a: Tensor, b: Tensor) -> dict[str, float]:
    """Return the ratio of the means of a and b (N,) over items, and its standard error."""
    value = float(a.mean() / b.mean())
    apart = a - value * b
    return {"ratio": value, "error": float(apart.std() / len(a) ** 0.5 / b.mean())}


def scores(
    model: PromptedDiffusion, x: Tensor, condition: dict[str, Tensor], plan: Plan, visits: int, repeats: int
) -> dict[str, Tensor]:
    """Return the bounds (repeats, N) of items, nats, by every estimator."""

    def evaluated(seed: int) -> Tensor:
        found = df.evaluate(
            model, x, visits=visits, plan=plan, condition=condition, audit=False, every_item=True, seed=seed
        )
        return found.per_item["nelbo"][found.per_item["item"].argsort()]

    ways: dict[str, Callable[[int], Tensor]] = {
        REFERENCE: lambda seed: continuations(model, x, condition, visits=visits, seed=seed).per_item["nelbo"],
        "evaluate": evaluated,
        "log_prob": lambda seed: -df.log_prob(model, x, visits, condition=condition, seed=seed),
        "log_prob, plan": lambda seed: -df.log_prob(model, x, visits, condition=condition, plan=plan, seed=seed),
    }
    with torch.inference_mode():
        return {name: torch.stack([way(1000 + r).double() for r in range(repeats)]) for name, way in ways.items()}


def measured(
    model: PromptedDiffusion, test: Tensor, train: Tensor, free: tuple[int, int], given: Any
) -> dict[str, Any]:
    """Return the variances of an item's estimate and their ratios to that of `continuations`, for items with so many free positions."""
    x, condition = given_prompts(test[: given.items], given.length, free, seed=0)
    pilot, of_pilot = given_prompts(train, given.length, free, seed=1)
    plan = Plan.fit(model, pilot, given.pilot, condition=of_pilot)
    found = scores(model, x, condition, plan, given.visits, given.repeats)
    number = model.free(condition)
    variances = {name: one.var(0) for name, one in found.items()}
    rows = {
        name: ratio(variances[name], variances[REFERENCE])
        | {
            "variance of an item": float(variances[name].mean()),
            "mean": float(one.mean()),
            "error of the mean": float(one.mean(1).std()) / given.repeats**0.5,
        }
        for name, one in found.items()
    }
    taken = evaluations(number, given.visits // REPLICATES, REPLICATES)
    return {
        "items": len(x),
        "mean free positions": float(number.double().mean()),
        "exact items": int((variances[REFERENCE] == 0).sum()),
        "evaluations of an item by continuations": float(taken.double().mean()),
        "estimators": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--length", type=int, default=32, help="characters of prompt and continuation together")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--visits", type=int, default=16, help="network evaluations of an item")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--pilot", type=int, default=2000, help="network evaluations of the pilot")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prompts.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    whole, trained = loaded(given.run)
    data = load_text("text", length=whole.space.dimensions)
    model = of_lengths(whole.requires_grad_(False).eval(), given.length)
    record: dict[str, Any] = {
        "model": trained,
        "length": given.length,
        "visits": given.visits,
        "repeats": given.repeats,
        "pilot": given.pilot,
        "machine": machine(),
        "commit": commit(),
        "sets": {},
    }
    for name, free in SETS.items():
        record["sets"][name] = measured(model, data.encode("test"), data.encode("train"), free, given)
        print(name, record["sets"][name], round(time.process_time() - started), flush=True)
    record["cpu_seconds"] = round(time.process_time() - started)
    save(given.out, record)


if __name__ == "__main__":
    main()
