"""The levels of all stages of a composite model, numbered one after the other, so that an evaluation can visit them one by one.

Every network evaluation of a stage is a level here: each KL_t, and −ln p(y|z_1) if its decoder takes the network (a level of its own, before
those of the stage). A stage without levels, such as a decoder p(x|y) or a VAE, is one level with its whole cost. A visit draws the stage's
condition anew, evaluates one network once, and is a cost of x, in nats. Costs that take no network (KL_T, decoders p(y|z_1) without network,
entropies, log-Jacobians) are known exactly, or drawn at every visit.

In discrete time the levels are 1, …, L. If a stage is in continuous time, all share u in [0, 1]: each section has an equal part of it, and
a cost of the section is a density there, which the integral over the part turns into the cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, rows_of
from diffusional.ledger import total_of
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.models.protocols import AffineCosts, Section
from diffusional.models.renoised import terms_of
from diffusional.models.visited_chain import VisitedChain
from diffusional.shapes import Batch, PerItem

if TYPE_CHECKING:
    from diffusional.models.composite import Composite

Cost = Callable[[Tensor, Tensor, Tensor, Condition | None], Tensor]


@dataclass(frozen=True)
class _Part:
    """Levels of one term of one stage.

    Attributes:
        stage, term: the stage's name, and the term's in the joint ledger, such as "base" and "base.kl".
        levels: their number; None for a chain in continuous time.
        cost: (items (B, …), levels (B,), noise (B, n), condition) → costs (B,), or densities dKL/du.
        chain: the chain whose levels they are; None for a single cost.
    """

    stage: str
    term: str
    levels: int | None
    cost: Cost
    chain: Chain | None = None


def _parts(stage: str, model: LatentVariableModel) -> list[_Part]:
    """Return the levels of a stage, in order."""
    chain = model.visited()
    if chain is None:
        numbers = math.prod(model.noise_shape)

        def whole(x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
            ledger = terms_of(model, x, noise[:, :numbers], condition)
            return ledger.reconstruction if model.only_reconstructs else ledger.nelbo

        return [_Part(stage, f"{stage}.{'reconstruction' if model.only_reconstructs else 'nelbo'}", 1, whole)]
    size, shape = math.prod(chain.visit_shape), chain.visit_shape

    def decoded(x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        return total_of(chain.decoder_costs(x, noise[:, :size].reshape(-1, *shape), condition)).double()

    def kl(x: Tensor, level: Tensor, noise: Tensor, condition: Condition | None) -> Tensor:
        return chain.level_kl(x, level, noise[:, :size].reshape(-1, *shape), condition)

    found = [_Part(stage, f"{stage}.kl", chain.timesteps, kl, chain)]
    if chain.decoder_uses_network:
        found.insert(0, _Part(stage, f"{stage}.reconstruction", 1, decoded))
    return found


@dataclass(frozen=True)
class _Affine:
    """The levels of a part whose chain has affine costs, or a chain inside it: see `AffineLevels`."""

    stages: "StageChain"
    part: int
    affine: AffineCosts
    shift: int
    skipped: int

    @property
    def _stage(self) -> str:
        return self.stages._all[self.part].stage

    @property
    def fixed(self) -> bool:
        whole = self.stages._discrete_time or self.affine.timesteps is None
        return whole and self.stages.model.fixed(self._stage)

    def items(self, x: Tensor, noise: Tensor) -> Tensor:
        model, kept = self.stages.model, self.stages._kept(x)
        if model.fixed(self._stage):
            return model.variable(self._stage, x, kept)
        return model.given(self._stage, x, noise[:, : model.drawn], None, kept)[0]

    def noise(self, noise: Tensor) -> Tensor:
        begin, shape = self.stages.model.drawn + self.skipped, self.affine.space.shape
        return noise[:, begin : begin + math.prod(shape)].reshape(-1, *shape)

    def found(self, latent: Tensor, first: Tensor) -> tuple[Tensor, Tensor, float]:
        part, at = self.stages._place(latent - 1 if self.stages._discrete_time else latent)
        rows = ((part == self.part) & ~first).nonzero().squeeze(1)
        level, factor = self.stages._level(self.stages._all[self.part], at[rows])
        return rows, level + self.shift if self.shift else level, factor

    def cells(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.stages._span(self.part)
        middle = 0.5 * (edges[:-1] + edges[1:]).double()
        cells = ((middle > first) & (middle < last)).nonzero().squeeze(1)
        own = self.stages._own(self.part, edges[torch.cat([cells, cells[-1:] + 1])])
        return cells, own + self.shift if self.shift else own


class StageChain(VisitedChain):
    """The chain that `Composite.visited` returns. Its noise (B, n) is that of the stages' variables, then that of the level."""

    def __init__(self, model: "Composite") -> None:
        super().__init__(model)
        parts = [part for name, stage in model.models() for part in _parts(name, stage)]
        counts = [part.levels for part in parts]
        object.__setattr__(self, "_all", parts)
        self._discrete_time = None not in counts
        ends = [0]
        for count in counts:
            ends.append(ends[-1] + (count or 0))
        self._ends = ends
        sizes = [_noise_of(stage) for _, stage in model.models()]
        self.visit_size = model.drawn + max(sizes)
        # In the order of `beside`.
        self.further = tuple(self._names())

    model: "Composite"  # pyright: ignore[reportIncompatibleVariableOverride]
    _all: list[_Part]

    @property
    def steps(self) -> int | None:
        """L + 1, with L the number of levels of all stages; None if one of them is in continuous time."""
        return self._ends[-1] + 1 if self._discrete_time else None

    @property
    def decoder_uses_network(self) -> bool:
        """False: the decoders of the stages are among the levels."""
        return False

    @property
    def visit_shape(self) -> tuple[int, ...]:
        return (self.visit_size,)

    def noise_levels(self) -> Tensor:
        """Return the noise levels of all chains, one after the other."""
        chains = [stage.visited() for _, stage in self.model.models()]
        every = [chain.noise_levels().detach().cpu().double() for chain in chains if chain is not None]
        return torch.cat(every) if every else torch.zeros(0, dtype=torch.float64)

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        """Return None: stages have γ of their own, see `sections`."""
        return None

    def identity(self) -> list[Any]:
        return self.model.identity()

    def affine_levels(self) -> tuple[_Affine, ...]:
        found = []
        for i, part in enumerate(self._all):
            chain, shift, skipped = part.chain, 0, 0
            while chain is not None and chain.affine is None:
                inner = chain.inner()
                chain, more, before = (None, 0, 0) if inner is None else inner
                shift, skipped = shift + more, skipped + before
            if chain is not None and chain.affine is not None:
                found.append(_Affine(self, i, chain.affine, shift, skipped))
        return tuple(found)

    def sections(self) -> tuple[Section, ...]:
        found = []
        for i, part in enumerate(self._all):
            first, last = self._span(i)
            chain = part.chain
            gamma = (lambda edges: None) if chain is None else chain.gamma_at
            found.append(
                Section(part.term, first, last, chain is not None, lambda edges, i=i: self._own(i, edges), gamma)
            )
        return tuple(found)

    def ordered(self, names: Sequence[str]) -> list[str]:
        """Return names stage by stage; of each stage the reconstruction, its levels, KL_T, and further terms."""
        stages, terms = list(self.model.stages), ["reconstruction", "nelbo", "kl", "prior"]

        def place(name: str) -> tuple[int, int]:
            stage, _, term = name.partition(".")
            return stages.index(stage), terms.index(term) if term in terms else len(terms)

        return sorted(names, key=place)

    def _span(self, i: int) -> tuple[float, float]:
        if self._discrete_time:
            return float(self._ends[i] + 1), float(self._ends[i + 1] + 1)
        return i / len(self._all), (i + 1) / len(self._all)

    def _own(self, i: int, edges: Tensor) -> Tensor:
        """Return edges of the levels of a part as those of its stage: t from 1 on, or u."""
        if self._discrete_time:
            return edges - self._ends[i]
        within = (edges.double() * len(self._all) - i).clamp(0, 1)
        count = self._all[i].levels
        return within if count is None else 1 + (within * count).round().long()

    def _place(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part (B,) of each level, and the position in it: t − 1 (int64), or u in [0, 1]."""
        if self._discrete_time:
            part = torch.bucketize(level - 1, torch.tensor(self._ends[1:], device=level.device), right=True)
            return part, level - 1 - torch.tensor(self._ends, device=level.device)[part]
        scaled = level.double() * len(self._all)
        part = scaled.long().clamp(max=len(self._all) - 1)
        return part, (scaled - part).clamp(0, 1)

    def _kept(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the output of the encoder for every row (`Composite.encoded`), which takes no condition."""
        return self._once(x, None, lambda some, _: self.model.encoded(some)) if self.model.encodes else ()

    def level_constants(self, level: PerItem) -> PerItem:
        out = torch.zeros(len(level), dtype=torch.float64, device=level.device)
        part, at = self._place(level)
        for i, one in enumerate(self._all):
            rows = (part == i).nonzero().squeeze(1)
            if one.chain is None or not len(rows):
                continue
            own, factor = self._level(one, at[rows])
            out[rows] = factor * one.chain.level_constants(own).to(out)
        return out

    def _level(self, part: _Part, at: Tensor) -> tuple[Tensor, float]:
        """Return the stage's own level for a position in the part, and the factor that makes its cost a density of the joint time."""
        if self._discrete_time:
            return at + 1, 1.0
        if part.levels is None:
            return at, float(len(self._all))
        return (at * part.levels).long().clamp(max=part.levels - 1) + 1, float(len(self._all) * part.levels)

    def level_kl(self, x: Batch, level: PerItem, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the cost of each level (B,): one evaluation of the network of its stage."""
        out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        place, at = self._place(level)
        for i, part in enumerate(self._all):
            rows = (place == i).nonzero().squeeze(1)
            if not len(rows):
                continue
            some, drawn = x[rows], noise[rows]
            c, kept = rows_of(condition, rows), self._kept(some)
            item, given = self.model.given(part.stage, some, drawn[:, : self.model.drawn], c, kept)
            own, factor = self._level(part, at[rows])
            out[rows] = factor * part.cost(item, own, drawn[:, self.model.drawn :], given).to(out)
        return out

    def prior(self, x: Batch) -> PerItem:
        """Return 0 (B,): the KL_T of the stages are in `extra` and `beside`, by name."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def reconstruction(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> PerItem:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return 0 (B,): the reconstructions of the stages are levels of their own, or in `beside`."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _names(self) -> list[str]:
        found = []
        for name, stage in self.model.models():
            chain = stage.visited()
            if chain is None:
                continue
            if chain.decodes and not chain.decoder_uses_network:
                found.append(f"{name}.reconstruction")
            found += [f"{name}.{term}" for term in chain.further]
            if not self.model.fixed(name):
                found.append(f"{name}.prior")
        return [*found, *self.model.further]

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        """Return KL_T of every stage whose variable is a function of x, and log-Jacobians, by name: exact."""
        found, kept = {}, self._kept(x)
        for name, stage in self.model.models():
            chain = stage.visited()
            item = self.model.variable(name, x, kept) if self.model.fixed(name) else x
            zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            if chain is None and not stage.only_reconstructs:
                continue  # the whole cost of the stage is one level, which includes these
            if chain is None:
                terms = {"kl": zero, "prior": zero, **stage.extra(item)}
            else:
                terms = chain.extra(item)
                if not chain.decodes:
                    found[f"{name}.reconstruction"] = zero
                if self.model.fixed(name):
                    found[f"{name}.prior"] = chain.prior(item).double()
            found |= {f"{name}.{term}": value for term, value in terms.items()}
        return found

    def beside(self, x: Batch, noise: Tensor, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return draws of the costs in `further`: those that take no network evaluation but depend on the noise."""
        if not self.further:
            return {}
        shared, own, kept = noise[:, : self.model.drawn], noise[:, self.model.drawn :], self._kept(x)
        found = self.model.beside(x, shared, kept)
        for name, stage in self.model.models():
            chain = stage.visited()
            wanted = [term for term in self.further if term.startswith(f"{name}.") and term not in found]
            if chain is None or not wanted:
                continue
            item, c = self.model.given(name, x, shared, condition, kept)
            drawn = own[:, : math.prod(chain.visit_shape)].reshape(-1, *chain.visit_shape)
            found |= {f"{name}.{term}": value for term, value in chain.beside(item, drawn, c).items()}
            if chain.decodes and not chain.decoder_uses_network:
                found[f"{name}.reconstruction"] = total_of(chain.decoder_costs(item, drawn, c))
            if not self.model.fixed(name):
                found[f"{name}.prior"] = chain.prior(item)
        return {name: found[name].double() for name in self.further}


def _noise_of(model: LatentVariableModel) -> int:
    """Return the number of standard normal numbers of one visit to a stage."""
    chain = model.visited()
    return math.prod(model.noise_shape) if chain is None else math.prod(chain.visit_shape)
