"""Faults of redrawn.py."""

from faults.row import fault

FAULTS = [
    fault(
        "redrawn.py",
        "a redrawn position never gets its own category again",
        "(keep + fresh).expand(*z.shape, 1)",
        "keep.expand(*z.shape, 1)",
        "test_masked_worlds.py::test_every_cost_of_a_uniform_chain_by_the_sum_over_its_latents",
    ),
]
