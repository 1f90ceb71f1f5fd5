"""C10: the information of a frozen encoder, over the training of a system and in a linear world."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusional import exact
from diffusional import schedule as schedules
from diffusional.claims.chains import Joint, cubature
from diffusional.claims.check import Check
from diffusional.claims.identities import DECODER_VARIANCE, ROUNDING, LinearWorld
from diffusional.claims.learning import informations, mean_of, saved_models
from diffusional.data import load
from diffusional.forward import GaussianDiffusion
from diffusional.gaussian import Gaussian
from diffusional.models.calls import call
from diffusional.models.composite import FrozenEncoder
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.direct import DirectModel
from diffusional.models.likelihood import GaussianLikelihood, NetworkLevels
from diffusional.networks import MLP
from diffusional.space import Continuous, Space

_ITEMS, _BATCH, _DIMS = 300, 64, 4


class _TrainsAlong(FrozenEncoder):
    """A `FrozenEncoder` whose encoder is not frozen."""

    def _encode(self, x: Tensor, channels: int) -> Tensor:
        return call(self.encoder, x, role="encoder").to(x.dtype)


def _built(space: Space, seed: int, along: bool) -> FrozenEncoder:
    """Build a system of the digits with weights of the seed: a linear encoder, an MLP as the prior of its output, a linear decoder given z_1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(space.dimensions, _DIMS))
        # γ_1 = −3, where I(x; z_1) is less than half of the entropy of the items.
        process = GaussianDiffusion(schedules.log_snr_linear(-3.0, 8.0, 10))
        network = MLP((_DIMS,), hidden=32, depth=1)
        prior = DiffusionModel(process, Denoiser(network, "v"), GaussianLikelihood(Continuous((_DIMS,))))
        assert space.levels is not None
        layers = nn.Sequential(
            nn.Linear(_DIMS, space.levels * space.dimensions), nn.Unflatten(1, (space.levels, *space.shape[1:]))
        )
        decoder = DirectModel(layers, NetworkLevels(space), head="categorical")
        system = (_TrainsAlong if along else FrozenEncoder)(encoder, prior, decoder)
    system.encoder.requires_grad_(along)
    return system


def checkpoints(space: Space, x: Tensor, seed: int, along: bool, steps: int, kept: int) -> list[FrozenEncoder]:
    """Train all stages on x by the joint loss. Return `kept` systems, from initialisation on, each loaded from its saved state."""

    def optimizer(model: FrozenEncoder) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    return saved_models(lambda at: _built(space, at, along), optimizer, x, seed, steps, kept, _BATCH)


def _first_latent(model: FrozenEncoder, x: Tensor) -> Gaussian:
    """Return q(z_1|x) of a system, from its encoder and the γ_1 of its prior, (N, n) float64."""
    gamma = model.stages["prior"].noise_levels().double()[0]  # type: ignore[operator]
    mean = torch.sigmoid(-gamma).sqrt() * model.encoder(x).double()
    return Gaussian(mean, torch.sigmoid(gamma).log().expand_as(mean))


def c10(seed: int = 0, along: bool = False, steps: int = 120, kept: int = 4) -> list[Check]:
    """Check that a frozen encoder's I(x; z_1) is constant and not zero while prior and decoder are trained, and that NELBO = H(x) + gaps (28).

    A small system is trained on 300 digits by its joint loss; the information is that of the encoder and the process of each checkpoint, over
    H(x) = ln N. In a linear world, with an encoder of rank 1, the joint NELBO is `model.terms` by cubature, and the gaps come from the joint
    covariance of x and z_1 … z_T under both models. `along` trains the encoder as well.
    """
    data = load("digits")
    order = torch.randperm(len(data.items("train")), generator=torch.Generator().manual_seed(seed))
    x = data.encode("train")[order[:_ITEMS]]
    models = checkpoints(data.space, x, seed, along, steps, kept)
    entropy = math.log(len(x.flatten(1).unique(dim=0)))
    with torch.no_grad():
        information = torch.stack([informations(_first_latent(model, x), seed) for model in models]) / entropy
        nelbo = []
        for model in (models[0], models[-1]):
            generator = torch.Generator().manual_seed(seed)
            nelbo.append(torch.stack([model.elbo(x, generator).nelbo.mean() for _ in range(4)]))
    drift = information - information[0]
    fall = (nelbo[0] - nelbo[-1]) / nelbo[0].mean()
    return [
        mean_of(
            "digits: the largest drift from initialisation",
            drift[int(drift.mean(1).abs().argmax())],
            tolerance=ROUNDING,
        ),
        mean_of("digits: the smallest is not zero", information[int(information.mean(1).argmin())], 0.1, at_least=True),
        mean_of("digits: the NELBO falls by a tenth", fall, 0.1, at_least=True),
        _linear(seed),
    ]


def _linear(seed: int) -> Check:
    """Return the check of (28) in a linear world, relative to I(x; z_1)."""
    world, generator = LinearWorld.drawn(seed), torch.Generator().manual_seed(seed + 1)
    d, gamma, last = world.data.dimensions, world.gamma, len(world.gamma)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    encoder, decoder = nn.Linear(d, d).double(), nn.Linear(d, d).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.outer(drawn(d), drawn(d)))
        for parameter in (encoder.bias, decoder.weight, decoder.bias):
            parameter.copy_(drawn(*parameter.shape))
    space = Continuous((d,))
    prior = DiffusionModel(GaussianDiffusion(world.schedule), world.believed.denoiser(), GaussianLikelihood(space))
    model = FrozenEncoder(encoder, prior, DirectModel(decoder, GaussianLikelihood(space, DECODER_VARIANCE)))
    nodes = cubature(d + model.noise_shape[0])
    root = world.data.eigenvectors[0] @ torch.diag(world.data.eigenvalues[0].sqrt())
    with torch.no_grad():
        bound = float(model.terms(world.data.means[0] + nodes[:, :d] @ root.T, nodes[:, d:]).nelbo.mean())
        q, p = _forward(gamma, world.data, encoder), Joint.reverse(gamma, world.believed, DECODER_VARIANCE)
        noise = p.factor.shape[2]
        own = math.sqrt(DECODER_VARIANCE) * torch.eye(noise, dtype=torch.float64)[:d]
        mean, factor = p.mean.clone(), p.factor.clone()
        mean[0] = decoder(p.mean[1])
        factor[0] = decoder.weight @ p.factor[1] + own
        p = replace(p, mean=mean, factor=factor)
    gaps = q.kl(p, [last]) + sum(q.kl(p, [t], [t + 1]) for t in range(last))
    off = (bound - world.data.entropy() - gaps) / q.information([0], [1])
    return Check("Gaussian, T = 5: NELBO = H(x) + Σ gaps (28)", off, tolerance=ROUNDING)


def _forward(gamma: Tensor, data: exact.Gaussian, encoder: nn.Linear) -> Joint:
    """Return q(x, z_{1:T}) of a diffusion of encoder(x), walked forward by q(z_{t+1}|z_t)."""
    d, total = data.dimensions, len(gamma) + 1
    noise = torch.eye(total * d, dtype=torch.float64).view(total, d, -1)
    alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
    root = data.eigenvectors[0] @ torch.diag(data.eigenvalues[0].sqrt())
    mean, factor = [data.means[0]], [root @ noise[0]]
    mean.append(alpha2[0].sqrt() * encoder(mean[0]))
    factor.append(alpha2[0].sqrt() * encoder.weight @ factor[0] + sigma2[0].sqrt() * noise[1])
    for t in range(1, len(gamma)):
        ratio = alpha2[t] / alpha2[t - 1]
        mean.append(ratio.sqrt() * mean[-1])
        factor.append(ratio.sqrt() * factor[-1] + (sigma2[t] - ratio * sigma2[t - 1]).sqrt() * noise[t + 1])
    return Joint(torch.stack(mean), torch.stack(factor))
