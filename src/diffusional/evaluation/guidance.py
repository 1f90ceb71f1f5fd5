"""The bound of every guidance weight from one table of (x̂_∅, x̂_c), MATH (26).

At one draw of (t, ε), with δ = ε̂_c − ε̂_∅,

    ‖ε − ε̂_w‖² = e_∅ + w (e_c − e_∅ − d) + w² d,      e = ‖ε − ε̂‖²,  d = ‖δ‖²,

so that two evaluations of the network, with and without the condition, give KL_t for all w. With a decoder that needs no network the whole
NELBO is this quadratic; with one that does, −ln p_w(x|z_1) is computed from the two predictions for every w asked for.

For optimal denoisers in continuous time NELBO(w) = NELBO(1) + (w − 1)² I(x; c). The table has both estimates of I(x; c): the curvature
Σ E d, and the direct one, NELBO(0) − NELBO(1). Where the denoisers are not optimal they differ, and neither is a bound of I(x; c).

Of a system of several stages the same weight guides all stages that take the condition, or those in `stages` (guidance_stages.py).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import as_the_network, check_model
from diffusional.evaluation.guidance_stages import GuidedStages
from diffusional.evaluation.noise import normal
from diffusional.evaluation.plan import SHORTEST, Plan, visited
from diffusional.evaluation.shares import shared
from diffusional.evaluation.sweep import mean_of_items
from diffusional.evaluation.visit_records import VisitRecords
from diffusional.evaluation.visits import LevelVisits, network_rows, slopes
from diffusional.forward import diffuse
from diffusional.ledger import Estimate, with_error
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.denoiser import unassisted
from diffusional.models.guidance import combined
from diffusional.seeds import check_seed

# Visits of one block; those of a system keep their predictions.
_BLOCK, _STAGES_BLOCK = 4096, 1024


@dataclass(frozen=True, eq=False)
class GuidanceTable:
    """The NELBO of the guided chain for every weight w, from the same draws; all estimates in nats.

    Attributes:
        weights: the weights w.
        nelbo: for every weight, the NELBO of its chain.
        rise: for every weight, NELBO(w) − NELBO(1), with a paired error.
        curvature: Σ_t of the costs' second-order coefficients in w: for optimal denoisers I(x; c).
        direct: NELBO(0) − NELBO(1): for optimal denoisers I(x; c).
        optimum: the w of the least NELBO, if the NELBO is a quadratic in w; None for decoders that need the network.
        items: (N, W) the NELBO of every item for every weight, nats.
        dimensions: D of x.
        stages: for every guided stage of a system, its part of `rise`, nats; {} for a single model.
    """

    weights: tuple[float, ...]
    nelbo: tuple[Estimate, ...]
    rise: tuple[Estimate, ...]
    curvature: Estimate
    direct: Estimate
    optimum: float | None
    items: Tensor
    dimensions: int
    stages: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The weight of the table with the least NELBO."""
        return min(zip(self.weights, self.nelbo, strict=True), key=lambda pair: pair[1].value)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "weights": list(self.weights),
            "nelbo_nats": [one.to_dict() for one in self.nelbo],
            "nelbo": [one.to("bits/dim", self.dimensions).to_dict() for one in self.nelbo],
            "rise_nats": [one.to_dict() for one in self.rise],
            "curvature_nats": self.curvature.to_dict(),
            "direct_nats": self.direct.to_dict(),
            "optimum": self.optimum,
            "best": self.best,
            "items": len(self.items),
            "network_evaluations": self.direct.network_evaluations,
            **({"stages": self._of_stages()} if self.stages else {}),
        }

    def _of_stages(self) -> dict[str, list[dict[str, Any]]]:
        return {name: [one.to_dict() for one in rises] for name, rises in self.stages.items()}

    def __str__(self) -> str:
        lines = [f"{'weight':>8}  {'NELBO':<44}  NELBO(w) − NELBO(1), nats"]
        for k, (w, nelbo, rise) in enumerate(zip(self.weights, self.nelbo, self.rise, strict=True)):
            bits = str(nelbo.to("bits/dim", self.dimensions))
            parts = [f"{name} {_change(rises[k])}" for name, rises in self.stages.items()]
            of_stages = f" ({', '.join(parts)})" if len(parts) > 1 else ""
            lines.append(f"{w:>8g}  {bits:<44}  {_change(rise)}{of_stages}")
        lines.append(f"I(x; c) if the denoisers are optimal: {self.curvature} by the curvature, {self.direct} directly")
        if self.optimum is not None:
            lines.append(f"least NELBO at w = {self.optimum:.3f}")
        return "\n".join(lines)


def _change(rise: Estimate) -> str:
    """Return a difference with its Monte Carlo error, to two digits of it; "0" for w = 1.

    >>> _change(Estimate(-0.00025, 0.000072, 0.0, 50, 400)), _change(Estimate(0.0, 0.0, 0.0, 50, 400))
    ('-0.000250 ± 0.000072', '0')
    """
    value, error = with_error(rise.value, rise.error)
    return f"{value} ± {error}" if rise.error else "0" if not rise.value else value


def guidance_table(
    model: LatentVariableModel,
    data: Tensor,
    weights: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
    *,
    condition: Condition,
    visits: int = 16,
    null: Any = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    stages: Collection[str] | None = None,
) -> GuidanceTable:
    """Estimate the NELBO of the guided chain, MATH (26), for all `weights` from the same `visits` draws of every item of `data`
    (N, *space.shape), encoded; nats.

    Guidance is x̂_w = x̂_∅ + w (x̂_c − x̂_∅) (Ho & Salimans 2022), and ‖ε − ε̂_w‖² is a quadratic in w. A draw takes two network evaluations; one at
    a stage of a system that is not guided. With the same plan, seed and visits, `evaluate(model.guided(w), …)` gives the same number for each
    w, to rounding.

    Args:
        condition: one row per item.
        visits: draws of (t, ε) for each item, at least 2.
        null: the condition that stands for none, as in `df.Guided`.
        plan: learned before; by default a short pilot on the data learns it, for w = 1.
        progress: called with (visits done, visits in all).
        stages: of a system of several stages, the names of those that are guided; by default those that take the condition.

    Raises DiffusionalError for a model other than a Gaussian diffusion model or a system of them, one with a learned variance (evaluate it at each weight
    instead), and a network that cannot predict without a condition.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-2.0], [2.0]]), torch.full((2, 1, 1), 0.25))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
    >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
    >>> x, c = world.sample_labelled(500, torch.Generator().manual_seed(0))
    >>> table = guidance_table(model, x, [0.0, 1.0, 3.0], condition=c)
    >>> table.best, abs(table.curvature.value - world.label_information()) < 4 * table.curvature.error + 0.01
    (1.0, True)
    """
    check_model(model)
    if not weights or visits < 2:
        raise DiffusionalError(f"expected one or more weights and at least 2 visits, got {weights} and {visits}")
    if not all(math.isfinite(w) for w in weights):
        raise DiffusionalError(f"expected finite weights, got {', '.join(f'{w:g}' for w in weights)}")
    chain, of_stages = visited(model), hasattr(model, "stages")
    if stages is not None and not of_stages:
        raise DiffusionalError(
            f"stages={list(stages)} was given for a {type(model).__name__}, which is a single model; leave it out"
        )
    predictions = GuidedStages(model, stages, null) if of_stages else model.two_predictions(null)
    model.space.check(data)
    check_condition(condition, len(data))
    if condition is None:
        raise DiffusionalError("guidance requires a condition, got none; give condition=…, one row per item")
    check_seed(seed)
    data = as_the_network(model, data)
    pilot = 0
    with evaluation_mode(model):
        if plan is None:
            plan = Plan.fit(chain, data, SHORTEST, seed, condition=condition)
            pilot = int(plan.provenance["evaluations"])
        with torch.inference_mode():
            records, kind = VisitRecords(chain, plan, data, seed, condition), _StageDraws if of_stages else _Draws
            return kind(chain, predictions, records, visits, weights, progress).table(pilot)


class _Draws:
    """The weighted residuals of `visits` draws of every item, as functions of w."""

    def __init__(
        self,
        model: Any,
        guided: Any,
        records: VisitRecords,
        visits: int,
        weights: Sequence[float],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.guided, self.records, self.visits = model, guided, records, visits
        # w = 0 and w = 1 are always computed, for the differences.
        self.weights = torch.tensor([*weights, 0.0, 1.0], dtype=torch.float64)
        n, w = len(records.data), len(self.weights)
        # The coefficients of 1, w and w² in the KL of each draw, and the decoder's cost for each w.
        found = shared(
            torch.arange(n),
            {"kl": (visits, 3), "decoder": (visits, w)},
            self._visit,
            block=max(1, _BLOCK // visits),
            progress=None if progress is None else lambda done, every: progress(done * visits, every * visits),
            about=lambda place: " for one of the weights",
        )
        self.kl, self.decoder = found["kl"], found["decoder"]

    def _visit(self, rows: Tensor) -> dict[str, Tensor]:
        """Draw for items `rows` (n,) what `VisitRecords` draws for them: the same noise at the same levels."""
        records, model, plan = self.records, self.model, self.records.plan
        chosen, streams, noise, x, c, context = _drawn(records, model, self.visits, rows)
        kl, decoder = self._costs(x, chosen, noise, c)
        less = plan.subtracted(model, x, chosen, noise, context)
        first = (chosen.cell == 0)[:, None]
        kl[:, 0] -= torch.where(first[:, 0], 0.0, less)
        decoder = torch.where(first, chosen.weight[:, None] * (decoder - less[:, None]), 0.0)
        if not model.decoder_uses_network:
            other = normal(streams, model.visit_shape).to(records.device, records.data.dtype)
            decoder = plan.decoder_residuals(model, x, other, context)[:, None].expand_as(decoder)
        kl = torch.where(first, 0.0, chosen.weight[:, None] * kl)
        return {"kl": kl.view(len(rows), self.visits, -1), "decoder": decoder.reshape(len(rows), self.visits, -1)}

    def _costs(self, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        """Return the coefficients (V, 3) of KL_t, without its constant part, in 1, w, w², and the decoder's costs (V, W)."""
        model = self.model
        kl, decoder = torch.zeros(len(x), 3).double(), torch.zeros(len(x), len(self.weights)).double()
        for first in (False, True):
            those = ((visits.cell == 0) == first).nonzero().squeeze(1)
            for some in those.split(network_rows(model)) if len(those) else ():
                at = some.to(x.device)
                level = visits.level[some].to(x.device)
                gamma = model.end_gammas()[0].expand(len(some)) if first else model.noisy_gamma(level)
                z = diffuse(x[at], gamma, noise[at])
                given, without = self.guided.both(z, gamma, rows_of(condition, at))
                if first:
                    for k, w in enumerate(self.weights.tolist()):
                        said = combined(given, without, w) if model.likelihood.uses_network else unassisted(z, gamma)
                        decoder[some, k] = -model.likelihood.log_prob(x[at], said).double().cpu()
                    continue
                e_c, e_0 = given.squared_error(x[at], noise[at]), without.squared_error(x[at], noise[at])
                d = given.squared_distance(without)
                slope = slopes(model, visits.level[some])[1].detach().cpu().double()
                kl[some] = slope[:, None] * torch.stack([e_0, e_c - e_0 - d, d], 1).cpu().double()
        return kl, decoder

    def table(self, pilot: int) -> GuidanceTable:
        evaluations = 2 * len(self.kl) * self.visits
        powers = self.weights[:, None] ** torch.arange(3)
        costs = torch.einsum("njp,wp->njw", self.kl, powers) + self.decoder
        quadratic = self.kl.mean((0, 1))
        optimum = None
        if not self.model.decoder_uses_network and float(quadratic[2]) > 0:
            optimum = float(-quadratic[1] / (2 * quadratic[2]))
        return _table(self.records, self.weights, costs, self.kl[:, :, 2], optimum, evaluations + pilot)


def _drawn(records: VisitRecords, model: Any, visits: int, rows: Tensor) -> tuple[Any, ...]:
    """Return what `VisitRecords` draws for items `rows` (n,): visits, streams and noise; and the items, their conditions and contexts."""
    row, column = rows.repeat_interleave(visits), torch.arange(visits).repeat(len(rows))
    chosen, streams = records.plan.draw(records.keys, row, column)
    noise = normal(streams, model.visit_shape).to(records.device, records.data.dtype)
    x = records.data[row].to(records.device)
    return chosen, streams, noise, x, moved(rows_of(records.condition, row), records.device), records.context_of(row)


class _StageDraws:
    """The weighted residuals of `visits` draws of every item of a system, for every weight."""

    def __init__(
        self,
        model: Any,
        stages: GuidedStages,
        records: VisitRecords,
        visits: int,
        weights: Sequence[float],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.stages, self.records, self.visits = model, stages, records, visits
        # w = 2 determines the quadratic together with w = 0 and w = 1.
        self.weights = [*(float(w) for w in weights), 2.0, 0.0, 1.0]
        n = len(records.data)
        found = shared(
            torch.arange(n),
            {"costs": (visits, len(self.weights)), "beside": (visits,), "section": (visits,)},
            self._visit,
            block=max(1, _STAGES_BLOCK // visits),
            progress=None if progress is None else lambda done, every: progress(done * visits, every * visits),
        )
        self.costs, self.beside, self.section = found["costs"], found["beside"], found["section"].long()

    def _visit(self, rows: Tensor) -> dict[str, Tensor]:
        """Draw for items `rows` (n,) what `VisitRecords` draws for them: the same noise at the same levels."""
        records, model, plan = self.records, self.model, self.records.plan
        chosen, streams, noise, x, c, context = _drawn(records, model, self.visits, rows)
        costs = self.stages.costs(x, chosen, noise, c, self.weights)
        costs = chosen.weight[:, None] * (costs - plan.subtracted(model, x, chosen, noise, context)[:, None])
        other = normal(streams, model.visit_shape).to(records.device, records.data.dtype)
        beside = plan.decoder_residuals(model, x, other, context)
        for values in model.beside(x, noise, c).values():
            beside = beside + values.double().cpu()
        shape = (len(rows), self.visits)
        section = self.stages.section(chosen)
        return {"costs": costs.view(*shape, -1), "beside": beside.view(shape), "section": section.view(shape)}

    def table(self, pilot: int) -> GuidanceTable:
        costs, section = self.costs, self.section
        listed = self.stages.quadratic[section]
        at_two, at_zero, at_one = costs[:, :, -3:].unbind(2)
        second = torch.where(listed, 0.5 * (at_two - 2 * at_one + at_zero), 0.0)
        guided, optimum = self.stages.guided, None
        if bool(self.stages.quadratic[guided].all()) and float(second.mean()) > 0:
            optimum = float(0.5 - 0.5 * (at_one - at_zero).mean() / second.mean())
        evaluations = int((1 + guided[section].long()).sum()) + pilot
        every = torch.cat([costs[:, :, :-3], costs[:, :, -2:]], 2)
        weights = torch.tensor([*self.weights[:-3], 0.0, 1.0], dtype=torch.float64)
        whole = every + self.beside[:, :, None]
        parts = {
            name: torch.where(torch.tensor([stage == name for stage in self.stages.stages])[section, None], every, 0.0)
            for name in self.stages.names
        }
        return _table(self.records, weights, whole, second, optimum, evaluations, parts)


def _table(
    records: VisitRecords,
    weights: Tensor,
    costs: Tensor,
    second: Tensor,
    optimum: float | None,
    evaluations: int,
    stages: Mapping[str, Tensor] | None = None,
) -> GuidanceTable:
    """Return the table.

    Args:
        weights: (W + 2,), of which the last two are 0 and 1.
        costs: (N, J, W + 2) the weighted residuals of J draws of every item.
        second: (N, J) the coefficients of w² in those that are quadratic in w.
        evaluations: of the network, without those of the items' context.
        stages: (N, J, W + 2) the parts of `costs` of the guided stages by name.
    """
    n, visits = costs.shape[:2]
    evaluations += n if records.context is not None else 0
    known, zero = records.known(), torch.zeros(n, dtype=torch.float64)

    def mean(values: Tensor, known: Tensor = zero) -> Estimate:
        return mean_of_items(known + values.mean(1), values.var(1) / visits, evaluations)

    def rises(values: Tensor) -> tuple[Estimate, ...]:
        return tuple(mean(values[:, :, k] - values[:, :, -1]) for k in asked)

    asked = range(len(weights) - 2)
    return GuidanceTable(
        tuple(weights[:-2].tolist()),
        tuple(mean(costs[:, :, k], known) for k in asked),
        rises(costs),
        mean(second),
        mean(costs[:, :, -2] - costs[:, :, -1]),
        optimum,
        known[:, None] + costs.mean(1)[:, :-2],
        records.model.space.dimensions,
        {name: rises(values) for name, values in (stages or {}).items()},
    )
