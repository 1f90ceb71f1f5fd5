"""A scheduler's config with the defaults of its class, and what it declares of the model."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.interop.adapter import Coefficient, Output, Rule, VarianceOutput
from diffusional.interop.scheduler_table import TABLE, Family
from diffusional.models.reverse import Variance
from diffusional.schedule import Schedule

# Keys that belong to the model in every family; the others of a scheduler are its sampler's.
_BETAS = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "snr_shift_scale"),
}
_XHAT = {
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    "variance_type",
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


class Settings:
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
