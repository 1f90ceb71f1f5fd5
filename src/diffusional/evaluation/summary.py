"""The texts of records: a titled table with facts and caveats, as plain text and as HTML, and the texts of estimates in it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusional.ledger import Estimate, with_error
from diffusional.report.fragments import html as html

Cell = str

# The columns of a table of costs.
HEADER = ["cost", "nats", "± MC", "± items", "bits/dim", "± MC", "± items"]


def plain(
    title: str, header: Sequence[Cell], rows: Sequence[Sequence[Cell]], facts: Sequence[str], caveats: Sequence[str]
) -> str:
    """Return the summary as lines of text. The first column is aligned to the left, the others to the right; the last row is a total.

    >>> print(plain("a title", ["cost", "nats"], [["kl", "70.0"], ["NELBO", "71.25"]], ["9 items"], ["few draws"]))
    a title
    <BLANKLINE>
      cost     nats
      kl       70.0
      NELBO   71.25
    <BLANKLINE>
    9 items
    caveat: few draws
    """
    every = [[_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = [
        "  ".join(
            [
                "",
                row[0].ljust(widths[0]),
                *(f" {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in every
    ]
    notes = [*facts, *(f"caveat: {text}" for text in caveats)]
    return "\n".join([_line(title), "", *(line.rstrip() for line in lines), "", *map(_line, notes)])


def _line(text: str) -> str:
    """Return text as one line: control characters, such as those that move a terminal's cursor, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def cells(term: Estimate, dimensions: int, unit: str) -> tuple[str, str, str]:
    """Return value, Monte Carlo error and error over items as text in a unit, with the decimals that the errors allow.

    >>> cells(Estimate(75.2183, 0.21, 1.9, n=447, network_evaluations=1000), 64, "nats")
    ('75.22', '0.21', '1.9')
    """
    one = term.to(unit, dimensions)
    return *with_error(one.value, one.error), with_error(one.item_error, one.item_error)[1]


def interval_text(estimate: Estimate, freedom: float, dimensions: int) -> str:
    """Return the 95 % Monte Carlo interval in words, in bits/dim; or that there is none."""
    if not math.isfinite(estimate.error):
        return "no Monte Carlo interval: the error is not known"
    if estimate.error == 0:
        return "no Monte Carlo error"
    one = estimate.to("bits/dim", dimensions)
    (low, high), error = one.interval(freedom), one.error
    ends = " to ".join(with_error(end, error)[0] for end in (low, high))
    degrees = "" if math.isinf(freedom) else f", {freedom:.0f} degrees of freedom"
    return f"95 % Monte Carlo interval {ends} bits/dim{degrees}"


def origin(provenance: Mapping[str, Any]) -> list[str]:
    """Return a line with the method, the seed and the beginnings of the hashes of `provenance`, if it has any, and one with the version of
    the data, if it is known.
    """
    named = (("method", "method"), ("seed", "seed"), ("data", "data_sha256"), ("weights", "weights_sha256"))
    named = (*named, ("condition", "condition_sha256"))
    said = [
        f"{name} {str(provenance[key])[:12]}" if "sha256" in key else f"{name}: {provenance[key]}"
        for name, key in named
        if key in provenance
    ]
    version = provenance.get("data_version")
    known = (
        []
        if not isinstance(version, Mapping)
        else [f"data: {version.get('name')}, recognised {version.get('recognised')}"]
    )
    return [*([", ".join(said)] if said else []), *known]
