"""Tested configs. Does not import torch."""

from dataclasses import replace

from diffusional.deprecation import renamed_names
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from diffusional.training.historic import ddpm, iddpm, sohl_dickstein_2015, sohl_dickstein_2015_binary, vdm

__all__ = [
    "ddpm",
    "digits",
    "digits_diffusion_prior",
    "digits_hierarchical_vae",
    "digits_vae",
    "essay",
    "essay_tuned",
    "iddpm",
    "images",
    "laptop",
    "sohl_dickstein_2015",
    "sohl_dickstein_2015_binary",
    "vdm",
]

__getattr__ = renamed_names(__name__, {"levels": "images"})


def digits() -> Config:
    """Return a config for the embedded digits: about a minute of training on two cores.

    It was chosen on the validation split. 1,000 images are few: warped copies, a small network and strong weight decay delay the
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
    """Return a config for a VAE of the embedded digits, which is trained for about as long as `digits`.

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
    """Return a config for a VAE with two layers. Dropout and weight decay delay overfitting, as for the diffusion model.

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
    """Return a config for the VAE with a diffusion prior instead of N(0, I). Without the warm-up, the latent would not be used.

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


def essay() -> Config:
    """Return a config for the chain of five steps in the essay, β_t = 0.9: every step has its own network for a free mean and variance.

    The split of the embedded digits is that of the essay. The decoder is a distribution over the 17 levels of a pixel; the N(μ, I) of
    the essay is a density, whose bounds cannot be compared with those of the other models.

    >>> essay().schedule.steps, essay().schedule.beta_start
    (5, 0.9)
    """
    return Config(
        data=DataConfig(warps=15),
        schedule=ScheduleConfig(kind="linear", steps=5, beta_start=0.9, beta_end=0.9),
        model=ModelConfig(kind="gaussian-chain", hidden=256, blocks=2, dropout=0.1),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.05, warmup=100),
        steps=2000,
        validate_every=250,
        checkpoint_every=2000,
    )


def essay_tuned() -> Config:
    """Return a config for the same chain with learned γ_1 … γ_5, which are initially evenly spaced in [−1, 4]; chosen on validation.

    >>> essay_tuned().schedule.steps
    5
    """
    schedule = ScheduleConfig(kind="learned", ends="learned", steps=5, gamma_min=-1.0, gamma_max=4.0)
    return replace(essay(), schedule=schedule)


def images() -> Config:
    """Return a config for 8-bit images (--data) on a GPU: a levels head, continuous time, adaptive levels.

    The network returns the probabilities of all levels at every position, as a discretised logistic combined with the evidence of z (MATH
    (5)). At z_1 they are the decoder, and their mean is the x̂ of every KL divergence.

    >>> images().model.predicts
    'levels'
    """
    return Config(
        data=DataConfig(levels=256),
        model=ModelConfig(predicts="levels", head="logistic", widths=(64, 128, 256), blocks=4, dropout=0.1),
        optimizer=OptimizerConfig(lr=5e-4, weight_decay=0.01, warmup=1000, ema=0.9995),
        sampler="adaptive",
        steps=100_000,
        validate_every=2500,
        checkpoint_every=2500,
    )


def laptop() -> Config:
    """Return a config for 8-bit MNIST: ten minutes on two cores; --data is the folder of its four files.

    >>> laptop().data.levels
    256
    """
    return Config(
        data=DataConfig(levels=256),
        model=ModelConfig(predicts="levels", head="logistic", widths=(16, 32, 64), blocks=1, dropout=0.0),
        optimizer=OptimizerConfig(lr=2e-3, warmup=100),
        steps=3000,
        batch=32,
        validate_every=1500,
        checkpoint_every=500,
    )
