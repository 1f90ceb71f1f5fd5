"""Was the network read as it was trained? A search over readings, by the error of the noise that each implies.

A network is called with a scaled z and a time, and its output is a combination a x + b ε. A *reading* declares all of this:

    z = α m(x) + σ ε          m: the encoding of the data in the network's training, such as [0, 1]
    output = f(s(γ) z, τ(γ))  s: the scaling of its input; τ: its clock, the time that it takes for a noise level
    output ≈ a(γ) m(x) + b(γ) ε,    so    ε̂ = (α output − a z)/(α b − a σ)

The noise ε has the same units in every reading, so that readings can be compared at the same γ. The score of a reading is

    S = mean over γ of  ln E‖ε − ε̂‖²/D,

and the reading with which the network was trained has the lowest, if it was trained at all. All combinations are tried, since two
mistakes can hide each other; most are dropped after a few evaluations. A bound cannot do this: a wrong schedule can lower it.

What cannot be found: a clock that is off by one step (its effect is below 0.02 bits/dim), weights that are not those of the moving
average, and any reading that is not among those tried.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from diffusional import schedule
from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import DATA, NOISE, VELOCITY, Adapter, Coefficient, Output, V, value_at
from diffusional.interop.betas import betas
from diffusional.interop.clocks import FlowTime, SigmaTime, edm_output, edm_scale, flow_scale, ve_scale
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.calls import call
from diffusional.models.denoiser import Denoiser, network_dtype, read
from diffusional.models.time import Affine
from diffusional.seeds import check_seed
from diffusional.shapes import align
from diffusional.space import Discrete

# A reading is reported if its score is lower than that of the declared one by this, and by this many standard errors.
_MARGIN, _ERRORS = 0.1, 4.0
# Rounds of the search: the number of items, of noise levels, and the share of the readings that goes on.
_ROUNDS = ((2, 4, 0.25), (6, 7, 0.2))
_FEWEST = 12
# The short search: readings that differ from the declared one by how the network is called in one way only, and how many of them go on.
_SHORT_ROUNDS = ((2, 4, 0.0),)
_SHORT_FEWEST = 3
# Items and noise levels of the short form.
SHORT_ITEMS, SHORT_LEVELS = 24, 7
# A slope is off if it differs from 1 by this, and by _ERRORS standard errors; a reading does not fit if this share of its slopes is.
_SLOPE, _MANY = 0.4, 0.25
# Noise levels γ where the search looks, for data in [−1, 1]. Below, a step of the usual schedules is too wide to distinguish clocks; above,
# z itself is so good an estimate of ε that any output that is mixed with much of z looks good.
_GAMMA = (-5.5, 3.5)
# What each declaration that differs must lower the score by: of two readings that are nearly as good, the simpler is reported.
_PRICE = 0.1
DECLARED = "as declared"

# What an output may be.
OUTPUTS: dict[str, Output] = {
    "noise": NOISE,
    "data": DATA,
    "v": V,
    "score": Output(0.0, lambda gamma: -1 / sigma(gamma)),
    "velocity": VELOCITY,
    "velocity towards the data": Output(1.0, -1.0),
    "EDM's F, σ_data = 0.5": edm_output(0.5),
    "EDM's F, σ_data = 1": edm_output(1.0),
}
# How z may be scaled before the network sees it. EDM's scaling with σ_data = 1 is z itself.
INPUTS: dict[str, Coefficient] = {
    "z": 1.0,
    "z/α": ve_scale,
    "z/(α + σ)": flow_scale,
    "z/α divided by √(σ²/α² + 0.25)": edm_scale(0.5),
}


@dataclass(frozen=True)
class Reading:
    """How a network is read: five declarations by name.

    >>> Reading("noise", "z", "as declared", "[−1, 1]", "RGB").differences(Reading("v", "z", "as declared", "[0, 1]", "RGB"))
    {'output': ('noise', 'v'), 'data': ('[−1, 1]', '[0, 1]')}
    """

    output: str
    input: str
    clock: str
    data: str
    channels: str

    def differences(self, other: "Reading") -> dict[str, tuple[str, str]]:
        """Return the declarations that differ, by name, with both values."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def __str__(self) -> str:
        return "; ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `check_denoiser` found.

    Attributes:
        declared, best: the reading that the model declares, and the one with the lowest score.
        margin, error: how much lower the score of `best` is, and its standard error over items; 0 if the declared reading is the best.
        gamma, slope, squared_error: at every noise level (L,): γ, the slope ⟨target, output⟩/⟨output, output⟩ of the declared reading,
            which is 1 for a network that is read as it was trained, and E‖ε − ε̂‖²/D.
        ranked: the best readings with their scores, the lowest first.
        findings: what is probably wrong, one sentence each; empty if nothing was found.
        network_evaluations: in all.
        remedies: what to change, one sentence for each declaration that is wrong.
    """

    declared: Reading
    best: Reading
    margin: float
    error: float
    gamma: Tensor
    slope: Tensor
    squared_error: Tensor
    ranked: tuple[tuple[Reading, float], ...]
    findings: tuple[str, ...]
    network_evaluations: int
    remedies: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the record that `diffusional check --json` writes."""
        return {
            "format": 1,
            "declared": vars(self.declared),
            "best": vars(self.best),
            "margin": self.margin,
            "margin_error": self.error,
            "gamma": self.gamma.tolist(),
            "slope": self.slope.tolist(),
            "squared_error": self.squared_error.tolist(),
            "ranked": [{**vars(reading), "score": score} for reading, score in self.ranked],
            "findings": list(self.findings),
            "remedies": list(self.remedies),
            "network_evaluations": self.network_evaluations,
        }

    def line(self) -> str:
        """Return the findings and what to do about them in one line, as `diffusional evaluate` prints them."""
        cost = f"{self.network_evaluations:,} network evaluations"
        if not self.findings:
            return f"nothing found in {cost}: the network fits the declared reading"
        return f"{'; '.join([*self.findings, *self.remedies])} (found in {cost})"

    def __str__(self) -> str:
        findings = self.findings or (f"nothing found in {self.network_evaluations:,} network evaluations",)
        lines = [*findings, f"declared: {self.declared}"]
        if self.best != self.declared:
            lines.append(f"best:     {self.best} (score lower by {self.margin:.2f} ± {self.error:.2f})")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Call:
    """How the network is called in a reading: names of the input, the clock, the data and the channels, and their functions.

    `zoom` is the scale of the network's data relative to ours. The same noise in units of the data is then at γ + 2 ln zoom.
    """

    input: str
    clock: str
    data: str
    channels: str
    scale: Coefficient
    time: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    zoom: float = 1.0

    def reading(self, output: str) -> Reading:
        return Reading(output, self.input, self.clock, self.data, self.channels)


@dataclass(frozen=True, eq=False)
class _Seen:
    """x in the network's encoding, ε, z and the network's output (levels, items, *dims), and γ (levels, 1, …)."""

    x: Tensor
    noise: Tensor
    z: Tensor
    output: Tensor
    gamma: Tensor

    def target(self, of: Output) -> Tensor:
        """Return a x + b ε, what an output with these coefficients estimates."""
        a, b = of.at(self.gamma)
        return a * self.x + b * self.noise

    def of_z(self) -> Tensor:
        """Return ‖ε − c z‖²/D (levels, items) with the best c for every level: the error of a prediction from z only."""
        rest = tuple(range(1, self.z.ndim))
        c = (self.noise * self.z).sum(rest, keepdim=True) / self.z.square().sum(rest, keepdim=True)
        return (self.noise - c * self.z).square().flatten(2).mean(2)

    def squared_error(self, of: Output) -> Tensor:
        """Return ‖ε − ε̂‖²/D (levels, items), float64; infinite where it is not a number."""
        a, b = of.at(self.gamma)
        alphas, sigmas = alpha(self.gamma), sigma(self.gamma)
        implied = (alphas * self.output - a * self.z) / (alphas * b - a * sigmas)
        squares = (self.noise - implied).square().flatten(2).mean(2)
        return torch.where(torch.isfinite(squares), squares, math.inf)


class _Network:
    """A denoiser's module, and the items, noise and noise levels at which readings of it are compared."""

    def __init__(
        self, denoiser: Denoiser, space: object, x: Tensor, noise: Tensor, condition: Condition | None, gamma: Tensor
    ) -> None:
        self.denoiser, self.space, self.condition, self.gamma = denoiser, space, condition, gamma
        self.x, self.noise = x, noise
        self.dtype = network_dtype(denoiser.module) or x.dtype
        self.calls = 0
        name, own = _output(denoiser, gamma)
        # What the output may be, the declared kind first. A levels head's output is read as it is.
        self.outputs = {name: own}
        if denoiser.predicts != "levels":
            self.outputs |= {other: of for other, of in OUTPUTS.items() if other != name}
        self.inputs = dict([_input(denoiser, gamma)]) | INPUTS

    def seen(self, how: _Call, items: int, levels: Tensor) -> _Seen:
        """Call the network on the first `items` at chosen noise levels."""
        gamma = (self.gamma[levels] + 2 * math.log(how.zoom)).repeat_interleave(items)
        rows = torch.arange(items).repeat(len(levels))
        x, noise = how.encode(self.x[rows].double()), self.noise[rows]
        g = align(gamma, x)
        z = alpha(g) * x + sigma(g) * noise
        time = how.time(gamma)
        time = time.to(self.dtype) if time.dtype.is_floating_point else time
        condition = moved(rows_of(self.condition, rows), x.device)
        output = call(self.denoiser.module, (value_at(how.scale, g) * z).to(self.dtype), time, condition=condition)
        self.calls += len(z)
        if self.denoiser.learns_variance:
            output = output[:, : z.shape[1]]
        if self.denoiser.predicts == "levels":
            assert isinstance(self.space, Discrete)
            output = read(output, z.to(self.dtype), gamma, "levels", self.denoiser.head, self.space).data
        if output.shape != z.shape:
            raise DiffusionalError(
                f"expected the network to return the shape {tuple(z.shape)} of z, got {tuple(output.shape)}: a network with a learned "
                "variance needs learns_variance=True"
            )
        shape = (len(levels), items, *x.shape[1:])
        x, noise, z, output = (t.double().reshape(shape) for t in (x, noise, z, output))
        return _Seen(x, noise, z, output, gamma.reshape(len(levels), items, *[1] * (x.ndim - 2)))

    def tried(self, how: _Call, items: int, levels: Tensor) -> _Seen | None:
        """Call the network like `seen`; None if it cannot be called so."""
        try:
            return self.seen(how, items, levels)
        except (DiffusionalError, RuntimeError, IndexError, ValueError):
            return None

    def errors(self, how: _Call, items: int, levels: Tensor) -> dict[str, Tensor]:
        """Return ‖ε − ε̂‖²/D (levels, items) for each kind of output; infinite where the network cannot be called so."""
        seen = self.tried(how, items, levels)
        if seen is None:
            return {name: torch.full((len(levels), items), math.inf, dtype=torch.float64) for name in self.outputs}
        return {name: seen.squared_error(of) for name, of in self.outputs.items()}


def check_denoiser(
    model: LatentVariableModel,
    data: Tensor,
    *,
    condition: Condition | None = None,
    items: int = 16,
    levels: int = 14,
    seed: int = 0,
    search: bool | Literal["short"] = True,
) -> Diagnosis:
    """Find out whether a diffusion model's network is read as it was trained.

    The output's kind (noise, data, v, score, a flow's velocity, EDM's F), the scaling of the input, the clock (schedule, direction, scale),
    the range of the data and the order of the channels are searched together. `Diagnosis.findings` is empty if no other reading fits the
    network clearly better.

    Args:
        model: a Gaussian diffusion model.
        data: (N, *space.shape), encoded, N ≥ 2, of the kind that the network was trained on; the first `items` are used.
        condition: (N, …) for conditional models.
        items, levels: number of items and of noise levels of the last round of the search.
        seed: of the noise.
        search: "short" tries the readings that differ from the declared one in one way (any output with each of them), in about a thousand
            network evaluations: two mistakes at once are reported, but not named. If False, only the slopes of the declared reading are
            computed, in 2 × items × levels network evaluations.

    Raises DiffusionalError for models without a Gaussian denoiser, for data that the space refuses and for fewer than 2 items.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(2), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    >>> x = world.sample(64, torch.Generator().manual_seed(0))
    >>> forward, decoder = GaussianDiffusion(schedule.linear()), likelihood.GaussianLikelihood(Continuous((2,)))
    >>> network = world.denoiser()                                       # predicts the data
    >>> check_denoiser(DiffusionModel(forward, network, decoder), x).findings
    ()
    >>> wrong = Denoiser(network.module, "v")
    >>> check_denoiser(DiffusionModel(forward, wrong, decoder), x).best.output
    'data'
    """
    denoiser, process = _denoiser(model), getattr(model, "process", None)
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    if len(data) < 2 or items < 2:
        raise DiffusionalError(f"expected at least 2 items, got {min(len(data), items)}")
    if levels < 2:
        raise DiffusionalError(f"expected at least 2 noise levels, got {levels}")
    if not isinstance(search, bool) and search != "short":
        raise DiffusionalError(f'expected search to be True, False or "short", got {search!r}')
    device, declared = device_of(model, data), process.schedule  # type: ignore[union-attr]
    x = data[:items].to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)
    gamma = _gammas(declared, model.space, levels).to(device)
    with torch.inference_mode(), evaluation_mode(model):
        network = _Network(denoiser, model.space, x, noise, condition, gamma)
        seen_as, scale = next(iter(network.inputs.items()))
        first = _Call(seen_as, DECLARED, _range(model.space), DECLARED, scale, _own(denoiser), lambda x: x)
        others = _calls(first, denoiser, model.space, declared, network) if search else []
        if search == "short":
            others = [how for how in others if len(first.reading("").differences(how.reading(""))) == 1]
            return _searched(network, first, others, _SHORT_ROUNDS, _SHORT_FEWEST)
        return _searched(network, first, others)


def _denoiser(model: LatentVariableModel) -> Denoiser:
    """Return the denoiser of a model, without the clipping of its predictions."""
    denoiser = getattr(model, "denoiser", None)
    inner = getattr(getattr(denoiser, "module", None), "denoiser", None)
    denoiser = inner if isinstance(inner, Denoiser) else denoiser
    if not isinstance(denoiser, Denoiser) or getattr(getattr(model, "process", None), "schedule", None) is None:
        raise DiffusionalError(
            f"expected a Gaussian diffusion model with a denoiser, got {type(model).__name__}: only networks that are read by a noise "
            "level can be checked. Of a model that contains a diffusion, give that part"
        )
    return denoiser


def _gammas(declared: schedule.Schedule, space: object, levels: int) -> Tensor:
    """Return noise levels (L,), evenly spaced in γ; those of the schedule's own grid where it has one."""
    zoom = 2 * math.log((space.high - space.low) / 2) if isinstance(space, Discrete) else 0.0
    ends = declared.ends().detach().double().cpu()
    low, high = max(float(ends[0]), _GAMMA[0] + zoom), min(float(ends[1]), _GAMMA[1] + zoom)
    if low >= high:
        low, high = float(ends[0]), float(ends[1])
    wanted = torch.linspace(low, high, levels, dtype=torch.float64)
    if declared.steps is None:
        return wanted
    grid = declared.grid().detach().double().cpu()
    return grid[torch.cdist(wanted[:, None], grid[:, None]).argmin(1)].unique()


def _searched(
    network: _Network,
    first: _Call,
    others: Sequence[_Call],
    rounds: Sequence[tuple[int, int, float]] = _ROUNDS,
    fewest: int = _FEWEST,
) -> Diagnosis:
    """Run the rounds of the search, and report what they found. The declared reading is that of `first`, with the declared output."""
    count, every = len(network.x), torch.arange(len(network.gamma))
    left = list(others)
    for items, levels, share in rounds:
        some = every[torch.linspace(0, len(every) - 1, min(levels, len(every))).round().long().unique()]
        scores = [min(map(_score, network.errors(how, min(items, count), some).values())) for how in left]
        order = sorted(range(len(left)), key=scores.__getitem__)
        left = [left[i] for i in order[: max(fewest, math.ceil(share * len(left)))] if math.isfinite(scores[i])]
    # An error of the declared reading is the user's; those of others only show that they are not the right ones.
    seen = network.seen(first, count, every)
    own, of_own = next(iter(network.outputs.items()))
    declared = first.reading(own)
    found = {first.reading(name): seen.squared_error(of) for name, of in network.outputs.items()}

    def price(reading: Reading) -> float:
        return _score(found[reading]) + _PRICE * len(declared.differences(reading))

    best, of_best = min(found, key=price), seen
    for how in left:
        other = network.tried(how, count, every)
        if other is None:
            continue
        new = {how.reading(name): other.squared_error(of) for name, of in network.outputs.items()}
        found |= new
        nearest = min(new, key=price)
        if price(nearest) < price(best):
            best, of_best = nearest, other
    scores = {reading: _score(errors) for reading, errors in found.items()}
    ranked = sorted(scores, key=scores.__getitem__)
    margin, spread = _margin(found[declared], found[best]) if best != declared else (0.0, 0.0)
    slope, uncertain = _slopes(seen.target(of_own), seen.output)
    random = not torch.equal(network.seen(first, count, every).output, seen.output)
    worse, doubt = _margin(found[declared], seen.of_z())
    idle = not math.isfinite(worse) or worse > max(_MARGIN, _ERRORS * doubt)
    fits = True
    if best != declared:
        fits = not _off(*_slopes(of_best.target(network.outputs[best.output]), of_best.output))
        fits = fits and scores[best] < _score(of_best.of_z()) - _MARGIN
    findings, remedies = _findings(declared, best, margin, spread, network.gamma, slope, uncertain, random, fits, idle)
    return Diagnosis(
        declared,
        best,
        margin,
        spread,
        network.gamma.cpu(),
        slope.cpu(),
        found[declared].mean(1).cpu(),
        tuple((reading, scores[reading]) for reading in ranked[:5]),
        findings,
        network.calls,
        remedies,
    )


def _slopes(target: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return ⟨target, output⟩/⟨output, output⟩ (L,) of (L, items, *dims), and its standard error by leaving out one item at a time."""
    shared, power = (t.double().flatten(2).sum(2) for t in (target * output, output * output))
    sums, powers = shared.sum(1, keepdim=True), power.sum(1, keepdim=True)
    spread = _jackknife((sums - shared) / (powers - power))
    return (sums / powers).squeeze(1).nan_to_num(), spread.nan_to_num()


def _jackknife(without: Tensor) -> Tensor:
    """Return the standard error (…) of an estimate from its values without one of n items each (…, n)."""
    n = without.shape[-1]
    return ((n - 1) / n * (without - without.mean(-1, keepdim=True)).square().sum(-1)).sqrt()


def _score(errors: Tensor) -> float:
    """Return S of errors (levels, items), which is the mean of the logarithm of the mean error of each level."""
    return float(errors.mean(1).clamp(min=1e-300).log().mean())


def _margin(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Return how much lower the score of `other` is, and the standard error over items, by leaving out one item at a time."""
    n = own.shape[1]
    value = _score(own) - _score(other)
    rest = [torch.arange(n) != i for i in range(n)]
    without = torch.tensor([_score(own[:, kept]) - _score(other[:, kept]) for kept in rest], dtype=torch.float64)
    return value, float(_jackknife(without))


# What to change, by the declaration that is wrong.
_REMEDIES = {
    "output": "declare the output: prediction_type of the scheduler's config, or predicts= of df.wrap",
    "input": "declare how z is scaled: another scheduler=, or reads= and scale= of df.wrap",
    "clock": "give the time that it was trained with: the scheduler's config of the training, or time=",
    "data": "encode the data in that range: space=df.Discrete(shape, levels, low, high)",
    "channels": "reverse the channels of the data",
}

_SAID = {
    "output": "its output is {1}, and {0} is declared",
    "input": "it takes {1} as its input, and gets {0}",
    "clock": "its clock is {1}, and another one is declared",
    "data": "it was trained on data in {1}, and gets data in {0}",
    "channels": "it was trained with the channels of the data {1}",
}


def _off(slope: Tensor, uncertain: Tensor) -> bool:
    """Return whether many slopes differ from 1."""
    return float(_wrong(slope, uncertain).double().mean()) > _MANY


def _wrong(slope: Tensor, uncertain: Tensor) -> Tensor:
    return (slope - 1).abs() > torch.clamp(_ERRORS * uncertain, min=_SLOPE)


def _findings(
    declared: Reading,
    best: Reading,
    margin: float,
    error: float,
    gamma: Tensor,
    slope: Tensor,
    uncertain: Tensor,
    random: bool,
    fits: bool,
    idle: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is probably wrong, and what to do about it."""
    found, remedies = [], []
    if random:
        found.append(
            "the network returns different outputs for the same input: dropout or another source of noise is on"
        )
        remedies.append("turn dropout off, which `eval()` does for an nn.Module")
    clear = not math.isfinite(margin) or margin > max(_MARGIN, _ERRORS * error)
    if clear and fits:
        wrong = declared.differences(best)
        parts = [_SAID[name].format(*pair) for name, pair in wrong.items()]
        remedies += [_REMEDIES[name] for name in wrong]
        found.append(
            f"the network fits another reading better: {'; '.join(parts)} (score lower by {margin:.2f} ± {error:.2f})"
        )
    elif not random and (idle or _off(slope, uncertain)):
        off = _wrong(slope, uncertain) if _off(slope, uncertain) else torch.ones_like(slope, dtype=torch.bool)
        at = [f"{float(s):.2f} at γ = {float(g):.1f}" for s, g in zip(slope[off][:3], gamma[off][:3], strict=True)]
        remedies.append("compare the checkpoint's files and its scheduler with those of its training")
        found.append(
            f"the network does not fit the declared reading (slopes of {', '.join(at)}; expected 1"
            f"{'; its estimate of the noise is worse than a multiple of z' if idle else ''}), nor any other that was tried: it is untrained or "
            f"badly trained, its weights were not loaded, or it is read in a way that is not known here{f'. The nearest is: {best}' if clear else ''}"
        )
    return tuple(found), tuple(remedies)


def _output(denoiser: Denoiser, gamma: Tensor) -> tuple[str, Output]:
    """Return the declared output, with its name."""
    if not isinstance(denoiser, Adapter):
        name = "data" if denoiser.predicts == "levels" else denoiser.predicts
        return name, OUTPUTS[name]
    own = denoiser.output.at(gamma)
    for name, known in OUTPUTS.items():
        if all(torch.allclose(a, b) for a, b in zip(own, known.at(gamma), strict=True)):
            return name, known
    return DECLARED, denoiser.output


def _input(denoiser: Denoiser, gamma: Tensor) -> tuple[str, Coefficient]:
    """Return the declared scaling of the input, with its name."""
    own: Coefficient = denoiser.scale if isinstance(denoiser, Adapter) else 1.0
    values = value_at(own, gamma)
    same = (name for name, known in INPUTS.items() if torch.allclose(values, value_at(known, gamma)))
    return next(same, DECLARED), own


def _own(denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """Return the declared clock."""
    return _of_gamma(Affine() if denoiser.time is None else denoiser.time)


def _of_gamma(time: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a clock as a function of γ from one of log SNR."""
    return lambda gamma: time(-gamma)


def _range(space: object) -> str:
    return f"[{space.low:g}, {space.high:g}]".replace("-", "−") if isinstance(space, Discrete) else "its own units"


def _calls(
    first: _Call, denoiser: Denoiser, space: object, declared: schedule.Schedule, network: _Network
) -> list[_Call]:
    """Return all other ways to call the network; of clocks that show the same times, one."""
    x, gamma = network.x, network.gamma
    own = first.time
    if declared.steps is not None:
        # Data on another scale have other γ, and a clock may refuse those that are not on its grid.
        grid = declared.grid().detach().double().to(gamma.device)
        index = _index(grid)
        own = lambda gamma: first.time(grid[index(gamma)])  # noqa: E731
    clocks: dict[str, Callable[[Tensor], Tensor]] = {}
    times: list[Tensor] = []
    for name, clock in {first.clock: own, **_clocks(own, declared, gamma)}.items():
        shown = clock(gamma).double()
        if not any(torch.allclose(shown, other, rtol=1e-3, atol=1e-3) for other in times):
            times.append(shown)
            clocks[name] = clock
    levels = denoiser.predicts == "levels"
    ranges = {first.data: (1.0, 0.0)} | ({} if levels else _ranges(space, x.double()))
    orders: dict[str, Callable[[Tensor], Tensor]] = {DECLARED: lambda x: x}
    if x.ndim > 2 and x.shape[1] == 3:
        orders["reversed"] = lambda x: x.flip(1)
    found = [
        _Call(scale, clock, name, order, of_scale, time, lambda x, m=m, k=k, turn=turn: turn(m * x + k), m)  # type: ignore[misc]
        for scale, of_scale in network.inputs.items()
        for clock, time in clocks.items()
        for name, (m, k) in ranges.items()
        for order, turn in orders.items()
    ]
    return [how for how in found if how.reading("") != first.reading("")]


def _ranges(space: object, x: Tensor) -> dict[str, tuple[float, float]]:
    """Return encodings m x + k of our x on which networks are trained, by name: (m, k)."""
    spread = float(x.std())
    standard = {"standardised": (1 / spread, -float(x.mean()) / spread)} if spread > 0 else {}
    if not isinstance(space, Discrete):
        return standard
    ends = {"[−1, 1]": (-1.0, 1.0), "[0, 1]": (0.0, 1.0), "[−0.5, 0.5]": (-0.5, 0.5), "[0, 255]": (0.0, 255.0)}
    maps = {}
    for name, (low, high) in ends.items():
        m = (high - low) / (space.high - space.low)
        if not (math.isclose(low, space.low) and math.isclose(high, space.high)):
            maps[name] = (m, low - m * space.low)
    return maps | standard


def _clocks(
    own: Callable[[Tensor], Tensor], declared: schedule.Schedule, gamma: Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return clocks by name: times as functions of γ."""
    steps = declared.steps or 1000
    last = steps - 1
    ends = declared.ends().detach().double().to(gamma.device)
    shown = own(declared.grid().detach().double().to(gamma.device) if declared.steps else gamma).double()
    low, high = float(shown.min()), float(shown.max())
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "as declared, reversed": lambda g: low + high - own(g).double(),
        f"as declared, divided by {steps}": lambda g: own(g).double() / steps,
        f"as declared, times {steps}": lambda g: own(g).double() * steps,
    }
    schedules = {
        "the linear schedule's index": schedule.linear(steps),
        "the scaled linear schedule's index": schedule.from_betas(betas("scaled_linear", steps, 0.00085, 0.012)),
        "the cosine schedule's index": schedule.cosine(steps),
        "the declared schedule's index": declared
        if declared.steps
        else schedule.log_snr_linear(float(ends[0]), float(ends[1]), steps),
    }
    for name, one in schedules.items():
        grid = one.grid().detach().double().to(gamma.device)
        index = _index(grid)
        found[name] = index
        found[f"{name}, reversed"] = lambda g, index=index: last - index(g)
        found[f"{name}, divided by {steps}"] = lambda g, index=index: index(g).double() / steps
    times = {
        "log SNR": Affine(),
        "−log SNR": Affine(-1.0),
        "a quarter of ln σ/α": SigmaTime("log"),
        "σ/α": SigmaTime("sigma"),
        "a flow's time from data to noise": FlowTime(),
        "a flow's time from noise to data": FlowTime(of_data=True),
        "a flow's time from data to noise, times 1000": FlowTime(1000.0),
        "a flow's time from noise to data, times 1000": FlowTime(1000.0, of_data=True),
    }
    return found | {name: _of_gamma(time) for name, time in times.items()}


def _index(grid: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the index 0 … T − 1 of the level of a grid (T,) that is nearest to γ."""
    return lambda gamma: (gamma.double()[:, None] - grid).abs().argmin(1)
