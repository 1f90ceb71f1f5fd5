"""Likelihoods of diffusion models: the ELBO, split into its terms, with error bars.

    import diffusional as df

Names are imported on first use (PEP 562), so that `import diffusional` is fast and `diffusional --help` does not import torch.
"""

import importlib
from typing import Any

from diffusional import deprecation

__version__ = "0.1.0"

_MODULES = {
    "baselines": "baselines",
    "claims": "claims",
    "codec": "codec",
    "composite": "models.composite",
    "conditions": "conditions",
    "data": "data",
    "evaluation": "evaluation",
    "exact": "exact",
    "gaussian": "gaussian",
    "information": "information",
    "ledger": "ledger",
    "likelihood": "models.likelihood",
    "networks": "networks",
    "prompted": "models.prompted",
    "schedule": "schedule",
    "space": "space",
    "text": "text",
    "timesteps": "timesteps",
    "training": "training",
}
_NAMES = {
    "Absorbing": "absorbing",
    "MaskedDiffusion": "models.masked",
    "PromptedDiffusion": "models.prompted",
    "OneAtATime": "absorbing",
    "SequenceWorld": "sequences",
    "UniformDiffusion": "models.redrawn",
    "UniformNoise": "redrawn",
    "BinomialDiffusion": "binomial",
    "BinomialDiffusionModel": "models.binomial",
    "Categorical": "categorical",
    "Cascade": "models.composite",
    "Chain": "models.chain",
    "ChainTail": "models.tail",
    "Composite": "models.composite",
    "CompositeConfig": "training.composite_config",
    "DirectModel": "models.direct",
    "ContrastiveEncoder": "models.contrastive",
    "FrozenEncoder": "models.composite",
    "FrozenPosterior": "models.composite",
    "GaussianChain": "models.gaussian_chain",
    "Guided": "models.guidance",
    "guidance_table": "evaluation.guidance",
    "Prior": "models.prior",
    "Bits": "bernoulli",
    "Config": "training.config",
    "Continuous": "space",
    "Denoiser": "models.denoiser",
    "DensityEstimator": "evaluation.estimator",
    "DiffusionModel": "models.diffusion",
    "DiffusionalError": "errors",
    "Discrete": "space",
    "Estimate": "ledger",
    "Comparison": "evaluation.difference",
    "ForwardProcess": "forward",
    "Evaluation": "evaluation.result",
    "Gaussian": "gaussian",
    "GaussianDiffusion": "forward",
    "HierarchicalVAE": "models.hvae",
    "LatentVariableModel": "models.base",
    "Ledger": "ledger",
    "LevelDraws": "ledger",
    "NonMarkovDiffusion": "forward",
    "Plan": "evaluation.plan",
    "Renoised": "models.renoised",
    "Run": "training.folder",
    "VAE": "models.vae",
    "check_denoiser": "interop.check",
    "check_weights": "interop.averages",
    "ClassPlan": "evaluation.contrasts",
    "classify": "evaluation.classify",
    "compare": "evaluation.comparison",
    "cost_map": "evaluation.maps",
    "stage_maps": "evaluation.stage_maps",
    "evaluate": "evaluation.evaluation",
    "log_prob": "evaluation.differentiable",
    "export": "training.export",
    "extremes": "evaluation.extremes",
    "load": "training.run",
    "ode_log_likelihood": "evaluation.ode",
    "load_checkpoint": "interop.checkpoint",
    "masked_language_model": "interop.masked_lm",
    "load_weights": "interop.averages",
    "load_run": "training.folder",
    "pull": "training.hub",
    "push": "training.hub",
    "score": "evaluation.score",
    "train": "training.loop",
    "train_composite": "training.composites",
    "wrap": "interop.wrap",
}

_OLD = {"levels": "timesteps"}

deprecation.install()


def __getattr__(name: str) -> Any:
    if name in _OLD:
        deprecation.warn(f"diffusional.{name}", f"diffusional.{_OLD[name]}")
        name = _OLD[name]
    if name in _MODULES:
        return importlib.import_module(f"diffusional.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"diffusional.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'diffusional' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, *_NAMES, "__version__"])
