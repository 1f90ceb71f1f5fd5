"""The binomial diffusion against walks of 2 × 2 matrices, and its Markov chain by enumeration."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from battery import F64, close, float64, generator
from bits import constant, each, index, information, share_of, signal, states, step
from diffusional.bernoulli import Bits
from diffusional.binomial import BinomialDiffusion, log_odds
from diffusional.errors import DiffusionalError
from diffusional.forward import Distribution, Posterior

BETAS = [0.1, 0.35, 0.02, 0.5, 0.2]
T = len(BETAS)
CHAIN = BinomialDiffusion(BETAS)
PAIRS = [(s, t) for t in range(2, T + 1) for s in range(1, t)]
BOTH = torch.tensor([[-1.0], [1.0]])


def walk(betas: list[float], s: int, t: int) -> np.ndarray:
    """q(z_t|z_s) (from, to) on {0, 1}."""
    out = np.eye(2)
    for beta in betas[s:t]:
        out = out @ step(beta)
    return out


def probabilities(q: Bits) -> np.ndarray:
    """P(z = 1) (B,) of one bit, by log_prob."""
    return q.log_prob(torch.ones_like(q.logit)).exp().numpy()


@pytest.mark.parametrize("betas", [BETAS, constant(5)], ids=["betas", "constant"])
def test_marginals_and_transitions(betas: list[float]) -> None:
    chain = BinomialDiffusion(betas)
    for t in range(1, T + 1):
        np.testing.assert_allclose(probabilities(chain.marginal(BOTH, t)), walk(betas, 0, t)[:, 1], rtol=1e-13)
        np.testing.assert_allclose(probabilities(chain.transition(BOTH, t)), step(betas[t - 1])[:, 1], rtol=1e-13)
        for s in range(t):
            np.testing.assert_allclose(probabilities(chain.transition(BOTH, t, s)), walk(betas, s, t)[:, 1], rtol=1e-13)
        assert not np.allclose(probabilities(chain.marginal(BOTH, t)), walk(betas, 0, t - 1)[:, 1], rtol=1e-3)


@pytest.mark.parametrize("betas", [BETAS, constant(5)], ids=["betas", "constant"])
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_the_posterior_is_bayes_rule(s: int, t: int, betas: list[float]) -> None:
    chain = BinomialDiffusion(betas)
    for i, x in enumerate(BOTH):
        joint = walk(betas, 0, s)[i] * walk(betas, s, t).T  # (z_t, z_s)
        expected = joint[:, 1] / joint.sum(1)
        own = x.expand(2, 1)
        np.testing.assert_allclose(probabilities(chain.between(BOTH, own, s, t)), expected, rtol=1e-13)
        if t == s + 1:
            assert chain.posterior(BOTH, own, s).logit.equal(chain.between(BOTH, own, s, t).logit)


def test_times_as_a_tensor() -> None:
    z, x = torch.tensor([[1.0, -1.0]] * 4), torch.tensor([[1.0, 1.0]] * 4)
    t, level = torch.tensor([1, 3, 5, 2]), torch.tensor([1, 3, 4, 2])
    for q, one in (
        (CHAIN.marginal(x, t), lambda i: CHAIN.marginal(x[i : i + 1], int(t[i]))),
        (CHAIN.transition(z, t), lambda i: CHAIN.transition(z[i : i + 1], int(t[i]))),
        (CHAIN.posterior(z, x, level), lambda i: CHAIN.posterior(z[i : i + 1], x[i : i + 1], int(level[i]))),
    ):
        for i in range(4):
            close(q.logit[i], one(i).logit[0], rtol=1e-14)


def test_the_paper_s_schedule_erases_one_part_in_t_of_the_signal_per_step() -> None:
    for steps in (2, 7, 1000):
        chain = BinomialDiffusion.constant(steps)
        close(chain.betas, constant(steps), rtol=1e-15)
        close(chain.log_signal.exp(), 1 - np.arange(1, steps + 1) / steps, rtol=1e-12, atol=0)
        assert chain.steps == steps
        assert chain.marginal(BOTH, steps).logit.abs().max() == 0  # pure noise
        assert bool(chain.transition(BOTH, steps).logit.isfinite().all())


def test_log_odds_and_gamma_to_the_last_digits() -> None:
    with mpmath.workdps(60):
        for log_signal in (-1e-15, -1e-9, -1e-3, -0.7, -8.0, -50.0):
            a = mpmath.exp(mpmath.mpf(log_signal))
            close(log_odds(float64([log_signal])), [float(mpmath.log((1 + a) / (1 - a)))], rtol=1e-14, atol=0)
        for steps in (10, 1000):
            chain = BinomialDiffusion.constant(steps)
            for t in (1, 2, steps // 2, steps - 1):
                a = mpmath.mpf(steps - t) / steps
                expected = float(-mpmath.log(a**2 / (1 - a**2)))
                close(chain.gamma(torch.tensor([t])), [expected], rtol=1e-11, atol=1e-12)
    # γ is the Gaussian's of the same correlation: α = ᾱ where x has variance one. The ends are kept in.
    assert chain.gamma(1000).item() == 20
    assert BinomialDiffusion([1e-12, 1.0]).gamma(torch.tensor([1, 2])).tolist() == [-20.0, 20.0]
    assert bool((chain.gamma(torch.arange(1, 1001)).diff() > 0).all())


def test_small_betas_are_not_lost() -> None:
    """1 − ᾱ of ten thousand steps of 1e-12, where a product of 1 − β in float64 has lost four digits and λ would show it."""
    chain = BinomialDiffusion([1e-12] * 10_000)
    with mpmath.workdps(60):
        a = (1 - mpmath.mpf(1e-12)) ** 10_000
        expected = float(mpmath.log((1 + a) / (1 - a)))
    close(chain.log_odds(10_000), expected, rtol=1e-13)
    assert abs(float(torch.log1p(-float64(1e-12)).exp()) ** 10_000 - float(a)) > 1e-13


def test_the_walk_has_the_law_of_the_chain() -> None:
    """Of 40,000 walks of one bit the frequencies of all paths, by χ², against the product of the paper's transitions."""
    n, betas = 40_000, [0.3, 0.5, 0.2]
    path = BinomialDiffusion(betas).sample_path(torch.ones(n, 1), generator(3))
    assert path.shape == (3, n, 1)
    assert path.dtype == torch.float32
    seen = np.bincount(index(path[:, :, 0].T).numpy(), minlength=8)
    expected = np.ones(8)
    for i, row in enumerate((states(3) > 0).astype(int)):
        before = 1
        for t, now in enumerate(row):
            expected[i] *= step(betas[t])[before, now]
            before = now
    assert stats.chisquare(seen, n * expected).pvalue > 1e-3
    assert stats.chisquare(seen, n * expected[::-1]).pvalue < 1e-3


# MATH (11)–(13) of this family, in a world of two dependent bits and four latents; all states enumerated.


def _joint(kind: str) -> np.ndarray:
    """p(x, z_1, …, z_4) (4, 4, 4, 4, 4), from q(z_4|x) back by the posterior. "tied": the flips hold together as closely as their
    marginals allow half of the time (MATH (14)'s idea), which is not Markov; the marginals q(z_t|x) are the same.
    """
    betas = [0.1, 0.35, 0.2, 0.5]
    chain, all_states = BinomialDiffusion(betas), torch.tensor(states(2))
    rows = [(i, j) for i in range(4) for j in range(4)]
    x, z = (all_states[[pair[k] for pair in rows]] for k in (0, 1))
    joint = share_of(2)[:, None] * np.stack(
        [Bits(chain.marginal(all_states, 4).logit).log_prob(all_states[[k] * 4]).exp().numpy() for k in range(4)], 1
    )
    for t in (3, 2, 1):
        q = chain.posterior(z, x, t)
        law = np.stack([q.log_prob(all_states[[k] * 16]).exp().numpy() for k in range(4)], 1).reshape(4, 4, 4)
        if kind == "tied":
            flips = (1 - signal(betas, t)) / (1 - signal(betas, t + 1))
            closest = np.array([[flips, 1 - flips], [0, 1]])  # (n_{t+1}, n_t), n = 1 where z is x
            same = each(closest, 2)
            turned = ((states(2)[:, None] * states(2)[None] > 0) @ [2, 1]).astype(int)  # n's state of (x, z)
            tied = np.stack([same[turned[i]][:, turned[i]] for i in range(4)])
            law = 0.5 * law + 0.5 * tied
        # joint (x, z_{t+1}, …) → (x, z_t, z_{t+1}, …)
        joint = joint[:, None] * law.transpose(0, 2, 1).reshape(4, 4, 4, *[1] * (joint.ndim - 2))
    return joint


def _conditional(joint: np.ndarray, t: int, given: int) -> float:
    """I(x; z_t | z_given), `given` = 0 for none."""
    keep = joint.sum(axis=tuple(i for i in range(1, 5) if i not in (t, given)))
    if not given:
        return information(keep[:, :, None])
    return information(keep if t < given else keep.transpose(0, 2, 1))


def test_the_forward_conditional_informations_vanish() -> None:
    markov, tied = _joint("markov"), _joint("tied")
    for joint in (markov, tied):
        assert joint.sum() == pytest.approx(1, abs=1e-13)
        for t in range(1, 5):
            marginal = joint.sum(axis=tuple(i for i in range(1, 5) if i != t))
            plain = share_of(2)[:, None] * each(walk([0.1, 0.35, 0.2, 0.5], 0, t), 2)
            np.testing.assert_allclose(marginal, plain, atol=1e-14)
    forward = [_conditional(markov, t, t - 1) for t in (2, 3, 4)]
    np.testing.assert_allclose(forward, 0, atol=1e-14)
    assert sum(_conditional(tied, t, t - 1) for t in (2, 3, 4)) > 0.01  # the control
    # (13): what vanishes forward adds up backward.
    backward = [_conditional(markov, t, t + 1) for t in (1, 2, 3)]
    assert min(backward) > 0.01
    first, last = _conditional(markov, 1, 0), _conditional(markov, 4, 0)
    assert first == pytest.approx(last + sum(backward), abs=1e-13)
    assert abs(first - last - sum(_conditional(tied, t, t + 1) for t in (1, 2, 3))) > 0.01


# What it is, and what it refuses.


def test_it_is_a_posterior_and_stays_float64() -> None:
    chain = BinomialDiffusion(BETAS)
    assert isinstance(chain, Posterior)
    assert isinstance(chain.marginal(BOTH, 1), Distribution)
    moved = chain.half()
    assert moved.log_signal.dtype == moved.betas.dtype == F64
    close(moved.betas, BETAS, rtol=0)
    assert set(chain.state_dict()) == {"betas", "log_signal"}
    assert chain.marginal(BOTH.half(), 1).logit.dtype == F64


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1], "T ≥ 2"),
        ([[0.1, 0.2]], "T ≥ 2"),
        ([0.0, 0.5], "β_1 = 0$"),
        ([1.0, 0.5], "β_1 = 1$"),
        ([0.5, 1.5], "β_2 = 1.5"),
        ([0.5, 0.0], "β_2 = 0$"),
        ([0.5, float("nan")], "β_2 = nan"),
    ],
)
def test_betas_that_are_refused(betas: list, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        BinomialDiffusion(torch.tensor(betas))


def test_times_that_are_refused() -> None:
    for call in (
        lambda: CHAIN.marginal(BOTH, 0),
        lambda: CHAIN.marginal(BOTH, 6),
        lambda: CHAIN.transition(BOTH, 6),
        lambda: CHAIN.posterior(BOTH, BOTH, 5),
        lambda: CHAIN.posterior(BOTH, BOTH, 0),
        lambda: CHAIN.gamma(0),
        lambda: CHAIN.between(BOTH, BOTH, -1, 2),
    ):
        with pytest.raises(DiffusionalError, match="expected"):
            call()
    for s in (2, 3):
        with pytest.raises(DiffusionalError, match="s < t"):
            CHAIN.between(BOTH, BOTH, s, 2)
    with pytest.raises(DiffusionalError, match="integers"):
        CHAIN.marginal(BOTH, torch.tensor([1.0, 2.0]))
    with pytest.raises(DiffusionalError, match=r"steps .*got 1"):
        BinomialDiffusion.constant(1)
