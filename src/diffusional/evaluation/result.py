"""Results of evaluations as typed, versioned records: what kind of number it is, of what, with its errors, caveats and origin.

An `Evaluation` prints itself (`print(result)`, and as HTML in notebooks), is saved by `save` and read by `load`. Tables, figures and the
demonstration take nothing but an `Evaluation`, new or loaded, so that this module alone knows the entries of the JSON.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import records
from diffusional.evaluation.records import FORMAT, Entries
from diffusional.evaluation.summary import html, plain
from diffusional.ledger import Estimate, with_error

# bound: an upper bound on −ln p(x), in expectation over the draws. exact: −ln p(x) itself. estimate: neither.
Kind = Literal["bound", "exact", "estimate"]

_SAID: dict[str, str] = {
    "bound": "upper bound on −ln p(x)",
    "exact": "exact −ln p(x)",
    "estimate": "estimate, not a bound",
}
_TOTAL: dict[str, str] = {"bound": "NELBO", "exact": "−ln p(x)", "estimate": "estimate"}
# Columns of `per_item` that are not terms.
_COLUMNS = ("item", "nelbo", "error", "draws")
# The entries of an evaluation's record and of a comparison's.
_EVALUATION = frozenset(
    [
        "format",
        "kind",
        "of",
        "nelbo",
        "nelbo_nats",
        "interval",
        "freedom",
        "terms",
        "levels_kl",
        "levels_kl_error",
        "level_edges",
        "gamma_edges",
        "blocks",
        "items",
        "items_visited",
        "dimensions",
        "levels",
        "network_evaluations",
        "reached",
        "caveats",
        "provenance",
    ]
)
_COMPARISON = frozenset(
    [
        "format",
        "kind",
        "difference",
        "difference_nats",
        "interval",
        "freedom",
        "items",
        "network_evaluations",
        "reached",
        "caveats",
        "a",
        "b",
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The bound of a data set, itemised. `terms` and `nelbo` are Estimates in nats; the terms add up to the NELBO.

    Attributes:
        nelbo: the mean over all items, with its two errors.
        terms: the mean of every cost by name. Terms of a composite model have a prefix, as in "base.kl" (`Ledger.join`).
        per_item: "item" (n,), the items visited (all N unless the error allowed fewer); "nelbo" and every cost (n,) in
            nats, float64; "error" (n,), each score's own Monte Carlo error. Empty for a record that was saved without scores.
        levels_kl, levels_error: (C,) mean cost of every level, or of every cell of levels, and its Monte Carlo error, nats.
        level_edges: (C + 1,) first level t of each cell, and L + 1; in continuous time the edges in u. Of a composite model, the edges
            of each block of levels one after the other, C_k + 1 each.
        dimensions: D of x, for bits per dimension.
        provenance: hashes of data and weights, type of model, levels, seed, versions and so on; JSON values.
        freedom: degrees of freedom of the Monte Carlo error.
        reached: False if a target was given and not reached within the budget, or if there are caveats.
        caveats: reasons why the error may be too small, one sentence each; empty if there are none.
        gamma_edges: γ = −log SNR at `level_edges`, float64; None if the model's latents have no γ.
        blocks: number of levels or cells C_k of each block of levels by name, in the order of `levels_kl`; {"kl": C} unless given.
        kind: "bound" (an upper bound on −ln p(x)), "exact" (−ln p(x) itself) or "estimate" (neither).
        of: the quantity in words, such as "NELBO, MATH (8)".
        visited: number of items visited; taken from `per_item` where there are scores, otherwise all unless given.
        about: further entries of the record by name, JSON values, such as the name of the data. Their names must not be those of
            other entries.

    Raises DiffusionalError for numbers that are not finite, arrays whose lengths do not match, other units than nats and unknown kinds.

    >>> import torch
    >>> one = Evaluation.from_scores(torch.tensor([3.0, 5.0, 4.0]), dimensions=2)
    >>> one
    <Evaluation: exact −ln p(x), 2.89 bits/dim (items ± 0.42), 3 items>
    """

    nelbo: Estimate
    terms: Mapping[str, Estimate]
    per_item: Mapping[str, Tensor]
    levels_kl: Tensor
    levels_error: Tensor
    level_edges: Tensor
    dimensions: int
    provenance: Mapping[str, Any]
    freedom: float = math.inf
    reached: bool = True
    caveats: tuple[str, ...] = field(default=())
    gamma_edges: Tensor | None = None
    blocks: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = "bound"
    of: str = "NELBO, MATH (8)"
    visited: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Doubts about the data, from `provenance`, are caveats of every result.
        doubts = [text for text in self.provenance.get("doubts", ()) if text not in self.caveats]
        if doubts:
            object.__setattr__(self, "caveats", (*self.caveats, *doubts))
        if not self.blocks:
            object.__setattr__(self, "blocks", {"kl": len(self.levels_kl)})
        if self.visited is None:
            scores = next(iter(self.per_item.values()), None)
            object.__setattr__(self, "visited", self.nelbo.n if scores is None else len(scores))
        _check(self)

    @classmethod
    def from_scores(
        cls,
        scores: Tensor,
        dimensions: int,
        kind: Kind = "exact",
        of: str = "−ln p(x)",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Evaluation":
        """Return the record of scores that were computed without draws, such as −ln p(x) under a baseline.

        Args:
            scores: nats (N,) of N ≥ 1 items. There is no Monte Carlo error; the error over items is their standard error.
            dimensions: D of x.
            kind, of, provenance: as in the class.

        >>> import torch
        >>> result = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
        >>> result.nelbo.value, result.nelbo.error, result.kind
        (4.0, 0.0, 'exact')
        """
        if scores.ndim != 1 or not len(scores):
            raise DiffusionalError(f"scores must have the shape (N,) with N ≥ 1, got {tuple(scores.shape)}")
        n, none = len(scores), torch.zeros(0, dtype=torch.float64)
        spread = float(scores.std()) / math.sqrt(n) if n > 1 else math.nan
        own = scores.detach().cpu().double()
        return cls(
            Estimate(float(scores.mean()), 0.0, spread, n, 0),
            {},
            {"item": torch.arange(n), "nelbo": own, "error": torch.zeros_like(own)},
            none,
            none,
            none,
            dimensions,
            {} if provenance is None else provenance,
            kind=kind,
            of=of,
        )

    @property
    def items_visited(self) -> int:
        """The number of items visited: all N unless the error allowed fewer."""
        assert self.visited is not None
        return self.visited

    def interval(self, confidence: float = 0.95, unit: str = "nats") -> tuple[float, float]:
        """Monte Carlo confidence interval of this data set's NELBO, by Student's t.

        >>> import torch
        >>> one = Estimate(10.0, 1.0, 0.0, n=1, network_evaluations=0)
        >>> none = torch.zeros(0)
        >>> low, high = Evaluation(one, {}, {}, none, none, none, 1, {}).interval()
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
        """
        return self.nelbo.to(unit, self.dimensions).interval(self.freedom, confidence)

    def level_blocks(self) -> "dict[str, LevelCosts]":
        """Return the costs of the levels of each block by name: one block "kl", or one for each stage of a composite model.

        >>> import torch
        >>> one, edges = Estimate(3.0, 0.0, 0.0, n=1, network_evaluations=0), torch.tensor([1, 2, 3, 1, 2])
        >>> kl, blocks = torch.tensor([0.5, 1.5, 1.0]), {"base.kl": 2, "upsampler.kl": 1}
        >>> result = Evaluation(one, {}, {}, kl, 0 * kl, edges, 4, {}, blocks=blocks)
        >>> result.level_blocks()["upsampler.kl"].edges
        tensor([1, 2])
        """
        found, start, edge = {}, 0, 0
        for name, count in self.blocks.items():
            own, ends = slice(start, start + count), slice(edge, edge + count + 1)
            gamma = None if self.gamma_edges is None else self.gamma_edges[ends]
            found[name] = LevelCosts(self.levels_kl[own], self.levels_error[own], self.level_edges[ends], gamma)
            start, edge = start + count, edge + count + 1
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the record that `diffusional evaluate --json` writes: everything except the scores of single items."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "of": self.of,
            "nelbo": self.nelbo.to("bits/dim", self.dimensions).to_dict(),
            "nelbo_nats": self.nelbo.to_dict(),
            "interval": self.nelbo.intervals(self.freedom, self.dimensions),
            "freedom": None if math.isinf(self.freedom) else self.freedom,
            "terms": {name: term.to_dict() for name, term in self.terms.items()},
            "levels_kl": self.levels_kl.tolist(),
            "levels_kl_error": [v if math.isfinite(v) else None for v in self.levels_error.tolist()],
            "level_edges": self.level_edges.tolist(),
            "gamma_edges": None if self.gamma_edges is None else self.gamma_edges.tolist(),
            "blocks": dict(self.blocks),
            "items": self.nelbo.n,
            "items_visited": self.items_visited,
            "dimensions": self.dimensions,
            "levels": self.provenance.get("levels"),
            "network_evaluations": self.nelbo.network_evaluations,
            "reached": self.reached,
            "caveats": list(self.caveats),
            "provenance": dict(self.provenance),
            **self.about,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str = "the record") -> "Evaluation":
        """Read what `to_json` returned, in this version of diffusional or an earlier one. `per_item` is then empty.

        Args:
            record: the JSON object. Entries with other names than `to_json`'s become `about`.
            where: what to call the record in messages.

        Raises DiffusionalError for missing entries, wrong types, numbers that are not finite, lengths that do not match, and for a
        format of a later version.

        >>> import torch
        >>> result = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
        >>> Evaluation.from_json(result.to_json()).nelbo == result.nelbo
        True
        """
        return cls(**_fields(record, where), per_item={})

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, and the scores of single items beside it, as NAME.scores.safetensors.

        Both files are replaced together or not at all. `load` returns an equal record, to the last bit.

        Args:
            path: NAME.json; its folder must exist.

        Raises DiffusionalError if the path does not end in ".json", if it exists and is not a record of this kind, if a file cannot be
        written, and for entries of `provenance` or `about` that are not JSON values.

        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> result = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
        >>> result.save(path)
        >>> Evaluation.load(path).per_item["nelbo"]
        tensor([3., 5.], dtype=torch.float64)
        """
        records.save(Path(path), self.to_json(), self.per_item)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a record that `save` wrote, or the JSON of `diffusional evaluate --json`, of this version or an earlier one.

        Raises DiffusionalError for a file that is missing, damaged, or of a later format, and for scores of another record. Warns if the
        record was saved with scores and their file is missing; `per_item` is then empty, as it is for the JSON of the command line.
        """
        path = Path(path)
        record, scores = records.load(path)
        return _loaded(record, scores, str(path))

    @property
    def headline(self) -> str:
        """The number with its errors and kind, on one line."""
        return f"{_brief(self.nelbo.to('bits/dim', self.dimensions))}, {_SAID[self.kind]}"

    @property
    def total_name(self) -> str:
        """What the sum of the terms is called in tables: "NELBO" for a bound."""
        return "bound" if self.kind == "bound" and not self.of.startswith("NELBO") else _TOTAL[self.kind]

    def __repr__(self) -> str:
        bits = _brief(self.nelbo.to("bits/dim", self.dimensions))
        return f"<{type(self).__name__}: {_SAID[self.kind]}, {bits}, {self.nelbo.n:,} items>"

    def __str__(self) -> str:
        return plain(self._title(), _HEADER, self._rows(), self._facts(), self._notes())

    def _repr_html_(self) -> str:
        return html(self._title(), _HEADER, self._rows(), self._facts(), self._notes())

    def _title(self) -> str:
        bits, nats = (_brief(self.nelbo.to(unit, self.dimensions)) for unit in ("bits/dim", "nats"))
        return f"{self.of} ({_SAID[self.kind]}): {bits}; {nats}"

    def _rows(self) -> list[list[str]]:
        named = [*self.terms.items(), (self.total_name, self.nelbo)]
        return [
            [name, *cells(term, self.dimensions, "nats"), *cells(term, self.dimensions, "bits/dim")]
            for name, term in named
        ]

    def _facts(self) -> list[str]:
        n, calls, about = self.nelbo.n, self.nelbo.network_evaluations, self.provenance
        visited = "all visited" if self.items_visited == n else f"{self.items_visited:,} visited"
        grey = "real-valued" if about.get("levels") is None else f"{about['levels']} levels"
        model = [str(about[key]) for key in ("model",) if key in about]
        return [
            _interval(self.nelbo, self.freedom, self.dimensions),
            ", ".join([f"{n:,} items ({visited})", f"{self.dimensions:,} dimensions", grey, *model, *self.times()]),
            f"{calls:,} network evaluations ({calls / n:.1f} per item)",
            *_origin(about),
            *([] if self.reached else ["the target was not reached, or there are caveats"]),
        ]

    def times(self) -> list[str]:
        """Return "T = 1000" or "T = ∞" for a chain of latents; nothing for models without levels in time."""
        if self.provenance.get("latents") is not None:
            return [f"T = {self.provenance['latents']}"]
        return ["T = ∞"] if self.level_edges.is_floating_point() and len(self.levels_kl) else []

    def _notes(self) -> list[str]:
        return list(self.caveats)


@dataclass(frozen=True, eq=False)
class LevelCosts:
    """Costs of one block of levels: kl and error (C,) nats, edges (C + 1,) in t or u, and γ (C + 1,) there or None.

    >>> LevelCosts(torch.ones(2), torch.zeros(2), torch.tensor([1, 2, 3]), None).kl
    tensor([1., 1.])
    """

    kl: Tensor
    error: Tensor
    edges: Tensor
    gamma: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """NELBO of A less NELBO of B: negative where A gives the data more probability. `difference` is in nats.

    It is the difference of two bounds, and so no bound itself. `freedom`, `reached`, `caveats` and `about` are as in an Evaluation; `a`
    and `b` are the two evaluations from the same draws. `per_item` has "item" (n,), "difference" (n,) of the scores in nats, and
    "error" (n,), its Monte Carlo error, paired; it is empty for a record that was saved without scores.

    >>> a, b = (Evaluation.from_scores(torch.tensor(scores), dimensions=2) for scores in ([3.0, 5.0], [4.0, 6.0]))
    >>> Comparison(Estimate(-1.0, 0.1, 0.0, n=2, network_evaluations=0), a, b, math.inf, True, ())
    <Comparison: A − B = -0.721 ± 0.072 bits/dim (items ± 0), 2 items>
    """

    difference: Estimate
    a: Evaluation
    b: Evaluation
    freedom: float
    reached: bool
    caveats: tuple[str, ...]
    per_item: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_estimate("difference", self.difference)
        _check_freedom(self.freedom)
        records.check_about(self.about, _COMPARISON)

    def interval(self, confidence: float = 0.95, unit: str = "nats") -> tuple[float, float]:
        """Monte Carlo confidence interval of this data set's difference, by Student's t."""
        return self.difference.to(unit, self.a.dimensions).interval(self.freedom, confidence)

    @property
    def names(self) -> tuple[str, str]:
        """What the two models are called in tables: the runs, if the record names them, or "A" and "B"."""
        runs = self.about.get("runs")
        return (str(runs[0]), str(runs[1])) if isinstance(runs, list) and len(runs) == 2 else ("A", "B")

    def to_json(self) -> dict[str, Any]:
        """Return the record that `diffusional evaluate A B --json` writes."""
        return {
            "format": FORMAT,
            "kind": "estimate",
            "difference": self.difference.to("bits/dim", self.a.dimensions).to_dict(),
            "difference_nats": self.difference.to_dict(),
            "interval": self.difference.intervals(self.freedom, self.a.dimensions),
            "freedom": None if math.isinf(self.freedom) else self.freedom,
            "items": self.difference.n,
            "network_evaluations": self.difference.network_evaluations,
            "reached": self.reached,
            "caveats": list(self.caveats),
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            **self.about,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str = "the record") -> "Comparison":
        """Read what `to_json` returned, in this version of diffusional or an earlier one; errors as in `Evaluation.from_json`."""
        return _compared(record, {}, where)

    def save(self, path: str | Path) -> None:
        """Write the record as JSON and both models' scores of single items beside it, as `Evaluation.save` does."""
        parts = {"difference": self.per_item, "a": self.a.per_item, "b": self.b.per_item}
        scores = {f"{name}.{key}": values for name, part in parts.items() for key, values in part.items()}
        records.save(Path(path), self.to_json(), scores)

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what `save` or `diffusional evaluate A B --json` wrote; errors and warnings as in `Evaluation.load`."""
        path = Path(path)
        record, scores = records.load(path)
        return _compared(record, scores, str(path))

    def __repr__(self) -> str:
        bits = _brief(self.difference.to("bits/dim", self.a.dimensions))
        return f"<{type(self).__name__}: A − B = {bits}, {self.difference.n:,} items>"

    def __str__(self) -> str:
        return plain(self._title(), _HEADER, self._rows(), self._facts(), list(self.caveats))

    def _repr_html_(self) -> str:
        return html(self._title(), _HEADER, self._rows(), self._facts(), list(self.caveats))

    def _title(self) -> str:
        bits, nats = (_brief(self.difference.to(unit, self.a.dimensions)) for unit in ("bits/dim", "nats"))
        return f"A − B, difference of two bounds: {bits}; {nats}; negative: A gives the data more probability"

    def _rows(self) -> list[list[str]]:
        named = zip((*self.names, "A − B, paired"), (self.a.nelbo, self.b.nelbo, self.difference), strict=True)
        d = self.a.dimensions
        return [[name, *cells(one, d, "nats"), *cells(one, d, "bits/dim")] for name, one in named]

    def _facts(self) -> list[str]:
        n, calls = self.difference.n, self.difference.network_evaluations
        return [
            _interval(self.difference, self.freedom, self.a.dimensions),
            f"{n:,} items, {self.a.dimensions:,} dimensions; {calls:,} network evaluations of both",
            *([] if self.reached else ["the target was not reached, or there are caveats"]),
        ]


def edges_of_blocks(blocks: Mapping[str, int]) -> Tensor:
    """Return the edges of single levels, block after block: 1, …, C_k + 1 for each.

    >>> edges_of_blocks({"base.kl": 2, "upsampler.kl": 1})
    tensor([1, 2, 3, 1, 2])
    """
    return torch.cat([torch.arange(count + 1) + 1 for count in blocks.values()])


_HEADER = ["cost", "nats", "± MC", "± items", "bits/dim", "± MC", "± items"]


def cells(term: Estimate, dimensions: int, unit: str) -> tuple[str, str, str]:
    """Return value, Monte Carlo error and error over items as text in a unit, with the decimals that the errors allow.

    >>> cells(Estimate(75.2183, 0.21, 1.9, n=447, network_evaluations=1000), 64, "nats")
    ('75.22', '0.21', '1.9')
    """
    one = term.to(unit, dimensions)
    return *with_error(one.value, one.error), with_error(one.item_error, one.item_error)[1]


def _brief(estimate: Estimate) -> str:
    return str(estimate)


def _interval(estimate: Estimate, freedom: float, dimensions: int) -> str:
    if not math.isfinite(estimate.error):
        return "no Monte Carlo interval: the error is not known"
    if estimate.error == 0:
        return "no Monte Carlo error"
    one = estimate.to("bits/dim", dimensions)
    (low, high), error = one.interval(freedom), one.error
    ends = " to ".join(with_error(end, error)[0] for end in (low, high))
    degrees = "" if math.isinf(freedom) else f", {freedom:.0f} degrees of freedom"
    return f"95 % Monte Carlo interval {ends} bits/dim{degrees}"


def _origin(provenance: Mapping[str, Any]) -> list[str]:
    named = (("method", "method"), ("seed", "seed"), ("data", "data_sha256"), ("weights", "weights_sha256"))
    named = (*named, ("condition", "condition_sha256"))
    said = [
        f"{name} {str(provenance[key])[:12]}" if "sha256" in key else f"{name}: {provenance[key]}"
        for name, key in named
        if key in provenance
    ]
    return [", ".join(said)] if said else []


def _fields(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read the arguments of an Evaluation, except for `per_item`, from its record. In format 0 the costs of levels may be missing."""
    entries = Entries(record, where)
    old: dict[str, Any] = {"default": []} if entries.format == 0 else {}
    n, calls, dimensions = (
        entries.integer("items"),
        entries.integer("network_evaluations", 0),
        entries.integer("dimensions"),
    )
    nelbo, bits = entries.estimate("nelbo_nats", n, calls), entries.estimate("nelbo", n, calls, "bits/dim")
    _agree(entries, "nelbo", nelbo.to("bits/dim", dimensions), bits)
    terms = Entries(entries.object("terms"), f"{where}, terms")
    edges = entries.get("gamma_edges", None)
    kind = entries.text("kind", *(["bound"] if old else []))
    if kind not in get_args(Kind):
        raise entries.wrong("kind", f"one of {', '.join(get_args(Kind))}", kind)
    visited = entries.integer("items_visited", *([1, n] if old else []))
    if visited > n:
        raise entries.wrong("items_visited", f"at most {n}, the number of items", visited)
    return {
        "nelbo": nelbo,
        "terms": {name: terms.estimate(name, n, calls) for name in terms.record},
        "levels_kl": entries.tensor("levels_kl", **old).double(),
        "levels_error": entries.tensor("levels_kl_error", null=True, **old).double(),
        "level_edges": entries.tensor("level_edges", **old),
        "gamma_edges": None if edges is None else entries.tensor("gamma_edges").double(),
        "blocks": {name: _count(entries, name) for name in entries.object("blocks", {})},
        "dimensions": dimensions,
        "provenance": entries.object("provenance", *([{}] if old else [])),
        "freedom": entries.freedom(nelbo),
        "reached": entries.flag("reached", *([True] if old else [])),
        "caveats": entries.texts("caveats", **old),
        "kind": kind,
        "of": entries.text("of", *(["NELBO, MATH (8)"] if old else [])),
        "visited": visited,
        "about": records.others(record, _EVALUATION),
    }


def _count(entries: Entries, name: str) -> int:
    return Entries(entries.object("blocks"), f"{entries.where}, blocks").integer(name, 0)


def _agree(entries: Entries, name: str, expected: Estimate, got: Estimate) -> None:
    """Raise DiffusionalError unless the two units of a record are of the same number."""
    if not math.isclose(expected.value, got.value, rel_tol=1e-9, abs_tol=1e-300):
        raise entries.wrong(name, f"{expected.value!r} {expected.unit}, which {name}_nats is", got.value)


def _loaded(record: Mapping[str, Any], scores: Mapping[str, Tensor], where: str) -> Evaluation:
    """Return the Evaluation of a record and its scores, which are checked."""
    fields = _fields(record, where)
    try:
        result = Evaluation(**fields, per_item=scores)
    except DiffusionalError as error:
        raise DiffusionalError(f"{where}: {error}") from error
    if not scores:
        return result
    item = scores["item"]
    if (
        item.is_floating_point()
        or bool(((item < 0) | (item >= result.nelbo.n)).any())
        or len(item.unique()) < len(item)
    ):
        raise DiffusionalError(
            f"{where}: item must have different integers from 0 to {result.nelbo.n - 1}. Save the record again"
        )
    for name, column in scores.items():
        if name not in ("error", "draws") and not bool(torch.isfinite(column.double()).all()):
            raise DiffusionalError(f"{where}: the scores {name!r} must be finite. Save the record again")
    return result


def _compared(record: Mapping[str, Any], scores: Mapping[str, Tensor], where: str) -> Comparison:
    """Return the Comparison of a record and its scores, which are checked."""
    entries = Entries(record, where)
    old = entries.format == 0
    n, calls = entries.integer("items"), entries.integer("network_evaluations", 0)
    difference = entries.estimate("difference_nats", n, calls)
    a, b = (_loaded(entries.object(key), _part(scores, key), f"{where}, {key}") for key in ("a", "b"))
    bits = entries.estimate("difference", n, calls, "bits/dim")
    _agree(entries, "difference", difference.to("bits/dim", a.dimensions), bits)
    if (a.nelbo.n, a.dimensions) != (b.nelbo.n, b.dimensions) or a.nelbo.n != n:
        raise entries.wrong("a and b", f"of the same {n} items", f"{a!r} and {b!r}")
    if not old and entries.text("kind") != "estimate":
        raise entries.wrong("kind", "'estimate'", entries.text("kind"))
    return Comparison(
        difference,
        a,
        b,
        entries.freedom(difference),
        entries.flag("reached"),
        entries.texts("caveats"),
        _part(scores, "difference"),
        records.others(record, _COMPARISON),
    )


def _part(scores: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the scores of one part of a comparison, named "a.nelbo" and so on in the file."""
    return {key.removeprefix(f"{name}."): values for key, values in scores.items() if key.startswith(f"{name}.")}


def _check(result: Evaluation) -> None:
    """Raise DiffusionalError unless the numbers are finite and the lengths match."""
    if result.kind not in get_args(Kind):
        raise DiffusionalError(f"kind must be one of {', '.join(get_args(Kind))}, got {result.kind!r}")
    if result.dimensions < 1:
        raise DiffusionalError(f"dimensions must be at least 1, got {result.dimensions}")
    _check_estimate("nelbo", result.nelbo)
    for name, term in result.terms.items():
        if name in _COLUMNS:
            raise DiffusionalError(f"a term must not be named {name!r}, which is a column of the scores: rename it")
        _check_estimate(name, term)
    _check_freedom(result.freedom)
    levels, blocks = len(result.levels_kl), result.blocks
    if len(result.levels_error) != levels or sum(blocks.values()) != levels:
        raise DiffusionalError(
            f"levels_kl, levels_error and blocks must be of the same levels, got {levels}, {len(result.levels_error)} and {dict(blocks)}"
        )
    edges = len(result.level_edges)
    if edges != levels + len(blocks) and (edges or levels):
        raise DiffusionalError(
            f"level_edges must have {levels + len(blocks)} entries (C + 1 for each block), got {edges}"
        )
    if result.gamma_edges is not None and len(result.gamma_edges) != edges:
        raise DiffusionalError(f"gamma_edges must be as long as level_edges, {edges}, got {len(result.gamma_edges)}")
    for name in ("levels_kl", "level_edges", "gamma_edges"):
        values = getattr(result, name)
        if values is not None and not bool(torch.isfinite(values).all()):
            raise DiffusionalError(f"{name} must be finite, got {values.tolist()!r:.80}")
    missing = [name for name in ("item", "nelbo") if result.per_item and name not in result.per_item]
    if missing:
        raise DiffusionalError(f"per_item must have the columns item and nelbo, got {', '.join(result.per_item)}")
    lengths = {name: tuple(column.shape) for name, column in result.per_item.items()}
    if any(shape != (result.visited,) for shape in lengths.values()) or not 0 < result.items_visited <= result.nelbo.n:
        raise DiffusionalError(
            f"per_item must have columns of one number for each of 1 to {result.nelbo.n} visited items ({result.visited}), got {lengths}"
        )
    records.check_about(result.about, _EVALUATION)


def _check_estimate(name: str, estimate: Estimate) -> None:
    if estimate.unit != "nats":
        raise DiffusionalError(f"{name} must be in nats, got {estimate.unit}: use Estimate.to")
    if not math.isfinite(estimate.value) or estimate.error < 0 or estimate.item_error < 0:
        raise DiffusionalError(
            f"{name} must be finite with errors of at least 0, got {estimate.value} ± {estimate.error} (items ± {estimate.item_error})"
        )


def _check_freedom(freedom: float) -> None:
    if not freedom >= 0:
        raise DiffusionalError(f"freedom must be at least 0 (math.inf for an exact error), got {freedom}")
