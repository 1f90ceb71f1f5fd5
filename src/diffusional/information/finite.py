"""The posterior of N points given a noisy one (MATH (16)): ln p(x_i | z) for z = α x_i + σ ε, by matrix products.

Relative to the point i of the sample, every other point j has the log-odds

    ℓ_j = ln q(z|x_j)/q(z|x_i) = −½ SNR ‖x_i − x_j‖² − √SNR ε·(x_i − x_j),      ln p(x_i|z) = −ln Σ_j (w_j/w_i) e^{ℓ_j}

with ℓ_i = 0 exactly, so that I(x; z) = H(x) + E ln p(x_i|z) never exceeds H(x) = ln N. The largest ℓ_j need not be subtracted first:
E Σ_j w_j e^{ℓ_j} = 1, so that an overflow in float32 has a probability below 1e-30.

All levels of one ray (the same x_i and ε) share two products, x_i·x_j and ε·x_j. The rounding error is that of SNR ‖x‖², so that the
products are float32 if the largest SNR allows it, and otherwise float64. With products of this accuracy, the remaining computation is
float32.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.exact import Finite

# Number of values of one (rows × points) matrix: 96 MB of float64.
_CHUNK = 12_000_000
# Below this, e^ℓ would be a denormal number, which takes ten times as long; the sum of N of them is negligible compared to 1.
_LEAST = -80.0
# SNR · max ‖x − mean‖² below which every ℓ is small: Σ w e^ℓ = 1 + Σ w expm1(ℓ) preserves small amounts of information.
_EXPM1_BELOW = 0.1
# SNR · max ‖x − mean‖² up to which float32 products give ln p(x|z) within 1e-3 of float64 for every sample, as measured on digits
# and MNIST. The error of log-odds is then about 2⁻²⁴ SNR ‖x‖².
_FLOAT32_UP_TO = 3e3


@dataclass(frozen=True, eq=False)
class Points:
    """N distinct points (N, D) minus their mean, with `weights` (N,), float64, that add up to one.

    Raises DiffusionalError for data without items or with values that are not finite.

    >>> points = points_of(torch.tensor([[0.0], [3.0], [3.0]]))
    >>> points.centred.flatten().tolist(), round(points.entropy(), 4)
    ([-2.0, 1.0], 0.6365)
    """

    centred: Tensor
    weights: Tensor

    @cached_property
    def squares(self) -> Tensor:
        """‖x − mean‖² (N,), float64."""
        return torch.cat([some.double().square().sum(1) for some in self.centred.split(4096)])

    def entropy(self) -> float:
        """Return H(x) = −Σ w ln w ≤ ln N, nats."""
        return -float((self.weights * self.weights.log()).sum())

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return n independent indices of points."""
        return torch.multinomial(self.weights, n, replacement=True, generator=generator)

    def log_posterior(self, index: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
        """Return ln p(x_i | z) (n, L), float64, for the points i = `index` (n,) with noise ε = `noise` (n, D), at every γ (L,).

        >>> points = points_of(torch.tensor([[-1.0], [1.0]]))
        >>> points.log_posterior(torch.tensor([0]), torch.zeros(1, 1), torch.tensor([0.0]))      # −ln(1 + e⁻²)
        tensor([[-0.1269]], dtype=torch.float64)
        """
        root = torch.exp(-0.5 * gamma.double())
        largest = float(root.max().square() * self.squares.max())
        dtype = torch.float32 if largest <= _FLOAT32_UP_TO else torch.float64
        x, noise = self.centred.to(dtype), noise.to(dtype)
        half = (0.5 * self.squares).to(dtype)
        rows = max(1, _CHUNK // len(x))
        known = self._one if len(root) == 1 else self._many
        parts = [
            known(x, half, own, eps, root.tolist())
            for own, eps in zip(index.split(rows), noise.split(rows), strict=True)
        ]
        return torch.cat(parts)

    def _one(self, x: Tensor, half: Tensor, own: Tensor, eps: Tensor, root: list[float]) -> Tensor:
        """Return ln p(x_i|z) (n, 1) by one product: ℓ_j = x_j·(SNR x_i + √SNR ε) − ½ SNR ‖x_j‖², minus ℓ_i."""
        (r,) = root
        log_odds = torch.addmm(half, r**2 * x[own] + r * eps, x.T, beta=-(r**2))
        log_odds -= log_odds[torch.arange(len(own)), own, None].clone()
        return self._known(log_odds.float(), own, r).unsqueeze(1)

    def _many(self, x: Tensor, half: Tensor, own: Tensor, eps: Tensor, root: list[float]) -> Tensor:
        """Return ln p(x_i|z) (n, L) at every level, from the two products of a ray."""
        distance = torch.addmm(half, x[own], x.T, beta=-1.0)  # x_i·x_j − ½ ‖x_j‖²
        distance -= half[own, None]
        along = eps @ x.T
        along -= along[torch.arange(len(own)), own, None].clone()
        distance, along = distance.float(), along.float()
        known, buffer = [], torch.empty_like(distance)
        for r in root:
            torch.mul(distance, r * r, out=buffer)
            known.append(self._known(buffer.add_(along, alpha=r), own, r))
        return torch.stack(known, 1)

    def _known(self, log_odds: Tensor, own: Tensor, root: float) -> Tensor:
        """Return ln p(x_i|z) (n,), float64, from ℓ (n, N), which is overwritten. The term of the point itself is exact, and not part of the sum."""
        weight, row = self.weights[own], torch.arange(len(own))
        if root**2 * float(self.squares.max()) < _EXPM1_BELOW:
            log_odds.expm1_()
            log_odds[row, own] = 0.0
            return weight.log() - torch.log1p((log_odds @ self.weights.float()).double())
        log_odds.clamp_(min=_LEAST).exp_()
        log_odds[row, own] = 0.0
        return -torch.log1p((log_odds @ self.weights.float()).double() / weight)


def points_of(data: Tensor | Finite) -> Points:
    """Return the distinct points of data (N, *shape), or of a finite world, each with its share."""
    if isinstance(data, Finite):
        return Points(data.points - data.weights @ data.points, data.weights)
    if data.ndim < 2 or len(data) == 0 or not data.dtype.is_floating_point:
        raise DiffusionalError(
            f"expected encoded items (N, *shape) with N ≥ 1, got shape {tuple(data.shape)} and type {data.dtype}"
        )
    flat = data.detach().cpu().flatten(1)
    if not bool(torch.isfinite(flat).all()):
        item = int((~torch.isfinite(flat)).any(1).nonzero()[0])
        raise DiffusionalError(f"item {item} has a value that is not finite; correct or drop it")
    flat = flat.double() if flat.dtype == torch.float64 else flat.float()
    # As bytes, which are compared faster than rows of numbers; −0 becomes 0.
    rows = np.ascontiguousarray((flat + 0.0).numpy())
    _, first, counts = np.unique(
        rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel(),
        return_index=True,
        return_counts=True,
    )
    weights = torch.from_numpy(counts).double() / len(flat)
    distinct = flat[torch.from_numpy(first)]
    mean = torch.zeros(flat.shape[1], dtype=torch.float64)
    for rows_, share in zip(distinct.split(4096), weights.split(4096), strict=True):
        mean += share @ rows_.double()
    return Points(distinct - mean.to(distinct), weights)


def check_samples(samples: int) -> None:
    """Raise DiffusionalError unless an error can be estimated from `samples` draws."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise DiffusionalError(
            f"expected samples to be at least 2 draws, from whose spread the error is estimated, got {samples!r}"
        )
