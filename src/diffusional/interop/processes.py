"""Diffusions of OpenAI's and lucidrains' code, read by their attributes: `wrap.openai` and `wrap.lucidrains`.

Neither package is imported. Their objects have the betas, what the network predicts, the variance and the time input; the network is the
caller's own. Numbers are formed in float64 from the betas.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.interop.adapter import DATA, NOISE, Adapter, Clip, V, VarianceOutput
from diffusional.interop.averages import copies_of
from diffusional.interop.record import Origin
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import DiscretizedGaussian, GaussianLikelihood, Likelihood
from diffusional.models.time import AtLevels, TrainedIndex
from diffusional.schedule import Schedule, from_betas
from diffusional.space import Discrete, Space

_OPENAI = {"EPSILON": (NOISE, "the noise ε"), "START_X": (DATA, "x")}
_LUCIDRAINS = {
    "pred_noise": (NOISE, "the noise ε"),
    "pred_x0": (DATA, "x"),
    "pred_v": (V, "v = α ε − σ x"),
}
_VARIANCES = {
    "FIXED_SMALL": ("posterior", "that of q(z_t|z_{t+1}, x)"),
    "FIXED_LARGE": ("transition", "β_{t+1}"),
    "LEARNED_RANGE": ("learned", "between the two in log space, at (1 + the second half of the output)/2"),
    "LEARNED": ("learned", "the exponential of the second half of the output"),
}


class LogVarianceOutput(VarianceOutput):
    """Second half of an output that is the logarithm of the variance of p(z_t|z_{t+1}): OpenAI's ModelVarType.LEARNED."""

    def fraction(self, output: Tensor, gamma: Tensor) -> Tensor:
        return super().fraction(output.double().exp(), gamma)


class LevelTimes(AtLevels):
    """From log-SNR to the time of the level that has it, of a list of the times of all levels.

    Raises DiffusionalError for a log-SNR of no level.

    >>> LevelTimes(from_betas([0.1, 0.2]), [0.0, 500.0])(-from_betas([0.1, 0.2]).grid())
    tensor([  0., 500.])
    """

    def __init__(self, schedule: Schedule, times: list[float]) -> None:
        super().__init__()
        # In tuples, so that neither is in the state of the model.
        self._index, self._times = (TrainedIndex(schedule),), (torch.tensor(times),)

    def forward(self, log_snr: Tensor) -> Tensor:
        times = self._times[0].to(log_snr.device)
        if not self.interpolates:
            return times[self._index[0](log_snr)]
        place = self._index[0].position(log_snr)
        below = place.floor().long().clamp(0, len(times) - 2)
        return times[below] + (place - below) * (times[below + 1] - times[below])


def openai(
    network: Callable[..., Tensor],
    diffusion: Any,
    space: Space,
    *,
    clipped: bool = True,
    likelihood: Likelihood | None = None,
) -> DiffusionModel:
    """Return the model of a network with an OpenAI GaussianDiffusion: see `Wrap.openai`."""
    origin = Origin(_name(diffusion), "openai")
    schedule = _schedule(diffusion, origin)
    output, word = _looked_up(_OPENAI, _enum(diffusion, "model_mean_type"), "model_mean_type")
    variance, meaning = _looked_up(_VARIANCES, kind := _enum(diffusion, "model_var_type"), "model_var_type")
    origin.config["prediction"] = f"the network predicts {word}"
    origin.config["variance"] = f"the variance of p(z_t|z_{{t+1}}) is {meaning} ({kind})"
    learns: Any = {"LEARNED_RANGE": "range", "LEARNED": LogVarianceOutput(schedule)}.get(kind)
    low, high = schedule.grid()[:2]
    least = float(torch.sigmoid(low) * -torch.expm1(low - high))
    if likelihood is None and isinstance(space, Discrete):
        likelihood = DiscretizedGaussian(space, None if learns else least, least if learns else None)
        origin.config["decoder"] = "p(x|z_1) is a discretised Gaussian around x̂ with the variance of q(z_1|z_2, x)" + (
            " or more, at the network's second output" if learns else ""
        )
    return _model(
        Adapter(network, output, _openai_time(schedule, diffusion, origin), 1.0, learns, _clip(clipped, origin)),
        schedule,
        space,
        likelihood,
        variance,
        origin,
    )


def _openai_time(schedule: Schedule, diffusion: Any, origin: Origin) -> Callable[[Tensor], Tensor]:
    """Return the time input: the number of the level, of the original levels if some were left out, or its thousandth part of T."""
    steps = schedule.steps
    assert steps is not None
    numbers = list(getattr(diffusion, "timestep_map", None) or range(steps))
    total = int(getattr(diffusion, "original_num_steps", None) or steps)
    if len(numbers) != steps:
        raise DiffusionalError(f"expected a timestep_map of {steps} levels, as many as betas, got {len(numbers)}")
    if numbers == list(range(steps)) and not diffusion.rescale_timesteps:
        origin.config["time"] = f"the network reads the number of the level, 0 … {steps - 1}"
        return TrainedIndex(schedule)
    factor = 1000.0 / total if diffusion.rescale_timesteps else 1.0
    origin.config["time"] = f"the network reads {factor:g} times the number of the level, 0 … {factor * numbers[-1]:g}"
    return LevelTimes(schedule, [factor * float(number) for number in numbers])


def lucidrains(
    diffusion: Any,
    *,
    levels: int | None = 256,
    clipped: bool = True,
    likelihood: Likelihood | None = None,
) -> DiffusionModel:
    """Return the model of a lucidrains GaussianDiffusion: see `Wrap.lucidrains`."""
    origin = Origin(_name(diffusion), "lucidrains")
    schedule = _schedule(diffusion, origin)
    output, word = _looked_up(_LUCIDRAINS, _attribute(diffusion, "objective"), "objective")
    origin.config["prediction"] = f"the network predicts {word}"
    if getattr(diffusion, "self_condition", False):
        raise DiffusionalError(
            "the network is self-conditioned: its sampler's step depends on the x̂ of the step before, so that its chain is not Markov. A bound "
            "of the same network without it is one of another model: wrap(network, …) with a function that gives no x_self_cond"
        )
    network, channels = _attribute(diffusion, "model"), int(_attribute(diffusion, "channels"))
    if getattr(network, "out_dim", channels) != channels:
        raise DiffusionalError(
            f"expected a network of {channels} output channels, got {network.out_dim}: a learned variance goes through "
            'df.wrap(network, learns="range", …) and DiffusionModel(…, variance="learned")'
        )
    size = getattr(diffusion, "image_size", None)
    sides = (
        (int(_attribute(diffusion, "seq_length")),) if size is None else (size,) * 2 if isinstance(size, int) else size
    )
    low, high = (float(value) for value in _attribute(diffusion, "normalize")(torch.tensor([0.0, 1.0])))
    shape = (channels, *map(int, sides))
    space: Any = None
    if likelihood is not None:
        space = likelihood.space
        if space.shape != shape:
            raise DiffusionalError(f"expected a likelihood over items of shape {shape}, got one over {space}")
        origin.given["space"] = f"x is {space}"
    elif levels is None:
        raise DiffusionalError(
            f"levels=None needs likelihood=, such as likelihood.GaussianLikelihood(Continuous({shape}))"
        )
    else:
        space = Discrete(shape, levels, low, high)
        origin.choose("space", f"x has {levels} levels from {low:g} to {high:g}", given=levels != 256)
        likelihood = DiscretizedGaussian(space)
        origin.assumed["decoder"] = "p(x|z_1) is a discretised Gaussian around x̂ with variance σ_1²"
    origin.config["variance"] = "the variance of p(z_t|z_{t+1}) is that of q(z_t|z_{t+1}, x) (posterior)"
    origin.config["time"] = f"the network reads the number of the level, 0 … {len(schedule.grid()) - 1}"
    if getattr(diffusion, "is_ddim_sampling", False):
        origin.left_out["sampler"] = f"sampling_timesteps={diffusion.sampling_timesteps}: DDIM, which is not the chain"
    for name, what in (("immiscible", "x and ε in pairs"), ("offset_noise_strength", "noise with a common offset")):
        if getattr(diffusion, name, False):
            warnings.warn(
                f"the network was trained with {name}, on {what}, and is not a posterior mean: its bound is valid but loose",
                stacklevel=3,
            )
    denoiser = Adapter(network, output, TrainedIndex(schedule), 1.0, None, _clip(clipped, origin))
    return _model(denoiser, schedule, space, likelihood, "posterior", origin)


def _name(diffusion: Any) -> str:
    return f"{type(diffusion).__module__}.{type(diffusion).__qualname__}"


def _attribute(diffusion: Any, name: str) -> Any:
    if not hasattr(diffusion, name):
        raise DiffusionalError(
            f"expected a GaussianDiffusion with the attribute {name}, got a {type(diffusion).__name__} without it; use df.wrap(network, …), "
            "which asks for no such object"
        )
    return getattr(diffusion, name)


def _enum(diffusion: Any, name: str) -> str:
    value = _attribute(diffusion, name)
    return str(getattr(value, "name", value))


def _looked_up(table: dict[str, tuple[Any, str]], word: Any, name: str) -> tuple[Any, str]:
    if word not in table:
        raise DiffusionalError(f"expected {name} to be one of {', '.join(table)}, got {word!r}")
    return table[word]


def _schedule(diffusion: Any, origin: Origin) -> Schedule:
    betas = torch.as_tensor(_attribute(diffusion, "betas"), dtype=torch.float64).cpu()
    origin.config["levels"] = f"T = {len(betas)} latents, by its betas"
    origin.config["end"] = "p(z_T) = N(0, I)"
    return from_betas(betas)


def _clip(clipped: bool, origin: Origin) -> Clip | None:
    origin.choose(
        "clipping", "x̂ is clipped to [-1, 1], as by its sampler" if clipped else "x̂ is not clipped", not clipped
    )
    return Clip(-1.0, 1.0) if clipped else None


def _model(
    denoiser: Adapter, schedule: Schedule, space: Space, likelihood: Likelihood | None, variance: Any, origin: Origin
) -> DiffusionModel:
    if likelihood is None:
        likelihood = GaussianLikelihood(space)
        origin.assumed["decoder"] = "p(x|z_1) is a Gaussian density around x̂ with the variance of z_1/α_1, σ_1²/α_1²"
    elif likelihood.space != space:
        raise DiffusionalError(f"expected a likelihood over {space}, got one over {likelihood.space}")
    model = DiffusionModel(GaussianDiffusion(schedule), denoiser, likelihood, variance)
    if (found := copies_of(model)) is not None:
        origin.config["weights"] = found[1].sentence()
        origin.files |= found[1].files
    model.origin = origin.to_dict()
    return model.eval()
