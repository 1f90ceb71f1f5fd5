"""Configs that were found to work, by name. Imports no torch."""

from diffusional.training.config import Config, ModelConfig, OptimizerConfig


def digits() -> Config:
    """The embedded digits on two cores, about a minute of training.

    Chosen on the validation split. 1,000 images are few: a small network, dropped channels and strong weight decay put
    off the overfitting that ends every longer run near the same bound.

    >>> digits().steps
    900
    """
    return Config(
        model=ModelConfig(widths=(16, 48), dropout=0.1),
        optimizer=OptimizerConfig(lr=5e-3, weight_decay=0.3, warmup=100),
        steps=900,
        validate_every=150,
        checkpoint_every=450,
    )
