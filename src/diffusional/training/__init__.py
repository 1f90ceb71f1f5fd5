"""Training: `train(config, run)` trains a model in a run folder, and `load_run(run)` opens the folder.

    df.CompositeConfig and train_composite, for systems of several stages
    df.Config, and its parts DataConfig, ScheduleConfig, ModelConfig, LatentConfig, OptimizerConfig, SystemConfig
    train, load (the model of a run), load_run (the run itself: Run), recipes (tested configs)

Config classes and recipes do not import torch; the other names are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffusional.training import config, recipes
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.config import (
    Config,
    DataConfig,
    LatentConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SystemConfig,
)

if TYPE_CHECKING:
    from diffusional.training.composites import train_composite
    from diffusional.training.folder import Run, load_run
    from diffusional.training.loop import train
    from diffusional.training.run import load

__all__ = [
    "CompositeConfig",
    "Config",
    "DataConfig",
    "LatentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Run",
    "ScheduleConfig",
    "SystemConfig",
    "config",
    "load",
    "load_run",
    "recipes",
    "train",
    "train_composite",
]

_LATER = {
    "Run": "folder",
    "load": "run",
    "load_run": "folder",
    "train": "loop",
    "train_composite": "composites",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"diffusional.training.{_LATER[name]}"), name)
    raise AttributeError(f"module 'diffusional.training' has no attribute {name!r}")
