"""Control variates: functions of an item and of the noise whose expectation over the noise is known, for any network.

The network's cost at a visit is a function of the noise: KL = slope ‖ε − ε̂‖², MATH (10), for a Gaussian diffusion. A control offers
functions h(x, ε, γ) that resemble ‖ε − ε̂‖², and whose expectation E_ε h is known in closed form. Any multiple of h − E h has mean zero, so
that subtracting it changes the variance of an estimate and not its mean; any multiple of E h may be subtracted from a cost too, since its
sum over the levels is known without a draw. The multiples are found by regression on a pilot (pilot.py).

    wiener       ‖ε − ε̂_w‖² of Wiener's filter, the best denoiser of Gaussian data                            (wiener.py)
    histogram    ‖ε − ε̂_h‖² of the best denoiser of independent positions with the histograms of the data     (histogram.py)
    moments      Σ_i w_i(x) φ(ε_i) with φ of known mean: ε_i² − 1, products of neighbours, exceedances        (moments.py)
    own          functions of the noise that the chain's family offers, such as a binomial one (`Chain.noise_moments`)
    neighbours   what a Markov chain would pay for the masked positions of a sequence, and moments of the mask  (neighbours.py)
    window       what a small model of two positions on either side would pay for the masked positions                (window.py)
    context      ‖ε − ε̂_c‖² with the distributions that a levels head predicts for the item without noise             (context.py)

`context` needs one network evaluation for every item, and is tried only where it may save more (evaluation.py). None of the others needs
one, and each takes O(D) or O(D log D) operations a visit on the model's device.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusional.models.chain import Chain

# Items per dimension from which a sample covariance is used unchanged, and controls are fitted to the items that the pilot visits.
ENOUGH = 4


@dataclass(frozen=True)
class Look:
    """The inputs of a control for V visits.

    Attributes:
        x: (V, *dims), encoded.
        noise: (V, *visit_shape), ε.
        gamma: (V,) γ of the latent, float64 on x's device; None for a chain whose costs are not affine in ‖ε − ε̂‖².
        latent: (V,) the index t of the latent z_t, or u in continuous time.
        first: (V,) whether the visit is one of the reconstruction, −ln p(x|z_1).
        context: (V, K, *dims) the priors of the items (`Chain.level_priors`), for controls that need them.
    """

    x: Tensor
    noise: Tensor
    gamma: Tensor | None
    latent: Tensor
    first: Tensor
    context: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "Look":
        gamma = None if self.gamma is None else self.gamma[rows]
        context = None if self.context is None else self.context[rows]
        return Look(self.x[rows], self.noise[rows], gamma, self.latent[rows], self.first[rows], context)

    @property
    def gammas(self) -> Tensor:
        """γ (V,), for controls that need it."""
        assert self.gamma is not None
        return self.gamma


@runtime_checkable
class Control(Protocol):
    """One kind of control variates: `expects` has the names of E functions of the item and the level, `draws` those of F functions of the
    noise with mean zero. Both are in the unit of ‖ε − ε̂‖², which the slope of the level converts to nats.
    """

    name: str
    # Whether the drawn function models the cost itself, so that its variance is an estimate of theirs.
    models_cost: bool

    @property
    def expects(self) -> tuple[str, ...]:
        """The names of the E functions of item and level."""
        ...

    @property
    def draws(self) -> tuple[str, ...]:
        """The names of the F functions of the noise."""
        ...

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return the functions of item and level (V, E) and the mean-zero functions of the noise (V, F), float64."""
        ...

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        """Return Σ_l weight_ml of the E functions of item and level at γ_l, (B, M, E), from γ (L,) and weight (M, L), float64; with `first`
        those of the reconstruction. `context` (B, K, *dims) is that of the items.
        """
        ...

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        """Return the variance over ε of each function of the noise at every γ (L,), the mean over items x, (L, F): zero where it is not
        known. A pilot may be too small to see the variance of rare events. With `first` it is that of the reconstruction.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what the control was fitted to, from which the class's `from_state` restores it."""
        ...


class Own:
    """The functions of the noise that the family of a chain offers: `Chain.noise_moments`.

    >>> from diffusional import BinomialDiffusion, BinomialDiffusionModel
    >>> from diffusional.space import binary
    >>> model = BinomialDiffusionModel(BinomialDiffusion.constant(20), lambda z, log_snr: 0 * z, binary((4,)))
    >>> Own(model).draws
    ('flips', 'flips of ones')
    """

    name = "own"
    models_cost = False

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    @property
    def expects(self) -> tuple[str, ...]:
        return ()

    @property
    def draws(self) -> tuple[str, ...]:
        return self.chain.moment_names

    def at(self, look: Look) -> tuple[Tensor, Tensor]:
        drawn = self.chain.noise_moments(look.x, look.latent, look.noise).double()
        return drawn.new_zeros(len(drawn), 0), drawn

    def totals(
        self, x: Tensor, gamma: Tensor, weight: Tensor, first: bool = False, context: Tensor | None = None
    ) -> Tensor:
        return torch.zeros(len(x), len(weight), 0, dtype=torch.float64, device=x.device)

    def variance(self, x: Tensor, gamma: Tensor, first: bool = False, context: Tensor | None = None) -> Tensor:
        return torch.zeros(len(gamma), len(self.draws), dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        return {}


def width_of(controls: tuple[Control, ...]) -> tuple[int, int]:
    """Return ΣE and ΣF of several controls."""
    return sum(len(c.expects) for c in controls), sum(len(c.draws) for c in controls)


def columns(controls: tuple[Control, ...], kept: list[int]) -> tuple[list[int], list[int]]:
    """Return the columns of the controls `kept` among all E, and among all F.

    >>> from diffusional.evaluation.moments import Moments
    >>> from diffusional import Continuous
    >>> two = (Moments(Continuous((3,))), Moments(Continuous((1, 4, 4))))
    >>> columns(two, [1])
    ([0], [1, 2, 3, 4])
    """
    expects, draws, e, f = [], [], 0, 0
    for k, control in enumerate(controls):
        if k in kept:
            expects += range(e, e + len(control.expects))
            draws += range(f, f + len(control.draws))
        e, f = e + len(control.expects), f + len(control.draws)
    return expects, draws
