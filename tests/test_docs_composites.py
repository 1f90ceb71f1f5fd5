"""docs/composites.md: its code runs, and its systems have finite bounds that are sampled stage by stage."""

import re
from pathlib import Path

import torch

import diffusional as df
from tiny_clip import tiny_clip

PAGE = Path(__file__).parents[1] / "docs" / "composites.md"


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)
    page = PAGE.read_text(encoding="utf-8").replace("openai/clip-vit-base-patch32", str(tmp_path))
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    features, config = names["features"], names["config"]
    assert isinstance(features, torch.Tensor)
    assert features.shape == (4, 6)
    assert isinstance(config, df.CompositeConfig)
    assert config.of_stages()["decoder"].data.condition == f"encoder:clip:{tmp_path} + caption"
    assert config.of_stages()["prior"].data.encoder == f"clip:{tmp_path}"
    result, drawn, x = names["result"], names["drawn"], names["x"]
    assert isinstance(result, df.Evaluation)
    assert set(result.blocks) == {"base.kl", "upsampler.kl"}
    assert isinstance(drawn, dict)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "base": (2, 1, 4, 4),
        "upsampler": (2, 1, 8, 8),
    }
    for name in ("unclip", "latent"):
        model = names[name]
        assert isinstance(model, df.FrozenEncoder)
        assert isinstance(x, torch.Tensor)
        assert bool(model.elbo(x[:2]).nelbo.isfinite().all())
        assert model.decode(model.latents(x[:2])).shape == (2, 1, 8, 8)
