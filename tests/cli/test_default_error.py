"""The error that `diffusional evaluate` goes for where none is given: 0.01 bits/dim, in whatever unit."""

import math
from pathlib import Path
from typing import Any, Literal

import pytest

from diffusional.cli.commands import Evaluate
from diffusional.cli.evaluate import _target


@pytest.mark.parametrize(
    ("unit", "error", "wanted"),
    [("bits/dim", None, 0.01), ("nats", None, 0.01 * 784 * math.log(2)), ("nats", 0.2, 0.2), ("bits/dim", 0.2, 0.2)],
)
def test_the_same_error_in_any_unit(unit: Literal["bits/dim", "nats"], error: float | None, wanted: float) -> None:
    assert _target(Evaluate(Path("run"), unit=unit, error=error), 784) == pytest.approx(wanted)


@pytest.mark.parametrize("other", [{"visits": 4}, {"item_error": 0.1}])
def test_none_beside_another_target(other: dict[str, Any]) -> None:
    assert _target(Evaluate(Path("run"), **other), 784) is None
