"""What a plan knows without draws stays right for a γ(u) with steps and corners, as a learned one may have."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from battery import F64, bent, close, generator, plain_alpha, plain_sigma
from diffusional import Continuous, DiffusionModel, GaussianDiffusion, evaluate, exact, likelihood, schedule
from diffusional.evaluation.visits import quadrature
from diffusional.evaluation.wiener import Wiener

LAMBDA = torch.tensor([0.5, 1.7], dtype=F64)
WORLD = exact.Gaussian(torch.zeros(2, dtype=F64), torch.diag(LAMBDA))


def _steps() -> schedule.Learned:
    """Six steps, each within a thousandth of [0, 1], and little between them."""
    made = schedule.learned(-6.0, 5.0, features=6)
    place = torch.tensor([0.07, 0.21, 0.43, 0.58, 0.77, 0.93], dtype=F64)
    with torch.no_grad():
        made.widths.fill_(600.0)
        made.biases.copy_(-600 * (2 * place - 1))
        made.heights.fill_(3.0)
    return made


SHAPES: dict[str, Callable[[], schedule.Schedule]] = {
    "straight": lambda: schedule.log_snr_linear(-6.0, 5.0),
    "learned": lambda: bent(schedule.learned(-6.0, 5.0, features=24)),
    "steps": _steps,
    "corners": lambda: bent(schedule.learned_betas(8, 0.01), by=1.5).regrid(None),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def _model(shape: str) -> DiffusionModel:
    p = likelihood.GaussianLikelihood(Continuous((2,)), assisted=False)
    return DiffusionModel(GaussianDiffusion(SHAPES[shape]()), WORLD.denoiser("noise"), p)


def _costs(x: Tensor, low: float, high: float) -> Tensor:
    """½ ∫ SNR E ‖x − x̂‖² dγ (B,) of the linear denoiser, by the trapezoid rule."""
    gamma = torch.linspace(low, high, 20_001, dtype=F64)
    a, s = plain_alpha(gamma)[:, None], plain_sigma(gamma)[:, None]
    gain = a * LAMBDA / (a**2 * LAMBDA + s**2)
    error = (x**2) @ ((1 - a * gain) ** 2).T + ((gain * s) ** 2).sum(1)
    return 0.5 * torch.trapezoid(torch.exp(-gamma) * error, gamma)


@every_shape
def test_the_known_part_is_the_integral_whatever_the_shape(shape: str) -> None:
    """Cell by cell, ½ γ'(u) SNR E ‖x − x̂‖² du of the control, to 1e-6."""
    model, x = _model(shape), WORLD.sample(5, generator(0))
    edges = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.9, 1.0], dtype=F64)
    gamma, weight, offset = quadrature(model, edges)
    control = Wiener(torch.zeros(2, dtype=F64), LAMBDA, torch.eye(2, dtype=F64))
    at = model.process.schedule.gamma(edges).detach().tolist()
    got = control.totals(x, gamma, weight)[:, :, 0] + offset
    want = torch.stack([_costs(x, low, high) for low, high in pairwise(at)], 1)
    close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", ["learned", "corners"])
def test_an_evaluation_by_plan_is_the_closed_form(shape: str) -> None:
    model, x = _model(shape), WORLD.sample(40, generator(0))
    low, high = model.process.schedule.ends().tolist()
    result = evaluate(model, x, target_error=0.01, unit="nats")
    kl = result.terms["kl"]
    assert kl.error < 0.011
    assert abs(kl.value - float(_costs(x, low, high).mean())) < 3.5 * kl.error
    # And z_1 alone decodes: N(x; z_1/α_1, e^γ_1), whose cost is known too.
    decoder = 2 * 0.5 * (math.log(2 * math.pi) + low + 1)
    reconstruction = result.terms["reconstruction"]
    assert abs(reconstruction.value - decoder) < 3.5 * reconstruction.error + 1e-9
