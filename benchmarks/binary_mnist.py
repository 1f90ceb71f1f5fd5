"""Binary MNIST under binomial and Gaussian diffusion and the VAEs: test NELBO in nats, one table.

    python benchmarks/binary_mnist.py [--data ../shared/data/mnist] [--runs runs/binary] [--seeds 0 1] [--jobs 2]

Every pixel is drawn once, white with the probability of its grey value, seed 0: a fixed binarisation as Salakhutdinov & Murray's (2008),
whose draw was another. Numbers are bounds, none importance-weighted; published ones that are estimates of ln p(x), or of images that are drawn
anew in every epoch (VAE 86.8, NVAE 78.0 nats), lie lower for these reasons alone. The diffusions share a U-Net, batches and steps;
the VAEs are residual MLPs, which take more steps of more items in less time.
"""

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch: what runs side by side has a core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from order import cpu, folder, pm, seconds, spread
from rich.console import Console

import diffusional as df
from diffusional.files import load_json, save_json
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


def one(name: str, seed: int, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Train and evaluate, what of it is not done."""
    torch.set_num_threads(1)
    run = options.runs / f"{folder(name)}-seed{seed}"
    base = SYSTEMS[name]
    steps = base.steps if "VAE" in name else options.steps
    config = replace(
        base,
        data=DataConfig(name=str(path), levels=2),
        steps=steps,
        batch=base.batch if "VAE" in name else 32,
        seed=seed,
        validate_every=max(1, steps // 4),
        checkpoint_every=500,
    )
    if not (run / "evaluation.json").exists():
        # A run that has ended takes no more steps.
        model = df.train(config, run, resume=run.exists(), console=Console(quiet=True))
        data = df.data.load(str(path), levels=2)
        more = {} if "VAE" in name else {"reference": data.encode("train", slice(0, 10_000))}
        found = df.evaluate(model, data.encode("test"), target_error=options.error, unit="nats", **more)
        save_json(
            run / "evaluation.json",
            {
                "nelbo": found.nelbo.to("nats", 784).to_dict(),
                "terms": {term: e.to("nats", 784).to_dict() for term, e in found.terms.items()},
                "network_evaluations": found.nelbo.network_evaluations,
                "caveats": list(found.caveats),
                "parameters": sum(p.numel() for p in model.parameters()),
                "error": options.error,
                "config": config.to_dict(),
            },
        )
    record = load_json(run / "evaluation.json")
    if record["config"] != config.to_dict() or record["error"] != options.error:
        raise SystemExit(f"{run} holds another config or error; give other --runs")
    return record | {"train_seconds": seconds(run)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--runs", type=Path, default=Path("runs/binary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=1200, help="of the diffusions")
    parser.add_argument("--error", type=float, default=0.2, help="Monte Carlo error of each test bound, nats")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "binary_mnist.json")
    options = parser.parse_args()
    path = binarised(options)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in SYSTEMS}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        todo = {pool.submit(one, n, s, options, path): (n, s) for s in options.seeds for n in SYSTEMS}
        for future in as_completed(todo):
            name, seed = todo[future]
            found[name][seed] = future.result()
            nelbo = found[name][seed]["nelbo"]
            print(f"{name}, seed {seed}: {nelbo['value']:.2f} ± {nelbo['error']:.2f} nats", flush=True)
    rows = {}
    for name, runs in found.items():
        mean, error = spread([run["nelbo"]["value"] for run in runs.values()])
        rows[name] = {"nats": mean, "error_by_seeds": error, "seeds": {str(s): r for s, r in sorted(runs.items())}}
        print(f"{name:45} {pm(mean, error, 2)} nats")
    record = {
        "command": "python " + " ".join(sys.argv),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__},
        "data": "MNIST, every pixel drawn once with the probability of its grey value, seed 0; 10,000 test images",
        "systems": rows,
    }
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
