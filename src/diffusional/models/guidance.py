"""Classifier-free guidance (Ho & Salimans 2022) as a denoiser that wraps a denoiser (MATH (26)).

    x̂_w = x̂_∅ + w (x̂_c − x̂_∅),

where x̂_c is the prediction given the condition and x̂_∅ the one without. w = 1 leaves x̂_c unchanged (diffusers' guidance_scale), and w = 0 is
the unconditional model. Given z, predictions of x, ε, v and the score are one affine map apart, so that the same holds for each of them,
and it is computed in the network's own.

A guided chain is a chain like any other: whatever w, threshold and rescaling are, its NELBO bounds −ln p_w(x|c) of the model p_w that its
sampler samples from. In general that model is not the unguided one, and p_w(x|c) is not a tempered p(x|c).

Of a levels head, the distributions are combined as well, for the decoder: ln p_w = (1 − w) ln p_∅ + w ln p_c + const.

References: Ho & Salimans 2022; Saharia et al. 2022 (dynamic thresholding); Lin et al. 2024, "Common diffusion noise schedules and sample
steps are flawed" (rescaling).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, requires_condition
from diffusional.errors import DiffusionalError
from diffusional.models.denoiser import Denoiser
from diffusional.models.parameterization import LevelsPrediction, Prediction, level_log_probs, level_logits
from diffusional.models.rules import Rule, Threshold
from diffusional.shapes import Batch, PerLevel

# The least ln p of a level before distributions are combined, so that w > 1 does not give ∞ − ∞.
_LEAST = -1e4


class Guided(Denoiser):
    """A denoiser whose prediction is x̂_w = x̂_∅ + w (x̂_c − x̂_∅), for classifier-free guidance.

    One evaluation takes two of the network of `denoiser`; for w = 0 and w = 1 it takes one. All tensors are those of `denoiser`.

    Args:
        denoiser: the denoiser to guide; its network must also predict without a condition. Networks of this library do if they were
            trained with condition dropout (`Config.condition_dropout`).
        weight: w, any finite number.
        threshold: dynamic thresholding of x̂_w: the quantile of |x̂_w| in each item, such as 0.995, beyond which x̂_w is clipped before it
            is divided by it (Imagen), or a `models.rules.Threshold`, or a `models.rules.Clip`. It assumes data in [−1, 1].
        rescale: φ in [0, 1]: the prediction is multiplied by 1 − φ + φ s_c/s_w, where s_c and s_w are the standard deviations of the
            conditional and the guided prediction over an item.
        null: the condition of x̂_∅, as one row without the dimension of items: for networks that were trained with a particular null
            condition, such as the class number K or the embedding of an empty text. By default the network is called without a condition.
        kept: names of entries of a dict condition that x̂_∅ is given too, such as the low resolution of an upsampler: guidance is by the
            other entries.

    Raises DiffusionalError for a network that requires a condition where no `null` is given, and for values out of range.

    >>> denoiser = Denoiser(lambda z, log_snr, c=None: torch.zeros_like(z) if c is None else z * 0 + c[:, None], "data")
    >>> Guided(denoiser, weight=3.0)(torch.zeros(1, 2), torch.zeros(1), torch.ones(1)).data
    tensor([[3., 3.]])
    """

    def __init__(
        self,
        denoiser: Denoiser | nn.Module,
        weight: float,
        threshold: float | Rule | None = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
    ) -> None:
        nn.Module.__init__(self)
        if not isinstance(denoiser, Denoiser):
            raise DiffusionalError(
                f"expected a Denoiser to guide, got a {type(denoiser).__name__}; for a model, use model.guided(weight)"
            )
        if isinstance(denoiser, Guided):
            raise DiffusionalError("the denoiser is guided already; guide the denoiser inside it")
        if not math.isfinite(weight):
            raise DiffusionalError(
                f"expected a finite guidance weight, got {weight}; 1 leaves the prediction unchanged"
            )
        if not 0 <= rescale <= 1:
            raise DiffusionalError(f"expected rescale to be a number from 0 to 1, got {rescale}")
        if isinstance(threshold, float | int):
            if not 0 < threshold <= 1:
                raise DiffusionalError(
                    f"expected threshold to be a quantile above 0 and at most 1, such as 0.995, got {threshold}"
                )
            threshold = Threshold(float(threshold), math.inf)
        if isinstance(kept, str) or (kept and null is not None):
            raise DiffusionalError(
                f"expected kept to be names of entries of the condition, without null, got kept={kept!r} and null={null!r}; put the entries "
                "that stay into null"
            )
        if null is None and not kept:
            # A network of two conditions may need one of them for every prediction.
            kept = getattr(denoiser.module, "always_given", ())
        if weight != 1 and null is None and not kept and requires_condition(denoiser.module):
            raise DiffusionalError(
                f"guidance with weight {weight:g} needs predictions without a condition, but the {type(denoiser.module).__name__} "
                "requires one: it was not trained with condition dropout. Train with condition_dropout, such as 0.1, or give the "
                "condition that stands for none as null=…"
            )
        self.denoiser = denoiser
        self.weight, self.rescale, self.rule, self.null = float(weight), float(rescale), threshold, null
        self.kept = tuple(kept)
        levels = denoiser.predicts == "levels"
        self.predicts = denoiser.predicts if levels or threshold is None else "data"
        self.space, self.head, self.time = denoiser.space, denoiser.head, denoiser.time
        self.learns_variance = denoiser.learns_variance

    @property
    def module(self) -> Any:
        """The network of the guided denoiser."""
        return self.denoiser.module

    @property
    def data_range(self) -> tuple[float, float] | None:
        """The range of the rule for x̂_w; without one that of the denoiser for w = 1, and otherwise None: w > 1 leads out of any range."""
        if self.rule is not None:
            return self.rule.range
        return self.denoiser.data_range if self.weight == 1 else None

    def to_identity(self) -> dict[str, Any]:
        """Return w and the options that change the prediction; {} for w = 1 without options, which is the denoiser itself."""
        options = {"rescale": self.rescale} if self.rescale and self.weight != 1 else {}
        options |= {} if self.rule is None else {"threshold": str(self.rule)}
        options |= {"kept": list(self.kept)} if self.kept and self.weight != 1 else {}
        return options if self.weight == 1 else {"guidance": self.weight, **options}

    def both(self, z: Batch, gamma: Tensor, condition: Condition | None) -> tuple[Prediction, Prediction]:
        """Return the predictions given the condition and without it, for z (B, *dims) at γ (B,) or (): two network evaluations.

        Raises DiffusionalError if there is no condition.
        """
        if condition is None:
            raise DiffusionalError(
                f"guidance with weight {self.weight:g} requires a condition, but none was given; pass condition=…, one row per item"
            )
        return self.denoiser(z, gamma, condition), self._without(z, gamma, condition)

    def _without(self, z: Batch, gamma: Tensor, condition: Condition | None) -> Prediction:
        if self.kept:
            return self.denoiser(z, gamma, self._remaining(condition))
        return self.denoiser(z, gamma, None if self.null is None else _rows(self.null, len(z), z.device))

    def _remaining(self, condition: Condition | None) -> Condition:
        """Return the entries of the condition that x̂_∅ is given too. Raises DiffusionalError if nothing would be left out."""
        names = list(condition) if isinstance(condition, Mapping) else []
        if not isinstance(condition, Mapping) or not set(names) - set(self.kept):
            raise DiffusionalError(
                f"guidance with weight {self.weight:g} requires a condition besides {', '.join(self.kept)}, got "
                f"{', '.join(names) or 'no dict'}; pass one, or guide a stage that takes one"
            )
        return {name: condition[name] for name in names if name in self.kept}

    def forward(self, z: Batch, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Return the guided prediction for z (B, *dims) at γ (B,) or ()."""
        if self.weight == 0:
            return self._ruled(self._without(z, gamma, condition))
        if self.weight == 1:
            return self._ruled(self.denoiser(z, gamma, condition))
        given, without = self.both(z, gamma, condition)
        return self._ruled(combined(given, without, self.weight, self.rescale))

    def _ruled(self, prediction: Prediction) -> Prediction:
        if self.rule is None:
            return prediction
        x = self.rule(prediction.data)
        if isinstance(prediction, LevelsPrediction):
            return replace(prediction, value=x)
        return replace(prediction, value=x, kind="data")


@dataclass(frozen=True)
class GuidedLevels(LevelsPrediction):
    """A guided prediction of levels: `value` is x̂_w, and the distribution is ∝ p_∅^(1 − w) p_c^w, of the predictions with the condition,
    `output`, and without it, `unconditional`.
    """

    unconditional: Tensor
    weight: float

    def _logits(self) -> Tensor:
        given, without = (
            level_logits(output, self.head, self.space).log_softmax(1).clamp(min=_LEAST)
            for output in (self.output, self.unconditional)
        )
        return without + self.weight * (given - without)

    @property
    def log_probs(self) -> PerLevel:
        """ln p_k (B, K, *dims) at every position."""
        return level_log_probs(self._logits(), self.z, self.gamma, self.space)

    @property
    def priors(self) -> PerLevel:
        """The probabilities (B, K, *dims) of the levels before the evidence of the position itself."""
        return self._logits().softmax(1)

    def frozen(self) -> "GuidedLevels":
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: part.detach() for name, part in parts.items() if isinstance(part, Tensor)})


def combined(given: Prediction, without: Prediction, weight: float, rescale: float = 0.0) -> Prediction:
    """Return the guided prediction of two predictions for the same z, in their own parameterisation.

    A learned variance is between those of the two, at most that of `given`: it is not extrapolated.

    >>> z, gamma = torch.zeros(1, 1), torch.zeros(1)
    >>> one, other = (Prediction(z, gamma, torch.full((1, 1), value), "noise") for value in (2.0, 1.0))
    >>> combined(one, other, 3.0).value
    tensor([[4.]])
    """
    value = without.value + weight * (given.value - without.value)
    if rescale:
        s_c, s_w = (one.flatten(1).std(1, correction=0) for one in (given.value, value))
        ratio = 1 - rescale + rescale * s_c / s_w.clamp(min=torch.finfo(s_w.dtype).tiny)
        value = value * ratio.reshape(-1, *(1,) * (value.ndim - 1))
    out = replace(given, value=value)
    if len(given.fraction):
        share = min(max(weight, 0.0), 1.0)
        out = replace(out, fraction=without.fraction + share * (given.fraction - without.fraction))
    if not (isinstance(out, LevelsPrediction) and isinstance(without, LevelsPrediction)):
        return out
    parts = {f.name: getattr(out, f.name) for f in fields(out)}
    return GuidedLevels(**parts, unconditional=without.output, weight=weight)


def _rows(null: Any, items: int, device: torch.device) -> Any:
    """Return a null condition, one row without the dimension of items, for `items` items."""
    if isinstance(null, dict):
        return {name: _rows(value, items, device) for name, value in null.items()}
    row = torch.as_tensor(null, device=device)
    return row.expand(items, *row.shape)
