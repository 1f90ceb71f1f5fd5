"""Control variates of the stages of composite models: mean zero, known sums over the levels, and less variance."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import exact, likelihood, schedule
from diffusional.evaluation.controls import fit_controls
from diffusional.evaluation.visits import LevelVisits, visit_features

KINDS = ("wiener", "histogram", "moments")
GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(400, 3, generator=GENERATOR) @ torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-0.3, 0.5, 0.2]])


class Ignoring(nn.Module):
    """A network of z only, given a latent that it ignores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, log_snr: Tensor, latent: Tensor) -> Tensor:
        return self.network(z, log_snr)


def optimal(x: Tensor, steps: int | None, given: bool = False) -> df.DiffusionModel:
    """A diffusion whose denoiser is the best for Gaussian data with the moments of x."""
    denoiser = exact.Gaussian(x.mean(0).double(), torch.cov(x.T).double()).denoiser()
    network = Ignoring(denoiser.module) if given else denoiser.module
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, steps))
    decoder = likelihood.GaussianLikelihood(df.Continuous((x.shape[1],)), variance=0.3, assisted=False)
    return df.DiffusionModel(process, df.Denoiser(network, denoiser.predicts), decoder)


def systems(steps: int | None) -> dict[str, df.Composite]:
    torch.manual_seed(1)
    encoder, twice = nn.Linear(3, 2), nn.Linear(3, 4)
    with torch.no_grad():
        embedded = encoder(DATA)
        drawn = twice(DATA)[:, :2]
    prior, decoder = optimal(embedded, steps), optimal(DATA, steps, given=True)
    level = 1 if steps is None else 3
    return {
        "frozen encoder": df.FrozenEncoder(encoder, prior, decoder, level=level),
        "frozen posterior": df.FrozenPosterior(twice, optimal(drawn, steps), decoder),
    }


CASES = [(name, steps) for name in ("frozen encoder", "frozen posterior") for steps in (8, None)]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_functions_of_the_noise_have_mean_zero_and_those_of_the_item_known_sums(name: str, steps: int | None) -> None:
    chain = systems(steps)[name].visited()
    assert chain is not None
    controls = fit_controls(KINDS, chain, DATA)
    assert [control.name for control in controls] == ["stages-wiener", "stages-moments"]
    x, draws = DATA[:2], 4000
    edges = torch.arange(1, chain.timesteps + 2) if steps else torch.linspace(0, 1, 81).double()
    total = [torch.zeros(2, len(edges) - 1, len(control.expects)).double() for control in controls]
    for cell in range(len(edges) - 1):
        if steps or cell % 20 == 5:  # of continuous time, some cells are enough
            low, high = float(edges[cell]), float(edges[cell + 1])
            within = (torch.arange(draws) + 0.5) / draws
            level = edges[cell].expand(2 * draws) if steps else (low + (high - low) * within).repeat(2).double()
            noise = torch.randn(2 * draws, *chain.visit_shape, generator=GENERATOR)
            visits = LevelVisits(torch.ones(2 * draws).long(), level, torch.ones(2 * draws).double())
            rows = x.repeat_interleave(draws, 0)
            of_item, of_noise = visit_features(chain, controls, rows, visits, noise)
            mean, error = of_noise.mean(0), of_noise.std(0) / (2 * draws) ** 0.5
            assert bool((mean.abs() < 5 * error + 1e-9).all()), cell
            start = 0
            for one, control in zip(total, controls, strict=True):
                width = len(control.expects)
                found = of_item[:, start : start + width].view(2, draws, width).mean(1) * (1 if steps else high - low)
                one[:, cell], start = found, start + width
    for one, control in zip(total, controls, strict=True):
        sums = control.sums(x, edges)
        there = torch.arange(len(edges) - 1) if steps else torch.arange(5, len(edges) - 1, 20)
        torch.testing.assert_close(one[:, there], sums[:, there], rtol=1e-4, atol=1e-6)
    # The variable of a posterior is drawn at every visit: the sum of a function of it is not known.
    known = controls[0].sums(x, edges).abs().sum((0, 2)) > 0
    assert bool(known.all()) == (name == "frozen encoder")
    assert bool(known.any())


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_controls_save_evaluations_and_leave_the_estimate(name: str, steps: int | None) -> None:
    model = systems(steps)[name]
    plan = df.Plan.fit(model, DATA, 800)
    without = df.Plan.fit(model, DATA, 800, controls=())
    assert "stages-wiener" in plan.provenance["controls"]
    # Denoisers are optimal and data Gaussian, so that Wiener's filter explains every cost of a variable that is a function of x. Of a
    # variable that is drawn at every visit, the part that depends on it remains.
    most = 1e-3 if name == "frozen encoder" else 0.8
    assert plan.draw_variance < most * without.draw_variance
    results = [
        df.evaluate(model, DATA, visits=24, plan=each, audit=False, seed=3)
        for each in (plan, df.Plan.uniform(model, 8))
    ]
    apart = results[0].nelbo.value - results[1].nelbo.value
    assert abs(apart) < 5 * (results[0].nelbo.error ** 2 + results[1].nelbo.error ** 2) ** 0.5
    assert results[0].nelbo.error < most**0.5 * results[1].nelbo.error


def test_a_plan_with_controls_of_stages_is_saved_and_loaded(tmp_path: Path) -> None:
    model = systems(8)["frozen encoder"]
    plan = df.Plan.fit(model, DATA, 400)
    plan.save(tmp_path / "plan.json")
    loaded = df.Plan.load(tmp_path / "plan.json", model)
    assert loaded.sha256() == plan.sha256()
    chain = model.visited()
    assert chain is not None
    # To rounding: the encoder is applied to other numbers of items.
    torch.testing.assert_close(loaded.base(chain, DATA[:5]), plan.base(chain, DATA[:5]), rtol=1e-6, atol=1e-6)
