"""A CLIP of transformers as an encoder of images, against its own processor and `get_image_features`."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional.networks import CLIPEncoder
from tiny_clip import tiny_clip

transformers = pytest.importorskip("transformers")


def pixels_of(folder: Path, images: Any) -> torch.Tensor:
    """The input that the processor of a folder makes of images."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def features(folder: Path, pixels: torch.Tensor, vision: bool = False) -> torch.Tensor:
    """Those of transformers, of length √n."""
    with torch.no_grad():
        if vision:
            found = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)(pixels).image_embeds
        else:
            found = transformers.CLIPModel.from_pretrained(folder).get_image_features(pixel_values=pixels)
            found = getattr(found, "pooler_output", found)
    return found / found.norm(dim=1, keepdim=True) * math.sqrt(found.shape[1])


@pytest.mark.parametrize("vision", [False, True], ids=["CLIPModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize(("side", "resample"), [(16, 3), (28, 3), (28, 2), (8, 3)])
def test_features_are_those_of_transformers(side: int, resample: int, vision: bool, tmp_path: Path) -> None:
    """Pixels are exact where nothing is resized; otherwise PIL rounds to 8 bits after each of two passes, by at most 1.5 levels in all."""
    tiny_clip(tmp_path, vision=vision, resample=resample)
    space = df.Discrete((3, side, side), 256)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (70, 3, side, side)))
    encoder, x = CLIPEncoder.load(str(tmp_path), space), space.encode(raw)
    pixels = pixels_of(tmp_path, [one.permute(1, 2, 0).numpy().astype(np.uint8) for one in raw])
    levels = 1e-4 if side == 16 else 1.5
    torch.testing.assert_close(encoder.prepared(x), pixels, rtol=0, atol=levels / 255 / 0.2613)
    torch.testing.assert_close(encoder(x), features(tmp_path, encoder.prepared(x), vision), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_images_are_cropped_at_their_centre(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    space = df.Discrete((3, 16, 20), 256)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 20)))
    images = [one.permute(1, 2, 0).numpy().astype(np.uint8) for one in raw]
    got = CLIPEncoder.load(str(tmp_path), space)(space.encode(raw))
    torch.testing.assert_close(got, features(tmp_path, pixels_of(tmp_path, images)), rtol=1e-5, atol=1e-5)


def test_a_grey_image_is_repeated_over_the_channels_and_its_levels_are_stretched(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    space = df.Discrete((1, 16, 16), 16)
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (2, 1, 16, 16)))
    images = [np.repeat(17 * one.permute(1, 2, 0).numpy(), 3, 2).astype(np.uint8) for one in raw]  # 15 is 255
    got = CLIPEncoder.load(str(tmp_path), space)(space.encode(raw))
    torch.testing.assert_close(got, features(tmp_path, pixels_of(tmp_path, images)), rtol=1e-5, atol=1e-5)


def test_the_hash_is_that_of_the_configs_and_the_weights(tmp_path: Path) -> None:
    tiny_clip(tmp_path)
    space = df.Discrete((1, 16, 16), 16)
    first = CLIPEncoder.load(str(tmp_path), space).sha256
    (tmp_path / "README.md").write_text("about the model")
    assert CLIPEncoder.load(str(tmp_path), space).sha256 == first
    tiny_clip(tmp_path, seed=1)
    second = CLIPEncoder.load(str(tmp_path), space).sha256
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.48145466", "0.5"))
    assert len({first, second, CLIPEncoder.load(str(tmp_path), space).sha256}) == 3


def test_folders_and_data_that_are_refused(tmp_path: Path) -> None:
    images = df.Discrete((1, 8, 8), 17)
    with pytest.raises(df.DiffusionalError, match=r"image encoder \./no/folder does not exist"):
        CLIPEncoder.load("./no/folder", images)
    with pytest.raises(df.DiffusionalError, match=r"could not be loaded.*preprocessor_config\.json and weights"):
        CLIPEncoder.load(str(tmp_path), images)
    clip = tiny_clip(tmp_path / "clip")
    for space in (df.Discrete((2, 8, 8), 17), df.Continuous((1, 8, 8)), df.Discrete((64,), 17)):
        with pytest.raises(df.DiffusionalError, match=r"1 or 3 channels"):
            CLIPEncoder.load(str(tmp_path / "clip"), space)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(df.DiffusionalError, match=r"expected a CLIP of transformers .* got a model of type 'bert'"):
        CLIPEncoder.load(str(tmp_path / "bert"), images)
    with pytest.raises(df.DiffusionalError, match=r"expected a CLIPModel .* got a BertModel"):
        CLIPEncoder(bert, None, images)
    with pytest.raises(df.DiffusionalError, match=r"CLIPImageProcessor of the model, got a dict"):
        CLIPEncoder(clip, {}, images)
    large = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    with pytest.raises(df.DiffusionalError, match=r"images of 16×16.* got 32×32"):
        CLIPEncoder(clip, large, images)
    nearest = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, resample=0)
    with pytest.raises(df.DiffusionalError, match=r"resample .* got 0"):
        CLIPEncoder(clip, nearest, images)
    partly = {key: value for key, value in clip.state_dict().items() if key != "visual_projection.weight"}
    clip.save_pretrained(tmp_path / "clip", state_dict=partly)
    with pytest.raises(df.DiffusionalError, match=r"1 tensors are missing, such as visual_projection\.weight"):
        CLIPEncoder.load(str(tmp_path / "clip"), images)
