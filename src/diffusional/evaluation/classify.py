"""Classification by likelihood: the class whose bound is best, by common noise, with its confidence (MATH (25)).

All classes of an item are visited at the same levels with the same noise, so that their paired differences have far less noise than the costs.
The levels are spread evenly over those of a plan that is learned for these differences, and the differences of the bounds are estimated from few visits by the
best linear prediction, with a Student's t distribution for each (contrasts.py). In rounds of growing length, class k is dropped when the
probability that its bound is better than that of the best class so far is below (1 − confidence)/(K − 1). These are posterior probabilities, so that looking
at them repeatedly needs no correction. An item is finished when one class remains, or at `max_visits`.

The confidence of an answer is 1 − Σ_k P(class k is better), by the same distributions: it is about which *bound* is best, not about whether
the best bound is that of the true class.

With weighting="unweighted", the differences are those of the error ‖ε − ε̂‖², averaged over the noise levels of DDPM's linear schedule, as Li et al. 2023 ("Your
diffusion model is secretly a zero-shot classifier") have it. This is not a likelihood, and its confidence is about which *error* is least.

The evidence is a lower bound of ln p(x) over the classes. With any distribution r(c) that does not depend on the draws,

    ln p(x) ≥ Σ_c r(c) [ln p(c) + ELBO(x|c) − ln r(c)],                                                       (25)

r is proportional to the estimates of p(c) e^{ELBO(x|c)} of the classification, without classes of less than 0.001, or that of a classifier; the
ELBOs are estimated by new draws. The plug-in ln Σ_c p(c) e^{estimate} is too large by Jensen's inequality, and is not used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.common import CommonNoise
from diffusional.evaluation.contrasts import ClassPlan, Weighting, spread, unweighted_costs
from diffusional.evaluation.evaluation import as_the_network, check_model
from diffusional.evaluation.noise import stream
from diffusional.evaluation.plan import SHORTEST, Plan, visited
from diffusional.evaluation.shares import shared
from diffusional.evaluation.sweep import mean_of_items
from diffusional.ledger import Estimate
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import Chain
from diffusional.seeds import check_seed

# Visits of the first round, the factor between rounds, and the least probability of r.
_FIRST, _GROWTH, _LEAST = 2, 1.5, 1e-3


@dataclass(frozen=True, eq=False)
class Classification:
    """The result of `classify`, for N items and K classes.

    Attributes:
        label: (N,) numbers of the classes whose bounds, or unweighted errors, are predicted to be best.
        confidence: (N,) the probability that the bound (or unweighted error) of this class is the best, given the noise of the draws.
        nelbo: (N, K) unbiased estimates of −ELBO(x|c), nats, from few draws. They have much more noise than the predicted differences, so that the
            smallest need not be that of `label`.
        visits: (N, K) draws of every class.
        evaluations: (N,) network evaluations of every item, those of the evidence included.
        evidence: (N,) lower bounds of ln p(x), nats, and their Monte Carlo errors, `evidence_error`; empty if not asked for.
        classes: names of the classes, if the model has them.
        pilot: network evaluations of the pilots, for all items together.
        weighting: "bound" or "unweighted", by which the classes were compared.
    """

    label: Tensor
    confidence: Tensor
    nelbo: Tensor
    visits: Tensor
    evaluations: Tensor
    evidence: Tensor
    evidence_error: Tensor
    classes: tuple[str, ...] = ()
    pilot: int = 0
    weighting: Weighting = "bound"

    @property
    def names(self) -> list[str]:
        """The names of the answers, one for each item; numbers if the model has no names."""
        return [self.classes[k] if self.classes else str(k) for k in self.label.tolist()]

    def accuracy(self, labels: Tensor) -> tuple[float, float]:
        """Return the share of items whose answer is `labels` (N,), and its standard error over items.

        Raises DiffusionalError for another number of labels.
        """
        if labels.shape != self.label.shape:
            raise DiffusionalError(f"expected labels of shape {tuple(self.label.shape)}, got {tuple(labels.shape)}")
        right = (self.label == labels.cpu()).double()
        return float(right.mean()), math.sqrt(float(right.var(correction=0)) / len(right))

    def evidence_estimate(self) -> Estimate:
        """Return the mean lower bound of ln p(x), nats. Raises DiffusionalError if it was not asked for."""
        if not len(self.evidence):
            raise DiffusionalError(
                "expected a classification with evidence, got one without; give evidence_visits to df.classify"
            )
        total = int(self.evaluations.sum()) + self.pilot
        return mean_of_items(self.evidence, self.evidence_error.square(), total)

    def __str__(self) -> str:
        n = len(self.label)
        each = float(self.evaluations.double().mean())
        return (
            f"{n} items, {each:.1f} network evaluations per item, mean confidence {float(self.confidence.mean()):.3f}"
        )


def classify(
    model: LatentVariableModel,
    data: Tensor,
    *,
    prior: Sequence[float] | Tensor | None = None,
    classes: int | None = None,
    confidence: float = 0.95,
    max_visits: int = 64,
    weighting: Weighting = "bound",
    evidence_visits: int = 0,
    r: Tensor | None = None,
    plan: ClassPlan | Plan | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Classification:
    """Classify items `data` (N, *space.shape), encoded, by the bounds of a model of classes: argmax_c ln p(c) + ELBO(x|c).

    The evidence is the lower bound of ln p(x) by MATH (25): Σ_c r(c) [ln p(c) + ELBO(x|c) − ln r(c)], nats. All classes of an item have the same
    noise. Li et al. 2023 classify by unweighted errors: see `weighting`.

    Args:
        prior: p(c) of the K classes; uniform by default. The answer is the class with the largest ln p(c) + ELBO(x|c).
        classes: K, for a model that has no names of classes; by default that of `model.classes`.
        confidence: classes are dropped, and an item finished, with at most the probability 1 − confidence of an error in which bound is best.
        max_visits: the largest number of draws of a class of an item.
        weighting: "bound", or "unweighted" for the class with the least error ‖ε − ε̂‖², averaged over the noise levels of DDPM's linear schedule. It is
            not a likelihood, and takes no prior.
        evidence_visits: draws of each remaining class for the lower bound of ln p(x); 0 leaves it out.
        r: (N, K) a distribution over classes for the evidence, such as that of a classifier; it must not depend on the draws.
        plan: the levels and the second moments of differences, from `ClassPlan.fit`, or the levels only. What is not given is learned in a pilot on `data`.
        progress: called with (items finished, N).

    Raises DiffusionalError for a model without levels to visit or without classes, and for arguments out of range.

    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Labelled(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0))
    >>> decoder = likelihood.GaussianLikelihood(Continuous((1,)), assisted=False)
    >>> model = DiffusionModel(process, world.conditional_denoiser(), decoder)
    >>> x, c = world.sample_labelled(20, torch.Generator().manual_seed(0))
    >>> classify(model, x, classes=2).accuracy(c)
    (1.0, 0.0)
    """
    check_model(model)
    chain = visited(model)
    k = len(model.classes) or classes or 0
    if k < 2 or (classes is not None and classes != k):
        raise DiffusionalError(
            f"expected a model of at least 2 classes, got {len(model.classes)} names of classes and classes={classes}; give the number of "
            "classes of a model that has no names"
        )
    if not 0.5 < confidence < 1:
        raise DiffusionalError(f"expected confidence to be a number above 0.5 and below 1, got {confidence}")
    if max_visits < _FIRST or evidence_visits < 0 or evidence_visits == 1:
        raise DiffusionalError(
            f"expected max_visits of at least {_FIRST}, and evidence_visits of 0 or at least 2, got {max_visits} and {evidence_visits}"
        )
    model.space.check(data)
    check_seed(seed)
    log_prior = log_prior_of(prior, k)
    if r is not None:
        _check_r(r, len(data), k, evidence_visits)
    _check_weighting(weighting, chain, prior is not None, evidence_visits > 0 and r is None, plan)
    data, pilot = as_the_network(model, data), 0
    with evaluation_mode(model):
        if not isinstance(plan, ClassPlan):
            plan = ClassPlan.fit(chain, data, k, seed, weighting, plan)
            pilot = plan.evaluations
        race = _Race(chain, plan, data, seed, log_prior, confidence, max_visits)
        race.run(progress)
        evaluations = race.count.sum(1)
        evidence, error = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        if evidence_visits:
            fitted = Plan.fit(chain, data, SHORTEST, seed, condition=race.best)
            pilot += int(fitted.provenance["evaluations"])
            weights = _weights(race.margin) if r is None else r.double().cpu()
            later = CommonNoise(chain, fitted, data, seed, "evidence")
            evidence, error, drawn = _evidence(later, weights, log_prior, evidence_visits)
            evaluations = evaluations + drawn
    nelbo = race.noise.known()[:, None] + race.sums / race.count
    confident = (1 - race.doubt.sum(1)).clamp(min=0)
    return Classification(
        race.best, confident, nelbo, race.count, evaluations, evidence, error, model.classes, pilot, weighting
    )


def log_prior_of(prior: Sequence[float] | Tensor | None, k: int) -> Tensor:
    """Return ln p(c) (K,) of the probabilities of K classes, uniform by default. Raises DiffusionalError for others.

    >>> log_prior_of([0.5, 0.5], 2).exp()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if prior is None:
        return torch.full((k,), -math.log(k), dtype=torch.float64)
    p = torch.as_tensor(prior, dtype=torch.float64).cpu()
    if (
        p.shape != (k,)
        or not bool((p > 0).all())
        or not bool(torch.isfinite(p).all())
        or abs(float(p.sum()) - 1) > 1e-6
    ):
        raise DiffusionalError(f"expected prior to be {k} positive probabilities that sum to 1, got {p.tolist()}")
    return p.log()


def _check_r(r: Tensor, items: int, k: int, visits: int) -> None:
    sound = r.shape == (items, k) and bool((r >= 0).all()) and bool(((r.double().sum(1) - 1).abs() < 1e-6).all())
    if not sound:
        raise DiffusionalError(
            f"expected r to be distributions over classes, of shape ({items}, {k}), whose rows sum to 1, got shape {tuple(r.shape)}"
        )
    if not visits:
        raise DiffusionalError(
            "r was given without evidence_visits, the draws of the evidence; give both, or leave r out"
        )


def _check_weighting(weighting: str, chain: Chain, prior: bool, evidence: bool, plan: ClassPlan | Plan | None) -> None:
    if weighting not in ("bound", "unweighted"):
        raise DiffusionalError(f'expected weighting="bound" or "unweighted", got {weighting!r}')
    if isinstance(plan, ClassPlan) and plan.weighting != weighting:
        raise DiffusionalError(
            f"expected a plan learned with weighting={weighting!r}, got one with weighting={plan.weighting!r}; learn another with df.ClassPlan.fit"
        )
    if weighting == "bound":
        return
    unweighted_costs(chain)
    if prior or evidence:
        what = "a prior" if prior else "evidence_visits without r"
        raise DiffusionalError(
            f'weighting="unweighted" expected no {"prior" if prior else "evidence"}, got {what}: unweighted errors are not log-probabilities; use '
            'weighting="bound"'
        )


class _Race:
    """The draws of all classes of all items: a class is visited until it is dropped.

    `margin` (N, K) are the predicted differences from the best class `best` (N,), and `doubt` (N, K) the probabilities that a class is better: for
    dropped classes those of when they were dropped. `sums` (N, K) are the sums of their weighted costs over `count` (N, K) visits.
    """

    def __init__(
        self, chain: Chain, plan: ClassPlan, data: Tensor, seed: int, log_prior: Tensor, confidence: float, most: int
    ) -> None:
        n, k = len(data), len(log_prior)
        self.chain, self.plan, self.log_prior, self.most = chain, plan, log_prior, most
        self.noise = CommonNoise(
            chain, plan.plan, data, seed, "classify", lambda item, draw, _: spread(item, draw, self.start)
        )
        self.start = torch.tensor([stream(key, 0, b"classify start").random() for key in self.noise.keys]).double()
        # The posterior probability of an error with which each class may be dropped.
        self.tail = (1 - confidence) / (k - 1)
        self.count = torch.zeros(n, k, dtype=torch.long)
        self.active = torch.ones(n, k, dtype=torch.bool)
        self.values = torch.zeros(n, k, 0, dtype=torch.float64)
        self.best = torch.zeros(n, dtype=torch.long)
        self.margin, self.doubt, self.sums = (torch.zeros(n, k, dtype=torch.float64) for _ in range(3))

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        n, visits, before = len(self.active), min(_FIRST, self.most), 0
        while True:
            racing = (self.active.sum(1) > 1).nonzero()[:, 0]
            if len(racing):
                self._draw(racing, before, visits)
                self._judge(racing)
            if progress is not None:
                progress(n - int((self.active.sum(1) > 1).sum()), n)
            if visits >= self.most or not len(racing):
                return
            before, visits = visits, min(self.most, math.ceil(_GROWTH * visits))

    def _draw(self, items: Tensor, before: int, visits: int) -> None:
        """Draw visits `before` … `visits` − 1 of the classes of `items` that have not been dropped."""
        grown = torch.zeros(*self.count.shape, visits, dtype=torch.float64)
        grown[:, :, : self.values.shape[2]] = self.values
        self.values = grown
        new, k = visits - before, self.active.shape[1]

        def costs(rows: Tensor) -> dict[str, Tensor]:
            item, draw = rows.repeat_interleave(new), torch.arange(before, visits).repeat(len(rows))
            row, label = self.active[item].nonzero().unbind(1)
            out = torch.zeros(len(rows), k, new, dtype=torch.float64)
            out[row // new, label, row % new] = self.noise.costs(item, draw, row, lambda which: label[which])
            return {"costs": out}

        found = shared(items, {"costs": (k, new)}, costs, about=lambda place: f" for class {place[0]}")
        self.values[items, :, before:] = found["costs"]
        self.sums[items] += found["costs"].sum(2)
        self.count[items] += new * self.active[items].long()

    def _judge(self, items: Tensor) -> None:
        """Predict the differences of the classes of `items` from the best, and drop those that are unlikely to be better."""
        n, visits = len(items), self.values.shape[2]
        places = spread(torch.arange(n).repeat_interleave(visits), torch.arange(visits).repeat(n), self.start[items])
        at = self.plan.plan.at(places)
        y = self.values[items] * self.plan.factors(self.chain, at).view(n, 1, visits)
        cells, active = at.cell.view(n, visits), self.active[items]
        mean = self.plan.predict(cells, y - y.mean(1, keepdim=True))[0] - self.log_prior
        best = torch.where(active, mean, math.inf).argmin(1)
        # Equal in all processes, whatever the last bits of their libraries: it decides which draws follow.
        best = ranks.agreed(best)
        theirs = y.gather(1, best[:, None, None].expand(-1, 1, visits))
        mean, scale, freedom = self.plan.predict(cells, y - theirs)
        mean = mean + self.log_prior[best][:, None] - self.log_prior
        doubt = _tail(mean, scale, freedom)
        doubt[torch.arange(n), best] = 0
        self.best[items] = best
        self.margin[items] = torch.where(active, mean, self.margin[items])
        self.doubt[items] = torch.where(active, doubt, self.doubt[items])
        self.active[items] &= ~ranks.agreed((doubt < self.tail).long()).bool()
        self.active[items, best] = True


def _tail(mean: Tensor, scale: Tensor, freedom: float) -> Tensor:
    """Return the probability that a difference is below 0, from its Student's t distribution; ½ for differences that are 0."""
    from scipy.stats import t

    ratio = torch.where(scale > 0, mean / scale.clamp(min=1e-300), mean.sign() * math.inf).nan_to_num(nan=0.0)
    return torch.from_numpy(np.asarray(t.sf(ratio.numpy(), freedom)))


def _weights(margin: Tensor) -> Tensor:
    """Return r(c) (N, K) ∝ e^{−margin}, without classes of a small probability."""
    r = torch.softmax(-margin, 1)
    r = torch.where(r < _LEAST, 0.0, r)
    return r / r.sum(1, keepdim=True)


def _evidence(noise: CommonNoise, r: Tensor, log_prior: Tensor, visits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_c r(c) [ln p(c) + ELBO(x|c) − ln r(c)] (N,) by new draws, its errors, and the network evaluations (N,)."""
    n = len(r)
    used = r > 0

    def expected(rows: Tensor) -> dict[str, Tensor]:
        """Return by draw the expectation over r: common noise makes its spread that of one class."""
        item, draw = rows.repeat_interleave(visits), torch.arange(visits).repeat(len(rows))
        row, label = used[item].nonzero().unbind(1)
        costs = noise.costs(item, draw, row, lambda which: label[which])
        sums = torch.zeros(len(item), dtype=torch.float64).index_add_(0, row, r[item[row], label] * costs)
        return {"costs": sums.view(-1, visits)}

    by_draw = shared(torch.arange(n), {"costs": (visits,)}, expected)["costs"]
    entropy = torch.where(used, r * (log_prior - r.clamp(min=1e-300).log()), 0.0).sum(1)
    error = (by_draw.var(1) / visits).sqrt()
    return entropy - noise.known() - by_draw.mean(1), error, visits * used.sum(1)


def summary(result: Classification, labels: Tensor | None = None) -> dict[str, Any]:
    """Return what a record holds of a classification, as JSON values; with the true labels (N,) its accuracy too."""
    out: dict[str, Any] = {
        "items": len(result.label),
        "classes": list(result.classes),
        "counts": result.label.bincount(minlength=result.nelbo.shape[1]).tolist(),
        "mean_confidence": float(result.confidence.mean()),
        "evaluations_per_item": float(result.evaluations.double().mean()),
        "network_evaluations": int(result.evaluations.sum()) + result.pilot,
        "pilot": result.pilot,
        "weighting": result.weighting,
    }
    if labels is not None:
        value, error = result.accuracy(labels)
        out["accuracy"] = {"value": value, "error": error}
    if len(result.evidence):
        out["evidence_nats"] = result.evidence_estimate().to_dict()
    return out
