"""The learned posterior's informations, MATH (21): by quadrature and closed forms, both parts on their own, and what collapses."""

import math
import sys

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.information import aggregated
from diffusional.models.vae import log_probs
from diffusional.networks import Ladder

F64 = torch.float64
LINE = df.Continuous((1,))


class Affine(nn.Module):
    """μ = a x + b, and a constant ln σ."""

    def __init__(self, a: float, b: float, log_std: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([a, b, log_std], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        a, b, log_std = self.numbers
        return torch.cat([a * x + b, log_std.expand(x.shape)], 1)


def vae(a: float = 1.2, b: float = 0.3, log_std: float = -0.5, prior: df.DiffusionModel | None = None) -> df.VAE:
    return df.VAE(Affine(a, b, log_std), nn.Identity(), likelihood.GaussianLikelihood(LINE, 1.0), 1, prior=prior)


def by_quadrature(model: df.VAE, x: Tensor) -> tuple[float, float]:
    """I(x; z) and KL[q(z) ‖ N(0, 1)] for one latent, on a grid; plain formulas."""
    q = model.posterior(x)
    mean, var = q.mean[:, 0].detach(), q.variance[:, 0].detach()
    z = torch.linspace(-12, 12, 20_001, dtype=F64)
    step = float(z[1] - z[0])
    density = torch.exp(-0.5 * (z - mean[:, None]) ** 2 / var[:, None]) / torch.sqrt(2 * math.pi * var[:, None])
    whole = density.mean(0)
    entropy = -float((whole * whole.clamp(min=1e-300).log()).sum()) * step
    inner = float(0.5 * torch.log(2 * math.pi * math.e * var).mean())
    cross = float((whole * (0.5 * z**2 + 0.5 * math.log(2 * math.pi))).sum()) * step
    return entropy - inner, cross - entropy


def test_both_parts_by_quadrature() -> None:
    x = torch.tensor([[-1.5], [-0.4], [0.1], [0.9], [2.0]], dtype=F64)
    model = vae()
    found = aggregated(model, x, 40_000, torch.Generator().manual_seed(0))
    information, marginal = by_quadrature(model, x)
    for estimate, truth in ((found.information, information), (found.marginal_kl, marginal)):
        assert abs(estimate.value - truth) < 4 * estimate.error
        assert estimate.error < 0.015 * truth
    # E KL in closed form, per item.
    q = model.posterior(x)
    kl = float(q.kl(Gaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))).mean())
    assert found.kl.value == pytest.approx(kl, abs=1e-9)
    assert information + marginal == pytest.approx(kl, abs=1e-6)
    assert found.entropy == pytest.approx(math.log(5))


def test_points_that_repeat_share_their_weight() -> None:
    x = torch.tensor([[-1.5], [2.0], [2.0], [2.0]], dtype=F64)
    found = aggregated(vae(), x, 40_000, torch.Generator().manual_seed(0))
    information, marginal = by_quadrature(vae(), x)
    assert abs(found.information.value - information) < 4 * found.information.error
    assert abs(found.marginal_kl.value - marginal) < 4 * found.marginal_kl.error
    assert found.entropy == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_a_posterior_that_ignores_x_knows_nothing_and_one_that_is_sharp_knows_all() -> None:
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    blind = aggregated(vae(a=0.0), x, 500)
    assert blind.information.value == pytest.approx(0.0, abs=1e-12)
    assert blind.active == (0,)
    assert "collapsed" in blind.warnings[0]
    sharp = aggregated(vae(a=3.0, log_std=-4.0), x, 500)
    assert sharp.information.value == pytest.approx(math.log(9), abs=1e-9)
    assert sharp.active == (1,)
    assert not sharp.warnings


def test_its_error_is_the_spread_of_repeats() -> None:
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    runs = [aggregated(vae(), x, 60, torch.Generator().manual_seed(s)) for s in range(200)]
    for name in ("information", "marginal_kl"):
        values = torch.tensor([getattr(r, name).value for r in runs])
        errors = torch.tensor([getattr(r, name).error for r in runs])
        assert 0.85 < float(errors.mean() / values.std()) < 1.18


def layered(seed: int = 0) -> tuple[df.HierarchicalVAE, Tensor]:
    torch.manual_seed(seed)
    space = df.Discrete((1, 4, 4), levels=5)
    model = df.HierarchicalVAE(Ladder((1, 4, 4), (2, 4, 4), (2, 2, 1), hidden=16), likelihood.NetworkLevels(space))
    model = model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    raw = torch.randint(5, (12, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    return model, space.encode(raw, F64)


def test_layers_add_up_and_both_parts_make_the_kl() -> None:
    model, x = layered()
    found = aggregated(model, x, 12_000, torch.Generator().manual_seed(0))
    assert sum(layer.value for layer in found.layers) == pytest.approx(found.kl.value)
    error = math.hypot(found.kl.error, math.hypot(found.information.error, found.marginal_kl.error))
    assert abs(found.information.value + found.marginal_kl.value - found.kl.value) < 4 * error
    assert error < 0.01 * found.kl.value
    assert 0 < found.information.value <= math.log(12)
    assert found.units == (2, 2, 1)
    # The layer next to x first: as the ledger has them.
    noise = torch.randn(12 * 400, 5, dtype=F64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ledger = model.terms(x.repeat(400, 1, 1, 1), noise)
    books = torch.cat([ledger.kl, ledger.prior[:, None]], 1).mean(0)
    for mine, theirs in zip(found.layers, books.tolist(), strict=True):
        assert mine.value == pytest.approx(theirs, rel=0.06)


class Labelled(nn.Module):
    """An affine encoder that moves μ by the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.affine = Affine(1.2, 0.3, -0.5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.affine(x) + torch.cat([condition, torch.zeros_like(condition)], 1)


class TwoInputs(nn.Module):
    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return z + condition


def test_given_a_condition_all_parts_are_conditional() -> None:
    """Each class on its own, weighted by its items: I(x; z | c) and E KL[q(z|c) ‖ p(z)]."""
    x = torch.tensor([[-1.5], [-0.4], [0.9], [0.1], [2.0], [0.9], [0.9]], dtype=F64)
    c = torch.tensor([[0.0], [0.0], [0.0], [1.5], [1.5], [1.5], [1.5]], dtype=F64)
    model = df.VAE(Labelled(), TwoInputs(), likelihood.GaussianLikelihood(LINE, 1.0), 1)
    found = aggregated(model, x, 40_000, torch.Generator().manual_seed(0), c)
    parts = [by_quadrature(vae(b=0.3 + float(label)), x[c[:, 0] == label]) for label in (0.0, 1.5)]
    information, marginal = ((3 * a + 4 * b) / 7 for a, b in zip(*parts, strict=True))
    for estimate, truth in ((found.information, information), (found.marginal_kl, marginal)):
        assert abs(estimate.value - truth) < 4 * estimate.error
        assert estimate.error < 0.015 * truth
    # H(x|c): 0.9 twice among the four of the second class.
    assert found.entropy == pytest.approx((3 * math.log(3) + 4 * (0.5 * math.log(4) + 0.5 * math.log(2))) / 7)
    assert found.to_json()["conditional"]
    # Dicts of named tensors are grouped in the same way; a condition for every item leaves nothing.
    assert aggregated(model, x, 50, condition=torch.arange(7.0, dtype=F64)[:, None]).information.value == 0
    with pytest.raises(DiffusionalError, match="3 rows for 7 items"):
        aggregated(model, x, 50, condition=c[:3])
    assert "conditional" not in aggregated(vae(), x, 50).to_json()


class Towards(nn.Module):
    """The optimal denoiser ("v") of N(0, 1), moved by the condition."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        return z.new_zeros(z.shape) + condition


def test_a_conditional_prior_gets_the_condition() -> None:
    process = df.GaussianDiffusion(schedule.log_snr_linear(0.0, 9.0, 50))
    decoder = likelihood.GaussianLikelihood(df.Continuous((1,)))
    x = torch.tensor([[-1.5], [-0.4], [0.1], [0.9], [2.0]], dtype=F64)

    def found(condition: Tensor) -> float:
        chain = df.DiffusionModel(process, df.Denoiser(Towards(), "v"), decoder)
        model = df.VAE(Labelled(), TwoInputs(), likelihood.GaussianLikelihood(LINE, 1.0), 1, prior=chain)
        return aggregated(model, x, 500, torch.Generator().manual_seed(0), condition).kl.value

    zero = torch.zeros(5, 1, dtype=F64)
    assert found(zero + 1) > found(zero) + 1


def test_a_diffusion_prior_has_both_kinds() -> None:
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    process = df.GaussianDiffusion(schedule.log_snr_linear(0.0, 9.0, 100))
    chain = df.DiffusionModel(process, world.denoiser("v"), likelihood.GaussianLikelihood(df.Continuous((1,))))
    x = torch.tensor([[-1.5], [-0.4], [0.1], [0.9], [2.0]], dtype=F64)
    found = aggregated(vae(log_std=0.3, prior=chain), x, 6000, torch.Generator().manual_seed(0))
    plain = aggregated(vae(log_std=0.3), x, 6000, torch.Generator().manual_seed(0))
    assert abs(found.information.value - plain.information.value) < 4 * found.information.error
    assert found.bounded
    # ln q(z)/p(z) by the chain's bound, against the ledger's own sum of the chain's costs and −H[q(z|x)].
    whole = df.evaluate(vae(log_std=0.3, prior=chain), x, visits=500)
    ledger = sum(term.value for name, term in whole.terms.items() if name not in ("reconstruction", "jacobian"))
    drawn = (whole.terms["kl"], whole.terms["latent_reconstruction"], found.marginal_kl, found.information)
    error = math.hypot(*(estimate.error for estimate in drawn))
    assert abs(found.information.value + found.marginal_kl.value - ledger) < 4 * error
    assert error < 0.06
    assert found.chain is not None
    deeper, through = found.chain
    # I(x; z_1) by quadrature: z_1 = α z + σ ε, of which q(z_1|x) is one Gaussian. At γ_1 = 0, α² = σ² = ½.
    q = vae(log_std=0.3).posterior(x)
    mean, var = q.mean[:, 0] * math.sqrt(0.5), 0.5 * q.variance[:, 0] + 0.5
    grid = torch.linspace(-10, 10, 20_001, dtype=F64)
    density = torch.exp(-0.5 * (grid - mean[:, None]) ** 2 / var[:, None]) / torch.sqrt(2 * math.pi * var[:, None])
    whole = density.mean(0)
    entropy = -float((whole * whole.clamp(min=1e-300).log()).sum() * (grid[1] - grid[0]))
    assert (
        abs(through.value - (entropy - float(0.5 * torch.log(2 * math.pi * math.e * var).mean()))) < 4 * through.error
    )
    assert abs(deeper.value - (entropy - 0.5 * math.log(2 * math.pi * math.e * 0.5))) < 4 * deeper.error
    # The data-processing inequality: less of x is left in z_1 than in z.
    assert through.value < found.information.value - 4 * found.information.error
    assert set(found.to_json()["chain"]) == {"I(z; z_1)", "I(x; z_1)"}


class Means(nn.Module):
    """Two latents with means x_1 and x_2 and σ = 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)


@pytest.mark.parametrize("n", [100, 1000])
def test_units_are_active_by_the_variance_of_their_means_over_all_items(n: int) -> None:
    """Means 0 for all items but a share w at height h: variance w (1 − w) h², on either side of 0.01, however often items repeat."""
    w = 0.02
    model = df.VAE(Means(), nn.Identity(), likelihood.GaussianLikelihood(df.Continuous((2,)), 1.0), 2)
    for first, second, active in ((0.0101, 0.0099, 1), (0.0099, 0.0098, 0), (0.0103, 0.0102, 2)):
        x = torch.zeros(n, 2, dtype=F64)
        x[: int(w * n)] = torch.tensor([first, second], dtype=F64).sqrt() / math.sqrt(w * (1 - w))
        assert aggregated(model, x + 3, samples=20).active == (active,)
    # Distinct items, too: evenly spaced means from −h to h have a third of h² (n + 1)/(n − 1) for their variance.
    spread = torch.linspace(-1, 1, n, dtype=F64)[:, None] * math.sqrt(3 * (n - 1) / (n + 1))
    x = spread * torch.tensor([0.0101, 0.0099], dtype=F64).sqrt()
    assert aggregated(model, x, samples=20).active == (1,)


def test_pairs_that_are_split_are_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = layered()
    whole = aggregated(model, x, 50, torch.Generator().manual_seed(0))
    monkeypatch.setattr(sys.modules["diffusional.information.aggregated"], "_PAIRS", 30)
    split = aggregated(model, x, 50, torch.Generator().manual_seed(0))
    assert split.information.value == pytest.approx(whole.information.value, abs=1e-9)


def test_bad_input() -> None:
    x = torch.zeros(3, 1, dtype=F64)
    with pytest.raises(DiffusionalError, match="at least 2"):
        aggregated(vae(), x, 1)
    with pytest.raises(DiffusionalError, match="items of shape"):
        aggregated(vae(), torch.zeros(3, 2, dtype=F64))
    process = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    fixed = df.DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(LINE))
    with pytest.raises(DiffusionalError, match="learned posterior"):
        aggregated(fixed, x)


def test_log_densities_of_all_pairs_keep_their_precision() -> None:
    # Narrow and far from zero, where the expanded square cancels.
    q = Gaussian(torch.tensor([[30.0], [30.1]]), torch.tensor([[-9.0], [-9.0]]))
    z = torch.tensor([[30.02]])
    plain = -0.5 * ((30.02 - torch.tensor([30.0, 30.1], dtype=F64)) ** 2 * math.exp(9) - 9 + math.log(2 * math.pi))
    torch.testing.assert_close(log_probs(q, z)[0], plain, rtol=1e-3, atol=1e-3)
