"""How many evaluations does the plan need on networks trained by diffusers? Four tiny U-Nets on 8 × 8 MNIST.

    python benchmarks/foreign.py [--data ../shared/data/mnist] [--networks runs/foreign] [--only NAME …] [--train]

    eps-linear    predicts the noise, DDPM's linear β
    eps-cosine    predicts the noise, cosine β (squaredcos_cap_v2)
    eps-learned   predicts the noise and the variance (learned_range), linear β
    v-linear      predicts v, linear β

A UNet2DModel (0.65 M weights) is trained by diffusers' own loop: `DDPMScheduler.add_noise`, the squared error of the output, AdamW,
`EMAModel`. It is saved as a DDPMPipeline in `--networks` (a few minutes each on one core; `--train` stops there), and read again with
`df.load_checkpoint`, which clips x̂ as the scheduler's `clip_sample` says. The data are MNIST's images, averaged over 4 × 4 pixels, with
256 levels; the test items are the first 256.

Of every network and estimator, K is the number of evaluations per item for ± 0.01 bits/dim on these 256 items, from the variance of one
evaluation within an item (estimators.py); plans are learned on 10,000 training images, and their pilots are not counted in K.
"""

import argparse
import json
import math
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from cost_to_error import plan_for
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from estimators import Visited, evaluations, variances, visited
from provenance import machine, save
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss, pad

import diffusional as df
from diffusional.evaluation import Plan
from diffusional.ledger import per_unit

TARGET = 0.01
# Ends of the bands of log SNR in which the plan's variance is divided.
BANDS = (-2, 0, 2, 4, 6, 8)
# β, prediction_type and variance_type of DDPMScheduler.
NETWORKS = {
    "eps-linear": ("linear", "epsilon", "fixed_small"),
    "eps-cosine": ("squaredcos_cap_v2", "epsilon", "fixed_small"),
    "eps-learned": ("linear", "epsilon", "learned_range"),
    "v-linear": ("linear", "v_prediction", "fixed_small"),
}
T = 1000


def mnist8(data: str, split: str, items: int) -> Tensor:
    """Return images of 8 × 8 pixels (N, 1, 8, 8) with 256 levels, encoded: the means of 4 × 4 pixels of the padded originals."""
    images = df.data.load(data, levels=256).tensor(split)[:items].float()
    return df.Discrete((1, 8, 8), 256).encode(avg_pool2d(pad(images, (2, 2, 2, 2)), 4).round().long())


def train(kind: str, x: Tensor, folder: Path, steps: int, widths: tuple[int, ...], batch: int = 128) -> None:
    """Train a UNet2DModel on images x (N, C, H, W) in [−1, 1] by diffusers' loop, and save its pipeline."""
    beta, prediction, variance = NETWORKS[kind]
    torch.manual_seed(0)
    channels, learned = x.shape[1], variance == "learned_range"
    network = UNet2DModel(
        sample_size=x.shape[2],
        in_channels=channels,
        out_channels=2 * channels if learned else channels,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
    )
    scheduler = DDPMScheduler(T, beta_schedule=beta, prediction_type=prediction, variance_type=variance)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=50, num_training_steps=steps)
    average = EMAModel(network.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    start = time.monotonic()
    for step in range(steps):
        clean = x[torch.randint(len(x), (batch,))]
        noise, t = torch.randn(clean.shape), torch.randint(0, T, (batch,))
        noisy = scheduler.add_noise(clean, noise, t)
        output = network(noisy, t).sample
        wanted = noise if prediction == "epsilon" else scheduler.get_velocity(clean, noise, t)
        loss = mse_loss(output[:, :channels], wanted)
        if learned:
            loss = loss + variance_loss(scheduler, output[:, :channels].detach() - noise, output[:, channels:], t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        if step % 100 == 0:
            print(f"{folder.name} {step} {float(loss.detach()):.4f} {time.monotonic() - start:.0f} s", flush=True)
    average.copy_to(network.parameters())
    DDPMPipeline(network, scheduler).save_pretrained(folder)


def variance_loss(scheduler: DDPMScheduler, error: Tensor, fraction: Tensor, t: Tensor) -> Tensor:
    """Return the KL of a step in bits/dim, as a function of its variance only (Nichol & Dhariwal 2021, §3.1).

    Args:
        error: ε̂ − ε (B, C, H, W), without gradient.
        fraction: (B, C, H, W) from −1, the posterior's variance β̃_t, to 1, the transition's β_t, in log space.
        t: (B,); the first step, which is the decoder's, is left out.
    """
    beta, kept = scheduler.betas, scheduler.alphas_cumprod
    before = torch.cat([torch.ones(1), kept[:-1]])
    posterior = (beta * (1 - before) / (1 - kept)).clamp(min=1e-20)
    some = (t > 0).nonzero().squeeze(1)
    t, error, fraction = t[some], error[some], fraction[some]
    least, most = posterior[t].log()[:, None, None, None], beta[t].log()[:, None, None, None]
    log_variance = least + (most - least) * (fraction + 1) / 2
    apart = (beta[t] / ((1 - beta[t]).sqrt() * (1 - kept[t]).sqrt()))[:, None, None, None] * error
    kl = 0.5 * (log_variance - least + (least.exp() + apart.square()) * (-log_variance).exp() - 1)
    return kl.mean() / 0.6931471805599453


def network(
    kind: str, x: Tensor, folder: Path, steps: int, widths: tuple[int, ...], batch: int = 128, levels: int = 256
) -> Any:
    """Return the model of a network of `NETWORKS`, which is trained first if it is not in its folder."""
    if not (folder / "model_index.json").exists():
        train(kind, x, folder, steps, widths, batch)
    return df.load_checkpoint(folder, levels=levels)


def measured(model: Any, reference: Tensor, x: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return K of every estimator, from plans with pilots of `--pilot` evaluations, and one whole evaluation to ± 0.01."""
    ks: dict[str, list[dict[str, float]]] = {}
    own, dropped, means, shares = [], [], [], []
    for seed in range(options.plans):
        plan = Plan.fit(model, reference, options.pilot, seed)
        bare = plan_for(model, reference, options.pilot, seed, ((), False, True))
        draws = visited(model, plan, x, options.each, options.pairs, seed)
        for name, one in evaluations(model, variances(model, plan, bare, draws), len(x), TARGET).items():
            ks.setdefault(name, []).append(one)
        own.append([control.name for control in plan.controls])
        dropped.append(plan.provenance["dropped_controls"])
        means.append(float((draws.known + draws.weighted.mean(1)).mean()))
        shares.append(share_of_variance(model, draws))
    whole = df.evaluate(model, x, target_error=TARGET, reference=reference)
    bits = whole.nelbo.to("bits/dim", x[0].numel())
    return {
        "weights": sum(value.numel() for value in model.parameters()),
        "bits/dim": statistics.fmean(means) / per_unit("bits/dim", x[0].numel()),
        "K": {
            name: {
                "K": statistics.fmean(one["K"] for one in found),
                "error": math.hypot(*(one["error"] for one in found)) / len(found),
                "of each plan": [one["K"] for one in found],
            }
            for name, found in ks.items()
        },
        "controls": own,
        "dropped controls": dropped,
        "share of the plan's variance by log SNR": {
            band: statistics.fmean(one[band] for one in shares) for band in shares[0]
        },
        "one evaluation to ± 0.01": {
            "bits/dim": bits.value,
            "error": bits.error,
            "reached": whole.reached,
            "evaluations": whole.provenance["evaluations"],
        },
    }


def share_of_variance(model: Any, draws: Visited) -> dict[str, float]:
    """Return which share of the variance within items lies in which band of log SNR, and at the reconstruction."""
    squares = (draws.weighted - draws.weighted.mean(1, keepdim=True)).square()
    log_snr = -model.noisy_gamma(draws.level.flatten()).detach().double().cpu().view(squares.shape)
    bands = torch.bucketize(log_snr, torch.tensor(BANDS, dtype=torch.float64))
    names = [f"below {BANDS[0]}", *(f"{a} to {b}" for a, b in pairwise(BANDS)), f"above {BANDS[-1]}"]
    return {
        name: float(squares[bands == k].sum() / squares.sum())
        for k, name in enumerate(names)
        if bool((bands == k).any())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--networks", type=Path, default=Path("runs/foreign"), help="where the trained networks are")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--pilot", type=int, default=3000)
    parser.add_argument("--plans", type=int, default=3, help="plans, each from a pilot of its own, behind every row")
    parser.add_argument("--each", type=int, default=32, help="draws of every item")
    parser.add_argument("--pairs", type=int, default=4, help="of these, with two noises, for the sweep's variance")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--train", action="store_true", help="train the networks that are missing, and evaluate none")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "foreign.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference = mnist8(options.data, "train", 10_000)
    x = mnist8(options.data, "test", options.items)
    record: dict[str, Any] = {"rows": {}} if not options.out.exists() else json.loads(options.out.read_text())
    record |= {"machine": machine(1) | {"diffusers": diffusers.__version__}}
    record |= {"items": len(x), "target": TARGET, "pilot": options.pilot, "plans": options.plans, "draws": options.each}
    for kind in options.only:
        model = network(kind, reference, options.networks / kind, options.steps, (32, 64))
        if not options.train:
            record["rows"][kind] = measured(model, reference, x, options)
            print(kind, record["rows"][kind], flush=True)
            save(options.out, record)


if __name__ == "__main__":
    main()
