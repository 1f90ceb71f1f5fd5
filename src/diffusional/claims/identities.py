"""C1, C2, C4, C5, C6, C8, C9: identities of the bound, tested in randomly drawn worlds with known densities.

There are two kinds of worlds. *Gaussian*: D = 2, T = 5, with closed forms by `chains.Joint`; the costs of the model are quadratic in
(x, ε), so that cubature gives their expectations up to rounding. *Finite*: points on a grid of levels, whose densities are mixtures;
D = 1 and T = 3 by quadrature to 1e-10, D = 2 and T = 6 by draws. All models are imperfect on purpose, since a perfect one has no gaps.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional import exact
from diffusional import schedule as schedules
from diffusional.claims.chains import Finite, Joint, cubature, sobol, walk
from diffusional.claims.check import Check
from diffusional.data import load
from diffusional.forward import GaussianDiffusion, NonMarkovDiffusion, marginal_at
from diffusional.gaussian import Gaussian
from diffusional.information import ChainRule, Estimates, chain_rule
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import DiscretizedGaussian, GaussianLikelihood
from diffusional.models.reverse import prior_kl
from diffusional.schedule import Schedule
from diffusional.space import Continuous, Discrete

# Two spacings of the trapezoid rule, so that the two sides of a comparison are computed from different numbers.
FINE, COARSE = 0.35, 0.4
# Relative errors of the quadrature, and of values that are exact up to rounding.
QUADRATURE, ROUNDING = 1e-8, 1e-9
# The tolerance of checks with noise, if their error allows less.
MONTE_CARLO = 1e-3
DECODER_VARIANCE = 0.1


def process_of(schedule: Schedule, eta: float) -> GaussianDiffusion:
    """Return the forward diffusion, or for η < 1 the non-Markov family, MATH (14)."""
    return GaussianDiffusion(schedule) if eta == 1 else NonMarkovDiffusion(schedule, eta)


# Worlds.


@dataclass(frozen=True)
class LinearWorld:
    """Gaussian data, a schedule, and the distribution `believed` for which the denoiser of the model is optimal."""

    data: exact.Gaussian
    believed: exact.Gaussian
    schedule: Schedule

    @staticmethod
    def drawn(seed: int, steps: int = 5, d: int = 2) -> "LinearWorld":
        """Draw a world: means of order one, covariances with eigenvalues above 0.2, β between 0.1 and 0.4."""
        generator = torch.Generator().manual_seed(seed)

        def gaussian() -> exact.Gaussian:
            root = torch.randn(d, d, generator=generator, dtype=torch.float64)
            mean = torch.randn(d, generator=generator, dtype=torch.float64)
            return exact.Gaussian(mean, 0.5 * root @ root.T + 0.2 * torch.eye(d, dtype=torch.float64))

        betas = 0.1 + 0.3 * torch.rand(steps, generator=generator, dtype=torch.float64)
        return LinearWorld(gaussian(), gaussian(), schedules.from_betas(betas))

    @property
    def gamma(self) -> Tensor:
        """γ_1 … γ_T (T,)."""
        return self.schedule.grid()

    def model(self, process: GaussianDiffusion | None = None) -> DiffusionModel:
        """Return the model, over `process` instead of the process of the schedule."""
        likelihood = GaussianLikelihood(Continuous((self.data.dimensions,)), DECODER_VARIANCE)
        return DiffusionModel(process or GaussianDiffusion(self.schedule), self.believed.denoiser(), likelihood)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return x (B, D) and noise (T, B, D) of equal weights, exact for quadratic functions of both."""
        d, steps = self.data.dimensions, len(self.gamma)
        x, *noise = cubature((steps + 1) * d).split(d, 1)
        root = self.data.eigenvectors[0] @ torch.diag(self.data.eigenvalues[0].sqrt())
        return self.data.means[0] + x @ root.T, torch.stack(noise)


@dataclass(frozen=True)
class LevelWorld:
    """A few points on the levels of a discrete space, with different frequencies; the denoiser is that of a Gaussian with their moments."""

    data: exact.Finite
    space: Discrete
    schedule: Schedule

    @staticmethod
    def drawn(seed: int, d: int, levels: int, points: int, steps: int) -> "LevelWorld":
        """Draw a world: `points` distinct points of the levelsᵈ, each 1 to 5 times; γ from about −1.5 to 2.5."""
        generator = torch.Generator().manual_seed(seed)
        space = Discrete((d,), levels)
        cells = torch.cartesian_prod(*[space.values] * d).reshape(-1, d)
        chosen = cells[torch.randperm(len(cells), generator=generator)[:points]]
        counts = torch.randint(1, 6, (points,), generator=generator)
        low, high = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        schedule = schedules.log_snr_linear(-2.0 + low, 2.0 + high, steps)
        return LevelWorld(exact.Finite(chosen.repeat_interleave(counts, 0)), space, schedule)

    def model(self, process: GaussianDiffusion | None = None) -> DiffusionModel:
        """Return the model, over `process` instead of the process of the schedule."""
        mean = self.data.weights @ self.data.points
        off = self.data.points - mean
        covariance = (off.T * self.data.weights) @ off + 0.01 * torch.eye(self.data.dimensions)
        believed = exact.Gaussian(mean, covariance)
        likelihood = DiscretizedGaussian(self.space, DECODER_VARIANCE)
        return DiffusionModel(process or GaussianDiffusion(self.schedule), believed.denoiser(), likelihood)


def _line(seed: int) -> LevelWorld:
    return LevelWorld.drawn(seed, d=1, levels=5, points=4, steps=3)


def _plane(seed: int) -> LevelWorld:
    return LevelWorld.drawn(seed, d=2, levels=3, points=6, steps=6)


def _log_p(model: DiffusionModel, z: Tensor) -> Tensor:
    """Return ln p(z_{1:T}) (B,) of paths (T, B, D), MATH (2), from the distributions of the model."""
    total = model.last(z.shape[1]).log_prob(z[-1])
    for t in range(1, len(z)):
        total = total + _step(model, z[t], t).log_prob(z[t - 1])
    return total


def _step(model: DiffusionModel, after: Tensor, t: int) -> Gaussian:
    """Return p(z_t | z_{t+1} = after), MATH (5)."""
    return model.step(after, torch.full((len(after),), t))


def _prior(z: Tensor, mean: Tensor | float = 0.0) -> Gaussian:
    """Return N(mean, I) over z's shape."""
    return Gaussian(torch.zeros_like(z) + mean, z.new_zeros(()))


# C1.


class _OnPath(GaussianDiffusion):
    """The forward diffusion on a given path (T, B, D), with β doubled in the density of the transition `doubled`, unless None."""

    def __init__(self, schedule: Schedule, path: Tensor, doubled: int | None) -> None:
        super().__init__(schedule)
        self.path, self.doubled = path, doubled

    def transition(self, z: Tensor, t: int | Tensor, s: int | Tensor | None = None) -> Gaussian:
        q = super().transition(z, t, s)
        if t != self.doubled:
            return q
        beta = q.variance  # of one step
        return Gaussian(q.mean * torch.sqrt((1 - 2 * beta) / (1 - beta)), (2 * beta).log())

    def sample_path(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.path


def c1(seed: int = 0, doubled_beta: int | None = None, scrambles: int = 16, nodes: int = 2048) -> list[Check]:
    """Check (6) = (7) = (8), as discrepancies over I(x; z_{1:T}). `doubled_beta` is the t whose factor of (7) is broken.

    (8) `model.terms`; (7) `model.path_elbo`; (6) RE − KL[q(z_{1:T}) ‖ p(z_{1:T})] − I(x; z_{1:T}) from the aggregated
    posterior. Gaussian: by cubature and determinants. Finite: each of the five expectations from independent noise, `scrambles`
    scramblings of `nodes` Sobol nodes.
    """
    world = LinearWorld.drawn(seed)
    x, noise = world.nodes()
    path = walk(GaussianDiffusion(world.schedule), x, noise)
    model, broken = world.model(), world.model(_OnPath(world.schedule, path, doubled_beta))
    q = Joint.forward(world.gamma, world.data)
    p = Joint.reverse(world.gamma, world.believed, DECODER_VARIANCE)
    latents = range(1, len(world.gamma) + 1)
    information = q.information([0], latents)
    six = -q.cross(p, [0], [1]) - q.kl(p, latents) - information
    seven, eight = (float(ledger.elbo.mean()) for ledger in (broken.path_elbo(x), model.terms(x, noise)))
    checks = [
        Check("Gaussian, T = 5: (6) − (8)", (six - eight) / information, tolerance=ROUNDING),
        Check("Gaussian, T = 5: (7) − (8)", (seven - eight) / information, tolerance=ROUNDING),
    ]

    plane = _plane(seed)
    process, model, steps = GaussianDiffusion(plane.schedule), plane.model(), len(plane.schedule.grid())
    stream = iter(range(1000 * seed, 1000 * seed + 1000))

    def mean(f: Callable[[Finite, Tensor], Tensor]) -> tuple[float, float]:
        """Return E f, from paths and their noise (T, B, D), and its standard error."""
        values = []
        for _ in range(scrambles):
            noise, weights = sobol(2 * steps, nodes, next(stream))
            finite = Finite.walked(process, plane.data, noise, weights)
            values.append(finite.expectation(f(finite, noise.view(nodes, steps, 2).transpose(0, 1))))
        return _mean(torch.tensor(values, dtype=torch.float64))

    def on_path(finite: Finite) -> DiffusionModel:
        return plane.model(_OnPath(plane.schedule, finite.z, doubled_beta))

    decoded = mean(lambda finite, _: model.decode(finite.z[0]).log_prob(finite.x))
    divergence = mean(lambda finite, _: finite.mixed(finite.path()) - _log_p(model, finite.z))
    information = mean(lambda finite, _: finite.gain(finite.path()))
    six = decoded[0] - divergence[0] - information[0], math.hypot(decoded[1], divergence[1], information[1])
    seven = mean(lambda finite, _: on_path(finite).path_elbo(finite.x).elbo)
    eight = mean(lambda finite, noise: model.terms(finite.x, noise.repeat(1, len(plane.data.points), 1)).elbo)
    for name, bound in (("(6)", six), ("(7)", seven)):
        off, error = (bound[0] - eight[0]) / information[0], math.hypot(bound[1], eight[1]) / information[0]
        checks.append(Check(f"6 points, T = 6: {name} − (8)", off, error, tolerance=MONTE_CARLO))
    return checks


def _mean(values: Tensor) -> tuple[float, float]:
    """Return the mean of independent draws (n,), and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


# C2.


def c2(seed: int = 0, eta: float = 1.0) -> list[Check]:
    """Check Σ_{t≥2} I(x; z_t | z_{t−1}) = 0, over I(x; z_1), with mixtures of densities of the process. η < 1 is broken.

    For points, by quadrature in two ways: q(z_t|z_{t−1},x) from `transition`, and by Bayes' rule from the densities of the costs,
    q(z_{t−1}|z_t,x) q(z_t|x)/q(z_{t−1}|x). For the 447 test digits, T = 12, by `information.chain_rule`. If the chain is Markov, the ratio is 1
    for every path, so that there is no error.
    """
    line = _line(seed)
    finite = Finite.quadrature(process_of(line.schedule, eta), line.data, FINE)
    marginals = [finite.marginal(t) for t in range(1, len(finite.z) + 1)]
    scale = finite.expectation(finite.gain(marginals[0]))
    own = bayes = 0.0
    for t, (before, here) in enumerate(itertools.pairwise(marginals), start=2):
        own += finite.expectation(finite.gain(finite.transition(t), before))
        bayes += finite.expectation(finite.gain(finite.posterior(t - 1) + here - before, before))
    found = _digits(seed, eta)
    (digits, error), first = found.forward.sum().only(0), float(found.marginal.value[0])
    return [
        Check("4 points, T = 3: transitions", own / scale, tolerance=ROUNDING),
        Check("4 points, T = 3: by Bayes", bayes / scale, tolerance=ROUNDING),
        Check("447 digits, T = 12", digits / first, error / first, tolerance=ROUNDING),
    ]


def _digits(seed: int, eta: float, samples: int = 48) -> ChainRule:
    """Return the informations of a chain over the test digits, from sampled paths of some of them; γ_1 = 0, where all of them are below ln N."""
    process = process_of(schedules.log_snr_linear(0.0, 8.0, 12), eta)
    points = load("digits").encode("test").double().flatten(1)
    return chain_rule(points, process, samples, torch.Generator().manual_seed(seed))


# C4.


def c4(seed: int = 0, unequal: float = 0.0) -> list[Check]:
    """Check E_x KL[q(z|x) ‖ p] − KL[q(z) ‖ p] = I(x; z_{1:T}), z = z_{1:T}, as a discrepancy over I.

    `unequal` ≠ 0 gives each x its own p, p_x(z_T) = N(unequal · x, I), and their average to q(z).
    """
    world = LinearWorld.drawn(seed)
    q, p = Joint.forward(world.gamma, world.data), Joint.reverse(world.gamma, world.believed, DECODER_VARIANCE)
    latents = range(1, len(world.gamma) + 1)
    # p_x over x ~ q(x): z_T depends on x, and each z_t on z_{t+1}.
    mean, factor = [q.mean[0]], [q.factor[0]]
    mean.append(unequal * mean[0])
    factor.append(unequal * factor[0] + p.factor[-1])
    for t in reversed(latents[:-1]):
        slope, shift, _ = p.given([t], [t + 1])
        mean.append(slope @ mean[-1] + shift)
        factor.append(slope @ factor[-1] + p.factor[t] - slope @ p.factor[t + 1])
    p_x = Joint(torch.stack([mean[0], *mean[:0:-1]]), torch.stack([factor[0], *factor[:0:-1]]))
    information = q.information([0], latents)
    slack = q.kl(p_x, latents, [0]) - q.kl(p_x, latents)
    checks = [Check("Gaussian, T = 5", slack / information - 1, tolerance=ROUNDING)]

    line = _line(seed)
    process, model = GaussianDiffusion(line.schedule), line.model()
    finite, other = (Finite.quadrature(process, line.data, step) for step in (FINE, COARSE))
    steps, last = len(finite.z), finite.z[-1]
    convex = finite.expectation(process.marginal(finite.x, steps).kl(_prior(last, unequal * finite.x)))
    for t in range(1, steps):
        kl = process.posterior(finite.z[t], finite.x, t).kl(_step(model, finite.z[t], t))
        convex += finite.expectation(kl)
    p_i = torch.stack([_prior(last, unequal * point).log_prob(last) for point in finite.points], 1)
    log_p = finite.mixed(p_i) + _log_p(model, finite.z) - _prior(last).log_prob(last)
    divergence = finite.expectation(finite.mixed(finite.path()) - log_p)
    information = other.expectation(other.gain(other.path()))
    checks.append(Check("4 points, T = 3", (convex - divergence) / information - 1, tolerance=QUADRATURE))
    return checks


# C5.


def c5(seed: int = 0, eta: float = 1.0) -> list[Check]:
    """Check the chain rules forward (11) and backward (13), as discrepancies over the information on the left.

        (11)  I(x; z_{1:T}) = Σ_t I(x; z_t | z_{1:t−1})           (13)  I(x; z_1) = I(x; z_T) + Σ_{t<T} I(x; z_t | z_{t+1})

    η < 1 breaks (13), by exactly Σ_{t≥2} I(x; z_t | z_{t−1}), which is the third check. For digits, by `information.chain_rule`.
    """
    world = LinearWorld.drawn(seed)
    q, last = Joint.forward(world.gamma, world.data, eta), len(world.gamma)
    total = q.information([0], range(1, last + 1))
    forward = sum(q.information([0], [t], range(1, t)) for t in range(1, last + 1))
    first = q.information([0], [1])
    backward = q.information([0], [last]) + sum(q.information([0], [t], [t + 1]) for t in range(1, last))
    skipped = sum(q.information([0], [t], [t - 1]) for t in range(2, last + 1))
    checks = _chained("Gaussian, T = 5", (total, forward, first, backward, skipped), ROUNDING)

    line = _line(seed)
    process = process_of(line.schedule, eta)
    finite, other = (Finite.quadrature(process, line.data, step) for step in (FINE, COARSE))
    last = len(finite.z)
    total = other.expectation(other.gain(other.path()))
    first = other.expectation(other.gain(other.marginal(1)))
    known = finite.transition(1)
    forward = finite.expectation(finite.gain(known))
    for t in range(2, last + 1):
        new = finite.transition(t)
        forward += finite.expectation(finite.gain(new, known))
        known = known + new
    marginals = [finite.marginal(t) for t in range(1, last + 1)]
    backward = finite.expectation(finite.gain(marginals[-1]))
    skipped = 0.0
    for t in range(1, last):
        backward += finite.expectation(finite.gain(finite.posterior(t), marginals[t]))
        skipped += finite.expectation(finite.gain(finite.transition(t + 1), marginals[t - 1]))
    checks += _chained("4 points, T = 3", (total, forward, first, backward, skipped), QUADRATURE)

    found = _digits(seed, eta)
    left = found.marginal.values[:, :1]
    both = {
        "(11)": torch.cat([left, found.history.values, -found.path.values], 1),
        "(13)": torch.cat([found.marginal.values[:, -1:], found.backward.values, -left], 1),
    }
    for name, parts in both.items():
        off, error = Estimates(parts).sum().only(0)
        checks.append(Check(f"447 digits, T = 12: {name}", off / float(left.mean()), error / float(left.mean())))
    return checks


def _chained(world: str, informations: tuple[float, ...], tolerance: float) -> list[Check]:
    total, forward, first, backward, skipped = informations
    return [
        Check(f"{world}: (11)", forward / total - 1, tolerance=tolerance),
        Check(f"{world}: (13)", backward / first - 1, tolerance=tolerance),
        Check(f"{world}: what (13) misses", (backward - first - skipped) / first, tolerance=tolerance),
    ]


# C6.


def c6(seed: int = 0, eta: float = 1.0, prior: bool = True) -> list[Check]:
    """Check the nat budget (17)–(20), as discrepancies over H(x).

    Costs are E KL between Gaussians; informations and gaps are computed from the densities of the aggregated posterior, and H(x) from the
    data. η < 1 breaks only (20); without `prior`, KL_T is left out of the bound.
    """
    world = LinearWorld.drawn(seed)
    q = Joint.forward(world.gamma, world.data, eta)
    p = Joint.reverse(world.gamma, world.believed, DECODER_VARIANCE, eta=eta)
    last = len(world.gamma)
    # E KL[q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})] is a cross-entropy minus the entropy of the posterior, which does not depend on x.
    costs = [q.cross(p, [t], [t + 1]) - q.entropy([t], [t + 1, 0]) for t in range(1, last)]
    informations = [q.information([0], [t], [t + 1]) for t in range(1, last)]
    gaps = [q.kl(p, [t], [t + 1]) for t in range(1, last)]
    checks = _budget(
        f"Gaussian, T = {last}",
        costs=(q.cross(p, [0], [1]), *costs, (q.cross(p, [last]) - q.entropy([last], [0])) if prior else 0.0),
        parts=(q.entropy([0], [1]), *informations, q.information([0], [last])),
        gaps=(q.kl(p, [0], [1]), *gaps, q.kl(p, [last])),
        entropy=world.data.entropy(),
        tolerance=ROUNDING,
    )

    line = _line(seed)
    process = process_of(line.schedule, eta)
    model = line.model(process)
    finite, other = (Finite.quadrature(process, line.data, step) for step in (FINE, COARSE))
    x, z, last = finite.x, finite.z, len(finite.z)
    # Decoder: ln q(x_j|z_1) and ln p(x_j|z_1) of all points j.
    marginals = [finite.marginal(t) for t in range(1, last + 1)]
    log_q = torch.log_softmax(finite.share.log() + marginals[0], 1)
    log_p = torch.stack([model.decode(z[0]).log_prob(point.expand(len(x), -1)) for point in finite.points], 1)
    far = other.marginal(1)
    uncertain = torch.log_softmax(other.share.log() + far, 1)
    costs, informations, gaps = [-finite.expectation(model.decode(z[0]).log_prob(x))], [], []
    informations.append(-other.expectation((uncertain.exp() * uncertain).sum(1)))
    gaps.append(finite.expectation((log_q.exp() * (log_q - log_p)).sum(1)))
    for t in range(1, last):
        p_t = _step(model, z[t], t)
        costs.append(finite.expectation(process.posterior(z[t], x, t).kl(p_t)))
        informations.append(other.expectation(other.gain(other.posterior(t), other.marginal(t + 1))))
        aggregated = finite.mixed(marginals[t] + finite.posterior(t)) - finite.mixed(marginals[t])
        gaps.append(finite.expectation(aggregated - p_t.log_prob(z[t - 1])))
    end = _prior(z[-1])
    costs.append(finite.expectation(process.marginal(x, last).kl(end)) if prior else 0.0)
    informations.append(other.expectation(other.gain(other.marginal(last))))
    gaps.append(finite.expectation(finite.mixed(marginals[-1]) - end.log_prob(z[-1])))
    return checks + _budget(
        f"4 points, T = {last}", tuple(costs), tuple(informations), tuple(gaps), line.data.entropy(), QUADRATURE
    )


def _budget(
    world: str,
    costs: tuple[float, ...],
    parts: tuple[float, ...],
    gaps: tuple[float, ...],
    entropy: float,
    tolerance: float,
) -> list[Check]:
    """Return checks of the costs −RE, KL_1 … KL_T against H(x|z_1), I(x; z_t|z_{t+1}), I(x; z_T) and the gaps, in this order."""
    scale = abs(entropy)
    off = [(cost - part - gap) / scale for cost, part, gap in zip(costs, parts, gaps, strict=True)]
    between = max(off[1:-1], key=abs)
    return [
        Check(f"{world}: (17), the worst t", between, tolerance=tolerance),
        Check(f"{world}: (18)", off[-1], tolerance=tolerance),
        Check(f"{world}: (19)", off[0], tolerance=tolerance),
        Check(f"{world}: (20)", (sum(costs) - entropy - sum(gaps)) / scale, tolerance=tolerance),
    ]


# C8.


def wider_prior(x: Tensor, gamma: Tensor) -> Tensor:
    """Return KL[q(z_T|x) ‖ N(0, 1.1 I)] (B,): for a prior to which q(z_T) does not converge."""
    q = marginal_at(x, gamma)
    return q.kl(Gaussian(torch.zeros_like(x), x.new_full((), math.log(1.1))))


def c8(seed: int = 0, prior: Callable[[Tensor, Tensor], Tensor] = prior_kl) -> list[Check]:
    """Check KL_T / (½ SNR_T E‖x‖²) → 1: the ratio at log-SNR −12, −18, −24 is within SNR_T · D of 1.

    `prior` returns KL_T (B,) from x and γ_T. E‖x‖² is that of the data.
    """
    line, digits = _line(seed).data, load("digits").encode("test").double()
    world = LinearWorld.drawn(seed)
    worlds = {
        "Gaussian": (world.nodes()[0], None, world.data.second_moment()),
        "4 points": (line.points, line.weights, line.second_moment()),
        "digits": (digits, None, exact.Finite(digits).second_moment()),
    }
    checks = []
    for name, (x, weights, second_moment) in worlds.items():
        for gamma in (12.0, 18.0, 24.0):
            kl = prior(x, torch.tensor(gamma, dtype=torch.float64))
            mean = float(kl.mean() if weights is None else kl @ weights)
            snr = math.exp(-gamma)
            # ½ [α² E‖x‖² + D φ(ln σ²)]: the next term over the first is SNR (D/(2 E‖x‖²) − 1).
            tolerance = snr * (1 + x[0].numel() / second_moment)
            ratio = mean / (0.5 * snr * second_moment)
            checks.append(Check(f"{name}, log-SNR −{gamma:g}", ratio, expected=1.0, tolerance=tolerance))
    return checks


# C9.


def c9(seed: int = 0, dropped: int | None = None) -> list[Check]:
    """Check E ln p(x) − ELBO = E KL[q(z|x) ‖ p(z|x)] = Σ gaps − KL[q(x) ‖ p(x)] ≥ 0. `dropped` is a KL_t left out of the bound.

    The ELBO is `model.terms` by cubature; p(x), p(z|x) and the gaps are computed from the joint covariance of the affine Gaussian steps.
    It is checked for an imperfect model (relative to E KL), and for x ~ N(0, I) and a perfect one, whose slack is 0 (relative to I(x; z_1)).
    """
    world = LinearWorld.drawn(seed)
    normal = exact.Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    first = float(torch.sigmoid(world.gamma[0]))
    checks = []
    for name, data, believed, decoder, transition_variance in (
        ("imperfect", world.data, world.believed, DECODER_VARIANCE, False),
        ("perfect", normal, normal, first, True),
    ):
        here = LinearWorld(data, believed, world.schedule)
        likelihood = GaussianLikelihood(Continuous((2,)), decoder)
        variance = "transition" if transition_variance else "posterior"
        model = DiffusionModel(GaussianDiffusion(world.schedule), believed.denoiser(), likelihood, variance)
        ledger = model.terms(*here.nodes())
        elbo = float(ledger.elbo.mean())
        if dropped is not None:
            elbo += float(ledger.kl[:, dropped - 1].mean())
        q = Joint.forward(here.gamma, data)
        p = Joint.reverse(here.gamma, believed, decoder, transition_variance)
        last = len(here.gamma)
        slack = -q.cross(p, [0]) - elbo
        posterior = q.kl(p, range(1, last + 1), [0])
        gaps = q.kl(p, [last]) + sum(q.kl(p, [t], [t + 1]) for t in range(last))
        scale = posterior if name == "imperfect" else q.information([0], [1])
        marginal = gaps - q.kl(p, [0])
        checks += [
            Check(f"{name}: slack − E KL[q(z|x) ‖ p(z|x)]", (slack - posterior) / scale, tolerance=ROUNDING),
            Check(f"{name}: slack − (Σ gaps − KL[q(x) ‖ p(x)])", (slack - marginal) / scale, tolerance=ROUNDING),
            Check(f"{name}: slack ≥ 0", slack / scale, expected=-ROUNDING, tolerance=ROUNDING, at_least=True),
        ]
    return checks
