"""The records of visits as the terms of a ledger, and as costs of levels: of one chain, or of the stages of a composite model; and the
differences of two models' terms and levels that have common noise.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusional.evaluation.provenance import gamma_at
from diffusional.evaluation.visit_records import Parts, VisitRecords
from diffusional.ledger import Estimate


@dataclass(frozen=True)
class Itemised:
    """The records of n visited items of N as terms and levels.

    Attributes:
        base: what is known of each term without visits, (N,) by name.
        costs: the weighted residuals of each term (n, J), for terms that are visited.
        levels: for each level or cell of levels, what is known of it (N,), and its weighted residuals (n, J).
        edges: edges of these levels, block after block, C_k + 1 each.
        gamma: γ at the edges; None if there is none.
        blocks: the number of levels of each block by name; empty for one block, "kl".
    """

    base: dict[str, Tensor]
    costs: dict[str, Tensor]
    levels: list[tuple[Tensor, Tensor]]
    edges: Tensor
    gamma: Tensor | None
    blocks: dict[str, int] = field(default_factory=dict)


def itemised(draws: VisitRecords, records: Parts, filled: Tensor) -> Itemised:
    """Return the terms and levels of a chain, by its sections if it has any."""
    return (by_section if draws.model.sections() else by_term)(draws, records, filled)


def differences(one: VisitRecords, other: VisitRecords) -> tuple[dict[str, Estimate], list[Estimate]]:
    """Return the differences of two models' terms by name, and of their levels, from the same visits of the same items, in nats.

    A term that one of the models does not have counts as 0 there. There are no levels unless both models have the same, at the same γ. The
    errors are those of the draws.
    """
    items = one.visited()
    (ours, filled), (theirs, _) = one.parts(items), other.parts(items)
    a, b = itemised(one, ours, filled), itemised(other, theirs, filled)
    nothing, zero = torch.zeros_like(one.prior), torch.zeros_like(ours.total)

    def estimate(known: Tensor, values: Tensor) -> Estimate:
        return one.survey(known, *one.spread(values, filled), 0)

    terms = {
        name: estimate(
            a.base.get(name, nothing) - b.base.get(name, nothing), a.costs.get(name, zero) - b.costs.get(name, zero)
        )
        for name in dict.fromkeys([*a.base, *a.costs, *b.base, *b.costs])
    }
    levels = (
        [estimate(mine[0] - yours[0], mine[1] - yours[1]) for mine, yours in zip(a.levels, b.levels, strict=True)]
        if _same_levels(a, b)
        else []
    )
    return terms, levels


def _same_levels(a: Itemised, b: Itemised) -> bool:
    """Return whether two models have the same levels: the same edges, blocks and, if there is one, γ."""
    if a.blocks != b.blocks or not torch.equal(a.edges, b.edges):
        return False
    if a.gamma is None or b.gamma is None:
        return a.gamma is b.gamma
    return torch.allclose(a.gamma, b.gamma, rtol=0, atol=1e-6)


def by_term(draws: VisitRecords, records: Parts, filled: Tensor) -> Itemised:
    """Return the terms of one chain: "reconstruction", "kl", "prior" and further ones, with a block of levels, "kl"."""
    parts = dict(draws.known_parts)
    # The KLs of layers between x and the chain are a part of "kl", as in a ledger.
    layers = [(parts.pop(name), records.costs[name]) for name in draws.model.layer_parts]
    kl = sum((known for known, _ in layers), draws.base[:, 1:].sum(1))
    base = {
        "reconstruction": parts.pop("reconstruction"),
        "kl": kl,
        "prior": draws.prior,
        **draws.extra,
        **parts,
    }
    costs = {name: values for name, values in records.costs.items() if name not in draws.model.layer_parts}
    costs["kl"] = sum((values for _, values in layers), costs["kl"])
    levels = [*layers, *_cells(draws, records)]
    edges, gamma, blocks = draws.plan.edges, gamma_at(draws.model, draws.plan.edges), {}
    if layers:
        # A layer has no γ, and in continuous time no place on [0, 1]: the layers are a block of their own.
        edges, gamma = torch.cat([torch.arange(1, len(layers) + 2), edges]), None
        blocks = {"layers.kl": len(layers), "kl": draws.plan.cells}
    return Itemised(base, costs, levels, edges, gamma, blocks)


def _cells(draws: VisitRecords, records: Parts) -> list[tuple[Tensor, Tensor]]:
    """Return for each cell of levels what is known of it, and its weighted residuals."""
    kl = records.costs["kl"]
    return [(draws.base[:, c], torch.where(records.cell == c, kl, 0.0)) for c in range(1, draws.plan.cells + 1)]


def by_section(draws: VisitRecords, records: Parts, filled: Tensor) -> Itemised:
    """Return the terms of a chain whose levels belong to several, `Chain.sections`, in the order of the stages: each section is a term, and
    those with levels of their own are blocks of levels.
    """
    sections, edges = draws.model.sections(), draws.plan.edges
    # The section of each cell, from its first level.
    starts = torch.tensor([one.first for one in sections], dtype=torch.float64)
    of = torch.searchsorted(starts, edges[:-1].double(), right=True) - 1
    cells, base, costs = _cells(draws, records), dict(draws.extra), dict[str, Tensor]()
    levels, blocks = list[tuple[Tensor, Tensor]](), dict[str, int]()
    every_edge, every_gamma = list[Tensor](), list[Tensor | None]()
    for i, section in enumerate(sections):
        chosen = (of == i).nonzero().squeeze(1)
        own = [cells[c] for c in chosen.tolist()]
        base[section.term] = torch.stack([known for known, _ in own]).sum(0)
        costs[section.term] = torch.stack([values for _, values in own]).sum(0)
        if section.listed:
            levels += own
            blocks[section.term] = len(own)
            ends = section.own(edges[int(chosen[0]) : int(chosen[-1]) + 2])
            every_edge.append(ends)
            gamma = section.gamma(ends.to(draws.device))
            every_gamma.append(None if gamma is None else gamma.detach().double().cpu())
    costs |= {name: values for name, values in records.costs.items() if name in draws.model.further}
    none = torch.zeros(0, dtype=edges.dtype)
    joined = torch.cat(every_edge) if every_edge else none
    known = [gamma for gamma in every_gamma if gamma is not None]
    gammas = torch.cat(known) if known and len(known) == len(every_gamma) else None
    names = draws.model.ordered([*base, *(name for name in costs if name not in base)])
    zeros = torch.zeros_like(draws.prior)
    return Itemised({name: base.get(name, zeros) for name in names}, costs, levels, joined, gammas, blocks)
