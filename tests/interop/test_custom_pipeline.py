"""Export with a pipeline of its own: loaded by diffusers, its latents are those of our sampler."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import regridded
from diffusional.interop import custom_pipeline
from diffusional.models.denoiser import clipped
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.time import Affine, TrainedIndex
from diffusional.networks.diffusers import FromDiffusers
from interop.pipelines import saved, unet

SPACE = df.Discrete((1, 6, 4), 5)


def model_of(
    predicts: str = "v",
    *,
    levels: schedule.Schedule | None = None,
    variance: str = "posterior",
    head: str = "categorical",
    clip: bool = False,
    last_variance: float = 1.0,
    **options: Any,
) -> DiffusionModel:
    levels = schedule.cosine(6) if levels is None else levels
    learns = variance == "learned"
    outputs = (5 if head == "categorical" else 2) if predicts == "levels" else 1
    network = FromDiffusers(unet(outputs + learns, torch.float32, **options), multiple=4)
    time = TrainedIndex(levels) if levels.steps is not None else Affine(-10.0, 500.0)
    denoiser = df.Denoiser(network, predicts, space=SPACE, head=head, time=time, learns_variance=learns)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if clip:
        denoiser = clipped(denoiser, SPACE)
    decoder = likelihood.NetworkLevels(SPACE) if predicts == "levels" else likelihood.LevelPosterior(SPACE)
    return DiffusionModel(df.GaussianDiffusion(levels), denoiser, decoder, variance, last_variance).eval()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def loaded(folder: Path) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CASES: dict[str, dict[str, Any]] = {
    "v": {},
    "noise, clipped": {"predicts": "noise", "clip": True},
    "data, transition": {"predicts": "data", "variance": "transition"},
    "score": {"predicts": "score", "levels": schedule.linear(5, 0.01, 0.4)},
    "learned variance": {"predicts": "noise", "variance": "learned"},
    "levels": {"predicts": "levels"},
    "logistic levels": {"predicts": "levels", "head": "logistic"},
    "learned schedule": {"levels": schedule.learned_betas(5, 0.01)},
    "continuous time": {"levels": schedule.log_snr_linear(-7.0, 6.0)},
    "zero terminal SNR": {"levels": schedule.from_betas([0.1, 0.5, 1.0])},
    "variance of z_T": {"last_variance": 0.7},
    "classes": {"num_class_embeds": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_its_latents_are_those_of_our_sampler(case: str, tmp_path: Path) -> None:
    model = model_of(**CASES[case])
    classes = CASES[case].get("num_class_embeds")
    model.classes = ("cat", "dog", "eel") if classes else ()
    steps = 7 if model.steps is None else None
    folder = df.export(model, tmp_path / "model", to="custom", steps=steps)
    pipeline = loaded(folder)
    call: dict[str, Any] = {"class_labels": ["dog", 2]} if classes else {"batch_size": 2}
    latents, images = (
        pipeline(generator=torch.Generator().manual_seed(3), output_type=kind, **call).images
        for kind in ("latent", "pt")
    )
    own = model if steps is None else regridded(model, steps)
    condition = torch.tensor([1, 2]) if classes else None
    z_1 = list(own.walk_back(2, torch.Generator().manual_seed(3), condition))[-2]
    torch.testing.assert_close(latents, z_1, rtol=2e-5, atol=2e-6)
    with torch.no_grad():
        gamma = own.process.schedule.ends()[0].expand(2)
        torch.testing.assert_close(images, own.denoiser(z_1, gamma, condition).data.float(), rtol=2e-4, atol=2e-5)
    np = pipeline(generator=torch.Generator().manual_seed(3), output_type="np", **call).images
    assert np.shape == (2, 6, 4, 1)
    assert float(np.min()) >= 0
    assert len(pipeline(**call).images) == 2


def test_the_file_needs_only_torch_and_diffusers(tmp_path: Path) -> None:
    """In a process that cannot import this library."""
    folder = df.export(model_of(), tmp_path / "model", to="custom")
    assert (folder / "pipeline.py").read_bytes() == Path(custom_pipeline.__file__).read_bytes()
    code = f"""
import sys
sys.modules["diffusional"] = None
from diffusers import DiffusionPipeline
folder = {str(folder)!r}
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
print(pipeline(output_type="pt").images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([1, 1, 6, 4])", done.stderr


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    plain, labelled = model_of(), model_of(num_class_embeds=3)
    pipelines = [loaded(df.export(one, tmp_path / name, to="custom")) for name, one in (("a", plain), ("b", labelled))]
    with pytest.raises(ValueError, match="no class_labels"):
        pipelines[0](class_labels=[0])
    with pytest.raises(ValueError, match="class_labels"):
        pipelines[1]()
    assert pipelines[1](class_labels=["2"], output_type="pt").images.shape[0] == 1


def test_the_card_and_the_record(tmp_path: Path) -> None:
    model = model_of("levels", levels=schedule.log_snr_linear(-7.0, 6.0))
    x = SPACE.encode(torch.randint(0, 5, (4, *SPACE.shape), generator=torch.Generator().manual_seed(0)))
    result = df.evaluate(model, x, visits=2)
    folder = df.export(model, tmp_path / "model", to="custom", evaluation=result, steps=5)
    card = ModelCard.load(folder / "README.md")
    (metric,) = card.data.eval_results or []
    assert metric.metric_value == pytest.approx(result.nelbo.to("bits/dim", 24).value)
    assert "trust_remote_code=True" in card.text
    assert len(json.loads((folder / "model_index.json").read_text())["sampling"]["gammas"]) == 5
    with pytest.raises(DiffusionalError, match="pipeline of its own"):
        df.load_checkpoint(folder)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    levels = schedule.cosine(4)
    own = df.Denoiser(lambda z, s: z, "noise")
    cases = [
        (DiffusionModel(df.GaussianDiffusion(levels), own, likelihood.LevelPosterior(SPACE)), "UNet2DModel"),
        (df.load_checkpoint(saved(tmp_path / "theirs")), "--to diffusers"),
    ]
    for model, match in cases:
        with pytest.raises(DiffusionalError, match=match):
            df.export(model, tmp_path / "model", to="custom")
    with pytest.raises(DiffusionalError, match="steps=5"):
        df.export(model_of(), tmp_path / "model", steps=5)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
