"""Transformers of diffusers that read latents as rows of patches, with the places of the patches: what their pipelines give them.

A pipeline of the Flux family packs latents (B, C, H, W) into rows (B, H/2·W/2, 4 C), each a patch of 2×2, and gives the network their places
and those of the words of the text. How the places are counted is in the code of each pipeline and in no config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError


@dataclass(frozen=True)
class Packing:
    """How a pipeline packs latents for its network.

    Attributes:
        pipeline: the class of the pipeline.
        places: "ids" if the network gets places as `img_ids` and `txt_ids`, "shapes" if it gets the number of rows and columns as `img_shapes`.
        kind, start: the first number of an image's places, and what is added to their rows and columns.
        counted: whether the words of the text have the places 0, 1, 2, …; otherwise all have 0.
        mask: whether a mask of the words, `attention_mask`, is extended by ones for the patches.
        outputs: whether out_channels of the config counts the channels of a patch (4 C).
        needs: conditions without which the network cannot be called.
    """

    pipeline: str
    places: str = "ids"
    kind: int = 0
    start: int = 0
    counted: bool = False
    mask: bool = False
    outputs: bool = True
    needs: tuple[str, ...] = ("encoder_hidden_states",)


# By the class of the network; a test compares them with the code of the pipelines.
PACKED: dict[str, Packing] = {
    "ChromaTransformer2DModel": Packing("ChromaPipeline", mask=True),
    "FluxTransformer2DModel": Packing("FluxPipeline", needs=("encoder_hidden_states", "pooled_projections")),
    "LongCatImageTransformer2DModel": Packing("LongCatImagePipeline", kind=1, start=512, counted=True),
    "OvisImageTransformer2DModel": Packing("OvisImagePipeline", counted=True),
    "QwenImageTransformer2DModel": Packing("QwenImagePipeline", places="shapes", outputs=False),
}
# Networks whose input their pipelines make in ways that are not known here.
_UNREAD: dict[str, str] = {
    "Flux2Transformer2DModel": "latents that its pipeline standardises by the running statistics of its autoencoder, and places of four numbers",
    "ZImageTransformer2DModel": "lists of tensors, one for each item",
}
# Parameters for places of patches, which the pipeline of another network makes.
_PLACES = ("img_ids", "txt_ids", "img_shapes", "position_ids", "video_coords", "text_rope_pos", "visual_rope_pos")
# These pack latents of four dimensions themselves.
_ITSELF = ("HiDreamImageTransformer2DModel",)


def packing_of(network: nn.Module) -> Packing | None:
    """Return how latents are packed for a network; None for networks that read latents (B, C, H, W).

    >>> packing_of(nn.Identity()) is None
    True
    """
    return PACKED.get(type(network).__name__)


def check_readable(network: nn.Module, parameters: Mapping[str, Any]) -> None:
    """Raise DiffusionalError, with the name of the network, if its input is made by its pipeline in a way that is not known here."""
    name = type(network).__name__
    if name in PACKED or name in _ITSELF:
        return
    places = [one for one in _PLACES if one in parameters]
    reads = _UNREAD.get(name) or (f"places of patches ({', '.join(places)})" if places else None)
    if reads is not None:
        raise DiffusionalError(
            f"a {name} reads {reads}, which its pipeline makes, and load_checkpoint does not: it is not supported. It packs latents for "
            f"{', '.join(sorted(PACKED))}. Call the network in a function of (z, time, condition) that does what the pipeline does, and use df.wrap"
        )


def packed(z: Tensor, packing: Packing, named: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return latents (B, C, H, W) as rows of patches (B, H/2·W/2, 4 C), and what else the pipeline gives the network.

    Args:
        z: latents.
        packing: of the network.
        named: the conditions by name, among them the embedded text (B, L, …).

    Raises DiffusionalError for latents with odd sides.
    """
    if z.ndim != 4:
        raise DiffusionalError(f"expected latents (B, C, H, W) for the {packing.pipeline}, got {tuple(z.shape)}")
    b, c, h, w = z.shape
    if h % 2 or w % 2:
        raise DiffusionalError(f"expected latents with even sides, which are read in patches of 2×2, got {h}×{w}")
    rows = z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
    if packing.places == "shapes":
        return rows, {"img_shapes": [[(1, h // 2, w // 2)]] * b}
    places = torch.zeros(h // 2, w // 2, 3, dtype=z.dtype, device=z.device)
    places[..., 0] = packing.kind
    places[..., 1] += packing.start + torch.arange(h // 2, device=z.device)[:, None]
    places[..., 2] += packing.start + torch.arange(w // 2, device=z.device)
    words = named["encoder_hidden_states"].shape[1]
    text = torch.zeros(words, 3, dtype=z.dtype, device=z.device)
    if packing.counted:
        text[:, 1:] = torch.arange(words, dtype=z.dtype, device=z.device)[:, None]
    more: dict[str, Any] = {"img_ids": places.reshape(-1, 3), "txt_ids": text}
    mask = named.get("attention_mask")
    if packing.mask and mask is not None:
        more["attention_mask"] = torch.cat([mask.bool(), torch.ones_like(rows[..., 0], dtype=torch.bool)], 1)
    return rows, more


def unpacked(rows: Tensor, z: Tensor) -> Tensor:
    """Return rows of patches (B, H/2·W/2, 4 C) as latents of the sides of z."""
    b, _, h, w = z.shape
    return rows.reshape(b, h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)
