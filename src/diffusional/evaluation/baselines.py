"""Baselines as evaluations: exact −ln p(x) of items under a density that was fitted to the training items."""

from torch import Tensor

from diffusional.baselines import CategoricalMixture, FactorizedCategorical, FullGaussian
from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import fingerprint
from diffusional.evaluation.result import Evaluation
from diffusional.space import Continuous, Discrete, Space

# Values of training items that a simple baseline is fitted to, and dimensions of a Gaussian.
_VALUES, _DIMENSIONS = 10_000_000, 1024


def of_baseline(
    model: FactorizedCategorical | CategoricalMixture | FullGaussian, raw: Tensor, space: Space
) -> Evaluation:
    """Return the exact −ln p of raw items (N, *shape) under a fitted baseline.

    >>> import torch
    >>> raw = torch.tensor([[0], [0], [1]])
    >>> binary = Discrete((1,), levels=2)
    >>> found = of_baseline(FactorizedCategorical.fit(raw, binary, smoothing=1.0), raw, binary)
    >>> found.kind, round(found.nelbo.value, 4)
    ('exact', 0.646)
    """
    return Evaluation.from_scores(
        -model.log_prob(raw),
        space.dimensions,
        provenance={
            "data_sha256": fingerprint(space, space.encode(raw)),
            "model": type(model).__name__,
            "space": space.to_dict(),
            "levels": space.levels,
        },
    )


def simple_baseline(train: Tensor, validation: Tensor | None, raw: Tensor, space: Space) -> dict[str, Evaluation]:
    """Return the simplest baseline of some items, by name: independent positions for levels, a Gaussian for real values.

    Args:
        train: raw training items (M, *shape). If they have many values, the first of them are used, and the name has their number.
        validation: raw validation items, which choose the smoothing of levels, or None.
        raw: raw items to evaluate (N, *shape).
        space: of the items.

    Returns {} for a Gaussian of more than 1024 dimensions, and if the training items are all equal.

    >>> import torch
    >>> raw = torch.tensor([[0.0], [1.0], [2.0]])
    >>> list(simple_baseline(raw, None, raw, Continuous((1,))))
    ['full-covariance Gaussian']
    """
    most = max(1, _VALUES // space.dimensions)
    some = train[:most]
    part = f", fitted to {len(some):,} of {len(train):,} training items" if len(some) < len(train) else ""
    if isinstance(space, Discrete):
        chosen = None if validation is None or not len(validation) else validation[:most]
        return {f"independent positions{part}": of_baseline(FactorizedCategorical.fit(some, space, chosen), raw, space)}
    if not isinstance(space, Continuous) or space.dimensions > _DIMENSIONS:
        return {}
    try:
        return {f"full-covariance Gaussian{part}": of_baseline(FullGaussian.fit(some, space), raw, space)}
    except DiffusionalError:
        return {}
