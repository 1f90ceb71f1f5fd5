"""Chains x, z_1 … z_T with known densities, implemented independently of the model code that they test.

`Joint` is a linear-Gaussian chain, whose informations and KL divergences are computed from determinants of its covariance. `Finite` has
N points and paths from them: every q(z_{1:t}) is a mixture over the points of densities of the process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional import exact
from diffusional.forward import GaussianDiffusion, NonMarkovDiffusion
from diffusional.gaussian import Gaussian

_LOG_2PI = math.log(2 * math.pi)
Variables = Sequence[int]


@dataclass(frozen=True)
class Joint:
    """V jointly Gaussian vectors of D dimensions, a = mean_a + factor_a ε, ε ~ N(0, I): mean (V, D), factor (V, D, n).

    Variables are named by their number: 0 is x, t is z_t.

    >>> ends = Joint.forward(torch.tensor([0.0]), exact.Gaussian(torch.zeros(1), torch.eye(1)))
    >>> round(ends.information([0], [1]), 4)                                          # ½ ln(1 + SNR), SNR = 1
    0.3466
    """

    mean: Tensor
    factor: Tensor

    @staticmethod
    def forward(gamma: Tensor, world: exact.Gaussian, eta: float = 1.0) -> "Joint":
        """Return q(x, z_{1:T}) with γ (T,), walked back from z_T by q_η(z_s|z_t, x), MATH (14); η = 1 is the Markov chain."""
        total, d = len(gamma) + 1, world.dimensions
        m, noise = world.means[0], _blocks(total, d)
        root = world.eigenvectors[0] @ torch.diag(world.eigenvalues[0].sqrt())
        alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
        x = root @ noise[0]
        mean, factor = [alpha2[-1].sqrt() * m], [alpha2[-1].sqrt() * x + sigma2[-1].sqrt() * noise[-1]]
        for t in range(total - 2, 0, -1):
            keep, pull, v = _posterior(alpha2[t - 1 : t + 1], sigma2[t - 1 : t + 1], eta)
            mean.append(keep * mean[-1] + pull * m)
            factor.append(keep * factor[-1] + pull * x + v.sqrt() * noise[t])
        return Joint(torch.stack([m, *mean[::-1]]), torch.stack([x, *factor[::-1]]))

    @staticmethod
    def reverse(
        gamma: Tensor,
        believed: exact.Gaussian,
        decoder_variance: float,
        transition: bool = False,
        eta: float = 1.0,
        without: exact.Gaussian | None = None,
        weight: float = 1.0,
    ) -> "Joint":
        """Return p(x, z_{1:T}) of the denoiser that is optimal for the world `believed`, MATH (2), (5).

        With a world `without`, whose optimal denoiser is x̂_∅, the denoiser is x̂_∅ + w (x̂ − x̂_∅), MATH (26), w = `weight`.
        """
        total, d = len(gamma) + 1, believed.dimensions
        noise, eye = _blocks(total, d), torch.eye(d, dtype=torch.float64)
        alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)

        def optimal(world: exact.Gaussian, t: int) -> tuple[Tensor, Tensor]:
            a2, s2, m = alpha2[t - 1], sigma2[t - 1], world.means[0]
            c = world.eigenvectors[0] @ torch.diag(world.eigenvalues[0]) @ world.eigenvectors[0].T
            gain = a2.sqrt() * c @ torch.linalg.inv(a2 * c + s2 * eye)
            return gain, m - a2.sqrt() * gain @ m

        def denoised(t: int) -> tuple[Tensor, Tensor]:
            """Return x̂ = K z + k at z_t."""
            gain, shift = optimal(believed, t)
            if without is None:
                return gain, shift
            other, base = optimal(without, t)
            return other + weight * (gain - other), base + weight * (shift - base)

        mean, factor = [torch.zeros(d, dtype=torch.float64)], [noise[-1]]
        for t in range(total - 2, 0, -1):
            keep, pull, v = _posterior(alpha2[t - 1 : t + 1], sigma2[t - 1 : t + 1], eta)
            if transition:
                v = sigma2[t] - alpha2[t] / alpha2[t - 1] * sigma2[t - 1]
            gain, shift = denoised(t + 1)
            mean.append(keep * mean[-1] + pull * (gain @ mean[-1] + shift))
            factor.append((keep * eye + pull * gain) @ factor[-1] + v.sqrt() * noise[t])
        gain, shift = denoised(1)
        mean.append(gain @ mean[-1] + shift)
        factor.append(gain @ factor[-1] + math.sqrt(decoder_variance) * noise[0])
        return Joint(torch.stack(mean[::-1]), torch.stack(factor[::-1]))

    def _rows(self, variables: Variables) -> tuple[Tensor, Tensor]:
        chosen = list(variables)
        return self.mean[chosen].flatten(), self.factor[chosen].flatten(0, 1)

    def given(self, a: Variables, b: Variables) -> tuple[Tensor, Tensor, Tensor]:
        """Return H, h, S with (a | b) = N(H b + h, S)."""
        mean_a, a_rows = self._rows(a)
        if not b:
            return a_rows.new_zeros(len(mean_a), 0), mean_a, a_rows @ a_rows.T
        mean_b, b_rows = self._rows(b)
        slope = torch.linalg.solve(b_rows @ b_rows.T, b_rows @ a_rows.T).T
        rest = a_rows - slope @ b_rows
        return slope, mean_a - slope @ mean_b, rest @ rest.T

    def entropy(self, a: Variables, given: Variables = ()) -> float:
        """Return H(a | given), nats."""
        s = self.given(a, given)[2]
        return 0.5 * float(len(s) * (1 + _LOG_2PI) + torch.logdet(s))

    def information(self, a: Variables, b: Variables, given: Variables = ()) -> float:
        """Return I(a; b | given) = ½ ln det S_{a|given} / det S_{a|b,given}, nats."""
        before, after = self.given(a, given)[2], self.given(a, [*b, *given])[2]
        return 0.5 * float(torch.logdet(before) - torch.logdet(after))

    def cross(self, p: "Joint", a: Variables, given: Variables = ()) -> float:
        """Return −E ln p(a | given), the expectation over this joint."""
        slope, shift, s = p.given(a, given)
        mean_a, a_rows = self._rows(a)
        if given:
            mean_b, b_rows = self._rows(given)
            mean_a, a_rows = mean_a - slope @ mean_b, a_rows - slope @ b_rows
        second = a_rows @ a_rows.T + torch.outer(mean_a - shift, mean_a - shift)
        return 0.5 * float(len(s) * _LOG_2PI + torch.logdet(s) + torch.linalg.solve(s, second).trace())

    def kl(self, p: "Joint", a: Variables, given: Variables = ()) -> float:
        """Return E KL[q(a | given) ‖ p(a | given)], q this joint."""
        q_slope, q_shift, q_s = self.given(a, given)
        p_slope, p_shift, p_s = p.given(a, given)
        off, spread = q_shift - p_shift, q_s
        if given:
            mean_b, b_rows = self._rows(given)
            off = off + (q_slope - p_slope) @ mean_b
            tilt = (q_slope - p_slope) @ b_rows
            spread = spread + tilt @ tilt.T
        second = torch.linalg.solve(p_s, spread + torch.outer(off, off)).trace()
        return 0.5 * float(second - len(p_s) + torch.logdet(p_s) - torch.logdet(q_s))


def _blocks(total: int, d: int) -> Tensor:
    """Return the `total` blocks of D rows of ε (total, D, total · D)."""
    return torch.eye(total * d, dtype=torch.float64).view(total, d, -1)


def _posterior(alpha2: Tensor, sigma2: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return q_η(z_s|z_t, x) = N(keep · z_t + pull · x, v I), MATH (14), from (α_s², α_t²) and (σ_s², σ_t²)."""
    v = eta**2 * sigma2[0] * (sigma2[1] - alpha2[1] / alpha2[0] * sigma2[0]) / sigma2[1]
    keep = ((sigma2[0] - v) / sigma2[1]).sqrt()
    return keep, alpha2[0].sqrt() - keep * alpha2[1].sqrt(), v


def cubature(n: int) -> Tensor:
    """Return 2n nodes (2n, n) of equal weight, ±√n e_i: exact for polynomials of degree ≤ 3 under N(0, I).

    >>> (cubature(4) ** 2).mean(0)
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    nodes = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    return torch.cat([nodes, -nodes])


def trapezoid(n: int, step: float, reach: float = 7.0) -> tuple[Tensor, Tensor]:
    """Return nodes (M, n) and weights (M,) of the trapezoid rule under N(0, I).

    >>> round(float(trapezoid(2, 0.5)[1].sum()), 9)
    1.0
    """
    half = math.ceil(reach / step)
    axis = torch.arange(-half, half + 1, dtype=torch.float64) * step
    nodes = torch.cartesian_prod(*[axis] * n).reshape(-1, n)
    return nodes, torch.exp(-0.5 * nodes.square().sum(1)) * (step / math.sqrt(2 * math.pi)) ** n


def sobol(n: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` nodes (M, n) and weights (M,) for N(0, I): a random scrambling of Sobol's points, whose mean is unbiased.

    >>> nodes, weights = sobol(2, 256, seed=0)
    >>> bool((weights @ nodes).abs().max() < 0.02)
    True
    """
    engine = torch.quasirandom.SobolEngine(n, scramble=True, seed=seed)
    # Bounded away from 0 and 1, where the inverse is infinite.
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
    return torch.special.ndtri(uniform), torch.full((count,), 1 / count, dtype=torch.float64)


@dataclass(frozen=True)
class Finite:
    """N points (N, D) with probabilities `share` (N,), and B weighted paths from them: z (T, B, D), from point `source` (B,).

    ln q of every path under every point is (B, N); E f = Σ weight · f.
    """

    process: GaussianDiffusion
    points: Tensor
    share: Tensor
    source: Tensor
    z: Tensor
    weight: Tensor

    @staticmethod
    def walked(process: GaussianDiffusion, world: exact.Finite, nodes: Tensor, weights: Tensor) -> "Finite":
        """Return all points, each with every node (M, T · D) as the noises of its path, with these `weights` (M,)."""
        n, d = world.points.shape
        source = torch.arange(n).repeat_interleave(len(nodes))
        noise = nodes.view(len(nodes), -1, d).transpose(0, 1).repeat(1, n, 1)
        z = walk(process, world.points[source], noise)
        return Finite(process, world.points, world.weights, source, z, world.weights[source] * weights.repeat(n))

    @staticmethod
    def quadrature(process: GaussianDiffusion, world: exact.Finite, step: float) -> "Finite":
        """Return all points, each with all nodes of the trapezoid rule over the T noises of its path; D = 1."""
        return Finite.walked(process, world, *trapezoid(len(process.schedule.grid()), step))

    @property
    def x(self) -> Tensor:
        """(B, D)."""
        return self.points[self.source]

    def expectation(self, values: Tensor) -> float:
        """Return E f from f (B,)."""
        return float(self.weight @ values)

    def own(self, log_q: Tensor) -> Tensor:
        """Return (B,): the column of the path's own point."""
        return log_q.gather(1, self.source[:, None]).squeeze(1)

    def mixed(self, log_q: Tensor) -> Tensor:
        """Return ln Σ_j share_j q_j (B,)."""
        return torch.logsumexp(self.share.log() + log_q, 1)

    def marginal(self, t: int) -> Tensor:
        """Return ln q(z_t | x_j)."""
        rows, x = self._rows(self.z[t - 1])
        return self.process.marginal(x, t).log_prob(rows).view(-1, len(self.points))

    def transition(self, t: int) -> Tensor:
        """Return ln q(z_t | z_{t−1}, x_j), from the transition of the process."""
        rows, x = self._rows(self.z[t - 1])
        before = x if t == 1 else self._rows(self.z[t - 2])[0]
        return transition(self.process, before, t, x).log_prob(rows).view(-1, len(self.points))

    def posterior(self, t: int) -> Tensor:
        """Return ln q(z_t | z_{t+1}, x_j)."""
        rows, x = self._rows(self.z[t - 1])
        after, _ = self._rows(self.z[t])
        return self.process.posterior(after, x, t).log_prob(rows).view(-1, len(self.points))

    def path(self) -> Tensor:
        """Return ln q(z_{1:T} | x_j), chained forward."""
        return sum((self.transition(t) for t in range(2, len(self.z) + 1)), start=self.transition(1))

    def _rows(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return all pairs of z (B, D) and the points, (B · N, D) each."""
        return z.repeat_interleave(len(self.points), 0), self.points.repeat(len(z), 1)

    def gain(self, log_q: Tensor, known: Tensor | None = None) -> Tensor:
        """Return ln q(new|known, x) − ln q(new|known) (B,), whose mean is I(x; new | known).

        It is computed from ln q(new | known, x_j) and ln q(known | x_j).
        """
        if known is None:
            return self.own(log_q) - self.mixed(log_q)
        return self.own(log_q) - (self.mixed(known + log_q) - self.mixed(known))


def transition(process: GaussianDiffusion, before: Tensor, t: int, x: Tensor) -> Gaussian:
    """Return q(z_t | z_{t−1} = before, x), which does not depend on x for a Markov process."""
    if isinstance(process, NonMarkovDiffusion):
        return process.transition(before, t, x=x)
    return process.transition(before, t)


def walk(process: GaussianDiffusion, x: Tensor, noise: Tensor) -> Tensor:
    """Return z_1 … z_T (T, B, D) from noise of that shape, backward from z_T ~ q(z_T|x) by q(z_t|z_{t+1}, x)."""
    last = len(noise)
    path = [process.marginal(x, last).sample(noise=noise[-1])]
    for t in range(last - 1, 0, -1):
        path.append(process.posterior(path[-1], x, t).sample(noise=noise[t - 1]))
    return torch.stack(path[::-1])
