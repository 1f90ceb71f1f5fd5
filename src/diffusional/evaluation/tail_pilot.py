"""A pilot for models without levels: the variance of one draw, from draws that the estimate does not use.

Costs with rare, large parts have a small mean and a small spread until a draw meets one of these parts. A rule that stops by the spread of
the averaged draws therefore favours evaluations that have met too few. The pilot's variance does not depend on those draws.

Rare costs of an autoencoder usually lie in the tails of its noise, so the pilot draws half of its noise from a wider normal
distribution, with s² = 1 + 2/√d in d dimensions, and weights every draw by the ratio of the densities (a defensive mixture; Owen,
Monte Carlo theory, methods and examples, §9.11):

    ε ~ g = ½ N(0, I) + ½ N(0, s² I),      w = N(ε; 0, I)/g(ε) ≤ 2,

    v̂_i = 1/(J (J − 1)) Σ_{j<k} w_j w_k (c_j − c_k)²,

which is unbiased for the variance v_i of item i's cost c under N(0, I). An event four standard deviations from the mean occurs in
one plain draw in 16,000, and in one pilot draw in 100.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusional.evaluation.noise import stream

# Draws of a pilot, and the fewest with which a pilot is worthwhile.
DRAWS, LEAST_DRAWS = 512, 16
# The fewest draws of an item in the pilot.
_EACH = 2


@dataclass(frozen=True)
class Variance:
    """An estimate of one draw's variance, averaged over the items.

    Attributes:
        value: nats².
        freedom: degrees of freedom, 3 (Σ q)²/Σ q² with q the contributions of the draws; few if few draws dominate.
        worth: the number of draws of plain noise that would estimate the variance equally well.
    """

    value: float
    freedom: float
    worth: float

    def pooled(self, seen: "Variance") -> "Variance":
        """Return the variance from both estimates, each weighted by its `worth`.

        >>> Variance(1.0, 100.0, 100.0).pooled(Variance(2.0, 300.0, 300.0))
        Variance(value=1.75, freedom=376.9..., worth=400.0)
        """
        worth = self.worth + seen.worth
        mine, its = self.worth / worth * self.value, seen.worth / worth * seen.value
        value = mine + its
        squares = mine**2 / self.freedom + its**2 / max(seen.freedom, 1e-9)
        return Variance(value, value**2 / squares if squares > 0 else math.inf, worth)

    def uncertainty(self) -> float:
        """Return the relative standard error of the value, √(2/freedom)."""
        return math.sqrt(2 / max(self.freedom, 1e-9))


def wider(dimensions: int) -> float:
    """Return s, the standard deviation of the wider noise: about one nat from N(0, I) in any number of dimensions.

    >>> round(wider(1), 3), round(wider(100), 3)
    (1.732, 1.095)
    """
    return math.sqrt(1 + 2 / math.sqrt(dimensions))


def chosen(keys: Sequence[bytes], draws: int) -> tuple[Tensor, int]:
    """Choose the items of a pilot of at most `draws` draws, at random but independently of their order, and the draws of each.

    >>> items, each = chosen([b"a", b"b", b"c"], 13)
    >>> items.tolist(), each
    ([0, 1, 2], 4)
    """
    count = max(1, min(len(keys), draws // _EACH))
    order = sorted(range(len(keys)), key=lambda i: hashlib.blake2b(keys[i] + b"pilot order").digest())
    return torch.tensor(sorted(order[:count])), max(_EACH, draws // count)


def noise(keys: list[bytes], draws: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the pilot's noise (len(keys), draws, *shape), float32, and its weights (len(keys), draws); they depend only on the keys.

    >>> noises, weights = noise([b"item"], 3, (2,))
    >>> noises.shape, bool((weights < 2).all())
    (torch.Size([1, 3, 2]), True)
    """
    dimensions = math.prod(shape)
    s, parts, wide = wider(dimensions), [], []
    for key in keys:
        generator = stream(key, 0, b"pilot")
        wide.append(generator.random(draws) < 0.5)
        parts.append(generator.standard_normal((draws, *shape), dtype=np.float32))
    scale = torch.where(torch.from_numpy(np.stack(wide)), s, 1.0).float()
    noises = torch.from_numpy(np.stack(parts)) * scale.reshape(*scale.shape, *(1,) * len(shape))
    # ln N(ε; 0, s² I)/N(ε; 0, I).
    ratio = 0.5 * (1 - s**-2) * noises.double().square().flatten(2).sum(2) - dimensions * math.log(s)
    return noises, 2 * torch.sigmoid(-ratio)


def variance(costs: Tensor, weights: Tensor) -> Variance:
    """Estimate the mean over items of the variance of one draw, from costs (n, J) and their weights (n, J), J ≥ 2.

    >>> variance(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)).value
    2.0
    """
    n, j = costs.shape
    total = weights.sum(1, keepdim=True)
    away = costs - (weights * costs).sum(1, keepdim=True) / total
    # Differences of equal costs by rounding are not counted as spread.
    away = torch.where(away.square() > 4 * torch.finfo(torch.float64).eps * costs.square(), away, 0.0)
    parts = total * weights * away.square() / (j * (j - 1) * n)
    value, squares = float(parts.sum()), float(parts.square().sum())
    if not (value > 0 and squares > 0):
        return Variance(0.0, math.inf, 0.0)
    # The J draws of an item share their mean, so their deviations are smaller and more equal: by these factors if costs are normal.
    shared = j / (j - 1)
    relative = shared * squares / value**2
    # With M plain draws the relative variance is (κ − 1)/M, κ the kurtosis of a cost.
    kurtosis = shared**2 * float((weights * away.pow(4)).mean()) / value**2
    worth = max(kurtosis - 1, 0.0) / max(relative - 1 / parts.numel(), 1e-12)
    return Variance(value, 3 / relative, worth)
