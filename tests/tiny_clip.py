"""A tiny CLIP of transformers with its image processor, saved to a folder as real ones are."""

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(folder: Path, seed: int = 0, vision: bool = False, resample: int = 3) -> Any:
    """Save a CLIP of images of 16×16 with 6 features, or only its image encoder; returns it."""
    transformers = pytest.importorskip("transformers")
    own = {**SIZES, "image_size": 16, "patch_size": 4, "projection_dim": 6}
    torch.manual_seed(seed)
    if vision:
        model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**own))
    else:
        text = {**SIZES, "vocab_size": 12, "max_position_embeddings": 12}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=own, projection_dim=6))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, resample=resample)
    processor.save_pretrained(folder)
    return model
