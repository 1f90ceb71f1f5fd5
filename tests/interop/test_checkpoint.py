"""`load_checkpoint`: terms equal to the scheduler's own formulas, and clear refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DModel
from torch import Tensor

import diffusional as df
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import check_model
from diffusional.interop.checkpoint import load_checkpoint
from diffusional.interop.place import is_checkpoint
from diffusional.models.diffusion import DiffusionModel
from interop.pipelines import STEPS, float64_betas, in_float64, kl, saved, unet

T, B = STEPS, 2
SPACE = df.Discrete((1, 4, 4), 16)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


def items(space: df.Discrete = SPACE) -> tuple[Tensor, Tensor]:
    """x (B, …) and ε (T, B, …), float64."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, space.levels, (B, *space.shape), generator=generator)
    noise = torch.randn(T, B, *space.shape, dtype=torch.float64, generator=generator)
    return space.encode(raw, torch.float64), noise


def expected_kl(scheduler: Any, network: Any, x: Tensor, noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """KL_t (B, T − 1) from the scheduler's own step, in float64, and q by the textbook."""
    scheduler, out = in_float64(scheduler), []
    bar = scheduler.alphas_cumprod
    for i in range(1, T):  # diffusers' step from level i to i − 1
        z = bar[i].sqrt() * x + (1 - bar[i]).sqrt() * noise[i]
        said = network(z, torch.full((B,), i)).sample
        steps = []
        for constant in (0.0, 1.0):
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda shape, constant=constant, **_: torch.full(shape, constant, dtype=torch.float64),
            )
            steps.append(scheduler.step(said, i, z).prev_sample)
            if not constant and scheduler.config.variance_type == "fixed_large_log":
                steps[0] = (
                    in_float64(DDPMScheduler.from_config(scheduler.config, variance_type="fixed_small"))
                    .step(said, i, z)
                    .prev_sample
                )
        beta = 1 - bar[i] / bar[i - 1]
        mean_q = (bar[i - 1].sqrt() * beta * x + (bar[i] / bar[i - 1]).sqrt() * (1 - bar[i - 1]) * z) / (1 - bar[i])
        variance_q = (1 - bar[i - 1]) / (1 - bar[i]) * beta
        variance_p = (steps[1] - steps[0]).square()
        if scheduler.config.variance_type == "fixed_large_log":
            assert variance_p.isnan().all()  # diffusers takes the root of a logarithm
            variance_p = beta
        out.append(kl(mean_q, variance_q, steps[0], variance_p))
    return torch.stack(out, 1)


def expected_reconstruction(x_hat: Tensor, std: Tensor, x: Tensor, space: df.Discrete) -> Tensor:
    """−ln of the mass of N(x̂, std²) in the bin of x, open at the ends."""
    normal, half = torch.distributions.Normal(x_hat, std), space.width / 2
    upper = torch.where(x > space.high - half, 1.0, normal.cdf(x + half))
    lower = torch.where(x < space.low + half, 0.0, normal.cdf(x - half))
    return -(upper - lower).log().flatten(1).sum(1)


def expected_prior(bar: Tensor, x: Tensor) -> Tensor:
    return kl(bar[-1].sqrt() * x, 1 - bar[-1], torch.zeros_like(x), torch.ones((), dtype=torch.float64))


def agrees(model: DiffusionModel, scheduler: Any, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, noise = items()
    assert model.denoiser.module.network.dtype == torch.float64
    terms = model.terms(x, noise)
    wanted = expected_kl(scheduler, network, x, noise, monkeypatch)
    torch.testing.assert_close(terms.kl, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(terms.prior, expected_prior(scheduler.alphas_cumprod, x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_every_prediction_and_variance(
    prediction: str, variance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=T,
        beta_start=0.01,
        beta_end=0.5,
        prediction_type=prediction,  # pyright: ignore[reportArgumentType]
        variance_type=variance,  # pyright: ignore[reportArgumentType]
    )
    network = unet(2 if variance.startswith("learned") else 1)
    if variance == "learned":  # its second half is the variance itself
        with torch.no_grad():
            network.conv_out.weight[1] *= 0.01
            network.conv_out.bias[1] = 0.4
    model = load_checkpoint(saved(tmp_path, scheduler, network), SPACE)
    agrees(model, scheduler, network, monkeypatch)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("clip", ["clip", "threshold", "none"])
def test_every_schedule_and_what_is_done_to_x(
    kind: str, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=T,
        beta_start=0.01,
        beta_end=0.5,
        beta_schedule=kind,  # pyright: ignore[reportArgumentType]
        clip_sample=clip == "clip",
        thresholding=clip == "threshold",
        dynamic_thresholding_ratio=0.8,
        sample_max_value=3.0,
    )
    network = unet()
    agrees(load_checkpoint(saved(tmp_path, scheduler, network), SPACE), scheduler, network, monkeypatch)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_snr(prediction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=T,
        rescale_betas_zero_snr=True,
        prediction_type=prediction,  # pyright: ignore[reportArgumentType]
    )
    network = unet()
    model = load_checkpoint(saved(tmp_path, scheduler, network), SPACE)
    agrees(model, scheduler, network, monkeypatch)
    x, noise = items()
    assert float(model.terms(x, noise).prior.abs().max()) < 1e-12
    # Evaluations stay finite and unbiased: the sweep and the plan agree.
    swept = df.evaluate(model, x.repeat(20, 1, 1, 1), draws=4)
    drawn = df.evaluate(model, x.repeat(20, 1, 1, 1), visits=64)
    apart = abs(swept.nelbo.value - drawn.nelbo.value)
    assert apart < 5 * (swept.nelbo.error**2 + drawn.nelbo.error**2) ** 0.5


def test_the_noise_says_nothing_at_zero_snr() -> None:
    process = df.GaussianDiffusion(df.schedule.from_betas([0.1, 0.5, 1.0]))
    with pytest.raises(DiffusionalError, match="noise"):
        DiffusionModel(process, df.Denoiser(lambda z, s: z), df.likelihood.DiscretizedGaussian(SPACE))


@pytest.mark.parametrize("decoder", [None, "openai"])
@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_the_decoder(decoder: str | None, variance: str, tmp_path: Path) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=T, beta_start=0.1, beta_end=0.5, variance_type=variance)  # pyright: ignore[reportArgumentType]
    network = unet(2 if variance == "learned_range" else 1)
    model = load_checkpoint(saved(tmp_path, scheduler, network), SPACE, decoder=decoder)
    bar = torch.from_numpy(float64_betas(scheduler.config)).neg().add(1).cumprod(0)
    x, noise = items()
    z = bar[0].sqrt() * x + (1 - bar[0]).sqrt() * noise[0]
    out = network(z, torch.zeros(B, dtype=torch.long)).sample
    x_hat = ((z - (1 - bar[0]).sqrt() * out[:, :1]) / bar[0].sqrt()).clamp(-1, 1)
    least = (1 - bar[0]) / (1 - bar[1]) * (1 - bar[1] / bar[0])  # OpenAI's posterior_variance[1]
    std = (least if decoder == "openai" else 1 - bar[0]).sqrt()
    if variance == "learned_range":
        f = (out[:, 1:] + 1) / 2
        std = (0.5 * (f * (1 - bar[0]).log() + (1 - f) * least.log())).exp()
    wanted = expected_reconstruction(x_hat, std, x, SPACE)
    torch.testing.assert_close(model.terms(x, noise).reconstruction, wanted, rtol=1e-6, atol=1e-9)


def test_clipping_decides_the_number_and_is_one_flag_away(tmp_path: Path) -> None:
    folder = saved(tmp_path, DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2"))
    x, noise = items()
    clipped, other = load_checkpoint(folder, SPACE), load_checkpoint(folder, SPACE, clipped=False)
    with torch.no_grad():
        assert float(other.terms(x, noise).kl[:, -1].min()) > 2 * float(clipped.terms(x, noise).kl[:, -1].max())
    assert "clip_sample=True" in clipped.origin["config"]["clipping"]
    assert "not clipped" in other.origin["given"]["clipping"]
    assert clipped.identity() != other.identity()


def test_the_origin_is_recorded_in_the_evaluation(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    model = load_checkpoint(folder, SPACE, decoder="level-posterior")
    result = df.evaluate(model, items()[0], draws=1)
    origin = result.provenance["origin"]
    assert origin["given"].keys() == {"space", "decoder"}
    assert origin["config"].keys() >= {"levels", "prediction", "variance", "clipping", "scheduler", "network", "time"}
    assert len(origin["files"]["unet/diffusion_pytorch_model.safetensors"]) == 64
    result.save(tmp_path / "result.json")
    assert df.Evaluation.load(tmp_path / "result.json").provenance["origin"] == origin
    assert "decoder" in load_checkpoint(folder).origin["assumed"]
    assert json.loads(json.dumps(model.origin)) == model.origin


def test_a_bare_model_with_its_scheduler(tmp_path: Path) -> None:
    pipeline = saved(tmp_path / "pipeline")
    bare = tmp_path / "bare"
    shutil.copytree(pipeline / "unet", bare)
    with pytest.raises(DiffusionalError, match=r"scheduler_config\.json"):
        load_checkpoint(bare)
    x, noise = items()
    wanted = load_checkpoint(pipeline, SPACE).terms(x, noise).nelbo
    scheduler = pipeline / "scheduler" / "scheduler_config.json"
    for given in (scheduler, scheduler.parent, json.loads(scheduler.read_text()), DDPMScheduler(num_train_timesteps=T)):
        model = load_checkpoint(bare, SPACE, scheduler=given)  # pyright: ignore[reportArgumentType]
        assert model.terms(x, noise).nelbo.equal(wanted)
        assert "scheduler" in model.origin["given"]
    shutil.copy(scheduler, bare)
    assert load_checkpoint(bare, SPACE).terms(x, noise).nelbo.equal(wanted)
    assert load_checkpoint(pipeline, SPACE, subfolder="unet").terms(x, noise).nelbo.equal(wanted)
    # A model's folder inside a pipeline's.
    assert load_checkpoint(pipeline / "unet", SPACE).terms(x, noise).nelbo.equal(wanted)


def test_pipelines_whose_files_are_not_in_folders(tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32, with the names that attention had then."""
    network = unet(down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), attention_head_dim=4)
    pipeline = saved(tmp_path / "pipeline", network=network)
    x, noise = items()
    wanted = load_checkpoint(pipeline, SPACE).terms(x, noise).nelbo
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(pipeline / "model_index.json", old)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", old)
    shutil.copy(pipeline / "unet" / "config.json", old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in network.state_dict().items():
        for new, first in names.items():
            name = name.replace(f".{new}.", f".{first}.")
        state[name] = tensor
    assert any(".query." in name for name in state)
    torch.save(state, old / "diffusion_pytorch_model.bin")
    model = load_checkpoint(old, SPACE)
    assert model.terms(x, noise).nelbo.equal(wanted)
    assert model.origin["files"].keys() == {"scheduler_config.json", "config.json", "diffusion_pytorch_model.bin"}


def test_half_precision_is_cast_and_variants_are_found(tmp_path: Path) -> None:
    network = unet(dtype=torch.float16)
    folder = saved(tmp_path, network=network, variant="fp16")
    model = load_checkpoint(folder, SPACE, variant="fp16")
    assert next(model.parameters()).dtype == torch.float32
    assert any("F16" in note for note in model.origin["notes"])
    assert any("fp16" in note for note in load_checkpoint(folder, SPACE).origin["notes"])
    with pytest.raises(DiffusionalError, match=r"bf16.*fp16"):
        load_checkpoint(folder, SPACE, variant="bf16")


def test_old_pickles_are_read_without_running_code(tmp_path: Path) -> None:
    folder = saved(tmp_path, safe_serialization=False)
    model = load_checkpoint(folder, SPACE)
    assert any("weights_only" in note for note in model.origin["notes"])
    safe = saved(tmp_path / "safe")
    x, noise = items()
    assert model.terms(x, noise).nelbo.equal(load_checkpoint(safe, SPACE).terms(x, noise).nelbo)


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", safe_serialization=False)
    torch.save({"weight": Touch(tmp_path / "touched")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(DiffusionalError, match="weights_only"):
        load_checkpoint(folder, SPACE)
    assert not (tmp_path / "touched").exists()


def _truncate(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _head(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\x00\x00")


def _no_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def _no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def _edited(name: str, **changes: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _nan(folder: Path) -> None:
    network = unet()
    with torch.no_grad():
        network.conv_in.weight[0, 0] = torch.nan
    network.save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_truncate, r"damaged.*bytes"),
        (_head, "damaged"),
        (_no_weights, "diffusion_pytorch_model.safetensors"),
        (_no_folder, r"unet.*does not exist"),
        (_no_scheduler, r"scheduler_config.json.*does not exist"),
        (_nan, "not finite"),
        (_edited("unet/config.json", block_out_channels=[16]), r"do not fit.*shape"),
        (_edited("unet/config.json", layers_per_block=2), r"do not fit.*missing"),
        (_edited("unet/config.json", _class_name="UNet2Model"), r"UNet2Model.*did you mean"),
        (_edited("unet/config.json", _class_name="DDPMScheduler"), "DDPMScheduler"),
        (_edited("scheduler/scheduler_config.json", beta_strat=0.1), "beta_strat"),
        (_edited("scheduler/scheduler_config.json", _class_name="LCMScheduler"), "LCMScheduler"),
        (_edited("scheduler/scheduler_config.json", variance_type="learned_range"), "2 output channels"),
        (_edited("model_index.json", unet=["diffusers", None]), "no denoiser"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json"),
    ],
)
def test_damaged_checkpoints_are_refused(damage: Any, match: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(DiffusionalError, match=match):
        load_checkpoint(folder, SPACE)


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"neither model_index\.json nor config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(DiffusionalError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(DiffusionalError, match="is a file"):
        load_checkpoint(tmp_path / "file.safetensors")
    folder = saved(tmp_path / "model")
    with pytest.raises(DiffusionalError, match="revision"):
        load_checkpoint(folder, revision="main")
    assert is_checkpoint(folder)
    assert is_checkpoint(folder / "unet")
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"space": df.Discrete((3, 4, 4), 16)}, "1 channels"),
        ({"decoder": "opnai"}, "openai"),
        ({"decoder": "gaussian"}, "levels"),
        ({"decoder": "level-posterior", "decoder_variance": 0.1}, "decoder_variance"),
        ({"decoder": df.likelihood.LevelPosterior(df.Discrete((1, 4, 4), 3))}, "same space"),
        ({"decoder_variance": -1.0}, "variance"),
        ({"steps": 5}, "steps=5"),
        ({"variance": "learned"}, "2 output channels"),
        ({"gamma_min": -5.0}, "gamma_min"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(DiffusionalError, match=match):
        load_checkpoint(folder, **({"space": SPACE} | options))


def test_latents_have_a_density(tmp_path: Path) -> None:
    """And a decoder over levels is refused."""
    folder = saved(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 0.25}))
    model = load_checkpoint(folder)
    assert model.space == df.Continuous((1, 4, 4), scale=(4.0,))
    assert any("latent" in note for note in model.origin["notes"])
    with pytest.raises(DiffusionalError, match="latents"):
        load_checkpoint(folder, SPACE)


def test_class_conditional_models(tmp_path: Path) -> None:
    network = unet(num_class_embeds=3)
    model = load_checkpoint(saved(tmp_path, network=network), SPACE)
    assert model.classes == ("0", "1", "2")
    x, noise = items()
    with pytest.raises(DiffusionalError, match="class_labels"):
        model.terms(x, noise)
    with pytest.raises(DiffusionalError, match=r"label 3"):
        model.terms(x, noise, torch.tensor([0, 3]))
    c = torch.tensor([0, 2])
    one, other = model.terms(x, noise, c), model.terms(x, noise, {"class_labels": c})
    assert one.nelbo.equal(other.nelbo)
    assert not one.nelbo.equal(model.terms(x, noise, torch.tensor([1, 1])).nelbo)
    with pytest.raises(DiffusionalError, match="no class_labels"):
        load_checkpoint(saved(tmp_path / "without", network=unet()), SPACE).terms(x, noise, c)
    assert df.evaluate(model, x, draws=1, condition=c).provenance["condition_sha256"]


def test_dit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=2, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=1)
    names = {"2": "eel", "0": "cat", "1": "dog, hound"}
    DiTPipeline(network, vae, DDIMScheduler(num_train_timesteps=T)).save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path)
    assert model.classes == ("0", "1", "2")
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
    model = load_checkpoint(tmp_path)
    assert model.classes == ("cat", "dog, hound", "eel")
    assert isinstance(model.space, df.Continuous)
    assert model.origin["left_out"]["outputs"].startswith("output channels 2 to 2")
    x, noise = torch.randn(B, 1, 4, 4), torch.randn(T, B, 1, 4, 4)
    with pytest.raises(DiffusionalError, match="class_labels"):
        model.terms(x, noise)
    labels = torch.tensor([0, 2])
    learned = load_checkpoint(tmp_path, variance="learned_range")
    assert learned.variance == "learned"
    assert model.terms(x, noise, labels).nelbo.isfinite().all()
    assert learned.terms(x, noise, labels).nelbo.isfinite().all()
    # The first half of the output is the noise, by hand.
    z = x * model.process.marginal(x, 3).mean.flatten()[0] / x.flatten()[0]
    said = model.denoiser(z, model.process.gamma(torch.tensor([3, 3])), labels)
    clip = network.eval()(z, timestep=torch.tensor([2, 2]), class_labels=labels).sample[:, :1]
    gamma = model.process.gamma(3)
    a, s = torch.sigmoid(-gamma).sqrt().float(), torch.sigmoid(gamma).sqrt().float()
    torch.testing.assert_close(said.data, ((z - s * clip) / a).clamp(-1, 1))


def test_text_conditional_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        cross_attention_dim=5, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    folder = tmp_path / "model"
    network.save_pretrained(folder)
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": T}
    model = load_checkpoint(folder, SPACE, scheduler=scheduler)
    assert "encoder_hidden_states" in model.origin["config"]["condition"]
    x, noise = (one.float() for one in items())
    with pytest.raises(DiffusionalError, match="encoder_hidden_states"):
        df.evaluate(model, x, draws=1)
    with pytest.raises(DiffusionalError, match=r"encoder_hidden.*encoder_hidden_states"):
        model.terms(x, noise, {"encoder_hidden": torch.zeros(B, 2, 5)})
    text = torch.randn(B, 2, 5)
    one = model.terms(x, noise, text).nelbo
    assert one.equal(model.terms(x, noise, {"encoder_hidden_states": text}).nelbo)
    assert not one.equal(model.terms(x, noise, -text).nelbo)


def test_edm_and_flow_pipelines(tmp_path: Path) -> None:
    """In continuous time by default, with the network called as their pipelines do."""
    seen: list[tuple[Tensor, Tensor]] = []
    network = unet(dtype=torch.float64)
    folder = saved(tmp_path / "edm", diffusers.EDMEulerScheduler(sigma_data=0.5), network)
    model = load_checkpoint(folder, SPACE)
    assert model.steps is None
    assert model.origin["assumed"].keys() >= {"levels", "decoder"}
    handle = model.denoiser.module.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1])))
    sigma = torch.tensor([1.5, 0.1], dtype=torch.float64)
    x, noise = items()
    raw = x + sigma[:, None, None, None] * noise[0]
    z = raw / (1 + sigma.square()).sqrt()[:, None, None, None]
    said = model.denoiser(z, 2 * sigma.log())
    handle.remove()
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    wanted = [scheduler.precondition_inputs(one, s) for one, s in zip(raw, sigma, strict=True)]
    torch.testing.assert_close(seen[0][0], torch.stack(wanted))
    torch.testing.assert_close(seen[0][1], 0.25 * sigma.log())
    output = network(seen[0][0], seen[0][1]).sample
    by_hand = [scheduler.precondition_outputs(*one) for one in zip(raw, output, sigma, strict=True)]
    torch.testing.assert_close(said.data, torch.stack(by_hand))
    assert load_checkpoint(folder, SPACE, steps=12).steps == 12

    flow = saved(tmp_path / "flow", diffusers.FlowMatchEulerDiscreteScheduler(), network)
    model = load_checkpoint(flow, SPACE, gamma_min=-6.0)
    assert model.end_gammas().tolist() == [-6.0, 14.0]
    assert "γ_1 = -6" in model.origin["given"]["start"]
    assert df.evaluate(model, x, visits=4).nelbo.value > 0
    chosen = load_checkpoint(flow, SPACE, reference=x)
    assert "2 training items" in chosen.origin["given"]["start"]
    assert "start" not in chosen.origin["assumed"]
    with pytest.raises(DiffusionalError, match="reference"):
        load_checkpoint(flow, SPACE, reference=x, gamma_min=-6.0)
    other = load_checkpoint(flow, SPACE, time=lambda log_snr: torch.sigmoid(-log_snr / 2))
    assert "time" in other.origin["given"]
    with pytest.raises(DiffusionalError, match="openai"):
        load_checkpoint(flow, SPACE, decoder="openai")


def test_score_models_have_data_from_0_to_1(tmp_path: Path) -> None:
    folder = saved(tmp_path, diffusers.schedulers.ScoreSdeVeScheduler(num_train_timesteps=T, sigma_max=10.0))
    model = load_checkpoint(folder)
    assert (model.space.low, model.space.high) == (0.0, 1.0)
    assert model.last_variance == pytest.approx(100 / 101)
    x, noise = model.space.encode(torch.zeros(B, 1, 4, 4, dtype=torch.long), torch.float64), items()[1]
    terms = model.terms(x, noise)
    sigma = torch.tensor(10.0, dtype=torch.float64)
    # KL_T in the raw coordinates, where the scale cancels: N(x, σ² I) from N(0, σ² I).
    torch.testing.assert_close(terms.prior, kl(x, sigma.square(), 0 * x, sigma.square()), rtol=1e-9, atol=1e-12)
    # and KL_{T−1} from the score, by the ancestral step x + (σ_t² − σ_s²) score.
    grid = torch.exp(torch.linspace(torch.tensor(0.01).log().item(), sigma.log().item(), T, dtype=torch.float64))
    s, t = grid[-2], grid[-1]
    z = x + t * noise[-1]
    score = model.denoiser.module.network(z, t.expand(B)).sample
    mean_q = (s**2 * z + (t**2 - s**2) * x) / t**2
    variance = s**2 * (t**2 - s**2) / t**2
    wanted = kl(mean_q, variance, z + (t**2 - s**2) * score, variance)
    torch.testing.assert_close(terms.kl[:, -1], wanted, rtol=1e-6, atol=1e-9)


def test_shapes_that_a_network_does_not_declare(tmp_path: Path) -> None:
    folder = saved(tmp_path / "none", network=unet(sample_size=None))
    with pytest.raises(DiffusionalError, match="sample_size"):
        load_checkpoint(folder)
    more = saved(tmp_path / "more", network=unet(in_channels=2))
    with pytest.raises(DiffusionalError, match="1"):
        load_checkpoint(more)
    smaller = load_checkpoint(saved(tmp_path / "whole"), df.Discrete((1, 8, 8), 16))
    assert any("8×8" in note and "4×4" in note for note in smaller.origin["notes"])


def _cached(home: Path, repository: str, folder: Path, commit: str) -> None:
    """Put a folder into a Hub cache, as huggingface_hub lays it out."""
    root = home / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(folder, root / "snapshots" / commit)


def test_hub_ids_are_downloaded_by_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a local cache, offline, and with only the files that are needed."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    _cached(tmp_path / "hub", "someone/ddpm", saved(tmp_path / "model"), commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []
    download = huggingface_hub.snapshot_download

    def recorded(repository: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return download(repository, **(options | {"cache_dir": tmp_path / "hub"}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    model = load_checkpoint("someone/ddpm", SPACE)
    assert model.origin["source"] == "someone/ddpm"
    assert model.origin["revision"] == commit
    assert asked[1] == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert len(asked) == 2
    assert not any("vae" in pattern for patterns in asked for pattern in patterns)
    with pytest.raises(DiffusionalError, match=r"someone/else.*Hub"):
        load_checkpoint("someone/else", SPACE)


def test_the_wrong_function_names_the_right_one(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(DiffusionalError, match="load_checkpoint"):
        df.load(folder)
    with pytest.raises(DiffusionalError, match="load_checkpoint"):
        df.load(folder / "unet")
    with pytest.raises(DiffusionalError, match="load_checkpoint"):
        check_model(unet(dtype=torch.float32))
    with pytest.raises(DiffusionalError, match=r"load_checkpoint|df\.wrap"):
        df.Denoiser(unet(dtype=torch.float32))(torch.zeros(2, 1, 4, 4), torch.zeros(2))
    assert isinstance(DDPMPipeline.from_pretrained(folder).unet, UNet2DModel)
