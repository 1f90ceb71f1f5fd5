"""Faults of interop/."""

from faults.row import fault

FAULTS = [
    fault(
        "interop/check.py",
        "sign of z in the implied noise",
        "alphas * self.output - a * self.z",
        "alphas * self.output + a * self.z",
        "interop/test_check.py::test_nothing_is_found_where_nothing_is_wrong",
    ),
    fault(
        "interop/check.py",
        "noise not scaled with the data",
        "+ 2 * math.log(how.zoom)",
        "- 2 * math.log(how.zoom)",
        "interop/test_check.py::test_finds_the_declarations_that_are_wrong",
    ),
    fault(
        "interop/check.py",
        "sign of the noise in EDM's F",
        "-skip * noise / out",
        "skip * noise / out",
        "interop/test_check.py::test_foreign_inputs_and_outputs_are_recognised",
    ),
    fault(
        "interop/check.py",
        "standard error of a margin without the factor of the jackknife",
        "float(((n - 1) / n * (without",
        "float(n * n * ((n - 1) / n * (without",
        "interop/test_check.py::test_finds_the_declarations_that_are_wrong",
    ),
]
