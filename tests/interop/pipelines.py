"""Small checkpoints of diffusers' own classes, with random weights in float64, and their schedulers' own formulas in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

# T of a scheduler that is not given.
STEPS = 6


def unet(outputs: int = 1, dtype: torch.dtype = torch.float64, **options: Any) -> UNet2DModel:
    """A U-Net of one resolution for items of 1×4×4, with random weights everywhere (a fresh one has zeros in places)."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 4,
        "in_channels": 1,
        "out_channels": outputs,
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    network = UNet2DModel(**(settings | options))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.double() if dtype is torch.float64 else network.to(dtype)


def saved(folder: Path, scheduler: Any = None, network: Any = None, **options: Any) -> Path:
    """A pipeline's folder."""
    scheduler = DDPMScheduler(num_train_timesteps=STEPS) if scheduler is None else scheduler
    DDPMPipeline(unet() if network is None else network, scheduler).save_pretrained(folder, **options)
    return folder


def float64_betas(config: Any) -> np.ndarray:
    """β_1 … β_T of a config, by the formulas of diffusers' code, written again in float64."""
    steps, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    kind = config.beta_schedule
    if config.trained_betas is not None:
        out = np.array(config.trained_betas, dtype=np.float64)
    elif kind == "linear":
        out = np.linspace(start, end, steps)
    elif kind == "scaled_linear":
        out = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif kind == "sigmoid":
        out = 1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (end - start) + start
    else:
        bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        out = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    if config.rescale_betas_zero_snr:
        roots = np.sqrt(np.cumprod(1 - out))
        first, last = roots[0], roots[-1]
        roots = (roots - last) * first / (first - last)
        bar = roots**2
        out = 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return out


def in_float64(scheduler: Any) -> Any:
    """The same scheduler, whose tables are float64."""
    scheduler.betas = torch.from_numpy(float64_betas(scheduler.config))
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def kl(mean_q: Tensor, variance_q: Tensor, mean_p: Tensor, variance_p: Tensor) -> Tensor:
    """KL of diagonal Gaussians (B,), by the plain formula."""
    variance_q, variance_p = torch.broadcast_tensors(variance_q, variance_p)
    parts = variance_q / variance_p + (mean_q - mean_p) ** 2 / variance_p - 1 + torch.log(variance_p / variance_q)
    return 0.5 * (parts + 0 * mean_q).flatten(1).sum(1)
