"""Parameters of p that are fitted on training data, in a Gaussian world where their best values are known."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import diffusional as df
from diffusional import exact, likelihood
from diffusional.errors import DiffusionalError
from diffusional.interop.checkpoint import load_checkpoint
from diffusional.interop.fitted import choose_start, fit_variance
from interop.pipelines import saved, unet

V = 0.6
WORLD = exact.Gaussian(torch.zeros(4), V * torch.eye(4))
SPACE = df.Continuous((4,))


def train(n: int, seed: int = 0) -> torch.Tensor:
    return WORLD.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gamma", [-6.0, 0.0])
def test_the_fitted_variance_is_that_of_x_given_z(gamma: float) -> None:
    x, denoiser = train(20_000), WORLD.denoiser()
    found = fit_variance(denoiser, SPACE, x, gamma)
    a, s = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
    assert found == pytest.approx(V * s / (a * V + s), rel=0.02)  # 80,000 squares: 0.5 %
    # No other variance has a lower cost on the same z_1, and its cost is ½ D (1 + ln 2π s²).
    noise = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(0))
    z = math.sqrt(a) * x + math.sqrt(s) * noise
    prediction = denoiser(z, torch.full((len(x),), gamma))
    costs = [
        -float(likelihood.GaussianLikelihood(SPACE, found * factor).log_prob(x, prediction).mean())
        for factor in (1.0, 0.98, 1.02)
    ]
    assert costs[0] < min(costs[1:])
    # float32 items, in blocks of other sizes.
    assert costs[0] == pytest.approx(2 * (1 + math.log(2 * math.pi * found)), abs=2e-3)
    assert fit_variance(denoiser, SPACE, x[:100], gamma, draws=200) == pytest.approx(
        V * s / (a * V + s), rel=0.05 + 3 * (2 / 400) ** 0.5
    )


def test_the_density_is_one_in_the_units_of_the_data() -> None:
    """A latent of scale 4 and shift 1 has the bound of its own units: −ln p of the world in these units, to the error of the bound."""
    space = df.Continuous((4,), shift=(1.0,), scale=(4.0,))
    raw = 1 + 4 * train(300, seed=1)
    x = space.encode(raw)
    variance = fit_variance(WORLD.denoiser(), space, train(5_000), -9.0)
    process = df.GaussianDiffusion(df.schedule.log_snr_linear(-9.0, 9.0))
    model = df.DiffusionModel(process, WORLD.denoiser(), likelihood.GaussianLikelihood(space, variance))
    found = df.evaluate(model, x, visits=64, audit=False).nelbo
    scaled = exact.Gaussian(torch.ones(4), 16 * V * torch.eye(4))
    wanted = -float(torch.distributions.Normal(1.0, (16 * V) ** 0.5).log_prob(raw.double()).sum(1).mean())
    # The bound of an optimal denoiser in continuous time is exact but for its ends: KL_T ≈ ½ D e^{-9}, and the fit of the variance.
    assert found.value == pytest.approx(wanted, abs=4 * found.error + 5e-3)
    assert scaled.entropy() == pytest.approx(2 * math.log(2 * math.pi * math.e * 16 * V))
    # Without the Jacobian it would be off by 4 ln 4.
    assert abs(found.value - (wanted - 4 * math.log(4))) > 5


def test_a_first_level_is_chosen_with_its_variance() -> None:
    x = train(200)
    decoder = likelihood.GaussianLikelihood(SPACE)
    # Of a world with two scales a single variance fits p(x|z_1) at low noise only, so that low noise costs less.
    world = exact.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.01])))
    two, space = world.sample(200, torch.Generator().manual_seed(0)), df.Continuous((2,))
    chosen = choose_start(world.denoiser(), likelihood.GaussianLikelihood(space), two, candidates=(-8.0, 1.0), fit=True)
    costs = []
    for low in (-8.0, 1.0):
        own = likelihood.GaussianLikelihood(space, fit_variance(world.denoiser(), space, two, low))
        process = df.GaussianDiffusion(df.schedule.log_snr_linear(low, 14.0))
        model = df.DiffusionModel(process, world.denoiser(), own)
        costs.append(df.evaluate(model, two, visits=16, audit=False).nelbo.value)
    assert costs[0] < costs[1] - 0.2
    assert chosen == -8.0
    # With the variance of z_1/α_1, high noise costs much more than with the variance that is fitted.
    assert choose_start(WORLD.denoiser(), decoder, x, candidates=(-8.0, 3.0)) == -8.0
    with pytest.raises(DiffusionalError, match="GaussianLikelihood"):
        choose_start(WORLD.denoiser(), likelihood.LevelPosterior(df.Discrete((4,), 4)), x, fit=True)


def latents(folder: Path, scheduler: Any = None, **config: Any) -> Path:
    """A pipeline with an autoencoder."""
    saved(folder, scheduler)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_of_latents_with_a_fitted_decoder(tmp_path: Path) -> None:
    folder = latents(tmp_path / "model", scaling_factor=0.25, shift_factor=0.5)
    plain = load_checkpoint(folder)
    assert plain.space == df.Continuous((1, 4, 4), shift=(0.5,), scale=(4.0,))
    raw = 0.5 + 4 * torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = plain.space.encode(raw)
    model = load_checkpoint(folder, decoder="gaussian", decoder_variance="fit", reference=x)
    gamma = float(model.process.schedule.ends()[0])
    variance = model.likelihood.variance
    assert variance == fit_variance(plain.denoiser, plain.space, x, gamma)
    assert "40 training items" in model.origin["given"]["decoder"]
    assert f"{16 * variance:.6g} in the units" in model.origin["given"]["decoder"]
    given = load_checkpoint(folder, decoder_variance=variance)
    first, second = (df.evaluate(one, x, draws=1).nelbo.value for one in (model, given))
    assert first == second
    assert first < df.evaluate(plain, x, draws=1).nelbo.value
    for options, match in (
        ({"decoder_variance": "fit"}, "reference"),
        ({"decoder_variance": "fit", "decoder": "gaussian"}, "reference"),
        ({"levels": 17}, "autoencoder"),
        ({"decoder": "discretized-gaussian"}, "latents.*density"),
        ({"decoder": "level-posterior", "decoder_variance": "fit", "reference": x}, "latents"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            load_checkpoint(folder, **options)


def test_latents_that_are_standardised_by_channel(tmp_path: Path) -> None:
    folder = latents(tmp_path / "model", scaling_factor=0.5, latents_mean=[2.0], latents_std=[3.0])
    space = load_checkpoint(folder).space
    assert space == df.Continuous((1, 4, 4), shift=(2.0,) * 16, scale=(6.0,) * 16)


def test_real_valued_data_without_an_autoencoder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    model = load_checkpoint(folder, decoder="gaussian", decoder_variance=0.1)
    assert model.space == df.Continuous((1, 4, 4))
    with pytest.raises(DiffusionalError, match="decoder_variance"):
        load_checkpoint(folder, decoder="level-posterior", decoder_variance="fit", reference=torch.zeros(2, 1, 4, 4))
    with pytest.raises(DiffusionalError, match="levels=17"):
        load_checkpoint(folder, decoder="gaussian", levels=17)
    with pytest.raises(DiffusionalError, match="levels"):
        load_checkpoint(folder, df.Discrete((1, 4, 4), 17), decoder="gaussian", decoder_variance=0.1)


def test_a_flow_with_a_fitted_decoder(tmp_path: Path) -> None:
    flow = latents(tmp_path / "flow", diffusers.FlowMatchEulerDiscreteScheduler(), scaling_factor=1.0)
    x = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = load_checkpoint(flow, decoder="gaussian", decoder_variance="fit", reference=x)
    assert {"start", "decoder"} <= model.origin["given"].keys()
    gamma = float(model.process.schedule.ends()[0])
    assert model.likelihood.variance == fit_variance(model.denoiser, model.space, x, gamma)
    fixed = load_checkpoint(flow, decoder="gaussian", decoder_variance="fit", reference=x, gamma_min=-3.0)
    assert float(fixed.process.schedule.ends()[0]) == -3.0
    # EDM declares its lowest noise, which stays where only the variance is fitted.
    edm = latents(tmp_path / "edm", diffusers.EDMEulerScheduler(sigma_min=0.05), scaling_factor=1.0)
    model = load_checkpoint(edm, decoder="gaussian", decoder_variance="fit", reference=x)
    assert float(model.process.schedule.ends()[0]) == pytest.approx(2 * math.log(0.05))


def test_bad_input() -> None:
    with pytest.raises(DiffusionalError, match="levels"):
        fit_variance(WORLD.denoiser(), df.Discrete((4,), 4), torch.zeros(2, 4), 0.0)
    zero = df.Denoiser(lambda z, log_snr: 0 * z, "data")
    with pytest.raises(DiffusionalError, match="got 0"):
        fit_variance(zero, SPACE, torch.zeros(2, 4), 0.0)
    with pytest.raises(DiffusionalError, match="got nan"):
        fit_variance(df.Denoiser(lambda z, log_snr: math.nan * z, "data"), SPACE, torch.ones(2, 4), 0.0)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from battery import command

    folder = latents(tmp_path / "model", scaling_factor=0.25)
    raw = 4 * np.random.default_rng(0).normal(size=(24, 1, 4, 4))
    np.save(tmp_path / "train.npy", raw[:20])
    np.save(tmp_path / "test.npy", raw[20:])
    options = ("--decoder", "gaussian", "--decoder-variance", "fit", "--training-data", tmp_path / "train.npy")
    evaluate = ("evaluate", folder, "--data", tmp_path / "test.npy", "--draws", 1, "--no-check", "--json", "-")
    status, out, _ = command(capsys, *evaluate, *options)
    assert status == 0
    record = json.loads(out)
    space = df.Continuous((1, 4, 4), scale=(4.0,))
    model = load_checkpoint(
        folder,
        decoder="gaussian",
        decoder_variance="fit",
        reference=space.encode(torch.from_numpy(raw[:20])),
    )
    wanted = df.evaluate(model, space.encode(torch.from_numpy(raw[20:])), draws=1)
    assert record["nelbo_nats"]["value"] == pytest.approx(wanted.nelbo.value, rel=1e-9)
    assert "20 training items" in record["provenance"]["origin"]["given"]["decoder"]
    # A run has what was fitted as numbers, and how.
    assert command(capsys, "import", folder, tmp_path / "run", *options)[0] == 0
    saved_ = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
    assert saved_["options"]["decoder_variance"] == model.likelihood.variance
    again = df.load(tmp_path / "run")
    assert again.origin["given"]["decoder"] == model.origin["given"]["decoder"]
    for args, match in (
        (("--decoder", "gaussian", "--decoder-variance", "fit"), "reference"),
        (("--decoder-variance", "much"), "much"),
        (("--training-data", tmp_path / "train.npy"), "nothing is fitted"),
    ):
        status, _, err = command(capsys, *evaluate, *args)
        assert (status, match in err) == (2, True)


def test_a_flow_is_imported_with_a_first_level_of_its_training_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from battery import command

    flow = saved(
        tmp_path / "flow",
        diffusers.FlowMatchEulerDiscreteScheduler(),
        unet(dtype=torch.float32, sample_size=8),
    )
    assert command(capsys, "import", flow, tmp_path / "run", "--data", "digits")[0] == 0
    options = json.loads((tmp_path / "run" / "checkpoint.json").read_text())["options"]
    data = df.data.load("digits")
    wanted = load_checkpoint(flow, levels=17, reference=data.encode("train")[:512])
    assert options["gamma_min"] == float(wanted.process.schedule.ends()[0])
    assert "512 training items" in df.load(tmp_path / "run").origin["given"]["start"]
