"""Numbers one can publish: the bound of a data set, itemised, with its errors."""

from diffusional.evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
