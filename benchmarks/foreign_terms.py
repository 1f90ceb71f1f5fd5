"""Are the terms of a checkpoint those of its own scheduler? Pipelines trained by diffusers' loop, every prediction and variance type.

    python benchmarks/foreign_terms.py [--data digits ../shared/data/mnist] [--seconds 60] [--items 4] [--out FILE]

For each prediction_type a UNet2DModel is trained by diffusers' classes only (DDPMScheduler.add_noise and the mean squared error of its
target) for a minute, and once more with a second half of its output, trained as the fraction of improved DDPM. Each is saved by
DDPMPipeline.save_pretrained with every variance_type and loaded by df.load_checkpoint. All T terms of some test items at fixed noise are
then computed twice: by the model, and from the scheduler's own `step` with its tables in float64.

Weights are cast to float64 before they are saved, so that differences are those of formulas and not of roundings.
"""

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from provenance import machine, save
from torch import Tensor

import diffusional as df

T = 1000
PREDICTIONS = ("epsilon", "sample", "v_prediction")
FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned_range", "learned")


def images(name: str) -> tuple[df.Discrete, Tensor, Tensor]:
    """Return the space, training items and test items, encoded from -1 to 1."""
    if name == "digits":
        data = df.data.load("digits")
        return data.space, data.encode("train"), data.encode("test")
    space = df.Discrete((1, 28, 28), 256)
    found = []
    for part in ("train", "t10k"):
        with gzip.open(Path(name) / f"{part}-images-idx3-ubyte.gz") as file:
            raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        found.append(space.encode(torch.from_numpy(raw.astype(np.int64))))
    return space, *found


def network(size: int, outputs: int) -> UNet2DModel:
    widths = (32, 32) if size == 8 else (16, 32)
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=outputs,
        block_out_channels=widths,
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def trained(prediction: str, outputs: int, x: Tensor, seconds: float) -> tuple[UNet2DModel, int, float]:
    """Return a network that was trained by diffusers' own loop, its number of steps, and its last mean loss."""
    torch.manual_seed(0)
    net = network(x.shape[-1], outputs)
    scheduler = DDPMScheduler(T, prediction_type=prediction)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    start, steps, losses = time.process_time(), 0, []
    while time.process_time() - start < seconds:
        clean = x[torch.randint(len(x), (64,))]
        noise, t = torch.randn_like(clean), torch.randint(T, (64,))
        noisy = scheduler.add_noise(clean, noise, t)
        output = net(noisy, t).sample
        target = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, t)}[
            prediction
        ]
        loss = torch.nn.functional.mse_loss(output[:, :1], target)
        losses.append(float(loss.detach()))
        if outputs == 2:
            loss = loss + 0.01 * fraction_loss(scheduler, output, clean, noisy, t, prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return net.eval(), steps, float(np.mean(losses[-100:]))


def fraction_loss(scheduler: Any, output: Tensor, x: Tensor, z: Tensor, t: Tensor, prediction: str) -> Tensor:
    """The KL of a step as a function of its variance only, as in improved DDPM."""
    bar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    before = torch.where(t > 0, scheduler.alphas_cumprod[(t - 1).clamp(min=0)], 1.0).view(-1, 1, 1, 1)
    beta = 1 - bar / before
    least = ((1 - before) / (1 - bar) * beta).clamp(min=1e-20)
    x_hat = {
        "epsilon": lambda o: (z - (1 - bar).sqrt() * o) / bar.sqrt(),
        "sample": lambda o: o,
        "v_prediction": lambda o: bar.sqrt() * z - (1 - bar).sqrt() * o,
    }[prediction](output[:, :1].detach())
    fraction = (output[:, 1:] + 1) / 2
    log_variance = fraction * beta.log() + (1 - fraction) * least.log()
    miss = (before.sqrt() * beta / (1 - bar)).square() * (x_hat.clamp(-1, 1) - x).square()
    kl = 0.5 * (log_variance - least.log() + (least + miss) * (-log_variance).exp() - 1)
    return (kl * (t > 0).view(-1, 1, 1, 1)).mean()


def own_variance(net: UNet2DModel) -> UNet2DModel:
    """Turn the second half of the output into a positive variance, for variance_type="learned"."""
    with torch.no_grad():
        net.conv_out.weight[1] *= 1e-4
        net.conv_out.bias[1] = 0.001
    return net


def in_float64(scheduler: Any) -> Any:
    """Return the scheduler with tables in float64."""
    scheduler.betas = torch.from_numpy(np.linspace(scheduler.config.beta_start, scheduler.config.beta_end, T))
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def stepped(scheduler: Any, output: Tensor, i: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of the scheduler's step, from its draws with noise 0 and 1."""
    draws = []
    for constant in (0.0, 1.0):
        scheduling_ddpm.randn_tensor = lambda shape, constant=constant, **_: torch.full(shape, constant).double()
        draws.append(scheduler.step(output, i, z).prev_sample)
    return draws[0], (draws[1] - draws[0]).square()


@torch.no_grad()
def expected(scheduler: Any, outputs: list[Tensor], x: Tensor, noise: Tensor, space: df.Discrete) -> dict[str, Tensor]:
    """The terms from the scheduler's own steps: q by the textbook, p by `step`, the decoder by the normal CDF."""
    scheduler, kl = in_float64(scheduler), []
    bar = scheduler.alphas_cumprod
    broken = scheduler.config.variance_type == "fixed_large_log"
    # Its step takes the root of a logarithm: the mean is that of fixed_large, and the variance is β.
    stepping = (
        in_float64(DDPMScheduler.from_config(scheduler.config, variance_type="fixed_large")) if broken else scheduler
    )
    for i in range(1, T):
        z = bar[i].sqrt() * x + (1 - bar[i]).sqrt() * noise[i]
        mean_p, variance_p = stepped(stepping, outputs[i], i, z)
        beta = 1 - bar[i] / bar[i - 1]
        mean_q = (bar[i - 1].sqrt() * beta * x + (bar[i] / bar[i - 1]).sqrt() * (1 - bar[i - 1]) * z) / (1 - bar[i])
        variance_q = (1 - bar[i - 1]) / (1 - bar[i]) * beta
        kl.append(gaussian_kl(mean_q, variance_q, mean_p, variance_p))
    z = bar[0].sqrt() * x + (1 - bar[0]).sqrt() * noise[0]
    x_hat = scheduler.step(outputs[0], 0, z).pred_original_sample
    std = (1 - bar[0]).sqrt()
    learns = scheduler.config.variance_type in LEARNED
    if learns:  # between the variance of q(z_1|z_2, x) and σ_1², in log space
        least = ((1 - bar[0]) / (1 - bar[1]) * (1 - bar[1] / bar[0])).log()
        most, second = (1 - bar[0]).log(), outputs[0][:, 1:]
        own = scheduler.config.variance_type == "learned"
        fraction = (second.log() - least) / (most - least) if own else (second + 1) / 2
        std = (0.5 * (fraction * most + (1 - fraction) * least)).exp()
    half = space.width / 2
    upper = torch.where(x > space.high - half, torch.inf, (x + half - x_hat) / std)
    lower = torch.where(x < space.low + half, -torch.inf, (x - half - x_hat) / std)
    # In the tail that is far from the mean, where the normal CDF is near 0 and not near 1.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_mass = high + torch.log1p(-(low - high).exp())
    prior = gaussian_kl(bar[-1].sqrt() * x, 1 - bar[-1], torch.zeros_like(x), torch.ones(()).double())
    reconstruction = -log_mass.flatten(1).sum(1)
    return {"kl": torch.stack(kl, 1), "prior": prior, "reconstruction": reconstruction}


def gaussian_kl(mean_q: Tensor, variance_q: Tensor, mean_p: Tensor, variance_p: Tensor) -> Tensor:
    """KL of diagonal Gaussians (B,): ½ Σ [Δμ²/v_p + φ(ln v_q/v_p)], φ(d) = e^d − 1 − d by its series for small d."""
    d = torch.log(variance_q / variance_p) + 0 * mean_q
    series = d**2 / 2 + d**3 / 6 + d**4 / 24 + d**5 / 120
    phi = torch.where(d.abs() < 1e-3, series, torch.expm1(d) - d)
    return 0.5 * ((mean_q - mean_p).square() / variance_p + phi).flatten(1).sum(1)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the term."""
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1e-12)).max())


@torch.no_grad()
def compared(
    net: UNet2DModel,
    outputs: list[Tensor],
    prediction: str,
    variance: str,
    space: df.Discrete,
    x: Tensor,
    noise: Tensor,
) -> dict[str, Any]:
    """Save a pipeline, load it, and compare its terms; then export it, load that, and compare bits/dim."""
    scheduler = DDPMScheduler(T, prediction_type=prediction, variance_type=variance)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        DDPMPipeline(net, scheduler).save_pretrained(folder / "theirs")
        model = df.load_checkpoint(folder / "theirs", space)
        again = df.load_checkpoint(df.export(model, folder / "ours"))
        terms = model.terms(x, noise)
        wanted = expected(scheduler, outputs, x, noise, space)
        bits = [df.evaluate(one, x[:1].float(), draws=1).nelbo.value for one in (model, again)]
    row = {name: difference(getattr(terms, name).double(), theirs) for name, theirs in wanted.items()}
    total = float(terms.nelbo.mean()) / space.dimensions / np.log(2)
    return {"prediction": prediction, "variance": variance, "items": len(x), "terms": len(x) * (T + 1), **row} | {
        "bits_per_dim": total,
        "export": abs(bits[1] - bits[0]) / bits[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "../shared/data/mnist"])
    parser.add_argument("--predictions", nargs="+", default=list(PREDICTIONS))
    parser.add_argument("--variances", nargs="+", choices=("fixed", "learned"), default=["fixed", "learned"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training by one core, for each network")
    parser.add_argument("--items", type=int, default=4, help="test items whose terms are compared")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/foreign_terms.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {"T": T, "seconds": args.seconds, "rows": [], "trained": []}
    if args.out.exists():  # of other data or predictions
        old = json.loads(args.out.read_text(encoding="utf-8"))
        names = ["digits" if name == "digits" else "MNIST" for name in args.data]

        def same(one: dict[str, Any]) -> bool:
            kind = "learned" if one.get("variance", "") in LEARNED or one.get("outputs") == 2 else "fixed"
            return one["data"] in names and one["prediction"] in args.predictions and kind in args.variances

        for key in ("rows", "trained"):
            record[key] = [one for one in old[key] if not same(one)]
    for name in args.data:
        short = "digits" if name == "digits" else "MNIST"
        space, x, test = images(name)
        some = test[: args.items].double()
        noise = torch.randn(T, *some.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        bar = in_float64(DDPMScheduler(T)).alphas_cumprod.view(-1, 1, 1, 1, 1)
        for prediction in args.predictions:
            for variances in (FIXED, LEARNED):
                if ("fixed" if variances == FIXED else "learned") not in args.variances:
                    continue
                net, steps, loss = trained(prediction, 1 if variances == FIXED else 2, x, args.seconds)
                record["trained"].append(
                    {
                        "data": short,
                        "prediction": prediction,
                        "outputs": net.config.out_channels,
                        "steps": steps,
                        "loss": loss,
                    }
                )
                net = net.double()
                for variance in variances:
                    if variance == "learned":
                        net = own_variance(net)
                    if variance in (FIXED[0], *LEARNED):
                        with torch.no_grad():
                            outputs = [
                                net(bar[i].sqrt() * some + (1 - bar[i]).sqrt() * noise[i], i).sample for i in range(T)
                            ]
                    row = {"data": short, **compared(net, outputs, prediction, variance, space, some, noise)}
                    record["rows"].append(row)
                    print(
                        {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()},
                        flush=True,
                    )
                save(args.out, record | machine())


if __name__ == "__main__":
    main()
