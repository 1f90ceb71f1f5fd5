"""The result of an evaluation as a typed, versioned record: the kind of number, the quantity, its errors, caveats and origin.

`print(result)` shows an `Evaluation`, notebooks show it as HTML, `save` writes it and `load` reads it. Tables, figures and the demonstration
use only an `Evaluation`, new or loaded, so that the entries of the JSON are defined only here and in reading.py. The record of a comparison
is in difference.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import records
from diffusional.evaluation.checks import Kind, check, check_scores
from diffusional.evaluation.reading import EVALUATION, fields_of
from diffusional.evaluation.records import FORMAT
from diffusional.evaluation.summary import HEADER, cells, html, interval_text, origin, plain
from diffusional.ledger import Estimate

if TYPE_CHECKING:
    import matplotlib.axes

_SAID: dict[str, str] = {
    "bound": "upper bound on −ln p(x)",
    "exact": "exact −ln p(x)",
    "estimate": "estimate, not a bound",
}
_TOTAL: dict[str, str] = {"bound": "NELBO", "exact": "−ln p(x)", "estimate": "estimate"}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The bound of a data set, itemised. `terms` and `nelbo` are Estimates in nats; the terms add up to the NELBO.

    Attributes:
        nelbo: the mean over all items, with its two errors.
        terms: the mean of every cost by name. Terms of a composite model have a prefix, as in "base.kl" (`Ledger.join`).
        per_item: "item" (n,), the numbers of the visited items (all N, or fewer if the error allowed it); "nelbo" and every cost (n,) in
            nats, float64; "error" (n,), the Monte Carlo error of each score. Empty for a record that was saved without scores.
        levels_kl, levels_error: (C,) mean cost of every level, or of every cell of levels, and its Monte Carlo error, nats.
        level_edges: (C + 1,) first level t of each cell, and L + 1; in continuous time the edges in u. For a composite model, the edges
            of each block of levels one after the other, C_k + 1 each.
        dimensions: D of x, for bits per dimension.
        provenance: hashes of data and weights, type of model, levels, seed, versions and so on; JSON values.
        freedom: degrees of freedom of the Monte Carlo error.
        reached: False if a target was given and not reached within `max_evaluations`, or if there are caveats.
        caveats: reasons why the error may be too small, one sentence each; empty if there are none.
        gamma_edges: γ = −log SNR at `level_edges`, float64; None if the model's latents have no γ.
        blocks: number of levels or cells C_k of each block of levels by name, in the order of `levels_kl`. Defaults to {"kl": C}.
        kind: "bound" (an upper bound on −ln p(x)), "exact" (−ln p(x) itself) or "estimate" (neither).
        of: the quantity in words, such as "NELBO, MATH (8)".
        visited: number of visited items. Defaults to that of `per_item`, or to all items if there are no scores.
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
    of: str = "NELBO, MATH (8)"  # vocabulary: allow, since records have this value
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
        check(self)
        records.check_about(self.about, EVALUATION)

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
        """Return the Monte Carlo confidence interval of this data set's NELBO, by Student's t.

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

    def plot(
        self,
        ax: "matplotlib.axes.Axes | None" = None,
        what: str = "terms",
        unit: str = "bits/dim",
        block: str | None = None,
    ) -> "matplotlib.axes.Axes":
        """Draw the evaluation, and return the axes. Bars and bands are ± 2 standard errors, Monte Carlo.

        Args:
            ax: matplotlib axes; by default those of a new figure of pyplot.
            what: "terms" for a waterfall of the terms, which add up to the bound; "levels" for the cost of the noise levels, in nats
                per unit of log-SNR.
            unit: the unit of the terms, "bits/dim" or "nats".
            block: the block of levels to draw, for composite models, which have several (`level_blocks`).

        Raises:
            DiffusionalError: for levels of a result that has none, and if `block` is missing or not the name of a block.
            MissingPackageError: if matplotlib is not installed.

        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> one = Evaluation.from_scores(torch.tensor([3.0, 5.0, 4.0]), dimensions=2)
        >>> one.plot(Figure().subplots(), unit="nats").get_xlabel()
        'nats per item (bars: ± 2 standard errors, Monte Carlo)'
        """
        if what not in ("terms", "levels"):
            raise DiffusionalError(f'expected what to be "terms" or "levels", got {what!r}')
        if what == "levels":
            return self._block(block).plot(ax)
        from diffusional.report import plots

        named = {name: term.to(unit, self.dimensions) for name, term in [*self.terms.items(), ("", self.nelbo)]}
        terms = {name: (term.value, term.error) for name, term in named.items()}
        return plots.ledger(terms, terms.pop(""), unit, ax, self.total_name, "Monte Carlo")

    def _block(self, name: str | None) -> "LevelCosts":
        """Return a block of levels: the only one, unless it is named."""
        blocks = {key: block for key, block in self.level_blocks().items() if len(block.kl)}
        if not blocks:
            raise DiffusionalError('expected a result with levels, got one without: use what="terms"')
        if name is None and len(blocks) == 1:
            return next(iter(blocks.values()))
        if name not in blocks:
            raise DiffusionalError(f"expected block to be one of {', '.join(blocks)}, got {name!r}")
        return blocks[name]

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
            "data_levels": self.provenance.get("levels"),
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
        return cls(**fields_of(record, where), per_item={})

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
        return loaded(record, scores, str(path))

    @property
    def headline(self) -> str:
        """The number with its errors and kind, on one line: in nats for a density, otherwise in bits/dim."""
        return f"{self.nelbo.to(self.units[0], self.dimensions)!s}, {_SAID[self.kind]}"

    @property
    def units(self) -> tuple[str, str]:
        """Both units, the first of them nats for a density, whose bits/dim depend on the units of the data."""
        density = "levels" in self.provenance and self.provenance["levels"] is None
        return ("nats", "bits/dim") if density else ("bits/dim", "nats")

    @property
    def total_name(self) -> str:
        """What the sum of the terms is called in tables: "NELBO" for a bound."""
        return "bound" if self.kind == "bound" and not self.of.startswith("NELBO") else _TOTAL[self.kind]

    def __repr__(self) -> str:
        number = str(self.nelbo.to(self.units[0], self.dimensions))
        return f"<{type(self).__name__}: {_SAID[self.kind]}, {number}, {self.nelbo.n:,} items>"

    def __str__(self) -> str:
        return plain(self._title(), HEADER, self._rows(), self._facts(), self._notes())

    def _repr_html_(self) -> str:
        return html(self._title(), HEADER, self._rows(), self._facts(), self._notes())

    def _title(self) -> str:
        first, second = (str(self.nelbo.to(unit, self.dimensions)) for unit in self.units)
        return f"{self.of} ({_SAID[self.kind]}): {first}; {second}"

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
        items = f"{n:,} item{'s' * (n > 1)} ({visited})"
        return [
            interval_text(self.nelbo, self.freedom, self.dimensions),
            ", ".join([items, f"{self.dimensions:,} dimensions", grey, *model, *self.times()]),
            f"{calls:,} network evaluations ({calls / n:.1f} per item)",
            *self.error_lines(),
            *origin(about),
            *([] if self.reached else ["the target was not reached, or there are caveats"]),
        ]

    def error_lines(self) -> list[str]:
        """Return what the number is and its errors of different kinds, as one line each; nothing for a result without `errors`.

        >>> import torch
        >>> apart = {"errors": {"solver": {"nats": 0.001, "bits/dim": 0.0007}}}
        >>> Evaluation.from_scores(torch.ones(2), 2, provenance=apart).error_lines()
        ['errors in bits/dim: solver 0.0007']
        """
        errors = self.provenance.get("errors")
        if not isinstance(errors, Mapping):
            return []
        of = self.provenance.get("estimate_of")
        apart = ", ".join(f"{name} {one['bits/dim']:.2g}" for name, one in errors.items())
        return [*([] if of is None else [f"estimate of {of}; not a bound"]), f"errors in bits/dim: {apart}"]

    def times(self) -> list[str]:
        """Return "T = 1000" or "T = ∞" for a chain of latents; nothing for models without levels in time, and for a composite model one entry
        for each stage with a T.
        """
        stages = self.provenance.get("stages")
        if isinstance(stages, Mapping):
            return [f"T = {one['latents']} ({name})" for name, one in stages.items() if one.get("latents") is not None]
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

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the costs in nats per unit of log-SNR, with a band of ± 2 standard errors, and return the axes.

        Without γ the costs are drawn per unit of t or u. `ax` defaults to the axes of a new figure of pyplot. Raises
        MissingPackageError if matplotlib is not installed.

        >>> from matplotlib.figure import Figure
        >>> costs = LevelCosts(torch.ones(2), torch.zeros(2), torch.tensor([1, 2, 3]), None)
        >>> costs.plot(Figure().subplots()).get_ylabel()
        'KL, nats per unit of t'
        """
        from diffusional.report import plots

        return plots.levels(self.kl, self.error, self.edges, self.gamma, ax)


def edges_of_blocks(blocks: Mapping[str, int]) -> Tensor:
    """Return the edges of single levels, block after block: 1, …, C_k + 1 for each.

    >>> edges_of_blocks({"base.kl": 2, "upsampler.kl": 1})
    tensor([1, 2, 3, 1, 2])
    """
    return torch.cat([torch.arange(count + 1) + 1 for count in blocks.values()])


def loaded(record: Mapping[str, Any], scores: Mapping[str, Tensor], where: str) -> Evaluation:
    """Return the Evaluation of a record and its scores, which are checked."""
    fields = fields_of(record, where)
    try:
        result = Evaluation(**fields, per_item=scores)
    except DiffusionalError as error:
        raise DiffusionalError(f"{where}: {error}") from error
    if scores:
        check_scores(scores, result.nelbo.n, where)
    return result
