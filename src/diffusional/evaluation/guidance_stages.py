"""The costs of a guided system of several stages for every weight, from one pair of predictions at every visit.

A visit evaluates the network of one stage with and without the condition. The cost of the visit for a weight w is that of the guided chain
itself, whose denoiser combines the two predictions anew, so that noised conditions, latents that are handed over and decoders need no formulas
of their own. Visits of stages that are not guided have one cost for all weights.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.plan import visited
from diffusional.evaluation.visits import LevelVisits, visit_costs
from diffusional.models.guidance import Guided, combined
from diffusional.models.parameterization import Prediction

# A weight that is neither 0 nor 1, for which a guided chain would leave out one of the predictions.
_ANY = 2.0


class _Pairs(Guided):
    """A guided denoiser whose calls after `begin` and after every `again` are the same ones: both predictions are computed once.

    `weight` may be changed between `again`s.
    """

    def __init__(self, guided: Guided) -> None:
        super().__init__(guided.denoiser, guided.weight, null=guided.null, kept=guided.kept)
        self.begin()

    def begin(self) -> None:
        self.found: list[tuple[Prediction, Prediction]] = []
        self.place = 0

    def again(self, weight: float) -> None:
        self.weight, self.place = weight, 0

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        if self.place == len(self.found):
            self.found.append(self.both(z, gamma, condition))
        given, without = self.found[self.place]
        self.place += 1
        return combined(given, without, self.weight)


class GuidedStages:
    """A system whose stages are guided by a weight that may be changed.

    Args:
        model: a `Composite`.
        stages: names of the guided stages; by default those that take the condition.
        null: as for `df.Guided`.

    Raises DiffusionalError as `Composite.guided` does, and for a stage with a learned variance.
    """

    def __init__(self, model: Any, stages: Collection[str] | None = None, null: Any = None) -> None:
        self.names = tuple(model.conditional if stages is None else [stages] if isinstance(stages, str) else stages)
        guided = model.guided(_ANY, null=null, stages=self.names)
        self._pairs = []
        for parent in list(guided.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Guided) and not isinstance(child, _Pairs):
                    if child.learns_variance:
                        raise DiffusionalError(
                            "expected stages with a fixed variance for a table over weights, got one with a learned variance, whose costs are "
                            "not quadratic in w; use df.evaluate(model.guided(w), …) for each weight"
                        )
                    pairs = _Pairs(child)
                    setattr(parent, name, pairs)
                    self._pairs.append(pairs)
        self.chain = visited(guided)
        # For every section of levels: where it ends, its stage, and whether its costs are quadratic in w.
        sections = self.chain.sections()
        self._ends = torch.tensor([section.last for section in sections], dtype=torch.float64)
        self.stages = [section.term.rpartition(".")[0] for section in sections]
        self.quadratic = torch.tensor([section.listed for section in sections])
        self.guided = torch.tensor([stage in self.names for stage in self.stages])

    def section(self, visits: LevelVisits) -> Tensor:
        """Return the number of the section (V,) of each visit."""
        place = torch.bucketize(visits.level.double(), self._ends, right=True)
        return place.clamp(max=len(self._ends) - 1)

    def costs(
        self, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Condition | None, weights: list[float]
    ) -> Tensor:
        """Return the cost of every visit (V, W) for each weight: two network evaluations at guided stages, one at others."""
        out = torch.zeros(len(x), len(weights), dtype=torch.float64)
        guided = self.guided[self.section(visits)]
        for those, every in ((~guided, weights[:1]), (guided, weights)):
            rows = those.nonzero().squeeze(1)
            if not len(rows):
                continue
            at = rows.to(x.device)
            for pairs in self._pairs:
                pairs.begin()
            found = []
            for weight in every:
                for pairs in self._pairs:
                    pairs.again(weight)
                found.append(visit_costs(self.chain, x[at], visits[rows], noise[at], rows_of(condition, at)))
            out[rows] = torch.stack(found, 1).expand(-1, len(weights))
        return out
