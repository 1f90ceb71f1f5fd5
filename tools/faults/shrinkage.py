"""Faults of shrinkage.py."""

from faults.row import fault

FAULTS = [
    fault(
        "shrinkage.py",
        "tr S² left out of the covariance's error",
        "(fourth / items - second)",
        "(fourth / items)",
        "test_shrinkage.py::test_against_scikit_learn",
    ),
    fault(
        "shrinkage.py",
        "the squared sum over items for the sum of squares",
        "(squares.sum(1) ** 2).sum()",
        "squares.sum(1).sum() ** 2",
        "test_shrinkage.py::test_sums_over_items_are_those_over_dimensions",
    ),
]
