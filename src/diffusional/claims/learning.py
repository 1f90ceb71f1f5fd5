"""C3 and C7: claims about training, tested on the digits."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from diffusional import schedule as schedules
from diffusional.claims.check import Check
from diffusional.claims.identities import MONTE_CARLO, ROUNDING
from diffusional.data import load
from diffusional.forward import GaussianDiffusion
from diffusional.gaussian import Gaussian
from diffusional.models.base import LatentVariableModel
from diffusional.models.denoiser import Denoiser
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import LevelPosterior
from diffusional.models.vae import VAE, log_probs
from diffusional.space import Space, binary
from diffusional.timesteps import Adaptive, SampledTimesteps, Stratified, TimestepSampler, Uniform
from diffusional.training.build import build_model
from diffusional.training.config import Config, LatentConfig, ModelConfig, ScheduleConfig

Kind = Literal["diffusion", "learned γ_1", "VAE"]
Model = TypeVar("Model", bound=LatentVariableModel)
# γ_1 = 0, SNR 1, where the information of 400 digits is 3/4 of their entropy and depends on γ_1; at γ_1 = −9 it would be ln N.
_SCHEDULE = ScheduleConfig(gamma_min=0.0, gamma_max=10.0, steps=20)
_ITEMS, _BATCH, _DRAWS = 400, 128, 32


class LearnedStart(schedules.LogSNRLinear):
    """γ(u) = γ_min + (γ_max − γ_min) u with a trainable γ_min: a forward process that training can change."""

    def __init__(self, gamma_min: float, gamma_max: float, steps: int | None = None) -> None:
        super().__init__(gamma_min, gamma_max, steps)
        start = self.gamma_min
        del self.gamma_min
        self.gamma_min = nn.Parameter(start)


def _built(config: Config, space: Space, seed: int) -> LatentVariableModel:
    """Build a model whose initial weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config, space)


def _build(kind: Kind, space: Space, seed: int) -> LatentVariableModel:
    small = ModelConfig(
        network="mlp", predicts="v", likelihood="discretized-gaussian", hidden=64, blocks=1, dropout=0.0
    )
    config = Config(schedule=_SCHEDULE, model=small)
    if kind == "VAE":
        small = replace(small, kind="vae", network=None, predicts=None, likelihood=None)
        config = Config(model=small, latent=LatentConfig(sizes=(8,)))
    model = _built(config, space, seed)
    if kind == "learned γ_1":
        assert isinstance(model, DiffusionModel)
        model.process = GaussianDiffusion(LearnedStart(_SCHEDULE.gamma_min, _SCHEDULE.gamma_max, _SCHEDULE.steps))
    return model


def checkpoints(kind: Kind, space: Space, x: Tensor, seed: int, steps: int, kept: int) -> list[LatentVariableModel]:
    """Train on x by the loss. Return `kept` models, from initialisation on, each loaded from its saved state."""

    def optimizer(model: LatentVariableModel) -> torch.optim.Optimizer:
        start = [p for name, p in model.named_parameters() if name.endswith("gamma_min")]
        others = [p for name, p in model.named_parameters() if not name.endswith("gamma_min")]
        return torch.optim.Adam([{"params": others, "lr": 5e-3}, {"params": start, "lr": 1e-2}])

    return saved_models(lambda at: _build(kind, space, at), optimizer, x, seed, steps, kept, _BATCH)


def saved_models(
    build: Callable[[int], Model],
    optimizer: Callable[[Model], torch.optim.Optimizer],
    x: Tensor,
    seed: int,
    steps: int,
    kept: int,
    size: int,
) -> list[Model]:
    """Train the model of a seed on batches of x of this size. Return `kept` models, from initialisation on, each loaded from its saved state."""
    model, generator = build(seed), torch.Generator().manual_seed(seed)
    optimiser = optimizer(model)
    states = [copy.deepcopy(model.state_dict())]
    for step in range(1, steps + 1):
        batch = x[torch.randint(len(x), (size,), generator=generator)]
        optimiser.zero_grad()
        model.loss(batch, generator).backward()
        optimiser.step()
        if step * (kept - 1) % steps < kept - 1:
            states.append(copy.deepcopy(model.state_dict()))
    out = []
    for state in states:
        read = build(seed + 1)
        read.load_state_dict(state)
        out.append(read.eval())
    return out


def first_latent(model: LatentVariableModel, x: Tensor) -> Gaussian:
    """Return q(z_1 | x) of the process of a diffusion model, or q(z | x) of a VAE, as (N, n) float64."""
    if isinstance(model, DiffusionModel):
        q = model.process.marginal(x.double(), 1)
    else:
        assert isinstance(model, VAE)
        q = model.posterior(x)
    mean, log_variance = torch.broadcast_tensors(q.mean.double(), q.log_variance.double())
    return Gaussian(mean.flatten(1), log_variance.flatten(1))


def informations(q: Gaussian, seed: int, draws: int = _DRAWS) -> Tensor:
    """Return draws (n,) of I(x; z) = E ln q(z|x)/q(z), with q(z) the mixture over the N items; the same seed gives the same noise."""
    generator, out = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        log_q = log_probs(q, q.sample(generator))
        out.append((log_q.diagonal() - torch.logsumexp(log_q, 1) + math.log(len(log_q))).mean())
    return torch.stack(out)


@torch.no_grad()
def _measured(models: list[LatentVariableModel], x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the informations (models, draws) of all models, and the NELBOs of the first and the last, with common noise."""
    information = torch.stack([informations(first_latent(model, x), seed) for model in models])
    nelbo = []
    for model in (models[0], models[-1]):
        generator = torch.Generator().manual_seed(seed)
        nelbo.append(torch.stack([model.elbo(x, generator).nelbo.mean() for _ in range(4)]))
    return information, torch.stack(nelbo)


def c3(seed: int = 0, kind: Kind = "diffusion", steps: int = 240, kept: int = 6) -> list[Check]:
    """Check that I(x; z_1) of the checkpoints is constant and not zero while the NELBO falls. Relative to H(x) = ln N.

    A small diffusion model is trained on 400 digits. At `kept` checkpoints, loaded from their states, the information is that of the
    q(z_1|x) of the checkpoint. With `kind` "learned γ_1" training changes the process, and with "VAE" the whole posterior.
    """
    data = load("digits")
    order = torch.randperm(len(data.items("train")), generator=torch.Generator().manual_seed(seed))
    x = data.encode("train")[order[:_ITEMS]]
    information, nelbo = _measured(checkpoints(kind, data.space, x, seed, steps, kept), x, seed)
    entropy = math.log(len(x.flatten(1).unique(dim=0)))
    drift = information - information[0]
    k = int(drift.mean(1).abs().argmax())
    fall = (nelbo[0] - nelbo[-1]) / nelbo[0].mean()
    least = information[int(information.mean(1).argmin())]
    return [
        mean_of("the largest drift from initialisation", drift[k] / entropy, tolerance=ROUNDING),
        mean_of("the smallest of them is not zero", least / entropy, expected=0.1, at_least=True),
        mean_of("the NELBO falls by a tenth", fall, expected=0.1, at_least=True),
    ]


def mean_of(
    what: str, draws: Tensor, expected: float = 0.0, tolerance: float = MONTE_CARLO, at_least: bool = False
) -> Check:
    """Return a check of a mean of draws (n,)."""
    error = float(draws.std()) / math.sqrt(len(draws))
    return Check(what, float(draws.mean()), error, expected, tolerance, at_least)


# C7.


@dataclass(frozen=True)
class Unweighted:
    """The levels of a sampler with the weights of uniform ones, which is wrong importance sampling."""

    sampler: TimestepSampler

    def sample(self, n: int, timesteps: int | None, generator: torch.Generator | None = None) -> SampledTimesteps:
        drawn = self.sampler.sample(n, timesteps, generator)
        return SampledTimesteps(drawn.level, torch.full_like(drawn.weight, timesteps or 1))

    def update(self, position: Tensor, cost: Tensor) -> None:
        self.sampler.update(position, cost)


class _Tilted(nn.Module):
    """A network of few operations: z (B, n) → A z + log_snr · B z."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        scale = 0.1 / math.sqrt(n)
        self.weight = nn.Parameter(scale * torch.randn(n, 2 * n, generator=generator))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        plain, tilted = (z @ self.weight).chunk(2, 1)
        return plain + log_snr[:, None] * tilted


def c7(
    seed: int = 0,
    spoil: Callable[[TimestepSampler], TimestepSampler] = lambda sampler: sampler,
    batches: int = 240,
    items: int = 1000,
) -> list[Check]:
    """Check that the mean value and gradient of `model.loss` with sampled t, over those of (8) with every t, are 1.

    Levels are uniform, stratified and importance-weighted, on batches of the digits in black and white, T = 7, with a linear network. The
    gradient is measured along the direction of the full gradient, from other noise. `spoil` breaks the samplers.
    """
    space = binary((64,))
    x = space.encode((load("digits").tensor("train")[:items].flatten(1) > 8).long())
    generator = torch.Generator().manual_seed(seed)
    process = GaussianDiffusion(schedules.log_snr_linear(-0.5, 2.0, steps=7))
    model = DiffusionModel(process, Denoiser(_Tilted(64, generator), "v"), LevelPosterior(space))
    parameters = list(model.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()

    def full() -> Tensor:
        return model.elbo(x, generator).nelbo.mean()

    along = torch.stack([gradient(full()) for _ in range(4)]).mean(0)
    along = along / along.norm()

    def draws(loss: Callable[[], Tensor], n: int) -> Tensor:
        """Return values and projected gradients (2, n)."""
        out = []
        for _ in range(n):
            value = loss()
            out.append(torch.stack([value.detach(), gradient(value) @ along]))
        return torch.stack(out, 1)

    whole = draws(full, max(2, batches // 8))
    samplers = {"uniform": Uniform(), "stratified": Stratified(), "importance-weighted": Adaptive(cells=6)}
    checks = []
    for name, sampler in samplers.items():
        sampler = spoil(sampler)
        sampled = draws(lambda sampler=sampler: model.loss(x, generator, sampler=sampler), batches)
        for what, a, b in zip(("value", "gradient"), sampled, whole, strict=True):
            size = float(b.mean())
            error = math.hypot(float(a.std()) / len(a) ** 0.5, float(b.std()) / len(b) ** 0.5) / abs(size)
            checks.append(Check(f"{name}: {what}", float(a.mean()) / size, error, 1.0, MONTE_CARLO))
    return checks
