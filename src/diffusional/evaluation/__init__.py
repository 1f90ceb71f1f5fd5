"""Numbers one can publish: the bound of a data set, itemised, with its errors, for as few evaluations as it takes."""

from diffusional.evaluation.averages import importance_weighted
from diffusional.evaluation.comparison import Comparison, compare
from diffusional.evaluation.evaluation import Progress, evaluate
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.result import Evaluation

__all__ = ["Comparison", "Evaluation", "Plan", "Progress", "compare", "evaluate", "importance_weighted"]
