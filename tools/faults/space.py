"""Faults of space.py."""

from faults.row import fault

FAULTS = [
    fault(
        "space.py",
        "an item's number in its block",
        "item = start + row",
        "item = row",
        "test_space.py::test_check_names_the_item_off_the_levels",
    ),
    fault(
        "space.py",
        "bin width over K for K − 1",
        "(self.high - self.low) / (self.levels - 1)",
        "(self.high - self.low) / self.levels",
        "test_space.py::test_levels_there_and_back",
    ),
    fault(
        "space.py",
        "level below for nearest level",
        ".round().clamp",
        ".floor().clamp",
        "test_space.py::test_levels_there_and_back",
    ),
    fault(
        "space.py",
        "sign of the log-Jacobian",
        "math.fsum(math.log(s)",
        "math.fsum(-math.log(s)",
        "test_space.py::test_standardisation_and_its_jacobian",
    ),
    fault(
        "space.py",
        "one scale counted once, not D times",
        "total * self.dimensions if",
        "total if",
        "test_space.py::test_standardisation_and_its_jacobian",
    ),
    fault(
        "space.py",
        "items are raw if one position would be ordinary",
        "bool((as_raw <= _ORDINARY).all())",
        "bool((as_raw <= _ORDINARY).any())",
        "test_space.py::test_encoded_outliers_are_accepted",
    ),
    fault(
        "space.py",
        "the farthest item decides whether all are raw",
        "given.abs().median(0).values, raw",
        "given.abs().amax(0), raw",
        "test_space.py::test_encoded_outliers_are_accepted",
    ),
    fault(
        "space.py",
        "raw values that would be encoded the wrong way",
        "given - self._along(self.shift, given)",
        "given + self._along(self.shift, given)",
        "test_space.py::test_raw_values_are_refused",
    ),
]
