"""Control variates by moments of the noise: Σ_i w_i(x) φ(ε_i) with weights from the item and φ of known mean.

For any weights w that are a function of the item, any slope of the level, and ε ~ N(0, I),

    E Σ w_i (ε_i² − 1) = 0,     E Σ w_i ε_i ε̄_i = 0,     E Σ w_i ε_i = 0,
    E Σ w_i 1[ε_i > h] = Φ(−h) Σ w_i,      E Σ w_i (ε_i − h)₊² = ((1 + h²) Φ(−h) − h φ(h)) Σ w_i,                       (a)

with ε̄_i the mean of the noise around position i without ε_i itself. They need no denoiser, no quadrature and no table. The weights are 1,
membership of the levels between the lowest and the highest (where the noise can move an estimate both ways), and the local standard
deviation of the item; h = ½ Δ α/σ is half a bin in standard deviations of z, the noise from which on a level is mistaken for its neighbour.
"""

import math

import torch
from torch import Tensor

from diffusional.evaluation.control import Look
from diffusional.forward import alpha, sigma
from diffusional.space import Discrete, Space


class Moments:
    """Moments of the noise for the items of a space.

    >>> from diffusional import Continuous
    >>> moments = Moments(Continuous((2,)))
    >>> look = Look(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.zeros(1).double(), torch.ones(1), torch.tensor([False]))
    >>> moments.draws, moments.at(look)[1]                                          # Σ (ε_i² − 1)
    (('squares',), tensor([[3.]], dtype=torch.float64))
    """

    name = "moments"
    models_cost = False

    def __init__(self, space: Space) -> None:
        self.space = space
        # Positions have neighbours in (C, L) and (C, H, W), and columns of a table have none.
        self._around = len(space.shape) in (2, 3) and max(space.shape[1:]) > 1
        self._levels = isinstance(space, Discrete) and space.levels > 2

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Moments":
        return cls(space)

    def state(self) -> dict[str, Tensor]:
        return {}

    @property
    def expects(self) -> tuple[str, ...]:
        inner = ("inner levels",) if self._levels else ()
        return (*inner, "local deviation") if self._around else inner

    @property
    def draws(self) -> tuple[str, ...]:
        squares = ("squares", "squares of inner levels") if self._levels else ("squares",)
        around = ("squares by deviation", "products of neighbours", "noise by difference") if self._around else ()
        exceedances = _EXCEEDANCES if self._levels else _EXCEEDANCES[:2]
        return (*squares, *around, *(exceedances if isinstance(self.space, Discrete) else ()))

    def _inner(self, x: Tensor) -> Tensor:
        """Return 1 at levels between the lowest and the highest, 0 at these two, (B, *dims); 1 everywhere if there are no levels between."""
        if not (self._levels and isinstance(self.space, Discrete)):
            return torch.ones_like(x)
        half = 0.5 * self.space.width
        return ((x > self.space.low + half) & (x < self.space.high - half)).to(x.dtype)

    def _mean(self, x: Tensor, padded: bool) -> Tensor:
        """Return means over 3 positions, or 3 × 3, around each; beyond the border there is nothing, or zeros."""
        pool = torch.nn.functional.avg_pool1d if x.ndim == 3 else torch.nn.functional.avg_pool2d
        return pool(x, 3, 1, 1, count_include_pad=padded)

    def _local(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the difference from the local mean, and the local standard deviation."""
        mean = self._mean(x, padded=False)
        return x - mean, (self._mean(x.square(), padded=False) - mean.square()).clamp(min=0).sqrt()

    def _of_item(self, x: Tensor) -> Tensor:
        """Return the functions of the item (B, E), which are the same at all levels."""
        inner = self._inner(x)
        weights = [inner] if self._levels else []
        if self._around:
            weights.append(inner * self._local(x)[1])
        return _stacked(weights, x)

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        x, noise = look.x, look.noise.to(look.x.dtype)
        inner, squares = self._inner(x), noise.square() - 1
        expected, drawn = [inner] if self._levels else [], [squares]
        if self._levels:
            drawn.append(inner * squares)
        if self._around:
            difference, deviation = self._local(x)
            neighbours = 9 if x.ndim == 4 else 3
            others = (neighbours * self._mean(noise, padded=True) - noise) / (neighbours - 1)
            expected.append(inner * deviation)
            drawn += [inner * deviation * squares, inner * deviation * noise * others, difference * noise]
        if isinstance(self.space, Discrete):
            drawn += self._exceedances(look, inner)
        return _stacked(expected, x), _stacked(drawn, x)

    def _half_bin(self, gamma: Tensor) -> Tensor:
        """Return h, half a bin in standard deviations of z, at γ."""
        assert isinstance(self.space, Discrete)
        return 0.5 * self.space.width * alpha(gamma) / sigma(gamma)

    def _exceedances(self, look: Look, inner: Tensor) -> list[Tensor]:
        """Return (a), less its mean: first of the outermost levels, from which the noise leads one way only, then of those between."""
        assert isinstance(self.space, Discrete)
        x, noise = look.x, look.noise.to(look.x.dtype)
        h, count, square, _ = (v.view(-1, *(1,) * (x.ndim - 1)).to(x) for v in _beyond(self._half_bin(look.gammas)))
        inwards = torch.where(x < 0.5 * (self.space.low + self.space.high), noise, -noise)
        groups = [(1 - inner if self._levels else inner, inwards - h, 1)]
        if self._levels:
            groups.append((inner, noise.abs() - h, 2))
        out = []
        for weight, excess, sides in groups:
            out.append(weight * ((excess > 0).to(x) - sides * count))
            out.append(weight * (excess.clamp(min=0).square() - sides * square))
        return out

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        return weight.double().sum(1).to(x.device)[:, None] * self._of_item(x)[:, None, :]

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        """Return the variances of exceedances, which are rare at low noise. Those of the other moments are 0, since a pilot can estimate them."""
        out = torch.zeros(len(gamma), len(self.draws), dtype=torch.float64)
        if not isinstance(self.space, Discrete):
            return out
        inner = self._inner(x).flatten(1).sum(1, dtype=torch.float64).mean().cpu()
        outer = self.space.dimensions - inner if self._levels else inner
        _, count, square, fourth = _beyond(self._half_bin(gamma.double()))
        parts = [outer * count * (1 - count), outer * (fourth - square.square())]
        if self._levels:
            parts += [inner * 2 * count * (1 - 2 * count), inner * (2 * fourth - 4 * square.square())]
        out[:, -len(parts) :] = torch.stack(parts, 1).clamp(min=0)
        return out


_EXCEEDANCES = ("exceedances outwards", "excesses outwards", "exceedances", "excesses")


def _beyond(h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return h, and E 1[ε > h], E (ε − h)₊² and E (ε − h)₊⁴ for ε ~ N(0, 1)."""
    density, tail = torch.exp(-0.5 * h.square()) / math.sqrt(2 * math.pi), torch.special.ndtr(-h)
    square = ((1 + h.square()) * tail - h * density).clamp(min=0)
    fourth = ((h.pow(4) + 6 * h.square() + 3) * tail - (h.pow(3) + 5 * h) * density).clamp(min=0)
    return h, tail, square, fourth


def _stacked(parts: list[Tensor], x: Tensor) -> Tensor:
    """Return the sums over positions of several (B, *dims), (B, number of parts), float64."""
    if not parts:
        return torch.zeros(len(x), 0, dtype=torch.float64, device=x.device)
    return torch.stack([part.flatten(1).sum(1, dtype=torch.float64) for part in parts], 1)
