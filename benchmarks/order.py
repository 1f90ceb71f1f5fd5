"""The historic systems beside each other: one network, one number of steps, MNIST at 8 bits, the same test bound, several seeds.

    python benchmarks/order.py [--data ../shared/data/mnist] [--runs runs/order] [--seeds 0 1 2] [--steps 1200] [--jobs 2]

Every system trains the same U-Net on the same batches for the same number of steps; what a step of each takes, --timing measures, one
system after another on one thread. What differs is what makes each system: objective, schedule, end points, variance, decoder, and the
sampler of t, as SYSTEMS says; a pair may differ in several. Each is then evaluated on the 10,000 test images to ± --error, those whose decoder is z_1
alone with --visits. Runs and evaluations of the same config that are there already are left as they are, so that the
command can be stopped and given again; others are refused.

Of networks that predict noise on a grid of T latents there are two numbers more: the bound with x̂ clipped to the data's range, another
model with the same weights, as DDPM's and improved DDPM's published bounds are; and KL_{T−1} alone, the cost of the noisiest step.

A table of test bounds in bits/dim, the mean over seeds ± its standard error by their spread, or by their Monte Carlo errors where these say more, and the
pairs that the papers compare, seed by seed.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from rich.console import Console
from seeds import PILOT, Record, each, folder, itemised, kept, measured, over_seeds, pm, spread

import diffusional as df
from diffusional.ledger import per_unit
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
    "learned γ, T = ∞": (
        ScheduleConfig(kind="learned", gamma_min=-13.3, gamma_max=5.0),
        Z1_ALONE,
        "elbo",
        "stratified",
    ),
    "VDM: learned γ and ends, T = ∞": (
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
    ("learned γ, T = ∞", "log-SNR-linear, T = ∞"),
    ("VDM: learned γ and ends, T = ∞", "learned γ, T = ∞"),
    ("VDM: learned γ and ends, T = ∞", "DDPM: linear, L_simple"),
    ("levels: levels head, T = ∞", "VDM: learned γ and ends, T = ∞"),
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
    plan = df.Plan.fit(model, data.encode("train", slice(0, 10_000)), PILOT, controls=("wiener",))
    if isinstance(model.likelihood, df.likelihood.LevelPosterior):
        # Noise networks in continuous time: costs with heavy tails, of which a rule that stops when the error seen is small meets too few.
        return df.evaluate(model, data.encode("test"), visits=options.visits, plan=plan)
    return df.evaluate(model, data.encode("test"), target_error=options.error, plan=plan)


def last_level(model: df.DiffusionModel, options: argparse.Namespace) -> dict[str, float]:
    """KL_{T−1} of the first 2,000 test images, one draw each, bits/dim."""
    x = df.data.load(options.data, levels=256).encode("test", slice(0, 2000))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert model.timesteps is not None
    t = torch.full((250,), model.timesteps)
    with torch.inference_mode():
        pairs = zip(x.split(250), noise.split(250), strict=True)
        kl = torch.cat([model.kl_at(some, t, its) for some, its in pairs]) / per_unit(
            "bits/dim", model.space.dimensions
        )
    return {"value": float(kl.mean()), "error": float(kl.std()) / len(kl) ** 0.5}


def trained(run: Path) -> df.DiffusionModel:
    model = df.load(run).eval()
    assert isinstance(model, df.DiffusionModel)
    return model


def cut(model: df.DiffusionModel) -> df.DiffusionModel:
    """The same with x̂ clipped."""
    return df.DiffusionModel(model.process, clipped(model.denoiser, model.space), model.likelihood, model.variance)


def one(name: str, seed: int, options: argparse.Namespace) -> Record:
    """Train and evaluate, what of it is not done."""
    run, wanted = folder(options.runs, name, seed), config(name, options.data, seed, options.steps)
    record = measured(run, wanted, options.error, "bits/dim", partial(bound, options=options))
    if not (wanted.model.predicts == "noise" and wanted.schedule.steps):
        return record
    return record | {
        "clipped": kept(run / "clipped.json", lambda: itemised(bound(cut(trained(run)), options), "bits/dim")),
        "last_level": kept(run / "last-level.json", lambda: last_level(trained(run), options)),
    }


def row(runs: dict[int, Record]) -> dict[str, Any]:
    """A system, over its seeds."""
    first, *_ = several = list(runs.values())
    mean, error = over_seeds(run["nelbo"] for run in several)
    return {
        "bits_per_dim": mean,
        "error_by_seeds": error,
        "seeds": {
            str(seed): {
                key: run[key] for key in ("nelbo", "terms", "reached", "caveats", "clipped", "last_level") if key in run
            }
            for seed, run in runs.items()
        },
        "clipped": over_seeds(run["clipped"]["nelbo"] for run in several) if "clipped" in first else None,
        "parameters": first["parameters"],
    }


def unvouched(runs: dict[int, Record]) -> list[str]:
    """Which of a system's bounds have caveats."""
    both = [(f"seed {seed}", run) for seed, run in runs.items()]
    both += [(f"seed {seed}, x̂ clipped", run["clipped"]) for seed, run in runs.items() if "clipped" in run]
    return [f"{name}: {'; '.join(run['caveats'])}" for name, run in both if run["caveats"] or not run["reached"]]


def gain(better: dict[int, Record], worse: dict[int, Record], cutting: bool) -> dict[str, Any]:
    """What one system is better by than another, seed by seed; `cutting`: both with x̂ clipped."""
    pairs = [
        [(runs[seed]["clipped"] if cutting else runs[seed])["nelbo"] for runs in (better, worse)]
        for seed in better
        if seed in worse
    ]
    gains = [other["value"] - one["value"] for one, other in pairs]
    mean, error = spread(gains, (e["error"] for pair in pairs for e in pair))
    return {"bound": "clipped" if cutting else "nelbo", "gain": mean, "error_by_seeds": error, "seeds": gains}


def step_seconds(name: str, options: argparse.Namespace, steps: int = 100) -> float:
    """Of training, one thread, after the first steps."""
    torch.set_num_threads(1)
    wanted = replace(config(name, options.data, 0, steps), checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as run:
        df.train(wanted, Path(run) / "run", console=Console(quiet=True))
        timing = [json.loads(line) for line in (Path(run) / "run" / "timing.jsonl").read_text().splitlines()]
    at = {line["step"]: line["seconds"] for line in timing}
    return (at[steps - 10] - at[20]) / (steps - 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--runs", type=Path, default=Path("runs/order"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--error", type=float, default=0.01, help="Monte Carlo error of each test bound, bits/dim")
    parser.add_argument(
        "--visits", type=int, default=8, help="of each image, where z_1 alone decodes, whatever the error"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--timing", action="store_true", help="what a step takes, besides: on a quiet machine")
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
        beside = f"; x̂ clipped {pm(*said['clipped'])}" if said["clipped"] else ""
        print(f"{name:45} {pm(said['bits_per_dim'], said['error_by_seeds'])}{beside}")
        for caveat in unvouched(found[name]):
            print(f"    {caveat}")
        if options.timing:
            said["step_seconds"] = step_seconds(name, options)
            print(f"    {said['step_seconds']:.3f} s a step")
    gained = [
        {"of": better, "over": worse} | gain(found[better], found[worse], cutting)
        for better, worse in PAIRS
        if better in found and worse in found
        for cutting in (False, True)
        if not cutting or (rows[better]["clipped"] and rows[worse]["clipped"])
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
