"""A model with the methods of scikit-learn's density estimators, such as `sklearn.neighbors.KernelDensity` and `GaussianMixture`.

It needs no scikit-learn, and works in its pipelines.
"""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.score import plan_of_scores, score
from diffusional.models.base import LatentVariableModel
from diffusional.space import Discrete


class DensityEstimator:
    """Bounds on ln p(x) by the methods `score_samples` and `score`, in nats.

    `score_samples` means what it means in scikit-learn, the log-density of every sample, as a lower bound: in expectation over the noise
    ln p(x) ≥ the returned value. For levels it is a log-probability. The unit of a density is that of X, so that a scaler before it in a
    pipeline changes the numbers.

    Args:
        model: a trained model without condition.
        visits: network evaluations of each sample.
        plan: of the visits, such as `scores.plan`; see `fit`.
        seed: of the noise. A sample gets the same noise in every call.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-8.0, 8.0))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))
    >>> X = world.sample(100, torch.Generator().manual_seed(0)).numpy()
    >>> estimator = DensityEstimator(model).fit(X)
    >>> estimator.score_samples(X).shape, bool(abs(estimator.score(X) + world.entropy()) < 0.5)
    ((100,), True)
    """

    def __init__(self, model: LatentVariableModel, *, visits: int = 16, plan: Any = None, seed: int = 0) -> None:
        self.model, self.visits, self.plan, self.seed = model, visits, plan, seed

    def fit(self, X: Any, y: Any = None) -> "DensityEstimator":
        """Learn the plan of the visits on X (N, …), unless one was given; the model is not trained. It is not required: without a plan,
        `score_samples` learns one on its own samples, so that the score of a sample may then depend on the others.
        """
        x = self._encoded(X)
        self.plan_ = self.plan if self.plan is not None else plan_of_scores(self.model, x, seed=self.seed)
        self.n_features_in_ = self.model.space.dimensions
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return a lower bound on ln p(x) of every sample (N,), nats, float64.

        Args:
            X: raw values (N, *space.shape), or flattened (N, D): an array, a table or a tensor. Levels may be stored as real numbers.

        Raises DiffusionalError for samples of another shape, levels that are not whole numbers, and as `diffusional.score` does.
        """
        plan = getattr(self, "plan_", self.plan)
        scores = score(self.model, self._encoded(X), visits=self.visits, plan=plan, seed=self.seed)
        return -scores.nelbo.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples` over X, nats; y is ignored. (`KernelDensity.score` is a sum, `GaussianMixture.score` a mean.)"""
        return float(self.score_samples(X).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments by name, as scikit-learn's estimators do; `deep` has no effect."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> "DensityEstimator":
        """Set arguments by name. Raises DiffusionalError for a name that is not an argument."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise DiffusionalError(f"expected parameters among {', '.join(known)}, got {name!r}")
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Return True: `fit` is not required."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Return the tags that scikit-learn asks for: a density estimator."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(estimator_type="density_estimator", target_tags=TargetTags(required=False), input_tags=InputTags())

    def _encoded(self, X: Any) -> Tensor:
        space = self.model.space
        raw = X if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
        if raw.ndim == 2 and raw.shape[1] == space.dimensions:
            raw = raw.reshape(len(raw), *space.shape)
        if tuple(raw.shape[1:]) != tuple(space.shape):
            raise DiffusionalError(
                f"expected X of shape (N, {space.dimensions}) or {('N', *space.shape)}, got {tuple(raw.shape)}".replace(
                    "'N'", "N"
                )
            )
        if isinstance(space, Discrete) and raw.dtype.is_floating_point:
            whole = raw.round()
            if not bool((whole == raw).all()):
                value = float(raw[whole != raw][0])
                raise DiffusionalError(
                    f"expected whole numbers 0 … {space.levels - 1}, the {space.levels} levels of the model, got {value:g}; leave out "
                    "scalers before the model"
                )
            raw = whole.long()
        return space.encode(raw)
