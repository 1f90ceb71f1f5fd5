"""The precision of an evaluation (`Target`), and its estimator (`Visits`, `Replicates`, `Sweep`, `ImportanceWeights`, `ODE`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.plan import Plan
from diffusional.ledger import UNITS, per_unit


@dataclass(frozen=True)
class Target:
    """The target of an evaluation: one of `error`, `visits` and `item_error`, or none of them.

    Attributes:
        error: the Monte Carlo standard error of the data set's mean, in `unit`.
        unit: of `error` and `item_error`: "bits/dim" or "nats".
        visits: a fixed number of draws of every item, independent of the error.
        item_error: every item is drawn until its own error is at most this, in `unit`.
        every_item: visit all items, even if a random part of them would reach `error`.
        max_evaluations: limit on the network evaluations, including the pilot and the audit. `reached` is False if it is too low.

    Raises DiffusionalError for numbers out of range, and for options that exclude each other.

    >>> Target(error=0.01).unit
    'bits/dim'
    >>> Target(error=0.01, visits=4)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected one of target_error, visits and item_error, got target_error and visits
    """

    error: float | None = None
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    visits: int | None = None
    item_error: float | None = None
    every_item: bool = False
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise DiffusionalError(f"expected unit to be one of {', '.join(UNITS)}, got {self.unit!r}")
        if len(self.given) > 1:
            raise DiffusionalError(
                f"expected one of target_error, visits and item_error, got {' and '.join(self.given)}"
            )
        for name, value in (("target_error", self.error), ("item_error", self.item_error)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise DiffusionalError(f"expected {name} to be a positive number, got {value}")
        if self.visits is not None and self.visits < 2:
            raise DiffusionalError(
                f"expected visits to be at least 2, got {self.visits}: an item's error is estimated from the spread of its draws"
            )
        if self.max_evaluations is not None and self.max_evaluations < 1:
            raise DiffusionalError(f"expected max_evaluations to be at least 1, got {self.max_evaluations}")
        if not self.aimed and self.max_evaluations is not None:
            raise DiffusionalError(
                f"expected target_error, visits or item_error with max_evaluations={self.max_evaluations}, got none: a full sweep has no limit"
            )

    @property
    def given(self) -> list[str]:
        """The given targets, by their names as arguments of `evaluate`: one name, or none."""
        named = (("target_error", self.error), ("visits", self.visits), ("item_error", self.item_error))
        return [name for name, value in named if value is not None]

    @property
    def aimed(self) -> bool:
        """Whether there is a target."""
        return bool(self.given)

    def draws(self, items: int, dimensions: int) -> Callable[[float], float]:
        """Return a function of the variance of one draw of an item, nats², to the number of draws that the target takes for N `items` of
        D `dimensions`: V/error², J N for J visits, or N V/item_error².

        >>> round(Target(error=0.1, unit="nats").draws(50, 4)(2.0))
        200
        """
        nats = per_unit(self.unit, dimensions)
        if self.visits is not None:
            return lambda variance: float(self.visits or 0) * items
        error, times = (self.error, 1) if self.error is not None else (self.item_error, items)
        if error is None:
            raise DiffusionalError("expected a target (error, visits or item_error), got none")
        return lambda variance: times * variance / (error * nats) ** 2


@dataclass(frozen=True, eq=False)
class Visits:
    """Random visits of levels under a plan. This estimator requires a target.

    Attributes:
        plan: a plan from `Plan.fit` or `Plan.load`. By default a pilot learns one, whose evaluations are counted: 500, or more if the target
            requires many. A second pilot tries the control `context` of a levels head where it may save evaluations.
        reference: the pilot's data (M, *space.shape), normally training data. Defaults to the evaluated data.
        audit: visit every level once (at most 2,048) to look for costs that a learned plan does not expect.
        records: a file for the draws. If it has draws of this evaluation, the evaluation continues from them. If it is a folder, the
            evaluation has a file of its own in it, which is removed when the target is reached.
        deterministic: visit in batches of one fixed shape, so that scores are equal to the last bit whatever the number of processes: matrix
            products and convolutions of another number of rows differ in the last bits. The processes must run on equal machines with
            the same number of threads. For a few visits it takes longer, since batches are filled up.
    """

    plan: Plan | None = None
    reference: Tensor | None = None
    audit: bool = True
    records: str | Path | None = None
    deterministic: bool = False


@dataclass(frozen=True, eq=False)
class Replicates:
    """Independent replicates of dependent visits, with or without a target error: see `by_replicates` for the formula.

    Attributes:
        visits: of one replicate of an item, V, with stratified levels and, in a masked diffusion, disjoint masks.
        replicates: of every item, R, at least 2. With a target error more are added until it is reached.
        plan, reference: as of `Visits`. Every item has R V network evaluations under one plan, without an audit.

    Raises DiffusionalError for fewer than 2 replicates or 1 visit.

    >>> Replicates(replicates=1)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected replicates to be an integer of at least 2, got 1: the error is estimated from their spread
    """

    visits: int = 8
    replicates: int = 2
    plan: Plan | None = None
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        check_replicates(self.visits, self.replicates)


def check_replicates(visits: int, replicates: int) -> None:
    """Raise DiffusionalError for fewer than 2 replicates or 1 visit, and for numbers that are not integers.

    >>> check_replicates(0, 2)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected visits to be an integer of at least 1, got 0: a replicate has as many
    """
    for name, value, least, why in (
        ("replicates", replicates, 2, "the error is estimated from their spread"),
        ("visits", visits, 1, "a replicate has as many"),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DiffusionalError(f"expected {name} to be an integer of at least {least}, got {value}: {why}")


@dataclass(frozen=True)
class Sweep:
    """All T levels of every item, without a target.

    Attributes:
        draws: number of sweeps over the levels. Defaults to 1 for at least 50 levels and 8 items, from which the error can be estimated,
            otherwise to 8.
        cells: in continuous time, the number of cells that [0, 1] is divided into.
        deterministic: sweep items one by one, so that scores are equal to the last bit whatever the number of processes, as in `Visits`.
    """

    draws: int | None = None
    cells: int = 1000
    deterministic: bool = False


@dataclass(frozen=True)
class ImportanceWeights:
    """The importance-weighted bound −ln (1/K) Σ_k w_k, K = `draws`, without a target: see `importance_weighted`."""

    draws: int = 64


@dataclass(frozen=True)
class ODE:
    """The likelihood of the network's probability flow, MATH (31), without a target: see `ode_log_likelihood` for the fields.

    Raises DiffusionalError for numbers out of range.

    >>> ODE(probes=1)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected probes to be at least 2, got 1: the error of the trace is estimated from their spread
    """

    DRAWS: ClassVar[int] = 8
    """The number of draws for discrete data, unless another is given."""

    draws: int | None = None
    probes: int = 8
    exact_up_to: int = 16
    tolerance: float = 1e-3
    max_steps: int = 512
    interpolate: bool = False

    def __post_init__(self) -> None:
        for name, least, why in (
            ("draws", 2, "the error is estimated from the spread of the weights"),
            ("probes", 2, "the error of the trace is estimated from their spread"),
            ("exact_up_to", 0, "it is a number of dimensions"),
            ("max_steps", 16, "the error of the solver is estimated from two grids, of 8 and 16 steps"),
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise DiffusionalError(f"expected {name} to be at least {least}, got {value}: {why}")
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise DiffusionalError(f"expected tolerance to be a positive number of bits/dim, got {self.tolerance}")


Estimator = Visits | Replicates | Sweep | ImportanceWeights | ODE


class Options(TypedDict, total=False):
    """Fields of `Target`, `Visits` and `Sweep` that `evaluate` takes by name, and `steps`."""

    visits: int | None
    item_error: float | None
    every_item: bool
    max_evaluations: int | None
    plan: Plan | None
    reference: Tensor | None
    audit: bool
    records: str | Path | None
    draws: int | None
    cells: int
    deterministic: bool
    steps: int | Literal["continuous"] | None


_OF_TARGET = {f.name for f in fields(Target)} - {"error", "unit"}
_OF_VISITS, _OF_SWEEP = ({f.name for f in fields(kind)} for kind in (Visits, Sweep))


def _chosen(name: str, value: Any) -> bool:
    """Return whether an option of an estimator differs from its default."""
    plain = {"audit": Visits.audit, "cells": Sweep.cells, "deterministic": False}
    return value != plain[name] if name in plain else value is not None


def resolved(
    target_error: float | Target | None,
    unit: Literal["bits/dim", "nats"],
    estimator: Estimator | None,
    options: dict[str, Any],
) -> tuple[Target, Estimator]:
    """Return the target and the estimator that the arguments of `evaluate` describe. Without a target the estimator is a sweep.

    Raises TypeError for options that do not exist, and DiffusionalError for those of another estimator or target.

    >>> resolved(0.01, "nats", None, {"audit": False})[1].audit
    False
    >>> resolved(None, "nats", None, {"draws": 2})[1]
    Sweep(draws=2, cells=1000, deterministic=False)
    """
    known = _OF_TARGET | _OF_VISITS | _OF_SWEEP
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"evaluate() got an unexpected keyword argument {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
        )
    own, plain = {n: v for n, v in options.items() if n in _OF_TARGET}, Target()
    if isinstance(target_error, Target):
        given = [name for name, value in own.items() if value != getattr(plain, name)]
        if given or unit != plain.unit:
            raise DiffusionalError(f"{(given or ['unit'])[0]} was given together with a Target; set it in the Target")
        target = target_error
    else:
        target = Target(target_error, unit, **own)
    of_visits = {n: v for n, v in options.items() if n in _OF_VISITS}
    of_sweep = {n: v for n, v in options.items() if n in _OF_SWEEP}
    if estimator is not None:
        given = [name for name, value in (of_visits | of_sweep).items() if _chosen(name, value)]
        if given:
            raise DiffusionalError(
                f"{given[0]} was given together with an estimator; set it in the {type(estimator).__name__}"
            )
    elif target.aimed:
        if options.get("draws") is not None:
            raise DiffusionalError(
                f"draws={options['draws']}, the number of sweeps, and {target.given[0]} were both given; leave one of them out"
            )
        estimator = Visits(**of_visits)
    else:
        if any(of_visits.get(name) is not None for name in ("plan", "reference", "records")):
            raise DiffusionalError(
                "expected target_error, visits or item_error with a plan, reference data or records, got none of them"
            )
        estimator = Sweep(**of_sweep)
    if isinstance(estimator, Replicates):
        others = [name for name in target.given if name != "target_error"]
        if others or target.every_item:
            raise DiffusionalError(
                f"expected target_error or no target with Replicates, got {others[0] if others else 'every_item'}; set the numbers of visits and "
                "replicates in the Replicates, which visit every item"
            )
    elif isinstance(estimator, Visits) != target.aimed:
        raise DiffusionalError(
            f"expected {'a' if isinstance(estimator, Visits) else 'no'} target (target_error, visits or item_error) with "
            f"{type(estimator).__name__}"
        )
    return target, estimator
