"""Standard output and standard error whose failures do not end a command, so that no result is lost.

A character that is not in the encoding is replaced by a similar one. A closed pipe or a full disk is reported at the end.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

_SIMILAR = {
    "±": "+/-",
    "−": "-",
    "–": "-",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
    "∞": "inf",
    "→": "->",
    "…": "...",
    "×": "x",
    "·": "*",
    "‖": "||",
    "Σ": "sum",
    "√": "sqrt",
    "∈": "in",
    "²": "^2",
    "₁": "_1",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "Δ": "Delta",
    "ε": "epsilon",
    "σ": "sigma",
    "━": "-",
    "│": "|",
    "’": "'",
    "“": '"',
    "”": '"',
}


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SIMILAR.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error("diffusional.similar", _similar)


class Guarded(io.TextIOBase):
    """A text stream whose writes never raise; `fault` is the first error, or None.

    Args:
        stream: the stream to write to; None, Python's value for a closed descriptor, discards everything.

    >>> out = Guarded(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    >>> _ = out.write("1.75 ± 0.01 nats")
    >>> out.flush()
    >>> out.stream.buffer.getvalue(), out.fault
    (b'1.75 +/- 0.01 nats', None)
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.fault = stream, None if stream is not None else OSError("it is closed")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream; rich draws ASCII boxes if it is not Unicode."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self.fault is None:
            try:
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:
                    encoding = self.encoding
                    self.stream.write(text.encode(encoding, "diffusional.similar").decode(encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self.fault = error
        return len(text)

    def flush(self) -> None:
        if self.fault is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.fault = error

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("the stream is closed")
        return self.stream.fileno()

    def abandon(self) -> None:
        """Discard further output after a fault: Python would otherwise write again at exit, and report the error once more."""
        if self.fault is not None and self.stream is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Guarded, Guarded]]:
    """Replace standard output and error by guarded streams within the block."""
    _occupy()
    out, err = Guarded(sys.stdout), Guarded(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield out, err
        finally:
            for stream in (out, err):
                stream.flush()
                stream.abandon()


def _occupy() -> None:
    """Open the descriptors that the shell closed (`>&-`): otherwise the next file opened would get their number, and the output of libraries."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
