"""The books: named costs per item, in nats, that add up to the NELBO; and estimates with their errors.

Every entry is a *cost*: `reconstruction` = −ln p(x|z_1), `kl` one column per level, `prior` = KL_T, and whatever else a
model names (a log-Jacobian, an encoder's entropy). NELBO = −ELBO = their sum (MATH (8)). A ledger knows no model.
Bits per dimension = nats / (D ln 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

UNITS = ("nats", "bits/dim")


def per_unit(unit: str, dimensions: int) -> float:
    """How many nats one `unit` is: 1, or D ln 2.

    >>> round(per_unit("bits/dim", 64), 4)
    44.3614
    """
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r} came; expected one of {', '.join(UNITS)}")
    return 1.0 if unit == "nats" else dimensions * math.log(2)


@dataclass(frozen=True)
class Ledger:
    """Costs of B items in nats, MATH (8): reconstruction (B,), kl (B, L), prior (B,), and further named terms (B,).

    `dimensions` is D, used for bits per dimension only.

    >>> import torch
    >>> ledger = Ledger(torch.tensor([1.0]), torch.tensor([[2.0, 3.0]]), torch.tensor([0.5]), dimensions=4)
    >>> ledger.nelbo, ledger.elbo
    (tensor([6.5000]), tensor([-6.5000]))
    >>> ledger.bits_per_dim()
    tensor([2.3444])
    """

    reconstruction: Tensor
    kl: Tensor
    prior: Tensor
    dimensions: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batch = self.reconstruction.shape
        if len(batch) != 1 or self.prior.shape != batch or self.kl.ndim != 2 or self.kl.shape[:1] != batch:
            raise ValueError(
                f"reconstruction {tuple(batch)}, kl {tuple(self.kl.shape)}, prior {tuple(self.prior.shape)} came; "
                "expected (B,), (B, L), (B,)"
            )
        for name, term in self.extra.items():
            if term.shape != batch:
                raise ValueError(f"term {name!r} of shape {tuple(term.shape)} came; expected {tuple(batch)}")

    @property
    def nelbo(self) -> Tensor:
        """−ELBO (B,), nats: the sum of all costs."""
        total = self.reconstruction + self.kl.sum(1) + self.prior
        for term in self.extra.values():
            total = total + term
        return total

    @property
    def elbo(self) -> Tensor:
        """ELBO ≤ ln p(x) (B,), nats."""
        return -self.nelbo

    def bits_per_dim(self) -> Tensor:
        """NELBO / (D ln 2) (B,): an upper bound on the bits per dimension."""
        return self.nelbo / per_unit("bits/dim", self.dimensions)

    def looser(self, information: float | Tensor) -> Tensor:
        """The essay's looser bound as a cost (B,), MATH (9): NELBO + I(x; z_{1:T}), with I(x; z_{1:T}) = I(x; z_1).

        It keeps the −I terms of (6) and the conditional KLs of (8) at once; it exceeds the NELBO by exactly the
        information, which `diffusional.exact` computes.

        >>> import torch
        >>> Ledger(torch.ones(1), torch.ones(1, 2), torch.ones(1), dimensions=1).looser(0.5)
        tensor([4.5000])
        """
        return self.nelbo + information

    def totals(self) -> dict[str, Tensor]:
        """Each named cost (B,), the levels summed: they add up to `nelbo`."""
        return {
            "reconstruction": self.reconstruction,
            "kl": self.kl.sum(1),
            "prior": self.prior,
            **self.extra,
        }


@dataclass(frozen=True)
class Estimate:
    """A mean over items with its two errors, never mixed.

    `error` is Monte Carlo (which t and noise happened to be drawn: the uncertainty for *this* data set), `item_error`
    is over items (which data happened to be in the set). Both are standard errors in `unit`.

    >>> print(Estimate(75.2183, 0.21, 1.9, n=447, network_evaluations=1000, unit="nats"))
    75.22 ± 0.21 nats (items ± 1.9)
    """

    value: float
    error: float
    item_error: float
    n: int
    network_evaluations: int
    unit: str = "nats"

    def to(self, unit: str, dimensions: int) -> "Estimate":
        """The same estimate in another unit, D = `dimensions`."""
        factor = per_unit(self.unit, dimensions) / per_unit(unit, dimensions)
        return Estimate(
            self.value * factor,
            self.error * factor,
            self.item_error * factor,
            self.n,
            self.network_evaluations,
            unit,
        )

    def interval(self, freedom: float = math.inf, confidence: float = 0.95) -> tuple[float, float]:
        """Monte Carlo confidence interval, by Student's t with `freedom` degrees (at least one).

        >>> low, high = Estimate(10.0, 1.0, 0.0, n=1, network_evaluations=0).interval()
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
        """
        from scipy.stats import norm, t

        tail = 0.5 * (1 + confidence)
        quantile = float(norm.ppf(tail) if math.isinf(freedom) else t.ppf(tail, max(freedom, 1.0)))
        return self.value - quantile * self.error, self.value + quantile * self.error

    def intervals(self, freedom: float, dimensions: int) -> dict[str, Any] | None:
        """The 95 % interval in both units, JSON-ready; None where there is no error."""
        if not math.isfinite(self.error):
            return None
        return {"confidence": 0.95} | {
            unit: list(self.to(unit, dimensions).interval(freedom)) for unit in ("bits/dim", "nats")
        }

    def to_dict(self) -> dict[str, Any]:
        """{"value", "error", "item_error", "unit"}, JSON-ready: null where a number is not finite (the spread of one item)."""
        numbers = {"value": self.value, "error": self.error, "item_error": self.item_error}
        return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"unit": self.unit}

    def __str__(self) -> str:
        value, error = with_error(self.value, self.error or self.item_error)
        head = f"{value} ± {error}" if self.error else value
        return f"{head} {self.unit} (items ± {_two_digits(self.item_error)})"


def error_over_items(scores: Tensor, noise: Tensor, items: int) -> float:
    """Standard error over items of a mean of `items`, from scores (n,) of n of them, each with a noise of variance `noise` (n,).

        v̂ = mean_i a_i,      a_i = n/(n − 1) (y_i − ȳ)² − s_i²,

    is unbiased for the variance of what the items themselves score. Where noise hides that, v̂ may fall to zero and below; so the
    standard error of v̂ itself is the least value used for it: the spread of a_i over √n or, if that is more (with few items the spread
    is uncertain), the standard error under normal noise, √(2/(n − 1)) times its mean variance. NaN for one item.

    >>> import torch
    >>> scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> round(error_over_items(scores, torch.zeros(4), 4), 6), round(float(scores.std()) / 2, 6)
    (0.645497, 0.645497)
    """
    n = len(scores)
    if n < 2:
        return math.nan
    parts = n / (n - 1) * (scores - scores.mean()).square() - noise
    least = max(float(parts.std()) / math.sqrt(n), float(noise.mean()) * math.sqrt(2 / (n - 1)))
    return math.sqrt(max(float(parts.mean()), least) / items)


def satterthwaite(*parts: tuple[Tensor, Tensor | float | int]) -> float:
    """Degrees of freedom of a sum of independent variance estimates, (Σ v)²/Σ (v²/f) (Satterthwaite 1946).

    Args:
        parts: any number of pairs (v, f): variances v and the degrees of freedom f of each of them.

    Returns infinity if all variances are zero.

    >>> import torch
    >>> satterthwaite((torch.ones(4), 8.0))
    32.0
    """
    squares = sum(float((variance.square() / freedom).sum()) for variance, freedom in parts)
    return sum(float(variance.sum()) for variance, _ in parts) ** 2 / squares if squares > 0 else math.inf


def sharing(squares: Tensor) -> float:
    """Return the degrees of freedom 3 (Σ q)²/Σ q² of a sum of squares q of normal numbers; infinite if all are zero.

    >>> import torch
    >>> sharing(torch.ones(10)), sharing(torch.tensor([1.0, 0.0, 0.0]))
    (30.0, 3.0)
    """
    fourth = float(squares.square().sum())
    return 3 * float(squares.sum()) ** 2 / fourth if fourth > 0 else math.inf


def with_error(value: float, error: float) -> tuple[str, str]:
    """Value and error as text, with the decimals that the error's two leading digits allow.

    >>> with_error(1.74213, 0.00312)
    ('1.7421', '0.0031')
    >>> with_error(75.2183, 0.0)
    ('75.2183', '0')
    >>> with_error(2.5e-8, 0.0)                                             # exact, and not nothing
    ('2.5e-08', '0')
    """
    if not (error > 0 and math.isfinite(error)):
        text = f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"
        return text, "0" if error == 0 else str(error)
    decimals = min(max(0, 1 - math.floor(math.log10(error))), 12)
    return f"{value:.{decimals}f}", f"{error:.{decimals}f}"


def _two_digits(error: float) -> str:
    return with_error(error, error)[1]


@dataclass(frozen=True)
class Costs:
    """What a loss averages: one draw of every cost of N items by name, `terms` (N,) nats, whose sum is an unbiased draw of each
    item's NELBO; and of the levels visited, `position` (M,) in [0, 1) and `density` (M,), the cost per unit of it: what a
    sampler of levels learns from.

    >>> import torch
    >>> Costs({"kl": torch.ones(2), "prior": torch.zeros(2)}, torch.zeros(0), torch.zeros(0)).total()
    tensor([1., 1.])
    """

    terms: Mapping[str, Tensor]
    position: Tensor
    density: Tensor

    def total(self) -> Tensor:
        """The sum of the named costs (N,)."""
        first, *rest = self.terms.values()
        return sum(rest, first)


@dataclass(frozen=True)
class LevelDraws:
    """Costs at sampled levels, never a ledger: `values` (N,) nats at `level` (N,), and `weight` (N,) = 1/π (MATH (22)).

    >>> import torch
    >>> LevelDraws(torch.tensor([2.0]), torch.tensor([5]), torch.tensor([10.0])).estimate()
    tensor([20.])
    """

    values: Tensor
    level: Tensor
    weight: Tensor

    def estimate(self) -> Tensor:
        """Unbiased draws of Σ_t KL_t (N,), nats: values · weight."""
        return self.values * self.weight.to(self.values)
