"""An incomplete set of launcher variables is ignored; invalid values are refused."""

import os
from typing import Any

import pytest

from diffusional import launch
from diffusional.cli import console
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.training import process_group

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
LEFT: tuple[dict[str, str], ...] = (
    {"RANK": "1"},
    {"LOCAL_RANK": "1"},
    {"WORLD_SIZE": "4"},
    {"RANK": "1", "LOCAL_RANK": "1"},
    {"RANK": "3", "WORLD_SIZE": "4"},
    {"RANK": "", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Any:
    def leave(variables: dict[str, str]) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return leave


@pytest.mark.parametrize("variables", LEFT, ids=str)
def test_leftovers_make_no_launch(variables: dict[str, str], left: Any) -> None:
    left(variables)
    assert (launch.size(), launch.rank(), console.first()) == (1, 0, True)
    with ranks.launched():
        assert ranks.world_size() == 1


def test_of_a_launch_the_first_process_prints(left: Any) -> None:
    left(COMPLETE)
    assert (launch.size(), launch.rank(), console.first()) == (2, 1, False)
    left(COMPLETE | {"RANK": "0"})
    assert (launch.size(), launch.rank(), console.first()) == (2, 0, True)


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("WORLD_SIZE", "2.0"), ("RANK", "2"), ("RANK", "-1")])
def test_what_makes_no_sense_is_refused(name: str, value: str, left: Any) -> None:
    left(COMPLETE | {name: value})
    with pytest.raises(DiffusionalError, match=rf"{name}.*{value}.*environment"):
        launch.rank()


@pytest.mark.parametrize("variables", LEFT[:-1], ids=str)
def test_training_does_not_take_leftovers_for_a_launch(
    variables: dict[str, str], left: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def made(**_: Any) -> None:
        seen.update({name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ})
        raise InterruptedError

    left(variables)
    monkeypatch.setattr(process_group, "Accelerator", made)
    with pytest.raises(InterruptedError):
        process_group.accelerator()
    assert seen == {}
    assert {name: os.environ[name] for name in variables} == variables


def test_training_is_told_of_a_launch(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**_: Any) -> None:
        assert {name: os.environ[name] for name in COMPLETE} == COMPLETE
        raise InterruptedError

    left(COMPLETE)
    monkeypatch.setattr(process_group, "Accelerator", made)
    with pytest.raises(InterruptedError):
        process_group.accelerator()


def test_processes_that_do_not_meet_are_one_line(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lonely(*_: Any, **__: Any) -> None:
        raise ranks.dist.DistStoreError(
            "Timed out after 1801 seconds waiting for clients. 1/2 clients joined.\nframe #0"
        )

    left(COMPLETE | {"RANK": "0"})
    monkeypatch.setattr(ranks.dist, "init_process_group", lonely)
    with (
        pytest.raises(DiffusionalError, match=r"(?s)2 processes.*localhost:29500.*1/2 clients joined.*WORLD_SIZE"),
        ranks.launched(),
    ):
        pass


def test_waiting_alone_is_said(left: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class AtOnce:
        daemon = False

        def __init__(self, seconds: float, call: Any) -> None:
            self.call = call

        def start(self) -> None:
            self.call()

        def cancel(self) -> None: ...

    monkeypatch.setattr(launch.threading, "Timer", AtOnce)
    left(COMPLETE | {"RANK": "0"})
    with launch.waiting():
        pass
    said = capsys.readouterr().err
    assert "localhost:29500" in said
    assert "unset WORLD_SIZE" in said
    left({"WORLD_SIZE": "2"})
    with launch.waiting():
        pass
    assert capsys.readouterr().err == ""
