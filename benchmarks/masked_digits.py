"""Digits as sequences of unordered categories beside the Gaussian family: the same data, training time and test items.

    python benchmarks/masked_digits.py --runs RUNS [--seconds 180] [--only masked]

Each of the 64 pixels is one of 17 categories of a masked diffusion with a transformer; the Gaussian diffusion is the preset `digits`. Both are trained for
`--seconds` of one core on the 1,000 digits and 15 warped copies of each, and evaluated on the 447 test digits. The number of steps is chosen
by the time of 30 steps, so that the learning rate has fallen to zero at the end. Times are CPU-seconds of one thread.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from provenance import machine
from rich.console import Console

import diffusional as df
from diffusional.data.dataset import Dataset
from diffusional.training import recipes
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, ModelConfig, OptimizerConfig

PIXELS = 64
# Validations of a run; the best weights are kept.
VALIDATIONS = 3


def as_sequences(digits: Dataset) -> Dataset:
    """Return the digits as sequences (N, 64) of 17 categories, in the order of the rows of pixels."""
    raw = {split: digits.tensor(split).flatten(1).long() for split in ("train", "validation", "test")}
    return Dataset(
        "digits as categories", df.space.Categorical(PIXELS, 17), raw["train"], raw["validation"], raw["test"]
    )


def configs() -> dict[str, Config]:
    """Return the configs of both families, whose steps are still to be chosen."""
    sequences = ModelConfig(kind="masked", hidden=64, blocks=3, heads=4, dropout=0.1)
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.1, warmup=100, ema=0.998)
    return {
        "masked": Config(model=sequences, optimizer=optimizer, batch=64, sampler="stratified"),
        "gaussian": recipes.digits(),
    }


def trained(config: Config, data: Dataset, run: Path, seconds: float) -> tuple[Path, dict[str, Any]]:
    """Train for about `seconds`; return the run, and its steps and time."""
    quiet, cost = Console(quiet=True), {}
    for steps in (1, 1, 31):
        probe = run.with_name(f"{run.name}-probe")
        shutil.rmtree(probe, ignore_errors=True)
        start = time.process_time()
        short = replace(config, steps=steps, validate_every=steps, checkpoint_every=steps)
        df.train(short, probe, data, console=quiet)
        cost[steps] = time.process_time() - start
    # A run of one step is mostly its validation.
    steps = max(VALIDATIONS, int((seconds - (VALIDATIONS - 1) * cost[1]) / ((cost[31] - cost[1]) / 30)))
    shutil.rmtree(run, ignore_errors=True)
    start, every = time.process_time(), -(-steps // VALIDATIONS)
    df.train(replace(config, steps=steps, validate_every=every, checkpoint_every=steps), run, data, console=quiet)
    return run, {"steps": steps, "cpu_seconds": round(time.process_time() - start)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--only", choices=list(configs()))
    parser.add_argument("--error", type=float, default=0.002, help="of the evaluation, bits per dimension")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/masked-digits.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = build_dataset(recipes.digits().data)
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"models": {}}
    for name, config in configs().items():
        if given.only not in (None, name):
            continue
        data = as_sequences(digits) if name == "masked" else digits
        run, taken = trained(config, data, given.runs / name, given.seconds)
        opened = df.load_run(run, data)
        start = time.process_time()
        found = opened.evaluate(opened.encode("test"), given.error)
        bits = found.nelbo.to("bits/dim", PIXELS)
        record["models"][name] = taken | {
            "weights": sum(p.numel() for p in opened.model.parameters()),
            "bits": bits.value,
            "error": bits.error,
            "over items": bits.item_error,
            "evaluation_seconds": round(time.process_time() - start),
        }
        record |= {"items": len(digits.test), "seconds": given.seconds, "machine": machine()}
        given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, json.dumps(record["models"][name]), flush=True)


if __name__ == "__main__":
    main()
