"""Backbones: one MLP, one small residual U-Net and the autoencoders' networks of ours; diffusers' networks for everything larger."""

from diffusional.networks.autoencoder import Ladder, ResidualMLP
from diffusional.networks.diffusers import FromDiffusers
from diffusional.networks.mlp import MLP
from diffusional.networks.unet import UNet

__all__ = ["MLP", "FromDiffusers", "Ladder", "ResidualMLP", "UNet"]
