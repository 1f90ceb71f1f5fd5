"""I–MMSE from both sides in worlds whose information is known (MATH (15)), and bounds from evaluations."""

import inspect
import json
import math

import pytest
import torch

from battery import float64, generator
from diffusional import (
    BinomialDiffusion,
    BinomialDiffusionModel,
    Continuous,
    Denoiser,
    DiffusionalError,
    DiffusionModel,
    evaluate,
    exact,
    likelihood,
    schedule,
    space,
)
from diffusional.forward import GaussianDiffusion
from diffusional.information import bound, budget
from diffusional.models.reverse import Variance

WORLD = exact.Mixture(
    float64([0.5, 0.3, 0.2]), float64([[-1.0], [0.9], [0.1]]), float64([0.09, 0.2, 0.05]).reshape(3, 1, 1)
)
OTHER = exact.Gaussian(float64([0.1]), float64([[0.7]]))
STEPS = schedule.log_snr_linear(-4.0, 4.0, steps=33)
X = WORLD.sample(20_000, generator(0))


def model(world: exact.World, steps: int | None = 33, variance: Variance = "posterior") -> DiffusionModel:
    decoder = likelihood.GaussianLikelihood(Continuous((1,)))
    return DiffusionModel(GaussianDiffusion(STEPS.regrid(steps)), world.denoiser("v"), decoder, variance)


def informations(gamma: torch.Tensor) -> torch.Tensor:
    return float64([WORLD.information(float(g)).value for g in gamma])


def test_increments_lie_between_the_errors_at_their_two_ends() -> None:
    """½ ΔSNR mmse(cleaner) ≤ I(x; z_s) − I(x; z_t) ≤ ½ ΔSNR mmse(noisier) = KL_s of the optimal denoiser."""
    found = bound(model(WORLD), X, cells=32, samples=20_000, generator=generator(1))
    truth, mmse, snr = informations(found.gamma), WORLD.mmse(found.gamma), torch.exp(-found.gamma)
    upper, lower = (0.5 * (snr[:-1] - snr[1:]) * m for m in (mmse[1:], mmse[:-1]))
    increments = truth[:-1] - truth[1:]
    assert bool((lower < increments).all())
    assert bool((increments < upper).all())
    assert bool(((found.increment_bound - upper).abs() < 4 * found.increment_bound_error).all())
    assert bool((found.increment_bound > increments - 4 * found.increment_bound_error).all())
    assert bool((found.information_bound > truth - 4 * found.information_bound_error).all())
    assert float((found.increment_bound_error / upper).median()) < 0.02
    # Down the chain: Σ_{t ≥ s} KL_t + KL_T.
    prior = float(WORLD.costs(GaussianDiffusion(STEPS), "posterior", 1.0).prior)
    want = torch.cat([upper.flip(0).cumsum(0).flip(0), torch.zeros(1)]) + prior
    assert bool(((found.information_bound - want).abs() < 4 * found.information_bound_error + 1e-9).all())
    assert found.level.tolist() == list(range(1, 34))


@pytest.mark.parametrize(("steps", "variance"), [(33, "posterior"), (33, "transition"), (None, "posterior")])
def test_any_denoiser_bounds(steps: int | None, variance: Variance) -> None:
    found = bound(model(OTHER, steps, variance), X, cells=8, samples=4000, generator=generator(2))
    truth = informations(found.gamma)
    best = bound(model(WORLD, steps), X, cells=8, samples=4000, generator=generator(3))
    assert bool((found.increment_bound > truth[:-1] - truth[1:]).all())
    assert bool((found.information_bound > truth).all())
    assert float(found.information_bound[0]) > float(best.information_bound[0]) > float(truth[0])
    if steps is None:  # no coarseness: the optimal denoiser's bound is the information, less what z_T knows
        assert bool(((best.increment_bound - truth[:-1] + truth[1:]).abs() < 4 * best.increment_bound_error).all())


@pytest.mark.parametrize("sweep", [True, False])
def test_an_evaluation_is_a_bound(sweep: bool) -> None:
    of = model(OTHER)
    result = evaluate(of, X[:200], draws=2) if sweep else evaluate(of, X[:2000], target_error=0.05, unit="nats")
    found = bound(of, result)
    truth = informations(found.gamma)
    assert found.gamma.tolist() == pytest.approx(STEPS.grid()[result.level_edges - 1].tolist())
    assert found.increment_bound.tolist() == result.levels_kl.tolist()
    kl, prior = result.terms["kl"], result.terms["prior"]
    assert float(found.information_bound[0]) == pytest.approx(kl.value + prior.value, rel=1e-6)
    assert float(found.information_bound_error[0]) == pytest.approx(math.hypot(kl.error, prior.error), rel=1e-6)
    assert float(found.information_bound[-1]) == pytest.approx(prior.value)
    assert bool((found.information_bound + 4 * found.information_bound_error > truth).all())
    drawn = bound(of, X[:2000], cells=32, samples=4000, generator=generator(4))
    off = float(found.information_bound[0] - drawn.information_bound[0])
    # Other items: their spread counts.
    assert abs(off) < 4 * math.hypot(kl.item_error + kl.error, float(drawn.information_bound_error[0]))


def test_continuous_time_evaluations() -> None:
    of = model(OTHER, None)
    found = bound(of, evaluate(of, X[:50], cells=64, draws=2))
    assert (found.level[0].item(), found.level[-1].item(), len(found.level)) == (0.0, 1.0, 65)
    assert (found.gamma[0].item(), found.gamma[-1].item()) == (-4.0, 4.0)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(record) == {
        "level", "gamma", "increment_bound", "increment_bound_error", "information_bound", "information_bound_error", "unit",
    }  # fmt: skip


def test_errors_are_the_spread_over_seeds() -> None:
    of = model(OTHER)
    runs = [bound(of, X, cells=4, samples=40, generator=generator(seed)) for seed in range(150)]
    for name in ("increment_bound", "information_bound"):
        spread = torch.stack([getattr(run, name) for run in runs]).std(0)
        reported = torch.stack([getattr(run, f"{name}_error") for run in runs]).square().mean(0).sqrt()
        assert bool(((reported / spread - 1).abs() < 0.2).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bound(model(OTHER, 20), evaluate(model(OTHER), X[:10], draws=2)),
            "T = 20 of the model, got one up to 33",
        ),
        (lambda: bound(model(OTHER, None), evaluate(model(OTHER), X[:10], draws=2)), "T = ∞"),
        (lambda: bound(model(OTHER), X, cells=0), "at least 1"),
        (lambda: bound(model(OTHER), X, samples=1), "at least 2"),
        (lambda: bound(model(OTHER), X[:, :0]), r"items of shape .* got \(0,\)"),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        call()


class Given(torch.nn.Module):
    """The optimal denoiser ("v") of N(c, v), whose mean is the condition."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, z: torch.Tensor, log_snr: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.sigmoid(s * log_snr)[:, None].sqrt() for s in (1, -1))
        away = z - alpha * condition
        total = alpha**2 * self.variance + sigma**2
        return alpha * sigma * away / total - sigma * (condition + alpha * self.variance * away / total)


@pytest.mark.parametrize("steps", [33, None])
def test_a_bound_given_a_condition(steps: int | None) -> None:
    """x = c + noise: I(x; z_t | c) is that of the noise, from items or from an evaluation, and the information of c is not in it."""
    c = 2 * torch.randn(4000, 1, generator=generator(1)).double()
    x = c + 0.5 * torch.randn(4000, 1, generator=generator(2)).double()
    forward = GaussianDiffusion(STEPS.regrid(steps))
    of = DiffusionModel(forward, Denoiser(Given(0.25), "v"), likelihood.GaussianLikelihood(Continuous((1,))))
    noise = exact.Gaussian(float64([0.0]), float64([[0.25]]))
    found = bound(of, x, cells=8, samples=4000, generator=generator(3), condition=c)
    swept = bound(of, evaluate(of, x[:500], draws=1, cells=100, condition=c[:500]))
    for one in (found, swept):
        assert one.conditional
        assert one.to_json()["conditional"]
        truth = float64([noise.information(float(g)).value for g in one.gamma])
        # KL_T of z_T, whose mean is α c, is the only thing that c adds.
        prior = float(one.information_bound[-1])
        assert 0.9 < float(one.information_bound[0] - prior) / float(truth[0] - truth[-1]) < 1.2
    with pytest.raises(DiffusionalError, match="condition was given with an Evaluation"):
        bound(of, evaluate(of, x[:20], draws=1, cells=50, condition=c[:20]), condition=c[:20])
    with pytest.raises(DiffusionalError, match="3 rows for 4000 items"):
        bound(of, x, condition=c[:3])


def test_a_budget_given_a_condition() -> None:
    """Model and reference get each item's own condition: the gap of one denoiser to another is the same for all conditions."""
    x = 0.5 * torch.randn(500, 1, generator=generator(2)).double()
    decoder = likelihood.GaussianLikelihood(Continuous((1,)))
    best, poor = (DiffusionModel(GaussianDiffusion(STEPS), Denoiser(Given(v), "v"), decoder) for v in (0.25, 1.0))
    shift = torch.linspace(-3, 3, 500).double()[:, None]
    still, moved = (
        budget(poor, x + c, best, cells=4, samples=2000, generator=generator(4), condition=c).total.gap
        for c in (0 * shift, shift)
    )
    assert moved.value == pytest.approx(still.value, abs=1e-6)
    assert still.value > 5 * still.error
    with pytest.raises(DiffusionalError, match=r"condition was given with an exact world \(Gaussian\)"):
        budget(poor, OTHER, best, condition=shift)
    with pytest.raises(DiffusionalError, match="condition"):
        budget(poor, x, model(OTHER), condition=shift)  # a reference that takes none


def test_a_chain_of_another_kind_is_named() -> None:
    model = BinomialDiffusionModel(BinomialDiffusion.constant(4), lambda z, log_snr: 0 * z, space.binary((2,)))
    x = torch.ones(3, 2)
    # Type hints are enforced in tests, and nowhere else.
    for call in (
        lambda: inspect.unwrap(bound)(model, x),
        lambda: inspect.unwrap(bound)(model, evaluate(model, x, draws=1)),
        lambda: inspect.unwrap(budget)(model, x, reference=model),
    ):
        with pytest.raises(DiffusionalError, match=r"expected a DiffusionModel.*got a BinomialDiffusionModel"):
            call()
