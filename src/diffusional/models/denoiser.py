"""The denoiser: any `nn.Module` with a declared meaning (MATH (5))."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha
from diffusional.models.calls import call, shape_hint
from diffusional.models.parameterization import (
    HEADS,
    MANY_LEVELS,
    PREDICTS,
    Head,
    LevelsPrediction,
    Prediction,
    Predicts,
    decoded_levels,
    level_mean,
)
from diffusional.models.rules import Clip
from diffusional.shapes import Batch, align
from diffusional.space import Discrete, Space
from diffusional.words import check_word, our_word


def output_channels(
    predicts: Predicts, head: Head, channels: int, levels: int | None, learns_variance: bool = False
) -> int:
    """Return the number of output channels that a network for `channels` data channels needs: C, C·K or 2C, plus C for a learned variance.

    >>> output_channels("levels", "logistic", channels=3, levels=256)
    6
    >>> output_channels("noise", "logistic", channels=3, levels=256, learns_variance=True)
    6
    """
    if learns_variance:
        return output_channels(predicts, head, channels, levels) + channels
    if predicts != "levels":
        return channels
    if levels is None:
        raise DiffusionalError(
            'expected predicts to be "noise", "data" or "v" for continuous data, which have no levels, got "levels"'
        )
    return channels * (2 if head == "logistic" else levels)


class Denoiser(nn.Module):
    """A network `module(z, log_snr)` or `module(z, log_snr, condition)`, with a declaration of what its output predicts.

    Args:
        module: any network from z (B, *dims) and log_snr = −γ (B,) to an output of z's shape, or, for "levels", of
            C·K channels (`head="categorical"`: free logits) or 2C (`head="logistic"`: μ and ln s).
        predicts: "noise", "data", "v", "score" or "levels", or a word of diffusers or a paper for one of these, such as "epsilon".
        space: the data's space; needed for "levels" only.
        head: the output parameterisation of a levels module.
        time: maps log-SNR to the module's own time input; see `diffusional.models.time`.
        learns_variance: whether the output has C further channels o at its end, for `variance="learned"`. They place the variance v_p
            between that of the posterior, v_q, and that of the transition, or slightly beyond: ln v_p = (1 − f) ln v_q + f ln σ²_{t|s}
            with f = (o + 1)/2 (Nichol & Dhariwal 2021, eq. 15).

    Raises DiffusionalError for an unknown `predicts` or `head`, for a levels head without a discrete space, for a `FromDiffusers`
    without `time`, and when the module's output is not a single floating-point tensor of the right shape on z's device.

    >>> import torch
    >>> denoiser = Denoiser(lambda z, log_snr: 0 * z, predicts="data")
    >>> denoiser(torch.ones(2, 3), torch.zeros(2)).data.abs().max()
    tensor(0.)
    """

    def __init__(
        self,
        module: Callable[..., Tensor],
        predicts: Predicts | str = "noise",
        space: Discrete | None = None,
        head: Head = "categorical",
        time: Callable[[Tensor], Tensor] | None = None,
        learns_variance: bool = False,
    ) -> None:
        super().__init__()
        ours: Any = our_word("predicts", predicts, PREDICTS)
        check_word("head", head, HEADS)
        if ours == "levels" and not isinstance(space, Discrete):
            raise DiffusionalError(f'expected space=Discrete(…) for predicts="levels", got {space!r}')
        if time is None and getattr(module, "needs_time", False):
            raise DiffusionalError(
                f"expected time= for a {type(module).__name__}, the time input that the network was trained with, got none: it would read "
                "log SNR. Give time=diffusional.models.time.TrainedIndex(schedule) for a network that reads the number of the level, or "
                "time=diffusional.models.time.Affine() for one that was trained with log SNR"
            )
        self.module = module
        self.predicts: Predicts = ours
        self.space = space
        self.head: Head = head
        self.time = time
        self.learns_variance = learns_variance

    @property
    def data_range(self) -> tuple[float, float] | None:
        """The range that x̂ cannot leave at any position, whatever the network returns; None if there is none. It is known for a network that
        predicts levels, and for one whose x̂ is clipped.
        """
        if self.predicts == "levels":
            assert self.space is not None
            return self.space.low, self.space.high
        return self.module.rule.range if isinstance(self.module, _Clipped) else None

    def to_identity(self) -> dict[str, Any]:
        """Return what the prediction depends on besides the tensors of the model, as JSON values: by default nothing."""
        return {}

    def forward(self, z: Batch, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Return the network's prediction for z (B, *dims) at γ (B,) or ()."""
        log_snr = (-gamma).expand(z.shape[0])
        # An adapter gets float64, since in a shorter type neighbouring levels of a long grid would be equal.
        time = log_snr if self.time is None else self.time(log_snr)
        # The network gets its own type, independent of the items' type.
        seen = z.to(network_dtype(self.module) or z.dtype)
        time = time.to(seen.dtype) if time.dtype.is_floating_point else time
        output = call(self.module, seen, time, condition=condition)
        if not self.learns_variance:
            return read(output, z, gamma, self.predicts, self.head, self.space)
        channels = z.shape[1]
        if output.ndim != z.ndim or output.shape[1] <= channels or output.shape[2:] != z.shape[2:]:
            raise DiffusionalError(
                f"the network's output has shape {tuple(output.shape)} for z of shape {tuple(z.shape)}; with a learned variance "
                f"it must have {channels} channels more than without"
            )
        mean, o = output[:, :-channels], output[:, -channels:].to(z.dtype)
        prediction = read(mean, z, gamma, self.predicts, self.head, self.space)
        return replace(prediction, fraction=0.5 * (o + 1))


def network_dtype(module: object) -> torch.dtype | None:
    """Return the type of a module's first floating-point parameter; None if it has none.

    >>> network_dtype(nn.Linear(2, 2).bfloat16()), network_dtype(nn.Identity())
    (torch.bfloat16, None)
    """
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    return next((p.dtype for p in parameters if p.dtype.is_floating_point), None)


def read(output: Tensor, z: Batch, gamma: Tensor, predicts: Predicts, head: Head, space: Discrete | None) -> Prediction:
    """Convert a network's output (B, …) for z (B, *dims) at γ to a Prediction. Raises DiffusionalError for a wrong shape.

    At γ = ∞, z has no information, so the distribution is that of the levels head, as for a VAE's decoder.

    >>> import torch
    >>> space, nothing = Discrete((1,), 2), torch.tensor([torch.inf])
    >>> prediction = read(torch.zeros(1, 2), torch.ones(1, 1), nothing, "levels", "categorical", space)
    >>> assert isinstance(prediction, LevelsPrediction)
    >>> prediction.log_probs.exp().flatten()
    tensor([0.5000, 0.5000])
    """
    output = output.to(z.dtype)
    if predicts != "levels":
        if output.shape != z.shape:
            raise DiffusionalError(
                f"the network's output has shape {tuple(output.shape)} for z of shape {tuple(z.shape)}; "
                f"a network that predicts {predicts} must return z's shape{shape_hint(output, z)}"
            )
        return Prediction(z, gamma, output, predicts)
    assert space is not None
    value = level_mean(output, z, gamma, head, space)
    return LevelsPrediction(z, gamma, value, "data", output, head, space)


def decoded(output: Tensor, like: Tensor, predicts: Predicts, head: Head, space: Space) -> Prediction:
    """Convert a decoder's output (B, …) to a Prediction of items of the shape of `like` (B, *dims), which is not read: at γ = ∞.

    Raises DiffusionalError for a wrong shape.

    >>> import torch
    >>> decoded(torch.ones(2, 3), torch.zeros(2, 3), "data", "logistic", Discrete((3,), 2)).data.shape
    torch.Size([2, 3])
    """
    nothing = torch.full((len(like),), math.inf, dtype=torch.float64, device=like.device)
    levels = space if isinstance(space, Discrete) else None
    z = torch.zeros_like(like)
    # With few levels the table is as fast, and bounds are those of earlier versions to the last bit.
    if predicts == "levels" and head == "logistic" and levels is not None and levels.levels >= MANY_LEVELS:
        return decoded_levels(output.to(z.dtype), z, nothing, levels)
    return read(output, z, nothing, predicts, head, levels)


class _Clipped(nn.Module):
    """x̂ of another denoiser, clipped to a range, with the fraction of its variance if it learns one."""

    def __init__(self, denoiser: Denoiser, rule: Clip) -> None:
        super().__init__()
        self.denoiser, self.rule = denoiser, rule

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        prediction = self.denoiser(z, -log_snr.double(), condition)
        x = self.rule(prediction.data)
        return torch.cat([x, 2 * prediction.fraction - 1], dim=1) if self.denoiser.learns_variance else x


def clipped(denoiser: Denoiser, space: Discrete) -> Denoiser:
    """Return a denoiser with the same network whose x̂ is clipped to the range of the data, as for the published bounds of DDPM and improved
    DDPM.

    If the network predicts noise, x̂ = (z − σ ε̂)/α, whose error is that of ε̂ times σ/α. At high noise, such as in the last step of the
    cosine schedule, that error can make one step cost more than all others. The gradient is 0 where x̂ is clipped.

    >>> prediction = clipped(Denoiser(lambda z, log_snr: 0 * z, "noise"), Discrete((1,), 2))(torch.full((1, 1), 9.0), torch.zeros(1))
    >>> prediction.data
    tensor([[1.]])
    """
    return Denoiser(_Clipped(denoiser, Clip(space.low, space.high)), "data", learns_variance=denoiser.learns_variance)


def clip_of(denoiser: Denoiser) -> tuple[Denoiser, Clip] | None:
    """Return the denoiser inside one that `clipped` made, with how x̂ is clipped; None for other denoisers.

    >>> inner = Denoiser(lambda z, log_snr: 0 * z, "noise")
    >>> clip_of(inner), clip_of(clipped(inner, Discrete((1,), 2)))[1]
    (None, Clip(low=-1.0, high=1.0))
    """
    module = denoiser.module
    return (module.denoiser, module.rule) if isinstance(module, _Clipped) else None


def unassisted(z: Batch, gamma: Tensor) -> Prediction:
    """Return the prediction x̂ = z/α, without a network, for decoders that need none."""
    return Prediction(z, gamma, z / align(alpha(gamma), z), "data")
