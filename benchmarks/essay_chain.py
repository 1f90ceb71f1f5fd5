"""The essay's chain of five steps (presets essay and essay-tuned) beside the diffusion and the VAEs, on the digits at equal training time.

    python benchmarks/essay_chain.py [--runs runs/essay] [--seed 0]

The chains train for as many steps as the CPU time of the `digits` recipe's 1,200 steps allows. A step's CPU time is measured in this process
on one thread, the systems interleaved, so that a busy machine slows all of them alike. The other rows are those of side_by_side.json, which
were trained on the same split at the same equal time. Existing runs are not trained again, so that the command can be interrupted.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from rich.console import Console

import diffusional as df
from diffusional.evaluation import importance_weighted
from diffusional.files import load_json
from diffusional.training import recipes
from diffusional.training.build import build_dataset, build_model, build_sampler
from diffusional.training.config import Config

SYSTEMS = {"essay": recipes.essay, "essay-tuned": recipes.essay_tuned}
DIMENSIONS, DRAWS, SWEEPS = 64, 32, 32
RESULTS = Path(__file__).parent / "results"


class Steps:
    """Training steps of a config, without validations."""

    def __init__(self, config: Config) -> None:
        data = build_dataset(config.data)
        self.model, self.sampler = build_model(config, data.space), build_sampler(config)
        self.x = data.encode("train", slice(0, config.batch))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.optimizer.lr, fused=True)

    def seconds(self, n: int) -> float:
        """CPU seconds of one step, the mean of n."""
        begin = time.process_time()
        for _ in range(n):
            self.optimizer.zero_grad()
            self.model.loss(self.x, sampler=self.sampler).backward()
            self.optimizer.step()
        return (time.process_time() - begin) / n


def step_seconds(configs: dict[str, Config], rounds: int = 5, n: int = 4) -> dict[str, float]:
    """Median CPU seconds of a training step of each config."""
    steps = {name: Steps(config) for name, config in configs.items()}
    taken: dict[str, list[float]] = {name: [] for name in configs}
    for i in range(rounds + 1):
        for name, one in steps.items():
            seconds = one.seconds(n)
            if i:  # the first round is warm-up
                taken[name].append(seconds)
    return {name: statistics.median(several) for name, several in taken.items()}


def trained(name: str, steps: int, options: argparse.Namespace) -> Path:
    run = options.runs / f"{name}-seed{options.seed}"
    if not (run / "model.safetensors").exists():
        made, every = SYSTEMS[name](), max(1, steps // 12)
        config = replace(made, steps=steps, seed=options.seed, validate_every=every, checkpoint_every=every)
        df.train(config, run, resume=run.exists(), console=Console(quiet=True))
    return run


def measured(run: Path) -> dict[str, Any]:
    """The test bound, its ledger with an error for each level, and the importance-weighted bound, in bits/dim."""
    model, x = df.load(run), df.data.load("digits").encode("test")
    found = df.evaluate(model, x, draws=SWEEPS)
    nelbo, nats = found.nelbo.to("bits/dim", DIMENSIONS), DIMENSIONS * 0.6931471805599453
    tighter = importance_weighted(model, x, DRAWS).to("bits/dim", DIMENSIONS)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = load_json(run / "config.json")
    return {
        "nelbo": nelbo.to_dict(),
        "terms": {term: value.to("bits/dim", DIMENSIONS).to_dict() for term, value in found.terms.items()},
        "kl": {
            "value": [float(v) / nats for v in found.levels_kl],
            "error": [float(v) / nats for v in found.levels_error],
        },
        "importance_weighted": tighter.to_dict() | {"draws": DRAWS},
        "caveats": list(found.caveats),
        "gamma": model.noise_levels().tolist(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config["steps"],
        "curve": [[line["step"], line["validation"]] for line in lines if "validation" in line],
        "config": config,
    }


def others() -> dict[str, dict[str, Any]]:
    """Mean test bounds of side_by_side.json over its seeds, with the standard error by their spread."""
    seeds = load_json(RESULTS / "side_by_side.json")["seeds"]
    out = {}
    for name in next(iter(seeds.values())):
        values = [one[name]["nelbo"]["value"] for one in seeds.values() if "nelbo" in one[name]]
        if len(values) > 1:
            out[name] = {"value": statistics.mean(values), "error": statistics.stdev(values) / len(values) ** 0.5}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/essay"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--train-only", action="store_true", help="train, and leave the evaluation to a later call")
    parser.add_argument("--out", type=Path, default=RESULTS / "essay_chain.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    timing = options.runs / "timing.json"
    if not timing.exists():
        save(timing, step_seconds({"digits": recipes.digits()} | {name: make() for name, make in SYSTEMS.items()}))
    seconds = load_json(timing)
    steps = round(recipes.digits().steps * seconds["digits"] / seconds["essay"])
    print(f"{steps} steps: {seconds}", flush=True)
    runs = {name: trained(name, steps, options) for name in options.systems}
    if options.train_only:
        return
    systems = {name: measured(run) for name, run in runs.items()}
    beside = others()
    for name, one in systems.items():
        print(f"{name}: {one['nelbo']['value']:.4f} ± {one['nelbo']['error']:.4f} bits/dim")
    record = {
        "machine": machine(threads=1),
        "data": "digits, split [:1000] / [1000:1350] / [1350:], 447 test images",
        "step_cpu_seconds": seconds,
        "systems": systems,
        "beside": beside,
    }
    save(options.out, record)


if __name__ == "__main__":
    main()
