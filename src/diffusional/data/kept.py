"""Outputs of frozen encoders in the cache: the embeddings of texts and the features of images, by a hash of all they depend on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from diffusional.data.storage import cache_folder
from diffusional.errors import DiffusionalError
from diffusional.files import load_tensors, save_tensors


def kept(
    folder: str, made_from: object, n: int, names: tuple[str, ...], make: Callable[[], Mapping[str, Tensor]], what: str
) -> dict[str, Tensor]:
    """Return tensors of n rows from the cache; if they are not there, or the file is damaged, make and store them.

    Args:
        folder: in the cache.
        made_from: everything that the values depend on, as JSON values.
        n: the number of rows of each tensor.
        names: of the tensors.
        what: they are, for the warning about a cache that cannot be written.
    """
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
    path = cache_folder() / folder / f"{key}.safetensors"
    found = _read(path, n, names)
    if found is None:
        found = dict(make())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, found)
        except (DiffusionalError, OSError) as error:
            warnings.warn(f"{what} were not stored ({error}); they will be computed again", stacklevel=4)
    return found


def _read(path: Path, n: int, names: tuple[str, ...]) -> dict[str, Tensor] | None:
    """Return stored tensors; None if there are none, or the file is damaged."""
    if not path.exists():
        return None
    try:
        held = load_tensors(path)
    except DiffusionalError:
        return None
    whole = set(names) == set(held) and all(len(one) == n for one in held.values())
    return held if whole else None
