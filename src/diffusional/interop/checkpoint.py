"""`load_checkpoint`: a model of diffusers, from a folder or the Hub, as a model as any other."""

import contextlib
import difflib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import check_regular, load_json, sha256
from diffusional.forward import GaussianDiffusion
from diffusional.interop.adapter import Adapter
from diffusional.interop.networks import DiffusersNetwork
from diffusional.interop.record import Origin
from diffusional.interop.schedulers import Declared, declared
from diffusional.interop.stated import STATED, read_stated
from diffusional.interop.wrap import choose_start
from diffusional.models import likelihood as likelihoods
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import Likelihood
from diffusional.schedule import Schedule, log_snr_linear
from diffusional.space import Continuous, Discrete, Space

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
# Components of a pipeline that are the denoiser, in the order in which they are looked for.
_DENOISERS = ("unet", "transformer", "prior")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DECODERS = ("discretized-gaussian", "openai", "level-posterior", "bernoulli", "gaussian")


@dataclass(frozen=True)
class Place:
    """Where the parts of a checkpoint are.

    Attributes:
        source: as the user named it.
        folder: the local folder.
        network: the folder of the denoiser.
        scheduler: the scheduler's config file; None if there is none.
        pipeline: class of the pipeline; None for a bare model.
        parts: names of the pipeline's components.
        revision: the commit of a Hub repository.
    """

    source: str
    folder: Path
    network: Path
    scheduler: Path | None
    pipeline: str | None = None
    parts: tuple[str, ...] = ()
    revision: str | None = None


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a path is a folder that diffusers wrote, or could be a Hub id: owner/name, where no such file or folder exists.

    >>> is_checkpoint("google/ddpm-cifar10-32"), is_checkpoint("runs/a")
    (True, False)
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / INDEX).is_file():
            return True
        try:
            return "_class_name" in load_json(folder / NETWORK)
        except DiffusionalError:
            return (folder / SCHEDULER).is_file()
    return not os.path.lexists(folder) and is_hub_id(str(path))


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id, owner/name, where no folder has the name of the owner. runs/name is a run."""
    owner = name.split("/")[0]
    return _HUB.fullmatch(name) is not None and owner != "runs" and not Path(owner).exists()


def load_checkpoint(
    path_or_hub_id: str | Path,
    space: Space | None = None,
    *,
    levels: int | None = None,
    variance: str | None = None,
    clipped: bool | None = None,
    decoder: str | Likelihood | None = None,
    decoder_variance: float | None = None,
    scheduler: Any = None,
    time: Callable[[Tensor], Tensor] | None = None,
    steps: int | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
    reference: Tensor | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> DiffusionModel:
    """Load a model of diffusers as a model as any other: `df.evaluate`, `df.compare` and samples work on it.

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
        decoder_variance: of a Gaussian decoder, instead of these.
        scheduler: a scheduler_config.json, a folder with one, a config as a dict, or a scheduler of diffusers, instead of the checkpoint's.
        time: from log-SNR (B,) to the network's time input, instead of the scheduler's.
        steps: number of latents of a model in continuous time.
        gamma_min, gamma_max: γ = −log SNR of z_1 and z_T of a model in continuous time.
        reference: training items (N, *shape), encoded, on which γ_1 of a flow is chosen by the bound (`choose_start`); it is assumed otherwise.
        subfolder: of the denoiser, where it is not unet, transformer or prior.
        variant: of the weights, such as "fp16".
        revision: branch, tag or commit of a Hub repository.

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
    place = locate(path_or_hub_id, subfolder=subfolder, variant=variant, revision=revision)
    origin = Origin(place.source, "diffusers", place.revision)
    own, stated = [], read_stated(place.folder)
    if stated is not None:  # of `df.export`: as if the caller had given them
        origin.files[STATED] = sha256(place.folder / STATED)
        if space is None and levels is None:
            space, own = stated.space, ["space"]
        if decoder is None and decoder_variance is None:
            decoder, decoder_variance, own = stated.decoder, stated.decoder_variance, [*own, "decoder"]
    declaration = declared(
        _scheduler(place, scheduler, origin),
        variance=variance,
        clipped=clipped,
        gamma_min=gamma_min,
        gamma_max=gamma_max,
    )
    network = _network(place, variant, origin)
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
    space = _space(place, network, channels, declaration, space, levels, origin)
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
        if schedule.steps is not None or gamma_min is not None:
            why = (
                f"the levels of the {declaration.name} are its own" if gamma_min is None else "gamma_min was given too"
            )
            raise DiffusionalError(
                f"expected no reference items, since {why} and there is no γ_1 to choose; leave reference out"
            )
        low, high = schedule.ends().tolist()
        low = choose_start(denoiser, likelihood, reference, gamma_max=high)
        schedule = log_snr_linear(low, high)
        origin.assumed.pop("start", None)
        origin.config.pop("start", None)
        origin.given["start"] = (
            f"γ_1 = {low:g} (σ/α = {math.exp(low / 2):.4g}), of lowest bound on {len(reference):,} training items"
        )
    process = GaussianDiffusion(schedule if steps is None else _regridded(declaration.name, schedule, steps, origin))
    model = DiffusionModel(process, denoiser, likelihood, declaration.variance, declaration.last_variance)
    _conditions(module, origin)
    model.classes = () if module.classes is None else tuple(map(str, range(module.classes)))
    model.origin = origin.to_dict()
    return model.eval()


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


# Finding the files.


def locate(
    path_or_hub_id: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Place:
    """Return where the parts of a checkpoint are, after downloading those of a Hub id that are needed."""
    name, commit = str(path_or_hub_id), None
    folder = Path(path_or_hub_id).expanduser()
    if not os.path.lexists(folder):
        if not is_hub_id(name):
            raise DiffusionalError(
                f"{name} does not exist; expected a folder that diffusers wrote, or a Hub id, owner/name"
            )
        folder, commit = _download(name, subfolder, variant, revision)
    elif not folder.is_dir():
        raise DiffusionalError(
            f"{name} is a file; expected the folder that diffusers' save_pretrained wrote, with model_index.json or config.json"
        )
    elif revision is not None:
        raise DiffusionalError(
            f"revision={revision!r} was given for the folder {name}; it is for Hub ids, leave it out"
        )
    if (folder / INDEX).exists():
        return _of_pipeline(name, folder, subfolder, commit)
    if subfolder is not None:
        network = folder / subfolder
        _check_folder(network, name)
    else:
        network = folder
    if not (network / NETWORK).exists():
        raise DiffusionalError(
            f"{network} has neither {INDEX} nor {NETWORK}; expected the folder that diffusers' save_pretrained wrote"
        )
    nearby = [
        network / SCHEDULER,
        folder / SCHEDULER,
        folder / "scheduler" / SCHEDULER,
        network.parent / "scheduler" / SCHEDULER,
    ]
    return Place(name, folder, network, next((one for one in nearby if one.is_file()), None), revision=commit)


def _of_pipeline(name: str, folder: Path, subfolder: str | None, commit: str | None) -> Place:
    index = load_json(folder / INDEX)
    parts = tuple(
        key
        for key, value in index.items()
        if not key.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    )
    wanted = subfolder or next((part for part in _DENOISERS if part in parts), None)
    if wanted is None:
        raise DiffusionalError(
            f"{folder / INDEX} names no denoiser: expected one of {', '.join(_DENOISERS)}, got {', '.join(parts) or 'nothing'}. Name its "
            "folder with subfolder="
        )
    # The first pipelines, such as google/ddpm-cifar10-32, have the files of both parts beside the index.
    together = subfolder is None and not (folder / wanted).exists() and (folder / NETWORK).is_file()
    network = folder if together else folder / wanted
    _check_folder(network, f"{folder / INDEX}")
    scheduler = folder / "scheduler" / SCHEDULER
    if not scheduler.exists() and (folder / SCHEDULER).is_file():
        scheduler = folder / SCHEDULER
    if "scheduler" in parts and not scheduler.exists():
        raise DiffusionalError(
            f"{scheduler} does not exist, but {INDEX} names a scheduler; restore the file, or pass another "
            "config to df.load_checkpoint(…, scheduler=…)"
        )
    return Place(
        name,
        folder,
        network,
        scheduler if scheduler.exists() else None,
        index.get("_class_name"),
        parts,
        commit,
    )


def _check_folder(folder: Path, owner: str) -> None:
    if not folder.is_dir():
        raise DiffusionalError(
            f"{folder} does not exist, but {owner} needs it for the denoiser; restore the folder, or download the checkpoint again"
        )


def _download(name: str, subfolder: str | None, variant: str | None, revision: str | None) -> tuple[Path, str | None]:
    """Download the configs, the scheduler and the denoiser's weights of a Hub repository; returns the folder and the commit."""
    from huggingface_hub import snapshot_download

    def fetched(patterns: list[str]) -> Path:
        try:
            with _quiet():
                return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except Exception as error:  # of many kinds: no network, no such repository, no permission, not in the cache
            lines = str(error).strip().splitlines()
            raise DiffusionalError(
                f"{name} could not be downloaded from the Hub ({lines[0] if lines else type(error).__name__}). Check the id, the network and, "
                "for a gated model, `hf auth login`; or give the folder of a local copy"
            ) from error

    folder = fetched([INDEX, NETWORK, SCHEDULER, STATED, f"scheduler/{SCHEDULER}", f"*/{NETWORK}"])
    index = load_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    part = subfolder or next((one for one in _DENOISERS if one in index), None)
    prefix = "" if part is None or (subfolder is None and not (folder / part).is_dir()) else f"{part}/"
    middle = "" if variant is None else f".{variant}"
    # A single file, shards with their index, any variant, and last a pickle: no more is downloaded than is found first.
    for names in (
        [f"{_WEIGHTS}{middle}.safetensors"],
        [
            f"{_WEIGHTS}*-of-*{middle}.safetensors",
            f"{_WEIGHTS}*{middle}-*-of-*.safetensors",
            f"{_WEIGHTS}*.index*.json",
        ],
        [f"{_WEIGHTS}*.safetensors"],
        [f"{_WEIGHTS}{middle}.bin"],
        [f"{_WEIGHTS}*.bin"],
    ):
        folder = fetched([f"{prefix}{NETWORK}", *(f"{prefix}{name}" for name in names)])
        if any(path.suffix in (".safetensors", ".bin") for path in (folder / prefix).glob(f"{_WEIGHTS}*")):
            break
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return folder, commit


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warnings of diffusers, whose content is checked and reported here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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


# The network.


def _network(place: Place, variant: str | None, origin: Origin) -> nn.Module:
    """Build the network and fill it with its weights, all of them and no others."""
    with needed_for("diffusers"):
        import diffusers
        from diffusers.models.modeling_utils import ModelMixin

    config_file = place.network / NETWORK
    config = load_json(config_file)
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise DiffusionalError(
            f"{config_file} has no _class_name; expected the config that diffusers wrote with a model"
        )
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        close = difflib.get_close_matches(name, dir(diffusers), n=1)
        raise DiffusionalError(
            f"{config_file}: diffusers {diffusers.__version__} has no model {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + " Models of your own go through df.wrap"
        )
    files, variant = _weights(place.network, variant, origin)
    types = _check_files(files)
    for file in (config_file, *files):
        origin.files[str(file.relative_to(place.folder))] = sha256(file)
    wide = types == {"F64"}
    short = sorted(types - {"F64", "F32"} - {t for t in types if t.startswith(("I", "U", "BOOL"))})
    if short:
        origin.notes.append(f"weights stored as {', '.join(short)} are evaluated in float32")
    safe = files[0].suffix == ".safetensors"
    if not safe:
        origin.notes.append(
            f"{files[0].name} is a pickle; it was read by torch.load(weights_only=True), which runs no code"
        )
    try:
        with _quiet():
            loaded: Any = kind.from_pretrained(
                str(place.network),
                variant=variant,
                use_safetensors=safe,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                local_files_only=True,
                torch_dtype=torch.float64 if wide else torch.float32,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of many kinds: a config that does not fit the class, weights that cannot be read
        lines = str(error).strip().splitlines()
        raise DiffusionalError(
            f"{place.network} could not be loaded as a {name}: {lines[0] if lines else type(error).__name__}"
        ) from error
    network, info = loaded
    _check_loading(place.network, name, info)
    network = network.eval()
    broken = [
        key for key, value in network.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise DiffusionalError(
            f"the weights in {place.network} are not finite: {broken[0]} and {len(broken) - 1} others"
        )
    count = sum(p.numel() for p in network.parameters())
    origin.config["network"] = f"network {name}, {count:,} weights"
    return network


def _weights(folder: Path, variant: str | None, origin: Origin) -> tuple[list[Path], str | None]:
    """Return the weight files of a model's folder, and their variant."""
    middle = "" if variant is None else f".{variant}"
    for suffix in ("safetensors", "bin"):
        single = folder / f"{_WEIGHTS}{middle}.{suffix}"
        if os.path.lexists(single):
            return [single], variant
        for index in (
            folder / f"{_WEIGHTS}.{suffix}.index{middle}.json",
            folder / f"{_WEIGHTS}{middle}.{suffix}.index.json",
        ):
            if index.is_file():
                names = sorted(set(load_json(index).get("weight_map", {}).values()))
                missing = [name for name in names if not (folder / name).is_file()]
                if missing or not names:
                    raise DiffusionalError(
                        f"{index} names {', '.join(missing[:3]) or 'no files'}, which do not exist; restore them"
                    )
                return [folder / name for name in names], variant
    there = sorted(path.name for path in folder.glob(f"{_WEIGHTS}*") if path.suffix in (".safetensors", ".bin"))
    variants = sorted(
        {match.group(1) for name in there if (match := re.fullmatch(rf"{_WEIGHTS}\.(\w+)\.(?:safetensors|bin)", name))}
    )
    if variant is None and len(variants) == 1:
        origin.notes.append(f'only the variant "{variants[0]}" of the weights is there, and is used')
        return _weights(folder, variants[0], origin)
    what = "" if variant is None else f' of the variant "{variant}"'
    raise DiffusionalError(
        f"{folder} has no weights{what}: expected {_WEIGHTS}{middle}.safetensors, got {', '.join(there) or 'none'}"
        + (
            f". Choose one of the variants that are there: {', '.join(variants)}"
            if variants
            else "; restore the file, or download the checkpoint again"
        )
    )


def _check_files(files: list[Path]) -> set[str]:
    """Check that weight files are whole; return the types of their tensors, by the names of safetensors."""
    types: set[str] = set()
    for file in files:
        check_regular(file)
        if file.suffix == ".safetensors":
            types |= _header_types(file)
        else:
            types |= _pickled_types(file)
    return types


def _header_types(file: Path) -> set[str]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise DiffusionalError(_damaged(file, "its header is cut off"))
        try:
            header = json.loads(stream.read(length))
            tensors = [value for key, value in header.items() if key != "__metadata__"]
            end = max((value["data_offsets"][1] for value in tensors), default=0)
            types = {value["dtype"] for value in tensors}
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise DiffusionalError(_damaged(file, "it is not a safetensors file")) from error
    if 8 + length + end != size:
        raise DiffusionalError(_damaged(file, f"expected {8 + length + end:,} bytes, got {size:,}"))
    return types


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}); download or copy it again"


def _pickled_types(file: Path) -> set[str]:
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        tensors = list(state.values())
        if not all(isinstance(one, Tensor) for one in tensors):
            raise TypeError("it holds more than tensors")
    except Exception as error:  # of many kinds, among them refusals of code
        lines = str(error).strip().splitlines()
        raise DiffusionalError(
            f"{file} is a pickle that torch.load(weights_only=True) does not read ({lines[0][:150] if lines else type(error).__name__}); a pickle "
            "can run code, and it was not loaded. Convert it where you trust it: safetensors.torch.save_file(state_dict, path)"
        ) from error
    return {names.get(one.dtype, "I") for one in tensors}


def _check_loading(folder: Path, name: str, info: Mapping[str, Any]) -> None:
    """Raise DiffusionalError unless weights and network have the same names and shapes: diffusers only warns."""
    wrong = [f"{key} is missing" for key in info.get("missing_keys", ())]
    wrong += [f"{key} is unknown" for key in info.get("unexpected_keys", ())]
    for one in info.get("mismatched_keys", ()):
        parts: list[Any] = [*one, None, None]
        key, there, here = parts[:3]
        wrong.append(
            f"{key} has shape {tuple(there)} there, {tuple(here)} here"
            if here is not None
            else f"{key} has another shape"
        )
    wrong += [str(one) for one in info.get("error_msgs", ())]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DiffusionalError(
            f"the weights in {folder} do not fit the {name} of its {NETWORK}: {shown}. The two belong to different models, or the config was "
            "edited"
        )


def _channels(network: nn.Module) -> tuple[int, int]:
    """Return the numbers of channels of x and of the output."""
    config: Any = network.config
    channels = config.get("in_channels")
    outputs = config.get("out_channels") or channels
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
        raise DiffusionalError(
            f"the config of the {type(network).__name__} has no sample_size; give space=, such as df.Discrete(({channels}, 32, 32), 256)"
        )
    shape = (channels, *sides)
    if latents is None:
        space: Space = Discrete(shape, 256 if levels is None else levels, declaration.low, declaration.high)
    else:
        factor = 1.0
        if (vae := place.folder / latents / NETWORK).is_file():
            factor = float(load_json(vae).get("scaling_factor") or 1.0)
        space = Continuous(shape, scale=(1 / factor,))
        origin.notes.append(
            f"the pipeline has an autoencoder ({latents}): x is its latent, and the bound is one on the density of latents, not of images"
        )
        origin.config["scaling"] = f"latents are multiplied by scaling_factor = {factor:g}"
    if latents is not None and levels is not None:
        raise DiffusionalError(
            f"levels={levels} was given for a pipeline with an autoencoder, whose x are latents, real numbers; leave it out"
        )
    origin.choose("space", f"x is {_described(space)}", given=levels is not None)
    return space


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
    variance: float | None,
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
    gaussian = name in ("discretized-gaussian", "gaussian")
    if variance is not None and not gaussian:
        raise DiffusionalError(
            f'decoder_variance={variance} was given for decoder="{name}", which has none; leave it out'
        )
    given = chosen is not None or variance is not None
    if variance is not None:
        what = f"variance {variance:g}"
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
