"""The control variate of Wiener's filter: the best denoiser of x ~ N(μ, V diag(λ) Vᵀ), whose cost is known in closed form.

With d = Vᵀ(x − μ), ε rotated alike, and B_e = α² λ_e/(α² λ_e + σ²), A_e = (α/σ)(1 − B_e),

    ‖ε − ε̂_w‖² = Σ_e (A_e d_e − B_e ε_e)²,     E_ε ‖ε − ε̂_w‖² = Σ_e A_e² d_e² + B_e².

The basis V depends on the size of the items:

    eigenvectors   of the sample covariance, up to 1,024 dimensions
    cosines        of images (C, H, W) beyond: the discrete cosine transform, which nearly diagonalises the covariance of images, and the
                   eigenvectors of the channels' covariance, O(D (H + W)) a visit
    low rank       of other items beyond: the items' own span, and one variance for all directions outside it, O(D N) for N items
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusional.evaluation.control import ENOUGH, Look
from diffusional.forward import alpha, sigma
from diffusional.shrinkage import ledoit_wolf
from diffusional.space import Discrete, Space

# Dimensions up to which the covariance has all its eigenvectors, and the items that span a low rank.
DENSE, RANK = 1024, 256
# Numbers in one (levels × directions) matrix.
_NUMBERS = 4_000_000
# The least eigenvalue over the largest, and the items that the neighbours of a cosine count for.
_LEAST, _LENT = 1e-6, 8.0


class Wiener:
    """x ~ N(mean, V diag(eigenvalues) Vᵀ). `vectors` holds V: (D, D) eigenvectors; (D, R) of a low rank, for which `eigenvalues` (R + 1,)
    ends with the variance outside their span; or (C, C) eigenvectors of the channels of images of `shape`, for the cosine transform.

    >>> world = Wiener(torch.zeros(1), torch.ones(1), torch.eye(1))
    >>> look = Look(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1).double(), torch.ones(1), torch.tensor([False]))
    >>> world.at(look)                        # x̂ = α z, α² = σ² = ½: E (ε/2)² = ¼, and at ε = 0 the cost is ¼ less
    (tensor([[0.2500]], dtype=torch.float64), tensor([[-0.2500]], dtype=torch.float64))
    """

    name = "wiener"
    models_cost = True
    expects = draws = ("squared error",)

    def __init__(
        self, mean: Tensor, eigenvalues: Tensor, vectors: Tensor, shape: tuple[int, ...] | None = None
    ) -> None:
        # As a file gives it back: products of another layout differ in the last bit.
        self.mean, self.eigenvalues, self.vectors = mean.double(), eigenvalues.double(), vectors.double().contiguous()
        self.shape = shape
        self._cosines = () if shape is None else tuple(cosines(n) for n in shape[1:])

    @classmethod
    def fit(cls, x: Tensor, space: Space) -> "Wiener":
        """Fit the mean and covariance to items x (N, *dims), N ≥ 1, of a space.

        Of fewer than ENOUGH · D items the covariance is shrunk towards its mean variance, (1 − δ) Σ̂ + δ (tr Σ̂/D) I, with δ by Ledoit &
        Wolf (2004): in the directions that the items do not span, the variance would otherwise be zero, and the costs of other items
        wrong by any factor. Of levels Δ apart, no direction is narrower than what rounding leaves unknown, Δ²/12.
        """
        flat = x.detach().cpu().double().flatten(1)
        smallest = space.width**2 / 12 if isinstance(space, Discrete) else 1e-12
        if flat.shape[1] <= DENSE:
            return cls._dense(flat, smallest)
        shape = tuple(space.shape)
        return cls._of_images(flat, shape, smallest) if len(shape) == 3 else cls._low_rank(flat, smallest)

    @classmethod
    def _dense(cls, flat: Tensor, smallest: float) -> "Wiener":
        centred = flat - flat.mean(0)
        eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
        if len(flat) < ENOUGH * flat.shape[1]:
            shrinkage = _shrinkage(flat)
            eigenvalues = (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean()
        return cls(flat.mean(0), _raised(eigenvalues, smallest), vectors)

    @classmethod
    def _low_rank(cls, flat: Tensor, smallest: float) -> "Wiener":
        some = flat[:: max(1, math.ceil(len(flat) / RANK))]
        centred = some - some.mean(0)
        # The eigenvectors of XᵀX from those of XXᵀ, which is small.
        eigenvalues, left = torch.linalg.eigh(centred @ centred.T / len(some))
        kept = eigenvalues > _LEAST * eigenvalues[-1].clamp(min=1e-300)
        eigenvalues = eigenvalues[kept]
        vectors = torch.linalg.qr(centred.T @ left[:, kept]).Q
        shrinkage = _shrinkage(some)
        mean_variance = eigenvalues.sum() / flat.shape[1]
        shrunk = torch.cat([(1 - shrinkage) * eigenvalues, torch.zeros(1).double()]) + shrinkage * mean_variance
        return cls(flat.mean(0), _raised(shrunk, smallest), vectors)

    @classmethod
    def _of_images(cls, flat: Tensor, shape: tuple[int, ...], smallest: float) -> "Wiener":
        images = (flat - flat.mean(0)).view(-1, *shape)
        channels = images.transpose(0, 1).flatten(1)
        vectors = torch.linalg.eigh(channels @ channels.T / channels.shape[1]).eigenvectors
        world = cls(flat.mean(0), torch.ones(flat.shape[1]), vectors, shape)
        power = torch.stack(
            [world._rotated(images[i : i + 1].flatten(1))[0].square() for i in range(len(images))]
        ).mean(0)
        # Few items: each frequency is lent to by those around it.
        around = torch.nn.functional.avg_pool2d(power.view(shape), 3, 1, 1, count_include_pad=False).flatten()
        world.eigenvalues = _raised((len(flat) * power + _LENT * around) / (len(flat) + _LENT), smallest)
        return world

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Wiener":
        vectors = state["eigenvectors"]
        images = len(space.shape) == 3 and space.dimensions > DENSE
        return cls(state["mean"], state["eigenvalues"], vectors, tuple(space.shape) if images else None)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "eigenvalues": self.eigenvalues, "eigenvectors": self.vectors}

    @property
    def _low(self) -> bool:
        return self.shape is None and self.vectors.shape[0] != self.vectors.shape[1]

    def _rotated(self, flat: Tensor) -> Tensor:
        """Return Vᵀ y (B, D) for y (B, D), in y's type. For a low rank it is (B, R + D), with the part outside the span as a further vector."""
        vectors = self.vectors.to(flat)
        if self.shape is not None:
            y = flat.view(-1, *self.shape)
            rows, cols = (matrix.to(flat) for matrix in self._cosines)
            return torch.einsum("bchw,cd->bdhw", rows @ y @ cols.T, vectors).flatten(1)
        if self._low:
            within = flat @ vectors
            return torch.cat([within, flat - within @ vectors.T], 1)
        return flat @ vectors

    def _eigen(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return λ_e (D,) and E ε_e² (D,), which is 1, or for the part outside the span of a low rank its share of the dimensions."""
        eigenvalues, unit = self.eigenvalues.to(device), torch.ones(1, dtype=torch.float64, device=device)
        if not self._low:
            return eigenvalues, unit.expand(len(eigenvalues))
        d, rank = self.vectors.shape
        eigenvalues = torch.cat([eigenvalues[:-1], eigenvalues[-1:].expand(d)])
        return eigenvalues, torch.cat([unit.expand(rank), (unit * (d - rank) / d).expand(d)])

    def _spectrum(self, gamma: Tensor, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B (L, D) at γ (L,)."""
        a, s = alpha(gamma)[:, None], sigma(gamma)[:, None]
        kept = s.square() / (a.square() * eigenvalues + s.square())
        return a / s * kept, a.square() * eigenvalues / (a.square() * eigenvalues + s.square())

    def _parts(self, gamma: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield some of the directions at a time, with A and B (L, some) and E ε_e² (some,): all at once may not fit into memory."""
        eigenvalues, unit = self._eigen(gamma.device)
        for some in torch.arange(len(eigenvalues), device=gamma.device).split(max(1, _NUMBERS // len(gamma))):
            yield some, *self._spectrum(gamma, eigenvalues[some]), unit[some]

    def _sums(self, gamma: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ_l weight_ml A² (M, D) and Σ_l weight_ml Σ_e B² E ε_e² (M,), a part of the directions at a time."""
        of_item, of_noise = [], torch.zeros(len(weight), dtype=torch.float64, device=gamma.device)
        for _, a, b, unit in self._parts(gamma):
            of_item.append(weight @ a.square())
            of_noise += weight @ (b.square() @ unit)
        return torch.cat(of_item, 1), of_noise

    def _deviation(self, x: Tensor) -> Tensor:
        return self._rotated(self._typed(x - self.mean.view(x.shape[1:]).to(x)))

    def _typed(self, x: Tensor) -> Tensor:
        """Return x as vectors (B, D), in float64 if the matrix products are small enough."""
        flat = x.flatten(1)
        return flat.double() if flat.shape[1] <= DENSE else flat

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        gamma = look.gammas.double()
        eigenvalues, unit = self._eigen(gamma.device)
        a, b = self._spectrum(gamma, eigenvalues)
        d, noise = self._deviation(look.x), self._rotated(self._typed(look.noise.to(look.x.dtype)))
        expected = ((a * d).square() + b.square() * unit).sum(1)
        drawn = (b.square() * (noise.square() - unit) - 2 * a * b * d * noise).sum(1)
        return expected[:, None], drawn[:, None]

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        of_item, of_noise = self._sums(gamma.to(x.device).double(), weight.double().to(x.device))
        return (self._deviation(x).square().double() @ of_item.T + of_noise)[:, :, None]

    def density(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Return the mean over items x of the expected squared error at every γ (L,): where the costs of Gaussian data lie."""
        deviation, out = self._squares(x), torch.zeros(len(gamma), dtype=torch.float64)
        for some, a, b, unit in self._parts(gamma.cpu().double()):
            out += a.square() @ deviation[some] + b.square() @ unit
        return out

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        deviation, out = self._squares(x), torch.zeros(len(gamma), 1, dtype=torch.float64)
        for some, a, b, unit in self._parts(gamma.cpu().double()):
            product = 4 * a.square() * deviation[some] * b.square()
            out[:, 0] += (product + 2 * b.pow(4) * unit).sum(1)
        return out

    def _squares(self, x: Tensor) -> Tensor:
        """Return the mean over items of d² (D,)."""
        step = max(1, _NUMBERS // x[0].numel())
        return torch.stack([self._deviation(some).square().double().sum(0).cpu() for some in x.split(step)]).sum(
            0
        ) / len(x)


def cosines(n: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (n, n) of type II, one frequency a row.

    >>> bool(torch.allclose(cosines(5) @ cosines(5).T, torch.eye(5, dtype=torch.float64)))
    True
    """
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * (k + 0.5) * k[:, None]) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _shrinkage(flat: Tensor) -> float:
    return ledoit_wolf(flat) if len(flat) > 1 else 1.0


def _raised(eigenvalues: Tensor, smallest: float) -> Tensor:
    return eigenvalues.clamp(min=max(_LEAST * float(eigenvalues.max()), smallest))
