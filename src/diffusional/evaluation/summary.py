"""A titled table with facts and caveats, as plain text and as HTML."""

from collections.abc import Sequence
from html import escape

Cell = str


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


def html(
    title: str, header: Sequence[Cell], rows: Sequence[Sequence[Cell]], facts: Sequence[str], caveats: Sequence[str]
) -> str:
    """Return the summary as an HTML fragment. All text is escaped.

    >>> html("<b>", ["cost", "nats"], [["kl", "70.0"]], [], [])[:43]
    '<div><p><strong>&lt;b&gt;</strong></p><tabl'
    """

    def row(cells: Sequence[Cell], tag: str) -> str:
        styles = ["left", *["right"] * (len(cells) - 1)]
        return "".join(
            f'<{tag} style="text-align: {style}">{escape(cell)}</{tag}>'
            for style, cell in zip(styles, cells, strict=True)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows[:-1])
    body += f'<tr style="font-weight: bold">{row(rows[-1], "td")}</tr>' if rows else ""
    notes = "".join(f"<p>{escape(text)}</p>" for text in facts)
    if caveats:
        notes += f"<p>Caveats:</p><ul>{''.join(f'<li>{escape(text)}</li>' for text in caveats)}</ul>"
    return (
        f"<div><p><strong>{escape(title)}</strong></p><table><thead><tr>{row(header, 'th')}</tr></thead>"
        f"<tbody>{body}</tbody></table>{notes}</div>"
    )


def _line(text: str) -> str:
    """Return text as one line: control characters, such as those that move a terminal's cursor, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
