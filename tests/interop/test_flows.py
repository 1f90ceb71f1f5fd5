"""How diffusers' pipelines of flows call their networks, on tiny ones."""

import itertools
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel

import diffusional as df
from diffusional.errors import DiffusionalError
from diffusional.interop.checkpoint import load_checkpoint
from diffusional.interop.flows import FLOWS, called
from diffusional.interop.networks import DiffusersNetwork
from diffusional.interop.schedulers import declared

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def sd3() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
        pos_embed_max_size=4,
    ).eval()


def flux(guidance: bool = False) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guidance,
    ).eval()


CONDITION = {
    "encoder_hidden_states": torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)),
    "pooled_projections": torch.randn(2, 5, generator=torch.Generator().manual_seed(1)),
}


def folder_of(network: Any, path: Path) -> Path:
    network.save_pretrained(path)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(path)
    return path


def recorded(model: Any, x: torch.Tensor, t: torch.Tensor) -> tuple[dict[str, Any], Any]:
    """What the network is called with at z = (1 − t) x + t ε, and the prediction."""
    seen: dict[str, Any] = {}
    handle = model.denoiser.module.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    gamma = 2 * torch.log(t / (1 - t))
    prediction = model.denoiser(x, gamma, CONDITION)
    handle.remove()
    return seen, prediction


T = torch.tensor([0.3, 0.9], dtype=torch.float64)


def test_sd3_reads_a_thousand_times_t(tmp_path: Path) -> None:
    space = df.Continuous((4, 4, 4))
    model = load_checkpoint(folder_of(sd3(), tmp_path / "sd3"), space)
    assert "StableDiffusion3Pipeline" in model.origin["config"]["time"]
    assert "time" not in model.origin["assumed"]
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    seen, said = recorded(model, z, T)
    torch.testing.assert_close(seen["timestep"], (1000 * T).float())
    # As the pipeline's scheduler does at σ = t: x̂ = z − σ v, for the latent (1 − t) x + t ε that the network reads.
    output = model.denoiser.module.network(**seen).sample
    torch.testing.assert_close(said.data, seen["hidden_states"] - T.float()[:, None, None, None] * output)


def test_flux_reads_t_and_patches(tmp_path: Path) -> None:
    space = df.Continuous((4, 4, 6))
    model = load_checkpoint(folder_of(flux(), tmp_path / "flux"), space)
    assert "FluxPipeline" in model.origin["config"]["time"]
    z = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    seen, said = recorded(model, z, T)
    torch.testing.assert_close(seen["timestep"], T.float())
    c = 1 / ((1 - T) ** 2 + T**2).sqrt()
    latent = (z / c.float()[:, None, None, None]).float()
    # The patch in row i and column j of 2 × 3 patches: its four values of a channel are neighbours.
    for i, j in ((0, 0), (1, 2)):
        patch = latent[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 16)
        torch.testing.assert_close(seen["hidden_states"][:, 3 * i + j], patch)
        assert seen["img_ids"][3 * i + j].tolist() == [0, i, j]
    assert seen["txt_ids"].shape == (3, 3)
    assert not seen["txt_ids"].any()
    rows, output = model.denoiser.module.network(**seen).sample, torch.empty_like(latent)
    for i, j in itertools.product(range(2), range(3)):
        output[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = rows[:, 3 * i + j].reshape(2, 4, 2, 2)
    torch.testing.assert_close(said.data, latent - T.float()[:, None, None, None] * output)


def test_flux_names_what_is_missing(tmp_path: Path) -> None:
    network = DiffusersNetwork(flux(guidance=True))
    assert network.required == ("encoder_hidden_states", "pooled_projections", "guidance")
    with pytest.raises(DiffusionalError, match="guidance"):
        network(torch.zeros(2, 4, 4, 4), T, CONDITION)
    network(torch.zeros(2, 4, 4, 4), T.float(), CONDITION | {"guidance": torch.ones(2)})
    with pytest.raises(DiffusionalError, match="even"):
        network(torch.zeros(2, 4, 3, 4), T, CONDITION | {"guidance": torch.ones(2)})
    with pytest.raises(DiffusionalError, match=r"Discrete\(\(4,"):
        load_checkpoint(folder_of(flux(), tmp_path / "flux"))


def sources() -> dict[str, str]:
    """The code of every pipeline by its class. The files are read, as pipelines cannot be imported without transformers."""
    found = {}
    for path in (Path(diffusers.__file__).parent / "pipelines").glob("*/pipeline_*.py"):
        code = path.read_text(encoding="utf-8")
        found |= dict.fromkeys(re.findall(r"^class (\w+Pipeline)\(", code, flags=re.MULTILINE), code)
    return found


def test_the_table_is_that_of_the_pipelines() -> None:
    """The code of a pipeline gives the timestep, divides it by 1000, or counts it the other way."""
    codes, checked = sources(), 0
    divisions = ("timestep / 1000", "[t / 1000]", "- timestep) / 1000", "/ self.scheduler.config.num_train_timesteps)")
    divisions += ("- t / self.scheduler", "current_timestep / self.scheduler")
    for network, flow in FLOWS.items():
        if flow.pipeline not in codes:  # of a later version of diffusers
            continue
        code = codes[flow.pipeline]
        assert network in code
        assert any(text in code for text in divisions) == (flow.share == 1e-3), network
        backwards = ("1 - t / self", "(1000 - timestep)", "1 - current_timestep /")
        assert any(text in code for text in backwards) == flow.of_data, network
        assert ("noise_pred = -noise_pred" in code) == flow.negative, network
        checked += 1
    assert checked >= 8


def test_outputs_and_times_of_the_other_sign() -> None:
    plain = declared(FLOW)
    lumina, hidream = (called(plain, f"{name}Transformer2DModel") for name in ("Lumina2", "HiDreamImage"))
    gamma = torch.tensor([0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(lumina.time(-gamma), torch.sigmoid(-gamma / 2))
    torch.testing.assert_close(hidream.time(-gamma), 1000 * torch.sigmoid(gamma / 2))
    for one in (lumina, hidream):
        a, b = one.output.at(gamma)
        assert (a.tolist(), b.tolist()) == ([1.0, 1.0], [-1.0, -1.0])
    assert called(plain, "SanaTransformer2DModel", 0.001).time(-gamma)[0] == pytest.approx(0.5)
    # Other networks and other processes stay as they are.
    assert called(plain, "UNet2DModel") is plain
    betas = declared({"_class_name": "DDPMScheduler"})
    assert called(betas, "FluxTransformer2DModel") is betas
