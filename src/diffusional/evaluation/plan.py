"""The plan of an evaluation: where to look, and what to subtract. Learned on training data, saved, used again.

The levels are cut into cells c, and the reconstruction is a cell of its own. A visit draws a cell with probability π_c, a
level t uniformly in it (so that q_t = π_c/n_c, or a density in continuous time), and one noise ε. With E_k and h_k the
expected and the drawn cost of the k-th control (`controls.py`),

    g_t(ε) = a_c + Σ_k b_ck E_k(x, t) + β_ck [h_k(x, t, ε) − E_k(x, t)],     E_ε g_t = a_c + Σ_k b_ck E_k(x, t),
    Ŝ(x)   = KL_T + Σ_t E_ε g_t + (1/J) Σ_j [cost_{t_j}(x, ε_j) − g_{t_j}(ε_j)] / q_{t_j}                        (a)

is unbiased for every π > 0 and every coefficient (MATH (22)); Σ_t E_ε g_t needs no network. Coefficients come from ridge
regression on a pilot, and π_c ∝ n_c s_c, s_c the root mean square of what is left: Neyman's allocation, which minimises the
variance of (a), with a floor. At low noise costs are rare and large, and a pilot may meet none: the controls' own variance, which is
known, says how much there is to regress on, and how small s_c may be. Draws are independent, so that their spread within an item is the error of its mean.

The constants a_c take off what the levels differ by, so stratifying over levels, which does the same, has nothing left to gain; nor
do antithetic pairs (benchmarks/cost_to_error.py).

A binomial chain goes the same way without controls: g is then a_c.

Sources: Nichol & Dhariwal 2021, §3.3 (importance-sampled levels); Owen, Monte Carlo theory, methods and examples, ch. 8–9.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.controls import KINDS, Control, Wiener, fit_controls
from diffusional.evaluation.provenance import fingerprint, tensor_hash
from diffusional.files import load_json, load_tensors, save_json, save_tensors
from diffusional.forward import diffuse
from diffusional.models.binomial import BinomialDiffusionModel
from diffusional.models.chain import Chain, batch_rows
from diffusional.models.diffusion import DiffusionModel

# Evaluations of a pilot, cells of levels, and which part of the pilot goes to all cells alike.
PILOT, CELLS, _EVEN = 3000, 32, 0.3
# Of all visits, this part goes to every cell alike, whatever the pilot found.
FLOOR = 0.1
# How many draws of its own a cell needs to outweigh the others.
_SHRINK = 10.0
# Its neighbours: so many cells on either side. No cell's share is taken for less than this part of the largest of theirs.
_AROUND = 2
_LEAST_OF_AROUND = 0.6
# Gauss–Legendre nodes for each stretch of a cell in continuous time, and the longest stretch in γ.
_NODES, _STRETCH = 4, 0.25
# Rows of one network call.
_ROWS = 2048
# What must agree between a plan and a model.
_SAID = {
    "latents": "a number of latents",
    "gamma": "noise levels γ",
    "space": "a space",
    "decoder": "a decoder",
}
# The tensors of a plan, its controls aside.
_NUMBERS = ("edges", "mass", "constant", "expected", "drawn", "scale")


@dataclass(frozen=True)
class Visits:
    """Where the network is to look: `cell` (V,), `level` (V,) (t, or u; 1 or 0 for the reconstruction), `weight` (V,) = 1/q."""

    cell: Tensor
    level: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Cells of levels with their probabilities, and the control variates with their coefficients.

    Attributes:
        edges: (C + 1,) first levels t of the cells and L + 1; in continuous time the edges in u.
        mass: (C + 1,) π, the reconstruction first: zero where the decoder needs no network.
        constant: (C + 1,) a_c.
        expected: (K, C + 1) b_ck.
        drawn: (K, C + 1) β_ck.
        scale: (C + 1,) s_c, nats.
        controls: K of them.
        provenance: what it was learned from.
    """

    edges: Tensor
    mass: Tensor
    constant: Tensor
    expected: Tensor
    drawn: Tensor
    scale: Tensor
    controls: tuple[Control, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """C, the number of cells of levels."""
        return len(self.edges) - 1

    @property
    def continuous(self) -> bool:
        return self.edges.dtype.is_floating_point

    @classmethod
    def uniform(cls, model: Chain, cells: int = CELLS) -> "Plan":
        """No pilot, no controls: every level alike; z_1, where the network is needed there, as often as a cell.

        >>> from diffusional import schedule, space, likelihood, GaussianDiffusion, Denoiser
        >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0, steps=101))
        >>> decoder = likelihood.LevelPosterior(space.binary((4,)))
        >>> plan = Plan.uniform(DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z), decoder), cells=4)
        >>> plan.edges.tolist(), plan.mass.tolist()
        ([1, 26, 51, 76, 101], [0.0, 0.25, 0.25, 0.25, 0.25])
        """
        edges = _edges(model, cells, torch.ones(_resolution(model), dtype=torch.float64))
        width = (edges[1:] - edges[:-1]).double()
        first = 1 / (len(width) + 1) if model.decoder_uses_network else 0.0
        mass = torch.cat([torch.tensor([first], dtype=torch.float64), (1 - first) * width / width.sum()])
        zero = torch.zeros_like(mass)
        empty = zero.new_zeros(0, len(mass))
        return cls(edges, mass, zero, empty, empty, zero, (), _about(model) | {"method": "uniform"})

    @classmethod
    def fit(
        cls,
        model: Chain,
        data: Tensor,
        evaluations: int = PILOT,
        seed: int = 0,
        controls: tuple[str, ...] = ("factorized", "wiener"),
        cells: int = CELLS,
        condition: Tensor | None = None,
        like: "Plan | None" = None,
    ) -> "Plan":
        """Learn a plan from a pilot of `evaluations` on (training) data (N, *space.shape), encoded.

        The first 30 % visit all cells alike, the rest as these suggest. With `like`, the plan of another model with the same
        levels learned on the same data, the probabilities are that plan's, so that the same noise leads to the same visits.
        Raises DiffusionalError for a pilot of fewer than 100 evaluations, data that the space refuses, and costs that are not
        finite.

        >>> from diffusional import exact, schedule, Continuous, DiffusionModel, GaussianDiffusion, likelihood
        >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
        >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=500))
        >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
        >>> plan = Plan.fit(model, world.sample(1000, torch.Generator().manual_seed(0)))
        >>> bool(plan.scale.max() < 0.01)                              # nats: here Wiener's world is the model
        True
        """
        model.space.check(data)
        if evaluations < 100:
            raise DiffusionalError(f"a pilot of {evaluations} evaluations came; give at least 100 ({PILOT} by default)")
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                plan = _fit(cls, model, data, evaluations, seed, controls, cells, condition, like)
        finally:
            model.train(was_training)
        return plan

    def at(self, v: Tensor) -> Visits:
        """Visits from uniform numbers v (V,) in [0, 1): the cell by inversion of π, the level by what is left of v."""
        edges = torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])
        edges = edges / edges[-1].clone()
        # The last cell with an edge at or below v; an empty cell (π = 0) is never the last.
        cell = (torch.searchsorted(edges, v.double(), right=True) - 1).clamp(0, self.cells)
        within = ((v - edges[cell]) / self.mass[cell]).clamp(0, 1 - 2**-53)
        level, weight = self._levels(cell, within)
        return Visits(cell, level, weight / self.mass[cell])

    def _levels(self, cell: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """A level at `within` [0, 1) of each cell, and the cell's measure: its number of levels, or its length in u."""
        at = (cell - 1).clamp(min=0)
        start, width = self.edges[at], self.edges[at + 1] - self.edges[at]
        if self.continuous:
            level = torch.minimum(start + within * width, self.edges[at + 1])
        else:
            level = start + (within * width).long()
        first = cell == 0
        return torch.where(first, torch.ones_like(level), level), torch.where(first, 1.0, width.double())

    def residuals(
        self, model: Chain, x: Tensor, visits: Visits, noise: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """cost − g (V,), nats, unweighted, of items x (V, *dims) at their visits: one network evaluation each."""
        features = _features(model, self.controls, x, visits, noise)
        return _costs(model, x, visits, noise, condition) - self._subtracted(visits.cell, features)

    def decoder_residuals(self, model: Chain, x: Tensor, noise: Tensor) -> Tensor:
        """−ln p(x|z_1) − g (V,) where the decoder needs no network: every visit has one for nothing."""
        zero = torch.zeros(len(x), dtype=torch.long)
        visits = Visits(zero, zero + 1, torch.ones(len(x), dtype=torch.float64))
        return self.residuals(model, x, visits, noise)

    def _subtracted(self, cell: Tensor, features: Tensor) -> Tensor:
        coefficients = torch.cat([self.expected, self.drawn])[:, cell]  # (2K, V)
        return self.constant[cell] + (features * coefficients.T).sum(1)

    def base(self, model: Chain, x: Tensor) -> Tensor:
        """Σ_{t in c} E_ε g_t (N, C + 1), nats: what is known of each cell without the network, the reconstruction first."""
        width = (self.edges[1:] - self.edges[:-1]).double()
        total = (self.constant[1:] * width).expand(len(x), -1).clone()
        decoder = self.constant[:1].expand(len(x)).clone()
        if not isinstance(model, DiffusionModel):
            return torch.cat([decoder[:, None], total], 1)
        gamma, weight, offset = _quadrature(model, self.edges)
        total += offset
        ends = model.process.schedule.ends()
        for k, control in enumerate(self.controls):
            used = self.expected[k, 1:]
            if bool((used != 0).any()):
                total += control.totals(x, gamma, weight * used[:, None]).cpu()
            if float(self.expected[k, 0]) != 0:
                decoder += float(self.expected[k, 0]) * control.expected_decoding(x, ends[0].to(x.device)).cpu()
        return torch.cat([decoder[:, None], total], 1)

    def check(self, model: Chain) -> None:
        """Raise DiffusionalError unless the plan's levels are the model's."""
        mine, its = _about(model), self.provenance
        for key, what in _SAID.items():
            if key in its and its[key] != mine[key]:
                raise DiffusionalError(
                    f"the plan was learned for {what} that the model doesn't have: {its[key]} there, {mine[key]} here; learn one for "
                    "this model"
                )

    @property
    def draw_variance(self) -> float:
        """What one visit's variance is expected to be, nats² per item: Σ_c (n_c s_c)²/π_c."""
        width = torch.cat([torch.ones(1, dtype=torch.float64), (self.edges[1:] - self.edges[:-1]).double()])
        parts = (width * self.scale).square() / self.mass.clamp(min=1e-12)
        free = parts[0] if self.mass[0] > 0 else self.scale[0] ** 2
        return float(parts[1:].sum() + free)

    def sha256(self) -> str:
        """A hash of all that decides a score: cells, probabilities, coefficients, and the controls' own numbers."""
        return tensor_hash(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in _NUMBERS}
        worlds = {f"{c.name}.{name}": value for c in self.controls for name, value in c.state().items()}
        return own | worlds

    def save(self, path: str | Path) -> None:
        """Write plan.json, to read, and beside it plan.safetensors, with every number to the last bit."""
        path = Path(path)
        record = {
            "cells": self.cells,
            "time": "continuous" if self.continuous else "discrete",
            "edges": self.edges.tolist(),
            "mass": self.mass.tolist(),
            "constant": self.constant.tolist(),
            "expected": {c.name: row.tolist() for c, row in zip(self.controls, self.expected, strict=True)},
            "drawn": {c.name: row.tolist() for c, row in zip(self.controls, self.drawn, strict=True)},
            "scale": self.scale.tolist(),
            "controls": [c.name for c in self.controls],
            "sha256": self.sha256(),
            "provenance": self.provenance,
        }
        save_tensors(path.with_suffix(".safetensors"), self._tensors())
        save_json(path, record)

    @classmethod
    def load(cls, path: str | Path, model: Chain) -> "Plan":
        """Read what `save` wrote. Raises DiffusionalError where it is missing, broken, or made for other levels."""
        path = Path(path)
        record = load_json(path)
        tensors = load_tensors(path.with_suffix(".safetensors"))
        try:
            states: dict[str, dict[str, Tensor]] = {name: {} for name in record["controls"]}
            for key, value in tensors.items():
                name, _, part = key.partition(".")
                if part:
                    states[name][part] = value
            controls = tuple(KINDS[name].from_state(model.space, state) for name, state in states.items())
            own = {name: tensors[name] for name in _NUMBERS}
            plan = cls(**own, controls=controls, provenance=record["provenance"])
            said = {name: record[name] for name in ("edges", "mass", "constant", "scale")}
            said |= {name: list(record[name].values()) for name in ("expected", "drawn")}
            intact = plan.sha256() == record["sha256"] and all(own[name].tolist() == said[name] for name in _NUMBERS)
        except (KeyError, TypeError, AssertionError) as error:
            raise DiffusionalError(f"{path} is no plan for this model ({error}); learn one again") from error
        if not intact:
            raise DiffusionalError(
                f"{path} and {path.with_suffix('.safetensors')} don't belong together; learn the plan again"
            )
        plan.check(model)
        return plan


def _grid(model: Chain) -> Tensor:
    """γ_1 … γ_T, or γ at 65 places of continuous time."""
    if isinstance(model, BinomialDiffusionModel):
        return model.process.gamma(torch.arange(1, model.steps + 1))
    assert isinstance(model, DiffusionModel)
    return (model.process.schedule if model.steps is not None else model.process.schedule.regrid(65)).grid()


def _about(model: Chain) -> dict[str, Any]:
    grid = _grid(model)
    digest = hashlib.sha256(json.dumps([f"{g:.9g}" for g in grid.tolist()]).encode()).hexdigest()
    return {
        "latents": model.steps,
        "gamma": digest[:16],
        "space": model.space.to_dict(),
        "decoder": "network" if model.decoder_uses_network else "z_1 alone",
    }


def _resolution(model: Chain) -> int:
    return model.levels or 4096


def _edges(model: Chain, cells: int, density: Tensor) -> Tensor:
    """Edges of at most `cells` cells of about equal shares of a density over the levels (or over as many parts of [0, 1])."""
    n = len(density)
    cumulative = torch.cat([density.new_zeros(1), density.cumsum(0)])
    cumulative = cumulative / cumulative[-1].clone()
    at = torch.searchsorted(cumulative, torch.linspace(0, 1, min(cells, n) + 1, dtype=torch.float64)[1:-1])
    inner = at.clamp(1, n - 1) if n > 1 else at[:0]
    edges = torch.cat([torch.tensor([0]), inner, torch.tensor([n])]).unique()
    return edges + 1 if model.levels is not None else edges.double() / n


def _slope(model: DiffusionModel, level: Tensor) -> tuple[Tensor, Tensor]:
    """KL_t = offset + slope ‖ε − ε̂‖², MATH (10), at levels (V,)."""
    zero = model.kl_from(torch.zeros(len(level), dtype=torch.float64), level)
    return zero, model.kl_from(torch.ones(len(level), dtype=torch.float64), level) - zero


def _constant(model: Chain, level: Tensor) -> Tensor:
    """What of KL_t no noise changes, at levels (V,): the variance's part, MATH (10), which a binomial chain doesn't have."""
    if not isinstance(model, DiffusionModel):
        return torch.zeros(len(level), dtype=torch.float64)
    return _slope(model, level)[0]


def _quadrature(model: DiffusionModel, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """γ (L,), weight (C, L) and offset (C,) with Σ_{t in c} E KL_t = offset_c + Σ_l weight_cl E ‖x − x̂‖²(γ_l).

    In continuous time over γ, ½ γ'(u) du being ½ dγ: a learned γ(u) may have steps, or corners, between any nodes in u.
    """
    cells = len(edges) - 1
    if model.levels is not None:
        level = torch.arange(1, model.levels + 1)
        cell = torch.searchsorted(edges, level, right=True) - 1
        offset, slope = (value.detach().cpu() for value in _slope(model, level))
        gamma = model.noisy_gamma(level).detach().cpu()
    else:
        nodes, weights = _gauss_legendre()
        at = model.process.schedule.gamma(edges).detach().cpu()
        gamma, cell, slope = [], [], []
        for c in range(cells):
            parts = max(1, math.ceil(float(at[c + 1] - at[c]) / _STRETCH))
            cuts = torch.linspace(float(at[c]), float(at[c + 1]), parts + 1, dtype=torch.float64)
            width = cuts[1:] - cuts[:-1]
            gamma.append((cuts[:-1, None] + width[:, None] * nodes).flatten())
            slope.append((0.5 * width[:, None] * weights).flatten())
            cell.append(torch.full((parts * len(nodes),), c))
        gamma, cell, slope = torch.cat(gamma), torch.cat(cell), torch.cat(slope)
        offset = torch.zeros_like(slope)
    weight = torch.zeros(cells, len(gamma), dtype=torch.float64)
    weight[cell, torch.arange(len(gamma))] = slope * torch.exp(-gamma)
    return gamma, weight, torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, offset)


def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights that add up to one."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)


def _costs(model: Chain, x: Tensor, visits: Visits, noise: Tensor, condition: Tensor | None) -> Tensor:
    """KL_t less its constant part, or −ln p(x|z_1) (V,), float64 on the CPU; one network evaluation each."""
    out = torch.zeros(len(x), dtype=torch.float64)
    for first in (False, True):
        chosen = ((visits.cell == 0) == first).nonzero().squeeze(1)
        for rows in chosen.split(min(_ROWS, batch_rows(model.space))) if len(chosen) else ():
            at = rows.to(x.device)
            c = None if condition is None else condition[at]
            if first:
                out[rows] = model.reconstruction(x[at], noise[at], c).cpu()
            else:
                level = visits.level[rows].to(x.device)
                out[rows] = (model.kl_at(x[at], level, noise[at], c) - _constant(model, level).to(x.device)).cpu()
    return out


def _features(model: Chain, controls: tuple[Control, ...], x: Tensor, visits: Visits, noise: Tensor) -> Tensor:
    """(V, 2K): every control's expected cost at the visit, then its drawn cost less the expected; float64 on the CPU."""
    if not controls:
        return torch.zeros(len(x), 0, dtype=torch.float64)
    assert isinstance(model, DiffusionModel)
    first = visits.cell == 0
    gamma = torch.where(
        first, model.process.schedule.ends()[0].detach().cpu(), model.noisy_gamma(visits.level).detach().cpu()
    )
    _, slope = _slope(model, visits.level)
    factor = (slope.detach().cpu() * torch.exp(-gamma)).to(x.device)
    gamma, at_first = gamma.to(x.device), first.to(x.device)
    z = diffuse(x, gamma, noise)
    expected, drawn = [], []
    for control in controls:
        rows = torch.arange(len(x), device=x.device).split(min(_ROWS, batch_rows(model.space)))
        own = factor * torch.cat([control.squared_error(x[r], z[r], gamma[r]) for r in rows])
        mean = factor * control.expected(x, gamma)
        if bool(first.any()):
            own[at_first] = control.decoding(x[at_first], z[at_first], gamma[at_first])
            mean[at_first] = control.expected_decoding(x[at_first], gamma[at_first][0])
        expected.append(mean)
        drawn.append(own - mean)
    return torch.stack(expected + drawn, 1).cpu()


def _fit(
    kind: type[Plan],
    model: Chain,
    data: Tensor,
    evaluations: int,
    seed: int,
    names: tuple[str, ...],
    cells: int,
    condition: Tensor | None,
    like: Plan | None,
) -> Plan:
    device = next((t.device for t in (*model.parameters(), *model.buffers())), data.device)
    # Their worlds are Gaussian diffusions of their own.
    controls = tuple(fit_controls(names, data, model.space)) if isinstance(model, DiffusionModel) else ()
    plan = _even(kind, model, controls, data, cells)
    generator = torch.Generator().manual_seed(seed)
    known = _known_variance(model, controls, plan.edges, data)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def visit(n: int) -> None:
        """n more evaluations under the plan as it is: their cells, costs and features."""
        item = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(-(-n // len(data)))])[:n]
        v = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        visits = plan.at(v[torch.randperm(n, generator=generator)])
        noise = torch.randn(n, *data.shape[1:], generator=generator).to(device)
        x, c = data[item].to(device), None if condition is None else condition[item].to(device)
        costs = _costs(model, x, visits, noise, c)
        if not bool(torch.isfinite(costs).all()):
            bad = int((~torch.isfinite(costs)).nonzero()[0])
            raise DiffusionalError(
                f"the pilot met a cost that is not finite: {float(costs[bad])} for item {int(item[bad])} at level "
                f"{visits.level[bad].item():g}; nothing was left out"
            )
        rows.append((visits.cell, costs, _features(model, controls, x, visits, noise)))
        if not model.decoder_uses_network:
            zero = Visits(torch.zeros_like(visits.cell), torch.ones_like(visits.level), torch.ones_like(visits.weight))
            other = torch.randn(n, *data.shape[1:], generator=generator).to(device)
            rows.append((zero.cell, _costs(model, x, zero, other, None), _features(model, controls, x, zero, other)))

    even = int(_EVEN * evaluations)
    for n in (even, evaluations - even):
        visit(n)
        cell, costs, features = (torch.cat(parts) for parts in zip(*rows, strict=True))
        plan = _regressed(plan, model, cell, costs, features, known)
    about = _about(model)
    if (
        like is not None
        and all(like.provenance.get(key) == about[key] for key in about)
        and plan.edges.equal(like.edges)
    ):
        plan = replace(plan, mass=like.mass)
    learned = {
        "method": "pilot",
        "evaluations": evaluations,
        "cells": cells,
        "controls": [control.name for control in controls],
        "seed": seed,
        "data_sha256": fingerprint(model.space, data),
        "weights_sha256": tensor_hash(model.state_dict()),
    }
    return replace(plan, provenance=about | learned)


def _even(kind: type[Plan], model: Chain, controls: tuple[Control, ...], data: Tensor, cells: int) -> Plan:
    """Cells of equal shares of Wiener's cost (where there is one) and of γ, or of a binomial chain's levels; each as likely as the next."""
    n = _resolution(model)
    edges = torch.arange(n + 1) + 1 if model.levels is not None else torch.arange(n + 1).double() / n
    density = torch.ones(n, dtype=torch.float64)
    if isinstance(model, DiffusionModel):
        density = _wanted(model, controls, edges, data)
    edges = _edges(model, cells, density)
    count = len(edges)  # C cells of levels, and the reconstruction
    mass = torch.full((count,), 1 / count, dtype=torch.float64)
    if not model.decoder_uses_network:
        mass[0] = 0
        mass = mass / mass.sum()
    zero = torch.zeros(count, dtype=torch.float64)
    none = torch.zeros(len(controls), count, dtype=torch.float64)
    return kind(edges, mass, zero, none, none, zero, controls)


def _wanted(model: DiffusionModel, controls: tuple[Control, ...], edges: Tensor, data: Tensor) -> Tensor:
    """The density of cells over the levels, or parts of [0, 1], between `edges`."""
    ends = model.process.schedule.grid() if model.levels is not None else model.process.schedule.gamma(edges)
    density = (ends[1:] - ends[:-1]).detach().cpu()
    density = density / density.sum()
    for control in controls:
        if isinstance(control, Wiener):
            level = edges[:-1] if model.levels is not None else 0.5 * (edges[1:] + edges[:-1])
            gamma = model.noisy_gamma(level).detach().cpu()
            cost = _slope(model, level)[1].detach().cpu() * torch.exp(-gamma)
            sample = data[:: max(1, len(data) // 256)].cpu()
            kept, noise = control._spectrum(gamma)
            cost = cost * (kept @ control._rotated(sample, control.mean).square().mean(0) + noise)
            density = 0.5 * density + 0.5 * cost / cost.sum()
    return density


def _known_variance(model: Chain, controls: tuple[Control, ...], edges: Tensor, data: Tensor) -> Tensor:
    """Var of each control's drawn cost in each cell (K, C + 1), nats², over three of its levels; the reconstruction's is not known."""
    out = torch.zeros(len(controls), len(edges), dtype=torch.float64)
    if not isinstance(model, DiffusionModel):
        return out
    third = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    level = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * third
    level = (level.long() if not edges.dtype.is_floating_point else level).flatten()
    gamma = model.noisy_gamma(level).detach().cpu()
    factor = _slope(model, level)[1].detach().cpu() * torch.exp(-gamma)
    sample = data[:: max(1, len(data) // 1000)].cpu()
    parts = [(factor.square() * control.variance(sample, gamma)).view(-1, 3).mean(1) for control in controls]
    for k, part in enumerate(parts):
        out[k, 1:] = part
    return out


def _regressed(plan: Plan, model: Chain, cell: Tensor, costs: Tensor, features: Tensor, known: Tensor) -> Plan:
    """Coefficients by ridge regression in each cell towards those of all cells, and π from what is left."""
    cells, k = plan.cells + 1, len(plan.controls)
    members = [(cell == c).nonzero().squeeze(1) for c in range(cells)]
    count = torch.tensor([float(len(rows)) for rows in members], dtype=torch.float64)
    centred_costs, centred = torch.zeros_like(costs), torch.zeros_like(features)
    seen, unit = torch.zeros(2 * k, cells, dtype=torch.float64), torch.ones(cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if len(rows):
            centred_costs[rows] = costs[rows] - costs[rows].mean()
            centred[rows] = features[rows] - features[rows].mean(0)
            seen[:, c] = centred[rows].square().mean(0)
            unit[c] = torch.cat([centred_costs[rows].square().mean()[None], known[:, c]]).max().sqrt().clamp(min=1e-12)
    # What a feature varies by in a cell: what was seen or, of draws, what is known, whichever is more.
    varies = torch.cat([seen[:k], torch.maximum(seen[k:], known)])
    scaled, scaled_costs = centred / unit[cell, None], centred_costs / unit[cell]

    def pooled(first: int, last: int, towards: Tensor) -> Tensor:
        rows = ((cell >= first) & (cell <= last)).nonzero().squeeze(1)
        return _ridge(scaled[rows], scaled_costs[rows], towards, _SHRINK * scaled[rows].square().mean(0))

    none = torch.zeros(2 * k, dtype=torch.float64)
    overall = pooled(1, cells - 1, none)
    constant, scale = torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64)
    coefficients = torch.zeros(2 * k, cells, dtype=torch.float64)
    for c, rows in enumerate(members):
        if not len(rows):
            continue
        towards = pooled(max(1, c - _AROUND), c + _AROUND, overall) if c else none
        b = _ridge(centred[rows], centred_costs[rows], towards, _SHRINK * varies[:, c])
        coefficients[:, c] = b
        constant[c] = (costs[rows] - features[rows] @ b).mean()
        left = (centred_costs[rows] - centred[rows] @ b).square().sum()
        freedom = len(rows) - 1 - 2 * k * len(rows) / (len(rows) + _SHRINK)
        scale[c] = (left / max(freedom, 1.0)).sqrt()
    if k:
        scale[1:] = _informed(scale[1:], count[1:], seen[k:, 1:].sum(0), known[:, 1:].sum(0))
    width = torch.cat([torch.ones(1, dtype=torch.float64), (plan.edges[1:] - plan.edges[:-1]).double()])
    share = _smoothed(width * scale, count)
    if not model.decoder_uses_network:
        share[0] = 0
    even = (share > -1).double() if model.decoder_uses_network else (torch.arange(cells) > 0).double()
    total = share.sum()
    mass = even / even.sum() if not total > 0 else (1 - FLOOR) * share / total + FLOOR * even / even.sum()
    return Plan(plan.edges, mass, constant, coefficients[:k], coefficients[k:], scale, plan.controls, plan.provenance)


def _ridge(features: Tensor, target: Tensor, towards: Tensor | None, pull: Tensor) -> Tensor:
    """Least squares with a pull (F,), in squares of features, towards given coefficients (or none)."""
    towards = torch.zeros(features.shape[1], dtype=torch.float64) if towards is None else towards
    gram = features.T @ features
    right = features.T @ (target - features @ towards)
    return towards + torch.linalg.lstsq(gram + torch.diag(pull + 1e-300), right[:, None]).solution[:, 0]


def _informed(scale: Tensor, count: Tensor, seen: Tensor, known: Tensor) -> Tensor:
    """s_c, where the pilot saw less of the controls' variance than there is: their neighbours' s² per variance, times it."""
    around = [slice(max(0, c - _AROUND), c + _AROUND + 1) for c in range(len(scale))]
    squares = scale.square()
    # Each cell counts for as much as it is like its surroundings: ratios, not sums, whose largest would speak for all.
    ratio = squares / torch.maximum(seen, known).clamp(min=1e-300)
    lent = torch.stack([ratio[some].median() for some in around]) * known
    informative = count * (seen / known.clamp(min=1e-300)).clamp(max=1)
    return ((informative * squares + _SHRINK * lent) / (informative + _SHRINK)).sqrt()


def _smoothed(share: Tensor, count: Tensor) -> Tensor:
    """Each cell's share, lent to by its neighbours (the reconstruction excepted) as if they were _SHRINK draws, and at least
    a part of the largest of four around it: a pilot that met no rare cost in a cell has met its like next to it.
    """
    squares = share[1:].square()
    around = torch.nn.functional.pad(squares[None, None], (1, 1), mode="replicate")[0, 0]
    lent = 0.5 * (around[:-2] + around[2:])
    mixed = ((count[1:] * squares + _SHRINK * lent) / (count[1:] + _SHRINK)).sqrt()
    wide = torch.nn.functional.pad(mixed[None, None], (2, 2), mode="replicate")[0, 0]
    most = torch.stack([wide[:-4], wide[1:-3], wide[3:-1], wide[4:]]).max(0).values
    return torch.cat([share[:1], torch.maximum(mixed, _LEAST_OF_AROUND * most)])
