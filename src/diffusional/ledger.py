"""Ledgers: named costs per item, in nats, that add up to the NELBO; and estimates with their errors.

Every entry is a *cost*: `reconstruction` = −ln p(x|z_1), `kl` with one column per level, `prior` = KL_T, and any further terms of
a model (a log-Jacobian, an encoder's entropy). NELBO = −ELBO = their sum (MATH (8)). A ledger does not depend on a model.
Bits per dimension = nats / (D ln 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    import matplotlib.axes

UNITS = ("nats", "bits/dim")
# The units of reports of texts given prompts, where a dimension is a token.
_OF_TOKENS = {"nats/token": "nats", "bits/token": "bits/dim"}
# Names that an extra term cannot have: those of the fixed terms, and of other columns in the records of evaluations.
_RESERVED = ("reconstruction", "kl", "prior", "nelbo", "elbo", "levels", "item", "error", "draws")
# Errors below this are due to rounding and printed as 0; twelve decimals do not show them.
_LEAST = 5e-13


def per_unit(unit: str, dimensions: int) -> float:
    """Return the number of nats in one `unit`: 1, or D ln 2. "nats/token" and "bits/token" are for estimates of which a dimension is a token.

    >>> round(per_unit("bits/dim", 64), 4), round(per_unit("bits/token", 1), 4)
    (44.3614, 0.6931)
    """
    unit = _OF_TOKENS.get(unit, unit)
    if unit not in UNITS:
        raise ValueError(f"expected unit to be one of {', '.join(UNITS)}, got {unit!r}")
    return 1.0 if unit == "nats" else dimensions * math.log(2)


@dataclass(frozen=True)
class Ledger:
    """Costs of B items in nats, MATH (8): reconstruction (B,), kl (B, L), prior (B,), and further named terms (B,).

    `dimensions` is D, used for bits per dimension only. Ledgers of the parts of a composite model are joined by `Ledger.join`.

    Attributes:
        reconstruction: −ln p(x|z_1) (B,).
        kl: KL_t (B, L), one column per level; of a joined ledger, the columns of all stages side by side.
        prior: KL_T (B,).
        dimensions: D, the number of dimensions of x.
        extra: further costs (B,) by name.
        stages: of a joined ledger, the ledger of every stage by its prefix; otherwise empty.

    Raises ValueError for shapes that do not match, and for an extra term with a name that ledgers or records of evaluations use
    otherwise, such as "kl" or "error".

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
    stages: "Mapping[str, Ledger]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        batch = self.reconstruction.shape
        if len(batch) != 1 or self.prior.shape != batch or self.kl.ndim != 2 or self.kl.shape[:1] != batch:
            raise ValueError(
                "expected reconstruction, kl and prior of shapes (B,), (B, L), (B,), got "
                f"{tuple(batch)}, {tuple(self.kl.shape)}, {tuple(self.prior.shape)}"
            )
        for name, term in self.extra.items():
            if name in _RESERVED:
                raise DiffusionalError(
                    f"an extra term must not be named {name!r}, which has another meaning in ledgers and records: rename it"
                )
            if term.shape != batch:
                raise ValueError(f"expected term {name!r} of shape {tuple(batch)}, got {tuple(term.shape)}")

    @classmethod
    def join(cls, stages: "Mapping[str, Ledger]", dimensions: int) -> "Ledger":
        """Join the ledgers of the stages of a composite model, such as a cascade or a diffusion over latents, into one.

        The joined ledger's NELBO is the sum of those of its stages. Its other attributes and methods are as follows:

        - `reconstruction` and `prior` (B,) are sums over the stages, and `kl` (B, L_1 + L_2 + …) has the levels of all stages side by
          side, in the order of `stages`.
        - `extra` has the further terms of every stage, as "stage.term".
        - `blocks` has the `kl` (B, L_k) of each stage, as "stage.kl", and `totals()` every term of each, as "stage.reconstruction",
          "stage.kl", "stage.prior", and so on. Both add up to the same NELBO.
        - `bits_per_dim()` divides the NELBO by `dimensions` · ln 2. The number of dimensions of a stage, such as that of a low-resolution
          image, is not used: all costs are in nats.
        - `stages` has the ledgers that were joined.

        A joined ledger can itself be a stage. Its terms are then "outer.inner.kl" and so on.

        Args:
            stages: ledgers of the same B items by prefix, at least one. A prefix is not empty and has no dot.
            dimensions: D, the number of dimensions of x.

        Raises:
            DiffusionalError: for no stages, a stage that is not a Ledger, an empty prefix or one with a dot, stages with different
                numbers of items or on different devices, and dimensions below 1.

        >>> import torch
        >>> base = Ledger(torch.tensor([0.0]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]), dimensions=4)
        >>> upsampler = Ledger(torch.tensor([2.5]), torch.tensor([[3.0]]), torch.tensor([0.5]), dimensions=16)
        >>> both = Ledger.join({"base": base, "upsampler": upsampler}, dimensions=16)
        >>> both.nelbo, both.kl, both.bits_per_dim()
        (tensor([9.5000]), tensor([[1., 2., 3.]]), tensor([0.8566]))
        >>> {name: float(term) for name, term in both.totals().items() if name.startswith("upsampler")}
        {'upsampler.reconstruction': 2.5, 'upsampler.kl': 3.0, 'upsampler.prior': 0.5}
        """
        _check_stages(stages)
        if isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1:
            raise DiffusionalError(
                f"dimensions must be a positive integer, the number of dimensions of x, got {dimensions!r}"
            )
        every = list(stages.values())
        extra: dict[str, Tensor] = {}
        for prefix, stage in stages.items():
            extra |= {f"{prefix}.{name}": term for name, term in stage.extra.items()}
        first, *others = every
        return cls(
            sum((one.reconstruction for one in others), first.reconstruction),
            torch.cat([one.kl for one in every], 1),
            sum((one.prior for one in others), first.prior),
            dimensions,
            extra,
            dict(stages),
        )

    @property
    def blocks(self) -> dict[str, Tensor]:
        """The costs of the levels (B, L_k) of each chain by name: {"kl": kl}, or "stage.kl" for every stage of a joined ledger."""
        if not self.stages:
            return {"kl": self.kl}
        return {f"{prefix}.{name}": kl for prefix, stage in self.stages.items() for name, kl in stage.blocks.items()}

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
        """Return NELBO / (D ln 2) (B,): an upper bound on the bits per dimension."""
        return self.nelbo / per_unit("bits/dim", self.dimensions)

    def looser(self, information: float | Tensor) -> Tensor:
        """Return the essay's looser bound as a cost (B,), MATH (9): NELBO + I(x; z_{1:T}), with I(x; z_{1:T}) = I(x; z_1).

        It contains both the −I terms of (6) and the conditional KLs of (8), and exceeds the NELBO by exactly the mutual
        information, which `diffusional.exact` computes.

        >>> import torch
        >>> Ledger(torch.ones(1), torch.ones(1, 2), torch.ones(1), dimensions=1).looser(0.5)
        tensor([4.5000])
        """
        return self.nelbo + information

    def totals(self) -> dict[str, Tensor]:
        """Return each named cost (B,), with the levels of a chain summed: they add up to `nelbo`.

        The terms of a joined ledger have their stage's prefix, as in "base.kl".
        """
        if self.stages:
            return {
                f"{prefix}.{name}": cost
                for prefix, stage in self.stages.items()
                for name, cost in stage.totals().items()
            }
        return {
            "reconstruction": self.reconstruction,
            "kl": self.kl.sum(1),
            "prior": self.prior,
            **self.extra,
        }

    def _repr_html_(self) -> str:
        """Return the mean of each cost over the items as an HTML table, for notebooks, with standard errors over the items.

        >>> ledger = Ledger(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]), torch.tensor([0.5, 0.5]), dimensions=4)
        >>> "<td" in ledger._repr_html_()
        True
        """
        from diffusional.report.fragments import html

        n = len(self.reconstruction)

        def row(name: str, cost: Tensor) -> list[str]:
            cost = cost.detach().double()
            error = float(cost.std()) / math.sqrt(n) if n > 1 else math.nan
            both = [
                with_error(float(cost.mean()) / unit, error / unit)
                for unit in (1.0, per_unit("bits/dim", self.dimensions))
            ]
            return [name, *(text for value, off in both for text in (value, "" if off == "nan" else off))]

        rows = [*(row(name, cost) for name, cost in self.totals().items()), row("NELBO", self.nelbo)]
        title = f"Ledger of {n:,} item{'s' if n != 1 else ''}, means"
        header = ["cost", "nats", "± items", "bits/dim", "± items"]
        return html(title, header, rows, [f"{self.kl.shape[1]:,} levels, {self.dimensions:,} dimensions"], [])

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, unit: str = "nats") -> "matplotlib.axes.Axes":
        """Draw the mean of each cost over the items as a waterfall, from the reconstruction to the NELBO, and return the axes.

        The error bars are ± 2 standard errors over the items; a single item has none.

        Args:
            ax: matplotlib axes; by default those of a new figure of pyplot.
            unit: "nats" or "bits/dim".

        Raises MissingPackageError if matplotlib is not installed, and ValueError for another unit.

        >>> ledger = Ledger(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]), torch.tensor([0.5, 0.5]), dimensions=4)
        >>> from matplotlib.figure import Figure
        >>> [text.get_text() for text in ledger.plot(Figure().subplots()).get_yticklabels()]
        ['reconstruction', 'kl', 'prior', 'NELBO']
        """
        factor = 1 / per_unit(unit, self.dimensions)
        from diffusional.report import plots

        def mean(cost: Tensor) -> tuple[float, float]:
            n, cost = len(cost), factor * cost.detach().double()
            return float(cost.mean()), float(cost.std()) / math.sqrt(n) if n > 1 else math.nan

        terms = {name: mean(cost) for name, cost in self.totals().items()}
        return plots.ledger(terms, mean(self.nelbo), unit, ax, errors="over items")


def _check_stages(stages: Mapping[str, Ledger]) -> None:
    """Raise DiffusionalError unless these ledgers can be joined."""
    if not isinstance(stages, Mapping) or not stages:
        raise DiffusionalError(f"stages must be a non-empty dict from prefixes to ledgers, got {stages!r:.60}")
    for prefix, stage in stages.items():
        if not isinstance(prefix, str) or not prefix.strip() or "." in prefix:
            raise DiffusionalError(
                f"a prefix must be a non-empty string without a dot, got {prefix!r}: terms are named prefix.term"
            )
        if not isinstance(stage, Ledger):
            raise DiffusionalError(f"stage {prefix!r} must be a Ledger, got {type(stage).__name__}")
    for what, values in (
        ("number of items", {prefix: len(stage.reconstruction) for prefix, stage in stages.items()}),
        ("device", {prefix: stage.reconstruction.device for prefix, stage in stages.items()}),
    ):
        if len(set(values.values())) > 1:
            got = ", ".join(f"{prefix}: {value}" for prefix, value in values.items())
            raise DiffusionalError(f"stages must have the same {what}, got {got}: join ledgers of the same batch")


@dataclass(frozen=True)
class Estimate:
    """A mean over items with two separate errors.

    `error` is the Monte Carlo error (of the draws of t and noise: the uncertainty for *this* data set), and `item_error` the
    error over items (of the choice of the items in the data set). Both are standard errors in `unit`.

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
        """Return the same estimate in another unit, D = `dimensions`."""
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
        """Return the Monte Carlo confidence interval, from Student's t with `freedom` degrees of freedom (at least one).

        >>> low, high = Estimate(10.0, 1.0, 0.0, n=1, network_evaluations=0).interval()
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
        """
        from scipy.stats import norm, t

        tail = 0.5 * (1 + confidence)
        quantile = float(norm.ppf(tail) if math.isinf(freedom) else t.ppf(tail, max(freedom, 1.0)))
        return self.value - quantile * self.error, self.value + quantile * self.error

    def intervals(self, freedom: float, dimensions: int) -> dict[str, Any] | None:
        """Return the 95 % interval in both units as JSON values; None without a finite error."""
        if not math.isfinite(self.error):
            return None
        return {"confidence": 0.95} | {
            unit: list(self.to(unit, dimensions).interval(freedom)) for unit in ("bits/dim", "nats")
        }

    def to_dict(self) -> dict[str, Any]:
        """Return {"value", "error", "item_error", "unit"} as JSON values: null for numbers that are not finite (the spread of one item).

        Infinite errors are listed under "infinite", so that they are not read as unknown ones.
        """
        numbers = {"value": self.value, "error": self.error, "item_error": self.item_error}
        infinite = [name for name in ("error", "item_error") if math.isinf(numbers[name])]
        written = {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"unit": self.unit}
        return written | ({"infinite": infinite} if infinite else {})

    def __str__(self) -> str:
        value, error = with_error(self.value, self.error or self.item_error)
        head = f"{value} ± {error}" if self.error else value
        return f"{head} {self.unit} (items ± {_two_digits(self.item_error)})"


def error_over_items(scores: Tensor, noise: Tensor, items: int) -> float:
    """Return the standard error over items of a mean of `items`, from scores (n,) of n of them with noise variances `noise` (n,).

        v̂ = mean_i a_i,      a_i = n/(n − 1) (y_i − ȳ)² − s_i²,

    is an unbiased estimate of the variance of the items' scores without noise. If the noise is larger, v̂ may be zero or negative; the
    standard error of v̂ is therefore used as its least value: the spread of a_i over √n or, if that is larger (with few items the
    spread is uncertain), the standard error for normal noise, √(2/(n − 1)) times its mean variance. NaN for one item.

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
    """Return the degrees of freedom of a sum of independent variance estimates, (Σ v)²/Σ (v²/f) (Satterthwaite 1946).

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
    """Return value and error as text, rounded to the two leading digits of the error.

    >>> with_error(1.74213, 0.00312)
    ('1.7421', '0.0031')
    >>> with_error(75.2183, 0.0)
    ('75.2183', '0')
    >>> with_error(2.5e-8, 0.0)                                             # an exact value, not rounded to zero
    ('2.5e-08', '0')
    >>> with_error(16.6355, 3e-16)                                          # the error is within rounding
    ('16.6355', '0')
    >>> with_error(16.6355, math.nan)                                       # such as the error over one item
    ('16.6355', 'unknown')
    """
    if not (error >= _LEAST and math.isfinite(error)):
        text = f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"
        return text, "0" if 0 <= error < _LEAST else "unknown" if math.isnan(error) else str(error)
    decimals = min(max(0, 1 - math.floor(math.log10(error))), 12)
    return f"{value:.{decimals}f}", f"{error:.{decimals}f}"


def _two_digits(error: float) -> str:
    return with_error(error, error)[1]


@dataclass(frozen=True)
class Costs:
    """The values that a loss averages: one draw of every cost of N items.

    `terms` has the costs (N,) by name, nats; their sum is an unbiased draw of each item's NELBO. `position` (M,) in [0, 1) are the
    levels visited and `density` (M,) the cost per unit of position, from which an adaptive sampler of levels learns.

    >>> import torch
    >>> Costs({"kl": torch.ones(2), "prior": torch.zeros(2)}, torch.zeros(0), torch.zeros(0)).total()
    tensor([1., 1.])
    """

    terms: Mapping[str, Tensor]
    position: Tensor
    density: Tensor

    def total(self) -> Tensor:
        """Return the sum of the named costs (N,)."""
        return total_of(self.terms)


def total_of(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the sum (V,) of costs by name, at least one.

    >>> import torch
    >>> total_of({"kl": torch.ones(2), "reconstruction": torch.ones(2)})
    tensor([2., 2.])
    """
    first, *others = parts.values()
    return sum(others, first)


@dataclass(frozen=True)
class LevelDraws:
    """Costs at sampled levels (not a ledger): `values` (N,) nats at `level` (N,), and `weight` (N,) = 1/π (MATH (22)).

    >>> import torch
    >>> LevelDraws(torch.tensor([2.0]), torch.tensor([5]), torch.tensor([10.0])).estimate()
    tensor([20.])
    """

    values: Tensor
    level: Tensor
    weight: Tensor

    def estimate(self) -> Tensor:
        """Return unbiased draws of Σ_t KL_t (N,), nats: values · weight."""
        return self.values * self.weight.to(self.values)
