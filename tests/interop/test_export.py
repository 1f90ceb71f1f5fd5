"""Export to diffusers: the same bound after the way out and back, a pipeline that samples, and refusals that write nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from huggingface_hub import ModelCard

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.interop.export import betas_of, parts_of
from diffusional.models.denoiser import clipped
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.time import Affine, TrainedIndex
from diffusional.networks.diffusers import FromDiffusers
from diffusional.space import Space
from interop.pipelines import saved, unet

T = 5
SPACE = df.Discrete((1, 4, 4), 16)
COSINE = schedule.cosine(T)


def model_of(
    predicts: str = "v",
    variance: str = "posterior",
    levels: schedule.Schedule = COSINE,
    decoder: Any = None,
    space: Any = SPACE,
    first: int = 0,
    multiple: int = 1,
    last_variance: float = 1.0,
    **options: Any,
) -> DiffusionModel:
    """A model whose network is a UNet2DModel with random weights."""
    learns = variance == "learned"
    network = FromDiffusers(unet(2 if learns else 1, torch.float32, **options), multiple=multiple)
    time = TrainedIndex(levels, first) if levels.steps is not None else Affine()
    denoiser = df.Denoiser(network, predicts, time=time, learns_variance=learns)
    process = df.GaussianDiffusion(levels)
    if decoder is None:
        least = float(process.posterior(torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), 1).variance.detach())
        decoder = likelihood.DiscretizedGaussian(space, least=least if learns else None)
    return DiffusionModel(process, denoiser, decoder, variance, last_variance).eval()


def items(space: Space = SPACE) -> torch.Tensor:
    raw = torch.randint(0, space.levels or 2, (3, *space.shape), generator=torch.Generator().manual_seed(1))
    return space.encode(raw)


def agrees(model: DiffusionModel, folder: Path) -> DiffusionModel:
    """Every term of the bound is the same after the way out and back."""
    found = df.load_checkpoint(df.export(model, folder))
    assert found.space == model.space
    assert found.steps == model.steps
    with torch.no_grad():
        before, after = (one.elbo(items(), torch.Generator().manual_seed(0)) for one in (model, found))
    for name in ("reconstruction", "kl", "prior"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-6, atol=0)
    first, second = (df.evaluate(one, items(), draws=1).nelbo.value for one in (model, found))
    assert second == pytest.approx(first, rel=1e-6)
    return found


@pytest.mark.parametrize("predicts", ["noise", "data", "v"])
@pytest.mark.parametrize("variance", ["posterior", "transition", "learned"])
def test_every_term_is_the_same_after_export(predicts: str, variance: str, tmp_path: Path) -> None:
    agrees(model_of(predicts, variance), tmp_path / "pipeline")


@pytest.mark.parametrize(
    "levels",
    [
        schedule.linear(T, 0.01, 0.4),
        schedule.log_snr_linear(-13.3, 5.0, T),
        schedule.learned_betas(T, 0.01),
        schedule.from_betas([0.01, 0.2, 0.5, 1.0]),
        schedule.cosine(20).regrid(T),
    ],
    ids=["linear", "log SNR", "learned betas", "zero terminal SNR", "regridded"],
)
def test_any_schedule_of_levels_is_exported_by_its_betas(levels: schedule.Schedule, tmp_path: Path) -> None:
    found = agrees(model_of(levels=levels), tmp_path / "pipeline")
    torch.testing.assert_close(found.process.schedule.grid(), levels.grid().detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("variance", "decoder"),
    [
        ("posterior", likelihood.LevelPosterior(SPACE)),
        ("posterior", likelihood.DiscretizedGaussian(SPACE, 0.03)),
        ("learned", likelihood.DiscretizedGaussian(SPACE, 0.03)),
        ("learned", likelihood.DiscretizedGaussian(SPACE)),
    ],
)
def test_the_decoder_is_exported(variance: str, decoder: Any, tmp_path: Path) -> None:
    found = agrees(model_of(variance=variance, decoder=decoder), tmp_path / "pipeline")
    assert {"space", "decoder"} <= found.origin["config"].keys()
    assert "diffusional.json" in found.origin["files"]
    # An option of the caller has precedence.
    other = df.load_checkpoint(tmp_path / "pipeline", levels=4, decoder="openai")
    assert other.space.levels == 4
    assert {"space", "decoder"} <= other.origin["given"].keys()


def test_binary_data_with_a_bernoulli_decoder(tmp_path: Path) -> None:
    space = df.space.binary((1, 4, 4))
    found = df.load_checkpoint(df.export(model_of(decoder=likelihood.Bernoulli(space)), tmp_path / "pipeline"))
    assert isinstance(found.likelihood, likelihood.Bernoulli)
    assert found.space == space


def test_clipping_is_exported(tmp_path: Path) -> None:
    plain = model_of("noise")
    model = DiffusionModel(plain.process, clipped(plain.denoiser, SPACE), plain.likelihood)
    found = agrees(model, tmp_path / "pipeline")
    assert "clip_sample=True" in found.origin["config"]["clipping"]
    assert parts_of(plain)[1]["clip_sample"] is False


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample", "clip_sample": False},
        {"prediction_type": "v_prediction", "variance_type": "learned_range", "clip_sample_range": 1.5},
        {"thresholding": True, "clip_sample": False, "variance_type": "fixed_large"},
    ],
)
def test_a_checkpoint_leaves_as_it_came(options: dict[str, Any], tmp_path: Path) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=T, **options)
    network = unet(2 if options.get("variance_type") == "learned_range" else 1, torch.float32)
    model = df.load_checkpoint(saved(tmp_path / "theirs", scheduler, network), SPACE)
    agrees(model, tmp_path / "ours")
    out = json.loads((tmp_path / "ours" / "scheduler" / "scheduler_config.json").read_text())
    for name in ("prediction_type", "variance_type", "clip_sample", "thresholding"):
        assert out[name] == scheduler.config[name]


def test_diffusers_loads_and_samples_it(tmp_path: Path) -> None:
    model = model_of("noise", "learned")
    pipeline: Any = DiffusionPipeline.from_pretrained(df.export(model, tmp_path / "pipeline"))
    assert isinstance(pipeline, DDPMPipeline)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, num_inference_steps=T, output_type="np").images
    assert images.shape == (2, 4, 4, 1)
    assert np.isfinite(images).all()
    assert sorted(path.suffix for path in (tmp_path / "pipeline" / "unet").iterdir()) == [".json", ".safetensors"]
    # A step of the scheduler, whose tables are float32, has the mean and the variance of the model's.
    z = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (2, 4):
        with torch.no_grad():
            output, ours = pipeline.unet(z, t - 1).sample, model.step(z, torch.tensor([t - 1]))
            draws = [
                pipeline.scheduler.step(output, t - 1, z, torch.Generator().manual_seed(0)).prev_sample,
                z.new_empty(z.shape).normal_(generator=torch.Generator().manual_seed(0)),
            ]
        expected = ours.mean + ours.log_variance.div(2).exp() * draws[1]
        torch.testing.assert_close(draws[0], expected, rtol=1e-3, atol=1e-4)


def test_the_size_of_the_images_is_that_of_the_data(tmp_path: Path) -> None:
    model = model_of(sample_size=8)
    pipeline: Any = DiffusionPipeline.from_pretrained(df.export(model, tmp_path / "pipeline"))
    assert tuple(pipeline.unet.config.sample_size) == (4, 4)
    assert model.denoiser.module.network.config.sample_size == 8


def _scored() -> DiffusionModel:
    return model_of("score")


def _not_markov() -> DiffusionModel:
    model = model_of()
    process = df.NonMarkovDiffusion(COSINE, eta=0.0)
    return DiffusionModel(process, model.denoiser, model.likelihood)


def _unused_variance() -> DiffusionModel:
    model = model_of(variance="learned")
    return DiffusionModel(model.process, model.denoiser, model.likelihood)


def _own_network() -> DiffusionModel:
    forward = df.GaussianDiffusion(COSINE)
    denoiser = df.Denoiser(lambda z, t: 0 * z, "v", time=TrainedIndex(COSINE))
    return DiffusionModel(forward, denoiser, likelihood.LevelPosterior(SPACE))


REFUSED = {
    "score": (_scored, "score"),
    "continuous time": (lambda: model_of(levels=schedule.log_snr_linear(-9.0, 9.0)), "continuous"),
    "another T": (lambda: model_of().regrid(3), "another time"),
    "levels from 1": (lambda: model_of(first=1), "another time"),
    "not Markov": (_not_markov, "Markov"),
    "last variance": (lambda: model_of(last_variance=0.9), r"0\.9"),
    "padded": (lambda: model_of(multiple=8), "multiples of 8"),
    "classes": (lambda: model_of(num_class_embeds=3), "class"),
    "range": (lambda: model_of(space=df.Discrete((1, 4, 4), 16, 0.0, 1.0)), "-1 to 1"),
    "continuous data": (
        lambda: model_of(decoder=likelihood.GaussianLikelihood(df.Continuous((1, 4, 4)))),
        "-1 to 1",
    ),
    "unused variance": (_unused_variance, "variance"),
    "own network": (_own_network, "UNet2DModel"),
    "floor": (lambda: model_of(decoder=likelihood.Bernoulli(df.space.binary((1, 4, 4)), 0.1)), "Bernoulli"),
    "least variance": (
        lambda: model_of(variance="learned", decoder=likelihood.DiscretizedGaussian(SPACE, least=1e-5)),
        "learned variance",
    ),
    "channels": (lambda: model_of(space=df.Discrete((2, 4, 4), 16)), "channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_scheduler_expresses_is_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    with pytest.raises(DiffusionalError, match=words):
        df.export(make(), tmp_path / "pipeline")
    assert not list(tmp_path.iterdir())


def test_models_of_another_kind_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    bits = df.BinomialDiffusionModel(df.BinomialDiffusion.constant(4), lambda z, t: 0 * z, df.space.binary((4,)))
    with pytest.raises(DiffusionalError, match="BinomialDiffusionModel"):
        df.export(bits, tmp_path / "pipeline")
    with pytest.raises(DiffusionalError, match="diffusers"):
        df.export(model_of(), tmp_path / "pipeline", to="onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_that_exists_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    for name in ("file", "empty", "link"):
        with pytest.raises(DiffusionalError, match="exists"):
            df.export(model_of(), tmp_path / name)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusional.interop.stated.save_json", fails)
    with pytest.raises(DiffusionalError, match="No space left"):
        df.export(model_of(), tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_betas_have_the_gamma_of_the_schedule() -> None:
    levels = schedule.log_snr_linear(-13.3, 9.0, 1000)
    torch.testing.assert_close(schedule.from_betas(betas_of(levels)).grid(), levels.grid(), rtol=1e-10, atol=1e-10)


def test_the_card_has_the_ledger(tmp_path: Path) -> None:
    model = model_of()
    result = df.evaluate(model, items(), draws=2)
    folder = df.export(model, tmp_path / "pipeline", evaluation=result)
    card = ModelCard.load(folder / "README.md")
    (entry,) = card.data.eval_results or []
    bound = result.nelbo.to("bits/dim", SPACE.dimensions)
    assert entry.metric_value == pytest.approx(bound.value)
    assert entry.metric_args["error"] == pytest.approx(bound.error)
    assert entry.metric_args["levels"] == 16
    for text in (
        f"{bound.value:.4f} ± {bound.error:.4f} bits/dim",
        f"{result.terms['kl'].value:.4f}",
        result.provenance["data_sha256"],
        f"{result.nelbo.network_evaluations:,}",
    ):
        assert text in card.text
    without = ModelCard.load(df.export(model, tmp_path / "bare") / "README.md")
    assert without.data.eval_results is None
    assert "without an evaluation" in without.text


def test_an_evaluation_of_another_model_is_refused(tmp_path: Path) -> None:
    result = df.evaluate(model_of("noise", decoder=likelihood.LevelPosterior(SPACE)), items(), draws=1)
    other = model_of()
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    with pytest.raises(DiffusionalError, match="weights"):
        df.export(other, tmp_path / "pipeline", evaluation=result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"space": {"kind": "discrete"}},
        {"space": df.Continuous((1, 4, 4)).to_dict()},
        {"decoder": 3},
        {"decoder": "unheard"},
        {"decoder_variance": "small"},
    ],
)
def test_a_damaged_statement_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = df.export(model_of(), tmp_path / "pipeline")
    record = json.loads((folder / "diffusional.json").read_text())
    (folder / "diffusional.json").write_text(json.dumps(record | change))
    with pytest.raises(DiffusionalError, match=r"format|space|decoder"):
        df.load_checkpoint(folder)
    # Without it, it is a pipeline as any other.
    (folder / "diffusional.json").unlink()
    assert df.load_checkpoint(folder).space.levels == 256
    shutil.rmtree(folder)
