"""The options of every command, from its dataclass, for suggestions and for completion."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from diffusional.extras import needed_for

with needed_for("cli"):
    import tyro


@dataclass(frozen=True)
class Option:
    """An option: `--name`, or the metavar of a positional argument, and the type of its values."""

    name: str
    hint: Any
    positional: bool
    required: bool

    @property
    def many(self) -> bool:
        """Whether it accepts any number of values."""
        return typing.get_origin(self.hint) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """All possible values, if these are a fixed set."""
        hint = typing.get_args(self.hint)[0] if self.many else self.hint
        return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()

    @property
    def expected(self) -> str:
        """A description of a valid value."""
        kind = typing.get_args(self.hint)[0] if self.many else self.hint
        named = {int: "an integer", float: "a number", bool: "no value"}
        return f"one of {', '.join(self.choices)}" if self.choices else named.get(kind, "a value")

    def takes(self, value: str) -> bool:
        """Return whether the value is of the type; "None" is valid for an optional one."""
        kind = typing.get_args(self.hint)[0] if self.many else self.hint
        if kind in (int, float):
            return value == "None" or is_number(value, kind)
        return not self.choices or value in (*self.choices, "None")


def options(kind: type, prefix: str = "") -> list[Option]:
    """Return the options of a command's dataclass and its nested dataclasses.

    >>> from diffusional.cli.commands import Sample
    >>> [option.name for option in options(Sample)][:3]
    ['RUN', '--n', '--method']
    """
    found = []
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            flat = any(getattr(mark, "name", None) == "" for mark in marks)
            found += options(typing.cast(type, hint), prefix if flat else f"{prefix}{field.name}.")
            continue
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            # The first of several types, such as those of `int | Literal["auto"]`.
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        positional = tyro.conf.Positional in marks
        shown = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), field.name)
        typed = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        name = shown.strip("[]") if positional else f"--{prefix}{typed}".replace("_", "-")
        found.append(Option(name, hint, positional, required))
    return found


def changed(command: Any) -> list[str]:
    """Return the names of the fields of a command, and of its nested dataclasses, that differ from their defaults.

    >>> from pathlib import Path
    >>> from diffusional.cli.commands import Score, TextModelOptions
    >>> changed(Score(Path("runs/a"), seed=3, text_options=TextModelOptions(length=64)))
    ['length', 'seed']
    """
    found = []
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if dataclasses.is_dataclass(value):
            found += changed(value)
        elif field.default is not dataclasses.MISSING and value != field.default:
            found.append(field.name)
    return found


def typed(names: Iterable[str]) -> str:
    """Return options as they are typed, in one list.

    >>> typed(["mask_token", "seed"])
    '--mask-token, --seed'
    """
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def is_number(word: str, kind: type = float) -> bool:
    """Return whether `kind` parses the word.

    >>> is_number("-3"), is_number("1e-3", int)
    (True, False)
    """
    try:
        kind(word)
    except ValueError:
        return False
    return True
