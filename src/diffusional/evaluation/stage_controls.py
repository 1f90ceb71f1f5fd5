"""Control variates of the stages of a composite model: those of each stage's own chain, at the levels that are its own.

A visit to a level of a stage whose KL_t are affine in ‖ε − ε̂‖² has a control h(y, ε, γ) for the stage's variable y, as the chain has when it is
evaluated by itself. Cells of a plan never have levels of two stages, so that the controls of all stages share one column of coefficients.

h − E h has mean zero given y, whether y is a function of x or drawn anew at every visit. The expectation E h (y, γ) is subtracted only for a y that
is a function of x, since its sum over the levels is then known without a draw.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusional.evaluation.control import Control, Look
from diffusional.evaluation.histogram import MOST_LEVELS, Histogram
from diffusional.evaluation.moments import Moments
from diffusional.evaluation.visits import quadrature, slopes
from diffusional.evaluation.wiener import Wiener
from diffusional.models.chain import Chain
from diffusional.models.protocols import AffineLevels
from diffusional.space import Discrete

PREFIX = "stages-"


class StageControls:
    """The controls of one kind, "wiener", "histogram" or "moments", of all stages that have it.

    Args:
        kind: the kind.
        chain: the levels of a composite model.
        controls: the control of every section of levels that has one, by its index among `chain.affine_levels()`.

    All functions are in nats: `at` multiplies them by the slopes of the levels.
    """

    # The variances over ε are not known for all levels together.
    models_cost = False

    def __init__(self, kind: str, chain: Chain, controls: Mapping[int, Control]) -> None:
        self.kind, self.name, self.chain = kind, PREFIX + kind, chain
        self.controls = dict(controls)
        self.levels = chain.affine_levels()
        self.expects, self.draws = (
            tuple(dict.fromkeys(name for one in self.controls.values() for name in getattr(one, part)))
            for part in ("expects", "draws")
        )

    @classmethod
    def fit(cls, kind: str, chain: Chain, x: Tensor) -> "StageControls | None":
        """Fit the controls of a kind to items x (N, *dims); None if no stage has it."""
        found: dict[int, Control] = {}
        for i, part in enumerate(chain.affine_levels()):
            generator = torch.Generator().manual_seed(0)
            noise = torch.empty(len(x), *chain.visit_shape).normal_(generator=generator).to(x)
            items, space = part.items(x, noise), part.affine.space
            if kind == "wiener":
                found[i] = Wiener.fit(items, space)
            elif kind == "moments":
                found[i] = Moments(space)
            elif kind == "histogram" and isinstance(space, Discrete) and space.levels <= MOST_LEVELS:
                found[i] = Histogram.fit(items, space)
        return cls(kind, chain, found) if found else None

    @classmethod
    def from_state(cls, kind: str, chain: Chain, state: Mapping[str, Tensor]) -> "StageControls":
        """Return the controls from their `state`. Raises KeyError for an unknown kind or an incomplete state."""
        kinds = {"wiener": Wiener, "histogram": Histogram, "moments": Moments}
        parts: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            index, _, name = key.partition(".")
            parts.setdefault(int(index), {})[name] = value
        levels = chain.affine_levels()
        for own in parts.values():
            own.pop("none", None)
        return cls(
            kind, chain, {i: kinds[kind].from_state(levels[i].affine.space, own) for i, own in sorted(parts.items())}
        )

    def state(self) -> dict[str, Tensor]:
        """Return what every stage's control was fitted to, as "index.name"."""
        out: dict[str, Tensor] = {}
        for i, control in self.controls.items():
            own = control.state() or {"none": torch.zeros(0)}
            out |= {f"{i}.{name}": value for name, value in own.items()}
        return out

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return the functions of item and level (V, E), and the mean-zero functions of the noise (V, F), nats."""
        expected = torch.zeros(len(look.x), len(self.expects), dtype=torch.float64, device=look.x.device)
        drawn = torch.zeros(len(look.x), len(self.draws), dtype=torch.float64, device=look.x.device)
        for i, control in self.controls.items():
            part = self.levels[i]
            rows, level, factor = part.found(look.latent, look.first)
            if not len(rows):
                continue
            items = part.items(look.x[rows], look.noise[rows])
            gamma = part.affine.noisy_gamma(level).detach().double()
            inner = Look(items, part.noise(look.noise[rows]), gamma, level, torch.zeros_like(level, dtype=torch.bool))
            of_item, of_noise = control.at(inner)
            slope = (factor * slopes(part.affine, level.cpu())[1].detach()).to(of_noise)[:, None]
            places = [self.draws.index(name) for name in control.draws]
            drawn[rows[:, None], torch.tensor(places, device=rows.device)] = slope * of_noise
            if part.fixed and control.expects:
                places = [self.expects.index(name) for name in control.expects]
                expected[rows[:, None], torch.tensor(places, device=rows.device)] = slope * of_item
        return expected, drawn

    def sums(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return Σ_{t in c} of the functions of item and level (B, C, E) for the cells between `edges`, nats."""
        out = torch.zeros(len(x), len(edges) - 1, len(self.expects), dtype=torch.float64)
        for i, control in self.controls.items():
            part = self.levels[i]
            if not (part.fixed and control.expects):
                continue
            cells, own = part.cells(edges)
            gamma, weight = _weights(part, own)
            items = part.items(x, x.new_zeros(len(x), *self.chain.visit_shape))
            found = control.totals(items, gamma.to(x.device), weight.to(x.device)).cpu()
            places = torch.tensor([self.expects.index(name) for name in control.expects])
            out[:, cells[:, None], places] = found
        return out

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        """Return 0: γ does not identify a level of several stages. See `sums`."""
        return torch.zeros(len(x), len(weight), len(self.expects), dtype=torch.float64, device=x.device)

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        """Return 0, for not known."""
        return torch.zeros(len(gamma), len(self.draws), dtype=torch.float64)


def _weights(part: AffineLevels, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return γ (L,) and the weights (C, L) with which the functions of a stage add up over each cell between `edges` of its levels."""
    if part.affine.timesteps is None:
        return quadrature(part.affine, edges)[:2]
    level = torch.arange(int(edges[0]), int(edges[-1]))
    cell = torch.searchsorted(edges, level, right=True) - 1
    weight = torch.zeros(len(edges) - 1, len(level), dtype=torch.float64)
    weight[cell, torch.arange(len(level))] = slopes(part.affine, level)[1].detach().cpu()
    return part.affine.noisy_gamma(level).detach().cpu().double(), weight
