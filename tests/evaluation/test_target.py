"""What an evaluation is to reach, and by which estimator."""

import math
from typing import Any

import pytest

from diffusional.errors import DiffusionalError
from diffusional.evaluation.target import ImportanceWeights, Sweep, Target, Visits, resolved


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"error": 0.01, "visits": 4}, "target_error and visits"),
        ({"visits": 4, "item_error": 0.1}, "visits and item_error"),
        ({"error": 0.0}, "target_error"),
        ({"error": math.inf}, "target_error"),
        ({"item_error": -1.0}, "item_error"),
        ({"item_error": math.nan}, "item_error"),
        ({"visits": 1}, "visits"),
        ({"error": 0.1, "max_evaluations": 0}, "max_evaluations"),
        ({"max_evaluations": 100}, "max_evaluations"),
    ],
)
def test_targets_that_make_no_sense(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(DiffusionalError, match=named):
        Target(**fields)


@pytest.mark.parametrize("fields", [{"error": 1e-9}, {"visits": 2}, {"item_error": 1e9}])
def test_a_target_is_aimed_at(fields: dict[str, Any]) -> None:
    assert Target(**fields).aimed
    assert isinstance(resolved(Target(**fields), "bits/dim", None, {})[1], Visits)
    assert not Target().aimed
    assert isinstance(resolved(None, "nats", None, {})[1], Sweep)


@pytest.mark.parametrize(
    ("target", "unit", "estimator", "options", "named"),
    [
        (Target(error=0.1), "nats", None, {}, "unit"),
        (Target(error=0.1), "bits/dim", None, {"visits": 3}, "visits"),
        (None, "bits/dim", Visits(), {}, "target"),
        (0.1, "bits/dim", Sweep(), {}, "Sweep"),
        (0.1, "bits/dim", ImportanceWeights(), {}, "ImportanceWeights"),
        (0.1, "bits/dim", Visits(), {"audit": False}, "audit"),
        (0.1, "bits/dim", None, {"draws": 3}, "draws"),
        (None, "bits/dim", None, {"records": "x"}, "records"),
    ],
)
def test_what_does_not_go_together(target: Any, unit: Any, estimator: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(DiffusionalError, match=named):
        resolved(target, unit, estimator, options)


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="visit_count"):
        resolved(None, "nats", None, {"visit_count": 3})
