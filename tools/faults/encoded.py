"""Faults of encoded.py."""

from faults.row import fault

FAULTS = [
    fault(
        "encoded.py",
        "the first items for items spread over all",
        "data[:: -(-len(data) // _LOOKED_AT)]",
        "data[:_LOOKED_AT]",
        "test_encoded.py::test_some_of_large_data_are_spread_over_all",
    ),
    fault(
        "encoded.py",
        "a refused item counted within its block",
        "range(len(self))[rows][place]",
        "place",
        "test_encoded.py::test_the_number_of_a_refused_item_is_that_in_the_data",
    ),
]
