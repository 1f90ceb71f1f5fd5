"""The table of diffusers' schedulers: which settings belong to the model, and which only to the sampler (MATH (23), (24)).

A scheduler's config mixes two things. The levels that the network was trained at, what it predicts, and, for the schedulers that walk the
ancestral chain, the variance of p and what is done to x̂ are the model's. Grids of fewer steps, solvers, shifts and orders are the
sampler's, and have no part in a bound. `TABLE` lists the schedulers; `declared` reads a config by it.

Numbers are formed in float64 from the config: diffusers' own tables are float32 (their 1 − ᾱ_1 is off by 6e-4 of itself).
"""

import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import (
    DATA,
    NOISE,
    VELOCITY,
    Clip,
    Coefficient,
    Output,
    Rule,
    Threshold,
    V,
    VarianceOutput,
)
from diffusional.models.reverse import Variance
from diffusional.models.time import TrainedIndex
from diffusional.schedule import FromBetas, Schedule, cosine, from_betas, log_snr_linear

Family = Literal["betas", "flow", "edm", "score", "refused"]
_SIX = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
# Keys that belong to the model in every family; the others of a scheduler are its sampler's.
_BETAS = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "snr_shift_scale"),
}
_XHAT = {
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    "variance_type",
}


@dataclass(frozen=True)
class Entry:
    """What a scheduler means.

    Attributes:
        family: "betas", discrete levels of a variance-preserving process; "flow", z = (1 − t) x + t ε; "edm", z = x + σ ε with Karras'
            preconditioning; "score", z = x + σ ε and a score; or "refused".
        note: a remark, or the reason for which it is refused.
        predictions: values of prediction_type that it takes.
        ancestral: whether its step is p(z_t|z_{t+1}) of our chain, so that variance_type (or the posterior's variance) is its own.
        ve: whether its sampler's latents are x + σ ε, so that it starts from N(0, σ_T² I) unless timestep_spacing is "leading".
        clock: the time input of an "edm" network: "log", ¼ ln σ, or "arctan", (2/π) arctan σ.
    """

    family: Family
    note: str = ""
    predictions: tuple[str, ...] = ("epsilon", "sample", "v_prediction")
    ancestral: bool = False
    ve: bool = False
    clock: Literal["log", "arctan"] = "log"


_TOKENS = "its data are tokens: categorical, not Gaussian, latents"
_JUMPS = "its network jumps from any level to data (a consistency model or a distilled one) and is not a denoiser"
_FLOW = ("epsilon", "sample", "v_prediction", "flow_prediction")

TABLE: dict[str, Entry] = {
    "AmusedScheduler": Entry("refused", _TOKENS),
    "BlockRefinementScheduler": Entry("refused", _TOKENS),
    "CMStochasticIterativeScheduler": Entry("refused", _JUMPS),
    "CogVideoXDDIMScheduler": Entry(
        "betas", "log SNR is lower by ln snr_shift_scale; clip_sample is not applied by it"
    ),
    "CogVideoXDPMScheduler": Entry("betas", "log SNR is lower by ln snr_shift_scale; clip_sample is not applied by it"),
    "ConsistencyDecoderScheduler": Entry("refused", _JUMPS),
    "CosineDPMSolverMultistepScheduler": Entry("edm", predictions=("epsilon", "v_prediction"), clock="arctan"),
    "DDIMInverseScheduler": Entry("betas"),
    "DDIMParallelScheduler": Entry("betas"),
    "DDIMScheduler": Entry("betas"),
    "DDPMParallelScheduler": Entry("betas", "`variance_type`: see below", ancestral=True),
    "DDPMScheduler": Entry("betas", "`variance_type`: see below", ancestral=True),
    "DDPMWuerstchenScheduler": Entry(
        "refused", "its levels are ratios of time of Würstchen's cascade, which is not read"
    ),
    "DEISMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverMultistepInverseScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverSDEScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "DPMSolverSinglestepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DiscreteDDIMScheduler": Entry("refused", _TOKENS),
    "EDMDPMSolverMultistepScheduler": Entry("edm", predictions=("epsilon", "v_prediction")),
    "EDMEulerScheduler": Entry("edm", predictions=("epsilon", "v_prediction")),
    "EntropyBoundScheduler": Entry("refused", _TOKENS),
    "EulerAncestralDiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ancestral=True, ve=True),
    "EulerDiscreteScheduler": Entry(
        "betas", 'EDM with timestep_type="continuous" and v_prediction', (*_FLOW[:3], "original_sample"), ve=True
    ),
    "FlowMapEulerDiscreteScheduler": Entry("refused", _JUMPS),
    "FlowMatchEulerDiscreteScheduler": Entry("flow", "shifts are its sampler's"),
    "FlowMatchHeunDiscreteScheduler": Entry("flow", "shifts are its sampler's"),
    "FlowMatchLCMScheduler": Entry("refused", _JUMPS),
    "HeliosDMDScheduler": Entry("refused", _JUMPS),
    "HeliosScheduler": Entry("refused", "its process changes the resolution between stages"),
    "HeunDiscreteScheduler": Entry("betas", ve=True),
    "IPNDMScheduler": Entry("refused", "it has no declared betas and no prediction type"),
    "KDPM2AncestralDiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "KDPM2DiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "KarrasVeScheduler": Entry("refused", "diffusers has withdrawn it"),
    "LCMScheduler": Entry("refused", _JUMPS),
    "LMSDiscreteScheduler": Entry("betas", ve=True),
    "LTXEulerAncestralRFScheduler": Entry("flow", "its own grid is its sampler's"),
    "MiniMaxH3Scheduler": Entry("flow", "shifts are its sampler's"),
    "PNDMScheduler": Entry("betas", predictions=("epsilon", "v_prediction")),
    "PiflowScheduler": Entry("refused", "its network predicts a policy, not x or the noise"),
    "RFD4ProteinaScheduler": Entry("refused", "its latents are frames of proteins, with rotations"),
    "RePaintScheduler": Entry("betas", "its condition, a known part of the image, is left out", ("epsilon",)),
    "SASolverScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "SCMScheduler": Entry("refused", _JUMPS),
    "ScoreSdeVeScheduler": Entry("score", "data from 0 to 1; corrector steps are its sampler's", ("score",)),
    "ScoreSdeVpScheduler": Entry("refused", "diffusers has withdrawn it"),
    "TCDScheduler": Entry("refused", _JUMPS),
    "UnCLIPScheduler": Entry("betas", "cosine betas", ("epsilon", "sample"), ancestral=True),
    "UniPCMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "VQDiffusionScheduler": Entry("refused", _TOKENS),
}

# Of DDPMScheduler's variance_type: what p(z_t|z_{t+1}) is, and what the network's further outputs are.
VARIANCE_TYPES: dict[str, tuple[Variance, Literal["range", "variance"] | None, str]] = {
    "fixed_small": ("posterior", None, "that of q(z_t|z_{t+1}, x)"),
    "fixed_small_log": ("posterior", None, "that of q(z_t|z_{t+1}, x)"),
    "fixed_large": ("transition", None, "β_{t+1}"),
    "fixed_large_log": ("transition", None, "β_{t+1}; diffusers' own step takes the root of its logarithm, NaN"),
    "learned": ("learned", "variance", "the second half of the output itself, which must be positive"),
    "learned_range": ("learned", "range", "between the two in log space, at (1 + the second half of the output)/2"),
}
# Words for `variance`: ours and diffusers'.
_VARIANCES = {
    "posterior": "fixed_small",
    "transition": "fixed_large",
    "learned": "learned_range",
    **{name: name for name in VARIANCE_TYPES},
}


@dataclass(frozen=True, eq=False)
class Declared:
    """What a scheduler's config declares of the model.

    Attributes:
        name: the scheduler's class.
        schedule: γ of the latents; its `steps` is T, or None in continuous time.
        time: from log-SNR to the network's time input.
        output: what the network's output is of x and ε.
        scale: the network reads this times our z.
        variance: of p(z_t|z_{t+1}).
        learns: what the second half of the output is, if the variance is learned.
        rule: what is done to x̂.
        last_variance: ṽ of p(z_T) = N(0, ṽ I).
        low, high: the range of the data.
        config, assumed, given, left_out: sentences by name, as in `Origin`.
    """

    name: str
    schedule: Schedule
    time: Callable[[Tensor], Tensor]
    output: Output
    scale: Coefficient = 1.0
    variance: Variance = "posterior"
    learns: Literal["range"] | VarianceOutput | None = None
    rule: Rule | None = None
    last_variance: float = 1.0
    low: float = -1.0
    high: float = 1.0
    config: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def declared(
    config: Mapping[str, Any],
    *,
    variance: str | None = None,
    clipped: bool | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
) -> Declared:
    """Read a scheduler's config: scheduler_config.json, or the `config` of a diffusers scheduler.

    Args:
        config: with its "_class_name".
        variance: of p(z_t|z_{t+1}) instead of the config's: "posterior", "transition" or "learned", or a variance_type of diffusers.
        clipped: True to clip x̂, False to leave out what the config does to x̂, None for what the config has.
        gamma_min, gamma_max: γ_1 and γ_T = −log SNR of models in continuous time, instead of those of the config.

    Raises DiffusionalError for a scheduler that is refused or unknown, unknown keys, and settings that no bound can honour.

    >>> declared({"_class_name": "DDPMScheduler", "num_train_timesteps": 10}).schedule.steps
    10
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise DiffusionalError(
            "expected a scheduler's config to have _class_name, the scheduler's class, got none; give the scheduler_config.json that "
            "diffusers wrote"
        )
    name = name.removeprefix("Flax")
    entry = TABLE.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, TABLE, n=1)
        raise DiffusionalError(
            f"unknown scheduler {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + " Give a scheduler of diffusers in scheduler=, or use df.wrap for a process of your own"
        )
    if entry.family == "refused":
        raise DiffusionalError(
            f"{name} has no bound here: {entry.note}. If the network is an ordinary denoiser, give the scheduler that it was trained with, "
            'such as scheduler={"_class_name": "DDPMScheduler"}'
        )
    settings = _Settings(name, config, variance)
    if variance is not None and variance not in _VARIANCES:
        close = difflib.get_close_matches(variance, _VARIANCES, n=1)
        raise DiffusionalError(
            f"expected variance to be one of {', '.join(_VARIANCES)}, got {variance!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    family = entry.family
    if settings.value("use_flow_sigmas", False):
        family = "flow"
    elif name == "EulerDiscreteScheduler" and (
        settings.value("timestep_type", "discrete") == "continuous"
        and settings.value("prediction_type") == "v_prediction"
    ):
        family = "edm"
    if family != "betas":
        reader = {"flow": _flow, "edm": _edm, "score": _score}[family]
        found = reader(entry, settings, gamma_min, gamma_max)
    else:
        if gamma_min is not None or gamma_max is not None:
            raise DiffusionalError(
                f"gamma_min and gamma_max were given, but the levels of {name} are those of its betas; leave them out"
            )
        found = _betas(entry, settings)
    rule = _rule(entry, settings, clipped, found.low, found.high)
    settings.sampler_settings(family)
    return replace(
        found,
        rule=rule,
        config=settings.config,
        assumed=settings.assumed,
        given=settings.given,
        left_out=settings.left_out,
    )


class _Settings:
    """A config with the defaults of its class, and the sentences about it."""

    def __init__(self, name: str, config: Mapping[str, Any], variance: str | None) -> None:
        self.name, self.variance = name, variance
        self.config: dict[str, str] = {}
        self.assumed: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.defaults = parameters(name)
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        unknown = [key for key in own if key not in self.defaults and key not in _known_keys()]
        if unknown:
            close = difflib.get_close_matches(unknown[0], self.defaults or _known_keys(), n=1)
            raise DiffusionalError(
                f"the config of the {name} has {', '.join(map(repr, unknown))}, which no scheduler of diffusers has"
                + (f"; did you mean {close[0]!r}?" if close else "")
                + ". Correct it, or remove what does not belong there: it may decide the number"
            )
        self.own = own
        ignored = sorted(key for key in own if self.defaults and key not in self.defaults)
        if ignored:
            self.left_out["ignored"] = f"{', '.join(ignored)}: settings of other schedulers, which {name} ignores"

    def value(self, key: str, default: Any = None) -> Any:
        if self.defaults and key not in self.defaults:
            return default
        return self.own.get(key, self.defaults.get(key, default))

    def sampler_settings(self, family: Family) -> None:
        """Record the settings that differ from the defaults and are the sampler's."""
        used = _XHAT | (_BETAS if family in ("betas", "flow") else set())
        used |= {"sigma_min", "sigma_max", "sigma_data", "timestep_type", "use_flow_sigmas", "num_train_timesteps"}
        used |= {"prediction_type"}
        changed = [
            f"{key}={value}"
            for key, value in self.own.items()
            if key in self.defaults and key not in used and value != self.defaults[key]
        ]
        if changed:
            self.left_out["sampler"] = f"{', '.join(changed)}: the sampler's grid and solver, not the model's"


@cache
def parameters(name: str) -> dict[str, Any]:
    """Return the settings of a scheduler with their defaults; {} if it cannot be imported here.

    >>> parameters("DDPMScheduler")["clip_sample"]
    True
    """
    with needed_for("diffusers"):
        import diffusers.schedulers

    try:
        kind = getattr(diffusers.schedulers, name)
        signature = inspect.signature(kind.__init__)
    except (AttributeError, ImportError, RuntimeError):
        return {}
    if kind.__module__.rpartition(".")[2].startswith("dummy"):
        return {}
    own = list(signature.parameters.values())[1:]
    return {p.name: None if p.default is p.empty else p.default for p in own if p.kind is not p.VAR_KEYWORD}


@cache
def _known_keys() -> frozenset[str]:
    """Return the settings of all schedulers: those of another one are ignored by diffusers, and left over in many configs."""
    # Of configs that old versions of diffusers wrote.
    old = {"clip_predicted_image_range", "tensor_format", "timestep_values", "timesteps", "predict_epsilon"}
    return frozenset(key for name in TABLE for key in parameters(name)) | old


def betas(kind: str, steps: int, start: float, end: float) -> Tensor:
    """Return diffusers' β_1 … β_T (T,) of a beta_schedule, float64.

    >>> betas("linear", 3, 0.1, 0.3)
    tensor([0.1000, 0.2000, 0.3000], dtype=torch.float64)
    """
    if steps < 2:
        raise DiffusionalError(f"expected num_train_timesteps of at least 2, got {steps}")
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start
    if kind == "squaredcos_cap_v2":
        return cosine(steps).betas
    functions = {"exp": lambda t: math.exp(-12.0 * t), "laplace": _laplace}
    if kind not in functions:
        raise DiffusionalError(
            "expected beta_schedule to be linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace or exp, got "
            f"{kind!r}; give the betas as trained_betas"
        )
    kept = [functions[kind](t / steps) for t in range(steps + 1)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(kept)], dtype=torch.float64)


def _laplace(t: float) -> float:
    level = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(level) / (1 + math.exp(level)))


def zero_terminal(betas: Tensor) -> Tensor:
    """Return betas rescaled to SNR_T = 0 (Lin et al. 2024, algorithm 1): √ᾱ is shifted to end at 0, and scaled to keep its beginning.

    >>> zero_terminal(torch.tensor([0.1, 0.2], dtype=torch.float64))
    tensor([0.1000, 1.0000], dtype=torch.float64)
    """
    roots = (0.5 * torch.log1p(-betas).cumsum(0)).exp()
    shifted = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    rest = 1 - (shifted[1:] / shifted[:-1]) ** 2
    return torch.cat([betas[:1], rest])


def _shifted(betas: Tensor, scale: float) -> Tensor:
    """Return betas whose SNR is that of `betas` divided by `scale`."""
    gamma = FromBetas(betas).grid() + math.log(scale)
    kept = logsigmoid(-gamma)
    return -torch.expm1(torch.cat([kept[:1], kept[1:] - kept[:-1]]))


def _betas(entry: Entry, settings: _Settings) -> Declared:
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
        rates = _shifted(rates, float(shift))
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


def _prediction(entry: Entry, settings: _Settings) -> tuple[str, Output]:
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
    entry: Entry, settings: _Settings, schedule: Schedule
) -> tuple[Variance, Literal["range"] | VarianceOutput | None]:
    """Return the variance of p, and what the second half of the network's output is."""
    own = settings.value("variance_type") if entry.ancestral else None
    word = _VARIANCES[settings.variance] if settings.variance is not None else own or "fixed_small"
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


def _rule(entry: Entry, settings: _Settings, clipped: bool | None, low: float, high: float) -> Rule | None:
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
    settings: _Settings, low: float | None, high: float | None, gamma_min: float | None, gamma_max: float | None
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


def _continuous(settings: _Settings) -> None:
    settings.assumed["levels"] = (
        "continuous time: the network was trained at all levels, and the sampler chooses some (a number of latents: steps=)"
    )
    if settings.variance is not None:
        raise DiffusionalError(
            f"variance={settings.variance!r} was given, but the {settings.name}'s model is in continuous time, where all variances agree; leave it out"
        )


def flow_scale(gamma: Tensor) -> Tensor:
    """Return c of a flow: (1 − t) x + t ε = c z, with t/(1 − t) = σ/α.

    >>> float(flow_scale(torch.zeros(())))                # t = ½: c = √½
    0.7071...
    """
    return 1 / (alpha(gamma) + sigma(gamma))


def ve_scale(gamma: Tensor) -> Tensor:
    """Return c of a variance-exploding process: x + σ ε = c z.

    >>> float(ve_scale(torch.zeros(())))                  # σ = 1: c = √2
    1.4142...
    """
    return torch.exp(-0.5 * logsigmoid(-gamma.double()))


@dataclass(frozen=True)
class FlowTime:
    """From log-SNR to a flow's time times `factor`: t, the share of noise, or 1 − t with `of_data`.

    >>> FlowTime(1000.0)(torch.zeros(1))
    tensor([500.], dtype=torch.float64)
    """

    factor: float = 1.0
    of_data: bool = False

    def __call__(self, log_snr: Tensor) -> Tensor:
        half = 0.5 * log_snr.double()
        return self.factor * torch.sigmoid(half if self.of_data else -half)


@dataclass(frozen=True)
class SigmaTime:
    """From log-SNR to a function of σ/α: "sigma" itself, "log", its ¼ ln, or "arctan", its (2/π) arctan.

    >>> SigmaTime("log")(torch.full((1,), -8.0))
    tensor([1.], dtype=torch.float64)
    """

    kind: Literal["sigma", "log", "arctan"] = "log"

    def __call__(self, log_snr: Tensor) -> Tensor:
        half = -0.5 * log_snr.double()
        if self.kind == "log":
            return 0.25 * half
        return half.exp() if self.kind == "sigma" else half.exp().atan() * (2 / math.pi)


def edm_output(sigma_data: float, sign: float = 1.0) -> Output:
    """Return what EDM's F is of x and ε (Karras et al. 2022): F = (σ x/σ_d − σ_d ε)/√(σ² + σ_d²), times `sign`.

    >>> float(edm_output(1.0).of_noise(torch.zeros(())))  # −v for σ_d = 1
    -0.7071...
    """

    def norm(gamma: Tensor) -> Tensor:
        return (gamma.double().exp() + sigma_data**2).sqrt()

    return Output(
        lambda gamma: sign * (0.5 * gamma.double()).exp() / (sigma_data * norm(gamma)),
        lambda gamma: -sign * sigma_data / norm(gamma),
    )


def edm_scale(sigma_data: float) -> Callable[[Tensor], Tensor]:
    """Return c of an EDM network: it reads c_in (x + σ ε), c_in = 1/√(σ² + σ_d²).

    >>> float(edm_scale(1.0)(torch.zeros(())))
    1.0
    """
    return lambda gamma: ve_scale(gamma) / (gamma.double().exp() + sigma_data**2).sqrt()


def _flow(entry: Entry, settings: _Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
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
    settings.config["end"] = "p(z_T) = N(0, I)"
    return Declared(settings.name, schedule, FlowTime(steps), outputs[word], flow_scale)


def _edm(entry: Entry, settings: _Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
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


def _score(entry: Entry, settings: _Settings, gamma_min: float | None, gamma_max: float | None) -> Declared:
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


def markdown() -> str:
    """Return the table of schedulers in docs/checkpoints.md.

    >>> markdown().splitlines()[0]
    '| scheduler | read as | predictions | variance of p | note |'
    """
    families = {
        "betas": "betas, T levels",
        "flow": "flow, continuous",
        "edm": "EDM, continuous",
        "score": "variance exploding, T levels",
        "refused": "refused",
    }
    lines = ["| scheduler | read as | predictions | variance of p | note |", "|---|---|---|---|---|"]
    for name, entry in sorted(TABLE.items()):
        if entry.family == "refused":
            lines.append(f"| {name} | refused | | | {entry.note} |")
            continue
        words = {"flow": "velocity", "edm": "F (epsilon, v_prediction)", "score": "score"}.get(
            entry.family, ", ".join(entry.predictions)
        )
        own = "in the config" if "variance_type" in entry.note or name.startswith("UnCLIP") else "posterior"
        variance = "" if entry.family in ("flow", "edm") else own if entry.ancestral else "posterior, assumed"
        lines.append(f"| {name} | {families[entry.family]} | {words} | {variance} | {entry.note} |")
    return "\n".join(lines) + "\n"


def variances_markdown() -> str:
    """Return the table of variance_type in docs/checkpoints.md.

    >>> variances_markdown().splitlines()[2]
    '| `fixed_small` | `posterior` | that of q(z_t\\\\|z_{t+1}, x) |'
    """
    lines = ["| `variance_type` | ours | the variance of p(z_t\\|z_{t+1}) |", "|---|---|---|"]
    for name, (ours, _, meaning) in VARIANCE_TYPES.items():
        lines.append(f"| `{name}` | `{ours}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def write_tables(text: str) -> str:
    """Return a page with the tables between their markers written anew: `python -m diffusional.interop.schedulers` does so for the docs."""
    for name, table in (("schedulers", markdown()), ("variances", variances_markdown())):
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    from pathlib import Path

    page = Path(__file__).parents[3] / "docs" / "checkpoints.md"
    page.write_text(write_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
