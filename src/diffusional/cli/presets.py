"""What `train --preset NAME` means: the recipes that were found to work, by the name that one types. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence

from diffusional.training import recipes
from diffusional.training.config import Config

# Looked up when asked for, so that a recipe exchanged in its module is exchanged here.
PRESETS: Mapping[str, Callable[[], Config]] = {
    "digits": lambda: recipes.digits(),
    "digits-vae": lambda: recipes.digits_vae(),
    "digits-hierarchical-vae": lambda: recipes.digits_hierarchical_vae(),
    "digits-diffusion-prior": lambda: recipes.digits_diffusion_prior(),
    "essay": lambda: recipes.essay(),
    "essay-tuned": lambda: recipes.essay_tuned(),
    "laptop": lambda: recipes.laptop(),
    "levels": lambda: recipes.levels(),
    "sohl-dickstein-2015": lambda: recipes.sohl_dickstein_2015(),
    "sohl-dickstein-2015-binary": lambda: recipes.sohl_dickstein_2015_binary(),
    "ddpm": lambda: recipes.ddpm(),
    "iddpm": lambda: recipes.iddpm(),
    "vdm": lambda: recipes.vdm(),
}


def named(args: Sequence[str]) -> Config:
    """The config that options typed after `train` override: that of the last --preset, or the default one.

    A preset that doesn't exist is left to the parser, which refuses it with the names that do.

    >>> named(["runs/a", "--preset", "digits-vae"]).model.kind
    'vae'
    >>> named(["runs/a", "--preset=nothing"]) == Config()
    True
    """
    return PRESETS.get(typed(args, "--preset") or "", Config)()


def typed(args: Sequence[str], option: str) -> str | None:
    """Return the value of the last `option` among the arguments; None if it was not typed.

    >>> typed(["runs/a", "--preset=digits", "--preset", "levels"], "--preset")
    'levels'
    """
    chosen = None
    for here, after in zip(args, [*args[1:], None], strict=True):
        name, equals, value = here.partition("=")
        if name == option:
            chosen = value if equals else after
    return chosen
