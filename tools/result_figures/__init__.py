"""The figures of docs/results, each drawn by a function from the records in benchmarks/results.

A module has the functions of the pages of one section of docs/results/index.md. A public function of such a module is a figure, and has
its name: it gets matplotlib axes, draws on them, and returns the figure's alternative text, a sentence that states the finding. To add one,
write the function and a line `<!-- figure: NAME -->` in the page, and run `make results`.
"""

from collections.abc import Callable

from result_figures import conditions, evaluation, information, models, training
from result_figures.common import Drawn

FIGURES: dict[str, Callable[[], Drawn]] = {
    name: function
    for module in (models, conditions, evaluation, information, training)
    for name, function in vars(module).items()
    if getattr(function, "__module__", None) == module.__name__ and not name.startswith("_")
}
