"""The chain rules of a hierarchy for any fixed posterior, with each information computed separately (MATH (11)–(14)).

    I(x; z_{1:T}) = Σ_t I(x; z_t | z_{1:t−1})                      forward: all terms except the first vanish for a Markov chain
                  = I(x; z_T) + Σ_{t<T} I(x; z_t | z_{t+1})        backward: MATH (13), for a Markov chain

The Markov property is not assumed, so that (12) is tested: informations are computed from the densities of the process, q(z_t|x) and
q(z_t|z_{t+1},x), which determine those of all pairs and histories given x,

    q(z_{1:t}|x) = q(z_t|x) Π_{s<t} q(z_s|z_{s+1},x).

For points x_1 … x_N, I(x; A | B) = E[ln p(x|A,B) − ln p(x|B)], with p(x_i|A) ∝ w_i q(A|x_i): this is exact given the latents, and
averaged over sampled paths. For Gaussian data, all informations are log-determinants of the joint covariance of (x, z_1 … z_T). The
information of the path is computed from the forward densities q(z_t|z_{t−1},x), which is an independent way to the same number.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from diffusional import exact
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion, transition_of
from diffusional.gaussian import Gaussian
from diffusional.information.estimates import Estimates, exactly
from diffusional.information.finite import check_samples

# Number of values of one (paths × points × dimensions) block.
_CHUNK = 8_000_000


@dataclass(frozen=True, eq=False)
class ChainRule:
    """Mutual informations of x and the latents of a chain, in nats, with errors, all from the same draws.

    Attributes:
        marginal: I(x; z_t), t = 1 … T.
        backward: I(x; z_t | z_{t+1}), t = 1 … T−1.
        forward: I(x; z_t | z_{t−1}), t = 2 … T: zero for a Markov chain, MATH (12).
        history: I(x; z_t | z_{1:t−1}), t = 2 … T: zero likewise.
        path: I(x; z_{1:T}).
    """

    marginal: Estimates
    backward: Estimates
    forward: Estimates
    history: Estimates
    path: Estimates


def chain_rule(
    data: Tensor | exact.World,
    process: GaussianDiffusion,
    samples: int = 2000,
    generator: torch.Generator | None = None,
) -> ChainRule:
    """Return every information of MATH (11)–(14) for points (N, *shape), or for Gaussian data in closed form.

    It is for a few hundred points and short chains, since each path is evaluated under every point at every level, in float64. Raises
    DiffusionalError for continuous time, for worlds of other kinds, and for points that are not finite.

    >>> from diffusional import schedule
    >>> world = exact.Gaussian(torch.zeros(1), torch.eye(1))
    >>> from diffusional import NonMarkovDiffusion
    >>> betas = schedule.from_betas([0.1, 0.2, 0.3])
    >>> found = chain_rule(world, GaussianDiffusion(betas))
    >>> round(float(found.path.value), 4), bool(found.forward.value.abs().max() < 1e-12)           # I(x; z_1), MATH (12)
    (1.1513, True)
    >>> bool(chain_rule(world, NonMarkovDiffusion(betas, eta=0.5)).forward.value.min() > 0.01)           # MATH (14)
    True
    """
    if process.steps is None:
        raise DiffusionalError("expected a process with T latents, got one in continuous time: use regrid(steps=T)")
    if isinstance(data, exact.Gaussian):
        return _gaussian(data, process)
    if isinstance(data, exact.World) and not isinstance(data, exact.Finite):
        raise DiffusionalError(f"expected points, exact.Finite or exact.Gaussian, got {type(data).__name__}")
    check_samples(samples)
    world = data if isinstance(data, exact.Finite) else exact.Finite(data)
    if not bool(torch.isfinite(world.points).all()):
        raise DiffusionalError("expected finite points, got values that are not finite: correct or drop them")
    rows = max(1, _CHUNK // world.points.numel())
    index = torch.multinomial(world.weights, samples, replacement=True, generator=generator)
    parts = [_paths(world, process, own, generator) for own in index.split(rows)]
    return ChainRule(*(Estimates(torch.cat([part[k] for part in parts])) for k in range(5)))


def _paths(
    world: exact.Finite, process: GaussianDiffusion, own: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Return marginal (n, T), backward, forward, history (n, T−1) and path (n, 1) of one sampled path for every point in `own`."""
    n, points, steps = len(own), len(world.points), process.schedule.grid().shape[0]
    path = process.sample_path(world.points[own], generator)  # (T, n, D)
    # All pairs of a latent and a point, (n · N, D): row i N + j is latent i under point j.
    x = world.points.repeat(n, 1)
    latents = [z.repeat_interleave(points, 0) for z in path]

    def shared(q: Gaussian, z: Tensor) -> Tensor:
        return q.log_prob(z).view(n, points)

    single = torch.stack([shared(process.marginal(x, t), latents[t - 1]) for t in range(1, steps + 1)])
    step = torch.stack([shared(process.posterior(latents[t], x, t), latents[t - 1]) for t in range(1, steps)])
    walk = single[0]
    for t in range(2, steps + 1):
        walk = walk + shared(_forward(process, latents[t - 2], t, x), latents[t - 1])
    pair = single[1:] + step  # ln q(z_t, z_{t+1} | x_j), t = 1 … T−1
    history = single.clone()
    history[1:] += step.cumsum(0)

    def known(log_q: Tensor) -> Tensor:
        """Return ln p(x_own | latents) (n, …) from ln q(latents | x_j) (…, n, N)."""
        joint = torch.log_softmax(log_q + world.weights.log(), -1)
        return joint[..., torch.arange(n), own].reshape(-1, n).T

    prior = world.weights.log()[own, None]
    one, two, all_before = known(single), known(pair), known(history)
    return (
        one - prior,
        two - one[:, 1:],
        two - one[:, :-1],
        all_before[:, 1:] - all_before[:, :-1],
        known(walk) - prior,
    )


def _forward(process: GaussianDiffusion, z: Tensor, t: int, x: Tensor) -> Gaussian:
    return cast(Gaussian, transition_of(process, z, t, x))


def _gaussian(world: exact.Gaussian, process: GaussianDiffusion) -> ChainRule:
    """Return the informations of Gaussian data, from log-determinants in every eigendirection: I(x; A) = ½ [ln det Cov A − ln det Cov(A|x)]."""
    zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
    steps = process.schedule.grid().shape[0]
    # Each latent as a row of coefficients on (x, e_1 … e_T), by the backward steps of the process from z_T, in units of σ_t.
    rows = torch.zeros(steps, steps + 1, dtype=torch.float64)
    last = process.marginal(one, steps)
    rows[-1, 0], rows[-1, -1] = last.mean.squeeze(), last.std.squeeze()
    for t in range(steps - 1, 0, -1):
        q = process.posterior(zero, one, t)
        rows[t - 1] = process.posterior(one, zero, t).mean.squeeze() * rows[t]
        rows[t - 1, 0] += q.mean.squeeze()
        rows[t - 1, t] = q.std.squeeze()
    rows = rows / torch.stack([process.marginal(zero, t).std.squeeze() for t in range(1, steps + 1)]).unsqueeze(1)
    given = rows[:, 1:] @ rows[:, 1:].T  # Cov(A|x)
    walk = _walk(process, steps)
    total = torch.zeros(5, steps, dtype=torch.float64)
    for variance in world.eigenvalues[0]:
        cov = given + variance * torch.outer(rows[:, 0], rows[:, 0])
        single = 0.5 * (cov.diagonal().log() - given.diagonal().log())
        pair = 0.5 * (_pairs(cov) - _pairs(given))
        history = 0.5 * (_leading(cov) - _leading(given))
        whole = 0.5 * (torch.logdet(walk[0] + variance * walk[1]) - torch.logdet(walk[0]))
        total[0] += single
        total[1, 1:] += pair - single[1:]
        total[2, 1:] += pair - single[:-1]
        total[3, 1:] += history[1:] - history[:-1]
        total[4, 0] += whole
    return ChainRule(
        exactly(total[0]), exactly(total[1, 1:]), exactly(total[2, 1:]), exactly(total[3, 1:]), exactly(total[4, :1])
    )


def _walk(process: GaussianDiffusion, steps: int) -> tuple[Tensor, Tensor]:
    """Return Cov(z_{1:T}|x) and its change per unit of Var x, by the forward steps q(z_t|z_{t−1},x), in units of σ_t."""
    zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
    rows = torch.zeros(steps, steps + 1, dtype=torch.float64)
    first = process.marginal(one, 1)
    rows[0, 0], rows[0, 1] = first.mean.squeeze(), first.std.squeeze()
    for t in range(2, steps + 1):
        q = _forward(process, one, t, zero)
        rows[t - 1] = q.mean.squeeze() * rows[t - 2]
        rows[t - 1, 0] += _forward(process, zero, t, one).mean.squeeze()
        rows[t - 1, t] = q.std.squeeze()
    rows = rows / torch.stack([process.marginal(zero, t).std.squeeze() for t in range(1, steps + 1)]).unsqueeze(1)
    return rows[:, 1:] @ rows[:, 1:].T, torch.outer(rows[:, 0], rows[:, 0])


def _pairs(cov: Tensor) -> Tensor:
    """Return ln det of every 2 × 2 block of neighbours (T−1,)."""
    d = cov.diagonal()
    return (d[:-1] * d[1:] - cov.diagonal(1).square()).log()


def _leading(cov: Tensor) -> Tensor:
    """Return ln det of every leading minor (T,)."""
    return 2 * torch.linalg.cholesky(cov).diagonal().log().cumsum(0)
