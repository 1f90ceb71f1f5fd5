"""Results are saved before they are printed, to whatever a user names, and nothing that exists is replaced by mistake."""

import errno
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from battery import environment
from diffusional import cli
from diffusional.cli import outputs
from diffusional.cli.console import Result
from diffusional.errors import DiffusionalError

RECORD = {"value": 1.5}
LINE = "NELBO 1.75 ± 0.01 [v2] 数"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that has a result at once; the folder in which it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_done", lambda command: Result(RECORD, [LINE]))
    return tmp_path


def status(*args: object) -> int:
    try:
        cli.main(["data", "a.npy", *map(str, args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


class Broken(io.StringIO):
    """A standard output that fails."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault_raised = fault

    def write(self, text: str) -> int:
        raise self.fault_raised


BROKEN: dict[str, tuple[Exception, int]] = {
    "a reader that left": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 2),
    "a closed file": (ValueError("I/O operation on closed file"), 2),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_result_is_saved_whatever_becomes_of_standard_output(
    kind: str, command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, expected = BROKEN[kind]
    monkeypatch.setattr(sys, "stdout", Broken(fault))
    assert status("--json", "r.json") == expected
    assert json.loads((command / "r.json").read_text()) == RECORD
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert ("standard output" in said) == (expected == 2)


def test_a_result_is_saved_before_it_is_printed(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[bool] = []

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            saved.append((command / "r.json").exists())
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Watched())
    assert status("--json", "r.json") == 0
    assert saved
    assert all(saved)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_written_in_another_way(
    encoding: str, command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert status() == 0
    sys.stdout.flush()
    expected = {
        "ascii": b"NELBO 1.75 +/- 0.01 [v2] \\u6570\n",
        "latin-1": b"NELBO 1.75 \xb1 0.01 [v2] \\u6570\n",
        "utf-8": f"{LINE}\n".encode(),
    }
    assert raw.getvalue() == expected[encoding]


def test_without_standard_output_the_result_is_saved(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert status("--json", "r.json") == 0
    assert json.loads((command / "r.json").read_text()) == RECORD


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_json_on_standard_output_is_all_that_is_there(
    name: str, command: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("--json", name) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == RECORD
    assert LINE in err
    assert list(command.iterdir()) == []


def test_a_named_pipe_is_written_through(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert status("--json", "pipe") == 0
        assert json.loads(os.read(reader, 65536)) == RECORD
        assert os.read(reader, 1) == b""  # the writer has closed it
    finally:
        os.close(reader)
    assert Path("pipe").is_fifo()
    assert LINE in capsys.readouterr().out


def test_an_inherited_descriptor_is_written_through(command: Path) -> None:
    reader, writer = os.pipe()
    try:
        assert status("--json", f"/dev/fd/{writer}") == 0
        assert json.loads(os.read(reader, 65536)) == RECORD
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
def test_the_target_of_a_link_is_written(there: bool, command: Path) -> None:
    (command / "elsewhere").mkdir()
    if there:
        Path("elsewhere/r.json").write_text("{}")
    os.symlink("elsewhere/r.json", "link.json")
    assert status("--json", "link.json") == 0
    assert Path("link.json").is_symlink()
    assert json.loads(Path("elsewhere/r.json").read_text()) == RECORD


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)  # the whole path may be too long for a socket


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "folder"),
    "a pipe without a reader": (os.mkfifo, "has no reader"),
    "a socket": (_socket, "socket"),
    "a loop of links": (lambda path: path.symlink_to(path), "cannot be written"),
    "a table": (lambda path: path.write_text("a,b\n1,2\n"), "not JSON"),
    "an array": (lambda path: path.write_bytes(b"\x93NUMPY"), "not JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_take_a_result_is_refused_before_the_work(
    kind: str, command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = REFUSED[kind]
    make(command / "r")
    before = os.lstat("r")
    monkeypatch.setattr(cli, "_done", lambda command: pytest.fail("the work was begun"))
    assert status("--json", "r") == 2
    assert said in capsys.readouterr().err
    assert os.path.samestat(os.lstat("r"), before)
    assert os.lstat("r").st_size == before.st_size


def test_a_result_replaces_neither_what_the_command_reads_nor_a_file_of_a_run(
    command: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.npy").write_text("{}")
    assert status("--json", "a.npy") == 2
    assert "reads this file" in capsys.readouterr().err
    Path("config.json").write_text("{}")
    assert status("--json", "config.json") == 2
    assert "belongs to the run" in capsys.readouterr().err
    assert Path("a.npy").read_text() == Path("config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["nowhere/r.json", "/proc/nowhere/r.json", "a\0b.json"])
def test_a_place_that_does_not_exist_is_refused(name: str, command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--json", name) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_cannot_be_replaced_is_written_in_place(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is mounted into a container by itself."""

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    Path("r.json").write_text("{}")
    monkeypatch.setattr(os, "replace", busy)
    assert status("--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text()) == RECORD
    assert [p.name for p in command.iterdir()] == ["r.json"]


def test_one_file_that_fails_does_not_cost_the_others(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise DiffusionalError("scores.csv could not be written")

    saves = [failing, lambda: Path("figure").write_text("drawn")]
    monkeypatch.setattr(cli, "_done", lambda command: Result(RECORD, [LINE], saves))
    assert status("--json", "r.json") == 2
    out, err = capsys.readouterr()
    assert LINE in out
    assert err == "diffusional: error: scores.csv could not be written\n"
    assert Path("r.json").exists()
    assert Path("figure").exists()


def test_special_files_are_closed_after_a_failure(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: object) -> Result:
        raise DiffusionalError("no such data")

    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(cli, "_done", failing)
    assert status("--json", "pipe") == 2
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert outputs._OPENED == {}


# As a process: what the interpreter does at its end counts too.


def shell(line: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", f"{line.replace('diffusional', f'{sys.executable} -m diffusional')}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment() | {"NO_COLOR": "1"},
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_is_one_line() -> None:
    code, said = shell("diffusional completion bash > /dev/full")
    assert code == 2
    assert said.startswith("diffusional: error: standard output could not be written (No space left on device)")
    assert said.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_error(closed: str, tmp_path: Path) -> None:
    code, said = shell(f"diffusional completion bash {closed}")
    assert (code, said) == (0, "")


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    # The reader has left before the first byte: the pipe's other end is closed.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "diffusional", "completion", "bash"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_in_ascii() -> None:
    command = [sys.executable, "-m", "diffusional", "information", "--help"]
    environ = environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environ, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gamma" in done.stdout
