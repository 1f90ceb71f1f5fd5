"""Which control variates a chain has, fitted to reference items or restored from a file."""

import math

from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.context import MOST_LEVELS as MOST_OF_CONTEXT
from diffusional.evaluation.context import Context
from diffusional.evaluation.control import Control, Own
from diffusional.evaluation.histogram import MOST_LEVELS, Histogram
from diffusional.evaluation.moments import Moments
from diffusional.evaluation.neighbours import MOST_CATEGORIES, Neighbours
from diffusional.evaluation.stage_controls import PREFIX, StageControls
from diffusional.evaluation.wiener import Wiener
from diffusional.evaluation.window import MOST_CATEGORIES as MOST_OF_WINDOW
from diffusional.evaluation.window import Window
from diffusional.models.chain import Chain
from diffusional.space import Discrete

NAMES = ("wiener", "histogram", "moments", "own", "neighbours", "window")
# Those that take network evaluations, so that a plan has them only if they are named.
FURTHER = ("context",)


def fit_controls(names: tuple[str, ...], chain: Chain, x: Tensor) -> tuple[Control, ...]:
    """Return the controls of these names that the chain has, fitted to items x (N, *dims): Wiener's filter and the moments of the noise for
    costs that are affine in ‖ε − ε̂‖², histograms for discrete data, a Markov chain and a model of windows for masked sequences, what the chain's family offers, and if it is named the context of a
    levels head over at most 32 levels.

    Raises DiffusionalError for an unknown name.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule
    >>> import torch
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0, steps=20))
    >>> decoder = likelihood.LevelPosterior(Discrete((2,), 2))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z), decoder)
    >>> [control.name for control in fit_controls(NAMES, model, torch.ones(3, 2))]
    ['wiener', 'histogram', 'moments']
    """
    space, fitted = chain.space, list[Control]()
    for name in names:
        if name not in (*NAMES, *FURTHER):
            raise DiffusionalError(f"expected controls among {', '.join((*NAMES, *FURTHER))}, got {name!r}")
        if name == "own" and chain.moment_names:
            fitted.append(Own(chain))
        if name == "neighbours" and chain.masks is not None and chain.masks.space.levels <= MOST_CATEGORIES:
            fitted.append(Neighbours.fit(x, chain.masks))
        if name == "window" and chain.masks is not None and chain.masks.space.levels <= MOST_OF_WINDOW:
            fitted.append(Window.fit(x, chain.masks))
        if chain.affine_levels() and (staged := StageControls.fit(name, chain, x)) is not None:
            fitted.append(staged)
        if chain.affine is None:
            continue
        if name == "wiener":
            fitted.append(Wiener.fit(x, space))
        if name == "histogram" and isinstance(space, Discrete) and space.levels <= MOST_LEVELS:
            fitted.append(Histogram.fit(x, space))
        if name == "moments":
            fitted.append(Moments(space))
        if name == "context" and isinstance(space, Discrete) and has_context(chain):
            fitted.append(Context(space))
    return tuple(fitted)


def has_context(chain: Chain) -> bool:
    """Return whether the chain has the control `context`: a network that predicts distributions over at most 32 levels."""
    space = chain.space
    return chain.affine is not None and chain.predicts_levels and (space.levels or math.inf) <= MOST_OF_CONTEXT


def restored(name: str, chain: Chain, state: dict[str, Tensor]) -> Control:
    """Return a control from its `state`. Raises KeyError for an unknown name or an incomplete state."""
    if name == "own":
        return Own(chain)
    if name == "neighbours":
        assert chain.masks is not None
        return Neighbours.from_state(chain.masks, state)
    if name == "window":
        assert chain.masks is not None
        return Window.from_state(chain.masks, state)
    if name.startswith(PREFIX):
        return StageControls.from_state(name.removeprefix(PREFIX), chain, state)
    kinds = {"wiener": Wiener, "histogram": Histogram, "moments": Moments, "context": Context}
    return kinds[name].from_state(chain.space, state)
