"""What benchmarks of small networks share: training for v on all noise levels with equal weights, for a time."""

import time

import torch
from torch import Tensor, nn


def noisy(x: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """Return z_t (B, …) of x at γ (B,)."""
    gamma = gamma.reshape(-1, *[1] * (x.dim() - 1))
    return (torch.sigmoid(-gamma).sqrt() * x + torch.sigmoid(gamma).sqrt() * noise).to(x.dtype)


def train(
    network: nn.Module,
    images: Tensor,
    seconds: float,
    ends: tuple[float, float],
    batch: int = 256,
    dither: float = 0.0,
    rate: float = 2e-3,
) -> dict[str, float]:
    """Train `network` (z, log SNR) → v on `images` (N, …) for `seconds` of CPU time, and return its steps and last loss.

    γ is uniform between `ends`; uniform noise of the width `dither` is added to the images. The rate falls linearly with the time.
    """
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    begun, step, loss = time.process_time(), 0, torch.zeros(())
    while (used := time.process_time() - begun) < seconds:
        optimizer.param_groups[0]["lr"] = rate * (1 - used / seconds) + 1e-5
        x = images[torch.randint(len(images), (batch,), generator=generator)].float()
        x = x + dither * (torch.rand(x.shape, generator=generator) - 0.5)
        gamma = ends[0] + (ends[1] - ends[0]) * torch.rand(len(x), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        # v = α ε − σ x is z at the angle of γ plus a right angle.
        shape = (-1, *[1] * (x.dim() - 1))
        a, s = torch.sigmoid(-gamma).sqrt().reshape(shape), torch.sigmoid(gamma).sqrt().reshape(shape)
        loss = (network(noisy(x, gamma, noise), -gamma) - (a * noise - s * x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
    network.eval().requires_grad_(False)
    return {"steps": step, "loss": float(loss.detach()), "cpu_seconds": seconds}
