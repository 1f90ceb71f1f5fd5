"""x̂ of a logistic head and its slopes in closed form, against the table of all levels and its autograd in float64."""

import warnings
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from battery import F64, close, float64, randn
from diffusional.errors import DiffusionalError
from diffusional.models import level_mean as module
from diffusional.models.denoiser import Denoiser
from diffusional.models.level_mean import logistic_mean
from diffusional.models.parameterization import LevelsPrediction, level_log_probs, level_mean, logistic_logits
from diffusional.space import Discrete

SPACES = [Discrete((2,), 2), Discrete((2,), 3), Discrete((3, 2), 17, 0.0, 1.0), Discrete((3, 2, 2), 256)]
GAMMAS = (-13.0, -9.0, -5.0, -2.0, 0.0, 3.0, 10.0)
LOG_SCALES = (-50.0, -7.0, -4.0, -1.0, 2.0, 25.0)  # the first and the last are clamped
each_space = pytest.mark.parametrize("space", SPACES, ids=str)


def plain(output: Tensor, z: Tensor, gamma: Tensor, space: Discrete) -> Tensor:
    """Σ_k p_k x_k, all levels of all positions at once."""
    p = level_log_probs(logistic_logits(output, space), z, gamma, space).exp()
    return torch.einsum("bk...,k->b...", p, space.values.to(p))


def short(output: Tensor, z: Tensor, gamma: Tensor, space: Discrete) -> Tensor:
    return level_mean(output, z, gamma, "logistic", space)


def grid(space: Discrete, repeats: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, z and γ: an item for each γ and ln s, times `repeats`; μ next to what z says, far from it, or out of the range."""
    gamma, log_s = torch.cartesian_prod(float64(GAMMAS), float64(LOG_SCALES)).repeat(repeats, 1).unbind(1)
    n, dims = len(gamma), space.shape

    def wide(v: Tensor) -> Tensor:
        return v.reshape(-1, *(1,) * len(dims)).expand(n, *dims)

    k = (space.levels * torch.rand(n, *dims, dtype=F64, generator=torch.Generator().manual_seed(1))).floor()
    x = space.low + space.width * k
    z = torch.sigmoid(-wide(gamma)).sqrt() * x + torch.sigmoid(wide(gamma)).sqrt() * randn(n, *dims, seed=2)
    in_range = (2 * x - space.low - space.high) / (space.high - space.low)
    far = wide(float64([1e-3, 0.1, 2.0]).repeat_interleave(n // 3))
    mu = in_range + far * randn(n, *dims, seed=3)
    return torch.cat([mu, wide(log_s) + 0.1 * randn(n, *dims, seed=4)], 1).float(), z.float(), gamma


def slopes(f: Callable[..., Tensor], output: Tensor, z: Tensor, gamma: Tensor, space: Discrete) -> list[Tensor]:
    """f and its gradients in the output, z and γ, weighted differently at every position."""
    leaves = [t.clone().requires_grad_() for t in (output, z, gamma)]
    value = f(*leaves, space)
    weights = randn(*value.shape, seed=6).to(value)
    return [value.detach(), *torch.autograd.grad((weights * value).sum(), leaves)]


@each_space
def test_value_and_slopes_are_those_of_the_table(space: Discrete) -> None:
    """In float64, with extreme scales (and their clamps' zero gradients), noise and means."""
    output, z, gamma = grid(space)
    args = (output.double(), z.double(), gamma, space)
    for want, got in zip(slopes(plain, *args), slopes(short, *args), strict=True):
        size = want.abs().flatten(1).amax(1) if want.ndim > 1 else want.abs()
        error = (got - want).abs().flatten(1).amax(1) if want.ndim > 1 else (got - want).abs()
        assert bool(want.isfinite().all())
        assert float((error / (size + 1e-3)).max()) < 1e-7  # a reaches 1e5, where it is rounded to 1e-11
        assert float(size.max()) > 1e-3


@each_space
def test_float32_is_no_less_accurate_than_the_table(space: Discrete) -> None:
    output, z, gamma = grid(space, repeats=30)
    truth = slopes(plain, output.double(), z.double(), gamma, space)
    table, sums = slopes(plain, output, z, gamma, space), slopes(short, output, z, gamma, space)
    for t, a, b in zip(truth, table, sums, strict=True):
        assert bool(b.isfinite().all())
        assert b.dtype == a.dtype
        by_gamma = [(e.double() - t).reshape(30, len(GAMMAS), -1).square().mean((0, 2)).sqrt() for e in (a, b)]
        size = t.reshape(30, len(GAMMAS), -1).square().mean((0, 2)).sqrt()
        assert bool((by_gamma[1] <= 2 * by_gamma[0] + 1e-7 * size + 1e-9).all())


def test_by_hand() -> None:
    """Two levels at γ = ∞: x̂ = 1 − 2 σ(−μ/s), its slope in μ 2 σ'(μ/s)/s."""
    mu, s = float64([[0.3, -1.2]]).requires_grad_(), float64([[0.5, 2.0]]).requires_grad_()
    value = logistic_mean(mu, s, torch.zeros(1, 2, dtype=F64), float64(torch.inf), Discrete((2,), 2))
    close(value, torch.tanh(0.5 * mu / s))
    value.sum().backward()
    slope = 0.5 * (1 - torch.tanh(0.5 * mu / s).square()) / s
    close(mu.grad, slope)
    close(s.grad, -slope * mu / s)


@each_space
def test_numerical_derivatives(space: Discrete) -> None:
    n = 3
    gamma = float64([-4.0, 0.0, 3.0])
    mu, z = 0.5 * randn(n, *space.shape, seed=1), 0.5 * randn(n, *space.shape, seed=2)
    s = 0.1 + randn(n, *space.shape, seed=3).square()
    args = tuple(t.requires_grad_() for t in (mu, s, z, gamma))
    assert torch.autograd.gradcheck(lambda *a: logistic_mean(*a, space), args, eps=1e-6, atol=1e-6)


@each_space
def test_blocks_batch_mates_and_order_change_nothing(space: Discrete) -> None:
    output, z, gamma = grid(space, repeats=3)
    args = (output.double(), z.double(), gamma)
    whole = slopes(short, *args, space)[0]
    with patch.object(module, "_CPU_BLOCK", 1000):
        close(short(*args, space), whole, rtol=1e-12, atol=1e-14)
    back = torch.arange(len(z)).flip(0)
    close(short(*(a[back] for a in args), space), whole[back], rtol=1e-12, atol=1e-14)
    close(short(*(a[5:6] for a in args), space), whole[5:6], rtol=1e-12, atol=1e-14)


def test_one_gamma_for_all_items() -> None:
    space = Discrete((2,), 17)
    output, z = randn(4, 4), randn(4, 2)
    of_all = slopes(short, output, z, float64([-3.0]), space)
    for want, got in zip(slopes(plain, output, z, float64([-3.0]), space), of_all, strict=True):
        assert got.shape == want.shape
        close(got, want, rtol=1e-9, atol=1e-12)
    for want, got in zip(of_all, slopes(short, output, z, float64(-3.0), space), strict=True):
        close(got, want.reshape(got.shape))


@each_space
def test_never_nan(space: Discrete) -> None:
    """Where everything is as large or small as it can be, and in no noise and nothing but noise."""
    ends = torch.tensor([-1e30, -1e4, -1.0, 0.0, 1e4, 1e30])
    mu, log_s, z, gamma = torch.cartesian_prod(
        ends, ends, ends[1:-1], torch.tensor([-200.0, -13.0, 10.0, torch.inf])
    ).unbind(1)
    dims = space.shape
    wide = [v.reshape(-1, *(1,) * len(dims)).expand(-1, *dims) for v in (mu, log_s, z)]
    value, *gradients = slopes(short, torch.cat(wide[:2], 1), wide[2], gamma.double(), space)
    assert bool(((value >= space.low - 1e-6) & (value <= space.high + 1e-6)).all())
    assert all(bool(g.isfinite().all()) for g in gradients[:2])


def test_what_is_not_a_number_stays_none() -> None:
    space = Discrete((2,), 17)
    output, z, gamma = randn(3, 4), randn(3, 2), float64([0.0, 1.0, torch.nan])
    output[0, 1] = torch.nan
    z[1, 0] = torch.nan
    assert short(output, z, gamma, space).isnan().tolist() == [[False, True], [True, False], [True, True]]


def test_autocast_inference_and_only_what_is_asked() -> None:
    space = Discrete((3, 2, 2), 256)
    output, z, gamma = grid(space, repeats=3)
    value = short(output, z, gamma, space)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert short(output, z, gamma, space).equal(value)
    with torch.inference_mode():
        assert short(output, z, gamma, space).equal(value)
    leaves = [t.clone().requires_grad_() for t in (output, z, gamma)]
    every = torch.autograd.grad(short(*leaves, space).sum(), leaves)
    for i, one in enumerate((output, z, gamma)):
        args = [output, z, gamma]
        args[i] = one.clone().requires_grad_()
        (alone,) = torch.autograd.grad(short(*args, space).sum(), [args[i]])
        torch.testing.assert_close(alone, every[i])


def test_a_second_derivative_is_refused() -> None:
    output = randn(2, 4).requires_grad_()
    value = short(output, randn(2, 2), float64(0.0), Discrete((2,), 17))
    with pytest.raises(DiffusionalError, match=r"create_graph.*log_probs"):
        torch.autograd.grad(value.sum(), output, create_graph=True)


def test_a_denoiser_keeps_nothing_of_the_size_of_its_levels() -> None:
    space = Discrete((1, 8, 8), 256)
    output = randn(4, 2, 8, 8).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        denoiser = Denoiser(lambda z, log_snr: output, "levels", space, "logistic")
        prediction = denoiser(randn(4, 1, 8, 8), float64([-9.0, -3.0, 0.0, 5.0]))
    assert isinstance(prediction, LevelsPrediction)
    assert kept
    assert max(kept) <= output.numel()


@each_space
def test_scratch_memory_is_used_as_it_is(space: Discrete) -> None:
    """torch would resize a tensor given as `out` with the wrong shape, with a warning, in memory that others use."""
    output, z, gamma = grid(space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slopes(short, output, z, gamma, space)
