"""Configs that were found to work, by name. Imports no torch."""

from diffusional.training.config import Config


def digits() -> Config:
    """The embedded digits on two cores in about 80 seconds.

    >>> digits().data.name
    'digits'
    """
    return Config()
