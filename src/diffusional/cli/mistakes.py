"""The mistake in a command line that the parser refused, and a suggestion."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from diffusional.cli.options import Option, is_number, options
from diffusional.words import hint


def mistake(args: Sequence[str], commands: Mapping[str, type]) -> str | None:
    """Return the first mistake in `args`, which the parser refused; None if none is found."""
    if not args or args[0].startswith("-"):
        given = args[0] if args else "none"
        return f"expected a command, one of {', '.join(commands)}, got {given}. See diffusional --help"
    if args[0] not in commands:
        return f"unknown command {args[0]!r}; {meant(args[0], commands)} See diffusional --help"
    found = _mistyped(args[1:], options(commands[args[0]]))
    return f"{found} See diffusional {args[0]} --help" if found else None


def meant(word: str, known: Iterable[str], listed: bool = False) -> str:
    """Return the word that was probably meant, or all possible words; both, if `listed`.

    >>> meant("vea", ["diffusion", "vae"])
    'did you mean vae?'
    >>> meant("euler", ["ancestral", "ddim"])
    'expected one of ancestral, ddim.'
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    every = f"one of {', '.join(known)}."
    if not close:
        return f"expected {every}"
    return f"did you mean {close[0]}?" + (f" Expected {every}" if listed else "")


def _mistyped(args: Sequence[str], known: list[Option]) -> str | None:
    named = {option.name: option for option in known if not option.positional}
    words: list[str] = []
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not _is_option(name):
            words.append(name + equals + value)
            continue
        option = named.get(name.replace("_", "-"))
        if option is None:
            return f"unknown option {name}; {_option_meant(name, named)}"
        flag = option.hint is bool
        values = [value] if equals else _take(rest, option)
        if flag if equals else not (flag or option.many or values):
            return f"{name}: expected {option.expected}, got {value if equals else 'none'}."
        if found := _wrong(values, option):
            return found
    return _misplaced(words, [option for option in known if option.positional])


def _misplaced(words: list[str], places: list[Option]) -> str | None:
    for option in places:
        taken = _take(words, option)
        if not taken and option.required:
            return f"{option.name} is missing."
        if found := _wrong(taken, option):
            return found
    if words and places:
        return f"expected no arguments after {' '.join(option.name for option in places)}, got {' '.join(words)}."
    return f"expected only options, got {' '.join(words)}." if words else None


def _take(rest: list[str], option: Option) -> list[str]:
    """Remove the values of an option from the beginning of the remaining arguments, and return them."""
    limit = 0 if option.hint is bool else len(rest) if option.many else 1
    taken: list[str] = []
    while rest and len(taken) < limit and not _is_option(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _wrong(values: list[str], option: Option) -> str | None:
    for value in values:
        if not option.takes(value):
            foreign = hint(option.name.removeprefix("--"), value) if option.choices else None
            said = meant(value, option.choices, listed=True) if option.choices else f"expected {option.expected}."
            if foreign is not None:
                said = f"{foreign} Expected one of {', '.join(option.choices)}."
            return f"invalid {option.name} {value}: {said}"
    return None


def _option_meant(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown option: one with this name as its last part, such as `--optimizer.lr` for `--lr`, or similar."""
    known, bare = list(known), name.lstrip("-").replace("_", "-")
    within = [option for option in known if option.rpartition(".")[2] == bare]
    close = within or difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    return f"did you mean {' or '.join(close)}?" if close else "there is no similar option."


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not is_number(word)
