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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from provenance import machine, save
from seeds import Record, each, folder, measured, pm, spread

import diffusional as df
from diffusional.files import load_json, save_json
from diffusional.models.base import LatentVariableModel
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


def bound(model: LatentVariableModel, options: argparse.Namespace) -> df.Evaluation:
    """Of the test images."""
    assert isinstance(model, df.DiffusionModel)
    data = df.data.load(options.data, levels=256)
    # Without the factorised control, whose tables of 784 × 256 numbers at every γ take longer here than the draws that they save.
    plan = df.Plan.fit(model, data.encode("train", slice(0, 10_000)), controls=("wiener",))
    return df.evaluate(model, data.encode("test"), target_error=options.error, plan=plan)


def one(name: str, seed: int, options: argparse.Namespace) -> Record:
    """Train and evaluate, what of it is not done."""
    run, wanted = folder(options.runs, name, seed), config(name, options.data, seed, options.steps)
    record = measured(run, wanted, options.error, "bits/dim", partial(bound, options=options))
    # Of networks that predict noise on a grid: x̂ clipped to the data's range, as their authors' published bounds have it.
    if wanted.model.predicts == "noise" and wanted.schedule.steps:
        if not (run / "clipped.json").exists():
            model = df.load(run)
            assert isinstance(model, df.DiffusionModel)
            network = clipped(model.denoiser, model.space)
            found = bound(df.DiffusionModel(model.process, network, model.likelihood, model.variance), options)
            nelbo = found.nelbo.to("bits/dim", found.dimensions).to_dict()
            save_json(run / "clipped.json", {"nelbo": nelbo, "caveats": list(found.caveats)})
        record["clipped"] = load_json(run / "clipped.json")["nelbo"]
    return record


def row(runs: dict[int, Record]) -> dict[str, Any]:
    """A system, over its seeds."""
    first, *_ = several = list(runs.values())
    mean, error = spread(run["nelbo"]["value"] for run in several)
    return {
        "bits_per_dim": mean,
        "error_by_seeds": error,
        "seeds": {str(seed): run["nelbo"] for seed, run in runs.items()},
        "terms": {term: spread(run["terms"][term]["value"] for run in several)[0] for term in first["terms"]},
        "clipped": spread(run["clipped"]["value"] for run in several) if "clipped" in first else None,
        "train_seconds": spread(run["train_seconds"] for run in several)[0],
        "parameters": first["parameters"],
        "caveats": sorted({caveat for run in several for caveat in run["caveats"]}),
    }


def gain(better: dict[int, Record], worse: dict[int, Record], kind: str) -> dict[str, Any]:
    """What one system is better by than another, seed by seed; x̂ clipped where a bound has that and `kind` asks for it."""
    gains = [
        worse[seed].get(kind, worse[seed]["nelbo"])["value"] - better[seed].get(kind, better[seed]["nelbo"])["value"]
        for seed in better
        if seed in worse
    ]
    mean, error = spread(gains)
    return {"bound": kind, "gain": mean, "error_by_seeds": error, "seeds": gains}


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
    pairs = [(name, seed) for seed in options.seeds for name in options.systems]
    if options.summary:
        pairs = [
            (name, seed) for name, seed in pairs if (folder(options.runs, name, seed) / "evaluation.json").exists()
        ]
    found = each(partial(one, options=options), pairs, options.jobs)
    rows = {name: row(found[name]) for name in options.systems if name in found}
    for name, said in rows.items():
        cut = f"; x̂ clipped {pm(*said['clipped'])}" if said["clipped"] else ""
        print(f"{name:45} {pm(said['bits_per_dim'], said['error_by_seeds'])}{cut}")
    gained = [
        {"of": better, "over": worse} | gain(found[better], found[worse], kind)
        for better, worse in PAIRS
        if better in found and worse in found
        for kind in ("nelbo", "clipped")
    ]
    for said in gained:
        how = ", x̂ clipped" if said["bound"] == "clipped" else ""
        print(f"{said['of']} over {said['over']}{how}: {pm(said['gain'], said['error_by_seeds'])} bits/dim")
    record = {
        "machine": machine(threads=1),
        "data": {"name": "MNIST, 8 bit", "test_items": 10_000, "dimensions": 784},
        "steps": options.steps,
        "batch": 32,
        "systems": rows,
        "pairs": gained,
    }
    save(options.out, record)


if __name__ == "__main__":
    main()
