"""A model of this library as a pipeline of diffusers: `DiffusionPipeline.from_pretrained(folder)` loads and samples it.

A DDPMPipeline has a UNet2DModel and a DDPMScheduler, whose step is p(z_t|z_{t+1}) of our chain, with betas, a prediction and a variance
(MATH (5)). `settings_of` reads scheduler_table.py backwards; what it cannot express is refused with the reason. The levels of
the data and the decoder, which diffusers does not have, are written to diffusional.json, so that `load_checkpoint` gives the same bound.
"""

import copy
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import regridded
from diffusional.extras import needed_for
from diffusional.files import save_json, writing_folder
from diffusional.interop.adapter import Adapter, Rule, Threshold, VarianceOutput, value_at
from diffusional.interop.networks import DiffusersNetwork
from diffusional.interop.stated import Stated
from diffusional.models.denoiser import Denoiser, clip_of
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import Bernoulli, DiscretizedGaussian, LevelPosterior
from diffusional.models.time import TrainedIndex
from diffusional.networks.diffusers import FromDiffusers
from diffusional.schedule import FromBetas, Schedule
from diffusional.space import Discrete

CARD, PIPELINE, _INDEX = "README.md", "pipeline.py", "model_index.json"
_WORDS = {"noise": "epsilon", "data": "sample", "v": "v_prediction"}
_VARIANCES = {"posterior": "fixed_small", "transition": "fixed_large"}
# Two schedules are the same if their γ differ by less; neighbouring levels of T = 4000 differ by 1e-3.
_SAME = 1e-6
# T of samples of a model in continuous time.
_STEPS = 250


def write_pipeline(model: Any, folder: str | Path, card: str) -> dict[str, Any]:
    """Write a model as the folder of a DDPMPipeline, completely or not at all; returns the settings of its scheduler.

    Args:
        model: a DiffusionModel whose network is a UNet2DModel.
        folder: the new folder; folders above it are created.
        card: the text of README.md.

    Raises DiffusionalError for a model that no DDPMPipeline expresses, a path that exists, and a folder that cannot be written. Nothing is
    written then.
    """
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    network, settings, stated = parts_of(model)
    with writing_folder(Path(folder)) as partial:
        pipeline = DDPMPipeline(network, DDPMScheduler(**settings))
        pipeline.save_pretrained(partial, safe_serialization=True)
        stated.save(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
    return settings


def write_custom(model: Any, folder: str | Path, card: str) -> dict[str, Any]:
    """Write a model as a folder with a pipeline of its own, pipeline.py, completely or not at all; returns its settings.

    Args:
        model: a DiffusionModel of T latents whose network is a UNet2DModel.
        folder: the new folder; folders above it are created.
        card: the text of README.md.

    Raises DiffusionalError for a model whose network is not one of diffusers, a model in continuous time, a path that exists, and a folder
    that cannot be written. Nothing is written then.
    """
    network, sampling = sampling_of(model)
    with needed_for("diffusers"):
        import diffusers

        from diffusional.interop import custom_pipeline

    with writing_folder(Path(folder)) as partial:
        network.save_pretrained(partial / "unet", safe_serialization=True)
        index = {
            "_class_name": ["pipeline", custom_pipeline.DiffusionalPipeline.__name__],
            "_diffusers_version": diffusers.__version__,
            "unet": ["diffusers", type(network).__name__],
            "sampling": sampling,
        }
        save_json(partial / _INDEX, index)
        shutil.copyfile(custom_pipeline.__file__, partial / PIPELINE)
        (partial / CARD).write_text(card, encoding="utf-8")
    return sampling


def for_samples(model: Any, steps: int | None) -> Any:
    """Return a model at the T of its samples: `steps`, its own T, or 250 in continuous time."""
    if not isinstance(model, DiffusionModel) or (steps or model.steps or _STEPS) == model.steps:
        return model
    return regridded(model, steps or _STEPS)


def sampling_of(model: Any) -> tuple[Any, dict[str, Any]]:
    """Return the UNet2DModel of a model, and the settings of its custom pipeline (custom_pipeline.py)."""
    what = "with a pipeline of its own"
    if not isinstance(model, DiffusionModel):
        raise _unfit(f"expected a DiffusionModel, got a {type(model).__name__}", what)
    space = model.space
    if not isinstance(space, Discrete) or len(space.shape) != 3:
        raise _unfit(f"its pipeline draws images with levels, got {space}", what)
    if model.steps is None:
        raise _unfit("the model is in continuous time, and samples need T levels. Give steps= (--steps)", what)
    if not model.process.markov:
        raise _unfit(f"the posterior of a {type(model.process).__name__} is not Markov", what)
    denoiser, clip = model.denoiser, None
    if (found := clip_of(denoiser)) is not None:
        denoiser, clip = found[0], [found[1].low, found[1].high]
    if isinstance(denoiser, Adapter):
        raise _unfit("a checkpoint from elsewhere is exported as it was, with --to diffusers", what)
    module: Any = denoiser.module
    if not isinstance(module, FromDiffusers) or module.condition_as != "class_labels":
        raise _unfit(
            f"its file needs only torch and diffusers, and its network is not a UNet2DModel of diffusers, got a {type(module).__name__}. Train "
            'with model.network="ddpm", or share the run itself, with `diffusional push`',
            what,
        )
    gamma = model.process.schedule.grid().detach()
    if not bool(gamma.isfinite().all()):
        raise _unfit("its last level has SNR 0", what)
    times = -gamma if denoiser.time is None else denoiser.time(-gamma).detach()
    config: Any = module.network.config
    classes = config.num_class_embeds
    sampling = {
        "gammas": gamma.tolist(),
        "times": times.tolist(),
        "predicts": denoiser.predicts,
        "head": denoiser.head if denoiser.predicts == "levels" else None,
        "variance": model.variance,
        "clip": clip,
        "low": space.low,
        "high": space.high,
        "levels": space.levels,
        "shape": list(space.shape),
        "multiple": module.multiple,
        "last_variance": model.last_variance,
        "id2label": None if classes is None else list(model.classes or map(str, range(classes))),
    }
    return module.network, sampling


def parts_of(model: Any) -> tuple[Any, dict[str, Any], Stated]:
    """Return the network, the settings of a DDPMScheduler, and what diffusers has no place for. Raises DiffusionalError with the reason if a
    model cannot be a DDPMPipeline.
    """
    if not isinstance(model, DiffusionModel):
        raise _unfit(f"expected a DiffusionModel, got a {type(model).__name__}")
    space = model.space
    if not isinstance(space, Discrete) or (space.low, space.high) != (-1.0, 1.0):
        raise _unfit(f"its pipeline takes x for an image with levels from -1 to 1, got {space}")
    if model.steps is None:
        raise _unfit("the model is in continuous time, and a scheduler has T levels. Train with schedule.steps")
    if not model.process.markov:
        raise _unfit(f"the posterior of a {type(model.process).__name__} is not Markov")
    if model.last_variance != 1:
        raise _unfit(f"its sampler starts from N(0, I), and p(z_T) has the variance {model.last_variance:g}")
    denoiser, rule = model.denoiser, None
    if (found := clip_of(denoiser)) is not None:
        denoiser, rule = found
    network = _network(denoiser.module, space)
    settings = settings_of(model, denoiser, rule)
    learns = settings["variance_type"] in ("learned", "learned_range")
    _check_outputs(network, space, denoiser.learns_variance, learns)
    decoder, variance = _decoder(model, learns)
    if tuple(space.shape[1:]) != _sides(network.config.sample_size):
        network = copy.deepcopy(network)  # the config of the model that was given does not change
        network.register_to_config(sample_size=tuple(space.shape[1:]))
    return network, settings, Stated(space, decoder, variance)


def settings_of(model: DiffusionModel, denoiser: Denoiser, rule: Rule | None = None) -> dict[str, Any]:
    """Return the settings of the DDPMScheduler whose step is that of a model.

    Args:
        denoiser: that of the model, or the one that is clipped in it.
        rule: what the model does to the x̂ of `denoiser`.
    """
    schedule, time = model.process.schedule, denoiser.time
    if not (isinstance(time, TrainedIndex) and time.first == 0 and _same(time.schedule, schedule)):
        raise _unfit(
            "its scheduler gives the number of the level, from 0, to the network, which reads another time; df.export a model at the T of its "
            'training, of model.network="ddpm"'
        )
    if isinstance(denoiser, Adapter):
        rule = denoiser.rule if rule is None else rule
    return {
        "num_train_timesteps": model.steps,
        "trained_betas": betas_of(schedule),
        "prediction_type": _prediction(denoiser, schedule),
        "variance_type": _variance_type(model, denoiser),
        **_rule(rule),
    }


def betas_of(schedule: Schedule) -> list[float]:
    """Return β_1 … β_T of a schedule of T latents, from its γ: 1 − β_t = α_t²/α_{t−1}².

    >>> from diffusional.schedule import from_betas
    >>> betas_of(from_betas([0.1, 0.2]))
    [0.1, 0.2]
    """
    if isinstance(schedule, FromBetas) and schedule.steps == len(schedule.betas):
        return schedule.betas.tolist()
    kept = [0.0, *logsigmoid(-schedule.grid().detach()).tolist()]
    return [-math.expm1(after - before) for before, after in itertools.pairwise(kept)]


def _unfit(why: str, what: str = "as a DDPMPipeline of diffusers") -> DiffusionalError:
    return DiffusionalError(f"the model cannot be exported {what}: {why}")


def _same(first: Schedule, second: Schedule) -> bool:
    if first.steps is None or first.steps != second.steps:
        return False
    return bool((first.grid().detach() - second.grid().detach()).abs().max() < _SAME)


def _network(module: Any, space: Discrete) -> Any:
    """Return the UNet2DModel inside a denoiser's module."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    network = module.network if isinstance(module, FromDiffusers | DiffusersNetwork) else module
    if type(network) is not UNet2DModel:
        name = type(network).__name__
        raise _unfit(f'its network is a UNet2DModel, got a {name}. Train with model.network="ddpm"')
    config: Any = network.config
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise _unfit("it gives no class labels to its network, which needs them")
    multiple = module.multiple if isinstance(module, FromDiffusers) else 1
    if any(side % multiple for side in space.shape[1:]):
        raise _unfit(
            f"images of {space.shape[1]}×{space.shape[2]} are padded to multiples of {multiple} inside the model, which a pipeline does not do. "
            f"Train on images whose sides are multiples of {multiple}, or with fewer model.widths"
        )
    return network


def _check_outputs(network: Any, space: Discrete, declared: bool, learns: bool) -> None:
    channels, outputs = network.config.in_channels, network.config.out_channels
    if declared and not learns:
        raise _unfit("the network has outputs for a variance that the model does not use; its scheduler refuses them")
    expected = (2 if learns else 1) * space.shape[0]
    if channels != space.shape[0] or outputs != expected:
        raise _unfit(
            f"expected a UNet2DModel from {space.shape[0]} to {expected} channels, got one from {channels} to {outputs}"
        )


def _prediction(denoiser: Denoiser, schedule: Schedule) -> str:
    """Return the prediction_type."""
    if not isinstance(denoiser, Adapter):
        if denoiser.predicts not in _WORDS:
            raise _unfit(
                f"its network predicts the noise, x or v, got {denoiser.predicts!r}. Train with model.predicts v, noise or data"
            )
        return _WORDS[denoiser.predicts]
    gamma, output = schedule.grid().detach(), denoiser.output
    a, b = output.at(gamma)
    alpha, sigma = torch.exp(0.5 * logsigmoid(-gamma)), torch.exp(0.5 * logsigmoid(gamma))
    zero, one = torch.zeros_like(gamma), torch.ones_like(gamma)
    meanings = {"epsilon": (zero, one), "sample": (one, zero), "v_prediction": (-sigma, alpha)}
    fitting = [word for word, (x, e) in meanings.items() if bool(((a - x).abs() + (b - e).abs()).max() < _SAME)]
    if not fitting:
        raise _unfit("its network predicts the noise, x or v, got another combination of them")
    if bool((value_at(denoiser.scale, gamma) - 1).abs().max() > _SAME):
        raise _unfit("its network reads z itself, got one that reads a multiple of z")
    return fitting[0]


def _variance_type(model: DiffusionModel, denoiser: Denoiser) -> str:
    if model.variance != "learned":
        return _VARIANCES[model.variance]
    own = isinstance(denoiser, Adapter) and isinstance(denoiser.learns, VarianceOutput)
    return "learned" if own else "learned_range"


def _rule(rule: Rule | None) -> dict[str, Any]:
    """Return the settings of what is done to x̂."""
    if rule is None:
        return {"clip_sample": False}
    if isinstance(rule, Threshold):
        return {
            "clip_sample": False,
            "thresholding": True,
            "dynamic_thresholding_ratio": rule.ratio,
            "sample_max_value": rule.most,
        }
    if rule.low != -rule.high:
        raise _unfit(f"its scheduler clips x̂ to [-r, r], got [{rule.low:g}, {rule.high:g}]")
    return {"clip_sample": True, "clip_sample_range": rule.high}


def _decoder(model: DiffusionModel, learns: bool) -> tuple[str, float | None]:
    """Return the decoder and its variance in the words of `load_checkpoint`."""
    likelihood: Any = model.likelihood
    kind = type(likelihood)
    if kind is LevelPosterior:
        return "level-posterior", None
    if kind is Bernoulli and likelihood.floor == Bernoulli(likelihood.space).floor:
        return "bernoulli", None
    if kind is not DiscretizedGaussian:
        raise _unfit(f"its decoder, a {kind.__name__} with its options, has no name in diffusional.json")
    first, second = model.process.schedule.grid()[:2].detach().tolist()
    if not learns:
        return "discretized-gaussian", likelihood.variance
    least, most = likelihood.least, 1 / (1 + math.exp(-first))
    if least is None:
        return "discretized-gaussian", most if likelihood.variance is None else likelihood.variance
    if likelihood.variance is None and math.isclose(least, most * -math.expm1(first - second), rel_tol=1e-9):
        return "discretized-gaussian", None
    raise _unfit("the learned variance of its decoder begins at another one than that of q(z_1|z_2, x)")


def _sides(size: Any) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else () if size is None else tuple(size)
