"""The loop of diffusers' training example, examples/unconditional_image_generation/train_unconditional.py, in our words.

Its steps, optimiser, schedule of the rate, clipping and EMA, with its default arguments and --use_ema; Accelerate prepares what
it prepares there. It is given its batches ready, from memory, where the example transforms images one by one; its logs go to a
tracker that is none, its progress bar is left out.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss


def steps(network: nn.Module, x: Tensor, batch: int, last: int) -> Callable[[], None]:
    """A training step of the example for a UNet2DModel, on images x (N, C, H, W) in [−1, 1]; `last` steps make the run."""
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=1)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=max(last, 1000))
    network, optimizer, rate = accelerator.prepare(network, optimizer, rate)
    network.train()
    order: list[Tensor] = []

    def step() -> None:
        if not order:
            order.extend(rows for rows in torch.randperm(len(x)).split(batch) if len(rows) == batch)
        clean = x[order.pop()]
        noise = torch.randn(clean.shape)
        t = torch.randint(0, noising.config.num_train_timesteps, (len(clean),))
        noisy = noising.add_noise(clean, noise, t)
        with accelerator.accumulate(network):
            loss = mse_loss(network(noisy, t).sample, noise)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(network.parameters())
        logs = {"loss": loss.detach().item(), "lr": rate.get_last_lr()[0], "ema_decay": average.cur_decay_value}
        accelerator.log(logs)

    return step
