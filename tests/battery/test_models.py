"""Every family of models through the same statements, MATH (7), (8), (22): adding a family means adding a row to MODELS.

Each is tiny, with random weights, so that nothing holds by accident: no distribution is like the prior, no bit like another.
"""

import copy
import itertools
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import F64, generator, randn
from diffusional import likelihood, schedule, space
from diffusional.absorbing import Absorbing
from diffusional.evaluation import Plan
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.networks import Ladder
from outside.essay_chain import EssayChain
from outside.masked_bits import MaskedBits
from outside.multinomial import MultinomialModel

D, T = 2, 4
BITS, REALS = space.binary((D,)), df.Continuous((D,))
# Steps that no model here is far from: weights of few draws are then enough.
BETAS = (0.5, 0.3, 0.35, 0.4)
NOISE = schedule.from_betas(BETAS)


class Net(nn.Module):
    """Random outputs (B, n) of z and what else is given."""

    def __init__(self, n: int, seed: int = 0, size: float = 0.4, inputs: int = D) -> None:
        super().__init__()
        self.first = nn.Parameter(randn(inputs, 8, seed=10 + seed))
        self.last = nn.Parameter(size * randn(8, n, seed=20 + seed) / 8**0.5)
        self.bias = nn.Parameter(0.3 * randn(n, seed=30 + seed))

    def forward(self, z: Tensor, log_snr: Tensor | None = None) -> Tensor:
        time = 0 if log_snr is None else 0.2 * log_snr[:, None]
        return torch.tanh(z @ self.first + time) @ self.last + self.bias


def gaussian(
    predicts: str,
    decoder: likelihood.Likelihood,
    variance: str = "posterior",
    process: df.GaussianDiffusion | None = None,
) -> df.DiffusionModel:
    levels = decoder.space.levels if isinstance(decoder.space, df.Discrete) else None
    outputs = D * (levels or 1) if predicts == "levels" else D
    if variance == "learned":
        outputs += D
    denoiser = df.Denoiser(
        Net(outputs),
        predicts,  # type: ignore[arg-type]
        decoder.space if predicts == "levels" else None,  # type: ignore[arg-type]
        learns_variance=variance == "learned",
    )
    return df.DiffusionModel(process or df.GaussianDiffusion(NOISE), denoiser, decoder, variance)  # type: ignore[arg-type]


def free(shared: bool) -> df.GaussianChain:
    networks = Net(2 * D, 1) if shared else [Net(2 * D, seed) for seed in range(1, T)]
    decoder = df.Denoiser(Net(2 * D, 9), "levels", BITS)
    return df.GaussianChain(df.GaussianDiffusion(NOISE), networks, decoder, likelihood.NetworkLevels(BITS))


def latent_chain(assisted: bool = False) -> df.DiffusionModel:
    """A chain over a latent, whose p(z|z_1) takes its network if `assisted`: otherwise an evaluation visits its levels."""
    decoder = likelihood.GaussianLikelihood(REALS, variance=0.3, assisted=assisted)
    return df.DiffusionModel(df.GaussianDiffusion(NOISE), df.Denoiser(Net(D, 5), "data"), decoder)


class Tokens(nn.Module):
    """Random logits (B, D, K) of tokens, which may be masks."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.categories = categories
        self.net = Net(D * categories, 7, 2.0, D * (categories + 1))

    def forward(self, tokens: Tensor, log_snr: Tensor | None = None) -> Tensor:
        seen = nn.functional.one_hot(tokens, self.categories + 1).to(self.net.first).flatten(1)
        return self.net(seen, log_snr).view(-1, D, self.categories)


def masked(process: df.Absorbing | None = None) -> df.MaskedDiffusion:
    return df.MaskedDiffusion(Tokens(3), space.Categorical(D, 3), process)


def vae(prior: Chain | df.Prior | None = None) -> df.VAE:
    return df.VAE(Net(2 * D, 2), Net(2 * D, 3, 2.0), likelihood.NetworkLevels(BITS), D, prior=prior)


def ladder(prior: Chain | None = None) -> df.HierarchicalVAE:
    torch.manual_seed(3)
    network = Ladder((D,), (2 * D,), latents=(3, D), hidden=8).double()
    return df.HierarchicalVAE(network, likelihood.NetworkLevels(BITS), prior=prior)


class Wide(df.Prior):
    """N(0, 2 I), whose cost is a draw."""

    shape = (D,)

    def log_prob(self, z: Tensor, condition: object = None) -> Tensor:
        return df.Gaussian(0 * z, math.log(2) + 0 * z).log_prob(z)

    def sample(
        self, n: int, like: Tensor, generator: torch.Generator | None = None, condition: object = None
    ) -> Tensor:
        return 2**0.5 * like.new_empty(n, D).normal_(generator=generator)


def fitted(make: Callable[[], LatentVariableModel], steps: int = 80) -> LatentVariableModel:
    """A model after a few steps on all states, the first of which are the likeliest."""
    torch.manual_seed(1)
    model = make()
    x, rng = states(model), generator(0)
    x = torch.cat([x, x[: len(x) // 2]]).repeat(8, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(x, rng).backward()
        optimizer.step()
    return model


MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "noise, posterior": lambda: fitted(lambda: gaussian("noise", likelihood.LevelPosterior(BITS))),
    "data, transition": lambda: fitted(
        lambda: gaussian("data", likelihood.DiscretizedGaussian(df.Discrete((D,), 3), variance=0.3), "transition")
    ),
    "v, learned": lambda: gaussian("v", likelihood.DiscretizedGaussian(BITS, variance=0.5), "learned"),
    "score, of reals": lambda: gaussian("score", likelihood.GaussianLikelihood(REALS, variance=0.4), "transition"),
    "levels": lambda: gaussian("levels", likelihood.NetworkLevels(BITS)),
    "not Markov": lambda: gaussian(
        "data", likelihood.LevelPosterior(BITS), process=df.NonMarkovDiffusion(NOISE, eta=0.6)
    ),
    "binomial": lambda: df.BinomialDiffusionModel(df.BinomialDiffusion(BETAS), Net(D, 4, 2.0), BITS),
    "free Gaussians": lambda: free(False),
    "free Gaussians, shared": lambda: free(True),
    "masked bits": lambda: fitted(MaskedBits, 20),
    "the essay's chain": lambda: fitted(EssayChain, 120),
    "multinomial, not Markov": lambda: fitted(lambda: MultinomialModel(df.Discrete((D,), 3), T), 20),
    "masked, one at a time": lambda: masked(),
    "masked, absorbing": lambda: masked(Absorbing(3, T, (0.6, 0.4, 0.2, 0.0))),
    "redrawn uniformly": lambda: df.UniformDiffusion(
        Tokens(3), space.Categorical(D, 3), df.UniformNoise(3, T, (0.7, 0.5, 0.3, 0.1))
    ),
    "VAE": vae,
    "VAE, own prior": lambda: vae(Wide()),
    "VAE, chain": lambda: vae(latent_chain()),
    "VAE, assisted chain": lambda: vae(latent_chain(True)),
    "ladder": lambda: fitted(ladder),
    "ladder, chain": lambda: ladder(latent_chain()),
}
CHAINS = [name for name in MODELS if not name.startswith(("VAE", "ladder"))]
# Families whose distributions have no costs by position.
OUTSIDE = ("masked bits",)
DISCRETE = [name for name in MODELS if name != "score, of reals"]
# ln p(x, z)/q(z|x) is defined: not under a chain as a prior, whose ln p(z) is a bound.
WEIGHTED = [name for name in MODELS if not name.endswith("chain") or name in CHAINS]
of_models = pytest.mark.parametrize("name", MODELS)
of_chains = pytest.mark.parametrize("name", CHAINS)


@cache
def _built(name: str) -> LatentVariableModel:
    return MODELS[name]()


def made(name: str) -> LatentVariableModel:
    return copy.deepcopy(_built(name)).requires_grad_(False)


def type_of(model: LatentVariableModel) -> torch.dtype:
    return next(model.parameters()).dtype


def states(model: LatentVariableModel) -> Tensor:
    """All items of a discrete space (S, *shape), or a few of a continuous one."""
    if not isinstance(model.space, df.Discrete):
        return randn(4, *model.space.shape, seed=5)
    k, d = model.space.levels, model.space.dimensions
    index = torch.tensor(list(itertools.product(range(k), repeat=d)))
    return model.space.encode(index).to(type_of(model))


def repeated(x: Tensor, n: int) -> Tensor:
    return x.repeat_interleave(n, 0)


def mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def agree(one: Tensor, other: Tensor, sigmas: float = 4.5) -> None:
    """Draws (N,) of two numbers have the same mean."""
    (a, da), (b, db) = mean(one.double()), mean(other.double())
    assert abs(a - b) < sigmas * math.hypot(da, db) + 1e-9, (a, b, math.hypot(da, db))


# (7) = (8).


@of_chains
def test_the_path_form_is_the_other_form_of_the_bound(name: str) -> None:
    model = made(name)
    assert isinstance(model, Chain)
    x = repeated(states(model)[1:2], 6000)
    rao, path = model.elbo(x, generator(1)), model.path_elbo(x, generator(2))
    agree(rao.nelbo, path.nelbo)
    noise = torch.randn(len(x), *model.noise_shape, generator=generator(3), dtype=x.dtype)
    agree(rao.nelbo, -model.log_weight(x, noise))


# The bound.


def weights(model: LatentVariableModel, x: Tensor, n: int) -> Tensor:
    """w = p(x, z)/q(z|x) (S, n), whose mean is p(x)."""
    noise = torch.randn(len(x) * n, *model.noise_shape, generator=generator(4), dtype=x.dtype)
    return model.log_weight(repeated(x, n), noise).exp().view(len(x), n)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_have_the_mean_p_of_x(name: str) -> None:
    """E w = p(x): it sums to 1 over all x, is above e^−NELBO, and is how often x is sampled. E ln w = −NELBO."""
    model, n = made(name), 4000
    x = states(model)
    w = weights(model, x, n)
    p, error = w.mean(1), w.std(1) / n**0.5
    nelbo = model.elbo(repeated(x, 500), generator(5)).nelbo.view(len(x), -1)
    spread = 4.5 * (nelbo.var(1) / 500 + w.log().var(1) / n).sqrt() + 1e-9
    assert bool(((nelbo.mean(1) + w.log().mean(1)).abs() < spread).all())
    assert bool((nelbo.mean(1) + 4.5 * nelbo.std(1) / 500**0.5 > -torch.log(p + 4.5 * error)).all())
    if not isinstance(model.space, df.Discrete):
        return
    # No few weights decide.
    assert float((w.sum(1).square() / w.square().sum(1)).min()) > 60
    assert abs(float(p.sum()) - 1) < 4.5 * float(error.square().sum().sqrt())
    seen = sampled(model, x, n)
    assert float(((seen - p).abs() / (error.square() + p * (1 - p) / n).sqrt()).max()) < 4.5


def sampled(model: LatentVariableModel, x: Tensor, n: int) -> Tensor:
    """How often each state (S,) is among n samples."""
    drawn = model.sample(n, generator(6))
    seen = (drawn[:, None] == x).flatten(2).all(2).double().mean(0)
    assert float(seen.sum()) == pytest.approx(1)
    return seen


@pytest.mark.parametrize("name", DISCRETE)
def test_the_bound_holds_for_what_is_sampled(name: str) -> None:
    """NELBO(x) ≥ −ln p(x) for every x, with p(x) from samples, and E_p NELBO(x) ≥ H(p)."""
    model, n = made(name), 4000
    x = states(model)
    p = sampled(model, x, n)
    nelbo = model.elbo(repeated(x, 500), generator(5)).nelbo.view(len(x), -1)
    value, error = nelbo.mean(1), nelbo.std(1) / 500**0.5
    most = p + 4.5 * torch.sqrt((p * (1 - p)).clamp(min=1 / n) / n)
    assert bool((value + 4.5 * error > -torch.log(most)).all())
    assert float((p * value).sum()) + 4.5 * float(error.max()) > float(torch.special.entr(p).sum()) - len(x) / n


# The loss.


@of_models
def test_the_loss_is_unbiased(name: str) -> None:
    model = made(name)
    x = states(model)
    ledger = model.elbo(repeated(x, 500), generator(9))
    losses = torch.stack([model.loss(repeated(x, 100), generator(20 + i)) for i in range(50)])
    a, da = mean(losses.double())
    b = ledger.nelbo.view(len(x), -1)
    db = float((b.var(1) / b.shape[1]).sum().sqrt()) / len(x)
    assert abs(a - float(b.mean())) < 4.5 * math.hypot(da, db)


@of_models
def test_the_loss_trains(name: str) -> None:
    model = made(name).requires_grad_(True)
    model.loss(repeated(states(model), 200), generator(10)).backward()
    # The heads of a ladder's prior at the top are not used.
    gradients = [p.grad for name, p in model.named_parameters() if p.grad is not None]
    assert len(gradients) > 0.8 * len(list(model.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert all(float(g.abs().max()) > 0 for g in gradients[-2:])


# Samples, step by step.


@of_chains
def test_the_walk_back_is_made_of_the_model_s_own_steps(name: str) -> None:
    """T + 1 parts; each has the moments of fresh draws of its distribution given the part before."""
    model, n = made(name), 6000
    assert isinstance(model, Chain)
    assert model.steps is not None
    walked = list(model.walk_back(n, generator(11)))
    assert len(walked) == model.steps + 1
    assert {tuple(z.shape) for z in walked} == {(n, *model.space.shape)}
    assert {z.dtype for z in walked} == {type_of(model)}
    model.space.check(walked[-1])
    fresh = [model.last(n).sample(generator(12))]
    for i, t in enumerate(range(model.steps - 1, 0, -1)):
        fresh.append(model.step(walked[i], torch.full((n,), t)).sample(generator(13 + t)))
    fresh.append(model.decode(walked[-2]).sample(generator(30)))
    for before, one, other in zip([None, *walked], walked, fresh, strict=False):
        agree(one[:, 0], other[:, 0])
        agree(one[:, 0] * one[:, 1], other[:, 0] * other[:, 1])
        agree(one[:, 1].square(), other[:, 1].square())
        if before is not None:
            agree(one[:, 1] * before[:, 1], other[:, 1] * before[:, 1])


# The ledger.


@of_models
def test_costs_add_up(name: str) -> None:
    model = made(name)
    x = repeated(states(model), 50)
    ledger = model.elbo(x, generator(14))
    extras = sum(ledger.extra.values(), torch.zeros(len(x), dtype=F64))
    total = ledger.reconstruction + ledger.kl.sum(1) + ledger.prior + extras
    torch.testing.assert_close(ledger.nelbo, total, rtol=1e-12, atol=1e-12)
    assert ledger.nelbo.dtype == F64
    assert bool(torch.isfinite(ledger.nelbo).all())
    assert bool((ledger.kl > -1e-9).all())
    if name != "VAE, own prior":
        assert bool((ledger.prior > -1e-9).all())
    # The same costs by the names of a training step.
    costs = model.costs(x, model.draw(x, None, generator(15)))
    assert {"reconstruction", "prior"} <= set(costs.terms)
    assert costs.total().shape == (len(x),)


@of_models
def test_an_evaluation_has_the_same_terms(name: str) -> None:
    """Whether levels are visited one by one, or all of them drawn."""
    model = made(name)
    x = repeated(states(model), 10)
    chain = model.visited()
    options = {} if chain is None else {"plan": Plan.uniform(chain, 4), "audit": False}
    found = df.evaluate(model, x, visits=40, **options)  # type: ignore[arg-type]
    ledger = model.elbo(repeated(x, 50), generator(18))
    drawn = {"reconstruction": ledger.reconstruction, "kl": ledger.kl.sum(1), "prior": ledger.prior, **ledger.extra}
    for term, values in {"nelbo": ledger.nelbo, **drawn}.items():
        each = values.view(len(x), 50)
        error = float((each.var(1) / 50).sum().sqrt()) / len(x)
        own = found.nelbo if term == "nelbo" else found.terms.get(term)
        if own is None:  # a model without levels has no "kl"
            assert float(values.abs().max()) == 0
            continue
        assert abs(own.value - float(values.mean())) < 4.5 * math.hypot(own.error, error) + 1e-9, term


def test_cells_of_continuous_time_have_no_gamma_by_number() -> None:
    model = vae(latent_chain().regrid(None))
    assert model.gamma_at(torch.arange(1, 258)) is None
    assert model.gamma_at(torch.tensor([0.0, 1.0])) is not None


def test_a_visit_of_a_latents_chain_has_noise_of_both() -> None:
    """The first half makes z of x, the second the latent of the chain."""
    model = made("VAE, chain")
    chain, prior = model.visited(), latent_chain()
    assert chain is not None
    x, noise = states(model), randn(4, 2 * D, seed=3)
    t = torch.tensor([1, 2, 3, 1])
    z = model.infer(x, noise[:, :D]).z[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(chain.kl_at(x, t, noise), prior.kl_at(z, t, noise[:, D:]))
    beside = chain.beside(x, noise)
    torch.testing.assert_close(beside["prior"], prior.prior(z))
    torch.testing.assert_close(beside["latent_reconstruction"], prior.reconstruction(z, noise[:, D:]))


# What has a closed form agrees with the definition.


@of_chains
def test_closed_forms_are_the_defaults(name: str) -> None:
    model = made(name)
    assert isinstance(model, Chain)
    assert model.timesteps is not None
    x = states(model)
    rows = repeated(x, 10 * model.timesteps)
    level = torch.arange(1, model.timesteps + 1).repeat(10 * len(x))
    noise = torch.randn(rows.shape, generator=generator(16), dtype=rows.dtype)
    tight = {"rtol": 1e-8, "atol": 1e-10} if rows.dtype == F64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(model.level_kl(rows, level, noise), Chain.level_kl(model, rows, level, noise), **tight)
    torch.testing.assert_close(model.reconstruction(rows, noise), Chain.reconstruction(model, rows, noise), **tight)
    torch.testing.assert_close(model.prior(x), Chain.prior(model, x), **tight)
    draws = model.draw(rows, None, generator(17))
    one, other = model.costs(rows, draws), Chain.costs(model, rows, draws)
    assert set(one.terms) == set(other.terms)
    for term, value in one.terms.items():
        torch.testing.assert_close(value, other.terms[term], **tight)
    torch.testing.assert_close(one.density, other.density, **tight)


@of_chains
def test_costs_by_position(name: str) -> None:
    """Their sums are the costs, and closed forms at every position agree with the distributions' own."""
    model = made(name)
    assert isinstance(model, Chain)
    assert model.timesteps is not None
    x = states(model)
    rows = repeated(x, 5 * model.timesteps)
    level = torch.arange(1, model.timesteps + 1).repeat(5 * len(x))
    noise = torch.randn(rows.shape, generator=generator(19), dtype=rows.dtype)
    if name in OUTSIDE:
        with pytest.raises(df.DiffusionalError, match=r"to define kl_map"):
            model.kl_map(rows, level, noise)
        return
    tight = {"rtol": 1e-8, "atol": 1e-10} if rows.dtype == F64 else {"rtol": 1e-4, "atol": 1e-5}
    for found, default, total in (
        (model.kl_map(rows, level, noise), Chain.kl_map(model, rows, level, noise), model.level_kl(rows, level, noise)),
        (
            model.reconstruction_map(rows, noise),
            Chain.reconstruction_map(model, rows, noise),
            model.reconstruction(rows, noise),
        ),
        (model.prior_map(x), Chain.prior_map(model, x), model.prior(x)),
    ):
        torch.testing.assert_close(found, default, **tight)
        torch.testing.assert_close(found.sum(1), total, **tight)


@pytest.mark.parametrize("shared", [False, True])
def test_free_gaussians_start_from_the_step_of_unit_data(shared: bool) -> None:
    """With m = o = 0, p(z_t|z_{t+1}) has the mean √(1−β_{t+1}) z_{t+1} and the variance β_{t+1}."""
    model, z = free(shared).requires_grad_(False), randn(7, D)
    for parameter in model.networks.parameters():
        parameter.zero_()
    for t in range(1, T):
        p, q = model.step(z, torch.full((7,), t)), model.process.transition(z, t + 1)
        torch.testing.assert_close(p.mean, q.mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(p.variance, q.variance.expand(7, D), rtol=1e-9, atol=1e-12)


# What they refuse.


@of_models
def test_refusals(name: str) -> None:
    model = made(name)
    x = states(model)
    noise = torch.zeros(len(x), *model.noise_shape, dtype=x.dtype)
    for wrong in (x[:, :1], x.flatten(), torch.full_like(x, math.nan)):
        for call in (model.elbo, model.loss):
            with pytest.raises(df.DiffusionalError):
                call(wrong)
    with pytest.raises(df.DiffusionalError):
        model.terms(x, noise[:1])
    with pytest.raises(df.DiffusionalError, match="n to be at least 1, got 0"):
        model.sample(0)
    with pytest.raises(df.DiffusionalError, match="condition"):
        model.elbo(x, condition=torch.zeros(len(x) + 1))


@of_chains
def test_refusals_of_levels(name: str) -> None:
    model = made(name)
    assert isinstance(model, Chain)
    x, t = states(model), torch.ones(len(states(model)), dtype=torch.long)
    for level in (0 * t, model.steps * t, t.double()):
        with pytest.raises(df.DiffusionalError, match="level"):
            model.kl_at(x, level, torch.zeros_like(x))
    with pytest.raises(df.DiffusionalError, match="noise"):
        model.kl_at(x, t, torch.zeros_like(x)[:, :1])
    with pytest.raises(df.DiffusionalError, match="noise"):
        model.log_weight(x, torch.zeros(len(x), model.steps or 0))
