"""C16: a file of the codec is as long as the path form of the bound, MATH (33).

Items of independent, equally likely levels, and the best linear denoiser, whose steps have no far tails: there a code is shorter than
−log₂ of the density. The control pops its latents from another stack, whose bits are
not given back: every item then costs −log₂ p(x, z).
"""

import math

import numpy as np
import torch
from torch import Tensor

from diffusional import schedule as schedules
from diffusional.claims.check import Check
from diffusional.forward import GaussianDiffusion
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import LevelPosterior
from diffusional.space import Discrete

_SPACE, _ITEMS, _STEPS, _ROWS = Discrete((64,), levels=4), 320, 16, 64
# The tolerance of the ratio of a file and its path: words of the stack are a part of the file.
_TOLERANCE = 1e-3


def _model() -> DiffusionModel:
    spread = float(_SPACE.values.var(correction=0))

    def mean(z: Tensor, log_snr: Tensor) -> Tensor:
        signal, noise = torch.sigmoid(log_snr)[:, None], torch.sigmoid(-log_snr)[:, None]
        return signal.sqrt() * spread / (signal * spread + noise) * z

    process = GaussianDiffusion(schedules.log_snr_linear(-4.0, 2.0, steps=_STEPS))
    return DiffusionModel(process, Denoiser(mean, "data"), LevelPosterior(_SPACE))


def c16(seed: int, bits_back: bool = True) -> list[Check]:
    """The bits of the items in a file are those of the path that was coded, which decoding finds again."""
    from diffusional.codec.coder import Coder, initial_words, one_thread
    from diffusional.codec.stack import Real, Stack, Whole

    class Wasteful(Stack):
        """A stack whose pops are taken from another one."""

        def __init__(self, words: np.ndarray) -> None:
            super().__init__(words)
            self.other = Stack(initial_words(16 * _ITEMS * _SPACE.dimensions, seed + 1))

        def pop_gaussian(self, mean: Real, std: Real) -> Whole:
            return self.other.pop_gaussian(mean, std)

    rng = np.random.default_rng(seed)
    x = _SPACE.encode(torch.from_numpy(rng.integers(0, _SPACE.levels, (_ITEMS, *_SPACE.shape))))
    model, words = _model(), 4096
    with one_thread(model):
        coder = Coder(model, _ROWS)
        stack = (Stack if bits_back else Wasteful)(initial_words(words, seed))
        groups = [*enumerate(coder.groups(len(x)))]
        path = np.concatenate([coder.encode(stack, x[some], number) for number, some in groups])
        bits = 32 * (len(stack) - words)
        checks = [
            Check("bits of the items over the path form", bits * math.log(2) / float(path.sum()), 0.0, 1.0, _TOLERANCE)
        ]
        if bits_back:
            found = [coder.decode(stack, some.stop - some.start, number) for number, some in groups[::-1]][::-1]
            again = np.concatenate([part[2] for part in found])
            wrong = float((torch.cat([part[0] for part in found]) != x).double().mean())
            checks += [
                Check("values that are decoded wrongly", wrong),
                Check("the path of decoding", float(np.abs(again - path).max() / path.mean())),
            ]
    return checks
