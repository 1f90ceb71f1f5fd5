"""What a denoiser may predict, and the one place where predictions are converted (MATH (5)).

Given z = α x + σ ε, the predictions of x, ε, v = α ε − σ x and the score s = −ε/σ are one affine map apart:

    from x:      ε̂ = (z − α x̂)/σ
    from ε:      x̂ = (z − σ ε̂)/α
    from v:      x̂ = α z − σ v̂,     ε̂ = σ z + α v̂
    from score:  ε̂ = −σ ŝ

All costs need only ‖ε − ε̂‖². It is computed in the parameterisation of the network, where nothing cancels:

    ‖ε − ε̂‖² = (α/σ)² ‖x − x̂‖² = α² ‖v − v̂‖² = σ² ‖s − ŝ‖².

Predictions of `"levels"` are a distribution over the data's levels at every position. Its mean x̂ is an ordinary x-prediction, from which the
distribution cannot be recovered. It combines the network's prior ℓ_k from context with the evidence of the noisy position itself:

    ln p_k = log_softmax_k[ ℓ_k − (z − α x_k)²/(2σ²) ],      x̂ = Σ_k p_k x_k.

References: Ho et al. 2020 (ε); Salimans & Ho 2022 (v); Song et al. 2021 (score).
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.models.level_mean import logistic_mean
from diffusional.shapes import Batch, PerItem, PerLevel, align, sum_dims
from diffusional.space import Discrete
from diffusional.words import check_word

Head = Literal["categorical", "logistic"]
Predicts = Literal["noise", "data", "v", "score", "levels"]
HEADS: tuple[str, ...] = ("categorical", "logistic")
PREDICTS: tuple[str, ...] = ("noise", "data", "v", "score", "levels")
# The kinds of stored predictions.
_KINDS = PREDICTS[:-1]


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for z (B, *dims) at γ (B,): `value` in the parameterisation `kind`, which is any except "levels".

    `fraction` (B, *dims) places a learned variance of the reverse step between that of the posterior, 0, and that of the transition, 1, in
    log space. It has no items if the variance is not learned.
    """

    z: Tensor
    gamma: Tensor
    value: Tensor
    kind: str
    fraction: Tensor = field(default_factory=lambda: torch.zeros(0), kw_only=True)

    def __post_init__(self) -> None:
        check_word("predicts", self.kind, _KINDS)

    def __getitem__(self, items: Tensor) -> "Prediction":
        """Return the prediction for some items of the batch; γ must be (B,)."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[items] for k, v in parts.items() if isinstance(v, Tensor) and len(v)})

    def frozen(self) -> "Prediction":
        """Return the prediction with a constant mean, so that gradients reach only the variance of the reverse step."""
        return replace(self, value=self.value.detach())

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        return align(alpha(self.gamma), self.z), align(sigma(self.gamma), self.z)

    @property
    def data(self) -> Tensor:
        """x̂ (B, *dims).

        >>> z, gamma = torch.ones(1, 1), torch.zeros(1)
        >>> Prediction(z, gamma, torch.zeros(1, 1), "noise").data    # z/α
        tensor([[1.4142]])
        """
        a, s = self._coefficients()
        if self.kind == "data":
            return self.value
        if self.kind == "noise":
            return (self.z - s * self.value) / a
        if self.kind == "v":
            return a * self.z - s * self.value
        return (self.z + s * s * self.value) / a  # score, by Tweedie's formula

    @property
    def noise(self) -> Tensor:
        """ε̂ (B, *dims)."""
        a, s = self._coefficients()
        if self.kind == "data":
            return (self.z - a * self.value) / s
        if self.kind == "noise":
            return self.value
        if self.kind == "v":
            return s * self.z + a * self.value
        return -s * self.value

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ − σ x̂ (B, *dims)."""
        if self.kind == "v":
            return self.value
        a, s = self._coefficients()
        if self.kind == "data":
            return (a * self.z - self.value) / s
        return (self.noise - s * self.z) / a

    @property
    def score(self) -> Tensor:
        """ŝ = −ε̂/σ, the model's ∇ ln q(z) (B, *dims)."""
        return self.value if self.kind == "score" else -self.noise / self._coefficients()[1]

    def squared_error(self, x: Batch, noise: Batch) -> PerItem:
        """Return ‖ε − ε̂‖² (B,), float64, computed in the network's own parameterisation; z must be α x + σ ε.

        >>> z, gamma = torch.ones(1, 1), torch.zeros(1)
        >>> Prediction(z, gamma, torch.zeros(1, 1), "noise").squared_error(x=z * 0, noise=z * 3.0)
        tensor([9.], dtype=torch.float64)
        """
        log_factor, residual = self._residual(x, noise)
        return torch.exp(log_factor) * sum_dims(residual.double().square())

    def squared_errors(self, x: Batch, noise: Batch) -> Batch:
        """Return (ε − ε̂)² at every position (B, *dims), float64, whose sum is `squared_error`.

        >>> z, gamma = torch.ones(1, 2), torch.zeros(1)
        >>> Prediction(z, gamma, torch.zeros(1, 2), "noise").squared_errors(x=z * 0, noise=torch.tensor([[1.0, 2.0]]))
        tensor([[1., 4.]], dtype=torch.float64)
        """
        log_factor, residual = self._residual(x, noise)
        squares = residual.double().square()
        return align(torch.exp(log_factor), squares) * squares

    def squared_distance(self, other: "Prediction") -> PerItem:
        """Return ‖ε̂ − ε̂'‖² (B,), float64, of another prediction of the same kind for the same z.

        >>> z, gamma = torch.ones(1, 1), torch.zeros(1)
        >>> one, other = (Prediction(z, gamma, torch.full((1, 1), value), "noise") for value in (1.0, 3.0))
        >>> one.squared_distance(other)
        tensor([4.], dtype=torch.float64)
        """
        if other.kind != self.kind:
            raise DiffusionalError(f"expected two predictions of the same kind, got {self.kind} and {other.kind}")
        return torch.exp(self._log_factor()) * sum_dims((self.value.double() - other.value.double()).square())

    def _log_factor(self) -> Tensor:
        """Return ln c (B,), float64, with ‖ε − ε̂‖² = c ‖target − value‖²."""
        log_alpha2, log_sigma2 = logsigmoid(-self.gamma.double()), logsigmoid(self.gamma.double())
        zero = torch.zeros_like(log_alpha2)
        factors = {"noise": zero, "data": log_alpha2 - log_sigma2, "v": log_alpha2, "score": log_sigma2}
        return factors[self.kind]

    def _residual(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln c (B,) and d (B, *dims) with (ε − ε̂)² = c d², d in the network's own parameterisation."""
        a, s = self._coefficients()
        if self.kind == "noise":
            target = noise
        elif self.kind == "data":
            target = x
        elif self.kind == "v":
            target = a * noise - s * x
        else:
            target = -noise / s
        return self._log_factor(), target - self.value


@dataclass(frozen=True)
class LevelsPrediction(Prediction):
    """A prediction of the data's levels: `value` is x̂, and `output` is the network's output for the levels of `space`, as `head` defines it.

    Training needs only x̂; the whole distribution is computed by `log_probs`.
    """

    output: Tensor
    head: Head
    space: Discrete

    @property
    def log_probs(self) -> PerLevel:
        """ln p_k (B, K, *dims) at every position."""
        return level_log_probs(level_logits(self.output, self.head, self.space), self.z, self.gamma, self.space)

    @property
    def priors(self) -> PerLevel:
        """The probabilities (B, K, *dims) of the levels before the evidence of the position itself."""
        return level_logits(self.output, self.head, self.space).softmax(1)

    def frozen(self) -> "LevelsPrediction":
        fixed = {name: getattr(self, name).detach() for name in ("z", "gamma", "value", "output")}
        return replace(self, **fixed)


# Number of levels from which on decoders return `DecodedLevels`.
MANY_LEVELS = 64


@dataclass(frozen=True)
class DecodedLevels(LevelsPrediction):
    """Levels under a logistic head that are predicted without a noisy x, by the decoder of a VAE. `value` has no items.

    The probability of one level is a difference of two sigmoids, so that a loss takes no table of levels × positions. x̂ is computed when
    `data` is read.

    >>> space, gamma = Discrete((1,), 256), torch.tensor([torch.inf])
    >>> prediction = decoded_levels(torch.zeros(1, 2), torch.zeros(1, 1), gamma, space)
    >>> prediction.of_level(torch.tensor([[0]])).exp()       # σ(−1 + 1/255)
    tensor([[0.2697]])
    """

    @property
    def data(self) -> Tensor:
        """x̂ (B, *dims), computed anew at every access."""
        return level_mean(self.output, self.z, self.gamma, self.head, self.space)

    def of_level(self, index: Tensor) -> Batch:
        """Return ln p (B, *dims) of the level with index (B, *dims) at every position."""
        mu, s = logistic_scales(self.output, self.space)
        last, half = self.space.levels - 1, 0.5 * self.space.width
        x = self.space.values.to(self.output)[index]
        below, above = index > 0, index < last
        upper = torch.where(above, logsigmoid((x + half - mu) / s), 0.0)
        lower = torch.where(below, logsigmoid((mu - x + half) / s), 0.0)
        return upper + lower + torch.where(below & above, torch.log(-torch.expm1(-self.space.width / s)), 0.0)


def decoded_levels(output: Tensor, z: Batch, gamma: Tensor, space: Discrete) -> DecodedLevels:
    """Return the prediction of a decoder's output (B, 2C, *rest) with a logistic head, at γ = ∞ (B,), where z has no information."""
    return DecodedLevels(z, gamma, output.new_zeros(0), "data", output, "logistic", space)


def level_mean(output: Tensor, z: Batch, gamma: Tensor, head: Head, space: Discrete) -> Batch:
    """Return x̂ = Σ_k p_k x_k (B, *dims) for the output (B, …) of a levels head. For the logistic head its gradient has a closed form.

    >>> space, z, gamma = Discrete((1,), 2), torch.ones(1, 1), torch.zeros(1)
    >>> level_mean(torch.zeros(1, 2), z, gamma, "categorical", space)                             # tanh(z α/σ²)
    tensor([[0.8884]])
    """
    if head == "logistic":
        return logistic_mean(*logistic_scales(output, space), z, gamma, space)
    values = space.values.to(z).reshape(-1, *(1,) * (z.ndim - 1))
    return (level_log_probs(categorical_logits(output, space), z, gamma, space).exp() * values).sum(1)


def level_logits(output: Tensor, head: Head, space: Discrete) -> PerLevel:
    """Return ℓ_k (B, K, *dims), the network's prior from context, from the output (B, …) of a levels head."""
    return categorical_logits(output, space) if head == "categorical" else logistic_logits(output, space)


def categorical_logits(output: Tensor, space: Discrete) -> PerLevel:
    """Return logits ℓ (B, K, C, *rest) from a network's output (B, C·K, *rest), in which the K levels of a channel are neighbours.

    >>> categorical_logits(torch.zeros(2, 3 * 17, 8, 8), Discrete((3, 8, 8), 17)).shape
    torch.Size([2, 17, 3, 8, 8])
    """
    _expect(output, space, space.levels)
    return output.unflatten(1, (space.shape[0], space.levels)).movedim(2, 1)


def logistic_scales(output: Tensor, space: Discrete) -> tuple[Batch, Batch]:
    """Return μ and s of a discretised logistic (B, *dims), in the data's units, from a network's (μ, ln s) (B, 2C, *rest).

    The network's μ is relative to the middle of the range, and its s is in half ranges, so that outputs of order one fit any space.
    s is clamped to at least 1e-3 bin widths and ln s to at most 20.

    >>> logistic_scales(torch.zeros(1, 2), Discrete((1,), 3, low=0.0, high=1.0))
    (tensor([[0.5000]]), tensor([[0.5000]]))
    """
    _expect(output, space, 2)
    mu, log_s = output.unflatten(1, (2, space.shape[0])).unbind(1)
    half = 0.5 * (space.high - space.low)
    # s is at least 1e-3 bin widths, below which the mass is a step in float32 without a gradient, and at most e^20, above which 1/s²
    # underflows and its gradient is NaN.
    s = half * log_s.clamp(math.log(1e-3 * space.width / half), 20.0).exp()
    return 0.5 * (space.high + space.low) + half * mu, s


def logistic_logits(output: Tensor, space: Discrete) -> PerLevel:
    """Return ℓ_k = ln mass of level k under a discretised logistic with open tails (B, K, C, *rest), from (μ, ln s) (B, 2C, *rest).

    With a_k, b_k the bin's upper and lower edge (edge − μ)/s: ln[σ(a) − σ(b)] = ln σ(a) + ln σ(−b) + ln(1 − e^{b−a}),
    where e^{b−a} = e^{−Δ/s} is the same for every inner bin; the outermost edges are ±∞.

    >>> logistic_logits(torch.zeros(1, 2), Discrete((1,), 3)).exp().sum(1)
    tensor([[1.]])
    """
    mu, s = logistic_scales(output, space)
    values = space.values.to(output)
    edges = (0.5 * (values[1:] + values[:-1])).reshape(-1, *(1,) * (mu.ndim - 1))
    scaled = (edges - mu.unsqueeze(1)) / s.unsqueeze(1)  # (B, K−1, C, *rest)
    upper, lower = logsigmoid(scaled), logsigmoid(-scaled)
    inner = upper[:, 1:] + lower[:, :-1] + torch.log(-torch.expm1(-space.width / s)).unsqueeze(1)
    return torch.cat([upper[:, :1], inner, lower[:, -1:]], dim=1)


def level_log_probs(logits: Tensor, z: Tensor, gamma: Tensor, space: Discrete) -> PerLevel:
    """Return ln p_k = log_softmax_k[ℓ_k − (z − α x_k)²/(2σ²)] (B, K, *dims): the network's prior from context, times the
    evidence of z itself.

    With ℓ = 0 it is the posterior under q and a uniform prior, p(x | z) ∝ q(z | x) (Kingma et al. 2021).

    >>> space = Discrete((1,), 2)
    >>> level_log_probs(torch.zeros(1, 2, 1), torch.zeros(1, 1), torch.zeros(1), space).exp().squeeze()
    tensor([0.5000, 0.5000])
    """
    values = space.values.to(z).reshape(-1, *(1,) * (z.ndim - 1))
    a, s = align(alpha(gamma), z), align(sigma(gamma), z)
    distance = (z / s).unsqueeze(1) - (a / s).unsqueeze(1) * values
    return torch.log_softmax(logits - 0.5 * distance.square(), dim=1)


def _expect(output: Tensor, space: Discrete, per_channel: int) -> None:
    expected = (space.shape[0] * per_channel, *space.shape[1:])
    if tuple(output.shape[1:]) != expected:
        raise DiffusionalError(
            f"expected a network output of shape {expected} per item, for a levels head over {space.levels} levels of items of shape "
            f"{space.shape}, got {tuple(output.shape[1:])}"
        )
