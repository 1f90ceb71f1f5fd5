"""The command line: a folder of small files, one for each command. Importing it imports no torch, so that `--help` is instant.

Bad input ends with a message that says what came, what was expected and what to do, and exit status 2.
"""

import sys
from collections.abc import Sequence
from typing import Any

from diffusional.cli import commands
from diffusional.cli.completion import script
from diffusional.cli.console import check_target, first
from diffusional.cli.parse import parse
from diffusional.errors import DiffusionalError, Interrupted


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits with 1 where a claim does not hold, 2 on bad input, 3 where an evaluation can't vouch for its target, and 128 and the
    signal's number when interrupted (130 by Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        import diffusional

        print(f"diffusional {diffusional.__version__}")
        return
    try:
        command = parse(args)
        if isinstance(command, commands.Completion):
            print(script(command.shell), end="")
            return
        if command.json is not None:
            check_target("--json", command.json)
        record = _done(command)
        if command.json is not None and first():
            from diffusional.files import save_json

            save_json(command.json, record)
        if record.get("reached") is False:
            print(f"diffusional: not reached: {_why(record)}", file=sys.stderr)
            raise SystemExit(3)
        if record.get("works") is False:
            raise SystemExit(1)
        if not all(claim["holds"] and claim["control_fails"] for claim in record.get("claims", ())):
            raise SystemExit(1)
    except (DiffusionalError, OSError) as error:
        print(f"diffusional: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Interrupted as stop:
        print(f"diffusional: {stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signal) from None
    except KeyboardInterrupt:
        print("diffusional: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _done(command: Any) -> dict[str, Any]:
    """Do what a command says; only now is what it needs imported."""
    match command:
        case commands.Demo():
            from diffusional.cli import demo

            return demo.run(command)
        case commands.Train():
            from diffusional.cli import train

            return train.run(command)
        case commands.Evaluate():
            from diffusional.cli import evaluate

            return evaluate.run(command)
        case commands.Sample():
            from diffusional.cli import sample

            return sample.run(command)
        case commands.Information():
            from diffusional.cli import information

            return information.run(command)
        case commands.Data():
            from diffusional.cli import data

            return data.run(command)
        case commands.Doctor():
            from diffusional.cli import doctor

            return doctor.run(command)
        case commands.Claims():
            from diffusional.cli import claims

            return claims.run(command)
    raise TypeError(f"{command!r} is no command")


def _why(record: dict[str, Any]) -> str:
    nelbo = record.get("nelbo") or record["difference"]
    said = [
        f"the error is {nelbo['error']:.4g} {nelbo['unit']} after {record['network_evaluations']:,} network evaluations"
    ]
    return "; ".join([*said, *record["caveats"]])
