"""The levels at which classes differ: the plan of `classify`, and the estimates of differences between bounds from few draws.

The levels are divided into cells, and the reconstruction is one more. Let a_k (C + 1,) be the costs of an item given class k by cell. Their sum
is class k's NELBO, up to a part that is equal for all classes. A visit of cell c gives an unbiased estimate y_k of a_kc, with the same noise for
all classes. Between two classes the expected differences by cell, a_k − a_l, vary from item to item with the second moments 2 Σ, and
the noise of a visit with 2 V_c. Differences at one level are correlated with those at others, so that a few visits of levels with little
noise predict the sum over all of them. The best linear prediction from visits of cells s = (c_1, …, c_n) is

    d̂ = Σ_j w_j (y_kj − y_lj),     w = A⁻¹ Σ_s 1,     A = Σ_ss + diag(V_s),     mean square error 2 (1ᵀΣ1 − wᵀΣ_s 1).

The scale of the differences varies a great deal between items and pairs of classes. It gets an inverse gamma prior with ν degrees of freedom, so that
a posteriori the sum of the differences has Student's t distribution with ν + n degrees of freedom, the mean d̂ and the squared scale

    2 (1ᵀΣ1 − wᵀΣ_s 1) (ν + dᵀA⁻¹d / 2) / (ν + n),     d = y_k − y_l.

With many visits the weights of those in each cell sum to nearly 1, and d̂ approaches the difference of the bounds. Σ and V are estimated in a pilot, where some
classes of some items are visited in all cells. The probabilities of the cells are those of visits that are chosen one after the other so that each reduces
the mean square error most (a greedy optimal design).

Sources: Robinson 1991, "That BLUP is a good thing"; Chaloner & Verdinelli 1995 (Bayesian design); Owen, Monte Carlo theory, methods and examples,
ch. 16 (randomised quasi-Monte Carlo).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.common import CommonNoise
from diffusional.evaluation.plan import Plan, visited
from diffusional.evaluation.shares import shared
from diffusional.evaluation.visits import LevelVisits, slopes
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.models.protocols import AffineCosts

Weighting = Literal["bound", "unweighted"]

# Cells of the levels, and of the pilot the items, the classes of an item and the draws in each cell.
_CELLS, _ITEMS, _CLASSES, _DRAWS = 16, 16, 5, 2
# Visits of the design, and the part of the uniform plan that is mixed in.
_DESIGN, _UNIFORM = 12, 0.1
# The least part of a cell's second moment that is due to the item, the largest correlation, and the part of each cell that no other cell predicts.
_LEAST, _CORRELATED, _OWN = 0.02, 0.98, 0.002
# ν, the degrees of freedom of the prior of the scale.
_FREEDOM = 8.0
_GOLDEN = (math.sqrt(5) - 1) / 2
# Items of one block of linear algebra.
_BLOCK = 512


def spread(item: Tensor, draw: Tensor, start: Tensor) -> Tensor:
    """Return places (V,) in [0, 1) of draws of items, from a random start (N,) of every item: the fractional parts of start + draw · φ.

    The first n draws of an item are spread evenly for every n, and each is uniformly distributed.

    >>> spread(torch.tensor([0, 0, 0]), torch.arange(3), torch.tensor([0.5]))
    tensor([0.5000, 0.1180, 0.7361])
    """
    return ((start[item] + draw * _GOLDEN) % 1).clamp(max=1 - 2**-53)


@dataclass(frozen=True, eq=False)
class ClassPlan:
    """The levels at which classes are compared, and the second moments of differences between their costs.

    Attributes:
        plan: the cells and their probabilities.
        signal: (C + 1, C + 1) Σ, nats², the reconstruction first.
        noise: (C + 1,) V, nats².
        weighting: "bound", or "unweighted" for the error ‖ε − ε̂‖² at the noise levels of DDPM's linear schedule.
        evaluations: network evaluations of the pilot.

    `ClassPlan.fit` learns one. Raises DiffusionalError for tensors of other shapes or with values that are not finite.
    """

    plan: Plan
    signal: Tensor
    noise: Tensor
    weighting: Weighting = "bound"
    evaluations: int = 0

    def __post_init__(self) -> None:
        cells = self.plan.cells + 1
        for name, shape in {"signal": (cells, cells), "noise": (cells,)}.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise DiffusionalError(
                    f"expected a finite {name} of shape {shape} for {self.plan.cells} cells of levels, got shape {tuple(value.shape)}; learn the "
                    "plan again with df.ClassPlan.fit"
                )

    @classmethod
    def fit(
        cls,
        model: LatentVariableModel,
        data: Tensor,
        classes: int,
        seed: int = 0,
        weighting: Weighting = "bound",
        plan: Plan | None = None,
    ) -> "ClassPlan":
        """Learn a plan from a pilot on at most 16 of the items (N, *space.shape), encoded, with at most 5 of the classes each.

        With `plan` its cells and probabilities are kept, and only the moments are learned. Raises DiffusionalError for a model without
        levels to visit, fewer than 2 classes, and weighting="unweighted" with a model whose costs are not affine in ‖ε − ε̂‖².

        >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
        >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
        >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
        >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
        >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
        >>> x, c = world.sample_labelled(50, torch.Generator().manual_seed(0))
        >>> found = ClassPlan.fit(model, x, 2)
        >>> found.evaluations, found.plan.cells
        (1024, 16)
        """
        chain = visited(model)
        if classes < 2 or not len(data):
            raise DiffusionalError(
                f"expected at least 2 classes and 1 item, got {classes} classes and {len(data)} items"
            )
        with evaluation_mode(model), torch.inference_mode():
            signal, noise, at, evaluations = _moments(chain, data, classes, seed, weighting, plan)
            mass = at.mass if plan is not None else _design(signal, noise, at.mass)
        # Tensors made in inference mode cannot be used with those that need gradients.
        about = {"method": "classes", "evaluations": evaluations}
        learned = at if plan is not None else replace(at, mass=mass.clone(), provenance=at.provenance | about)
        return cls(learned, signal.clone(), noise.clone(), weighting, evaluations)

    def factors(self, chain: Chain, visits: LevelVisits) -> Tensor:
        """Return by what the weighted costs of visits (V,) are multiplied to estimate the cost of their cell, or its unweighted error."""
        return self.plan.mass[visits.cell] * _factors(chain, self.weighting, visits.cell, visits.level)

    def predict(self, cells: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the means d̂ (N, K) and scales (N, K) of the sums of differences, and their degrees of freedom, from differences `apart` (N, K, n) at visits of
        `cells` (N, n).
        """
        n = cells.shape[1]
        mean, scale = torch.zeros(apart.shape[:2], dtype=torch.float64), torch.zeros(apart.shape[:2]).double()
        total, sums = self.signal.sum(), self.signal.sum(1)
        for some in torch.arange(len(cells)).split(_BLOCK):
            at, d = cells[some], apart[some]
            a = self.signal[at[:, :, None], at[:, None, :]] + torch.diag_embed(self.noise[at])
            both = torch.linalg.solve(a, torch.cat([sums[at][:, :, None], d.mT], 2))
            w, solved = both[:, :, 0], both[:, :, 1:].mT
            left = (total - (w * sums[at]).sum(1)).clamp(min=0)
            mean[some] = (d * w[:, None]).sum(2)
            spread_ = (_FREEDOM + 0.5 * (d * solved).sum(2).clamp(min=0)) / (_FREEDOM + n)
            scale[some] = (2 * left[:, None] * spread_).sqrt()
        return mean, scale, _FREEDOM + n


def _moments(
    chain: Chain, data: Tensor, classes: int, seed: int, weighting: Weighting, given: Plan | None
) -> tuple[Tensor, Tensor, Plan, int]:
    """Return Σ and V from a pilot, the plan of its cells, and its network evaluations."""
    uniform = Plan.uniform(chain, _CELLS) if given is None else given
    cells = uniform.cells + 1
    generator = np.random.default_rng(seed)
    chosen = torch.from_numpy(generator.permutation(len(data))[:_ITEMS].copy())
    k = min(classes, _CLASSES)
    labels = torch.from_numpy(generator.permuted(np.tile(np.arange(classes), (len(chosen), 1)), axis=1)[:, :k].copy())
    open_ = (uniform.mass > 0).nonzero()[:, 0]
    edges = torch.cat([uniform.mass.new_zeros(1), uniform.mass.cumsum(0)])
    edges = edges / edges[-1].clone()

    def place(item: Tensor, draw: Tensor, random: Tensor) -> Tensor:
        cell = open_[draw // _DRAWS]
        # The draws of a cell are in different parts of it.
        within = (random + draw % _DRAWS / _DRAWS) % 1
        return (edges[cell] + within * (edges[cell + 1] - edges[cell])).clamp(max=1 - 2**-53)

    noise = CommonNoise(chain, uniform, data[chosen], seed, "classes pilot", place)
    visits = len(open_) * _DRAWS
    plan = ClassPlan(uniform, torch.zeros(cells, cells).double(), torch.zeros(cells).double(), weighting)

    def found(items: Tensor) -> dict[str, Tensor]:
        item, draw = items.repeat_interleave(visits), torch.arange(visits).repeat(len(items))
        row, label = torch.arange(len(item)).repeat_interleave(k), labels[item].flatten()
        costs = noise.costs(item, draw, row, lambda which: label[which]).view(-1, k)
        y = costs * plan.factors(chain, noise.visits(item, draw))[:, None]
        return {"costs": y.view(len(items), len(open_), _DRAWS, k)}

    y = shared(torch.arange(len(chosen)), {"costs": (len(open_), _DRAWS, k)}, found)["costs"]
    # Equal in all processes, whatever the last bits of their linear algebra: the levels of the visits follow from them.
    signal, variance = (ranks.agreed(one) for one in second_moments(y))
    full, every = torch.zeros(cells, cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    full[open_[:, None], open_] = signal
    every[open_] = variance
    return full, every, uniform, len(chosen) * visits * k


def second_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ (C, C) and V (C,) from estimates (N, C, R, K) of the costs of K classes of N items by cell, in R draws.

    The second moments are those of differences between two classes, halved. V is smoothed over neighbouring cells; Σ is positive definite.

    >>> truth = torch.randn(400, 3, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> drawn = truth + 2 * torch.randn(400, 3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    >>> signal, noise = second_moments(drawn)
    >>> signal.diag().round().tolist(), noise.round().tolist()
    ([1.0, 1.0, 1.0], [4.0, 4.0, 4.0])
    """
    k, draws, cells = y.shape[3], y.shape[2], y.shape[1]
    apart = (y - y.mean(3, keepdim=True)) * math.sqrt(k / (k - 1))
    noise = apart.var(2).mean((0, 2))
    least = 1e-9 * noise.mean() + 1e-30
    noise = _smoothed(noise.clamp(min=least).log()).exp()
    mean = apart.mean(2).transpose(1, 2).reshape(-1, cells)
    both = mean.mT @ mean / len(mean)
    own = both.diag() - noise / draws
    size = torch.maximum(own, _LEAST * both.diag()).clamp(min=least).sqrt()
    correlation = (both / (size[:, None] * size)).clamp(-_CORRELATED, _CORRELATED)
    correlation.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(correlation)
    correlation = (vectors * values.clamp(min=0)) @ vectors.mT + _OWN * torch.eye(cells, dtype=torch.float64)
    return correlation * size[:, None] * size, noise


def _smoothed(values: Tensor) -> Tensor:
    """Return moving averages of values (C,) with the weights ¼, ½, ¼."""
    padded = torch.cat([values[:1], values, values[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _design(signal: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
    """Return probabilities (C + 1,) of the cells: those of the first visits of a greedy design, smoothed, and a part of the uniform ones."""
    left, count = signal.clone(), torch.zeros_like(noise)
    for _ in range(_DESIGN):
        gain = torch.where(uniform > 0, left.sum(1).square() / (left.diag() + noise).clamp(min=1e-30), -1.0)
        cell = int(gain.argmax())
        count[cell] += 1
        column = left[:, cell].clone()
        left -= column[:, None] * column / (column[cell] + noise[cell]).clamp(min=1e-30)
    mass = torch.cat([count[:1], _smoothed(count[1:])]) / count.sum()
    mass = (1 - _UNIFORM) * ranks.agreed(mass) + _UNIFORM * uniform
    return mass / mass.sum()


def _factors(chain: Chain, weighting: Weighting, cell: Tensor, level: Tensor) -> Tensor:
    """Return by what the costs of visits (V,) are multiplied: 1 for the bound."""
    if weighting == "bound":
        return torch.ones(len(cell), dtype=torch.float64)
    costs = unweighted_costs(chain)
    slope = slopes(costs, level)[1].detach().cpu().double()
    gammas, share = ddpm_levels()
    if costs.timesteps is None:
        # dKL/du = ½ γ'(u) ‖ε − ε̂‖² du against the density of γ.
        gamma = costs.noisy_gamma(level).detach().cpu().double()
        factor = 2 * np.interp(gamma.numpy(), gammas, np.gradient(share, gammas), left=0.0, right=0.0)
        return torch.where(cell == 0, 0.0, torch.from_numpy(factor))
    edges = costs.edge_gammas(torch.zeros(0)).detach().cpu().double().numpy()
    mass = torch.from_numpy(np.diff(np.interp(edges, gammas, share)))
    return torch.where(cell == 0, 0.0, mass[(level - 1).clamp(0, len(mass) - 1)] / slope.clamp(min=1e-300))


def unweighted_costs(chain: Chain) -> AffineCosts:
    """Return the chain's costs as functions of ‖ε − ε̂‖². Raises DiffusionalError if they are not affine in it."""
    costs = chain.affine
    if costs is None:
        raise DiffusionalError(
            f'weighting="unweighted" expected a model whose costs are those of squared errors ‖ε − ε̂‖², got a {type(chain).__name__} of other '
            'costs; use weighting="bound"'
        )
    return costs


def ddpm_levels() -> tuple[np.ndarray, np.ndarray]:
    """Return γ (1000,) of the timesteps of DDPM's linear schedule, and the share (1000,) of timesteps up to each.

    >>> gammas, share = ddpm_levels()
    >>> round(float(gammas[0]), 2), round(float(gammas[-1]), 2), float(share[0])
    (-9.21, 10.12, 0.0005)
    """
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    return np.log1p(-alpha2) - np.log(alpha2), (np.arange(1000) + 0.5) / 1000
