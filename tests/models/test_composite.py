"""Composite models: in linear Gaussian worlds the joint bound is H(x) + KL[q ‖ p] of all variables; in enumerable ones it lies above −ln p(x)."""

import itertools
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.conditions import Condition
from diffusional.models.composite import Cascade, Composite, Downscale, FrozenEncoder, FrozenPosterior
from diffusional.models.direct import DirectModel
from diffusional.models.renoised import Renoised
from diffusional.models.tail import ChainTail

X, Y = 3, 2
GAMMAS = {"prior": (-2.0, 3.0, 4), "decoder": (-3.0, 2.0, 3)}


@dataclass
class Affine:
    """Jointly Gaussian variables, each an affine function of earlier ones and of noise of its own."""

    rows: dict[str, Tensor] = field(default_factory=dict)  # by name, coefficients of all noises
    means: dict[str, Tensor] = field(default_factory=dict)
    noises: int = 0

    def add(self, name: str, of: Mapping[str, Tensor], bias: Tensor, covariance: Tensor) -> None:
        root, n = torch.linalg.cholesky(covariance.detach()), len(bias)
        row = torch.zeros(n, self.noises + n, dtype=torch.float64)
        mean = bias.detach().clone()
        for other, matrix in of.items():
            known = matrix.detach() @ self.rows[other]
            row[:, : known.shape[1]] += known
            mean = mean + matrix.detach() @ self.means[other]
        row[:, self.noises :] = root
        self.noises += n
        self.rows[name], self.means[name] = row, mean

    def joint(self, names: list[str]) -> tuple[Tensor, Tensor]:
        rows = torch.cat([nn.functional.pad(self.rows[n], (0, self.noises - self.rows[n].shape[1])) for n in names])
        return torch.cat([self.means[n] for n in names]), rows @ rows.T


def kl(q: Affine, p: Affine) -> float:
    names = sorted(q.rows)
    assert names == sorted(p.rows)
    (mean_q, cov_q), (mean_p, cov_p) = q.joint(names), p.joint(names)
    apart = mean_p - mean_q
    inverse = torch.linalg.inv(cov_p)
    logs = torch.logdet(cov_p) - torch.logdet(cov_q)
    return float(0.5 * ((inverse @ cov_q).trace() - len(apart) + apart @ inverse @ apart + logs))


def eye(n: int, scale: float = 1.0) -> Tensor:
    return scale * torch.eye(n, dtype=torch.float64)


def random(*shape: int, seed: int) -> Tensor:
    return 0.4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """A network that is linear in z and in the condition: its weights are as good as any."""

    def __init__(self, n: int, given: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.own = nn.Parameter(random(n, n, seed=seed))
        self.other = nn.Parameter(random(n, given, seed=seed + 1))
        self.bias = nn.Parameter(random(n, seed=seed + 2))

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        out = z @ self.own.T + self.bias
        if condition is None:
            assert not self.other.shape[1]
            return out
        (c,) = condition.values() if isinstance(condition, Mapping) else (condition,)
        return out + c @ self.other.T


def diffusion(name: str, n: int, given: int = 0, seed: int = 0) -> df.DiffusionModel:
    low, high, steps = GAMMAS[name]
    process = df.GaussianDiffusion(schedule.log_snr_linear(low, high, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((n,)), variance=0.3)
    return df.DiffusionModel(process, df.Denoiser(Linear(n, given, seed), "data"), decoder).requires_grad_(False)


def forward_latents(
    q: Affine, name: str, model: df.DiffusionModel, of: str, matrix: Tensor, bias: Tensor, least: int = 1
) -> None:
    """Add z_s … z_T of a diffusion of matrix · `of` + bias."""
    gamma, n = model.noise_levels().double(), len(bias)
    for t in range(least, len(gamma) + 1):
        a2, s2 = torch.sigmoid(-gamma[t - 1]), torch.sigmoid(gamma[t - 1])
        if t == least:
            q.add(f"{name}{t}", {of: a2.sqrt() * matrix}, a2.sqrt() * bias, eye(n, float(s2)))
        else:
            ratio = torch.sigmoid(-gamma[t - 1]) / torch.sigmoid(-gamma[t - 2])
            noise = s2 - ratio * torch.sigmoid(gamma[t - 2])
            q.add(
                f"{name}{t}",
                {f"{name}{t - 1}": eye(n, float(ratio.sqrt()))},
                torch.zeros(n).double(),
                eye(n, float(noise)),
            )


def backward_latents(p: Affine, name: str, model: df.DiffusionModel, given: str | None = None, least: int = 1) -> None:
    """Add z_T … z_s of the model: p(z_s|z_t) has the mean of q(z_s|z_t, x̂) and its variance."""
    gamma, net = model.noise_levels().double(), model.denoiser.module
    n, steps = len(net.bias), len(gamma)
    p.add(f"{name}{steps}", {}, torch.zeros(n).double(), eye(n))
    for t in range(steps - 1, least - 1, -1):
        a_s2, a_t2 = torch.sigmoid(-gamma[t - 1]), torch.sigmoid(-gamma[t])
        s_s2, s_t2 = 1 - a_s2, 1 - a_t2
        ratio = a_t2 / a_s2
        noise = s_t2 - ratio * s_s2
        own, data = ratio.sqrt() * s_s2 / s_t2, a_s2.sqrt() * noise / s_t2
        of = {f"{name}{t + 1}": eye(n, float(own)) + data * net.own}
        if given is not None:
            of[given] = data * net.other
        p.add(f"{name}{t}", of, data * net.bias, eye(n, float(noise * s_s2 / s_t2)))


def backward_data(p: Affine, name: str, model: df.DiffusionModel, variable: str, given: str | None = None) -> None:
    net = model.denoiser.module
    of = {f"{name}1": net.own} | ({} if given is None else {given: net.other})
    p.add(variable, of, net.bias.data, eye(len(net.bias), 0.3))


MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-0.3, 0.5, 0.7]], dtype=torch.float64)
ENTROPY = float(0.5 * torch.logdet(2 * math.pi * math.e * (ROOT @ ROOT.T)))


def world() -> Affine:
    q = Affine()
    q.add("x", {}, MEAN, ROOT @ ROOT.T)
    return q


def expected(
    model: Composite, x: Tensor | None = None, mean: Tensor = MEAN, condition: Tensor | None = None
) -> dict[str, Tensor]:
    """The exact expectation of every term over the noise, and over x ~ N(mean, …) unless it is given (B, …), for one row of a condition: terms
    are quadratic, and the points ±√m e_i integrate all cubics over N(0, I).
    """
    numbers = model.noise_shape[0]
    m = numbers + (X if x is None else 0)
    points = math.sqrt(m) * torch.cat([eye(m), -eye(m)])
    if x is None:
        items, noise = mean + points[:, numbers:] @ ROOT.T, points[:, :numbers]
        ledger = model.terms(items, noise, None if condition is None else condition.expand(len(items), -1))
        totals = ledger.totals() | {"nelbo": ledger.nelbo}
        return {name: value.mean() for name, value in totals.items()}
    every = [model.terms(x, point.expand(len(x), -1)) for point in points]
    names = every[0].totals()
    found = {name: torch.stack([one.totals()[name] for one in every]).mean(0) for name in names}
    return found | {"nelbo": torch.stack([one.nelbo for one in every]).mean(0)}


def linear(outputs: int, inputs: int, seed: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).double()
    layer.weight.data, layer.bias.data = random(outputs, inputs, seed=seed), random(outputs, seed=seed + 1)
    return layer


def frozen_encoder(level: int) -> tuple[FrozenEncoder, Affine, Affine]:
    """unCLIP's shape: a prior of the embedding, and a diffusion of x given z_s."""
    encoder, prior, decoder = linear(Y, X, 3), diffusion("prior", Y, seed=5), diffusion("decoder", X, Y, seed=9)
    q, p = world(), Affine()
    forward_latents(q, "y", prior, "x", encoder.weight, encoder.bias, level)
    forward_latents(q, "z", decoder, "x", eye(X), torch.zeros(X).double())
    backward_latents(p, "y", prior, least=level)
    backward_latents(p, "z", decoder, f"y{level}")
    backward_data(p, "z", decoder, "x", f"y{level}")
    return FrozenEncoder(encoder, prior, decoder, level=level), q, p


def latent_diffusion(rescaled: bool = False) -> tuple[FrozenEncoder, Affine, Affine]:
    """A frozen autoencoder taken as deterministic: a decoder without latents."""
    encoder, prior, layer = linear(Y, X, 3), diffusion("prior", Y, seed=5), linear(X, Y, 13)
    decoder = DirectModel(layer, likelihood.GaussianLikelihood(df.Continuous((X,)), variance=0.5))
    q, p = world(), Affine()
    forward_latents(q, "y", prior, "x", encoder.weight, encoder.bias)
    backward_latents(p, "y", prior)
    scale = float(torch.sigmoid(torch.tensor(2.0).double())) ** -0.5 if rescaled else 1.0
    p.add("x", {"y1": scale * layer.weight}, layer.bias, eye(X, 0.5))
    return FrozenEncoder(encoder, prior, decoder, rescaled=rescaled), q, p


class MeanAndSpread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = linear(Y, X, 3), nn.Parameter(torch.tensor([-0.7, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.mean(x), self.log_std.expand(len(x), -1)], 1)


def frozen_posterior() -> tuple[FrozenPosterior, Affine, Affine]:
    encoder, prior, layer = MeanAndSpread(), diffusion("prior", Y, seed=5), linear(X, Y, 13)
    decoder = DirectModel(layer, likelihood.GaussianLikelihood(df.Continuous((X,)), variance=0.5))
    q, p = world(), Affine()
    q.add("y", {"x": encoder.mean.weight}, encoder.mean.bias, torch.diag((2 * encoder.log_std).exp()))
    forward_latents(q, "z", prior, "y", eye(Y), torch.zeros(Y).double())
    backward_latents(p, "z", prior)
    backward_data(p, "z", prior, "y")
    p.add("x", {"y": layer.weight}, layer.bias, eye(X, 0.5))
    return FrozenPosterior(encoder, prior, decoder), q, p


def handed_over() -> tuple[Cascade, Affine, Affine]:
    """MATH (29b) with three stages; the diffusions of the first two stop at z_2 and z_3."""
    downs = [linear(1, X, 3), linear(Y, X, 5)]
    base, middle, last = (
        diffusion("prior", 1, seed=5),
        diffusion("prior", Y, 1, seed=7),
        diffusion("decoder", X, Y, seed=9),
    )
    q, p = world(), Affine()
    forward_latents(q, "a", base, "x", downs[0].weight, downs[0].bias, 2)
    forward_latents(q, "b", middle, "x", downs[1].weight, downs[1].bias, 3)
    forward_latents(q, "c", last, "x", eye(X), torch.zeros(X).double())
    backward_latents(p, "a", base, least=2)
    backward_latents(p, "b", middle, "a2", least=3)
    backward_latents(p, "c", last, "b3")
    backward_data(p, "c", last, "x", "b3")
    return Cascade({"base": base, "middle": middle, "last": last}, downs, handover=(2, 3)), q, p


WORLDS = {
    "frozen encoder": lambda: frozen_encoder(1),
    "frozen encoder, z_3": lambda: frozen_encoder(3),
    "latent diffusion": latent_diffusion,
    "latent diffusion, rescaled": lambda: latent_diffusion(True),
    "frozen posterior": frozen_posterior,
    "cascade": handed_over,
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_joint_bound_is_the_entropy_and_the_gaps(name: str) -> None:
    model, q, p = WORLDS[name]()
    found = expected(model.double())
    gap = kl(q, p)
    assert gap > 0.5
    assert abs(float(found["nelbo"]) - (ENTROPY + gap)) < 1e-8
    assert abs(float(sum(value for term, value in found.items() if term != "nelbo")) - (ENTROPY + gap)) < 1e-8


@pytest.mark.parametrize("label", [-0.5, 2.0])
@pytest.mark.parametrize("name", ["frozen encoder", "cascade"])
def test_in_a_labelled_mixture_the_joint_bound_is_the_entropy_given_the_label_and_the_gaps(
    name: str, label: float
) -> None:
    """x given c is N(mean + c · shift, …), a class of a mixture; the prior's network takes c, and so has another bias in each class."""
    c, mean = torch.tensor([label]).double(), MEAN + label * random(X, seed=21)
    prior, decoder, encoder = diffusion("prior", Y, 1, seed=5), diffusion("decoder", X, Y, seed=9), linear(Y, X, 3)
    stages = {"prior": prior, "decoder": decoder}
    model = (
        FrozenEncoder(encoder, prior, decoder, level=2, conditional=["prior"])
        if name == "frozen encoder"
        else Cascade(stages, [encoder], handover=2, conditional=["prior"])
    )
    q, p = Affine(), Affine()
    q.add("x", {}, mean, ROOT @ ROOT.T)
    forward_latents(q, "y", prior, "x", encoder.weight, encoder.bias, 2)
    forward_latents(q, "z", decoder, "x", eye(X), torch.zeros(X).double())
    of_class = diffusion("prior", Y, 1, seed=5)
    of_class.denoiser.module.bias += of_class.denoiser.module.other @ c
    backward_latents(p, "y", of_class, least=2)
    backward_latents(p, "z", decoder, "y2")
    backward_data(p, "z", decoder, "x", "y2")
    model = model.double().requires_grad_(False)
    found = expected(model, mean=mean, condition=c)
    assert abs(float(found["nelbo"]) - (ENTROPY + kl(q, p))) < 1e-8
    other = expected(model, mean=mean, condition=c + 1)
    assert abs(float(other["nelbo"]) - (ENTROPY + kl(q, p))) > 1e-3


@pytest.mark.parametrize("name", WORLDS)
def test_weights_along_one_path_have_the_mean_p_of_x(name: str) -> None:
    """MATH (32): E w = p(x), which is known, and E ln w is the ELBO, with one z_s for both of the stages that share it.

    ln w = c + bᵀε + ½ εᵀAε, so that E w = e^{c + ½ bᵀ(I − A)⁻¹b} |I − A|^{−½} and E ln w = c + ½ tr A, exactly.
    """
    model, _, p = WORLDS[name]()
    model = model.double().requires_grad_(False)
    x = MEAN + torch.tensor([[0.5, -0.3, 0.2]], dtype=torch.float64) @ ROOT.T
    zero = torch.zeros(*model.noise_shape, dtype=torch.float64)

    def log_weight(noise: Tensor) -> Tensor:
        return model.log_weight(x, noise[None])[0]

    c, b = float(log_weight(zero)), torch.autograd.functional.jacobian(log_weight, zero)
    a = torch.autograd.functional.hessian(log_weight, zero)
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    kept = eye(len(zero)) - a
    mean = c + 0.5 * float(b @ torch.linalg.solve(kept, b)) - 0.5 * float(torch.logdet(kept))
    truth = torch.distributions.MultivariateNormal(*p.joint(["x"])).log_prob(x)
    assert mean == pytest.approx(float(truth), abs=1e-8)
    assert c + 0.5 * float(a.trace()) == pytest.approx(-float(expected(model, x)["nelbo"]), abs=1e-8)


def test_a_vae_with_a_diffusion_prior_has_the_weights_of_its_parts() -> None:
    parts = frozen_posterior()[0].double()
    prior, decoder = parts.stages["prior"], parts.stages["decoder"]
    whole = df.VAE(parts.encoder, decoder.decoder, decoder.likelihood, (Y,), prior=prior).double()
    x = MEAN + torch.randn(6, X, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(6, *whole.noise_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert whole.noise_shape == parts.noise_shape
    torch.testing.assert_close(whole.log_weight(x, noise), parts.log_weight(x, noise))


def test_stages_without_weights_are_refused() -> None:
    model = WORLDS["cascade"]()[0]
    mixed = Cascade(
        {"base": diffusion("prior", Y).regrid(None), "last": diffusion("decoder", X, Y)}, [linear(Y, X, 3)], handover=1
    )
    with pytest.raises(df.DiffusionalError, match="finitely many latents"):
        mixed.check_log_weight()
    with pytest.raises(df.DiffusionalError, match="noise of shape"):
        model.log_weight(torch.zeros(2, X), torch.zeros(2, 3))


@pytest.mark.parametrize("name", WORLDS)
def test_losses_draws_and_visits_have_the_same_mean(name: str) -> None:
    """The exact mean of an item, by one level of each stage, by full draws, and by visits of one evaluation each."""
    model = WORLDS[name]()[0].double()
    x = MEAN + torch.randn(5, X, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ ROOT.T
    exact = expected(model, x)
    many = x.repeat(4000, 1)
    for draws in (
        model.costs(many, model.draw(many, None, torch.Generator().manual_seed(1))).total(),
        model.elbo(many, torch.Generator().manual_seed(2)).nelbo,
    ):
        by_item = draws.view(4000, 5)
        assert bool(((by_item.mean(0) - exact["nelbo"]).abs() < 5 * by_item.std(0) / 4000**0.5).all())
    plan = df.Plan.uniform(model)
    result = df.evaluate(model, x, visits=2000, plan=plan, audit=False)
    assert result.nelbo.network_evaluations == 5 * 2000
    assert list(result.terms) == list(model.terms(x, torch.zeros(5, *model.noise_shape).double()).totals())
    for term, estimate in result.terms.items():
        assert abs(estimate.value - float(exact[term].mean())) < 5 * estimate.error + 1e-9, term
    assert abs(result.nelbo.value - float(exact["nelbo"].mean())) < 5 * result.nelbo.error
    assert result.nelbo.to("bits/dim", X).value == pytest.approx(result.nelbo.value / (X * math.log(2)))
    blocks = {term: len(block.edges) - 1 for term, block in result.level_blocks().items()}
    assert blocks == {term: block.shape[1] for term, block in model.elbo(x).blocks.items() if block.shape[1]}
    for term, block in result.level_blocks().items():
        assert block.gamma is not None
        stage = model.stages[term.partition(".")[0]]
        chain = stage.visited()
        torch.testing.assert_close(block.gamma, chain.gamma_at(block.edges.clamp(max=chain.steps)).double())
        assert float(block.kl.sum()) == pytest.approx(result.terms[term].value)


@pytest.mark.parametrize("name", ["frozen encoder", "cascade"])
def test_a_path_through_the_stages_keeps_a_few_latents_whatever_t(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importance weights of a composite take memory that does not grow with the T of its stages."""
    x, whole, most = MEAN + torch.zeros(3, X).double(), df.Gaussian.sample, {}
    for steps in (10, 40):
        stages = {"prior": diffusion("prior", Y, seed=5), "decoder": diffusion("decoder", X, Y, seed=9)}
        prior, decoder = (model.regrid(steps).double() for model in stages.values())
        encoder = linear(Y, X, 3)
        model = (
            FrozenEncoder(encoder, prior, decoder, level=1)
            if name == "frozen encoder"
            else Cascade({"prior": prior, "decoder": decoder}, [encoder], handover=1)
        ).double()
        drawn, asked = list[weakref.ref[Tensor]](), list[tuple[int, ...]]()
        most[steps] = 0

        def sample(self: df.Gaussian, *args: Any, drawn: Any = drawn, steps: int = steps, **kwargs: Any) -> Tensor:
            z = whole(self, *args, **kwargs)
            drawn.append(weakref.ref(z))
            most[steps] = max(most[steps], sum(one() is not None for one in drawn))
            return z

        def noise(shape: tuple[int, ...], asked: Any = asked) -> Tensor:
            asked.append(shape)
            return torch.zeros(len(x), *shape).double()

        monkeypatch.setattr(df.Gaussian, "sample", sample)
        with torch.no_grad():
            model.walked_log_weight(x, noise)
        assert len(drawn) >= 2 * steps - 1
        assert max(math.prod(shape) for shape in asked) <= X
    assert most[10] == most[40] <= 4


@pytest.mark.parametrize("name", ["frozen encoder", "frozen posterior", "cascade"])
def test_continuous_time(name: str) -> None:
    """In continuous time all stages share [0, 1]: their sum is the bound of fine discrete time."""
    if name == "cascade":
        stages = {"base": diffusion("prior", Y, seed=5), "last": diffusion("decoder", X, Y, seed=9)}
        fine = Cascade({k: m.regrid(400) for k, m in stages.items()}, [linear(Y, X, 3)], handover=1).double()
        # One stage in continuous time, and one with levels.
        mixed = {"base": stages["base"].regrid(None), "last": stages["last"].regrid(400)}
        model = Cascade(mixed, [linear(Y, X, 3)], handover=1).double()
    else:
        fine, model = (WORLDS[name]()[0].double().regrid(steps) for steps in (400, None))
    x = MEAN + torch.randn(3, X, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ ROOT.T
    limit = df.evaluate(fine, x, visits=4000, plan=df.Plan.uniform(fine), audit=False)
    result = df.evaluate(model, x, visits=4000, plan=df.Plan.uniform(model), audit=False)
    assert list(result.terms) == list(limit.terms)
    for term in result.terms:
        one, other = result.terms[term], limit.terms[term]
        slack = 5 * math.hypot(one.error, other.error) + 0.01 * abs(other.value) + 1e-9
        assert abs(one.value - other.value) < slack, term
    assert result.level_edges.is_floating_point()


def test_a_visit_has_noise_of_its_own_for_the_variable_and_for_the_level() -> None:
    model = frozen_posterior()[0].double()
    chain, prior = model.visited(), model.stages["prior"]
    (first,) = (int(section.first) for section in chain.sections() if section.term == "prior.kl")
    noise = torch.randn(5, *chain.visit_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, t = MEAN.expand(5, -1), torch.tensor([1, 2, 3, 1, 2])
    y = model.posterior(x).sample(noise=noise[:, :Y])
    expected = prior.level_kl(y, t, noise[:, Y : 2 * Y])
    torch.testing.assert_close(chain.level_kl(x, first + t - 1, noise), expected)


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 8])
def test_no_cell_has_levels_of_two_stages(cells: int) -> None:
    for model in (frozen_encoder(1)[0], frozen_encoder(1)[0].regrid(None)):
        chain = model.visited()
        starts = {section.first for section in chain.sections()}
        assert len(starts) == 3
        assert starts <= set(df.Plan.uniform(model, cells).edges.tolist())


def test_the_provenance_has_the_stages() -> None:
    model, _, _ = frozen_encoder(3)
    x = MEAN.expand(4, -1) + torch.arange(4)[:, None]
    result = df.evaluate(model.double(), x, visits=2, plan=df.Plan.uniform(model), audit=False)
    assert {name: one["latents"] for name, one in result.provenance["stages"].items()} == {"prior": 2, "decoder": 3}
    assert "T = 2 (prior)" in str(result)


def test_the_encoder_is_frozen_and_its_weights_are_part_of_the_hash() -> None:
    model, _, _ = frozen_encoder(1)
    model.train()
    assert not model.encoder.training
    assert model.stages["decoder"].training
    model.stages.requires_grad_(True)
    x = MEAN.expand(6, -1)
    model.double().loss(x, torch.Generator().manual_seed(0)).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    trained = [parameter for stage in model.stages.values() for parameter in stage.parameters()]
    assert all(parameter.grad is not None for parameter in trained if parameter.numel())
    assert any(name.startswith("encoder.") for name in model.state_dict())


def test_samples_are_those_of_the_joint_model() -> None:
    """Mean and covariance of samples of all variables, against the generative equations."""
    for make, names in (
        (lambda: frozen_encoder(3), {"prior": "y3", "decoder": "x"}),
        (latent_diffusion, {"prior": "y1", "decoder": "x"}),
        (frozen_posterior, {"prior": "y", "decoder": "x"}),
        (handed_over, {"base": "a2", "middle": "b3", "last": "x"}),
    ):
        model, _, p = make()
        n = 40_000
        drawn = model.double().sample_stages(n, torch.Generator().manual_seed(0))
        assert list(drawn) == list(names)
        values = torch.cat([drawn[stage] for stage in names], 1)
        mean, covariance = p.joint(list(names.values()))
        scale = covariance.diagonal()
        assert bool(((values.mean(0) - mean).abs() < 5 * (scale / n).sqrt()).all())
        spread = 5 * ((scale[:, None] * scale + covariance.square()) / n).sqrt()
        assert bool(((torch.cov(values.T) - covariance).abs() < spread).all())


# Enumerable worlds.


class Table(nn.Module):
    """A network of bits with random weights, and what it makes of a condition."""

    def __init__(self, shape: tuple[int, ...], given: int, seed: int) -> None:
        super().__init__()
        n = math.prod(shape)
        self.shape = shape
        self.own, self.other = (
            nn.Parameter(2 * random(n, n, seed=seed)),
            nn.Parameter(3 * random(n, given, seed=seed + 1)),
        )

    def forward(self, z: Tensor, log_odds: Tensor, condition: Condition | None = None) -> Tensor:
        out = z.flatten(1) @ self.own.T
        if condition is not None:
            (c,) = condition.values() if isinstance(condition, Mapping) else (condition,)
            out = out + c.flatten(1).to(out) @ self.other.T
        return out.view(-1, *self.shape)


def bits(shape: tuple[int, ...], steps: int, given: int = 0, seed: int = 0) -> df.BinomialDiffusionModel:
    process = df.BinomialDiffusion.constant(steps)
    network = Table(shape, given, seed).requires_grad_(False)
    return df.BinomialDiffusionModel(process, network, df.Discrete(shape, 2))


def states(shape: tuple[int, ...]) -> Tensor:
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=math.prod(shape))), dtype=torch.float64)
    return every.view(-1, *shape)


def log_prob(model: df.BinomialDiffusionModel, condition: Condition | None = None) -> Tensor:
    """ln p(x) of all x, by enumerating the latents. `condition` has a single row."""
    z = states(model.space.shape)
    n = len(z)

    def rows(c: Condition | None) -> Condition | None:
        return None if c is None else {key: value.expand(n, *value.shape[1:]) for key, value in c.items()}

    at = model.last(n).log_prob(z).exp()
    for t in range(model.steps - 1, 0, -1):
        step = model.step(z, torch.full((n,), t), rows(condition))
        table = torch.stack([step.log_prob(s.expand(n, *s.shape)).exp() for s in z], 1)
        at = at @ table
    decode = model.decode(z, rows(condition))
    table = torch.stack([decode.log_prob(s.expand(n, *s.shape)).exp() for s in z], 1)
    return (at @ table).log()


def nelbo(model: df.BinomialDiffusionModel, x: Tensor, condition: Condition | None = None) -> float:
    """The NELBO of one x (1, …), by enumerating q(z_t|x)."""
    z = states(model.space.shape)
    n = len(z)
    c = None if condition is None else {key: value.expand(n, *value.shape[1:]) for key, value in condition.items()}
    items = x.expand(n, *x.shape[1:])

    def weights(t: int) -> Tensor:
        return model.process.marginal(items, t).log_prob(z).exp()

    total = float(model.prior(x)) - float(weights(1) @ model.decode(z, c).log_prob(items))
    for t in range(1, model.steps):
        step = model.step(z, torch.full((n,), t), c)
        total += float(weights(t + 1) @ model.process.posterior(z, items, t).kl(step))
    return total


def cascade_of_bits() -> Cascade:
    return Cascade({"base": bits((1, 1, 1), 3, seed=1), "up": bits((1, 2, 2), 3, 1, seed=2)}).double()


def test_a_cascade_sums_to_one_and_stays_below_ln_p() -> None:
    model = cascade_of_bits()
    base, up = model.stages.values()
    items, low = states((1, 2, 2)), states((1, 1, 1))
    joint = log_prob(base)[:, None] + torch.stack([log_prob(up, {"low": one[None]}) for one in low])
    whole = torch.logsumexp(joint, 0)
    assert abs(float(whole.exp().sum()) - 1) < 1e-10
    down = model.downscale[0](items)
    bound = torch.tensor(
        [nelbo(base, y[None]) + nelbo(up, x[None], {"low": y[None]}) for x, y in zip(items, down, strict=True)]
    )
    assert bool((bound > -whole).all())
    # The slack is that of the stages, and what is lost to second stages that do not reproduce d(x).
    assert bool(
        (bound - -whole > -torch.log_softmax(joint, 0)[(down.flatten() > 0).long(), torch.arange(16)] - 1e-12).all()
    )
    result = df.evaluate(model, items, visits=1500, plan=df.Plan.uniform(model), audit=False)
    assert abs(result.nelbo.value - float(bound.mean())) < 5 * result.nelbo.error
    away = (result.per_item["nelbo"] - bound) / result.per_item["error"]
    assert float(away.abs().max()) < 5
    fitted = df.evaluate(model, items, target_error=0.05, unit="nats")
    assert fitted.nelbo.error <= 0.05
    assert abs(fitted.nelbo.value - float(bound.mean())) < 5 * fitted.nelbo.error


def test_a_renoised_cascade_stays_below_ln_p() -> None:
    """MATH (29a): ln p(x) = ln Σ_y p(y) ∫ q(ỹ|y) p(x|ỹ) dỹ, by Gauss–Hermite quadrature."""
    base = bits((1, 1, 1), 3, seed=1)
    space, gamma = df.Discrete((1, 2, 2), 2), -1.0
    network = nn.Sequential(nn.Flatten(), linear(8, 1, 5), nn.Unflatten(1, (2, 2, 2)))
    decoder = DirectModel(network, likelihood.NetworkLevels(space), head="categorical", key="low")
    model = Cascade({"base": base, "up": decoder}, renoise=gamma).double()
    nodes, weights = (torch.from_numpy(v) for v in __import__("numpy").polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    items, low = states((1, 2, 2)), states((1, 1, 1))
    a, s = torch.sigmoid(torch.tensor(-gamma).double()).sqrt(), torch.sigmoid(torch.tensor(gamma).double()).sqrt()

    def given(y: Tensor) -> Tensor:
        """ln p(x|ỹ) (nodes, 16)."""
        noised = (a * y + s * nodes).view(-1, 1, 1, 1)
        return torch.stack([-decoder.elbo(x.expand(60, 1, 2, 2), condition=noised).nelbo for x in items], 1)

    of_base = log_prob(base)
    whole = torch.logsumexp(
        torch.stack(
            [
                p + torch.logsumexp(given(y.flatten()[0]) + weights.log()[:, None], 0)
                for p, y in zip(of_base, low, strict=True)
            ]
        ),
        0,
    )
    assert abs(float(whole.exp().sum()) - 1) < 1e-8
    down = model.downscale[0](items)
    bound = torch.tensor(
        [nelbo(base, y[None]) - float(weights @ given(y.flatten()[0])[:, i]) for i, y in enumerate(down)]
    )
    assert bool((bound > -whole).all())
    result = df.evaluate(model, items, visits=1500, plan=df.Plan.uniform(model), audit=False)
    assert abs(result.nelbo.value - float(bound.mean())) < 5 * result.nelbo.error
    drawn = model.elbo(items.repeat(2000, 1, 1, 1), torch.Generator().manual_seed(0)).nelbo.view(2000, 16)
    assert bool(((drawn.mean(0) - bound).abs() < 5 * drawn.std(0) / 2000**0.5).all())


# Downscaling.


def test_downscaling_is_the_nearest_level_of_the_mean() -> None:
    space = df.Discrete((2, 4, 6), 5)
    raw = torch.randint(5, (50, 2, 4, 6), generator=torch.Generator().manual_seed(0))
    for levels in (5, 3, 9):
        down = Downscale(space, 2, levels)
        mean = nn.functional.avg_pool2d(raw.double(), 2)
        expected = torch.floor(mean * (levels - 1) / 4 + 0.5 + 1e-9).long()
        assert down.low.decode(down(space.encode(raw))).equal(expected)
        down.low.check(down(space.encode(raw)))


# What is refused.


def test_stages_that_do_not_meet_are_refused() -> None:
    base, up = bits((1, 1, 1), 3), bits((1, 2, 2), 3, 1)
    with pytest.raises(df.DiffusionalError, match=r"meet.*\(1, 4, 4\)"):
        Cascade({"base": bits((1, 4, 4), 3), "up": up})
    with pytest.raises(df.DiffusionalError, match=r"meet.*base.*shape"):
        Cascade({"base": base, "up": up}, [Downscale(up.space, 1)])
    with pytest.raises(df.DiffusionalError, match=r"downscale, one.*got 2"):
        Cascade({"base": base, "up": up}, [Downscale(up.space, 2)] * 2)
    with pytest.raises(df.DiffusionalError, match="at least two stages"):
        Cascade({"base": base})
    with pytest.raises(df.DiffusionalError, match=r"name of a stage.*a\.b"):
        Cascade({"a.b": base, "up": up})
    with pytest.raises(df.DiffusionalError, match=r"conditional.*other"):
        Cascade({"base": base, "up": up}, conditional=["other"])
    with pytest.raises(df.DiffusionalError, match="got a Cascade; list its stages"):
        Cascade({"base": base, "up": cascade_of_bits()})
    with pytest.raises(df.DiffusionalError, match=r"renoise=0\.0 and handover=1"):
        Cascade({"base": base, "up": up}, renoise=0.0, handover=1)


def test_a_real_valued_low_resolution_needs_a_handover() -> None:
    stages = {"base": diffusion("prior", Y), "last": diffusion("decoder", X, Y)}
    with pytest.raises(df.DiffusionalError, match=r"quantised.*handover"):
        Cascade(stages, [linear(Y, X, 3).float()])


def test_another_noise_level_than_the_next_stage_takes_is_refused() -> None:
    prior, decoder = diffusion("prior", Y), diffusion("decoder", X, Y)
    wrong = Renoised(decoder, -1.0, (Y,), "latent")
    with pytest.raises(df.DiffusionalError, match=r"meet.*γ = -1.*γ = -2"):
        FrozenEncoder(linear(Y, X, 3), prior, wrong)
    FrozenEncoder(linear(Y, X, 3), prior, Renoised(decoder, -2.0, (Y,), "latent"))
    with pytest.raises(df.DiffusionalError, match=r"level.*from 1 to 3, below T, got 4"):
        FrozenEncoder(linear(Y, X, 3), prior, decoder, level=4)
    with pytest.raises(df.DiffusionalError, match="continuous time, got 2"):
        ChainTail(prior.regrid(None), 2)


def test_an_encoder_of_another_shape_is_refused() -> None:
    model = FrozenEncoder(linear(Y + 1, X, 3), diffusion("prior", Y), diffusion("decoder", X, Y)).double()
    with pytest.raises(df.DiffusionalError, match=r"meet.*encoder.*\(4, 2\).*\(4, 3\)"):
        model.elbo(MEAN.expand(4, -1))


def test_conditions_reach_the_stages_that_take_them() -> None:
    class Seen(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n, self.seen = n, []

        def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
            self.seen.append(condition)
            return 0 * z

    def of(n: int) -> df.DiffusionModel:
        process = df.GaussianDiffusion(schedule.log_snr_linear(-2.0, 2.0, 2))
        return df.DiffusionModel(
            process, df.Denoiser(Seen(n), "data"), likelihood.GaussianLikelihood(df.Continuous((n,)))
        )

    c = torch.tensor([3, 1])
    for conditional in (["prior", "decoder"], ["prior"]):
        model = FrozenEncoder(linear(Y, X, 3), of(Y), of(X), conditional=conditional).double()
        model.elbo(MEAN.expand(2, -1), condition=c)
        prior, decoder = (stage.over if name == "prior" else stage.model for name, stage in model.stages.items())
        assert all(seen.equal(c) for seen in prior.denoiser.module.seen)
        wanted = {"latent", "condition"} if "decoder" in conditional else {"latent"}
        assert all(set(seen) == wanted for seen in decoder.denoiser.module.seen)
    with pytest.raises(df.DiffusionalError, match=r"'latent'.*rename"):
        FrozenEncoder(linear(Y, X, 3), of(Y), of(X)).double().elbo(MEAN.expand(2, -1), condition={"latent": c})
    with pytest.raises(df.DiffusionalError, match="no stage"):
        FrozenEncoder(linear(Y, X, 3), of(Y), of(X), conditional=[]).double().elbo(MEAN.expand(2, -1), condition=c)


def test_one_step_of_upsampling() -> None:
    model = cascade_of_bits()
    low = states((1, 1, 1))
    x = model.upsample(low.repeat(500, 1, 1, 1), torch.Generator().manual_seed(0))
    up = model.stages["up"]
    for i, one in enumerate(low):
        share = torch.stack([(x[i::2] == s).flatten(1).all(1).double().mean() for s in states((1, 2, 2))])
        p = log_prob(up, {"low": one[None]}).exp()
        assert bool(((share - p).abs() < 5 * (p * (1 - p) / 500).sqrt() + 1e-3).all())
    with pytest.raises(df.DiffusionalError, match=r"stage.*base.*'up'"):
        model.upsample(low, stage="up")


def test_every_objective_of_a_stage_has_a_noised_condition() -> None:
    """L_simple of a model that is given ỹ is that of the model inside for the same ỹ and the same noise."""
    inner = diffusion("decoder", X, given=Y, seed=3)
    model = Renoised(inner, 0.5, (Y,), "low")
    assert model.objectives == inner.objectives == ("elbo", "simple")
    x, c = random(6, X, seed=1), {"low": random(6, Y, seed=2)}
    for objective in model.objectives:
        draws = model.objective_draw(objective, x, None, torch.Generator().manual_seed(0))
        given = model.noised(c, draws.pop("condition_noise"))
        own = model.objective_draw(objective, x, None, torch.Generator().manual_seed(0))
        found = model.objective_costs(objective, x, own, c).total()
        assert torch.equal(found, inner.objective_costs(objective, x, draws, given).total())
    with pytest.raises(df.DiffusionalError, match="hybrid"):
        model.objective_draw("hybrid", x)
