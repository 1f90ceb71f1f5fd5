"""Backbones: one MLP and one small residual U-Net of ours; diffusers' networks for everything larger."""

from diffusional.networks.diffusers import FromDiffusers
from diffusional.networks.mlp import MLP
from diffusional.networks.unet import UNet

__all__ = ["MLP", "FromDiffusers", "UNet"]
