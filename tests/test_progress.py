"""Progress lines, by a clock that the tests turn."""

import pytest

from diffusional.progress import ProgressLines, duration


class Clock:
    """A clock that shows `now` until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def lines(clock: Clock, said: list[str]) -> ProgressLines:
    return ProgressLines(said.append, "training", "steps", clock=clock)


def test_the_forecast_comes_after_ten_steps_and_lines_every_thirty_seconds(
    lines: ProgressLines, clock: Clock, said: list[str]
) -> None:
    when: dict[float, str] = {}
    for step in range(1, 121):
        clock.now = float(step)
        before = len(said)
        lines.update(step, 1000, f"{step}.5 bits/dim")
        if len(said) > before:
            (when[clock.now],) = said[before:]
    assert when == {
        10.0: "training: 10 of 1,000 steps, 1 steps/s, expected duration 16 min 39 s",
        30.0: "training: 30 of 1,000 steps, 1 steps/s, 16 min 10 s remaining, 30.5 bits/dim",
        60.0: "training: 60 of 1,000 steps, 1 steps/s, 15 min 40 s remaining, 60.5 bits/dim",
        90.0: "training: 90 of 1,000 steps, 1 steps/s, 15 min 10 s remaining, 90.5 bits/dim",
        120.0: "training: 120 of 1,000 steps, 1 steps/s, 14 min 40 s remaining, 120.5 bits/dim",
    }


def test_the_start_and_earlier_sessions_do_not_count(lines: ProgressLines, clock: Clock, said: list[str]) -> None:
    for i in range(10):
        clock.now = 500.0 + 2 * i if i else 29.0
        lines.update(901 + i, 1000)
    clock.now = 600.0
    lines.update(911, 1000)
    assert [line.split(",")[0] for line in said] == ["training: 902 of 1", "training: 910 of 1", "training: 911 of 1"]
    # 10 steps since the first update, which came at 29 s.
    assert "0.0175 steps/s" in said[-1]


def test_updates_without_an_advance_are_no_steps(lines: ProgressLines, clock: Clock, said: list[str]) -> None:
    for step in range(1, 10):
        clock.now = 0.1 * step
        lines.update(step, 100)
    for _ in range(20):
        clock.now += 0.1
        lines.update(9, 100, "validating")
    assert said == []
    clock.now = 31.0
    lines.update(9, 100, "validating")
    assert len(said) == 1
    assert said[0].endswith(", validating")
    lines.update(10, 100)
    assert "expected duration" in said[-1]


def test_a_limit_and_an_unknown_total(lines: ProgressLines, clock: Clock, said: list[str]) -> None:
    lines.update(1, None)
    clock.now = 30.0
    lines.update(7, None, "2 nats")
    clock.now = 60.0
    lines.update(13, 1_000_000, left=45.0)
    clock.now = 90.0
    lines.update(19, 20, left=45.0)
    assert said == [
        "training: 7 steps, 0.2 steps/s, 2 nats",
        "training: 13 of 1,000,000 steps, 0.2 steps/s, 45 s remaining",
        "training: 19 of 20 steps, 0.2 steps/s, 5 s remaining",
    ]


def test_a_clock_that_stands_still_divides_by_nothing(lines: ProgressLines, said: list[str]) -> None:
    for step in range(20):
        lines.update(step, 20)
    assert said == []


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1 min"), (3599.0, "59 min 59 s"), (86_399.0, "23 h 59 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
