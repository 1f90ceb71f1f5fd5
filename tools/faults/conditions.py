"""Faults of conditions.py."""

from faults.row import fault

FAULTS = [
    fault(
        "conditions.py",
        "rows of a condition beside each other where items stand one after the other",
        "condition.repeat(times, *(1,) * (condition.ndim - 1))",
        "condition.repeat_interleave(times, 0)",
        "test_conditions.py::test_every_call_passes_each_item_its_own_condition",
    ),
    fault(
        "conditions.py",
        "the variable of the stage before dropped as well",
        "value if name in kept else dropped(value, rows)",
        "dropped(value, rows)",
        "training/test_joint_conditions.py::test_the_variable_of_the_stage_before_is_not_dropped",
    ),
]
