"""diffusers' networks as backbones: `module(sample, timestep).sample` becomes `module(z, time, condition)`."""

from torch import Tensor, nn


class FromDiffusers(nn.Module):
    """Wraps a diffusers model such as UNet2DModel, whose call returns an object with `.sample`.

    `time` is whatever the network was trained with: see `diffusional.models.time` for adapters from log-SNR. A condition is
    passed as `class_labels` or, for cross-attention models, `encoder_hidden_states`: name it in `condition_as`.

    >>> import torch
    >>> from diffusers import UNet2DModel
    >>> net = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4,
    ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> FromDiffusers(net)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, network: nn.Module, condition_as: str = "class_labels") -> None:
        super().__init__()
        self.network, self.condition_as = network, condition_as

    def forward(self, z: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        extra = {} if condition is None else {self.condition_as: condition}
        return self.network(z, time, **extra).sample
