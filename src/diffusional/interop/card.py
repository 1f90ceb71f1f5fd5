"""The model card of an exported model, README.md: how to sample it, and its bound with everything that the number rests on."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from diffusional.evaluation.result import Evaluation
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel
from diffusional.space import Discrete

_TASK = "unconditional-image-generation"


def model_card(
    name: str,
    model: DiffusionModel,
    settings: Mapping[str, Any],
    evaluation: Evaluation | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of README.md, with metadata as the Hub reads them (`model-index`).

    Args:
        name: of the model.
        model: the model.
        settings: of its DDPMScheduler.
        evaluation: its bound; without it the card has no number.
        trained_on: data.json of its run.
    """
    space: Any = model.space
    assert isinstance(space, Discrete)
    shape = "×".join(map(str, space.shape))
    lines = [
        *_opening(name, _metadata(name, evaluation)),
        f"A diffusion model of {shape} images with {space.levels} levels, T = {model.steps} latents, exported by "
        "[diffusional](https://pypi.org/project/diffusional). Its files are a pipeline of diffusers:",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{name}")',
        f'images = pipeline(batch_size=4, num_inference_steps={model.steps}, output_type="np").images',
        "```",
        "",
        f"The network predicts {_PREDICTED[settings['prediction_type']]}, and the variance of a step is "
        f"`{settings['variance_type']}`. The last step of the pipeline is the mean of p(x|z_1), not a draw.",
        "",
    ]
    lines += [
        *_trained_on(trained_on),
        *_bound(evaluation, "This model was exported"),
        "",
        "To evaluate it (`diffusional.json` has the levels of the data and the decoder):",
        "",
        f"    diffusional evaluate {name} --data DATA",
        "",
    ]
    return "\n".join(lines)


def custom_card(
    name: str,
    model: DiffusionModel,
    sampling: Mapping[str, Any],
    evaluation: Evaluation | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of README.md of a model with a pipeline of its own, like `model_card`; `sampling` are the settings of the pipeline."""
    space: Any = model.space
    shape, names = "×".join(map(str, space.shape)), sampling["id2label"]
    call = f'class_labels=["{names[0]}"]' if names else "batch_size=4"
    lines = [
        *_opening(name, _metadata(name, evaluation)),
        f"A diffusion model of {shape} images with {space.levels} levels, T = {model.steps or '∞'} latents, exported by "
        "[diffusional](https://pypi.org/project/diffusional). No scheduler of diffusers expresses it: `pipeline.py` in this folder samples it, "
        "and needs only torch and diffusers. Read that file before you run it.",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)',
        f"images = pipeline({call}).images",
        "```",
        "",
        f"The network predicts {_READ.get(sampling['predicts'], sampling['predicts'])}, at {len(sampling['gammas'])} levels of noise; the variance "
        f"of a step is `{sampling['variance']}`. The image is the mean of p(x|z_1), not a draw.",
        "",
    ]
    if names:
        lines += [f"Classes: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}.", ""]
    lines += [*_trained_on(trained_on), *_bound(evaluation, "This model was exported")]
    return "\n".join([*lines, "", "`diffusional` evaluates the run that it was exported from, not this folder.", ""])


_READ = {"noise": "the noise ε", "data": "x", "v": "v = α ε − σ x", "levels": "a distribution over the levels"}


def run_card(
    repo_id: str,
    model: LatentVariableModel,
    config: Mapping[str, Any],
    evaluation: Evaluation | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of README.md of a run that is pushed to the Hub, with metadata as the Hub reads them (`model-index`).

    Args:
        repo_id: owner/name.
        model: its model.
        config: its config.json.
        evaluation: its bound; without it the card has no number.
        trained_on: its data.json.
    """
    name = repo_id.rpartition("/")[2]
    kind, space = type(model).__name__, model.space
    levels = f"{space.levels} levels" if space.levels else "real values"
    latents = "" if model.visited() is None else f", T = {model.steps or '∞'} latents"
    weights = sum(p.numel() for p in model.parameters())
    lines = [
        *_opening(name, _metadata(name, evaluation, library="diffusional", task=None)),
        f"A {kind} of items of {'×'.join(map(str, space.shape))} with {levels}{latents}, {weights:,} weights, trained by "
        "[diffusional](https://pypi.org/project/diffusional). Its files are a run:",
        "",
        f"    diffusional pull {repo_id} runs/{name}",
        f"    diffusional evaluate runs/{name}",
        "",
        "```python",
        "import diffusional as df",
        "",
        f'model = df.load(df.pull("{repo_id}", "runs/{name}"))',
        "```",
        "",
        *_trained_on(trained_on),
        *_bound(evaluation, "This run was pushed"),
        "",
        "## Config",
        "",
        "```json",
        json.dumps(config, indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _opening(name: str, metadata: str) -> list[str]:
    """Return the metadata and the title of a card."""
    return ["---", metadata, "---", "", f"# {name}", ""]


def _trained_on(data: Mapping[str, Any] | None) -> list[str]:
    if data is None or not data.get("name"):
        return []
    lines = ["## Training data", "", f"{_file(data['name'])}, with these fingerprints (SHA-256) of its splits:", ""]
    return [*lines, *(f"- {split}: {_counted(data, split)}`{digest}`" for split, digest in data["sha256"].items()), ""]


_PREDICTED = {"epsilon": "the noise ε", "sample": "x", "v_prediction": "v = α ε − σ x"}


def _counted(data: Mapping[str, Any], split: str) -> str:
    n = data.get("items", {}).get(split)
    return "" if n is None else f"{n:,} items, "


def _metadata(name: str, evaluation: Evaluation | None, library: str = "diffusers", task: str | None = _TASK) -> str:
    """Return the YAML of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    results: Any = None
    if evaluation is not None:
        about, nelbo = evaluation.about, evaluation.nelbo.to("bits/dim", evaluation.dimensions)
        data = _named(about) or "data"
        results = [
            EvalResult(
                task_type=task or "density-estimation",
                dataset_type=data,
                dataset_name=data,
                dataset_split=about.get("split"),
                metric_type="bits/dim",
                metric_name="NELBO, bits/dim",
                metric_value=nelbo.value,
                metric_args={
                    name: value
                    for name, value in (
                        ("error", nelbo.error),
                        ("item_error", nelbo.item_error),
                        ("items", evaluation.nelbo.n),
                        ("levels", evaluation.provenance.get("levels")),
                        ("network_evaluations", evaluation.nelbo.network_evaluations),
                        ("data_sha256", evaluation.provenance.get("data_sha256")),
                        ("data_version", _version(evaluation.provenance)),
                    )
                    if value is not None and value == value  # the error over one item is NaN
                },
            )
        ]
    card = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=[*dict.fromkeys([library, "diffusional", "likelihood"])],
        model_name=name,
        eval_results=results,
    )
    return card.to_yaml()


def _bound(evaluation: Evaluation | None, done: str) -> list[str]:
    """Return the section about the bound; without an evaluation it states that `done` was without one."""
    title = ["## Bound on the likelihood", ""]
    if evaluation is None:
        return [*title, f"{done} without an evaluation."]
    about, provenance, d = evaluation.about, evaluation.provenance, evaluation.dimensions
    bound = evaluation.nelbo.to("bits/dim", d)
    where = ", ".join(filter(None, (_named(about), about.get("split"))))
    low, high = evaluation.interval(unit="bits/dim")
    lines = [
        f"**{bound.value:.4f} ± {bound.error:.4f} bits/dim** on {where or 'the data'}: an upper bound on −log₂ p(x)/D, with its Monte Carlo "
        f"error (95 %: {low:.4f} to {high:.4f}); the items themselves vary it by ± {bound.item_error:.4f}.",
        "",
        "| term | nats | bits/dim |",
        "|---|---|---|",
    ]
    for name, term in [*evaluation.terms.items(), ("NELBO", evaluation.nelbo)]:
        lines.append(f"| {name} | {_shown(term)} | {_shown(term.to('bits/dim', d))} |")
    levels = provenance.get("levels")
    facts = [
        f"data: {where or 'unknown'}, {evaluation.nelbo.n:,} items, SHA-256 `{provenance.get('data_sha256', 'unknown')}`",
        f"levels of the data: {levels if levels is not None else 'none, a density'}",
        f"latents: T = {provenance.get('latents') or '∞'}",
        f"network evaluations: {evaluation.nelbo.network_evaluations:,}",
        f"weights: SHA-256 `{provenance.get('weights_sha256', 'unknown')}`",
        f"command: `{short_command(provenance.get('command', ''))}`",
        f"versions: {json.dumps(provenance.get('versions', {}))}",
    ]
    if about.get("trained_on"):
        facts.append(f"**{about['trained_on']} of the items were also trained on**")
    facts += [f"caveat: {text}" for text in evaluation.caveats]
    return [*title, *lines, "", *(f"- {fact}" for fact in facts)]


def _version(provenance: Mapping[str, Any]) -> str | None:
    """Return the name of the known version of the data, with how it was recognised; None if it is not known."""
    version = provenance.get("data_version")
    return (
        None if not isinstance(version, Mapping) else f"{version.get('name')}, recognised {version.get('recognised')}"
    )


def _named(about: Mapping[str, Any]) -> str | None:
    """Return the name of the data; of a file, without its folder."""
    name = about.get("data")
    return _file(name) if isinstance(name, str) else name


def _file(name: str) -> str:
    """Return the name of data; of a file, without its folder."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _shown(one: Estimate) -> str:
    return f"{one.value:.4f} ± {one.error:.4f}"


def short_command(line: str) -> str:
    """Return a command without the folder of its program."""
    program, _, rest = line.partition(" ")
    path = PurePath(program)
    # `python -m diffusional` is the same program.
    name = path.parent.name if path.name == "__main__.py" else path.name
    return " ".join(filter(None, (name, rest))) or "unknown"
