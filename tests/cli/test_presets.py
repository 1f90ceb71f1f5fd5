"""`train --preset`: a recipe as the default, what is typed over it, and what it does not do to a run that exists."""

import inspect
import typing
from pathlib import Path

import pytest

from diffusional import DiffusionalError
from diffusional.cli import presets
from diffusional.cli.commands import Train
from diffusional.cli.options import options
from diffusional.cli.parse import parse
from diffusional.training import recipes
from diffusional.training.config import Config


def config(*args: str) -> Config:
    command = parse(["train", *args])
    assert isinstance(command, Train)
    return command.config


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_its_recipe(name: str) -> None:
    assert config("run", "--preset", name) == getattr(recipes, name.replace("-", "_"))()
    assert config("run", f"--preset={name}") == config("--preset", name, "run")


def test_every_recipe_is_a_preset_that_the_help_explains() -> None:
    made = [
        name
        for name, f in inspect.getmembers(recipes, inspect.isfunction)
        if typing.get_type_hints(f).get("return") is Config
    ]
    assert sorted(name.replace("_", "-") for name in made) == sorted(presets.PRESETS)
    (option,) = [option for option in options(Train) if option.name == "--preset"]
    assert list(option.choices) == list(presets.PRESETS)


def test_what_is_typed_goes_over_the_preset() -> None:
    typed = config("run", "--steps", "7", "--preset", "digits-vae", "--optimizer.lr", "0.5")
    recipe = recipes.digits_vae()
    assert (typed.steps, typed.optimizer.lr) == (7, 0.5)
    assert (typed.model, typed.latent, typed.data) == (recipe.model, recipe.latent, recipe.data)
    # The last one counts, as for every option.
    assert config("run", "--preset", "digits", "--preset", "digits-vae") == recipe
    assert config("run") == Config()


def test_a_value_that_no_file_can_hold() -> None:
    with pytest.raises(DiffusionalError, match=r"config key 'optimizer\.clip' is inf; expected a finite number"):
        config("run", "--optimizer.clip", "inf")


def test_a_resumed_run_and_a_preset(tmp_path: Path) -> None:
    own = recipes.digits_vae()
    from diffusional.files import save_json

    save_json(tmp_path / "config.json", own.to_dict())
    # Without a preset the run's own config is the default; with one it is the preset, which the run then refuses if it is
    # another (tests/test_cli.py).
    assert config(str(tmp_path), "--resume") == own
    assert config(str(tmp_path), "--resume", "--steps", "9").model == own.model
    assert config(str(tmp_path), "--resume", "--preset", "digits-vae") == own
    assert config(str(tmp_path), "--resume", "--preset", "digits") == recipes.digits()
