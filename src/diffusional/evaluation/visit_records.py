"""Draws of (t, ε) under a plan for each item, and the estimates from them.

An item's j-th visit depends on the item, the seed, the plan and j, but not on batch-mates, order, subset or processes. Draws of an item are
independent, so with J of them, w = 1/q and r = cost − g (plan.py (a)),

    Ŝ_i = base_i + R_i,     R_i = (1/J) Σ_j w_ij r_ij,          Var Ŝ_i by their sample variance v_i = s_i²/J,

and the error of the mean over N items, each counted once, is √(Σ_i v_i)/N. If the error allows it, fewer than N items are visited. Items
with an extreme base are then visited with certainty, or sampled from strata of similar items. The first of the others, in the random order
of their keys, represent all of them: see strata.py.

With several processes (torch.distributed), each visits its share of the items, and all get all records.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import Condition, by_name, moved, rows_of
from diffusional.deprecation import renamed_names
from diffusional.encoded import DataItems
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.provenance import as_seen, tensor_hash
from diffusional.evaluation.strata import Strata
from diffusional.evaluation.visits import contexts, visit_parts
from diffusional.files import load_tensors, save_tensors
from diffusional.ledger import Estimate, sharing, total_of
from diffusional.models.base import device_of
from diffusional.models.chain import Chain, batch_rows, cost_of
from diffusional.space import Discrete

__getattr__ = renamed_names(__name__, {"Draws": "VisitRecords"})

# Numbers of noise drawn at once.
_NOISE = 16_000_000
# The largest block of items whose base is computed at once.
_BLOCK = 4096
# Visits of a batch of fixed shape.
_FIXED = 64
# The number of draws of an item whose variance has the same weight as the plan's expectation.
_PRIOR_DRAWS = 4
# Degrees of freedom of the plan's expectation if the observed error is smaller.
_PLAN_FREEDOM = 256
# Expected degrees of freedom of an error from which on it can end an evaluation: twice those without a caveat (averages.LEAST_FREEDOM).
_TRUSTED = 30.0


@dataclass(frozen=True, eq=False)
class Parts:
    """The records of n items: `costs`, by name the weighted residuals (n, J) of "kl" and "reconstruction", and further costs of every
    visit; and the cell of each visit (n, J).
    """

    costs: dict[str, Tensor]
    cell: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum (n, J)."""
        first, *others = self.costs.values()
        return sum(others, first)


def blocks(items: int, dimensions: int) -> tuple[Tensor, ...]:
    """Return the numbers of items in blocks whose quantities are computed together: few enough that the memory they need does not grow with
    the set, and no small block at the end, since matrix products of few rows differ in the last bits.

    >>> [len(rows) for rows in blocks(10_000, 64)], [len(rows) for rows in blocks(100, 3 * 256 * 256)]
    ([3334, 3333, 3333], [81, 19])
    """
    every, most = torch.arange(items), max(1, _NOISE // dimensions)
    return every.split(most) if most <= _BLOCK else every.tensor_split(max(1, -(-items // _BLOCK)))


def filled_up(rows: Tensor, size: int) -> Tensor:
    """Return rows (n,), n ≤ size, followed by copies of the last, (size,).

    >>> filled_up(torch.tensor([4, 7]), 4)
    tensor([4, 7, 7, 7])
    """
    return torch.cat([rows, rows[-1:].expand(size - len(rows))])


class VisitRecords:
    """The draws of a data set under a plan, which can be extended, saved and continued.

    Args:
        model, plan: a chain, and a plan for its levels.
        data: items (N, *space.shape), encoded.
        seed: the seed of the noise.
        condition: (N, …) for conditional models.
        deterministic: visit in batches of one shape, so that records are equal to the last bit whatever the number of processes.
        keyed: whether the noise of an item depends on its condition. If not, two records of the same items under different conditions have
            common noise.
    """

    def __init__(
        self,
        model: Chain,
        plan: Plan,
        data: DataItems,
        seed: int = 0,
        condition: Condition | None = None,
        deterministic: bool = False,
        keyed: bool = True,
    ) -> None:
        plan.check(model)
        self.deterministic = deterministic
        self.model, self.plan, self.data, self.seed, self.condition = model, plan, data, seed, condition
        self.keys = item_keys(data, seed, condition if keyed else None, lambda rows: as_seen(model.space, rows))
        self.order = self.keys.order()
        self.device = device_of(model.whole(), data)
        n = len(data)
        self.count = torch.zeros(n, dtype=torch.long)
        # The number of draws of each item at the end of the present round. An interrupted evaluation first completes this round.
        self.goal = torch.zeros(n, dtype=torch.long)
        names = ("kl", *model.decoder_parts, *model.further)
        # Costs and cells have rows for the items that have been visited only: of a large set, these may be few.
        self._row = torch.full((n,), -1, dtype=torch.int32)
        self._costs = {name: torch.zeros(0, 0, dtype=torch.float64) for name in names}
        self._cell = torch.zeros(0, 0, dtype=torch.int16)
        with torch.inference_mode():
            # Equal in all processes, since these values decide which items are extreme.
            self.context = self._contexts()
            known: dict[str, Tensor] = {}
            for rows in blocks(n, model.space.dimensions):
                x = data[rows].to(self.device)
                found = {"base": plan.base(model, x, self.context_of(rows)), **model.extra(x)}
                found["prior"] = cost_of(model, "prior", model.prior(x), len(rows))
                for name, term in found.items():
                    known.setdefault(name, torch.empty(n, *term.shape[1:], dtype=term.dtype))[rows] = term.cpu()
            known = {name: ranks.agreed(term) for name, term in known.items()}
            self.base, self.prior, self.extra = known.pop("base"), known.pop("prior"), known
            looked = self._looked_at()
            self.seen = total_of(looked) if looked else None
            if self.seen is not None:
                self.base[:, 0] += self.seen
        # What is known of each cost of the decoder before its visits, by name, each (N,): its first draw, if there is one. The rest, the plan's
        # constant, is the mean of the costs without a first draw, if there are any.
        parts, zero = model.decoder_parts, torch.zeros(n, dtype=torch.float64)
        self._rest = next((name for name in parts if name not in looked), parts[0])
        self._looked = {name: looked.get(name, zero) for name in parts}
        self.known_parts = {**self._looked, self._rest: self.base[:, 0]}
        for name in parts:
            if name != self._rest:
                self.known_parts[self._rest] = self.known_parts[self._rest] - self._looked[name]
        self.strata = Strata.by_extremeness(self.columns(), self.order)

    def columns(self) -> dict[str, Tensor]:
        """Return what is known of each item without the network, by name, (N,) each: the base of every cell, KL_T and further exact terms."""
        cells = {f"base of cell {c}": column for c, column in enumerate(self.base.T)}
        return cells | {"known": self.known(), "prior": self.prior} | self.extra

    def _contexts(self) -> Tensor | None:
        """Return the priors of every item (N, K, *dims), if a control of the plan needs them; each process makes its share."""
        if not self.plan.takes_context:
            return None
        n, space = len(self.data), self.model.space
        assert isinstance(space, Discrete)
        out, mine = torch.zeros(n, space.levels, *space.shape), ranks.share(n)
        step = _FIXED if self.deterministic else batch_rows(space)
        for rows in mine.split(step) if len(mine) else ():
            every = filled_up(rows, step) if self.deterministic else rows
            c = moved(rows_of(self.condition, every), self.device)
            out[rows] = contexts(self.model, self.data[every].to(self.device), c).cpu()[: len(rows)]
        return ranks.collect(out)

    def context_of(self, items: Tensor) -> Tensor | None:
        """Return the priors of items (n,), (n, K, *dims) on the device, if a control of the plan needs them."""
        return None if self.context is None else self.context[items].to(self.device)

    def _looked_at(self) -> dict[str, Tensor]:
        """Draw those costs of the decoder that are in the model's `looked` once for every item (N,). Each process draws its share. If the
        decoder takes no network evaluation, every visit has a draw of its costs, and there are no others.
        """
        n, device = len(self.data), self.device
        names = self.model.looked if self.model.decoder_uses_network else ()
        out = {name: torch.zeros(n, dtype=torch.float64) for name in names}
        if not out:
            return out
        mine = ranks.share(n)
        step = max(1, min(batch_rows(self.model.space), _NOISE // math.prod(self.model.visit_shape)))
        for rows in mine.split(step) if len(mine) else ():
            noise = normal([stream(self.keys[i], 0, b"look") for i in rows.tolist()], self.model.visit_shape)
            x, c = self.data[rows].to(device), moved(rows_of(self.condition, rows), device)
            for name, cost in self.model.look(x, noise.to(device, x.dtype), c).items():
                out[name][rows] = cost.double().cpu()
        return {name: ranks.collect(values) for name, values in out.items()}

    @property
    def evaluations(self) -> int:
        """Number of network evaluations so far."""
        before = [one for one in (self.seen, self.context) if one is not None]
        return int(self.count.sum()) + len(before) * len(self.data)

    def extend(self, items: Tensor, draws: Tensor, after: Callable[[int], None] | None = None) -> None:
        """Visit items (n,) until each has `draws` (n,); items that have as many are left unchanged.

        `after` is called after every block, with the number of evaluations so far. Raises DiffusionalError for a cost that is not finite,
        with the number of the item.
        """
        self._make_room(items[draws > 0], int(draws.max()) if len(draws) else 0)
        self.goal[items] = torch.maximum(self.goal[items], draws)
        missing = (draws - self.count[items]).clamp(min=0)
        row = items.repeat_interleave(missing)
        ends = missing.cumsum(0)
        column = torch.arange(len(row)) - (ends - missing).repeat_interleave(missing) + self.count[row]
        block = max(1, _NOISE // (self.model.space.dimensions * 2))
        for rows, columns in zip(row.split(block), column.split(block), strict=True):
            self._visit(rows, columns)
            self.count.index_add_(0, rows, torch.ones_like(rows))
            if after is not None:
                after(self.evaluations)

    def _make_room(self, items: Tensor, width: int) -> None:
        """Add rows for those of the items (n,) that have none, and columns up to `width`."""
        new, (rows, columns) = items[self._row[items] < 0].sort().values, self._cell.shape
        self._row[new] = torch.arange(rows, rows + len(new), dtype=torch.int32)
        grow = (0, max(0, width - columns), 0, len(new))
        if any(grow):
            self._costs = {name: torch.nn.functional.pad(values, grow) for name, values in self._costs.items()}
            self._cell = torch.nn.functional.pad(self._cell, grow)

    def _visit(self, row: Tensor, column: Tensor) -> None:
        """Make one evaluation for every (row, column). Each process makes its share, and all get all results."""
        found = {name: torch.zeros(len(row), dtype=torch.float64) for name in self._costs}
        cell = torch.zeros(len(row), dtype=torch.long)
        mine = ranks.share(len(row))
        if len(mine):
            evaluated = self._in_batches if self.deterministic else self._evaluated
            costs, cell[mine] = evaluated(row[mine], column[mine])
            for name, values in costs.items():
                found[name][mine] = values
        found = {name: ranks.collect(values) for name, values in found.items()}
        cell = ranks.collect(cell)
        bad = ~torch.isfinite(torch.stack(list(found.values()))).all(0)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            costs = ", ".join(f"{name} = {float(values[at]):g}" for name, values in found.items())
            raise DiffusionalError(
                f"item {int(row[at])} has a cost that is not finite: {costs} at draw {int(column[at])}; nothing was left out of the mean"
            )
        at = self._row[row].long()
        for name, values in found.items():
            self._costs[name][at, column] = values
        self._cell[at, column] = cell.to(torch.int16)

    def _in_batches(self, row: Tensor, column: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Evaluate in batches of _FIXED visits, either all of the decoder or none, so that every product has the same shape."""
        cell = self.plan.draw(self.keys, row, column)[0].cell
        out = {name: torch.zeros(len(row), dtype=torch.float64) for name in self._costs}
        for chosen in ((cell == 0).nonzero().squeeze(1), (cell > 0).nonzero().squeeze(1)):
            for rows in chosen.split(_FIXED) if len(chosen) else ():
                every = filled_up(rows, _FIXED)
                for name, values in self._evaluated(row[every], column[every])[0].items():
                    out[name][rows] = values[: len(rows)]
        return out, cell

    def _evaluated(self, row: Tensor, column: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        model, plan = self.model, self.plan
        visits, streams = plan.draw(self.keys, row, column)
        noise = normal(streams, model.visit_shape).to(self.device, self.data.dtype)
        x = self.data[row].to(self.device)
        c = moved(rows_of(self.condition, row), self.device)
        with torch.inference_mode():
            context = self.context_of(row)
            parts = visit_parts(model, x, visits, noise, c)
            left = total_of(parts) - plan.subtracted(model, x, visits, noise, context)
            first = visits.cell == 0
            if self.seen is not None:
                left = torch.where(first, left - self.seen[row], left)
            weighted = visits.weight * left
            decoder = torch.where(first, weighted, 0.0)
            if not model.decoder_uses_network:
                other = normal(streams, model.visit_shape).to(self.device, self.data.dtype)
                decoder = plan.decoder_residuals(model, x, other, context)
            # The rest of the decoder's residual, after those of its other costs.
            costs = {self._rest: decoder}
            for name, first_draw in self._looked.items():
                if name != self._rest:
                    costs[name] = torch.where(first, visits.weight * (parts[name] - first_draw[row]), 0.0)
                    costs[self._rest] = costs[self._rest] - costs[name]
            beside = {name: values.double().cpu() for name, values in model.beside(x, noise, c).items()}
        return {"kl": torch.where(first, 0.0, weighted), **costs, **beside}, visits.cell

    # What they add up to.

    def visited(self) -> Tensor:
        """Return the numbers of the items with draws (n,), in the order of the data."""
        return (self.count > 0).nonzero().squeeze(1)

    def parts(self, items: Tensor) -> tuple[Parts, Tensor]:
        """Return the records of items, and a mask of their existing draws (n, J)."""
        width = int(self.count[items].max()) if len(items) else 0
        filled = torch.arange(width) < self.count[items, None]
        rows = self._row[items].long()
        own = (rows >= 0).nonzero().squeeze(1)

        def of(values: Tensor) -> Tensor:
            if len(own) == len(rows):
                return values[rows, :width]
            return values.new_zeros(len(rows), width).index_copy_(0, own, values[rows[own], :width])

        return Parts({name: of(values) for name, values in self._costs.items()}, of(self._cell)), filled

    def spread(self, values: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (n,) of each row's existing values, and the variance (n,) of that mean, which is NaN for a single draw."""
        j = filled.sum(1)
        mean = (values * filled).sum(1) / j
        squares = ((values - mean[:, None]).square() * filled).sum(1)
        return mean, squares / (j - 1) / j

    def known(self) -> Tensor:
        """Return the part of each item's cost that needs no network evaluation (N,): Σ E g, the prior and further exact terms."""
        return self.base.sum(1) + self.prior + sum(self.extra.values(), torch.zeros_like(self.prior))

    def survey(self, base: Tensor, mean: Tensor, variance: Tensor, evaluations: int) -> Estimate:
        """Return the mean of a cost over all N items with its errors, from the base (N,) of all items, and the mean and variance (n,) of visited
        ones.
        """
        total, items = len(base), self.visited()
        if len(items) == total:
            value, error = float(base.mean() + mean.mean()), math.sqrt(float(variance.sum())) / total
        else:
            drawn, error = self.strata.mean_and_error(items, mean, variance)
            value = float(base.mean()) + drawn
        return Estimate(value, error, self.strata.item_error(items, base, mean, variance), total, evaluations)

    def expected_variance(self, visit: float) -> float:
        """Return the variance of the data set's mean if every visit has the variance `visit`: `visit` times Σ_i w_i²/J_i over N², where a
        visited item represents w_i items.
        """
        items = self.visited()
        weight = self.strata.weights(items)
        return visit * float((weight.square() / self.count[items].double()).sum()) / len(self.data) ** 2

    def cautious(self, seen: Estimate, visit: float, pilot: float = math.inf, of_a_draw: float = math.inf) -> Estimate:
        """Return `seen` with the error for a stopping rule, if one visit is expected to have the variance `visit`, nats².

        Draws that met no rare cost give both a low estimate and a low error, so stopping at a low error would favour them. The
        pilot's expectation does not depend on these draws. If it is larger, it is blended in with _PLAN_FREEDOM degrees of freedom.

        The draws' own error is not used at all until the pilot expects it to have _TRUSTED degrees of freedom. Their actual degrees of freedom
        prove nothing: draws that met none of the costs that dominate the variance look like many alike. Until then the error is the
        pilot's expectation plus its own standard error.

        Args:
            seen: the estimate, with the error from the draws.
            visit: the expected variance of one visit, nats².
            pilot: the degrees of freedom of `visit`.
            of_a_draw: the degrees of freedom that each draw is expected to add to the variance of draws.
        """
        expected = self.expected_variance(visit)
        if self.trusted(of_a_draw) < 1:
            return replace(seen, error=max(seen.error, math.sqrt(expected * (1 + math.sqrt(2 / pilot)))))
        freedom = float((self.count[self.visited()] - 1).sum())
        blend = (_PLAN_FREEDOM * expected + freedom * seen.error**2) / (_PLAN_FREEDOM + freedom)
        return replace(seen, error=max(seen.error, math.sqrt(blend)))

    def trusted(self, of_a_draw: float) -> float:
        """Return the expected degrees of freedom of the variance of the draws, over those from which on it is trusted."""
        return of_a_draw / self.expected_variance(1.0) / _TRUSTED

    def nelbo(self) -> Estimate:
        """Return the mean NELBO of the data set in nats, with both errors."""
        return self.survey(self.known(), *self.spread(*self.values()), self.evaluations)

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the weighted residuals of the visited items (n, J), KLs and reconstruction together, and a mask of those that exist."""
        records, filled = self.parts(self.visited())
        return records.total, filled

    def freedom(self) -> float:
        """Return the degrees of freedom of the Monte Carlo error: Σ_i (J_i − 1) for normal draws, and fewer if few draws determine it.

        (Σ q)²/Σ q² is the number of draws that would contribute equally to the error, where q_ij is the squared deviation of a draw over
        J_i (J_i − 1). For normal draws it is a third of their number.
        """
        return self.freedom_of(*self.values())

    def freedom_of(self, values: Tensor, filled: Tensor) -> float:
        """Return the same for any values (n, J) of the visited items' draws."""
        items = self.visited()
        mean, _ = self.spread(values, filled)
        j = filled.sum(1, keepdim=True)
        q = (values - mean[:, None]).square() * filled / (j * (j - 1))
        part = len(items) < len(self.data)
        if part:
            q = q * self.strata.weights(items)[:, None]
        within = sharing(q) * float((j - 1).sum() / j.sum())
        # If items represent others, so do their deviations from one another.
        between = sharing(self.strata.between(items, mean)) if part else math.inf
        return min(within, between)

    def item_errors(self) -> Tensor:
        """Return the standard error (n,) of the NELBO of every visited item, in which the plan's expectation counts as much as four draws."""
        return self.errors_of(*self.values(), self.plan.draw_variance)

    def errors_of(self, values: Tensor, filled: Tensor, visit: float) -> Tensor:
        """Return the same for any values (n, J) of the visited items' draws, of which one is expected to have the variance `visit`."""
        mean, _ = self.spread(values, filled)
        j = filled.sum(1)
        squares = ((values - mean[:, None]).square() * filled).sum(1)
        prior = _PRIOR_DRAWS if visit > 0 else 0
        pooled = (prior * visit + squares) / (prior + j - 1)
        return (pooled / j).sqrt()

    # On disk.

    def tag(self, about: Mapping[str, Any]) -> str:
        """Return a text that identifies data, weights, model, plan, seed and conditions of the records. `about` is their provenance."""
        model, plan = self.model, self.plan
        # A repeated pilot finds the same plan except for rounding, so the plan is identified by its provenance.
        learned = json.dumps(plan.provenance, sort_keys=True) if plan.learned else plan.sha256()
        return json.dumps(
            [
                about["data_sha256"],
                about["weights_sha256"],
                *model.identity(),
                learned,
                *(["deterministic"] if self.deterministic else []),
                self.keys[0].hex(),
                tensor_hash(by_name(self.condition)),
            ],
            sort_keys=True,
        )

    def save(self, path: Path, tag: str) -> None:
        """Write all records, with the `tag` that identifies the evaluation."""
        digest = torch.tensor(list(hashlib.sha256(tag.encode()).digest()), dtype=torch.uint8)
        save_tensors(
            path,
            {
                "count": self.count,
                "goal": self.goal,
                "items": self._items(),
                **self._costs,
                "cell": self._cell,
                "tag": digest,
            },
        )

    def _items(self) -> Tensor:
        """Return the item of each row of the costs."""
        items = (self._row >= 0).nonzero().squeeze(1)
        return items[self._row[items].argsort()]

    def restore(self, path: Path, tag: str) -> None:
        """Read what `save` wrote. Raises DiffusionalError if it belongs to another evaluation."""
        tensors = load_tensors(path)
        digest = torch.tensor(list(hashlib.sha256(tag.encode()).digest()), dtype=torch.uint8)
        # Files of earlier versions have rows for all items.
        tensors.setdefault("items", torch.arange(len(self.data)))
        expected = {"count", "goal", "items", *self._costs, "cell", "tag"}
        if set(tensors) != expected or not torch.equal(tensors["tag"], digest):
            raise DiffusionalError(
                f"{path} holds the draws of another evaluation (other data, weights, plan or seed); remove it, or name another"
            )
        self.count, self.goal, self._cell = tensors["count"], tensors["goal"], tensors["cell"]
        self._costs = {name: tensors[name] for name in self._costs}
        self._row = torch.full((len(self.data),), -1, dtype=torch.int32)
        self._row[tensors["items"]] = torch.arange(len(tensors["items"]), dtype=torch.int32)
