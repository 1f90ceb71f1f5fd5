"""Faults of ln p(x) by the probability flow: steps that a batch shares, and a single trace probe without its error.

    dz/dγ = ½ α σ v̂(z, γ),   ln p(z_1) = ln N(z_T; 0, I) + ∫ tr ∂[½ α σ v̂]/∂z dγ

from γ_1 to γ_T, for one z_1 of every image. Sizes are of −ln p(z_1), bits/dim.
"""

import math
from typing import Any

import numpy as np
import torch
from record import LN2, Value, case, mean
from scipy.integrate import solve_ivp
from torch import Tensor
from trained import images

import diffusional as df

NODES = 41


class Flow:
    """The right-hand side of the flow of a network that predicts the noise."""

    def __init__(self, model: df.DiffusionModel) -> None:
        self.module = model.denoiser.module
        self.ends = model.end_gammas().double()

    def velocity(self, z: Tensor, gamma: float) -> Tensor:
        """Return ½ α σ v̂ (B, …) at one γ."""
        g = torch.tensor(gamma, dtype=torch.float64)
        a, s = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        noise = self.module(z.float(), torch.full((len(z),), -gamma))
        return (0.5 * a * s * (noise - s * z) / a).to(z)

    def with_trace(self, z: Tensor, gamma: float, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and probeᵀ J probe (B,)."""
        z = z.detach().requires_grad_(True)
        velocity = self.velocity(z, gamma)
        (pulled,) = torch.autograd.grad((velocity * probe).sum(), z)
        return velocity.detach(), (pulled * probe).flatten(1).sum(1)

    def start(self, x: Tensor, seed: int) -> Tensor:
        """Return z_1 of every image."""
        a, s = torch.sigmoid(-self.ends[0]).sqrt(), torch.sigmoid(self.ends[0]).sqrt()
        return (a * x.double() + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).float()

    def solved(self, z: Tensor, probe: Tensor, tolerance: float) -> tuple[Tensor, int]:
        """Return −ln p(z_1) (B,) by RK45 with one step size for all items, and the number of evaluations."""
        shape, n = z.shape, len(z)

        def right(gamma: float, state: np.ndarray) -> np.ndarray:
            now = torch.from_numpy(state[:-n].reshape(shape)).float()
            velocity, trace = self.with_trace(now, gamma, probe)
            return np.concatenate([velocity.flatten().double().numpy(), trace.double().numpy()])

        begin = np.concatenate([z.flatten().double().numpy(), np.zeros(n)])
        found = solve_ivp(right, tuple(self.ends.tolist()), begin, rtol=tolerance, atol=tolerance, method="RK45")
        last = torch.from_numpy(found.y[:-n, -1].reshape(n, -1))
        normal = -0.5 * (last.square() + math.log(2 * math.pi)).sum(1)
        return -(normal + torch.from_numpy(found.y[-n:, -1])), found.nfev

    @torch.no_grad()
    def trajectory(self, z: Tensor) -> tuple[list[Tensor], list[float]]:
        """Return the states at NODES values of γ, by RK4."""
        gammas = torch.linspace(float(self.ends[0]), float(self.ends[1]), NODES, dtype=torch.float64).tolist()
        states, h = [z.double()], gammas[1] - gammas[0]
        for gamma in gammas[:-1]:
            now = states[-1]
            k1 = self.velocity(now, gamma)
            k2 = self.velocity(now + h / 2 * k1, gamma + h / 2)
            k3 = self.velocity(now + h / 2 * k2, gamma + h / 2)
            k4 = self.velocity(now + h * k3, gamma + h)
            states.append(now + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        return states, gammas


def rademacher(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """Return ±1 at random."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def shared_steps(name: str, flow: Flow, x: Tensor, tolerance: float) -> dict[str, Any]:
    """Return by how much an image's number depends on the images that share its steps."""
    per, n = 1 / (x[0].numel() * LN2), len(x) // 3
    z, probe = flow.start(x, 0), rademacher(x.shape, 1)
    alone = torch.cat([flow.solved(z[i : i + 1], probe[i : i + 1], tolerance)[0] for i in range(n)])
    # The first third, with the second third as company and with the last.
    apart, evaluations = [], 0
    for company in (torch.arange(n, 2 * n), torch.arange(2 * n, 3 * n)):
        rows = torch.cat([torch.arange(n), company])
        together, evaluations = flow.solved(z[rows], probe[rows], tolerance)
        apart.append((together[:n] - alone) * per)
    first, second = apart

    def rms(difference: Tensor) -> Value:
        square = mean(difference.square())
        return Value(square.value**0.5, square.error / (2 * square.value**0.5))

    return case(
        "shared-steps", name, f"tolerance {tolerance:g}", rms(first), rms(second),
        "with other images in the batch; both are root mean squares", relative=0.5,
        largest=float(first.abs().max()), evaluations=evaluations, alone=mean(alone, per),
    )  # fmt: skip


def one_probe(name: str, flow: Flow, x: Tensor, probes: int, exact_items: int) -> dict[str, Any]:
    """Return the standard deviation of an image's number over the trace's probe, from repeats and from the whole Jacobian."""
    d, per = x[0].numel(), 1 / (x[0].numel() * LN2)
    states, gammas = flow.trajectory(flow.start(x, 0))
    weight = np.full(NODES, gammas[1] - gammas[0])
    weight[[0, -1]] /= 2
    draws = torch.zeros(probes, len(x), dtype=torch.float64)
    for p in range(probes):
        probe = rademacher(x.shape, 100 + p)
        for w, gamma, state in zip(weight, gammas, states, strict=True):
            draws[p] += w * flow.with_trace(state.float(), gamma, probe)[1].double()
    spread = draws.std(0) * per
    basis = torch.eye(d).reshape(d, *x.shape[1:])
    predicted = []
    for i in range(exact_items):
        jacobian = torch.zeros(d, d, dtype=torch.float64)
        for w, gamma, state in zip(weight, gammas, states, strict=True):
            z = state[i : i + 1].float().expand(d, *x.shape[1:]).detach().requires_grad_(True)
            (rows,) = torch.autograd.grad((flow.velocity(z, gamma) * basis).sum(), z)
            jacobian += w * rows.reshape(d, d).double()
        symmetric = (jacobian + jacobian.T) / 2
        symmetric.fill_diagonal_(0)
        predicted.append((2 * symmetric.square().sum()).sqrt() * per)
    compared = mean(spread[:exact_items]) if exact_items > 1 else Value(float(spread[0]))
    # The error of a standard deviation from `probes` draws of each of the items that are compared.
    compared = Value(compared.value, compared.value / math.sqrt(2 * (probes - 1) * exact_items))
    return case(
        "one-probe", name, "", compared, Value(float(torch.stack(predicted).mean())),
        "√2 times the norm of the Jacobian's symmetric part off the diagonal, the same images",
        all_items=mean(spread), items=exact_items,
    )  # fmt: skip


def run(name: str, mnist: str, model: df.DiffusionModel, quick: bool = False) -> list[dict[str, Any]]:
    """Return the cases of both faults on a data set."""
    x, flow = images(name, mnist)[0], Flow(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    items, probes, exact = (24, 20, 4) if name == "digits" else (12, 20, 1)
    tolerances = (1e-3, 1e-5)
    if quick:
        items, probes, exact, tolerances = 6, 4, 1, (1e-2,)
    return [
        *(shared_steps(name, flow, x[:items], tolerance) for tolerance in tolerances),
        one_probe(name, flow, x[: 16 if name == "digits" and not quick else 4], probes, exact),
    ]
