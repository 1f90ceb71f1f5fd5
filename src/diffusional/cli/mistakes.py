"""What is wrong with a command line that the parser refused, and what was probably meant."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from diffusional.cli.options import Option, is_number, options
from diffusional.words import hint


def mistake(args: Sequence[str], commands: Mapping[str, type]) -> str | None:
    """The first mistake in `args`, which the parser did not take; None where none is found."""
    if not args or args[0].startswith("-"):
        came = f"{args[0]} came where a command belongs" if args else "no command came"
        return f"{came}; expected one of {', '.join(commands)}. See diffusional --help"
    if args[0] not in commands:
        return f"unknown command {args[0]!r}; {meant(args[0], commands)} See diffusional --help"
    found = _mistyped(args[1:], options(commands[args[0]]))
    return f"{found} See diffusional {args[0]} --help" if found else None


def meant(word: str, known: Iterable[str], listed: bool = False) -> str:
    """What was probably meant, or all that could have been; both, if `listed`.

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
            return f"{name} came {f'with {value}' if equals else 'without a value'}; expected {option.expected}."
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
        return f"{' '.join(words)} came beyond {' '.join(option.name for option in places)}; expected no more."
    return f"{' '.join(words)} came; expected options alone." if words else None


def _take(rest: list[str], option: Option) -> list[str]:
    """The values of an option, off the front of what follows it."""
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
            return f"{option.name} {value} came; {said}"
    return None


def _option_meant(name: str, known: Iterable[str]) -> str:
    """`--lr` is nearest to `--optimizer.lr`, which has it as its last part."""
    known, bare = list(known), name.lstrip("-").replace("_", "-")
    within = [option for option in known if option.rpartition(".")[2] == bare]
    close = within or difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    return f"did you mean {' or '.join(close)}?" if close else "no option has such a name."


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not is_number(word)
