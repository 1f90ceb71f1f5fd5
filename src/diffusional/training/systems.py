"""Tested configs of systems of several stages, for `diffusional train RUN --composite NAME`. Does not import torch.

Each is a small version of a system from the literature: the shape of the system is theirs, the networks and schedules are ours. The source of
each choice is beside it.
"""

from collections.abc import Callable, Mapping

from diffusional.training.composite_config import CompositeConfig
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.published_systems import imagen, unclip

# Captions are written from the label and the image (docs/conditions.md); --data.condition label is for samples by class.
_CAPTIONED = DataConfig(levels=256, condition="caption")
_LABELLED = DataConfig(levels=256, condition="label")


def _stage(widths: tuple[int, ...], steps: int, lr: float = 2e-3, batch: int = 64, dropout: float = 0.1) -> Config:
    """Return the config of a diffusion of images by one U-Net, in continuous time with a levels head (our choice, docs/results)."""
    return Config(
        model=ModelConfig(predicts="levels", head="logistic", widths=widths, blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=lr, warmup=100),
        condition_dropout=dropout,
        steps=steps,
        batch=batch,
        validate_every=max(1, steps // 2),
        checkpoint_every=500,
    )


def imagen_small() -> CompositeConfig:
    """Return a cascade of three diffusions, caption → 7×7 → 14×14 → 28×28, for 8-bit MNIST: --data.name is the folder of its files.

    Imagen (Saharia et al. 2022) is a cascade 64 → 256 → 1024 (§2.4), whose upsamplers get the low resolution as further input channels, noised
    (§2.2, noise-conditioning augmentation). As there, all stages get the text, which is dropped in 10 % of training for guidance (§2.2).
    Deviates: texts are embedded by hashed words instead of T5, pooled, without cross-attention (--data.text-encoder names another encoder); a
    quantised low resolution without noise, MATH (29), since augmentation with a finished low resolution pays twice for what the noise hides (set
    renoise for Imagen's sampler, or handover for (29b)); the mean of blocks instead of bilinear downscaling; no dynamic thresholding.

    >>> list(imagen_small().stages), imagen_small().factors, imagen_small().conditional
    (['base', 'middle', 'last'], (2, 2), ('middle', 'last'))
    """
    return CompositeConfig(
        "cascade",
        {
            "base": _stage((16, 32), 1500),
            # Efficient U-Nets (App. B.1) have more of their parameters at low resolutions.
            "middle": _stage((16, 32), 1000),
            "last": _stage((16, 32, 64), 900, batch=32),
        },
        _CAPTIONED,
        # Two steps of super-resolution (§2.4); ours are by two, theirs by four.
        (2, 2),
        conditional=("middle", "last"),
    )


def latent_small() -> CompositeConfig:
    """Return a latent diffusion: a VAE that is trained first and then frozen, and a diffusion of its latent given the label, for 8-bit MNIST.

    Latent diffusion (Rombach et al. 2022) trains the autoencoder first (§3.1), then a diffusion of its latent with the autoencoder fixed (§3.2).
    Deviates: a vector instead of a grid as latent and residual layers instead of convolutions; the full KL instead of a weight of 1e-6 on it
    (App. G), and a decoder that is a distribution over the levels instead of L1, perceptual and adversarial losses, so that the system has a
    bound; labels are added to the embedding of the noise level, not by cross-attention.

    >>> latent_small().stages["prior"].schedule.steps
    1000
    """
    return CompositeConfig(
        "latent",
        {
            "autoencoder": Config(
                model=ModelConfig(kind="vae", hidden=512, blocks=2, dropout=0.0),
                latent=LatentConfig(sizes=(32,), warmup=0.2),
                optimizer=OptimizerConfig(lr=1e-3, warmup=100),
                steps=6000,
                validate_every=3000,
                checkpoint_every=1000,
            ),
            "prior": _prior(6000),
        },
        _LABELLED,
    )


def _prior(steps: int) -> Config:
    return Config(
        # T = 1000 (Rombach et al. 2022, Tables 12–15; Ramesh et al. 2022, App. C), linear in log-SNR.
        schedule=ScheduleConfig(gamma_min=-7.0, gamma_max=9.0, steps=1000),
        model=ModelConfig(network="mlp", predicts="v", hidden=256, blocks=3, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
        # For guidance (Ramesh et al. 2022, §2.2; Rombach et al. 2022, §4.3.1).
        condition_dropout=0.1,
        steps=steps,
        validate_every=steps // 2,
        checkpoint_every=1000,
    )


def unclip_small() -> CompositeConfig:
    """Return the shape of unCLIP: a contrastive encoder of images and captions that is trained first and then frozen, a diffusion prior of its
    embedding given the caption, and a diffusion decoder given a latent of the prior and the caption, for 8-bit MNIST.

    unCLIP (Ramesh et al. 2022) has a frozen CLIP encoder, a diffusion prior P(z_i|y) (§2.2) and a diffusion decoder P(x|z_i, y) (§2.1). The
    encoder is trained by CLIP's symmetric loss (Radford et al. 2021, Fig. 3), with its temperature 0.07 and the limit of 100 on its inverse
    (§2.5). The caption is dropped in 10 % of the prior's training (§2.2) and 50 % of the decoder's (§2.1).
    Deviates: residual layers instead of vision and text transformers, with 16 instead of 319 dimensions (§2.2: principal components of CLIP's);
    captions are embedded by hashed words (--data.text-encoder names another encoder); the embedding has length √n, so that its numbers are of
    order one; the prior is an MLP that predicts v, not a transformer that predicts z_i; the decoder gets a latent of the prior with γ = −1 and
    not z_i, so that the system has a bound, MATH (28), which is lower there than at z_1 (docs/results), and the latent is never dropped; no
    upsamplers.

    >>> list(unclip_small().stages), unclip_small().conditional
    (['encoder', 'prior', 'decoder'], ('decoder',))
    """
    encoder = Config(
        model=ModelConfig(kind="contrastive", hidden=256, blocks=2, dropout=0.1),
        latent=LatentConfig(sizes=(16,)),
        optimizer=OptimizerConfig(lr=1e-3, warmup=100),
        steps=2000,
        # CLIP's batches have 32,768 pairs (§2.5).
        batch=256,
        validate_every=500,
        checkpoint_every=1000,
    )
    # γ_t of the prior rises by 16/999 a step, from −7 to −1.
    stages = {
        "encoder": encoder,
        "prior": _prior(3000),
        "decoder": _stage((16, 32, 64), 3000, batch=32, dropout=0.5),
    }
    return CompositeConfig("unclip", stages, _CAPTIONED, handover=376, conditional=("decoder",))


def digits_cascade() -> CompositeConfig:
    """Return a cascade of the embedded digits, 4×4 → 8×8 with 17 levels each: a few minutes on two cores.

    >>> digits_cascade().data.name
    'digits'
    """

    def stage(widths: tuple[int, ...], steps: int) -> Config:
        return Config(
            model=ModelConfig(widths=widths, dropout=0.05),
            optimizer=OptimizerConfig(lr=5e-3, weight_decay=0.3, warmup=100),
            steps=steps,
            validate_every=200,
            checkpoint_every=600,
        )

    return CompositeConfig(
        "cascade", {"base": stage((16, 32), 800), "upsampler": stage((16, 48), 1000)}, DataConfig(warps=15), (2,)
    )


SYSTEMS: Mapping[str, Callable[[], CompositeConfig]] = {
    "imagen-small": imagen_small,
    "latent-small": latent_small,
    "unclip-small": unclip_small,
    "digits-cascade": digits_cascade,
    "unclip": unclip,
    "imagen": imagen,
}
