"""Autoencoders: the ledger against closed forms of a linear-Gaussian world, two layers and more, and a diffusion prior."""

import math
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ImportanceWeights, evaluate, importance_weighted
from diffusional.evaluation.averages import Averages, average
from diffusional.gaussian import Gaussian
from diffusional.models.vae import Autoencoder, bounded, log_probs
from diffusional.networks import Ladder, ResidualMLP

F64 = torch.float64
LINE, DIGITS = df.Continuous((2,)), df.Discrete((1, 4, 4), levels=5)
# A world that is known: z ~ N(0, 1), x = w z + c + s ε, two dimensions and one latent.
W, C, S2 = torch.tensor([[1.5], [-0.5]], dtype=F64), torch.tensor([0.3, -0.2], dtype=F64), 0.2
# An encoder that is wrong about it, and the exact one.
A, B, LOG_STD = torch.tensor([[0.4, 0.1]], dtype=F64), torch.tensor([0.2], dtype=F64), -0.7
GAIN = W.T / (float(W.square().sum()) + S2)
EXACT = GAIN, -(GAIN @ C), 0.5 * math.log(S2 / (float(W.square().sum()) + S2))


class Encoder(nn.Module):
    def __init__(self, a: Tensor, b: Tensor, log_std: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.log_std = nn.Parameter(torch.tensor(log_std, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.a.T + self.b
        return torch.cat([mean, self.log_std.expand(mean.shape)], 1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(W.clone()), nn.Parameter(C.clone())

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.w.T + self.c


def linear(encoder: tuple[Tensor, Tensor, float] = (A, B, LOG_STD), prior: df.DiffusionModel | None = None) -> df.VAE:
    return df.VAE(Encoder(*encoder), Decoder(), likelihood.GaussianLikelihood(LINE, S2), latents=1, prior=prior)


def items(n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    z, noise = torch.randn(n, 1, generator=g, dtype=F64), torch.randn(n, 2, generator=g, dtype=F64)
    return z @ W.T + C + math.sqrt(S2) * noise


def log_px(x: Tensor) -> Tensor:
    covariance = W @ W.T + S2 * torch.eye(2, dtype=F64)
    return torch.distributions.MultivariateNormal(C, covariance).log_prob(x)


def digits(n: int, seed: int = 0) -> Tensor:
    raw = torch.randint(5, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return DIGITS.encode(raw, F64)


def ladder(latents: tuple[int, ...] = (3, 2), seed: int = 0) -> df.HierarchicalVAE:
    """Random weights, so that nothing is symmetric and q and p differ at every layer."""
    torch.manual_seed(seed)
    model = df.HierarchicalVAE(
        Ladder((1, 4, 4), (2, 4, 4), latents, hidden=16), likelihood.NetworkLevels(DIGITS)
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def flat(seed: int = 0) -> df.VAE:
    torch.manual_seed(seed)
    decoder = nn.Sequential(ResidualMLP((3,), 32, hidden=16), nn.Unflatten(1, (2, 4, 4)))
    encoder = ResidualMLP((1, 4, 4), 6, hidden=16)
    return df.VAE(encoder, decoder, likelihood.NetworkLevels(DIGITS), latents=3).double()


def noise(model: Autoencoder, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *model.noise_shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def often(x: Tensor, n: int) -> Tensor:
    """Each item n times: rows of one call, (n, B) when viewed so."""
    return x.repeat(n, *(1,) * (x.ndim - 1))


# The flat VAE.


def test_costs_are_those_of_the_closed_forms() -> None:
    model, x = linear(), items(5)
    mean, std = x @ A.T + B, math.exp(LOG_STD)
    kl = 0.5 * (std**2 + mean.square() - 1 - 2 * LOG_STD).sum(1)
    # E ‖x − w z − c‖² over z ~ N(mean, std²).
    off = (x - mean @ W.T - C).square().sum(1) + std**2 * float(W.square().sum())
    reconstruction = 0.5 * (off / S2 + 2 * math.log(2 * math.pi * S2))
    n = 40_000
    with torch.no_grad():
        ledger = model.terms(often(x, n), noise(model, 5 * n))
    torch.testing.assert_close(ledger.prior[:5], kl, rtol=1e-12, atol=1e-12)
    assert ledger.kl.shape == (5 * n, 0)
    seen = ledger.reconstruction.view(n, 5)
    error = seen.std(0) / math.sqrt(len(seen))
    assert bool(((seen.mean(0) - reconstruction).abs() < 4 * error).all())
    assert bool((error < 0.01 * reconstruction).all())


@pytest.mark.parametrize("log_std", [-15.0, -8.0, -3.0, -0.7, 2.5, 10.0])
def test_a_posterior_s_scale_is_the_encoder_s(log_std: float) -> None:
    q = linear((A, B, log_std)).posterior(items(3))
    torch.testing.assert_close(q.log_variance / 2, torch.full((3, 1), log_std, dtype=F64), rtol=0, atol=0)


def test_scales_beyond_the_limits_are_clamped_and_costs_stay_finite_in_float32() -> None:
    for beyond, limit in ((-40.0, -15.0), (40.0, 10.0)):
        model = linear((A, B, beyond)).float()
        assert float(model.posterior(items(1).float()).log_variance.detach()) == 2 * limit
        ledger = model.terms(items(3).float(), noise(model, 3).float())
        assert bool(torch.isfinite(ledger.nelbo).all())
    # A ladder's q and p may stand at opposite ends.
    low, high = (bounded(torch.zeros(1, 1000), torch.full((1, 1000), v)) for v in (-99.0, 99.0))
    assert bool(torch.isfinite(torch.stack([low.kl(high), high.kl(low)])).all())


def test_a_ladder_uses_the_scales_of_its_network() -> None:
    """ln σ of p(z_l|z_{>l}) is the output of the layer's head, that of q the output less 2; no value between the limits is bent."""
    model = ladder()
    with torch.no_grad():
        for head in (*model.ladder.priors, *model.ladder.posteriors):
            head[-1].weight.zero_()
            head[-1].bias.fill_(-6.0)
    drawn = model.infer(digits(2), noise(model, 2))
    assert drawn.p[0].log_variance.unique().tolist() == [-12.0]
    for q in drawn.q:
        assert q.log_variance.unique().tolist() == [-16.0]


def test_the_exact_posterior_makes_the_bound_tight_in_every_draw() -> None:
    model, x = linear(EXACT), items(6)
    for seed in range(3):
        torch.testing.assert_close(model.log_weight(x, noise(model, 6, seed)), log_px(x), rtol=1e-9, atol=1e-9)


def test_weights_average_to_the_density_and_their_bound_falls_toward_it() -> None:
    # An encoder not far from the exact one, so that no weight outweighs all others.
    model, x = linear((0.9 * EXACT[0], EXACT[1], EXACT[2] + 0.15)), items(4)
    with torch.no_grad():
        nelbo = model.terms(often(x, 20_000), noise(model, 80_000)).nelbo.view(-1, 4).mean(1)
    truth, gap_error = -float(log_px(x).mean()), float(nelbo.std()) / 20_000**0.5
    few, many = (importance_weighted(model, x, k, seed=1) for k in (16, 1000))
    assert float(nelbo.mean()) - truth > 4 * gap_error
    assert abs(many.value - truth) < 4 * many.error
    assert many.error < 0.02 * truth
    assert truth - 4 * few.error < few.value < float(nelbo.mean()) + 2 * few.error
    # Its error is that of repeated runs.
    runs = torch.tensor([importance_weighted(model, x, 50, seed=s).value for s in range(60)])
    reported = importance_weighted(model, x, 50).error
    assert 0.7 < float(runs.std()) / reported < 1.4


def test_a_pair_of_log_densities_is_what_the_gaussian_says() -> None:
    g = torch.Generator().manual_seed(0)
    q = Gaussian(torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g))
    z = torch.randn(5, 3, generator=g)
    one_by_one = torch.stack([q.log_prob(row.expand(4, -1)) for row in z])
    torch.testing.assert_close(log_probs(q, z), one_by_one.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [flat, ladder])
def test_every_pair_of_draw_and_item_includes_its_own(make: Callable[[], Autoencoder]) -> None:
    model, x = make(), digits(6)
    drawn = model.infer(x, noise(model, 6))
    every = model.log_posteriors(model.encoded(x), drawn.z)
    assert every.shape == (6, 6)
    torch.testing.assert_close(every.diagonal(), drawn.log_q(), rtol=1e-9, atol=1e-9)
    # And an off-diagonal one, by putting another item's latents in its place.
    swapped = model.log_posteriors(model.encoded(x[[1, 0]]), tuple(z[:2] for z in drawn.z))
    torch.testing.assert_close(swapped, every[:2, :2].flip(1))


# Layers.


@pytest.mark.parametrize("make", [flat, ladder, lambda: ladder((2, 3, 2), 1)])
def test_closed_form_costs_are_the_path_s_in_expectation(make: Callable[[], Autoencoder]) -> None:
    model, x = make(), digits(3)
    n = 4000
    rows, e = often(x, n), noise(model, 3 * n)
    with torch.no_grad():
        elbo = model.terms(rows, e).elbo.view(n, 3)
        difference = elbo - model.log_weight(rows, e).view(n, 3)
    error = difference.std(0) / math.sqrt(n)
    assert bool((difference.mean(0).abs() < 4 * error).all())
    assert bool((error < 0.01 * elbo.mean(0).abs()).all())


def test_layers_are_itemised_the_one_next_to_x_first() -> None:
    model, x = ladder((4, 3, 2)), digits(2)
    e = noise(model, 2)
    ledger, drawn = model.terms(x, e), model.infer(x, e)
    assert ledger.kl.shape == (2, 2)
    assert [z.shape[1] for z in drawn.z] == [4, 3, 2]
    for layer in range(3):
        cost = drawn.q[layer].kl(drawn.p[layer])
        torch.testing.assert_close(ledger.prior if layer == 2 else ledger.kl[:, layer], cost)
    # q is residual: beside its prior, by what the ladder says at the same state.
    features, state = model.ladder.up(x), model.ladder.top(2)
    for layer in (3, 2, 1):
        shift, _ = model.ladder.posterior(layer, state, features[layer - 1])
        torch.testing.assert_close(drawn.q[layer - 1].mean, drawn.p[layer - 1].mean + shift)
        state = model.ladder.down(layer, state, drawn.z[layer - 1])
    # The top layer's prior is N(0, I); its draw is mean + std ε with the last ε.
    assert float(drawn.p[2].mean.abs().max() + drawn.p[2].log_variance.abs().max()) == 0
    torch.testing.assert_close(drawn.z[2], drawn.q[2].mean + drawn.q[2].std * e[:, 7:])
    total = ledger.reconstruction + ledger.kl.sum(1) + ledger.prior
    torch.testing.assert_close(ledger.nelbo, total)


def test_a_posterior_begins_narrow_and_beside_its_prior() -> None:
    torch.manual_seed(0)
    model = df.HierarchicalVAE(Ladder((1, 4, 4), (2, 4, 4), (3, 2), hidden=16), likelihood.NetworkLevels(DIGITS))
    drawn = model.infer(digits(50).float(), torch.zeros(50, 5))
    for q in drawn.q:
        assert -3 < float(q.log_variance.detach().mean()) / 2 < -1


def test_costs_of_a_ladder_keep_their_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = df.HierarchicalVAE(Ladder((1, 4, 4), (2, 4, 4), (3, 2), hidden=16), likelihood.NetworkLevels(DIGITS))
    with torch.autocast("cpu", torch.bfloat16):
        drawn = model.infer(digits(50).float(), torch.zeros(50, 5))
    for said in (*drawn.q, *drawn.p):
        assert said.mean.dtype == said.log_variance.dtype == torch.float32


# A diffusion prior.


def chain(steps: int | None, low: float = -9.0, assisted: bool = True) -> df.DiffusionModel:
    """The exact backward chain of N(0, 1): its −ln p(z) is that of N(0, 1), but for the discretisation."""
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    process = df.GaussianDiffusion(schedule.log_snr_linear(low, 9.0, steps))
    return df.DiffusionModel(
        process, world.denoiser("v"), likelihood.GaussianLikelihood(df.Continuous((1,)), assisted=assisted)
    )


def test_an_exact_chain_for_a_prior_changes_nothing_but_the_books() -> None:
    x = items(64)
    plain, joint = evaluate(linear(), x, visits=300), average(linear(prior=chain(200)), x, visits=40)
    assert set(joint.terms) == {"reconstruction", "kl", "prior", "latent_reconstruction", "encoder_entropy", "jacobian"}
    assert len(joint.levels_kl) == 199
    entropy = 0.5 * (math.log(2 * math.pi) + 1) + LOG_STD
    assert joint.terms["encoder_entropy"].value == pytest.approx(-entropy, abs=1e-6)
    # What T = 200 costs more than −ln N(z; 0, 1), by the chain's exact costs.
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    gap = float(world.costs(chain(200).process, "posterior", math.exp(-9.0)).nelbo) - world.entropy()
    error = math.hypot(plain.nelbo.error, joint.nelbo.error)
    assert abs(joint.nelbo.value - plain.nelbo.value - gap) < 4 * error + 0.1 * gap
    assert error < 0.01 * plain.nelbo.value * 2
    # An evaluation to a target visits the levels.
    visited = evaluate(linear(prior=chain(200)), x, visits=40)
    assert set(visited.terms) == set(joint.terms)
    assert abs(visited.nelbo.value - joint.nelbo.value) < 4 * math.hypot(visited.nelbo.error, joint.nelbo.error)


def scaled() -> df.DiffusionModel:
    """A chain over a standardised space: a VAE's latent is none."""
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, 10))
    space = df.Continuous((1,), scale=(2.0,))
    return df.DiffusionModel(process, world.denoiser("v"), likelihood.GaussianLikelihood(space))


@pytest.mark.parametrize(
    ("steps", "encoder", "assisted"),
    # At a collapsed posterior the KL is 0, and a draw of it is as often negative as not.
    [
        (50, (A, B, LOG_STD), True),
        (None, (A, B, LOG_STD), True),
        (None, (0 * A, 0 * B, 0.0), False),
        (50, (0 * A, 0 * B, 0.0), False),
    ],
)
def test_loss_and_bound_of_a_diffusion_prior_agree(
    steps: int | None, encoder: tuple[Tensor, Tensor, float], assisted: bool
) -> None:
    # Few items at the collapsed posterior: there a loss that cut its draws off would be off by much.
    collapsed = not float(encoder[0].abs().sum())
    model, x = linear(encoder, chain(steps, assisted=assisted)), items(24 if collapsed else 256)
    if collapsed:  # and no noise in the reconstruction to hide it
        assert isinstance(model.decoder, Decoder)
        model.decoder.w.data.zero_()
    g = torch.Generator().manual_seed(0)
    some, n = (x, 500) if collapsed else (often(x, 8), 120)
    many = often(x, 2048 // len(x))
    with torch.no_grad():
        losses = torch.stack([model.warmed_loss(some, g) for _ in range(n)])
        bounds = torch.stack([model.elbo(many, g).nelbo.mean() for _ in range(20)])
    error = math.hypot(float(losses.std()) / n**0.5, float(bounds.std()) / 20**0.5)
    assert abs(float(losses.mean() - bounds.mean())) < 4 * error
    assert error < 0.012 * float(bounds.mean())
    plain, warmed = (loss(some, torch.Generator().manual_seed(1)) for loss in (model.loss, model.warmed_loss))
    torch.testing.assert_close(plain, warmed)


def test_the_encoder_feels_the_chain() -> None:
    model, x = linear(prior=chain(None)), items(32)
    model.loss(x, torch.Generator().manual_seed(0)).backward()
    assert isinstance(model.encoder, Encoder)
    assert model.encoder.a.grad is not None
    assert float(model.encoder.a.grad.abs().min()) > 0


def test_regrid_changes_the_chain_alone() -> None:
    model = linear(prior=chain(None))
    assert model.regrid(30).terms(items(2), noise(model.regrid(30), 2)).kl.shape == (2, 29)
    with pytest.raises(DiffusionalError, match="regrid"):
        _ = model.noise_shape
    with pytest.raises(DiffusionalError, match="no levels"):
        linear().regrid(10)


# Training.


def test_warm_up_and_free_bits_touch_the_kl_alone() -> None:
    model, x = ladder(), digits(8)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    ledger = model.elbo(x, seeded())
    kl = torch.cat([ledger.kl, ledger.prior[:, None]], 1).mean(0)
    rest = ledger.reconstruction.mean()
    torch.testing.assert_close(model.warmed_loss(x, seeded()), ledger.nelbo.mean())
    torch.testing.assert_close(model.loss(x, seeded()), ledger.nelbo.mean())
    torch.testing.assert_close(model.warmed_loss(x, seeded(), weight=0.25), rest + 0.25 * kl.sum())
    floor = float(kl.mean())
    torch.testing.assert_close(model.warmed_loss(x, seeded(), free_bits=floor), rest + kl.clamp(min=floor).sum())
    assert float(kl.min()) < floor < float(kl.max())


def test_ancestral_samples_follow_the_model() -> None:
    model = linear()
    x = model.sample(40_000, torch.Generator().manual_seed(0))
    covariance = W @ W.T + S2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(x.mean(0), C, atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.06, rtol=0.03)
    # The last step of an ancestral chain adds the noise of p(z|z_1); and T must be large for its variance to be right.
    joint = linear(prior=chain(500)).float().sample(8000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(joint.T.cov(), covariance.float(), atol=0.12, rtol=0.05)
    drawn = ladder().sample(7, torch.Generator().manual_seed(0))
    DIGITS.check(drawn)
    assert drawn.shape == (7, 1, 4, 4)


# Evaluation by averages.


def test_averages_reach_their_target_and_know_their_error() -> None:
    model, x = ladder(), digits(20)
    result = evaluate(model, x, 0.1, "nats")
    assert result.reached
    assert result.nelbo.error <= 0.1
    assert float(sum(t.value for t in result.terms.values())) == pytest.approx(result.nelbo.value, abs=1e-9)
    assert result.levels_kl.sum() == pytest.approx(result.terms["kl"].value)
    truth = evaluate(model, x, visits=400, seed=99).nelbo
    few = [evaluate(model, x, visits=8, seed=s).nelbo for s in range(60)]
    values, errors = torch.tensor([e.value for e in few]), torch.tensor([e.error for e in few])
    assert abs(float(values.mean()) - truth.value) < 4 * math.hypot(float(values.std()) / 60**0.5, truth.error)
    assert 0.75 < float(errors.mean() / values.std()) < 1.3


def test_an_items_score_is_its_own() -> None:
    model, x = ladder(), digits(12)
    whole = evaluate(model, x, visits=5).per_item
    order = torch.tensor([7, 3, 11, 0])
    part = evaluate(model, x[order], visits=5).per_item
    for name in ("nelbo", "error", "kl"):
        torch.testing.assert_close(part[name], whole[name][order], rtol=1e-9, atol=1e-9)
    # Extended or drawn at once, it is the same.
    sums = Averages(model, x, 0)
    sums.extend(torch.arange(12), 2)
    sums.extend(torch.tensor([1, 5]), 4)
    sums.extend(torch.arange(12), 5)
    torch.testing.assert_close(sums.mean("nelbo"), whole["nelbo"])


def test_every_item_to_its_own_error_and_budgets() -> None:
    model, x = ladder(), digits(12)
    result = evaluate(model, x, item_error=0.05, unit="nats")
    assert float(result.per_item["error"].max()) <= 0.05
    assert len(result.per_item["draws"].unique()) > 1
    short = evaluate(model, x, 1e-4, "nats", max_evaluations=300)
    assert not short.reached
    assert short.nelbo.network_evaluations <= 300
    with pytest.raises(DiffusionalError, match=r"max_evaluations must be at least 24 .* 12 items"):
        evaluate(model, x, 0.1, max_evaluations=20)


def test_a_vae_against_a_diffusion_model_pairs_the_items() -> None:
    x = items(80).float()
    world = exact.Gaussian(C, W @ W.T + S2 * torch.eye(2, dtype=F64))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, 200))
    diffusion = df.DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(LINE))
    both = df.compare(linear(EXACT).float(), diffusion, x, 0.02, "nats")
    truth = evaluate(diffusion, x, visits=100).nelbo.value + float(log_px(x.double()).mean())
    assert abs(both.difference.value + truth) < 4 * both.difference.error
    assert both.difference.error <= 0.02
    # The items' own spread is common to both and cancels.
    assert both.difference.item_error < 0.3 * both.a.nelbo.item_error


def test_two_autoencoders_with_noise_in_common_know_their_difference() -> None:
    # Two that draw with opposite signs: with the same noise their errors would add up.
    model, x = linear(), items(20)
    mirrored = linear((-A, -B, LOG_STD))
    assert isinstance(mirrored.decoder, Decoder)
    mirrored.decoder.w.data.neg_()
    runs = [df.compare(model, mirrored, x, 1e3, "nats", seed=3 * s) for s in range(60)]
    values, errors = torch.tensor([[r.difference.value, r.difference.error] for r in runs]).T
    # Two squares that are about alike share their degrees of freedom.
    for run in runs:
        both = run.a.freedom + run.b.freedom
        assert 0.5 * both < run.freedom <= both * (1 + 1e-9)
    assert 0.8 < float(errors.mean() / values.std()) < 1.25
    assert abs(float(values.mean())) < 4 * float(values.std()) / 60**0.5


def test_dropout_is_off_while_weights_are_drawn() -> None:
    model, x = flat(), digits(4)
    assert isinstance(model.encoder, ResidualMLP)
    model.encoder.blocks.append(nn.Dropout(0.5))
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = [importance_weighted(model, x, 8).value for _ in range(2)]
    assert twice[0] == twice[1]
    assert model.training


def test_weights_that_amount_to_few_draws_are_said_to() -> None:
    with pytest.warns(UserWarning, match="of 20 items .* fewer than 10 of 16 draws"):
        importance_weighted(linear((5 * A, B, LOG_STD)), items(20), 16)


def weighted(logs: Tensor, monkeypatch: pytest.MonkeyPatch) -> df.Estimate:
    """The importance-weighted bound of items whose ln w (K, N) are given."""
    monkeypatch.setattr(sys.modules["diffusional.evaluation.importance"], "_log_weights", lambda *_: logs)
    return importance_weighted(linear(), items(logs.shape[1]), len(logs))


def normal_weights(spread: Tensor, draws: int, seed: int) -> Tensor:
    """ln w ~ N(−s²/2, s²), so that E w = 1, of items with s = `spread` (N,)."""
    g = torch.Generator().manual_seed(seed)
    return spread * torch.randn(draws, len(spread), generator=g, dtype=F64) - 0.5 * spread.square()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_an_importance_weighted_error_is_that_of_its_worst_items(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 items a share has weights of which one of 64 dominates: the error covers what runs differ by, and a warning says so."""
    spread = torch.full((40,), 0.5, dtype=F64)
    spread[: int(40 * share)] = 4.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = [weighted(normal_weights(spread, 64, seed), monkeypatch) for seed in range(100)]
    error, value = (torch.tensor([getattr(run, name) for run in runs]) for name in ("error", "value"))
    assert 0.8 < float(error.square().mean().sqrt() / value.std()) < 1.5
    assert len(caught) == (0 if share == 0 else 100)
    if share:
        assert f"{int(40 * share)} of 40 items" in str(caught[0].message)


def test_the_delta_method_stays_where_no_weights_dominate(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit; and one item in a thousand whose weights do dominate carries too little of the error for a warning."""
    logs = normal_weights(torch.full((1000,), 0.5, dtype=F64), 64, seed=0)
    share = torch.softmax(logs, 0)
    assert float((1 / share.square().sum(0)).min()) > 10
    variance = 64 / 63 * (share - 1 / 64).square().sum(0)
    # One weight of 40 among 63 of 1: 6.4 effective draws, and halves of 71 and 32.
    logs[:, 7] = 0.0
    logs[5, 7] = math.log(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = weighted(logs, monkeypatch)
        rest = weighted(torch.cat([logs[:, :7], logs[:, 8:]], 1), monkeypatch)
    assert rest.error == pytest.approx(float((variance.sum() - variance[7]).sqrt()) / 999, rel=1e-12)
    between = (1000 * mixed.error) ** 2 - (999 * rest.error) ** 2
    assert between == pytest.approx(0.5 * math.log(71 / 32) ** 2, rel=1e-9)


def test_progress_counts_what_was_done_and_what_is_expected() -> None:
    """Draws and pilot together; there is more to come until the last call."""
    seen: list[df.evaluation.Progress] = []
    result = evaluate(linear(), items(8), 0.1, "nats", progress=seen.append)
    done, expected = [one.evaluations for one in seen], [one.expected for one in seen]
    assert len(seen) > 2
    assert done[-1] == expected[-1] == result.nelbo.network_evaluations
    assert done == sorted(set(done))
    assert all(ahead > now for now, ahead in zip(done[:-1], expected[:-1], strict=True))
    # The last round was as large as announced.
    assert done[-1] == expected[-2]


def test_few_draws_are_not_vouched_for() -> None:
    found = evaluate(linear(), items(1), visits=8)
    assert not found.reached
    assert "7 degrees of freedom" in found.caveats[0]


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: df.VAE(nn.Identity(), nn.Identity(), likelihood.LevelPosterior(DIGITS), 2),
            "NetworkLevels.* got LevelPosterior",
        ),
        (lambda: df.VAE(nn.Identity(), nn.Identity(), likelihood.GaussianLikelihood(LINE), 2), "Give variance="),
        (lambda: df.VAE(nn.Identity(), nn.Identity(), likelihood.DiscretizedGaussian(DIGITS), 2), "Give variance="),
        (
            lambda: df.VAE(nn.Identity(), nn.Identity(), likelihood.GaussianLikelihood(LINE, 1.0), 2, prior=chain(9)),
            r"prior over Continuous\(\(2,\)\)",
        ),
        (lambda: linear().terms(items(3), torch.zeros(3, 2)), r"expected noise of shape \(3, 1\)"),
        (lambda: ladder().infer(digits(2), torch.zeros(2, 5), torch.ones(2)), "unconditional network"),
        (
            lambda: df.VAE(nn.Identity(), Decoder(), likelihood.GaussianLikelihood(LINE, 1.0), 1, prior=scaled()),
            r"prior over Continuous\(\(1,\)\)",
        ),
        (lambda: df.VAE(nn.Identity(), Decoder(), likelihood.GaussianLikelihood(LINE, 1.0), 0), "at least 1"),
        (
            lambda: df.VAE(nn.Identity(), Decoder(), likelihood.GaussianLikelihood(LINE, 1.0), 1, "levels"),
            "predicts='data'",
        ),
        (
            lambda: df.VAE(nn.Linear(2, 3), Decoder(), likelihood.GaussianLikelihood(LINE, 1.0), 1).posterior(
                torch.zeros(4, 2)
            ),
            r"shape \(4, 2\) for 1 latents",
        ),
        (lambda: linear(prior=chain(9)).warmed_loss(items(2), free_bits=1.0), "free_bits=0.* got 1.0.*use warm-up"),
        (lambda: evaluate(linear(), items(2), 0.1, records="here"), "no levels to visit"),
        (lambda: linear().sample(0), "n to be at least 1, got 0"),
        (lambda: ladder().sample(0), "n to be at least 1, got 0"),
        (lambda: importance_weighted(linear(), items(2), 1), "at least 2"),
        (lambda: linear(prior=chain(9)).prior.log_prob(torch.zeros(2, 1)), "diffusion prior"),
        (lambda: evaluate(linear(), items(2), steps=10), "no T to change"),
        (lambda: evaluate(linear(), items(2), 0.1, reference=items(2)), "no levels to visit"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        make()


def test_a_cost_that_is_not_finite_names_its_item() -> None:
    model, x = linear(), items(4)
    assert isinstance(model.encoder, Encoder)
    x[2] = 1e200
    with pytest.raises(DiffusionalError, match="item 2 has a cost that is not finite"):
        evaluate(model, x, visits=2)


def test_one_item_reaches_a_loose_target() -> None:
    found = evaluate(linear(), items(1), target_error=10.0, unit="nats")
    assert found.reached
    assert found.freedom >= 15


def test_what_rounding_leaves_of_equal_costs_is_no_error() -> None:
    """The prior's cost is exact: whatever the number of draws, its error is 0."""
    for visits in (9, 13, 37):
        found = evaluate(linear(), items(20), visits=visits)
        assert found.terms["prior"].error == 0
        assert found.terms["reconstruction"].error > 0


def test_items_that_stop_by_their_own_errors_are_said_to_bias_the_mean() -> None:
    found = evaluate(linear(), items(3), item_error=1.0, unit="nats")
    assert found.reached
    assert "the mean's bias is not in its error" in found.caveats[-1]


class _Weightless(df.Chain):
    """A family that defines a cost instead of its distributions."""

    space, process = LINE, df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 4.0, steps=3))
    level_kl = reconstruction = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(prior=chain(9)).regrid(None), "finitely many latents"),
        (
            lambda: df.HierarchicalVAE(
                Ladder((1, 4, 4), (2, 4, 4), (3, 1), hidden=8), likelihood.NetworkLevels(DIGITS), prior=chain(None)
            ),
            "finitely many latents",
        ),
        (lambda: chain(None), "finitely many latents"),
        (_Weightless, "step"),
    ],
)
def test_weights_are_refused_before_any_network_is_called(
    make: Callable[[], df.LatentVariableModel], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    x = torch.zeros(2, *model.space.shape, dtype=F64)
    for kind in (nn.Linear, Encoder, Decoder, Ladder, df.Denoiser):
        monkeypatch.setattr(kind, "forward", None)
    noise = torch.zeros(2, 1)
    for refused in (
        model.check_log_weight,
        lambda: importance_weighted(model, x, 4),
        lambda: evaluate(model, x, estimator=ImportanceWeights(4)),
        lambda: model.log_weight(x, noise),
    ):
        with pytest.raises(DiffusionalError, match=message):
            refused()


def test_weights_without_a_finite_sum_are_refused() -> None:
    broken = linear()
    with torch.no_grad():
        broken.decoder.c.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(DiffusionalError, match="item 0 has weights whose sum is not finite"):
        importance_weighted(broken, items(3), draws=4)
