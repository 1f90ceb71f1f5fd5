"""denoising-diffusion-pytorch (lucidrains): its own GaussianDiffusion, Trainer, Adam and EMA, a step at a time.

    python -m pip install --no-deps --target /tmp/peers/site denoising-diffusion-pytorch==2.3.1 einops ema-pytorch

A folder beside the environment, never in it. The Trainer's `train` runs as it is, to one step more at every call. It is given its
batches ready, from memory, where by itself it would decode image files; sampling and FID are put off for ever.
"""

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn


def package(site: Path) -> tuple[ModuleType, dict[str, str]]:
    """The package of a folder, and the versions of it and of what it came with."""
    if not (site / "denoising_diffusion_pytorch").is_dir():
        raise SystemExit(f"no denoising_diffusion_pytorch in {site}; see {__file__} for how to install it there")
    sys.path.append(str(site))
    import torch._dynamo  # it asks for the specs of all modules there are, and the stand-in has none  # noqa: F401

    # torchvision's wheels don't load beside a torch for CPUs; it is only used on image files, of which there are none.
    sys.modules["torchvision"] = MagicMock()
    import denoising_diffusion_pytorch as found

    del sys.modules["torchvision"]
    named = ("denoising-diffusion-pytorch", "ema-pytorch", "einops")
    versions = {name: metadata.version(name) for name in named}
    sys.path.remove(str(site))
    return found, versions


class Adapted(nn.Module):
    """A network of diffusers, called and described as the package's own Unet is."""

    self_condition = False

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels, self.out_dim = network, channels, channels

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return self.network(x, time).sample


def steps(found: ModuleType, network: nn.Module, x: Tensor, batch: int) -> Callable[[], None]:
    """A training step of the package's Trainer with its defaults, on images x (N, C, H, W) in [−1, 1]."""
    diffusion = found.GaussianDiffusion(network, image_size=x.shape[-1], objective="pred_noise", beta_schedule="linear")
    forever = 10**9
    with tempfile.TemporaryDirectory() as folder:
        for i in range(100):  # it insists on as many files, which are not read
            (Path(folder) / f"{i}.png").touch()
        trainer = found.Trainer(
            diffusion,
            folder,
            train_batch_size=batch,
            save_and_sample_every=forever,
            results_folder=f"{folder}/results",
            calculate_fid=False,
        )
    trainer.dl = _batches((x + 1) / 2, batch)  # from [0, 1] it normalises by itself
    quiet = io.StringIO()

    def step() -> None:
        trainer.train_num_steps = trainer.step + 1
        with redirect_stdout(quiet), redirect_stderr(quiet):
            trainer.train()

    return step


def _batches(x: Tensor, batch: int) -> Iterator[Tensor]:
    while True:
        for rows in torch.randperm(len(x)).split(batch):
            if len(rows) == batch:
                yield x[rows]
