"""The tables of docs/results, each written by a function from the records in benchmarks/results.

A module has the functions of the pages of one section of docs/results/index.md. A public function of such a module is a table, and has
its name. The tables of docs/audit are made from one list of faults (audit.py).
"""

from collections.abc import Callable
from types import FunctionType

from result_tables import audit, conditions, evaluation, information, leaderboard, models, text, training

TABLES: dict[str, Callable[[], str]] = {
    name: function
    for module in (models, conditions, evaluation, information, training, text, leaderboard)
    for name, function in vars(module).items()
    if isinstance(function, FunctionType) and function.__module__ == module.__name__ and not name.startswith("_")
}
TABLES |= audit.PAGES
