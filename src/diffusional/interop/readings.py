"""Readings of a network: what its output, its input, its clock and its data may be, and every way to call it that the search tries.

A reading declares a network's output (`OUTPUTS`), the scaling of its input (`INPUTS`), its clock (the index of a schedule, a function of the
log SNR, or a flow's time; forwards, reversed and rescaled), the range of its data and the order of its channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusional import schedule
from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import DATA, NOISE, VELOCITY, Adapter, Coefficient, Output, V, value_at
from diffusional.interop.betas import betas
from diffusional.interop.clocks import FlowTime, SigmaTime, edm_output, edm_scale, flow_scale, ve_scale
from diffusional.models.denoiser import Denoiser
from diffusional.models.time import Affine
from diffusional.space import Discrete

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
# What a scaling that was left out, or done twice, multiplies the input by.
FACTORS: dict[str, Coefficient] = {
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


@dataclass(frozen=True)
class Call:
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


def declared_output(denoiser: Denoiser, gamma: Tensor) -> tuple[str, Output]:
    """Return the declared output, with its name."""
    if not isinstance(denoiser, Adapter):
        name = "data" if denoiser.predicts == "levels" else denoiser.predicts
        return name, OUTPUTS[name]
    own = denoiser.output.at(gamma)
    for name, known in OUTPUTS.items():
        if all(torch.allclose(a, b) for a, b in zip(own, known.at(gamma), strict=True)):
            return name, known
    return DECLARED, denoiser.output


def declared_input(denoiser: Denoiser, gamma: Tensor) -> tuple[str, Coefficient]:
    """Return the declared scaling of the input, with its name."""
    own: Coefficient = denoiser.scale if isinstance(denoiser, Adapter) else 1.0
    values = value_at(own, gamma)
    same = (name for name, known in INPUTS.items() if torch.allclose(values, value_at(known, gamma)))
    return next(same, DECLARED), own


def declared_clock(denoiser: Denoiser) -> Callable[[Tensor], Tensor]:
    """Return the declared clock."""
    return _of_gamma(Affine() if denoiser.time is None else denoiser.time)


def _of_gamma(time: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a clock as a function of γ from one of log SNR."""
    return lambda gamma: time(-gamma)


def range_of(space: object) -> str:
    return f"[{space.low:g}, {space.high:g}]".replace("-", "−") if isinstance(space, Discrete) else "its own units"


def other_calls(
    first: Call,
    denoiser: Denoiser,
    space: object,
    declared: schedule.Schedule,
    inputs: dict[str, Coefficient],
    x: Tensor,
    gamma: Tensor,
) -> list[Call]:
    """Return all other ways to call the network; of clocks that show the same times, one."""
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
        Call(scale, clock, name, order, of_scale, time, lambda x, m=m, k=k, turn=turn: turn(m * x + k), m)  # type: ignore[misc]
        for scale, of_scale in inputs.items()
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


def product_of(first: Coefficient, second: Coefficient) -> Coefficient:
    return lambda gamma: value_at(first, gamma) * value_at(second, gamma)
