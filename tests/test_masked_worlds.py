"""Masked and uniform diffusions in worlds whose states and latents are enumerated, MATH (34), (35): every number is a finite sum."""

import math
from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator, randn
from diffusional.absorbing import Absorbing, OneAtATime
from diffusional.models.masked import MaskedDiffusion
from diffusional.models.redrawn import UniformDiffusion
from diffusional.redrawn import UniformNoise
from diffusional.sequences import SequenceWorld, all_sequences, exact_ledger, exact_probabilities
from diffusional.space import Categorical

L, K = 3, 2
WORLD = SequenceWorld.random(L, K, seed=1)


class Random(nn.Module):
    """Logits (B, L, K) that depend on every token and on the time, if there is one."""

    def __init__(self, length: int = L, categories: int = K) -> None:
        super().__init__()
        self.first = nn.Parameter(randn(length * (categories + 1), 8, seed=1))
        self.last = nn.Parameter(randn(8, length * categories, seed=2))
        self.shape = (length, categories)

    def forward(self, tokens: Tensor, log_snr: Tensor | None = None) -> Tensor:
        inputs = nn.functional.one_hot(tokens, self.shape[1] + 1).flatten(1).to(self.first)
        time = 0 if log_snr is None else 0.2 * log_snr[:, None]
        return (torch.tanh(inputs @ self.first + time) @ self.last).view(-1, *self.shape)


def masked(process: Absorbing | OneAtATime | None = None) -> MaskedDiffusion:
    return MaskedDiffusion(Random(), WORLD.space, process).requires_grad_(False)


def nothing_but_masks(model: MaskedDiffusion, x: Tensor, n: int) -> Tensor:
    """E Σ_{i ∈ M} −ln p_i(x_i | rest) over the sets M of n positions (B,), written out."""
    total, sets = torch.zeros(len(x), dtype=torch.float64), [m for m in product([0, 1], repeat=L) if sum(m) == n]
    for m in sets:
        z = torch.where(torch.tensor(m) == 1, float(K), x)
        logits = model.network(z.long()).double().log_softmax(-1)
        for i in range(L):
            total -= m[i] * logits[torch.arange(len(x)), i, x[:, i].long()] / len(sets)
    return total


@pytest.mark.parametrize("signal", ["linear", "cosine", "square"])
@pytest.mark.parametrize("steps", [2, 3, 10])
def test_every_cost_of_a_masked_chain_by_the_sum_over_its_latents(signal: str, steps: int) -> None:
    model = masked(Absorbing(K, steps, signal))
    x = WORLD.states
    found, summed = model.exact_ledger(x), exact_ledger(model, x, K + 1)
    for name in ("reconstruction", "kl", "prior"):
        torch.testing.assert_close(getattr(found, name), getattr(summed, name), rtol=1e-10, atol=1e-12)
    a = model.process.keeps(torch.arange(1, steps + 1)).tolist()
    by_number = [nothing_but_masks(model, x, n) for n in range(1, L + 1)]
    for t in range(1, steps):
        rate = (a[t - 1] - a[t]) / (1 - a[t])
        chances = [math.comb(L, n) * (1 - a[t]) ** n * a[t] ** (L - n) for n in range(1, L + 1)]
        kl = rate * sum(c * cost for c, cost in zip(chances, by_number, strict=True))
        torch.testing.assert_close(found.kl[:, t - 1], kl, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", [OneAtATime(K, L), Absorbing(K, 4, "cosine")], ids=["one at a time", "absorbing"])
def test_a_cost_is_its_factor_times_what_the_masks_hide(process: Absorbing | OneAtATime) -> None:
    """What controls rely on: `mask_rate` of z_t, and `masks_number`."""
    model, x = masked(process), WORLD.states
    noise = randn(len(x), L, seed=5)
    for t in range(1, len(model.noise_levels()) + 1):
        latent = torch.full((len(x),), t)
        z = model.noisy(x, latent, noise)
        cost = model.reconstruction(x, noise) if t == 1 else model.level_kl(x, latent - 1, noise)
        torch.testing.assert_close(
            model.mask_rate(latent) * model.hidden_map(x, z).sum(1), cost, rtol=1e-10, atol=1e-12
        )
        number = model.masks_number(latent)
        assert (number is not None) == isinstance(process, OneAtATime)
        if number is not None:
            assert torch.equal(number, (z == K).sum(1))


def test_one_at_a_time_is_continuous_time_and_the_mean_over_all_orders() -> None:
    model = masked()
    x = WORLD.states
    found, summed = model.exact_ledger(x), exact_ledger(model, x, K + 1)
    torch.testing.assert_close(found.kl, summed.kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.nelbo, summed.nelbo, rtol=1e-10, atol=1e-12)
    orders = torch.zeros(len(x), dtype=torch.float64)
    for order in permutations(range(L)):
        z = torch.full_like(x, float(K))
        for i in order:
            orders -= model.log_probs(z)[torch.arange(len(x)), i, x[:, i].long()] / math.factorial(L)
            z[:, i] = x[:, i]
    torch.testing.assert_close(found.nelbo, orders, rtol=1e-10, atol=1e-12)
    # The bound of T steps approaches it as 1/T, whatever the schedule; with exact conditionals from above.
    for signal in ("linear", "cosine", "square"):
        apart = [float((masked(Absorbing(K, T, signal)).exact_ledger(x).nelbo - orders).mean()) for T in (500, 1000)]
        assert apart[0] / apart[1] == pytest.approx(2, rel=0.05)
        optimal = MaskedDiffusion(WORLD.conditionals(), WORLD.space, Absorbing(K, 1000, signal))
        excess = float(WORLD.table.flatten() @ optimal.exact_ledger(x).nelbo) - WORLD.entropy()
        assert 0 < excess < 0.01


@pytest.mark.parametrize("signal", ["linear", "cosine", "square"])
def test_the_shape_of_the_signal_does_not_matter_in_continuous_time(signal: str) -> None:
    """∫ −a'/(1 − a) E Σ du by Gauss–Legendre on E over the number of masks, against the sum over orders."""
    model, counts = masked(Absorbing(K, None, signal)), masked().exact_ledger(WORLD.states).nelbo
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, w = torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
    a, rate = model.process.keeps(u), model.process.rate(u)
    total = torch.zeros(len(WORLD.states), dtype=torch.float64)
    for n in range(1, L + 1):
        chance = math.comb(L, n) * (1 - a) ** n * a ** (L - n)
        total += (w * rate * chance).sum() * nothing_but_masks(model, WORLD.states, n)
    torch.testing.assert_close(total, counts, rtol=1e-10, atol=1e-10)
    assert float(model.reconstruction(WORLD.states, torch.zeros(8, L)).abs().max()) == 0


@pytest.mark.parametrize(("n", "k"), [(3, 2), (2, 4), (6, 3)])
def test_with_exact_conditionals_the_bound_is_the_data_s_own(n: int, k: int) -> None:
    world = SequenceWorld.random(n, k, seed=2)
    model = MaskedDiffusion(world.conditionals(), world.space)
    nelbo = model.exact_ledger(world.states).nelbo
    torch.testing.assert_close(nelbo, -world.log_prob(world.states), rtol=0, atol=1e-10)
    assert float((world.table.flatten() * nelbo).sum()) == pytest.approx(world.entropy(), abs=1e-10)
    # At finite T several positions are shown at once, as if they were independent: the bound is above.
    coarse = float((world.table.flatten() * model.regrid(2).exact_ledger(world.states).nelbo).sum())
    assert coarse > world.entropy() + 1e-3


@pytest.mark.parametrize("steps", [2, 5, 100, 1000])
def test_a_uniform_chain_with_exact_predictions_has_the_budget_of_its_data(steps: int) -> None:
    """Σ over all latents, and with the exact p(x_i|z_t): the NELBO falls with T to above H(x)."""
    world = SequenceWorld.random(2, 3, seed=3)
    model = UniformDiffusion(Exact(world, UniformNoise(3, steps)), world.space, UniformNoise(3, steps), evidence=False)
    nelbo = exact_ledger(model, world.states, 3).nelbo
    mean = float((world.table.flatten() * nelbo).sum())
    assert world.entropy() - 1e-10 < mean
    # What is lost is that positions are independent in a step: O(1/T).
    assert mean < world.entropy() + 4 / steps


class Exact(nn.Module):
    """The logarithm of p(x_i = k | z_t) of a world under uniform noise, by Bayes' rule over all states."""

    def __init__(self, world: SequenceWorld, process: UniformNoise) -> None:
        super().__init__()
        self.world, self.process = world, process

    def forward(self, tokens: Tensor, log_snr: Tensor) -> Tensor:
        states, k = self.world.states, self.world.space.levels
        a = torch.sigmoid(log_snr.double()).clamp(1e-18, 1 - 1e-18)[:, None, None]
        a = torch.where(log_snr.double()[:, None, None] <= -20, 0.0, a)
        same = tokens[:, None, :] == states[None].long()
        joint = (a * same + (1 - a) / k).prod(2) * self.world.table.flatten()
        return torch.stack([joint @ (states == c).double() for c in range(k)], -1).log()


def brute_kl(model: UniformDiffusion, x: Tensor, t: int) -> float:
    """KL_t of one item by probabilities alone: Bayes' rule on explicit transition matrices."""
    k = model.space.levels
    a = [1.0, *model.process.signal.tolist()]

    def matrix(keep: float) -> Tensor:
        return keep * torch.eye(k, dtype=torch.float64) + (1 - keep) / k

    upto, onward = matrix(a[t]), matrix(a[t + 1] / a[t])
    total = 0.0
    for z in all_sequences(len(x), k):
        chance = math.prod(float((upto @ onward)[int(x[i]), int(z[i])]) for i in range(len(x)))
        p = model.log_probs(z[None], torch.tensor([t + 1])).exp()[0]
        for i in range(len(x)):
            column = onward[:, int(z[i])]
            posterior = [upto[c] * column / (upto[c] * column).sum() for c in range(k)]
            q, r = posterior[int(x[i])], sum(p[i, c] * posterior[c] for c in range(k))
            total += chance * float((q * (q / r).log()).sum())
    return total


@pytest.mark.parametrize("evidence", [True, False])
def test_every_cost_of_a_uniform_chain_by_the_sum_over_its_latents(evidence: bool) -> None:
    model = UniformDiffusion(Random(), WORLD.space, UniformNoise(K, 4, [0.8, 0.5, 0.3, 0.1]), evidence)
    ledger = exact_ledger(model.requires_grad_(False), WORLD.states, K)
    for i, t in ((1, 1), (3, 2), (6, 3)):
        assert float(ledger.kl[i, t - 1]) == pytest.approx(brute_kl(model, WORLD.states[i], t), rel=1e-10)
    last = 0.1 + 0.9 / K
    prior = L * (last * math.log(K * last) + (1 - last) * math.log(K * (1 - last)))
    torch.testing.assert_close(ledger.prior, torch.full((K**L,), prior, dtype=torch.float64), rtol=1e-10, atol=0)


CHAINS = {
    "one at a time": (masked, K + 1),
    "absorbing": (lambda: masked(Absorbing(K, 3)), K + 1),
    "uniform": (lambda: UniformDiffusion(Random(), WORLD.space, UniformNoise(K, 3)).requires_grad_(False), K),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_below_what_the_sampler_draws(name: str) -> None:
    make, values = CHAINS[name]
    model = make()
    p, nelbo = exact_probabilities(model, values), exact_ledger(model, WORLD.states, values).nelbo
    assert float(p.sum()) == pytest.approx(1, abs=1e-10)
    assert bool((nelbo >= -p.log() - 1e-10).all())
    assert float((nelbo + p.log()).max()) > 1e-3
    drawn = model.sample(4000, generator(1))
    seen = (drawn[:, None] == WORLD.states).all(2).double().mean(0)
    assert float(((seen - p).abs() / (p * (1 - p) / 4000).sqrt()).max()) < 4.5


def test_few_steps_cost_what_the_bound_of_that_many_steps_says() -> None:
    """The sampler of T steps draws from another p(x); with exact conditionals its distance from the data is at most the excess of the bound."""
    model = MaskedDiffusion(WORLD.conditionals(), WORLD.space)
    q = WORLD.table.flatten()
    for steps in (2, 4):
        few = model.regrid(steps)
        p = exact_probabilities(few, K + 1)
        excess = float((q * few.exact_ledger(WORLD.states).nelbo).sum()) - WORLD.entropy()
        assert 1e-4 < float((q * (q / p).log()).sum()) <= excess + 1e-12
    torch.testing.assert_close(exact_probabilities(model, K + 1), q, rtol=0, atol=1e-12)


def test_information_is_the_part_of_the_budget_that_training_cannot_change() -> None:
    """MATH (17), (20): with exact conditionals KL_t = I(x; z_t | z_{t+1}) + the gap of independent positions."""
    steps = 4
    process = Absorbing(K, steps)
    keep = [1.0, *process.signal.tolist()]
    information = [WORLD.information(a) for a in keep[1:]]
    assert information[-1] == pytest.approx(0, abs=1e-12)
    assert WORLD.information(1.0) == pytest.approx(WORLD.entropy())
    kl = (
        WORLD.table.flatten()
        @ MaskedDiffusion(WORLD.conditionals(), WORLD.space, process).exact_ledger(WORLD.states).kl
    )
    for t in range(steps - 1):
        assert float(kl[t]) >= information[t] - information[t + 1] - 1e-12


def test_a_network_s_loss_and_evaluations_agree_with_the_exact_numbers() -> None:
    x = WORLD.states.float()
    for process in (None, Absorbing(K, 4), Absorbing(K, None, "cosine")):
        model = masked(process).float()
        exact = model.exact_ledger(x).nelbo
        losses = torch.stack([model.loss(x.repeat(200, 1), generator(i)) for i in range(40)])
        assert abs(float(losses.mean() - exact.mean())) < 4.5 * float(losses.std()) / 40**0.5
        found = df.evaluate(model, x, visits=400, seed=2)
        assert abs(found.nelbo.value - float(exact.mean())) < 4.5 * found.nelbo.error
        scores, error = found.per_item["nelbo"], found.per_item["error"]
        assert float(((scores - exact) / error).abs().max()) < 5


def test_importance_weights_over_orders_approach_the_model_s_own_probability() -> None:
    model, x = masked().float(), WORLD.states.float()
    p = exact_probabilities(model, K + 1)
    weights = model.log_weight(x.repeat_interleave(2000, 0), torch.randn(16000, L, L, generator=generator(3))).exp()
    mean, error = weights.view(8, -1).mean(1), weights.view(8, -1).std(1) / 2000**0.5
    assert float(((mean - p).abs() / error).max()) < 4.5


def test_the_chain_rule_along_one_order_is_another_model() -> None:
    """Each order's probabilities sum to one; the bound is their mean over the orders; it lies above that of the mixture."""
    model, x = masked(), WORLD.states
    every = torch.stack([model.chain_rule(x, torch.tensor(order)) for order in permutations(range(L))])
    torch.testing.assert_close((-every).exp().sum(1), torch.ones(len(every), dtype=torch.float64))
    torch.testing.assert_close(every.mean(0), model.exact_ledger(x).nelbo, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((-every).exp().mean(0), exact_probabilities(model, K + 1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.chain_rule(x), every[0])
    assert float((every[0] - every[-1]).abs().max()) > 0.01
    with pytest.raises(df.DiffusionalError, match=r"0 … 2"):
        model.chain_rule(x, torch.tensor([0, 1, 1]))


def test_refusals() -> None:
    space = Categorical(4, 3)
    with pytest.raises(df.DiffusionalError, match="mask of a masked diffusion"):
        space.encode(torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(df.DiffusionalError, match="got 7 in item 1"):
        space.encode(torch.tensor([[0, 1, 2, 2], [0, 7, 0, 0]]))
    model = MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 4), space)
    with pytest.raises(df.DiffusionalError, match=r"logits of shape \(3, 4, 3\)"):
        model.elbo(torch.zeros(1, 4))
    with pytest.raises(df.DiffusionalError, match="0 to 2"):
        model.elbo(torch.full((1, 4), 3.0))
    with pytest.raises(df.DiffusionalError, match=r"space\.Categorical"):
        MaskedDiffusion(lambda tokens: tokens, df.Discrete((4,), 3))
    with pytest.raises(df.DiffusionalError, match="5"):
        MaskedDiffusion(lambda tokens: tokens, space, Absorbing(5, 10))
    with pytest.raises(df.DiffusionalError, match="length 4"):
        MaskedDiffusion(lambda tokens: tokens, space, OneAtATime(3, 5))
    with pytest.raises(df.DiffusionalError, match=r"a_T = 0\.1"):
        Absorbing(3, signal=[0.5, 0.1])
    with pytest.raises(df.DiffusionalError, match="a_1 > a_2"):
        Absorbing(3, signal=[0.5, 0.6, 0.0])
    with pytest.raises(df.DiffusionalError, match="a_1 < 1"):
        UniformNoise(3, signal=[1.0, 0.5])
    with pytest.raises(df.DiffusionalError, match="unordered"):
        df.likelihood.LevelPosterior(space)
    with pytest.raises(df.DiffusionalError, match="16 positions"):
        MaskedDiffusion(lambda tokens: tokens, Categorical(17, 3)).exact_ledger(torch.zeros(1, 17))
