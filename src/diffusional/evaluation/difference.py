"""The record of a paired comparison: the difference of two bounds, with its error, and both evaluations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation import records
from diffusional.evaluation.checks import check_estimate, check_freedom
from diffusional.evaluation.reading import agree
from diffusional.evaluation.records import FORMAT, Entries
from diffusional.evaluation.result import Evaluation, LevelCosts, loaded
from diffusional.evaluation.summary import HEADER, cells, html, interval_text, plain
from diffusional.ledger import Estimate

if TYPE_CHECKING:
    import matplotlib.axes

# The entries of a comparison's record.
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
        "terms",
        "levels_kl",
        "levels_kl_error",
        "a",
        "b",
    ]
)


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """NELBO of A less NELBO of B: negative where A's bound is lower. `difference` is in nats.

    It is the difference of two bounds, and so no bound itself. `freedom`, `reached`, `caveats` and `about` are as in an Evaluation; `a`
    and `b` are the two evaluations from the same draws. `per_item` has "item" (n,), "difference" (n,) of the scores in nats, and
    "error" (n,), its Monte Carlo error, paired; it is empty for a record that was saved without scores.

    `terms` are the paired differences of the costs by name, in nats, which add up to `difference`: a cost that one of the models does not
    have counts as 0 there. `levels_kl` and `levels_error` (C,) are the paired differences of the costs of the levels and their Monte Carlo
    errors, nats, with the edges and blocks of `a`. The errors of both are those of the draws. They are empty for records of earlier
    versions and for draws that are not paired, the levels also for models that do not have the same levels.

    >>> import torch
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
    terms: Mapping[str, Estimate] = field(default_factory=dict)
    levels_kl: Tensor = field(default_factory=_none)
    levels_error: Tensor = field(default_factory=_none)

    def __post_init__(self) -> None:
        check_estimate("difference", self.difference)
        check_freedom(self.freedom)
        for name, term in self.terms.items():
            check_estimate(f"the term {name}", term)
        if len(self.levels_kl) != len(self.levels_error) or len(self.levels_kl) not in (0, len(self.a.levels_kl)):
            raise DiffusionalError(
                f"levels_kl and levels_error must be of the {len(self.a.levels_kl)} levels of a, or empty, got {len(self.levels_kl)} and "
                f"{len(self.levels_error)}"
            )
        records.check_about(self.about, _COMPARISON)

    def interval(self, confidence: float = 0.95, unit: str = "nats") -> tuple[float, float]:
        """Return the Monte Carlo confidence interval of this data set's difference, by Student's t."""
        return self.difference.to(unit, self.a.dimensions).interval(self.freedom, confidence)

    def level_blocks(self) -> dict[str, LevelCosts]:
        """Return the differences of the costs of the levels of each block by name, with paired errors; {} if there are none."""
        if not len(self.levels_kl):
            return {}
        return replace(self.a, levels_kl=self.levels_kl, levels_error=self.levels_error).level_blocks()

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, unit: str = "bits/dim") -> "matplotlib.axes.Axes":
        """Draw the paired differences of the costs and of their sum, and return the axes.

        Thick bars are ± 2 Monte Carlo standard errors, thin ones ± 2 standard errors over items.

        Args:
            ax: matplotlib axes; by default those of a new figure of pyplot.
            unit: "bits/dim" or "nats".

        Raises MissingPackageError if matplotlib is not installed.

        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> a, b = (Evaluation.from_scores(torch.tensor(scores), dimensions=2) for scores in ([3.0, 5.0], [4.0, 6.0]))
        >>> both = Comparison(Estimate(-1.0, 0.1, 0.0, n=2, network_evaluations=0), a, b, math.inf, True, ())
        >>> [label.get_text() for label in both.plot(Figure().subplots()).get_yticklabels()]
        ['A − B']
        """
        from diffusional.report import plots

        named = {**self.terms, " − ".join(self.names): self.difference}
        rows = {name: one.to(unit, self.a.dimensions) for name, one in named.items()}
        return plots.bounds(
            {name: (one.value, one.error, one.item_error) for name, one in rows.items()}, unit, ax, "equally good"
        )

    @property
    def names(self) -> tuple[str, str]:
        """What the two models are called in tables: the runs, if the record names them, or "A" and "B"; with another condition of B also that."""
        runs, given = self.about.get("runs"), self.about.get("other_condition")
        a, b = (str(runs[0]), str(runs[1])) if isinstance(runs, list) and len(runs) == 2 else ("A", "B")
        return a, f"{b} given {' '.join(map(str, given))}" if isinstance(given, list) else b

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
            "terms": {name: term.to_dict() for name, term in self.terms.items()},
            "levels_kl": self.levels_kl.tolist(),
            "levels_kl_error": [v if math.isfinite(v) else None for v in self.levels_error.tolist()],
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
        bits = str(self.difference.to("bits/dim", self.a.dimensions))
        return f"<{type(self).__name__}: A − B = {bits}, {self.difference.n:,} items>"

    def __str__(self) -> str:
        return plain(self._title(), HEADER, self._rows(), self._facts(), list(self.caveats))

    def _repr_html_(self) -> str:
        return html(self._title(), HEADER, self._rows(), self._facts(), list(self.caveats))

    def _title(self) -> str:
        first, second = (str(self.difference.to(unit, self.a.dimensions)) for unit in self.a.units)
        return f"A − B, difference of two bounds: {first}; {second}; negative: A's bound is lower"

    def _rows(self) -> list[list[str]]:
        named = zip((*self.names, "A − B, paired"), (self.a.nelbo, self.b.nelbo, self.difference), strict=True)
        d = self.a.dimensions
        return [[name, *cells(one, d, "nats"), *cells(one, d, "bits/dim")] for name, one in named]

    def _facts(self) -> list[str]:
        n, calls = self.difference.n, self.difference.network_evaluations
        return [
            interval_text(self.difference, self.freedom, self.a.dimensions),
            f"{n:,} items, {self.a.dimensions:,} dimensions; {calls:,} network evaluations of both",
            *([] if self.reached else ["the target was not reached, or there are caveats"]),
        ]


def _compared(record: Mapping[str, Any], scores: Mapping[str, Tensor], where: str) -> Comparison:
    """Return the Comparison of a record and its scores, which are checked."""
    entries = Entries(record, where)
    old = entries.format == 0
    n, calls = entries.integer("items"), entries.integer("network_evaluations", 0)
    difference = entries.estimate("difference_nats", n, calls)
    a, b = (loaded(entries.object(key), _part(scores, key), f"{where}, {key}") for key in ("a", "b"))
    bits = entries.estimate("difference", n, calls, "bits/dim")
    agree(entries, "difference", difference.to("bits/dim", a.dimensions), bits)
    if (a.nelbo.n, a.dimensions) != (b.nelbo.n, b.dimensions) or a.nelbo.n != n:
        raise entries.wrong("a and b", f"of the same {n} items", f"{a!r} and {b!r}")
    if not old and entries.text("kind") != "estimate":
        raise entries.wrong("kind", "'estimate'", entries.text("kind"))
    terms = Entries(entries.object("terms", {}), f"{where}, terms")
    return Comparison(
        difference,
        a,
        b,
        entries.freedom(difference),
        entries.flag("reached"),
        entries.texts("caveats"),
        _part(scores, "difference"),
        records.others(record, _COMPARISON),
        {name: terms.estimate(name, n, 0) for name in terms.record},
        entries.tensor("levels_kl", default=[]).double(),
        entries.tensor("levels_kl_error", null=True, default=[]).double(),
    )


def _part(scores: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the scores of one part of a comparison, named "a.nelbo" and so on in the file."""
    return {key.removeprefix(f"{name}."): values for key, values in scores.items() if key.startswith(f"{name}.")}
