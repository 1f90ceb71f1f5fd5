"""Round trips and bounds over shapes, types, schedules and T (hypothesis)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from battery import PREDICTIONS, generator
from diffusional import Continuous, DiffusionModel, Discrete, GaussianDiffusion, exact, likelihood, schedule
from diffusional.forward import diffuse, posterior_at, transition_at
from diffusional.ledger import Estimate
from diffusional.models.parameterization import Prediction
from diffusional.schedule import Schedule
from diffusional.timesteps import Adaptive, Uniform

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64])
gammas = st.floats(-9, 9)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    steps = draw(st.integers(2, 60))
    kind = draw(st.sampled_from(["betas", "cosine", "linear"]))
    if kind == "betas":
        return schedule.from_betas(draw(st.lists(st.floats(1e-4, 0.9), min_size=steps, max_size=steps)))
    if kind == "cosine":
        return schedule.cosine(steps)
    low = draw(st.floats(-9, 0))
    return schedule.log_snr_linear(low, low + draw(st.floats(0.5, 12)), steps)


@given(shapes, st.integers(2, 300), st.floats(-3, 1), st.floats(0.1, 5), st.integers(0, 9), dtypes)
def test_levels_survive_encoding(
    shape: tuple[int, ...], levels: int, low: float, span: float, seed: int, dtype: torch.dtype
) -> None:
    space = Discrete(shape, levels, low, low + span)
    raw = torch.randint(levels, (3, *shape), generator=generator(seed))
    x = space.encode(raw, dtype)
    space.check(x)
    assert torch.equal(space.decode(x), raw)
    assert float(x.min()) >= low - 1e-6
    assert float(x.max()) <= low + span + 1e-6


@given(shapes, gammas, st.sampled_from(PREDICTIONS), st.sampled_from(PREDICTIONS), dtypes, st.integers(0, 9))
def test_a_prediction_is_the_same_in_every_parameterisation(
    shape: tuple[int, ...], gamma: float, first: str, second: str, dtype: torch.dtype, seed: int
) -> None:
    """There and back: what `first` says, said as `second`, says the same of x and ε, and costs the same."""
    x, noise = torch.randn(2, 2, *shape, generator=generator(seed), dtype=dtype)
    g = torch.full((2,), gamma, dtype=torch.float64)
    z = diffuse(x, g, noise)
    said = Prediction(z, g, torch.tanh(z), first)
    again = Prediction(z, g, getattr(said, second), second)
    # Rounding of z counts 1/σ-fold in ε̂ and 1/α-fold in x̂.
    loss = torch.finfo(dtype).eps * 200 * math.exp(0.5 * abs(gamma))
    scale = 1 + float(said.noise.abs().max()) + float(said.data.abs().max())
    torch.testing.assert_close(again.noise, said.noise, rtol=0, atol=loss * scale)
    torch.testing.assert_close(again.data, said.data, rtol=0, atol=loss * scale)
    want = said.squared_error(x, noise)
    torch.testing.assert_close(again.squared_error(x, noise), want, rtol=0, atol=10 * loss * scale**2 * x.numel())


@given(schedules(), st.data())
def test_a_step_forward_and_its_posterior_make_the_marginals(made: Schedule, data: st.DataObject) -> None:
    """For any s < t: q(z_t|z_s) q(z_s|x) and q(z_s|z_t, x) q(z_t|x) have the same moments."""
    grid = made.grid()
    s = data.draw(st.integers(0, len(grid) - 2))
    t = data.draw(st.integers(s + 1, len(grid) - 1))
    one = torch.ones(1, 1, dtype=torch.float64)
    walk, back = transition_at(one, grid[s], grid[t]), posterior_at(one, one * 0, grid[s], grid[t])
    of_x = posterior_at(one * 0, one, grid[s], grid[t]).mean
    var_s, var_t = torch.sigmoid(grid[s]), torch.sigmoid(grid[t])
    alpha_s, alpha_t = torch.sigmoid(-grid[s]).sqrt(), torch.sigmoid(-grid[t]).sqrt()
    torch.testing.assert_close(walk.mean**2 * var_s + walk.variance, var_t.view(1, 1), rtol=1e-9, atol=0)
    torch.testing.assert_close(walk.mean * alpha_s, alpha_t.view(1, 1), rtol=1e-9, atol=0)
    torch.testing.assert_close(back.mean * alpha_t + of_x, alpha_s.view(1, 1), rtol=1e-9, atol=0)
    torch.testing.assert_close(back.mean**2 * var_t + back.variance, var_s.view(1, 1), rtol=1e-9, atol=0)


@given(schedules())
def test_gamma_has_an_inverse_and_a_description(made: Schedule) -> None:
    u = torch.linspace(0, 1, 17, dtype=torch.float64)
    # Where γ is flat (a cubic's end may be) many u share one γ to the last bit: it is γ that must come back exactly.
    torch.testing.assert_close(made.gamma(made.inverse(made.gamma(u))), made.gamma(u), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.inverse(made.gamma(u)), u, rtol=0, atol=1e-5)
    assert bool((made.gamma(u).diff() > 0).all())
    assert torch.equal(schedule.from_dict(made.to_dict()).grid(), made.grid())


@given(
    schedules(), st.floats(0.05, 3), st.floats(-1, 1), st.sampled_from(["posterior", "transition"]), st.floats(1e-4, 1)
)
def test_no_model_beats_the_entropy(made: Schedule, spread: float, mean: float, variance: str, decoder: float) -> None:
    """−ELBO ≥ H(x) for the best denoiser of any schedule, T, variance and decoder (MATH (20), C9)."""
    world = exact.Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([[spread]], dtype=torch.float64))
    costs = world.costs(GaussianDiffusion(made), variance, decoder)  # type: ignore[arg-type]
    assert float(costs.nelbo) >= world.entropy() - 1e-9
    assert bool((costs.kl >= -1e-12).all())
    assert float(costs.prior) >= -1e-12


@settings(max_examples=25)
@given(schedules(), st.sampled_from(PREDICTIONS), st.sampled_from(["posterior", "transition"]), dtypes, shapes)
def test_costs_are_never_negative(
    made: Schedule, predicts: str, variance: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Every KL of (8) and the prior, for any network, data shape and type."""
    from diffusional import Denoiser

    denoiser = Denoiser(lambda z, log_snr: torch.sin(3 * z), predicts)  # type: ignore[arg-type]
    p = likelihood.GaussianLikelihood(Continuous(shape))
    model = DiffusionModel(GaussianDiffusion(made), denoiser, p, variance)  # type: ignore[arg-type]
    ledger = model.elbo(torch.randn(3, *shape, generator=generator(), dtype=dtype), generator(1))
    assert ledger.kl.shape == (3, len(made.grid()) - 1)
    assert bool((ledger.kl >= 0).all())
    assert bool((ledger.prior >= 0).all())
    assert torch.isfinite(ledger.nelbo).all()
    torch.testing.assert_close(sum(ledger.totals().values()), ledger.nelbo)


@given(st.integers(1, 500), st.integers(1, 80), st.booleans(), st.integers(0, 99))
def test_sampled_levels_are_levels_with_their_weights(n: int, levels: int, adaptive: bool, seed: int) -> None:
    sampler = Adaptive(cells=7, warmup=1, floor=0.2) if adaptive else Uniform()
    if adaptive:
        sampler.update(torch.rand(50, generator=generator(seed)), torch.rand(50, generator=generator(seed + 1)))
    drawn = sampler.sample(n, levels, generator(seed))
    assert int(drawn.level.min()) >= 1
    assert int(drawn.level.max()) <= levels
    assert bool((drawn.weight >= 1 - 1e-12).all())  # π ≤ 1
    # A floor of uniform mass bounds the weights.
    assert float(drawn.weight.max()) <= levels / (0.2 if adaptive else 1) * (1 + 1e-9)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.integers(1, 10_000))
def test_units_round_trip(value: float, error: float, dimensions: int) -> None:
    estimate = Estimate(value, error, error / 2, 5, 7)
    back = estimate.to("bits/dim", dimensions).to("nats", dimensions)
    assert (back.value, back.error, back.item_error) == pytest.approx((value, error, error / 2), rel=1e-12)
