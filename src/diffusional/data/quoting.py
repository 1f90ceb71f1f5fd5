"""What others say, for use in an error of one line."""

_MOST = 160


def shortened(text: str) -> str:
    """One line of at most 160 characters: NumPy and pyarrow may quote headers and rows, of any length.

    >>> shortened("a row:\\n1, 2"), len(shortened(500 * "1,"))
    ('a row: 1, 2', 160)
    """
    line = " ".join(text.split())
    return line if len(line) <= _MOST else f"{line[: _MOST - 1]}…"
