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
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional import schedule
from diffusional.conditions import Condition, check_condition
from diffusional.errors import DiffusionalError
from diffusional.interop.called_network import CalledNetwork
from diffusional.interop.diagnosis import Diagnosis, findings_of, notes_of
from diffusional.interop.products import ERRORS, MARGIN, clear, fits_slopes, many, margin_of, score
from diffusional.interop.readings import DECLARED, FACTORS, Call, declared_clock, other_calls, product_of, range_of
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.denoiser import Denoiser
from diffusional.seeds import check_seed
from diffusional.space import Discrete

# Rounds of the search: the number of items, of noise levels, and the share of the readings that goes on. Small items are more at a time,
# so that every noise level has this many values.
_ROUNDS = ((1, 3, 0.25), (2, 4, 0.25), (6, 7, 0.25))
_FEWEST = 4
_VALUES = 32
# Values of all items together.
_ENOUGH = 128
# The short search: readings that differ from the declared one by how the network is called in one way only, and how many of them go on.
_SHORT_ROUNDS = ((2, 4, 0.0),)
_SHORT_FEWEST = 3
# Items and noise levels of the short form.
SHORT_ITEMS, SHORT_LEVELS = 24, 7
# Noise levels γ where the search looks, for data in [−1, 1]. Below, a step of the usual schedules is too wide to distinguish clocks; above,
# z itself is so good an estimate of ε that any output that is mixed with much of z looks good.
_GAMMA = (-5.5, 3.5)
# An input is scaled wrongly if another scaling lowers the score by this, at noise levels up to this γ. Above it, a smaller input helps many
# networks that are right.
_RESCALED, _SCALED = 0.08, 1.5


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
        network = CalledNetwork(denoiser, model.space, x, noise, condition, gamma)
        seen_as, scale = next(iter(network.inputs.items()))
        first = Call(seen_as, DECLARED, range_of(model.space), DECLARED, scale, declared_clock(denoiser), lambda x: x)
        others = other_calls(first, denoiser, model.space, declared, network.inputs, x, gamma) if search else []
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
    network: CalledNetwork,
    first: Call,
    others: Sequence[Call],
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
    scores = {readings[place]: score for place, score in zip(readings, score(errors).flatten().tolist(), strict=True)}
    ranked = sorted(scores, key=scores.__getitem__)
    seen = products.of_call(0)
    slope, _ = seen.slopes(of_own)
    wrong, idle = seen.wrong(of_own), seen.idle(of_own)
    # The lowest reading, if it fits and is clearly better than the declared one, or if the declared one does not fit.
    place = divmod(int(ranks.argmin()), len(ways))
    lowest, of_lowest = readings[place], network.outputs[names[place[0]]]
    margin, spread = margin_of(errors[0, 0], errors[place]) if lowest != declared else (0.0, 0.0)
    fits = lowest != declared and clear(margin, spread)
    fits = fits and fits_slopes(products.of_call(place[1]), of_lowest, float(seen.off(of_own)) + MARGIN)
    best = lowest if fits or idle or many(wrong) else declared
    margin, spread = (margin, spread) if best != declared else (0.0, 0.0)
    findings, remedies = findings_of(declared, best, margin, spread, network.gamma, slope, wrong, random, fits, idle)
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
        () if findings else notes_of(own_time, other_time),
    )


def _rescaled(network: CalledNetwork, first: Call) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is wrong with the scaling of the input whatever the output is, and what to do about it.

    The code round a network may combine its output with z, so that no output of the table is right once the input is wrong. But the network
    estimates the noise best from the input of its training, by the best combination of its output and z.
    """
    levels = (network.gamma.cpu() <= _SCALED).nonzero().flatten()[::2]
    items = max(2, len(network.x) // 2)
    factors = {name: replace(first, input=name, scale=product_of(first.scale, of)) for name, of in FACTORS.items()}
    own = network.together([first], items, levels).of_call(0).fitted()
    others = network.together(list(factors.values()), items, levels).fitted()
    margins = {name: margin_of(own, other) for name, other in zip(factors, others, strict=True)}
    best = max(margins, key=lambda name: margins[name][0])
    margin, error = margins[best]
    if not (math.isfinite(margin) and margin > max(_RESCALED, ERRORS * error)):
        return (), ()
    said = f"the network estimates the noise better if its input is multiplied by {best} (score lower by {margin:.2f} ± {error:.2f})"
    return (
        (f"{said}: the input that it was trained on is scaled in another way, in the code round it",),
        ("compare how z is scaled before the network with the code of its training",),
    )
