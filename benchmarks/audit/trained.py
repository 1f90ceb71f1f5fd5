"""The two networks of the audit: U-Nets that predict the noise at DDPM's 1,000 levels, trained with L_simple as public code does."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d

import diffusional as df
from diffusional.networks import UNet

T, MOST = 1000, 20_000
# Widths of the U-Net, training steps, batch.
RECIPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "digits": ((16, 32), 2000, 128),
    "MNIST": ((16, 32), 1400, 64),
}


def images(name: str, mnist: str, split: str = "test") -> tuple[Tensor, df.Discrete]:
    """Return encoded images (N, 1, H, W) in [−1, 1] and their space: the digits, or MNIST's means of 2 × 2 pixels with 256 levels."""
    if name == "digits":
        data = df.data.load("digits")
        assert isinstance(data.space, df.Discrete)
        return data.encode(split), data.space
    space = df.Discrete((1, 14, 14), 256)
    whole = df.data.load(mnist, levels=256).tensor(split)[:MOST]
    return space.encode(avg_pool2d(whole.float(), 2).round().long()), space


def build(name: str, space: df.Discrete, module: torch.nn.Module | None = None) -> df.DiffusionModel:
    """Return DDPM's chain, T = 1000 with linear β, with a decoder of bins of variance σ_1², around a network that predicts the noise."""
    widths = RECIPES[name][0]
    process = df.GaussianDiffusion(df.schedule.linear(T))
    module = module or UNet(1, widths=widths, blocks=1)
    return df.DiffusionModel(process, df.Denoiser(module, "noise"), df.likelihood.DiscretizedGaussian(space))


def model(name: str, mnist: str, folder: Path) -> df.DiffusionModel:
    """Return the trained model of a data set, which is trained first if its weights are not in `folder`."""
    space = images(name, mnist)[1]
    path = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    made = build(name, space)
    if not path.exists():
        train(name, made, mnist)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(made.denoiser.module.state_dict(), path)
    made.denoiser.module.load_state_dict(load_file(path))
    return made.eval()


def train(name: str, made: df.DiffusionModel, mnist: str, report: Callable[[str], None] = print) -> None:
    """Train on L_simple with AdamW, a cosine rate and an average of the weights."""
    _, steps, batch = RECIPES[name]
    x, module = images(name, mnist, "train")[0], made.denoiser.module
    assert isinstance(module, torch.nn.Module)
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, i / 100) * 0.5 * (1 + math.cos(math.pi * i / steps))
    )
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    start = time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        loss = made.simple_loss(x[torch.randint(len(x), (batch,))])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(module)
        if step % 200 == 0:
            report(f"{name} {step}/{steps}: L_simple {loss.item():.4f}, {time.process_time() - start:.0f} CPU s")
    module.load_state_dict(average.module.state_dict())
