"""Scores of single items: their cost in nats, in comparison with training items, and by noise level.

Three scores separate outliers from items like those of training (the reference). All are larger for items that are less like the reference:

    nelbo        S_i, the item's NELBO. Simple images can score lower than the training data (Nalisnick et al. 2019).
    typicality   |S_i − mean of the reference's S|: far from the typical cost on either side.
    profile      Σ_c ((P_ic − μ_c)/s_c)², with P_ic the item's cost in the c-th band of noise levels and μ_c, s_c the mean and the standard
                 deviation of the reference there: many statistics instead of one (Morningstar et al. 2021).

References: Nalisnick et al. 2019, "Detecting out-of-distribution inputs to deep generative models using typicality"; Morningstar et al.
2021, "Density of states estimation for out-of-distribution detection"; DeLong et al. 1988 (the error of an AUROC).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import as_the_network, evaluate
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.provenance import as_seen
from diffusional.evaluation.result import Evaluation
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.models.chain import Chain, batch_rows
from diffusional.words import check_word

# The controls of a plan that is learned for scores. Those that assume a distribution of the data ("wiener", "histogram") expect costs of
# unlike items that their draws then have to take back: a few draws of such an item can be far off, even negative.
CONTROLS = ("moments", "own")
# Names of the scores.
BY = ("nelbo", "typicality", "profile")


@dataclass(frozen=True)
class Auroc:
    """The probability that a positive item scores above a negative one, ties counted half, with its standard error over items.

    >>> print(Auroc(0.91, 0.02, 100, 200))
    AUROC 0.910 ± 0.020 (100 positive, 200 negative items)
    """

    value: float
    error: float
    positives: int
    negatives: int

    def __str__(self) -> str:
        return f"AUROC {self.value:.3f} ± {self.error:.3f} ({self.positives:,} positive, {self.negatives:,} negative items)"


def auroc(positive: Tensor, negative: Tensor) -> Auroc:
    """Return the area under the ROC curve of two samples of scores (P,) and (Q,), with the standard error of DeLong et al. 1988.

    With V_i the share of negatives below the i-th positive and W_j the share of positives above the j-th negative (ties half), the area is
    the mean of either and its variance is Var V/P + Var W/Q.

    Raises DiffusionalError for fewer than two items of a kind, and for scores that are not finite.

    >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])).value
    0.875
    """
    for name, scores in (("positive", positive), ("negative", negative)):
        if scores.ndim != 1 or len(scores) < 2:
            raise DiffusionalError(
                f"expected at least 2 {name} scores in a shape (N,), got the shape {tuple(scores.shape)}"
            )
        if not bool(torch.isfinite(scores).all()):
            raise DiffusionalError(f"expected finite {name} scores, got {float(scores[~torch.isfinite(scores)][0])}")
    p, q = (np.sort(scores.double().cpu().numpy()) for scores in (positive, negative))
    above = (np.searchsorted(q, p, "left") + np.searchsorted(q, p, "right")) / (2 * len(q))
    below = 1 - (np.searchsorted(p, q, "left") + np.searchsorted(p, q, "right")) / (2 * len(p))
    variance = above.var(ddof=1) / len(p) + below.var(ddof=1) / len(q)
    return Auroc(float(above.mean()), math.sqrt(float(variance)), len(p), len(q))


def percentiles(nelbo: Tensor, reference: Tensor) -> Tensor:
    """Return the percentage (N,) of reference items (M,) that cost less than each of `nelbo` (N,), ties counted half.

    >>> percentiles(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [37.5, 100.0]
    """
    ordered = reference.sort().values
    ranks = torch.searchsorted(ordered, nelbo, side="left") + torch.searchsorted(ordered, nelbo, side="right")
    return 50.0 * ranks.double() / len(ordered)


@dataclass(frozen=True, eq=False)
class Scores:
    """What `score` returns.

    Attributes:
        evaluation: of the data, with a score for each item.
        nelbo, error: (N,) nats, float64: each item's NELBO and its Monte Carlo error, in the order of the data.
        reference: the NELBOs (M,) of the reference items, nats; None without a reference.
        profile: (N, C) nats, the cost of every item in every band of noise levels, each an unbiased draw; None without bands.
        reference_profile: the same (M, C) of the reference.
        band_edges: (C + 1,) levels t at the edges of the bands; in continuous time u.
        dimensions: D of x.
        plan: of the evaluations; None for a model without levels. `score(…, plan=scores.plan)` scores further items alike.
    """

    evaluation: Evaluation
    nelbo: Tensor
    error: Tensor
    dimensions: int
    reference: Tensor | None = None
    profile: Tensor | None = None
    reference_profile: Tensor | None = None
    band_edges: Tensor | None = None
    plan: Plan | None = None

    @property
    def percentile(self) -> Tensor:
        """The percentage (N,) of reference items that cost less than each item, ties counted half.

        Raises DiffusionalError without a reference.
        """
        return percentiles(self.nelbo, self._reference)

    @property
    def spread(self) -> float:
        """The interquartile range of the reference's NELBOs, or without a reference of the items', nats."""
        ordered = (self.nelbo if self.reference is None else self.reference).sort().values
        return float(ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4])

    @property
    def typicality(self) -> Tensor:
        """|S_i − mean of the reference's S| (N,), nats. Raises DiffusionalError without a reference."""
        return (self.nelbo - self._reference.mean()).abs()

    @property
    def distance(self) -> Tensor:
        """The profile score Σ_c ((P_ic − μ_c)/s_c)² (N,). Raises DiffusionalError without a reference and bands."""
        if self.profile is None or self.reference_profile is None:
            raise DiffusionalError(
                "expected profiles of the data and the reference, got none: give a reference and bands"
            )
        mean, spread = self.reference_profile.mean(0), self.reference_profile.std(0)
        return ((self.profile - mean) / spread.clamp(min=1e-300)).square().sum(1)

    @property
    def _reference(self) -> Tensor:
        if self.reference is None:
            raise DiffusionalError("expected reference items, got none: give score the training items as reference")
        return self.reference

    def has(self, name: str) -> bool:
        """Return whether a score exists, which depends on the reference and the bands."""
        return {"nelbo": True, "typicality": self.reference is not None, "profile": self.reference_profile is not None}[
            name
        ]

    def by(self, name: str) -> Tensor:
        """Return a score (N,) by name: "nelbo", "typicality" or "profile"; larger is less like the reference."""
        check_word("by", name, BY)
        return {"nelbo": lambda: self.nelbo, "typicality": lambda: self.typicality, "profile": lambda: self.distance}[
            name
        ]()

    def auroc(self, outlier: Tensor, by: str = "nelbo") -> Auroc:
        """Return how well a score separates outliers from other items: the AUROC with its error over items.

        The noise of the scores is part of the result: more visits raise it.

        Args:
            outlier: (N,), true for outliers; a tensor, or anything that `torch.as_tensor` takes.
            by: the score.

        Raises DiffusionalError for a wrong shape and for fewer than two items of either kind.
        """
        outlier = torch.as_tensor(outlier, device=self.nelbo.device)
        if outlier.shape != self.nelbo.shape:
            raise DiffusionalError(f"expected outlier of shape {tuple(self.nelbo.shape)}, got {tuple(outlier.shape)}")
        scores, outlier = self.by(by), outlier.bool()
        marked, n = int(outlier.sum()), len(outlier)
        if not 2 <= marked <= n - 2:
            raise DiffusionalError(
                f"expected outlier to be true for at least 2 items and false for at least 2, got {marked} true and "
                f"{n - marked} false; score more items of either kind"
            )
        return auroc(scores[outlier], scores[~outlier])


def score(
    model: LatentVariableModel,
    data: Tensor,
    reference: Tensor | None = None,
    *,
    visits: int = 8,
    item_error: float | None = None,
    unit: Literal["bits/dim", "nats"] = "bits/dim",
    bands: int | None = None,
    condition: Condition | None = None,
    reference_condition: Condition | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> Scores:
    """Score every item of `data` (N, *space.shape), encoded, and compare it with reference items.

        nelbo       S_i, the item's NELBO, MATH (8), nats
        typicality  |S_i − mean of the reference's S| (Nalisnick et al. 2019)
        profile     Σ_c ((P_ic − μ_c)/s_c)², P_ic the cost of the c-th of C bands of noise levels, μ_c and s_c those of the reference
                    (Morningstar et al. 2021)

    Args:
        reference: (M, *space.shape), encoded, M ≥ 2, normally training items that the model has not been fitted too closely to, such as a validation
            split; a pilot on them learns the plan unless one is given.
        visits: network evaluations of each item.
        item_error: instead of `visits`, the Monte Carlo error to reach for every item, in `unit`.
        bands: the number of bands of noise levels in the profile, C; by default there is no profile. It takes 2 C more evaluations of each
            item.
        condition, reference_condition: of the items and the reference, for conditional models.
        plan: learned before (`Plan.fit` with `controls=CONTROLS`). The controls "wiener" and "histogram", which `evaluate` uses for the mean
            of a data set, make the scores of outliers noisy.
        seed, progress: as in `evaluate`.

    Raises DiffusionalError as `evaluate` does, for bands of a model without levels, for fewer than 2 reference items, and for one of
    `condition` and `reference_condition` without the other.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    >>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=100))
    >>> model = DiffusionModel(forward, world.denoiser(), likelihood.GaussianLikelihood(Continuous((4,))))
    >>> x = world.sample(300, torch.Generator().manual_seed(0))
    >>> scores = score(model, torch.cat([x[:50], 3 * x[50:100]]), x[100:])
    >>> far = torch.arange(100) >= 50
    >>> scores.auroc(far).value > 0.9, bool(scores.percentile[far].mean() > 90)
    (True, True)
    """
    chain = model.visited()
    if bands is not None and (chain is not model or bands < 1):
        what = (
            f"{bands} bands"
            if chain is model
            else f"bands={bands} with a {type(model).__name__}, which has no levels of its own"
        )
        raise DiffusionalError(f"expected at least 1 band of the levels of a chain, got {what}: leave bands out")
    if bands is not None and not isinstance(bands, Integral):
        raise DiffusionalError(f"expected bands to be an integer, got {bands!r}: give a number of bands, such as 8")
    if reference is None and reference_condition is not None:
        raise DiffusionalError(
            "expected reference items with reference_condition, got none: give reference too, or leave it out"
        )
    if reference is not None and (condition is None) != (reference_condition is None):
        given, missing = (
            ("condition", "reference_condition") if condition is not None else ("reference_condition", "condition")
        )
        raise DiffusionalError(
            f"expected condition and reference_condition together, got {given} only: give {missing}, one row for each item"
        )
    if reference is not None and len(reference) == 1:
        raise DiffusionalError(
            "expected at least 2 reference items, got 1: give more, or leave reference out (no percentiles then)"
        )
    check_condition(reference_condition, 0 if reference is None else len(reference))
    if plan is None:
        known, given = (data, condition) if reference is None else (reference, reference_condition)
        plan = plan_of_scores(model, known, given, seed)
    target = {"visits": None if item_error is not None else visits, "item_error": item_error}

    def scored(x: Tensor, c: Condition | None) -> Evaluation:
        return evaluate(
            model,
            x,
            unit=unit,
            plan=plan,
            seed=seed,
            condition=c,
            audit=False,
            every_item=True,
            progress=progress,
            **target,
        )

    result = scored(data, condition)
    order = result.per_item["item"].argsort()
    theirs = None if reference is None else scored(reference, reference_condition).per_item["nelbo"]
    profile = other = edges = None
    if bands is not None:
        assert chain is not None
        edges = band_edges(chain, bands)
        with evaluation_mode(model):
            profile = profiles(chain, as_the_network(model, data), edges, seed, condition)
            if reference is not None:
                other = profiles(chain, as_the_network(model, reference), edges, seed, reference_condition)
    return Scores(
        result,
        result.per_item["nelbo"][order],
        result.per_item["error"][order],
        model.space.dimensions,
        theirs,
        profile,
        other,
        edges,
        plan,
    )


def plan_of_scores(
    model: LatentVariableModel, data: Tensor, condition: Condition | None = None, seed: int = 0
) -> Plan | None:
    """Return a plan for scores, learned on items (N, *space.shape), encoded: with the controls CONTROLS. None for a model without levels.

    Raises DiffusionalError as `Plan.fit` does.
    """
    chain = model.visited()
    model.space.check(data)
    if chain is None:
        return None
    return Plan.fit(chain, as_the_network(model, data), seed=seed, controls=CONTROLS, condition=condition)


def band_edges(chain: Chain, bands: int) -> Tensor:
    """Return edges (C + 1,) of bands of levels that are equally wide in γ, or in t where the chain has no γ: levels t, L + 1 last; in
    continuous time u.

    >>> from diffusional import BinomialDiffusion
    >>> class Bits(Chain): process = BinomialDiffusion.constant(9)
    >>> band_edges(Bits(), 2)
    tensor([1, 8, 9])
    """
    levels = chain.timesteps
    if levels is None:
        # In continuous time our schedules are nearly linear in γ, and exactly so by default.
        return torch.linspace(0.0, 1.0, bands + 1, dtype=torch.float64)
    every = torch.arange(1, levels + 2)
    gamma = chain.gamma_at(every)
    place = every.double() if gamma is None or not bool(torch.isfinite(gamma).all()) else gamma.detach().double().cpu()
    wanted = torch.linspace(float(place[0]), float(place[-1]), bands + 1, dtype=torch.float64)
    edges = torch.searchsorted(place.contiguous(), wanted).clamp(max=levels - 1) + 1
    edges[0], edges[-1] = 1, levels + 1
    # Every band has a level: bands without one are merged with their neighbours.
    return edges.unique()


@torch.inference_mode()
def profiles(
    chain: Chain, data: Tensor, edges: Tensor, seed: int = 0, condition: Condition | None = None, draws: int = 2
) -> Tensor:
    """Return the cost of every item in every band (N, C), nats: n_c times the mean of `draws` KLs at random levels of the band.

    A row depends on its item, its condition, the seed and the bands only.
    """
    keys = item_keys(as_seen(chain.space, data), seed, condition)
    device, bands = device_of(chain, data), len(edges) - 1
    low, high = edges[:-1].double(), edges[1:].double()
    out = torch.zeros(len(data), bands, dtype=torch.float64)
    each = bands * draws
    for items in torch.arange(len(data)).split(max(1, batch_rows(chain.space) // each)):
        streams = [stream(keys[i], 0, b"profile") for i in items.tolist()]
        u = torch.from_numpy(np.stack([g.random((bands, draws)) for g in streams]))
        # Draws of a band are stratified over it.
        u = (u + torch.arange(draws)) / draws
        level = low[:, None] + u * (high - low)[:, None]
        level = level if chain.timesteps is None else level.floor().long()
        noise = normal(streams, (each, *chain.space.shape)).flatten(0, 1)
        rows = items.repeat_interleave(each)
        c = moved(rows_of(condition, rows), device)
        x = data[rows].to(device)
        kl = chain.kl_at(x, level.flatten().to(device), noise.to(device, x.dtype), c).double().cpu()
        out[items] = kl.reshape(len(items), bands, draws).mean(2) * (high - low)
    return out
