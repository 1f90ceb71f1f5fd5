"""The two-minute demonstration: a diffusion model trained on real digits, and its bound itemised beside yardsticks."""

import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from diffusional import baselines, exact
from diffusional.data import load as load_data
from diffusional.data.dataset import Dataset
from diffusional.evaluation import evaluate
from diffusional.files import save_json
from diffusional.ledger import Estimate
from diffusional.models.diffusion import DiffusionModel
from diffusional.report import figures, tables
from diffusional.space import Discrete
from diffusional.training.build import build_dataset
from diffusional.training.config import Config
from diffusional.training.loop import train

# Cells of continuous time in the evaluation, and latents of the chain that samples.
_CELLS = 200
_CHAIN = 250


def demo(config: Config, run: Path, console: Console) -> dict[str, Any]:
    """Train on the digits, evaluate on the test split, fit yardsticks on the same split, draw pictures; all into `run`."""
    dataset, plain = build_dataset(config.data), load_data("digits")
    space = dataset.space
    assert isinstance(space, Discrete)
    latents = "T = ∞ (continuous time)" if config.schedule.steps is None else f"T = {config.schedule.steps}"
    console.print(
        f"[bold]digits[/]: {len(plain.train)} train (and warped copies of them), {len(dataset.validation)} validation, {len(dataset.test)} test images, "
        f"{space.dimensions} dimensions of {space.levels} levels. log-SNR-linear time, {latents}."
    )
    model = train(config, run, dataset, console=console)
    x = dataset.encode("test")
    with _bar(console) as bar:
        task = bar.add_task("evaluating the test split", total=None)
        result = evaluate(
            model,
            x,
            seed=config.seed,
            cells=_CELLS,
            progress=lambda now: bar.update(task, completed=now.evaluations, total=now.expected),
        )
    record = result.to_json()
    rulers = yardsticks(plain)
    console.print(tables.ledger_table(record, f"The test ledger: {len(x)} images, {latents}"))
    looser = exact.Finite(x).information(model.process.schedule.ends()[0], generator=torch.Generator().manual_seed(0))
    console.print(
        f"The looser bound of MATH (9) is {record['nelbo_nats']['value'] + looser.value:.2f} nats: more by "
        f"I(x; z₁) = {looser.value:.4f} nats (ln {len(x)} = {math.log(len(x)):.4f}), which no training can change.\n"
    )
    rows = {"diffusion (upper bound)": record["nelbo"]} | {name: ruler["nelbo"] for name, ruler in rulers.items()}
    console.print(tables.yardstick_table(rows, "Bits per dimension of the test images"))
    pictures(model, x, result.levels_kl, run)
    out = {"models": {"diffusion": record}, "yardsticks": rulers, "run": str(run)}
    save_json(run / "demo.json", out)
    console.print(f"Pictures and numbers are in {run}: samples.png, forward.png, backward.png, levels.png, demo.json")
    return out


def yardsticks(dataset: Dataset) -> dict[str, Any]:
    """Baselines fitted on the train split (validation chooses their smoothing), scored on the test split."""
    space = dataset.space
    assert isinstance(space, Discrete)
    train_items, validation = dataset.train, dataset.validation
    fitted = {
        "mixture of 10 categoricals": baselines.CategoricalMixture.fit(train_items, space, validation),
        "factorised categorical": baselines.FactorizedCategorical.fit(train_items, space, validation),
    }
    return {name: _entry(-model.log_prob(dataset.test), space) for name, model in fitted.items()}


def _entry(nats: Tensor, space: Discrete) -> dict[str, Any]:
    """−ln p(x) per item as an evaluation's record: exact, so that only the items make an error."""
    estimate = Estimate(float(nats.mean()), 0.0, float(nats.std()) / math.sqrt(len(nats)), len(nats), 0)
    return {
        "nelbo": estimate.to("bits/dim", space.dimensions).to_dict(),
        "nelbo_nats": estimate.to_dict(),
        "terms": {},
        "items": len(nats),
        "dimensions": space.dimensions,
        "levels": space.levels,
        "network_evaluations": 0,
    }


@torch.no_grad()
def pictures(model: DiffusionModel, x: Tensor, levels_kl: Tensor, run: Path, shown: int = 5) -> None:
    """samples.png, forward.png, backward.png and levels.png of a digits model."""
    space = model.space
    assert isinstance(space, Discrete)
    schedule = model.process.schedule.regrid(_CHAIN)
    generator = torch.Generator().manual_seed(0)
    chain = model.regrid(_CHAIN)
    # Eleven latents, evenly spaced in log-SNR, from the clean end to the noisy one.
    kept = torch.linspace(1, _CHAIN, 11).round().long().tolist()
    log_snr = (-schedule.grid()[[t - 1 for t in kept]]).round().int().tolist()
    labels = ["x"] + [f"log-SNR {value}" for value in log_snr]

    some = x[:: len(x) // shown][:shown]
    path = chain.process.sample_path(some, generator)
    rows = [torch.stack([some[i], *(path[t - 1, i] for t in kept)]).numpy() for i in range(shown)]
    figures.paths(run / "forward.png", rows, labels, "The forward diffusion of five test digits")

    # The chain is walked once for all samples; the first of them show their paths.
    states = list(chain.walk_back(50, generator))
    *latents, samples = states
    latents = latents[::-1]
    rows = [torch.stack([samples[i], *(latents[t - 1][i] for t in kept)]).flip(0).numpy() for i in range(shown)]
    figures.paths(run / "backward.png", rows, labels[::-1], "The backward diffusion: from noise to five new digits")
    figures.grid(run / "samples.png", samples.numpy(), f"50 samples of the model's own chain, T = {_CHAIN}")

    gamma = model.process.schedule.regrid(len(levels_kl) + 1).grid()
    figures.level_costs(
        run / "levels.png", gamma.numpy(), levels_kl.numpy(), "Where the nats go: KL by noise level, test digits"
    )


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
