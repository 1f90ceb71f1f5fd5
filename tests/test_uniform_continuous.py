"""Uniform diffusions in continuous time, MATH (35), in worlds whose latents are enumerated and whose levels are integrated by quadrature."""

import math

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator, randn
from diffusional.models.redrawn import UniformDiffusion
from diffusional.redrawn import UniformNoise
from diffusional.sequences import SequenceWorld, all_sequences, exact_ledger, exact_probabilities
from diffusional.space import Categorical

L, K = 3, 2
WORLD = SequenceWorld.random(L, K, seed=1)


class Random(nn.Module):
    """Logits (B, L, K) that depend on every token, also that of the position itself, and on the time."""

    def __init__(self, length: int = L, categories: int = K) -> None:
        super().__init__()
        self.first = nn.Parameter(randn(length * categories, 8, seed=1))
        self.last = nn.Parameter(randn(8, length * categories, seed=2))
        self.shape = (length, categories)

    def forward(self, tokens: Tensor, log_snr: Tensor) -> Tensor:
        inputs = nn.functional.one_hot(tokens, self.shape[1]).flatten(1).to(self.first)
        return (torch.tanh(inputs @ self.first + 0.05 * log_snr[:, None]) @ self.last).view(-1, *self.shape)


def random(signal: object = "linear", steps: int | None = None, world: SequenceWorld = WORLD) -> UniformDiffusion:
    length, k = world.space.shape[0], world.space.levels
    process = UniformNoise(k, steps, signal)  # type: ignore[arg-type]
    return UniformDiffusion(Random(length, k), world.space, process).requires_grad_(False)


def optimal(world: SequenceWorld, signal: object = "linear", steps: int | None = None) -> UniformDiffusion:
    process = UniformNoise(world.space.levels, steps, signal)  # type: ignore[arg-type]
    return UniformDiffusion(world.redrawn_conditionals(), world.space, process)


# The bound.


@pytest.mark.parametrize("k", [2, 5, 40])
def test_one_position_costs_what_its_logits_say(k: int) -> None:
    """A network that ignores z is the reverse chain of its own softmax: −ln softmax(f)_x for every x, by quadrature."""
    logits = 2 * randn(2, k, seed=3).double()
    model = UniformDiffusion(lambda z, log_snr: logits.expand(*z.shape, k), Categorical(2, k), UniformNoise(k))
    x = torch.tensor([[0.0, 1.0], [k - 1.0, 0.0], [1.0, 1.0]]).double()
    expected = -logits.log_softmax(-1)[torch.arange(2), x.long()].sum(1)
    torch.testing.assert_close(exact_ledger(model, x, k).nelbo, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n", "k"), [(2, 4), (3, 3), (5, 2)])
def test_with_exact_contexts_the_bound_is_the_data_s_own(n: int, k: int) -> None:
    """Two positions never jump at once: independent rates lose nothing, and −ln p(x) is reached by every item."""
    world = SequenceWorld.random(n, k, seed=2)
    ledger = exact_ledger(optimal(world), world.states, k)
    torch.testing.assert_close(ledger.nelbo, -world.log_prob(world.states), rtol=0, atol=1e-10)
    assert float(world.table.flatten() @ ledger.nelbo) == pytest.approx(world.entropy(), abs=1e-10)
    assert float(ledger.reconstruction.abs().max()) == 0
    assert float(ledger.prior.abs().max()) < 1e-15
    # Another network is above.
    q = world.table.flatten()
    assert float(q @ exact_ledger(random(world=world), world.states, k).nelbo) > world.entropy() + 0.1


@pytest.mark.parametrize("signal", ["linear", "cosine", "square"])
def test_the_bounds_of_t_steps_approach_it_whatever_the_signal(signal: str) -> None:
    """O(1/T) apart, so that 2 B_2T − B_T is O(1/T²) apart, for the exact and for another network."""
    for make in (lambda steps: optimal(WORLD, signal, steps), lambda steps: random(signal, steps)):
        limit = exact_ledger(make(None), WORLD.states, K).nelbo
        one, two, four = (exact_ledger(make(steps), WORLD.states, K).nelbo - limit for steps in (250, 500, 1000))
        assert float(four.abs().max()) < 0.03
        for fine, coarse in ((two, one), (four, two)):
            # The first step has a cost of order (1/T) ln T.
            assert 1.6 < float(coarse.mean() / fine.mean()) < 2.1
        assert float((2 * four - two).abs().max()) < 0.2 * float(four.abs().max())


@pytest.mark.parametrize("evidence", [True, False])
@pytest.mark.parametrize("u", [0.02, 0.3, 0.9])
def test_the_density_is_the_cost_of_a_short_step(evidence: bool, u: float) -> None:
    """KL_t between levels u − h and u, of posteriors by Bayes' rule, over h: for every x and z, extrapolated to h → 0."""
    k, network = 3, Random(2, 3).requires_grad_(False)
    space = Categorical(2, k)
    signal = None if evidence else (lambda s: 0.999 * (1 - s))
    process = UniformNoise(k, None, signal or "linear")
    model = UniformDiffusion(network, space, process, evidence)
    x, z = (all_sequences(2, k)[i] for i in (torch.arange(9).repeat(9), torch.arange(9).repeat_interleave(9)))

    def slope(h: float) -> Tensor:
        a = process.keeps(torch.tensor([u - h, u], dtype=torch.float64))
        short = UniformDiffusion(network, space, UniformNoise(k, signal=a), evidence)
        level = torch.ones(len(x), dtype=torch.long)
        return short.process.posterior(z, x, level).kl_map(short.step(z, level)) / h

    h = 1e-4 * u
    found = model.density_map(x, z, torch.full((len(x),), u, dtype=torch.float64))
    torch.testing.assert_close(found, 2 * slope(h) - slope(2 * h), rtol=2e-6, atol=1e-7)


def test_ends_inside_have_a_reconstruction_and_a_prior() -> None:
    """a from 0.9 to 0: exact for one position, with p(x|z_1). a down to 0.2: KL_T, and a bound above H(x)."""
    world = SequenceWorld.random(1, 4, seed=3)
    x, q = world.states, world.table.flatten()
    first = exact_ledger(optimal(world, lambda u: 0.9 * (1 - u)), x, 4)
    torch.testing.assert_close(first.nelbo, -world.log_prob(x), rtol=0, atol=1e-10)
    assert float(first.reconstruction.min()) > 0.01
    last = exact_ledger(optimal(world, lambda u: 1 - 0.8 * u), x, 4)
    prior = 0.4 * math.log(1.6) + 3 * 0.2 * math.log(0.8)
    torch.testing.assert_close(last.prior, torch.full((4,), prior, dtype=torch.float64))
    end = 0.2 * q + 0.2
    gap = float((end * (4 * end).log()).sum())
    assert float(q @ last.nelbo) == pytest.approx(world.entropy() + gap, abs=1e-10)


def test_the_bound_is_above_that_of_the_samples_law() -> None:
    model = random()
    few = model.regrid(4)
    p = exact_probabilities(few, K)
    assert bool((exact_ledger(few, WORLD.states, K).nelbo > -p.log()).all())
    drawn = model.sample(4000, generator(1), steps=4)
    seen = (drawn[:, None] == WORLD.states).all(2).double().mean(0)
    assert float(((seen - p).abs() / (p * (1 - p) / 4000).sqrt()).max()) < 4.5
    assert len(list(model.walk_back(2, generator(1)))) == 251


# Numerics.


@pytest.mark.parametrize("u", [1e-6, 0.02, 0.2, 0.35, 0.9])
def test_tilted_draws_have_every_expectation_of_the_marginal(u: float) -> None:
    """E w 1[z] = q(z|x) for all z, where one in two draws differs from x at least; near a = 1, too."""
    process, n, k = UniformNoise(3), 200_000, 3
    x = torch.tensor([[0.0, 2.0]]).expand(n, 2)
    level = torch.full((n,), u, dtype=torch.float64)
    z, weight = process.draw_tilted(x, level, torch.randn(n, 2, generator=generator(3)))
    assert float((z != x).any(1).double().mean()) > 0.49
    p = process.marginal(x[:9], level[:9]).log_prob(all_sequences(2, k)).exp()
    share = torch.bincount((k * z[:, 0] + z[:, 1]).long(), weight, 9) / n
    square = torch.bincount((k * z[:, 0] + z[:, 1]).long(), weight.square(), 9) / n
    # Those that are drawn at all.
    often = p / p[p < 1].amax() > 1e-3 if u > 1e-3 else (all_sequences(2, k) != x[:9]).sum(1) < 2
    error = ((square - share.square()) / n).sqrt()
    assert float(((share - p) / error)[often].abs().max()) < 4.5
    ordinary = process.draw(x, level, torch.randn(n, 2, generator=generator(4)))
    seen = torch.bincount((k * ordinary[:, 0] + ordinary[:, 1]).long(), minlength=9) / n
    assert float(((seen - p).abs() / (p * (1 - p) / n + 1e-9).sqrt()).max()) < 4.5


def test_visits_have_bounded_variance_at_every_level() -> None:
    """E (dKL/du)² of z ~ q grows as ln² u toward a = 1, with rare costs of 1/u; that of tilted draws vanishes."""
    model, x = random(), WORLD.states
    z, rows = all_sequences(L, K).repeat(len(x), 1), x.repeat_interleave(K**L, 0)
    plain, tilted = [], []
    for u in (1e-1, 1e-2, 1e-4, 1e-6):
        level = torch.full((len(rows),), u, dtype=torch.float64)
        chance = model.process.marginal(rows, level).log_prob(z).exp()
        square = model.density_map(rows, z, level).sum(1).square()
        some = 1 - (1 - 0.5 * float(model.process.shares(level[:1])[1])) ** L
        plain.append(float((chance * square).sum() / len(x)))
        weight = torch.where((z != rows).any(1), 2 * some, 2 * (1 - some))
        tilted.append(float((chance * weight * square).sum() / len(x)))
        draws = x.repeat(5000, 1)
        cost = model.level_kl(draws, torch.full((len(draws),), u, dtype=torch.float64), randn(len(draws), L, seed=6))
        assert float(cost.square().mean()) == pytest.approx(tilted[-1], rel=0.1)
    assert plain == sorted(plain)
    assert tilted == sorted(tilted, reverse=True)
    assert tilted[0] < 0.2 * plain[0]


def test_costs_are_finite_at_the_ends_and_for_certain_networks() -> None:
    z, x = all_sequences(L, K).repeat(K**L, 1), WORLD.states.repeat_interleave(K**L, 0)
    certain = UniformDiffusion(
        lambda tokens, log_snr: 1e3 * nn.functional.one_hot(tokens, K).double(), WORLD.space, UniformNoise(K)
    )
    for u in (0.0, 1e-200, 1e-9, 1e-3, 1 - 1e-9, 1.0):
        level = torch.full((len(z),), u, dtype=torch.float64)
        for model in (random(), certain):
            cost = model.density_map(x, z, level)
            assert bool((cost.isfinite() & (cost >= 0)).all()), u


# Estimates.


def test_a_network_s_loss_and_evaluations_agree_with_the_exact_numbers() -> None:
    model = random().float()
    x, exact = WORLD.states.float(), exact_ledger(random(), WORLD.states, K).nelbo
    losses = torch.stack([model.loss(x.repeat(200, 1), generator(i)) for i in range(40)])
    assert abs(float(losses.mean() - exact.mean())) < 4.5 * float(losses.std()) / 40**0.5
    ledger = model.elbo(x.repeat(300, 1), generator(1), cells=16).nelbo.view(300, -1)
    assert float(((ledger.mean(0) - exact) / (ledger.std(0) / 300**0.5)).abs().max()) < 4.5
    found = df.evaluate(model, x, visits=400, seed=2, audit=False)
    assert abs(found.nelbo.value - float(exact.mean())) < 4.5 * found.nelbo.error
    assert float(((found.per_item["nelbo"] - exact) / found.per_item["error"]).abs().max()) < 5


def test_errors_cover() -> None:
    """Of 60 evaluations by visits with one plan, the distances from the exact bound are as large as their errors say."""
    from diffusional.evaluation import Plan

    model = random().float()
    x, exact = WORLD.states.float().repeat(4, 1), float(exact_ledger(random(), WORLD.states, K).nelbo.mean())
    plan = Plan.fit(model, x, evaluations=8000)
    found = [df.evaluate(model, x, visits=64, plan=plan, seed=seed, audit=False).nelbo for seed in range(60)]
    z = torch.tensor([(one.value - exact) / one.error for one in found])
    assert 0.7 < float(z.std()) < 1.35
    assert abs(float(z.mean())) < 4.5 / 60**0.5


def test_the_number_of_redrawn_positions_is_a_control() -> None:
    """Its mean is zero at every level, and it takes away variance."""
    world = SequenceWorld.random(8, 2, seed=4)
    model = random(world=world).float()
    x = world.states.float()[torch.randint(256, (20_000,), generator=generator(1))]
    for u in (0.05, 0.3, 0.7):
        level, noise = torch.full((len(x),), u), torch.randn(len(x), 8, generator=generator(2))
        moment, cost = model.noise_moments(x, level, noise)[:, 0], model.level_kl(x, level, noise)
        assert abs(float(moment.mean())) < 4.5 * float(moment.std()) / len(x) ** 0.5
        assert abs(float(torch.corrcoef(torch.stack([moment, cost]))[0, 1])) > 0.1, u
    assert model.regrid(10).moment_names == ()


def test_two_models_are_compared_and_levels_have_a_grid_of_their_own() -> None:
    one, two = random().float(), random("cosine").float()
    with torch.no_grad():
        two.network.last.mul_(0.5)  # type: ignore[union-attr]
    x = WORLD.states.float()
    found = df.compare(one, two, x, target_error=0.1, unit="nats")
    exact = exact_ledger(random(), WORLD.states, K).nelbo.mean()
    other = random()
    with torch.no_grad():
        other.network.last.mul_(0.5)  # type: ignore[union-attr]
    exact = exact - exact_ledger(other, WORLD.states, K).nelbo.mean()
    assert abs(found.difference.value - float(exact)) < 4.5 * found.difference.error
    # The levels do not depend on the signal, unless its ends do.
    assert torch.equal(one.noise_levels(), two.noise_levels())
    assert len(one.noise_levels()) == 65
    assert not torch.equal(one.noise_levels(), random(lambda u: 0.9 * (1 - u)).noise_levels())


def test_costs_have_maps_and_log_prob_has_gradients() -> None:
    """Every position of the map is unbiased, and so is the differentiable estimate of ln p(x)'s bound."""
    model, x = random(), WORLD.states
    level, noise = torch.rand(len(x), generator=generator(1)).double(), randn(len(x), L, seed=2)
    torch.testing.assert_close(model.kl_map(x, level, noise).sum(1), model.kl_at(x, level, noise))
    exact = exact_ledger(model, x, K).nelbo
    learned = UniformDiffusion(Random(), WORLD.space, UniformNoise(K))
    found = torch.stack([df.log_prob(learned, x, visits=16, seed=seed) for seed in range(80)])
    error = found.std(0) / 80**0.5
    assert float(((found.mean(0) + exact) / error).detach().abs().max()) < 4.5
    found.mean().backward()
    assert float(learned.network.first.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_regrid_goes_both_ways() -> None:
    model = random("cosine")
    assert model.steps is None
    assert model.regrid(7).steps == 7
    assert model.regrid(7).regrid(None).steps is None
    torch.testing.assert_close(
        model.regrid(7).regrid(None).regrid(9).process.signal, random("cosine", 9).process.signal
    )


def test_refusals() -> None:
    model = random()
    x = WORLD.states
    with pytest.raises(df.DiffusionalError, match=r"a\(0\) < 1"):
        UniformDiffusion(Random(), WORLD.space, UniformNoise(K), evidence=False)
    assert UniformDiffusion(Random(), WORLD.space, UniformNoise(K, signal=lambda u: 0.99 - u / 2), False).steps is None
    with pytest.raises(df.DiffusionalError, match=r"a\(0\) = 2"):
        UniformNoise(K, signal=lambda u: torch.where(u > 0, 1 - u, 2.0))
    with pytest.raises(df.DiffusionalError, match="numbers"):
        UniformNoise(K, signal=[0.5, 0.1]).regrid(None)
    with pytest.raises(df.DiffusionalError, match=r"u in \[0, 1\]"):
        model.kl_at(x, torch.full((len(x),), 1.5), torch.zeros(len(x), L))
    with pytest.raises(df.DiffusionalError, match=r"u in \[0, 1\]"):
        model.process.marginal(x, torch.full((len(x),), -0.1))
    for wrong in (
        lambda: model.process.transition(x, 1),
        lambda: model.process.posterior(x, x, 1),
        lambda: model.path_elbo(x),
        lambda: model.log_weight(x, torch.zeros(len(x), 3, L)),
        lambda: model.moves(),
    ):
        with pytest.raises(df.DiffusionalError, match=r"continuous time"):
            wrong()
    with pytest.raises(df.DiffusionalError, match="4 steps"):
        model.regrid(4).process.rate(torch.tensor([0.5]))


def test_the_codec_takes_a_number_of_steps() -> None:
    """A code needs latents: `steps` chooses them, as for a Gaussian diffusion in continuous time."""
    from diffusional import codec

    model, x = random().float(), WORLD.states.float()
    blob = codec.compress(model, x, steps=6)
    assert torch.equal(codec.decompress(model, blob.data), x)


def test_a_visit_has_less_variance_than_one_at_a_uniform_time() -> None:
    """Against z ~ q(z_t|x) at t ~ U[10⁻³, 1] with a = 1 − 0.999 t, Duo's, whose levels near a = 1 are rarely drawn: by quadrature."""
    from diffusional.sequences import _tanh_sinh

    world = SequenceWorld.random(6, 2, seed=4)
    model, k = optimal(world), 2
    x, z = world.states.repeat_interleave(64, 0), world.states.repeat(64, 1)
    nodes, mass = _tanh_sinh(80)
    ours, theirs, mean = 0.0, 0.0, 0.0
    for u, w in zip(nodes, mass, strict=True):
        level = u.expand(len(x))
        a, lost = (float(part) for part in model.process.shares(u))
        chance = model.process.marginal(x, level).log_prob(z).exp()
        cost = model.density_map(x, z, level).sum(1)
        some = 1 - (1 - (1 - 1 / k) * lost) ** 6
        often = max(some, 0.5)
        weight = torch.where((z != x).any(1), some / often, (1 - some) / (1 - often) if some < 0.5 else 1.0)
        mean += float(w * (chance * cost).sum() / 64)
        ours += float(w * (chance * weight * cost.square()).sum() / 64)
        # dt/du of theirs, with the same cost per unit of a.
        slope = float(model.process.rate(u)) * k * a
        if 1e-3 < lost / 0.999 < 1:
            theirs += float(w * (chance * cost.square()).sum() / 64) * 0.999 / slope
    assert mean == pytest.approx(-float(world.log_prob(world.states).mean()), abs=1e-8)
    assert (theirs - mean**2) / (ours - mean**2) == pytest.approx(10.3, abs=0.3)
