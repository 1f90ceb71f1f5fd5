"""Was the network read as it was trained? A search over readings, by the error of the noise that each implies.

A network is called with a scaled z and a time, and its output is a combination a x + b ε. A *reading* declares all of this:

    z = α m(x) + σ ε          m: the encoding of the data in the network's training, such as [0, 1]
    output = f(s(γ) z, τ(γ))  s: the scaling of its input; τ: its clock, the time that it takes for a noise level
    output ≈ a(γ) m(x) + b(γ) ε,    so    ε̂ = (α output − a z)/(α b − a σ)

The noise ε has the same units in every reading, so that readings can be compared at the same γ. The score of a reading is

    S = mean over γ of  ln min(E‖ε − ε̂‖², E‖ε − c z‖²)/D,        c: the best multiple of z at this γ,

and the reading with which the network was trained has the lowest, if it was trained at all. Errors above that of z count like it: a network
of ε is a bad estimate at high noise and one of x at low noise, and outputs that are mixed with z are less bad there whatever the network is.
All combinations are tried, since two mistakes can hide each other; most are dropped after a few evaluations. An error is a quadratic form
of products of the network's output with ε and z, so that one call serves all kinds of output. A bound cannot do this: a wrong schedule can
lower it.

The output of a trained network is calibrated: the slope ⟨target, output⟩/⟨output, output⟩ is 1 at every γ. Readings whose slopes are not 1
are ranked lower. If a network fits no reading, wrong slopes show it; and the scale of its input is varied with the best p and q of an
estimate p · output + q z, which finds a wrong scaling in code that combines output and z in its own way.

What cannot be found: a clock that is off by one step (its effect is below 0.02 bits/dim), weights that are not those of the moving
average, any reading that is not among those tried, and a wrong clock or scaling of a network that hardly depends on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

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
_MARGIN, _ERRORS = 0.05, 4.0
# An estimate of the noise that is not better than a multiple of z by this is none.
_IDLE = 0.05
# Rounds of the search: the number of items, of noise levels, and the share of the readings that goes on. Small items are more at a time,
# so that every noise level has this many values.
_ROUNDS = ((1, 3, 0.25), (2, 4, 0.25), (6, 7, 0.25))
_FEWEST = 4
_VALUES = 32
# Values of all items together.
_ENOUGH = 128
# A mean squared error below this is as good as none: networks in float32 cannot do better.
_LEAST = 1e-12
# A wrong clock may not be found if times in reversed order change the score by less than this.
_DULL = 0.2
# The short search: readings that differ from the declared one by how the network is called in one way only, and how many of them go on.
_SHORT_ROUNDS = ((2, 4, 0.0),)
_SHORT_FEWEST = 3
# Items and noise levels of the short form.
SHORT_ITEMS, SHORT_LEVELS = 24, 7
# A slope is wrong if it differs from 1 by _ERRORS standard errors and costs this much of ln E‖ε − ε̂‖²; a reading does not fit if this share
# of its slopes is wrong. (A network may be far from calibrated where its output counts for little beside z.)
_GAIN, _MANY = 0.25, 0.25
# Slopes that are so near to 1 are not ranked by their distance from it.
_NEAR = 0.1
# Noise levels γ where the search looks, for data in [−1, 1]. Below, a step of the usual schedules is too wide to distinguish clocks; above,
# z itself is so good an estimate of ε that any output that is mixed with much of z looks good.
_GAMMA = (-5.5, 3.5)
# What each declaration that differs after the first must lower the score by: of two readings that are nearly as good, the simpler is reported.
_PRICE = 0.1
# An input is scaled wrongly if another scaling lowers the score by this, at noise levels up to this γ. Above it, a smaller input helps many
# networks that are right.
_RESCALED, _SCALED = 0.08, 1.5
# Errors of a network or a clock that cannot be called in a way.
_REFUSALS = (DiffusionalError, RuntimeError, IndexError, ValueError)
DECLARED = "as declared"
# The note about what no check finds, and the one if the two copies of the weights were compared.
NOT_FOUND = "a time that is off by one step, and weights that are not those of the moving average, cannot be found"
NOT_FOUND_OF_BOTH = "a time that is off by one step cannot be found"

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
# What a scaling that was left out, or done twice, multiplies the input by.
_FACTORS: dict[str, Coefficient] = {
    "α": alpha,
    "1/α": ve_scale,
    "α + σ": lambda gamma: alpha(gamma) + sigma(gamma),
    "1/(α + σ)": flow_scale,
    "1/√(σ²/α² + 0.25)": lambda gamma: value_at(edm_scale(0.5), gamma) / value_at(ve_scale, gamma),
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
        declared, best: the reading that the model declares, and the one that fits best: the declared one if it fits and no other is clearly
            better.
        margin, error: how much lower the score of `best` is, and its standard error over items; 0 if that is the declared reading.
        gamma, slope, squared_error: at every noise level (L,): γ, the slope ⟨target, output⟩/⟨output, output⟩ of the declared reading,
            which is 1 for a network that is read as it was trained, and E‖ε − ε̂‖²/D.
        ranked: the best readings with their scores, the lowest first.
        findings: what is probably wrong, one sentence each; empty if nothing was found.
        network_evaluations: in all.
        remedies: what to change, one sentence for each declaration that is wrong.
        notes: what the check could not find out, one sentence each.
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
    notes: tuple[str, ...] = ()

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
            "notes": list(self.notes),
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
        return "\n".join([*lines, *(f"note:     {note}" for note in self.notes)])


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
class _Products:
    """Mean products over the values of each item, (…, levels, items): of the output o, the noise ε and z, all in the network's encoding.

    Errors and slopes of every kind of output are combinations of these, so that one call of the network serves them all.
    """

    gamma: Tensor
    oo: Tensor
    oe: Tensor
    oz: Tensor
    ee: Tensor
    ez: Tensor
    zz: Tensor

    def of_call(self, index: int) -> "_Products":
        """Return the products (levels, items) of one of several calls."""
        return _Products(*(getattr(self, f.name)[index] for f in fields(self)))

    def squared_error(self, of: Output) -> Tensor:
        """Return ‖ε − ε̂‖²/D (…, levels, items), float64; infinite where it is not a number."""
        a, b = of.at(self.gamma)
        alphas, sigmas = alpha(self.gamma), sigma(self.gamma)
        # ε̂ = p o − q z.
        below = alphas * b - a * sigmas
        p, q = (t[..., None] for t in (alphas / below, a / below))
        squares = self.ee - 2 * p * self.oe + 2 * q * self.ez + p * p * self.oo - 2 * p * q * self.oz + q * q * self.zz
        return torch.where(torch.isfinite(squares), squares.clamp(min=_LEAST), math.inf)

    def of_z(self) -> Tensor:
        """Return ‖ε − c z‖²/D (…, levels, items) with the best c for every level: the error of a prediction from z only."""
        c = self.ez.sum(-1, keepdim=True) / self.zz.sum(-1, keepdim=True)
        return self.ee - 2 * c * self.ez + c * c * self.zz

    def fitted(self) -> Tensor:
        """Return ‖ε − p o − q z‖²/D (…, levels, items) with the best p and q for every level, whatever the output is."""
        oo, oe, oz, ez, zz = (t.sum(-1, keepdim=True) for t in (self.oo, self.oe, self.oz, self.ez, self.zz))
        # By z first: o is nearly a multiple of z where the network adds little to it.
        rest = (oo - oz * oz / zz).clamp(min=_LEAST * oo)
        p = (oe - oz * ez / zz) / rest
        q = (ez - p * oz) / zz
        squares = self.ee - 2 * p * self.oe - 2 * q * self.ez + p * p * self.oo + 2 * p * q * self.oz + q * q * self.zz
        return torch.where(torch.isfinite(squares), squares.clamp(min=_LEAST), math.inf)

    def slopes(self, of: Output) -> tuple[Tensor, Tensor]:
        """Return ⟨target, output⟩/⟨output, output⟩ (…, levels), and its standard error by leaving out one item at a time."""
        a, b = (t[..., None] for t in of.at(self.gamma))
        alphas, sigmas = alpha(self.gamma)[..., None], sigma(self.gamma)[..., None]
        # The target is a x + b ε, with x = (z − σ ε)/α.
        shared = a / alphas * (self.oz - sigmas * self.oe) + b * self.oe
        sums, powers = shared.sum(-1, keepdim=True), self.oo.sum(-1, keepdim=True)
        spread = _jackknife((sums - shared) / (powers - self.oo))
        return (sums / powers).squeeze(-1).nan_to_num(), spread.nan_to_num()

    def off(self, of: Output) -> Tensor:
        """Return how far the slopes are from 1 (…), beyond two standard errors and at most 1, in the mean over levels."""
        slopes, error = self.slopes(of)
        return ((slopes - 1).abs() - (2 * error).clamp(min=_NEAR)).clamp(0.0, 1.0).mean(-1)

    def wrong(self, of: Output) -> Tensor:
        """Return whether an output (levels,) is so far from the scale of its target that the right scale lowers the error much."""
        slopes, error = self.slopes(of)
        k = slopes[:, None]
        scaled = replace(self, oo=self.oo * k * k, oe=self.oe * k, oz=self.oz * k)
        gain = self.squared_error(of).mean(-1).log() - scaled.squared_error(of).mean(-1).log()
        return ((slopes - 1).abs() > _ERRORS * error) & (gain > _GAIN)

    def beside_z(self, of: Output) -> Tensor:
        """Return `squared_error`, or `of_z` at noise levels where that is lower in the mean.

        Of two readings that are worse than z itself, which any network can be at high or at low noise, neither is the better one.
        """
        own, by_z = self.squared_error(of), self.of_z()
        return torch.where(own.mean(-1, keepdim=True) < by_z.mean(-1, keepdim=True), own, by_z)

    def idle(self, of: Output) -> bool:
        """Return whether an output is nowhere a better estimate of the noise than a multiple of z, and clearly a worse one in the mean."""
        by_z = self.of_z()
        worse, error = _margin(self.squared_error(of), by_z)
        gain = float(_score(by_z) - _score(self.beside_z(of)))
        return gain < _IDLE and not worse <= max(_IDLE, _ERRORS * error)

    def rank(self, of: Output) -> Tensor:
        """Return S (…) of an output, plus how far its slopes are from 1.

        Outputs that are mixed with much of z, such as v, may have a lower S than the right reading of a network that is badly trained at
        high noise. But then their slopes are off.
        """
        return _score(self.beside_z(of)) + self.off(of)


class _Network:
    """A denoiser's module, and the items, noise and noise levels at which readings of it are compared.

    The products of every call are kept, so that a later round calls the network only for what earlier ones left out.
    """

    def __init__(
        self, denoiser: Denoiser, space: object, x: Tensor, noise: Tensor, condition: Condition | None, gamma: Tensor
    ) -> None:
        self.denoiser, self.space, self.condition, self.gamma = denoiser, space, condition, gamma
        self.x, self.noise = x, noise
        self.dtype = network_dtype(denoiser.module) or x.dtype
        self.quarter = max(2, len(x) // 4)
        self.calls = 0
        name, own = _output(denoiser, gamma)
        # What the output may be, the declared kind first. A levels head's output is read as it is.
        self.outputs = {name: own}
        if denoiser.predicts != "levels":
            self.outputs |= {other: of for other, of in OUTPUTS.items() if other != name}
        self.inputs = dict([_input(denoiser, gamma)]) | INPUTS
        # oo, oe, oz, ee, ez and zz (6, levels, items) for every call; not a number where the network was not called.
        self.known: dict[_Call, Tensor] = {}
        self.times: dict[tuple[str, float], Tensor] = {}

    def shifted(self, how: _Call) -> Tensor:
        """Return γ (levels,) in the network's encoding."""
        return self.gamma + 2 * math.log(how.zoom)

    def fill(self, calls: Sequence[_Call], items: int, levels: Tensor) -> None:
        """Call the network in these ways on the first `items` at chosen noise levels, where it was not yet called so.

        Ways that the network cannot be called in have infinite products. Calls that were filled together must be filled together again.
        """
        # Whole and real times are not mixed in a call, and items are encoded once.
        views: dict[tuple[str, str, torch.dtype | None], list[_Call]] = {}
        for how in calls:
            views.setdefault((how.data, how.channels, self.kind_of_time(how)), []).append(how)
        for group in views.values():
            known = self.known.get(group[0])
            lacks = torch.ones(len(levels), items) if known is None else known[0][levels, :items].isnan()
            missing = lacks.nonzero()
            at, item = levels[missing[:, 0]], missing[:, 1]
            if not len(at):
                continue
            # At most as many rows in a call as the declared reading has.
            size = max(1, self.gamma.numel() * len(self.x) // len(at))
            for start in range(0, len(group), size):
                self._fill(group[start : start + size], at, item)

    def time(self, how: _Call) -> Tensor:
        """Return the times (levels,) that a clock shows. Its errors propagate."""
        key = (how.clock, how.zoom)
        if key not in self.times:
            shown = how.time(self.shifted(how))
            self.times[key] = shown.to(self.dtype) if shown.dtype.is_floating_point else shown
        return self.times[key]

    def kind_of_time(self, how: _Call) -> torch.dtype | None:
        """Return the type of the times that a clock shows; None if it refuses these noise levels."""
        try:
            return self.time(how).dtype
        except _REFUSALS:
            return None

    def _fill(self, group: Sequence[_Call], at: Tensor, item: Tensor) -> None:
        """Call the network in ways that share their data, once if it can, at the noise levels `at` (R,) of the items (R,)."""
        try:
            products = self.products(group, at, item)
        except _REFUSALS:
            if len(group) > 1:
                for how in group:
                    self._fill([how], at, item)
                return
            products = torch.full((1, 6, len(at)), math.inf, dtype=torch.float64)
        # What is not a number here would be called again.
        products = torch.where(products.isnan(), math.inf, products)
        for how, of_call in zip(group, products, strict=True):
            if how not in self.known:
                self.known[how] = torch.full((6, len(self.gamma), len(self.x)), torch.nan, dtype=torch.float64)
            self.known[how][:, at, item] = of_call.cpu()

    def products(self, group: Sequence[_Call], at: Tensor, item: Tensor) -> Tensor:
        """Return the products (calls, 6, R) of ways to call the network that share their data and channels."""
        how = group[0]
        gamma = self.shifted(how)[at]
        x, noise = how.encode(self.x[item].double()), self.noise[item]
        g = align(gamma, x)
        z = alpha(g) * x + sigma(g) * noise
        scaled = {one.input: value_at(one.scale, g) * z for one in group}
        times = [self.time(one) for one in group]
        output = self.output(
            torch.cat([scaled[one.input] for one in group]), z, gamma, torch.cat([one[at] for one in times]), item
        )
        o, e, of_z = output.double().reshape(len(group), len(at), -1), noise.flatten(1), z.flatten(1)
        shared = [t.mean(1).expand(len(group), -1) for t in (e * e, e * of_z, of_z * of_z)]
        return torch.stack([(o * o).mean(2), (o * e).mean(2), (o * of_z).mean(2), *shared], 1)

    def output(self, seen: Tensor, z: Tensor, gamma: Tensor, time: Tensor, item: Tensor) -> Tensor:
        """Return the network's outputs (k R, *dims) for its inputs (k R, *dims) of z (R, *dims), at k times (k R,)."""
        count = len(seen) // len(z)
        rows = lambda t: t.repeat(count, *(1,) * (t.ndim - 1))  # noqa: E731
        condition = moved(rows_of(self.condition, rows(item)), z.device)
        output = call(self.denoiser.module, seen.to(self.dtype), time, condition=condition)
        self.calls += len(output)
        if self.denoiser.learns_variance:
            output = output[:, : z.shape[1]]
        if self.denoiser.predicts == "levels":
            assert isinstance(self.space, Discrete)
            of_z = rows(z).to(self.dtype)
            output = read(output, of_z, rows(gamma), "levels", self.denoiser.head, self.space).data
        if output.shape[1:] != z.shape[1:]:
            raise DiffusionalError(
                f"expected the network to return the shape {tuple(z.shape)} of z, got {(len(z), *output.shape[1:])}: a network with a "
                "learned variance needs learns_variance=True"
            )
        return output

    def start(self, how: _Call) -> bool:
        """Call the network on all items at all noise levels, on a quarter of the items twice, and return whether these outputs differ.

        Errors of the network propagate.
        """
        cells = torch.cartesian_prod(torch.arange(len(self.x)), torch.arange(len(self.gamma)))
        item, at = cells.T
        some = item < self.quarter
        one, other = (self.products([how], at[some], item[some])[0].cpu() for _ in range(2))
        known = self.known[how] = torch.zeros(6, len(self.gamma), len(self.x), dtype=torch.float64)
        known[:, at[some], item[some]] = one
        if bool((~some).any()):
            known[:, at[~some], item[~some]] = self.products([how], at[~some], item[~some])[0].cpu()
        # NaN, as of the logarithm of a wrong time, is not noise.
        return not torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)

    def of_time(self, how: _Call) -> tuple[Tensor, Tensor]:
        """Return ‖ε − ε̂‖²/D (levels, items) of the declared output on a quarter of the items: as it is, and with the times in reversed order.

        How much they differ is how much the network depends on its time.
        """
        items, levels = self.quarter, len(self.gamma)
        at, item = torch.arange(levels).repeat_interleave(items), torch.arange(items).repeat(levels)
        turned = replace(how, clock="in reversed order", time=lambda gamma: how.time(gamma).flip(0))
        self._fill([turned], at, item)
        of, gamma = next(iter(self.outputs.values())), self.shifted(how).cpu()
        own, other = (_Products(gamma, *self.known[one][:, :, :items]).squared_error(of) for one in (how, turned))
        return own, other

    def together(self, calls: Sequence[_Call], items: int, levels: Tensor) -> _Products:
        """Return the products (calls, levels, items) on the first `items` at chosen noise levels; the network is called where it must be."""
        self.fill(calls, items, levels)
        gamma = torch.stack([self.shifted(how)[levels] for how in calls]).cpu()
        return _Products(gamma, *torch.stack([self.known[how][:, levels, :items] for how in calls], 1))

    def ranks(self, calls: Sequence[_Call], products: _Products, declared: Reading) -> Tensor:
        """Return the ranks (outputs, calls) with their prices."""
        counts = torch.tensor([len(declared.differences(how.reading(declared.output))) for how in calls])
        prices = [_price(counts + (name != declared.output)) for name in self.outputs]
        return torch.stack([products.rank(of) for of in self.outputs.values()]) + torch.stack(prices)


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
        items, levels: number of items and of noise levels of the last round of the search. Items of few values are more: 128 values at least.
        seed: of the noise.
        search: "short" tries the readings that differ from the declared one in one way (any output with each of them), in about a thousand
            network evaluations: two mistakes at once are reported, but not named. If False, only the slopes of the declared reading are
            computed, in 1.5 × items × levels network evaluations.

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
    denoiser, process = denoiser_of(model), getattr(model, "process", None)
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
    x = data[: enough(items, data)].to(device)
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


def enough(items: int, data: Tensor) -> int:
    """Return how many of the items of data (N, *dims) are checked: those asked for, or more if they have few values.

    >>> enough(16, torch.zeros(100, 2)), enough(16, torch.zeros(100, 1, 8, 8)), enough(16, torch.zeros(30, 2))
    (64, 16, 30)
    """
    return min(len(data), max(items, math.ceil(_ENOUGH / max(1, data[0].numel()))))


def denoiser_of(model: LatentVariableModel) -> Denoiser:
    """Return the denoiser of a model, without the clipping of its predictions. Raises DiffusionalError for a model without one."""
    denoiser = getattr(model, "denoiser", None)
    inner = getattr(getattr(denoiser, "module", None), "denoiser", None)
    denoiser = inner if isinstance(inner, Denoiser) else denoiser
    if not isinstance(denoiser, Denoiser) or getattr(getattr(model, "process", None), "schedule", None) is None:
        raise DiffusionalError(
            f"expected a Gaussian diffusion model with a denoiser, got {type(model).__name__}: only networks that are read by a noise "
            "level can be checked. Of a model that contains a diffusion, give that part"
        )
    return denoiser


def noise_levels(model: LatentVariableModel, levels: int) -> Tensor:
    """Return the noise levels γ (L,), float64, at which the network of a Gaussian diffusion model is checked."""
    process: Any = getattr(model, "process", None)
    return _gammas(process.schedule, model.space, levels)


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
    # An error of the declared reading is the user's; those of others only show that they are not the right ones.
    random = network.start(first)
    own_time, other_time = network.of_time(first)
    own, of_own = next(iter(network.outputs.items()))
    declared = first.reading(own)
    left = list(others)
    for items, levels, share in rounds:
        if not left:
            break
        some = every[torch.linspace(0, len(every) - 1, min(levels, len(every))).round().long().unique()]
        enough = min(count, max(items, math.ceil(_VALUES / network.x[0].numel())))
        lowest = network.ranks(left, network.together(left, enough, some), declared).amin(0).tolist()
        order = sorted(range(len(left)), key=lowest.__getitem__)
        left = [left[i] for i in order[: max(fewest, math.ceil(share * len(left)))] if math.isfinite(lowest[i])]
    ways = [first, *left]
    network.fill(left, count, every)
    products = network.together(ways, count, every)
    errors = torch.stack([products.beside_z(of) for of in network.outputs.values()])
    ranks = network.ranks(ways, products, declared)
    names = list(network.outputs)
    readings = {(i, j): ways[j].reading(name) for i, name in enumerate(names) for j in range(len(ways))}
    scores = {readings[place]: score for place, score in zip(readings, _score(errors).flatten().tolist(), strict=True)}
    ranked = sorted(scores, key=scores.__getitem__)
    seen = products.of_call(0)
    slope, _ = seen.slopes(of_own)
    wrong, idle = seen.wrong(of_own), seen.idle(of_own)
    # The lowest reading, if it fits and is clearly better than the declared one, or if the declared one does not fit.
    place = divmod(int(ranks.argmin()), len(ways))
    lowest, of_lowest = readings[place], network.outputs[names[place[0]]]
    margin, spread = _margin(errors[0, 0], errors[place]) if lowest != declared else (0.0, 0.0)
    fits = lowest != declared and _clear(margin, spread)
    fits = fits and _fits(products.of_call(place[1]), of_lowest, float(seen.off(of_own)) + _MARGIN)
    best = lowest if fits or idle or _many(wrong) else declared
    margin, spread = (margin, spread) if best != declared else (0.0, 0.0)
    findings, remedies = _findings(declared, best, margin, spread, network.gamma, slope, wrong, random, fits, idle)
    if not findings and others and rounds is _ROUNDS:
        findings, remedies = _rescaled(network, first)
    return Diagnosis(
        declared,
        best,
        margin,
        spread,
        network.gamma.cpu(),
        slope.cpu(),
        seen.squared_error(of_own).mean(1).cpu(),
        tuple((reading, scores[reading]) for reading in ranked[:5]),
        findings,
        network.calls,
        remedies,
        () if findings else _notes(own_time, other_time),
    )


def _rescaled(network: _Network, first: _Call) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is wrong with the scaling of the input whatever the output is, and what to do about it.

    The code round a network may combine its output with z, so that no output of the table is right once the input is wrong. But the network
    estimates the noise best from the input of its training, by the best combination of its output and z.
    """
    levels = (network.gamma.cpu() <= _SCALED).nonzero().flatten()[::2]
    items = max(2, len(network.x) // 2)
    factors = {name: replace(first, input=name, scale=_product(first.scale, of)) for name, of in _FACTORS.items()}
    own = network.together([first], items, levels).of_call(0).fitted()
    others = network.together(list(factors.values()), items, levels).fitted()
    margins = {name: _margin(own, other) for name, other in zip(factors, others, strict=True)}
    best = max(margins, key=lambda name: margins[name][0])
    margin, error = margins[best]
    if not (math.isfinite(margin) and margin > max(_RESCALED, _ERRORS * error)):
        return (), ()
    said = f"the network estimates the noise better if its input is multiplied by {best} (score lower by {margin:.2f} ± {error:.2f})"
    return (
        (f"{said}: the input that it was trained on is scaled in another way, in the code round it",),
        ("compare how z is scaled before the network with the code of its training",),
    )


def _product(first: Coefficient, second: Coefficient) -> Coefficient:
    return lambda gamma: value_at(first, gamma) * value_at(second, gamma)


def _jackknife(without: Tensor) -> Tensor:
    """Return the standard error (…) of an estimate from its values without one of n items each (…, n)."""
    n = without.shape[-1]
    return ((n - 1) / n * (without - without.mean(-1, keepdim=True)).square().sum(-1)).sqrt()


def _score(errors: Tensor) -> Tensor:
    """Return S (…) of errors (…, levels, items), which is the mean of the logarithm of the mean error of each level."""
    return errors.mean(-1).log().mean(-1)


def _margin(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Return how much lower the score of `other` is, and the standard error over items, by leaving out one item at a time."""
    n = own.shape[1]
    value = float(_score(own) - _score(other))
    kept = torch.arange(1, n) + torch.arange(n)[:, None]  # all items but one, modulo n
    without = _score(own[:, kept % n].transpose(0, 1)) - _score(other[:, kept % n].transpose(0, 1))
    return value, float(_jackknife(without))


def _notes(own: Tensor, other: Tensor) -> tuple[str, ...]:
    """Return what the check cannot find out."""
    # A wrong clock raises the error by at most about this.
    rise = float(_score(other) - _score(own))
    notes = [NOT_FOUND]
    if math.isfinite(rise) and abs(rise) < _DULL:
        notes.insert(
            0,
            "the network hardly depends on its time input: with the times in reversed order its score differs by only "
            f"{rise:.2f}; a wrong clock may not be found",
        )
    return tuple(notes)


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


def _price(count: Tensor) -> Tensor:
    """Return what readings that differ in so many declarations must be better by than the declared one."""
    return _PRICE * count - count.clamp(max=1) * (_PRICE - _MARGIN)


def _clear(margin: float, error: float) -> bool:
    return not math.isfinite(margin) or margin > max(_MARGIN, _ERRORS * error)


def _fits(seen: _Products, of: Output, most: float) -> bool:
    """Return whether the slopes of an output are near 1, at most so far from it in the mean, and it is worth more than a multiple of z."""
    return float(seen.off(of)) <= most and not _many(seen.wrong(of)) and not seen.idle(of)


def _many(wrong: Tensor) -> bool:
    """Return whether many slopes are wrong."""
    return float(wrong.double().mean()) > _MANY


def _findings(
    declared: Reading,
    best: Reading,
    margin: float,
    error: float,
    gamma: Tensor,
    slope: Tensor,
    wrong: Tensor,
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
    if fits:
        differences = declared.differences(best)
        parts = [_SAID[name].format(*pair) for name, pair in differences.items()]
        remedies += [_REMEDIES[name] for name in differences]
        found.append(
            f"the network fits another reading better: {'; '.join(parts)} (score lower by {margin:.2f} ± {error:.2f})"
        )
    elif not random and (idle or _many(wrong)):
        off = wrong if _many(wrong) else torch.ones_like(wrong)
        at = [
            f"{float(s):.2f} at γ = {float(g):.1f}" for s, g in zip(slope[off][:3], gamma.cpu()[off][:3], strict=True)
        ]
        remedies.append("compare the checkpoint's files and its scheduler with those of its training")
        found.append(
            f"the network does not fit the declared reading (slopes of {', '.join(at)}; expected 1"
            f"{'; its estimate of the noise is no better than a multiple of z' if idle else ''}), nor any other that was tried: it is untrained or "
            f"badly trained, its weights were not loaded, or it is read in a way that is not known here{f'. The nearest is: {best}' if best != declared else ''}"
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
        if not times or not bool(((torch.stack(times) - shown).abs() <= 1e-3 + 1e-3 * shown.abs()).all(1).any()):
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
    """Return the index 0 … T − 1 of the level of a grid (T,), ascending, that is nearest to γ."""
    between = (0.5 * (grid[1:] + grid[:-1])).contiguous()
    return lambda gamma: torch.searchsorted(between, gamma.double().contiguous())
