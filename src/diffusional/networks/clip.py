"""A CLIP of transformers as a frozen encoder of images, such as unCLIP's.

References: Radford et al. 2021, "Learning transferable visual models from natural language supervision" (CLIP); Ramesh et al. 2022,
"Hierarchical text-conditional image generation with CLIP latents" (unCLIP), §2.
"""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.space import Discrete, Space
from diffusional.text.hub import hash_of, model_folder, weights_of, without_bar

# The prefix of its name in configs.
CLIP = "clip:"
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
# PIL's filters by number: "resample" of a processor.
_FILTERS = {2: "bilinear", 3: "bicubic"}
# Images that are encoded at once.
_CHUNK = 64


class CLIPEncoder(nn.Module):
    """The image encoder of a CLIP of transformers: x (B, C, H, W) → its projected features (B, n), for `df.FrozenEncoder`.

    The features have the length √n, so that their numbers are of order one, as those of `df.ContrastiveEncoder`. Images are prepared as by
    the processor of the CLIP: levels become 0 … 255, one channel is repeated three times, and the image is resized, cropped at its centre
    and normalised. Resized images are not rounded to 8 bits, so that features differ from those of the processor by that rounding.

    Args:
        model: a CLIPModel, or a CLIPVisionModelWithProjection. Its weights are shared and frozen.
        processor: its CLIPImageProcessor, of which only the settings are used.
        space: of the images, `Discrete((1 or 3, H, W), levels)`.

    Attributes:
        sha256: SHA-256 of its files: configs and weights; "" unless it was made by `load`.

    Raises DiffusionalError for another model or processor, a space that is not of images, and a processor that does not make images of the
    size that the model takes.

    >>> import transformers
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> config = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=5)
    >>> model = transformers.CLIPVisionModelWithProjection(config)
    >>> processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    >>> encoder = CLIPEncoder(model, processor, Discrete((1, 8, 8), 17))
    >>> encoder(torch.zeros(2, 1, 8, 8)).square().sum(1).round(decimals=4)
    tensor([5., 5.])
    """

    def __init__(self, model: Any, processor: Any, space: Space) -> None:
        super().__init__()
        vision, projection = getattr(model, "vision_model", None), getattr(model, "visual_projection", None)
        if not isinstance(vision, nn.Module) or not isinstance(projection, nn.Module):
            raise DiffusionalError(
                f"expected a CLIPModel or CLIPVisionModelWithProjection of transformers, got a {type(model).__name__}"
            )
        settings = getattr(processor, "to_dict", dict)()
        if not {"size", "image_mean", "image_std", "do_resize", "do_normalize"} <= settings.keys():
            raise DiffusionalError(f"expected the CLIPImageProcessor of the model, got a {type(processor).__name__}")
        if not isinstance(space, Discrete) or len(space.shape) != 3 or space.shape[0] not in (1, 3):
            raise DiffusionalError(f"expected images with 1 or 3 channels and levels for a CLIP, got items {space}")
        self.vision_model, self.visual_projection, self.space, self.sha256 = vision, projection, space, ""
        self._settings = settings
        sizes: Any = vision.config
        side = int(sizes.image_size)
        self._resized, self._cropped = _sizes(settings, space.shape[1:])
        if self._cropped != (side, side):
            raise DiffusionalError(
                f"expected the processor to make images of {side}×{side}, which the CLIP takes, got {self._cropped[0]}×{self._cropped[1]} from "
                f"{space.shape[1]}×{space.shape[2]}; correct size and crop_size of the processor, or load square images (data.size)"
            )
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str, space: Space) -> "CLIPEncoder":
        """Load the image encoder of a CLIP by `from_pretrained`.

        Args:
            name: a folder with config.json, preprocessor_config.json and weights, or a name of the Hugging Face Hub.
            space: of the images.

        Raises DiffusionalError for a folder that does not exist or has no CLIP, for weights that are not complete, and for a name that is not in
        the cache and cannot be downloaded; MissingPackageError if transformers is not installed.
        """
        _, folder = model_folder(name, "image encoder")
        with needed_for("text"):
            import transformers
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # the library raises exceptions of many types
            raise _unusable(name, folder, error) from error
        kinds = {"clip": transformers.CLIPModel, "clip_vision_model": transformers.CLIPVisionModelWithProjection}
        if config.model_type not in kinds:
            raise DiffusionalError(
                f"expected a CLIP of transformers in {folder}, the image encoder {name}, got a model of type {config.model_type!r}"
            )
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            with without_bar(transformers):
                model, info = kinds[config.model_type].from_pretrained(folder, **options)
        except Exception as error:
            raise _unusable(name, folder, error) from error
        if missing := [key for key in info["missing_keys"] if not key.startswith("text_")]:
            raise DiffusionalError(
                f"the weights in {folder} are not those of its {type(model).__name__}: {len(missing)} tensors are missing, such as "
                f"{missing[0]}, which would be random; give a complete model"
            )
        encoder = cls(model, processor, space)
        files = [folder / one for one in _CONFIGS if (folder / one).is_file()] + weights_of(folder)
        held = {path.name: hash_of(path) for path in files}
        encoder.sha256 = sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
        return encoder

    def prepared(self, x: Tensor) -> Tensor:
        """Return images (B, C, H, W) as the CLIP takes them, (B, 3, side, side)."""
        settings, space = self._settings, self.space
        pixels = 255 * (x.float() - space.low) / (space.high - space.low)
        if self._resized != tuple(pixels.shape[2:]):
            # As PIL: first along rows, then along columns, and clipped after each.
            for size in ((pixels.shape[2], self._resized[1]), self._resized):
                mode = _FILTERS[settings["resample"]]
                pixels = functional.interpolate(pixels, size, mode=mode, antialias=True).clamp(0, 255)
        top, left = ((a - b) // 2 for a, b in zip(self._resized, self._cropped, strict=True))
        pixels = pixels[:, :, top : top + self._cropped[0], left : left + self._cropped[1]].expand(-1, 3, -1, -1)
        if settings.get("do_rescale", True):
            pixels = pixels * settings.get("rescale_factor", 1 / 255)
        if settings["do_normalize"]:
            mean, std = (pixels.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
            pixels = (pixels - mean) / std
        return pixels

    def forward(self, x: Tensor) -> Tensor:
        found = [
            self.visual_projection(self.vision_model(self.prepared(part)).pooler_output) for part in x.split(_CHUNK)
        ]
        features = torch.cat(found)
        return functional.normalize(features, dim=1) * math.sqrt(features.shape[1])

    def deterministic_encoder(self) -> nn.Module:
        """Return the module itself."""
        return self

    def learned_posterior(self) -> None:
        """Return None: the features are a function of the image."""
        return


def _sizes(settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sizes of an image (height, width) after a processor has resized it, and after it has cropped it."""
    height, width = shape
    size, crop = settings["size"], settings.get("crop_size")
    if settings["do_resize"]:
        if settings.get("resample") not in _FILTERS:
            raise DiffusionalError(
                f"expected resample of the processor to be 2 (bilinear) or 3 (bicubic), got {settings.get('resample')}"
            )
        if "shortest_edge" in size:
            short = size["shortest_edge"]
            # As transformers rounds the other side.
            height, width = (int(short * one / min(shape)) for one in shape)
        else:
            height, width = size["height"], size["width"]
    if not settings.get("do_center_crop") or crop is None:
        return (height, width), (height, width)
    return (height, width), (min(height, crop["height"]), min(width, crop["width"]))


def _unusable(name: str, folder: Path, error: Exception) -> DiffusionalError:
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return DiffusionalError(
        f"the image encoder {name} could not be loaded from {folder} ({type(error).__name__}: {reason}); expected the files of a CLIP of "
        "transformers: config.json, preprocessor_config.json and weights"
    )
