"""What an evaluation leaves: the bound of a data set, itemised, with its errors and where it came from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusional.ledger import Estimate


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The bound of a data set. `terms` and `nelbo` are Estimates in nats; the terms add up to the NELBO.

    Attributes:
        per_item: "item" (n,), the items visited (all N unless the error allowed fewer); "nelbo" and every cost (n,) in
            nats, float64; "error" (n,), each score's own Monte Carlo error.
        levels_kl, levels_error: (C,) mean cost of every level, or of every cell of levels, and its Monte Carlo error, nats.
        level_edges: (C + 1,) first level t of each cell, and L + 1; in continuous time the edges in u. Of a composite model, the edges
            of each block of levels one after the other, C_k + 1 each.
        gamma_edges: γ = −log SNR at `level_edges`, float64; None if the model's latents have no γ.
        blocks: number of levels or cells C_k of each block of levels by name, in the order of `levels_kl`; {"kl": C} unless given.
        freedom: degrees of freedom of the Monte Carlo error.
        reached: False if a target was given and not reached within the budget, or if there are caveats.
        caveats: reasons why the error may be too small, one sentence each; empty if there are none.
    """

    nelbo: Estimate
    terms: Mapping[str, Estimate]
    per_item: Mapping[str, Tensor]
    levels_kl: Tensor
    levels_error: Tensor
    level_edges: Tensor
    dimensions: int
    provenance: Mapping[str, Any]
    freedom: float = math.inf
    reached: bool = True
    caveats: tuple[str, ...] = field(default=())
    gamma_edges: Tensor | None = None
    blocks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Doubts about the data, from `provenance`, are caveats of every result.
        doubts = [text for text in self.provenance.get("doubts", ()) if text not in self.caveats]
        if doubts:
            object.__setattr__(self, "caveats", (*self.caveats, *doubts))
        if not self.blocks:
            object.__setattr__(self, "blocks", {"kl": len(self.levels_kl)})

    def interval(self, confidence: float = 0.95, unit: str = "nats") -> tuple[float, float]:
        """Monte Carlo confidence interval of this data set's NELBO, by Student's t.

        >>> import torch
        >>> one = Estimate(10.0, 1.0, 0.0, n=1, network_evaluations=0)
        >>> none = torch.zeros(0)
        >>> low, high = Evaluation(one, {}, {}, none, none, none, 1, {}).interval()
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
        """
        return self.nelbo.to(unit, self.dimensions).interval(self.freedom, confidence)

    def to_json(self) -> dict[str, Any]:
        """The record that `diffusional evaluate --json` writes."""
        return {
            "nelbo": self.nelbo.to("bits/dim", self.dimensions).to_dict(),
            "nelbo_nats": self.nelbo.to_dict(),
            "interval": self.nelbo.intervals(self.freedom, self.dimensions),
            "terms": {name: term.to_dict() for name, term in self.terms.items()},
            "levels_kl": self.levels_kl.tolist(),
            "levels_kl_error": [v if math.isfinite(v) else None for v in self.levels_error.tolist()],
            "level_edges": self.level_edges.tolist(),
            "items": self.nelbo.n,
            "items_visited": len(self.per_item["nelbo"]),
            "dimensions": self.dimensions,
            "levels": self.provenance.get("levels"),
            "network_evaluations": self.nelbo.network_evaluations,
            "reached": self.reached,
            "caveats": list(self.caveats),
            "provenance": dict(self.provenance),
        }


def edges_of_blocks(blocks: Mapping[str, int]) -> Tensor:
    """Return the edges of single levels, block after block: 1, …, C_k + 1 for each.

    >>> edges_of_blocks({"base.kl": 2, "upsampler.kl": 1})
    tensor([1, 2, 3, 1, 2])
    """
    return torch.cat([torch.arange(count + 1) + 1 for count in blocks.values()])
