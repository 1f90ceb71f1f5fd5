"""Where the seconds of an evaluation go: the network's, and everything else.

    python benchmarks/seconds.py [--data cifar10-subset.npz] [--threads 2] [--network] [--only NAME …]
    python benchmarks/seconds.py --threads 1 --estimators digits [--run RUN] [--networks runs/foreign]
    python benchmarks/seconds.py --threads 1 --estimators mnist --data MNIST [--run RUN]
    python benchmarks/seconds.py --threads 1 --estimators cifar10 --data cifar10-subset.npz

    cifar        8-bit images 3 × 32 × 32 and a network of one convolution, whose own time is negligible: a pilot of 3,000 evaluations, and
                 100 items × 2 visits
    images       8-bit images 3 × 256 × 256, the same with fewer evaluations
    latents      reals 4 × 64 × 64, the same

Each row has the milliseconds per visit outside the network, the peak memory of the process so far, and with `--network` what share of the
seconds of DDPM's U-Net that is, pilot included, for 1,000 items to two visits each. The U-Net visits a few items for its own seconds. Seconds are of this machine; their ratio is in one run.

With `--estimators`, the evaluations and seconds for ± 0.01 bits/dim on a test set, by the plan and by five other estimators, of our levels
head (`--run`, a run's network on DDPM's linear β) and of diffusers' U-Nets, which are trained first (foreign.py). The plan's are those of
one evaluation, pilot and audit included. Those of the others are predicted from the variance of one evaluation (estimators.py) and the
seconds of one. Seconds of a network alone, of a visit at a random t and of a plan's visit are measured in turns. On one thread, seconds
are of the processor, so that other work on the machine does not count.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from cost_to_error import at_random, opened, plan_for
from estimators import DISCREPANCY, PILOT, PLAN, evaluations, variances, visited
from foreign import NETWORKS, network
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.evaluation import Plan
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.ledger import per_unit

SHAPES = {"cifar": (3, 32, 32), "images": (3, 256, 256), "latents": (4, 64, 64)}
# Evaluations of the pilot, reference items, items and visits.
# Widths of DDPM's U-Nets (Ho et al. 2020, App. B): 35.7 M parameters, and 114 M for images of 256 × 256.
WIDTHS = {"cifar": (128, 256, 256, 256), "latents": (128, 256, 256, 256), "images": (128, 128, 256, 256, 512, 512)}
SIZES = {"cifar": (3000, 1000, 100, 2), "images": (300, 24, 8, 8), "latents": (1000, 200, 50, 4)}


class Timed(nn.Module):
    """A network that adds up the seconds of its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.rows = network, 0.0, 0

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        start = time.process_time()
        out = self.network(z)
        self.seconds += time.process_time() - start
        self.rows += len(z)
        return out


def items(name: str, n: int, data: Path | None) -> tuple[df.Discrete | df.Continuous, Tensor]:
    """The space, and n items of it: images of `data` if they are given and small, otherwise smooth random ones."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(0)
    coarse = torch.rand(n, shape[0], shape[1] // 4, shape[2] // 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    if name == "latents":
        return df.Continuous(shape), (smooth - 0.5) * 2
    space = df.Discrete(shape, 256)
    if name == "cifar" and data is not None:
        with np.load(data) as file:
            images = next(file[key] for key in file.files if file[key].shape[1:] == shape)
        return space, space.encode(torch.from_numpy(images[:n].astype(np.int64)))
    return space, space.encode((255 * smooth.clamp(0, 1)).round().long())


def measured(name: str, data: Path | None) -> dict[str, Any]:
    """The seconds of a pilot and of draws, less those of a network of one convolution."""
    pilot, references, n, visits = SIZES[name]
    space, x = items(name, references + n, data)
    torch.manual_seed(0)
    network = Timed(nn.Conv2d(space.shape[0], space.shape[0], 3, padding=1))
    discrete = isinstance(space, df.Discrete)
    decoder = likelihood.DiscretizedGaussian(space) if discrete else likelihood.GaussianLikelihood(space)
    model = df.DiffusionModel(df.GaussianDiffusion(schedule.linear(1000)), df.Denoiser(network), decoder).eval()

    def outside(work: Callable[[], Any]) -> tuple[float, Any]:
        before, start = network.seconds, time.process_time()
        result = work()
        return time.process_time() - start - (network.seconds - before), result

    of_pilot, plan = outside(lambda: Plan.fit(model, x[:references], pilot))
    of_base, draws = outside(lambda: VisitRecords(model, plan, x[references:]))
    every = torch.arange(n)
    of_draws, _ = outside(lambda: draws.extend(every, torch.full((n,), visits)))
    return {
        "shape": list(space.shape),
        "pilot": {"evaluations": pilot, "seconds outside the network": of_pilot},
        "base": {"items": n, "seconds": of_base},
        "draws": {"visits": n * visits, "milliseconds outside the network, each": 1000 * of_draws / n / visits},
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def ddpm_seconds(name: str, row: dict[str, Any], visits: int = 2000) -> dict[str, float]:
    """Return the seconds of one evaluation of DDPM's U-Net of a shape, and what share of them a pilot and `visits` take outside it."""
    channels, *size = SHAPES[name]
    module = df.networks.ddpm_unet(channels, (size[0], size[1]), widths=WIDTHS[name])
    rows, repeats = (8, 3) if name == "cifar" else (1, 2)
    z, t = torch.randn(rows, channels, *size), torch.zeros(rows)
    with torch.inference_mode():
        module(z, t)
        start = time.process_time()
        for _ in range(repeats):
            module(z, t)
    each = (time.process_time() - start) / rows / repeats
    own = row["pilot"]["seconds outside the network"]
    own += visits * row["draws"]["milliseconds outside the network, each"] / 1000
    return {
        "weights": sum(value.numel() for value in module.parameters()),
        "seconds a visit": each,
        "visits": visits,
        "seconds outside the network over its own, pilot included": own / each / (visits + row["pilot"]["evaluations"]),
    }


# Estimators: the evaluations of pilots, the target in bits/dim, rows of a call whose seconds are measured, and how often.
LONG, TARGET, ROWS, TURNS = 1000, 0.01, 64, 7
# Of every set: widths, steps and batch of the U-Nets of diffusers, and levels; items and draws of the variances.
KINDS = ("eps-linear", "v-linear", "eps-learned")
SETS: dict[str, dict[str, Any]] = {
    "digits": {"widths": (32, 64), "steps": 400, "batch": 128, "levels": 17},
    "mnist": {"widths": (16, 32), "steps": 250, "batch": 32, "levels": 256},
    "cifar10": {"widths": (16, 32), "steps": 250, "batch": 32, "levels": 256},
}
VARIED = {"digits": (447, 16), "mnist": (128, 16), "cifar10": (96, 16)}


def test_set(name: str, data: str | None) -> tuple[Tensor, Tensor]:
    """Return training items and the test items of a set, encoded."""
    if name == "cifar10":
        assert data is not None
        with np.load(data) as file:
            parts = [torch.from_numpy(file[key].astype(np.int64)) for key in ("train", "test")]
        space = df.Discrete(tuple(parts[0].shape[1:]), 256)
        return space.encode(parts[0]), space.encode(parts[1])
    found = df.data.load("digits") if name == "digits" else df.data.load(data or "../shared/data/mnist", levels=256)
    return found.encode("train", slice(0, 10_000)), found.encode("test")


def seconds_of_visits(model: Any, plan: Plan, x: Tensor) -> dict[str, float]:
    """Return the seconds of one evaluation: of the network alone, of a KL at a random t, and of a plan's visit, in turns."""
    rows = torch.arange(ROWS)
    x = x[:ROWS]
    records = VisitRecords(model, plan, x, 0)
    generator, found = torch.Generator().manual_seed(0), {"network": [], "random t": [], "plan": []}
    denoiser = model.denoiser
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            level = torch.randint(1, model.timesteps + 1, (len(x),), generator=generator)
            gamma = model.noisy_gamma(level).to(x)
            works = {
                "network": lambda gamma=gamma: denoiser(x, gamma),
                "random t": lambda level=level: model.kl_at(x, level, torch.randn(x.shape, generator=generator)),
                "plan": lambda turn=turn: records._evaluated(rows, torch.full((len(x),), turn)),
            }
            for name, work in works.items():
                start = time.process_time()
                work()
                found[name].append((time.process_time() - start) / len(x))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def estimated(model: Any, reference: Tensor, x: Tensor, varied: tuple[int, int], check: bool) -> dict[str, Any]:
    """Return evaluations and seconds for ± 0.01 bits/dim on the items x by estimator."""
    plan = Plan.fit(model, reference, LONG)
    bare = plan_for(model, reference, LONG, 0, ((), False, True))
    some, each = varied
    draws = visited(model, plan, x[:some], each, each // 4, 0)
    found = variances(model, plan, bare, draws)
    own = seconds_of_visits(model, plan, x)
    start = time.process_time()
    whole = df.evaluate(model, x, target_error=TARGET, reference=reference)
    spent = time.process_time() - start
    rows: dict[str, dict[str, Any]] = {}
    for name, one in evaluations(model, found, len(x), TARGET).items():
        pilot = LONG if name == PILOT else 0
        total = one["evaluations"] + pilot
        rows[name] = one | {"evaluations": total, "pilot": pilot, "seconds": total * own["random t"]}
    counts = whole.provenance["evaluations"]
    rows[PLAN] |= {
        "evaluations": sum(counts.values()),
        **counts,
        "seconds": spent,
        "error reached": whole.nelbo.to("bits/dim", model.space.dimensions).error,
        "reached": whole.reached,
    }
    out: dict[str, Any] = {
        "items": len(x),
        "weights": sum(value.numel() for value in model.parameters()),
        "bits/dim": whole.nelbo.to("bits/dim", model.space.dimensions).value,
        "draws behind the variances": found["draws"],
        "seconds an evaluation": own,
        "estimators": rows,
    }
    if check:
        out["check of low-discrepancy t"] = checked(model, x) | {"K predicted": rows[DISCREPANCY]["K"]}
    return out


def checked(model: Any, x: Tensor) -> dict[str, Any]:
    """Return K of low-discrepancy t from the spread of repeated evaluations, whose error is that of a variance of normal numbers."""
    bit, runs = per_unit("bits/dim", model.space.dimensions), []
    for each, seed, repeats in ((8, 1, 150), (8, 2, 100), (4, 3, 200)):
        means, _ = at_random(model, x, each, repeats, True, torch.Generator().manual_seed(seed))
        k = each * (statistics.stdev(means) / bit / TARGET) ** 2
        runs.append({"evaluations an item": each, "repeats": repeats, "K": k, "error": k * (2 / (repeats - 1)) ** 0.5})
    weights = [run["error"] ** -2 for run in runs]
    k = sum(weight * run["K"] for weight, run in zip(weights, runs, strict=True)) / sum(weights)
    return {"runs": runs, "K observed": k, "its error": sum(weights) ** -0.5}


def estimators(name: str, options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Add the rows of one set to the record, and save it after each."""
    reference, x = test_set(name, None if options.data is None else str(options.data))
    about = record.setdefault("estimators", {}).setdefault(name, {"networks": {}})
    about["machine"] = machine(options.threads) | {"diffusers": diffusers.__version__}
    sizes = SETS[name]
    models: dict[str, Callable[[], Any]] = {}
    if options.run is not None:
        models["levels head"] = lambda: opened(options.run)[0]
    for kind in KINDS:
        folder = options.networks / f"{name}-{kind}"
        models[kind] = lambda kind=kind, folder=folder: network(
            kind, reference, folder, sizes["steps"], sizes["widths"], sizes["batch"], sizes["levels"]
        )
    for kind, make in models.items():
        if options.kinds is None or kind in options.kinds:
            check = name == "digits" and kind == "levels head"
            row = estimated(make(), reference, x, VARIED[name], check)
            about["networks"][kind] = row
            print(name, kind, row, flush=True)
            save(options.out, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with images (N, 3, 32, 32)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", action="store_true", help="time DDPM's U-Net too")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--estimators", nargs="+", choices=SETS, help="compare estimators on these sets")
    parser.add_argument("--run", type=Path, help="the run of a levels head for --estimators")
    parser.add_argument("--networks", type=Path, default=Path("runs/foreign"), help="where U-Nets are, or will be")
    parser.add_argument("--kinds", nargs="+", choices=["levels head", *NETWORKS], help="only these networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "seconds.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.estimators:
        for name in options.estimators:
            estimators(name, options, record)
        return
    record |= {"machine": machine(options.threads), "rows": {}}
    for name in options.only:
        record["rows"][name] = measured(name, options.data)
        print(name, record["rows"][name], flush=True)
        save(options.out, record)
    # After all rows, so that these networks do not count in the peak memory.
    for name in options.only if options.network else ():
        record["rows"][name]["DDPM's U-Net"] = ddpm_seconds(name, record["rows"][name])
        print(name, record["rows"][name], flush=True)
        save(options.out, record)


if __name__ == "__main__":
    main()
