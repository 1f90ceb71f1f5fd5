"""Prompts: the bound of x_B | x_A by the sum over all masks of the free positions, whatever the number of given tokens."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator, randn
from diffusional.absorbing import Absorbing
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.sequences import SequenceWorld
from diffusional.space import Categorical

L, K = 4, 2
WORLD = SequenceWorld.random(L, K, seed=1)
X = WORLD.states.float()
# Every number of given tokens, at the beginning and elsewhere.
GIVEN = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]).bool()


class Random(nn.Module):
    """Logits (B, L, K) that depend on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(randn(L * (K + 1), 8, seed=1))
        self.last = nn.Parameter(randn(8, L * K, seed=2))

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = nn.functional.one_hot(tokens, K + 1).flatten(1).to(self.first)
        return (torch.tanh(inputs @ self.first) @ self.last).view(-1, L, K)


def every_prompt() -> tuple[Tensor, Tensor]:
    """Return all items with each pattern of given tokens, and their prompts."""
    x = X.repeat(len(GIVEN), 1)
    return x, prompts(x, GIVEN.repeat_interleave(len(X), 0))


def written_out(network: nn.Module, x: Tensor, given: Tensor) -> float:
    """Σ_n (1/n) mean over the sets of n free positions of Σ −ln p, of one item."""
    free, total = (~given).nonzero()[:, 0].tolist(), 0.0
    for n in range(1, len(free) + 1):
        sets = list(combinations(free, n))
        for some in sets:
            z = x.clone()
            z[list(some)] = K
            log_p = network(z[None].long()).double().log_softmax(-1)[0]
            total -= sum(float(log_p[i, int(x[i])]) for i in some) / n / len(sets)
    return total


def conditional(x: Tensor, given: Tensor) -> Tensor:
    """Return ln p(x_B | x_A) (N,) of the world."""
    log_p, part = WORLD.log_prob(x), torch.zeros(len(x), dtype=torch.float64)
    for i in range(len(x)):
        same = ((x[i] == X) | ~given[i]).all(1)
        part[i] = WORLD.table.flatten()[same].sum().log()
    return log_p - part


def test_the_exact_ledger_is_the_sum_over_all_sets_of_free_positions() -> None:
    network = Random().requires_grad_(False)
    model = PromptedDiffusion(df.MaskedDiffusion(network, WORLD.space))
    x, prompt = every_prompt()
    found = model.exact_ledger(x, prompt)
    expected = [written_out(network, one, given >= 0) for one, given in zip(x, prompt, strict=True)]
    torch.testing.assert_close(found.nelbo, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    # Without given tokens it is the ledger of the masked diffusion, level by level.
    own = df.MaskedDiffusion(network, WORLD.space).exact_ledger(X)
    torch.testing.assert_close(found.kl[: len(X)], own.kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.reconstruction[: len(X)], own.reconstruction, rtol=1e-10, atol=1e-12)


def test_with_exact_conditionals_the_bound_is_that_of_the_data_given_the_prompt() -> None:
    model = PromptedDiffusion(df.MaskedDiffusion(WORLD.conditionals(), WORLD.space))
    x, prompt = every_prompt()
    found = model.exact_ledger(x, prompt).nelbo
    torch.testing.assert_close(found, -conditional(x, prompt >= 0), rtol=0, atol=1e-10)
    # Its mean over the data is H(x_B | x_A) = H(x) − H(x_A).
    for pattern, each in zip(GIVEN, found.view(len(GIVEN), -1), strict=True):
        hidden = tuple(i for i in range(L) if not pattern[i])
        of_prompt = float(torch.special.entr(WORLD.table.sum(hidden)).sum()) if len(hidden) < L else 0.0
        mean = float((WORLD.table.flatten() * each).sum())
        assert mean == pytest.approx(WORLD.entropy() - of_prompt, abs=1e-10)


def test_estimates_have_the_mean_of_the_exact_ledger_for_every_prompt() -> None:
    network = Random().requires_grad_(False)
    model = PromptedDiffusion(df.MaskedDiffusion(network, WORLD.space))
    x, prompt = every_prompt()
    exact = model.exact_ledger(x, prompt).nelbo
    result = df.evaluate(model, x, visits=100, unit="nats", condition=prompt, seed=1, audit=False)
    scores, error = result.per_item["nelbo"], result.per_item["error"]
    order = result.per_item["item"].argsort()
    assert float(((scores[order] - exact) / error[order].clamp(min=1e-6)).abs().max()) < 5
    drawn = torch.stack([model.elbo(x, generator(i), prompt).nelbo for i in range(300)])
    apart = (drawn.mean(0) - exact) / (drawn.std(0) / 300**0.5).clamp(min=1e-6)
    assert float(apart.abs().max()) < 5
    loss = torch.stack([model.loss(x, generator(i), prompt) for i in range(300)])
    assert abs(float(loss.mean() - exact.mean())) < 5 * float(loss.std()) / 300**0.5
    # A score does not depend on the other items and their prompts.
    plan = df.evaluation.Plan.uniform(model)
    some = torch.arange(20, 50)
    whole, part = (
        df.evaluate(model, x[rows], visits=4, unit="nats", condition=prompt[rows], plan=plan, audit=False)
        for rows in (torch.arange(len(x)), some)
    )
    scores = df.score(model, x[some], visits=4, condition=prompt[some], plan=plan)
    assert torch.equal(scores.nelbo, whole.per_item["nelbo"][whole.per_item["item"].argsort()][some])
    ordered = [one.per_item["nelbo"][one.per_item["item"].argsort()] for one in (whole, part)]
    assert torch.equal(ordered[0][some], ordered[1])


def test_levels_are_equal_parts_of_the_free_positions() -> None:
    """Level s: (1/L) E_u (F/n) Σ over n = ⌈u F⌉ masks, u uniform in ((s − 1)/L, s/L]; the grid has all pieces of constant n."""
    network = Random().requires_grad_(False)
    model = PromptedDiffusion(df.MaskedDiffusion(network, WORLD.space))
    x, prompt = every_prompt()
    found = model.exact_ledger(x, prompt)
    levels = torch.cat([found.reconstruction[:, None], found.kl], 1)
    free = (prompt < 0).sum(1)
    for i in range(0, len(x), 5):
        sums = [0.0]
        for n in range(1, int(free[i]) + 1):
            sets = list(combinations((prompt[i] < 0).nonzero()[:, 0].tolist(), n))
            z = x[i].repeat(len(sets), 1)
            for row, some in zip(z, sets, strict=True):
                row[list(some)] = K
            log_p = network(z.long()).double().log_softmax(-1).gather(-1, x[i].long().expand(len(sets), L)[..., None])
            sums.append(-float((log_p[..., 0] * (z == K)).sum()) / len(sets))
        for s in range(1, L + 1):
            grid = ((torch.arange(12, dtype=torch.float64) + 0.5) / 12 + s - 1) / L
            numbers = (grid * free[i]).ceil().long().tolist()
            expected = sum(float(free[i]) / n * sums[n] for n in numbers) / len(numbers) / L
            assert float(levels[i, s - 1]) == pytest.approx(expected, rel=1e-6)
    # Draws have these means, level by level.
    many = torch.arange(len(x)).repeat(400)
    for s in range(1, L + 1):
        noise, level = randn(len(many), L, seed=s).float(), torch.full((len(many),), s - 1)
        drawn = model.level_kl(x[many], level, noise, prompt[many]).view(400, len(x))
        apart = (drawn.mean(0) - levels[:, s - 1]) / (drawn.std(0) / 400**0.5).clamp(min=1e-6)
        assert float(apart.abs().max()) < 5
    # A constant cost of a mask leaves no noise, whatever the prompt: each level has F/L of it.
    plain = PromptedDiffusion(df.MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, K), WORLD.space))
    for s in range(1, L + 1):
        noise = randn(len(x), L, seed=s).float()
        drawn = plain.level_kl(x, torch.full((len(x),), s - 1), noise, prompt)
        torch.testing.assert_close(drawn, free.double() / L * math.log(K), rtol=1e-6, atol=0)


def test_given_tokens_are_never_masked_and_never_charged() -> None:
    seen = []

    def network(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return torch.zeros(*tokens.shape, K)

    model = PromptedDiffusion(df.MaskedDiffusion(network, WORLD.space))
    x, prompt = every_prompt()
    noise = randn(len(x), L, seed=3).float()
    for t in range(1, L):
        costs = model.kl_map(x, torch.full((len(x),), t), noise, prompt)
        assert not bool(costs[prompt >= 0].any())
    model.reconstruction(x, noise, prompt)
    for tokens in seen:
        assert not bool((tokens == K)[prompt >= 0].any())
        assert bool((tokens == K).any(1).all())


def test_samples_keep_their_prompts_and_have_the_distribution_of_the_data_given_them() -> None:
    model = PromptedDiffusion(df.MaskedDiffusion(WORLD.conditionals(), WORLD.space))
    for pattern in GIVEN:
        prompt = prompts(X[5:6], pattern[None]).expand(3000, L)
        drawn = model.sample(3000, generator(1), prompt)
        assert bool((drawn[:, pattern] == X[5, pattern]).all())
        p = conditional(X, pattern.expand(len(X), L)).exp()
        p = torch.where((X[:, pattern] == X[5, pattern]).all(1), p, 0.0)
        seen = (drawn[:, None] == X).all(2).double().mean(0)
        assert float(((seen - p).abs() / (p * (1 - p) / 3000).sqrt().clamp(min=1e-9)).max()) < 4.5
    # Different prompts at once, in two steps, and the most confident filling.
    x, prompt = every_prompt()
    for drawn in (model.sample(len(x), generator(2), prompt, steps=2), model.most_confident(prompt)):
        assert bool(((drawn == prompt) | (prompt < 0)).all())
        assert float(drawn.max()) < K
    # The most certain position first, one at a time.
    z = torch.where(prompt < 0, float(K), x)
    for _ in range(L):
        log_p, token = model.model.log_probs(z).max(2)
        at = torch.where(z == K, log_p, -torch.inf).argmax(1)
        rows = (z == K).any(1).nonzero().squeeze(1)
        z[rows, at[rows]] = token[rows, at[rows]].float()
    assert torch.equal(model.most_confident(prompt), z)
    best = model.most_confident(prompts(X[:1], 3))[0, 3]
    joint = WORLD.table[0, 0, 0]
    assert int(best) == int(joint.argmax())


def test_refusals() -> None:
    model = PromptedDiffusion(df.MaskedDiffusion(Random(), Categorical(L, K)))
    x = X[:3]
    with pytest.raises(df.DiffusionalError, match="prompt"):
        model.elbo(x)
    with pytest.raises(df.DiffusionalError, match=r"position 1 of item 2"):
        model.elbo(x, None, torch.tensor([[0, -1, -1, -1], [-1, -1, -1, -1], [0, 1, -1, -1]]))
    with pytest.raises(df.DiffusionalError, match=r"item 1\b"):
        model.elbo(x, None, prompts(x, torch.tensor([1, 4, 0])))
    with pytest.raises(df.DiffusionalError, match=r"got 2 in item 0"):
        model.sample(1, None, torch.tensor([[2, -1, -1, -1]]))
    with pytest.raises(df.DiffusionalError, match=r"integers \(N, 4\)"):
        model.elbo(x, None, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(df.DiffusionalError, match="regrid"):
        PromptedDiffusion(df.MaskedDiffusion(Random(), Categorical(L, K), Absorbing(K, 5)))
    without = PromptedDiffusion(df.MaskedDiffusion(Random(), Categorical(L, K, excluded=1)))
    with pytest.raises(df.DiffusionalError, match="got 1 in item 0 at position 2"):
        without.sample(1, None, torch.tensor([[0, -1, 1, -1]]))
    for given in (torch.tensor([1, 2]), torch.tensor(0.5), torch.zeros(3, 2).bool()):
        with pytest.raises(df.DiffusionalError, match="expected"):
            prompts(x, given)
    with pytest.raises(df.DiffusionalError, match="0 to 4"):
        prompts(x, 5)
