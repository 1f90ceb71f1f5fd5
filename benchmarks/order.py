"""The historic systems beside each other: one network, one number of steps, MNIST at 8 bits, the same test bound, several seeds.

    python benchmarks/order.py [--data ../shared/data/mnist] [--runs runs/order] [--seeds 0 1 2] [--steps 1200] [--jobs 2]

Every system trains the same U-Net on the same batches for the same number of steps: the same compute, but for a head's few channels
(the levels head, whose 256 levels cost time of their own, is timed beside it). What differs is what makes each system: objective, schedule, end points,
variance, decoder, and the sampler of t, as SYSTEMS says; a pair may differ in several. Each is then evaluated on the 10,000 test images to
± --error. Runs and evaluations of the same config that are there already are left as they are, so that the command can be stopped and
given again; others are refused.

Networks that predict noise on a grid of T latents are evaluated once more with x̂ clipped to the data's range, another model with the same
weights: as DDPM's and improved DDPM's published bounds are.

A table of test bounds in bits/dim, the mean over seeds ± its standard error by their spread, and the pairs that the papers compare,
seed by seed.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch: what runs side by side has a core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console

import diffusional as df
from diffusional.files import load_json, save_json
from diffusional.models.denoiser import clipped
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig

LINEAR = ScheduleConfig(kind="linear", steps=1000)
COSINE = ScheduleConfig(kind="cosine", steps=1000)
NETWORK = ModelConfig(
    network="unet", widths=(16, 32), blocks=1, dropout=0.0, predicts="noise", likelihood="discretized-gaussian"
)
LEARNED = replace(NETWORK, variance="learned")
Z1_ALONE = replace(NETWORK, likelihood="level-posterior")

# name: schedule, model, objective, sampler. Fixed variances are the posterior's.
SYSTEMS: dict[str, tuple[ScheduleConfig, ModelConfig, str, str]] = {
    "DDPM: linear, L_simple": (LINEAR, NETWORK, "simple", "uniform"),
    "linear, L_vlb": (LINEAR, NETWORK, "elbo", "adaptive"),
    "cosine, L_simple": (COSINE, NETWORK, "simple", "uniform"),
    "cosine, L_vlb": (COSINE, NETWORK, "elbo", "adaptive"),
    "iDDPM: cosine, learned variance, L_hybrid": (COSINE, LEARNED, "hybrid", "uniform"),
    "iDDPM: cosine, learned variance, L_vlb": (COSINE, LEARNED, "elbo", "second-moment"),
    "log-SNR-linear, T = ∞": (ScheduleConfig(gamma_min=-13.3, gamma_max=5.0), Z1_ALONE, "elbo", "stratified"),
    "VDM: learned γ, T = ∞": (
        ScheduleConfig(kind="learned", ends="learned", gamma_min=-13.3, gamma_max=5.0),
        Z1_ALONE,
        "elbo",
        "stratified",
    ),
    "levels: levels head, T = ∞": (
        ScheduleConfig(),
        replace(NETWORK, predicts="levels", likelihood="network-levels"),
        "elbo",
        "adaptive",
    ),
}
# (better by its paper, than): what is compared.
PAIRS = [
    ("linear, L_vlb", "DDPM: linear, L_simple"),
    ("cosine, L_vlb", "cosine, L_simple"),
    ("cosine, L_simple", "DDPM: linear, L_simple"),
    ("cosine, L_vlb", "linear, L_vlb"),
    ("iDDPM: cosine, learned variance, L_vlb", "cosine, L_vlb"),
    ("iDDPM: cosine, learned variance, L_hybrid", "cosine, L_simple"),
    ("VDM: learned γ, T = ∞", "log-SNR-linear, T = ∞"),
    ("VDM: learned γ, T = ∞", "DDPM: linear, L_simple"),
    ("levels: levels head, T = ∞", "VDM: learned γ, T = ∞"),
]


def config(name: str, data: str, seed: int, steps: int) -> Config:
    schedule, model, objective, sampler = SYSTEMS[name]
    return Config(
        data=DataConfig(name=data, levels=256),
        schedule=schedule,
        model=model,
        optimizer=OptimizerConfig(lr=2e-3, warmup=100),
        objective=objective,  # type: ignore[arg-type]
        sampler=sampler,  # type: ignore[arg-type]
        steps=steps,
        batch=32,
        seed=seed,
        validate_every=steps,
        checkpoint_every=500,
    )


def one(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, what of it is not done."""
    torch.set_num_threads(1)
    run = options.runs / f"{folder(name)}-seed{seed}"
    wanted = config(name, options.data, seed, options.steps)
    if not (run / "evaluation.json").exists():
        # A run that has ended takes no more steps.
        model = df.train(wanted, run, resume=run.exists(), console=Console(quiet=True))
        data = df.data.load(options.data, levels=256)
        reference = data.encode("train", slice(0, 10_000))
        # Without the factorised control, whose tables of 784 × 256 numbers at every γ take longer here than the draws that they save.
        plan = df.Plan.fit(model, reference, controls=("wiener",))
        found = df.evaluate(model, data.encode("test"), target_error=options.error, plan=plan)
        record = {"system": name, "seed": seed, "config": wanted.to_dict(), "error": options.error}
        record |= {
            "nelbo": found.nelbo.to("bits/dim", 784).to_dict(),
            "terms": {term: e.to("bits/dim", 784).to_dict() for term, e in found.terms.items()},
            "network_evaluations": found.nelbo.network_evaluations,
            "reached": found.reached,
            "caveats": list(found.caveats),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        save_json(run / "evaluation.json", record)
    # Of networks that predict noise on a grid: x̂ clipped to the data's range, as their authors' published bounds have it.
    if wanted.model.predicts == "noise" and wanted.schedule.steps and not (run / "clipped.json").exists():
        model, data = df.load(run), df.data.load(options.data, levels=256)
        assert isinstance(model, df.DiffusionModel)
        cut = df.DiffusionModel(model.process, clipped(model.denoiser, data.space), model.likelihood, model.variance)
        plan = df.Plan.fit(cut, data.encode("train", slice(0, 10_000)), controls=("wiener",))
        found = df.evaluate(cut, data.encode("test"), target_error=options.error, plan=plan)
        save_json(
            run / "clipped.json", {"nelbo": found.nelbo.to("bits/dim", 784).to_dict(), "caveats": list(found.caveats)}
        )
    record = load_json(run / "evaluation.json")
    if (run / "clipped.json").exists():
        record["clipped"] = load_json(run / "clipped.json")["nelbo"]
    if record["config"] != wanted.to_dict() or record["error"] != options.error:
        raise SystemExit(f"{run} holds another config or error; give other --runs")
    return record | {"train_seconds": seconds(run)}


def clipped_spread(runs: list[dict[str, Any]]) -> tuple[float, float | None] | None:
    """Mean and error over seeds of the bounds with x̂ clipped, where there are any."""
    values = [run["clipped"]["value"] for run in runs if "clipped" in run]
    return spread(values) if values else None


def folder(name: str) -> str:
    """A system's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("γ", "gamma").replace("∞", "inf")).strip("-")


def seconds(run: Path) -> float:
    """Of training, earlier sessions included."""
    return json.loads((run / "timing.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"]


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and its standard error by the spread of seeds; None for one seed."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def pm(value: float, error: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--runs", type=Path, default=Path("runs/order"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--error", type=float, default=0.01, help="Monte Carlo error of each test bound, bits/dim")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--summary", action="store_true", help="of what is there; train nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "order.json")
    options = parser.parse_args()
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in options.systems}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        pairs = [(n, s) for s in options.seeds for n in options.systems]
        there = [
            pair for pair in pairs if (options.runs / f"{folder(pair[0])}-seed{pair[1]}" / "evaluation.json").exists()
        ]
        todo = {pool.submit(one, n, s, options): (n, s) for n, s in (there if options.summary else pairs)}
        for future in as_completed(todo):
            name, seed = todo[future]
            found[name][seed] = future.result()
            nelbo = found[name][seed]["nelbo"]
            print(f"{name}, seed {seed}: {nelbo['value']:.4f} ± {nelbo['error']:.4f} bits/dim", flush=True)
    rows = {}
    for name, runs in found.items():
        values = [run["nelbo"]["value"] for run in runs.values()]
        mean, error = spread(values)
        rows[name] = {
            "bits_per_dim": mean,
            "error_by_seeds": error,
            "seeds": {str(seed): run["nelbo"] for seed, run in sorted(runs.items())},
            "terms": {
                t: statistics.fmean(r["terms"][t]["value"] for r in runs.values())
                for t in next(iter(runs.values()))["terms"]
            },
            "clipped": clipped_spread(list(runs.values())),
            "train_seconds": statistics.fmean(run["train_seconds"] for run in runs.values()),
            "parameters": next(iter(runs.values()))["parameters"],
            "caveats": sorted({caveat for run in runs.values() for caveat in run["caveats"]}),
        }
        print(
            f"{name:45} {pm(mean, error)}"
            + (f"; x̂ clipped {pm(*rows[name]['clipped'])}" if rows[name]["clipped"] else "")
        )
    gained = []
    for better, worse in PAIRS:
        if better in found and worse in found:
            common = sorted(set(found[better]) & set(found[worse]))
            for kind in ("nelbo", "clipped"):
                both = [
                    (
                        found[worse][s].get(kind, found[worse][s]["nelbo"]),
                        found[better][s].get(kind, found[better][s]["nelbo"]),
                    )
                    for s in common
                ]
                gains = [left["value"] - right["value"] for left, right in both]
                mean, error = spread(gains)
                gained.append(
                    {"of": better, "over": worse, "bound": kind, "gain": mean, "error_by_seeds": error, "seeds": gains}
                )
                print(f"{better} over {worse}{', x̂ clipped' if kind == 'clipped' else ''}: {pm(mean, error)} bits/dim")
    record = {
        "command": "python " + " ".join(sys.argv),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__},
        "data": {"name": "MNIST, 8 bit", "test_items": 10_000, "dimensions": 784},
        "steps": options.steps,
        "batch": 32,
        "systems": rows,
        "pairs": gained,
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
