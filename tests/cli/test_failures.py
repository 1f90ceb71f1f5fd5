"""How an error ends a command: one line, a status, and a traceback only with --debug."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusional import cli
from diffusional.cli.failures import failure
from diffusional.errors import DiffusionalError


def failed(
    fault: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str]:
    def failing(command: object) -> None:
        raise fault

    monkeypatch.setattr(cli, "_done", failing)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "run", *args])
    out, err = capsys.readouterr()
    assert out == ""
    return int(stop.value.code or 0), err


def allocate() -> None:
    torch.empty(2**62)


def _raised(call: object) -> Exception:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


SHORT_OF_MEMORY = {
    "python": MemoryError(),
    "numpy": _raised(lambda: np.empty(2**60)),
    "torch": _raised(allocate),
    "torch, of the allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
    ),
    "cuda": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB"
    ),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "c++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("kind", SHORT_OF_MEMORY)
def test_a_lack_of_memory_says_what_to_lower(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = failed(SHORT_OF_MEMORY[kind], monkeypatch, capsys)
    assert status == 2
    assert said.startswith("diffusional: error: out of memory")
    assert said.endswith("Lower --n\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("kind", "amount"), [("torch, of the allocator", "4 GiB"), ("cuda", "2 GiB")])
def test_how_much_memory_was_asked_for_is_said(kind: str, amount: str) -> None:
    assert f"({amount} more were needed)" in failure(SHORT_OF_MEMORY[kind])[1]


def test_what_to_lower_depends_on_the_command() -> None:
    for command, option in (("train", "--batch"), ("information", "--samples"), ("data", "--data.size")):
        assert option in failure(MemoryError(), command)[1]


def test_an_error_of_ours_about_memory_is_left_as_it_is() -> None:
    assert failure(DiffusionalError("not enough memory for 3 tables")) == (2, "error: not enough memory for 3 tables")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (DiffusionalError("levels must be at least 2"), 2, "error: levels must be at least 2"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.npy"), 2, "error: [Errno 2] No such file: 'a.npy'"),
        (ModuleNotFoundError("No module named 'torch'"), 2, "doctor"),
        (IndexError("list index out of range"), 70, "internal error: IndexError: list index out of range"),
        (RuntimeError("two\nlines"), 70, "two lines"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_traceback_is_shown_on_request_only(
    fault: Exception,
    status: int,
    said: str,
    debug: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, err = failed(fault, monkeypatch, capsys, *(["--debug"] if debug else []))
    assert code == status
    assert said in err.splitlines()[-1]
    assert ("Traceback" in err) == debug
    assert debug or err.count("\n") == 1
    if status == 70:
        assert "--debug" in err
        assert "cli/__init__.py:" in err  # the last place of ours that the error went through


def test_debug_is_taken_anywhere_and_shows_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--debug", "trian"], ["trian", "--debug"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(args)
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert said.splitlines()[-1].startswith("diffusional: error: unknown command 'trian'; did you mean train?")


def test_warnings_are_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from diffusional.cli.console import Result

    def warned(command: object) -> Result:
        warnings.warn("a checkpoint is damaged", stacklevel=1)
        return Result({})

    monkeypatch.setattr(cli, "_done", warned)
    cli.main(["sample", "run"])
    assert capsys.readouterr().err == "diffusional: warning: a checkpoint is damaged\n"


@pytest.mark.parametrize("seed", ["-1", str(2**64), str(-(2**63))])
@pytest.mark.parametrize("command", ["sample", "evaluate", "information"])
def test_seeds_out_of_range_are_refused(command: str, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, "run", "--seed", seed])
    said = capsys.readouterr().err
    assert "--seed" in said
    assert f"got {seed}" in said
    assert "2^64" in said


def test_the_largest_seed_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sample", str(tmp_path / "run"), "--seed", str(2**64 - 1)])
    assert "--seed" not in capsys.readouterr().err
    torch.Generator().manual_seed(2**64 - 1)
