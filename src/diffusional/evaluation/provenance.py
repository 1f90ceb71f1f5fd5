"""The origin of a number: hashes of data and weights, versions, the command."""

import hashlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import diffusional
from diffusional.conditions import Condition, by_name, ignores_condition
from diffusional.encoded import DataItems, some_of
from diffusional.errors import DiffusionalError
from diffusional.known_data import recognise, version_record
from diffusional.models.base import LatentVariableModel, device_of
from diffusional.space import Discrete, Space

# Items that are copied at once, for their bytes.
_BLOCK = 4096


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the names, shapes, types and bytes of tensors.

    >>> tensor_hash({"w": torch.zeros(2)}) == tensor_hash({"w": torch.ones(2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        _update(digest, value)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", value: Tensor) -> None:
    """Add the bytes of a tensor to a hash."""
    flat = value.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)


def as_seen(space: Space, data: Tensor) -> Tensor:
    """Return items as level indices, or as float32 real numbers, whatever their type was."""
    return space.index(data) if isinstance(space, Discrete) else data.float()


def fingerprint(space: Space, data: DataItems) -> str:
    """Return the sha256 of items, which does not depend on their type."""
    # The hash of `tensor_hash({"data": as_seen(space, data)})`, without a copy of all items in memory.
    first = as_seen(space, data[:1])
    digest = hashlib.sha256(f"data:{first.dtype}:{(len(data), *first.shape[1:])};".encode())
    for rows in data.split(_BLOCK) if len(data) else ():
        _update(digest, as_seen(space, rows))
    return digest.hexdigest()


def condition_record(condition: Condition | None) -> dict[str, str]:
    """Return the entry `condition_sha256` of a record; {} if there is no condition.

    >>> condition_record(None), list(condition_record(torch.ones(3)))
    ({}, ['condition_sha256'])
    """
    return {} if condition is None else {"condition_sha256": tensor_hash(by_name(condition))}


def provenance(
    model: LatentVariableModel, data: DataItems, seed: int, condition: Condition | None = None
) -> dict[str, Any]:
    """Return the record that all methods of evaluation share.

    It has `condition_sha256` only if there is a condition, `condition_ignored` if the model does not depend on it
    (`conditions.ignoring_condition`), `data_version` only if the items are a known version of a data set, `stages` for a composite model, and
    `doubts` only if the space has doubts about the items.
    """
    doubts, sha256 = model.space.doubts(some_of(data)), fingerprint(model.space, data)
    return {
        "data_sha256": sha256,
        **version_record(recognise(sha256, model.space.shape, len(data), model.space.levels)),
        **condition_record(condition),
        **({"condition_ignored": True} if condition is not None and ignores_condition(model) else {}),
        "weights_sha256": tensor_hash(model.state_dict()),
        "space": model.space.to_dict(),
        "levels": model.space.levels,
        "latents": model.steps,
        "model": type(model).__name__,
        "seed": seed,
        "versions": {
            "diffusional": diffusional.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": " ".join(sys.argv),
        **({"origin": dict(model.origin)} if model.origin else {}),
        **model.described(),
    } | ({"doubts": doubts} if doubts else {})


def check_same_data(provenances: Mapping[str, Mapping[str, Any]], advice: str) -> None:
    """Raise DiffusionalError if results, by name, are about different data, of which the message names the known versions. Results whose
    provenance has no data are not checked.

    >>> check_same_data({"a": {"data_sha256": "0123456789abcdef"}, "b": {"data_sha256": "abcdef0123456789"}}, "Evaluate both on one.")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected results about the same data, got a of data 0123456789ab and b of data abcdef012345. Evaluate both on one.
    """
    named = {name: data_of(provenance) for name, provenance in provenances.items() if "data_sha256" in provenance}
    hashes = {str(provenances[name]["data_sha256"]) for name in named}
    if len(hashes) > 1:
        listed = " and ".join(f"{name} of {data}" for name, data in named.items())
        about = {
            str(version["name"]): str(version["about"])
            for provenance in provenances.values()
            if isinstance(version := provenance.get("data_version"), Mapping)
        }
        known = "".join(f" {name}: {text}." for name, text in about.items()) if len(about) > 1 else ""
        raise DiffusionalError(f"expected results about the same data, got {listed}.{known} {advice}")


def data_of(provenance: Mapping[str, Any]) -> str:
    """Return a short name of the data of a result: the version if it is known, otherwise the beginning of the hash.

    >>> data_of({"data_sha256": "0123456789abcdef"})
    'data 0123456789ab'
    """
    version = provenance.get("data_version")
    if isinstance(version, Mapping) and "name" in version:
        return str(version["name"])
    return f"data {str(provenance.get('data_sha256', 'unknown'))[:12]}"


def gamma_at(model: LatentVariableModel, edges: Tensor) -> Tensor | None:
    """Return γ = −log SNR (C + 1,) at the edges of levels, float64 on the CPU; None if the model's latents have no γ, or some have none.

    Args:
        model: any model; of a VAE with a diffusion prior, γ is the prior's.
        edges: (C + 1,) levels t from 1 to T; in continuous time u from 0 to 1.

    >>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, likelihood, schedule, space
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=3))
    >>> model = DiffusionModel(process, Denoiser(lambda z, s: 0 * z), likelihood.LevelPosterior(space.binary((4,))))
    >>> gamma_at(model, torch.tensor([1, 3]))
    tensor([-9.,  9.], dtype=torch.float64)
    """
    found = model.gamma_at(edges.to(device_of(model, edges)))
    return None if found is None else found.detach().double().cpu()
