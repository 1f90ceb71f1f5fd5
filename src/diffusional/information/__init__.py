"""Mutual information of data and latents, and the nat budget of the bound (MATH §3, §4).

curve     I(x; z_t) along a schedule, before any training
chain_rule  the chain rules of a hierarchy, for Markov and non-Markov posteriors
pointwise   i(x; c), the information of a condition about an item
bound     upper bounds on the information of real data, from the costs of a trained denoiser
budget    the division of each cost of the bound into information and gap
aggregated  I(x; z) and KL[q(z) ‖ p(z)] of a learned posterior, over the whole training set
"""

from diffusional.deprecation import renamed_names
from diffusional.information.aggregated import LatentInformation, aggregated
from diffusional.information.bounds import InformationBound, bound
from diffusional.information.budget import BudgetRow, NatBudget, Nats, budget
from diffusional.information.chain_rule import ChainRule, chain_rule
from diffusional.information.curve import Curve, curve
from diffusional.information.estimates import Estimates
from diffusional.information.finite import Points, points_of
from diffusional.information.pointwise import BoundedInformation, PointwiseInformation, bounded, pointwise

__all__ = [
    "BoundedInformation",
    "BudgetRow",
    "ChainRule",
    "Curve",
    "Estimates",
    "InformationBound",
    "LatentInformation",
    "NatBudget",
    "Nats",
    "Points",
    "PointwiseInformation",
    "aggregated",
    "bound",
    "bounded",
    "budget",
    "chain_rule",
    "curve",
    "points_of",
    "pointwise",
]

__getattr__ = renamed_names(__name__, {"Chain": "ChainRule", "Draws": "Estimates", "chain": "chain_rule"})
