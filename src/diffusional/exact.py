"""Ground truth: data distributions whose ln p(x), optimal denoiser, entropy, mutual information and costs are known.

For each of these distributions ("worlds") the marginals q(z_t) of the diffusion are computable. The optimal denoiser is the
posterior mean x̂ = E[x | z_t], with error mmse(γ) = E ‖x − x̂‖². Its costs are

    KL_t = ½ (SNR_t − SNR_{t+1}) mmse(γ_{t+1})         ("posterior" variance; MATH (10), (15))
    KL_T = ½ [α_T² E‖x‖² + D (σ_T² − 1 − ln σ_T²)]
    −RE  = ½ D ln 2πs² + mmse(γ_1)/(2s²)               (Gaussian decoder of variance s²)

Formulas are written directly with α², σ² and SNR in float64, independently of the model code that they check. Where no closed
form exists (mixtures, finite data; D ≤ 2), expectations over z use the trapezoid rule in units of each component's standard
deviation, which converges exponentially for these integrands.

Data are vectors (B, D), or of any shape for finite data. Logarithms are natural.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from diffusional.conditions import check_labels
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.ledger import Estimate, Ledger
from diffusional.models.denoiser import Denoiser
from diffusional.models.reverse import Variance, check_variance

_LOG_2PI = math.log(2 * math.pi)
# The trapezoid rule, in units of a component's standard deviation: spacing, nodes on each side, rows in memory at a time. For two
# components d standard deviations apart, its error is about exp(−d²/8 − 2π²/(d · spacing)) < 1e-13 for the worst d.
_STEP, _REACH, _ROWS = 0.1, 90, 400_000
# Elements of one (rows × points) matrix: 256 MB of float64.
_CHUNK = 32_000_000


class World(ABC):
    """A data distribution whose diffusion is known in closed form or to quadrature precision. D = `dimensions`; all float64."""

    dimensions: int

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n items x (n, *shape), float64."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ln p(x) (B,) under the data distribution."""

    @abstractmethod
    def log_marginal(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return ln q(z_t) (B,) at γ (B,) or ()."""

    @abstractmethod
    def optimum(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x̂, ε̂) = (E[x|z], E[ε|z]), each of z's shape, at γ (B,) or ()."""

    @abstractmethod
    def second_moment(self) -> float:
        """Return E ‖x‖²."""

    @abstractmethod
    def entropy(self) -> float:
        """Return H(x) in nats, the differential entropy for densities."""

    @abstractmethod
    def mmse(self, gamma: Tensor) -> Tensor:
        """Return E ‖x − E[x|z]‖² (L,) at every γ (L,)."""

    @abstractmethod
    def information(self, gamma: Tensor | float) -> Estimate:
        """Return I(x; z) in nats at γ."""

    def denoiser(self, predicts: Literal["noise", "data", "v", "score"] = "data") -> Denoiser:
        """Return the optimal denoiser at every noise level, as a `Denoiser` for a DiffusionModel.

        >>> world = Gaussian(torch.zeros(2), torch.eye(2))
        >>> world.denoiser()(torch.ones(1, 2), torch.zeros(1)).data          # α z for unit variance
        tensor([[0.7071, 0.7071]])
        """
        return Denoiser(_Oracle(self, predicts), predicts)

    def costs(self, process: GaussianDiffusion, variance: Variance, decoder_variance: float) -> Ledger:
        """Return the expected costs of the optimal denoiser with decoder N(x̂, `decoder_variance`), as a ledger of one row.

        >>> from diffusional import schedule
        >>> world = Gaussian(torch.zeros(1), torch.eye(1))
        >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=1000))
        >>> float(world.costs(process, "posterior", 1e-3).nelbo) > world.entropy()
        True
        """
        check_variance(variance)
        if variance == "learned":
            raise DiffusionalError(
                'expected variance to be "posterior" or "transition", got "learned": the optimal denoiser has no variance output'
            )
        gamma = process.schedule.grid().detach()
        snr, sigma2 = torch.exp(-gamma), torch.sigmoid(gamma)
        error = self.mmse(gamma)
        kl = 0.5 * (snr[:-1] - snr[1:]) * error[1:]
        if variance == "transition":
            r = sigma2[:-1] / sigma2[1:]
            kl = r * kl + 0.5 * self.dimensions * (r - 1 - torch.log(r))
        alpha2_last, sigma2_last = torch.sigmoid(-gamma[-1]), sigma2[-1]
        prior = alpha2_last * self.second_moment()
        prior = 0.5 * (prior + self.dimensions * (sigma2_last - 1 - torch.log(sigma2_last)))
        reconstruction = 0.5 * (
            self.dimensions * math.log(2 * math.pi * decoder_variance) + error[0] / decoder_variance
        )
        return Ledger(reconstruction.reshape(1), kl.reshape(1, -1), prior.reshape(1), self.dimensions)


class _Oracle(nn.Module):
    def __init__(self, world: World, predicts: str) -> None:
        super().__init__()
        self.world, self.predicts = world, predicts

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        gamma = -log_snr.double().cpu()  # the tensors of the worlds are on the CPU
        data, noise = self.world.optimum(z.double().cpu(), gamma)
        column = gamma.reshape(-1, *(1,) * (z.ndim - 1))
        a, s = torch.sigmoid(-column).sqrt(), torch.sigmoid(column).sqrt()
        said = {"data": data, "noise": noise, "v": a * noise - s * data, "score": -noise / s}
        return said[self.predicts].to(z)


def _exactly(value: float) -> Estimate:
    return Estimate(value, error=0.0, item_error=0.0, n=0, network_evaluations=0)


class _Mixture(World):
    """Σ_k w_k N(m_k, V_k diag(λ_k) V_kᵀ); λ_k may be zero, which makes the component a point."""

    def __init__(self, weights: Tensor, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
        self.weights, self.means = weights.double() / weights.double().sum(), means.double()  # (K,), (K, D)
        self.eigenvalues, self.eigenvectors = eigenvalues.double(), eigenvectors.double()  # (K, D), (K, D, D)
        self.dimensions = means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.empty(n, self.dimensions, dtype=torch.float64).normal_(generator=generator)
        scaled = self.eigenvalues[k].sqrt() * noise
        return self.means[k] + torch.einsum("bij,bj->bi", self.eigenvectors[k], scaled)

    def log_prob(self, x: Tensor) -> Tensor:
        # z = x: α² = 1, σ² = 0.
        log_joint, _, _ = self._components(
            x.double(), x.new_ones((), dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
        )
        return torch.logsumexp(log_joint, 1)

    def _components(self, z: Tensor, alpha2: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ln w_k N(z; α m_k, S_k) (B, K), the whitening V_kᵀ(z − α m_k)/eig(S_k) (B, K, D), and eig(S_k), S_k = α² C_k + σ² I."""
        alpha2, sigma2 = alpha2.reshape(-1, 1, 1), sigma2.reshape(-1, 1, 1)
        s = alpha2 * self.eigenvalues + sigma2
        offset = z.unsqueeze(1) - alpha2.sqrt() * self.means
        rotated = torch.einsum("kij,bki->bkj", self.eigenvectors, offset)
        log_joint = self.weights.log() - 0.5 * (rotated.square() / s + s.log() + _LOG_2PI).sum(2)
        return log_joint, rotated / s, s

    def log_marginal(self, z: Tensor, gamma: Tensor) -> Tensor:
        gamma = gamma.double()
        return torch.logsumexp(self._components(z.double(), torch.sigmoid(-gamma), torch.sigmoid(gamma))[0], 1)

    def _posterior(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return responsibilities (B, K), E[x|z,k] and E[ε|z,k] (B, K, D), tr Cov[x|z,k] (B, K)."""
        alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
        log_joint, white, s = self._components(z, alpha2, sigma2)
        a, b = alpha2.sqrt().reshape(-1, 1, 1), sigma2.sqrt().reshape(-1, 1, 1)
        x = self.means + torch.einsum("kij,bkj->bki", self.eigenvectors, a * self.eigenvalues * white)
        noise = torch.einsum("kij,bkj->bki", self.eigenvectors, b * white)
        spread = (self.eigenvalues * sigma2.reshape(-1, 1, 1) / s).sum(2)
        return torch.softmax(log_joint, 1), x, noise, spread.expand(len(z), -1)

    def optimum(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        r, x, noise, _ = self._posterior(z.double(), gamma.double())
        return torch.einsum("bk,bkd->bd", r, x), torch.einsum("bk,bkd->bd", r, noise)

    def second_moment(self) -> float:
        return float((self.weights * (self.means.square().sum(1) + self.eigenvalues.sum(1))).sum())

    def expectation(self, f: Callable[[Tensor, Tensor], Tensor], gamma: Tensor) -> Tensor:
        """Return E f(z, γ) (L,) under q(z_t) at every γ (L,), by the trapezoid rule; D ≤ 2. f maps (B, D), (B,) to (B,).

        γ = −∞ gives the expectation over the data.

        >>> two = Mixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.25))
        >>> two.expectation(lambda z, gamma: z[:, 0] ** 2, torch.tensor([-torch.inf]))
        tensor([1.2500], dtype=torch.float64)
        """
        if self.dimensions > 2:
            raise DiffusionalError(
                f"expected at most 2 dimensions for quadrature, got {self.dimensions}: average over samples instead"
            )
        gamma = gamma.double()
        axis = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64) * _STEP
        nodes = torch.cartesian_prod(*[axis] * self.dimensions).reshape(-1, self.dimensions)
        density = torch.exp(-0.5 * nodes.square().sum(1)) * (_STEP / math.sqrt(2 * math.pi)) ** self.dimensions
        rows = max(1, _ROWS // len(nodes))
        return torch.cat([self._expectation(f, some, nodes, density) for some in gamma.split(rows)])

    def _expectation(
        self, f: Callable[[Tensor, Tensor], Tensor], gamma: Tensor, nodes: Tensor, density: Tensor
    ) -> Tensor:
        alpha2, sigma2 = torch.sigmoid(-gamma)[:, None, None], torch.sigmoid(gamma)[:, None, None]
        repeated = gamma.repeat_interleave(len(nodes))
        total = torch.zeros_like(gamma)
        for w, m, lam, v in zip(self.weights, self.means, self.eigenvalues, self.eigenvectors, strict=True):
            z = alpha2.sqrt() * m + (nodes * (alpha2 * lam + sigma2).sqrt()) @ v.T  # (L, M, D)
            total = total + w * (f(z.flatten(0, 1), repeated).view(len(gamma), -1) @ density)
        return total

    def entropy(self) -> float:
        return -float(self.expectation(lambda x, _: self.log_prob(x), torch.tensor([-torch.inf])))

    def mmse(self, gamma: Tensor) -> Tensor:
        def spread(z: Tensor, gamma: Tensor) -> Tensor:
            r, x, _, within = self._posterior(z, gamma)
            mean = torch.einsum("bk,bkd->bd", r, x)
            # Law of total variance: within the components, and between them.
            return (r * (within + (x - mean.unsqueeze(1)).square().sum(2))).sum(1)

        return self.expectation(spread, gamma)

    def information(self, gamma: Tensor | float) -> Estimate:
        g = torch.as_tensor(gamma, dtype=torch.float64)
        # I(x; z) = h(z) − h(z|x)
        noisy = -float(self.expectation(self.log_marginal, g.reshape(1)))
        return _exactly(noisy - 0.5 * self.dimensions * float(_LOG_2PI + 1 + torch.log(torch.sigmoid(g))))


def _decomposed(covariances: Tensor) -> tuple[Tensor, Tensor]:
    if covariances.shape[-1] != covariances.shape[-2] or not torch.allclose(covariances, covariances.mT):
        raise DiffusionalError(
            f"expected covariances to be symmetric D × D matrices, got shape {tuple(covariances.shape)}"
        )
    eigenvalues, eigenvectors = torch.linalg.eigh(covariances.double())
    if not bool((eigenvalues > 0).all()):
        raise DiffusionalError(
            f"expected covariances to be positive definite, got eigenvalue {float(eigenvalues.min()):g}"
        )
    return eigenvalues, eigenvectors


class Gaussian(_Mixture):
    """x ~ N(mean (D,), covariance (D, D)): all quantities in closed form, for any D.

    mmse(γ) = Σ_i λ_i σ²/(α² λ_i + σ²),  I(x; z) = ½ Σ_i ln(1 + SNR λ_i),  λ_i the eigenvalues of the covariance.

    >>> Gaussian(torch.zeros(1), torch.eye(1)).information(0.0).value            # ½ ln 2
    0.3465...
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        eigenvalues, eigenvectors = _decomposed(covariance)
        super().__init__(torch.ones(1), mean.unsqueeze(0), eigenvalues.unsqueeze(0), eigenvectors.unsqueeze(0))

    def entropy(self) -> float:
        return 0.5 * float((_LOG_2PI + 1 + self.eigenvalues.log()).sum())

    def mmse(self, gamma: Tensor) -> Tensor:
        g = gamma.double().unsqueeze(1)
        alpha2, sigma2 = torch.sigmoid(-g), torch.sigmoid(g)
        return (self.eigenvalues * sigma2 / (alpha2 * self.eigenvalues + sigma2)).sum(1)

    def information(self, gamma: Tensor | float) -> Estimate:
        snr = torch.exp(-torch.as_tensor(gamma, dtype=torch.float64))
        return _exactly(0.5 * float(torch.log1p(snr * self.eigenvalues).sum()))


class Mixture(_Mixture):
    """x ~ Σ_k w_k N(m_k, C_k): weights (K,), means (K, D), covariances (K, D, D). Entropy, mmse, information: D ≤ 2.

    >>> Mixture(torch.ones(2), torch.tensor([[-2.0], [2.0]]), torch.full((2, 1, 1), 0.1)).sample(5).shape
    torch.Size([5, 1])
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        if not bool((weights > 0).all()):
            raise DiffusionalError(f"expected weights to be positive, got {weights.tolist()}")
        super().__init__(weights, means, *_decomposed(covariances))


class Labelled(Mixture):
    """x given its label c is N(m_c, C_c), and the labels have probabilities `weights`: p(x), p(x|c) and I(x; c) are known.

    Labels are integers (B,); the world itself is p(x), the mixture.

    >>> world = Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
    >>> x, c = world.sample_labelled(4, torch.Generator().manual_seed(0))
    >>> bool((x[:, 0].sign() == 2 * c - 1).all()), round(world.label_information(), 6)             # nearly ln 2
    (True, 0.693147)
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__(weights, means, covariances)
        self.given = tuple(Gaussian(m, c) for m, c in zip(means.double(), covariances.double(), strict=True))

    def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return n items x (n, D), float64, with their labels (n,)."""
        c = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.empty(n, self.dimensions, dtype=torch.float64).normal_(generator=generator)
        scaled = self.eigenvalues[c].sqrt() * noise
        return self.means[c] + torch.einsum("bij,bj->bi", self.eigenvectors[c], scaled), c

    def log_prob_given(self, x: Tensor, c: Tensor) -> Tensor:
        """Return ln p(x|c) (B,)."""
        return torch.stack([one.log_prob(x) for one in self.given], 1).gather(1, c[:, None])[:, 0]

    def pointwise_information(self, x: Tensor, c: Tensor) -> Tensor:
        """Return i(x; c) = ln p(x|c)/p(x) (B,), MATH (27)."""
        return self.log_prob_given(x, c) - self.log_prob(x)

    def label_information(self) -> float:
        """Return I(x; c) = H(x) − H(x|c); D ≤ 2."""
        return self.entropy() - sum(float(w) * one.entropy() for w, one in zip(self.weights, self.given, strict=True))

    def mmse_given(self, gamma: Tensor) -> Tensor:
        """Return E ‖x − E[x|z, c]‖² (L,) at every γ (L,)."""
        each = torch.stack([one.mmse(gamma) for one in self.given])
        return (self.weights[:, None] * each).sum(0)

    def conditional_denoiser(self, predicts: Literal["noise", "data", "v", "score"] = "data") -> Denoiser:
        """Return the optimal denoiser given labels (B,), or without a condition that of p(x).

        >>> world = Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
        >>> denoiser, z = world.conditional_denoiser(), torch.zeros(1, 1)
        >>> denoiser(z, torch.zeros(1)).data, denoiser(z, torch.zeros(1), torch.tensor([1])).data
        (tensor([[0.]]), tensor([[2.4000]]))
        """
        return Denoiser(_LabelledOracle(self, predicts), predicts)


class _LabelledOracle(nn.Module):
    def __init__(self, world: Labelled, predicts: str) -> None:
        super().__init__()
        self.world = _Oracle(world, predicts)
        self.given = nn.ModuleList(_Oracle(one, predicts) for one in world.given)

    def forward(self, z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
        out = self.world(z, log_snr)
        if c is None:
            return out
        check_labels(c, len(self.given), missing=True)
        for label, network in enumerate(self.given):
            rows = (c == label).nonzero()[:, 0]
            if len(rows):
                out = out.index_copy(0, rows, network(z[rows], log_snr[rows]))
        return out


class Finite(World):
    """The empirical distribution of N points (N, *shape): all densities are computable, for any D (MATH (16)).

    q(z_t) is a mixture of N Gaussians, the optimal denoiser is its posterior mean, and I(x; z_t) ≤ H(x) = ln N (less if points
    repeat). Matrix products run over chunks of bounded memory. `information` is a Monte Carlo estimate with its error;
    `mmse` uses quadrature and requires D ≤ 2.

    >>> world = Finite(torch.tensor([[-1.0], [1.0]]))
    >>> round(world.entropy(), 4), round(world.information(-12.0).value, 4)      # ln 2; no information is lost at low noise
    (0.6931, 0.6931)
    """

    def __init__(self, points: Tensor) -> None:
        if points.ndim < 2 or len(points) == 0:
            raise DiffusionalError(f"expected points of shape (N, *shape) with N ≥ 1, got {tuple(points.shape)}")
        distinct, counts = torch.unique(points.detach().double().flatten(1), dim=0, return_counts=True)
        self.shape = tuple(points.shape[1:])
        self.points, self.weights = distinct, counts.double() / counts.sum()
        self.dimensions = distinct.shape[1]
        self._squares = distinct.square().sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.points[index].reshape(n, *self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log of the point's share (B,); −∞ if x is none of the points."""
        same = (x.double().flatten(1).unsqueeze(1) == self.points).all(2)
        return torch.where(same.any(1), (same * self.weights).sum(1).log(), -torch.inf)

    def _log_joint(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return ln w_i − ‖z − α x_i‖²/(2σ²) (B, N), up to −‖z‖²/(2σ²), by one matrix product."""
        gamma = gamma.reshape(-1, 1)
        snr, alpha_over_sigma2 = torch.exp(-gamma), torch.sigmoid(-gamma).sqrt() / torch.sigmoid(gamma)
        return self.weights.log() + alpha_over_sigma2 * (z @ self.points.T) - 0.5 * snr * self._squares

    def _by_rows(self, z: Tensor, gamma: Tensor, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        flat = z.double().flatten(1)
        gamma = gamma.double().expand(len(flat))
        rows = max(1, _CHUNK // len(self.points))
        return torch.cat([f(flat[i : i + rows], gamma[i : i + rows]) for i in range(0, len(flat), rows)])

    def log_marginal(self, z: Tensor, gamma: Tensor) -> Tensor:
        def chunk(z: Tensor, gamma: Tensor) -> Tensor:
            sigma2 = torch.sigmoid(gamma)
            constant = -0.5 * (z.square().sum(1) / sigma2 + self.dimensions * (_LOG_2PI + sigma2.log()))
            return torch.logsumexp(self._log_joint(z, gamma), 1) + constant

        return self._by_rows(z, gamma, chunk)

    def optimum(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        x = self._by_rows(z, gamma, lambda z, g: torch.softmax(self._log_joint(z, g), 1) @ self.points).reshape(z.shape)
        column = gamma.double().reshape(-1, *(1,) * (z.ndim - 1))
        return x, (z.double() - torch.sigmoid(-column).sqrt() * x) / torch.sigmoid(column).sqrt()

    def second_moment(self) -> float:
        return float((self.weights * self._squares).sum())

    def entropy(self) -> float:
        return -float((self.weights * self.weights.log()).sum())

    def _as_mixture(self) -> _Mixture:
        n, d = self.points.shape
        return _Mixture(self.weights, self.points, torch.zeros(n, d), torch.eye(d).expand(n, d, d))

    def mmse(self, gamma: Tensor) -> Tensor:
        return self._as_mixture().mmse(gamma)

    def information(self, gamma: Tensor | float, draws: int = 1, generator: torch.Generator | None = None) -> Estimate:
        """Return I(x; z) = E ln q(z|x)/q(z) at γ from `draws` noises for every point, with its Monte Carlo error."""
        g = torch.as_tensor(gamma, dtype=torch.float64)
        a, s = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        ratios = torch.empty(draws, len(self.points), dtype=torch.float64)
        for i in range(draws):
            noise = torch.empty_like(self.points).normal_(generator=generator)
            log_q = -0.5 * (noise.square().sum(1) + self.dimensions * (_LOG_2PI + 2 * s.log()))
            ratios[i] = log_q - self.log_marginal(a * self.points + s * noise, g)
        value = float((ratios.mean(0) * self.weights).sum())
        # The spread over points counts as noise: with one draw the two cannot be separated, and this does not underestimate the error.
        spread = ((ratios - value).square().mean(0) * self.weights.square()).sum() / draws
        return Estimate(value, float(spread.sqrt()), 0.0, len(self.points), 0)
