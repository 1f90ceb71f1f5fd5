"""Readers of scheduler configs, one for each family of `scheduler_table`: betas, flows, EDM and variance-exploding scores.

A config mixes two things. The levels that the network was trained at, what it predicts, and, for the schedulers that walk the ancestral
chain, the variance of p and what is done to x̂ are the model's. Grids of fewer steps, solvers, shifts and orders are the sampler's, and
have no part in a bound.
"""

import math
from typing import Literal

import torch

from diffusional.errors import DiffusionalError
from diffusional.interop.adapter import DATA, NOISE, VELOCITY, Clip, Output, Rule, Threshold, V, VarianceOutput
from diffusional.interop.betas import betas, shifted, zero_terminal
from diffusional.interop.clocks import FlowTime, SigmaTime, edm_output, edm_scale, flow_scale, ve_scale
from diffusional.interop.declared import Declared, Settings
from diffusional.interop.scheduler_table import VARIANCE_TYPES, VARIANCES, Entry
from diffusional.models.reverse import Variance
from diffusional.models.time import TrainedIndex
from diffusional.schedule import Schedule, from_betas, log_snr_linear


def read_betas(entry: Entry, settings: Settings) -> Declared:
    steps = int(settings.value("num_train_timesteps", 1000))
    given = settings.value("trained_betas")
    kind = settings.value("beta_schedule", "linear")
    if given is not None:
        rates = torch.as_tensor(given, dtype=torch.float64)
        settings.config["levels"] = f"T = {len(rates)} latents, trained_betas"
    else:
        start, end = settings.value("beta_start", 1e-4), settings.value("beta_end", 0.02)
        rates = betas(kind, steps, start, end)
        ends = "" if kind in ("squaredcos_cap_v2", "laplace", "exp") else f" from {start:g} to {end:g}"
        settings.config["levels"] = f"T = {steps} latents, {kind} betas{ends}"
    shift = settings.value("snr_shift_scale")
    if shift is not None:
        rates = shifted(rates, float(shift))
        settings.config["levels"] += f", SNR divided by {shift:g}"
    zero = bool(settings.value("rescale_betas_zero_snr", False))
    if zero:
        rates = zero_terminal(rates)
        settings.config["levels"] += ", rescaled to SNR_T = 0"
    schedule = from_betas(rates)
    prediction, output = _prediction(entry, settings)
    if schedule.zero_terminal_snr and prediction == "epsilon":
        raise DiffusionalError(
            f'the {settings.name} has rescale_betas_zero_snr=True and prediction_type="epsilon": at SNR_T = 0 the noise does not determine x, '
            "so that p(z_{T−1}|z_T) is undefined. Such networks predict v or x; correct the config, or evaluate without rescaling"
        )
    variance, learns = _variance(entry, settings, schedule)
    last = 1.0
    if entry.ve and not schedule.zero_terminal_snr and settings.value("timestep_spacing") in ("linspace", "trailing"):
        last = float(torch.sigmoid(schedule.grid()[-1]))
        settings.config["end"] = f"p(z_T) has the variance σ_T² = {last:.8g}, from which the {settings.name} starts"
    else:
        settings.config["end"] = "p(z_T) = N(0, I)"
    settings.config["time"] = f"the network reads the number of the level, 0 … {len(rates) - 1}"
    return Declared(settings.name, schedule, TrainedIndex(schedule), output, 1.0, variance, learns, None, last)


def _prediction(entry: Entry, settings: Settings) -> tuple[str, Output]:
    word = settings.value("prediction_type", "epsilon")
    if word not in entry.predictions:
        raise DiffusionalError(
            f"expected prediction_type of the {settings.name} to be one of {', '.join(entry.predictions)}, got {word!r}"
        )
    if word == "flow_prediction":
        raise DiffusionalError(
            f'the {settings.name} has prediction_type="flow_prediction" without use_flow_sigmas=True: a flow\'s velocity belongs to z = (1 − t) x + '
            "t ε. Set use_flow_sigmas, or correct prediction_type"
        )
    means = {"epsilon": "the noise ε", "sample": "x", "original_sample": "x", "v_prediction": "v = α ε − σ x"}[word]
    settings.config["prediction"] = f"the network predicts {means} ({word})"
    outputs = {"epsilon": NOISE, "v_prediction": V}
    return word, outputs.get(word, DATA)


def _variance(
    entry: Entry, settings: Settings, schedule: Schedule
) -> tuple[Variance, Literal["range"] | VarianceOutput | None]:
    """Return the variance of p, and what the second half of the network's output is."""
    own = settings.value("variance_type") if entry.ancestral else None
    word = VARIANCES[settings.variance] if settings.variance is not None else own or "fixed_small"
    if word not in VARIANCE_TYPES:
        raise DiffusionalError(
            f"expected variance_type of the {settings.name} to be one of {', '.join(VARIANCE_TYPES)}, got {word!r}"
        )
    variance, learns, means = VARIANCE_TYPES[word]
    sentence = f"the variance of p(z_t|z_{{t+1}}) is {means} ({variance})"
    if settings.variance is not None:
        settings.given["variance"] = sentence
    elif own is not None:
        settings.config["variance"] = f"{sentence}, variance_type={own}"
    elif entry.ancestral:
        settings.config["variance"] = f"{sentence}, as in the {settings.name}'s step"
    else:
        settings.assumed["variance"] = (
            f"{sentence}: the {settings.name} is a sampler of its own, and the chain is the ancestral one"
        )
        if settings.value("variance_type") in ("learned", "learned_range"):
            settings.left_out["variance"] = (
                f"variance_type={settings.value('variance_type')}: the {settings.name} does not use the second half of the output; "
                f'variance="{settings.value("variance_type")}" does'
            )
    return variance, "range" if learns == "range" else None if learns is None else VarianceOutput(schedule)


def read_rule(entry: Entry, settings: Settings, clipped: bool | None, low: float, high: float) -> Rule | None:
    """Return what is done to x̂, and record it."""
    rule, name = None, ""
    if settings.value("thresholding", False):
        rule = Threshold(settings.value("dynamic_thresholding_ratio", 0.995), settings.value("sample_max_value", 1.0))
        name = "thresholding=True"
    elif settings.value("clip_sample", False) and not settings.name.startswith("CogVideoX"):
        reach = float(settings.value("clip_sample_range", 1.0) or 1.0)
        rule, name = Clip(-reach, reach), "clip_sample=True"
    if clipped is None:
        if rule is None:
            settings.config["clipping"] = "x̂ is not clipped"
        else:
            settings.config["clipping"] = (
                f"{rule} ({name}); the bound without it is another number (clipped=False, --unclipped)"
            )
        return rule
    if clipped and rule is None:
        rule = Clip(low, high)
    if not clipped:
        settings.given["clipping"] = "x̂ is not clipped" + (f", although the config has {name}" if name else "")
        return None
    settings.given["clipping"] = str(rule)
    return rule


# Flows, EDM and scores: all in continuous time, where the bound depends on the ends of γ only.

# γ_T of a flow, whose z_T is pure noise: SNR_T = e^{−14} costs ½ SNR_T ‖x‖², which KL_T counts.
_FLOW_END = 14.0
# γ_1 of a flow where nothing else is known: σ/α is an eighth of a bin of 8-bit data from −1 to 1.
_FLOW_START = 2 * math.log(2 / 255 / 8)


def _ends(
    settings: Settings, low: float | None, high: float | None, gamma_min: float | None, gamma_max: float | None
) -> Schedule:
    """Return the schedule from γ_1 to γ_T of a model in continuous time, and record where they come from."""
    pairs = (("start", "γ_1", gamma_min, low, _FLOW_START), ("last", "γ_T", gamma_max, high, _FLOW_END))
    ends = []
    for name, symbol, given, own, otherwise in pairs:
        value = given if given is not None else own if own is not None else otherwise
        target = settings.given if given is not None else settings.config if own is not None else settings.assumed
        target[name] = f"{symbol} = {value:.4f} (σ/α = {math.exp(value / 2):.4g})"
        ends.append(value)
    return log_snr_linear(*ends)


def _continuous(settings: Settings) -> None:
    settings.assumed["levels"] = (
        "continuous time: the network was trained at all levels, and the sampler chooses some (a number of latents: steps=)"
    )
    if settings.variance is not None:
        raise DiffusionalError(
            f"variance={settings.variance!r} was given, but the {settings.name}'s model is in continuous time, where all variances agree; leave it out"
        )


def read_flow(entry: Entry, settings: Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
    if settings.value("invert_sigmas", False):
        raise DiffusionalError(
            f"the {settings.name} has invert_sigmas=True, which runs its levels backwards; use df.wrap.flow(network, time=…) with the time that "
            "the network was trained with"
        )
    steps = float(settings.value("num_train_timesteps", 1000) or 1000)
    word = settings.value("prediction_type", "flow_prediction")
    if entry.family == "flow":
        word = "flow_prediction"
    elif word not in entry.predictions or word == "v_prediction":
        raise DiffusionalError(
            f'expected prediction_type of the {settings.name} with use_flow_sigmas to be "flow_prediction", "epsilon" or "sample", got {word!r}'
        )
    outputs = {"flow_prediction": VELOCITY, "epsilon": NOISE, "sample": DATA}
    means = {"flow_prediction": "the velocity ε − x", "epsilon": "the noise ε", "sample": "x"}[word]
    settings.config["prediction"] = f"the network predicts {means} of z = (1 − t) x + t ε"
    settings.assumed["time"] = f"the network reads {steps:g} t, the scheduler's timestep (another time: time=)"
    _continuous(settings)
    schedule = _ends(settings, None, None, gamma_min, gamma_max)
    if "start" in settings.assumed:
        settings.assumed["start"] += (
            ", which a flow does not declare: it changes the bound. It is chosen on training data, if they are given (reference=, --training-data)"
        )
    settings.config["end"] = "p(z_T) = N(0, I)"
    return Declared(settings.name, schedule, FlowTime(steps), outputs[word], flow_scale)


def read_edm(entry: Entry, settings: Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
    sigma_data = float(settings.value("sigma_data", 1.0))
    low, high = settings.value("sigma_min"), settings.value("sigma_max")
    word = settings.value("prediction_type", "epsilon")
    if word not in ("epsilon", "v_prediction"):
        raise DiffusionalError(
            f"expected prediction_type of the {settings.name} to be epsilon or v_prediction, got {word!r}"
        )
    if entry.family == "betas":  # Euler with continuous time: σ_min and σ_max, or the ends of its betas.
        grid = from_betas(
            betas(
                settings.value("beta_schedule", "linear"),
                int(settings.value("num_train_timesteps", 1000)),
                settings.value("beta_start", 1e-4),
                settings.value("beta_end", 0.02),
            )
        ).grid()
        low = math.exp(0.5 * float(grid[0])) if low is None else low
        high = math.exp(0.5 * float(grid[-1])) if high is None else high
    low, high = (0.002 if low is None else low), (80.0 if high is None else high)
    sign = 1.0 if word == "epsilon" else -1.0
    settings.config["prediction"] = (
        f"the network predicts EDM's F{'' if sign > 0 else ' with the other sign'}, σ_data = {sigma_data:g}"
    )
    clock = "(2/π) arctan σ" if entry.clock == "arctan" else "¼ ln σ"
    settings.config["time"] = f"the network reads {clock}"
    _continuous(settings)
    schedule = _ends(settings, 2 * math.log(low), 2 * math.log(high), gamma_min, gamma_max)
    settings.config["end"] = "p(z_T) = N(0, I)"
    output, scale = edm_output(sigma_data, sign), edm_scale(sigma_data)
    last = 1.0
    if entry.ve and settings.value("timestep_spacing") in ("linspace", "trailing"):
        last = float(torch.sigmoid(schedule.ends()[1]))
        settings.config["end"] = f"p(z_T) has the variance σ_T² = {last:.8g}, from which the {settings.name} starts"
    return Declared(settings.name, schedule, SigmaTime(entry.clock), output, scale, last_variance=last)


def read_score(entry: Entry, settings: Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
    steps = int(settings.value("num_train_timesteps", 2000))
    low, high = 2 * math.log(settings.value("sigma_min", 0.01)), 2 * math.log(settings.value("sigma_max", 1348.0))
    schedule = _ends(settings, low, high, gamma_min, gamma_max).regrid(steps)
    settings.config["levels"] = f"T = {steps} latents, log-linear σ"
    settings.config["prediction"] = "the network predicts the score −ε/σ of z = x + σ ε"
    settings.config["time"] = "the network reads σ"
    variance, learns = _variance(entry, settings, schedule)
    if learns is not None:
        raise DiffusionalError(
            f"variance={settings.variance!r} was given, but the networks of {settings.name} learn none"
        )
    last = float(torch.sigmoid(schedule.ends()[1]))
    settings.config["end"] = f"p(z_T) has the variance {last:.8g}: the {settings.name} starts from N(0, σ_T² I)"
    output = Output(0.0, lambda gamma: -(-0.5 * gamma.double()).exp())
    return Declared(
        settings.name, schedule, SigmaTime("sigma"), output, ve_scale, variance, None, None, last, low=0.0, high=1.0
    )
