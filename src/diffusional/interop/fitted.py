"""Parameters of p that no checkpoint declares, fitted on training data by the bound: γ_1, and the variance of a Gaussian p(x|z_1).

Of the bound, MATH (8), only −E ln p(x|z_1) depends on the variance s² of a Gaussian p(x|z_1) = N(x; x̂(z_1), s² I), and is least at

    s² = E ‖x − x̂(z_1)‖²/D,       x of the training data, z_1 ~ q(z_1|x),

where it is ½ D (1 + ln 2π s²).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion, alpha, sigma
from diffusional.models.chain import batch_rows
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import GaussianLikelihood, Likelihood
from diffusional.schedule import log_snr_linear
from diffusional.shapes import align
from diffusional.space import Continuous, Space

# γ_1 that are tried: σ/α from 4.5e-5 to 0.6.
_STARTS = tuple(float(value) for value in range(-20, 0))
# Levels of the sweep at every candidate, and draws of z_1.
_CELLS = 32


def fit_variance(
    denoiser: Any,
    space: Space,
    data: Tensor,
    gamma: float,
    *,
    condition: Condition | None = None,
    draws: int = 1,
    seed: int = 0,
) -> float:
    """Return the variance of a Gaussian p(x|z_1) of lowest cost on training data: the mean squared residual of x̂(z_1), in units of x.

    It takes N × draws network evaluations. Use training data, not those that are evaluated.

    Args:
        denoiser: the wrapped network.
        space: what x is, real values.
        data: training items (N, *space.shape), encoded; some hundreds suffice.
        gamma: γ_1.
        condition: of the items.
        draws: number of z_1 for each item.
        seed: of the noise.

    Raises DiffusionalError for data with levels, of which a density has no lowest cost, for data that the space refuses, and for residuals
    that are all zero or not finite.

    >>> from diffusional import exact
    >>> world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    >>> x = world.sample(4000, torch.Generator().manual_seed(0))
    >>> round(fit_variance(world.denoiser(), Continuous((2,)), x, 0.0), 1)     # of x given z at σ = α: ½
    0.5
    """
    if not isinstance(space, Continuous):
        raise DiffusionalError(
            f"expected real values for a fitted Gaussian p(x|z_1), got {space.levels} levels, whose density has no bound; use "
            '"discretized-gaussian", with a variance that is given'
        )
    space.check(data)
    check_condition(condition, len(data))
    generator = torch.Generator(data.device).manual_seed(seed)
    rows, total = batch_rows(space), 0.0
    with torch.inference_mode():
        for _ in range(draws):
            for some in torch.arange(len(data), device=data.device).split(rows):
                x = data[some]
                at = torch.full((len(x),), gamma, dtype=torch.float64, device=x.device)
                noise = torch.empty_like(x).normal_(generator=generator)
                z = align(alpha(at), x) * x + align(sigma(at), x) * noise
                found = denoiser(z, at, moved(rows_of(condition, some), x.device))
                total += float((x - found.data).double().square().sum())
    variance = total / (draws * data.numel())
    if not (variance > 0 and math.isfinite(variance)):
        raise DiffusionalError(
            f"expected residuals x − x̂(z_1) of a positive mean square, got {variance:g}: check the network, or give the variance"
        )
    return variance


def choose_start(
    denoiser: Any,
    likelihood: Likelihood,
    data: Tensor,
    *,
    gamma_max: float = 14.0,
    candidates: Sequence[float] = _STARTS,
    condition: Condition | None = None,
    seed: int = 0,
    fit: bool = False,
) -> float:
    """Return the γ_1 of lowest bound on training data, for models that do not declare their lowest noise, such as flows.

    It is a parameter of p, fitted by its bound: use training data, not those that are evaluated. The costs of all candidates come from the
    same noise, ½ ∫ ‖ε − ε̂‖² dγ from each of them to `gamma_max`.

    Args:
        denoiser: the wrapped network.
        likelihood: p(x|z_1) at every candidate.
        data: training items (N, *space.shape), encoded; some hundreds suffice.
        gamma_max: γ_T.
        candidates: values of γ_1, increasing.
        condition: of the items.
        seed: of the noise.
        fit: whether the variance of the likelihood, a `GaussianLikelihood`, is that of `fit_variance` at every candidate.

    Raises DiffusionalError for fewer than two candidates, or candidates that are not increasing and below `gamma_max`.

    >>> from diffusional import Continuous, exact, likelihood
    >>> world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    >>> x = world.sample(50, torch.Generator().manual_seed(0))
    >>> choose_start(world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))), x, candidates=(-9.0, -6.0, 2.0)) < 0
    True
    """
    values = [float(one) for one in candidates]
    if len(values) < 2 or any(a >= b for a, b in itertools.pairwise(values)) or values[-1] >= gamma_max:
        raise DiffusionalError(
            f"expected at least two increasing candidates below gamma_max = {gamma_max:g}, got {values}"
        )
    if fit and not isinstance(likelihood, GaussianLikelihood):
        raise DiffusionalError(f"expected a GaussianLikelihood for fit=True, got a {type(likelihood).__name__}")
    likelihood.space.check(data)
    generator = torch.Generator(data.device).manual_seed(seed)
    edges = [*values, gamma_max]
    costs, first = [], []
    for low, high in itertools.pairwise(edges):
        model = DiffusionModel(GaussianDiffusion(log_snr_linear(low, high)), denoiser, likelihood)
        cells = max(2, min(_CELLS, math.ceil((high - low) * 2)))
        with torch.no_grad():
            ledger = model.elbo(data, generator, condition, cells=cells)
        costs.append(float(ledger.kl.sum(1).mean()))
        if fit:
            variance = fit_variance(denoiser, likelihood.space, data, low, condition=condition, seed=seed)
            first.append(0.5 * likelihood.space.dimensions * (1 + math.log(2 * math.pi * variance)))
        else:
            first.append(float(ledger.reconstruction.mean()))
    totals = [first[i] + sum(costs[i:]) for i in range(len(values))]
    return values[min(range(len(values)), key=totals.__getitem__)]
