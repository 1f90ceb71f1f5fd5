"""Conditional models and systems of several models on MNIST, trained for equal times: one bound each, by stage.

    python benchmarks/systems.py --data MNIST-FOLDER --runs RUNS

Images have 16 × 16 (or, with --side 8, 8 × 8) pixels of 16 levels: means of blocks of MNIST's images with a margin of two pixels. Every system
gets the same CPU-seconds of training (one thread), divided among its stages by `SHARES`, with the numbers of steps from the speed of each stage,
which is measured once. Each system is added to the JSON when it is trained and evaluated; one that is there already is left out, and an interrupted training is
resumed.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from provenance import machine, save

import diffusional as df
from diffusional.information.pointwise import bounded, pointwise
from diffusional.training import metrics_logger
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig

LEVELS = 16
# The share of each stage in the training time of its system.
SHARES = {
    "unconditional": {"model": 1.0},
    "label": {"model": 1.0},
    "caption": {"model": 1.0},
    "cascade": {"base": 0.3, "upsampler": 0.7},
    "latent": {"autoencoder": 0.6, "prior": 0.4},
    "unclip": {"encoder": 0.15, "prior": 0.2, "decoder": 0.65},
}
# Items that are evaluated, all of the test split of the file; items and draws of the informations.
TEST, VALIDATION, INFORMED, DRAWS = 500, 100, 250, 12
BITS = math.log(2)


def chosen(raw: df.data.Dataset) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the rows of every split that are used: all of train, and some of validation and test."""
    rng = np.random.default_rng(0)
    for split, n in (("train", None), ("validation", VALIDATION), ("test", TEST)):
        yield split, torch.from_numpy(rng.permutation(len(raw.items(split))))[:n]


def captioned(data: Path, path: Path) -> df.data.Dataset:
    """Return the images with the embeddings of their captions, which are written from MNIST's images of 28 × 28 pixels."""
    raw, small = df.data.load(str(data), levels=256, condition="caption"), df.data.load(str(path), levels=LEVELS)
    condition = {split: raw.condition_of(split)[rows] for split, rows in chosen(raw)}
    splits = {split: small.tensor(split) for split in condition}
    return df.data.Dataset("small MNIST with captions", small.space, **splits, condition=condition)


def images(data: Path, out: Path, side: int) -> Path:
    """Write the images and labels as an .npz, once; returns its path."""
    path, f = out / f"mnist{side}.npz", 32 // side
    if path.exists():
        return path
    raw, arrays = df.data.load(str(data), levels=256, condition="label"), {}
    for split, rows in chosen(raw):
        items, labels = raw.items(split)[:].long(), raw.condition_of(split)
        wide = torch.nn.functional.pad(items[rows], (2, 2, 2, 2))
        # The mean of a block's pixels, of 256 levels, in the nearest 16th below.
        sums = wide.unflatten(-1, (-1, f)).unflatten(-3, (-1, f)).sum((-3, -1))
        arrays[f"x_{split}"] = (sums // (f * f * 256 // LEVELS)).numpy().astype(np.uint8)
        arrays[f"y_{split}"] = labels[rows].numpy()
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix(".partial.npz"), **arrays)
    path.with_suffix(".partial.npz").rename(path)
    return path


def unet(side: int, **changes: Any) -> Config:
    """Return the config of a diffusion of images: a small U-Net in continuous time with a levels head."""
    config = Config(
        model=ModelConfig(predicts="levels", widths=(16, 32, 64) if side > 8 else (16, 32), blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=2e-3 if side > 8 else 5e-3, warmup=100),
        batch=32 if side > 8 else 128,
    )
    return replace(config, **changes)


def mlp() -> Config:
    """Return the config of a diffusion of a latent vector."""
    return Config(
        schedule=ScheduleConfig(gamma_min=-7.0, gamma_max=9.0, steps=1000),
        model=ModelConfig(network="mlp", predicts="v", hidden=256, blocks=3, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
    )


def contrastive() -> Config:
    """Return the config of a contrastive encoder."""
    return Config(
        model=ModelConfig(kind="contrastive", hidden=256, blocks=2, dropout=0.1),
        latent=LatentConfig(sizes=(16,)),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
        batch=256,
    )


def vae(dims: int, hidden: int) -> Config:
    """Return the config of a VAE whose encoder is frozen later."""
    return Config(
        model=ModelConfig(kind="vae", hidden=hidden, blocks=2, dropout=0.0),
        latent=LatentConfig(sizes=(dims,), warmup=0.2),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
    )


def stages(system: str, side: int) -> dict[str, Config]:
    """Return the configs of a system's stages, without their data and lengths."""
    if system == "cascade":
        return {"base": unet(side // 2), "upsampler": unet(side)}
    if system == "latent":
        return {"autoencoder": vae(32, 512), "prior": mlp()}
    if system == "unclip":
        return {"encoder": contrastive(), "prior": mlp(), "decoder": unet(side)}
    return {"model": unet(side, condition_dropout=0.0 if system == "unconditional" else 0.1)}


def composite(system: str, of: dict[str, Config], data: DataConfig) -> CompositeConfig:
    """Return a system of several stages; z_s with γ_s = −1 is handed to unCLIP's decoder."""
    if system == "cascade":
        return CompositeConfig("cascade", of, data, (2,))
    # γ_t of `mlp` rises by 16/999 a step from −7.
    return CompositeConfig(system, of, data, handover=376 if system == "unclip" else None)  # type: ignore[arg-type]


def data_of(system: str, path: Path) -> DataConfig:
    """Return the data of a system: with its condition, if it has one."""
    condition = {"label": "label", "unclip": "label"}.get(system)
    return DataConfig(name=str(path), levels=LEVELS, condition=condition)


def trained(config: Config | CompositeConfig, run: Path, dataset: df.data.Dataset | None) -> None:
    """Train a system, or go on; times are CPU-seconds of this process."""
    if isinstance(config, CompositeConfig):
        train_composite(config, run, resume=(run / "composite.json").exists(), clock=time.process_time)
    else:
        df.train(config, run, dataset, resume=(run / "config.json").exists(), clock=time.process_time)


def assembled(system: str, path: Path, side: int, steps: dict[str, int], seed: int) -> Config | CompositeConfig:
    """Return the config of a system with these steps of its stages."""
    of = {}
    for name, config in stages(system, side).items():
        n = steps[name]
        warmup = min(100, max(1, n // 4))
        own = replace(config, steps=n, seed=seed, validate_every=n, checkpoint_every=100)
        of[name] = replace(own, optimizer=replace(config.optimizer, warmup=warmup))
    data = data_of(system, path)
    return replace(of["model"], data=data) if len(of) == 1 else composite(system, of, data)


def seconds_of(run: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the times of the steps of every stage."""
    folders = {name: run if name == "model" else run / "stages" / name for name in names}
    return {name: metrics_logger.read(folder, "timing.jsonl") for name, folder in folders.items()}


def speeds(system: str, path: Path, side: int, runs: Path, dataset: df.data.Dataset | None) -> dict[str, float]:
    """Return the steps a CPU-second of every stage, from a short training."""
    run, n = runs / f"speed-{system}", 40
    names = list(SHARES[system])
    trained(assembled(system, path, side, dict.fromkeys(names, n), 0), run, dataset)
    found = {}
    for name, lines in seconds_of(run, names).items():
        by_step = {line["step"]: line["seconds"] for line in lines}
        found[name] = (n - 10 - 10) / (by_step[n - 10] - by_step[10])
    return found


def measured(system: str, run: Path, seed: int, dataset: df.data.Dataset | None) -> dict[str, Any]:
    """Return the bound of a trained system on all test items, and the informations of a condition."""
    started = time.process_time()
    own = df.load_run(run, dataset)
    result = own.evaluate(target_error=0.006, every_item=True, seed=seed)
    x, c, d = own.encode("test"), own.condition("test"), own.space.dimensions
    out: dict[str, Any] = {
        "bits": {"value": result.nelbo.value / d / BITS, "error": result.nelbo.error / d / BITS},
        "items_error_bits": result.nelbo.item_error / d / BITS,
        "nats": result.nelbo.to_dict(),
        "terms": {name: term.to_dict() for name, term in result.terms.items()},
        "items": len(x),
        "reached": result.reached,
        "evaluations_per_item": result.nelbo.network_evaluations / len(x),
    }
    if system in ("label", "caption"):
        found = pointwise(own.model, x[:INFORMED], c[:INFORMED], visits=DRAWS, seed=seed)
        out["information"] = found.to_dict()
    if system == "label":
        form = bounded(own.model, x[:100], c[:100], visits=8, seed=seed)
        out["bounded"] = {
            "least": form.least.to_dict(),
            "most": form.most.to_dict(),
            "entropy_of_labels": form.limit,
            "items": 100,
        }
    model = own.model
    out["weights"] = {name: sum(p.numel() for p in part.parameters()) for name, part in parts(model).items()}
    out["evaluation_seconds"] = round(time.process_time() - started, 1)
    return out


def parts(model: Any) -> dict[str, Any]:
    """Return the networks of a system by stage."""
    if not hasattr(model, "stages"):
        return {"model": model}
    return dict(model.stages.items()) | ({"encoder": model.encoder} if hasattr(model, "encoder") else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--system", choices=list(SHARES), nargs="+", default=list(SHARES))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, choices=[8, 16], default=16, help="of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=60, help="CPU-seconds of training of a system")
    parser.add_argument("--runs", type=Path, default=Path("runs/systems"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "systems_mnist.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seed:
        for system in options.system:
            measure(system, seed, options)


def measure(system: str, number: int, options: argparse.Namespace) -> None:
    """Train and evaluate a system of one seed, and add it to the record, unless it is there."""
    record = json.loads(options.out.read_text()) if options.out.exists() else {"speeds": {}, "systems": {}}
    seed = str(number)
    of = record["systems"].setdefault(system, {"seeds": {}})
    if seed in of["seeds"]:
        print(system, seed, "is there already")
        return
    path = images(options.data, options.runs, options.side)
    dataset = captioned(options.data, path) if system == "caption" else None
    if system not in record["speeds"]:
        record["speeds"][system] = speeds(system, path, options.side, options.runs, dataset)
        save(options.out, record)
    steps = {
        name: round(options.seconds * share * record["speeds"][system][name]) for name, share in SHARES[system].items()
    }
    run = options.runs / f"{system}-{seed}"
    trained(assembled(system, path, options.side, steps, number), run, dataset)
    took = {name: lines[-1]["seconds"] for name, lines in seconds_of(run, list(SHARES[system])).items()}
    found = measured(system, run, number, dataset)
    record |= {
        "data": {"side": options.side, "levels": LEVELS, "test": TEST},
        "seconds": options.seconds,
        "machine": machine(),
    }
    of["seeds"][seed] = {"steps": steps, "training_seconds": took, **found}
    save(options.out, record)
    print(system, seed, json.dumps(found["bits"]), took)


if __name__ == "__main__":
    main()
