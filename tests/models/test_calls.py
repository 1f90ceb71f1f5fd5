"""Networks from anywhere: whatever they return or lack, there is one error that says what to do."""

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.models.calls import call
from diffusional.models.time import Affine
from diffusional.networks import MLP, FromDiffusers, ResidualMLP

Z, S = torch.zeros(2, 3), torch.zeros(2)
Pair = namedtuple("Pair", "mean variance")


class Net(nn.Module):
    """Returns what it is made with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor) -> Any:
        return self.output


WRONG: dict[str, tuple[Any, str]] = {
    "tuple": ((Z, S), "Net.*tuple of 2.*expected a tensor"),
    "list": ([Z], "list of 1"),
    "named tuple": (Pair(Z, Z), "Pair of 2"),
    "dict": ({"sample": Z, "other": S}, "dict of 'sample', 'other'"),
    "nothing": (None, "None"),
    "number": (1.0, "float"),
    "diffusers-like": (SimpleNamespace(sample=Z), "FromDiffusers"),
    "distribution": (torch.distributions.Normal(Z, Z + 1), "Normal.*Wrap it in a function"),
    "integers": (Z.long(), "int64.*floating-point"),
    "booleans": (Z.bool(), "bool.*floating-point"),
    "complex": (Z.to(torch.complex64), "complex64.*floating-point"),
    "device": (Z.to("meta"), "meta.*cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_output_that_is_no_tensor_of_numbers_here(name: str) -> None:
    output, said = WRONG[name]
    with pytest.raises(DiffusionalError, match=said):
        call(Net(output), Z, S)
    with pytest.raises(DiffusionalError, match=said):
        df.Denoiser(Net(output))(Z, S)


def test_every_model_that_takes_a_network_checks_it() -> None:
    x = torch.ones(2, 3)
    binomial = df.BinomialDiffusionModel(_binomial(), Net((x, x)), df.space.binary((3,)))
    with pytest.raises(DiffusionalError, match="tuple of 2"):
        binomial.elbo(x)
    likelihood = df.likelihood.GaussianLikelihood(df.Continuous((3,)), variance=0.1)
    for encoder, decoder, role in (
        (Net((x, x)), nn.Identity(), "encoder"),
        (ResidualMLP((3,), 4, hidden=8), Net((x, x)), "decoder"),
    ):
        with pytest.raises(DiffusionalError, match=f"{role}.*tuple of 2"):
            df.VAE(encoder, decoder, likelihood, latents=2).elbo(x)


def _binomial() -> Any:
    from diffusional.binomial import BinomialDiffusion

    return BinomialDiffusion.constant(5)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 6), "learns_variance"),
        ((1, 3), "one row per item"),
        ((3, 2), "reshape"),
        ((2, 4), r"\(2, 4\).*\(2, 3\)"),
        ((2, 3, 1), "reshape"),
    ],
)
def test_a_wrong_shape(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(DiffusionalError, match=said):
        df.Denoiser(Net(torch.zeros(shape)))(Z, S)


class Failing(nn.Module):
    """Raises an error."""

    def __init__(self, error: Exception, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.error, self.weight = error, nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, *inputs: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Failing(RuntimeError("two devices"), device="meta"), r"on meta.*cpu.*\.to\("),
        (Failing(RuntimeError("same dtype"), dtype=torch.float64), r"float64.*float32.*\.to\("),
        (nn.BatchNorm1d(3), "single value.*at least 2 items"),
    ],
)
def test_an_error_that_the_caller_can_mend(network: nn.Module, said: str) -> None:
    with pytest.raises(DiffusionalError, match=said) as raised:
        call(network, Z[:1])
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of memory"),
        TypeError("missing 1 required positional argument"),
        ValueError("no"),
        KeyError("k"),
        DiffusionalError("log-SNR 3 came"),
    ],
)
def test_other_errors_of_a_network_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        call(Failing(error), Z)
    assert raised.value is error


def unet(**more: Any) -> nn.Module:
    from diffusers import UNet2DModel

    small: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    return UNet2DModel(4, 1, 1, **small, **more)


def test_a_network_of_diffusers_as_it_is_names_its_wrapper() -> None:
    space, betas = df.Discrete((1, 4, 4), 5), schedule.linear(20)
    network = unet()

    def model(module: Callable[..., Any]) -> df.DiffusionModel:
        from diffusional.models.time import TrainedIndex

        denoiser = df.Denoiser(module, time=TrainedIndex(betas))
        return df.DiffusionModel(df.GaussianDiffusion(betas), denoiser, df.likelihood.DiscretizedGaussian(space))

    x = space.encode(torch.randint(5, (2, 1, 4, 4)))
    for bare in (network, lambda z, time: network(z, time)):
        with pytest.raises(DiffusionalError, match=r"UNet2DOutput.*df\.networks\.FromDiffusers.*TrainedIndex"):
            model(bare).loss(x)
    assert bool(model(FromDiffusers(network)).loss(x).isfinite())


def test_a_network_of_diffusers_that_lacks_its_condition() -> None:
    from diffusers import UNet2DConditionModel

    small: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "cross_attention_dim": 8}
    small |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    network = UNet2DConditionModel(4, 1, 1, attention_head_dim=4, **small)
    z, s = torch.zeros(2, 1, 4, 4), torch.zeros(2)
    with pytest.raises(DiffusionalError, match=r"encoder_hidden_states.*FromDiffusers"):
        df.Denoiser(network)(z, s)
    with pytest.raises(DiffusionalError, match=r"no condition.*encoder_hidden_states"):
        df.Denoiser(FromDiffusers(network), time=Affine())(z, s)
    with pytest.raises(DiffusionalError, match=r"condition as label.*condition_as"):
        df.Denoiser(FromDiffusers(network, "label"), time=Affine())(z, s, torch.zeros(2, 1, 8))
    with pytest.raises(DiffusionalError, match=r"time=.*FromDiffusers.*TrainedIndex"):
        df.Denoiser(FromDiffusers(network))


@pytest.mark.parametrize(("output", "said"), [(Z, "Tensor"), ((Z,), "tuple"), (SimpleNamespace(sample=1), "sample")])
def test_the_wrapper_of_diffusers_networks_takes_no_others(output: Any, said: str) -> None:
    with pytest.raises(DiffusionalError, match=f"FromDiffusers.*{said}|{said}.*FromDiffusers"):
        FromDiffusers(Net(output))(Z, S)


def test_a_good_network_is_called_as_it_was() -> None:
    network = MLP((3,), hidden=8)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.ones_like(p))
    z = torch.randn(2, 3)
    assert torch.equal(call(network, z, S), network(z, S))


class InPlace(nn.Module):
    """Halves every tensor that it is given, or copies of them; its output has the width of the first, or twice that."""

    def __init__(self, in_place: bool, outputs: int = 3) -> None:
        super().__init__()
        self.in_place, self.outputs = in_place, outputs

    def forward(self, *inputs: Any) -> Tensor:
        tensors = [v for given in inputs for v in (given.values() if isinstance(given, dict) else [given])]
        tensors = tensors if self.in_place else [v.clone() for v in tensors]
        for v in tensors:
            v.mul_(0.5)
        out = tensors[0] + sum(v.flatten(1).mean(1, keepdim=True) for v in tensors[1:] if v.ndim > 1)
        return out if self.outputs == 3 else torch.cat([out, -out], 1)


@pytest.mark.parametrize("condition", [None, "tensor", "dict"])
def test_a_network_may_change_its_inputs_in_place(condition: str | None) -> None:
    rows = {"tensor": torch.ones(2, 1), "dict": {"label": torch.ones(2, 1)}, None: None}[condition]
    z, s = torch.arange(6.0).view(2, 3), torch.ones(2)
    out = call(InPlace(in_place=True), z, s, condition=rows)
    assert torch.equal(out, call(InPlace(in_place=False), z, s, condition=rows))
    assert torch.equal(z, torch.arange(6.0).view(2, 3))
    assert torch.equal(s, torch.ones(2))
    kept = rows["label"] if isinstance(rows, dict) else rows
    assert kept is None or torch.equal(kept, torch.ones(2, 1))


@pytest.mark.parametrize("kind", ["diffusion", "vae"])
def test_models_are_the_same_with_a_network_that_works_in_place(kind: str) -> None:
    space = df.Continuous((3,))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    before = x.clone()

    def costs(in_place: bool) -> Tensor:
        if kind == "diffusion":
            forward = df.GaussianDiffusion(schedule.linear(steps=10))
            denoiser = df.Denoiser(InPlace(in_place))
            model = df.DiffusionModel(forward, denoiser, df.likelihood.GaussianLikelihood(space))
        else:
            p = df.likelihood.GaussianLikelihood(space, variance=1.0)
            model = df.VAE(InPlace(in_place, 6), InPlace(in_place), p, 3, predicts="data")
        return model.elbo(x, torch.Generator().manual_seed(0)).nelbo

    assert torch.equal(costs(True), costs(False))
    assert torch.equal(x, before)
