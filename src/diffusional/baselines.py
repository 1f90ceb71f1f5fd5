"""Baselines: three simple normalised densities, in nats per item.

A likelihood is meaningful only in comparison. These baselines measure how much of it the marginals, a few clusters and the
second moments account for; a diffusion model that does not beat them has learned nothing more. With D positions and K
levels (`space.levels`):

Factorised categorical: all positions are independent, and n_dk is the count of level k at position d among N items:

    ln p(x) = Σ_d ln p_d(x_d),                   p_dk = (n_dk + a) / (N + a K).                  (a)

Mixture of C such products: ln p(x) = ln Σ_c π_c Π_d p_cd(x_d), fitted by EM. With responsibilities r_nc ∝ π_c
Π_d p_cd(x_nd) (the E step, in log space) and soft counts n_cdk = Σ_n r_nc [x_nd = k], n_c = Σ_n r_nc,

    p_cdk = (n_cdk + a) / (n_c + a K),           π_c = (n_c + a) / (N + a C),                    (b)

a step that never lowers Σ_n ln p(x_n) + a (Σ_c ln π_c + Σ_cdk ln p_cdk), which is the likelihood of the training data for
a = 0, and otherwise the log posterior under a Dirichlet(a + 1) prior, up to a constant (Dempster, Laird, Rubin 1977). Levels
that do not occur have a positive probability owing to the smoothing a. Without validation data to choose it by, a = ½ (Jeffreys).

Full-covariance Gaussian of real-valued data: fitted to the standardised x = (raw − shift) / scale and
reported in the original units, with S the sample covariance (over N) and ρ the shrinkage of Ledoit and Wolf
(2004):

    ln p(raw) = −½ (x − μ)ᵀ Σ⁻¹ (x − μ) − ½ ln det(2πΣ) − Σ_d ln scale_d,                           (c)
    Σ = (1 − ρ) S + ρ (tr S / D) I.

All choices are made on training and validation data. Fitting and scoring run on the CPU in float64. The mass functions are
computed by NumPy and SciPy: their tables are so small that torch's threads would spend more time waiting for each other
than computing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.seeds import check_seed
from diffusional.shrinkage import ledoit_wolf
from diffusional.space import Continuous, Discrete

SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_JEFFREYS = 0.5
_GAIN = 1e-4  # nats per item: EM stops at a step that gains less
_STEPS = 500
_LEAST_SHRINKAGE = 1e-6  # keeps Σ positive definite where S is singular and the estimate of ρ is zero


@dataclass(frozen=True, eq=False)
class FactorizedCategorical:
    """A histogram at every position, formula (a); `log_probs` (D, K) holds ln p_dk.

    >>> raw = torch.tensor([[0], [0], [1]])
    >>> model = FactorizedCategorical.fit(raw, Discrete((1,), levels=2), smoothing=1.0)
    >>> model.log_prob(torch.tensor([[0], [1]])).exp()  # (2 + 1) / (3 + 2) and (1 + 1) / (3 + 2)
    tensor([0.6000, 0.4000], dtype=torch.float64)
    """

    space: Discrete
    log_probs: Float64[Tensor, "d k"]
    smoothing: float

    @classmethod
    def fit(
        cls, raw: Tensor, space: Discrete, validation: Tensor | None = None, smoothing: float | None = None
    ) -> "FactorizedCategorical":
        """Fit to raw levels (N, *shape).

        a is `smoothing`, or the best of SMOOTHINGS on `validation`, or ½ if neither is given. Raises
        DiffusionalError for levels outside the space and a smoothing that is not positive.
        """
        n_dk = np.asarray(_indicators(raw, space).sum(0)).reshape(space.dimensions, space.levels)

        def model(a: float) -> FactorizedCategorical:
            p_dk = (n_dk + a) / (len(raw) + a * space.levels)
            return cls(space, torch.from_numpy(np.log(p_dk)), a)

        models = [model(a) for a in _smoothings(smoothing, validation)]
        return models[0] if validation is None else max(models, key=lambda m: _score(m, validation))

    def log_prob(self, raw: Tensor) -> Float64[Tensor, " b"]:
        """Return ln p of raw levels (B, *shape), nats. Raises DiffusionalError for levels outside the space."""
        return torch.from_numpy(_indicators(raw, self.space) @ self.log_probs.flatten().numpy())


@dataclass(frozen=True, eq=False)
class CategoricalMixture:
    """A mixture of C products, formula (b); `log_weights` (C,) holds ln π_c, `log_probs` (C, D, K) ln p_cdk.

    >>> raw = torch.tensor([[0, 0], [1, 1]]).repeat(50, 1)  # two clusters; the marginals are uniform
    >>> model = CategoricalMixture.fit(raw, Discrete((2,), levels=2), components=2, smoothing=1.0)
    >>> model.log_prob(torch.tensor([[0, 0], [0, 1]])).exp()
    tensor([0.4808, 0.0192], dtype=torch.float64)
    """

    space: Discrete
    log_weights: Float64[Tensor, " c"]
    log_probs: Float64[Tensor, "c d k"]
    smoothing: float

    @classmethod
    def fit(
        cls,
        raw: Tensor,
        space: Discrete,
        validation: Tensor | None = None,
        components: int = 10,
        smoothing: float | None = None,
        restarts: int = 5,
        seed: int = 0,
    ) -> "CategoricalMixture":
        """Fit to raw levels (N, *shape) by EM; a step costs about N D C operations.

        a is `smoothing`, or the best of SMOOTHINGS on `validation` (from the first start), or ½ if neither is
        given. With this a, EM runs from `restarts` starting points drawn from `seed`, and the result that is best on
        `validation`, or on raw without validation data, is kept. Raises DiffusionalError for levels outside the space, a
        smoothing that is not positive, fewer than one restart, and fewer items than components.
        """
        ones = _indicators(raw, space)
        if not 1 <= components <= len(raw):
            raise DiffusionalError(f"expected components from 1 to {len(raw)}, the number of items, got {components}")
        if restarts < 1:
            raise DiffusionalError(f"expected restarts of at least 1, got {restarts}")
        check_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        starts = [_start(raw, components, generator) for _ in range(restarts)]

        def score(model: CategoricalMixture) -> float:
            return _score(model, raw if validation is None else validation)

        candidates = _smoothings(smoothing, validation)
        first = max((_em(ones, starts[0], space, a) for a in candidates), key=score)
        others = (_em(ones, r_nc, space, first.smoothing) for r_nc in starts[1:])
        return max((first, *others), key=score)

    def log_prob(self, raw: Tensor) -> Float64[Tensor, " b"]:
        """Return ln p of raw levels (B, *shape), nats. Raises DiffusionalError for levels outside the space."""
        return torch.from_numpy(_responsibilities(self._log_joint(_indicators(raw, self.space)))[1])

    def objective(self, raw: Tensor) -> float:
        """Return Σ_n ln p(x_n) + a (Σ_c ln π_c + Σ_cdk ln p_cdk), nats.

        `em_step` on the same raw levels never lowers it.
        """
        return float(self.log_prob(raw).sum()) + self._log_prior()

    def em_step(self, raw: Tensor) -> "CategoricalMixture":
        """Return the mixture after one EM step (b) on raw levels (N, *shape), with this mixture's own a."""
        ones = _indicators(raw, self.space)
        return _maximise(ones, _responsibilities(self._log_joint(ones))[0], self.space, self.smoothing)

    def _log_joint(self, ones: csr_array) -> Float64[np.ndarray, "b c"]:
        """Return ln π_c + Σ_d ln p_cd(x_d)."""
        return self.log_weights.numpy() + ones @ self.log_probs.flatten(1).T.numpy()

    def _log_prior(self) -> float:
        """Return a (Σ_c ln π_c + Σ_cdk ln p_cdk)."""
        return self.smoothing * float(self.log_weights.sum() + self.log_probs.sum())


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """A Gaussian, formula (c): `mean` (D,) is μ, `factor` (D, D) is a root, Σ = factor factorᵀ, and `shrinkage` is ρ.

    >>> raw = 3.0 + 2.0 * torch.randn(10_000, 1, generator=torch.Generator().manual_seed(0))
    >>> model = FullGaussian.fit(raw, Continuous((1,), shift=(3.0,), scale=(2.0,)))
    >>> round(float(model.log_prob(torch.tensor([[3.0]]))), 2)           # −ln(2 √(2π)) = −1.61
    -1.61
    """

    space: Continuous
    mean: Float64[Tensor, " d"]
    factor: Float64[Tensor, "d d"]
    shrinkage: float

    @classmethod
    def fit(cls, raw: Tensor, space: Continuous) -> "FullGaussian":
        """Fit to raw reals (N, *shape).

        ρ needs no validation data: it is estimated from the fourth moments of raw. Raises DiffusionalError
        if all items are equal (as a single item is), and for values that are not finite.
        """
        x = space.encode(raw, torch.float64).flatten(1).cpu()
        mean = x.mean(0)
        s = (x - mean).T @ (x - mean) / len(x)
        if not s.trace() > 0:
            raise DiffusionalError(
                f"expected at least two items that differ, which a Gaussian needs, got {len(x)} equal items"
            )
        rho = max(ledoit_wolf(x), _LEAST_SHRINKAGE)
        identity = torch.eye(space.dimensions, dtype=torch.float64)
        sigma = (1 - rho) * s + rho * s.trace() / space.dimensions * identity
        return cls(space, mean, torch.linalg.cholesky(sigma), rho)

    def log_prob(self, raw: Tensor) -> Float64[Tensor, " b"]:
        """Return ln p of raw reals (B, *shape) in their own units, nats. Raises DiffusionalError for values that are not finite."""
        x = self.space.encode(raw, torch.float64).flatten(1).cpu()
        white = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False)
        log_2pi = self.space.dimensions * math.log(2 * math.pi)
        half_log_det = self.factor.diagonal().log().sum() + 0.5 * log_2pi
        return -0.5 * white.square().sum(0) - half_log_det - self.space.log_jacobian()


def _indicators(raw: Tensor, space: Discrete) -> csr_array:
    """Return [x_nd = k] as a sparse (N, D K), whose products gather a table's entries and scatter soft counts."""
    space.encode(raw)  # checks the values: an index out of range would count at another position
    n, d = len(raw), space.dimensions
    columns = raw.cpu().reshape(n, d).long() + space.levels * torch.arange(d)
    return csr_array(
        (np.ones(n * d), columns.flatten().numpy(), np.arange(0, n * d + 1, d)), shape=(n, d * space.levels)
    )


def _smoothings(smoothing: float | None, validation: Tensor | None) -> tuple[float, ...]:
    if smoothing is None:
        return (_JEFFREYS,) if validation is None else SMOOTHINGS
    if not 0 < smoothing < math.inf:
        raise DiffusionalError(
            f"expected smoothing to be positive, got {smoothing}: without smoothing, a level that does not occur would have probability zero"
        )
    return (smoothing,)


def _score(model: FactorizedCategorical | CategoricalMixture, raw: Tensor) -> float:
    return float(model.log_prob(raw).sum())


def _start(raw: Tensor, components: int, generator: torch.Generator) -> Float64[np.ndarray, "n c"]:
    """Return responsibilities (N, C): each item wholly to the nearest of C random items."""
    x = raw.cpu().flatten(1).double()
    centres = x[torch.randperm(len(x), generator=generator)[:components]]
    return np.eye(components)[cdist(x.numpy(), centres.numpy()).argmin(1)]


def _responsibilities(
    log_joint: Float64[np.ndarray, "n c"],
) -> tuple[Float64[np.ndarray, "n c"], Float64[np.ndarray, " n"]]:
    """Do the E step: return r_nc, and ln p(x_n), which normalises it."""
    log_prob = np.asarray(logsumexp(log_joint, axis=1))
    return np.exp(log_joint - log_prob[:, None]), log_prob


def _maximise(ones: csr_array, r_nc: Float64[np.ndarray, "n c"], space: Discrete, a: float) -> CategoricalMixture:
    """Do the M step (b): return the mixture for the given responsibilities."""
    n, c = r_nc.shape
    n_c = r_nc.sum(0)
    n_cdk = (ones.T @ r_nc).T.reshape(c, space.dimensions, space.levels)
    weights = (n_c + a) / (n + a * c)
    probs = (n_cdk + a) / (n_c + a * space.levels)[:, None, None]
    return CategoricalMixture(space, torch.from_numpy(np.log(weights)), torch.from_numpy(np.log(probs)), a)


def _em(ones: csr_array, r_nc: Float64[np.ndarray, "n c"], space: Discrete, a: float) -> CategoricalMixture:
    """Run EM from responsibilities (N, C) until a step gains less than _GAIN nats per item."""
    model, before = _maximise(ones, r_nc, space, a), -math.inf
    for _ in range(_STEPS):
        r_nc, log_prob = _responsibilities(model._log_joint(ones))
        now = float(log_prob.sum()) + model._log_prior()
        if now - before < _GAIN * len(log_prob):
            break
        model, before = _maximise(ones, r_nc, space, a), now
    return model
