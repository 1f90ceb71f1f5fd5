"""How a stage is given the variable of the stage before it: noised to one level, or as the latent z_s of a chain that stops there."""

from diffusional.errors import DiffusionalError
from diffusional.models.base import LatentVariableModel
from diffusional.models.renoised import Renoised
from diffusional.models.tail import ChainTail

# γ of a handed latent and of the network that takes it may differ by rounding.
_GAMMA = 1e-6


def linked(
    model: LatentVariableModel,
    gamma: float,
    shape: tuple[int, ...],
    key: str,
    name: str,
    rescaled: bool,
    gives_level: bool,
) -> Renoised:
    """Return a stage whose condition is noised to γ: the model itself if it is a `Renoised` of this noise level, otherwise one around it.

    Raises DiffusionalError for a `Renoised` of another noise level, shape or key.
    """
    if not isinstance(model, Renoised):
        return Renoised(model, gamma, shape, key, rescaled, gives_level)
    if abs(model.gamma - gamma) > _GAMMA or model.shape != shape or model.key != key:
        raise DiffusionalError(
            f"stages do not meet: stage {name!r} takes a condition {model.key!r} of shape {model.shape} noised to γ = {model.gamma:g}, and is "
            f"given {key!r} of shape {shape} at γ = {gamma:g}; give both the same noise level"
        )
    return model


def tail_of(model: LatentVariableModel, level: int) -> LatentVariableModel:
    """Return a stage that hands z_s over: the latents from z_s on of a chain, or of the chain of a `Renoised`; one that does so already is
    returned as it is.
    """
    if isinstance(model, Renoised):
        return Renoised(
            tail_of(model.model, level), model.gamma, model.shape, model.key, model.rescaled, model.gives_level
        )
    if isinstance(model, ChainTail):
        if model.level != level:
            raise DiffusionalError(
                f"expected a stage that hands z_{level} over, got one that hands z_{model.level} over"
            )
        return model
    return ChainTail(model, level)  # type: ignore[arg-type]
