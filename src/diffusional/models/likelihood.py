"""The decoder p(x | z_1): a normalised distribution over the declared space, a mass function or a density.

Each likelihood turns the denoiser's prediction at z_1 into ln p(x | z_1) (B,), nats:

    DiscretizedGaussian   the mass of N(x̂, s²) between the bin's edges, the outermost bins open (Ho et al. 2020)
    LevelPosterior        p(x|z_1) ∝ q(z_1|x) over the levels; needs no network (Kingma et al. 2021)
    NetworkLevels         the distribution of a levels head
    GaussianLikelihood    the density N(x; x̂, s²), for real-valued data
    Bernoulli             P(x = high) = (x̂ − low)/(high − low), for binary data: x̂ estimates exactly this mean

`uses_network` is False for a likelihood that depends only on z_1. Levels and range are those of the space.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.special import log_ndtr

from diffusional.categorical import Categorical
from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.gaussian import Gaussian
from diffusional.models.denoiser import Denoiser, unassisted
from diffusional.models.parameterization import DecodedLevels, LevelsPrediction, Prediction, level_log_probs
from diffusional.shapes import Batch, PerItem, PerLevel, align, sum_dims
from diffusional.space import Continuous, Discrete, Space


@runtime_checkable
class Likelihood(Protocol):
    """p(x | z_1)."""

    uses_network: bool

    @property
    def space(self) -> Space:
        """The space that it is normalised over."""
        ...

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats."""
        ...

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        ...


@runtime_checkable
class MappedLikelihood(Likelihood, Protocol):
    """A likelihood whose positions are independent given z_1, so that its cost is a sum over them (evaluation/maps.py)."""

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats, whose sum is `log_prob`."""
        ...


def options_of(likelihood: Likelihood) -> dict[str, Any]:
    """Return a likelihood's plain options by name: numbers, strings and None.

    >>> options_of(GaussianLikelihood(Continuous((1,)), variance=0.1))
    {'uses_network': True, 'variance': 0.1}
    """
    plain = {name: value for name, value in vars(likelihood).items() if isinstance(value, int | float | str | None)}
    return {name: value for name, value in plain.items() if not name.startswith("_") and name != "training"}


@dataclass(frozen=True)
class Decoded:
    """p(x|z_1): a likelihood at one prediction (B, …)."""

    likelihood: Likelihood
    prediction: Prediction

    def log_prob(self, x: Batch) -> PerItem:
        """Return ln p(x|z_1) (B,), nats."""
        return self.likelihood.log_prob(x, self.prediction)

    def log_prob_map(self, x: Batch) -> Batch:
        """Return ln p(x_d|z_1) at every position (B, *dims), nats. Raises DiffusionalError if the likelihood has no `log_prob_map`."""
        if not isinstance(self.likelihood, MappedLikelihood):
            raise DiffusionalError(
                f"expected {type(self.likelihood).__name__} to define log_prob_map(x, prediction), the log-probability at every position "
                "(B, *dims), which cost maps need; it does not"
            )
        return self.likelihood.log_prob_map(x, self.prediction)

    def distribution(self) -> Gaussian | Categorical:
        """Return the distribution of every position: levels with their values, or a Gaussian. Raises DiffusionalError for a likelihood with
        neither `level_log_probs` nor `gaussian`.

        >>> some = Prediction(torch.zeros(1, 1), torch.tensor([-2.0]), torch.zeros(1, 1), "data")
        >>> Decoded(LevelPosterior(Discrete((1,), 3)), some).distribution().mean
        tensor([[0.]], dtype=torch.float64)
        """
        likelihood: Any = self.likelihood
        if hasattr(likelihood, "level_log_probs"):
            return Categorical(likelihood.level_log_probs(self.prediction).movedim(1, -1), likelihood.space.values)
        if hasattr(likelihood, "gaussian"):
            return likelihood.gaussian(self.prediction)
        raise DiffusionalError(
            f"expected a likelihood with `level_log_probs` or `gaussian`, the distribution of every position, got a {type(likelihood).__name__}"
        )

    def sample(self, generator: torch.Generator | None = None, rows: int | None = None) -> Batch:
        """Return samples x ~ p(x|z_1) (B, *dims). They are drawn for `rows` items at a time, since a likelihood may need a table of all levels
        at every position.
        """
        if rows is None:
            return self.likelihood.sample(self.prediction, generator)
        parts = torch.arange(len(self.prediction.z), device=self.prediction.z.device).split(rows)
        return torch.cat([self.likelihood.sample(self.prediction[some], generator) for some in parts])


def decoded(
    likelihood: Likelihood, denoiser: Denoiser, z_1: Batch, gamma: Tensor, condition: Condition | None = None
) -> Decoded:
    """Return p(x|z_1) at γ_1 (B,): from the denoiser's prediction, or from z_1 only if that decides."""
    seen = denoiser(z_1, gamma, condition) if likelihood.uses_network else unassisted(z_1, gamma)
    return Decoded(likelihood, seen)


def _discrete(space: Space, name: str) -> Discrete:
    if not isinstance(space, Discrete):
        raise DiffusionalError(
            f"expected a discrete space for {name}, a mass function over levels, got {space}: use GaussianLikelihood"
        )
    if not space.ordered:
        raise DiffusionalError(
            f"expected ordered levels for {name}, got unordered categories, {space}: use df.MaskedDiffusion or df.UniformDiffusion"
        )
    return space


def gather_levels(log_probs: PerLevel, index: Batch) -> PerItem:
    """Return Σ_d ln p(level_d) (B,) from ln p (B, K, *dims) and level indices (B, *dims)."""
    return sum_dims(chosen_levels(log_probs, index))


def chosen_levels(log_probs: PerLevel, index: Batch) -> Batch:
    """Return ln p(level_d) at every position (B, *dims) from ln p (B, K, *dims) and level indices (B, *dims)."""
    return log_probs.gather(1, index.unsqueeze(1)).squeeze(1)


def sample_levels(log_probs: PerLevel, space: Discrete, generator: torch.Generator | None) -> Batch:
    """Sample one level per position from ln p (B, K, *dims), as model values (B, *dims), by the inverse CDF.

    Raises DiffusionalError for probabilities that are not finite.
    """
    cdf = log_probs.double().exp().cumsum(1)
    check_drawn(cdf[:, -1])
    v = torch.empty_like(cdf[:, :1]).uniform_(generator=generator) * cdf[:, -1:]
    index = (cdf < v).sum(1).clamp(max=space.levels - 1)
    return space.values.to(log_probs)[index]


def check_drawn(values: Tensor) -> None:
    """Raise DiffusionalError unless the parameters of samples, or the samples (B, …), are finite.

    >>> check_drawn(torch.tensor([[0.0], [torch.nan]]))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: 1 of 2 samples are not finite: the network's output is NaN or too large. Check ...
    """
    broken = int((~torch.isfinite(values)).flatten(1).any(1).sum())
    if broken:
        raise DiffusionalError(
            f"{broken} of {len(values)} samples are not finite: the network's output is NaN or too large. Check its weights, "
            "or train it for longer or with a lower learning rate"
        )


def log_bin_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Return ln[Φ(upper) − Φ(lower)] for lower < upper, either of which may be infinite. It is accurate in both tails.

    It is computed in the tail where the CDF is small: ln Φ(b) + ln(1 − Φ(a)/Φ(b)).

    >>> log_bin_mass(torch.tensor(-torch.inf), torch.tensor(0.0)).exp()
    tensor(0.5000)
    """
    flip = lower + upper > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    # An open bin has a = −∞ after the flip. Constants replace the infinities, since in the gradient they would give NaN · 0 = NaN.
    open_bin = torch.isinf(a)
    log_b = log_ndtr(b)
    log_ratio = torch.where(open_bin, -1.0, log_ndtr(torch.where(open_bin, -1.0, a)) - log_b)
    return log_b + torch.where(open_bin, 0.0, torch.log(-torch.expm1(log_ratio)))


class DiscretizedGaussian(nn.Module):
    """p(x|z_1) = Π_d [Φ((x_d + Δ/2 − x̂_d)/s) − Φ((x_d − Δ/2 − x̂_d)/s)], outermost bins open; Δ the space's bin width.

    s² = σ_1², the transition variance of the step to x (Ho et al. 2020), unless `variance` is given. It is computed in float64, also in the
    tails, and never clipped: decoders that clip a posterior variance to 1e-20, as DDPM's code does with `fixedsmall`, become a step function. If the network learns its
    variance, s² follows it at every position, ln s² = (1 − f) ln least + f ln σ_1², where `least` is the variance of q(z_1|z_2, x) in Nichol
    & Dhariwal 2021.

    >>> space = Discrete((1,), 3)
    >>> p = DiscretizedGaussian(space).level_log_probs(Prediction(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), "data"))
    >>> p.exp().sum(1)
    tensor([[1.]], dtype=torch.float64)
    """

    uses_network = True

    def __init__(self, space: Space, variance: float | None = None, least: float | None = None) -> None:
        super().__init__()
        self.space = _discrete(space, "DiscretizedGaussian")
        self.variance, self.least = _checked(variance), _checked(least)

    def _log_mass(self, index: Tensor, prediction: Prediction) -> Tensor:
        x = self.space.low + self.space.width * index.double()
        mean = prediction.data.double()
        if index.ndim > mean.ndim:
            mean = mean.unsqueeze(1)
        variance = (
            torch.sigmoid(prediction.gamma.double())
            if self.variance is None
            else torch.tensor(self.variance, dtype=torch.float64)
        )
        std = align(variance.sqrt(), mean)
        if self.least is not None and len(prediction.fraction):
            f = prediction.fraction.double()
            f = f.unsqueeze(1) if f.ndim < mean.ndim else f
            std = torch.exp(0.5 * ((1 - f) * math.log(self.least) + f * align(variance.log(), mean)))
        half = 0.5 * self.space.width
        lower = torch.where(index == 0, -torch.inf, (x - half - mean) / std)
        upper = torch.where(index == self.space.levels - 1, torch.inf, (x + half - mean) / std)
        return log_bin_mass(lower, upper)

    def level_log_probs(self, prediction: Prediction) -> PerLevel:
        """Return ln p of every level at every position (B, K, *dims), float64."""
        z = prediction.z
        index = torch.arange(self.space.levels, device=z.device).reshape(-1, *(1,) * (z.ndim - 1))
        return self._log_mass(index.expand(z.shape[0], -1, *z.shape[1:]), prediction)

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats, float64."""
        return sum_dims(self.log_prob_map(x, prediction))

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats, float64."""
        return self._log_mass(self.space.index(x), prediction)

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        return sample_levels(self.level_log_probs(prediction), self.space, generator).to(prediction.z)


class LevelPosterior(nn.Module):
    """p(x|z_1) = Π_d q(z_{1,d}|x_d) / Σ_k q(z_{1,d}|x_k): Bayes' rule with a uniform prior over the levels, without a network.

    >>> space = Discrete((1,), 3)
    >>> z1 = Prediction(torch.zeros(1, 1), torch.tensor([-9.0]), torch.zeros(1, 1), "data")
    >>> LevelPosterior(space).log_prob(torch.zeros(1, 1), z1)
    tensor([0.])
    """

    uses_network = False

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = _discrete(space, "LevelPosterior")

    def level_log_probs(self, prediction: Prediction) -> PerLevel:
        """Return ln p of every level at every position (B, K, *dims)."""
        flat = torch.zeros((), dtype=prediction.z.dtype, device=prediction.z.device)
        return level_log_probs(flat, prediction.z, prediction.gamma, self.space)

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats: −½ d(x)² − ln Σ_k e^{−½ d(x_k)²}, d(x) = (z − α x)/σ.

        The sum is over the levels within 10 σ/α of the one next to z/α, since the others are below e^{−50} of it. At the noise of a usual
        z_1 these are about thirty of 256, which saves time in every training step.
        """
        return sum_dims(self.log_prob_map(x, prediction))

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats."""
        z, space = prediction.z, self.space
        a, s = align(alpha(prediction.gamma), z), align(sigma(prediction.gamma), z)
        reach = _REACH * float((s / a).detach().max()) / space.width + 1
        if 2 * reach + 1 >= space.levels:
            return chosen_levels(self.level_log_probs(prediction), space.index(x))
        offset = torch.arange(-math.ceil(reach), math.ceil(reach) + 1, device=z.device).reshape(
            -1, *(1,) * (z.ndim - 1)
        )
        k = space.index((z / a).detach()).unsqueeze(1) + offset
        values = space.values.to(z)
        ratio, slope = z / s, a / s
        near = -0.5 * (ratio.unsqueeze(1) - slope.unsqueeze(1) * values[k.clamp(0, space.levels - 1)]).square()
        near = near.masked_fill((k < 0) | (k >= space.levels), -math.inf)
        own = -0.5 * (ratio - slope * values[space.index(x)]).square()
        return own - torch.logsumexp(near, 1)

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        return sample_levels(self.level_log_probs(prediction), self.space, generator)


# Standard deviations of z_1 within which LevelPosterior sums the levels.
_REACH = 10.0


class NetworkLevels(nn.Module):
    """The distribution of a levels head at z_1 (MATH (5)). It requires a denoiser with predicts="levels".

    >>> NetworkLevels(Discrete((1,), 3)).uses_network
    True
    """

    uses_network = True

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = _discrete(space, "NetworkLevels")

    def level_log_probs(self, prediction: Prediction) -> PerLevel:
        """Return ln p of every level at every position (B, K, *dims)."""
        if not isinstance(prediction, LevelsPrediction):
            raise DiffusionalError(
                f'expected a denoiser with predicts="levels" for NetworkLevels, got predicts="{prediction.kind}": use '
                "DiscretizedGaussian or LevelPosterior with this one"
            )
        return prediction.log_probs

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats."""
        return sum_dims(self.log_prob_map(x, prediction))

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats."""
        if isinstance(prediction, DecodedLevels):
            return prediction.of_level(self.space.index(x))
        return chosen_levels(self.level_log_probs(prediction), self.space.index(x))

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        return sample_levels(self.level_log_probs(prediction), self.space, generator)


class GaussianLikelihood(nn.Module):
    """p(x|z_1) = N(x; x̂, s² I), a density. s² = σ_1²/α_1², the variance of z_1/α_1 around x, unless `variance` is given.

    With assisted=False, x̂ = z_1/α_1, without the network. At low noise a network improves it little, and the cost has no gradient noise.

    >>> p = GaussianLikelihood(Continuous((1,)), variance=1.0)
    >>> p.log_prob(torch.zeros(1, 1), Prediction(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), "data"))
    tensor([-0.9189], dtype=torch.float64)
    """

    def __init__(self, space: Space, variance: float | None = None, assisted: bool = True) -> None:
        super().__init__()
        self.uses_network = assisted
        if not isinstance(space, Continuous):
            raise DiffusionalError(
                f"expected a continuous space for GaussianLikelihood, got {space.levels} levels: the density of discrete data is unbounded. "
                "Use DiscretizedGaussian, LevelPosterior or NetworkLevels"
            )
        self.space = space
        self.variance = _checked(variance)

    def _log_variance(self, prediction: Prediction) -> Tensor:
        if self.variance is None:
            return align(prediction.gamma.double(), prediction.z.double())
        return torch.tensor(math.log(self.variance), dtype=torch.float64, device=prediction.z.device)

    def gaussian(self, prediction: Prediction) -> Gaussian:
        """Return p(x | z_1)."""
        mean = prediction.data.double()
        return Gaussian(mean, self._log_variance(prediction).expand_as(mean))

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats, float64."""
        return sum_dims(self.log_prob_map(x, prediction))

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats, float64."""
        log_variance = self._log_variance(prediction)
        # x − x̂ = (σ/α)(ε̂ − ε) is small at z_1: the difference is computed in the data's type, and squared in float64.
        squared = (x - prediction.data).double().square() * (-log_variance).exp()
        return -0.5 * (squared + log_variance + math.log(2 * math.pi))

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        mean = prediction.data
        noise = torch.empty_like(mean).normal_(generator=generator)
        x = mean + (0.5 * self._log_variance(prediction)).exp().to(mean) * noise
        check_drawn(x)
        return x


class Bernoulli(nn.Module):
    """P(x_d = high | z_1) = (x̂_d − low)/(high − low), kept within [floor, 1 − floor]; binary data.

    The optimal x̂ is the posterior mean, which is exactly this probability. `floor` is needed, since x̂ of a network may leave the range.

    >>> p = Bernoulli(Discrete((1,), 2))
    >>> p.log_prob(torch.ones(1, 1), Prediction(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), "data")).exp()
    tensor([0.5000])
    """

    uses_network = True

    def __init__(self, space: Space, floor: float = 1e-4) -> None:
        super().__init__()
        self.space = _discrete(space, "Bernoulli")
        if self.space.levels != 2:
            raise DiffusionalError(f"expected binary data (levels=2) for Bernoulli, got levels={self.space.levels}")
        if not 0 < floor < 0.5:
            raise DiffusionalError(f"expected floor to be a small probability, such as 1e-4, got {floor}")
        self.floor = floor

    def level_log_probs(self, prediction: Prediction) -> PerLevel:
        """Return ln P(low), ln P(high) at every position (B, 2, *dims)."""
        high = (prediction.data - self.space.low) / (self.space.high - self.space.low)
        high = high.clamp(self.floor, 1 - self.floor)
        return torch.stack([torch.log1p(-high), high.log()], dim=1)

    def log_prob(self, x: Batch, prediction: Prediction) -> PerItem:
        """Return ln p(x | z_1) (B,), nats."""
        return sum_dims(self.log_prob_map(x, prediction))

    def log_prob_map(self, x: Batch, prediction: Prediction) -> Batch:
        """Return ln p(x_d | z_1) at every position (B, *dims), nats."""
        return chosen_levels(self.level_log_probs(prediction), self.space.index(x))

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Batch:
        """Return samples x ~ p(x | z_1) (B, *dims)."""
        return sample_levels(self.level_log_probs(prediction), self.space, generator)


def _checked(variance: float | None) -> float | None:
    if variance is not None and not (variance > 0 and math.isfinite(variance)):
        raise DiffusionalError(f"expected variance to be a positive number, got {variance}")
    return variance
