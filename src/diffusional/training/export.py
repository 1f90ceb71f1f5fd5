"""`export`: a model or a run as a pipeline of diffusers, with a model card of its bound."""

import warnings
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import tensor_hash
from diffusional.evaluation.result import Evaluation
from diffusional.files import load_json
from diffusional.interop.card import custom_card, model_card
from diffusional.interop.export import for_samples, parts_of, sampling_of, write_custom, write_pipeline
from diffusional.models.base import LatentVariableModel
from diffusional.training.folder import Run, load_run
from diffusional.training.run import DATA
from diffusional.words import check_word

FORMATS = ("diffusers", "custom")
# Splits of a run whose evaluation may be the card's, in this order.
_SPLITS = ("test", "validation")


def export(
    model_or_run: LatentVariableModel | Run | str | Path,
    folder: str | Path,
    *,
    to: str = "diffusers",
    evaluation: Evaluation | None = None,
    steps: int | None = None,
) -> Path:
    """Write a model as a pipeline of diffusers, which `DiffusionPipeline.from_pretrained(folder)` loads and samples.

    `df.load_checkpoint(folder)` reads it back, with the same bound: diffusional.json in the folder has the levels of the data and the decoder.
    README.md is a model card with the terms of the bound and their errors, and what they rest on.

    Args:
        model_or_run: a DiffusionModel whose network is a UNet2DModel (model.network="ddpm"), or a run, or the folder of one.
        folder: the new folder.
        to: "diffusers", a DDPMPipeline; or "custom", with a pipeline.py in the folder that needs only torch and diffusers, for models that no
            scheduler expresses: levels heads, class labels, learned schedules, continuous time, images padded inside the model. It is loaded by
            `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`.
        evaluation: the bound on the card. By default that of the run's folder, of the test split or else of the validation split.
        steps: with to="custom", the T of samples, by default that of the model, or 250 in continuous time.

    Returns the folder.
    Raises DiffusionalError with the reason for a model that no DDPMPipeline expresses: another network, predictions of levels or scores,
    continuous time, class labels, images padded inside the model, data other than images with levels from −1 to 1; for an evaluation of other
    weights or another T; and for a folder that exists. Nothing is written then.

    >>> import tempfile
    >>> import diffusional as df
    >>> from diffusional.training.build import build_model
    >>> config = df.Config(model=df.training.ModelConfig(network="ddpm", widths=(8,), attention=(), predicts="v"),
    ...                    schedule=df.training.ScheduleConfig(kind="cosine", steps=10))
    >>> model = build_model(config, df.Discrete((1, 8, 8), 17))
    >>> folder = export(model, Path(tempfile.mkdtemp()) / "digits")
    >>> df.load_checkpoint(folder).space == model.space
    True
    """
    check_word("to", to, FORMATS)
    run: Run | None = None
    if isinstance(model_or_run, str | Path):
        run = load_run(model_or_run)
    elif isinstance(model_or_run, Run):
        run = model_or_run
    model: Any = model_or_run if run is None else run.model
    custom = to == "custom"
    if steps is not None and not custom:
        raise DiffusionalError(
            f'steps={steps} was given for to="diffusers", whose T is that of the model; leave it out'
        )
    drawn = for_samples(model, steps) if custom else model
    settings = sampling_of(drawn)[1] if custom else parts_of(model)[1]
    if evaluation is not None:
        if (why := _mismatch(evaluation, model)) is not None:
            raise DiffusionalError(f"the evaluation is not one of this model: {why}. Evaluate the model again")
    elif run is not None:
        evaluation = own_evaluation(run.path, model)
    about = load_json(run.path / DATA) if run is not None and (run.path / DATA).exists() else None
    target = Path(folder)
    if custom:
        write_custom(drawn, target, custom_card(target.name, model, settings, evaluation, about))
    else:
        write_pipeline(model, target, model_card(target.name, model, settings, evaluation, about))
    return target


def _mismatch(evaluation: Evaluation, model: LatentVariableModel) -> str | None:
    """Return why a record is not one of the model; None if it is."""
    weights, latents = (evaluation.provenance.get(key) for key in ("weights_sha256", "latents"))
    if weights != tensor_hash(model.state_dict()):
        return "its weights are others"
    return None if latents == model.steps else f"it has T = {latents}, the model T = {model.steps}"


def own_evaluation(run: Path, model: LatentVariableModel) -> Evaluation | None:
    """Return the evaluation in a run's folder, of its test split or else of its validation split; None if there is none of these weights.

    Warns of an evaluation of other weights.
    """
    for split in _SPLITS:
        path = run / f"evaluation-{split}.json"
        if not path.exists():
            continue
        found = Evaluation.from_json(load_json(path), str(path))
        if (why := _mismatch(found, model)) is None:
            return found
        warnings.warn(f"{path} is not on the model card: {why}. Evaluate the run again", stacklevel=3)
    return None
