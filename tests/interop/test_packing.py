"""Transformers that read rows of patches: called as their pipelines call them, on tiny ones, or refused by name."""

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from diffusional.errors import DiffusionalError
from diffusional.interop.checkpoint import load_checkpoint
from diffusional.interop.networks import DiffusersNetwork
from diffusional.interop.packing import PACKED
from diffusional.space import Continuous
from interop.test_flows import folder_of

H, W, C, WORDS = 4, 6, 4, 3
TEXT = torch.randn(2, WORDS, 6, generator=torch.Generator().manual_seed(0))
CONDITIONS: dict[str, dict[str, torch.Tensor]] = {
    "FluxTransformer2DModel": {"pooled_projections": torch.ones(2, 5)},
    "ChromaTransformer2DModel": {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()},
}


def tiny(name: str) -> Any:
    """A network of two heads of eight channels, for latents of four channels."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "patch_size": 2 if name.startswith("Qwen") else 1,
        "in_channels": 4 * C,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 6,
        "axes_dims_rope": (2, 2, 4),
    }
    if not name.startswith("Qwen"):
        settings["num_single_layers"] = 1
    more: dict[str, dict[str, Any]] = {
        "ChromaTransformer2DModel": {
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 8,
            "approximator_layers": 1,
        },
        "FluxTransformer2DModel": {"pooled_projection_dim": 5},
        "LongCatImageTransformer2DModel": {"pooled_projection_dim": 5},
        "OvisImageTransformer2DModel": {"out_channels": 4 * C},
        "QwenImageTransformer2DModel": {"out_channels": C},
    }
    return getattr(diffusers, name)(**(settings | more[name])).eval()


def by_pipeline(name: str, z: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The rows and the places by the functions of the pipeline itself, whose file is run without its imports of transformers."""
    found: dict[str, Any] = {"torch": torch}
    path = next((Path(diffusers.__file__).parent / "pipelines").glob(f"*/{_file(PACKED[name].pipeline)}.py"))
    code = path.read_text(encoding="utf-8")
    for function in ("_pack_latents", "_prepare_latent_image_ids", "prepare_pos_ids"):
        match = re.search(rf"^( *)def {function}\(.*?\n(?=\n? ?\1\S)", code, flags=re.MULTILINE | re.DOTALL)
        if match is not None:
            lines = match.group(0).splitlines()
            exec("\n".join(line[len(match.group(1)) :] for line in lines if not line.strip().startswith("@")), found)
    return found["_pack_latents"](z, len(z), C, H, W), found


def _file(pipeline: str) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", pipeline.removesuffix("Pipeline"))
    name = "_".join(word.lower() for word in words)
    return "pipeline_" + {"long_cat_image": "longcat_image", "qwen_image": "qwenimage"}.get(name, name)


@pytest.mark.parametrize("name", sorted(PACKED))
def test_latents_are_packed_as_by_the_pipeline(name: str, tmp_path: Path) -> None:
    if not hasattr(diffusers, name):
        pytest.fail(f"diffusers {diffusers.__version__} has no {name}")
    model = load_checkpoint(folder_of(tiny(name), tmp_path / "model"), Continuous((C, H, W)))
    assert PACKED[name].pipeline in model.origin["config"]["time"]
    network = model.denoiser.module
    assert isinstance(network, DiffusersNetwork)
    seen: dict[str, Any] = {}
    network.network.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    z = torch.randn(2, C, H, W, generator=torch.Generator().manual_seed(2))
    condition = {"encoder_hidden_states": TEXT} | CONDITIONS.get(name, {})
    with torch.no_grad():
        output = network(z, torch.tensor([0.3, 0.9]), condition)
        rows = network.network(**seen)
    rows = getattr(rows, "sample", rows)
    rows = rows[0] if isinstance(rows, tuple) else rows
    expected, functions = by_pipeline(name, z)
    assert torch.equal(seen["hidden_states"], expected)
    for i, j in itertools.product(range(H // 2), range(W // 2)):
        patch = output[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 4 * C)
        assert torch.equal(patch, rows[:, W // 2 * i + j])
    if PACKED[name].places == "shapes":
        assert seen["img_shapes"] == [[(1, H // 2, W // 2)]] * 2
        return
    if "prepare_pos_ids" in functions:  # the start is the length of its tokenizer
        images = functions["prepare_pos_ids"](1, "image", (512, 512), height=H // 2, width=W // 2)
    else:
        images = functions["_prepare_latent_image_ids"](*_arguments(functions["_prepare_latent_image_ids"]))
    assert torch.equal(seen["img_ids"], images)
    counted = torch.zeros(WORDS, 3)
    if PACKED[name].counted:
        counted[:, 1] = counted[:, 2] = torch.arange(WORDS)
    assert torch.equal(seen["txt_ids"], counted)
    if PACKED[name].mask:
        assert seen["attention_mask"].tolist() == [[*row, *[True] * 6] for row in ([True, True, False], [True] * 3)]


def _arguments(function: Any) -> list[Any]:
    """The arguments of `_prepare_latent_image_ids`, whose first is the size of a batch."""
    import inspect

    values = {"batch_size": 2, "height": H // 2, "width": W // 2, "device": torch.device("cpu"), "dtype": torch.float32}
    return [values[name] for name in inspect.signature(function).parameters]


def test_the_words_have_places_where_the_pipeline_counts_them() -> None:
    root = Path(diffusers.__file__).parent / "pipelines"
    for name, packing in PACKED.items():
        code = next(root.glob(f"*/{_file(packing.pipeline)}.py")).read_text(encoding="utf-8")
        counted = "text_ids[..., 1] = text_ids[..., 1] + torch.arange" in code or 'type="text", start=(0, 0)' in code
        assert counted == packing.counted, name
        assert ("_prepare_attention_mask(" in code) == packing.mask, name
        assert ("modality_id=1" in code) == (packing.kind == 1), name


def test_other_networks_are_refused_by_name() -> None:
    class Krea9Transformer2DModel(nn.Module):
        def forward(self, hidden_states: Any, timestep: Any, position_ids: Any) -> Any: ...

    with pytest.raises(
        DiffusionalError, match=r"Krea9Transformer2DModel reads places of patches \(position_ids\).*df.wrap"
    ):
        DiffusersNetwork(Krea9Transformer2DModel())
    for name in ("Flux2Transformer2DModel", "ZImageTransformer2DModel"):
        kind = type(name, (nn.Module,), {"forward": lambda self, hidden_states, timestep: hidden_states})
        with pytest.raises(DiffusionalError, match=f"a {name} reads .*not supported"):
            DiffusersNetwork(kind())


def test_every_transformer_of_diffusers_is_read_packed_or_refused() -> None:
    """None gets the wrong kind of input without a word: networks with places are packed, or are refused."""
    modules = Path(diffusers.__file__).parent / "models" / "transformers"
    found = 0
    for path in modules.glob("transformer_*.py"):
        code = path.read_text(encoding="utf-8")
        for name in re.findall(
            r"^class (\w+Transformer2DModel)\(ModelMixin|^class (\w+Transformer2DModel)\(\n    ModelMixin",
            code,
            re.MULTILINE,
        ):
            name = "".join(name)
            module = importlib.import_module(f"diffusers.models.transformers.{path.stem}")
            kind = getattr(module, name)
            network = kind.__new__(kind)
            nn.Module.__init__(network)
            names = set(__import__("inspect").signature(kind.forward).parameters)
            places = names & {"img_ids", "txt_ids", "img_shapes", "position_ids"}
            found += 1
            if places and name not in PACKED and not name.startswith("HiDream"):
                with pytest.raises(DiffusionalError, match=name):
                    DiffusersNetwork(network)
    assert found >= 15
