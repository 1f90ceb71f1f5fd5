"""The command line, with a file for each command. It does not import torch until a command needs it, so that `--help` is fast.

An error is one line on standard error: what was expected, what was given and what to do. `--debug` adds the traceback.
Results are saved before they are printed.
"""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusional.cli import commands, outputs
from diffusional.cli.completion import script
from diffusional.cli.console import Result, first, show
from diffusional.cli.failures import failure
from diffusional.cli.parse import parse
from diffusional.cli.streams import Guarded, guarded
from diffusional.errors import DiffusionalError, Interrupted

_DEBUG = "--debug"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    The exit status is 1 if a claim does not hold or an essential component is broken, 2 on bad input, a lack of memory, or a file or
    standard output that cannot be written, 3 if an evaluation did not reach its target, 70 on an internal error, 128 plus the number of
    the signal if interrupted (130 by Ctrl-C), and 141 if standard output was closed before everything was printed.

    Args:
        argv: the arguments; those of the process by default. `--debug` among them shows the traceback of an error.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = _DEBUG in args
    args = [arg for arg in args if arg != _DEBUG]
    with guarded() as (out, err), _plain_warnings():
        status = _status(args, debug, out)
        out.flush()
        status = _printed(out, status)
        err.flush()
    if status or {"-h", "--help"} & {*args}:
        raise SystemExit(status)


def _status(args: list[str], debug: bool, out: Guarded) -> int:
    """Run a command line and report an error in one line; returns the exit status."""
    try:
        return _run(args, out)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Interrupted as stop:
        print(f"diffusional: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("diffusional: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        status, said = failure(error, args[0] if args else "")
        print(f"diffusional: {said}", file=sys.stderr)
        return status
    finally:
        outputs.close()


def _run(args: list[str], out: Guarded) -> int:
    if args == ["--version"]:
        import diffusional

        print(f"diffusional {diffusional.__version__}")
        return 0
    command = parse(args)
    if isinstance(command, commands.Completion):
        print(script(command.shell), end="")
        return 0
    to_stdout = command.json is not None and outputs.is_standard_output(command.json)
    if command.json is not None:
        outputs.check_target("--json", command.json, _inputs(command))
    # If standard output gets the JSON, everything else goes to standard error.
    with contextlib.redirect_stdout(sys.stderr) if to_stdout else contextlib.nullcontext():
        result = _done(command)
        faults = list(_saved(result, command.json, out if to_stdout else None))
        show(result)
    if faults:
        raise faults[0]
    record = result.record
    if record.get("reached") is False:
        print(f"diffusional: not reached: {_why(record)}", file=sys.stderr)
        return 3
    if record.get("works") is False:
        return 1
    return int(not all(claim["holds"] and claim["control_fails"] for claim in record.get("claims", ())))


def _saved(result: Result, json: Path | None, out: Guarded | None) -> Iterator[Exception]:
    """Write all files of a result, even if one of them fails; yields the errors."""
    from diffusional.files import json_text

    def save_json() -> None:
        text = json_text(result.record)
        if json is None or not first():
            return
        if out is None:
            outputs.save(json, lambda file: file.write(text.encode()))
            return
        out.write(text)
        out.flush()

    for save in (save_json, *result.saves):
        try:
            save()
        except (DiffusionalError, OSError, MemoryError) as error:
            yield error


def _printed(out: Guarded, status: int) -> int:
    """Return the exit status, which depends on whether standard output could be written."""
    if out.fault is None or status:
        return status
    if out.stream is None:  # closed on purpose, by >&-
        return 0
    if isinstance(out.fault, BrokenPipeError):
        return 141  # as for a program that is ended by SIGPIPE: the reader has closed the pipe
    why = getattr(out.fault, "strerror", None) or out.fault
    print(
        f"diffusional: error: standard output could not be written ({why}); the requested files are written",
        file=sys.stderr,
    )
    return 2


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print each warning as one line, without its place in the code."""

    def said(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"diffusional: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = said
        yield


def _inputs(command: Any) -> list[Path]:
    """Return the files that a command reads: its result must not replace them."""
    named = [
        getattr(command, name, None)
        for name in ("data", "other", "plan", "reference", "outliers", "config_file", "file")
    ]
    named.append(getattr(getattr(getattr(command, "config", None), "data", None), "name", None))
    named.append(getattr(getattr(command, "config", None), "name", None))
    return [Path(os.path.expanduser(str(one))) for one in named if one is not None]


def _done(command: Any) -> Result:
    """Run a parsed command. Its modules are imported here, when they are needed."""
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
        case commands.Import():
            from diffusional.cli import checkpoints

            return checkpoints.run(command)
        case commands.Check():
            from diffusional.cli import check

            return check.run(command)
        case commands.Score():
            from diffusional.cli import score

            return score.run(command)
        case commands.Classify():
            from diffusional.cli import classify

            return classify.run(command)
        case commands.Export():
            from diffusional.cli import export

            return export.run(command)
        case commands.Compress() | commands.Decompress():
            from diffusional.cli import codec

            return codec.compressed(command) if isinstance(command, commands.Compress) else codec.decompressed(command)
        case commands.Push() | commands.Pull():
            from diffusional.cli import hub

            return hub.push(command) if isinstance(command, commands.Push) else hub.pull(command)
        case commands.Sample():
            from diffusional.cli import sample

            return sample.run(command)
        case commands.Information():
            from diffusional.cli import information

            return information.run(command)
        case commands.Plot():
            from diffusional.cli import plot

            return plot.run(command)
        case commands.Report():
            from diffusional.cli import report

            return report.run(command)
        case commands.Data():
            from diffusional.cli import data

            return data.run(command)
        case commands.Doctor():
            from diffusional.cli import doctor

            return doctor.run(command)
        case commands.Claims():
            from diffusional.cli import claims

            return claims.run(command)
    raise TypeError(f"expected a command, got {command!r}")


def _why(record: dict[str, Any]) -> str:
    nelbo = record.get("nelbo") or record["difference"]
    error, unit = nelbo["error"], nelbo["unit"]
    if "prompts" in record:  # in the unit of --error
        error, unit = record["text"].get("difference", record["text"])["bits_per_token"][1], "bits per token"
    said = [f"the error is {error:.4g} {unit} after {record['network_evaluations']:,} network evaluations"]
    return "; ".join([*said, *record["caveats"]])
