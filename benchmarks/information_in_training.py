"""Does training push x and z toward independence? I(x; z) and KL[q(z) ‖ p(z)] of VAEs from initialisation on, MATH (21).

    python benchmarks/information_in_training.py [--steps 1500] [--out benchmarks/results/information_in_training.json]

VAEs on the digits whose decoder is a discretised Gaussian of fixed variance, from small to large, and one whose decoder learns its
own width (discretised logistic); beside them a diffusion model, whose I(x; z_1) is computed from each checkpoint's own process, at
γ_1 = 2, where it is not ln N. Informations are over the 1,000 training images, by 500 draws each.
"""

import argparse
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from rich.console import Console

import diffusional as df
from diffusional.information import aggregated, curve
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.vae import Autoencoder
from diffusional.training import recipes
from diffusional.training.build import build_dataset
from diffusional.training.config import Config, ScheduleConfig
from diffusional.training.loop import validate

VARIANCES = (0.05, 2.0, 10.0)
_DRAWS = 500


def fixed(variance: float) -> Config:
    """The digits' VAE with a decoder of fixed variance (values lie in [−1, 1])."""
    recipe = recipes.digits_vae()
    model = dataclasses.replace(recipe.model, likelihood="discretized-gaussian")
    return dataclasses.replace(
        recipe, model=model, latent=dataclasses.replace(recipe.latent, decoder_variance=variance)
    )


def diffusion() -> Config:
    """The digits' diffusion from γ_1 = 2 on."""
    recipe = recipes.digits()
    return dataclasses.replace(recipe, schedule=ScheduleConfig(gamma_min=2.0), steps=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of the VAEs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "information_in_training.json")
    options = parser.parse_args()
    plain = df.data.load("digits")
    originals = plain.encode("train")
    kinds = {f"VAE, decoder variance {v:g}": fixed(v) for v in VARIANCES}
    kinds |= {"VAE, decoder learns its width": recipes.digits_vae(), "diffusion, γ₁ = 2": diffusion()}
    traces: dict[str, list[dict[str, Any]]] = {}
    for name, recipe in kinds.items():
        steps = min(options.steps, recipe.steps)
        config = dataclasses.replace(recipe, steps=steps, validate_every=-(-steps // 10), checkpoint_every=steps)
        dataset, trace = build_dataset(config.data), traces.setdefault(name, [])

        def watch(
            step: int, model: LatentVariableModel, trace: Any = trace, dataset: Any = dataset, name: str = name
        ) -> None:
            generator = torch.Generator().manual_seed(0)
            row: dict[str, Any] = {"step": step, "nelbo_nats": validate(model, dataset, 0)}
            if isinstance(model, DiffusionModel):
                found = curve(originals, model.process.schedule, 2, _DRAWS, generator)
                row |= {"value": float(found.information[0]), "error": float(found.error[0])}
            else:
                assert isinstance(model, Autoencoder)
                parts = aggregated(model, originals, _DRAWS, generator)
                row |= {"value": parts.information.value, "error": parts.information.error}
                row |= {"marginal_kl": parts.marginal_kl.value, "marginal_kl_error": parts.marginal_kl.error}
                row |= {"kl": parts.kl.value, "kl_error": parts.kl.error, "active": list(parts.active)}
            trace.append(row)
            print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)

        with tempfile.TemporaryDirectory() as folder:
            df.train(config, Path(folder) / "run", dataset, console=Console(quiet=True), watch=watch)
    record = {
        "traces": traces,
        "entropy": math.log(len(originals)),
        "machine": machine(),
    }
    save(options.out, record)


if __name__ == "__main__":
    main()
