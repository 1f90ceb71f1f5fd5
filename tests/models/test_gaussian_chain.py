"""The chain with free Gaussians, against a linear-Gaussian world in which its best steps and decoder are known, and against torch.distributions.

In the world x_d ~ N(μ_d, λ), independently. q(z_t|z_{t+1}) is then Gaussian with a linear mean. A chain with these steps and with
q(x|z_1) for its decoder has p(x, z_{1:T}) = q(x, z_{1:T}) p(z_T)/q(z_T): every path's weight is known.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

import diffusional as df
from battery import F64, close, generator, plain_alpha, plain_posterior, plain_sigma, randn
from diffusional import likelihood, schedule
from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.evaluation import Plan, compare, evaluate, importance_weighted
from diffusional.timesteps import Stratified, Uniform

STEPS, D, MEAN, LAMBDA = 5, 2, np.array([0.3, -0.4]), 3.0
# α_T² = 0.27, so that KL_T is not negligible.
GAMMA = np.linspace(-2.0, 1.0, STEPS)


def forward(steps: int | None = STEPS) -> df.GaussianDiffusion:
    return df.GaussianDiffusion(schedule.log_snr_linear(-2.0, 1.0, steps))


def law(t: int) -> tuple[np.ndarray, float]:
    """Mean and variance of q(z_t), t = 1 … T."""
    a, s = plain_alpha(GAMMA[t - 1]), plain_sigma(GAMMA[t - 1])
    return a * MEAN, a * a * LAMBDA + s * s


def reverse(t: int) -> tuple[float, np.ndarray, float]:
    """Slope, intercept and variance of q(z_t|z_{t+1})."""
    kept = plain_alpha(GAMMA[t]) / plain_alpha(GAMMA[t - 1])
    (m, v), (m_next, v_next) = law(t), law(t + 1)
    slope = kept * v / v_next
    return slope, m - slope * m_next, v - slope**2 * v_next


def decoder() -> tuple[float, np.ndarray, float]:
    """Slope, intercept and variance of q(x|z_1)."""
    a, (m, v) = plain_alpha(GAMMA[0]), law(1)
    return a * LAMBDA / v, MEAN - a * LAMBDA / v * m, LAMBDA - (a * LAMBDA) ** 2 / v


class Step(nn.Module):
    """The m and o that make p(z_t|z_{t+1}) = q(z_t|z_{t+1})."""

    def __init__(self, t: int, wrong: float = 0.0) -> None:
        super().__init__()
        kept = (plain_alpha(GAMMA[t]) / plain_alpha(GAMMA[t - 1])) ** 2
        self.beta, (self.slope, b, v) = 1 - kept, reverse(t)
        self.slope = self.slope - math.sqrt(kept)
        self.intercept, self.o = torch.tensor(b) + wrong, 0.5 * math.log(v / self.beta)

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        m = (self.slope * z + self.intercept.to(z)) / math.sqrt(self.beta)
        return torch.cat([m, torch.full_like(z, self.o)], 1)


def exact(wrong: float = 0.0) -> df.GaussianChain:
    slope, intercept, v = decoder()
    network = df.Denoiser(lambda z, log_snr: slope * z + torch.tensor(intercept).to(z), "data")
    space = df.Continuous((D,))
    steps = [Step(t, wrong) for t in range(1, STEPS)]
    return df.GaussianChain(forward(), steps, network, likelihood.GaussianLikelihood(space, v))


class Small(nn.Module):
    """A random network for items of shape (C, 3), which records its calls."""

    def __init__(self, channels: int = 2, seed: int = 0, outputs: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * randn(3 * channels, 3 * outputs * channels, seed=seed))
        self.shape, self.calls = (outputs * channels, 3), []

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        self.calls.append((z.detach(), log_snr, condition))
        out = torch.tanh(z.flatten(1) @ self.weight) - 0.1 * log_snr[:, None]
        return (out if condition is None else out + condition[:, None]).unflatten(1, self.shape)


SPACE = df.Discrete((2, 3), 4)


def small(shared: bool = False, networks: list[Small] | None = None) -> df.GaussianChain:
    networks = networks or [Small(seed=i) for i in range(STEPS - 1)]
    decoder = df.Denoiser(Small(seed=9, outputs=4), "levels", SPACE)
    made: list[Small] | Small = networks[0] if shared else networks
    return df.GaussianChain(forward(), made, decoder, likelihood.NetworkLevels(SPACE))


def items(n: int, seed: int = 1) -> Tensor:
    return SPACE.encode(torch.randint(4, (n, 2, 3), generator=generator(seed))).double()


def points(n: int, seed: int = 1) -> Tensor:
    return torch.tensor(MEAN) + math.sqrt(LAMBDA) * randn(n, D, seed=seed)


def log_p_over_q(z: np.ndarray) -> np.ndarray:
    """ln p(z_T)/q(z_T)."""
    m, v = law(STEPS)
    return (stats.norm.logpdf(z) - stats.norm.logpdf(z, m, math.sqrt(v))).sum(-1)


def log_q(x: np.ndarray) -> np.ndarray:
    return stats.norm.logpdf(x, MEAN, math.sqrt(LAMBDA)).sum(-1)


def gap(x: np.ndarray) -> np.ndarray:
    """E ln q(z_T)/p(z_T) over q(z_T|x): all that the bound of x exceeds −ln q(x) by."""
    a, s2, (m, v) = plain_alpha(GAMMA[-1]), plain_sigma(GAMMA[-1]) ** 2, law(STEPS)
    z = a * x
    return (0.5 * (z * z + s2) - 0.5 * ((z - m) ** 2 + s2) / v - 0.5 * math.log(v)).sum(-1)


def model_law(wrong: float = 0.0) -> tuple[np.ndarray, float]:
    """Mean and variance of the p(x) of `exact(wrong)`."""
    m, v = np.zeros(D), 1.0
    for t in range(STEPS - 1, -1, -1):
        slope, intercept, variance = reverse(t) if t else decoder()
        m, v = slope * m + intercept + (wrong if t else 0), slope**2 * v + variance
    return m, v


# The distributions.


def test_a_step_is_the_gaussian_of_the_network_of_its_level() -> None:
    """μ = √(1−β) z + √β m and σ = √β e^o, position by position."""
    model, z = small(), randn(4, 2, 3)
    found = model.step(z, torch.tensor([3, 1, 2, 4]))
    for row, t in enumerate((3, 1, 2, 4)):
        beta = 1 - (plain_alpha(GAMMA[t]) / plain_alpha(GAMMA[t - 1])) ** 2
        m, o = Small(seed=t - 1)(z[row : row + 1], torch.tensor([-GAMMA[t]])).chunk(2, 1)
        close(found.mean[row].detach(), (math.sqrt(1 - beta) * z[row] + math.sqrt(beta) * m[0]).detach())
        close(found.log_variance[row].detach(), (math.log(beta) + 2 * o[0]).detach())


@pytest.mark.parametrize("t", range(1, STEPS))
def test_every_kl_against_torch_distributions(t: int) -> None:
    model, x, noise = small(), items(6), randn(6, 2, 3)
    level = torch.full((6,), t)
    with torch.no_grad():
        given = model.kl_at(x, level, noise)
        z = plain_alpha(GAMMA[t]) * x + plain_sigma(GAMMA[t]) * noise
        mean, v = plain_posterior(z, x, GAMMA[t - 1], GAMMA[t])
        p = model.step(z, level)
        normal = Normal(p.mean, (0.5 * p.log_variance).exp())
        q = Normal(mean, torch.tensor(math.sqrt(v), dtype=F64))
        close(given, kl_divergence(Independent(q.expand(normal.mean.shape), 2), Independent(normal, 2)), rtol=1e-9)


def test_a_network_sees_the_rows_of_its_level_and_no_others() -> None:
    networks = [Small(seed=i) for i in range(STEPS - 1)]
    model, x, noise = small(networks=networks), items(7), randn(7, 2, 3)
    t = torch.tensor([2, 4, 2, 1, 2, 1, 2])
    with torch.no_grad():
        model.kl_at(x, t, noise, torch.arange(7.0, dtype=F64))
    assert [len(network.calls) for network in networks] == [1, 1, 0, 1]
    for level in (1, 2, 4):
        ((z, log_snr, condition),) = networks[level - 1].calls
        rows = (t == level).nonzero().squeeze(1)
        close(z, plain_alpha(GAMMA[level]) * x[rows] + plain_sigma(GAMMA[level]) * noise[rows], rtol=1e-9)
        close(log_snr, torch.full((len(rows),), -GAMMA[level], dtype=F64))
        assert torch.equal(condition, rows.double())


def test_a_shared_network_is_equal_networks() -> None:
    x, noise = items(5), randn(STEPS, 5, 2, 3)
    equal, shared = small(networks=[Small(seed=3) for _ in range(4)]), small(True, [Small(seed=3)])
    with torch.no_grad():
        for one, other in zip(vars(equal.terms(x, noise)).values(), vars(shared.terms(x, noise)).values(), strict=True):
            assert one == other if not isinstance(one, Tensor) else torch.allclose(one, other, rtol=1e-12)
    (network,) = shared.networks
    network.calls.clear()
    shared.kl_at(x, torch.tensor([1, 2, 3, 4, 1]), noise[0])
    assert len(network.calls) == 1
    assert sum(p.numel() for p in equal.networks.parameters()) == 4 * sum(p.numel() for p in network.parameters())


# The bound.


def test_the_weight_of_every_path_in_the_exact_world() -> None:
    """ln p(x, z)/q(z|x) = ln q(x) + ln p(z_T)/q(z_T), path by path: step, last, decode and q are right, or it fails."""
    x, noise = points(50), randn(50, STEPS, D, seed=4)
    with torch.no_grad():
        found = exact().log_weight(x, noise)
        path = x
        for t in range(1, STEPS + 1):
            path = exact().process.transition(path, t).sample(noise=noise[:, t - 1])
        close(found, log_q(x.numpy()) + log_p_over_q(path.numpy()), rtol=1e-9)


def test_the_bound_of_every_item_in_the_exact_world() -> None:
    x = points(4)
    many = x.repeat_interleave(4000, 0)
    truth = gap(x.numpy()) - log_q(x.numpy())
    with torch.no_grad():
        for found, wrong in ((exact(), False), (exact(0.1), True)):
            for ledger in (found.elbo(many, generator(2)), found.path_elbo(many, generator(3))):
                nelbo = ledger.nelbo.view(4, -1)
                error = (nelbo.std(1) / nelbo.shape[1] ** 0.5).numpy()
                assert bool((np.abs(nelbo.mean(1).numpy() - truth) > 4 * error).any()) == wrong


def test_the_path_form_is_the_same_bound() -> None:
    """MATH (7) and (8) of a model that is far from optimal."""
    model, x = small(), items(1).expand(8000, -1, -1)
    with torch.no_grad():
        eight, seven = model.elbo(x, generator(1)), model.path_elbo(x, generator(2))
    difference = float(seven.nelbo.mean() - eight.nelbo.mean())
    error = math.hypot(float(seven.nelbo.std()), float(eight.nelbo.std())) / 8000**0.5
    assert abs(difference) < 4 * error
    assert error < 0.01 * float(eight.nelbo.mean())


@pytest.mark.parametrize("sampler", [Stratified, Uniform])
def test_the_loss_and_its_gradient_are_those_of_the_ledger(sampler: type) -> None:
    """Means over 40 batches of 250 draws of an item."""
    model, x = small(), items(1).expand(250, -1, -1)
    rng, found = generator(7), {"loss": [], "ledger": []}
    for _ in range(40):
        for name, value in (
            ("loss", model.loss(x, rng, sampler=sampler())),
            ("ledger", model.elbo(x, rng).nelbo.mean()),
        ):
            model.zero_grad()
            value.backward()
            grads = [p.grad.norm(dim=0) * 0 + p.grad.sum(0) for p in model.parameters()]
            found[name].append(torch.cat([value.detach()[None], *grads]))
    loss, ledger = (torch.stack(found[name]) for name in ("loss", "ledger"))
    error = ((loss.var(0) + ledger.var(0)) / 40).sqrt()
    score = (loss.mean(0) - ledger.mean(0)) / error
    assert float(score[0].abs()) < 4
    assert float(score.abs().max()) < 5  # of 97 numbers
    assert float(error[0]) < 0.02 * float(ledger[0].mean() if ledger.ndim == 1 else ledger.mean(0)[0])


def test_the_decoder_gets_its_share_of_a_batch() -> None:
    """1/T of the items: one of T networks."""
    model = small()
    assert model.reconstruction_share == 1 / STEPS
    drawn = model.draw(items(1), None, generator(0), 1000)
    assert 190 <= int(drawn["first"].sum()) <= 210
    forty = df.GaussianChain(forward(40), Small(), model.decoder, model.likelihood)
    assert forty.reconstruction_share == 1 / 32


def test_a_learned_schedule_has_the_gradient_of_the_bound() -> None:
    learned = schedule.learned(-2.0, 1.0, STEPS, features=8, ends="learned")
    model = small()
    model = df.GaussianChain(df.GaussianDiffusion(learned), list(model.networks), model.decoder, model.likelihood)
    x, noise = items(3), randn(STEPS, 3, 2, 3)
    end = (
        learned.gamma_max
        if hasattr(learned, "gamma_max")
        else next(p for n, p in learned.named_parameters() if "gamma" in n)
    )
    model.terms(x, noise).nelbo.sum().backward()
    slope, h = float(end.grad), 1e-5
    values = []
    for by in (h, -2 * h):
        with torch.no_grad():
            end.add_(by)
            values.append(float(model.terms(x, noise).nelbo.sum()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


# Samples and weights.


def test_samples_have_the_law_of_the_model() -> None:
    x = exact().sample(4000, generator(5)).double().numpy()
    m, v = model_law()
    for d in range(D):
        assert stats.kstest(x[:, d], stats.norm(m[d], math.sqrt(v)).cdf).pvalue > 1e-3
    assert stats.kstest(x[:, 0], stats.norm(m[1], math.sqrt(v)).cdf).pvalue < 1e-3
    assert len(list(exact().walk_back(3, generator(0)))) == STEPS + 1
    assert {len(z) for z in small().double().walk_back(3, generator(0))} == {3}


def test_importance_weights_fall_to_the_exact_density() -> None:
    """Of a chain whose means are all too high by 0.4, which adds 0.4²/2v to each KL: the model stays linear and Gaussian."""
    x, wrong = points(60), 0.4
    m, v = model_law(wrong)
    truth = -stats.norm.logpdf(x.numpy(), m, math.sqrt(v)).sum(-1).mean()
    shifts = sum(D * wrong**2 / (2 * reverse(t)[2]) for t in range(1, STEPS))
    bound = (gap(x.numpy()) - log_q(x.numpy())).mean() + shifts
    few, many = (importance_weighted(exact(wrong), x, k) for k in (4, 64))
    swept = evaluate(exact(wrong), x, draws=32).nelbo
    assert abs(swept.value - bound) < 4 * swept.error
    assert abs(many.value - truth) < 4 * many.error + 0.01
    assert truth + 3 * few.error < few.value < bound - 3 * few.error


# Evaluations.


@pytest.mark.parametrize(
    "way", [{"draws": 8}, {"visits": 6}, {"target_error": 0.02, "unit": "nats"}, {"item_error": 0.5, "unit": "nats"}]
)
def test_every_kind_of_evaluation(way: dict) -> None:
    x = points(150)
    truth = (gap(x.numpy()) - log_q(x.numpy())).mean()
    found = evaluate(exact(), x, **way)
    assert abs(found.nelbo.value - truth) < 4 * found.nelbo.error
    assert 0 < found.nelbo.error < 0.1
    assert sum(term.value for term in found.terms.values()) == pytest.approx(found.nelbo.value)
    if "target_error" in way:
        assert found.reached
        assert found.nelbo.error <= 0.02


def test_two_chains_compare() -> None:
    x = points(150)
    found = compare(exact(0.2), exact(), x, 0.02, "nats")
    apart = evaluate(exact(0.2), x, draws=64).nelbo.value - (gap(x.numpy()) - log_q(x.numpy())).mean()
    assert abs(found.difference.value - apart) < 4 * found.difference.error + 0.01
    assert found.difference.value > 4 * found.difference.error
    assert compare(exact(), exact(), x, 0.02, "nats").difference.value == 0


def test_plans_and_records_are_of_their_chain(tmp_path: Path) -> None:
    x = points(60)
    plan = Plan.fit(exact(), x, 500)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json", exact())
    assert loaded.sha256() == plan.sha256()
    whole = evaluate(exact(), x, plan=loaded, visits=5, audit=False)
    records = tmp_path / "draws.safetensors"
    first = evaluate(exact(), x, plan=loaded, visits=3, records=records, audit=False)
    more = evaluate(exact(), x, plan=loaded, visits=5, records=records, audit=False)
    assert first.nelbo != whole.nelbo
    assert more.nelbo == whole.nelbo
    other = df.GaussianChain(forward(7), lambda z, log_snr: torch.cat([z, z], 1), exact().decoder, exact().likelihood)
    with pytest.raises(DiffusionalError, match="latents"):
        Plan.load(tmp_path / "plan.json", other)


def test_identities_tell_chains_apart() -> None:
    space = df.Continuous((D,))
    variants = [
        exact(),
        df.GaussianChain(forward(), exact().networks[0], exact().decoder, exact().likelihood),
        df.GaussianChain(forward(), list(exact().networks), exact().decoder, likelihood.GaussianLikelihood(space, 0.5)),
    ]
    assert len({str(model.identity()) for model in variants}) == 3


# Refusals.


def test_what_is_refused() -> None:
    network, model = Small(), small()

    def make(steps: int | None, networks: object) -> df.GaussianChain:
        return df.GaussianChain(forward(steps), networks, model.decoder, model.likelihood)  # type: ignore[arg-type]

    with pytest.raises(DiffusionalError, match="steps=None"):
        make(None, network)
    with pytest.raises(DiffusionalError, match=r"expected 4 networks for T = 5.*got 3"):
        make(5, [network] * 3)
    with pytest.raises(DiffusionalError, match=r"level 2 .*\(1, 2, 3\)"):
        small(networks=[Small(), Small(outputs=1), Small(), Small()]).kl_at(items(1), torch.tensor([2]), randn(1, 2, 3))
    with pytest.raises(DiffusionalError, match="levels to be integers from 1 to 4"):
        model.kl_at(items(1), torch.tensor([5]), randn(1, 2, 3))
    with pytest.raises(DiffusionalError, match="no T to change"):
        evaluate(model, items(2).float(), steps=9)
