"""`diffusional sample` with --interpolate and --upsample: samples of a system for given items."""

from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Sample
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.training.run import RunRecord

_SPLITS = ("train", "validation", "test")


def check_given(command: Sample) -> None:
    """Raise DiffusionalError for options that do not apply to samples for given items."""
    names = [f"--{name}" for name in ("interpolate", "upsample") if getattr(command, name) is not None]
    if len(names) > 1:
        raise DiffusionalError(f"expected one of {' and '.join(names)}, got both; leave one out")


def check_conditional(command: Sample, model: Any) -> None:
    """Raise DiffusionalError for a condition or guidance if no stage that is sampled for given items takes a condition."""
    others = [f"--{name}" for name in ("condition", "guidance") if getattr(command, name) is not None]
    sampled = list(model.stages)[1:] if hasattr(model, "stages") else []
    if others and sampled and not set(sampled) & set(model.conditional):
        raise DiffusionalError(
            f"{' and '.join(others)} cannot be used with --{'upsample' if command.interpolate is None else 'interpolate'}: of the stages of "
            f"{command.run}, only {', '.join(model.conditional) or 'none'} takes a condition, and only {', '.join(sampled)} is sampled; leave "
            "it out, or train a system that names these stages in `conditional`"
        )


def description(command: Sample) -> str:
    """Return what the samples are given, for titles and records."""
    if command.interpolate is not None:
        return f"from {command.interpolate[0]} to {command.interpolate[1]}"
    return f"for the low resolution of {command.upsample}"


def sampled_given(
    command: Sample, record: "RunRecord", model: Any, n: int, start: int, condition: Any = None
) -> "dict[str, Tensor]":
    """Return samples `start` … `start` + n − 1 by name: "x" along an interpolation, or every stage's variable of an upsampling.

    Args:
        condition: of all `command.n` samples.

    Raises DiffusionalError for a model that is not such a system, and for items that do not exist or do not fit.
    """
    import torch

    from diffusional.conditions import moved, rows_of
    from diffusional.models.composite import Cascade, FrozenEncoder

    place = next(iter(model.parameters())).device
    condition = moved(condition, place)
    if command.interpolate is not None:
        if not isinstance(model, FrozenEncoder):
            raise DiffusionalError(
                f"--interpolate is for systems with a deterministic frozen encoder, such as unCLIP, but {command.run} has a "
                f"{type(model).__name__}; leave it out"
            )
        ends = [_item(word, record, "--interpolate").to(place) for word in command.interpolate]
        every = model.interpolate(*ends, n=command.n, seed=command.seed, condition=condition)
        return {"x": every[start : start + n]}
    assert command.upsample is not None
    if not isinstance(model, Cascade):
        raise DiffusionalError(
            f"--upsample is for cascades, but {command.run} has a {type(model).__name__}; leave it out"
        )
    first, *_, last = list(model.stages)
    low = _low(command.upsample, record, model).to(place)
    low = low.expand(n, *low.shape[1:])
    generator = torch.Generator(place).manual_seed(command.seed + start)
    condition = rows_of(condition, slice(start, start + n))
    return {first: low, last: model.upsample(low, generator, condition)}


def _item(word: str, record: "RunRecord", option: str) -> "Tensor":
    """Return an item of the run's data (*shape), encoded, from a word such as test:5."""
    from diffusional.training.own import own_data

    split, _, number = word.partition(":")
    if split not in _SPLITS or not number.isdecimal():
        raise DiffusionalError(f"{option} {word}: expected an item of the run's data, such as test:5, got {word!r}")
    data = own_data(record, (split,))
    items = len(data.items(split))
    if int(number) >= items:
        raise DiffusionalError(f"{option} {word}: expected an item of {split} from 0 to {items - 1}, got {number}")
    return data.encode(split)[int(number)]


def _low(word: str, record: "RunRecord", model: Any) -> "Tensor":
    """Return the low resolution (1, *shape) of the first stage, encoded: of an item, or from an .npy file of raw levels."""
    import numpy as np
    import torch

    first = next(iter(model.stages))
    space = model.stages[first].space
    if not word.endswith(".npy"):
        return model.variable(first, _item(word, record, "--upsample")[None])
    try:
        raw = np.load(word, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DiffusionalError(f"--upsample {word}: the file cannot be read ({error})") from error
    if raw.size != space.dimensions or raw.shape[-2:] != space.shape[-2:]:
        raise DiffusionalError(
            f"--upsample {word}: expected one image of shape {space.shape}, raw levels from 0 to {space.levels - 1}, got shape {raw.shape}"
        )
    index = torch.from_numpy(raw.reshape(1, *space.shape).astype(np.float64))
    if bool((index != index.round()).any()) or float(index.min()) < 0 or float(index.max()) > space.levels - 1:
        raise DiffusionalError(
            f"--upsample {word}: expected raw levels from 0 to {space.levels - 1}, got numbers from {float(index.min()):g} to {float(index.max()):g}"
        )
    return space.encode(index.long())
