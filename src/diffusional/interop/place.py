"""Where the parts of a checkpoint are: folders that diffusers wrote, and repositories of the Hub."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from diffusional.errors import DiffusionalError
from diffusional.files import load_json
from diffusional.interop.stated import STATED

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
# Components of a pipeline that are the denoiser, in the order in which they are looked for.
_DENOISERS = ("unet", "transformer", "prior")
# Two copies of a network's weights: their moving average over the steps of training, and those of its last step.
Copy = Literal["ema", "raw"]
COPIES: tuple[Copy, ...] = get_args(Copy)
OTHER: dict[Copy, Copy] = {"ema": "raw", "raw": "ema"}
MEANS: dict[Copy, str] = {"ema": "the moving average (EMA)", "raw": "the copy of the last step of training (raw)"}
# The folder of the average is that of the network with this at the end (EMAModel.save_pretrained in diffusers' scripts of training).
_AVERAGE = "_ema"
# Weights of these variants are the one copy, if those without a variant are there too: the other one.
_VARIANTS: dict[Copy, str] = {"ema": "ema", "raw": "non_ema"}
# What to do with weights of other code.
OTHER_CODE = (
    "{} has weights without the network that they belong to: build the network in Python with the code of its training, fill it by "
    "df.load_weights(network, …) (a pickle of a whole module: by its own code), and read it by df.wrap; see docs/checkpoints.md"
)
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
        classes: names of the classes by number, of a pipeline with id2label (DiT); empty if it has none.
        variant: of the weights.
        taken: the copy of the weights that `network` and `variant` are; None if it is not known.
        copies: the folder and the variant of each copy that is there; empty if it is not known which copy the weights are.
    """

    source: str
    folder: Path
    network: Path
    scheduler: Path | None
    pipeline: str | None = None
    parts: tuple[str, ...] = ()
    revision: str | None = None
    classes: tuple[str, ...] = ()
    variant: str | None = None
    taken: Copy | None = None
    copies: dict[Copy, tuple[Path, str | None]] = field(default_factory=dict)

    def where(self, copy: Copy) -> str:
        """Return where a copy of the weights is, for messages: its folder, or its files."""
        folder, variant = self.copies[copy]
        if len({folder for folder, _ in self.copies.values()}) > 1:
            return f"{folder.name}/"
        return f"{WEIGHTS}{'' if variant is None else f'.{variant}'}.*"


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a path is a folder that diffusers wrote, or could be a Hub id: owner/name, where no such file or folder exists.

    >>> is_checkpoint("google/ddpm-cifar10-32"), is_checkpoint("runs/a")
    (True, False)
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / INDEX).is_file() or _part_of(folder) is not None:
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


def locate(
    path_or_hub_id: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    weights: Copy | None = None,
) -> Place:
    """Return where the parts of a checkpoint are, after downloading those of a Hub id that are needed."""
    if weights is not None and weights not in COPIES:
        raise DiffusionalError(f'expected weights to be "ema" or "raw", got {weights!r}')
    hub = is_hub_id(str(path_or_hub_id)) and not os.path.lexists(Path(path_or_hub_id).expanduser())
    if hub and weights is not None and variant is None:
        # Those of the variant are downloaded, if there are any, so that they are found.
        _located(path_or_hub_id, subfolder, _VARIANTS[weights], revision)
    place = _copied(_located(path_or_hub_id, subfolder, variant, revision), variant, weights)
    if hub and weights is not None:
        found = str(place.network.relative_to(place.folder))
        _download(place.source, None if found == "." else found, place.variant, revision)
    return place


def weights_of_other_code(path: Path) -> str | None:
    """Return the name of a file of weights without a network, as other code writes: a path, or the first such file in a folder.

    >>> weights_of_other_code(Path("no/such/model000100.pt")) is None
    True
    """
    ends = (".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".bin")
    if path.is_file():
        return path.name if path.suffix in ends else None
    return next((one.name for one in sorted(path.glob("*")) if one.suffix in ends and one.is_file()), None)


def _other_code(path: Path) -> str:
    name = weights_of_other_code(path)
    return "" if name is None else f". {OTHER_CODE.format(name)}"


def _copied(place: Place, variant: str | None, weights: Copy | None) -> Place:
    """Return a place with the copies of the weights that are there, and with the one that is wanted."""
    copies, taken = _copies(place.network, variant)
    if weights is None or weights == taken:
        return replace(place, variant=variant, taken=taken, copies=copies)
    if weights not in copies:
        name = place.network.name.removesuffix(_AVERAGE)
        expected = {"ema": f"{name}{_AVERAGE}/ beside {name}/", "raw": f"{name}/ beside {name}{_AVERAGE}/"}[weights]
        raise DiffusionalError(
            f"expected {MEANS[weights]} of {place.source} in a folder {expected}, or in {WEIGHTS}.{_VARIANTS[weights]}.* of one folder, got "
            f"only one copy of the weights ({place.network.name}/); leave weights={weights!r} (--weights) out"
        )
    folder, own = copies[weights]
    return replace(place, network=folder, variant=own, taken=weights, copies=copies)


def _copies(network: Path, variant: str | None) -> tuple[dict[Copy, tuple[Path, str | None]], Copy | None]:
    """Return the copies of the weights that are in the folder of a network and beside it, and which of them the folder's own are."""
    for copy, word in _VARIANTS.items():
        own, plain = (any(_files_of(network, one)) for one in (word, None))
        if variant in (None, word) and own and plain:
            return {copy: (network, word), OTHER[copy]: (network, None)}, copy if variant == word else OTHER[copy]
    average = network.name.endswith(_AVERAGE)
    taken: Copy = "ema" if average else "raw"
    sibling = network.with_name(network.name.removesuffix(_AVERAGE) if average else f"{network.name}{_AVERAGE}")
    if (sibling / NETWORK).is_file():
        return {taken: (network, variant), OTHER[taken]: (sibling, variant)}, taken
    return ({"ema": (network, variant)}, "ema") if average else ({}, None)


def _files_of(network: Path, variant: str | None) -> list[Path]:
    """Return the weight files of a variant, in one file or in shards."""
    middle = "" if variant is None else rf"\.{re.escape(variant)}"
    shard = r"-\d+-of-\d+"
    name = re.compile(rf"{WEIGHTS}(?:{middle}|{shard}{middle}|{middle}{shard})\.(?:safetensors|bin)")
    return [path for path in network.glob(f"{WEIGHTS}*") if name.fullmatch(path.name)]


def _part_of(folder: Path) -> str | None:
    """Return the denoiser's folder in one without an index, such as a checkpoint of diffusers' scripts of training; None if there is none."""
    return next((part for part in _DENOISERS if (folder / part / NETWORK).is_file()), None)


def _located(path_or_hub_id: str | Path, subfolder: str | None, variant: str | None, revision: str | None) -> Place:
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
            f"{name} is a file; expected the folder that diffusers' save_pretrained wrote, with model_index.json or config.json{_other_code(folder)}"
        )
    elif revision is not None:
        raise DiffusionalError(
            f"revision={revision!r} was given for the folder {name}; it is for Hub ids, leave it out"
        )
    if (folder / INDEX).exists():
        return _of_pipeline(name, folder, subfolder, commit)
    part = subfolder or (None if (folder / NETWORK).exists() else _part_of(folder))
    if part is not None:
        network = folder / part
        _check_folder(network, name)
    else:
        network = folder
    if not (network / NETWORK).exists():
        raise DiffusionalError(
            f"{network} has neither {INDEX} nor {NETWORK}; expected the folder that diffusers' save_pretrained wrote{_other_code(network)}"
        )
    nearby = [
        network / SCHEDULER,
        folder / SCHEDULER,
        folder / "scheduler" / SCHEDULER,
        network.parent / "scheduler" / SCHEDULER,
        # A folder of a training script, whose output folder has the scheduler and the checkpoints.
        *([folder.parent / "scheduler" / SCHEDULER] if part is not None else []),
    ]
    return Place(name, folder, network, next((one for one in nearby if one.is_file()), None), revision=commit)


def _of_pipeline(name: str, folder: Path, subfolder: str | None, commit: str | None) -> Place:
    index = load_json(folder / INDEX)
    if "sampling" in index and isinstance(index.get("_class_name"), list):
        raise DiffusionalError(
            f"{name} was exported with a pipeline of its own (--to custom), which has no scheduler and no bound; evaluate the run that it was "
            "exported from"
        )
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
        _names(index.get("id2label")),
    )


def _names(id2label: object) -> tuple[str, ...]:
    """Return the names of classes 0 … K−1 of id2label, {"0": name, …}; () for anything else.

    >>> _names({"1": "dog", "0": "cat"}), _names({"1": "dog"})
    (('cat', 'dog'), ())
    """
    if not isinstance(id2label, dict) or not all(isinstance(value, str) for value in id2label.values()):
        return ()
    numbered = {int(key): value for key, value in id2label.items() if str(key).isdecimal()}
    found = tuple(numbered[i].strip() for i in sorted(numbered))
    whole = sorted(numbered) == list(range(len(id2label))) and len(set(found)) == len(found)
    return found if whole else ()


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
            with quiet():
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
        [f"{WEIGHTS}{middle}.safetensors"],
        [
            f"{WEIGHTS}*-of-*{middle}.safetensors",
            f"{WEIGHTS}*{middle}-*-of-*.safetensors",
            f"{WEIGHTS}*.index*.json",
        ],
        [f"{WEIGHTS}*.safetensors"],
        [f"{WEIGHTS}{middle}.bin"],
        [f"{WEIGHTS}*.bin"],
    ):
        folder = fetched([f"{prefix}{NETWORK}", *(f"{prefix}{name}" for name in names)])
        if any(path.suffix in (".safetensors", ".bin") for path in (folder / prefix).glob(f"{WEIGHTS}*")):
            break
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return folder, commit


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
