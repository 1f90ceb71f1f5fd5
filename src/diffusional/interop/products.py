"""Errors of the noise that readings of one call imply, from mean products of the output, the noise and z; and scores of such errors.

An error ‖ε − ε̂‖² is a quadratic form of the products, whatever the output is read as.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import Output

# A reading is reported if its score is lower than that of the declared one by this, and by this many standard errors.
MARGIN, ERRORS = 0.05, 4.0
# An estimate of the noise that is not better than a multiple of z by this is none.
_IDLE = 0.05
# A mean squared error below this is as good as none: networks in float32 cannot do better.
_LEAST = 1e-12
# A slope is wrong if it differs from 1 by ERRORS standard errors and costs this much of ln E‖ε − ε̂‖²; a reading does not fit if this share
# of its slopes is wrong. (A network may be far from calibrated where its output counts for little beside z.)
_GAIN, _MANY = 0.25, 0.25
# Slopes that are so near to 1 are not ranked by their distance from it.
_NEAR = 0.1
# What each declaration that differs after the first must lower the score by: of two readings that are nearly as good, the simpler is reported.
_PRICE = 0.1


@dataclass(frozen=True, eq=False)
class Products:
    """Mean products over the values of each item, (…, levels, items): of the output o, the noise ε and z, all in the network's encoding.

    Errors and slopes of every kind of output are combinations of these, so that one call of the network serves them all.
    """

    gamma: Tensor
    oo: Tensor
    oe: Tensor
    oz: Tensor
    ee: Tensor
    ez: Tensor
    zz: Tensor

    def of_call(self, index: int) -> "Products":
        """Return the products (levels, items) of one of several calls."""
        return Products(*(getattr(self, f.name)[index] for f in fields(self)))

    def squared_error(self, of: Output) -> Tensor:
        """Return ‖ε − ε̂‖²/D (…, levels, items), float64; infinite where it is not a number."""
        a, b = of.at(self.gamma)
        alphas, sigmas = alpha(self.gamma), sigma(self.gamma)
        # ε̂ = p o − q z.
        below = alphas * b - a * sigmas
        p, q = (t[..., None] for t in (alphas / below, a / below))
        squares = self.ee - 2 * p * self.oe + 2 * q * self.ez + p * p * self.oo - 2 * p * q * self.oz + q * q * self.zz
        return torch.where(torch.isfinite(squares), squares.clamp(min=_LEAST), math.inf)

    def of_z(self) -> Tensor:
        """Return ‖ε − c z‖²/D (…, levels, items) with the best c for every level: the error of a prediction from z only."""
        c = self.ez.sum(-1, keepdim=True) / self.zz.sum(-1, keepdim=True)
        return self.ee - 2 * c * self.ez + c * c * self.zz

    def fitted(self) -> Tensor:
        """Return ‖ε − p o − q z‖²/D (…, levels, items) with the best p and q for every level, whatever the output is."""
        oo, oe, oz, ez, zz = (t.sum(-1, keepdim=True) for t in (self.oo, self.oe, self.oz, self.ez, self.zz))
        # By z first: o is nearly a multiple of z where the network adds little to it.
        rest = (oo - oz * oz / zz).clamp(min=_LEAST * oo)
        p = (oe - oz * ez / zz) / rest
        q = (ez - p * oz) / zz
        squares = self.ee - 2 * p * self.oe - 2 * q * self.ez + p * p * self.oo + 2 * p * q * self.oz + q * q * self.zz
        return torch.where(torch.isfinite(squares), squares.clamp(min=_LEAST), math.inf)

    def slopes(self, of: Output) -> tuple[Tensor, Tensor]:
        """Return ⟨target, output⟩/⟨output, output⟩ (…, levels), and its standard error by leaving out one item at a time."""
        a, b = (t[..., None] for t in of.at(self.gamma))
        alphas, sigmas = alpha(self.gamma)[..., None], sigma(self.gamma)[..., None]
        # The target is a x + b ε, with x = (z − σ ε)/α.
        shared = a / alphas * (self.oz - sigmas * self.oe) + b * self.oe
        sums, powers = shared.sum(-1, keepdim=True), self.oo.sum(-1, keepdim=True)
        spread = jackknife((sums - shared) / (powers - self.oo))
        return (sums / powers).squeeze(-1).nan_to_num(), spread.nan_to_num()

    def off(self, of: Output) -> Tensor:
        """Return how far the slopes are from 1 (…), beyond two standard errors and at most 1, in the mean over levels."""
        slopes, error = self.slopes(of)
        return ((slopes - 1).abs() - (2 * error).clamp(min=_NEAR)).clamp(0.0, 1.0).mean(-1)

    def wrong(self, of: Output) -> Tensor:
        """Return whether an output (levels,) is so far from the scale of its target that the right scale lowers the error much."""
        slopes, error = self.slopes(of)
        k = slopes[:, None]
        scaled = replace(self, oo=self.oo * k * k, oe=self.oe * k, oz=self.oz * k)
        gain = self.squared_error(of).mean(-1).log() - scaled.squared_error(of).mean(-1).log()
        return ((slopes - 1).abs() > ERRORS * error) & (gain > _GAIN)

    def beside_z(self, of: Output) -> Tensor:
        """Return `squared_error`, or `of_z` at noise levels where that is lower in the mean.

        Of two readings that are worse than z itself, which any network can be at high or at low noise, neither is the better one.
        """
        own, by_z = self.squared_error(of), self.of_z()
        return torch.where(own.mean(-1, keepdim=True) < by_z.mean(-1, keepdim=True), own, by_z)

    def idle(self, of: Output) -> bool:
        """Return whether an output is nowhere a better estimate of the noise than a multiple of z, and clearly a worse one in the mean."""
        by_z = self.of_z()
        worse, error = margin_of(self.squared_error(of), by_z)
        gain = float(score(by_z) - score(self.beside_z(of)))
        return gain < _IDLE and not worse <= max(_IDLE, ERRORS * error)

    def rank(self, of: Output) -> Tensor:
        """Return S (…) of an output, plus how far its slopes are from 1.

        Outputs that are mixed with much of z, such as v, may have a lower S than the right reading of a network that is badly trained at
        high noise. But then their slopes are off.
        """
        return score(self.beside_z(of)) + self.off(of)


def jackknife(without: Tensor) -> Tensor:
    """Return the standard error (…) of an estimate from its values without one of n items each (…, n)."""
    n = without.shape[-1]
    return ((n - 1) / n * (without - without.mean(-1, keepdim=True)).square().sum(-1)).sqrt()


def score(errors: Tensor) -> Tensor:
    """Return S (…) of errors (…, levels, items), which is the mean of the logarithm of the mean error of each level."""
    return errors.mean(-1).log().mean(-1)


def margin_of(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Return how much lower the score of `other` is, and the standard error over items, by leaving out one item at a time."""
    n = own.shape[1]
    value = float(score(own) - score(other))
    kept = torch.arange(1, n) + torch.arange(n)[:, None]  # all items but one, modulo n
    without = score(own[:, kept % n].transpose(0, 1)) - score(other[:, kept % n].transpose(0, 1))
    return value, float(jackknife(without))


def price(count: Tensor) -> Tensor:
    """Return what readings that differ in so many declarations must be better by than the declared one."""
    return _PRICE * count - count.clamp(max=1) * (_PRICE - MARGIN)


def clear(margin: float, error: float) -> bool:
    return not math.isfinite(margin) or margin > max(MARGIN, ERRORS * error)


def fits_slopes(seen: Products, of: Output, most: float) -> bool:
    """Return whether the slopes of an output are near 1, at most so far from it in the mean, and it is worth more than a multiple of z."""
    return float(seen.off(of)) <= most and not many(seen.wrong(of)) and not seen.idle(of)


def many(wrong: Tensor) -> bool:
    """Return whether many slopes are wrong."""
    return float(wrong.double().mean()) > _MANY
