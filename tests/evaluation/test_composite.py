"""Evaluations of composite models: pilots, audits, records, comparisons, and stages of other kinds."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.networks import MLP, ResidualMLP

X = df.Continuous((3,))


def diffusion(space: df.Continuous, given: int = 0, steps: int | None = 6, seed: int = 0) -> df.DiffusionModel:
    torch.manual_seed(seed)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 3.0, steps))
    network = MLP(space.shape, 1, hidden=8, depth=1)
    network = Given(network, space.dimensions, given) if given else network
    decoder = likelihood.GaussianLikelihood(space, variance=0.3, assisted=False)
    model = df.DiffusionModel(process, df.Denoiser(network, "v"), decoder)
    for parameter in model.denoiser.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


class Given(nn.Module):
    """A network whose output is shifted by a linear function of the condition."""

    def __init__(self, network: nn.Module, n: int, given: int) -> None:
        super().__init__()
        self.network, self.shift = network, nn.Linear(given, n)

    def forward(self, z: Tensor, log_snr: Tensor, *, latent: Tensor) -> Tensor:
        return self.network(z, log_snr) + self.shift(latent)


def unclip(seed: int = 0, steps: int | None = 6) -> df.FrozenEncoder:
    torch.manual_seed(9)
    encoder = nn.Linear(3, 2)
    return df.FrozenEncoder(encoder, diffusion(df.Continuous((2,)), 0, steps, 1), diffusion(X, 2, steps, seed)).eval()


DATA = torch.randn(300, 3, generator=torch.Generator().manual_seed(4))


def test_a_target_is_reached_with_pilot_and_audit() -> None:
    model = unclip()
    result = df.evaluate(model, DATA, target_error=0.1, unit="nats")
    assert result.reached
    assert not result.caveats
    full = df.evaluate(model, DATA, visits=60, plan=df.Plan.uniform(model), audit=False)
    assert abs(result.nelbo.value - full.nelbo.value) < 5 * math.hypot(result.nelbo.error, full.nelbo.error)
    assert result.nelbo.error <= 0.1
    assert sum(term.value for term in result.terms.values()) == pytest.approx(result.nelbo.value)


def test_a_score_depends_only_on_the_item() -> None:
    model = unclip()
    plan = df.Plan.uniform(model)
    whole = df.evaluate(model, DATA[:20], visits=8, plan=plan, audit=False)
    some = df.evaluate(model, DATA[:20][[7, 3]], visits=8, plan=plan, audit=False)
    for name in ("nelbo", "decoder.kl", "decoder.reconstruction", "error"):
        torch.testing.assert_close(some.per_item[name], whole.per_item[name][[7, 3]], rtol=1e-6, atol=1e-6)


def test_an_interrupted_evaluation_continues_from_its_records(tmp_path: Path) -> None:
    model, records = unclip(), tmp_path / "draws.safetensors"
    options = {"plan": df.Plan.uniform(model), "audit": False}
    whole = df.evaluate(model, DATA[:20], visits=8, **options)
    df.evaluate(model, DATA[:20], visits=3, records=records, **options)
    resumed = df.evaluate(model, DATA[:20], visits=8, records=records, **options)
    torch.testing.assert_close(resumed.per_item["nelbo"], whole.per_item["nelbo"], rtol=1e-6, atol=1e-6)
    with pytest.raises(df.DiffusionalError, match="another evaluation"):
        df.evaluate(unclip(seed=5), DATA[:20], visits=8, records=records, **options)


def test_a_plan_is_saved_and_refused_for_another_system(tmp_path: Path) -> None:
    model = unclip()
    df.Plan.fit(model, DATA, evaluations=300).save(tmp_path / "plan.json")
    plan = df.Plan.load(tmp_path / "plan.json", model)
    assert df.evaluate(model, DATA, target_error=0.3, unit="nats", plan=plan).nelbo.error <= 0.3
    with pytest.raises(df.DiffusionalError, match="number of latents"):
        df.Plan.load(tmp_path / "plan.json", unclip(steps=5))


def test_two_systems_are_compared_by_common_noise() -> None:
    """Their priors are equal, so that the costs of the priors cancel."""
    a, b = unclip(), unclip(seed=5)
    both = df.compare(a, b, DATA, target_error=0.05, unit="nats")
    apart = [df.evaluate(model, DATA, visits=200, plan=df.Plan.uniform(model), audit=False).nelbo for model in (a, b)]
    expected = apart[0].value - apart[1].value
    error = math.hypot(both.difference.error, apart[0].error, apart[1].error)
    assert abs(both.difference.value - expected) < 5 * error
    same = df.compare(a, a, DATA[:50])
    assert same.difference.value == pytest.approx(0, abs=1e-9)


def test_the_record_is_saved_with_the_terms_of_the_stages(tmp_path: Path) -> None:
    model = unclip()
    result = df.evaluate(model, DATA[:20], visits=8, plan=df.Plan.uniform(model), audit=False)
    result.save(tmp_path / "result.json")
    loaded = df.Evaluation.load(tmp_path / "result.json")
    assert list(loaded.terms) == list(result.terms)
    assert loaded.blocks == {"prior.kl": 5, "decoder.kl": 5}
    assert loaded.level_blocks()["decoder.kl"].edges.tolist() == [1, 2, 3, 4, 5, 6]
    from diffusional.report.tables import ledger_table

    # The terms, and the sum.
    assert ledger_table(loaded, "system").row_count == len(result.terms) + 1


def vae(prior: df.Chain | None = None) -> df.VAE:
    """A decoder with latents of its own: p(x|y) of a VAE."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.shift = ResidualMLP((2,), 3, hidden=8), nn.Linear(2, 3)

        def forward(self, z: Tensor, *, latent: Tensor) -> Tensor:
            return self.network(z) + self.shift(latent)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = ResidualMLP((3,), 4, hidden=8)

        def forward(self, x: Tensor, *, latent: Tensor) -> Tensor:
            return self.network(x) + latent.sum(1, keepdim=True)

    torch.manual_seed(3)
    return df.VAE(First(), Last(), likelihood.GaussianLikelihood(X, variance=0.4), 2, prior=prior)


@pytest.mark.parametrize("kind", ["plain", "with a chain"])
def test_a_vae_is_a_stage(kind: str) -> None:
    class Ignoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MLP((2,), 1, hidden=8, depth=1)

        def forward(self, z: Tensor, log_snr: Tensor, *, latent: Tensor) -> Tensor:
            return self.network(z, log_snr) + 0.1 * latent

    prior = None
    if kind == "with a chain":
        process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 3.0, 4))
        space = df.Continuous((2,))
        decoder = likelihood.GaussianLikelihood(space, variance=0.3, assisted=False)
        prior = df.DiffusionModel(process, df.Denoiser(Ignoring(), "v"), decoder)
    base = diffusion(df.Continuous((2,)), seed=1)
    model = df.FrozenEncoder(nn.Linear(3, 2), base, vae(prior)).eval().requires_grad_(False)
    x = DATA[:40]
    drawn = df.evaluate(model, x, visits=200)
    visited = df.evaluate(model, x, visits=400, plan=df.Plan.uniform(model), audit=False)
    # The costs of a decoder with latents but without levels are one number.
    name = "decoder.nelbo" if kind == "plain" else "decoder.kl"
    assert name in visited.terms
    assert abs(visited.nelbo.value - drawn.nelbo.value) < 5 * math.hypot(visited.nelbo.error, drawn.nelbo.error)
    assert visited.nelbo.network_evaluations == 400 * 40
