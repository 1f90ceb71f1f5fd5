"""Checkpoints from elsewhere on the command line: `evaluate` takes them like runs, and `import` makes a run of one."""

import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusional.cli.commands import Check, Classify, Evaluate, Import, Score, TextModelOptions
from diffusional.cli.console import Result, first, say, working
from diffusional.cli.options import changed, typed
from diffusional.cli.text_models import checked_shift, is_text_model, refuse_text_options, text_model
from diffusional.errors import DiffusionalError, LevelsError

if TYPE_CHECKING:
    from diffusional.cli.items import ChosenItems
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.models.masked import MaskedDiffusion
    from diffusional.space import Space
    from diffusional.training.config import Config
    from diffusional.training.folder import Run
    from diffusional.training.run import RunRecord

# Files of which a folder of diffusers has one: of a pipeline, of a model, and of a checkpoint in training.
_MARKS = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json", "prior/config.json")
# Items of --training-data on which p is fitted.
_FITTED = 512


def opened(
    path: Path, command: Evaluate | Check | Score | Classify, space: "Space | None" = None
) -> "tuple[Run, bool]":
    """Return a run, or a checkpoint in the form of a run, and whether it is the latter.

    Args:
        path: a run folder, a folder of diffusers, or a Hub id.
        command: with the options for checkpoints.
        space: of the other model, if two are compared.

    Raises DiffusionalError for options that a run does not have, and for a checkpoint without --data.
    """
    from diffusional.interop.imported import is_imported, load_reference
    from diffusional.training.folder import Run, load_run

    text = changed(getattr(command, "text_options", TextModelOptions()))
    given = [*changed(command.checkpoint_options), *text]
    if not is_foreign(path):
        if not path.exists():
            raise DiffusionalError(
                f"{path} is not a folder; give the run folder that `diffusional train` wrote, or a checkpoint: a folder that diffusers "
                "wrote, or a Hub id, owner/name"
            )
        _refuse_other_code(path)
        run = load_run(path)
        if not given:
            return run, False
        if is_imported(path):
            if text:
                raise DiffusionalError(
                    f"{typed(text)} cannot be changed for {path}, which was imported with its own; import the checkpoint again"
                )
            options = _options(command)
            options |= _reference(command, run.record, run.model, options)
            return Run(run.record, loaded=load_reference(path, run.space, **options)), True
        raise DiffusionalError(
            f"{typed(given)} {'is' if len(given) == 1 else 'are'} for checkpoints from elsewhere, but {path} is a run; leave "
            f"{'it' if len(given) == 1 else 'them'} out"
        )
    if command.data is None:
        raise DiffusionalError(
            f"--data is missing: {path} is a checkpoint, which has no data of its own. Name the data to evaluate, such as --data digits"
        )
    if is_text_model(path):
        return as_run(path, text_model(path, command, space)), True
    refuse_text_options(path, command)
    model = fitted(path, command, _levels(command), space, _options(command))
    return as_run(path, model), True


def _refuse_other_code(path: Path) -> None:
    """Raise DiffusionalError for a model of transformers, and for a file or a folder of weights without a network, as other code writes them."""
    from diffusional.files import load_json
    from diffusional.interop.place import OTHER_CODE, weights_of_other_code

    config = path / "config.json"
    if (path / "data.json").exists():
        return
    if config.exists() and "model_type" in load_json(config):
        raise DiffusionalError(
            f"expected a run or a checkpoint of diffusers, got {path}, a model of transformers; for a masked language model give hf:{path}"
        )
    if config.exists() or (path / "config.toml").exists():
        return
    name = weights_of_other_code(path)
    if name is not None:
        raise DiffusionalError(f"{path} is neither a run nor a checkpoint of diffusers. {OTHER_CODE.format(name)}")


def is_foreign(path: Path) -> bool:
    """Return whether a path is a checkpoint from elsewhere and not a run folder.

    >>> is_foreign(Path("runs/nothing/here"))
    False
    """
    if is_text_model(path):
        return True
    # Reading a folder's files is cheap; importing the library that reads checkpoints is not.
    if (path / "data.json").exists():
        return False
    if path.is_dir() and not any((path / name).exists() for name in _MARKS):
        return False
    from diffusional.interop.place import is_checkpoint

    return is_checkpoint(path)


def _options(command: Evaluate | Check | Score | Classify | Import) -> dict[str, Any]:
    given = command.checkpoint_options
    return {
        "clipped": False if given.unclipped else None,
        "decoder": given.decoder,
        "decoder_variance": _decoder_variance(given.decoder_variance),
        "variance": given.variance,
        "variant": given.variant,
        "weights": given.weights,
        "revision": given.revision,
    }


def _decoder_variance(value: str | None) -> "float | Literal['fit'] | None":
    if value is None or value == "fit":
        return value
    try:
        return float(value)
    except ValueError as error:
        raise DiffusionalError(f"expected --decoder-variance to be a positive number or fit, got {value!r}") from error


def fitted(
    path: Path,
    command: Evaluate | Check | Score | Classify | Import,
    levels: int | None,
    space: "Space | None",
    options: dict[str, Any],
) -> "DiffusionModel":
    """Load a checkpoint, with what is fitted on --training-data."""
    if command.checkpoint_options.training_data is None:
        return loaded(path, levels, space, options)
    plain = {name: value for name, value in options.items() if value != "fit"}
    model = loaded(path, levels, space, plain)
    return loaded(path, levels, space, options | _reference(command, as_run(path, model).record, model, options))


def _reference(
    command: Evaluate | Check | Score | Classify | Import, record: "RunRecord", model: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the items of --training-data as options of `load_checkpoint`; {} without it."""
    from diffusional.cli.items import items
    from diffusional.conditions import rows_of

    if command.checkpoint_options.training_data is None:
        return {}
    if options["decoder_variance"] != "fit" and "start" not in {**model.origin.get("assumed", {}), **_start(model)}:
        raise DiffusionalError(
            f"--training-data {command.checkpoint_options.training_data} was given, but nothing is fitted: it is for the γ_1 of a flow, and for "
            "--decoder gaussian --decoder-variance fit; leave it out"
        )
    found = items(record, command.checkpoint_options.training_data, condition=command.condition)
    some = slice(0, _FITTED)
    return {"reference": found.data[some], "reference_condition": rows_of(found.condition, some)}


def _start(model: Any) -> dict[str, str]:
    """Return the sentence about the γ_1 of a flow that was fitted before."""
    given = model.origin.get("given", {})
    return {"start": given["start"]} if "training items" in given.get("start", "") else {}


def _levels(command: Evaluate | Check | Score | Classify | Import) -> int | None:
    """Return the number of levels of the data: of digits, 17."""
    if command.levels is None and command.data == "digits":
        return 17
    return command.levels


def loaded(path: Path, levels: int | None, space: "Space | None", options: dict[str, Any]) -> "DiffusionModel":
    """Load a checkpoint, and check that its condition can be given on the command line."""
    from diffusional.interop.checkpoint import load_checkpoint
    from diffusional.models.diffusion import DiffusionModel

    model = load_checkpoint(str(path), space, levels=None if space is not None else levels, **options)
    if not isinstance(model, DiffusionModel):
        raise DiffusionalError(
            f"expected a checkpoint of diffusers, got {path}; evaluate it in Python, with df.load_checkpoint"
        )
    needed = model.origin.get("config", {}).get("condition")
    if needed is not None and not model.classes:
        raise DiffusionalError(
            f"{path}: {needed}, which the command line cannot give; evaluate it in Python, with df.load_checkpoint and condition="
        )
    return model


def as_run(path: Path, model: "DiffusionModel | MaskedDiffusion") -> "Run":
    """Return a checkpoint in the form of a run: without training data, plan and folder."""
    from diffusional.training.folder import Run
    from diffusional.training.run import RunRecord

    record = RunRecord(path, _config(str(path), model), model.space, {}, classes=model.classes)
    return Run(record, loaded=model)


def _needs_levels(data: str) -> bool:
    """Return whether data are arrays or a table, whose number of levels no file declares."""
    from diffusional.data.formats import format_of

    if data == "digits" or data.startswith("hf:"):
        return False
    return format_of(Path(data).expanduser()) != "images"


def _config(name: str, model: "DiffusionModel | MaskedDiffusion") -> "Config":
    """Return a config that has the T of a model and no data; its other entries do not describe the model."""
    from diffusional.data import PYTHON
    from diffusional.training.config import Config, DataConfig, ScheduleConfig

    data = DataConfig(f"{PYTHON}the training data of {name}", condition="label" if model.classes else None)
    return Config(data=data, schedule=ScheduleConfig(steps=model.steps))


def origin_lines(model: Any) -> list[str]:
    """Return the lines about an imported model to print before its number; [] for other models."""
    from diffusional.interop.record import lines_of

    return lines_of(model.origin)


def show_origin(model: Any, name: Path) -> None:
    """Print what an imported model is: what its config determines, what was assumed, and what was given."""
    lines = origin_lines(model)
    if lines:
        say(f"{name}:")
    for line in lines:
        say(f"  {line}")


def items_of(
    command: Evaluate | Check | Score | Classify, record: "RunRecord", bare: bool, **options: Any
) -> "ChosenItems":
    """Return the items of --data, or of the run's own data. Of a checkpoint, the levels are not known to be those of the data: data that
    do not fit them raise an error with how to give them, and data that use few of the levels that were assumed a warning.
    """
    from dataclasses import replace

    from diffusional.cli.items import items
    from diffusional.interop.imported import is_imported

    levels = None if bare else command.levels

    def read(record: "RunRecord") -> "ChosenItems":
        return items(record, command.data, levels, command.split, condition=command.condition, **options)

    try:
        try:
            found = read(record)
        except LevelsError:
            raise
        except DiffusionalError:
            # The labels of a network with names (id2label) may be its numbers.
            numbers = tuple(map(str, range(len(record.classes))))
            if record.classes in ((), numbers) or not (bare or is_imported(record.path)):
                raise
            try:
                found = read(replace(record, classes=numbers))
            except DiffusionalError:
                found = None
            if found is None:
                raise
    except LevelsError as error:
        if not bare:
            raise
        source = "--levels gives" if command.levels is not None else "are assumed for a checkpoint"
        raise DiffusionalError(
            f"{error}. {record.space.levels} levels are what {source}; give the number of levels of the data as --levels"
        ) from error
    space: Any = record.space
    if bare and command.levels is None and space.levels and first():
        most = max(int(space.index(rows).max()) for rows in found.data.split(8192))
        if most < space.levels // 2 and command.data != "digits":
            warnings.warn(
                f"the values of {found.name} are at most {most}, and {space.levels} levels are assumed for a checkpoint; if the data have "
                f"fewer levels, give their number, such as --levels {most + 1}: the bound is another one",
                stacklevel=2,
            )
    return found


def checked(name: Path, model: Any, chosen: "ChosenItems") -> dict[str, Any] | None:
    """Check whether an imported model's network is read as it was trained, print the result in one line, and return it for the record.

    Other models return None. The bound does not depend on it: the check has its own noise.
    """
    from diffusional.conditions import rows_of
    from diffusional.interop.check import SHORT_ITEMS, SHORT_LEVELS, check_denoiser

    if not model.origin or not first():
        return None
    if model.origin.get("kind") == "transformers":
        return checked_shift(name, model, chosen.x)
    items = min(SHORT_ITEMS, len(chosen.data))
    if items < 2:
        say(f"check of {name}: omitted, as it needs at least 2 items")
        return None
    some = slice(0, items)
    with working("checking how the network is read"):
        found = check_denoiser(
            model,
            chosen.data[some],
            condition=rows_of(chosen.condition, some),
            items=items,
            levels=SHORT_LEVELS,
            search="short",
        )
    more = f". `diffusional check {name} --data …` searches all readings" if found.findings else ""
    say(f"check of {name}: {found.line()}{more}")
    keys = ("findings", "remedies", "network_evaluations")
    return {key: value for key, value in found.to_json().items() if key in keys} | {"items": items}


def _fitted_values(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return what was fitted as options of `load_checkpoint`, numbers."""
    values: dict[str, Any] = {}
    if options["decoder_variance"] == "fit":
        values["decoder_variance"] = model.likelihood.variance
    if _start(model):
        values["gamma_min"] = float(model.process.schedule.ends()[0])
    return values


def run(command: Import) -> Result:
    """Make a run folder of a checkpoint."""
    from dataclasses import replace

    from diffusional.conditions import rows_of
    from diffusional.training.build import build_dataset
    from diffusional.training.config import DataConfig
    from diffusional.training.run import DATA, describe

    source, target = command.checkpoint, command.run
    if os.path.lexists(target):
        raise DiffusionalError(f"{target} exists and was not changed; name a new folder for the run")
    if not is_foreign(source):
        what = "is a run" if (source / DATA).exists() else "is not a checkpoint"
        raise DiffusionalError(
            f"{source} {what}; expected a folder that diffusers' save_pretrained wrote, or a Hub id, owner/name"
        )
    if is_text_model(source):
        return _import_text_model(command)
    refuse_text_options(source, command)
    options = _options(command) | {"steps": command.steps}
    later = command.checkpoint_options.training_data is None and command.data is not None
    plain = {name: value for name, value in options.items() if not (later and value == "fit")}
    model = fitted(source, command, _levels(command), None, plain)
    config = _config(str(source), model)
    described = _without_data(model)
    if command.data is not None:
        levels = model.space.levels if _needs_levels(command.data) else None
        condition = command.condition or ("label" if model.classes else None)
        data = DataConfig(command.data, levels=levels, size=command.size, condition=condition)
        dataset = build_dataset(data)
        if dataset.space != model.space:
            raise DiffusionalError(
                f"{command.data} has items {dataset.space}, the model of {source} has {model.space}; name other data, or leave --data out"
            )
        if model.classes and len(dataset.classes) != len(model.classes):
            raise DiffusionalError(
                f"{command.data} has {len(dataset.classes)} classes, the network of {source} {len(model.classes)}; leave --data out"
            )
        numbered = tuple(map(str, range(len(model.classes))))
        if model.classes and model.classes != numbered and dataset.classes not in (model.classes, numbered):
            raise DiffusionalError(
                f"the classes of {command.data} ({', '.join(dataset.classes[:3])}, …) are not those of {source} in their order "
                f"({', '.join(model.classes[:3])}, …), so that its labels would mean others; leave --data out"
            )
        described = describe(dataset)
        config = replace(config, data=data)
        if later and (plain != options or "start" in model.origin.get("assumed", {})):
            some = slice(0, _FITTED)
            labels = dataset.condition_of("train") if model.classes else None
            reference = {"reference": dataset.encode("train", some), "reference_condition": rows_of(labels, some)}
            model = loaded(source, _levels(command), None, options | reference)
    elif model.classes:
        described["classes"] = list(model.classes)
    options |= _fitted_values(model, options)
    return _made(source, target, model, config, described, options, data=command.data is not None)


def _import_text_model(command: Import) -> Result:
    """Make a run folder of a masked language model."""
    if command.data is not None or command.size is not None:
        raise DiffusionalError(
            f"--data and --size do not apply to {command.checkpoint}, a masked language model; leave them out, and give --data to evaluate"
        )
    model = text_model(command.checkpoint, command, None)
    described = _without_data(model)
    text = command.text_options
    options = {"mask_token": text.mask_token, "shift": text.shift or None}
    options["revision"] = command.checkpoint_options.revision
    return _made(
        command.checkpoint, command.run, model, _config(str(command.checkpoint), model), described, options, data=False
    )


def _without_data(model: "DiffusionModel | MaskedDiffusion") -> dict[str, Any]:
    """Return the description of the data of a run that was imported without any."""
    return {"name": None, "space": model.space.to_dict(), "source": None, "columns": [], "items": {}, "sha256": {}}


def _made(
    source: Path,
    target: Path,
    model: "DiffusionModel | MaskedDiffusion",
    config: "Config",
    described: dict[str, Any],
    options: dict[str, Any],
    data: bool,
) -> Result:
    """Write the run folder of an imported model."""
    from diffusional.files import save_json, settle
    from diffusional.interop.imported import IMPORTED, save_reference
    from diffusional.training.run import CONFIG, DATA

    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_json(partial / CONFIG, config.to_dict())
        save_json(partial / DATA, described)
        save_reference(partial, model, options)
        settle(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DiffusionalError(
            f"{target} could not be written ({error.strerror or error}); name another folder"
        ) from error
    record = {
        "run": str(target),
        "checkpoint": str(source),
        "files": sorted([CONFIG, DATA, IMPORTED]),
        "origin": dict(model.origin),
    }
    lines = [f"{source}:", *(f"  {line}" for line in origin_lines(model))]
    last = f"{target} is a run of this checkpoint, by reference: keep the checkpoint where it is. Next: diffusional evaluate {target}"
    if not data:
        last += " --data …"
    return Result(record, [*lines, last])
