"""The likelihood of a network's probability flow, MATH (31): a witness of the bound, not a bound itself.

For real-valued x the density of the flow at z_1 = α_1 x, times α_1^D: the model x = z_1/α_1. For discrete x, and for real-valued x with
`draws`, the bound

    ln p_ODE(x) ≥ E ln (1/K) Σ_k p(x|z_1^k) p_ODE(z_1^k) / q(z_1^k|x),      z_1^k ~ q(z_1|x).

Every trajectory has a number of steps of its own: the grid in γ is halved until the value changes by less than the tolerance. A score depends
on its item, condition, model and seed, and not on other items, to the last bit: all trajectories of a call are at the same γ, in batches of
one shape, filled up if necessary. Where a network's output depends on the place of a row in its batch, which is tested first, every
trajectory has a batch of its own.

There are three errors of different kinds, which are reported apart:

    solver   from the last halving of the step, per trajectory. It is deterministic: that of a mean is the mean of those of its items.
    probes   of the trace, from the spread over independent Rademacher probes (jackknife); 0 for an exact trace.
    draws    of the K draws of z_1, as for importance weights; 0 without draws. It does not include how far the bound is from ln p_ODE(x).

All draws of an item have the same probes: independent noise within the logarithm would raise the value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.importance import few_weights, spread_of_weights
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.provenance import as_seen, provenance
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.target import ODE
from diffusional.evaluation.visit_records import filled_up
from diffusional.forward import diffuse, marginal_at
from diffusional.ledger import Estimate, error_over_items, per_unit, satterthwaite
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.models.flow import ProbabilityFlow, integrated, trained_times
from diffusional.models.time import between_levels
from diffusional.seeds import check_seed
from diffusional.shapes import sum_dims
from diffusional.space import Continuous

OF = "−ln p(x) of the probability flow, another model with the same network"
# Rows of one batch and its numbers, at most, on the CPU and on other devices: powers of two.
_CPU, _OTHER = (64, 2**16), (512, 2**21)
# Batches of trajectories that are in memory at once.
_BATCHES = 8
# Steps of the first grid, which is halved.
_FIRST = 8
# Halving the step divides an error of h⁴ by 16. The difference of two grids is 15 times the error of the finer one, which is taken for
# granted if it is at most an eighth of the difference before.
_ORDER, _REGULAR = 16, 8


def ode_log_likelihood(
    model: LatentVariableModel,
    data: Tensor,
    *,
    condition: Condition | None = None,
    seed: int = 0,
    draws: int | None = None,
    probes: int = 8,
    exact_up_to: int = 16,
    tolerance: float = 1e-3,
    max_steps: int = 512,
    interpolate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return −ln p(x) of `data` (N, *space.shape), encoded, under the probability flow of the network, MATH (31), as an `Evaluation`.

    It is an estimate of another model with the same network, not a bound on the ln p(x) of `model`. Its `per_item` has the score of every
    item in nats, "nelbo", with "solver_error", "probe_error" and "draw_error"; `provenance["errors"]` has the three errors of the mean.
    Densities are those of x in its original units.

    Args:
        condition: of the items, one row each, for conditional models.
        seed: of the draws and the probes, which depend on each item only.
        draws: K draws of z_1 within the logarithm. Defaults to 8 for discrete data, and to none for real-valued data.
        probes: Rademacher probes of the trace where it is not exact, at least 2.
        exact_up_to: the number of dimensions D up to which the trace is exact, by D derivatives.
        tolerance: the error of the solver to reach for every item, in bits/dim.
        max_steps: the largest number of steps. Items that do not reach the tolerance are counted in `caveats`, with their errors.
        interpolate: for networks that read the number of a trained level, interpolate it between levels.
        progress: called with (trajectories done, number of trajectories).

    Raises DiffusionalError for models without a velocity of z, such as VAEs and binomial diffusions; for a network that reads the number
    of a level, unless `interpolate`; for options out of range; and for values that are not finite, with the number of the item.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-14.0, 14.0))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))
    >>> x = world.sample(5, torch.Generator().manual_seed(0))
    >>> found = ode_log_likelihood(model, x)
    >>> bool((found.per_item["nelbo"] + world.log_prob(x)).abs().max() < 1e-4), found.kind
    (True, 'estimate')
    """
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    options = ODE(draws, probes, exact_up_to, tolerance, max_steps, interpolate)
    with evaluation_mode(model):
        return ode(model, data, options, seed, condition, progress)


def ode(
    model: LatentVariableModel,
    data: Tensor,
    options: ODE,
    seed: int = 0,
    condition: Condition | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return the record of `ode_log_likelihood`; `evaluate` calls this with the model in evaluation mode."""
    flow, chain = model.flow(), model.visited()
    assert chain is not None
    times = trained_times(flow.denoiser)
    if times and not options.interpolate:
        raise DiffusionalError(
            "expected a network that reads log SNR, got one that reads the number of a trained level, and the probability flow passes between "
            "levels; give interpolate=True (--interpolate) for times between those that it was trained with"
        )
    with torch.inference_mode(False), torch.no_grad(), between_levels(times):
        return _Solver(chain, flow, data, options, seed, condition, bool(times)).run(progress)


@dataclass(frozen=True)
class _Trajectories:
    """M trajectories of a few items: z_1 (M, *dims), the number (M,) of the item of each, the terms (M,) of its value that do not depend on
    the flow, and the directions (P, M, *dims) of the trace, or (P, 1, *dims).
    """

    z: Tensor
    item: Tensor
    known: Tensor
    directions: Tensor


@dataclass
class _Solved:
    """Values (P, M) of trajectories for every probe (P = 1 for an exact trace), the error (M,) of their mean and the steps (M,)."""

    value: Tensor
    error: Tensor
    steps: Tensor


@dataclass(frozen=True)
class _Score:
    """ln p of an item with its three errors and the effective number of its draws."""

    value: float
    solver: float
    probes: float
    draws: float
    effective: float


class _Solver:
    """The evaluation of one data set."""

    def __init__(
        self,
        model: Chain,
        flow: ProbabilityFlow,
        data: Tensor,
        options: ODE,
        seed: int,
        condition: Condition | None,
        interpolated: bool,
    ) -> None:
        self.model, self.flow, self.data, self.options, self.condition = model, flow, data, options, condition
        self.seed, self.interpolated = seed, interpolated
        self.dimensions, self.shape = model.space.dimensions, model.space.shape
        self.exact = self.dimensions <= options.exact_up_to
        direct = isinstance(model.space, Continuous) and options.draws is None
        self.draws = 0 if direct else options.draws or ODE.DRAWS
        self.device = device_of(model, data)
        self.keys = item_keys(as_seen(model.space, data), seed, condition)
        self.first = torch.tensor(flow.first, dtype=torch.float64, device=self.device)
        self.rows = 1
        self.evaluations = self.products = 0
        self.tolerance = options.tolerance * per_unit("bits/dim", self.dimensions)

    def run(self, progress: Callable[[int, int], None] | None) -> Evaluation:
        rows, numbers = _CPU if self.device.type == "cpu" else _OTHER
        most = max(1, min(rows, numbers // self.dimensions))
        most = 2 ** (most.bit_length() - 1)
        self.rows = most if self._same_everywhere(most) else 1
        each = max(1, self.draws)
        scores, steps, done = list[_Score](), list[Tensor](), 0
        for items in torch.arange(len(self.data)).split(max(1, _BATCHES * most // each)):
            begun = self._begun(items)
            solved = self._solved(begun)
            steps.append(solved.steps)
            rows = solved.value.unflatten(1, (len(items), each))
            errors = solved.error.unflatten(0, (len(items), each))
            scores += [self._score(rows[:, i], errors[i]) for i in range(len(items))]
            done += len(begun.z)
            if progress is not None:
                progress(done, len(self.data) * each)
        return self._record(scores, torch.cat(steps))

    def _same_everywhere(self, rows: int) -> bool:
        """Return whether one row has the same velocity and trace, to the last bit, at every place of a batch and among other rows."""
        noise = normal([stream(b"places", i) for i in range(rows)], self.shape).double().to(self.device)
        gamma = self.first.new_tensor(0.5 * (self.flow.first + self.flow.last))
        c = moved(rows_of(self.condition, torch.zeros(rows, dtype=torch.long)), self.device)
        probe = self._unit()[:1] if self.exact else self._probes([b"places"])
        copies = noise[:1].expand_as(noise)
        places = [0, rows // 2, rows - 1]
        among = noise.clone()
        among[places] = noise[0]
        try:
            f, trace = self.flow.slopes(copies, gamma, probe, c)
            g, other = self.flow.slopes(among, gamma, probe, c)
        except RuntimeError as error:
            if not self.interpolated or isinstance(error, DiffusionalError):
                raise
            raise DiffusionalError(
                f"expected a network that takes times between those of its trained levels, got one that does not ({error}); its probability "
                "flow cannot be evaluated"
            ) from error
        alike = bool((f == f[:1]).all()) and bool((trace == trace[:, :1]).all())
        return alike and torch.equal(g[places], f[places]) and torch.equal(other[:, places], trace[:, places])

    def _unit(self) -> Tensor:
        """Return the D unit vectors (D, 1, *dims)."""
        return torch.eye(self.dimensions, dtype=torch.float64, device=self.device).reshape(-1, 1, *self.shape)

    def _probes(self, keys: Sequence[bytes]) -> Tensor:
        """Return the Rademacher vectors (P, n, *dims) of items with these keys."""
        signs = [
            [stream(key, p, b"probe").integers(0, 2, self.shape) for key in keys] for p in range(self.options.probes)
        ]
        return torch.from_numpy(2.0 * np.array(signs) - 1).to(self.device)

    def _begun(self, items: Tensor) -> _Trajectories:
        """Return the trajectories of items, draw by draw within each."""
        keys = [self.keys[i] for i in items.tolist()]
        x = self.data[items].double().to(self.device)
        each = max(1, self.draws)
        item = items.repeat_interleave(each)
        directions = self._unit() if self.exact else self._probes(keys).repeat_interleave(each, 1)
        log_alpha = 0.5 * torch.nn.functional.logsigmoid(-self.first)
        if not self.draws:
            known = (self.dimensions * log_alpha).expand(len(x))
            return _Trajectories(x * log_alpha.exp(), item, known, directions)
        noise = normal([stream(key, k, b"ode") for key in keys for k in range(self.draws)], self.shape)
        x = x.repeat_interleave(each, 0)
        z = diffuse(x, self.first, noise.double().to(self.device))
        known = torch.cat([self._decoded(x[own], z[own], item[own.cpu()]) for own in self._batches(len(z))])
        self.evaluations += len(z) * self.model.decoder_uses_network
        return _Trajectories(z, item, known[: len(z)], directions)

    def _batches(self, n: int) -> Sequence[Tensor]:
        return torch.arange(n, device=self.device).split(self.rows)

    def _decoded(self, x: Tensor, z: Tensor, item: Tensor) -> Tensor:
        """Return ln p(x|z_1) − ln q(z_1|x) (n,) of at most `rows` trajectories."""
        every = filled_up(torch.arange(len(z), device=self.device), self.rows)
        x, z = x[every], z[every]
        c = moved(rows_of(self.condition, item[every.cpu()]), self.device)
        decoded = self.model.decode(z, c).log_prob(x).double()
        return (decoded - sum_dims(marginal_at(x, self.first).log_prob_map(z)))[: len(item)]

    def _value(self, begun: _Trajectories, own: Tensor, steps: int) -> Tensor:
        """Return ln p_ODE(z_1) plus the known terms for every probe (P, n) of trajectories `own` (n,), in `steps` steps."""
        out = []
        for some in own.split(self.rows):
            every = filled_up(some, self.rows)
            directions = begun.directions if self.exact else begun.directions[:, every]
            c = moved(rows_of(self.condition, begun.item[every.cpu()]), self.device)
            z, trace = integrated(self.flow, begun.z[every], steps, directions, c)
            trace = trace.sum(0, keepdim=True) if self.exact else trace
            last = self.model.last(len(z)).log_prob(z).double()
            out.append((last + trace + begun.known[every])[:, : len(some)])
            self.evaluations += (5 * steps + 1) * len(some)
            self.products += (2 * steps + 1) * len(some) * len(directions)
        return torch.cat(out, 1)

    def _solved(self, begun: _Trajectories) -> _Solved:
        """Halve the step of every trajectory until its error is at most the tolerance."""
        left = torch.arange(len(begun.z), device=self.device)
        value = self._value(begun, left, _FIRST)
        error = torch.full((len(left),), math.inf, dtype=torch.float64, device=self.device)
        count = torch.full((len(left),), _FIRST)
        before, steps = error.clone(), _FIRST
        while len(left) and 2 * steps <= self.options.max_steps:
            steps *= 2
            finer = self._value(begun, left, steps)
            change = torch.stack([(a - b).abs() for a, b in zip(_mean(finer), _mean(value[:, left]), strict=True)])
            error[left] = solver_error(change, before[left])
            value[:, left], before[left], count[left.cpu()] = finer, change, steps
            left = left[~(error[left] <= self.tolerance)]
        return _Solved(value.cpu(), error.cpu(), count)

    def _score(self, values: Tensor, errors: Tensor) -> _Score:
        """Return ln p of an item from its trajectories' values (P, K) and solver errors (K,). Tensors of one item have the same shapes in
        every data set, so that sums over them have the same last bits.
        """
        values = values.contiguous()
        mean, probes = jackknife(values)
        if not self.draws:
            return _Score(mean, float(errors[0]), probes, 0.0, math.inf)
        logs = values.mean(0) if len(values) > 1 else values[0]
        weights = torch.softmax(logs, 0)
        variance, effective = spread_of_weights(logs[:, None])
        return _Score(mean, float((weights * errors).sum()), probes, float(variance.sqrt()), float(effective))

    def _record(self, scores: list[_Score], steps: Tensor) -> Evaluation:
        def column(name: str) -> Tensor:
            return torch.tensor([getattr(one, name) for one in scores], dtype=torch.float64)

        model, options, n = self.model, self.options, len(scores)
        value, solver, probes, draws = (column(name) for name in ("value", "solver", "probes", "draws"))
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            raise DiffusionalError(
                f"item {int(bad.nonzero()[0])} has a likelihood that is not finite; nothing was left out of the mean"
            )
        extra = {name: term.cpu() for name, term in model.extra(self.data.to(self.device)).items()}
        total = sum(extra.values(), -value)
        random = probes.square() + draws.square()
        errors = {
            "solver": float(solver.mean()),
            "probes": float(probes.square().sum().sqrt()) / n,
            "draws": float(draws.square().sum().sqrt()) / n,
        }
        error = math.sqrt(sum(one**2 for one in errors.values()))

        def over(values: Tensor, error: float, noise: Tensor) -> Estimate:
            items = error_over_items(values, noise, n)
            return Estimate(float(values.mean()), error, items, n, self.evaluations)

        late = ~(solver <= self.tolerance)
        caveats = []
        if bool(late.any()):
            worst = float(solver.max()) / per_unit("bits/dim", self.dimensions)
            caveats.append(
                f"{int(late.sum())} of {n} items did not reach the solver's tolerance of {options.tolerance:g} bits/dim in {options.max_steps} "
                f"steps; the largest error is {worst:.2g} bits/dim. Raise max_steps, or the tolerance"
            )
        effective = column("effective")
        if self.draws:
            caveats += few_weights(draws.square(), effective, self.draws)
        nothing = torch.zeros(0, dtype=torch.float64)
        bit = per_unit("bits/dim", self.dimensions)
        about: dict[str, Any] = {
            "method": "probability flow",
            "estimate_of": "another model with the same network: that of its probability flow",
            "unit": "nats of x in its original units",
            "errors": {name: {"nats": one, "bits/dim": one / bit} for name, one in errors.items()},
            "trace": {"exact": self.exact, "probes": 0 if self.exact else options.probes},
            "draws": self.draws,
            "gamma": [self.flow.first, self.flow.last],
            "tolerance": {"bits/dim": options.tolerance},
            "steps": [int(steps.min()), int(steps.max())],
            "time": "interpolated between trained levels" if self.interpolated else "as declared",
            "rows": self.rows,
            "evaluations": {"network": self.evaluations, "derivatives": self.products},
        }
        return Evaluation(
            nelbo=over(total, error, random),
            terms={"probability_flow": over(-value, error, random)}
            | {name: over(one, 0.0, torch.zeros_like(one)) for name, one in extra.items()},
            per_item={
                "item": torch.arange(n),
                "nelbo": total,
                "probability_flow": -value,
                **extra,
                "solver_error": solver,
                "probe_error": probes,
                "draw_error": draws,
                "error": (random + solver.square()).sqrt(),
            },
            levels_kl=nothing,
            levels_error=nothing,
            level_edges=torch.ones(1, dtype=torch.long),
            dimensions=self.dimensions,
            provenance=provenance(model, self.data, self.seed, self.condition) | about,
            freedom=satterthwaite(
                (probes.square(), max(1, options.probes - 1)), (draws.square(), (effective - 1).clamp(min=1))
            ),
            reached=not caveats,
            caveats=tuple(caveats),
            kind="estimate",
            of=OF,
        )


def _mean(values: Tensor) -> Tensor:
    """Return the mean over probes (n,) of values (P, n), each by the same operations wherever it stands."""
    total = values[0]
    for one in values[1:]:
        total = total + one
    return total / len(values)


def solver_error(change: Tensor, before: Tensor) -> Tensor:
    """Return the error (n,) of values on a grid that differ by `change` from those on a grid of half the steps, and these by `before` from the
    grid before.

    If the changes fall as for a method of order four, by about 16, it is a fifteenth of the last one, or of what the one before predicts
    for it if that is larger: a change may be small by chance. Otherwise it is the change itself.

    >>> solver_error(torch.tensor([1.5, 0.0, 1.5]), torch.tensor([24.0, 24.0, 2.0]))
    tensor([0.1000, 0.1000, 1.5000])
    """
    regular = change * _REGULAR <= before
    expected = torch.maximum(change, before / _ORDER) / (_ORDER - 1)
    # Before the third grid there is nothing to compare with.
    return torch.where(regular & torch.isfinite(before), expected, change)


def jackknife(values: Tensor) -> tuple[float, float]:
    """Return ln (1/K) Σ_k exp of the means over probes of `values` (P, K), and its error from the spread over the probes.

    The error is that of the jackknife, with its estimate of the bias: the noise of a probe that differs between the draws raises the value.

    >>> value, error = jackknife(torch.tensor([[1.0], [2.0], [3.0]]))
    >>> value, round(error, 4)                                                                   # 1/√3
    (2.0, 0.5774)
    """
    p, k = values.shape

    def value(some: Tensor) -> float:
        return float(torch.logsumexp(some.mean(0), 0)) - math.log(k) if k > 1 else float(some.mean())

    whole = value(values)
    if p == 1:
        return whole, 0.0
    without = [value(torch.cat([values[:i], values[i + 1 :]])) for i in range(p)]
    mean = math.fsum(without) / p
    variance = (p - 1) / p * math.fsum((one - mean) ** 2 for one in without)
    bias = (p - 1) * (mean - whole) if k > 1 else 0.0
    return whole, math.sqrt(variance + bias**2)
