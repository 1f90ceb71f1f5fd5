"""C11 to C13: claims about conditions, tested in worlds with labels whose densities are known."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from diffusional import exact
from diffusional import schedule as schedules
from diffusional.claims.chains import Joint, trapezoid
from diffusional.claims.check import Check
from diffusional.claims.identities import COARSE, DECODER_VARIANCE, ROUNDING, LinearWorld
from diffusional.evaluation.classify import classify
from diffusional.evaluation.plan import Plan
from diffusional.forward import GaussianDiffusion
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import GaussianLikelihood
from diffusional.space import Continuous

_WEIGHTS = (0.0, 0.5, 2.0, 3.0)
# The tolerance of the integral over γ from −18 to 18, whose ends are of the order of e^−18.
_INTEGRAL = 1e-6


def labelled(seed: int, dimensions: int = 2, classes: int = 3) -> exact.Labelled:
    """Draw a world of one or two dimensions: classes of different frequencies, whose means are about two standard deviations apart."""
    generator = torch.Generator().manual_seed(seed)
    turn = 2 * math.pi * (torch.arange(classes) + torch.rand(1, generator=generator)) / classes
    means = 1.2 * torch.stack([turn.cos(), turn.sin()], 1).double()[:, :dimensions]
    root = torch.randn(classes, dimensions, dimensions, generator=generator, dtype=torch.float64)
    covariances = 0.1 * root @ root.mT + 0.3 * torch.eye(dimensions, dtype=torch.float64)
    weights = 1 + torch.rand(classes, generator=generator, dtype=torch.float64)
    return exact.Labelled(weights / weights.sum(), means, covariances)


def _model(world: exact.Labelled, ends: float) -> DiffusionModel:
    """Return the optimal model of a world in continuous time, γ from −ends to ends."""
    process = GaussianDiffusion(schedules.log_snr_linear(-ends, ends))
    decoder = GaussianLikelihood(Continuous((world.dimensions,)), assisted=False)
    return DiffusionModel(process, world.conditional_denoiser(), decoder)


# C11.


def c11(seed: int = 0, plug_in: bool = False, items: int = 6000, visits: int = 4) -> list[Check]:
    """Check that the cross-fitted bound (25) is below ln p(x) on average, as a difference over H(x).

    `classify` computes it for items of a world with three classes, from `visits` draws of every class for r and as many for the bound;
    ln p(x) and H(x) are those of the world. With `plug_in` the bound is ln Σ_c p(c) e^{estimate of ELBO(x|c)} from the first draws, which
    Jensen's inequality makes too large.
    """
    world, generator = labelled(seed), torch.Generator().manual_seed(seed)
    model = _model(world, 9.0)
    train, labels = world.sample_labelled(300, generator)
    plan = Plan.fit(model, train, 1000, seed, condition=labels)
    x, _ = world.sample_labelled(items, generator)
    options: dict[str, Any] = {"max_visits": visits, "evidence_visits": 0 if plug_in else visits}
    found = classify(model, x, prior=world.weights, classes=3, plan=plan, seed=seed, **options)
    bound = torch.logsumexp(world.weights.log() - found.nelbo, 1) if plug_in else found.evidence
    apart = (world.log_prob(x) - bound) / world.entropy()
    error = float(apart.std()) / math.sqrt(items)
    return [Check("3 classes: ln p(x) − bound ≥ 0", float(apart.mean()), error, at_least=True)]


# C12.


def c12(seed: int = 0, shuffled: bool = False) -> list[Check]:
    """Check that i(x; c), MATH (27), averages to I(x; c), relative to it.

    i(x; c) = ½ ∫ E_ε[‖ε − ε̂(z)‖² − ‖ε − ε̂(z, c)‖²] dγ by quadrature of a model's denoiser, for items of a world of one dimension; its
    average over (x, c), by quadrature as well, against H(x) − H(x|c) of the densities, and every item against ln p(x|c)/p(x). `shuffled`
    labels do not depend on x.
    """
    world = labelled(seed, dimensions=1)
    denoiser = _model(world, 1.0).denoiser
    nodes, weights = trapezoid(1, COARSE)
    gamma = torch.linspace(-18.0, 18.0, 145, dtype=torch.float64)
    steps = torch.full_like(gamma, 0.25)
    steps[0], steps[-1] = 0.125, 0.125

    def found(x: Tensor, label: int) -> Tensor:
        """Return i(x; c) (M,) of items x (M, 1)."""
        g, e, item = (
            axis.flatten() for axis in torch.meshgrid(gamma, nodes[:, 0], torch.arange(len(x)).double(), indexing="ij")
        )
        z = torch.sigmoid(-g).sqrt() * x[item.long(), 0] + torch.sigmoid(g).sqrt() * e
        c = torch.full((len(z),), label)
        errors = [(e - denoiser(z[:, None], g, given).noise[:, 0]).square() for given in (None, c)]
        gains = (errors[0] - errors[1]).view(len(gamma), len(nodes), len(x))
        return 0.5 * torch.einsum("gem,g,e->m", gains, steps, weights)

    mean, off = 0.0, 0.0
    for k, (share, own) in enumerate(zip(world.weights, world.given, strict=True)):
        x = own.means[0] + own.eigenvalues[0].sqrt() * nodes
        exactly = world.pointwise_information(x, torch.full((len(x),), k))
        for label, among in enumerate(world.weights) if shuffled else [(k, torch.ones(()))]:
            information = found(x, label)
            mean += float(share * among * (weights @ information))
            off = max(off, float((information - exactly).abs().max()))
    information = world.label_information()
    return [
        Check("the average over (x, c)", mean / information, expected=1.0, tolerance=_INTEGRAL),
        Check("every item: i(x; c) − ln p(x|c)/p(x)", off / information, tolerance=10 * _INTEGRAL),
    ]


# C13.


class _Two(nn.Module):
    """The optimal network of a world given a condition, and that of another world without one."""

    def __init__(self, given: exact.Gaussian, without: exact.Gaussian) -> None:
        super().__init__()
        self.given, self.without = given.denoiser().module, without.denoiser().module

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        return (self.without if condition is None else self.given)(z, log_snr)


def c13(seed: int = 0, called_unguided: bool = False) -> list[Check]:
    """Check that the bound of a guided chain is valid for every w, and best at w = 1 for an optimal x̂_c (26), relative to I(x; z_1).

    NELBO_w is that of `model.guided(w)` by cubature. H(x), the gaps of the guided chain and its ln p_w(x) come from the joint covariance of its
    affine Gaussian steps. `called_unguided` takes the costs of guided predictions, of ‖ε − ε̂_w‖², for those of the unguided chain.
    """
    world = LinearWorld.drawn(seed)
    likelihood = GaussianLikelihood(Continuous((2,)), DECODER_VARIANCE)
    denoiser = Denoiser(_Two(world.data, world.believed), "data")
    model = DiffusionModel(GaussianDiffusion(world.schedule), denoiser, likelihood)
    x, noise = world.nodes()
    q, last = Joint.forward(world.gamma, world.data), len(world.gamma)
    scale = q.information([0], [1])
    condition = torch.zeros(len(x), dtype=torch.long)

    def nelbo(w: float) -> float:
        return float(model.guided(w).terms(x, noise, condition).nelbo.mean())

    unguided, off, slack, excess = nelbo(1.0), [], [], {}
    for w in _WEIGHTS:
        p = Joint.reverse(
            world.gamma, world.data, DECODER_VARIANCE, without=world.believed, weight=1.0 if called_unguided else w
        )
        gaps = q.kl(p, [last]) + sum(q.kl(p, [t], [t + 1]) for t in range(last))
        bound = nelbo(w)
        off.append((bound - q.entropy([0]) - gaps) / scale)
        slack.append((bound - q.cross(p, [0])) / scale)
        excess[w] = (bound - unguided) / scale
    quadratic = [excess[w] / (w - 1) ** 2 for w in _WEIGHTS]
    return [
        Check("NELBO_w = H(x|c) + Σ gaps, the worst w", max(off, key=abs), tolerance=ROUNDING),
        Check(
            "NELBO_w + E ln p_w(x|c) ≥ 0, the least", min(slack), expected=-ROUNDING, tolerance=ROUNDING, at_least=True
        ),
        Check("NELBO_w > NELBO_1, the least", min(excess.values()), tolerance=ROUNDING, at_least=True),
        Check("the excess is quadratic in w − 1", max(quadratic) / min(quadratic), expected=1.0, tolerance=ROUNDING),
    ]
