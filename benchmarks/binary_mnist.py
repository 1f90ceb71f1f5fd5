"""Binary MNIST under binomial and Gaussian diffusion and the VAEs: test NELBO in nats, one table.

    python benchmarks/binary_mnist.py [--data ../shared/data/mnist] [--runs runs/binary] [--seeds 0 1] [--jobs 2]

Every pixel is drawn once, white with the probability of its grey value, seed 0: a fixed binarisation as Salakhutdinov & Murray's (2008),
whose draw was another. Numbers are bounds, none importance-weighted; published ones that are estimates of ln p(x), or of images that are drawn
anew in every epoch (VAE 86.8, NVAE 78.0 nats), lie lower for these reasons too. The diffusions share a U-Net, batches and steps;
the VAEs are residual MLPs, which take more steps of more items.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from provenance import machine, save
from seeds import PILOT, Record, each, folder, measured, over_seeds, pm

import diffusional as df
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig

UNET = ModelConfig(network="unet", widths=(16, 32), blocks=1, dropout=0.0)
MLP = ModelConfig(hidden=512, blocks=2, dropout=0.1)
SYSTEMS: dict[str, Config] = {
    "binomial diffusion, T = 100": Config(
        schedule=ScheduleConfig(steps=100), model=replace(UNET, kind="binomial-diffusion"), sampler="adaptive"
    ),
    "Gaussian diffusion, levels head, T = ∞": Config(
        schedule=ScheduleConfig(gamma_min=-5.0, gamma_max=8.0),
        model=replace(UNET, predicts="levels", head="categorical"),
    ),
    "Gaussian diffusion, levels head, T = 100": Config(
        schedule=ScheduleConfig(gamma_min=-5.0, gamma_max=8.0, steps=100),
        model=replace(UNET, predicts="levels", head="categorical"),
    ),
    "VAE": Config(
        model=replace(MLP, kind="vae", head="categorical"),
        latent=LatentConfig(sizes=(40,)),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05),
        steps=4000,
        batch=128,
    ),
    "hierarchical VAE, two layers": Config(
        model=replace(MLP, kind="hierarchical-vae", head="categorical", blocks=1),
        latent=LatentConfig(sizes=(40, 20)),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05),
        steps=4000,
        batch=128,
    ),
}


def binarised(options: argparse.Namespace) -> Path:
    """train and test of 0 and 1, drawn once."""
    path = options.runs / "binary-mnist.npz"
    if not path.exists():
        # The test set is MNIST's; the 60,000 others go to training and validation.
        data = df.data.load(options.data, levels=256)
        rng = np.random.default_rng(0)
        parts = {split: data.tensor(split).numpy() for split in ("train", "validation", "test")}
        bits = {split: (rng.random(grey.shape) < grey / 255).astype(np.uint8) for split, grey in parts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **bits)
    return path


def config(name: str, seed: int, steps: int, path: Path) -> Config:
    base = SYSTEMS[name]
    steps, batch = (base.steps, base.batch) if "VAE" in name else (steps, 32)
    return replace(
        base,
        data=DataConfig(name=str(path), levels=2),
        steps=steps,
        batch=batch,
        seed=seed,
        validate_every=max(1, steps // 4),
        checkpoint_every=500,
    )


def bound(model: LatentVariableModel, path: Path, error: float) -> df.Evaluation:
    """Of the test images."""
    data = df.data.load(str(path), levels=2)
    plan = df.Plan.fit(model, data.encode("train", slice(0, 10_000)), PILOT) if isinstance(model, Chain) else None
    return df.evaluate(model, data.encode("test"), target_error=error, unit="nats", plan=plan)


def one(name: str, seed: int, options: argparse.Namespace, path: Path) -> Record:
    """Train and evaluate, what of it is not done."""
    wanted = config(name, seed, options.steps, path)
    measure = partial(bound, path=path, error=options.error)
    return measured(folder(options.runs, name, seed), wanted, options.error, "nats", measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--runs", type=Path, default=Path("runs/binary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=1200, help="of the diffusions")
    parser.add_argument("--error", type=float, default=0.3, help="Monte Carlo error of each test bound, nats")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "binary_mnist.json")
    options = parser.parse_args()
    path = binarised(options)
    pairs = [(name, seed) for seed in options.seeds for name in SYSTEMS]
    found = each(partial(one, options=options, path=path), pairs, options.jobs)
    rows = {}
    for name in SYSTEMS:
        mean, error = over_seeds(run["nelbo"] for run in found[name].values())
        rows[name] = {"nats": mean, "error_by_seeds": error, "seeds": {str(s): r for s, r in found[name].items()}}
        print(f"{name:45} {pm(mean, error, 2)} nats")
    record = {
        "machine": machine(threads=1),
        "data": "MNIST, every pixel drawn once with the probability of its grey value, seed 0; 10,000 test images",
        "systems": rows,
    }
    save(options.out, record)


if __name__ == "__main__":
    main()
