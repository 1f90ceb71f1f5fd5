"""`load_checkpoint`: a model of diffusers, from a folder or the Hub, as a model as any other."""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.files import load_json, sha256
from diffusional.forward import GaussianDiffusion
from diffusional.interop.adapter import Adapter
from diffusional.interop.averages import Copies, keep_copies
from diffusional.interop.declared import Declared
from diffusional.interop.fitted import choose_start, fit_variance
from diffusional.interop.flows import called
from diffusional.interop.masked_lm import PREFIX, load_masked_lm
from diffusional.interop.networks import DiffusersNetwork
from diffusional.interop.packing import packing_of
from diffusional.interop.place import COPIES, MEANS, NETWORK, SCHEDULER, Copy, Place, locate
from diffusional.interop.record import Origin
from diffusional.interop.schedulers import declared
from diffusional.interop.stated import STATED, read_stated
from diffusional.interop.weights import load_network
from diffusional.models import likelihood as likelihoods
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import Likelihood
from diffusional.models.masked import MaskedDiffusion
from diffusional.schedule import Schedule, log_snr_linear
from diffusional.space import Categorical, Continuous, Discrete, Space

DECODERS = ("discretized-gaussian", "openai", "level-posterior", "bernoulli", "gaussian")


def load_checkpoint(
    path_or_hub_id: str | Path,
    space: Space | None = None,
    *,
    levels: int | None = None,
    variance: str | None = None,
    clipped: bool | None = None,
    decoder: str | Likelihood | None = None,
    decoder_variance: float | Literal["fit"] | None = None,
    scheduler: Any = None,
    time: Callable[[Tensor], Tensor] | None = None,
    steps: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
    reference: Tensor | None = None,
    reference_condition: Condition | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    weights: Copy | None = None,
    mask_token: int | str | None = None,
    shift: bool = False,
) -> DiffusionModel | MaskedDiffusion:
    """Load a model of diffusers as a model as any other: `df.evaluate`, `df.compare` and samples work on it.

    "hf:NAME" loads a masked language model of transformers as a masked diffusion, over sequences of the length of `space`
    (a `space.Categorical`, or 128 tokens). Only `revision`, `mask_token` and `shift` apply to it: see `interop.masked_lm`.

    Its `origin` lists what the checkpoint's own files determine, what was assumed and what was given; evaluations record it.

    Args:
        path_or_hub_id: a pipeline's folder (model_index.json), a model's folder with its scheduler_config.json, or a Hub id, owner/name.
        space: what x is. By default images of the network's shape with 256 levels from −1 to 1; for pipelines with an autoencoder, its
            latents, in the units before `scaling_factor`.
        levels: number of levels of the default space, instead of 256.
        variance: of p(z_t|z_{t+1}), instead of the scheduler's: "posterior", "transition", "learned", or a variance_type of diffusers.
        clipped: False leaves out clipping or thresholding of x̂; True clips it to the range; None follows the scheduler's config.
        decoder: p(x|z_1), which no checkpoint determines: a likelihood over the space, or "discretized-gaussian" (the default for levels,
            with the variance σ_1²), "openai" (with that of q(z_1|z_2, x)), "level-posterior", "bernoulli" or "gaussian" (the default for
            real values).
        decoder_variance: of a Gaussian decoder, instead of these, in the units of encoded x; "fit" for the one of lowest cost on `reference`,
            for decoder="gaussian".
        scheduler: a scheduler_config.json, a folder with one, a config as a dict, or a scheduler of diffusers, instead of the checkpoint's.
        time: from log-SNR (B,) to the network's time input, instead of the scheduler's.
        steps: number of latents of a model in continuous time.
        gamma_min, gamma_max: γ = −log SNR of z_1 and z_T of a model in continuous time.
        reference: training items (N, *shape), encoded, some hundreds of them. γ_1 of a model in continuous time, unless `gamma_min` is given, is
            chosen on them by the bound (`choose_start`; for flows it is assumed otherwise), and decoder_variance="fit" is fitted on them.
        reference_condition: of these items, for conditional models.
        subfolder: of the denoiser, where it is not unet, transformer or prior.
        variant: of the weights, such as "fp16".
        revision: branch, tag or commit of a Hub repository.
        weights: "ema" for the moving average of the weights (unet_ema/, or the variant "ema"), "raw" for those of training (unet/, or the
            variant "non_ema"), where a checkpoint has both; by default unet/, or the weights without a variant. `check_weights` compares both.
        mask_token: of "hf:NAME": the number of the mask, or its text, instead of its tokenizer's.
        shift: of "hf:NAME": whether the logits at position i − 1 predict token i.

    Raises DiffusionalError for files that are missing, damaged, pickles that need code, or do not fit each other; schedulers without a bound
    and unknown settings; spaces of another shape; and decoders that do not fit the space.

    >>> import tempfile
    >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    >>> net = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4,
    ...                   down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> folder = tempfile.mkdtemp()
    >>> DDPMPipeline(net, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)
    >>> model = load_checkpoint(folder)
    >>> model.steps, model.space.levels, model.origin["config"]["levels"]
    (10, 256, 'T = 10 latents, linear betas from 0.0001 to 0.02')
    """
    if str(path_or_hub_id).startswith(PREFIX):
        others = {
            "levels": levels,
            "variance": variance,
            "clipped": clipped,
            "decoder": decoder,
            "time": time,
            "steps": steps,
        }
        others |= {
            "decoder_variance": decoder_variance,
            "scheduler": scheduler,
            "reference": reference,
            "weights": weights,
        }
        others |= {"gamma_min": gamma_min, "gamma_max": gamma_max, "subfolder": subfolder, "variant": variant}
        if given := [name for name, value in others.items() if value is not None]:
            raise DiffusionalError(
                f"expected only revision, mask_token and shift for {path_or_hub_id}, a masked language model, got {', '.join(given)} too"
            )
        # A space with an alphabet is that of another model; one without has the length of the items.
        named = isinstance(space, Categorical) and space.alphabet is not None
        length = None if space is None or named else space.dimensions
        options: dict[str, Any] = {"mask_token": mask_token, "shift": shift, "revision": revision}
        return load_masked_lm(path_or_hub_id, length, space=space if named else None, **options)
    if mask_token is not None or shift:
        raise DiffusionalError(
            f"mask_token and shift are for masked language models, by the name hf:NAME, got {path_or_hub_id}; leave them out"
        )
    place = locate(path_or_hub_id, subfolder=subfolder, variant=variant, revision=revision, weights=weights)
    origin = Origin(place.source, "diffusers", place.revision)
    own, stated = [], read_stated(place.folder)
    if stated is not None:  # of `df.export`: as if the caller had given them
        origin.files[STATED] = sha256(place.folder / STATED)
        if space is None and levels is None:
            space, own = stated.space, ["space"]
        if decoder is None and decoder_variance is None:
            decoder, decoder_variance, own = stated.decoder, stated.decoder_variance, [*own, "decoder"]
    fit = decoder_variance == "fit"
    if fit and reference is None:
        raise DiffusionalError(
            'decoder_variance="fit" was given without reference: give training items as reference=, or a number as decoder_variance'
        )
    declaration = declared(
        _scheduler(place, scheduler, origin),
        variance=variance,
        clipped=clipped,
        gamma_min=gamma_min,
        gamma_max=gamma_max,
    )
    network = load_network(place, origin)
    _keep_copies(network, place, origin, given=weights is not None)
    config: Any = network.config
    declaration = called(declaration, type(network).__name__, config.get("timestep_scale") or 1.0)
    channels, outputs = _channels(network)
    learns = declaration.learns
    drop = outputs == 2 * channels and learns is None
    if learns is not None and outputs != 2 * channels:
        raise DiffusionalError(
            f"expected {2 * channels} output channels for a learned variance, got {outputs} of the {type(network).__name__}: give "
            'variance="posterior" or "transition", or correct variance_type'
        )
    module = DiffusersNetwork(network, channels if drop else None)
    if drop:
        origin.left_out["outputs"] = (
            f'output channels {channels + 1} to {outputs}, a variance that the scheduler does not use; variance="learned_range" does, if '
            "they are fractions of the range"
        )
    _copy(declaration, origin)
    space = _space(place, network, channels, declaration, space, levels, origin, real=decoder == "gaussian")
    likelihood = _decoder(
        decoder, decoder_variance, space, declaration, origin, latents="vae" in place.parts or "vqvae" in place.parts
    )
    origin.config |= {name: origin.given.pop(name) for name in own}
    if time is not None:
        origin.given["time"] = f"the network reads time= ({getattr(time, '__name__', None) or repr(time)})"
        origin.config.pop("time", None)
        origin.assumed.pop("time", None)
    denoiser = Adapter(
        module, declaration.output, time or declaration.time, declaration.scale, declaration.learns, declaration.rule
    )
    schedule = declaration.schedule
    if reference is not None:
        # With a variance to fit, γ_1 is chosen only where no config has it.
        starts = schedule.steps is None and gamma_min is None and (not fit or "start" in origin.assumed)
        if not starts and not fit:
            why = (
                f"the levels of the {declaration.name} are its own" if gamma_min is None else "gamma_min was given too"
            )
            raise DiffusionalError(
                f"expected no reference items, since {why} and there is no γ_1 to choose; leave reference out"
            )
        low, high = schedule.ends().tolist()
        if starts:
            low = choose_start(denoiser, likelihood, reference, gamma_max=high, condition=reference_condition, fit=fit)
            schedule = log_snr_linear(low, high)
            origin.assumed.pop("start", None)
            origin.config.pop("start", None)
            origin.given["start"] = (
                f"γ_1 = {low:g} (σ/α = {math.exp(low / 2):.4g}), of lowest bound on {len(reference):,} training items"
            )
        if fit:
            value = fit_variance(denoiser, space, reference, low, condition=reference_condition)
            likelihood = likelihoods.GaussianLikelihood(space, value)
            origin.given["decoder"] = (
                f"p(x|z_1) is a Gaussian density around x̂ with variance {value:.6g}{_in_units(space, value)}, the mean squared residual of "
                f"{len(reference):,} training items"
            )
    process = GaussianDiffusion(schedule if steps is None else _regridded(declaration.name, schedule, steps, origin))
    model = DiffusionModel(process, denoiser, likelihood, declaration.variance, declaration.last_variance)
    _conditions(module, origin)
    if module.classes is not None:
        named = len(place.classes) == module.classes
        model.classes = place.classes if named else tuple(map(str, range(module.classes)))
        if named:
            origin.config["classes"] = f"the {module.classes} classes have the names of id2label"
    model.origin = origin.to_dict()
    return model.eval()


def _keep_copies(network: nn.Module, place: Place, origin: Origin, given: bool) -> None:
    """Record which copy of its weights a network has, and where the other one is."""
    taken = place.taken
    if taken is None:
        return
    if len(place.copies) < len(COPIES):
        origin.notes.append(f"the weights are {MEANS[taken]} ({place.network.name}/)")
        return

    def load(copy: Copy) -> Mapping[str, Tensor]:
        folder, variant = place.copies[copy]
        there = replace(place, network=folder, variant=variant)
        return load_network(there, Origin(place.source, "diffusers")).state_dict()

    copies = Copies(taken, {copy: place.where(copy) for copy in COPIES}, load, 'weights="{0}", --weights {0}')
    keep_copies(network, copies)
    (origin.given if given else origin.config)["weights"] = copies.sentence()


def _in_units(space: Space, variance: float) -> str:
    """Return a variance in the units of the data, in brackets; "" if these are those of x."""
    scale = space.scale if isinstance(space, Continuous) else (1.0,)
    return "" if len(scale) != 1 or scale[0] == 1 else f" ({variance * scale[0] ** 2:.6g} in the units of the data)"


def _copy(declaration: Declared, origin: Origin) -> None:
    for name in ("config", "assumed", "given", "left_out"):
        getattr(origin, name).update(getattr(declaration, name))


def _regridded(name: str, schedule: Schedule, steps: int, origin: Origin) -> Schedule:
    if schedule.steps is not None and schedule.steps != steps:
        raise DiffusionalError(
            f"steps={steps} was given, but the levels of the {name} are its own {schedule.steps}; leave it out"
        )
    origin.given["levels"] = f"T = {steps} latents, evenly spaced in log SNR"
    origin.assumed.pop("levels", None)
    return schedule.regrid(steps)


def _scheduler(place: Place, given: Any, origin: Origin) -> Mapping[str, Any]:
    if given is None:
        if place.scheduler is None:
            raise DiffusionalError(
                f"{place.source} has no {SCHEDULER}, which has the levels at which the network was trained; save the scheduler's config there, "
                "or pass it in Python: df.load_checkpoint(…, "
                'scheduler={"_class_name": "DDPMScheduler", "num_train_timesteps": 1000})'
            )
        found = load_json(place.scheduler)
        origin.files[os.path.relpath(place.scheduler, place.folder)] = sha256(place.scheduler)
        origin.config["scheduler"] = f"scheduler {found.get('_class_name')}"
        return found
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        path = path / SCHEDULER if path.is_dir() else path
        found = load_json(path)
        origin.given["scheduler"] = f"scheduler {found.get('_class_name')} of {given}"
        return found
    own = getattr(given, "config", given)
    found = dict(own)
    if "_class_name" not in found and own is not given:
        found["_class_name"] = type(given).__name__
    origin.given["scheduler"] = f"scheduler {found.get('_class_name')}"
    return found


def _channels(network: nn.Module) -> tuple[int, int]:
    """Return the numbers of channels of x and of the output."""
    config: Any = network.config
    channels = config.get("in_channels")
    outputs = config.get("out_channels") or channels
    if (packing := packing_of(network)) is not None and isinstance(channels, int) and isinstance(outputs, int):
        channels, outputs = channels // 4, outputs // 4 if packing.outputs else outputs
    if not isinstance(channels, int) or not isinstance(outputs, int):
        raise DiffusionalError(
            f"the config of the {type(network).__name__} has no in_channels; use df.wrap(network, …), which asks for nothing"
        )
    if outputs not in (channels, 2 * channels):
        raise DiffusionalError(
            f"expected {channels} or {2 * channels} output channels for {channels} input channels, got {outputs}: the network reads more than "
            "z (a mask or a low-resolution image). Give those in a function of (z, time, condition), and use df.wrap"
        )
    return channels, outputs


def _space(
    place: Place,
    network: nn.Module,
    channels: int,
    declaration: Declared,
    given: Space | None,
    levels: int | None,
    origin: Origin,
    real: bool,
) -> Space:
    config: Any = network.config
    size = config.get("sample_size")
    sides = None if size is None else tuple(size) if isinstance(size, list | tuple) else _sides(network, int(size))
    latents = next((part for part in ("vae", "vqvae") if part in place.parts), None)
    if given is not None:
        if levels is not None:
            raise DiffusionalError(
                f"levels={levels} and space={given} were given; the space has levels, leave levels out"
            )
        if given.shape[0] != channels:
            raise DiffusionalError(
                f"expected items of {channels} channels, which the {type(network).__name__} of {place.source} reads, got space {given}"
            )
        origin.given["space"] = f"x is {_described(given)}"
        if sides is not None and given.shape[1:] != sides:
            origin.notes.append(f"items of {_shape(given.shape[1:])}, but the network was trained on {_shape(sides)}")
        return given
    if sides is None:
        such = f"df.Discrete(({channels}, 32, 32), 256)"
        if latents is not None:
            shift, scale, _ = _scaling(place, latents, (channels,))
            ends = (shift, scale) if len(shift) == 1 else ("…", "…")
            such = f"df.Continuous(({channels}, 64, 64), shift={ends[0]}, scale={ends[1]})"
        raise DiffusionalError(
            f"the config of the {type(network).__name__} has no sample_size; give space=, such as {such}"
        )
    shape = (channels, *sides)
    if levels is not None and (real or latents is not None):
        what = f"a pipeline with an autoencoder ({latents}), whose x are latents" if latents else 'decoder="gaussian"'
        raise DiffusionalError(f"levels={levels} was given for {what}: real numbers have no levels; leave it out")
    if latents is None and real:
        space: Space = Continuous(shape)
    elif latents is None:
        space = Discrete(shape, 256 if levels is None else levels, declaration.low, declaration.high)
    else:
        shift, scale, how = _scaling(place, latents, shape)
        space = Continuous(shape, shift, scale)
        origin.notes.append(
            f"the pipeline has an autoencoder ({latents}): x is its latent, and the bound is one on the density of latents, not of images"
        )
        origin.config["scaling"] = how
    origin.choose("space", f"x is {_described(space)}", given=levels is not None)
    return space


def _scaling(place: Place, part: str, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Return the shift and the scale of an autoencoder's latents, in which the network sees (latent − shift)/scale, and a sentence on them."""
    config = load_json(file) if (file := place.folder / part / NETWORK).is_file() else {}
    factor = float(config.get("scaling_factor") or 1.0)
    means, spreads = config.get("latents_mean"), config.get("latents_std")
    if isinstance(means, list) and isinstance(spreads, list) and len(means) == len(spreads) == shape[0]:
        each = math.prod(shape[1:])
        shift = tuple(float(mean) for mean in means for _ in range(each))
        scale = tuple(float(spread) / factor for spread in spreads for _ in range(each))
        return shift, scale, f"latents are standardised by latents_mean and latents_std, and multiplied by {factor:g}"
    shift = float(config.get("shift_factor") or 0.0)
    less = f", less shift_factor = {shift:g}," if shift else ""
    return (shift,), (1 / factor,), f"latents{less} are multiplied by scaling_factor = {factor:g}"


def _sides(network: nn.Module, size: int) -> tuple[int, ...]:
    """Return the sides of items: one for a 1-D network, two otherwise; networks of videos have no length of their own."""
    name = type(network).__name__
    return (size,) if "1D" in name else (size, size)


def _shape(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))


def _described(space: Space) -> str:
    where = _shape(space.shape)
    if isinstance(space, Discrete):
        return f"{where} with {space.levels} levels from {space.low:g} to {space.high:g}"
    return f"{where}, real-valued"


# The decoder.


def _decoder(
    chosen: str | Likelihood | None,
    variance: float | Literal["fit"] | None,
    space: Space,
    declaration: Declared,
    origin: Origin,
    latents: bool,
) -> Likelihood:
    discrete = isinstance(space, Discrete)
    if latents and discrete:
        raise DiffusionalError(
            f"space {space} was given for a pipeline with an autoencoder: its x are latents, real numbers, for which "
            "there is no mass function over levels. Leave space out, or give df.Continuous of the latents; a bound for images needs the autoencoder's own terms"
        )
    if chosen is not None and not isinstance(chosen, str):
        if variance is not None:
            raise DiffusionalError("decoder_variance was given with a likelihood, which has its own; leave it out")
        if chosen.space != space:
            raise DiffusionalError(
                f"the decoder is over {chosen.space}, the model over {space}; give both the same space"
            )
        origin.given["decoder"] = f"p(x|z_1) is {type(chosen).__name__}"
        return chosen
    name = chosen or ("discretized-gaussian" if discrete else "gaussian")
    if name not in DECODERS:
        close = difflib.get_close_matches(name, DECODERS, n=1)
        raise DiffusionalError(
            f"expected decoder to be one of {', '.join(DECODERS)}, or a likelihood, got {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    if latents and name != "gaussian":
        raise DiffusionalError(
            f'decoder="{name}" was given for a pipeline with an autoencoder: it is a mass function over levels, and x are latents, real '
            'numbers, which have only a density. Give decoder="gaussian", or leave it out; a bound for images needs the autoencoder\'s own terms'
        )
    gaussian = name in ("discretized-gaussian", "gaussian")
    if variance is not None and not gaussian:
        raise DiffusionalError(
            f'decoder_variance={variance} was given for decoder="{name}", which has none; leave it out'
        )
    given = chosen is not None or variance is not None
    if variance == "fit":
        if name != "gaussian":
            raise DiffusionalError(
                f'decoder_variance="fit" was given for decoder="{name}"; it is for "gaussian", of real values. Give a number'
            )
        variance = None
    if variance is not None:
        what = f"variance {variance:g}{_in_units(space, variance)}"
    elif name == "gaussian":
        what = "the variance of z_1/α_1, σ_1²/α_1²"
    elif name == "openai":
        what = "the variance of q(z_1|z_2, x)"
    else:
        what = "variance σ_1²"
    least = _least(declaration) if declaration.learns is not None or name == "openai" else None
    if name in ("discretized-gaussian", "openai"):
        if declaration.learns is not None and variance is None:
            what = "a variance from that of q(z_1|z_2, x) to σ_1², at the network's second output"
            made = likelihoods.DiscretizedGaussian(space, least=least)
        else:
            made = likelihoods.DiscretizedGaussian(space, least if name == "openai" else variance)
        origin.choose("decoder", f"p(x|z_1) is a discretised Gaussian around x̂ with {what}", given)
    elif name == "gaussian":
        made = likelihoods.GaussianLikelihood(space, variance)
        origin.choose("decoder", f"p(x|z_1) is a Gaussian density around x̂ with {what}", given)
    elif name == "level-posterior":
        made = likelihoods.LevelPosterior(space)
        origin.choose("decoder", "p(x|z_1) ∝ q(z_1|x) over the levels, without the network", given)
    else:
        made = likelihoods.Bernoulli(space)
        origin.choose("decoder", "p(x|z_1) is a Bernoulli whose mean is x̂", given)
    return made


def _least(declaration: Declared) -> float:
    """Return the variance of q(z_1|z_2, x), OpenAI's posterior_variance[1]."""
    if declaration.schedule.steps is None:
        raise DiffusionalError(
            'decoder="openai" has the variance of q(z_1|z_2, x), but in continuous time there is no z_2; use "discretized-gaussian"'
        )
    low, high = declaration.schedule.grid()[:2].tolist()
    return 1 / (1 + math.exp(-low)) * -math.expm1(low - high)


def _conditions(module: DiffusersNetwork, origin: Origin) -> None:
    if module.classes is not None:
        origin.config["condition"] = f"p(x|c): the network needs class_labels, 0 … {module.classes - 1}"
    elif module.required:
        origin.config["condition"] = f"p(x|c): the network needs {', '.join(module.required)}"
