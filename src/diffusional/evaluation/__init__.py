"""Numbers one can publish: the bound of a data set, itemised, with its errors, for as few evaluations as it takes."""

from diffusional.evaluation import continuations as continuations
from diffusional.evaluation import pilot as pilot  # registers what `Plan.fit` calls
from diffusional.evaluation.comparison import compare
from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.evaluation import Progress, evaluate
from diffusional.evaluation.importance import importance_weighted
from diffusional.evaluation.ode import ode_log_likelihood
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.replicates import by_replicates
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.target import ODE, ImportanceWeights, Replicates, Sweep, Target, Visits

__all__ = [
    "ODE",
    "Comparison",
    "Evaluation",
    "ImportanceWeights",
    "Plan",
    "Progress",
    "Replicates",
    "Sweep",
    "Target",
    "Visits",
    "by_replicates",
    "compare",
    "evaluate",
    "importance_weighted",
    "ode_log_likelihood",
]
