"""The forward diffusion q(z_{1:T} | x), the fixed variational posterior of a diffusion model (MATH (1), (3)).

    q(z_t | z_{t−1}) = N(√(1−β_t) z_{t−1}, β_t I)                                                      MATH (1)
    q(z_t | x)       = N(α_t x, σ_t² I)                                                                MATH (3)
    q(z_t | z_s)     = N(α_{t|s} z_s, σ²_{t|s} I),   α_{t|s} = α_t/α_s,   σ²_{t|s} = −σ_t² expm1(γ_s − γ_t)
    q(z_s | z_t, x)  = N((α_{t|s} σ_s² z_t + α_s σ²_{t|s} x)/σ_t²,   −σ_s² expm1(γ_s − γ_t) I)

for 1 ≤ s < t ≤ T; z_0 ≡ x has γ_0 = −∞. Coefficients are computed from γ in float64, without 1 − α² or differences of
SNRs, and cast to the data's dtype at the end (MATH (4)). Data may have any shape (B, *dims).
"""

from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.schedule import Schedule
from diffusional.shapes import Batch, PerItem, align

Time = int | Tensor
_Family = TypeVar("_Family")


@runtime_checkable
class Distribution(Protocol):
    """A distribution of one latent given others, independent over positions: `Gaussian`, `Bits` or `Categorical`. Nats, summed over all axes but B."""

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw (B, *dims) from a generator, or as a function of standard normal `noise` (B, *dims), in the type of the noise.

        A discrete distribution draws by the inverse of its distribution function at Φ(noise), which is uniform.
        """
        ...

    def log_prob(self, z: Batch) -> PerItem:
        """Return the log of the density or mass at z (B,)."""
        ...

    def kl(self: _Family, other: _Family) -> PerItem:
        """Return KL[self ‖ other] (B,), other of the same family."""
        ...


def _undefined(process: object, what: str) -> DiffusionalError:
    return DiffusionalError(f"expected {type(process).__name__} to define {what}, which is needed here; it does not")


@runtime_checkable
class ForwardProcess(Protocol):
    """A fixed variational posterior over z_1 … z_T: the Gaussian diffusion, its non-Markov family, the binomial diffusion.

    Latents have the shape of x (B, *dims). Times t are ints, the same for all items, or int64 tensors (B,), one for each item.

    A process is Markov unless it has an attribute `markov` that is False. The transition of such a process depends on x as well,
    `transition(z, t, x)`. A class that derives from this one inherits `sample_path`, which needs `transition` only; of a process that is not
    Markov it draws z_1, …, z_T in this order, too.

    Attributes:
        steps: T ≥ 2, the number of latents; None in continuous time. A subclass sets it, in the class or in `__init__`, or defines it
            as a property.

    >>> from diffusional.shapes import align
    >>> class Walk(ForwardProcess):                                             # z_t = x + t independent steps N(0, v)
    ...     def __init__(self, steps, v): self.steps, self.v = steps, v
    ...     def marginal(self, x, t): return Gaussian(x, align(torch.as_tensor(t * self.v).log(), x))
    ...     def transition(self, z, t): return self.marginal(z, 1)
    ...     def posterior(self, z_next, x, t):
    ...         kept = torch.as_tensor(t / (t + 1))
    ...         return Gaussian(x + align(kept, x) * (z_next - x), align((kept * self.v).log(), x))
    >>> Walk(5, 0.1).sample_path(torch.zeros(2, 3)).shape
    torch.Size([5, 2, 3])
    """

    if TYPE_CHECKING:

        @property
        def steps(self) -> int | None:
            """T, the number of latents; None in continuous time."""
            ...
    else:
        # A property would have no setter: a subclass could not set `self.steps`.
        steps: int | None

    def marginal(self, x: Batch, t: Time) -> Distribution:
        """Return q(z_t | x), t in 1 … T."""
        raise _undefined(self, "marginal(x, t), q(z_t|x)")

    def transition(self, z: Batch, t: Time) -> Distribution:
        """Return q(z_t | z_{t−1} = z), t in 1 … T; for t = 1, z is x, and this is q(z_1 | x)."""
        raise _undefined(self, "transition(z, t), q(z_t|z_{t−1})")

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Distribution:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T − 1."""
        raise _undefined(self, "posterior(z_next, x, t), q(z_t|z_{t+1}, x)")

    def sample_path(self, x: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Draw z_1 … z_T (T, B, *dims) from x: by default, each from its transition given the one before, MATH (1).

        Raises DiffusionalError in continuous time, where there is no first latent.

        >>> from diffusional import schedule
        >>> GaussianDiffusion(schedule.linear(steps=10)).sample_path(torch.zeros(2, 3)).shape
        torch.Size([10, 2, 3])
        """
        if self.steps is None:
            raise DiffusionalError(
                f"sample_path expects a {type(self).__name__} with a number of steps, got one in continuous time (steps=None): choose a "
                "number of latents with regrid(steps)"
            )
        path, z = [], x
        for t in range(1, self.steps + 1):
            z = transition_of(self, z, t, x).sample(generator).to(x.dtype)
            path.append(z)
        return torch.stack(path)


# The protocol's first name.
Posterior = ForwardProcess


def transition_of(process: ForwardProcess, before: Batch, t: Time, x: Batch) -> Distribution:
    """Return q(z_t | z_{t−1} = before, x), which does not depend on x if the process is Markov.

    >>> from diffusional import schedule
    >>> transition_of(GaussianDiffusion(schedule.linear(steps=10)), torch.ones(2, 3), 1, torch.ones(2, 3)).mean.shape
    torch.Size([2, 3])
    """
    if getattr(process, "markov", True):
        return process.transition(before, t)
    return process.transition(before, t, x)  # pyright: ignore[reportCallIssue]


def alpha(gamma: Tensor) -> Tensor:
    """Return α = √sigmoid(−γ), MATH (4); float64.

    >>> alpha(torch.tensor(0.0))
    tensor(0.7071, dtype=torch.float64)
    """
    return torch.exp(0.5 * logsigmoid(-gamma.double()))


def sigma(gamma: Tensor) -> Tensor:
    """Return σ = √sigmoid(γ), MATH (4); float64.

    >>> sigma(torch.tensor(0.0))
    tensor(0.7071, dtype=torch.float64)
    """
    return torch.exp(0.5 * logsigmoid(gamma.double()))


def diffuse(x: Batch, gamma: Tensor, noise: Batch) -> Batch:
    """Return z = α x + σ ε at log-SNR −γ, γ (B,) or (): a sample from MATH (3) with the given noise.

    >>> diffuse(torch.ones(1, 2), torch.tensor([0.0]), torch.zeros(1, 2))
    tensor([[0.7071, 0.7071]])
    """
    return align(alpha(gamma), x) * x + align(sigma(gamma), x) * noise


def marginal_at(x: Batch, gamma: Tensor) -> Gaussian:
    """Return q(z | x) = N(α x, σ² I) at log-SNR −γ, MATH (3)."""
    return Gaussian(align(alpha(gamma), x) * x, align(logsigmoid(gamma.double()), x))


def transition_at(z_s: Batch, gamma_s: Tensor, gamma_t: Tensor) -> Gaussian:
    """Return q(z_t | z_s) = N(α_{t|s} z_s, σ²_{t|s} I), MATH (3), for γ_s < γ_t; γ_s = −∞ stands for x."""
    gamma_s, gamma_t = gamma_s.double(), gamma_t.double()
    alpha_ts = torch.exp(0.5 * (logsigmoid(-gamma_t) - logsigmoid(-gamma_s)))
    log_variance = logsigmoid(gamma_t) + torch.log(-torch.expm1(gamma_s - gamma_t))
    return Gaussian(align(alpha_ts, z_s) * z_s, align(log_variance, z_s))


def posterior_at(z_t: Batch, x: Batch, gamma_s: Tensor, gamma_t: Tensor) -> Gaussian:
    """Return q(z_s | z_t, x), MATH (3), for finite γ_s < γ_t."""
    gamma_s, gamma_t = gamma_s.double(), gamma_t.double()
    alpha_ts = torch.exp(0.5 * (logsigmoid(-gamma_t) - logsigmoid(-gamma_s)))
    shrink = torch.exp(logsigmoid(gamma_s) - logsigmoid(gamma_t))  # σ_s²/σ_t²
    lost = -torch.expm1(gamma_s - gamma_t)  # σ²_{t|s}/σ_t²
    mean = align(alpha_ts * shrink, z_t) * z_t + align(alpha(gamma_s) * lost, x) * x
    return Gaussian(mean, align(logsigmoid(gamma_s) + torch.log(lost), x))


def ddim_at(z_t: Batch, x: Batch, gamma_s: Tensor, gamma_t: Tensor, eta: float) -> Gaussian:
    """Return q_η(z_s | z_t, x) of the non-Markov family with the same marginals (Song, Meng & Ermon 2021), MATH (14).

        N( α_s x + √(σ_s² − η² v) · (z_t − α_t x)/σ_t,   η² v I ),      v the variance of MATH (3)'s q(z_s | z_t, x).

    η = 1 is the Markov chain; η = 0 is deterministic (its log-variance is −∞).
    """
    if not 0 <= eta <= 1:
        raise DiffusionalError(f"expected eta from 0 (deterministic) to 1 (the Markov chain), got {eta}")
    gamma_s, gamma_t = gamma_s.double(), gamma_t.double()
    lost = -torch.expm1(gamma_s - gamma_t)  # v/σ_s²
    along = sigma(gamma_s) * torch.sqrt(1 - eta**2 * lost)
    noise = (z_t - align(alpha(gamma_t), x) * x) / align(sigma(gamma_t), x)
    mean = align(alpha(gamma_s), x) * x + align(along, x) * noise
    log_variance = logsigmoid(gamma_s) + torch.log(eta**2 * lost)
    return Gaussian(mean, align(log_variance, x))


def latents(t: Time, first: int, last: int, device: torch.device) -> Tensor:
    """Return t as int64 on a device. Raises DiffusionalError unless all of it are integers `first` … `last`.

    >>> latents(3, 1, 10, torch.device("cpu"))
    tensor(3)
    """
    t = torch.as_tensor(t, device=device)
    if t.dtype.is_floating_point or t.dtype == torch.bool:
        raise DiffusionalError(f"expected t to be integers, the numbers 1 … {last} of latents, got type {t.dtype}")
    if bool(((t < first) | (t > last)).any()):
        raise DiffusionalError(f"expected t from {first} to {last}, got {int(t.min())} to {int(t.max())}")
    return t.long()


class GaussianDiffusion(nn.Module, ForwardProcess):
    """The forward diffusion of a schedule, q(z_{1:T} | x) with z_t at t = 1 … T (MATH (1), (3)).

    Times are ints or int64 tensors (B,), one for each item. Times out of range raise DiffusionalError.

    >>> from diffusional import schedule
    >>> forward = GaussianDiffusion(schedule.linear(steps=1000))
    >>> forward.marginal(torch.ones(2, 3), t=1000).mean[0, 0]
    tensor(0.0064)
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @property
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time."""
        return self.schedule.steps

    @property
    def markov(self) -> bool:
        """Whether q(z_t|z_{t−1}, x) does not depend on x."""
        return True

    def error_weight(self, t: Time) -> Tensor:
        """Return w_t (B,) or (), float64, with KL[q(z_t|z_{t+1}, x) ‖ q(z_t|z_{t+1}, x̂)] = w_t ‖ε − ε̂‖², t in 1 … T−1.

        For the Markov chain w_t = ½ expm1(γ_{t+1} − γ_t), MATH (10).
        """
        return 0.5 * torch.expm1(self.gamma(t + 1) - self.gamma(t))

    def regrid(self, steps: int | None) -> "GaussianDiffusion":
        """Return the process with the same γ(u) and another number of latents."""
        return GaussianDiffusion(self.schedule.regrid(steps))

    def gamma(self, t: Time, first: int = 1) -> Tensor:
        """Return γ_t (B,) or (), float64, for t in `first` … T; γ_0 = −∞ is x."""
        grid = self.schedule.grid()
        t = latents(t, first, len(grid), grid.device)
        return torch.cat([grid.new_full((1,), -torch.inf), grid])[t]

    def marginal(self, x: Batch, t: Time) -> Gaussian:
        """Return q(z_t | x) = N(α_t x, σ_t² I), t in 1 … T, MATH (3)."""
        return marginal_at(x, self.gamma(t))

    def transition(self, z: Batch, t: Time, s: Time | None = None) -> Gaussian:
        """Return q(z_t | z_s = z), MATH (1), (3), t in 1 … T; s defaults to t − 1, and z_0 ≡ x."""
        gamma_t = self.gamma(t)
        gamma_s = self.gamma(t - 1 if s is None else s, first=0)
        _increasing(gamma_s, gamma_t)
        return transition_at(z, gamma_s, gamma_t)

    def posterior(self, z_next: Batch, x: Batch, t: Time) -> Gaussian:
        """Return q(z_t | z_{t+1} = z_next, x), t in 1 … T−1, MATH (3)."""
        grid = self.schedule.grid()
        latents(t, 1, len(grid) - 1, grid.device)
        return self.between(z_next, x, t, t + 1)

    def between(self, z_t: Batch, x: Batch, s: Time, t: Time) -> Gaussian:
        """Return q(z_s | z_t, x) for any 1 ≤ s < t ≤ T, MATH (3)."""
        gamma_s, gamma_t = self.gamma(s), self.gamma(t)
        _increasing(gamma_s, gamma_t)
        return posterior_at(z_t, x, gamma_s, gamma_t)


class NonMarkovDiffusion(GaussianDiffusion):
    """The family of MATH (14): the marginals q(z_t|x) of the forward diffusion, with latents whose dependence is set by η.

    (Song, Meng & Ermon 2021.) Given x, the noises n_t = (z_t − α_t x)/σ_t are an autoregressive chain in either direction:

        corr(n_s, n_t) = ρ_{s,t},   ρ²_{t−1,t} = 1 − η² v/σ²_{t−1},   ρ_{s,t} the product over the steps between
        q_η(z_s | z_t, x) = N(α_s x + σ_s ρ n_t,  σ_s² (1 − ρ²) I)           for neighbours `ddim_at`
        q_η(z_t | z_s, x) = N(α_t x + σ_t ρ n_s,  σ_t² (1 − ρ²) I)           by Bayes on the pair

    with v the variance of MATH (3)'s q(z_{t−1}|z_t, x). η = 1 is the Markov chain, where the last line does not depend on x.
    For η < 1 it does: I(x; z_t | z_{t−1}) > 0, the negative control of MATH (12).

    Raises DiffusionalError unless 0 < η ≤ 1: at η = 0 the mutual information is infinite.

    >>> from diffusional import schedule
    >>> process = NonMarkovDiffusion(schedule.linear(steps=10), eta=0.5)
    >>> process.transition(torch.zeros(1, 2), 5, x=torch.ones(1, 2)).mean.shape
    torch.Size([1, 2])
    """

    def __init__(self, schedule: Schedule, eta: float) -> None:
        super().__init__(schedule)
        if not 0 < eta <= 1:
            raise DiffusionalError(
                f"expected 0 < eta ≤ 1, got {eta}: at eta = 0 the latents determine each other and their information about x is "
                "infinite; eta = 1 is the Markov chain"
            )
        self.eta = eta

    @property
    def markov(self) -> bool:
        """Whether q(z_t|z_{t−1}, x) does not depend on x: only for η = 1."""
        return False

    def regrid(self, steps: int | None) -> "NonMarkovDiffusion":
        """Return the process with the same γ(u) and η and another number of latents: another posterior, unless η = 1."""
        return NonMarkovDiffusion(self.schedule.regrid(steps), self.eta)

    def _log_rho2(self, s: Time, t: Time) -> Tensor:
        """Return ln ρ²_{s,t} (B,) or (), float64: 0 for s = t."""
        grid = self.schedule.grid()
        lost = -torch.expm1(grid[:-1] - grid[1:])  # v/σ²_{t−1} of every step
        total = torch.cat([grid.new_zeros(1), torch.log1p(-(self.eta**2) * lost).cumsum(0)])
        return total[torch.as_tensor(t).long() - 1] - total[torch.as_tensor(s).long() - 1]

    def error_weight(self, t: Time) -> Tensor:
        """Return w_t (B,) or (), float64, with KL[q_η(z_t|z_{t+1}, x) ‖ q_η(z_t|z_{t+1}, x̂)] = w_t ‖ε − ε̂‖², t in 1 … T−1.

        The two means differ by (α_t − σ_t ρ α_{t+1}/σ_{t+1}) (x − x̂), with x − x̂ = −(σ_{t+1}/α_{t+1}) (ε − ε̂), and both variances are
        σ_t² (1 − ρ²):

            w_t = ½ (e^{½(γ_{t+1} − γ_t)} − ρ)²/(1 − ρ²),

        which is that of the Markov chain at η = 1, where ρ = e^{−½(γ_{t+1} − γ_t)}.
        """
        gamma_s, gamma_t = self.gamma(t), self.gamma(t + 1)
        log_rho2 = self._log_rho2(t, t + 1)
        apart = torch.exp(0.5 * (gamma_t - gamma_s)) - torch.exp(0.5 * log_rho2)
        return 0.5 * apart.square() / -torch.expm1(log_rho2)

    def transition(self, z: Batch, t: Time, x: Batch | None = None) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return q_η(z_t | z_{t−1} = z, x), t in 1 … T; q(z_1|x) for t = 1, where z is x."""
        if x is None:
            raise DiffusionalError(
                "expected x, got none: this process is not Markov, and q(z_t|z_{t−1}) without x is not Gaussian; call transition(z, t, x)"
            )
        gamma_t, before = self.gamma(t), (torch.as_tensor(t) - 1).clamp(min=1)
        log_rho2 = torch.where(torch.as_tensor(t) > 1, self._log_rho2(before, t), -torch.inf)
        return _correlated(z, x, self.gamma(before), gamma_t, log_rho2)

    def between(self, z_t: Batch, x: Batch, s: Time, t: Time) -> Gaussian:
        """Return q_η(z_s | z_t, x) for any 1 ≤ s < t ≤ T."""
        gamma_s, gamma_t = self.gamma(s), self.gamma(t)
        _increasing(gamma_s, gamma_t)
        return _correlated(z_t, x, gamma_t, gamma_s, self._log_rho2(s, t))

    def sample_path(self, x: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return z_1 … z_T (T, B, *dims), sampled backward from z_T ~ q(z_T|x) by q_η(z_t|z_{t+1}, x), MATH (14)."""
        steps = len(self.schedule.grid())
        z = self.marginal(x, steps).sample(generator)
        path = [z]
        for t in range(steps - 1, 0, -1):
            z = self.posterior(z, x, t).sample(generator)
            path.append(z)
        return torch.stack(path[::-1])


def _correlated(z: Tensor, x: Tensor, gamma_z: Tensor, gamma: Tensor, log_rho2: Tensor) -> Gaussian:
    """Return the distribution of the latent at γ given z at γ_z and x, with noises of correlation ρ: N(α x + σ ρ (z − α_z x)/σ_z, σ² (1 − ρ²) I)."""
    noise = (z - align(alpha(gamma_z), x) * x) / align(sigma(gamma_z), x)
    mean = align(alpha(gamma), x) * x + align(sigma(gamma) * torch.exp(0.5 * log_rho2), x) * noise
    return Gaussian(mean, align(logsigmoid(gamma.double()) + torch.log(-torch.expm1(log_rho2)), x))


def _increasing(gamma_s: Tensor, gamma_t: Tensor) -> None:
    if not bool((gamma_s < gamma_t).all()):
        raise DiffusionalError("expected s < t, got s ≥ t: s is the earlier latent")
