"""A diffusion model as a hierarchical latent variable model: x → z_1 → … → z_T with a fixed posterior (MATH §1, §2, §5).

    NELBO = −E ln p(x|z_1) + Σ_{t<T} E KL[q(z_t|z_{t+1},x) ‖ p(z_t|z_{t+1})] + KL[q(z_T|x) ‖ p(z_T)]          MATH (8)
          = −E ln p(x|z_1) + E Σ_{t<T} ln q(z_t|z_{t−1})/p(z_t|z_{t+1}) + E ln q(z_T|z_{T−1})/p(z_T)            MATH (7)

In continuous time, the sum of KL divergences is ½ E ∫ γ'(u) ‖ε − ε̂‖² du (MATH (10)). `loss` samples its levels at random (MATH (22)), with
one network evaluation per item.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, requires_condition
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion, ddim_at, diffuse
from diffusional.gaussian import Gaussian
from diffusional.ledger import Costs, LevelDraws, per_unit
from diffusional.models import reverse
from diffusional.models.base import plain_options
from diffusional.models.chain import Chain, batch_rows, by_position, same_shape, standard_normal
from diffusional.models.denoiser import Denoiser, unassisted
from diffusional.models.flow import ProbabilityFlow
from diffusional.models.guidance import Guided
from diffusional.models.likelihood import Decoded, Likelihood, NetworkLevels, decoded, options_of
from diffusional.models.parameterization import LevelsPrediction, Prediction
from diffusional.models.protocols import Decoding
from diffusional.models.rules import Rule
from diffusional.schedule import Pull
from diffusional.shapes import Batch, PerItem, align
from diffusional.space import Discrete, Space
from diffusional.timesteps import Stratified, TimestepSampler, position
from diffusional.words import check_word, our_word

# λ of L_hybrid.
HYBRID_WEIGHT = 1e-3


class DiffusionModel(Chain):
    """p(x, z_{1:T}) = p(x|z_1) Π_{t<T} p(z_t|z_{t+1}) p(z_T) under the posterior q(z_{1:T}|x) of `process` (MATH (1), (2)).

    Args:
        process: the forward diffusion; its schedule's `steps` is T, or None for continuous time. It need not be Markov: with a
            NonMarkovDiffusion p(z_t|z_{t+1}) = q(z_t|z_{t+1}, x̂), the model that DDIM samples from.
        denoiser: the shared network, with what it predicts.
        likelihood: p(x|z_1), normalised over the data's space.
        variance: of p(z_t|z_{t+1}): "posterior", "transition", or "learned" by the denoiser between the two (MATH (5)); or a word of
            diffusers for one of these, such as "fixed_small".
        last_variance: ṽ of p(z_T) = N(0, ṽ I), MATH (23): 1, except for samplers that start from another variance.

    Shapes: x (B, *space.shape), floating, encoded by the space. Costs are nats, float64.
    Raises DiffusionalError for items that do not fit the space (shape, values, NaN), for levels outside 1 … T−1, and for options that
    contradict each other.

    >>> from diffusional import schedule, space
    >>> from diffusional.models.likelihood import LevelPosterior
    >>> digits = space.Discrete((1, 8, 8), levels=17)
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0, steps=20))
    >>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z, "data"), LevelPosterior(digits))
    >>> ledger = model.elbo(digits.encode(torch.zeros(2, 1, 8, 8, dtype=torch.long)), torch.Generator().manual_seed(0))
    >>> ledger.kl.shape
    torch.Size([2, 19])
    """

    process: GaussianDiffusion

    sampling = ("ancestral", "ddim")

    def __init__(
        self,
        process: GaussianDiffusion,
        denoiser: Denoiser,
        likelihood: Likelihood,
        variance: reverse.Variance | str = "posterior",
        last_variance: float = 1.0,
    ) -> None:
        super().__init__()
        variance = our_word("variance", variance, reverse.VARIANCES)
        self.process, self.denoiser, self.likelihood = process, denoiser, likelihood
        self.variance: Any = variance
        if not (last_variance > 0 and math.isfinite(last_variance)):
            raise DiffusionalError(
                f"expected last_variance, the variance of p(z_T), to be a positive number, got {last_variance}"
            )
        self.last_variance = float(last_variance)
        if process.schedule.zero_terminal_snr and denoiser.predicts in ("noise", "score"):
            raise DiffusionalError(
                f'expected a denoiser that predicts "data" or "v" with a schedule whose last level has no signal (SNR_T = 0), got '
                f'"{denoiser.predicts}": there it determines nothing of x. Leave out the last beta, or use another prediction'
            )
        if not process.markov and (process.steps is None or variance != "posterior"):
            raise DiffusionalError(
                f"expected discrete time and variance='posterior' with a {type(process).__name__}, whose posterior is not Markov, got "
                f"{process.steps} steps and variance={variance!r}: p(z_t|z_{{t+1}}) has the variance of q(z_t|z_{{t+1}}, x)"
            )
        if process.steps is None and variance != "posterior":
            raise DiffusionalError(
                f'expected variance="posterior" in continuous time, where all variances agree, got "{variance}"'
            )
        if variance == "learned" and not denoiser.learns_variance:
            raise DiffusionalError(
                'expected a denoiser with learns_variance=True for variance="learned", got learns_variance=False: its module must return '
                "a second output channel for each channel of the data"
            )
        levels = denoiser.predicts == "levels"
        if (levels and denoiser.space != likelihood.space) or (isinstance(likelihood, NetworkLevels) and not levels):
            wanted = "the same space" if levels else 'predicts="levels" and the same space'
            raise DiffusionalError(
                f"expected a denoiser with {wanted} for "
                f"{type(likelihood).__name__} over {likelihood.space}, got predicts={denoiser.predicts!r} over {denoiser.space}"
            )

    @property
    def space(self) -> Space:
        return self.likelihood.space

    @property
    def steps(self) -> int | None:
        """T, the number of latents; None in continuous time."""
        return self.process.steps

    @property
    def decoder_uses_network(self) -> bool:
        return self.likelihood.uses_network

    def regrid(self, steps: int | None) -> "DiffusionModel":
        """Return the model with the same network and the same γ(u) and another T, or None for continuous time. It shares all tensors."""
        variance = self.variance if steps is not None else "posterior"
        return self._like(self.process.regrid(steps), self.denoiser, variance)

    def guided(
        self,
        weight: float,
        threshold: float | Rule | None = None,
        rescale: float = 0.0,
        null: Any = None,
        kept: Collection[str] = (),
    ) -> "DiffusionModel":
        """Return the model with classifier-free guidance, MATH (26): another chain with the same network and a bound of its own.

        Args: those of `df.Guided`. It shares all tensors.

        Raises DiffusionalError for a network that cannot predict without a condition, for values out of range, and for thresholding of
        real-valued data, which have no range.

        >>> from diffusional import likelihood, schedule, space
        >>> network = lambda z, log_snr, c=None: 0 * z if c is None else 0 * z + c[:, None]
        >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0, steps=10))
        >>> model = DiffusionModel(process, Denoiser(network, "data"), likelihood.LevelPosterior(space.binary((4,))))
        >>> strong = model.guided(2.0)
        >>> strong.sample(3, torch.Generator().manual_seed(0), condition=torch.ones(3)).mean()
        tensor(1.)
        """
        if threshold is not None and not (isinstance(self.space, Discrete) and self.space.high == -self.space.low == 1):
            raise DiffusionalError(
                f"expected data with levels in [−1, 1] for threshold={threshold}, got {self.space}; leave it out"
            )
        return self._like(self.process, Guided(self.denoiser, weight, threshold, rescale, null, kept), self.variance)

    def flow(self) -> ProbabilityFlow:
        """Return the probability flow of the network from γ_1 to γ_T, MATH (31). It does not depend on T, nor on the variance of p."""
        first, last = self.process.schedule.ends().detach().tolist()
        return ProbabilityFlow(self.denoiser, first, last)

    def check_without_condition(self) -> None:
        """Raise DiffusionalError if the network requires a condition."""
        if always := getattr(self.denoiser.module, "always_given", ()):
            raise DiffusionalError(
                f"the model has no bound of p(x): it requires {', '.join(map(repr, always))} also where its other condition is missing. Use "
                "df.compare or evaluate RUN RUN --other-condition for two of its conditions"
            )
        if requires_condition(self.denoiser.module):
            raise DiffusionalError(
                f"the {type(self.denoiser.module).__name__} requires a condition: it was not trained with condition dropout, so that the model "
                "has no bound of p(x). Train with condition_dropout, such as 0.1"
            )

    def two_predictions(self, null: Any = None) -> Guided:
        """Return the denoiser of a table over guidance weights, whose `both` gives the predictions with and without a condition.

        Raises DiffusionalError for a guided model, a learned variance, and a network that cannot predict without a condition.
        """
        if self.variance == "learned":
            raise DiffusionalError(
                'expected a fixed variance for a table over weights, got variance="learned", whose costs are not quadratic in w; use '
                "df.evaluate(model.guided(w), …) for each weight"
            )
        return Guided(self.denoiser, 0.0, null=null)

    def _like(self, process: GaussianDiffusion, denoiser: Denoiser, variance: str) -> "DiffusionModel":
        other = DiffusionModel(process, denoiser, self.likelihood, variance, self.last_variance)
        other.origin, other.classes, other.condition_form = self.origin, self.classes, self.condition_form
        return other

    # The model's own distributions, MATH (2).

    def step(self, z_next: Batch, t: PerItem, condition: Condition | None = None) -> Gaussian:
        """Return p(z_t | z_{t+1} = z_next), t (B,) in 1 … T−1: q(z_t | z_{t+1}, x̂) with a variance of its own, MATH (5)."""
        gamma_s, gamma_t = self._gammas(t)
        prediction = self.denoiser(z_next, gamma_t, condition)
        if not self.process.markov:
            return self.process.posterior(z_next, prediction.data, t)
        return reverse.step(prediction, gamma_s, gamma_t, self.variance)

    def last(self, n: int) -> Gaussian:
        """Return p(z_T) = N(0, ṽ I) of n items, in the network's type."""
        # The type of the denoiser, since a learned schedule is always float64.
        example = next(self.denoiser.parameters(), self.process.schedule.ends().new_empty(0).float())
        log_variance = example.new_full((), math.log(self.last_variance))
        return Gaussian(example.new_zeros(n, *self.space.shape), log_variance)

    def decode(self, z_1: Batch, condition: Condition | None = None) -> Decoded:
        """Return p(x | z_1)."""
        gamma = self.process.schedule.ends()[0].expand(len(z_1))
        return decoded(self.likelihood, self.denoiser, z_1, gamma, condition)

    # The three kinds of costs, MATH (8).

    def reconstruction(self, x: Batch, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return −ln p(x|z_1) (B,) at z_1 = α_1 x + σ_1 ε, ε = `noise` (B, *dims)."""
        return -self._decoding(x, noise, condition).log_prob(x).double()

    def _decoding(self, x: Tensor, noise: Tensor, condition: Condition | None) -> Decoded:
        """Return p(x | z_1) at z_1 = α_1 x + σ_1 ε."""
        same_shape(x, noise)
        z_1 = diffuse(x, self.process.schedule.ends()[0].expand(len(x)), noise)
        return self.decode(z_1, condition)

    @property
    def predicts_levels(self) -> bool:
        return self.denoiser.predicts == "levels"

    def level_priors(self, x: Batch, condition: Condition | None = None) -> Tensor:
        gamma = self.process.schedule.ends()[0].expand(len(x))
        prediction = self.denoiser(diffuse(x, gamma, torch.zeros_like(x)), gamma, condition)
        return prediction.priors if isinstance(prediction, LevelsPrediction) else super().level_priors(x, condition)

    def reconstruction_map(self, x: Batch, noise: Batch, condition: Condition | None = None) -> Batch:
        return -by_position(self._decoding(x, noise, condition), "log_prob_map", x)

    def prior_map(self, x: Batch) -> Batch:
        return reverse.prior_map(x, self.process.schedule.ends()[1], self.last_variance)

    def kl_map(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> Batch:
        """Return KL_t at every position (B, *dims) from the squared errors of the noise, MATH (10), whose sum is `level_kl`."""
        gamma = self.noisy_gamma(level)
        prediction = self.denoiser(diffuse(x, gamma, noise), gamma, condition)
        errors = prediction.squared_errors(x, noise)
        if self.steps is None:
            return (
                align(reverse.kl_density(torch.ones_like(gamma), self.process.schedule.dgamma(level)), errors) * errors
            )
        if not self.process.markov:
            return align(self.process.error_weight(level), errors) * errors
        gamma_s, gamma_t = self._gammas(level)
        log_r = reverse.log_ratios(prediction, gamma_s, gamma_t, self.variance)
        return reverse.kl_map(errors, log_r, gamma_s, gamma_t)

    def prior(self, x: Batch) -> PerItem:
        """Return KL_T = KL[q(z_T|x) ‖ N(0, ṽ I)] (B,): exact, without a draw."""
        return reverse.prior_kl(x, self.process.schedule.ends()[1], self.last_variance)

    def _gammas(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return γ_t and γ_{t+1} of levels t."""
        grid = self.process.schedule.grid()
        level = level.to(grid.device)
        return grid[level - 1], grid[level]

    def kl_from(self, squared_error: PerItem, level: PerItem) -> PerItem:
        """Return KL_t (B,) at `level`, or dKL/du, from ‖ε − ε̂‖² (B,): an affine function, whose coefficients depend only on the level,
        MATH (10).

        If the variance is learned, it is the KL for the posterior's variance.
        """
        if self.steps is None:
            return reverse.kl_density(squared_error, self.process.schedule.dgamma(level))
        if not self.process.markov:
            return self.process.error_weight(level) * squared_error.double()
        gamma_s, gamma_t = self._gammas(level)
        return reverse.kl(squared_error, gamma_s, gamma_t, self.space.dimensions, self.variance)

    def noise_levels(self) -> Tensor:
        """Return γ_1, …, γ_T (T,), or γ at 65 levels of continuous time."""
        schedule = self.process.schedule
        return (schedule if self.steps is not None else schedule.regrid(65)).grid()

    def identity(self) -> list[Any]:
        """Return the variance, the decoder with its options, η of a process that is not Markov, the variance of p(z_T) unless it is 1, and
        what an imported model does to x̂, such as clipping it.
        """
        own, process = options_of(self.likelihood), plain_options(self.process)
        last = {} if self.last_variance == 1 else {"last_variance": self.last_variance}
        further = [one.to_identity() for one in self.denoiser.modules() if isinstance(one, Denoiser)]
        return [self.variance, type(self.likelihood).__name__, own, *filter(None, (process, last, *further))]

    def noisy_gamma(self, level: PerItem) -> PerItem:
        """Return γ (B,) of the denoiser's input at a level: γ_{t+1}, or γ(u)."""
        return self.process.schedule.gamma(level) if self.steps is None else self._gammas(level)[1]

    def end_gammas(self) -> Tensor:
        """Return γ_1 and γ_T (2,)."""
        return self.process.schedule.ends()

    def edge_gammas(self, edges: Tensor) -> Tensor:
        """Return γ at edges u (C + 1,) in continuous time, otherwise γ_1, …, γ_T (T,)."""
        schedule = self.process.schedule
        return schedule.grid() if self.steps is not None else schedule.gamma(edges)

    @property
    def affine(self) -> "DiffusionModel":
        """The model itself: its KL_t are affine in the squared error of the noise."""
        return self

    def level_constants(self, level: PerItem) -> PerItem:
        """Return the part of KL_t (V,) that comes from the variance of p, MATH (10); it needs no network evaluation."""
        return self.kl_from(torch.zeros(len(level), dtype=torch.float64), level)

    def cost_bound(self, level: PerItem) -> PerItem | None:
        """Return slope_t SNR_t D r² (V,), nats, for a network whose x̂ cannot leave the range of the data, r wide; otherwise None.

        ‖ε − ε̂‖² = SNR_t ‖x − x̂‖², MATH (5), and KL_t = constant_t + slope_t ‖ε − ε̂‖², MATH (10), whatever the variance of p is, unless the
        network chooses it. For the posterior's variance the bound is ½ (SNR_s − SNR_t) D r², with s one step below t.
        """
        inside, space = self.denoiser.data_range, self.space
        if inside is None or self.variance == "learned" or not isinstance(space, Discrete):
            return None
        reach = max(inside[1], space.high) - min(inside[0], space.low)
        snr = torch.exp(-self.noisy_gamma(level).detach().double())
        return self.kl_from(snr * space.dimensions * reach**2, level).detach() - self.level_constants(level).detach()

    def level_kl(self, x: Batch, level: PerItem, noise: Batch, condition: Condition | None = None) -> PerItem:
        """Return KL_t (B,) from the squared error of the noise, MATH (10)."""
        gamma = self.noisy_gamma(level)
        prediction = self.denoiser(diffuse(x, gamma, noise), gamma, condition)
        return self._kl_of(prediction, x, level, noise)

    def _kl_of(self, prediction: Prediction, x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        if self.variance != "learned":
            return self.kl_from(prediction.squared_error(x, noise), level)
        gamma_s, gamma_t = self._gammas(level)
        log_r = reverse.log_ratios(prediction, gamma_s, gamma_t, self.variance)
        return reverse.kl_learned(prediction.squared_errors(x, noise), log_r, gamma_s, gamma_t)

    # Training, MATH (22).

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the costs of MATH (22), with one network evaluation per item. KL_T is exact.

        In continuous time, a learned shape of γ(u) gets the gradient of the variance of the KL's estimate: see `Pull`.
        """
        level, weight, noise = draws["level"], draws["weight"], draws["noise"]
        terms = {"prior": self.prior(x)} | self.extra(x)
        pull = Pull()
        if self.steps is None:
            gamma, dgamma = self.process.schedule.visit(level, pull)
        else:
            gamma, dgamma = self.noisy_gamma(level), None
        first = draws.get("first")
        if first is not None:
            gamma = torch.where(first, self.process.schedule.ends()[0], gamma)
        prediction = self.denoiser(diffuse(x, gamma, noise), gamma, condition)
        if dgamma is None:
            kl = self._kl_of(prediction, x, level, noise)
        else:
            kl = reverse.kl_density(prediction.squared_error(x, noise), dgamma)
            # In bits/dim, so that it is of order one whatever D is.
            pull.factor = 2 * (weight * kl).detach() / per_unit("bits/dim", self.space.dimensions)
        if first is None:
            terms["reconstruction"] = self.reconstruction(x, draws["first_noise"])
            terms["kl"] = LevelDraws(kl, level, weight).estimate()
            return Costs(terms, position(level, self.timesteps), self._per_unit(kl))

        visits, firsts = (~first).nonzero().squeeze(1), first.nonzero().squeeze(1)
        # Computed for all items, then selected: selecting from (B,) is cheap, but from (B, K, *dims) it costs more than the bound.
        kl = kl[visits]
        log_prob = self.likelihood.log_prob(x[firsts], prediction[firsts]) if len(firsts) else kl.new_zeros(0)
        return self._mixed(terms, draws, visits, kl, firsts, log_prob)

    # Other objectives than the bound.

    @property
    def objectives(self) -> tuple[str, ...]:
        """The bound, L_simple and, with a learned variance, L_hybrid."""
        return ("elbo", "simple", "hybrid") if self.variance == "learned" else ("elbo", "simple")

    def objective_draw(
        self,
        objective: str,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return everything random in an objective: `draw` for "elbo", otherwise `latent_draw`."""
        self._check_objective(objective)
        return (self.draw if objective == "elbo" else self.latent_draw)(x, sampler, generator, n)

    def objective_costs(
        self, objective: str, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None
    ) -> Costs:
        """Return the costs of an objective: `costs`, `simple_costs` or `hybrid_costs`."""
        self._check_objective(objective)
        chosen = {"elbo": self.costs, "simple": self.simple_costs, "hybrid": self.hybrid_costs}[objective]
        return chosen(x, draws, condition)

    def simple_loss(
        self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None
    ) -> Tensor:
        """Return L_simple = E_t ‖ε − ε̂(z_t)‖²/D with t uniform over all T latents (Ho et al. 2020, eq. 14), which is not a bound.

        It is a training objective for sample quality, without the weights of MATH (8), the reconstruction and the prior. Its value gives no
        information about ln p(x). Raises DiffusionalError for a learned schedule, which only the bound can train.
        """
        self.space.check(x)
        check_condition(condition, len(x))
        return self.simple_costs(x, self.latent_draw(x, None, generator), condition).total().mean()

    def latent_draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the random numbers of `simple_costs` and `hybrid_costs` for n items: t of one of the T latents (or u), its 1/π_t, and ε."""
        n = len(x) if n is None else n
        drawn = (sampler or Stratified()).sample(n, self.steps, generator)
        return {
            "level": drawn.level.to(x.device),
            "weight": drawn.weight.to(x.device),
            "noise": standard_normal(x, n, generator),
        }

    def simple_costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return ‖ε − ε̂‖²/D of every item for what `latent_draw` returned, weighted so that it estimates the mean over all latents."""
        error = self._latent(x, draws, condition).squared_error(x, draws["noise"]) / self.space.dimensions
        share = draws["weight"] / (self.steps or 1)
        return Costs({"squared_error": share * error}, position(draws["level"], self.steps), error)

    def hybrid_costs(
        self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None, weight: float = HYBRID_WEIGHT
    ) -> Costs:
        """Return L_hybrid = L_simple + λ L_vlb (Nichol & Dhariwal 2021, eq. 16) for a learned variance. λ = `weight`, and L_vlb is in
        bits/dim; its gradient reaches only the variance.

        If z_1 is the sampled latent, it costs −ln p(x|z_1); any other z_t costs KL_{t−1}. The prior, which has no parameters, is omitted.
        """
        if self.variance != "learned":
            raise DiffusionalError(
                f'expected variance="learned" for L_hybrid, whose bound trains only the variance, got "{self.variance}"'
            )
        level, noise = draws["level"], draws["noise"]
        prediction = self._latent(x, draws, condition)
        simple = prediction.squared_error(x, noise) / self.space.dimensions
        frozen, first = prediction.frozen(), level == 1
        seen = frozen if self.likelihood.uses_network else unassisted(frozen.z, frozen.gamma)
        kl = self._kl_of(frozen, x, (level - 1).clamp(min=1), noise)
        firsts = first.nonzero().squeeze(1)
        bound = torch.where(first, 0.0, kl)
        if len(firsts):
            bound = bound.index_copy(0, firsts, -self.likelihood.log_prob(x[firsts], seen[firsts]).to(kl))
        vlb = weight * self._discrete() * bound / per_unit("bits/dim", self.space.dimensions)
        share = draws["weight"] / self._discrete()
        return Costs(
            {"squared_error": share * simple, "vlb": share * vlb}, position(level, self.steps), (simple + vlb).detach()
        )

    def _latent(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None) -> Prediction:
        """Return the network's prediction for the latents that `latent_draw` drew."""
        level, schedule = draws["level"], self.process.schedule
        if any(p.requires_grad for p in schedule.parameters()):
            raise DiffusionalError(
                "expected a fixed schedule for L_simple and L_hybrid, got one that is learned: without the bound it would move to levels at "
                "which the noise is easiest to predict. Use `loss`, or freeze it (schedule.requires_grad_(False))"
            )
        gamma = schedule.gamma(level) if self.steps is None else schedule.grid()[level - 1]
        return self.denoiser(diffuse(x, gamma, draws["noise"]), gamma, condition)

    # Sampling.

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        method: Literal["ancestral", "ddim"] = "ancestral",
        steps: int | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Return n samples x (n, *space.shape), by the model's own chain or by DDIM.

        Args:
            method: "ancestral" samples p(z_T), p(z_t|z_{t+1}) and p(x|z_1): exact samples of the model whose bound is reported. "ddim"
                (Song, Meng & Ermon 2021), with noise `eta` in [0, 1], is another model with the same network.
            steps: the number of latents. Defaults to the model's T, or to 250 in continuous time.

        >>> from diffusional import schedule, space
        >>> from diffusional.models.likelihood import LevelPosterior
        >>> forward = GaussianDiffusion(schedule.log_snr_linear(-9.0, 10.0))
        >>> bits = space.binary((4,))
        >>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: torch.tanh(z), "data"), LevelPosterior(bits))
        >>> model.sample(3, torch.Generator().manual_seed(0), steps=10).abs().unique()
        tensor([1.])
        """
        *_, x = self.walk_back(n, generator, condition, method, steps, eta)
        return x

    @torch.no_grad()
    def walk_back(
        self,
        n: int,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        method: Literal["ancestral", "ddim"] = "ancestral",
        steps: int | None = None,
        eta: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield z_T, z_{T−1}, …, z_1 and x, each (n, *space.shape): the path that `sample` takes; same arguments."""
        if n < 1:
            raise DiffusionalError(f"expected n to be at least 1, got {n}")
        check_condition(condition, n)
        check_word("method", method, ("ancestral", "ddim"))
        if eta and method == "ancestral":
            raise DiffusionalError(f'expected method="ddim" for eta={eta}, got method="ancestral", which has no eta')
        if steps is None and self.steps is None:
            steps = 250
        if method == "ancestral" and steps is None:
            yield from super().walk_back(n, generator, condition)
            return
        if method == "ancestral" and not self.process.markov:
            raise DiffusionalError(
                f"steps={steps} was given, but the chain is not Markov: leave steps out, or use method='ddim'"
            )
        schedule = self.process.schedule
        grid = schedule.grid() if steps is None else schedule.spaced(steps)
        z = self.drawn(self.last(n), generator)
        yield z
        for i in range(len(grid) - 1, 0, -1):
            prediction = self.denoiser(z, grid[i].expand(n), condition)
            if method == "ancestral":
                p = reverse.step(prediction, grid[i - 1], grid[i], self.variance)
            else:
                p = ddim_at(z, prediction.data, grid[i - 1], grid[i], eta)
            z = p.sample(generator)
            yield z
        yield self.drawn(self.decode(z, condition), generator)

    def drawn(self, p: Decoding, generator: torch.Generator | None) -> Tensor:
        """Sample one of the chain's distributions; p(x|z_1) is sampled for a limited number of items at a time."""
        return p.sample(generator, batch_rows(self.space)) if isinstance(p, Decoded) else p.sample(generator)
