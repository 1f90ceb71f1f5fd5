"""A diffusion of 4,500 images of CIFAR-10, trained for about half an hour on one core, on 1,000 test images; beside baselines and PNG.

    python benchmarks/cifar10_subset.py --data cifar10-subset.npz --run RUN [--train]

The file has `train` (5,000 images, of which 500 are for validation) and `test`, uint8, N × 3 × 32 × 32. --train trains the model, or continues an interrupted training; without it, the run is
evaluated. Times are seconds of one thread on a machine that did other work at the same time.
"""

import argparse
import io
import json
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from provenance import commit, machine, save
from torch import Tensor

import diffusional as df
from diffusional.evaluation.baselines import simple_baseline
from diffusional.training import metrics_logger
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig


def config(data: str, seconds: float) -> Config:
    """Return the config: a small U-Net in continuous time that predicts the noise."""
    return Config(
        data=DataConfig(name=data, levels=256),
        model=ModelConfig(predicts="noise", widths=(32, 64, 64), blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
        steps=20_000,
        batch=16,
        validate_every=500,
        checkpoint_every=250,
        max_seconds=seconds,
    )


def png(images: Tensor) -> float:
    """Return the bits/dim of images (N, 3, H, W), uint8, as PNG files."""
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
        sizes.append(file.tell())
    return 8 * sum(sizes) / images.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the .npz file")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seconds", type=float, default=2000)
    parser.add_argument("--error", type=float, default=0.01, help="bits/dim, of the bound's mean")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cifar10_subset.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        df.train(config(options.data, options.seconds), options.run, resume=options.run.exists())
    run = df.load_run(options.run)
    data, lines = run.data(), metrics_logger.read(options.run)
    result = run.evaluate(target_error=options.error, every_item=True)
    print(result)
    raw = {split: data.items(split)[:] for split in ("train", "validation", "test")}
    base = simple_baseline(raw["train"], raw["validation"], raw["test"], data.space)
    record = {
        "machine": machine(),
        "commit": commit(),
        "items": {split: len(one) for split, one in raw.items()},
        "weights": sum(p.numel() for p in run.model.parameters()),
        "trained_steps": max(line["step"] for line in lines),
        # Of all parts of a training that was continued.
        "trained_seconds": metrics_logger.read(options.run, "timing.jsonl")[-1]["seconds"],
        "validations": [[line["step"], line["validation"]] for line in lines if "validation" in line],
        "evaluation": result.to_json(),
        "baselines": {name: one.nelbo.value / data.space.dimensions / math.log(2) for name, one in base.items()},
        "png": png(raw["test"].to(torch.uint8)),
    }
    save(options.out, json.loads(json.dumps(record)))


if __name__ == "__main__":
    main()
