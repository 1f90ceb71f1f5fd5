"""`diffusional data`: what was understood of data, before anything is trained on them."""

import dataclasses
from typing import Any

from diffusional.cli.commands import Data
from diffusional.cli.console import check_figure, plainly, working
from diffusional.training.config import DataConfig


def run(command: Data) -> dict[str, Any]:
    """Load as train would, print what was found, and draw it if asked to."""
    from diffusional.training.build import build_dataset

    if command.figure is not None:
        check_figure("--figure", command.figure)
    names = [field.name for field in dataclasses.fields(DataConfig)]
    config = DataConfig(**{name: getattr(command.config, name) for name in names})
    with plainly():
        dataset = build_dataset(config)
    from diffusional.data.inspection import inspect

    with working(f"looking at {config.name}"), plainly():
        found = inspect(dataset)
    return found.to_json()
