"""The binomial diffusion model against worlds of a few bits in which every latent is enumerated, in plain probabilities."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import diffusional as df
from battery import F64, close, generator, randn
from bits import Network, Table, World, constant, each, index, information, kl, log_snr, share_of, states
from diffusional.bernoulli import Bits
from diffusional.errors import DiffusionalError
from diffusional.models.chain import RECONSTRUCTION_SHARE

BETAS = [0.1, 0.35, 0.2, 0.5]
WORLDS: dict[str, Callable[[], World]] = {
    "betas": lambda: World(BETAS, 2, Network(2)),
    "constant": lambda: World(constant(3), 3, Network(3, seed=4)),
    "one bit": lambda: World(constant(5), 1, Network(1, seed=2)),
}
every_world = pytest.mark.parametrize("name", WORLDS)
# Φ(±30) is 0 or 1 to any logit here: noise that makes the bits wanted.
SURE = 30.0


def model_of(world: World) -> df.BinomialDiffusionModel:
    process = df.BinomialDiffusion(world.betas)
    return df.BinomialDiffusionModel(process, world.network, df.space.binary((world.d,)))


def pairs(n: int, d: int) -> tuple[Tensor, Tensor]:
    """All (x, z) of n² rows, x the slower."""
    all_states = torch.tensor(states(d))
    return all_states.repeat_interleave(n, 0), all_states.repeat(n, 1)


def expected_costs(world: World) -> Tensor:
    """The model's −RE, KL_1 … KL_{T−1} and KL_T (x, T + 1), its own, over all latents, differentiable."""
    model, n, (x, z) = model_of(world), 2**world.d, pairs(2**world.d, world.d)
    costs = [model.reconstruction(x, SURE * z)]
    costs += [model.kl_at(x, torch.full((n * n,), t), SURE * z) for t in range(1, world.steps)]
    summed = [(torch.tensor(world.q(0, t + 1)) * cost.view(n, n)).sum(1) for t, cost in enumerate(costs)]
    return torch.stack([*summed, model.prior(torch.tensor(world.states))], 1)


# The costs, MATH (8).


@every_world
def test_every_cost_by_enumeration(name: str) -> None:
    world = WORLDS[name]()
    model, n = model_of(world), 2**world.d
    x, z = pairs(n, world.d)
    with torch.no_grad():
        for t in range(1, world.steps):
            given = model.kl_at(x, torch.full((n * n,), t), SURE * z).view(n, n).numpy()
            np.testing.assert_allclose(given, world.kl_given(t), rtol=1e-10, atol=1e-15)
            np.testing.assert_allclose((world.q(0, t + 1) * given).sum(1), world.kl()[:, t - 1], rtol=1e-10)
        reconstruction = model.reconstruction(x, SURE * z).view(n, n).numpy()
        np.testing.assert_allclose((world.q(0, 1) * reconstruction).sum(1), world.reconstruction(), rtol=1e-12)
        np.testing.assert_allclose(model.prior(torch.tensor(world.states)), world.prior(), rtol=1e-12, atol=1e-15)
    if world.betas[-1] == 1:
        assert not model.prior(torch.tensor(world.states)).any()


@every_world
def test_terms_has_a_noise_for_each_latent(name: str) -> None:
    world = WORLDS[name]()
    model, n = model_of(world), 2**world.d
    x, _ = pairs(n, world.d)
    path = [torch.tensor(states(world.d))[randn(n * n, 1, seed=t)[:, 0].argsort() % n] for t in range(world.steps)]
    with torch.no_grad():
        ledger = model.terms(x, SURE * torch.stack(path))
    at, own = [index(z).numpy() for z in path], index(x).numpy()
    np.testing.assert_allclose(ledger.reconstruction, -np.log(world.decoder()[at[0], own]), rtol=1e-12)
    for t in range(1, world.steps):
        np.testing.assert_allclose(ledger.kl[:, t - 1], world.kl_given(t)[own, at[t]], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(ledger.prior, world.prior()[own], rtol=1e-12, atol=1e-15)
    assert ledger.dimensions == world.d
    assert model.evaluations == world.steps


@every_world
def test_the_mean_of_elbo_s_draws(name: str) -> None:
    """Its noise is drawn by itself: 20,000 draws of one item."""
    world = WORLDS[name]()
    x = torch.tensor(world.states[1:2]).repeat(20_000, 1)
    with torch.no_grad():
        nelbo = model_of(world).elbo(x, generator(5)).nelbo.numpy()
    truth = world.nelbo()
    assert abs(nelbo.mean() - truth[1]) < 4 * nelbo.std() / math.sqrt(20_000)
    assert abs(nelbo.mean() - truth[0]) > 4 * nelbo.std() / math.sqrt(20_000)


# What the bound bounds.


@every_world
def test_the_model_is_normalised_and_its_bound_holds(name: str) -> None:
    """p(x) with the latents summed out, from the model's own distributions."""
    world = WORLDS[name]()
    model, n = model_of(world), 2**world.d
    z, to = pairs(n, world.d)
    with torch.no_grad():
        p = np.full(n, 1 / n)
        for t in range(world.steps - 1, 0, -1):
            level = torch.full((n * n,), t)
            law = model.reverse(z, model.data(z, level + 1), level).log_prob(to).exp().view(n, n).numpy()
            np.testing.assert_allclose(law, world.backward(t), rtol=1e-12)
            p = p @ law
        decoder = model.data(z, torch.ones(n * n, dtype=torch.long)).log_prob(to).exp().view(n, n).numpy()
    np.testing.assert_allclose(decoder, world.decoder(), rtol=1e-12)
    p = p @ decoder
    assert p.sum() == pytest.approx(1, abs=1e-13)
    np.testing.assert_allclose(np.log(p), world.log_prob(), rtol=1e-12)
    assert bool((world.nelbo() > -np.log(p)).all())


@every_world
def test_the_path_form_is_the_same_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """E of MATH (7) over all paths is (8); with one transition's β doubled in (7) alone it is not."""
    world = WORLDS[name]()
    model, n = model_of(world), 2**world.d
    grid = np.stack(np.meshgrid(*[np.arange(n)] * world.steps, indexing="ij")).reshape(world.steps, -1)
    paths, item = torch.tensor(world.states)[torch.tensor(grid)], n - 2
    x = torch.tensor(world.states[item]).expand(grid.shape[1], -1)
    weight, before = np.ones(grid.shape[1]), np.full(grid.shape[1], item)
    for t, now in enumerate(grid):
        weight, before = weight * world.q(t, t + 1)[before, now], now
    assert weight.sum() == pytest.approx(1, abs=1e-13)
    monkeypatch.setattr(model.process, "sample_path", lambda x, generator: paths)
    with torch.no_grad():
        ledger = model.path_elbo(x)
    assert weight @ ledger.nelbo.numpy() == pytest.approx(world.nelbo()[item], rel=1e-12)
    assert weight @ ledger.reconstruction.numpy() == pytest.approx(world.reconstruction()[item], rel=1e-12)
    right = df.BinomialDiffusion(world.betas)

    def doubled(z: Tensor, t: int) -> Bits:
        return Bits(0.5 * right.transition(z, t).logit) if t == 2 else right.transition(z, t)

    monkeypatch.setattr(model.process, "transition", doubled)
    with torch.no_grad():
        assert abs(weight @ model.path_elbo(x).nelbo.numpy() - world.nelbo()[item]) > 1e-3


def test_path_elbo_walks_the_chain() -> None:
    world = WORLDS["betas"]()
    x = torch.tensor(world.states[2:3]).repeat(20_000, 1)
    with torch.no_grad():
        ledger = model_of(world).path_elbo(x, generator(6))
    assert ledger.kl.shape == (20_000, 3)
    nelbo = ledger.nelbo.numpy()
    assert abs(nelbo.mean() - world.nelbo()[2]) < 4 * nelbo.std() / math.sqrt(20_000)


# With the optimal denoiser the gaps are what bits given apart cannot say of each other (MATH (17)–(20)).


def optimal(betas: list[float], d: int) -> tuple[World, np.ndarray]:
    share = share_of(d, seed=3)
    empty = World(betas, d, Network(d))
    return World(betas, d, Table(betas, empty.best(share))), share


def test_one_bit_with_its_optimal_denoiser_costs_its_entropy() -> None:
    for betas in (BETAS, constant(7)):
        world, share = optimal(betas, 1)
        # The prior's gap is all that is left: KL[q(z_T) ‖ p(z_T)].
        gap = kl(share @ world.q(0, world.steps), np.full(2, 0.5))
        entropy = -share @ np.log(share)
        nelbo = expected_costs(world).sum(1).detach().numpy()
        assert share @ nelbo == pytest.approx(entropy + gap, rel=1e-12)
        assert (gap < 1e-14) == (betas[-1] == 1)


@pytest.mark.parametrize("betas", [BETAS, constant(4)], ids=["betas", "constant"])
def test_the_nat_budget_of_two_bits(betas: list[float]) -> None:
    world, share = optimal(betas, 2)
    steps, uniform = world.steps, np.full(4, 0.25)
    cost = share @ expected_costs(world).detach().numpy()
    at = [share @ world.q(0, t) for t in range(1, steps + 1)]
    gaps, informations = [], []
    for t in range(1, steps):
        # (x, z_t, z_{t+1})
        joint = share[:, None, None] * world.q(0, t)[:, :, None] * world.q(t, t + 1)[None]
        back = (joint.sum(0) / at[t]).T
        gaps.append(at[t] @ kl(back, world.backward(t)))
        informations.append(information(joint))
    first = share[:, None] * world.q(0, 1)
    gap = at[0] @ kl((first / at[0]).T, world.decoder())
    last = share[:, None] * world.q(0, steps)
    given = -np.sum(first * np.log(first / at[0]))
    assert cost[0] == pytest.approx(given + gap, rel=1e-12)  # (19)
    np.testing.assert_allclose(cost[1:-1], np.add(informations, gaps), rtol=1e-10)  # (17)
    prior_gap = kl(at[-1], uniform)
    assert cost[-1] == pytest.approx(information(last[:, :, None]) + prior_gap, rel=1e-10, abs=1e-15)  # (18)
    assert cost.sum() == pytest.approx(-share @ np.log(share) + gap + sum(gaps) + prior_gap, rel=1e-12)  # (20)
    assert min(gap, *gaps) > 1e-6  # of bits given apart; the control is one bit, above


@pytest.mark.parametrize("betas", [BETAS, constant(4)], ids=["betas", "constant"])
def test_the_optimal_denoiser_is_the_minimum(betas: list[float]) -> None:
    """The gradient of the data's mean cost vanishes there, by autograd through the model, and a step any way costs more."""
    world, share = optimal(betas, 2)
    least = torch.tensor(share) @ expected_costs(world).sum(1)
    least.backward()
    table = world.network
    assert isinstance(table, Table)
    assert table.logits.grad is not None
    assert table.logits.grad.abs().max() < 1e-14
    for seed in range(4):
        moved = World(
            betas, 2, Table(betas, table.logits.detach().numpy() + 0.3 * randn(*table.logits.shape, seed=seed).numpy())
        )
        away = torch.tensor(share) @ expected_costs(moved).sum(1)
        assert away.item() > least.item() + 1e-4
        away.backward()
        assert moved.network.logits.grad.abs().max() > 1e-4


def test_no_probability_outside_the_interval_is_better() -> None:
    """The docstring's argument: KL[q₊ ‖ r] and KL[q₋ ‖ r] both fall as r comes from outside to the nearer end."""
    process = df.BinomialDiffusion(BETAS)
    z = torch.tensor([[1.0], [-1.0]], dtype=F64)
    for t in (1, 2, 3):
        plus, minus = (process.posterior(z, torch.full_like(z, sign), t) for sign in (1, -1))
        for end, way in ((plus, 1), (minus, -1)):
            for q in (plus, minus):
                outside = [q.kl(Bits(end.logit + way * step)) for step in (0.0, 0.1, 0.5, 3.0)]
                assert all(bool((b > a).all()) for a, b in pairwise(outside))
        # And r runs through all of it, with f.
        model = df.BinomialDiffusionModel(process, lambda z, s: z, df.space.binary((1,)))
        level = torch.full((2,), t)
        r = [model.reverse(z, Bits(torch.full_like(z, f)), level).mean for f in (-40.0, -1.0, 0.0, 1.0, 40.0)]
        assert all(bool((b > a).all()) for a, b in pairwise(r))
        close(r[0], minus.mean, rtol=1e-12)
        close(r[-1], plus.mean, rtol=1e-12)


# Training, MATH (22).


@every_world
def test_the_costs_of_a_loss_are_unbiased(name: str) -> None:
    """Enumerated: every level with every z_{t+1}, and z_1 for 1/32 of the items."""
    world = WORLDS[name]()
    model, n, levels = model_of(world), 2**world.d, world.steps - 1
    x, z = pairs(n, world.d)
    total = np.zeros(n)
    for level in range(levels + 1):
        first = level == 0
        draws = {
            "level": torch.full((n * n,), max(level, 1)),
            "weight": torch.full((n * n,), float(levels), dtype=F64),
            "noise": SURE * z,
            "first": torch.full((n * n,), first),
        }
        with torch.no_grad():
            costs = model.costs(x, draws)
        assert len(costs.position) == (0 if first else n * n)
        value = sum(term for name, term in costs.terms.items() if name != "prior")
        chance = RECONSTRUCTION_SHARE if first else (1 - RECONSTRUCTION_SHARE) / levels
        total += chance * (world.q(0, 1 if first else level + 1) * value.view(n, n).numpy()).sum(1)
        if not first:
            close(costs.position, np.full(n * n, (level - 0.5) / levels), rtol=1e-12)
            np.testing.assert_allclose(costs.density, levels * world.kl_given(level).flatten(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(total + world.prior(), world.nelbo(), rtol=1e-12)


def test_a_batch_of_both_kinds_of_rows() -> None:
    world = WORLDS["constant"]()
    model = model_of(world)
    x = torch.tensor(world.states).repeat(100, 1)
    draws = model.draw(x, None, generator(1))
    assert 20 <= int(draws["first"].sum()) <= 30
    whole = model.costs(x, draws).total()
    first = draws["first"]
    with torch.no_grad():
        kl = model.kl_at(x, draws["level"], draws["noise"]) * draws["weight"] / (1 - RECONSTRUCTION_SHARE)
        reconstruction = model.reconstruction(x, draws["noise"]) / RECONSTRUCTION_SHARE
    close(whole.detach(), torch.where(first, reconstruction, kl), rtol=1e-12)


@pytest.mark.parametrize("size", [0.0, 800.0])
def test_extreme_logits_cost_what_they_should_with_a_gradient(size: float) -> None:
    """A network that is sure: w is 0 or 1, and no cost is infinite but in the limit; float32 as in training."""
    sure = nn.Parameter(torch.full((1,), size))
    model = df.BinomialDiffusionModel(df.BinomialDiffusion(BETAS), lambda z, s: sure + 0 * z, df.space.binary((1,)))
    x, z = (rows.float() for rows in pairs(2, 1))
    value = model.reconstruction(x, SURE * z).sum() + sum(
        model.kl_at(x, torch.full((4,), t), SURE * z).sum() for t in (1, 2, 3)
    )
    value.backward()
    value = value.detach()
    assert math.isfinite(float(value))
    assert sure.grad is not None
    assert math.isfinite(float(sure.grad))
    if size:
        # −ln p(x = −1|z_1) = ℓ, for both z_1, and KL[q₋ ‖ q₊] at each level.
        process = df.BinomialDiffusion(BETAS)
        expected = 2 * size
        for t in (1, 2, 3):
            q = [process.posterior(torch.tensor([[1.0], [-1.0]]), torch.full((2, 1), s), t) for s in (-1.0, 1.0)]
            expected += float(q[0].kl(q[1]).sum())
        assert float(value) == pytest.approx(expected, rel=1e-9)
        assert float(sure.grad) == pytest.approx(2, rel=1e-6)


# What the network is asked.


def test_the_network_is_told_the_log_snr_and_the_condition() -> None:
    network = Network(2)
    model = model_of(World(BETAS, 2, network))
    x, condition = torch.ones(3, 2, dtype=F64), torch.arange(3)[:, None]
    model.kl_at(x, torch.tensor([1, 2, 3]), torch.zeros(3, 2, dtype=F64), condition)
    model.reconstruction(x, torch.zeros(3, 2, dtype=F64), condition)
    (_, told, *rest), (_, told_first, *rest_first) = network.asked
    close(told, [log_snr(BETAS, t) for t in (2, 3, 4)], rtol=1e-12)
    close(told_first, [log_snr(BETAS, 1)] * 3, rtol=1e-12)
    assert torch.equal(rest[0], condition)
    assert torch.equal(rest_first[0], condition)


def test_float32_networks_see_float32_and_costs_are_float64() -> None:
    network = Network(2)
    model = model_of(World(constant(4), 2, network)).float()
    x = torch.ones(3, 2)
    ledger = model.elbo(x, generator())
    assert {a.dtype for asked in network.asked for a in asked} == {torch.float32}
    assert ledger.nelbo.dtype == F64
    assert model.process.log_signal.dtype == F64
    model.loss(x, generator()).backward()
    assert network.weight.grad is not None


# Sampling.


@every_world
def test_samples_have_the_model_s_law(name: str) -> None:
    world = WORLDS[name]()
    model, n = model_of(world), 40_000
    seen = np.bincount(index(model.sample(n, generator(2))).numpy(), minlength=2**world.d)
    p = np.exp(world.log_prob())
    assert stats.chisquare(seen, n * p).pvalue > 1e-3
    assert stats.chisquare(seen, n * np.roll(p, 1)).pvalue < 1e-6


def test_the_walk_back_visits_every_latent() -> None:
    """Its joint law of (z_2, z_1) of one bit, and a path of T + 1 in the network's type."""
    world = World(constant(3), 1, Network(1, seed=2))
    walked = list(model_of(world).walk_back(20_000, generator(4)))
    assert len(walked) == 4
    assert {z.dtype for z in walked} == {F64}
    assert [tuple(z.shape) for z in walked] == [(20_000, 1)] * 4
    seen = np.bincount((2 * index(walked[1]) + index(walked[2])).numpy(), minlength=4)
    law = (np.full(2, 0.5) @ world.backward(2))[:, None] * world.backward(1)
    assert stats.chisquare(seen, 20_000 * law.flatten()).pvalue > 1e-3
    assert not model_of(world).float().sample(2, generator()).requires_grad
    assert model_of(world).float().sample(2, generator()).dtype == torch.float32


def test_each_bit_is_its_own() -> None:
    """q(z|x) of several bits is the product, and shapes are free."""
    model = df.BinomialDiffusionModel(df.BinomialDiffusion(BETAS), lambda z, s: 0 * z, df.space.binary((1, 2, 3)))
    ledger = model.elbo(torch.ones(2, 1, 2, 3), generator())
    assert ledger.kl.shape == (2, 3)
    np.testing.assert_allclose(each(np.array([[0.9, 0.1], [0.2, 0.8]]), 2)[1], [0.18, 0.72, 0.02, 0.08])
    assert model.sample(2, generator()).shape == (2, 1, 2, 3)


# What it refuses.


@pytest.mark.parametrize(
    "space",
    [df.Discrete((2,), 3), df.Discrete((2,), 2, 0.0, 1.0), df.Continuous((2,))],
    ids=["3 levels", "[0, 1]", "reals"],
)
def test_other_spaces_are_refused(space: df.Discrete | df.Continuous) -> None:
    with pytest.raises(DiffusionalError, match=r"space\.binary"):
        df.BinomialDiffusionModel(df.BinomialDiffusion(BETAS), lambda z, s: z, space)


def test_refused() -> None:
    model = model_of(WORLDS["betas"]())
    x = torch.ones(2, 2, dtype=F64)
    with pytest.raises(DiffusionalError, match="levels"):
        model.elbo(0.5 * x)
    for level in (0, 4):
        with pytest.raises(DiffusionalError, match="integers from 1 to 3"):
            model.kl_at(x, torch.tensor([level, 1]), x)
    with pytest.raises(DiffusionalError, match="n to be at least 1, got 0"):
        model.sample(0)
    with pytest.raises(DiffusionalError, match="levels"):
        model.path_elbo(0.5 * x)
    wide = df.BinomialDiffusionModel(df.BinomialDiffusion(BETAS), lambda z, s: z.repeat(1, 2), df.space.binary((2,)))
    with pytest.raises(ValueError, match="z's shape"):
        wide.elbo(x)
