"""Shortening of quoted texts, such as names of columns and messages of libraries, for error messages of one line."""

from collections.abc import Sequence

_MOST = 160
_NAMES = 8


def shortened(text: str) -> str:
    """Return `text` as one line of at most 160 characters: NumPy and pyarrow may quote headers and rows of any length.

    >>> shortened("a row:\\n1, 2"), len(shortened(500 * "1,"))
    ('a row: 1, 2', 160)
    """
    line = " ".join(text.split())
    return line if len(line) <= _MOST else f"{line[: _MOST - 1]}…"


def listed(names: Sequence[str]) -> str:
    """Return names for a message, at most eight of them.

    >>> listed(["a", "b"]), listed("abcdefghijk")[-14:]
    ("'a', 'b'", "'h' and 3 more")
    """
    more = len(names) - _NAMES
    return ", ".join(map(repr, names[:_NAMES])) + (f" and {more} more" if more > 0 else "")
