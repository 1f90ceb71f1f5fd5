"""The presets of systems of several stages, trained as `diffusional train RUN --composite NAME` trains them: one bound each, by stage, and samples.

    python benchmarks/presets.py --data MNIST-FOLDER --runs RUNS

Times are CPU-seconds of one thread: of each stage's steps and validations, of the evaluation of all test items to `--target-error`, and of the
samples. `--part` shortens every stage, for a trial. A preset is added to the JSON when it is trained and evaluated; one that is there already is
left out, and an interrupted training is resumed.

Samples are of ten captions or labels, six each, without guidance and with w = 2. A multilayer perceptron of scikit-learn, trained on MNIST's
images, counts the samples that look like the digit asked for; of captions, the words for stroke, size and slant are counted that the caption
written of the sample has too. The levels of the samples are in the JSON, as base64 of bytes.
"""

import argparse
import base64
import functools
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from labelled import accuracy_of, network_classifier, share
from provenance import commit, machine, save
from torch import Tensor

import diffusional as df
from diffusional.data.captions import write
from diffusional.space import Discrete
from diffusional.training import metrics_logger
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite
from diffusional.training.systems import SYSTEMS

PRESETS = ("digits-cascade", "latent-small", "unclip-small", "imagen-small")
CAPTIONS = (
    "a thin large zero",
    "a thick one leaning right",
    "a thin two",
    "a thick small three",
    "a thin four",
    "a thick five leaning right",
    "a six leaning left",
    "a thin large seven",
    "a thick small eight",
    "a thin nine",
)
EACH = 6
# Latents of a stage in continuous time that is sampled in a cascade of three.
STEPS = 100
BITS = math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=list(PRESETS))
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"))
    parser.add_argument("--part", type=float, default=1.0, help="of the steps of every stage")
    parser.add_argument("--target-error", type=float, default=0.005, help="bits/dim, of the bound's mean")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "presets.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.preset:
        record = json.loads(options.out.read_text()) if options.out.exists() else {"presets": {}}
        if name in record["presets"]:
            print(name, "is there already")
            continue
        found = measured(name, options)
        record["presets"][name] = found | {"machine": machine(), "commit": commit(), "part": options.part}
        save(options.out, record)
        print(name, json.dumps(found["bits"]), found["training_seconds"], found["evaluation_seconds"], flush=True)


def config_of(name: str, options: argparse.Namespace) -> CompositeConfig:
    """Return the config of a preset with the data folder, and with `--part` of its steps."""
    config = SYSTEMS[name]()
    if config.data.name == "digits" and config.data.levels is not None:
        config = replace(config, data=replace(config.data, name=str(options.data)))
    if options.part == 1:
        return config
    stages = {}
    for stage, own in config.stages.items():
        n = max(4, round(own.steps * options.part))
        warmup = min(own.optimizer.warmup, max(1, n // 4))
        optimizer = replace(own.optimizer, warmup=warmup)
        stages[stage] = replace(own, steps=n, validate_every=n, checkpoint_every=n, optimizer=optimizer)
    return replace(config, stages=stages)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate and sample a preset."""
    config, run = config_of(name, options), options.runs / name
    started = time.process_time()
    train_composite(config, run, resume=(run / "composite.json").exists(), clock=time.process_time)
    training = time.process_time() - started
    stages = {stage: stage_of(run / "stages" / stage, own) for stage, own in config.of_stages().items()}
    print(name, {stage: one["seconds"] for stage, one in stages.items()}, flush=True)
    started = time.process_time()
    own = df.load_run(run)
    result = own.evaluate(target_error=options.target_error)
    evaluation = time.process_time() - started
    print(result, flush=True)
    x, d = own.encode("test"), own.space.dimensions
    model: Any = own.model
    for stage, part in [*model.stages.items(), *([("encoder", model.encoder)] if hasattr(model, "encoder") else [])]:
        stages.setdefault(stage, {})["weights"] = sum(p.numel() for p in part.parameters())
    started = time.process_time()
    samples = sampled(name, own, x, options)
    return {
        "condition": config.data.condition,
        "stages": stages,
        "training_seconds": round(training, 1),
        "bits": {"value": result.nelbo.value / d / BITS, "error": result.nelbo.error / d / BITS},
        "items_error_bits": result.nelbo.item_error / d / BITS,
        "nats": result.nelbo.to_dict(),
        "terms": {term: value.to_dict() for term, value in result.terms.items()},
        "items": len(x),
        "dimensions": d,
        "reached": result.reached,
        "network_evaluations": result.nelbo.network_evaluations,
        "evaluation_seconds": round(evaluation, 1),
        "sampling_seconds": round(time.process_time() - started, 1),
        "samples": samples,
    }


def stage_of(run: Path, config: df.Config) -> dict[str, Any]:
    """Return the length, the CPU-seconds and the validations of a stage."""
    lines = metrics_logger.read(run, "metrics.jsonl")
    return {
        "steps": config.steps,
        "batch": config.batch,
        "seconds": round(metrics_logger.read(run, "timing.jsonl")[-1]["seconds"], 1),
        # Nats for a contrastive encoder, bits/dim of the stage's own variable for others.
        "validations": [[line["step"], round(line["validation"], 5)] for line in lines if "validation" in line],
    }


def sampled(name: str, run: Any, x: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return samples of every stage with and without guidance, and how many are what was asked for."""
    model, out = run.model, dict[str, Any]()
    if name == "digits-cascade":
        return {"plain": {"images": pictured(model, drawn(model, 20, None))}}
    digits = torch.arange(10).repeat_interleave(EACH)
    if run.record.classes:
        asked: tuple[str, ...] = run.record.classes
        condition: Any = digits
    else:
        asked = CAPTIONS
        condition = run.embed([text for text in CAPTIONS for _ in range(EACH)])
    small = model.regrid(STEPS) if name == "imagen-small" else model
    classifier = classifier_of(str(options.data))
    for weight in (1.0, 2.0):
        guided = small if weight == 1 else small.guided(weight)
        every = drawn(guided, len(digits), condition)
        *_, images = every.values()
        found = {"images": pictured(model, every), "accuracy": accuracy_of(classifier, images, digits)}
        if asked is CAPTIONS:
            found["words"] = share(words_kept(run.space.index(images), digits))
        out[f"w={weight:g}"] = found
        print(name, weight, {key: value for key, value in found.items() if key != "images"}, flush=True)
    out |= {"asked": list(asked), "each": EACH}
    if name == "unclip-small":
        between = model.interpolate(x[0], x[1], n=8)
        out["interpolated"] = coded(torch.cat([x[:1], between, x[1:2]]), run.space)
    return out


@functools.cache
def classifier_of(data: str) -> Any:
    """Return a classifier of MNIST's digits."""
    return network_classifier(df.data.load(data, levels=256, condition="label"))


def drawn(model: Any, n: int, condition: Any) -> dict[str, Tensor]:
    return model.sample_stages(n, torch.Generator().manual_seed(0), condition)


def words_kept(index: Tensor, digits: Tensor) -> Tensor:
    """Return for every word asked for, besides the digit, whether the caption written of its sample has it."""
    written = write(index[:, 0].numpy(), 256, [str(digit) for digit in digits.tolist()])
    names = [text.split() for text in CAPTIONS for _ in range(EACH)]
    kept = []
    for words, text in zip(names, written, strict=True):
        said = text.split()
        kept += [word in said for word in words if word in ("thin", "thick", "small", "large", "left", "right")]
    return torch.tensor(kept)


def pictured(model: Any, every: dict[str, Tensor]) -> dict[str, Any]:
    """Return the levels of the stages' variables that are images."""
    found = {}
    for name, values in every.items():
        space = model.stages[name].space
        if isinstance(space, Discrete) and len(space.shape) == 3:
            found[name] = coded(values, space)
    return found


def coded(x: Tensor, space: Discrete) -> dict[str, Any]:
    """Return the levels of images (N, 1, H, W), encoded, as base64 of bytes."""
    levels = space.index(x).numpy().astype(np.uint8)
    return {
        "shape": [len(x), *levels.shape[-2:]],
        "levels": space.levels,
        "base64": base64.b64encode(levels.tobytes()).decode(),
    }


if __name__ == "__main__":
    main()
