"""Are the errors of `evaluate` true? Coverage of its 95 % intervals, and its reported error over the observed spread.

    python benchmarks/calibration.py [--run DIR] [--evaluations 4000] [--jobs 1] [--cases WORD …] [--out benchmarks/results/calibration.json]

An evaluation is `evaluate(model, data, plan=…, seed=s)` with a seed of its own; the data set, and four plans that share the
evaluations between them, stay. The truth is the data set's mean NELBO: exact per item in the worlds (closed forms for linear
denoisers; else the trapezoid rule over ε, written here, apart from the library's controls), and for the trained digits model
a long run of draws and a full sweep with several draws, which must agree, and whose own error is a small part of an evaluation's.

    coverage        how often `Evaluation.interval(0.95)` holds the truth: 94 to 96 % wanted
    error_over_sd   mean reported error over the standard deviation of the estimates: 0.9 to 1.1 wanted
    bias_over_sd    (mean estimate − truth) over that standard deviation. Fixed visits are unbiased; with a target error this is
                    the bias of the stopping rule, which is likelier to stop where the spread came out small

Cases differ in the world, in time (linear β with T = 1000, or continuous), and in how the draws are shared out:

    visits          a fixed number of draws of every item
    first look      N = 400 items, of which the first look's 256 are enough: two-stage sampling
    part            N = 400 items, of which as many are visited as the target takes, in two or three rounds
    target          all items, in two or three rounds: the stopping rule at work; `factor` is the target over the first look's error

An evaluation is `flagged` where it has caveats (an error that rests on few draws), or was not `reached`; flagged or not, all count in
`coverage`. `coverage_reached` is the coverage of the others, which are reached without a caveat, and `share_reached` their share.

The trials are worlds in which evaluations have failed, with a quarter of the evaluations each. Their audits are on, as they are by
default, and no evaluation may take more than `max_evaluations`:

    outlying items      1 % of the items cost far more than the rest; their data show it, or only the network does
    rare spikes         30 nats more in a part of the visits of one level, which the pilot may have met
    heavy-tailed VAE    the decoder goes wrong for rare latents
    conditional items   the same items under two conditions
    few reference items as many as there are dimensions
    DDPM decoder        a network that predicts ε, with the discretised Gaussian decoder
    rare difference     two models that differ by a rare, large cost
    budget              a maximum of evaluations near what the target takes, so that some evaluations do not reach it

The rare level: a model that costs 30 nats more at one level of T = 1000 under a condition that the pilot hasn't flown in, always
or in a tenth of the visits. The draws alone miss it. The audit visits each level once, so it finds what is always there, and misses
what shows in a part p of the visits with probability 1 − p: in a tenth, nine times out of ten such an evaluation is wrong and doesn't
know it. `coverage` here is that of the draws, audit or not; `flagged_by_audit` is the audit's share in `flagged`.
"""

import argparse
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from provenance import commit, machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation import Evaluation, Plan, Progress, compare, evaluate

COVERAGE, RATIO, RARE_COVERAGE = (0.94, 0.96), (0.9, 1.1), 0.9
# Of the trials' evaluations, and of those that are reached without a caveat.
TRIAL_COVERAGE = (0.93, 0.97)
RARE_LEVEL, RARE_NATS = 600, 30.0
PLANS = 4
# The trapezoid rule over ε in each dimension: nodes 0.3 apart, 8.1 on each side. For two points d standard deviations apart its
# error is about exp(−d²/8 − 2π²/(0.3 d)) < 1e-6.
_STEP, _REACH = 0.3, 27
# Simpson's rule over γ in continuous time: an even number of intervals.
_INTERVALS = 200
# Rows of one call of a denoiser.
_ROWS = 500_000
# Seeds: of the data, the pilots, what sets a target, the long run; those of the evaluations begin at 1000.
_DATA, _PILOT, _LOOK, _LONG, _FIRST = 0, 100, 500, 900, 1000


@dataclass(frozen=True, eq=False)
class Case:
    """What is evaluated again and again, and what should come out.

    Attributes:
        plans: learned once; evaluation s is under plan s modulo their number. Empty for models without levels.
        truth, truth_error: mean NELBO of `data`, nats.
        options: of `evaluate`.
        condition: of the items, for conditional models.
    """

    model: df.LatentVariableModel
    data: Tensor
    plans: list[Plan]
    truth: float
    options: dict[str, Any]
    truth_error: float = 0.0
    condition: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, seed: int, **options: Any) -> Evaluation:
        """One evaluation; `options` go before the case's own."""
        chosen = {"audit": False, "unit": "nats", **self.options, **options}
        if self.plans:
            chosen["plan"] = self.plans[seed % len(self.plans)]
        return evaluate(self.model, self.data, seed=seed, condition=self.condition, **chosen)

    def aiming(self, factor: float) -> "Case":
        """The case with a target: `factor` times the error (the median of 32) after the first look."""
        looks = [self.evaluate(_LOOK + i, target_error=1e9, audit=False).nelbo.error for i in range(32)]
        target = factor * statistics.median(looks)
        notes = self.notes | {"factor": factor, "target_nats": target}
        return replace(self, options=self.options | {"target_error": target}, notes=notes)

    def within(self, factor: float) -> "Case":
        """The case with a budget: `factor` times the evaluations (the median of 32) that it takes without one."""
        used = [self.evaluate(_LOOK + i).nelbo.network_evaluations for i in range(32)]
        budget = math.ceil(factor * statistics.median(used))
        return replace(self, options=self.options | {"max_evaluations": budget}, notes=self.notes | {"budget": budget})


@dataclass(frozen=True, eq=False)
class Pair(Case):
    """The difference of `model` and `other` on the same noise; `truth` is the difference's."""

    other: df.LatentVariableModel | None = None
    other_plans: list[Plan] = field(default_factory=list)

    def evaluate(self, seed: int, **options: Any) -> Evaluation:
        """One comparison, told as an evaluation."""
        assert self.other is not None
        both = seed % len(self.plans)
        chosen = {"audit": False, "unit": "nats", **self.options, **options}
        plans = self.plans[both], self.other_plans[both]
        found = compare(self.model, self.other, self.data, seed=seed, plans=plans, **chosen)
        return replace(
            found.a, nelbo=found.difference, freedom=found.freedom, reached=found.reached, caveats=found.caveats
        )


# The truth: expected costs per item, by plain formulas.


def noise_errors(world: exact.World, x: Tensor, gamma: Tensor) -> Tensor:
    """E ‖ε − ε̂‖² (N, L) of items x (N, D) at every γ (L,) under the world's own denoiser; D ≤ 2, trapezoid rule over ε."""
    axis = _STEP * torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    noise = torch.cartesian_prod(*[axis] * x.shape[1]).reshape(-1, x.shape[1])
    density = torch.exp(-0.5 * noise.square().sum(1))
    density = density / density.sum()
    distinct, where = x.double().unique(dim=0, return_inverse=True)
    out = torch.zeros(len(distinct), len(gamma), dtype=torch.float64)
    rows = max(1, _ROWS // len(noise))
    for i, item in enumerate(distinct):
        for some in torch.arange(len(gamma)).split(rows):
            a, s = torch.sigmoid(-gamma[some]).sqrt(), torch.sigmoid(gamma[some]).sqrt()
            z = a[:, None, None] * item + s[:, None, None] * noise
            _, said = world.optimum(z.flatten(0, 1), gamma[some].repeat_interleave(len(noise)))
            error = (noise - said.view(z.shape)).square().sum(2)
            out[i, some] = error @ density
    return out[where]


def errors_of_one(says: Callable[[Tensor, Tensor], Tensor], x: Tensor, gamma: Tensor) -> Tensor:
    """E (ε − ε̂)² (N, L) of items x (N, 1) at every γ (L,) for x̂ = says(z, log SNR), which need not be smooth: 0.02 between the nodes."""
    noise = 0.02 * torch.arange(-400, 401, dtype=torch.float64)
    density = torch.exp(-0.5 * noise.square())
    density = density / density.sum()
    out = torch.zeros(len(x), len(gamma), dtype=torch.float64)
    for level, g in enumerate(gamma):
        a, s = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        z = (a * x.double() + s * noise).flatten()
        guess = says(z[:, None], (-g).expand(len(z))).reshape(len(x), -1)
        out[:, level] = torch.exp(-g) * ((x.double() - guess).square() @ density)
    return out


def discretised(space: df.Discrete, mean: Tensor, gain: Tensor, x: Tensor, gamma: float) -> Tensor:
    """E −ln p(x|z_1) (N,) of the discretised Gaussian around x̂ = m + k (z − α m), position by position, with s = σ_1."""
    a, s = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
    noise = 0.02 * torch.arange(-400, 401, dtype=torch.float64)
    density = torch.exp(-0.5 * noise.square())
    density = density / density.sum()
    x = x.double().unsqueeze(-1)
    guess = mean[:, None] + gain[:, None] * (a * (x - mean[:, None]) + s * noise)
    low = torch.where(x <= space.low, -math.inf, (x - 0.5 * space.width - guess) / s)
    high = torch.where(x >= space.high, math.inf, (x + 0.5 * space.width - guess) / s)
    # Φ(high) − Φ(low), in the tail where it is not small against both.
    upper = low > 0
    below, above = torch.where(upper, -high, low), torch.where(upper, -low, high)
    mass = torch.special.ndtr(above) - torch.special.ndtr(below)
    return -(mass.log() @ density).sum(1)


def linear_noise_errors(world: exact.Gaussian, x: Tensor, gamma: Tensor) -> Tensor:
    """The same for a Gaussian world's denoiser x̂ = m + K (z − α m), K = α C (α² C + σ² I)⁻¹, and items x of any origin:

    E ‖ε − ε̂‖² = SNR E ‖x − x̂‖²,   E ‖x − x̂‖² = ‖(I − α K)(x − m)‖² + σ² tr K Kᵀ
    """
    mean, vectors, values = world.means[0], world.eigenvectors[0], world.eigenvalues[0]
    alpha2, sigma2 = torch.sigmoid(-gamma)[:, None], torch.sigmoid(gamma)[:, None]
    kept = sigma2 / (alpha2 * values + sigma2)
    gain = alpha2.sqrt() * values / (alpha2 * values + sigma2)
    rotated = (x.double() - mean) @ vectors
    error = rotated.square() @ kept.square().T + (sigma2 * gain.square()).sum(1)
    return torch.exp(-gamma) * error


def level_posterior(x: Tensor, gamma: float, values: Tensor) -> Tensor:
    """E −ln p(x|z_1) (N,) where p(x|z_1) ∝ q(z_1|x) over the levels, position by position."""
    a, s = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
    noise = 0.02 * torch.arange(-400, 401, dtype=torch.float64)
    density = torch.exp(-0.5 * noise.square())
    density = density / density.sum()
    z = a * x.double().unsqueeze(-1) + s * noise  # (N, D, nodes)
    exponent = -0.5 * ((z.unsqueeze(-1) - a * values) / s).square()
    cost = torch.logsumexp(exponent, -1) + 0.5 * noise.square()
    return (cost @ density).sum(1)


def true_costs(
    model: df.DiffusionModel, x: Tensor, errors: Callable[[Tensor, Tensor], Tensor], decoder: str = "gaussian"
) -> Tensor:
    """The expected NELBO (N,) of every item in nats, from errors(x, γ) = E ‖ε − ε̂‖² (N, L).

    decoder: "gaussian" is N(x̂, σ_1²/α_1²), "plain" the same around z_1/α_1, "levels" is Bayes' rule over the levels, and "none" is
    left out.
    """
    dimensions = x.shape[1]
    if model.steps is not None:
        gamma = model.process.schedule.grid().detach()
        kl = (0.5 * torch.expm1(gamma[1:] - gamma[:-1]) * errors(x, gamma[1:])).sum(1)
    else:
        low, high = model.process.schedule.ends().tolist()
        gamma = torch.linspace(low, high, _INTERVALS + 1, dtype=torch.float64)
        simpson = torch.ones_like(gamma)
        simpson[1:-1:2], simpson[2:-1:2] = 4, 2
        kl = errors(x, gamma) @ (simpson * (high - low) / _INTERVALS / 6)  # ½ ∫ … dγ
    alpha2, sigma2 = 1 / (1 + math.exp(gamma[-1])), 1 / (1 + math.exp(-gamma[-1]))
    prior = 0.5 * (alpha2 * x.double().square().sum(1) + dimensions * (sigma2 - 1 - math.log(sigma2)))
    first = float(gamma[0])
    if decoder == "gaussian":
        reconstruction = 0.5 * (dimensions * (math.log(2 * math.pi) + first) + errors(x, gamma[:1])[:, 0])
    elif decoder == "plain":
        reconstruction = 0.5 * dimensions * (math.log(2 * math.pi) + first + 1) * torch.ones_like(kl)
    elif decoder == "none":
        reconstruction = torch.zeros_like(kl)
    else:
        space = model.space
        assert isinstance(space, df.Discrete)
        reconstruction = level_posterior(x, first, space.values)
    return kl + prior + reconstruction


# The worlds.


def process(steps: int | None, low: float = -9.0) -> df.GaussianDiffusion:
    """Linear β with T = 1000, or continuous time with γ from `low` to 9."""
    chosen = schedule.log_snr_linear(low, 9.0) if steps is None else schedule.linear(steps)
    return df.GaussianDiffusion(chosen)


def generator(seed: int = _DATA) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_worlds() -> tuple[exact.Gaussian, exact.Gaussian]:
    """Data in four dimensions, and what the model takes them for: another mean and another covariance."""
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator(1), dtype=torch.float64))
    data = exact.Gaussian(torch.zeros(4), turn @ torch.diag(torch.tensor([0.05, 0.4, 1.0, 2.5]).double()) @ turn.T)
    model = exact.Gaussian(torch.full((4,), 0.1), torch.diag(torch.tensor([0.3, 0.6, 1.0, 1.6])))
    return data, model


def plans(model: df.DiffusionModel, reference: Tensor, condition: Tensor | None = None) -> list[Plan]:
    return [Plan.fit(model, reference, seed=_PILOT + i, condition=condition) for i in range(PLANS)]


def gaussian(steps: int | None, items: int, options: dict[str, Any], pilot: bool = True) -> Case:
    """A model that is wrong about its data."""
    world, other = gaussian_worlds()
    decoder = likelihood.GaussianLikelihood(df.Continuous((4,)))
    model = df.DiffusionModel(process(steps), other.denoiser("noise"), decoder)
    x = world.sample(items, generator()).float()
    reference = world.sample(2000, generator(2)).float()
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma)).mean()
    chosen = plans(model, reference) if pilot else [Plan.uniform(model)]
    return Case(model, x, chosen, float(truth), options)


def pair(steps: int | None, items: int, options: dict[str, Any]) -> Pair:
    """A model that is wrong about its data against one that is right."""
    world, other = gaussian_worlds()
    decoder = likelihood.GaussianLikelihood(df.Continuous((4,)))
    models = [df.DiffusionModel(process(steps), w.denoiser("noise"), decoder) for w in (other, world)]
    x = world.sample(items, generator()).float()
    reference = world.sample(2000, generator(2)).float()
    wrong, right = (
        true_costs(model, x, lambda x, gamma, w=w: linear_noise_errors(w, x, gamma)).mean()
        for model, w in zip(models, (other, world), strict=True)
    )
    first = plans(models[0], reference)
    second = [Plan.fit(models[1], reference, seed=_PILOT + i, like=plan) for i, plan in enumerate(first)]
    return Pair(models[0], x, first, float(wrong - right), options, other=models[1], other_plans=second)


def mixture(steps: int | None, dimensions: int, items: int, options: dict[str, Any]) -> Case:
    """Three clusters and their own denoiser, which Wiener's control follows from afar."""
    means = torch.tensor([[-1.4, 0.3], [0.2, -1.0], [1.1, 0.8]])[:, :dimensions]
    covariances = torch.eye(dimensions) * torch.tensor([0.02, 0.1, 0.05])[:, None, None]
    world = exact.Mixture(torch.tensor([0.3, 0.5, 0.2]), means, covariances)
    decoder = likelihood.GaussianLikelihood(df.Continuous((dimensions,)))
    model = df.DiffusionModel(process(steps), world.denoiser("noise"), decoder)
    x = world.sample(items, generator()).float()
    truth = true_costs(model, x, lambda x, gamma: noise_errors(world, x, gamma)).mean()
    return Case(model, x, plans(model, world.sample(2000, generator(2)).float()), float(truth), options)


def finite(steps: int | None, items: int, options: dict[str, Any]) -> Case:
    """Eight points on a grid of five levels a side, some of them rare; two dependent positions."""
    space = df.Discrete((2,), levels=5)
    points = torch.tensor([[0, 0], [1, 1], [2, 0], [2, 2], [3, 4], [4, 3], [4, 4], [0, 4]])
    repeats = torch.tensor([8, 6, 1, 4, 3, 3, 8, 1])
    world = exact.Finite(space.encode(points.repeat_interleave(repeats, 0)))
    model = df.DiffusionModel(process(steps, -4.0), world.denoiser("data"), likelihood.LevelPosterior(space))
    x = world.sample(items, generator()).float()
    truth = true_costs(model, x, lambda x, gamma: noise_errors(world, x, gamma), "levels").mean()
    return Case(model, x, plans(model, world.sample(2000, generator(2)).float()), float(truth), options)


class Rare(nn.Module):
    """A denoiser that errs by `shift` at one level in a part of its visits, under condition 1 or always."""

    def __init__(self, world: exact.Gaussian, gamma: float, shift: float, part: float, always: bool = False) -> None:
        super().__init__()
        self.plain, self.gamma, self.shift, self.part = world.denoiser("noise").module, gamma, shift, part
        self.always = always

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        said = self.plain(z, log_snr)
        if condition is None and not self.always:
            return said
        # The phase of a fast wave in z: uniform, whatever z's density, and in effect independent of it.
        phase = torch.remainder(1e4 * z[:, 0].double(), 1.0)
        there = ((-log_snr.double() - self.gamma).abs() < 1e-4) & (phase < self.part)
        if condition is not None:
            there &= condition > 0
        said = said.clone()
        said[there, 1] += self.shift
        return said


def more_at(world: exact.Gaussian, x: Tensor, at: float, slope: float, shift: float, part: float) -> Tensor:
    """What `Rare` adds to the expected cost (N,), nats.

    ‖ε − ε̂ − s‖² = ‖ε − ε̂‖² + ‖s‖² − 2 s·(ε − ε̂), and E (ε − ε̂) = (α/σ)(I − α K)(m − x).
    """
    alpha2, sigma2 = 1 / (1 + math.exp(at)), 1 / (1 + math.exp(-at))
    kept = sigma2 / (alpha2 * world.eigenvalues[0] + sigma2)
    vectors = world.eigenvectors[0]
    off = math.sqrt(alpha2 / sigma2) * ((world.means[0] - x.double()) @ vectors * kept) @ vectors.T
    return part * (RARE_NATS - 2 * slope * shift * off[:, 1])


def rare(part: float, items: int, options: dict[str, Any]) -> Case:
    """30 nats more at t = 600, in a `part` of the visits, under a condition that the pilot hasn't flown in."""
    world, other = gaussian_worlds()
    forward = process(1000)
    before, at = forward.schedule.grid()[RARE_LEVEL - 1 : RARE_LEVEL + 1].tolist()
    slope = 0.5 * math.expm1(at - before)
    shift = math.sqrt(RARE_NATS / slope)
    module = Rare(other, at, shift, part)
    decoder = likelihood.GaussianLikelihood(df.Continuous((4,)))
    model = df.DiffusionModel(forward, df.Denoiser(module, "noise"), decoder)
    x = world.sample(items, generator()).float()
    reference = world.sample(2000, generator(2)).float()
    more = more_at(other, x, at, slope, shift, part)
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma)) + more
    chosen = plans(model, reference, torch.zeros(len(reference)))
    return Case(model, x, chosen, float(truth.mean()), options, condition=torch.ones(items))


# The trials.


def trial(target: float, most: int, **options: Any) -> dict[str, Any]:
    """Options of a trial: a target in nats, a maximum of evaluations, and the audit that there is by default."""
    return {"audit": True, "target_error": target, "max_evaluations": most, **options}


class OneNumber(nn.Module):
    """x̂ for items of one number: right for N(0, 1), and with `says` more wherever the network fails."""

    def __init__(self, more: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.more = more

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr)[:, None].sqrt() * z + self.more(z, log_snr)


def far(z: Tensor, log_snr: Tensor) -> Tensor:
    """Too large a guess where |z| is large."""
    return 0.1 * (z.abs() - 4.5).clamp(min=0)


def near_a_half(z: Tensor, log_snr: Tensor) -> Tensor:
    """Off by 0.7 near x = ½ at low noise."""
    there = ((z / torch.sigmoid(log_snr)[:, None].sqrt() - 0.5).abs() < 0.4) & (log_snr[:, None] > 4)
    return torch.where(there, 0.7, 0.0).to(z)


def sloping(slip: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Too large a guess where |z| > 3."""
    return lambda z, log_snr: slip * (z.abs() - 3).clamp(min=0)


def one_number(more: Callable[[Tensor, Tensor], Tensor], steps: int) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 6.0, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((1,)), assisted=False)
    return df.DiffusionModel(process, df.Denoiser(OneNumber(more), "data"), decoder)


def outlying(shown: bool, items: int, target: float) -> Case:
    """1 % of the items are unlike the others: 25 standard deviations away (`shown`), or where nothing but the network fails."""
    model = one_number(far if shown else near_a_half, 50)
    draw = generator(11)
    reference = torch.randn(700, 1, generator=draw, dtype=torch.float64)
    x = torch.randn(items, 1, generator=draw, dtype=torch.float64)
    count = items // 100
    if shown:
        x[:count] = 25 * x[:count].sign()
    else:
        # No others lie near ½; a hundredth of the reference data does.
        reference, x = (torch.where((v - 0.5).abs() < 1, v.sign() * 1.5 + 0.2 * v, v) for v in (reference, x))
        x[:count] = 0.5 + 0.1 * torch.rand(count, 1, generator=draw, dtype=torch.float64)
        reference[:7] = 0.5 + 0.1 * torch.rand(7, 1, generator=draw, dtype=torch.float64)
    says = OneNumber(far if shown else near_a_half)
    truth = true_costs(model, x, lambda x, gamma: errors_of_one(says, x, gamma), "plain").mean()
    return Case(model, x, plans(model, reference), float(truth), trial(target, 10_000))


def spikes(steps: int, level: int, part: float, items: int, needed: int) -> Case:
    """30 nats more at one level in a `part` of its visits, which the pilot may have met; the target would take `needed` visits."""
    world, other = gaussian_worlds()
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps) if steps < 100 else schedule.linear(steps))
    before, at = forward.schedule.grid()[level - 1 : level + 1].tolist()
    slope = 0.5 * math.expm1(at - before)
    shift = math.sqrt(RARE_NATS / slope)
    module = Rare(other, at, shift, part, always=True)
    decoder = likelihood.GaussianLikelihood(df.Continuous((4,)))
    model = df.DiffusionModel(forward, df.Denoiser(module, "noise"), decoder)
    x = world.sample(items, generator()).float()
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma)) + more_at(
        other, x, at, slope, shift, part
    )
    target = RARE_NATS * math.sqrt(part * (steps - 1) / needed)
    options = trial(target, 2 * needed)
    return Case(model, x, plans(model, world.sample(2000, generator(2)).float()), float(truth.mean()), options)


class Kinked(nn.Module):
    """A decoder that is the identity up to 2, and seven times as steep beyond."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 6 * (z - 2).clamp(min=0)


class Halving(nn.Module):
    """q(z|x) = N(x/2, 0.7²)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 * x, torch.full_like(x, 0.7).log()], 1)


def vae(items: int, factor: float | None = None, visits: int | None = None) -> Case:
    """A VAE whose decoder goes wrong for one latent in some hundred; the target would take 300 · items^½ draws.

    Its costs, given the noise e: −ln N(x; f(z), 0.3) at z = x/2 + 0.7 e, and the KL of q from N(0, 1).
    """
    model = df.VAE(Halving(), Kinked(), likelihood.GaussianLikelihood(df.Continuous((1,)), variance=0.3), 1)
    # A single item has the kink at 2.4 standard deviations of its noise.
    x = (
        torch.randn(items, 1, generator=generator(4), dtype=torch.float64)
        if items > 1
        else torch.full((1, 1), 0.6).double()
    )
    noise = 0.001 * torch.arange(-9000, 9001, dtype=torch.float64)
    density = torch.exp(-0.5 * noise.square())
    density = density / density.sum()
    z = 0.5 * x + 0.7 * noise
    cost = 0.5 * ((x - z - 6 * (z - 2).clamp(min=0)).square() / 0.3 + math.log(2 * math.pi * 0.3))
    mean = cost @ density
    kl = 0.5 * (0.49 + 0.25 * x[:, 0].square() - 1 - 2 * math.log(0.7))
    variance = float(((cost - mean[:, None]).square() @ density).mean())
    target = math.sqrt(variance / (300 * math.sqrt(items)))
    options: dict[str, Any] = {"target_error": target} if visits is None else {"visits": visits}
    case = Case(
        model, x, [], float((mean + kl).mean()), options, notes={"target_nats": target} if visits is None else {}
    )
    return case if factor is None else case.within(factor)


class EitherWorld(nn.Module):
    """The denoiser of one of two worlds: the condition says which."""

    def __init__(self, worlds: tuple[exact.Gaussian, exact.Gaussian]) -> None:
        super().__init__()
        self.each = [world.denoiser("noise").module for world in worlds]

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        first, second = (module(z, log_snr) for module in self.each)
        return torch.where(condition[:, None] > 0, second, first)


def conditional(items: int, options: dict[str, Any]) -> Case:
    """Every item once under each of two conditions."""
    worlds = gaussian_worlds()
    decoder = likelihood.GaussianLikelihood(df.Continuous((4,)))
    model = df.DiffusionModel(process(1000), df.Denoiser(EitherWorld(worlds), "noise"), decoder)
    x = worlds[0].sample(items // 2, generator()).float()
    truth = [true_costs(model, x, lambda x, gamma, w=w: linear_noise_errors(w, x, gamma)).mean() for w in worlds]
    reference = worlds[0].sample(2000, generator(2)).float()
    learned = plans(model, reference, torch.arange(2000.0) % 2)
    condition = torch.cat([torch.zeros(len(x)), torch.ones(len(x))])
    return Case(model, x.repeat(2, 1), learned, float(sum(truth)) / 2, options, condition=condition)


def few_references(items: int, options: dict[str, Any]) -> Case:
    """Plans from as many reference items as there are dimensions."""
    turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator(1), dtype=torch.float64))
    world = exact.Gaussian(torch.zeros(12), turn @ torch.diag(torch.logspace(-3, 0.5, 12).double()) @ turn.T)
    other = exact.Gaussian(torch.full((12,), 0.1), torch.diag(torch.linspace(0.3, 1.5, 12)))
    decoder = likelihood.GaussianLikelihood(df.Continuous((12,)))
    model = df.DiffusionModel(process(1000), other.denoiser("noise"), decoder)
    x = world.sample(items, generator()).float()
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma)).mean()
    return Case(model, x, plans(model, world.sample(12, generator(2)).float()), float(truth), options)


def ddpm(items: int, options: dict[str, Any]) -> Case:
    """A linear network that predicts ε, under linear β with T = 1000, and the discretised Gaussian decoder of 256 levels."""
    space = df.Discrete((2,), levels=256)
    other = exact.Gaussian(torch.tensor([0.1, -0.1]), torch.diag(torch.tensor([0.1, 0.3])))
    model = df.DiffusionModel(process(1000), other.denoiser("noise"), likelihood.DiscretizedGaussian(space))
    near = torch.randn(items + 2000, 1, generator=generator(), dtype=torch.float64)
    apart = torch.randn(items + 2000, 2, generator=generator(1), dtype=torch.float64)
    index = (127.5 + 50 * (0.8 * near + 0.6 * apart)).round().clamp(0, 255)
    x, reference = space.encode(index.long()).float().split([items, 2000])
    gamma = float(model.process.schedule.ends()[0])
    a2, s2 = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
    variances = torch.tensor([0.1, 0.3], dtype=torch.float64)
    gain = math.sqrt(a2) * variances / (a2 * variances + s2)
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma), "none")
    truth = truth + discretised(space, other.means[0], gain, x, gamma)
    return Case(model, x, plans(model, reference), float(truth.mean()), options)


def own_pilots(case: Case) -> Case:
    """The case without plans: every evaluation has a pilot of its own on its items, as long as its target is worth."""
    return replace(case, plans=[])


def rare_difference(items: int, target: float) -> Pair:
    """Two models of which one goes wrong where |z| > 3."""
    models = [one_number(sloping(slip), 20) for slip in (0.0, 6.0)]
    x = torch.randn(items, 1, generator=generator(11), dtype=torch.float64)
    right, wrong = (
        true_costs(
            model, x, lambda x, gamma, slip=slip: errors_of_one(OneNumber(sloping(slip)), x, gamma), "plain"
        ).mean()
        for model, slip in zip(models, (0.0, 6.0), strict=True)
    )
    first = plans(models[0], x)
    second = [Plan.fit(models[1], x, seed=_PILOT + i, like=plan) for i, plan in enumerate(first)]
    options = trial(target, 24_000)
    return Pair(models[0], x, first, float(right - wrong), options, other=models[1], other_plans=second)


@functools.cache
def trained(run: Path | None) -> tuple[df.DiffusionModel, Tensor, Tensor]:
    """A run's digits model, or the recipe's, trained now, under linear β with T = 1000; training and test images."""
    if run is None:
        from diffusional.training import recipes

        with tempfile.TemporaryDirectory() as folder:
            loaded = df.train(recipes.digits(), str(Path(folder) / "digits"))
    else:
        loaded = df.load(str(run))
    assert isinstance(loaded, df.DiffusionModel)
    loaded.eval()
    dataset = df.data.load("digits")
    model = df.DiffusionModel(process(1000), loaded.denoiser, loaded.likelihood)
    return model, dataset.encode("train"), dataset.encode("test")


@functools.cache
def long_run(run: Path | None, items: int, visits: int, draws: int) -> tuple[float, float, dict[str, Any]]:
    """The truth (nats) of the first test digits, its error, and the two runs it is made of: draws under a plan, and full sweeps."""
    model, train, test = trained(run)
    x = test[:items]
    drawn = evaluate(model, x, visits=visits, plan=Plan.fit(model, train, seed=_LONG), seed=_LONG, audit=False).nelbo
    swept = evaluate(model, x, draws=draws, seed=_LONG + 1).nelbo
    weights = torch.tensor([drawn.error**-2, swept.error**-2], dtype=torch.float64)
    truth = (weights * torch.tensor([drawn.value, swept.value])).sum() / weights.sum()
    return (
        float(truth),
        float(weights.sum()) ** -0.5,
        {
            "draws": {"nats": drawn.value, "error": drawn.error, "visits_per_item": visits},
            "sweep": {"nats": swept.value, "error": swept.error, "sweeps": draws},
            "apart_in_errors": round((drawn.value - swept.value) / math.hypot(drawn.error, swept.error), 2),
        },
    )


def digits(run: Path | None, items: int, options: dict[str, Any], visits: int = 3000, draws: int = 8) -> Case:
    """A trained model under linear β with T = 1000, on the first test digits."""
    model, train, test = trained(run)
    truth, error, notes = long_run(run, items, visits, draws)
    return Case(model, test[:items], plans(model, train), truth, options, truth_error=error, notes=notes)


def once(every: list[Plan], model: df.DiffusionModel, x: Tensor) -> None:
    """Let the plans remember what they know of these items, which no seed changes: it is most of a small evaluation's time."""
    for plan in every:
        with torch.inference_mode():
            base = plan.base(model, x)
        object.__setattr__(plan, "base", lambda _model, _x, *_, base=base: base)


# The measurement.


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One row per evaluation (S,): estimate, error, degrees of freedom, half the interval, network evaluations, rounds, flags."""

    value: Tensor
    error: Tensor
    freedom: Tensor
    half: Tensor
    evaluations: Tensor
    rounds: Tensor
    flagged: Tensor
    audit: Tensor


def repeat(case: Case, evaluations: int) -> Outcomes:
    """`evaluations` of the case, each with its own seed."""
    if isinstance(case.model, df.DiffusionModel):
        once(case.plans, case.model, case.data)
    if isinstance(case, Pair):
        assert isinstance(case.other, df.DiffusionModel)
        once(case.other_plans, case.other, case.data)
    rows = []
    for seed in range(_FIRST, _FIRST + evaluations):
        looks: set[int] = set()

        def watch(progress: Progress, looks: set[int] = looks) -> None:
            if progress.estimate is not None:
                looks.add(progress.estimate.network_evaluations)

        result = case.evaluate(seed, progress=watch)
        nelbo = result.nelbo
        low, high = result.interval(0.95)
        flagged = bool(result.caveats) or not result.reached
        audit = any(caveat.startswith("level") for caveat in result.caveats)
        used, rounds = nelbo.network_evaluations, max(1, len(looks))
        rows.append([nelbo.value, nelbo.error, result.freedom, 0.5 * (high - low), used, rounds, flagged, audit])
    return Outcomes(*torch.tensor(rows, dtype=torch.float64).T)


def summary(case: Case, outcomes: Outcomes) -> dict[str, Any]:
    """Coverage, error over spread, and bias."""
    n, sd = len(outcomes.value), float(outcomes.value.std())
    away = outcomes.value - case.truth
    # The truth's own error, where it has one, widens the interval as it widens the difference.
    half = outcomes.half * (1 + (case.truth_error / outcomes.error).square()).sqrt()
    covered, flagged = away.abs() <= half, outcomes.flagged > 0
    coverage, vouched = float(covered.double().mean()), covered[~flagged]
    ratio = float(outcomes.error.mean()) / sd
    few, middle, many = outcomes.freedom.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {
        "evaluations": n,
        "coverage": round(coverage, 4),
        "coverage_error": round(math.sqrt(coverage * (1 - coverage) / n), 4),
        "error_over_sd": round(ratio, 4),
        "rms_error_over_sd": round(float(outcomes.error.square().mean().sqrt()) / sd, 4),
        "error_over_sd_error": round(float(((away - away.mean()) / sd).pow(4).mean() - 1) ** 0.5 / 2 / math.sqrt(n), 4),
        "bias_over_sd": round(float(away.mean()) / sd, 4),
        "bias_over_sd_error": round(math.hypot(1 / math.sqrt(n), case.truth_error / sd), 4),
        "missed": {
            "estimate_above": round(float((away > half).double().mean()), 4),
            "estimate_below": round(float((away < -half).double().mean()), 4),
        },
        "flagged": round(float(flagged.double().mean()), 4),
        "coverage_reached": round(float(vouched.double().mean()), 4) if len(vouched) else None,
        "share_reached": round(1 - float(flagged.double().mean()), 4),
        "items": len(case.data),
        "network_evaluations": round(float(outcomes.evaluations.mean()), 1),
        "rounds": round(float(outcomes.rounds.mean()), 2),
        "truth_nats": round(case.truth, 5),
        "truth_error_nats": round(case.truth_error, 5),
        "mean_error_nats": round(float(outcomes.error.mean()), 5),
        "sd_nats": round(sd, 5),
        "freedom": {"5%": round(few, 1), "50%": round(middle, 1), "95%": round(many, 1)},
        "calibrated": COVERAGE[0] <= coverage <= COVERAGE[1] and RATIO[0] <= ratio <= RATIO[1],
    }


def rare_summary(case: Case, outcomes: Outcomes) -> dict[str, Any]:
    """How often the interval holds the truth, and how often the evaluation says that it can't vouch for it."""
    covered, flagged = (outcomes.value - case.truth).abs() <= outcomes.half, outcomes.flagged > 0
    shares = {
        "coverage": covered,
        "flagged": flagged,
        "flagged_by_audit": outcomes.audit > 0,
        "covered_or_flagged": covered | flagged,
    }
    out = {name: round(float(share.double().mean()), 4) for name, share in shares.items()}
    return {
        "evaluations": len(covered),
        **out,
        "items": len(case.data),
        "network_evaluations": round(float(outcomes.evaluations.mean()), 1),
        "truth_nats": round(case.truth, 4),
        "mean_estimate_nats": round(float(outcomes.value.mean()), 4),
        "mean_error_nats": round(float(outcomes.error.mean()), 4),
        "holds": out["covered_or_flagged"] >= RARE_COVERAGE,
    }


def cases(run: Path | None) -> dict[str, Callable[[], Case]]:
    """All cases by name; each is built when its turn comes."""
    look, budget = {"target_error": 1e9}, {"audit": True, "target_error": 1e9, "max_evaluations": 3000}
    return {
        "gaussian, T = 1000, uniform plan, visits": lambda: gaussian(1000, 40, {"visits": 12}, pilot=False),
        "gaussian, T = 1000, part": lambda: gaussian(1000, 400, look).aiming(0.85),
        "gaussian, continuous, target": lambda: gaussian(None, 20, look).aiming(0.62),
        "two gaussian models, T = 1000, target": lambda: pair(1000, 20, look | {"audit": True}).aiming(0.62),
        "mixture, D = 1, T = 1000, visits": lambda: mixture(1000, 1, 30, {"visits": 5}),
        "mixture, D = 1, continuous, first look": lambda: mixture(None, 1, 400, look),
        "mixture, D = 2, continuous, target": lambda: mixture(None, 2, 20, look).aiming(0.62),
        "finite, D = 2, T = 1000, first look": lambda: finite(1000, 400, look),
        "finite, D = 2, T = 1000, target": lambda: finite(1000, 20, look).aiming(0.62),
        "finite, D = 2, continuous, visits": lambda: finite(None, 20, {"visits": 4}),
        "digits, T = 1000, visits": lambda: digits(run, 30, {"visits": 5}),
        "digits, T = 1000, target": lambda: digits(run, 30, look).aiming(0.7),
        "rare level, always": lambda: rare(1.0, 60, budget).aiming(1.5),
        "rare level, in a tenth of the visits": lambda: rare(0.1, 60, budget).aiming(1.5),
    }


def trials() -> dict[str, Callable[[], Case]]:
    """Worlds in which evaluations have failed, by name."""
    look, budget = {"target_error": 1e9}, {"target_error": 1e9, "audit": True}
    return {
        "outlying items, shown by their data": lambda: outlying(True, 600, 0.1),
        "outlying items, shown by the network only": lambda: outlying(False, 600, 0.1),
        "rare spikes at one level, T = 20": lambda: spikes(20, 9, 0.02, 60, 6000),
        "rare spikes at one level, T = 1000": lambda: spikes(1000, RARE_LEVEL, 0.3, 60, 20_000),
        "heavy-tailed VAE, N = 1, target": lambda: vae(1),
        "heavy-tailed VAE, N = 4, target": lambda: vae(4),
        "heavy-tailed VAE, N = 30, target": lambda: vae(30),
        "heavy-tailed VAE, N = 30, visits": lambda: vae(30, visits=16),
        "heavy-tailed VAE, N = 4, budget": lambda: vae(4, factor=1.0),
        "conditional items, visits": lambda: conditional(40, {"visits": 8}),
        "conditional items, target": lambda: conditional(40, budget).aiming(0.62),
        "few reference items, visits": lambda: few_references(20, {"visits": 12}),
        "few reference items, target": lambda: few_references(20, budget).aiming(0.62),
        "DDPM decoder, ε-prediction, visits": lambda: ddpm(20, {"visits": 8}),
        "DDPM decoder, ε-prediction, target": lambda: ddpm(20, budget).aiming(0.62),
        "a pilot in each evaluation, ε-prediction": lambda: own_pilots(ddpm(200, look).aiming(0.5)),
        "rare difference, T = 20": lambda: rare_difference(300, 0.01),
        "uniform plan, T = 1000, target": lambda: gaussian(1000, 40, look, pilot=False).aiming(0.62),
        "budget, T = 1000, just enough": lambda: gaussian(1000, 20, look).aiming(0.62).within(1.0),
        "budget, T = 1000, a quarter more": lambda: gaussian(1000, 20, look).aiming(0.62).within(1.25),
        "budget, T = 1000, uniform plan": lambda: gaussian(1000, 40, look, pilot=False).aiming(0.62).within(1.0),
    }


def measure(name: str, run: Path | None, evaluations: int) -> dict[str, Any]:
    """One case from data to books."""
    rare_level, is_trial, start = name.startswith("rare level"), name in trials(), time.process_time()
    case = (cases(run) | trials())[name]()
    built = time.process_time()
    outcomes = repeat(case, evaluations // 4 if rare_level or is_trial else evaluations)
    took = time.process_time() - built
    row = (rare_summary if rare_level else summary)(case, outcomes) | case.notes
    row["milliseconds_per_evaluation"] = round(1e3 * took / len(outcomes.value), 1)
    row["cpu_seconds"] = round(time.process_time() - start, 1)
    return row | {"trial": is_trial, "commit": commit()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="of a digits model; without it the recipe is trained")
    parser.add_argument(
        "--evaluations", type=int, default=4000, help="of each case; a quarter of it for the rare level and the trials"
    )
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="only cases whose name has one of these words")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, each on one thread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calibration.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = cases(args.run) | trials()
    wanted = [name for name in every if not args.cases or any(word in name for word in args.cases)]
    record: dict[str, Any] = {
        "machine": machine(),
        "wanted": {
            "coverage": COVERAGE,
            "error_over_sd": RATIO,
            "rare: covered_or_flagged": RARE_COVERAGE,
            "trials: coverage and coverage_reached": TRIAL_COVERAGE,
        },
        "plans_per_case": PLANS,
        "cases": {},
    }
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {name: pool.submit(measure, name, args.run, args.evaluations) for name in wanted}
        for name, row in running.items():
            record["cases"][name] = row.result()
            print(f"{name}: {json.dumps(row.result())}", flush=True)
            save(args.out, record)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
