"""Models without levels to visit at random: the NELBO as the mean of independent draws of `terms`, item by item.

An item's j-th draw depends on the item, the seed and j alone. With J draws of an item, and s_i² their sample variance,

    Ŝ_i = mean_j NELBO_ij,      Var Ŝ_i = s_i²/J,      and √(Σ_i s_i²/J_i)/N for the data set's mean.

The importance-weighted bound averages weights instead, −ln (1/K) Σ_k p(x, z_k)/q(z_k|x), and falls with K toward −ln p(x)
(Burda, Grosse & Salakhutdinov 2016).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import processes
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen, provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.sweep import mean_of_items
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import batch_rows
from diffusional.models.vae import Autoencoder

# An error that rests on fewer degrees of freedom is not vouched for.
LEAST_FREEDOM = 15
# Draws of every item before its spread is believed, and of a plain evaluation.
_FIRST, _PLAIN = 8, 64
# Draws that the weights must amount to, by 1/Σ share².
_EFFECTIVE = 10
# Numbers of noise in one network call.
_NUMBERS = 4_000_000

# Of a mean whose items stopped by their own errors.
EACH_ITS_OWN = (
    "each item was drawn until its own error was small, and costs with rare large parts look small until one is met: the mean's bias is "
    "not in its error. Give target_error for the mean"
)

Told = Callable[[Estimate, int, int], None]


def few_draws(freedom: float, error: float) -> list[str]:
    """The caveat of an error with few degrees of freedom."""
    if freedom >= LEAST_FREEDOM or not error > 0:
        return []
    return [
        f"the error rests on few draws ({freedom:.0f} degrees of freedom), by their number or by heavy tails of the costs, of which more "
        "may not have been met"
    ]


@dataclass
class Averages:
    """Sums over an item's draws, which can be extended: of every cost, and of the NELBO's and the layers' squares."""

    model: LatentVariableModel
    data: Tensor
    seed: int
    condition: Tensor | None = None
    count: Tensor = field(init=False)
    sums: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = item_keys(as_seen(self.model.space, self.data), self.seed)
        self.device = next((t.device for t in (*self.model.parameters(), *self.model.buffers())), self.data.device)
        self.count = torch.zeros(len(self.data), dtype=torch.long)

    @torch.inference_mode()
    def extend(self, items: Tensor, draws: int) -> None:
        """Bring `items` (n,) to `draws` draws each."""
        shape = self.model.noise_shape
        mine = items[processes.share(len(items))]
        fresh: dict[str, Tensor] = {}
        if not self.sums:
            # One item tells the costs' names, so that a process without a share of its own has them too.
            x, noise = self.data[:1].to(self.device), torch.zeros(1, *shape)
            c = None if self.condition is None else self.condition[:1].to(self.device)
            ledger = self._terms(x, noise.to(x), c)
            self.sums = {n: torch.zeros(len(self.data), *v.shape[1:], dtype=torch.float64) for n, v in ledger.items()}
        for some in mine.split(_rows(self.model)) if len(mine) else ():
            x = self.data[some].to(self.device)
            c = None if self.condition is None else self.condition[some].to(self.device)
            for draw in range(int(self.count[some].min()), draws):
                # A block's items may differ in how many draws they have.
                wanted = self.count[some] <= draw
                noise = normal([stream(self.keys[i], draw, b"terms") for i in some[wanted].tolist()], shape).to(x)
                there = wanted.to(x.device)
                for name, values in self._terms(x[there], noise, None if c is None else c[there]).items():
                    fresh.setdefault(name, torch.zeros_like(self.sums[name]))[some[wanted]] += values.cpu().double()
        for name, total in self.sums.items():
            total += processes.collect(fresh.get(name, torch.zeros_like(total)))
        self.count[items] = draws
        bad = ~torch.isfinite(self.sums["nelbo"])
        if bool(bad.any()):
            item = int(bad.nonzero()[0])
            parts = ", ".join(f"{n} = {float(v[item]):g}" for n, v in self.sums.items() if v.ndim == 1 and "²" not in n)
            raise DiffusionalError(
                f"item {item} has a cost that is not finite: {parts}; nothing was left out of the mean"
            )

    def _terms(self, x: Tensor, noise: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """The columns of the books: every cost, the layers' KLs, and the squares of all."""
        ledger = self.model.terms(x, noise, condition)
        parts = {"nelbo": ledger.nelbo, **ledger.totals(), "levels": ledger.kl}
        return parts | {name + "²": values.double().square() for name, values in parts.items()}

    def mean(self, name: str) -> Tensor:
        """Each item's mean of a cost (N,) or (N, L)."""
        values = self.sums[name]
        return values / self.count.reshape(-1, *(1,) * (values.ndim - 1))

    def variance(self, name: str) -> Tensor:
        """Monte Carlo variance of `mean(name)`."""
        j = self.count.reshape(-1, *(1,) * (self.sums[name].ndim - 1)).double()
        squares = self.sums[name + "²"]
        spread = squares - self.sums[name].square() / j
        # What rounding leaves of equal draws is no spread.
        return torch.where(spread > 4 * torch.finfo(torch.float64).eps * j * squares, spread, 0.0) / (j - 1) / j

    def estimate(self, name: str) -> Estimate:
        """The data set's mean of a cost, with its two errors."""
        return mean_of_items(self.mean(name), self.variance(name), self.evaluations)

    @property
    def evaluations(self) -> int:
        """Network evaluations so far."""
        return int(self.count.sum()) * self.model.evaluations


def _rows(model: LatentVariableModel) -> int:
    """Items of one call: as many as the noise and the decoder's output allow."""
    return max(1, min(batch_rows(model.space), _NUMBERS // max(1, math.prod(model.noise_shape))))


def average(
    model: LatentVariableModel,
    data: Tensor,
    target: float | None = None,
    visits: int | None = None,
    item_error: float | None = None,
    seed: int = 0,
    max_evaluations: int | None = None,
    condition: Tensor | None = None,
    told: Told | None = None,
) -> Evaluation:
    """Draw until the target is reached (nats; 64 draws of every item without one); `evaluate` calls this."""
    sums = Averages(model, data, seed, condition)
    n, everything = len(data), torch.arange(len(data))
    afford = math.inf if max_evaluations is None else max_evaluations // model.evaluations

    def affordable(items: Tensor, draws: int) -> int:
        """Draws of each of `items` that the budget allows, at most `draws`."""
        spent = int(sums.count.sum())
        have = int(sums.count[items].max())
        return draws if afford == math.inf else min(draws, have + int(afford - spent) // len(items))

    # Few items are drawn more often, for as many degrees of freedom as an error needs.
    first = max(_FIRST, -(-2 * LEAST_FREEDOM // n) + 1)
    each, items, enough = visits or (_PLAIN if target is None and item_error is None else first), everything, False
    while True:
        allowed = affordable(items, each)
        if allowed < 2:
            raise DiffusionalError(
                f"a budget of {max_evaluations} evaluations came; two draws of {n} items take {2 * n * model.evaluations}"
            )
        if allowed > int(sums.count[items].max()):
            sums.extend(items, allowed)
        now = sums.estimate("nelbo")
        errors = sums.variance("nelbo").sqrt()
        if item_error is not None:
            items = (errors > item_error).nonzero().squeeze(1)
            enough, wanted = len(items) == 0, math.ceil(1.4 * each)
        else:
            ratio = 1.0 if target is None else (now.error / target) ** 2
            # A target may be reached by the draws that the budget still allowed.
            enough = allowed == each if target is None else ratio <= 1
            wanted = max(each + 1, min(math.ceil(1.02 * each * ratio), 8 * each))
        if told is not None:
            told(now, sums.evaluations, sums.evaluations if enough else n * wanted * model.evaluations)
        if enough or allowed < each:
            break
        each = wanted
    names = [name for name in sums.sums if "²" not in name and name not in ("nelbo", "levels")]
    layers = sums.variance("levels")
    # Satterthwaite's: (Σ v_i)²/Σ v_i²/(J_i − 1).
    variance = sums.variance("nelbo")
    freedom = float(variance.sum().square() / (variance.square() / (sums.count - 1)).sum().clamp(min=1e-300))
    caveats = few_draws(freedom, float(variance.sum()))
    reached = enough and (item_error is not None or not caveats)
    if item_error is not None:
        caveats.append(EACH_ITS_OWN)
    return Evaluation(
        nelbo=sums.estimate("nelbo"),
        terms={name: sums.estimate(name) for name in names},
        per_item={
            "item": everything,
            "nelbo": sums.mean("nelbo"),
            **{name: sums.mean(name) for name in names},
            "error": sums.variance("nelbo").sqrt(),
            "draws": sums.count,
        },
        levels_kl=sums.mean("levels").mean(0),
        levels_error=layers.sum(0).sqrt() / n,
        level_edges=torch.arange(layers.shape[1] + 1) + 1,
        dimensions=model.space.dimensions,
        provenance=provenance(model, data, seed)
        | {"method": "draws of terms", "visits": [int(sums.count.min()), int(sums.count.max())]},
        freedom=freedom,
        reached=reached,
        caveats=tuple(caveats),
    )


def importance_weighted(
    model: Autoencoder, data: Tensor, draws: int = 64, seed: int = 0, condition: Tensor | None = None
) -> Estimate:
    """The mean of −ln (1/K) Σ_k w_k over `data`, nats, w = p(x, z)/q(z|x), K = `draws`: a tighter bound on −ln p(x).

    In expectation it is the NELBO at K = 1 and never rises with K. Its Monte Carlo error is by the delta method, √Var w/(√K E w) per
    item, which is too small where few weights outweigh the others (there it warns); it says nothing of how far the bound
    still is from −ln p(x). Raises DiffusionalError for draws < 2, for a model with a diffusion prior, and for weights that are not finite.

    >>> from diffusional.models.likelihood import NetworkLevels
    >>> from diffusional.models.vae import VAE
    >>> from diffusional.space import binary
    >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Unflatten(1, (8,)))
    >>> vae = VAE(torch.nn.Linear(4, 4), decoder, NetworkLevels(binary((4,))), latents=2)
    >>> importance_weighted(vae, torch.ones(5, 4), draws=8).n
    5
    """
    if draws < 2:
        raise DiffusionalError(f"draws={draws} came; give at least 2, the weights' spread tells the error")
    model.space.check(data)
    if condition is not None and len(condition) != len(data):
        raise DiffusionalError(f"{len(condition)} conditions came for {len(data)} items; give one for each")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logs = _log_weights(model, data, draws, seed, condition)
    finally:
        model.train(was_training)
    values = math.log(draws) - torch.logsumexp(logs, 0)
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise DiffusionalError(
            f"item {int(bad.nonzero()[0])} has weights whose sum is not finite and positive; nothing was left out of the mean"
        )
    share = torch.softmax(logs, 0)
    mc = draws / (draws - 1) * (share - 1 / draws).square().sum(0)
    effective = float((1 / share.square().sum(0)).median())
    if effective < _EFFECTIVE:
        warnings.warn(
            f"half of the items' weights amount to {effective:.1f} draws of {draws} or fewer: their errors are too small, and the "
            "bound is still far from −ln p(x); give more draws",
            stacklevel=2,
        )
    return mean_of_items(values, mc, len(values) * draws)


def _log_weights(model: Autoencoder, data: Tensor, draws: int, seed: int, condition: Tensor | None) -> Tensor:
    """ln w (K, N)."""
    keys = item_keys(as_seen(model.space, data), seed)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), data.device)
    parts = []
    for some in torch.arange(len(data)).split(_rows(model)):
        x = data[some].to(device)
        c = None if condition is None else condition[some].to(device)
        noises = (
            normal([stream(keys[i], k, b"weights") for i in some.tolist()], model.noise_shape) for k in range(draws)
        )
        parts.append(torch.stack([model.log_weight(x, noise.to(x), c) for noise in noises]).cpu())
    return torch.cat(parts, 1)
