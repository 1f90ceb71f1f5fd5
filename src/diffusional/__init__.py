"""The honest likelihood of diffusion models: the ELBO, itemised to the last nat, with error bars.

    import diffusional as df

Names load on first use (PEP 562), so that `import diffusional` costs nothing and `diffusional --help` needs no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "baselines",
    "data",
    "exact",
    "gaussian",
    "ledger",
    "levels",
    "networks",
    "report",
    "schedule",
    "space",
)
_NAMES = {
    "DiffusionalError": "errors",
    "Gaussian": "gaussian",
    "GaussianDiffusion": "forward",
    "Ledger": "ledger",
    "Estimate": "ledger",
    "LevelDraws": "ledger",
    "Discrete": "space",
    "Continuous": "space",
    "Denoiser": "models.denoiser",
    "DiffusionModel": "models.diffusion",
    "LatentVariableModel": "models.base",
    "likelihood": "models",
    "Evaluation": "evaluation.evaluation",
    "evaluate": "evaluation.evaluation",
    "Config": "training.config",
    "train": "training.loop",
    "load": "training.run",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"diffusional.{name}")
    if name == "likelihood":
        return importlib.import_module("diffusional.models.likelihood")
    if name in _NAMES:
        return getattr(importlib.import_module(f"diffusional.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'diffusional' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_NAMES, "__version__"])
