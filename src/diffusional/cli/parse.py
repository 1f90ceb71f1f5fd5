"""Parsing of the command line: defaults from presets and resumed runs, help with examples, and errors of one line."""

import contextlib
import dataclasses
import functools
import io
import operator
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from diffusional.cli import presets
from diffusional.cli.commands import COMMANDS, Command, Train
from diffusional.cli.examples import examples
from diffusional.cli.mistakes import mistake
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.seeds import check_seed
from diffusional.training.config import Config
from diffusional.training.systems import SYSTEMS

with needed_for("cli"):
    import tyro

_OPTIONS: dict[str, Any] = {
    "prog": "diffusional",
    "description": "Likelihoods of diffusion models: the ELBO, split into its terms, with error bars.",
    "config": (tyro.conf.FlagCreatePairsOff,),
}


def parse(args: Sequence[str]) -> Command:
    """Parse the arguments of a command. Raises DiffusionalError for invalid arguments, and SystemExit after --help.

    >>> parse(["train", "runs/a", "--preset", "digits-vae", "--steps", "7"]).config.model.kind
    'vae'
    >>> parse(["trian", "runs/a"])
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: unknown command 'trian'; did you mean train? See diffusional --help
    """
    args = _spelled_out(_renamed(args))
    command = _parsed(args, _default(args) if args[:1] == ["train"] else Config())
    check_seed(getattr(command, "seed", 0), "--seed")
    if not isinstance(command, Train):
        return command
    path = command.run / "config.json"
    if command.resume and command.preset is None and command.config_file is None and path.is_file():
        # The config of the resumed run is the default, so that only given options can differ from it.
        command = _parsed(args, Config.load(path))
    # Values that could not be read back, such as an infinite number, are refused before a folder is made.
    Config.from_dict(command.config.to_dict())
    return command


# Options that have a second, shorter name, by command.
_SHORT = {
    "train": {
        "--data": "--data.name",
        "--from": "--init-from",
        "--condition": "--data.condition",
        "--text-encoder": "--data.text-encoder",
    },
    "sample": {"--label": "--condition", "-o": "--out"},
    "compress": {"-o": "--out"},
    "plot": {"-o": "--out"},
    "report": {"-o": "--out"},
}
# Old names of options and presets, which work for one more version, by command.
_OLD = {("information", "--levels-shown"): "--timesteps"}
_OLD_PRESETS = {"levels": "images"}


def _spelled_out(args: Sequence[str]) -> list[str]:
    """Replace the short names of options by their full names: those of train are like the options of other commands.

    A preset of a system of several stages is given as --composite.

    >>> _spelled_out(["train", "runs/a", "--data=x.npy"]), _spelled_out(["evaluate", "runs/a", "--data", "x.npy"])
    (['train', 'runs/a', '--data.name=x.npy'], ['evaluate', 'runs/a', '--data', 'x.npy'])
    >>> _spelled_out(["train", "runs/a", "--preset", "unclip-small"])
    ['train', 'runs/a', '--composite', 'unclip-small']
    >>> _spelled_out([])
    []
    """
    short, found = _SHORT.get(args[0], {}) if args else {}, []
    for arg, after in zip(args, [*args[1:], None][: len(args)], strict=True):
        name, equals, value = arg.partition("=")
        if args[0] == "train" and name == "--preset" and (value if equals else after) in SYSTEMS:
            name = "--composite"
        found.append(short.get(name, name) + equals + value)
    return found


def _renamed(args: Sequence[str]) -> list[str]:
    """Replace old names of options and presets by the new ones, with a FutureWarning for each.

    >>> _renamed(["information", "digits", "--timesteps=7"])
    ['information', 'digits', '--timesteps=7']
    """
    found: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if (new := _OLD.get((args[0], name.replace("_", "-")))) is not None:
            _warn(name, new)
            name = new
        preset = arg if found[-1:] == ["--preset"] else value if name == "--preset" else ""
        if args[0] == "train" and preset in _OLD_PRESETS:
            _warn(f"--preset {preset}", f"--preset {_OLD_PRESETS[preset]}")
            name, value = (name, _OLD_PRESETS[preset]) if equals else (_OLD_PRESETS[preset], "")
        found.append(name + equals + value)
    return found


def _warn(old: str, new: str) -> None:
    message = f"{old} is now called {new}; the old name will be removed in the next version"
    warnings.warn(message, FutureWarning, stacklevel=4)


def _default(args: Sequence[str]) -> Config:
    """Return the config that the options of `train` override: that of --config FILE, of --preset NAME, of the run given by --init-from,
    or the default.

    Raises DiffusionalError for a file that is not a config, and for both --config and --preset.
    """
    file, preset, origin = (presets.typed(args, option) for option in ("--config", "--preset", "--init-from"))
    if file is not None and preset is not None:
        raise DiffusionalError(
            f"--config {file} and --preset {preset} were given together, and each of them is a whole config; leave one out"
        )
    if file is not None:
        return Config.load(Path(file).expanduser())
    if preset is not None or origin is None:
        return presets.named(args)
    if not (Path(origin) / "config.json").is_file():
        raise DiffusionalError(
            f"--from {origin}: there is no run in this folder; name a folder that `diffusional train` wrote"
        )
    return dataclasses.replace(Config.load(Path(origin) / "config.json"), init_from=None, init_sha256=None)


def _commands(args: Sequence[str], config: Config) -> Any:
    """Return the union of the commands that `args` may mean, with this config as the default of `train`.

    If `args` name a command, it is that command with its whole description, and another small one, since a union needs two. Otherwise
    it has all commands, each with its first sentence.
    """
    named = {args[0], "completion", "doctor"} if args and args[0] in COMMANDS else set(COMMANDS)
    kinds = [
        Annotated[
            _train(config) if name == "train" else kind,
            tyro.conf.subcommand(name, description=_said(kind, brief=len(named) == len(COMMANDS))),
        ]
        for name, kind in COMMANDS.items()
        if name in named
    ]
    return functools.reduce(operator.or_, kinds)


def _train(config: Config) -> type:
    """Return `Train` with another default."""
    flat = Annotated[Config, tyro.conf.arg(name="")]
    field = ("config", flat, dataclasses.field(default=config))
    return dataclasses.make_dataclass(
        "Train", [field], bases=(Train,), namespace={"__doc__": Train.__doc__}, frozen=True
    )


def _said(kind: type, brief: bool) -> str:
    words = " ".join((kind.__doc__ or "").split())
    return words.partition(". ")[0].rstrip(".") if brief else words


def _parsed(args: Sequence[str], config: Config) -> Any:
    said, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _plain(shown):
            return tyro.cli(_commands(args, config), args=list(args), **_OPTIONS)
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue() + examples(args), end="")
            raise
        raise _refusal(stop, args, said.getvalue()) from None


@contextlib.contextmanager
def _plain(shown: io.StringIO) -> Any:
    """Capture help without colours if NO_COLOR is set, since the parser colours text for a terminal."""
    if "NO_COLOR" in os.environ:
        with contextlib.redirect_stdout(shown):
            yield
    else:
        yield


def _refusal(stop: SystemExit, args: Sequence[str], said: str) -> DiffusionalError:
    """Return the error of the parser in one line: that of a config which refuses a value, or the mistake in the arguments."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, DiffusionalError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return DiffusionalError(mistake(args, COMMANDS) or " ".join(said.split()))
