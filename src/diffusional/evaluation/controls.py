"""Control variates: worlds simple enough that the expected error of their denoiser is known, item by item.

A model's cost at a level is a function of the noise, KL = c ‖ε − ε̂‖² = c SNR ‖x − x̂(α x + σ ε)‖² (MATH (10)). In a world
whose optimal denoiser x̂_w is known, the same function of the same noise has an expectation that needs no network. Their
difference is a draw that is mean-free and follows the model's own; subtracting it, times any fixed coefficient, changes the
variance alone.

    Factorized   every position on its own, with the training data's histogram of levels p_d(k):

                     x̂_d(z) = Σ_k x_k p_d(k) N(z; α x_k, σ²) / Σ_k p_d(k) N(z; α x_k, σ²)

                 E_ε (x_d − x̂_d)² and E_ε −ln p_d(x_d|z) are one-dimensional integrals for each (position, level), by the
                 trapezoid rule on a grid in z with step σ/4: relative error below 1e-6.
    Wiener       x ~ N(μ, V diag(λ) Vᵀ), whose denoiser is linear. In the eigenbasis, with g_e = α λ_e/(α² λ_e + σ²),

                     E_ε ‖x − x̂‖² = Σ_e (1 − α g_e)² (Vᵀ(x − μ))_e² + g_e² σ².
"""

from typing import Protocol, runtime_checkable

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from diffusional.baselines import FactorizedCategorical
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.models.parameterization import level_log_probs
from diffusional.space import Discrete, Space

# The trapezoid rule in z: nodes σ/4 apart, 8 σ beyond the outermost level. For neighbouring levels d σ apart its error is
# about exp(−d²/8 − 8π²/d) < 3e-8.
_SPACING, _REACH = 0.25, 8.0
# Distance of neighbouring levels, in standard deviations of z, from which they are never confused.
_APART = 56.0
# Numbers in one (nodes × positions) matrix.
_NUMBERS = 8_000_000
# Tables that are kept; beyond, or where tables are large, they are interpolated between knots in γ (cubic: 1e-4 nats off at worst, where σ
# is a seventh of a bin).
_KEPT, _KNOT = 1500, 0.05
_LARGE = 50_000
# Smoothing of the histograms, and the least eigenvalue over the largest.
_SMOOTHING, _LEAST = 0.1, 1e-6
# Eigenvectors of the covariance are found up to this dimension.
WIENER_DIMENSIONS = 4096
# Items per dimension from which a sample covariance is used unchanged, and controls are fitted to the items that the pilot visits.
ENOUGH = 4


@runtime_checkable
class Control(Protocol):
    """A world with a known denoiser; x (B, *dims) and z lie in the model's space, γ is (B,). Everything is float64."""

    name: str

    def squared_error(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        """‖x − x̂_w(z)‖² (B,)."""
        ...

    def expected(self, x: Tensor, gamma: Tensor) -> Tensor:
        """E_ε ‖x − x̂_w(α x + σ ε)‖² (B,)."""
        ...

    def totals(self, x: Tensor, gamma: Tensor, weight: Tensor) -> Tensor:
        """Σ_l weight_ml E_ε ‖x − x̂_w‖² at γ_l (B, M), from γ (L,) and weight (M, L)."""
        ...

    def variance(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Var_ε ‖x − x̂_w(α x + σ ε)‖² at every γ (L,), the mean over items x (L,): what a pilot may be too small to see."""
        ...

    def mean_expected(self, x: Tensor, gamma: Tensor) -> Tensor | None:
        """The mean of `expected` over items x at every γ (L,), or None if it is too costly to size cells by."""
        ...

    def decoding(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        """A cost of x given z_1 (B,) that goes with the model's −ln p(x|z_1)."""
        ...

    def expected_decoding(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Its expectation over ε (B,) at one γ ()."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it was fitted to; the class's `from_state` takes it back."""
        ...


class Factorized:
    """Every position on its own: `probs` (D, K) are the histograms of the levels.

    >>> space = Discrete((1,), levels=2)
    >>> world = Factorized(space, torch.tensor([[0.5, 0.5]]))                    # x = ±1: E (x − tanh)² at γ = 0
    >>> x, gamma = torch.ones(1, 1), torch.zeros(1)
    >>> nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    >>> by_hand = ((1 - torch.tanh((1 + nodes))) ** 2 * torch.exp(-nodes**2 / 2)).sum() / torch.exp(-nodes**2 / 2).sum()
    >>> bool((world.expected(x, gamma) - by_hand).abs() < 1e-7)
    True
    """

    name = "factorized"

    def __init__(self, space: Discrete, probs: Tensor) -> None:
        shape = (space.dimensions, space.levels)
        normal = tuple(probs.shape) == shape and bool(
            (probs > 0).all() and ((probs.double().sum(1) - 1).abs() < 1e-6).all()
        )
        if not normal:
            raise DiffusionalError(
                f"histograms of shape {tuple(probs.shape)} came; give positive ones of shape {shape} that each add up to one"
            )
        self.space, self.probs = space, probs.double()
        self._tables: dict[float, Tensor] = {}

    @classmethod
    def fit(cls, x: Tensor, space: Discrete) -> "Factorized":
        """The histograms of encoded items x (N, *dims)."""
        return cls(space, FactorizedCategorical.fit(space.index(x).cpu(), space, smoothing=_SMOOTHING).log_probs.exp())

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Factorized":
        assert isinstance(space, Discrete)
        return cls(space, state["probs"])

    def state(self) -> dict[str, Tensor]:
        return {"probs": self.probs}

    def _log_probs(self, z: Tensor, gamma: Tensor) -> Tensor:
        """ln p_d(k|z) (B, K, *dims)."""
        prior = self.probs.log().T.reshape(1, self.space.levels, *self.space.shape).to(z)
        return level_log_probs(prior, z, gamma, self.space)

    def squared_error(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        values = self.space.values.to(z).reshape(-1, *(1,) * (z.ndim - 1))
        data = (self._log_probs(z, gamma).exp() * values).sum(1)
        return (x - data).double().square().flatten(1).sum(1)

    def decoding(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        chosen = self._log_probs(z, gamma).gather(1, self.space.index(x).unsqueeze(1))
        return -chosen.double().flatten(1).sum(1)

    def _kernels(self, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes z (G,); N(z; α x_k, σ²) (G, K) up to a factor exp of `shift` (G,), which keeps it from underflowing; and
        the trapezoid rule's weights (G, K) of E over z given level k."""
        g = torch.tensor(gamma, dtype=torch.float64)
        a, s = float(alpha(g)), float(sigma(g))
        low, high = a * self.space.low - _REACH * s, a * self.space.high + _REACH * s
        z = torch.arange(low, high + _SPACING * s, _SPACING * s, dtype=torch.float64)
        exponent = -0.5 * ((z[:, None] - a * self.space.values) / s).square()
        shift = exponent.max(1).values
        rule = exponent.exp() * (_SPACING / (2 * torch.pi) ** 0.5)
        return (exponent - shift[:, None]).exp(), shift, rule

    def _certain(self, gamma: float) -> bool:
        """Return whether z determines the levels within double precision, so that x̂_d = x_d and every integral here is zero.

        Two levels α Δ/σ = d standard deviations apart are confused with probability about exp(−d²/8), below 1e-170 from d = 56 on, whereas
        the grid of the trapezoid rule would grow as d.
        """
        g = torch.tensor(gamma, dtype=torch.float64)
        return float(alpha(g) / sigma(g)) * self.space.width > _APART

    def _table(self, gamma: float) -> Tensor:
        """E_ε (x_k − x̂_d)² (D, K) at γ."""
        if self._certain(gamma):
            return torch.zeros(self.probs.shape, dtype=torch.float64)
        if gamma in self._tables:
            return self._tables[gamma]
        kernel, _, rule = self._kernels(gamma)
        values, (d, k) = self.space.values, self.probs.shape
        first, second = torch.zeros(k, d, dtype=torch.float64), torch.zeros(k, d, dtype=torch.float64)
        weighted = self.probs * values
        for rows in torch.arange(len(kernel)).split(max(1, _NUMBERS // d)):
            data = (kernel[rows] @ weighted.T) / (kernel[rows] @ self.probs.T)
            first += rule[rows].T @ data
            second += rule[rows].T @ data.square()
        zeroth = rule.sum(0)
        table = (values.square() * zeroth)[:, None] - 2 * values[:, None] * first + second
        table = table.clamp(min=0).T.contiguous()
        if table.numel() <= _LARGE and len(self._tables) < _KEPT:
            self._tables[gamma] = table
        return table

    def _at(self, index: Tensor, table: Tensor) -> Tensor:
        """Σ_d table[d, index_d] (B,)."""
        positions = torch.arange(table.shape[0], device=index.device)
        return table.to(index.device)[positions, index].sum(1)

    def expected(self, x: Tensor, gamma: Tensor) -> Tensor:
        index = self.space.index(x).flatten(1)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for knot, rows, weight in _knots(gamma.detach().cpu().double(), self.probs.numel() > _LARGE):
            rows = rows.to(x.device)
            total[rows] += weight.to(x.device) * self._at(index[rows], self._table(knot))
        return total

    def totals(self, x: Tensor, gamma: Tensor, weight: Tensor) -> Tensor:
        tables = torch.zeros(len(weight), *self.probs.shape, dtype=torch.float64)
        weight = weight.detach().cpu()
        for knot, rows, share in _knots(gamma.detach().cpu().double(), self.probs.numel() > _LARGE):
            by_sum = weight[:, rows] @ share
            used = by_sum.nonzero().squeeze(1)
            tables[used] += by_sum[used, None, None] * self._table(knot)
        index = self.space.index(x).flatten(1)
        return torch.stack([self._at(index, table) for table in tables], 1)

    def mean_expected(self, x: Tensor, gamma: Tensor) -> None:
        """Return None: a quadrature at every level costs more than cells of a better size save."""

    def variance(self, x: Tensor, gamma: Tensor) -> Tensor:
        index = self.space.index(x).flatten(1)
        # Positions are independent: variances add up. How often each level stands at each position, over the items:
        share = torch.zeros(self.probs.shape, dtype=torch.float64)
        for d, column in enumerate(index.cpu().T):
            share[d] = torch.bincount(column, minlength=self.space.levels) / len(x)
        values, out = self.space.values[:, None], []
        for g in gamma.tolist():
            if self._certain(g):
                out.append(0.0)
                continue
            kernel, _, rule = self._kernels(g)
            data = (kernel @ (self.probs * self.space.values).T) / (kernel @ self.probs.T)  # (G, D)
            m0, m1, m2, m3, m4 = (rule.T @ data**power for power in range(5))  # (K, D) each
            second = values**2 * m0 - 2 * values * m1 + m2
            fourth = values**4 * m0 - 4 * values**3 * m1 + 6 * values**2 * m2 - 4 * values * m3 + m4
            out.append(float((share.T * (fourth - second.square())).sum()))
        return torch.tensor(out, dtype=torch.float64).clamp(min=0)

    def expected_decoding(self, x: Tensor, gamma: Tensor) -> Tensor:
        index = self.space.index(x).flatten(1)
        if self._certain(float(gamma)):
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        kernel, shift, rule = self._kernels(float(gamma))
        # −ln p_d(k|z) = −ln p_d(k) + (z − α x_k)²/2σ² + ln Σ_j p_d(j) exp(−(z − α x_j)²/2σ²), the middle's mean being ½.
        table = 0.5 - self.probs.log() + ((shift[:, None] + (kernel @ self.probs.T).log()).T @ rule)
        return self._at(index, table)


def _knots(gamma: Tensor, large: bool) -> list[tuple[float, Tensor, Tensor]]:
    """(γ of a table, rows that use it, with which weight): each γ its own table, or four knots around it (Lagrange)."""
    distinct, inverse = gamma.unique(return_inverse=True)
    span = float(distinct[-1] - distinct[0]) / _KNOT
    if len(distinct) <= _KEPT and not (large and len(distinct) > span + 4):
        order = inverse.argsort(stable=True)
        groups = order.split(torch.bincount(inverse).tolist())
        return [
            (float(g), rows, torch.ones(len(rows), dtype=torch.float64))
            for g, rows in zip(distinct, groups, strict=True)
        ]
    cell = torch.floor(gamma / _KNOT).long()
    f = gamma / _KNOT - cell
    lagrange = torch.stack(
        [
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        ],
        1,
    )
    knots = (cell[:, None] + torch.arange(-1, 3)).flatten()
    rows = torch.arange(len(gamma)).repeat_interleave(4)
    order = knots.argsort(stable=True)
    distinct, counts = knots[order].unique_consecutive(return_counts=True)
    groups = order.split(counts.tolist())
    weights = lagrange.flatten()
    out = []
    for knot, group in zip(distinct.tolist(), groups, strict=True):
        # A row meets a knot once: its four knots differ.
        out.append((knot * _KNOT, rows[group], weights[group]))
    return out


class Wiener:
    """x ~ N(mean, V diag(eigenvalues) Vᵀ): the linear denoiser (Wiener's filter).

    >>> world = Wiener(torch.zeros(1), torch.ones(1), torch.eye(1))
    >>> world.expected(torch.zeros(1, 1), torch.zeros(1))          # x̂ = α z, α² = σ² = ½: E (α σ ε)² = ¼
    tensor([0.2500], dtype=torch.float64)
    """

    name = "wiener"

    def __init__(self, mean: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
        self.mean, self.eigenvalues = mean.double(), eigenvalues.double()
        # As a file gives it back: products of another layout differ in the last bit.
        self.eigenvectors = eigenvectors.double().contiguous()

    @classmethod
    def fit(cls, x: Tensor, smallest: float = 1e-12) -> "Wiener":
        """Mean and covariance of items x (N, *dims), N ≥ 1; eigenvalues below `smallest` are raised to it.

        Of fewer than ENOUGH · D items the covariance is shrunk towards its mean variance, (1 − δ) Σ̂ + δ (tr Σ̂/D) I, with δ by Ledoit &
        Wolf (2004): in the directions that the items do not span, the variance would otherwise be zero, and the costs of other items
        wrong by any factor.
        """
        flat = x.detach().cpu().double().flatten(1)
        centred = flat - flat.mean(0)
        eigenvalues, eigenvectors = torch.linalg.eigh(centred.T @ centred / len(flat))
        if len(flat) < ENOUGH * flat.shape[1]:
            shrinkage = float(ledoit_wolf_shrinkage(flat.numpy())) if len(flat) > 1 else 1.0
            eigenvalues = (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean()
        least = max(_LEAST * float(eigenvalues[-1]), smallest)
        return cls(flat.mean(0), eigenvalues.clamp(min=least), eigenvectors)

    @classmethod
    def from_state(cls, space: Space, state: dict[str, Tensor]) -> "Wiener":
        return cls(state["mean"], state["eigenvalues"], state["eigenvectors"])

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "eigenvalues": self.eigenvalues, "eigenvectors": self.eigenvectors}

    def _rotated(self, x: Tensor, centre: Tensor) -> Tensor:
        return (x.double().flatten(1) - centre.to(x.device)) @ self.eigenvectors.to(x.device)

    def _gain(self, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α, σ (L, 1) and g (L, D)."""
        a, s = alpha(gamma)[:, None], sigma(gamma)[:, None]
        eigenvalues = self.eigenvalues.to(gamma.device)
        return a, s, a * eigenvalues / (a.square() * eigenvalues + s.square())

    def squared_error(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        a, _, gain = self._gain(gamma.double())
        noisy = self._rotated(z, torch.zeros_like(self.mean)) - a * (self.mean @ self.eigenvectors).to(z.device)
        return (self._rotated(x, self.mean) - gain * noisy).square().sum(1)

    def _spectrum(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """(1 − α g)² (L, D), the share of an item's own deviation that stays, and Σ_e g² σ² (L,)."""
        a, s, gain = self._gain(gamma.double())
        # 1 − α g = σ²/(α² λ + σ²), without the subtraction.
        kept = s.square() / (a.square() * self.eigenvalues.to(gamma.device) + s.square())
        return kept.square(), (gain * s).square().sum(1)

    def expected(self, x: Tensor, gamma: Tensor) -> Tensor:
        kept, noise = self._spectrum(gamma)
        return (kept * self._rotated(x, self.mean).square()).sum(1) + noise

    def totals(self, x: Tensor, gamma: Tensor, weight: Tensor) -> Tensor:
        kept, noise = self._spectrum(gamma.to(x.device))
        weight = weight.double().to(x.device)
        return self._rotated(x, self.mean).square() @ (weight @ kept).T + weight @ noise

    def mean_expected(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Return the mean over items x of E_ε ‖x − x̂‖² at every γ (L,)."""
        kept, noise = self._spectrum(gamma)
        return kept @ self._rotated(x, self.mean).square().mean(0) + noise

    def variance(self, x: Tensor, gamma: Tensor) -> Tensor:
        kept, _ = self._spectrum(gamma)
        _, s, gain = self._gain(gamma.double())
        noise = (gain * s).square()
        # Var ((1 − α g) d − g σ ε)² = 4 (1 − α g)² d² g² σ² + 2 (g σ)⁴, summed over the eigenvectors.
        deviation = self._rotated(x, self.mean).square().mean(0)
        return (4 * kept * deviation * noise + 2 * noise.square()).sum(1)

    def decoding(self, x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
        return 0.5 * torch.exp(-gamma.double()) * self.squared_error(x, z, gamma)

    def expected_decoding(self, x: Tensor, gamma: Tensor) -> Tensor:
        gamma = gamma.double().reshape(())
        return 0.5 * torch.exp(-gamma) * self.expected(x, gamma.expand(len(x)))


def fit_controls(names: tuple[str, ...], x: Tensor, space: Space) -> list[Control]:
    """The controls of these names that the space allows, fitted to items x (N, *dims).

    Raises DiffusionalError for an unknown name.

    >>> [control.name for control in fit_controls(("factorized", "wiener"), torch.ones(3, 2), Discrete((2,), 2))]
    ['factorized', 'wiener']
    """
    fitted: list[Control] = []
    for name in names:
        if name not in KINDS:
            raise DiffusionalError(f"control {name!r} came; expected one of {', '.join(KINDS)}")
        if name == "factorized" and isinstance(space, Discrete):
            fitted.append(Factorized.fit(x, space))
        if name == "wiener" and space.dimensions <= WIENER_DIMENSIONS:
            # Of levels Δ apart, no direction is narrower than what rounding leaves unknown: Δ²/12.
            fitted.append(Wiener.fit(x, space.width**2 / 12) if isinstance(space, Discrete) else Wiener.fit(x))
    return fitted


KINDS: dict[str, type[Factorized] | type[Wiener]] = {"factorized": Factorized, "wiener": Wiener}
