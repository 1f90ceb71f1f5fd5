"""Faults that `mutants.py` plants: wrong mathematics of the kinds that are easy to write and hard to see.

Each table has the faults of one module or package of src/diffusional, and its name: `models.py` those of models/. `old` occurs exactly
once in the file, and is short, so that it survives reformatting; `new` runs, and gives other numbers than `old` for some input: a fault
that changes nothing proves nothing. `tests` are those that are expected to find it.
"""

import importlib
import pkgutil

from faults.row import Fault

__all__ = ["FAULTS", "Fault", "tables"]


def tables() -> dict[str, list[Fault]]:
    """The rows of every table, by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "row")
    return {name: importlib.import_module(f"faults.{name}").FAULTS for name in names}


FAULTS = [row for rows in tables().values() for row in rows]
