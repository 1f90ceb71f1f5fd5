"""The row of a table of faults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A fault of src/diffusional/`file`: `new` instead of `old`, which has the effect `what`. `tests` are pytest arguments."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


def fault(file: str, what: str, old: str, new: str, *tests: str) -> Fault:
    """Return a row. `tests` are relative to tests/."""
    return Fault(file, what, old, new, tuple(f"tests/{test}" for test in tests))
