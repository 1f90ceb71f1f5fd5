"""docs/monai.md: its code runs, with networks and a scheduler of MONAI's signatures, and gives DDPM's bound."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import F64
from diffusional import likelihood

PAGE = Path(__file__).parents[2] / "docs" / "monai.md"
T = 20


class StandIn(nn.Module):
    """With the signature of MONAI's DiffusionModelUNet, for items of 2 or 3 axes; ε̂ depends on the index of the level."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = (nn.Conv2d, nn.Conv3d)[axes - 2](1, 1, 3, padding=1).double()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: tuple[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        assert not timesteps.dtype.is_floating_point or bool((timesteps == timesteps.round()).all())
        shift = 0.1 * timesteps.to(x) / T + (0 if context is None else context.flatten(1).mean(1))
        return torch.tanh(self.layer(x) + shift.reshape(-1, *(1,) * (x.ndim - 1)))


def scheduler(variance: str = "fixed_small") -> Any:
    betas = torch.linspace(1e-4, 0.2, T, dtype=torch.float32)
    return SimpleNamespace(betas=betas, prediction_type="epsilon", variance_type=variance)


def written(unet: nn.Module, inputs: Tensor, of: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The names that the code of the page defines, for items of another shape."""
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    assert "(1, 64, 64), levels=256" in match[1]
    code = match[1].replace("(1, 64, 64), levels=256", f"{shape}, levels=256")
    names: dict[str, Any] = {"unet": unet, "inputs": inputs, "scheduler": of}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 4, 2)])
def test_the_page_runs_in_two_and_three_dimensions(shape: tuple[int, ...]) -> None:
    inputs = torch.randint(0, 256, (8, *shape), generator=torch.Generator().manual_seed(1)).double() / 255
    names = written(StandIn(len(shape) - 1), inputs, scheduler(), shape)
    assert names["scores"].nelbo.shape == (8,)
    assert names["maps"].total.shape == (4, *shape)
    assert bool((names["scores"].error > 0).all())


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_every_term_is_ddpm_s(variance: str) -> None:
    """By the formulas of Ho et al. 2020 with α̅ of the scheduler, in float64."""
    shape, of = (1, 4, 5), scheduler(variance)
    inputs = torch.randint(0, 256, (6, *shape), generator=torch.Generator().manual_seed(1)).double() / 255
    unet = StandIn(2)
    model = written(unet, inputs, of, shape)["model"]
    noise = torch.randn(T, *inputs.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    ledger = model.terms(inputs, noise)
    betas = of.betas.double()
    bar = torch.cumprod(1 - betas, 0)
    for t in range(1, T):  # MONAI counts from 0: the step from x_t to x_{t−1}
        x_t = bar[t].sqrt() * inputs + (1 - bar[t]).sqrt() * noise[t]
        said = unet(x_t, torch.full((len(inputs),), t))
        start = (x_t - (1 - bar[t]).sqrt() * said) / bar[t].sqrt()
        first, second = (
            bar[t - 1].sqrt() * betas[t] / (1 - bar[t]),
            (1 - betas[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t]),
        )
        true, ours = (first * x + second * x_t for x in (inputs, start))
        v_q = (1 - bar[t - 1]) / (1 - bar[t]) * betas[t]
        v_p = v_q if variance == "fixed_small" else betas[t]
        kl = 0.5 * (v_p.log() - v_q.log() + v_q / v_p - 1 + (true - ours).square() / v_p)
        torch.testing.assert_close(ledger.kl[:, t - 1], kl.flatten(1).sum(1), rtol=1e-8, atol=1e-10)
    last = 0.5 * (bar[-1] * inputs.square() + (1 - bar[-1]) - 1 - (1 - bar[-1]).log())
    torch.testing.assert_close(ledger.prior, last.flatten(1).sum(1), rtol=1e-8, atol=1e-10)


def test_context_is_the_condition() -> None:
    shape, of = (1, 4, 5), scheduler()
    space = df.Discrete(shape, levels=256, low=0.0, high=1.0)
    noise = df.schedule.from_betas(of.betas)
    denoiser = df.wrap(StandIn(2), predicts=of.prediction_type, time=noise)
    decoder = likelihood.DiscretizedGaussian(space)
    model = df.DiffusionModel(df.GaussianDiffusion(noise), denoiser, decoder, variance=of.variance_type)
    x = torch.randint(0, 256, (4, *shape), generator=torch.Generator().manual_seed(1)).double() / 255
    context = torch.ones(4, 1, 3, dtype=F64)
    one, other = (df.evaluate(model, x, condition=c).nelbo.value for c in (None, context))
    assert one != other
