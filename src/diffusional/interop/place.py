"""Where the parts of a checkpoint are: folders that diffusers wrote, and repositories of the Hub."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusional.errors import DiffusionalError
from diffusional.files import load_json
from diffusional.interop.stated import STATED

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
# Components of a pipeline that are the denoiser, in the order in which they are looked for.
_DENOISERS = ("unet", "transformer", "prior")
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
    """

    source: str
    folder: Path
    network: Path
    scheduler: Path | None
    pipeline: str | None = None
    parts: tuple[str, ...] = ()
    revision: str | None = None
    classes: tuple[str, ...] = ()


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
