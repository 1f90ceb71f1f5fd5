"""A new run that starts from the weights of another: checked parameter by parameter, and recorded by their hash."""

import dataclasses
import warnings
from pathlib import Path

import torch

from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import tensor_hash
from diffusional.files import load_tensors
from diffusional.models.base import LatentVariableModel
from diffusional.training.config import Config, differences
from diffusional.training.run import CHECKPOINTS, CONFIG, WEIGHTS, load, read_run, shortened

# Sections of a config that determine the meaning of a network's outputs.
_MEANING = ("schedule.", "model.")


def begun(config: Config, model: LatentVariableModel, run: Path, resume: bool) -> Config:
    """Return the config that a run is begun or resumed with, and give `model` the weights of `config.init_from`, if there is one.

    These are the averaged weights of the best validation, which `load` returns and which evaluations of the other run use. Only
    parameters are copied: constants, such as those of a fixed schedule, are those of the config. A run with a checkpoint does not need
    the other run any more.

    Raises DiffusionalError for a folder without a run, weights with another hash than `config.init_sha256`, and parameters whose names,
    shapes or types differ, with their names.
    """
    if config.init_from is None:
        return config
    origin = Path(config.init_from)
    if resume and (run / CONFIG).exists():
        before = read_run(run).config
        if config.init_sha256 is None and before.init_from == config.init_from:
            config = dataclasses.replace(config, init_sha256=before.init_sha256)
        if any((run / CHECKPOINTS).glob("step-*")):
            return config
    if origin.resolve() == run.resolve():
        raise DiffusionalError(
            f"init_from={config.init_from} is the folder of the new run itself; to continue a run, resume it without init_from"
        )
    found = tensor_hash(load_tensors(origin / WEIGHTS)) if origin.is_dir() else None
    if config.init_sha256 is not None and found is not None and found != config.init_sha256:
        raise DiffusionalError(
            f"expected the weights of {origin} to have the SHA-256 {config.init_sha256}, got {found}: the run has been trained further since. "
            "Leave out init_sha256, and begin in a new folder"
        )
    _start(model, load(origin), origin)
    changed = [line for line in differences(read_run(origin).config, config) if line.startswith(_MEANING)]
    if changed:
        warnings.warn(
            f"the weights of {origin} were trained with another config, under which they may have another meaning (there → here): "
            + "; ".join(changed),
            stacklevel=3,
        )
    return dataclasses.replace(config, init_sha256=found)


@torch.no_grad()
def _start(model: LatentVariableModel, source: LatentVariableModel, origin: Path) -> None:
    own, theirs = dict(model.named_parameters()), dict(source.named_parameters())
    problems = [f"{name} is missing there" for name in own if name not in theirs]
    problems += [f"{name} is unknown here" for name in theirs if name not in own]
    for name in own.keys() & theirs.keys():
        here, there = own[name], theirs[name]
        if here.shape != there.shape:
            problems.append(f"{name} has shape {tuple(there.shape)} there, {tuple(here.shape)} here")
        elif here.dtype != there.dtype:
            problems.append(f"{name} is {there.dtype} there, {here.dtype} here")
    if problems:
        raise DiffusionalError(
            f"the weights of {origin} do not fit the model of this config: {shortened(sorted(problems))}. Use the model and latent sections "
            f"of {origin / CONFIG}, and data of the same shape and levels"
        )
    for name, parameter in own.items():
        parameter.copy_(theirs[name])
