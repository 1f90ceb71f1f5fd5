"""HTML fragments of records and ledgers, as notebooks show them."""

from collections.abc import Sequence
from html import escape


def html(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], facts: Sequence[str], caveats: Sequence[str]
) -> str:
    """Return the summary as an HTML fragment. All text is escaped.

    >>> html("<b>", ["cost", "nats"], [["kl", "70.0"]], [], [])[:43]
    '<div><p><strong>&lt;b&gt;</strong></p><tabl'
    """

    def row(cells: Sequence[str], tag: str) -> str:
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
