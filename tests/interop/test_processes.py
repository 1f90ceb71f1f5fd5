"""`wrap.openai` and `wrap.lucidrains`: costs of objects with their attributes, against formulas written again from the papers."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional.errors import DiffusionalError
from diffusional.interop.wrap import wrap
from diffusional.models.diffusion import DiffusionModel
from interop.pipelines import kl

T, B = 6, 3
SPACE = df.Discrete((1, 4, 4), 256)
BETAS = np.linspace(0.02, 0.4, T)
BAR = torch.from_numpy(np.cumprod(1 - BETAS))


class Network(nn.Module):
    """A convolution of z and the time, in float64; it keeps the times that it was called with."""

    def __init__(self, outputs: int = 1, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels + 1, outputs, 3, padding=1).double()
        nn.init.normal_(self.conv.weight, std=0.2)
        self.times: list[float] = []

    def forward(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.times += [float(one) for one in t.unique()]
        plane = (t.double() / 1000).reshape(-1, 1, 1, 1).expand_as(z[:, :1])
        return self.conv(torch.cat([z, plane], 1)) + (0 if labels is None else labels.double().reshape(-1, 1, 1, 1))


def theirs(mean: str, variance: str, rescale: bool = False, **further: Any) -> Any:
    """An object with the attributes of OpenAI's GaussianDiffusion; its enums have names."""
    return SimpleNamespace(
        betas=BETAS,
        model_mean_type=SimpleNamespace(name=mean),
        model_var_type=SimpleNamespace(name=variance),
        rescale_timesteps=rescale,
        **further,
    )


def draws() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = SPACE.encode(torch.randint(0, 256, (B, 1, 4, 4), generator=generator), torch.float64)
    return x, torch.randn(T, B, 1, 4, 4, dtype=torch.float64, generator=generator)


def mass(x_hat: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """−ln of the mass of N(x̂, std²) in the bin of x, open at the ends: a difference of erfc, in the tail where it is small."""
    half = 1 / 255
    low = torch.where(x < -1 + half, -math.inf, (x - half - x_hat) / std)
    high = torch.where(x > 1 - half, math.inf, (x + half - x_hat) / std)
    low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)
    parts = [torch.erfc(-edge / math.sqrt(2)) for edge in (low, high)]
    return -(0.5 * (parts[1] - parts[0])).log().flatten(1).sum(1)


def x_hat(output: Tensor, z: Tensor, i: int, predicts: str, clipped: bool) -> Tensor:
    a, s = BAR[i].sqrt(), (1 - BAR[i]).sqrt()
    found = {"noise": (z - s * output) / a, "data": output, "v": a * z - s * output}[predicts]
    return found.clamp(-1, 1) if clipped else found


def posterior(x: Tensor, z: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(z_i|z_{i+1}, x), counted from 0."""
    beta = 1 - BAR[i] / BAR[i - 1]
    mean = (BAR[i - 1].sqrt() * beta * x + (BAR[i] / BAR[i - 1]).sqrt() * (1 - BAR[i - 1]) * z) / (1 - BAR[i])
    return mean, (1 - BAR[i - 1]) / (1 - BAR[i]) * beta


def agrees(model: DiffusionModel, expected: list[Tensor], reconstruction: Tensor) -> None:
    x, noise = draws()
    with torch.no_grad():
        ours = [model.level_kl(x, torch.full((B,), t), noise[t]) for t in range(1, T)]
        first = model.reconstruction(x, noise[0])
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(first, reconstruction, rtol=1e-6, atol=0)
    last = kl(BAR[-1].sqrt() * x, 1 - BAR[-1], 0 * x, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(model.prior(x), last, rtol=1e-9, atol=0)


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("variance", ["FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE", "LEARNED"])
@pytest.mark.parametrize("mean", ["EPSILON", "START_X"])
def test_openai(mean: str, variance: str, clipped: bool) -> None:
    network = Network(2 if "LEARNED" in variance else 1)
    model = wrap.openai(network, theirs(mean, variance), SPACE, clipped=clipped)
    x, noise = draws()
    kls, reconstruction = [], torch.zeros(0)
    for i in range(T):
        z = BAR[i].sqrt() * x + (1 - BAR[i]).sqrt() * noise[i]
        output = network(z, torch.full((B,), i)).detach()
        data = x_hat(output[:, :1], z, i, {"EPSILON": "noise", "START_X": "data"}[mean], clipped)
        # At the first level their table of the posterior's variance has that of the second.
        least, most = posterior(x, z, max(i, 1))[1], torch.tensor(BETAS[i])
        if variance == "LEARNED_RANGE":
            share = (output[:, 1:] + 1) / 2
            own = torch.exp(share * most.log() + (1 - share) * least.log())
        else:
            own = {"FIXED_SMALL": least, "FIXED_LARGE": most if i else least}.get(variance, output[:, 1:].exp())
        if i == 0:
            reconstruction = mass(data, own.sqrt(), x)
        else:
            mean_q, variance_q = posterior(x, z, i)
            kls.append(kl(mean_q, variance_q, posterior(data, z, i)[0], own))
    agrees(model, kls, reconstruction)
    assert network.times[:1] == [0.0]
    assert model.origin["kind"] == "openai"
    assert ("clipping" in model.origin.get("given", {})) != clipped


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"rescale": True}, [0, 1000 / 6, 2000 / 6, 500, 4000 / 6, 5000 / 6]),
        ({"timestep_map": [0, 3, 4, 6, 9, 11], "original_num_steps": 12}, [0, 3, 4, 6, 9, 11]),
        (
            {"timestep_map": [0, 2, 4, 6, 8, 10], "original_num_steps": 20, "rescale": True},
            [0, 100, 200, 300, 400, 500],
        ),
    ],
    ids=["number", "rescaled", "respaced", "respaced and rescaled"],
)
def test_openai_time(options: dict[str, Any], expected: list[float]) -> None:
    network = Network()
    model = wrap.openai(network, theirs("EPSILON", "FIXED_SMALL", **options), SPACE)
    z = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    for gamma in model.process.schedule.grid():
        model.denoiser(z, gamma.reshape(1))
    assert network.times == pytest.approx(expected)


def test_openai_labels_and_other_data() -> None:
    model = wrap.openai(Network(), theirs("EPSILON", "FIXED_LARGE"), SPACE)
    x, _ = draws()
    bounds = [df.evaluate(model, x, draws=1, condition=torch.full((B,), label)).nelbo.value for label in (0, 1)]
    assert abs(bounds[0] - bounds[1]) > 1
    real = wrap.openai(Network(), theirs("EPSILON", "FIXED_LARGE"), df.Continuous((1, 4, 4)))
    assert math.isfinite(df.evaluate(real, x, draws=1).nelbo.value)
    assert "density" in real.origin["assumed"]["decoder"]


def diffusion(objective: str = "pred_v", low: float = -1.0, **further: Any) -> Any:
    """An object with the attributes of lucidrains' GaussianDiffusion, whose betas are float64 here."""
    settings: dict[str, Any] = {
        "betas": torch.from_numpy(BETAS),
        "objective": objective,
        "model": Network(),
        "channels": 1,
        "image_size": (4, 4),
        "self_condition": False,
        "normalize": lambda x: low + (1 - low) * x,
    }
    return SimpleNamespace(**(settings | further))


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize(("objective", "predicts"), [("pred_noise", "noise"), ("pred_x0", "data"), ("pred_v", "v")])
def test_lucidrains(objective: str, predicts: str, clipped: bool) -> None:
    own = diffusion(objective)
    model = wrap.lucidrains(own, clipped=clipped)
    assert model.space == SPACE
    x, noise = draws()
    kls, reconstruction = [], torch.zeros(0)
    for i in range(T):
        z = BAR[i].sqrt() * x + (1 - BAR[i]).sqrt() * noise[i]
        data = x_hat(own.model(z, torch.full((B,), i)).detach(), z, i, predicts, clipped)
        if i == 0:
            reconstruction = mass(data, (1 - BAR[0]).sqrt(), x)
        else:
            mean_q, variance = posterior(x, z, i)
            kls.append(kl(mean_q, variance, posterior(data, z, i)[0], variance))
    agrees(model, kls, reconstruction)


def test_lucidrains_space() -> None:
    assert wrap.lucidrains(diffusion(low=0.0), levels=16).space == df.Discrete((1, 4, 4), 16, 0.0, 1.0)
    assert wrap.lucidrains(diffusion(image_size=8)).space.shape == (1, 8, 8)
    line = diffusion(seq_length=12)
    del line.image_size
    assert wrap.lucidrains(line).space.shape == (1, 12)
    own = df.likelihood.LevelPosterior(SPACE)
    assert wrap.lucidrains(diffusion(), likelihood=own).likelihood is own
    ddim = wrap.lucidrains(diffusion(is_ddim_sampling=True, sampling_timesteps=3))
    assert "sampling_timesteps=3" in ddim.origin["left_out"]["sampler"]


@pytest.mark.parametrize(("name", "value"), [("immiscible", True), ("offset_noise_strength", 0.1)])
def test_training_on_other_pairs_is_a_warning(name: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=name):
        wrap.lucidrains(diffusion(**{name: value}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "pred_u"}, "pred_u"),
        ({"self_condition": True}, "self-conditioned"),
        ({"model": SimpleNamespace(out_dim=2)}, "output channels"),
        ({"betas": [0.1, 2.0]}, "β_2"),
    ],
)
def test_lucidrains_refusals(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DiffusionalError, match=words):
        wrap.lucidrains(diffusion(**change))


def test_refusals_name_what_is_missing() -> None:
    with pytest.raises(DiffusionalError, match="betas"):
        wrap.lucidrains(Network())
    with pytest.raises(DiffusionalError, match="levels=None"):
        wrap.lucidrains(diffusion(), levels=None)
    with pytest.raises(DiffusionalError, match="PREVIOUS_X"):
        wrap.openai(Network(), theirs("PREVIOUS_X", "FIXED_SMALL"), SPACE)
    with pytest.raises(DiffusionalError, match="timestep_map"):
        wrap.openai(Network(), theirs("EPSILON", "FIXED_SMALL", timestep_map=[0, 1]), SPACE)
    other = df.likelihood.LevelPosterior(df.Discrete((1, 4, 4), 4))
    with pytest.raises(DiffusionalError, match=r"4 levels|levels=4"):
        wrap.openai(Network(), theirs("EPSILON", "FIXED_SMALL"), SPACE, likelihood=other)
    with pytest.raises(DiffusionalError, match="shape"):
        wrap.lucidrains(diffusion(image_size=8), likelihood=other)
