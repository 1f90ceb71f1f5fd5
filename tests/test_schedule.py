"""Schedules against mpmath, scipy, autograd, the papers' formulas and diffusers."""

import json
import math
import subprocess
import sys
from functools import cache

import diffusers
import mpmath
import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import nn

from battery import F64, SCHEDULES, close, environment, every_schedule, float64, generator
from diffusional import schedule
from diffusional.errors import DiffusionalError

OF_BETAS = [name for name, make in SCHEDULES.items() if isinstance(make(), schedule.FromBetas)]


@cache
def _made(name: str) -> schedule.Schedule:
    return SCHEDULES[name]()


def _u(n: int = 400, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, dtype=F64, generator=generator(seed))


@cache
def _exact_gamma(betas: tuple[float, ...]) -> np.ndarray:
    """ln[(1 − ᾱ_t)/ᾱ_t], ᾱ_t = Π (1 − β_s), to 40 digits."""
    out, product = [], mpmath.mpf(1)
    with mpmath.workdps(40):
        for beta in betas:
            product *= 1 - mpmath.mpf(beta)
            out.append(float(mpmath.log((1 - product) / product)))
    return np.array(out)


@pytest.mark.parametrize("name", OF_BETAS)
def test_knots_against_mpmath(name: str) -> None:
    made = _made(name)
    exact = _exact_gamma(tuple(made.betas.tolist()))
    # An absolute error of γ is the relative error of the SNR.
    close(made.grid(), exact, rtol=0, atol=1e-12)
    close(made.ends(), exact[[0, -1]], rtol=0, atol=1e-12)
    assert made.steps == len(exact)


def test_knots_of_extreme_betas() -> None:
    betas = (1e-15, 1e-9, 0.3, 1 - 1e-12, 1 - 1e-15, *[0.9999999] * 40)
    close(schedule.from_betas(betas).grid(), _exact_gamma(betas), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 1000, 10_000])
def test_cosine_against_the_paper(steps: int) -> None:
    """Nichol & Dhariwal 2021, eq. 17: β_t = min(1 − ᾱ(t)/ᾱ(t−1), 0.999), ᾱ(t) ∝ cos²(π/2 · (t/T + s)/(1 + s))."""
    made = schedule.cosine(steps=steps)
    with mpmath.workdps(40):
        s = mpmath.mpf("0.008")
        f = [mpmath.cos(mpmath.pi / 2 * (mpmath.mpf(t) / steps + s) / (1 + s)) ** 2 for t in range(steps + 1)]
        betas = [min(1 - f[t] / f[t - 1], mpmath.mpf("0.999")) for t in range(1, steps + 1)]
        product, gamma = mpmath.mpf(1), []
        for beta in betas:
            product *= 1 - beta
            gamma.append(float(mpmath.log((1 - product) / product)))
    close(made.betas, np.array([float(b) for b in betas]), rtol=1e-11, atol=0)
    close(made.grid(), np.array(gamma), rtol=0, atol=1e-11)


def test_linear_is_linear_in_beta_as_given() -> None:
    close(schedule.linear(steps=7, beta_start=0.1, beta_end=0.4).betas, np.linspace(0.1, 0.4, 7))
    close(schedule.linear(steps=10_000).betas[[0, -1]], [1e-4, 0.02])
    close(schedule.linear(steps=500, rescale=True).betas, np.linspace(2e-4, 0.04, 500))
    close(schedule.cosine(steps=10, offset=0.1, beta_max=0.5).betas[-1], 0.5)


@pytest.mark.parametrize(("made", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_against_diffusers(made: str, theirs: str) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    ours = _made(made)
    close(ours.betas, scheduler.betas.double(), rtol=1e-5, atol=1e-9)
    close(torch.sigmoid(-ours.grid()), scheduler.alphas_cumprod.double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_gamma_of_float32_u_is_that_of_the_same_numbers(kind: str) -> None:
    """u of a short type is taken as it is, and all that follows is float64."""
    made, u = SCHEDULES[kind](), torch.linspace(0, 1, 101)
    for function in (made.gamma, made.dgamma):
        got = function(u)
        assert got.dtype == torch.float64
        assert torch.equal(got, function(u.double()))


def test_float32_loses_what_gamma_keeps() -> None:
    """MATH (4): α² formed in float32 gives a wrong SNR; ours is right to 1e-12."""
    linear = _made("linear")
    exact = np.exp(-_exact_gamma(tuple(linear.betas.tolist())))
    product = (1 - linear.betas.float()).cumprod(0)
    naive = (product / (1 - product)).double().numpy()
    assert np.abs(naive / exact - 1).max() > 1e-4
    assert np.abs((-linear.grid()).exp().numpy() / exact - 1).max() < 1e-12

    # The betas of a log-SNR that falls linearly from 13.3: β_t = σ²_{t|t−1}.
    gamma = schedule.log_snr_linear(-13.3, 5.0, steps=4000).grid()
    alpha2 = [1 / (1 + mpmath.exp(mpmath.mpf(g))) for g in gamma.tolist()]
    betas = [float(1 - after / before) for before, after in zip([1, *alpha2], alpha2, strict=False)]
    product = (1 - torch.tensor(betas)).cumprod(0)
    assert float((product / (1 - product) * gamma.exp() - 1).abs().max()) > 2.5  # MATH: by up to 290 %
    close(schedule.from_betas(float64(betas)).grid(), gamma, rtol=0, atol=1e-8)


@every_schedule
def test_increasing_between_knots_too(name: str) -> None:
    made = _made(name)
    pieces = made.steps - 1
    u = torch.arange(5 * pieces + 1, dtype=F64) / (5 * pieces)
    assert bool((made.gamma(u).diff() > 0).all())
    assert bool((made.grid().diff() > 0).all())
    assert bool((made.dgamma(u[1:-1]) > 0).all())


@every_schedule
def test_gamma_interpolates_the_grid(name: str) -> None:
    made = _made(name)
    u = np.arange(made.steps) / (made.steps - 1)
    close(made.gamma(float64(u)), made.grid(), rtol=1e-12, atol=1e-12)
    if name in OF_BETAS:
        cubic = PchipInterpolator(u, _exact_gamma(tuple(made.betas.tolist())))
        close(made.gamma(_u()), cubic(_u().numpy()), rtol=0, atol=1e-11)
        close(made.dgamma(_u()), cubic.derivative()(_u().numpy()), rtol=1e-7)
    close(made.ends(), made.grid()[[0, -1]])


def test_log_snr_linear() -> None:
    made = schedule.log_snr_linear(-13.3, 5.0, steps=4)
    close(made.grid(), np.linspace(-13.3, 5, 4))
    close(made.gamma(_u()), -13.3 + 18.3 * _u())
    close(made.dgamma(_u()), torch.full((400,), 18.3, dtype=F64))
    assert schedule.log_snr_linear().steps is None
    close(schedule.log_snr_linear().ends(), [-10.0, 10.0])


@every_schedule
def test_dgamma_against_autograd_and_differences(name: str) -> None:
    made = _made(name)
    u = _u().requires_grad_()
    (gradient,) = torch.autograd.grad(made.gamma(u).sum(), u)
    close(made.dgamma(u), gradient, rtol=1e-12)
    # Central differences inside a piece.
    pieces = made.steps - 1
    middle = (torch.arange(0, pieces, max(1, pieces // 50), dtype=F64) + 0.5) / pieces
    h = 1e-3 / pieces
    slope = (made.gamma(middle + h) - made.gamma(middle - h)) / (2 * h)
    close(made.dgamma(middle), slope, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(made.gamma, middle[:5].clone().requires_grad_(), eps=h, rtol=1e-4, atol=1e-4)


@every_schedule
def test_inverse_round_trip(name: str) -> None:
    made = _made(name)
    close(made.inverse(made.gamma(_u())), _u(), rtol=1e-9, atol=1e-9)
    close(made.inverse(made.ends()), [0.0, 1.0], rtol=0, atol=1e-9)
    for off in (-1e-3, 1e-3):
        with pytest.raises(DiffusionalError, match="range of this schedule"):
            made.inverse(made.ends() + off)


@every_schedule
def test_regrid_is_the_same_gamma(name: str) -> None:
    made = _made(name)
    other = made.regrid(6)
    assert (other.steps, made.steps) == (6, SCHEDULES[name]().steps)
    close(other.grid(), made.gamma(torch.arange(6, dtype=F64) / 5), rtol=1e-12, atol=1e-12)
    assert len(other.grid()) == 6
    assert other.ends().equal(made.ends())
    assert [b.data_ptr() for b in other.buffers()] == [b.data_ptr() for b in made.buffers()]
    assert made.regrid(None).regrid(made.steps).grid().equal(made.grid())
    with pytest.raises(DiffusionalError, match="regrid"):
        made.regrid(None).grid()
    for steps in (1, 0, True):
        with pytest.raises(DiffusionalError):
            made.regrid(steps)


@every_schedule
def test_stays_float64(name: str) -> None:
    made, u = SCHEDULES[name](), _u(8)
    gamma, dgamma, grid = made.gamma(u), made.dgamma(u), made.grid()
    model = nn.ModuleDict({"schedule": made, "net": nn.Linear(1, 1)})
    for cast in (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float32), nn.Module.float):
        cast(model)
        assert model["net"].weight.dtype != F64
        assert made.gamma(u).equal(gamma)
        assert made.dgamma(u).equal(dgamma)
        assert made.grid().equal(grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert made.gamma(u).equal(gamma)
        assert made.dgamma(u).equal(dgamma)
    assert made.gamma(u.float()).dtype == made.dgamma(u.float()).dtype == F64


def test_a_learned_gamma_stays_float64_and_is_shared_by_regrid() -> None:
    class Learned(schedule.LogSNRLinear):
        def __init__(self) -> None:
            super().__init__(-5.0, 5.0, 4)
            self.bend = nn.Parameter(torch.zeros((), dtype=F64))

        def gamma(self, u: torch.Tensor) -> torch.Tensor:
            return super().gamma(u) + self.bend

    made = Learned().half()
    assert made.bend.dtype == F64
    made.regrid(7).grid().sum().backward()
    close(made.bend.grad, 7.0)


@every_schedule
def test_dict_and_state_round_trip(name: str) -> None:
    made = _made(name)
    back = schedule.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back.steps == made.steps
    assert back.grid().equal(made.grid())
    regridded = schedule.from_dict(made.regrid(9).to_dict())
    assert regridded.grid().equal(made.regrid(9).grid())
    assert schedule.from_dict(made.regrid(None).to_dict()).steps is None
    back.load_state_dict(made.state_dict())
    assert all(tensor.dtype == F64 for tensor in made.state_dict().values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule.from_betas([0.1, 0.0]), "β_2 = 0"),
        (lambda: schedule.from_betas([1.0, 0.5]), "β_1 = 1"),
        (lambda: schedule.from_betas([0.1, 0.2, -0.1]), "β_3"),
        (lambda: schedule.from_betas([0.1, math.nan]), "β_2"),
        (lambda: schedule.from_betas([0.1]), "T ≥ 2"),
        (lambda: schedule.from_betas(torch.full((2, 2), 0.1)), r"\(T,\)"),
        (lambda: schedule.linear(steps=20, rescale=True), "β_20 = 1"),
        (lambda: schedule.linear(steps=10, rescale=True), "β_"),
        (lambda: schedule.linear(steps=1), "steps .*got 1"),
        (lambda: schedule.linear(steps=True), "steps .*got True"),
        (lambda: schedule.cosine(steps=1), "steps .*got 1"),
        (lambda: schedule.log_snr_linear(-1.0, 1.0, steps=1), "steps .*got 1"),
        (lambda: schedule.log_snr_linear(-1.0, 1.0, steps=True), "steps .*got True"),
        (lambda: schedule.log_snr_linear(1.0, 1.0), "gamma_min"),
        (lambda: schedule.log_snr_linear(1.0, -1.0), "gamma_min"),
        (lambda: schedule.log_snr_linear(-math.inf, 1.0), "finite"),
        (lambda: schedule.from_dict({"kind": "sine"}), "sine"),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        make()


def test_steps_that_are_no_int_are_refused() -> None:
    """In a fresh process: under test, beartype would refuse them first."""
    script = """
from diffusional import schedule
from diffusional.errors import DiffusionalError
for make in (
    lambda: schedule.linear(steps=1000.0),
    lambda: schedule.cosine(steps=10.5),
    lambda: schedule.log_snr_linear(steps=3.0),
    lambda: schedule.linear(steps=3).regrid(4.0),
):
    try:
        make()
    except DiffusionalError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment())
    lines = done.stdout.splitlines()
    assert all("steps" in line for line in lines)
    assert [line.rpartition("got ")[2] for line in lines] == [str(steps) for steps in (1000.0, 10.5, 3.0, 4.0)]


def test_the_base_class_says_what_a_schedule_must_define() -> None:
    base = schedule.Schedule(3)
    for call in (lambda: base.gamma(_u()), lambda: base.dgamma(_u()), base.to_dict):
        with pytest.raises(TypeError, match="must define"):
            call()
