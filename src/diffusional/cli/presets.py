"""The presets of `train --preset NAME`: the recipes by name. Does not import torch."""

from collections.abc import Callable, Mapping, Sequence

from diffusional.training import recipes
from diffusional.training.config import Config

# Looked up on use, so that a recipe replaced in its module is replaced here.
PRESETS: Mapping[str, Callable[[], Config]] = {
    "digits": lambda: recipes.digits(),
    "digits-vae": lambda: recipes.digits_vae(),
    "digits-hierarchical-vae": lambda: recipes.digits_hierarchical_vae(),
    "digits-diffusion-prior": lambda: recipes.digits_diffusion_prior(),
    "essay": lambda: recipes.essay(),
    "essay-tuned": lambda: recipes.essay_tuned(),
    "laptop": lambda: recipes.laptop(),
    "images": lambda: recipes.images(),
    "sohl-dickstein-2015": lambda: recipes.sohl_dickstein_2015(),
    "sohl-dickstein-2015-binary": lambda: recipes.sohl_dickstein_2015_binary(),
    "ddpm": lambda: recipes.ddpm(),
    "iddpm": lambda: recipes.iddpm(),
    "vdm": lambda: recipes.vdm(),
}


def named(args: Sequence[str]) -> Config:
    """Return the config that the options of `train` override: that of the last --preset, or the default.

    An unknown preset is left to the parser, which refuses it and lists the known ones.

    >>> named(["runs/a", "--preset", "digits-vae"]).model.kind
    'vae'
    >>> named(["runs/a", "--preset=nothing"]) == Config()
    True
    """
    return PRESETS.get(typed(args, "--preset") or "", Config)()


def typed(args: Sequence[str], option: str) -> str | None:
    """Return the value of the last `option` among the arguments; None if it was not typed.

    >>> typed(["runs/a", "--preset=digits", "--preset", "laptop"], "--preset")
    'laptop'
    """
    chosen = None
    for here, after in zip(args, [*args[1:], None], strict=True):
        name, equals, value = here.partition("=")
        if name == option:
            chosen = value if equals else after
    return chosen
