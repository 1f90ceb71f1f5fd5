"""The options of classifier-free guidance, which `sample` and `evaluate` have."""

from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Evaluate, Sample
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.models.base import LatentVariableModel


def guidance_options(command: Evaluate | Sample) -> dict[str, Any]:
    """Return the options of guidance besides the weight that were given, by name."""
    stages = command.guidance_stages
    options = {
        "threshold": command.guidance_threshold,
        "rescale": command.guidance_rescale or None,
        "stages": None if stages is None else list(stages),
    }
    return {name: value for name, value in options.items() if value is not None}


def guided(model: "LatentVariableModel", weight: float | None, command: Evaluate | Sample) -> "LatentVariableModel":
    """Return the model with guidance by the options of the command; the model itself if no weight was given.

    Raises DiffusionalError for options without a weight, and for stages of a model without stages.
    """
    from diffusional.models.composite import Composite

    options = guidance_options(command)
    if weight is None:
        if options:
            names = " and ".join(f"--guidance-{name}" for name in options)
            raise DiffusionalError(
                f"{names} was given without --guidance; give its weight, such as 2, or leave {names} out"
            )
        return model
    if isinstance(model, Composite):
        return model.guided(weight, **options)
    if "stages" in options:
        raise DiffusionalError(
            f"--guidance-stages {' '.join(options['stages'])} is for systems of several stages, but this is a single model; leave it out"
        )
    return model.guided(weight, **options)
