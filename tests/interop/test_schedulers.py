"""The table of schedulers: complete, and equal to diffusers' own code."""

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers.schedulers
import numpy as np
import pytest
import torch
from packaging.version import Version

import diffusional as df
from diffusional.errors import DiffusionalError
from diffusional.interop.betas import betas
from diffusional.interop.declared import parameters
from diffusional.interop.scheduler_table import TABLE, write_tables
from diffusional.interop.schedulers import declared

ROOT = Path(__file__).parents[2]
# The table is that of the pinned version; earlier ones have some of its schedulers and settings.
PINNED = re.search(r"^diffusers==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
NEW = PINNED is not None and Version(diffusers.__version__) >= Version(PINNED[1])
# diffusers' own code under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# Names that end in Scheduler and are none.
NO_SCHEDULERS = {"SchedulerMixin"}
READ = [name for name, entry in TABLE.items() if entry.family != "refused"]


def test_every_scheduler_of_diffusers_is_in_the_table_and_no_other() -> None:
    every = {
        name
        for name in dir(diffusers.schedulers)
        if name.endswith("Scheduler") and name not in NO_SCHEDULERS and not name.startswith("Flax")
    }
    assert every == set(TABLE) if NEW else every <= set(TABLE)


def test_who_is_refused_is_told_why() -> None:
    for name, entry in TABLE.items():
        if entry.family == "refused":
            assert len(entry.note) > 10
            with pytest.raises(DiffusionalError, match=name):
                declared({"_class_name": name})


def _made(name: str, **options: Any) -> Any:
    kind = getattr(diffusers.schedulers, name, None)
    if kind is None and not NEW:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    if "dummy" in kind.__module__:
        pytest.skip("needs torchsde")
    return kind(**options)


@pytest.mark.parametrize("name", READ)
def test_the_defaults_of_every_scheduler_are_read(name: str) -> None:
    """With the levels of the scheduler's own tables."""
    options = {"use_flow_sigmas": False} if "use_flow_sigmas" in parameters(name) else {}
    scheduler = _made(name, **options)
    said = declared(dict(scheduler.config) | {"_class_name": name})
    assert said.config
    assert "end" in said.config
    if said.schedule.steps is None:
        return
    gamma = said.schedule.grid()
    bar = getattr(scheduler, "alphas_cumprod", None)
    if name == "ScoreSdeVeScheduler":
        sigma = scheduler.discrete_sigmas.double()
        torch.testing.assert_close((gamma / 2).exp(), sigma, rtol=1e-3, atol=0)
        return
    assert bar is not None
    torch.testing.assert_close(torch.sigmoid(-gamma), bar.double(), rtol=2e-4, atol=1e-7)


BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("steps", [10, 1000])
def test_betas_are_those_of_ddpm(kind: str, steps: int) -> None:
    try:
        scheduler = diffusers.schedulers.DDPMScheduler(num_train_timesteps=steps, beta_schedule=kind)  # pyright: ignore[reportArgumentType]
    except NotImplementedError:
        if NEW:
            raise
        pytest.skip(f"diffusers {diffusers.__version__} has no betas {kind}")
    ours = betas(kind, steps, 1e-4, 0.02)
    torch.testing.assert_close(ours, scheduler.betas.double(), rtol=1e-4, atol=2e-7)


def test_betas_exp_are_those_of_heun() -> None:
    scheduler = diffusers.schedulers.HeunDiscreteScheduler(num_train_timesteps=20, beta_schedule="exp")
    torch.testing.assert_close(betas("exp", 20, 0.0, 1.0), scheduler.betas.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "CogVideoXDDIMScheduler", "EulerDiscreteScheduler"])
def test_zero_terminal_snr(name: str) -> None:
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "num_train_timesteps": 50}
    scheduler = _made(name, **options)
    said = declared(dict(scheduler.config) | {"_class_name": name})
    assert said.schedule.zero_terminal_snr
    kept = torch.sigmoid(-said.schedule.grid())
    torch.testing.assert_close(kept[:-1], scheduler.alphas_cumprod.double()[:-1], rtol=1e-3, atol=1e-7)
    assert float(kept[-1]) < 1e-18
    with pytest.raises(DiffusionalError, match=r"epsilon.*SNR_T"):
        declared(dict(scheduler.config) | {"_class_name": name, "prediction_type": "epsilon"})


def test_trained_betas() -> None:
    said = declared({"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2, 0.3]})
    torch.testing.assert_close(said.schedule.betas, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))  # pyright: ignore[reportAttributeAccessIssue]
    assert said.time(-said.schedule.grid()).tolist() == [0, 1, 2]


def test_a_sampler_of_sigmas_starts_from_its_own_variance() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 20}
    scheduler = diffusers.schedulers.EulerDiscreteScheduler(num_train_timesteps=20)
    own = float(scheduler.init_noise_sigma)
    said = declared(config)
    assert said.last_variance == pytest.approx(own**2 / (1 + own**2), rel=1e-5)
    assert declared(config | {"timestep_spacing": "leading"}).last_variance == 1
    ve = declared({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 3.0})
    assert ve.last_variance == pytest.approx(9 / 10)


@pytest.mark.parametrize("word", ["karras", "exponential", "beta"])
def test_grids_of_a_sampler_are_not_the_models(word: str) -> None:
    plain = declared({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 20})
    other = declared({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 20, f"use_{word}_sigmas": True})
    assert other.schedule.grid().equal(plain.schedule.grid())
    assert f"use_{word}_sigmas" in other.left_out["sampler"]
    edm = declared({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"})
    assert "sigma_schedule" in edm.left_out["sampler"]
    assert edm.schedule.steps is None


def test_settings_of_a_sampler_are_left_out_and_said() -> None:
    config = {
        "_class_name": "DDIMScheduler",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    }
    said = declared(config | {"skip_prk_steps": True})
    for key in ("set_alpha_to_one", "steps_offset", "timestep_spacing"):
        assert key in said.left_out["sampler"]
    assert "skip_prk_steps" in said.left_out["ignored"]
    shift = declared({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert "shift=3.0" in shift.left_out["sampler"]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"_class_name": "DDPMScheduler", "beta_strat": 1}, r"beta_strat.*beta_start"),
        ({"_class_name": "DPMScheduler"}, r"DPMScheduler.*did you mean"),
        ({}, "_class_name"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "cubic"}, "cubic"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "flow"}, "flow"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed"}, "fixed"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1}, "num_train_timesteps"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], match: str) -> None:
    with pytest.raises(DiffusionalError, match=match):
        declared(config)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DiffusionalError, match="gamma_min"):
        declared({"_class_name": "DDPMScheduler"}, gamma_min=-9.0)
    with pytest.raises(DiffusionalError, match="fixed_smal"):
        declared({"_class_name": "DDPMScheduler"}, variance="fixed_smal")
    with pytest.raises(DiffusionalError, match="continuous"):
        declared({"_class_name": "FlowMatchEulerDiscreteScheduler"}, variance="posterior")


def test_clipping_is_honoured_left_out_or_given() -> None:
    config = {"_class_name": "DDPMScheduler", "clip_sample_range": 2.0}
    assert str(declared(config).rule) == "x̂ is clipped to [-2, 2]"
    assert "clip_sample=True" in declared(config).config["clipping"]
    assert declared(config, clipped=False).rule is None
    assert "clip_sample=True" in declared(config, clipped=False).given["clipping"]
    without = config | {"clip_sample": False}
    assert declared(without).rule is None
    assert str(declared(without, clipped=True).rule) == "x̂ is clipped to [-1, 1]"
    assert "quantile" in str(declared(config | {"thresholding": True}).rule)


def test_euler_with_continuous_time_is_edm() -> None:
    said = declared(
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        }
    )
    low, high = said.schedule.ends().tolist()
    np.testing.assert_allclose([low, high], [2 * np.log(0.002), 2 * np.log(700.0)])
    # x̂ = z/(σ² + 1) − σ/√(σ² + 1) F is what Euler's step does to its latent z = x + σ ε.
    gamma = torch.tensor([0.3], dtype=torch.float64)
    sigma = float((gamma / 2).exp())
    z, out = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    ours = z / np.sqrt(1 + sigma**2)
    from diffusional.models.parameterization import Prediction

    x = Prediction(ours, gamma, said.output.read(out, ours, gamma), said.output.kind).data
    torch.testing.assert_close(x, z / (sigma**2 + 1) - sigma / np.sqrt(sigma**2 + 1) * out)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_preconditioned_as_in_diffusers(name: str, prediction: str) -> None:
    from diffusional.models.parameterization import Prediction

    scheduler = _made(name, sigma_data=0.7, prediction_type=prediction)
    said = declared(dict(scheduler.config) | {"_class_name": name})
    gamma = torch.tensor([0.3], dtype=torch.float64)
    sigma = (gamma / 2).exp()
    raw, out = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    assert callable(said.scale)
    z = raw / (1 + sigma**2).sqrt()
    torch.testing.assert_close(said.scale(gamma) * z, scheduler.precondition_inputs(raw, sigma))
    torch.testing.assert_close(said.time(-gamma), scheduler.precondition_noise(sigma))
    x = Prediction(z, gamma, said.output.read(out, z, gamma), said.output.kind).data
    torch.testing.assert_close(x, scheduler.precondition_outputs(raw, out, sigma))


def test_the_flow_is_that_of_flow_matching() -> None:
    from diffusional.models.parameterization import Prediction

    scheduler = diffusers.schedulers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    said = declared(dict(scheduler.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    x, noise = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-1.1]], dtype=torch.float64)
    step = 399
    t = float(scheduler.sigmas[step])
    gamma = torch.tensor([2 * np.log(t / (1 - t))], dtype=torch.float64)
    raw = scheduler.scale_noise(x, scheduler.timesteps[step : step + 1], noise)
    z = x * torch.sigmoid(-gamma).sqrt() + noise * torch.sigmoid(gamma).sqrt()
    assert callable(said.scale)
    torch.testing.assert_close(said.scale(gamma) * z, raw, rtol=1e-6, atol=0)
    assert float(said.time(-gamma)) == pytest.approx(float(scheduler.timesteps[step]), rel=1e-6)
    seen = Prediction(z, gamma, said.output.read(noise - x, z, gamma), said.output.kind)
    torch.testing.assert_close(seen.data, x)
    torch.testing.assert_close(seen.noise, noise)


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    """`python -m diffusional.interop.scheduler_table` writes them."""
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert write_tables(page) == page
    assert page.count("| DDPMScheduler |") == 1


def test_our_parameters_are_those_of_the_signature() -> None:
    own = inspect.signature(diffusers.schedulers.DDIMScheduler.__init__).parameters
    assert set(parameters("DDIMScheduler")) == set(own) - {"self"}


def test_last_beta_of_one_has_no_signal() -> None:
    """And other betas of one are refused."""
    schedule = df.schedule.from_betas([0.1, 0.2, 1.0])
    assert schedule.zero_terminal_snr
    assert df.schedule.from_dict(schedule.to_dict()).zero_terminal_snr
    with pytest.raises(DiffusionalError, match="β_2 = 1"):
        df.schedule.from_betas([0.1, 1.0, 0.5])
