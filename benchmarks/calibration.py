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

An evaluation is `flagged` where it has caveats (an error that rests on few draws), or was not `reached`; flagged or not, all count.

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
from provenance import machine, save
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation import Evaluation, Plan, Progress, compare, evaluate

COVERAGE, RATIO, RARE_COVERAGE = (0.94, 0.96), (0.9, 1.1), 0.9
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
        plans: learned once; evaluation s is under plan s modulo their number.
        truth, truth_error: mean NELBO of `data`, nats.
        options: of `evaluate`.
        condition: of the items, for conditional models.
    """

    model: df.DiffusionModel
    data: Tensor
    plans: list[Plan]
    truth: float
    options: dict[str, Any]
    truth_error: float = 0.0
    condition: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, seed: int, **options: Any) -> Evaluation:
        """One evaluation; `options` go before the case's own."""
        plan = self.plans[seed % len(self.plans)]
        chosen = {"audit": False, "unit": "nats", **self.options, **options}
        return evaluate(self.model, self.data, seed=seed, plan=plan, condition=self.condition, **chosen)

    def aiming(self, factor: float) -> "Case":
        """The case with a target: `factor` times the error (the median of 32) after the first look."""
        looks = [self.evaluate(_LOOK + i, target_error=1e9, audit=False).nelbo.error for i in range(32)]
        target = factor * statistics.median(looks)
        notes = self.notes | {"factor": factor, "target_nats": target}
        return replace(self, options=self.options | {"target_error": target}, notes=notes)


@dataclass(frozen=True, eq=False)
class Pair(Case):
    """The difference of `model` and `other` on the same noise; `truth` is the difference's."""

    other: df.DiffusionModel | None = None
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

    decoder: "gaussian" is N(x̂, σ_1²/α_1²), "levels" is Bayes' rule over the levels.
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
    """A denoiser that errs by `shift` at one level in a part of its visits, under condition 1."""

    def __init__(self, world: exact.Gaussian, gamma: float, shift: float, part: float) -> None:
        super().__init__()
        self.plain, self.gamma, self.shift, self.part = world.denoiser("noise").module, gamma, shift, part

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        said = self.plain(z, log_snr)
        if condition is None:
            return said
        # The phase of a fast wave in z: uniform, whatever z's density, and in effect independent of it.
        phase = torch.remainder(1e4 * z[:, 0].double(), 1.0)
        there = ((-log_snr.double() - self.gamma).abs() < 1e-4) & (condition > 0) & (phase < self.part)
        said = said.clone()
        said[there, 1] += self.shift
        return said


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
    # ‖ε − ε̂ − s‖² = ‖ε − ε̂‖² + ‖s‖² − 2 s·(ε − ε̂), and E (ε − ε̂) = (α/σ)(I − α K)(m − x).
    alpha2, sigma2 = 1 / (1 + math.exp(at)), 1 / (1 + math.exp(-at))
    kept = sigma2 / (alpha2 * other.eigenvalues[0] + sigma2)
    vectors = other.eigenvectors[0]
    off = math.sqrt(alpha2 / sigma2) * ((other.means[0] - x.double()) @ vectors * kept) @ vectors.T
    more = part * (RARE_NATS - 2 * slope * shift * off[:, 1])
    truth = true_costs(model, x, lambda x, gamma: linear_noise_errors(other, x, gamma)) + more
    chosen = plans(model, reference, torch.zeros(len(reference)))
    return Case(model, x, chosen, float(truth.mean()), options, condition=torch.ones(items))


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
        object.__setattr__(plan, "base", lambda _model, _x, base=base: base)


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
    once(case.plans, case.model, case.data)
    if isinstance(case, Pair):
        assert case.other is not None
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
        "coverage_of_others": round(float(vouched.double().mean()), 4) if len(vouched) else None,
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


def measure(name: str, run: Path | None, evaluations: int) -> dict[str, Any]:
    """One case from data to books."""
    rare_level, start = name.startswith("rare"), time.process_time()
    case = cases(run)[name]()
    built = time.process_time()
    outcomes = repeat(case, evaluations // 4 if rare_level else evaluations)
    took = time.process_time() - built
    row = (rare_summary if rare_level else summary)(case, outcomes) | case.notes
    row["milliseconds_per_evaluation"] = round(1e3 * took / len(outcomes.value), 1)
    row["cpu_seconds"] = round(time.process_time() - start, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="of a digits model; without it the recipe is trained")
    parser.add_argument(
        "--evaluations", type=int, default=4000, help="of each case; a quarter of it for the rare level"
    )
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="only cases whose name has one of these words")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, each on one thread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calibration.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name for name in cases(args.run) if not args.cases or any(word in name for word in args.cases)]
    record: dict[str, Any] = {
        "machine": machine(),
        "wanted": {"coverage": COVERAGE, "error_over_sd": RATIO, "rare: covered_or_flagged": RARE_COVERAGE},
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
