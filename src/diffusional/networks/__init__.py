"""Backbones: one MLP, one small residual U-Net, VDM's U-Net and the autoencoders' networks of ours; diffusers' for the rest."""

from diffusional.networks.autoencoder import Decoder, Ladder, ResidualMLP
from diffusional.networks.autoencoder_kl import KLDecoder, KLEncoder
from diffusional.networks.clip import CLIPEncoder
from diffusional.networks.condition_tower import ConditionTower
from diffusional.networks.conditioning import ConditionAdapter
from diffusional.networks.diffusers import FromDiffusers, ddpm_unet
from diffusional.networks.joint import JointAdapter
from diffusional.networks.mlp import MLP
from diffusional.networks.transformer import SequenceTransformer
from diffusional.networks.unet import UNet
from diffusional.networks.vdm import VDMUNet

__all__ = [
    "MLP",
    "CLIPEncoder",
    "ConditionAdapter",
    "ConditionTower",
    "Decoder",
    "FromDiffusers",
    "JointAdapter",
    "KLDecoder",
    "KLEncoder",
    "Ladder",
    "ResidualMLP",
    "SequenceTransformer",
    "UNet",
    "VDMUNet",
    "ddpm_unet",
]
