"""Several witnesses of one bound, side by side: the NELBO, importance weighting, the probability flow and the bytes of a code.

Which order must hold:

    NELBO (8) = IWAE, K = 1       in expectation: two forms of one bound, MATH (7), (8), from independent draws
    IWAE, K = 1 ≥ 8 ≥ 64 ≥ …      for any draws if each K divides the next one, so that its groups are those of the next one, divided: Jensen's
                                  inequality; otherwise in expectation
    NELBO ≥ IWAE                  in expectation, from independent draws
    code and NELBO                no order: a code is as long as the path form of the bound, whose mean is the NELBO, plus an overhead, which is
                                  negative where many latents are in the tails of p (codec/laws.py)
    probability flow              no order: another model with the same network. For an optimal denoiser both are the law of the data, and
                                  no bound is below the flow; otherwise either may be lower

An order from independent draws holds if it is not broken by more than 4 of the standard errors of the difference.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffusional.conditions import Condition, check_condition
from diffusional.encoded import in_memory
from diffusional.errors import DiffusionalError
from diffusional.evaluation.evaluation import as_the_network, evaluate
from diffusional.evaluation.importance import weighted_by
from diffusional.evaluation.noise import item_keys
from diffusional.evaluation.ode import ode
from diffusional.evaluation.provenance import as_seen
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.summary import html, plain
from diffusional.evaluation.target import ODE
from diffusional.ledger import Estimate, with_error
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.seeds import check_seed

# Standard errors of a difference by which an order may seem to be broken.
SIGMAS = 4.0
# The length of a code of items for (model, items, condition): of all in bytes, or of each in nats (N,).
Code = Callable[[LatentVariableModel, Tensor, Condition | None], int | Tensor]


@dataclass(frozen=True)
class Witness:
    """One number: `kind` is "bound", "estimate" or "code"; `nelbo` is in nats, or None with the reason in `missing`."""

    name: str
    kind: str
    nelbo: Estimate | None
    missing: str = ""
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """`left` ≥ or = `right`: `difference` = left − right in nats with its standard error. `holds` is None where no order must hold, with the
    relation "and"; there the error may be NaN, unknown.
    """

    left: str
    relation: str
    right: str
    difference: float
    error: float
    holds: bool | None
    why: str

    def __str__(self) -> str:
        value, error = with_error(self.difference, self.error)
        said = {True: "holds", False: "DOES NOT HOLD", None: "nothing to hold"}[self.holds]
        return f"{self.left} {self.relation} {self.right}: {said} (difference {value} ± {error} nats; {self.why})"


@dataclass(frozen=True, eq=False)
class Witnesses:
    """What `witnesses` returns.

    Attributes:
        rows: the witnesses, in order.
        orders: which order must hold, and whether it does.
        evaluations: the records of the witnesses that have one, by name.
        items, dimensions: the number of items, and D.
    """

    rows: tuple[Witness, ...]
    orders: tuple[Order, ...]
    evaluations: Mapping[str, Evaluation]
    items: int
    dimensions: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def agree(self) -> bool:
        """Whether every order that must hold does."""
        return all(one.holds is not False for one in self.orders)

    def to_json(self) -> dict[str, Any]:
        """Return the record that `diffusional evaluate --witnesses --json` writes."""
        return {
            "items": self.items,
            "dimensions": self.dimensions,
            "agree": self.agree,
            "witnesses": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "nats": None if row.nelbo is None else row.nelbo.to_dict(),
                    "bits/dim": None if row.nelbo is None else row.nelbo.to("bits/dim", self.dimensions).to_dict(),
                    "network_evaluations": None if row.nelbo is None else row.nelbo.network_evaluations,
                    "missing": row.missing,
                    "caveats": list(row.caveats),
                }
                for row in self.rows
            ],
            "orders": [vars(one) | {"error": None if math.isnan(one.error) else one.error} for one in self.orders],
            "evaluations": {name: result.to_json() for name, result in self.evaluations.items()},
            **self.about,
        }

    def _table(self) -> tuple[str, list[str], list[list[str]], list[str], list[str]]:
        header = ["witness", "what it is", "bits/dim", "± error", "± items", "nats", "evaluations"]
        said = {"bound": "upper bound", "estimate": "another model, no bound", "code": "a code's length"}
        body = []
        for row in self.rows:
            if row.nelbo is None:
                body.append([row.name, f"not available: {row.missing}", "", "", "", "", ""])
                continue
            bits = row.nelbo.to("bits/dim", self.dimensions)
            value, error = with_error(bits.value, bits.error)
            calls = f"{row.nelbo.network_evaluations:,}" if row.nelbo.network_evaluations else ""
            spread = with_error(bits.item_error, bits.item_error)[1]
            nats = with_error(row.nelbo.value, row.nelbo.error)[0]
            body.append([row.name, said[row.kind], value, error, spread, nats, calls])
        caveats = [f"{row.name}: {text}" for row in self.rows for text in row.caveats]
        title = f"witnesses of −ln p(x): {self.items:,} items, {self.dimensions:,} dimensions"
        return title, header, body, [str(one) for one in self.orders], caveats

    def __str__(self) -> str:
        return plain(*self._table())

    def _repr_html_(self) -> str:
        return html(*self._table())


def some_items(model: LatentVariableModel, data: Tensor, n: int, condition: Condition | None = None) -> Tensor:
    """Return the numbers (n,) of a random part of the items (N, …), in their order; which they are depends on the items only.

    >>> import torch
    >>> from diffusional.models.direct import DirectModel
    >>> from diffusional import Discrete, likelihood
    >>> model = DirectModel(torch.nn.Linear(2, 6), likelihood.NetworkLevels(Discrete((3,), 2)))
    >>> len(some_items(model, torch.ones(5, 3), 2))
    2
    """
    if n < 1:
        raise DiffusionalError(f"expected a number of items of at least 1, got {n}")
    order = item_keys(as_seen(model.space, data), 0, condition).order()
    return order[:n].sort().values


def witnesses(
    model: LatentVariableModel,
    data: Tensor,
    *,
    counts: Sequence[int] = (1, 8, 64),
    flow: ODE | None = None,
    condition: Condition | None = None,
    seed: int = 0,
    code: Code | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Witnesses:
    """Return the NELBO, importance-weighted bounds, the likelihood of the probability flow and, with `code`, the length of a code of `data`.

    Args:
        data: items (N, *space.shape), encoded. A path takes T network evaluations: `some_items` chooses a part of a large set.
        counts: K of the importance weights, all from the same draws. If each of them divides the next one, their order holds for any draws.
        flow: options of the probability flow.
        condition: of the items, for conditional models.
        seed: of all noise; the draws of different witnesses are independent.
        code: the length of a code of the items for (model, items, condition), in bytes or in nats for each item (N,): `df.codec.code_length`.
        progress: called with the name of each witness before it is computed.
        options: those of `evaluate` for the NELBO, such as `visits=64` or `plan`; by default `target_error=0.01` bits/dim, of all items.

    A witness that the model does not have, such as a flow of a VAE, is listed with the reason. Raises DiffusionalError as `evaluate` does.

    >>> import torch
    >>> from diffusional import Continuous, DiffusionModel, GaussianDiffusion, exact, likelihood, schedule
    >>> world = exact.Gaussian(torch.zeros(2), torch.eye(2))
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=20))
    >>> model = DiffusionModel(process, world.denoiser(), likelihood.GaussianLikelihood(Continuous((2,))))
    >>> found = witnesses(model, world.sample(4, torch.Generator().manual_seed(0)), counts=(1, 4), visits=64)
    >>> [row.name for row in found.rows], found.agree
    (['NELBO', 'IWAE, K = 1', 'IWAE, K = 4', 'probability flow'], True)
    """
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    say = progress or (lambda name: None)
    if not any(options.get(name) is not None for name in ("target_error", "visits", "item_error")):
        options = {"target_error": 0.01} | options
    say("NELBO")
    found = {"NELBO": evaluate(model, data, condition=condition, seed=seed, every_item=True, **options)}
    missing = dict[str, str]()
    counts, data = sorted(set(counts)), in_memory(as_the_network(model, data))
    names = [_iwae(k) for k in counts]
    with evaluation_mode(model):
        say("importance weights")
        try:
            weights = weighted_by(model, data, counts, seed, condition)
            found |= {_iwae(k): one for k, one in weights.items()}
        except DiffusionalError as error:
            _only_missing(error, model.check_log_weight)
            missing |= dict.fromkeys(names, str(error))
        say("probability flow")
        try:
            found["probability flow"] = ode(model, data, flow or ODE(), seed, condition)
        except DiffusionalError as error:
            missing["probability flow"] = str(error)
    rows = []
    for name in ("NELBO", *names, "probability flow"):
        one = found.get(name)
        if one is None:
            rows.append(Witness(name, "estimate" if name == "probability flow" else "bound", None, missing[name]))
        else:
            rows.append(Witness(name, one.kind, one.nelbo, caveats=one.caveats))
    if code is not None:
        say("code")
        rows.append(_coded(code, model, data, condition, found["NELBO"]))
    return Witnesses(tuple(rows), tuple(_orders(rows, counts)), found, len(data), model.space.dimensions)


def _coded(
    code: Code, model: LatentVariableModel, data: Tensor, condition: Condition | None, bound: Evaluation
) -> Witness:
    """Return the row of a code. Its error is that of one path for each item: the spread of the items' differences from their NELBO, unknown for
    one item and for a code whose length is known in bytes only.
    """
    n = len(data)
    try:
        length = code(model, data, condition)
    except DiffusionalError as error:
        return Witness("code", "code", None, str(error))
    if not isinstance(length, Tensor):
        return Witness("code", "code", Estimate(8 * math.log(2) * length / n, math.nan, math.nan, n, 0))
    length = length.double()
    apart = length - bound.per_item["nelbo"].to(length)[bound.per_item["item"].argsort()]
    error, items = (float(one.std()) / math.sqrt(n) if n > 1 else math.nan for one in (apart, length))
    caveat = "the part of the items in a file that was decoded, without its header and borrowed bits"
    return Witness("code", "code", Estimate(float(length.mean()), error, items, n, 0), caveats=(caveat,))


def _iwae(k: int) -> str:
    return f"IWAE, K = {k}"


def _only_missing(error: DiffusionalError, check: Callable[[], None]) -> None:
    """Raise an error of the weights, unless the model has none."""
    try:
        check()
    except DiffusionalError:
        return
    raise error


def _orders(rows: Sequence[Witness], counts: Sequence[int]) -> list[Order]:
    """Return the orders of the witnesses that there are; `counts` are the K of the importance weights, the smallest first."""
    known = {row.name: row.nelbo for row in rows if row.nelbo is not None}
    weights = [_iwae(k) for k in counts if _iwae(k) in known]
    found = []

    def add(left: str, relation: str, right: str, why: str, error: float | None = None) -> None:
        one, other = known[left], known[right]
        off = one.value - other.value
        error = math.hypot(one.error, other.error) if error is None else error
        allowed = SIGMAS * error + 1e-9 * (1 + abs(one.value))
        holds = {"=": abs(off) <= allowed, "≥": off >= -allowed, "and": None}[relation]
        found.append(Order(left, relation, right, off, error, holds, why))

    for few, many in itertools.pairwise(counts) if weights else ():
        nested = many % few == 0 and counts[-1] % many == 0
        why = "the same draws, in larger groups" if nested else "more draws are tighter"
        add(_iwae(few), "≥", _iwae(many), why, 0.0 if nested else None)
    for name in weights:
        first = name == _iwae(1)
        add("NELBO", "=" if first else "≥", name, "two forms of one bound" if first else "more draws are tighter")
    if "code" in known:
        # The spread of the differences contains the noise of both.
        why = "the noise of one path for each item, and the overhead, which may be negative"
        add("code", "and", "NELBO", why, known["code"].error)
    if "probability flow" in known:
        tightest = weights[-1] if weights else "NELBO"
        add(
            tightest,
            "and",
            "probability flow",
            "another model with the same network; equal to −ln p(x) if it is optimal",
        )
    return found
