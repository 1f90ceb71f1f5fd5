"""diffusers' AutoencoderKL as the frozen encoder and decoder of a latent diffusion: y = s (z − b), with its scaling and shift factors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError


def _factors(autoencoder: Any) -> tuple[float, float]:
    """Return s and b of an AutoencoderKL. Raises DiffusionalError for another object."""
    config = getattr(autoencoder, "config", None)
    if not isinstance(autoencoder, nn.Module) or not hasattr(autoencoder, "post_quant_conv") or config is None:
        raise DiffusionalError(
            f"expected an AutoencoderKL of diffusers, such as AutoencoderKL.from_pretrained(…), got a {type(autoencoder).__name__}"
        )
    scale, shift = getattr(config, "scaling_factor", None), getattr(config, "shift_factor", None)
    return float(1.0 if scale is None else scale), float(shift or 0.0)


class KLEncoder(nn.Module):
    """The encoder of an AutoencoderKL: x (B, C, H, W) → the mean and ln σ of q(y|x), (B, 2c, h, w), for `df.FrozenPosterior`.

    Args:
        autoencoder: diffusers' AutoencoderKL. Its weights are shared.
        mean: return only the mean (B, c, h, w), a deterministic encoder for `df.FrozenEncoder`.

    Raises DiffusionalError for another object.
    """

    def __init__(self, autoencoder: Any, mean: bool = False) -> None:
        super().__init__()
        self.scale, self.shift = _factors(autoencoder)
        self.encoder, self.quant_conv, self.mean = autoencoder.encoder, autoencoder.quant_conv, mean

    def forward(self, x: Tensor) -> Tensor:
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, 1)
        mean = self.scale * (mean - self.shift)
        if self.mean:
            return mean
        # diffusers clamps ln σ² to these limits.
        return torch.cat([mean, 0.5 * log_variance.clamp(-30.0, 20.0) + math.log(self.scale)], 1)


class KLDecoder(nn.Module):
    """The decoder of an AutoencoderKL: y (B, c, h, w) → the mean of x (B, C, H, W), for a `df.DirectModel` with predicts="data".

    Raises DiffusionalError for another object than an AutoencoderKL.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.scale, self.shift = _factors(autoencoder)
        self.decoder, self.post_quant_conv = autoencoder.decoder, autoencoder.post_quant_conv

    def forward(self, y: Tensor) -> Tensor:
        z = y / self.scale + self.shift
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)
