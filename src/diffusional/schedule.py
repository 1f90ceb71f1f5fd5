"""Noise schedules. A schedule *is* γ (MATH (4)): γ(u) = −ln SNR(u) = −ln(α²/σ²), strictly increasing in u ∈ [0, 1].

    α² = sigmoid(−γ),    σ² = sigmoid(γ),    u = 0 ↔ z_1,    u = 1 ↔ z_T.

With `steps=T` the latents z_1 … z_T sit on the grid u = (t − 1)/(T − 1); with `steps=None` time is continuous. VDM's
paper counts differently: its T steps are T + 1 latents here (its z_0 is our z_1).

Schedules made of betas have exact knots, γ_t = ln expm1(−Σ_{s≤t} ln(1 − β_s)), and a monotone cubic (Fritsch–Carlson)
between them. `learned` is VDM's monotone network; `learned_betas` has the rates themselves as parameters (Sohl-Dickstein et al.).
In continuous time the bound depends on γ's end points but not on its shape (MATH (10)), so that the shape can be trained to reduce
the variance of the loss (see `visit`). All numbers are float64 and stay so: `model.half()` and autocast do not affect a schedule,
since an SNR computed in float32 is wrong by up to 290 % at γ = −13.

References: Sohl-Dickstein et al. 2015, §2.4.1 (learned β); Ho, Jain & Abbeel 2020 (linear); Nichol & Dhariwal 2021 (cosine); Kingma
et al. 2021, App. H and I.2 (γ as the schedule, learned).
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError


def _checked(steps: int | None) -> int | None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 2):
        raise DiffusionalError(
            f"expected steps to be an integer of at least 2, or None for continuous time, got {steps!r}"
        )
    return steps


@dataclass
class Pull:
    """The factors (B,) by which a loss multiplies the gradient of a learned shape; the loss sets `factor` before it is differentiated.

    The factor is c_i = 2 L_i, where L_i is the draw of the loss at u_i: Σ_i c_i ∂L_i is the gradient of Σ_i L_i², and so of the
    variance of the loss, since its mean does not depend on the shape (Kingma et al. 2021, App. I.2). One backward pass gives the
    gradients of both the loss and its variance.
    """

    factor: Tensor = field(default_factory=lambda: torch.ones(()))


class Float64(nn.Module):
    """A module whose tensors move between devices but stay float64: `model.half()` and autocast do not affect them."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class Schedule(Float64):
    """γ(u) with its derivative. Subclasses define `gamma` and `dgamma`, both float64 and differentiable.

    `steps` is T, or None in continuous time.
    """

    zero_terminal_snr: bool = False
    """Whether z_T is pure noise, SNR_T = 0. γ_T, which would be ∞, is then γ_{T−1} + 40."""

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self.steps = _checked(steps)

    def gamma(self, u: Tensor) -> Tensor:
        """Return γ(u), u ∈ [0, 1] of any shape; float64."""
        raise TypeError(f"{type(self).__name__} must define gamma(u)")

    def dgamma(self, u: Tensor) -> Tensor:
        """Return γ'(u) = dγ/du > 0; float64."""
        raise TypeError(f"{type(self).__name__} must define dgamma(u)")

    def visit(self, u: Tensor, pull: Pull) -> tuple[Tensor, Tensor]:
        """Return γ(u) and γ'(u) at the u (B,) that a loss draws; `pull` multiplies the gradients of a learned shape."""
        del pull  # a schedule without parameters has no gradients
        return self.gamma(u), self.dgamma(u)

    def grid(self) -> Tensor:
        """Return γ_1 … γ_T (T,), float64, at u = (t − 1)/(T − 1).

        >>> log_snr_linear(-4.0, 4.0, steps=3).grid()
        tensor([-4.,  0.,  4.], dtype=torch.float64)
        """
        if self.steps is None:
            raise DiffusionalError(
                "expected a number of steps, got continuous time (steps=None): use regrid(steps=T) for a grid of T latents"
            )
        u = torch.arange(self.steps, dtype=torch.float64, device=self._device()) / (self.steps - 1)
        return self.gamma(u)

    def ends(self) -> Tensor:
        """Return (γ at u = 0, γ at u = 1) (2,), float64: γ_1 and γ_T."""
        return self.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64, device=self._device()))

    def spaced(self, steps: int) -> Tensor:
        """Return γ at `steps` latents, for a chain of another length than T.

        In continuous time, and for more than T latents, they are at even u. Otherwise they are the nearest ones of the T latents,
        since a network may have been trained at these only.

        >>> linear(steps=5).spaced(3).equal(linear(steps=5).grid()[[0, 2, 4]])
        True
        """
        return self.regrid(steps).grid() if self.steps is None or steps > self.steps else _some(self.grid(), steps)

    def inverse(self, gamma: Tensor) -> Tensor:
        """Return u with γ(u) = `gamma`, by bisection to float64 precision. Raises DiffusionalError outside [γ(0), γ(1)].

        >>> log_snr_linear(-4.0, 4.0).inverse(torch.tensor([2.0], dtype=torch.float64))
        tensor([0.7500], dtype=torch.float64)
        """
        gamma = torch.as_tensor(gamma, dtype=torch.float64, device=self._device()).detach()
        low, high = self.ends().detach().tolist()
        slack = 1e-9 * (high - low)
        if bool(((gamma < low - slack) | (gamma > high + slack)).any()):
            raise DiffusionalError(
                f"expected γ from {low:g} to {high:g}, the range of this schedule, got {float(gamma.min()):g} to {float(gamma.max()):g}"
            )
        lower, upper = torch.zeros_like(gamma), torch.ones_like(gamma)
        for _ in range(60):
            middle = 0.5 * (lower + upper)
            below = self.gamma(middle) < gamma
            lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
        return 0.5 * (lower + upper)

    def regrid(self, steps: int | None) -> "Schedule":
        """Return the same γ(u) with another number of latents, sharing this schedule's tensors.

        >>> log_snr_linear(-4.0, 4.0).regrid(5).grid().shape
        torch.Size([5])
        """
        other = copy.copy(self)  # a shallow copy: a learned γ is shared
        other.steps = _checked(steps)
        return other

    def _device(self) -> torch.device:
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        raise TypeError(f"{type(self).__name__} must define to_dict()")


class LogSNRLinear(Schedule):
    """γ(u) = γ_min + (γ_max − γ_min) u: the log-SNR is linear in u (Kingma et al. 2021)."""

    def __init__(self, gamma_min: float, gamma_max: float, steps: int | None = None) -> None:
        super().__init__(steps)
        _check_ends(gamma_min, gamma_max)
        self.gamma_min: Tensor
        self.gamma_max: Tensor
        self.register_buffer("gamma_min", torch.tensor(gamma_min, dtype=torch.float64))
        self.register_buffer("gamma_max", torch.tensor(gamma_max, dtype=torch.float64))

    def gamma(self, u: Tensor) -> Tensor:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * u.double()

    def dgamma(self, u: Tensor) -> Tensor:
        return (self.gamma_max - self.gamma_min).expand(u.shape)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "log_snr_linear",
            "gamma_min": float(self.gamma_min),
            "gamma_max": float(self.gamma_max),
            "steps": self.steps,
        }


class Learned(Schedule):
    """γ(u) = γ_min + (γ_max − γ_min) s(u), with a monotone network s from s(0) = 0 to s(1) = 1 (Kingma et al. 2021, App. H):

        s(u) = [m(u) − m(0)]/[m(1) − m(0)],    m(u) = |a| u + (1/n) Σ_j |c_j| tanh(½ (|w_j| (2u − 1) + b_j)).

    Initially it is close to a straight line. The positions of the units are spread over [0, 1], and their widths range from 1 to
    1/32 of it, so that these need not be learned (in the paper all units begin equal).
    """

    def __init__(
        self,
        gamma_min: float,
        gamma_max: float,
        steps: int | None = None,
        features: int = 1024,
        ends: Literal["fixed", "learned"] = "fixed",
    ) -> None:
        super().__init__(steps)
        _check_ends(gamma_min, gamma_max)
        if features < 1 or ends not in ("fixed", "learned"):
            raise DiffusionalError(
                f"expected features ≥ 1 and ends to be fixed or learned, got features={features} and ends={ends!r}"
            )
        self.ends_are: Literal["fixed", "learned"] = ends
        self.gamma_min: Tensor
        self.gamma_max: Tensor
        for name, value in (("gamma_min", gamma_min), ("gamma_max", gamma_max)):
            tensor = torch.tensor(value, dtype=torch.float64)
            if ends == "learned":
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        # Widths are not in the order of the positions: neighbours differ in width by half the range (a golden section).
        place = (torch.arange(features, dtype=torch.float64) + 0.5) / features
        width = 32.0 ** ((torch.arange(features, dtype=torch.float64) * 0.6180339887498949) % 1)
        self.slope = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.heights = nn.Parameter(torch.full((features,), 1e-2, dtype=torch.float64))
        self.widths = nn.Parameter(2 * width)
        self.biases = nn.Parameter(-2 * width * (2 * place - 1))

    def _angle(self, u: Tensor) -> Tensor:
        return 0.5 * (self.widths.abs() * (2 * u.unsqueeze(-1) - 1) + self.biases)

    def _monotone(self, u: Tensor) -> Tensor:
        return self.slope.abs() * u + (self.heights.abs() * torch.tanh(self._angle(u))).mean(-1)

    def _rise(self, u: Tensor) -> Tensor:
        angle = self._angle(u)
        # tanh' = 1/cosh² = 4 σ(2a) σ(−2a), which does not overflow for any angle.
        bump = 4 * torch.sigmoid(2 * angle) * torch.sigmoid(-2 * angle)
        return self.slope.abs() + (self.heights.abs() * self.widths.abs() * bump).mean(-1)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Return m(0), and m(1) − m(0)."""
        low, high = self._monotone(torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.slope.device))
        return low, high - low

    def shape(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return s(u) and s'(u)."""
        low, rise = self._whole()
        u = u.double()
        return (self._monotone(u) - low) / rise, self._rise(u) / rise

    def gamma(self, u: Tensor) -> Tensor:
        return self.gamma_min + self._span() * self.shape(u)[0]

    def dgamma(self, u: Tensor) -> Tensor:
        return self._span() * self.shape(u)[1]

    def visit(self, u: Tensor, pull: Pull) -> tuple[Tensor, Tensor]:
        parts = self.shape(u)
        for part in parts:
            if part.requires_grad:
                part.register_hook(lambda gradient: gradient * pull.factor.to(gradient))
        return self.gamma_min + self._span() * parts[0], self._span() * parts[1]

    def ends(self) -> Tensor:
        # γ_min + |γ_max − γ_min|, without rounding if they are in order.
        return torch.stack([self.gamma_min, torch.maximum(self.gamma_max, 2 * self.gamma_min - self.gamma_max)])

    def _span(self) -> Tensor:
        """Return |γ_max − γ_min|: if learned end points changed their order, costs would become negative."""
        return (self.gamma_max - self.gamma_min).abs()

    def to_dict(self) -> dict[str, Any]:
        state = {name: value.tolist() for name, value in self.state_dict().items()}
        return {"kind": "learned", "ends": self.ends_are, "state": state, "steps": self.steps}


class FromBetas(Schedule):
    """γ_t = ln expm1(−Σ_{s≤t} ln(1 − β_s)) at the knots (MATH (4)), with a monotone cubic between them.

    The last β may be 1: z_T is then pure noise, and `zero_terminal_snr` is True. The stored γ_T is γ_{T−1} + 40: SNR_T is e⁻⁴⁰ of
    SNR_{T−1}, which is nothing in float64, and all formulas stay finite.
    """

    def __init__(self, betas: Sequence[float] | np.ndarray | Tensor) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or len(betas) < 2:
            raise DiffusionalError(f"expected betas of shape (T,) with T ≥ 2, got shape {tuple(betas.shape)}")
        outside = ~((betas > 0) & (betas < 1))
        outside[-1] &= betas[-1] != 1
        if bool(outside.any()):
            t = int(outside.nonzero()[0]) + 1
            raise DiffusionalError(
                f"expected every beta strictly between 0 and 1 (the last may be 1), got β_{t} = {float(betas[t - 1]):g}"
            )
        super().__init__(len(betas))
        self.zero_terminal_snr = bool(betas[-1] == 1)
        knots = _knots(-torch.log1p(-betas))
        if self.zero_terminal_snr:
            knots[-1] = knots[-2] + _NOTHING
        cubic = PchipInterpolator(np.linspace(0.0, 1.0, len(betas)), knots.numpy())
        self.betas: Tensor
        self.knots: Tensor
        self.coefficients: Tensor
        self.register_buffer("betas", betas.clone())
        self.register_buffer("knots", knots)
        # (4, T−1), the highest power of (u − u_t) first.
        self.register_buffer("coefficients", torch.from_numpy(np.ascontiguousarray(cubic.c)))

    def _piece(self, u: Tensor) -> tuple[Tensor, Tensor]:
        pieces = len(self.knots) - 1
        scaled = u.double() * pieces
        piece = scaled.detach().floor().long().clamp(0, pieces - 1)
        return self.coefficients[:, piece], (scaled - piece) / pieces

    def gamma(self, u: Tensor) -> Tensor:
        c, h = self._piece(u)
        return ((c[0] * h + c[1]) * h + c[2]) * h + c[3]

    def dgamma(self, u: Tensor) -> Tensor:
        c, h = self._piece(u)
        return (3 * c[0] * h + 2 * c[1]) * h + c[2]

    def grid(self) -> Tensor:
        return self.knots if self.steps == len(self.knots) else super().grid()

    def spaced(self, steps: int) -> Tensor:
        return _some(self.knots, steps) if steps <= len(self.knots) else super().spaced(steps)

    def ends(self) -> Tensor:
        return self.knots[[0, -1]]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "from_betas", "betas": self.betas.tolist(), "steps": self.steps}


class LearnedBetas(Schedule):
    """β_1 is fixed and β_2 … β_T are learned: β_t = sigmoid(ℓ_t), with γ_t as for any betas (MATH (4)) and linear between them.

    (Sohl-Dickstein et al. 2015, §2.4.1: by gradient ascent on the bound with frozen noise. The fixed β_1 prevents overfitting.)
    The initial values are β_t = 1/(T − (t−1)(T−2)/(T−1)), from 1/T to 1/2, the baseline of their released code: each step erases
    the same part of the signal's variance.
    """

    def __init__(self, steps: int, beta_first: float) -> None:
        super().__init__(steps)
        if steps is None or steps < 3 or not 0 < beta_first < 1:
            raise DiffusionalError(
                f"expected steps ≥ 3 and beta_first strictly between 0 and 1, got steps={steps} and beta_first={beta_first}"
            )
        self.beta_first: Tensor
        self.register_buffer("beta_first", torch.tensor([beta_first], dtype=torch.float64))
        betas = 1 / torch.linspace(steps, 2, steps, dtype=torch.float64)[1:]
        self.logits = nn.Parameter(torch.logit(betas))

    @property
    def betas(self) -> Tensor:
        """β_1 … β_T (T,)."""
        return torch.cat([self.beta_first, torch.sigmoid(self.logits)])

    def _gammas(self) -> Tensor:
        # −ln(1 − β_t) = −ln sigmoid(−ℓ_t), without cancellation, and accurate where torch's softplus is not.
        lost = torch.cat([-torch.log1p(-self.beta_first), -logsigmoid(-self.logits)])
        return _knots(lost)

    def _piece(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = self._gammas()
        scaled = u.double() * (len(knots) - 1)
        piece = scaled.detach().floor().long().clamp(0, len(knots) - 2)
        return knots[piece], knots[piece + 1] - knots[piece], scaled - piece

    def gamma(self, u: Tensor) -> Tensor:
        start, rise, part = self._piece(u)
        return start + rise * part

    def dgamma(self, u: Tensor) -> Tensor:
        return self._piece(u)[1] * len(self.logits)

    def grid(self) -> Tensor:
        return self._gammas() if self.steps == len(self.logits) + 1 else super().grid()

    def spaced(self, steps: int) -> Tensor:
        return _some(self._gammas(), steps) if steps <= len(self.logits) + 1 else super().spaced(steps)

    def ends(self) -> Tensor:
        return self._gammas()[[0, -1]]

    def to_dict(self) -> dict[str, Any]:
        state = {name: value.tolist() for name, value in self.state_dict().items()}
        return {"kind": "learned_betas", "state": state, "steps": self.steps}


# γ_T − γ_{T−1} where SNR_T = 0: e^{−40} is below the rounding error of float64.
_NOTHING = 40.0


def _some(knots: Tensor, steps: int) -> Tensor:
    """Return `steps` of the knots, evenly spaced from the first to the last."""
    _checked(steps)
    return knots[torch.linspace(0, len(knots) - 1, steps, dtype=torch.float64).round().long()]


def _knots(lost: Tensor) -> Tensor:
    """Return γ_t = ln expm1(Σ_{s≤t} lost_s), lost = −ln(1 − β); expm1 overflows past 709, where ln expm1(y) = y to float64."""
    total = lost.cumsum(0)
    large = total > 30
    small = torch.log(torch.expm1(torch.where(large, 1.0, total)))
    return torch.where(large, total + torch.log1p(-torch.exp(-total)), small)


def _check_ends(gamma_min: float, gamma_max: float) -> None:
    if not (math.isfinite(gamma_min) and math.isfinite(gamma_max) and gamma_min < gamma_max):
        raise DiffusionalError(
            f"expected finite gamma_min < gamma_max, such as −10 and 10, got {gamma_min} and {gamma_max}"
        )


def learned(
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
    steps: int | None = None,
    features: int = 1024,
    ends: Literal["fixed", "learned"] = "fixed",
) -> Learned:
    """Return VDM's learned γ(u), a monotone network of `features` units; its end points are fixed or learned (Kingma et al. 2021).

    The defaults are the paper's initial values. Raises DiffusionalError unless gamma_min < gamma_max are finite.

    >>> learned(-13.3, 5.0).ends().tolist()
    [-13.3, 5.0]
    """
    return Learned(gamma_min, gamma_max, steps, features, ends)


def learned_betas(steps: int, beta_first: float = 1e-3) -> LearnedBetas:
    """Return a schedule with β_2 … β_T learned and β_1 fixed (Sohl-Dickstein et al. 2015). Raises DiffusionalError unless T ≥ 3 and 0 < β_1 < 1.

    >>> learned_betas(4, 0.001).betas.detach()
    tensor([0.0010, 0.3000, 0.3750, 0.5000], dtype=torch.float64)
    """
    return LearnedBetas(steps, beta_first)


def log_snr_linear(gamma_min: float = -10.0, gamma_max: float = 10.0, steps: int | None = None) -> LogSNRLinear:
    """Return the schedule γ(u) = γ_min + (γ_max − γ_min) u; in continuous time unless `steps` is given.

    Raises DiffusionalError unless gamma_min < gamma_max are finite.

    >>> log_snr_linear(-10.0, 10.0).gamma(torch.tensor(0.5))
    tensor(0., dtype=torch.float64)
    """
    return LogSNRLinear(gamma_min, gamma_max, steps)


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, rescale: bool = False) -> FromBetas:
    """Return DDPM's schedule: β_t linear from beta_start to beta_end (Ho, Jain & Abbeel 2020, §4).

    `rescale=True` multiplies both ends by 1000/T, as in OpenAI's code. Any β ≥ 1 raises DiffusionalError.

    >>> float(linear(steps=1000).grid()[0])               # ln expm1(−ln(1 − 1e-4)) = ln(1e-4 / (1 − 1e-4))
    -9.2102...
    """
    if not isinstance(steps, int) or steps < 2:
        raise DiffusionalError(f"expected steps to be an integer of at least 2, got {steps!r}")
    factor = 1000 / steps if rescale else 1.0
    if beta_end * factor == 1:
        raise DiffusionalError(
            f"expected every beta strictly between 0 and 1, got β_{steps} = 1; use from_betas for a last level of pure noise"
        )
    return FromBetas(torch.linspace(beta_start * factor, beta_end * factor, steps, dtype=torch.float64))


def cosine(steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> FromBetas:
    """Return improved DDPM's schedule: β_t = min(1 − f(t)/f(t−1), beta_max), f(t) = cos²(π/2 · (t/T + s)/(1 + s)), s = offset.

    (Nichol & Dhariwal 2021, eq. 17.) It is computed as β_t = 1 − f(t)/f(t−1) = sin(b − a) sin(a + b)/cos²(a), with a, b the
    angles of t−1 and t, which avoids cancellation for large T.

    >>> round(float(cosine(steps=1000).betas[0]), 7)
    4.13e-05
    """
    if not isinstance(steps, int) or steps < 2:
        raise DiffusionalError(f"expected steps to be an integer of at least 2, got {steps!r}")
    t = torch.arange(steps, dtype=torch.float64)
    a = 0.5 * math.pi * (t / steps + offset) / (1 + offset)
    b = 0.5 * math.pi * ((t + 1) / steps + offset) / (1 + offset)
    beta = torch.sin(b - a) * torch.sin(a + b) / torch.cos(a) ** 2
    return FromBetas(beta.clamp(max=beta_max))


def from_betas(betas: Sequence[float] | np.ndarray | Tensor) -> FromBetas:
    """Return a schedule of any betas β_1 … β_T, each strictly between 0 and 1 (MATH (1)); the last may be 1 (MATH (24)).

    >>> from_betas([0.1, 0.2, 0.3]).steps
    3
    """
    return FromBetas(betas)


def from_dict(record: dict[str, Any]) -> Schedule:
    """Return the schedule that `to_dict` described.

    >>> from_dict(linear(steps=10).to_dict()).grid().equal(linear(steps=10).grid())
    True
    """
    record = dict(record)
    kind, steps = record.pop("kind", None), record.pop("steps", None)
    if kind == "log_snr_linear":
        return LogSNRLinear(record["gamma_min"], record["gamma_max"], steps)
    if kind == "from_betas":
        return FromBetas(record["betas"]).regrid(steps)
    if kind in ("learned", "learned_betas"):
        state = {name: torch.tensor(value, dtype=torch.float64) for name, value in record["state"].items()}
        if kind == "learned":
            # The ends are loaded from the state: learned ones may have changed their order.
            made: Schedule = Learned(-1.0, 1.0, steps, len(state["heights"]), record["ends"])
        else:
            made = LearnedBetas(len(state["logits"]) + 1, float(state["beta_first"]))
        made.load_state_dict(state)
        return made.regrid(steps)
    raise DiffusionalError(
        f"expected the kind of a schedule to be log_snr_linear, from_betas, learned or learned_betas, got {kind!r}"
    )
