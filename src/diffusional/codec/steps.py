"""The number of latents T that makes the shortest file.

More latents lower the bound, by about c/T, and cost more: of the coder, a little for every latent, and of the first item, whose latents are
popped from borrowed bits. The bound is estimated on a few items at every T and smoothed by a fit of a + b/T + c/T²; the borrowed bits are those of
one item at two T, and grow with ln T.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusional.codec.coder import Coder, encoded, initial_words, one_thread
from diffusional.conditions import Condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.models.base import LatentVariableModel, evaluation_mode

# The numbers of latents that are compared; those at which an item is coded to find what is borrowed.
CANDIDATES, _CODED = (25, 50, 100, 200, 400, 800), (25, 100)
# Items of the estimate of the bound.
_ITEMS = 16
# Bits that a latent adds to each dimension of an item: the KL divergences between the coder's distribution and the density, 7e-6 when it is
# popped and 3e-6 when it is pushed.
OVERHEAD = 1e-5


@dataclass(frozen=True)
class Choice:
    """The T with the shortest file, and the estimates of all that were compared.

    Attributes:
        steps: T; None for a model that is discrete in continuous time, such as masks that appear one at a time.
        bits: estimated bits of the items and what is borrowed, by T.
    """

    steps: int | None
    bits: dict[int, float]

    def __str__(self) -> str:
        if not self.bits:
            return "the bound of continuous time has latents of its own"
        each = ", ".join(f"{t}: {bits / 8:,.0f}" for t, bits in self.bits.items())
        return f"T = {self.steps} has the shortest file; estimated bytes without the header by T: {each}"


def choose_steps(
    model: LatentVariableModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    seed: int = 0,
    candidates: tuple[int, ...] = CANDIDATES,
) -> Choice:
    """Return the T among `candidates` for which a file of items x (N, *space.shape) is estimated to be the shortest.

    This takes about Σ T network evaluations for each of 16 items. Raises DiffusionalError for models whose T cannot be changed, and for no
    candidates.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, Discrete, likelihood, schedule
    >>> space = Discrete((2,), levels=4)
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z, "data"), likelihood.LevelPosterior(space))
    >>> choose_steps(model, space.encode(torch.tensor([[0, 3]])), candidates=(4, 8)).steps in (4, 8)
    True
    """
    if not candidates or min(candidates) < 2:
        raise DiffusionalError(f"expected candidates to be numbers of latents T ≥ 2, got {candidates}")
    if (continuous := model.regrid(None)).steps is not None:
        assert continuous.steps > 0
        return Choice(None, {})
    some = slice(min(len(x), _ITEMS))
    generator = torch.Generator().manual_seed(seed)
    bounds = list[float]()
    with evaluation_mode(model), torch.inference_mode():
        for t in candidates:
            ledger = model.regrid(t).elbo(x[some], generator, rows_of(condition, some))
            bounds.append(float(ledger.nelbo.mean()) / math.log(2))
    borrowed = _borrowed(model, x[:1], rows_of(condition, slice(1)), seed, candidates)
    smooth = _smoothed(candidates, bounds)
    extra = OVERHEAD * model.space.dimensions
    bits = {
        t: len(x) * (bound + extra * t) + first for t, bound, first in zip(candidates, smooth, borrowed, strict=True)
    }
    return Choice(min(bits, key=lambda t: bits[t]), bits)


def _smoothed(steps: tuple[int, ...], bounds: list[float]) -> list[float]:
    """Return a least-squares fit of a + b/T + c/T², or the bounds themselves if there are at most three."""
    if len(steps) <= 3:
        return bounds
    inverse = 1 / np.array(steps, dtype=np.float64)
    powers = np.stack([inverse**0, inverse, inverse**2], 1)
    return (powers @ np.linalg.lstsq(powers, np.array(bounds), rcond=None)[0]).tolist()


def _borrowed(
    model: LatentVariableModel, x: Tensor, condition: Condition | None, seed: int, candidates: tuple[int, ...]
) -> list[float]:
    """Return the bits that one item borrows, for every T, from coding it at two."""
    found = list[int]()
    words = 64 * x[0].numel()
    for t in _CODED:
        model_t = model.regrid(t)
        with one_thread(model_t):
            coder = Coder(model_t, 1, Coder(model_t, 1).measured(x, condition, seed))
            done = encoded(coder, x, condition, initial_words(words, seed))
        found.append(32 * (words - done[0].lowest) if done is not None else 32 * words)
    slope = (found[1] - found[0]) / math.log(_CODED[1] / _CODED[0])
    return [max(0.0, found[0] + slope * math.log(t / _CODED[0])) for t in candidates]
