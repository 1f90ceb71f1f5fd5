"""Importance weighting over the chain (MATH (32)), by walked paths: against enumerated probabilities, and in constant memory."""

import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ImportanceWeights, evaluate, importance_weighted
from diffusional.evaluation.importance import grouped, weighted_by
from diffusional.evaluation.noise import stream
from diffusional.models.base import served

BITS = df.space.binary((3,))


class Bits(df.Chain):
    """A binomial chain of 3 bits with T = 4, whose steps lean towards the majority of the bits: p(x) is a sum over 2¹² paths."""

    space = BITS

    def __init__(self) -> None:
        super().__init__()
        self.process = df.BinomialDiffusion.constant(4)

    def step(self, z_next: Tensor, t: Tensor) -> df.Bits:
        return df.Bits(1.3 * z_next.double() + 0.4 * z_next.double().mean(1, keepdim=True) - 0.1 * t[:, None])

    def last(self, n: int) -> df.Bits:
        return df.Bits(torch.zeros(n, 3).double())

    def decode(self, z_1: Tensor) -> df.Bits:
        return df.Bits(1.5 * z_1.double() + 0.2)


STATES = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))


def enumerated(model: Bits) -> Tensor:
    """ln p(x) (8,) of all states, by the matrices of the steps."""
    n = len(STATES)
    p = model.last(n).log_prob(STATES).exp()
    for t in range(model.steps - 1, 0, -1):
        q = model.step(STATES, torch.full((n,), t))
        logs = torch.stack([q.log_prob(one.expand(n, -1)) for one in STATES], 1)  # (next, this)
        p = p @ logs.exp()
    decoded = model.decode(STATES)
    return (p @ torch.stack([decoded.log_prob(one.expand(n, -1)) for one in STATES], 1).exp()).log()


def test_the_bound_falls_with_k_toward_the_enumerated_probability() -> None:
    model = Bits()
    truth = enumerated(model)
    assert float(truth.exp().sum()) == pytest.approx(1)
    found = weighted_by(model, STATES, (1, 8, 128))
    nelbo = evaluate(model, STATES, draws=100).nelbo
    assert abs(found[1].nelbo.value - nelbo.value) < 4 * math.hypot(found[1].nelbo.error, nelbo.error)
    values = [one.nelbo.value for one in found.values()]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 0.1
    for one in found.values():
        low = one.per_item["nelbo"] + truth
        assert bool((low > -4 * one.per_item["error"]).all())
        assert one.nelbo.value > -float(truth.mean()) - 4 * one.nelbo.error
    last = found[128]
    assert abs(last.nelbo.value + float(truth.mean())) < 0.03 + 4 * last.nelbo.error


def test_the_record_of_several_counts_has_the_same_draws() -> None:
    model = Bits()
    both = weighted_by(model, STATES, (4, 16), seed=3)
    single = evaluate(model, STATES, estimator=ImportanceWeights(16), seed=3)
    assert torch.equal(both[16].per_item["nelbo"], single.per_item["nelbo"])
    assert both[4].of == "importance-weighted bound, K = 4"
    assert both[4].kind == "bound"
    assert both[4].nelbo.network_evaluations == both[16].nelbo.network_evaluations == 8 * 16 * model.evaluations


def test_groups_have_the_error_of_their_mean() -> None:
    logs = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, variance, count = grouped(logs, 4)
    each = math.log(4) - torch.logsumexp(logs.view(100, 4, 3), 1)
    torch.testing.assert_close(values, each.mean(0))
    torch.testing.assert_close(variance, each.var(0) / 100)
    assert count.tolist() == [100] * 3
    with pytest.raises(DiffusionalError, match="at least 2, got 1"):
        weighted_by(Bits(), STATES, (1,))


def gaussian(steps: int, kind: Any = df.GaussianDiffusion) -> df.DiffusionModel:
    world = exact.Gaussian(torch.zeros(5), torch.eye(5) + 0.5)
    process = kind(schedule.log_snr_linear(-3.0, 3.0, steps))
    return df.DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(df.Continuous((5,))))


def non_markov(levels: Any) -> df.NonMarkovDiffusion:
    return df.NonMarkovDiffusion(levels, 0.5)


@pytest.mark.parametrize("kind", [df.GaussianDiffusion, non_markov])
def test_a_path_keeps_a_few_latents_whatever_t(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, most, drawn = torch.randn(3, 5, dtype=torch.float64), list[int](), list[weakref.ref[Tensor]]()
    whole = df.Gaussian.sample

    def sample(self: df.Gaussian, *args: Any, **kwargs: Any) -> Tensor:
        z = whole(self, *args, **kwargs)
        drawn.append(weakref.ref(z))
        most[-1] = max(most[-1], sum(one() is not None for one in drawn))
        return z

    monkeypatch.setattr(df.Gaussian, "sample", sample)
    for steps in (5, 20):
        asked = list[tuple[int, ...]]()

        def noise(shape: tuple[int, ...], asked: list[tuple[int, ...]] = asked) -> Tensor:
            asked.append(shape)
            return torch.zeros(len(x), *shape, dtype=x.dtype)

        most.append(0)
        drawn.clear()
        with torch.no_grad():
            gaussian(steps, kind).walked_log_weight(x, noise)
        assert asked == [(5,)] * steps
        assert len(drawn) == steps
    assert most[0] == most[1] <= 3


@pytest.mark.parametrize("kind", [df.GaussianDiffusion, non_markov])
def test_a_walked_path_has_the_ratios_of_the_whole_path(kind: Any) -> None:
    """Walked from either end, the path form is that of `path_elbo`, whose q(z_t|z_{t−1}) go forward."""
    model = gaussian(6, kind)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind is df.GaussianDiffusion:
        path, z = [], x
        for t in range(1, 7):
            z = model.process.transition(z, t).sample(noise=noise[:, t - 1])
            path.append(z)
    else:
        path = [model.process.marginal(x, 6).sample(noise=noise[:, 5])]
        for t in range(5, 0, -1):
            path.insert(0, model.process.posterior(path[0], x, t).sample(noise=noise[:, t - 1]))
    whole = model._along(x, torch.stack(path), None)
    torch.testing.assert_close(model.log_weight(x, noise), -whole.nelbo)
    assert served(noise)((5,)).equal(noise[:, 0])


def test_noise_in_parts_is_the_noise_of_a_whole_path() -> None:
    """The scores of a chain do not depend on how its noise is drawn."""
    generator = stream(b"key", 2, b"weights")
    whole = stream(b"key", 2, b"weights").standard_normal((7, 3), dtype="float32")
    assert all((generator.standard_normal((3,), dtype="float32") == row).all() for row in whole)
    model, x = gaussian(7), torch.randn(3, 5)
    assert importance_weighted(model, x, 4, seed=1) == importance_weighted(model, x, 4, seed=1)
