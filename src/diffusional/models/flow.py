"""The probability flow of a diffusion model, MATH (31): the ordinary differential equation whose density needs no bound.

    dz/dγ = f(z, γ) = ½ α σ v̂(z, γ),      ln p_ODE(z_1) = ln p(z_T) + ∫_{γ_1}^{γ_T} tr ∂f/∂z dγ.

p_ODE is another model with the same network: for an optimal denoiser both are the law of the data, otherwise they differ.

`integrated` is the fourth-order Runge–Kutta method on a grid of equal steps in γ. Only the trace needs derivatives of the network, and it
does not enter f. It is therefore evaluated at both ends and in the middle of every step, by Simpson's rule, with the middle from the cubic
through the values and slopes at the ends: an error of h⁴ like that of z, for two traces a step where the stages of the method take four.
Positions are float64; the network gets its own type.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.conditions import Condition
from diffusional.forward import alpha, sigma
from diffusional.models.denoiser import Denoiser
from diffusional.models.time import AtLevels
from diffusional.shapes import Batch, align


@dataclass(frozen=True)
class ProbabilityFlow:
    """dz/dγ = ½ α σ v̂(z, γ) from γ_1 = `first` to γ_T = `last`.

    >>> flow = ProbabilityFlow(Denoiser(lambda z, log_snr: 0 * z, "v"), -5.0, 5.0)      # v̂ = 0: x ~ N(0, I)
    >>> z, trace = integrated(flow, torch.ones(1, 2), 4, torch.eye(2)[:, None])
    >>> z, trace.sum(0)
    (tensor([[1., 1.]], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """

    denoiser: Denoiser
    first: float
    last: float

    def velocity(self, z: Batch, gamma: Tensor, condition: Condition | None = None) -> Batch:
        """Return f(z, γ) (B, *dims) for z (B, *dims) at γ (B,) or ()."""
        # γ is expanded here, since a network may read a time for every item.
        gamma = gamma.double().expand(len(z)).to(z.device)
        v = self.denoiser(z, gamma, condition).v
        return align(0.5 * alpha(gamma) * sigma(gamma), z) * v

    def slopes(
        self, z: Batch, gamma: Tensor, directions: Tensor, condition: Condition | None = None
    ) -> tuple[Batch, Tensor]:
        """Return f(z, γ) (B, *dims) and eᵀ (∂f/∂z) e (P, B) for `directions` e (P, B, *dims), or (P, 1, *dims) for the same in all items.

        With the D unit vectors the sum over P is the trace; with Rademacher vectors each row estimates it. A direction takes a product with
        the transposed Jacobian.
        """
        with torch.inference_mode(False), torch.enable_grad():
            # A copy: a tensor that was made in inference mode takes no derivative.
            z = z.detach().clone().requires_grad_()
            f = self.velocity(z, gamma, condition)
            out = z.new_zeros(len(directions), len(z))
            for i, e in enumerate(directions):
                e = e.to(f).expand_as(f)
                if not f.requires_grad:
                    break
                (product,) = torch.autograd.grad(f, z, e, retain_graph=i + 1 < len(directions))
                out[i] = (product * e).flatten(1).sum(1)
        return f.detach(), out.detach()


def integrated(
    flow: ProbabilityFlow, z: Batch, steps: int, directions: Tensor, condition: Condition | None = None
) -> tuple[Tensor, Tensor]:
    """Return z_T (B, *dims) and the integrals of eᵀ (∂f/∂z) e (P, B), float64, along the path that starts at z_1 = `z`, in `steps` equal steps.

    The error of both falls with the fourth power of the step. It takes 5 `steps` + 1 network evaluations, and derivatives in 2 `steps` + 1
    of them.
    """
    z = z.double()
    low, width = flow.first, flow.last - flow.first
    h = width / steps

    def at(place: float) -> Tensor:
        return torch.tensor(low + width * (place / steps), dtype=torch.float64, device=z.device)

    # Products and sums are separate operations: fused ones round differently in the last rows of a batch.
    f, trace = flow.slopes(z, at(0.0), directions, condition)
    total = torch.zeros_like(trace)
    for i in range(steps):
        half, end = at(i + 0.5), at(i + 1.0)
        with torch.no_grad():
            second = flow.velocity(z + f * (0.5 * h), half, condition)
            third = flow.velocity(z + second * (0.5 * h), half, condition)
            fourth = flow.velocity(z + third * h, end, condition)
        after = z + (f + second * 2 + third * 2 + fourth) * (h / 6)
        f_after, trace_after = flow.slopes(after, end, directions, condition)
        middle = (z + after) * 0.5 + (f - f_after) * (h / 8)
        _, trace_middle = flow.slopes(middle, half, directions, condition)
        total = total + (trace + trace_middle * 4 + trace_after) * (h / 6)
        z, f, trace = after, f_after, trace_after
    return z, total


def trained_times(denoiser: Denoiser) -> list[AtLevels]:
    """Return the time inputs of a denoiser's networks that are defined at trained levels only; a network without one reads any γ.

    >>> trained_times(Denoiser(lambda z, log_snr: 0 * z))
    []
    """
    return [module for module in denoiser.modules() if isinstance(module, AtLevels)]
