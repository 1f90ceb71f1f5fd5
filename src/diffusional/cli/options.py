"""What every command takes, read off its dataclass: for suggestions and for completion."""

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Option:
    """What may be typed: `--name` or, of a positional one, its metavar; and the type of its values."""

    name: str
    hint: Any
    positional: bool
    required: bool

    @property
    def many(self) -> bool:
        """Whether it takes any number of values."""
        return typing.get_origin(self.hint) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """All values there are, if they are few."""
        hint = typing.get_args(self.hint)[0] if self.many else self.hint
        return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()

    @property
    def expected(self) -> str:
        """What a value has to be."""
        kind = typing.get_args(self.hint)[0] if self.many else self.hint
        named = {int: "an integer", float: "a number", bool: "no value"}
        return f"one of {', '.join(self.choices)}" if self.choices else named.get(kind, "a value")

    def takes(self, value: str) -> bool:
        """Whether the value is of the type; "None" is one of those that may be left out."""
        kind = typing.get_args(self.hint)[0] if self.many else self.hint
        if kind in (int, float):
            return value == "None" or is_number(value, kind)
        return not self.choices or value in (*self.choices, "None")


def options(kind: type, prefix: str = "") -> list[Option]:
    """The options of a command's dataclass, and of those that it holds.

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
            (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        positional = tyro.conf.Positional in marks
        shown = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), field.name)
        typed = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        name = shown.strip("[]") if positional else f"--{prefix}{typed}".replace("_", "-")
        found.append(Option(name, hint, positional, required))
    return found


def is_number(word: str, kind: type = float) -> bool:
    """Whether `kind` reads the word.

    >>> is_number("-3"), is_number("1e-3", int)
    (True, False)
    """
    try:
        kind(word)
    except ValueError:
        return False
    return True
