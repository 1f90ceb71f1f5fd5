"""MNIST, 8-bit, twenty minutes on one GPU, in pieces that are all the same command.

    python benchmarks/gpu/mnist.py --data MNIST --run RUN [--piece 520] [--dry-run] [--out FILE]

The first piece measures how fast training is here and plans the run's steps for 20 minutes; each piece then trains until its
seconds are nearly over, leaves a checkpoint in RUN, and exits with 0. The one that finds training ended evaluates: the bound of
all test images in continuous time to ±0.002 bits/dim, into benchmarks/results/gpu-mnist.json.

Aim: below 0.62 bits/dim. (Published: PNG 2.80, a residual flow 0.97, an autoregressive transformer 0.62.)

The network is VDM's, which never shrinks the image, with a quarter of its depth; it says how probable each of the 256 levels is at every
pixel, freely, since most of MNIST is exactly 0 or 255, and a stroke's edge is either of these or something between.

--dry-run takes six small steps on the middle 8×8 pixels of a few images, on any machine, and writes into RUN.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import pieces

from diffusional.data import Dataset, load
from diffusional.space import Discrete
from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, SystemConfig

SECONDS = 1200.0  # of training, all pieces together
BETWEEN = 45.0  # seconds between two validations, and so between two moments at which a piece can end
RESERVE = 150.0  # seconds that the evaluation may take; a piece with fewer left leaves it to the next
ERROR = 0.002  # bits/dim
RESULT = Path(__file__).parents[1] / "results" / "gpu-mnist.json"


def recipe(data: str) -> Config:
    """All but the number of steps."""
    return Config(
        data=DataConfig(name=data, levels=256),
        schedule=ScheduleConfig(gamma_min=-9.21, gamma_max=10.12),
        model=ModelConfig(network="vdm", predicts="levels", head="categorical", widths=(128,), blocks=8, dropout=0.1),
        optimizer=OptimizerConfig(lr=8e-4, weight_decay=0.01, warmup=1000, flat=0.3, ema=0.9995),
        system=SystemConfig(compile=True, channels_last=True),
        sampler="adaptive",
        batch=256,
        precision="bf16",
    )


def small(config: Config) -> Config:
    """The same in small, for any machine."""
    model = dataclasses.replace(config.model, widths=(8,), blocks=1)
    return dataclasses.replace(config, model=model, system=SystemConfig(), precision="no", batch=8)


def middle(data: Dataset) -> Dataset:
    """The middle 8×8 pixels of a few images."""
    few = pieces.some(data, 64, 8)
    cut = {split: few.tensor(split)[:, :, 10:18, 10:18] for split in ("train", "validation", "test")}
    return dataclasses.replace(few, space=Discrete((1, 8, 8), 256), **cut)


def planned(config: Config, data: Dataset, dry: bool) -> Config:
    """With as many steps as fit into the seconds, at the speed that is measured here, and validations so many seconds apart."""
    rate = pieces.steps_per_second(config, data, 20 if dry else pieces.MEASURED)
    steps, every = (6, 2) if dry else (round(rate * SECONDS), max(1, round(rate * BETWEEN)))
    print(f"{rate:.1f} steps/s here: {steps} steps, a validation every {every}", flush=True)
    return dataclasses.replace(config, steps=steps, validate_every=every, checkpoint_every=every)


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's files")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, which a later piece finds again")
    parser.add_argument("--piece", type=float, default=520.0, help="seconds that this piece may take, at most")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument(
        "--out", type=Path, help=f"of the result; {RESULT.name} in benchmarks/results, or in RUN if dry"
    )
    args = parser.parse_args()
    until = started + args.piece

    data = load(args.data, levels=256)
    config = recipe(args.data)
    if args.dry_run:
        data, config = middle(data), small(config)
    config = pieces.begun(args.run) or planned(config, data, args.dry_run)
    model, trained = pieces.train_until(config, args.run, data, until)
    if model is None:
        return
    if trained and time.monotonic() + RESERVE > until and not args.dry_run:
        print("training has ended: give the same command again for the evaluation", flush=True)
        return

    how = (
        {"cells": 20}
        if args.dry_run
        else {"target_error": ERROR, "every_item": True, "reference": data.encode("train")}
    )
    out = args.out or (args.run / RESULT.name if args.dry_run else RESULT)
    pieces.write(out, pieces.evaluated(model, data, args.run, config, **how))


if __name__ == "__main__":
    main()
