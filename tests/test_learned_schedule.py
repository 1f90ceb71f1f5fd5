"""Learned schedules against plain numpy, autograd and differences; and what a loss may do to their gradients."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from battery import F64, bent, close, float64, generator
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.schedule import Pull

KINDS = {
    "learned": lambda: bent(schedule.learned(-13.3, 5.0, steps=9, features=12)),
    "learned, with its ends": lambda: bent(schedule.learned(-9.0, 7.0, steps=9, features=12, ends="learned")),
    "learned_betas": lambda: bent(schedule.learned_betas(steps=9, beta_first=0.01)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def _u(n: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, dtype=F64, generator=generator(seed))


def _plain_shape(made: schedule.Learned, u: np.ndarray) -> np.ndarray:
    """s(u) of the docstring, unit by unit."""
    a, c, w, b = (p.detach().numpy() for p in (made.slope, made.heights, made.widths, made.biases))

    def m(u: np.ndarray) -> np.ndarray:
        total = abs(a) * u
        for j in range(len(c)):
            total = total + abs(c[j]) * np.tanh(0.5 * (abs(w[j]) * (2 * u - 1) + b[j])) / len(c)
        return total

    zero, one = np.zeros(1), np.ones(1)
    return (m(u) - m(zero)) / (m(one) - m(zero))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_the_network_as_written_out(seed: int, ends: str) -> None:
    made, u = bent(schedule.learned(-13.3, 5.0, features=12, ends=ends), seed, by=3.0), _u(seed=seed)  # type: ignore[arg-type]
    close(made.gamma(u).detach(), -13.3 + 18.3 * _plain_shape(made, u.numpy()), rtol=1e-12, atol=1e-12)
    assert float((made.gamma(u) + 13.3 - 18.3 * u).detach().abs().max()) > 1  # no straight line


@pytest.mark.parametrize("seed", range(4))
def test_any_weights_give_a_rising_curve_between_its_ends(seed: int) -> None:
    """Random weights of either sign, some of them large."""
    made, rng = schedule.learned(-13.3, 5.0, features=16), generator(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(10 * torch.randn(parameter.shape, generator=rng, dtype=F64))
        assert sum(int((parameter < 0).sum()) for parameter in made.parameters()) > 10
        u = torch.linspace(0, 1, 2001, dtype=F64)
        gamma = made.gamma(u)
        assert bool((gamma.diff() > 0).all())
        assert bool((made.dgamma(u) > 0).all())
        close(gamma[[0, -1]], [-13.3, 5.0], rtol=1e-14, atol=1e-13)
        assert made.ends().tolist() == [-13.3, 5.0]
        assert made.gamma(u[:0]).shape == (0,)


def test_a_learned_schedule_begins_next_to_a_straight_line() -> None:
    """As many units as there are by default, in all places and widths: within 1 % of the span."""
    made, u = schedule.learned(-13.3, 5.0), torch.linspace(0, 1, 201, dtype=F64)
    assert made.steps is None
    assert made.heights.shape == made.widths.shape == made.biases.shape == (1024,)
    line = -13.3 + 18.3 * u
    off = (made.gamma(u) - line).detach().abs()
    assert 0 < float(off.max()) < 0.183
    width, place = made.widths.detach() / 2, 0.5 - made.biases.detach() / (2 * made.widths.detach())
    assert float(width.min()) == pytest.approx(1, abs=0.01)
    assert float(width.max()) == pytest.approx(32, abs=0.5)
    close(place, (np.arange(1024) + 0.5) / 1024, rtol=1e-12)
    # Narrow and wide units everywhere: in each 32nd of [0, 1] there are some of either.
    for part in width.split(32):
        assert float(part.min()) < 1.5
        assert float(part.max()) > 20


@every_kind
def test_gradients_against_differences(kind: str) -> None:
    """γ, γ' and the grid, with respect to every parameter."""
    made, u = KINDS[kind](), _u(7)
    names = [name for name, _ in made.named_parameters()]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in made.parameters())

    def of(call: str):
        def f(*parameters: torch.Tensor) -> torch.Tensor:
            given = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(_Call(made, call), {f"made.{k}": v for k, v in given.items()}, (u,))

        return f

    for call in ("gamma", "dgamma", "grid", "ends"):
        if call == "ends" and kind == "learned":
            assert not made.ends().requires_grad
            continue
        assert torch.autograd.gradcheck(of(call), values, eps=1e-6, rtol=1e-5, atol=1e-6)


class _Call(nn.Module):
    def __init__(self, made: schedule.Schedule, call: str) -> None:
        super().__init__()
        self.made, self.call = made, call

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return getattr(self.made, self.call)(*((u,) if "gamma" in self.call else ()))


def test_a_steep_unit_has_a_finite_gradient() -> None:
    """tanh' = 1/cosh² overflows from angles of 355 on, and with it the gradient would be no number."""
    made = schedule.learned(-5.0, 5.0, features=3)
    with torch.no_grad():
        made.widths.fill_(2000.0)
        made.biases.zero_()
    made.dgamma(torch.tensor([0.0, 0.3, 1.0], dtype=F64)).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in made.parameters())  # type: ignore[arg-type]
    close(made.dgamma(torch.tensor([0.0], dtype=F64)).detach(), [10 / (1 + 0.02)], rtol=1e-12)


def test_learned_ends_are_two_parameters_more() -> None:
    fixed, free = (schedule.learned(-9.0, 7.0, features=5, ends=ends) for ends in ("fixed", "learned"))  # type: ignore[arg-type]
    assert set(dict(free.named_parameters())) - set(dict(fixed.named_parameters())) == {"gamma_min", "gamma_max"}
    assert set(dict(fixed.named_buffers())) == {"gamma_min", "gamma_max"}
    assert set(fixed.state_dict()) == set(free.state_dict())
    (free.ends() * float64([2.0, 3.0])).sum().backward()
    assert (float(free.gamma_min.grad), float(free.gamma_max.grad)) == (2.0, 3.0)  # type: ignore[arg-type]
    assert not fixed.gamma_min.requires_grad
    u = _u(1)
    s = free.shape(u)[0].detach()
    (low, high) = torch.autograd.grad(free.gamma(u).sum(), (free.gamma_min, free.gamma_max))
    close(torch.stack([low, high]), torch.cat([1 - s, s]), rtol=1e-12)


def _plain_betas(made: schedule.LearnedBetas) -> np.ndarray:
    return np.concatenate([made.beta_first.numpy(), 1 / (1 + np.exp(-made.logits.detach().numpy()))])


def test_learned_betas_as_written_out() -> None:
    made = bent(schedule.learned_betas(steps=9, beta_first=0.01))
    assert isinstance(made, schedule.LearnedBetas)
    betas = _plain_betas(made)
    bar = np.cumprod(1 - betas)
    knots = np.log((1 - bar) / bar)
    close(made.betas.detach(), betas, rtol=1e-14)
    close(made.grid().detach(), knots, rtol=1e-12)
    close(made.ends().detach(), knots[[0, -1]], rtol=1e-12)
    u = _u()
    close(made.gamma(u).detach(), np.interp(u.numpy(), np.arange(9) / 8, knots), rtol=1e-12)
    close(made.dgamma(u).detach(), np.diff(knots)[np.floor(8 * u.numpy()).astype(int)] * 8, rtol=1e-12)
    assert made.betas[0] == 0.01


def test_the_first_beta_has_no_gradient() -> None:
    made = schedule.learned_betas(steps=5, beta_first=0.01)
    assert [name for name, _ in made.named_parameters()] == ["logits"]
    assert made.logits.shape == (4,)
    # Of γ_1 none of the others has one either: it is β_1's own.
    (gradient,) = torch.autograd.grad(made.grid()[0], made.logits)
    assert gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(made.grid()[4], made.logits)
    assert bool((gradient > 0).all())
    assert not made.betas[:1].detach().requires_grad
    assert not made.beta_first.requires_grad


@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_learned_betas_begin_where_the_released_code_does(steps: int) -> None:
    """Sohl-Dickstein's: 1/linspace(T, 2, T); the first is our own."""
    made = schedule.learned_betas(steps, 1e-3)
    want = 1 / np.linspace(steps, 2.0, steps)
    want[0] = 1e-3
    close(made.betas.detach(), want, rtol=1e-12)
    assert float(made.betas[-1].detach()) == pytest.approx(0.5)


def test_learned_betas_of_extreme_logits_stay_finite() -> None:
    made = schedule.learned_betas(5, 1e-3)
    with torch.no_grad():
        made.logits.copy_(float64([-60.0, 40.0, 900.0, 3.0]))
    grid = made.grid()
    grid.sum().backward()
    assert bool(torch.isfinite(grid).all())
    assert bool(torch.isfinite(made.logits.grad).all())  # type: ignore[arg-type]
    # −ln(1 − β) = softplus: 40, 900 and 3.0486 in turn, which is γ where it is large.
    lost = np.logaddexp(0, [-60.0, 40.0, 900.0, 3.0])
    close(grid[2:].detach(), np.cumsum(lost)[1:] - np.log1p(-1e-3), rtol=1e-12)


@every_kind
def test_a_round_trip_keeps_what_was_learned(kind: str) -> None:
    made, u = KINDS[kind](), _u()
    back = schedule.from_dict(json.loads(json.dumps(made.to_dict())))
    assert type(back) is type(made)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in made.named_parameters()]
    assert back.gamma(u).equal(made.gamma(u))
    assert back.dgamma(u).equal(made.dgamma(u))
    free = schedule.from_dict(made.regrid(None).to_dict())
    assert free.steps is None
    assert free.gamma(u).equal(made.gamma(u))


def test_a_round_trip_of_ends_that_changed_places() -> None:
    made = schedule.learned(-13.0, 5.0, ends="learned")
    with torch.no_grad():
        made.gamma_min.fill_(1.0)
        made.gamma_max.fill_(-2.0)
    back = schedule.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back.ends().tolist() == [1.0, 4.0]
    assert back.gamma(_u()).equal(made.gamma(_u()))


@every_kind
def test_regrid_shares_the_parameters(kind: str) -> None:
    made = KINDS[kind]()
    other = made.regrid(4)
    assert [id(p) for p in other.parameters()] == [id(p) for p in made.parameters()]
    other.gamma(_u()).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    before = other.grid().detach().clone()
    with torch.no_grad():
        next(made.parameters()).mul_(0.3)
    assert not other.grid().equal(before)
    assert other.grid().equal(made.gamma(torch.arange(4, dtype=F64) / 3))


@every_kind
def test_stays_float64_with_its_gradients(kind: str) -> None:
    made = KINDS[kind]()
    model = nn.ModuleDict({"schedule": made, "net": nn.Linear(1, 1)})
    for cast in (nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16), nn.Module.float):
        cast(model)
        assert all(p.dtype == F64 for p in made.parameters())
    plain = torch.autograd.grad(made.gamma(_u()).sum(), list(made.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        cast_too = torch.autograd.grad(made.gamma(_u()).sum(), list(made.parameters()))
    assert all(a.equal(b) and a.dtype == F64 for a, b in zip(plain, cast_too, strict=True))


# Pull.


def test_a_visit_is_the_plain_curve() -> None:
    for kind, make in KINDS.items():
        made, u = make(), _u()
        gamma, dgamma = made.visit(u, Pull(torch.full((50,), 7.0)))
        close(gamma.detach(), made.gamma(u).detach(), rtol=1e-14)
        close(dgamma.detach(), made.dgamma(u).detach(), rtol=1e-14)
        assert gamma.requires_grad, kind


def test_a_pull_multiplies_the_gradient_of_the_shape_alone() -> None:
    """Σ f_i ∂(a_i γ(u_i) + b_i γ'(u_i)) for the shape, and plain Σ ∂(…) for the ends, whatever is filled in after the visit."""
    made = KINDS["learned, with its ends"]()
    assert isinstance(made, schedule.Learned)
    u, (a, b) = _u(6), torch.randn(2, 6, generator=generator(1), dtype=F64)
    factor = torch.linspace(-2.0, 3.0, 6, dtype=F64)
    shape = [made.slope, made.heights, made.widths, made.biases]
    ends = [made.gamma_min, made.gamma_max]

    pull = Pull()
    gamma, dgamma = made.visit(u, pull)
    pull.factor = factor.float()  # of any type
    got = torch.autograd.grad((a * gamma + b * dgamma).sum(), shape + ends)

    plain = a * made.gamma(u) + b * made.dgamma(u)
    want = [
        *torch.autograd.grad((factor.float().double() * plain).sum(), shape, retain_graph=True),
        *torch.autograd.grad(plain.sum(), ends),
    ]
    for one, other in zip(got, want, strict=True):
        close(one, other.detach(), rtol=1e-10, atol=1e-12)


def test_a_pull_of_one_is_no_pull() -> None:
    made = KINDS["learned"]()
    u = _u(6)
    gamma, dgamma = made.visit(u, Pull())
    plain = torch.autograd.grad(made.gamma(u).sum() + made.dgamma(u).sum(), list(made.parameters()))
    got = torch.autograd.grad(gamma.sum() + dgamma.sum(), list(made.parameters()))
    for one, other in zip(got, plain, strict=True):
        close(one, other, rtol=1e-12)


def test_schedules_without_a_learned_shape_are_not_pulled() -> None:
    u = _u(5)
    for made in (schedule.log_snr_linear(-5.0, 5.0), schedule.linear(10), KINDS["learned_betas"]()):
        pull = Pull(torch.full((5,), 100.0))
        gamma, dgamma = made.visit(u, pull)
        assert gamma.equal(made.gamma(u))
        assert dgamma.equal(made.dgamma(u))
        for parameter in made.parameters():
            (got,) = torch.autograd.grad(gamma.sum(), parameter, retain_graph=True)
            (plain,) = torch.autograd.grad(made.gamma(u).sum(), parameter)
            assert got.equal(plain)


def test_a_frozen_shape_is_not_pulled() -> None:
    made = schedule.learned(-5.0, 5.0, features=4).requires_grad_(False)
    gamma, _ = made.visit(_u(5), Pull(torch.zeros(5)))
    assert not gamma.requires_grad
    assert gamma.equal(made.gamma(_u(5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schedule.learned(1.0, 1.0),
            "expected finite gamma_min < gamma_max, such as −10 and 10, got 1.0 and 1.0",
        ),
        (
            lambda: schedule.learned(-1.0, 1.0, steps=1),
            "expected steps to be an integer of at least 2, or None for continuous time, got 1",
        ),
        (
            lambda: schedule.learned(-1.0, 1.0, features=0),
            "expected features ≥ 1 and ends to be fixed or learned, got features=0 and ends='fixed'",
        ),
        (
            lambda: schedule.learned_betas(2),
            "expected steps ≥ 3 and beta_first strictly between 0 and 1, got steps=2 and beta_first=0.001",
        ),
        (
            lambda: schedule.learned_betas(5, 1.0),
            "expected steps ≥ 3 and beta_first strictly between 0 and 1, got steps=5 and beta_first=1.0",
        ),
        (
            lambda: schedule.learned_betas(5, 0.0),
            "expected steps ≥ 3 and beta_first strictly between 0 and 1, got steps=5 and beta_first=0.0",
        ),
        (
            lambda: schedule.from_dict({"kind": "sine"}),
            "expected the kind of a schedule to be log_snr_linear, from_betas, learned or learned_betas, got 'sine'",
        ),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(DiffusionalError) as raised:
        make()
    assert str(raised.value) == message
