"""`wrap`: networks of other processes, written in their own coordinates, have the ledgers of the same denoiser in ours."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional.errors import DiffusionalError
from diffusional.interop.adapter import Adapter
from diffusional.interop.wrap import choose_start
from interop.pipelines import kl, unet

D, B, T = 3, 5, 40
GENERATOR = torch.Generator().manual_seed(0)
ROOT = torch.randn(D, D, dtype=torch.float64, generator=GENERATOR)
COVARIANCE = ROOT @ ROOT.T / D
MEANS = torch.tensor([[1.0, -0.5, 0.3], [-1.0, 0.2, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def x_hat(raw: Tensor, a: Tensor, s: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """E[x | a x + s ε = raw] of a mixture of Gaussians with one covariance, by the textbook; a and s (B,)."""
    logs, guesses = [], []
    for mean, weight in zip(means, weights, strict=True):
        whole = a[:, None, None] ** 2 * COVARIANCE + s[:, None, None] ** 2 * torch.eye(D, dtype=torch.float64)
        away = raw - a[:, None] * mean
        solved = torch.linalg.solve(whole, away)
        guesses.append(mean + a[:, None] * (solved @ COVARIANCE))
        logs.append(weight.log() - 0.5 * torch.logdet(whole) - 0.5 * (away * solved).sum(1))
    share = torch.stack(logs, 1).softmax(1)
    return (share[:, :, None] * torch.stack(guesses, 1)).sum(1)


Guess = Callable[[Tensor, Tensor, Tensor], Tensor]


def gaussian(raw: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return x_hat(raw, a, s, MEANS[:1], torch.ones(1, dtype=torch.float64))


def mixture(raw: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return x_hat(raw, a, s, MEANS, WEIGHTS)


def edm(guess: Guess, sigma_data: float) -> Adapter:
    """F(c_in z, ¼ ln σ), by the formulas of Karras et al."""

    def network(scaled: Tensor, noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * noise)
        total = (sigma**2 + sigma_data**2)[:, None]
        raw = scaled * total.sqrt()
        skip, out = sigma_data**2 / total, sigma[:, None] * sigma_data / total.sqrt()
        return (guess(raw, torch.ones_like(sigma), sigma) - skip * raw) / out

    return df.wrap.edm(network, sigma_data=sigma_data)


def flow(guess: Guess, counts: str) -> Adapter:
    def network(raw: Tensor, t: Tensor) -> Tensor:
        t = t if counts == "noise" else 1 - t
        x = guess(raw, 1 - t, t)
        noise = (raw - (1 - t)[:, None] * x) / t[:, None]
        return noise - x if counts == "noise" else x - noise

    return df.wrap.flow(network, counts=counts)  # pyright: ignore[reportArgumentType]


def denoised(guess: Guess) -> Adapter:
    return df.wrap.denoised(lambda raw, sigma: guess(raw, torch.ones_like(sigma), sigma))


def score(guess: Guess) -> Adapter:
    def network(raw: Tensor, sigma: Tensor) -> Tensor:
        return (guess(raw, torch.ones_like(sigma), sigma) - raw) / sigma[:, None] ** 2

    return df.wrap.score(network)


def plain(guess: Guess, predicts: str) -> Adapter:
    def network(z: Tensor, gamma: Tensor) -> Tensor:
        a, s = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        x = guess(z, a, s)
        noise = (z - a[:, None] * x) / s[:, None]
        return {
            "sample": x,
            "epsilon": noise,
            "v_prediction": a[:, None] * noise - s[:, None] * x,
            "score": -noise / s[:, None],
        }[predicts]

    return df.wrap(network, predicts=predicts, time="gamma")


WRAPPED = {
    "edm 0.5": lambda guess: edm(guess, 0.5),
    "edm 2": lambda guess: edm(guess, 2.0),
    "denoised": denoised,
    "score": score,
    "flow": lambda guess: flow(guess, "noise"),
    "flow of data": lambda guess: flow(guess, "data"),
    **{word: lambda guess, word=word: plain(guess, word) for word in ("epsilon", "sample", "v_prediction", "score")},
}


def model(denoiser: df.Denoiser) -> df.DiffusionModel:
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-9.0, 9.0, steps=T))
    return df.DiffusionModel(process, denoiser, df.likelihood.GaussianLikelihood(df.Continuous((D,))))


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("world", ["gaussian", "mixture"])
def test_ledgers_of_exact_worlds(name: str, world: str) -> None:
    """Every term at the same noise, against the world's own denoiser in our coordinates."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, D, dtype=torch.float64, generator=generator)
    noise = torch.randn(T, B, D, dtype=torch.float64, generator=generator)
    if world == "gaussian":
        exact = df.exact.Gaussian(MEANS[0], COVARIANCE)
    else:
        exact = df.exact.Mixture(WEIGHTS, MEANS, COVARIANCE.expand(2, D, D))
    guess = gaussian if world == "gaussian" else mixture
    wanted = model(exact.denoiser("v")).terms(x, noise)
    found = model(WRAPPED[name](guess)).terms(x, noise)
    torch.testing.assert_close(found.kl, wanted.kl, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.reconstruction, wanted.reconstruction, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.prior, wanted.prior, rtol=0, atol=0)


def test_float32_networks_lose_nothing_at_low_noise() -> None:
    """EDM's F and flow velocities at γ = −18 have the costs of float64."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B, D, dtype=torch.float64, generator=generator)
    noise = torch.randn(B, D, dtype=torch.float64, generator=generator)
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-18.0, -16.0, steps=2))
    level = torch.ones(B, dtype=torch.long)

    class Constant(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.full((D,), 0.3, dtype=dtype))

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return self.value.expand(z.shape)

    for wrapped in (lambda net: df.wrap.edm(net, sigma_data=0.5), df.wrap.flow):
        costs = []
        for dtype in (torch.float32, torch.float64):
            one = df.DiffusionModel(
                process, wrapped(Constant(dtype)), df.likelihood.GaussianLikelihood(df.Continuous((D,)))
            )
            costs.append(one.kl_at(x.to(dtype), level, noise.to(dtype)))
        torch.testing.assert_close(*costs, rtol=1e-3, atol=0)


def test_another_combination_of_x_and_the_noise() -> None:
    z, gamma = torch.randn(B, D, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
    wrapped = df.wrap(lambda z, t: 0.7 * z, predicts=(0.2, lambda gamma: 0.5 + 0 * gamma), time="log_snr")
    said = wrapped(z, gamma)
    torch.testing.assert_close(0.2 * said.data + 0.5 * said.noise, 0.7 * z)


def test_times_and_scales_are_those_declared() -> None:
    seen = {}

    def network(z: Tensor, t: Tensor) -> Tensor:
        seen["z"], seen["t"] = z, t
        return z

    z, gamma = torch.ones(1, 2, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    sigma = torch.tensor([0.5], dtype=torch.float64).exp()
    t = sigma / (1 + sigma)
    wanted = {"log_snr": -gamma, "gamma": gamma, "sigma": sigma, "log_sigma": sigma.log(), "t": t, "1-t": 1 - t}
    for name, value in wanted.items():
        df.wrap(network, time=name)(z, gamma)
        torch.testing.assert_close(seen["t"], value)
    schedule = df.schedule.linear(steps=10)
    df.wrap(network, time=schedule)(z, schedule.grid()[3:4])
    assert seen["t"].tolist() == [3]
    df.wrap(network, time="t", reads="ve", scale=2.0)(z, gamma)
    torch.testing.assert_close(seen["z"], 2 * z * (1 + sigma**2).sqrt())
    df.wrap(network, time="t", reads="flow")(z, gamma)
    a = torch.sigmoid(-gamma).sqrt()
    torch.testing.assert_close(seen["z"], z * (1 - t) / a)
    df.wrap.flow(network, scale=1000.0)(z, gamma)
    torch.testing.assert_close(seen["t"], 1000 * t)


def test_a_variance_of_p_of_z_T() -> None:
    x = torch.randn(B, D, dtype=torch.float64)
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-9.0, 0.5, steps=3))
    one = df.DiffusionModel(
        process, denoised(gaussian), df.likelihood.GaussianLikelihood(df.Continuous((D,))), last_variance=0.7
    )
    gamma = torch.tensor(0.5, dtype=torch.float64)
    wanted = kl(torch.sigmoid(-gamma).sqrt() * x, torch.sigmoid(gamma), 0 * x, torch.full_like(gamma, 0.7))
    torch.testing.assert_close(one.prior(x), wanted)
    torch.testing.assert_close(one.process.marginal(x, 3).kl(one.last(B)).double(), wanted, rtol=1e-6, atol=0)
    assert one.regrid(5).last_variance == 0.7
    assert one.identity() != df.DiffusionModel(process, one.denoiser, one.likelihood).identity()
    with pytest.raises(DiffusionalError, match=r"last_variance.*0"):
        df.DiffusionModel(process, one.denoiser, one.likelihood, last_variance=0.0)


def test_networks_of_diffusers_are_wrapped_as_they_are() -> None:
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    schedule = df.schedule.linear(steps=10)
    network = unet().eval()
    found = df.wrap(network, time=schedule)(z, schedule.grid()[[3, 5]])
    torch.testing.assert_close(found.value, network(z, torch.tensor([3, 5])).sample)


def test_what_is_refused_or_warned_of() -> None:
    def net(z: Tensor, t: Tensor) -> Tensor:
        return z

    with pytest.raises(DiffusionalError, match="log_snr"):
        df.wrap(net, time="lambda")
    with pytest.raises(DiffusionalError, match="predicts"):
        df.wrap(net, time="t", predicts="energy")
    with pytest.raises(DiffusionalError, match="sigma_data"):
        df.wrap.edm(net, sigma_data=0.0)
    with pytest.warns(UserWarning, match="probability flow"):
        df.wrap.flow(net, coupling="optimal transport")
    two = df.wrap(lambda z, t: torch.cat([z, z], 1), time="t")
    with pytest.raises(DiffusionalError, match="learns_variance"):
        two(torch.zeros(2, 1, 4, 4), torch.zeros(2))
    learned = df.wrap(lambda z, t: torch.cat([z, 0 * z], 1), time="t", learns="range")
    assert learned.learns_variance
    assert (learned(torch.zeros(2, 1, 4, 4), torch.zeros(2)).fraction == 0.5).all()


def test_the_bound_of_a_flow_of_coupled_pairs_is_loose_by_a_known_amount() -> None:
    """Two Gaussian columns of standard deviations s, transported optimally: x = s ε, and the flow's own density is theirs.

    With r = e^{λ/2} the network's x̂ = s z/(α s + σ) has the error E (x − x̂)² = 2 s² σ²/(α s + σ)², so that the KLs of a column are
    2 [ln(r s + 1) + 1/(r s + 1)] between the ends of r, and its reconstruction is −ln r + ½ ln 2π + r² s²/(r s + 1)² at the upper end.
    """
    s, high = torch.tensor([0.5, 2.0]), 9.0

    def net(z: Tensor, t: Tensor) -> Tensor:
        return (1 - s) * z / ((1 - t[:, None]) * s + t[:, None])

    with pytest.warns(UserWarning, match="probability flow"):
        denoiser = df.wrap.flow(net, coupling="optimal transport")
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-high, high, steps=None))
    model = df.DiffusionModel(process, denoiser, df.likelihood.GaussianLikelihood(df.Continuous((2,))))
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x = s * x / x.square().mean(0).sqrt()
    found = df.evaluate(model, x, 0.05, "nats").nelbo

    def total(k: float) -> float:
        low, up = math.exp(-high / 2), math.exp(high / 2)
        ends = [math.log(r * k + 1) + 1 / (r * k + 1) for r in (low, up)]
        noise = 1 / (1 + low**2)
        prior = 0.5 * (low**2 * noise * k**2 + noise - 1 - math.log(noise))
        return (
            2 * (ends[1] - ends[0]) - math.log(up) + 0.5 * math.log(2 * math.pi) + (up * k / (up * k + 1)) ** 2 + prior
        )

    bound, own = sum(map(total, s.tolist())), sum(0.5 * math.log(2 * math.pi * math.e * k**2) for k in s.tolist())
    assert found.error < 0.06
    assert abs(found.value - bound) < 4 * found.error
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert f"{bound:.2f} nats at log-SNR −9 to 9, where the flow itself has {own:.2f}" in page.replace("\n", " ")


def test_the_first_level_is_chosen_by_the_bound() -> None:
    """Against the bounds of all candidates by a plain evaluation."""
    generator = torch.Generator().manual_seed(3)
    exact = df.exact.Gaussian(MEANS[0], COVARIANCE)
    x = exact.sample(200, generator)
    likelihood = df.likelihood.GaussianLikelihood(df.Continuous((D,)), variance=0.02)
    candidates = (-12.0, -8.0, -4.0, 0.0)
    chosen = choose_start(exact.denoiser(), likelihood, x, candidates=candidates)
    bounds = {}
    for low in candidates:
        process = df.GaussianDiffusion(df.schedule.log_snr_linear(low, 14.0))
        one = df.DiffusionModel(process, exact.denoiser(), likelihood)
        bounds[low] = df.evaluate(one, x, draws=2, cells=40).nelbo.value
    assert chosen == min(bounds, key=bounds.__getitem__) == -4.0
    with pytest.raises(DiffusionalError, match="increasing"):
        choose_start(exact.denoiser(), likelihood, x, candidates=(0.0, -4.0))
