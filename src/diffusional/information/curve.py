"""The mutual information I(x; z_t) along a schedule, which does not depend on training (MATH (12), (13), (16)).

    I(x; z_1) = I(x; z_T) + Σ_{t<T} I(x; z_t | z_{t+1}),      I(x; z_t | z_{t+1}) = I(x; z_t) − I(x; z_{t+1}) ≥ 0        MATH (13)

If noise has to be drawn, every draw is a *ray*: one item and one ε for all levels, z_t = α_t x + σ_t ε. Each marginal q(z_t|x) is
correct, which is sufficient for (13), and neighbouring levels have almost the same latent: the error of an increment is proportional to
the increment, whereas for a sampled path it would be proportional to its square root. The increments are differences on the same rays,
so that their sum is exact. Terms that are linear in ε·x, ‖x‖² and, if points repeat, ln w (w the point's share) are subtracted from each
draw, since their means are known: at high noise only the information remains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.deprecation import renamed_arguments
from diffusional.errors import DiffusionalError
from diffusional.exact import Finite, Gaussian, Mixture, World
from diffusional.forward import diffuse, marginal_at
from diffusional.information.estimates import Estimates, exactly
from diffusional.information.finite import Points, check_samples, points_of
from diffusional.ledger import Estimate
from diffusional.schedule import Schedule
from diffusional.shapes import sum_dims

# Number of rays of one block, more of them if there are few points; `progress` counts these.
_ROWS, _BLOCK = 256, 1_000_000
# Number of rays from which the coefficients of the controls are fitted.
_STEADY_FROM = 30

Progress = Callable[[int, int], None]

if TYPE_CHECKING:
    import matplotlib.axes


@dataclass(frozen=True, eq=False)
class Curve:
    """I(x; z_t), nats, at levels t (L,) of a schedule, rising from z_1 to z_T; in continuous time `level` is u in [0, 1].

    Attributes:
        gamma: γ (L,) at these levels.
        information, error: I(x; z_t) (L,) and its standard error, which is zero if it is known exactly.
        increment, increment_error: I(x; z_s | z_t) (L − 1,) from each level t to the shown level s < t before it, with errors; the
            increments add up to I(x; z_1) − I(x; z_T) exactly.
        entropy: H(x), ln N for N distinct points.
        remaining: H(x | z_1) = H(x) − I(x; z_1), the remaining entropy for the decoder.
        samples: the number of rays; 0 if none were needed.
    """

    level: Tensor
    gamma: Tensor
    information: Tensor
    error: Tensor
    increment: Tensor
    increment_error: Tensor
    entropy: Estimate
    remaining: Estimate
    samples: int

    def lost(self, share: float) -> float:
        """Return the level t (or u) by which this share of I(x; z_1) is lost, interpolated linearly; the last level if it never is.

        >>> from diffusional import schedule
        >>> world = Gaussian(torch.zeros(1), torch.eye(1))
        >>> round(curve(world, schedule.log_snr_linear(-9.0, 9.0), timesteps=901).lost(0.5), 2)
        0.25
        """
        if not 0 < share < 1:
            raise DiffusionalError(f"expected share between 0 and 1, got {share}")
        target = (1 - share) * float(self.information[0])
        below = (self.information <= target).nonzero().flatten()
        if not len(below):
            return float(self.level[-1])
        if (k := int(below[0])) == 0:
            return float(self.level[0])
        high, low = self.information[k - 1 : k + 1].tolist()
        left, right = self.level[k - 1 : k + 1].tolist()
        return left + (right - left) * (high - target) / (high - low)

    def wasted(self, share: float = 0.01) -> tuple[float, float]:
        """Return the fractions of levels that hardly change the information.

        They are the fraction at the low-noise end before `share` of I(x; z_1) is lost, and that at the high-noise end after all except
        `share` of it is lost. Of a finite data set the low-noise levels only do not help to distinguish its items: a model of new items
        has to describe their details there.

        >>> from diffusional import schedule
        >>> clean, noisy = curve(Finite(torch.tensor([[-1.0], [1.0]])), schedule.log_snr_linear(-9.0, 9.0)).wasted()
        >>> 0.3 < clean < 0.5, 0.1 < noisy < 0.4
        (True, True)
        """
        first, last = float(self.level[0]), float(self.level[-1])
        early, late = self.lost(share), self.lost(1 - share)
        return (early - first) / (last - first), (last - late) / (last - first)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw I(x; z_t) against t, with H(x), a band of ± 2 standard errors and an axis of log-SNR, and return the axes.

        The computed values are marked, and the line between them is a guide. Ends of the schedule that change the information by less
        than 1 % (`wasted`) are grey.

        Args:
            ax: matplotlib axes; by default those of a new figure of pyplot.

        Raises MissingPackageError if matplotlib is not installed.

        >>> from diffusional import schedule
        >>> from matplotlib.figure import Figure
        >>> found = curve(Finite(torch.tensor([[-1.0], [1.0]])), schedule.log_snr_linear(-9.0, 9.0), timesteps=5)
        >>> found.plot(Figure().subplots()).get_ylabel()
        'I(x; z), nats'
        """
        from diffusional.report import plots

        return plots.information(
            self.level, self.gamma, self.information, self.error, self.entropy.value, self.wasted(), ax
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready record, which `diffusional information --json` writes."""
        return {
            "level": self.level.tolist(),
            "gamma": self.gamma.tolist(),
            "information": self.information.tolist(),
            "information_error": self.error.tolist(),
            "increment": self.increment.tolist(),
            "increment_error": self.increment_error.tolist(),
            "entropy": self.entropy.to_dict(),
            "remaining": self.remaining.to_dict(),
            "samples": self.samples,
            "unit": "nats",
        }


@renamed_arguments(levels="timesteps")
def curve(
    data: Tensor | World,
    schedule: Schedule,
    timesteps: int | None = 50,
    samples: int = 2000,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Compute I(x; z_t) at a number of `timesteps` of a schedule, evenly spaced in t from z_1 to z_T; None means all T (MATH (13), (16)).

    Args:
        data: encoded items (N, *shape), which means their empirical distribution, or an exact world. Gaussians are computed in closed
            form and mixtures by quadrature for D ≤ 2; for other data `samples` rays are drawn.
        progress: called with (rays done, number of rays).

    Results are in nats. Raises DiffusionalError for fewer than 2 timesteps or samples, and for data without items or not finite.

    >>> from diffusional import schedule
    >>> three = curve(torch.tensor([[-1.0], [0.0], [1.0]]), schedule.linear(steps=1000), timesteps=5, samples=100)
    >>> three.level.tolist(), round(float(three.information[0]), 4)                 # ln 3
    ([1, 251, 500, 750, 1000], 1.0986)
    """
    level, gamma = _timesteps(schedule, timesteps)
    information, surprise = informations(data, gamma, samples, generator, progress)
    steps = information.steps()
    n = 0 if len(information.values) == 1 else len(information.values)
    return Curve(
        level,
        gamma,
        information.value,
        information.error,
        steps.value,
        steps.error,
        _estimate(surprise, n),
        _estimate(Estimates(surprise.values - information.values[:, :1]), n),
        n,
    )


def _estimate(draws: Estimates, n: int) -> Estimate:
    value, error = draws.only(0)
    return Estimate(value, error, 0.0, n, 0)


def _timesteps(schedule: Schedule, timesteps: int | None) -> tuple[Tensor, Tensor]:
    if timesteps is not None and (isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 2):
        raise DiffusionalError(f"expected timesteps to be at least 2, or None for all, got {timesteps!r}")
    if schedule.steps is None:
        if timesteps is None:
            raise DiffusionalError(
                "expected a number of timesteps in continuous time, which has no finite T, got timesteps=None"
            )
        u = torch.linspace(0, 1, timesteps, dtype=torch.float64)
        return u, schedule.gamma(u).detach().cpu()
    shown = torch.linspace(1, schedule.steps, min(timesteps or schedule.steps, schedule.steps), dtype=torch.float64)
    t = shown.round().long()
    return t, schedule.grid().detach().cpu()[t - 1]


def informations(
    data: Tensor | World,
    gamma: Tensor,
    samples: int,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> tuple[Estimates, Estimates]:
    """Return I(x; z) at every γ (L,), and H(x), as draws (n, L) and (n, 1) or (1, 1) on the same rays.

    >>> world = Gaussian(torch.zeros(1), torch.eye(1))
    >>> informations(world, torch.tensor([0.0]), samples=2)[0].value                # ½ ln 2
    tensor([0.3466], dtype=torch.float64)
    """
    check_samples(samples)
    gamma = gamma.double()
    if isinstance(data, Gaussian) or (isinstance(data, Mixture) and data.dimensions <= 2):
        exact = torch.tensor([data.information(g).value for g in gamma], dtype=torch.float64)
        return exactly(exact), exactly(torch.tensor([data.entropy()], dtype=torch.float64))
    if isinstance(data, World) and not isinstance(data, Finite):
        return _drawn(data, gamma, samples, generator, progress)
    points = points_of(data)
    entropy = points.entropy()
    left = _left(points, gamma, samples, generator, progress)
    return Estimates(entropy + left), exactly(torch.tensor([entropy], dtype=torch.float64))


def _left(
    points: Points, gamma: Tensor, samples: int, generator: torch.Generator | None, progress: Progress | None
) -> Tensor:
    """Return ln p(x|z) (n, L) along rays of finite data: I(x; z) = H(x) + E ln p(x|z)."""
    parts, controls, done = [], [], 0
    mean_square = points.weights @ points.squares
    # At high noise ln p(x_i|z) is approximately ln w_i, which is constant if all points are equally frequent.
    share = points.weights.log()
    unequal = bool((points.weights != points.weights[0]).any())
    for own in points.draw(samples, generator).split(max(_ROWS, _BLOCK // len(points.weights))):
        noise = torch.empty(len(own), points.centred.shape[1]).normal_(generator=generator)
        parts.append(points.log_posterior(own, noise, gamma))
        along = (noise.double() * points.centred[own].double()).sum(1)
        known = [along, points.squares[own] - mean_square]
        known += [share[own] + points.entropy()] if unequal else []
        controls.append(torch.stack(known, 1))
        done += len(own)
        if progress is not None:
            progress(done, samples)
    return steadied(torch.cat(parts), torch.cat(controls))


def _drawn(
    world: World, gamma: Tensor, samples: int, generator: torch.Generator | None, progress: Progress | None
) -> tuple[Estimates, Estimates]:
    """Return ln q(z|x)/q(z) (n, L) and −ln p(x) (n, 1) along rays of a world with densities."""
    x = world.sample(samples, generator)
    noise = torch.empty_like(x).normal_(generator=generator)
    ratios = torch.empty(samples, len(gamma), dtype=torch.float64)
    for k, g in enumerate(gamma):
        z = diffuse(x, g, noise)
        ratios[:, k] = marginal_at(x, g).log_prob(z) - world.log_marginal(z, g)
        if progress is not None:
            progress(samples * (k + 1) // len(gamma), samples)
    controls = torch.stack([sum_dims(noise * x), sum_dims(x.square()) - world.second_moment()], 1)
    return Estimates(steadied(ratios, controls)), Estimates(-world.log_prob(x).reshape(-1, 1))


def steadied(values: Tensor, controls: Tensor) -> Tensor:
    """Return the same means with smaller errors: `values` (n, L) minus a linear function of `controls` (n, k), whose means are zero.

    At high noise ln q(z|x)/q(z) is √SNR ε·x + ½ SNR (‖x‖² − …) + …: the large noise around the small information is known.

    >>> controls = torch.linspace(-1, 1, 101, dtype=torch.float64).unsqueeze(1)
    >>> steadied(3 * controls + 2, controls).std() < 1e-12
    tensor(True)
    """
    if len(values) < _STEADY_FROM:
        return values
    centred = controls - controls.mean(0)
    slopes = torch.linalg.lstsq(centred, values - values.mean(0), driver="gelsd").solution
    return values - controls @ slopes
