"""Configs that were found to work, by name. Imports no torch."""

from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def digits() -> Config:
    """The embedded digits on two cores, about a minute of training.

    Chosen on the validation split. 1,000 images are few: warped copies, a small network and strong weight decay put off the
    overfitting that otherwise ends every run at the same bound.

    >>> digits().steps
    1200
    """
    return Config(
        data=DataConfig(warps=15),
        model=ModelConfig(widths=(16, 48), dropout=0.05),
        optimizer=OptimizerConfig(lr=5e-3, weight_decay=0.3, warmup=100),
        steps=1200,
        validate_every=200,
        checkpoint_every=600,
    )


def digits_vae() -> Config:
    """A VAE for the embedded digits, about as long as `digits`.

    >>> digits_vae().model.kind
    'vae'
    """
    return Config(
        data=DataConfig(warps=15),
        model=ModelConfig(kind="vae", hidden=256, blocks=2, dropout=0.1),
        latent=LatentConfig(sizes=(16,)),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.05, warmup=100),
        steps=1500,
        validate_every=250,
        checkpoint_every=1500,
    )


def digits_hierarchical_vae() -> Config:
    """Two layers for the embedded digits. Dropout and weight decay put off the overfitting, as for the diffusion.

    >>> digits_hierarchical_vae().latent.sizes
    (16, 12)
    """
    return Config(
        data=DataConfig(warps=15),
        model=ModelConfig(kind="hierarchical-vae", hidden=256, blocks=1, dropout=0.2),
        latent=LatentConfig(sizes=(16, 12)),
        optimizer=OptimizerConfig(lr=1.5e-3, weight_decay=0.3, warmup=100),
        steps=1800,
        validate_every=300,
        checkpoint_every=1800,
    )


def digits_diffusion_prior() -> Config:
    """The VAE with a diffusion over its latent in place of N(0, I); without the warm-up it leaves the latent unused.

    >>> digits_diffusion_prior().schedule.steps
    500
    """
    return Config(
        data=DataConfig(warps=15),
        schedule=ScheduleConfig(gamma_min=-8.0, gamma_max=8.0, steps=500),
        model=ModelConfig(kind="vae-diffusion-prior", hidden=256, blocks=2, dropout=0.1),
        latent=LatentConfig(sizes=(16,), warmup=0.3),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.05, warmup=100),
        steps=2000,
        validate_every=250,
        checkpoint_every=2000,
    )
