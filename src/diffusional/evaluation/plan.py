"""The plan of an evaluation: the probabilities of its visits, and the controls that are subtracted. It is learned from training data, saved and
used again.

The levels are divided into cells c, and the reconstruction is a cell of its own. A visit draws a cell with probability π_c, a
level t uniformly in it (so that q_t = π_c/n_c, or a density in continuous time), and one noise ε. With E_k(x, t) functions of item and
level, and h_k(x, t, ε) functions of the noise with mean zero, which the controls offer (control.py),

    g_t(ε) = a_c + Σ_k b_ck E_k(x, t) + Σ_k β_ck h_k(x, t, ε),     E_ε g_t = a_c + Σ_k b_ck E_k(x, t),
    Ŝ(x)   = KL_T + Σ_t E_ε g_t + (1/J) Σ_j [cost_{t_j}(x, ε_j) − g_{t_j}(ε_j)] / q_{t_j}                        (a)

is unbiased for every π > 0 and every coefficient (MATH (22)); Σ_t E_ε g_t needs no network.
Coefficients, and π for the least variance of (a), come from a pilot (pilot.py). Draws are independent, so that their spread within an item
is the error of its mean.

The constants a_c remove the differences between levels, so that stratifying over levels brings no further gain; nor do antithetic pairs
(benchmarks/antithetic.py).

For a chain whose costs are not affine in the squared error of the noise, the controls are those of its family, if it has any; otherwise g is
a_c.

Sources: Nichol & Dhariwal 2021, §3.3 (importance-sampled levels); Owen, Monte Carlo theory, methods and examples, ch. 8–9.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.encoded import DataItems, check_encoded
from diffusional.errors import DiffusionalError
from diffusional.evaluation.control import Control, width_of
from diffusional.evaluation.controls import NAMES, restored
from diffusional.evaluation.noise import stream
from diffusional.evaluation.provenance import tensor_hash
from diffusional.evaluation.stage_controls import StageControls
from diffusional.evaluation.visits import (
    FIRST_SLOPE,
    LevelVisits,
    constants,
    latents_of_cells,
    quadrature,
    visit_costs,
    visit_features,
)
from diffusional.files import json_text, load_json, load_tensors, write_tensors, writing
from diffusional.ledger import sharing
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.seeds import check_seed

# Evaluations of a pilot, of the shortest one that an evaluation makes by itself, and cells of levels.
PILOT, SHORTEST, CELLS = 3000, 500, 32
# Draws record the cell of a visit as int16, with 0 for the reconstruction.
_MOST_CELLS = 2**15 - 1
# The properties that a plan and a model must have in common.
_SAID = {
    "latents": "number of latents",
    "gamma": "noise levels γ (hash)",
    "space": "space",
    "decoder": "decoder",
}
# Entries of the provenance in which two pilots must agree, so that differences of their costs are differences between the models.
_PILOT = ("seed", "data_sha256")
# The hash of the condition, and that of the pilot whose visits were repeated under another condition.
_CONDITION, REPEATED = "condition_sha256", "repeats_condition_sha256"
# The tensors of a plan, without those of its controls.
_NUMBERS = ("edges", "mass", "constant", "expected", "drawn", "scale")


@dataclass(frozen=True, eq=False)
class Met:
    """The record of a pilot: `cell` (P,), `level` (P,) and the residual `left` (P,), cost − g in nats, of its P network evaluations."""

    cell: Tensor
    level: Tensor
    left: Tensor

    @classmethod
    def nothing(cls) -> "Met":
        """Return the record of a plan that was not learned, or was saved by a version that did not record pilots."""
        return cls(torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Plan:
    """Cells of levels with their probabilities, and the control variates with their coefficients, learned by `Plan.fit`.

    For E_k functions of item and level, and h_k functions of the noise with mean zero, the plan predicts the cost of a visit at level t of
    cell c as

        g_t(ε) = a_c + Σ_k b_ck E_k(x, t) + Σ_k β_ck h_k(x, t, ε),

    whose sum is known without a draw. Draws of cells with probabilities π_c estimate the rest, cost − g (MATH (22); Nichol & Dhariwal 2021,
    §3.3). The estimate is unbiased for all coefficients.

    Attributes:
        edges: (C + 1,) first levels t of the cells and L + 1; in continuous time the edges in u.
        mass: (C + 1,) π, the reconstruction first: zero where the decoder needs no network.
        constant: (C + 1,) a_c.
        expected: (E, C + 1) b_ck.
        drawn: (F, C + 1) β_ck.
        scale: (C + 1,) s_c, nats.
        controls: control variates, which together have E functions of item and level and F functions of the noise.
        provenance: the origin of the plan: data, seed, weights and so on.
        met: the pilot's visits and residuals. Scores do not depend on them, and they are not part of `sha256`.

    Raises DiffusionalError unless there are at most 32,767 cells of levels, the edges increase, the probabilities are finite, positive
    (the reconstruction's may be zero) and sum to one, and all tensors have the shapes above and are finite.
    """

    edges: Tensor
    mass: Tensor
    constant: Tensor
    expected: Tensor
    drawn: Tensor
    scale: Tensor
    controls: tuple[Control, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    met: Met = field(default_factory=Met.nothing)

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or len(self.edges) < 2 or not bool((self.edges[1:] > self.edges[:-1]).all()):
            raise DiffusionalError(
                f"expected edges of at least one cell of levels, in increasing order, got {self.edges.tolist()}; learn the plan again"
            )
        if self.cells > _MOST_CELLS:
            raise DiffusionalError(
                f"expected a plan of at most {_MOST_CELLS} cells of levels, got {self.cells}; give fewer cells"
            )
        cells, (expects, draws) = self.cells + 1, width_of(self.controls)
        shapes = {"mass": (cells,), "constant": (cells,), "scale": (cells,)}
        shapes |= {"expected": (expects, cells), "drawn": (draws, cells)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise DiffusionalError(
                    f"expected a finite {name} of shape {shape} for {self.cells} cells of levels and {len(self.controls)} controls, got shape "
                    f"{tuple(value.shape)}{'' if torch.isfinite(value).all() else ' with values that are not finite'}; learn the plan again"
                )
        total = float(self.mass.double().sum())
        if not bool((self.mass[1:] > 0).all() and self.mass[0] >= 0) or abs(total - 1) > 1e-6:
            raise DiffusionalError(
                "expected probabilities `mass` of the reconstruction (at least 0) and of every cell of levels (above 0) that sum to 1, got "
                f"{self.mass.tolist()}, whose sum is {total:g}; divide them by their sum, or learn the plan again"
            )
        if bool((self.scale < 0).any()):
            raise DiffusionalError(f"expected a scale of at least 0 in every cell, got {self.scale.tolist()}")

    @property
    def cells(self) -> int:
        """C, the number of cells of levels."""
        return len(self.edges) - 1

    @property
    def width(self) -> Tensor:
        """n_c (C + 1,), the number of levels of each cell or its length in u; 1 for the reconstruction."""
        return torch.cat([torch.ones(1, dtype=torch.float64), (self.edges[1:] - self.edges[:-1]).double()])

    @property
    def takes_context(self) -> bool:
        """Whether a control needs the priors of a levels head (`Chain.level_priors`): one network evaluation for every item."""
        return any(control.name == "context" for control in self.controls)

    @property
    def learned(self) -> bool:
        """Whether the plan was learned from visits of a pilot or of training, so that it has expectations of the costs."""
        return self.provenance.get("method") in ("pilot", "training")

    @property
    def continuous(self) -> bool:
        return self.edges.dtype.is_floating_point

    @classmethod
    def uniform(cls, model: LatentVariableModel, cells: int = CELLS) -> "Plan":
        """Return a plan without pilot and controls: all levels are equally likely, and z_1, if its decoder needs the network, as likely as a
        cell.

        >>> from diffusional import schedule, space, likelihood, DiffusionModel, GaussianDiffusion, Denoiser
        >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0, steps=101))
        >>> decoder = likelihood.LevelPosterior(space.binary((4,)))
        >>> plan = Plan.uniform(DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z), decoder), cells=4)
        >>> plan.edges.tolist(), plan.mass.tolist()
        ([1, 26, 51, 76, 101], [0.0, 0.25, 0.25, 0.25, 0.25])
        """
        model = visited(model)
        edges = equal_mass_edges(model, cells, torch.ones(resolution(model), dtype=torch.float64))
        width = (edges[1:] - edges[:-1]).double()
        first = 1 / (len(width) + 1) if model.decoder_uses_network else 0.0
        mass = torch.cat([torch.tensor([first], dtype=torch.float64), (1 - first) * width / width.sum()])
        zero = torch.zeros_like(mass)
        empty = zero.new_zeros(0, len(mass))
        return cls(edges, mass, zero, empty, empty, zero, (), about(model) | {"method": "uniform"})

    @classmethod
    def fit(
        cls,
        model: LatentVariableModel,
        data: DataItems,
        evaluations: int = PILOT,
        seed: int = 0,
        controls: tuple[str, ...] = NAMES,
        cells: int = CELLS,
        condition: Condition | None = None,
        like: "Plan | None" = None,
        draws: Callable[[float], float] | None = None,
        across: bool = False,
    ) -> "Plan":
        """Learn a plan from a pilot of `evaluations` on (training) data (N, *space.shape), encoded.

        `controls` are the control variates to try, by name; `"context"`, which takes one evaluation of every item that is evaluated, is used
        only if it is named. `condition` (N, …), a tensor or a dict of tensors, goes with the data of a conditional model. With `like`, the plan of
        another model with the same levels learned on the same data, the probabilities are that plan's, so that the same noise
        leads to the same visits. With `across` as well, the two plans are for a comparison of two conditions: the pilot repeats the visits of
        `like` under this condition, although the other was learned under another one. With `draws`, which returns how many draws an evaluation will take if a visit has a given variance
        (nats²), the pilot goes on while it saves more draws than it takes. Raises DiffusionalError for a pilot of fewer than 100 evaluations, data that the space
        refuses, a condition without a row for every item, and costs that are not finite.

        >>> from diffusional import exact, schedule, Continuous, DiffusionModel, GaussianDiffusion, likelihood
        >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
        >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=500))
        >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((1,))))
        >>> plan = Plan.fit(model, world.sample(1000, torch.Generator().manual_seed(0)))
        >>> bool(plan.scale.max() < 0.01)                              # nats: here Wiener's world is the model
        True
        """
        check_encoded(model.space, data)
        check_condition(condition, len(data))
        check_seed(seed)
        if evaluations < 100:
            raise DiffusionalError(
                f"expected a pilot of at least 100 evaluations, got {evaluations}; the default is {PILOT}"
            )
        assert _learn is not None  # registered by pilot.py, which the package imports
        with evaluation_mode(model), torch.inference_mode():
            found = _learn(visited(model), data, evaluations, seed, controls, cells, condition, like, draws, across)
        # Tensors made in inference mode cannot be used with those that need gradients, such as a learned schedule's.
        own = {name: getattr(found, name).clone() for name in _NUMBERS}
        return replace(found, **own, met=Met(**{name: value.clone() for name, value in vars(found.met).items()}))

    def at(self, v: Tensor) -> LevelVisits:
        """Return the visits that uniform numbers v (V,) in [0, 1) choose: the cell by inverting π, the level by the remainder of v."""
        edges = torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])
        edges = edges / edges[-1].clone()
        # The last cell with an edge at or below v; an empty cell (π = 0) is never the last.
        cell = (torch.searchsorted(edges, v.double(), right=True) - 1).clamp(0, self.cells)
        within = ((v - edges[cell]) / self.mass[cell]).clamp(0, 1 - 2**-53)
        level, weight = self._levels(cell, within)
        return LevelVisits(cell, level, weight / self.mass[cell])

    def draw(
        self, keys: Sequence[bytes], item: Tensor, draw: Tensor, purpose: bytes = b"visit"
    ) -> tuple[LevelVisits, list[np.random.Generator]]:
        """Return the visits (V,) of draws `draw` (V,) of items `item` (V,), and their streams, from which their noise is drawn next."""
        streams = [stream(keys[i], j, purpose) for i, j in zip(item.tolist(), draw.tolist(), strict=True)]
        return self.at(torch.tensor([g.random() for g in streams], dtype=torch.float64)), streams

    def _levels(self, cell: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """Return a level at `within` [0, 1) of each cell, and the cell's measure: its number of levels, or its length in u."""
        at = (cell - 1).clamp(min=0)
        start, width = self.edges[at], self.edges[at + 1] - self.edges[at]
        if self.continuous:
            level = torch.minimum(start + within * width, self.edges[at + 1])
        else:
            level = start + (within * width).long()
        first = cell == 0
        return torch.where(first, torch.ones_like(level), level), torch.where(first, 1.0, width.double())

    def residuals(
        self,
        model: Chain,
        x: Tensor,
        visits: LevelVisits,
        noise: Tensor,
        condition: Condition | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return cost − g (V,), nats, unweighted, of items x (V, *dims) at their visits: one network evaluation each. `context`
        (V, K, *dims) is that of the items, if a control needs it.
        """
        return visit_costs(model, x, visits, noise, condition) - self.subtracted(model, x, visits, noise, context)

    def subtracted(
        self, model: Chain, x: Tensor, visits: LevelVisits, noise: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return g (V,) of items x (V, *dims) at their visits, nats. It takes no network evaluation."""
        return self.subtract(visits.cell, *visit_features(model, self.controls, x, visits, noise, context))

    def decoder_residuals(self, model: Chain, x: Tensor, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Return −ln p(x|z_1) − g (V,) for a decoder without network, of which every visit has a draw."""
        return self.residuals(model, x, LevelVisits.of_decoder(len(x)), noise, None, context)

    def subtract(self, cell: Tensor, expected: Tensor, drawn: Tensor) -> Tensor:
        """Return g (V,) from the controls' functions (V, E) and (V, F), `visit_features`."""
        of_item = (expected * self.expected[:, cell].T).sum(1)
        return self.constant[cell] + of_item + (drawn * self.drawn[:, cell].T).sum(1)

    @torch.no_grad()
    def base(self, model: Chain, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return Σ_{t in c} E_ε g_t (N, C + 1), nats: the part of each cell's cost that needs no visit, the reconstruction first. `context`
        (N, K, *dims) is that of the items, if a control needs it.
        """
        total = (self.constant[1:] * self.width[1:]).expand(len(x), -1).clone()
        decoder = self.constant[:1].expand(len(x)).clone()
        costs = model.affine
        if model.affine_levels():
            total = total + constants(model, self.edges) + self._of_stages(x)
            return torch.cat([decoder[:, None], total], 1)
        if costs is None:
            if not bool((self.expected != 0).any()) or model.timesteps is None:
                return torch.cat([decoder[:, None], total + constants(model, self.edges)], 1)
            # Without γ, controls take the numbers of the latents.
            gamma, weight = latents_of_cells(model.timesteps, self.edges)
            offset, start = constants(model, self.edges), torch.ones(1, dtype=torch.float64)
            once = torch.ones(1, 1, dtype=torch.float64)
        else:
            gamma, weight, offset = quadrature(costs, self.edges)
            start = costs.end_gammas()[:1].detach().cpu().double()
            once = torch.full((1, 1), FIRST_SLOPE, dtype=torch.float64)
        total += offset
        begin = 0
        for control in self.controls:
            used = self.expected[begin : begin + len(control.expects)]  # (E, C + 1)
            begin += len(control.expects)
            if bool((used[:, 1:] != 0).any()):
                total += torch.einsum(
                    "bce,ec->bc", control.totals(x, gamma, weight, context=context).cpu(), used[:, 1:]
                )
            if bool((used[:, 0] != 0).any()):
                decoder += control.totals(x, start, once, first=True, context=context).cpu()[:, 0] @ used[:, 0]
        return torch.cat([decoder[:, None], total], 1)

    def _of_stages(self, x: Tensor) -> Tensor:
        """Return the sum over the levels of each cell (N, C) of what the controls of stages expect."""
        total, begin = torch.zeros(len(x), self.cells, dtype=torch.float64), 0
        for control in self.controls:
            first, begin = begin, begin + len(control.expects)
            used = self.expected[first:begin, 1:]
            if isinstance(control, StageControls) and bool((used != 0).any()):
                total += torch.einsum("bce,ec->bc", control.sums(x, self.edges), used)
        return total

    def check(self, model: LatentVariableModel) -> None:
        """Raise DiffusionalError unless the plan's levels are the model's."""
        mine, its = about(visited(model)), self.provenance
        for key, what in _SAID.items():
            if key in its and its[key] != mine[key]:
                raise DiffusionalError(
                    f"expected a plan for the model's {what}, {mine[key]}, got one for {its[key]}; learn a plan for this model"
                )

    @property
    def draw_variance(self) -> float:
        """The expected variance of one visit, nats² per item: Σ_c (n_c s_c)²/π_c."""
        return self._of_one_visit(self.scale.square())

    @property
    def pilot_freedom(self) -> float:
        """The degrees of freedom of `draw_variance`, from the spread of the pilot's squared residuals: few if a few visits dominate it, infinite
        for a plan without a record of its pilot.
        """
        return self._pilot_freedom(self.met.left)

    @property
    def freedom_of_a_draw(self) -> float:
        """The degrees of freedom that each draw adds to the variance of draws, as the pilot expects: 3 (E q)²/E q², with q the square of a
        draw. It is 1 for normal draws, about 3 p if a part p of the draws dominates the variance, and infinite for a plan without a record
        of its pilot.
        """
        return self._freedom_of_a_draw(self.met.left)

    def paired_variance(self, other: "Plan") -> float:
        """Return the expected variance, nats² per item, of the difference of two models' costs at one visit.

        It is Σ_c n_c² d_c²/π_c, where d_c² is the mean square of the difference of the two pilots' residuals in cell c, if both made the
        same visits (`Plan.fit(…, like=…)`). Otherwise only the models' scales are known, and d_c = |s_c − s'_c| is the smallest
        possible difference of two residuals with these scales. Zero if the plans visit different levels.
        """
        if not (torch.equal(self.edges, other.edges) and torch.equal(self.mass, other.mass)):
            return 0.0
        squares = (self.scale - other.scale).square()
        count = torch.bincount(self.met.cell, minlength=self.cells + 1)
        apart = self._apart(other)
        if len(apart):
            total = torch.zeros_like(squares).index_add_(0, self.met.cell, apart.square())
            # A decoder without network is not visited: for its costs the difference of the scales is used.
            squares = torch.where(count > 0, total / count.clamp(min=1), squares)
        return self._of_one_visit(squares)

    def paired_freedom(self, other: "Plan") -> float:
        """Return the degrees of freedom of `paired_variance`, from the spread of the pilots' squared differences: few if a few visits
        dominate that variance, infinite if the pilots did not make the same visits.
        """
        return self._pilot_freedom(self._apart(other))

    def paired_freedom_of_a_draw(self, other: "Plan") -> float:
        """Return the degrees of freedom that each pair of draws adds to the variance of their differences, as `freedom_of_a_draw`."""
        return self._freedom_of_a_draw(self._apart(other))

    def _pilot_freedom(self, left: Tensor) -> float:
        """Return the degrees of freedom of the variance of one visit, as estimated from the residuals `left` (P,) of the pilot's visits."""
        if not len(left):
            return math.inf
        chance, weight = self._chances()
        return sharing(chance * (weight * left).square())

    def _freedom_of_a_draw(self, left: Tensor) -> float:
        """Return 3 (E q)²/E q² of the squares q of draws, from the residuals `left` (P,) of the pilot's visits."""
        if not len(left):
            return math.inf
        chance, weight = self._chances()
        squares = (weight * left).square()
        fourth = float((chance * squares.square()).sum())
        return 3 * float((chance * squares).sum()) ** 2 / fourth if fourth > 0 else math.inf

    def _chances(self) -> tuple[Tensor, Tensor]:
        """Return, for each of the pilot's visits, its share (P,) of the visits of an evaluation, and the weight n_c/π_c (P,) of its cost there."""
        cell = self.met.cell
        count = torch.bincount(cell, minlength=self.cells + 1).clamp(min=1)
        mass = self.mass.clamp(min=1e-12)
        return (mass / count)[cell], (self.width / mass)[cell]

    def _apart(self, other: "Plan") -> Tensor:
        """Return the differences (P,) of the residuals of both pilots at the same visits; empty if the visits differ."""
        ours, theirs = self.met, other.met
        alike = same_pilot(self.provenance, other.provenance)
        if not alike or not torch.equal(ours.level, theirs.level) or not torch.equal(ours.cell, theirs.cell):
            return ours.left[:0]
        return ours.left - theirs.left

    def _of_one_visit(self, squares: Tensor) -> float:
        """Return Σ_c n_c² squares_c/π_c, with squares (C + 1,) the variance of one cost in each cell."""
        parts = self.width.square() * squares / self.mass.clamp(min=1e-12)
        free = parts[0] if self.mass[0] > 0 else squares[0]
        return float(parts[1:].sum() + free)

    def contrasted(self, other: "Plan") -> tuple["Plan", "Plan"]:
        """Return both plans with the probabilities for the difference of their costs, for `compare`.

        π_c ∝ n_c √(E d²) minimises the variance of the difference, with d the difference of the residuals of both pilots at the same visit;
        a tenth of all visits is divided equally among the cells. The bounds themselves are then estimated less accurately. Plans whose
        pilots did not make the same visits are returned unchanged, and plans without a difference.
        """
        apart = self._apart(other)
        assert _contrast is not None  # registered by pilot.py
        mass = _contrast(self, apart) if len(apart) and bool((apart != 0).any()) else None
        return (self, other) if mass is None else (replace(self, mass=mass), replace(other, mass=mass))

    def sha256(self) -> str:
        """Return a hash of everything that a score depends on: cells, probabilities, coefficients, and the state of the controls."""
        return tensor_hash(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in _NUMBERS}
        worlds = {f"{c.name}.{name}": value for c in self.controls for name, value in c.state().items()}
        return own | worlds

    def _names(self, kind: str) -> list[str]:
        """Return the names of all functions of item and level ("expects"), or of all functions of the noise ("draws")."""
        return [f"{control.name}: {name}" for control in self.controls for name in getattr(control, kind)]

    def save(self, path: str | Path) -> None:
        """Write plan.json, to read, and beside it plan.safetensors, with every number to the last bit."""
        path = Path(path)
        record = {
            "cells": self.cells,
            "time": "continuous" if self.continuous else "discrete",
            "edges": self.edges.tolist(),
            "mass": self.mass.tolist(),
            "constant": self.constant.tolist(),
            "expected": dict(zip(self._names("expects"), self.expected.tolist(), strict=True)),
            "drawn": dict(zip(self._names("draws"), self.drawn.tolist(), strict=True)),
            "scale": self.scale.tolist(),
            "controls": [c.name for c in self.controls],
            "sha256": self.sha256(),
            "provenance": self.provenance,
        }
        met = {f"pilot.{name}": value for name, value in vars(self.met).items()}
        # Both or neither: a failed write must not combine the numbers of one plan with the text of another.
        with writing(path.with_suffix(".safetensors"), path) as (tensors, text):
            write_tensors(tensors, self._tensors() | met)
            text.write_text(json_text(record), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, model: LatentVariableModel) -> "Plan":
        """Read what `save` wrote. Raises DiffusionalError where it is missing, broken, or made for other levels."""
        path = Path(path)
        record = load_json(path)
        tensors = load_tensors(path.with_suffix(".safetensors"))
        try:
            states: dict[str, dict[str, Tensor]] = {name: {} for name in [*record["controls"], "pilot"]}
            for key, value in tensors.items():
                name, _, part = key.partition(".")
                if part:
                    states[name][part] = value
            pilot = states.pop("pilot")
            met = Met(**pilot) if pilot else Met.nothing()
            chain = visited(model)
            controls = tuple(restored(name, chain, state) for name, state in states.items())
            own = {name: tensors[name] for name in _NUMBERS}
            plan = cls(**own, controls=controls, provenance=record["provenance"], met=met)
            said = {name: record[name] for name in ("edges", "mass", "constant", "scale")}
            said |= {name: list(record[name].values()) for name in ("expected", "drawn")}
            intact = plan.sha256() == record["sha256"] and all(own[name].tolist() == said[name] for name in _NUMBERS)
        except (KeyError, TypeError, AssertionError) as error:
            raise DiffusionalError(
                f"expected a plan for this model in {path}, got one of another version or kind ({error}); learn the plan again"
            ) from error
        if not intact:
            raise DiffusionalError(
                f"expected {path} and {path.with_suffix('.safetensors')} to be of the same plan, got different numbers; learn the plan again"
            )
        plan.check(model)
        return plan


# Returns a plan from a pilot; the arguments are those of `Plan.fit`, without its defaults.
Learner = Callable[
    [
        Chain,
        DataItems,
        int,
        int,
        tuple[str, ...],
        int,
        Condition | None,
        Plan | None,
        Callable[[float], float] | None,
        bool,
    ],
    Plan,
]
_learn: Learner | None = None
# Returns the probabilities of a plan from the residuals (P,) of its pilot's visits.
_contrast: Callable[[Plan, Tensor], Tensor] | None = None


def learner(function: Learner) -> Learner:
    """Register the function that `Plan.fit` calls. It is pilot.py's, which imports this module and not the other way round."""
    global _learn
    _learn = function
    return function


def contraster(function: Callable[[Plan, Tensor], Tensor]) -> Callable[[Plan, Tensor], Tensor]:
    """Register the function that `Plan.contrasted` calls, as `learner`."""
    global _contrast
    _contrast = function
    return function


def visited(model: LatentVariableModel) -> Chain:
    """Return the chain whose levels an evaluation of the model visits. Raises DiffusionalError for a model without one."""
    chain = model.visited()
    if chain is None:
        raise DiffusionalError(
            f"expected a model with levels that can be visited one by one, for a plan, got a {type(model).__name__}; evaluate it without a plan"
        )
    return chain


def about(model: Chain) -> dict[str, Any]:
    """Return the properties of a model by which a plan checks that it fits the model."""
    grid = model.noise_levels()
    digest = hashlib.sha256(json.dumps([f"{g:.9g}" for g in grid.tolist()]).encode()).hexdigest()
    return {
        "latents": model.steps,
        "gamma": digest[:16],
        "space": model.space.to_dict(),
        "decoder": "network"
        if model.decoder_uses_network
        else "z_1 alone",  # vocabulary: allow, since plans have this value
    }


def same_pilot(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two plans, by their provenance, are from pilots on the same items with the same conditions and noise, or from one that
    repeated the visits of the other under another condition (`Plan.fit(…, across=True)`).
    """
    if not all(one.get(key) == other.get(key) for key in _PILOT):
        return False
    own, theirs = one.get(_CONDITION), other.get(_CONDITION)
    return own == theirs or one.get(REPEATED, own) == theirs or other.get(REPEATED, theirs) == own


def resolution(model: Chain) -> int:
    """Return the number of possible edges of cells: levels, or parts of continuous time, of which each section has the same number."""
    sections = len(model.sections()) or 1
    return model.timesteps or sections * (4096 // sections)


def equal_mass_edges(model: Chain, cells: int, density: Tensor) -> Tensor:
    """Return edges of at most `cells` cells of about equal shares of a density over the levels (or over as many parts of [0, 1]).

    No cell has levels of two sections of a chain: these are further edges, and sections with levels share the cells equally.
    """
    if cells < 1:
        raise DiffusionalError(f"expected at least one cell of levels (cells), got {cells}")
    n, bounds = len(density), torch.zeros(0, dtype=torch.long)
    if sections := model.sections():
        first = 1 if model.timesteps is not None else 0
        starts = [round((one.first - first) * (1 if first else n)) for one in sections]
        bounds = torch.tensor(starts[1:], dtype=torch.long)
        density = density.clone()
        for one, start, end in zip(sections, starts, [*starts[1:], n], strict=True):
            density[start:end] *= float(one.listed) / density[start:end].sum()
        if not bool((density > 0).any()):
            density = torch.ones_like(density)
    cumulative = torch.cat([density.new_zeros(1), density.cumsum(0)])
    cumulative = cumulative / cumulative[-1].clone()
    at = torch.searchsorted(cumulative, torch.linspace(0, 1, min(cells, n) + 1, dtype=torch.float64)[1:-1])
    inner = at.clamp(1, n - 1) if n > 1 else at[:0]
    edges = torch.cat([torch.tensor([0]), inner, bounds, torch.tensor([n])]).unique()
    return edges + 1 if model.timesteps is not None else edges.double() / n
