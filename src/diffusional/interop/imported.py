"""Runs made of checkpoints from elsewhere: a run folder that refers to the checkpoint, with the hashes of its files, in checkpoint.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.files import load_json, save_json
from diffusional.interop.checkpoint import load_checkpoint
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.masked import MaskedDiffusion
from diffusional.space import Space

# The file that makes a run folder one of an imported checkpoint.
IMPORTED = "checkpoint.json"
_FORMAT = 1
# Options that change what was fitted.
_CHANGES = {"start": {"reference", "gamma_min"}, "decoder": {"decoder", "decoder_variance", "reference"}}


def is_imported(run: Path) -> bool:
    """Return whether a run folder was made by `diffusional import`.

    >>> is_imported(Path("runs/nothing"))
    False
    """
    return (run / IMPORTED).is_file()


def save_reference(run: Path, model: DiffusionModel | MaskedDiffusion, options: Mapping[str, Any]) -> None:
    """Write checkpoint.json: where the checkpoint is, the hashes of its files, and the options of `load_checkpoint`, JSON values.

    A folder is stored by its absolute path, and a Hub id with its commit.
    """
    origin = model.origin
    source = Path(origin["source"]).expanduser()
    place = str(source.resolve()) if source.is_dir() else origin["source"]
    record = {
        "format": _FORMAT,
        "source": place,
        "revision": origin.get("revision"),
        "options": {name: value for name, value in options.items() if value is not None and name != "revision"},
        "files": origin["files"],
        # What was fitted on training data, and how: the options have its values.
        "fitted": {name: text for name, text in origin.get("given", {}).items() if "training items" in text},
    }
    save_json(run / IMPORTED, record)


def load_reference(run: Path, space: Space, **changed: Any) -> DiffusionModel | MaskedDiffusion:
    """Load the model of an imported run over its space, with some options of `load_checkpoint` changed.

    Raises DiffusionalError if the checkpoint is not there any more, or if its files have changed since it was imported.
    """
    path = run / IMPORTED
    record = load_json(path)
    if record.get("format") != _FORMAT:
        raise DiffusionalError(
            f"expected format {_FORMAT} in {path}, got {record.get('format')!r}; import the checkpoint again"
        )
    source, options, files = record.get("source"), record.get("options"), record.get("files")
    if not (isinstance(source, str) and isinstance(options, dict) and isinstance(files, dict)):
        raise DiffusionalError(f"{path} has no source, options or files; import the checkpoint again")
    revision = record.get("revision")
    given = {name: value for name, value in changed.items() if value is not None}
    try:
        model = load_checkpoint(source, space, revision=revision, **(options | given))
    except TypeError as error:
        raise DiffusionalError(
            f"{path} has options of another version ({error}); import the checkpoint again"
        ) from error
    except DiffusionalError as error:
        raise DiffusionalError(f"{run} was imported from {source}: {error}") from error
    now = model.origin["files"]
    fitted = {
        name: text
        for name, text in (record.get("fitted") or {}).items()
        if not given.keys() & _CHANGES.get(name, set())
    }
    if fitted:
        model.origin = {**model.origin, "given": {**model.origin.get("given", {}), **fitted}}
    if moved := sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name)):
        raise DiffusionalError(
            f"{', '.join(moved[:3])} of {source} changed since {run} was made of it: its numbers would be those of another model. Import the "
            "checkpoint again, into another folder"
        )
    return model
