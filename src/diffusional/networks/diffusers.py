"""diffusers' networks as backbones: `module(sample, timestep).sample` becomes `module(z, time, condition)`."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusional.conditions import Condition, check_labels
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for


class FromDiffusers(nn.Module):
    """A wrapper of a diffusers model such as UNet2DModel, whose call returns an object with `.sample`.

    `time` must be the time input that the network was trained with: see `diffusional.models.time` for adapters from log-SNR. A
    condition is passed under the name `condition_as`: `class_labels` or, for cross-attention models, `encoder_hidden_states`.

    Networks that halve images need sides that can be halved: z is padded with zeros evenly on all sides to the next `multiple`, and
    the output is cropped. `recompute` is diffusers' gradient checkpointing.

    With `null`, the last class of the network's embedding is the null condition: labels may be missing, in all rows (None) or in some
    (`conditions.dropped`), as for guidance.

    Raises DiffusionalError if `recompute` is set for a network without it, if the network does not accept the condition or needs one
    that is not given, for labels that are not integers (B,) of its classes, and if its output has no `.sample`.

    >>> import torch
    >>> from diffusers import UNet2DModel
    >>> net = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4,
    ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> FromDiffusers(net)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    needs_time = True
    """Whether a `Denoiser` must be given the network's time input: log-SNR, which ours read, would be taken for a number of a level."""

    def __init__(
        self, network: nn.Module, condition_as: str = "class_labels", multiple: int = 1, null: bool = False
    ) -> None:
        super().__init__()
        self.network, self.condition_as, self.multiple, self.null = network, condition_as, multiple, null
        embedding = getattr(network, "class_embedding", None)
        if null and not (condition_as == "class_labels" and isinstance(embedding, nn.Embedding)):
            raise DiffusionalError(
                f"null=True is for networks with an embedding of class labels, got a {type(network).__name__} with condition_as="
                f"{condition_as!r}; leave it out"
            )

    @property
    def requires_condition(self) -> bool | None:
        """Whether the network cannot be called without a condition; None if this is not known before the call."""
        if self.null:
            return False
        embedding = getattr(self.network, "class_embedding", None)
        return True if embedding is not None or self.condition_as == "encoder_hidden_states" else None

    def forward(self, z: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        embedding = getattr(self.network, "class_embedding", None)
        if self.null:
            condition = self._with_null(condition, len(z))
        if condition is not None and self.condition_as == "class_labels" and isinstance(embedding, nn.Embedding):
            check_labels(condition, embedding.num_embeddings)
        extra = self._named(condition)
        if self.multiple == 1:
            return self._called(z, time, extra)
        height, width = z.shape[-2:]
        top, left = (_padding(side, self.multiple) // 2 for side in (height, width))
        bottom, right = (_padding(side, self.multiple) - before for side, before in ((height, top), (width, left)))
        said = self._called(pad(z, (left, right, top, bottom)), time, extra)
        return said[..., top : top + height, left : left + width]

    def _named(self, condition: Condition | None) -> dict[str, Any]:
        """Return the arguments of the network for a condition: tokens with a mask are two of them."""
        if condition is None:
            return {}
        if isinstance(condition, Tensor) or self.condition_as != "encoder_hidden_states":
            return {self.condition_as: condition}
        return {self.condition_as: condition["tokens"], "encoder_attention_mask": condition["mask"]}

    def _with_null(self, condition: Condition | None, items: int) -> Tensor:
        """Return labels (B,) in which the last class of the embedding takes the place of missing ones."""
        embedding = self.network.class_embedding
        assert isinstance(embedding, nn.Embedding)
        last = embedding.num_embeddings - 1
        if condition is None:
            return torch.full((items,), last, device=embedding.weight.device)
        check_labels(condition, last, missing=True)
        assert isinstance(condition, Tensor)
        return condition.masked_fill(condition == -1, last)

    def _called(self, z: Tensor, time: Tensor, extra: dict[str, Condition]) -> Tensor:
        kind = type(self.network).__name__
        try:
            output = self.network(z, time, **extra)
        except (TypeError, ValueError) as error:
            # diffusers raises a ValueError for labels that are missing or unexpected.
            if ("argument" if isinstance(error, TypeError) else "class") not in str(error):
                raise
            given = f"a condition as {self.condition_as}" if extra else "no condition"
            raise DiffusionalError(
                f"a {kind} could not be called with {given}: {error}. Give the condition that it was trained with, and its name in "
                "condition_as, such as class_labels or encoder_hidden_states"
            ) from error
        sample = getattr(output, "sample", None)
        if not isinstance(sample, Tensor):
            raise DiffusionalError(
                f"a {kind} returned a {type(output).__name__}; FromDiffusers wraps networks whose output has a tensor named sample. "
                "Give networks that return a tensor to Denoiser as they are"
            )
        return sample

    @property
    def recompute(self) -> bool:
        """Activation checkpointing of the network's blocks."""
        return bool(self.network.is_gradient_checkpointing)

    @recompute.setter
    def recompute(self, on: bool) -> None:
        network = self.network
        try:
            (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()  # type: ignore[operator]
        except ValueError as error:
            raise DiffusionalError(
                f"recompute is not available for a {type(network).__name__} ({error}); leave it out"
            ) from error


def ddpm_unet(
    channels: int,
    size: tuple[int, int],
    outputs: int = 1,
    widths: tuple[int, ...] = (128, 256, 256, 256),
    blocks: int = 2,
    attention: tuple[int, ...] = (16,),
    heads: int = 1,
    dropout: float = 0.0,
    scale_shift: bool = False,
    classes: int = 0,
    null: bool = False,
    extra: int = 0,
    tokens: int = 0,
) -> FromDiffusers:
    """Return the U-Net of DDPM (Ho et al. 2020, App. B), diffusers' UNet2DModel; the defaults are its CIFAR-10 network without dropout 0.1.

    That of improved DDPM (Nichol & Dhariwal 2021) is `outputs=2, blocks=3, attention=(16, 8), heads=4, scale_shift=True`. `time` is
    that of DDPM, 0 … 1000. Images whose sides cannot be halved len(widths) − 1 times are padded internally with zeros to the next size
    that can: 28 = 4·7 becomes 32. As in the original code, the last layers of blocks, of attention and of the network are initialised
    with zeros. The others are initialised as in DDPM (uniform, scaled by the mean of inputs and outputs, with biases of zero), or with
    `scale_shift` as in improved DDPM (torch's defaults). Strided convolutions pad below and on the right, or with `scale_shift` on all
    sides, also as in the original code.

    Args:
        channels: C of the data.
        size: (H, W) of the images, to which `attention` refers; the network also accepts other sizes.
        outputs: output channels per data channel (1; 2 with a learned variance; K or 2 for a levels head).
        widths: channels at each resolution; the image is halved between them.
        blocks: number of residual blocks at each resolution on the way down; there is one more on the way up.
        attention: sides of the resolutions with self-attention: the longer side, including padding. The lowest resolution, in the
            middle of the network, always has it.
        heads: number of heads of self-attention.
        dropout: dropout inside residual blocks, in training.
        scale_shift: whether the noise level scales and shifts the outputs of norms instead of being added before them.
        classes: number of classes, for a condition of labels (B,); learned vectors of the classes are added to the embedding of the
            noise level.
        null: whether labels may be missing, as for guidance: one more class is that of no label.
        extra: number of input channels after those of the data, such as an image as condition (`ConditionAdapter`).
        tokens: the width W of tokens as condition, {"tokens": (B, L, W), "mask": (B, L)}: attention at the sides of `attention` and in the
            middle is then followed by cross-attention to them, and the network is diffusers' UNet2DConditionModel.

    Raises DiffusionalError for a side that no resolution has, for heads that do not divide the widths with attention, and for several
    heads at different widths, which diffusers does not support.

    >>> import torch
    >>> network = ddpm_unet(1, (28, 28), widths=(8, 16, 16, 16), blocks=1)
    >>> network(torch.zeros(2, 1, 28, 28), torch.tensor([0, 999])).shape
    torch.Size([2, 1, 28, 28])
    """
    if not widths or min(widths) < 8 or any(w % 8 for w in widths):
        raise DiffusionalError(f"expected widths to be multiples of 8 (for group normalisation), got {widths}")
    multiple = 2 ** (len(widths) - 1)
    longer = max(size) + _padding(max(size), multiple)
    sides = [longer >> i for i in range(len(widths))]
    if unknown := [side for side in attention if side not in sides]:
        raise DiffusionalError(
            f"expected attention to be sides of the {len(widths)} resolutions of images of {size[0]}×{size[1]}, which are "
            f"{', '.join(map(str, sides))}, got {', '.join(map(str, unknown))}"
        )
    attentive = {w for w, side in zip(widths, sides, strict=True) if side in attention} | {widths[-1]}
    if heads > 1 and (len(attentive) > 1 or widths[-1] % heads):
        raise DiffusionalError(
            "expected heads to divide the width of the lowest resolution, and all attention to be at this width, got "
            f"heads={heads} with attention at widths of {', '.join(map(str, sorted(attentive)))}: use heads=1, or choose other widths"
        )
    # Imported here, so that diffusers is needed only for its networks.
    with needed_for("diffusers"):
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = [("CrossAttn" if tokens else "Attn") if side in attention else "" for side in sides]
    groups = math.gcd(32, *(w // 2 for w in widths))
    common: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels + extra,
        "out_channels": outputs * channels,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "dropout": dropout,
        "norm_num_groups": groups,
        "norm_eps": 1e-6,
        "downsample_padding": 1 if scale_shift else 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    }
    if tokens:
        network: Any = UNet2DConditionModel(**common, cross_attention_dim=tokens, attention_head_dim=heads)
    else:
        network = UNet2DModel(
            **common,
            attention_head_dim=widths[-1] // heads if heads > 1 else None,
            attn_norm_num_groups=groups,
            num_class_embeds=classes + null or None,
        )
    if not scale_shift:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    _zero(network.conv_out)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
        elif isinstance(module, Attention):
            assert module.to_out is not None
            _zero(module.to_out[0])  # type: ignore[arg-type]
    name = "encoder_hidden_states" if tokens else "class_labels"
    return FromDiffusers(network, name, multiple, null)


def _padding(side: int, multiple: int) -> int:
    """Return the difference between a side and the next multiple."""
    return -side % multiple


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
