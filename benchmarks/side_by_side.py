"""Diffusion, VAE, hierarchical VAE and VAE with a diffusion prior on the digits at equal training time, and what their latents know.

    python benchmarks/side_by_side.py [--seeds 0 1 2] [--steps N] [--out benchmarks/results/side_by_side.json]

The recipes of training/recipes.py. The diffusion model trains first; the others get as many steps as its training time holds, by a
short run of their own. All are evaluated on the test split to ± 0.003 bits/dim (Monte Carlo). I(x; z) and KL[q(z) ‖ p(z)] are over
the 1,000 training images, MATH (21).
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import machine, save
from rich.console import Console

import diffusional as df
from diffusional import demo
from diffusional.evaluation import importance_weighted
from diffusional.information import aggregated
from diffusional.models.vae import Autoencoder
from diffusional.training import checkpoint, recipes
from diffusional.training.build import build_dataset
from diffusional.training.run import CHECKPOINTS

RECIPES = {
    "vae": recipes.digits_vae,
    "hierarchical_vae": recipes.digits_hierarchical_vae,
    "vae_diffusion_prior": recipes.digits_diffusion_prior,
}


def entry(model: Any, x: torch.Tensor, originals: torch.Tensor, name: str, seed: int) -> dict[str, Any]:
    """A model's test bound in bits/dim with both errors, its terms, and its latents' informations."""
    result = demo._evaluated(model, x, originals, seed, name, Console(quiet=True))
    out: dict[str, Any] = {
        "nelbo": result.nelbo.to("bits/dim", 64).to_dict(),
        "terms": {name: term.to("bits/dim", 64).value for name, term in result.terms.items()},
        "network_evaluations": result.nelbo.network_evaluations,
    }
    if isinstance(model, Autoencoder):
        out["latents"] = aggregated(model, originals, 1000, torch.Generator().manual_seed(0)).to_json()
        if getattr(model, "chain", None) is None:
            out["importance_weighted_64"] = importance_weighted(model, x, 64).to("bits/dim", 64).to_dict()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="of the diffusion model, in place of the recipe's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "side_by_side.json")
    options = parser.parse_args()
    demo._NAMES["vae_diffusion_prior"] = "VAE, diffusion prior"
    plain, started = df.data.load("digits"), time.monotonic()
    x, originals = plain.encode("test"), plain.encode("train")
    seeds: dict[str, Any] = {}
    for seed in options.seeds:
        config = dataclasses.replace(recipes.digits(), seed=seed)
        if options.steps is not None:
            config = dataclasses.replace(config, steps=options.steps)
        dataset = build_dataset(config.data)
        rows: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            quiet = Console(quiet=True)
            model, trace = demo._trained("diffusion", config, Path(folder) / "diffusion", dataset, originals, quiet)
            seconds = checkpoint.restore_progress(Path(folder) / "diffusion" / CHECKPOINTS).seconds
            rows["diffusion"] = entry(model, x, originals, "diffusion", seed) | {
                "information": trace,
                "seconds": seconds,
            }
            for name, recipe in RECIPES.items():
                chosen = demo._for_as_long(recipe(), config, dataset, seconds)
                model, trace = demo._trained(name, chosen, Path(folder) / name, dataset, originals, quiet)
                took = checkpoint.restore_progress(Path(folder) / name / CHECKPOINTS).seconds
                rows[name] = entry(model, x, originals, name, seed) | {
                    "information": trace,
                    "seconds": took,
                    "steps": chosen.steps,
                }
        for name, row in rows.items():
            nelbo = row["nelbo"]
            print(
                seed,
                name,
                f"{nelbo['value']:.4f} ± {nelbo['error']:.4f} (items ± {nelbo['item_error']:.4f})",
                flush=True,
            )
        seeds[str(seed)] = rows
        record = {
            "seeds": seeds,
            "yardsticks": {
                name: ruler.nelbo.to("bits/dim", 64).to_dict()
                for name, ruler in demo.baseline_evaluations(plain).items()
            },
            "seconds": time.monotonic() - started,
            "machine": machine(),
        }
        save(options.out, record)


if __name__ == "__main__":
    main()
