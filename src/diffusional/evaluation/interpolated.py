"""Functions of ε and γ by look-up tables: 49 values of ε from −6 to 6 with straight lines between them, at γ rounded to a quarter.

A control that is the interpolated table, and not the function that it was made from, has the exact expectation Σ_j ω_j h(ε_j), with ω_j the
normal expectations of the interpolating hat functions. Visits of the reconstruction have one table, at γ_1 itself.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusional.evaluation.control import Look

# The distance of two tables in γ.
TABLE_STEP = 0.25
# Nodes in ε, from −6 to 6.
NODES, REACH = 49, 6.0


def nodes() -> tuple[Tensor, Tensor]:
    """Return the values of ε (J,) and their weights ω (J,).

    >>> values, weights = nodes()
    >>> float(values[0]), round(float(weights.sum()), 12), round(float(weights @ values.square()), 4)        # E ε² and what lines add
    (-6.0, 1.0, 1.0104)
    """
    values = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    return values, hat_weights(values)


def places(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return for ε (B, D) the number of the node before it, and the distance from there in units of the nodes'."""
    place = ((noise + REACH) * ((NODES - 1) / (2 * REACH))).clamp(0, NODES - 1)
    before = place.long().clamp(max=NODES - 2)
    return before, place - before


def rounded(gamma: Tensor, first: bool) -> Tensor:
    """Return the γ (L,) of the tables for γ (L,): the nearest quarters, or with `first` γ itself.

    >>> rounded(torch.tensor([0.3, -1.4]), False), rounded(torch.tensor([0.3]), True)
    (tensor([ 0.2500, -1.5000]), tensor([0.3000]))
    """
    return gamma if first else (gamma / TABLE_STEP).round() * TABLE_STEP


def by_table(look: Look) -> Iterator[tuple[Tensor, float, bool]]:
    """Yield the visits that share a table: their numbers, the γ of the table, and whether it is that of the reconstruction."""
    tables = torch.where(look.first, torch.iinfo(torch.long).max, (look.gammas / TABLE_STEP).round().long())
    for table in tables.unique().tolist():
        some = (tables == table).nonzero().squeeze(1)
        first = bool(look.first[some[0]])
        yield some, float(look.gammas[some[0]]) if first else table * TABLE_STEP, first


def hat_weights(nodes: Tensor) -> Tensor:
    """Return E of the hat functions at increasing nodes (J,) over N(0, 1), the outermost being constant beyond the ends: the expectation of
    a function that is linear between the nodes is its values times these.

    >>> hat_weights(torch.tensor([-1.0, 0.0, 1.0]).double())                      # E min(|ε|, 1) = 0.6313 is the sum of the outer two
    tensor([0.3156, 0.3687, 0.3156], dtype=torch.float64)
    """
    step = nodes[1:] - nodes[:-1]
    tail = torch.special.ndtr(-nodes)
    density = torch.exp(-0.5 * nodes.square()) / math.sqrt(2 * math.pi)
    mass, first = tail[:-1] - tail[1:], density[:-1] - density[1:]
    right = (first - nodes[:-1] * mass) / step
    outer = torch.stack([1 - tail[0], tail[-1]])
    inner = torch.nn.functional.pad(right, (1, 0)) + torch.nn.functional.pad(mass - right, (0, 1))
    inner[0] += outer[0]
    inner[-1] += outer[1]
    return inner
