"""Help: instant, complete, and ending with lines that run; what is piped has no colours."""

import dataclasses
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from battery import environment
from diffusional import cli
from diffusional.cli import console
from diffusional.cli.commands import COMMANDS
from diffusional.cli.examples import EXAMPLES
from diffusional.cli.options import options
from diffusional.cli.parse import parse


def help_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


def test_the_commands_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys)
    lines = re.findall(r"• (\w+) +(\S.*\w)", said)
    assert [name for name, _ in lines] == list(COMMANDS)
    # The next line is another command's, not the rest of this one's.
    assert not re.findall(r"^[│ ] {6,}\S", said, re.MULTILINE)
    assert said.endswith("examples:\n" + "".join(f"  {line}\n" for line in EXAMPLES[""]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_and_examples_end_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys, command)
    assert said.endswith("examples:\n" + "".join(f"  {line}\n" for line in EXAMPLES[command]))
    assert 2 <= len(EXAMPLES[command]) <= 5
    # Of each option the text after its name and values, up to the next.
    text = re.sub(r"[│╭╮╰╯─]", " ", said.partition("examples:")[0])
    for option in options(COMMANDS[command]):
        pattern = rf"^ +\[?{re.escape(option.name)}(?:\]|\b)(.*?)(?=^ *--|\Z)"
        found = re.findall(pattern, text, re.DOTALL | re.MULTILINE)[0]
        words = re.sub(r"\{[^}]*\}|\[[A-Z \[.\]]*\]|\b[A-Z]{3,}\b|\|", " ", found.partition("(default")[0]).split()
        assert len(words) >= 1, f"{option.name} of {command} has no help"


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The run that --from and --resume name.
    (tmp_path / "runs/digits").mkdir(parents=True)
    (tmp_path / "runs/digits/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    program, *args = shlex.split(line.partition(" > ")[0])
    assert program == "diffusional"
    if "--help" in args:
        return
    command = parse(args)
    assert type(command).__name__.lower() == args[0]
    assert dataclasses.is_dataclass(command)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert re.fullmatch(r"diffusional \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def terminal(args: list[str], **more: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "diffusional", *args],
        stdout=theirs,
        stderr=theirs,
        env={**environment(), "TERM": "xterm", **more},
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
        process.wait()
    os.close(ours)
    return said.decode()


def test_colours_are_for_terminals_that_want_them() -> None:
    plain = dict.fromkeys(("NO_COLOR",), "")
    del plain["NO_COLOR"]
    assert "\x1b[" in terminal(["doctor", "--help"])
    assert "\x1b[" not in terminal(["doctor", "--help"], NO_COLOR="1")
    piped = subprocess.run(
        [sys.executable, "-m", "diffusional", "doctor", "--help"], capture_output=True, text=True, env=environment()
    )
    assert "\x1b" not in piped.stdout + piped.stderr


def test_tables_that_are_piped_are_a_hundred_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "31")
    assert console.console().width == 100
    assert console.console().color_system is None
    assert console.bar().disable
    with console.working("nothing moves"):
        pass


def test_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert console.numbered(path) == path
    path.touch()
    (tmp_path / "a-2.npz").touch()
    assert console.numbered(path) == tmp_path / "a-3.npz"
