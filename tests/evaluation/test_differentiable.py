"""`log_prob`: its mean and its gradient are those of the exact bound, with less variance than the ways in use."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator, randn
from diffusional.evaluation import Plan
from diffusional.evaluation.differentiable import known
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.models.renoised import Renoised
from diffusional.sequences import SequenceWorld

L, K = 3, 2
WORLD = SequenceWorld.random(L, K, seed=1)
X = WORLD.states.float()


class Random(nn.Module):
    """Logits (B, L, K) that depend on every token."""

    def __init__(self, seed: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Parameter(scale * randn(L * (K + 1), 8, seed=seed))
        self.last = nn.Parameter(randn(8, L * K, seed=seed + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = nn.functional.one_hot(tokens, K + 1).flatten(1).to(self.first)
        return (torch.tanh(inputs @ self.first) @ self.last).view(-1, L, K)


def exact(network: nn.Module, x: Tensor, free: Tensor) -> Tensor:
    """The bound (B,) of x with gradients: Σ_n (1/n) mean over the sets of n free positions (B, L) of Σ −ln p."""
    masks = torch.tensor(list(product([False, True], repeat=L)))
    z = torch.where(masks, float(K), x[:, None]).flatten(0, 1)
    log_p = network(z.long()).double().log_softmax(-1).gather(-1, x.long().repeat_interleave(len(masks), 0)[..., None])
    sums = -(log_p[..., 0].view(len(x), len(masks), L) * masks).sum(2)
    valid = ~(masks & ~free[:, None]).any(2)
    total = torch.zeros(len(x), dtype=torch.float64)
    for n in range(1, L + 1):
        chance = (valid & (masks.sum(1) == n)).double()
        total = total + (chance * sums).sum(1) / chance.sum(1).clamp(min=1) / n
    return total


def gradient(value: Tensor, network: nn.Module) -> Tensor:
    grads = torch.autograd.grad(value, list(network.parameters()))
    return torch.cat([one.flatten() for one in grads])


@pytest.mark.parametrize(("visits", "planned"), [(1, False), (5, False), (4, True)])
def test_its_mean_and_gradient_are_those_of_the_exact_bound(visits: int, planned: bool) -> None:
    network = Random()
    model = df.MaskedDiffusion(network, WORLD.space)
    plan = Plan.fit(model, X.repeat(20, 1), evaluations=400) if planned else None
    bound = exact(network, X, torch.ones_like(X).bool())
    wanted, slope = -bound.detach(), -gradient(bound.sum(), network)
    repeats = 30
    values, slopes = [], []
    for seed in range(30):
        found = df.log_prob(model, X.repeat(repeats, 1), visits, plan=plan, seed=seed)
        values.append(found.detach().view(repeats, -1))
        slopes.append(gradient(found.sum() / repeats, network))
    every = torch.cat(values)
    error = every.std(0) / len(every) ** 0.5
    assert float(((every.mean(0) - wanted) / error).abs().max()) < 4.5
    each = torch.stack(slopes)
    assert float(((each.mean(0) - slope) / (each.std(0) / 30**0.5).clamp(min=1e-7)).abs().max()) < 5.5


def test_given_prompts_it_is_that_of_the_free_positions() -> None:
    network = Random()
    model = PromptedDiffusion(df.MaskedDiffusion(network, WORLD.space))
    x = X[:3]
    prompt = prompts(x, torch.tensor([0, 1, 2]))
    wanted = -exact(network, x, prompt < 0).detach()
    rows = torch.arange(3).repeat(800)
    found = df.log_prob(model, x[rows], 3, condition=prompt[rows]).detach().view(800, 3)
    assert float(((found.mean(0) - wanted) / (found.std(0) / 800**0.5).clamp(min=1e-9)).abs().max()) < 4.5


@pytest.mark.parametrize("steps", [6, None])
def test_other_chains_have_it_too(steps: int | None) -> None:
    """A Gaussian chain, whose decoder takes no network: ten estimates of the value and the gradient, against one of every level."""
    x = torch.tensor([[0.5, -0.2]]).expand(500, 2)
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-2.0, 3.0, steps=steps))
    network = nn.Linear(2, 2, bias=False)
    nn.init.constant_(network.weight, 0.1)
    denoiser = df.Denoiser(lambda z, log_snr: network(z))
    model = df.DiffusionModel(process, denoiser, df.likelihood.GaussianLikelihood(df.Continuous((2,))))
    bound = -model.elbo(x, generator(0)).nelbo.mean()
    slope, wanted = torch.autograd.grad(bound, network.weight)[0], float(bound.detach())
    found = [df.log_prob(model, x, 4, seed=seed).mean() for seed in range(10)]
    slopes = torch.stack([torch.autograd.grad(one, network.weight)[0] for one in found])
    values = torch.stack([one.detach() for one in found])
    # The prior is a part of it.
    plan = Plan.uniform(model)
    assert float(model.prior(x).min()) > 1e-3
    torch.testing.assert_close(known(model, x, plan), plan.base(model, x).sum(1) + model.prior(x).double())
    # The one estimate's error is at most that of one of the ten.
    assert abs(float(values.mean()) - wanted) < 5 * float(values.std())
    assert float(((slopes.mean(0) - slope).abs() / slopes.std(0)).max()) < 5
    assert float(values.std()) < 0.1 * abs(wanted)


def by_time(model: df.MaskedDiffusion, x: Tensor, visits: int, seed: int) -> Tensor:
    """−NELBO by t ~ U[0, 1] and the weight 1/t, each position masked with probability t: LLaDA's loss (GUIDELINES.md of ML-GSAI/LLaDA)."""
    rng = generator(seed)
    t = torch.rand(len(x), visits, generator=rng, dtype=torch.float64).clamp(min=1e-3)
    masks = torch.rand(len(x), visits, L, generator=rng, dtype=torch.float64) < t[..., None]
    rows = x.repeat_interleave(visits, 0)
    z = torch.where(masks.flatten(0, 1), float(K), rows)
    return -(model.hidden_map(rows, z).sum(1).view(len(x), visits) / t).mean(1)


def test_its_variance_is_below_that_of_uniform_times() -> None:
    model = df.MaskedDiffusion(Random(), WORLD.space).requires_grad_(False)
    plan = Plan.fit(model, X.repeat(20, 1), evaluations=400)
    x = X.repeat(500, 1)

    def variance(found: Tensor) -> float:
        return float(found.view(500, -1).var(0).mean())

    theirs = variance(by_time(model, x, 4, 0))
    plain, stratified, best = (
        variance(df.log_prob(model, x, 4, plan=p, antithetic=a)) for p, a in ((None, False), (None, True), (plan, True))
    )
    assert plain < 0.7 * theirs
    assert stratified < 0.4 * theirs
    assert best < 0.2 * theirs


def test_two_policies_have_the_same_draws() -> None:
    old = df.MaskedDiffusion(Random(), WORLD.space).requires_grad_(False)
    new = df.MaskedDiffusion(Random(scale=1.05), WORLD.space).requires_grad_(False)
    x = X.repeat(300, 1)

    def spread(seed: int) -> float:
        apart = df.log_prob(new, x, 2, seed=seed) - df.log_prob(old, x, 2, seed=0)
        return float(apart.view(300, -1).var(0).mean())

    assert spread(0) < 0.1 * spread(1)
    # They do not depend on the batch.
    whole = df.log_prob(old, X, 4, seed=3)
    assert torch.equal(torch.cat([df.log_prob(old, X[i : i + 1], 4, seed=3) for i in range(len(X))]), whole)


def test_refusals() -> None:
    model = df.MaskedDiffusion(Random(), WORLD.space)
    with pytest.raises(df.DiffusionalError, match="visits=0"):
        df.log_prob(model, X, 0)
    other = Plan.uniform(df.MaskedDiffusion(lambda tokens: tokens, df.space.Categorical(L + 1, K)))
    with pytest.raises(df.DiffusionalError, match="plan"):
        df.log_prob(model, X, plan=other)
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-5.0, 5.0, steps=10))
    denoiser = df.Denoiser(lambda z, s, low: z)
    inner = df.DiffusionModel(process, denoiser, df.likelihood.GaussianLikelihood(df.Continuous((2,))))
    with pytest.raises(df.DiffusionalError, match="Renoised"):
        df.log_prob(Renoised(inner, gamma=0.0, shape=(2,)), torch.zeros(1, 2))
