"""Accuracy of classification by likelihood against network evaluations, beside the published way and discriminative classifiers.

    python benchmarks/classification.py --set digits --run runs/digits-classes [--train] [--out FILE]
    python benchmarks/classification.py --set mnist --run runs/mnist14 --data ../shared/data/mnist [--train] [--part ours published …]

The model is that of benchmarks/guidance.py: a diffusion given the label. Ways to classify with it:

    ours         `df.classify`: the differences of the bounds, predicted from visits of evenly spread levels with common noise, adaptively
                 (confidence 0.95), for several `max_visits`
    unweighted   the same with weighting="unweighted"
    all          `ours` without dropping of classes
    plain        the bound as the mean of independent, weighted visits with common noise, all classes to the end
    published    Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier": the error ‖ε − ε̂‖² without weights, at
                 timesteps that are evenly spaced in 1 … 1000 of DDPM's linear schedule, with the same noise for all classes; all classes to
                 the end, or keeping the best 5 of 10 after a tenth of the draws, as their commands for ten classes do (CIFAR-10: 50 and 500).
                 The full default of 500 draws is run on `--default-items` items.

Beside them logistic regression and a multilayer perceptron of scikit-learn on the pixels, fitted to the same training images; they
take no evaluation of a diffusion network. All errors are standard errors over items. Results of other sets and parts in --out are kept.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import accuracy_of, add_options, logistic_classifier, network_classifier, opened, share
from provenance import machine, save
from torch import Tensor

import diffusional as df
from diffusional.evaluation.common import CommonNoise, difference_plan
from diffusional.forward import diffuse

PARTS = ("ours", "unweighted", "all", "plain", "published", "default", "classifiers")
VISITS = (2, 4, 8, 16, 64)
# Visits of the parts that drop no class.
EVERY = (4, 8, 16)
# Draws of each stage, and the classes that are kept after it.
PUBLISHED = (
    ((4,), (1,)),
    ((8,), (1,)),
    ((16,), (1,)),
    ((2, 20), (5, 1)),
    ((4, 40), (5, 1)),
    ((32,), (1,)),
    ((8, 80), (5, 1)),
)
DEFAULT = ((50, 500), (5, 1))
STEPS = 1000


def timesteps(draws: int) -> Tensor:
    """Return the evenly spaced timesteps (draws,) of the published way, from 0."""
    return torch.arange(STEPS // draws // 2, STEPS, STEPS // draws)[:draws]


def gammas() -> Tensor:
    """Return γ (1000,) of DDPM's linear schedule."""
    alpha2 = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
    return torch.log1p(-alpha2) - torch.log(alpha2)


@torch.inference_mode()
def published(model: Any, x: Tensor, draws: tuple[int, ...], keep: tuple[int, ...]) -> tuple[Tensor, int]:
    """Return the answers (N,) of the published way, and its network evaluations per item."""
    n, k, gamma = len(x), len(model.classes), gammas()
    every = timesteps(max(draws))
    noise = torch.randn(n, len(every), *x.shape[1:], generator=torch.Generator().manual_seed(0))
    errors = torch.full((n, k, len(every)), torch.nan, dtype=torch.float64)
    left, done, calls = torch.arange(k).expand(n, k), torch.zeros(len(every), dtype=torch.bool), 0
    for some, kept in zip(draws, keep, strict=True):
        stride = len(every) // some
        new = torch.zeros_like(done)
        new[torch.arange(stride // 2, len(every), stride)[:some]] = True
        new &= ~done
        done |= new
        columns = new.nonzero()[:, 0]
        grid = torch.cartesian_prod(torch.arange(n), torch.arange(left.shape[1]), torch.arange(len(columns)))
        calls += left.shape[1] * len(columns)
        for rows in grid.split(4096):
            item, at = rows[:, 0], columns[rows[:, 2]]
            label = left[item, rows[:, 1]]
            g = gamma[every[at]]
            predicted = model.denoiser(diffuse(x[item], g, noise[item, at]), g, label)
            found = predicted.squared_errors(x[item], noise[item, at])
            errors[item, label, at] = found.flatten(1).double().mean(1)
        mean = errors.nanmean(2).gather(1, left)
        left = left.gather(1, mean.topk(kept, 1, largest=False).indices)
    return left[:, 0], calls


@torch.inference_mode()
def to_the_end(model: Any, x: Tensor, visits: tuple[int, ...], seed: int = 0) -> list[tuple[Tensor, float]]:
    """Return the answers (N,) by the bound after each number of visits of all classes, and the evaluations per item, its pilot's included."""
    n, k, most = len(x), len(model.classes), max(visits)
    pairs = np.random.default_rng(seed).permuted(np.tile(np.arange(k), (n, 1)), axis=1)
    one, other = torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy())
    plan = difference_plan(model.visited(), x, lambda rows: one[rows], lambda rows: other[rows], seed)
    noise = CommonNoise(model.visited(), plan, x, seed, "classify")
    item, draw = torch.arange(n).repeat_interleave(most), torch.arange(most).repeat(n)
    row, label = torch.arange(n * most).repeat_interleave(k), torch.arange(k).repeat(n * most)
    costs = noise.costs(item, draw, row, lambda which: label[which]).view(n, most, k)
    pilot = int(plan.provenance["evaluations"]) / n
    return [(costs[:, :v].mean(1).argmin(1), v * k + pilot) for v in visits]


def rows_of(
    part: str, model: Any, data: Any, x: Tensor, c: Tensor, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part of the record: accuracy against evaluations per item."""
    if part in ("ours", "unweighted", "all"):
        confidence = 0.95 if part != "all" else 1 - 1e-12
        weighting = "unweighted" if part == "unweighted" else "bound"
        for visits in options.visits if part != "all" else options.every:
            result = df.classify(model, x, max_visits=visits, confidence=confidence, weighting=weighting)
            evaluations = (int(result.evaluations.sum()) + result.pilot) / len(x)
            yield {
                "max_visits": visits,
                "evaluations": evaluations,
                "pilot": result.pilot / len(x),
                "confidence": float(result.confidence.mean()),
                **share(result.label == c),
            }
    elif part == "plain":
        for visits, (label, calls) in zip(options.every, to_the_end(model, x, options.every), strict=True):
            yield {"max_visits": visits, "evaluations": calls, **share(label == c)}
    elif part in ("published", "default"):
        few = slice(0, options.default_items if part == "default" else None)
        for draws, keep in (DEFAULT,) if part == "default" else PUBLISHED[: options.published]:
            label, calls = published(model, x[few], draws, keep)
            yield {"draws": draws, "keep": keep, "evaluations": calls, "items": len(label), **share(label == c[few])}
    else:
        for name, fit in (("logistic regression", logistic_classifier), ("perceptron", network_classifier)):
            yield {"name": name, "evaluations": 0, **accuracy_of(fit(data), x, c)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, items=500)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--visits", nargs="+", type=int, default=VISITS, help="draws of a class, at most")
    parser.add_argument("--every", nargs="+", type=int, default=EVERY, help="draws of a class, if none is dropped")
    parser.add_argument("--published", type=int, help="the number of published settings that are run, from the first")
    parser.add_argument("--default-items", type=int, default=100, help="items of the published way's full default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "classification.json")
    options = parser.parse_args()
    model, data, x, c = opened(options)
    model.eval()
    into: dict[str, Any] = {
        "items": len(x),
        "shape": list(data.space.shape),
        "config": df.load_run(options.run).config.to_dict(),
    }
    for part in options.part:
        began, rows = time.perf_counter(), list[dict[str, Any]]()
        for row in rows_of(part, model, data, x, c, options):
            rows.append(row)
            print(options.set, part, row, flush=True)
            # Read again, since another part may have been saved meanwhile.
            found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"sets": {}}
            its = found["sets"].setdefault(options.set, {"machine": {}}) | into | {part: rows}
            its["machine"][part] = machine() | {"seconds": round(time.perf_counter() - began, 1)}
            found["sets"][options.set] = its
            save(options.out, found)


if __name__ == "__main__":
    main()
