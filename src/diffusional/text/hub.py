"""Folders of models of transformers, by path or by their name on the Hugging Face Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import sha256

# Pickled weights are read only if there are no others.
_WEIGHTS, _PICKLED = (".safetensors",), (".bin",)
_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
_SKIPPED = ("onnx/*", "openvino/*", "*/*.safetensors", "*/*.bin")


def model_folder(name: str, kind: str, advice: str = "") -> tuple[str, Path]:
    """Return the name of a model, absolute if it is a folder, and the folder of its files.

    Args:
        name: a folder, or a name of the Hugging Face Hub, which is taken from the local cache and downloaded if it is not there.
        kind: what the model is, such as "text encoder", for errors.
        advice: what needs no download, for errors.

    Raises DiffusionalError for a folder that does not exist, and for a name that is not in the cache and cannot be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve()), folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise DiffusionalError(
            f"the {kind} {name} does not exist; expected a folder with the files of a model of transformers, or a name of the Hugging Face Hub"
            + (f"; {advice}" if advice else "")
        )
    return name, _from_hub(name, kind, advice)


def _from_hub(name: str, kind: str, advice: str) -> Path:
    """Return the folder of a model of the Hub: that in the cache if it is complete, otherwise a download."""
    with needed_for("text"):
        from huggingface_hub import snapshot_download
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if (cached / "config.json").exists() and weights_of(cached):
            return cached
    except Exception:  # not in the cache; the library raises exceptions of several types
        pass
    try:
        found = Path(snapshot_download(name, allow_patterns=list(_PATTERNS), ignore_patterns=list(_SKIPPED)))
        if not weights_of(found):
            found = Path(snapshot_download(name, allow_patterns=[*_PATTERNS, "*.bin"], ignore_patterns=list(_SKIPPED)))
    except Exception as error:  # of many types: offline, unknown names, the HTTP client's
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise DiffusionalError(
            f"the {kind} {name} is not in the cache and could not be downloaded ({type(error).__name__}: {reason}). Check the name and "
            f"the connection; or download it elsewhere (`hf download {name} --local-dir FOLDER`) and give the folder"
            + (f"; {advice}" if advice else "")
        ) from error
    return found


def weights_of(folder: Path) -> list[Path]:
    """Return the files of the weights of a model, safetensors if there are any."""
    for suffixes in (_WEIGHTS, _PICKLED):
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
        if found:
            return found
    return []


@contextmanager
def without_bar(transformers: Any) -> Iterator[None]:
    """Show no bar of transformers in the block."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, computed once while the file is unchanged."""
    stat = os.stat(path)
    return _hash_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, changed: int) -> str:
    return sha256(path)
