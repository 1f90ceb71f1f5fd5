"""A system of several stages from its config and the trained models of its stages."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusional.errors import DiffusionalError
from diffusional.models.base import LatentVariableModel
from diffusional.models.composite import Cascade, Composite, FrozenEncoder, FrozenPosterior
from diffusional.models.direct import DirectModel
from diffusional.space import Space
from diffusional.training.build import successive
from diffusional.training.composite_config import CompositeConfig


def assembled(
    config: CompositeConfig, stages: Mapping[str, LatentVariableModel], space: Space, encoder: nn.Module | None = None
) -> Composite:
    """Return the composite model of a config.

    Args:
        stages: the models of the stages' runs by name.
        space: of x.
        encoder: the frozen encoder, if it is not that of the first stage.

    Raises DiffusionalError if stages do not meet.
    """
    conditioned = next(iter(stages)) if config.kind == "cascade" else "prior"
    conditional = [] if config.data.condition is None else [conditioned, *config.conditional]
    if config.kind == "cascade":
        names = list(stages)
        if stages[names[-1]].space != space:
            raise DiffusionalError(
                f"stages do not meet: the last stage, {names[-1]!r}, is a model over {stages[names[-1]].space}, and the items are {space}"
            )
        downs = []
        for i, name in enumerate(names[:-1]):
            steps = successive(space, tuple(reversed(config.factors[i:])))
            if steps[-1].low != stages[name].space:
                raise DiffusionalError(
                    f"stages do not meet: stage {name!r} is a model over {stages[name].space}, and factors={list(config.factors)} make items "
                    f"{steps[-1].low} of {space}. Replace the stage, or correct factors in composite.json"
                )
            downs.append(nn.Sequential(*steps))
        return Cascade(stages, downs, renoise=config.renoise, handover=config.handover, conditional=conditional)
    prior: Any = stages["prior"]
    if config.kind == "latent":
        first: Any = stages["autoencoder"]
        decoder = DirectModel(first.decoder, first.likelihood, first.predicts, first.head)
        return FrozenPosterior(first.encoder, prior, decoder, conditional=conditional)
    last: Any = stages["decoder"]
    level, key = config.handover or 1, getattr(last, "key", "latent")
    if encoder is None:
        own: Any = stages["encoder"]
        encoder = own.deterministic_encoder()
    assert encoder is not None
    return FrozenEncoder(encoder, prior, last, level=level, conditional=conditional, key=key)
