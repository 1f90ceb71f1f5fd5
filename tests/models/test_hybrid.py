"""L_simple and L_hybrid (Nichol & Dhariwal 2021, eq. 16) at drawn latents: plain formulas, whose gradients go where, and no bias."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from battery import BETAS, F64, close, generator, plain_alpha, plain_posterior, plain_sigma, randn
from diffusional import Continuous, Denoiser, DiffusionModel, Discrete, GaussianDiffusion, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.models.diffusion import HYBRID_WEIGHT
from diffusional.models.parameterization import Prediction
from diffusional.timesteps import SecondMoment, Stratified, TimestepSampler, Uniform

SPACE, D, T = Discrete((2, 3), 5), 6, 6
LEAST = 0.004
GRID = schedule.from_betas(BETAS).grid()


class _Network(nn.Module):
    """(B, 2, 3) → (B, 4, 3): the mean's weights apart from the variance's."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(0.5 * randn(2, 2, seed=1))
        self.range = nn.Parameter(0.5 * randn(2, 2, seed=2))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        level = 0.1 * log_snr[:, None, None]
        return torch.cat(
            [torch.einsum("oc,bcx->box", self.mean, z) + level, torch.einsum("oc,bcx->box", self.range, z) - level], 1
        )


def _model(variance: str = "learned", predicts: str = "noise") -> DiffusionModel:
    p = likelihood.DiscretizedGaussian(SPACE, least=LEAST)
    denoiser = Denoiser(_Network(), predicts, learns_variance=True)  # type: ignore[arg-type]
    return DiffusionModel(GaussianDiffusion(schedule.from_betas(BETAS)), denoiser, p, variance)  # type: ignore[arg-type]


def _items(n: int = 24) -> Tensor:
    return SPACE.encode(torch.randint(5, (n, 2, 3), generator=generator(0)), F64)


def _plain(model: DiffusionModel, x: Tensor, t: Tensor, noise: Tensor, frozen: bool = True) -> tuple[Tensor, Tensor]:
    """MSE/1 and the latent's bound term in nats (B,), item by item, z_1's being −ln p(x|z_1)."""
    mse, bound = [], []
    for i in range(len(x)):
        gamma = GRID[t[i] - 1]
        a, s = plain_alpha(gamma), plain_sigma(gamma)
        z = a * x[i] + s * noise[i]
        said = model.denoiser.module(z[None], -gamma[None])[0]  # type: ignore[operator]
        e, f = said[:2], 0.5 * (said[2:] + 1)
        mse.append(((noise[i] - e) ** 2).mean())
        x_hat = (z - s * (e.detach() if frozen else e)) / a
        if t[i] == 1:
            std = torch.exp(0.5 * ((1 - f) * math.log(LEAST) + f * torch.log(s**2)))
            bins = torch.distributions.Normal(x_hat, std)
            upper = torch.where(x[i] > 0.99, 1.0, bins.cdf(x[i] + 0.25))
            lower = torch.where(x[i] < -0.99, 0.0, bins.cdf(x[i] - 0.25))
            bound.append(-torch.log(upper - lower).sum())
        else:
            before = GRID[t[i] - 2]
            mean_q, v_q = plain_posterior(z, x[i], before, gamma)
            mean_p, _ = plain_posterior(z, x_hat, before, gamma)
            v_p = torch.exp((1 - f) * torch.log(v_q) + f * math.log(BETAS[int(t[i]) - 1]))
            q = torch.distributions.Normal(mean_q, v_q.sqrt().expand(2, 3))
            bound.append(torch.distributions.kl_divergence(q, torch.distributions.Normal(mean_p, v_p.sqrt())).sum())
    return torch.stack(mse), torch.stack(bound)


def _draws(n: int = 24) -> dict[str, Tensor]:
    """Every latent, z_1 among them, with weights that are no one's."""
    return {
        "level": torch.arange(n) % T + 1,
        "weight": torch.linspace(2, 9, n, dtype=F64),
        "noise": randn(n, 2, 3, seed=3),
    }


@pytest.mark.parametrize("weight", [HYBRID_WEIGHT, 0.3])
def test_costs_as_written_out(weight: float) -> None:
    """1/(T π) [MSE + λ T · bound term in bits/dim] for L_hybrid, 1/(T π) MSE for L_simple."""
    model, x, draws = _model(), _items(), _draws()
    mse, bound = _plain(model, x, draws["level"], draws["noise"])
    share, bits = draws["weight"] / T, D * math.log(2)
    simple = model.simple_costs(x, draws)
    close(simple.total().detach(), (share * mse).detach(), rtol=1e-10)
    close(simple.density.detach(), mse.detach(), rtol=1e-10)
    hybrid = model.hybrid_costs(x, draws, weight=weight)
    want = mse + weight * T * bound / bits
    close(hybrid.total().detach(), (share * want).detach(), rtol=1e-8)
    close(hybrid.density, want.detach(), rtol=1e-8)
    assert set(hybrid.terms) == {"squared_error", "vlb"}
    for costs in (simple, hybrid):
        close(costs.position, (draws["level"].numpy() - 0.5) / T, rtol=1e-14)
    assert HYBRID_WEIGHT == 1e-3
    # One latent's term for another's would show.
    other, _ = _plain(model, x, draws["level"] % T + 1, draws["noise"])
    assert float((other - mse).detach().abs().max()) > 0.01


def test_the_mean_is_taught_by_the_squared_error_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, draws = _model(), _items(), _draws()
    network = model.denoiser.module
    mean, spread = network.mean, network.range  # type: ignore[union-attr]
    costs = model.hybrid_costs(x, draws)
    of_bound = torch.autograd.grad(costs.terms["vlb"].sum(), [mean, spread], retain_graph=True)
    assert of_bound[0].abs().max() == 0
    _, bound = _plain(model, x, draws["level"], draws["noise"])
    want = 1e-3 * (draws["weight"] * bound).sum() / (D * math.log(2))
    close(of_bound[1], torch.autograd.grad(want, spread, retain_graph=True)[0], rtol=1e-7)
    got = torch.autograd.grad(costs.total().mean(), [mean, spread])
    simple = torch.autograd.grad(model.simple_costs(x, draws).total().mean(), [mean, spread])
    close(got[0], simple[0], rtol=1e-12)
    assert simple[1].abs().max() == 0
    # Were the mean not frozen, the bound would teach it as well.
    monkeypatch.setattr(Prediction, "frozen", lambda said: said)
    free = torch.autograd.grad(model.hybrid_costs(x, draws).terms["vlb"].sum(), [mean, spread])
    _, whole = _plain(model, x, draws["level"], draws["noise"], frozen=False)
    close(free[0], torch.autograd.grad(1e-3 * (draws["weight"] * whole).sum() / (D * math.log(2)), mean)[0], rtol=1e-7)
    assert float(free[0].abs().max()) > 1e-4


def test_a_decoder_that_sees_z_1_alone_costs_what_it_costs() -> None:
    """Of z_1, L_hybrid's bound has the decoder's −ln p(x|z_1), whatever the network says there."""
    base = _model()
    alone = likelihood.GaussianLikelihood(Continuous((2, 3)), assisted=False)
    model = DiffusionModel(base.process, base.denoiser, alone, variance="learned")
    x, draws = _items(), _draws()
    first = draws["level"] == 1
    vlb = model.hybrid_costs(x, draws).terms["vlb"][first]
    reconstruction = model.reconstruction(x, draws["noise"])[first]
    close(vlb, 1e-3 * draws["weight"][first] * reconstruction / (D * math.log(2)), rtol=1e-10)


@pytest.mark.parametrize("of", ["simple_costs", "hybrid_costs"])
def test_a_learned_schedule_is_not_led_astray(of: str) -> None:
    base = _model()
    process = GaussianDiffusion(schedule.learned_betas(T))
    model = DiffusionModel(process, base.denoiser, base.likelihood, variance="learned")
    with pytest.raises(DiffusionalError, match=r"fixed schedule.*freeze it"):
        getattr(model, of)(_items(), _draws())
    process.schedule.requires_grad_(False)
    assert getattr(model, of)(_items(), _draws()).total().isfinite().all()


def test_a_levels_mean_is_frozen_with_its_levels() -> None:
    """So that −ln p(x|z_1) of a levels head teaches it nothing, either."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(randn(10, 2, seed=5))
            self.range = nn.Parameter(randn(2, 2, seed=6))

        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            return torch.cat([torch.einsum("oc,bcx->box", w, z) for w in (self.logits, self.range)], 1)

    denoiser = Denoiser(Head(), "levels", SPACE, learns_variance=True)
    model = DiffusionModel(
        GaussianDiffusion(schedule.from_betas(BETAS)), denoiser, likelihood.NetworkLevels(SPACE), "learned"
    )
    x, draws = _items(), _draws()
    costs = model.hybrid_costs(x, draws)
    weights = list(denoiser.module.parameters())
    gradients = torch.autograd.grad(costs.terms["vlb"].sum(), weights, retain_graph=True)
    assert gradients[0].abs().max() == 0
    assert float(gradients[1].abs().max()) > 1e-4
    assert (
        float(torch.autograd.grad(costs.terms["squared_error"].sum(), weights, allow_unused=True)[0].abs().max()) > 0.01
    )
    # Its value is what the bound says of z_1.
    first = draws["level"] == 1
    decoded = model.reconstruction(x[first], draws["noise"][first])
    close(costs.terms["vlb"][first].detach(), (1e-3 * draws["weight"][first] * decoded / (D * math.log(2))).detach())


def _warm() -> SecondMoment:
    sampler = SecondMoment(history=2, floor=0.1)
    sampler.sample(1, T)
    for _ in range(2):
        sampler.update((torch.arange(T) + 0.5) / T, torch.tensor([1.0, 3.0, 0.2, 2.0, 5.0, 0.7]))
    return sampler


SAMPLERS: dict[str, Callable[[], TimestepSampler]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "second moment": _warm,
}


@pytest.mark.parametrize("objective", ["simple", "hybrid"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_biases_it(name: str, objective: str) -> None:
    """The mean over draws is the mean over all T latents, with its gradient; noise fixed, so that only t is random."""
    model, x = _model(), _items(4)
    noise = randn(4, 2, 3, seed=9)
    network = model.denoiser.module
    weights = list(network.parameters())  # type: ignore[union-attr]
    of = model.simple_costs if objective == "simple" else model.hybrid_costs

    def each(t: Tensor, weight: Tensor, n: int) -> Tensor:
        repeat = n // 4
        draws = {"level": t, "weight": weight, "noise": noise.repeat(repeat, 1, 1)}
        return of(x.repeat(repeat, 1, 1), draws).total()

    # Of all T: π = 1/T and each t in turn.
    all_t = torch.arange(1, T + 1).repeat_interleave(4)
    truth = each(all_t, torch.full((4 * T,), float(T), dtype=F64), 4 * T).mean()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(truth, weights, allow_unused=True) if g is not None])
    values, slopes, rng, sampler = [], [], generator(1), SAMPLERS[name]()
    for _ in range(75):
        drawn = model.latent_draw(x, sampler, rng, n=160)
        total = each(drawn["level"], drawn["weight"], 160).mean()
        values.append(total.detach())
        got = torch.autograd.grad(total, weights, allow_unused=True)
        slopes.append(torch.cat([g.flatten() for g in got if g is not None]))
    for exactly, found in ((truth.detach()[None], torch.stack(values)[:, None]), (slope, torch.stack(slopes))):
        error = found.std(0) / len(found) ** 0.5
        assert bool(((found.mean(0) - exactly).abs() < 4.5 * error + 1e-12).all())
        # Tight enough to see a weight that is off by a tenth.
        assert float(error.max()) < 0.05 * float(exactly.abs().max())


def test_the_bound_is_in_the_hybrid() -> None:
    """λ T Σ_t (1/T) of the second part is λ times reconstruction and KLs in bits/dim: L_vlb less its prior."""
    model, x = _model(), _items(5)
    noise = randn(T, 5, 2, 3, seed=4)
    ledger = model.terms(x, noise)
    t = torch.arange(1, T + 1).repeat_interleave(5)
    draws = {"level": t, "weight": torch.full((5 * T,), float(T), dtype=F64), "noise": noise.flatten(0, 1)}
    vlb = model.hybrid_costs(x.repeat(T, 1, 1), draws).terms["vlb"].view(T, 5).sum(0) / T
    want = 1e-3 * (ledger.nelbo - ledger.prior) / (D * math.log(2))
    close(vlb.detach(), want.detach(), rtol=1e-9)


def test_latents_are_drawn_for_a_whole_batch() -> None:
    model, x = _model(), _items(3)
    drawn = model.latent_draw(x, None, generator(0), n=12)
    assert drawn["level"].shape == (12,)
    assert sorted(drawn["level"].tolist()) == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
        6,
        6,
    ]  # stratified over all T, z_1 included
    close(drawn["weight"], torch.full((12,), 6.0, dtype=F64))
    assert drawn["noise"].shape == (12, 2, 3)
    free = _model().regrid(None).latent_draw(x, None, generator(0))
    assert free["level"].dtype == F64
    close(free["weight"], torch.ones(3, dtype=F64))


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_a_fixed_variance_has_no_hybrid(variance: str) -> None:
    model = _model(variance)
    with pytest.raises(DiffusionalError, match=f'variance="learned" for L_hybrid.*got "{variance}"'):
        model.hybrid_costs(_items(), _draws())
