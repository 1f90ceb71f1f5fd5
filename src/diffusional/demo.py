"""The demonstration: a diffusion model, a VAE and a hierarchical VAE are trained on digits for the same time."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional import baselines
from diffusional.data import load as load_data
from diffusional.data.dataset import Dataset
from diffusional.evaluation import Evaluation, evaluate
from diffusional.evaluation.baselines import of_baseline
from diffusional.extras import needed_for
from diffusional.files import save_json
from diffusional.information import aggregated, curve
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel
from diffusional.report import figures, tables
from diffusional.space import Discrete
from diffusional.training import checkpoint, metrics_logger, recipes
from diffusional.training.build import build_dataset
from diffusional.training.config import Config
from diffusional.training.folder import Run, load_run
from diffusional.training.loop import train
from diffusional.training.run import CHECKPOINTS

with needed_for("cli"):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Target for the Monte Carlo error of the bounds, bits/dim.
_ERROR = 0.003
# Number of latents of the chain used for sampling.
_CHAIN = 250
# Number of draws for each estimate of I(x; z) during training.
_SAMPLES = 200
# Number of steps for measuring a model's speed; the first ten are a warm-up.
_TIMED = 40
_NAMES = {"diffusion": "diffusion", "vae": "VAE", "hierarchical_vae": "hierarchical VAE"}

# One model's I(x; z) during training: step, value, error.
Trace = list[dict[str, int | float]]


def demo(config: Config, run: Path, console: Console) -> dict[str, Any]:
    """Train three models on the digits for the same time, and evaluate them and some baselines on the test split.

    Results and pictures are written to `run`, the run folder of the diffusion model, which contains those of the other models.
    """
    dataset, plain = build_dataset(config.data), load_data("digits")
    space = dataset.space
    assert isinstance(space, Discrete)
    console.print(
        f"digits: {len(plain.items('train'))} training images (plus warped copies of them), {len(dataset.validation)} validation, {len(dataset.test)} test images, "
        f"{space.dimensions} dimensions of {space.levels} levels."
    )
    x, originals = dataset.encode("test"), plain.encode("train")
    diffusion, trace = _trained("diffusion", config, run, dataset, originals, console)
    assert isinstance(diffusion, DiffusionModel)
    seconds = checkpoint.restore_progress(run / CHECKPOINTS).seconds
    models: dict[str, LatentVariableModel] = {"diffusion": diffusion}
    traces: dict[str, Trace] = {"diffusion": trace}
    folders = {"diffusion": run} | {name: run / name for name in ("vae", "hierarchical_vae")}
    for name, recipe in (("vae", recipes.digits_vae()), ("hierarchical_vae", recipes.digits_hierarchical_vae())):
        chosen = _for_as_long(recipe, config, dataset, seconds)
        models[name], traces[name] = _trained(name, chosen, folders[name], dataset, originals, console)
    opened = {name: load_run(folder, dataset) for name, folder in folders.items()}
    results = {name: _evaluated(opened[name], model, x, config.seed, name, console) for name, model in models.items()}
    rulers = baseline_evaluations(plain)

    took = {name: checkpoint.restore_progress(path / CHECKPOINTS).seconds for name, path in folders.items()}
    said = ", ".join(f"{took[name]:.0f} s" for name in models)
    results = {
        name: dataclasses.replace(result, about={"information": traces[name], "seconds_of_training": took[name]})
        for name, result in results.items()
    }
    fitted = {name: one.to_json() for name, one in rulers.items()}
    out = {
        "models": {name: result.to_json() for name, result in results.items()},
        "baselines": fitted,
        "yardsticks": fitted,  # the name in earlier versions
        "run": str(run),
    }
    save_json(run / "demo.json", out)
    pictures(diffusion, x, results["diffusion"], run)
    for name in ("vae", "hierarchical_vae"):
        samples = models[name].sample(50, torch.Generator().manual_seed(0))
        figures.grid(run / f"samples-{name}.png", samples.numpy(), f"50 samples of the {_NAMES[name]}")
    figures.information_traces(
        run / "information.png",
        {_NAMES[name]: trace for name, trace in traces.items()},
        math.log(len(originals)),
        "Mutual information of x and the latents during training",
    )
    title = f"Ledgers of {len(x)} test images after {said} of training; bits/dim"
    named = {_NAMES[name]: result for name, result in results.items()}
    console.print(tables.ledgers_table(named, title))
    console.print(tables.baseline_table(named | rulers, "Bits per dimension of the test images"))
    known = curve(x, diffusion.process.schedule, 2, _SAMPLES, torch.Generator().manual_seed(0))
    _say(traces, results["diffusion"], len(originals), float(known.information[0]), console)

    console.print(f"Pictures and results are in {run}: *.png, demo.json", markup=False, emoji=False)
    return out


def _trained(
    name: str, config: Config, run: Path, dataset: Dataset, originals: Tensor, console: Console
) -> tuple[LatentVariableModel, Trace]:
    """Train a model. Return it, and I(x; z) over the training images at every validation, under the posterior at that time."""
    console.print(f"training the {_NAMES[name]}: {config.steps} steps")
    trace: Trace = []

    def watch(step: int, model: LatentVariableModel) -> None:
        generator = torch.Generator().manual_seed(0)
        learned, chain = model.learned_posterior(), model.visited()
        if learned is None:
            assert chain is not None
            found = curve(originals, chain.process.schedule, timesteps=2, samples=_SAMPLES, generator=generator)
            information = Estimate(float(found.information[0]), float(found.error[0]), 0.0, found.samples, 0)
        else:
            information = aggregated(learned, originals, _SAMPLES, generator).information
        trace.append({"step": step, "value": information.value, "error": information.error})

    return train(config, run, dataset, console=console, watch=watch), trace


def _for_as_long(
    recipe: Config,
    like: Config,
    dataset: Dataset,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Config:
    """Return the recipe with as many steps as take `seconds` on this machine, measured by a short run, and ten validations.

    `clock` returns the current time in seconds.
    """
    chosen = dataclasses.replace(recipe, data=like.data, seed=like.seed)
    short = dataclasses.replace(chosen, steps=_TIMED, validate_every=_TIMED, checkpoint_every=_TIMED)
    with tempfile.TemporaryDirectory() as folder:
        train(short, Path(folder) / "run", dataset, console=Console(quiet=True), clock=clock)
        told = metrics_logger.read(Path(folder) / "run", metrics_logger.TIMING)[
            :-1
        ]  # the last entry is that of the validation
    per_step = (told[-1]["seconds"] - told[0]["seconds"]) / (told[-1]["step"] - told[0]["step"])
    steps = max(1, round(seconds / per_step))
    return dataclasses.replace(chosen, steps=steps, validate_every=-(-steps // 10), checkpoint_every=steps)


def _evaluated(run: Run, model: LatentVariableModel, x: Tensor, seed: int, name: str, console: Console) -> Evaluation:
    """Evaluate the bound with the run's plan, which `diffusional evaluate` uses afterwards."""
    plan = run.plan(model, seed=seed)
    with _bar(console) as bar:
        task = bar.add_task(f"evaluating the {_NAMES[name]}", total=None)
        return evaluate(
            model,
            x,
            _ERROR,
            seed=seed,
            plan=plan,
            progress=lambda now: bar.update(task, completed=now.evaluations, total=now.expected),
        )


def _say(traces: Mapping[str, Trace], diffusion: Evaluation, n: int, known: float, console: Console) -> None:
    """Print how I(x; z) changed during training; `known` is I(x; z_1) of the test images."""
    console.print(
        f"I(x; z) over the {n} training images (at most ln {n} = {math.log(n):.4f} nats), first step → last step:"
    )
    for name, trace in traces.items():
        first, last = trace[0], trace[-1]
        latent = "z₁" if name == "diffusion" else "z"
        console.print(
            f"  {_NAMES[name]:<17} I(x; {latent}) {first['value']:.4f} ± {first['error']:.4f} → {last['value']:.4f} ± {last['error']:.4f}"
        )
    nelbo = diffusion.nelbo.value
    console.print(
        "The posterior of the diffusion model is fixed, so that training cannot change its I(x; z). The looser bound in the essay adds "
        f"it to the NELBO: {nelbo + known:.2f} nats instead of {nelbo:.2f}, where I(x; z₁) = {known:.4f} nats for the test images.\n"
    )


def baseline_evaluations(dataset: Dataset) -> dict[str, Evaluation]:
    """Return exact −ln p(x) of the test split under baselines fitted on the train split; validation chooses their smoothing."""
    space = dataset.space
    assert isinstance(space, Discrete)
    train_items, validation = dataset.tensor("train"), dataset.tensor("validation")
    fitted = {
        "mixture of 10 categoricals": baselines.CategoricalMixture.fit(train_items, space, validation),
        "factorised categorical": baselines.FactorizedCategorical.fit(train_items, space, validation),
    }
    test = dataset.tensor("test")
    return {name: of_baseline(model, test, space) for name, model in fitted.items()}


@torch.no_grad()
def pictures(model: DiffusionModel, x: Tensor, result: Evaluation, run: Path, shown: int = 5) -> None:
    """Draw samples.png, forward.png, reverse.png and levels.png for a model of the digits."""
    space = model.space
    assert isinstance(space, Discrete)
    schedule = model.process.schedule.regrid(_CHAIN)
    generator = torch.Generator().manual_seed(0)
    chain = model.regrid(_CHAIN)
    # Eleven latents, evenly spaced in log-SNR, from the least noisy one to the noisiest.
    kept = torch.linspace(1, _CHAIN, 11).round().long().tolist()
    log_snr = (-schedule.grid()[[t - 1 for t in kept]]).round().int().tolist()
    labels = ["x"] + [f"log-SNR {str(value).replace('-', '−')}" for value in log_snr]

    some = x[:: len(x) // shown][:shown]
    path = chain.process.sample_path(some, generator)
    rows = [torch.stack([some[i], *(path[t - 1, i] for t in kept)]).numpy() for i in range(shown)]
    figures.paths(run / "forward.png", rows, labels, "Forward diffusion of five test digits")

    # All samples come from one run of the chain; the paths of the first ones are shown.
    states = list(chain.walk_back(50, generator))
    *latents, samples = states
    latents = latents[::-1]
    rows = [torch.stack([samples[i], *(latents[t - 1][i] for t in kept)]).flip(0).numpy() for i in range(shown)]
    figures.paths(run / "reverse.png", rows, labels[::-1], "Reverse diffusion: from noise to five new digits")
    figures.grid(run / "samples.png", samples.numpy(), f"50 samples of the model, T = {_CHAIN}")

    figures.level_costs(run / "levels.png", result, "KL divergence by noise level, test digits")


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
