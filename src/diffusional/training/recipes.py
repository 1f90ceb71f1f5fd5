"""Configs that were found to work, by name. Imports no torch."""

from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig


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
