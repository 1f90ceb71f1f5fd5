"""A network from elsewhere as a denoiser: what it reads, at which time, and what its output is of x and ε (MATH (23)).

The latents of a foreign process are a x + s ε. Divided by c = √(a² + s²) they are ours, z = α x + σ ε with γ = ln s²/a², so that the network
gets c z. Its output is o = A x + B ε at this γ. With α² + σ² = 1,

    v̂ = q (ô − (A α + B σ) z),      q = 1/(B α − A σ),

which loses no digits at either end of γ for flow velocities and for EDM's F. Pure predictions, A = 0 or B = 0, are kept as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.models.calls import call, shape_hint
from diffusional.models.denoiser import Denoiser, network_dtype
from diffusional.models.parameterization import Prediction
from diffusional.models.rules import Clip as Clip
from diffusional.models.rules import Rule as Rule
from diffusional.models.rules import Threshold as Threshold
from diffusional.schedule import Schedule
from diffusional.shapes import Batch, align

# A function of γ (B,), float64, or a constant.
Coefficient = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Output:
    """What a network's output is: A x + B ε, with coefficients that are functions of γ or constants."""

    of_data: Coefficient
    of_noise: Coefficient

    @property
    def kind(self) -> Literal["noise", "data", "v"]:
        """The prediction that the output is converted to without losing digits."""
        if self.of_data == 0:
            return "noise"
        return "data" if self.of_noise == 0 else "v"

    def at(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B at γ (…), float64."""
        return value_at(self.of_data, gamma), value_at(self.of_noise, gamma)

    def read(self, output: Tensor, z: Batch, gamma: Tensor) -> Tensor:
        """Return the prediction `kind` (B, *dims) from an output (B, *dims) at γ (B,)."""
        a, b = self.at(gamma)
        if self.kind == "noise":
            return output if self.of_noise == 1 else output / align(b, z)
        if self.kind == "data":
            return output if self.of_data == 1 else output / align(a, z)
        al, si = alpha(gamma), sigma(gamma)
        q = 1 / (b * al - a * si)
        return align(q, z) * output - align(q * (a * al + b * si), z) * z


def value_at(coefficient: Coefficient, gamma: Tensor) -> Tensor:
    """Return a coefficient at γ (…), float64.

    >>> value_at(2.0, torch.zeros(1)), value_at(lambda gamma: gamma + 1, torch.zeros(1))
    (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    return coefficient(gamma).double() if callable(coefficient) else torch.full_like(gamma.double(), coefficient)


# The usual outputs: ε, x, v = α ε − σ x, and a flow's velocity ε − x.
NOISE, DATA = Output(0.0, 1.0), Output(1.0, 0.0)
V = Output(lambda gamma: -sigma(gamma), alpha)
VELOCITY = Output(-1.0, 1.0)


class VarianceOutput:
    """Second half of an output that is the variance of p(z_t|z_{t+1}) itself: diffusers' variance_type="learned".

    It is expressed as the fraction f of MATH (5): ln v = (1 − f) ln v_q + f ln σ²_{t|s}, with v_q the variance of q(z_t|z_{t+1}, x). At z_1,
    where the decoder is, v_q is that of q(z_1|z_2, x).
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def fraction(self, output: Tensor, gamma: Tensor) -> Tensor:
        """Return f (B, *dims). Raises DiffusionalError for a variance that is not positive."""
        if not bool((output > 0).all()):
            raise DiffusionalError(
                'expected positive variances from a network with variance_type="learned", whose outputs are the variances themselves, got '
                f'{float(output.min()):g}. If its outputs are fractions of the range (improved DDPM), load it with variance="learned_range"'
            )
        grid = self._schedule.grid().to(gamma.device)
        t = (gamma[:, None] - grid).abs().argmin(1)
        low = torch.where(t > 0, grid[(t - 1).clamp(min=0)], grid[0])
        high = torch.where(t > 0, grid[t], grid[1])
        # ln v_q = ln σ_s² + ln(1 − e^{γ_s − γ_t}), ln σ²_{t|s} = ln σ_t² + the same; at z_1 they are those of q(z_1|z_2, x), and ln σ_1².
        log_kept = torch.log(-torch.expm1(low - high))
        log_least = torch.nn.functional.logsigmoid(low) + log_kept
        log_most = torch.where(
            t > 0, torch.nn.functional.logsigmoid(high) + log_kept, torch.nn.functional.logsigmoid(grid[0])
        )
        value = output.double().log()
        return (value - align(log_least, value)) / align(log_most - log_least, value)


class Adapter(Denoiser):
    """A `Denoiser` of a network from elsewhere.

    Args:
        module: `module(c z, time)` or `module(c z, time, condition)`.
        output: what its output is of x and ε.
        time: from log-SNR (B,), float64, to the network's time input.
        scale: c as a function of γ, or a constant: the network reads c z.
        learns: None; "range" for C more output channels between the variances of the posterior and the transition, from −1 to 1; or a
            VarianceOutput, for the variances themselves.
        rule: what is done to x̂ before p is formed.

    Raises DiffusionalError for an output of the wrong shape.

    >>> flow = Adapter(lambda z, t: 0 * z, Output(-1.0, 1.0), lambda log_snr: torch.sigmoid(-log_snr / 2))   # ε − x
    >>> flow(torch.ones(1, 2), torch.zeros(1)).data
    tensor([[0.7071, 0.7071]])
    """

    def __init__(
        self,
        module: Callable[..., Tensor],
        output: Output,
        time: Callable[[Tensor], Tensor],
        scale: Coefficient = 1.0,
        learns: Literal["range"] | VarianceOutput | None = None,
        rule: Rule | None = None,
    ) -> None:
        kind = output.kind if rule is None else "data"
        super().__init__(module, kind, time=time, learns_variance=learns is not None)
        self.output, self.scale, self.learns, self.rule = output, scale, learns, rule

    @property
    def data_range(self) -> tuple[float, float] | None:
        """The range that the rule for x̂ leaves it; None without a rule."""
        return None if self.rule is None else self.rule.range

    def to_identity(self) -> dict[str, Any]:
        """Return what is done to x̂, which no tensor of the model records."""
        return {} if self.rule is None else {"rule": str(self.rule)}

    def forward(self, z: Batch, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        gamma = gamma.double().expand(z.shape[0])
        assert self.time is not None
        time, dtype = self.time(-gamma), network_dtype(self.module) or z.dtype
        seen = (z if self.scale == 1 else align(value_at(self.scale, gamma), z) * z).to(dtype)
        output = call(
            self.module, seen, time.to(dtype) if time.dtype.is_floating_point else time, condition=condition
        ).to(z.dtype)
        channels, learnt = z.shape[1], self.learns is not None
        expected = (len(z), 2 * channels if learnt else channels, *z.shape[2:])
        if tuple(output.shape) != expected:
            raise DiffusionalError(
                f"expected the network's output to have shape {expected} for z of shape {tuple(z.shape)}"
                f"{', the second half for the variance' if learnt else ''}, got {tuple(output.shape)}"
                + ("" if learnt else shape_hint(output, z))
            )
        own = output[:, :channels] if learnt else output
        prediction = Prediction(z, gamma, self.output.read(own, z, gamma), self.output.kind)
        if self.rule is not None:
            prediction = Prediction(z, gamma, self.rule(prediction.data), "data")
        if not learnt:
            return prediction
        second = output[:, channels:]
        if isinstance(self.learns, VarianceOutput):
            return replace(prediction, fraction=self.learns.fraction(second, gamma).to(z.dtype))
        return replace(prediction, fraction=0.5 * (second + 1))
