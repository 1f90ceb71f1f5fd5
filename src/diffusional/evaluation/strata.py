"""Strata of items: which items are visited with certainty, and how a part of the others represents all of them.

The quantities known of an item without the network (the expected cost of the controls in every cell of levels, KL_T, log-Jacobians)
show whether it is unusual. Items within six robust standard deviations of the median in all of these quantities are
*ordinary* and form stratum 0; the others form strata by bands of their distance (6–12, 12–24, …), so that an item in a stratum is
compared only with items about as unusual as itself. From stratum h, with N_h items, the first n_h in a random order are visited. With
R_i the mean weighted residual of a visited item and v_i the Monte Carlo variance of R_i,

    mean = (1/N) [Σ_{i≤N} base_i + Σ_h (N_h/n_h) Σ_{i∈h, visited} R_i],                                                      (a)
    Var  = (1/N²) Σ_h N_h² [(1 − n_h/N_h) S_h²/n_h + (n_h/N_h) (1/n_h²) Σ_{i∈h, visited} v_i],                               (b)

S_h² the variance of R over the visited items of stratum h: stratified two-stage sampling (Cochran 1977, §5.3 and §10.3). A stratum
that is visited as a whole (n_h = N_h), such as a handful of outliers, contributes only its Monte Carlo variance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.ledger import error_over_items

# Robust standard deviations from the median up to which an item is ordinary, and the number of bands beyond, each twice as wide.
ORDINARY, _BANDS = 6.0, 12
# Items of a band that the first round visits.
FIRST_OF_BAND = 64
# Draws of a band from which on they are trusted to have met its large costs; fewer do if the band carries less than this part of the
# variance.
_SEEN, _FEW, _PART = 512, 128, 0.1
# Spreads below this share of the median's magnitude are rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Strata:
    """The strata of N items.

    Attributes:
        of: (N,) the stratum of every item; 0 holds the ordinary ones.
        order: (N,) the items in the order in which they are visited: the most extreme stratum first, each in a random order.
    """

    of: Tensor
    order: Tensor

    @classmethod
    def by_extremeness(cls, known: Mapping[str, Tensor], order: Tensor) -> "Strata":
        """Form the strata from the known quantities of each item, columns of (N,), and a random `order` (N,) of the items.

        >>> known = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 900.0])
        >>> strata = Strata.by_extremeness({"base": known}, torch.arange(6))
        >>> (strata.of > 0).nonzero().squeeze(1).tolist(), strata.order.tolist()
        ([5], [5, 0, 1, 2, 3, 4])
        """
        n = len(order)
        distance = torch.zeros(n, dtype=torch.float64)
        for column in known.values():
            distance = torch.maximum(distance, robust_distance(column))
        band = torch.floor(torch.log2((distance / ORDINARY).clamp(min=0.5))).long() + 1
        of = band.clamp(0, _BANDS)
        return cls(of, order[torch.argsort(-of[order], stable=True)])

    @property
    def sizes(self) -> Tensor:
        """N_h (H,): the number of items of each stratum, which may be zero."""
        return torch.bincount(self.of, minlength=_BANDS + 1)

    def first(self, items: int) -> Tensor:
        """Return n_h (H,) of a first round: `items` ordinary items and some of every band; all items if `items` is their number."""
        wanted = torch.full_like(self.sizes, FIRST_OF_BAND if items < len(self.of) else items)
        wanted[0] = items
        return torch.minimum(self.sizes, wanted)

    def draws(self, picked: Tensor, each: int) -> Tensor:
        """Return the draws per item (H,) of a first round of `picked` (H,) items: `each` for ordinary items, and twice as many for each
        further band, where costs may be larger, up to a quarter of the ordinary items' draws for all bands together.
        """
        wanted = each * 2 ** torch.arange(len(picked))
        most = each * picked[0] // (4 * picked[1:].sign().sum() * picked).clamp(min=1)
        return torch.minimum(wanted, most).clamp(min=each)

    def growth(
        self, items: Tensor, variance: Tensor, mean: Tensor, evaluations: Tensor, ratio: float, least: float = 0.0
    ) -> Tensor:
        """Return the factors (H,) by which to raise the evaluations of each stratum for the variance (b) to fall by `ratio`.

        By Neyman's allocation: from variances V_h and evaluations n_h, f_h = ratio √(V_h/n_h) Σ_k √(V_k n_k)/Σ_k V_k minimises the total
        Σ n_h f_h. An extreme stratum with fewer than 512 draws, which may have missed large costs, grows at least by `ratio`.

        Args:
            items, variance, mean: (n,) the visited items, and v and R of each.
            evaluations: (n,) of each.
            ratio: the variance that the rule which stops goes by, over the one wanted.
            least: N² times the part of that variance which these draws do not show, but a plan expects: it is shared out by Σ w²/J, which
                is what the plan's variance of one visit is multiplied by (`VisitRecords.expected_variance`).
        """
        shape = len(self.sizes)
        own = torch.zeros(shape, dtype=torch.float64)
        own.index_add_(0, self.of[items], self.weights(items) * variance + self.between(items, mean))
        expected = torch.zeros(shape, dtype=torch.float64)
        expected.index_add_(0, self.of[items], self.weights(items).square() / evaluations.double())
        own = own + max(least, 0.0) * expected / expected.sum()
        spent = torch.zeros(shape, dtype=torch.float64).index_add_(0, self.of[items], evaluations.double())
        even = torch.full_like(own, ratio)
        if int((self.sizes > 0).sum()) < 2 or not float(own.sum()) > 0:
            return even
        factor = ratio * (own / spent.clamp(min=1)).sqrt() * (own * spent).sqrt().sum() / own.sum()
        few = spent < _SEEN
        few[0] = False
        return torch.where(few, factor.clamp(min=ratio), factor)

    def unseen(self, items: Tensor, variance: Tensor, mean: Tensor, evaluations: Tensor) -> Tensor:
        """Return by which factor (H,) the draws of each extreme stratum must grow before an error may be believed; 0 if it has enough.

        The pilot has met no items like these, so nothing but their own draws shows how large their costs can be, and few draws that miss
        a large cost have both a low mean and a low variance. A stratum needs 128 draws, and 512 if it carries more than a tenth of the
        variance.

        Args:
            items, variance, mean, evaluations: as in `growth`.
        """
        own = torch.zeros(len(self.sizes), dtype=torch.float64)
        own.index_add_(0, self.of[items], self.weights(items) * variance + self.between(items, mean))
        spent = torch.zeros_like(own).index_add_(0, self.of[items], evaluations.double())
        wanted = torch.where(own > _PART * own.sum(), float(_SEEN), float(_FEW))
        short = (spent < wanted) & (self.sizes > 0)
        short[0] = False
        return torch.where(short, wanted / spent.clamp(min=1), 0.0)

    def pick(self, count: Tensor) -> Tensor:
        """Return the first count_h (H,) items of every stratum, in the order of visits."""
        sizes = self.sizes
        stratum = self.of[self.order]
        # The position of each item within its stratum: the order lists whole strata, the most extreme first.
        begins = sizes.flip(0).cumsum(0).flip(0) - sizes
        position = torch.arange(len(self.order)) - begins[stratum]
        return self.order[position < count[stratum]]

    def visited(self, items: Tensor) -> Tensor:
        """Count the visited items (n,) of each stratum, n_h (H,)."""
        return torch.bincount(self.of[items], minlength=_BANDS + 1)

    def enough(self, items: Tensor) -> bool:
        """Return whether at least two items, or all, of every stratum are visited, as (b) requires."""
        some = self.visited(items)
        return bool(((some >= 2) | (some == self.sizes)).all())

    def weights(self, items: Tensor) -> Tensor:
        """Return N_h/n_h (n,) of visited items (n,): the number of items that each represents."""
        share = self.sizes.double() / self.visited(items).clamp(min=1).double()
        return share[self.of[items]]

    def between(self, items: Tensor, mean: Tensor) -> Tensor:
        """Return squared deviations (n,) whose sum is the part of N² Var in (b) due to items not visited; `mean` (n,) is R."""
        sizes, some = self.sizes.double(), self.visited(items).double()
        total = torch.zeros_like(sizes).index_add_(0, self.of[items], mean)
        centred = mean - (total / some.clamp(min=1))[self.of[items]]
        factor = sizes * (sizes - some) / (some * (some - 1)).clamp(min=1)
        return factor[self.of[items]] * centred.square()

    def mean_and_error(self, items: Tensor, mean: Tensor, variance: Tensor) -> tuple[float, float]:
        """Return (a) without the bases, and the square root of (b), from R and v (n,) of the visited items (n,)."""
        n, weight = len(self.of), self.weights(items)
        value = float((weight * mean).sum()) / n
        within = float((weight * variance).sum())
        return value, math.sqrt(within + float(self.between(items, mean).sum())) / n

    def item_error(self, items: Tensor, known: Tensor, mean: Tensor, variance: Tensor) -> float:
        """Return the standard error over items of the mean: √(variance of the scores of all N items / N).

        The bases `known` (N,) are those of all items; the contribution of the residuals is estimated from the visited ones, weighted:

            v̂ = Var_N(known) + Σ_i (w_i/N) [a_i(known + R) − v_i − a_i(known)],     a_i(y) = N/(N − 1) (y_i − ȳ_w)²,

        at least the standard error of its second part, as in `error_over_items`.
        """
        n, weight = len(self.of), self.weights(items)
        if len(items) == n:
            return error_over_items(known[items] + mean, variance, n)

        def squares(values: Tensor) -> Tensor:
            return n / (n - 1) * (values - (weight * values).sum() / n).square()

        parts = squares(known[items] + mean) - variance - squares(known[items])
        centred = weight * (parts - (weight * parts).sum() / n)
        noise = float((weight * variance).sum()) / n * math.sqrt(2 / (len(items) - 1))
        least = max(float(centred.square().sum().sqrt()) / n, noise)
        return math.sqrt(max(float(known.var()) + float((weight * parts).sum()) / n, least) / n)


def grown(numbers: Tensor, factor: Tensor) -> Tensor:
    """Return about `factor` (H,) times the numbers (H,): at most four times, and at least one more where the factor is above one.

    >>> grown(torch.tensor([10, 10, 10]), torch.tensor([1.5, 100.0, 0.5])).tolist()
    [15, 40, 10]
    """
    wanted = torch.ceil(numbers.double() * factor).long()
    return torch.where(factor > 1, torch.maximum(torch.minimum(wanted, 4 * numbers), numbers + 1), numbers)


def robust_distance(values: Tensor) -> Tensor:
    """Return |v − median| in robust standard deviations (N,): 1.4826 times the median absolute deviation, or 1.2533 times the mean absolute
    deviation if that is zero; either is at least 1e-5 of the median's magnitude, below which values may differ only by rounding.

    >>> robust_distance(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])).round().tolist()
    [1.0, 1.0, 0.0, 1.0, 66.0]
    """
    values = values.double()
    middle = values.median()
    away = (values - middle).abs()
    scale = 1.4826 * away.median()
    negligible = _ROUNDING * middle.abs()
    if not scale > negligible:
        scale = torch.maximum(1.2533 * away.mean(), negligible)
    return away / scale if scale > 0 else torch.zeros_like(away)
