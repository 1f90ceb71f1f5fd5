"""Models without levels to visit at random: the NELBO as the mean of independent draws of `terms`, item by item.

An item's j-th draw depends only on the item, the seed and j. With J draws of an item, and s_i² their sample variance,

    Ŝ_i = mean_j NELBO_ij,      Var Ŝ_i = s_i²/J,      and √(Σ_i s_i²/J_i)/N for the data set's mean.

Costs with rare, large parts have both a small mean and a small spread in draws that met none of these parts. The error of the data
set's mean, and the stopping rule that uses it, therefore include a pilot whose draws are not part of the mean (tail_pilot.py): the
variance of a draw is the larger of the sample variance and the pooled estimate. A caveat reports that either rests on few draws. With
`max_evaluations`, the pilot also predicts whether they suffice, so that `reached` does not depend on favourable draws only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks, tail_pilot
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen, gamma_at, provenance
from diffusional.evaluation.result import Evaluation, edges_of_blocks
from diffusional.evaluation.sweep import mean_of_items
from diffusional.evaluation.tail_pilot import Variance
from diffusional.ledger import Estimate, satterthwaite
from diffusional.models.base import LatentVariableModel, device_of
from diffusional.models.chain import batch_rows

# An error with fewer degrees of freedom gets a caveat.
LEAST_FREEDOM = 15
# Draws of every item before its spread is used, and of an evaluation without a target.
_FIRST, _PLAIN = 8, 64
# Numbers of noise in one network call.
_NUMBERS = 4_000_000
# Draws of a pilot if a draw takes many evaluations, or if few draws are requested.
_FEWER = 64
# The pilot may take 1/5 of max_evaluations. There are doubts whether the rest suffices if it is short by these numbers of the pilot's
# relative errors, before and after the draws.
_PART, _BEFORE, _AFTER = 5, 1.0, 2.0

# The caveat of a mean over items whose draws stopped at errors of their own.
EACH_ITS_OWN = (
    "each item was drawn until its own error was small, and costs with rare large parts look small until one is met: the mean's bias is "
    "not in its error. Give target_error for the mean"
)

Told = Callable[[Estimate, int, int], None]


def few_draws(freedom: float, error: float) -> list[str]:
    """Return the caveat of an error with few degrees of freedom: few draws, or many of which a few dominate it."""
    if freedom >= LEAST_FREEDOM or not error > 0:
        return []
    return [
        f"the error rests on few draws ({freedom:.0f} degrees of freedom): there are not many, or a few large costs dominate it, and "
        "further large costs may not have been drawn. Give more draws"
    ]


@dataclass
class Averages:
    """Sums over an item's draws, which can be extended: of every cost, and of the NELBO's and the layers' squares."""

    model: LatentVariableModel
    data: Tensor
    seed: int
    condition: Condition | None = None
    count: Tensor = field(init=False)
    sums: dict[str, Tensor] = field(init=False, default_factory=dict)
    blocks: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = item_keys(as_seen(self.model.space, self.data), self.seed, self.condition)
        self.device = device_of(self.model, self.data)
        self.count = torch.zeros(len(self.data), dtype=torch.long)
        # Each item's first NELBO, and the sums of the first to fourth powers of the differences of its other draws from it.
        self._first = torch.zeros(len(self.data), dtype=torch.float64)
        self._powers = torch.zeros(len(self.data), 4, dtype=torch.float64)

    @torch.inference_mode()
    def begin(self) -> None:
        """Determine the names of the costs from one item, so that a process without a share of the items has them too."""
        if not self.sums:
            x, noise = self.data[:1].to(self.device), torch.zeros(1, *self.model.noise_shape)
            c = moved(rows_of(self.condition, slice(1)), self.device)
            ledger = self._terms(x, noise.to(x), c)
            self.sums = {n: torch.zeros(len(self.data), *v.shape[1:], dtype=torch.float64) for n, v in ledger.items()}

    @torch.inference_mode()
    def extend(self, items: Tensor, draws: int) -> None:
        """Draw until each of `items` (n,) has `draws` draws."""
        shape = self.model.noise_shape
        mine = items[ranks.share(len(items))]
        fresh: dict[str, Tensor] = {}
        first, powers = torch.zeros_like(self._first), torch.zeros_like(self._powers)
        self.begin()
        for some in mine.split(rows_per_call(self.model)) if len(mine) else ():
            x = self.data[some].to(self.device)
            c = moved(rows_of(self.condition, some), self.device)
            for draw in range(int(self.count[some].min()), draws):
                # A block's items may differ in how many draws they have.
                wanted = self.count[some] <= draw
                noise = normal([stream(self.keys[i], draw, b"terms") for i in some[wanted].tolist()], shape).to(x)
                there, rows = wanted.to(x.device), some[wanted]
                costs = self._terms(x[there], noise, rows_of(c, there))
                for name, values in costs.items():
                    fresh.setdefault(name, torch.zeros_like(self.sums[name]))[rows] += values.cpu().double()
                nelbo = costs["nelbo"].cpu().double()
                if draw == 0:
                    first[rows] = nelbo
                away = nelbo - (first + self._first)[rows]
                powers[rows] += away[:, None] ** torch.arange(1, 5)
        for name, total in self.sums.items():
            total += ranks.collect(fresh.get(name, torch.zeros_like(total)))
        self._first += ranks.collect(first)
        self._powers += ranks.collect(powers)
        self.count[items] = draws
        bad = ~torch.isfinite(self.sums["nelbo"])
        if bool(bad.any()):
            item = int(bad.nonzero()[0])
            parts = ", ".join(f"{n} = {float(v[item]):g}" for n, v in self.sums.items() if v.ndim == 1 and "²" not in n)
            raise DiffusionalError(
                f"item {item} has a cost that is not finite: {parts}; nothing was left out of the mean"
            )

    def _terms(self, x: Tensor, noise: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        """Return the columns of a ledger by name: every cost, the layers' KLs, and the squares of all."""
        ledger = self.model.terms(x, noise, condition)
        self.blocks = {name: kl.shape[1] for name, kl in ledger.blocks.items()}
        parts = {"nelbo": ledger.nelbo, **ledger.totals(), "levels": ledger.kl}
        return parts | {name + "²": values.double().square() for name, values in parts.items()}

    @torch.inference_mode()
    def pilot(self, draws: int) -> "Pilot":
        """Run a pilot of about `draws` draws, which are not added to the sums."""
        items, each = tail_pilot.chosen(self.keys, draws)
        mine = ranks.share(len(items))
        weights = torch.zeros(len(items), each, dtype=torch.float64)
        costs: dict[str, Tensor] = {}
        for some in mine.split(max(1, rows_per_call(self.model) // each)) if len(mine) else ():
            noise, weight = tail_pilot.noise([self.keys[i] for i in items[some].tolist()], each, self.model.noise_shape)
            weights[some] = weight
            rows = items[some].repeat_interleave(each)
            x = self.data[rows].to(self.device)
            c = moved(rows_of(self.condition, rows), self.device)
            for name, values in self._terms(x, noise.flatten(0, 1).to(x), c).items():
                if values.ndim == 1 and "²" not in name:
                    part = costs.setdefault(name, torch.zeros_like(weights))
                    part[some] = values.cpu().double().reshape(len(some), each)
        weights = ranks.collect(weights)
        names = [name for name, total in self.sums.items() if total.ndim == 1 and "²" not in name]
        costs = {name: ranks.collect(costs.get(name, torch.zeros_like(weights))) for name in names}
        found = {name: tail_pilot.variance(values, weights) for name, values in costs.items()}
        return Pilot(found, len(items) * each * self.model.evaluations, bool(torch.isfinite(costs["nelbo"]).all()))

    def mean(self, name: str) -> Tensor:
        """Return each item's mean of a cost (N,) or (N, L)."""
        values = self.sums[name]
        return values / self.count.reshape(-1, *(1,) * (values.ndim - 1))

    def variance(self, name: str) -> Tensor:
        """Return the Monte Carlo variance of `mean(name)`."""
        j = self.count.reshape(-1, *(1,) * (self.sums[name].ndim - 1)).double()
        squares = self.sums[name + "²"]
        spread = squares - self.sums[name].square() / j
        # Differences of equal draws by rounding are not counted as spread.
        return torch.where(spread > 4 * torch.finfo(torch.float64).eps * j * squares, spread, 0.0) / (j - 1) / j

    def one_draw(self) -> Variance:
        """Estimate the variance of one draw of the NELBO, averaged over the items, from the draws.

        Its degrees of freedom are 3 (Σ q)²/Σ q², q the squared deviation of a draw over J (J − 1), as in `VisitRecords.freedom`.
        """
        j = self.count.double()
        mean, second, third, fourth = (self._powers / j[:, None]).unbind(1)
        squares = (second - mean.square()).clamp(min=0)
        fourths = (fourth - 4 * mean * third + 6 * mean.square() * second - 3 * mean.pow(4)).clamp(min=0)
        parts, total = squares / (j - 1), float((fourths / (j * (j - 1).square())).sum())
        freedom = 3 * float(parts.sum()) ** 2 / total * float((j - 1).sum() / j.sum()) if total > 0 else math.inf
        return Variance(float((squares * j / (j - 1)).mean()), freedom, float(j.sum()))

    def estimate(self, name: str, pilot: "Pilot | None" = None) -> Estimate:
        """Return the data set's mean of a cost, with its two errors; with a pilot, its variance is pooled into the error."""
        seen = mean_of_items(self.mean(name), self.variance(name), self.evaluations)
        if pilot is None:
            return seen
        n, draws = len(self.data), float(self.count.sum())
        # All items have the same number of draws, so the variance of the mean is that of one draw over the number of draws.
        pooled = pilot.variances[name].pooled(Variance(seen.error**2 * draws, math.inf, draws)) if n else None
        error = seen.error if pooled is None else max(seen.error, math.sqrt(pooled.value / draws))
        return replace(seen, error=error, network_evaluations=self.evaluations + pilot.evaluations)

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, without those of the pilot."""
        return int(self.count.sum()) * self.model.evaluations


@dataclass(frozen=True)
class Pilot:
    """Results of a pilot: the variance of one draw of every cost, averaged over the items, and the network evaluations it took.

    `finite` is False if a draw with wider noise gave a NELBO that is not finite.
    """

    variances: dict[str, Variance]
    evaluations: int
    finite: bool

    @staticmethod
    def size(model: LatentVariableModel, items: int, visits: int | None, max_evaluations: int | None) -> int:
        """Return the number of draws of a pilot: 0 if `max_evaluations` is too low for one."""
        draws = max(_FEWER, tail_pilot.DRAWS // model.evaluations)
        if visits is not None:
            draws = min(draws, max(_FEWER, items * visits // 2))
        if max_evaluations is not None:
            rest = max_evaluations // model.evaluations - items * (visits or 2)
            draws = min(draws, rest if visits is not None else min(rest, max_evaluations // model.evaluations // _PART))
        return draws if draws >= tail_pilot.LEAST_DRAWS else 0

    def doubts(self, seen: Variance, target: float, draws: int, afforded: int) -> list[str]:
        """Return reasons why a target (nats) may have been reached by chance after `draws` of the `afforded` draws."""
        expected = self.variances["nelbo"]
        most = math.sqrt(expected.value * (1 + _BEFORE * expected.uncertainty()) / afforded)
        if most > target:
            return [
                f"the pilot expects an error of up to {most:.3g} nats with max_evaluations: draws with an error below the target may have "
                "missed rare costs. Raise max_evaluations"
            ]
        apart = math.hypot(expected.uncertainty(), seen.uncertainty())
        if draws > 0.5 * afforded and seen.value > expected.value * (1 + _AFTER * apart):
            return [
                "the costs vary more than the pilot expects, and max_evaluations allows few more draws: the target may have been reached "
                "by chance. Raise max_evaluations"
            ]
        return []


def rows_per_call(model: LatentVariableModel) -> int:
    """Return the number of items of one call, as many as the memory for noise and the decoder's output allows."""
    return max(1, min(batch_rows(model.space), _NUMBERS // max(1, math.prod(model.noise_shape))))


def average(
    model: LatentVariableModel,
    data: Tensor,
    target: float | None = None,
    visits: int | None = None,
    item_error: float | None = None,
    seed: int = 0,
    max_evaluations: int | None = None,
    condition: Condition | None = None,
    told: Told | None = None,
) -> Evaluation:
    """Draw until the target is reached (nats; 64 draws of every item without one); `evaluate` calls this."""
    sums = Averages(model, data, seed, condition)
    n, everything = len(data), torch.arange(len(data))
    # Few items get more draws each, so that the error has enough degrees of freedom.
    first = max(_FIRST, -(-2 * LEAST_FREEDOM // n) + 1)
    each, items, enough = visits or (_PLAIN if target is None and item_error is None else first), everything, False
    if max_evaluations is not None and max_evaluations // model.evaluations < 2 * n:
        raise DiffusionalError(
            f"max_evaluations must be at least {2 * n * model.evaluations} (two draws of each of {n} items), got {max_evaluations}"
        )
    size = 0 if item_error is not None else Pilot.size(model, n, each if target is None else None, max_evaluations)
    sums.begin()
    pilot = sums.pilot(size) if size else None
    caveats = []
    if pilot is None and item_error is None:
        caveats.append(f"max_evaluations={max_evaluations} left none for the pilot, which looks for rare large costs")
    elif pilot is not None and not pilot.finite:
        caveats.append("a draw with wider noise has a cost that is not finite: the bound may be infinite")
    known = pilot if pilot is not None and pilot.finite else None
    apart = 0 if pilot is None else pilot.evaluations
    afford = math.inf if max_evaluations is None else (max_evaluations - apart) // model.evaluations

    def affordable(items: Tensor, draws: int) -> int:
        """Return the number of draws of each of `items` that `max_evaluations` allows, at most `draws`."""
        spent = int(sums.count.sum())
        have = int(sums.count[items].max())
        return draws if afford == math.inf else min(draws, have + int(afford - spent) // len(items))

    while True:
        allowed = affordable(items, each)
        if allowed > int(sums.count[items].max()):
            sums.extend(items, allowed)
        now = sums.estimate("nelbo", known)
        errors = sums.variance("nelbo").sqrt()
        if item_error is not None:
            items = (errors > item_error).nonzero().squeeze(1)
            enough, wanted = len(items) == 0, math.ceil(1.4 * each)
        else:
            ratio = 1.0 if target is None else (now.error / target) ** 2
            # A target may be reached by the last draws that max_evaluations allowed.
            enough = allowed == each if target is None else ratio <= 1
            wanted = max(each + 1, min(math.ceil(1.02 * each * ratio), 8 * each))
        if told is not None:
            spent = sums.evaluations + apart
            told(now, spent, spent if enough else n * wanted * model.evaluations + apart)
        if enough or allowed < each:
            break
        each = wanted
    names = [name for name in sums.sums if "²" not in name and name not in ("nelbo", "levels")]
    layers = sums.variance("levels")
    variance = sums.variance("nelbo")
    edges = edges_of_blocks(sums.blocks)
    # If the draws do not vary, but the pilot expects an error, they have no degrees of freedom for it.
    varies = bool(variance.any()) or now.error == 0
    freedom = satterthwaite((variance, sums.count - 1)) if varies else 0.0
    seen = sums.one_draw()
    # The degrees of freedom of the larger of the two variances, which is the one that is used.
    pooled = seen if known is None else known.variances["nelbo"].pooled(seen)
    tails = pooled.freedom if pooled.value > seen.value else seen.freedom
    freedom = min(freedom, tails)
    caveats += few_draws(freedom, now.error)
    if known is not None and target is not None and enough and afford < math.inf:
        caveats += known.doubts(seen, target, int(sums.count.sum()), int(afford))
    reached = enough and (item_error is not None or not caveats)
    if item_error is not None:
        caveats.append(EACH_ITS_OWN)
    return Evaluation(
        nelbo=now,
        terms={name: sums.estimate(name, known) for name in names},
        per_item={
            "item": everything,
            "nelbo": sums.mean("nelbo"),
            **{name: sums.mean(name) for name in names},
            "error": sums.variance("nelbo").sqrt(),
            "draws": sums.count,
        },
        levels_kl=sums.mean("levels").mean(0),
        levels_error=layers.sum(0).sqrt() / n,
        level_edges=edges,
        gamma_edges=gamma_at(model, edges) if len(sums.blocks) == 1 else None,
        blocks=sums.blocks,
        dimensions=model.space.dimensions,
        provenance=provenance(model, data, seed, condition)
        | {
            "method": "draws of terms",
            "visits": [int(sums.count.min()), int(sums.count.max())],
            "evaluations": {"pilot": apart, "draws": sums.evaluations},
        },
        freedom=freedom,
        reached=reached,
        caveats=tuple(caveats),
    )
