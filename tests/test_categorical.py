"""Categorical variables against scipy, enumeration and decimal arithmetic."""

import itertools
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from scipy import stats

import diffusional as df
from battery import F64, close, generator, randn

VALUES = torch.tensor([-1.0, 0.0, 0.5, 2.0])
Q, R = df.Categorical(randn(5, 2, 4, seed=1), VALUES), df.Categorical(2 * randn(5, 2, 4, seed=2), VALUES)


def test_masses_means_and_divergences_by_enumeration() -> None:
    q, r = (p.logits.softmax(-1).numpy() for p in (Q, R))
    states = torch.tensor(list(itertools.product(range(4), repeat=2)))
    mass = torch.stack([Q.log_prob(VALUES[s].expand(5, 2)).exp() for s in states], 1)
    close(mass, np.stack([q[:, 0, i] * q[:, 1, j] for i, j in states], 1))
    close(Q.mean, q @ VALUES.numpy())
    close(Q.kl(R), stats.entropy(q, r, axis=-1).sum(1))
    close(Q.entropy(), stats.entropy(q, axis=-1).sum(1))


def test_a_divergence_of_neighbours_keeps_its_digits() -> None:
    """To 1e-12 of its value, where Σ p (ln p − ln r) loses all digits."""
    getcontext().prec = 60
    logits = [0.3, -0.7, 1.1]
    for apart in (1e-9, 1e-5, 0.3, 0.9999, 1.0001, 3.0):
        other = [logits[0] + apart, logits[1], logits[2] - 2 * apart]
        exact = [Decimal(a).exp() for a in logits], [Decimal(b).exp() for b in other]
        p, r = ([e / sum(some) for e in some] for some in exact)
        kl = sum(a * (a.ln() - b.ln()) for a, b in zip(p, r, strict=True))
        one, two = (df.Categorical(torch.tensor([[some]], dtype=F64), VALUES[:3]) for some in (logits, other))
        assert float(one.kl(two)) == pytest.approx(float(kl), rel=1e-6 if apart < 1e-8 else 1e-9, abs=0)


def test_values_without_probability() -> None:
    none = -torch.inf
    some = df.Categorical(torch.tensor([[[none, 0.0, 0.0, none]]], requires_grad=True), VALUES)
    every = df.Categorical(torch.zeros(1, 1, 4), VALUES)
    close(some.kl(every).detach(), [np.log(2)])
    assert float(every.kl(some).detach()) == np.inf
    close(some.entropy().detach(), [np.log(2)])
    some.kl(every).sum().backward()
    assert some.logits.grad is not None
    assert bool(some.logits.grad.isfinite().all())
    # However far in the tail the noise is.
    noise = torch.tensor([[-50.0], [-9.0], [0.1], [9.0], [50.0]])
    drawn = df.Categorical(some.logits.detach().expand(5, 1, 4), VALUES).sample(noise=noise)
    assert drawn.flatten().tolist() == [0.0, 0.0, 0.5, 0.5, 0.5]


def test_draws_rise_with_the_noise_and_have_its_type() -> None:
    q = df.Categorical(Q.logits[:1].expand(100, 2, 4), VALUES)
    z = q.sample(noise=torch.linspace(-4, 4, 100, dtype=torch.bfloat16)[:, None].expand(100, 2))
    assert z.dtype == torch.bfloat16
    assert bool((z.diff(dim=0) >= 0).all())
    assert set(z.unique().tolist()) == set(VALUES.tolist())
    assert q.sample(generator(1)).dtype == F64
    assert bool(torch.isfinite(q.log_prob(z)).all())


def test_refusals() -> None:
    for values in (VALUES[:1], VALUES.flip(0), VALUES[None], torch.zeros(4)):
        with pytest.raises(df.DiffusionalError, match="ascending"):
            df.Categorical(torch.zeros(1, 1, 4), values)
    for logits in (torch.zeros(4), torch.zeros(1, 1, 3)):
        with pytest.raises(df.DiffusionalError, match="logits"):
            df.Categorical(logits, VALUES)
    for z in (0.3, 3.0, float("nan")):
        with pytest.raises(df.DiffusionalError, match="4 values"):
            Q.log_prob(torch.full((5, 2), z))
    with pytest.raises(df.DiffusionalError, match="NaN"):
        df.Categorical(torch.full((1, 1, 4), torch.nan), VALUES).sample()
